//! Parses XML into the same tree of fields that the equivalent JSON gives.
//!
//! An element without child elements is a string, from text or CDATA, with the whitespace around it removed. An element
//! with child elements is an object. Several elements of one name are an array. Attributes are ignored. Input that an
//! attacker could expand without bound is refused: document types, and with them all entities but the five predefined
//! ones, and deep nesting.

use quick_xml::Reader;
use quick_xml::escape::resolve_xml_entity;
use quick_xml::events::{BytesRef, Event};
use serde_json::{Map, Value};

use super::Fault;

/// The maximum nesting. WeChat's subscription events have 4 levels: xml, the event, List, a field.
const MAX_DEPTH: usize = 16;

/// An element whose end tag was not read yet.
struct Open {
    name: String,
    text: String,
    fields: Map<String, Value>,
}

/// Parses a body that is one `<xml>` element.
pub(super) fn tree(text: &str) -> Result<Map<String, Value>, Fault> {
    let mut reader = Reader::from_str(text);
    // Read `<a/>` as `<a></a>`.
    reader.config_mut().expand_empty_elements = true;
    let mut open: Vec<Open> = Vec::new();
    let mut root = None;
    loop {
        let at = usize::try_from(reader.buffer_position()).unwrap_or(usize::MAX);
        let event = reader.read_event().map_err(|_| Fault::NotXml(at))?;
        let inside = open.last_mut();
        match event {
            Event::Start(start) => {
                if open.len() == MAX_DEPTH {
                    return Err(Fault::TooDeep(at));
                }
                let name = start.name().as_ref().to_owned();
                if open.is_empty() && (root.is_some() || name != "xml") {
                    return Err(Fault::NotXml(at));
                }
                open.push(Open { name, text: String::new(), fields: Map::new() });
            }
            Event::End(_) => {
                // quick-xml has checked that the end tag matches a start tag.
                let Open { name, text, fields } = open.pop().ok_or(Fault::NotXml(at))?;
                match open.last_mut() {
                    None => root = Some(fields),
                    Some(parent) if fields.is_empty() => add(&mut parent.fields, name, text.trim().into()),
                    Some(parent) => add(&mut parent.fields, name, fields.into()),
                }
            }
            Event::Text(text) => match inside {
                Some(inside) => inside.text.push_str(&text),
                None if text.trim_ascii().is_empty() => {}
                None => return Err(Fault::NotXml(at)),
            },
            Event::CData(text) => inside.ok_or(Fault::NotXml(at))?.text.push_str(&text),
            Event::GeneralRef(reference) => {
                let inside = inside.ok_or(Fault::NotXml(at))?;
                resolve(&reference, &mut inside.text).ok_or(Fault::UnknownEntity(at))?;
            }
            Event::DocType(_) => return Err(Fault::DocumentType(at)),
            Event::Decl(_) | Event::PI(_) | Event::Comment(_) => {}
            // `Empty` does not occur, because empty elements are expanded.
            Event::Empty(_) => return Err(Fault::NotXml(at)),
            Event::Eof if open.is_empty() => return root.ok_or(Fault::NotXml(at)),
            Event::Eof => return Err(Fault::NotXml(at)),
        }
    }
}

/// Appends the character that `&name;` or `&#number;` refers to.
fn resolve(reference: &BytesRef<'_>, text: &mut String) -> Option<()> {
    match reference.resolve_char_ref().ok()? {
        Some(character) => text.push(character),
        None => text.push_str(resolve_xml_entity(reference)?),
    }
    Some(())
}

/// Adds a field. From the second field of the same name on, the value is an array.
fn add(fields: &mut Map<String, Value>, name: String, value: Value) {
    match fields.get_mut(&name) {
        None => {
            fields.insert(name, value);
        }
        // The value of an element is never an array itself.
        Some(Value::Array(values)) => values.push(value),
        Some(first) => {
            let values = vec![first.take(), value];
            *first = Value::Array(values);
        }
    }
}
