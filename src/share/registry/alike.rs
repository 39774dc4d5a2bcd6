//! Which published files look like one that is about to be published: found by size and time, or by name, at the same
//! cost however many files there are.

use std::collections::{BTreeSet, HashSet};

use super::{ConnId, Registry, Slot};
use crate::model::Millis;
use crate::share::wire::{FileEntry, FileName, HostEntry};

/// Modification times that are no further apart are one, seconds: file systems round.
const SAME_MODIFIED_S: f64 = 2.0;
/// How many files are looked at in each of the ways, those of hosts that are gone included.
const LOOKED_AT: usize = 256;

/// Published files by their size, and where that is the same by their time of change (whole seconds).
#[derive(Debug, Default)]
pub(super) struct Sizes(BTreeSet<(u64, i64, Slot, FileName)>);

impl Sizes {
    fn key(slot: Slot, fname: &FileName, entry: &FileEntry) -> (u64, i64, Slot, FileName) {
        // Within 2^53.
        (entry.size, entry.modified.get().floor() as i64, slot, fname.clone())
    }

    pub(super) fn insert(&mut self, slot: Slot, fname: &FileName, entry: &FileEntry) {
        self.0.insert(Sizes::key(slot, fname, entry));
    }

    pub(super) fn remove(&mut self, slot: Slot, fname: &FileName, entry: &FileEntry) {
        self.0.remove(&Sizes::key(slot, fname, entry));
    }

    /// Those of a size that changed in these seconds. (A set is entered with a whole key: `name` is any name.)
    fn between<'s>(
        &'s self,
        size: u64,
        from: i64,
        to: i64,
        name: &FileName,
    ) -> impl Iterator<Item = (Slot, &'s FileName)> + use<'s> {
        // Behind all of the second before: there is no such slot.
        let first = (size, from.saturating_sub(1), Slot::MAX, name.clone());
        self.0
            .range(first..)
            .take_while(move |(its, at, _, _)| (*its, *at) <= (size, to))
            .map(|(_, _, slot, fname)| (*slot, fname))
            .take(LOOKED_AT)
    }
}

impl Registry {
    /// Published files of other hosts than the one of this connection, `at_most` so many: those of the same size and
    /// time, then those of that name, then those of the same size.
    pub fn alike(
        &mut self,
        now: Millis,
        conn: ConnId,
        fname: &FileName,
        size: u64,
        modified: Option<f64>,
        at_most: usize,
    ) -> Vec<(FileName, HostEntry)> {
        let now = self.at(now);
        let own = self.by_conn.get(&conn).copied();
        let exact = modified.map(|at| {
            let (from, to) = ((at - SAME_MODIFIED_S).floor() as i64, (at + SAME_MODIFIED_S).floor() as i64);
            self.by_size.between(size, from, to, fname).map(|(slot, name)| (slot, name.clone())).collect::<Vec<_>>()
        });
        let named = self.by_file.page(fname, None, LOOKED_AT).into_iter().map(|slot| (slot, fname.clone()));
        let same_size = self.by_size.between(size, i64::MIN, i64::MAX, fname).map(|(slot, name)| (slot, name.clone()));
        let mut seen = HashSet::new();
        exact
            .into_iter()
            .flatten()
            .chain(named)
            .chain(same_size)
            .filter(|(slot, _)| Some(*slot) != own)
            .filter(|found| seen.insert(found.clone()))
            .filter_map(|(slot, name)| self.host_entry(now, slot, &name).map(|host| (name, host)))
            .take(at_most)
            .collect()
    }
}
