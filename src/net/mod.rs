//! Threads, timers and sockets: the transport under every service, with no knowledge of any of them.
//!
//! Everything has a bound, and everything that is dropped, refused or failed is counted.

#[cfg(target_os = "linux")]
mod ancillary;
pub mod backoff;
pub mod budget;
pub mod cluster;
pub mod conn;
pub mod connection_end;
pub mod counters;
pub mod deadline;
pub mod frames;
pub mod http;
pub mod interfaces;
pub mod limits;
pub mod lines;
pub mod link;
pub mod listener;
pub(crate) mod log_throttle;
pub mod peer_socket;
pub mod periodic;
pub mod permits;
pub mod pool;
pub mod quotas;
pub mod shutdown;
pub mod source;
pub mod threads;
pub mod timer;
pub mod tls;
pub mod udp;

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

    /// For a test that changes what its whole process shares: runs it again, alone, in a process of
    /// its own. True there; false, once that has succeeded, in the first one.
    #[track_caller]
    pub(crate) fn in_own_process(test: &str) -> bool {
        const MARK: &str = "P2S2_TEST_IN_OWN_PROCESS";
        if std::env::var(MARK).is_ok_and(|marked| marked == test) {
            return true;
        }
        let own_program = std::env::current_exe().unwrap();
        let output = std::process::Command::new(own_program)
            .args([test, "--exact", "--nocapture"])
            .env(MARK, test)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.contains("1 passed"), "no such test: {test}");
        false
    }
}
