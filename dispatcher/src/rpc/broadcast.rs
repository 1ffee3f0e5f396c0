//! Parses the requests about broadcasts. All bad fields of a call are reported together.

use std::sync::Arc;
use std::time::Duration;

use domain::{AppId, OpenId};
use prost_types::{Duration as ProtoDuration, Timestamp};
use server::auth::Caller;
use server::proto::broadcast_request::Audience as ProtoAudience;
use server::proto::{BroadcastRequest, ListBroadcastsRequest};
use server::rpc::fields::Fields;
use server::rpc::status::Failure;
use store::broadcast::BroadcastId;
use store::broadcast::tallies::Cursor;
use store::keys::Bucket;
use store::retention::KEEP_TOUCH;

use super::message::{self, Parts, Warnings};
use super::recipients::{Recipients, Refused};
use super::{Service, send};
use crate::broadcast::api::{Audience, Broadcasts, NewBroadcast};
use crate::broadcast::spec::Spec;

/// Maximum number of users in the list, or in the exclude list, of one call.
pub(super) const MAX_LIST: usize = 10_000;
const MAX_NAME: usize = 128;
const MAX_RATE: u32 = 1_000_000;
/// Maximum length of a page token in bytes: a bucket, and in hex an openid and how its message ended.
const MAX_PAGE_TOKEN: usize = 512;
/// Interval of WatchBroadcast: default, minimum and maximum.
const INTERVALS: (Duration, Duration, Duration) =
    (Duration::from_secs(1), Duration::from_millis(200), Duration::from_secs(60));

pub(super) struct Parsed<'a> {
    pub(super) broadcasts: &'a Broadcasts,
    pub(super) new: NewBroadcast,
    pub(super) duplicates: u32,
    pub(super) refused: Refused,
    pub(super) warnings: Warnings,
    pub(super) validate_only: bool,
}

impl Service {
    pub(super) fn parse_broadcast(&self, caller: &Caller, request: BroadcastRequest) -> Result<Parsed<'_>, Failure> {
        let mut fields = Fields::default();
        let app = fields.take("app_id", AppId::parse(request.app_id));
        let request_id = send::request_id(&mut fields, &request.request_id);
        let parts = Parts {
            delivery: request.delivery,
            template_id: request.template_id,
            data: request.data,
            page: request.page,
            emphasis_keyword: request.emphasis_keyword,
            miniprogram_state: request.miniprogram_state,
            lang: request.lang,
            fit: request.fit,
        };
        let default = self.default_delivery(caller, app.as_ref());
        let mut message = message::read(&mut fields, parts, default);
        fields.text("name", &request.name, MAX_NAME);
        if request.messages_per_second > MAX_RATE {
            fields.refuse("messages_per_second", format_args!("must not be more than {MAX_RATE}"));
        }
        let (mut duplicates, mut refused) = (0, Refused::default());
        let audience = match request.audience {
            None => {
                fields.refuse("audience", "must be given: all_reachable, or recipients");
                Audience::Everyone
            }
            Some(ProtoAudience::AllReachable(_)) => Audience::Everyone,
            Some(ProtoAudience::Recipients(list)) => {
                let list = Recipients::read(&mut fields, "recipients.list", list.list);
                // Without a message, `fields` has reported a bad field.
                let list = message
                    .as_mut()
                    .map(|(message, warnings)| list.check(&mut fields, message.delivery, request.fit, warnings));
                let list = list.unwrap_or_default();
                (duplicates, refused) = (list.duplicates, list.refused);
                Audience::List(list.recipients)
            }
        };
        let exclude = openids(&mut fields, "exclude", request.exclude);
        let not_before_ms = request.not_before.and_then(|at| not_before(&mut fields, at));
        let min_interval = match request.min_interval {
            None => Duration::ZERO,
            // Whole seconds, rounded up.
            Some(interval) => {
                let interval = span(&mut fields, "min_interval", interval, Duration::ZERO, KEEP_TOUCH);
                Duration::from_secs(interval.as_millis().div_ceil(1000) as u64)
            }
        };
        let broadcasts = &self.finish(caller, fields, app)?.broadcasts;
        // Without a message, `fields` has reported a bad field.
        let (message, warnings) = message.ok_or_else(Failure::internal)?;
        let spec = Spec {
            name: request.name,
            message: Arc::new(message),
            rate: request.messages_per_second,
            min_interval,
            retry_unknown: request.retry_unknown,
            fit: request.fit,
            ordered_by: None,
        };
        let canary = (request.limit > 0).then_some(request.limit);
        let new = NewBroadcast { spec, audience, exclude, canary, not_before_ms, hold: request.hold, request_id };
        Ok(Parsed { broadcasts, new, duplicates, refused, warnings, validate_only: request.validate_only })
    }

    /// Parses `ListBroadcasts`: the id to continue after, and the page size.
    pub(super) fn parse_list(
        &self,
        caller: &Caller,
        request: ListBroadcastsRequest,
    ) -> Result<(&Broadcasts, Option<BroadcastId>, usize), Failure> {
        let mut fields = Fields::default();
        let app = fields.take("app_id", AppId::parse(request.app_id));
        let size = page_size(&mut fields, request.page_size, 20, 100);
        let before = match request.page_token.as_str() {
            "" => None,
            token => fields.take("page_token", BroadcastId::parse(token).ok_or(BAD_TOKEN)),
        };
        Ok((&self.finish(caller, fields, app)?.broadcasts, before, size))
    }
}

