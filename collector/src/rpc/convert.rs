//! Conversions between the generated types and the domain types.

use std::collections::BTreeMap;

use domain::{CredentialId, GrantUses, Kind, MAX_GRANT, OpenId, Refusal, TemplateId, visible};
use jiff::Timestamp as Instant;
use jiff::tz::Offset;
use prost_types::Timestamp;
use server::proto::credential::Right;
use server::proto::{
    CollectResponse, CollectResult, CollectStatus, CollectStreamResponse, Credential, CredentialKind, DayStock,
    GetInventoryResponse, GetStockResponse, Grant, KindInventory, Ledger, Refusal as WireRefusal, RefusalReason,
    TemplateStock,
};
use server::rpc::status::Failure;
use store::credentials::{Available, Packed, StockKey};
use store::record::NEVER;
use store::stock::{self, DAY, Stock};

use crate::dedup;

/// The valid seconds of a google.protobuf.Timestamp: the years 1 to 9999.
const TIMESTAMP_SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// The maximum length of a grant key in bytes.
const MAX_GRANT_KEY: usize = 128;

/// Whether repeating the call would count this credential again. Ids and grant keys make a repetition recognizable, and
/// a long-term grant cannot be stored twice.
pub(super) fn counts_again(credential: &Credential) -> bool {
    matches!(&credential.right, Some(Right::Grant(grant)) if grant.grant_key.is_empty() && !grant.unlimited)
}

/// Converts credentials, with the rules of the settings.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader {
    pub(super) prepay_uses: u8,
    /// The minimum remaining lifetime of a credential in seconds.
    pub(super) lease_margin: u32,
}

#[derive(Debug, Default)]
pub(super) struct Sorted {
    /// The valid credentials, in the order of the call.
    pub(super) good: Vec<Packed>,
    /// The indexes of the refused credentials in the call, in order, and the reasons.
    pub(super) refused: Vec<(u32, Refusal)>,
}

impl Reader {
    /// Separates the credentials of one call. `now` is a Unix time in seconds.
    pub(super) fn sort(self, credentials: Vec<Credential>, now: i64) -> Sorted {
        let mut sorted = Sorted { good: Vec::with_capacity(credentials.len()), refused: Vec::new() };
        for (place, credential) in (0..).zip(credentials) {
            match self.read(credential, now) {
                Ok(packed) => sorted.good.push(packed),
                Err(refusal) => sorted.refused.push((place, refusal)),
            }
        }
        sorted
    }

    fn read(self, wire: Credential, now: i64) -> Result<Packed, Refusal> {
        let openid = OpenId::parse(wire.openid).map_err(Refusal::BadOpenId)?;
        let (kind, uses, id) = match wire.right {
            Some(Right::FormId(id)) => (Kind::FormId, 1, id),
            Some(Right::PrepayId(id)) => (Kind::PrepayId, self.prepay_uses, id),
            Some(Right::Grant(grant)) => return granted(openid, grant),
            None => return Err(Refusal::EmptyId),
        };
        let id = CredentialId::parse(id)?;
        let obtained = wire.obtained_at.map_or(Ok(now), seconds)?;
        let expiry = domain::expiry(obtained, now, self.lease_margin)?;
        Ok(Packed::new(openid, &domain::Credential { kind, id, uses, expiry }))
    }
}

fn granted(openid: OpenId, wire: Grant) -> Result<Packed, Refusal> {
    let template = TemplateId::parse(wire.template_id).map_err(Refusal::BadTemplateId)?;
    let uses = match (wire.unlimited, u16::try_from(wire.count)) {
        (true, Ok(0)) => GrantUses::LongTerm,
        (false, Ok(0)) => GrantUses::Count(1),
        (false, Ok(count @ 1..=MAX_GRANT)) => GrantUses::Count(count),
        _ => return Err(Refusal::BadCount),
    };
    let once = match wire.grant_key.as_str() {
        "" => None,
        key => {
            visible(key, MAX_GRANT_KEY).map_err(Refusal::BadGrantKey)?;
            Some(dedup::key(&["grant", openid.as_str(), key]))
        }
    };
    Ok(Packed::grant(openid, &domain::Grant { template, uses }, once))
}

fn seconds(time: Timestamp) -> Result<i64, Refusal> {
    let valid = TIMESTAMP_SECONDS.contains(&time.seconds) && (0..1_000_000_000).contains(&time.nanos);
    if valid { Ok(time.seconds) } else { Err(Refusal::BadTime) }
}

fn reason(refusal: Refusal) -> RefusalReason {
    match refusal {
        Refusal::BadOpenId(_) => RefusalReason::BadOpenid,
        Refusal::EmptyId => RefusalReason::EmptyId,
        Refusal::IdTooLong => RefusalReason::IdTooLong,
        Refusal::BadCharacters => RefusalReason::BadCharacters,
        Refusal::MockFormId => RefusalReason::MockFormId,
        Refusal::DevelopVersion => RefusalReason::DevelopVersion,
        Refusal::RequestFailed => RefusalReason::RequestFailed,
        Refusal::BadTime => RefusalReason::BadTime,
        Refusal::InTheFuture => RefusalReason::InTheFuture,
        Refusal::TooOld => RefusalReason::TooOld,
        Refusal::BadTemplateId(_) => RefusalReason::BadTemplateId,
        Refusal::BadCount => RefusalReason::BadCount,
        Refusal::BadGrantKey(_) => RefusalReason::BadGrantKey,
    }
}

