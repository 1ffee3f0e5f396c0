//! Failures while the services run.

use std::collections::HashMap;
use std::time::Duration;

use domain::{AppId, OpenId};
use server::proto::credential::Right;
use server::proto::lift_stop_request::Target;
use server::proto::stop_scope::Scope;
use server::proto::{
    BroadcastRequest, CollectRequest, CollectStreamRequest, Credential, Delivery, EraseUserRequest,
    GetBroadcastRequest, GetInventoryRequest, GetStockRequest, Grant, LiftStopRequest, ListBroadcastsRequest,
    ListStopsRequest, ListUndeliveredRequest, Recipient, ReportEventsRequest, SendTemplateRequest, StopScope,
    TemplateValue,
};
use testing::Redis;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::broadcasts::{self, list, recipient, to_all};
use crate::failures::with_password;
use crate::fixture::{
    APP, CLOSED, Collector, Dispatcher, Fixture, NOWHERE, SOON, SOURCES, app_of, collector, dispatcher, port, serving,
    with_source,
};
use crate::lying_upstream::{Lie, LyingUpstream, Rid, TOKEN_LIES};
use crate::secrets::{BODY, FORM_ID, OPENID, PASSWORD, PREPAY_ID, REQUEST_ID, SECRET, TOKEN, form_id, openid};

pub const TEMPLATE: &str = "template-1";

pub async fn all(fixture: &Fixture, wechat: &LyingUpstream) {
    let mut redis = Redis::durable_alone();
    let password = format!("CONFIG SET requirepass {PASSWORD}");
    redis_says(&redis, &[&password]).await;
    let (front, back) = (port(), port());
    let (url, apps, tokens) = (with_password(&redis), fixture.apps_file(), fixture.callback_tokens());
    let apps_here = format!("{APP},{NOWHERE}");
    let listen = [front, back].map(|port| format!("127.0.0.1:{port}"));
    let mut processes = [
        fixture.collector(&[
            "--apps",
            &apps_here,
            "--redis-url",
            &url,
            "--listen",
            &listen[0],
            "--callback-tokens",
            &tokens,
            "--small-app-users",
            "0",
        ]),
        fixture.dispatcher(&[
            "--apps-file",
            &apps,
            "--redis-url",
            &url,
            "--listen",
            &listen[1],
            "--lease",
            "2s",
            "--backoff",
            "5ms",
            "--attempts",
            "2",
            "--reap-interval",
            "100ms",
            "--stop",
            "1ms",
        ]),
    ];
    for port in [front, back] {
        serving(port, true).await;
    }
    let (mut collector, mut dispatcher) = (collector(front).await, dispatcher(back).await);
    collect(fixture, &mut collector).await;
    events(fixture, &mut collector).await;
    bad_input(fixture, &mut collector, &mut dispatcher).await;
    sends(fixture, wechat, &mut dispatcher).await;
    without_token(fixture, &mut dispatcher).await;
    broadcasts::all(fixture, wechat, &mut dispatcher).await;
    unreadable(fixture, &redis, &mut collector, &mut dispatcher).await;

    redis.kill();
    for port in [front, back] {
        serving(port, false).await;
    }
    calls(fixture, &mut collector, &mut dispatcher).await;
    redis.resume();
    redis_says(&redis, &["CONFIG SET requirepass another"]).await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        calls(fixture, &mut collector, &mut dispatcher).await;
    }
    redis_says(&redis, &["AUTH another", &password]).await;
    for port in [front, back] {
        serving(port, true).await;
    }
    fixture.read_pages().await;
    for process in &mut processes {
        process.signal("TERM");
        assert_eq!(process.wait(SOON).await, Some(0));
    }
}

