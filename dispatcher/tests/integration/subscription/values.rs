//! The checks of a subscription message before it spends a grant.

use sandbox::Reading;
use server::proto::{BroadcastRequest, Delivery, SendTemplateRequest, TemplateValue};
use tonic::Code;

use super::{TEMPLATE, by_form_id, data, message, request};
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
    let doubtful = SendTemplateRequest { data: data("amount7", "HK$5"), ..message("oUser", "") };
    let checked = dispatcher.send(SendTemplateRequest { validate_only: true, ..doubtful.clone() }).await.unwrap();
    assert_eq!((checked.warnings.len(), fixture.granted("oUser", TEMPLATE).await), (1, 1));
    let sent = dispatcher.send(doubtful).await.unwrap();
    assert_eq!(sent.warnings, checked.warnings);
    assert_eq!((sent.warnings[0].field.as_str(), fixture.delivered()), ("data.amount7.value", 1));
}

#[tokio::test]
async fn documented_values_are_sent_without_a_warning_and_refused_ones_spend_nothing() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    let documented = [
        ("thing1", "一二三四五六七八九十一二三四五六七八九十"),
        ("short_thing1", "待付款"),
        ("number1", "0.5"),
        ("letter1", "abcXYZ"),
        ("symbol1", "!@#$%"),
        ("character_string1", "Order-2019/10#1"),
        ("phrase1", "审核通过"),
        ("name1", "阿卜杜拉·本"),
        ("name1", "Maria-Magdalena Rose"),
        ("amount1", "¥1234567890.55"),
        ("amount1", "100元"),
        ("phone_number1", "+86-0766-66888866"),
        ("car_number1", "粤A8Z888挂"),
        ("date1", "2019年10月1日"),
        ("date1", "2019年10月"),
        ("date1", "10月1日 15:01"),
        ("date1", "2019/10/1"),
        ("date1", "2019-10-01 15:01~2019-10-07 09:00"),
        ("time1", "15:01:30"),
        ("time1", "2019年10月1日 09:00~18:00"),
        ("enum_string1", "VIP"),
        ("const1", "VIP"),
    ];
    fixture.accept("oUser", TEMPLATE, documented.len() as u16).await;
    let of = |key, value| SendTemplateRequest { data: data(key, value), ..message("oUser", "") };
    let refused = [
        ("thing1", ""),
        ("thing1", "two\nlines"),
        ("number1", "-1"),
        ("character_string1", "订单1"),
        ("phrase1", "第5次"),
        ("name1", "user25"),
        ("amount1", "¥-1"),
        ("date1", "2019-10-01T15:01:00Z"),
        ("time1", "2019-10-01T15:01:00+08:00"),
        ("time1", "25:99"),
        ("enum_string1", ""),
    ];
    for (key, value) in refused {
        let refused = dispatcher.send(of(key, value)).await.unwrap_err();
        assert_eq!(reason(&refused), "INVALID_FIELDS", "{key}: {value}");
        assert_eq!(fields(&refused), [format!("data.{key}.value")]);
    }
    assert_eq!(fixture.sandbox.books(Some(APP)).unwrap().subscribe_calls, 0);
    for (key, value) in documented {
        let sent = dispatcher.send(of(key, value)).await.unwrap_or_else(|status| panic!("{key}: {value}: {status}"));
        assert_eq!(sent.warnings, [], "{key}: {value}");
    }
    assert_eq!(fixture.delivered(), documented.len() as u64);
    fixture.assert_settled(0).await;
}

#[tokio::test]
async fn template_messages_may_have_line_breaks_and_subscription_messages_not() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.submit("oUser", 1).await;
    fixture.accept("oUser", TEMPLATE, 1).await;
    let two_lines = message("oUser", "one\r\ntwo");
    assert_eq!(fields(&dispatcher.send(two_lines.clone()).await.unwrap_err()), ["data.thing1.value"]);
    assert_eq!(dispatcher.send(by_form_id(two_lines)).await.unwrap().warnings, []);
    // Other control characters are refused in both, and named once.
    let bell = message("oUser", "bell\u{7}");
    for request in [bell.clone(), by_form_id(bell)] {
        assert_eq!(fields(&dispatcher.send(request).await.unwrap_err()), ["data.thing1.value"]);
    }
    assert_eq!((fixture.delivered(), fixture.granted("oUser", TEMPLATE).await), (1, 1));
}

#[tokio::test]
async fn fit_cuts_texts_and_says_so() {
    let fixture = Fixture::subscribing().await;
    let dispatcher = fixture.dispatcher().await;
    fixture.accept("oUser", TEMPLATE, 2).await;
    let mut long = SendTemplateRequest { fit: true, ..request("oUser", "Order 46 is ready at counter 3", "r1") };
    long.data.extend(data("short_thing2", "六个汉字的字"));
    long.data.extend(data("amount3", "¥5"));
    let checked = dispatcher.send(SendTemplateRequest { validate_only: true, ..long.clone() }).await.unwrap();
    let told: Vec<_> = checked.warnings.iter().map(|one| (one.field.as_str(), one.description.as_str())).collect();
    let expected =
        [("data.short_thing2.value", "was cut to 5 characters"), ("data.thing1.value", "was cut to 20 characters")];
    assert_eq!((told, fixture.delivered()), (expected.to_vec(), 0));
    let sent = dispatcher.send(long.clone()).await.unwrap();
    assert_eq!(sent.warnings, checked.warnings);
    let received = fixture.sandbox.deliveries(APP, &Reading::default()).unwrap().remove(0);
    let texts: Vec<_> = received.data.values().map(|keyword| keyword.value.as_str()).collect();
    assert_eq!(texts, ["¥5", "六个汉字…", "Order 46 is ready a…"]);
    // The same request has the same answer. Only what the user reads distinguishes requests.
    let repeated = dispatcher.send(long.clone()).await.unwrap();
    assert_eq!((repeated.repeated, repeated.msgid, repeated.warnings), (true, sent.msgid, checked.warnings));
    let other = SendTemplateRequest { fit: true, ..request("oUser", "Order 47 is ready at counter 3", "r1") };
    assert_eq!(reason(&dispatcher.send(other).await.unwrap_err()), "REQUEST_ID_REUSED");
    // Without the field, and for values that must not be cut, a long value is refused.
    let uncut = dispatcher.send(SendTemplateRequest { fit: false, ..long.clone() }).await.unwrap_err();
    assert_eq!(fields(&uncut), ["data.thing1.value"]);
    let code =
        SendTemplateRequest { data: data("character_string1", &"x".repeat(33)), request_id: String::new(), ..long };
    assert_eq!(fields(&dispatcher.send(code).await.unwrap_err()), ["data.character_string1.value"]);
    assert_eq!((fixture.delivered(), fixture.granted("oUser", TEMPLATE).await), (1, 1));
    fixture.assert_settled(0).await;
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
