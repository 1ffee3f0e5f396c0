//! Serves the metrics to Prometheus: `/metrics` on a port of its own, with no other path. It depends on no other
//! system, so it answers while Redis or WeChat are down.

use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt as _;
use tracing::{debug, error, info};

use super::registry::Registry;
use crate::serve::accept::{Acceptor, Bounds, Opened};

/// The content type of Prometheus' text format, which every version of Prometheus reads.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Enough connections for several Prometheus servers. The idle timeout is longer than a usual scrape interval.
const BOUNDS: Bounds =
    Bounds { listener: "metrics", connections: 32, idle: Duration::from_secs(120), replace_busy: true };

/// How long a connection may take to finish its response when it is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The metrics endpoint. When this is dropped, it accepts no more connections, closes idle ones, and finishes
/// responses.
#[derive(Debug)]
#[must_use = "the page is served until this is dropped"]
pub struct Page {
    _stop: Option<DropGuard>,
}

impl Page {
    /// Serves the metrics of `registry`. Does nothing if `listener` is `None`.
    pub fn open(listener: Option<TcpListener>, registry: &Registry) -> Self {
        let Some(listener) = listener else { return Self { _stop: None } };
        if let Ok(listen) = listener.local_addr() {
            info!(%listen, "metrics");
        }
        let routes = Router::new().route("/metrics", get(text)).with_state(registry.clone());
        let (stop, mut acceptor) = (CancellationToken::new(), Acceptor::new(listener, BOUNDS));
        let stopped = stop.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    (stream, opened) = acceptor.next() => {
                        tokio::spawn(drive(stream, opened, routes.clone(), stopped.clone()));
                    }
                    () = stopped.cancelled() => return,
                }
            }
        });
        Self { _stop: Some(stop.drop_guard()) }
    }
}

/// Serves one connection until it ends or `stop` is cancelled.
async fn drive(stream: TcpStream, opened: Opened, routes: Router, stop: CancellationToken) {
    let service = service_fn(|request: Request<Incoming>| {
        let (answer, call) = (routes.clone().oneshot(request), opened.usage().begin());
        async move {
            let answer = answer.await;
            drop(call);
            answer
        }
    });
    let mut builder = Builder::new();
    // The timeout starts at the end of the previous response.
    builder.timer(TokioTimer::new()).header_read_timeout(BOUNDS.idle);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                debug!(%error, "a metrics connection failed");
            }
            return;
        }
        () = opened.replaced() => return,
        () = opened.idle_too_long() => {}
        () = stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        _ = connection => {}
        () = opened.replaced() => {}
        () = sleep(CLOSE_TIMEOUT) => {}
    }
}

async fn text(State(registry): State<Registry>) -> Response {
    match registry.text() {
        Ok(text) => ([(CONTENT_TYPE, TEXT)], text).into_response(),
        Err(error) => {
            error!(%error, "the metrics cannot be encoded");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
