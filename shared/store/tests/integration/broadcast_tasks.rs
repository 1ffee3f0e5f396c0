//! Tasks: each belongs to one consumer, and another consumer takes it over when that one is silent.

use std::collections::HashSet;
use std::time::Duration;

use deadpool_redis::redis;
use store::broadcast::records::{Move, Moved, Pause, State};
use store::broadcast::tasks::{Left, TakeTasks, Task};
use store::keys::{BroadcastKeys, Bucket};
use tokio::task::JoinSet;

use crate::broadcast::Broadcast;
use crate::fixture::{Fixture, user};

/// No consumer is silent for so long in a test, unless [`silence`] makes it so.
const SILENCE: Duration = Duration::from_secs(1800);
const NEVER: Duration = Duration::from_secs(3600);

async fn take(broadcast: &Broadcast<'_>, consumer: &str, count: usize) -> Vec<Task> {
    take_over(broadcast, consumer, NEVER, count).await
}

/// Also takes over tasks whose consumers were silent for so long.
async fn take_over(broadcast: &Broadcast<'_>, consumer: &str, silence: Duration, count: usize) -> Vec<Task> {
    broadcast.tasks(consumer, silence, count).await
}

async fn leave(fixture: &Fixture, task: &Task, left: Left) -> Option<State> {
    fixture.store.leave_task(&fixture.app, task, left).await.unwrap()
}

async fn keep(fixture: &Fixture, consumer: &str, task: &Task) -> bool {
    fixture.store.keep_task(&fixture.app, consumer, task).await.unwrap()
}

/// Makes Redis record that the consumer was silent about these tasks for [`SILENCE`].
async fn silence(broadcast: &Broadcast<'_>, consumer: &str, tasks: &[Task]) {
    let key = BroadcastKeys::new(&broadcast.fixture.app).tasks(&broadcast.id);
    let mut claim = redis::cmd("XCLAIM");
    claim.arg(key).arg("dispatchers").arg(consumer).arg(0);
    tasks.iter().for_each(|task| _ = claim.arg(&task.entry));
    let claimed: Vec<String> =
        broadcast.fixture.raw(claim.arg("IDLE").arg(SILENCE.as_millis() as u64).arg("JUSTID")).await;
    assert_eq!(claimed.len(), tasks.len());
}

async fn running(fixture: &Fixture) -> Broadcast<'_> {
    let broadcast = Broadcast::new(fixture, true).await;
    broadcast.start().await;
    broadcast
}

/// The number of tasks, and how many of them belong to a consumer.
async fn tasks(broadcast: &Broadcast<'_>) -> (u64, u64) {
    let fixture = broadcast.fixture;
    let key = BroadcastKeys::new(&fixture.app).tasks(&broadcast.id);
    if !fixture.raw::<bool>(redis::cmd("EXISTS").arg(&key)).await {
        return (0, 0);
    }
    let pending: (u64, redis::Value, redis::Value, redis::Value) =
        fixture.raw(redis::cmd("XPENDING").arg(&key).arg("dispatchers")).await;
    (fixture.raw(redis::cmd("XLEN").arg(&key)).await, pending.0)
}

fn buckets(tasks: &[Task]) -> Vec<u16> {
    let mut buckets: Vec<_> = tasks.iter().map(|task| task.bucket.0).collect();
    buckets.sort_unstable();
    buckets
}

