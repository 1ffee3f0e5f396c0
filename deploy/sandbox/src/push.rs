//! Events that a caller of the control API asks for, as they are: any word, any time, any number of times. They change
//! nothing else in the sandbox.

use serde::{Deserialize, Serialize};

use crate::Refused;
use crate::grants::check;

/// WeChat's names of the events that list decisions, and of the elements that hold their lists in XML.
pub(crate) const POPUP: (&str, &str) = ("subscribe_msg_popup_event", "SubscribeMsgPopupEvent");
pub(crate) const CHANGE: (&str, &str) = ("subscribe_msg_change_event", "SubscribeMsgChangeEvent");

/// The longest name of an event, in bytes.
const LONGEST_NAME: usize = 64;

/// How often one event is pushed at most.
const MOST_TIMES: u32 = 100;

/// An event to push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Push {
    /// WeChat's name, such as `subscribe_msg_popup_event` or `user_authorization_revoke`.
    pub event: String,
    /// The user: `FromUserName`, and also `OpenID` in an event without decisions.
    pub openid: String,
    /// The items of the list. Only of `subscribe_msg_popup_event` and `subscribe_msg_change_event`.
    #[serde(default)]
    pub decisions: Vec<Decision>,
    /// `CreateTime`, in Unix seconds. Default: now.
    #[serde(default)]
    pub created_at: Option<u64>,
    /// How often the event is pushed. Default: 1.
    #[serde(default = "once")]
    pub times: u32,
}

/// What a user, or WeChat, decided about a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    pub template_id: String,
    /// `SubscribeStatusString`, such as `acceptWithAudio` or `ban`; any word.
    pub status: String,
}

fn once() -> u32 {
    1
}

impl Push {
    /// An event of this name about a user, without decisions.
    pub fn new(event: impl Into<String>, openid: impl Into<String>) -> Self {
        Self { event: event.into(), openid: openid.into(), decisions: Vec::new(), created_at: None, times: once() }
    }

    /// The element that holds the list in XML; `None` for an event without a list.
    pub(crate) fn element(&self) -> Option<&'static str> {
        [POPUP, CHANGE].into_iter().find(|(event, _)| *event == self.event).map(|(_, element)| element)
    }

    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let is_name = self.event.bytes().all(|byte| byte.is_ascii_graphic()) && self.event.len() <= LONGEST_NAME;
        if self.event.is_empty() || !is_name {
            return Err("event must be a name such as user_authorization_revoke");
        }
        if !(1..=MOST_TIMES).contains(&self.times) {
            return Err("times must be from 1 to 100");
        }
        if self.element().is_some() == self.decisions.is_empty() {
            return Err("decisions belong to subscribe_msg_popup_event and subscribe_msg_change_event, at least one");
        }
        if self.decisions.iter().any(|one| one.status.contains(char::is_control)) {
            return Err("status contains a control character");
        }
        // An event without decisions has no template.
        let templates = self.decisions.iter().map(|one| one.template_id.as_str());
        let mut templates = templates.chain(self.decisions.is_empty().then_some("none"));
        templates.try_for_each(|template_id| check(&self.openid, template_id))
    }
}

/// Checks all events; the error names the first that is invalid.
pub(crate) fn check_all(pushes: &[Push]) -> Result<(), Refused> {
    let mut pushes = pushes.iter().enumerate();
    pushes.try_for_each(|(index, push)| push.check().map_err(|why| Refused::at("events", index, why)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_event_is_refused_with_its_index() {
        let decision = |status: &str| vec![Decision { template_id: "t".into(), status: status.into() }];
        let popup = |status| Push { decisions: decision(status), ..Push::new(POPUP.0, "u") };
        for right in [popup("acceptWithAudio"), popup(""), Push::new("user_authorization_revoke", "u")] {
            assert_eq!(check_all(std::slice::from_ref(&right)), Ok(()), "{right:?}");
        }
        for wrong in [
            Push::new("", "u"),
            Push::new("two words", "u"),
            Push::new("x".repeat(65), "u"),
            Push::new("any", ""),
            Push::new(POPUP.0, "u"),
            Push { decisions: decision("accept"), ..Push::new("any", "u") },
            popup("a\u{1}"),
            Push { decisions: vec![Decision { template_id: String::new(), status: "ban".into() }], ..popup("ban") },
            Push { times: 0, ..popup("accept") },
            Push { times: 101, ..popup("accept") },
        ] {
            let refused = check_all(&[popup("accept"), wrong.clone()]).unwrap_err().to_string();
            assert!(refused.starts_with("events[1]: "), "{wrong:?}: {refused}");
        }
    }
}
