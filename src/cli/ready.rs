//! How a server process reports that it is ready, and how it waits for its end.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use serde_json::Value;

use crate::identity::users::NewAdmin;
use crate::net::shutdown::ShutdownSignal;
use crate::services::{Listeners, ServiceProcess, ready_file};

/// Starts a process, reports that it is ready, and stops it after a signal.
pub fn serve(
    ready_file: Option<&Path>,
    start: impl FnOnce() -> anyhow::Result<ServiceProcess>,
) -> anyhow::Result<ExitCode> {
    let shutdown = ShutdownSignal::install().context("cannot listen for signals")?;
    let ServiceProcess { listeners, stop } = start()?;
    report_ready(ready_file, &listeners)?;
    shutdown.wait();
    stop();
    Ok(ExitCode::SUCCESS)
}

/// Whoever reads `ready` can rely on the file.
fn report_ready(ready_file: Option<&Path>, listeners: &Listeners) -> anyhow::Result<()> {
    if let Some(path) = ready_file {
        ready_file::write(path, &Value::Object(listeners.entries.clone()))?;
    }
    print_report(&format!("{}\nready", listeners.lines.join("\n")))
}

/// Prints the generated admin account, once and only to the operator: logs are kept.
pub fn print_new_admin(made: &NewAdmin) -> anyhow::Result<()> {
    let (username, password) = (&made.username, made.password.reveal());
    print_report(&format!("admin: made at this first start, told this once: username {username}, password {password}"))
}

fn print_report(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    // A new error without the I/O error as its source: here a closed pipe must not count as a normal end.
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(|error| {
        anyhow::anyhow!("standard output cannot be written: {error}; send it to a file or to /dev/null")
    })
}
