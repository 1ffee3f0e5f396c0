//! Server settings: who may call, TLS, and the limits of calls and connections.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::builder::FalseyValueParser;

use crate::auth::Callers;
use crate::serve::admission::Limits;
use crate::serve::connections::{Bounds, ConnectionLimits};
use crate::serve::tls::Tls;
use domain::config_errors::ConfigErrors;

/// The minimum keepalive interval. A shorter one would flood the peer with pings.
const SHORTEST_KEEPALIVE: Duration = Duration::from_secs(1);

/// The minimum idle time of a connection. Clients open a connection some time before they call.
const SHORTEST_IDLE: Duration = Duration::from_secs(1);

/// The flags of the server. An empty path means that the flag is not given.
#[derive(Debug, Clone, clap::Args)]
pub struct ServerArgs {
    /// File with the callers, and what each may do (TOML)
    #[arg(long, env = "FORMID_CALLERS_FILE", default_value = "", hide_default_value = true)]
    pub callers_file: String,
    /// Let everybody do everything, from any address: only for networks in which every client is trusted
    #[arg(long, env = "FORMID_INSECURE", value_parser = FalseyValueParser::new())]
    pub insecure: bool,
    /// Certificate of this service, with its chain up to the CA (PEM)
    #[arg(long, env = "FORMID_TLS_CERT", default_value = "", hide_default_value = true)]
    pub tls_cert: String,
    /// Private key of that certificate (PEM)
    #[arg(long, env = "FORMID_TLS_KEY", default_value = "", hide_default_value = true)]
    pub tls_key: String,
    /// CA certificates that client certificates must be issued by (PEM); if not given, clients need no certificate
    #[arg(long, env = "FORMID_TLS_CLIENT_CA", default_value = "", hide_default_value = true)]
    pub tls_client_ca: String,
    /// Additional address that serves health in plaintext, for probes that use no TLS (IP address:port)
    #[arg(long, env = "FORMID_PROBE_LISTEN", default_value = "", hide_default_value = true)]
    pub probe_listen: String,
    /// Maximum number of calls in progress, not counting streams; beyond it, calls are rejected
    #[arg(long, env = "FORMID_MAX_REQUESTS", default_value = "1024")]
    pub max_requests: String,
    /// Maximum number of open streams (CollectStream, WatchBroadcast, reflection)
    #[arg(long, env = "FORMID_MAX_STREAMS", default_value = "512")]
    pub max_streams: String,
    /// Maximum memory for the messages of all calls (bytes); beyond it, calls are rejected and streams wait
    #[arg(long, env = "FORMID_MAX_BYTES_IN_FLIGHT", default_value = "134217728")]
    pub max_bytes_in_flight: String,
    /// Maximum number of calls in progress on one connection; a client that needs more waits or opens another
    #[arg(long, env = "FORMID_MAX_CONNECTION_CALLS", default_value = "1000")]
    pub max_connection_calls: String,
    /// Maximum number of connections; beyond it, idle connections are closed for new ones
    #[arg(long, env = "FORMID_MAX_CONNECTIONS", default_value = "1000")]
    pub max_connections: String,
    /// How long a connection may be open without a call (duration)
    #[arg(long, env = "FORMID_MAX_CONNECTION_IDLE", default_value = "5m")]
    pub max_connection_idle: String,
    /// Interval of HTTP/2 keepalive pings on a connection without traffic (duration)
    #[arg(long, env = "FORMID_KEEPALIVE_INTERVAL", default_value = "30s")]
    pub keepalive_interval: String,
    /// How long the answer to a keepalive ping may take, before the connection is closed (duration)
    #[arg(long, env = "FORMID_KEEPALIVE_TIMEOUT", default_value = "20s")]
    pub keepalive_timeout: String,
    /// Age at which clients are told to open another connection, plus or minus a tenth (duration; 0s: never)
    #[arg(long, env = "FORMID_MAX_CONNECTION_AGE", default_value = "10m")]
    pub max_connection_age: String,
    /// How much longer streams may continue on such a connection (duration)
    #[arg(long, env = "FORMID_MAX_CONNECTION_AGE_GRACE", default_value = "30s")]
    pub max_connection_age_grace: String,
}

/// The checked server settings.
pub(super) struct ServerConfig {
    pub(super) callers: Option<Arc<Callers>>,
    pub(super) tls: Option<Tls>,
    pub(super) probe_listen: Option<SocketAddr>,
    pub(super) limits: Limits,
    pub(super) connections: ConnectionLimits,
}