/// Parses the interval of `WatchBroadcast`.
pub(super) fn interval(fields: &mut Fields, given: Option<ProtoDuration>) -> Duration {
    let (default, least, most) = INTERVALS;
    given.map_or(default, |interval| span(fields, "interval", interval, least, most))
}

/// Parses the page of `ListUndelivered`: the position to continue at, and the size.
pub(super) fn undelivered_page(fields: &mut Fields, size: u32, token: &str) -> (Option<Cursor>, usize) {
    let size = page_size(fields, size, 100, 1000);
    let from = if !token.is_empty() && fields.fits("page_token", token, MAX_PAGE_TOKEN) {
        fields.take("page_token", cursor_of(token).ok_or(BAD_TOKEN))
    } else {
        None
    };
    (from, size)
}

const BAD_TOKEN: &str = "must be the next_page_token of an earlier response";

/// Page token of a position in a list: the bucket, and the last member in hex.
pub(super) fn token_of(cursor: &Cursor) -> String {
    let hex: String = cursor.after.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("{}.{hex}", cursor.bucket.0)
}

fn cursor_of(token: &str) -> Option<Cursor> {
    let (bucket, hex) = token.split_once('.')?;
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let byte = |pair: &[u8]| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    };
    let bytes: Option<Vec<u8>> = hex.as_bytes().chunks(2).map(byte).collect();
    let after = String::from_utf8(bytes?).ok()?;
    Some(Cursor { bucket: Bucket(bucket.parse().ok()?), after })
}

pub(super) fn openids(fields: &mut Fields, field: &str, list: Vec<String>) -> Vec<OpenId> {
    if list.len() > MAX_LIST {
        fields.refuse(field, format_args!("must not have more than {MAX_LIST} users"));
        return Vec::new();
    }
    let parse = |(at, openid): (usize, String)| fields.take(&format!("{field}[{at}]"), OpenId::existing(openid));
    list.into_iter().enumerate().filter_map(parse).collect()
}

fn not_before(fields: &mut Fields, at: Timestamp) -> Option<u64> {
    let ms = at.seconds.checked_mul(1000).and_then(|ms| ms.checked_add(i64::from(at.nanos) / 1_000_000));
    let valid = (0..1_000_000_000).contains(&at.nanos);
    let ms = ms.filter(|_| valid).and_then(|ms| u64::try_from(ms).ok());
    fields.take("not_before", ms.ok_or("must be a time after 1970"))
}

/// Parses a duration within bounds, in whole milliseconds.
fn span(fields: &mut Fields, field: &str, given: ProtoDuration, least: Duration, most: Duration) -> Duration {
    match Duration::try_from(given) {
        Ok(span) if (least..=most).contains(&span) => span,
        _ => {
            let (least_ms, most) = (least.as_millis(), most.as_secs());
            fields.refuse(field, format_args!("must be from {least_ms} milliseconds to {most} seconds"));
            least
        }
    }
}

fn page_size(fields: &mut Fields, size: u32, default: usize, most: usize) -> usize {
    match size as usize {
        0 => default,
        size if size <= most => size,
        _ => {
            fields.refuse("page_size", format_args!("must not be more than {most}"));
            default
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_token_is_parsed_back_and_bad_tokens_are_rejected() {
        let place = Cursor { bucket: Bucket(511), after: "oUser NO_CREDENTIAL".into() };
        assert_eq!(cursor_of(&token_of(&place)), Some(place));
        let longest = Cursor {
            bucket: Bucket(u16::MAX),
            after: format!("{} {}", "o".repeat(domain::MAX_OPENID), "E".repeat(160)),
        };
        assert!(token_of(&longest).len() <= MAX_PAGE_TOKEN);
        for bad in ["x", "1", "1.0", "1.zz", "1.+1", "70000.00", "1.é", "-1.00", "1.ff"] {
            assert_eq!(cursor_of(bad), None, "{bad}");
        }
    }
}
