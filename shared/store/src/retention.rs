//! How long data is kept in Redis. The keys are listed in [`keys`](crate::keys).

use std::time::Duration;

const DAY: u64 = 24 * 3600;

/// A request id and its outcome, by default.
pub const KEEP_REQUESTS: Duration = Duration::from_secs(DAY);

/// A [`OnceKey`](crate::credentials::OnceKey), unless the store is configured with a longer time.
pub const KEEP_ONCE: Duration = Duration::from_secs(DAY);

/// The time of the last message to a user.
pub const KEEP_TOUCH: Duration = Duration::from_secs(7 * DAY);

/// A delivery failure, unless events are accepted for longer.
pub const KEEP_FAILED: Duration = Duration::from_secs(2 * DAY);

/// The count of a sweep, if no newer one replaces it.
pub const KEEP_STOCK: Duration = Duration::from_secs(DAY);

/// The stops of an app. The longest stop lasts until the next day, so this exceeds the end of each.
pub const KEEP_STOPS: Duration = Duration::from_secs(2 * DAY);

/// A broadcast that has not ended. This is far longer than any credential lives.
pub const KEEP_OPEN: Duration = Duration::from_secs(30 * DAY);

/// A broadcast and its undelivered users after its end.
pub const KEEP_ENDED: Duration = Duration::from_secs(7 * DAY);

/// The quota of a day, and the permits of a broadcast.
pub const KEEP_DAY: Duration = Duration::from_secs(2 * DAY);
