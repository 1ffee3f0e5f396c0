//! The in-flight registry: the sends that run on this replica. A send continues when its caller disconnects, at a
//! deadline and during a drain, so that it is never cut off between lease and settle. A call that repeats the request
//! id of a running send joins that send.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use domain::{AppId, OpenId, RequestId};
use server::rpc::status::Failure;
use server::serve::budget::Charge;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::context::AppContext;
use crate::send::outcome::SendError;
use crate::send::{SendRequest, Sent};

type Answer = Result<Sent, Failure>;
type Key = (AppId, OpenId, RequestId);

/// Sends in flight on this replica; clones share them.
#[derive(Clone)]
pub struct InFlight {
    bound: usize,
    tasks: TaskTracker,
    requests: Arc<Mutex<HashMap<Key, RunningSend>>>,
}

struct RunningSend {
    fingerprint: [u8; 16],
    answer: watch::Receiver<Option<Answer>>,
}

impl InFlight {
    /// Allows at most `bound` sends at the same time. Sends whose callers disconnected count as well. Otherwise the
    /// sends of callers that time out early and repeat their calls would accumulate without limit while WeChat is slow.
    pub fn new(bound: usize) -> Self {
        Self { bound, tasks: TaskTracker::new(), requests: Arc::default() }
    }

    /// Sends a message, or joins the running send of the same request. Dropping the future does not stop the send.
    /// Fails with OVERLOADED at the limit. The send holds `charge`, the memory that its request takes, until it ends.
    pub async fn send(&self, context: Arc<AppContext>, order: SendRequest, charge: Charge) -> Answer {
        if self.tasks.is_closed() {
            return Err(Failure::shutting_down());
        }
        let Some(request) = &order.request else {
            self.check_capacity()?;
            return self.detachable(charge, async move { context.send(&order).await }).await;
        };
        let fingerprint = request.fingerprint;
        let key = (context.app.id.clone(), order.openid.clone(), request.id.clone());
        let (publish, answer) = watch::channel(None);
        let joined = match lock(&self.requests).entry(key.clone()) {
            Entry::Occupied(running) if running.get().fingerprint != fingerprint => {
                return Err(SendError::RequestReused.into());
            }
            Entry::Occupied(running) => Some(running.get().answer.clone()),
            Entry::Vacant(free) => {
                self.check_capacity()?;
                free.insert(RunningSend { fingerprint, answer });
                None
            }
        };
        if let Some(mut answer) = joined {
            let ended = answer.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone());
            return ended.unwrap_or_else(|| Err(Failure::internal()));
        }
        let guard = EntryGuard { requests: Arc::clone(&self.requests), key };
        self.detachable(charge, async move {
            let answer = context.send(&order).await;
            drop(guard);
            // There may be no receiver: the error is ignored.
            let _ = publish.send(Some(answer.clone()));
            answer
        })
        .await
    }

    fn check_capacity(&self) -> Result<(), Failure> {
        if self.tasks.len() < self.bound { Ok(()) } else { Err(Failure::overloaded()) }
    }

    fn detachable(&self, charge: Charge, send: impl Future<Output = Answer> + Send + 'static) -> DetachOnDrop {
        let charged = async move {
            let _charge = charge;
            send.await
        };
        DetachOnDrop { send: Some(Box::pin(charged)), tasks: self.tasks.clone(), _counted: self.tasks.token() }
    }

    /// Accepts no more sends, and waits for those in flight.
    pub async fn close(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Removes a request from the registry on drop, however its send ends.
struct EntryGuard {
    requests: Arc<Mutex<HashMap<Key, RunningSend>>>,
    key: Key,
}

impl Drop for EntryGuard {
    fn drop(&mut self) {
        lock(&self.requests).remove(&self.key);
    }
}

/// A send that continues when its caller disconnects. It is polled in the caller's task. If it is dropped before its
/// end, it is moved to a task of its own. Most callers wait for the answer, which saves a second task.
struct DetachOnDrop {
    send: Option<Pin<Box<dyn Future<Output = Answer> + Send>>>,
    tasks: TaskTracker,
    _counted: TaskTrackerToken,
}

impl Future for DetachOnDrop {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        let Some(send) = &mut self.send else { return Poll::Ready(Err(Failure::internal())) };
        let answer = std::task::ready!(send.as_mut().poll(context));
        self.send = None;
        Poll::Ready(answer)
    }
}

impl Drop for DetachOnDrop {
    fn drop(&mut self) {
        // At the end of the process there is no runtime any more; the send is dropped.
        if let (Some(send), Ok(runtime)) = (self.send.take(), tokio::runtime::Handle::try_current()) {
            self.tasks.spawn_on(send, &runtime);
        }
    }
}

fn lock(requests: &Mutex<HashMap<Key, RunningSend>>) -> MutexGuard<'_, HashMap<Key, RunningSend>> {
    // Every change is a single insert or remove, so the map is consistent even after a panic.
    requests.lock().unwrap_or_else(PoisonError::into_inner)
}
