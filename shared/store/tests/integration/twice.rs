//! A proxy that sends every script call to Redis twice, as a client does when a reply is lost. It returns the first
//! reply, so a test sees what the second call changed.

use std::collections::HashSet;

use testing::{Redis, resp};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Scripts that are known to count again when they are repeated: see `connections` in the store.
const ADD_UP: [&[u8]; 3] = [b"'count: ", b"'streak: ", b"'page: "];

/// Starts the proxy in front of a Redis. Returns its URL.
pub async fn before(redis: &Redis) -> String {
    let server = redis.url().strip_prefix("redis://").unwrap().to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&server).await.unwrap();
            tokio::spawn(pass_on(Pipe::new(client), Pipe::new(server)));
        }
    });
    url
}

async fn pass_on(mut client: Pipe, mut server: Pipe) {
    let mut once = HashSet::new();
    while let Some(command) = client.read().await {
        server.stream.write_all(&command).await.unwrap();
        let Some(answer) = server.read().await else { return };
        let has = |text: &[u8]| command.windows(text.len()).any(|window| window == text);
        let sha =
            |text: &[u8]| text.windows(40).find(|word| word.iter().all(u8::is_ascii_hexdigit)).map(<[u8]>::to_vec);
        if has(b"\r\nLOAD\r\n") && ADD_UP.iter().any(|name| has(name)) {
            once.extend(sha(&answer));
        }
        if has(b"\r\nEVALSHA\r\n") && sha(&command).is_some_and(|sha| !once.contains(&sha)) {
            server.stream.write_all(&command).await.unwrap();
            let _ = server.read().await;
        }
        client.stream.write_all(&answer).await.unwrap();
    }
}

/// Splits a byte stream into commands or replies.
struct Pipe {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Pipe {
    fn new(stream: TcpStream) -> Self {
        Self { stream, read: Vec::new() }
    }

    async fn read(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(length) = resp::length(&self.read) {
                let rest = self.read.split_off(length);
                return Some(std::mem::replace(&mut self.read, rest));
            }
            if self.stream.read_buf(&mut self.read).await.ok()? == 0 {
                return None;
            }
        }
    }
}
