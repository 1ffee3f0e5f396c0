//! Reads and discards the rest of a request that was answered early.
//!
//! Many calls end before all of their request has arrived: calls that are rejected, whose deadline passes, or whose
//! message is too large or malformed, and streams that fail. If the body were simply dropped, HTTP/2 would reset the
//! stream. What the peer had already sent would then arrive on a closed stream. Each such frame counts as an error of
//! the peer, and too many of them in the life of a connection end it, with every other call on it. So the rest is read
//! and discarded while the response is sent, until the peer has sent everything or has noticed the response.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use prost::bytes::Buf as _;

/// The maximum number of bytes that are read, and the maximum time. After that, the stream is reset.
const MOST: usize = 16 << 20;
const BOUND: Duration = Duration::from_secs(10);

/// The body of a request. If it is dropped early, its rest is read and discarded.
pub(super) struct DiscardRest<B: HttpBody + Unpin + Send + 'static = Incoming>(Option<B>);

impl<B: HttpBody + Unpin + Send> DiscardRest<B> {
    pub(super) fn new(body: B) -> Self {
        Self(Some(body))
    }
}

impl<B: HttpBody + Unpin + Send> HttpBody for DiscardRest<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        let frame = std::task::ready!(Pin::new(body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            self.0 = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl<B: HttpBody + Unpin + Send + 'static> Drop for DiscardRest<B> {
    fn drop(&mut self) {
        let Some(mut rest) = self.0.take().filter(|body| !body.is_end_stream()).map(Rest::new) else { return };
        // Usually everything has already arrived, or the peer has reset the stream. Then there is nothing to wait for.
        if rest.read(&mut Context::from_waker(Waker::noop())).is_ready() {
            return;
        }
        // At the end of the process there may be no runtime.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let all =
                async move { tokio::time::timeout(BOUND, std::future::poll_fn(|context| rest.read(context))).await };
            drop(runtime.spawn(all));
        }
    }
}

struct Rest<B> {
    body: B,
    left: usize,
}

impl<B: HttpBody + Unpin> Rest<B> {
    fn new(body: B) -> Self {
        Self { body, left: MOST }
    }

    /// Continues to read. Ready at the end of the body, if the peer reset the stream, or if the maximum was reached.
    fn read(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(Ok(frame)) = std::task::ready!(Pin::new(&mut self.body).poll_frame(context)) else { break };
            let size = frame.data_ref().map_or(0, |data| data.remaining());
            let Some(left) = self.left.checked_sub(size) else { break };
            self.left = left;
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use prost::bytes::Bytes;
    use tokio::sync::mpsc;

    use super::*;

    /// A body whose data the test sends.
    struct Sent(mpsc::Receiver<Bytes>);

    impl HttpBody for Sent {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.poll_recv(context).map(|data| data.map(|data| Ok(Frame::data(data))))
        }
    }

    #[tokio::test]
    async fn rest_of_a_request_is_read_up_to_the_maximum() {
        let (sender, receiver) = mpsc::channel(1);
        drop(DiscardRest::new(Sent(receiver)));
        for _ in 0..100 {
            sender.send(Bytes::from_static(&[0; 1000])).await.unwrap();
        }
        let mut sent = 100_000;
        while sender.send(Bytes::from(vec![0; 1 << 20])).await.is_ok() {
            sent += 1 << 20;
            assert!(sent < 2 * MOST, "the rest is read without a limit");
        }
        assert!(sent > MOST - (1 << 20), "{sent}");
    }

    #[tokio::test]
    async fn body_that_was_read_to_its_end_is_not_read_again() {
        let (sender, receiver) = mpsc::channel(1);
        let mut body = DiscardRest::new(Sent(receiver));
        drop(sender);
        assert!(std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await.is_none());
        assert!(body.is_end_stream());
    }
}
