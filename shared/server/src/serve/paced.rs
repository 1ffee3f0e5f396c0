//! Reads from a peer in turns, so that one poll of a connection reads a bounded amount.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// About how many bytes are read in one turn.
const TURN: usize = 16 << 10;

/// A connection that pauses after each turn. HTTP/2 reads until nothing is left to read before it passes calls on.
/// Without a pause it would collect as many calls, including calls that were already reset, as the peer can send
/// meanwhile.
#[derive(Debug)]
pub(super) struct PacedStream<S> {
    stream: S,
    left: usize,
}

impl<S> PacedStream<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, left: TURN }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PacedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.left == 0 {
            self.left = TURN;
            // The task goes to the end of the run queue, behind the calls that it has just begun.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = into.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, into);
        let read = into.filled().len() - before;
        self.left = if polled.is_pending() { TURN } else { self.left.saturating_sub(read) };
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PacedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn each_turn_ends_with_a_pause_and_nothing_is_lost() {
        let (mut peer, stream) = tokio::io::duplex(4 * TURN);
        let sent: Vec<u8> = (0..3 * TURN).map(|n| (n % 251) as u8).collect();
        peer.write_all(&sent).await.unwrap();
        drop(peer);
        let mut stream = PacedStream::new(stream);
        let (mut received, mut piece, mut pauses, mut in_turn) = (Vec::new(), vec![0; 8 << 10], 0, 0);
        loop {
            let read = std::future::poll_fn(|context| {
                let mut read = pin_read(&mut stream, &mut piece);
                Poll::Ready(read(context))
            });
            match read.await {
                Poll::Pending => (pauses, in_turn) = (pauses + 1, 0),
                Poll::Ready(0) => break,
                Poll::Ready(count) => {
                    received.extend_from_slice(&piece[..count]);
                    in_turn += count;
                    assert!(in_turn < TURN + piece.len(), "one turn reads {in_turn} bytes");
                }
            }
        }
        assert_eq!(received, sent);
        assert_eq!(pauses, 3);
        assert_eq!(stream.read(&mut piece).await.unwrap(), 0);
    }

    /// Polls once and returns how many bytes were read.
    fn pin_read<'a>(
        stream: &'a mut PacedStream<tokio::io::DuplexStream>,
        piece: &'a mut [u8],
    ) -> impl FnMut(&mut Context<'_>) -> Poll<usize> + 'a {
        move |context| {
            let mut into = ReadBuf::new(piece);
            let polled = Pin::new(&mut *stream).poll_read(context, &mut into);
            polled.map(|read| read.map(|()| into.filled().len()).unwrap())
        }
    }
}
