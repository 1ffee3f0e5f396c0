//! Single messages: the outcome for each answer of WeChat.

use std::time::Duration;

use crate::fixture::{APP, Fixture, fact, message, reason, request};
use domain::Kind;
use sandbox::FaultKind;
use server::proto::{CredentialKind, Outcome};
use testing::{eventually, now};
use tonic::Code;

#[tokio::test]
async fn message_uses_the_form_id_that_expires_soonest() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    let ids = fixture.submit("oUser", 2).await;
    let answer = dispatcher.send(message("oUser", "hello")).await.unwrap();
    assert_eq!(answer.outcome(), Outcome::Delivered);
    assert_eq!((answer.errcode, answer.attempts, answer.messages_left), (Some(0), 1, 1));
    assert_eq!(answer.kind(), CredentialKind::FormId);
    let deliveries = fixture.sandbox.deliveries(APP, &sandbox::Reading::default()).unwrap();
    assert_eq!(deliveries.len(), 1);
    assert_eq!(deliveries[0].form_id, ids[0]);
    assert_eq!(deliveries[0].data["keyword1"].value, "hello");
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn user_without_credentials_is_answered_no_credential() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    let status = dispatcher.send(message("oNobody", "x")).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "NO_CREDENTIAL"));
    assert_eq!(fixture.sandbox.books(Some(APP)).unwrap().calls, 0);
}

#[tokio::test]
async fn prepay_id_serves_three_messages() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.pay("oPayer", now() - 60).await;
    for left in [2, 1, 0] {
        let answer = dispatcher.send(message("oPayer", &format!("{left} left"))).await.unwrap();
        assert_eq!((answer.kind(), answer.messages_left), (CredentialKind::PrepayId, left));
    }
    let status = dispatcher.send(message("oPayer", "one more")).await.unwrap_err();
    assert_eq!(reason(&status), "NO_CREDENTIAL");
    assert_eq!(fixture.delivered(), 3);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn dead_form_ids_are_discarded_and_the_next_one_is_used() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.collect_dead("oUser", 3).await;
    fixture.submit("oUser", 1).await;
    let answer = dispatcher.send(request("oUser", "hello", "r1")).await.unwrap();
    assert_eq!((answer.outcome(), answer.attempts), (Outcome::Delivered, 4));
    let ledger = fixture.store.ledger(&fixture.app()).await.unwrap();
    assert_eq!((ledger.discarded, ledger.consumed), (3, 1));
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn number_of_dead_form_ids_tried_per_message_is_bounded() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher_with(&["--credentials-per-message", "3"]).await;
    fixture.collect_dead("oUser", 4).await;
    fixture.submit("oUser", 1).await;
    let status = dispatcher.send(request("oUser", "hello", "r1")).await.unwrap_err();
    assert_eq!((reason(&status).as_str(), fact(&status, "errcode").as_deref()), ("CREDENTIALS_DEAD", Some("41028")));
    assert!(fact(&status, "rid").is_some());
    assert_eq!(fixture.left("oUser").await, 2);
    let again = dispatcher.send(request("oUser", "hello", "r1")).await.unwrap();
    assert_eq!((again.outcome(), again.repeated), (Outcome::Delivered, false));
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn blocked_form_id_is_discarded() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    let ids = fixture.submit("oUser", 2).await;
    fixture.sandbox.block(APP, &ids[0]).unwrap();
    assert_eq!(dispatcher.send(message("oUser", "x")).await.unwrap().attempts, 2);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn refused_message_or_user_spends_nothing() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit("oUser", 1).await;
    for (errcode, expected) in [
        (40003, "USER_REFUSED"),
        (40037, "MESSAGE_REFUSED"),
        (41030, "MESSAGE_REFUSED"),
        (43101, "USER_REFUSED"),
        (45168, "MESSAGE_REFUSED"),
        (47001, "MESSAGE_REFUSED"),
        (47003, "MESSAGE_REFUSED"),
        (88888, "MESSAGE_REFUSED"),
    ] {
        fixture.answer(errcode, 1);
        let id = format!("r{errcode}");
        let first = dispatcher.send(request("oUser", "x", &id)).await.unwrap_err();
        assert_eq!((first.code(), reason(&first).as_str()), (Code::FailedPrecondition, expected), "{errcode}");
        assert_eq!(fact(&first, "errcode"), Some(errcode.to_string()));
        let again = dispatcher.send(request("oUser", "x", &id)).await.unwrap_err();
        assert_eq!(
            (reason(&again), fact(&again, "rid")),
            (reason(&first), fact(&first, "rid")),
            "the second call is answered from the record"
        );
        assert_eq!(fixture.left("oUser").await, 1, "{errcode}");
    }
    assert_eq!(fixture.delivered(), 0);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn transient_errors_are_retried_with_the_same_form_id() {
    for errcode in [-1, 43108, 45011] {
        let fixture = Fixture::patient().await;
        let dispatcher = fixture.dispatcher().await;
        fixture.submit("oUser", 2).await;
        fixture.answer(errcode, 2);
        let answer = dispatcher.send(message("oUser", "x")).await.unwrap();
        assert_eq!((answer.attempts, answer.messages_left), (3, 1), "{errcode}");
        fixture.assert_settled(0).await;
    }
}

