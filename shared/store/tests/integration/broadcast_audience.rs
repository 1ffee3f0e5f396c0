//! The audience of a broadcast: who is in it, who is left out, and who was not reached.

use std::collections::BTreeSet;

use deadpool_redis::redis;
use domain::dependency::Dependency as _;
use domain::{Kind, OpenId};
use store::broadcast::audience::{Added, Choice, Preview, Recipient};
use store::broadcast::pages::Next;
use store::broadcast::records::Move;
use store::eligibility::{Eligibility, Kinds};
use store::leases::{LeaseEnd, LeaseId};
use testing::Redis;

use crate::broadcast::{Broadcast, end, recipient};
use crate::fixture::{BRIEF, Fixture, HOUR, TERMS, any_kind, form_id, prepay_id, user};

fn added(added: u32, excluded: u32) -> Added {
    Added { added, excluded, late: false }
}

#[tokio::test]
async fn recipients_count_once_and_excluded_users_stay_out() {
    let fixture = Fixture::new().await;
    let broadcast = Broadcast::new(&fixture, false).await;
    let users = ["oA", "oB", "oC", "oD"].map(user);
    assert_eq!(broadcast.add(&users[..2], &[]).await, added(2, 0));
    assert_eq!(broadcast.add(&[&users[..3], &users[..3]].concat(), &[]).await, added(1, 0), "also within one call");
    assert_eq!(broadcast.add(&[], &users[..1]).await, added(0, 0), "excluded after it was added");
    assert_eq!(broadcast.add(&users[..1], &[]).await, added(0, 1), "and stays excluded");
    assert_eq!(broadcast.add(&users[3..], &users[3..]).await, added(0, 1));
    let (todo, _, counts) = broadcast.places().await;
    assert_eq!((todo, counts["audience"]), (BTreeSet::from(["oB".to_owned(), "oC".to_owned()]), 2));
    assert_eq!(broadcast.tally().await.audience, 2);
}

#[tokio::test]
async fn list_of_thousands_is_added_in_one_call() {
    let fixture = Fixture::new().await;
    let broadcast = Broadcast::new(&fixture, false).await;
    let bucket = fixture.store.bucket_of(&user("oA"));
    let users = fixture.crowd(bucket, 2000).await;
    let recipients: Vec<_> = users.iter().map(recipient).collect();
    assert_eq!(broadcast.add_to(bucket, &recipients, &users[1500..]).await, added(1500, 500));
    assert_eq!(broadcast.add_to(bucket, &recipients, &users[1000..]).await, added(0, 1000));
    assert_eq!(broadcast.tally().await.audience, 1000);
    assert!(fixture.store.has_recipients(&fixture.app, &broadcast.id).await.unwrap());
}

