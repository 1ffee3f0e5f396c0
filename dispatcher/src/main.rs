//! The dispatcher as a program.

use std::process::ExitCode;

use clap::Parser as _;
use dispatcher::settings::Args;
use shared::listeners::Listeners;
use shared::{serve, telemetry};

/// A send is many small allocations on several threads, where the C library's allocator has them wait for one another.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let settings = match Args::parse().read() {
        Ok(settings) => settings,
        Err(error) => return shared::problems::refuse(&error),
    };
    let telemetry = telemetry::start("formid-dispatcher", &settings.common.log, &settings.common.traces);
    let ended = start(settings).await;
    telemetry.stop().await;
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the dispatcher ends");
            ExitCode::FAILURE
        }
    }
}

async fn start(settings: dispatcher::settings::Settings) -> std::io::Result<()> {
    let shutdown = serve::signals()?;
    let listeners = Listeners::open(&settings.common).await?;
    let apps = settings.apps.iter().count();
    tracing::info!(listen = %listeners.calls.local_addr()?, apps, "dispatcher");
    dispatcher::run(listeners, settings, shutdown).await
}
