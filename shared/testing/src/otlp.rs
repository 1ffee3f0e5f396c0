//! A collector of traces: a real OTLP server on a free port.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
pub use opentelemetry_proto::tonic::trace::v1::Span;
pub use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
pub use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// Accepts traces until its runtime is dropped.
#[derive(Debug, Clone)]
pub struct TraceCollector {
    address: SocketAddr,
    exports: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    headers: Arc<Mutex<Vec<MetadataMap>>>,
    /// Whether it rejects all exports with an error that quotes the headers of the request.
    quotes: bool,
}

impl TraceCollector {
    /// Starts a collector.
    pub async fn start() -> Self {
        Self::started(false).await
    }

    /// Starts a collector that rejects all exports with an error that quotes the headers of the request.
    pub async fn quoting() -> Self {
        Self::started(true).await
    }

    async fn started(quotes: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let collector = Self { address, exports: Arc::default(), headers: Arc::default(), quotes };
        let server = Server::builder().add_service(TraceServiceServer::new(collector.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        collector
    }

    /// The value for `--otlp-endpoint`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All accepted exports.
    pub fn exports(&self) -> Vec<ExportTraceServiceRequest> {
        self.exports.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The values of this header in all exports, accepted or rejected.
    pub fn headers(&self, key: &str) -> Vec<String> {
        let headers = self.headers.lock().unwrap_or_else(PoisonError::into_inner);
        headers.iter().filter_map(|headers| Some(headers.get(key)?.to_str().ok()?.to_owned())).collect()
    }

    /// All accepted spans.
    pub fn spans(&self) -> Vec<Span> {
        let resources = self.exports().into_iter().flat_map(|export| export.resource_spans);
        resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
    }

    /// The accepted spans of this name.
    pub fn named(&self, name: &str) -> Vec<Span> {
        self.spans().into_iter().filter(|span| span.name == name).collect()
    }

    /// The values of this resource attribute in all accepted exports.
    pub fn resource(&self, key: &str) -> Vec<String> {
        let resources = self.exports().into_iter().flat_map(|export| export.resource_spans);
        resources.filter_map(|spans| text_of(&spans.resource?.attributes, key)).collect()
    }
}

/// An attribute of a span, as text.
pub fn attribute(span: &Span, key: &str) -> Option<String> {
    text_of(&span.attributes, key)
}

fn text_of(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    let AnyValue { value } = found.value.clone()?;
    Some(match value? {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(truth) => truth.to_string(),
        other => format!("{other:?}"),
    })
}

#[tonic::async_trait]
impl TraceService for TraceCollector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let shown = request.metadata().clone();
        let quoted = format!("{shown:?}");
        self.headers.lock().unwrap_or_else(PoisonError::into_inner).push(shown);
        if self.quotes {
            return Err(Status::permission_denied(quoted));
        }
        self.exports.lock().unwrap_or_else(PoisonError::into_inner).push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}
