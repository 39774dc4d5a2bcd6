//! Servers as children: started, awaited, watched, and ended by their own handle whatever happens.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use crossbeam_channel::{RecvTimeoutError, bounded};

use super::load::Sample;
use super::stop::Stop;
use crate::net::threads;

/// How long a server may take to be ready.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// How often the wish to end is looked at while waiting.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What says to each command that serves clients that it is not to announce itself.
const UNANNOUNCED: [&str; 3] =
    ["P2S2_SERVER_NO_ANNOUNCE", "P2S2_SELLER_SERVER_NO_ANNOUNCE", "P2S2_BUYER_SERVER_NO_ANNOUNCE"];

/// A folder of its own, removed with all that is in it.
#[derive(Debug)]
pub struct WorkDir(PathBuf);

impl WorkDir {
    /// A new folder below this one (which is made if need be).
    ///
    /// # Errors
    /// The system's.
    pub fn create(below: &Path) -> anyhow::Result<WorkDir> {
        let describe = || format!("cannot use --out {}", below.display());
        fs::create_dir_all(below).with_context(describe)?;
        // Absolute, because children get another working directory.
        let below = below.canonicalize().with_context(describe)?;
        for nth in 0..u32::MAX {
            let path = below.join(format!("tmp-{}-{nth}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(WorkDir(path)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(describe),
            }
        }
        bail!("{}: full of folders of earlier runs", below.display());
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("warning: {} is left behind: {error}", self.0.display());
        }
    }
}

/// A program of ours: beside the one that runs.
///
/// # Errors
/// It is not there.
pub fn sibling(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program lies")?;
    let path = own.with_file_name(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    if !path.is_file() {
        bail!("{} is missing: build all programs (cargo build --release --bins)", path.display());
    }
    Ok(path)
}

/// A server that we started. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    name: String,
    child: Child,
    said: Vec<String>,
    _dir: WorkDir,
}

impl Server {
    /// Starts a server in a folder of its own below `out`, and waits until it says `ready`.
    /// The words are given that folder.
    ///
    /// # Errors
    /// It does not start, ends at once, or is not ready in time.
    pub fn start(
        name: &str,
        program: &Path,
        out: &Path,
        words: impl FnOnce(&Path) -> Vec<String>,
        stop: &Stop,
    ) -> anyhow::Result<Server> {
        let dir = WorkDir::create(out)?;
        let errors = dir.path().join("stderr");
        let mut command = Command::new(program);
        command
            .args(words(dir.path()))
            // Settings of the shell, or of a `.env` here, would measure something else.
            .current_dir(dir.path())
            .env("RUST_LOG", "warn")
            // Nobody is to find it but us.
            .envs(UNANNOUNCED.map(|name| (name, "yes")))
            // It ends when this closes: also where the system has no better way to tell it of our end.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&errors).context("cannot write below --out")?);
        for (key, _) in std::env::vars_os() {
            let key_text = key.to_string_lossy();
            if key_text.starts_with("P2S2_") && !UNANNOUNCED.contains(&&*key_text) || key_text.starts_with("SERVER_") {
                command.env_remove(&key);
            }
        }
        die_with_us(&mut command);
        let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let mut server = Server { name: name.to_owned(), child, said: Vec::new(), _dir: dir };
        if let Err(error) = server.await_ready(stop) {
            let log = fs::read_to_string(&errors).unwrap_or_default();
            let last = log.lines().last().unwrap_or("it says nothing more");
            return Err(error.context(format!("{name} did not start: {last}")));
        }
        Ok(server)
    }

