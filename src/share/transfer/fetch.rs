//! One fetch: a thread that owns the plan and applies its effects, and the threads that work for it.
//!
//! ```text
//!  source connection (one per host) ──► verifier (hashing) ──┐ verdicts
//!        │ writes to the part file                           ▼
//!        └───────────────── events ───────────────►  the fetch's thread  ──► saver (sync, journal)
//! ```
//!
//! No lock is held while anybody waits: all results come back through one event queue.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use log::warn;

use super::SourceFinder;
use super::context::FetchContext;
use super::fetch_worker::{FetchAction, FetchEvent, FetchShared, FetchWorker};
use super::part_file::{self, FetchSpec, StartFetchError};
use super::progress::{FetchProgress, ProgressCallback};
use crate::net::threads::ExecutorFull;
use crate::storage::files::parent_of;

/// How long a caller waits for its action to be handled.
const ACTION_WAIT_MAX: Duration = Duration::from_secs(1);

/// Handle of a running fetch. Dropping it ends its threads soon; received data stays, and the fetch can be started
/// again.
pub struct Fetch {
    inbox: Sender<FetchEvent>,
    shared: Arc<FetchShared>,
}

impl Fetch {
    /// Starts a fetch, or resumes it where an earlier run with the same id ended, however it ended.
    pub fn start(
        spec: FetchSpec,
        finder: Arc<dyn SourceFinder>,
        on_progress: ProgressCallback,
        context: FetchContext,
    ) -> Result<Fetch, StartFetchError> {
        let prepared = part_file::prepare(&spec)?;
        let (is_new, id, path) = (prepared.is_new, spec.id.clone(), spec.save_path.clone());
        let thread_error = |full: ExecutorFull| {
            // A new fetch that could not start leaves no files; those of an earlier run stay.
            if let Some(folder) = parent_of(&path).filter(|_| is_new)
                && let Err(error) = part_file::discard_leftovers(folder, &id)
            {
                warn!("{}: what could not be begun stays: {error}", path.display());
            }
            StartFetchError::Full(full)
        };
        let executor = Arc::clone(&context.executor);
        let worker = FetchWorker::new(spec, prepared, finder, on_progress, context).map_err(&thread_error)?;
        let (inbox, shared) = worker.handle();
        executor.execute(move || worker.run()).map_err(thread_error)?;
        Ok(Fetch { inbox, shared })
    }

    /// The progress reported last.
    pub fn progress(&self) -> FetchProgress {
        self.shared.state.lock().progress.clone()
    }

    /// Blocks until the fetch is completed, failed or cancelled.
    #[cfg(any(test, feature = "internals"))]
    pub fn wait(&self) -> FetchProgress {
        let mut state = self.shared.state.lock();
        while !(state.is_over || state.progress.status.has_ended()) {
            self.shared.changed.wait(&mut state);
        }
        state.progress.clone()
    }

    /// Ends the fetch's threads and waits for that, at most `grace`. Returns whether they have ended; if so, all
    /// received data is on disk, and the fetch can be started again.
    pub fn stop(&self, grace: Duration) -> bool {
        self.send(FetchEvent::Stop);
        let deadline = Instant::now() + grace;
        let mut state = self.shared.state.lock();
        while !state.is_over && Instant::now() < deadline {
            self.shared.changed.wait_until(&mut state, deadline);
        }
        state.is_over
    }

    /// Returns once progress shows the effect, or after [`ACTION_WAIT_MAX`] if the thread is held up.
    pub fn act(&self, action: FetchAction) {
        let (until_done, done) = bounded(0);
        self.send(FetchEvent::Action(action, until_done));
        // Nothing is ever sent: the channel closes.
        let _ = done.recv_timeout(ACTION_WAIT_MAX);
    }

    fn send(&self, event: FetchEvent) {
        // Fails only after the thread has ended: then there is nothing left to do.
        let _ = self.inbox.send(event);
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        // The progress callback may drop the handle on the fetch's own thread: so nothing may block here.
        self.shared.must_stop.store(true, SeqCst);
        let _ = self.inbox.try_send(FetchEvent::Stop);
    }
}

#[cfg(test)]
mod tests;
