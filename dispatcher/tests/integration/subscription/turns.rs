//! One subscription message at a time for each user, over all dispatchers: the send lock.

use std::sync::Arc;
use std::time::Duration;

use server::proto::Outcome;
use store::leases::NewLease;
use testing::eventually;

use super::{TEMPLATE, by_form_id, message};
use crate::fixture::{APP, Fixture, reason};
use sandbox::FaultKind;

const GRANTS: u16 = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_sends_spend_each_grant_once_and_never_overlap() {
    let fixture = Arc::new(Fixture::subscribing().await);
    fixture
        .sandbox
        .set_settings(sandbox::Settings { latency_ms: 4, jitter_ms: 4, ..fixture.sandbox.settings() })
        .unwrap();
    fixture.accept("oUser", TEMPLATE, GRANTS).await;
    let dispatchers = [fixture.dispatcher().await, fixture.dispatcher().await];
    let sends: Vec<_> = (0..3 * GRANTS)
        .map(|number| {
            let client = dispatchers[usize::from(number) % 2].client.clone();
            tokio::spawn(async move { client.clone().send_template(message("oUser", &number.to_string())).await })
        })
        .collect();
    let (mut delivered, mut none) = (0, 0);
    for send in sends {
        match send.await.unwrap() {
            Ok(sent) => {
                assert_eq!(sent.into_inner().outcome(), Outcome::Delivered);
                delivered += 1;
            }
            Err(status) => {
                assert_eq!(reason(&status), "NO_CREDENTIAL", "{status:?}");
                none += 1;
            }
        }
    }
    assert_eq!((delivered, none), (GRANTS, 2 * GRANTS));
    let books = fixture.sandbox.books(Some(APP)).unwrap();
    assert_eq!(
        (books.delivered, books.subscribe_calls, books.overlaps),
        (GRANTS.into(), GRANTS.into(), 0),
        "{books:?}"
    );
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn locked_user_spends_nothing_and_gets_a_retry_delay() {
    let fixture = Fixture::new().await.subscribed();
    let dispatcher = fixture.dispatcher_with(&["--lease", "6s"]).await;
    fixture.accept("oUser", TEMPLATE, 2).await;
    fixture.submit("oUser", 1).await;
    // Another dispatcher took the send lock and died.
    let (app, user) = (fixture.app(), domain::OpenId::parse("oUser").unwrap());
    let wanted = store::eligibility::Eligibility::grants(domain::TemplateId::parse(TEMPLATE).unwrap());
    let terms = fixture.settings(&["--lease", "6s"]).limits.terms;
    let id = store::leases::LeaseId::random();
    fixture.store.lease(&app, &user, &NewLease { id, request: None, wanted: &wanted }, &terms).await.unwrap();
    let busy = dispatcher.send(message("oUser", "ready")).await.unwrap_err();
    assert_eq!(reason(&busy), "USER_BUSY");
    let retry = tonic_types::StatusExt::get_error_details(&busy).retry_info().unwrap().retry_delay.unwrap();
    assert!(retry > Duration::from_millis(500) && retry <= Duration::from_secs(7), "{retry:?}");
    assert_eq!(fixture.sandbox.books(Some(APP)).unwrap().subscribe_calls, 0);
    // A template message does not wait for the send lock.
    dispatcher.send(by_form_id(message("oUser", "now"))).await.unwrap();
    eventually("the send lock of the dead dispatcher has expired", Duration::from_secs(10), async || {
        dispatcher.send(message("oUser", "ready")).await.is_ok()
    })
    .await;
    eventually("its lease has expired", Duration::from_secs(10), async || {
        fixture.store.ledger(&app).await.unwrap().leased == 0
    })
    .await;
    assert_eq!(fixture.store.ledger(&app).await.unwrap().unknown, 1);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn user_that_wechat_calls_busy_is_retried_with_the_same_grant() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.accept("oUser", TEMPLATE, 1).await;
    fixture.answer(43108, 2);
    let sent = dispatcher.send(message("oUser", "ready")).await.unwrap();
    assert_eq!((sent.outcome(), sent.attempts), (Outcome::Delivered, 3));
    fixture.accept("oUser", TEMPLATE, 1).await;
    fixture.answer(43108, 100);
    let busy = dispatcher.send(message("oUser", "ready")).await.unwrap_err();
    assert_eq!((reason(&busy), fixture.granted("oUser", TEMPLATE).await), ("WECHAT_BUSY".into(), 1));
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn next_message_waits_for_a_slow_one() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.accept("oUser", TEMPLATE, 2).await;
    let rule = sandbox::Rule {
        times: Some(1),
        hang_ms: Some(600),
        endpoint: sandbox::Endpoint::Subscribe,
        ..sandbox::Rule::new(FaultKind::HangAfter)
    };
    fixture.sandbox.add_faults(vec![rule]).unwrap();
    let (first, second) = tokio::join!(dispatcher.send(message("oUser", "1")), dispatcher.send(message("oUser", "2")));
    assert_eq!((first.unwrap().outcome(), second.unwrap().outcome()), (Outcome::Delivered, Outcome::Delivered));
    assert_eq!(fixture.sandbox.books(Some(APP)).unwrap().overlaps, 0);
}
