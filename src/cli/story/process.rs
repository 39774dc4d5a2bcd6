//! A process of the story: its input, its output, its end.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::STEP_TIMEOUT;
use crate::net::threads;

/// A process of the story. Killed when dropped.
pub(super) struct StoryProcess {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    /// It ends on a signal; other processes end with their input.
    pub(super) is_server: bool,
}

impl StoryProcess {
    pub(super) fn start(name: &str, mut command: Command) -> anyhow::Result<StoryProcess> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        // Each step produces only a few lines, so the channel never fills up.
        let (sender, lines) = crossbeam_channel::bounded(1024);
        let label = name.to_owned();
        let stdout = stdout.context("the process has no output")?;
        threads::spawn("story-reader", move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                say!("{label:>12} | {line}");
                if sender.send(line).is_err() {
                    break;
                }
            }
        })?;
        Ok(StoryProcess { name: name.to_owned(), child, stdin, lines, is_server: false })
    }

    pub(super) fn send_line(&mut self, words: &str) -> anyhow::Result<()> {
        say!("{:>12} > {words}", self.name);
        let stdin = self.stdin.as_mut().with_context(|| format!("{} listens no more", self.name))?;
        writeln!(stdin, "{words}").with_context(|| format!("{} does not listen", self.name))
    }

    /// Waits for a line that contains `words` and returns it. A line that reports an error ends the story.
    pub(super) fn await_line(&mut self, words: &str) -> anyhow::Result<String> {
        let deadline = Instant::now() + STEP_TIMEOUT;
        loop {
            match self.lines.recv_deadline(deadline) {
                Ok(line) if line.contains(words) => return Ok(line),
                Ok(line) if line.starts_with("error:") || line.starts_with("cancelled [") => {
                    bail!("{}: {line}", self.name)
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{}: waited {} s for {words:?}", self.name, STEP_TIMEOUT.as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => bail!("{} ended before it said {words:?}", self.name),
            }
        }
    }

    pub(super) fn finish(&mut self) -> anyhow::Result<()> {
        drop(self.stdin.take());
        #[cfg(unix)]
        if self.is_server {
            let pid = i32::try_from(self.child.id()).context("a process id that is none")?;
            // SAFETY: kill(2) takes plain integers; the child has not been waited for, so the pid is still its own.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        let deadline = Instant::now() + STEP_TIMEOUT;
        while self.lines.recv_deadline(deadline).is_ok() {}
        if cfg!(not(unix)) && self.is_server {
            self.child.kill()?;
            self.child.wait()?;
            return Ok(());
        }
        let status = self.child.wait()?;
        ensure!(status.success(), "{} ended with {status}", self.name);
        Ok(())
    }
}

impl Drop for StoryProcess {
    fn drop(&mut self) {
        // Fails only if the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
