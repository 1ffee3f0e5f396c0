//! Tells users that their orders are ready: an example of calling formid from Rust, made to be copied.
//!
//! Reads lines `ORDER OPENID FORM_ID` from its standard input. For each it collects the form id, sends the message, and
//! prints how that ended. The exit code is 0 when every message was delivered.
//!
//! ```sh
//! echo "42 alice 0123456789abcdef0123456789abcdef" | cargo run -p example-client -- --app wx0123456789abcdef
//! ```
//!
//! [`replicas`] is where the services are, [`patience`] which calls are repeated, [`problem`] what an error tells.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool that prints for people")]

mod patience;
mod problem;
mod replicas;

/// What the build made from the protos.
mod formid {
    #![allow(missing_docs, unused_qualifications, clippy::all)]
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

/// The deadline of each try: see proto/README.md for how long either can take.
const COLLECT: Duration = Duration::from_secs(15);
const SEND: Duration = Duration::from_secs(40);

/// Tells users that their orders are ready.
#[derive(Parser)]
struct Args {
    /// Where the collectors are: host:port, several with commas; a name may have several addresses
    #[arg(long, default_value = "127.0.0.1:7001")]
    collector: String,
    /// Where the dispatchers are
    #[arg(long, default_value = "127.0.0.1:7002")]
    dispatcher: String,
    /// The mini program's app id
    #[arg(long)]
    app: String,
    /// The template's id
    #[arg(long, default_value = "order-ready")]
    template: String,
    /// How many lines are dealt with at once
    #[arg(long, default_value_t = 16)]
    at_once: usize,
    /// Seconds for which a call is repeated
    #[arg(long, default_value_t = 60)]
    patience: u64,
    /// A file with the authority of the services' certificates; without it, no TLS
    #[arg(long)]
    ca: Option<String>,
}

/// What all lines are dealt with by.
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

/// True when every message was delivered.
async fn run(args: Args) -> Result<bool, String> {
    let ca = args.ca.as_ref().map(std::fs::read_to_string).transpose().map_err(|error| format!("--ca: {error}"))?;
    // Goes with each call, over TLS only. By the environment, because a command line can be read by all processes.
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
    /// One line of input, from the form id to the message; answers whether it was delivered.
    async fn handle(&self, line: &str) -> bool {
        let mut words = line.splitn(3, ' ').map(str::to_owned);
        let (Some(order), Some(openid), Some(form_id)) = (words.next(), words.next(), words.next()) else {
            println!("{line}: failed: it is not ORDER OPENID FORM_ID");
            return false;
        };
        let (delivered, ending) = match self.collect_and_send(&order, openid, form_id).await {
            Ok(Outcome::Delivered) => (true, "delivered".to_owned()),
            // It went out once or not at all, and nobody can tell. To send again may be to send twice.
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
        // One at a time because it is an example: a call takes up to 1000.
        let credential = Credential { openid: openid.clone(), right: Some(Right::FormId(form_id)), obtained_at: None };
        let request = CollectRequest { app_id: self.args.app.clone(), credentials: vec![credential] };
        let call = async |replica, request| CollectorServiceClient::new(replica).collect(request).await;
        let collected = patiently(&self.collectors, request, call, patience, tell).await?;
        for result in collected.results {
            // Of another form id the user may have one all the same.
            if result.status() == CollectStatus::Refused {
                tell(format!("the form id is refused: {}", result.message));
            }
        }
        let message = self.ready_message(order, openid);
        let call = async |replica, message| DispatcherServiceClient::new(replica).send_template(message).await;
        let sent = patiently(&self.dispatchers, message, call, patience, tell).await?;
        Ok(sent.outcome())
    }

    /// The message for an order, the same at each try.
    ///
    /// The request id is made of the event that the message is about. So it is the same for a try after a crash, and for
    /// a colleague that handles the event a second time. A random one would be another message each time.
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
