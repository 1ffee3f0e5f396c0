//! Checks the body of a request while it arrives: how long it takes, how large its messages are, and how much memory
//! they need.
//!
//! gRPC sends the size of a message in the five bytes before it. So a message that is too large, or for which no memory
//! is free, is rejected before it is read. A message whose lists need too much memory is rejected before it is decoded.
//!
//! A unary call is rejected if no memory is free. A stream instead waits before each of its messages and reads nothing
//! meanwhile, which slows its caller down. It holds no memory while it waits. It must not wait in the middle of a
//! message, so it reserves the maximum cost of the message before reading it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http_body::{Body as HttpBody, Frame, SizeHint};
use prost::bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;
use tonic::Status;
use tonic::codegen::StdError;

use super::budget::{Budget, Charge, cost};
use super::lists::{Malformed, Scanner};
use crate::auth::methods::Method;
use crate::rpc::reason::Reason;
use crate::rpc::status::Failure;

/// The maximum number of list elements for which a stream reserves memory: twice the maximum that one message may have.
const STREAM_ELEMENTS: usize = 2000;

/// The length of a gRPC message prefix: the compression flag and the size of the message.
const PREFIX: usize = 5;

/// The limits of a request body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// The maximum size of a message, in bytes.
    pub(super) largest: usize,
    /// How long the body may take to arrive.
    pub(super) within: Duration,
    /// Whether `within` applies to each message, as in a stream that may pause between messages, or to the whole
    /// request.
    pub(super) each: bool,
}

/// Charges the memory budget for the messages of a call.
pub(super) struct Account {
    pub(super) budget: Arc<Budget>,
    pub(super) charge: Charge,
    pub(super) method: &'static Method,
}

/// A request body that enforces the limits while it arrives. See the module documentation.
pub(super) struct Arriving<B> {
    body: B,
    bounds: Bounds,
    /// `None` if the messages are so small that they are not charged.
    account: Option<Account>,
    /// Runs while the body waits for data that has a time limit.
    timer: Option<Pin<Box<Sleep>>>,
    /// The received bytes that were not yet handed on, and how many of them were scanned.
    rest: Bytes,
    looked_at: usize,
    at: At,
    /// The cost so far: of all messages of a unary call, or of the current message of a stream.
    cost: usize,
}

/// The position of the scanner in the request.
enum At {
    /// Before a message: the bytes of its prefix so far, and their number.
    Prefix([u8; PREFIX], usize),
    /// After the prefix of a message of this size, waiting for memory.
    Waiting(usize, BoxFuture<'static, Option<OwnedSemaphorePermit>>),
    /// In a message: the number of bytes still to come, and the scanner of its lists.
    Message(usize, Option<Scanner>),
}

const BEFORE: At = At::Prefix([0; PREFIX], 0);

impl<B> Arriving<B> {
    pub(super) fn new(body: B, bounds: Bounds, account: Option<Account>) -> Self {
        Self { body, bounds, account, timer: None, rest: Bytes::new(), looked_at: 0, at: BEFORE, cost: 0 }
    }

