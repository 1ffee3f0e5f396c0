//! Connections that end in the middle of calls, in the ways of HTTP/2. All calls on a connection end with it, and their
//! outcomes are unknown.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sandbox::Sandbox;
use testing::http2::{DATA, GOAWAY, HEADERS, RST_STREAM};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::{APP, Client, Ended, Fixture, Service, all_delivered};

const MESSAGES: usize = 6;
/// The HTTP/2 error code with which a server rejects a peer that it considers an attacker.
const ENHANCE_YOUR_CALM: u32 = 11;

/// Starts a proxy between clients and a service. For each message that WeChat has received, it ends a connection in one
/// of these ways instead of passing the answer on. The answer to the repeated call is passed on.
async fn tearing(to: SocketAddr, sandbox: Sandbox, torn: Arc<AtomicU64>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(pass_on(client, to, sandbox.clone(), Arc::clone(&torn)));
        }
    });
    address
}

async fn pass_on(client: TcpStream, to: SocketAddr, sandbox: Sandbox, torn: Arc<AtomicU64>) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_service, mut to_service) = TcpStream::connect(to).await?.into_split();
    let requests = tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_service).await });
    loop {
        let mut frame = vec![0; 9];
        from_service.read_exact(&mut frame).await?;
        let (length, kind) = (u32::from_be_bytes([0, frame[0], frame[1], frame[2]]), frame[3]);
        frame.resize(9 + length as usize, 0);
        from_service.read_exact(&mut frame[9..]).await?;
        let delivered = sandbox.books(Some(APP)).unwrap().delivered;
        if matches!(kind, DATA | HEADERS) && delivered > torn.load(Ordering::Relaxed) {
            torn.store(delivered, Ordering::Relaxed);
            let calm = ENHANCE_YOUR_CALM.to_be_bytes();
            let ending = match delivered % 3 {
                0 => [&[0, 0, 4, RST_STREAM, 0], &frame[5..9], &calm].concat(),
                // The last stream id of 0 says that the call was not processed, which is wrong; the largest id says
                // nothing about it.
                1 => [&[0, 0, 8, GOAWAY, 0, 0, 0, 0, 0][..], &[0; 4], &calm].concat(),
                _ => [&[0, 0, 8, GOAWAY, 0, 0, 0, 0, 0][..], &(u32::MAX >> 1).to_be_bytes(), &calm].concat(),
            };
            to_client.write_all(&ending).await?;
            requests.abort();
            return to_client.shutdown().await;
        }
        to_client.write_all(&frame).await?;
    }
}

async fn repeats_what_was_torn(client: impl FnOnce(&Fixture, &str) -> Option<Command>) {
    let fixture = Fixture::start(&[]).await;
    let (torn, dispatcher) = (Arc::default(), fixture.addresses(Service::Dispatcher)[0].parse().unwrap());
    let between = tearing(dispatcher, fixture.sandbox.clone(), Arc::clone(&torn)).await;
    let Some(mut command) = client(&fixture, &between.to_string()) else { return };
    command.args(["--at-once", "1"]);
    let Ended { well, lines, told, .. } = Client::start(command, fixture.orders(MESSAGES), Duration::ZERO).end().await;
    assert_eq!(lines, all_delivered(MESSAGES), "{told}");
    assert!(well);
    assert_eq!(torn.load(Ordering::Relaxed), MESSAGES as u64, "{told}");
    let books = fixture.books();
    assert_eq!((books.delivered, books.delivered_twice), (MESSAGES as u64, 0), "{books:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rust_client_retries_calls_of_a_lost_connection() {
    repeats_what_was_torn(|fixture, dispatcher| Some(fixture.rust_by(dispatcher))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_client_retries_calls_of_a_lost_connection() {
    repeats_what_was_torn(|fixture, dispatcher| fixture.python_by(dispatcher)).await;
}
