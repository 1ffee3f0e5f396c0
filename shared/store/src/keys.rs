//! The names of all keys in Redis. No other module builds key names.
//!
//! Every key of users carries the hash tag `{app:bucket}`. All keys of one script are therefore in one slot of a Redis
//! Cluster, and one app still spreads over the whole cluster. The bound of each key:
//!
//! | key | bound |
//! |---|---|
//! | `formid:buckets` | one number |
//! | `formid:{probeN}` | only read, never written |
//! | `..:users` | one field per user, with at most the cap of records plus two; swept every hour |
//! | `..:leases` | messages in flight or with unknown outcome; the reaper ends each |
//! | `..:ledger` | eight counters |
//! | `..:request:ID` | expires, by default after 24 h |
//! | `..:decided:USER:TEMPLATE` | at most 128 members; expires after an hour, after a rejection as `..:once:KEY` |
//! | `..:once:KEY`, `..:failed:MSGID` | expire after one day and two days, or later if older events are still accepted |
//! | `..:stock`, `..:swept` | expire |
//! | `..:broadcast:ID:*` | a broadcast's part in the bucket: audience, in flight, tally, undelivered, permits, msgids of an hour; expire |
//! | `..:broadcasts` | broadcasts with a part in the bucket; trimmed when one is added, and expires |
//! | `formid:{app}:token`, `..:token:lock`, `..:token:forced`, `..:gates` | expire |
//! | `formid:{app}:broadcast:ID`, `..:broadcast:ID:*`, `..:broadcasts:request:ID` | expire |
//! | `formid:{app}:broadcasts` | expires some time after the last broadcast was stored; trimmed when broadcasts are listed |
//! | `formid:{app}:broadcasts:due` | broadcasts that wait for a time; an entry without a broadcast is removed by its move |
//! | `formid:{app}:broadcasts:running` | broadcasts with tasks in their stream; an entry without a broadcast is removed when it is looked up |
//! | `formid:{app}:pace`, `..:quota:API:DAY`, `..:quota:API:asked`, `..:quota:API:recounted`, `..:quota:API:awaited` | expire |

use super::ids::{Api, BroadcastId, Budget, MsgId, OnceKey};
use domain::{AppId, OpenId, RequestId, TemplateId};

/// Holds the number of buckets that this Redis was first used with. The bucket of a user must never change.
pub const BUCKETS: &str = "formid:buckets";

/// One of the buckets that the users of an app are spread over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bucket(pub u16);

impl Bucket {
    /// The bucket of a user among `count` buckets: FNV-1a over the openid, folded. It is part of the stored format.
    pub fn of(openid: &OpenId, count: u16) -> Self {
        let hash = fnv1a(openid.as_str());
        Self(((hash ^ (hash >> 32)) % u64::from(count)) as u16)
    }
}

#[derive(Debug, Clone)]
pub struct BucketKeys {
    tag: String,
}

impl BucketKeys {
    pub fn new(app: &AppId, bucket: Bucket) -> Self {
        Self { tag: format!("formid:{{{app}:{}}}:", bucket.0) }
    }

    fn key(&self, name: &str) -> String {
        let mut key = String::with_capacity(self.tag.len() + name.len());
        key.push_str(&self.tag);
        key.push_str(name);
        key
    }

    /// Hash: openid to the user's packed records.
    pub fn users(&self) -> String {
        self.key("users")
    }

    /// Hash: name of a lease to packed lease.
    pub fn leases(&self) -> String {
        self.key("leases")
    }

    /// Hash: number of uses collected, consumed (of these: unknown), discarded, expired, dropped, erased.
    pub fn ledger(&self) -> String {
        self.key("ledger")
    }

    /// String: the outcome of a request.
    pub fn request(&self, openid: &OpenId, request: &RequestId) -> String {
        self.key(&format!("request:{}", request_name(openid, request)))
    }

    /// String: dedup key; it exists while repetitions of a grant or an event are ignored.
    pub fn once(&self, key: OnceKey) -> String {
        let hex: String = key.0.iter().map(|byte| format!("{byte:02x}")).collect();
        self.key(&format!("once:{hex}"))
    }

    /// Sorted set: when a user last rejected a template, and when the user accepted it since, see `collect.lua` and
    /// `void.lua`. The openid is hashed as in [`request_name`].
    pub fn decided(&self, openid: &OpenId, template: &TemplateId) -> String {
        self.key(&format!("decided:{:016x}:{}", fnv1a(openid.as_str()), template.as_str()))
    }

    /// String: the delivery failure that WeChat reported for this message.
    pub fn failed(&self, message: MsgId) -> String {
        self.key(&format!("failed:{}", message.0))
    }

