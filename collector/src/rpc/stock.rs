//! Converts the inventory of a user and the stock of an app for callers.

use std::collections::BTreeMap;

use jiff::Timestamp as Instant;
use jiff::tz::Offset;
use prost_types::Timestamp;
use server::proto::{
    CredentialKind, DayStock, GetInventoryResponse, GetStockResponse, KindInventory, Ledger, TemplateStock,
};
use server::rpc::status::Failure;
use store::credentials::{Available, StockKey};
use store::record::NEVER;
use store::stock::{self, DAY, Stock};

pub(super) fn inventory(inventory: BTreeMap<StockKey, Available>) -> GetInventoryResponse {
    let messages = inventory.values().map(|available| available.messages).sum();
    // There is no time if all that there is rests.
    let expiry = |expiry: u32| if matches!(expiry, 0 | NEVER) { None } else { timestamp(expiry.into()) };
    let kinds = inventory.into_iter().map(|((of, template), available)| KindInventory {
        kind: CredentialKind::from(of).into(),
        credentials: available.credentials,
        messages: available.messages,
        soonest_expiry: expiry(available.soonest_expiry),
        latest_expiry: expiry(available.latest_expiry),
        template_id: template.map(|template| template.as_str().to_owned()).unwrap_or_default(),
        unlimited: available.long_term,
        resting_messages: available.resting,
        resting_until: Some(available.resting_until)
            .filter(|until| *until > 0)
            .and_then(|until| timestamp(until.into())),
    });
    GetInventoryResponse { kinds: kinds.collect(), messages }
}

/// Converts the stock of an app. Fails on a day that is out of range, which only a corrupt record could cause.
pub(super) fn stock(stock: &Stock, ledger: &stock::Ledger) -> Result<GetStockResponse, Failure> {
    let days = stock.days.iter().map(|(&(day, of), count)| {
        let (credentials, messages) = (count.credentials, count.messages);
        Ok(DayStock { day: calendar_day(day)?, kind: CredentialKind::from(of).into(), credentials, messages })
    });
    let templates = stock.templates.iter().map(|(template, granted)| TemplateStock {
        template_id: template.as_str().to_owned(),
        users: granted.users,
        messages: granted.messages,
        unlimited_users: granted.long_term,
        resting_users: granted.resting_users,
        resting_messages: granted.resting,
    });
    Ok(GetStockResponse {
        reachable_users: stock.reachable,
        templates: templates.collect(),
        days: days.collect::<Result<_, Failure>>()?,
        counted_at: timestamp(stock.counted_at),
        ledger: Some(Ledger {
            collected: ledger.collected,
            available: ledger.available(),
            leased: ledger.leased,
            consumed: ledger.consumed,
            discarded: ledger.discarded,
            expired: ledger.expired,
            dropped: ledger.dropped,
            erased: ledger.erased,
            unknown: ledger.unknown,
        }),
    })
}

fn timestamp(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos: 0 })
}

/// Formats a day, counted from 1970-01-01, as YYYY-MM-DD.
fn calendar_day(day: i64) -> Result<String, Failure> {
    let midnight = day.checked_mul(DAY).and_then(|seconds| Instant::from_second(seconds).ok());
    midnight.map(|midnight| Offset::UTC.to_datetime(midnight).date().to_string()).ok_or_else(Failure::internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_formatted_as_calendar_dates() {
        for (day, text) in [(0, "1970-01-01"), (20_512, "2026-02-28"), (19_782, "2024-02-29"), (24_855, "2038-01-19")] {
            assert_eq!(calendar_day(day), Ok(text.to_owned()));
        }
        assert!(calendar_day(i64::MAX).is_err());
    }
}
