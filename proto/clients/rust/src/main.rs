//! Tells users that their orders are ready. An example of calling formid from Rust, to be copied.
//!
//! Reads lines `ORDER OPENID FORM_ID` from standard input. For each line it collects the form id, sends the message,
//! and prints the result. The exit code is 0 if every message was delivered.
//!
//! ```sh
//! echo "42 alice 0123456789abcdef0123456789abcdef" | cargo run -p example-client -- --app wx0123456789abcdef
//! ```
//!
//! [`replicas`] finds the replicas, [`patience`] retries calls, [`problem`] reads errors.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool that prints for people")]

mod patience;
mod problem;
mod replicas;

/// Generated from the protos by the build script.
mod formid {
    #![allow(unused_qualifications, clippy::all)]
    tonic::include_proto!("formid.v1");
}

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use formid::collector_service_client::CollectorServiceClient;
use formid::credential::Right;
use formid::dispatcher_service_client::DispatcherServiceClient;
use formid::{CollectRequest, CollectStatus, Credential, Outcome, SendTemplateRequest, TemplateValue};
use patience::patiently;
use replicas::Replicas;

/// The deadline of each attempt. proto/README.md says how long a call can take.
const COLLECT: Duration = Duration::from_secs(15);
const SEND: Duration = Duration::from_secs(40);

/// Tells users that their orders are ready.
#[derive(Parser)]
struct Args {
    /// Addresses of the collectors: host:port, separated by commas; a name may resolve to several addresses
    #[arg(long, default_value = "127.0.0.1:7001")]
    collector: String,
    /// Addresses of the dispatchers
    #[arg(long, default_value = "127.0.0.1:7002")]
    dispatcher: String,
    /// The mini program's app id
    #[arg(long)]
    app: String,
    /// The template's id
    #[arg(long, default_value = "order-ready")]
    template: String,
    /// Number of lines processed concurrently
    #[arg(long, default_value_t = 16)]
    at_once: usize,
    /// Seconds for which a call is retried
    #[arg(long, default_value_t = 60)]
    patience: u64,
    /// File with the CA certificate of the services; without it, no TLS
    #[arg(long)]
    ca: Option<String>,
}

/// State that the processing of every line needs.
struct Clerk {
    args: Args,
    collectors: Replicas,
    dispatchers: Replicas,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// Processes all lines. Returns true if every message was delivered.
async fn run(args: Args) -> Result<bool, String> {
    let ca = args.ca.as_ref().map(std::fs::read_to_string).transpose().map_err(|error| format!("--ca: {error}"))?;
    // Sent with each call, over TLS only. Read from the environment, because every process can read a command line.
    let token = std::env::var("FORMID_TOKEN").ok();
    let open = async |names: &str, deadline| Replicas::open(names, ca.as_deref(), token.as_deref(), deadline).await;
    let (collectors, dispatchers) = (open(&args.collector, COLLECT).await?, open(&args.dispatcher, SEND).await?);
    let room = Arc::new(Semaphore::new(args.at_once));
    let clerk = Arc::new(Clerk { args, collectors, dispatchers });
    let (mut input, mut tasks) = (BufReader::new(tokio::io::stdin()).lines(), JoinSet::new());
    while let Some(line) = input.next_line().await.map_err(|error| format!("standard input: {error}"))? {
        let room = Arc::clone(&room).acquire_owned().await.map_err(|error| error.to_string())?;
        let clerk = Arc::clone(&clerk);
        tasks.spawn(async move {
            let _room = room;
            clerk.handle(&line).await
        });
    }
    Ok(tasks.join_all().await.into_iter().all(|delivered| delivered))
}

impl Clerk {
    /// Processes one line of input. Returns whether the message was delivered.
    async fn handle(&self, line: &str) -> bool {
        let mut words = line.splitn(3, ' ').map(str::to_owned);
        let (Some(order), Some(openid), Some(form_id)) = (words.next(), words.next(), words.next()) else {
            println!("{line}: failed: expected ORDER OPENID FORM_ID");
            return false;
        };
        let (delivered, ending) = match self.collect_and_send(&order, openid, form_id).await {
            Ok(Outcome::Delivered) => (true, "delivered".to_owned()),
            // OUTCOME_UNKNOWN: the message was delivered once or not at all. Sending it again might deliver it twice.
            Ok(_) => (false, "unknown".to_owned()),
            Err(problem) => (false, format!("failed: {problem}")),
        };
        println!("{order}: {ending}");
        delivered
    }

    async fn collect_and_send(
        &self,
        order: &str,
        openid: String,
        form_id: String,
    ) -> Result<Outcome, problem::Problem> {
        let patience = Duration::from_secs(self.args.patience);
        let tell = |text: String| eprintln!("{order}: {text}");
        // One credential in each call, because this is an example: a call takes up to 1000.
        let credential = Credential { openid: openid.clone(), right: Some(Right::FormId(form_id)), obtained_at: None };
        let request = CollectRequest { app_id: self.args.app.clone(), credentials: vec![credential] };
        let call = async |replica, request| CollectorServiceClient::new(replica).collect(request).await;
        let collected = patiently(&self.collectors, request, call, patience, tell).await?;
        for result in collected.results {
            // Not an error: the user may have another form id.
            if result.status() == CollectStatus::Refused {
                tell(format!("the form id was refused: {}", result.message));
            }
        }
        let message = self.ready_message(order, openid);
        let call = async |replica, message| DispatcherServiceClient::new(replica).send_template(message).await;
        let sent = patiently(&self.dispatchers, message, call, patience, tell).await?;
        Ok(sent.outcome())
    }

    /// The message about an order, the same at each attempt.
    ///
    /// The request id is derived from the event that the message is about. So a retry after a crash has the same id,
    /// and so does another worker that handles the event a second time. A random id would make each of them a new
    /// message.
    fn ready_message(&self, order: &str, openid: String) -> SendTemplateRequest {
        let value = |text: String| TemplateValue { value: text, color: String::new() };
        SendTemplateRequest {
            app_id: self.args.app.clone(),
            openid,
            request_id: format!("order-ready:{order}"),
            template_id: self.args.template.clone(),
            data: HashMap::from([
                ("keyword1".to_owned(), value(format!("Order {order}"))),
                ("keyword2".to_owned(), value("ready".to_owned())),
            ]),
            page: format!("pages/order?id={order}"),
            ..SendTemplateRequest::default()
        }
    }
}
