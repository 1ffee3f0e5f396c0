//! Where the access tokens of an app come from.

use std::fmt;
use std::path::{Path, PathBuf};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url};

use crate::app::Secret;

#[derive(Debug, Clone)]
pub enum TokenSource {
    /// WeChat, which exchanges the app's secret for a token.
    WeChat { secret: Secret, endpoint: TokenEndpoint },
    /// A token server of the operator (`token_url`).
    Server(TokenServer),
    /// A file that another program keeps up to date (`token_file`).
    File(TokenFile),
    /// Calls carry no token (`token = "none"`): in WeChat's cloud run, the platform adds it.
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenEndpoint {
    /// `stable_token`: another call returns the same token, so no token becomes invalid.
    Stable,
    /// `token`: another call invalidates the earlier token within minutes, for all its users.
    Plain,
}

/// `Debug` hides the URL, because its query may contain a key.
#[derive(Clone)]
pub struct TokenServer {
    /// http or https, without user info and fragment.
    pub url: Url,
    /// GET or POST. The body of a POST is JSON with the app id.
    pub method: Method,
    /// Lines `Name: value`, read before each request, since they may expire too.
    pub headers_file: Option<PathBuf>,
    pub path: TokenPath,
    /// The query parameter of a GET, or the JSON field of a POST, with the token that WeChat rejected.
    pub report: Option<String>,
}

impl fmt::Debug for TokenServer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, headers_file, path, report, .. } = self;
        let mut server = out.debug_struct("TokenServer");
        server.field("method", method).field("headers_file", headers_file).field("path", path);
        server.field("report", report).finish_non_exhaustive()
    }
}

/// Reads a file with a header in each line: `Name: value`. The error is a sentence that does not quote its content.
pub fn read_headers(path: &Path) -> Result<HeaderMap, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{path:?} cannot be read: {error}"))?;
    let lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty());
    let headers = lines.map(|(number, line)| {
        header(line)
            .ok_or_else(|| format!("line {} of the file is not a header such as Authorization: Bearer abc", number + 1))
    });
    headers.collect()
}

fn header(line: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = line.split_once(':')?;
    let mut value = HeaderValue::from_str(value.trim()).ok().filter(|value| !value.is_empty())?;
    value.set_sensitive(true);
    Some((HeaderName::from_bytes(name.trim_end().as_bytes()).ok()?, value))
}

#[derive(Debug, Clone)]
pub struct TokenFile {
    pub path: PathBuf,
    /// Where the token is in the file's JSON. `None`: the file contains only the token.
    pub json: Option<TokenPath>,
}

/// The names of nested JSON objects that lead to a token, written as `data.token`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenPath(Vec<String>);

impl TokenPath {
    /// `None` if a name is empty.
    pub fn parse(text: &str) -> Option<Self> {
        let names: Vec<_> = text.split('.').map(str::to_owned).collect();
        names.iter().all(|name| !name.is_empty()).then_some(Self(names))
    }

    /// The names of the objects around the token, and its own name.
    pub fn names(&self) -> (&[String], &str) {
        self.0.split_last().map_or((&[], ""), |(last, around)| (around, last))
    }
}

impl Default for TokenPath {
    fn default() -> Self {
        Self(vec!["access_token".to_owned()])
    }
}
