//! Formats broadcasts and errors for people.

use std::fmt::Write as _;

use server::proto::{BroadcastFailure, BroadcastInfo, BroadcastPreview, BroadcastState, PauseReason, RefusedRecipient};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// The state of a broadcast, with the reason of a pause.
pub fn standing(info: &BroadcastInfo) -> String {
    let state = match info.state() {
        BroadcastState::Unspecified => "in a state that this client does not know",
        BroadcastState::Pending => match info.not_before {
            Some(at) => return format!("waiting for {at}, or to be started"),
            None => "waiting to be started",
        },
        BroadcastState::Running => "running",
        BroadcastState::Cancelled => "cancelled",
        BroadcastState::Done => "done",
        BroadcastState::Paused => return paused(info),
    };
    state.to_owned()
}

fn paused(info: &BroadcastInfo) -> String {
    let why = match info.pause_reason() {
        PauseReason::Unspecified => "",
        PauseReason::Caller => " by a caller",
        PauseReason::Canary => ": its limit is reached; check the result, then --resume",
        PauseReason::Quota => ": the day's quota for broadcasts is used up",
        PauseReason::AppStopped => ": WeChat refuses the app",
        PauseReason::MessageRefused => ": WeChat refused several messages in a row because of their content",
        PauseReason::FailureRatio => ": too many messages failed",
        PauseReason::TokenRefused => ": WeChat refuses an access token",
        PauseReason::TemplateStopped => ": WeChat banned the template",
        PauseReason::UserRefusals => ": WeChat answers that too many users refuse; wait for some hours, then --resume",
    };
    let mut text = format!("paused{why}");
    if let Some(errcode) = info.errcode {
        let _ = write!(text, " (errcode {errcode}");
        for (name, value) in [("field", &info.field), ("rid", &info.rid)] {
            let _ = if value.is_empty() { Ok(()) } else { write!(text, ", {name} {value}") };
        }
        text.push(')');
    }
    if let Some(at) = info.resume_time {
        let _ = write!(text, ", until {at}");
    }
    text
}

/// The progress, on one line.
pub fn progress(info: &BroadcastInfo, rate: Option<f64>) -> String {
    let tally = info.tally.clone().unwrap_or_default();
    let about = if tally.estimated { "about " } else { "" };
    let running = info.state() == BroadcastState::Running;
    let mut line = if running { String::new() } else { format!("{}; ", standing(info)) };
    let _ = write!(line, "{} of {about}{} delivered", tally.delivered, tally.audience);
    if let (true, Some(rate)) = (running, rate) {
        let _ = write!(line, ", {rate:.0} a second");
    }
    for (what, count) in counts(info) {
        let _ = write!(line, ", {count} {what}");
    }
    line
}

/// The final numbers.
pub fn tally(info: &BroadcastInfo) -> String {
    let tally = info.tally.clone().unwrap_or_default();
    let mut text = format!("{}: {} of {} delivered", standing(info), tally.delivered, tally.audience);
    let left = (tally.left > 0).then(|| ("not processed".to_owned(), tally.left));
    for (what, count) in counts(info).into_iter().chain(left) {
        let _ = write!(text, "\n{count:>9} {what}");
    }
    text
}

/// Numbers of users who were not reached, by reason.
fn counts(info: &BroadcastInfo) -> Vec<(String, u64)> {
    let tally = info.tally.clone().unwrap_or_default();
    let failure = |BroadcastFailure { reason, errcode, count }: BroadcastFailure| {
        let errcode = errcode.map(|errcode| format!(" {errcode}")).unwrap_or_default();
        (format!("failed ({reason}{errcode})"), count)
    };
    let mut counts: Vec<_> = [
        ("without a credential", tally.no_credential),
        ("messaged not long ago", tally.recently_messaged),
        ("refused by the user", tally.refused_by_user),
        ("erased", tally.erased),
        ("unknown", tally.unknown),
    ]
    .map(|(what, count)| (what.to_owned(), count))
    .to_vec();
    counts.extend(tally.failed.into_iter().map(failure));
    counts.retain(|(_, count)| *count > 0);
    counts
}

/// The result of a preview.
pub fn preview(preview: &BroadcastPreview) -> String {
    let mut text = format!(
        "{} users, of whom {} would get the message; {} credentials would be spent",
        preview.audience, preview.reachable, preview.credentials
    );
    for (what, count) in [
        ("without a credential", preview.no_credential),
        ("messaged not long ago", preview.recently_messaged),
        ("excluded", preview.excluded),
        ("refused", preview.refused),
    ] {
        if count > 0 {
            let _ = write!(text, "\n{count:>9} {what}");
        }
    }
    if let Some(duration) = preview.duration {
        let _ = write!(text, "\nat the configured rate it would take {duration}");
    }
    text
}

/// Number of refused users that are shown.
const SHOWN: usize = 10;

/// The users of a part of the list who are refused. `place` is the number of users before the part.
pub fn refused(refused: &[RefusedRecipient], count: u32, place: usize) -> String {
    let mut text = String::new();
    if count > 0 {
        let _ = writeln!(text, "{count} of the list are refused and get no message:");
    }
    for RefusedRecipient { index, field, description } in refused.iter().take(SHOWN) {
        let field = field.split_once("].").map_or(field.as_str(), |(_, field)| field);
        let _ = writeln!(text, "  user {} of the list: {field} {description}", place + *index as usize + 1);
    }
    text
}

/// Returns true if waiting may help: the dispatcher or its Redis is unavailable.
pub fn passes(status: &Status) -> bool {
    // A broken connection has one of several codes, and no reason.
    let broken = matches!(status.code(), Code::Unknown | Code::Cancelled | Code::Internal | Code::DeadlineExceeded);
    status.code() == Code::Unavailable || (broken && reason(status).is_none())
}

/// The error reason of the service; `None` if it gave none.
pub fn reason(status: &Status) -> Option<String> {
    status.get_error_details().error_info().map(|info| info.reason.clone())
}

/// The message of the service.
pub fn sentence(status: &Status) -> String {
    if status.message().is_empty() { format!("{:?}", status.code()) } else { status.message().to_owned() }
}

/// The message of a status with its reason, metadata and bad fields.
pub fn status(status: &Status) -> String {
    let details = status.get_error_details();
    let mut text = sentence(status);
    if let Some(info) = details.error_info() {
        let _ = write!(text, "\n  reason: {}", info.reason);
        let mut facts: Vec<_> = info.metadata.iter().collect();
        facts.sort();
        for (name, value) in facts {
            let _ = write!(text, "\n  {name}: {value}");
        }
    }
    for field in details.bad_request().map(|bad| &bad.field_violations[..]).unwrap_or_default() {
        let _ = write!(text, "\n  {} {}", field.field, field.description);
    }
    text
}
