//! Parses the lists of users of Broadcast and AddRecipients. A bad user is refused alone, because a long list from a
//! database often has one. If no user of a list is good, the whole call is refused, because nothing would be done.

use std::collections::{HashMap, HashSet};

use domain::OpenId;
use server::proto::{self, RefusedRecipient, TemplateValue};
use server::rpc::fields::Fields;
use store::broadcast::audience::Recipient;

use super::broadcast::MAX_LIST;
use super::message::{self, Warnings};
use crate::broadcast::spec::encode_own;
use crate::wechat::message::Delivery;

/// Maximum number of refused users that a response lists.
const MAX_REFUSED: usize = 1000;

/// The bad users of a list.
#[derive(Default)]
pub(super) struct Refused {
    /// The first of them, each with its first bad field.
    pub(super) list: Vec<RefusedRecipient>,
    pub(super) count: u32,
    /// All bad fields, for the failure if no user is good.
    problems: Fields,
}

impl Refused {
    fn add(&mut self, index: u32, problems: Fields) {
        self.count += 1;
        if let Some((field, description)) = problems.first().filter(|_| self.list.len() < MAX_REFUSED) {
            let (field, description) = (field.clone(), description.clone());
            self.list.push(RefusedRecipient { index, field, description });
        }
        self.problems.extend(problems);
    }
}

/// The users of a list whose generation of messages need not be known yet.
pub(super) struct Recipients {
    field: &'static str,
    good: Vec<(u32, OpenId, HashMap<String, TemplateValue>)>,
    refused: Refused,
}

/// A list for one generation of messages.
#[derive(Default)]
pub(super) struct Checked {
    /// Each user once.
    pub(super) recipients: Vec<Recipient>,
    pub(super) duplicates: u32,
    pub(super) refused: Refused,
}

impl Recipients {
    /// Checks what both generations require. `field` is the path of the list in the request.
    pub(super) fn read(fields: &mut Fields, field: &'static str, list: Vec<proto::Recipient>) -> Self {
        let mut read = Self { field, good: Vec::new(), refused: Refused::default() };
        if list.len() > MAX_LIST {
            fields.refuse(field, format_args!("must not have more than {MAX_LIST} users: add more with AddRecipients"));
            return read;
        }
        for (index, proto::Recipient { openid, data }) in (0..).zip(list) {
            let mut own = Fields::default();
            let openid = own.take(&format!("{field}[{index}].openid"), OpenId::parse(openid));
            message::check_data(&mut own, &format!("{field}[{index}].data"), &data);
            match openid.filter(|_| own.is_empty()) {
                Some(openid) => read.good.push((index, openid, data)),
                None => read.refused.add(index, own),
            }
        }
        if read.good.is_empty() {
            fields.extend(std::mem::take(&mut read.refused.problems));
        }
        read
    }

    /// Checks, and with `fit` cuts, the values of the users, and leaves out users who are listed again.
    pub(super) fn check(self, fields: &mut Fields, delivery: Delivery, fit: bool, warnings: &mut Warnings) -> Checked {
        let Self { field, good, mut refused } = self;
        let (mut recipients, mut seen, mut duplicates) = (Vec::new(), HashSet::new(), 0);
        for (index, openid, mut data) in good {
            if seen.contains(&openid) {
                duplicates += 1;
                continue;
            }
            let mut own = Fields::default();
            if delivery == Delivery::Subscription {
                message::check_values(&mut own, &format!("{field}[{index}].data"), &mut data, fit, warnings);
            }
            if own.is_empty() {
                seen.insert(openid.clone());
                recipients.push(Recipient { openid, data: encode_own(&message::of_template(data)) });
            } else {
                refused.add(index, own);
            }
        }
        if recipients.is_empty() {
            fields.extend(std::mem::take(&mut refused.problems));
        }
        refused.list.sort_by_key(|refused| refused.index);
        Checked { recipients, duplicates, refused }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipient(openid: &str, text: &str) -> proto::Recipient {
        let value = TemplateValue { value: text.into(), color: String::new() };
        proto::Recipient { openid: openid.into(), data: HashMap::from([("thing1".into(), value)]) }
    }

    fn check(list: &[(&str, &str)], fit: bool) -> (Checked, Warnings, Fields) {
        let (mut fields, mut warnings) = (Fields::default(), Warnings::default());
        let list = list.iter().map(|(openid, text)| recipient(openid, text)).collect();
        let list = Recipients::read(&mut fields, "recipients", list);
        (list.check(&mut fields, Delivery::Subscription, fit, &mut warnings), warnings, fields)
    }

    const LONG: &str = "21 characters are too";

    #[test]
    fn duplicate_users_are_taken_once_and_bad_ones_are_refused_alone() {
        // The first good entry of a user counts.
        let list = [("oA", "x"), ("oB", LONG), ("oA", LONG), ("o B", "x"), ("", "x"), ("oB", "x"), ("oC", "a\nb")];
        let (checked, _, fields) = check(&list, false);
        let openids: Vec<_> = checked.recipients.iter().map(|recipient| recipient.openid.as_str()).collect();
        assert_eq!((openids, checked.duplicates, fields.is_empty()), (vec!["oA", "oB"], 1, true));
        let refused: Vec<_> = checked.refused.list.iter().map(|one| (one.index, one.field.as_str())).collect();
        let value =
            |at| (at, ["recipients[1].data.thing1.value", "recipients[6].data.thing1.value"][usize::from(at == 6)]);
        let expected = [value(1), (3, "recipients[3].openid"), (4, "recipients[4].openid"), value(6)];
        assert_eq!((refused, checked.refused.count), (expected.to_vec(), 4));
    }

    #[test]
    fn list_without_a_good_user_is_refused_and_names_all() {
        let (_, _, fields) = check(&[("oB", LONG), ("o B", "x")], false);
        let failure = format!("{:?}", fields.finish().unwrap_err());
        assert!(
            failure.contains("recipients[0].data.thing1.value") && failure.contains("recipients[1].openid"),
            "{failure}"
        );
        let (_, _, fields) = check(&[], false);
        assert!(fields.is_empty(), "an empty list has no bad user");
    }

    #[test]
    fn texts_are_cut_with_warnings_of_which_the_first_are_listed() {
        let names: Vec<String> = (0..300).map(|user| format!("oUser{user}")).collect();
        let list: Vec<_> = names.iter().map(|name| (name.as_str(), LONG)).collect();
        let (checked, warnings, _) = check(&list, true);
        assert_eq!((checked.recipients.len(), checked.refused.count), (300, 0));
        assert_eq!((warnings.list.len(), warnings.more), (200, 100));
        assert_eq!(warnings.list[7].field, "recipients[7].data.thing1.value");
        let stored = String::from_utf8(checked.recipients[299].data.clone()).unwrap();
        assert_eq!(stored, r#"{"thing1":{"value":"21 characters are t…"}}"#);
    }

    #[test]
    fn a_response_lists_the_first_refused_users_and_counts_all() {
        let mut list = vec![("o B", "x"); 2000];
        list.push(("oA", "x"));
        let (checked, ..) = check(&list, false);
        assert_eq!((checked.refused.list.len(), checked.refused.count, checked.recipients.len()), (1000, 2000, 1));
    }
}
