//! Handles the calls about broadcasts: checks and stores. The scheduler and the workers do the sending.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use domain::{OpenId, RequestId};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use server::rpc::reason::Reason;
use server::rpc::status::Failure;
use server::telemetry::traces;
use store::broadcast::BroadcastId;
use store::broadcast::audience::{Added, Preview, Recipient};
use store::broadcast::records::{Created, Draft, Move, Moved, Record, State};
use store::broadcast::tallies::Tally;
use store::keys::Bucket;
use store::scans::{Scan, SingleFlight};
use store::stock::{DAY, DAY_OFFSET};

use super::spec::Spec;
use crate::context::AppContext;
use crate::wechat::message::fingerprint;

/// Number of buckets written or read concurrently.
const CONCURRENCY: usize = 32;

/// If an app has no more users than this, its stock is counted during the call. For other apps the count is up to one
/// hour old.
const SMALL_APP_USERS: u64 = 3600;

#[derive(Debug, Clone)]
pub struct NewBroadcast {
    pub spec: Spec,
    pub audience: Audience,
    pub exclude: Vec<OpenId>,
    /// Pause after this many messages.
    pub canary: Option<u32>,
    /// Start time in milliseconds since 1970.
    pub not_before_ms: Option<u64>,
    /// Wait for more recipients and for StartBroadcast.
    pub hold: bool,
    /// `None` if the call cannot be repeated.
    pub request_id: Option<RequestId>,
}

#[derive(Debug, Clone)]
pub enum Audience {
    Everyone,
    /// The listed users, each once.
    List(Vec<Recipient>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct BroadcastView {
    pub record: Record,
    pub spec: Spec,
    /// Its progress; `None` in lists.
    pub tally: Option<Tally>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    pub view: Arc<BroadcastView>,
    /// True if the call changed the state, false if the broadcast was in that state already.
    pub moved: bool,
}

/// The expected result of a broadcast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Numbers of users by whether they could be reached.
    pub preview: Preview,
    /// Number of users left out who would otherwise be in the audience.
    pub excluded: u64,
    pub credentials: u64,
    /// How long it would take at the configured rate; `None` without a rate.
    pub duration: Option<Duration>,
}

pub struct Broadcasts {
    pub context: Arc<AppContext>,
    /// Reads in progress, shared by the callers that get or watch the same broadcast.
    pub(super) reads: Arc<SingleFlight<BroadcastId, Result<Arc<BroadcastView>, Failure>>>,
}

impl Broadcasts {
    pub fn new(context: Arc<AppContext>) -> Self {
        Self { context, reads: Arc::default() }
    }

    /// Stores a broadcast and, unless `hold` is set, starts it. A repeated request id returns the first broadcast.
    pub async fn create(&self, new: &NewBroadcast) -> Result<Arc<BroadcastView>, Failure> {
        let AppContext { app, store, clock, .. } = &*self.context;
        let request = new.request_id.as_ref().map(|id| (id, digest(new)));
        let earlier = match request {
            Some((id, digest)) => store.requested_broadcast(&app.id, id, digest).await?,
            None => None,
        };
        // A repeated request returns the stored broadcast, even if it would no longer pass the checks.
        if earlier.is_none() {
            self.check(new).await?;
        }
        // Set after the digest was made: a repeated request has another trace, but must have the same digest.
        let spec = match traces::link() {
            Some(link) => Spec { ordered_by: Some(link), ..new.spec.clone() }.encode(),
            None => new.spec.encode(),
        };
        let draft = Draft {
            id: BroadcastId::new(clock.now_ms()),
            spec,
            everyone: matches!(new.audience, Audience::Everyone),
            not_before_ms: new.not_before_ms,
            canary: new.canary,
        };
        let id = match store.create_broadcast(&app.id, &draft, request).await? {
            Created::New => draft.id,
            Created::Exists(id) => id,
            Created::Reused => {
                let sentence = "request_id was used for another broadcast";
                return Err(Failure::new(Reason::REQUEST_ID_REUSED, sentence)
                    .field("request_id", "was used for another broadcast"));
            }
        };
        // An earlier call with this request id may have failed anywhere between here and the start.
        let record = self.context.broadcast(&id).await?;
        if record.state == State::Pending && !record.scheduled {
            let recipients = match &new.audience {
                Audience::Everyone => &[][..],
                Audience::List(list) => list,
            };
            // If this is too late, a call with the same request id has added the users and started the broadcast since.
            self.add(&id, recipients, &new.exclude).await?;
            if !new.hold {
                let to = Move::Start { everyone: record.everyone };
                store.move_broadcast(&app.id, &id, &to, clock.now_ms()).await?;
            }
        }
        self.get(&id).await
    }

