//! The access token of an app, shared by all replicas.

use std::time::Duration;

use deadpool_redis::redis;

use super::{Error, Store, keys, scripts};
use domain::AppId;

#[derive(Clone, PartialEq, Eq)]
pub struct SharedToken {
    /// The token, which goes into the URL of a call. A secret.
    pub token: String,
    /// When the token expires at WeChat, in milliseconds since 1970.
    pub ends_ms: u64,
}

impl SharedToken {
    fn encode(&self) -> String {
        format!("{} {}", self.ends_ms, self.token)
    }

    fn decode(text: &str) -> Option<Self> {
        let (ends, token) = text.split_once(' ')?;
        Some(Self { token: token.to_owned(), ends_ms: ends.parse().ok()? })
    }
}

impl Store {
    pub async fn token(&self, app: &AppId) -> Result<Option<SharedToken>, Error> {
        let text: Option<String> = self.redis()?.run(redis::cmd("GET").arg(keys::token(app))).await?;
        Ok(text.as_deref().and_then(SharedToken::decode))
    }

    /// Stores a token for all replicas. It expires after `life`.
    pub async fn put_token(&self, app: &AppId, token: &SharedToken, life: Duration) -> Result<(), Error> {
        let life = (life.as_millis() as u64).max(1);
        self.redis()?.run(redis::cmd("SET").arg(keys::token(app)).arg(token.encode()).arg("PX").arg(life)).await
    }

    /// Deletes the shared token if it is still this one. A new token of another replica stays.
    pub async fn drop_token(&self, app: &AppId, token: &SharedToken) -> Result<bool, Error> {
        self.drop_if(&keys::token(app), &token.encode()).await
    }

    /// Takes the lock for fetching a token, for at most `ttl`. `owner` is random. Returns false if another owner holds
    /// the lock.
    pub async fn lock_token(&self, app: &AppId, owner: &str, ttl: Duration) -> Result<bool, Error> {
        self.take(&keys::token_lock(app), owner, ttl).await
    }

    /// Takes the permission to force a new token, which one of all replicas gets per `pause`.
    pub async fn permit_forced_token(&self, app: &AppId, pause: Duration) -> Result<bool, Error> {
        self.take_turn(&keys::token_forced(app), pause).await
    }

    pub async fn unlock_token(&self, app: &AppId, owner: &str) -> Result<bool, Error> {
        self.drop_if(&keys::token_lock(app), owner).await
    }

    async fn drop_if(&self, key: &str, value: &str) -> Result<bool, Error> {
        self.redis()?
            .invoke(&scripts::DROP_IF, |command| {
                command.arg(1).arg(key).arg(value);
            })
            .await
    }
}
