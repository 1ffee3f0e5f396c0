//! The checks of a subscription message before it spends a grant.

use server::proto::{BroadcastRequest, Delivery, SendTemplateRequest, TemplateValue};
use tonic::Code;

use super::{TEMPLATE, by_form_id, data, message};
use crate::broadcast::{recipient, to_all, to_list};
use crate::fixture::{APP, Fixture, fact, fields, reason};

#[tokio::test]
async fn values_that_wechat_always_refuses_are_named_and_spend_nothing() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.accept("oUser", TEMPLATE, 1).await;
    let mut bad = SendTemplateRequest {
        miniprogram_state: "beta".into(),
        lang: "de_DE".into(),
        emphasis_keyword: "thing1.DATA".into(),
        ..message("oUser", "21 characters are too")
    };
    bad.data.extend(data("phrase2", "一二三四五六"));
    bad.data.insert("number3".into(), TemplateValue { value: "7".into(), color: "#173177".into() });
    for validate_only in [true, false] {
        let refused = dispatcher.send(SendTemplateRequest { validate_only, ..bad.clone() }).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused)), (Code::InvalidArgument, "INVALID_FIELDS".into()));
        let mut named = fields(&refused);
        named.sort();
        let expected = [
            "data.number3.color",
            "data.phrase2.value",
            "data.thing1.value",
            "emphasis_keyword",
            "lang",
            "miniprogram_state",
        ];
        assert_eq!(named, expected);
    }
    // The same text is valid in a template message. These settings are not.
    let odd = SendTemplateRequest { lang: "en_US".into(), miniprogram_state: "trial".into(), ..message("oUser", "x") };
    assert_eq!(fields(&dispatcher.send(by_form_id(odd)).await.unwrap_err()), ["miniprogram_state", "lang"]);
    let unknown = SendTemplateRequest { delivery: 9, ..message("oUser", "x") };
    assert_eq!(fields(&dispatcher.send(unknown).await.unwrap_err()), ["delivery"]);
    let books = fixture.sandbox.books(Some(APP)).unwrap();
    assert_eq!((books.calls, books.subscribe_calls, fixture.granted("oUser", TEMPLATE).await), (0, 0, 1));
}

#[tokio::test]
async fn doubtful_value_is_sent_with_a_warning() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.accept("oUser", TEMPLATE, 1).await;
    let doubtful = message("oUser", "十一个汉字是不是太多啊");
    let checked = dispatcher.send(SendTemplateRequest { validate_only: true, ..doubtful.clone() }).await.unwrap();
    assert_eq!((checked.warnings.len(), fixture.granted("oUser", TEMPLATE).await), (1, 1));
    let sent = dispatcher.send(doubtful).await.unwrap();
    assert_eq!(sent.warnings, checked.warnings);
    assert_eq!((sent.warnings[0].field.as_str(), fixture.delivered()), ("data.thing1.value", 1));
}

#[tokio::test]
async fn value_that_wechat_refuses_is_named_and_the_grant_returns() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.accept("oUser", TEMPLATE, 1).await;
    let doubtful = SendTemplateRequest { data: data("amount7", "USD 5"), ..message("oUser", "") };
    let refused = dispatcher.send(doubtful).await.unwrap_err();
    assert_eq!((reason(&refused), fact(&refused, "errcode")), ("MESSAGE_REFUSED".into(), Some("47003".into())));
    assert_eq!(fact(&refused, "field").as_deref(), Some("data.amount7.value"));
    assert_eq!(fixture.granted("oUser", TEMPLATE).await, 1);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn values_of_a_broadcast_and_of_each_user_are_checked() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    let long = data("thing1", "21 characters are too");
    let common = BroadcastRequest { template_id: TEMPLATE.into(), data: long.clone(), ..to_all() };
    assert_eq!(fields(&dispatcher.answer(common).await.unwrap_err()), ["data.thing1.value"]);
    let mut own = BroadcastRequest { data: data("thing1", "x"), hold: true, ..to_list(&["oUser"]) };
    let held = dispatcher.answer(own.clone()).await.unwrap().broadcast.unwrap();
    let Some(server::proto::broadcast_request::Audience::Recipients(list)) = &mut own.audience else { unreachable!() };
    list.list[0].data = long.clone();
    assert_eq!(fields(&dispatcher.answer(own).await.unwrap_err()), ["recipients.list[0].data.thing1.value"]);
    // The check depends on the generation of the broadcast that the recipients are added to.
    let mut client = dispatcher.client.clone();
    let mut more = server::proto::AddRecipientsRequest {
        app_id: APP.into(),
        broadcast_id: held.broadcast_id,
        recipients: vec![server::proto::Recipient { data: long, ..recipient("oAnother") }],
        exclude: Vec::new(),
    };
    let refused = client.add_recipients(more.clone()).await.unwrap_err();
    assert_eq!(fields(&refused), ["recipients[0].data.thing1.value"]);
    let template = BroadcastRequest { delivery: Delivery::FormId.into(), hold: true, ..to_list(&["oUser"]) };
    more.broadcast_id = dispatcher.answer(template).await.unwrap().broadcast.unwrap().broadcast_id;
    assert_eq!(client.add_recipients(more).await.unwrap().into_inner().added, 1);
}
