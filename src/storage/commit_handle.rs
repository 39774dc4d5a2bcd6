//! How the caller who enqueued a change learns that it is on disk.
//!
//! All changes of one transaction share one outcome. Reading a known outcome is one atomic load; waiting for an unknown
//! one costs an entry in a list and one park; a callback ([`CommitHandle::on_commit`]) blocks no thread.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};

use parking_lot::Mutex;

use super::StoreError;

#[derive(Debug)]
pub(super) enum TransactionOutcome {
    /// All changes but these (by index, ascending), which failed and left no trace.
    Committed(Vec<(u32, StoreError)>),
    /// None of its changes took effect.
    RolledBack(StoreError),
}

const PENDING: u8 = 0;
/// No change failed: there is nothing to look up.
const ALL_COMMITTED: u8 = 1;
/// The outcome has to be read.
const SEE_OUTCOME: u8 = 2;

/// The changes of one transaction, from the first enqueued one to the outcome.
#[derive(Debug)]
pub(super) struct Batch {
    status: AtomicU8,
    outcome: OnceLock<TransactionOutcome>,
    waiters: Mutex<Waiters>,
    /// The threads that waited when the outcome became known, as a binary tree in which each wakes the two below it:
    /// the writer pays for one wake-up however many wait, and the waiters share no lock.
    wake_list: OnceLock<Vec<Thread>>,
    /// All callbacks have run, or the last of them are running now. Set under the lock of `waiters`.
    has_run_callbacks: AtomicBool,
}

#[derive(Debug, Default)]
struct Waiters {
    threads: Vec<Thread>,
    callbacks: Vec<CommitCallback>,
}

/// What is called with the outcome of the change at this index.
pub(super) struct CommitCallback {
    index: u32,
    run: Box<dyn FnOnce(Result<(), StoreError>) + Send>,
}

impl CommitCallback {
    /// The outcome of the batch must be known.
    pub(super) fn run(self, batch: &Batch) {
        (self.run)(batch.known_outcome_of(self.index).into_result());
    }
}

crate::model::debug_fields!(CommitCallback, |callback| index: callback.index);

impl Batch {
    pub(super) fn new() -> Arc<Batch> {
        Arc::new(Batch {
            status: AtomicU8::new(PENDING),
            outcome: OnceLock::new(),
            waiters: Mutex::default(),
            wake_list: OnceLock::new(),
            has_run_callbacks: AtomicBool::new(false),
        })
    }

    /// Returns the callbacks to run now. Called once; a second outcome would be ignored.
    #[must_use = "the callbacks have to be run"]
    pub(super) fn publish(&self, outcome: TransactionOutcome) -> Vec<CommitCallback> {
        let status = match &outcome {
            TransactionOutcome::Committed(failures) if failures.is_empty() => ALL_COMMITTED,
            _ => SEE_OUTCOME,
        };
        if self.outcome.set(outcome).is_err() {
            return Vec::new();
        }
        let mut waiters = self.waiters.lock();
        let Waiters { threads, callbacks } = std::mem::take(&mut *waiters);
        let wake_list = self.wake_list.get_or_init(|| threads);
        // Under the lock, so that nobody joins the list after it was taken.
        self.status.store(status, Ordering::Release);
        drop(waiters);
        if let Some(first) = wake_list.first() {
            first.unpark();
        }
        callbacks
    }

    pub(super) fn wait(&self) {
        if self.status.load(Ordering::Acquire) != PENDING {
            return;
        }
        let index = {
            let mut waiters = self.waiters.lock();
            if self.status.load(Ordering::Acquire) != PENDING {
                return;
            }
            waiters.threads.push(thread::current());
            waiters.threads.len() - 1
        };
        while self.status.load(Ordering::Acquire) == PENDING {
            thread::park();
        }
        if let Some(wake_list) = self.wake_list.get() {
            wake_list.iter().skip(2 * index + 1).take(2).for_each(Thread::unpark);
        }
    }

    /// Returns the callbacks registered while those from [`publish`](Batch::publish) were running. From now on no
    /// callback is queued any more, so that the writer proceeds however many arrive.
    #[must_use = "the callbacks have to be run"]
    pub(super) fn take_late_callbacks(&self) -> Vec<CommitCallback> {
        let mut waiters = self.waiters.lock();
        self.has_run_callbacks.store(true, Ordering::Release);
        std::mem::take(&mut waiters.callbacks)
    }

    /// Returns the callback if those of this batch have already run.
    fn add_callback(&self, callback: CommitCallback) -> Option<CommitCallback> {
        let mut waiters = self.waiters.lock();
        if self.has_run_callbacks.load(Ordering::Acquire) {
            return Some(callback);
        }
        waiters.callbacks.push(callback);
        None
    }

    fn known_outcome_of(&self, index: u32) -> ChangeOutcome {
        self.outcome_of(index).unwrap_or_else(|| unreachable!("asked only once the outcome is known"))
    }

