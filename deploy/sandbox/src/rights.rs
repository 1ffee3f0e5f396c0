//! Form ids and prepay ids: whose they are, and how many messages each still allows.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::answer::{No, code};
use crate::books::Counts;
use crate::clock::SECOND;
use crate::users::Users;
use crate::{Refused, Settings};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A form id, from a submitted form: allows one message.
    Form,
    /// A prepay id, from a payment: allows [`Settings::prepay_uses`] messages.
    Prepay,
    /// A grant, from an accepted subscription ([`crate::Granting`]): allows messages of one template. It has no id, so
    /// it cannot be submitted.
    Grant,
}

/// A form or a payment of a user, and the id it produces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submission {
    /// The user. The app knows this openid from its first submission on.
    pub openid: String,
    /// Form or payment.
    pub kind: Kind,
    /// The id to issue. Default: 32 hex digits, with the prefix `wx` for a payment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Number of messages it allows. Default: one for a form, [`Settings::prepay_uses`] for a payment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// Time of the submission, in unix seconds. Default: now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submitted_at: Option<u64>,
}

impl Submission {
    /// A form that is submitted now.
    pub fn form(openid: impl Into<String>) -> Self {
        Self { openid: openid.into(), kind: Kind::Form, id: None, uses: None, submitted_at: None }
    }

    /// A payment that is made now.
    pub fn prepay(openid: impl Into<String>) -> Self {
        Self { kind: Kind::Prepay, ..Self::form(openid) }
    }
}

struct Right {
    openid: Arc<str>,
    kind: Kind,
    submitted_ms: u64,
    uses_left: u32,
    blocked: bool,
}

/// All form ids and prepay ids of one app.
#[derive(Default)]
pub(crate) struct Rights {
    by_id: HashMap<String, Right>,
    pub(crate) ids: Counts,
    pub(crate) uses: Counts,
}

impl Rights {
    /// Records all submissions. If one is invalid, none is recorded.
    pub(crate) fn submit(
        &mut self,
        submissions: Vec<Submission>,
        users: &mut Users,
        now_ms: u64,
        settings: &Settings,
    ) -> Result<Vec<String>, Refused> {
        let mut given = HashSet::new();
        for (index, submission) in submissions.iter().enumerate() {
            self.check(submission, now_ms, &mut given).map_err(|why| Refused::at("submissions", index, why))?;
        }
        self.by_id.reserve(submissions.len());
        Ok(submissions.into_iter().map(|submission| self.issue(submission, users, now_ms, settings)).collect())
    }

    fn check<'a>(&self, new: &'a Submission, now_ms: u64, given: &mut HashSet<&'a str>) -> Result<(), &'static str> {
        if new.openid.is_empty() {
            return Err("openid is empty");
        }
        if new.kind == Kind::Grant {
            return Err("a grant cannot be submitted: use POST /sandbox/grants");
        }
        if new.uses == Some(0) {
            return Err("uses must be at least 1");
        }
        // Tolerates clocks that are a day off. A time further ahead was most likely given in milliseconds.
        if new.submitted_at.is_some_and(|at| at > now_ms / SECOND + 24 * 3600) {
            return Err("submitted_at is in the future (it is in unix seconds)");
        }
        match new.id.as_deref() {
            Some("") => Err("id is empty"),
            Some(id) if self.by_id.contains_key(id) || !given.insert(id) => Err("this id already exists"),
            _ => Ok(()),
        }
    }

    fn issue(&mut self, new: Submission, users: &mut Users, now_ms: u64, settings: &Settings) -> String {
        let openid = users.meet(&new.openid);
        let (prefix, uses) = match new.kind {
            Kind::Form | Kind::Grant => ("", 1),
            Kind::Prepay => ("wx", settings.prepay_uses),
        };
        let id = new.id.unwrap_or_else(|| format!("{prefix}{:032x}", rand::random::<u128>()));
        let uses_left = new.uses.unwrap_or(uses);
        let submitted_ms = new.submitted_at.map_or(now_ms, |seconds| seconds.saturating_mul(SECOND));
        self.by_id.insert(id.clone(), Right { openid, kind: new.kind, submitted_ms, uses_left, blocked: false });
        self.ids.issue(1);
        self.uses.issue(u64::from(uses_left));
        id
    }

    /// Blocks an id: sends with it answer 41031. Returns false if the id does not exist.
    pub(crate) fn block(&mut self, id: &str) -> bool {
        self.by_id.get_mut(id).map(|right| right.blocked = true).is_some()
    }

