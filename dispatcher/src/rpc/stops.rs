//! Converts the requests and responses of ListStops and LiftStop.

use std::sync::Arc;

use domain::{AppId, Kind, TemplateId};
use server::auth::Caller;
use server::proto::lift_stop_request::Target;
use server::proto::stop_scope::Scope;
use server::proto::{self, CredentialKind, LiftStopRequest, WholeApp};
use server::rpc::fields::Fields;
use server::rpc::status::Failure;
use store::stops::{Stop, StopScope};

use super::{Service, info};
use crate::context::AppContext;
use crate::wechat::errcode::{Meaning, is_clearable, row_of};

impl Service {
    pub(super) fn parse_list_stops(&self, caller: &Caller, app_id: String) -> Result<&Arc<AppContext>, Failure> {
        let mut fields = Fields::default();
        let app = fields.take("app_id", AppId::parse(app_id));
        Ok(&self.finish(caller, fields, app)?.context)
    }

    /// Also returns the scope of the stop to lift; `None` for all stops.
    pub(super) fn parse_lift_stop(
        &self,
        caller: &Caller,
        request: LiftStopRequest,
    ) -> Result<(&Arc<AppContext>, Option<StopScope>), Failure> {
        let mut fields = Fields::default();
        let app = fields.take("app_id", AppId::parse(request.app_id));
        let scope = match request.target {
            Some(Target::Scope(scope)) => parse_scope(&mut fields, scope.scope),
            Some(Target::All(_)) => None,
            None => {
                fields.refuse("target", "must be given: scope, or all");
                None
            }
        };
        Ok((&self.finish(caller, fields, app)?.context, scope))
    }
}

fn parse_scope(fields: &mut Fields, scope: Option<Scope>) -> Option<StopScope> {
    match scope {
        Some(Scope::WholeApp(_)) => Some(StopScope::App),
        Some(Scope::Kind(kind)) => {
            let kind = Kind::ALL.into_iter().find(|known| CredentialKind::from(*known) as i32 == kind);
            fields.take("scope.kind", kind.ok_or("must be a kind of credential")).map(StopScope::Kind)
        }
        Some(Scope::TemplateId(template)) => {
            fields.take("scope.template_id", TemplateId::parse(template)).map(StopScope::Template)
        }
        None => {
            fields.refuse("scope", "must be given: whole_app, kind, or template_id");
            None
        }
    }
}

pub(super) fn of((scope, stop): &(StopScope, Stop)) -> proto::Stop {
    let scope = match scope {
        StopScope::App => Scope::WholeApp(WholeApp {}),
        StopScope::Kind(kind) => Scope::Kind(CredentialKind::from(*kind).into()),
        StopScope::Template(template) => Scope::TemplateId(template.as_str().to_owned()),
    };
    proto::Stop {
        scope: Some(proto::StopScope { scope: Some(scope) }),
        errcode: stop.errcode,
        description: description(stop),
        rid: stop.rid.clone(),
        address: stop.address.map(|address| address.to_string()).unwrap_or_default(),
        until: Some(info::time(stop.until_ms)),
    }
}

/// What the errcode means and what an operator should do.
fn description(stop: &Stop) -> String {
    let row = row_of(stop.errcode);
    let advice = match (stop.address, row.meaning) {
        (Some(address), _) => {
            return format!("add {address} to the app's list of IP addresses at WeChat, then lift the stop");
        }
        (None, Meaning::QuotaReached) if is_clearable(stop.errcode) => {
            "wait until midnight of UTC+8, or call WeChat's clear_quota: then the stop ends by itself in about a minute"
        }
        (None, Meaning::QuotaReached) => "wait until midnight of UTC+8",
        // The sentence says what to do.
        (None, Meaning::Retired | Meaning::AddressRefused | Meaning::Misconfigured) => return row.sentence.into(),
        _ => "correct the cause with WeChat, then lift the stop",
    };
    format!("{}: {advice}", row.sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(errcode: i32, address: Option<&str>) -> String {
        let address = address.map(|address| address.parse().unwrap());
        description(&Stop { until_ms: 0, errcode, rid: String::new(), address })
    }

    #[test]
    fn description_says_what_to_do() {
        for (errcode, advice) in [
            (45009, "clear_quota"),
            (45103, "DELIVERY_SUBSCRIPTION"),
            (48001, "then lift the stop"),
            (99999, "then lift the stop"),
        ] {
            assert!(described(errcode, None).contains(advice), "{}", described(errcode, None));
        }
        assert!(described(40164, Some("203.0.113.7")).contains("add 203.0.113.7 to"));
    }

    #[test]
    fn scope_of_a_listed_stop_is_parsed_back() {
        let template = StopScope::Template(TemplateId::parse("template-1").unwrap());
        for scope in StopScope::NAMED.into_iter().map(|(scope, _)| scope).chain([template]) {
            let stop = Stop { until_ms: 0, errcode: 48001, rid: String::new(), address: None };
            let listed = of(&(scope.clone(), stop)).scope.unwrap();
            let mut fields = Fields::default();
            assert_eq!(parse_scope(&mut fields, listed.scope), Some(scope));
            assert!(fields.is_empty());
        }
    }

    #[test]
    fn invalid_scope_is_refused_by_name() {
        for (scope, field) in [
            (None, "scope"),
            (Some(Scope::Kind(0)), "scope.kind"),
            (Some(Scope::Kind(77)), "scope.kind"),
            (Some(Scope::TemplateId("two words".into())), "scope.template_id"),
            (Some(Scope::TemplateId(String::new())), "scope.template_id"),
        ] {
            let mut fields = Fields::default();
            assert_eq!(parse_scope(&mut fields, scope), None);
            let refused = format!("{:?}", fields.finish().unwrap_err());
            assert!(refused.contains(&format!("\"{field}\"")), "{refused}");
        }
    }
}
