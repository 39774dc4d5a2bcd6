//! Deadlines on one thread. A due item becomes a job of the executor.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::threads::{self, Executor, Job};
use crate::model::{debug_fields, time};

/// How soon a due item is retried when every request thread was busy.
const RETRY_AFTER: Duration = Duration::from_millis(10);
/// How often it is checked whether the machine was suspended: a suspend does not end a wait early.
const RECHECK_INTERVAL: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(5) };
/// A shorter suspend is not recognised, because the two clocks that show it are not read at the same instant.
const SUSPEND_MIN: Duration = Duration::from_millis(100);

/// Deadlines, each with an item, fire in the order of their instants; equal ones in the order in which they were set.
///
/// There is no cancelling: the handler of an item finds out whether there is still something to do. Whoever sets
/// deadlines bounds their number. Time during which the machine is suspended counts: what became due meanwhile fires
/// within seconds afterwards.
pub struct Timers<T: Send + 'static> {
    inner: Arc<TimersInner<T>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct TimersInner<T> {
    executor: Arc<Executor>,
    fire: Box<dyn Fn(T) + Send + Sync>,
    state: Mutex<TimersState<T>>,
    /// Notified when the earliest deadline has changed, and at the end.
    changed: Condvar,
    /// For how long the machine has been suspended since it was started.
    read_suspended: fn() -> Duration,
    #[cfg(test)]
    retries: AtomicU64,
}

struct TimersState<T> {
    /// Keyed by what [`Instant`]s would be if they advanced during suspend.
    deadlines: BTreeMap<(Instant, u64), T>,
    suspended: Duration,
    /// Keeps the order of equal deadlines.
    next_number: u64,
    is_stopped: bool,
}

impl<T: Send + 'static> Timers<T> {
    /// `fire` runs on a thread of the executor for each due item.
    pub fn start(
        name: &str,
        executor: Arc<Executor>,
        fire: impl Fn(T) + Send + Sync + 'static,
    ) -> io::Result<Timers<T>> {
        Timers::start_with(name, executor, fire, time::suspended_for)
    }

    fn start_with(
        name: &str,
        executor: Arc<Executor>,
        fire: impl Fn(T) + Send + Sync + 'static,
        read_asleep: fn() -> Duration,
    ) -> io::Result<Timers<T>> {
        let inner = Arc::new(TimersInner {
            executor,
            fire: Box::new(fire),
            state: Mutex::new(TimersState {
                deadlines: BTreeMap::new(),
                suspended: read_asleep(),
                next_number: 0,
                is_stopped: false,
            }),
            changed: Condvar::new(),
            read_suspended: read_asleep,
            #[cfg(test)]
            retries: AtomicU64::new(0),
        });
        let thread = threads::spawn(name, {
            let inner = Arc::clone(&inner);
            move || inner.run()
        })?;
        Ok(Timers { inner, thread: Mutex::new(Some(thread)) })
    }

    pub fn schedule(&self, at: Instant, item: T) {
        let mut state = self.inner.state.lock();
        if state.is_stopped {
            return;
        }
        let at = at + state.update_suspended(self.inner.read_suspended);
        let number = state.next_number;
        state.next_number += 1;
        let is_earliest = state.deadlines.first_key_value().is_none_or(|((first, _), _)| at < *first);
        state.deadlines.insert((at, number), item);
        drop(state);
        if is_earliest {
            self.inner.changed.notify_one();
        }
    }

    pub fn pending(&self) -> usize {
        self.inner.state.lock().deadlines.len()
    }

    /// What has not fired never will. Items that were handed over run on.
    pub fn stop(&self) {
        let abandoned = {
            let mut state = self.inner.state.lock();
            state.is_stopped = true;
            std::mem::take(&mut state.deadlines)
        };
        drop(abandoned);
        self.inner.changed.notify_one();
        // Taken out before joining: the lock must not be held while waiting.
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            // An Err would be a panic, which `threads::spawn` has caught and logged.
            let _ = thread.join();
        }
    }
}

impl<T> TimersState<T> {
    fn update_suspended(&mut self, read_asleep: fn() -> Duration) -> Duration {
        let asleep = read_asleep();
        if asleep > self.suspended + SUSPEND_MIN {
            self.suspended = asleep;
        }
        self.suspended
    }
}

impl<T: Send + 'static> Drop for Timers<T> {
    fn drop(&mut self) {
        self.stop();
    }
}

impl<T: Send + 'static> TimersInner<T> {
    fn run(self: Arc<Self>) {
        // At most one due item waits outside for a free thread: those after it keep their order there.
        let mut waiting: Option<Job> = None;
        loop {
            let Some(job) = waiting.take().or_else(|| self.next_due()) else { return };
            let Err(job) = self.executor.try_execute(job) else { continue };
            waiting = Some(job);
            #[cfg(test)]
            self.retries.fetch_add(1, SeqCst);
            let retry_at = Instant::now() + RETRY_AFTER;
            let mut state = self.state.lock();
            self.changed.wait_while_until(&mut state, |state| !state.is_stopped, retry_at);
            if state.is_stopped {
                return;
            }
        }
    }

    fn next_due(self: &Arc<Self>) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if state.is_stopped {
                return None;
            }
            let asleep = state.update_suspended(self.read_suspended);
            match state.deadlines.first_key_value().map(|((first, _), _)| *first) {
                None => self.changed.wait(&mut state),
                Some(at) if at > Instant::now() + asleep => {
                    let left = at.saturating_duration_since(Instant::now() + asleep);
                    self.changed.wait_for(&mut state, left.min(RECHECK_INTERVAL));
                }
                Some(_due) => break,
            }
        }
        let (_, item) = state.deadlines.pop_first()?;
        drop(state);
        let inner = Arc::clone(self);
        Some(Box::new(move || (inner.fire)(item)))
    }
}

