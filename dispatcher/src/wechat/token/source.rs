//! Tokens that do not come from WeChat: from a token server or a file, or none at all.

use std::path::PathBuf;
use std::time::Duration;

use domain::AppId;
use reqwest::header::HeaderMap;
use reqwest::{Method, Request};
use serde_json::{Map, Value};
use tracing::Span;

use super::backoff::MAX_LIFE;
use crate::app::App;
use crate::spans;
use crate::token_source::{TokenEndpoint, TokenFile, TokenPath, TokenServer, TokenSource, read_headers};
use crate::wechat::error::{ClientError, SourceFault, SourceKey, TokenError};
use crate::wechat::http::{Http, post};
use crate::wechat::reply::FetchedToken;

/// Lifetime of a token if the server's answer has no `expires_in`. Then the server is asked again.
const UNSTATED_LIFE: Duration = Duration::from_secs(300);

/// Maximum length of a token. WeChat's have some 150 characters, and its documents tell to provide for 512.
const LONGEST_TOKEN: usize = 2048;

/// The configured source, with its connections.
pub(super) enum Source {
    WeChat(TokenEndpoint),
    Server(ServerClient),
    File(TokenFile),
    None,
}

impl Source {
    pub(super) fn of(app: &App) -> Result<Self, ClientError> {
        Ok(match &app.token_source {
            TokenSource::WeChat { endpoint, .. } => Self::WeChat(*endpoint),
            TokenSource::Server(server) => {
                // Without the app's proxy: that one leads out of the company, and the token server is inside.
                let http = Http::new(app, &server.url, None)?;
                Self::Server(ServerClient { http, app: app.id.clone(), server: server.clone() })
            }
            TokenSource::File(file) => Self::File(file.clone()),
            TokenSource::None => Self::None,
        })
    }

    /// Whether the replicas share the token through Redis.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self, Self::WeChat(_) | Self::Server(_))
    }
}

pub(super) struct ServerClient {
    http: Http,
    app: AppId,
    server: TokenServer,
}

impl ServerClient {
    /// Asks the server once. `rejected` is the token that WeChat rejected, if this is the reason to ask.
    pub(super) async fn ask(&self, rejected: Option<&str>) -> Result<FetchedToken, TokenError> {
        let name = if self.server.method == Method::POST { "POST" } else { "GET" };
        let span = spans::call(&self.app, &self.server.url, "token_url", name);
        let answer = self.exchange(rejected, &span).await;
        match &answer {
            Ok(_) => {}
            Err(SourceFault::Call(cause)) => spans::unanswered(&span, *cause),
            Err(_) => spans::no_token(&span),
        }
        answer.map_err(|fault| SourceKey::TokenUrl.fails(fault))
    }

    async fn exchange(&self, rejected: Option<&str>, span: &Span) -> Result<FetchedToken, SourceFault> {
        let headers = match self.server.headers_file.clone() {
            Some(file) => read_headers_aside(file).await.ok_or(SourceFault::Headers)?,
            None => HeaderMap::new(),
        };
        let mut request = self.request(rejected);
        request.headers_mut().extend(headers);
        let body = self.http.exchange(request, span).await.map_err(SourceFault::Call)?;
        in_answer(&self.server.path, &body)
    }

    fn request(&self, rejected: Option<&str>) -> Request {
        let TokenServer { url, method, report, .. } = &self.server;
        let mut url = url.clone();
        let report = report.as_deref().zip(rejected);
        if *method == Method::POST {
            let app_id = Some(("appid", self.app.as_str()));
            let body: Map<_, _> =
                app_id.into_iter().chain(report).map(|(name, value)| (name.to_owned(), value.into())).collect();
            return post(url, Value::Object(body).to_string().into_bytes());
        }
        if let Some((name, value)) = report {
            url.query_pairs_mut().append_pair(name, value);
        }
        Request::new(Method::GET, url)
    }
}

/// In a blocking thread, so that a slow disk does not delay calls.
async fn read_headers_aside(file: PathBuf) -> Option<HeaderMap> {
    tokio::task::spawn_blocking(move || read_headers(&file).ok()).await.ok().flatten()
}

/// Finds the token in the answer of a token server, and `expires_in` in the same object.
fn in_answer(path: &TokenPath, body: &[u8]) -> Result<FetchedToken, SourceFault> {
    let answer = object(body)?;
    let Some((around, token)) = at(path, &answer) else {
        let errcode = answer.get("errcode").and_then(Value::as_i64).and_then(|code| i32::try_from(code).ok());
        return Err(match errcode {
            Some(errcode) if errcode != 0 => SourceFault::Errcode(errcode),
            _ => SourceFault::NoToken,
        });
    };
    let token = plausible(token).ok_or(SourceFault::NoToken)?;
    let seconds = match around.get("expires_in") {
        None | Some(Value::Null) => Some(UNSTATED_LIFE.as_secs_f64()),
        // Some servers write numbers as strings.
        Some(Value::String(text)) => text.trim().parse().ok(),
        Some(value) => value.as_f64(),
    };
    let seconds = seconds.filter(|seconds| seconds.is_finite()).ok_or(SourceFault::NoLife)?;
    // Less than a second is no use, and would let the server be asked many times a second.
    if seconds < 1.0 {
        return Err(SourceFault::Expired);
    }
    let life = Duration::from_secs_f64(seconds.min(MAX_LIFE.as_secs_f64()));
    Ok(FetchedToken { token: token.to_owned(), life })
}

