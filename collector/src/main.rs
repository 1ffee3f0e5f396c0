//! The collector's binary.

use std::process::ExitCode;

use collector::StartError;
use collector::settings::{Args, Settings};
use server::listen::Listeners;
use server::serve;
use server::telemetry;

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
    let telemetry = telemetry::start("formid-collector", &settings.common.log, &settings.common.traces);
    let ended = start(settings).await;
    telemetry.stop().await;
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the collector stopped with an error");
            ExitCode::FAILURE
        }
    }
}

async fn start(settings: Settings) -> Result<(), StartError> {
    let shutdown = serve::signals()?;
    let listeners = Listeners::open(settings.common.listen, settings.common.metrics_listen).await?;
    let apps = settings.apps.len();
    tracing::info!(listen = %listeners.calls.local_addr()?, apps, "collector is listening");
    collector::run(listeners, settings, shutdown).await
}
