//! Posts events to the callback. A send never waits for it: events go into bounded queues. An event that does not fit
//! into a full queue is counted and lost.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, Url};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

use crate::app::App;
use crate::{Event, Sandbox, Settings};

/// Number of queues. The events of one user are posted in order, so they share a queue. They do not delay the events in
/// other queues.
const LANES: usize = 8;

/// Most events in one queue.
const LONGEST_LANE: usize = 10_000;

/// Number of attempts to post an event before it is dropped.
const ATTEMPTS: usize = 3;

/// Timeout of the callback's answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A queued event, with the settings of the time it was made.
struct Push {
    app: Arc<App>,
    event: Event,
    settings: Arc<Settings>,
}

struct Lane {
    entrance: mpsc::Sender<Push>,
    /// If two servers share one sandbox, one of them holds the queue until it ends.
    exit: Mutex<mpsc::Receiver<Push>>,
}

pub(crate) struct Callback {
    lanes: [Lane; LANES],
}

impl Callback {
    pub(crate) fn new() -> Self {
        let lane = |_| {
            let (entrance, exit) = mpsc::channel(LONGEST_LANE);
            Lane { entrance, exit: Mutex::new(exit) }
        };
        Self { lanes: std::array::from_fn(lane) }
    }

    /// Queues the event for the callback that is set. Events stay queued until a server posts them.
    pub(crate) fn tell(&self, app: &Arc<App>, event: Event, settings: &Arc<Settings>) {
        let mut hasher = DefaultHasher::new();
        event.openid.hash(&mut hasher);
        let lane = &self.lanes[hasher.finish() as usize % LANES];
        let push = Push { app: Arc::clone(app), event, settings: Arc::clone(settings) };
        if lane.entrance.try_send(push).is_err() {
            app.ledger().book.events().dropped += 1;
        }
    }
}

/// Starts posting the queued events, until the tasks are dropped.
pub(crate) fn start(sandbox: &Sandbox) -> JoinSet<()> {
    let mut lanes = JoinSet::new();
    let client = match client() {
        Ok(client) => client,
        Err(error) => {
            tracing::error!(error, "failed to create the HTTP client of the callback: no event will be posted");
            return lanes;
        }
    };
    for lane in 0..LANES {
        let (sandbox, client) = (sandbox.clone(), client.clone());
        lanes.spawn(async move {
            let mut exit = sandbox.callback().lanes[lane].exit.lock().await;
            while let Some(push) = exit.recv().await {
                push.run(&client).await;
            }
        });
    }
    lanes
}

/// The callback is plain http, so no certificate is trusted. reqwest requires a TLS configuration anyway, and its
/// default fails on a machine without certificates.
fn client() -> Result<Client, String> {
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    Client::builder()
        .timeout(PATIENCE)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        .tls_backend_preconfigured(config)
        .build()
        .map_err(|error| error.to_string())
}

impl Push {
    /// Posts the event until the callback accepts it or all attempts have failed, and records the result.
    async fn run(self, client: &Client) {
        let url = self.url();
        for attempt in 1..=ATTEMPTS {
            if let Some(url) = &url
                && self.post(client, url.clone()).await
            {
                self.app.ledger().book.events().pushed += 1;
                return;
            }
            if attempt < ATTEMPTS {
                tokio::time::sleep(Duration::from_millis(self.settings.callback_retry_ms)).await;
            }
        }
        tracing::warn!(
            app_id = self.app.id,
            number = self.event.number,
            "the callback did not accept an event: giving up"
        );
        self.app.ledger().book.events().given_up += 1;
    }

    /// The callback's URL with WeChat's parameters after its own. `None` if it is not a URL, which [`Settings::check`]
    /// refuses; [`Sandbox::new`] does not check.
    fn url(&self) -> Option<Url> {
        let mut url = Url::parse(&self.settings.callback_url).ok()?;
        url.query_pairs_mut()
            .append_pair("signature", &self.event.signature)
            .append_pair("timestamp", &self.event.timestamp.to_string())
            .append_pair("nonce", &self.event.nonce);
        Some(url)
    }

    async fn post(&self, client: &Client, url: Url) -> bool {
        let request = client.post(url).header(CONTENT_TYPE, self.event.format.content_type());
        match request.body(self.event.body.clone()).send().await {
            Ok(answer) if answer.status().is_success() => true,
            Ok(answer) => {
                tracing::debug!(status = answer.status().as_u16(), "the callback answered with an error");
                false
            }
            Err(error) => {
                tracing::debug!(error = %error.without_url(), "the callback did not answer");
                false
            }
        }
    }
}
