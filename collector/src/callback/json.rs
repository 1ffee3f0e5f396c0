//! Parses JSON into a tree of fields. If a name occurs twice, the last occurrence counts.

use serde_json::{Map, Value};

use super::Fault;

/// Parses a body that begins with `{`. serde_json refuses nesting deeper than 128.
pub(super) fn tree(text: &str) -> Result<Map<String, Value>, Fault> {
    // The error's own text is dropped, because it may quote the body.
    serde_json::from_str(text).map_err(|error| Fault::NotJson { line: error.line(), column: error.column() })
}
