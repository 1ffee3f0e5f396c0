//! The page that Prometheus reads: `/metrics` on a port of its own, and nothing else there. It talks to nobody, so it
//! answers while Redis or WeChat do not.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tracing::{error, info};

use super::registry::Registry;

/// The text format that every Prometheus reads.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The page while it is served. Dropped, it takes in no more, closes its idle connections, and finishes the others.
#[derive(Debug)]
#[must_use = "the page is served until this is dropped"]
pub struct Page {
    _stop: Option<oneshot::Sender<()>>,
}

impl Page {
    /// Serves these metrics; nothing where there is no listener.
    pub fn open(listener: Option<TcpListener>, registry: &Registry) -> Self {
        let Some(listener) = listener else { return Self { _stop: None } };
        if let Ok(listen) = listener.local_addr() {
            info!(%listen, "metrics");
        }
        let routes = Router::new().route("/metrics", get(text)).with_state(registry.clone());
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(async move {
            let served = axum::serve(listener, routes).with_graceful_shutdown(async {
                let _ = stopped.await;
            });
            if let Err(error) = served.await {
                error!(%error, "metrics are no longer served");
            }
        });
        Self { _stop: Some(stop) }
    }
}

async fn text(State(registry): State<Registry>) -> Response {
    match registry.text() {
        Ok(text) => ([(CONTENT_TYPE, TEXT)], text).into_response(),
        Err(error) => {
            error!(%error, "metrics can not be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
