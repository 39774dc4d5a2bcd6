//! Every request has a thread to itself. A job goes straight to the thread that became idle last: its stack and its
//! core's cache are still warm, the others can retire, and there is no shared queue in between. Handing a job over
//! costs one futex wake.

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

use super::counters::counters;
use super::log_throttle::LogThrottle;

const IDLE_THREAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes: small, so that 10,000 connections are affordable. Without optimisation stack frames are several times as
/// large.
pub const STACK_BYTES: usize = if cfg!(debug_assertions) { 512 * 1024 } else { 256 * 1024 };

pub type Job = Box<dyn FnOnce() + Send + 'static>;

/// The job was not started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all request threads are busy")]
pub struct ExecutorFull;

pub struct Executor {
    name: String,
    max_threads: usize,
    retire_after: Duration,
    state: Mutex<ExecutorState>,
    all_done: Condvar,
    counters: ExecutorCounters,
    spawn_failure_log: LogThrottle,
}

#[derive(Default)]
struct ExecutorState {
    /// Idle workers, the most recent at the back.
    idle: VecDeque<Arc<WorkerSlot>>,
    threads: usize,
    running_jobs: usize,
    is_closed: bool,
}

#[derive(Default)]
struct WorkerSlot {
    job: Mutex<Option<Job>>,
    /// Set by the thread itself before it first becomes idle.
    thread: OnceLock<Thread>,
}

counters! {
    pub struct ExecutorCounters {
        jobs,
        threads_started,
        /// Jobs refused because every thread was busy.
        full,
        /// Jobs refused because the system gave no further thread.
        spawn_failed,
        panics,
    }
}

impl Executor {
    /// At most `max_threads` will run at a time, each named `name` (of which Linux shows the first 15 bytes).
    pub fn new(name: &str, max_threads: usize) -> Arc<Executor> {
        Executor::with_retirement(name, max_threads, IDLE_THREAD_TIMEOUT)
    }

    pub fn with_retirement(name: &str, max_threads: usize, retire_after: Duration) -> Arc<Executor> {
        Arc::new(Executor {
            // A name with a NUL in it would make every spawn panic.
            name: name.replace('\0', ""),
            max_threads,
            retire_after,
            state: Mutex::default(),
            all_done: Condvar::new(),
            counters: ExecutorCounters::default(),
            spawn_failure_log: LogThrottle::every_minute(),
        })
    }

    /// Runs the job at once on a thread of its own, or drops it.
    pub fn execute(self: &Arc<Self>, job: impl FnOnce() + Send + 'static) -> Result<(), ExecutorFull> {
        self.try_execute(Box::new(job)).map_err(|_job| ExecutorFull)
    }

    /// Like [`execute`](Executor::execute), but returns the job when it cannot be started.
    pub fn try_execute(self: &Arc<Self>, job: Job) -> Result<(), Job> {
        let mut state = self.state.lock();
        if !state.is_closed
            && let Some(slot) = state.idle.pop_back()
        {
            state.running_jobs += 1;
            drop(state);
            self.counters.jobs.add(1);
            *slot.job.lock() = Some(job);
            if let Some(thread) = slot.thread.get() {
                thread.unpark();
            }
            return Ok(());
        }
        if state.is_closed || state.threads >= self.max_threads {
            drop(state);
            self.counters.full.add(1);
            return Err(job);
        }
        state.threads += 1;
        state.running_jobs += 1;
        drop(state);
        self.start_thread(job)
    }

    fn start_thread(self: &Arc<Self>, job: Job) -> Result<(), Job> {
        let slot = Arc::new(WorkerSlot { job: Mutex::new(Some(job)), thread: OnceLock::new() });
        let (executor, its_slot) = (Arc::clone(self), Arc::clone(&slot));
        let spawned = thread::Builder::new()
            .name(self.name.clone())
            .stack_size(STACK_BYTES)
            .spawn(move || executor.run_worker(its_slot));
        let Err(failure) = spawned else {
            self.counters.threads_started.add(1);
            self.counters.jobs.add(1);
            return Ok(());
        };
        self.counters.spawn_failed.add(1);
        if self.spawn_failure_log.should_log() {
            warn!("{}: the system gives no more threads: {failure}", self.name);
        }
        let mut state = self.state.lock();
        state.threads -= 1;
        self.job_finished(&mut state);
        drop(state);
        // The thread was never started, so nothing else can have taken the job.
        let job = slot.job.lock().take();
        job.map_or(Ok(()), Err)
    }

