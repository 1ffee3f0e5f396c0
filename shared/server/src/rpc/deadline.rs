//! The deadline of a call. It is answered with DEADLINE_EXCEEDED; tonic's own server, which is not used here, answers
//! CANCELLED, which clients mistake for a cancellation of their own.

use std::time::Duration;

use http::HeaderMap;

/// Returns the timeout that the caller set for the call, if any.
pub(crate) fn of(headers: &HeaderMap) -> Option<Duration> {
    headers.get("grpc-timeout").and_then(|value| parse(value.to_str().ok()?))
}

/// Parses a `grpc-timeout` value: up to eight digits and a unit.
fn parse(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_parsed_as_specified() {
        assert_eq!(parse("2S"), Some(Duration::from_secs(2)));
        assert_eq!(parse("99999999m"), Some(Duration::from_millis(99_999_999)));
        for bad in ["", "S", "2", "123456789S", "2s", "+2S", "-1S"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
