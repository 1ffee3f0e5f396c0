//! What can be asked for on the command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Parser};
use prost_types::Timestamp;
use shared::proto;

/// Starts a broadcast, or takes up one that is there, and follows it to its end
///
/// The exit code is 0 when the broadcast is done (with --pause, --cancel and --validate-only: when the call succeeded),
/// else 1.
#[derive(Debug, Parser)]
#[command(name = "broadcast", group(ArgGroup::new("what").required(true)))]
pub struct Args {
    /// Where the dispatcher listens
    #[arg(long, default_value = "127.0.0.1:7002", env = "FORMID_DISPATCHER")]
    pub address: String,
    /// A file with the authority of the dispatcher's certificate; without it, no TLS
    #[arg(long, value_name = "FILE", env = "FORMID_CA")]
    pub ca: Option<PathBuf>,
    /// A file with the token to show, over TLS only; or else the environment has it as FORMID_TOKEN. There is no flag for
    /// the token itself, since all processes may read command lines
    #[arg(long, value_name = "FILE", env = "FORMID_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// The mini program's app id
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
    /// Cancels this broadcast for good
    #[arg(long, group = "what", value_name = "BROADCAST")]
    pub cancel: Option<String>,

    /// To the users in this file, one openid a line, each with data of its own after a space or a tab if need be, as in
    /// {"keyword1": "hello, Bob"}; without it, to every user who can be reached
    #[arg(long, requires = "template", value_name = "FILE")]
    pub list: Option<PathBuf>,
    /// Not to the users in this file, one openid a line
    #[arg(long, requires = "template", value_name = "FILE")]
    pub exclude: Option<PathBuf>,
    /// A value of the template; repeatable
    #[arg(long, requires = "template", value_name = "KEY=TEXT", value_parser = pair)]
    pub data: Vec<(String, String)>,
    /// The colour of a value; repeatable
    #[arg(long, requires = "template", value_name = "KEY=#RRGGBB", value_parser = pair)]
    pub color: Vec<(String, String)>,
    /// The page that opens on a tap
    #[arg(long, requires = "template")]
    pub page: Option<String>,
    /// The key whose value is shown large, as in keyword1.DATA
    #[arg(long, requires = "template", value_name = "KEY")]
    pub emphasis: Option<String>,
    /// What people call the broadcast
    #[arg(long, requires = "template")]
    pub name: Option<String>,
    /// Pauses after so many messages, for a look
    #[arg(long, requires = "template", value_name = "MESSAGES")]
    pub limit: Option<u32>,
    /// Waits until then, as in 2026-11-30T09:00:00+08:00
    #[arg(long, requires = "template", value_name = "TIME", value_parser = time)]
    pub not_before: Option<Timestamp>,
    /// At most so many messages a second
    #[arg(long, requires = "template", value_name = "MESSAGES")]
    pub per_second: Option<u32>,
    /// Skips users who got a message more recently than this, as in 12h; at most 7d
    #[arg(long, requires = "template", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub min_interval: Option<Duration>,
    /// Sends subscription messages, or template messages; as the app is set unless given
    #[arg(long, requires = "template", value_enum)]
    pub delivery: Option<Delivery>,
    /// Which version of the mini program opens on a tap, of subscription messages
    #[arg(long, requires = "template", value_name = "STATE")]
    pub miniprogram_state: Option<String>,
    /// The language of the mini program's frame, of subscription messages
    #[arg(long, requires = "template", value_name = "LANG")]
    pub lang: Option<String>,
    /// Where nobody can tell whether a message went out, sends it again
    #[arg(long, requires = "template")]
    pub retry_unknown: bool,
    /// Whoever starts again with the same id and all else the same finds the first broadcast; made up unless given
    #[arg(long, requires = "template", value_name = "ID")]
    pub request_id: Option<String>,
    /// Starts nothing, and tells what would happen
    #[arg(long, requires = "template")]
    pub validate_only: bool,
}

impl Args {
    /// The broadcast that is taken up, if one is.
    pub fn existing(&self) -> Option<&str> {
        [&self.watch, &self.pause, &self.resume, &self.cancel].into_iter().find_map(Option::as_deref)
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("there must be a = in it")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn time(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| "must be a time with its offset, such as 2026-11-30T09:00:00+08:00".to_owned())
}

/// By which generation of messages.
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
