//! Converts the tree of fields, from either format, to a report.

use std::num::IntErrorKind;
use std::slice;

use domain::{OpenId, visible};
use serde_json::{Map, Value};

use super::{
    Event, EventError, Fault, Item, Location, MAX_ITEMS, Pushed, REVOCATIONS, Report, Revoked, Status, TemplateId,
};

/// The longest name of an unrelated event that is kept, in bytes.
const MAX_NAME: usize = 64;

/// The longest `ErrorStatus` that is kept, in characters.
const MAX_ERROR_STATUS: usize = 128;

/// The last second of a google.protobuf.Timestamp. A time in milliseconds is beyond it, so it is not mistaken for
/// seconds.
const LAST_SECOND: i64 = 253_402_300_799;

type Tree = Map<String, Value>;

pub(super) fn report(body: &Tree) -> Result<Report, EventError> {
    // In its compatible mode, WeChat sends the plain fields in addition to Encrypt. Such a body can be read.
    if body.contains_key("Encrypt") && !body.contains_key("MsgType") {
        return Err(Fault::Encrypted.of(Location::Body));
    }
    let fields = Fields { tree: body, item: None };
    let mut name = fields.text("MsgType")?;
    if name == "event" {
        name = fields.text("Event")?;
        if let Some(event) = Event::ALL.into_iter().find(|event| event.name() == name) {
            return pushed(event, &fields).map(Report::Subscription);
        }
        if let Some(name) = REVOCATIONS.into_iter().find(|known| *known == name) {
            return Ok(Report::Revocation { name, of: revoked(&fields) });
        }
    }
    let name = visible(name, MAX_NAME).is_ok().then(|| name.into());
    Ok(Report::Other { name })
}

fn pushed(event: Event, fields: &Fields<'_>) -> Result<Pushed, EventError> {
    let openid = fields.parsed("FromUserName", OpenId::parse)?;
    let created = created(fields)?;
    let list = list(event, fields)?;
    if list.len() > MAX_ITEMS {
        return Err(fields.wrong("List", Fault::TooManyItems));
    }
    let items = list.iter().enumerate().map(|(index, value)| item(event, index, value)).collect();
    Ok(Pushed { event, openid, created, items })
}

fn revoked(fields: &Fields<'_>) -> Result<Revoked, EventError> {
    // To erase a user whom an older release took in.
    let openid = fields.parsed("OpenID", OpenId::existing)?;
    Ok(Revoked { openid, created: created(fields)? })
}

fn created(fields: &Fields<'_>) -> Result<i64, EventError> {
    let created = fields.whole("CreateTime")?;
    if (0..=LAST_SECOND).contains(&created) { Ok(created) } else { Err(fields.wrong("CreateTime", Fault::OutOfRange)) }
}

/// The items. In XML they are the `List`s of an element named after the event. In JSON, `List` is there or at the top,
/// or the items are right in a field of that name. In an older sample of WeChat's, the element of a change event has the
/// name of the popup event. A single item may come without an array around it.
fn list<'a>(event: Event, fields: &Fields<'a>) -> Result<&'a [Value], EventError> {
    let elements = [event.element(), Event::Popup.element()];
    let elements = if event == Event::Change { &elements[..] } else { &elements[..1] };
    let found = elements.iter().find_map(|name| Some((*name, fields.tree.get(*name)?)));
    let (name, list) = match found {
        Some((_, Value::Object(element))) if !element.contains_key("TemplateId") => ("List", element.get("List")),
        Some((name, items)) => (name, Some(items)),
        None => ("List", fields.tree.get("List")),
    };
    match list {
        Some(Value::Array(items)) => Ok(items),
        // An empty XML element.
        Some(Value::String(text)) if text.is_empty() => Ok(&[]),
        Some(item @ Value::Object(_)) => Ok(slice::from_ref(item)),
        Some(_) => Err(fields.wrong(name, Fault::NotFields)),
        None => Err(fields.wrong(name, Fault::Missing)),
    }
}

fn item(event: Event, index: usize, value: &Value) -> Result<Item, EventError> {
    let tree = value.as_object().ok_or(Fault::NotFields.of(Location::Item(index)))?;
    let fields = Fields { tree, item: Some(index) };
    let template = fields.parsed("TemplateId", TemplateId::parse)?;
    let status = |event: Event| {
        let fault = match (event, Status::of(fields.text("SubscribeStatusString")?)) {
            (Event::Change, Some(Status::Accept)) => Fault::NotReject,
            (_, Some(status)) => return Ok(status),
            (_, None) => Fault::NotAStatus,
        };
        Err(fields.wrong("SubscribeStatusString", fault))
    };
    match event {
        Event::Popup => {
            let status = status(event)?;
            let scene = tree.contains_key("PopupScene").then(|| fields.whole("PopupScene")).transpose()?;
            Ok(Item::Decision { template, status, scene })
        }
        Event::Change => Ok(Item::Decision { template, status: status(event)?, scene: None }),
        Event::Sent => Ok(Item::Outcome {
            template,
            msgid: fields.whole("MsgID")?,
            error_code: fields.whole("ErrorCode")?,
            error_status: match tree.get("ErrorStatus") {
                Some(_) => fields.text("ErrorStatus")?,
                None => "",
            }
            .chars()
            .filter(|character| !character.is_control())
            .take(MAX_ERROR_STATUS)
            .collect(),
        }),
    }
}

/// The fields of the body, or of the item with this index.
struct Fields<'a> {
    tree: &'a Tree,
    item: Option<usize>,
}

impl<'a> Fields<'a> {
    fn get(&self, name: &'static str) -> Result<&'a Value, EventError> {
        self.tree.get(name).ok_or_else(|| self.wrong(name, Fault::Missing))
    }

    fn text(&self, name: &'static str) -> Result<&'a str, EventError> {
        self.get(name)?.as_str().ok_or_else(|| self.wrong(name, Fault::NotText))
    }

    fn parsed<T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&'a str) -> Result<T, domain::Malformed>,
    ) -> Result<T, EventError> {
        parse(self.text(name)?).map_err(|malformed| self.wrong(name, Fault::Malformed(malformed)))
    }

    /// An integer, given as a number or as a string.
    fn whole<T: TryFrom<i128>>(&self, name: &'static str) -> Result<T, EventError> {
        let number = whole(self.get(name)?).and_then(|number| T::try_from(number).map_err(|_| Fault::OutOfRange));
        number.map_err(|fault| self.wrong(name, fault))
    }

    fn wrong(&self, name: &'static str, fault: Fault) -> EventError {
        fault.of(self.item.map_or(Location::Field(name), |item| Location::ItemField(item, name)))
    }
}

/// Parses an integer, optionally negative. It never goes through a float, which would round a message id.
fn whole(value: &Value) -> Result<i128, Fault> {
    let digits = match value {
        Value::String(text) if !text.starts_with('+') => text.parse::<i128>(),
        // serde_json stores a number with a fraction, an exponent or more than 64 bits as a float.
        Value::Number(number) if number.is_f64() => {
            let large = number.as_f64().is_some_and(|float| float.abs() >= i64::MAX as f64);
            return Err(if large { Fault::OutOfRange } else { Fault::NotWhole });
        }
        Value::Number(number) => number.to_string().parse(),
        _ => return Err(Fault::NotWhole),
    };
    digits.map_err(|error| match error.kind() {
        IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => Fault::OutOfRange,
        _ => Fault::NotWhole,
    })
}