debug_fields!(Timers<T: Send + 'static>, |timers| pending: timers.pending());

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::eventually;
    use crossbeam_channel::{bounded, unbounded};

    const SOON: Duration = Duration::from_secs(5);

    #[test]
    fn time_in_which_the_machine_sleeps_counts() {
        static ASLEEP_S: AtomicU64 = AtomicU64::new(0);
        let (tell, told) = unbounded();
        let fire = move |n: u32| tell.send(n).unwrap();
        let read_asleep = || Duration::from_secs(ASLEEP_S.load(SeqCst));
        let timers = Timers::start_with("test", Executor::new("test", 1), fire, read_asleep).unwrap();
        let hours = |n: u64| Duration::from_secs(n * 3600);
        timers.schedule(Instant::now() + hours(1), 1);
        timers.schedule(Instant::now() + hours(3), 3);
        assert!(told.recv_timeout(3 * RECHECK_INTERVAL).is_err());
        ASLEEP_S.store(2 * 3600, SeqCst);
        assert_eq!(told.recv_timeout(SOON), Ok(1));
        // What is set afterwards waits its own time; what was set before has an hour left.
        timers.schedule(Instant::now() + hours(2), 2);
        assert!(told.recv_timeout(3 * RECHECK_INTERVAL).is_err());
        ASLEEP_S.store(3 * 3600 + 60, SeqCst);
        assert_eq!(told.recv_timeout(SOON), Ok(3));
        assert!(told.recv_timeout(3 * RECHECK_INTERVAL).is_err());
        ASLEEP_S.store(5 * 3600, SeqCst);
        assert_eq!(told.recv_timeout(SOON), Ok(2));
    }

    #[test]
    fn fires_by_deadline_then_by_insertion() {
        for delay_ms in [50, 500, 5000] {
            // One thread, so that the order of firing is the order of running.
            let executor = Executor::new("test", 1);
            let (tell, told) = unbounded();
            let timers = Timers::start("test", executor, move |n: u32| tell.send(n).unwrap()).unwrap();
            let at = Instant::now() + Duration::from_millis(delay_ms);
            let later = at + Duration::from_millis(5);
            (0..50).for_each(|n| timers.schedule(at, n));
            timers.schedule(later, 100);
            timers.schedule(at - Duration::from_millis(5), 200);
            if !told.is_empty() {
                continue; // a slow machine: the first fired before the last was set
            }
            let got: Vec<u32> = (0..52).map(|_| told.recv_timeout(2 * SOON).unwrap()).collect();
            assert!(Instant::now() >= later);
            assert!(got.iter().copied().eq([200].into_iter().chain(0..50).chain([100])));
            return;
        }
        panic!("setting 52 deadlines took five seconds");
    }

    #[test]
    fn an_earlier_deadline_set_later_fires_first() {
        let executor = Executor::new("test", 2);
        let (tell, told) = unbounded();
        let timers = Timers::start("test", executor, move |n: u32| tell.send(n).unwrap()).unwrap();
        timers.schedule(Instant::now() + Duration::from_secs(3600), 1);
        timers.schedule(Instant::now(), 2);
        assert_eq!(told.recv_timeout(SOON), Ok(2));
        assert_eq!(timers.pending(), 1);
        timers.stop();
        assert_eq!(timers.pending(), 0);
        timers.schedule(Instant::now(), 3);
        assert_eq!(timers.pending(), 0);
        assert!(told.is_empty());
    }

    #[test]
    fn waits_for_a_thread_when_all_are_busy() {
        let executor = Executor::new("test", 1);
        let (release, wait) = bounded::<()>(0);
        executor.execute(move || wait.recv().unwrap()).unwrap();
        let (tell, told) = unbounded();
        let timers = Timers::start("test", Arc::clone(&executor), move |n: u32| tell.send(n).unwrap()).unwrap();
        timers.schedule(Instant::now(), 1);
        timers.schedule(Instant::now(), 2);
        eventually(|| timers.inner.retries.load(SeqCst) >= 2);
        assert!(told.is_empty());
        release.send(()).unwrap();
        assert_eq!(told.recv_timeout(SOON), Ok(1));
        assert_eq!(told.recv_timeout(SOON), Ok(2));
    }

    #[test]
    fn stops_while_an_item_waits_for_a_thread() {
        let executor = Executor::new("test", 1);
        assert_eq!(executor.shut_down(SOON), 0);
        let (tell, told) = unbounded();
        let timers = Timers::start("test", executor, move |n: u32| tell.send(n).unwrap()).unwrap();
        timers.schedule(Instant::now(), 1);
        eventually(|| timers.inner.retries.load(SeqCst) >= 1);
        timers.stop();
        assert!(told.is_empty());
    }
}