/// Finds the token in the content of a token file.
pub(super) fn in_file(file: &TokenFile, content: &[u8]) -> Result<String, SourceFault> {
    let token = match &file.json {
        Some(path) => {
            let content = object(content)?;
            at(path, &content).and_then(|(_, token)| plausible(token)).map(str::to_owned)
        }
        None => std::str::from_utf8(content).ok().and_then(plausible).map(str::to_owned),
    };
    token.ok_or(SourceFault::NoToken)
}

fn object(text: &[u8]) -> Result<Map<String, Value>, SourceFault> {
    serde_json::from_slice(text).map_err(|_| SourceFault::NotJson)
}

/// The object around the token, and the token.
fn at<'a>(path: &TokenPath, answer: &'a Map<String, Value>) -> Option<(&'a Map<String, Value>, &'a str)> {
    let (outer, name) = path.names();
    let around = outer.iter().try_fold(answer, |object, name| object.get(name)?.as_object())?;
    Some((around, around.get(name)?.as_str()?))
}

/// The token without the white space around it. `None` if it cannot be one, such as an error page or JSON.
fn plausible(token: &str) -> Option<&str> {
    let token = token.trim();
    let fits = |byte: u8| byte.is_ascii_graphic() && !b"{}<>\"".contains(&byte);
    ((1..=LONGEST_TOKEN).contains(&token.len()) && token.bytes().all(fits)).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TokenPath {
        TokenPath::parse(text).unwrap()
    }

    #[test]
    fn token_is_found_at_its_path_and_its_life_beside_it() {
        for (at, answer, life) in [
            ("access_token", r#"{"access_token":"t","expires_in":7200}"#, 7200),
            ("access_token", r#" {"access_token":" t\n","expires_in":" 60 "}"#, 60),
            ("access_token", r#"{"access_token":"t","expires_in":59.9,"errcode":0}"#, 59),
            ("access_token", r#"{"access_token":"t"}"#, 300),
            ("access_token", r#"{"access_token":"t","expires_in":1764000000}"#, 24 * 3600),
            ("authorizer_access_token", r#"{"authorizer_access_token":"t","expires_in":1}"#, 1),
            ("data.token", r#"{"code":0,"expires_in":5,"data":{"token":"t","expires_in":90}}"#, 90),
            ("a.b.c", r#"{"a":{"b":{"c":"t"}}}"#, 300),
        ] {
            let fetched = in_answer(&path(at), answer.as_bytes()).unwrap();
            assert_eq!((fetched.token.as_str(), fetched.life.as_secs()), ("t", life), "{answer}");
        }
    }

    #[test]
    fn each_unusable_answer_has_its_fault() {
        let long = format!(r#"{{"access_token":"{}"}}"#, "x".repeat(LONGEST_TOKEN + 1));
        for (answer, fault) in [
            ("", SourceFault::NotJson),
            ("<html>", SourceFault::NotJson),
            ("\"t\"", SourceFault::NotJson),
            (r#"["t"]"#, SourceFault::NotJson),
            ("{}", SourceFault::NoToken),
            (r#"{"access_token":null}"#, SourceFault::NoToken),
            (r#"{"access_token":""}"#, SourceFault::NoToken),
            (r#"{"access_token":"a b"}"#, SourceFault::NoToken),
            (r#"{"access_token":"<html>"}"#, SourceFault::NoToken),
            (r#"{"access_token":{"access_token":"t"}}"#, SourceFault::NoToken),
            (&long, SourceFault::NoToken),
            (r#"{"errcode":40164,"errmsg":"t"}"#, SourceFault::Errcode(40164)),
            (r#"{"errcode":99999999999}"#, SourceFault::NoToken),
            (r#"{"access_token":"t","expires_in":0}"#, SourceFault::Expired),
            (r#"{"access_token":"t","expires_in":-7}"#, SourceFault::Expired),
            (r#"{"access_token":"t","expires_in":0.5}"#, SourceFault::Expired),
            (r#"{"access_token":"t","expires_in":"soon"}"#, SourceFault::NoLife),
            (r#"{"access_token":"t","expires_in":"NaN"}"#, SourceFault::NoLife),
            (r#"{"access_token":"t","expires_in":{}}"#, SourceFault::NoLife),
        ] {
            assert_eq!(in_answer(&TokenPath::default(), answer.as_bytes()).unwrap_err(), fault, "{answer}");
        }
        assert_eq!(in_answer(&path("a.b"), br#"{"a":"t"}"#).unwrap_err(), SourceFault::NoToken);
    }

    #[test]
    fn file_has_a_token_or_json() {
        let file = |json: Option<&str>| TokenFile { path: PathBuf::new(), json: json.map(path) };
        assert_eq!(in_file(&file(None), b" 71_t-t\n").unwrap(), "71_t-t");
        assert_eq!(in_file(&file(Some("a.b")), br#"{"a":{"b":"t"}}"#).unwrap(), "t");
        for content in ["", "\n", "a b", "t\nt", r#"{"access_token":"t"}"#, "é"] {
            assert_eq!(in_file(&file(None), content.as_bytes()).unwrap_err(), SourceFault::NoToken, "{content}");
        }
        assert_eq!(in_file(&file(None), b"\xff").unwrap_err(), SourceFault::NoToken);
        assert_eq!(in_file(&file(Some("a")), b"t").unwrap_err(), SourceFault::NotJson);
    }
}
