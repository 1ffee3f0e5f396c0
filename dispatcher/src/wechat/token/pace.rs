//! How often WeChat is asked for a token when things go wrong, and what the operator hears of it.

use std::time::{Duration, Instant};

use rand::RngExt;
use shared::credential::AppId;
use shared::outage::Operation;
use tracing::{debug, error, warn};

use super::refusals::{self, Weight};
use super::{TokenError, Trouble};
use crate::outages::WechatOutages;
use crate::wechat::client::Cause;

/// The first pause after an error that may pass by itself.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The first pause after an error that somebody has to mend.
const FIRST_REFUSED_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_REFUSED_PAUSE: Duration = Duration::from_secs(300);

/// How often Redis is looked into during such a pause.
pub(super) const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// WeChat permits a forced refresh every 30 seconds and 20 times a day: the pause doubles until a day has no more.
const FIRST_FORCED_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_FORCED_PAUSE: Duration = Duration::from_secs(2 * 3600);

/// Tokens that die before their time are replaced at once this often, and then once in [`DEATH_PAUSE`]: below the 2000
/// calls a day that `token` permits.
const DEATHS: u32 = 10;
const DEATH_PAUSE: Duration = Duration::from_secs(60);

/// The longest life of a token that is believed, whatever a clock says.
pub(super) const MAX_LIFE: Duration = Duration::from_secs(24 * 3600);

/// What the one task that looks for a token knows of earlier attempts.
pub(super) struct Work {
    hold: Option<Hold>,
    pub(super) forced: Forced,
    pub(super) deaths: Deaths,
    obtaining: Operation,
    pub(super) sharing: Operation,
}

/// An error that is answered without a new attempt for a while.
struct Hold {
    error: TokenError,
    until: Instant,
    pause: Duration,
    looked: Instant,
}

impl Work {
    pub(super) fn new(outages: &WechatOutages) -> Self {
        let (obtaining, sharing) = (outages.tokens.operation(), outages.sharing.operation());
        Self { hold: None, forced: Forced::default(), deaths: Deaths::default(), obtaining, sharing }
    }

    /// The last error while it stands, and for how much longer.
    pub(super) fn standing(&self) -> Option<(TokenError, Duration)> {
        let hold = self.hold.as_ref()?;
        let left = hold.until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        Some((hold.error.clone(), left))
    }

    /// Whether Redis may be looked into while the error stands: another replica may not be refused what this one is,
    /// since WeChat lists addresses. If so, it counts as done.
    pub(super) fn may_look(&mut self) -> bool {
        let Some(hold) = self.hold.as_mut() else { return true };
        let may = matches!(hold.error, TokenError::Refused { .. }) && hold.looked.elapsed() >= LOOK_PAUSE;
        if may {
            hold.looked = Instant::now();
        }
        may
    }

    /// Takes note of an attempt, and tells the operator what is new.
    pub(super) fn note(&mut self, app: &AppId, result: Result<(), &TokenError>) {
        let Err(error) = result else {
            self.hold = None;
            self.obtaining.succeeded();
            return;
        };
        // What is to be done about it is logged below.
        self.obtaining.fails();
        let before = self.hold.take();
        let refused = matches!(error, TokenError::Refused { .. });
        let (first, longest) =
            if refused { (FIRST_REFUSED_PAUSE, LONGEST_REFUSED_PAUSE) } else { (FIRST_PAUSE, LONGEST_PAUSE) };
        let alike = before.filter(|before| matches!(before.error, TokenError::Refused { .. }) == refused);
        tell(app, error, alike.as_ref().map(|before| &before.error));
        let pause = alike.map_or(first, |before| (before.pause * 2).min(longest));
        // Spread, so that the replicas do not come back in step.
        let until = Instant::now() + pause.mul_f64(rand::rng().random_range(0.8..1.2));
        self.hold = Some(Hold { error: error.clone(), until, pause, looked: Instant::now() });
    }
}

