//! Converts the credentials of a call to domain types, and what became of them to a response.

use std::ops::RangeInclusive;

use domain::{CredentialId, GrantUses, Kind, MAX_GRANT, OpenId, Refusal, TemplateId, given};
use prost_types::Timestamp;
use server::proto::credential::Right;
use server::proto::{
    self, CollectResponse, CollectResult, CollectStatus, CollectStreamResponse, Credential, Grant, RefusalReason,
};
use store::credentials::Packed;

use crate::dedup;
use crate::settings::Settings;

/// The valid seconds of a google.protobuf.Timestamp: the years 1 to 9999.
const TIMESTAMP_SECONDS: RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// The maximum length of a grant key in bytes.
const MAX_GRANT_KEY: usize = 128;

/// Whether repeating the call would count this credential again. Ids and grant keys make a repetition recognizable, and
/// a long-term grant cannot be stored twice.
pub(super) fn counts_again(credential: &Credential) -> bool {
    matches!(&credential.right, Some(Right::Grant(grant)) if grant.grant_key.is_empty() && !grant.unlimited)
}

#[derive(Debug, Default)]
pub(super) struct Sorted {
    /// The valid credentials, in the order of the call.
    pub(super) good: Vec<Packed>,
    /// The indexes of the refused credentials in the call, in order, and the reasons.
    pub(super) refused: Vec<(u32, Refusal)>,
}

/// Separates the valid credentials of a call from the refused ones. `now` is a Unix time in seconds.
pub(super) fn sort(credentials: Vec<Credential>, now: i64, settings: &Settings) -> Sorted {
    let mut sorted = Sorted { good: Vec::with_capacity(credentials.len()), refused: Vec::new() };
    for (index, credential) in (0..).zip(credentials) {
        match read(credential, now, settings) {
            Ok(packed) => sorted.good.push(packed),
            Err(refusal) => sorted.refused.push((index, refusal)),
        }
    }
    sorted
}

fn read(wire: Credential, now: i64, settings: &Settings) -> Result<Packed, Refusal> {
    let openid = OpenId::parse(wire.openid).map_err(Refusal::BadOpenId)?;
    let (kind, id) = match wire.right {
        Some(Right::FormId(id)) => CredentialId::parse_as(Kind::FormId, id)?,
        Some(Right::PrepayId(id)) => CredentialId::parse_as(Kind::PrepayId, id)?,
        Some(Right::Grant(grant)) => return read_grant(openid, grant),
        None => return Err(Refusal::EmptyId),
    };
    let uses = if kind == Kind::PrepayId { settings.prepay_uses } else { 1 };
    let obtained = wire.obtained_at.map_or(Ok(now), seconds)?;
    let expiry = domain::expiry(obtained, now, settings.lease_margin)?;
    Ok(Packed::new(openid, &domain::Credential { kind, id, uses, expiry }))
}

fn read_grant(openid: OpenId, wire: Grant) -> Result<Packed, Refusal> {
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
            given(key, MAX_GRANT_KEY).map_err(Refusal::BadGrantKey)?;
            Some(dedup::key(&["grant", openid.as_str(), key]))
        }
    };
    Ok(Packed::grant(openid, &domain::Grant { template, uses }, once))
}

fn seconds(time: Timestamp) -> Result<i64, Refusal> {
    let valid = TIMESTAMP_SECONDS.contains(&time.seconds) && (0..1_000_000_000).contains(&time.nanos);
    if valid { Ok(time.seconds) } else { Err(Refusal::BadTime) }
}

pub(super) fn reason(refusal: Refusal) -> RefusalReason {
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
        Refusal::NoValue(_) => RefusalReason::NoValue,
    }
}

/// Makes the results of a call, one for each credential, in order. `good` is the number of valid credentials, and
/// `duplicates` are the indexes among those that were stored before.
pub(super) fn results(good: usize, duplicates: &[u32], refused: Vec<(u32, Refusal)>) -> CollectResponse {
    let plain = |status: CollectStatus| CollectResult { status: status.into(), ..CollectResult::default() };
    let mut results = vec![plain(CollectStatus::Stored); good];
    for index in duplicates {
        results[*index as usize] = plain(CollectStatus::Duplicate);
    }
    if !refused.is_empty() {
        let mut stored = results.into_iter();
        let mut all = Vec::with_capacity(good + refused.len());
        for (index, refusal) in refused {
            all.extend(stored.by_ref().take(index as usize - all.len()));
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
        .map(|(index, refusal)| proto::Refusal { index, reason: reason(refusal).into(), message: refusal.to_string() })
        .collect();
    let (stored, duplicates) = ((good - duplicates.len()) as u32, duplicates.len() as u32);
    CollectStreamResponse { sequence, stored, duplicates, refusals }
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
            Refusal::NoValue("null"),
        ];
        let reasons: BTreeSet<i32> = refusals.into_iter().map(|refusal| reason(refusal).into()).collect();
        assert_eq!(reasons, (1..=14).collect());
    }

    #[test]
    fn time_outside_the_range_of_timestamps_is_refused() {
        let time = |seconds, nanos| super::seconds(Timestamp { seconds, nanos });
        assert_eq!(time(1_800_000_000, 999_999_999), Ok(1_800_000_000));
        for (seconds, nanos) in [(0, -1), (0, 1_000_000_000), (i64::MAX, 0), (i64::MIN, 0)] {
            assert_eq!(time(seconds, nanos), Err(Refusal::BadTime));
        }
    }
}
