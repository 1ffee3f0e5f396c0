//! Parses one `[apps.APP_ID]` table.

use std::time::Duration;

use domain::config_errors::ConfigErrors;
use domain::{AppId, Kind};
use reqwest::Url;
use store::broadcast::permits::Bounds;
use store::eligibility::Kinds;
use toml::{Table, Value};

use crate::app::{App, Secret, TokenEndpoint};
use crate::wechat::message::Delivery;

const BASE_URL: &str = "https://api.weixin.qq.com";
const CONNECT_TIMEOUT: &str = "2s";
const TIMEOUT: &str = "5s";
const RESERVED_FOR_SENDS: f64 = 0.2;
const KEYS: [&str; 11] = [
    "secret",
    "secret_file",
    "base_url",
    "connect_timeout",
    "timeout",
    "token",
    "delivery",
    "daily_quota",
    "messages_per_second",
    "reserved_for_sends",
    "broadcast_credentials",
];

/// Parses one table. Continues after an error, to report all of them.
pub(super) fn app(id: &str, value: &Value, problems: &mut ConfigErrors) -> Option<App> {
    let table_name = format!("[apps.{id}]");
    let Value::Table(table) = value else {
        problems.add(format!("{table_name} must be a table"));
        return None;
    };
    let mut reader = Reader { table_name, table, problems, valid: true };
    let id = match AppId::parse(id) {
        Ok(id) => Some(id),
        Err(error) => reader.wrong("", &format!("the app id {error}")),
    };
    for key in table.keys().filter(|key| !KEYS.contains(&key.as_str())) {
        reader.wrong::<()>("", &format!("{} is not known; known are {}", quoted(key), KEYS.join(", ")));
    }
    let secret = reader.secret();
    let base_url = reader.base_url();
    let connect_timeout = reader.duration("connect_timeout", CONNECT_TIMEOUT);
    let timeout = reader.duration("timeout", TIMEOUT);
    let token_endpoint =
        reader.choice("token", [("stable_token", TokenEndpoint::Stable), ("token", TokenEndpoint::Plain)]);
    let delivery = reader.choice("delivery", Delivery::ALL.map(|delivery| (delivery.name(), delivery)));
    let bounds = reader.bounds(delivery.unwrap_or_default());
    let broadcast_kinds = reader.broadcast_kinds();
    if timeout.zip(connect_timeout).is_some_and(|(whole, connect)| whole < connect) {
        reader.wrong::<()>("timeout", "must not be less than connect_timeout: it is the time of the whole call");
    }
    let valid = reader.valid;
    let app = App {
        id: id?,
        secret: secret?,
        base_url: base_url?,
        connect_timeout: connect_timeout?,
        timeout: timeout?,
        token_endpoint: token_endpoint?,
        delivery: delivery?,
        bounds: bounds?,
        broadcast_kinds: broadcast_kinds?,
    };
    valid.then_some(app)
}

/// The error has been reported already.
struct Reported;

struct Reader<'a> {
    table_name: String,
    table: &'a Table,
    problems: &'a mut ConfigErrors,
    valid: bool,
}

impl<'a> Reader<'a> {
    fn wrong<T>(&mut self, key: &str, sentence: &str) -> Option<T> {
        let gap = if key.is_empty() { "" } else { " " };
        self.problems.add(format!("{}{gap}{key}: {sentence}", self.table_name));
        self.valid = false;
        None
    }

