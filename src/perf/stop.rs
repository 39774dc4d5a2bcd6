//! A flag that ends a run, cheap enough to be checked before every call.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::net::shutdown::ShutdownSignal;
use crate::net::threads;

/// Set when measuring is to end. Clones share one flag.
#[derive(Debug, Clone, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// A flag that SIGINT and SIGTERM set.
    pub fn on_signals() -> io::Result<StopFlag> {
        let (stop, shutdown) = (StopFlag::default(), ShutdownSignal::install()?);
        let flag = stop.clone();
        threads::spawn("signals", move || {
            shutdown.wait();
            flag.set();
        })?;
        Ok(stop)
    }

    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
