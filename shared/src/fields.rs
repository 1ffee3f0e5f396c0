//! Checks the fields of a request and reports the bad ones at once: the first of them by name, and how many more there
//! are. A request of a few megabytes can have hundreds of thousands.

use std::fmt::{Display, Write as _};

use tonic::Code;

use crate::credential::AppId;
use crate::status::{Failure, MAX_FIELDS, UNKNOWN_APP};

/// How long the sentence of the failure grows, in bytes, before it only counts what is left.
const SENTENCE: usize = 600;

/// Collects what is wrong with the fields of one request: what there is room for in an error, and how much more.
#[derive(Debug, Default)]
pub struct Fields {
    problems: Vec<(String, String)>,
    /// How many more there are.
    more: usize,
}

impl Fields {
    /// Notes a problem of a field.
    pub fn refuse(&mut self, field: impl Into<String>, problem: impl Display) {
        if self.problems.len() < MAX_FIELDS {
            self.problems.push((field.into(), problem.to_string()));
        } else {
            self.more += 1;
        }
    }

    /// The value, or a note of what is wrong with it.
    pub fn take<T, E: Display>(&mut self, field: &str, parsed: Result<T, E>) -> Option<T> {
        parsed.map_err(|problem| self.refuse(field, problem)).ok()
    }

    /// Whether a text is within a bound of bytes; a note if it is not. What looks at every character comes after this.
    pub fn fits(&mut self, field: &str, text: &str, bound: usize) -> bool {
        let fits = text.len() <= bound;
        if !fits {
            self.refuse(field, format_args!("must not be longer than {bound} bytes"));
        }
        fits
    }

    /// A text within a bound of bytes and without control characters.
    pub fn text(&mut self, field: &str, text: &str, bound: usize) {
        if self.fits(field, text, bound) && text.chars().any(char::is_control) {
            self.refuse(field, "must not have control characters");
        }
    }

    /// Adds the problems of others.
    pub fn extend(&mut self, others: Self) {
        others.problems.into_iter().for_each(|(field, problem)| self.refuse(field, problem));
        self.more += others.more;
    }

    /// Whether nothing is wrong so far.
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// The failure that names the bad fields, if there is one.
    pub fn finish(self) -> Result<(), Failure> {
        if self.is_empty() {
            return Ok(());
        }
        let failure = Failure::new(Code::InvalidArgument, "INVALID_FIELDS", self.sentence()).more_fields(self.more);
        Err(self.problems.into_iter().fold(failure, |failure, (field, problem)| failure.field(field, problem)))
    }

    fn sentence(&self) -> String {
        let (mut sentence, mut told) = (String::new(), 0);
        for (field, problem) in &self.problems {
            if told > 0 {
                if sentence.len() + field.len() + problem.len() > SENTENCE {
                    break;
                }
                sentence.push_str("; ");
            }
            told += 1;
            // To write into a string cannot fail.
            let _ = write!(sentence, "{field} {problem}");
        }
        match self.problems.len() + self.more - told {
            0 => sentence,
            more => sentence + &format!("; and {more} more"),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_problems_the_first_are_named_and_the_others_counted() {
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
    fn a_text_that_is_too_long_is_refused_for_that_alone() {
        let mut fields = Fields::default();
        fields.text("page", &"\u{7}".repeat(5), 4);
        assert_eq!(fields.sentence(), "page must not be longer than 4 bytes");
    }
}
