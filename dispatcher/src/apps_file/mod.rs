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

mod table;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use domain::AppId;
use domain::config_errors::ConfigErrors;
use toml::Value;

use self::table::{app, quoted};
use crate::app::App;

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
        let tables = file.get("apps").and_then(Value::as_table).filter(|tables| !tables.is_empty());
        let Some(tables) = tables else {
            problems.add("the apps file has no app: it needs an [apps.APP_ID] table for each");
            return None;
        };
        let mut apps = BTreeMap::new();
        for (id, value) in tables {
            if let Some(app) = app(id, value, problems) {
                apps.insert(app.id.clone(), Arc::new(app));
            }
        }
        (valid && apps.len() == tables.len()).then_some(Self(apps))
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use domain::Kind;
    use domain::config_errors::SettingsError;
    use store::broadcast::permits::Bounds;
    use store::eligibility::Kinds;

    use super::*;
    use crate::app::TokenEndpoint;
    use crate::wechat::message::Delivery;

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
