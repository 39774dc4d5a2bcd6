//! The table of a node's fetches: what is known of each, running or not.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use serde_json::{Value, json};

use crate::share::node::store::{FETCHES_MAX, FetchRow};
use crate::share::transfer::{Fetch, FetchProgress, FetchStatus};

/// Most failed fetches that keep their threads and open files; the others only have their data on disk.
const FAILED_FETCHES_HELD_MAX: usize = 8;

pub(in crate::share::node) struct FetchTable {
    pub(super) entries: Mutex<BTreeMap<String, FetchEntry>>,
    pub(super) changed: Condvar,
    /// Held while resuming fetches that do not run, so that none is resumed twice.
    pub(super) resume_lock: Mutex<()>,
}

impl FetchTable {
    pub(in crate::share::node) fn new(rows: Vec<FetchRow>) -> FetchTable {
        let entry = |row: FetchRow| (row.id.clone(), FetchEntry { row, fetch: None, progress: None });
        let entries = Mutex::new(rows.into_iter().map(entry).collect());
        FetchTable { entries, changed: Condvar::new(), resume_lock: Mutex::default() }
    }

    pub(in crate::share::node) fn active_count(&self) -> usize {
        let is_active = |entry: &&FetchEntry| entry.fetch.is_some() && entry.status() == FetchStatus::Downloading;
        self.entries.lock().values().filter(is_active).count()
    }
}

pub(super) struct FetchEntry {
    pub row: FetchRow,
    /// None if the fetch has ended or was released.
    pub fetch: Option<Arc<Fetch>>,
    pub progress: Option<FetchProgress>,
}

impl FetchEntry {
    pub(super) fn status(&self) -> FetchStatus {
        self.progress.as_ref().map_or(self.row.status, |progress| progress.status)
    }

    pub(super) fn json(&self) -> Value {
        let row = &self.row;
        let mut json = match &self.progress {
            Some(progress) => json!(progress),
            None => json!(FetchProgress {
                downloaded_size: row.downloaded_size,
                total_size: row.total_size,
                progress_percent: match row.total_size {
                    0 if row.status == FetchStatus::Completed => 100.0,
                    0 => 0.0,
                    total => row.downloaded_size as f64 / total as f64 * 100.0,
                },
                status: row.status,
                verified: row.is_verified,
                ..FetchProgress::default()
            }),
        };
        json["fetch_id"] = json!(row.id);
        json["file_name"] = json!(row.file_name);
        json["save_path"] = json!(row.save_path);
        json["error"] = json!(self.progress.as_ref().map_or(&row.error, |progress| &progress.error));
        // Two more names for fields above, which clients of the API expect.
        json["error_message"] = json["error"].clone();
        json["peer_hostname"] = json!(row.peer_hostname);
        json
    }
}

/// The status to store for resuming after a restart: a fetch that waits for a host, unlike one that its user has
/// paused, is to continue then.
pub(super) fn stored_status(progress: &FetchProgress) -> FetchStatus {
    match progress.status {
        FetchStatus::Paused if progress.error.is_some() => FetchStatus::Downloading,
        status => status,
    }
}

/// Makes room for one more: ended fetches go, oldest first.
pub(super) fn evict_oldest(entries: &mut BTreeMap<String, FetchEntry>) {
    while entries.len() >= FETCHES_MAX {
        let ended = entries.iter().filter(|(_, entry)| entry.status().has_ended());
        let Some(oldest) = ended.min_by_key(|(_, entry)| entry.row.began_at).map(|(id, _)| id.clone()) else { return };
        entries.remove(&oldest);
    }
}

/// All but the newest failed fetches lose their threads.
pub(super) fn release_failed(entries: &mut BTreeMap<String, FetchEntry>) {
    let is_held = |entry: &&mut FetchEntry| entry.fetch.is_some() && entry.status() == FetchStatus::Failed;
    let mut failed: Vec<&mut FetchEntry> = entries.values_mut().filter(is_held).collect();
    failed.sort_by_key(|entry| std::cmp::Reverse(entry.row.began_at));
    for entry in failed.into_iter().skip(FAILED_FETCHES_HELD_MAX) {
        // From now on the stored row is shown. The threads are not waited for.
        (entry.fetch, entry.progress) = (None, None);
    }
}
