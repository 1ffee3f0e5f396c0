//! Exports spans from a bounded queue, in the background, over gRPC.

use std::time::Duration;

use opentelemetry::trace::{Link, SpanKind, TracerProvider as _};
use opentelemetry::{Context, KeyValue, TraceId};
use opentelemetry_otlp::{RetryPolicy, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SamplingResult, SdkTracerProvider, ShouldSample, SpanData,
    SpanExporter,
};
use tokio::runtime::Handle;
use tonic::transport::{ClientTlsConfig, Endpoint};
use tracing::{Subscriber, warn};
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::LookupSpan;

use super::{TARGET, TraceConfig};
use crate::telemetry::outage::Outage;

/// The maximum number of waiting spans, about 4 MB. Further spans are dropped.
const QUEUE: usize = 4096;

/// The number of spans that are exported at once.
const BATCH: usize = 512;

/// The longest time that a span waits for others.
const INTERVAL: Duration = Duration::from_secs(1);

/// The timeout for connecting, and for an export on an open connection.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The timeout of an export including everything before it, such as a TLS handshake.
const LONGEST: Duration = Duration::from_secs(5);

/// How long the export of the remaining spans may delay a stop: an export that hangs, and the last one.
const FLUSH: Duration = Duration::from_secs(7);

#[derive(Debug)]
pub(crate) struct Exporting {
    provider: SdkTracerProvider,
    instance: String,
}

impl Exporting {
    /// Creates the exporter. It connects later, so that an unavailable trace collector does not prevent the service
    /// from starting. Must be called within a runtime, which then runs the connection.
    pub(crate) fn new(service: &'static str, endpoint: &str, config: &TraceConfig) -> Result<Self, String> {
        let mut channel = Endpoint::from_shared(endpoint.to_owned())
            .map_err(|error| error.to_string())?
            .connect_timeout(TIMEOUT)
            .timeout(TIMEOUT);
        if endpoint.starts_with("https:") {
            // If there is already a default provider, that one is used.
            let _ = rustls::crypto::ring::default_provider().install_default();
            channel =
                channel.tls_config(ClientTlsConfig::new().with_native_roots()).map_err(|error| error.to_string())?;
        }
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_channel(channel.connect_lazy())
            .with_timeout(TIMEOUT)
            // No retries: meanwhile, further spans wait in the queue.
            .with_retry_policy(RetryPolicy::disabled())
            .build()
            .map_err(|error| error.to_string())?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(INTERVAL)
            .build();
        let (begins, ends) = ("traces are lost: they cannot be exported", "traces are exported again");
        let outage = Outage::new("export", None, begins.into(), ends.into(), None, Duration::ZERO);
        let exporter = Watched { exporter, runtime: Handle::current(), outage };
        let instance = format!("{:032x}", rand::random::<u128>());
        let resource = Resource::builder()
            .with_service_name(service)
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", instance.clone()))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
            .with_sampler(Sampler::ParentBased(Box::new(LinkBased(Sampler::TraceIdRatioBased(config.ratio)))))
            .with_resource(resource)
            .build();
        Ok(Self { provider, instance })
    }

    /// The instance id of this process in its traces.
    pub(crate) fn instance(&self) -> &str {
        &self.instance
    }

    /// Returns the layer that exports the spans of [`TARGET`], with only the attributes that they were given.
    pub(crate) fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let spans = filter_fn(|metadata| metadata.is_span() && metadata.target() == TARGET);
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("formid"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(spans.with_max_level_hint(LevelFilter::INFO))
    }

    /// Exports the remaining spans, within a bounded time.
    pub(crate) async fn stop(self) {
        // Shutdown blocks until the exporter's thread ends, so it runs in a blocking thread.
        let stopped = tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(FLUSH)).await;
        if !matches!(stopped, Ok(Ok(()))) {
            warn!("the last traces are lost: the trace collector did not accept them in time");
        }
    }
}

/// Samples a trace that is linked to a sampled one. For example, the trace of a broadcast is linked to the call that
/// created it. All other traces are sampled by the inner sampler.
#[derive(Debug, Clone)]
struct LinkBased(Sampler);

impl ShouldSample for LinkBased {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let linked = links.iter().any(|link| link.span_context.is_sampled());
        let sampler = if linked { &Sampler::AlwaysOn } else { &self.0 };
        sampler.should_sample(parent, trace, name, kind, attributes, links)
    }
}

/// Logs one line when exports begin to fail and one when they succeed again. Ends exports that hang.
#[derive(Debug)]
struct Watched<E> {
    exporter: E,
    /// Provides the timer, because exports run on a thread of their own, outside of any runtime.
    runtime: Handle,
    /// Counts spans: the spans of a failed batch are lost.
    outage: Outage,
}

impl<E: SpanExporter> SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let bounded = {
            let _within = self.runtime.enter();
            tokio::time::timeout(LONGEST, self.exporter.export(batch))
        };
        let result = bounded.await.unwrap_or(Err(OTelSdkError::Timeout(LONGEST)));
        // The error contains no text from the trace collector, only the code and the transport error.
        self.outage.operation_for(spans).note(&result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
