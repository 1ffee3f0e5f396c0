//! Follows a broadcast to its end. Reconnects when a dispatcher stops.

use std::collections::VecDeque;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use server::proto::{BroadcastInfo, BroadcastState, WatchBroadcastRequest};
use tonic::Status;

use crate::{Client, words};

/// How long no dispatcher may answer, and the pause before each attempt.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(300), Duration::from_millis(500));

/// Interval between lines when stderr is not a terminal.
const LINE: Duration = Duration::from_secs(2);

/// The rate is averaged over this time.
const MOMENTS: Duration = Duration::from_secs(5);

/// Shows the progress of a broadcast until it ends. Returns its final state.
pub async fn follow(client: &mut Client, app: &str, id: &str) -> Result<BroadcastInfo, String> {
    let mut show = Show::new();
    let mut lost_at = None;
    loop {
        let status = match stream(client, app, id, &mut show, &mut lost_at).await {
            Ok(info) => return Ok(info),
            Err(status) => status,
        };
        let since = *lost_at.get_or_insert_with(|| {
            show.say(&format!("lost the connection to the dispatcher ({}); reconnecting", words::sentence(&status)));
            Instant::now()
        });
        if !words::passes(&status) || since.elapsed() > PATIENCE.0 {
            return Err(words::status(&status));
        }
        tokio::time::sleep(PATIENCE.1).await;
    }
}

/// Reads one stream, until the broadcast or the stream ends.
async fn stream(
    client: &mut Client,
    app: &str,
    id: &str,
    show: &mut Show,
    lost_at: &mut Option<Instant>,
) -> Result<BroadcastInfo, Status> {
    let interval = Some(prost_types::Duration { seconds: 0, nanos: 500_000_000 });
    let request = WatchBroadcastRequest { app_id: app.to_owned(), broadcast_id: id.to_owned(), interval };
    let mut stream = client.watch_broadcast(request).await?.into_inner();
    while let Some(update) = stream.message().await? {
        let info = update.broadcast.unwrap_or_default();
        if lost_at.take().is_some() {
            show.say("reconnected to the dispatcher");
        }
        // The caller prints the final state.
        if matches!(info.state(), BroadcastState::Done | BroadcastState::Cancelled) {
            return Ok(info);
        }
        show.update(&info);
    }
    Err(Status::unavailable("the stream ended"))
}

/// A progress bar on a terminal, otherwise a line every [`LINE`].
struct Show {
    bar: Option<ProgressBar>,
    moments: VecDeque<(Instant, u64)>,
    last: Option<(Instant, String)>,
}

impl Show {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            if let Ok(style) = ProgressStyle::with_template("{spinner} {bar:30} {percent:>3}% {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { bar, moments: VecDeque::new(), last: None }
    }

    fn update(&mut self, info: &BroadcastInfo) {
        let tally = info.tally.clone().unwrap_or_default();
        let now = Instant::now();
        while self.moments.front().is_some_and(|(at, _)| now - *at > MOMENTS) {
            self.moments.pop_front();
        }
        self.moments.push_back((now, tally.delivered));
        let line = words::progress(info, self.rate());
        match &self.bar {
            Some(bar) => {
                bar.set_length(tally.audience);
                bar.set_position(tally.audience - tally.left.min(tally.audience));
                bar.set_message(line);
            }
            None => {
                let state = words::standing(info);
                if self.last.as_ref().is_none_or(|(at, last)| *last != state || now - *at >= LINE) {
                    eprintln!("{line}");
                    self.last = Some((now, state));
                }
            }
        }
    }

    fn rate(&self) -> Option<f64> {
        let ((from, before), (to, after)) = (self.moments.front()?, self.moments.back()?);
        let time = (*to - *from).as_secs_f64();
        (time > 0.0).then(|| after.saturating_sub(*before) as f64 / time)
    }

    fn say(&self, sentence: &str) {
        match &self.bar {
            Some(bar) => bar.println(sentence),
            None => eprintln!("{sentence}"),
        }
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
