//! One broadcast as it runs on this replica: what its buckets share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use shared::outage::Operation;
use shared::store::broadcast::BroadcastId;
use shared::store::broadcast::audience::Choice;
use shared::store::broadcast::pages::PAGE;
use shared::store::broadcast::permits::{Budget, Held, Permits};
use shared::store::broadcast::records::{Move, Moved, Pause, Record, State};
use shared::store::keys::Bucket;
use shared::store::{self};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::Ground;
use super::ending::{Sign, reason, stopped, token_refused};
use super::flow::Flow;
use super::quota;
use super::rules::{STREAK, Window};
use super::spec::Spec;
use crate::outcome::{SendError, Verdict};
use crate::spans::Run;

/// How often a replica looks whether a broadcast it works on is still wanted. A pause takes effect within this time and
/// that of the calls under way.
const LOOK: Duration = Duration::from_millis(300);

/// At a pace, about so many pages are taken a second.
const PAGES_A_SECOND: usize = 3000;

/// How often a bucket without a permit looks whether one came back that others had.
const PERMIT_LOOK: Duration = Duration::from_millis(200);

/// The longest wait for open permits while their number stays the same, in leases. Messages of a replica that died take two:
/// one until their task is claimed, one until their lease ends.
const PERMIT_WAIT: u32 = 4;

/// What the buckets of a broadcast share on this replica.
pub struct Running {
    /// What the app's broadcasts stand on.
    pub ground: Arc<Ground>,
    /// Which broadcast.
    pub id: BroadcastId,
    /// What it sends.
    pub spec: Spec,
    /// Whether its audience is every user.
    pub everyone: bool,
    /// Whom it sends to.
    pub choice: Choice,
    /// How much of it is in flight here.
    pub flow: Arc<Flow>,
    /// What is traced of it.
    pub trace: Run,
    window: Mutex<Window>,
    streak_seen: AtomicBool,
    /// While buckets wait for open permits: how many are open, and since when there are so many.
    waiting: Mutex<Option<(u64, Instant)>>,
    state: watch::Sender<State>,
}

impl Running {
    /// From its record; looks after its state for as long as somebody holds it.
    pub fn new(ground: Arc<Ground>, record: &Record) -> Result<Arc<Self>, store::Error> {
        let spec = Spec::decode(&record.spec)?;
        let running = Arc::new(Self {
            id: record.id.clone(),
            choice: ground.choice(&spec),
            everyone: record.everyone,
            flow: Arc::new(Flow::new(ground.limits.in_flight)),
            window: Mutex::new(Window::new(ground.limits.failure_ratio)),
            streak_seen: AtomicBool::new(false),
            waiting: Mutex::new(None),
            state: watch::Sender::new(record.state),
            trace: Run::new(&ground.app.id, &record.id, spec.ordered_by.as_deref()),
            spec,
            ground,
        });
        tokio::spawn(look(Arc::downgrade(&running), running.ground.metrics.work.operation()));
        Ok(running)
    }

    /// Where it stands, and how that changes.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// The most users that are taken at once. At a pace these are few: what else the app sends would wait behind them.
    pub fn largest_page(&self) -> usize {
        let paces = [self.spec.rate, self.ground.app.bounds.broadcast_rate];
        let pace = paces.into_iter().filter(|pace| *pace > 0).min();
        pace.map_or(PAGE, |pace| (pace as usize / PAGES_A_SECOND).clamp(1, PAGE))
    }

    /// How many messages of a bucket may be sent now, at most `wanted`; updates its `permits`. Waits for the pace and for open
    /// permits, and pauses the broadcast when its limit is reached; then it returns 0.
    pub async fn permit(&self, bucket: Bucket, permits: &mut Permits, wanted: usize) -> Result<usize, store::Error> {
        // All: whoever has only what is barred would count as without a credential.
        match self.ground.sender.ready_with_all(self.choice.wanted.kinds).await {
            Ok(()) => {}
            Err(SendError::Stopped { verdict, .. }) => {
                self.pause(stopped(&verdict, self.ground.clock.next_day_ms())).await;
                return Ok(0);
            }
            Err(error) => {
                self.wait_for_token(error).await;
                return Ok(0);
            }
        }
        let left = usize::try_from(permits.left).unwrap_or(usize::MAX);
        let why = self.ask_permit(bucket, permits, wanted.saturating_sub(left)).await?;
        if !matches!(why, Some(Held::Open { .. })) {
            *self.waiting() = None;
        }
        match why {
            Some(Held::State(state)) => self.enter(state.unwrap_or(State::Cancelled)),
            _ if permits.usable() > 0 => {
                return Ok(usize::try_from(permits.usable()).unwrap_or(usize::MAX).min(wanted));
            }
            None => {}
            Some(Held::Pace(wait)) => tokio::time::sleep(wait.min(LOOK)).await,
            Some(Held::Canary) => self.limit_reached(true).await,
            Some(Held::Quota { unsure: true }) if quota::recount(&self.ground, self.spec.message.delivery).await => {}
            Some(Held::Quota { .. }) => self.limit_reached(false).await,
            Some(Held::Open { canary, permits: open }) => {
                if self.waited_too_long(open) {
                    warn!(app = %self.ground.app.id, broadcast = %self.id, open, "broadcast pauses with messages in doubt");
                    self.limit_reached(canary).await;
                    return Ok(0);
                }
                tokio::time::sleep(PERMIT_LOOK).await;
                // Messages of this bucket may have ended since, or may have been put back.
                *permits = self.bucket_permits(bucket, permits.granted, false).await?;
            }
        }
        Ok(0)
    }

