//! The values of each user of a broadcast: cut with `fit`, and refused alone if they are bad.

use std::collections::BTreeMap;

use sandbox::Reading;
use server::proto::broadcast_request::Audience;
use server::proto::{
    AddRecipientsRequest, BroadcastRequest, BroadcastResponse, BroadcastState, Recipient, Recipients, RefusedRecipient,
};
use store::broadcast::BroadcastId;

use super::{TEMPLATE, data};
use crate::broadcast::{recipient, tally, to_list};
use crate::fixture::{APP, Fixture, fields, reason};

const LONG: &str = "21 characters are too";

fn with(openid: &str, key: &str, text: &str) -> Recipient {
    Recipient { data: data(key, text), ..recipient(openid) }
}

fn to(list: &[Recipient]) -> BroadcastRequest {
    let audience = Some(Audience::Recipients(Recipients { list: list.to_vec() }));
    BroadcastRequest { template_id: TEMPLATE.into(), data: data("thing1", "hello"), audience, ..to_list(&[]) }
}

fn add(id: &str, recipients: &[Recipient]) -> AddRecipientsRequest {
    AddRecipientsRequest {
        app_id: APP.into(),
        broadcast_id: id.into(),
        recipients: recipients.to_vec(),
        exclude: Vec::new(),
    }
}

fn refused(list: &[RefusedRecipient]) -> Vec<(u32, &str)> {
    list.iter().map(|one| (one.index, one.field.as_str())).collect()
}

/// What each user received under a key.
fn received(fixture: &Fixture, key: &str) -> BTreeMap<String, String> {
    let deliveries = fixture.sandbox.deliveries(APP, &Reading::default()).unwrap();
    deliveries.into_iter().map(|one| (one.openid, one.data[key].value.clone())).collect()
}

