//! Response bodies that hold a resource until they are sent, and streams that end with their connection.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use super::connections::ConnectionClosing;
use crate::rpc::status::Failure;

type Bytes = <Body as HttpBody>::Data;
type Polled = Poll<Option<Result<Frame<Bytes>, Status>>>;

/// A body that holds a resource until it is sent or dropped.
pub(super) struct HoldUntilEnd<T> {
    body: Body,
    _held: T,
}

impl<T> HoldUntilEnd<T> {
    pub(super) fn new(body: Body, held: T) -> Self {
        Self { body, _held: held }
    }
}

impl<T: Unpin> HttpBody for HoldUntilEnd<T> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Polled {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a stream that has no end of its own, such as a health watch. It ends with its connection, or earlier.
pub(super) struct EndedWithConnection {
    body: Body,
    ending: Option<Pin<Box<dyn Future<Output = Failure> + Send>>>,
}

impl EndedWithConnection {
    pub(super) fn new(body: Body, ending: &ConnectionClosing) -> Self {
        Self::or(body, ending, std::future::pending())
    }

    /// Like [`EndedWithConnection::new`], but also ends when `earlier` completes.
    pub(super) fn or(
        body: Body,
        ending: &ConnectionClosing,
        earlier: impl Future<Output = Failure> + Send + 'static,
    ) -> Self {
        let connection = ending.wait();
        let ending = async {
            tokio::select! {
                () = connection => Failure::shutting_down(),
                failure = earlier => failure,
            }
        };
        Self { body, ending: Some(Box::pin(ending)) }
    }
}

impl HttpBody for EndedWithConnection {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Polled {
        let Some(ending) = &mut self.ending else { return Poll::Ready(None) };
        let Poll::Ready(failure) = ending.as_mut().poll(context) else {
            return Pin::new(&mut self.body).poll_frame(context);
        };
        self.ending = None;
        let mut trailers = HeaderMap::new();
        Status::from(failure).add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    // An error response has no body. This must remain visible here, or its status would be sent in a place where
    // clients do not look for it.
    fn is_end_stream(&self) -> bool {
        self.ending.is_none() || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_end_stream() { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}
