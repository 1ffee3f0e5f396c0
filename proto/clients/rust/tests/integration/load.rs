//! A continuous load of calls, made as a gRPC library with proto/service-config.json makes them.
//!
//! tonic has no service config, so this module implements it. Each call goes to the next replica. A call that never
//! left is repeated with another replica (a transparent retry in gRPC's terms). UNAVAILABLE is retried as the config
//! says. The load is stricter than a library in one point: it does not check health, so it calls a draining replica
//! until the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use server::proto::collector_service_client::CollectorServiceClient;
use server::proto::credential::Right;
use server::proto::dispatcher_service_client::DispatcherServiceClient;
use server::proto::{
    CollectRequest, CollectStatus, CollectStreamRequest, Credential, Outcome, SendTemplateRequest, TemplateValue,
};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status};

use crate::fixture::{APP, text};
use crate::problem::Problem;
use crate::replicas::{Replica, Replicas};

/// Interval between calls: 200 per second, while fewer than `IN_FLIGHT` are in flight.
const PACE: Duration = Duration::from_millis(5);
const IN_FLIGHT: usize = 64;
/// Interval between batches of the stream.
const BATCH_PACE: Duration = Duration::from_millis(50);
/// Most batches of the stream without an acknowledgement.
const UNACKNOWLEDGED: usize = 8;

/// How often a call that never left is moved to another replica.
const MOVES: u32 = 3;

/// The load: its targets and its counters.
pub struct Load {
    collectors: Replicas,
    dispatchers: Replicas,
    policy: Policy,
    enough: AtomicBool,
    ended: AtomicUsize,
    /// Number of transparent retries of calls that never left.
    pub transparent: AtomicUsize,
    /// Number of retries by the service config.
    pub repeated: AtomicUsize,
}

/// How often UNAVAILABLE is retried, and with which backoff.
struct Policy {
    attempts: u64,
    backoff: f64,
    longest: f64,
    multiplier: f64,
}

impl Policy {
    /// The retry policy of the service config for SendTemplate. The one of Collect is the same.
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

/// The results of a load.
#[derive(Debug, Default)]
pub struct Done {
    /// Number of credentials collected.
    pub collected: u64,
    /// Number of messages delivered.
    pub sent: u64,
    /// Number of batches of the stream, with one credential each.
    pub batches: u64,
    /// How often the stream was resumed with another replica.
    pub resumed: u64,
}

impl Load {
    /// Creates a load on both replicas of each service.
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

    /// Number of calls that have ended.
    pub fn ended(&self) -> usize {
        self.ended.load(Ordering::Relaxed)
    }

    /// Stops the load: no further call is made.
    pub fn enough(&self) {
        self.enough.store(true, Ordering::Relaxed);
    }

    /// Collects all these credentials.
    pub async fn collect_all(&self, credentials: Vec<Credential>) {
        for part in credentials.chunks(1000) {
            self.collect(part.to_vec()).await;
        }
    }

    /// Starts the load. Every second call collects a form id of a new user. Every other call sends to one of `users`
    /// while some are left, alternately with and without a request id. The load runs until it is stopped. It panics if
    /// a call fails.
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
            // An attempt whose answer was lost may have stored it.
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

    /// Makes one call as a library makes it. Returns its answer, and the number of attempts that reached a service.
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
            // Only one replica is down at a time, so there is always another.
            if failed.problem.never_left() && unseen < MOVES {
                unseen += 1;
                self.transparent.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            tries += 1;
            // UNAVAILABLE without a reason is a connection that broke during the call. A library would retry that too,
            // and a message without a request id might be delivered twice.
            let repeatable = failed.code == Code::Unavailable && failed.problem.is_formids();
            if !repeatable || tries == self.policy.attempts {
                // The test has failed: end the load.
                self.enough();
                panic!("a call failed after {tries} tries: {failed:?}");
            }
            self.repeated.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(self.policy.pause(tries)).await;
        }
    }

    /// Runs one stream of batches. When the service asks for it, the stream is resumed with another replica, and
    /// batches without an acknowledgement are sent again. Returns the number of batches, and how often the stream was
    /// resumed.
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
                // If the stream has ended by now, its error is handled below.
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
                            assert!(batches.is_none() && open.is_empty(), "the stream ended early without an error");
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

/// A failed call, with its code.
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
    /// Whether a stream should be resumed with another replica.
    fn is_told_to_resume(&self) -> bool {
        self.problem.never_left() || self.problem.is_formids() && self.problem.is_of_the_replica()
    }
}

/// A form id of a user.
pub fn form(openid: String, id: String) -> Credential {
    Credential { openid, right: Some(Right::FormId(id)), obtained_at: None }
}

/// Keeps the average pace: ticks that a busy machine delays are made up for.
fn ticks(pace: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    ticks
}
