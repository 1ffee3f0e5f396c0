//! Starts a broadcast from the command line, with as many calls as its list needs.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use server::proto::broadcast_request::Audience;
use server::proto::{
    self, AddRecipientsRequest, AllReachable, BroadcastPreview, BroadcastRequest, BroadcastState, Recipient,
    Recipients, StartBroadcastRequest, TemplateValue,
};
use tonic::{Response, Status};

use crate::args::Args;
use crate::{Client, list, words};

/// How long a call is repeated before it fails, and the pause before each repeat.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_millis(500));

/// The broadcast to start, in parts that each fit into one call.
struct Order {
    /// The first call's request without its audience.
    head: BroadcastRequest,
    /// The list in parts; `None` for every user.
    list: Option<Vec<Vec<Recipient>>>,
    exclude: Vec<Vec<String>>,
}

/// Requests a preview of the broadcast.
pub async fn preview(client: &mut Client, args: &Args) -> Result<BroadcastPreview, String> {
    let order = order(args)?;
    if !order.fits() {
        return Err("--validate-only checks a single call: at most 10000 users in --list, and in --exclude".into());
    }
    let request = BroadcastRequest { validate_only: true, ..order.first() };
    let response = client.broadcast(request).await.map_err(|status| words::status(&status))?.into_inner();
    eprint!("{}", words::refused(&response.refused, response.refused_count, 0));
    Ok(response.preview.unwrap_or_default())
}

/// Starts the broadcast. Returns its id.
pub async fn start(client: &mut Client, args: &Args) -> Result<String, String> {
    let order = order(args)?;
    let request = BroadcastRequest { hold: !order.fits(), ..order.first() };
    let request_id = request.request_id.clone();
    let again = |problem| format!("{problem}\nstart again with --request-id {request_id}: nothing is sent twice");
    let response = patiently(async || client.clone().broadcast(request.clone()).await).await.map_err(again)?;
    let response = response.into_inner();
    eprint!("{}", words::refused(&response.refused, response.refused_count, 0));
    let info = response.broadcast.unwrap_or_default();
    eprintln!("broadcast {} (request id {request_id})", info.broadcast_id);
    // Unless the request id found a broadcast that has been started already.
    if !order.fits()
        && info.state() == BroadcastState::Pending
        && !order.add_and_start(client, &info.broadcast_id).await.map_err(again)?
    {
        eprintln!("the broadcast was started before, with the users that were in its list then");
    }
    Ok(info.broadcast_id)
}

impl Order {
    fn fits(&self) -> bool {
        self.list.as_ref().is_none_or(|list| list.len() == 1) && self.exclude.len() <= 1
    }

    fn first(&self) -> BroadcastRequest {
        let audience = match &self.list {
            None => Audience::AllReachable(AllReachable {}),
            Some(list) => Audience::Recipients(Recipients { list: list.first().cloned().unwrap_or_default() }),
        };
        let exclude = self.exclude.first().cloned().unwrap_or_default();
        BroadcastRequest { audience: Some(audience), exclude, ..self.head.clone() }
    }

    /// Returns false if the broadcast was started already.
    async fn add_and_start(&self, client: &Client, id: &str) -> Result<bool, String> {
        let add = |recipients, exclude| {
            let (app_id, broadcast_id) = (self.head.app_id.clone(), id.to_owned());
            AddRecipientsRequest { app_id, broadcast_id, recipients, exclude }
        };
        // Excluded users first, so that they are never in the audience.
        let mut more: Vec<_> = self.exclude.iter().skip(1).map(|part| add(Vec::new(), part.clone())).collect();
        more.extend(self.list.iter().flatten().skip(1).map(|part| add(part.clone(), Vec::new())));
        let mut place = self.list.iter().flatten().next().map_or(0, Vec::len);
        for request in more {
            match patiently(async || ok_or_wrong_state(client.clone().add_recipients(request.clone()).await)).await? {
                Some(added) => {
                    let added = added.into_inner();
                    eprintln!("{} more users", added.added);
                    eprint!("{}", words::refused(&added.refused, added.refused_count, place));
                }
                None => return Ok(false),
            }
            place += request.recipients.len();
        }
        let request = StartBroadcastRequest { app_id: self.head.app_id.clone(), broadcast_id: id.to_owned() };
        let mut calls = 0;
        let started = patiently(async || {
            calls += 1;
            ok_or_wrong_state(client.clone().start_broadcast(request.clone()).await)
        });
        // A repeat after a lost answer finds the broadcast started.
        Ok(started.await?.is_some() || calls > 1)
    }
}

fn order(args: &Args) -> Result<Order, String> {
    let list = match &args.list {
        None => None,
        Some(file) => {
            let (recipients, again) = list::recipients(file)?;
            if again > 0 {
                eprintln!("{}: {again} lines repeat a user and are ignored", file.display());
            }
            Some(list::parts(recipients))
        }
    };
    let exclude = args.exclude.as_deref().map(list::openids).transpose()?.unwrap_or_default();
    let exclude = list::chunks(&exclude).map(<[String]>::to_vec).collect();
    let mut data: HashMap<String, TemplateValue> = HashMap::new();
    for (key, value) in &args.data {
        data.insert(key.clone(), TemplateValue { value: value.clone(), color: String::new() });
    }
    for (key, color) in &args.color {
        data.get_mut(key).ok_or_else(|| format!("--color {key}: there is no --data {key}"))?.color.clone_from(color);
    }
    let min_interval = args.min_interval.map(prost_types::Duration::try_from).transpose();
    let head = BroadcastRequest {
        app_id: args.app.clone(),
        request_id: args.request_id.clone().unwrap_or_else(|| format!("example-{:016x}", rand::random::<u64>())),
        template_id: args.template.clone().unwrap_or_default(),
        data,
        page: args.page.clone().unwrap_or_default(),
        emphasis_keyword: args.emphasis.clone().unwrap_or_default(),
        name: args.name.clone().unwrap_or_default(),
        limit: args.limit.unwrap_or_default(),
        not_before: args.not_before,
        messages_per_second: args.per_second.unwrap_or_default(),
        min_interval: min_interval.map_err(|_| "--min-interval is too long")?,
        retry_unknown: args.retry_unknown,
        delivery: args.delivery.map_or(proto::Delivery::Unspecified, Into::into).into(),
        miniprogram_state: args.miniprogram_state.clone().unwrap_or_default(),
        lang: args.lang.clone().unwrap_or_default(),
        fit: args.fit,
        ..BroadcastRequest::default()
    };
    Ok(Order { head, list, exclude })
}

/// Repeats a call for some time while that is safe and may help.
async fn patiently<T>(mut call: impl AsyncFnMut() -> Result<T, Status>) -> Result<T, String> {
    let begun = Instant::now();
    loop {
        match call().await {
            Ok(answer) => return Ok(answer),
            Err(status) if words::passes(&status) && begun.elapsed() < PATIENCE.0 => {
                tokio::time::sleep(PATIENCE.1).await;
            }
            Err(status) => return Err(words::status(&status)),
        }
    }
}

/// Returns `None` if the broadcast is past the state that the call needs.
fn ok_or_wrong_state<T>(answer: Result<Response<T>, Status>) -> Result<Option<Response<T>>, Status> {
    match answer {
        Err(status) if words::reason(&status).as_deref() == Some("WRONG_STATE") => Ok(None),
        answer => answer.map(Some),
    }
}
