//! The dispatcher's metrics: sends, calls to WeChat, stops, the daily quota, and broadcasts. Each app has its
//! own [`AppMetrics`].

use std::sync::Arc;

use domain::AppId;
use server::proto::dispatcher_service_server::SERVICE_NAME;
use server::telemetry::metrics::files::FileMetrics;
use server::telemetry::metrics::registry::WECHAT_SECONDS;
use server::telemetry::metrics::{
    Error, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, ServiceMetrics,
};
use server::telemetry::outage::{Operation, Outage, Outages};
use store::stops::StopScope;

use crate::broadcast::reason::{self, Ending, PauseReason};
use crate::outages::{Loops, WechatOutages};
use crate::wechat::errcode;
use crate::wechat::error::TokenError;
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
    unknown_errcodes: IntCounterVec,
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

/// The metrics of one app.
#[derive(Clone)]
pub struct AppMetrics {
    pub wechat: WechatMetrics,
    pub stops: StopMetrics,
    pub loops: Loops,
    app: AppId,
    all: Arc<Metrics>,
    /// Counter of the most common outcome, by delivery. Kept here to avoid a lookup by label.
    delivered: [IntCounter; 2],
    attempts: [IntCounter; 2],
    pub unknown_errcodes: IntCounter,
    endings: [IntCounter; Ending::ALL.len()],
    other_ending: IntCounter,
    running: IntGauge,
    quota_outages: [Outage; 2],
}

