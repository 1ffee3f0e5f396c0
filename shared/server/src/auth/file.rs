//! Parses the callers file: the callers, how they are identified, and their permissions.
//!
//! ```toml
//! [callers.orders]
//! token_sha256 = ["64 hex digits"]            # several while a token is being replaced
//! certificate_names = ["spiffe://prod/orders"] # with mutual TLS; a token or a certificate is enough
//! apps = ["wx0123456789abcdef"]                # or ["*"]
//! permissions = ["collect", "read", "erase", "send", "broadcast", "broadcast_all", "operate"]
//! calls_per_second = 100                       # of each replica; no limit when it is left out
//! ```

use std::collections::{BTreeSet, HashMap};
use std::ops::RangeInclusive;

use toml::Value;

use super::caller_config::{Apps, CallerConfig, TokenHash};
use super::permission::Permission;
use domain::config_errors::ConfigErrors;
use domain::table::TableReader;
use domain::{AppId, visible};

/// How error texts call the file.
pub(super) const FILE: &str = "the callers file";
const KEYS: [&str; 5] = ["token_sha256", "certificate_names", "apps", "permissions", "calls_per_second"];
/// The maximum length of a caller's name, in bytes. It is shorter than a token, so that no token gets into the log as a
/// name.
const MAX_NAME: usize = 40;
const MAX_CERTIFICATE_NAME: usize = 1024;
/// The valid range of `calls_per_second`. Below the minimum, a caller would have to wait longer than the lifetime of a
/// process, or longer than a `Duration` can hold.
const RATES: RangeInclusive<f64> = 0.001..=1_000_000.0;

/// Parses the text of the file. Adds all errors to `problems`; if there is any, the returned entries must not be used.
pub fn parse(text: &str, problems: &mut ConfigErrors) -> Vec<CallerConfig> {
    let Some(file) = problems.toml(FILE, text) else { return Vec::new() };
    let callers = problems.only_table(FILE, &file, "callers", "[callers.NAME] tables").into_iter().flatten();
    let entries: Vec<CallerConfig> = callers.filter_map(|(name, value)| entry(name, value, problems)).collect();
    shared_proofs(&entries, problems);
    entries
}

/// Reports tokens and certificate names that belong to more than one caller.
fn shared_proofs(entries: &[CallerConfig], problems: &mut ConfigErrors) {
    let (mut tokens, mut names) = (HashMap::new(), HashMap::new());
    for entry in entries {
        for token in &entry.tokens {
            if let Some(other) = tokens.insert(token.0, &entry.name) {
                problems.add(format!("{FILE}: [callers.{other}] and [callers.{}] have the same token", entry.name));
            }
        }
        for name in &entry.certificate_names {
            if let Some(other) = names.insert(name, &entry.name) {
                let both = format!("[callers.{other}] and [callers.{}]", entry.name);
                problems.add(format!("{FILE}: {both} have the same certificate name"));
            }
        }
    }
}

fn entry(name: &str, value: &Value, problems: &mut ConfigErrors) -> Option<CallerConfig> {
    let sound = visible(name, MAX_NAME);
    let shown = if sound.is_ok() { name } else { "(a caller)" };
    let mut reader = TableReader::new(format!("{FILE}, [callers.{shown}]"), value, &KEYS, problems)?;
    if let Err(error) = sound {
        reader.wrong(format_args!("the name {error}"));
    }
    let tokens = list(&mut reader, "token_sha256", "the SHA-256 of a token, as 64 hex digits", TokenHash::parse);
    let certificate_names = list(
        &mut reader,
        "certificate_names",
        "a name of at most 1024 bytes, without spaces around it and control characters",
        |name| visible_text(name).then(|| name.into()),
    );
    if reader.get("token_sha256").or(reader.get("certificate_names")).is_none() {
        reader.wrong("has neither token_sha256 nor certificate_names: no client can authenticate as this caller");
    } else if tokens.as_deref() == Some(&[]) && certificate_names.as_deref() == Some(&[]) {
        reader.wrong("has an empty token_sha256 and no certificate_names: no client can authenticate as this caller");
    }
    Some(CallerConfig::new(
        name.into(),
        tokens.unwrap_or_default(),
        certificate_names.unwrap_or_default(),
        apps(&mut reader),
        permissions(&mut reader),
        rate(&mut reader),
    ))
}

