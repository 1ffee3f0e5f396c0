//! Permits: rates and quotas that all replicas share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use deadpool_redis::redis;
use store::broadcast::BroadcastId;
use store::broadcast::permits::{Api, Bounds, Budget, Held, Permit, Permits};
use store::broadcast::records::{Draft, Move, Pause, State};
use store::keys::{BroadcastKeys, Bucket};
use tokio::task::JoinSet;

use crate::broadcast::{Broadcast, NOW_MS, draft};
use crate::fixture::Fixture;

const DAY: u64 = 20_000;
const TODAY: Budget = Budget { api: Api::Template, day: DAY };

/// How many messages all callers get together in tests of rates: several times the burst.
const MESSAGES: usize = 200;
const ANY: Bounds = Bounds { app_rate: 0, broadcast_rate: 0, daily_quota: 1_000_000, broadcast_share: 1000 };

async fn running(fixture: &Fixture, canary: Option<u32>) -> Broadcast<'_> {
    let broadcast = Broadcast::of(fixture, &Draft { canary, ..draft(true) }).await;
    broadcast.start().await;
    broadcast
}

/// A bucket from the view of a caller, who reports what happened to its permits.
struct Part<'a> {
    broadcast: &'a Broadcast<'a>,
    bucket: Bucket,
    permits: Permits,
}

impl<'a> Part<'a> {
    fn new(broadcast: &'a Broadcast<'a>, bucket: u16) -> Self {
        Self { broadcast, bucket: Bucket(bucket), permits: Permits::default() }
    }

    /// Asks for permits. Returns how many it gets now, and why not more.
    async fn ask(&mut self, wanted: usize, bounds: &Bounds) -> (u64, Option<Held>) {
        self.ask_of(wanted, bounds, TODAY).await
    }

    async fn ask_of(&mut self, wanted: usize, bounds: &Bounds, budget: Budget) -> (u64, Option<Held>) {
        let part = self.broadcast.part(self.bucket);
        let permit = part.permit(&self.permits, wanted, 0, bounds, budget).await;
        let (permit, before) = (permit.unwrap(), self.permits.received);
        self.permits.received = permit.granted;
        (permit.granted - before, permit.why)
    }

    /// Reports that so many permits were used and their messages have ended.
    fn end(&mut self, messages: u64) {
        self.permits.ended += messages;
    }

    /// Returns so many unused permits.
    fn give_back(&mut self, permits: u64) {
        self.permits.returned += permits;
    }
}

const QUOTA: Option<Held> = Some(Held::Quota { unsure: false });
const UNSURE: Option<Held> = Some(Held::Quota { unsure: true });

fn open(canary: bool, permits: u64) -> Option<Held> {
    Some(Held::Open { canary, permits })
}

async fn used(fixture: &Fixture) -> u64 {
    let key = BroadcastKeys::new(&fixture.app).quota(TODAY);
    fixture.raw::<Option<u64>>(redis::cmd("HGET").arg(key).arg("used")).await.unwrap_or(0)
}

/// Stores the quota as if WeChat was asked and answered immediately.
async fn tell(fixture: &Fixture, limit: u64, used: u64) {
    let ended = fixture.store.ended_messages(&fixture.app, TODAY).await.unwrap();
    fixture.store.set_quota(&fixture.app, TODAY, limit, used, ended).await.unwrap();
}

/// How many messages of the canary are left; `None` if it was lifted.
async fn canary(broadcast: &Broadcast<'_>) -> Option<u32> {
    let key = BroadcastKeys::new(&broadcast.fixture.app).record(&broadcast.id);
    broadcast.fixture.raw(redis::cmd("HGET").arg(key).arg("canary")).await
}

