//! An HTTP/2 client that writes single frames and ignores the limits that the server sets, as no library would.

use std::net::SocketAddr;

use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Frame type: content.
pub const DATA: u8 = 0;
/// Frame type: headers or trailers of a request or a response.
pub const HEADERS: u8 = 1;
/// Frame type: cancels a stream.
pub const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
/// Frame type: ends a connection.
pub const GOAWAY: u8 = 7;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// A client connection.
#[derive(Debug)]
pub struct Peer {
    stream: TcpStream,
    /// The bytes that the next flush sends.
    unsent: Vec<u8>,
    next: u32,
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Type of the frame.
    pub kind: u8,
    /// Stream of the frame; 0 for the connection.
    pub stream: u32,
    flags: u8,
    /// Payload of the frame.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Whether it is the last frame of its stream.
    pub fn is_last(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }
}

impl Peer {
    /// Opens a connection. The server may send at most `window` bytes on a stream, since this client sends no window
    /// updates.
    pub async fn connect(address: SocketAddr, window: u32) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut peer = Self { stream, unsent: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), next: 1 };
        let [a, b, c, d] = window.to_be_bytes();
        peer.frame(SETTINGS, 0, 0, &[0, 4, a, b, c, d]);
        peer.flush().await.unwrap();
        peer
    }

    /// Starts a call. Returns its stream.
    pub fn open(&mut self, path: &str, headers: &[(&str, &str)]) -> u32 {
        let stream = self.next;
        self.next += 2;
        // POST and http come from the HPACK static table. The other headers are literals.
        let mut block = vec![0x83, 0x86, 0x04];
        text(&mut block, path);
        let usual = [("te", "trailers"), ("content-type", "application/grpc")];
        for (name, value) in usual.iter().chain(headers) {
            block.push(0);
            text(&mut block, name);
            text(&mut block, value);
        }
        self.frame(HEADERS, END_HEADERS, stream, &block);
        stream
    }

    /// Writes content; `last` ends the request.
    pub fn data(&mut self, stream: u32, content: &[u8], last: bool) {
        self.frame(DATA, if last { END_STREAM } else { 0 }, stream, content);
    }

    /// Cancels a call.
    pub fn reset(&mut self, stream: u32) {
        const CANCEL: u32 = 8;
        self.frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let [_, length @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
        self.unsent.extend(length);
        self.unsent.extend([kind, flags]);
        self.unsent.extend(stream.to_be_bytes());
        self.unsent.extend(payload);
    }

    /// Sends everything that was written since the last flush.
    pub async fn flush(&mut self) -> std::io::Result<()> {
        let unsent = std::mem::take(&mut self.unsent);
        self.stream.write_all(&unsent).await
    }

    /// Reads the next frame of a stream, or the frame that ends the connection; `None` when the connection is closed.
    /// Answers SETTINGS and PING frames itself.
    pub async fn read(&mut self) -> Option<Frame> {
        loop {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head).await.ok()?;
            let [a, b, c, kind, flags, stream @ ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            self.stream.read_exact(&mut payload).await.ok()?;
            let frame = Frame { kind, flags, stream: u32::from_be_bytes(stream), payload };
            match kind {
                SETTINGS | PING if flags & ACK == 0 => {
                    let answer = if kind == PING { &frame.payload[..] } else { &[] };
                    self.frame(kind, ACK, 0, answer);
                    self.flush().await.ok()?;
                }
                DATA | HEADERS | RST_STREAM | GOAWAY => return Some(frame),
                _ => {}
            }
        }
    }

    /// Reads until `count` responses are complete. Panics if the connection ends before that.
    pub async fn answers(&mut self, count: usize) -> Vec<Frame> {
        let (mut frames, mut answered) = (Vec::new(), 0);
        while answered < count {
            let frame = self.read().await.expect("the connection is closed");
            assert_ne!(
                frame.kind,
                GOAWAY,
                "the server ended the connection: {}",
                String::from_utf8_lossy(&frame.payload)
            );
            answered += usize::from(frame.is_last());
            frames.push(frame);
        }
        frames
    }
}

/// Appends an HPACK string literal: the length with a prefix of seven bits and, if needed, more bytes; then the text.
fn text(block: &mut Vec<u8>, text: &str) {
    let mut length = text.len();
    if length < 127 {
        block.push(length as u8);
    } else {
        block.push(127);
        length -= 127;
        while length >= 128 {
            block.push(length as u8 | 0x80);
            length >>= 7;
        }
        block.push(length as u8);
    }
    block.extend(text.as_bytes());
}

/// Encodes a message and adds the gRPC prefix: a flag and the length.
pub fn framed(message: &impl Message) -> Vec<u8> {
    prefixed(&message.encode_to_vec())
}

/// Adds the gRPC prefix to an encoded message.
pub fn prefixed(message: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    bytes.extend(message);
    bytes
}
