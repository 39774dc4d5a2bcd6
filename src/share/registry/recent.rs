//! What has changed of what is shown, in order, for who follows it: the last so many, each with a number.
//!
//! Numbers go on from one start to the next, as they begin with the time, so that nobody takes what one process has
//! told for what another has: whoever knows a number that is not among those kept reads the whole list anew.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{Host, Registry, Slot};
use crate::model::{Millis, Name};
use crate::share::wire::{FileEntry, FileName};

/// Changes that are kept.
const KEPT_MAX: usize = 16_384;
/// Changes are kept so long after somebody has asked for them last. Where nobody follows they are counted alone.
const KEPT_FOR: Duration = Duration::from_secs(5 * 60);
/// A host that is shown again brings so many files at most one by one; with more of them everybody reads anew.
const BROUGHT_MAX: usize = 1_024;

/// What has changed of a host.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// It is shown from now on, or is elsewhere, or has another name for people.
    Came,
    /// It is not shown any more, and none of its files.
    Gone,
    /// A file is shown like this, or not any more.
    File(FileName, Option<Arc<FileEntry>>),
}

/// A change of what is shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Changed {
    /// Whose it is.
    pub hostname: Name,
    /// Its name for people.
    pub display_name: Arc<str>,
    /// Where its peer port is.
    pub addr: (IpAddr, u16),
    /// What it is.
    pub what: What,
}

/// What somebody is told who knows everything up to a number.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// What came behind it, up to this number.
    Since(u64, Vec<Changed>),
    /// That is not known any more: the list is to be read. What comes behind this number is not in it.
    Anew(u64),
}

/// The last changes.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// The number of the last one.
    version: u64,
    log: VecDeque<Changed>,
    /// Until then somebody may ask for what comes.
    wanted_until: Option<Millis>,
}

impl Recent {
    /// Whether the change that comes now is to be kept. Where nobody follows it is counted here, and whoever comes later
    /// reads anew.
    fn keep_or_count(&mut self, now: Millis) -> bool {
        let is_wanted = self.wanted_until.is_some_and(|until| now <= until);
        if !is_wanted {
            self.forget();
        }
        is_wanted
    }

    fn push(&mut self, changed: Changed) {
        if self.log.len() >= KEPT_MAX {
            self.log.pop_front();
        }
        self.log.push_back(changed);
        self.version += 1;
    }

    /// Everybody reads anew.
    fn forget(&mut self) {
        self.log.clear();
        self.version += 1;
    }
}

impl Registry {
    /// Begins to count with this number, and keeps nothing of before.
    pub fn count_changes_from(&mut self, version: u64) {
        self.recent = Recent { version, log: VecDeque::new(), wanted_until: None };
    }

    /// The number of the last change.
    pub fn version(&self) -> u64 {
        self.recent.version
    }

    /// What has changed since that number, `at_most` so many changes; without one, how to begin. After
    /// [`Registry::expire`]. What comes from now on is kept for who asks so.
    pub fn changes(&mut self, now: Millis, since: Option<u64>, at_most: usize) -> Told {
        let now = self.at(now);
        self.recent.wanted_until = Some(now.plus(KEPT_FOR));
        let Recent { version, log, .. } = &self.recent;
        let behind = since.and_then(|since| version.checked_sub(since));
        let behind = behind.and_then(|behind| usize::try_from(behind).ok()).filter(|behind| *behind <= log.len());
        let Some(behind) = behind else { return Told::Anew(*version) };
        let some: Vec<Changed> = log.range(log.len() - behind..).take(at_most).cloned().collect();
        Told::Since(version - (behind - some.len()) as u64, some)
    }

    /// When the next host falls silent, if nothing is heard of it until then.
    pub fn next_silence(&self) -> Option<Millis> {
        self.live.first().map(|(heard_at, _)| heard_at.plus(self.timeout))
    }

    /// A host is shown from now on, or otherwise than before. One that was not shown brings what it has published.
    pub(super) fn tell_came(&mut self, slot: Slot, was_shown: bool) {
        let Some(host) = &self.slots[slot as usize] else { return };
        if !self.recent.keep_or_count(self.now) {
            return;
        }
        self.recent.push(changed(host, What::Came));
        if was_shown || host.published == 0 {
            return;
        }
        if host.files.len() > BROUGHT_MAX {
            return self.recent.forget();
        }
        for (fname, entry) in host.files.iter().filter(|(_, entry)| entry.is_published) {
            self.recent.push(changed(host, What::File(fname.clone(), Some(Arc::clone(entry)))));
        }
    }

