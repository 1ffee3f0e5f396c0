//! Calls that go on whatever becomes of the replicas, made as a gRPC library with proto/service-config.json makes them.
//!
//! tonic has no service config, so here is what stands in its place: each call goes to the next replica, one that never
//! left goes once more to another (gRPC calls it a transparent retry), and UNAVAILABLE is repeated as the config says.
//! Harder than a library in one thing: it does not look at health, so it calls a replica that drains to the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use shared::proto::collector_service_client::CollectorServiceClient;
use shared::proto::credential::Right;
use shared::proto::dispatcher_service_client::DispatcherServiceClient;
use shared::proto::{
    CollectRequest, CollectStatus, CollectStreamRequest, Credential, Outcome, SendTemplateRequest, TemplateValue,
};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status};

use crate::problem::Problem;
use crate::replicas::{Replica, Replicas};
use crate::rig::{APP, text};

/// From one call to the next: 200 a second, as long as no more than so many are in flight.
const PACE: Duration = Duration::from_millis(5);
const IN_FLIGHT: usize = 64;
/// From one batch of the stream to the next.
const BATCH_PACE: Duration = Duration::from_millis(50);
/// Of the stream's batches, those without an acknowledgement.
const UNACKNOWLEDGED: usize = 8;

/// How often a call that never left goes to another replica.
const MOVES: u32 = 3;

/// What is called, and what was counted meanwhile.
pub struct Load {
    collectors: Replicas,
    dispatchers: Replicas,
    policy: Policy,
    enough: AtomicBool,
    ended: AtomicUsize,
    /// Calls that never left at the first try.
    pub transparent: AtomicUsize,
    /// Calls that were repeated because the config says so.
    pub repeated: AtomicUsize,
}

/// How often UNAVAILABLE is repeated, and after which pauses.
struct Policy {
    attempts: u64,
    backoff: f64,
    longest: f64,
    multiplier: f64,
}

impl Policy {
    /// The one that the service config has for SendTemplate, and for Collect too.
    fn read() -> Self {
        let config: serde_json::Value = serde_json::from_str(&text("proto/service-config.json")).unwrap();
        let of = |method: &str| {
            let has = |part: &&serde_json::Value| {
                part["name"].as_array().unwrap().iter().any(|name| name["method"].as_str() == Some(method))
            };
            &config["methodConfig"].as_array().unwrap().iter().find(has).unwrap()["retryPolicy"]
        };
        let policy = of("SendTemplate");
        assert_eq!(policy, of("Collect"));
        let seconds = |key: &str| policy[key].as_str().unwrap().strip_suffix('s').unwrap().parse().unwrap();
        Self {
            attempts: policy["maxAttempts"].as_u64().unwrap(),
            backoff: seconds("initialBackoff"),
            longest: seconds("maxBackoff"),
            multiplier: policy["backoffMultiplier"].as_f64().unwrap(),
        }
    }

    fn pause(&self, tried: u64) -> Duration {
        let pause = self.backoff * self.multiplier.powi(tried as i32 - 1);
        Duration::from_secs_f64(pause.min(self.longest)).mul_f64(rand::random_range(0.8..1.2))
    }
}

/// What a load has done.
#[derive(Debug, Default)]
pub struct Done {
    /// Credentials that were taken in.
    pub collected: u64,
    /// Messages that were delivered.
    pub sent: u64,
    /// Batches of the stream, one credential each.
    pub batches: u64,
    /// How often the stream was told to go on elsewhere, and did.
    pub resumed: u64,
}

impl Load {
    /// Against both replicas of each service.
    pub async fn new(collectors: &[String], dispatchers: &[String]) -> Arc<Self> {
        let open = async |addresses: &[String], deadline| {
            Replicas::open(&addresses.join(","), None, None, Duration::from_secs(deadline)).await.unwrap()
        };
        Arc::new(Self {
            collectors: open(collectors, 300).await,
            dispatchers: open(dispatchers, 300).await,
            policy: Policy::read(),
            enough: AtomicBool::new(false),
            ended: AtomicUsize::new(0),
            transparent: AtomicUsize::new(0),
            repeated: AtomicUsize::new(0),
        })
    }

