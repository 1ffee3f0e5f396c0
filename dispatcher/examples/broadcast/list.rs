//! Reads the files with users.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use prost::Message as _;
use serde::Deserialize;
use server::proto::{Recipient, TemplateValue};

/// Limits of one call: number of users, and bytes, well below the 4 MiB that a dispatcher accepts by default.
const CALL: (usize, usize) = (10_000, 3 << 20);

/// Reads users with their own data. Repeated users are left out; also returns their number.
pub fn recipients(file: &Path) -> Result<(Vec<Recipient>, usize), String> {
    let (mut found, mut seen, mut again) = (Vec::new(), HashSet::new(), 0);
    for (number, line) in read(file)?.lines().enumerate() {
        let line = line.trim();
        let (openid, own) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        if openid.is_empty() {
            continue;
        }
        let data = own_data(own.trim()).map_err(|error| format!("{}, line {}: {error}", file.display(), number + 1))?;
        if seen.insert(openid.to_owned()) {
            found.push(Recipient { openid: openid.to_owned(), data });
        } else {
            again += 1;
        }
    }
    Ok((found, again))
}

/// Reads users without data.
pub fn openids(file: &Path) -> Result<Vec<String>, String> {
    Ok(read(file)?.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// Splits users into parts that each fit into one call; at least one part.
pub fn parts(recipients: Vec<Recipient>) -> Vec<Vec<Recipient>> {
    let (mut parts, mut bytes) = (vec![Vec::new()], 0);
    for recipient in recipients {
        let size = recipient.encoded_len();
        let full = parts.last().is_some_and(|part| !part.is_empty() && (part.len() == CALL.0 || bytes + size > CALL.1));
        if full {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(part) = parts.last_mut() {
            part.push(recipient);
        }
    }
    parts
}

/// Splits users without data into parts.
pub fn chunks(openids: &[String]) -> impl Iterator<Item = &[String]> {
    openids.chunks(CALL.0)
}

fn read(file: &Path) -> Result<String, String> {
    std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))
}

/// A value as in WeChat's JSON, or only its text.
#[derive(Deserialize)]
#[serde(untagged, expecting = "each value must be a text, or {\"value\": text, \"color\": text}")]
enum Own {
    Text(String),
    Value {
        value: String,
        #[serde(default)]
        color: String,
    },
}

fn own_data(json: &str) -> Result<HashMap<String, TemplateValue>, String> {
    if json.is_empty() {
        return Ok(HashMap::new());
    }
    let own: HashMap<String, Own> = serde_json::from_str(json).map_err(|error| error.to_string())?;
    let value = |own| match own {
        Own::Text(value) => TemplateValue { value, color: String::new() },
        Own::Value { value, color } => TemplateValue { value, color },
    };
    Ok(own.into_iter().map(|(key, own)| (key, value(own))).collect())
}
