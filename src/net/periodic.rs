//! A thread that does something every so often, and stops at once when it is told to.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::threads;

/// Work that is done again and again, until this is dropped.
pub struct Periodic {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Periodic {
    /// Does it for the first time after this long, then each time this long after it was begun, or at once where it
    /// took longer.
    ///
    /// # Errors
    /// The system's, when it gives no thread.
    pub fn start(name: &str, every: Duration, mut work: impl FnMut() + Send + 'static) -> io::Result<Periodic> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let thread = threads::spawn(name, {
            let stop = Arc::clone(&stop);
            move || {
                let (is_stopped, changed) = &*stop;
                let mut due_at = Instant::now() + every;
                loop {
                    let mut is_stopped = is_stopped.lock();
                    while !*is_stopped && Instant::now() < due_at {
                        changed.wait_until(&mut is_stopped, due_at);
                    }
                    if *is_stopped {
                        return;
                    }
                    drop(is_stopped);
                    // What was missed is not made up for.
                    due_at = Instant::now() + every;
                    work();
                }
            }
        })?;
        Ok(Periodic { stop, thread: Mutex::new(Some(thread)) })
    }

    /// Waits until it is not being done, and will not be done again. Repeating it does nothing.
    pub fn stop(&self) {
        *self.stop.0.lock() = true;
        self.stop.1.notify_all();
        let Some(thread) = self.thread.lock().take() else { return };
        // The work itself may hold the last handle of whoever has this.
        if thread.thread().id() != thread::current().id() {
            // A panic of it was logged there.
            let _ = thread.join();
        }
    }
}

impl Drop for Periodic {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for Periodic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Periodic").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::eventually;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    fn counting(every: Duration) -> (Periodic, Arc<AtomicUsize>) {
        let done = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&done);
        let work = move || {
            count.fetch_add(1, Relaxed);
        };
        (Periodic::start("test", every, work).unwrap(), done)
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
    fn the_end_does_not_wait_for_the_next_time() {
        let (periodic, done) = counting(Duration::from_secs(3600));
        let begun = Instant::now();
        drop(periodic);
        assert!(begun.elapsed() < Duration::from_secs(60));
        assert_eq!(done.load(Relaxed), 0);
    }
}
