//! Where sends of this replica are under way: each in a task of its own, so that a caller that hangs up, a deadline or a
//! drain never cuts one between lease and settle. A repeated request id joins the send that is under way here.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::{BoxFuture, FutureExt as _, Shared};
use shared::credential::{AppId, OpenId, RequestId};
use shared::status::Failure;
use tokio_util::task::TaskTracker;

use crate::outcome::SendError;
use crate::send::{Order, Sender, Sent};

type Answer = Result<Sent, Failure>;
type Joined = Shared<BoxFuture<'static, Answer>>;
type Key = (AppId, OpenId, RequestId);

/// The sends that are under way.
#[derive(Clone, Default)]
pub struct Desk {
    tasks: TaskTracker,
    requests: Arc<Mutex<HashMap<Key, UnderWay>>>,
}

struct UnderWay {
    fingerprint: [u8; 16],
    answer: Joined,
}

impl Desk {
    /// Sends a message, or joins the send of the same request. Dropping the future stops nothing.
    pub async fn send(&self, app: AppId, sender: Arc<Sender>, order: Order) -> Answer {
        if self.tasks.is_closed() {
            return Err(Failure::shutting_down());
        }
        let Some(request) = order.request.clone() else { return self.start(sender, order, None).await };
        let key = (app, order.openid.clone(), request.id);
        let answer = {
            let mut requests = lock(&self.requests);
            match requests.entry(key.clone()) {
                Entry::Occupied(under_way) if under_way.get().fingerprint != request.fingerprint => {
                    return Err(SendError::RequestReused.into());
                }
                Entry::Occupied(under_way) => under_way.get().answer.clone(),
                Entry::Vacant(free) => {
                    let answer = self.start(sender, order, Some(key));
                    free.insert(UnderWay { fingerprint: request.fingerprint, answer: answer.clone() });
                    answer
                }
            }
        };
        answer.await
    }

    fn start(&self, sender: Arc<Sender>, order: Order, key: Option<Key>) -> Joined {
        let requests = Arc::clone(&self.requests);
        let task = self.tasks.spawn(async move {
            let answer = sender.send(&order).await.map_err(Failure::from);
            if let Some(key) = key {
                lock(&requests).remove(&key);
            }
            answer
        });
        task.map(|ended| ended.unwrap_or_else(|_| Err(Failure::internal()))).boxed().shared()
    }

    /// Takes in no more, and waits for what is under way.
    pub async fn close(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn lock(requests: &Mutex<HashMap<Key, UnderWay>>) -> MutexGuard<'_, HashMap<Key, UnderWay>> {
    // Every change is one insert or one remove, so a panic elsewhere leaves the map whole.
    requests.lock().unwrap_or_else(PoisonError::into_inner)
}
