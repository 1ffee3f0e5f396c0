//! The queues of credentials that wait for Redis, one for each bucket, and the calls that they belong to. Pure data: no
//! clock and no I/O.

use std::collections::VecDeque;

use server::rpc::status::Failure;
use slab::Slab;
use store::credentials::{MAX_COLLECT, Packed};
use store::keys::Bucket;
use store::{Error, Store};

use super::{Batch, Call};

/// The origin of the credential with the same index in a group: its call, and its index in the call's batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    call: usize,
    index: u32,
}

/// Credentials that are stored with one script.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) credentials: Vec<Packed>,
    pub(super) tickets: Vec<Ticket>,
}

/// The result of a group's script: the indexes of the credentials that were stored already.
pub(super) struct Answer {
    pub(super) queue: usize,
    pub(super) tickets: Vec<Ticket>,
    pub(super) outcome: Result<Vec<usize>, Error>,
}

#[derive(Debug, Default)]
struct BucketQueue {
    /// All groups but the last are full.
    waiting: VecDeque<Group>,
    in_flight: bool,
}

/// The state of the batcher, without the scripts in flight.
pub(super) struct BucketQueues {
    store: Store,
    buckets: usize,
    /// Ordered by app, then by bucket.
    queues: Vec<BucketQueue>,
    /// The queues that may send, each once, the longest waiting first.
    ready: VecDeque<usize>,
    calls: Slab<Call>,
    /// The failure of the last script, if it failed, and whether the failure is lasting. Callers get the same failure
    /// until Redis recovers, so that it is logged once.
    failure: Option<(bool, Failure)>,
}

impl BucketQueues {
    pub(super) fn new(store: Store, apps: usize) -> Self {
        let buckets = store.buckets().len();
        let queues = (0..apps * buckets).map(|_| BucketQueue::default()).collect();
        Self { store, buckets, queues, ready: VecDeque::new(), calls: Slab::new(), failure: None }
    }

    /// The index of the app in the list of apps, and the bucket.
    pub(super) fn app_and_bucket(&self, queue: usize) -> (usize, Bucket) {
        (queue / self.buckets, Bucket((queue % self.buckets) as u16))
    }

    pub(super) fn enqueue(&mut self, batch: Batch) {
        let call = self.calls.insert(batch.call);
        for (index, credential) in (0..).zip(batch.credentials) {
            let bucket = self.store.bucket_of(&credential.openid);
            let number = batch.app * self.buckets + usize::from(bucket.0);
            let queue = &mut self.queues[number];
            if queue.waiting.is_empty() && !queue.in_flight {
                self.ready.push_back(number);
            }
            if queue.waiting.back().is_none_or(|group| group.credentials.len() == MAX_COLLECT) {
                queue.waiting.push_back(Group::default());
            }
            if let Some(group) = queue.waiting.back_mut() {
                group.credentials.push(credential);
                group.tickets.push(Ticket { call, index });
            }
        }
    }

    pub(super) fn next_group(&mut self) -> Option<(usize, Group)> {
        let number = self.ready.pop_front()?;
        let queue = &mut self.queues[number];
        let group = queue.waiting.pop_front()?;
        queue.in_flight = true;
        Some((number, group))
    }

    /// Applies the result of a group's script, and answers the calls that are complete.
    pub(super) fn settle(&mut self, Answer { queue: number, tickets, outcome }: Answer) {
        let queue = &mut self.queues[number];
        queue.in_flight = false;
        if !queue.waiting.is_empty() {
            self.ready.push_back(number);
        }
        match outcome {
            Ok(duplicates) => {
                self.failure = None;
                for ticket in duplicates.iter().filter_map(|at| tickets.get(*at)) {
                    self.calls[ticket.call].duplicates.push(ticket.index);
                }
                self.release(&tickets);
            }
            Err(error) => {
                let (away, lasting) = (is_away(&error), error.is_lasting());
                let failure = match self.failure.take() {
                    Some((same, failure)) if same == lasting => failure,
                    _ => error.into(),
                };
                self.failure = Some((lasting, failure.clone()));
                self.fail(&tickets, &failure);
                if away {
                    self.fail_all_that_wait(&failure);
                }
            }
        }
    }

    /// Marks these credentials as done, and answers each call that has no others left.
    fn release(&mut self, tickets: &[Ticket]) {
        for ticket in tickets {
            let call = &mut self.calls[ticket.call];
            call.left -= 1;
            if call.left == 0 {
                let call = self.calls.remove(ticket.call);
                if let Some(answer) = call.answer {
                    let _ = answer.send(Ok(call.duplicates));
                }
            }
        }
    }

    /// Answers each of these calls immediately with the failure.
    fn fail(&mut self, tickets: &[Ticket], failure: &Failure) {
        for ticket in tickets {
            if let Some(answer) = self.calls[ticket.call].answer.take() {
                let _ = answer.send(Err(failure.clone()));
            }
        }
        self.release(tickets);
    }

