//! Converts broadcasts to protobuf for callers.

use std::sync::Arc;
use std::time::Duration;

use domain::AppId;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, Stream};
use prost_types::Timestamp;
use server::proto::{
    self, BroadcastFailure, BroadcastInfo, BroadcastPreview, BroadcastState, BroadcastTally, PauseReason,
    WatchBroadcastResponse,
};
use server::rpc::status::Failure;
use store::broadcast::BroadcastId;
use store::broadcast::records::State;
use store::broadcast::tallies::{DELIVERED, ERASED, Tally, Undelivered};
use tonic::Status;

use crate::broadcast::api::{BroadcastView, Broadcasts, Estimate};
use crate::broadcast::completion::reason;

/// Converts a broadcast.
pub(super) fn of(app: &AppId, view: &BroadcastView) -> BroadcastInfo {
    let BroadcastView { record, spec, tally } = view;
    let pause = record.pause.clone().unwrap_or_default();
    BroadcastInfo {
        app_id: app.to_string(),
        broadcast_id: record.id.to_string(),
        name: spec.name.clone(),
        template_id: spec.message.template_id.as_str().to_owned(),
        delivery: proto::Delivery::from(spec.message.delivery).into(),
        state: state(record.state).into(),
        pause_reason: pause_reason(&pause.reason).into(),
        errcode: pause.errcode,
        rid: pause.rid,
        resume_time: pause.resume_ms.map(time),
        create_time: Some(time(record.created_ms)),
        not_before: record.not_before_ms.map(time),
        start_time: record.started_ms.map(time),
        end_time: record.ended_ms.map(time),
        messages_per_second: spec.rate,
        limit: record.canary.unwrap_or_default(),
        tally: tally.as_ref().map(tally_of),
    }
}

/// Converts an estimate.
pub(super) fn preview(outlook: &Estimate) -> BroadcastPreview {
    let Estimate { preview, excluded, credentials, duration } = *outlook;
    BroadcastPreview {
        audience: preview.reached + preview.no_credential + preview.recently_messaged,
        reachable: preview.reached,
        no_credential: preview.no_credential,
        recently_messaged: preview.recently_messaged,
        excluded,
        credentials,
        duration: duration.and_then(|duration| duration.try_into().ok()),
    }
}

/// Converts a user who was not reached.
pub(super) fn undelivered(found: Undelivered) -> proto::Undelivered {
    let (reason, errcode) = split(&found.ending);
    proto::Undelivered { openid: found.openid, reason: reason.to_owned(), errcode }
}

/// Streams a broadcast, once at first and then at each change. Ends when the broadcast ends, or with the failure that
/// `ending` returns.
pub(super) fn watch(
    broadcasts: Arc<Broadcasts>,
    id: BroadcastId,
    interval: Duration,
    ending: BoxFuture<'static, Failure>,
) -> impl Stream<Item = Result<WatchBroadcastResponse, Status>> + Send {
    struct Watcher {
        broadcasts: Arc<Broadcasts>,
        id: BroadcastId,
        ending: BoxFuture<'static, Failure>,
        shown: Option<BroadcastInfo>,
        ended: bool,
    }
    let watcher = Watcher { broadcasts, id, ending, shown: None, ended: false };
    stream::unfold(watcher, move |mut watcher| {
        async move {
            if watcher.ended {
                return None;
            }
            loop {
                let look = async {
                    if watcher.shown.is_some() {
                        tokio::time::sleep(interval).await;
                    }
                    watcher.broadcasts.get(&watcher.id).await
                };
                let looked = tokio::select! {
                    biased;
                    failure = &mut watcher.ending => {
                        watcher.ended = true;
                        return Some((Err(failure.into()), watcher));
                    }
                    looked = look => looked,
                };
                let view = match looked {
                    Ok(view) => view,
                    // Redis may come back, so the watcher is not disconnected.
                    Err(failure) if failure.reason() == "REDIS_UNAVAILABLE" && watcher.shown.is_some() => continue,
                    Err(failure) => {
                        watcher.ended = true;
                        return Some((Err(failure.into()), watcher));
                    }
                };
                let info = of(&watcher.broadcasts.context().app.id, &view);
                watcher.ended = view.record.state.is_final();
                if watcher.ended || watcher.shown.as_ref() != Some(&info) {
                    watcher.shown = Some(info.clone());
                    return Some((Ok(WatchBroadcastResponse { broadcast: Some(info) }), watcher));
                }
            }
        }
    })
}

fn tally_of(tally: &Tally) -> BroadcastTally {
    let (mut refused_by_user, mut unknown, mut failed) = (0, 0, Vec::new());
    for (ending, count) in &tally.endings {
        match split(ending) {
            ("NO_CREDENTIAL" | "RECENTLY_MESSAGED" | DELIVERED | ERASED, _) => {}
            ("UNKNOWN", _) => unknown += count,
            // The user's choice. Another errcode with the same reason is a wrong openid.
            ("USER_REFUSED", Some(43101)) => refused_by_user += count,
            (reason, errcode) => {
                failed.push(BroadcastFailure { reason: reason.to_owned(), errcode, count: *count });
            }
        }
    }
    BroadcastTally {
        audience: tally.audience,
        estimated: tally.estimated,
        delivered: tally.ended(DELIVERED),
        no_credential: tally.ended("NO_CREDENTIAL"),
        recently_messaged: tally.ended("RECENTLY_MESSAGED"),
        refused_by_user,
        erased: tally.ended(ERASED),
        unknown,
        failed,
        left: tally.left(),
        in_flight: tally.in_flight,
    }
}

/// Splits a stored ending into its reason and WeChat's errcode.
fn split(ending: &str) -> (&str, Option<i32>) {
    match ending.split_once(' ') {
        Some((reason, errcode)) => (reason, errcode.parse().ok()),
        None => (ending, None),
    }
}

fn state(state: State) -> BroadcastState {
    match state {
        State::Pending => BroadcastState::Pending,
        State::Running => BroadcastState::Running,
        State::Paused => BroadcastState::Paused,
        State::Cancelled => BroadcastState::Cancelled,
        State::Done => BroadcastState::Done,
    }
}

fn pause_reason(name: &str) -> PauseReason {
    match name {
        reason::CALLER => PauseReason::Caller,
        reason::CANARY => PauseReason::Canary,
        reason::QUOTA => PauseReason::Quota,
        reason::APP_STOPPED => PauseReason::AppStopped,
        reason::MESSAGE_REFUSED => PauseReason::MessageRefused,
        reason::FAILURE_RATIO => PauseReason::FailureRatio,
        reason::TOKEN_REFUSED => PauseReason::TokenRefused,
        _ => PauseReason::Unspecified,
    }
}

fn time(ms: u64) -> Timestamp {
    Timestamp { seconds: (ms / 1000) as i64, nanos: (ms % 1000) as i32 * 1_000_000 }
}
