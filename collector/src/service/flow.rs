//! CollectStream: batches in, acknowledgements out.
//!
//! The flow is driven by whoever reads the acknowledgements: nothing is read from the caller while [`BATCHES_IN_FLIGHT`]
//! batches are on their way to Redis or the caller does not read, so HTTP/2 flow control slows the caller down.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, FuturesUnordered, Stream, StreamExt as _};
use shared::proto::{CollectStreamRequest, CollectStreamResponse};
use shared::status::Failure;
use tokio::sync::watch;
use tonic::{Status, Streaming};

use super::Inner;
use super::convert::{self, Sorted};

/// The most batches of one stream on their way at once: 32,000 credentials.
const BATCHES_IN_FLIGHT: usize = 32;

/// The batch's sequence number, which a failure is reported with, and what became of it.
type Done = (u64, Result<CollectStreamResponse, Failure>);

struct Flow {
    service: Arc<Inner>,
    incoming: Streaming<CollectStreamRequest>,
    stopping: watch::Receiver<bool>,
    in_flight: FuturesUnordered<BoxFuture<'static, Done>>,
    /// Whether to read on.
    open: bool,
    /// What the stream ends with, once everything in flight is answered; OK if nothing.
    end: Option<Status>,
}

/// Acknowledges the batches of `incoming`, each once Redis holds it. At the first failure, or once `stopping` becomes
/// true, it reads no more, acknowledges what still reaches Redis, and ends with that failure.
pub(super) fn acknowledgements(
    service: Arc<Inner>,
    incoming: Streaming<CollectStreamRequest>,
    stopping: watch::Receiver<bool>,
) -> impl Stream<Item = Result<CollectStreamResponse, Status>> + Send {
    let flow = Flow { service, incoming, stopping, in_flight: FuturesUnordered::new(), open: true, end: None };
    stream::unfold(flow, |mut flow| async move { flow.next().await.map(|item| (item, flow)) })
}

impl Flow {
    async fn next(&mut self) -> Option<Result<CollectStreamResponse, Status>> {
        loop {
            let room = self.in_flight.len() < BATCHES_IN_FLIGHT;
            tokio::select! {
                Some((sequence, done)) = self.in_flight.next() => match done {
                    Ok(acknowledgement) => return Some(Ok(acknowledgement)),
                    Err(failure) => self.end_with(failure.with("sequence", sequence)),
                },
                read = self.incoming.message(), if self.open && room => match read {
                    Ok(Some(batch)) => self.begin(batch),
                    Ok(None) => self.open = false,
                    Err(status) => self.end_with(status),
                },
                () = stop(&mut self.stopping), if self.open => self.end_with(Failure::shutting_down()),
                else => return self.end.take().map(Err),
            }
        }
    }

    fn begin(&mut self, batch: CollectStreamRequest) {
        let CollectStreamRequest { sequence, app_id, credentials } = batch;
        match self.service.sort(app_id, credentials) {
            Ok((app, Sorted { good, refused })) => {
                let service = Arc::clone(&self.service);
                self.in_flight.push(Box::pin(async move {
                    let count = good.len();
                    let stored = service.store(app, good).await;
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

/// Waits until streams are to end; a sender that is gone tells the same.
async fn stop(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
}
