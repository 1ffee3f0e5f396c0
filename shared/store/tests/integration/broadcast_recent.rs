//! `min_interval` skips users who were sent a message, or may have been, regardless of how that message ended.

use domain::{Credential, GrantUses, OpenId};
use store::broadcast::audience::Choice;
use store::broadcast::pages::Next;
use store::eligibility::Eligibility;
use store::leases::{LeaseEnd, LeaseId, LeaseTerms, NewLease, Settle};

use crate::broadcast::{Broadcast, end};
use crate::fixture::{BRIEF, Fixture, HOUR, TERMS, any_kind, form_id, leased, prepay_id, request, template, user};

/// How the earlier message is sent.
#[derive(Debug, Clone, Copy)]
enum Sender {
    Single,
    WithRequest,
    Broadcast,
}

const SENDERS: [Sender; 3] = [Sender::Single, Sender::WithRequest, Sender::Broadcast];

/// The credential of the earlier message: a form id, a prepay id, or a grant.
fn rights() -> [(Eligibility, Option<Credential>); 3] {
    let grants = Eligibility::grants(template("t1"));
    [(any_kind(), Some(form_id("c1", 90))), (any_kind(), Some(prepay_id("c1", 2, 90))), (grants, None)]
}

/// An earlier message to a user, and the owner of its lease.
struct Earlier<'a> {
    fixture: &'a Fixture,
    user: OpenId,
    sender: Sender,
    owner: LeaseId,
    broadcast: Broadcast<'a>,
}

impl<'a> Earlier<'a> {
    async fn send(
        fixture: &'a Fixture,
        name: &str,
        sender: Sender,
        (wanted, credential): &(Eligibility, Option<Credential>),
        terms: &LeaseTerms,
    ) -> Self {
        let (user, owner) = (user(name), LeaseId::random());
        match credential {
            Some(credential) => drop(fixture.collect(&user, std::slice::from_ref(credential)).await),
            None => assert!(fixture.grant(&user, "t1", GrantUses::Count(1), None).await),
        }
        let mut broadcast = Broadcast::new(fixture, false).await;
        broadcast.choice.wanted = wanted.clone();
        let request = request("r1", 1);
        match sender {
            Sender::Broadcast => {
                broadcast.add(std::slice::from_ref(&user), &[]).await;
                assert_eq!(broadcast.take_all(owner, terms).await.len(), 1);
            }
            Sender::Single => {
                let new = NewLease { id: owner, request: None, wanted };
                drop(leased(fixture.store.lease(&fixture.app, &user, &new, terms).await.unwrap()))
            }
            Sender::WithRequest => {
                let new = NewLease { id: owner, request: Some(&request), wanted };
                let reply = fixture.store.lease(&fixture.app, &user, &new, terms).await;
                leased(reply.unwrap());
            }
        }
        // The credential for the next message.
        fixture.collect(&user, &[form_id("another", 99)]).await;
        Self { fixture, user, sender, owner, broadcast }
    }

    async fn settle(&self, verdict: LeaseEnd) {
        let (store, app, user) = (&self.fixture.store, &self.fixture.app, &self.user);
        let request = request("r1", 1);
        let request = matches!(self.sender, Sender::WithRequest).then_some(&request);
        match (self.sender, verdict) {
            (Sender::Broadcast, LeaseEnd::Hold) => {
                drop(self.broadcast.settle(user, self.owner, verdict, Next::Hold).await)
            }
            (Sender::Broadcast, LeaseEnd::Return) => {
                drop(self.broadcast.settle(user, self.owner, verdict, Next::Again).await)
            }
            (Sender::Broadcast, _) => drop(self.broadcast.settle(user, self.owner, verdict, end("E")).await),
            _ => {
                let settle = Settle { id: self.owner, request, end: verdict, outcome: None, next: None };
                drop(store.settle(app, user, &settle, &TERMS).await.unwrap())
            }
        }
    }

