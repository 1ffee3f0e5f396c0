//! Where calls about broadcasts are answered: checks, stores, tells. The sending is others' work.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use shared::credential::{OpenId, RequestId};
use shared::status::Failure;
use shared::store::broadcast::BroadcastId;
use shared::store::broadcast::audience::{Added, Preview, Recipient};
use shared::store::broadcast::records::{Created, Draft, Move, Moved, Record, State};
use shared::store::broadcast::tallies::Tally;
use shared::store::keys::Bucket;
use shared::store::stock::{DAY, DAY_OFFSET};
use shared::store::turns::{SingleFlight, Work};
use shared::traces;
use tonic::Code;

use super::Ground;
use super::spec::Spec;
use crate::wechat::message::fingerprint;

/// How many buckets are written or asked at once.
const AT_ONCE: usize = 32;

/// The stock of an app with no more users than this is counted on the spot; that of others is known within the hour.
const FEW: u64 = 3600;

/// Everything that a broadcast is ordered with.
#[derive(Debug, Clone)]
pub struct Order {
    /// What is sent, and how.
    pub spec: Spec,
    /// To whom.
    pub audience: Audience,
    /// But not to these.
    pub exclude: Vec<OpenId>,
    /// Pause after so many.
    pub canary: Option<u32>,
    /// Wait until then, in milliseconds since 1970.
    pub not_before_ms: Option<u64>,
    /// Wait for more recipients, and to be started.
    pub hold: bool,
    /// Under which request.
    pub request: Option<RequestId>,
}

/// To whom a broadcast goes.
#[derive(Debug, Clone)]
pub enum Audience {
    /// Every user who can be reached.
    Everyone,
    /// These; nobody twice.
    List(Vec<Recipient>),
}

/// A broadcast with its tally.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// What it is.
    pub record: Record,
    /// What it sends.
    pub spec: Spec,
    /// How far it is; not in lists.
    pub tally: Option<Tally>,
}

/// What came of a call that moves a broadcast.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// The broadcast since.
    pub standing: Arc<Standing>,
    /// Whether the call moved it; otherwise it was there already.
    pub moved: bool,
}

/// What a broadcast would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outlook {
    /// How the audience would be found.
    pub preview: Preview,
    /// Users left out who would be in it.
    pub excluded: u64,
    /// Credentials that would be spent.
    pub credentials: u64,
    /// How long it would take at the pace that is set, if one is.
    pub duration: Option<Duration>,
}

/// Answers calls about the broadcasts of one app.
pub struct Office {
    pub(super) ground: Arc<Ground>,
    /// Broadcasts that callers ask for, or watch.
    pub(super) standings: Arc<SingleFlight<BroadcastId, Result<Arc<Standing>, Failure>>>,
}

impl Office {
    /// For the app of `ground`.
    pub fn new(ground: Arc<Ground>) -> Self {
        Self { ground, standings: Arc::default() }
    }

    /// What the broadcasts stand on.
    pub fn ground(&self) -> &Ground {
        &self.ground
    }

    /// Stores a broadcast and, unless it is held, starts it. Repeated with the same request it finds the first one.
    pub async fn order(&self, order: &Order) -> Result<Arc<Standing>, Failure> {
        let Ground { app, store, clock, .. } = &*self.ground;
        let request = order.request.as_ref().map(|request| (request, digest(order)));
        let earlier = match request {
            Some((request, digest)) => store.requested_broadcast(&app.id, request, digest).await?,
            None => None,
        };
        // What was stored is answered, whatever has become impossible since.
        if earlier.is_none() {
            self.check(order).await?;
        }
        // Only now: a repeated request is another call, and must not look like another order.
        let spec = match traces::link() {
            Some(link) => Spec { ordered_by: Some(link), ..order.spec.clone() }.encode(),
            None => order.spec.encode(),
        };
        let draft = Draft {
            id: BroadcastId::new(clock.now_ms()),
            spec,
            everyone: matches!(order.audience, Audience::Everyone),
            not_before_ms: order.not_before_ms,
            canary: order.canary,
        };
        let id = match store.create_broadcast(&app.id, &draft, request).await? {
            Created::New => draft.id,
            Created::Exists(id) => id,
            Created::Reused => {
                let sentence = "request_id was used for another broadcast";
                return Err(Failure::new(Code::InvalidArgument, "REQUEST_ID_REUSED", sentence)
                    .field("request_id", "was used for another broadcast"));
            }
        };
        // The call before this one may have broken off anywhere between here and the start.
        let record = self.record(&id).await?;
        if record.state == State::Pending && !record.scheduled {
            let recipients = match &order.audience {
                Audience::Everyone => &[][..],
                Audience::List(list) => list,
            };
            // Where it is too late, the same call has added them before and started the broadcast since.
            self.add(&id, recipients, &order.exclude).await?;
            if !order.hold {
                let to = Move::Start { everyone: record.everyone };
                store.move_broadcast(&app.id, &id, &to, clock.now_ms()).await?;
            }
        }
        self.get(&id).await
    }

