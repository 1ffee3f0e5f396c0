//! The dispatcher's binary.

use std::process::ExitCode;

use dispatcher::StartError;
use dispatcher::settings::{Args, Settings};
use server::listen::Listeners;
use server::serve;
use server::telemetry;

/// A send makes many small allocations on several threads. With the C library's allocator these threads wait for each
/// other.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let args: Args = match telemetry::parse() {
        Ok(args) => args,
        Err(code) => return code,
    };
    let settings = match Settings::read(&args) {
        Ok(settings) => settings,
        Err(error) => return telemetry::refuse(&error, args.common.log_json()),
    };
    let telemetry = telemetry::start("formid-dispatcher", &settings.common.log, &settings.common.traces);
    let ended = start(settings).await;
    telemetry.stop().await;
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the dispatcher stopped with an error");
            ExitCode::FAILURE
        }
    }
}

async fn start(settings: Settings) -> Result<(), StartError> {
    let shutdown = serve::signals()?;
    let listeners = Listeners::open(settings.common.listen, settings.common.metrics_listen).await?;
    let apps = settings.apps.iter().count();
    tracing::info!(listen = %listeners.calls.local_addr()?, apps, "dispatcher is listening");
    dispatcher::run(listeners, settings, shutdown).await
}
