//! Server processes that the load generator starts, watches while measuring, and kills through their own handle.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use crossbeam_channel::{RecvTimeoutError, bounded};

use super::load::Sample;
use super::stop::StopFlag;
use super::usage::Usage;
use crate::net::threads;

const READY_TIMEOUT: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Variables that keep our servers from announcing themselves on the LAN.
const UNANNOUNCED: [&str; 3] =
    ["P2S2_SERVER_NO_ANNOUNCE", "P2S2_SELLER_SERVER_NO_ANNOUNCE", "P2S2_BUYER_SERVER_NO_ANNOUNCE"];

/// A temporary folder, removed with its contents when dropped.
#[derive(Debug)]
pub struct WorkDir(PathBuf);

impl WorkDir {
    /// Creates a new folder below `below`, which is created if necessary.
    pub fn create(below: &Path) -> anyhow::Result<WorkDir> {
        let describe = || format!("cannot use --out {}", below.display());
        fs::create_dir_all(below).with_context(describe)?;
        // Absolute, because child processes run in other working directories.
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

pub fn sibling_program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program lies")?;
    let path = own.with_file_name(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    if !path.is_file() {
        bail!("{} is missing: build all programs (cargo build --release --bins)", path.display());
    }
    Ok(path)
}

/// A server process of our own, killed when dropped.
#[derive(Debug)]
pub struct ServerProcess {
    name: String,
    child: Child,
    startup_lines: Vec<String>,
    _dir: WorkDir,
}

impl ServerProcess {
    /// Starts `p2s2 server` with a data dir of its own.
    pub fn start_p2s2(args: &[&str], out: &Path, stop: &StopFlag) -> anyhow::Result<ServerProcess> {
        let program_args = |dir: &Path| {
            let state = dir.join("state").display().to_string();
            let all = [&["server", "--api-port", "0", "--data-dir", &state][..], args].concat();
            all.into_iter().map(str::to_owned).collect()
        };
        ServerProcess::start("p2s2 server", &sibling_program("p2s2")?, out, program_args, stop)
    }

    /// Starts a server in a new folder below `out`, which `program_args` gets, and waits until it prints `ready`.
    pub fn start(
        name: &str,
        program: &Path,
        out: &Path,
        program_args: impl FnOnce(&Path) -> Vec<String>,
        stop: &StopFlag,
    ) -> anyhow::Result<ServerProcess> {
        let dir = WorkDir::create(out)?;
        let errors = dir.path().join("stderr");
        let mut command = Command::new(program);
        command
            .args(program_args(dir.path()))
            // Settings from the environment or from a `.env` file here would distort the measurement.
            .current_dir(dir.path())
            .env("RUST_LOG", "warn")
            .envs(UNANNOUNCED.map(|name| (name, "yes")))
            // The server ends when this pipe closes, on every system.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&errors).context("cannot write below --out")?);
        for (key, _) in std::env::vars_os() {
            let key_text = key.to_string_lossy();
            if key_text.starts_with("P2S2_") && !UNANNOUNCED.contains(&&*key_text) || key_text.starts_with("SERVER_") {
                command.env_remove(&key);
            }
        }
        exit_with_parent(&mut command);
        let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let mut server = ServerProcess { name: name.to_owned(), child, startup_lines: Vec::new(), _dir: dir };
        if let Err(error) = server.await_ready(stop) {
            let log = fs::read_to_string(&errors).unwrap_or_default();
            let last = log.lines().last().unwrap_or("it says nothing more");
            return Err(error.context(format!("{name} did not start: {last}")));
        }
        Ok(server)
    }

    fn await_ready(&mut self, stop: &StopFlag) -> anyhow::Result<()> {
        let stdout = self.child.stdout.take().context("its output is not ours")?;
        let (line_sender, lines) = bounded(16);
        threads::spawn("child-output", move || -> std::io::Result<()> {
            for line in BufReader::new(stdout).lines() {
                // Read to its end so that the server never blocks; after `ready` nobody receives the lines.
                let _ = line_sender.try_send(line?);
            }
            Ok(())
        })?;
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            match lines.recv_timeout(POLL_INTERVAL) {
                Ok(line) if line == "ready" => return Ok(()),
                Ok(line) => self.startup_lines.push(line),
                Err(RecvTimeoutError::Disconnected) => bail!("it ended before it was ready"),
                Err(RecvTimeoutError::Timeout) if stop.is_set() => bail!("ended by a signal"),
                Err(RecvTimeoutError::Timeout) if Instant::now() > deadline => {
                    bail!("not ready within {} s", READY_TIMEOUT.as_secs())
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// The rest of the line with this prefix that the server printed before `ready`, such as an address.
    pub fn announced<T: std::str::FromStr>(&self, prefix: &str) -> anyhow::Result<T> {
        let found = self.startup_lines.iter().find_map(|line| line.strip_prefix(prefix)?.trim().parse().ok());
        found.with_context(|| format!("{} did not say {prefix:?}", self.name))
    }

    /// Resources used so far; `None` if the system does not tell.
    pub fn usage(&self) -> Option<Usage> {
        Usage::of(self.child.id())
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // Its data is removed too, so killing loses nothing. An error means that the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes the child end with this process in any case, and keeps Ctrl-C from reaching it.
#[cfg(target_os = "linux")]
fn exit_with_parent(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let parent = std::process::id();
    command.process_group(0);
    let in_child = move || {
        // SAFETY: between fork and exec only async-signal-safe calls are allowed; these touch no memory of ours.
        let failed = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0;
        // SAFETY: as above.
        let orphaned = unsafe { libc::getppid() } != parent as libc::pid_t;
        if failed || orphaned { Err(std::io::Error::from_raw_os_error(libc::ESRCH)) } else { Ok(()) }
    };
    // SAFETY: the closure makes two system calls only, and an error from a raw code does not allocate.
    unsafe { command.pre_exec(in_child) };
}

#[cfg(all(unix, not(target_os = "linux")))]
fn exit_with_parent(command: &mut Command) {
    std::os::unix::process::CommandExt::process_group(command, 0);
}

#[cfg(not(unix))]
fn exit_with_parent(_command: &mut Command) {}

/// Runs a measurement and adds the resources that these servers used meanwhile to its sample.
pub fn with_usage(servers: &[ServerProcess], work: impl FnOnce() -> anyhow::Result<Sample>) -> anyhow::Result<Sample> {
    let usage = || servers.iter().map(ServerProcess::usage).reduce(|a, b| Some(a?.plus(b?))).flatten();
    let before = usage();
    let mut sample = work()?;
    if servers.is_empty() {
        return Ok(sample);
    }
    sample.server = usage().zip(before).map(|(after, before)| after.since(before));
    Ok(sample)
}
