//! Single subscription messages and the grants that they spend.

use domain::{GrantUses, OpenId};
use sandbox::{FaultKind, Granting, Reading, Subscription};
use server::proto::{CredentialKind, Delivery, Outcome, SendTemplateRequest};
use store::delivery_failures::{LateFailure, MsgId};

use super::{TEMPLATE, by_form_id, message, request};
use crate::fixture::{APP, Fixture, fact, reason};

#[tokio::test]
async fn message_spends_one_grant_of_its_template_and_has_a_msgid() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.accept("oUser", TEMPLATE, 2).await;
    fixture.accept("oUser", "another", 5).await;
    fixture.submit("oUser", 1).await;
    let wanted = SendTemplateRequest {
        page: "pages/order?id=1".into(),
        miniprogram_state: "trial".into(),
        lang: "en_US".into(),
        ..message("oUser", "ready")
    };
    let sent = dispatcher.send(wanted).await.unwrap();
    assert_eq!((sent.outcome(), sent.kind(), sent.attempts), (Outcome::Delivered, CredentialKind::Grant, 1));
    assert_eq!((fixture.granted("oUser", TEMPLATE).await, sent.messages_left), (1, 7));
    let delivery = fixture.sandbox.deliveries(APP, &Reading::default()).unwrap().remove(0);
    assert_eq!((delivery.msgid, delivery.template_id.as_str()), (Some(sent.msgid), TEMPLATE));
    assert_eq!((delivery.page.as_deref(), delivery.data["thing1"].value.as_str()), (Some("pages/order?id=1"), "ready"));
    assert_eq!((delivery.miniprogram_state.as_deref(), delivery.lang.as_deref()), (Some("trial"), Some("en_US")));
    dispatcher.send(message("oUser", "again")).await.unwrap();
    let none = dispatcher.send(message("oUser", "too many")).await.unwrap_err();
    assert_eq!(reason(&none), "NO_CREDENTIAL");
    assert_eq!((fixture.granted("oUser", "another").await, fixture.left("oUser").await), (5, 6));
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn request_can_choose_either_generation() {
    for subscribing in [true, false] {
        let fixture = if subscribing { Fixture::subscribing().await } else { Fixture::patient().await };
        let dispatcher = fixture.dispatcher().await;
        fixture.accept("oUser", TEMPLATE, 1).await;
        fixture.submit("oUser", 1).await;
        let kind = |kind: CredentialKind| if subscribing { kind } else { other(kind) };
        let usual = dispatcher.send(message("oUser", "usual")).await.unwrap();
        assert_eq!(usual.kind(), kind(CredentialKind::Grant));
        let delivery = if subscribing { Delivery::FormId } else { Delivery::Subscription };
        let request = SendTemplateRequest { delivery: delivery.into(), ..message("oUser", "other") };
        assert_eq!(dispatcher.send(request).await.unwrap().kind(), kind(CredentialKind::FormId));
        fixture.assert_settled(0).await;
    }
}

fn other(kind: CredentialKind) -> CredentialKind {
    if kind == CredentialKind::Grant { CredentialKind::FormId } else { CredentialKind::Grant }
}

