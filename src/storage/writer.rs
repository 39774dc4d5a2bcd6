//! The one thread that turns queued changes into transactions.
//!
//! **Independent** changes stand for themselves: one that fails leaves no trace (each runs in a savepoint), and the
//! others of its transaction are committed.
//!
//! **Chained** changes are the history of a room's memory, and the disk always holds a prefix of it: from the first
//! chained change that fails, every later one of the same epoch fails too, including those already queued. Changes of
//! earlier transactions are not affected, nor are those of its own transaction if it failed before it wrote anything.
//! Otherwise the whole transaction is rolled back: chained changes have no savepoint, because they fail only with the
//! disk or through a programming error, and a savepoint would cost each of them a quarter of its time. After that
//! transaction the epoch advances. The room then reads its state back and continues in the new epoch:
//!
//! 1. it keeps all other threads from its memory (its own lock),
//! 2. [`Store::current_epoch`](super::Store::current_epoch): from then on no change of an older epoch can reach the
//!    disk,
//! 3. [`Store::read`](super::Store::read): the state that all responses so far were built on.

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::commit_handle::{Batch, CommitCallback, TransactionOutcome};
use super::engine::{Change, ChangeFailure, WriteConnection};
use super::{CommitHandle, StoreError};
use crate::net::counters::LatencyHistogram;

/// When so many changes are queued, further ones fail with [`StoreError::Busy`].
pub(super) const QUEUED_CHANGES_MAX: usize = 65_536;

/// Wraps the run of all callbacks of a transaction; it must call its argument exactly once.
pub(super) type CallbackWrapper = Box<dyn Fn(&mut dyn FnMut()) + Send + Sync>;

/// An epoch of chained changes: from one rebuild of a room's memory to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch(u64);

/// The pseudo-epoch of changes that are not chained.
pub(super) const INDEPENDENT: Epoch = Epoch(0);

struct QueuedChange {
    change: Change,
    epoch: Epoch,
}

struct QueueState {
    /// What goes into the next transaction.
    pending: Vec<QueuedChange>,
    /// The batch of `pending`.
    batch: Arc<Batch>,
    /// The batch of the transaction in progress.
    running_batch: Option<Arc<Batch>>,
    next_sequence_number: u64,
    epoch: Epoch,
    /// A chained change could not even be enqueued: later ones of its epoch fail at once, those before it are still
    /// committed, and the epoch advances after them.
    epoch_ended: bool,
    is_closed: bool,
    is_writer_asleep: bool,
    transactions_begun: u64,
    /// Transactions that are finished, including their callbacks.
    transactions_finished: u64,
}

pub(super) struct ChangeQueue {
    state: Mutex<QueueState>,
    /// Wakes the writer: there is work, or the queue is closed.
    work_available: Condvar,
    epoch_advanced: Condvar,
    transaction_finished: Condvar,
    pub(super) commit_latencies: LatencyHistogram,
    pub(super) callback_wrapper: OnceLock<CallbackWrapper>,
}

impl ChangeQueue {
    pub(super) fn new() -> ChangeQueue {
        ChangeQueue {
            state: Mutex::new(QueueState {
                pending: Vec::new(),
                batch: Batch::new(),
                running_batch: None,
                next_sequence_number: 1,
                epoch: Epoch(1),
                epoch_ended: false,
                is_closed: false,
                is_writer_asleep: false,
                transactions_begun: 0,
                transactions_finished: 0,
            }),
            work_available: Condvar::new(),
            epoch_advanced: Condvar::new(),
            transaction_finished: Condvar::new(),
            commit_latencies: LatencyHistogram::default(),
            callback_wrapper: OnceLock::new(),
        }
    }

    /// Blocks until an ended epoch has advanced.
    pub(super) fn current_epoch(&self) -> Epoch {
        let mut state = self.state.lock();
        self.epoch_advanced.wait_while(&mut state, |state| state.epoch_ended);
        state.epoch
    }

