//! The benchmark of formid. Every figure is compared with a ceiling that is measured in the same run on the same
//! machine.
//!
//! Absolute numbers depend on the machine; the ratios depend on the program. The two measurements of a pair alternate,
//! several times, and the median of the ratios is reported.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a measuring tool, which may panic")]

mod bare;
mod broadcast;
mod collect;
mod memory;
mod overload;
mod rest;
mod send;
mod setup;
mod table;

use clap::{Parser, Subcommand};

use crate::table::Table;

/// Measures formid against ceilings of this machine
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// Number of rounds in which each pair is measured
    #[arg(long, default_value_t = 5, global = true)]
    rounds: usize,
}

#[derive(Subcommand)]
enum What {
    /// CollectStream, compared with redis-benchmark and with the bare script
    Collect,
    /// SendTemplate, compared with a bare handler that makes the same HTTP call
    Send,
    /// Broadcast, compared with bare HTTP posts; its memory; its effect on Redis and on SendTemplate
    Broadcast,
    /// Bytes of Redis memory per form id
    Memory,
    /// Ten times as many calls as a service can serve
    Overload,
    /// Services with little load
    Rest,
    /// Runs the bare handler (started by the benchmark itself)
    #[command(hide = true)]
    Bare {
        /// Address to listen on
        listen: std::net::SocketAddr,
        /// Base URL of the sandbox
        base_url: String,
    },
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    // reqwest needs a crypto provider even if every address is plain http.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut table = Table::default();
    match args.what {
        Some(What::Bare { listen, base_url }) => return bare::serve(listen, &base_url).await,
        Some(What::Collect) => collect::measure(args.rounds, &mut table).await,
        Some(What::Send) => send::measure(args.rounds, &mut table).await,
        Some(What::Broadcast) => broadcast::measure(args.rounds, &mut table).await,
        Some(What::Memory) => memory::measure(&mut table).await,
        Some(What::Overload) => overload::measure(args.rounds, &mut table).await,
        Some(What::Rest) => rest::measure(&mut table).await,
        None => {
            collect::measure(args.rounds, &mut table).await;
            send::measure(args.rounds, &mut table).await;
            broadcast::measure(args.rounds, &mut table).await;
            memory::measure(&mut table).await;
            overload::measure(args.rounds, &mut table).await;
            rest::measure(&mut table).await;
        }
    }
    table.print();
    if !table.all_met() {
        std::process::exit(1);
    }
}
