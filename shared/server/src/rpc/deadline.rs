//! Answers an exceeded deadline of a caller with DEADLINE_EXCEEDED. tonic's own server, which is not used here, answers
//! CANCELLED, which clients mistake for a cancellation of their own.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

use crate::rpc::status::Failure;

/// Tower layer that ends a call at the deadline in its `grpc-timeout` header.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines;

impl<S> Layer<S> for Deadlines {
    type Service = WithDeadline<S>;

    fn layer(&self, inner: S) -> WithDeadline<S> {
        WithDeadline { inner }
    }
}

/// The service of the layer [`Deadlines`].
#[derive(Debug, Clone)]
pub struct WithDeadline<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for WithDeadline<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let deadline = of(request.headers());
        let answer = self.inner.call(request);
        let Some(deadline) = deadline else { return Box::pin(answer) };
        let limited = tokio::time::timeout(deadline, answer);
        Box::pin(async move {
            match limited.await {
                Ok(answer) => answer,
                Err(_) => {
                    let message = "the call's deadline passed; the operation it started may still complete";
                    Ok(Status::from(Failure::new(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", message)).into_http())
                }
            }
        })
    }
}

/// Returns the timeout that the caller set for the call, if any.
pub(crate) fn of(headers: &HeaderMap) -> Option<Duration> {
    headers.get("grpc-timeout").and_then(|value| parse(value.to_str().ok()?))
}

/// Parses a `grpc-timeout` value: up to eight digits and a unit.
fn parse(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_parsed_as_specified() {
        assert_eq!(parse("2S"), Some(Duration::from_secs(2)));
        assert_eq!(parse("99999999m"), Some(Duration::from_millis(99_999_999)));
        for bad in ["", "S", "2", "123456789S", "2s", "+2S", "-1S"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
