//! The dispatcher's metrics: sends, calls to WeChat, stops, the daily quota, and broadcasts. There is one struct per
//! topic, created per app, so that each part of the program gets only its own.

use domain::AppId;
use server::proto::dispatcher_service_server::SERVICE_NAME;
use server::telemetry::metrics::registry::WECHAT_SECONDS;
use server::telemetry::metrics::{
    Error, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, ServiceMetrics,
};
use server::telemetry::outage::{Operation, Outage, Outages};
use store::stops::StopScope;

use crate::broadcast::reason::{self, Ending, PauseReason};
use crate::outages::{Loops, WechatOutages};
use crate::wechat::errcode;
use crate::wechat::message::Delivery;

/// Label value for everything outside a closed set.
const OTHER: &str = "other";

/// Label value of the most common outcome.
const DELIVERED: &str = "delivered";

pub struct Metrics {
    pub service: ServiceMetrics,
    loops: Loops,
    sends: IntCounterVec,
    attempts: IntCounterVec,
    wechat: HistogramVec,
    fetches: IntCounterVec,
    stopped: IntGaugeVec,
    quota_limit: IntGaugeVec,
    quota_used: IntGaugeVec,
    messages: IntCounterVec,
    running: IntGaugeVec,
    paused: IntGaugeVec,
    audience: IntGaugeVec,
    left: IntGaugeVec,
}

#[derive(Clone)]
pub struct AppMetrics {
    pub sends: SendMetrics,
    pub wechat: WechatMetrics,
    pub stops: StopMetrics,
    pub quota: QuotaMetrics,
    pub broadcasts: BroadcastMetrics,
    /// Paused broadcasts, and the progress of all that have not ended.
    pub pauses: PauseMetrics,
    /// Repeated operations that concern all apps.
    pub loops: Loops,
}

impl Metrics {
    pub fn new() -> Result<Self, Error> {
        let service = ServiceMetrics::new(SERVICE_NAME, store::commands())?;
        let registry = &service.registry;
        let counters = |name, help, labels| registry.counters(name, help, labels);
        let gauges = |name, help| registry.gauges(name, help, &["app"]);
        Ok(Self {
            sends: counters(
                "formid_sends_total",
                "Messages of SendTemplate by outcome, without those answered from the record of an earlier call",
                &["app", "delivery", "outcome", "errcode"],
            )?,
            attempts: counters(
                "formid_send_attempts_total",
                "Calls to WeChat for messages of SendTemplate",
                &["app", "delivery"],
            )?,
            wechat: registry.histograms(
                "formid_wechat_seconds",
                "Duration of calls to WeChat in seconds, failed calls included",
                &["app", "endpoint"],
                WECHAT_SECONDS,
            )?,
            fetches: counters(
                "formid_token_fetches_total",
                "Calls to WeChat for an access token: ok, refused (an operator has to act), or failed (temporary)",
                &["app", "result"],
            )?,
            stopped: registry.gauges(
                "formid_app_stopped",
                "1 while nothing is sent for an app, or with a kind of its credentials, because WeChat stopped it; else 0",
                &["app", "source"],
            )?,
            quota_limit: registry.gauges(
                "formid_quota_limit",
                "Messages that the app may send today, as far as known, by message generation",
                &["app", "delivery"],
            )?,
            quota_used: registry.gauges(
                "formid_quota_used",
                "Messages that the app has sent today, over all replicas, by message generation",
                &["app", "delivery"],
            )?,
            messages: counters(
                "formid_broadcast_messages_total",
                "Messages of broadcasts that this replica settled, by how they ended",
                &["app", "ending"],
            )?,
            running: gauges("formid_broadcasts_running", "Running broadcasts, over all replicas")?,
            paused: registry.gauges(
                "formid_broadcasts_paused",
                "Paused broadcasts, over all replicas, by reason",
                &["app", "reason"],
            )?,
            audience: gauges(
                "formid_broadcast_audience_users",
                "Users in the audiences of the running and paused broadcasts, over all replicas",
            )?,
            left: gauges(
                "formid_broadcast_left_users",
                "Users of the running and paused broadcasts whose message has not ended, over all replicas",
            )?,
            loops: Loops::new(&service.outages),
            service,
        })
    }

