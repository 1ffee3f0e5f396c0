//! A strict local WeChat, for people who have no test account.
//!
//! It issues access tokens, takes template messages exactly as long as a user's form id or payment permits, and
//! subscription messages as long as what the user accepted does, and refuses everything else with the code that WeChat
//! would use. It misbehaves on demand ([`Rule`]), tells the app's server what WeChat would tell it ([`Event`]), and keeps
//! books of what was delivered ([`Books`], [`Delivery`]), so that a test can compare what a sender believes with what
//! users received.
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
//! // ... have something send with `ids[0]`, and of `template-1` with the grant, by way of `base_url` ...
//! assert_eq!(wechat.deliveries("wx1", &Reading::default())?.len(), 2);
//! # Ok(()) }
//! ```
//!
//! The rooms: `wechat` (its endpoints), `control` (the API under `/sandbox/`), `sandbox` (the handle behind both);
//! `app` (what a send changes, under one lock), made of `users`, `rights` (form ids and payments), `grants` (what was
//! accepted), `pace` and `book`, whose sums are in `books`; `turns` (one call at a time for a user); `tokens`; `api` (the
//! two endpoints that send), `message` (the bodies of both) and `keywords` (what its values may be); `msgids`; `answer`
//! (codes to JSON); `events` (what WeChat tells) and `callback` (posting it); `rules` and `faults` (when to misbehave) and
//! `wire` (connections that break); `kept` (lists to read), `settings`, `clock`.

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
mod message;
mod msgids;
mod pace;
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
pub use events::{Event, EventFormat};
pub use grants::{Granting, Subscription};
pub use kept::Reading;
pub use message::Keyword;
pub use rights::{Kind, Submission};
pub use rules::{Endpoint, FaultKind, Match, Rule};
pub use sandbox::{Refused, Sandbox};
pub use settings::{SentFailure, Settings};

/// How long calls under way may go on after the end was asked for. Hanging ones would otherwise keep it waiting.
const DRAIN: Duration = Duration::from_secs(1);

/// Serves until `shutdown` completes, and then a second at most to answer what is under way. Meanwhile events are posted
/// to the callback; those that still wait at the end are lost.
///
/// # Errors
/// The listener's.
pub async fn serve(
    listener: TcpListener,
    sandbox: Sandbox,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    // Ends with this call, because it is dropped then.
    let _pushing = callback::start(&sandbox);
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
