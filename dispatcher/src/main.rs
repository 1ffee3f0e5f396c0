//! The dispatcher as a program.

use std::process::ExitCode;

use dispatcher::settings::Args;
use shared::listeners::Listeners;
use shared::{serve, telemetry};

/// A send is many small allocations on several threads, where the C library's allocator has them wait for one another.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let args: Args = match telemetry::parse() {
        Ok(args) => args,
        Err(code) => return code,
    };
    let settings = match args.read() {
        Ok(settings) => settings,
        Err(error) => return telemetry::refuse(&error, args.common.log_json()),
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
