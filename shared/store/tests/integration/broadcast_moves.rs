//! The record of a broadcast, and its moves from one state to another.

use std::time::Duration;

use deadpool_redis::redis;
use domain::RequestId;
use store::broadcast::BroadcastId;
use store::broadcast::records::{CANARY, Created, Draft, Move, Moved, Pause, State};
use store::broadcast::tasks::Left;
use store::keys::BroadcastKeys;
use store::retention::{KEEP_ENDED, KEEP_OPEN};

use crate::broadcast::{Broadcast, NOW_MS, draft};
use crate::fixture::{Fixture, user};

const START: Move = Move::Start { everyone: true };
const RESUME: Move = Move::Resume { due: false };
const DUE: Move = Move::Resume { due: true };
const HOUR_MS: u64 = 3_600_000;

fn pause(reason: &str, resume_ms: Option<u64>) -> Move {
    let (rid, field) = ("rid1".to_owned(), "data.thing3.value".to_owned());
    Move::Pause(Pause { reason: reason.to_owned(), errcode: Some(45009), rid, resume_ms, field })
}

/// A broadcast to everyone in this state. If it is done, it has no tasks left.
async fn in_state(fixture: &Fixture, state: State) -> Broadcast<'_> {
    let broadcast = Broadcast::new(fixture, true).await;
    let moves: &[Move] = match state {
        State::Pending => &[],
        State::Running | State::Done => &[START],
        State::Paused => &[START, pause("QUOTA", Some(NOW_MS + HOUR_MS))],
        State::Cancelled => &[Move::Cancel],
    };
    for to in moves {
        broadcast.go(to).await;
    }
    if state == State::Done {
        finish(&broadcast).await;
    }
    assert_eq!(broadcast.record().await.state, state);
    broadcast
}

/// Finishes all tasks of a broadcast. Returns the state that the last one reported.
async fn finish(broadcast: &Broadcast<'_>) -> Option<State> {
    let Fixture { store, app, .. } = broadcast.fixture;
    let mut last = None;
    for task in broadcast.tasks("somebody", Duration::ZERO, 100).await {
        last = store.leave_task(app, &task, Left::Done).await.unwrap();
    }
    last
}

async fn due(fixture: &Fixture, now_ms: u64) -> Vec<BroadcastId> {
    fixture.store.due_broadcasts(&fixture.app, now_ms).await.unwrap()
}

#[tokio::test]
async fn each_move_is_permitted_in_some_states_and_else_has_no_effect() {
    use State::{Cancelled, Done, Paused, Pending, Running};
    let fixture = Fixture::new().await;
    let moves = [
        (START, [Some(Running), None, None, None, None]),
        (pause("CALLER", None), [None, Some(Paused), None, None, None]),
        (RESUME, [None, None, Some(Running), None, None]),
        // The pause does not end at this time yet.
        (DUE, [None; 5]),
        (Move::Cancel, [Some(Cancelled), Some(Cancelled), Some(Cancelled), None, None]),
    ];
    for (to, wanted) in moves {
        for (state, wanted) in [Pending, Running, Paused, Cancelled, Done].into_iter().zip(wanted) {
            let broadcast = in_state(&fixture, state).await;
            let before = fixture.everything().await;
            match wanted {
                Some(wanted) => {
                    assert_eq!(broadcast.go(&to).await, Moved::To(wanted), "{state:?} {to:?}");
                    assert_eq!(broadcast.record().await.state, wanted);
                    let known = fixture.store.broadcast_state(&fixture.app, &broadcast.id).await.unwrap();
                    assert_eq!(known, Some(wanted));
                }
                None => {
                    assert_eq!(broadcast.go(&to).await, Moved::Wrong(state), "{state:?} {to:?}");
                    assert_eq!(fixture.everything().await, before, "{state:?} {to:?}");
                }
            }
            assert_eq!(state.is_final(), matches!(state, Cancelled | Done));
            fixture.assert_sound().await;
        }
        let nothing = BroadcastId::new(NOW_MS);
        let moved = fixture.store.move_broadcast(&fixture.app, &nothing, &to, NOW_MS).await.unwrap();
        assert_eq!(moved, Moved::Missing);
        assert_eq!(fixture.store.broadcast(&fixture.app, &nothing).await.unwrap(), None);
        assert_eq!(fixture.store.broadcast_state(&fixture.app, &nothing).await.unwrap(), None);
    }
}