/// Sends commands to a Redis. The first line must be AUTH if the Redis requires a password.
pub async fn redis_says(redis: &Redis, lines: &[&str]) {
    let mut stream = tokio::net::TcpStream::connect(redis.url().trim_start_matches("redis://")).await.unwrap();
    stream.write_all(format!("{}\r\nQUIT\r\n", lines.join("\r\n")).as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(!answer.contains("-ERR") && !answer.contains("-NOAUTH"), "{answer}");
}

fn right(user: usize, right: Right) -> Credential {
    Credential { openid: openid(user), right: Some(right), obtained_at: None }
}

pub fn form(user: usize, number: usize) -> Credential {
    right(user, Right::FormId(form_id(number)))
}

fn grant(user: usize, key: &str) -> Credential {
    let template_id = TEMPLATE.into();
    right(user, Right::Grant(Grant { template_id, count: 50, unlimited: false, grant_key: key.into() }))
}

pub fn value(text: &str) -> TemplateValue {
    TemplateValue { value: text.into(), color: String::new() }
}

pub fn data() -> HashMap<String, TemplateValue> {
    HashMap::from([("thing1".into(), value(BODY))])
}

pub fn message(user: usize) -> SendTemplateRequest {
    SendTemplateRequest {
        app_id: APP.into(),
        openid: openid(user),
        template_id: TEMPLATE.into(),
        data: data(),
        page: format!("pages/order?text={BODY}"),
        ..SendTemplateRequest::default()
    }
}

async fn collect(fixture: &Fixture, collector: &mut Collector) {
    let mut credentials = Vec::new();
    for user in 0..60 {
        credentials.extend((0..8).map(|number| form(user, user * 8 + number)));
        credentials.push(right(user, Right::PrepayId(format!("{PREPAY_ID}{user}"))));
        credentials.push(grant(user, &format!("{REQUEST_ID}{user}")));
    }
    let bad = || {
        let strange = Credential { openid: format!("{OPENID} x"), ..form(1, 9000) };
        let late = Credential { obtained_at: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }), ..form(1, 9001) };
        let ids = [format!("{FORM_ID} x"), format!("{FORM_ID}\n"), FORM_ID.repeat(20), format!("the formId {FORM_ID}")];
        let prepay = right(1, Right::PrepayId(format!("{PREPAY_ID} é")));
        let key = grant(1, &format!("{REQUEST_ID}\u{7}"));
        let template = Grant { template_id: format!("{FORM_ID} x"), count: 1, ..Grant::default() };
        let mut bad = vec![strange, late, prepay, key, right(1, Right::Grant(template))];
        bad.extend(ids.map(|id| right(1, Right::FormId(id))));
        bad
    };
    credentials.extend(bad());
    for some in credentials.chunks(300) {
        let request = CollectRequest { app_id: APP.into(), credentials: some.to_vec() };
        fixture.note("Collect", collector.collect(request).await).unwrap();
    }
    let batches = vec![
        CollectStreamRequest { sequence: 1, app_id: APP.into(), credentials: bad() },
        CollectStreamRequest { sequence: 2, app_id: OPENID.into(), credentials: vec![form(1, 9002)] },
    ];
    let mut answers = collector.collect_stream(tokio_stream::iter(batches)).await.unwrap().into_inner();
    while let Ok(Some(_)) = fixture.note("CollectStream", answers.message().await) {}
}

