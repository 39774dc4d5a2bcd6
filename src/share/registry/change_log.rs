//! The latest changes of the host listing, in order and numbered, for clients that follow it with CHANGES.
//!
//! Numbers keep growing across restarts because they start from the time, so a number of one process never means
//! something else in the next. A client whose number is no longer in the log reads the whole list again.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{HostRecord, Registry, Slot};
use crate::model::{Millis, Name};
use crate::share::wire::{FileEntry, FileName};

const CHANGES_MAX: usize = 16_384;
/// Changes are logged for this long after the last request for them; with no followers they are only counted.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// A reappearing host with more files than this resets the log instead of adding an entry for each file.
const RELISTED_FILES_MAX: usize = 1_024;

#[derive(Debug, Clone, PartialEq)]
pub enum ListingChangeKind {
    /// The host is listed, or its address or display name has changed.
    HostListed,
    /// The host and all its files are no longer listed.
    HostUnlisted,
    /// A file's current entry; `None` if it is no longer listed.
    File(FileName, Option<Arc<FileEntry>>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct ListingChange {
    pub hostname: Name,
    pub display_name: Arc<str>,
    pub addr: (IpAddr, u16),
    pub kind: ListingChangeKind,
}

/// The changes after the number that a client knows.
#[derive(Debug, Clone, PartialEq)]
pub enum ListingUpdate {
    /// The changes up to this number.
    Changes(u64, Vec<ListingChange>),
    /// The client's number is not in the log: it must read the whole list, and continue after this number.
    Reset(u64),
}

#[derive(Debug, Default)]
pub(super) struct ChangeLog {
    version: u64,
    entries: VecDeque<ListingChange>,
    /// Changes are logged until then.
    followed_until: Option<Millis>,
}

impl ChangeLog {
    /// Returns whether the next change is to be logged. With no followers it only counts the change and clears the log,
    /// so that later clients read the whole list.
    fn retain_or_count(&mut self, now: Millis) -> bool {
        let is_wanted = self.followed_until.is_some_and(|until| now <= until);
        if !is_wanted {
            self.reset();
        }
        is_wanted
    }

    fn push(&mut self, listing_change: ListingChange) {
        if self.entries.len() >= CHANGES_MAX {
            self.entries.pop_front();
        }
        self.entries.push_back(listing_change);
        self.version += 1;
    }

    /// Makes every follower read the whole list.
    fn reset(&mut self) {
        self.entries.clear();
        self.version += 1;
    }
}

impl Registry {
    /// Restarts with an empty log at this number.
    pub fn restart_change_log(&mut self, version: u64) {
        self.change_log = ChangeLog { version, entries: VecDeque::new(), followed_until: None };
    }

    pub fn version(&self) -> u64 {
        self.change_log.version
    }

    /// Up to `at_most` changes after `since`; without a number, the point to start from. Call [`Registry::expire`]
    /// first. Changes are logged for a while from now on.
    pub fn changes_since(&mut self, now: Millis, since: Option<u64>, at_most: usize) -> ListingUpdate {
        let now = self.advance_clock(now);
        self.change_log.followed_until = Some(now.plus(FOLLOW_TIMEOUT));
        let ChangeLog { version, entries, .. } = &self.change_log;
        let missed = since.and_then(|since| version.checked_sub(since));
        let missed = missed.and_then(|missed| usize::try_from(missed).ok()).filter(|missed| *missed <= entries.len());
        let Some(missed) = missed else { return ListingUpdate::Reset(*version) };
        let some: Vec<ListingChange> = entries.range(entries.len() - missed..).take(at_most).cloned().collect();
        ListingUpdate::Changes(version - (missed - some.len()) as u64, some)
    }

    /// When the next host times out unless it is seen before.
    pub fn next_expiry(&self) -> Option<Millis> {
        self.live_by_last_seen.first().map(|(last_seen_at, _)| last_seen_at.plus(self.peer_timeout))
    }

    /// Logs that a host is listed or has changed. If it was not listed before, its published files are logged as well.
    pub(super) fn log_host_listed(&mut self, slot: Slot, was_shown: bool) {
        let Some(host) = &self.slots[slot as usize] else { return };
        if !self.change_log.retain_or_count(self.now) {
            return;
        }
        self.change_log.push(listing_change(host, ListingChangeKind::HostListed));
        if was_shown || host.published_count == 0 {
            return;
        }
        if host.files.len() > RELISTED_FILES_MAX {
            return self.change_log.reset();
        }
        for (fname, entry) in host.files.iter().filter(|(_, entry)| entry.is_published) {
            self.change_log.push(listing_change(host, ListingChangeKind::File(fname.clone(), Some(Arc::clone(entry)))));
        }
    }

    pub(super) fn log_host_unlisted(&mut self, slot: Slot) {
        if let Some(host) = &self.slots[slot as usize]
            && self.change_log.retain_or_count(self.now)
        {
            self.change_log.push(listing_change(host, ListingChangeKind::HostUnlisted));
        }
    }

    pub(super) fn log_file_change(&mut self, slot: Slot, fname: &FileName, entry: Option<Arc<FileEntry>>) {
        if let Some(host) = self.slots[slot as usize].as_ref().filter(|host| host.is_live)
            && self.change_log.retain_or_count(self.now)
        {
            self.change_log.push(listing_change(host, ListingChangeKind::File(fname.clone(), entry)));
        }
    }
}

fn listing_change(host: &HostRecord, kind: ListingChangeKind) -> ListingChange {
    ListingChange {
        hostname: host.name.clone(),
        display_name: Arc::clone(&host.display_name),
        addr: (host.ip, host.port),
        kind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis(1_000_000);

    fn change(number: usize) -> ListingChange {
        ListingChange {
            hostname: Name::new(&format!("h{number}")).unwrap(),
            display_name: "h".into(),
            addr: ([192, 0, 2, 1].into(), 6001),
            kind: ListingChangeKind::HostListed,
        }
    }

    #[test]
    fn whoever_knows_a_number_that_is_kept_is_told_what_came_behind_it() {
        let mut registry = Registry::new(std::time::Duration::from_secs(60), super::super::RegistryLimits::default());
        registry.restart_change_log(1_000);
        assert_eq!(registry.changes_since(NOW, None, 10), ListingUpdate::Reset(1_000));
        assert_eq!(registry.changes_since(NOW, Some(1_000), 10), ListingUpdate::Changes(1_000, vec![]));
        for elsewhere in [0, 999, 1_001, u64::MAX] {
            assert_eq!(registry.changes_since(NOW, Some(elsewhere), 10), ListingUpdate::Reset(1_000), "{elsewhere}");
        }
        (0..3).for_each(|number| registry.change_log.push(change(number)));
        assert_eq!(
            registry.changes_since(NOW, Some(1_000), 2),
            ListingUpdate::Changes(1_002, vec![change(0), change(1)])
        );
        assert_eq!(registry.changes_since(NOW, Some(1_002), 2), ListingUpdate::Changes(1_003, vec![change(2)]));
        (0..CHANGES_MAX).for_each(|number| registry.change_log.push(change(number)));
        let version = 1_003 + CHANGES_MAX as u64;
        assert_eq!(registry.changes_since(NOW, Some(1_002), 1), ListingUpdate::Reset(version));
        assert_eq!(registry.changes_since(NOW, Some(1_003), 1), ListingUpdate::Changes(1_004, vec![change(0)]));
        registry.change_log.reset();
        assert_eq!(registry.changes_since(NOW, Some(version), 1), ListingUpdate::Reset(version + 1));
        assert_eq!(registry.changes_since(NOW, Some(version + 1), 1), ListingUpdate::Changes(version + 1, vec![]));
    }
    #[test]
    fn where_nobody_follows_changes_are_counted_and_not_kept() {
        let mut registry = Registry::new(Duration::from_secs(60), super::super::RegistryLimits::default());
        registry.restart_change_log(1_000);
        let happens = |registry: &mut Registry, at: Millis| {
            if registry.change_log.retain_or_count(at) {
                registry.change_log.push(change(1));
            }
        };
        happens(&mut registry, NOW);
        assert_eq!((registry.version(), registry.change_log.entries.len()), (1_001, 0));
        assert_eq!(
            registry.changes_since(NOW, Some(1_000), 10),
            ListingUpdate::Reset(1_001),
            "what nobody had asked for is not known"
        );
        // From then on changes are logged, until the follow timeout.
        let last = NOW.plus(FOLLOW_TIMEOUT);
        happens(&mut registry, last);
        assert_eq!(registry.changes_since(last, Some(1_001), 10), ListingUpdate::Changes(1_002, vec![change(1)]));
        happens(&mut registry, last.plus(FOLLOW_TIMEOUT).plus(Duration::from_millis(1)));
        assert_eq!(registry.change_log.entries.len(), 0, "and what was kept goes");
        assert_eq!(registry.changes_since(last, Some(1_002), 10), ListingUpdate::Reset(1_003));
    }
}
