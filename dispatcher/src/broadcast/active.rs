//! A broadcast that is active on this replica: the state that its workers share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use server::telemetry::outage::Operation;
use store::broadcast::audience::Choice;
use store::broadcast::pages::PAGE;
use store::broadcast::permits::{Budget, Held, Permits};
use store::broadcast::records::{Move, Moved, Pause, Record, State};
use store::broadcast::{BroadcastId, Part};
use store::keys::Bucket;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::completion::{Signal, pause_of};
use super::limiter::AdaptiveLimit;
use super::quota;
use super::reason::PauseReason;
use super::spec::Spec;
use super::stop_rules::{STREAK, Window};
use crate::context::AppContext;
use crate::send::outcome::{SendError, WechatAnswer, field_of};
use crate::spans::BroadcastTrace;
use crate::stops::ends_with_remainder;
use crate::wechat::errcode::is_clearable;

/// Interval at which a replica reads the state of its active broadcasts. A pause takes effect within this time plus
/// that of the calls in progress.
const STATE_INTERVAL: Duration = Duration::from_millis(300);

/// If a rate is set, about this many pages are taken per second.
const PAGES_A_SECOND: usize = 3000;

/// Interval at which a bucket without a permit checks whether others returned one.
const PERMIT_INTERVAL: Duration = Duration::from_millis(200);

/// Longest wait for open permits while their number does not change, in leases. A permit is open from its grant until
/// its message ends or the permit is returned. Messages of a replica that died take two leases: one until their task is
/// taken over, one until their own lease expires.
const PERMIT_WAIT: u32 = 4;

/// State that the workers of a broadcast share on this replica.
pub struct ActiveBroadcast {
    pub context: Arc<AppContext>,
    pub id: BroadcastId,
    pub spec: Spec,
    pub everyone: bool,
    pub choice: Choice,
    pub limit: Arc<AdaptiveLimit>,
    pub trace: BroadcastTrace,
    failures: Mutex<Window>,
    refusals: Mutex<Window>,
    streak_seen: AtomicBool,
    /// While buckets wait for open permits: the number of open permits, and since when it has not changed.
    waiting: Mutex<Option<(u64, Instant)>>,
    state: watch::Sender<State>,
}

impl ActiveBroadcast {
    /// Creates it from the stored record. A task of its own reads the broadcast's state until the value is dropped.
    pub fn new(context: Arc<AppContext>, record: &Record) -> Result<Arc<Self>, store::Error> {
        let spec = Spec::decode(&record.spec)?;
        let active = Arc::new(Self {
            id: record.id.clone(),
            choice: spec.choice(&context.app),
            everyone: record.everyone,
            limit: Arc::new(AdaptiveLimit::new(context.limits.broadcast_in_flight)),
            failures: Mutex::new(Window::new(context.limits.broadcast_failures)),
            refusals: Mutex::new(Window::new(context.limits.broadcast_refusals)),
            streak_seen: AtomicBool::new(false),
            waiting: Mutex::new(None),
            state: watch::Sender::new(record.state),
            trace: BroadcastTrace::new(&context.app.id, &record.id, spec.ordered_by.as_deref()),
            spec,
            context,
        });
        tokio::spawn(poll_state(Arc::downgrade(&active), active.context.metrics.loops.broadcasts.operation()));
        Ok(active)
    }

    pub fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Maximum page size. It is small if a rate is set, because the app's other messages would wait behind a large
    /// page.
    pub fn largest_page(&self) -> usize {
        let paces = [self.spec.rate, self.context.app.bounds.broadcast_rate];
        let pace = paces.into_iter().filter(|pace| *pace > 0).min();
        pace.map_or(PAGE, |pace| (pace as usize / PAGES_A_SECOND).clamp(1, PAGE))
    }

