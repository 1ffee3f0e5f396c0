//! The program `sandbox`: a strict local simulator of WeChat's API.

use std::io::IsTerminal as _;
use std::net::SocketAddr;

use clap::Parser;
use sandbox::{Sandbox, Settings};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// A strict local simulator of WeChat's API: tokens, template and subscription messages, events to a callback, fault
/// injection, and a record of what was delivered.
///
/// Everything else is set while it runs, over HTTP under /sandbox/: what users submit, accept and reject, where events
/// are posted (callback_url in the settings), and which faults to inject. Its README.md lists the calls.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Address to listen on.
    #[arg(long, env = "SANDBOX_LISTEN", default_value = "127.0.0.1:8700")]
    listen: SocketAddr,

    /// An app, as APPID=SECRET. Repeatable. In the environment, separated by commas.
    #[arg(long = "app", env = "SANDBOX_APPS", value_name = "APPID=SECRET", value_delimiter = ',', value_parser = app,
          default_value = "wx0123456789abcdef=0123456789abcdef0123456789abcdef")]
    apps: Vec<(String, String)>,

    /// A template id that exists. Repeatable. In the environment, separated by commas. Without any, every non-empty id
    /// exists.
    #[arg(long = "template", env = "SANDBOX_TEMPLATES", value_name = "ID", value_delimiter = ',')]
    templates: Vec<String>,

    /// Log filter for stderr: error, warn, info, debug, or directives such as sandbox=debug.
    #[arg(long, env = "SANDBOX_LOG", default_value = "info")]
    log: EnvFilter,
}

fn app(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((id, secret)) if !id.is_empty() && !secret.is_empty() => Ok((id.to_owned(), secret.to_owned())),
        _ => Err("expected APPID=SECRET".to_owned()),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(args.log).with_writer(std::io::stderr).with_ansi(colours).init();

    // An environment variable that is empty gives one empty id.
    let templates = args.templates.into_iter().filter(|id| !id.is_empty()).collect();
    let sandbox = Sandbox::new(Settings { templates, ..Settings::default() });
    for (app_id, secret) in &args.apps {
        sandbox.add_app(app_id, secret)?;
    }

    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let shutdown = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    let listener = TcpListener::bind(args.listen).await?;
    tracing::info!(listen = %listener.local_addr()?, apps = args.apps.len(), "serving");
    sandbox::serve(listener, sandbox, shutdown).await?;
    tracing::info!("stopped");
    Ok(())
}
