//! The runtime that broadcasts run on, with threads of its own.

use std::io;
use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::scheduler;
use crate::context::AppContext;

pub struct BroadcastRuntime {
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    schedulers: JoinSet<()>,
}

impl BroadcastRuntime {
    pub fn new() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().thread_name("broadcast").enable_all().build()?;
        Ok(Self { runtime: Some(runtime), schedulers: JoinSet::new() })
    }

    pub fn start(&mut self, context: AppContext, drain: CancellationToken) {
        if let Some(runtime) = &self.runtime {
            self.schedulers.spawn_on(scheduler::work(Arc::new(context), drain), runtime.handle());
        }
    }

    /// Waits until all broadcasts have been handed over after a drain.
    pub async fn handed_over(&mut self) {
        while self.schedulers.join_next().await.is_some() {}
    }
}

impl Drop for BroadcastRuntime {
    fn drop(&mut self) {
        // Dropping a runtime waits for its threads, which panics on a thread of another runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
