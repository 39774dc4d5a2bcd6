//! The store as rooms use it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::Connection;

use super::mark::Mark;
use super::readers::Readers;
use super::ticket::Verdict;
use super::writer::{Chain, INDEPENDENT, Shared, Writer};
use super::{OpenError, Reader, StoreError, Ticket, Tx, sqlite};
use crate::net::counters::LatencyCounts;

/// How long closing waits for readers in other processes.
const CHECKPOINT_WAIT: Duration = Duration::from_secs(1);

/// One file, one writer thread, a few readers beside it. Share it in an `Arc`; dropping it closes it.
pub struct Store {
    path: PathBuf,
    shared: Arc<Shared>,
    readers: Readers,
    writer: Mutex<Option<JoinHandle<Connection>>>,
}

impl Store {
    /// Opens the file, creates it (mode 600, a new folder 700) if there is none, and brings it to the
    /// newest schema: `migrations[n]` leads from version n to n + 1, and never changes once released. One that
    /// was there before, by the folder's manifest, is never made anew.
    ///
    /// # Errors
    /// One line that says what to do; the file is left as it was.
    pub fn open(path: &Path, migrations: &[&str]) -> Result<Store, OpenError> {
        let opened = sqlite::open_writer(path, migrations)?;
        let shared = Arc::new(Shared::new());
        let mark = Mark::new(path, opened.id.clone());
        let writer = Writer::new(opened, mark, migrations.len());
        let thread = thread::Builder::new()
            .name("store".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || writer.run(&shared)
            })
            .map_err(|error| OpenError::from_io(path, &error))?;
        Ok(Store {
            path: path.to_owned(),
            shared,
            readers: Readers::new(path.to_owned()),
            writer: Mutex::new(Some(thread)),
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The current epoch of chained changes. Once it is another than before, nothing of the one before
    /// can reach the disk any more. Waits while an epoch that has ended is being settled.
    pub fn chain(&self) -> Chain {
        self.shared.chain()
    }

    pub fn current_epoch(&self) -> Chain { self.chain() }

    /// Hands over a change that builds on all changes appended before it in this epoch: memory work,
    /// to be done under the lock of what was changed in memory, so that disk order is memory order.
    ///
    /// If it fails, so does every later one of the epoch; see the top of `writer.rs` for the rules.
    pub fn append(
        &self,
        chain: Chain,
        change: impl FnOnce(&mut dyn Tx) -> Result<(), StoreError> + Send + 'static,
    ) -> Ticket {
        self.shared.hand_over(chain, Box::new(change))
    }

    /// Hands over a change that stands for itself: its failure harms no other.
    pub fn submit(&self, change: impl FnOnce(&mut dyn Tx) -> Result<(), StoreError> + Send + 'static) -> Ticket {
        self.shared.hand_over(INDEPENDENT, Box::new(change))
    }

    /// Runs an independent change and waits until it is on disk. What `f` answers, it answers only if
    /// its transaction was committed: also a refusal may rest on what that transaction held.
    ///
    /// Never call it inside a change: the writer would wait for itself.
    ///
    /// # Errors
    /// What `f` answers (then nothing of it was written), or why it could not be stored.
    pub fn write<T, E>(&self, f: impl FnOnce(&mut dyn Tx) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let answer = Arc::new(Mutex::new(None));
        let ticket = self.submit({
            let answer = Arc::clone(&answer);
            move |tx| {
                let result = f(tx);
                let kept = if result.is_ok() { Ok(()) } else { Err(StoreError::Refused(String::new())) };
                *answer.lock() = Some(result);
                kept
            }
        });
        match (ticket.verdict(), answer.lock().take()) {
            (Verdict::Committed, Some(Ok(value))) => Ok(value),
            (Verdict::Failed(_), Some(Err(refusal))) => Err(refusal),
            (Verdict::Failed(error) | Verdict::Lost(error), _) => Err(error.into()),
            // A committed change has run and succeeded.
            (Verdict::Committed, _) => Err(StoreError::Invalid("a change gave no answer".to_owned()).into()),
        }
    }

    /// Reads one instant: every change that was committed before is in it, none that commits later.
    ///
    /// # Errors
    /// What `f` answers, or why the file could not be read.
    pub fn read<T, E: From<StoreError>>(&self, f: impl FnOnce(&dyn Reader) -> Result<T, E>) -> Result<T, E> {
        self.readers.read(f)
    }

    /// How many changes wait for their transaction to begin: a gauge, already old when it is read.
    pub fn waiting(&self) -> usize {
        self.shared.waiting()
    }

    /// Has all that is done after a transaction ([`Ticket::then`]) done within this, on the writer's thread: so what
    /// it sends can leave together. It must do it, once. A second call changes nothing.
    pub fn around_thens(&self, around: impl Fn(&mut dyn FnMut()) + Send + Sync + 'static) {
        // The first one stays.
        let _ = self.shared.around.set(Box::new(around));
    }

    /// How long its transactions took, their syncs included.
    pub fn commits(&self) -> LatencyCounts {
        self.shared.commits.counts()
    }

    /// Waits until everything handed over before is on disk, or has failed (its ticket says so), and what
    /// was to be done then ([`Ticket::then`]) is done.
    pub fn sync_all(&self) {
        self.shared.settle();
    }

    /// Stores everything handed over, ends the writer, moves the log into the file and closes it.
    /// What is handed over later fails. Repeating it does nothing.
    pub fn close(&self) {
        self.shared.close();
        let Some(thread) = self.writer.lock().take() else { return };
        if thread.thread().id() == thread::current().id() {
            // The last handle went with what was left to be done after a transaction: the writer ends and
            // closes the file by itself.
            return;
        }
        let connection = thread.join();
        self.readers.close();
        let Ok(connection) = connection else {
            log::error!("{}: the writer ended by a panic", self.path.display());
            return;
        };
        // Not needed for safety: the log is on disk and will be read at the next start. So it does not
        // wait long for others that read (a backup, an admin's command).
        if let Err(error) = connection.busy_timeout(CHECKPOINT_WAIT) {
            log::warn!("{}: {}", self.path.display(), super::error::one_line(&error));
        }
        if let Err(error) = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_row| Ok(())) {
            log::warn!("{}: {}", self.path.display(), super::error::one_line(&error));
        }
        if let Err((_connection, error)) = connection.close() {
            log::warn!("{}: {}", self.path.display(), super::error::one_line(&error));
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.path).finish_non_exhaustive()
    }
}
