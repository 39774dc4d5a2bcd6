use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;

use super::commit_handle::ChangeOutcome;
use super::engine::WriteConnection;
use super::reader_pool::ReaderPool;
use super::sqlite::{SqliteWriter, open_reader};
use super::writer::{ChangeQueue, Epoch, INDEPENDENT, Writer};
use super::{CommitHandle, OpenError, Reader, StoreError, Tx};
use crate::net::counters::LatencySnapshot;

/// One database file with one writer thread and a few read connections. Dropping it closes it.
pub struct Store {
    path: PathBuf,
    queue: Arc<ChangeQueue>,
    readers: ReaderPool,
    writer: Mutex<Option<JoinHandle<Box<dyn WriteConnection>>>>,
}

impl Store {
    /// Opens the file, creates it (mode 600, a new folder 700) if there is none, and brings it to the newest schema:
    /// `migrations[n]` leads from version n to n + 1 and never changes once released. A store that the folder's
    /// manifest names is never created anew. After an error the file is as it was.
    pub fn open(path: &Path, migrations: &[&str]) -> Result<Store, OpenError> {
        let writer = Writer::new(Box::new(SqliteWriter::open(path, migrations)?));
        let queue = Arc::new(ChangeQueue::new());
        let thread = thread::Builder::new()
            .name("store".to_owned())
            .spawn({
                let queue = Arc::clone(&queue);
                move || writer.run(&queue)
            })
            .map_err(|error| OpenError::from_io(path, &error))?;
        Ok(Store {
            path: path.to_owned(),
            queue,
            readers: ReaderPool::new({
                let path = path.to_owned();
                Box::new(move || Ok(Box::new(open_reader(&path)?)))
            }),
            writer: Mutex::new(Some(thread)),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Once it differs from an earlier value, no chained change of that earlier epoch can reach the disk any more.
    /// Blocks while an ended epoch still has changes in a transaction.
    pub fn current_epoch(&self) -> Epoch {
        self.queue.current_epoch()
    }

    /// Enqueues a change that builds on all changes appended before it in this epoch. Memory work, to be called under
    /// the lock of the state that was changed: then disk order is memory order. If it fails, so does every later change
    /// of the epoch; see the top of `writer.rs` for the rules.
    pub fn append(
        &self,
        epoch: Epoch,
        change: impl FnOnce(&mut dyn Tx) -> Result<(), StoreError> + Send + 'static,
    ) -> CommitHandle {
        self.queue.push(epoch, Box::new(change))
    }

    /// Enqueues an independent change: its failure affects no other.
    pub fn submit(&self, change: impl FnOnce(&mut dyn Tx) -> Result<(), StoreError> + Send + 'static) -> CommitHandle {
        self.queue.push(INDEPENDENT, Box::new(change))
    }

    /// Runs an independent change and waits until it is on disk. The result of `f` is returned only once its
    /// transaction is committed: even a rejection (of which nothing was written) may rest on what that transaction
    /// contained. Never call it inside a change: the writer would wait for itself.
    pub fn write<T, E>(&self, f: impl FnOnce(&mut dyn Tx) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let result_slot = Arc::new(Mutex::new(None));
        let handle = self.submit({
            let result_slot = Arc::clone(&result_slot);
            move |tx| {
                let result = f(tx);
                let outcome = if result.is_ok() { Ok(()) } else { Err(StoreError::Rejected(String::new())) };
                *result_slot.lock() = Some(result);
                outcome
            }
        });
        match (handle.wait_outcome(), result_slot.lock().take()) {
            (ChangeOutcome::Committed, Some(Ok(value))) => Ok(value),
            (ChangeOutcome::Failed(_), Some(Err(refusal))) => Err(refusal),
            (ChangeOutcome::Failed(error) | ChangeOutcome::RolledBack(error), _) => Err(error.into()),
            // A committed change has run and returned a value.
            (ChangeOutcome::Committed, _) => Err(StoreError::Invalid("a change gave no answer".to_owned()).into()),
        }
    }

    /// The queries see one snapshot, which contains every change committed before the call and none committed later.
    pub fn read<T, E: From<StoreError>>(&self, f: impl FnOnce(&dyn Reader) -> Result<T, E>) -> Result<T, E> {
        self.readers.read(f)
    }

    /// Changes that wait for their transaction to begin: a gauge, already outdated when it is read.
    #[cfg(test)]
    pub fn queued_changes(&self) -> usize {
        self.queue.len()
    }

    /// Runs all commit callbacks of a transaction ([`CommitHandle::on_commit`]) inside `wrapper`, on the writer's
    /// thread, so that what they send can leave together. The wrapper must call its argument exactly once. Only the
    /// first call of this method has an effect.
    pub fn wrap_commit_callbacks(&self, wrapper: impl Fn(&mut dyn FnMut()) + Send + Sync + 'static) {
        let _ = self.queue.callback_wrapper.set(Box::new(wrapper));
    }

    /// The latencies of the transactions, their syncs included.
    pub fn commit_latencies(&self) -> LatencySnapshot {
        self.queue.commit_latencies.snapshot()
    }

    /// Waits until every change enqueued before is on disk or has failed, and its commit callbacks have run.
    pub fn sync_all(&self) {
        self.queue.wait_committed();
    }

    /// Commits what is queued, ends the writer, moves the write-ahead log into the file and closes it. Changes enqueued
    /// later fail. Further calls do nothing.
    pub fn close(&self) {
        self.queue.close();
        let Some(thread) = self.writer.lock().take() else { return };
        if thread.thread().id() == thread::current().id() {
            // A commit callback dropped the last reference to the store: the writer ends and closes the file by itself.
            return;
        }
        let connection = thread.join();
        self.readers.close();
        let Ok(connection) = connection else {
            log::error!("{}: the writer ended by a panic", self.path.display());
            return;
        };
        connection.close();
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

crate::model::debug_fields!(Store, |store| path: store.path);
