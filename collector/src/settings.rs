//! The settings of the collector. It needs no app secret, because it never calls WeChat. It only needs the tokens that
//! verify requests from WeChat.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use domain::config_errors::{ConfigErrors, SettingsError};
use domain::setting::{LONGEST, Setting, duration_within, number, optional, parse_duration, setting};
use domain::{AppId, LIFETIME};
use server::config::{Common, CommonArgs};
use store::record::MAX_USES;
use store::{StoreArgs, StoreConfig};

use crate::callback::tokens;
use crate::callback::{CallbackToken, MaxAge};

/// The allowed maximum ages of events. WeChat repeats an event within seconds, so a short age is enough. For each
/// accepted event, a key is kept in Redis for that long, so a very long age is too expensive.
const CALLBACK_AGES: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(30 * 24 * 3600);

/// The shortest sweep period. With a shorter one, the sweep itself would load Redis.
const SHORTEST_PERIOD: Duration = Duration::from_secs(1);

/// Receives the credentials (form ids, prepay ids, subscription grants) of users of WeChat mini programs and stores
/// them in Redis
#[derive(Debug, Clone, clap::Parser)]
#[command(version)]
pub struct Args {
    /// Address to listen on for gRPC calls (IP address:port)
    #[arg(long, env = "FORMID_COLLECTOR_LISTEN", default_value = "127.0.0.1:7001", value_parser = setting(SocketAddr::from_str))]
    pub listen: Setting<SocketAddr>,
    /// The app ids to accept credentials for, separated by commas
    #[arg(long, env = "FORMID_APPS", default_value = "")]
    pub apps: String,
    /// How many messages a prepay id permits
    #[arg(long, env = "FORMID_PREPAY_USES", default_value = "3", value_parser = number::<u8>(1..=MAX_USES))]
    pub prepay_uses: Setting<u8>,
    /// Minimum remaining lifetime of a credential (duration); below it, the credential is refused and not counted as
    /// available
    #[arg(long, env = "FORMID_LEASE_MARGIN", default_value = "60s", value_parser = setting(lease_margin))]
    pub lease_margin: Setting<u32>,
    /// Time in which the sweep visits every user to delete expired credentials (duration)
    #[arg(long, env = "FORMID_SWEEP_PERIOD", default_value = "1h", value_parser = duration_within(SHORTEST_PERIOD..=LONGEST))]
    pub sweep_period: Setting<Duration>,
    /// Maximum number of users of an app for which GetStock counts during the call; for more users, it returns the
    /// counts of the last sweep
    #[arg(long, env = "FORMID_SMALL_APP_USERS", default_value = "20000", value_parser = number::<u64>(0..=100_000_000))]
    pub small_app_users: Setting<u64>,
    /// File with the token of each app's callback, to verify WeChat's signatures (path); without it, signatures are not
    /// checked
    #[arg(long, env = "FORMID_CALLBACK_TOKENS", default_value = "", value_parser = optional(PathBuf::from_str))]
    pub callback_tokens: Setting<Option<PathBuf>>,
    /// Maximum age of an event of WeChat, and of the timestamp of its signature (duration, 1m to 30d)
    #[arg(long, env = "FORMID_CALLBACK_MAX_AGE", default_value = "24h", value_parser = duration_within(CALLBACK_AGES))]
    pub callback_max_age: Setting<Duration>,
    /// The app ids, separated by commas, whose users are erased when WeChat reports user_authorization_revoke or
    /// user_authorization_cancellation
    #[arg(long, env = "FORMID_ERASE_ON_REVOKE", default_value = "")]
    pub erase_on_revoke: String,
    /// Settings of both services.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Settings of the store.
    #[command(flatten)]
    pub store: StoreArgs,
}

