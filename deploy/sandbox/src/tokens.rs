//! Access tokens: which app each belongs to, and when it expires.
//!
//! The two endpoints issue tokens independently of each other, as WeChat's do. An expired token answers 42001. A token
//! that was revoked by a forced refresh, or never existed, answers 40001.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use rand::RngExt;

use crate::Settings;
use crate::answer::{No, code};
use crate::app::App;
use crate::clock::SECOND;

const LENGTH: usize = 512;
const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Once there are this many tokens, expired and revoked ones are removed, and then answer 40001 as unknown.
const REMEMBERED: usize = 10_000;

/// A token and the seconds until it expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) text: Arc<str>,
    pub(crate) expires_in: u64,
}

struct Issued {
    app: Arc<App>,
    ends_ms: u64,
    killed: bool,
}

#[derive(Default)]
struct Latest {
    plain: Option<Arc<str>>,
    stable: Option<Arc<str>>,
}

#[derive(Default)]
struct State {
    issued: HashMap<Arc<str>, Issued>,
    latest: HashMap<String, Latest>,
}

#[derive(Default)]
pub(crate) struct Tokens(RwLock<State>);

impl Tokens {
    /// The app of a token that is valid now.
    pub(crate) fn app(&self, token: Option<&str>, now_ms: u64) -> Result<Arc<App>, No> {
        let token = token.filter(|token| !token.is_empty()).ok_or_else(|| No::code(code::TOKEN_MISSING))?;
        let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
        match state.issued.get(token) {
            Some(issued) if issued.killed => Err(No::code(code::TOKEN_UNKNOWN)),
            Some(issued) if issued.ends_ms <= now_ms => Err(No::code(code::TOKEN_EXPIRED)),
            Some(issued) => Ok(Arc::clone(&issued.app)),
            None => Err(No::code(code::TOKEN_UNKNOWN)),
        }
    }

    /// `GET /cgi-bin/token`: always issues a new token. The previous one stays valid for at most the grace period.
    pub(crate) fn plain(&self, app: &Arc<App>, now_ms: u64, settings: &Settings) -> Token {
        let mut state = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let token = state.issue(app, now_ms, settings);
        let earlier = state.latest_of(app).plain.replace(Arc::clone(&token.text));
        if let Some(earlier) = earlier.and_then(|text| state.issued.get_mut(&text)) {
            let grace_ends = now_ms.saturating_add(settings.token_grace_seconds.saturating_mul(SECOND));
            earlier.ends_ms = earlier.ends_ms.min(grace_ends);
        }
        token
    }

    /// `POST /cgi-bin/stable_token`: returns the current token while it has enough time left. `force` revokes it and
    /// issues a new one.
    pub(crate) fn stable(&self, app: &Arc<App>, force: bool, now_ms: u64, settings: &Settings) -> Token {
        let mut state = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let current = state.latest_of(app).stable.clone();
        if let Some(text) = current
            && let Some(issued) = state.issued.get_mut(&text)
        {
            let left_ms = issued.ends_ms.saturating_sub(now_ms);
            if force {
                issued.killed = true;
            } else if left_ms > settings.token_renewal_seconds.saturating_mul(SECOND) {
                return Token { text, expires_in: left_ms / SECOND };
            }
        }
        let token = state.issue(app, now_ms, settings);
        state.latest_of(app).stable = Some(Arc::clone(&token.text));
        token
    }
}

impl State {
    fn issue(&mut self, app: &Arc<App>, now_ms: u64, settings: &Settings) -> Token {
        if self.issued.len() >= REMEMBERED {
            self.issued.retain(|_, issued| !issued.killed && issued.ends_ms > now_ms);
        }
        let text = random_text();
        let ends_ms = now_ms.saturating_add(settings.token_life_seconds.saturating_mul(SECOND));
        self.issued.insert(Arc::clone(&text), Issued { app: Arc::clone(app), ends_ms, killed: false });
        Token { text, expires_in: settings.token_life_seconds }
    }

    fn latest_of(&mut self, app: &App) -> &mut Latest {
        self.latest.entry(app.id.clone()).or_default()
    }
}

fn random_text() -> Arc<str> {
    let mut rng = rand::rng();
    (0..LENGTH).map(|_| char::from(LETTERS[rng.random_range(0..LETTERS.len())])).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_767_283_200 * SECOND;

    fn code_of(tokens: &Tokens, token: &Token, seconds_on: u64) -> i32 {
        tokens.app(Some(&token.text), NOW + seconds_on * SECOND).map_or_else(|no| no.code, |_| code::OK)
    }

    fn made() -> (Tokens, Arc<App>, Settings) {
        (Tokens::default(), Arc::new(App::new("app", "secret")), Settings::default())
    }

    #[test]
    fn token_has_512_characters_and_lives_two_hours() {
        let (tokens, app, settings) = made();
        let token = tokens.plain(&app, NOW, &settings);
        assert_eq!((token.text.len(), token.expires_in), (512, 7200));
        assert_eq!(code_of(&tokens, &token, 7199), code::OK);
        assert_eq!(code_of(&tokens, &token, 7200), code::TOKEN_EXPIRED);
    }

    #[test]
    fn earlier_token_gets_five_minutes_but_not_beyond_its_lifetime() {
        let (tokens, app, settings) = made();
        let first = tokens.plain(&app, NOW, &settings);
        let second = tokens.plain(&app, NOW, &settings);
        assert_ne!(first, second);
        assert_eq!(code_of(&tokens, &first, 299), code::OK);
        assert_eq!(code_of(&tokens, &first, 300), code::TOKEN_EXPIRED);
        tokens.plain(&app, NOW + 7100 * SECOND, &settings);
        assert_eq!(code_of(&tokens, &second, 7199), code::OK);
        assert_eq!(code_of(&tokens, &second, 7200), code::TOKEN_EXPIRED);
    }

    #[test]
    fn stable_token_stays_the_same_until_its_last_five_minutes() {
        let (tokens, app, settings) = made();
        let first = tokens.stable(&app, false, NOW, &settings);
        let again = tokens.stable(&app, false, NOW + 6899 * SECOND, &settings);
        assert_eq!((&again.text, again.expires_in), (&first.text, 301));
        let renewed = tokens.stable(&app, false, NOW + 6900 * SECOND, &settings);
        assert_ne!(renewed.text, first.text);
        assert_eq!(code_of(&tokens, &first, 7199), code::OK);
        assert_eq!(code_of(&tokens, &first, 7200), code::TOKEN_EXPIRED);
    }

    #[test]
    fn forced_refresh_revokes_the_earlier_stable_token_and_no_other() {
        let (tokens, app, settings) = made();
        let plain = tokens.plain(&app, NOW, &settings);
        let first = tokens.stable(&app, false, NOW, &settings);
        let forced = tokens.stable(&app, true, NOW, &settings);
        assert_eq!(code_of(&tokens, &first, 0), code::TOKEN_UNKNOWN);
        assert_eq!(code_of(&tokens, &forced, 0), code::OK);
        assert_eq!(code_of(&tokens, &plain, 0), code::OK);
        assert_eq!(tokens.stable(&app, false, NOW, &settings).text, forced.text);
    }

    #[test]
    fn absent_token_is_missing_and_any_other_text_is_unknown() {
        let (tokens, ..) = made();
        let code_of = |token| tokens.app(token, NOW).map_or_else(|no| no.code, |_| code::OK);
        assert_eq!(code_of(None), code::TOKEN_MISSING);
        assert_eq!(code_of(Some("")), code::TOKEN_MISSING);
        assert_eq!(code_of(Some("x")), code::TOKEN_UNKNOWN);
    }
}