    /// Returns what the broadcast would do now. Stores nothing.
    pub async fn preview(&self, new: &NewBroadcast) -> Result<Estimate, Failure> {
        self.check(new).await?;
        let AppContext { app, store, limits, .. } = &*self.context;
        let (choice, terms) = (new.spec.choice(app), &limits.terms);
        let _turn = store.turn(Scan::Preview, &app.id).await;
        let sum = async |mut sum: Preview, part: Preview| {
            sum.add(part);
            Ok(sum)
        };
        let ask = async |openids: Vec<OpenId>| {
            stream::iter(self.by_bucket(openids, Clone::clone))
                .map(async |(bucket, openids)| store.preview_list(&app.id, bucket, &openids, &choice, terms).await)
                .buffer_unordered(CONCURRENCY)
                .try_fold(Preview::default(), sum)
                .await
        };
        let exclude: HashSet<&OpenId> = new.exclude.iter().collect();
        let (preview, excluded) = match &new.audience {
            Audience::Everyone => {
                let mut preview = stream::iter(store.buckets())
                    .map(|bucket| store.preview_all(&app.id, bucket, &choice, terms))
                    .buffer_unordered(CONCURRENCY)
                    .try_fold(Preview::default(), sum)
                    .await?;
                let out = ask(exclude.into_iter().cloned().collect()).await?;
                preview.reached = preview.reached.saturating_sub(out.reached);
                preview.recently_messaged = preview.recently_messaged.saturating_sub(out.recently_messaged);
                // Users without a usable credential are not in this audience.
                preview.no_credential = 0;
                (preview, out.reached + out.recently_messaged)
            }
            Audience::List(list) => {
                let openids: Vec<OpenId> = list.iter().map(|recipient| recipient.openid.clone()).collect();
                let all = openids.len();
                let wanted: Vec<_> = openids.into_iter().filter(|openid| !exclude.contains(openid)).collect();
                let excluded = (all - wanted.len()) as u64;
                (ask(wanted).await?, excluded)
            }
        };
        let credentials = new.canary.map_or(preview.reached, |canary| preview.reached.min(u64::from(canary)));
        let pace = [new.spec.rate, app.bounds.broadcast_rate].into_iter().filter(|rate| *rate > 0).min();
        let duration = pace.map(|rate| Duration::from_secs_f64(credentials as f64 / f64::from(rate)));
        Ok(Estimate { preview, excluded, credentials, duration })
    }

    /// Rejects a broadcast that would reach no user, or that would start after all credentials have expired.
    async fn check(&self, new: &NewBroadcast) -> Result<(), Failure> {
        let AppContext { app, store, clock, .. } = &*self.context;
        let nobody = match &new.audience {
            Audience::Everyone => {
                let _turn = store.turn(Scan::List, &app.id).await;
                !store.has_users(&app.id).await?
            }
            Audience::List(list) => {
                let exclude: HashSet<&OpenId> = new.exclude.iter().collect();
                !new.hold && list.iter().all(|recipient| exclude.contains(&recipient.openid))
            }
        };
        if nobody {
            return Err(empty_audience());
        }
        let now = (clock.now_ms() / 1000) as i64;
        if let Some(not_before_ms) = new.not_before_ms.filter(|at| *at > clock.now_ms()) {
            let stock = store.stock(&app.id, now, SMALL_APP_USERS).await?;
            let last_day = stock.days.iter().filter(|(_, count)| count.messages > 0).map(|((day, _), _)| *day).max();
            let lives_until = last_day.map_or(0, |day| (day + 1) * DAY - DAY_OFFSET);
            if not_before_ms as i64 / 1000 >= lives_until {
                let sentence = "at not_before, every credential in stock will have expired";
                return Err(Failure::new(Reason::NOTHING_LIVES_THEN, sentence)
                    .field("not_before", "must be before the last credential in stock expires"));
            }
        }
        Ok(())
    }

    /// Returns a broadcast whose list can still be added to, without its tally.
    pub async fn held(&self, id: &BroadcastId) -> Result<BroadcastView, Failure> {
        let record = self.context.broadcast(id).await?;
        if record.state != State::Pending || record.scheduled {
            return Err(wrong_state(record.state, record.scheduled));
        }
        Ok(BroadcastView { spec: Spec::decode(&record.spec)?, record, tally: None })
    }

    /// Adds users to the list of a held broadcast.
    pub async fn add_recipients(
        &self,
        BroadcastView { record, .. }: &BroadcastView,
        recipients: &[Recipient],
        exclude: &[OpenId],
    ) -> Result<Added, Failure> {
        let id = &record.id;
        if record.everyone && !recipients.is_empty() {
            let sentence = "recipients must be empty: this broadcast goes to every user who can be reached";
            return Err(Failure::new(Reason::INVALID_FIELDS, sentence)
                .field("recipients", "must be empty: this broadcast goes to every user who can be reached"));
        }
        let added = self.add(id, recipients, exclude).await?;
        if added.late {
            // It was started in the meantime.
            let record = self.context.broadcast(id).await?;
            return Err(wrong_state(record.state, record.scheduled));
        }
        Ok(added)
    }

