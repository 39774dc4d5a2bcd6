//! One fetch: a thread that owns the plan and applies its effects, and the threads that work for it.
//!
//! ```text
//!  source connection (one per host) ──► verifier (hashing) ──┐ verdicts
//!        │ writes to the part file                           ▼
//!        └───────────────── events ───────────────►  the fetch's thread  ──► saver (sync, journal)
//! ```
//!
//! No lock is held while anybody waits: all results come back through one event queue.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded, unbounded};
use log::warn;

use super::SourceFinder;
use super::context::FetchContext;
use super::fetch_worker::{EVENTS_MAX, FetchChannels, FetchCommand, FetchEvent, FetchShared, FetchWorker, ResumedData};
use super::part_file::{self, FetchSpec, Journal, PartFile, PreparedFetch, StartFetchError};
use super::progress::{FetchProgress, ProgressCallback};
use super::saver::{self, SaveCommand};
use crate::net::threads::{Executor, ExecutorFull};
use crate::storage::files::parent_of;

/// How long a caller waits for its command to be handled.
const COMMAND_WAIT_MAX: Duration = Duration::from_secs(1);

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
        let PreparedFetch { journal, is_new, part, piece_list, synced_pieces } = part_file::prepare(&spec)?;
        let (id, path) = (spec.id.clone(), spec.save_path.clone());
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
        let (inbox, events) = bounded(EVENTS_MAX);
        let save_commands = start_saver(journal, part.clone(), inbox.clone(), &executor).map_err(&thread_error)?;
        let data = ResumedData { part, piece_list, verified_pieces: synced_pieces };
        let channels = FetchChannels { inbox: inbox.clone(), events, save_commands };
        let worker = FetchWorker::new(spec, data, channels, finder, on_progress, context);
        let shared = worker.shared();
        executor.execute(move || worker.run()).map_err(thread_error)?;
        Ok(Fetch { inbox, shared })
    }

    /// The progress reported last.
    pub fn progress(&self) -> FetchProgress {
        self.shared.state.lock().progress.clone()
    }

    /// Disconnects from all hosts; received data stays.
    pub fn pause(&self) {
        self.request(FetchCommand::Pause);
    }

    /// Continues after a pause or a failure.
    pub fn resume(&self) {
        self.request(FetchCommand::Resume);
    }

    /// Ends the fetch and removes its files.
    pub fn cancel(&self) {
        self.request(FetchCommand::Cancel);
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

    /// Returns once progress shows the command's effect, or after [`COMMAND_WAIT_MAX`] if the thread is held up.
    fn request(&self, command: FetchCommand) {
        let (until_done, done) = bounded(0);
        self.send(FetchEvent::Command(command, until_done));
        // Nothing is ever sent: the channel closes.
        let _ = done.recv_timeout(COMMAND_WAIT_MAX);
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

impl fmt::Debug for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetch").field("progress", &self.progress()).finish_non_exhaustive()
    }
}

/// Starts the thread that syncs what is received and keeps the journal; its events go to the fetch's inbox.
fn start_saver(
    journal: Journal,
    part: Option<Arc<PartFile>>,
    inbox: Sender<FetchEvent>,
    executor: &Arc<Executor>,
) -> Result<Sender<SaveCommand>, ExecutorFull> {
    let (commands, its_commands) = unbounded();
    executor.execute(move || {
        saver::run_saver(journal, part, &its_commands, &|event| {
            // Fails only after the fetch's thread has ended.
            let _ = inbox.send(FetchEvent::Saver(event));
        });
    })?;
    Ok(commands)
}

#[cfg(test)]
mod tests;