    async fn ask_permit(
        &self,
        bucket: Bucket,
        permits: &mut Permits,
        wanted: usize,
    ) -> Result<Option<Held>, store::Error> {
        let Ground { app, store, clock, .. } = &*self.ground;
        let delivery = self.spec.message.delivery;
        let budget = Budget { api: delivery.api(), day: clock.day() };
        let (rate, bounds) = (self.spec.rate, app.bounds(delivery));
        let permit = store.permit(&app.id, &self.id, bucket, permits, wanted, rate, &bounds, budget).await?;
        permits.granted = permit.granted;
        Ok(permit.why)
    }

    async fn bucket_permits(&self, bucket: Bucket, granted: u64, give_back: bool) -> Result<Permits, store::Error> {
        self.ground.store.bucket_permits(&self.ground.app.id, &self.id, bucket, granted, give_back).await
    }

    /// Gives back the permits that are left in a bucket, for other buckets, and reports how many messages have ended.
    pub async fn give_back(&self, bucket: Bucket, mut permits: Permits) -> Result<Permits, store::Error> {
        loop {
            permits = self.bucket_permits(bucket, permits.granted, true).await?;
            self.ask_permit(bucket, &mut permits, 0).await?;
            // A replica may have died before the bucket received all that was granted.
            if permits.granted <= permits.received {
                return Ok(permits);
            }
        }
    }

    /// Whether buckets of this replica wait for open permits.
    pub fn waits_for_permits(&self) -> bool {
        self.waiting().is_some()
    }

    fn waited_too_long(&self, open: u64) -> bool {
        let mut waiting = self.waiting();
        match *waiting {
            Some((known, since)) if known == open => since.elapsed() > self.ground.terms.duration * PERMIT_WAIT,
            _ => {
                *waiting = Some((open, Instant::now()));
                false
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Option<(u64, Instant)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pauses because all that the canary or the quota permits was sent.
    async fn limit_reached(&self, canary: bool) {
        let (reason, resume_ms) =
            if canary { (reason::CANARY, None) } else { (reason::QUOTA, Some(self.ground.clock.next_day_ms())) };
        self.pause(Pause { reason: reason.into(), resume_ms, ..Pause::default() }).await;
    }

    /// Draws the conclusions from one message for all of the broadcast.
    pub async fn heed(&self, sign: Sign, congested: bool) {
        if congested {
            self.flow.congested();
        }
        let failed = match sign {
            Sign::None => return,
            Sign::OutOfReach => return self.flow.close(),
            Sign::Stop(pause) => return self.pause(pause).await,
            Sign::Delivered => {
                if !congested {
                    self.flow.delivered();
                }
                if self.streak_seen.swap(false, Ordering::Relaxed)
                    && let Err(error) = self.ground.store.end_streak(&self.ground.app.id, &self.id).await
                {
                    debug!(broadcast = %self.id, %error, "the row of refusals is not ended");
                }
                false
            }
            Sign::Failed => true,
            Sign::MessageRefused(verdict) => {
                self.flow.one_at_a_time();
                self.lengthen_streak(verdict).await;
                true
            }
        };
        let too_many = self.window.lock().unwrap_or_else(PoisonError::into_inner).note(failed);
        if too_many {
            self.pause(Pause { reason: reason::FAILURE_RATIO.into(), ..Pause::default() }).await;
        }
    }

    async fn lengthen_streak(&self, verdict: Verdict) {
        self.streak_seen.store(true, Ordering::Relaxed);
        match self.ground.store.lengthen_streak(&self.ground.app.id, &self.id).await {
            Ok(streak) if streak < STREAK => {}
            Ok(_) => {
                let Verdict { errcode, rid, .. } = verdict;
                self.pause(Pause { reason: reason::MESSAGE_REFUSED.into(), errcode, rid, resume_ms: None }).await;
            }
            Err(error) => debug!(broadcast = %self.id, %error, "a refusal is not counted"),
        }
    }

    /// Pauses the broadcast, here at once and elsewhere soon.
    async fn pause(&self, pause: Pause) {
        if *self.state.borrow() != State::Running {
            return;
        }
        let Ground { app, store, clock, .. } = &*self.ground;
        match store.move_broadcast(&app.id, &self.id, &Move::Pause(pause.clone()), clock.now_ms()).await {
            Ok(Moved::To(state)) => {
                let Pause { reason, errcode, rid, .. } = pause;
                info!(app = %app.id, broadcast = %self.id, reason, errcode, rid, "broadcast paused");
                self.enter(state);
            }
            Ok(Moved::Wrong(state)) => self.enter(state),
            Ok(Moved::Missing) => self.enter(State::Cancelled),
            // What led to it will lead to it again.
            Err(error) => self.ground.metrics.work.failed(&error),
        }
    }

    async fn wait_for_token(&self, error: SendError) {
        if let SendError::Token(crate::wechat::token::TokenError::Refused { errcode, rid, .. }) = error {
            return self.pause(token_refused(errcode, rid)).await;
        }
        debug!(broadcast = %self.id, %error, "a broadcast waits for an access token");
        tokio::time::sleep(LOOK).await;
    }

    /// Looks where it stands by now.
    pub async fn refresh(&self) -> Result<(), store::Error> {
        let state = self.ground.store.broadcast_state(&self.ground.app.id, &self.id).await?;
        self.enter(state.unwrap_or(State::Cancelled));
        Ok(())
    }

    fn enter(&self, state: State) {
        self.state.send_if_modified(|known| {
            let new = *known != state;
            *known = state;
            new
        });
        if state != State::Running {
            *self.waiting() = None;
            self.window.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }
}

/// Follows what other replicas and callers make of the broadcast.
async fn look(running: Weak<Running>, mut looking: Operation) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(running) = running.upgrade() else { return };
        looking.note(&running.refresh().await);
    }
}
