//! Obtains a token if there is none in memory, or if the one in memory has to be renewed. Only the holder of [`FetchState`]
//! does so.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::RngExt;
use store::tokens::SharedToken;
use tracing::{debug, warn};

use super::backoff::FetchState;
use super::source::{ServerClient, Source};
use super::{Inner, Token};
use crate::clock::system_ms;
use crate::token_source::TokenEndpoint;
use crate::wechat::error::{SourceFault, SourceKey, TokenError, Trouble};
use crate::wechat::reply::FetchedToken;

/// How long another replica may take to share a token.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Pause in milliseconds between two reads while another replica fetches a token. Random, so that replicas do not read
/// at the same moment.
const POLL_MS: std::ops::Range<u64> = 20..100;

/// Upper limit for the last part of a token's lifetime that is not used: a call may still be on its way to WeChat when
/// the token expires.
const UNUSED_LIFE: Duration = Duration::from_secs(10);

impl Inner {
    /// Tries Redis first, then the lock and WeChat. With `old`, only a token that expires later than it is accepted.
    pub(super) async fn obtain(&self, state: &mut FetchState, old: Option<&Token>) -> Result<Arc<Token>, TokenError> {
        let result = match &self.source {
            Source::File(file) => self.read_file(file.clone()).await,
            Source::None => self.without_token(state),
            Source::WeChat(_) | Source::Server(_) => match self.shared_or_fetched(state, old).await {
                Ok(token) => Ok(token),
                Err(Missing::Token(error)) => Err(error),
                Err(Missing::Redis(error)) => self.without_redis(state, &error).await,
            },
        };
        state.note(&self.app, result.as_ref().map(drop));
        result
    }

    /// Returns the cached error of a recent attempt, or a token that another replica has obtained since. `None` if no
    /// error is cached.
    pub(super) async fn cached_error(
        &self,
        state: &mut FetchState,
        old: Option<&Token>,
    ) -> Option<Result<Arc<Token>, TokenError>> {
        let (error, _) = state.cached_error()?;
        if self.source.is_shared()
            && state.may_read_redis()
            && let Ok(Some(shared)) = self.store.token(&self.app).await
            && self.is_usable(&shared, old)
        {
            state.note(&self.app, Ok(()));
            return Some(Ok(self.install(Token::new(shared))));
        }
        Some(Err(error))
    }

