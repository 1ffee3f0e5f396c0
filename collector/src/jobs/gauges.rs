//! Updates the gauges of stock and ledger in the background. A scrape of the metrics returns the values set here and
//! never counts anything itself.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use domain::AppId;
use server::telemetry::outage::Outages;
use store::stock::Stock;
use store::{Error, Store};

use crate::metrics::Gauges;
use crate::rpc::unix_time;

/// Period of updating the gauges, unless the sweep period is shorter.
pub const PERIOD: Duration = Duration::from_secs(60);

/// Updates the gauges once every `period`, until it is dropped. An app with up to `few` users is counted again if no
/// replica has counted it within the period, which costs Redis about ten milliseconds. For a larger app, the counts of
/// the last sweep are used.
pub async fn follow(
    store: Store,
    apps: Arc<[AppId]>,
    gauges: Gauges,
    period: Duration,
    few: u64,
    outages: Outages,
) -> Infallible {
    let (begins, ends) = ("cannot update the stock metrics", "stock metrics are updated again");
    let outage = outages.outage("gauges", begins, ends);
    let mut reading: Vec<_> = apps.iter().map(|app| (app, outage.operation())).collect();
    store.prepared().await;
    loop {
        for (app, reading) in &mut reading {
            // While Redis is unavailable, the gauges keep their last values.
            reading.note(&show(&store, app, &gauges, period, few).await);
        }
        tokio::time::sleep(period).await;
    }
}

async fn show(store: &Store, app: &AppId, gauges: &Gauges, period: Duration, few: u64) -> Result<(), Error> {
    if let Some(stock) = count(store, app, period, few).await? {
        gauges.show_stock(app, &stock, unix_time());
    }
    gauges.show_ledger(app, &store.ledger(app).await?);
    Ok(())
}

/// The stock of an app; `None` for a large app whose first sweep has not finished.
async fn count(store: &Store, app: &AppId, period: Duration, few: u64) -> Result<Option<Stock>, Error> {
    let (now, swept) = (unix_time(), store.swept_stock(app).await?);
    // Half the period: a replica reuses what another replica has counted shortly before.
    let old = |stock: &Stock| now - stock.counted_at >= (period.as_secs() / 2).cast_signed();
    if swept.as_ref().is_none_or(old) && store.users(app).await? <= few {
        return store.stock(app, now, few).await.map(Some);
    }
    Ok(swept)
}
