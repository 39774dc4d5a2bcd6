//! Finds published files that resemble one that is about to be published: by size and time, or by name, at a cost that
//! does not depend on the number of files.

use std::collections::{BTreeSet, HashSet};

use super::{ConnId, Registry, Slot};
use crate::model::Millis;
use crate::share::similarity::SAME_MODIFIED_S;
use crate::share::wire::{FileEntry, FileName, HostEntry};

/// Maximum number of candidates from each index.
const CANDIDATES_MAX: usize = 256;
/// Maximum number of index steps for that, including hosts that are skipped.
const STEPS_MAX: usize = 4_096;

/// Published files ordered by size, then by modification time in whole seconds.
#[derive(Debug, Default)]
pub(super) struct SizeIndex(BTreeSet<(u64, i64, Slot, FileName)>);

impl SizeIndex {
    fn sort_key(entry: &FileEntry) -> (u64, i64) {
        // Times are within 2^53 seconds, so this cannot overflow.
        (entry.size, entry.modified.get().floor() as i64)
    }

    /// Replaces a file's former entry (if any) with its current one (if any).
    pub(super) fn replace(&mut self, slot: Slot, fname: &FileName, was: Option<&FileEntry>, is: Option<&FileEntry>) {
        let (was, is) = (was.map(SizeIndex::sort_key), is.map(SizeIndex::sort_key));
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

    /// Files of this size that were modified in this range of seconds, of hosts for which `counts` holds.
    fn modified_between<'s>(
        &'s self,
        size: u64,
        (from, to): (i64, i64),
        counts: impl Fn(Slot) -> bool + 's,
    ) -> impl Iterator<Item = (Slot, &'s FileName)> {
        let mut rest = self.0.range((size, from, 0, FileName::minimum())..);
        let next = move |_step| {
            let (its, at, slot, fname) = rest.next().filter(|(its, at, _, _)| (*its, *at) <= (size, to))?;
            if counts(*slot) {
                return Some(Some((*slot, fname)));
            }
            // Skip everything that this host has for that second in one step.
            rest = self.0.range((*its, *at, slot + 1, FileName::minimum())..);
            Some(None)
        };
        (0..STEPS_MAX).map_while(next).flatten().take(CANDIDATES_MAX)
    }
}

impl Registry {
    /// Up to `at_most` published files of hosts other than this connection's: first those with the same size and time,
    /// then those with the same name, then those with the same size.
    pub fn similar_files(
        &mut self,
        now: Millis,
        conn: ConnId,
        fname: &FileName,
        size: u64,
        modified: Option<f64>,
        at_most: usize,
    ) -> Vec<(FileName, HostEntry)> {
        let now = self.advance_clock(now);
        let own = self.by_conn.get(&conn).copied();
        let counts = |slot: Slot| Some(slot) != own && self.is_live_at(now, slot);
        let of_size =
            |seconds| self.by_size.modified_between(size, seconds, counts).map(|(slot, name)| (slot, name.clone()));
        let second = |at: f64| at.floor() as i64;
        let exact = modified.map(|at| of_size((second(at - SAME_MODIFIED_S), second(at + SAME_MODIFIED_S))));
        let holders = self.by_file.page(fname, None, STEPS_MAX).into_iter().filter(|slot| counts(*slot));
        let named = holders.take(CANDIDATES_MAX).map(|slot| (slot, fname.clone()));
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
