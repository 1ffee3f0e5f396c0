//! The shared access token: replicas over a real Redis, and a WeChat that counts what it is asked.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod rig;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use dispatcher::wechat::client::Cause;
use dispatcher::wechat::token::{TokenError, Tokens, Trouble};
use futures_util::FutureExt;
use futures_util::future::join_all;
use rig::{Rig, id};
use serde_json::json;
use shared::store::tokens::SharedToken;
use testing::eventually;
use tokio::task::JoinHandle;

const SOON: Duration = Duration::from_secs(10);

async fn value(tokens: &Tokens) -> String {
    tokens.get().await.unwrap().value().to_owned()
}

#[tokio::test]
async fn a_warm_token_asks_neither_wechat_nor_redis() {
    let mut rig = Rig::start().await;
    let tokens = rig.replica().await;
    tokens.get().await.unwrap();
    rig.redis.kill();
    for _ in 0..1000 {
        // Ready at the first poll: nothing was waited for.
        assert_eq!(tokens.get().now_or_never().unwrap().unwrap().value(), "CANARY-1");
    }
    assert_eq!(rig.calls(), 1);
}

#[tokio::test]
async fn fifty_gets_over_three_replicas_are_one_fetch() {
    for rig in [Rig::start().await, Rig::plain().await] {
        rig.set(|wechat| wechat.pause = Duration::from_millis(200));
        let replicas = [rig.replica().await, rig.replica().await, rig.replica().await];
        let values = join_all((0..50).map(|n| value(&replicas[n % 3]))).await;
        assert!(values.iter().all(|value| value == "CANARY-1"), "{values:?}");
        assert_eq!(rig.calls(), 1);
    }
}

#[tokio::test]
async fn a_token_that_dies_in_use_is_replaced_once_for_all_replicas() {
    let rig = Rig::start().await;
    let replicas = [rig.replica().await, rig.replica().await, rig.replica().await];
    let tokens = join_all(replicas.iter().map(|replica| async { replica.get().await.unwrap() })).await;
    rig.set(|wechat| {
        wechat.issued += 1;
        wechat.pause = Duration::from_millis(50);
    });
    // Many sends of each replica meet the same 42001 at about the same time.
    let values = join_all((0..60).map(|n| {
        let (replica, token) = (&replicas[n % 3], &tokens[n % 3]);
        async move {
            replica.failed(token).await;
            value(replica).await
        }
    }))
    .await;
    assert!(values.iter().all(|value| value == "CANARY-2"), "{values:?}");
    assert_eq!((rig.calls(), rig.forced()), (2, 0));
}

#[tokio::test]
async fn a_late_report_of_a_dead_token_does_not_touch_its_successor() {
    let rig = Rig::plain().await;
    let (one, two) = (rig.replica().await, rig.replica().await);
    let (dead, same) = (one.get().await.unwrap(), two.get().await.unwrap());
    one.failed(&dead).await;
    assert_eq!(value(&one).await, "CANARY-2");
    two.failed(&same).await;
    assert_eq!(rig.shared().await.as_deref(), Some("CANARY-2"));
    assert_eq!(value(&two).await, "CANARY-2");
    for late in [&one, &two] {
        late.failed(&dead).await;
        assert_eq!(late.get().now_or_never().unwrap().unwrap().value(), "CANARY-2");
    }
    assert_eq!((rig.shared().await.as_deref(), rig.calls()), (Some("CANARY-2"), 2));
}

#[tokio::test]
async fn a_dead_token_that_wechat_gives_again_is_ended_by_one_forced_refresh() {
    let rig = Rig::start().await;
    let (one, two) = (rig.replica().await, rig.replica().await);
    let (dead, same) = (one.get().await.unwrap(), two.get().await.unwrap());
    let renewed = join_all([(&one, &dead), (&two, &same)].map(|(replica, token)| async move {
        replica.failed(token).await;
        value(replica).await
    }))
    .await;
    assert_eq!((renewed, rig.forced()), (vec!["CANARY-2".to_owned(); 2], 1));
    // And not again within the time that WeChat sets, however often it is asked, and by whichever replica.
    for replica in [&one, &two] {
        replica.failed(&replica.get().await.unwrap()).await;
    }
    for n in 0..100 {
        assert_eq!([&one, &two][n % 2].get().await.unwrap_err(), TokenError::Transient(Trouble::SameAgain));
    }
    assert_eq!(rig.forced(), 1);
    assert_eq!(rig.shared().await, None, "a dead token is not shared");
}

#[tokio::test]
async fn tokens_that_die_one_after_the_other_are_fetched_ever_more_slowly() {
    let rig = Rig::plain().await;
    let tokens = rig.replica().await;
    let error = loop {
        match tokens.get().await {
            Ok(token) => tokens.failed(&token).await,
            Err(error) => break error,
        }
    };
    assert_eq!((error, rig.calls()), (TokenError::Transient(Trouble::Dying), 11));
}

