//! Parses the address of Redis from one setting; redis-rs itself parses URLs of one server only. Errors do not quote
//! the URL, because it may contain a password.
//!
//! ```text
//! redis://[user:password@]host[:port][/db]                                   one Redis
//! unix://path                                                                one Redis by a socket
//! redis-sentinel://[user:password@]host:port[,host:port...]/MASTER[/db]      the current master, from Sentinels
//!     [?sentinel_user=USER&sentinel_password=PASSWORD]                       if the Sentinels require a password
//! redis-cluster://[user:password@]host:port[,host:port...]                   a cluster, from any of its nodes
//! ```
//!
//! With `rediss` in place of `redis`, all connections use TLS, including those to Sentinels. User and password are
//! those of Redis itself. Special characters in them are percent-encoded.

use deadpool_redis::redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, RedisConnectionInfo, RedisResult, TlsCertificates,
};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    #[error(
        "expected a URL that begins with redis://, redis-sentinel:// or redis-cluster://, the same with rediss, or unix://"
    )]
    Scheme,
    #[error("expected redis://[user:password@]host[:port][/db]")]
    One,
    /// A host in the list is invalid. Counted from 1.
    #[error("host number {0} is invalid: expected host:port")]
    Host(usize),
    #[error("unexpected text after the hosts: a cluster has only database 0 and no parameters")]
    Rest,
    #[error("the name of the master is missing: expected redis-sentinel://host:port[,host:port...]/MASTER[/db]")]
    Master,
    #[error("the database after the name of the master is invalid: expected a number")]
    Database,
    #[error("unknown parameter: expected sentinel_user or sentinel_password")]
    Parameter,
    #[error("a CA needs an encrypted URL: rediss://, rediss-sentinel:// or rediss-cluster://")]
    NotEncrypted,
    #[error("the CA file has no certificate in PEM, or one that cannot be read")]
    Ca,
}

impl BadUrl {
    /// Whether the error is about the CA file rather than the URL.
    pub fn is_of_ca(self) -> bool {
        matches!(self, Self::NotEncrypted | Self::Ca)
    }
}

#[derive(Clone)]
pub struct RedisUrl {
    pub(super) address: Address,
    /// Trusted CA certificates in PEM, in place of the system roots.
    ca: Option<Vec<u8>>,
}

#[derive(Clone)]
pub(super) enum Address {
    One(ConnectionInfo),
    Sentinel { sentinels: Vec<ConnectionInfo>, master: String, node: Node },
    Cluster(Vec<ConnectionInfo>),
}

/// TLS and login of a master whose host is found later.
#[derive(Clone)]
pub(super) struct Node {
    encrypted: bool,
    settings: RedisConnectionInfo,
}