    /// Whether a broadcast skips the user. Asserts that its preview and its pages agree.
    async fn skips(&self, hours: i64) -> bool {
        let (store, app) = (&self.fixture.store, &self.fixture.app);
        let (bucket, mut broadcast) = (store.bucket_of(&self.user), Broadcast::new(self.fixture, false).await);
        broadcast.add(std::slice::from_ref(&self.user), &[]).await;
        // Deadlines are at half hours, so this is between them.
        broadcast.choice = Choice { wanted: any_kind(), min_interval: (hours * HOUR + HOUR / 4) as u32 };
        let listed = [self.user.clone()];
        let preview = store.preview_list(app, bucket, &listed, &broadcast.choice, &TERMS).await.unwrap();
        let all = store.preview_all(app, bucket, &broadcast.choice, &TERMS).await.unwrap();
        assert_eq!((preview.reached + preview.recently_messaged, all), (1, preview));
        let owner = LeaseId::random();
        let ready = broadcast.take_all(owner, &TERMS).await;
        for ready in &ready {
            // As if the user had not been taken.
            broadcast.settle(&ready.openid, owner, LeaseEnd::Return, Next::Again).await;
        }
        let skipped = broadcast.tally().await.ended("RECENTLY_MESSAGED");
        assert_eq!((ready.len() as u64, skipped), (preview.reached, preview.recently_messaged));
        skipped == 1
    }
}

#[tokio::test]
async fn lease_counts_as_a_message_until_known_not_to_be_sent() {
    for sender in SENDERS {
        for right in rights() {
            let fixture = Fixture::new().await;
            let sending = Earlier::send(&fixture, "oSending", sender, &right, &TERMS).await;
            assert!(sending.skips(0).await, "{sender:?} {right:?}");
            sending.settle(LeaseEnd::Return).await;
            assert!(!sending.skips(100).await, "{sender:?} {right:?}: it was not sent");
            fixture.assert_sound().await;
        }
    }
}

#[tokio::test]
async fn abandoned_lease_counts_from_its_deadline_reaped_or_not() {
    for sender in SENDERS {
        for right in rights() {
            let fixture = Fixture::new().await;
            let left = Earlier::send(&fixture, "oLeft", sender, &right, &BRIEF).await;
            for reaped in [false, true, true] {
                if reaped {
                    fixture.reap(&TERMS).await;
                }
                assert!(left.skips(0).await, "{sender:?} {right:?} {reaped}");
            }
            fixture.advance(2).await;
            // Also if it is released only now: TERMS keep a request for three and a half hours.
            for _ in 0..2 {
                assert!(left.skips(2).await && !left.skips(1).await, "{sender:?} {right:?}");
                fixture.advance(2).await;
                fixture.reap(&TERMS).await;
                fixture.advance(-2).await;
            }
            assert!(left.skips(2).await && !left.skips(1).await, "{sender:?} {right:?}");
            fixture.assert_sound().await;
        }
    }
}

#[tokio::test]
async fn held_message_counts_from_when_its_owner_gave_up() {
    for sender in [Sender::WithRequest, Sender::Broadcast] {
        for right in rights() {
            let fixture = Fixture::new().await;
            let held = Earlier::send(&fixture, "oHeld", sender, &right, &TERMS).await;
            held.settle(LeaseEnd::Hold).await;
            fixture.advance(2).await;
            assert!(held.skips(2).await && !held.skips(1).await, "{sender:?} {right:?}");
        }
    }
}

#[tokio::test]
async fn unknown_outcome_counts_as_a_message_and_a_refusal_does_not() {
    let unknown = [LeaseEnd::Suspect, LeaseEnd::Unknown, LeaseEnd::UnknownDiscard, LeaseEnd::UnknownVoid];
    for sender in SENDERS {
        for right in rights() {
            for verdict in unknown.into_iter().chain([LeaseEnd::Discard, LeaseEnd::Void]) {
                let fixture = Fixture::new().await;
                let ended = Earlier::send(&fixture, "oEnded", sender, &right, &TERMS).await;
                ended.settle(verdict).await;
                let wanted = unknown.contains(&verdict);
                assert_eq!(ended.skips(0).await, wanted, "{sender:?} {right:?} {verdict:?}");
                fixture.assert_sound().await;
            }
        }
    }
}
