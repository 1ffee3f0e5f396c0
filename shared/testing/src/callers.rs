//! The callers file, and calls that authenticate as a caller.

use std::path::Path;

use prost::Message;
use ring::digest::{SHA256, digest};
use tempfile::TempDir;
use tonic::codec::Streaming;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt as _;

/// A callers file in a temporary directory of its own.
#[derive(Debug)]
pub struct CallersFile(TempDir);

impl CallersFile {
    /// Creates the file with these callers, each a name and its TOML table. `TOKEN(x)` in a table becomes the SHA-256
    /// of the token `x`.
    pub fn new(callers: &[(&str, &str)]) -> Self {
        let file = Self(tempfile::tempdir().unwrap());
        file.write(callers);
        file
    }

    /// Replaces the content with other callers.
    pub fn write(&self, callers: &[(&str, &str)]) {
        let tables = callers.iter().map(|(name, table)| format!("[callers.{name}]\n{}\n", hashed(table)));
        self.write_text(&tables.collect::<String>());
    }

    /// Replaces the content with any text, valid or not.
    pub fn write_text(&self, text: &str) {
        std::fs::write(self.path(), text).unwrap();
    }

    /// Path of the file.
    pub fn path(&self) -> Box<Path> {
        self.0.path().join("callers.toml").into()
    }

    /// The command-line flags that point to the file.
    pub fn flags(&self) -> [String; 2] {
        ["--callers-file".into(), self.path().to_str().unwrap().into()]
    }
}

fn hashed(table: &str) -> String {
    let mut parts = table.split("TOKEN(");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (token, rest) = part.split_once(')').unwrap();
        let hash = digest(&SHA256, token.as_bytes());
        let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        text += &format!("{hex}{rest}");
    }
    text
}

/// A request with this token in its `authorization` header.
pub fn bearer<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

/// Calls any RPC, unary or streaming, with one message, and reads its responses to the end. With `()`, an empty
/// message, a call that passes authentication fails because of its missing fields.
pub async fn called<M: Message + 'static>(
    channel: Channel,
    path: &'static str,
    request: Request<M>,
) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let request = request.map(tokio_stream::once);
    let path = PathAndQuery::from_static(path);
    let mut answers: Streaming<()> =
        client.streaming(request, path, ProstCodec::<M, ()>::default()).await?.into_inner();
    while answers.message().await?.is_some() {}
    Ok(())
}

/// The stable reason in the `ErrorInfo` of an error.
pub fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "formid");
    info.reason.clone()
}

/// Everything that a caller sees of an error, for a comparison: code, message, details, and headers except `date`.
pub fn whole(status: &Status) -> (tonic::Code, String, Vec<u8>, Vec<(String, String)>) {
    let metadata = status.metadata().clone().into_headers();
    let mut headers: Vec<_> = metadata
        .iter()
        .filter(|(name, _)| *name != "date")
        .map(|(name, value)| (name.to_string(), format!("{value:?}")))
        .collect();
    headers.sort();
    (status.code(), status.message().to_owned(), status.details().to_vec(), headers)
}