/// The validated settings.
#[derive(Clone)]
pub struct Settings {
    /// Settings of both services.
    pub common: Common,
    /// Settings of the store.
    pub store: StoreConfig,
    /// The apps of this service: at least one, without duplicates.
    pub apps: Arc<[AppId]>,
    /// How many messages a prepay id permits, 1 to 31.
    pub prepay_uses: u8,
    /// The minimum remaining lifetime of a usable credential in seconds.
    pub lease_margin: u32,
    /// The time in which every bucket of every app is swept once.
    pub sweep_period: Duration,
    /// Maximum number of users of an app that is counted during a call of GetStock.
    pub small_app_users: u64,
    /// The callback tokens that WeChat signs with, for those of `apps` that have one.
    pub callback_tokens: Arc<HashMap<AppId, CallbackToken>>,
    /// The maximum age of an event.
    pub callback_max_age: MaxAge,
    /// Those of `apps` whose users are erased when they take back an authorization.
    pub erase_on_revoke: Arc<[AppId]>,
}

impl Settings {
    /// Reads the flags; fails with all errors together.
    pub fn read(args: &Args) -> Result<Self, SettingsError> {
        let mut errors = ConfigErrors::default();
        let common = args.common.read(&args.listen, &mut errors);
        let store = args.store.read(&mut errors);
        let apps = read_apps(&args.apps, &mut errors);
        let erase_on_revoke = read_list("--erase-on-revoke", &args.erase_on_revoke, &mut errors);
        for app in erase_on_revoke.iter().filter(|app| !apps.contains(app)) {
            errors.add(format!("--erase-on-revoke has {:?}, which is not one of --apps", app.as_str()));
        }
        let tokens = errors.take(&args.callback_tokens);
        let callback_tokens = tokens.map(|path| tokens::read(&path, &apps, &mut errors)).unwrap_or_default().into();
        let callback_max_age = MaxAge(errors.take(&args.callback_max_age));
        let (prepay_uses, lease_margin) = (errors.take(&args.prepay_uses), errors.take(&args.lease_margin));
        let (sweep_period, small_app_users) = (errors.take(&args.sweep_period), errors.take(&args.small_app_users));
        let store = errors.finish(store)?;
        Ok(Self {
            common,
            store: StoreConfig { keep_once: callback_max_age.keep(), ..store },
            apps,
            prepay_uses,
            lease_margin,
            sweep_period,
            small_app_users,
            callback_tokens,
            callback_max_age,
            erase_on_revoke: erase_on_revoke.into(),
        })
    }
}

/// Parses a lease margin; returns it in seconds.
fn lease_margin(text: &str) -> Result<u32, String> {
    let margin = parse_duration(text, &(Duration::ZERO..=LONGEST))?;
    if margin >= LIFETIME {
        return Err("must be less than 7 days, the lifetime of a credential; otherwise all would be refused".into());
    }
    Ok(margin.as_secs() as u32)
}

/// Parses a list of apps, which may be empty. Invalid and duplicate ids are added to `problems`.
fn read_list(flag: &str, list: &str, problems: &mut ConfigErrors) -> Vec<AppId> {
    let mut apps = Vec::new();
    for text in list.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        match AppId::parse(text) {
            Ok(app) if apps.contains(&app) => problems.add(format!("{flag} has {text:?} more than once")),
            Ok(app) => apps.push(app),
            Err(error) => problems.add(format!("{flag} has {text:?}: an app id {error}")),
        }
    }
    apps
}

