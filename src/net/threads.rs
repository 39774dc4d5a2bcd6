//! The executor: every request has a thread to itself, and a finished thread waits for the next.
//!
//! A job goes straight to the thread that became idle last: its stack and its core's cache are
//! still warm, the others can retire, and no queue that all of them pull from is in between. Handing
//! over costs one futex wake.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use log::{error, warn};
use parking_lot::{Condvar, Mutex};

use super::counters::{Counter, Seldom};

/// How long a thread waits for its next job before it ends.
const RETIRE_AFTER: Duration = Duration::from_secs(10);

/// Stack of a request thread, bytes. Small, so that 10,000 connections are nothing special; without
/// optimisation frames are several times as large.
pub const STACK_BYTES: usize = if cfg!(debug_assertions) { 512 * 1024 } else { 256 * 1024 };

/// Work for one thread.
pub type Job = Box<dyn FnOnce() + Send + 'static>;

/// No thread is free and none may be added (or the executor is finishing): the job was not started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all request threads are busy")]
pub struct Full;

/// Threads for requests: a bounded number, each used again and again.
pub struct Executor {
    name: String,
    max_threads: usize,
    retire_after: Duration,
    state: Mutex<State>,
    /// Told when the last job in hand has ended.
    all_done: Condvar,
    counters: ExecutorCounters,
    refused_by_os: Seldom,
}

#[derive(Default)]
struct State {
    /// Those who wait, the most recent at the back.
    idle: VecDeque<Arc<Slot>>,
    threads: usize,
    in_hand: usize,
    is_closed: bool,
}

/// The place where one thread finds its next job.
#[derive(Default)]
struct Slot {
    job: Mutex<Option<Job>>,
    /// Set by the thread itself before it first becomes idle.
    thread: OnceLock<Thread>,
}

/// What an executor did so far.
#[derive(Debug, Default)]
pub struct ExecutorCounters {
    /// Jobs that were given a thread.
    pub jobs: Counter,
    /// Threads that were started.
    pub threads_started: Counter,
    /// Jobs refused because every thread was busy.
    pub full: Counter,
    /// Jobs refused because the system gave no further thread.
    pub spawn_failed: Counter,
    /// Jobs that panicked.
    pub panics: Counter,
}

impl ExecutorCounters {
    /// Every counter with its name.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("jobs", self.jobs.get()),
            ("threads_started", self.threads_started.get()),
            ("full", self.full.get()),
            ("spawn_failed", self.spawn_failed.get()),
            ("panics", self.panics.get()),
        ]
    }
}

impl Executor {
    /// An executor without threads yet; at most `max_threads` will run at a time.
    ///
    /// Threads are named `name` (Linux shows its first 15 bytes).
    pub fn new(name: &str, max_threads: usize) -> Arc<Executor> {
        Executor::with_retirement(name, max_threads, RETIRE_AFTER)
    }

    /// The same with another time after which an idle thread ends.
    pub fn with_retirement(name: &str, max_threads: usize, retire_after: Duration) -> Arc<Executor> {
        Arc::new(Executor {
            // A name with a NUL in it would make every spawn panic.
            name: name.replace('\0', ""),
            max_threads,
            retire_after,
            state: Mutex::default(),
            all_done: Condvar::new(),
            counters: ExecutorCounters::default(),
            refused_by_os: Seldom::minutely(),
        })
    }

    /// Runs the job on a thread of its own, at once.
    ///
    /// # Errors
    /// [`Full`]: the job was dropped without being run.
    pub fn execute(self: &Arc<Self>, job: impl FnOnce() + Send + 'static) -> Result<(), Full> {
        self.offer(Box::new(job)).map_err(|_job| Full)
    }

    /// The same for who wants the job back when it could not be started.
    ///
    /// # Errors
    /// The job itself, when all threads are busy or the executor is finishing.
    pub fn offer(self: &Arc<Self>, job: Job) -> Result<(), Job> {
        let mut state = self.state.lock();
        if state.is_closed {
            drop(state);
            self.counters.full.add(1);
            return Err(job);
        }
        if let Some(slot) = state.idle.pop_back() {
            state.in_hand += 1;
            drop(state);
            self.counters.jobs.add(1);
            *slot.job.lock() = Some(job);
            if let Some(thread) = slot.thread.get() {
                thread.unpark();
            }
            return Ok(());
        }
        if state.threads >= self.max_threads {
            drop(state);
            self.counters.full.add(1);
            return Err(job);
        }
        state.threads += 1;
        state.in_hand += 1;
        drop(state);
        self.start_thread(job)
    }

    fn start_thread(self: &Arc<Self>, job: Job) -> Result<(), Job> {
        let slot = Arc::new(Slot { job: Mutex::new(Some(job)), thread: OnceLock::new() });
        let (executor, its_slot) = (Arc::clone(self), Arc::clone(&slot));
        let spawned = thread::Builder::new()
            .name(self.name.clone())
            .stack_size(STACK_BYTES)
            .spawn(move || executor.work(its_slot));
        let failure = match spawned {
            Ok(_detached) => {
                self.counters.threads_started.add(1);
                self.counters.jobs.add(1);
                return Ok(());
            }
            Err(failure) => failure,
        };
        self.counters.spawn_failed.add(1);
        if self.refused_by_os.now() {
            warn!("{}: the system gives no more threads: {failure}", self.name);
        }
        let mut state = self.state.lock();
        state.threads -= 1;
        self.one_done(&mut state);
        drop(state);
        // The thread never was, so nobody else can have taken the job.
        let job = slot.job.lock().take();
        job.map_or(Ok(()), Err)
    }

