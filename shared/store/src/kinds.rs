//! The kinds of keys and the Redis type of each. An error that names the kind tells an operator which key is wrong and
//! reveals nothing about a user.

use std::fmt;

/// The Redis type of each kind of key. A kind is the name after the hash tag, by parts: `*` matches any part, and at
/// the end all remaining parts.
const KINDS: [(&str, &str); 34] = [
    ("buckets", "string"),
    ("users", "hash"),
    ("leases", "hash"),
    ("ledger", "hash"),
    ("request:*", "string"),
    ("once:*", "string"),
    ("decided:*", "zset"),
    ("failed:*", "string"),
    ("stock", "string"),
    ("swept", "string"),
    ("broadcast:*:todo", "set"),
    ("broadcast:*:flight", "set"),
    ("broadcast:*:tally", "hash"),
    ("broadcast:*:sent", "set"),
    ("broadcast:*:data", "hash"),
    ("broadcast:*:undelivered", "zset"),
    ("broadcast:*:excluded", "set"),
    ("broadcast:*:open", "set"),
    ("broadcast:*:parts", "set"),
    ("broadcast:*:pace", "hash"),
    ("broadcast:*:tasks", "stream"),
    ("broadcast:*", "hash"),
    ("broadcasts:request:*", "string"),
    ("broadcasts:due", "zset"),
    ("broadcasts:running", "set"),
    ("broadcasts", "zset"),
    ("pace", "hash"),
    ("quota:*:asked", "string"),
    ("quota:*:recounted", "string"),
    ("quota:*:awaited", "string"),
    ("quota:*", "hash"),
    ("token", "string"),
    ("token:*", "string"),
    ("gates", "hash"),
];

/// A kind of key of one bucket or app. It is safe to log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyKind {
    /// The key up to the end of the hash tag.
    start: Box<str>,
    kind: &'static str,
    /// The expected Redis type of such a key.
    pub(crate) holds: &'static str,
}

impl KeyKind {
    pub(crate) fn of(key: &str) -> Option<Self> {
        let name = match key.split_once("}:") {
            Some((_, name)) => name,
            None => key.strip_prefix("formid:")?,
        };
        let (kind, holds) = *KINDS.iter().find(|(kind, _)| fits(kind, name))?;
        Some(Self { start: key[..key.len() - name.len()].into(), kind, holds })
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}{}", self.start, self.kind)
    }
}

fn fits(kind: &str, name: &str) -> bool {
    let (mut kind, mut name) = (kind.split(':').peekable(), name.split(':'));
    while let Some(part) = kind.next() {
        match name.next() {
            Some(_) if part == "*" && kind.peek().is_none() => return true,
            Some(found) if part == "*" || part == found => {}
            _ => return false,
        }
    }
    name.next().is_none()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::ids::{Api, BroadcastId, Budget, MsgId, OnceKey};
    use super::super::keys::{BUCKETS, BroadcastKeys, Bucket, BucketKeys, stops, token, token_forced, token_lock};
    use super::*;
    use domain::{AppId, OpenId, RequestId, TemplateId};

    #[test]
    fn every_key_has_a_kind_that_reveals_no_user() {
        let (app, user) = (AppId::parse("wx1").unwrap(), OpenId::parse("oCANARY").unwrap());
        let (request, broadcast) =
            (RequestId::parse("CANARY:stock").unwrap(), BroadcastId::parse("0192a3b4c5d-01234567").unwrap());
        let (keys, of_app) = (BucketKeys::new(&app, Bucket(7)), BroadcastKeys::new(&app));
        let part = keys.broadcast(&broadcast);
        let expected = [
            ("hash", keys.users()),
            ("hash", keys.leases()),
            ("hash", keys.ledger()),
            ("string", keys.request(&user, &request)),
            ("string", keys.once(OnceKey([7; 16]))),
            ("zset", keys.decided(&user, &TemplateId::parse("t:1").unwrap())),
            ("string", keys.failed(MsgId(7))),
            ("string", keys.stock()),
            ("string", keys.swept()),
            ("zset", keys.broadcasts()),
            ("set", part.todo()),
            ("set", part.flight()),
            ("hash", part.tally()),
            ("set", part.sent()),
            ("hash", part.data()),
            ("zset", part.undelivered()),
            ("set", part.excluded()),
            ("hash", of_app.record(&broadcast)),
            ("set", of_app.open(&broadcast)),
            ("set", of_app.parts(&broadcast)),
            ("hash", of_app.own_pace(&broadcast)),
            ("string", of_app.request(&request)),
            ("zset", of_app.index()),
            ("zset", of_app.due()),
            ("set", of_app.running()),
            ("stream", of_app.tasks(&broadcast)),
            ("hash", of_app.pace()),
            ("hash", of_app.quota(Budget { api: Api::Subscribe, day: 20000 })),
            ("string", of_app.quota_asked(Api::Template)),
            ("string", of_app.quota_recounted(Api::Template)),
            ("string", of_app.quota_awaited(Api::Template)),
            ("string", token(&app)),
            ("string", token_lock(&app)),
            ("string", token_forced(&app)),
            ("hash", stops(&app)),
            ("string", BUCKETS.to_owned()),
        ];
        for (holds, key) in &expected {
            let kind = KeyKind::of(key).unwrap_or_else(|| panic!("no kind matches {key}"));
            assert_eq!(kind.holds, *holds, "{key} was matched to {kind}");
            let shown = kind.to_string();
            assert!(!shown.contains("CANARY") && key.starts_with(shown.split('*').next().unwrap()), "{shown} of {key}");
        }
        let kinds: HashSet<_> = expected.iter().map(|(_, key)| KeyKind::of(key).unwrap().kind).collect();
        // Both keys below `token:` are of one kind.
        assert_eq!(kinds.len(), KINDS.len());
        assert_eq!(KeyKind::of("other"), None);
        assert_eq!(KeyKind::of("formid:{wx1}:other"), None);
    }
}
