//! Lost answers: each message is still delivered exactly once where its credential allows that.

use std::time::Duration;

use crate::fixture::{APP, Fixture, message, reason, request};
use dispatcher::wechat::message::{Delivery, Message, Value};
use domain::{OpenId, TemplateId};
use sandbox::FaultKind;
use server::proto::{Outcome, SendTemplateRequest};
use store::eligibility::{Eligibility, Kinds};
use store::leases::{LeaseId, LeaseTerms, Leased, NewLease, Request};
use testing::{eventually, now};
use tonic::Code;

const LOSSES: [FaultKind; 8] = [
    FaultKind::Http500Before,
    FaultKind::Http500After,
    FaultKind::CutBefore,
    FaultKind::CutAfter,
    FaultKind::CutMid,
    FaultKind::ResetAfter,
    FaultKind::NotJsonBefore,
    FaultKind::NotJsonAfter,
];

#[tokio::test]
async fn lost_answer_is_resolved_with_the_same_form_id() {
    for kind in LOSSES {
        let fixture = Fixture::patient().await;
        let dispatcher = fixture.dispatcher().await;
        fixture.submit("oUser", 3).await;
        fixture.fault(kind, 2);
        let answer = dispatcher.send(message("oUser", "once")).await.unwrap();
        assert_eq!((answer.outcome(), answer.messages_left), (Outcome::Delivered, 2), "{kind:?}");
        assert_eq!(fixture.delivered(), 1, "{kind:?}");
        fixture.assert_settled(0).await;
    }
}

#[tokio::test]
async fn timeout_is_resolved_with_the_same_form_id() {
    for kind in [FaultKind::HangBefore, FaultKind::HangAfter] {
        let fixture = Fixture::new().await;
        let dispatcher = fixture.dispatcher_with(&["--lease", "5s"]).await;
        fixture.submit("oUser", 1).await;
        let rule = sandbox::Rule { times: Some(1), hang_ms: Some(800), ..sandbox::Rule::new(kind) };
        fixture.sandbox.add_faults(vec![rule]).unwrap();
        let answer = dispatcher.send(message("oUser", "once")).await.unwrap();
        assert_eq!((answer.outcome(), answer.attempts), (Outcome::Delivered, 2), "{kind:?}");
        assert_eq!(fixture.delivered(), 1);
        fixture.assert_settled(0).await;
    }
}

#[tokio::test]
async fn form_id_is_held_until_the_request_is_repeated() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher_with(&["--attempts", "2"]).await;
    fixture.submit("oUser", 2).await;
    fixture.fault(FaultKind::CutAfter, 2);
    let status = dispatcher.send(request("oUser", "once", "r1")).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "IN_DOUBT"));
    fixture.assert_settled(1).await;
    let other = dispatcher.send(message("oUser", "another")).await.unwrap();
    assert_eq!((other.outcome(), other.messages_left), (Outcome::Delivered, 0), "the other form id was used");
    let again = dispatcher.send(request("oUser", "once", "r1")).await.unwrap();
    assert_eq!(
        (again.outcome(), again.errcode),
        (Outcome::Delivered, Some(41029)),
        "the first attempt had delivered it"
    );
    assert_eq!(fixture.delivered(), 2);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn without_request_id_the_form_id_returns_marked_as_suspect() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher_with(&["--attempts", "1"]).await;
    fixture.submit("oUser", 1).await;
    fixture.fault(FaultKind::CutAfter, 1);
    let answer = dispatcher.send(message("oUser", "gone")).await.unwrap();
    assert_eq!((answer.outcome(), answer.messages_left), (Outcome::Unknown, 1));
    let status = dispatcher.send(message("oUser", "next")).await.unwrap_err();
    assert_eq!(reason(&status), "CREDENTIALS_DEAD", "41029 must not count as a delivery of this message");
    assert_eq!(fixture.delivered(), 1);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn prepay_id_counts_as_spent_when_the_outcome_is_unknown() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.pay("oPayer", now() - 60).await;
    fixture.fault(FaultKind::CutBefore, 1);
    let answer = dispatcher.send(request("oPayer", "once", "r1")).await.unwrap();
    assert_eq!((answer.outcome(), answer.attempts, answer.messages_left), (Outcome::Unknown, 1, 2));
    let again = dispatcher.send(request("oPayer", "once", "r1")).await.unwrap();
    assert_eq!((again.outcome(), again.repeated), (Outcome::Unknown, true));
    assert_eq!(fixture.delivered(), 0);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn every_unknown_outcome_counts_as_consumed_and_unknown() {
    // WeChat's answer after a lost answer, and the expected ledger: consumed, unknown, discarded, available.
    let (form, prepay, suspect) = ("oForm", "oPayer", "oSuspect");
    for (openid, errcode, wanted) in [
        (form, Some(41031), (1, 1, 0, 1)),
        (prepay, Some(41029), (1, 1, 2, 0)),
        (prepay, Some(41028), (1, 1, 2, 0)),
        (suspect, None, (1, 1, 0, 1)),
    ] {
        let fixture = Fixture::new().await;
        let dispatcher = fixture.dispatcher_with(&["--attempts", "2"]).await;
        if openid == prepay {
            // The order could no longer be paid: 41028 means that the prepay id is wrong.
            fixture.pay(openid, now() - 3 * 3600).await;
        } else {
            fixture.submit(openid, 2).await;
        }
        if openid == suspect {
            // Two attempts without an answer, and no request id: the form id returns to the stock.
            fixture.fault(FaultKind::CutAfter, 2);
            assert_eq!(dispatcher.send(message(openid, "gone")).await.unwrap().outcome(), Outcome::Unknown);
        }
        fixture.fault(FaultKind::CutBefore, 1);
        if let Some(errcode) = errcode {
            fixture.answer(errcode, 1);
        }
        let answer = dispatcher.send(SendTemplateRequest { retry_unknown: true, ..request(openid, "x", "r1") }).await;
        assert_eq!(answer.unwrap().outcome(), Outcome::Unknown, "{openid} {errcode:?}");
        let ledger = fixture.store.ledger(&fixture.app()).await.unwrap();
        let booked = (ledger.consumed, ledger.unknown, ledger.discarded, ledger.available());
        assert_eq!(booked, wanted, "{openid} {errcode:?}: {ledger:?}");
        fixture.assert_settled(0).await;
    }
}

