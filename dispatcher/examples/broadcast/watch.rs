//! Follows a broadcast from one dispatcher to the next until its end.

use std::collections::VecDeque;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use shared::proto::{BroadcastInfo, BroadcastState, WatchBroadcastRequest};
use tonic::Status;

use crate::{Client, words};

/// How long no dispatcher need answer, and the pause before each look for one.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(300), Duration::from_millis(500));

/// How often there is a line where there is no terminal to draw on.
const LINE: Duration = Duration::from_secs(2);

/// The rate is that of the last moments.
const MOMENTS: Duration = Duration::from_secs(5);

/// Shows a broadcast as it goes; answers how it ended.
pub async fn follow(client: &mut Client, app: &str, id: &str) -> Result<BroadcastInfo, String> {
    let mut show = Show::new();
    let mut lost_at = None;
    loop {
        let status = match stream(client, app, id, &mut show, &mut lost_at).await {
            Ok(info) => return Ok(info),
            Err(status) => status,
        };
        let since = *lost_at.get_or_insert_with(|| {
            show.say(&format!("the dispatcher is gone ({}); looking for it", words::sentence(&status)));
            Instant::now()
        });
        if !words::passes(&status) || since.elapsed() > PATIENCE.0 {
            return Err(words::status(&status));
        }
        tokio::time::sleep(PATIENCE.1).await;
    }
}

/// One stream, to the end of the broadcast or its own.
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
            show.say("there it is again");
        }
        // The end is for whoever called.
        if matches!(info.state(), BroadcastState::Done | BroadcastState::Cancelled) {
            return Ok(info);
        }
        show.update(&info);
    }
    Err(Status::unavailable("the stream ended"))
}

/// A bar on a terminal, or else a line now and then.
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
