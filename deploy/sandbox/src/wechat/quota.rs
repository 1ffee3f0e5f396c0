//! `openapi/quota/get`: how much of its daily quota an app has used, and `clear_quota`, which resets it. These calls are
//! not sends and use no quota.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};

use super::{Call, MaybeWire, TokenQuery, object, run, token_of, wait};
use crate::answer::{self, No, code};
use crate::api::Api;
use crate::app::App;
use crate::rules::{Endpoint, Facts};
use crate::settings::Limits;
use crate::{Sandbox, Settings, clock};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    #[serde(default)]
    cgi_path: String,
}

struct Inquiry {
    app: Result<Arc<App>, No>,
    question: Result<Question, No>,
    now_ms: u64,
    settings: Arc<Settings>,
}

/// Waits like WeChat. Returns the app of the token, the time and the settings.
async fn begin(
    sandbox: &Sandbox,
    query: Result<Query<TokenQuery>, QueryRejection>,
) -> (Result<Arc<App>, No>, u64, Arc<Settings>) {
    let settings = sandbox.current();
    wait(&settings).await;
    let now_ms = clock::now_ms(&settings);
    (sandbox.tokens().app(token_of(query).as_deref(), now_ms), now_ms, settings)
}

pub(super) async fn quota(
    State(sandbox): State<Sandbox>,
    wire: MaybeWire,
    query: Result<Query<TokenQuery>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let (app, now_ms, settings) = begin(&sandbox, query).await;
    run(&sandbox, wire, Inquiry { app, question: object(body), now_ms, settings }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Clearing {
    #[serde(default)]
    appid: String,
}

/// Fault rules do not apply to this call.
pub(super) async fn clear(
    State(sandbox): State<Sandbox>,
    query: Result<Query<TokenQuery>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let (app, now_ms, _) = begin(&sandbox, query).await;
    let cleared = app.and_then(|app| {
        let Clearing { appid } = object(body)?;
        if appid != app.id {
            return Err(No::code(code::APP_UNKNOWN));
        }
        app.ledger().clear_quota(now_ms)
    });
    cleared.map_or_else(|no| answer::refusal(&no), |()| answer::sent(None))
}

#[derive(Serialize)]
struct Known {
    errcode: i32,
    errmsg: &'static str,
    quota: Quota,
    /// Absent if no rate is set: then no rate is enforced.
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_limit: Option<RateLimit>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Quota {
    daily_limit: u64,
    used: u64,
    remain: u64,
}

#[derive(Serialize)]
struct RateLimit {
    call_count: u64,
    refresh_second: u64,
}

impl Quota {
    fn new(used: u64, api: Api, limits: &Limits) -> Self {
        let daily_limit = if limits.daily_quota == 0 { api.published_limit() } else { limits.daily_quota };
        Self { daily_limit, used, remain: daily_limit.saturating_sub(used) }
    }
}

impl Inquiry {
    fn decide(self) -> Result<Known, No> {
        let app = self.app?;
        if !self.settings.quota_get {
            return Err(No::code(code::NOT_PERMITTED));
        }
        let api = Api::of_path(&self.question?.cgi_path).ok_or_else(|| No::code(code::CGI_PATH_UNKNOWN))?;
        let limits = self.settings.limits(api);
        let quota = Quota::new(app.ledger().pace(api).used(self.now_ms), api, &limits);
        let per_second = Some(limits.per_second).filter(|per_second| *per_second > 0);
        let rate_limit = per_second.map(|call_count| RateLimit { call_count, refresh_second: 1 });
        Ok(Known { errcode: code::OK, errmsg: "ok", quota, rate_limit })
    }
}

impl Call for Inquiry {
    fn facts(&self) -> Facts<'_> {
        let app_id = self.app().map(|app| app.id.as_str());
        Facts { endpoint: Endpoint::Quota, app_id, openid: None, template_id: None }
    }

    fn app(&self) -> Option<&App> {
        self.app.as_deref().ok()
    }

    fn process(self, sandbox: &Sandbox) -> Response {
        sandbox.note(self.app(), |book| book.quota_query());
        match self.decide() {
            Ok(known) => answer::json(&known),
            Err(no) => answer::refusal(&no),
        }
    }

    fn skip(&self, sandbox: &Sandbox, _answered: Option<i32>) {
        sandbox.note(self.app(), |book| book.quota_query());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remain_is_of_the_set_or_published_limit_and_never_negative() {
        let limited = Settings { daily_quota: 10, subscribe_daily_quota: 20, ..Settings::default() };
        let unlimited = Settings { subscribe_daily_quota: 0, ..Settings::default() };
        for (used, api, settings, daily_limit, remain) in [
            (0, Api::Template, &unlimited, 1_000_000, 1_000_000),
            (1_000_001, Api::Template, &unlimited, 1_000_000, 0),
            (1_000_001, Api::Subscribe, &unlimited, 10_000_000, 8_999_999),
            (0, Api::Subscribe, &Settings::default(), 10_000_000, 10_000_000),
            (4, Api::Template, &limited, 10, 6),
            (10, Api::Template, &limited, 10, 0),
            (4, Api::Subscribe, &limited, 20, 16),
        ] {
            assert_eq!(Quota::new(used, api, &settings.limits(api)), Quota { daily_limit, used, remain });
        }
    }
}