    /// Returns how many messages of a bucket may be sent now, at most `wanted`, and updates `permits`. Waits for the
    /// rate limit and for open permits. If a limit is reached, pauses the broadcast and returns 0.
    pub async fn permit(&self, bucket: Bucket, permits: &mut Permits, wanted: usize) -> Result<usize, store::Error> {
        // All kinds must be usable: users who only have a stopped kind would count as users without a credential.
        if let Err(error) = self.ready().await {
            match pause_of(&error, self.context.clock.next_day_ms()) {
                Some(pause) => self.pause(pause).await,
                None => {
                    debug!(broadcast = %self.id, %error, "a broadcast waits for an access token");
                    tokio::time::sleep(STATE_INTERVAL).await;
                }
            }
            return Ok(0);
        }
        let left = usize::try_from(permits.left).unwrap_or(usize::MAX);
        let why = self.ask_permit(bucket, permits, wanted.saturating_sub(left)).await?;
        if !matches!(why, Some(Held::Open { .. })) {
            *self.waiting() = None;
        }
        match why {
            Some(Held::State(state)) => self.set_state(state.unwrap_or(State::Cancelled)),
            _ if permits.usable() > 0 => {
                return Ok(usize::try_from(permits.usable()).unwrap_or(usize::MAX).min(wanted));
            }
            None => {}
            Some(Held::Pace(wait)) => tokio::time::sleep(wait.min(STATE_INTERVAL)).await,
            Some(Held::Canary) => self.limit_reached(true).await,
            Some(Held::Quota { unsure: true }) if quota::recount(&self.context, self.spec.message.delivery).await => {}
            Some(Held::Quota { .. }) => self.limit_reached(false).await,
            Some(Held::Open { canary, permits: open }) => {
                if self.waited_too_long(open) {
                    warn!(
                        app = %self.context.app.id, broadcast = %self.id, open,
                        "broadcast pauses with messages of unknown outcome"
                    );
                    self.limit_reached(canary).await;
                    return Ok(0);
                }
                tokio::time::sleep(PERMIT_INTERVAL).await;
                // Messages of this bucket may have ended or been put back since.
                *permits = self.part(bucket).permits(permits.granted, false).await?;
            }
        }
        Ok(0)
    }

    /// Fails if no message may be sent now.
    async fn ready(&self) -> Result<(), SendError> {
        let AppContext { stops, store, .. } = &*self.context;
        let ready = || self.context.ready_with_all(self.choice.wanted.kinds, &self.spec.message.template_id);
        match ready().await {
            // The stop may have been lifted since the stops were last read: that must not pause a broadcast.
            Err(SendError::Stopped { .. }) if stops.refresh(store).await.is_ok() => ready().await,
            result => result,
        }
    }

    async fn ask_permit(
        &self,
        bucket: Bucket,
        permits: &mut Permits,
        wanted: usize,
    ) -> Result<Option<Held>, store::Error> {
        let AppContext { app, clock, .. } = &*self.context;
        let delivery = self.spec.message.delivery;
        let budget = Budget { api: delivery.api(), day: clock.day() };
        let (rate, bounds) = (self.spec.rate, app.bounds(delivery));
        let permit = self.part(bucket).permit(permits, wanted, rate, &bounds, budget).await?;
        permits.granted = permit.granted;
        Ok(permit.why)
    }