#[tokio::test]
async fn broadcast_reads_back_as_it_was_stored() {
    let fixture = Fixture::new().await;
    let full = Draft { spec: vec![0, 255, b'\n'], not_before_ms: Some(NOW_MS + 1), canary: Some(7), ..draft(true) };
    for draft in [full, draft(false)] {
        let record = Broadcast::of(&fixture, &draft).await.record().await;
        assert_eq!((&record.id, &record.spec, record.everyone), (&draft.id, &draft.spec, draft.everyone));
        assert_eq!((record.not_before_ms, record.canary), (draft.not_before_ms, draft.canary));
        assert_eq!((record.state, record.scheduled, record.pause), (State::Pending, false, None));
        assert_eq!((record.started_ms, record.ended_ms), (None, None));
        assert!((record.created_ms / 1000).abs_diff(testing::now() as u64) < 60);
    }
}

#[tokio::test]
async fn request_id_finds_its_broadcast_and_rejects_other_content() {
    let fixture = Fixture::new().await;
    let request = RequestId::parse("r1").unwrap();
    let create = async |draft: &Draft, message| {
        fixture.store.create_broadcast(&fixture.app, draft, Some((&request, [message; 16]))).await.unwrap()
    };
    let first = draft(true);
    assert_eq!(create(&first, 1).await, Created::New);
    let before = fixture.everything().await;
    assert_eq!(create(&first, 1).await, Created::Exists(first.id.clone()));
    assert_eq!(create(&draft(true), 1).await, Created::Exists(first.id.clone()));
    assert_eq!(create(&draft(true), 2).await, Created::Reused);
    assert_eq!(fixture.everything().await, before);
    assert_eq!(fixture.store.create_broadcast(&fixture.app, &draft(true), None).await.unwrap(), Created::New);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn broadcasts_are_listed_newest_first_without_expired_ones() {
    let fixture = Fixture::new().await;
    let mut ids = Vec::new();
    for number in 0..7 {
        let draft = Draft { id: BroadcastId::new(NOW_MS + number), ..draft(true) };
        let broadcast = Broadcast::of(&fixture, &draft).await;
        if number % 2 == 1 {
            broadcast.go(&Move::Cancel).await;
        }
        ids.insert(0, draft.id);
    }
    let list = async |before: Option<&BroadcastId>, count| -> Vec<BroadcastId> {
        let records = fixture.store.broadcasts(&fixture.app, before, count).await.unwrap();
        records.into_iter().map(|record| record.id).collect()
    };
    assert_eq!(list(None, 100).await, ids);
    assert_eq!(list(None, 3).await, ids[..3]);
    assert_eq!(list(Some(&ids[2]), 3).await, ids[3..6]);
    assert_eq!(list(Some(&ids[6]), 3).await, []);
    fixture.advance(KEEP_ENDED.as_secs() as i64 / 3600 + 1).await;
    let open: Vec<_> = ids.iter().step_by(2).cloned().collect();
    assert_eq!(list(None, 3).await, open[..3], "the page is still full");
    assert_eq!(list(None, 100).await, open);
    fixture.advance(KEEP_OPEN.as_secs() as i64 / 3600).await;
    assert_eq!(list(None, 100).await, []);
    for id in fixture.store.running_broadcasts(&fixture.app).await.unwrap() {
        fixture.store.move_broadcast(&fixture.app, &id, &Move::Cancel, NOW_MS).await.unwrap();
    }
    assert!(fixture.everything().await.keys().all(|key| !key.contains("broadcast")), "no key of them stays");
}

#[tokio::test]
async fn scheduled_start_waits_until_it_is_due() {
    let fixture = Fixture::new().await;
    let later = NOW_MS + HOUR_MS;
    let broadcast = Broadcast::of(&fixture, &Draft { not_before_ms: Some(later), ..draft(true) }).await;
    let start = async |now_ms| fixture.store.move_broadcast(&fixture.app, &broadcast.id, &START, now_ms).await.unwrap();
    for now_ms in [NOW_MS, NOW_MS, later - 1] {
        assert_eq!(start(now_ms).await, Moved::To(State::Pending));
        assert!(broadcast.record().await.scheduled);
        assert_eq!((due(&fixture, later - 1).await, due(&fixture, later).await), (vec![], vec![broadcast.id.clone()]));
        assert_eq!(finish(&broadcast).await, None, "no tasks");
        fixture.assert_sound().await;
    }
    assert_eq!(start(later).await, Moved::To(State::Running));
    let record = broadcast.record().await;
    assert!(!record.scheduled && record.started_ms.is_some());
    assert_eq!(due(&fixture, u64::MAX >> 12).await, []);
    assert_eq!(finish(&broadcast).await, Some(State::Done));
    // A broadcast that is cancelled before its time never starts.
    let other = Broadcast::of(&fixture, &Draft { not_before_ms: Some(later), ..draft(true) }).await;
    other.go(&START).await;
    other.go(&Move::Cancel).await;
    assert_eq!((due(&fixture, later).await, other.record().await.scheduled), (vec![], false));
    // A broadcast whose start time has passed starts immediately.
    let past = Broadcast::of(&fixture, &Draft { not_before_ms: Some(NOW_MS), ..draft(true) }).await;
    assert_eq!(past.go(&START).await, Moved::To(State::Running));
}

#[tokio::test]
async fn only_a_pause_with_an_end_becomes_due() {
    let fixture = Fixture::new().await;
    let later = NOW_MS + HOUR_MS;
    let broadcast = in_state(&fixture, State::Running).await;
    let resume =
        async |to, now_ms| fixture.store.move_broadcast(&fixture.app, &broadcast.id, to, now_ms).await.unwrap();
    broadcast.go(&pause("CALLER", None)).await;
    assert_eq!(due(&fixture, later).await, []);
    assert_eq!(resume(&DUE, later).await, Moved::Wrong(State::Paused));
    assert_eq!(resume(&RESUME, NOW_MS).await, Moved::To(State::Running));

    broadcast.go(&pause("QUOTA", Some(later))).await;
    let recorded = broadcast.record().await.pause.unwrap();
    assert_eq!(Move::Pause(recorded), pause("QUOTA", Some(later)));
    assert_eq!((due(&fixture, later - 1).await, due(&fixture, later).await), (vec![], vec![broadcast.id.clone()]));
    assert_eq!(resume(&DUE, later - 1).await, Moved::Wrong(State::Paused), "listed for an earlier pause");
    assert_eq!(resume(&DUE, later).await, Moved::To(State::Running));
    assert_eq!((due(&fixture, later).await, broadcast.record().await.pause), (vec![], None));

    // A caller resumes it before its time.
    broadcast.go(&pause("QUOTA", Some(later))).await;
    assert_eq!(resume(&RESUME, NOW_MS).await, Moved::To(State::Running));
    assert_eq!(due(&fixture, later).await, []);
    assert_eq!(resume(&DUE, later).await, Moved::Wrong(State::Running));
    fixture.assert_sound().await;
}

#[tokio::test]
async fn ended_or_expired_broadcasts_are_not_due() {
    let fixture = Fixture::new().await;
    let later = NOW_MS + HOUR_MS;
    for to in [Some(Move::Cancel), None] {
        let broadcast = in_state(&fixture, State::Running).await;
        broadcast.go(&pause("QUOTA", Some(later))).await;
        match to {
            Some(to) => drop(broadcast.go(&to).await),
            // The work that was in progress at the pause finishes.
            None => assert_eq!(finish(&broadcast).await, Some(State::Done)),
        }
        assert_eq!(due(&fixture, later).await, []);
        let record = broadcast.record().await;
        assert!(record.pause.is_none() && record.ended_ms.is_some());
        finish(&broadcast).await;
    }
    let broadcast = in_state(&fixture, State::Paused).await;
    fixture.advance(KEEP_OPEN.as_secs() as i64 / 3600 + 1).await;
    assert_eq!(due(&fixture, later).await, std::slice::from_ref(&broadcast.id));
    assert_eq!(broadcast.go(&DUE).await, Moved::Missing);
    assert_eq!(due(&fixture, later).await, [], "a move of an expired broadcast removes it from the list");
}

#[tokio::test]
async fn only_a_resume_from_the_canary_pause_lifts_the_canary() {
    let fixture = Fixture::new().await;
    for reason in ["CALLER", "QUOTA", CANARY] {
        let broadcast = Broadcast::of(&fixture, &Draft { canary: Some(10), ..draft(true) }).await;
        broadcast.start().await;
        broadcast.go(&pause(reason, None)).await;
        assert_eq!(broadcast.record().await.canary, Some(10));
        broadcast.go(&RESUME).await;
        assert_eq!(broadcast.record().await.canary, (reason != CANARY).then_some(10), "{reason}");
    }
}

#[tokio::test]
async fn refusal_streak_ends_on_acceptance_or_a_manual_resume() {
    let fixture = Fixture::new().await;
    let broadcast = in_state(&fixture, State::Running).await;
    let (store, app, id) = (&fixture.store, &fixture.app, &broadcast.id);
    for _ in 0..2 {
        assert_eq!(store.lengthen_streak(app, id).await.unwrap(), 1);
        assert_eq!(store.lengthen_streak(app, id).await.unwrap(), 2);
        store.end_streak(app, id).await.unwrap();
    }
    store.lengthen_streak(app, id).await.unwrap();
    broadcast.go(&pause("MESSAGE_REFUSED", None)).await;
    broadcast.go(&RESUME).await;
    assert_eq!(store.lengthen_streak(app, id).await.unwrap(), 1);
    // Calls for a deleted broadcast create no key.
    let before = fixture.everything().await;
    let gone = BroadcastId::new(NOW_MS + 1);
    assert_eq!(store.lengthen_streak(app, &gone).await.unwrap(), 0);
    store.end_streak(app, &gone).await.unwrap();
    assert_eq!(fixture.everything().await, before);
}

#[tokio::test]
async fn keys_that_a_broadcast_needs_live_as_long_as_it_does() {
    let fixture = Fixture::new().await;
    let users = ["oA", "oB"].map(user);
    let days = async |days: i64| {
        fixture.advance(days * 24).await;
        fixture.assert_sound().await;
    };
    for everyone in [true, false] {
        let broadcast = Broadcast::new(&fixture, everyone).await;
        broadcast.add(if everyone { &[] } else { &users }, &[]).await;
        days(20).await;
        broadcast.start().await;
        days(20).await;
        broadcast.go(&pause("CALLER", None)).await;
        days(20).await;
        broadcast.go(&RESUME).await;
        assert_eq!(finish(&broadcast).await, Some(State::Done), "no bucket is lost");
        days(6).await;
        let keys = BroadcastKeys::new(&fixture.app);
        let parts: u32 = fixture.raw(redis::cmd("SCARD").arg(keys.parts(&broadcast.id))).await;
        assert_eq!((broadcast.record().await.state, parts > 0), (State::Done, !everyone));
    }
}