/// Parses the list of apps. Invalid and duplicate ids and an empty list are added to `problems`.
fn read_apps(list: &str, problems: &mut ConfigErrors) -> Arc<[AppId]> {
    let apps = read_list("--apps", list, problems);
    if list.split(',').all(|text| text.trim().is_empty()) {
        problems.add("--apps must name at least one app id");
    }
    apps.into()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn read(flags: &[&str]) -> Result<Settings, SettingsError> {
        Settings::read(&Args::parse_from(std::iter::once(&"collector").chain(flags)))
    }

    fn problems(flags: &[&str]) -> Vec<String> {
        let Err(SettingsError(problems)) = read(flags) else { panic!("accepted") };
        problems
    }

    #[test]
    fn only_the_apps_are_required() {
        let settings = read(&["--apps", "wx1, wx2"]).unwrap();
        assert_eq!(settings.apps.iter().map(AppId::as_str).collect::<Vec<_>>(), ["wx1", "wx2"]);
        assert_eq!((settings.prepay_uses, settings.lease_margin, settings.small_app_users), (3, 60, 20_000));
        assert_eq!(settings.sweep_period, Duration::from_secs(3600));
        assert_eq!(settings.common.listen.to_string(), "127.0.0.1:7001");
        assert!(settings.callback_tokens.is_empty());
        assert_eq!(problems(&[]).len(), 1);
    }

    #[test]
    fn callback_tokens_are_read_from_their_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "[callback_tokens]\nwx2 = 'AAAAA'").unwrap();
        let path = file.path().to_str().unwrap();
        let settings = read(&["--apps", "wx1,wx2", "--callback-tokens", path]).unwrap();
        let with_token: Vec<&str> = settings.callback_tokens.keys().map(AppId::as_str).collect();
        assert_eq!(with_token, ["wx2"]);
        let problems = problems(&["--apps", "wx1", "--callback-tokens", path]);
        assert_eq!(problems, ["the callback tokens file, [callback_tokens] wx2: the app is not one of --apps"]);
    }

    #[test]
    fn apps_that_erase_users_are_among_the_apps() {
        let settings = read(&["--apps", "wx1,wx2", "--erase-on-revoke", "wx2"]).unwrap();
        assert_eq!(*settings.erase_on_revoke, [AppId::parse("wx2").unwrap()]);
        assert!(read(&["--apps", "wx1"]).unwrap().erase_on_revoke.is_empty());
        let problems = problems(&["--apps", "wx1", "--erase-on-revoke", "wx2,wx1,wx:1,wx1"]);
        let expected = [
            "--erase-on-revoke has \"wx:1\": an app id must consist of ASCII letters, digits, '_' and '-'",
            "--erase-on-revoke has \"wx1\" more than once",
            "--erase-on-revoke has \"wx2\", which is not one of --apps",
        ];
        assert_eq!(problems, expected);
    }

    #[test]
    fn all_errors_are_reported_together() {
        let problems = problems(&[
            "--apps",
            "wx1,wx:2,wx1",
            "--listen",
            "nowhere",
            "--prepay-uses",
            "32",
            "--lease-margin",
            "8days",
            "--sweep-period",
            "1ms",
            "--small-app-users",
            "many",
            "--callback-max-age",
            "31d",
            "--callback-tokens",
            "/does/not/exist",
            "--redis-timeout",
            "2",
        ]);
        let flags = ["--apps", "--listen", "--prepay-uses", "--lease-margin", "--sweep-period", "--small-app-users"];
        for flag in flags.iter().chain(&["--redis-timeout", "--callback-max-age"]) {
            assert!(problems.iter().any(|problem| problem.starts_with(flag)), "{flag} in {problems:?}");
        }
        assert!(problems.iter().any(|problem| problem.starts_with("the callback tokens file")), "{problems:?}");
        assert_eq!(problems.iter().filter(|problem| problem.starts_with("--apps")).count(), 2, "{problems:?}");
    }

    #[test]
    fn invalid_redis_url_is_reported_without_its_password() {
        let problems = problems(&["--apps", "wx1", "--redis-url", "http://:hunter2@redis"]);
        assert!(problems.len() == 1 && problems[0].starts_with("--redis-url"), "{problems:?}");
        assert!(!problems[0].contains("hunter2"));
    }

    #[test]
    fn readme_has_each_flag_with_its_variable_and_default() {
        let amiss = testing::flags_amiss(&<Args as clap::CommandFactory>::command());
        assert!(amiss.is_empty(), "{amiss:#?}");
    }
}