async fn events(fixture: &Fixture, collector: &mut Collector) {
    let created = testing::now();
    let json = |event: &str, list: String| {
        format!(
            r#"{{"ToUserName":"{TOKEN}","FromUserName":"{}","CreateTime":"{created}","MsgType":"event","Event":"{event}","List":{list}}}"#,
            openid(3)
        )
    };
    let item = format!(r#"{{"TemplateId":"{FORM_ID} x","SubscribeStatusString":"{BODY}","PopupScene":"{SECRET}"}}"#);
    let bodies = [
        String::new(),
        OPENID.into(),
        format!("<xml><FromUserName>{OPENID}</FromUserName>"),
        format!("<xml><FromUserName><![CDATA[{OPENID}]]></FromUserName><Event>{BODY}</Event></xml>"),
        format!("<{OPENID}><MsgType>event</MsgType></{OPENID}x>"),
        format!("<!DOCTYPE x [<!ENTITY e \"{SECRET}\">]><xml><MsgType>&e;</MsgType></xml>"),
        format!("<xml><Encrypt><![CDATA[{SECRET}]]></Encrypt></xml>"),
        format!("{{\"{OPENID}\": {SECRET}}}"),
        format!(
            "{{\"FromUserName\": [\"{OPENID}\"], \"MsgType\": \"event\", \"Event\": \"subscribe_msg_popup_event\"}}"
        ),
        json("subscribe_msg_popup_event", item.clone()),
        json("subscribe_msg_popup_event", format!("[{item},{item}]")),
        json("subscribe_msg_change_event", format!("\"{BODY}\"")),
        json(
            "subscribe_msg_sent_event",
            format!(r#"{{"TemplateId":"t","MsgID":"{SECRET}","ErrorCode":"{BODY}","ErrorStatus":"{BODY}"}}"#),
        ),
        json(BODY, format!("\"{BODY}\"")),
        json("subscribe_msg_popup_event", r#"{"TemplateId":"template-1","SubscribeStatusString":"accept"}"#.into()),
        json(
            "subscribe_msg_sent_event",
            r#"{"TemplateId":"template-1","MsgID":"7","ErrorCode":"1","ErrorStatus":"user refuse"}"#.into(),
        ),
        format!("{{\"MsgType\": \"event\", \"FromUserName\": \"{OPENID} x\"}}"),
        "[".repeat(5000) + OPENID,
    ];
    for body in bodies {
        // One app has a callback token, the other does not.
        for app in [APP, NOWHERE] {
            let (timestamp, nonce, signature) = (REQUEST_ID.into(), OPENID.into(), SECRET.into());
            let body = body.clone().into_bytes();
            let request = ReportEventsRequest { app_id: app.into(), body, timestamp, nonce, signature };
            let _ = fixture.note("ReportEvents", collector.report_events(request).await);
        }
    }
    let request = ReportEventsRequest { app_id: NOWHERE.into(), body: vec![0xff, b'o'], ..Default::default() };
    fixture.note("ReportEvents", collector.report_events(request).await).unwrap_err();
}

async fn bad_input(fixture: &Fixture, collector: &mut Collector, dispatcher: &mut Dispatcher) {
    let good = || message(1);
    let bad = format!("{OPENID} {FORM_ID} {SECRET} {REQUEST_ID} {BODY}\u{1}");
    for request in [
        SendTemplateRequest { openid: bad.clone(), ..good() },
        SendTemplateRequest { openid: OPENID.repeat(50), ..good() },
        SendTemplateRequest { app_id: bad.clone(), ..good() },
        SendTemplateRequest { app_id: FORM_ID.into(), ..good() },
        SendTemplateRequest { template_id: bad.clone(), ..good() },
        SendTemplateRequest { page: bad.clone(), ..good() },
        SendTemplateRequest { emphasis_keyword: bad.clone(), ..good() },
        SendTemplateRequest { request_id: bad.clone(), ..good() },
        SendTemplateRequest { miniprogram_state: bad.clone(), lang: bad.clone(), ..good() },
        SendTemplateRequest { data: HashMap::from([(bad.clone(), value(&bad))]), ..good() },
        SendTemplateRequest { data: HashMap::from([("thing1".into(), value(&BODY.repeat(400)))]), ..good() },
        SendTemplateRequest {
            delivery: Delivery::Subscription.into(),
            data: HashMap::from([("phrase1".into(), value(&bad)), ("amount2".into(), value(BODY))]),
            miniprogram_state: bad.clone(),
            lang: bad.clone(),
            ..good()
        },
    ] {
        fixture.note("a bad SendTemplate", dispatcher.send_template(request).await).unwrap_err();
    }
    for request in [
        BroadcastRequest { audience: None, name: bad.clone(), ..to_all() },
        BroadcastRequest { exclude: vec![bad.clone()], ..to_all() },
        BroadcastRequest { audience: list([Recipient { openid: bad.clone(), data: data() }]), ..to_all() },
        BroadcastRequest {
            audience: list([Recipient { openid: openid(1), data: HashMap::from([(bad.clone(), value(&bad))]) }]),
            ..to_all()
        },
        BroadcastRequest { request_id: bad.clone(), page: bad.clone(), ..to_all() },
    ] {
        fixture.note("a bad Broadcast", dispatcher.broadcast(request).await).unwrap_err();
    }
    for text in [&bad, &OPENID.to_owned()] {
        let (app_id, broadcast_id) = (APP.to_owned(), text.clone());
        let get = GetBroadcastRequest { app_id: app_id.clone(), broadcast_id: text.clone() };
        fixture.note("GetBroadcast", dispatcher.get_broadcast(get).await).unwrap_err();
        let page = ListBroadcastsRequest { app_id: app_id.clone(), page_token: text.clone(), ..Default::default() };
        fixture.note("ListBroadcasts", dispatcher.list_broadcasts(page).await).unwrap_err();
        let page_token = text.clone();
        let undelivered = ListUndeliveredRequest { app_id, broadcast_id, page_token, ..Default::default() };
        fixture.note("ListUndelivered", dispatcher.list_undelivered(undelivered).await).unwrap_err();
        let stops = ListStopsRequest { app_id: text.clone() };
        fixture.note("ListStops", dispatcher.list_stops(stops).await).unwrap_err();
        let scope = Scope::TemplateId(format!("{text} "));
        let target = Some(Target::Scope(StopScope { scope: Some(scope) }));
        let lift = LiftStopRequest { app_id: APP.to_owned(), target };
        fixture.note("LiftStop", dispatcher.lift_stop(lift).await).unwrap_err();
        let (app_id, openid) = (APP.to_owned(), format!("{text} "));
        let inventory = GetInventoryRequest { app_id: app_id.clone(), openid: openid.clone() };
        fixture.note("GetInventory", collector.get_inventory(inventory).await).unwrap_err();
        fixture.note("EraseUser", collector.erase_user(EraseUserRequest { app_id, openid }).await).unwrap_err();
        fixture.note("GetStock", collector.get_stock(GetStockRequest { app_id: text.clone() }).await).unwrap_err();
    }
}

async fn sends(fixture: &Fixture, wechat: &LyingUpstream, dispatcher: &mut Dispatcher) {
    let mut lie = vec![Lie::Quote(500), Lie::Quote(404), Lie::NotJson, Lie::OtherJson, Lie::Redirect];
    lie.extend([Lie::Hang, Lie::Cut]);
    for rid in [Rid::Token, Rid::Secret, Rid::Openid, Rid::FormId] {
        lie.extend([47003, 43004, 41028, 40252, 43101, -1, 99999, 43117].map(|code| Lie::Refuse(code, rid)));
    }
    lie.extend([Lie::Refuse(40001, Rid::Token), Lie::Refuse(45009, Rid::Secret), Lie::Fine]);
    for (number, lie) in lie.into_iter().enumerate() {
        wechat.sends(lie);
        for delivery in [Delivery::FormId, Delivery::Subscription] {
            for request_id in [String::new(), format!("{REQUEST_ID}{number}{delivery:?}")] {
                let request = SendTemplateRequest { request_id, delivery: delivery.into(), ..message(number) };
                let sent = dispatcher.send_template(request).await;
                let _ = fixture.note(&format!("SendTemplate, {lie:?}"), sent);
            }
        }
    }
    let mut late = tonic::Request::new(message(50));
    late.set_timeout(Duration::from_millis(100));
    wechat.sends(Lie::Hang);
    fixture.note("a late SendTemplate", dispatcher.send_template(late).await).unwrap_err();
    wechat.sends(Lie::Fine);
}

async fn without_token(fixture: &Fixture, dispatcher: &mut Dispatcher) {
    let mut apps = vec![NOWHERE.to_owned(), CLOSED.to_owned()];
    apps.extend((0..TOKEN_LIES.len()).flat_map(|lie| [app_of(lie, 0), app_of(lie, 1)]));
    apps.extend((0..SOURCES).map(with_source));
    for app_id in apps {
        let request = SendTemplateRequest { app_id: app_id.clone(), request_id: REQUEST_ID.into(), ..message(1) };
        fixture.note("SendTemplate without a token", dispatcher.send_template(request).await).unwrap_err();
        let request = BroadcastRequest { app_id, audience: list([recipient(1)]), ..to_all() };
        fixture.note("Broadcast without a token", dispatcher.broadcast(request).await).unwrap();
    }
}

/// Puts values into Redis that another release or another program could have left there.
async fn unreadable(fixture: &Fixture, redis: &Redis, collector: &mut Collector, dispatcher: &mut Dispatcher) {
    let (app, user) = (AppId::parse(APP).unwrap(), OpenId::parse(openid(40)).unwrap());
    let bucket = store::keys::BucketKeys::new(&app, store::keys::Bucket::of(&user, 4));
    let auth = format!("AUTH {PASSWORD}");
    let garbage = format!("HSET {} {} {FORM_ID}{PREPAY_ID}{OPENID}", bucket.users(), user.as_str());
    redis_says(redis, &[&auth, &garbage]).await;
    let unread = |number: usize| SendTemplateRequest { request_id: format!("{REQUEST_ID}u{number}"), ..message(40) };
    for number in 0..2 {
        let inventory = GetInventoryRequest { app_id: APP.into(), openid: openid(40) };
        let _ = fixture.note("GetInventory of garbage", collector.get_inventory(inventory).await);
        let _ = fixture.note("SendTemplate of garbage", dispatcher.send_template(unread(number)).await);
    }
    // Overwrites the outcomes of requests (after their digest), tokens, counts and broadcasts with a value of another
    // kind.
    let json =
        format!(r#"{{\"o\": \"{OPENID}\", \"e\": \"{SECRET}\", \"reachable\": \"{BODY}\", \"name\": [\"{BODY}\"]}}"#);
    let script = format!(
        "local json = '{json}'
         for _, key in ipairs(redis.call('KEYS', '*{{*')) do
           local kind = redis.call('TYPE', key).ok
           if kind == 'string' then
             local digest = string.find(key, ':request:') and redis.call('GETRANGE', key, 0, 15) or ''
             redis.call('SET', key, digest .. json)
           elseif kind == 'hash' and redis.call('HEXISTS', key, 'spec') == 1 then
             redis.call('HSET', key, 'spec', json)
           end
         end"
    );
    let keys = format!("EVAL \"{}\" 0", script.replace('\n', " "));
    redis_says(redis, &[&auth, &keys]).await;
    for number in 0..50 {
        for delivery in [Delivery::FormId, Delivery::Subscription] {
            let request_id = format!("{REQUEST_ID}{number}{delivery:?}");
            let request = SendTemplateRequest { request_id, delivery: delivery.into(), ..message(number) };
            let _ = fixture.note("SendTemplate of a garbled request", dispatcher.send_template(request).await);
        }
    }
    let _ = fixture.note("GetStock", collector.get_stock(GetStockRequest { app_id: APP.into() }).await);
    let list = ListBroadcastsRequest { app_id: APP.into(), ..Default::default() };
    let _ = fixture.note("ListBroadcasts", dispatcher.list_broadcasts(list).await);
}

async fn calls(fixture: &Fixture, collector: &mut Collector, dispatcher: &mut Dispatcher) {
    let request = CollectRequest { app_id: APP.into(), credentials: vec![form(1, 9500), grant(1, REQUEST_ID)] };
    fixture.note("Collect", collector.collect(request).await).unwrap_err();
    let inventory = GetInventoryRequest { app_id: APP.into(), openid: openid(1) };
    fixture.note("GetInventory", collector.get_inventory(inventory).await).unwrap_err();
    let erase = EraseUserRequest { app_id: APP.into(), openid: openid(1) };
    fixture.note("EraseUser", collector.erase_user(erase).await).unwrap_err();
    let request = SendTemplateRequest { request_id: REQUEST_ID.into(), ..message(1) };
    fixture.note("SendTemplate", dispatcher.send_template(request).await).unwrap_err();
    let request = BroadcastRequest { request_id: REQUEST_ID.into(), audience: list([recipient(1)]), ..to_all() };
    fixture.note("Broadcast", dispatcher.broadcast(request).await).unwrap_err();
}