#[tokio::test]
async fn late_additions_are_reported_and_change_nothing() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let bucket = fixture.store.bucket_of(&anna);
    let elsewhere =
        (0..).map(|number| user(&format!("o{number}"))).find(|user| fixture.store.bucket_of(user) != bucket);
    let elsewhere = elsewhere.unwrap();
    let late = Added { late: true, ..Added::default() };
    // Everything except until when the parts of a bucket are known, which depends on the clock.
    let everything = async || {
        let mut all = fixture.everything().await;
        all.retain(|key, _| !key.ends_with("}:broadcasts"));
        all
    };
    for openid in [&anna, &elsewhere] {
        fixture.collect(openid, &[form_id("f1", 9), form_id("f2", 9)]).await;
    }
    let broadcast = Broadcast::to(&fixture, std::slice::from_ref(&anna)).await;
    let owner = LeaseId::random();
    assert_eq!(broadcast.take_all(owner, &TERMS).await.len(), 1);
    for settled in [false, true] {
        if settled {
            broadcast.settle(&anna, owner, LeaseEnd::Consume, end("delivered")).await;
        }
        let before = everything().await;
        for openid in [&anna, &elsewhere] {
            assert_eq!(broadcast.add(std::slice::from_ref(openid), &[]).await, late);
        }
        assert_eq!(broadcast.add(&[], std::slice::from_ref(&anna)).await, late);
        assert_eq!(everything().await, before);
        assert!(broadcast.take_all(LeaseId::random(), &TERMS).await.is_empty());
    }
    // A call that read the broadcast before its start, and reaches the bucket after its part was found empty.
    let broadcast = Broadcast::new(&fixture, true).await;
    broadcast.take_all(owner, &TERMS).await;
    assert_eq!(broadcast.add(std::slice::from_ref(&anna), &[]).await, late);
    assert_eq!(broadcast.counts_of("audience").await, 0);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn snapshot_has_exactly_the_reachable_users_not_excluded() {
    let fixture = Fixture::new().await;
    let names = ["oForm", "oPrepay", "oBoth", "oTouched", "oSoon", "oGone", "oExcluded", "oLeased"];
    let [form, prepay, both, touched, soon, gone, excluded, leased] = names.map(user);
    fixture.collect(&form, &[form_id("f1", 9)]).await;
    fixture.collect(&prepay, &[prepay_id("p1", 2, 9)]).await;
    fixture.collect(&both, &[form_id("f1", 9), prepay_id("p1", 2, 9)]).await;
    for openid in [&touched, &leased] {
        fixture.collect(openid, &[form_id("f1", 9)]).await;
        let lease = fixture.lease(openid).await;
        if openid == &touched {
            fixture.settle(openid, lease.id, LeaseEnd::Consume).await;
        }
    }
    // Within the margin.
    let expiry = (testing::now() + 60) as u32;
    fixture.collect(&soon, &[domain::Credential { expiry, ..form_id("f1", 9) }]).await;
    fixture.collect(&gone, &[form_id("f1", -1)]).await;
    fixture.collect(&excluded, &[form_id("f1", 9)]).await;
    for (of, wanted) in [
        (any_kind(), vec!["oBoth", "oForm", "oPrepay"]),
        (Eligibility::ids(Kinds::NONE.with(Kind::FormId)), vec!["oBoth", "oForm"]),
        (Eligibility::ids(Kinds::NONE.with(Kind::PrepayId)), vec!["oBoth", "oPrepay"]),
    ] {
        let mut broadcast = Broadcast::new(&fixture, true).await;
        broadcast.choice = Choice { wanted: of, min_interval: 0 };
        let tally = broadcast.tally().await;
        assert_eq!((tally.audience, tally.estimated), (8, true), "all users with stored data");
        broadcast.add(&[], std::slice::from_ref(&excluded)).await;
        broadcast.snapshot_all().await;
        // A replica that continues after a crash finds the snapshots complete.
        broadcast.snapshot_all().await;
        let (todo, ..) = broadcast.places().await;
        assert_eq!(todo.into_iter().collect::<Vec<_>>(), wanted);
        let tally = broadcast.tally().await;
        assert_eq!((tally.audience, tally.estimated), (wanted.len() as u64, false));
        // Users who are stored later are not in the audience. Users who are excluded later are removed.
        broadcast.add(&[], std::slice::from_ref(&both)).await;
        assert_eq!(broadcast.tally().await.audience, wanted.len() as u64 - 1);
    }
}

