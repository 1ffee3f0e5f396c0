//! The keys of the apps file about the source of access tokens. An app has exactly one source.

use std::path::PathBuf;

use domain::table::TableReader;
use reqwest::{Method, Url};

use crate::app::Secret;
use crate::token_source::{TokenEndpoint, TokenFile, TokenPath, TokenServer, TokenSource, read_headers};

const SOURCES: [&str; 4] = ["secret", "secret_file", "token_url", "token_file"];
const EXPECTED: &str = "give exactly one of secret, secret_file, token_url, token_file and token = \"none\"";

/// Keys that need one of other keys.
const NEEDS: [(&str, &[&str], &str); 4] = [
    ("token_method", &["token_url"], "is only for token_url"),
    ("token_headers_file", &["token_url"], "is only for token_url"),
    ("token_report", &["token_url"], "is only for token_url"),
    ("token_path", &["token_url", "token_file"], "is only for token_url and token_file"),
];

/// The value of the key `token`.
#[derive(Clone, Copy)]
enum Token {
    Of(TokenEndpoint),
    None,
}

pub(super) fn read(reader: &mut TableReader<'_>) -> Option<TokenSource> {
    let given: Vec<_> = SOURCES.into_iter().filter(|key| reader.get(key).is_some()).collect();
    for (key, needed, sentence) in NEEDS {
        if reader.get(key).is_some() && !needed.iter().any(|key| given.contains(key)) {
            reader.wrong_key(key, sentence);
        }
    }
    let expected = "\"stable_token\", \"token\" or \"none\"";
    let token = reader.parsed("token", Token::Of(TokenEndpoint::Stable), expected, |value| match value.as_str()? {
        "stable_token" => Some(Token::Of(TokenEndpoint::Stable)),
        "token" => Some(Token::Of(TokenEndpoint::Plain)),
        "none" => Some(Token::None),
        _ => None,
    });
    match (&given[..], token) {
        ([], Token::None) => return Some(TokenSource::None),
        ([], Token::Of(_)) => {
            reader.wrong(format_args!("has no secret and no other source of access tokens: {EXPECTED}"))
        }
        ([source], Token::None) => reader.wrong(format_args!("has both {source} and token = \"none\": {EXPECTED}")),
        ([source], Token::Of(endpoint)) => return one(reader, source, endpoint),
        ([first, second, ..], _) => reader.wrong(format_args!("has both {first} and {second}: {EXPECTED}")),
    }
    None
}

fn one(reader: &mut TableReader<'_>, source: &str, endpoint: TokenEndpoint) -> Option<TokenSource> {
    let of_wechat = source.starts_with("secret");
    if !of_wechat && reader.get("token").is_some() {
        reader.wrong_key(
            "token",
            format_args!("must not be given beside {source}: it selects the endpoint for a secret"),
        );
    }
    match source {
        "token_url" => server(reader).map(TokenSource::Server),
        "token_file" => file(reader).map(TokenSource::File),
        _ => secret(reader, source).map(|secret| TokenSource::WeChat { secret, endpoint }),
    }
}

fn secret(reader: &mut TableReader<'_>, key: &str) -> Option<Secret> {
    let text = reader.text(key)?;
    if key == "secret" {
        let secret = Secret::parse(text);
        if secret.is_none() {
            reader.wrong_key(key, "must be one or more visible ASCII characters");
        }
        return secret;
    }
    match std::fs::read_to_string(text).map(|content| Secret::parse(&content)) {
        Ok(Some(secret)) => return Some(secret),
        Ok(None) => reader.wrong_key(key, "the file must contain one or more visible ASCII characters"),
        Err(error) => reader.wrong_key(key, format_args!("{text:?} cannot be read: {error}")),
    }
    None
}

