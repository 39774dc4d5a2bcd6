//! What a fetch is built from: who provides its threads, and its timeouts.

use std::sync::Arc;
use std::time::Duration;

use crate::net::threads::Executor;

#[derive(Debug, Clone)]
pub struct FetchContext {
    /// Provides its threads: one for itself, one that syncs, two for each of up to four hosts.
    pub executor: Arc<Executor>,
    pub timing: FetchTiming,
}

#[derive(Debug, Clone, Copy)]
pub struct FetchTiming {
    pub connect_timeout: Duration,
    /// How long a host may send nothing while data is expected.
    pub stall_timeout: Duration,
    /// Bound for a complete response line; the list of pieces is one, too.
    pub line_timeout: Duration,
    /// How often the fetch acts without any event.
    pub tick_interval: Duration,
    /// How often progress is reported while data arrives.
    pub progress_interval: Duration,
    /// First delay before hosts are looked up again while none is usable; it doubles each time.
    pub lookup_retry_min: Duration,
    /// Upper bound of that delay, and the interval of look-ups while data arrives.
    pub lookup_interval_max: Duration,
}

impl Default for FetchTiming {
    fn default() -> FetchTiming {
        FetchTiming {
            connect_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(10),
            line_timeout: Duration::from_secs(30),
            tick_interval: Duration::from_millis(100),
            progress_interval: Duration::from_millis(200),
            lookup_retry_min: Duration::from_secs(1),
            // A fetch whose content is gone must find out within 5 s.
            lookup_interval_max: Duration::from_secs(4),
        }
    }
}
