//! The queue of changes, and the one thread that turns what waits into one transaction.
//!
//! **Independent** changes stand for themselves: one that fails leaves no trace (each runs in a
//! savepoint), the others of its transaction are committed.
//!
//! **Chained** changes are the history of a room's memory, and the disk always holds a prefix of it:
//! from the first chained change that fails on, every later one of the same epoch fails too, those
//! already in the queue included. Those of earlier transactions are not harmed, nor are those of its own
//! if it failed before it wrote anything. Else the whole transaction is lost: chained changes have no
//! savepoint, for they fail only with the disk or by a mistake in the program, and a savepoint would cost
//! each of them a quarter of its time. Once the transaction is over, the epoch moves on. The room then
//! reads its state back and goes on with the new epoch:
//!
//! 1. it keeps everyone from its memory (its own lock),
//! 2. [`Store::chain`](super::Store::chain): from then on no change of an older epoch can reach the disk,
//! 3. [`Store::read`](super::Store::read): the state that all answers so far were built on.
//!
//! **The mark.** The store's number counts on about once a second, in a transaction that is made anyway, and once
//! more when the last changes have no number yet. Once that transaction is synced the number stands in the mark
//! (`mark.rs`): all that was committed before it is then known to have been on the disk. Between two numbers a
//! transaction costs nothing more; a number in each would cost every one of them a page.

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rusqlite::Connection;

use super::mark::Mark;
use super::sqlite::{self, Opened, SqliteTx};
use super::ticket::{Batch, Outcome, Then};
use super::{StoreError, Ticket, Tx};
use crate::net::counters::Latencies;

/// Most changes that wait for the disk; what comes beyond gets [`StoreError::Busy`].
pub(super) const WAITING_MAX: usize = 65_536;

/// The time between two numbers of a store, and so how old what is lost without a word can be.
const NUMBER_EVERY: Duration = Duration::from_secs(1);

/// A change, as the writer runs it.
pub(super) type Change = Box<dyn FnOnce(&mut dyn Tx) -> Result<(), StoreError> + Send>;

/// What is put around all that is done after a transaction; it must do it, once.
pub(super) type Around = Box<dyn Fn(&mut dyn FnMut()) + Send + Sync>;

/// An epoch of chained changes: from one rebuilding of a room's memory to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain(u64);

/// The epoch of changes that are not chained.
pub(super) const INDEPENDENT: Chain = Chain(0);

struct Waiting {
    change: Change,
    chain: Chain,
}

struct Queue {
    /// What goes into the next transaction.
    open: Vec<Waiting>,
    /// The outcome that `open` will have.
    batch: Arc<Batch>,
    /// The outcome that the transaction under way will have.
    running: Option<Arc<Batch>>,
    /// The place of the next change in the order of all.
    next_seq: u64,
    chain: Chain,
    /// A chained change did not even get into the queue: later ones of its epoch fail at once, those
    /// before it go their way, and the epoch moves on when they are through.
    chain_ends: bool,
    closed: bool,
    writer_sleeps: bool,
    /// Transactions that were begun, and those that are over with all that was to be done afterwards.
    begun: u64,
    over: u64,
}

pub(super) struct Shared {
    queue: Mutex<Queue>,
    /// For the writer: there is work, or the end.
    work: Condvar,
    /// For those who want the epoch: it has moved on.
    chain_moved: Condvar,
    /// For those who want everything done: a transaction is over.
    is_over: Condvar,
    /// How long transactions took, their syncs included.
    pub(super) commits: Latencies,
    /// Around what is done after a transaction.
    pub(super) around: OnceLock<Around>,
}

impl Shared {
    pub(super) fn new() -> Shared {
        Shared {
            queue: Mutex::new(Queue {
                open: Vec::new(),
                batch: Batch::new(),
                running: None,
                next_seq: 1,
                chain: Chain(1),
                chain_ends: false,
                closed: false,
                writer_sleeps: false,
                begun: 0,
                over: 0,
            }),
            work: Condvar::new(),
            chain_moved: Condvar::new(),
            is_over: Condvar::new(),
            commits: Latencies::default(),
            around: OnceLock::new(),
        }
    }

    /// The current epoch; waits until one that has ended is settled.
    pub(super) fn chain(&self) -> Chain {
        let mut queue = self.queue.lock();
        while queue.chain_ends {
            self.chain_moved.wait(&mut queue);
        }
        queue.chain
    }