impl Metrics {
    pub fn new() -> Result<Self, Error> {
        let service = ServiceMetrics::new(SERVICE_NAME, store::commands())?;
        let registry = &service.registry;
        let gauges = |name, help| registry.gauges(name, help, &["app"]);
        Ok(Self {
            sends: registry.counters(
                "formid_sends_total",
                "Messages of SendTemplate by outcome, without those answered from the record of an earlier call",
                &["app", "delivery", "outcome", "errcode"],
            )?,
            attempts: registry.counters(
                "formid_send_attempts_total",
                "Calls to WeChat for messages of SendTemplate",
                &["app", "delivery"],
            )?,
            unknown_errcodes: registry.counters(
                "formid_unknown_errcodes_total",
                "Answers to messages with an errcode that the dispatcher does not know",
                &["app"],
            )?,
            wechat: registry.histograms(
                "formid_wechat_seconds",
                "Duration of calls to WeChat in seconds, failed calls included",
                &["app", "endpoint"],
                WECHAT_SECONDS,
            )?,
            fetches: registry.counters(
                "formid_token_fetches_total",
                "Attempts to get an access token: ok, refused by WeChat (an operator has to act), or failed (temporary)",
                &["app", "result"],
            )?,
            stopped: registry.gauges(
                "formid_app_stopped",
                "1 while nothing is sent for an app, or with a kind of its credentials, because WeChat stopped it; else 0. For the source template, the number of stopped templates",
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
            messages: registry.counters(
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

    pub fn app(self: &Arc<Self>, id: &AppId) -> AppMetrics {
        let (app, outages) = (id.as_str(), &self.service.outages);
        let deliveries = Delivery::ALL.map(Delivery::name);
        let ending = |name: &str| self.messages.with_label_values(&[app, &name.to_ascii_lowercase()]);
        let quota =
            |_| outages.outage_of(id, "quota", "WeChat does not report the quota", "WeChat reports the quota again");
        let seconds = |endpoint| self.wechat.with_label_values(&[app, endpoint]);
        let fetched = |result| self.fetches.with_label_values(&[app, result]);
        AppMetrics {
            wechat: WechatMetrics {
                sends: ["template_send", "subscribe_send"].map(seconds),
                quota: seconds("quota"),
                token: seconds("token"),
                tokens_fetched: fetched("ok"),
                tokens_refused: fetched("refused"),
                tokens_failed: fetched("failed"),
                outages: WechatOutages::new(id, outages),
                files: self.service.files.clone(),
                reloads: outages.clone(),
            },
            stops: StopMetrics {
                stopped: StopScope::NAMED.map(|(scope, name)| (scope, self.stopped.with_label_values(&[app, name]))),
                templates: self.stopped.with_label_values(&[app, "template"]),
                sharing: self.loops.stop_shares.clone(),
            },
            loops: self.loops.clone(),
            delivered: deliveries.map(|name| self.sends.with_label_values(&[app, name, DELIVERED, "0"])),
            attempts: deliveries.map(|name| self.attempts.with_label_values(&[app, name])),
            unknown_errcodes: self.unknown_errcodes.with_label_values(&[app]),
            endings: Ending::ALL.map(|(_, name)| ending(name)),
            other_ending: ending(OTHER),
            running: self.running.with_label_values(&[app]),
            quota_outages: Delivery::ALL.map(quota),
            app: id.clone(),
            all: Arc::clone(self),
        }
    }
}

impl AppMetrics {
    /// Counts the calls to WeChat for a single message.
    pub fn attempted(&self, delivery: Delivery, attempts: u32) {
        self.attempts[delivery as usize].inc_by(attempts.into());
    }

    /// Counts a single message by its outcome, or by the reason of its error.
    pub fn sent(&self, delivery: Delivery, outcome: &str, errcode: Option<i32>) {
        if (outcome, errcode) == (DELIVERED, Some(0)) {
            return self.delivered[delivery as usize].inc();
        }
        let labels = [self.app.as_str(), delivery.name(), &outcome.to_ascii_lowercase(), &label_of(errcode)];
        self.all.sends.with_label_values(&labels).inc();
    }

    /// Shows the daily quota over all replicas. The gauges are absent until it was read, because a zero would be wrong.
    pub fn show_quota(&self, delivery: Delivery, limit: u64, used: u64) {
        for (gauges, value) in [(&self.all.quota_limit, limit), (&self.all.quota_used, used)] {
            set(gauges, &[self.app.as_str(), delivery.name()], value);
        }
    }

    pub fn quota_outage(&self, delivery: Delivery) -> &Outage {
        &self.quota_outages[delivery as usize]
    }

    /// Counts ended messages of broadcasts, by their endings as stored.
    pub fn ended(&self, endings: &[(String, u64)]) {
        for (ending, count) in endings {
            let known = Ending::parse(reason::split(ending).0);
            known.map_or(&self.other_ending, |known| &self.endings[known as usize]).inc_by(*count);
        }
    }

    /// A broadcast that cannot be processed. Others are not affected.
    pub fn unusable_broadcast(&self) -> Operation {
        let (begins, ends) = ("a broadcast cannot be processed", "a broadcast is processed again");
        self.all.service.outages.outage("broadcast_record", begins, ends).operation()
    }

    pub fn show_running(&self, running: usize) {
        self.running.set(i64::try_from(running).unwrap_or(i64::MAX));
    }

    /// Shows the numbers of paused broadcasts. `paused` has one stored reason per broadcast. The gauges are absent
    /// until they were counted.
    pub fn show_paused<'a>(&self, paused: impl Iterator<Item = &'a str> + Clone) {
        let paused = paused.map(PauseReason::parse);
        let show = |label: &str, counted: Option<PauseReason>| {
            let count = paused.clone().filter(|reason| *reason == counted).count();
            set(&self.all.paused, &[self.app.as_str(), &label.to_ascii_lowercase()], count as u64);
        };
        PauseReason::ALL.iter().for_each(|(reason, name)| show(name, Some(*reason)));
        show(OTHER, None);
    }

    /// Shows the number of users in the audiences of running and paused broadcasts, and how many of them are left.
    pub fn show_progress(&self, audience: u64, left: u64) {
        set(&self.all.audience, &[self.app.as_str()], audience);
        set(&self.all.left, &[self.app.as_str()], left);
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
    /// For the file with the app's access token, if it has one.
    pub files: FileMetrics,
    pub reloads: Outages,
}

impl WechatMetrics {
    /// Counts an attempt to get an access token.
    pub fn count_token<T>(&self, fetched: &Result<T, TokenError>) {
        match fetched {
            Ok(_) => &self.tokens_fetched,
            Err(TokenError::Refused { .. }) => &self.tokens_refused,
            Err(TokenError::Transient(_)) => &self.tokens_failed,
        }
        .inc();
    }
}

#[derive(Debug, Clone)]
pub struct StopMetrics {
    stopped: [(StopScope, IntGauge); StopScope::NAMED.len()],
    /// Number of stopped templates.
    templates: IntGauge,
    pub sharing: Outage,
}

impl StopMetrics {
    /// Shows which scopes are stopped.
    pub fn show<'a>(&self, stopped: impl Iterator<Item = &'a StopScope>) {
        let (templates, stopped): (Vec<_>, Vec<_>) = stopped.partition(|scope| matches!(scope, StopScope::Template(_)));
        self.templates.set(i64::try_from(templates.len()).unwrap_or(i64::MAX));
        self.stopped.iter().for_each(|(scope, gauge)| gauge.set(stopped.contains(&scope).into()));
    }
}

fn set(gauges: &IntGaugeVec, labels: &[&str], value: u64) {
    gauges.with_label_values(labels).set(i64::try_from(value).unwrap_or(i64::MAX));
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
        let metrics = Arc::new(Metrics::new().unwrap());
        let app = metrics.app(&AppId::parse("wx1").unwrap());
        let endings = [("delivered", 5), ("USER_REFUSED 43101", 2), ("USER_REFUSED 40003", 1), ("NEW 77777", 1)];
        app.ended(&endings.map(|(ending, count)| (ending.to_owned(), count)));
        let text = metrics.service.registry.text().unwrap();
        for (ending, count) in [("delivered", 5), ("user_refused", 3), ("other", 1), ("no_credential", 0)] {
            let line = format!("formid_broadcast_messages_total{{app=\"wx1\",ending=\"{ending}\"}} {count}\n");
            assert!(text.contains(&line), "{line} in {text}");
        }
    }

    #[test]
    fn paused_broadcasts_are_counted_under_every_reason() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let app = metrics.app(&AppId::parse("wx1").unwrap());
        assert!(!metrics.service.registry.text().unwrap().contains("formid_broadcasts_paused{"));
        app.show_paused(["QUOTA", "CANARY", "QUOTA", "OF_A_NEWER_RELEASE"].into_iter());
        let text = metrics.service.registry.text().unwrap();
        for (reason, count) in [("quota", 2), ("canary", 1), ("other", 1), ("caller", 0), ("token_refused", 0)] {
            let line = format!("formid_broadcasts_paused{{app=\"wx1\",reason=\"{reason}\"}} {count}\n");
            assert!(text.contains(&line), "{line} in {text}");
        }
        assert_eq!(text.matches("formid_broadcasts_paused{").count(), PauseReason::ALL.len() + 1);
        app.show_paused([].into_iter());
        assert!(!metrics.service.registry.text().unwrap().contains("reason=\"quota\"} 2"));
    }
}