#[tokio::test]
async fn a_dead_token_that_another_replica_shares_again_is_not_taken() {
    let rig = Rig::plain().await;
    let tokens = rig.replica().await;
    let dead = tokens.get().await.unwrap();
    tokens.failed(&dead).await;
    let again = SharedToken { token: dead.value().to_owned(), ends_ms: testing::now() as u64 * 1000 + 60_000 };
    rig.store().await.put_token(&id(), &again, Duration::from_secs(60)).await.unwrap();
    assert_eq!(value(&tokens).await, "CANARY-2");
    assert_eq!(rig.shared().await.as_deref(), Some("CANARY-2"));
}

#[tokio::test]
async fn without_redis_a_stable_token_is_fetched_directly_and_a_plain_one_is_not() {
    let mut rig = Rig::start().await;
    let (one, other) = (rig.replica().await, rig.replica().await);
    rig.redis.kill();
    assert_eq!((value(&one).await, value(&other).await), ("CANARY-1".into(), "CANARY-1".into()));
    let mut rig = Rig::plain().await;
    let tokens = rig.replica().await;
    rig.redis.kill();
    assert_eq!(tokens.get().await.unwrap_err(), TokenError::Transient(Trouble::Store));
    assert_eq!(rig.calls(), 0);
    rig.redis.resume();
    eventually("Redis is back", SOON, async || tokens.get().await.is_ok()).await;
}

#[tokio::test]
async fn a_token_in_memory_outlives_redis_even_when_it_must_be_renewed() {
    let mut rig = Rig::start().await;
    rig.set(|wechat| (wechat.life, wechat.window) = (3.0, 2.0));
    let tokens = rig.replica().await;
    let renewal = tokio::spawn(tokens.clone().renew_forever());
    assert_eq!(value(&tokens).await, "CANARY-1");
    rig.redis.kill();
    eventually("renewed", SOON, async || tokens.get().await.unwrap().value() == "CANARY-2").await;
    renewal.abort();
}

#[tokio::test]
async fn a_final_refusal_is_told_with_what_to_do_and_not_repeated() {
    let rig = Rig::start().await;
    rig.set(|wechat| wechat.refusal = Some(json!({"errcode": 40164, "errmsg": "invalid ip 1.2.3.4 rid: 5f-1"})));
    let tokens = rig.replica().await;
    let renewal = tokio::spawn(tokens.clone().renew_forever());
    for error in join_all((0..100).map(|_| tokens.get())).await {
        let TokenError::Refused { errcode, rid, sentence } = error.unwrap_err() else { panic!("not refused") };
        assert_eq!((errcode, rid.as_str()), (40164, "5f-1"));
        assert!(sentence.contains("IP list"), "{sentence}");
    }
    assert_eq!(rig.calls(), 1);
    // Another replica, whose address is listed, gets one: this one takes it from Redis.
    rig.set(|wechat| wechat.refusal = None);
    assert_eq!(value(&rig.replica().await).await, "CANARY-1");
    eventually("the shared token is taken", SOON, async || tokens.get().await.is_ok()).await;
    assert_eq!(rig.calls(), 2);
    renewal.abort();
}

#[tokio::test]
async fn an_error_that_passes_is_tried_again_with_pauses() {
    let rig = Rig::start().await;
    rig.set(|wechat| wechat.refusal = Some(json!({"errcode": -1, "errmsg": "system error"})));
    let tokens = rig.replica().await;
    let busy = TokenError::Transient(Trouble::WeChat(Cause::Refused(-1)));
    while rig.calls() < 4 {
        assert_eq!(tokens.get().await.unwrap_err(), busy);
        tokio::task::yield_now().await;
    }
    // The first pause is 200 ms, give or take a fifth, and each is twice as long as the one before.
    for (calls, least) in rig.asked().windows(2).zip([160, 320, 640]) {
        assert!(calls[1] - calls[0] >= Duration::from_millis(least), "{:?}", rig.asked());
    }
    rig.set(|wechat| wechat.refusal = None);
    eventually("a token", SOON, async || tokens.get().await.is_ok()).await;
}

#[tokio::test]
async fn tokens_are_renewed_in_the_background_and_no_get_waits() {
    let rig = Rig::start().await;
    rig.set(|wechat| {
        (wechat.life, wechat.window) = (14.0, 7.0);
        wechat.pause = Duration::from_millis(50);
    });
    let replicas = [rig.replica().await, rig.replica().await];
    let renewals = replicas.clone().map(|replica| tokio::spawn(replica.renew_forever()));
    join_all(replicas.iter().map(value)).await;
    let mut seen = HashSet::new();
    eventually("both replicas have the second token", Duration::from_secs(20), async || {
        let values = replicas.each_ref().map(|replica| {
            let token = replica.get().now_or_never().expect("a get waited").unwrap();
            token.value().to_owned()
        });
        seen.extend(values.clone());
        values.iter().all(|value| value == "CANARY-2")
    })
    .await;
    assert_eq!((seen.len(), rig.calls(), rig.forced()), (2, 2, 0));
    renewals.iter().for_each(JoinHandle::abort);
}

