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
//! proxy_file = "/run/secrets/proxy"                # or proxy = "http://user:password@host:3128"; default: no proxy
//! delivery = "form_id"                             # or "subscription"; a call may override it
//! daily_quota = 1000000                            # messages a day, unless WeChat reports it; subscription: 10000000
//! messages_per_second = 0                          # of all replicas together; 0 is unlimited
//! reserved_for_sends = 0.2                         # the part of both that broadcasts must not use
//! refused_rest = "24h"                             # rest of grants after the first 43101; "0s" revokes them at once
//! broadcast_credentials = ["form_id", "prepay_id"] # kinds that broadcasts of template messages may spend
//! ```
//!
//! Instead of a secret, an app may have another source of access tokens:
//!
//! ```toml
//! token_url = "https://tokens.internal/wx0123456789abcdef"  # a token server, with these defaults:
//! token_method = "GET"                                      # or "POST"
//! token_path = "access_token"                               # where the token is in the JSON; expires_in is beside it
//! token_headers_file = "/run/secrets/token-server"          # default: none; lines of the form Name: value
//! token_report = "invalid"                                  # default: none; what names the token that WeChat rejected
//! token_file = "/run/tokens/wx0123456789abcdef"             # or a file; token_path if it is JSON
//! token = "none"                                            # or no token, in WeChat's cloud run
//! ```
//!
//! The file is read once, at startup.

mod proxy;
mod source;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use domain::config_errors::ConfigErrors;
use domain::setting::{LONGEST, parse_duration};
use domain::table::TableReader;
use domain::{AppId, Kind};
use reqwest::Url;
use store::broadcast::permits::Bounds;
use store::eligibility::Kinds;
use toml::Value;

use crate::app::App;
use crate::wechat::message::Delivery;

const FILE: &str = "the apps file";
const BASE_URL: &str = "https://api.weixin.qq.com";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(5);
const RESERVED_FOR_SENDS: f64 = 0.2;
const REFUSED_REST: Duration = Duration::from_secs(24 * 3600);
const KEYS: [&str; 20] = [
    "secret",
    "secret_file",
    "base_url",
    "connect_timeout",
    "timeout",
    "token",
    "token_url",
    "token_method",
    "token_path",
    "token_headers_file",
    "token_report",
    "token_file",
    "proxy",
    "proxy_file",
    "delivery",
    "daily_quota",
    "messages_per_second",
    "reserved_for_sends",
    "refused_rest",
    "broadcast_credentials",
];

/// All apps of the file; at least one.
#[derive(Debug, Clone)]
pub struct Apps(BTreeMap<AppId, Arc<App>>);

impl Apps {
    /// Reads the apps file. Adds all errors to `errors`; if there is any, the returned apps must not be used.
    pub fn read(path: &Path, errors: &mut ConfigErrors) -> Option<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, errors),
            Err(error) => {
                errors.add(format!("{FILE} {} cannot be read: {error}", path.display()));
                None
            }
        }
    }

    /// Like [`Apps::read`], from the text of the file. Relative paths in it start at the working directory.
    pub fn parse(text: &str, errors: &mut ConfigErrors) -> Option<Self> {
        let file = errors.toml(FILE, text)?;
        let tables = errors.only_table(FILE, &file, "apps", "[apps.APP_ID] tables")?;
        Some(tables.iter().filter_map(|(id, table)| app(id, table, errors)).collect())
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

impl FromIterator<App> for Apps {
    fn from_iter<I: IntoIterator<Item = App>>(apps: I) -> Self {
        Self(apps.into_iter().map(|app| (app.id.clone(), Arc::new(app))).collect())
    }
}

fn app(id: &str, table: &Value, errors: &mut ConfigErrors) -> Option<App> {
    let mut reader = TableReader::new(format!("[apps.{id}]"), table, &KEYS, errors)?;
    let id = AppId::parse(id).map_err(|error| reader.wrong(format_args!("the app id {error}"))).ok();
    let token_source = source::read(&mut reader);
    let base_url = base_url(&mut reader);
    let proxy = proxy::read(&mut reader, base_url.as_ref());
    let connect_timeout = duration(&mut reader, "connect_timeout", CONNECT_TIMEOUT);
    let timeout = duration(&mut reader, "timeout", TIMEOUT);
    let deliveries = "\"form_id\" or \"subscription\"";
    let delivery = reader.parsed("delivery", Delivery::FormId, deliveries, |value| match value.as_str()? {
        "form_id" => Some(Delivery::FormId),
        "subscription" => Some(Delivery::Subscription),
        _ => None,
    });
    if timeout < connect_timeout {
        reader.wrong_key("timeout", "must not be less than connect_timeout: it is the time of the whole call");
    }
    let bounds = bounds(&mut reader, delivery);
    let refused_rest = refused_rest(&mut reader);
    let broadcast_kinds = broadcast_kinds(&mut reader);
    Some(App {
        id: id?,
        token_source: token_source?,
        base_url: base_url?,
        proxy,
        connect_timeout,
        timeout,
        delivery,
        bounds,
        refused_rest,
        broadcast_kinds,
    })
}

/// Errors do not quote the URL: it may contain a password.
fn base_url(reader: &mut TableReader<'_>) -> Option<Url> {
    let text = if reader.get("base_url").is_some() { reader.text("base_url")? } else { BASE_URL };
    check_url(text).map_err(|sentence| reader.wrong_key("base_url", sentence)).ok()
}

fn check_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("is not a URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        Err("must begin with https:// or http://".into())
    } else if !url.username().is_empty() || url.password().is_some() {
        Err("must not have a user or a password".into())
    } else if url.query().is_some() || url.fragment().is_some() {
        Err("must end before any '?' or '#': the paths of the API are appended to it".into())
    } else {
        Ok(url)
    }
}

