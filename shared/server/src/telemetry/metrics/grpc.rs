//! Counts calls by method and code, under the metric names that gRPC services have in other languages, so that
//! dashboards made for those work here.
//!
//! Calls that are rejected before they reach their handler are counted too. A call that the client abandons is counted as CANCELLED, or
//! as DEADLINE_EXCEEDED if its deadline had passed: a client cancels the call itself when its deadline passes, at about
//! the moment at which the service would answer DEADLINE_EXCEEDED.
//!
//! Only the methods of the service itself are counted, not health checks, reflection or unknown paths.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use prometheus::{Error, Histogram, IntCounter, IntGauge};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use prost_types::MethodDescriptorProto;
use tonic::Code;

use super::registry::{CALL_SECONDS, Registry};
use crate::proto::DESCRIPTORS;
use crate::rpc::deadline;

/// The `grpc_code` labels, indexed by the number of the code.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// A client's deadline starts before the call arrives here. A call that is cancelled this shortly before its deadline
/// counts as expired.
const EARLY: Duration = Duration::from_millis(10);

/// Counts the calls of one service. Clones share the counters.
#[derive(Debug, Clone)]
pub struct Calls {
    methods: Arc<Methods>,
    shed: IntCounter,
}

#[derive(Debug)]
struct Methods {
    /// The common prefix of all method paths.
    prefix: String,
    /// A short list: a linear search is faster than a hash lookup.
    by_name: Vec<(String, Arc<Method>)>,
}

#[derive(Debug)]
struct Method {
    started: IntCounter,
    handled: [IntCounter; CODES.len()],
    seconds: Histogram,
    in_flight: IntGauge,
}

impl Calls {
    /// Registers the metrics for all methods of the service, at 0. Fails if the descriptors have no such service.
    pub fn new(registry: &Registry, service: &str) -> Result<Self, Error> {
        let labels = ["grpc_service", "grpc_method", "grpc_type", "grpc_code"];
        let method = &labels[..3];
        let started = registry.counters("grpc_server_started_total", "Calls that began", method)?;
        let handled = registry.counters("grpc_server_handled_total", "Calls that ended, by code", &labels)?;
        let help = "Duration of calls from the first byte to the last, in seconds";
        let seconds = registry.histograms("grpc_server_handling_seconds", help, method, CALL_SECONDS)?;
        let in_flight = registry.gauge("formid_requests_in_flight", "Calls of the service in progress")?;
        let shed = registry.counter("formid_requests_shed_total", "Calls rejected because a limit was reached")?;
        let by_name = methods(service)?.into_iter().map(|descriptor| {
            let name = descriptor.name();
            let labels = [service, name, kind(&descriptor)];
            let [service, name, kind] = labels;
            let method = Method {
                started: started.with_label_values(&labels),
                handled: CODES.map(|code| handled.with_label_values(&[service, name, kind, code])),
                seconds: seconds.with_label_values(&labels),
                in_flight: in_flight.clone(),
            };
            (name.to_owned(), Arc::new(method))
        });
        let methods = Methods { prefix: format!("/{service}/"), by_name: by_name.collect() };
        Ok(Self { methods: Arc::new(methods), shed })
    }

    /// The counter of calls that are rejected because a limit was reached. The code that rejects them increments it.
    pub fn shed(&self) -> &IntCounter {
        &self.shed
    }

    pub(crate) fn begin(&self, path: &str, headers: &HeaderMap) -> Option<Call> {
        let name = path.strip_prefix(&self.methods.prefix)?;
        let (_, method) = self.methods.by_name.iter().find(|(known, _)| known == name)?;
        method.started.inc();
        method.in_flight.inc();
        Some(Call { method: Arc::clone(method), begun: Instant::now(), limit: deadline::of(headers), code: None })
    }
}

fn methods(service: &str) -> Result<Vec<MethodDescriptorProto>, Error> {
    let files = FileDescriptorSet::decode(DESCRIPTORS).map_err(|error| Error::Msg(error.to_string()))?.file;
    let named =
        |package: &str, name: &str| service.strip_prefix(package).and_then(|rest| rest.strip_prefix('.')) == Some(name);
    let found = files.into_iter().find_map(|file| {
        let package = file.package().to_owned();
        file.service.into_iter().find(|service| named(&package, service.name()))
    });
    found.map(|service| service.method).ok_or_else(|| Error::Msg(format!("the protos have no service {service}")))
}

fn kind(method: &MethodDescriptorProto) -> &'static str {
    match (method.client_streaming(), method.server_streaming()) {
        (false, false) => "unary",
        (true, false) => "client_stream",
        (false, true) => "server_stream",
        (true, true) => "bidi_stream",
    }
}

