//! The shared access token: several replicas on a real Redis, and a WeChat that counts requests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fixture;
mod sources;
mod token_server;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use dispatcher::wechat::error::{Cause, TokenError, Trouble};
use dispatcher::wechat::token::Tokens;
use fixture::{Fixture, id};
use futures_util::FutureExt;
use futures_util::future::join_all;
use serde_json::json;
use store::tokens::SharedToken;
use testing::eventually;
use tokio::task::JoinHandle;

const SOON: Duration = Duration::from_secs(10);

async fn value(tokens: &Tokens) -> String {
    tokens.get().await.unwrap().value().to_owned()
}

#[tokio::test]
async fn cached_token_is_used_without_asking_wechat_or_redis() {
    let mut fixture = Fixture::start().await;
    let tokens = fixture.replica().await;
    tokens.get().await.unwrap();
    fixture.redis.kill();
    for _ in 0..1000 {
        // Ready at the first poll, so the call did not wait.
        assert_eq!(tokens.get().now_or_never().unwrap().unwrap().value(), "CANARY-1");
    }
    assert_eq!(fixture.calls(), 1);
}

#[tokio::test]
async fn fifty_gets_on_three_replicas_cause_one_fetch() {
    for fixture in [Fixture::start().await, Fixture::plain().await] {
        fixture.set(|wechat| wechat.pause = Duration::from_millis(200));
        let replicas = [fixture.replica().await, fixture.replica().await, fixture.replica().await];
        let values = join_all((0..50).map(|n| value(&replicas[n % 3]))).await;
        assert!(values.iter().all(|value| value == "CANARY-1"), "{values:?}");
        assert_eq!(fixture.calls(), 1);
    }
}

#[tokio::test]
async fn token_that_dies_in_use_is_replaced_once_for_all_replicas() {
    let fixture = Fixture::start().await;
    let replicas = [fixture.replica().await, fixture.replica().await, fixture.replica().await];
    let tokens = join_all(replicas.iter().map(|replica| async { replica.get().await.unwrap() })).await;
    fixture.set(|wechat| {
        wechat.issued += 1;
        wechat.pause = Duration::from_millis(50);
    });
    // Many sends on each replica receive 42001 for the same token at about the same time.
    let values = join_all((0..60).map(|n| {
        let (replica, token) = (&replicas[n % 3], &tokens[n % 3]);
        async move {
            replica.failed(token).await;
            value(replica).await
        }
    }))
    .await;
    assert!(values.iter().all(|value| value == "CANARY-2"), "{values:?}");
    assert_eq!((fixture.calls(), fixture.forced()), (2, 0));
}

#[tokio::test]
async fn late_report_of_a_dead_token_keeps_its_successor() {
    let fixture = Fixture::plain().await;
    let (one, two) = (fixture.replica().await, fixture.replica().await);
    let (dead, same) = (one.get().await.unwrap(), two.get().await.unwrap());
    one.failed(&dead).await;
    assert_eq!(value(&one).await, "CANARY-2");
    two.failed(&same).await;
    assert_eq!(fixture.shared().await.as_deref(), Some("CANARY-2"));
    assert_eq!(value(&two).await, "CANARY-2");
    for late in [&one, &two] {
        late.failed(&dead).await;
        assert_eq!(late.get().now_or_never().unwrap().unwrap().value(), "CANARY-2");
    }
    assert_eq!((fixture.shared().await.as_deref(), fixture.calls()), (Some("CANARY-2"), 2));
}

#[tokio::test]
async fn dead_token_that_wechat_returns_again_is_force_refreshed_once() {
    let fixture = Fixture::start().await;
    let (one, two) = (fixture.replica().await, fixture.replica().await);
    let (dead, same) = (one.get().await.unwrap(), two.get().await.unwrap());
    let renewed = join_all([(&one, &dead), (&two, &same)].map(|(replica, token)| async move {
        replica.failed(token).await;
        value(replica).await
    }))
    .await;
    assert_eq!((renewed, fixture.forced()), (vec!["CANARY-2".to_owned(); 2], 1));
    // No second forced refresh within the time that WeChat sets, regardless of the number of calls and of the replica.
    for replica in [&one, &two] {
        replica.failed(&replica.get().await.unwrap()).await;
    }
    for n in 0..100 {
        assert_eq!([&one, &two][n % 2].get().await.unwrap_err(), TokenError::Transient(Trouble::SameAgain));
    }
    assert_eq!(fixture.forced(), 1);
    assert_eq!(fixture.shared().await, None, "a dead token must not be shared");
}

#[tokio::test]
async fn fetches_slow_down_when_tokens_die_one_after_the_other() {
    let fixture = Fixture::plain().await;
    let tokens = fixture.replica().await;
    let error = loop {
        match tokens.get().await {
            Ok(token) => tokens.failed(&token).await,
            Err(error) => break error,
        }
    };
    assert_eq!((error, fixture.calls()), (TokenError::Transient(Trouble::Dying), 11));
}

