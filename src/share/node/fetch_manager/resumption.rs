//! Suspending fetches when the node leaves or stops, and resuming them later from what lies on disk.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::table::FetchEntry;
use super::{start_transfer, track_fetched, unknown_fetch_error};
use crate::share::node::error::folder_write_error;
use crate::share::node::store::FetchRow;
use crate::share::node::{NodeError, NodeInner};
use crate::share::transfer::{self, Fetch, FetchSpec, FetchStatus};

const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// Resumes the fetches that were in progress when the process or the user's session ended.
pub(in crate::share::node) fn resume_all(inner: &Arc<NodeInner>) {
    let _resume_guard = inner.fetches.resume_lock.lock();
    let interrupted: Vec<FetchRow> = {
        let entries = inner.fetches.entries.lock();
        // Failed fetches wait on disk until the user acts on them.
        let is_left = |entry: &&FetchEntry| entry.fetch.is_none() && !entry.row.status.has_ended();
        entries.values().filter(is_left).map(|entry| entry.row.clone()).collect()
    };
    for row in interrupted {
        if let Err(error) = resume(inner, &row) {
            log::warn!("{}: fetch of {}: {error}", inner.user, row.file_name);
            set_row(inner, FetchRow { status: FetchStatus::Failed, error: Some(error.to_string()), ..row });
        }
    }
}

pub(super) fn resume(inner: &Arc<NodeInner>, row: &FetchRow) -> Result<(), NodeError> {
    let target = Path::new(&row.save_path);
    // The shared folders may have changed since the start. If so, the data stays until the fetch is cancelled.
    inner.published_files.folders().check_target(target)?;
    let folder = folder_of(row);
    let left = transfer::find_interrupted(folder, &row.id).map_err(|error| folder_write_error(folder, &error))?;
    match left {
        Some(spec) if spec.save_path == target => {
            // A failed fetch starts paused, until the user resumes it.
            let is_paused = matches!(row.status, FetchStatus::Paused | FetchStatus::Failed);
            start_transfer(inner, FetchSpec { is_paused, ..spec })
        }
        // The process ended just after the file was moved to its final place, before the completion was recorded.
        None if matches!(row.status, FetchStatus::Pending | FetchStatus::Downloading)
            && inner.published_files.folders().reopen(target).is_ok_and(|it| it.metadata.len() == row.total_size) =>
        {
            track_fetched(inner, row)?;
            let downloaded_size = row.total_size;
            set_row(inner, FetchRow { status: FetchStatus::Completed, error: None, downloaded_size, ..row.clone() });
            Ok(())
        }
        _ => {
            // A part file without a journal is useless.
            transfer::discard_leftovers(folder, &row.id).map_err(|error| folder_write_error(folder, &error))?;
            Err(NodeError::NotFound("nothing is left of what had come: fetch it again".to_owned()))
        }
    }
}

/// The data is kept, so that [`resume_all`] can continue.
pub(in crate::share::node) fn suspend_all(inner: &NodeInner) {
    let running: Vec<Arc<Fetch>> = {
        let mut entries = inner.fetches.entries.lock();
        entries.values_mut().filter(|entry| !entry.status().is_final()).filter_map(|entry| entry.fetch.take()).collect()
    };
    std::thread::scope(|scope| {
        for fetch in &running {
            scope.spawn(|| {
                if !fetch.stop(STOP_TIMEOUT) {
                    log::warn!("{}: a fetch is slow to let go", inner.user);
                }
            });
        }
    });
    // From now on the stored rows are shown; the last progress is outdated.
    for entry in inner.fetches.entries.lock().values_mut() {
        if !entry.status().is_final() {
            entry.progress = None;
        }
    }
}

/// Cancels a fetch that does not run.
pub(super) fn discard(inner: &NodeInner, row: FetchRow) -> Result<Value, NodeError> {
    let folder = folder_of(&row);
    transfer::discard_leftovers(folder, &row.id).map_err(|error| folder_write_error(folder, &error))?;
    let id = row.id.clone();
    set_row(inner, FetchRow { status: FetchStatus::Cancelled, error: None, ..row });
    let json = inner.fetches.entries.lock().get(&id).map(FetchEntry::json).ok_or_else(|| unknown_fetch_error(&id))?;
    inner.events.publish((), "fetches", &json!({ "id": id, "progress": &json }));
    Ok(json)
}

fn folder_of(row: &FetchRow) -> &Path {
    Path::new(&row.save_path).parent().unwrap_or(Path::new("/"))
}

fn set_row(inner: &NodeInner, row: FetchRow) {
    if let Err(error) = inner.context.store.put_fetch(&inner.user, &row) {
        log::warn!("{}: fetch {}: {error}", inner.user, row.id);
    }
    if let Some(entry) = inner.fetches.entries.lock().get_mut(&row.id) {
        (entry.row, entry.progress) = (row, None);
    }
}
