//! The shutdown of a server: requested by SIGINT or SIGTERM, and forced by a second signal.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// The code by which shells report a death by SIGINT.
const SECOND_SIGNAL_EXIT_CODE: i32 = 130;

/// Clones share the same state.
#[derive(Debug, Clone, Default)]
pub struct ShutdownSignal {
    state: Arc<ShutdownState>,
}

#[derive(Debug, Default)]
struct ShutdownState {
    is_requested: Mutex<bool>,
    requested: Condvar,
}

impl ShutdownSignal {
    /// From now on the first SIGINT or SIGTERM requests the shutdown, and the second ends the process at once with code
    /// 130. Fails if the process handles them already.
    pub fn install() -> io::Result<ShutdownSignal> {
        let shutdown = ShutdownSignal::default();
        let signal = shutdown.clone();
        // The handler runs on a thread of its own, so it may lock and log.
        let has_come = AtomicBool::new(false);
        let handler = move || {
            // Only signals are counted: a program whose input has ended is ending already, and then a first signal must
            // not force it.
            signal.request();
            if has_come.swap(true, SeqCst) {
                log::warn!("ended by a second signal");
                std::process::exit(SECOND_SIGNAL_EXIT_CODE);
            }
            log::info!("ending; a second signal ends at once");
        };
        let hangup = HangupDisposition::capture();
        // Not `try_set_handler`: a shell starts a background job with SIGINT ignored, and that would be taken for
        // another handler.
        ctrlc::set_handler(handler).map_err(io::Error::other)?;
        hangup.restore();
        Ok(shutdown)
    }

    /// Returns whether it was requested before.
    pub fn request(&self) -> bool {
        let was_asked = std::mem::replace(&mut *self.state.is_requested.lock(), true);
        self.state.requested.notify_all();
        was_asked
    }

    pub fn is_requested(&self) -> bool {
        *self.state.is_requested.lock()
    }

    pub fn wait(&self) {
        let mut is_asked = self.state.is_requested.lock();
        self.state.requested.wait_while(&mut is_asked, |is_asked| !*is_asked);
    }

    /// Returns whether the shutdown was requested within that time.
    pub fn wait_for(&self, at_most: Duration) -> bool {
        let until = Instant::now() + at_most;
        let mut is_asked = self.state.is_requested.lock();
        !self.state.requested.wait_while_until(&mut is_asked, |is_asked| !*is_asked, until).timed_out()
    }
}

/// Keeps SIGHUP ignored if it was: ctrlc handles it as well, but a process started with nohup is to outlive its
/// terminal.
struct HangupDisposition {
    #[cfg(unix)]
    ignored: Option<libc::sigaction>,
}

#[cfg(unix)]
impl HangupDisposition {
    fn capture() -> HangupDisposition {
        let mut now = std::mem::MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: with no new action given, the call only writes the present one, and there is room for one.
        if unsafe { libc::sigaction(libc::SIGHUP, std::ptr::null(), now.as_mut_ptr()) } != 0 {
            return HangupDisposition { ignored: None };
        }
        // SAFETY: the call succeeded, and then it has written the whole struct.
        let now = unsafe { now.assume_init() };
        HangupDisposition { ignored: (now.sa_sigaction == libc::SIG_IGN).then_some(now) }
    }

    fn restore(self) {
        if let Some(ignored) = self.ignored {
            // SAFETY: the action is the one that the system gave us, and it calls no function.
            let failed = unsafe { libc::sigaction(libc::SIGHUP, &ignored, std::ptr::null_mut()) } != 0;
            if failed {
                log::warn!("SIGHUP will end the server: {}", io::Error::last_os_error());
            }
        }
    }
}

#[cfg(not(unix))]
impl HangupDisposition {
    fn capture() -> HangupDisposition {
        HangupDisposition {}
    }

    fn restore(self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_is_told() {
        let shutdown = ShutdownSignal::default();
        assert!(!shutdown.is_requested());
        assert!(!shutdown.wait_for(Duration::from_millis(1)));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| shutdown.wait());
            assert!(!shutdown.clone().request());
            waiting.join().unwrap();
        });
        assert!(shutdown.is_requested() && shutdown.wait_for(Duration::ZERO));
        assert!(shutdown.request());
    }

    /// The test's own program, run as a server that is sent two signals.
    #[cfg(unix)]
    #[test]
    fn the_first_signal_asks_and_the_second_insists() {
        use std::io::{BufRead, BufReader};
        use std::process::{Command, Stdio};
        const TEST: &str = "net::shutdown::tests::the_first_signal_asks_and_the_second_insists";
        const MARK: &str = "P2S2_TEST_SHUTDOWN_CHILD";
        if std::env::var_os(MARK).is_some() {
            let shutdown = ShutdownSignal::install().unwrap();
            assert!(ShutdownSignal::install().is_err());
            println!("\nready");
            shutdown.wait();
            println!("asked");
            // Ended from outside; a parent that died leaves nothing behind for long.
            std::thread::sleep(Duration::from_secs(30));
            return;
        }
        for signal in [libc::SIGTERM, libc::SIGINT] {
            // As by nohup, and by a script that starts it in the background.
            let mut child = Command::new("sh")
                .args(["-c", "trap '' HUP INT; exec \"$0\" \"$@\""])
                .arg(std::env::current_exe().unwrap())
                .args([TEST, "--exact", "--nocapture"])
                .env(MARK, "1")
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let pid = libc::pid_t::try_from(child.id()).unwrap();
            // SAFETY: sends a signal to a child of ours that has not been waited for yet.
            let send = |signal| assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
            assert!(lines.any(|line| line == "ready"));
            // Two of these would end it.
            (0..2).for_each(|_| send(libc::SIGHUP));
            send(signal);
            assert!(lines.any(|line| line == "asked"));
            send(signal);
            assert_eq!(child.wait().unwrap().code(), Some(SECOND_SIGNAL_EXIT_CODE));
        }
    }
}
