//! A stop of one generation does not affect the other.

use server::proto::{Delivery, SendTemplateRequest};

use super::{TEMPLATE, by_form_id, message};
use crate::fixture::{APP, Fixture, fact, reason};
use sandbox::{Endpoint, FaultKind, Rule};

#[tokio::test]
async fn app_with_retired_form_ids_is_advised_and_spends_nothing() {
    let fixture = Fixture::patient().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit("oUser", 3).await;
    fixture.pay("oUser", testing::now() - 600).await;
    fixture.accept("oUser", TEMPLATE, 1).await;
    fixture.answer(45103, u64::MAX);
    for _ in 0..3 {
        let stopped = dispatcher.send(message("oUser", "ready")).await.unwrap_err();
        assert_eq!((reason(&stopped), fact(&stopped, "errcode")), ("APP_STOPPED".into(), Some("45103".into())));
        assert!(stopped.message().contains("DELIVERY_SUBSCRIPTION"), "{}", stopped.message());
    }
    // One call was enough to learn it, and no credential was spent.
    assert_eq!((fixture.sandbox.books(Some(APP)).unwrap().calls, fixture.left("oUser").await), (1, 7));
    let request = SendTemplateRequest { delivery: Delivery::Subscription.into(), ..message("oUser", "ready") };
    dispatcher.send(request).await.unwrap();
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn stop_of_subscription_messages_leaves_template_messages_alone() {
    for (errcode, expected) in [(43107, "APP_STOPPED"), (48001, "APP_STOPPED"), (45009, "QUOTA_REACHED")] {
        let fixture = Fixture::subscribing().await;
        let dispatcher = fixture.dispatcher().await;
        fixture.accept("oUser", TEMPLATE, 1).await;
        fixture.submit("oUser", 1).await;
        fixture.answer(errcode, 1);
        for _ in 0..2 {
            let stopped = dispatcher.send(message("oUser", "ready")).await.unwrap_err();
            let told = (reason(&stopped), fact(&stopped, "errcode"));
            assert_eq!(told, (expected.into(), Some(errcode.to_string())));
        }
        assert_eq!(
            (fixture.sandbox.books(Some(APP)).unwrap().subscribe_calls, fixture.granted("oUser", TEMPLATE).await),
            (1, 1)
        );
        dispatcher.send(by_form_id(message("oUser", "ready"))).await.unwrap();
        fixture.assert_settled(0).await;
    }
}

#[tokio::test]
async fn stop_of_the_whole_app_applies_to_both_generations() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.accept("oUser", TEMPLATE, 1).await;
    fixture.submit("oUser", 1).await;
    let rule = Rule { times: Some(1), errcode: Some(50002), ..Rule::new(FaultKind::Answer) };
    fixture.sandbox.add_faults(vec![Rule { endpoint: Endpoint::Subscribe, ..rule }]).unwrap();
    assert_eq!(reason(&dispatcher.send(message("oUser", "x")).await.unwrap_err()), "APP_STOPPED");
    assert_eq!(reason(&dispatcher.send(by_form_id(message("oUser", "x"))).await.unwrap_err()), "APP_STOPPED");
    assert_eq!(fixture.left("oUser").await, 2);
}
