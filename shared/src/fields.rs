//! Checks the fields of a request and reports every bad one at once.

use std::fmt::Display;

use tonic::Code;

use crate::credential::AppId;
use crate::status::{Failure, UNKNOWN_APP};

/// Collects what is wrong with the fields of one request.
#[derive(Debug, Default)]
pub struct Fields {
    problems: Vec<(String, String)>,
}

impl Fields {
    /// Notes a problem of a field.
    pub fn refuse(&mut self, field: impl Into<String>, problem: impl Display) {
        self.problems.push((field.into(), problem.to_string()));
    }

    /// The value, or a note of what is wrong with it.
    pub fn take<T, E: Display>(&mut self, field: &str, parsed: Result<T, E>) -> Option<T> {
        parsed.map_err(|problem| self.refuse(field, problem)).ok()
    }

    /// A text within a bound of bytes and without control characters.
    pub fn text(&mut self, field: &str, text: &str, bound: usize) {
        if text.len() > bound {
            self.refuse(field, format_args!("must not be longer than {bound} bytes"));
        }
        if text.chars().any(char::is_control) {
            self.refuse(field, "must not have control characters");
        }
    }

    /// Adds the problems of others.
    pub fn extend(&mut self, others: Self) {
        self.problems.extend(others.problems);
    }

    /// Whether nothing is wrong so far.
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// The failure that names every bad field, if there is one.
    pub fn finish(self) -> Result<(), Failure> {
        if self.is_empty() {
            return Ok(());
        }
        let sentence =
            self.problems.iter().map(|(field, problem)| format!("{field} {problem}")).collect::<Vec<_>>().join("; ");
        let failure = Failure::new(Code::InvalidArgument, "INVALID_FIELDS", sentence);
        Err(self.problems.into_iter().fold(failure, |failure, (field, problem)| failure.field(field, problem)))
    }

    /// Like [`Fields::finish`], for a request of an app: what `known` tells of it, or the failure that names an app the
    /// service is not set up for beside every other bad field.
    pub fn finish_for<T>(mut self, app: Option<AppId>, known: impl FnOnce(&AppId) -> Option<T>) -> Result<T, Failure> {
        let found = app.as_ref().and_then(known);
        if app.is_some() && found.is_none() && !self.problems.is_empty() {
            self.refuse("app_id", UNKNOWN_APP);
        }
        self.finish()?;
        found.ok_or_else(Failure::unknown_app)
    }
}
