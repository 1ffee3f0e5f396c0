//! The data that the previous release left in Redis. `previous_release.json` holds all keys that its services wrote in a
//! short run: credentials, a message in flight whose dispatcher was killed, requests, the ledger, and a broadcast that a
//! canary limit paused after two of eight messages.
//!
//! Two things of the file differ from what was written: form ids and prepay ids expire in 2098, so that the test does not
//! age, and keys that hold nothing for long (tokens, quota, dedup) are left out.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use domain::{Kind, OpenId, TemplateId};
use sandbox::Granting;
use serde_json::{Map, Value};
use server::proto::{BroadcastState, Delivery, Outcome, TemplateValue};
use store::credentials::Available;
use testing::{Redis, now};

use crate::broadcast::to_all;
use crate::fixture::{APP, Fixture, request};

const FILLED: &str = include_str!("previous_release.json");

/// Readers whose message of the broadcast was not sent by the previous release.
const LEFT: [&str; 6] = ["reader0", "reader1", "reader3", "reader4", "reader5", "reader7"];

/// Runs a command. Its arguments may be any bytes.
fn run(redis: &mut TcpStream, command: &[&[u8]]) {
    let mut request = format!("*{}\r\n", command.len()).into_bytes();
    for argument in command {
        request.extend(format!("${}\r\n", argument.len()).bytes());
        request.extend([argument, &b"\r\n"[..]].concat());
    }
    redis.write_all(&request).unwrap();
    let mut answer = [0; 1024];
    let length = redis.read(&mut answer).unwrap();
    assert!(matches!(answer[0], b'+' | b':'), "{}", String::from_utf8_lossy(&answer[..length]));
}

/// The file has each byte as the character of that number.
fn bytes(text: &Value) -> Vec<u8> {
    text.as_str().unwrap().chars().map(|letter| u8::try_from(u32::from(letter)).unwrap()).collect()
}

fn fill(redis: &Redis) {
    let filled: Value = serde_json::from_str(FILLED).unwrap();
    let age = now() - filled["filled_at"].as_i64().unwrap();
    let mut connection = TcpStream::connect(redis.servers()[0].url().trim_start_matches("redis://")).unwrap();
    for entry in filled["keys"].as_array().unwrap() {
        let mut entry: Map<String, Value> = entry.as_object().unwrap().clone();
        let (key, ttl) = (bytes(&entry.remove("key").unwrap()), entry.remove("ttl_ms").unwrap());
        let (kind, value) = entry.into_iter().next().unwrap();
        match (kind.as_str(), &value) {
            ("string", text) => run(&mut connection, &[b"SET", &key, &bytes(text)]),
            ("hash", Value::Object(fields)) => {
                for (field, text) in fields {
                    run(&mut connection, &[b"HSET", &key, field.as_bytes(), &bytes(text)]);
                }
            }
            ("set", Value::Array(members)) => {
                members.iter().for_each(|member| run(&mut connection, &[b"SADD", &key, &bytes(member)]));
            }
            ("zset", Value::Array(members)) => {
                for member in members {
                    // Scores above 0 are times.
                    let score = member[1].as_f64().unwrap() as i64;
                    let score = if score > 0 { score + age } else { 0 }.to_string();
                    run(&mut connection, &[b"ZADD", &key, score.as_bytes(), &bytes(&member[0])]);
                }
            }
            ("stream", stream) => {
                assert_eq!(stream["entries"].as_array().unwrap().len(), 0);
                let group = bytes(&stream["groups"][0]);
                run(&mut connection, &[b"XGROUP", b"CREATE", &key, &group, b"0", b"MKSTREAM"]);
            }
            other => panic!("{other:?}"),
        }
        if let Some(ttl) = ttl.as_u64() {
            run(&mut connection, &[b"PEXPIRE", &key, ttl.to_string().as_bytes()]);
        }
    }
}

