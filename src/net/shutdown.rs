//! The end of a server: asked for by SIGINT or SIGTERM, and insisted on by a second one.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// The exit code after a second signal: as shells report a death by SIGINT.
const INSISTED: i32 = 130;

/// Whether the program is to end. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    is_asked: Mutex<bool>,
    asked: Condvar,
}

impl Shutdown {
    /// Listens to SIGINT and SIGTERM from now on: the first asks for the end, the second ends the
    /// process at once with code 130.
    ///
    /// # Errors
    /// When the process listens already, or the system's.
    pub fn install() -> io::Result<Shutdown> {
        let shutdown = Shutdown::default();
        let asked = shutdown.clone();
        // The handler runs on a thread of its own, so it may lock and log.
        let has_come = AtomicBool::new(false);
        let handler = move || {
            // Signals alone count: a program whose input has ended is ending, and nobody has insisted.
            asked.trigger();
            if has_come.swap(true, SeqCst) {
                log::warn!("ended by a second signal");
                std::process::exit(INSISTED);
            }
            log::info!("ending; a second signal ends at once");
        };
        let hangup = Hangup::remember();
        // Not `try_set_handler`: a shell starts a background job with SIGINT ignored, and that would be
        // taken for a handler of somebody else's.
        ctrlc::set_handler(handler).map_err(io::Error::other)?;
        hangup.restore();
        Ok(shutdown)
    }

    /// Asks for the end, as a first signal does. True if it had been asked for before.
    pub fn trigger(&self) -> bool {
        let was_asked = std::mem::replace(&mut *self.shared.is_asked.lock(), true);
        self.shared.asked.notify_all();
        was_asked
    }

    /// Whether the end has been asked for.
    pub fn is_asked(&self) -> bool {
        *self.shared.is_asked.lock()
    }

    /// Waits until the end is asked for.
    pub fn wait(&self) {
        let mut is_asked = self.shared.is_asked.lock();
        while !*is_asked {
            self.shared.asked.wait(&mut is_asked);
        }
    }

    /// The same for at most that long; whether it has been asked for.
    pub fn wait_for(&self, at_most: Duration) -> bool {
        let until = Instant::now() + at_most;
        let mut is_asked = self.shared.is_asked.lock();
        while !*is_asked && Instant::now() < until {
            self.shared.asked.wait_until(&mut is_asked, until);
        }
        *is_asked
    }
}

/// Keeps SIGHUP ignored if it was: ctrlc takes it as well, but who started us with nohup wants us to
/// outlive the terminal.
struct Hangup {
    #[cfg(unix)]
    ignored: Option<libc::sigaction>,
}

#[cfg(unix)]
impl Hangup {
    fn remember() -> Hangup {
        let mut now = std::mem::MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: with no new action given, the call only writes the present one to where the pointer
        // points, which is room for one.
        if unsafe { libc::sigaction(libc::SIGHUP, std::ptr::null(), now.as_mut_ptr()) } != 0 {
            return Hangup { ignored: None };
        }
        // SAFETY: the call succeeded, and then it has written the whole struct.
        let now = unsafe { now.assume_init() };
        Hangup { ignored: (now.sa_sigaction == libc::SIG_IGN).then_some(now) }
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
impl Hangup {
    fn remember() -> Hangup {
        Hangup {}
    }

    fn restore(self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_is_told() {
        let shutdown = Shutdown::default();
        assert!(!shutdown.is_asked());
        assert!(!shutdown.wait_for(Duration::from_millis(1)));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| shutdown.wait());
            assert!(!shutdown.clone().trigger());
            waiting.join().unwrap();
        });
        assert!(shutdown.is_asked() && shutdown.wait_for(Duration::ZERO));
        assert!(shutdown.trigger());
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
            let shutdown = Shutdown::install().unwrap();
            assert!(Shutdown::install().is_err());
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
            assert_eq!(child.wait().unwrap().code(), Some(INSISTED));
        }
    }
}
