//! Random sequences of calls for permits, by replicas that die and repeat calls. At no time are more messages sent than
//! are permitted. When all work is finished, exactly as many have been sent, unless the audience is used up.

use deadpool_redis::redis;
use proptest::collection::vec;
use proptest::prelude::*;
use store::broadcast::pages::Next;
use store::broadcast::permits::{Api, Bounds, Budget, Held, Permits};
use store::broadcast::records::Draft;
use store::keys::Bucket;
use store::leases::{LeaseEnd, LeaseId};

use crate::broadcast::{Broadcast, draft, end};
use crate::fixture::{BRIEF, Fixture, form_id, user};

const USERS: usize = 24;
const BUCKETS: u16 = 4;
const TODAY: Budget = Budget { api: Api::Template, day: 20_000 };

#[derive(Debug, Clone)]
enum Op {
    /// Bucket, how many are wanted; whether the reply is lost, and whether the call is repeated.
    Ask(u16, usize, bool, bool),
    /// Bucket, how many users; whether the reply is lost.
    Page(u16, usize, bool),
    /// Bucket; 0: the message ends, 1: its user returns to the audience, 2: its outcome is unknown.
    Settle(u16, usize),
    /// The replica that works on the bucket dies.
    Die(u16),
    /// Bucket; whether unused permits are returned.
    Account(u16, bool),
    /// WeChat reports how many messages were sent.
    Tell,
    Erase(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let bucket = || 0..BUCKETS;
    prop_oneof![
        6 => (bucket(), 0..6_usize, prop::bool::weighted(0.2), prop::bool::weighted(0.2))
            .prop_map(|(bucket, wanted, lost, again)| Op::Ask(bucket, wanted, lost, again)),
        6 => (bucket(), 1..5_usize, prop::bool::weighted(0.2))
            .prop_map(|(bucket, count, lost)| Op::Page(bucket, count, lost)),
        6 => (bucket(), 0..3_usize).prop_map(|(bucket, how)| Op::Settle(bucket, how)),
        1 => bucket().prop_map(Op::Die),
        2 => (bucket(), any::<bool>()).prop_map(|(bucket, back)| Op::Account(bucket, back)),
        1 => Just(Op::Tell),
        1 => (0..USERS).prop_map(Op::Erase),
    ]
}

struct Run<'a> {
    fixture: &'a Fixture,
    broadcast: Broadcast<'a>,
    bounds: Bounds,
    /// The permits of each bucket, as known to the replica that works on it.
    permits: [Permits; BUCKETS as usize],
    /// Messages that WeChat has counted.
    delivered: u64,
}