    pub fn app(&self, app: &AppId) -> AppMetrics {
        let (id, app, outages) = (app, app.as_str(), &self.service.outages);
        let deliveries = Delivery::ALL.map(Delivery::name);
        let quota =
            |_| outages.outage_of(id, "quota", "WeChat does not tell the quota", "WeChat tells the quota again");
        let seconds = |endpoint| self.wechat.with_label_values(&[app, endpoint]);
        let fetched = |result| self.fetches.with_label_values(&[app, result]);
        AppMetrics {
            sends: SendMetrics {
                app: id.clone(),
                sends: self.sends.clone(),
                delivered: deliveries.map(|name| self.sends.with_label_values(&[app, name, DELIVERED, "0"])),
                attempts: deliveries.map(|name| self.attempts.with_label_values(&[app, name])),
            },
            wechat: WechatMetrics {
                sends: ["template_send", "subscribe_send"].map(seconds),
                quota: seconds("quota"),
                token: seconds("token"),
                tokens_fetched: fetched("ok"),
                tokens_refused: fetched("refused"),
                tokens_failed: fetched("failed"),
                outages: WechatOutages::new(id, outages),
            },
            stops: StopMetrics {
                stopped: StopScope::ALL.map(|(source, name)| (source, self.stopped.with_label_values(&[app, name]))),
                sharing: self.loops.stop_shares.clone(),
            },
            quota: QuotaMetrics { app: id.clone(), limit: self.quota_limit.clone(), used: self.quota_used.clone() },
            broadcasts: BroadcastMetrics {
                endings: Ending::ALL
                    .map(|(_, name)| self.messages.with_label_values(&[app, &name.to_ascii_lowercase()])),
                other: self.messages.with_label_values(&[app, OTHER]),
                running: self.running.with_label_values(&[app]),
                quotas: Delivery::ALL.map(quota),
                outages: outages.clone(),
            },
            pauses: PauseMetrics {
                app: id.clone(),
                paused: self.paused.clone(),
                audience: self.audience.clone(),
                left: self.left.clone(),
            },
            loops: self.loops.clone(),
        }
    }
}

#[derive(Clone)]
pub struct SendMetrics {
    app: AppId,
    sends: IntCounterVec,
    /// Counter of the most common outcome, by delivery. Kept here to avoid a lookup by label.
    delivered: [IntCounter; 2],
    attempts: [IntCounter; 2],
}

impl SendMetrics {
    /// Counts the calls to WeChat for a message.
    pub fn attempted(&self, delivery: Delivery, attempts: u32) {
        self.attempts[delivery as usize].inc_by(attempts.into());
    }

    /// Counts a message by its outcome, or by the reason of its error.
    pub fn ended(&self, delivery: Delivery, outcome: &str, errcode: Option<i32>) {
        if (outcome, errcode) == (DELIVERED, Some(0)) {
            return self.delivered[delivery as usize].inc();
        }
        let labels = [self.app.as_str(), delivery.name(), &outcome.to_ascii_lowercase(), &label_of(errcode)];
        self.sends.with_label_values(&labels).inc();
    }
}

/// The codes of the table are few. WeChat, or a gateway in its place, may answer with any other number.
fn label_of(errcode: Option<i32>) -> String {
    match errcode {
        None => String::new(),
        Some(errcode) if errcode::is_known(errcode) => errcode.to_string(),
        Some(_) => OTHER.to_owned(),
    }
}

/// Calls to WeChat: how long they took, and the results of those for an access token.
#[derive(Debug, Clone)]
pub struct WechatMetrics {
    /// By delivery.
    pub sends: [Histogram; 2],
    pub quota: Histogram,
    pub token: Histogram,
    pub tokens_fetched: IntCounter,
    pub tokens_refused: IntCounter,
    pub tokens_failed: IntCounter,
    pub outages: WechatOutages,
}

#[derive(Debug, Clone)]
pub struct StopMetrics {
    stopped: [(StopScope, IntGauge); StopScope::ALL.len()],
    pub sharing: Outage,
}

impl StopMetrics {
    pub fn show(&self, is_stopped: impl Fn(StopScope) -> bool) {
        self.stopped.iter().for_each(|(source, gauge)| gauge.set(is_stopped(*source).into()));
    }
}

/// The daily quota. Absent until it was read, because a zero would be wrong.
#[derive(Clone)]
pub struct QuotaMetrics {
    app: AppId,
    limit: IntGaugeVec,
    used: IntGaugeVec,
}

impl QuotaMetrics {
    /// Sets the numbers of a generation, over all replicas.
    pub fn show(&self, delivery: Delivery, limit: u64, used: u64) {
        for (gauges, value) in [(&self.limit, limit), (&self.used, used)] {
            set(gauges, &[self.app.as_str(), delivery.name()], value);
        }
    }
}

fn set(gauges: &IntGaugeVec, labels: &[&str], value: u64) {
    gauges.with_label_values(labels).set(i64::try_from(value).unwrap_or(i64::MAX));
}

