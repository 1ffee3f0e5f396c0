//! What a peer still sends of a request that is answered early.
//!
//! Many calls end before all of their request has arrived: those that are refused, whose deadline passes, whose message is
//! too large or malformed, and streams that fail. Were the content simply dropped, HTTP/2 would reset the stream, and what
//! the peer had sent by then would arrive on a stream that is closed. Each such frame counts as an error of the peer's, and
//! too many of them in the life of a connection end it, with every other call on it. So the rest is read and thrown away,
//! beside the answer, until the peer has sent all or has noticed the answer.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use prost::bytes::Buf as _;

/// How much is read at most, in bytes, and how long. After that the stream is reset.
const MOST: usize = 16 << 20;
const BOUND: Duration = Duration::from_secs(10);

/// The content of a request, whose rest is read and thrown away when this is dropped early.
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
        // Most often all of it is here, or the peer has given up: then there is nothing to wait for.
        if rest.read(&mut Context::from_waker(Waker::noop())).is_ready() {
            return;
        }
        // At the very end of the process there is no runtime any more.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let all =
                async move { tokio::time::timeout(BOUND, std::future::poll_fn(|context| rest.read(context))).await };
            drop(runtime.spawn(all));
        }
    }
}

/// What is still to come.
struct Rest<B> {
    body: B,
    left: usize,
}

impl<B: HttpBody + Unpin> Rest<B> {
    fn new(body: B) -> Self {
        Self { body, left: MOST }
    }

    /// Reads on; ready when it was the end, the peer has given up, or it was too much.
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

    /// A body that comes as a test sends it.
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
    async fn the_rest_of_a_request_is_read_until_its_end_or_its_bound() {
        let (sender, receiver) = mpsc::channel(1);
        drop(DiscardRest::new(Sent(receiver)));
        for _ in 0..100 {
            sender.send(Bytes::from_static(&[0; 1000])).await.unwrap();
        }
        let mut sent = 100_000;
        while sender.send(Bytes::from(vec![0; 1 << 20])).await.is_ok() {
            sent += 1 << 20;
            assert!(sent < 2 * MOST, "it is read without a bound");
        }
        assert!(sent > MOST - (1 << 20), "{sent}");
    }

    #[tokio::test]
    async fn what_was_read_to_its_end_is_not_read_again() {
        let (sender, receiver) = mpsc::channel(1);
        let mut body = DiscardRest::new(Sent(receiver));
        drop(sender);
        assert!(std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await.is_none());
        assert!(body.is_end_stream());
    }
}