#[tokio::test]
async fn dead_token_shared_again_by_another_replica_is_not_used() {
    let fixture = Fixture::plain().await;
    let tokens = fixture.replica().await;
    let dead = tokens.get().await.unwrap();
    tokens.failed(&dead).await;
    let again = SharedToken { token: dead.value().to_owned(), ends_ms: testing::now() as u64 * 1000 + 60_000 };
    fixture.store().await.put_token(&id(), &again, Duration::from_secs(60)).await.unwrap();
    assert_eq!(value(&tokens).await, "CANARY-2");
    assert_eq!(fixture.shared().await.as_deref(), Some("CANARY-2"));
}

#[tokio::test]
async fn without_redis_only_a_stable_token_is_fetched_directly() {
    let mut fixture = Fixture::start().await;
    let (one, other) = (fixture.replica().await, fixture.replica().await);
    fixture.redis.kill();
    assert_eq!((value(&one).await, value(&other).await), ("CANARY-1".into(), "CANARY-1".into()));
    let mut fixture = Fixture::plain().await;
    let tokens = fixture.replica().await;
    fixture.redis.kill();
    assert_eq!(tokens.get().await.unwrap_err(), TokenError::Transient(Trouble::Store));
    assert_eq!(fixture.calls(), 0);
    fixture.redis.resume();
    eventually("a token is available again", SOON, async || tokens.get().await.is_ok()).await;
}

#[tokio::test]
async fn token_in_memory_outlives_redis_and_is_renewed_without_it() {
    let mut fixture = Fixture::start().await;
    fixture.set(|wechat| (wechat.life, wechat.window) = (3.0, 2.0));
    let tokens = fixture.replica().await;
    let renewal = tokio::spawn(tokens.clone().renew_forever());
    assert_eq!(value(&tokens).await, "CANARY-1");
    fixture.redis.kill();
    eventually("renewed", SOON, async || tokens.get().await.unwrap().value() == "CANARY-2").await;
    renewal.abort();
}

#[tokio::test]
async fn final_refusal_carries_advice_and_is_not_retried() {
    let fixture = Fixture::start().await;
    fixture.set(|wechat| wechat.refusal = Some(json!({"errcode": 40164, "errmsg": "invalid ip 1.2.3.4 rid: 5f-1"})));
    let tokens = fixture.replica().await;
    let renewal = tokio::spawn(tokens.clone().renew_forever());
    for error in join_all((0..100).map(|_| tokens.get())).await {
        let TokenError::Refused { errcode, rid, sentence, address } = error.unwrap_err() else { panic!("not refused") };
        assert_eq!((errcode, rid.as_str(), address), (40164, "5f-1", Some([1, 2, 3, 4].into())));
        assert!(sentence.contains("IP list"), "{sentence}");
    }
    assert_eq!(fixture.calls(), 1);
    // Another replica, whose address is on WeChat's IP list, fetches a token. This replica takes it from Redis.
    fixture.set(|wechat| wechat.refusal = None);
    assert_eq!(value(&fixture.replica().await).await, "CANARY-1");
    eventually("the shared token is in use", SOON, async || tokens.get().await.is_ok()).await;
    assert_eq!(fixture.calls(), 2);
    renewal.abort();
}

#[tokio::test]
async fn unknown_errcode_is_not_retried_within_seconds() {
    let fixture = Fixture::start().await;
    fixture.set(|wechat| wechat.refusal = Some(json!({"errcode": 77777, "errmsg": "what it means is unknown"})));
    let tokens = fixture.replica().await;
    let renewal = tokio::spawn(tokens.clone().renew_forever());
    for _ in 0..100 {
        let error = tokens.get().await.unwrap_err();
        assert!(matches!(error, TokenError::Refused { errcode: 77777, address: None, .. }), "{error:?}");
    }
    assert_eq!(fixture.calls(), 1);
    renewal.abort();
}

#[tokio::test]
async fn transient_errors_are_retried_with_backoff() {
    let fixture = Fixture::start().await;
    fixture.set(|wechat| wechat.refusal = Some(json!({"errcode": -1, "errmsg": "system error"})));
    let tokens = fixture.replica().await;
    let busy = TokenError::Transient(Trouble::WeChat(Cause::Refused(-1)));
    while fixture.calls() < 4 {
        assert_eq!(tokens.get().await.unwrap_err(), busy);
        tokio::task::yield_now().await;
    }
    // The first pause is 200 ms within 20 %, and each pause is twice as long as the one before.
    for (calls, least) in fixture.asked().windows(2).zip([160, 320, 640]) {
        assert!(calls[1] - calls[0] >= Duration::from_millis(least), "{:?}", fixture.asked());
    }
    fixture.set(|wechat| wechat.refusal = None);
    eventually("a token", SOON, async || tokens.get().await.is_ok()).await;
}

