//! How often WeChat is called for a token after errors, and what is logged about it.

use std::time::{Duration, Instant};

use domain::AppId;
use rand::RngExt;
use server::telemetry::outage::Operation;
use tracing::{debug, error, warn};

use crate::outages::WechatOutages;
use crate::wechat::error::{TokenError, Trouble};

pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// First pause after an error that an operator has to fix.
const FIRST_REFUSED_PAUSE: Duration = Duration::from_secs(120);
const LONGEST_REFUSED_PAUSE: Duration = Duration::from_secs(300);

/// First pause after an error of a token server or a token file.
const FIRST_SOURCE_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_SOURCE_PAUSE: Duration = Duration::from_secs(30);

/// Interval at which Redis is read during such a pause.
pub(super) const REDIS_INTERVAL: Duration = Duration::from_secs(1);

/// WeChat permits a forced refresh every 30 seconds and 20 times a day. The pause doubles so that the daily number is
/// not exceeded.
const FIRST_FORCED_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_FORCED_PAUSE: Duration = Duration::from_secs(2 * 3600);

/// This many rejected tokens are replaced without a pause, and after that one in each [`REPLACEMENT_INTERVAL`]. That is
/// below the 2000 calls a day that `token` permits.
const MAX_REPLACEMENTS: u32 = 10;
const REPLACEMENT_INTERVAL: Duration = Duration::from_secs(60);

/// Upper limit for the lifetime of a token, even if a clock is wrong.
pub(super) const MAX_LIFE: Duration = Duration::from_secs(24 * 3600);

/// Earlier attempts to obtain a token, as known to the task that obtains it.
pub(super) struct FetchState {
    cached: Option<CachedError>,
    pub(super) forced: Forced,
    pub(super) replacements: ReplacementBudget,
    obtaining: Operation,
    pub(super) sharing: Operation,
}

/// An error that is returned for some time without a new attempt.
struct CachedError {
    error: TokenError,
    until: Instant,
    pause: Duration,
    redis_read: Instant,
}

impl FetchState {
    pub(super) fn new(outages: &WechatOutages) -> Self {
        let (obtaining, sharing) = (outages.tokens.operation(), outages.sharing.operation());
        Self { cached: None, forced: Forced::default(), replacements: ReplacementBudget::default(), obtaining, sharing }
    }

    /// The last error and how much longer it is cached; `None` if the time is over.
    pub(super) fn cached_error(&self) -> Option<(TokenError, Duration)> {
        let cached = self.cached.as_ref()?;
        let left = cached.until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        Some((cached.error.clone(), left))
    }

    /// Returns true if Redis may be read while the error is cached. WeChat has IP lists, so another replica may get a
    /// token when this one is refused; the way to a token server may differ too. If true, the read counts as done.
    pub(super) fn may_read_redis(&mut self) -> bool {
        let Some(cached) = self.cached.as_mut() else { return true };
        let may = Class::of(&cached.error) != Class::Other && cached.redis_read.elapsed() >= REDIS_INTERVAL;
        if may {
            cached.redis_read = Instant::now();
        }
        may
    }

    pub(super) fn note(&mut self, app: &AppId, result: Result<(), &TokenError>) {
        let Err(error) = result else {
            self.cached = None;
            self.obtaining.succeeded();
            return;
        };
        // `log_error` logs the error and what to do about it.
        self.obtaining.fails();
        let before = self.cached.take();
        let class = Class::of(error);
        let (first, longest) = match class {
            Class::Refused => (FIRST_REFUSED_PAUSE, LONGEST_REFUSED_PAUSE),
            Class::Source => (FIRST_SOURCE_PAUSE, LONGEST_SOURCE_PAUSE),
            Class::Other => (FIRST_PAUSE, LONGEST_PAUSE),
        };
        let same_class = before.filter(|before| Class::of(&before.error) == class);
        log_error(app, error, same_class.as_ref().map(|before| &before.error));
        let pause = same_class.map_or(first, |before| (before.pause * 2).min(longest));
        // Jitter, so that the replicas do not retry at the same moment.
        let until = Instant::now() + pause.mul_f64(rand::rng().random_range(0.8..1.2));
        self.cached = Some(CachedError { error: error.clone(), until, pause, redis_read: Instant::now() });
    }
}

/// Errors with the same pauses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Refused,
    Source,
    Other,
}

impl Class {
    fn of(error: &TokenError) -> Self {
        match error {
            TokenError::Refused { .. } => Self::Refused,
            TokenError::Transient(Trouble::Source(..)) => Self::Source,
            TokenError::Transient(_) => Self::Other,
        }
    }
}