    /// The broadcast's part in a bucket.
    pub fn part(&self, bucket: Bucket) -> Part<'_> {
        self.context.store.part(&self.context.app.id, &self.id, bucket)
    }

    /// Returns the unused permits of a bucket for other buckets, and reports how many messages have ended.
    pub async fn give_back(&self, bucket: Bucket, mut permits: Permits) -> Result<Permits, store::Error> {
        loop {
            permits = self.part(bucket).permits(permits.granted, true).await?;
            self.ask_permit(bucket, &mut permits, 0).await?;
            // A replica may have died before the bucket received all granted permits.
            if permits.granted <= permits.received {
                return Ok(permits);
            }
        }
    }

    pub fn waits_for_permits(&self) -> bool {
        self.waiting().is_some()
    }

    fn waited_too_long(&self, open: u64) -> bool {
        let mut waiting = self.waiting();
        match *waiting {
            Some((known, since)) if known == open => since.elapsed() > self.context.limits.terms.duration * PERMIT_WAIT,
            _ => {
                *waiting = Some((open, Instant::now()));
                false
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Option<(u64, Instant)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pauses because the canary or the quota is used up.
    async fn limit_reached(&self, canary: bool) {
        let pause = if canary {
            PauseReason::Canary.into()
        } else {
            Pause { resume_ms: Some(self.context.clock.next_day_ms()), ..PauseReason::Quota.into() }
        };
        self.pause(pause).await;
    }

    /// Applies what the end of one message means for the whole broadcast.
    pub async fn on_signal(&self, signal: Signal, congested: bool) {
        if congested {
            self.limit.congested();
        }
        let (mut failed, mut refused) = (true, None);
        match signal {
            Signal::None => return,
            Signal::OutOfReach => return self.limit.close(),
            Signal::Stop(pause) => return self.pause(pause).await,
            Signal::Delivered => {
                if !congested {
                    self.limit.delivered();
                }
                if self.streak_seen.swap(false, Ordering::Relaxed)
                    && let Err(error) = self.context.store.end_streak(&self.context.app.id, &self.id).await
                {
                    debug!(broadcast = %self.id, %error, "the count of consecutive refusals could not be reset");
                }
                failed = false;
            }
            Signal::Failed => {}
            Signal::UserRefused(answer) => refused = Some(answer),
            Signal::MessageRefused(answer) => {
                self.limit.one_at_a_time();
                self.lengthen_streak(answer).await;
            }
        }
        let note = |window: &Mutex<Window>, counts| window.lock().unwrap_or_else(PoisonError::into_inner).note(counts);
        let too_many_refusals = note(&self.refusals, refused.is_some());
        match refused {
            Some(WechatAnswer { errcode, rid, .. }) if too_many_refusals => {
                self.pause(Pause { errcode, rid, ..PauseReason::UserRefusals.into() }).await;
            }
            // A refusal by the user is neither a failure nor a success of the broadcast.
            Some(_) => {}
            None if note(&self.failures, failed) => self.pause(PauseReason::FailureRatio.into()).await,
            None => {}
        }
    }

    async fn lengthen_streak(&self, answer: WechatAnswer) {
        self.streak_seen.store(true, Ordering::Relaxed);
        match self.context.store.lengthen_streak(&self.context.app.id, &self.id).await {
            Ok(streak) if streak < STREAK => {}
            Ok(_) => {
                let WechatAnswer { errcode, rid, key, .. } = answer;
                let field = key.as_deref().map(field_of).unwrap_or_default();
                self.pause(Pause { errcode, rid, field, ..PauseReason::MessageRefused.into() }).await;
            }
            Err(error) => debug!(broadcast = %self.id, %error, "a refusal could not be counted"),
        }
    }

    /// Pauses the broadcast. This applies on this replica immediately, and on other replicas soon.
    async fn pause(&self, pause: Pause) {
        if *self.state.borrow() != State::Running {
            return;
        }
        let AppContext { app, store, clock, .. } = &*self.context;
        match store.move_broadcast(&app.id, &self.id, &Move::Pause(pause.clone()), clock.now_ms()).await {
            Ok(Moved::To(state)) => {
                let Pause { reason, errcode, rid, field, .. } = pause;
                info!(app = %app.id, broadcast = %self.id, reason, errcode, rid, field, "broadcast paused");
                self.set_state(state);
                if errcode.is_some_and(is_clearable) {
                    self.resume_if_lifted().await;
                }
            }
            Ok(Moved::Wrong(state)) => self.set_state(state),
            Ok(Moved::Missing) => self.set_state(State::Cancelled),
            // The cause persists, so the pause is tried again.
            Err(error) => self.context.metrics.loops.broadcasts.failed(&error),
        }
    }

    /// The quota stop may have been lifted just before this broadcast paused because of it. Then nothing else resumes
    /// the broadcast before midnight.
    async fn resume_if_lifted(&self) {
        let (AppContext { stops, store, .. }, delivery) = (&*self.context, self.spec.message.delivery);
        let is_quota = |(scope, stop): &(_, _)| ends_with_remainder(scope, stop, delivery);
        if stops.refresh(store).await.is_ok() && !stops.in_force().iter().any(is_quota) {
            self.context.resume_waiting(delivery).await;
        }
    }

    pub async fn refresh(&self) -> Result<(), store::Error> {
        let state = self.context.store.broadcast_state(&self.context.app.id, &self.id).await?;
        self.set_state(state.unwrap_or(State::Cancelled));
        Ok(())
    }

    fn set_state(&self, state: State) {
        self.state.send_if_modified(|known| {
            let new = *known != state;
            *known = state;
            new
        });
        if state != State::Running {
            *self.waiting() = None;
            for window in [&self.failures, &self.refusals] {
                window.lock().unwrap_or_else(PoisonError::into_inner).clear();
            }
        }
    }
}

/// Follows state changes that other replicas and callers make.
async fn poll_state(active: Weak<ActiveBroadcast>, mut polling: Operation) {
    loop {
        tokio::time::sleep(STATE_INTERVAL).await;
        let Some(active) = active.upgrade() else { return };
        polling.note(&active.refresh().await);
    }
}