impl Node {
    pub(super) fn at(&self, host: &str, port: u16) -> RedisResult<ConnectionInfo> {
        let host = host.to_owned();
        let address = if self.encrypted {
            ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        Ok(address.into_connection_info()?.set_redis_settings(self.settings.clone()))
    }
}

impl RedisUrl {
    /// Parses a URL. `ca` holds certificates in PEM. Opens no connection.
    pub fn parse(url: &str, ca: Option<&[u8]>) -> Result<Self, BadUrl> {
        let (scheme, rest) = url.split_once("://").ok_or(BadUrl::Scheme)?;
        let encrypted = scheme.starts_with("rediss");
        let address = match scheme {
            "redis" | "rediss" | "unix" => match url.into_connection_info() {
                // "#insecure" disables certificate verification, which this build does not support.
                Ok(info) if !matches!(info.addr(), ConnectionAddr::TcpTls { insecure: true, .. }) => Address::One(info),
                _ => return Err(BadUrl::One),
            },
            "redis-cluster" | "rediss-cluster" => cluster(rest, encrypted)?,
            "redis-sentinel" | "rediss-sentinel" => sentinel(rest, encrypted)?,
            _ => return Err(BadUrl::Scheme),
        };
        if ca.is_some() && !encrypted {
            return Err(BadUrl::NotEncrypted);
        }
        if encrypted {
            // The TLS provider that the whole workspace uses. If another is installed already, that one works too.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        check_ca(ca)?;
        Ok(Self { address, ca: ca.map(<[u8]>::to_vec) })
    }

    pub(super) fn client(&self, info: ConnectionInfo) -> RedisResult<Client> {
        match self.certificates() {
            Some(certificates) => Client::build_with_tls(info, certificates),
            None => Client::open(info),
        }
    }

    /// The trusted certificates, if they replace the system roots.
    pub(super) fn certificates(&self) -> Option<TlsCertificates> {
        self.ca.clone().map(|ca| TlsCertificates { client_tls: None, root_cert: Some(ca) })
    }
}

fn cluster(rest: &str, encrypted: bool) -> Result<Address, BadUrl> {
    // Nothing, or a trailing slash, which is common.
    let (user, hosts, rest) = split(rest);
    if !rest.is_empty() && rest != "/" {
        return Err(BadUrl::Rest);
    }
    nodes(user, hosts, encrypted).map(Address::Cluster)
}

fn sentinel(rest: &str, encrypted: bool) -> Result<Address, BadUrl> {
    let (user, hosts, rest) = split(rest);
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut path = path.strip_prefix('/').unwrap_or(path).split('/');
    let master = path.next().filter(|master| !master.is_empty()).ok_or(BadUrl::Master)?.to_owned();
    let db = path.next().filter(|db| !db.is_empty()).map_or(Ok(0), |db| db.parse::<u16>());
    let db = db.ok().filter(|_| path.next().is_none()).ok_or(BadUrl::Database)?;
    let (mut sentinel_user, mut sentinel_password) = ("", None);
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        match parameter.split_once('=') {
            Some(("sentinel_user", user)) => sentinel_user = user,
            Some(("sentinel_password", password)) => sentinel_password = Some(password),
            _ => return Err(BadUrl::Parameter),
        }
    }
    let own = sentinel_password.map(|password| format!("{sentinel_user}:{password}@")).unwrap_or_default();
    let sentinels = nodes(&own, hosts, encrypted)?;
    // Parsed through a host URL, so that user and password are read as in the other URLs.
    let nodes = nodes(user, hosts, encrypted)?;
    let settings = nodes.first().map(|node| node.redis_settings().clone().set_db(db.into())).unwrap_or_default();
    Ok(Address::Sentinel { sentinels, master, node: Node { encrypted, settings } })
}

/// Splits the text after the scheme: user and password with their "@", hosts, and the rest.
fn split(rest: &str) -> (&str, &str, &str) {
    let (place, after) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (user, hosts) = place.split_at(place.rfind('@').map_or(0, |at| at + 1));
    (user, hosts, after)
}

fn nodes(user: &str, hosts: &str, encrypted: bool) -> Result<Vec<ConnectionInfo>, BadUrl> {
    let scheme = if encrypted { "rediss" } else { "redis" };
    let node = |(number, host): (usize, &str)| {
        // The port is required: Redis, its cluster and its Sentinels have different default ports.
        let port = host.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        let info = port.and_then(|_| format!("{scheme}://{user}{host}").into_connection_info().ok());
        info.ok_or(BadUrl::Host(number))
    };
    (1..).zip(hosts.split(',')).map(node).collect()
}

fn check_ca(ca: Option<&[u8]>) -> Result<(), BadUrl> {
    let Some(pem) = ca else { return Ok(()) };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        certificate.ok().and_then(|certificate| roots.add(certificate).ok()).ok_or(BadUrl::Ca)?;
    }
    if roots.is_empty() { Err(BadUrl::Ca) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> BadUrl {
        match RedisUrl::parse(url, None) {
            Err(bad) => bad,
            Ok(_) => panic!("{url} was accepted"),
        }
    }

    fn address(url: &str) -> Address {
        RedisUrl::parse(url, None).unwrap().address
    }

    #[test]
    fn cluster_url_has_hosts_and_one_user_for_all() {
        let Address::Cluster(nodes) = address("redis-cluster://app:p%40ss,w@one:7000,two:7001,[::1]:7002/") else {
            panic!("expected a cluster")
        };
        let hosts: Vec<_> = nodes.iter().map(|node| node.addr().to_string()).collect();
        assert_eq!(hosts, ["one:7000", "two:7001", "[::1]:7002"].map(|host| host.replace(['[', ']'], "")));
        for node in &nodes {
            assert_eq!(
                (node.redis_settings().username(), node.redis_settings().password()),
                (Some("app"), Some("p@ss,w"))
            );
        }
        let Address::Cluster(nodes) = address("rediss-cluster://one:7000") else { panic!("expected a cluster") };
        assert!(matches!(nodes[0].addr(), ConnectionAddr::TcpTls { insecure: false, .. }));
    }

    #[test]
    fn sentinels_have_their_own_password() {
        let url =
            "redis-sentinel://app:secret@one:26379,two:26380/mymaster/3?sentinel_user=watch&sentinel_password=p%26q";
        let Address::Sentinel { sentinels, master, node } = address(url) else { panic!("expected Sentinels") };
        assert_eq!((sentinels.len(), master.as_str()), (2, "mymaster"));
        let own = sentinels[1].redis_settings();
        assert_eq!((own.username(), own.password(), own.db()), (Some("watch"), Some("p&q"), 0));
        let found = node.at("three", 6379).unwrap();
        let its = found.redis_settings();
        assert_eq!((its.username(), its.password(), its.db()), (Some("app"), Some("secret"), 3));
        assert!(matches!(found.addr(), ConnectionAddr::Tcp(host, 6379) if host == "three"));
        let Address::Sentinel { sentinels, node, .. } = address("rediss-sentinel://:secret@one:26379/m") else {
            panic!("expected Sentinels")
        };
        assert_eq!(sentinels[0].redis_settings().password(), None, "the password in front of the hosts is for Redis");
        assert!(matches!(node.at("three", 1).unwrap().addr(), ConnectionAddr::TcpTls { insecure: false, .. }));
    }

    #[test]
    fn error_names_the_fault_and_does_not_quote_the_url() {
        for (url, wrong) in [
            ("localhost:6379", BadUrl::Scheme),
            ("http://:hunter2@redis", BadUrl::Scheme),
            ("redis-cluster+unix://x", BadUrl::Scheme),
            ("redis://:hunter2@", BadUrl::One),
            ("rediss://:hunter2@redis/#insecure", BadUrl::One),
            ("redis-cluster://:hunter2@one:7000,two", BadUrl::Host(2)),
            ("redis-cluster://:hunter2@", BadUrl::Host(1)),
            ("redis-cluster://one:7000,,two:7001", BadUrl::Host(2)),
            ("redis-cluster://one:70000", BadUrl::Host(1)),
            ("redis-cluster://one:7000/1", BadUrl::Rest),
            ("redis-cluster://one:7000?hunter2", BadUrl::Rest),
            ("redis-sentinel://:hunter2@one:26379", BadUrl::Master),
            ("redis-sentinel://one:26379//1", BadUrl::Master),
            ("redis-sentinel://one/m", BadUrl::Host(1)),
            ("redis-sentinel://one:26379/m/hunter2", BadUrl::Database),
            ("redis-sentinel://one:26379/m/1/2", BadUrl::Database),
            ("redis-sentinel://one:26379/m?password=hunter2", BadUrl::Parameter),
        ] {
            let bad = refused(url);
            assert_eq!(bad, wrong, "{url}");
            assert!(!bad.to_string().contains("hunter2"), "{bad}");
        }
    }

    #[test]
    fn ca_needs_an_encrypted_url_and_valid_certificates() {
        let with = |url, ca: &str| RedisUrl::parse(url, Some(ca.as_bytes())).err();
        assert_eq!(with("redis://redis", "anything"), Some(BadUrl::NotEncrypted));
        assert_eq!(with("rediss://redis", "no certificate"), Some(BadUrl::Ca));
        let cut = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
        assert_eq!(with("rediss-cluster://redis:1", cut), Some(BadUrl::Ca));
    }
}
