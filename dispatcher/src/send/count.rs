//! Counts single messages. They count towards the app's quota and rate, and broadcasts slow down for them.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::wechat::message::Delivery;

/// Number of single messages that this replica sent and did not report yet, by delivery.
#[derive(Debug, Default)]
pub struct SendCounts([AtomicU64; 2]);

impl SendCounts {
    pub fn add(&self, delivery: Delivery, messages: u64) {
        self.0[delivery as usize].fetch_add(messages, Ordering::Relaxed);
    }

    pub fn take(&self, delivery: Delivery) -> u64 {
        self.0[delivery as usize].swap(0, Ordering::Relaxed)
    }
}
