//! Counts the elements of lists and maps while a message arrives, before it is decoded.
//!
//! An empty element takes two bytes on the wire, but hundreds when it is decoded. So the size of a message does not
//! show how much memory it needs. The scanner parses the fields as their bytes arrive, without storing any, and
//! descends only into nested messages that have lists themselves.

use std::collections::HashMap;
use std::sync::LazyLock;

use prost::Message as _;
use prost_types::field_descriptor_proto::Label;
use prost_types::{DescriptorProto, FileDescriptorSet};

use crate::auth::methods::{METHODS, Method};
use crate::proto::DESCRIPTORS;

/// The relevant fields of a message type: lists, maps, and messages that contain some.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Shape(Vec<Field>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Field {
    number: u32,
    /// Whether each occurrence is one more element.
    repeated: bool,
    /// If its value is a message with lists: the index of that type in [`Shapes`].
    inside: Option<usize>,
}

/// All shapes, and for each method the index of its request type, in the order of the methods.
struct Shapes {
    shapes: Vec<Shape>,
    requests: Vec<Option<usize>>,
}

static SHAPES: LazyLock<Shapes> = LazyLock::new(|| {
    let mut shapes = Shapes { shapes: Vec::new(), requests: Vec::new() };
    // The descriptors are part of the program. If they could not be decoded, nothing could be served, and tests would
    // fail.
    let files = FileDescriptorSet::decode(DESCRIPTORS).unwrap_or_default().file;
    let (mut messages, mut requests) = (HashMap::new(), HashMap::new());
    for file in &files {
        let package = format!(".{}", file.package());
        file.message_type.iter().for_each(|message| enter(&mut messages, &package, message));
        for (service, method) in
            file.service.iter().flat_map(|service| service.method.iter().map(move |m| (service, m)))
        {
            requests.insert(format!("{package}.{}/{}", service.name(), method.name()), method.input_type());
        }
    }
    let mut known = HashMap::new();
    shapes.requests = METHODS
        .iter()
        .map(|method| {
            let name = method.path.replacen('/', ".", 1);
            requests.get(&name).and_then(|request| shape(request, &messages, &mut known, &mut shapes.shapes))
        })
        .collect();
    shapes
});

fn enter<'a>(messages: &mut HashMap<String, &'a DescriptorProto>, outer: &str, message: &'a DescriptorProto) {
    let name = format!("{outer}.{}", message.name());
    message.nested_type.iter().for_each(|nested| enter(messages, &name, nested));
    messages.insert(name, message);
}

/// Returns the index of the shape of a type, or `None` if it has no lists.
fn shape(
    name: &str,
    messages: &HashMap<String, &DescriptorProto>,
    known: &mut HashMap<String, Option<usize>>,
    shapes: &mut Vec<Shape>,
) -> Option<usize> {
    if let Some(place) = known.get(name) {
        return *place;
    }
    // A recursive type finds this index. None of our types is recursive.
    let place = shapes.len();
    shapes.push(Shape::default());
    known.insert(name.to_owned(), Some(place));
    let mut fields = Vec::new();
    for field in messages.get(name).into_iter().flat_map(|message| &message.field) {
        let repeated = field.label() == Label::Repeated;
        let inside = shape(field.type_name(), messages, known, shapes);
        if repeated || inside.is_some() {
            fields.push(Field { number: field.number().cast_unsigned(), repeated, inside });
        }
    }
    let found = (!fields.is_empty()).then_some(place);
    shapes[place] = Shape(fields);
    known.insert(name.to_owned(), found);
    found
}