impl ServerArgs {
    /// Parses the flags and reads the files that they name. `listen` is the service's own address, if it is valid.
    pub(super) fn read(&self, listen: Option<SocketAddr>, problems: &mut ConfigErrors) -> Option<ServerConfig> {
        let callers = given(&self.callers_file).map(|path| Callers::read(path, problems).map(Arc::new));
        self.contradictions(listen, callers.as_ref().and_then(Option::as_ref), problems);
        let tls = match (given(&self.tls_cert), given(&self.tls_key)) {
            (Some(cert), Some(key)) => {
                let client_ca = given(&self.tls_client_ca).map(Path::to_owned);
                Some(Tls::read(cert.to_owned(), key.to_owned(), client_ca, problems))
            }
            _ => None,
        };
        let probe_listen = match self.probe_listen.as_str() {
            "" => None,
            text => Some(problems.read("--probe-listen", text)),
        };
        let requests = problems.within("--max-requests", &self.max_requests, 1..=1_000_000);
        let streams = problems.within("--max-streams", &self.max_streams, 1..=1_000_000);
        let bytes = problems.within("--max-bytes-in-flight", &self.max_bytes_in_flight, 1 << 20..=1 << 40);
        let calls = problems.within("--max-connection-calls", &self.max_connection_calls, 1..=1_000_000);
        let connections = problems.within("--max-connections", &self.max_connections, 1..=1_000_000);
        let idle = problems.duration("--max-connection-idle", &self.max_connection_idle);
        if idle.is_some_and(|idle| idle < SHORTEST_IDLE) {
            problems.add(format!("--max-connection-idle must be at least {SHORTEST_IDLE:?}"));
        }
        let keepalive_interval = keepalive("--keepalive-interval", &self.keepalive_interval, problems);
        let keepalive_timeout = keepalive("--keepalive-timeout", &self.keepalive_timeout, problems);
        let age = problems.duration("--max-connection-age", &self.max_connection_age);
        let grace = problems.duration("--max-connection-age-grace", &self.max_connection_age_grace);
        Some(ServerConfig {
            callers: all_or_nothing(callers)?,
            tls: all_or_nothing(tls)?,
            probe_listen: all_or_nothing(probe_listen)?,
            limits: Limits { requests: requests? as usize, streams: streams? as usize, bytes: bytes? as usize },
            connections: ConnectionLimits {
                calls: calls? as u32,
                keepalive_interval: keepalive_interval?,
                keepalive_timeout: keepalive_timeout?,
                age: Some(age?).filter(|age| !age.is_zero()),
                grace: grace?,
                bounds: Bounds {
                    listener: "calls",
                    connections: connections? as usize,
                    idle: idle?,
                    replace_busy: false,
                },
            },
        })
    }

    /// Reports flags that contradict each other.
    fn contradictions(&self, listen: Option<SocketAddr>, callers: Option<&Arc<Callers>>, problems: &mut ConfigErrors) {
        match given(&self.callers_file) {
            Some(_) if self.insecure => {
                problems.add("--callers-file and --insecure contradict each other: use only one of them");
            }
            None if !self.insecure => {
                if let Some(listen) = listen.filter(|listen| !listen.ip().is_loopback()) {
                    problems.add(format!(
                        "--listen is {listen}, which other machines can reach: configure callers with --callers-file, \
                         or let everybody do everything with --insecure"
                    ));
                }
            }
            _ => {}
        }
        let (cert, key, client_ca) = (given(&self.tls_cert), given(&self.tls_key), given(&self.tls_client_ca));
        match (cert, key) {
            (Some(_), None) => problems.add("--tls-cert needs --tls-key"),
            (None, Some(_)) => problems.add("--tls-key needs --tls-cert"),
            (None, None) if client_ca.is_some() => problems.add("--tls-client-ca needs --tls-cert and --tls-key"),
            _ => {}
        }
        if client_ca.is_none()
            && let Some(callers) = callers
        {
            for name in callers.without_token() {
                let without = "--tls-client-ca: without it no client can authenticate as this caller";
                problems.add(format!(
                    "the callers file, [callers.{name}]: has only certificate_names, which need {without}"
                ));
            }
        }
        if let (Ok(probe), Some(listen)) = (self.probe_listen.parse::<SocketAddr>(), listen)
            && probe == listen
            && probe.port() != 0
        {
            problems.add(format!("--probe-listen is {probe}, but must differ from --listen"));
        }
    }
}

fn given(path: &str) -> Option<&Path> {
    if path.is_empty() { None } else { Some(Path::new(path)) }
}

fn keepalive(flag: &str, text: &str, problems: &mut ConfigErrors) -> Option<Duration> {
    let duration = problems.duration(flag, text)?;
    if duration < SHORTEST_KEEPALIVE {
        problems.add(format!("{flag} is {duration:?}, but must be at least {SHORTEST_KEEPALIVE:?}"));
    }
    Some(duration)
}

/// Returns `None` if a value was given but is invalid.
fn all_or_nothing<T>(given: Option<Option<T>>) -> Option<Option<T>> {
    match given {
        None => Some(None),
        Some(read) => read.map(Some),
    }
}

#[cfg(test)]
mod tests;