fn server(reader: &mut TableReader<'_>) -> Option<TokenServer> {
    let url = reader.text("token_url").map(check_url);
    let url = url.and_then(|url| url.map_err(|sentence| reader.wrong_key("token_url", sentence)).ok());
    let method = reader.parsed("token_method", Method::GET, "\"GET\" or \"POST\"", |value| match value.as_str()? {
        "GET" => Some(Method::GET),
        "POST" => Some(Method::POST),
        _ => None,
    });
    let report = reader.parsed("token_report", None, "the name of a query parameter or a JSON field", |value| {
        value.as_str().filter(|name| !name.is_empty()).map(|name| Some(name.to_owned()))
    });
    let headers_file = reader.text("token_headers_file").map(PathBuf::from);
    if let Some(Err(sentence)) = headers_file.as_deref().map(read_headers) {
        reader.wrong_key("token_headers_file", sentence);
    }
    let path = json_path(reader).unwrap_or_default();
    Some(TokenServer { url: url?, method, headers_file, path, report })
}

fn file(reader: &mut TableReader<'_>) -> Option<TokenFile> {
    let json = json_path(reader);
    Some(TokenFile { path: reader.text("token_file")?.into(), json })
}

fn json_path(reader: &mut TableReader<'_>) -> Option<TokenPath> {
    reader.parsed("token_path", None, "names joined by dots, such as data.token", |value| {
        TokenPath::parse(value.as_str()?).map(Some)
    })
}

/// Errors do not quote the URL: its query may contain a key.
fn check_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("is not a URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        Err("must begin with https:// or http://".into())
    } else if !url.username().is_empty() || url.password().is_some() {
        Err("must not have a user or a password; token_headers_file may contain an Authorization header".into())
    } else if url.fragment().is_some() {
        Err("must not have a '#'".into())
    } else {
        Ok(url)
    }
}

#[cfg(test)]
mod tests {
    use domain::config_errors::{ConfigErrors, SettingsError};

    use super::*;
    use crate::apps_file::Apps;

    fn parse(keys: &str) -> Result<TokenSource, Vec<String>> {
        let mut problems = ConfigErrors::default();
        let apps = Apps::parse(&format!("[apps.wx1]\n{keys}"), &mut problems);
        let apps = problems.finish(apps).map_err(|SettingsError(problems)| problems)?;
        Ok(apps.iter().next().unwrap().token_source.clone())
    }

    #[test]
    fn token_server_has_defaults_and_needs_no_secret() {
        let Ok(TokenSource::Server(server)) = parse("token_url = 'https://tokens/get?app=wx1'") else { panic!() };
        assert_eq!((server.url.as_str(), server.method), ("https://tokens/get?app=wx1", Method::GET));
        assert_eq!((server.headers_file, server.path, server.report), (None, TokenPath::default(), None));

        let folder = tempfile::tempdir().unwrap();
        let headers = folder.path().join("headers");
        std::fs::write(&headers, "Authorization: Bearer abc\n\n x-tenant:7 \n").unwrap();
        let keys = format!(
            "token_url = 'http://tokens'\ntoken_method = 'POST'\ntoken_path = 'data.token'\ntoken_report = 'invalid'\n\
             token_headers_file = {headers:?}"
        );
        let Ok(TokenSource::Server(server)) = parse(&keys) else { panic!() };
        assert_eq!((server.method, server.report.as_deref()), (Method::POST, Some("invalid")));
        assert_eq!(server.path.names(), (&["data".to_owned()][..], "token"));
        let headers = read_headers(&headers).unwrap();
        assert_eq!((headers.len(), headers["x-tenant"].as_bytes()), (2, &b"7"[..]));
        assert_eq!(headers["authorization"].as_bytes(), b"Bearer abc");
        assert!(headers["authorization"].is_sensitive());
    }

    #[test]
    fn token_may_be_in_a_file_that_does_not_exist_yet_or_be_absent() {
        let Ok(TokenSource::File(file)) = parse("token_file = '/does/not/exist'") else { panic!() };
        assert_eq!((file.path, file.json), ("/does/not/exist".into(), None));
        let Ok(TokenSource::File(file)) = parse("token_file = 'a'\ntoken_path = 'b'") else { panic!() };
        assert_eq!(file.json, TokenPath::parse("b"));
        assert!(matches!(parse("token = 'none'"), Ok(TokenSource::None)));
    }