    /// What the broadcast would do now. Stores nothing.
    pub async fn preview(&self, order: &Order) -> Result<Outlook, Failure> {
        self.check(order).await?;
        let (choice, Ground { app, store, terms, .. }) = (self.ground.choice(&order.spec), &*self.ground);
        let _turn = store.turn(Work::Preview, &app.id).await;
        let sum = async |mut sum: Preview, part: Preview| {
            sum.add(part);
            Ok(sum)
        };
        let ask = async |openids: Vec<OpenId>| {
            stream::iter(self.by_bucket(openids, Clone::clone))
                .map(async |(bucket, openids)| store.preview_list(&app.id, bucket, &openids, &choice, terms).await)
                .buffer_unordered(AT_ONCE)
                .try_fold(Preview::default(), sum)
                .await
        };
        let exclude: HashSet<&OpenId> = order.exclude.iter().collect();
        let (preview, excluded) = match &order.audience {
            Audience::Everyone => {
                let mut preview = stream::iter(store.buckets())
                    .map(|bucket| store.preview_all(&app.id, bucket, &choice, terms))
                    .buffer_unordered(AT_ONCE)
                    .try_fold(Preview::default(), sum)
                    .await?;
                let out = ask(exclude.into_iter().cloned().collect()).await?;
                preview.reached = preview.reached.saturating_sub(out.reached);
                preview.recently_messaged = preview.recently_messaged.saturating_sub(out.recently_messaged);
                // Whoever has nothing that can be sent with is not in this audience.
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
        let credentials = order.canary.map_or(preview.reached, |canary| preview.reached.min(u64::from(canary)));
        let pace = [order.spec.rate, app.bounds.broadcast_rate].into_iter().filter(|rate| *rate > 0).min();
        let duration = pace.map(|rate| Duration::from_secs_f64(credentials as f64 / f64::from(rate)));
        Ok(Outlook { preview, excluded, credentials, duration })
    }

    /// What no broadcast can do: reach nobody, or wait until nothing lives any more.
    async fn check(&self, order: &Order) -> Result<(), Failure> {
        let Ground { app, store, clock, .. } = &*self.ground;
        let nobody = match &order.audience {
            Audience::Everyone => {
                let _turn = store.turn(Work::List, &app.id).await;
                !store.has_users(&app.id).await?
            }
            Audience::List(list) => {
                let exclude: HashSet<&OpenId> = order.exclude.iter().collect();
                !order.hold && list.iter().all(|recipient| exclude.contains(&recipient.openid))
            }
        };
        if nobody {
            return Err(empty_audience());
        }
        let now = (clock.now_ms() / 1000) as i64;
        if let Some(not_before_ms) = order.not_before_ms.filter(|at| *at > clock.now_ms()) {
            let stock = store.stock(&app.id, now, FEW).await?;
            let last_day = stock.days.iter().filter(|(_, count)| count.messages > 0).map(|((day, _), _)| *day).max();
            let lives_until = last_day.map_or(0, |day| (day + 1) * DAY - DAY_OFFSET);
            if not_before_ms as i64 / 1000 >= lives_until {
                let sentence = "at not_before, every credential in stock will have expired";
                return Err(Failure::new(Code::FailedPrecondition, "NOTHING_LIVES_THEN", sentence)
                    .field("not_before", "must be before the last credential in stock expires"));
            }
        }
        Ok(())
    }

    /// Adds to the list of a broadcast that is held.
    pub async fn add_recipients(
        &self,
        id: &BroadcastId,
        recipients: &[Recipient],
        exclude: &[OpenId],
    ) -> Result<Added, Failure> {
        let record = self.record(id).await?;
        if record.state != State::Pending || record.scheduled {
            return Err(wrong_state(record.state, record.scheduled));
        }
        if record.everyone && !recipients.is_empty() {
            let sentence = "recipients must be empty: this broadcast goes to every user who can be reached";
            return Err(Failure::new(Code::InvalidArgument, "INVALID_FIELDS", sentence)
                .field("recipients", "must be empty: this broadcast goes to every user who can be reached"));
        }
        let added = self.add(id, recipients, exclude).await?;
        if added.late {
            // It was started in the meantime.
            let record = self.record(id).await?;
            return Err(wrong_state(record.state, record.scheduled));
        }
        Ok(added)
    }

    async fn add(&self, id: &BroadcastId, recipients: &[Recipient], exclude: &[OpenId]) -> Result<Added, Failure> {
        let Ground { app, store, .. } = &*self.ground;
        let _turn = store.turn(Work::Recipients, &app.id).await;
        let mut parts: BTreeMap<Bucket, (Vec<Recipient>, Vec<OpenId>)> = BTreeMap::new();
        for (bucket, recipients) in self.by_bucket(recipients.to_vec(), |recipient| recipient.openid.clone()) {
            parts.entry(bucket).or_default().0 = recipients;
        }
        for (bucket, exclude) in self.by_bucket(exclude.to_vec(), Clone::clone) {
            parts.entry(bucket).or_default().1 = exclude;
        }
        let added = stream::iter(parts)
            .map(async |(bucket, (recipients, exclude))| {
                store.add_recipients(&app.id, id, bucket, &recipients, &exclude).await
            })
            .buffer_unordered(AT_ONCE)
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
            parts.entry(self.ground.store.bucket_of(&openid(&item))).or_default().push(item);
        }
        parts
    }

    /// Starts a broadcast that is held.
    pub async fn start(&self, id: &BroadcastId) -> Result<Asked, Failure> {
        let record = self.record(id).await?;
        let Ground { app, store, .. } = &*self.ground;
        let waits = record.state == State::Pending;
        if waits && record.scheduled {
            return Ok(Asked { standing: self.get(id).await?, moved: false });
        }
        if waits && !record.everyone && !store.has_recipients(&app.id, id).await? {
            return Err(empty_audience());
        }
        self.to(id, Move::Start { everyone: record.everyone }).await
    }

    /// Moves a broadcast to another state, as a caller asks; one that is there already stays as it is.
    pub async fn to(&self, id: &BroadcastId, to: Move) -> Result<Asked, Failure> {
        let Ground { app, store, clock, .. } = &*self.ground;
        match store.move_broadcast(&app.id, id, &to, clock.now_ms()).await? {
            Moved::To(_) => Ok(Asked { standing: self.get(id).await?, moved: true }),
            Moved::Wrong(state) => {
                let standing = self.get(id).await?;
                if is_there(&to, &standing.record) {
                    return Ok(Asked { standing, moved: false });
                }
                Err(wrong_state(state, false))
            }
            Moved::Missing => Err(not_found()),
        }
    }
}

/// Whether a broadcast that can not make a move is where the move leads, so that the call can only be a repeat, or as good
/// as one.
fn is_there(to: &Move, Record { state, pause, .. }: &Record) -> bool {
    match to {
        // It has run, so it was started. PAUSED is left out: who says start may well mean resume.
        Move::Start { .. } => matches!(state, State::Running | State::Done),
        // One that paused by itself may go on by itself.
        Move::Pause(asked) => pause.as_ref().is_some_and(|pause| pause.reason == asked.reason),
        Move::Resume { .. } => *state == State::Running,
        Move::Cancel => *state == State::Cancelled,
    }
}

/// Tells an order from another under the same request.
fn digest(order: &Order) -> [u8; 16] {
    let mut bytes = order.spec.encode();
    let mut add = |part: &[u8]| {
        bytes.extend_from_slice(&(part.len() as u32).to_be_bytes());
        bytes.extend_from_slice(part);
    };
    if let Audience::List(list) = &order.audience {
        add(b"list");
        for recipient in list {
            add(recipient.openid.as_str().as_bytes());
            add(&recipient.data);
        }
    }
    add(b"exclude");
    order.exclude.iter().for_each(|openid| add(openid.as_str().as_bytes()));
    add(format!("{:?} {:?} {}", order.canary, order.not_before_ms, order.hold).as_bytes());
    fingerprint(&bytes)
}

pub(super) fn not_found() -> Failure {
    let sentence = "the app has no broadcast of this id; they are kept for 7 days after their end";
    Failure::new(Code::NotFound, "BROADCAST_NOT_FOUND", sentence).field("broadcast_id", "is not known")
}

fn empty_audience() -> Failure {
    Failure::new(Code::FailedPrecondition, "EMPTY_AUDIENCE", "there is nobody to send to")
}

fn wrong_state(state: State, scheduled: bool) -> Failure {
    let waits = if scheduled { ", and was started: it waits for its time" } else { "" };
    let sentence = format!("the broadcast is {}{waits}", state.name());
    Failure::new(Code::FailedPrecondition, "WRONG_STATE", sentence).with("state", state.name())
}