#[tokio::test]
async fn fit_cuts_common_and_own_texts_before_they_are_stored() {
    let fixture = Fixture::subscribing().await;
    // One replica creates the broadcast, the other one adds to it.
    let dispatchers = [fixture.dispatcher().await, fixture.dispatcher().await];
    for user in ["oCommon", "oOwn", "oAdded"] {
        fixture.accept(user, TEMPLATE, 1).await;
    }
    let request = BroadcastRequest {
        data: data("thing1", "Order 46 is ready at counter 3"),
        request_id: "r1".into(),
        fit: true,
        hold: true,
        ..to(&[recipient("oCommon"), with("oOwn", "thing1", "Your order is ready at counter 3")])
    };
    let first = dispatchers[0].answer(request.clone()).await.unwrap();
    let told: Vec<_> = first.warnings.iter().map(|one| (one.field.as_str(), one.description.as_str())).collect();
    let cut = "was cut to 20 characters";
    assert_eq!(told, [("data.thing1.value", cut), ("recipients.list[1].data.thing1.value", cut)]);
    let id = first.broadcast.as_ref().unwrap().broadcast_id.clone();
    let stored = fixture.store.broadcast(&fixture.app(), &BroadcastId::parse(&id).unwrap()).await.unwrap().unwrap();
    let stored = String::from_utf8(stored.spec).unwrap();
    assert!(stored.contains("Order 46 is ready a…") && !stored.contains("counter"), "{stored}");
    // The same request is the same broadcast, on each replica. Without `fit`, it is another one.
    assert_eq!(dispatchers[1].answer(request.clone()).await.unwrap(), first);
    let short = BroadcastRequest { data: data("thing1", "Order 46 is ready a…"), fit: false, ..request };
    let short = BroadcastRequest { audience: to(&[recipient("oCommon")]).audience, ..short };
    assert_eq!(reason(&dispatchers[1].answer(short).await.unwrap_err()), "REQUEST_ID_REUSED");

    let more = add(&id, &[with("oAdded", "thing1", "Added order, ready at counter 4")]);
    for count in [1, 0] {
        let added = dispatchers[1].client.clone().add_recipients(more.clone()).await.unwrap().into_inner();
        assert_eq!(
            (added.added, added.duplicates, added.warnings.len(), added.more_warnings),
            (count, 1 - count, 1, 0)
        );
        assert_eq!(added.warnings[0].field, "recipients[0].data.thing1.value");
    }
    dispatchers[1].done("StartBroadcast", &id).await;
    let done = dispatchers[0].until(&id, BroadcastState::Done).await;
    assert_eq!(tally(&done).delivered, 3);
    let texts = received(&fixture, "thing1");
    assert_eq!(texts["oCommon"], "Order 46 is ready a…");
    assert_eq!(texts["oOwn"], "Your order is ready…");
    assert_eq!(texts["oAdded"], "Added order, ready…");
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn bad_recipient_is_refused_by_its_index_and_the_others_get_the_message() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    for user in ["oFirst", "oLong", "oLast", "oNegative"] {
        fixture.accept(user, TEMPLATE, 1).await;
    }
    let list = [
        recipient("oFirst"),
        with("oLong", "thing1", LONG),
        recipient("o penid"),
        with("oLast", "thing1", "bye"),
        with("oNegative", "number2", "-1"),
    ];
    let request = BroadcastRequest { request_id: "r1".into(), ..to(&list) };
    let expected = [
        (1, "recipients.list[1].data.thing1.value"),
        (2, "recipients.list[2].openid"),
        (4, "recipients.list[4].data.number2.value"),
    ];
    let check = |answer: &BroadcastResponse| {
        assert_eq!((refused(&answer.refused), answer.refused_count), (expected.to_vec(), 3));
        assert_eq!(answer.refused[0].description, "must be at most 20 characters");
        assert!(!format!("{:?}", answer.refused).contains("o penid"), "the openid is not repeated");
    };
    let preview = dispatcher.answer(BroadcastRequest { validate_only: true, ..request.clone() }).await.unwrap();
    check(&preview);
    let counts = preview.preview.unwrap();
    assert_eq!((counts.audience, counts.reachable, counts.refused), (2, 2, 3));
    let first = dispatcher.answer(request.clone()).await.unwrap();
    check(&first);
    let id = first.broadcast.unwrap().broadcast_id;
    let done = dispatcher.until(&id, BroadcastState::Done).await;
    assert_eq!((tally(&done).audience, tally(&done).delivered), (2, 2));
    // A repeated call gets the same answer and changes nothing.
    let again = dispatcher.answer(request).await.unwrap();
    check(&again);
    assert_eq!(again.broadcast.unwrap(), done);
    let texts = received(&fixture, "thing1");
    assert_eq!(
        texts.into_iter().collect::<Vec<_>>(),
        [("oFirst", "hello"), ("oLast", "bye")].map(|(user, text)| (user.into(), text.into()))
    );
    assert_eq!((fixture.granted("oLong", TEMPLATE).await, fixture.granted("oNegative", TEMPLATE).await), (1, 1));
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn bad_recipient_of_a_later_call_is_refused_alone() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    for user in ["oFirst", "oSecond", "oThird"] {
        fixture.accept(user, TEMPLATE, 1).await;
    }
    let held = BroadcastRequest { hold: true, ..to(&[recipient("oFirst"), recipient("")]) };
    let held = dispatcher.answer(held).await.unwrap();
    assert_eq!(refused(&held.refused), [(1, "recipients.list[1].openid")]);
    let id = held.broadcast.unwrap().broadcast_id;
    let mut client = dispatcher.client.clone();
    let bad = with("oThird", "thing1", LONG);
    for count in [1, 0] {
        let more = add(&id, &[bad.clone(), with("oSecond", "amount2", "HK$5"), recipient("")]);
        let added = client.add_recipients(more).await.unwrap().into_inner();
        assert_eq!((added.added, added.duplicates, added.excluded), (count, 1 - count, 0));
        let expected = [(0, "recipients[0].data.thing1.value"), (2, "recipients[2].openid")];
        assert_eq!((refused(&added.refused), added.refused_count), (expected.to_vec(), 2));
        let warned: Vec<_> = added.warnings.iter().map(|one| one.field.as_str()).collect();
        assert_eq!(warned, ["recipients[1].data.amount2.value"]);
    }
    // A call in which every user is bad fails, also without `hold`.
    let failed = client.add_recipients(add(&id, &[bad.clone(), recipient("")])).await.unwrap_err();
    let mut named = fields(&failed);
    named.sort();
    assert_eq!(
        (reason(&failed).as_str(), named),
        ("INVALID_FIELDS", vec!["recipients[0].data.thing1.value".into(), "recipients[1].openid".to_owned()])
    );
    for validate_only in [true, false] {
        let failed =
            dispatcher.answer(BroadcastRequest { validate_only, ..to(std::slice::from_ref(&bad)) }).await.unwrap_err();
        assert_eq!(fields(&failed), ["recipients.list[0].data.thing1.value"]);
    }
    // A corrected user can be added.
    let added = client.add_recipients(add(&id, &[with("oThird", "thing1", "short")])).await.unwrap().into_inner();
    assert_eq!((added.added, added.refused_count), (1, 0));
    dispatcher.done("StartBroadcast", &id).await;
    let done = dispatcher.until(&id, BroadcastState::Done).await;
    assert_eq!((tally(&done).audience, tally(&done).delivered), (3, 3));
    fixture.assert_settled(0).await;
}
