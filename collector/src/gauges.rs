//! Keeps the gauges of stock and ledger true, beside all calls: whoever reads the metrics only gets what was counted here.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use shared::credential::AppId;
use shared::outage::Outages;
use shared::store::stock::Stock;
use shared::store::{Error, Store};

use crate::metrics::Gauges;
use crate::service::unix_time;

/// How often the gauges are set, unless the sweep comes round more often.
pub const PERIOD: Duration = Duration::from_secs(60);

/// Sets the gauges once every `period`, until it is dropped. Up to `few` users an app is counted anew when nobody did so
/// within the period, which costs Redis some ten milliseconds; a larger one goes by what the sweep has counted.
pub async fn follow(
    store: Store,
    apps: Arc<[AppId]>,
    gauges: Gauges,
    period: Duration,
    few: u64,
    outages: Outages,
) -> Infallible {
    let (begins, ends) = ("metrics of the stock cannot be read", "metrics of the stock are read again");
    let outage = outages.outage("gauges", begins, ends);
    let mut reading: Vec<_> = apps.iter().map(|app| (app, outage.operation())).collect();
    store.prepared().await;
    loop {
        for (app, reading) in &mut reading {
            // What was counted last stands where Redis is away.
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

/// Nothing for a large app that the first sweep has not gone through.
async fn count(store: &Store, app: &AppId, period: Duration, few: u64) -> Result<Option<Stock>, Error> {
    let (now, swept) = (unix_time(), store.swept_stock(app).await?);
    // Replicas that count in turn find what the first of them has counted.
    let old = |stock: &Stock| now - stock.counted_at >= (period.as_secs() / 2).cast_signed();
    if swept.as_ref().is_none_or(old) && store.users(app).await? <= few {
        return store.stock(app, now, few).await.map(Some);
    }
    Ok(swept)
}