    /// How many calls have ended.
    pub fn ended(&self) -> usize {
        self.ended.load(Ordering::Relaxed)
    }

    /// No call begins any more.
    pub fn enough(&self) {
        self.enough.store(true, Ordering::Relaxed);
    }

    /// Stores what users handed out, as many as there are.
    pub async fn collect_all(&self, credentials: Vec<Credential>) {
        for part in credentials.chunks(1000) {
            self.collect(part.to_vec()).await;
        }
    }

    /// Every second call collects of a user of its own, every other sends to one of `users` while there are some left, in
    /// turn with and without a request id, until it is enough. A call that fails ends it, loudly.
    pub fn start(self: &Arc<Self>, users: Vec<String>) -> JoinHandle<Done> {
        let (load, stream) = (Arc::clone(self), tokio::spawn(Arc::clone(self).stream()));
        tokio::spawn(async move {
            let (mut calls, mut ticks) = (JoinSet::new(), ticks(PACE));
            let (mut users, room) = (users.into_iter(), Arc::new(Semaphore::new(IN_FLIGHT)));
            for number in 0.. {
                ticks.tick().await;
                if load.enough.load(Ordering::Relaxed) {
                    break;
                }
                let place = Arc::clone(&room).acquire_owned().await.unwrap();
                let load = Arc::clone(&load);
                let user = if number % 2 == 0 { None } else { users.next() };
                calls.spawn(async move {
                    let _place = place;
                    let done = match user {
                        None => {
                            load.collect(vec![form(format!("oNew{number}"), format!("{number:032x}"))]).await;
                            Done { collected: 1, ..Done::default() }
                        }
                        Some(user) => {
                            load.send(user, if number % 4 == 1 { format!("r{number}") } else { String::new() }).await;
                            Done { sent: 1, ..Done::default() }
                        }
                    };
                    load.ended.fetch_add(1, Ordering::Relaxed);
                    done
                });
            }
            let done = calls.join_all().await.into_iter().fold(Done::default(), |sum, one| Done {
                collected: sum.collected + one.collected,
                sent: sum.sent + one.sent,
                ..sum
            });
            let (batches, resumed) = stream.await.unwrap();
            Done { batches, resumed, ..done }
        })
    }

    async fn collect(&self, credentials: Vec<Credential>) {
        let request = CollectRequest { app_id: APP.into(), credentials };
        let call = async |replica, request| CollectorServiceClient::new(replica).collect(request).await;
        let (answer, tries) = self.call(&self.collectors, request, call).await;
        for result in answer.results {
            // A try whose answer was lost may have stored it.
            let well =
                result.status() == CollectStatus::Stored || tries > 1 && result.status() == CollectStatus::Duplicate;
            assert!(well, "{result:?} after {tries} tries");
        }
    }

    async fn send(&self, openid: String, request_id: String) {
        let value = TemplateValue { value: format!("for {openid}"), color: String::new() };
        let request = SendTemplateRequest {
            app_id: APP.into(),
            openid,
            request_id,
            template_id: "order-ready".into(),
            data: [("keyword1".to_owned(), value)].into(),
            ..SendTemplateRequest::default()
        };
        let call = async |replica, request| DispatcherServiceClient::new(replica).send_template(request).await;
        let (answer, _) = self.call(&self.dispatchers, request, call).await;
        assert_eq!(answer.outcome(), Outcome::Delivered);
    }

