//! `collector`: the service as a program.

use std::io;
use std::process::ExitCode;

use clap::Parser as _;
use collector::settings::{Flags, Settings};
use shared::listeners::Listeners;
use shared::{serve, telemetry};
use tracing::{error, info};

#[tokio::main]
async fn main() -> ExitCode {
    let settings = match Settings::read(&Flags::parse()) {
        Ok(settings) => settings,
        Err(problems) => return shared::problems::refuse(&problems),
    };
    let telemetry = telemetry::start("formid-collector", &settings.common.log, &settings.common.traces);
    let ended = serve_until_told(settings).await;
    telemetry.stop().await;
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(%error, "cannot go on");
            ExitCode::FAILURE
        }
    }
}

async fn serve_until_told(settings: Settings) -> io::Result<()> {
    let shutdown = serve::signals()?;
    let listeners = Listeners::open(&settings.common).await?;
    info!(listen = %listeners.calls.local_addr()?, apps = settings.apps.len(), "collector");
    collector::run(listeners, settings, shutdown).await
}
