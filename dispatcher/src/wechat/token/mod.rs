//! The access token of an app. All replicas share one token through Redis, and one replica at a time fetches it.
//!
//! A send takes the token from memory, without Redis and without waiting. If there is none in memory, one task of the
//! process reads Redis. If Redis has none either, one replica calls WeChat, under a lock. In the background the token
//! is renewed before it expires, and the old one is used until the new one is there.
//!
//! - An app may have another source of tokens than WeChat. A token server is asked like `stable_token`, by one replica
//!   at a time. The request names the token that WeChat rejected. Each replica reads a token file by itself, without
//!   Redis: at the start, when the file changes, and after a rejection. Calls without a token do not need Redis either:
//!   their token is empty.
//! - A token that WeChat rejects is dropped by comparison, in memory and in Redis, so that no replica drops the fresh
//!   token of another. It is also remembered as rejected, since `stable_token` may return it again. Then a forced
//!   refresh invalidates it permanently.
//! - Without Redis, the token in memory is used until it expires. After that, `stable_token` is called directly,
//!   because it gives all replicas the same token. `token` is not called, because each call invalidates the other
//!   replicas' token.
//! - Clocks of replicas differ. Redis holds the wall-clock time at which the token expires, and deletes the token at
//!   that time by its own clock. So a token found in Redis is valid even if the local clock differs. In memory a
//!   monotonic clock decides. WeChat's 42001 corrects any remaining error.

mod backoff;
mod file;
mod obtain;
mod rejected;
mod source;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use domain::AppId;
use rand::RngExt;
use store::Store;
use store::tokens::SharedToken;
use tokio::sync::{Notify, OwnedMutexGuard};
use tracing::{Instrument as _, warn};

use super::client::Client;
use super::error::{ClientError, TokenError, Trouble};
use crate::clock::system_ms;
use crate::spans;
use backoff::FetchState;
use rejected::{Rejected, SECOND_TRIAL};
use source::Source;

/// Upper limit for how long before its expiry a token is renewed. `stable_token` returns a new token only in the last
/// five minutes, so this must be less.
const RENEW_BEFORE: Duration = Duration::from_secs(240);

/// How long a token from Redis is tried that has expired by the local clock.
const DOUBTFUL_LIFE: Duration = Duration::from_millis(200);

/// An access token. `Debug` hides it.
pub struct Token {
    shared: SharedToken,
    until: Instant,
    renew: Instant,
}

impl Token {
    /// The value for the URL of a call. A secret.
    pub fn value(&self) -> &str {
        &self.shared.token
    }

    /// A token that expires at its shared time, by the local clock.
    fn new(shared: SharedToken) -> Self {
        // With a clock before 1970 every token seems valid for long. Redis and WeChat still expire it.
        let left =
            Duration::from_millis(shared.ends_ms.saturating_sub(system_ms())).clamp(DOUBTFUL_LIFE, backoff::MAX_LIFE);
        let before = RENEW_BEFORE.min(left / 10).mul_f64(rand::rng().random_range(0.5..1.0));
        let now = Instant::now();
        Self { shared, until: now + left, renew: now + left - before }
    }

    /// A token whose expiry is not known.
    fn lasting(token: String) -> Self {
        Self::new(SharedToken { token, ends_ms: system_ms().saturating_add(backoff::MAX_LIFE.as_millis() as u64) })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Token(..)")
    }
}

/// The token of one app; clones share it.
#[derive(Clone)]
pub struct Tokens {
    inner: Arc<Inner>,
}

struct Inner {
    app: AppId,
    source: Source,
    client: Client,
    store: Store,
    current: RwLock<Option<Arc<Token>>>,
    rejected: Mutex<Rejected>,
    /// True after a token was rejected before its expiry, until another one is in use.
    no_token: AtomicBool,
    /// Held by the one task that obtains a token.
    state: Arc<tokio::sync::Mutex<FetchState>>,
    changed: Notify,
}