    /// One call as a library makes it; its answer, and how many tries came to a service.
    async fn call<Q: Clone, A, F: Future<Output = Result<Response<A>, Status>>>(
        &self,
        replicas: &Replicas,
        request: Q,
        call: impl Fn(Replica, Q) -> F,
    ) -> (A, u64) {
        let (mut tries, mut unseen) = (0, 0);
        loop {
            let (address, replica) = replicas.next().await;
            let failed = match call(replica, request.clone()).await {
                Ok(answer) => return (answer.into_inner(), tries + 1),
                Err(status) => Failed::from(status),
            };
            if failed.problem.is_of_the_replica() {
                replicas.avoid(address);
            }
            // One replica is away at a time, so there is always another.
            if failed.problem.never_left() && unseen < MOVES {
                unseen += 1;
                self.transparent.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            tries += 1;
            // UNAVAILABLE without a reason is a connection that broke in the middle. A library would repeat that too, and a
            // message without a request id might go out twice.
            let repeatable = failed.code == Code::Unavailable && failed.problem.is_formids();
            if !repeatable || tries == self.policy.attempts {
                // No use in going on.
                self.enough();
                panic!("a call failed after {tries} tries: {failed:?}");
            }
            self.repeated.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(self.policy.pause(tries)).await;
        }
    }

    /// One stream of batches that goes on elsewhere when it is told to, and there sends again what was not acknowledged.
    /// Answers how many batches that were, and how often it went on.
    async fn stream(self: Arc<Self>) -> (u64, u64) {
        let (mut open, mut resumed, mut next) = (BTreeMap::new(), 0, 0);
        let mut ticks = ticks(BATCH_PACE);
        'streams: loop {
            let (batches, feed) = mpsc::channel(UNACKNOWLEDGED);
            let (address, replica) = self.collectors.next().await;
            let opened = CollectorServiceClient::new(replica).collect_stream(ReceiverStream::new(feed)).await;
            let mut acknowledgements = match opened {
                Ok(stream) => stream.into_inner(),
                Err(status) => {
                    let problem = Failed::from(status);
                    assert!(problem.is_told_to_resume(), "the stream was not opened: {problem:?}");
                    self.collectors.avoid(address);
                    continue;
                }
            };
            for batch in open.values() {
                // A stream that has ended by now says so below.
                let _ = batches.send(Clone::clone(batch)).await;
            }
            let mut batches = Some(batches);
            loop {
                let room = batches.as_ref().filter(|_| open.len() < UNACKNOWLEDGED);
                tokio::select! {
                    acknowledgement = acknowledgements.message() => match acknowledgement {
                        Ok(Some(acknowledgement)) => {
                            assert_eq!(acknowledgement.stored + acknowledgement.duplicates, 1);
                            assert!(open.remove(&acknowledgement.sequence).is_some());
                        }
                        Ok(None) => {
                            assert!(batches.is_none() && open.is_empty(), "the stream ended without a word");
                            break 'streams (next, resumed);
                        }
                        Err(status) => {
                            let problem = Failed::from(status);
                            assert!(problem.is_told_to_resume(), "the stream broke: {problem:?}");
                            self.collectors.avoid(address);
                            resumed += 1;
                            break;
                        }
                    },
                    _ = ticks.tick(), if room.is_some() => {
                        if self.enough.load(Ordering::Relaxed) {
                            batches = None;
                            continue;
                        }
                        let credentials = vec![form(format!("oStreamed{next}"), format!("5{next:031x}"))];
                        let batch = CollectStreamRequest { sequence: next, app_id: APP.into(), credentials };
                        open.insert(next, batch.clone());
                        next += 1;
                        if let Some(batches) = room {
                            let _ = batches.try_send(batch);
                        }
                    }
                }
            }
        }
    }
}

/// A call that failed, with its code.
#[derive(Debug)]
struct Failed {
    code: Code,
    problem: Problem,
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        Self { code: status.code(), problem: Problem::from(status) }
    }
}

impl Failed {
    /// Of a stream: go on with another one.
    fn is_told_to_resume(&self) -> bool {
        self.problem.never_left() || self.problem.is_formids() && self.problem.is_of_the_replica()
    }
}

/// What a user handed out.
pub fn form(openid: String, id: String) -> Credential {
    Credential { openid, right: Some(Right::FormId(id)), obtained_at: None }
}

/// The pace is kept: what a busy machine delays is made up for.
fn ticks(pace: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    ticks
}