/// The bytes are not a valid message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Counts the elements of one message.
#[derive(Debug)]
pub(super) struct Scanner {
    /// The innermost open message: its shape, and the number of its bytes still to come.
    open: (&'static Shape, u64),
    /// The messages that contain it, the outermost first.
    outer: Vec<(&'static Shape, u64)>,
    state: State,
    elements: usize,
}

/// The meaning of the next byte.
#[derive(Debug, Clone, Copy)]
enum State {
    /// The key of a field: its value so far, and the number of bits so far.
    Key(u64, u32),
    /// The length of the value of a field: its value so far, and the number of bits so far.
    Length { field: u64, so_far: u64, bits: u32 },
    /// A number of variable length (varint).
    Number,
    /// A value that is skipped: the number of bytes left.
    Value(u64),
}

impl Scanner {
    /// Creates a scanner for a message of `size` bytes to this method. Returns `None` if its request has no lists.
    pub(super) fn of(method: &Method, size: usize) -> Option<Self> {
        let at = METHODS.iter().position(|known| std::ptr::eq(known, method))?;
        let shape = SHAPES.shapes.get((*SHAPES.requests.get(at)?)?)?;
        Some(Self { open: (shape, size as u64), outer: Vec::new(), state: State::Key(0, 0), elements: 0 })
    }

    pub(super) fn elements(&self) -> usize {
        self.elements
    }

    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<(), Malformed> {
        while let Some((&byte, rest)) = bytes.split_first() {
            if let State::Value(left) = self.state {
                let count = left.min(bytes.len() as u64);
                bytes = &bytes[count as usize..];
                self.took(count)?;
                self.state = if count == left { self.next_field() } else { State::Value(left - count) };
                continue;
            }
            bytes = rest;
            self.took(1)?;
            let last = byte < 0x80;
            self.state = match self.state {
                State::Key(so_far, bits) => match with(so_far, bits, byte)? {
                    key if last => self.field(key)?,
                    key => State::Key(key, bits + 7),
                },
                State::Length { field, so_far, bits } => match with(so_far, bits, byte)? {
                    length if last => self.value(field, length)?,
                    so_far => State::Length { field, so_far, bits: bits + 7 },
                },
                State::Number if last => self.next_field(),
                state => state,
            };
        }
        Ok(())
    }

    /// Subtracts this many bytes from those still to come in the innermost message.
    fn took(&mut self, count: u64) -> Result<(), Malformed> {
        self.open.1 = self.open.1.checked_sub(count).ok_or(Malformed)?;
        Ok(())
    }

    /// Returns the state after the key of a field.
    fn field(&mut self, key: u64) -> Result<State, Malformed> {
        let field = key >> 3;
        let state = match key & 7 {
            0 => State::Number,
            1 => State::Value(8),
            2 => return Ok(State::Length { field, so_far: 0, bits: 0 }),
            5 => State::Value(4),
            // Groups: our protos have none.
            _ => return Err(Malformed),
        };
        // A list of numbers that is not packed.
        self.elements += usize::from(self.known(field).is_some_and(|field| field.repeated));
        Ok(state)
    }

    /// Returns the state after the length of a value.
    fn value(&mut self, field: u64, length: u64) -> Result<State, Malformed> {
        let known = self.known(field);
        self.elements += usize::from(known.is_some_and(|field| field.repeated));
        if length > self.open.1 {
            return Err(Malformed);
        }
        let inside = known.and_then(|field| field.inside).and_then(|inside| SHAPES.shapes.get(inside));
        match inside {
            Some(shape) => {
                self.took(length)?;
                self.outer.push(std::mem::replace(&mut self.open, (shape, length)));
                Ok(self.next_field())
            }
            None if length == 0 => Ok(self.next_field()),
            None => Ok(State::Value(length)),
        }
    }

    fn known(&self, number: u64) -> Option<&'static Field> {
        self.open.0.0.iter().find(|field| u64::from(field.number) == number)
    }

    /// Ends a field, and the messages that end with it.
    fn next_field(&mut self) -> State {
        while self.open.1 == 0
            && let Some(outer) = self.outer.pop()
        {
            self.open = outer;
        }
        State::Key(0, 0)
    }
}

/// Adds seven bits to a varint.
fn with(so_far: u64, bits: u32, byte: u8) -> Result<u64, Malformed> {
    let more = u64::from(byte & 0x7f).checked_shl(bits).ok_or(Malformed)?;
    Ok(so_far | more)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::auth::methods::{MethodAccess, method_access};
    use crate::proto::broadcast_request::Audience;
    use crate::proto::credential::Right;
    use crate::proto::{
        BroadcastRequest, CollectRequest, Credential, Grant, Recipient, Recipients, SendTemplateRequest, TemplateValue,
    };

    const COLLECT: &str = "/formid.v1.CollectorService/Collect";
    const SEND: &str = "/formid.v1.DispatcherService/SendTemplate";
    const BROADCAST: &str = "/formid.v1.DispatcherService/Broadcast";

    fn scanner(path: &str, size: usize) -> Option<Scanner> {
        let MethodAccess::Method(method) = method_access(path) else { panic!("{path}") };
        Scanner::of(method, size)
    }

    /// Counts the elements of a message, and checks that the result does not depend on how its bytes are split.
    fn elements(path: &str, message: &[u8]) -> Result<usize, Malformed> {
        let in_pieces = |size: usize| {
            let mut scanner = scanner(path, message.len()).unwrap();
            message.chunks(size).try_for_each(|piece| scanner.read(piece))?;
            Ok(scanner.elements())
        };
        let whole = in_pieces(message.len().max(1));
        for size in 1..message.len().min(20) {
            assert_eq!(in_pieces(size), whole, "in pieces of {size}");
        }
        whole
    }

    fn data(keys: usize) -> HashMap<String, TemplateValue> {
        let value = || TemplateValue { value: "a value".repeat(30), color: String::new() };
        (0..keys).map(|key| (format!("keyword{key}"), value())).collect()
    }

    #[test]
    fn elements_are_counted_at_every_depth() {
        let form =
            Credential { openid: "oUser".into(), right: Some(Right::FormId("f".repeat(300))), obtained_at: None };
        let grant = Credential {
            right: Some(Right::Grant(Grant { template_id: "t".into(), ..Grant::default() })),
            obtained_at: Some(prost_types::Timestamp { seconds: 1_800_000_000, nanos: 1 }),
            ..form.clone()
        };
        let credentials = [form, grant, Credential::default()].into_iter().cycle().take(100).collect();
        let collect = CollectRequest { app_id: "wx".into(), credentials };
        assert_eq!(elements(COLLECT, &collect.encode_to_vec()), Ok(100));

        let send = SendTemplateRequest { data: data(7), page: "p".into(), retry_unknown: true, ..Default::default() };
        assert_eq!(elements(SEND, &send.encode_to_vec()), Ok(7));

        let recipient = |keys| Recipient { openid: "oUser".into(), data: data(keys) };
        let list = vec![recipient(0), recipient(2), Recipient::default(), recipient(3)];
        let broadcast = BroadcastRequest {
            data: data(5),
            audience: Some(Audience::Recipients(Recipients { list })),
            exclude: vec!["oA".into(), String::new()],
            limit: 300,
            ..Default::default()
        };
        assert_eq!(elements(BROADCAST, &broadcast.encode_to_vec()), Ok(5 + 4 + 5 + 2));
    }

    #[test]
    fn smallest_possible_elements_are_counted() {
        assert_eq!(elements(COLLECT, &[0x12, 0].repeat(1000)), Ok(1000));
        // Recipients that each have one entry without a key.
        let list = [0x0a, 2, 0x12, 0].repeat(30);
        let audience = [&[0x4a, list.len() as u8][..], &list].concat();
        assert_eq!(elements(BROADCAST, &audience.repeat(3)), Ok(3 * 60));
        assert_eq!(elements(BROADCAST, &[]), Ok(0));
    }

    #[test]
    fn malformed_messages_are_detected() {
        for bytes in [
            // Groups, which would hide elements from the count.
            &[0x13, 0x12, 0, 0x14][..],
            &[0x16],
            // Longer than the containing message.
            &[0x12, 5, 0],
            &[0x4a, 2, 0x0a, 3, 0x12, 0],
            // A varint that does not end.
            &[0x80; 11],
            &[0x12, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80],
        ] {
            assert_eq!(elements(BROADCAST, bytes), Err(Malformed), "{bytes:?}");
        }
    }

    #[test]
    fn requests_without_lists_are_not_scanned() {
        for method in &METHODS {
            let name = method.path.rsplit_once('/').unwrap().1;
            let lists = ["Collect", "CollectStream", "SendTemplate", "Broadcast", "AddRecipients"].contains(&name);
            assert_eq!(Scanner::of(method, 10).is_some(), lists, "{name}");
        }
    }
}
