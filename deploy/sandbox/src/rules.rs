//! What a fault rule says, and which rules make no sense.

use serde::{Deserialize, Serialize};

use crate::faults::Facts;

/// The ways to misbehave. "Before" means before processing: nothing is decided, nothing spent. "After" means that WeChat
/// did all of its work, and only the answer suffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// Answers [`Rule::errcode`], and does nothing else.
    Answer,
    /// HTTP 500, nothing done.
    #[serde(rename = "http_500_before")]
    Http500Before,
    /// HTTP 500, though all was done.
    #[serde(rename = "http_500_after")]
    Http500After,
    /// The connection is closed without an answer, nothing done.
    CutBefore,
    /// The connection is closed without an answer, though all was done.
    CutAfter,
    /// All is done, and the connection closed a few bytes before the end of the answer.
    CutMid,
    /// The connection is reset (RST) without an answer, though all was done.
    ResetAfter,
    /// HTTP 200 with a page of HTML, nothing done.
    NotJsonBefore,
    /// HTTP 200 with a page of HTML, though all was done.
    NotJsonAfter,
    /// Silent for [`Rule::hang_ms`], then the connection is closed; nothing done.
    HangBefore,
    /// All is done at once, and answered only after [`Rule::hang_ms`].
    HangAfter,
    /// HTTP 302 to [`Rule::location`], nothing done.
    Redirect,
}

impl FaultKind {
    /// As it is written in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Answer => "answer",
            Self::Http500Before => "http_500_before",
            Self::Http500After => "http_500_after",
            Self::CutBefore => "cut_before",
            Self::CutAfter => "cut_after",
            Self::CutMid => "cut_mid",
            Self::ResetAfter => "reset_after",
            Self::NotJsonBefore => "not_json_before",
            Self::NotJsonAfter => "not_json_after",
            Self::HangBefore => "hang_before",
            Self::HangAfter => "hang_after",
            Self::Redirect => "redirect",
        }
    }

    /// Whether WeChat does its work all the same.
    pub fn processes(self) -> bool {
        match self {
            Self::Http500After
            | Self::CutAfter
            | Self::CutMid
            | Self::ResetAfter
            | Self::NotJsonAfter
            | Self::HangAfter => true,
            Self::Answer
            | Self::Http500Before
            | Self::CutBefore
            | Self::NotJsonBefore
            | Self::HangBefore
            | Self::Redirect => false,
        }
    }
}

/// Where a rule applies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Endpoint {
    /// `template/send`.
    #[default]
    Send,
    /// `subscribe/send`.
    Subscribe,
    /// `token` and `stable_token`.
    Token,
    /// `openapi/quota/get`.
    Quota,
}

/// Which calls a rule is about. What is absent matches all; what is present matches no call that does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Match {
    /// The app of the token; at the token endpoints, the app asking.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_id: Option<String>,
    /// The user. Of sends, at both endpoints, only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub openid: Option<String>,
    /// The template. Of sends, at both endpoints, only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_id: Option<String>,
}

impl Match {
    pub(crate) fn fits(&self, app_id: Option<&str>, openid: Option<&str>, template_id: Option<&str>) -> bool {
        let fits = |wanted: &Option<String>, given: Option<&str>| wanted.is_none() || wanted.as_deref() == given;
        fits(&self.app_id, app_id) && fits(&self.openid, openid) && fits(&self.template_id, template_id)
    }
}

/// One rule. Of all rules, in the order they came, the first that fires decides about a call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What to do.
    pub kind: FaultKind,
    /// What the books call it. Absent: the name of its kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Fires with this probability, 0 to 1. Absent: always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probability: Option<f64>,
    /// Fires this often, then never again. Absent: without end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u64>,
    /// `template/send`, unless it says otherwise.
    #[serde(default)]
    pub endpoint: Endpoint,
    /// Which calls; all, unless it says otherwise.
    #[serde(default, rename = "match")]
    pub matching: Match,
    /// What [`FaultKind::Answer`] answers: any code but 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errcode: Option<i32>,
    /// How long the hanging kinds hang.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hang_ms: Option<u64>,
    /// Where [`FaultKind::Redirect`] points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// Seeds the draws. Absent: [`crate::Settings::seed`] and the rule's place in the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

impl Rule {
    /// A rule that does this to every `template/send`, to be narrowed with `..Rule::new(kind)`.
    pub fn new(kind: FaultKind) -> Self {
        Self {
            kind,
            name: None,
            probability: None,
            times: None,
            endpoint: Endpoint::Send,
            matching: Match::default(),
            errcode: None,
            hang_ms: None,
            location: None,
            seed: None,
        }
    }

    pub(crate) fn check(&self) -> Result<(), &'static str> {
        if self.probability.is_some_and(|p| !(0.0..=1.0).contains(&p)) {
            return Err("probability must be from 0 to 1");
        }
        if self.name.as_deref() == Some("") {
            return Err("name is empty");
        }
        let sends = matches!(self.endpoint, Endpoint::Send | Endpoint::Subscribe);
        if !sends && (self.matching.openid.is_some() || self.matching.template_id.is_some()) {
            return Err("only a send has an openid and a template_id to match");
        }
        match self.errcode {
            Some(0) => return Err("errcode 0 would claim a message that nobody received"),
            given if given.is_some() != (self.kind == FaultKind::Answer) => {
                return Err("errcode belongs to the kind answer, and answer needs one");
            }
            _ => {}
        }
        let hangs = matches!(self.kind, FaultKind::HangBefore | FaultKind::HangAfter);
        if self.hang_ms.is_some() != hangs {
            return Err("hang_ms belongs to the hanging kinds, and they need it");
        }
        // A location has to fit into a header.
        let is_location = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        if self.location.as_deref().is_some_and(is_location) != (self.kind == FaultKind::Redirect) {
            return Err("location belongs to the kind redirect, which needs one, a URL");
        }
        Ok(())
    }

    pub(crate) fn is_about(&self, call: &Facts<'_>) -> bool {
        self.endpoint == call.endpoint && self.matching.fits(call.app_id, call.openid, call.template_id)
    }
}
