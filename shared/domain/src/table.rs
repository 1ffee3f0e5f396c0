//! Reads TOML tables. They are walked by hand instead of deserialized, so that all errors are reported together, and so
//! that no error quotes a value or a key that may be a secret.

use std::fmt::Display;

use toml::{Table, Value};

use crate::config_errors::ConfigErrors;

impl ConfigErrors {
    /// Returns the entries of the only table that a file may have at its top level. `file` is how error texts call the
    /// file, `entries` is how they call the entries.
    pub fn only_table<'a>(&mut self, file: &str, top: &'a Table, name: &str, entries: &str) -> Option<&'a Table> {
        for key in top.keys().filter(|key| *key != name) {
            self.add(format!("{file} has {}: only {entries} are known", quoted(key)));
        }
        let table = top.get(name).and_then(Value::as_table).filter(|table| !table.is_empty());
        if table.is_none() {
            self.add(format!("{file} has no {entries}: it needs at least one"));
        }
        table
    }
}

pub struct TableReader<'a> {
    place: String,
    table: &'a Table,
    errors: &'a mut ConfigErrors,
}

impl<'a> TableReader<'a> {
    /// Adds an error if the value is not a table, and for each key that is not one of `known`. `place` is how error
    /// texts call the table.
    pub fn new(place: String, value: &'a Value, known: &[&str], errors: &'a mut ConfigErrors) -> Option<Self> {
        let Some(table) = value.as_table() else {
            errors.add(format!("{place} must be a table"));
            return None;
        };
        let mut reader = Self { place, table, errors };
        for key in table.keys().filter(|key| !known.contains(&key.as_str())) {
            reader.wrong(format_args!("{} is not known; known are {}", quoted(key), known.join(", ")));
        }
        Some(reader)
    }

    pub fn wrong(&mut self, sentence: impl Display) {
        self.errors.add(format!("{}: {sentence}", self.place));
    }

    pub fn wrong_key(&mut self, key: &str, sentence: impl Display) {
        self.errors.add(format!("{} {key}: {sentence}", self.place));
    }

    /// Adds an error that quotes the value of a key, which must not be a secret.
    pub fn wrong_value(&mut self, key: &str, value: &str, error: impl Display) {
        self.errors.add(format!("{} {key} is {value:?}: {error}", self.place));
    }

    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.table.get(key)
    }

    /// Returns a string, or `None` if it is not given or not a string.
    pub fn text(&mut self, key: &str) -> Option<&'a str> {
        let value = self.get(key)?;
        if !value.is_str() {
            self.wrong_key(key, format_args!("must be a string, but is of type {}", value.type_str()));
        }
        value.as_str()
    }

    /// Parses a value that has a default, which is also returned after an error. `expected` ends the sentence "must be".
    pub fn parsed<T>(&mut self, key: &str, default: T, expected: &str, parse: impl Fn(&'a Value) -> Option<T>) -> T {
        let Some(value) = self.get(key) else { return default };
        parse(value).unwrap_or_else(|| {
            self.wrong_key(key, format_args!("must be {expected}"));
            default
        })
    }
}

/// Quotes a key in an error, unless it looks like a misplaced secret.
fn quoted(key: &str) -> String {
    let harmless =
        key.len() <= 24 && key.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_' || byte == b'-');
    if harmless { format!("the key {key}") } else { "a key".into() }
}
