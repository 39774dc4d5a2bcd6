//! The thread that does what was left to be done once a transaction is over, in the order of the
//! transactions: so a request that only waits for the disk needs no thread of its own for that.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use parking_lot::Mutex;

use super::ticket::{Batch, Then};

enum Work {
    /// A transaction is over, and this waited for it.
    Run(Arc<Batch>, Vec<Then>),
    /// Tell that everything before is done.
    Tell(Sender<()>),
    End,
}

/// The queue's end at which work comes in.
pub(super) struct After {
    /// As long as what waits for transactions: those who leave work there bound it.
    queue: Sender<Work>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl After {
    /// # Errors
    /// The system gives no thread.
    pub(super) fn start() -> io::Result<After> {
        let (queue, work) = unbounded();
        let thread = thread::Builder::new().name("store-after".to_owned()).spawn(move || run(&work))?;
        Ok(After { queue, thread: Mutex::new(Some(thread)) })
    }

    pub(super) fn run(&self, batch: &Arc<Batch>, thens: Vec<Then>) {
        if !thens.is_empty() {
            // It can only fail after `end`, and nothing is published then.
            let _ = self.queue.send(Work::Run(Arc::clone(batch), thens));
        }
    }

    /// Waits until everything that came before is done; at once after the end.
    pub(super) fn settle(&self) {
        let (tell, told) = bounded(1);
        if self.queue.send(Work::Tell(tell)).is_ok() {
            // An error is the end of the thread: it has done what came before.
            let _ = told.recv();
        }
    }

    /// Does what came before, and ends.
    pub(super) fn end(&self) {
        let Some(thread) = self.thread.lock().take() else { return };
        let _ = self.queue.send(Work::End);
        // What is left to be done may hold the store's last handle; then this is that very thread.
        if thread.thread().id() != thread::current().id() && thread.join().is_err() {
            log::error!("the store's own thread ended by a panic");
        }
    }
}

impl Drop for After {
    fn drop(&mut self) {
        self.end();
    }
}

fn run(queue: &Receiver<Work>) {
    while let Ok(work) = queue.recv() {
        match work {
            Work::Run(batch, thens) => {
                for then in thens {
                    if panic::catch_unwind(AssertUnwindSafe(|| then.run(&batch))).is_err() {
                        log::error!("what was to be done after a commit panicked");
                    }
                }
            }
            // Whoever asked may have gone.
            Work::Tell(tell) => drop(tell.send(())),
            Work::End => return,
        }
    }
}
