//! The tasks of a broadcast: a Redis Stream with a consumer group for each broadcast. Every replica is a consumer, and
//! one task is one bucket. Tasks of a dead replica are claimed by the others once they were idle for long enough.

use std::time::Duration;

use deadpool_redis::redis::streams::{StreamAutoClaimReply, StreamId, StreamPendingCountReply, StreamReadReply};
use deadpool_redis::redis::{self, FromRedisValue as _};

use super::GROUP;
use super::records::State;
use crate::ids::BroadcastId;
use crate::keys::{BroadcastKeys, Bucket};
use crate::retention::KEEP_ENDED;
use crate::{Error, Store, scripts};
use domain::AppId;

/// One bucket of one broadcast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// The id of the entry in the stream.
    pub entry: String,
    pub broadcast: BroadcastId,
    pub bucket: Bucket,
}

/// Which tasks a replica takes.
#[derive(Debug, Clone, Copy)]
pub struct TakeTasks<'a> {
    /// The name of the replica.
    pub consumer: &'a str,
    /// Maximum number of tasks that no replica has.
    pub count: usize,
    /// Tasks of replicas that were silent for so long are claimed.
    pub silence: Duration,
    /// Maximum number of tasks in all.
    pub most: usize,
}

/// How a replica ends its work on a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// The bucket is finished.
    Done,
    /// The broadcast does not run now. Resuming it creates the task again.
    Stopped,
    /// Another replica should continue.
    Passed,
}

impl Store {
    /// Takes tasks of a broadcast that no replica has. Then claims tasks of silent replicas.
    pub async fn take_tasks(
        &self,
        app: &AppId,
        id: &BroadcastId,
        &TakeTasks { consumer, count, silence, most }: &TakeTasks<'_>,
    ) -> Result<Vec<Task>, Error> {
        let key = BroadcastKeys::new(app).tasks(id);
        let mut tasks = Vec::new();
        // A count of 0 would take all tasks.
        if count > 0 {
            let mut command = redis::cmd("XREADGROUP");
            command.arg("GROUP").arg(GROUP).arg(consumer).arg("COUNT").arg(count).arg("STREAMS").arg(&key).arg(">");
            let reply: Option<StreamReadReply> = there(self.redis()?.run(&command).await)?.unwrap_or_default();
            let entries = reply.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids);
            tasks.extend(entries.filter_map(|entry| read(id, entry)));
        }
        let mut from = "0-0".to_owned();
        // One call examines only a few entries, and all of those may belong to live replicas.
        while tasks.len() < most {
            let mut command = redis::cmd("XAUTOCLAIM");
            command.arg(&key).arg(GROUP).arg(consumer).arg(silence.as_millis() as u64).arg(&from);
            command.arg("COUNT").arg(most - tasks.len());
            let Some(reply) = there(self.redis()?.run::<StreamAutoClaimReply>(&command).await)? else { break };
            tasks.extend(reply.claimed.into_iter().filter_map(|entry| read(id, entry)));
            from = reply.next_stream_id;
            if from == "0-0" {
                break;
            }
        }
        Ok(tasks)
    }

    /// Shows that the consumer is alive and still works on its task. Returns false if the consumer no longer owns the
    /// task.
    pub async fn keep_task(&self, app: &AppId, consumer: &str, task: &Task) -> Result<bool, Error> {
        let key = BroadcastKeys::new(app).tasks(&task.broadcast);
        let mut command = redis::cmd("XPENDING");
        command.arg(&key).arg(GROUP).arg(&task.entry).arg(&task.entry).arg(1).arg(consumer);
        let mine: Option<StreamPendingCountReply> = there(self.redis()?.run(&command).await)?;
        if mine.is_none_or(|mine| mine.ids.is_empty()) {
            return Ok(false);
        }
        let mut command = redis::cmd("XCLAIM");
        command.arg(&key).arg(GROUP).arg(consumer).arg(0).arg(&task.entry).arg("JUSTID");
        let kept: Option<Vec<String>> = there(self.redis()?.run(&command).await)?;
        Ok(kept.is_some_and(|kept| !kept.is_empty()))
    }

    /// Ends the work on a task. Returns the state of the broadcast if it still exists. A broadcast whose last bucket is
    /// finished becomes DONE, unless it was cancelled.
    pub async fn leave_task(&self, app: &AppId, task: &Task, left: Left) -> Result<Option<State>, Error> {
        let keys = BroadcastKeys::new(app);
        let id = &task.broadcast;
        let left = match left {
            Left::Done => "done",
            Left::Stopped => "leave",
            Left::Passed => "pass",
        };
        let (state, over): (String, bool) = self
            .redis()?
            .invoke(&scripts::BROADCAST_FINISH, |command| {
                command.arg(5).arg(keys.record(id)).arg(keys.open(id)).arg(keys.tasks(id)).arg(keys.running());
                command.arg(keys.due()).arg(GROUP).arg(&task.entry).arg(id.as_str()).arg(task.bucket.0);
                command.arg(KEEP_ENDED.as_secs()).arg(left);
            })
            .await?;
        if over {
            self.keep_parts(app, id, KEEP_ENDED).await?;
        }
        if state.is_empty() { Ok(None) } else { State::parse(&state).map(Some) }
    }
}

/// Maps a missing stream to `None`.
fn there<T>(reply: Result<T, Error>) -> Result<Option<T>, Error> {
    match reply {
        Err(Error::Redis(error)) if error.code() == Some("NOGROUP") => Ok(None),
        reply => reply.map(Some),
    }
}

fn read(id: &BroadcastId, entry: StreamId) -> Option<Task> {
    let bucket = entry.map.into_values().next()?;
    let bucket = Bucket(u16::from_redis_value(bucket).ok()?);
    Some(Task { entry: entry.id, broadcast: id.clone(), bucket })
}