/// Several callers ask for `wanted` permits each time, and wait as the replies say, until they have [`MESSAGES`]
/// together. Returns how many permits each broadcast got, and how many seconds it took.
async fn over_time(
    fixture: &Arc<Fixture>,
    ids: &[BroadcastId],
    rate: u32,
    bounds: Bounds,
    wanted: usize,
) -> (Vec<u64>, f64) {
    let (began, all) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
    let mut callers = JoinSet::new();
    for number in 0..4 {
        let which = number % ids.len();
        let (fixture, id, bucket, all) = (fixture.clone(), ids[which].clone(), Bucket(number as u16), all.clone());
        callers.spawn(async move {
            let (mut permits, part) = (Permits::default(), fixture.store.part(&fixture.app, &id, bucket));
            while all.load(Ordering::Relaxed) < MESSAGES {
                let asked = part.permit(&permits, wanted, rate, &bounds, TODAY).await;
                let Permit { granted, why } = asked.unwrap();
                all.fetch_add((granted - permits.received) as usize, Ordering::Relaxed);
                match why {
                    Some(Held::Pace(wait)) => tokio::time::sleep(wait).await,
                    why => assert_eq!((why, granted - permits.received), (None, wanted as u64)),
                }
                (permits.received, permits.ended) = (granted, granted);
            }
            (which, permits.received)
        });
    }
    let mut sums = vec![0; ids.len()];
    for (which, mine) in callers.join_all().await {
        sums[which] += mine;
    }
    (sums, began.elapsed().as_secs_f64())
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_stay_within_each_rate_and_get_more_after_waiting() {
    let fixture = Arc::new(Fixture::new().await);
    // The lowest of the three rates applies, also if its burst is smaller than the number of permits requested
    // together.
    for (app_rate, broadcast_rate, rate, wanted) in
        [(400, 900, 0, 7), (900, 400, 0, 7), (900, 0, 400, 7), (0, 0, 400, 100), (400, 400, 400, 1)]
    {
        fixture.raw::<()>(&redis::cmd("FLUSHALL")).await;
        let ids = [running(&fixture, None).await.id];
        let bounds = Bounds { app_rate, broadcast_rate, ..ANY };
        let (sums, seconds) = over_time(&fixture, &ids, rate, bounds, wanted).await;
        let most = 400.0 * seconds + 80.0;
        assert!(sums[0] as f64 <= most, "{sums:?} in {seconds} s");
        assert_eq!(used(&fixture).await, sums[0]);
        fixture.assert_sound().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn broadcasts_share_the_app_rate_and_each_has_its_own() {
    let fixture = Arc::new(Fixture::new().await);
    let ids = [running(&fixture, None).await.id, running(&fixture, None).await.id];
    let bounds = Bounds { app_rate: 500, broadcast_rate: 400, ..ANY };
    let (sums, seconds) = over_time(&fixture, &ids, 300, bounds, 5).await;
    assert!(sums.iter().all(|sum| *sum as f64 <= 300.0 * seconds + 60.0), "{sums:?} in {seconds} s");
    assert!(sums.iter().sum::<u64>() as f64 <= 400.0 * seconds + 80.0, "{sums:?} in {seconds} s");
}

#[tokio::test]
async fn returned_permits_are_reused_and_single_messages_use_the_rate() {
    let fixture = Fixture::new().await;
    let broadcast = running(&fixture, None).await;
    let (mut one, mut other) = (Part::new(&broadcast, 0), Part::new(&broadcast, 1));
    // The burst is 20.
    let slow = Bounds { app_rate: 100, ..ANY };
    fixture.store.count_messages(&fixture.app, TODAY, 5).await.unwrap();
    let (messages, why) = one.ask(30, &slow).await;
    assert!((20..25).contains(&messages), "messages before the first broadcast do not use the rate: {messages}");
    assert!(matches!(why, Some(Held::Pace(wait)) if wait <= Duration::from_millis(200)), "{why:?}");
    one.give_back(10);
    one.ask(0, &slow).await;
    let (messages, _) = other.ask(10, &slow).await;
    assert_eq!(messages, 10, "the permits that were returned");
    let counted = Instant::now();
    fixture.store.count_messages(&fixture.app, TODAY, 5000).await.unwrap();
    let (messages, why) = other.ask(10, &slow).await;
    assert_eq!(messages, 0);
    // A debt of one second, a part of which may have passed.
    let waited = counted.elapsed();
    let debt = Duration::from_millis(900).saturating_sub(waited)..=Duration::from_millis(1200);
    assert!(matches!(why, Some(Held::Pace(wait)) if debt.contains(&wait)), "{why:?} after {waited:?}");
    fixture.assert_sound().await;
}

#[tokio::test]
async fn canary_is_reached_when_its_messages_end_and_not_exceeded() {
    let fixture = Arc::new(Fixture::new().await);
    let id = running(&fixture, Some(50)).await.id;
    let mut callers = JoinSet::new();
    for bucket in 0..8 {
        let (fixture, id) = (fixture.clone(), id.clone());
        callers.spawn(async move {
            let broadcast = Broadcast::again(&fixture, id);
            let mut part = Part::new(&broadcast, bucket);
            loop {
                let (messages, why) = part.ask(3, &ANY).await;
                match why {
                    Some(Held::Canary) if messages == 0 => return part.permits.ended,
                    Some(Held::Open { canary, .. }) => assert!(canary && messages == 0),
                    why => assert!(messages > 0, "{why:?}"),
                }
                // Some users have no credential.
                part.give_back(messages / 2);
                part.end(messages - messages / 2);
            }
        });
    }
    assert_eq!(callers.join_all().await.into_iter().sum::<u64>(), 50);
    let broadcast = Broadcast { everyone: true, ..Broadcast::again(&fixture, id) };
    assert_eq!((canary(&broadcast).await, broadcast.record().await.canary), (Some(0), Some(50)));
    assert_eq!(used(&fixture).await, 50);
    // Permits that are returned after the canary was lifted do not restore it.
    for to in [Move::Pause(Pause { reason: "CANARY".into(), ..Pause::default() }), Move::Resume { due: false }] {
        broadcast.go(&to).await;
    }
    let mut part = Part::new(&broadcast, 9);
    assert_eq!(part.ask(60, &ANY).await, (60, None));
    part.give_back(1);
    assert_eq!(part.ask(0, &ANY).await, (0, None));
    assert_eq!((canary(&broadcast).await, broadcast.record().await.canary), (None, None));
    assert_eq!(used(&fixture).await, 109);
}

#[tokio::test]
async fn broadcasts_use_their_share_of_the_quota_and_not_more() {
    let fixture = Fixture::new().await;
    let broadcast = running(&fixture, None).await;
    let mut part = Part::new(&broadcast, 0);
    let bounds = Bounds { daily_quota: 1000, broadcast_share: 250, ..ANY };
    assert_eq!(part.ask(100, &bounds).await, (100, None));
    fixture.store.count_messages(&fixture.app, TODAY, 60).await.unwrap();
    assert_eq!(part.ask(100, &bounds).await, (90, QUOTA), "single messages have priority");
    assert_eq!(part.ask(1, &bounds).await, (0, open(false, 190)));
    part.give_back(4);
    assert_eq!(part.ask(9, &bounds).await, (4, QUOTA));
    part.end(189);
    assert_eq!(part.ask(1, &bounds).await, (0, open(false, 1)));
    part.end(1);
    assert_eq!(part.ask(1, &bounds).await, (0, QUOTA));
    fixture.store.count_messages(&fixture.app, TODAY, 600).await.unwrap();
    assert_eq!((part.ask(1, &bounds).await, used(&fixture).await), ((0, QUOTA), 850));
    // The quota that WeChat reports applies, whether it is higher or lower.
    tell(&fixture, 8000, 1995).await;
    assert_eq!(part.ask(100, &bounds).await, (5, QUOTA));
    part.end(5);
    tell(&fixture, 4, 0).await;
    assert_eq!(part.ask(100, &bounds).await, (0, UNSURE), "five messages may have been in flight");
    tell(&fixture, 4, 0).await;
    assert_eq!(part.ask(100, &bounds).await, (1, QUOTA));
    part.end(1);
    let on = async |part: &mut Part<'_>, day, bounds| part.ask_of(5, bounds, Budget { day, ..TODAY }).await;
    assert_eq!(on(&mut part, DAY + 1, &bounds).await, (1, QUOTA), "the limit applies on the next day too");
    let other = Budget { api: Api::Subscribe, ..TODAY };
    let mut part = Part::new(&broadcast, 1);
    assert_eq!(part.ask_of(5, &bounds, other).await, (5, None), "another API has a quota of its own");
    // A day without a report from WeChat. A thousandth of less than 1000 is 0.
    let least = Bounds { daily_quota: 999, broadcast_share: 1, ..ANY };
    let mut part = Part::new(&broadcast, 2);
    assert_eq!(on(&mut part, DAY + 2, &least).await, (0, QUOTA));
    assert_eq!(on(&mut part, DAY + 2, &bounds).await, (5, None));
    fixture.assert_sound().await;
}

#[tokio::test]
async fn quota_report_reserves_messages_in_flight_and_is_repeated() {
    let fixture = Fixture::new().await;
    let broadcast = running(&fixture, None).await;
    let mut part = Part::new(&broadcast, 0);
    let bounds = Bounds { daily_quota: 1_000_000, ..ANY };
    assert_eq!(part.ask(40, &bounds).await, (40, None));
    part.end(10);
    part.ask(0, &bounds).await;
    // Ten were delivered. The outcome of thirty is not known yet.
    tell(&fixture, 100, 10).await;
    assert_eq!(used(&fixture).await, 40);
    part.end(30);
    assert_eq!(part.ask(100, &bounds).await, (60, UNSURE), "never more than the limit");
    part.end(60);
    // The report includes messages that still count as in flight.
    tell(&fixture, 100, 70).await;
    assert_eq!(part.ask(100, &bounds).await, (0, UNSURE));
    tell(&fixture, 100, 100).await;
    assert_eq!(part.ask(100, &bounds).await, (0, QUOTA));
    // Messages that end while WeChat is asked may be missing in its report.
    let ended = fixture.store.ended_messages(&fixture.app, TODAY).await.unwrap();
    tell(&fixture, 200, 100).await;
    assert_eq!(part.ask(10, &bounds).await, (10, None));
    part.end(10);
    part.ask(0, &bounds).await;
    fixture.store.count_messages(&fixture.app, TODAY, 3).await.unwrap();
    fixture.store.set_quota(&fixture.app, TODAY, 200, 100, ended).await.unwrap();
    assert_eq!(used(&fixture).await, 113);
    assert_eq!(part.ask(100, &bounds).await, (87, UNSURE));
    fixture.assert_sound().await;
}

#[tokio::test]
async fn repeated_or_late_calls_grant_nothing_and_find_lost_permits() {
    let fixture = Fixture::new().await;
    let broadcast = running(&fixture, Some(30)).await;
    let (mut part, mut late) = (Part::new(&broadcast, 0), Part::new(&broadcast, 0));
    let bounds = Bounds { daily_quota: 30, ..ANY };
    for _ in 0..3 {
        assert_eq!(late.ask(20, &bounds).await, (20, None), "its reply was lost");
        late.permits = Permits::default();
    }
    assert_eq!((used(&fixture).await, canary(&broadcast).await), (20, Some(10)));
    // A replica that continues for a dead one gets the permits of that one, and asks for more in addition.
    assert_eq!(part.ask(25, &bounds).await, (25, None));
    part.give_back(5);
    part.end(15);
    for _ in 0..2 {
        assert_eq!(part.ask(0, &bounds).await, (0, None));
        assert_eq!((used(&fixture).await, canary(&broadcast).await), (20, Some(10)));
    }
    // Outdated numbers change nothing.
    late.permits = Permits { received: 20, ended: 3, ..Permits::default() };
    assert_eq!(late.ask(0, &bounds).await, (5, None));
    assert_eq!((used(&fixture).await, canary(&broadcast).await), (20, Some(10)));
    assert_eq!(part.ask(20, &bounds).await, (10, Some(Held::Canary)));
    assert_eq!(part.ask(1, &bounds).await, (0, open(true, 15)), "five of the first and these ten");
    fixture.assert_sound().await;
}

#[tokio::test]
async fn permits_open_at_midnight_count_next_day_and_in_canary_once() {
    let fixture = Fixture::new().await;
    let broadcast = running(&fixture, Some(30)).await;
    let mut part = Part::new(&broadcast, 0);
    let bounds = Bounds { daily_quota: 20, ..ANY };
    assert_eq!(part.ask(20, &bounds).await, (20, None));
    part.end(12);
    part.give_back(3);
    let tomorrow = Budget { day: DAY + 1, ..TODAY };
    // Five permits are open and may be used on the next day.
    assert_eq!(part.ask_of(100, &bounds, tomorrow).await, (13, Some(Held::Canary)));
    assert_eq!((used(&fixture).await, canary(&broadcast).await), (20, Some(0)));
    let (_, used) = fixture.store.quota(&fixture.app, tomorrow).await.unwrap();
    assert_eq!(used, 5 + 13);
    part.end(18);
    assert_eq!(part.ask_of(1, &bounds, tomorrow).await, (0, Some(Held::Canary)));
    fixture.assert_sound().await;
}

#[tokio::test]
async fn permits_with_lost_or_expired_counts_are_not_granted_again() {
    let fixture = Fixture::new().await;
    let broadcast = running(&fixture, Some(30)).await;
    let mut part = Part::new(&broadcast, 0);
    let bounds = Bounds { daily_quota: 20, ..ANY };
    assert_eq!(part.ask(20, &bounds).await, (20, None));
    part.end(12);
    part.ask(0, &bounds).await;
    // As after a pause of two days, in which the counts expire.
    fixture.raw::<()>(redis::cmd("DEL").arg(BroadcastKeys::new(&fixture.app).permits(&broadcast.id))).await;
    let tomorrow = Budget { day: DAY + 2, ..TODAY };
    assert_eq!(part.ask_of(100, &bounds, tomorrow).await, (10, Some(Held::Canary)));
    assert_eq!(fixture.store.quota(&fixture.app, tomorrow).await.unwrap().1, 8 + 10);
    // A new Redis master has lost the last grant.
    part.permits.received += 5;
    assert_eq!(part.ask_of(1, &bounds, tomorrow).await, (0, open(true, 23)));
    assert_eq!(fixture.store.quota(&fixture.app, tomorrow).await.unwrap().1, 8 + 15);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn only_running_broadcasts_get_permits_but_all_may_return_them() {
    let fixture = Fixture::new().await;
    let broadcast = Broadcast::of(&fixture, &Draft { canary: Some(10), ..draft(true) }).await;
    let mut part = Part::new(&broadcast, 0);
    assert_eq!(part.ask(5, &ANY).await, (0, Some(Held::State(Some(State::Pending)))));
    broadcast.start().await;
    assert_eq!(part.ask(5, &ANY).await, (5, None));
    for (to, state) in [(Move::Pause(Pause::default()), State::Paused), (Move::Cancel, State::Cancelled)] {
        broadcast.go(&to).await;
        part.give_back(1);
        assert_eq!(part.ask(5, &ANY).await, (0, Some(Held::State(Some(state)))));
    }
    assert_eq!((canary(&broadcast).await, used(&fixture).await), (Some(7), 3));
    let gone = Broadcast { everyone: true, ..Broadcast::again(&fixture, BroadcastId::new(NOW_MS)) };
    let mut part = Part::new(&gone, 0);
    assert_eq!(part.ask(5, &Bounds { app_rate: 10, ..ANY }).await, (0, Some(Held::State(None))));
    assert_eq!(fixture.store.broadcast(&fixture.app, &gone.id).await.unwrap(), None);
    fixture.assert_sound().await;
}

#[tokio::test]
async fn one_replica_at_a_time_asks_wechat_for_the_quota() {
    let fixture = Fixture::new().await;
    let may =
        async || fixture.store.may_ask_quota(&fixture.app, Api::Template, Duration::from_secs(1800)).await.unwrap();
    assert!(may().await && !may().await);
    fixture.advance(1).await;
    assert!(may().await);
}