    fn run_worker(&self, slot: Arc<WorkerSlot>) {
        slot.thread.get_or_init(thread::current);
        while let Some(job) = self.next_job(&slot) {
            self.catch_panic(job);
            let mut state = self.state.lock();
            self.job_finished(&mut state);
            if state.is_closed {
                state.threads -= 1;
                return;
            }
            state.idle.push_back(Arc::clone(&slot));
        }
    }

    /// Returns `None` when this thread is to end (it is then no longer counted).
    fn next_job(&self, slot: &Arc<WorkerSlot>) -> Option<Job> {
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
            // Not among the idle any more: a job was assigned to this thread and is about to arrive.
            drop(state);
            thread::park();
        }
    }

    fn job_finished(&self, state: &mut ExecutorState) {
        state.running_jobs -= 1;
        if state.running_jobs == 0 {
            self.all_done.notify_all();
        }
    }

    /// A panic is logged, counted and not propagated.
    pub(crate) fn catch_panic(&self, work: impl FnOnce()) {
        // Unwind safe: what jobs share is behind locks without poisoning, whose users keep their invariants at every
        // step.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            self.counters.panics.add(1);
            error!("{}: a request panicked: {}", self.name, panic_text(&*panic));
        }
    }

    pub fn running_jobs(&self) -> usize {
        self.state.lock().running_jobs
    }

    pub fn threads(&self) -> usize {
        self.state.lock().threads
    }

    #[cfg(test)]
    pub fn is_closed(&self) -> bool {
        self.state.lock().is_closed
    }

    pub fn counters(&self) -> &ExecutorCounters {
        &self.counters
    }

    /// Waits for the running jobs, at most for `deadline`. Returns how many are still running. Whatever keeps jobs
    /// running (servers) must be stopped first, and a job must not call this: it would wait for itself.
    pub fn shut_down(&self, deadline: Duration) -> usize {
        let give_up_at = Instant::now() + deadline;
        let mut state = self.state.lock();
        state.is_closed = true;
        for thread in state.idle.iter().filter_map(|slot| slot.thread.get()) {
            thread.unpark();
        }
        self.all_done.wait_while_until(&mut state, |state| state.running_jobs > 0, give_up_at);
        state.running_jobs
    }
}

crate::model::debug_fields!(Executor, |executor| name: executor.name, threads: executor.threads(), in_hand: executor.running_jobs());

pub(super) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no text)")
}

/// What a long-lived thread returns: nothing, or an error to be logged.
pub trait ThreadOutcome {
    fn error_text(self) -> Option<String>;
}

impl ThreadOutcome for () {
    fn error_text(self) -> Option<String> {
        None
    }
}

impl<E: fmt::Display> ThreadOutcome for Result<(), E> {
    fn error_text(self) -> Option<String> {
        // The alternate form of anyhow's errors contains the whole chain.
        self.err().map(|error| format!("{error:#}"))
    }
}

/// A thread that lives as long as its server. Its error or panic is logged.
pub fn spawn<O: ThreadOutcome>(name: &str, f: impl FnOnce() -> O + Send + 'static) -> io::Result<JoinHandle<()>> {
    let name = name.replace('\0', "");
    thread::Builder::new().name(name.clone()).stack_size(STACK_BYTES).spawn(move || {
        match catch_unwind(AssertUnwindSafe(f)).map(ThreadOutcome::error_text) {
            Ok(None) => {}
            Ok(Some(failure)) => error!("{name}: {failure}"),
            Err(panic) => error!("{name}: panicked: {}", panic_text(&*panic)),
        }
    })
}

#[cfg(test)]
mod tests;