#[tokio::test]
async fn young_prepay_id_keeps_its_other_uses_when_the_outcome_is_unknown() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.pay("oPayer", now() - 60).await;
    fixture.fault(FaultKind::CutBefore, 1);
    fixture.answer(41028, 1);
    let answer = dispatcher.send(SendTemplateRequest { retry_unknown: true, ..request("oPayer", "x", "r1") }).await;
    assert_eq!(answer.unwrap().outcome(), Outcome::Unknown);
    let ledger = fixture.store.ledger(&fixture.app()).await.unwrap();
    assert_eq!((ledger.consumed, ledger.unknown, ledger.discarded, ledger.available()), (1, 1, 0, 2));
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn retry_unknown_allows_a_second_message() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.pay("oPayer", now() - 60).await;
    fixture.fault(FaultKind::CutBefore, 1);
    let mut bold = request("oPayer", "at least once", "r1");
    bold.retry_unknown = true;
    let answer = dispatcher.send(bold).await.unwrap();
    assert_eq!((answer.outcome(), answer.attempts), (Outcome::Delivered, 2));
    assert_eq!(fixture.delivered(), 1);
}

#[tokio::test]
async fn refused_connection_spends_nothing() {
    let mut fixture = Fixture::patient().await;
    fixture.submit("oUser", 1).await;
    let dispatcher = fixture.dispatcher().await;
    assert!(dispatcher.send(message("oNobody", "fetches the token")).await.is_err());
    fixture.base_url = format!("http://127.0.0.1:{}", crate::fixture::any_port());
    let unreachable = fixture.dispatcher().await;
    let status = unreachable.send(request("oUser", "x", "r1")).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "WECHAT_UNREACHABLE"));
    assert_eq!(fixture.left("oUser").await, 1);
    assert_eq!(dispatcher.send(request("oUser", "x", "r1")).await.unwrap().outcome(), Outcome::Delivered);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn caller_that_gives_up_leaves_no_lease_and_can_get_the_outcome() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit("oUser", 40).await;
    let slow = sandbox::Settings { latency_ms: 500, ..fixture.sandbox.settings() };
    fixture.sandbox.set_settings(slow).unwrap();
    for number in 0..20 {
        let mut hasty = tonic::Request::new(request("oUser", &format!("message {number}"), &format!("r{number}")));
        hasty.set_timeout(Duration::from_millis(10));
        let status = dispatcher.client.clone().send_template(hasty).await.unwrap_err();
        // The client's own timer may fire before the server answers.
        assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    }
    for number in 0..20 {
        let answer =
            dispatcher.send(request("oUser", &format!("message {number}"), &format!("r{number}"))).await.unwrap();
        assert_eq!(answer.outcome(), Outcome::Delivered);
    }
    assert_eq!(fixture.delivered(), 20);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn repeated_requests_join_the_send_in_flight() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit("oUser", 5).await;
    let slow = sandbox::Settings { latency_ms: 100, ..fixture.sandbox.settings() };
    fixture.sandbox.set_settings(slow).unwrap();
    let calls = (0..8).map(|_| dispatcher.send(request("oUser", "once", "r1")));
    for answer in futures_util::future::join_all(calls).await {
        assert_eq!(answer.unwrap().outcome(), Outcome::Delivered);
    }
    let mut other = request("oUser", "another text", "r1");
    assert_eq!(reason(&dispatcher.send(other.clone()).await.unwrap_err()), "REQUEST_ID_REUSED");
    other.openid = "oOther".into();
    assert_eq!(
        reason(&dispatcher.send(other).await.unwrap_err()),
        "NO_CREDENTIAL",
        "a request id is scoped to its user"
    );
    assert_eq!(fixture.delivered(), 1);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn known_outcome_is_returned_while_the_app_is_stopped() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher_with(&["--attempts", "1"]).await;
    fixture.submit("oUser", 3).await;
    assert_eq!(dispatcher.send(request("oUser", "first", "r1")).await.unwrap().outcome(), Outcome::Delivered);
    fixture.fault(FaultKind::CutAfter, 1);
    assert_eq!(reason(&dispatcher.send(request("oUser", "second", "r2")).await.unwrap_err()), "IN_DOUBT");
    fixture.answer(48001, 1);
    assert_eq!(reason(&dispatcher.send(request("oUser", "third", "r3")).await.unwrap_err()), "APP_STOPPED");

    let first = dispatcher.send(request("oUser", "first", "r1")).await.unwrap();
    assert_eq!((first.outcome(), first.repeated), (Outcome::Delivered, true));
    assert_eq!(reason(&dispatcher.send(request("oUser", "other", "r1")).await.unwrap_err()), "REQUEST_ID_REUSED");
    assert_eq!(reason(&dispatcher.send(request("oUser", "second", "r2")).await.unwrap_err()), "IN_DOUBT");
    assert_eq!(reason(&dispatcher.send(request("oUser", "third", "r3")).await.unwrap_err()), "APP_STOPPED");
    assert_eq!(fixture.delivered(), 2);
}

