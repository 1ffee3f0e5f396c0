//! A token server in place of WeChat's token endpoints.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use dispatcher::token_source::{TokenPath, TokenServer, TokenSource};
use tokio::net::TcpListener;

/// One request to the server.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: Method,
    pub uri: String,
    pub headers: HeaderMap,
    pub body: String,
}

#[derive(Clone)]
pub struct Tokens {
    pub url: String,
    answer: Arc<Mutex<(u16, String)>>,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Tokens {
    /// Starts a server that answers every request with this body.
    pub async fn start(body: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/tokens?key=CANARY-key", listener.local_addr().unwrap());
        let server = Self { url, answer: Arc::default(), requests: Arc::default() };
        server.answers(200, body);
        let routes = Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        server
    }

    pub fn answers(&self, status: u16, body: &str) {
        *self.answer.lock().unwrap() = (status, body.to_owned());
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub fn calls(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    pub fn settings(&self) -> TokenServer {
        TokenServer {
            url: self.url.parse().unwrap(),
            method: Method::GET,
            headers_file: None,
            path: TokenPath::default(),
            report: None,
        }
    }

    pub fn source(&self) -> TokenSource {
        TokenSource::Server(self.settings())
    }
}

async fn answer(
    State(server): State<Tokens>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, String) {
    let body = String::from_utf8(body.to_vec()).unwrap();
    server.requests.lock().unwrap().push(Request { method, uri: uri.to_string(), headers, body });
    let (status, body) = server.answer.lock().unwrap().clone();
    (StatusCode::from_u16(status).unwrap(), body)
}
