//! The keys of the apps file about the forward proxy. Errors do not quote the value: it may contain a password.

use domain::table::TableReader;
use reqwest::Url;

use crate::app::Proxy;

/// `base_url` is `None` if it is wrong.
pub(super) fn read(reader: &mut TableReader<'_>, base_url: Option<&Url>) -> Option<Proxy> {
    let (key, parsed) = match (reader.get("proxy").is_some(), reader.get("proxy_file").is_some()) {
        (false, false) => return None,
        (true, true) => {
            reader.wrong("has both proxy and proxy_file: give one of them");
            return None;
        }
        (true, false) => ("proxy", Proxy::parse(reader.text("proxy")?)),
        (false, true) => {
            let path = reader.text("proxy_file")?;
            match std::fs::read_to_string(path) {
                Ok(content) => ("proxy_file", Proxy::parse(&content)),
                Err(error) => {
                    reader.wrong_key("proxy_file", format_args!("{path:?} cannot be read: {error}"));
                    return None;
                }
            }
        }
    };
    if base_url.is_some_and(|url| url.scheme() != "https") {
        reader.wrong_key(key, "needs a base_url with https: over http the proxy would see the access tokens");
    }
    parsed.map_err(|sentence| reader.wrong_key(key, sentence)).ok()
}

#[cfg(test)]
mod tests {
    use domain::config_errors::{ConfigErrors, SettingsError};

    use super::*;
    use crate::apps_file::Apps;

    fn parse(keys: &str) -> Result<Option<Proxy>, Vec<String>> {
        let mut problems = ConfigErrors::default();
        let apps = Apps::parse(&format!("[apps.wx1]\nsecret = 's'\n{keys}"), &mut problems);
        let apps = problems.finish(apps).map_err(|SettingsError(problems)| problems)?;
        Ok(apps.iter().next().unwrap().proxy.clone())
    }

    #[test]
    fn proxy_is_given_itself_or_in_a_file() {
        assert_eq!(parse("").unwrap(), None);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("proxy");
        std::fs::write(&file, "http://user:p%40ss@proxy:3128\n").unwrap();
        for keys in ["proxy = 'http://user:p%40ss@proxy:3128/'".to_owned(), format!("proxy_file = {file:?}")] {
            let proxy = parse(&keys).unwrap().unwrap();
            assert_eq!(proxy.reveal().as_str(), "http://user:p%40ss@proxy:3128/");
            assert_eq!(format!("{proxy:?}"), "Proxy(..)");
        }
    }

    #[test]
    fn errors_name_the_key_and_do_not_quote_the_password() {
        const CANARY: &str = "c4nary0123456789";
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("proxy");
        std::fs::write(&file, format!("http://user:{CANARY}@proxy:port")).unwrap();
        let of_file = format!("proxy_file = {file:?}");
        for (keys, expected) in [
            ("proxy = 'CANARY'", "[apps.wx1] proxy: must be a URL such as"),
            ("proxy = 'user:CANARY@proxy:3128'", "[apps.wx1] proxy: must begin with http://"),
            ("proxy = 'https://user:CANARY@proxy'", "[apps.wx1] proxy: must begin with http://"),
            ("proxy = 'socks5://user:CANARY@proxy'", "[apps.wx1] proxy: must begin with http://"),
            ("proxy = 'http://user:CANARY@proxy/path'", "[apps.wx1] proxy: must end after the port"),
            ("proxy = 'http://user:CANARY@proxy?a=CANARY'", "[apps.wx1] proxy: must end after the port"),
            ("proxy = ['CANARY']", "[apps.wx1] proxy: must be a string"),
            ("proxy = 'http://a:CANARY@b'\nproxy_file = 'CANARY'", "[apps.wx1]: has both proxy and proxy_file"),
            ("proxy_file = '/does/not/exist'", "[apps.wx1] proxy_file: \"/does/not/exist\" cannot be read"),
            (&of_file, "[apps.wx1] proxy_file: must be a URL such as"),
            (
                "base_url = 'http://127.0.0.1:1'\nproxy = 'http://a:CANARY@b'",
                "[apps.wx1] proxy: needs a base_url with https",
            ),
        ] {
            let problems = parse(&keys.replace("CANARY", CANARY)).unwrap_err();
            assert!(problems.len() == 1 && problems[0].contains(expected), "{expected} in {problems:#?}");
            assert!(!problems[0].contains(CANARY), "{problems:?}");
        }
    }
}
