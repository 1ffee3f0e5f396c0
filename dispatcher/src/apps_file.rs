//! The apps file: the mini programs that this service sends for, their secrets, and the base URL of WeChat's API for
//! each.
//!
//! ```toml
//! [apps.wx0123456789abcdef]
//! secret_file = "/run/secrets/wx0123456789abcdef"  # or secret = "..."; the file's content is trimmed
//! base_url = "https://api.weixin.qq.com"           # from here on: the defaults
//! connect_timeout = "2s"
//! timeout = "5s"                                   # of a whole call
//! token = "stable_token"                           # or "token", for a gateway that has only the older endpoint
//! delivery = "form_id"                             # or "subscription"; a call may override it
//! daily_quota = 1000000                            # messages a day, unless WeChat reports it; subscription: 10000000
//! messages_per_second = 0                          # of all replicas together; 0 is unlimited
//! reserved_for_sends = 0.2                         # the part of both that broadcasts must not use
//! broadcast_credentials = ["form_id", "prepay_id"] # kinds that broadcasts of template messages may spend
//! ```
//!
//! The file is walked by hand instead of deserialized, so that all errors are reported together, and so that no error
//! quotes a value that may be a secret. It is read once, at startup.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
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

/// All apps of the file; at least one.
#[derive(Debug, Clone)]
pub struct Apps(BTreeMap<AppId, Arc<App>>);

impl Apps {
    /// Reads the apps file. Returns `None` if there are errors, and adds all of them to `problems`.
    pub fn read(path: &Path, problems: &mut ConfigErrors) -> Option<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, problems),
            Err(error) => {
                problems.add(format!("the apps file {} cannot be read: {error}", path.display()));
                None
            }
        }
    }

    /// Like [`Apps::read`], from the text of the file. Relative paths in it start at the working directory.
    pub fn parse(text: &str, problems: &mut ConfigErrors) -> Option<Self> {
        let file = problems.toml("the apps file", text)?;
        let mut valid = true;
        for key in file.keys().filter(|key| *key != "apps") {
            problems.add(format!("the apps file has {}: only [apps.APP_ID] tables are known", quoted(key)));
            valid = false;
        }
        let Some(Value::Table(tables)) = file.get("apps") else {
            problems.add("the apps file has no app: it needs an [apps.APP_ID] table for each");
            return None;
        };
        if tables.is_empty() {
            problems.add("the apps file has no app: it needs an [apps.APP_ID] table for each");
        }
        let mut apps = BTreeMap::new();
        for (id, value) in tables {
            if let Some(app) = app(id, value, problems) {
                apps.insert(app.id.clone(), Arc::new(app));
            }
        }
        (valid && !apps.is_empty() && apps.len() == tables.len()).then_some(Self(apps))
    }

    /// Returns an app; `None` if it is not configured.
    pub fn get(&self, id: &AppId) -> Option<&Arc<App>> {
        self.0.get(id)
    }

    /// All apps, sorted by app id.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<App>> {
        self.0.values()
    }
}

