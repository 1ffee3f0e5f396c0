//! The Prometheus metrics of the collector: received credentials, the stock and the ledger.

use std::sync::Arc;

use domain::{AppId, Kind};
use server::proto::RefusalReason;
use server::proto::collector_service_server::SERVICE_NAME;
use server::telemetry::metrics::{Error, IntCounter, IntGaugeVec, ServiceMetrics};
use store::credentials::Packed;
use store::stock::{DAY, DAY_OFFSET, Ledger, Stock};

/// Label values: in how many days form ids and prepay ids expire; 0 is today. They live for 7 times 24 hours, and days
/// begin at midnight of UTC+8.
const DAYS: [&str; 8] = ["0", "1", "2", "3", "4", "5", "6", "7"];

pub struct Metrics {
    pub service: ServiceMetrics,
    /// Counters of received credentials, by the index of the app in the list of apps.
    pub intake: Arc<[Intake]>,
    pub gauges: Gauges,
}

impl Metrics {
    pub fn new(apps: &[AppId]) -> Result<Self, Error> {
        let service = ServiceMetrics::new(SERVICE_NAME, store::commands())?;
        let registry = &service.registry;
        let by_kind = ["app", "kind"];
        let help = "Credentials that were stored";
        let collected = registry.counters("formid_credentials_collected_total", help, &by_kind)?;
        let help = "Credentials that were stored already";
        let duplicate = registry.counters("formid_credentials_duplicate_total", help, &by_kind)?;
        let help = "Credentials that were refused, by reason";
        let refused = registry.counters("formid_credentials_refused_total", help, &["app", "reason"])?;
        let intake = apps.iter().map(|app| {
            let app = app.as_str();
            Intake {
                collected: Kind::ALL.map(|kind| collected.with_label_values(&[app, kind.name()])),
                duplicate: Kind::ALL.map(|kind| duplicate.with_label_values(&[app, kind.name()])),
                refused: reasons().skip(1).map(|reason| refused.with_label_values(&[app, &label_of(reason)])).collect(),
            }
        });
        let gauges = Gauges {
            stock: registry.gauges(
                "formid_stock_messages",
                "Messages that the stock permits, without grants that rest, as last counted",
                &by_kind,
            )?,
            resting: registry.gauges(
                "formid_stock_resting_messages",
                "Messages of grants that rest because WeChat answered 43101, as last counted",
                &["app"],
            )?,
            expiring: registry.gauges(
                "formid_stock_expiring_messages",
                "Messages of form ids and prepay ids in stock, by the days until they expire (days of UTC+8; 0 is today)",
                &["app", "days"],
            )?,
            users: registry.gauges("formid_reachable_users", "Users with a usable credential, as last counted", &["app"])?,
            ledger: registry.gauges(
                "formid_ledger_messages",
                "Everything ever collected, by its current state, in messages; unknown is a part of consumed",
                &["app", "state"],
            )?,
        };
        Ok(Self { intake: intake.collect(), service, gauges })
    }
}

pub struct Intake {
    collected: [IntCounter; Kind::ALL.len()],
    duplicate: [IntCounter; Kind::ALL.len()],
    /// By reason, beginning with the first that is specified.
    refused: Box<[IntCounter]>,
}

impl Intake {
    /// Counts stored credentials. `duplicates` are the indexes of those that Redis held already.
    pub fn stored(&self, credentials: &[Packed], duplicates: &[usize]) {
        let (mut new, mut known) = ([0_u64; Kind::ALL.len()], [0_u64; Kind::ALL.len()]);
        credentials.iter().for_each(|credential| new[credential.kind as usize] += 1);
        duplicates.iter().filter_map(|place| credentials.get(*place)).for_each(|credential| {
            new[credential.kind as usize] = new[credential.kind as usize].saturating_sub(1);
            known[credential.kind as usize] += 1;
        });
        for (counts, counters) in [(new, &self.collected), (known, &self.duplicate)] {
            for (count, counter) in counts.into_iter().zip(counters).filter(|(count, _)| *count > 0) {
                counter.inc_by(count);
            }
        }
    }

    pub fn refused(&self, reason: RefusalReason) {
        self.refused[reason as usize - 1].inc();
    }
}

/// All reasons; the first is unspecified.
fn reasons() -> impl Iterator<Item = RefusalReason> {
    (0..).map_while(|number| RefusalReason::try_from(number).ok())
}

/// The protocol's name without its prefix: REFUSAL_REASON_TOO_OLD gives too_old.
fn label_of(reason: RefusalReason) -> String {
    reason.as_str_name().trim_start_matches("REFUSAL_REASON_").to_ascii_lowercase()
}

