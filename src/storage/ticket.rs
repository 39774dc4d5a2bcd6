//! Tickets: how the one who handed over a change learns that it is on disk.
//!
//! All changes of one transaction share one outcome. Asking for one that is known is one atomic load;
//! waiting for one that is not costs a place in a list and one park. What is left to do afterwards can
//! also be left here ([`Ticket::then`]): that costs no thread its sleep.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};

use parking_lot::Mutex;

use super::StoreError;

/// What became of a transaction, once it is over.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Committed; those listed (by place, in order) failed and left no trace.
    Committed(Vec<(u32, StoreError)>),
    /// Rolled back: none of its changes is there.
    Lost(StoreError),
}

const PENDING: u8 = 0;
/// Committed, and no change of it failed: there is nothing to look up.
const ALL_COMMITTED: u8 = 1;
const SEE_OUTCOME: u8 = 2;

/// One transaction's changes, from the first hand-over to the outcome.
#[derive(Debug)]
pub(super) struct Batch {
    status: AtomicU8,
    outcome: OnceLock<Outcome>,
    /// Who waits and what is to be done, while the outcome is not known.
    waiting: Mutex<Waiting>,
    /// Who waited when it became known: a tree in which each wakes the two below it, so that the
    /// writer pays for one wake-up however many wait, and they share no lock.
    woken: OnceLock<Vec<Thread>>,
    /// What was to be done has been done, or is being done by now: set under the lock of `waiting`.
    is_settled: AtomicBool,
}

#[derive(Debug, Default)]
struct Waiting {
    threads: Vec<Thread>,
    thens: Vec<Then>,
}

/// What is to be done once it is known what became of the change at this place.
pub(super) struct Then {
    place: u32,
    work: Box<dyn FnOnce(Result<(), StoreError>) + Send>,
}

impl Then {
    /// Does it; the batch's outcome must be known.
    pub(super) fn run(self, batch: &Batch) {
        (self.work)(batch.known_result_of(self.place).into_result());
    }
}

impl fmt::Debug for Then {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Then").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Batch {
    pub(super) fn new() -> Arc<Batch> {
        Arc::new(Batch {
            status: AtomicU8::new(PENDING),
            outcome: OnceLock::new(),
            waiting: Mutex::default(),
            woken: OnceLock::new(),
            is_settled: AtomicBool::new(false),
        })
    }

    /// Makes the outcome known, and gives what is to be done now. Called once; a second outcome would be
    /// ignored.
    #[must_use = "what was left to be done has to be done"]
    pub(super) fn publish(&self, outcome: Outcome) -> Vec<Then> {
        let status = match &outcome {
            Outcome::Committed(failures) if failures.is_empty() => ALL_COMMITTED,
            _ => SEE_OUTCOME,
        };
        if self.outcome.set(outcome).is_err() {
            return Vec::new();
        }
        let mut waiting = self.waiting.lock();
        let Waiting { threads, thens } = std::mem::take(&mut *waiting);
        let woken = self.woken.get_or_init(|| threads);
        // Under the lock, so that nobody joins the list after it was taken.
        self.status.store(status, Ordering::Release);
        drop(waiting);
        if let Some(first) = woken.first() {
            first.unpark();
        }
        thens
    }

    /// Blocks until the outcome is known.
    pub(super) fn wait(&self) {
        if self.status.load(Ordering::Acquire) != PENDING {
            return;
        }
        let place = {
            let mut waiting = self.waiting.lock();
            if self.status.load(Ordering::Acquire) != PENDING {
                return;
            }
            waiting.threads.push(thread::current());
            waiting.threads.len() - 1
        };
        while self.status.load(Ordering::Acquire) == PENDING {
            thread::park();
        }
        if let Some(woken) = self.woken.get() {
            woken.iter().skip(2 * place + 1).take(2).for_each(Thread::unpark);
        }
    }

    /// What came while that which [`publish`](Batch::publish) gave was being done, to be done after it. From now on
    /// nothing is kept any more: however much comes, the writer goes on.
    #[must_use = "what was left to be done has to be done"]
    pub(super) fn settle(&self) -> Vec<Then> {
        let mut waiting = self.waiting.lock();
        self.is_settled.store(true, Ordering::Release);
        std::mem::take(&mut waiting.thens)
    }

    /// Keeps what is to be done until the outcome is known, and what was to be done then is done; gives it back
    /// after that.
    fn then(&self, then: Then) -> Option<Then> {
        let mut waiting = self.waiting.lock();
        if self.is_settled.load(Ordering::Acquire) {
            return Some(then);
        }
        waiting.thens.push(then);
        None
    }

    fn known_result_of(&self, place: u32) -> Verdict {
        self.result_of(place).unwrap_or_else(|| unreachable!("asked only once the outcome is known"))
    }