    /// Does memory work under one short lock.
    pub(super) fn push(&self, epoch: Epoch, change: Change) -> CommitHandle {
        let chained = epoch != INDEPENDENT;
        let mut state = self.state.lock();
        let sequence_number = state.next_sequence_number;
        state.next_sequence_number += 1;
        if state.is_closed {
            return CommitHandle::rejected(sequence_number, StoreError::closed());
        }
        if chained && (epoch != state.epoch || state.epoch_ended) {
            return CommitHandle::rejected(sequence_number, StoreError::superseded());
        }
        if state.pending.len() >= QUEUED_CHANGES_MAX {
            state.epoch_ended |= chained;
            return CommitHandle::rejected(sequence_number, StoreError::Busy);
        }
        let index = state.pending.len() as u32; // below QUEUED_CHANGES_MAX
        state.pending.push(QueuedChange { change, epoch });
        let batch = Arc::clone(&state.batch);
        let wake = std::mem::replace(&mut state.is_writer_asleep, false);
        drop(state);
        if wake {
            self.work_available.notify_one();
        }
        CommitHandle::in_batch(sequence_number, batch, index)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.state.lock().pending.len()
    }

    /// Waits until every change enqueued before has its outcome and its callbacks have run.
    pub(super) fn wait_committed(&self) {
        let mut state = self.state.lock();
        let last = state.transactions_begun + u64::from(!state.pending.is_empty());
        self.transaction_finished.wait_while(&mut state, |state| state.transactions_finished < last);
    }

    /// The writer ends after the changes that are queued.
    pub(super) fn close(&self) {
        self.state.lock().is_closed = true;
        self.work_available.notify_one();
    }

    /// Moves the next transaction's changes into `changes`. Waits for them, until `until` if that is given.
    fn next_batch(&self, changes: &mut Vec<QueuedChange>, until: Option<Instant>) -> WriterWakeup {
        let mut state = self.state.lock();
        while state.pending.is_empty() {
            if state.is_closed {
                return WriterWakeup::Closed;
            }
            state.is_writer_asleep = true;
            match until {
                None => self.work_available.wait(&mut state),
                Some(until) => {
                    if self.work_available.wait_until(&mut state, until).timed_out()
                        && state.pending.is_empty()
                        && !state.is_closed
                    {
                        state.is_writer_asleep = false;
                        return WriterWakeup::Idle;
                    }
                }
            }
        }
        state.is_writer_asleep = false;
        std::mem::swap(&mut state.pending, changes);
        let batch = std::mem::replace(&mut state.batch, Batch::new());
        state.running_batch = Some(Arc::clone(&batch));
        state.transactions_begun += 1;
        WriterWakeup::Work(NextBatch { batch, epoch: state.epoch, epoch_ended: state.epoch_ended })
    }

    /// The epoch advances first, so that whoever learns of a failure gets the new one.
    fn finish(&self, next: &NextBatch, outcome: TransactionOutcome, epoch_broken: bool) {
        let mut state = self.state.lock();
        if epoch_broken || next.epoch_ended {
            state.epoch = Epoch(state.epoch.0 + 1);
            state.epoch_ended = false;
            self.epoch_advanced.notify_all();
        }
        state.running_batch = None;
        drop(state);
        self.publish(&next.batch, outcome);
        self.state.lock().transactions_finished += 1;
        self.transaction_finished.notify_all();
    }

    /// Runs the callbacks, on the writer's own thread: the responses of one transaction go out while the changes of the
    /// next one gather. A separate thread would be woken for every transaction, and the next would begin with the few
    /// changes queued by then: with 100 clients, total throughput was a sixth lower.
    fn publish(&self, batch: &Batch, outcome: TransactionOutcome) {
        self.run_callbacks(batch, batch.publish(outcome));
        // Callbacks registered after the outcome was visible depend on it, so they run after the others.
        self.run_callbacks(batch, batch.take_late_callbacks());
    }

    fn run_callbacks(&self, batch: &Batch, callbacks: Vec<CommitCallback>) {
        if callbacks.is_empty() {
            return;
        }
        let mut callbacks = callbacks.into_iter();
        let mut run = || {
            for callback in callbacks.by_ref() {
                if panic::catch_unwind(AssertUnwindSafe(|| callback.run(batch))).is_err() {
                    log::error!("what was left to be done after a transaction panicked");
                }
            }
        };
        match self.callback_wrapper.get() {
            Some(wrapper) => wrapper(&mut run),
            None => run(),
        }
    }
}