#[tokio::test]
async fn tasks_are_all_buckets_or_those_with_recipients_for_a_list() {
    let fixture = Fixture::new().await;
    let broadcast = running(&fixture).await;
    let all = take(&broadcast, "a", 100).await;
    assert_eq!(buckets(&all), [0, 1, 2, 3]);
    assert!(all.iter().all(|task| task.broadcast == broadcast.id));
    let (anna, out) = (user("oAnna"), user("oBob"));
    let Bucket(bucket) = fixture.store.bucket_of(&anna);
    assert_ne!(fixture.store.bucket_of(&out).0, bucket);
    let list = Broadcast::new(&fixture, false).await;
    list.add(&[anna], &[out]).await;
    list.start().await;
    assert_eq!(buckets(&take(&list, "a", 100).await), [bucket]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_task_goes_to_one_of_many_concurrent_consumers() {
    let fixture = Fixture::new().await;
    let mut broadcasts = Vec::new();
    for _ in 0..25 {
        broadcasts.push(running(&fixture).await.id);
    }
    let mut consumers = JoinSet::new();
    for number in 0..8 {
        let (store, app, broadcasts) = (fixture.store.clone(), fixture.app.clone(), broadcasts.clone());
        consumers.spawn(async move {
            let mut mine = Vec::new();
            for _ in 0..4 {
                for id in &broadcasts {
                    let take = TakeTasks { consumer: &format!("c{number}"), count: 1, silence: NEVER, most: 1 };
                    mine.extend(store.take_tasks(&app, id, &take).await.unwrap());
                }
            }
            mine
        });
    }
    let all = consumers.join_all().await.concat();
    let tasks_of: HashSet<_> = all.iter().map(|task| (task.broadcast.clone(), task.bucket)).collect();
    assert_eq!((all.len(), tasks_of.len()), (100, 100));
}

#[tokio::test]
async fn last_finished_bucket_ends_a_broadcast_unless_cancelled() {
    for state in [State::Running, State::Paused, State::Cancelled] {
        let fixture = Fixture::new().await;
        let broadcast = running(&fixture).await;
        let mine = take(&broadcast, "a", 100).await;
        match state {
            State::Paused => drop(broadcast.go(&Move::Pause(Pause::default())).await),
            State::Cancelled => drop(broadcast.go(&Move::Cancel).await),
            _ => {}
        }
        for task in &mine[..3] {
            for _ in 0..2 {
                assert_eq!(leave(&fixture, task, Left::Done).await, Some(state), "also when it is repeated");
            }
        }
        let last = if state == State::Cancelled { state } else { State::Done };
        assert_eq!(leave(&fixture, &mine[3], Left::Done).await, Some(last));
        let record = broadcast.record().await;
        assert_eq!((record.state, record.ended_ms.is_some(), record.pause), (last, true, None));
        assert_eq!(tasks(&broadcast).await, (0, 0));
        fixture.assert_sound().await;
    }
}

#[tokio::test]
async fn passed_tasks_go_to_others_and_stopped_tasks_do_not() {
    let fixture = Fixture::new().await;
    let broadcast = running(&fixture).await;
    let mine = take(&broadcast, "a", 100).await;
    for task in &mine[..2] {
        for _ in 0..2 {
            assert_eq!(leave(&fixture, task, Left::Passed).await, Some(State::Running));
        }
    }
    assert_eq!(tasks(&broadcast).await, (4, 2));
    let passed = take(&broadcast, "b", 100).await;
    assert_eq!(buckets(&passed), buckets(&mine[..2]));
    broadcast.go(&Move::Pause(Pause::default())).await;
    for task in mine[2..].iter().chain(&passed) {
        assert_eq!(leave(&fixture, task, Left::Stopped).await, Some(State::Paused));
    }
    assert_eq!((tasks(&broadcast).await, take(&broadcast, "b", 100).await), ((0, 0), vec![]));
    // A task whose broadcast was deleted is removed without an error.
    broadcast.go(&Move::Resume { due: false }).await;
    let keys = BroadcastKeys::new(&fixture.app);
    fixture.raw::<()>(redis::cmd("DEL").arg(keys.record(&broadcast.id))).await;
    for task in take(&broadcast, "b", 100).await {
        assert_eq!(leave(&fixture, &task, Left::Passed).await, None);
    }
    assert_eq!(tasks(&broadcast).await, (0, 0));
}

#[tokio::test]
async fn resume_hands_out_the_unfinished_buckets() {
    let fixture = Fixture::new().await;
    let broadcast = running(&fixture).await;
    let mine = take(&broadcast, "a", 100).await;
    for task in &mine[..3] {
        leave(&fixture, task, if task == &mine[0] { Left::Stopped } else { Left::Done }).await;
    }
    broadcast.go(&Move::Pause(Pause::default())).await;
    leave(&fixture, &mine[3], Left::Stopped).await;
    assert_eq!(broadcast.go(&Move::Resume { due: false }).await, Moved::To(State::Running));
    let open = take(&broadcast, "b", 100).await;
    assert_eq!(buckets(&open), buckets(&[mine[0].clone(), mine[3].clone()]));
    assert_eq!(leave(&fixture, &open[0], Left::Done).await, Some(State::Running));
    assert_eq!(leave(&fixture, &open[1], Left::Done).await, Some(State::Done));
}

#[tokio::test]
async fn silent_tasks_are_taken_over_and_kept_tasks_are_not() {
    let fixture = Fixture::new().await;
    let broadcast = running(&fixture).await;
    let mine = take(&broadcast, "a", 100).await;
    assert_eq!(take_over(&broadcast, "b", SILENCE, 100).await, []);
    silence(&broadcast, "a", &mine).await;
    assert!(keep(&fixture, "a", &mine[1]).await);
    let over = take_over(&broadcast, "b", SILENCE, 2).await;
    assert_eq!(over, [mine[0].clone(), mine[2].clone()]);
    assert_eq!(take_over(&broadcast, "c", SILENCE, 2).await, [mine[3].clone()], "not what was just taken over");
    for (consumer, task, kept) in [
        ("a", &mine[0], false),
        ("b", &mine[0], true),
        ("c", &mine[0], false),
        ("a", &mine[1], true),
        ("b", &mine[3], false),
        ("c", &mine[3], true),
    ] {
        assert_eq!(keep(&fixture, consumer, task).await, kept, "{consumer} {task:?}");
    }
    // A finished task belongs to no consumer.
    leave(&fixture, &mine[1], Left::Done).await;
    assert!(!keep(&fixture, "a", &mine[1]).await);
    assert_eq!(tasks(&broadcast).await, (3, 3));
}

#[tokio::test]
async fn silent_task_is_found_behind_any_number_of_kept_ones() {
    let fixture = Fixture::new().await;
    let broadcast = running(&fixture).await;
    let (alive, silent) = (take(&broadcast, "a", 3).await, take(&broadcast, "b", 100).await);
    assert_eq!((alive.len(), silent.len()), (3, 1));
    for (consumer, tasks) in [("a", &alive), ("b", &silent)] {
        silence(&broadcast, consumer, tasks).await;
    }
    for task in &alive {
        assert!(keep(&fixture, "a", task).await);
    }
    assert_eq!(take_over(&broadcast, "c", SILENCE, 1).await, silent);
}

#[tokio::test]
async fn broadcast_that_is_not_started_has_no_tasks() {
    let fixture = Fixture::new().await;
    let pending = Broadcast::new(&fixture, true).await;
    assert_eq!(take_over(&pending, "a", Duration::ZERO, 1).await, []);
}

#[tokio::test]
async fn consumer_without_capacity_may_still_claim_silent_tasks() {
    let fixture = Fixture::new().await;
    let broadcast = running(&fixture).await;
    let silent = take(&broadcast, "a", 2).await;
    silence(&broadcast, "a", &silent).await;
    let Fixture { store, app, .. } = &fixture;
    let claim = async |most| {
        let take = TakeTasks { consumer: "b", count: 0, silence: SILENCE, most };
        store.take_tasks(app, &broadcast.id, &take).await.unwrap()
    };
    assert_eq!(claim(1).await, silent[..1]);
    assert_eq!(claim(9).await, silent[1..], "but no tasks without a consumer");
    assert_eq!(take(&broadcast, "b", 100).await.len(), 2);
}
