//! Sends one message of a broadcast.

use std::sync::Arc;

use store::broadcast::pages::{Next, Ready};
use tracing::{Instrument as _, warn};

use super::active::ActiveBroadcast;
use super::completion::{self, Disposition};
use super::limiter::Slot;
use crate::send::{AttemptResult, Progress, SendRequest};
use crate::spans;
use crate::wechat::errcode::Meaning;

/// First pause before a message is put back because its user gets messages too often, in `--backoff`. It doubles with
/// each round.
const USER_BUSY_PAUSE: u32 = 10;

/// A message that is leased and not settled yet.
pub(super) struct Message {
    pub(super) ready: Ready,
    pub(super) progress: Progress,
    pub(super) traced: bool,
}

pub(super) struct Sent {
    pub(super) message: Message,
    pub(super) disposition: Disposition,
}

/// Sends a message. The slot is free again before the message is settled.
pub(super) async fn send(active: Arc<ActiveBroadcast>, message: Message, rounds: u32, slot: Slot) -> Sent {
    if !message.traced {
        return attempt(active, message, rounds, slot).await;
    }
    let span = active.trace.message();
    let sent = attempt(active, message, rounds, slot).instrument(span.clone()).await;
    spans::ended(&span, &sent.disposition.next, sent.message.progress.attempts);
    sent
}

async fn attempt(active: Arc<ActiveBroadcast>, mut message: Message, rounds: u32, slot: Slot) -> Sent {
    let context = &active.context;
    let result = match active.spec.message_for(&message.ready.data) {
        Ok(text) => {
            let (openid, retry_unknown) = (message.ready.openid.clone(), active.spec.retry_unknown);
            let order = SendRequest { openid, message: text, request: None, retry_unknown };
            context.try_credential(&order, &message.ready.lease, &mut message.progress).await
        }
        Err(error) => {
            warn!(broadcast = %active.id, %error, "the data of a recipient cannot be read");
            AttemptResult::NotSpent(error.into())
        }
    };
    drop(slot);
    let disposition =
        completion::of(result, &message.progress, rounds, context.limits.credentials, context.clock.next_day_ms());
    if disposition.next == Next::Again && message.progress.last.meaning() == Some(Meaning::UserBusy) {
        // Without a pause, all rounds of the message would be over in a moment.
        let pause = context.limits.backoff * (USER_BUSY_PAUSE << rounds.min(completion::BUSY_ROUNDS));
        tokio::time::sleep(pause.min(context.limits.terms.duration / 4)).await;
    }
    Sent { message, disposition }
}
