//! Reads the callback tokens file: for each app, the token that WeChat signs requests to the app's callback URL with.
//!
//! ```toml
//! [callback_tokens]
//! wx0123456789abcdef = "the token of the app's message push settings"
//! ```
//!
//! The file is read once, at startup.

use std::collections::HashMap;
use std::path::Path;

use domain::AppId;
use domain::config_errors::ConfigErrors;
use toml::Value;

use crate::callback::CallbackToken;

const FILE: &str = "the callback tokens file";
const TABLE: &str = "callback_tokens";

/// Reads the file. `apps` are the apps of this service. Invalid entries are added to `problems` and left out.
pub fn read(path: &Path, apps: &[AppId], problems: &mut ConfigErrors) -> HashMap<AppId, CallbackToken> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text, apps, problems),
        Err(error) => {
            problems.add(format!("{FILE} {} cannot be read: {error}", path.display()));
            HashMap::new()
        }
    }
}

/// Like [`read`], from the contents of the file.
pub fn parse(text: &str, apps: &[AppId], problems: &mut ConfigErrors) -> HashMap<AppId, CallbackToken> {
    let mut tokens = HashMap::new();
    let Some(file) = problems.toml(FILE, text) else { return tokens };
    if file.keys().any(|key| key != TABLE) {
        problems.add(format!("{FILE} may have only a [{TABLE}] table at the top level"));
    }
    let table = match file.get(TABLE) {
        Some(Value::Table(table)) if !table.is_empty() => table,
        _ => {
            let needed = format!("expected a [{TABLE}] table with one line for each app");
            problems.add(format!("{FILE} has no token: {needed}"));
            return tokens;
        }
    };
    for (id, value) in table {
        let app = AppId::parse(id.as_str()).map_err(|error| format!("the app id {error}"));
        let app = app
            .and_then(|app| if apps.contains(&app) { Ok(app) } else { Err("the app is not one of --apps".to_owned()) });
        let text = value.as_str();
        let text = text.ok_or_else(|| format!("the token must be a string, but is of type {}", value.type_str()));
        let token = text.and_then(|text| CallbackToken::parse(text).map_err(|error| format!("the token {error}")));
        match (app, token) {
            (Ok(app), Ok(token)) => {
                tokens.insert(app, token);
            }
            (app, token) => {
                for error in app.err().into_iter().chain(token.err()) {
                    problems.add(format!("{FILE}, [{TABLE}] {}: {error}", named(id, apps)));
                }
            }
        }
    }
    tokens
}

/// The key as an error may show it. A key that may be a token (key and value swapped) is hidden: only known app ids,
/// and short ones that begin with `wx` as WeChat's app ids do, are shown.
fn named<'a>(id: &'a str, apps: &[AppId]) -> &'a str {
    let known = apps.iter().any(|app| app.as_str() == id);
    let harmless = id.len() <= 18 && id.starts_with("wx") && AppId::parse(id).is_ok();
    if known || harmless { id } else { "(an app id)" }
}

#[cfg(test)]
mod tests {
    use domain::config_errors::SettingsError;

    use super::*;

    fn apps() -> Vec<AppId> {
        ["wx1", "wx2", "gh3"].map(|id| AppId::parse(id).unwrap()).to_vec()
    }

    fn parsed(text: &str) -> Result<HashMap<AppId, CallbackToken>, Vec<String>> {
        let mut problems = ConfigErrors::default();
        let tokens = parse(text, &apps(), &mut problems);
        problems.finish(Some(tokens)).map_err(|SettingsError(problems)| problems)
    }

    #[test]
    fn each_app_gets_its_own_token_or_none() {
        let tokens = parsed("[callback_tokens]\nwx2 = 'BBBBB'\nwx1 = \"AAAAA\"").unwrap();
        let (timestamp, nonce, signature) = ("1714036504", "1514711492", "f464b24fc39322e44b38aa78f5edd27bd1441696");
        assert!(tokens[&apps()[0]].signs(timestamp, nonce, signature));
        assert!(!tokens[&apps()[1]].signs(timestamp, nonce, signature));
        assert_eq!(tokens.len(), 2);
        assert_eq!(parsed("callback_tokens = { wx1 = 'A' }").unwrap().len(), 1);
    }

