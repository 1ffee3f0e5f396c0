//! The access token of an app: one for all replicas, shared through Redis, fetched by one of them at a time.
//!
//! A send takes it from memory: no Redis, no waiting. Only when there is none, one task of the process looks into
//! Redis, and only when there is none either, one replica of all calls WeChat, under a lock. In the background the
//! token is renewed before it ends; the old one is used until the new one is there.
//!
//! - A token that WeChat no longer takes is dropped by comparison, in memory and in Redis, so that nobody drops the fresh
//!   token of another replica. It is also remembered, since `stable_token` may hand it out again: then a forced refresh
//!   ends it for good.
//! - Without Redis, the token in memory is used while it lives. Then `stable_token` is asked directly, because all
//!   replicas get the same token from it; `token` is not, because each call of it ends the other replicas' token.
//! - Clocks of replicas differ. Shared is the wall-clock time of the end, and Redis itself forgets the token at that
//!   time by its own clock, so that a token found there lives, whatever the clock here says. In memory a monotonic clock
//!   decides. What is still wrong then is put right by WeChat's 42001.

mod obtain;
mod pace;
pub mod refusals;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::RngExt;
use shared::credential::AppId;
use shared::store::Store;
use shared::store::tokens::SharedToken;
use tokio::sync::{Notify, OwnedMutexGuard};
use tracing::{Instrument as _, warn};

use super::client::{Cause, Client, FetchError};
use crate::spans;
use pace::Work;

/// The longest time that a renewal takes place before the end. `stable_token` hands out a new token only in the last
/// five minutes, so it must be less.
const RENEW_BEFORE: Duration = Duration::from_secs(240);

/// How long a token is tried that Redis holds, but that has ended by the clock here.
const DOUBTFUL_LIFE: Duration = Duration::from_millis(200);

/// How many tokens that WeChat no longer takes are remembered.
const REMEMBERED: usize = 4;

/// An access token. `Debug` hides it.
pub struct Token {
    shared: SharedToken,
    until: Instant,
    renew: Instant,
}

impl Token {
    /// What goes into the URL of a call. A secret.
    pub fn value(&self) -> &str {
        &self.shared.token
    }

    /// A token that ends at the time it was shared with, by the clock here.
    fn new(shared: SharedToken) -> Self {
        let left = Duration::from_millis(shared.ends_ms.saturating_sub(now_ms())).clamp(DOUBTFUL_LIFE, pace::MAX_LIFE);
        let before = RENEW_BEFORE.min(left / 10).mul_f64(rand::rng().random_range(0.5..1.0));
        let now = Instant::now();
        Self { shared, until: now + left, renew: now + left - before }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Token(..)")
    }
}

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// May pass by itself; whoever asks again too soon is answered from memory.
    #[error("no access token for now: {0}")]
    Transient(Trouble),
    /// Somebody has to change something first. WeChat is asked again only every few minutes.
    #[error("WeChat refuses an access token (errcode {errcode}): {sentence}")]
    Refused {
        /// WeChat's code.
        errcode: i32,
        /// What WeChat's support asks for.
        rid: String,
        /// What the operator is to do.
        sentence: &'static str,
    },
}

/// What is in the way of a token, and may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// WeChat gave none.
    #[error("{0}")]
    WeChat(Cause),
    /// Another replica has the lock, and shares no token.
    #[error("another replica is fetching one, and does not finish")]
    Locked,
    /// Redis does not answer, and a fetch would end the other replicas' token.
    #[error("Redis does not answer, and a token fetched without it would end the one of the other replicas")]
    Store,
    /// WeChat gives the same token that it refuses, and another forced refresh is not permitted yet.
    #[error("WeChat gives a token again that it no longer takes")]
    SameAgain,
    /// One fetched token after the other is refused, so fetching is slowed down.
    #[error("WeChat refuses one token after the other soon after giving them")]
    Dying,
    /// The service is stopping.
    #[error("the service is stopping")]
    Stopping,
}

impl From<FetchError> for TokenError {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Transient { cause, .. } => Self::Transient(Trouble::WeChat(cause)),
            FetchError::Final { errcode, rid, sentence } => Self::Refused { errcode, rid, sentence },
        }
    }
}

/// The token of one app; clones share it.
#[derive(Clone)]
pub struct Tokens {
    inner: Arc<Inner>,
}

struct Inner {
    app: AppId,
    client: Client,
    store: Store,
    present: RwLock<Option<Arc<Token>>>,
    /// What WeChat no longer takes, latest last.
    dead: Mutex<Vec<Box<str>>>,
    /// Set when the token to be fetched replaces one that died before its time.
    bereft: AtomicBool,
    /// Held by the one task that looks for a token.
    work: Arc<tokio::sync::Mutex<Work>>,
    changed: Notify,
}

