//! Converts broadcasts to protobuf for callers.

use std::sync::Arc;
use std::time::Duration;

use domain::AppId;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, Stream};
use prost_types::Timestamp;
use server::proto::{
    self, BroadcastFailure, BroadcastInfo, BroadcastPreview, BroadcastState, BroadcastTally, WatchBroadcastResponse,
};
use server::rpc::reason::Reason;
use server::rpc::status::Failure;
use store::broadcast::BroadcastId;
use store::broadcast::records::State;
use store::broadcast::tallies::{ERASED, Tally, Undelivered};
use tonic::Status;

use crate::broadcast::api::{BroadcastView, Broadcasts, Estimate};
use crate::broadcast::reason::{Ending, PauseReason, split};
use crate::send::outcome::field_of;
use crate::wechat::errcode::{Meaning, row_of};

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
        field: pause.field,
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

/// `refused` is the number of recipients that the audience lacks because they are bad.
pub(super) fn preview(estimate: &Estimate, refused: u32) -> BroadcastPreview {
    let Estimate { preview, excluded, credentials, duration } = *estimate;
    BroadcastPreview {
        audience: preview.reached + preview.no_credential + preview.recently_messaged,
        reachable: preview.reached,
        no_credential: preview.no_credential,
        recently_messaged: preview.recently_messaged,
        excluded,
        credentials,
        duration: duration.and_then(|duration| duration.try_into().ok()),
        refused: refused.into(),
    }
}

pub(super) fn undelivered(found: Undelivered) -> proto::Undelivered {
    let (reason, errcode, key) = split(&found.ending);
    let field = key.map(field_of).unwrap_or_default();
    proto::Undelivered { openid: found.openid, reason: reason.to_owned(), errcode, field }
}

/// Streams a broadcast, once at first and then at each change. Ends when the broadcast ends, or with the failure that
/// `ending` returns.
pub(super) fn watch(
    broadcasts: Arc<Broadcasts>,
    id: BroadcastId,
    interval: Duration,
    ending: BoxFuture<'static, Failure>,
) -> impl Stream<Item = Result<WatchBroadcastResponse, Status>> + Send {
    // The state is `None` after the last item.
    stream::unfold(Some((ending, None)), move |state| {
        let (broadcasts, id) = (Arc::clone(&broadcasts), id.clone());
        async move {
            let (mut ending, shown): (_, Option<BroadcastInfo>) = state?;
            loop {
                let read = async {
                    if shown.is_some() {
                        tokio::time::sleep(interval).await;
                    }
                    broadcasts.get(&id).await
                };
                let view = tokio::select! {
                    biased;
                    failure = &mut ending => return Some((Err(failure.into()), None)),
                    view = read => view,
                };
                let view = match view {
                    Ok(view) => view,
                    // Redis may come back, so the watcher is not disconnected.
                    Err(failure) if failure.reason() == Reason::REDIS_UNAVAILABLE.name() && shown.is_some() => continue,
                    Err(failure) => return Some((Err(failure.into()), None)),
                };
                let info = of(&broadcasts.context.app.id, &view);
                let is_final = view.record.state.is_final();
                if is_final || shown.as_ref() != Some(&info) {
                    let response = WatchBroadcastResponse { broadcast: Some(info.clone()) };
                    return Some((Ok(response), (!is_final).then_some((ending, Some(info)))));
                }
            }
        }
    })
}

fn tally_of(tally: &Tally) -> BroadcastTally {
    let (mut refused_by_user, mut unknown, mut failed) = (0, 0, Vec::new());
    for (ending, count) in &tally.endings {
        let (name, errcode, _) = split(ending);
        match Ending::parse(name) {
            Some(Ending::Delivered | Ending::NoCredential | Ending::RecentlyMessaged) => {}
            None if name == ERASED => {}
            Some(Ending::Unknown) => unknown += count,
            Some(Ending::UserRefused) if errcode.is_some_and(is_users_choice) => {
                refused_by_user += count;
            }
            _ => failed.push(BroadcastFailure { reason: name.to_owned(), errcode, count: *count }),
        }
    }
    BroadcastTally {
        audience: tally.audience,
        estimated: tally.estimated,
        delivered: tally.ended(Ending::Delivered.name()),
        no_credential: tally.ended(Ending::NoCredential.name()),
        recently_messaged: tally.ended(Ending::RecentlyMessaged.name()),
        refused_by_user,
        erased: tally.ended(ERASED),
        unknown,
        failed,
        left: tally.left(),
        in_flight: tally.in_flight,
    }
}

fn is_users_choice(errcode: i32) -> bool {
    matches!(row_of(errcode).meaning, Meaning::RefusedByUser | Meaning::Unfollowed)
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

fn pause_reason(name: &str) -> proto::PauseReason {
    match PauseReason::parse(name) {
        Some(PauseReason::Caller) => proto::PauseReason::Caller,
        Some(PauseReason::Canary) => proto::PauseReason::Canary,
        Some(PauseReason::Quota) => proto::PauseReason::Quota,
        Some(PauseReason::AppStopped) => proto::PauseReason::AppStopped,
        Some(PauseReason::MessageRefused) => proto::PauseReason::MessageRefused,
        Some(PauseReason::FailureRatio) => proto::PauseReason::FailureRatio,
        Some(PauseReason::TokenRefused) => proto::PauseReason::TokenRefused,
        Some(PauseReason::TemplateStopped) => proto::PauseReason::TemplateStopped,
        Some(PauseReason::UserRefusals) => proto::PauseReason::UserRefusals,
        None => proto::PauseReason::Unspecified,
    }
}

pub(super) fn time(ms: u64) -> Timestamp {
    Timestamp { seconds: (ms / 1000) as i64, nanos: (ms % 1000) as i32 * 1_000_000 }
}
