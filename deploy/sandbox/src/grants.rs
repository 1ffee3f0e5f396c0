//! Grants: how many messages of which template the app may send to which user.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Refused;
use crate::answer::{No, code};
use crate::books::GrantCounts;
use crate::users::Users;

/// Most accepts in one call. Each gives an event.
const MOST_ACCEPTS: u64 = 1_000_000;

/// A user and a template of the app.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subscription {
    /// The user. The app knows this openid from its first answer to a pop-up on.
    pub openid: String,
    pub template_id: String,
}

impl Subscription {
    pub fn new(openid: impl Into<String>, template_id: impl Into<String>) -> Self {
        Self { openid: openid.into(), template_id: template_id.into() }
    }
}

/// A user's accepted request in the mini program's pop-up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Granting {
    /// The user. The app knows this openid from its first answer to a pop-up on.
    pub openid: String,
    pub template_id: String,
    /// How often the user accepted, once in each pop-up. Each acceptance allows one more message. Default: 1.
    #[serde(default = "once")]
    pub count: u32,
    /// A long-term grant: allows any number of messages. Excludes a count.
    #[serde(default)]
    pub long_term: bool,
}

fn once() -> u32 {
    1
}

impl Granting {
    /// A grant for one message.
    pub fn new(openid: impl Into<String>, template_id: impl Into<String>) -> Self {
        Self { openid: openid.into(), template_id: template_id.into(), count: once(), long_term: false }
    }
}

#[derive(Default)]
struct Balance {
    left: u64,
    long_term: bool,
}

/// All grants of one app. They have no ids and do not expire.
#[derive(Default)]
pub(crate) struct Grants {
    /// By template, then by user: an app has few templates.
    by_template: HashMap<String, HashMap<Arc<str>, Balance>>,
    pub(crate) counts: GrantCounts,
}

impl Grants {
    /// Records all grants. If one is invalid, none is recorded.
    pub(crate) fn accept(&mut self, granted: &[Granting], users: &mut Users) -> Result<(), Refused> {
        for (index, new) in granted.iter().enumerate() {
            let wrong = check(&new.openid, &new.template_id).err().or(match new {
                Granting { count: 0, .. } => Some("count must be at least 1"),
                Granting { long_term: true, count: 2.., .. } => Some("a long-term grant must not have a count"),
                _ => None,
            });
            wrong.map_or(Ok(()), |why| Err(Refused::at("grants", index, why)))?;
        }
        if granted.iter().map(|new| u64::from(new.count)).sum::<u64>() > MOST_ACCEPTS {
            return Err(Refused::invalid(format!("the counts must add up to at most {MOST_ACCEPTS}")));
        }
        for new in granted {
            let openid = users.meet(&new.openid);
            let balance = self.by_template.entry(new.template_id.clone()).or_default().entry(openid).or_default();
            if new.long_term {
                self.counts.long_term += u64::from(!balance.long_term);
                balance.long_term = true;
            } else {
                balance.left += u64::from(new.count);
                self.counts.accepted += u64::from(new.count);
                self.counts.left += u64::from(new.count);
            }
        }
        Ok(())
    }

    /// Revokes all that these users granted for these templates. If one entry is invalid, none is applied. Errors name
    /// the list by `list`.
    pub(crate) fn void(&mut self, list: &str, ended: &[Subscription], users: &mut Users) -> Result<(), Refused> {
        for (index, one) in ended.iter().enumerate() {
            check(&one.openid, &one.template_id).map_err(|why| Refused::at(list, index, why))?;
        }
        for one in ended {
            users.meet(&one.openid);
            let balance =
                self.by_template.get_mut(&one.template_id).and_then(|users| users.remove(one.openid.as_str()));
            let Balance { left, long_term } = balance.unwrap_or_default();
            self.counts.left -= left;
            self.counts.voided += left;
            self.counts.long_term -= u64::from(long_term);
        }
        Ok(())
    }

    /// Spends one message of the grant. Fails if none is left. A long-term grant is used first, and is not used up.
    pub(crate) fn spend(&mut self, openid: &str, template_id: &str) -> Result<(), No> {
        let balance = self.by_template.get_mut(template_id).and_then(|users| users.get_mut(openid));
        match balance {
            Some(Balance { long_term: true, .. }) => self.counts.long_term_spent += 1,
            Some(Balance { left, .. }) if *left > 0 => {
                *left -= 1;
                self.counts.left -= 1;
                self.counts.spent += 1;
            }
            _ => return Err(No::code(code::NO_GRANT)),
        }
        Ok(())
    }
}

/// Events contain both texts, and XML cannot represent control characters.
pub(crate) fn check(openid: &str, template_id: &str) -> Result<(), &'static str> {
    match (openid, template_id) {
        ("", _) => Err("openid is empty"),
        (_, "") => Err("template_id is empty"),
        _ if openid.contains(char::is_control) => Err("openid contains a control character"),
        _ if template_id.contains(char::is_control) => Err("template_id contains a control character"),
        _ => Ok(()),
    }
}

