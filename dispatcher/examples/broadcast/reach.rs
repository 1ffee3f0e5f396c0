//! Connects to a dispatcher: plaintext, or TLS with a token.

use std::time::Duration;

use server::proto::dispatcher_service_client::DispatcherServiceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use crate::args::Args;

/// Client of a dispatcher.
pub type Client = DispatcherServiceClient<InterceptedService<Channel, Authorization>>;

/// Adds the token to each call, if there is one.
#[derive(Clone)]
pub struct Authorization(Option<MetadataValue<Ascii>>);

impl Interceptor for Authorization {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(authorization) = &self.0 {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        Ok(request)
    }
}

/// Creates a client; it connects with the first call.
pub fn client(args: &Args) -> Result<Client, String> {
    let authorization = token(args)?.map(|token| bearer(&token)).transpose()?;
    if authorization.is_some() && args.ca.is_none() {
        return Err("a token is sent over TLS only: give --ca".into());
    }
    let scheme = if args.ca.is_some() { "https" } else { "http" };
    let address = &args.address;
    let uri = if address.contains("://") { address.clone() } else { format!("{scheme}://{address}") };
    if args.ca.is_some() && !uri.starts_with("https://") {
        return Err("--address: with --ca it must be https".into());
    }
    let mut endpoint = Endpoint::from_shared(uri).map_err(|error| format!("--address: {error}"))?;
    if let Some(ca) = &args.ca {
        let pem = std::fs::read(ca).map_err(|error| format!("--ca: {}: {error}", ca.display()))?;
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
        endpoint = endpoint.tls_config(tls).map_err(|error| format!("--ca: {}: {error}", ca.display()))?;
    }
    // A watcher receives data only when something changes, so keepalive pings detect a dead connection.
    let endpoint = endpoint.connect_timeout(Duration::from_secs(5)).http2_keep_alive_interval(Duration::from_secs(10));
    Ok(DispatcherServiceClient::with_interceptor(endpoint.connect_lazy(), Authorization(authorization)))
}

/// The flags that reach the same dispatcher again. A token in the environment needs no flag.
pub fn flags(args: &Args) -> String {
    let mut flags = format!("--address {}", args.address);
    for (flag, file) in [("--ca", &args.ca), ("--token-file", &args.token_file)] {
        if let Some(file) = file {
            flags += &format!(" {flag} {}", file.display());
        }
    }
    flags
}

/// The file of --token-file takes precedence over the environment.
fn token(args: &Args) -> Result<Option<String>, String> {
    match &args.token_file {
        Some(file) => {
            let text = std::fs::read_to_string(file);
            text.map(Some).map_err(|error| format!("--token-file: {}: {error}", file.display()))
        }
        None => Ok(std::env::var("FORMID_TOKEN").ok()),
    }
}

fn bearer(token: &str) -> Result<MetadataValue<Ascii>, String> {
    let value = format!("Bearer {}", token.trim()).parse::<MetadataValue<Ascii>>();
    // The error does not quote the token.
    let mut value = value.map_err(|_| "the token has characters that a header cannot have")?;
    value.set_sensitive(true);
    Ok(value)
}