/// Once when an error appears, at the level of what is to be done about it; its repetitions only for debugging.
fn tell(app: &AppId, error: &TokenError, before: Option<&TokenError>) {
    match (error, before) {
        (TokenError::Refused { errcode, .. }, Some(TokenError::Refused { errcode: known, .. })) if errcode == known => {
            debug!(%app, errcode, "WeChat still refuses an access token");
        }
        (TokenError::Refused { errcode, rid, sentence }, _) => {
            error!(%app, errcode, rid, todo = sentence, "WeChat refuses an access token: nothing is sent for this app");
        }
        (TokenError::Transient(Trouble::WeChat(Cause::Refused(errcode))), before)
            if refusals::row_of(*errcode).weight == Weight::Unknown && before != Some(error) =>
        {
            error!(%app, errcode, "WeChat refuses an access token with a code that is not known here");
        }
        (TokenError::Transient(trouble), Some(TokenError::Transient(_))) => {
            debug!(%app, %trouble, "still no access token");
        }
        (TokenError::Transient(trouble), _) => warn!(%app, %trouble, "no access token for now"),
    }
}

/// When a refresh may be forced.
#[derive(Default)]
pub(super) struct Forced {
    last: Option<(Instant, Duration)>,
}

impl Forced {
    /// Whether one may be forced at `now`, and if so, how long none may be forced after it.
    pub(super) fn permit(&self, now: Instant) -> Option<Duration> {
        match self.last {
            Some((last, pause)) if now < last + pause => None,
            Some((last, pause)) if now < last + pause * 3 => Some((pause * 2).min(LONGEST_FORCED_PAUSE)),
            _ => Some(FIRST_FORCED_PAUSE),
        }
    }

    /// One is forced.
    pub(super) fn count(&mut self, now: Instant, pause: Duration) {
        self.last = Some((now, pause));
    }
}

/// When a token that died before its time may be replaced.
pub(super) struct Deaths {
    left: u32,
    since: Option<Instant>,
}

impl Default for Deaths {
    fn default() -> Self {
        Self { left: DEATHS, since: None }
    }
}

impl Deaths {
    /// Whether one may be replaced at `now`.
    pub(super) fn permit(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let pauses = (now.saturating_duration_since(since).as_secs() / DEATH_PAUSE.as_secs()) as u32;
        self.since = Some(since + DEATH_PAUSE * pauses);
        self.left = self.left.saturating_add(pauses).min(DEATHS);
        self.left > 0
    }

    /// One was replaced.
    pub(super) fn count(&mut self) {
        self.left = self.left.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use shared::outage::Outages;

    use super::*;

    fn app() -> AppId {
        AppId::parse("wx1").unwrap()
    }

    #[test]
    fn errors_that_somebody_has_to_mend_stand_for_minutes_the_others_for_seconds() {
        let refused = TokenError::Refused { errcode: 40164, rid: String::new(), sentence: "" };
        let trouble = TokenError::Transient(Trouble::WeChat(Cause::Timeout));
        for (error, first, longest) in
            [(refused, FIRST_REFUSED_PAUSE, LONGEST_REFUSED_PAUSE), (trouble, FIRST_PAUSE, LONGEST_PAUSE)]
        {
            let mut work = Work::new(&WechatOutages::new(&app(), &Outages::default()));
            work.note(&app(), Err(&error));
            let (standing, left) = work.standing().unwrap();
            assert!(standing == error && left > first / 2 && left < first * 2, "{left:?}");
            for _ in 0..20 {
                work.note(&app(), Err(&error));
            }
            let (_, left) = work.standing().unwrap();
            assert!(left > longest / 2 && left < longest * 2, "{left:?}");
            work.note(&app(), Ok(()));
            assert!(work.standing().is_none());
        }
    }

    #[test]
    fn a_refresh_is_forced_at_most_every_30_seconds_and_20_times_a_day() {
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
    fn tokens_that_keep_dying_are_replaced_fewer_times_than_a_day_permits() {
        let (mut deaths, start) = (Deaths::default(), Instant::now());
        let replaced = (0..24 * 3600)
            .filter(|second| {
                let permit = deaths.permit(start + Duration::from_secs(*second));
                deaths.count();
                permit
            })
            .count();
        assert!((1400..1500).contains(&replaced), "{replaced}");
        assert!(deaths.permit(start + Duration::from_secs(25 * 3600)));
    }
}
