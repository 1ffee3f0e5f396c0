//! Bodies with something around them: what must be held until an answer is sent, streams that end with their connection,
//! and requests that must arrive in time.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;
use tonic::body::Body;
use tonic::{Code, Status};

use super::connections::Ending;
use crate::status::Failure;

type Bytes = <Body as HttpBody>::Data;
type Polled = Poll<Option<Result<Frame<Bytes>, Status>>>;

/// A body that holds something until it is sent or given up.
pub(super) struct Held<T> {
    body: Body,
    _held: T,
}

impl<T> Held<T> {
    pub(super) fn new(body: Body, held: T) -> Self {
        Self { body, _held: held }
    }
}

impl<T: Unpin> HttpBody for Held<T> {
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

/// A stream that has no end of its own, such as one that watches health: it ends with its connection.
pub(super) struct EndedWithConnection {
    body: Body,
    ending: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl EndedWithConnection {
    pub(super) fn new(body: Body, ending: &Ending) -> Self {
        Self { body, ending: Some(Box::pin(ending.wait())) }
    }
}

impl HttpBody for EndedWithConnection {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Polled {
        let Some(ending) = &mut self.ending else { return Poll::Ready(None) };
        if ending.as_mut().poll(context).is_pending() {
            return Pin::new(&mut self.body).poll_frame(context);
        }
        self.ending = None;
        let mut trailers = HeaderMap::new();
        Status::from(Failure::shutting_down()).add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

/// A request that must have arrived, whole, within a bound, lest those that never do take up all the room for calls.
pub(super) struct Prompt {
    body: Body,
    bound: Pin<Box<Sleep>>,
}

impl Prompt {
    pub(super) fn new(body: Body, bound: Duration) -> Self {
        Self { body, bound: Box::pin(tokio::time::sleep(bound)) }
    }
}

impl HttpBody for Prompt {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Polled {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        std::task::ready!(self.bound.as_mut().poll(context));
        let late = Failure::new(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", "the request did not arrive in time");
        Poll::Ready(Some(Err(late.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt as _;

    use super::*;

    /// A request that never comes.
    struct Never;

    impl HttpBody for Never {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Polled {
            Poll::Pending
        }
    }

    async fn frame(
        body: &mut (impl HttpBody<Data = Bytes, Error = Status> + Unpin),
    ) -> Option<Result<Frame<Bytes>, Status>> {
        std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await
    }

    #[tokio::test]
    async fn a_request_that_does_not_arrive_is_given_up() {
        let mut body = Prompt::new(Body::new(Never), Duration::from_millis(10));
        let late = frame(&mut body).await.unwrap().unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded);
        assert_eq!(late.get_error_details().error_info().unwrap().reason, "DEADLINE_EXCEEDED");
    }
}
