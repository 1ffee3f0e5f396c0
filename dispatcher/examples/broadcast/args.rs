//! The command-line arguments.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Parser};
use prost_types::Timestamp;
use server::proto;

/// Starts a broadcast, or attaches to an existing one, and follows it to its end
///
/// The exit code is 0 when the broadcast is done (with --pause, --cancel and --validate-only: when the call succeeded),
/// else 1.
#[derive(Debug, Parser)]
#[command(name = "broadcast", group(ArgGroup::new("what").required(true)))]
pub struct Args {
    /// Address of the dispatcher
    #[arg(long, default_value = "127.0.0.1:7002", env = "FORMID_DISPATCHER")]
    pub address: String,
    /// File with the CA certificate of the dispatcher; without it, no TLS
    #[arg(long, value_name = "FILE", env = "FORMID_CA")]
    pub ca: Option<PathBuf>,
    /// File with the caller's token, sent over TLS only; alternatively set FORMID_TOKEN. There is no flag for the token
    /// itself, since all processes can read command lines
    #[arg(long, value_name = "FILE", env = "FORMID_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// App id of the mini program
    #[arg(long)]
    pub app: String,

    /// Starts a broadcast of this template
    #[arg(long, group = "what", value_name = "ID")]
    pub template: Option<String>,
    /// Watches this broadcast
    #[arg(long, group = "what", value_name = "BROADCAST")]
    pub watch: Option<String>,
    /// Pauses this broadcast
    #[arg(long, group = "what", value_name = "BROADCAST")]
    pub pause: Option<String>,
    /// Resumes this broadcast, and watches it
    #[arg(long, group = "what", value_name = "BROADCAST")]
    pub resume: Option<String>,
    /// Cancels this broadcast permanently
    #[arg(long, group = "what", value_name = "BROADCAST")]
    pub cancel: Option<String>,

    /// File with the recipients, one openid per line, optionally followed by a space or tab and the user's own data,
    /// such as {"keyword1": "hello, Bob"}; without it, every user who can be reached
    #[arg(long, requires = "template", value_name = "FILE")]
    pub list: Option<PathBuf>,
    /// File with users to leave out, one openid per line
    #[arg(long, requires = "template", value_name = "FILE")]
    pub exclude: Option<PathBuf>,
    /// Value of the template; repeatable
    #[arg(long, requires = "template", value_name = "KEY=TEXT", value_parser = pair)]
    pub data: Vec<(String, String)>,
    /// Color of a value; repeatable
    #[arg(long, requires = "template", value_name = "KEY=#RRGGBB", value_parser = pair)]
    pub color: Vec<(String, String)>,
    /// Page of the mini program that opens on a tap
    #[arg(long, requires = "template")]
    pub page: Option<String>,
    /// Key whose value is shown large, such as keyword1.DATA
    #[arg(long, requires = "template", value_name = "KEY")]
    pub emphasis: Option<String>,
    /// Name of the broadcast, for people
    #[arg(long, requires = "template")]
    pub name: Option<String>,
    /// Pauses after this many messages, so that you can check the result
    #[arg(long, requires = "template", value_name = "MESSAGES")]
    pub limit: Option<u32>,
    /// Waits until this time, such as 2026-11-30T09:00:00+08:00
    #[arg(long, requires = "template", value_name = "TIME", value_parser = time)]
    pub not_before: Option<Timestamp>,
    /// Maximum number of messages per second
    #[arg(long, requires = "template", value_name = "MESSAGES")]
    pub per_second: Option<u32>,
    /// Skips users who received a message within this time, such as 12h; at most 7d
    #[arg(long, requires = "template", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub min_interval: Option<Duration>,
    /// Kind of message to send; default: as configured for the app
    #[arg(long, requires = "template", value_enum)]
    pub delivery: Option<Delivery>,
    /// Version of the mini program that opens on a tap; subscription messages only
    #[arg(long, requires = "template", value_name = "STATE")]
    pub miniprogram_state: Option<String>,
    /// Language of the mini program's frame; subscription messages only
    #[arg(long, requires = "template", value_name = "LANG")]
    pub lang: Option<String>,
    /// Cuts texts that are longer than WeChat permits; subscription messages only
    #[arg(long, requires = "template")]
    pub fit: bool,
    /// Sends a message again if its outcome is unknown
    #[arg(long, requires = "template")]
    pub retry_unknown: bool,
    /// Starting again with the same id and the same arguments finds the first broadcast; random by default
    #[arg(long, requires = "template", value_name = "ID")]
    pub request_id: Option<String>,
    /// Starts nothing, and prints what would happen
    #[arg(long, requires = "template")]
    pub validate_only: bool,
}

impl Args {
    /// The id of the existing broadcast, if the arguments name one.
    pub fn existing(&self) -> Option<&str> {
        [&self.watch, &self.pause, &self.resume, &self.cancel].into_iter().find_map(Option::as_deref)
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn time(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| "must be a time with its offset, such as 2026-11-30T09:00:00+08:00".to_owned())
}

/// Message generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Delivery {
    /// Template messages, which spend form ids and prepay ids.
    FormId,
    /// Subscription messages, which spend grants.
    Subscription,
}

impl From<Delivery> for proto::Delivery {
    fn from(delivery: Delivery) -> Self {
        match delivery {
            Delivery::FormId => Self::FormId,
            Delivery::Subscription => Self::Subscription,
        }
    }
}
