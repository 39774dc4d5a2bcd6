//! Threads, timers and sockets: what carries every room's messages, with no knowledge of any room.
//!
//! Plain threads and blocking sockets; everything has a bound, and everything dropped, refused or
//! failed is counted.

pub mod budget; //   how much may be received and not yet handled
pub mod cluster; //  the key that components of one shop share
pub mod conn; //     a connection, plain or TLS, read and written at once
#[cfg(target_os = "linux")]
mod control; //      what comes and goes beside a datagram
pub mod counters; // numbers for the metrics page
pub mod deadline; // reading and writing with absolute deadlines
pub mod ended; //    why a connection is over
pub mod frames; //   messages behind their length, and which framing a client chose
pub mod http; //     HTTP/1.1: hyper on our threads
pub mod interfaces; // the addresses of this host
pub mod limits; //   what this machine allows
pub mod lines; //    lines of text, each with a deadline
pub mod link; //     messages between components that proved the key
pub mod listener; // what accepts connections on every port
pub mod peer_socket; // datagrams between peers: shared ports, and who refuses
pub mod periodic; // something that is done every so often
pub mod pool; //     links that are kept open for the next request
pub mod shares; //   how much of a bounded thing each source holds
pub mod shutdown; // the signals that end a server
pub mod source; //   what is counted "per address"
pub mod threads; //  the executor: a thread per request, kept for the next
pub mod timer; //    deadlines that become jobs
pub mod tls; //      who we are, and who the other end must be
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