impl Tokens {
    /// Nothing is fetched yet.
    pub fn new(app: AppId, client: Client, store: Store) -> Self {
        let work = Work::new(client.outages());
        let inner = Inner {
            app,
            client,
            store,
            present: RwLock::default(),
            dead: Mutex::default(),
            bereft: AtomicBool::new(false),
            work: Arc::new(tokio::sync::Mutex::new(work)),
            changed: Notify::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// A token that lives. Waits only when there is none in memory: for Redis, for WeChat, or for the replica that is
    /// fetching one, 10 seconds at most for that.
    ///
    /// A caller that gives up waiting ends nothing: the search goes on in a task of its own.
    pub async fn get(&self) -> Result<Arc<Token>, TokenError> {
        if let Some(token) = self.inner.living() {
            return Ok(token);
        }
        let mut work = Arc::clone(&self.inner.work).lock_owned().await;
        if let Some(token) = self.inner.living() {
            return Ok(token);
        }
        if let Some(answer) = self.inner.standing(&mut work, None).await {
            return answer;
        }
        self.search(work, None).await
    }

    /// To be told when WeChat answered a call with 40001, 40014, 41001 or 42001: drops this token wherever it still is the
    /// present one. The next [`Tokens::get`] finds the one that another replica has put in its place, or fetches one.
    pub async fn failed(&self, token: &Token) {
        let first = self.inner.bury(token.value());
        self.inner.forget(token.value());
        if !first {
            return;
        }
        // Should Redis keep it: nobody here takes it from there any more.
        if let Err(error) = self.inner.store.drop_token(&self.inner.app, &token.shared).await {
            warn!(app = %self.inner.app, %error, "an access token that WeChat no longer takes is still in Redis");
        }
        self.inner.changed.notify_one();
    }

    /// Keeps a token at hand: gets one, and renews it before it ends. Never returns; dropping it harms nothing.
    pub async fn renew_forever(self) {
        loop {
            let pause = match self.inner.living() {
                None => match self.get().await {
                    Ok(_) => Duration::ZERO,
                    Err(_) => self.hold().await,
                },
                Some(token) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(token.renew.into()) => self.renew(token).await,
                        () = self.inner.changed.notified() => Duration::ZERO,
                    }
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Replaces a token that is still the present one; how long to pause before anything else.
    async fn renew(&self, old: Arc<Token>) -> Duration {
        let mut work = Arc::clone(&self.inner.work).lock_owned().await;
        if !self.inner.living().is_some_and(|present| Arc::ptr_eq(&present, &old)) {
            return Duration::ZERO;
        }
        let answer = match self.inner.standing(&mut work, Some(&old)).await {
            Some(answer) => {
                drop(work);
                answer
            }
            None => self.search(work, Some(old)).await,
        };
        if answer.is_ok() { Duration::ZERO } else { self.hold().await }
    }

    /// How long to pause after an error: while it stands, but no longer than another look into Redis may take to help.
    async fn hold(&self) -> Duration {
        let left = self.inner.work.lock().await.standing().map(|(_, left)| left);
        left.unwrap_or(pace::FIRST_PAUSE).min(pace::LOOK_PAUSE * 2)
    }

    async fn search(&self, mut work: OwnedMutexGuard<Work>, old: Option<Arc<Token>>) -> Result<Arc<Token>, TokenError> {
        let inner = Arc::clone(&self.inner);
        let search = async move { inner.obtain(&mut work, old.as_deref()).await };
        let search = tokio::spawn(search.instrument(spans::token(&self.inner.app)));
        search.await.unwrap_or(Err(TokenError::Transient(Trouble::Stopping)))
    }
}

impl Inner {
    fn living(&self) -> Option<Arc<Token>> {
        let present = self.present.read().unwrap_or_else(PoisonError::into_inner);
        present.as_ref().filter(|token| Instant::now() < token.until).cloned()
    }

    fn install(&self, token: Token) -> Arc<Token> {
        let token = Arc::new(token);
        *self.present.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&token));
        self.bereft.store(false, Ordering::Relaxed);
        self.changed.notify_one();
        token
    }

    /// Drops the token from memory if it is still the present one.
    fn forget(&self, value: &str) {
        let mut present = self.present.write().unwrap_or_else(PoisonError::into_inner);
        if present.as_ref().is_some_and(|token| token.value() == value) {
            *present = None;
            self.bereft.store(true, Ordering::Relaxed);
        }
    }

    /// Remembers that WeChat no longer takes it; whether that is news.
    fn bury(&self, value: &str) -> bool {
        let mut dead = self.dead.lock().unwrap_or_else(PoisonError::into_inner);
        if dead.iter().any(|known| &**known == value) {
            return false;
        }
        if dead.len() == REMEMBERED {
            dead.remove(0);
        }
        dead.push(value.into());
        true
    }

    fn is_dead(&self, value: &str) -> bool {
        self.dead.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|known| &**known == value)
    }
}

fn now_ms() -> u64 {
    // A clock before 1970 makes every token long-lived, and Redis and WeChat still end it.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}
