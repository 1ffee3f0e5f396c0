//! The record of a broadcast, and the transitions between its states.

use std::collections::HashMap;

use deadpool_redis::redis::{self, Value};

use super::GROUP;
use crate::ids::BroadcastId;
use crate::keys::BroadcastKeys;
use crate::retention::{KEEP_ENDED, KEEP_OPEN};
use crate::{Error, Reply, Store, scripts, unexpected};
use domain::{AppId, RequestId};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Stored. It waits to be started, or for its start time.
    Pending,
    /// Its tasks are in the stream.
    Running,
    /// It waits to be resumed, or for its resume time.
    Paused,
    /// Ended by a caller.
    Cancelled,
    /// All users of the audience were processed.
    Done,
}

impl State {
    const ALL: [(Self, &str); 5] = [
        (Self::Pending, "PENDING"),
        (Self::Running, "RUNNING"),
        (Self::Paused, "PAUSED"),
        (Self::Cancelled, "CANCELLED"),
        (Self::Done, "DONE"),
    ];

    /// The name of the state, as it is stored and as callers see it.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(state, _)| *state == self).map_or("", |(_, name)| name)
    }

    pub fn is_final(self) -> bool {
        matches!(self, Self::Cancelled | Self::Done)
    }

    pub(super) fn parse(name: &str) -> Result<Self, Error> {
        let found = Self::ALL.iter().find(|(_, known)| *known == name).map(|(state, _)| *state);
        found.ok_or_else(|| unexpected(name))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pause {
    /// The reason in capitals. The dispatcher defines the reasons.
    pub reason: String,
    /// WeChat's errcode that caused the pause, if there is one.
    pub errcode: Option<i32>,
    /// WeChat's request id of that answer.
    pub rid: String,
    /// When it resumes by itself, in milliseconds since 1970.
    pub resume_ms: Option<u64>,
    /// The field of the message that WeChat refused, if it named one.
    pub field: String,
}

/// The reason of a pause at the end of a canary. Resuming the broadcast removes the canary's limit.
pub const CANARY: &str = "CANARY";

#[derive(Debug, Clone)]
pub struct Draft {
    pub id: BroadcastId,
    /// The message and the options, in the dispatcher's format. The store does not parse it.
    pub spec: Vec<u8>,
    /// Whether the audience is every reachable user; otherwise it is a recipient list.
    pub everyone: bool,
    /// The earliest start, in milliseconds since 1970.
    pub not_before_ms: Option<u64>,
    /// The number of messages after which the broadcast pauses.
    pub canary: Option<u32>,
}

/// A broadcast as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub id: BroadcastId,
    pub spec: Vec<u8>,
    pub everyone: bool,
    pub not_before_ms: Option<u64>,
    /// As in [`Draft`]. `None` after the canary was reached and the broadcast resumed.
    pub canary: Option<u32>,
    pub state: State,
    /// It was started and waits for its start time.
    pub scheduled: bool,
    pub pause: Option<Pause>,
    /// When it was stored, in milliseconds since 1970.
    pub created_ms: u64,
    /// When it began to run.
    pub started_ms: Option<u64>,
    /// When it was done or cancelled.
    pub ended_ms: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    New,
    /// The same request stored this broadcast before.
    Exists(BroadcastId),
    /// The request id stored another broadcast before.
    Reused,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Move {
    /// From PENDING to RUNNING: immediately, or at its start time.
    Start { everyone: bool },
    /// From RUNNING to PAUSED.
    Pause(Pause),
    /// From PAUSED to RUNNING.
    Resume {
        /// Only if the broadcast has a resume time, and that time has passed.
        due: bool,
    },
    /// To CANCELLED, from any state that is not final.
    Cancel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// The broadcast is in this state now.
    To(State),
    /// The transition is not allowed in this state. Nothing changed.
    Wrong(State),
    Missing,
}

impl Store {
    /// Stores a broadcast in state PENDING. With a request, a repeated call finds the broadcast of the first one.
    /// `fingerprint` detects whether it is the same call.
    pub async fn create_broadcast(
        &self,
        app: &AppId,
        draft: &Draft,
        request: Option<(&RequestId, [u8; 16])>,
    ) -> Result<Created, Error> {
        let keys = BroadcastKeys::new(app);
        let reply: Vec<Value> = self
            .redis()?
            .invoke(&scripts::BROADCAST_CREATE, |command| {
                command.arg(if request.is_some() { 3 } else { 2 }).arg(keys.record(&draft.id)).arg(keys.index());
                if let Some((request, _)) = request {
                    command.arg(keys.request(request));
                }
                let fingerprint = request.map_or([0; 16], |(_, fingerprint)| fingerprint);
                command.arg(draft.id.as_str()).arg(&fingerprint).arg(KEEP_OPEN.as_secs());
                command.arg("spec").arg(&draft.spec).arg("everyone").arg(u8::from(draft.everyone));
                if let Some(not_before) = draft.not_before_ms {
                    command.arg("not_before_ms").arg(not_before);
                }
                if let Some(canary) = draft.canary {
                    command.arg("canary").arg(canary).arg("limit").arg(canary);
                }
            })
            .await?;
        let mut reply = Reply::new(reply);
        match reply.next::<String>()?.as_str() {
            "created" => Ok(Created::New),
            "exists" => {
                let id = reply.next::<String>()?;
                BroadcastId::parse(&id).map(Created::Exists).ok_or_else(|| unexpected(&id))
            }
            "reused" => Ok(Created::Reused),
            other => Err(unexpected(other)),
        }
    }

    /// The broadcast that the request stored before; `None` if it stored nothing.
    pub async fn requested_broadcast(
        &self,
        app: &AppId,
        request: &RequestId,
        fingerprint: [u8; 16],
    ) -> Result<Option<Created>, Error> {
        let key = BroadcastKeys::new(app).request(request);
        let known: Option<Vec<u8>> = self.redis()?.run(redis::cmd("GET").arg(key)).await?;
        let Some(known) = known else { return Ok(None) };
        match known.split_at_checked(fingerprint.len()) {
            Some((first, id)) if first == fingerprint => {
                let id = std::str::from_utf8(id).ok().and_then(BroadcastId::parse);
                id.map(|id| Some(Created::Exists(id))).ok_or_else(|| unexpected("an invalid broadcast id"))
            }
            _ => Ok(Some(Created::Reused)),
        }
    }

    pub async fn broadcast(&self, app: &AppId, id: &BroadcastId) -> Result<Option<Record>, Error> {
        let key = BroadcastKeys::new(app).record(id);
        let fields: HashMap<String, Vec<u8>> = self.redis()?.run(redis::cmd("HGETALL").arg(key)).await?;
        if fields.is_empty() { Ok(None) } else { read(id, &fields).map(Some) }
    }

    /// The state of a broadcast, and the reason while it is paused.
    pub async fn broadcast_pause(
        &self,
        app: &AppId,
        id: &BroadcastId,
    ) -> Result<Option<(State, Option<String>)>, Error> {
        let key = BroadcastKeys::new(app).record(id);
        let (state, reason): (Option<String>, Option<String>) =
            self.redis()?.run(redis::cmd("HMGET").arg(key).arg("state").arg("reason")).await?;
        let state = state.as_deref().map(State::parse).transpose()?;
        Ok(state.map(|state| (state, reason.filter(|_| state == State::Paused))))
    }

    /// The ids of an app's broadcasts, newest first.
    pub async fn newest_broadcasts(&self, app: &AppId, count: usize) -> Result<Vec<BroadcastId>, Error> {
        let mut command = redis::cmd("ZREVRANGEBYLEX");
        command.arg(BroadcastKeys::new(app).index()).arg("+").arg("-").arg("LIMIT").arg(0).arg(count);
        let ids: Vec<String> = self.redis()?.run(&command).await?;
        Ok(ids.iter().filter_map(|id| BroadcastId::parse(id)).collect())
    }

    pub async fn broadcast_state(&self, app: &AppId, id: &BroadcastId) -> Result<Option<State>, Error> {
        let key = BroadcastKeys::new(app).record(id);
        let state: Option<String> = self.redis()?.run(redis::cmd("HGET").arg(key).arg("state")).await?;
        state.as_deref().map(State::parse).transpose()
    }

    /// Broadcasts of an app, newest first, at most `count`. With `before`, only those older than it.
    pub async fn broadcasts(
        &self,
        app: &AppId,
        before: Option<&BroadcastId>,
        count: usize,
    ) -> Result<Vec<Record>, Error> {
        let keys = BroadcastKeys::new(app);
        let mut found = Vec::new();
        let mut from = before.map_or("+".to_owned(), |before| format!("({before}"));
        while found.len() < count {
            let mut command = redis::cmd("ZREVRANGEBYLEX");
            command.arg(keys.index()).arg(&from).arg("-").arg("LIMIT").arg(0).arg(count - found.len());
            let ids: Vec<String> = self.redis()?.run(&command).await?;
            let Some(last) = ids.last() else { break };
            from = format!("({last}");
            for id in ids.iter().filter_map(|id| BroadcastId::parse(id)) {
                match self.broadcast(app, &id).await? {
                    Some(record) => found.push(record),
                    None => self.redis()?.run(redis::cmd("ZREM").arg(keys.index()).arg(id.as_str())).await?,
                }
            }
        }
        Ok(found)
    }

    /// Moves a broadcast to another state. `now_ms` is the time of the dispatcher's clock, which decides whether a
    /// broadcast is due.
    pub async fn move_broadcast(&self, app: &AppId, id: &BroadcastId, to: &Move, now_ms: u64) -> Result<Moved, Error> {
        let keys = BroadcastKeys::new(app);
        let keep = if *to == Move::Cancel { KEEP_ENDED } else { KEEP_OPEN };
        let reply: Vec<Value> = self
            .redis()?
            .invoke(&scripts::BROADCAST_MOVE, |command| {
                command.arg(6).arg(keys.record(id)).arg(keys.open(id)).arg(keys.tasks(id)).arg(keys.due());
                command.arg(keys.running()).arg(keys.parts(id)).arg(id.as_str());
                let name = match to {
                    Move::Start { .. } => "start",
                    Move::Pause(_) => "pause",
                    Move::Resume { .. } => "resume",
                    Move::Cancel => "cancel",
                };
                command.arg(name).arg(keep.as_secs()).arg(now_ms);
                match to {
                    Move::Start { everyone: true } => command.arg(self.buckets().len()),
                    Move::Start { everyone: false } => command.arg(0),
                    Move::Pause(pause) => command
                        .arg(&pause.reason)
                        .arg(pause.errcode.map(|errcode| errcode.to_string()).unwrap_or_default())
                        .arg(&pause.rid)
                        .arg(pause.resume_ms.map(|ms| ms.to_string()).unwrap_or_default())
                        .arg(&pause.field),
                    Move::Resume { due } => command.arg(if *due { "due" } else { "" }),
                    Move::Cancel => command,
                };
                command.arg(GROUP);
            })
            .await?;
        let mut reply = Reply::new(reply);
        match reply.next::<String>()?.as_str() {
            "moved" => State::parse(&reply.next::<String>()?).map(Moved::To),
            "wrong" => State::parse(&reply.next::<String>()?).map(Moved::Wrong),
            "missing" => Ok(Moved::Missing),
            other => Err(unexpected(other)),
        }
    }

    /// Broadcasts whose start or resume time is at or before `now_ms`.
    pub async fn due_broadcasts(&self, app: &AppId, now_ms: u64) -> Result<Vec<BroadcastId>, Error> {
        let mut command = redis::cmd("ZRANGEBYSCORE");
        command.arg(BroadcastKeys::new(app).due()).arg("-inf").arg(now_ms).arg("LIMIT").arg(0).arg(100);
        let ids: Vec<String> = self.redis()?.run(&command).await?;
        Ok(ids.iter().filter_map(|id| BroadcastId::parse(id)).collect())
    }

    /// Broadcasts with tasks in their stream: running ones, and cancelled ones whose buckets are not all closed.
    pub async fn running_broadcasts(&self, app: &AppId) -> Result<Vec<BroadcastId>, Error> {
        let ids: Vec<String> = self.redis()?.run(redis::cmd("SMEMBERS").arg(BroadcastKeys::new(app).running())).await?;
        Ok(ids.iter().filter_map(|id| BroadcastId::parse(id)).collect())
    }

    /// Counts one more consecutive message that was refused for its content, over all replicas. Returns the number of
    /// consecutive refusals.
    pub async fn lengthen_streak(&self, app: &AppId, id: &BroadcastId) -> Result<u32, Error> {
        let key = BroadcastKeys::new(app).record(id);
        self.redis()?
            .invoke(&scripts::BROADCAST_STREAK, |command| {
                command.arg(1).arg(&key);
            })
            .await
    }

    /// Resets the count of consecutive refusals, because a message was accepted.
    pub async fn end_streak(&self, app: &AppId, id: &BroadcastId) -> Result<(), Error> {
        let key = BroadcastKeys::new(app).record(id);
        self.redis()?.run::<u32>(redis::cmd("HDEL").arg(key).arg("streak")).await.map(drop)
    }
}

fn read(id: &BroadcastId, fields: &HashMap<String, Vec<u8>>) -> Result<Record, Error> {
    let text = |name: &str| fields.get(name).and_then(|value| std::str::from_utf8(value).ok());
    let number = |name: &str| text(name).and_then(|value| value.parse::<u64>().ok());
    let state = State::parse(text("state").unwrap_or_default())?;
    let pause = (state == State::Paused).then(|| Pause {
        reason: text("reason").unwrap_or_default().to_owned(),
        errcode: text("errcode").and_then(|errcode| errcode.parse().ok()),
        rid: text("rid").unwrap_or_default().to_owned(),
        resume_ms: number("resume_ms"),
        field: text("field").unwrap_or_default().to_owned(),
    });
    Ok(Record {
        id: id.clone(),
        spec: fields.get("spec").cloned().unwrap_or_default(),
        everyone: text("everyone") == Some("1"),
        not_before_ms: number("not_before_ms"),
        canary: number("limit").map(|canary| canary as u32),
        state,
        // The field stays in the record after the start.
        scheduled: state == State::Pending && fields.contains_key("scheduled"),
        pause,
        created_ms: number("created_ms").unwrap_or_default(),
        started_ms: number("started_ms"),
        ended_ms: number("ended_ms"),
    })
}
