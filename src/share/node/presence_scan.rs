//! Checks whether tracked files still exist: when they are listed, and all of them slowly in the background. Files that
//! have been missing for 30 days are no longer tracked.

use std::time::Duration;

use super::{NodeError, NodeInner};
use crate::model::{Clock, Millis};
use crate::share::files::TrackedFile;
use crate::share::wire::FileName;

pub(super) const BATCH_MAX: usize = 1_000;
/// Subscribers are notified of so many changes in a batch.
const NOTIFIED_FILES_MAX: usize = 64;
pub(super) const SCAN_INTERVAL: Duration = Duration::from_secs(30);
pub(super) const FIRST_SCAN_DELAY: Duration = Duration::from_secs(2);
/// A missing file's disk may be mounted again.
const FORGET_AFTER: Duration = Duration::from_secs(30 * 24 * 3600);

/// Stores which of these files have gone missing or come back.
pub(super) fn check_presence(inner: &NodeInner, files: &mut [TrackedFile]) -> Result<(), NodeError> {
    let now = Clock::wall();
    let mut changed = Vec::new();
    for file in files {
        let is_missing = file.is_missing();
        if is_missing != file.missing_since.is_some() {
            file.missing_since = is_missing.then_some(now);
            changed.push(file.clone());
        }
    }
    inner.files.set_missing(&changed)?;
    // A few notifications suffice: subscribers then read the list.
    for file in changed.iter().take(NOTIFIED_FILES_MAX) {
        inner.notify_file_changed(if file.missing_since.is_some() { "missing" } else { "found" }, file);
    }
    Ok(())
}

/// Checks all tracked files, one batch at a time.
#[derive(Debug, Default)]
pub(super) struct PresenceScan {
    last_name: Option<FileName>,
}

impl PresenceScan {
    /// Files that have been missing for too long are tracked no more.
    pub(super) fn scan_next_batch(&mut self, inner: &NodeInner) -> Result<(), NodeError> {
        let mut files = inner.files.list_after(self.last_name.as_ref(), BATCH_MAX)?;
        self.last_name = files.last().map(|file| file.name.clone());
        check_presence(inner, &mut files)?;
        let now = Clock::wall();
        for file in &files {
            let is_forgotten = |since: &Millis| since.until(now) >= FORGET_AFTER;
            let Some(since) = file.missing_since.filter(is_forgotten) else { continue };
            // It may have come back since the check.
            let Some(gone) = inner.files.remove_missing(&file.name, since)? else { continue };
            log::info!("{}: {} has been missing for 30 days, and is forgotten", inner.user, gone.name);
            if gone.is_published {
                inner.sync_later(&gone.name);
            }
            inner.notify_file_changed("removed", &TrackedFile { is_published: false, ..gone });
        }
        Ok(())
    }
}
