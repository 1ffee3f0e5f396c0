//! The `collector` program.

use std::io;
use std::process::ExitCode;

use collector::settings::{Flags, Settings};
use server::listen::Listeners;
use server::serve;
use server::telemetry;
use tracing::{error, info};

#[tokio::main]
async fn main() -> ExitCode {
    let flags: Flags = match telemetry::parse() {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    let settings = match Settings::read(&flags) {
        Ok(settings) => settings,
        Err(problems) => return telemetry::refuse(&problems, flags.common.log_json()),
    };
    let telemetry = telemetry::start("formid-collector", &settings.common.log, &settings.common.traces);
    let ended = serve_until_told(settings).await;
    telemetry.stop().await;
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(%error, "the collector failed");
            ExitCode::FAILURE
        }
    }
}

async fn serve_until_told(settings: Settings) -> io::Result<()> {
    let shutdown = serve::signals()?;
    let listeners = Listeners::open(settings.common.listen, settings.common.metrics_listen).await?;
    info!(listen = %listeners.calls.local_addr()?, apps = settings.apps.len(), "collector started");
    collector::run(listeners, settings, shutdown).await
}