    /// A thread's whole life: do, wait, do, wait, retire.
    fn work(&self, slot: Arc<Slot>) {
        slot.thread.get_or_init(thread::current);
        while let Some(job) = self.next_job(&slot) {
            self.contain(job);
            let mut state = self.state.lock();
            self.one_done(&mut state);
            if state.is_closed {
                state.threads -= 1;
                return;
            }
            state.idle.push_back(Arc::clone(&slot));
        }
    }

    /// Waits for a job; none when this thread is to end (and is no longer counted).
    fn next_job(&self, slot: &Arc<Slot>) -> Option<Job> {
        let give_up_at = Instant::now() + self.retire_after;
        loop {
            if let Some(job) = slot.job.lock().take() {
                return Some(job);
            }
            let left = give_up_at.saturating_duration_since(Instant::now());
            let mut state = self.state.lock();
            if !state.is_closed && !left.is_zero() {
                drop(state);
                thread::park_timeout(left);
                continue;
            }
            // Those idle longest stand in front, so the search is short.
            if let Some(place) = state.idle.iter().position(|idle| Arc::ptr_eq(idle, slot)) {
                state.idle.remove(place);
                state.threads -= 1;
                return None;
            }
            // No longer among the idle: a job was promised to this thread and is on its way.
            drop(state);
            thread::park();
        }
    }

    fn one_done(&self, state: &mut State) {
        state.in_hand -= 1;
        if state.in_hand == 0 {
            self.all_done.notify_all();
        }
    }

    /// Runs something so that a panic in it is logged, counted and goes no further.
    pub(crate) fn contain(&self, work: impl FnOnce()) {
        // Unwind safe: what the work shared with others is behind locks without poisoning, whose
        // owners must keep their invariants at every step anyway.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            self.counters.panics.add(1);
            error!("{}: a request panicked: {}", self.name, panic_text(&*panic));
        }
    }

    /// How many jobs are being done.
    pub fn in_hand(&self) -> usize {
        self.state.lock().in_hand
    }

    /// How many threads there are, idle ones included.
    pub fn threads(&self) -> usize {
        self.state.lock().threads
    }

    /// The bound on threads.
    pub fn max_threads(&self) -> usize {
        self.max_threads
    }

    /// Whether [`finish`](Executor::finish) was called.
    pub fn is_closed(&self) -> bool {
        self.state.lock().is_closed
    }

    /// What was counted so far.
    pub fn counters(&self) -> &ExecutorCounters {
        &self.counters
    }

    /// Refuses new jobs and waits for those in hand, at most that long; how many are left.
    ///
    /// What keeps jobs going (servers) must be told to stop first. Not to be called by a job: it would
    /// wait for itself.
    pub fn finish(&self, deadline: Duration) -> usize {
        let give_up_at = Instant::now() + deadline;
        let mut state = self.state.lock();
        state.is_closed = true;
        for thread in state.idle.iter().filter_map(|slot| slot.thread.get()) {
            thread.unpark();
        }
        while state.in_hand > 0 && Instant::now() < give_up_at {
            self.all_done.wait_until(&mut state, give_up_at);
        }
        state.in_hand
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Executor")
            .field("name", &self.name)
            .field("threads", &state.threads)
            .field("in_hand", &state.in_hand)
            .finish_non_exhaustive()
    }
}

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no text)")
}

/// What a long-lived thread ends with: nothing, or an error to be logged.
pub trait Outcome {
    /// The text of the error, if it is one.
    fn failure(self) -> Option<String>;
}

impl Outcome for () {
    fn failure(self) -> Option<String> {
        None
    }
}

impl<E: fmt::Display> Outcome for Result<(), E> {
    fn failure(self) -> Option<String> {
        // The alternate form of anyhow's errors tells the whole way.
        self.err().map(|error| format!("{error:#}"))
    }
}

/// Starts a thread that lives as long as its server; logs what it failed of, a panic included.
///
/// # Errors
/// The system's, when it gives no thread.
pub fn spawn<O: Outcome>(name: &str, f: impl FnOnce() -> O + Send + 'static) -> io::Result<JoinHandle<()>> {
    let name = name.replace('\0', "");
    thread::Builder::new().name(name.clone()).stack_size(STACK_BYTES).spawn(move || {
        match catch_unwind(AssertUnwindSafe(f)).map(Outcome::failure) {
            Ok(None) => {}
            Ok(Some(failure)) => error!("{name}: {failure}"),
            Err(panic) => error!("{name}: panicked: {}", panic_text(&*panic)),
        }
    })
}

#[cfg(test)]
mod tests;
