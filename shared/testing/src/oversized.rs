//! Requests with one value that is far too large. They are generated from the proto descriptors, so that fields that
//! are added later are included.

use std::collections::HashMap;
use std::sync::LazyLock;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder, Streaming};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::bearer;

/// Longer than any value may be, in bytes.
const LONG: usize = 1 << 20;
/// More entries than any list or map may have.
const MANY: usize = 20_001;
/// Key of the map entry whose value is too large.
const KEY: &str = "k1";

/// A request with one value that is too large; the others are valid.
#[derive(Debug)]
pub struct Oversized {
    /// The path of the method.
    pub path: String,
    /// The field, as BadRequest names it, but without list indexes.
    pub field: String,
    /// The encoded request.
    pub request: Vec<u8>,
}

impl Oversized {
    /// Whether the field is among these names of an error.
    pub fn is_named(&self, names: &[String]) -> bool {
        names.iter().any(|name| without_places(name) == self.field)
    }
}

/// A request for each string, bytes, list and map field of every request type of a service, including nested fields.
/// `valid` gets the full name of a message type and returns an encoded message that the service accepts, empty if no
/// field is needed.
pub fn oversized_requests(service: &str, valid: impl Fn(&str) -> Vec<u8>) -> Vec<Oversized> {
    let files = FileDescriptorSet::decode(server::proto::DESCRIPTORS).unwrap().file;
    let (package, name) = service.rsplit_once('.').unwrap();
    let mut services = files.iter().filter(|file| file.package() == package).flat_map(|file| &file.service);
    let methods = &services.find(|service| service.name() == name).unwrap().method;
    let mut found = Vec::new();
    for method in methods {
        let request = method.input_type().trim_start_matches('.');
        for (field, too_large) in too_large(request, &valid) {
            let request = [valid(request), too_large].concat();
            found.push(Oversized { path: format!("/{service}/{}", method.name()), field, request });
        }
    }
    found
}

/// Each field of a message type whose size is variable: its name, and an encoding of it that is too large.
fn too_large(message: &str, valid: &impl Fn(&str) -> Vec<u8>) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for field in &descriptor(message).field {
        let (name, number, listed) = (field.name(), field.number(), field.label() == Label::Repeated);
        let of = |value: &[u8]| encoded(number, value);
        match field.r#type() {
            Type::String | Type::Bytes => {
                if listed {
                    found.push((name.to_owned(), of(b"x").repeat(MANY)));
                }
                found.push((name.to_owned(), of(&filler(name))));
            }
            Type::Message => {
                let nested = field.type_name().trim_start_matches('.');
                if let Some(value) = value_of_map(nested) {
                    let entry = |key: &str, value: &[u8]| of(&[encoded(1, key.as_bytes()), encoded(2, value)].concat());
                    let entries = (0..MANY).flat_map(|number| entry(&format!("k{number}"), b""));
                    found.push((name.to_owned(), entries.collect()));
                    found.push((name.to_owned(), entry(&"k".repeat(LONG), b"")));
                    match value.r#type() {
                        Type::Message => {
                            let values = too_large(value.type_name().trim_start_matches('.'), valid);
                            found.extend(
                                values
                                    .into_iter()
                                    .map(|(field, value)| (format!("{name}.{KEY}.{field}"), entry(KEY, &value))),
                            );
                        }
                        Type::String | Type::Bytes => found.push((format!("{name}.{KEY}"), entry(KEY, &filler("")))),
                        _ => {}
                    }
                    continue;
                }
                if listed {
                    found.push((name.to_owned(), of(b"").repeat(MANY)));
                }
                let inner = too_large(nested, valid).into_iter();
                found.extend(
                    inner.map(|(field, value)| (format!("{name}.{field}"), of(&[valid(nested), value].concat()))),
                );
            }
            // Numbers: one byte each, packed.
            _ if listed => found.push((name.to_owned(), of(&vec![1; MANY]))),
            _ => {}
        }
    }
    found
}

/// A value that is well-formed except for its length.
fn filler(field: &str) -> Vec<u8> {
    match field {
        "page_token" => format!("0.{}", "61".repeat(LONG / 2)).into_bytes(),
        _ => vec![b'a'; LONG],
    }
}

/// The field of the values, if the type is the entry type of a map.
fn value_of_map(message: &str) -> Option<FieldDescriptorProto> {
    let entry = descriptor(message);
    let is_map = entry.options.as_ref().is_some_and(prost_types::MessageOptions::map_entry);
    is_map.then(|| entry.field.iter().find(|field| field.number() == 2).unwrap().clone())
}

fn descriptor(message: &str) -> &'static DescriptorProto {
    static MESSAGES: LazyLock<HashMap<String, DescriptorProto>> = LazyLock::new(|| {
        let mut messages = HashMap::new();
        for file in FileDescriptorSet::decode(server::proto::DESCRIPTORS).unwrap().file {
            let package = file.package().to_owned();
            file.message_type.into_iter().for_each(|message| add(&mut messages, &package, message));
        }
        messages
    });
    MESSAGES.get(message).unwrap_or_else(|| panic!("the descriptors have no message {message}"))
}

fn add(messages: &mut HashMap<String, DescriptorProto>, outer: &str, message: DescriptorProto) {
    let name = format!("{outer}.{}", message.name());
    message.nested_type.iter().for_each(|nested| add(messages, &name, nested.clone()));
    messages.insert(name, message);
}

/// Encodes a length-delimited field.
fn encoded(number: i32, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(value.len() + 12);
    prost::encoding::encode_key(number as u32, prost::encoding::WireType::LengthDelimited, &mut bytes);
    prost::encoding::encode_varint(value.len() as u64, &mut bytes);
    bytes.extend_from_slice(value);
    bytes
}

/// `list[7].openid` becomes `list.openid`.
fn without_places(field: &str) -> String {
    field.split('[').map(|part| part.split_once(']').map_or(part, |(_, rest)| rest)).collect()
}

/// Calls any RPC, unary or streaming, with one encoded message. Returns the encoded responses.
pub async fn called_raw(channel: Channel, path: &str, request: Vec<u8>) -> Result<Vec<Vec<u8>>, Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let path = PathAndQuery::try_from(path).unwrap();
    let request = Request::new(tokio_stream::once(request));
    let mut responses: Streaming<Vec<u8>> = client.streaming(request, path, Raw).await?.into_inner();
    let mut found = Vec::new();
    while let Some(response) = responses.message().await? {
        found.push(response);
    }
    Ok(found)
}

/// A streaming call that sends no message and stays open until it is dropped.
#[derive(Debug)]
pub struct SilentStream {
    responses: Streaming<Vec<u8>>,
    _requests: mpsc::Sender<Vec<u8>>,
}

impl SilentStream {
    /// Opens the call with the token of a caller.
    pub async fn open(channel: Channel, path: &str, token: &str) -> Result<Self, Status> {
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.unwrap();
        let path = PathAndQuery::try_from(path).unwrap();
        let (_requests, messages) = mpsc::channel(1);
        let responses = client.streaming(bearer(token, ReceiverStream::new(messages)), path, Raw).await?.into_inner();
        Ok(Self { responses, _requests })
    }

    /// The next response.
    pub async fn message(&mut self) -> Result<Option<Vec<u8>>, Status> {
        self.responses.message().await
    }
}

/// Codec for messages that are already encoded.
#[derive(Debug, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        use prost::bytes::BufMut as _;
        to.put_slice(&message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        use prost::bytes::Buf as _;
        let mut message = vec![0; from.remaining()];
        from.copy_to_slice(&mut message);
        Ok(Some(message))
    }
}
