//! The Redis calls of a worker, apart from its loop. Each tolerates an outage of Redis.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use domain::OpenId;
use store::broadcast::pages::{PAGE, Page, Ready, Settlement, TakenOver};
use store::broadcast::permits::Permits;
use store::broadcast::tasks::Task;
use store::leases::{Lease, LeaseId};
use tracing::debug;

use super::active::ActiveBroadcast;
use super::completion;

const REDIS_PAUSE: Duration = Duration::from_millis(200);

/// Pause while other messages to the same users are in flight: about as long as a call takes.
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// Longest pause before the leases of others are read again.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Snapshot,
    Pages,
    /// Take over messages that others left in flight or whose outcome is unknown.
    Flight,
    /// Find the leases that a page made for this owner although its reply was lost.
    Recovery(LeaseId),
}

pub(super) enum Fetched {
    Snapshot,
    /// Users of the audience, and whether one of their messages is traced.
    Page {
        page: Page,
        requested_at: Instant,
        traced: bool,
    },
    TakenOver {
        complete: bool,
        found: TakenOver,
        requested_at: Instant,
    },
    Recovered {
        ready: Vec<Ready>,
        requested_at: Instant,
    },
    /// The reply was lost; there may be leases of this owner.
    Lost(LeaseId),
    Nothing,
    /// Data in Redis is unusable until it is repaired.
    Unusable,
}

#[derive(Clone)]
pub(super) struct BucketIo {
    pub(super) active: Arc<ActiveBroadcast>,
    pub(super) task: Task,
}

impl BucketIo {
    /// Also returns the permits of the bucket afterwards. `own` are the users whom this worker already processes.
    pub(super) async fn fetch(
        self,
        stage: Stage,
        size: usize,
        own: HashSet<OpenId>,
        mut permits: Permits,
    ) -> (Fetched, Permits) {
        if matches!(stage, Stage::Pages | Stage::Flight)
            && let Some(left) = self.active.limit.reopens_in()
        {
            // A lease that is taken now could be too old when the limit opens. Its message would be put back each time,
            // and only messages of unknown outcome would be tried, which are found at once.
            tokio::time::sleep(left.min(LONGEST_WAIT)).await;
            return (Fetched::Nothing, permits);
        }
        let fetched = match stage {
            Stage::Snapshot => self.or_nothing(self.snapshot().await).await,
            Stage::Pages => self.page(size, &mut permits).await,
            Stage::Flight => self.or_nothing(self.take_over(&own, &mut permits).await).await,
            Stage::Recovery(owner) => self.or_nothing(self.recover(owner, &own).await).await,
        };
        (fetched, permits)
    }

    async fn snapshot(&self) -> Result<Fetched, store::Error> {
        let Self { active, task } = self;
        while !active.part(task.bucket).snapshot(&active.choice, &active.context.limits.terms).await? {}
        Ok(Fetched::Snapshot)
    }

