//! Calls that share encoded content, so that many large calls take no memory in the test process.

use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::{Body as HttpBody, Frame};
use prost::bytes::Bytes;
use tonic::body::Body;
use tonic::codegen::http::Request;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower::{Service as _, ServiceExt as _};

/// A request body that is one frame.
struct Whole(Option<Bytes>);

impl HttpBody for Whole {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.0.take().map(|content| Ok(Frame::data(content))))
    }
}

/// Makes a call with this content, a message with its gRPC prefix, and waits for the end of the call.
pub async fn call_with(mut channel: Channel, path: &str, content: Bytes) -> Result<(), Status> {
    let request = Request::post(path).header("te", "trailers").header("content-type", "application/grpc");
    let request = request.body(Body::new(Whole(Some(content)))).unwrap();
    let answer = channel.ready().await.map_err(broken)?.call(request).await.map_err(broken)?;
    let mut status = Status::from_header_map(answer.headers());
    let mut body = answer.into_body();
    while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        if let Some(trailers) = frame?.trailers_ref() {
            status = Status::from_header_map(trailers);
        }
    }
    match status.expect("response without a status") {
        status if status.code() == Code::Ok => Ok(()),
        status => Err(status),
    }
}

fn broken(error: tonic::transport::Error) -> Status {
    Status::from_error(error.into())
}
