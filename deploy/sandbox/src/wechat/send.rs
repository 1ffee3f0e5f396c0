//! `template/send` and `subscribe/send`. They differ in their bodies and in what they spend, and `subscribe/send`
//! allows one call at a time for a user.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::response::Response;

use super::{Call, MaybeWire, TokenQuery, run, token_of, wait};
use crate::answer::{self, No, code};
use crate::api::Api;
use crate::app::{Accepted, App, Sending};
use crate::message::Draft;
use crate::rules::Facts;
use crate::turns::Turn;
use crate::{Sandbox, Settings, clock};

struct Send {
    app: Result<Arc<App>, No>,
    sending: Sending,
    now_ms: u64,
    settings: Arc<Settings>,
}

pub(super) async fn template(
    State(sandbox): State<Sandbox>,
    wire: MaybeWire,
    query: Result<Query<TokenQuery>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    send(Api::Template, &sandbox, wire, token_of(query), body).await
}

pub(super) async fn subscribe(
    State(sandbox): State<Sandbox>,
    wire: MaybeWire,
    query: Result<Query<TokenQuery>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    send(Api::Subscribe, &sandbox, wire, token_of(query), body).await
}

async fn send(
    api: Api,
    sandbox: &Sandbox,
    wire: MaybeWire,
    token: Option<String>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let settings = sandbox.current();
    let draft = body.map_err(|_| No::code(code::BODY_WRONG)).and_then(|body| Draft::parse(api, &body));
    let turn = turn(api, sandbox, token.as_deref(), draft.as_ref().ok(), &settings);
    wait(&settings).await;
    let now_ms = clock::now_ms(&settings);
    let app = sandbox.tokens().app(token.as_deref(), now_ms);
    run(sandbox, wire, Send { app, sending: Sending { api, draft, turn }, now_ms, settings }).await
}

/// Takes the turn before the delay, because the delay is part of the time that a call is in progress. Errors of the
/// token or the body are answered later.
fn turn(api: Api, sandbox: &Sandbox, token: Option<&str>, draft: Option<&Draft>, settings: &Settings) -> Turn {
    if api == Api::Template {
        return Turn::Free;
    }
    let app = sandbox.tokens().app(token, clock::now_ms(settings));
    let (Ok(app), Some(openid)) = (app, draft.and_then(|draft| draft.touser.as_deref())) else {
        return Turn::Free;
    };
    let turn = Turn::of(&app.turns, openid);
    if matches!(turn, Turn::Taken) {
        sandbox.note(Some(&app), |book| book.overlap());
    }
    turn
}

impl Call for Send {
    fn facts(&self) -> Facts<'_> {
        let draft = self.sending.draft.as_ref().ok();
        Facts {
            endpoint: self.sending.api.endpoint(),
            app_id: self.app().map(|app| app.id.as_str()),
            openid: draft.and_then(|draft| draft.touser.as_deref()),
            template_id: draft.and_then(|draft| draft.template_id.as_deref()),
        }
    }

    fn app(&self) -> Option<&App> {
        self.app.as_deref().ok()
    }

    fn process(self, sandbox: &Sandbox) -> Response {
        let app = match self.app {
            Ok(app) => app,
            Err(no) => {
                sandbox.note(None, |book| book.answered(self.sending.api, no.code));
                return answer::refusal(&no);
            }
        };
        match app.send(self.sending, &sandbox.means(self.now_ms, &self.settings)) {
            Ok(Accepted::Template) => answer::sent(None),
            Ok(Accepted::Subscribe { msgid, openid, news }) => {
                sandbox.tell(&app, &openid, &news);
                answer::sent(Some(msgid))
            }
            Err(no) => answer::refusal(&no),
        }
    }

    /// The call counts when it is processed, by the errcode that is decided then.
    fn review(mut self, sandbox: &Sandbox) {
        self.sending.turn = Turn::Free;
        let (sandbox, wait) = (sandbox.clone(), Duration::from_millis(self.settings.review_ms));
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            self.process(&sandbox);
        });
    }

    fn skip(&self, sandbox: &Sandbox, answered: Option<i32>) {
        let api = self.sending.api;
        sandbox.note(self.app(), |book| match answered {
            Some(code) => book.answered(api, code),
            None => book.unprocessed(api),
        });
    }
}