    /// Puts a change into the queue: memory work under one short lock.
    pub(super) fn hand_over(&self, chain: Chain, change: Change) -> Ticket {
        let chained = chain != INDEPENDENT;
        let mut queue = self.queue.lock();
        let seq = queue.next_seq;
        queue.next_seq += 1;
        if queue.closed {
            return Ticket::refused(seq, StoreError::closed());
        }
        if chained && (chain != queue.chain || queue.chain_ends) {
            return Ticket::refused(seq, StoreError::superseded());
        }
        if queue.open.len() >= WAITING_MAX {
            queue.chain_ends |= chained;
            return Ticket::refused(seq, StoreError::Busy);
        }
        let place = queue.open.len() as u32; // below WAITING_MAX
        queue.open.push(Waiting { change, chain });
        let batch = Arc::clone(&queue.batch);
        let wake = std::mem::replace(&mut queue.writer_sleeps, false);
        drop(queue);
        if wake {
            self.work.notify_one();
        }
        Ticket::of(seq, batch, place)
    }

    pub(super) fn waiting(&self) -> usize {
        self.queue.lock().open.len()
    }

    /// Waits until everything handed over before has its outcome, and what was to be done then is done.
    pub(super) fn settle(&self) {
        let mut queue = self.queue.lock();
        let last = queue.begun + u64::from(!queue.open.is_empty());
        while queue.over < last {
            self.is_over.wait(&mut queue);
        }
    }

    /// Takes no more changes; the writer ends when it has done those that wait.
    pub(super) fn close(&self) {
        self.queue.lock().closed = true;
        self.work.notify_one();
    }

    /// The next transaction's changes, into `changes`, for which it waits until that instant if there is one.
    fn next(&self, changes: &mut Vec<Waiting>, until: Option<Instant>) -> Woken {
        let mut queue = self.queue.lock();
        while queue.open.is_empty() {
            if queue.closed {
                return Woken::Closed;
            }
            queue.writer_sleeps = true;
            match until {
                None => self.work.wait(&mut queue),
                Some(until) => {
                    if self.work.wait_until(&mut queue, until).timed_out() && queue.open.is_empty() && !queue.closed {
                        queue.writer_sleeps = false;
                        return Woken::Idle;
                    }
                }
            }
        }
        queue.writer_sleeps = false;
        std::mem::swap(&mut queue.open, changes);
        let batch = std::mem::replace(&mut queue.batch, Batch::new());
        queue.running = Some(Arc::clone(&batch));
        queue.begun += 1;
        Woken::Work(Next { batch, chain: queue.chain, chain_ends: queue.chain_ends })
    }

    /// Makes a transaction's outcome known. The epoch moves first, so that who learns of a failure
    /// gets the new one.
    fn finish(&self, next: &Next, outcome: Outcome, chain_broken: bool) {
        let mut queue = self.queue.lock();
        if chain_broken || next.chain_ends {
            queue.chain = Chain(queue.chain.0 + 1);
            queue.chain_ends = false;
            self.chain_moved.notify_all();
        }
        queue.running = None;
        drop(queue);
        self.publish(&next.batch, outcome);
        self.queue.lock().over += 1;
        self.is_over.notify_all();
    }

    /// Makes an outcome known and does what was left to be done then.
    ///
    /// On the writer's own thread: the answers of one transaction go out while the next one's changes come
    /// together. A thread of its own for that would be woken for every transaction, and the next would begin
    /// with the few changes that had come by then: with 100 clients, a sixth less in all.
    fn publish(&self, batch: &Batch, outcome: Outcome) {
        self.do_all(batch, batch.publish(outcome));
        // Who saw the outcome meanwhile and has something to tell that is built on it tells it after those.
        self.do_all(batch, batch.settle());
    }

    fn do_all(&self, batch: &Batch, thens: Vec<Then>) {
        if thens.is_empty() {
            return;
        }
        let mut thens = thens.into_iter();
        let mut run = || {
            for then in thens.by_ref() {
                if panic::catch_unwind(AssertUnwindSafe(|| then.run(batch))).is_err() {
                    log::error!("what was left to be done after a transaction panicked");
                }
            }
        };
        match self.around.get() {
            Some(around) => around(&mut run),
            None => run(),
        }
    }
}

/// What the writer is woken for.
enum Woken {
    Work(Next),
    /// The time is up, and there is nothing to do.
    Idle,
    /// The store is closed, and all is done.
    Closed,
}