/// Parses one table. Continues after an error, to report all of them.
fn app(id: &str, value: &Value, problems: &mut ConfigErrors) -> Option<App> {
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
    let token_endpoint = match reader.text("token") {
        Ok(None | Some("stable_token")) => Some(TokenEndpoint::Stable),
        Ok(Some("token")) => Some(TokenEndpoint::Plain),
        Ok(Some(_)) => reader.wrong("token", "must be \"stable_token\" or \"token\""),
        Err(Reported) => None,
    };
    let delivery = match reader.text("delivery") {
        Ok(None | Some("form_id")) => Some(Delivery::FormId),
        Ok(Some("subscription")) => Some(Delivery::Subscription),
        Ok(Some(_)) => reader.wrong("delivery", "must be \"form_id\" or \"subscription\""),
        Err(Reported) => None,
    };
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
fn quoted(key: &str) -> String {
    let harmless =
        key.len() <= 24 && key.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_' || byte == b'-');
    if harmless { format!("the key {key}") } else { "a key".into() }
}

#[cfg(test)]
mod tests {
    use domain::Kind;
    use domain::config_errors::SettingsError;

    use super::*;

    fn parse(text: &str) -> Result<Apps, Vec<String>> {
        let mut problems = ConfigErrors::default();
        let apps = Apps::parse(text, &mut problems);
        match problems.finish() {
            Ok(()) => Ok(apps.expect("neither apps nor problems")),
            Err(SettingsError(problems)) => {
                assert!(apps.is_none(), "apps although there are problems: {problems:?}");
                Err(problems)
            }
        }
    }

    #[test]
    fn only_the_secret_is_required() {
        let apps = parse("[apps.wx1]\nsecret = 's3'").unwrap();
        let app = apps.get(&AppId::parse("wx1").unwrap()).unwrap();
        assert_eq!((app.base_url.as_str(), app.secret.reveal()), ("https://api.weixin.qq.com/", "s3"));
        assert_eq!((app.connect_timeout, app.timeout), (Duration::from_secs(2), Duration::from_secs(5)));
        assert_eq!(app.token_endpoint, TokenEndpoint::Stable);
        assert_eq!((app.bounds.daily_quota, app.bounds.app_rate, app.bounds.broadcast_share), (1_000_000, 0, 800));
        assert_eq!((app.broadcast_kinds, app.delivery), (Kinds::IDS, Delivery::FormId));
        assert!(apps.get(&AppId::parse("wx2").unwrap()).is_none());
    }

    #[test]
    fn all_keys_can_be_set_and_the_secret_file_is_trimmed() {
        let folder = tempfile::tempdir().unwrap();
        let (secret, file) = (folder.path().join("secret"), folder.path().join("apps.toml"));
        std::fs::write(&secret, "s3cret\n").unwrap();
        let text = format!(
            "[apps.wx1]\nsecret_file = {secret:?}\nbase_url = 'http://localhost:1/wechat/'\n\
             connect_timeout = '10ms'\ntimeout = '10ms'\ntoken = 'token'\ndaily_quota = 5000\nmessages_per_second = 50\n\
             reserved_for_sends = 0.5\nbroadcast_credentials = ['prepay_id']\n[apps.wx0]\nsecret = 'x'"
        );
        std::fs::write(&file, text).unwrap();
        let apps = Apps::read(&file, &mut ConfigErrors::default()).unwrap();
        assert_eq!(apps.iter().map(|app| app.id.as_str()).collect::<Vec<_>>(), ["wx0", "wx1"]);
        let app = apps.get(&AppId::parse("wx1").unwrap()).unwrap();
        assert_eq!((app.secret.reveal(), app.token_endpoint), ("s3cret", TokenEndpoint::Plain));
        assert_eq!(app.base_url.as_str(), "http://localhost:1/wechat/");
        let expected = Bounds { app_rate: 50, broadcast_rate: 25, daily_quota: 5000, broadcast_share: 500 };
        assert_eq!((app.bounds, app.broadcast_kinds), (expected, Kinds::NONE.with(Kind::PrepayId)));
    }

    #[test]
    fn everything_wrong_is_reported_at_once() {
        let problems = parse(
            "other = 1\n[apps.wx1]\nsecret = 'a'\nsecret_file = 'b'\ncolour = 'x'\nbase_url = 'ftp://x'\ntoken = 'best'\n\
             [apps.wx2]\nsecret = 7\ntimeout = '1s'\n[apps.'w x']\nsecret = ''\nconnect_timeout = '0s'\ntimeout = '5'\n\
             [apps.wx4]\nsecret_file = '/does/not/exist'\nbase_url = 'http://u:p@h'\n[apps.wx5]\nbase_url = 'http://h?a=b'\n\
             [apps.wx6]\nsecret = 'a'\ndaily_quota = -1\nmessages_per_second = 'x'\nreserved_for_sends = 1.5\n\
             broadcast_credentials = []\n[apps.wx7]\nsecret = 'a'\nbroadcast_credentials = ['grant']",
        )
        .unwrap_err();
        for expected in [
            "the key other",
            "[apps.wx1]: has both secret and secret_file",
            "[apps.wx1]: the key colour",
            "[apps.wx1] base_url: must begin",
            "[apps.wx1] token:",
            "[apps.wx2] secret: must be a string",
            "[apps.wx2] timeout: must not be less",
            "[apps.w x]: the app id must",
            "[apps.w x] secret:",
            "[apps.w x] connect_timeout: must be more than zero",
            "[apps.w x] timeout is \"5\"",
            "[apps.wx4] secret_file: \"/does/not/exist\" cannot be read",
            "[apps.wx4] base_url: must not have a user",
            "[apps.wx5]: has no secret",
            "[apps.wx5] base_url: must end before",
            "[apps.wx6] daily_quota: must be",
            "[apps.wx6] messages_per_second: must be",
            "[apps.wx6] reserved_for_sends: must be",
            "[apps.wx6] broadcast_credentials: must be",
            "[apps.wx7] broadcast_credentials: must be",
        ] {
            assert!(problems.iter().any(|problem| problem.contains(expected)), "{expected} in {problems:#?}");
        }
        assert_eq!(problems.len(), 20, "{problems:#?}");
    }

    #[test]
    fn file_without_an_app_is_an_error() {
        for text in ["", "[apps]", "apps = 1"] {
            assert_eq!(parse(text).unwrap_err().len(), 1, "{text:?}");
        }
    }

    #[test]
    fn no_error_and_no_debug_output_contains_a_secret() {
        const CANARY: &str = "c4nary0123456789c4nary0123456789";
        for text in [
            "[apps.wx1]\nsecret = CANARY",
            "[apps.wx1]\nsecret = 'CANARY",
            "[apps.wx1]\nsecret = \"CANARY\\q\"",
            "[apps.wx1]\nsecret = 'CANARY' CANARY",
            "[apps.wx1]\nsecret = 'CANARY'\nsecret = 'CANARY'",
            "[apps.wx1]\nCANARY",
            "[apps.wx1]\nCANARY = 'secret'",
            "CANARY = 'secret'",
            "[apps.wx1]\nCANARY = 'a'\nCANARY = 'b'",
            "[apps.wx1]\nsecrte = 'CANARY'",
            "[apps.wx1]\nsecret = ['CANARY']",
            "[apps.wx1]\nsecret = 'é CANARY'",
            "[apps]\nwx1 = 'CANARY'",
            "[apps.wx1]\nsecret = 'CANARY'\nbase_url = 'http://user:CANARY@host'",
            "[apps.wx1]\nsecret = 'CANARY'\nbase_url = 'http://host:CANARY'",
            "[apps.wx1]\nsecret = 'CANARY'\ntoken = 'CANARY'",
        ] {
            let problems = parse(&text.replace("CANARY", CANARY)).unwrap_err();
            assert!(!format!("{problems:?}").contains(CANARY), "{text:?}: {problems:?}");
        }
        let apps = parse(&format!("[apps.wx1]\nsecret = '{CANARY}'")).unwrap();
        assert!(!format!("{apps:?}").contains(CANARY));
    }

    #[test]
    fn syntax_error_is_reported_with_its_line() {
        let problems = parse("[apps.wx1]\n# é\nsecret = what\n").unwrap_err();
        assert!(problems[0].starts_with("the apps file, line 3: "), "{problems:?}");
    }
}
