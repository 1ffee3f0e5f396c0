//! One mini program: its secret, and everything that a send changes, under one lock.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use crate::answer::{No, code};
use crate::api::Api;
use crate::book::{Book, Sent};
use crate::clock::SECOND;
use crate::events::{Event, News};
use crate::grants::Grants;
use crate::kept::Kept;
use crate::lock::lock;
use crate::message::{Draft, Fingerprints, More};
use crate::msgids::MsgIds;
use crate::pace::Pace;
use crate::rights::{Kind, Rights};
use crate::turns::{Turn, Turns};
use crate::users::Users;
use crate::{Books, Settings, clock};

pub(crate) struct App {
    pub(crate) id: String,
    secret: Mutex<String>,
    ledger: Mutex<Ledger>,
    pub(crate) turns: Turns,
    events: Mutex<Kept<Event>>,
}

/// Credentials and book share one lock, so that no reader sees a credential spent without its delivery, or the reverse.
/// The lock is held for microseconds and never across an await.
pub(crate) struct Ledger {
    pub(crate) users: Users,
    pub(crate) rights: Rights,
    pub(crate) grants: Grants,
    pub(crate) book: Book,
    paces: [Pace; Api::ALL.len()],
    /// When a message was last accepted, by its fingerprint. Only while [`Settings::same_message_seconds`] is set.
    accepted: HashMap<u128, u64>,
    /// The month, and how often the quota was cleared in it.
    cleared: (u64, u32),
}

/// How often WeChat clears the quota of an app in a month.
const CLEARINGS_A_MONTH: u32 = 10;

impl Ledger {
    pub(crate) fn pace(&mut self, api: Api) -> &mut Pace {
        &mut self.paces[api as usize]
    }

    /// Fails if the message repeats one that was accepted not long ago.
    fn check_repeat(&mut self, fingerprint: u128, now_ms: u64, settings: &Settings) -> Result<(), No> {
        let ms = settings.same_message_seconds.saturating_mul(SECOND);
        let repeats = self.accepted.get(&fingerprint).is_some_and(|at| now_ms.saturating_sub(*at) < ms);
        if repeats { Err(No::code(code::SAME_MESSAGE)) } else { Ok(()) }
    }

    fn note_accepted(&mut self, fingerprint: u128, now_ms: u64, settings: &Settings) {
        let ms = settings.same_message_seconds.saturating_mul(SECOND);
        // Now and then, so that the old ones do not accumulate.
        if self.accepted.len().is_multiple_of(4096) {
            self.accepted.retain(|_, at| now_ms.saturating_sub(*at) < ms);
        }
        if ms > 0 {
            self.accepted.insert(fingerprint, now_ms);
        }
    }

    /// Resets the daily quotas of all endpoints.
    pub(crate) fn clear_quota(&mut self, now_ms: u64) -> Result<(), No> {
        let month = clock::month(now_ms);
        if self.cleared.0 != month {
            self.cleared = (month, 0);
        }
        if self.cleared.1 == CLEARINGS_A_MONTH {
            return Err(No::code(code::CLEARED_TOO_OFTEN));
        }
        self.cleared.1 += 1;
        self.paces.iter_mut().for_each(Pace::reset_day);
        Ok(())
    }
}

/// A send that was read but not decided yet.
pub(crate) struct Sending {
    pub(crate) api: Api,
    pub(crate) draft: Result<Draft, No>,
    pub(crate) turn: Turn,
}

/// Further input for the decision about a send, in addition to the app's ledger.
pub(crate) struct Means<'a> {
    pub(crate) prints: &'a Fingerprints,
    pub(crate) msgids: &'a MsgIds,
    pub(crate) now_ms: u64,
    pub(crate) settings: &'a Settings,
}

#[derive(Debug)]
pub(crate) enum Accepted {
    Template,
    /// Includes the event to post and the user it is about.
    Subscribe {
        msgid: u64,
        openid: String,
        news: News,
    },
}