    /// Fails everything that waits in queues without a script in flight. The other queues get the failure of their own
    /// script.
    fn fail_all_that_wait(&mut self, failure: &Failure) {
        for number in std::mem::take(&mut self.ready) {
            for group in std::mem::take(&mut self.queues[number].waiting) {
                self.fail(&group.tickets, failure);
            }
        }
    }
}

/// Whether the next script would fail too, because there is no connection or no answer within the timeout.
fn is_away(error: &Error) -> bool {
    match error {
        Error::Unavailable(_) => true,
        Error::Redis(cause) => cause.is_timeout() || cause.is_connection_refusal(),
        Error::WrongType { .. } | Error::Corrupt(_) | Error::BucketCount { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use domain::{Credential, CredentialId, Kind, OpenId};
    use tokio::sync::{Semaphore, oneshot};

    use super::super::Duplicates;
    use super::*;

    type Answered = oneshot::Receiver<Result<Duplicates, Failure>>;

    fn queues() -> BucketQueues {
        let url = "redis://127.0.0.1:1".to_owned();
        BucketQueues::new(Store::new(&testing::store_config(url)).unwrap(), 1)
    }

    /// A call with this many form ids of one user.
    fn call(room: &Arc<Semaphore>, openid: &str, count: u32) -> (Batch, Answered) {
        let form = |n| {
            let id = CredentialId::parse(format!("f{n}")).unwrap();
            Packed::new(OpenId::parse(openid).unwrap(), &Credential { kind: Kind::FormId, id, uses: 1, expiry: 1 })
        };
        let (answer, answered) = oneshot::channel();
        let room = Arc::clone(room).try_acquire_many_owned(count).unwrap();
        let call = Call { left: count as usize, duplicates: Vec::new(), answer: Some(answer), _slot: room };
        (Batch { app: 0, credentials: (0..count).map(form).collect(), call }, answered)
    }

    #[test]
    fn queue_sends_full_scripts_one_after_the_other() {
        let (mut queues, room) = (queues(), Arc::new(Semaphore::new(300)));
        let (batch, mut answered) = call(&room, "oUser", 300);
        queues.enqueue(batch);
        for size in [MAX_COLLECT, MAX_COLLECT, 300 - 2 * MAX_COLLECT] {
            assert!(answered.try_recv().is_err());
            let (queue, Group { credentials, tickets }) = queues.next_group().unwrap();
            assert_eq!(credentials.len(), size);
            assert!(queues.next_group().is_none());
            queues.settle(Answer { queue, tickets, outcome: Ok(vec![0]) });
        }
        assert_eq!(answered.try_recv().unwrap(), Ok(vec![0, 128, 256]));
        assert_eq!(room.available_permits(), 300);
    }

    #[test]
    fn calls_share_a_script_and_get_their_own_duplicates() {
        let (mut queues, room) = (queues(), Arc::new(Semaphore::new(300)));
        let (first, mut first_answered) = call(&room, "oUser", 2);
        let (second, mut second_answered) = call(&room, "oUser", 3);
        queues.enqueue(first);
        queues.enqueue(second);
        let (queue, Group { tickets, .. }) = queues.next_group().unwrap();
        queues.settle(Answer { queue, tickets, outcome: Ok(vec![1, 2, 4]) });
        assert_eq!(first_answered.try_recv().unwrap(), Ok(vec![1]));
        assert_eq!(second_answered.try_recv().unwrap(), Ok(vec![0, 2]));
    }

    #[test]
    fn all_waiting_calls_fail_immediately_if_redis_is_unavailable() {
        let (mut queues, room) = (queues(), Arc::new(Semaphore::new(300)));
        let calls: Vec<_> = ["oA", "oB", "oC", "oD", "oE", "oF"].map(|openid| call(&room, openid, 40)).into();
        let mut answers = Vec::new();
        for (batch, answered) in calls {
            queues.enqueue(batch);
            answers.push(answered);
        }
        let (queue, Group { tickets, .. }) = queues.next_group().unwrap();
        queues.settle(Answer { queue, tickets, outcome: Err(Error::Unavailable("no connection".into())) });
        assert!(queues.next_group().is_none());
        for mut answered in answers {
            assert_eq!(answered.try_recv().unwrap().unwrap_err().reason(), "REDIS_UNAVAILABLE");
        }
        assert_eq!(room.available_permits(), 300);
    }

    #[test]
    fn lasting_failure_is_reported_apart_from_a_transient_one() {
        let (mut queues, room) = (queues(), Arc::new(Semaphore::new(300)));
        for (error, reason) in [
            (Error::Unavailable("no connection".into()), "REDIS_UNAVAILABLE"),
            (Error::Corrupt("half a record".into()), "INTERNAL"),
            (Error::Unavailable("no connection".into()), "REDIS_UNAVAILABLE"),
        ] {
            let (batch, mut answered) = call(&room, "oUser", 1);
            queues.enqueue(batch);
            let (queue, Group { tickets, .. }) = queues.next_group().unwrap();
            queues.settle(Answer { queue, tickets, outcome: Err(error) });
            assert_eq!(answered.try_recv().unwrap().unwrap_err().reason(), reason);
        }
    }
}