#[tokio::test]
async fn snapshot_continues_and_misses_nobody_after_a_redis_restart() {
    for restart in [false, true] {
        let mut fixture = Fixture::on(Redis::durable_alone(), 120).await;
        let bucket = fixture.store.bucket_of(&user("oA"));
        let users = fixture.crowd(bucket, 1500).await;
        let id = {
            let broadcast = Broadcast::new(&fixture, true).await;
            for _ in 0..8 {
                assert!(!broadcast.snapshot(bucket).await);
            }
            let some = broadcast.counts_of("audience").await;
            assert!((600..1400).contains(&some), "{some}");
            broadcast.id
        };
        if restart {
            fixture.redis.kill();
            assert!(fixture.store.ping().await.is_err());
            fixture.redis.resume();
            testing::eventually("the store reaches Redis again", std::time::Duration::from_secs(5), async || {
                fixture.store.ping().await.is_ok()
            })
            .await;
            fixture.reconnect().await;
        }
        let broadcast = Broadcast::again(&fixture, id);
        let mut calls = 1;
        while !broadcast.snapshot(bucket).await {
            calls += 1;
        }
        assert!(restart || calls < 9, "{calls} more calls");
        let (todo, ..) = broadcast.places().await;
        assert_eq!((todo.len(), broadcast.counts_of("audience").await), (users.len(), users.len() as u64));
    }
}

#[tokio::test]
async fn preview_predicts_the_pages_and_changes_nothing() {
    let fixture = Fixture::new().await;
    let users: Vec<_> = (0..40).map(|number| user(&format!("oU{number}"))).collect();
    for (number, openid) in users.iter().enumerate() {
        match number % 5 {
            0 | 2 => {}
            1 => drop(fixture.collect(openid, &[prepay_id("p1", 2, 9)]).await),
            _ => drop(fixture.collect(openid, &[form_id("f1", 9), form_id("f2", 9)]).await),
        }
        if number % 5 == 4 {
            let lease = fixture.lease(openid).await;
            fixture.settle(openid, lease.id, LeaseEnd::Consume).await;
        }
    }
    fixture.advance(2).await;
    for (of, hours, wanted) in [
        (any_kind(), 0, (24, 16, 0)),
        (any_kind(), 1, (24, 16, 0)),
        (any_kind(), 3, (16, 16, 8)),
        (Eligibility::ids(Kinds::NONE.with(Kind::FormId)), 3, (8, 24, 8)),
        (Eligibility::ids(Kinds::NONE), 3, (0, 40, 0)),
    ] {
        let choice = Choice { wanted: of, min_interval: (hours * HOUR) as u32 };
        // Expired credentials are dropped when a page takes their user.
        for openid in users.iter().skip(2).step_by(5) {
            fixture.collect(openid, &[form_id("f0", -1)]).await;
        }
        let (mut all, mut list) = (Preview::default(), Preview::default());
        let before = fixture.everything().await;
        for bucket in fixture.store.buckets() {
            all.add(fixture.store.preview_all(&fixture.app, bucket, &choice, &TERMS).await.unwrap());
            let here: Vec<_> = users.iter().filter(|user| fixture.store.bucket_of(user) == bucket).cloned().collect();
            list.add(fixture.store.preview_list(&fixture.app, bucket, &here, &choice, &TERMS).await.unwrap());
        }
        assert_eq!(fixture.everything().await, before);
        assert_eq!((list.reached, list.no_credential, list.recently_messaged), wanted);
        // The preview of everyone does not know users without stored data.
        assert_eq!(all, Preview { no_credential: list.no_credential - 8, ..list });

        for everyone in [true, false] {
            let mut broadcast = Broadcast::new(&fixture, everyone).await;
            broadcast.choice = choice.clone();
            if everyone {
                broadcast.snapshot_all().await;
            } else {
                broadcast.add(&users, &[]).await;
            }
            let owner = LeaseId::random();
            let ready = broadcast.take_all(owner, &TERMS).await;
            assert_eq!(ready.len() as u64, list.reached);
            assert_eq!(broadcast.counts_of("RECENTLY_MESSAGED").await, list.recently_messaged);
            let without = if everyone { 0 } else { list.no_credential };
            assert_eq!(broadcast.counts_of("NO_CREDENTIAL").await, without);
            for ready in ready {
                broadcast.settle(&ready.openid, owner, LeaseEnd::Return, end("FAILED 1")).await;
            }
        }
    }
    fixture.assert_sound().await;
}