    async fn shared_or_fetched(&self, state: &mut FetchState, old: Option<&Token>) -> Result<Arc<Token>, Missing> {
        let start = Instant::now();
        let owner = format!("{:032x}", rand::random::<u128>());
        // A fetch may take two calls. If a lock outlives its owner, it delays the other replicas. If it expires too
        // early, it costs one more call.
        let ttl = self.client.app().timeout * 2 + Duration::from_secs(2);
        loop {
            if let Some(shared) = self.store.token(&self.app).await?
                && self.is_usable(&shared, old)
            {
                state.sharing.succeeded();
                return Ok(self.install(Token::new(shared)));
            }
            if self.store.lock_token(&self.app, &owner, ttl).await? {
                break;
            }
            if start.elapsed() > LONGEST_WAIT {
                return Err(TokenError::Transient(Trouble::Locked).into());
            }
            let pause = rand::rng().random_range(POLL_MS);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        let result = self.under_lock(state, old).await;
        if let Err(error) = self.store.unlock_token(&self.app, &owner).await {
            debug!(app = %self.app, %error, "the access token's lock was not released; it expires by itself");
        }
        result
    }

    async fn under_lock(&self, state: &mut FetchState, old: Option<&Token>) -> Result<Arc<Token>, Missing> {
        // The previous owner may have finished between our read and our lock.
        if let Some(shared) = self.store.token(&self.app).await? {
            if self.is_usable(&shared, old) {
                return Ok(self.install(Token::new(shared)));
            }
            if self.is_rejected(&shared.token) {
                self.store.drop_token(&self.app, &shared).await?;
            }
        }
        let (shared, life) = self.fetch(state).await?;
        // If this fails, the other replicas fetch their own token.
        state.sharing.note(&self.store.put_token(&self.app, &shared, life).await);
        Ok(self.install(Token::new(shared)))
    }

    async fn without_redis(&self, state: &mut FetchState, error: &store::Error) -> Result<Arc<Token>, TokenError> {
        if let Source::WeChat(TokenEndpoint::Plain) = self.source {
            return Err(TokenError::Transient(Trouble::Store));
        }
        state.sharing.failed(error);
        let (shared, _) = self.fetch(state).await?;
        Ok(self.install(Token::new(shared)))
    }

    /// The token of calls that carry none. If WeChat wants one, it is given out again as rarely as rejected tokens are
    /// replaced.
    fn without_token(&self, state: &mut FetchState) -> Result<Arc<Token>, TokenError> {
        if self.no_token.load(Ordering::Relaxed) {
            if !state.replacements.permit(Instant::now()) {
                return Err(SourceKey::None.fails(SourceFault::TokenWanted));
            }
            state.replacements.count();
        }
        Ok(self.install(Token::lasting(String::new())))
    }

    /// Asks WeChat or the token server, unless one token after the other dies.
    async fn fetch(&self, state: &mut FetchState) -> Result<(SharedToken, Duration), TokenError> {
        let no_token = self.no_token.load(Ordering::Relaxed);
        if no_token && !state.replacements.permit(Instant::now()) {
            return Err(TokenError::Transient(Trouble::Dying));
        }
        let (sent, fetched) = match &self.source {
            Source::Server(server) => (system_ms(), self.ask(server, no_token).await?),
            _ => self.fetch_from_wechat(state).await?,
        };
        if no_token {
            state.replacements.count();
        }
        let FetchedToken { token, life } = fetched;
        let life = life - UNUSED_LIFE.min(life / 10);
        Ok((SharedToken { token, ends_ms: sent + life.as_millis() as u64 }, life))
    }

    /// Asks the token server once. After a rejection, the request names the rejected token.
    async fn ask(&self, server: &ServerClient, no_token: bool) -> Result<FetchedToken, TokenError> {
        let rejected = if no_token { self.last_rejected() } else { None };
        let fetched = server.ask(rejected.as_deref()).await.and_then(|fetched| {
            let again = SourceKey::TokenUrl.fails(SourceFault::Rejected);
            if self.is_rejected(&fetched.token) { Err(again) } else { Ok(fetched) }
        });
        if let Some(metrics) = self.client.metrics() {
            metrics.count_token(&fetched);
        }
        fetched
    }

    /// Calls WeChat once. If WeChat returns a rejected token again, calls it a second time with a forced refresh. Also
    /// returns the time of the call.
    async fn fetch_from_wechat(&self, state: &mut FetchState) -> Result<(u64, FetchedToken), TokenError> {
        let sent = system_ms();
        let fetched = self.client.fetch_token(false).await?;
        if !self.is_rejected(&fetched.token) {
            return Ok((sent, fetched));
        }
        let forcible = matches!(self.source, Source::WeChat(TokenEndpoint::Stable));
        if !forcible || !self.may_force(state).await {
            return Err(TokenError::Transient(Trouble::SameAgain));
        }
        warn!(app = %self.app, "WeChat returned a rejected access token again: forcing a new one");
        let sent = system_ms();
        let fetched = self.client.fetch_token(true).await?;
        if self.is_rejected(&fetched.token) {
            return Err(TokenError::Transient(Trouble::SameAgain));
        }
        Ok((sent, fetched))
    }

    /// Returns true if a refresh may be forced now, given the earlier ones of this replica and, as far as Redis tells,
    /// of the others. If true, it counts as done.
    async fn may_force(&self, state: &mut FetchState) -> bool {
        let now = Instant::now();
        let Some(pause) = state.forced.permit(now) else {
            return false;
        };
        if matches!(self.store.permit_forced_token(&self.app, pause).await, Ok(false)) {
            return false;
        }
        state.forced.count(now, pause);
        true
    }

    fn is_usable(&self, shared: &SharedToken, old: Option<&Token>) -> bool {
        let outlives = old.is_none_or(|old| shared.token != old.value() && shared.ends_ms > old.shared.ends_ms);
        outlives && !self.is_rejected(&shared.token)
    }
}

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
enum Missing {
    Token(#[from] TokenError),
    Redis(#[from] store::Error),
}
