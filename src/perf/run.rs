//! A run of a scenario, from its words to its report.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::load::Length;
use super::plan::{Effort, Group, Outcome};
use super::report::{Report, requirements, table};
use super::stop::Stop;
use super::{INTERRUPTED, MISSED, RunArgs, page, plan};

/// A quick run is over within a minute: from here on it does without repetitions that compare nothing.
const QUICK_HURRY_AFTER: Duration = Duration::from_secs(35);

/// How long the machine is looked at before anything starts.
const LOOK_FOR: Duration = Duration::from_millis(300);
/// More of it in use than this is worth a warning.
const BUSY_MAX: f64 = 0.2;

/// What a scenario is given: its words, and the means to measure.
pub struct Run<'a> {
    /// The words.
    pub args: &'a RunArgs,
    /// The wish to end.
    pub stop: &'a Stop,
    /// How long and how often.
    pub effort: Effort,
    progress: ProgressBar,
    outcome: Outcome,
}

impl Run<'_> {
    /// Whether an operation is to be measured.
    pub fn wants(&self, operation: &str) -> bool {
        self.args.only.is_empty() || self.args.only.iter().any(|only| only.eq_ignore_ascii_case(operation))
    }

    /// So many measurements will come, besides those announced before.
    pub fn announce(&self, measurements: usize) {
        self.progress.inc_length((measurements * self.effort.runs) as u64);
    }

    /// So many measurements in all, whatever the effort is now.
    pub fn announce_all(&self, measurements: usize) {
        self.progress.inc_length(measurements as u64);
    }

    /// Says what goes on.
    pub fn say(&self, what: &str) {
        self.progress.set_message(what.to_owned());
    }

    /// Measures a group.
    ///
    /// # Errors
    /// That of a measurement.
    pub fn measure(&mut self, group: Group<'_>) -> anyhow::Result<()> {
        plan::measure(group, self.effort, &self.progress, self.stop, &mut self.outcome)
    }
}

/// Runs a scenario and reports, whatever it came to.
///
/// # Errors
/// What kept it from measuring (after the report of what was measured before).
pub fn scenario(
    name: &str,
    args: &RunArgs,
    measure: impl FnOnce(&mut Run<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let stop = Stop::on_signals()?;
    let target =
        if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    if let Some(busy) = busy_share().filter(|busy| *busy > BUSY_MAX) {
        eprintln!("warning: other work takes {:.0} % of this machine; figures will be low and uneven", busy * 100.0);
    }
    let progress = ProgressBar::with_draw_target(Some(0), target);
    // The template is a constant; without it the bar is merely plainer.
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {wide_msg}") {
        progress.set_style(style);
    }
    let mut run = Run { args, stop: &stop, effort: effort(args), progress, outcome: Outcome::default() };
    let result = measure(&mut run);
    let Run { progress, outcome, .. } = run;
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
        if !outcome.measured.is_empty() {
            writeln!(out, "{}", table(&outcome))?;
        }
        lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
    }
    out.flush()?;
    let (path, page) = (written?, page?);
    if stop.is_asked() {
        eprintln!("ended by a signal; what was measured until then is in {}", path.display());
        return Ok(ExitCode::from(INTERRUPTED));
    }
    result?;
    if !args.json {
        writeln!(out, "report: {} and, to look at, {}", path.display(), page.display())?;
    }
    Ok(if args.check && !all_met { ExitCode::from(MISSED) } else { ExitCode::SUCCESS })
}

/// How much of the machine is in use while we do nothing; unknown where the system does not tell.
fn busy_share() -> Option<f64> {
    // user nice system idle iowait …, in ticks, over all cores.
    let read = || -> Option<(u64, u64)> {
        let stat = std::fs::read_to_string("/proc/stat").ok()?;
        let ticks: Vec<u64> = stat.lines().next()?.split_whitespace().skip(1).map_while(|n| n.parse().ok()).collect();
        Some((ticks.get(3)? + ticks.get(4)?, ticks.iter().take(8).sum()))
    };
    let before = read()?;
    std::thread::sleep(LOOK_FOR);
    let after = read()?;
    let all = after.1.saturating_sub(before.1);
    (all > 0).then(|| 1.0 - after.0.saturating_sub(before.0) as f64 / all as f64)
}

fn effort(args: &RunArgs) -> Effort {
    let (runs, time_ms, warm_up_ms, lead_in_ms) = match (args.quick, args.full) {
        // Many short turns: the median forgives a machine that others use now and then.
        (true, _) => (9, 140, 80, 30),
        (_, true) => (11, 3000, 1000, 200),
        _ => (7, 500, 200, 60),
    };
    let time = Duration::from_millis(time_ms);
    Effort {
        runs: args.runs.map_or(runs, usize::from),
        length: args.calls.map_or(Length::Time(time), Length::Calls),
        warm_up: Duration::from_millis(warm_up_ms),
        lead_in: Duration::from_millis(lead_in_ms),
        hurry_from: args.quick.then(|| Instant::now() + QUICK_HURRY_AFTER),
    }
}
