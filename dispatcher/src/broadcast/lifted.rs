//! Broadcasts that wait for midnight because the daily quota was used up (45009). They resume earlier if the stop of
//! their generation is lifted earlier.

use domain::AppId;
use store::broadcast::records::{Move, Record};
use store::stops::{Stop, StopScope};
use tracing::{debug, info};

use super::quota;
use super::reason::PauseReason;
use super::spec::Spec;
use crate::context::AppContext;
use crate::stops::ends_with_remainder;
use crate::wechat::errcode::is_clearable;
use crate::wechat::message::Delivery;

impl AppContext {
    /// Resumes the broadcasts that wait for the end of one of these stops, which were lifted.
    pub async fn resume_after(&self, lifted: &[(StopScope, Stop)]) {
        for delivery in Delivery::ALL {
            if lifted.iter().any(|(scope, stop)| ends_with_remainder(scope, stop, delivery)) {
                // Otherwise the broadcasts may pause again because of the known numbers.
                quota::renew(self, delivery).await;
                self.resume_waiting(delivery).await;
            }
        }
    }

    /// Resumes the broadcasts of a generation that wait for the next day's quota because WeChat answered 45009. Those
    /// that cannot be resumed now resume at midnight.
    pub(super) async fn resume_waiting(&self, delivery: Delivery) {
        if let Err(error) = self.try_resume(delivery).await {
            debug!(app = %self.app.id, %error, "broadcasts that wait for the quota do not resume before midnight");
        }
    }

    async fn try_resume(&self, delivery: Delivery) -> Result<(), store::Error> {
        let (store, app): (_, &AppId) = (&self.store, &self.app.id);
        for id in store.due_broadcasts(app, self.clock.next_day_ms()).await? {
            let Some(Record { spec, pause: Some(pause), .. }) = store.broadcast(app, &id).await? else { continue };
            let waits = pause.reason == PauseReason::Quota.name() && pause.errcode.is_some_and(is_clearable);
            let Some(resume_ms) = pause.resume_ms.filter(|_| waits) else { continue };
            if Spec::decode(&spec)?.message.delivery == delivery {
                // At this time it would resume by itself. If it no longer waits for that, nothing changes.
                let moved = store.move_broadcast(app, &id, &Move::Resume { due: true }, resume_ms).await?;
                info!(%app, broadcast = %id, ?moved, "the quota stop is over; a broadcast resumes");
            }
        }
        Ok(())
    }
}
