//! What WeChat pushes about subscription messages: who permitted or refused which template, and what became of a message.
//!
//! WeChat posts to the one URL of an app, in XML or JSON as the app is set up, and teams pass on what they get, byte for
//! byte. [`parse`] tells what it is:
//!
//! | `Event` | what it tells of each template | fields of an item of `List` |
//! |---|---|---|
//! | `subscribe_msg_popup_event` | the user's decision in the popup | `TemplateId`, `SubscribeStatusString`, `PopupScene` |
//! | `subscribe_msg_change_event` | a permission taken back later | `TemplateId`, `SubscribeStatusString`: reject |
//! | `subscribe_msg_sent_event` | what became of a message | `TemplateId`, `MsgID`, `ErrorCode`, `ErrorStatus` |
//!
//! Both formats become one tree of fields, which is read once: so the same event is the same [`Report`] whichever way it
//! came. Whatever else the callback gets is [`Report::Other`]. Nothing here touches Redis or gRPC.
//!
//! - [`signature`]: whether a request to the callback came from WeChat;
//! - `json`, `xml`: a body becomes a tree; `read`: the tree becomes a report;
//! - `age`: how old an event may be;
//! - `once`: what the repetition of an event is known by;
//! - `error`: what can be wrong.

mod age;
mod error;
mod json;
mod once;
mod read;
pub mod signature;
mod xml;

#[cfg(test)]
mod garbled;
#[cfg(test)]
mod tests;

use shared::credential::{OpenId, TemplateId};

pub use age::MaxAge;
pub use error::{EventError, Fault, Place};
pub use signature::CallbackToken;

/// The longest body, in bytes. WeChat's have about 200 an item, and a popup offers a handful of templates.
pub const MAX_BODY: usize = 64 * 1024;

/// The most items of one event.
pub const MAX_ITEMS: usize = 100;

/// What a body tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// Something about subscription messages.
    Subscription(Pushed),
    /// Something else, which is nothing wrong: an app has one callback for all that WeChat pushes.
    Other {
        /// The `Event`, or the `MsgType` of what is no event; nothing when it is no short, visible ASCII.
        name: Option<Box<str>>,
    },
}

/// An event about subscription messages: one user, and one item for each template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Which of the three.
    pub event: Event,
    /// The user: `FromUserName`.
    pub openid: OpenId,
    /// When it happened, in seconds since 1970, by WeChat's clock: `CreateTime`. The years 1970 to 9999.
    pub created: i64,
    /// The items of `List`, in its order. A bad one does not spoil the others.
    pub items: Vec<Result<Item, EventError>>,
}

/// The events about subscription messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// The user decided in the popup that a mini program showed.
    Popup,
    /// The user took permissions back in WeChat's own settings.
    Change,
    /// A message was delivered, or was not.
    Sent,
}

impl Event {
    /// Every event about subscription messages.
    pub const ALL: [Self; 3] = [Self::Popup, Self::Change, Self::Sent];

    /// WeChat's name for it, in `Event`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Popup => "subscribe_msg_popup_event",
            Self::Change => "subscribe_msg_change_event",
            Self::Sent => "subscribe_msg_sent_event",
        }
    }

    /// The element around the items, in XML.
    const fn element(self) -> &'static str {
        match self {
            Self::Popup => "SubscribeMsgPopupEvent",
            Self::Change => "SubscribeMsgChangeEvent",
            Self::Sent => "SubscribeMsgSentEvent",
        }
    }
}

/// What an event tells of one template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// What the user decided, of [`Event::Popup`] and [`Event::Change`].
    Decision {
        /// The template.
        template: TemplateId,
        /// Which way; always reject of [`Event::Change`].
        status: Status,
        /// Where the popup was shown, as WeChat numbers it: 0 is a page of the mini program. None of [`Event::Change`].
        scene: Option<u32>,
    },
    /// What became of a message, of [`Event::Sent`].
    Outcome {
        /// The template.
        template: TemplateId,
        /// The message: the `msgid` that subscribe/send answered with.
        msgid: u64,
        /// 0 when it was delivered, an errcode otherwise.
        error_code: i32,
        /// WeChat's words for the code, cut to a bound and without control characters; for people, not for programs.
        error_status: Box<str>,
    },
}

/// A user's decision about a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// One more message is permitted.
    Accept,
    /// None is.
    Reject,
}

impl Status {
    /// WeChat's word for it, in `SubscribeStatusString`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Reject => "reject",
        }
    }
}

/// Reads a body as WeChat posted it, of at most [`MAX_BODY`] bytes: XML when its first character is `<`, JSON when it is `{`.
///
/// Fails when the body as a whole can not be read, or when what all of its items need is missing; then nothing of it may
/// be acted on, and the same body fails again. What is wrong with a single item stands in its place among the items.
pub fn parse(body: &[u8]) -> Result<Report, EventError> {
    if body.len() > MAX_BODY {
        return Err(Fault::TooLong.of(Place::Body));
    }
    let text = std::str::from_utf8(body).map_err(|_| Fault::NotUtf8.of(Place::Body))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let tree = match text.trim_ascii_start().as_bytes().first() {
        Some(b'<') => xml::tree(text),
        Some(b'{') => json::tree(text),
        Some(_) => Err(Fault::NeitherXmlNorJson),
        None => Err(Fault::Empty),
    };
    read::report(&tree.map_err(|fault| fault.of(Place::Body))?)
}