#[tokio::test]
async fn store_tells_whether_there_are_users_and_recipients() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let broadcast = Broadcast::new(&fixture, false).await;
    let has = async || {
        let users = fixture.store.has_users(&fixture.app).await.unwrap();
        (users, fixture.store.has_recipients(&fixture.app, &broadcast.id).await.unwrap())
    };
    broadcast.add(&[], std::slice::from_ref(&anna)).await;
    assert_eq!(has().await, (false, false), "an exclusion adds no recipient");
    fixture.collect(&anna, &[form_id("f1", 1)]).await;
    broadcast.add(&[user("oBob")], &[]).await;
    assert_eq!(has().await, (true, true));
}

/// How many keys, fields, members and values in Redis contain an openid.
async fn places(fixture: &Fixture, openid: &OpenId) -> usize {
    let name = openid.as_str().as_bytes();
    // A letter or digit after the name means a longer openid: in these tests nothing else that follows an openid starts
    // with one.
    let contains = |bytes: &[u8]| {
        let ends = |at: usize| !bytes.get(at + name.len()).is_some_and(|byte| byte.is_ascii_alphanumeric());
        bytes.windows(name.len()).enumerate().any(|(at, window)| window == name && ends(at))
    };
    let all = fixture.everything().await;
    let entries = |entries: &std::collections::BTreeMap<Vec<u8>, Vec<u8>>| -> usize {
        entries.iter().map(|(field, value)| usize::from(contains(field)) + usize::from(contains(value))).sum()
    };
    all.iter().map(|(key, of)| usize::from(contains(key.as_bytes())) + entries(of)).sum()
}