    async fn add(&self, id: &BroadcastId, recipients: &[Recipient], exclude: &[OpenId]) -> Result<Added, Failure> {
        let AppContext { app, store, .. } = &*self.context;
        let _turn = store.turn(Scan::Recipients, &app.id).await;
        let mut parts: BTreeMap<Bucket, (Vec<Recipient>, Vec<OpenId>)> = BTreeMap::new();
        for (bucket, recipients) in self.by_bucket(recipients.to_vec(), |recipient| recipient.openid.clone()) {
            parts.entry(bucket).or_default().0 = recipients;
        }
        for (bucket, exclude) in self.by_bucket(exclude.to_vec(), Clone::clone) {
            parts.entry(bucket).or_default().1 = exclude;
        }
        let added = stream::iter(parts)
            .map(async |(bucket, (recipients, exclude))| {
                store.part(&app.id, id, bucket).add_recipients(&recipients, &exclude).await
            })
            .buffer_unordered(CONCURRENCY)
            .try_fold(Added::default(), async |mut sum, part| {
                sum.add(part);
                Ok(sum)
            })
            .await?;
        Ok(added)
    }

    fn by_bucket<T>(&self, items: Vec<T>, openid: impl Fn(&T) -> OpenId) -> BTreeMap<Bucket, Vec<T>> {
        let mut parts: BTreeMap<Bucket, Vec<T>> = BTreeMap::new();
        for item in items {
            parts.entry(self.context.store.bucket_of(&openid(&item))).or_default().push(item);
        }
        parts
    }

    pub async fn start(&self, id: &BroadcastId) -> Result<Transition, Failure> {
        let record = self.context.broadcast(id).await?;
        let AppContext { app, store, .. } = &*self.context;
        let waits = record.state == State::Pending;
        if waits && record.scheduled {
            return Ok(Transition { view: self.get(id).await?, moved: false });
        }
        if waits && !record.everyone && !store.has_recipients(&app.id, id).await? {
            return Err(empty_audience());
        }
        self.transition(id, Move::Start { everyone: record.everyone }).await
    }

    /// Moves a broadcast to another state. If it is in that state already, nothing changes.
    pub async fn transition(&self, id: &BroadcastId, to: Move) -> Result<Transition, Failure> {
        let AppContext { app, store, clock, .. } = &*self.context;
        match store.move_broadcast(&app.id, id, &to, clock.now_ms()).await? {
            Moved::To(_) => Ok(Transition { view: self.get(id).await?, moved: true }),
            Moved::Wrong(state) => {
                let view = self.get(id).await?;
                if is_repeat(&to, &view.record) {
                    return Ok(Transition { view, moved: false });
                }
                Err(wrong_state(state, false))
            }
            Moved::Missing => Err(not_found()),
        }
    }
}

/// Returns true if a broadcast that cannot make a transition is already in its target state. Then the call is a repeat.
fn is_repeat(to: &Move, Record { state, pause, .. }: &Record) -> bool {
    match to {
        // It has run, so it was started. PAUSED does not count: the caller of Start may mean Resume.
        Move::Start { .. } => matches!(state, State::Running | State::Done),
        // The reason must match: a broadcast that the service paused may resume by itself.
        Move::Pause(asked) => pause.as_ref().is_some_and(|pause| pause.reason == asked.reason),
        Move::Resume { .. } => *state == State::Running,
        Move::Cancel => *state == State::Cancelled,
    }
}

/// Digest that distinguishes different requests with the same request id.
fn digest(new: &NewBroadcast) -> [u8; 16] {
    let mut bytes = new.spec.encode();
    let mut add = |part: &[u8]| {
        bytes.extend_from_slice(&(part.len() as u32).to_be_bytes());
        bytes.extend_from_slice(part);
    };
    if let Audience::List(list) = &new.audience {
        add(b"list");
        for recipient in list {
            add(recipient.openid.as_str().as_bytes());
            add(&recipient.data);
        }
    }
    add(b"exclude");
    new.exclude.iter().for_each(|openid| add(openid.as_str().as_bytes()));
    add(format!("{:?} {:?} {}", new.canary, new.not_before_ms, new.hold).as_bytes());
    fingerprint(&bytes)
}

pub(super) fn not_found() -> Failure {
    let sentence = "the app has no broadcast with this id; broadcasts are kept for 7 days after their end";
    Failure::new(Reason::BROADCAST_NOT_FOUND, sentence).field("broadcast_id", "is unknown")
}

fn empty_audience() -> Failure {
    Failure::new(Reason::EMPTY_AUDIENCE, "the audience is empty")
}

fn wrong_state(state: State, scheduled: bool) -> Failure {
    let waits = if scheduled { ", and was started: it waits for not_before" } else { "" };
    let sentence = format!("the broadcast is {}{waits}", state.name());
    Failure::new(Reason::WRONG_STATE, sentence).with("state", state.name())
}
