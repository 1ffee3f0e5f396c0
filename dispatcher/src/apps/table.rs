//! One `[apps.APP_ID]` table.

use std::time::Duration;

use reqwest::Url;
use shared::credential::AppId;
use shared::settings::Problems;
use toml::{Table, Value};

use super::{App, Secret, TokenEndpoint};

const BASE_URL: &str = "https://api.weixin.qq.com";
const CONNECT_TIMEOUT: &str = "2s";
const TIMEOUT: &str = "5s";
const KEYS: [&str; 6] = ["secret", "secret_file", "base_url", "connect_timeout", "timeout", "token"];

/// Reads one table. Goes on after a problem, to find them all.
pub(super) fn app(id: &str, value: &Value, problems: &mut Problems) -> Option<App> {
    let place = format!("[apps.{id}]");
    let Value::Table(table) = value else {
        problems.add(format!("{place} must be a table"));
        return None;
    };
    let mut reader = Reader { place, table, problems, sound: true };
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
    let token_endpoint = match reader.text("token") {
        Ok(None | Some("stable_token")) => Some(TokenEndpoint::Stable),
        Ok(Some("token")) => Some(TokenEndpoint::Plain),
        Ok(Some(_)) => reader.wrong("token", "must be \"stable_token\" or \"token\""),
        Err(Reported) => None,
    };
    if timeout.zip(connect_timeout).is_some_and(|(whole, connect)| whole < connect) {
        reader.wrong::<()>("timeout", "must not be less than connect_timeout: it is the time of the whole call");
    }
    let sound = reader.sound;
    let app = App {
        id: id?,
        secret: secret?,
        base_url: base_url?,
        connect_timeout: connect_timeout?,
        timeout: timeout?,
        token_endpoint: token_endpoint?,
    };
    sound.then_some(app)
}

/// The problem is noted already.
struct Reported;

struct Reader<'a> {
    place: String,
    table: &'a Table,
    problems: &'a mut Problems,
    sound: bool,
}

impl<'a> Reader<'a> {
    fn wrong<T>(&mut self, key: &str, sentence: &str) -> Option<T> {
        let gap = if key.is_empty() { "" } else { " " };
        self.problems.add(format!("{}{gap}{key}: {sentence}", self.place));
        self.sound = false;
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

    fn secret(&mut self) -> Option<Secret> {
        let (secret, file) = (self.text("secret"), self.text("secret_file"));
        match (secret.ok()?, file.ok()?) {
            (Some(text), None) => match Secret::parse(text) {
                None => self.wrong("secret", "must be visible ASCII characters, and at least one"),
                secret => secret,
            },
            (None, Some(path)) => match std::fs::read_to_string(path).map(|text| Secret::parse(&text)) {
                Ok(Some(secret)) => Some(secret),
                Ok(None) => self.wrong("secret_file", "the file must hold visible ASCII characters, and at least one"),
                Err(error) => self.wrong("secret_file", &format!("{path:?} cannot be read: {error}")),
            },
            (Some(_), Some(_)) => self.wrong("", "has both secret and secret_file: give one of them"),
            (None, None) => self.wrong("", "has no secret: give secret or secret_file"),
        }
    }

    /// The URL is not quoted in a problem: it may carry a password.
    fn base_url(&mut self) -> Option<Url> {
        let text = self.text("base_url").ok()?.unwrap_or(BASE_URL);
        let url = match Url::parse(text) {
            Ok(url) => url,
            Err(error) => return self.wrong("base_url", &format!("is no URL: {error}")),
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

    fn duration(&mut self, key: &str, default: &str) -> Option<Duration> {
        let text = self.text(key).ok()?.unwrap_or(default);
        match self.problems.duration(&format!("{} {key}", self.place), text) {
            Some(Duration::ZERO) => self.wrong(key, "must be more than zero"),
            None => {
                self.sound = false;
                None
            }
            duration => duration,
        }
    }
}

/// A key for a sentence, unless it looks like a secret that got into the wrong place.
pub(super) fn quoted(key: &str) -> String {
    let harmless =
        key.len() <= 24 && key.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_' || byte == b'-');
    if harmless { format!("the key {key}") } else { "a key".into() }
}