    async fn page(&self, size: usize, permits: &mut Permits) -> Fetched {
        let Self { active, task } = self;
        let permitted = match active.permit(task.bucket, permits, size).await {
            Ok(0) => return Fetched::Nothing,
            Ok(permitted) => permitted,
            Err(error) => return self.or_nothing(Err(error)).await,
        };
        let (granted, choice, terms) = (permits.granted, &active.choice, &active.context.limits.terms);
        let (owner, requested_at, span) = (LeaseId::random(), Instant::now(), active.trace.page());
        match active.part(task.bucket).take_page(owner, permitted, granted, choice, terms).await {
            Ok(page) => {
                *permits = page.permits;
                let traced = active.trace.page_taken(span, page.ready.len());
                active.context.metrics.loops.broadcasts.succeeded();
                active.context.metrics.ended(&page.endings);
                if page.ready.is_empty() && page.busy > 0 {
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                Fetched::Page { page, requested_at, traced }
            }
            Err(error) if error.is_lasting() => self.or_nothing(Err(error)).await,
            Err(error) => {
                active.trace.page_lost(span, &error);
                active.context.metrics.loops.broadcasts.failed(&error);
                Fetched::Lost(owner)
            }
        }
    }

    /// Nothing has been sent with the leases of such a page.
    async fn recover(&self, owner: LeaseId, own: &HashSet<OpenId>) -> Result<Fetched, store::Error> {
        let Self { active, task } = self;
        let (part, terms) = (active.part(task.bucket), &active.context.limits.terms);
        let mut openids = part.in_flight().await?;
        openids.retain(|openid| !own.contains(openid));
        let (requested_at, mut ready) = (Instant::now(), Vec::new());
        for chunk in openids.chunks(PAGE) {
            let found = part.take_over(owner, chunk, terms).await?;
            active.context.metrics.ended(&found.endings);
            ready.extend(found.ready);
        }
        Ok(Fetched::Recovered { ready, requested_at })
    }

    /// Takes over messages that no worker owns, except those of `own`. Waits a moment if there are none yet.
    async fn take_over(&self, own: &HashSet<OpenId>, permits: &mut Permits) -> Result<Fetched, store::Error> {
        let Self { active, task } = self;
        let (part, terms) = (active.part(task.bucket), &active.context.limits.terms);
        if permits.usable() > 0 {
            // The audience of this bucket is finished: other buckets may need its permits.
            *permits = active.give_back(task.bucket, *permits).await?;
        }
        let mut openids = part.in_flight().await?;
        openids.retain(|openid| !own.contains(openid));
        let (owner, requested_at, mut found) = (LeaseId::random(), Instant::now(), TakenOver::default());
        for chunk in openids.chunks(PAGE) {
            let page = part.take_over(owner, chunk, terms).await?;
            active.context.metrics.ended(&page.endings);
            found.wait = found.wait.into_iter().chain(page.wait).min();
            found.ready.extend(page.ready);
            if found.ready.len() >= PAGE / 2 {
                break;
            }
        }
        if found.ready.is_empty()
            && let Some(wait) = found.wait
        {
            tokio::time::sleep(wait.min(LONGEST_WAIT)).await;
        }
        let mut complete = openids.is_empty() && own.is_empty();
        if complete {
            if active.everyone {
                // A failover of Redis may lose users from the snapshot. Add users again who were not sent to.
                self.snapshot().await?;
            }
            // Another worker may have put users back meanwhile, so one atomic step decides.
            complete = part.close(false).await?;
        }
        Ok(Fetched::TakenOver { complete, found, requested_at })
    }

    /// Ends what is left of a cancelled broadcast in a bucket.
    pub(super) async fn close(&self) -> Result<(), store::Error> {
        let Self { active, task } = self;
        loop {
            if active.part(task.bucket).close(true).await? {
                return Ok(());
            }
            let fetched = self.take_over(&HashSet::new(), &mut Permits::default()).await?;
            let Fetched::TakenOver { found, .. } = fetched else { continue };
            let settlements: Vec<_> = found
                .ready
                .into_iter()
                .map(|ready| {
                    let (lease_end, next) = completion::abandoned();
                    Settlement { openid: ready.openid, owner: ready.lease.id, verdict: lease_end, next, msgid: None }
                })
                .collect();
            for chunk in settlements.chunks(PAGE) {
                self.settle(chunk).await?;
            }
        }
    }

    /// Settles, and retries while Redis does not answer, because only this replica knows WeChat's answers. If it takes too
    /// long, another replica takes over the messages and determines their outcome with the same credentials. Fails only if
    /// retrying does not help.
    pub(super) async fn settle(&self, settlements: &[Settlement]) -> Result<Vec<(OpenId, Lease)>, store::Error> {
        let Self { active, task } = self;
        let (part, terms) = (active.part(task.bucket), &active.context.limits.terms);
        let mut settling = active.context.metrics.loops.settles.operation_for(settlements.len());
        loop {
            let settled = part.settle(settlements, &active.choice, terms).await;
            settling.note(&settled);
            match settled {
                Ok(settled) => {
                    active.context.metrics.ended(&settled.endings);
                    return Ok(settled.next);
                }
                Err(error) if error.is_lasting() => return Err(error),
                Err(_) => {}
            }
            tokio::time::sleep(REDIS_PAUSE).await;
        }
    }

    /// Handles an error of Redis: waits a moment, unless waiting does not help.
    async fn or_nothing(&self, fetched: Result<Fetched, store::Error>) -> Fetched {
        let outage = &self.active.context.metrics.loops.broadcasts;
        match fetched {
            Ok(fetched) => {
                outage.succeeded();
                fetched
            }
            Err(error) if error.is_lasting() => {
                debug!(%error, "the data of a broadcast in Redis is unusable");
                Fetched::Unusable
            }
            Err(error) => {
                outage.failed(&error);
                tokio::time::sleep(REDIS_PAUSE).await;
                Fetched::Nothing
            }
        }
    }
}
