//! Threads, timers and sockets: what carries every room's messages, with no knowledge of any room.
//!
//! Plain threads and blocking sockets; everything has a bound, and everything dropped, refused or
//! failed is counted.

pub mod counters; // numbers for the metrics page
pub mod threads; //  the executor: a thread per request, kept for the next
pub mod timer; //    deadlines that become jobs
pub mod udp; //      datagrams, each with a thread to itself

#[cfg(test)]
pub(crate) mod testing {
    use std::time::{Duration, Instant};

    /// Waits until something holds; a test that waits longer than ten seconds has failed.
    #[track_caller]
    pub(crate) fn eventually(mut holds: impl FnMut() -> bool) {
        let give_up_at = Instant::now() + Duration::from_secs(10);
        while !holds() {
            assert!(Instant::now() < give_up_at, "waited in vain");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