struct Next {
    batch: Arc<Batch>,
    /// The epoch at its start: only the writer moves it.
    chain: Chain,
    /// Every chained change of the epoch that will ever be is in here.
    chain_ends: bool,
}

/// The writer thread's own state.
pub(super) struct Writer {
    connection: Connection,
    /// What the file's `user_version` is.
    schema_version: usize,
    /// A commit failed, and its pages may lie in the log all the same; see [`Writer::bury`].
    commit_failed: bool,
    mark: Mark,
    /// The store's number on disk.
    number: u64,
    /// When it was last counted on, or was to be.
    numbered_at: Option<Instant>,
    /// Something was committed since.
    has_unnumbered: bool,
}

impl Writer {
    pub(super) fn new(opened: Opened, mark: Mark, schema_version: usize) -> Writer {
        let Opened { connection, number, id: _ } = opened;
        Writer {
            connection,
            schema_version,
            commit_failed: false,
            mark,
            number,
            numbered_at: None,
            has_unnumbered: false,
        }
    }

    /// Runs transactions until the store is closed; gives the connection back.
    pub(super) fn run(mut self, shared: &Shared) -> Connection {
        let guard = FailAll(shared);
        // It is on disk already; beside a store that had no mark, or a torn one, it stands from now on.
        self.mark.set(self.number);
        let mut changes = Vec::new();
        loop {
            let until = self.numbered_at.filter(|_| self.has_unnumbered).map(|at| at + NUMBER_EVERY);
            let next = match shared.next(&mut changes, until) {
                Woken::Work(next) => next,
                Woken::Idle => {
                    self.count_on();
                    continue;
                }
                Woken::Closed => break,
            };
            let chained = changes.iter().any(|waiting| waiting.chain == next.chain);
            let before = self.number;
            let began_at = Instant::now();
            let (outcome, chain_broken) = match self.transaction(&mut changes, next.chain) {
                Ok(done) => (Outcome::Committed(done.failures), done.chain_broken),
                Err(error) => {
                    log::error!("a transaction was not stored: {error}");
                    (Outcome::Lost(error), chained)
                }
            };
            shared.commits.took(began_at.elapsed());
            // What a lost transaction did not come to. (Some of it may be a room's: outside the lock.)
            changes.clear();
            shared.finish(&next, outcome, chain_broken);
            if self.number != before {
                self.mark.set(self.number);
            }
        }
        if self.has_unnumbered {
            self.count_on();
        }
        drop(guard);
        self.connection
    }

    /// Counts on by itself, where no transaction has come that would have. One that fails is tried again with
    /// the next, or after a while.
    fn count_on(&mut self) {
        let before = self.number;
        self.numbered_at = Some(Instant::now());
        match self.transaction(&mut Vec::new(), INDEPENDENT) {
            Ok(_) if self.number != before => self.mark.set(self.number),
            Ok(_) => {}
            Err(error) => log::debug!("the store's number was not counted on: {error}"),
        }
    }

    /// Counts on within the transaction that is open, if it is time: its number once it is committed.
    fn number_if_due(&mut self, is_alone: bool) -> Result<Option<u64>, StoreError> {
        let now = Instant::now();
        if !is_alone && self.numbered_at.is_some_and(|at| now < at + NUMBER_EVERY) {
            return Ok(None);
        }
        // Also where it fails: not again with each transaction.
        self.numbered_at = Some(now);
        let next = self.number + 1;
        let count_on = || {
            let mut statement = self.connection.prepare_cached("UPDATE store_identity SET number = ?1")?;
            statement.execute([next as i64])
        };
        match count_on() {
            Ok(1) => Ok(Some(next)),
            Ok(rows) => {
                let file = sqlite::file_of(&self.connection);
                Err(StoreError::Corrupt(format!("{file}: {rows} rows name the store instead of one")))
            }
            Err(error) => Err(sqlite::failure(&self.connection, &error)),
        }
    }

