//! Starts a broadcast, or attaches to an existing one, and follows it to its end.
//!
//! ```sh
//! cargo run -p dispatcher --example broadcast -- --app wx0123456789abcdef --template spring --data keyword1=hello
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool that prints for people")]

mod args;
mod list;
mod reach;
mod start;
mod watch;
mod words;

use std::process::ExitCode;

use clap::Parser as _;
use server::proto::{BroadcastState, CancelBroadcastRequest, PauseBroadcastRequest, ResumeBroadcastRequest};

use args::Args;
use reach::Client;

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// Returns true if everything requested was done.
async fn run(args: &Args) -> Result<bool, String> {
    let mut client = reach::client(args)?;
    let told = |status: tonic::Status| words::status(&status);
    let (app_id, id) = (args.app.clone(), args.existing().unwrap_or_default().to_owned());
    if args.pause.is_some() {
        let request = PauseBroadcastRequest { app_id, broadcast_id: id };
        let info = client.pause_broadcast(request).await.map_err(told)?.into_inner().broadcast.unwrap_or_default();
        println!("{}", words::standing(&info));
        return Ok(true);
    }
    if args.cancel.is_some() {
        let request = CancelBroadcastRequest { app_id, broadcast_id: id };
        let info = client.cancel_broadcast(request).await.map_err(told)?.into_inner().broadcast.unwrap_or_default();
        println!("{}", words::tally(&info));
        return Ok(true);
    }
    let id = if args.watch.is_some() {
        id
    } else if args.resume.is_some() {
        client.resume_broadcast(ResumeBroadcastRequest { app_id, broadcast_id: id.clone() }).await.map_err(told)?;
        id
    } else if args.validate_only {
        println!("{}", words::preview(&start::preview(&mut client, args).await?));
        return Ok(true);
    } else {
        start::start(&mut client, args).await?
    };
    let again = format!("{} --app {} --watch {id}", reach::flags(args), args.app);
    tokio::select! {
        ended = watch::follow(&mut client, &args.app, &id) => {
            let info = ended.map_err(|problem| format!("{problem}\nto watch the broadcast again: {again}"))?;
            println!("{}", words::tally(&info));
            Ok(info.state() == BroadcastState::Done)
        }
        _ = tokio::signal::ctrl_c() => {
            eprintln!("\nstopped watching; the broadcast continues; to watch the broadcast again: {again}");
            Ok(false)
        }
    }
}
