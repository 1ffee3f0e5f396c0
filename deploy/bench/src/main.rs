//! Measures formid, every figure beside a ceiling measured in the same run on the same machine.
//!
//! Absolute numbers tell about the machine; the ratios tell about the program. Each pair is measured in turns, several
//! times, and the median ratio counts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a tool that measures: it fails loudly"
)]

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

/// Measures formid beside the ceilings of this machine
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// How often each pair is measured
    #[arg(long, default_value_t = 5, global = true)]
    rounds: usize,
}

#[derive(Subcommand)]
enum What {
    /// CollectStream against redis-benchmark and against the bare script
    Collect,
    /// SendTemplate against a bare handler that makes the same HTTP call
    Send,
    /// Broadcast against bare posts, and what it costs
    Broadcast,
    /// Bytes of Redis memory for a form id
    Memory,
    /// Ten times more calls than a service can do
    Overload,
    /// A service that is not busy
    Rest,
    /// Serves as the bare handler (started by the benchmark itself)
    #[command(hide = true)]
    Bare {
        /// Where to listen
        listen: std::net::SocketAddr,
        /// Where the sandbox is
        base_url: String,
    },
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    // reqwest asks for one even where every address is plain http.
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
