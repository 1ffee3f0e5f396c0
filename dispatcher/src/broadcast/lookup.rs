//! Calls that only read broadcasts. Each reads up to every bucket of the app, so their number at one time is limited.

use std::sync::Arc;

use server::rpc::status::Failure;
use store::broadcast::BroadcastId;
use store::broadcast::records::Record;
use store::broadcast::tallies::{Cursor, Undelivered};
use store::scans::Scan;

use super::api::{BroadcastView, Broadcasts, not_found};
use super::spec::Spec;
use crate::context::AppContext;

/// How many broadcasts of a list are read at once. Each is read with its message, at most a quarter of a megabyte.
const LISTED_AT_ONCE: usize = 8;

impl Broadcasts {
    /// Reads one broadcast with its tally. Calls that wait for the same broadcast share one read.
    pub async fn get(&self, id: &BroadcastId) -> Result<Arc<BroadcastView>, Failure> {
        let (context, key) = (Arc::clone(&self.context), id.clone());
        let turn = context.store.turn(Scan::Tally, &context.app.id);
        let read = async move {
            let record = context.broadcast(&key).await?;
            let tally = context.store.tally(&context.app.id, &record).await?;
            Ok(Arc::new(BroadcastView { spec: Spec::decode(&record.spec)?, record, tally: Some(tally) }))
        };
        self.reads.join(id.clone(), turn, read).await
    }

    /// Lists broadcasts without tallies and values, newest first, starting with those older than `before`.
    pub async fn list(&self, before: Option<&BroadcastId>, count: usize) -> Result<Vec<BroadcastView>, Failure> {
        let AppContext { app, store, .. } = &*self.context;
        let _turn = store.turn(Scan::List, &app.id).await;
        let mut found: Vec<BroadcastView> = Vec::new();
        while found.len() < count {
            let (before, wanted) = (found.last().map(|last| &last.record.id).or(before), count - found.len());
            let records = store.broadcasts(&app.id, before, wanted.min(LISTED_AT_ONCE)).await?;
            if records.is_empty() {
                break;
            }
            for mut record in records {
                let mut spec = Spec::decode(&std::mem::take(&mut record.spec))?;
                Arc::make_mut(&mut spec.message).data.clear();
                found.push(BroadcastView { spec, record, tally: None });
            }
        }
        Ok(found)
    }

    /// Lists users who were not reached, starting at `from`.
    pub async fn undelivered(
        &self,
        id: &BroadcastId,
        from: Option<Cursor>,
        count: usize,
    ) -> Result<(Vec<Undelivered>, Option<Cursor>), Failure> {
        let record = self.context.broadcast(id).await?;
        let AppContext { app, store, .. } = &*self.context;
        let _turn = store.turn(Scan::List, &app.id).await;
        Ok(store.undelivered(&app.id, &record, from, count).await?)
    }
}

impl AppContext {
    pub(super) async fn broadcast(&self, id: &BroadcastId) -> Result<Record, Failure> {
        self.store.broadcast(&self.app.id, id).await?.ok_or_else(not_found)
    }
}
