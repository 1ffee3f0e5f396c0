//! How fast and how many: bounds that all callers share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool_redis::redis;
use shared::store::broadcast::BroadcastId;
use shared::store::broadcast::permits::{Api, Bounds, Budget, Held, Permit};
use shared::store::broadcast::records::{Draft, Move, Pause, State};
use shared::store::keys::BroadcastKeys;
use tokio::task::JoinSet;

use crate::broadcast::{Broadcast, NOW_MS, draft};
use crate::world::World;

const DAY: u64 = 20_000;
const TODAY: Budget = Budget { api: Api::Template, day: DAY };

/// How long callers go on where time matters.
const RUN: Duration = Duration::from_millis(500);
const ANY: Bounds = Bounds { app_rate: 0, broadcast_rate: 0, daily_quota: 1_000_000, broadcast_share: 1000 };

async fn running(world: &World, canary: Option<u32>) -> Broadcast<'_> {
    let broadcast = Broadcast::of(world, &Draft { canary, ..draft(true) }).await;
    broadcast.start().await;
    broadcast
}

async fn ask(broadcast: &Broadcast<'_>, wanted: usize, unused: usize, bounds: &Bounds) -> (usize, Option<Held>) {
    let Broadcast { world, id, .. } = broadcast;
    let permit = world.store.permit(&world.app, id, wanted, unused, 0, bounds, TODAY).await.unwrap();
    (permit.messages, permit.why)
}

async fn used(world: &World) -> u64 {
    let key = BroadcastKeys::new(&world.app).quota(TODAY);
    world.raw::<Option<u64>>(redis::cmd("HGET").arg(key).arg("used")).await.unwrap_or(0)
}

/// What is left of the canary.
async fn canary(broadcast: &Broadcast<'_>) -> Option<u32> {
    let key = BroadcastKeys::new(&broadcast.world.app).record(&broadcast.id);
    broadcast.world.raw(redis::cmd("HGET").arg(key).arg("canary")).await
}

/// What several callers get between them, asking for `wanted` each time and waiting as they are told; and how long it took.
async fn over_time(
    world: &Arc<World>,
    ids: &[BroadcastId],
    rate: u32,
    bounds: Bounds,
    wanted: usize,
) -> (Vec<usize>, f64) {
    let began = Instant::now();
    let mut callers = JoinSet::new();
    for number in 0..4 {
        let which = number % ids.len();
        let (world, id) = (world.clone(), ids[which].clone());
        callers.spawn(async move {
            let mut mine = 0;
            while began.elapsed() < RUN {
                let asked = world.store.permit(&world.app, &id, wanted, 0, rate, &bounds, TODAY).await.unwrap();
                let Permit { messages, why } = asked;
                mine += messages;
                match why {
                    Some(Held::Pace(wait)) => tokio::time::sleep(wait).await,
                    why => assert_eq!((why, messages), (None, wanted)),
                }
            }
            (which, mine)
        });
    }
    let mut sums = vec![0; ids.len()];
    for (which, mine) in callers.join_all().await {
        sums[which] += mine;
    }
    (sums, began.elapsed().as_secs_f64())
}

