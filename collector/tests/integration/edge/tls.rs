//! TLS, and callers that authenticate with a certificate.

use std::net::SocketAddr;

use futures_util::FutureExt as _;
use testing::readme::text;
use testing::tls::{Authority, Pair, channel, dial};
use testing::{CallersFile, Redis, Scrape, eventually, grpcurl_tls, printed};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

/// A collector with TLS, and its files.
pub struct Secured {
    pub address: SocketAddr,
    metrics: SocketAddr,
    pub authority: Authority,
    folder: tempfile::TempDir,
    _collector: Collector,
    callers: CallersFile,
}

const BY_NAME: (&str, &str) =
    ("byname", "certificate_names = ['spiffe://test/orders']\napps = ['*']\npermissions = ['read']");

impl Secured {
    pub async fn start(redis: &Redis, mutual: bool) -> Self {
        let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new("ours"));
        let callers = CallersFile::new(if mutual { &[ALL, BY_NAME] } else { &[ALL] });
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (cert, key, ca) = (path("cert"), path("key"), path("ca"));
        authority.server().write(cert.as_ref(), key.as_ref());
        std::fs::write(&ca, &authority.pem).unwrap();
        let given = callers.flags();
        let mut flags = vec!["--tls-cert", &cert, "--tls-key", &key, &given[0], &given[1]];
        if mutual {
            flags.extend(["--tls-client-ca", &ca]);
        }
        let collector = Collector::start(redis, &flags).await;
        let address = collector.address();
        let metrics = collector.metrics;
        let secured = Self { address, metrics, authority, folder, _collector: collector, callers };
        let own = secured.authority.client("spiffe://test/anybody");
        eventually("it serves", SOON, async || secured.stock(Some(&own), "all").await == "OK").await;
        secured
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// Calls GetStock over a new connection with this client certificate; returns OK, REFUSED or the reason of the
    /// error.
    async fn stock(&self, own: Option<&Pair>, token: &str) -> String {
        let channel = channel(self.address, &self.authority.pem, own);
        let mut client = Client::new(channel);
        let message = GetStockRequest { app_id: APP.into() };
        let request = if token.is_empty() { tonic::Request::new(message) } else { bearer(token, message) };
        match client.get_stock(request).await {
            Ok(_) => "OK".into(),
            Err(status) if status.code() == tonic::Code::Unavailable || status.details().is_empty() => "REFUSED".into(),
            Err(status) => reason(&status),
        }
    }

    /// The server certificate of a new connection.
    async fn shown(&self) -> Option<Vec<u8>> {
        let stream = dial(self.address, &self.authority.pem, None).await.ok()?;
        Some(stream.get_ref().1.peer_certificates()?.first()?.to_vec())
    }
}

#[tokio::test]
async fn calls_need_tls() {
    let redis = Redis::start();
    let secured = Secured::start(&redis, false).await;
    assert_eq!(secured.stock(None, "all").await, "OK");
    assert_eq!(secured.stock(None, "").await, "UNAUTHENTICATED");
    assert!(!is_serving(secured.address).await, "health in plaintext");
    let other = Authority::new("other");
    assert!(dial(secured.address, &other.pem, None).await.is_err(), "a client that trusts another authority");
}

#[tokio::test]
async fn mutual_tls_needs_a_client_certificate_which_may_suffice() {
    let redis = Redis::start();
    let secured = Secured::start(&redis, true).await;
    let ours = |uri: &str| secured.authority.client(uri);
    assert_eq!(secured.stock(Some(&ours("spiffe://test/orders")), "").await, "OK");
    assert_eq!(secured.stock(Some(&ours("spiffe://test/others")), "").await, "UNAUTHENTICATED");
    assert_eq!(secured.stock(Some(&ours("spiffe://test/others")), "all").await, "OK");
    assert_eq!(secured.stock(Some(&ours("spiffe://test/orders")), "wrong").await, "UNAUTHENTICATED");
    assert_eq!(secured.stock(None, "all").await, "REFUSED", "no certificate");
    let expired = secured.authority.expired("spiffe://test/orders");
    assert_eq!(secured.stock(Some(&expired), "all").await, "REFUSED", "an expired certificate");
    let theirs = Authority::new("ours").client("spiffe://test/orders");
    assert_eq!(secured.stock(Some(&theirs), "all").await, "REFUSED", "a certificate of another authority");
}

#[tokio::test]
async fn new_connections_get_the_new_certificate_old_ones_stay() {
    let redis = Redis::start();
    let secured = Secured::start(&redis, false).await;
    let open = channel(secured.address, &secured.authority.pem, None);
    assert_eq!(stock(&open, "all").await, "OK");
    let first = secured.shown().await.unwrap();
    let second = secured.authority.server();
    second.write(&secured.path("cert"), &secured.path("key"));
    let is_second = async || secured.shown().await.as_deref() == Some(&second.der());
    eventually("the new certificate is shown", SOON, is_second).await;
    assert_ne!(first, second.der().to_vec());
    assert_eq!(stock(&open, "all").await, "OK");

    // A certificate with another key and an invalid key file change nothing.
    for (cert, key) in [(secured.authority.server().cert, second.key.clone()), (second.cert.clone(), "none".into())] {
        Pair { cert, key }.write(&secured.path("cert"), &secured.path("key"));
        until_in_use(secured.metrics, "tls", false).await;
        assert!(is_second().await);
        assert_eq!(secured.stock(None, "all").await, "OK");
        second.write(&secured.path("cert"), &secured.path("key"));
        until_in_use(secured.metrics, "tls", true).await;
    }
    let third = secured.authority.server();
    third.write(&secured.path("cert"), &secured.path("key"));
    eventually("the repaired files are used", SOON, async || secured.shown().await.as_deref() == Some(&third.der()))
        .await;
    assert_eq!(stock(&open, "all").await, "OK");
}