impl App {
    pub(crate) fn new(id: &str, secret: &str) -> Self {
        let ledger = Ledger {
            users: Users::default(),
            rights: Rights::default(),
            grants: Grants::default(),
            book: Book::new(Some(id.to_owned())),
            paces: Default::default(),
            accepted: HashMap::new(),
            cleared: Default::default(),
        };
        Self {
            id: id.to_owned(),
            secret: Mutex::new(secret.to_owned()),
            ledger: Mutex::new(ledger),
            turns: Turns::default(),
            events: Mutex::new(Kept::new()),
        }
    }

    pub(crate) fn has_secret(&self, secret: &str) -> bool {
        *lock(&self.secret) == secret
    }

    pub(crate) fn set_secret(&self, secret: &str) {
        secret.clone_into(&mut lock(&self.secret));
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    /// The events of the app, posted or not. They have their own lock: an event is written after the change it reports.
    pub(crate) fn events(&self) -> MutexGuard<'_, Kept<Event>> {
        lock(&self.events)
    }

    pub(crate) fn sums(&self) -> Books {
        let ledger = self.ledger();
        let (ids, uses, grants) = (ledger.rights.ids, ledger.rights.uses, ledger.grants.counts);
        Books { ids, uses, grants, ..ledger.book.sums() }
    }

    /// Decides a send with a valid token, and records it. The checks run in WeChat's order.
    pub(crate) fn send(&self, sending: Sending, means: &Means<'_>) -> Result<Accepted, No> {
        let api = sending.api;
        let outcome = self.decide(sending, means);
        if let Err(no) = &outcome {
            self.ledger().book.answered(api, no.code);
        }
        outcome
    }

    fn decide(&self, sending: Sending, means: &Means<'_>) -> Result<Accepted, No> {
        let Means { prints, msgids, now_ms, settings } = *means;
        // Held to the end: the user's next turn begins when this send is recorded.
        let Sending { api, draft, turn } = sending;
        let limits = settings.limits(api);
        let draft = {
            let mut ledger = self.ledger();
            if limits.answer != code::OK {
                return Err(No::code(limits.answer));
            }
            ledger.pace(api).step(now_ms, &limits)?;
            let draft = draft?;
            if !draft.touser.as_deref().is_some_and(|openid| ledger.users.know(openid)) {
                return Err(No::code(code::OPENID_UNKNOWN));
            }
            draft
        };
        if matches!(turn, Turn::Taken) {
            return Err(No::code(code::USER_BUSY));
        }
        // Outside the lock, because this is most of the work. A known user stays known.
        let message = draft.check(settings)?;
        let fingerprint = prints.of(&message);

        let mut ledger = self.ledger();
        ledger.check_repeat(fingerprint, now_ms, settings)?;
        if let More::Template { form_id, .. } = &message.more {
            let kind = ledger.rights.spend(form_id, &message.openid, now_ms, settings)?;
            ledger.note_accepted(fingerprint, now_ms, settings);
            let sent = Sent { message, fingerprint, kind, msgid: None };
            ledger.book.deliver(&self.id, sent, now_ms, settings);
            return Ok(Accepted::Template);
        }
        ledger.grants.spend(&message.openid, &message.template_id)?;
        ledger.note_accepted(fingerprint, now_ms, settings);
        let msgid = msgids.next();
        let (openid, template_id) = (message.openid.clone(), message.template_id.clone());
        let failure = settings.sent_failure(&self.id, &openid, &template_id);
        match failure {
            Some(_) => ledger.book.undelivered(),
            None => {
                let sent = Sent { message, fingerprint, kind: Kind::Grant, msgid: Some(msgid) };
                ledger.book.deliver(&self.id, sent, now_ms, settings);
            }
        }
        let (error_code, error_status) =
            failure.map_or((code::OK, "success"), |failure| (failure.error_code, &failure.error_status));
        let news = News::Sent { template_id, msgid, error_code, error_status: error_status.to_owned() };
        Ok(Accepted::Subscribe { msgid, openid, news })
    }
}