#[tokio::test]
async fn lasting_error_is_reported_and_spends_nothing() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher_with(&["--attempts", "3"]).await;
    fixture.submit("oUser", 1).await;
    fixture.answer(-1, 3);
    let status = dispatcher.send(request("oUser", "x", "r1")).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "WECHAT_BUSY"));
    assert_eq!(fixture.left("oUser").await, 1);
    assert_eq!(dispatcher.send(request("oUser", "x", "r1")).await.unwrap().outcome(), Outcome::Delivered);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn stopped_app_is_not_called_again_and_keeps_its_credentials() {
    for errcode in [40013, 43104, 43107, 45102, 45103, 45501, 48001, 48004, 50002] {
        let fixture = Fixture::patient().await;
        let dispatcher = fixture.dispatcher().await;
        fixture.submit("oUser", 1).await;
        fixture.answer(errcode, 1);
        let status = dispatcher.send(message("oUser", "x")).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "APP_STOPPED"), "{errcode}");
        let calls = fixture.sandbox.books(Some(APP)).unwrap().calls;
        let again = dispatcher.send(message("oUser", "x")).await.unwrap_err();
        assert_eq!((reason(&again), fact(&again, "errcode")), ("APP_STOPPED".into(), Some(errcode.to_string())));
        assert_eq!(fixture.sandbox.books(Some(APP)).unwrap().calls, calls, "WeChat must not be called again");
        assert_eq!(fixture.left("oUser").await, 1);
        fixture.assert_settled(0).await;
    }
}