    #[test]
    fn exactly_one_source_is_accepted_and_errors_name_the_key() {
        for (keys, expected) in [
            ("", "[apps.wx1]: has no secret and no other source of access tokens: give exactly one of secret, "),
            ("token = 'token'", "[apps.wx1]: has no secret and no other source"),
            ("secret = 's'\ntoken_url = 'http://a'", "[apps.wx1]: has both secret and token_url: give exactly one"),
            ("secret_file = 's'\ntoken_file = 'a'", "[apps.wx1]: has both secret_file and token_file"),
            ("token_file = 's'\ntoken_url = 'http://a'", "[apps.wx1]: has both token_url and token_file"),
            ("secret = 's'\ntoken = 'none'", "[apps.wx1]: has both secret and token = \"none\""),
            ("token_url = 'http://a'\ntoken = 'none'", "[apps.wx1]: has both token_url and token = \"none\""),
            ("token_url = 'http://a'\ntoken = 'token'", "[apps.wx1] token: must not be given beside token_url"),
            ("secret = 's'\ntoken_method = 'GET'", "[apps.wx1] token_method: is only for token_url"),
            ("secret = 's'\ntoken_path = 'a'", "[apps.wx1] token_path: is only for token_url and token_file"),
            ("token_file = 's'\ntoken_report = 'a'", "[apps.wx1] token_report: is only for token_url"),
            ("token = 'none'\ntoken_headers_file = 'a'", "[apps.wx1] token_headers_file: is only for token_url"),
            ("token_url = 'tokens'", "[apps.wx1] token_url: is not a URL"),
            ("token_url = 'ftp://a'", "[apps.wx1] token_url: must begin with https:// or http://"),
            ("token_url = 'http://u:p@a'", "[apps.wx1] token_url: must not have a user or a password"),
            ("token_url = 'http://a#b'", "[apps.wx1] token_url: must not have a '#'"),
            ("token_url = 7", "[apps.wx1] token_url: must be a string"),
            ("token_url = 'http://a'\ntoken_method = 'PUT'", "[apps.wx1] token_method: must be \"GET\" or \"POST\""),
            ("token_url = 'http://a'\ntoken_path = 'a..b'", "[apps.wx1] token_path: must be names joined by dots"),
            ("token_url = 'http://a'\ntoken_path = ''", "[apps.wx1] token_path: must be names joined by dots"),
            ("token_url = 'http://a'\ntoken_report = ''", "[apps.wx1] token_report: must be the name"),
            ("token_url = 'http://a'\ntoken_headers_file = '/none'", "token_headers_file: \"/none\" cannot be read"),
            ("token_file = ['a']", "[apps.wx1] token_file: must be a string"),
        ] {
            let problems = parse(keys).unwrap_err();
            assert!(problems.len() == 1 && problems[0].contains(expected), "{expected} in {problems:#?}");
        }
    }

    #[test]
    fn no_error_and_no_debug_output_contains_a_key_of_the_token_server() {
        const CANARY: &str = "c4nary0123456789c4nary0123456789";
        let folder = tempfile::tempdir().unwrap();
        let headers = folder.path().join("headers");
        for (line, fine) in [("Authorization: Bearer CANARY", true), ("CANARY", false), ("x-a CANARY: b", false)] {
            std::fs::write(&headers, line.replace("CANARY", CANARY)).unwrap();
            let keys = format!("token_url = 'http://tokens?key={CANARY}'\ntoken_headers_file = {headers:?}");
            let parsed = parse(&keys);
            assert_eq!(parsed.is_ok(), fine, "{parsed:?}");
            assert!(!format!("{parsed:?}").contains(CANARY), "{parsed:?}");
        }
        for url in ["CANARY", "ftp://CANARY", "http://u:CANARY@a", "http://a#CANARY", "http://a:CANARY"] {
            let problems = parse(&format!("token_url = '{}'", url.replace("CANARY", CANARY))).unwrap_err();
            assert!(!format!("{problems:?}").contains(CANARY), "{problems:?}");
        }
    }
}
