//! Errors of event bodies. An error is a place and a fault, whose texts joined make a sentence. The content of a body
//! is never quoted, because it is personal data.

use std::fmt;

use domain::Malformed;

use super::{MAX_BODY, MAX_ITEMS};

/// An error of a body or of one of its items, such as `body.List[2].MsgID is not a whole number`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{place} {fault}")]
pub struct EventError {
    pub place: Location,
    pub fault: Fault,
}

/// A location in a body, with the field names of WeChat's documentation. Items are numbered from 0, and are in `List`
/// in both formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    Body,
    Field(&'static str),
    Item(usize),
    ItemField(usize, &'static str),
}

impl fmt::Display for Location {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Body => out.write_str("body"),
            Self::Field(name) => write!(out, "body.{name}"),
            Self::Item(item) => write!(out, "body.List[{item}]"),
            Self::ItemField(item, name) => write!(out, "body.List[{item}].{name}"),
        }
    }
}

/// The kind of an error. Its text continues a sentence that begins with the place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("must not be longer than {MAX_BODY} bytes")]
    TooLong,
    #[error("is not UTF-8")]
    NotUtf8,
    #[error("is neither XML nor JSON: it must begin with '<' or '{{'")]
    NeitherXmlNorJson,
    #[error("is not well-formed JSON, or nested too deeply, at line {line}, column {column}")]
    NotJson { line: usize, column: usize },
    #[error("is not one well-formed <xml> element, at byte {0}")]
    NotXml(usize),
    #[error("is nested too deeply, at byte {0}")]
    TooDeep(usize),
    /// The XML has a document type declaration, which could define entities that expand without bound.
    #[error("has a document type, which WeChat never sends, at byte {0}")]
    DocumentType(usize),
    #[error("has a reference to an entity that is not predefined, at byte {0}")]
    UnknownEntity(usize),
    #[error("is encrypted: send the decrypted content of Encrypt instead")]
    Encrypted,
    #[error("is missing")]
    Missing,
    #[error("is not a string")]
    NotText,
    #[error("is older than the collector's --callback-max-age")]
    TooOld,
    #[error("is in the future, by the collector's clock")]
    InTheFuture,
    #[error("is not an object with fields")]
    NotFields,
    /// The value is not an integer, neither as a number nor as a string.
    #[error("is not a whole number")]
    NotWhole,
    #[error("is out of range")]
    OutOfRange,
    #[error("{0}")]
    Malformed(Malformed),
    #[error("is not a word that WeChat documents, such as accept, reject or ban")]
    NotAStatus,
    /// A change event with another status than reject. WeChat documents only reject. An accept must not be counted as a
    /// grant here, because it would be one grant too many.
    #[error("is not reject, the only status of this event")]
    NotReject,
    #[error("must not have more than {MAX_ITEMS} items")]
    TooManyItems,
}

impl Fault {
    pub(crate) const fn of(self, place: Location) -> EventError {
        EventError { place, fault: self }
    }
}