/// Parses a list of strings. Returns an empty list if the key is missing, and `None` after an error.
fn list<T>(reader: &mut TableReader<'_>, key: &str, each: &str, parse: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    let Some(value) = reader.get(key) else { return Some(Vec::new()) };
    let Some(items) = value.as_array() else {
        reader.wrong(format_args!("{key} must be a list"));
        return None;
    };
    let parsed: Option<Vec<T>> = items.iter().map(|item| item.as_str().and_then(&parse)).collect();
    if parsed.is_none() {
        reader.wrong(format_args!("each of {key} must be {each}"));
    }
    parsed
}

/// Parses a list that must not be empty.
fn needed<T>(reader: &mut TableReader<'_>, key: &str, each: &str, parse: impl Fn(&str) -> Option<T>) -> Vec<T> {
    let found = list(reader, key, each, parse);
    if found.as_ref().is_some_and(Vec::is_empty) {
        reader.wrong(format_args!("{key} must name at least one"));
    }
    found.unwrap_or_default()
}

fn apps(reader: &mut TableReader<'_>) -> Apps {
    if reader.get("apps").is_some_and(|apps| *apps == Value::from(vec!["*"])) {
        return Apps::All;
    }
    let apps = needed(reader, "apps", "an app id, or \"*\" alone", |text| AppId::parse(text).ok());
    Apps::These(apps.into_iter().collect())
}

fn permissions(reader: &mut TableReader<'_>) -> BTreeSet<Permission> {
    let names = Permission::ALL.map(Permission::name).join(", ");
    let found: BTreeSet<Permission> =
        needed(reader, "permissions", &format!("one of {names}"), Permission::parse).into_iter().collect();
    if found.contains(&Permission::BroadcastAll) && !found.contains(&Permission::Broadcast) {
        reader.wrong("has the permission broadcast_all, which has no effect without broadcast");
    }
    found
}

fn rate(reader: &mut TableReader<'_>) -> Option<f64> {
    let value = reader.get("calls_per_second")?;
    let rate = value.as_float().or_else(|| value.as_integer().map(|whole| whole as f64));
    let rate = rate.filter(|rate| RATES.contains(rate));
    if rate.is_none() {
        reader.wrong("calls_per_second must be a number from 0.001 to a million");
    }
    rate
}