/// A call in progress. Dropping it ends the call.
#[derive(Debug)]
pub(crate) struct Call {
    method: Arc<Method>,
    begun: Instant,
    /// The timeout that the caller set.
    limit: Option<Duration>,
    /// The code that the call ended with, once it is known.
    code: Option<Code>,
}

impl Call {
    pub(crate) fn end(mut self, code: Code) {
        self.code = Some(code);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let took = self.begun.elapsed();
        let code = self.code.unwrap_or_else(|| {
            if self.limit.is_some_and(|limit| took + EARLY >= limit) { Code::DeadlineExceeded } else { Code::Cancelled }
        });
        self.method.in_flight.dec();
        self.method.seconds.observe(took.as_secs_f64());
        // Every `Code` of tonic is one of the 17, so the lookup always succeeds.
        if let Some(handled) = self.method.handled.get(code as usize) {
            handled.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::registry::{REDIS_SECONDS, WECHAT_SECONDS};

    #[test]
    fn all_methods_start_at_zero_and_unknown_paths_are_not_counted() {
        let registry = Registry::default();
        let calls = Calls::new(&registry, "formid.v1.CollectorService").unwrap();
        let text = registry.text().unwrap();
        let started = |method, kind| {
            format!(
                "grpc_server_started_total{{grpc_method=\"{method}\",grpc_service=\"formid.v1.CollectorService\",grpc_type=\"{kind}\"}} 0"
            )
        };
        assert!(text.contains(&started("Collect", "unary")), "{text}");
        assert!(text.contains(&started("CollectStream", "bidi_stream")), "{text}");
        for path in ["/", "/formid.v1.CollectorService/", "/formid.v1.CollectorService/Nothing", "/a.B/Collect"] {
            assert!(calls.begin(path, &HeaderMap::new()).is_none(), "{path}");
        }
        assert_eq!(registry.text().unwrap(), text);
        assert!(Calls::new(&Registry::default(), "formid.v1.NoService").is_err());
    }

    #[test]
    fn histogram_buckets_cover_the_longest_calls() {
        let config: serde_json::Value =
            serde_json::from_str(include_str!("../../../../../proto/service-config.json")).unwrap();
        let timeouts =
            config["methodConfig"].as_array().unwrap().iter().filter_map(|method| method["timeout"].as_str());
        let seconds = timeouts.map(|timeout| timeout.strip_suffix('s').unwrap().parse::<f64>().unwrap());
        let longest = seconds.fold(0.0, f64::max);
        assert!(longest > 30.0 && CALL_SECONDS.contains(&longest), "{longest}");
        let connection = 1.1 * 600.0 + 30.0;
        assert!(CALL_SECONDS.last().is_some_and(|last| *last > connection));
        assert!(WECHAT_SECONDS.last().is_some_and(|last| *last > 30.0), "calls end within --lease");
        assert!(REDIS_SECONDS.last().is_some_and(|last| *last > 2.0), "commands end within --redis-timeout");
    }

    #[test]
    fn abandoned_call_is_cancelled_unless_its_deadline_passed() {
        let registry = Registry::default();
        let calls = Calls::new(&registry, "formid.v1.CollectorService").unwrap();
        let mut headers = HeaderMap::new();
        drop(calls.begin("/formid.v1.CollectorService/Collect", &headers));
        headers.insert("grpc-timeout", http::HeaderValue::from_static("5m"));
        drop(calls.begin("/formid.v1.CollectorService/Collect", &headers));
        headers.insert("grpc-timeout", http::HeaderValue::from_static("1H"));
        drop(calls.begin("/formid.v1.CollectorService/Collect", &headers));
        let text = registry.text().unwrap();
        let handled = |code, count| {
            let line = format!("grpc_server_handled_total{{grpc_code=\"{code}\",grpc_method=\"Collect\"");
            text.lines().any(|found| found.starts_with(&line) && found.ends_with(&format!(" {count}")))
        };
        assert!(handled("Canceled", 2) && handled("DeadlineExceeded", 1) && handled("OK", 0), "{text}");
        assert!(text.contains("formid_requests_in_flight 0"), "{text}");
    }

    #[test]
    fn code_names_are_in_the_order_of_their_numbers() {
        for (number, name) in (0..).zip(CODES) {
            // tonic spells two of them differently: "Cancelled" and "Ok".
            let spelt = format!("{:?}", Code::from_i32(number)).replace("Cancelled", "Canceled").replace("Ok", "OK");
            assert_eq!(spelt, name);
        }
    }
}
