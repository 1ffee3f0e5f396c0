//! Certificates and TLS connections.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType, date_time_ymd};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::transport::{Channel, Endpoint, Uri};

/// A certificate authority.
pub struct Authority {
    /// Its own certificate (PEM).
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key (PEM).
#[derive(Debug, Clone)]
pub struct Pair {
    /// The certificate.
    pub cert: String,
    /// The key.
    pub key: String,
}

impl Authority {
    /// Creates an authority with this name.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate for a service on this machine.
    pub fn server(&self) -> Pair {
        self.sign(CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap())
    }

    /// A certificate for a service on this machine that expires on January 1 of this year.
    pub fn server_until(&self, year: i32) -> Pair {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        params.not_after = date_time_ymd(year, 1, 1);
        self.sign(params)
    }

    /// A certificate for a client with this URI.
    pub fn client(&self, uri: &str) -> Pair {
        self.sign(client(uri))
    }

    /// A certificate for a client with this URI that expired years ago.
    pub fn expired(&self, uri: &str) -> Pair {
        let mut params = client(uri);
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        Pair { cert: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }
}

fn client(uri: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params
}

impl Pair {
    /// Writes both files and replaces existing ones.
    pub fn write(&self, cert: &Path, key: &Path) {
        std::fs::write(cert, &self.cert).unwrap();
        std::fs::write(key, &self.key).unwrap();
    }

    /// The certificate in DER format.
    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.cert.as_bytes()).unwrap()
    }
}

/// Opens a TLS connection to a service on this machine. The client trusts `authority` and presents the certificate
/// `own`.
pub async fn dial(address: SocketAddr, authority: &str, own: Option<&Pair>) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::from(address.ip());
    TlsConnector::from(Arc::new(config(authority, own))).connect(name, stream).await
}

/// A channel over such connections. It connects on first use.
pub fn channel(address: SocketAddr, authority: &str, own: Option<&Pair>) -> Channel {
    let (authority, own) = (authority.to_owned(), own.cloned());
    let connect = tower::service_fn(move |_: Uri| {
        let (authority, own) = (authority.clone(), own.clone());
        async move { dial(address, &authority, own.as_ref()).await.map(TokioIo::new) }
    });
    // The connector adds TLS, so the URI for tonic is http.
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect_with_connector_lazy(connect)
}

/// Accepts TLS connections and forwards their bytes to a server without TLS, as long as the runtime lives. Returns the
/// address.
pub async fn terminated(to: SocketAddr, own: &Pair) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.der()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((from, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let (Ok(mut from), Ok(mut to)) = (acceptor.accept(from).await, TcpStream::connect(to).await) else {
                    return;
                };
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            });
        }
    });
    address
}

fn config(authority: &str, own: Option<&Pair>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![pair.der()], key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}