impl Fixture {
    /// A user's credentials of one kind; for grants, of the template `welcome`.
    async fn available(&self, openid: &str, kind: Kind) -> Available {
        let template = (kind == Kind::Grant).then(|| TemplateId::parse("welcome").unwrap());
        let inventory = self.store.inventory(&self.app(), &OpenId::parse(openid).unwrap(), now(), 0).await.unwrap();
        inventory.get(&(kind, template)).copied().unwrap_or_default()
    }
}

#[tokio::test]
async fn data_of_the_previous_release_is_read_and_continued() {
    let redis = Redis::alone();
    fill(&redis);
    let fixture = Fixture::on(redis).await.patiently();

    // Credentials.
    let form_ids = fixture.available("anna", Kind::FormId).await;
    assert_eq!((form_ids.credentials, form_ids.messages), (2, 2));
    let prepay_ids = fixture.available("anna", Kind::PrepayId).await;
    assert_eq!((prepay_ids.credentials, prepay_ids.messages), (1, 3));
    assert_eq!(fixture.available("carl", Kind::Grant).await.messages, 1);
    assert!(fixture.available("dora", Kind::Grant).await.long_term);
    let ledger = fixture.store.ledger(&fixture.app()).await.unwrap();
    // The use that a message in flight holds is leased; a day later the reaper books it as consumed.
    assert_eq!((ledger.collected, ledger.consumed, ledger.leased), (18, 4, 1), "{ledger:?}");

    // Request ids: a repeated request is answered from its record and sends nothing.
    let grants = LEFT.map(|openid| Granting { count: 1, ..Granting::new(openid, "news") });
    fixture.sandbox.grant(APP, grants.into()).unwrap();
    fixture.sandbox.grant(APP, vec![Granting { count: 1, ..Granting::new("carl", "welcome") }]).unwrap();
    let dispatcher = fixture.dispatcher().await;
    let data = |key: &str, text: &str| {
        [(key.to_owned(), TemplateValue { value: text.into(), ..TemplateValue::default() })].into()
    };
    let mut to_bob = request("bob", "", "r-bob");
    (to_bob.template_id, to_bob.data) = ("order".into(), data("keyword1", "1"));
    let mut to_carl = request("carl", "", "r-carl");
    (to_carl.template_id, to_carl.data) = ("welcome".into(), data("thing1", "hi"));
    to_carl.delivery = Delivery::Subscription.into();
    for repeated in [to_bob, to_carl.clone()] {
        assert_eq!(dispatcher.send(repeated).await.unwrap().outcome(), Outcome::Delivered);
    }
    assert_eq!(fixture.delivered(), 0);
    // The grant that is left permits a new message.
    to_carl.request_id = "r-carl-2".into();
    assert_eq!(dispatcher.send(to_carl).await.unwrap().outcome(), Outcome::Delivered);

    // The broadcast: a repeated call finds it, and it continues where it was paused.
    let mut news = to_all();
    (news.template_id, news.data, news.limit) = ("news".into(), data("thing1", "news"), 2);
    news.request_id = "r-news".into();
    news.delivery = Delivery::Subscription.into();
    let broadcast = dispatcher.broadcast(news).await.unwrap();
    assert_eq!((broadcast.state(), broadcast.tally.unwrap().delivered), (BroadcastState::Paused, 2));
    dispatcher.done("ResumeBroadcast", &broadcast.broadcast_id).await;
    let done = dispatcher.until(&broadcast.broadcast_id, BroadcastState::Done).await;
    assert_eq!(done.tally.map(|tally| (tally.audience, tally.delivered, tally.left)), Some((8, 8, 0)));
    let books = fixture.sandbox.books(Some(APP)).unwrap();
    assert_eq!((books.delivered, books.delivered_twice), (7, 0), "{books:?}");
    for openid in LEFT {
        assert!(fixture.received().contains_key(openid), "{openid}");
    }
}