/// The pop-ups that give these answers. Each user has as many pop-ups as the template with the highest count needs.
/// Each pop-up lists all templates whose count is not reached yet.
pub(crate) fn popups<'a>(answers: impl IntoIterator<Item = (&'a str, &'a str, u32)>) -> Vec<(&'a str, Vec<&'a str>)> {
    let mut by_user: Vec<(&str, Vec<(&str, u32)>)> = Vec::new();
    let mut place: HashMap<&str, usize> = HashMap::new();
    for (openid, template_id, count) in answers {
        let user = *place.entry(openid).or_insert(by_user.len());
        if user == by_user.len() {
            by_user.push((openid, Vec::new()));
        }
        let templates = &mut by_user[user].1;
        match templates.iter_mut().find(|(known, _)| *known == template_id) {
            Some((_, sum)) => *sum = sum.saturating_add(count),
            None => templates.push((template_id, count)),
        }
    }
    let popups_of = |(openid, templates): (&'a str, Vec<(&'a str, u32)>)| {
        let most = templates.iter().map(|(_, count)| *count).max().unwrap_or_default();
        (0..most).map(move |nth| {
            let asked = templates.iter().filter(|(_, count)| *count > nth);
            (openid, asked.map(|(template_id, _)| *template_id).collect())
        })
    };
    by_user.into_iter().flat_map(popups_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(granted: &[Granting]) -> Grants {
        let mut grants = Grants::default();
        grants.accept(granted, &mut Users::default()).unwrap();
        grants
    }

    fn spends(grants: &mut Grants, openid: &str, template_id: &str) -> bool {
        match grants.spend(openid, template_id) {
            Ok(()) => true,
            Err(no) => {
                assert_eq!(no, No::code(code::NO_GRANT));
                false
            }
        }
    }

    #[test]
    fn grant_allows_one_message_of_its_template_to_its_user() {
        let mut grants = granted(&[Granting::new("u", "t")]);
        assert!(!spends(&mut grants, "v", "t") && !spends(&mut grants, "u", "s"));
        assert!(spends(&mut grants, "u", "t"));
        assert!(!spends(&mut grants, "u", "t"));
        assert_eq!(grants.counts, GrantCounts { accepted: 1, spent: 1, ..GrantCounts::default() });
    }

    #[test]
    fn accepts_add_up() {
        let twice = Granting { count: 2, ..Granting::new("u", "t") };
        let mut grants = granted(&[twice, Granting::new("u", "t")]);
        assert_eq!([(); 4].map(|()| spends(&mut grants, "u", "t")), [true, true, true, false]);
    }

    #[test]
    fn long_term_grant_is_used_before_others_and_not_used_up() {
        let long_term = Granting { long_term: true, ..Granting::new("u", "t") };
        let mut grants = granted(&[long_term.clone(), Granting::new("u", "t"), long_term]);
        assert!((0..5).all(|_| spends(&mut grants, "u", "t")));
        let expected = GrantCounts { accepted: 1, left: 1, long_term: 1, long_term_spent: 5, ..GrantCounts::default() };
        assert_eq!(grants.counts, expected);
    }

    #[test]
    fn rejection_revokes_the_templates_grants_until_the_next_accept() {
        let users = &mut Users::default();
        let long_term = Granting { long_term: true, ..Granting::new("u", "t") };
        let mut grants =
            granted(&[Granting { count: 3, ..Granting::new("u", "t") }, long_term, Granting::new("u", "s")]);
        grants.void("rejections", &[Subscription::new("u", "t"), Subscription::new("new", "t")], users).unwrap();
        assert!(users.know("new"), "a user who answers a pop-up is known");
        assert!(!spends(&mut grants, "u", "t") && spends(&mut grants, "u", "s"));
        assert_eq!(grants.counts, GrantCounts { accepted: 4, spent: 1, voided: 3, ..GrantCounts::default() });
        grants.accept(&[Granting::new("u", "t")], users).unwrap();
        assert!(spends(&mut grants, "u", "t"));
    }

    #[test]
    fn one_invalid_grant_refuses_them_all() {
        let right = || Granting::new("u", "t");
        for wrong in [
            Granting::new("", "t"),
            Granting::new("u", ""),
            Granting::new("u\n", "t"),
            Granting::new("u", "t\u{1}"),
            Granting { count: 0, ..right() },
            Granting { count: 2, long_term: true, ..right() },
            Granting { count: u32::MAX, ..right() },
        ] {
            let (mut grants, mut users) = (Grants::default(), Users::default());
            let refused = grants.accept(&[right(), wrong.clone()], &mut users);
            assert!(refused.is_err(), "{wrong:?} was accepted");
            assert_eq!((grants.counts, users.know("u")), (GrantCounts::default(), false));
        }
        let refused = Grants::default().void("rejections", &[Subscription::new("u", "")], &mut Users::default());
        assert!(refused.unwrap_err().to_string().starts_with("rejections[0]: "));
    }

    #[test]
    fn each_popup_lists_a_template_at_most_once() {
        let answers = [("u", "a", 2), ("v", "a", 1), ("u", "b", 1), ("u", "a", 1)];
        let expected = [("u", vec!["a", "b"]), ("u", vec!["a"]), ("u", vec!["a"]), ("v", vec!["a"])];
        assert_eq!(popups(answers), expected);
        assert_eq!(popups([]), []);
    }
}
