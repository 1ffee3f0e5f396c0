//! Connections that break on request. The handler of a call sets how; the connection breaks at its next write.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

const WHOLE: u8 = 0;
const CUT: u8 = 1;
const RESET: u8 = 2;
const MID: u8 = 3;

/// Number of bytes that a cut answer lacks: enough that its JSON is incomplete.
const LACKING: usize = 5;

/// The handler's control over its connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wire(Arc<AtomicU8>);

impl Wire {
    /// Closes the connection instead of answering.
    pub(crate) fn cut(&self) {
        self.0.store(CUT, Ordering::Release);
    }

    /// Resets the connection instead of answering.
    pub(crate) fn reset(&self) {
        self.0.store(RESET, Ordering::Release);
    }

    /// Closes the connection shortly before the end of the answer.
    pub(crate) fn cut_mid(&self) {
        self.0.store(MID, Ordering::Release);
    }
}

impl Connected<IncomingStream<'_, WireListener>> for Wire {
    fn connect_info(stream: IncomingStream<'_, WireListener>) -> Self {
        stream.io().wire.clone()
    }
}

/// A TCP listener whose connections have a [`Wire`].
pub(crate) struct WireListener(pub(crate) TcpListener);

impl Listener for WireListener {
    type Io = WireStream;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match self.0.accept().await {
                Ok((tcp, address)) => {
                    // Answers are small and callers wait for each one, so Nagle's algorithm could only delay them.
                    if let Err(error) = tcp.set_nodelay(true) {
                        tracing::debug!(%error, "TCP_NODELAY could not be set");
                    }
                    return (WireStream { tcp, wire: Wire::default() }, address);
                }
                Err(error) => {
                    // Usually the process is out of file descriptors. A retry helps only after other connections have
                    // closed.
                    tracing::warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

/// A connection that breaks as its [`Wire`] says.
pub(crate) struct WireStream {
    tcp: TcpStream,
    wire: Wire,
}

impl AsyncRead for WireStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for WireStream {
    // Vectored writes are deliberately not supported: so an answer is written in one piece, head and body, and the
    // piece can be cut at its end.
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.wire.0.load(Ordering::Acquire) {
            WHOLE => Pin::new(&mut self.tcp).poll_write(cx, buf),
            MID if buf.len() > LACKING => Pin::new(&mut self.tcp).poll_write(cx, &buf[..buf.len() - LACKING]),
            RESET => {
                if let Err(error) = self.tcp.set_zero_linger() {
                    tracing::warn!(%error, "a connection is closed instead of reset");
                }
                Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
            }
            _ => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
