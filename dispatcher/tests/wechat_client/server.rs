//! An HTTP server that reads requests completely and answers them as configured.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// How the server answers each request.
#[derive(Clone)]
pub enum Habit {
    /// Writes this and keeps the connection open.
    Answer(String),
    /// Writes this and closes the connection.
    Cut(String),
    /// Never answers.
    Hang,
}

pub struct Server {
    pub url: String,
    pub connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Starts a server on a free port.
    pub async fn start(habit: Habit) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Self { url, connections: Arc::default(), requests: Arc::default() };
        let (connections, requests) = (Arc::clone(&server.connections), Arc::clone(&server.requests));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(stream, habit.clone(), Arc::clone(&requests)));
            }
        });
        server
    }

    /// Every request so far, as it was received.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, habit: Habit, requests: Arc<Mutex<Vec<String>>>) {
    let mut bytes = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk).await {
            Ok(read @ 1..) => bytes.extend_from_slice(&chunk[..read]),
            _ => return,
        }
        if !complete(&bytes) {
            continue;
        }
        requests.lock().unwrap().push(String::from_utf8(std::mem::take(&mut bytes)).unwrap());
        match &habit {
            Habit::Answer(text) => stream.write_all(text.as_bytes()).await.unwrap(),
            Habit::Cut(text) => {
                stream.write_all(text.as_bytes()).await.unwrap();
                return;
            }
            Habit::Hang => {}
        }
    }
}

/// Whether the request has been received completely.
fn complete(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    body.len() >= length.map_or(0, |length| length.parse().unwrap())
}

pub fn http(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

pub fn ok(body: &str) -> Habit {
    Habit::Answer(http("200 OK", body))
}
