//! Parses the events that WeChat pushes about subscription messages: decisions of users about templates, and delivery
//! results of messages. Also those about users who take back what they authorized.
//!
//! WeChat posts events to the one callback URL of an app, in XML or JSON depending on the app's configuration. Teams
//! pass the body on unchanged. [`parse`] reads it:
//!
//! | `Event` | meaning, for each template | fields of an item of `List` |
//! |---|---|---|
//! | `subscribe_msg_popup_event` | the user's decision in the popup | `TemplateId`, `SubscribeStatusString`, `PopupScene` |
//! | `subscribe_msg_change_event` | the user revoked a permission | `TemplateId`, `SubscribeStatusString`: reject |
//! | `subscribe_msg_sent_event` | the delivery result of a message | `TemplateId`, `MsgID`, `ErrorCode`, `ErrorStatus` |
//! | `user_authorization_revoke`, `user_authorization_cancellation` | the app must delete the user's data | none: the user is in `OpenID` |
//!
//! Both formats are converted to one tree of fields, and the same code reads the tree. So an event gives the same
//! [`Report`] in either format, in each of the shapes that WeChat's documents show (`read::list`). Everything else that
//! the callback receives is [`Report::Other`]. Nothing here uses Redis or gRPC.
//!
//! - [`signature`]: verifies that a request to the callback came from WeChat;
//! - `xml`: converts a body in XML to a tree; `read`: converts the tree to a report;
//! - `age`: the maximum age of an event;
//! - `dedup`: dedup keys of events;
//! - `error`: errors of event bodies.

mod age;
mod dedup;
mod error;
mod read;
pub mod signature;
pub mod tokens;
mod xml;

#[cfg(test)]
mod tests;

use domain::{OpenId, TemplateId};

pub use age::MaxAge;
pub use error::{EventError, Fault, Location};
pub use signature::CallbackToken;

/// The maximum length of a body in bytes. WeChat's bodies have about 200 bytes an item, and a popup shows a few
/// templates.
pub const MAX_BODY: usize = 64 * 1024;

pub const MAX_ITEMS: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    Subscription(Pushed),
    /// A user took back what they authorized.
    Revocation {
        /// WeChat's name, one of [`REVOCATIONS`].
        name: &'static str,
        /// The user. An error matters only to an app that erases users on these events.
        of: Result<Revoked, EventError>,
    },
    /// Something else. This is not an error: an app has one callback URL for everything that WeChat pushes. Also an
    /// empty body: WeChat sends one to verify the URL.
    Other {
        /// The `Event`, or the `MsgType` if the body is not an event; `None` if it is not short, visible ASCII.
        name: Option<Box<str>>,
    },
}

/// WeChat's names of the events after which the app must delete the user's data: the user revoked an authorization, or
/// closed the account.
pub const REVOCATIONS: [&str; 2] = ["user_authorization_revoke", "user_authorization_cancellation"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// The user: `OpenID`.
    pub openid: OpenId,
    /// See [`Pushed::created`].
    pub created: i64,
}

/// An event about subscription messages: one user, and one item for each template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    pub event: Event,
    /// The user: `FromUserName`.
    pub openid: OpenId,
    /// When the event happened, a Unix time in seconds by WeChat's clock: `CreateTime`. In the years 1970 to 9999.
    pub created: i64,
    /// The items of `List`, in order. An invalid item does not affect the others.
    pub items: Vec<Result<Item, EventError>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// The user accepted or rejected templates in the popup of the mini program.
    Popup,
    /// The user revoked permissions in the settings of WeChat.
    Change,
    /// A message was delivered, or its delivery failed.
    Sent,
}

impl Event {
    pub const ALL: [Self; 3] = [Self::Popup, Self::Change, Self::Sent];

    /// WeChat's name for the kind, in `Event`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Popup => "subscribe_msg_popup_event",
            Self::Change => "subscribe_msg_change_event",
            Self::Sent => "subscribe_msg_sent_event",
        }
    }

    /// The XML element that contains the items.
    const fn element(self) -> &'static str {
        match self {
            Self::Popup => "SubscribeMsgPopupEvent",
            Self::Change => "SubscribeMsgChangeEvent",
            Self::Sent => "SubscribeMsgSentEvent",
        }
    }
}

/// One item of an event: what it reports about one template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// The user's decision, in [`Event::Popup`] and [`Event::Change`].
    Decision {
        template: TemplateId,
        /// Never accept in [`Event::Change`].
        status: Status,
        /// Where the popup was shown, as WeChat's number: 0 is a page of the mini program. `None` in [`Event::Change`].
        scene: Option<u32>,
    },
    /// The delivery result of a message, in [`Event::Sent`].
    Outcome {
        template: TemplateId,
        /// The message: the `msgid` in WeChat's answer to subscribe/send.
        msgid: u64,
        /// 0 if the message was delivered, an errcode otherwise.
        error_code: i32,
        /// WeChat's text for the code, truncated and without control characters; for humans, not for programs.
        error_status: Box<str>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// One more message is permitted.
    Accept,
    /// No message is permitted.
    Reject,
    /// WeChat banned the template, or filtered it because of its title. The user was not asked.
    NotAsked,
}

impl Status {
    /// Parses WeChat's word, in `SubscribeStatusString`.
    fn of(word: &str) -> Option<Self> {
        match word {
            "accept" | "acceptWithAudio" | "acceptWithAlert" | "acceptWithForcePush" => Some(Self::Accept),
            "reject" => Some(Self::Reject),
            "ban" | "filter" => Some(Self::NotAsked),
            _ => None,
        }
    }
}

/// Parses a body as WeChat posted it, of at most [`MAX_BODY`] bytes: XML if its first character is `<`, JSON if it is
/// `{`. If a name occurs twice in a JSON object, the last occurrence counts.
///
/// Fails if the body as a whole cannot be parsed, or if a field that all items need is missing or invalid. Then nothing
/// of the body may be processed, and parsing the same body fails again. An error of a single item takes the place of
/// the item in the list.
pub fn parse(body: &[u8]) -> Result<Report, EventError> {
    if body.len() > MAX_BODY {
        return Err(Fault::TooLong.of(Location::Body));
    }
    let text = std::str::from_utf8(body).map_err(|_| Fault::NotUtf8.of(Location::Body))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let tree = match text.trim_ascii_start().as_bytes().first() {
        Some(b'<') => xml::tree(text),
        // serde_json refuses nesting deeper than 128. The error's own text is dropped, because it may quote the body.
        Some(b'{') => {
            serde_json::from_str(text).map_err(|error| Fault::NotJson { line: error.line(), column: error.column() })
        }
        Some(_) => Err(Fault::NeitherXmlNorJson),
        None => return Ok(Report::Other { name: None }),
    };
    read::report(&tree.map_err(|fault| fault.of(Location::Body))?)
}