#[tokio::test]
async fn app_stop_reaches_other_replicas_and_ends_by_itself() {
    let fixture = Fixture::patient().await;
    let stop = ["--stop", "6s"];
    let (first, second) = (fixture.dispatcher_with(&stop).await, fixture.dispatcher_with(&stop).await);
    fixture.submit("oUser", 1).await;
    fixture.answer(45102, 1);
    assert_eq!(reason(&first.send(message("oUser", "x")).await.unwrap_err()), "APP_STOPPED");
    eventually("the other replica knows of the stop", Duration::from_secs(3), async || {
        let before = fixture.sandbox.books(Some(APP)).unwrap().calls;
        let status = second.send(message("oOther", "x")).await.unwrap_err();
        assert_eq!(fixture.sandbox.books(Some(APP)).unwrap().calls, before);
        reason(&status) == "APP_STOPPED"
    })
    .await;
    eventually("the stop has ended", Duration::from_secs(10), async || {
        second.send(message("oUser", "x")).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn blocked_source_is_replaced_by_another_source() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.pay("oUser", now() - 120).await;
    fixture.submit("oUser", 1).await;
    fixture.answer(41035, 1);
    let answer = dispatcher.send(message("oUser", "x")).await.unwrap();
    assert_eq!((answer.kind(), answer.attempts), (CredentialKind::FormId, 2));
    let status = dispatcher.send(message("oUser", "y")).await.unwrap_err();
    assert_eq!(reason(&status), "NO_CREDENTIAL", "the three uses that are left are of the stopped source");
    assert_eq!(fixture.left("oUser").await, 3);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn daily_quota_stops_the_app_until_midnight() {
    let fixture = Fixture::patient().await;
    let settings = fixture.settings(&[]);
    let clock = settings.clock.clone();
    let dispatcher = crate::fixture::Running::start(settings).await;
    crate::fixture::serving(crate::fixture::connect(dispatcher.address.port()).await, true).await;
    fixture.submit("oUser", 1).await;
    fixture.answer(45009, 1);
    for _ in 0..2 {
        let status = dispatcher.send(message("oUser", "x")).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "QUOTA_REACHED"));
    }
    clock.set_ahead(Duration::from_secs(24 * 3600));
    assert_eq!(dispatcher.send(message("oUser", "x")).await.unwrap().outcome(), Outcome::Delivered);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn stale_token_is_replaced_and_the_same_form_id_is_used() {
    for errcode in [40001, 40014, 42001, 41001] {
        let fixture = Fixture::patient().await;
        let dispatcher = fixture.dispatcher().await;
        fixture.submit("oUser", 2).await;
        fixture.answer(errcode, 1);
        let answer = dispatcher.send(message("oUser", "x")).await.unwrap();
        assert_eq!((answer.outcome(), answer.attempts, answer.messages_left), (Outcome::Delivered, 2, 1), "{errcode}");
        fixture.assert_settled(0).await;
    }
}

#[tokio::test]
async fn young_prepay_id_is_retried_until_wechat_accepts_it() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher_with(&["--lease", "30s"]).await;
    let settings = sandbox::Settings { young_prepay_seconds: 10, ..fixture.sandbox.settings() };
    fixture.sandbox.set_settings(settings).unwrap();
    fixture.pay("oPayer", now() - 7).await;
    let answer = dispatcher.send(message("oPayer", "paid")).await.unwrap();
    assert_eq!(answer.outcome(), Outcome::Delivered);
    assert!(answer.attempts > 1);
    assert_eq!(answer.messages_left, 2);
    fixture.assert_settled(0).await;
}

/// Makes the sandbox treat all orders as not paid yet, or as paid.
fn paid(fixture: &Fixture, paid: bool) {
    let young_prepay_seconds = if paid { 0 } else { 3600 };
    fixture.sandbox.set_settings(sandbox::Settings { young_prepay_seconds, ..fixture.sandbox.settings() }).unwrap();
}

#[tokio::test]
async fn prepay_id_of_an_unpaid_order_rests_and_the_next_credential_is_used() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    paid(&fixture, false);
    for _ in 0..2 {
        fixture.pay("oPayer", now() - 60).await;
    }
    fixture.submit("oPayer", 1).await;
    let answer = dispatcher.send(message("oPayer", "x")).await.unwrap();
    assert_eq!((answer.outcome(), answer.kind(), answer.attempts), (Outcome::Delivered, CredentialKind::FormId, 3));
    assert_eq!((answer.messages_left, fixture.resting("oPayer").await.0), (0, 6));
    let resting = dispatcher.send(request("oPayer", "y", "r1")).await.unwrap_err();
    assert_eq!((reason(&resting), fixture.calls()), ("NO_CREDENTIAL".into(), 3));
    assert!(fact(&resting, "resting_until").is_some());
    let ledger = fixture.store.ledger(&fixture.app()).await.unwrap();
    assert_eq!((ledger.discarded, ledger.available()), (0, 6));
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn prepay_id_is_used_after_its_rest() {
    let fixture = Fixture::patient().await;
    let mut settings = fixture.settings(&[]);
    settings.limits.prepay_rest = Duration::from_secs(1);
    let dispatcher = crate::fixture::Running::start(settings).await;
    crate::fixture::serving(crate::fixture::connect(dispatcher.address.port()).await, true).await;
    paid(&fixture, false);
    fixture.pay("oPayer", now() - 60).await;
    let resting = dispatcher.send(request("oPayer", "x", "r1")).await.unwrap_err();
    assert_eq!((reason(&resting), fact(&resting, "resting_until").is_some()), ("NO_CREDENTIAL".into(), true));
    paid(&fixture, true);
    eventually("the rest is over", Duration::from_secs(20), async || fixture.resting("oPayer").await.0 == 0).await;
    let answer = dispatcher.send(request("oPayer", "x", "r1")).await.unwrap();
    assert_eq!((answer.outcome(), answer.messages_left), (Outcome::Delivered, 2));
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn prepay_id_that_wechat_does_not_know_after_two_hours_is_discarded() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.pay("oPayer", now() - 2 * 3600 - 60).await;
    fixture.answer(41028, 1);
    assert_eq!(reason(&dispatcher.send(message("oPayer", "x")).await.unwrap_err()), "CREDENTIALS_DEAD");
    assert_eq!(fixture.store.ledger(&fixture.app()).await.unwrap().discarded, 3);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn redirect_is_not_followed() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher_with(&["--attempts", "1"]).await;
    fixture.submit("oUser", 1).await;
    let rule = sandbox::Rule {
        times: Some(1),
        location: Some("http://127.0.0.1:9/elsewhere".into()),
        ..sandbox::Rule::new(FaultKind::Redirect)
    };
    fixture.sandbox.add_faults(vec![rule]).unwrap();
    let status = dispatcher.send(request("oUser", "x", "r1")).await.unwrap_err();
    assert_eq!(reason(&status), "IN_DOUBT");
    let again = dispatcher.send(request("oUser", "x", "r1")).await.unwrap();
    assert_eq!(again.outcome(), Outcome::Delivered);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn credential_close_to_its_expiry_is_not_used() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    let week = 7 * 24 * 3600;
    fixture.collect("oUser", "0123456789abcdef0123456789abcdef", Kind::FormId, 1, now() - week + 30).await;
    let status = dispatcher.send(message("oUser", "x")).await.unwrap_err();
    assert_eq!(reason(&status), "NO_CREDENTIAL");
}