#[tokio::test]
async fn a_lock_left_by_a_dead_replica_delays_and_no_more() {
    let rig = Rig::start().await;
    let tokens = rig.replica().await;
    let start = Instant::now();
    assert!(rig.store().await.lock_token(&id(), "dead", Duration::from_millis(700)).await.unwrap());
    assert_eq!(value(&tokens).await, "CANARY-1");
    assert!(start.elapsed() > Duration::from_millis(500));
    let retaken = rig.store().await.lock_token(&id(), "next", SOON).await.unwrap();
    assert!(retaken, "the lock was given back");
}

#[tokio::test]
async fn waiting_for_another_replica_has_an_end() {
    let rig = Rig::start().await;
    let tokens = rig.replica().await;
    assert!(rig.store().await.lock_token(&id(), "slow", Duration::from_secs(3600)).await.unwrap());
    assert_eq!(tokens.get().await.unwrap_err(), TokenError::Transient(Trouble::Locked));
    assert_eq!(rig.calls(), 0);
}

#[tokio::test]
async fn a_clock_that_is_ahead_does_not_fetch_what_redis_still_holds() {
    let rig = Rig::plain().await;
    let tokens = rig.replica().await;
    let past = SharedToken { token: "CANARY-0".into(), ends_ms: testing::now() as u64 * 1000 - 60_000 };
    rig.store().await.put_token(&id(), &past, Duration::from_secs(60)).await.unwrap();
    for _ in 0..5 {
        assert_eq!(value(&tokens).await, "CANARY-0");
    }
    assert_eq!(rig.calls(), 0);
}

#[tokio::test]
async fn a_caller_that_gives_up_ends_no_fetch() {
    let rig = Rig::start().await;
    rig.set(|wechat| wechat.pause = Duration::from_millis(300));
    let tokens = rig.replica().await;
    let mut given_up = Box::pin(tokens.get());
    eventually("WeChat is asked", SOON, async || {
        assert!(given_up.as_mut().now_or_never().is_none());
        rig.asked().len() == 1
    })
    .await;
    drop(given_up);
    assert_eq!(value(&tokens).await, "CANARY-1");
    assert_eq!((rig.shared().await.as_deref(), rig.calls()), (Some("CANARY-1"), 1));
}

#[tokio::test]
async fn a_token_that_ended_is_fetched_once_for_all_replicas() {
    let rig = Rig::start().await;
    rig.set(|wechat| (wechat.life, wechat.window) = (2.0, 1.0));
    let replicas = [rig.replica().await, rig.replica().await, rig.replica().await];
    join_all(replicas.iter().map(value)).await;
    eventually("the first token ends", SOON, async || rig.shared().await.is_none()).await;
    let values = join_all((0..30).map(|n| value(&replicas[n % 3]))).await;
    assert!(values.iter().all(|value| value == "CANARY-2"), "{values:?}");
    assert_eq!(rig.calls(), 2);
}

#[tokio::test]
async fn nothing_that_can_be_printed_holds_a_token_or_a_secret() {
    let rig = Rig::start().await;
    let token = rig.replica().await.get().await.unwrap();
    let mut printed = format!("{token:?}");
    rig.store().await.drop_token(&id(), &SharedToken { token: token.value().into(), ends_ms: 0 }).await.unwrap();
    for refusal in [
        json!({"errcode": 40001, "errmsg": "CANARY-secret rid: CANARY.secret"}),
        json!({"errcode": 45011, "errmsg": "CANARY-secret"}),
        json!({"errcode": 77777, "errmsg": "CANARY-secret"}),
        json!({"access_token": "CANARY token", "expires_in": 7200}),
    ] {
        let rig = Rig::start().await;
        rig.set(|wechat| wechat.refusal = Some(refusal));
        let error = rig.replica().await.get().await.unwrap_err();
        printed += &format!("{error:?} {error}");
    }
    let rig = Rig::plain().await;
    let closed = format!("http://127.0.0.1:{}", testing::free_port());
    let error = rig.replica_at(&closed).await.get().await.unwrap_err();
    assert_eq!(error, TokenError::Transient(Trouble::WeChat(Cause::Connect)));
    printed += &format!("{error:?} {error}");
    assert!(!printed.contains("CANARY"), "{printed}");
}