#[tokio::test]
async fn long_term_subscription_lasts_until_the_user_refuses() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.sandbox.grant(APP, vec![Granting { long_term: true, ..Granting::new("oUser", TEMPLATE) }]).unwrap();
    fixture.collect_grant("oUser", TEMPLATE, GrantUses::LongTerm).await;
    for number in 0..50 {
        let sent = dispatcher.send(message("oUser", &number.to_string())).await.unwrap();
        assert_eq!((sent.outcome(), sent.messages_left), (Outcome::Delivered, 1));
    }
    fixture.sandbox.reject(APP, vec![Subscription::new("oUser", TEMPLATE)]).unwrap();
    let refused = dispatcher.send(message("oUser", "no")).await.unwrap_err();
    assert_eq!((reason(&refused), fact(&refused, "errcode")), ("USER_REFUSED".into(), Some("43101".into())));
    assert_eq!(fixture.granted("oUser", TEMPLATE).await, 0);
    assert_eq!(reason(&dispatcher.send(message("oUser", "no")).await.unwrap_err()), "NO_CREDENTIAL");
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn user_refusal_revokes_only_the_grants_of_that_template() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.accept("oUser", TEMPLATE, 40).await;
    fixture.accept("oUser", "another", 2).await;
    fixture.sandbox.reject(APP, vec![Subscription::new("oUser", TEMPLATE)]).unwrap();
    let refused = dispatcher.send(request("oUser", "ready", "r1")).await.unwrap_err();
    assert_eq!((reason(&refused), fact(&refused, "errcode")), ("USER_REFUSED".into(), Some("43101".into())));
    assert_eq!((fixture.granted("oUser", TEMPLATE).await, fixture.granted("oUser", "another").await), (0, 2));
    // The refusal does not last: the user can accept again.
    fixture.accept("oUser", TEMPLATE, 1).await;
    let repeated = dispatcher.send(request("oUser", "ready", "r1")).await.unwrap_err();
    assert_eq!(reason(&repeated), "USER_REFUSED");
    dispatcher.send(message("oUser", "ready")).await.unwrap();
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn lost_answer_spends_the_grant_and_is_not_retried() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.accept("oUser", TEMPLATE, 3).await;
    for (times, kind) in (1..).zip([FaultKind::CutAfter, FaultKind::Http500Before]) {
        fixture.fault(kind, 1);
        let id = format!("r{times}");
        let sent = dispatcher.send(request("oUser", "ready", &id)).await.unwrap();
        assert_eq!((sent.outcome(), sent.attempts, sent.msgid), (Outcome::Unknown, 1, 0));
        let again = dispatcher.send(request("oUser", "ready", &id)).await.unwrap();
        assert_eq!((again.outcome(), again.repeated), (Outcome::Unknown, true));
        assert_eq!(fixture.store.ledger(&fixture.app()).await.unwrap().unknown, times);
    }
    assert_eq!((fixture.granted("oUser", TEMPLATE).await, fixture.delivered()), (1, 1));
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn retry_unknown_allows_a_second_message() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.accept("oUser", TEMPLATE, 3).await;
    fixture.fault(FaultKind::CutAfter, 1);
    let bold = SendTemplateRequest { retry_unknown: true, ..message("oUser", "ready") };
    let sent = dispatcher.send(bold).await.unwrap();
    assert_eq!((sent.outcome(), sent.attempts), (Outcome::Delivered, 2));
    assert_eq!((fixture.granted("oUser", TEMPLATE).await, fixture.delivered()), (2, 2));
    // The second attempt is answered that the user refused. The outcome of the first attempt stays unknown.
    fixture.fault(FaultKind::Http500Before, 1);
    fixture.sandbox.reject(APP, vec![Subscription::new("oUser", TEMPLATE)]).unwrap();
    let bold = SendTemplateRequest { retry_unknown: true, ..message("oUser", "ready") };
    let sent = dispatcher.send(bold).await.unwrap();
    assert_eq!((sent.outcome(), sent.errcode), (Outcome::Unknown, Some(43101)));
    assert_eq!(fixture.granted("oUser", TEMPLATE).await, 0);
}

#[tokio::test]
async fn refused_connection_spends_no_grant() {
    let mut fixture = Fixture::subscribing().await;
    fixture.base_url = format!("http://127.0.0.1:{}", testing::free_port());
    // No server listens there, so no access token can be fetched.
    let dispatcher = fixture.dispatcher().await;
    fixture.accept("oUser", TEMPLATE, 1).await;
    let failed = dispatcher.send(message("oUser", "ready")).await.unwrap_err();
    assert_eq!(reason(&failed), "TOKEN_UNAVAILABLE");
    assert_eq!(fixture.granted("oUser", TEMPLATE).await, 1);
}

#[tokio::test]
async fn repeated_request_shows_the_later_delivery_failure() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.accept("oUser", TEMPLATE, 1).await;
    let sent = dispatcher.send(request("oUser", "ready", "r1")).await.unwrap();
    let repeat = async || dispatcher.send(request("oUser", "ready", "r1")).await.unwrap();
    let again = repeat().await;
    assert_eq!((again.repeated, again.msgid, again.late_failure), (true, sent.msgid, None));
    let failure = LateFailure { errcode: 43101, status: "user refuse".into() };
    let user = OpenId::parse("oUser").unwrap();
    assert!(fixture.store.fail_late(&fixture.app(), &user, MsgId(sent.msgid), &failure).await.unwrap());
    let late = repeat().await.late_failure.unwrap();
    assert_eq!((late.errcode, late.status.as_str()), (43101, "user refuse"));
}

#[tokio::test]
async fn request_id_cannot_be_reused_for_the_other_generation() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.accept("oUser", TEMPLATE, 1).await;
    fixture.submit("oUser", 1).await;
    dispatcher.send(request("oUser", "ready", "r1")).await.unwrap();
    let reused = dispatcher.send(by_form_id(request("oUser", "ready", "r1"))).await.unwrap_err();
    assert_eq!(reason(&reused), "REQUEST_ID_REUSED");
}