    /// What became of the change at a place; nothing while it is not known.
    fn result_of(&self, place: u32) -> Option<Verdict> {
        match self.status.load(Ordering::Acquire) {
            PENDING => None,
            ALL_COMMITTED => Some(Verdict::Committed),
            _ => Some(match self.outcome.get() {
                Some(Outcome::Committed(failures)) => match failures.binary_search_by_key(&place, |(at, _)| *at) {
                    Ok(found) => Verdict::Failed(failures[found].1.clone()),
                    Err(_) => Verdict::Committed,
                },
                Some(Outcome::Lost(error)) => Verdict::Lost(error.clone()),
                // The outcome is set before the status: this cannot be, and if it were, nothing is certain.
                None => Verdict::Lost(StoreError::Unavailable("the outcome is not known".to_owned())),
            }),
        }
    }
}

/// What became of one change.
#[derive(Debug)]
pub(super) enum Verdict {
    Committed,
    /// It failed by itself, in a transaction that was committed: what it saw is on disk.
    Failed(StoreError),
    /// Its transaction failed: what it saw may never have been.
    Lost(StoreError),
}

impl Verdict {
    fn into_result(self) -> Result<(), StoreError> {
        match self {
            Verdict::Committed => Ok(()),
            Verdict::Failed(error) | Verdict::Lost(error) => Err(error),
        }
    }
}

/// The receipt of a change that was handed over. Cheap to clone; may be dropped.
#[derive(Clone)]
pub struct Ticket {
    seq: u64,
    state: State,
}

#[derive(Clone)]
enum State {
    Done,
    Refused(Arc<StoreError>),
    In(Arc<Batch>, u32),
}

/// How far a change has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TicketState {
    /// Not on disk yet.
    Pending,
    /// On disk, synced.
    Committed,
    /// It changed nothing and never will; [`Ticket::wait`] says why.
    Failed,
}

impl Ticket {
    /// The ticket of what depends on nothing: committed from the start, earlier than all others.
    pub fn committed() -> Ticket {
        Ticket { seq: 0, state: State::Done }
    }

    pub(super) fn refused(seq: u64, error: StoreError) -> Ticket {
        Ticket { seq, state: State::Refused(Arc::new(error)) }
    }

    pub(super) fn of(seq: u64, batch: Arc<Batch>, place: u32) -> Ticket {
        Ticket { seq, state: State::In(batch, place) }
    }

    /// The one that was handed over later; both must be of one store.
    ///
    /// Of two chained changes of one epoch, the later one is on disk only if the earlier one is.
    /// Independent changes tell nothing about each other: wait for both.
    pub fn later(a: Ticket, b: Ticket) -> Ticket {
        if b.seq > a.seq { b } else { a }
    }

    /// The place in the order of all changes handed to this store since it was opened, from 1 on.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// How far the change has come; does not wait.
    pub fn state(&self) -> TicketState {
        match &self.state {
            State::Done => TicketState::Committed,
            State::Refused(_) => TicketState::Failed,
            State::In(batch, place) => match batch.result_of(*place) {
                None => TicketState::Pending,
                Some(Verdict::Committed) => TicketState::Committed,
                Some(Verdict::Failed(_) | Verdict::Lost(_)) => TicketState::Failed,
            },
        }
    }

    /// Whether it is known what became of the change, and what others have left to be done then is done: what is told
    /// now is told after it.
    pub fn is_settled(&self) -> bool {
        match &self.state {
            State::Done | State::Refused(_) => true,
            State::In(batch, _) => batch.is_settled.load(Ordering::Acquire),
        }
    }

    /// Waits until the change is on disk. Never call it inside a change: the writer would wait for itself.
    ///
    /// # Errors
    /// Why it is not, and never will be.
    pub fn wait(&self) -> Result<(), StoreError> {
        self.verdict().into_result()
    }

    /// Has this done as soon as the change is on disk, or certain never to be: at once on this thread if
    /// the ticket [is settled](Ticket::is_settled), else on the writer's, before it begins the next transaction. What
    /// was left earlier is done earlier. It must be
    /// short (an answer to send); it may hand changes over, but must not wait for one, nor close the store.
    pub fn then(self, work: impl FnOnce(Result<(), StoreError>) + Send + 'static) {
        match self.state {
            State::Done => work(Ok(())),
            State::Refused(error) => work(Err(StoreError::clone(&error))),
            State::In(batch, place) => {
                let then = Then { place, work: Box::new(work) };
                if let Some(then) = batch.then(then) {
                    then.run(&batch);
                }
            }
        }
    }

    pub(super) fn verdict(&self) -> Verdict {
        match &self.state {
            State::Done => Verdict::Committed,
            State::Refused(error) => Verdict::Lost(StoreError::clone(error)),
            State::In(batch, place) => {
                batch.wait();
                batch.known_result_of(*place)
            }
        }
    }
}

impl Default for Ticket {
    fn default() -> Ticket {
        Ticket::committed()
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ticket({} {:?})", self.seq, self.state())
    }
}
