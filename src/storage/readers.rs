//! A few connections that read beside the writer.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rusqlite::Connection;

use super::{Reader, StoreError, sqlite};

/// Reading is processor work on cached pages: a few connections keep a machine busy.
const CONNECTIONS_MAX: usize = 8;
/// How long a query waits for a connection before it gets [`StoreError::Busy`].
const WAIT_MAX: Duration = Duration::from_secs(60);

pub(super) struct Readers {
    path: PathBuf,
    pool: Mutex<Pool>,
    freed: Condvar,
}

struct Pool {
    idle: Vec<Connection>,
    /// Idle ones and those at work.
    open: usize,
    closed: bool,
}

impl Readers {
    pub(super) fn new(path: PathBuf) -> Readers {
        Readers { path, pool: Mutex::new(Pool { idle: Vec::new(), open: 0, closed: false }), freed: Condvar::new() }
    }

    /// Runs `f` in a read transaction: all its queries see one instant, no older than the newest
    /// change that was committed when it was called.
    pub(super) fn read<T, E: From<StoreError>>(&self, f: impl FnOnce(&dyn Reader) -> Result<T, E>) -> Result<T, E> {
        let lent = Lent { readers: self, connection: Some(self.take()?) };
        let Some(connection) = &lent.connection else { return Err(StoreError::closed().into()) };
        sqlite::read_in(connection, f)
    }

    fn take(&self) -> Result<Connection, StoreError> {
        let until = Instant::now() + WAIT_MAX;
        let mut pool = self.pool.lock();
        loop {
            if pool.closed {
                return Err(StoreError::closed());
            }
            if let Some(connection) = pool.idle.pop() {
                return Ok(connection);
            }
            if pool.open < CONNECTIONS_MAX {
                break;
            }
            if self.freed.wait_until(&mut pool, until).timed_out() {
                return Err(StoreError::Busy);
            }
        }
        pool.open += 1;
        drop(pool);
        sqlite::open_reader(&self.path).inspect_err(|_| self.give_back(None))
    }

    fn give_back(&self, connection: Option<Connection>) {
        let mut pool = self.pool.lock();
        match connection {
            Some(connection) if !pool.closed => pool.idle.push(connection),
            _ => pool.open -= 1,
        }
        let is_closed = pool.closed;
        drop(pool);
        // One connection serves one who waits; whoever closes waits for all of them.
        if is_closed {
            self.freed.notify_all();
        } else {
            self.freed.notify_one();
        }
    }

    /// Lets no new query in, waits for those at work and closes all connections.
    pub(super) fn close(&self) {
        let mut pool = self.pool.lock();
        pool.closed = true;
        pool.open -= pool.idle.len();
        let idle = std::mem::take(&mut pool.idle);
        self.freed.notify_all();
        while pool.open > 0 {
            self.freed.wait(&mut pool);
        }
        drop(pool);
        drop(idle);
    }
}

/// A connection that comes back whatever happens, also when the query panics.
struct Lent<'r> {
    readers: &'r Readers,
    connection: Option<Connection>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let connection = self.connection.take().filter(|connection| {
            // An old snapshot must not stay open; a connection that cannot end it is closed instead.
            connection.is_autocommit() || sqlite::run(connection, "ROLLBACK").is_ok()
        });
        self.readers.give_back(connection);
    }
}
