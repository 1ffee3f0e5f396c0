//! Collects configuration errors in flags and in the files that they name, and reports them together. Each error names
//! the flag or the line, and quotes no secret.

use std::fmt::Display;

use crate::setting::Setting;

/// The configuration errors so far, one sentence each.
#[derive(Debug, Default)]
pub struct ConfigErrors(Vec<String>);

impl ConfigErrors {
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

    /// Returns the value of a flag; adds the error if it is invalid.
    pub fn take<T: Clone>(&mut self, setting: &Setting<T>) -> T {
        self.0.extend(setting.error.clone());
        setting.value.clone()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the value that was read, or all errors. If it is `None`, an error must have been added.
    pub fn finish<T>(self, read: Option<T>) -> Result<T, SettingsError> {
        match read {
            Some(read) if self.0.is_empty() => Ok(read),
            _ => Err(SettingsError(self.0)),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct SettingsError(pub Vec<String>);

impl Display for SettingsError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "the settings are not usable:")?;
        self.0.iter().try_for_each(|problem| write!(out, "\n  {problem}"))
    }
}

impl std::error::Error for SettingsError {}
