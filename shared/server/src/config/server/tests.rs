use clap::Parser;
use rcgen::{CertificateParams, KeyPair};

use super::super::CommonArgs;
use super::*;
use domain::config_errors::SettingsError;

#[derive(Parser)]
struct Flags {
    #[arg(long, value_parser = domain::setting::setting(SocketAddr::from_str))]
    listen: Setting<SocketAddr>,
    #[command(flatten)]
    common: CommonArgs,
}

fn problems(listen: &str, flags: &[&str]) -> Vec<String> {
    let flags = Flags::parse_from(["test", "--listen", listen].iter().chain(flags));
    let mut problems = ConfigErrors::default();
    let common = flags.common.read(&flags.listen, &mut problems);
    problems.finish(Some(common)).err().map(|SettingsError(problems)| problems).unwrap_or_default()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn file(&self, name: &str, text: &str) -> String {
        let path: PathBuf = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

fn folder() -> Folder {
    Folder(tempfile::tempdir().unwrap())
}

/// Returns a certificate and its key.
fn pair() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    (CertificateParams::default().self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn token_caller() -> String {
    format!("[callers.a]\ntoken_sha256 = ['{}']\napps = ['*']\npermissions = ['read']", "0".repeat(64))
}

#[test]
fn without_callers_only_loopback_addresses_are_allowed() {
    let callers = folder();
    let file = callers.file("callers.toml", &token_caller());
    for local in ["127.0.0.1:0", "127.8.0.1:7001", "[::1]:7001"] {
        assert!(problems(local, &[]).is_empty(), "{local}");
    }
    for reachable in ["0.0.0.0:7001", "[::]:7001", "10.0.0.7:7001"] {
        let found = problems(reachable, &[]);
        assert!(found.len() == 1 && found[0].starts_with(&format!("--listen is {reachable}")), "{found:?}");
        assert!(problems(reachable, &["--insecure"]).is_empty());
        assert!(problems(reachable, &["--callers-file", &file]).is_empty());
        // An unset variable in a deployment's environment is often an empty text.
        assert_eq!(problems(reachable, &["--callers-file", ""]).len(), 1);
    }
}

#[test]
fn contradicting_flags_are_refused() {
    let folder = folder();
    let (cert, key) = pair();
    let (cert, key) = (folder.file("cert", &cert), folder.file("key", &key));
    let callers = folder.file("callers", &token_caller());
    let by_certificate =
        folder.file("c", "[callers.b]\ncertificate_names = ['b']\napps = ['*']\npermissions = ['read']");
    for (flags, start) in [
        (&["--callers-file", &callers, "--insecure"][..], "--callers-file and --insecure"),
        (&["--tls-cert", &cert], "--tls-cert needs --tls-key"),
        (&["--tls-key", &key], "--tls-key needs --tls-cert"),
        (&["--tls-client-ca", &cert], "--tls-client-ca needs"),
        (&["--callers-file", &by_certificate], "the callers file, [callers.b]: has only certificate_names"),
        (&["--probe-listen", "127.0.0.1:7001"], "--probe-listen is 127.0.0.1:7001"),
        (&["--probe-listen", "nowhere"], "--probe-listen"),
        (&["--keepalive-interval", "10ms"], "--keepalive-interval"),
        (&["--max-requests", "0"], "--max-requests"),
    ] {
        let found = problems("127.0.0.1:7001", flags);
        assert!(found.len() == 1 && found[0].starts_with(start), "{start}: {found:?}");
    }
    let mutual = ["--tls-cert", &cert, "--tls-key", &key, "--tls-client-ca", &cert, "--callers-file", &by_certificate];
    assert!(problems("127.0.0.1:7001", &mutual).is_empty());
}

#[test]
fn mismatched_certificate_and_key_are_refused_and_not_quoted() {
    let folder = folder();
    let ((cert, key), (_, other)) = (pair(), pair());
    let garbled = key.replace("PRIVATE KEY", "PUBLIC KEY");
    for (cert, key, client_ca, start) in [
        (cert.as_str(), other.as_str(), None, "--tls-key is not the key of --tls-cert"),
        ("", &key, None, "--tls-cert has no certificate"),
        (&key, &key, None, "--tls-cert has no certificate"),
        (&cert, &garbled, None, "--tls-key has no private key"),
        (&cert, &cert, None, "--tls-key has no private key"),
        (&cert, &key, Some(""), "--tls-client-ca has no certificate"),
        (&cert, &key, Some(&key), "--tls-client-ca has no certificate"),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
            &key,
            None,
            "--tls-cert and --tls-key cannot be used",
        ),
    ] {
        let (cert, key_file) = (folder.file("cert", cert), folder.file("key", key));
        let client_ca = client_ca.map(|text| folder.file("ca", text)).unwrap_or_default();
        let flags = ["--tls-cert", &cert, "--tls-key", &key_file, "--tls-client-ca", &client_ca];
        let found = problems("127.0.0.1:7001", &flags);
        assert!(found.len() == 1 && found[0].starts_with(start), "{start}: {found:?}");
        let line = key.lines().nth(1).unwrap();
        assert!(!found[0].contains(line), "{found:?}");
    }
    let missing = problems("127.0.0.1:7001", &["--tls-cert", "/does/not/exist", "--tls-key", "/neither"]);
    assert!(missing.len() == 1 && missing[0].contains("/does/not/exist cannot be read"), "{missing:?}");
}
