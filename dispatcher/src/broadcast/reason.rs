//! Why broadcasts pause, and how their messages end: the names that are stored and that callers see.

use store::broadcast::records::{CANARY, Pause};
use store::broadcast::tallies::DELIVERED;

use crate::send::outcome::WechatAnswer;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PauseReason {
    /// A caller called PauseBroadcast.
    Caller,
    Canary,
    /// The daily quota, or the share of it that broadcasts may use, is used up.
    Quota,
    AppStopped,
    /// WeChat refused several messages in a row because of their content.
    MessageRefused,
    FailureRatio,
    TokenRefused,
    /// WeChat banned the template.
    TemplateStopped,
    /// Too many messages were refused with 43101.
    UserRefusals,
}

impl PauseReason {
    pub const ALL: [(Self, &str); 9] = [
        (Self::Caller, "CALLER"),
        (Self::Canary, CANARY),
        (Self::Quota, "QUOTA"),
        (Self::AppStopped, "APP_STOPPED"),
        (Self::MessageRefused, "MESSAGE_REFUSED"),
        (Self::FailureRatio, "FAILURE_RATIO"),
        (Self::TokenRefused, "TOKEN_REFUSED"),
        (Self::TemplateStopped, "TEMPLATE_STOPPED"),
        (Self::UserRefusals, "USER_REFUSALS"),
    ];

    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// `None` for a reason that only another release knows.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(reason, _)| *reason)
    }
}

impl From<PauseReason> for Pause {
    fn from(reason: PauseReason) -> Self {
        Self { reason: reason.name().into(), ..Self::default() }
    }
}

/// How a message of a broadcast ends. The store itself ends messages as [`Ending::NoCredential`],
/// [`Ending::RecentlyMessaged`] and [`Ending::FailedLater`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Delivered,
    /// It was delivered once or not at all.
    Unknown,
    NoCredential,
    RecentlyMessaged,
    /// WeChat rejected each credential that was tried.
    CredentialsDead,
    MessageRefused,
    UserRefused,
    /// WeChat was too busy each time.
    WechatBusy,
    /// WeChat accepted the message, and reported later that it was not delivered.
    FailedLater,
}

impl Ending {
    pub const ALL: [(Self, &str); 9] = [
        (Self::Delivered, DELIVERED),
        (Self::Unknown, "UNKNOWN"),
        (Self::NoCredential, "NO_CREDENTIAL"),
        (Self::RecentlyMessaged, "RECENTLY_MESSAGED"),
        (Self::CredentialsDead, "CREDENTIALS_DEAD"),
        (Self::MessageRefused, "MESSAGE_REFUSED"),
        (Self::UserRefused, "USER_REFUSED"),
        (Self::WechatBusy, "WECHAT_BUSY"),
        (Self::FailedLater, "FAILED_LATER"),
    ];

    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// The stored form. [`split`] is the inverse.
    pub fn with_errcode(self, errcode: Option<i32>) -> String {
        match errcode {
            Some(errcode) => format!("{} {errcode}", self.name()),
            None => self.name().into(),
        }
    }

    /// The stored form of an ending by WeChat's answer, with the data key that it names.
    pub fn with_answer(self, answer: &WechatAnswer) -> String {
        let ending = self.with_errcode(answer.errcode);
        match &answer.key {
            Some(key) if answer.errcode.is_some() => format!("{ending} {key}"),
            _ => ending,
        }
    }

    /// `None` for an ending that only another release knows, and for users who were erased.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(ending, _)| *ending)
    }
}

/// Splits a stored ending into its name, WeChat's errcode, and the data key that WeChat named.
pub fn split(stored: &str) -> (&str, Option<i32>, Option<&str>) {
    let mut parts = stored.splitn(3, ' ');
    let name = parts.next().unwrap_or_default();
    (name, parts.next().and_then(|errcode| errcode.parse().ok()), parts.next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_in_the_order_of_their_enums() {
        assert!(PauseReason::ALL.iter().enumerate().all(|(index, (reason, _))| *reason as usize == index));
        assert!(Ending::ALL.iter().enumerate().all(|(index, (ending, _))| *ending as usize == index));
    }

    #[test]
    fn stored_ending_is_split_back() {
        let answer = |key: Option<&str>, errcode| WechatAnswer {
            errcode,
            key: key.map(str::to_owned),
            ..WechatAnswer::default()
        };
        for (key, errcode) in [(Some("thing3"), Some(47003)), (None, Some(-1)), (None, None)] {
            let stored = Ending::MessageRefused.with_answer(&answer(key, errcode));
            assert_eq!(split(&stored), ("MESSAGE_REFUSED", errcode, key), "{stored}");
        }
        assert_eq!(Ending::MessageRefused.with_answer(&answer(Some("thing3"), None)), "MESSAGE_REFUSED");
    }
}
