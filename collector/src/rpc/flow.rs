//! CollectStream: receives batches and sends acknowledgements.
//!
//! The stream is driven by reading the acknowledgements. Nothing is read from the caller while [`BATCHES_IN_FLIGHT`]
//! batches are in flight to Redis, while one waits for queue capacity, or while the caller does not read. HTTP/2 flow
//! control then slows the caller down.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, FuturesUnordered, Stream, StreamExt as _};
use server::auth::Caller;
use server::proto::{CollectStreamRequest, CollectStreamResponse};
use server::rpc::status::{Failure, refused_by_tonic};
use server::serve::closing::ConnectionClosing;
use tokio::sync::OwnedSemaphorePermit as QueueSlot;
use tonic::{Status, Streaming};

use super::Inner;
use super::credentials::{self, Sorted};

/// The maximum number of batches of one stream in flight: 32,000 credentials.
const BATCHES_IN_FLIGHT: usize = 32;

/// The sequence number of a batch, which is added to a failure, and its result.
type Done = (u64, Result<CollectStreamResponse, Failure>);

struct WaitingBatch {
    sequence: u64,
    app: usize,
    sorted: Sorted,
    slot: BoxFuture<'static, Result<QueueSlot, Failure>>,
}

struct Flow {
    service: Arc<Inner>,
    caller: Caller,
    incoming: Streaming<CollectStreamRequest>,
    /// Resolves with the reason when the stream must end: the service shuts down, the connection is closing, or the
    /// caller's access was revoked.
    stop: BoxFuture<'static, Failure>,
    /// The batch that waits for queue capacity.
    waiting: Option<WaitingBatch>,
    in_flight: FuturesUnordered<BoxFuture<'static, Done>>,
    reading: bool,
    /// The status that the stream ends with once everything in flight is answered; OK if `None`.
    end: Option<Status>,
}

/// Acknowledges each batch of `incoming` once Redis holds it. At the first failure, or once the service drains,
/// the connection is `ending`, or the caller's access is revoked, it stops reading. It still acknowledges the batches
/// in flight that are stored, and then ends with that failure.
pub(super) fn acknowledgements(
    service: Arc<Inner>,
    caller: Caller,
    incoming: Streaming<CollectStreamRequest>,
    ending: ConnectionClosing,
) -> impl Stream<Item = Result<CollectStreamResponse, Status>> + Send {
    let (drain, revoked) = (service.drain.clone(), caller.revoked(None));
    let stop = Box::pin(async move {
        tokio::select! {
            () = drain.cancelled() => Failure::shutting_down(),
            () = ending.wait() => Failure::shutting_down(),
            failure = revoked => failure,
        }
    });
    let flow = Flow {
        service,
        caller,
        incoming,
        stop,
        waiting: None,
        in_flight: FuturesUnordered::new(),
        reading: true,
        end: None,
    };
    stream::unfold(flow, |mut flow| async move { flow.next().await.map(|item| (item, flow)) })
}

impl Flow {
    async fn next(&mut self) -> Option<Result<CollectStreamResponse, Status>> {
        loop {
            let space = self.in_flight.len() < BATCHES_IN_FLIGHT && self.waiting.is_none();
            tokio::select! {
                Some((sequence, done)) = self.in_flight.next() => match done {
                    Ok(acknowledgement) => return Some(Ok(acknowledgement)),
                    Err(failure) => self.end_with(failure.with("sequence", sequence)),
                },
                Some(slot) = slot(&mut self.waiting), if self.waiting.is_some() => self.send(slot),
                read = self.incoming.message(), if self.reading && space => match read {
                    Ok(Some(batch)) => self.receive(batch),
                    Ok(None) => self.reading = false,
                    Err(status) => self.end_with(refused_by_tonic(&status).map_or(status, Status::from)),
                },
                failure = &mut self.stop, if self.reading => self.end_with(failure),
                else => return self.end.take().map(Err),
            }
        }
    }

    fn receive(&mut self, batch: CollectStreamRequest) {
        let CollectStreamRequest { sequence, app_id, credentials } = batch;
        // The permissions of callers may change while a stream is open, so they are checked again for each batch.
        let sorted = self.caller.renewed().and_then(|caller| self.service.sort(&caller, app_id, credentials));
        match sorted {
            Ok((_, app, sorted)) => {
                let slot = Box::pin(self.service.ingest.slot(sorted.good.len()));
                self.waiting = Some(WaitingBatch { sequence, app, sorted, slot });
            }
            Err(failure) => self.end_with(failure.with("sequence", sequence)),
        }
    }

    /// Sends the batch that waited for queue capacity.
    fn send(&mut self, slot: Result<QueueSlot, Failure>) {
        let Some(batch) = self.waiting.take() else { return };
        let WaitingBatch { sequence, app, sorted: Sorted { good, refused }, .. } = batch;
        match slot {
            Ok(slot) => {
                let service = Arc::clone(&self.service);
                self.in_flight.push(Box::pin(async move {
                    let count = good.len();
                    let stored = service.ingest.store(app, good, slot).await;
                    (sequence, stored.map(|found| credentials::acknowledgement(sequence, count, &found, refused)))
                }));
            }
            Err(failure) => self.end_with(failure.with("sequence", sequence)),
        }
    }

    fn end_with(&mut self, failure: impl Into<Status>) {
        self.reading = false;
        self.end.get_or_insert_with(|| failure.into());
    }
}

async fn slot(waiting: &mut Option<WaitingBatch>) -> Option<Result<QueueSlot, Failure>> {
    Some((&mut waiting.as_mut()?.slot).await)
}
