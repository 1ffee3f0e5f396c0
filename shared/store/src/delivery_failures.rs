//! Delivery failures. WeChat accepts a subscription message and returns a msgid, and later reports in an event that it
//! could not deliver the message.
//!
//! The event may arrive before the message is settled, so each side looks for the other. A failure is stored by its
//! msgid for two days, or for as long as events are accepted if that is longer. The step that settles a broadcast's
//! message finds it there. A broadcast stores the msgids of its delivered messages for an hour, where a failure that
//! arrives later finds the message. A message is therefore counted under one ending at any moment, and as failed only
//! once.

use deadpool_redis::redis;

use super::ids::BroadcastId;
pub use super::ids::MsgId;
use super::retention::KEEP_FAILED;
use super::{Error, Store, scripts, unexpected};
use domain::{AppId, OpenId};

/// Why a message was not delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LateFailure {
    /// WeChat's ErrorCode.
    pub errcode: i32,
    /// WeChat's ErrorStatus: a text for people, without control characters.
    pub status: String,
}

impl Store {
    /// Records that a message to this user was not delivered: under its msgid, for callers that repeat the request id,
    /// and in the broadcast that it belongs to. Returns false if the failure was recorded before. Repeating the call
    /// completes what an interrupted call left undone.
    pub async fn fail_late(
        &self,
        app: &AppId,
        openid: &OpenId,
        msgid: MsgId,
        failure: &LateFailure,
    ) -> Result<bool, Error> {
        let keys = self.keys(app, openid);
        let why = format!("{} {}", failure.errcode, failure.status);
        // If the reply is lost and the command is resent, the failure looks as if it had been recorded before. Then
        // only the returned value is wrong.
        let mut command = redis::cmd("SET");
        command.arg(keys.failed(msgid)).arg(&why).arg("NX").arg("EX");
        command.arg(KEEP_FAILED.max(self.inner.keep_once).as_secs());
        let new = self.redis()?.run::<Option<String>>(&command).await?.is_some();
        // Recorded before the broadcasts are read: a message that is settled in between finds the failure. The newest
        // broadcasts come first, because most failures are reported within seconds.
        let mut command = redis::cmd("ZREVRANGE");
        command.arg(keys.broadcasts()).arg(0).arg(-1);
        let ids: Vec<String> = self.redis()?.run(&command).await?;
        for id in ids.iter().filter_map(|id| BroadcastId::parse(id)) {
            let part = keys.broadcast(&id);
            let counted: bool = self
                .redis()?
                .invoke(&scripts::BROADCAST_LATE, |command| {
                    command.arg(4).arg(keys.users()).arg(part.tally()).arg(part.undelivered()).arg(part.sent());
                    command.arg(openid.as_str()).arg(msgid.0).arg(&why);
                })
                .await?;
            if counted {
                break;
            }
        }
        Ok(new)
    }

    /// Why a message to this user was not delivered, if WeChat reported a failure within the last two days.
    pub async fn late_failure(&self, app: &AppId, openid: &OpenId, msgid: MsgId) -> Result<Option<LateFailure>, Error> {
        let key = self.keys(app, openid).failed(msgid);
        let why: Option<String> = self.redis()?.run(redis::cmd("GET").arg(key)).await?;
        let Some(why) = why else { return Ok(None) };
        let parsed = why.split_once(' ').and_then(|(errcode, status)| {
            Some(LateFailure { errcode: errcode.parse().ok()?, status: status.to_owned() })
        });
        parsed.map(Some).ok_or_else(|| unexpected("a truncated failure"))
    }
}