/// Gauges of stock and ledger. An app has no values until it was counted first, because a zero would be wrong.
#[derive(Clone)]
pub struct Gauges {
    stock: IntGaugeVec,
    resting: IntGaugeVec,
    expiring: IntGaugeVec,
    users: IntGaugeVec,
    ledger: IntGaugeVec,
}

impl Gauges {
    /// Sets the gauges of the stock. `now` is a Unix time in seconds.
    pub fn show_stock(&self, app: &AppId, stock: &Stock, now: i64) {
        let (app, today) = (app.as_str(), (now + DAY_OFFSET).div_euclid(DAY));
        let mut messages = [0_u64; Kind::ALL.len()];
        stock.days.iter().for_each(|((_, kind), count)| messages[*kind as usize] += count.messages);
        messages[Kind::Grant as usize] += stock.templates.values().map(|granted| granted.messages).sum::<u64>();
        set(&self.resting, &[app], stock.templates.values().map(|granted| granted.resting).sum());
        let mut expiring = [0_u64; DAYS.len()];
        for ((day, _), count) in &stock.days {
            // Days before today have expired since the count and are added to today. Later days come from differing
            // clocks and are added to the last day.
            let days = usize::try_from(day - today).unwrap_or_default().min(DAYS.len() - 1);
            expiring[days] += count.messages;
        }
        for (days, messages) in DAYS.iter().zip(expiring) {
            set(&self.expiring, &[app, days], messages);
        }
        for kind in Kind::ALL {
            set(&self.stock, &[app, kind.name()], messages[kind as usize]);
        }
        set(&self.users, &[app], stock.reachable);
    }

    pub fn show_ledger(&self, app: &AppId, ledger: &Ledger) {
        for (state, messages) in [
            ("collected", ledger.collected),
            ("available", ledger.available()),
            ("leased", ledger.leased),
            ("consumed", ledger.consumed),
            ("discarded", ledger.discarded),
            ("expired", ledger.expired),
            ("dropped", ledger.dropped),
            ("erased", ledger.erased),
            ("unknown", ledger.unknown),
        ] {
            set(&self.ledger, &[app.as_str(), state], messages);
        }
    }
}

fn set(gauges: &IntGaugeVec, labels: &[&str], value: u64) {
    gauges.with_label_values(labels).set(i64::try_from(value).unwrap_or(i64::MAX));
}

#[cfg(test)]
mod tests {
    use store::stock::Count;

    use super::*;

    #[test]
    fn stock_is_shown_by_the_days_until_it_expires() {
        let app = AppId::parse("wx1").unwrap();
        let metrics = Metrics::new(std::slice::from_ref(&app)).unwrap();
        // 07:59 on day 20000 of UTC+8 is still the day before in UTC.
        let (today, now) = (20_000, 20_000 * DAY - DAY_OFFSET + 8 * 3600 - 60);
        let count = |messages| Count { credentials: 1, messages };
        let days = [(today - 1, 1), (today, 2), (today + 3, 4), (today + 7, 8), (today + 8, 16)];
        let days = days.map(|(day, messages)| ((day, Kind::FormId), count(messages)));
        let prepay = ((today + 3, Kind::PrepayId), count(32));
        let stock = Stock { days: days.into_iter().chain([prepay]).collect(), ..Stock::default() };
        metrics.gauges.show_stock(&app, &stock, now);
        let text = metrics.service.registry.text().unwrap();
        for (days, messages) in [("0", 3), ("1", 0), ("2", 0), ("3", 36), ("6", 0), ("7", 24)] {
            let line = format!("formid_stock_expiring_messages{{app=\"wx1\",days=\"{days}\"}} {messages}\n");
            assert!(text.contains(&line), "{line} in {text}");
        }
        assert_eq!(text.matches("formid_stock_expiring_messages{").count(), DAYS.len());
    }

    #[test]
    fn reason_labels_are_those_of_the_protocol() {
        let labels: Vec<String> = reasons().skip(1).map(label_of).collect();
        let expected = [
            "bad_openid",
            "empty_id",
            "id_too_long",
            "bad_characters",
            "mock_form_id",
            "develop_version",
            "request_failed",
            "bad_time",
            "in_the_future",
            "too_old",
            "bad_template_id",
            "bad_count",
            "bad_grant_key",
            "no_value",
        ];
        assert_eq!(labels, expected);
        assert_eq!(reasons().next(), Some(RefusalReason::Unspecified));
        let metrics = Metrics::new(&[AppId::parse("wx1").unwrap()]).unwrap();
        for reason in reasons().skip(1) {
            metrics.intake[0].refused(reason);
        }
        let text = metrics.service.registry.text().unwrap();
        for label in expected {
            assert!(text.contains(&format!("{{app=\"wx1\",reason=\"{label}\"}} 1\n")), "{label} in {text}");
        }
    }
}