#[tokio::test]
async fn erasure_clears_one_openid_and_not_those_it_is_a_prefix_of() {
    let (fixture, anna) = (Fixture::new().await, user("oAnna"));
    let bucket = fixture.store.bucket_of(&anna);
    let alike = |openid: &OpenId| fixture.store.bucket_of(openid) == bucket;
    let longer = (0..).map(|number| user(&format!("oAnna{number}"))).find(alike).unwrap();
    let users = [anna.clone(), longer.clone()];
    let mut broadcasts = Vec::new();
    for state in ["todo", "flight", "held", "undelivered", "delivered", "excluded", "closed"] {
        for openid in &users {
            fixture.collect(openid, &[form_id(&format!("f-{state}"), 9)]).await;
        }
        let broadcast = Broadcast::new(&fixture, false).await;
        let list: Vec<_> =
            users.iter().map(|openid| Recipient { openid: openid.clone(), data: b"theirs".to_vec() }).collect();
        broadcast.add_to(bucket, &list, if state == "excluded" { &users } else { &[] }).await;
        broadcast.start().await;
        if !["todo", "excluded"].contains(&state) {
            let owner = LeaseId::random();
            assert_eq!(broadcast.take_all(owner, &BRIEF).await.len(), 2);
            for openid in &users {
                match state {
                    "held" => drop(broadcast.settle(openid, owner, LeaseEnd::Hold, Next::Hold).await),
                    "delivered" => drop(broadcast.settle(openid, owner, LeaseEnd::Consume, end("delivered")).await),
                    "flight" => {}
                    _ => drop(broadcast.settle(openid, owner, LeaseEnd::Discard, end("FAILED 1")).await),
                }
            }
        }
        if state == "closed" {
            broadcast.part(bucket).close(true).await.unwrap();
        }
        broadcasts.push((state, broadcast));
    }
    let longers = places(&fixture, &longer).await;
    assert_eq!(places(&fixture, &anna).await, longers);
    assert!(longers > 10);
    fixture.store.erase(&fixture.app, &anna).await.unwrap();
    assert_eq!((places(&fixture, &anna).await, places(&fixture, &longer).await), (0, longers));
    for (state, broadcast) in broadcasts {
        let tally = broadcast.tally().await;
        let erased = u64::from(["todo", "flight", "held"].contains(&state));
        let left = if erased == 1 { 1 } else { 0 };
        assert_eq!((tally.ended("erased"), tally.left()), (erased, left), "{state}");
        assert_eq!(tally.audience, if state == "excluded" { 0 } else { 2 }, "{state}");
    }
    fixture.store.erase(&fixture.app, &anna).await.unwrap();
    assert_eq!(places(&fixture, &longer).await, longers);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn undelivered_are_listed_once_for_any_page_size_also_closed() {
    let fixture = Fixture::new().await;
    for (everyone, count) in [(false, 0), (false, 1), (true, 47), (false, 60)] {
        let broadcast = Broadcast::new(&fixture, everyone).await;
        // Openids that are prefixes of one another.
        let users: Vec<_> =
            (1..=count).map(|length| user(&format!("o{}", "A!".repeat(length)[..length].to_owned()))).collect();
        if everyone {
            for openid in &users {
                fixture.collect(openid, &[form_id("f1", 9)]).await;
            }
            broadcast.snapshot_all().await;
        } else {
            broadcast.add(&users, &[]).await;
        }
        broadcast.start().await;
        let owner = LeaseId::random();
        for ready in broadcast.take_all(owner, &TERMS).await {
            broadcast.settle(&ready.openid, owner, LeaseEnd::Discard, end("CREDENTIALS_DEAD 41028")).await;
        }
        let ending = if everyone { "CREDENTIALS_DEAD 41028" } else { "NO_CREDENTIAL" };
        for closed in [false, true] {
            for size in [1, 2, 5, 30, 47, 60, 100] {
                let all = broadcast.undelivered(size).await;
                assert!(all.iter().all(|entry| entry.ending == ending));
                let openids: BTreeSet<_> = all.iter().map(|entry| entry.openid.as_str()).collect();
                assert_eq!((all.len(), openids), (count, users.iter().map(OpenId::as_str).collect()), "{size}");
            }
            if !closed {
                for bucket in fixture.store.buckets() {
                    broadcast.part(bucket).close(true).await.unwrap();
                }
            }
        }
        assert_eq!(broadcast.tally().await.ended(ending), count as u64);
    }
}

#[tokio::test]
async fn users_not_reached_by_a_cancelled_broadcast_count_as_left() {
    let fixture = Fixture::new().await;
    let users = ["oA", "oB", "oC", "oD", "oE"].map(user);
    for everyone in [false, true] {
        for openid in &users {
            fixture.collect(openid, &[form_id("f1", 9), form_id("f2", 9)]).await;
        }
        let broadcast = Broadcast::new(&fixture, everyone).await;
        broadcast.add(if everyone { &[] } else { &users }, &[]).await;
        let first = fixture.store.bucket_of(&users[0]);
        if everyone {
            while !broadcast.snapshot(first).await {}
        }
        broadcast.start().await;
        let owner = LeaseId::random();
        let page = broadcast.take(first, owner, 1, &TERMS).await;
        broadcast.settle(&page.ready[0].openid, owner, LeaseEnd::Consume, end("delivered")).await;
        broadcast.go(&Move::Cancel).await;
        for bucket in fixture.store.buckets() {
            broadcast.part(bucket).close(true).await.unwrap();
        }
        let tally = broadcast.tally().await;
        let here = users.iter().filter(|user| fixture.store.bucket_of(user) == first).count() as u64;
        let audience = if everyone { here } else { 5 };
        assert_eq!((tally.audience, tally.ended("delivered"), tally.left()), (audience, 1, audience - 1));
        assert_eq!((tally.in_flight, tally.estimated), (0, false));
        let unused: Vec<redis::Value> = fixture.raw(redis::cmd("KEYS").arg("*:todo")).await;
        assert!(unused.is_empty());
    }
}
