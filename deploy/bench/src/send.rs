//! SendTemplate with 64 calls in flight, compared with a bare handler that makes only the same HTTP call.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use server::proto::dispatcher_service_client::DispatcherServiceClient;
use server::proto::{Delivery, Outcome, SendTemplateRequest, TemplateValue};
use testing::free_port;
use tonic::transport::Channel;

use crate::setup::{
    self, APP, CONNECTIONS, accept, channels, fill, granted, openid, packed, program, redis, sandbox, start, submit,
};
use crate::table::{Bar, Table};

/// Number of sends of a measurement. A tenth as many are made before, to warm up.
const SENDS: usize = 30_000;
/// The template of all messages.
const TEMPLATE: &str = "template-of-the-benchmark";
/// Number of calls in flight.
const IN_FLIGHT: usize = 64;

/// The figures of a measurement.
struct Figures {
    rate: f64,
    p99: Duration,
}

/// The `request_id` of the calls of a measurement.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Requests {
    /// Nothing: the calls cannot be repeated.
    None,
    /// A request id of its own for each call, which can be repeated.
    Own,
    /// The form id, for the bare handler.
    FormId,
}

/// Measures all of them alternately.
pub async fn measure(rounds: usize, table: &mut Table) {
    let (mut rates, mut tails, mut repeatable, mut even) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut subscribed = Vec::new();
    for _ in 0..rounds {
        let mut plain = program("bench");
        plain.arg("bare");
        let bare = bare(plain, Delivery::FormId).await;
        let same_allocator = self::bare(program("bare-same-allocator"), Delivery::FormId).await;
        let formid = dispatcher(Requests::None, Delivery::FormId).await;
        let requests = dispatcher(Requests::Own, Delivery::FormId).await;
        let mut plain = program("bench");
        plain.arg("bare");
        let bare_subscribed = self::bare(plain, Delivery::Subscription).await;
        let grants = dispatcher(Requests::None, Delivery::Subscription).await;
        subscribed.push((grants.rate, bare_subscribed.rate));
        rates.push((formid.rate, bare.rate));
        tails.push((formid.p99.as_micros() as f64, bare.p99.as_micros() as f64));
        repeatable.push((requests.rate, bare.rate));
        even.push((formid.rate, same_allocator.rate));
    }
    table.pairs("SendTemplate / bare handler with the same HTTP call", "/s", &rates, Bar::AtLeast(0.6));
    table.pairs("SendTemplate p99 / bare handler's p99", "us", &tails, Bar::AtMost(2.0));
    table.pairs("SendTemplate with request ids / bare handler", "/s", &repeatable, Bar::None);
    table.pairs("SendTemplate / bare handler with mimalloc too", "/s", &even, Bar::None);
    table.pairs("SendTemplate of subscriptions / bare handler of the same", "/s", &subscribed, Bar::None);
}

/// Measures a bare handler, started by `command`.
async fn bare(mut command: std::process::Command, delivery: Delivery) -> Figures {
    let (_sandbox, base_url) = sandbox().await;
    let ids = hand_out(&base_url, delivery).await;
    let port = free_port();
    command.args([&format!("127.0.0.1:{port}"), &base_url]);
    let _bare = start(command);
    drive(channels(port, CONNECTIONS).await, &ids, Requests::FormId, delivery).await
}

async fn dispatcher(requests: Requests, delivery: Delivery) -> Figures {
    let (_sandbox, base_url) = sandbox().await;
    let redis = redis();
    let ids = hand_out(&base_url, delivery).await;
    // Stores what the collector would have stored.
    let stored = ids.iter().enumerate().map(|(user, id)| match delivery {
        Delivery::Subscription => granted(user, TEMPLATE),
        _ => packed(user, id),
    });
    fill(&redis, stored).await;
    let (_dispatcher, channels, _apps) = setup::dispatcher(&redis, &base_url, &[]).await;
    drive(channels, &ids, requests, delivery).await
}

/// Gives each user one credential in the sandbox. Returns the credentials' ids.
async fn hand_out(base_url: &str, delivery: Delivery) -> Vec<String> {
    let count = SENDS + SENDS / 10;
    match delivery {
        Delivery::Subscription => {
            accept(base_url, TEMPLATE, count).await;
            // A grant has no id: WeChat finds it by user and template.
            vec![TEMPLATE.into(); count]
        }
        _ => submit(base_url, count).await,
    }
}

/// Sends one message with each credential, with 64 in flight.
async fn drive(channels: Vec<Channel>, ids: &[String], requests: Requests, delivery: Delivery) -> Figures {
    let warm_up = SENDS / 10;
    let orders = ids.iter().enumerate().map(|(user, id)| order(user, id, requests, delivery));
    let orders: Arc<Vec<_>> = Arc::new(orders.collect());
    run(&channels, &orders, 0..warm_up).await;
    let begun = Instant::now();
    let mut latencies = run(&channels, &orders, warm_up..orders.len()).await;
    let rate = latencies.len() as f64 / begun.elapsed().as_secs_f64();
    latencies.sort_unstable();
    Figures { rate, p99: latencies[latencies.len() * 99 / 100] }
}

async fn run(
    channels: &[Channel],
    orders: &Arc<Vec<SendTemplateRequest>>,
    range: std::ops::Range<usize>,
) -> Vec<Duration> {
    let next = Arc::new(AtomicUsize::new(range.start));
    let mut callers = Vec::new();
    for caller in 0..IN_FLIGHT {
        let mut client = DispatcherServiceClient::new(channels[caller % channels.len()].clone());
        let (orders, next, end) = (Arc::clone(orders), Arc::clone(&next), range.end);
        callers.push(tokio::spawn(async move {
            let mut latencies = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= end {
                    return latencies;
                }
                let begun = Instant::now();
                let mut answer = client.send_template(orders[number].clone()).await;
                // Allowed only in the warm-up: the service waits for Redis for a moment after its start.
                while answer.as_ref().is_err_and(|status| status.code() == tonic::Code::Unavailable)
                    && number < SENDS / 10
                {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    answer = client.send_template(orders[number].clone()).await;
                }
                assert_eq!(answer.unwrap().into_inner().outcome(), Outcome::Delivered);
                latencies.push(begun.elapsed());
            }
        }));
    }
    let mut latencies = Vec::new();
    for caller in callers {
        latencies.extend(caller.await.unwrap());
    }
    latencies
}

/// The request of one message.
fn order(user: usize, id: &str, requests: Requests, delivery: Delivery) -> SendTemplateRequest {
    let value = |text: String| TemplateValue { value: text, color: String::new() };
    // In a subscription message, the key's name gives the kind of the value.
    let keys = if delivery == Delivery::Subscription { ["thing1", "time2"] } else { ["keyword1", "keyword2"] };
    SendTemplateRequest {
        app_id: APP.into(),
        openid: openid(user),
        template_id: TEMPLATE.into(),
        delivery: delivery.into(),
        data: HashMap::from([
            (keys[0].into(), value(format!("order {user}"))),
            (keys[1].into(), value("2026-11-22 12:00".into())),
        ]),
        page: "pages/order?id=1".into(),
        request_id: match requests {
            Requests::None => String::new(),
            // Any id works. This one is as long as a UUID without dashes.
            Requests::Own => format!("{user:032x}"),
            Requests::FormId => id.into(),
        },
        ..Default::default()
    }
}
