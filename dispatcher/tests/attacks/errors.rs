//! Requests with so many invalid fields that the error cannot name all of them.

use server::proto::broadcast_request::Audience;
use server::proto::{BroadcastRequest, Recipient, Recipients};
use server::rpc::status::{MAX_STATUS, MORE_FIELDS};
use tonic::Code;

use crate::fixture::{APP, Fixture, fact, fields, reason};

#[tokio::test]
async fn an_error_names_the_first_bad_fields_and_counts_the_others() {
    let fixture = Fixture::new().await;
    let dispatcher = fixture.dispatcher().await;
    let bad = |count| {
        let list = vec![Recipient { openid: "o User".into(), ..Recipient::default() }; count];
        let audience = Some(Audience::Recipients(Recipients { list }));
        BroadcastRequest { app_id: APP.into(), template_id: "t".into(), audience, ..BroadcastRequest::default() }
    };
    for count in [1, 50, 10_000] {
        let status = dispatcher.client.clone().broadcast(bad(count)).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "INVALID_FIELDS"));
        let named = fields(&status);
        assert!(named.len() >= count.min(20) && named[0] == "recipients.list[0].openid", "{named:?}");
        let more = fact(&status, MORE_FIELDS).map_or(0, |more| more.parse().unwrap());
        assert_eq!(named.len() + more, count);
        // The size on the wire: the details are sent in base64.
        assert!(status.message().len() + status.details().len() * 4 / 3 < MAX_STATUS, "{count}");
    }
}