    fn await_ready(&mut self, stop: &Stop) -> anyhow::Result<()> {
        let stdout = self.child.stdout.take().context("its output is not ours")?;
        let (tell, told) = bounded(16);
        threads::spawn("child-output", move || -> std::io::Result<()> {
            for line in BufReader::new(stdout).lines() {
                // Read to the end, so that it can always write; who awaited `ready` listens no more.
                let _ = tell.try_send(line?);
            }
            Ok(())
        })?;
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            match told.recv_timeout(LOOK_EVERY) {
                Ok(line) if line == "ready" => return Ok(()),
                Ok(line) => self.said.push(line),
                Err(RecvTimeoutError::Disconnected) => bail!("it ended before it was ready"),
                Err(RecvTimeoutError::Timeout) if stop.is_asked() => bail!("ended by a signal"),
                Err(RecvTimeoutError::Timeout) if Instant::now() > deadline => {
                    bail!("not ready within {} s", READY_WITHIN.as_secs())
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// What it said after these words before it was ready: its address, say.
    ///
    /// # Errors
    /// It said nothing of the kind.
    pub fn said<T: std::str::FromStr>(&self, words: &str) -> anyhow::Result<T> {
        let found = self.said.iter().find_map(|line| line.strip_prefix(words)?.trim().parse().ok());
        found.with_context(|| format!("{} did not say {words:?}", self.name))
    }

    /// What it has used so far; nothing where the system does not tell.
    pub fn usage(&self) -> Option<Usage> {
        Usage::of(self.child.id())
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// It does not.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended by itself: {status}", self.name),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its data goes with it, so nothing is lost by killing. An error means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whatever becomes of us, the child ends too; and Ctrl-C is ours to handle, not its.
#[cfg(target_os = "linux")]
fn die_with_us(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let parent = std::process::id();
    command.process_group(0);
    let in_child = move || {
        // SAFETY: between fork and exec only system calls may be made; these are system calls that
        // touch no memory of ours.
        let failed = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0;
        // SAFETY: as above.
        let orphaned = unsafe { libc::getppid() } != parent as libc::pid_t;
        if failed || orphaned { Err(std::io::Error::from_raw_os_error(libc::ESRCH)) } else { Ok(()) }
    };
    // SAFETY: the closure makes nothing but two system calls; an error by number allocates nothing.
    unsafe { command.pre_exec(in_child) };
}

#[cfg(all(unix, not(target_os = "linux")))]
fn die_with_us(command: &mut Command) {
    std::os::unix::process::CommandExt::process_group(command, 0);
}

#[cfg(not(unix))]
fn die_with_us(_command: &mut Command) {}

/// What a process used.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// CPU time, user and system, seconds.
    pub cpu_s: f64,
    /// The most memory it ever held, MB (10^6 bytes).
    pub peak_rss_mb: f64,
    /// Context switches of its present threads, of their own will or not.
    pub switches: u64,
}

/// Measures, and what these servers used meanwhile, all together.
///
/// # Errors
/// That of the measurement.
pub fn watch(servers: &[Server], work: impl FnOnce() -> anyhow::Result<Sample>) -> anyhow::Result<Sample> {
    let usage = || servers.iter().map(Server::usage).reduce(|a, b| Some(a?.and(b?))).flatten();
    let before = usage();
    let mut sample = work()?;
    if servers.is_empty() {
        return Ok(sample);
    }
    sample.server = usage().zip(before).map(|(after, before)| after.since(before));
    Ok(sample)
}

impl Usage {
    /// That of two processes.
    pub fn and(self, other: Usage) -> Usage {
        Usage {
            cpu_s: self.cpu_s + other.cpu_s,
            peak_rss_mb: self.peak_rss_mb + other.peak_rss_mb,
            switches: self.switches + other.switches,
        }
    }

    /// What was used since: the difference, but for the peak.
    pub fn since(self, before: Usage) -> Usage {
        Usage {
            cpu_s: (self.cpu_s - before.cpu_s).max(0.0),
            peak_rss_mb: self.peak_rss_mb,
            // Threads that ended meanwhile took theirs along.
            switches: self.switches.saturating_sub(before.switches),
        }
    }

    #[cfg(target_os = "linux")]
    fn of(pid: u32) -> Option<Usage> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in brackets, may hold anything; behind it the fields are counted from 3.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        // SAFETY: asks for a number, touches no memory.
        let ticks_per_s = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let mut switches = 0;
        for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
            // A thread may end while we look.
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            switches += field(&status, "voluntary_ctxt_switches:").unwrap_or(0)
                + field(&status, "nonvoluntary_ctxt_switches:").unwrap_or(0);
        }
        Some(Usage {
            cpu_s: ticks as f64 / ticks_per_s.max(1) as f64,
            peak_rss_mb: field(&status, "VmHWM:")? as f64 * 1024.0 / 1e6,
            switches,
        })
    }

    #[cfg(not(target_os = "linux"))]
    fn of(_pid: u32) -> Option<Usage> {
        None
    }
}

#[cfg(target_os = "linux")]
fn field(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_whitespace().next()?.parse().ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn usage_of_a_process_is_read() {
        let before = Usage::of(std::process::id()).unwrap();
        let started = Instant::now();
        while Usage::of(std::process::id()).unwrap().since(before).cpu_s < 0.05 {
            assert!(started.elapsed() < Duration::from_secs(20));
        }
        let used = Usage::of(std::process::id()).unwrap();
        assert!(used.peak_rss_mb > 1.0 && used.switches > 0, "{used:?}");
        assert_eq!(Usage::of(u32::MAX), None);
    }
}
