//! What can be wrong with a body: a place and a fault, which together are a sentence. Content is never quoted, because it
//! is personal data.

use std::fmt;

use shared::credential::Malformed;

use super::{MAX_BODY, MAX_ITEMS};

/// What is wrong with a body or with one item of it: `body.List[2].MsgID is not a whole number`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{place} {fault}")]
pub struct EventError {
    /// Where.
    pub place: Place,
    /// What.
    pub fault: Fault,
}

/// A place in a body, by the names of WeChat's documents. Items count from 0, and stand in `List` in both formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The body as a whole.
    Body,
    /// A field of the body.
    Field(&'static str),
    /// An item as a whole.
    Item(usize),
    /// A field of an item.
    ItemField(usize, &'static str),
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Body => out.write_str("body"),
            Self::Field(name) => write!(out, "body.{name}"),
            Self::Item(item) => write!(out, "body.List[{item}]"),
            Self::ItemField(item, name) => write!(out, "body.List[{item}].{name}"),
        }
    }
}

/// What is wrong at a place; reads on from its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No body, or nothing but space.
    #[error("must not be empty")]
    Empty,
    /// A body of more than [`MAX_BODY`].
    #[error("must not be longer than {MAX_BODY} bytes")]
    TooLong,
    /// A body that is no text.
    #[error("is not UTF-8")]
    NotUtf8,
    /// A body that begins like neither format.
    #[error("is neither XML nor JSON: it must begin with '<' or '{{'")]
    NeitherXmlNorJson,
    /// JSON with a mistake, or so deep that nobody reads it.
    #[error("is not well-formed JSON, or nested too deeply, at line {line}, column {column}")]
    NotJson {
        /// Counts from 1.
        line: usize,
        /// Counts from 1, in bytes.
        column: usize,
    },
    /// XML with a mistake, or another document than WeChat's.
    #[error("is not one well-formed <xml> element, at byte {0}")]
    NotXml(usize),
    /// Elements within elements, beyond any event of WeChat's.
    #[error("is nested too deeply, at byte {0}")]
    TooDeep(usize),
    /// A document type: the door to entities that expand without bound.
    #[error("has a document type, which WeChat never sends, at byte {0}")]
    DocumentType(usize),
    /// An entity that XML does not define itself.
    #[error("has a reference to an entity that is not known, at byte {0}")]
    UnknownEntity(usize),
    /// WeChat's encrypted mode.
    #[error("is encrypted: pass on the text that decrypting Encrypt gives")]
    Encrypted,
    /// A field that must be there.
    #[error("is missing")]
    Missing,
    /// A field that is something else than a text.
    #[error("is not a text")]
    NotText,
    /// A time beyond the age at which events are accepted.
    #[error("is longer ago than --callback-max-age of the collector permits")]
    TooOld,
    /// A time that is still to come.
    #[error("lies in the future, by the clock of the collector")]
    InTheFuture,
    /// A field, or an item, that should have fields of its own.
    #[error("does not consist of fields")]
    NotFields,
    /// Neither digits nor a JSON number, or one with a fraction.
    #[error("is not a whole number")]
    NotWhole,
    /// A number that does not fit.
    #[error("is out of range")]
    OutOfRange,
    /// An id that is none.
    #[error("{0}")]
    Malformed(Malformed),
    /// A decision of a popup that is not known.
    #[error("is neither accept nor reject")]
    NotAStatus,
    /// A change that takes nothing back. WeChat's documents say there is none; taken for a permission, it would be one too many.
    #[error("is not reject, the only status that this event has")]
    NotReject,
    /// More items than [`MAX_ITEMS`].
    #[error("must not have more than {MAX_ITEMS} items")]
    TooManyItems,
}

impl Fault {
    pub(crate) const fn of(self, place: Place) -> EventError {
        EventError { place, fault: self }
    }
}
