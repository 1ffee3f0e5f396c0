//! Server settings: callers, TLS, and the limits of calls and connections.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use clap::builder::FalseyValueParser;

use crate::auth::Callers;
use crate::serve::ServeConfig;
use crate::serve::admission::Limits;
use crate::serve::budget::least_bytes;
use crate::serve::connections::{Bounds, ConnectionLimits};
use crate::serve::tls::Tls;
use domain::config_errors::ConfigErrors;
use domain::setting::{LONGEST, Setting, duration, duration_within, number, optional};

/// The minimum keepalive interval. A shorter one would flood the peer with pings.
const SHORTEST_KEEPALIVE: Duration = Duration::from_secs(1);

/// The minimum idle time of a connection. Clients open a connection some time before they call.
const SHORTEST_IDLE: Duration = Duration::from_secs(1);

/// The flags of the server.
#[derive(Debug, Clone, clap::Args)]
pub struct ServerArgs {
    /// Maximum size of a received message (bytes)
    #[arg(long, env = "FORMID_MAX_MESSAGE_BYTES", default_value = "4194304", value_parser = number::<usize>(1024..=256 << 20))]
    pub max_message_bytes: Setting<usize>,
    /// How long to continue serving after health reports NOT_SERVING, so that load balancers notice (duration)
    #[arg(long, env = "FORMID_DRAIN_WAIT", default_value = "1s", value_parser = duration())]
    pub drain_wait: Setting<Duration>,
    /// How long calls in progress may take to finish at shutdown (duration)
    #[arg(long, env = "FORMID_DRAIN_TIMEOUT", default_value = "30s", value_parser = duration())]
    pub drain_timeout: Setting<Duration>,
    /// File with the callers and their permissions (TOML)
    #[arg(long, env = "FORMID_CALLERS_FILE", default_value = "", hide_default_value = true, value_parser = optional(PathBuf::from_str))]
    pub callers_file: Setting<Option<PathBuf>>,
    /// Allow all calls without authentication, from any address: only for networks in which every client is trusted
    #[arg(long, env = "FORMID_INSECURE", value_parser = FalseyValueParser::new())]
    pub insecure: bool,
    /// Certificate of this service, with its chain up to the CA (PEM)
    #[arg(long, env = "FORMID_TLS_CERT", default_value = "", hide_default_value = true, value_parser = optional(PathBuf::from_str))]
    pub tls_cert: Setting<Option<PathBuf>>,
    /// Private key of that certificate (PEM)
    #[arg(long, env = "FORMID_TLS_KEY", default_value = "", hide_default_value = true, value_parser = optional(PathBuf::from_str))]
    pub tls_key: Setting<Option<PathBuf>>,
    /// CA certificates that must have issued the client certificates (PEM); if not given, clients need no certificate
    #[arg(long, env = "FORMID_TLS_CLIENT_CA", default_value = "", hide_default_value = true, value_parser = optional(PathBuf::from_str))]
    pub tls_client_ca: Setting<Option<PathBuf>>,
    /// Additional address that serves health in plaintext, for probes that use no TLS (IP address:port)
    #[arg(long, env = "FORMID_PROBE_LISTEN", default_value = "", hide_default_value = true, value_parser = optional(SocketAddr::from_str))]
    pub probe_listen: Setting<Option<SocketAddr>>,
    /// Maximum number of calls in progress, not counting streams; beyond it, calls are rejected
    #[arg(long, env = "FORMID_MAX_REQUESTS", default_value = "1024", value_parser = number::<usize>(1..=1_000_000))]
    pub max_requests: Setting<usize>,
    /// Maximum number of open streams (CollectStream, WatchBroadcast, reflection)
    #[arg(long, env = "FORMID_MAX_STREAMS", default_value = "512", value_parser = number::<usize>(1..=1_000_000))]
    pub max_streams: Setting<usize>,
    /// Maximum memory for the messages of all calls (bytes); beyond it, calls are rejected and streams wait
    #[arg(long, env = "FORMID_MAX_BYTES_IN_FLIGHT", default_value = "134217728", value_parser = number::<usize>(1 << 20..=1 << 40))]
    pub max_bytes_in_flight: Setting<usize>,
    /// Maximum number of calls in progress on one connection; a client that needs more waits or opens another
    #[arg(long, env = "FORMID_MAX_CONNECTION_CALLS", default_value = "1000", value_parser = number::<u32>(1..=1_000_000))]
    pub max_connection_calls: Setting<u32>,
    /// Maximum number of connections; beyond it, idle connections are closed for new ones
    #[arg(long, env = "FORMID_MAX_CONNECTIONS", default_value = "1000", value_parser = number::<usize>(1..=1_000_000))]
    pub max_connections: Setting<usize>,
    /// How long a connection may be open without a call (duration)
    #[arg(long, env = "FORMID_MAX_CONNECTION_IDLE", default_value = "5m", value_parser = duration_within(SHORTEST_IDLE..=LONGEST))]
    pub max_connection_idle: Setting<Duration>,
    /// Interval of HTTP/2 keepalive pings on a connection without traffic (duration)
    #[arg(long, env = "FORMID_KEEPALIVE_INTERVAL", default_value = "30s", value_parser = duration_within(SHORTEST_KEEPALIVE..=LONGEST))]
    pub keepalive_interval: Setting<Duration>,
    /// How long the answer to a keepalive ping may take, before the connection is closed (duration)
    #[arg(long, env = "FORMID_KEEPALIVE_TIMEOUT", default_value = "20s", value_parser = duration_within(SHORTEST_KEEPALIVE..=LONGEST))]
    pub keepalive_timeout: Setting<Duration>,
    /// Age of a connection at which the client is asked to open another one, plus or minus 10% (duration; 0s: never)
    #[arg(long, env = "FORMID_MAX_CONNECTION_AGE", default_value = "10m", value_parser = duration())]
    pub max_connection_age: Setting<Duration>,
    /// How much longer streams may continue on a connection after --max-connection-age (duration)
    #[arg(long, env = "FORMID_MAX_CONNECTION_AGE_GRACE", default_value = "30s", value_parser = duration())]
    pub max_connection_age_grace: Setting<Duration>,
}