#[tokio::test]
async fn metrics_show_certificate_expiry_and_refused_files() {
    let redis = Redis::start();
    let secured = Secured::start(&redis, false).await;
    // Unix times of 2040-01-01 and 2050-01-01.
    let (at_2040, at_2050) = (2_208_988_800, 2_524_608_000);
    let becomes = async |callers, tls, expiry: Option<u64>| {
        eventually("the metrics follow", SOON, async || {
            let scrape = Scrape::of(secured.metrics).await;
            let in_use = |file| scrape.value("formid_reload_successful", &[("file", file)]);
            let expires = scrape.value("formid_tls_certificate_expiry_timestamp_seconds", &[]);
            (in_use("callers"), in_use("tls")) == (callers, tls) && expiry.is_none_or(|expiry| expiry == expires)
        })
        .await;
    };
    let write = |pair: &Pair| pair.write(&secured.path("cert"), &secured.path("key"));
    becomes(1, 1, None).await;
    let (first, second) = (secured.authority.server_until(2040), secured.authority.server_until(2050));
    write(&first);
    becomes(1, 1, Some(at_2040)).await;
    write(&Pair { cert: second.cert.clone(), key: first.key.clone() });
    secured.callers.write_text("[callers.new\n");
    becomes(0, 0, Some(at_2040)).await;
    write(&second);
    becomes(0, 1, Some(at_2050)).await;
    secured.callers.write(&[ALL]);
    becomes(1, 1, Some(at_2050)).await;
    for name in Scrape::of(secured.metrics).await.families() {
        assert!(text("deploy/README.md").contains(&format!("`{name}`")), "{name} is not in deploy/README.md");
    }
}

#[tokio::test]
async fn client_ca_is_reloaded() {
    let redis = Redis::start();
    let secured = Secured::start(&redis, true).await;
    let next = Authority::new("next");
    let (old, new) = (secured.authority.client("spiffe://test/orders"), next.client("spiffe://test/orders"));
    assert_eq!(secured.stock(Some(&new), "").await, "REFUSED");
    std::fs::write(secured.path("ca"), format!("{}{}", secured.authority.pem, next.pem)).unwrap();
    eventually("both authorities are accepted", SOON, async || secured.stock(Some(&new), "").await == "OK").await;
    assert_eq!(secured.stock(Some(&old), "").await, "OK");
    std::fs::write(secured.path("ca"), &next.pem).unwrap();
    eventually("only the new authority is accepted", SOON, async || secured.stock(Some(&old), "").await == "REFUSED")
        .await;
    assert_eq!(secured.stock(Some(&new), "").await, "OK");
}

#[tokio::test]
async fn slow_and_broken_handshakes_block_no_calls() {
    let redis = Redis::start();
    let secured = Secured::start(&redis, false).await;
    let mut silent = Vec::new();
    for n in 0..200 {
        let mut stream = TcpStream::connect(secured.address).await.unwrap();
        match n % 3 {
            0 => {}
            1 => stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap(),
            // The start of a TLS handshake.
            _ => stream.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]).await.unwrap(),
        }
        silent.push(stream);
    }
    for _ in 0..5 {
        assert_eq!(secured.stock(None, "all").await, "OK");
    }
    // The last connection that sends nothing is still open, so no call has waited for its end.
    let last = silent.iter_mut().step_by(3).next_back().unwrap().read_to_end(&mut Vec::new()).now_or_never();
    assert!(last.is_none(), "the calls waited for the handshakes: {last:?}");
    // All of them are closed in the end.
    for mut stream in silent {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
}

#[tokio::test]
async fn grpcurl_calls_with_a_client_certificate() {
    let redis = Redis::start();
    let secured = Secured::start(&redis, true).await;
    secured.authority.client("spiffe://test/orders").write(&secured.path("own"), &secured.path("own.key"));
    let path = |name: &str| secured.path(name).to_str().unwrap().to_owned();
    let (ca, own, key, address) = (path("ca"), path("own"), path("own.key"), secured.address.to_string());
    let tls = ["-cacert", &ca, "-cert", &own, "-key", &key];
    let body = format!(r#"{{"app_id": "{APP}"}}"#);
    let call = ["-d", &body, &address, "formid.v1.CollectorService/GetStock"];
    let stock = printed(grpcurl_tls(&[&tls[..], &call].concat()).await);
    assert!(stock.contains("countedAt"), "{stock}");
    let token = ["-H", "authorization: Bearer all"];
    printed(grpcurl_tls(&[&tls[..], &token, &call].concat()).await);
}
