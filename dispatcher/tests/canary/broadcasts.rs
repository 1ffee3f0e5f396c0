//! Broadcasts that fail. Their recipient lists carry data of each user.

use std::collections::HashMap;
use std::time::Duration;

use server::proto::broadcast_request::Audience;
use server::proto::{
    AddRecipientsRequest, AllReachable, BroadcastRequest, BroadcastState, CancelBroadcastRequest,
    ListUndeliveredRequest, Recipient, Recipients, ResumeBroadcastRequest, WatchBroadcastRequest,
};
use testing::eventually;

use crate::faulty_calls::{TEMPLATE, data, value};
use crate::fixture::{APP, Dispatcher, Fixture, SOON};
use crate::lying_upstream::{Lie, LyingUpstream, Rid};
use crate::secrets::{BODY, OPENID, REQUEST_ID, openid};

pub fn recipient(user: usize) -> Recipient {
    Recipient { openid: openid(user), data: HashMap::from([("thing2".into(), value(BODY))]) }
}

pub fn list(list: impl IntoIterator<Item = Recipient>) -> Option<Audience> {
    Some(Audience::Recipients(Recipients { list: list.into_iter().collect() }))
}

pub fn to_all() -> BroadcastRequest {
    BroadcastRequest {
        app_id: APP.into(),
        template_id: TEMPLATE.into(),
        data: data(),
        name: BODY.into(),
        audience: Some(Audience::AllReachable(AllReachable {})),
        ..BroadcastRequest::default()
    }
}

pub async fn all(fixture: &Fixture, wechat: &LyingUpstream, dispatcher: &mut Dispatcher) {
    for (number, lie) in [
        Lie::Refuse(40003, Rid::Openid),
        Lie::Refuse(47003, Rid::FormId),
        Lie::Refuse(99999, Rid::Secret),
        Lie::Quote(500),
        Lie::Hang,
        Lie::Fine,
    ]
    .into_iter()
    .enumerate()
    {
        wechat.sends(lie);
        let request = BroadcastRequest {
            request_id: format!("{REQUEST_ID}b{number}"),
            audience: list((0..70).map(recipient)),
            exclude: vec![openid(5)],
            hold: true,
            retry_unknown: true,
            ..to_all()
        };
        let info = dispatcher.broadcast(request).await.unwrap().into_inner().broadcast.unwrap();
        let (app_id, broadcast_id) = (APP.to_owned(), info.broadcast_id);
        let mut add = AddRecipientsRequest {
            app_id: app_id.clone(),
            broadcast_id: broadcast_id.clone(),
            recipients: vec![Recipient { openid: format!("{OPENID} x"), data: data() }],
            exclude: vec![],
        };
        fixture.note("AddRecipients", dispatcher.add_recipients(add.clone()).await).unwrap_err();
        // Next to a good user, the bad one is refused alone.
        add.recipients.push(recipient(80));
        let added = fixture.note("AddRecipients", dispatcher.add_recipients(add).await).unwrap().into_inner();
        assert!(added.refused_count == 1 && !format!("{added:?}").contains(OPENID), "{added:?}");
        let start = server::proto::StartBroadcastRequest { app_id: app_id.clone(), broadcast_id: broadcast_id.clone() };
        let resume = ResumeBroadcastRequest { app_id: app_id.clone(), broadcast_id: broadcast_id.clone() };
        // A broadcast that was not started yet cannot be resumed.
        fixture.note("ResumeBroadcast", dispatcher.resume_broadcast(resume.clone()).await).unwrap_err();
        fixture.note("StartBroadcast", dispatcher.start_broadcast(start).await).unwrap();
        let watch =
            WatchBroadcastRequest { app_id: app_id.clone(), broadcast_id: broadcast_id.clone(), ..Default::default() };
        let mut watched = dispatcher.watch_broadcast(watch).await.unwrap().into_inner();
        let bound = tokio::time::sleep(Duration::from_millis(700));
        tokio::pin!(bound);
        loop {
            tokio::select! {
                () = &mut bound => break,
                answer = watched.message() => match fixture.note("WatchBroadcast", answer) {
                    Ok(Some(answer)) if answer.broadcast.as_ref().is_some_and(|info| info.state() != BroadcastState::Running) => break,
                    Ok(Some(_)) => {}
                    _ => break,
                },
            }
        }
        // On a busy machine the broadcast may not have reached its first page yet.
        eventually("a page of users is traced", SOON, async || !fixture.traces.named("page").is_empty()).await;
        let undelivered =
            ListUndeliveredRequest { app_id: app_id.clone(), broadcast_id: broadcast_id.clone(), ..Default::default() };
        let _ = fixture.note("ListUndelivered", dispatcher.list_undelivered(undelivered).await);
        let _ = fixture.note("ResumeBroadcast", dispatcher.resume_broadcast(resume).await);
        let cancel = CancelBroadcastRequest { app_id, broadcast_id };
        let _ = fixture.note("CancelBroadcast", dispatcher.cancel_broadcast(cancel).await);
    }
}
