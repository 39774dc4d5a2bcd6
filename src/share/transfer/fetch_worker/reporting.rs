//! A fetch's progress: when it is reported, and what it says.

use std::time::Duration;

use super::FetchWorker;
use crate::share::transfer::progress::{FetchProgress, FetchStatus};
use crate::share::transfer::speed::eta_s;

impl FetchWorker {
    pub(super) fn report_progress(&mut self) {
        let now = self.now();
        let is_due = now.saturating_sub(self.last_reported_at) >= self.timing.progress_interval;
        let has_happened = {
            let last = &self.shared.state.lock().progress;
            last.status != self.status || last.error != self.error
        };
        if !has_happened && !is_due {
            return;
        }
        let progress = self.progress(now);
        {
            let mut state = self.shared.state.lock();
            if state.progress == progress {
                return;
            }
            state.progress = progress.clone();
        }
        self.shared.changed.notify_all();
        self.last_reported_at = now;
        (self.on_progress)(&progress);
    }

    fn progress(&self, now: Duration) -> FetchProgress {
        let (downloaded, total) = (self.plan.downloaded_bytes(), self.layout.size());
        let speed_bps = if self.status == FetchStatus::Downloading {
            self.speed.bytes_per_s(now, self.received_bytes)
        } else {
            0.0
        };
        let is_completed = self.status == FetchStatus::Completed;
        let eta_seconds = eta_s(total - downloaded, speed_bps);
        FetchProgress {
            downloaded_size: downloaded,
            total_size: total,
            progress_percent: if total == 0 { 100.0 } else { downloaded as f64 / total as f64 * 100.0 },
            speed_bps,
            eta_seconds: if is_completed {
                Some(0)
            } else {
                eta_seconds.filter(|_| self.status == FetchStatus::Downloading)
            },
            status: self.status,
            verified: is_completed && self.spec.content.is_known(),
            error: self.error.clone(),
            sources: self.connections.keys().map(|host| self.hosts[*host].name.clone()).collect(),
            received_bytes: self.received_bytes,
        }
    }
}
