//! A strict local WeChat, for people who have no test account.
//!
//! It issues access tokens, takes template messages exactly as long as a user's form id or payment permits, and refuses
//! everything else with the code that WeChat would use. It misbehaves on demand ([`Rule`]) and keeps books of what was
//! delivered ([`Books`], [`Delivery`]), so that a test can compare what a sender believes with what users received.
//!
//! ```
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use sandbox::{Reading, Sandbox, Settings, Submission};
//!
//! let wechat = Sandbox::new(Settings::default());
//! wechat.add_app("wx1", "secret")?;
//! let ids = wechat.submit("wx1", vec![Submission::form("openid-1")])?;
//!
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let base_url = format!("http://{}", listener.local_addr()?);
//! tokio::spawn(sandbox::serve(listener, wechat.clone(), std::future::pending()));
//! // ... have something send `ids[0]` by way of `base_url` ...
//! assert_eq!(wechat.deliveries("wx1", &Reading::default())?.len(), 1);
//! # Ok(()) }
//! ```
//!
//! The rooms: `wechat` (its endpoints), `control` (the API under `/sandbox/`), `sandbox` (the handle behind both);
//! `app` (what a send changes, under one lock), made of `rights` and `book`; `tokens`; `message` (the body of a send);
//! `answer` (codes to JSON); `rules` and `faults` (when to misbehave) and `wire` (connections that break); `settings`, `clock`.

mod answer;
mod app;
mod book;
mod clock;
mod control;
mod faults;
mod message;
mod rights;
mod rules;
mod sandbox;
mod settings;
mod tokens;
mod wechat;
mod wire;

use std::time::Duration;

use tokio::net::TcpListener;

pub use book::{Books, Delivery, Reading};
pub use message::Keyword;
pub use rights::{Counts, Kind, Submission};
pub use rules::{Endpoint, FaultKind, Match, Rule};
pub use sandbox::{Refused, Sandbox};
pub use settings::Settings;

/// How long calls under way may go on after the end was asked for. Hanging ones would otherwise keep it waiting.
const DRAIN: Duration = Duration::from_secs(1);

/// Serves until `shutdown` completes, and then a second at most to answer what is under way.
///
/// # Errors
/// The listener's.
pub async fn serve(
    listener: TcpListener,
    sandbox: Sandbox,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let (ending, mut ended) = tokio::sync::watch::channel(());
    let service = sandbox.router().into_make_service_with_connect_info::<wire::Wire>();
    let server = axum::serve(wire::WireListener(listener), service).with_graceful_shutdown(async move {
        shutdown.await;
        // Nobody is there to hear it only if the server is gone already.
        _ = ending.send(());
    });
    let too_long = async {
        // An error means that the sender was dropped, with the server: it is done.
        if ended.changed().await.is_ok() {
            tokio::time::sleep(DRAIN).await;
        }
    };
    tokio::select! {
        result = async { server.await } => result,
        () = too_long => Ok(()),
    }
}