#[tokio::test]
async fn tokens_are_renewed_in_the_background_so_that_no_get_waits() {
    let fixture = Fixture::start().await;
    fixture.set(|wechat| {
        (wechat.life, wechat.window) = (14.0, 7.0);
        wechat.pause = Duration::from_millis(50);
    });
    let replicas = [fixture.replica().await, fixture.replica().await];
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
    assert_eq!((seen.len(), fixture.calls(), fixture.forced()), (2, 2, 0));
    renewals.iter().for_each(JoinHandle::abort);
}

#[tokio::test]
async fn lock_of_a_dead_replica_only_delays_the_fetch() {
    let fixture = Fixture::start().await;
    let tokens = fixture.replica().await;
    let start = Instant::now();
    assert!(fixture.store().await.lock_token(&id(), "dead", Duration::from_millis(700)).await.unwrap());
    assert_eq!(value(&tokens).await, "CANARY-1");
    assert!(start.elapsed() > Duration::from_millis(500));
    let retaken = fixture.store().await.lock_token(&id(), "next", SOON).await.unwrap();
    assert!(retaken, "the lock must have been released");
}

#[tokio::test]
async fn wait_for_another_replica_is_bounded() {
    let fixture = Fixture::start().await;
    let tokens = fixture.replica().await;
    assert!(fixture.store().await.lock_token(&id(), "slow", Duration::from_secs(3600)).await.unwrap());
    assert_eq!(tokens.get().await.unwrap_err(), TokenError::Transient(Trouble::Locked));
    assert_eq!(fixture.calls(), 0);
}

#[tokio::test]
async fn clock_that_is_ahead_does_not_refetch_a_token_in_redis() {
    let fixture = Fixture::plain().await;
    let tokens = fixture.replica().await;
    let past = SharedToken { token: "CANARY-0".into(), ends_ms: testing::now() as u64 * 1000 - 60_000 };
    fixture.store().await.put_token(&id(), &past, Duration::from_secs(60)).await.unwrap();
    for _ in 0..5 {
        assert_eq!(value(&tokens).await, "CANARY-0");
    }
    assert_eq!(fixture.calls(), 0);
}

#[tokio::test]
async fn caller_that_gives_up_does_not_cancel_the_fetch() {
    let fixture = Fixture::start().await;
    fixture.set(|wechat| wechat.pause = Duration::from_millis(300));
    let tokens = fixture.replica().await;
    let mut given_up = Box::pin(tokens.get());
    eventually("WeChat received the token request", SOON, async || {
        assert!(given_up.as_mut().now_or_never().is_none());
        fixture.asked().len() == 1
    })
    .await;
    drop(given_up);
    assert_eq!(value(&tokens).await, "CANARY-1");
    assert_eq!((fixture.shared().await.as_deref(), fixture.calls()), (Some("CANARY-1"), 1));
}

#[tokio::test]
async fn expired_token_is_fetched_once_for_all_replicas() {
    let fixture = Fixture::start().await;
    fixture.set(|wechat| (wechat.life, wechat.window) = (2.0, 1.0));
    let replicas = [fixture.replica().await, fixture.replica().await, fixture.replica().await];
    join_all(replicas.iter().map(value)).await;
    eventually("the first token expired", SOON, async || fixture.shared().await.is_none()).await;
    let values = join_all((0..30).map(|n| value(&replicas[n % 3]))).await;
    assert!(values.iter().all(|value| value == "CANARY-2"), "{values:?}");
    assert_eq!(fixture.calls(), 2);
}

#[tokio::test]
async fn no_debug_or_error_text_contains_a_token_or_a_secret() {
    let fixture = Fixture::start().await;
    let token = fixture.replica().await.get().await.unwrap();
    let mut printed = format!("{token:?}");
    fixture.store().await.drop_token(&id(), &SharedToken { token: token.value().into(), ends_ms: 0 }).await.unwrap();
    for refusal in [
        json!({"errcode": 40001, "errmsg": "CANARY-secret rid: CANARY.secret"}),
        json!({"errcode": 45011, "errmsg": "CANARY-secret"}),
        json!({"errcode": 77777, "errmsg": "CANARY-secret"}),
        json!({"access_token": "CANARY token", "expires_in": 7200}),
    ] {
        let fixture = Fixture::start().await;
        fixture.set(|wechat| wechat.refusal = Some(refusal));
        let error = fixture.replica().await.get().await.unwrap_err();
        printed += &format!("{error:?} {error}");
    }
    let fixture = Fixture::plain().await;
    let closed = format!("http://127.0.0.1:{}", testing::free_port());
    let error = fixture.replica_at(&closed).await.get().await.unwrap_err();
    assert_eq!(error, TokenError::Transient(Trouble::WeChat(Cause::Connect)));
    printed += &format!("{error:?} {error}");
    assert!(!printed.contains("CANARY"), "{printed}");
}