/// Logs an error when it appears. The level depends on the action that an operator has to take. Repetitions are logged
/// at debug level only.
fn log_error(app: &AppId, error: &TokenError, before: Option<&TokenError>) {
    match (error, before) {
        (TokenError::Refused { errcode, .. }, Some(TokenError::Refused { errcode: known, .. })) if errcode == known => {
            debug!(%app, errcode, "WeChat still refuses an access token");
        }
        (TokenError::Refused { errcode, rid, sentence, address }, _) => {
            let address = address.map(tracing::field::display);
            let todo = sentence;
            error!(%app, errcode, rid, address, todo, "WeChat refuses an access token: nothing is sent for this app");
        }
        (TokenError::Transient(Trouble::Source(source, fault)), before) if before != Some(error) => {
            error!(%app, %source, %fault, "the source of the app's access tokens gives no usable token");
        }
        (TokenError::Transient(trouble), Some(TokenError::Transient(_))) => {
            debug!(%app, %trouble, "there is still no access token");
        }
        (TokenError::Transient(trouble), _) => warn!(%app, %trouble, "no access token for now"),
    }
}

#[derive(Default)]
pub(super) struct Forced {
    last: Option<(Instant, Duration)>,
}

impl Forced {
    /// If a refresh may be forced at `now`, returns how long none may be forced after it.
    pub(super) fn permit(&self, now: Instant) -> Option<Duration> {
        match self.last {
            Some((last, pause)) if now < last + pause => None,
            Some((last, pause)) if now < last + pause * 3 => Some((pause * 2).min(LONGEST_FORCED_PAUSE)),
            _ => Some(FIRST_FORCED_PAUSE),
        }
    }

    pub(super) fn count(&mut self, now: Instant, pause: Duration) {
        self.last = Some((now, pause));
    }
}

/// When a token that was rejected before its expiry may be replaced.
pub(super) struct ReplacementBudget {
    left: u32,
    since: Option<Instant>,
}

impl Default for ReplacementBudget {
    fn default() -> Self {
        Self { left: MAX_REPLACEMENTS, since: None }
    }
}

impl ReplacementBudget {
    /// Returns true if a token may be replaced at `now`.
    pub(super) fn permit(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let pauses = (now.saturating_duration_since(since).as_secs() / REPLACEMENT_INTERVAL.as_secs()) as u32;
        self.since = Some(since + REPLACEMENT_INTERVAL * pauses);
        self.left = self.left.saturating_add(pauses).min(MAX_REPLACEMENTS);
        self.left > 0
    }

    pub(super) fn count(&mut self) {
        self.left = self.left.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use server::telemetry::outage::Outages;

    use super::*;
    use crate::wechat::error::{Cause, Trouble};

    fn app() -> AppId {
        AppId::parse("wx1").unwrap()
    }

    #[test]
    fn refusals_are_cached_for_minutes_other_errors_for_seconds() {
        let refused = TokenError::Refused { errcode: 40164, rid: String::new(), sentence: "", address: None };
        let trouble = TokenError::Transient(Trouble::WeChat(Cause::Timeout));
        let fault = crate::wechat::error::SourceKey::TokenUrl.fails(crate::wechat::error::SourceFault::NoToken);
        for (error, first, longest) in [
            (refused, FIRST_REFUSED_PAUSE, LONGEST_REFUSED_PAUSE),
            (fault, FIRST_SOURCE_PAUSE, LONGEST_SOURCE_PAUSE),
            (trouble, FIRST_PAUSE, LONGEST_PAUSE),
        ] {
            let mut state = FetchState::new(&WechatOutages::new(&app(), &Outages::default()));
            state.note(&app(), Err(&error));
            let (view, left) = state.cached_error().unwrap();
            assert!(view == error && left > first / 2 && left < first * 2, "{left:?}");
            for _ in 0..20 {
                state.note(&app(), Err(&error));
            }
            let (_, left) = state.cached_error().unwrap();
            assert!(left > longest / 2 && left < longest * 2, "{left:?}");
            state.note(&app(), Ok(()));
            assert!(state.cached_error().is_none());
        }
    }

    #[test]
    fn refresh_is_forced_at_most_every_30_s_and_20_times_a_day() {
        let (mut forced, start) = (Forced::default(), Instant::now());
        let mut force = |second| {
            let now = start + Duration::from_secs(second);
            forced.permit(now).map(|pause| forced.count(now, pause)).is_some()
        };
        let times: Vec<_> = (0..24 * 3600).filter(|second| force(*second)).collect();
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= 30), "{times:?}");
        assert!(times[1] == 30 && times.len() <= 20, "{times:?}");
        let quiet = 4 * 24 * 3600;
        assert!(force(quiet) && !force(quiet + 29) && force(quiet + 30));
    }

    #[test]
    fn rejected_tokens_are_replaced_within_the_daily_limit() {
        let (mut replacements, start) = (ReplacementBudget::default(), Instant::now());
        let replaced = (0..24 * 3600)
            .filter(|second| {
                let permit = replacements.permit(start + Duration::from_secs(*second));
                replacements.count();
                permit
            })
            .count();
        assert!((1400..1500).contains(&replaced), "{replaced}");
        assert!(replacements.permit(start + Duration::from_secs(25 * 3600)));
    }
}