/// Certificate names may contain spaces, as common names do.
fn visible_text(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_CERTIFICATE_NAME && name.trim() == name && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::config_errors::SettingsError;

    const HASH: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    fn parsed(text: &str) -> Result<Vec<CallerConfig>, Vec<String>> {
        let mut problems = ConfigErrors::default();
        let entries = parse(text, &mut problems);
        problems.finish(Some(entries)).map_err(|SettingsError(problems)| problems)
    }

    #[test]
    fn valid_file_gives_identities_apps_and_permissions() {
        let text = format!(
            "[callers.orders]\ntoken_sha256 = ['{HASH}', '{}']\napps = ['wx1', 'wx2']\npermissions = ['send', 'read']\n\
             calls_per_second = 0.5\n[callers.\"crm.eu\"]\ncertificate_names = ['spiffe://prod/crm', 'CRM of the EU']\n\
             apps = ['*']\npermissions = ['broadcast', 'broadcast_all']",
            HASH.to_uppercase().replace('9', "8"),
        );
        let entries = parsed(&text).unwrap();
        let [crm, orders] = entries.as_slice() else { panic!("{entries:?}") };
        assert_eq!((orders.name.as_ref(), orders.tokens.len(), crm.certificate_names.len()), ("orders", 2, 2));
        assert!(orders.may(Permission::Send) && !orders.may(Permission::Erase));
        let app = |text: &str| AppId::parse(text).unwrap();
        assert!(orders.apps.contain(&app("wx2")) && !orders.apps.contain(&app("wx3")) && crm.apps.contain(&app("wx3")));
        assert!(orders.rate.as_ref().is_some_and(|rate| rate.per_second() == 0.5) && crm.rate.is_none());
    }

    #[test]
    fn all_errors_of_a_file_are_reported_together() {
        let text = format!(
            "other = 1\n[callers.a]\ntoken_sha256 = ['{HASH}']\ncertificate_names = ['n']\napps = ['wx1']\npermissions = ['send']\n\
             [callers.b]\ntoken_sha256 = ['{HASH}']\ncertificate_names = ['n', ' x']\napps = ['wx 1']\npermissions = ['all']\n\
             [callers.c]\napps = []\npermissions = ['broadcast_all']\ncolour = 'x'\ncalls_per_second = 0\n\
             [callers.'d e']\ntoken_sha256 = 'x'\napps = ['*', 'wx1']\npermissions = 'send'\ncalls_per_second = 'many'\n\
             [callers.e]\ntoken_sha256 = []\napps = ['*']\npermissions = ['send']\n[callers.f]\ntoken_sha256 = ['{HASH}']\n"
        ) + "certificate_names = ['n']\n[callers]\ng = 1";
        let problems = parsed(&text.replace("[callers]\ng = 1", "")).unwrap_err();
        let place = |rest: &str| format!("the callers file, [callers.{rest}");
        for expected in [
            "the callers file has the key other".to_owned(),
            "the callers file: [callers.a] and [callers.b] have the same token".to_owned(),
            "the callers file: [callers.b] and [callers.f] have the same token".to_owned(),
            "the callers file: [callers.a] and [callers.f] have the same certificate name".to_owned(),
            place("b]: each of certificate_names must be"),
            place("b]: each of apps must be an app id"),
            place("b]: each of permissions must be one of collect, read, erase"),
            place("c]: has neither token_sha256 nor certificate_names"),
            place("c]: apps must name at least one"),
            place("c]: has the permission broadcast_all"),
            place("c]: the key colour is not known"),
            place("c]: calls_per_second must be"),
            place("(a caller)]: the name must"),
            place("(a caller)]: token_sha256 must be a list"),
            place("(a caller)]: each of apps must be an app id"),
            place("(a caller)]: permissions must be a list"),
            place("(a caller)]: calls_per_second must be"),
            place("e]: has an empty token_sha256"),
            place("f]: apps must name at least one"),
            place("f]: permissions must name at least one"),
        ] {
            assert!(problems.iter().any(|problem| problem.starts_with(&expected)), "{expected} in {problems:#?}");
        }
        assert_eq!(problems.len(), 20, "{problems:#?}");
    }

    #[test]
    fn rates_outside_the_valid_range_are_refused() {
        let with = |rate: &str| {
            parsed(&format!(
                "[callers.a]\ntoken_sha256 = ['{HASH}']\napps = ['*']\npermissions = ['send']\ncalls_per_second = {rate}"
            ))
        };
        for rate in ["1e-300", "5e-324", "0.0009", "0.0", "-0.0", "-1", "nan", "inf", "1e300", "1000001"] {
            let problems = with(rate).unwrap_err();
            assert!(problems.len() == 1 && problems[0].contains("calls_per_second must be"), "{rate}: {problems:?}");
        }
        for rate in ["0.001", "1", "1_000_000"] {
            with(rate).unwrap();
        }
    }

    #[test]
    fn file_without_a_caller_is_refused() {
        for text in ["", "[callers]", "callers = 1", "callers = []"] {
            assert_eq!(parsed(text).unwrap_err().len(), 1, "{text:?}");
        }
    }

    #[test]
    fn errors_and_debug_output_quote_no_token_and_no_hash() {
        for canary in [HASH, "kq0rTE+ssVj8oNqzYkq2r9E9R1oJk1J3l5JzT0Vq0pM="] {
            for text in [
                "[callers.a]\ntoken_sha256 = ['CANARY x']",
                "[callers.a]\ntoken_sha256 = CANARY",
                "[callers.a]\ntoken_sha256 = ['CANARY",
                "[callers.a]\ntoken_sha256 = 'CANARY'",
                "[callers.a]\n'CANARY' = 'token_sha256'",
                "[callers.a]\napps = ['CANARY=']\npermissions = ['CANARY']\ncertificate_names = ['CANARY\\u0007']",
                "[callers.'CANARY']\napps = ['*']",
                "[callers.'CANARY']\na = 1\n[callers.'CANARY']\na = 2",
                "['CANARY']\na = 1",
                "[callers]\na = 'CANARY'",
            ] {
                let problems = parsed(&text.replace("CANARY", canary)).unwrap_err();
                assert!(!format!("{problems:?}").contains(canary), "{text:?}: {problems:?}");
            }
        }
        let text = format!("[callers.a]\ntoken_sha256 = ['{HASH}']\napps = ['*']\npermissions = ['send']");
        assert!(!format!("{:?}", parsed(&text).unwrap()).contains("9f86"));
        assert!(!format!("{:?}", parsed(&text).unwrap()).contains("159, 134"));
    }
}
