//! Value parsers for flags. clap stops at the first value that it cannot parse. These parsers never fail, so that all
//! invalid values are reported together.

use std::ffi::OsStr;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{StringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, Command, Error};

/// The longest duration that can be configured. Durations are added to times and sent to Redis as numbers; up to this
/// bound, none of that overflows.
pub const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// The parsed value of a flag. [`ConfigErrors::take`](crate::config_errors::ConfigErrors::take) returns it.
#[derive(Debug, Clone)]
pub struct Setting<T> {
    /// If the given value is invalid: the default of the flag, so that the other settings can be checked.
    pub(crate) value: T,
    pub(crate) error: Option<String>,
}

/// Makes a value parser from a function. Errors name the flag, and quote the value unless the help hides it.
pub fn setting<T, E>(
    parse: impl Fn(&str) -> Result<T, E> + Clone + Send + Sync + 'static,
) -> impl TypedValueParser<Value = Setting<T>>
where
    T: Clone + Send + Sync + 'static,
    E: Display + 'static,
{
    Parser(move |text: &str| parse(text).map_err(|error| error.to_string()))
}

/// Like [`setting`]; an empty text means that the flag is not given.
pub fn optional<T, E>(
    parse: impl Fn(&str) -> Result<T, E> + Clone + Send + Sync + 'static,
) -> impl TypedValueParser<Value = Setting<Option<T>>>
where
    T: Clone + Send + Sync + 'static,
    E: Display + 'static,
{
    setting(move |text: &str| if text.is_empty() { Ok(None) } else { parse(text).map(Some) })
}

pub fn number<T>(range: RangeInclusive<T>) -> impl TypedValueParser<Value = Setting<T>>
where
    T: FromStr + PartialOrd + Display + Clone + Send + Sync + 'static,
{
    setting(move |text: &str| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("must be a number from {} to {}", range.start(), range.end()))
    })
}

/// Parses a duration with its unit, up to [`LONGEST`].
pub fn duration() -> impl TypedValueParser<Value = Setting<Duration>> {
    duration_within(Duration::ZERO..=LONGEST)
}

pub fn duration_within(range: RangeInclusive<Duration>) -> impl TypedValueParser<Value = Setting<Duration>> {
    setting(move |text: &str| parse_duration(text, &range))
}

/// Parses a duration with its unit, within a range whose end is a number of days.
pub fn parse_duration(text: &str, range: &RangeInclusive<Duration>) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration < *range.start() => Err(format!("must be at least {:?}", range.start())),
        Ok(duration) if duration > *range.end() => {
            Err(format!("must be at most {} days", range.end().as_secs() / 86400))
        }
        Ok(duration) => Ok(duration),
        Err(error) => Err(error.to_string()),
    }
}

#[derive(Clone)]
struct Parser<F>(F);

impl<T, F> TypedValueParser for Parser<F>
where
    T: Clone + Send + Sync + 'static,
    F: Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static,
{
    type Value = Setting<T>;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<Setting<T>, Error> {
        let text = StringValueParser::new().parse_ref(command, arg, value)?;
        let error = match (self.0)(&text) {
            Ok(value) => return Ok(Setting { value, error: None }),
            Err(error) => error,
        };
        let default = arg.and_then(|arg| arg.get_default_values().first()).and_then(|default| default.to_str());
        let value = default.and_then(|default| (self.0)(default).ok());
        let (Some(value), Some(arg)) = (value, arg) else { return Err(Error::raw(ErrorKind::ValueValidation, error)) };
        let flag = arg.get_long().unwrap_or_default();
        let quoted = if arg.is_hide_env_values_set() { String::new() } else { format!(" is {text:?}") };
        Ok(Setting { value, error: Some(format!("--{flag}{quoted}: {error}")) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_that_could_overflow_a_time_are_refused() {
        for (text, sound) in [("365d", true), ("0s", true), ("365d 1ns", false), ("584542046090y", false)] {
            assert_eq!(parse_duration(text, &(Duration::ZERO..=LONGEST)).is_ok(), sound, "{text}");
        }
    }
}