    /// Sorted set: the broadcasts with a part in this bucket, by the time when that part expires.
    pub fn broadcasts(&self) -> String {
        self.key("broadcasts")
    }

    pub fn broadcast(&self, broadcast: &BroadcastId) -> PartKeys {
        PartKeys { tag: self.key(&format!("broadcast:{broadcast}:")) }
    }

    /// String: the count of the last sweep.
    pub fn stock(&self) -> String {
        self.key("stock")
    }

    /// String: exists while the last sweep of the bucket is recent.
    pub fn swept(&self) -> String {
        self.key("swept")
    }
}

/// The keys of one broadcast in one bucket of its app.
#[derive(Debug, Clone)]
pub struct PartKeys {
    tag: String,
}

impl PartKeys {
    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.tag)
    }

    /// Set: users of the audience whose message was not sent yet.
    pub fn todo(&self) -> String {
        self.key("todo")
    }

    /// Set: users whose message is in flight or has an unknown outcome.
    pub fn flight(&self) -> String {
        self.key("flight")
    }

    /// Hash: size of the audience, number of users by ending, progress of the snapshot, and whether sending has begun.
    pub fn tally(&self) -> String {
        self.key("tally")
    }

    /// Set: WeChat's ids of recently delivered messages.
    pub fn sent(&self) -> String {
        self.key("sent")
    }

    /// Hash: the permits of the bucket, see `head/permits.lua`.
    pub fn permits(&self) -> String {
        self.key("permits")
    }

    /// Hash: openid to the message data of that user.
    pub fn data(&self) -> String {
        self.key("data")
    }

    /// Sorted set, by member: undelivered users with the reason.
    pub fn undelivered(&self) -> String {
        self.key("undelivered")
    }

    /// Set: users who are excluded.
    pub fn excluded(&self) -> String {
        self.key("excluded")
    }
}

/// The keys of all broadcasts of one app, which are in one slot.
#[derive(Debug, Clone)]
pub struct BroadcastKeys {
    tag: String,
}

impl BroadcastKeys {
    pub fn new(app: &AppId) -> Self {
        Self { tag: format!("formid:{{{app}}}:") }
    }

    /// Hash: the specification and the state of a broadcast.
    pub fn record(&self, broadcast: &BroadcastId) -> String {
        format!("{}broadcast:{broadcast}", self.tag)
    }

    /// Set: the buckets that are not finished.
    pub fn open(&self, broadcast: &BroadcastId) -> String {
        format!("{}broadcast:{broadcast}:open", self.tag)
    }

    /// Set: the buckets that hold a part of the recipient list.
    pub fn parts(&self, broadcast: &BroadcastId) -> String {
        format!("{}broadcast:{broadcast}:parts", self.tag)
    }

    /// Hash: the broadcast's own token bucket.
    pub fn own_pace(&self, broadcast: &BroadcastId) -> String {
        format!("{}broadcast:{broadcast}:pace", self.tag)
    }

    /// Hash: the permits that each bucket was granted, see `permit.lua`.
    pub fn permits(&self, broadcast: &BroadcastId) -> String {
        format!("{}broadcast:{broadcast}:permits", self.tag)
    }

    /// String: the broadcast that a request created.
    pub fn request(&self, request: &RequestId) -> String {
        format!("{}broadcasts:request:{}", self.tag, request.as_str())
    }

    /// Sorted set, by member: all broadcasts of the app.
    pub fn index(&self) -> String {
        format!("{}broadcasts", self.tag)
    }

    /// Sorted set: broadcasts that start or resume at a set time, by that time.
    pub fn due(&self) -> String {
        format!("{}broadcasts:due", self.tag)
    }

    /// Set: broadcasts with tasks in their stream.
    pub fn running(&self) -> String {
        format!("{}broadcasts:running", self.tag)
    }

    /// Stream: the tasks of a broadcast, one entry for each bucket.
    pub fn tasks(&self, broadcast: &BroadcastId) -> String {
        format!("{}broadcast:{broadcast}:tasks", self.tag)
    }

    /// Hash: the token buckets of the app.
    pub fn pace(&self) -> String {
        format!("{}pace", self.tag)
    }

    /// Hash: number of messages sent by an API on a day, and the limit.
    pub fn quota(&self, Budget { api, day }: Budget) -> String {
        format!("{}quota:{}:{day}", self.tag, api.name())
    }

    /// String: exists while the last quota query to WeChat is recent.
    pub fn quota_asked(&self, api: Api) -> String {
        format!("{}quota:{}:asked", self.tag, api.name())
    }

    /// String: exists while the last additional quota query is recent. That query is made when an exact number is
    /// needed.
    pub fn quota_recounted(&self, api: Api) -> String {
        format!("{}quota:{}:recounted", self.tag, api.name())
    }

