use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::engine::{ReadConnection, read_snapshot};
use super::{Reader, StoreError};

/// Reading is CPU work on cached pages: a few connections keep a machine busy.
const CONNECTIONS_MAX: usize = 8;
/// A query that waits longer for a connection fails with [`StoreError::Busy`].
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(60);

/// Connects to the database that is to be read.
pub(super) type ConnectReader = Box<dyn Fn() -> Result<Box<dyn ReadConnection>, StoreError> + Send + Sync>;

pub(super) struct ReaderPool {
    connect: ConnectReader,
    state: Mutex<PoolState>,
    released: Condvar,
}

struct PoolState {
    idle: Vec<Box<dyn ReadConnection>>,
    /// Connections that are idle or in use.
    open_count: usize,
    is_closed: bool,
}

impl ReaderPool {
    pub(super) fn new(connect: ConnectReader) -> ReaderPool {
        ReaderPool {
            connect,
            state: Mutex::new(PoolState { idle: Vec::new(), open_count: 0, is_closed: false }),
            released: Condvar::new(),
        }
    }

    /// All queries of `f` see one snapshot, which contains every change committed before the call.
    pub(super) fn read<T, E: From<StoreError>>(&self, f: impl FnOnce(&dyn Reader) -> Result<T, E>) -> Result<T, E> {
        let pooled = PooledConnection { pool: self, connection: Some(self.acquire()?) };
        let Some(connection) = &pooled.connection else { return Err(StoreError::closed().into()) };
        read_snapshot(connection.as_ref(), f)
    }

    fn acquire(&self) -> Result<Box<dyn ReadConnection>, StoreError> {
        let deadline = Instant::now() + ACQUIRE_TIMEOUT;
        let mut state = self.state.lock();
        loop {
            if state.is_closed {
                return Err(StoreError::closed());
            }
            if let Some(connection) = state.idle.pop() {
                return Ok(connection);
            }
            if state.open_count < CONNECTIONS_MAX {
                break;
            }
            if self.released.wait_until(&mut state, deadline).timed_out() {
                return Err(StoreError::Busy);
            }
        }
        state.open_count += 1;
        drop(state);
        (self.connect)().inspect_err(|_| self.release(None))
    }

    fn release(&self, connection: Option<Box<dyn ReadConnection>>) {
        let mut state = self.state.lock();
        match connection {
            Some(connection) if !state.is_closed => state.idle.push(connection),
            _ => state.open_count -= 1,
        }
        let is_closed = state.is_closed;
        drop(state);
        // A released connection serves one waiter; closing the pool has to wait for all of them.
        if is_closed {
            self.released.notify_all();
        } else {
            self.released.notify_one();
        }
    }

    /// Waits for the queries in progress.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.is_closed = true;
        state.open_count -= state.idle.len();
        let idle = std::mem::take(&mut state.idle);
        self.released.notify_all();
        self.released.wait_while(&mut state, |state| state.open_count > 0);
        drop(state);
        drop(idle);
    }
}

/// Returns to the pool on drop, also when the query panics.
struct PooledConnection<'r> {
    pool: &'r ReaderPool,
    connection: Option<Box<dyn ReadConnection>>,
}

impl Drop for PooledConnection<'_> {
    fn drop(&mut self) {
        // An old snapshot must not stay open; a connection that cannot end its transaction is closed instead.
        let connection = self.connection.take().filter(|connection| connection.reset());
        self.pool.release(connection);
    }
}
