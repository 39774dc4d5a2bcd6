use std::io;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::shutdown::ShutdownSignal;
use super::threads;

/// Repeats some work until it is dropped or stopped.
#[derive(Debug)]
pub struct PeriodicTask {
    stop: ShutdownSignal,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl PeriodicTask {
    /// Runs `work` for the first time after `every`, then at that interval from the start of one run to the next, or
    /// at once after a run that took longer.
    pub fn start(name: &str, every: Duration, mut work: impl FnMut() + Send + 'static) -> io::Result<PeriodicTask> {
        PeriodicTask::start_paced(name, every, move || {
            let begun_at = Instant::now();
            work();
            // Missed runs are not made up for.
            every.saturating_sub(begun_at.elapsed())
        })
    }

    /// Runs `work` for the first time after `first`, then each time after the pause that the run before has returned.
    pub fn start_paced(
        name: &str,
        first: Duration,
        mut work: impl FnMut() -> Duration + Send + 'static,
    ) -> io::Result<PeriodicTask> {
        let stop = ShutdownSignal::default();
        let thread = threads::spawn(name, {
            let stop = stop.clone();
            move || {
                let mut pause = first;
                while !stop.wait_for(pause) {
                    pause = work();
                }
            }
        })?;
        Ok(PeriodicTask { stop, thread: Mutex::new(Some(thread)) })
    }

    /// Waits for a run in progress to end. Calling it again does nothing.
    pub fn stop(&self) {
        self.stop.request();
        let Some(thread) = self.thread.lock().take() else { return };
        // The work itself may hold the last reference to this task's owner, and so drop it on this thread.
        if thread.thread().id() != thread::current().id() {
            // A panic was logged by `threads::spawn`.
            let _ = thread.join();
        }
    }
}

impl Drop for PeriodicTask {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::eventually;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    fn counting(every: Duration) -> (PeriodicTask, Arc<AtomicUsize>) {
        let done = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&done);
        let work = move || {
            count.fetch_add(1, Relaxed);
        };
        (PeriodicTask::start("test", every, work).unwrap(), done)
    }

    #[test]
    fn it_is_done_again_and_again_and_not_after_the_end() {
        let (periodic, done) = counting(Duration::from_millis(1));
        eventually(|| done.load(Relaxed) >= 3);
        periodic.stop();
        let before = Arc::strong_count(&done);
        assert_eq!(before, 1, "the work itself is gone");
        periodic.stop();
    }

    #[test]
    fn the_interval_is_from_start_to_start_however_long_a_run_takes() {
        const EVERY: Duration = Duration::from_millis(30);
        let begun = Arc::new(Mutex::new(Vec::new()));
        let work = {
            let begun = Arc::clone(&begun);
            move || {
                begun.lock().push(Instant::now());
                // The run itself is to take most of the interval.
                thread::sleep(EVERY * 2 / 3);
            }
        };
        let periodic = PeriodicTask::start("test", EVERY, work).unwrap();
        eventually(|| begun.lock().len() >= 5);
        periodic.stop();
        let begun = begun.lock();
        assert!(begun.windows(2).all(|pair| pair[1] - pair[0] >= EVERY), "{begun:?}");
    }

    #[test]
    fn each_run_tells_when_the_next_one_is_due() {
        let done = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&done);
        // Three runs at once, then none for an hour.
        let work = move || if count.fetch_add(1, Relaxed) < 2 { Duration::ZERO } else { Duration::from_secs(3600) };
        let periodic = PeriodicTask::start_paced("test", Duration::ZERO, work).unwrap();
        eventually(|| done.load(Relaxed) == 3);
        periodic.stop();
        assert_eq!(done.load(Relaxed), 3);
    }

    #[test]
    fn the_end_does_not_wait_for_the_next_time() {
        let (periodic, done) = counting(Duration::from_secs(3600));
        let begun = Instant::now();
        drop(periodic);
        assert!(begun.elapsed() < Duration::from_secs(60));
        assert_eq!(done.load(Relaxed), 0);
    }
}
