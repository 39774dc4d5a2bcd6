//! What a fetch's plan knows of one host: its connection, its speed, and its failures.

use std::collections::VecDeque;
use std::time::Duration;

use super::SourceFault;
use crate::net::backoff;

/// Time constant of the moving average of a host's speed, and the shortest interval that is measured.
const SPEED_TIME_CONSTANT: Duration = Duration::from_millis(500);
const SPEED_SAMPLE_MIN: Duration = Duration::from_millis(20);
/// Delay before a host is tried again after its first failure; it doubles with each consecutive failure.
const RETRY_DELAY_MIN: Duration = Duration::from_millis(100);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(10);
const OFFLINE_FAILURES: u32 = 2;
/// Consecutive invalid deliveries after which a host is banned.
pub(super) const INVALID_MAX: u32 = 5;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum ConnectionState {
    #[default]
    Closed,
    Opening,
    Open,
    Closing,
}

#[derive(Debug, Clone, Default)]
pub(super) struct SourceState {
    pub supports_range: bool,
    /// The registry currently lists it as having the file.
    pub is_listed: bool,
    pub connection: ConnectionState,
    pub opened_at: Duration,
    /// Pieces in flight, in the order in which they will arrive.
    pub requested: VecDeque<usize>,
    /// When a request was last sent while none was in flight.
    pub requested_at: Duration,
    /// It will still send pieces that another host has taken over.
    pub has_superseded_pieces: bool,
    pub is_list_requested: bool,
    pub is_whole_requested: bool,
    /// It sends the whole file, and there is no piece list to verify it by.
    pub sends_unverified: bool,
    /// There was something to request from it.
    pub is_busy: bool,
    /// Bytes received of pieces that are not complete.
    pub unfinished_bytes: u64,
    /// Moving average of its speed; 0 if unknown.
    pub bytes_per_s: f64,
    pub measured_at: Duration,
    pub measured_bytes: u64,
    pub failures_in_row: u32,
    pub invalid_in_row: u32,
    pub retry_at: Duration,
}

impl SourceState {
    pub(super) fn is_banned(&self) -> bool {
        self.invalid_in_row >= INVALID_MAX
    }

    pub(super) fn can_connect(&self, now: Duration) -> bool {
        self.connection == ConnectionState::Closed && self.is_listed && !self.is_banned() && self.retry_at <= now
    }

    /// Whether it is connected, or can be expected to accept a connection.
    pub(super) fn is_usable(&self) -> bool {
        self.connection == ConnectionState::Open || (self.is_listed && !self.is_banned() && !self.is_offline())
    }

    pub(super) fn is_offline(&self) -> bool {
        self.failures_in_row >= OFFLINE_FAILURES
    }

    pub(super) fn begin_request(&mut self, now: Duration) {
        if self.requested.is_empty() {
            self.requested_at = now;
        }
        // Idle time must not count against its speed.
        if !std::mem::replace(&mut self.is_busy, true) {
            (self.measured_at, self.measured_bytes) = (now, 0);
        }
    }

    /// Bytes of wanted pieces arrived.
    pub(super) fn record_bytes(&mut self, bytes: u64, now: Duration) {
        self.unfinished_bytes += bytes;
        self.measured_bytes += bytes;
        let elapsed = now.saturating_sub(self.measured_at);
        let is_idle = self.requested.is_empty() && !self.is_whole_requested;
        if elapsed < SPEED_SAMPLE_MIN || is_idle {
            return;
        }
        let bytes_per_s = self.measured_bytes as f64 / elapsed.as_secs_f64();
        // The first sample stands alone; the longer the interval, the less the earlier average weighs.
        let old_weight = if self.bytes_per_s == 0.0 {
            0.0
        } else {
            (-elapsed.as_secs_f64() / SPEED_TIME_CONSTANT.as_secs_f64()).exp()
        };
        self.bytes_per_s = self.bytes_per_s * old_weight + bytes_per_s * (1.0 - old_weight);
        (self.measured_at, self.measured_bytes) = (now, 0);
    }

    /// The connection ended although we did not close it: the host is tried again later, unless it is banned by now.
    pub(super) fn record_failure(&mut self, fault: SourceFault, now: Duration) {
        self.failures_in_row = self.failures_in_row.saturating_add(1);
        if fault == SourceFault::Invalid {
            // A whole file is expensive, so it gets only one more attempt, in case the network corrupted it.
            self.invalid_in_row += if self.is_whole_requested { INVALID_MAX.div_ceil(2) } else { 1 };
        }
        self.retry_at = now + backoff::doubled(RETRY_DELAY_MIN, self.failures_in_row - 1, RETRY_DELAY_MAX);
    }
}
