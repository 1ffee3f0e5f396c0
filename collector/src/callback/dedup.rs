//! Dedup keys of events. WeChat pushes an event again if it was not answered in time.

use store::credentials::OnceKey;

use super::{Item, Pushed, Revoked, Status};
use crate::dedup;

impl Pushed {
    /// The dedup key of a decision within its app, by which it is processed once. `None` for [`Item::Outcome`], which
    /// its `msgid` identifies, and where the user was not asked. `item` must be an item of this event.
    ///
    /// The parts of the key are the name of the event, the openid, the template id, `accept` or `reject`, and
    /// `CreateTime` in decimal digits. The scene is not a part: where the popup was shown does not make it a different
    /// decision. Two decisions of one user about one template within one second count as one.
    pub fn once_key(&self, item: &Item) -> Option<OnceKey> {
        let Item::Decision { template, status, scene: _ } = item else { return None };
        let word = match status {
            Status::Accept => "accept",
            Status::Reject => "reject",
            Status::NotAsked => return None,
        };
        let created = self.created.to_string();
        Some(dedup::key(&[self.event.name(), self.openid.as_str(), template.as_str(), word, &created]))
    }
}

impl Revoked {
    /// The dedup key of the event of this name.
    pub fn once_key(&self, name: &str) -> OnceKey {
        dedup::key(&[name, self.openid.as_str(), &self.created.to_string()])
    }
}

#[cfg(test)]
mod tests {
    use domain::{OpenId, TemplateId};

    use super::super::{Event, Status};
    use super::*;

    fn decision(template: &str, status: Status, scene: Option<u32>) -> Item {
        Item::Decision { template: TemplateId::parse(template).unwrap(), status, scene }
    }

    fn pushed(event: Event, openid: &str, created: i64) -> Pushed {
        Pushed { event, openid: OpenId::parse(openid).unwrap(), created, items: Vec::new() }
    }

    fn hex(key: OnceKey) -> String {
        key.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn dedup_key_of_a_decision_is_part_of_the_stored_format() {
        let popup = pushed(Event::Popup, "otFpruAK8D-E6EfStSYonYSBZ8_4", 1_610_969_440);
        let key = popup.once_key(&decision("VRR0UEO9VJOLs0MHlU0OilqX6MVFDwH3_3gz3Oc0NIc", Status::Accept, Some(2)));
        assert_eq!(hex(key.unwrap()), "45419ccdaad6ca1a1820a50f5469adb4");
    }

    #[test]
    fn dedup_key_depends_on_every_part_but_the_scene() {
        let popup = pushed(Event::Popup, "o1", 10);
        let accept = decision("t1", Status::Accept, Some(0));
        let key = popup.once_key(&accept);
        assert!(key.is_some());
        assert_eq!(popup.once_key(&decision("t1", Status::Accept, None)), key);
        for (pushed, item) in [
            (pushed(Event::Change, "o1", 10), &accept),
            (pushed(Event::Popup, "o2", 10), &accept),
            (pushed(Event::Popup, "o1", 11), &accept),
            (pushed(Event::Popup, "o1t", 10), &decision("1", Status::Accept, None)),
            (popup.clone(), &decision("t2", Status::Accept, None)),
            (popup.clone(), &decision("t1", Status::Reject, None)),
        ] {
            assert_ne!(pushed.once_key(item), key, "{pushed:?} {item:?}");
        }
    }

    #[test]
    fn dedup_key_of_a_revocation_is_part_of_the_stored_format() {
        let revoked = Revoked { openid: OpenId::parse("o1").unwrap(), created: 10 };
        let key = hex(revoked.once_key("user_authorization_revoke"));
        assert_eq!(key, "6eb1784cd64fdbbc2c8147e454ac44ae");
        assert_ne!(hex(revoked.once_key("user_authorization_cancellation")), key);
        assert_ne!(hex(Revoked { created: 11, ..revoked }.once_key("user_authorization_revoke")), key);
    }

    #[test]
    fn item_without_a_decision_of_the_user_has_no_dedup_key() {
        assert_eq!(pushed(Event::Popup, "o1", 10).once_key(&decision("t1", Status::NotAsked, None)), None);
        let template = TemplateId::parse("t").unwrap();
        let outcome = Item::Outcome { template, msgid: 1, error_code: 0, error_status: "".into() };
        assert_eq!(pushed(Event::Sent, "o1", 10).once_key(&outcome), None);
    }
}
