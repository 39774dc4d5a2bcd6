//! Which published files look like one that is about to be published: found by size and time, or by name, at the same
//! cost however many files there are.

use std::collections::{BTreeSet, HashSet};

use super::{ConnId, Registry, Slot};
use crate::model::Millis;
use crate::share::wire::{FileEntry, FileName, HostEntry};

/// Modification times that are no further apart are one, seconds: file systems round.
const SAME_MODIFIED_S: f64 = 2.0;
/// How many files are looked at in each of the ways.
const LOOKED_AT: usize = 256;
/// How many steps that takes at most, with those past the hosts that do not count.
const STEPS_MAX: usize = 4_096;

/// Published files by their size, and where that is the same by their time of change (whole seconds).
#[derive(Debug, Default)]
pub(super) struct Sizes(BTreeSet<(u64, i64, Slot, FileName)>);

impl Sizes {
    /// By what a file is found: its size, and the whole second of its change.
    fn place(entry: &FileEntry) -> (u64, i64) {
        // Within 2^53.
        (entry.size, entry.modified.get().floor() as i64)
    }

    /// Has a file found as it is now, where it is there, in place of how it was before.
    pub(super) fn replace(&mut self, slot: Slot, fname: &FileName, was: Option<&FileEntry>, is: Option<&FileEntry>) {
        let (was, is) = (was.map(Sizes::place), is.map(Sizes::place));
        if was == is {
            return;
        }
        if let Some((size, second)) = was {
            self.0.remove(&(size, second, slot, fname.clone()));
        }
        if let Some((size, second)) = is {
            self.0.insert((size, second, slot, fname.clone()));
        }
    }

    /// Those of a size that changed in these seconds, of hosts that count.
    fn between<'s>(
        &'s self,
        size: u64,
        (from, to): (i64, i64),
        counts: impl Fn(Slot) -> bool + 's,
    ) -> impl Iterator<Item = (Slot, &'s FileName)> {
        let mut rest = self.0.range((size, from, 0, FileName::before_all())..);
        let next = move |_step| {
            let (its, at, slot, fname) = rest.next().filter(|(its, at, _, _)| (*its, *at) <= (size, to))?;
            if counts(*slot) {
                return Some(Some((*slot, fname)));
            }
            // All that this host has of that second is passed in one step.
            rest = self.0.range((*its, *at, slot + 1, FileName::before_all())..);
            Some(None)
        };
        (0..STEPS_MAX).map_while(next).flatten().take(LOOKED_AT)
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
        let counts = |slot: Slot| Some(slot) != own && self.is_heard(now, slot);
        let of_size = |seconds| self.by_size.between(size, seconds, counts).map(|(slot, name)| (slot, name.clone()));
        let second = |at: f64| at.floor() as i64;
        let exact = modified.map(|at| of_size((second(at - SAME_MODIFIED_S), second(at + SAME_MODIFIED_S))));
        let holders = self.by_file.page(fname, None, STEPS_MAX).into_iter().filter(|slot| counts(*slot));
        let named = holders.take(LOOKED_AT).map(|slot| (slot, fname.clone()));
        let mut seen = HashSet::new();
        exact
            .into_iter()
            .flatten()
            .chain(named)
            .chain(of_size((i64::MIN, i64::MAX)))
            .filter(|found| seen.insert(found.clone()))
            .filter_map(|(slot, name)| self.host_entry(now, slot, &name).map(|host| (name, host)))
            .take(at_most)
            .collect()
    }
}