enum WriterWakeup {
    Work(NextBatch),
    /// The time is up, and there is nothing to do.
    Idle,
    /// The store is closed and the queue is empty.
    Closed,
}

struct NextBatch {
    batch: Arc<Batch>,
    /// The epoch at the transaction's start; only the writer advances it.
    epoch: Epoch,
    /// The transaction contains the last chained changes of the epoch.
    epoch_ended: bool,
}

pub(super) struct Writer {
    connection: Box<dyn WriteConnection>,
}

impl Writer {
    pub(super) fn new(connection: Box<dyn WriteConnection>) -> Writer {
        Writer { connection }
    }

    /// Runs transactions until the store is closed; returns the connection.
    pub(super) fn run(mut self, queue: &ChangeQueue) -> Box<dyn WriteConnection> {
        let guard = FailPendingOnDrop(queue);
        let mut changes = Vec::new();
        loop {
            let next = match queue.next_batch(&mut changes, self.connection.upkeep_due_at()) {
                WriterWakeup::Work(next) => next,
                WriterWakeup::Idle => {
                    self.connection.upkeep();
                    continue;
                }
                WriterWakeup::Closed => break,
            };
            let chained = changes.iter().any(|queued| queued.epoch == next.epoch);
            let began_at = Instant::now();
            let (outcome, epoch_broken) = match self.run_transaction(&mut changes, next.epoch) {
                Ok(done) => (TransactionOutcome::Committed(done.failures), done.epoch_broken),
                Err(error) => {
                    log::error!("a transaction was not stored: {error}");
                    (TransactionOutcome::RolledBack(error), chained)
                }
            };
            queue.commit_latencies.record(began_at.elapsed());
            // Outside the lock, changes that a rolled-back transaction did not reach are dropped: they may own a room's
            // data.
            changes.clear();
            queue.finish(&next, outcome, epoch_broken);
            self.connection.after_callbacks();
        }
        if self.connection.upkeep_due_at().is_some() {
            self.connection.upkeep();
        }
        drop(guard);
        self.connection
    }

    /// An error means that none of the changes took effect.
    fn run_transaction(
        &mut self,
        changes: &mut Vec<QueuedChange>,
        epoch: Epoch,
    ) -> Result<CommittedTransaction, StoreError> {
        self.connection.begin()?;
        let mut done = CommittedTransaction { failures: Vec::new(), epoch_broken: false };
        for (index, queued) in (0..).zip(changes.drain(..)) {
            let chained = queued.epoch != INDEPENDENT;
            if chained && (queued.epoch != epoch || done.epoch_broken) {
                done.failures.push((index, StoreError::superseded()));
                continue;
            }
            match self.connection.run_change(queued.change, !chained) {
                Ok(()) => {}
                Err(ChangeFailure::Change(error)) => {
                    done.failures.push((index, error));
                    done.epoch_broken |= chained;
                }
                Err(ChangeFailure::Transaction(error)) => {
                    self.connection.roll_back();
                    return Err(error);
                }
            }
        }
        self.connection.commit()?;
        Ok(done)
    }
}

struct CommittedTransaction {
    failures: Vec<(u32, StoreError)>,
    /// One of the failed changes was chained and of the current epoch.
    epoch_broken: bool,
}

/// If the writer ends by a panic, nobody waits for the queued changes forever.
struct FailPendingOnDrop<'s>(&'s ChangeQueue);

impl Drop for FailPendingOnDrop<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.is_closed = true;
        state.epoch_ended = false;
        let changes = std::mem::take(&mut state.pending);
        let batches = [state.running_batch.take(), Some(Arc::clone(&state.batch))];
        self.0.epoch_advanced.notify_all();
        state.transactions_finished = u64::MAX;
        self.0.transaction_finished.notify_all();
        drop(state);
        for batch in batches.into_iter().flatten() {
            self.0.publish(
                &batch,
                TransactionOutcome::RolledBack(StoreError::Unavailable("the writer has ended".to_owned())),
            );
        }
        drop(changes);
    }
}
