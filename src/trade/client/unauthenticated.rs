//! Connections that have not yet proved to be the server's.
//!
//! Anyone at the server's address may connect, send nothing, and hold a slot until the timeout. The server needs only
//! milliseconds to authenticate, so of too many that have not, the one that waits longest is closed.

use std::collections::VecDeque;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

const UNAUTHENTICATED_MAX: usize = 64;
/// Connections beyond those for settlements: the unauthenticated ones, and as many that are just closing.
pub(super) const SPARE_CONNECTIONS_MAX: usize = 2 * UNAUTHENTICATED_MAX;

/// Oldest first.
#[derive(Debug, Default)]
pub(super) struct UnauthenticatedConnections(Mutex<VecDeque<Weak<TcpStream>>>);

/// A slot is held until it is dropped.
pub(super) struct UnauthenticatedSlot {
    all: Arc<UnauthenticatedConnections>,
    stream: Weak<TcpStream>,
}

impl UnauthenticatedConnections {
    /// Closes the oldest if there are too many.
    pub(super) fn insert(self: &Arc<UnauthenticatedConnections>, stream: &Arc<TcpStream>) -> UnauthenticatedSlot {
        let stream = Arc::downgrade(stream);
        let oldest = {
            let mut all = self.0.lock();
            all.push_back(stream.clone());
            if all.len() > UNAUTHENTICATED_MAX { all.pop_front() } else { None }
        };
        if let Some(oldest) = oldest.and_then(|oldest| oldest.upgrade()) {
            // Fails only if the connection has already ended; its own thread then releases the slot.
            let _ = oldest.shutdown(Shutdown::Both);
        }
        UnauthenticatedSlot { all: Arc::clone(self), stream }
    }
}

impl UnauthenticatedSlot {
    /// The connection is authenticated or has ended. True if it had been evicted before.
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