    /// `None` while it is not known.
    fn outcome_of(&self, index: u32) -> Option<ChangeOutcome> {
        match self.status.load(Ordering::Acquire) {
            PENDING => None,
            ALL_COMMITTED => Some(ChangeOutcome::Committed),
            _ => Some(match self.outcome.get() {
                Some(TransactionOutcome::Committed(failures)) => {
                    match failures.binary_search_by_key(&index, |(at, _)| *at) {
                        Ok(position) => ChangeOutcome::Failed(failures[position].1.clone()),
                        Err(_) => ChangeOutcome::Committed,
                    }
                }
                Some(TransactionOutcome::RolledBack(error)) => ChangeOutcome::RolledBack(error.clone()),
                // Cannot happen, because the outcome is set before the status; if it did, nothing would be certain.
                None => ChangeOutcome::RolledBack(StoreError::Unavailable("the outcome is not known".to_owned())),
            }),
        }
    }
}

#[derive(Debug)]
pub(super) enum ChangeOutcome {
    Committed,
    /// It failed by itself, in a transaction that was committed: what it read is on disk.
    Failed(StoreError),
    /// It was rolled back with its transaction: what it read may never have existed.
    RolledBack(StoreError),
}

impl ChangeOutcome {
    fn into_result(self) -> Result<(), StoreError> {
        match self {
            ChangeOutcome::Committed => Ok(()),
            ChangeOutcome::Failed(error) | ChangeOutcome::RolledBack(error) => Err(error),
        }
    }
}

/// Tells the fate of a change that was enqueued. Cheap to clone; may be dropped.
#[derive(Clone)]
pub struct CommitHandle {
    sequence_number: u64,
    state: HandleState,
}

#[derive(Clone)]
enum HandleState {
    Committed,
    Rejected(Arc<StoreError>),
    InBatch(Arc<Batch>, u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitState {
    /// Not on disk yet.
    Pending,
    Committed,
    /// It changed nothing and never will; [`CommitHandle::wait`] says why.
    Failed,
}

impl CommitHandle {
    /// The handle of something that depends on no change; it is earlier than all others.
    pub fn committed() -> CommitHandle {
        CommitHandle { sequence_number: 0, state: HandleState::Committed }
    }

    pub(super) fn rejected(sequence_number: u64, error: StoreError) -> CommitHandle {
        CommitHandle { sequence_number, state: HandleState::Rejected(Arc::new(error)) }
    }

    pub(super) fn in_batch(sequence_number: u64, batch: Arc<Batch>, index: u32) -> CommitHandle {
        CommitHandle { sequence_number, state: HandleState::InBatch(batch, index) }
    }

    /// The handle of the change that was enqueued later; both must belong to one store. Of two chained changes of one
    /// epoch, the later one is on disk only if the earlier one is. Independent changes tell nothing about each other:
    /// wait for both.
    pub fn latest(a: CommitHandle, b: CommitHandle) -> CommitHandle {
        if b.sequence_number > a.sequence_number { b } else { a }
    }

    /// The position in the order of all changes enqueued to this store since it was opened, from 1 on.
    pub fn sequence_number(&self) -> u64 {
        self.sequence_number
    }

    /// Does not wait.
    pub fn state(&self) -> CommitState {
        match &self.state {
            HandleState::Committed => CommitState::Committed,
            HandleState::Rejected(_) => CommitState::Failed,
            HandleState::InBatch(batch, index) => match batch.outcome_of(*index) {
                None => CommitState::Pending,
                Some(ChangeOutcome::Committed) => CommitState::Committed,
                Some(ChangeOutcome::Failed(_) | ChangeOutcome::RolledBack(_)) => CommitState::Failed,
            },
        }
    }

    /// The outcome is known and the callbacks registered by others have run: a message sent now is sent after theirs.
    pub fn has_run_callbacks(&self) -> bool {
        match &self.state {
            HandleState::Committed | HandleState::Rejected(_) => true,
            HandleState::InBatch(batch, _) => batch.has_run_callbacks.load(Ordering::Acquire),
        }
    }

    /// Waits until the change is on disk, or never will be. Never call it inside a change: the writer would wait for
    /// itself.
    pub fn wait(&self) -> Result<(), StoreError> {
        self.wait_outcome().into_result()
    }

    /// Runs `work` as soon as the change is on disk or is certain never to be: at once on this thread if the [callbacks
    /// have run](CommitHandle::has_run_callbacks), else on the writer's thread before it begins the next transaction,
    /// in the order of registration. It must be short (sending a response). It may enqueue changes, but must not wait
    /// for one, nor close the store.
    pub fn on_commit(self, work: impl FnOnce(Result<(), StoreError>) + Send + 'static) {
        match self.state {
            HandleState::Committed => work(Ok(())),
            HandleState::Rejected(error) => work(Err(StoreError::clone(&error))),
            HandleState::InBatch(batch, index) => {
                let callback = CommitCallback { index, run: Box::new(work) };
                if let Some(callback) = batch.add_callback(callback) {
                    callback.run(&batch);
                }
            }
        }
    }

    pub(super) fn wait_outcome(&self) -> ChangeOutcome {
        match &self.state {
            HandleState::Committed => ChangeOutcome::Committed,
            HandleState::Rejected(error) => ChangeOutcome::RolledBack(StoreError::clone(error)),
            HandleState::InBatch(batch, index) => {
                batch.wait();
                batch.known_outcome_of(*index)
            }
        }
    }
}

impl Default for CommitHandle {
    fn default() -> CommitHandle {
        CommitHandle::committed()
    }
}

impl fmt::Debug for CommitHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CommitHandle({} {:?})", self.sequence_number, self.state())
    }
}
