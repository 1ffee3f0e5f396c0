//! Updates the gauges of stock and ledger in the background. A scrape of the metrics returns the values set here and
//! never counts anything itself.

use std::convert::Infallible;
use std::time::Duration;

use domain::AppId;
use server::telemetry::outage::Outages;
use store::stock::Stock;
use store::{Error, Store};

use crate::clock::unix_time;
use crate::metrics::Gauges;
use crate::settings::Settings;

/// Interval at which the gauges are updated, unless the sweep period is shorter.
const INTERVAL: Duration = Duration::from_secs(60);

/// Updates the gauges. A small app is counted again if no replica has counted it within the interval, which costs Redis
/// about ten milliseconds. For a larger app, the counts of the last sweep are used.
pub async fn follow(store: Store, settings: Settings, gauges: Gauges, outages: Outages) -> Infallible {
    let (interval, few) = (INTERVAL.min(settings.sweep_period), settings.small_app_users);
    let outage = outages.outage("gauges", "cannot update the stock metrics", "stock metrics are updated again");
    let mut reading: Vec<_> = settings.apps.iter().map(|app| (app, outage.operation())).collect();
    store.prepared().await;
    loop {
        for (app, reading) in &mut reading {
            // While Redis is unavailable, the gauges keep their last values.
            reading.note(&show(&store, app, &gauges, interval, few).await);
        }
        tokio::time::sleep(interval).await;
    }
}

async fn show(store: &Store, app: &AppId, gauges: &Gauges, interval: Duration, few: u64) -> Result<(), Error> {
    if let Some(stock) = count(store, app, interval, few).await? {
        gauges.show_stock(app, &stock, unix_time());
    }
    gauges.show_ledger(app, &store.ledger(app).await?);
    Ok(())
}

/// The stock of an app; `None` if it has more than `few` users and its first sweep has not finished.
async fn count(store: &Store, app: &AppId, interval: Duration, few: u64) -> Result<Option<Stock>, Error> {
    let (now, swept) = (unix_time(), store.swept_stock(app).await?);
    // Half the interval: a replica reuses what another replica has counted shortly before.
    let old = |stock: &Stock| now - stock.counted_at >= (interval.as_secs() / 2).cast_signed();
    if swept.as_ref().is_none_or(old) && store.users(app).await? <= few {
        return store.stock(app, now, few).await.map(Some);
    }
    Ok(swept)
}
