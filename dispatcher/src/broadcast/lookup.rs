//! Calls that only read broadcasts. Each reads up to every bucket of the app, so their number at one time is limited.

use std::sync::Arc;

use server::rpc::status::Failure;
use store::broadcast::BroadcastId;
use store::broadcast::records::Record;
use store::broadcast::tallies::{Place, Undelivered};
use store::turns::Work;

use super::Ground;
use super::api::{Office, Standing, not_found};
use super::spec::Spec;
use crate::wechat::message::Delivery;

/// How many broadcasts of a list are read at once. Each is read with its message, at most a quarter of a megabyte.
const LISTED_AT_ONCE: usize = 8;

impl Office {
    /// Reads one broadcast with its tally. Calls that wait for the same broadcast share one read.
    pub async fn get(&self, id: &BroadcastId) -> Result<Arc<Standing>, Failure> {
        let (ground, asked) = (Arc::clone(&self.ground), id.clone());
        let turn = ground.store.turn(Work::Tally, &ground.app.id);
        let read = async move {
            let record = ground.record(&asked).await?;
            let tally = ground.store.tally(&ground.app.id, &record).await?;
            Ok(Arc::new(Standing { spec: Spec::decode(&record.spec)?, record, tally: Some(tally) }))
        };
        self.standings.join(id.clone(), turn, read).await
    }

    /// Message generation of a broadcast.
    pub async fn delivery_of(&self, id: &BroadcastId) -> Result<Delivery, Failure> {
        Ok(Spec::decode(&self.record(id).await?.spec)?.message.delivery)
    }

    /// Lists broadcasts without tallies and values, newest first, starting with those older than `before`.
    pub async fn list(&self, before: Option<&BroadcastId>, count: usize) -> Result<Vec<Standing>, Failure> {
        let Ground { app, store, .. } = &*self.ground;
        let _turn = store.turn(Work::List, &app.id).await;
        let mut found: Vec<Standing> = Vec::new();
        while found.len() < count {
            let (before, wanted) = (found.last().map(|last| &last.record.id).or(before), count - found.len());
            let records = store.broadcasts(&app.id, before, wanted.min(LISTED_AT_ONCE)).await?;
            if records.is_empty() {
                break;
            }
            for mut record in records {
                let mut spec = Spec::decode(&std::mem::take(&mut record.spec))?;
                Arc::make_mut(&mut spec.message).data.clear();
                found.push(Standing { spec, record, tally: None });
            }
        }
        Ok(found)
    }

    /// Lists users who were not reached, starting at `from`.
    pub async fn undelivered(
        &self,
        id: &BroadcastId,
        from: Option<Place>,
        count: usize,
    ) -> Result<(Vec<Undelivered>, Option<Place>), Failure> {
        let record = self.record(id).await?;
        let Ground { app, store, .. } = &*self.ground;
        let _turn = store.turn(Work::List, &app.id).await;
        Ok(store.undelivered(&app.id, &record, from, count).await?)
    }

    pub(super) async fn record(&self, id: &BroadcastId) -> Result<Record, Failure> {
        self.ground.record(id).await
    }
}

impl Ground {
    async fn record(&self, id: &BroadcastId) -> Result<Record, Failure> {
        self.store.broadcast(&self.app.id, id).await?.ok_or_else(not_found)
    }
}
