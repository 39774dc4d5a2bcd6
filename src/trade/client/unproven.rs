//! Connections that have not shown yet that they are the server's.
//!
//! Whoever else lives at the server's address may connect, say nothing, and so hold a place until its time
//! is up. The server needs milliseconds for what shows who it is; so when many connections owe that, the
//! one that has owed it longest has to go.

use std::collections::VecDeque;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// Unproven connections at once.
const UNPROVEN_MAX: usize = 64;
/// Connections past those that settlements need: the unproven ones, and as many that are just ending.
pub(super) const TO_SPARE: usize = 2 * UNPROVEN_MAX;

/// All of them, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Unproven(Mutex<VecDeque<Weak<TcpStream>>>);

/// A place among them, until it is dropped.
pub(super) struct Place {
    all: Arc<Unproven>,
    stream: Weak<TcpStream>,
}

impl Unproven {
    /// Takes a connection in; the oldest one is cut off if there are too many.
    pub(super) fn enter(self: &Arc<Unproven>, stream: &Arc<TcpStream>) -> Place {
        let stream = Arc::downgrade(stream);
        let oldest = {
            let mut all = self.0.lock();
            all.push_back(stream.clone());
            if all.len() > UNPROVEN_MAX { all.pop_front() } else { None }
        };
        if let Some(oldest) = oldest.and_then(|oldest| oldest.upgrade()) {
            // Fails only if it has ended already. Its own thread sees the end, and leaves.
            let _ = oldest.shutdown(Shutdown::Both);
        }
        Place { all: Arc::clone(self), stream }
    }
}

impl Place {
    /// Gives it up, because it is proven or over. Whether it had been cut off before.
    pub(super) fn leave(&self) -> bool {
        let mut all = self.all.0.lock();
        let at = all.iter().position(|other| other.ptr_eq(&self.stream));
        at.map(|at| all.remove(at)).is_none()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}