    /// String: exists while the last quota query of an app that is stopped for its quota is recent.
    pub fn quota_awaited(&self, api: Api) -> String {
        format!("{}quota:{}:awaited", self.tag, api.name())
    }
}

/// The name of a request within its bucket. It includes the openid, because two users may use the same request id. The
/// openid is hashed, because key names appear in operators' tools and outlive the user's data.
pub fn request_name(openid: &OpenId, request: &RequestId) -> String {
    format!("{:016x}:{}", fnv1a(openid.as_str()), request.as_str())
}

/// FNV-1a, 64 bits. Key names need a hash that is the same on every machine and in every release.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// String: the access token of an app and its expiry.
pub fn token(app: &AppId) -> String {
    format!("formid:{{{app}}}:token")
}

/// String: the replica that is fetching a token for the app.
pub fn token_lock(app: &AppId) -> String {
    format!("formid:{{{app}}}:token:lock")
}

/// String: exists while no replica may force WeChat to issue a new token.
pub fn token_forced(app: &AppId) -> String {
    format!("formid:{{{app}}}:token:forced")
}

/// Keys that are never written. They are spread over a cluster, to check whether it answers for any of them.
pub fn probe(number: usize) -> String {
    format!("formid:{{probe{number}}}")
}

/// Hash: the app stops: what WeChat refuses for the app at present, and until when.
pub fn stops(app: &AppId) -> String {
    format!("formid:{{{app}}}:gates")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// CRC16 as Redis Cluster computes it over the hash tag of a key.
    fn slot(key: &str) -> u16 {
        let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or(key, |(tag, _)| tag);
        let crc = tag.bytes().fold(0_u16, |crc, byte| {
            (0..8).fold(
                crc ^ (u16::from(byte) << 8),
                |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 },
            )
        });
        crc % 16384
    }

    #[test]
    fn keys_of_a_bucket_share_a_slot_and_buckets_spread_over_a_cluster() {
        let app = AppId::parse("wx0123456789abcdef").unwrap();
        let user = OpenId::parse("oUser{1}").unwrap();
        let request = RequestId::parse("{other}").unwrap();
        let mut slots = HashSet::new();
        let broadcast = BroadcastId::parse("0192a3b4c5d-01234567").unwrap();
        for bucket in 0..512 {
            let keys = BucketKeys::new(&app, Bucket(bucket));
            let mut names =
                vec![keys.leases(), keys.ledger(), keys.request(&user, &request), keys.stock(), keys.swept()];
            names.extend([keys.once(OnceKey([7; 16])), keys.failed(MsgId(u64::MAX))]);
            names.push(keys.decided(&user, &TemplateId::parse("{t}").unwrap()));
            let part = keys.broadcast(&broadcast);
            names.extend([part.todo(), part.flight(), part.tally(), part.data(), part.undelivered(), part.excluded()]);
            names.extend([part.sent(), part.permits(), keys.broadcasts()]);
            assert!(names.iter().all(|name| slot(name) == slot(&keys.users())));
            slots.insert(slot(&keys.users()));
        }
        assert!(slots.len() > 480, "{} slots", slots.len());
        assert_eq!(slot("123456789"), 0x31C3, "the check value of CRC16/XMODEM");
        let keys = BroadcastKeys::new(&app);
        let names = [
            keys.open(&broadcast),
            keys.parts(&broadcast),
            keys.own_pace(&broadcast),
            keys.permits(&broadcast),
            keys.request(&request),
            keys.index(),
            keys.due(),
            keys.running(),
            keys.tasks(&broadcast),
            keys.pace(),
            keys.quota(Budget { api: Api::Subscribe, day: 20000 }),
            keys.quota_asked(Api::Template),
            keys.quota_recounted(Api::Template),
            keys.quota_awaited(Api::Template),
        ];
        assert!(names.iter().all(|name| slot(name) == slot(&keys.record(&broadcast))));
    }

    #[test]
    fn bucket_of_a_user_is_the_same_in_every_release() {
        let buckets =
            ["o1", "oUser1", "ohWOJ5YSdQkXxrpjpbkBS7GU6iGQ"].map(|id| Bucket::of(&OpenId::parse(id).unwrap(), 512).0);
        assert_eq!(buckets, [506, 326, 479]);
    }

    #[test]
    fn users_spread_evenly_over_the_buckets() {
        let mut counts = vec![0_u32; 512];
        for user in 0..51_200 {
            counts[usize::from(Bucket::of(&OpenId::parse(format!("oUSER{user:023}")).unwrap(), 512).0)] += 1;
        }
        assert!(counts.iter().all(|count| (50..170).contains(count)), "{:?}", counts.iter().max());
    }
}