    /// A host that was shown is not any more.
    pub(super) fn tell_gone(&mut self, slot: Slot) {
        if let Some(host) = &self.slots[slot as usize]
            && self.recent.keep_or_count(self.now)
        {
            self.recent.push(changed(host, What::Gone));
        }
    }

    /// A file of a host that is shown is shown otherwise than before.
    pub(super) fn tell_file(&mut self, slot: Slot, fname: &FileName, entry: Option<Arc<FileEntry>>) {
        if let Some(host) = self.slots[slot as usize].as_ref().filter(|host| host.is_live)
            && self.recent.keep_or_count(self.now)
        {
            self.recent.push(changed(host, What::File(fname.clone(), entry)));
        }
    }
}

fn changed(host: &Host, what: What) -> Changed {
    Changed {
        hostname: host.name.clone(),
        display_name: Arc::clone(&host.display_name),
        addr: (host.ip, host.port),
        what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis(1_000_000);

    fn change(number: usize) -> Changed {
        Changed {
            hostname: Name::new(&format!("h{number}")).unwrap(),
            display_name: "h".into(),
            addr: ([192, 0, 2, 1].into(), 6001),
            what: What::Came,
        }
    }

    #[test]
    fn whoever_knows_a_number_that_is_kept_is_told_what_came_behind_it() {
        let mut registry = Registry::new(std::time::Duration::from_secs(60), super::super::Bounds::default());
        registry.count_changes_from(1_000);
        assert_eq!(registry.changes(NOW, None, 10), Told::Anew(1_000));
        assert_eq!(registry.changes(NOW, Some(1_000), 10), Told::Since(1_000, vec![]));
        for elsewhere in [0, 999, 1_001, u64::MAX] {
            assert_eq!(registry.changes(NOW, Some(elsewhere), 10), Told::Anew(1_000), "{elsewhere}");
        }
        (0..3).for_each(|number| registry.recent.push(change(number)));
        assert_eq!(registry.changes(NOW, Some(1_000), 2), Told::Since(1_002, vec![change(0), change(1)]));
        assert_eq!(registry.changes(NOW, Some(1_002), 2), Told::Since(1_003, vec![change(2)]));
        (0..KEPT_MAX).for_each(|number| registry.recent.push(change(number)));
        let version = 1_003 + KEPT_MAX as u64;
        assert_eq!(registry.changes(NOW, Some(1_002), 1), Told::Anew(version));
        assert_eq!(registry.changes(NOW, Some(1_003), 1), Told::Since(1_004, vec![change(0)]));
        registry.recent.forget();
        assert_eq!(registry.changes(NOW, Some(version), 1), Told::Anew(version + 1));
        assert_eq!(registry.changes(NOW, Some(version + 1), 1), Told::Since(version + 1, vec![]));
    }
    #[test]
    fn where_nobody_follows_changes_are_counted_and_not_kept() {
        let mut registry = Registry::new(Duration::from_secs(60), super::super::Bounds::default());
        registry.count_changes_from(1_000);
        let happens = |registry: &mut Registry, at: Millis| {
            if registry.recent.keep_or_count(at) {
                registry.recent.push(change(1));
            }
        };
        happens(&mut registry, NOW);
        assert_eq!((registry.version(), registry.recent.log.len()), (1_001, 0));
        assert_eq!(registry.changes(NOW, Some(1_000), 10), Told::Anew(1_001), "what nobody had asked for is not known");
        // From then on it is kept, for as long as he may come again.
        let last = NOW.plus(KEPT_FOR);
        happens(&mut registry, last);
        assert_eq!(registry.changes(last, Some(1_001), 10), Told::Since(1_002, vec![change(1)]));
        happens(&mut registry, last.plus(KEPT_FOR).plus(Duration::from_millis(1)));
        assert_eq!(registry.recent.log.len(), 0, "and what was kept goes");
        assert_eq!(registry.changes(last, Some(1_002), 10), Told::Anew(1_003));
    }
}
