//! Assertions that must hold after every step.

use std::collections::{BTreeMap, BTreeSet};

use deadpool_redis::redis;
use store::keys::BucketKeys;

use super::{Run, USERS};
use crate::broadcast::MANY;
use crate::sequences::compare;

type Read = BTreeMap<Vec<u8>, Vec<u8>>;

impl Run<'_> {
    pub async fn check(&self) {
        compare(self.fixture, &self.fixture.store, &self.users, &self.model).await;
        self.check_leases().await;
        for (real, model) in self.real.iter().zip(&self.models) {
            let names =
                |users: &BTreeSet<usize>| -> BTreeSet<_> { users.iter().map(|user| USERS[*user].to_owned()).collect() };
            let (todo, flight, mut counts) = real.places().await;
            assert_eq!((todo, flight), (names(&model.todo), names(&model.flight)));
            assert!(model.todo.is_disjoint(&model.flight));
            assert!(!model.ended.keys().any(|user| model.todo.contains(user) || model.flight.contains(user)));
            let mut ended = 0;
            for bucket in self.fixture.store.buckets() {
                let permits = real.part(bucket).permits(MANY, false).await.unwrap();
                assert_eq!((permits.received, permits.returned), (MANY, 0));
                ended += permits.ended;
            }
            assert_eq!(ended, model.taken - model.flight.len() as u64, "permits of messages that have ended");
            let audience = counts.remove("audience").unwrap_or(0);
            assert_eq!((audience, &counts), (model.audience, &model.tally));
            assert_eq!(audience, counts.values().sum::<u64>() + (model.todo.len() + model.flight.len()) as u64);
        }
    }

    /// No form id has two leases, and no message has two leases.
    async fn check_leases(&self) {
        let (mut form_ids, mut messages) = (BTreeSet::new(), BTreeSet::new());
        let mut pipe = redis::pipe();
        for bucket in self.fixture.store.buckets() {
            pipe.cmd("HGETALL").arg(BucketKeys::new(&self.fixture.app, bucket).leases());
        }
        for lease in self.fixture.all::<Vec<Read>>(&pipe).await.into_iter().flat_map(Read::into_values) {
            let (flags, who) = (lease[17], &lease[54..]);
            let (openid, rest) = who[1..].split_at(usize::from(who[0]));
            let (request, tail) = rest[1..].split_at(usize::from(rest[0]));
            assert!(flags >= 64 || form_ids.insert([openid, b" ", tail].concat()), "one form id for two messages");
            assert!(request.is_empty() || messages.insert([openid, request].concat()), "two leases for one message");
        }
    }

    /// Compares what the store answers about the broadcasts with the model.
    pub async fn check_answers(&self) {
        let (app, store) = (&self.fixture.app, &self.fixture.store);
        for (number, (record, model)) in self.records.iter().zip(&self.models).enumerate() {
            if number == 1 || self.seen[0].len() == store.buckets().len() {
                let tally = store.tally(app, record).await.unwrap();
                assert_eq!((tally.audience, tally.estimated), (model.audience, false));
                assert_eq!(tally.endings, model.tally);
                assert_eq!(tally.left(), (model.todo.len() + model.flight.len()) as u64);
                assert_eq!(tally.in_flight, model.flight.len() as u64);
            }
            let (undelivered, more) = store.undelivered(app, record, None, 100).await.unwrap();
            let wanted = model.ended.iter().filter(|(_, ending)| *ending != "delivered");
            let wanted: BTreeSet<_> = wanted.map(|(user, ending)| (USERS[*user].to_owned(), ending.clone())).collect();
            let undelivered: Vec<_> = undelivered.into_iter().map(|entry| (entry.openid, entry.ending)).collect();
            assert_eq!((undelivered.len(), more), (wanted.len(), None));
            assert_eq!(undelivered.into_iter().collect::<BTreeSet<_>>(), wanted);
        }
    }
}
