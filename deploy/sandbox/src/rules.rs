//! Fault rules, and the check that they are valid.

use serde::{Deserialize, Serialize};

/// The kinds of faults. "Before" means before processing: nothing is decided, nothing spent. "After" means that the
/// call is fully processed and only its answer is affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// Answers [`Rule::errcode`]. The call is not processed. A send that is answered with 40252 is in review: it is
    /// processed after [`crate::Settings::review_ms`].
    Answer,
    /// Answers HTTP 500. The call is not processed.
    #[serde(rename = "http_500_before")]
    Http500Before,
    /// Processes the call, and answers HTTP 500.
    #[serde(rename = "http_500_after")]
    Http500After,
    /// Closes the connection without an answer. The call is not processed.
    CutBefore,
    /// Processes the call, and closes the connection without an answer.
    CutAfter,
    /// Processes the call, and closes the connection a few bytes before the end of the answer.
    CutMid,
    /// Processes the call, and resets the connection (RST) without an answer.
    ResetAfter,
    /// Answers HTTP 200 with an HTML page. The call is not processed.
    NotJsonBefore,
    /// Processes the call, and answers HTTP 200 with an HTML page.
    NotJsonAfter,
    /// Closes the connection without an answer after [`Rule::hang_ms`]. The call is not processed.
    HangBefore,
    /// Processes the call immediately, and answers after [`Rule::hang_ms`].
    HangAfter,
    /// Answers HTTP 302 to [`Rule::location`]. The call is not processed.
    Redirect,
}

impl FaultKind {
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

    /// Whether the call is processed in spite of the fault.
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

/// The properties of a call that rules match on, known before the call is processed.
pub(crate) struct Facts<'a> {
    pub(crate) endpoint: Endpoint,
    pub(crate) app_id: Option<&'a str>,
    pub(crate) openid: Option<&'a str>,
    pub(crate) template_id: Option<&'a str>,
}

/// The endpoint that a rule applies to.
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

/// Selects calls. An absent field matches every call. A present field matches only calls that have this value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Match {
    /// The app of the token. At the token endpoints, the app that asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_id: Option<String>,
    /// The user. Only for sends, at both endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub openid: Option<String>,
    /// The template. Only for sends, at both endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_id: Option<String>,
}

impl Match {
    pub(crate) fn fits(&self, app_id: Option<&str>, openid: Option<&str>, template_id: Option<&str>) -> bool {
        let fits = |wanted: &Option<String>, given: Option<&str>| wanted.is_none() || wanted.as_deref() == given;
        fits(&self.app_id, app_id) && fits(&self.openid, openid) && fits(&self.template_id, template_id)
    }
}

/// One fault rule. Rules are tried in the order they were added. The first that fires decides the call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub kind: FaultKind,
    /// Name of the rule in the books. Default: the name of its kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Probability that the rule fires, from 0 to 1. Default: always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probability: Option<f64>,
    /// Number of times that the rule fires. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u64>,
    /// The endpoint. Default: `template/send`.
    #[serde(default)]
    pub endpoint: Endpoint,
    /// Which calls; all by default.
    #[serde(default, rename = "match")]
    pub matching: Match,
    /// The errcode of [`FaultKind::Answer`]: any but 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errcode: Option<i32>,
    /// What the errmsg of [`FaultKind::Answer`] names, such as `data.number2.value is empty` for 47003, or the address
    /// for 40164. Default: an example.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// How long the hanging kinds hang, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hang_ms: Option<u64>,
    /// The target of [`FaultKind::Redirect`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// Random seed of `probability`. Default: [`crate::Settings::seed`] plus the rule's position in the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

impl Rule {
    /// A rule that injects this fault into every `template/send`. Narrow it with `..Rule::new(kind)`.
    pub fn new(kind: FaultKind) -> Self {
        Self {
            kind,
            name: None,
            probability: None,
            times: None,
            endpoint: Endpoint::Send,
            matching: Match::default(),
            errcode: None,
            detail: None,
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
            return Err("openid and template_id can be matched only for sends");
        }
        match self.errcode {
            Some(0) => return Err("errcode must not be 0: the caller would count a message that was not delivered"),
            given if given.is_some() != (self.kind == FaultKind::Answer) => {
                return Err("errcode is required for the kind answer, and not allowed for other kinds");
            }
            _ => {}
        }
        if self.detail.is_some() && self.kind != FaultKind::Answer {
            return Err("detail is only for the kind answer");
        }
        if self.detail.as_deref().is_some_and(|detail| detail.is_empty() || detail.contains(char::is_control)) {
            return Err("detail must be a text without control characters");
        }
        let hangs = matches!(self.kind, FaultKind::HangBefore | FaultKind::HangAfter);
        if self.hang_ms.is_some() != hangs {
            return Err("hang_ms is required for the hanging kinds, and not allowed for other kinds");
        }
        // A location must be valid in a header.
        let is_location = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        if self.location.as_deref().is_some_and(is_location) != (self.kind == FaultKind::Redirect) {
            return Err("location must be a URL for the kind redirect, and is not allowed for other kinds");
        }
        Ok(())
    }

    pub(crate) fn is_about(&self, call: &Facts<'_>) -> bool {
        self.endpoint == call.endpoint && self.matching.fits(call.app_id, call.openid, call.template_id)
    }
}
