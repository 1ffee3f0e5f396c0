//! JSON becomes a tree of fields. Where a name stands twice, the last one counts.

use serde_json::{Map, Value};

use super::Fault;

/// The fields of a body that begins with `{`. serde_json refuses what is more than 128 deep.
pub(super) fn tree(text: &str) -> Result<Map<String, Value>, Fault> {
    // Without the error's own words: they may quote the body.
    serde_json::from_str(text).map_err(|error| Fault::NotJson { line: error.line(), column: error.column() })
}