    /// Scans the received bytes. In a stream, stops at the end of a message.
    fn look(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        loop {
            let new = &self.rest[self.looked_at..];
            match &mut self.at {
                At::Prefix(prefix, have) => {
                    let count = new.len().min(PREFIX - *have);
                    prefix[*have..*have + count].copy_from_slice(&new[..count]);
                    (self.looked_at, *have) = (self.looked_at + count, *have + count);
                    if *have < PREFIX {
                        return Poll::Ready(Ok(()));
                    }
                    let [_, size @ ..] = *prefix;
                    self.at = self.begin(u32::from_be_bytes(size) as usize)?;
                }
                At::Waiting(size, memory) => {
                    let (size, permit) = (*size, ready!(memory.as_mut().poll(context)));
                    if let Some(account) = &self.account {
                        account.charge.replace(permit);
                    }
                    self.at = self.message(size);
                }
                At::Message(left, scanner) => {
                    let piece = &new[..new.len().min(*left)];
                    (self.looked_at, *left) = (self.looked_at + piece.len(), *left - piece.len());
                    let (all, whole) = (piece.len() == new.len(), *left == 0);
                    if let Some(scanner) = scanner {
                        let before = scanner.elements();
                        scanner.read(piece).map_err(|Malformed| Failure::malformed())?;
                        let more = scanner.elements() - before;
                        self.grow(more)?;
                    }
                    if whole {
                        self.end();
                    }
                    if all || whole && self.bounds.each {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }

    fn begin(&mut self, size: usize) -> Result<At, Failure> {
        if size > self.bounds.largest {
            return Err(Failure::too_large());
        }
        let Some(Account { budget, charge, method }) = &self.account else { return Ok(At::Message(size, None)) };
        if self.bounds.each {
            // The handler asks for the next message, so it is done with the previous one.
            charge.replace(None);
            let lists = Scanner::of(method, size).is_some();
            // Each element takes at least two bytes.
            let elements = if lists { (size / 2).min(STREAM_ELEMENTS) } else { 0 };
            let aside = cost(size, elements).min(budget.most());
            self.cost = cost(size, 0);
            return Ok(At::Waiting(size, Box::pin(budget.wait(aside))));
        }
        self.cost += cost(size, 0);
        self.pay()?;
        Ok(self.message(size))
    }

    fn message(&self, size: usize) -> At {
        At::Message(size, self.account.as_ref().and_then(|account| Scanner::of(account.method, size)))
    }

    /// Adds the cost of this many more list elements.
    fn grow(&mut self, elements: usize) -> Result<(), Failure> {
        if elements == 0 {
            return Ok(());
        }
        self.cost += cost(0, elements) - cost(0, 0);
        self.pay()
    }

    /// Charges for the cost so far. A stream has already reserved its memory, so this only checks that it suffices.
    fn pay(&self) -> Result<(), Failure> {
        let Some(Account { budget, charge, .. }) = &self.account else { return Ok(()) };
        if self.cost > budget.most() {
            return Err(Failure::too_large());
        }
        if self.bounds.each {
            return if charge.covers(self.cost) { Ok(()) } else { Err(Failure::too_large()) };
        }
        if budget.charge(charge, self.cost) { Ok(()) } else { Err(Failure::overloaded()) }
    }

    /// Ends a message that has arrived completely.
    fn end(&mut self) {
        self.at = BEFORE;
        if self.bounds.each {
            self.timer = None;
            if let Some(account) = &self.account {
                account.charge.reduce(self.cost);
            }
        }
    }

    /// Returns whether the current wait has a time limit. Waiting for the next message of a stream, or for its memory,
    /// has none.
    fn is_timed(&self) -> bool {
        !self.bounds.each || matches!(self.at, At::Message(..) | At::Prefix(_, 1..))
    }

    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        let within = self.bounds.within;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(within)));
        timer.as_mut().poll(context).is_ready()
    }
}

impl<B: HttpBody<Data = Bytes, Error: Into<StdError>> + Unpin> HttpBody for Arriving<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let me = &mut *self;
        while me.rest.is_empty() {
            match Pin::new(&mut me.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => me.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Poll::Ready(end) => {
                    if let Some(account) = me.account.as_ref().filter(|_| me.bounds.each) {
                        account.charge.replace(None);
                    }
                    let failed = end.and_then(Result::err).map(|error| Err(Status::from_error(error.into())));
                    return Poll::Ready(failed);
                }
                Poll::Pending if me.is_timed() && me.is_late(context) => {
                    let sentence = "the request did not arrive in time";
                    let late = Failure::new(Reason::DEADLINE_EXCEEDED, sentence);
                    return Poll::Ready(Some(Err(late.into())));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        ready!(me.look(context))?;
        let done = me.rest.split_to(std::mem::take(&mut me.looked_at));
        Poll::Ready(Some(Ok(Frame::data(done))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.rest.is_empty() { self.body.size_hint() } else { SizeHint::default() }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::IntCounter;
    use prost::Message as _;
    use tokio::sync::mpsc;
    use tonic_types::StatusExt as _;

    use super::*;
    use crate::auth::methods::{MethodAccess, method_access};
    use crate::proto::{CollectRequest, CollectStreamRequest, Credential};

    const COLLECT: &str = "/formid.v1.CollectorService/Collect";
    const STREAM: &str = "/formid.v1.CollectorService/CollectStream";

    /// A body whose data the test sends.
    struct Sent(mpsc::UnboundedReceiver<Bytes>);

    impl HttpBody for Sent {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.0.poll_recv(context).map(|data| data.map(|data| Ok(Frame::data(data))))
        }
    }

    fn budget(bytes: usize) -> Arc<Budget> {
        Arc::new(Budget::new(bytes, IntCounter::new("shed", "shed").unwrap()))
    }

    fn account(budget: &Arc<Budget>, path: &str) -> Account {
        let MethodAccess::Method(method) = method_access(path) else { panic!("{path}") };
        Account { budget: Arc::clone(budget), charge: Charge::default(), method }
    }

    fn arriving(each: bool, account: Account) -> (mpsc::UnboundedSender<Bytes>, Arriving<Sent>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let bounds = Bounds { largest: 1 << 20, within: Duration::from_millis(10), each };
        (sender, Arriving::new(Sent(receiver), bounds, Some(account)))
    }

    fn credentials(count: usize) -> Vec<Credential> {
        vec![Credential { openid: "oUser".into(), ..Credential::default() }; count]
    }

    /// Encodes a Collect request with `count` credentials, with the gRPC prefix.
    fn message(count: usize) -> Vec<u8> {
        prefixed(&CollectRequest { credentials: credentials(count), ..Default::default() }.encode_to_vec())
    }

    /// Encodes a CollectStream request with `count` credentials, with the gRPC prefix.
    fn batch(count: usize) -> Vec<u8> {
        prefixed(&CollectStreamRequest { credentials: credentials(count), ..Default::default() }.encode_to_vec())
    }

    fn prefixed(message: &[u8]) -> Vec<u8> {
        [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat()
    }

    async fn frame(body: &mut Arriving<Sent>) -> Result<Bytes, String> {
        let frame = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await;
        match frame.expect("the end") {
            Ok(frame) => Ok(frame.into_data().unwrap()),
            Err(status) => Err(status.get_error_details().error_info().unwrap().reason.clone()),
        }
    }

    fn is_pending(body: &mut Arriving<Sent>) -> bool {
        Pin::new(body).poll_frame(&mut Context::from_waker(std::task::Waker::noop())).is_pending()
    }

    #[tokio::test]
    async fn request_that_does_not_arrive_in_time_fails() {
        let (_sender, mut body) = arriving(false, account(&budget(1 << 20), COLLECT));
        assert_eq!(frame(&mut body).await.unwrap_err(), "DEADLINE_EXCEEDED");
    }

    #[tokio::test]
    async fn stream_may_pause_between_messages_but_not_within_one() {
        let (sender, mut body) = arriving(true, account(&budget(1 << 20), STREAM));
        let message = message(3);
        sender.send(message.clone().into()).unwrap();
        assert_eq!(frame(&mut body).await.unwrap(), message);
        assert!(is_pending(&mut body) && !body.is_timed());
        sender.send(message[..20].to_vec().into()).unwrap();
        assert_eq!(frame(&mut body).await.unwrap(), message[..20]);
        assert_eq!(frame(&mut body).await.unwrap_err(), "DEADLINE_EXCEEDED");
    }

    #[tokio::test]
    async fn content_is_unchanged_however_it_is_split() {
        let content = [message(3), message(0), message(200)].concat();
        for each in [false, true] {
            for size in [1, 4, 5, 6, 7, 100, 10_000] {
                let path = if each { STREAM } else { COLLECT };
                let (sender, mut body) = arriving(each, account(&budget(1 << 20), path));
                content.chunks(size).for_each(|piece| sender.send(piece.to_vec().into()).unwrap());
                let mut received = Vec::new();
                while received.len() < content.len() {
                    received.extend(frame(&mut body).await.unwrap());
                }
                assert_eq!(received, content, "{each} {size}");
            }
        }
    }

    #[tokio::test]
    async fn messages_are_rejected_by_prefix_or_by_the_cost_of_their_lists() {
        let budget = budget(256 << 10);
        let (sender, mut body) = arriving(false, account(&budget, COLLECT));
        sender.send(vec![0, 0, 1, 0, 0].into()).unwrap();
        assert_eq!(frame(&mut body).await.unwrap_err(), "MESSAGE_TOO_LARGE", "64 KiB cost over half the budget");

        let (first, mut first_body) = arriving(false, account(&budget, COLLECT));
        let (second, mut second_body) = arriving(false, account(&budget, COLLECT));
        let (third, mut third_body) = arriving(false, account(&budget, COLLECT));
        for sender in [&first, &second] {
            sender.send(message(350).into()).unwrap();
        }
        frame(&mut first_body).await.unwrap();
        frame(&mut second_body).await.unwrap();
        third.send(vec![0, 0, 0, 0x40, 0].into()).unwrap();
        assert_eq!(frame(&mut third_body).await.unwrap_err(), "OVERLOADED");
        drop((first_body, second_body));

        let (sender, mut body) = arriving(false, account(&budget, COLLECT));
        sender.send(message(500).into()).unwrap();
        assert_eq!(frame(&mut body).await.unwrap_err(), "MESSAGE_TOO_LARGE");
        let (sender, mut body) = arriving(false, account(&budget, COLLECT));
        sender.send([0, 0, 0, 0, 2, 0x13, 0x14].to_vec().into()).unwrap();
        assert_eq!(frame(&mut body).await.unwrap_err(), "MALFORMED_MESSAGE");
    }

    #[tokio::test]
    async fn stream_waits_for_memory_and_frees_it_with_the_next_batch() {
        let budget = budget(256 << 10);
        let (held, stream) = (Charge::default(), account(&budget, STREAM));
        let of_stream = stream.charge.clone();
        assert!(budget.charge(&held, 200 << 10));
        let (sender, mut body) = arriving(true, stream);
        sender.send([batch(200), batch(0)].concat().into()).unwrap();
        assert!(is_pending(&mut body) && !body.is_timed());
        drop(held);
        assert_eq!(frame(&mut body).await.unwrap(), batch(200));
        assert!(of_stream.covers(cost(batch(200).len() - PREFIX, 200)));
        assert!(!of_stream.covers(100 << 10), "unused reserved memory is released");
        assert_eq!(frame(&mut body).await.unwrap(), batch(0));
        assert!(!of_stream.covers(cost(batch(200).len() - PREFIX, 200)));
        drop(sender);
        assert!(std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await.is_none());
        assert!(!of_stream.covers(1));
    }
}
