//! Sends one message of a broadcast.

use std::sync::Arc;

use store::broadcast::pages::Ready;
use tracing::{Instrument as _, warn};

use super::active::ActiveBroadcast;
use super::completion::{self, Disposition};
use super::limiter::Slot;
use crate::send::{AttemptResult, Progress, SendRequest};
use crate::spans;

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
    Sent { message, disposition }
}