/// Makes the results of a call, one for each credential, in order. `good` is the number of stored credentials,
/// `duplicates` are the indexes among those that were stored before, and `refused` are the refused ones by their index
/// in the call.
pub(super) fn results(good: usize, duplicates: &[u32], refused: Vec<(u32, Refusal)>) -> CollectResponse {
    let plain = |status: CollectStatus| CollectResult { status: status.into(), ..CollectResult::default() };
    let mut results = vec![plain(CollectStatus::Stored); good];
    for place in duplicates {
        results[*place as usize] = plain(CollectStatus::Duplicate);
    }
    if !refused.is_empty() {
        let mut stored = results.into_iter();
        let mut all = Vec::with_capacity(good + refused.len());
        for (place, refusal) in refused {
            all.extend(stored.by_ref().take(place as usize - all.len()));
            all.push(CollectResult {
                status: CollectStatus::Refused.into(),
                reason: reason(refusal).into(),
                message: refusal.to_string(),
            });
        }
        all.extend(stored);
        results = all;
    }
    CollectResponse { results }
}

pub(super) fn acknowledgement(
    sequence: u64,
    good: usize,
    duplicates: &[u32],
    refused: Vec<(u32, Refusal)>,
) -> CollectStreamResponse {
    let refusals = refused
        .into_iter()
        .map(|(index, refusal)| WireRefusal { index, reason: reason(refusal).into(), message: refusal.to_string() })
        .collect();
    let (stored, duplicates) = ((good - duplicates.len()) as u32, duplicates.len() as u32);
    CollectStreamResponse { sequence, stored, duplicates, refusals }
}

fn timestamp(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos: 0 })
}

pub(super) fn inventory(inventory: BTreeMap<StockKey, Available>) -> GetInventoryResponse {
    let messages = inventory.values().map(|available| available.messages).sum();
    let expiry = |expiry: u32| if expiry == NEVER { None } else { timestamp(expiry.into()) };
    let kinds = inventory.into_iter().map(|((of, template), available)| KindInventory {
        kind: CredentialKind::from(of).into(),
        credentials: available.credentials,
        messages: available.messages,
        soonest_expiry: expiry(available.soonest_expiry),
        latest_expiry: expiry(available.latest_expiry),
        template_id: template.map(|template| template.as_str().to_owned()).unwrap_or_default(),
        unlimited: available.long_term,
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

/// Formats a day, counted from 1970-01-01, as YYYY-MM-DD.
fn calendar_day(day: i64) -> Result<String, Failure> {
    let midnight = day.checked_mul(DAY).and_then(|seconds| Instant::from_second(seconds).ok());
    midnight.map(|midnight| Offset::UTC.to_datetime(midnight).date().to_string()).ok_or_else(Failure::internal)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn results_are_in_the_order_of_the_call() {
        let refused = vec![(0, Refusal::EmptyId), (2, Refusal::TooOld), (5, Refusal::BadTime)];
        let CollectResponse { results } = results(3, &[1], refused);
        let statuses: Vec<_> = results.iter().map(CollectResult::status).collect();
        use CollectStatus::{Duplicate, Refused, Stored};
        assert_eq!(statuses, [Refused, Stored, Refused, Duplicate, Stored, Refused]);
        assert_eq!(results[2].reason(), RefusalReason::TooOld);
        assert!(results.iter().all(|result| result.message.is_empty() == (result.status() != Refused)));
    }

    #[test]
    fn every_refusal_has_a_reason_of_its_own() {
        use domain::Malformed;
        let refusals = [
            Refusal::BadOpenId(Malformed::Empty),
            Refusal::EmptyId,
            Refusal::IdTooLong,
            Refusal::BadCharacters,
            Refusal::MockFormId,
            Refusal::DevelopVersion,
            Refusal::RequestFailed,
            Refusal::BadTime,
            Refusal::InTheFuture,
            Refusal::TooOld,
            Refusal::BadTemplateId(Malformed::Empty),
            Refusal::BadCount,
            Refusal::BadGrantKey(Malformed::Empty),
        ];
        let reasons: BTreeSet<i32> = refusals.into_iter().map(|refusal| reason(refusal).into()).collect();
        assert_eq!(reasons, (1..=13).collect());
    }

    #[test]
    fn time_outside_the_range_of_timestamps_is_refused() {
        let time = |seconds, nanos| super::seconds(Timestamp { seconds, nanos });
        assert_eq!(time(1_800_000_000, 999_999_999), Ok(1_800_000_000));
        for (seconds, nanos) in [(0, -1), (0, 1_000_000_000), (i64::MAX, 0), (i64::MIN, 0)] {
            assert_eq!(time(seconds, nanos), Err(Refusal::BadTime));
        }
    }

    #[test]
    fn days_are_formatted_as_calendar_dates() {
        for (day, text) in [(0, "1970-01-01"), (20_512, "2026-02-28"), (19_782, "2024-02-29"), (24_855, "2038-01-19")] {
            assert_eq!(calendar_day(day), Ok(text.to_owned()));
        }
        assert!(calendar_day(i64::MAX).is_err());
    }
}
