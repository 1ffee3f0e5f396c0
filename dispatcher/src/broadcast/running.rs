//! One broadcast as it runs on this replica: what its buckets share.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use shared::store::broadcast::BroadcastId;
use shared::store::broadcast::audience::Choice;
use shared::store::broadcast::pages::PAGE;
use shared::store::broadcast::permits::{Budget, Held, Permit};
use shared::store::broadcast::records::{Move, Moved, Pause, Record, State};
use shared::store::{self};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::Ground;
use super::ending::{Sign, reason, stopped, token_refused};
use super::flow::Flow;
use super::rules::{STREAK, Window};
use super::spec::Spec;
use crate::outcome::{SendError, Verdict};

/// How often a replica looks whether a broadcast it works on is still wanted. A pause takes effect within this time and
/// that of the calls under way.
const LOOK: Duration = Duration::from_millis(300);

/// At a pace, about so many pages are taken a second.
const PAGES_A_SECOND: usize = 3000;

/// How long others have to give back what they did not use of a canary or of the quota, before it counts as reached.
const LAST_WAIT: (u32, Duration) = (5, Duration::from_millis(200));

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
    window: Mutex<Window>,
    streak_seen: AtomicBool,
    /// Permitted, and not sent.
    unused: AtomicUsize,
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
            unused: AtomicUsize::new(0),
            state: watch::Sender::new(record.state),
            spec,
            ground,
        });
        tokio::spawn(look(Arc::downgrade(&running)));
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

    /// Permits up to `wanted` messages; waits for the pace, and pauses the broadcast when something else holds it. None
    /// means that nothing may be sent for now.
    pub async fn permit(&self, wanted: usize) -> Result<usize, store::Error> {
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
        let mut asked = 0;
        loop {
            let Permit { messages, why } = self.ask_permit(wanted).await?;
            let reached = match why {
                _ if messages > 0 => return Ok(messages),
                None => return Ok(0),
                Some(Held::Pace(wait)) => {
                    tokio::time::sleep(wait.min(LOOK)).await;
                    return Ok(0);
                }
                Some(Held::State(state)) => {
                    self.enter(state.unwrap_or(State::Cancelled));
                    return Ok(0);
                }
                Some(Held::Quota) => {
                    let resume_ms = Some(self.ground.clock.next_day_ms());
                    Pause { reason: reason::QUOTA.into(), resume_ms, ..Pause::default() }
                }
                Some(Held::Canary) => Pause { reason: reason::CANARY.into(), ..Pause::default() },
            };
            asked += 1;
            if asked > LAST_WAIT.0 {
                // At once: it may be paused and resumed by others in any moment that is waited here.
                self.pause(reached).await;
                return Ok(0);
            }
            tokio::time::sleep(LAST_WAIT.1).await;
        }
    }

    async fn ask_permit(&self, wanted: usize) -> Result<Permit, store::Error> {
        let Ground { app, store, clock, .. } = &*self.ground;
        let unused = self.unused.swap(0, Ordering::Relaxed);
        let delivery = self.spec.message.delivery;
        let budget = Budget { api: delivery.api(), day: clock.day() };
        store.permit(&app.id, &self.id, wanted, unused, self.spec.rate, &app.bounds(delivery), budget).await
    }

    /// Notes messages that were permitted and will not be sent.
    pub fn unused(&self, messages: usize) {
        self.unused.fetch_add(messages, Ordering::Relaxed);
    }

    /// Gives back what was not used, for others to use.
    pub async fn give_back(&self) {
        if self.unused.load(Ordering::Relaxed) > 0
            && let Err(error) = self.ask_permit(0).await
        {
            debug!(broadcast = %self.id, %error, "permits are not given back");
        }
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
            Err(error) => warn!(app = %app.id, broadcast = %self.id, %error, "a broadcast could not be paused"),
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
            self.window.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }
}

/// Follows what other replicas and callers make of the broadcast.
async fn look(running: Weak<Running>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(running) = running.upgrade() else { return };
        if let Err(error) = running.refresh().await {
            debug!(broadcast = %running.id, %error, "a broadcast waits for Redis");
        }
    }
}
