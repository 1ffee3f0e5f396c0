//! Collects configuration errors in flags and in the files that they name, and reports them together. Each error names
//! the flag or the line, and quotes no secret.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

/// The longest duration that can be configured. Durations are added to times and sent to Redis as numbers; up to this
/// bound, none of that overflows.
pub const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// The configuration errors so far, one sentence each.
#[derive(Debug, Default)]
pub struct ConfigErrors(Vec<String>);

impl ConfigErrors {
    /// Adds an error.
    pub fn add(&mut self, problem: impl Into<String>) {
        self.0.push(problem.into());
    }

    /// Parses a TOML file that may contain secrets. `file` is how error texts call the file.
    pub fn toml(&mut self, file: &str, text: &str) -> Option<toml::Table> {
        match toml::from_str(text) {
            Ok(table) => Some(table),
            Err(error) => {
                // The full error text quotes the line, which may contain a secret.
                let start = error.span().map_or(0, |span| span.start).min(text.len());
                let line = text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count() + 1;
                self.add(format!("{file}, line {line}: {}", error.message()));
                None
            }
        }
    }

    /// Parses the value of a flag.
    pub fn read<T: FromStr<Err: Display>>(&mut self, flag: &str, text: &str) -> Option<T> {
        self.keep(flag, text, text.parse::<T>())
    }

    /// Parses a duration with its unit. The maximum is [`LONGEST`].
    pub fn duration(&mut self, flag: &str, text: &str) -> Option<Duration> {
        let duration = self.keep(flag, text, humantime::parse_duration(text))?;
        if duration > LONGEST {
            self.add(format!("{flag} is {text:?}, but must be at most 365 days"));
            return None;
        }
        Some(duration)
    }

    /// Parses a number that must be within a range.
    pub fn within(&mut self, flag: &str, text: &str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let number = self.read::<u64>(flag, text)?;
        if range.contains(&number) {
            return Some(number);
        }
        self.add(format!("{flag} is {number}, but must be between {} and {}", range.start(), range.end()));
        None
    }

    /// Returns the parsed value of a flag, or adds the error.
    pub fn keep<T, E: Display>(&mut self, flag: &str, text: &str, parsed: Result<T, E>) -> Option<T> {
        parsed.map_err(|error| self.add(format!("{flag} is {text:?}: {error}"))).ok()
    }

    /// Returns all errors, if there are any.
    pub fn finish(self) -> Result<(), SettingsError> {
        if self.0.is_empty() { Ok(()) } else { Err(SettingsError(self.0)) }
    }
}

/// All errors in the settings.
#[derive(Debug, PartialEq, Eq)]
pub struct SettingsError(pub Vec<String>);

impl Display for SettingsError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "the settings are not usable:")?;
        self.0.iter().try_for_each(|problem| write!(out, "\n  {problem}"))
    }
}

impl std::error::Error for SettingsError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_that_could_overflow_a_time_are_refused() {
        for (text, sound) in [("365d", true), ("0s", true), ("365d 1ns", false), ("584542046090y", false)] {
            let mut problems = ConfigErrors::default();
            assert_eq!(problems.duration("--lease", text).is_some(), sound, "{text}");
            assert_eq!(problems.finish().is_ok(), sound, "{text}");
        }
    }
}