impl Run<'_> {
    async fn step(&mut self, op: &Op) {
        match *op {
            Op::Ask(bucket, wanted, lost, again) => {
                for _ in 0..=usize::from(again) {
                    self.ask(bucket, wanted, lost).await;
                }
            }
            Op::Page(bucket, count, lost) => drop(self.page(bucket, count, lost).await),
            Op::Settle(bucket, 0) => drop(self.settle(bucket, LeaseEnd::Consume, end("delivered")).await),
            Op::Settle(bucket, 1) => drop(self.settle(bucket, LeaseEnd::Return, Next::Again).await),
            Op::Settle(bucket, _) => drop(self.settle(bucket, LeaseEnd::Hold, Next::Hold).await),
            Op::Die(bucket) => self.permits[usize::from(bucket)] = Permits::default(),
            Op::Account(bucket, give_back) => self.account(bucket, give_back).await,
            Op::Tell => self.tell().await,
            Op::Erase(number) => {
                let openid = user(&format!("oU{number}"));
                // A message in flight to such a user is still sent.
                self.delivered += u64::from(self.broadcast.places().await.1.contains(openid.as_str()));
                self.fixture.store.erase(&self.fixture.app, &openid).await.unwrap();
            }
        }
    }

    async fn ask(&mut self, bucket: u16, wanted: usize, lost: bool) -> Option<Held> {
        let permits = &mut self.permits[usize::from(bucket)];
        let wanted = wanted.saturating_sub(permits.left as usize);
        let permit = self.broadcast.part(Bucket(bucket)).permit(permits, wanted, 0, &self.bounds, TODAY).await.unwrap();
        if !lost {
            permits.granted = permit.granted;
        }
        permit.why
    }

    /// Takes a page. Returns how many users were taken. Their leases expire immediately, so that any replica can settle
    /// them.
    async fn page(&mut self, bucket: u16, count: usize, lost: bool) -> usize {
        let broadcast = &self.broadcast;
        let permits = &mut self.permits[usize::from(bucket)];
        let (bucket, owner, granted) = (Bucket(bucket), LeaseId::random(), permits.granted);
        let page = broadcast.part(bucket).take_page(owner, count, granted, &broadcast.choice, &BRIEF).await.unwrap();
        assert!(page.taken <= count && page.ready.len() == page.taken);
        if !lost {
            *permits = page.permits;
        }
        page.taken
    }

    /// Settles one of the messages in flight, regardless of its owner. False if there is none.
    async fn settle(&mut self, bucket: u16, verdict: LeaseEnd, next: Next) -> bool {
        let (bucket, owner) = (Bucket(bucket), LeaseId::random());
        let flying = self.broadcast.part(bucket).in_flight().await.unwrap();
        let Some(openid) = flying.into_iter().min() else { return false };
        let over = self.broadcast.take_over(bucket, owner, std::slice::from_ref(&openid)).await;
        if let Some(ready) = over.ready.first() {
            self.delivered += u64::from(verdict == LeaseEnd::Consume);
            self.broadcast.settle(&openid, ready.lease.id, verdict, next).await;
        }
        true
    }

    async fn account(&mut self, bucket: u16, give_back: bool) {
        let permits = &mut self.permits[usize::from(bucket)];
        *permits = self.broadcast.part(Bucket(bucket)).permits(permits.granted, give_back).await.unwrap();
        self.ask(bucket, 0, false).await;
    }

    async fn tell(&self) {
        let (store, app, limit) = (&self.fixture.store, &self.fixture.app, self.bounds.daily_quota);
        let ended = store.ended_messages(app, TODAY).await.unwrap();
        store.set_quota(app, TODAY, limit, self.delivered, ended).await.unwrap();
    }

    /// How many messages have ended, and how many are in flight.
    async fn messages(&self) -> (u64, u64) {
        let mut sum = (0, 0);
        for bucket in self.fixture.store.buckets() {
            let part = self.broadcast.part(bucket);
            sum.0 += part.permits(0, false).await.unwrap().ended;
            sum.1 += part.in_flight().await.unwrap().len() as u64;
        }
        sum
    }

    /// Finishes the work on all buckets, until no more is permitted or no user waits.
    async fn finish(&mut self) {
        for _ in 0..USERS {
            let mut idle = true;
            for bucket in 0..BUCKETS {
                while self.settle(bucket, LeaseEnd::Consume, end("delivered")).await {}
                self.account(bucket, true).await;
                let why = self.ask(bucket, 3, false).await;
                let unsure =
                    why == Some(Held::Quota { unsure: true }) && self.permits[usize::from(bucket)].usable() == 0;
                if unsure {
                    self.tell().await;
                }
                let taken = self.page(bucket, 3, false).await;
                if taken == 0 {
                    self.account(bucket, true).await;
                }
                idle &= taken == 0 && !unsure && !matches!(why, Some(Held::Open { .. }));
            }
            if idle {
                return;
            }
        }
        panic!("permits stay open forever");
    }
}

#[test]
fn exactly_the_permitted_messages_are_sent_despite_deaths() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let fixture = runtime.block_on(Fixture::new());
    let config = ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() };
    let limits = (1..30_u64, prop::option::of(1..30_u32));
    proptest!(config, |((daily_quota, canary) in limits, ops in vec(op(), 1..40))| {
        runtime.block_on(async {
            fixture.raw::<()>(&redis::cmd("FLUSHALL")).await;
            let users: Vec<_> = (0..USERS).map(|number| user(&format!("oU{number}"))).collect();
            for openid in &users {
                fixture.collect(openid, &[form_id("f1", 9)]).await;
            }
            let broadcast = Broadcast::of(&fixture, &Draft { canary, ..draft(false) }).await;
            broadcast.add(&users, &[]).await;
            broadcast.start().await;
            let bounds = Bounds { app_rate: 0, broadcast_rate: 0, daily_quota, broadcast_share: 1000 };
            let mut run = Run { fixture: &fixture, broadcast, bounds, permits: Default::default(), delivered: 0 };
            let most = canary.map_or(daily_quota, |canary| daily_quota.min(canary.into()));
            for op in &ops {
                run.step(op).await;
                let (ended, in_flight) = run.messages().await;
                assert!(ended + in_flight <= most, "{ended} and {in_flight} of {most} after {op:?}");
            }
            run.finish().await;
            let (ended, in_flight) = run.messages().await;
            let (todo, ..) = run.broadcast.places().await;
            assert!(in_flight == 0 && ended <= most, "{ended} of {most}");
            assert!(todo.is_empty() || ended == most, "{ended} of {most}, and {} wait", todo.len());
            fixture.assert_sound().await;
        });
    });
}
