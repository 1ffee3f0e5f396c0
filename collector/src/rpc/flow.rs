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
use tokio::sync::watch;
use tonic::{Status, Streaming};

use super::Inner;
use super::convert::{self, Sorted};
use crate::ingest::QueueSlot;

/// The maximum number of batches of one stream in flight: 32,000 credentials.
const BATCHES_IN_FLIGHT: usize = 32;

/// The sequence number of a batch, which is added to a failure, and its result.
type Done = (u64, Result<CollectStreamResponse, Failure>);

/// A batch that waits for queue capacity.
struct Entering {
    sequence: u64,
    app: usize,
    sorted: Sorted,
    room: BoxFuture<'static, Result<QueueSlot, Failure>>,
}

struct Flow {
    service: Arc<Inner>,
    caller: Caller,
    incoming: Streaming<CollectStreamRequest>,
    /// Resolves with the reason when the stream must end: the service shuts down, the connection is closing, or the
    /// caller's access was revoked.
    stop: BoxFuture<'static, Failure>,
    entering: Option<Entering>,
    in_flight: FuturesUnordered<BoxFuture<'static, Done>>,
    /// Whether more batches are read.
    open: bool,
    /// The status that the stream ends with once everything in flight is answered; OK if `None`.
    end: Option<Status>,
}

/// Acknowledges each batch of `incoming` once Redis holds it. At the first failure, or once `stopping` becomes true,
/// the connection is `ending`, or the caller's access is revoked, it stops reading. It still acknowledges the batches
/// in flight that are stored, and then ends with that failure.
pub(super) fn acknowledgements(
    service: Arc<Inner>,
    caller: Caller,
    incoming: Streaming<CollectStreamRequest>,
    stopping: watch::Receiver<bool>,
    ending: ConnectionClosing,
) -> impl Stream<Item = Result<CollectStreamResponse, Status>> + Send {
    let stop = Box::pin(stop(stopping, ending, caller.revoked(None)));
    let flow = Flow {
        service,
        caller,
        incoming,
        stop,
        entering: None,
        in_flight: FuturesUnordered::new(),
        open: true,
        end: None,
    };
    stream::unfold(flow, |mut flow| async move { flow.next().await.map(|item| (item, flow)) })
}

impl Flow {
    async fn next(&mut self) -> Option<Result<CollectStreamResponse, Status>> {
        loop {
            let space = self.in_flight.len() < BATCHES_IN_FLIGHT && self.entering.is_none();
            tokio::select! {
                Some((sequence, done)) = self.in_flight.next() => match done {
                    Ok(acknowledgement) => return Some(Ok(acknowledgement)),
                    Err(failure) => self.end_with(failure.with("sequence", sequence)),
                },
                Some(room) = room(&mut self.entering), if self.entering.is_some() => self.enter(room),
                read = self.incoming.message(), if self.open && space => match read {
                    Ok(Some(batch)) => self.begin(batch),
                    Ok(None) => self.open = false,
                    Err(status) => self.end_with(refused_by_tonic(&status).map_or(status, Status::from)),
                },
                failure = &mut self.stop, if self.open => self.end_with(failure),
                else => return self.end.take().map(Err),
            }
        }
    }

    fn begin(&mut self, batch: CollectStreamRequest) {
        let CollectStreamRequest { sequence, app_id, credentials } = batch;
        // The permissions of callers may change while a stream is open, so they are checked again for each batch.
        let sorted = self.caller.renewed().and_then(|caller| self.service.sort(&caller, app_id, credentials));
        match sorted {
            Ok((_, app, sorted)) => {
                let room = Box::pin(self.service.ingest.room(sorted.good.len()));
                self.entering = Some(Entering { sequence, app, sorted, room });
            }
            Err(failure) => self.end_with(failure.with("sequence", sequence)),
        }
    }

    /// Sends the batch that waited for queue capacity.
    fn enter(&mut self, room: Result<QueueSlot, Failure>) {
        let Some(Entering { sequence, app, sorted: Sorted { good, refused }, .. }) = self.entering.take() else {
            return;
        };
        match room {
            Ok(room) => {
                let service = Arc::clone(&self.service);
                self.in_flight.push(Box::pin(async move {
                    let count = good.len();
                    let stored = service.ingest.store(app, good, room).await;
                    (sequence, stored.map(|found| convert::acknowledgement(sequence, count, &found, refused)))
                }));
            }
            Err(failure) => self.end_with(failure.with("sequence", sequence)),
        }
    }

    fn end_with(&mut self, failure: impl Into<Status>) {
        self.open = false;
        self.end.get_or_insert_with(|| failure.into());
    }
}

/// Waits for the queue capacity of the waiting batch.
async fn room(entering: &mut Option<Entering>) -> Option<Result<QueueSlot, Failure>> {
    match entering {
        Some(entering) => Some((&mut entering.room).await),
        None => None,
    }
}

/// Waits until the stream must end. A dropped `stopping` sender counts as a shutdown.
async fn stop(
    mut stopping: watch::Receiver<bool>,
    ending: ConnectionClosing,
    revoked: impl Future<Output = Failure>,
) -> Failure {
    tokio::select! {
        _ = stopping.wait_for(|stopping| *stopping) => Failure::shutting_down(),
        () = ending.wait() => Failure::shutting_down(),
        failure = revoked => failure,
    }
}
