//! A pseudo-terminal with a program that takes it for a user's terminal.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::support::{PATIENCE, eventually};

pub const TAB: &str = "\t";
pub const ENTER: &str = "\r";
pub const ARROW_UP: &str = "\x1b[A";
pub const CTRL_C: &str = "\x03";
pub const CTRL_D: &str = "\x04";

/// A program whose input, output and errors are a terminal. Killed with SIGKILL when dropped.
pub struct Terminal {
    child: Child,
    keyboard: File,
    /// The program's end of the terminal, kept open so that its settings can be read after the program has ended.
    line: Option<OwnedFd>,
    /// The settings before the program started.
    settings: libc::termios,
    shown: Arc<TerminalOutput>,
    reader: Option<JoinHandle<()>>,
    /// How far [`Terminal::sees`] has read the text.
    passed: usize,
}

/// All bytes that the program has written to the terminal.
#[derive(Default)]
struct TerminalOutput {
    bytes: Mutex<Vec<u8>>,
    grown: Condvar,
}

impl Terminal {
    /// Starts the program at a terminal of 100 columns with xterm's capabilities.
    pub fn start(program: &mut Command) -> Terminal {
        Terminal::start_as("xterm-256color", program)
    }

    /// Starts the program at a terminal of another kind.
    pub fn start_as(term: &str, program: &mut Command) -> Terminal {
        let (keyboard, line) = pair().unwrap();
        let settings = settings(&line);
        let end = || Stdio::from(line.try_clone().unwrap());
        program.stdin(end()).stdout(end()).stderr(end()).env("TERM", term).env_remove("NO_COLOR");
        // SAFETY: setsid(2) and ioctl(2) may be called between fork and exec and take plain integers; the final 0 means
        // not to steal the terminal from another session.
        unsafe {
            program.pre_exec(|| {
                let done = libc::setsid() >= 0 && libc::ioctl(0, libc::TIOCSCTTY as _, 0) == 0;
                if done { Ok(()) } else { Err(io::Error::last_os_error()) }
            });
        }
        let child = program.spawn().unwrap();
        // The `Command` also holds ends of the terminal; while they are open, reading would never end.
        program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let shown = Arc::<TerminalOutput>::default();
        let reader = {
            let (mut screen, shown) = (keyboard.try_clone().unwrap(), Arc::clone(&shown));
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                // On Linux the end is reported as EIO, elsewhere as end of file.
                while let Ok(length @ 1..) = screen.read(&mut bytes) {
                    shown.bytes.lock().unwrap().extend(&bytes[..length]);
                    shown.grown.notify_all();
                }
            })
        };
        Terminal { child, keyboard, line: Some(line), settings, shown, reader: Some(reader), passed: 0 }
    }

    pub fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until this text appears after what was seen before; returns the text in between.
    #[track_caller]
    pub fn sees(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut bytes = self.shown.bytes.lock().unwrap();
        loop {
            let all = plain(&bytes);
            if let Some(at) = all[self.passed..].find(text) {
                let before = all[self.passed..self.passed + at].to_owned();
                self.passed += at + text.len();
                return before;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let raw = String::from_utf8_lossy(&bytes).into_owned();
                panic!("waited in vain for {text:?} behind {:?}, in {raw:?}", &all[..self.passed]);
            }
            bytes = self.shown.grown.wait_timeout(bytes, left).unwrap().0;
        }
    }

    /// Everything so far, including escape codes.
    pub fn raw(&self) -> String {
        String::from_utf8_lossy(&self.shown.bytes.lock().unwrap()).into_owned()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the program's end; returns its exit code and all its output. The terminal's settings must have been
    /// restored.
    #[track_caller]
    pub fn ends(mut self) -> (i32, String) {
        let status = eventually(&format!("the program at the terminal to end, behind {:?}", self.raw()), || {
            self.child.try_wait().unwrap()
        });
        if cfg!(target_os = "linux") {
            // Elsewhere a terminal is revoked when its session leader ends.
            let after = settings(self.line.as_ref().unwrap());
            let flags = |it: &libc::termios| (it.c_iflag, it.c_oflag, it.c_cflag, it.c_lflag);
            assert_eq!(flags(&after), flags(&self.settings), "the terminal's settings were not put back");
        }
        self.line = None;
        self.reader.take().unwrap().join().unwrap();
        (status.code().unwrap_or(-1), self.raw())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Opens a pseudo-terminal: the user's and the program's end. Child processes do not inherit them.
fn pair() -> io::Result<(File, OwnedFd)> {
    // `ptsname` uses a static buffer.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let checked = |result: i32| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
    let close_on_exec = if cfg!(target_os = "linux") { libc::O_CLOEXEC } else { 0 };
    let _guard = ONE_AT_A_TIME.lock();
    // SAFETY: the calls take plain integers; each descriptor is owned by one value from its creation on; `ptsname`'s
    // buffer is used before it may be overwritten; `size` outlives the call that reads it.
    unsafe {
        let person = OwnedFd::from_raw_fd(checked(libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | close_on_exec))?);
        checked(libc::fcntl(person.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC))?;
        checked(libc::grantpt(person.as_raw_fd()))?;
        checked(libc::unlockpt(person.as_raw_fd()))?;
        let name = libc::ptsname(person.as_raw_fd());
        if name.is_null() {
            return Err(io::Error::last_os_error());
        }
        let line = checked(libc::open(name, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC))?;
        let line = OwnedFd::from_raw_fd(line);
        let size = libc::winsize { ws_row: 40, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        checked(libc::ioctl(line.as_raw_fd(), libc::TIOCSWINSZ as _, &raw const size))?;
        Ok((File::from(person), line))
    }
}

fn settings(line: &OwnedFd) -> libc::termios {
    let mut settings = std::mem::MaybeUninit::uninit();
    // SAFETY: `tcgetattr` fills the buffer or fails.
    unsafe {
        assert_eq!(libc::tcgetattr(line.as_raw_fd(), settings.as_mut_ptr()), 0, "{}", io::Error::last_os_error());
        settings.assume_init()
    }
}

/// The output without escape codes and without incomplete characters at its end.
fn plain(bytes: &[u8]) -> String {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(cut) => {
            assert!(cut.error_len().is_none(), "no UTF-8: {:?}", String::from_utf8_lossy(bytes));
            std::str::from_utf8(&bytes[..cut.valid_up_to()]).unwrap()
        }
    };
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\x1b') {
        plain.push_str(&rest[..at]);
        let code = &rest[at + 1..];
        // ESC [ parameters letter; other escape codes have one character.
        let end = match code.strip_prefix('[') {
            Some(code) => code.find(|c: char| ('@'..='~').contains(&c)).map(|end| end + 2),
            None => code.chars().next().map(char::len_utf8),
        };
        let Some(end) = end else { return plain };
        rest = &code[end..];
    }
    plain + rest
}

#[test]
fn escape_codes_are_told_from_text() {
    assert_eq!(plain(b"a\x1b[1;31mb\x1b[0m\r\x1b[Kc\xc3"), "ab\rc");
    assert_eq!(plain(b"a\x1b[?2004h> \x1b[3"), "a> ");
}
