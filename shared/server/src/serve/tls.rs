//! TLS: the certificate of the service, and the verification of client certificates.
//!
//! All of it is one rustls configuration. It is rebuilt when a file changes, and each new connection takes the current
//! one. Open connections keep the configuration that they began with.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

use crate::auth::certificate;
use crate::reload::{Contents, Watched};
use crate::telemetry::metrics::files::FileMetrics;
use crate::telemetry::outage::Outages;
use domain::config_errors::{ConfigErrors, SettingsError};

const CERT: &str = "--tls-cert";
const KEY: &str = "--tls-key";
const CLIENT_CA: &str = "--tls-client-ca";

/// The current TLS configuration. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    files: Watched,
    current: Arc<RwLock<Current>>,
}

/// The configuration of one version of the files.
#[derive(Clone)]
struct Current {
    config: Arc<ServerConfig>,
    /// When the first certificate of the service's chain expires, in seconds since 1970.
    expiry: Option<i64>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Tls(..)")
    }
}

impl Tls {
    /// Reads the PEM files: the certificate chain and key of the service, and the CA certificates for clients. With
    /// `client_ca`, clients must present a certificate. Returns `None` after an error, which is added to `problems`.
    pub fn read(cert: PathBuf, key: PathBuf, client_ca: Option<PathBuf>, problems: &mut ConfigErrors) -> Option<Self> {
        let (files, contents) = Watched::read([cert, key].into_iter().chain(client_ca))
            .map_err(|error| problems.add(format!("the TLS file {error}")))
            .ok()?;
        match read(&contents) {
            Ok(current) => Some(Self { files, current: Arc::new(RwLock::new(current)) }),
            Err(SettingsError(found)) => {
                found.into_iter().for_each(|problem| problems.add(problem));
                None
            }
        }
    }

    /// Watches the files forever and reloads them. Sets `metrics` to whether their content is in use and when the
    /// certificate expires.
    pub async fn follow(self, metrics: FileMetrics, outages: Outages) {
        metrics.certificate_expires(self.current().expiry);
        let change = |contents: Contents| {
            let current = read(&contents)?;
            metrics.certificate_expires(current.expiry);
            // Code that holds the lock does not panic.
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
            Ok::<_, SettingsError>(())
        };
        self.files.clone().follow("the TLS certificate", &metrics.in_use("tls"), &outages, change).await;
    }

    fn current(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Performs the TLS handshake of a connection. Returns the names in the client's certificate, if there is one.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<(TlsStream<TcpStream>, Arc<[String]>)> {
        let stream = TlsAcceptor::from(self.current().config).accept(stream).await?;
        // The first certificate is the client's own; the others form the chain to its CA.
        let own = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let names = own.map(certificate::names).unwrap_or_default();
        Ok((stream, names.into()))
    }
}

/// Builds the configuration from the contents of the files, or returns all errors in them. No error quotes the content
/// of a file.
fn read(contents: &[Vec<u8>]) -> Result<Current, SettingsError> {
    let mut problems = ConfigErrors::default();
    let [cert, key, client_ca @ ..] = contents else { return Err(SettingsError(Vec::new())) };
    let cert = certificates(CERT, cert, &mut problems);
    let key = PrivateKeyDer::from_pem_slice(key).ok();
    if key.is_none() {
        problems.add(format!("{KEY} has no private key that can be read (PEM, not encrypted)"));
    }
    let client_ca = client_ca.first().map(|pem| authorities(pem, &mut problems));
    let (cert, key) = problems.finish(cert.zip(key))?;

    let one = |problem: String| SettingsError(vec![problem]);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| one(format!("TLS cannot be configured: {error}")))?;
    let builder = match client_ca.flatten() {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            let verifier = verifier.map_err(|error| one(format!("{CLIENT_CA} cannot be used: {error}")))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let expiry = expiry(&cert);
    let mut config = builder.with_single_cert(cert, key).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => one(format!("{KEY} is not the key of {CERT}")),
        error => one(format!("{CERT} and {KEY} cannot be used: {error}")),
    })?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session does not present its certificate again, which may have expired since. Connections live long
    // here, so a full handshake for each costs little.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Current { config: Arc::new(config), expiry })
}

/// Returns when the first certificate of a chain expires, in seconds since 1970, or `None` if any of them cannot be
/// parsed.
fn expiry(chain: &[CertificateDer<'_>]) -> Option<i64> {
    let one = |certificate: &CertificateDer<'_>| {
        let certificate = Certificate::from_der(certificate).ok()?;
        let expiry = certificate.tbs_certificate().validity().not_after.to_unix_duration().as_secs();
        i64::try_from(expiry).ok()
    };
    chain.iter().map(one).collect::<Option<Vec<_>>>()?.into_iter().min()
}

fn certificates(flag: &str, pem: &[u8], problems: &mut ConfigErrors) -> Option<Vec<CertificateDer<'static>>> {
    match CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if !certificates.is_empty() => Some(certificates),
        _ => {
            problems.add(format!("{flag} has no certificate that can be read (PEM)"));
            None
        }
    }
}

fn authorities(pem: &[u8], problems: &mut ConfigErrors) -> Option<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(CLIENT_CA, pem, problems)? {
        if let Err(error) = roots.add(certificate) {
            problems.add(format!("{CLIENT_CA} has a certificate that cannot be used: {error}"));
            return None;
        }
    }
    Some(roots)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    #[test]
    fn chain_expires_with_its_first_certificate() {
        let until = |year| {
            let mut params = CertificateParams::default();
            params.not_after = date_time_ymd(year, 1, 1);
            params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
        };
        let at_2040 = 2_208_988_800;
        assert_eq!(expiry(&[until(2040)]), Some(at_2040));
        // From 2050 on, certificates encode the time differently.
        assert_eq!(expiry(&[until(2060), until(2040), until(2055)]), Some(at_2040));
        assert_eq!(expiry(&[until(2040), CertificateDer::from(vec![1, 2, 3])]), None);
        assert_eq!(expiry(&[]), None);
    }
}
