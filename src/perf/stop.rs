//! The wish to end, cheap enough to be looked at before every call.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::net::shutdown::Shutdown;
use crate::net::threads;

/// Whether measuring is to end. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asked for by SIGINT or SIGTERM.
    ///
    /// # Errors
    /// The system's, when it gives no handler or thread.
    pub fn on_signals() -> io::Result<Stop> {
        let (stop, shutdown) = (Stop::default(), Shutdown::install()?);
        let asked = stop.clone();
        threads::spawn("signals", move || {
            shutdown.wait();
            asked.ask();
        })?;
        Ok(stop)
    }

    /// Asks for the end.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the end was asked for.
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
