//! Whether what is tracked is still there: looked at when it is shown, and all of it slowly beside other work. What has
//! been missing for very long is forgotten.

use std::time::Duration;

use super::{Inner, NodeError};
use crate::model::{Clock, Millis};
use crate::share::files::Tracked;
use crate::share::wire::FileName;

/// Most files that are looked at in one go.
pub(super) const AT_ONCE: usize = 1_000;
/// Of so many that are not where they were, at once, whoever watches is told.
const TOLD_MAX: usize = 64;
/// How often some of all are looked at.
pub(super) const EVERY: Duration = Duration::from_secs(30);
/// And for the first time after a start.
pub(super) const FIRST_IN: Duration = Duration::from_secs(2);
/// How long what is missing is remembered: a disk may be put back.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30 * 24 * 3600);

/// Looks at these files, and keeps what has changed.
pub(super) fn look(inner: &Inner, files: &mut [Tracked]) -> Result<(), NodeError> {
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
    // Whoever is told of one reads the list.
    for file in changed.iter().take(TOLD_MAX) {
        inner.files_changed(if file.missing_since.is_some() { "missing" } else { "found" }, file);
    }
    Ok(())
}

/// Whether it has been missing for so long that nobody waits for it any more.
fn is_over(file: &Tracked, now: Millis) -> bool {
    file.missing_since.is_some_and(|since| since.until(now) >= FORGOTTEN_AFTER)
}

/// Looks at all, a part at a time.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// The last name that was looked at.
    at: Option<FileName>,
}

impl Round {
    /// The next part of it.
    pub(super) fn go_on(&mut self, inner: &Inner) -> Result<(), NodeError> {
        let mut files = inner.files.after(self.at.as_ref(), AT_ONCE)?;
        self.at = files.last().map(|file| file.name.clone());
        look(inner, &mut files)?;
        let now = Clock::wall();
        for file in files.iter().filter(|file| is_over(file, now)) {
            let Some(since) = file.missing_since else { continue };
            // It may have come back since it was looked at.
            let Some(gone) = inner.files.remove_missing(&file.name, since)? else { continue };
            log::info!("{}: {} has been missing for 30 days, and is forgotten", inner.user, gone.name);
            if gone.is_published {
                inner.sync_later(&gone.name);
            }
            inner.files_changed("removed", &Tracked { is_published: false, ..gone });
        }
        Ok(())
    }
}
