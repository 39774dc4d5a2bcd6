//! A disk with the guarantees that a journal requires: committed changes stay, and of the others a crash keeps some
//! prefix.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use p2s2::internals::storage::Journal;

use crate::rng::Rng;

/// The committed rows of a room.
pub trait Rows {
    type Change;

    /// Applies changes that were committed together, or loses what the simulated fault loses.
    fn keep(&mut self, changes: Vec<Self::Change>);
}

pub struct Disk<R: Rows>(Arc<Mutex<Platter<R>>>);

pub struct Platter<R: Rows> {
    pub rows: R,
    pub pending: VecDeque<Vec<R::Change>>,
    pub appended: u64,
    pub committed: u64,
}

impl<R: Rows> Clone for Disk<R> {
    fn clone(&self) -> Disk<R> {
        Disk(Arc::clone(&self.0))
    }
}

impl<R: Rows> Journal for Disk<R> {
    type Change = R::Change;
    type Commit = u64;

    fn append(&self, changes: Vec<R::Change>) -> u64 {
        let mut disk = self.lock();
        disk.pending.push_back(changes);
        disk.appended += 1;
        disk.appended
    }

    fn latest(a: u64, b: u64) -> u64 {
        a.max(b)
    }

    fn is_committed(&self, commit: &u64) -> bool {
        *commit <= self.lock().committed
    }
}

impl<R: Rows> Disk<R> {
    pub fn with_rows(rows: R) -> Disk<R> {
        Disk(Arc::new(Mutex::new(Platter { rows, pending: VecDeque::new(), appended: 0, committed: 0 })))
    }

    pub fn lock(&self) -> MutexGuard<'_, Platter<R>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_idle(&self) -> bool {
        self.lock().pending.is_empty()
    }

    pub fn commit(&self) {
        let mut disk = self.lock();
        while let Some(changes) = disk.pending.pop_front() {
            disk.rows.keep(changes);
        }
        disk.committed = disk.appended;
    }

    /// The disk refuses the whole batch.
    pub fn fail(&self) {
        let mut disk = self.lock();
        disk.pending.clear();
        disk.committed = disk.appended;
    }

    /// A power cut: some prefix of the appended changes was written.
    pub fn crash(&self, rng: &mut Rng) {
        let kept = rng.below(self.lock().pending.len() as u64 + 1);
        let mut disk = self.lock();
        for _ in 0..kept {
            if let Some(changes) = disk.pending.pop_front() {
                disk.rows.keep(changes);
            }
        }
        drop(disk);
        self.fail();
    }
}
