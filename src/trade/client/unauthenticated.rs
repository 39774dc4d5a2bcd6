//! Connections that have not yet proved to be the server's.
//!
//! Anyone at the server's address may connect, send nothing, and hold a slot until the timeout. The server needs only
//! milliseconds to authenticate. So when too many connections have not done so, the one that has been waiting longest
//! is closed.

use std::collections::VecDeque;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// The maximum number of unauthenticated connections.
const UNAUTHENTICATED_MAX: usize = 64;
/// Connections beyond those needed for settlements: the unauthenticated ones, and as many that are just closing.
pub(super) const SPARE_CONNECTIONS_MAX: usize = 2 * UNAUTHENTICATED_MAX;

/// The unauthenticated connections, oldest first.
#[derive(Debug, Default)]
pub(super) struct UnauthenticatedConnections(Mutex<VecDeque<Weak<TcpStream>>>);

/// A connection's slot among them, held until it is dropped.
pub(super) struct UnauthenticatedSlot {
    all: Arc<UnauthenticatedConnections>,
    stream: Weak<TcpStream>,
}

impl UnauthenticatedConnections {
    /// Adds a connection and closes the oldest if there are too many.
    pub(super) fn insert(self: &Arc<UnauthenticatedConnections>, stream: &Arc<TcpStream>) -> UnauthenticatedSlot {
        let stream = Arc::downgrade(stream);
        let oldest = {
            let mut all = self.0.lock();
            all.push_back(stream.clone());
            if all.len() > UNAUTHENTICATED_MAX { all.pop_front() } else { None }
        };
        if let Some(oldest) = oldest.and_then(|oldest| oldest.upgrade()) {
            // Fails only if the connection has already ended. Its own thread notices the end and releases the slot.
            let _ = oldest.shutdown(Shutdown::Both);
        }
        UnauthenticatedSlot { all: Arc::clone(self), stream }
    }
}

impl UnauthenticatedSlot {
    /// Releases the slot because the connection is authenticated or has ended. True if the connection had been
    /// evicted before.
    pub(super) fn release(&self) -> bool {
        let mut all = self.all.0.lock();
        let at = all.iter().position(|other| other.ptr_eq(&self.stream));
        at.map(|at| all.remove(at)).is_none()
    }
}

impl Drop for UnauthenticatedSlot {
    fn drop(&mut self) {
        self.release();
    }
}