    #[test]
    fn all_errors_are_reported_together() {
        let problems = parsed(
            "other = 1\n[callback_tokens]\nwx1 = ''\nwx2 = 7\nwx3 = 'a'\nwx4 = 'a b'\n'w x' = 'a'\ngh3 = ['é']\nwx5.a = 'a'\n[more]",
        )
        .unwrap_err();
        let start = "the callback tokens file, [callback_tokens]";
        for expected in [
            "the callback tokens file may have only a [callback_tokens] table at the top level",
            &format!("{start} wx1: the token must not be empty"),
            &format!("{start} wx2: the token must be a string, but is of type integer"),
            &format!("{start} wx3: the app is not one of --apps"),
            &format!("{start} wx4: the app is not one of --apps"),
            &format!("{start} wx4: the token must consist of visible ASCII characters, without spaces"),
            &format!("{start} (an app id): the app id must consist of visible ASCII characters, without spaces"),
            &format!("{start} gh3: the token must be a string, but is of type array"),
            &format!("{start} wx5: the app is not one of --apps"),
            &format!("{start} wx5: the token must be a string, but is of type table"),
        ] {
            assert!(problems.iter().any(|problem| problem == expected), "{expected} in {problems:#?}");
        }
        assert_eq!(problems.len(), 10, "{problems:#?}");
    }

    #[test]
    fn file_without_a_token_is_an_error() {
        for text in ["", "[callback_tokens]", "callback_tokens = 'AAAAA'"] {
            let problems = parsed(text).unwrap_err();
            assert!(problems.len() == 1 && problems[0].contains("has no token"), "{text:?}: {problems:?}");
        }
        let mut problems = ConfigErrors::default();
        assert!(read(Path::new("/does/not/exist"), &apps(), &mut problems).is_empty());
        assert!(problems.finish(Some(())).unwrap_err().to_string().contains("/does/not/exist cannot be read"));
    }

    #[test]
    fn errors_and_debug_output_never_show_a_token() {
        const CANARY: &str = "c4nary0123456789";
        for text in [
            "[callback_tokens]\nwx1 = CANARY",
            "[callback_tokens]\nwx1 = 'CANARY",
            "[callback_tokens]\nwx1 = \"CANARY\\q\"",
            "[callback_tokens]\nwx1 = 'CANARY' CANARY",
            "[callback_tokens]\nwx1 = 'CANARY'\nwx1 = 'CANARY'",
            "[callback_tokens]\nwx1 = 'CANARY é'",
            "[callback_tokens]\nwx1 = ['CANARY']",
            "[callback_tokens]\nwx9 = 'CANARY'",
            "[callback_tokens]\nCANARY = 'wx1'",
            "[callback_tokens]\nCANARY = 'a'\nCANARY = 'b'",
            "[callback_tokens]\nCANARY",
            "[CANARY]\nwx1 = 'CANARY'",
            "CANARY = 'wx1'",
            "callback_tokens = 'CANARY'",
        ] {
            let problems = parsed(&text.replace("CANARY", CANARY)).unwrap_err();
            assert!(!format!("{problems:?}").contains(CANARY), "{text:?}: {problems:?}");
        }
        let tokens = parsed(&format!("[callback_tokens]\nwx1 = '{CANARY}'")).unwrap();
        assert!(!format!("{tokens:?}").contains(CANARY));
    }

    #[test]
    fn syntax_error_is_reported_with_its_line() {
        let problems = parsed("[callback_tokens]\n# é\nwx1 = what\n").unwrap_err();
        assert!(problems[0].starts_with("the callback tokens file, line 3: "), "{problems:?}");
    }
}
