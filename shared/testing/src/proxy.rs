//! A TCP proxy that adds latency.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Forwards connections with a delay in each direction, as long as the runtime lives. Returns the address of the proxy.
pub async fn slowed(to: SocketAddr, delay: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((from, _)) = listener.accept().await {
            let Ok(to) = TcpStream::connect(to).await else { continue };
            let ((from_reader, from_writer), (to_reader, to_writer)) = (from.into_split(), to.into_split());
            for (mut reader, mut writer) in [(from_reader, to_writer), (to_reader, from_writer)] {
                let (pass, mut passed) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
                tokio::spawn(async move {
                    let mut piece = vec![0; 1 << 16];
                    while let Ok(count @ 1..) = reader.read(&mut piece).await {
                        if pass.send((Instant::now() + delay, piece[..count].to_vec())).is_err() {
                            return;
                        }
                    }
                });
                tokio::spawn(async move {
                    while let Some((at, piece)) = passed.recv().await {
                        tokio::time::sleep_until(at).await;
                        if writer.write_all(&piece).await.is_err() {
                            return;
                        }
                    }
                });
            }
        }
    });
    address
}