fn duration(reader: &mut TableReader<'_>, key: &str, default: Duration) -> Duration {
    let Some(text) = reader.text(key) else { return default };
    match parse_duration(text, &(Duration::ZERO..=LONGEST)) {
        Ok(Duration::ZERO) => reader.wrong_key(key, "must be more than zero"),
        Ok(duration) => return duration,
        Err(error) => reader.wrong_value(key, text, error),
    }
    default
}

/// Zero is allowed, also as a number.
fn refused_rest(reader: &mut TableReader<'_>) -> Duration {
    const KEY: &str = "refused_rest";
    if reader.get(KEY).and_then(Value::as_integer) == Some(0) {
        return Duration::ZERO;
    }
    let Some(text) = reader.text(KEY) else { return REFUSED_REST };
    let parsed = parse_duration(text, &(Duration::ZERO..=LONGEST));
    parsed.map_err(|error| reader.wrong_value(KEY, text, error)).unwrap_or(REFUSED_REST)
}

fn number(reader: &mut TableReader<'_>, key: &str, default: i64, most: i64) -> i64 {
    let expected = format!("a whole number from 0 to {most}");
    reader.parsed(key, default, &expected, |value| value.as_integer().filter(|number| (0..=most).contains(number)))
}

fn bounds(reader: &mut TableReader<'_>, delivery: Delivery) -> Bounds {
    let daily_quota = number(reader, "daily_quota", delivery.published_quota().cast_signed(), i64::MAX);
    let rate = number(reader, "messages_per_second", 0, 1_000_000) as u32;
    let expected = "a part of all, from 0 to less than 1, such as 0.2";
    let reserved = reader.parsed("reserved_for_sends", RESERVED_FOR_SENDS, expected, |value| match value {
        Value::Float(part) if (0.0..1.0).contains(part) => Some(*part),
        Value::Integer(0) => Some(0.0),
        _ => None,
    });
    let broadcast_share = ((1.0 - reserved) * 1000.0).round();
    let broadcast_rate = if rate == 0 { 0 } else { (f64::from(rate) * broadcast_share / 1000.0).max(1.0) as u32 };
    Bounds { app_rate: rate, broadcast_rate, daily_quota: daily_quota as u64, broadcast_share: broadcast_share as u32 }
}

fn broadcast_kinds(reader: &mut TableReader<'_>) -> Kinds {
    let kind = |name: &Value| match name.as_str()? {
        "form_id" => Some(Kind::FormId),
        "prepay_id" => Some(Kind::PrepayId),
        _ => None,
    };
    let expected = "a list of \"form_id\", \"prepay_id\" or both";
    reader.parsed("broadcast_credentials", Kinds::IDS, expected, |value| {
        let names = value.as_array().filter(|names| !names.is_empty())?;
        names.iter().map(kind).collect::<Option<Vec<Kind>>>().map(Kinds::from_iter)
    })
}