impl Tokens {
    /// Opens no connection yet.
    pub fn new(app: AppId, client: Client, store: Store) -> Result<Self, ClientError> {
        let state = FetchState::new(client.outages());
        let source = Source::of(client.app())?;
        // From WeChat itself, a forced refresh gets another token.
        let second_trial = (!matches!(source, Source::WeChat(_))).then_some(SECOND_TRIAL);
        let inner = Inner {
            app,
            source,
            client,
            store,
            current: RwLock::default(),
            rejected: Mutex::new(Rejected::lasting(second_trial)),
            no_token: AtomicBool::new(false),
            state: Arc::new(tokio::sync::Mutex::new(state)),
            changed: Notify::new(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Returns a valid token. Waits only if there is none in memory: for Redis, for WeChat, or at most 10 seconds for
    /// the replica that is fetching one.
    ///
    /// If the caller stops waiting, a task of its own continues to obtain the token.
    pub async fn get(&self) -> Result<Arc<Token>, TokenError> {
        if let Some(token) = self.inner.valid() {
            return Ok(token);
        }
        let mut state = Arc::clone(&self.inner.state).lock_owned().await;
        if let Some(token) = self.inner.valid() {
            return Ok(token);
        }
        if let Some(answer) = self.inner.cached_error(&mut state, None).await {
            return answer;
        }
        self.obtain(state, None).await
    }

    /// Must be called when WeChat answered a call with 40001, 40014, 41001 or 42001. Drops this token wherever it is
    /// still the current one. The next [`Tokens::get`] finds the token that another replica has fetched since, or
    /// fetches one.
    pub async fn failed(&self, token: &Token) {
        let first = self.inner.mark_rejected(token.value());
        self.inner.drop_from_memory(token.value());
        if !first {
            return;
        }
        // If Redis still has it, this replica no longer takes it from there.
        if self.inner.source.is_shared()
            && let Err(error) = self.inner.store.drop_token(&self.inner.app, &token.shared).await
        {
            warn!(app = %self.inner.app, %error, "an access token that WeChat rejected could not be deleted from Redis");
        }
        self.inner.changed.notify_one();
    }

    /// Obtains a token and renews it before it expires, or when its file changes. Never returns; dropping the future is
    /// safe.
    pub async fn renew_forever(self) {
        tokio::join!(self.inner.follow_file(), self.renew_in_time());
    }

    async fn renew_in_time(&self) {
        loop {
            let pause = match self.inner.valid() {
                None => match self.get().await {
                    Ok(_) => Duration::ZERO,
                    Err(_) => self.pause().await,
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

    /// Replaces a token if it is still the current one. Returns how long to pause afterwards.
    async fn renew(&self, old: Arc<Token>) -> Duration {
        let mut state = Arc::clone(&self.inner.state).lock_owned().await;
        if !self.inner.valid().is_some_and(|current| Arc::ptr_eq(&current, &old)) {
            return Duration::ZERO;
        }
        let answer = match self.inner.cached_error(&mut state, Some(&old)).await {
            Some(answer) => {
                drop(state);
                answer
            }
            None => self.obtain(state, Some(old)).await,
        };
        if answer.is_ok() { Duration::ZERO } else { self.pause().await }
    }

    /// How long to pause after an error: as long as it is cached, but no longer than the interval at which Redis may be
    /// read again.
    async fn pause(&self) -> Duration {
        let left = self.inner.state.lock().await.cached_error().map(|(_, left)| left);
        left.unwrap_or(backoff::FIRST_PAUSE).min(backoff::REDIS_INTERVAL * 2)
    }

    async fn obtain(
        &self,
        mut state: OwnedMutexGuard<FetchState>,
        old: Option<Arc<Token>>,
    ) -> Result<Arc<Token>, TokenError> {
        let inner = Arc::clone(&self.inner);
        let obtain = async move { inner.obtain(&mut state, old.as_deref()).await };
        let obtain = tokio::spawn(obtain.instrument(spans::token(&self.inner.app)));
        obtain.await.unwrap_or(Err(TokenError::Transient(Trouble::Stopping)))
    }
}

impl Inner {
    fn valid(&self) -> Option<Arc<Token>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().filter(|token| Instant::now() < token.until).cloned()
    }

    fn install(&self, token: Token) -> Arc<Token> {
        let token = Arc::new(token);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&token));
        self.no_token.store(false, Ordering::Relaxed);
        self.changed.notify_one();
        token
    }

    fn drop_from_memory(&self, value: &str) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|token| token.value() == value) {
            *current = None;
            self.no_token.store(true, Ordering::Relaxed);
        }
    }

    /// Remembers that WeChat rejected this token. Returns true the first time.
    fn mark_rejected(&self, value: &str) -> bool {
        self.rejected.lock().unwrap_or_else(PoisonError::into_inner).add(value, Instant::now())
    }

    fn last_rejected(&self) -> Option<Box<str>> {
        self.rejected.lock().unwrap_or_else(PoisonError::into_inner).last()
    }

    fn is_rejected(&self, value: &str) -> bool {
        self.rejected.lock().unwrap_or_else(PoisonError::into_inner).has(value, Instant::now())
    }
}