#[tokio::test]
async fn other_replica_answers_that_the_request_is_in_progress() {
    let fixture = Fixture::patient().await;
    let (first, second) = (fixture.dispatcher().await, fixture.dispatcher().await);
    fixture.submit("oUser", 2).await;
    let slow = sandbox::Settings { latency_ms: 2000, ..fixture.sandbox.settings() };
    fixture.sandbox.set_settings(slow).unwrap();
    let sending = tokio::spawn(async move { first.send(request("oUser", "once", "r1")).await });
    eventually("the first request is leased", Duration::from_secs(5), async || {
        fixture.store.ledger(&fixture.app()).await.unwrap().leased == 1
    })
    .await;
    let status = second.send(request("oUser", "once", "r1")).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Aborted, "REQUEST_UNDER_WAY"));
    assert_eq!(sending.await.unwrap().unwrap().outcome(), Outcome::Delivered);
    let repeated = second.send(request("oUser", "once", "r1")).await.unwrap();
    assert_eq!((repeated.outcome(), repeated.repeated), (Outcome::Delivered, true));
    assert_eq!(fixture.delivered(), 1);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn expired_form_id_of_an_unknown_outcome_is_not_sent_again() {
    let fixture = Fixture::patient().await;
    let week = 7 * 24 * 3600;
    let mut submission = sandbox::Submission::form("oUser");
    submission.submitted_at = Some((now() - week + 62) as u64);
    let id = fixture.sandbox.submit(APP, vec![submission]).unwrap().remove(0);
    fixture.collect("oUser", &id, domain::Kind::FormId, 1, now() - week + 62).await;
    // A replica leased the form id for this request and died. When the request is repeated, the form id expires within
    // the time of a lease.
    let message = request("oUser", "once", "r1");
    let template = TemplateId::parse(message.template_id.as_str()).unwrap();
    let value = Value { value: "once".into(), color: String::new() };
    let parsed =
        Message { data: [("keyword1".to_owned(), value)].into(), ..Message::empty(Delivery::FormId, template) };
    let terms = LeaseTerms {
        duration: Duration::from_millis(1),
        margin: Duration::from_secs(1),
        keep: Duration::from_secs(3600),
    };
    let request_of = Request { id: domain::RequestId::parse("r1").unwrap(), fingerprint: parsed.fingerprint() };
    let openid = OpenId::parse("oUser").unwrap();
    let ids = Eligibility::ids(Kinds::IDS);
    let new = NewLease { id: LeaseId::random(), request: Some(&request_of), wanted: &ids };
    let leased = fixture.store.lease(&fixture.app(), &openid, &new, &terms).await.unwrap();
    assert!(matches!(leased, Leased::Lease(_)));
    let dispatcher = fixture.dispatcher_with(&["--lease", "70s", "--lease-margin", "70s"]).await;
    let answer = dispatcher.send(message).await.unwrap();
    assert_eq!((answer.outcome(), answer.attempts), (Outcome::Unknown, 0));
    assert_eq!(fixture.sandbox.books(Some(APP)).unwrap().calls, 0);
    let ledger = fixture.store.ledger(&fixture.app()).await.unwrap();
    assert_eq!((ledger.consumed, ledger.unknown, ledger.available()), (1, 1, 0), "{ledger:?}");
    fixture.assert_settled(0).await;
}