#[derive(Clone)]
pub struct BroadcastMetrics {
    endings: [IntCounter; Ending::ALL.len()],
    other: IntCounter,
    running: IntGauge,
    quotas: [Outage; 2],
    outages: Outages,
}

impl BroadcastMetrics {
    /// Counts ended messages, by their endings as stored.
    pub fn ended(&self, endings: &[(String, u64)]) {
        for (ending, count) in endings {
            let known = Ending::parse(reason::split(ending).0);
            known.map_or(&self.other, |known| &self.endings[known as usize]).inc_by(*count);
        }
    }

    pub fn quota(&self, delivery: Delivery) -> &Outage {
        &self.quotas[delivery as usize]
    }

    /// A broadcast that cannot be processed. Others are not affected.
    pub fn unusable(&self) -> Operation {
        let (begins, ends) = ("a broadcast cannot be processed", "a broadcast is processed again");
        self.outages.outage("broadcast_record", begins, ends).operation()
    }

    pub fn show_running(&self, running: usize) {
        self.running.set(i64::try_from(running).unwrap_or(i64::MAX));
    }
}

/// Paused broadcasts of one app, and the progress of all that have not ended. Absent until they were counted, like the
/// daily quota.
#[derive(Clone)]
pub struct PauseMetrics {
    app: AppId,
    paused: IntGaugeVec,
    audience: IntGaugeVec,
    left: IntGaugeVec,
}

impl PauseMetrics {
    /// Sets the numbers of paused broadcasts. `paused` has one stored reason per broadcast.
    pub fn show<'a>(&self, paused: impl Iterator<Item = &'a str> + Clone) {
        let paused = paused.map(PauseReason::parse);
        let show = |label: &str, counted: Option<PauseReason>| {
            let count = paused.clone().filter(|reason| *reason == counted).count();
            set(&self.paused, &[self.app.as_str(), &label.to_ascii_lowercase()], count as u64);
        };
        PauseReason::ALL.iter().for_each(|(reason, name)| show(name, Some(*reason)));
        show(OTHER, None);
    }

    /// Sets the number of users in the audiences of running and paused broadcasts, and how many of them are left.
    pub fn show_progress(&self, audience: u64, left: u64) {
        set(&self.audience, &[self.app.as_str()], audience);
        set(&self.left, &[self.app.as_str()], left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_errcode_is_counted_as_other() {
        assert_eq!([None, Some(0), Some(-1), Some(41028)].map(label_of), ["", "0", "-1", "41028"]);
        for unknown in [1, 99999, i32::MAX, i32::MIN] {
            assert_eq!(label_of(Some(unknown)), OTHER);
        }
    }

    #[test]
    fn endings_are_counted_by_reason_and_unknown_ones_as_other() {
        let metrics = Metrics::new().unwrap();
        let app = metrics.app(&AppId::parse("wx1").unwrap());
        let endings = [("delivered", 5), ("USER_REFUSED 43101", 2), ("USER_REFUSED 40003", 1), ("NEW 77777", 1)];
        app.broadcasts.ended(&endings.map(|(ending, count)| (ending.to_owned(), count)));
        let text = metrics.service.registry.text().unwrap();
        for (ending, count) in [("delivered", 5), ("user_refused", 3), ("other", 1), ("no_credential", 0)] {
            let line = format!("formid_broadcast_messages_total{{app=\"wx1\",ending=\"{ending}\"}} {count}\n");
            assert!(text.contains(&line), "{line} in {text}");
        }
    }

    #[test]
    fn paused_broadcasts_are_counted_under_every_reason() {
        let metrics = Metrics::new().unwrap();
        let app = metrics.app(&AppId::parse("wx1").unwrap());
        assert!(!metrics.service.registry.text().unwrap().contains("formid_broadcasts_paused{"));
        app.pauses.show(["QUOTA", "CANARY", "QUOTA", "OF_A_NEWER_RELEASE"].into_iter());
        let text = metrics.service.registry.text().unwrap();
        for (reason, count) in [("quota", 2), ("canary", 1), ("other", 1), ("caller", 0), ("token_refused", 0)] {
            let line = format!("formid_broadcasts_paused{{app=\"wx1\",reason=\"{reason}\"}} {count}\n");
            assert!(text.contains(&line), "{line} in {text}");
        }
        assert_eq!(text.matches("formid_broadcasts_paused{").count(), PauseReason::ALL.len() + 1);
        app.pauses.show([].into_iter());
        assert!(!metrics.service.registry.text().unwrap().contains("reason=\"quota\"} 2"));
    }
}