#[tokio::test(flavor = "multi_thread")]
async fn several_callers_together_stay_within_each_rate_and_use_it_up() {
    let world = Arc::new(World::new().await);
    // The least of the three holds; so does a rate whose burst is less than what is wanted at once.
    for (app_rate, broadcast_rate, rate, wanted) in
        [(400, 900, 0, 7), (900, 400, 0, 7), (900, 0, 400, 7), (0, 0, 400, 100), (400, 400, 400, 1)]
    {
        world.raw::<()>(&redis::cmd("FLUSHALL")).await;
        let ids = [running(&world, None).await.id];
        let bounds = Bounds { app_rate, broadcast_rate, ..ANY };
        let (sums, seconds) = over_time(&world, &ids, rate, bounds, wanted).await;
        let most = 400.0 * seconds + 80.0;
        assert!(sums[0] as f64 <= most, "{sums:?} in {seconds} s");
        // Leaves room for callers that sleep longer than told, on a busy machine.
        assert!(sums[0] as f64 >= 0.5 * 400.0 * RUN.as_secs_f64(), "{sums:?} in {seconds} s");
        assert_eq!(used(&world).await, sums[0] as u64);
        world.assert_sound().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn broadcasts_share_the_rate_of_the_app_and_each_has_its_own() {
    let world = Arc::new(World::new().await);
    let ids = [running(&world, None).await.id, running(&world, None).await.id];
    let bounds = Bounds { app_rate: 500, broadcast_rate: 400, ..ANY };
    let (sums, seconds) = over_time(&world, &ids, 300, bounds, 5).await;
    assert!(sums.iter().all(|sum| *sum as f64 <= 300.0 * seconds + 60.0), "{sums:?} in {seconds} s");
    assert!(sums.iter().sum::<usize>() as f64 <= 400.0 * seconds + 80.0, "{sums:?} in {seconds} s");
}

#[tokio::test]
async fn what_is_given_back_may_be_sent_by_others_and_messages_without_a_permit_take_from_the_pace() {
    let world = World::new().await;
    let broadcast = running(&world, None).await;
    // At most 20 at once.
    let slow = Bounds { app_rate: 100, ..ANY };
    world.store.count_messages(&world.app, TODAY, 5).await.unwrap();
    let (messages, why) = ask(&broadcast, 30, 0, &slow).await;
    assert!((20..25).contains(&messages), "who came before the first broadcast takes no room: {messages}");
    assert!(matches!(why, Some(Held::Pace(wait)) if wait <= Duration::from_millis(200)), "{why:?}");
    let (messages, _) = ask(&broadcast, 10, 10, &slow).await;
    assert_eq!(messages, 10, "what was given back");
    world.store.count_messages(&world.app, TODAY, 5000).await.unwrap();
    let (messages, why) = ask(&broadcast, 10, 0, &slow).await;
    assert_eq!(messages, 0);
    assert!(
        matches!(why, Some(Held::Pace(wait)) if (900..=1200).contains(&wait.as_millis())),
        "a debt of a second: {why:?}"
    );
    world.assert_sound().await;
}

#[tokio::test]
async fn a_canary_is_never_exceeded_and_exact_when_what_is_unused_is_given_back() {
    let world = Arc::new(World::new().await);
    let id = running(&world, Some(50)).await.id;
    let mut callers = JoinSet::new();
    for _ in 0..8 {
        let (world, id) = (world.clone(), id.clone());
        callers.spawn(async move {
            let (mut sent, mut unused) = (0, 0);
            loop {
                let asked = world.store.permit(&world.app, &id, 3, unused, 0, &ANY, TODAY).await.unwrap();
                if asked.messages == 0 {
                    assert_eq!(asked.why, Some(Held::Canary));
                    return sent;
                }
                // Of some users there is nothing to send to.
                unused = asked.messages / 2;
                sent += asked.messages - unused;
            }
        });
    }
    assert_eq!(callers.join_all().await.into_iter().sum::<usize>(), 50);
    let broadcast = Broadcast { everyone: true, ..Broadcast::again(&world, id) };
    assert_eq!((canary(&broadcast).await, broadcast.record().await.canary), (Some(0), Some(50)));
    assert_eq!(used(&world).await, 50);
    assert_eq!(ask(&broadcast, 3, 0, &ANY).await, (0, Some(Held::Canary)));
    assert_eq!(ask(&broadcast, 3, 2, &ANY).await, (2, Some(Held::Canary)));
    assert_eq!(ask(&broadcast, 0, 1, &ANY).await, (0, None), "giving back without wanting");
    assert_eq!(ask(&broadcast, 1, 0, &ANY).await, (1, None));
    // What comes back when it is lifted makes none anew.
    for to in [Move::Pause(Pause { reason: "CANARY".into(), ..Pause::default() }), Move::Resume { due: false }] {
        broadcast.go(&to).await;
    }
    assert_eq!(ask(&broadcast, 60, 1, &ANY).await, (60, None));
    assert_eq!((canary(&broadcast).await, broadcast.record().await.canary), (None, None));
}

#[tokio::test]
async fn the_part_of_the_quota_that_broadcasts_may_use_is_used_up_and_not_more() {
    let world = World::new().await;
    let broadcast = running(&world, None).await;
    let bounds = Bounds { daily_quota: 1000, broadcast_share: 250, ..ANY };
    assert_eq!(ask(&broadcast, 100, 0, &bounds).await, (100, None));
    world.store.count_messages(&world.app, TODAY, 60).await.unwrap();
    assert_eq!(ask(&broadcast, 100, 0, &bounds).await, (90, Some(Held::Quota)), "single messages go first");
    assert_eq!(ask(&broadcast, 1, 0, &bounds).await, (0, Some(Held::Quota)));
    assert_eq!(ask(&broadcast, 9, 4, &bounds).await, (4, Some(Held::Quota)));
    world.store.count_messages(&world.app, TODAY, 600).await.unwrap();
    assert_eq!((ask(&broadcast, 1, 0, &bounds).await, used(&world).await), ((0, Some(Held::Quota)), 850));
    // What WeChat tells counts, in both directions.
    world.store.set_quota(&world.app, TODAY, 8000, 1995).await.unwrap();
    assert_eq!(ask(&broadcast, 100, 0, &bounds).await, (5, Some(Held::Quota)));
    world.store.set_quota(&world.app, TODAY, 4, 0).await.unwrap();
    assert_eq!(ask(&broadcast, 100, 0, &bounds).await, (1, Some(Held::Quota)));
    let of =
        async |budget, bounds| world.store.permit(&world.app, &broadcast.id, 5, 0, 0, bounds, budget).await.unwrap();
    let on = async |day, bounds| of(Budget { day, ..TODAY }, bounds).await;
    assert_eq!(on(DAY + 1, &bounds).await, Permit { messages: 1, why: Some(Held::Quota) }, "the limit lasts");
    let other = Budget { api: Api::Subscribe, ..TODAY };
    assert_eq!(of(other, &bounds).await, Permit { messages: 5, why: None }, "another API has a quota of its own");
    // A day of which nothing was told. A thousandth of less than a thousand is nothing.
    let least = Bounds { daily_quota: 999, broadcast_share: 1, ..ANY };
    assert_eq!(on(DAY + 2, &least).await, Permit { messages: 0, why: Some(Held::Quota) });
    assert_eq!(on(DAY + 2, &bounds).await, Permit { messages: 5, why: None });
    world.assert_sound().await;
}

#[tokio::test]
async fn nothing_is_permitted_unless_the_broadcast_runs_and_what_is_given_back_then_is_not_lost() {
    let world = World::new().await;
    let broadcast = Broadcast::of(&world, &Draft { canary: Some(10), ..draft(true) }).await;
    let held = async |unused| ask(&broadcast, 5, unused, &ANY).await;
    assert_eq!(held(0).await, (0, Some(Held::State(Some(State::Pending)))));
    broadcast.start().await;
    assert_eq!(held(0).await, (5, None));
    for (to, state) in [(Move::Pause(Pause::default()), State::Paused), (Move::Cancel, State::Cancelled)] {
        broadcast.go(&to).await;
        assert_eq!(held(1).await, (0, Some(Held::State(Some(state)))));
    }
    assert_eq!((canary(&broadcast).await, used(&world).await), (Some(7), 3));
    let gone = Broadcast { everyone: true, ..Broadcast::again(&world, BroadcastId::new(NOW_MS)) };
    assert_eq!(ask(&gone, 5, 1, &Bounds { app_rate: 10, ..ANY }).await, (0, Some(Held::State(None))));
    assert_eq!(world.store.broadcast(&world.app, &gone.id).await.unwrap(), None);
    world.assert_sound().await;
}

#[tokio::test]
async fn one_of_many_replicas_asks_wechat_for_the_quota_and_after_a_while_another() {
    let world = World::new().await;
    let may = async || world.store.may_ask_quota(&world.app, Api::Template, Duration::from_millis(50)).await.unwrap();
    assert!(may().await && !may().await);
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert!(may().await);
}
