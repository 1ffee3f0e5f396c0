//! A strict local simulator of WeChat's API, for development and tests without a WeChat test account.
//!
//! It issues access tokens. It accepts a template message only while the user's form id or prepay id allows it, and a
//! subscription message only while the user's grant allows it. It refuses everything else with the errcode that WeChat
//! would use. It injects faults on request ([`Rule`]) and posts WeChat's events to a callback ([`Event`]). It records
//! what was delivered ([`Books`], [`Delivery`]), so that a test can compare what a sender believes with what users
//! received.
//!
//! ```
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use sandbox::{Granting, Reading, Sandbox, Settings, Submission};
//!
//! let wechat = Sandbox::new(Settings::default());
//! wechat.add_app("wx1", "secret")?;
//! let ids = wechat.submit("wx1", vec![Submission::form("openid-1")])?;
//! wechat.grant("wx1", vec![Granting::new("openid-1", "template-1")])?;
//!
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let base_url = format!("http://{}", listener.local_addr()?);
//! tokio::spawn(sandbox::serve(listener, wechat.clone(), std::future::pending()));
//! // ... send one message with `ids[0]` and one of `template-1` with the grant, to `base_url` ...
//! assert_eq!(wechat.deliveries("wx1", &Reading::default())?.len(), 2);
//! # Ok(()) }
//! ```
//!
//! The modules:
//!
//! - `sandbox`: the handle behind both HTTP APIs.
//! - `wechat`: WeChat's endpoints.
//! - `control`: the control API under `/sandbox/`.
//! - `app`: one mini program; everything that a send changes is under one lock.
//! - The parts of an app: `users`, `rights` (form ids and prepay ids), `grants`, `pace` (rate and quota), `book`
//!   (deliveries).
//! - `books`: the totals of `book`.
//! - `turns`: one `subscribe/send` at a time for a user.
//! - `tokens`: access tokens.
//! - `api`: the two endpoints that send.
//! - `message`: the bodies of both. `keywords`: what the values of a subscription message may be.
//! - `msgids`: message ids.
//! - `answer`: errcodes, and answers as JSON.
//! - `events`: WeChat's events. `push`: those that a caller asks for. `callback`: posts them.
//! - `rules`, `faults`: fault rules, and which of them fires. `wire`: connections that break on request.
//! - `kept`: bounded numbered lists. `settings`, `clock`, `lock`.

mod answer;
mod api;
mod app;
mod book;
mod books;
mod callback;
mod clock;
mod control;
mod events;
mod faults;
mod grants;
mod kept;
mod keywords;
mod lock;
mod message;
mod msgids;
mod pace;
mod push;
mod rights;
mod rules;
mod sandbox;
mod settings;
mod tokens;
mod turns;
mod users;
mod wechat;
mod wire;

use std::time::Duration;

use tokio::net::TcpListener;

pub use book::Delivery;
pub use books::{Books, Counts, EventCounts, GrantCounts};
pub use events::{Event, EventFormat, EventShape};
pub use grants::{Granting, Subscription};
pub use kept::Reading;
pub use message::Keyword;
pub use push::{Decision, Push};
pub use rights::{Kind, Submission};
pub use rules::{Endpoint, FaultKind, Match, Rule};
pub use sandbox::{Refused, Sandbox};
pub use settings::{SentFailure, Settings};

/// How long calls in progress may continue after shutdown. Without a bound, a call that hangs would delay the end.
const DRAIN: Duration = Duration::from_secs(1);

/// Serves until `shutdown` completes, then answers calls in progress for at most one second more. Events are posted to
/// the callback until then. Events that still wait at the end are lost.
///
/// # Errors
/// The server failed on its listener.
pub async fn serve(
    listener: TcpListener,
    sandbox: Sandbox,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    // Posting ends when this function returns, because the tasks are dropped then.
    let _pushing = callback::start(&sandbox);
    let (ending, mut ended) = tokio::sync::watch::channel(());
    let service = sandbox.router().into_make_service_with_connect_info::<wire::Wire>();
    let server = axum::serve(wire::WireListener(listener), service).with_graceful_shutdown(async move {
        shutdown.await;
        // Fails only if the server has ended already.
        _ = ending.send(());
    });
    let too_long = async {
        // An error means that the sender was dropped together with the server: it has ended.
        if ended.changed().await.is_ok() {
            tokio::time::sleep(DRAIN).await;
        }
    };
    tokio::select! {
        result = async { server.await } => result,
        () = too_long => Ok(()),
    }
}