    /// Takes one use of the id. Fails if it has none.
    pub(crate) fn spend(&mut self, id: &str, openid: &str, now_ms: u64, settings: &Settings) -> Result<Kind, No> {
        let right = self.by_id.get_mut(id).filter(|right| &*right.openid == openid);
        let right = right.ok_or_else(|| No::code(code::FORM_ID_WRONG))?;
        if right.blocked {
            return Err(No::code(code::FORM_ID_BLOCKED));
        }
        let age_ms = now_ms.saturating_sub(right.submitted_ms);
        let too_old = age_ms >= settings.right_life_seconds.saturating_mul(SECOND);
        let too_young = right.kind == Kind::Prepay && age_ms < settings.young_prepay_seconds.saturating_mul(SECOND);
        if too_old || too_young {
            return Err(No::code(code::FORM_ID_WRONG));
        }
        if right.uses_left == 0 {
            return Err(No::code(code::FORM_ID_USED));
        }
        right.uses_left -= 1;
        self.uses.spend();
        if right.uses_left == 0 {
            self.ids.spend();
        }
        Ok(right.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600 * SECOND;
    const NOW: u64 = 1_767_283_200 * SECOND;

    fn issued(submission: Submission) -> (Rights, String) {
        let mut rights = Rights::default();
        let ids = rights.submit(vec![submission], &mut Users::default(), NOW, &Settings::default()).unwrap();
        (rights, ids[0].clone())
    }

    fn code_of(outcome: Result<Kind, No>) -> i32 {
        outcome.map_or_else(|no| no.code, |_| code::OK)
    }

    #[test]
    fn ids_have_the_format_of_wechat() {
        let hex = |id: &str| id.len() == 32 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        assert!(hex(&issued(Submission::form("u")).1));
        assert!(issued(Submission::prepay("u")).1.strip_prefix("wx").is_some_and(hex));
    }

    #[test]
    fn id_expires_after_seven_days_to_the_millisecond() {
        let settings = Settings::default();
        let (mut rights, id) = issued(Submission { uses: Some(2), ..Submission::form("u") });
        assert_eq!(code_of(rights.spend(&id, "u", NOW + 7 * DAY - 1, &settings)), code::OK);
        assert_eq!(code_of(rights.spend(&id, "u", NOW + 7 * DAY, &settings)), code::FORM_ID_WRONG);
    }

    #[test]
    fn payment_allows_three_messages_and_the_counts_add_up() {
        let settings = Settings::default();
        let (mut rights, id) = issued(Submission::prepay("u"));
        let codes: Vec<i32> = (0..4).map(|_| code_of(rights.spend(&id, "u", NOW, &settings))).collect();
        assert_eq!(codes, [code::OK, code::OK, code::OK, code::FORM_ID_USED]);
        assert_eq!(rights.uses, Counts { issued: 3, spent: 3, left: 0 });
        assert_eq!(rights.ids, Counts { issued: 1, spent: 1, left: 0 });
    }

    #[test]
    fn young_payment_is_unknown_but_a_young_form_is_not() {
        let settings = Settings { young_prepay_seconds: 10, ..Settings::default() };
        let (mut rights, id) = issued(Submission::prepay("u"));
        assert_eq!(code_of(rights.spend(&id, "u", NOW + 9_999, &settings)), code::FORM_ID_WRONG);
        assert_eq!(code_of(rights.spend(&id, "u", NOW + 10_000, &settings)), code::OK);
        let (mut rights, id) = issued(Submission::form("u"));
        assert_eq!(code_of(rights.spend(&id, "u", NOW, &settings)), code::OK);
    }

    #[test]
    fn id_of_another_user_is_refused() {
        let (mut rights, id) = issued(Submission::form("u"));
        assert_eq!(code_of(rights.spend(&id, "v", NOW, &Settings::default())), code::FORM_ID_WRONG);
        assert_eq!(code_of(rights.spend(&id, "u", NOW, &Settings::default())), code::OK);
    }

    #[test]
    fn one_invalid_submission_refuses_them_all() {
        let mut rights = Rights::default();
        let with_id = |id: &str| Submission { id: Some(id.into()), ..Submission::form("u") };
        for wrong in [
            Submission::form(""),
            with_id(""),
            with_id("first"),
            Submission { uses: Some(0), ..Submission::form("u") },
            Submission { submitted_at: Some(NOW), ..Submission::form("u") },
            Submission { kind: Kind::Grant, ..Submission::form("u") },
        ] {
            let mut users = Users::default();
            let submissions = vec![with_id("first"), wrong];
            let refused = rights.submit(submissions, &mut users, NOW, &Settings::default()).unwrap_err();
            assert!(refused.to_string().contains("submissions[1]"), "{refused}");
            assert_eq!((rights.ids.issued, users.know("u")), (0, false));
        }
    }
}
