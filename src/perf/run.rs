//! Runs a scenario from its arguments to its report.

use std::io::{IsTerminal, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::child::ServerProcess;
use super::load::MeasurementLength;
use super::plan::{BenchmarkGroup, Outcome, SamplingPlan};
use super::report::{Report, requirements, table};
use super::stop::StopFlag;
use super::{EXIT_INTERRUPTED, EXIT_REQUIREMENT_MISSED, RunArgs, page, plan};

/// A quick run should end within a minute, so from here on benchmarks without comparisons are not repeated.
const QUICK_SINGLE_RUN_AFTER: Duration = Duration::from_secs(35);

/// How long the machine's load is observed before a run.
const IDLE_CHECK_TIME: Duration = Duration::from_millis(300);
/// A larger share of CPU time used by others causes a warning.
const BUSY_SHARE_MAX: f64 = 0.2;

/// The arguments of a scenario and the means to measure.
pub struct ScenarioRun<'a> {
    pub args: &'a RunArgs,
    pub stop: &'a StopFlag,
    pub sampling: SamplingPlan,
    progress: ProgressBar,
    outcome: Outcome,
}

/// The server that is measured.
pub struct Target {
    pub addr: SocketAddr,
    /// `None` if it is not ours.
    pub server: Option<ServerProcess>,
}

impl ScenarioRun<'_> {
    /// The server that `--target` names, or `p2s2 server` with these arguments, whose address is printed after `prefix`.
    pub fn target(&self, server_args: &[&str], prefix: &str) -> anyhow::Result<Target> {
        if let Some(target) = &self.args.target {
            return Ok(Target { addr: ScenarioRun::resolve(target)?, server: None });
        }
        self.set_status("starting the server");
        let server = ServerProcess::start_p2s2(server_args, &self.args.out, self.stop)?;
        Ok(Target { addr: server.announced(prefix)?, server: Some(server) })
    }

    /// The address of `HOST:PORT`, as `--target` gives it.
    pub fn resolve(target: &str) -> anyhow::Result<SocketAddr> {
        let addrs = target.to_socket_addrs().with_context(|| format!("--target {target}"))?;
        addrs.into_iter().next().with_context(|| format!("--target {target}: no such host"))
    }

    pub fn is_wanted(&self, operation: &str) -> bool {
        self.args.only.is_empty() || self.args.only.iter().any(|only| only.eq_ignore_ascii_case(operation))
    }

    /// Adds the measurements of this many benchmarks to the progress bar's length.
    pub fn expect_benchmarks(&self, measurements: usize) {
        self.progress.inc_length((measurements * self.sampling.runs) as u64);
    }

    /// Adds this many measurements to the progress bar's length, whatever the number of turns is.
    pub fn expect_measurements(&self, measurements: usize) {
        self.progress.inc_length(measurements as u64);
    }

    pub fn set_status(&self, what: &str) {
        self.progress.set_message(what.to_owned());
    }

    pub fn measure(&mut self, group: BenchmarkGroup<'_>) -> anyhow::Result<()> {
        plan::measure(group, self.sampling, &self.progress, self.stop, &mut self.outcome)
    }
}

/// Runs a scenario and writes its report, even if it fails: what was measured before is reported.
pub fn scenario(
    name: &str,
    args: &RunArgs,
    measure: impl FnOnce(&mut ScenarioRun<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let stop = StopFlag::on_signals()?;
    let target =
        if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    if let Some(busy) = busy_share().filter(|busy| *busy > BUSY_SHARE_MAX) {
        eprintln!("warning: other work takes {:.0} % of this machine; figures will be low and uneven", busy * 100.0);
    }
    let progress = ProgressBar::with_draw_target(Some(0), target);
    // The template is constant; if it could not be parsed, the bar would only look plainer.
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {wide_msg}") {
        progress.set_style(style);
    }
    let mut run = ScenarioRun { args, stop: &stop, sampling: sampling(args), progress, outcome: Outcome::default() };
    let result = measure(&mut run);
    let ScenarioRun { progress, outcome, .. } = run;
    progress.finish_and_clear();

    let report = Report::new(name, &outcome);
    let written = report.write(&args.out);
    let (lines, all_met) = requirements(&outcome, args.relax);
    let page = page::write(&args.out, &report, &outcome, &lines);
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &report)?;
        writeln!(out)?;
        lines.iter().for_each(|line| eprintln!("{line}"));
    } else {
        if !outcome.measurements.is_empty() {
            writeln!(out, "{}", table(&outcome))?;
        }
        lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
    }
    out.flush()?;
    let (path, page) = (written?, page?);
    if stop.is_set() {
        eprintln!("ended by a signal; what was measured until then is in {}", path.display());
        return Ok(ExitCode::from(EXIT_INTERRUPTED));
    }
    result?;
    if !args.json {
        writeln!(out, "report: {} and, to look at, {}", path.display(), page.display())?;
    }
    Ok(if args.check && !all_met { ExitCode::from(EXIT_REQUIREMENT_MISSED) } else { ExitCode::SUCCESS })
}

/// The share of CPU time that other processes use; `None` if the system does not tell.
fn busy_share() -> Option<f64> {
    // Fields: user nice system idle iowait …, in ticks over all cores.
    let read = || -> Option<(u64, u64)> {
        let stat = std::fs::read_to_string("/proc/stat").ok()?;
        let ticks: Vec<u64> = stat.lines().next()?.split_whitespace().skip(1).map_while(|n| n.parse().ok()).collect();
        Some((ticks.get(3)? + ticks.get(4)?, ticks.iter().take(8).sum()))
    };
    let before = read()?;
    std::thread::sleep(IDLE_CHECK_TIME);
    let after = read()?;
    let all = after.1.saturating_sub(before.1);
    (all > 0).then(|| 1.0 - after.0.saturating_sub(before.0) as f64 / all as f64)
}

fn sampling(args: &RunArgs) -> SamplingPlan {
    let (runs, time_ms, warm_up_ms, lead_in_ms) = match (args.quick, args.full) {
        // Many short turns: the median tolerates a machine that others use now and then.
        (true, _) => (9, 140, 80, 30),
        (_, true) => (11, 3000, 1000, 200),
        _ => (7, 500, 200, 60),
    };
    let time = Duration::from_millis(time_ms);
    SamplingPlan {
        runs: args.runs.map_or(runs, usize::from),
        length: args.calls.map_or(MeasurementLength::Time(time), MeasurementLength::Calls),
        warm_up: Duration::from_millis(warm_up_ms),
        lead_in: Duration::from_millis(lead_in_ms),
        single_run_after: args.quick.then(|| Instant::now() + QUICK_SINGLE_RUN_AFTER),
    }
}
