//! Checks the fields of a request and reports the invalid ones together. A request of a few megabytes can have hundreds
//! of thousands of invalid fields, so only the first are named and the others are counted.

use std::fmt::{Display, Write as _};

use crate::rpc::reason::Reason;
use crate::rpc::status::{Failure, MAX_FIELDS, UNKNOWN_APP};
use domain::AppId;

/// The length of the error message, in bytes, beyond which further fields are only counted.
const SENTENCE: usize = 600;

/// Collects the errors in the fields of one request. Keeps as many as fit into a status and counts the others.
#[derive(Debug, Default)]
pub struct Fields {
    problems: Vec<(String, String)>,
    /// The number of errors that are not in `problems`.
    more: usize,
}

impl Fields {
    pub fn refuse(&mut self, field: impl Into<String>, problem: impl Display) {
        if self.problems.len() < MAX_FIELDS {
            self.problems.push((field.into(), problem.to_string()));
        } else {
            self.more += 1;
        }
    }

    /// Returns the parsed value, or adds the error and returns `None`.
    pub fn take<T, E: Display>(&mut self, field: &str, parsed: Result<T, E>) -> Option<T> {
        parsed.map_err(|problem| self.refuse(field, problem)).ok()
    }

    /// Returns whether a text has at most `bound` bytes, and adds an error if not. Checks that look at each character
    /// come after this check.
    pub fn fits(&mut self, field: &str, text: &str, bound: usize) -> bool {
        let fits = text.len() <= bound;
        if !fits {
            self.refuse(field, format_args!("must not be longer than {bound} bytes"));
        }
        fits
    }

    /// Checks that a text has at most `bound` bytes and no control characters.
    pub fn text(&mut self, field: &str, text: &str, bound: usize) {
        if self.fits(field, text, bound) && text.chars().any(char::is_control) {
            self.refuse(field, "must not have control characters");
        }
    }

    pub fn extend(&mut self, others: Self) {
        others.problems.into_iter().for_each(|(field, problem)| self.refuse(field, problem));
        self.more += others.more;
    }

    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// The first error: the field and the problem.
    pub fn first(&self) -> Option<&(String, String)> {
        self.problems.first()
    }

    /// Returns the failure that names the invalid fields, if there are any.
    pub fn finish(self) -> Result<(), Failure> {
        if self.is_empty() {
            return Ok(());
        }
        let failure = Failure::new(Reason::INVALID_FIELDS, self.sentence()).more_fields(self.more);
        Err(self.problems.into_iter().fold(failure, |failure, (field, problem)| failure.field(field, problem)))
    }

    fn sentence(&self) -> String {
        let (mut sentence, mut named) = (String::new(), 0);
        for (field, problem) in &self.problems {
            if named > 0 {
                if sentence.len() + field.len() + problem.len() > SENTENCE {
                    break;
                }
                sentence.push_str("; ");
            }
            named += 1;
            // Writing into a string cannot fail.
            let _ = write!(sentence, "{field} {problem}");
        }
        match self.problems.len() + self.more - named {
            0 => sentence,
            more => sentence + &format!("; and {more} more"),
        }
    }

    /// Like [`Fields::finish`], for a request that names an app. `known` looks the app up. If the service is not
    /// configured for the app, the failure names the app next to every other invalid field.
    pub fn finish_for<T>(mut self, app: Option<AppId>, known: impl FnOnce(&AppId) -> Option<T>) -> Result<T, Failure> {
        let found = app.as_ref().and_then(known);
        if app.is_some() && found.is_none() && !self.problems.is_empty() {
            self.refuse("app_id", UNKNOWN_APP);
        }
        self.finish()?;
        found.ok_or_else(Failure::unknown_app)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_errors_are_named_and_the_others_are_counted() {
        let mut fields = Fields::default();
        (0..300_000).for_each(|at| fields.refuse(format!("recipients.list[{at}].openid"), "must not be empty"));
        let mut others = Fields::default();
        (0..100).for_each(|at| others.refuse(format!("exclude[{at}]"), "must not be empty"));
        fields.extend(others);
        assert_eq!((fields.problems.len(), fields.more), (MAX_FIELDS, 300_100 - MAX_FIELDS));
        let sentence = fields.sentence();
        let (named, more) = sentence.rsplit_once("; and ").unwrap();
        let named = named.split("; ").count();
        assert!(named > 5 && sentence.len() < SENTENCE + 50, "{sentence}");
        assert_eq!(more, format!("{} more", 300_100 - named));
    }

    #[test]
    fn too_long_text_is_refused_only_for_its_length() {
        let mut fields = Fields::default();
        fields.text("page", &"\u{7}".repeat(5), 4);
        assert_eq!(fields.sentence(), "page must not be longer than 4 bytes");
    }
}
