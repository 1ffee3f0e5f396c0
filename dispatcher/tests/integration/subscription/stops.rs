//! A stop of one generation does not affect the other.

use server::proto::{Delivery, SendTemplateRequest};

use super::{TEMPLATE, by_form_id, message};
use crate::rig::{APP, Rig, fact, reason};
use sandbox::{Endpoint, FaultKind, Rule};

#[tokio::test]
async fn app_with_retired_form_ids_is_advised_and_spends_nothing() {
    let rig = Rig::patient().await;
    let dispatcher = rig.dispatcher().await;
    rig.submit("oUser", 3).await;
    rig.pay("oUser", testing::now() - 600).await;
    rig.accept("oUser", TEMPLATE, 1).await;
    rig.answer(45103, u64::MAX);
    for _ in 0..3 {
        let stopped = dispatcher.send(message("oUser", "ready")).await.unwrap_err();
        assert_eq!((reason(&stopped), fact(&stopped, "errcode")), ("APP_STOPPED".into(), Some("45103".into())));
        assert!(stopped.message().contains("DELIVERY_SUBSCRIPTION"), "{}", stopped.message());
    }
    // One call was enough to learn it, and no credential was spent.
    assert_eq!((rig.sandbox.books(Some(APP)).unwrap().calls, rig.left("oUser").await), (1, 7));
    let request = SendTemplateRequest { delivery: Delivery::Subscription.into(), ..message("oUser", "ready") };
    dispatcher.send(request).await.unwrap();
    rig.assert_settled(0).await;
}

#[tokio::test]
async fn stop_of_subscription_messages_leaves_template_messages_alone() {
    for (errcode, expected) in [(43107, "APP_STOPPED"), (48001, "APP_STOPPED"), (45009, "QUOTA_REACHED")] {
        let rig = Rig::subscribing().await;
        let dispatcher = rig.dispatcher().await;
        rig.accept("oUser", TEMPLATE, 1).await;
        rig.submit("oUser", 1).await;
        rig.answer(errcode, 1);
        for _ in 0..2 {
            let stopped = dispatcher.send(message("oUser", "ready")).await.unwrap_err();
            let told = (reason(&stopped), fact(&stopped, "errcode"));
            assert_eq!(told, (expected.into(), Some(errcode.to_string())));
        }
        assert_eq!(
            (rig.sandbox.books(Some(APP)).unwrap().subscribe_calls, rig.granted("oUser", TEMPLATE).await),
            (1, 1)
        );
        dispatcher.send(by_form_id(message("oUser", "ready"))).await.unwrap();
        rig.assert_settled(0).await;
    }
}

#[tokio::test]
async fn stop_of_the_whole_app_applies_to_both_generations() {
    let rig = Rig::subscribing().await;
    let dispatcher = rig.dispatcher().await;
    rig.accept("oUser", TEMPLATE, 1).await;
    rig.submit("oUser", 1).await;
    let rule = Rule { times: Some(1), errcode: Some(50002), ..Rule::new(FaultKind::Answer) };
    rig.sandbox.add_faults(vec![Rule { endpoint: Endpoint::Subscribe, ..rule }]).unwrap();
    assert_eq!(reason(&dispatcher.send(message("oUser", "x")).await.unwrap_err()), "APP_STOPPED");
    assert_eq!(reason(&dispatcher.send(by_form_id(message("oUser", "x"))).await.unwrap_err()), "APP_STOPPED");
    assert_eq!(rig.left("oUser").await, 2);
}
