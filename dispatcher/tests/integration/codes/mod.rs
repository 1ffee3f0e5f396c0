//! Every code of WeChat, by a single message and by a broadcast. Each code has an app of its own, so that one
//! dispatcher serves all of them.

mod broadcasts;
mod details;
mod doubt;
mod sends;

use std::collections::BTreeSet;
use std::time::Duration;

use dispatcher::wechat::errcode;
use dispatcher::wechat::message::Delivery;
use domain::{AppId, Credential, CredentialId, Grant, GrantUses, Kind, LIFETIME, OpenId, TemplateId};
use sandbox::{Books, Endpoint, FaultKind, Granting, Match, Rule, Submission};
use serde_json::json;
use server::proto::{self, SendTemplateRequest};
use store::credentials::Packed;
use store::stock::Ledger;
use testing::{eventually, now};

use crate::fixture::{Fixture, SECRET, request};
use crate::subscription::data;

/// Longer than any stop.
const LATER: Duration = Duration::from_secs(25 * 3600);

const TEMPLATE: &str = "order-ready";
const OTHER_TEMPLATE: &str = "order-late";

/// What a code stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Template,
    /// A source of credentials, or the API of a message generation.
    Generation,
    App,
}

/// What a correct sender does after a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It sends again with the same credential.
    Again,
    /// It discards the credential, and takes the next.
    Next,
    /// The message fails with this reason; the credential goes back.
    Refuse(&'static str),
    /// The message may be sent later; the credential goes back.
    Busy,
    /// The outcome is unknown; the use counts as spent.
    Unknown,
    /// Nothing of this scope is sent; the message may be sent later. Has the reasons of a send and of a broadcast.
    Stop(Scope, &'static str, proto::PauseReason),
}

const STOP: Then = Then::Stop(Scope::App, "APP_STOPPED", proto::PauseReason::AppStopped);
const STOP_GENERATION: Then = Then::Stop(Scope::Generation, "APP_STOPPED", proto::PauseReason::AppStopped);
const STOP_TEMPLATE: Then = Then::Stop(Scope::Template, "TEMPLATE_STOPPED", proto::PauseReason::TemplateStopped);
const QUOTA: Then = Then::Stop(Scope::Generation, "QUOTA_REACHED", proto::PauseReason::Quota);

/// A code that is not in the table.
const UNKNOWN: i32 = 88888;

const TABLE: &[(&[i32], Then)] = &[
    (&[-1, 20001, 40001, 40014, 41001, 42001, 43108, 45011, 61450], Then::Again),
    (&[41028, 41029, 41031], Then::Next),
    (&[40003, 43004, 43005, 43019, 43101, 48002, 50005], Then::Refuse("USER_REFUSED")),
    (&[40033, 40035, 40036, 40037, 40097, 40241, 40249, 40250], Then::Refuse("MESSAGE_REFUSED")),
    (&[41030, 45002, 45168, 47001, 47003, UNKNOWN], Then::Refuse("MESSAGE_REFUSED")),
    (&[43117], Then::Busy),
    (&[40252], Then::Unknown),
    (&[43116], STOP_TEMPLATE),
    (&[41032, 41034, 41035, 45103], STOP_GENERATION),
    (&[41018, 43104, 43107, 48001, 48004, 50001, 61003, 61007, 61014, 61016], STOP_GENERATION),
    (&[40251, 45009, 45029], QUOTA),
    (&[40013, 45102, 45501, 50002], STOP),
    (&[40164, 45035, 61004], STOP),
    (&[40066, 41002, 43001, 43002, 43003, 44002], STOP),
];

/// Codes about form ids and prepay ids, and 43101, which a grant answers in a way of its own.
const NOT_OF_GRANTS: [i32; 8] = [41028, 41029, 41031, 41032, 41034, 41035, 43101, 45103];

#[test]
fn table_of_the_tests_has_every_code() {
    let known = errcode::TABLE.iter().map(|row| row.errcode).filter(|errcode| *errcode != 0).chain([UNKNOWN]);
    let tested: Vec<i32> = TABLE.iter().flat_map(|(codes, _)| *codes).copied().collect();
    assert_eq!(tested.iter().copied().collect::<BTreeSet<_>>(), known.collect());
    assert_eq!(tested.iter().collect::<BTreeSet<_>>().len(), tested.len(), "a code twice");
}

/// A code, answered to messages of a generation.
#[derive(Debug, Clone)]
struct Case {
    errcode: i32,
    then: Then,
    delivery: Delivery,
    /// The app that meets the code.
    app: AppId,
}

fn cases(delivery: Delivery) -> Vec<Case> {
    let codes = TABLE.iter().flat_map(|(codes, then)| codes.iter().map(|errcode| (*errcode, *then)));
    let codes = codes.filter(|(errcode, _)| delivery == Delivery::FormId || !NOT_OF_GRANTS.contains(errcode));
    let app = |errcode: i32| AppId::parse(format!("wx{errcode}")).unwrap();
    codes.map(|(errcode, then)| Case { errcode, then, delivery, app: app(errcode) }).collect()
}

/// A fixture whose dispatchers send for the app of each case.
async fn fixture_of(cases: &[Case]) -> Fixture {
    let mut fixture = Fixture::patient().await;
    for case in cases {
        fixture.sandbox.add_app(case.app.as_str(), SECRET).unwrap();
        fixture.app_settings += &format!(
            "[apps.{}]\nsecret = \"{SECRET}\"\nbase_url = \"{}\"\ntimeout = \"20s\"\nconnect_timeout = \"5s\"\n",
            case.app.as_str(),
            fixture.base_url
        );
    }
    // Otherwise a quota stop could end when WeChat reports the quota.
    fixture.change(json!({"quota_get": false, "review_ms": 50}));
    fixture
}

impl Case {
    /// The next `times` sends of the case's app and generation are answered with this fault.
    fn script(&self, fixture: &Fixture, rule: Rule, times: u64) {
        let endpoint = if self.delivery == Delivery::FormId { Endpoint::Send } else { Endpoint::Subscribe };
        let matching = Match { app_id: Some(self.app.to_string()), ..Match::default() };
        fixture.sandbox.add_faults(vec![Rule { times: Some(times), endpoint, matching, ..rule }]).unwrap();
    }

    /// The next `times` sends are answered with the case's code.
    fn answer(&self, fixture: &Fixture, times: u64) {
        self.script(fixture, Rule { errcode: Some(self.errcode), ..Rule::new(FaultKind::Answer) }, times);
    }

    /// A user submits a form, or accepts a template once.
    async fn give(&self, fixture: &Fixture, openid: &str, kind: Kind, template: &str) {
        let (app, user) = (self.app.as_str(), OpenId::parse(openid).unwrap());
        let packed = if kind == Kind::Grant {
            fixture.sandbox.grant(app, vec![Granting::new(openid, template)]).unwrap();
            let template = TemplateId::parse(template).unwrap();
            Packed::grant(user.clone(), &Grant { template, uses: GrantUses::Count(1) }, None)
        } else {
            let (submission, uses) = match kind {
                Kind::FormId => (Submission::form(openid), 1),
                _ => (Submission { submitted_at: Some(now() as u64 - 600), ..Submission::prepay(openid) }, 3),
            };
            let id = fixture.sandbox.submit(app, vec![submission]).unwrap().remove(0);
            let expiry = (now() as u64 + LIFETIME.as_secs() - 600) as u32;
            Packed::new(user.clone(), &Credential { kind, id: CredentialId::parse(id).unwrap(), uses, expiry })
        };
        let bucket = fixture.store.bucket_of(&user);
        assert!(fixture.store.collect(&self.app, bucket, &[packed]).await.unwrap().is_empty());
    }

    /// The kind of credential that the case's messages spend.
    fn kind(&self) -> Kind {
        if self.delivery == Delivery::FormId { Kind::FormId } else { Kind::Grant }
    }

    /// A message of the case's generation with a request id.
    fn message(&self, openid: &str, template: &str, request_id: &str) -> SendTemplateRequest {
        SendTemplateRequest {
            app_id: self.app.to_string(),
            template_id: template.into(),
            data: data("thing1", request_id),
            delivery: proto::Delivery::from(self.delivery).into(),
            ..request(openid, "", request_id)
        }
    }

    /// Number of messages that the user's credentials of a kind permit; of grants, those of [`TEMPLATE`].
    async fn left(&self, fixture: &Fixture, openid: &str, kind: Kind) -> u32 {
        let template = (kind == Kind::Grant).then(|| TemplateId::parse(TEMPLATE).unwrap());
        let inventory = fixture.store.inventory(&self.app, &OpenId::parse(openid).unwrap(), now(), 0).await.unwrap();
        inventory.get(&(kind, template)).map_or(0, |available| available.messages)
    }

    async fn ledger(&self, fixture: &Fixture) -> Ledger {
        fixture.store.ledger(&self.app).await.unwrap()
    }

    fn books(&self, fixture: &Fixture) -> Books {
        fixture.sandbox.books(Some(self.app.as_str())).unwrap()
    }

    /// Asserts that no message is in flight, and that none was delivered twice.
    async fn assert_settled(&self, fixture: &Fixture) {
        eventually("no lease is left", Duration::from_secs(20), async || self.ledger(fixture).await.leased == 0).await;
        assert_eq!(self.books(fixture).delivered_twice, 0, "{self:?}");
    }
}