#[cfg(test)]
mod tests {
    use domain::Kind;
    use domain::config_errors::SettingsError;

    use super::*;
    use crate::token_source::{TokenEndpoint, TokenSource};

    /// The secret of an app and the endpoint that takes it.
    fn secret(app: &App) -> (&str, TokenEndpoint) {
        match &app.token_source {
            TokenSource::WeChat { secret, endpoint } => (secret.reveal(), *endpoint),
            other => panic!("{other:?}"),
        }
    }

    fn parse(text: &str) -> Result<Apps, Vec<String>> {
        let mut problems = ConfigErrors::default();
        let apps = Apps::parse(text, &mut problems);
        problems.finish(apps).map_err(|SettingsError(problems)| problems)
    }

    #[test]
    fn only_the_secret_is_required() {
        let apps = parse("[apps.wx1]\nsecret = 's3'").unwrap();
        let app = apps.get(&AppId::parse("wx1").unwrap()).unwrap();
        assert_eq!((app.base_url.as_str(), secret(app)), ("https://api.weixin.qq.com/", ("s3", TokenEndpoint::Stable)));
        assert_eq!((app.connect_timeout, app.timeout), (Duration::from_secs(2), Duration::from_secs(5)));
        assert_eq!(app.proxy, None);
        assert_eq!((app.bounds.daily_quota, app.bounds.app_rate, app.bounds.broadcast_share), (1_000_000, 0, 800));
        assert_eq!((app.broadcast_kinds, app.delivery), (Kinds::IDS, Delivery::FormId));
        assert_eq!(app.refused_rest, REFUSED_REST);
        assert!(apps.get(&AppId::parse("wx2").unwrap()).is_none());
    }

    #[test]
    fn all_keys_can_be_set_and_the_secret_file_is_trimmed() {
        let folder = tempfile::tempdir().unwrap();
        let (secret_file, file) = (folder.path().join("secret"), folder.path().join("apps.toml"));
        std::fs::write(&secret_file, "s3cret\n").unwrap();
        let text = format!(
            "[apps.wx1]\nsecret_file = {secret_file:?}\nbase_url = 'http://localhost:1/wechat/'\n\
             connect_timeout = '10ms'\ntimeout = '10ms'\ntoken = 'token'\ndaily_quota = 5000\nmessages_per_second = 50\n\
             reserved_for_sends = 0.5\nbroadcast_credentials = ['prepay_id']\n[apps.wx0]\nsecret = 'x'"
        );
        std::fs::write(&file, text).unwrap();
        let apps = Apps::read(&file, &mut ConfigErrors::default()).unwrap();
        assert_eq!(apps.iter().map(|app| app.id.as_str()).collect::<Vec<_>>(), ["wx0", "wx1"]);
        let app = apps.get(&AppId::parse("wx1").unwrap()).unwrap();
        assert_eq!(secret(app), ("s3cret", TokenEndpoint::Plain));
        assert_eq!(app.base_url.as_str(), "http://localhost:1/wechat/");
        let expected = Bounds { app_rate: 50, broadcast_rate: 25, daily_quota: 5000, broadcast_share: 500 };
        assert_eq!((app.bounds, app.broadcast_kinds), (expected, Kinds::NONE.with(Kind::PrepayId)));
    }

    #[test]
    fn rest_of_refused_grants_may_be_zero() {
        for (value, expected) in [("0", 0), ("'0s'", 0), ("'90m'", 5400)] {
            let apps = parse(&format!("[apps.wx1]\nsecret = 's'\nrefused_rest = {value}")).unwrap();
            assert_eq!(apps.iter().next().unwrap().refused_rest, Duration::from_secs(expected), "{value}");
        }
        for value in ["1", "'-1s'", "'366d'", "true"] {
            let problems = parse(&format!("[apps.wx1]\nsecret = 's'\nrefused_rest = {value}")).unwrap_err();
            assert!(problems[0].starts_with("[apps.wx1] refused_rest"), "{problems:?}");
        }
    }

    #[test]
    fn all_errors_are_reported_together() {
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