    fn text(&mut self, key: &str) -> Result<Option<&'a str>, Reported> {
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => {
                self.wrong::<()>(key, &format!("must be a string, but is of type {}", other.type_str()));
                Err(Reported)
            }
        }
    }

    /// One of two values. The first is the default.
    fn choice<T: Copy>(&mut self, key: &str, [first, second]: [(&str, T); 2]) -> Option<T> {
        match self.text(key).ok()? {
            None => Some(first.1),
            Some(name) if name == first.0 => Some(first.1),
            Some(name) if name == second.0 => Some(second.1),
            Some(_) => self.wrong(key, &format!("must be {:?} or {:?}", first.0, second.0)),
        }
    }

    fn secret(&mut self) -> Option<Secret> {
        let (secret, file) = (self.text("secret"), self.text("secret_file"));
        match (secret.ok()?, file.ok()?) {
            (Some(text), None) => match Secret::parse(text) {
                None => self.wrong("secret", "must be one or more visible ASCII characters"),
                secret => secret,
            },
            (None, Some(path)) => match std::fs::read_to_string(path).map(|text| Secret::parse(&text)) {
                Ok(Some(secret)) => Some(secret),
                Ok(None) => self.wrong("secret_file", "the file must contain one or more visible ASCII characters"),
                Err(error) => self.wrong("secret_file", &format!("{path:?} cannot be read: {error}")),
            },
            (Some(_), Some(_)) => self.wrong("", "has both secret and secret_file: give one of them"),
            (None, None) => self.wrong("", "has no secret: give secret or secret_file"),
        }
    }

    /// Errors do not quote the URL: it may contain a password.
    fn base_url(&mut self) -> Option<Url> {
        let text = self.text("base_url").ok()?.unwrap_or(BASE_URL);
        let url = match Url::parse(text) {
            Ok(url) => url,
            Err(error) => return self.wrong("base_url", &format!("is not a URL: {error}")),
        };
        if !matches!(url.scheme(), "http" | "https") {
            self.wrong("base_url", "must begin with https:// or http://")
        } else if !url.username().is_empty() || url.password().is_some() {
            self.wrong("base_url", "must not have a user or a password")
        } else if url.query().is_some() || url.fragment().is_some() {
            self.wrong("base_url", "must end before any '?' or '#': the paths of the API are appended to it")
        } else {
            Some(url)
        }
    }

    fn number(&mut self, key: &str, default: i64, most: i64) -> Option<i64> {
        match self.table.get(key) {
            None => Some(default),
            Some(Value::Integer(number)) if (0..=most).contains(number) => Some(*number),
            Some(_) => self.wrong(key, &format!("must be a whole number from 0 to {most}")),
        }
    }

    fn bounds(&mut self, delivery: Delivery) -> Option<Bounds> {
        let daily_quota = self.number("daily_quota", delivery.published_quota().cast_signed(), i64::MAX);
        let rate = self.number("messages_per_second", 0, 1_000_000);
        let reserved = match self.table.get("reserved_for_sends") {
            None => Some(RESERVED_FOR_SENDS),
            Some(Value::Float(part)) if (0.0..1.0).contains(part) => Some(*part),
            Some(Value::Integer(0)) => Some(0.0),
            Some(_) => self.wrong("reserved_for_sends", "must be a part of all, from 0 to less than 1, such as 0.2"),
        };
        let (rate, broadcast_share) = (rate? as u32, ((1.0 - reserved?) * 1000.0).round());
        let broadcast_rate = if rate == 0 { 0 } else { (f64::from(rate) * broadcast_share / 1000.0).max(1.0) as u32 };
        Some(Bounds {
            app_rate: rate,
            broadcast_rate,
            daily_quota: daily_quota? as u64,
            broadcast_share: broadcast_share as u32,
        })
    }

    fn broadcast_kinds(&mut self) -> Option<Kinds> {
        let Some(value) = self.table.get("broadcast_credentials") else { return Some(Kinds::IDS) };
        let names = value.as_array().map(Vec::as_slice).unwrap_or_default().iter();
        let kinds: Option<Vec<Kind>> = names
            .map(|name| match name.as_str() {
                Some("form_id") => Some(Kind::FormId),
                Some("prepay_id") => Some(Kind::PrepayId),
                _ => None,
            })
            .collect();
        match kinds {
            Some(kinds) if !kinds.is_empty() => Some(kinds.into_iter().collect()),
            _ => self.wrong("broadcast_credentials", "must be a list of \"form_id\", \"prepay_id\" or both"),
        }
    }

    fn duration(&mut self, key: &str, default: &str) -> Option<Duration> {
        let text = self.text(key).ok()?.unwrap_or(default);
        match self.problems.duration(&format!("{} {key}", self.table_name), text) {
            Some(Duration::ZERO) => self.wrong(key, "must be more than zero"),
            None => {
                self.valid = false;
                None
            }
            duration => duration,
        }
    }
}

/// Quotes a key in an error, unless it looks like a misplaced secret.
pub(super) fn quoted(key: &str) -> String {
    let harmless =
        key.len() <= 24 && key.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_' || byte == b'-');
    if harmless { format!("the key {key}") } else { "a key".into() }
}
