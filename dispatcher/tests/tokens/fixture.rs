//! The fixture of the token tests.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use dispatcher::app::{App, Secret};
use dispatcher::token_source::{TokenEndpoint, TokenSource};
use dispatcher::wechat::client::Client;
use dispatcher::wechat::message::Delivery;
use dispatcher::wechat::token::Tokens;
use domain::AppId;
use domain::dependency::Dependency as _;
use serde_json::{Value, json};
use store::Store;
use store::broadcast::permits::Bounds;
use store::eligibility::Kinds;
use testing::{Redis, store_config};
use tokio::net::TcpListener;

/// A WeChat with one app and only the token endpoints.
pub struct WeChat {
    /// Lifetime of a token (`life`), and the last part of it in which `stable_token` issues a new one (`window`); both
    /// in seconds.
    pub life: f64,
    pub window: f64,
    pub pause: Duration,
    /// Returned instead of a token.
    pub refusal: Option<Value>,
    pub issued: u32,
    pub since: Instant,
    /// Time of each request.
    pub asked: Vec<Instant>,
    /// Number of requests that were answered.
    pub calls: u32,
    pub forced: u32,
}

pub type Shared = Arc<Mutex<WeChat>>;

impl WeChat {
    fn token(&mut self, force: bool, stable: bool) -> Value {
        self.calls += 1;
        self.forced += u32::from(force);
        if let Some(refusal) = &self.refusal {
            return refusal.clone();
        }
        let left = self.life - self.since.elapsed().as_secs_f64();
        if !stable || force || self.issued == 0 || left < self.window {
            self.issued += 1;
            self.since = Instant::now();
        }
        let left = (self.life - self.since.elapsed().as_secs_f64()).round();
        json!({"access_token": format!("CANARY-{}", self.issued), "expires_in": left as u64})
    }
}

async fn answer(wechat: Shared, force: bool, stable: bool) -> Json<Value> {
    let pause = {
        let mut wechat = wechat.lock().unwrap();
        wechat.asked.push(Instant::now());
        wechat.pause
    };
    tokio::time::sleep(pause).await;
    let answer = wechat.lock().unwrap().token(force, stable);
    Json(answer)
}

/// The Redis and the WeChat that the replicas share.
pub struct Fixture {
    pub redis: Redis,
    wechat: Shared,
    url: String,
    endpoint: TokenEndpoint,
}

impl Fixture {
    pub async fn start() -> Self {
        let wechat = WeChat {
            life: 7200.0,
            window: 300.0,
            pause: Duration::ZERO,
            refusal: None,
            issued: 0,
            since: Instant::now(),
            asked: Vec::new(),
            calls: 0,
            forced: 0,
        };
        let wechat = Arc::new(Mutex::new(wechat));
        let stable = |State(wechat): State<Shared>, Json(body): Json<Value>| async move {
            answer(wechat, body["force_refresh"].as_bool().unwrap(), true).await
        };
        let plain = |State(wechat): State<Shared>| answer(wechat, false, false);
        let routes = Router::new().route("/cgi-bin/stable_token", post(stable)).route("/cgi-bin/token", get(plain));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let routes = routes.with_state(Arc::clone(&wechat));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { redis: Redis::start(), wechat, url, endpoint: TokenEndpoint::Stable }
    }

    pub async fn plain() -> Self {
        Self { endpoint: TokenEndpoint::Plain, ..Self::start().await }
    }

    /// A store that is prepared if Redis is up.
    pub async fn store(&self) -> Store {
        let mut config = store_config(self.redis.url());
        config.redis.timeout = Duration::from_secs(10);
        let store = Store::new(&config).unwrap();
        let _ = store.prepare().await;
        store
    }

    /// A replica with its own connections.
    pub async fn replica(&self) -> Tokens {
        self.replica_at(&self.url).await
    }

    pub async fn replica_at(&self, url: &str) -> Tokens {
        let secret = Secret::parse("CANARY-secret").unwrap();
        self.replica_from(TokenSource::WeChat { secret, endpoint: self.endpoint }, url).await
    }

    /// A replica with another source of tokens.
    pub async fn replica_with(&self, source: TokenSource) -> Tokens {
        self.replica_from(source, &self.url).await
    }

    async fn replica_from(&self, source: TokenSource, url: &str) -> Tokens {
        let app = App {
            id: id(),
            token_source: source,
            base_url: url.parse().unwrap(),
            proxy: None,
            connect_timeout: Duration::from_secs(10),
            timeout: Duration::from_secs(30),
            bounds: Bounds::default(),
            delivery: Delivery::FormId,
            refused_rest: Duration::ZERO,
            broadcast_kinds: Kinds::NONE,
        };
        Tokens::new(id(), Client::new(Arc::new(app), None).unwrap(), self.store().await).unwrap()
    }

    pub fn set(&self, change: impl FnOnce(&mut WeChat)) {
        change(&mut self.wechat.lock().unwrap());
    }

    pub fn calls(&self) -> u32 {
        self.wechat.lock().unwrap().calls
    }

    pub fn asked(&self) -> Vec<Instant> {
        self.wechat.lock().unwrap().asked.clone()
    }

    pub fn forced(&self) -> u32 {
        self.wechat.lock().unwrap().forced
    }

    pub async fn shared(&self) -> Option<String> {
        self.store().await.token(&id()).await.unwrap().map(|shared| shared.token)
    }
}

pub fn id() -> AppId {
    AppId::parse("wx1").unwrap()
}
