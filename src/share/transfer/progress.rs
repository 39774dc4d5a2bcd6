//! How far a fetch is, and its status.

use std::sync::Arc;

use serde::Serialize;

use crate::model::named;

/// Called with the progress on every change of status and several times a second while data arrives. It runs on the
/// fetch's thread and must not block.
pub type ProgressCallback = Arc<dyn Fn(&FetchProgress) + Send + Sync>;

/// Progress of a fetch, in the JSON form of the client API.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct FetchProgress {
    /// Bytes received, those of incomplete pieces included.
    pub downloaded_size: u64,
    pub total_size: u64,
    /// 0 to 100.
    pub progress_percent: f64,
    /// Bytes per second, over the last three seconds.
    pub speed_bps: f64,
    pub eta_seconds: Option<u64>,
    pub status: FetchStatus,
    /// Once completed: whether the content was verified against a digest that the registry knew.
    pub verified: bool,
    /// Why it is paused or failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Names of the hosts with a connection.
    pub sources: Vec<String>,
    /// Bytes received over the network, wasted ones included.
    #[serde(skip)]
    pub received_bytes: u64,
}

named! {
    /// Status of a fetch; see `docs/spec/share.md`.
    #[derive(Default)]
    pub enum FetchStatus {
        /// No host sends yet.
        #[default]
        Pending = "pending",
        /// Data arrives.
        Downloading = "downloading",
        /// It waits for its user or, if there is an error text, for a host to come back.
        Paused = "paused",
        /// The file is complete and in its final place.
        Completed = "completed",
        /// It does not continue by itself, for the reason given as its error. It can be resumed.
        Failed = "failed",
        /// It was cancelled and its files were removed.
        Cancelled = "cancelled",
    }
}

impl FetchStatus {
    /// Whether it has stopped for good or until its user resumes it: completed, cancelled or failed.
    pub fn has_ended(self) -> bool {
        self.is_final() || self == FetchStatus::Failed
    }

    /// Whether nothing can follow: unlike a fetch that has failed, a completed or cancelled one cannot be resumed.
    pub fn is_final(self) -> bool {
        matches!(self, FetchStatus::Completed | FetchStatus::Cancelled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_back_from_its_text_and_a_failed_fetch_has_ended_but_can_go_on() {
        for status in FetchStatus::ALL.iter().copied() {
            assert_eq!(FetchStatus::from_text(status.as_text()), Some(status));
            assert_eq!(serde_json::to_value(status).unwrap(), status.as_text());
        }
        assert_eq!(FetchStatus::from_text("Pending"), None);
        let of = |holds: fn(FetchStatus) -> bool| {
            [
                FetchStatus::Pending,
                FetchStatus::Downloading,
                FetchStatus::Paused,
                FetchStatus::Completed,
                FetchStatus::Failed,
                FetchStatus::Cancelled,
            ]
            .map(holds)
        };
        assert_eq!(of(FetchStatus::has_ended), [false, false, false, true, true, true]);
        assert_eq!(of(FetchStatus::is_final), [false, false, false, true, false, true]);
    }
}
