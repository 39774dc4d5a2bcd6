//! A registry in a process of its own, to be killed or measured: this test program again, selected by an environment
//! variable.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use crate::registry_harness::*;

const DIR: &str = "P2S2_TEST_REGISTRY_DIR";
const READY: &str = "the registry listens on ";

/// Not a test: the work of the other process, which ends when it is killed or its output is closed.
#[test]
fn serve_when_told_so() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    p2s2::internals::net::limits::raise_open_files().unwrap();
    let users = Arc::new(Users::default());
    let running = RunningRegistry::on(
        Path::new(&dir),
        users,
        RegistryOptions { connections: 12_000, ..RegistryOptions::default() },
    );
    // On a line of its own, since the test harness may have written something before.
    println!("\n{READY}{}", running.addr);
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line).is_ok_and(|len| len > 0) {}
    running.stop();
}

/// A registry process. Killed when dropped.
pub struct Process {
    child: Child,
    dir: PathBuf,
    pub addr: SocketAddr,
}

impl Process {
    pub fn start(dir: &Path) -> Process {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["registry_process::serve_when_told_so", "--exact", "--nocapture"])
            .env(DIR, dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let addr = lines.find_map(|line| Some(line.unwrap().strip_prefix(READY)?.parse().unwrap()));
        Process { child, dir: dir.to_owned(), addr: addr.expect("the registry's process says where it is") }
    }

    /// Kills it; returns the data directory.
    pub fn kill(mut self) -> PathBuf {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.dir.clone()
    }

    /// Kills it and starts it again on the same data.
    pub fn kill_and_restart(self) -> Process {
        Process::start(&self.kill())
    }

    /// Resident private memory in MB.
    pub fn rss_mb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