impl ServerArgs {
    /// Reads the flags and the files that they name. `listen` is the service's own address.
    pub(super) fn read(&self, listen: SocketAddr, errors: &mut ConfigErrors) -> ServeConfig {
        let max_message_bytes = errors.take(&self.max_message_bytes);
        let bytes = errors.take(&self.max_bytes_in_flight);
        if bytes < least_bytes(max_message_bytes) {
            errors.add(format!(
                "--max-bytes-in-flight is {bytes}, but must be at least {} for the messages of {max_message_bytes} \
                 bytes that --max-message-bytes permits: a message needs twice its size, and may use at most half \
                 of the memory",
                least_bytes(max_message_bytes)
            ));
        }
        let probe_listen = errors.take(&self.probe_listen);
        if let Some(probe) = probe_listen.filter(|probe| *probe == listen && probe.port() != 0) {
            errors.add(format!("--probe-listen is {probe}, but must differ from --listen"));
        }
        ServeConfig {
            drain_wait: errors.take(&self.drain_wait),
            drain_timeout: errors.take(&self.drain_timeout),
            max_message_bytes,
            callers: self.callers(listen, errors),
            tls: self.tls(errors),
            probe_listen,
            limits: Limits {
                requests: errors.take(&self.max_requests),
                streams: errors.take(&self.max_streams),
                bytes,
            },
            connections: ConnectionLimits {
                calls: errors.take(&self.max_connection_calls),
                keepalive_interval: errors.take(&self.keepalive_interval),
                keepalive_timeout: errors.take(&self.keepalive_timeout),
                age: Some(errors.take(&self.max_connection_age)).filter(|age| !age.is_zero()),
                grace: errors.take(&self.max_connection_age_grace),
                bounds: Bounds {
                    listener: "calls",
                    connections: errors.take(&self.max_connections),
                    idle: errors.take(&self.max_connection_idle),
                    replace_busy: false,
                },
            },
        }
    }

    fn callers(&self, listen: SocketAddr, errors: &mut ConfigErrors) -> Option<Arc<Callers>> {
        let Some(path) = errors.take(&self.callers_file) else {
            if !self.insecure && !listen.ip().is_loopback() {
                errors.add(format!(
                    "--listen is {listen}, which other machines can reach: configure callers with --callers-file, \
                     or allow all calls without authentication with --insecure"
                ));
            }
            return None;
        };
        if self.insecure {
            errors.add("--callers-file and --insecure contradict each other: use only one of them");
        }
        let callers = Callers::read(&path, errors)?;
        if errors.take(&self.tls_client_ca).is_none() {
            for name in callers.without_token() {
                errors.add(format!(
                    "the callers file, [callers.{name}]: has only certificate_names, which need --tls-client-ca: \
                     without it no client can authenticate as this caller"
                ));
            }
        }
        Some(Arc::new(callers))
    }

    fn tls(&self, errors: &mut ConfigErrors) -> Option<Tls> {
        let client_ca = errors.take(&self.tls_client_ca);
        match (errors.take(&self.tls_cert), errors.take(&self.tls_key)) {
            (Some(cert), Some(key)) => return Tls::read(cert, key, client_ca, errors),
            (Some(_), None) => errors.add("--tls-cert needs --tls-key"),
            (None, Some(_)) => errors.add("--tls-key needs --tls-cert"),
            (None, None) if client_ca.is_some() => errors.add("--tls-client-ca needs --tls-cert and --tls-key"),
            (None, None) => {}
        }
        None
    }
}

#[cfg(test)]
mod tests;