    /// All changes in one transaction. An error means that none of them is there.
    fn transaction(&mut self, changes: &mut Vec<Waiting>, chain: Chain) -> Result<Done, StoreError> {
        self.bury()?;
        self.execute("BEGIN IMMEDIATE")?;
        let is_alone = changes.is_empty();
        let mut done = Done { failures: Vec::new(), chain_broken: false };
        for (place, waiting) in (0..).zip(changes.drain(..)) {
            let chained = waiting.chain != INDEPENDENT;
            if chained && (waiting.chain != chain || done.chain_broken) {
                done.failures.push((place, StoreError::superseded()));
                continue;
            }
            match self.apply(waiting.change, !chained) {
                Ok(()) => {}
                Err(Failure::Change(error)) => {
                    done.failures.push((place, error));
                    done.chain_broken |= chained;
                }
                Err(Failure::Transaction(error)) => {
                    self.roll_back();
                    return Err(error);
                }
            }
        }
        let number = match self.number_if_due(is_alone) {
            Ok(number) => number,
            Err(error) => {
                self.roll_back();
                return Err(error);
            }
        };
        if let Err(error) = self.execute("COMMIT") {
            self.roll_back();
            self.commit_failed = true;
            // At once if it can be; else before the next transaction.
            if let Err(error) = self.bury() {
                log::warn!("after a failed commit: {error}");
            }
            return Err(match error {
                error @ (StoreError::Unavailable(_) | StoreError::Corrupt(_)) => error,
                // Whose fault it was is not known: for the others it only means to try again.
                error => StoreError::Unavailable(format!("the commit failed: {error}")),
            });
        }
        self.has_unnumbered = number.is_none();
        self.number = number.unwrap_or(self.number);
        Ok(done)
    }

    /// One change; a guarded one in a savepoint of its own.
    fn apply(&self, change: Change, guarded: bool) -> Result<(), Failure> {
        let mut tx = SqliteTx::new(&self.connection, guarded);
        let result = panic::catch_unwind(AssertUnwindSafe(|| change(&mut tx)))
            .unwrap_or_else(|_| Err(StoreError::Invalid("a change panicked".to_owned())));
        // SQLite ends the whole transaction after some errors (disk full, I/O), whatever the change
        // makes of them.
        if self.connection.is_autocommit() {
            let reason = match result {
                Err(error @ (StoreError::Unavailable(_) | StoreError::Corrupt(_))) => error,
                _ => StoreError::Unavailable("the transaction was rolled back".to_owned()),
            };
            return Err(Failure::Transaction(reason));
        }
        match result {
            Ok(()) => tx.keep().map_err(Failure::Transaction),
            Err(error) if !tx.can_undo() => {
                let error = StoreError::Unavailable(format!("a change that others build on failed: {error}"));
                Err(Failure::Transaction(error))
            }
            Err(error) => {
                tx.undo().map_err(Failure::Transaction)?;
                Err(Failure::Change(error))
            }
        }
    }

    /// Makes sure that no trace of a failed commit can come back.
    ///
    /// If the sync of the log failed, its frames may be in it, valid, though no reader sees them; after
    /// a power cut they would count as committed. The next commit writes over the first of them, and
    /// the checksums of the rest then fit no more: so one that changes nothing has to succeed before
    /// anything else is stored.
    fn bury(&mut self) -> Result<(), StoreError> {
        if !self.connection.is_autocommit() {
            self.execute("ROLLBACK")?;
        }
        if self.commit_failed {
            self.execute(&format!("PRAGMA user_version = {}", self.schema_version))?;
            self.commit_failed = false;
        }
        Ok(())
    }

    fn roll_back(&self) {
        // When it fails the transaction is still open, and `bury` tries again before the next.
        if !self.connection.is_autocommit()
            && let Err(error) = self.execute("ROLLBACK")
        {
            log::error!("rolling back: {error}");
        }
    }

    fn execute(&self, sql: &str) -> Result<(), StoreError> {
        let run = || self.connection.prepare_cached(sql)?.raw_execute();
        run().map(|_rows| ()).map_err(|error| sqlite::failure(&self.connection, &error))
    }
}

/// A committed transaction.
struct Done {
    failures: Vec<(u32, StoreError)>,
    /// One of the failed was chained and of the current epoch.
    chain_broken: bool,
}

enum Failure {
    /// This change alone.
    Change(StoreError),
    /// All of the transaction.
    Transaction(StoreError),
}

/// Should the writer ever end by a panic, nobody waits for it forever.
struct FailAll<'s>(&'s Shared);

impl Drop for FailAll<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.queue.lock();
        queue.closed = true;
        queue.chain_ends = false;
        let changes = std::mem::take(&mut queue.open);
        let batches = [queue.running.take(), Some(Arc::clone(&queue.batch))];
        self.0.chain_moved.notify_all();
        queue.over = u64::MAX;
        self.0.is_over.notify_all();
        drop(queue);
        for batch in batches.into_iter().flatten() {
            self.0.publish(&batch, Outcome::Lost(StoreError::Unavailable("the writer has ended".to_owned())));
        }
        drop(changes);
    }
}
