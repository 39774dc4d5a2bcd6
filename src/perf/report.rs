//! The output of a run: a JSON report (docs/spec/general.md), a table, and a line for each requirement.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::load::Sample;
use super::plan::{Comparison, LimitShare, Measurement, Outcome, mean, stddev};
use crate::storage::files;

#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// The scenario's name, such as `trade`.
    pub scenario: String,
    pub machine: Value,
    /// Every comparison with the values of each turn.
    pub limits: Value,
    /// One row for each pair of result and limit.
    pub results: Vec<Row>,
}

/// One result. Fields that do not apply are null.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    pub name: String,
    /// The mix to which this operation belongs.
    #[serde(default)]
    pub part_of: Option<String>,
    pub clients: usize,
    /// Operations per second, median of the runs.
    pub ops_per_s: f64,
    /// Operations per second, mean of the runs.
    #[serde(default)]
    pub ops_per_s_mean: f64,
    /// The limits; the lowest one counts.
    pub limit: Option<String>,
    pub limit_ops_per_s: Option<f64>,
    /// Median of the runs' shares.
    pub share_of_limit: Option<f64>,
    pub runs: usize,
    pub ops_per_s_stddev: f64,
    /// Mean latency in microseconds; latencies are taken over all runs.
    pub mean_us: Option<f64>,
    pub p50_us: Option<f64>,
    pub p95_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub max_us: Option<f64>,
    /// Failed calls and repeated datagrams.
    pub errors: u64,
    /// Successful calls divided by all calls.
    pub success_rate: f64,
    /// Payload per second in MB (10^6 bytes).
    pub mb_per_s: Option<f64>,
    /// CPU time of the server in all runs, in seconds.
    pub server_cpu_s: Option<f64>,
    #[serde(default)]
    pub server_cpu_us_per_op: Option<f64>,
    /// Peak memory of the server in MB (10^6 bytes).
    pub server_peak_rss_mb: Option<f64>,
}

impl Report {
    pub fn new(scenario: &str, outcome: &Outcome) -> Report {
        let results = outcome.measurements.iter().filter(|one| !one.is_limit).flat_map(|one| rows(one, outcome));
        Report {
            scenario: scenario.to_owned(),
            machine: machine(),
            limits: limits(outcome),
            results: results.map(|(row, _share)| row).collect(),
        }
    }

    /// Writes the report to the folder as `SCENARIO.json`. An existing one becomes `SCENARIO.previous.json`.
    pub fn write(&self, dir: &Path) -> anyhow::Result<PathBuf> {
        let path = dir.join(format!("{}.json", self.scenario));
        let write = || -> std::io::Result<()> {
            fs::create_dir_all(dir)?;
            files::replace(&path, OpenOptions::new(), |file| {
                serde_json::to_writer_pretty(&mut *file, self)?;
                writeln!(file)?;
                if path.exists() {
                    fs::rename(&path, dir.join(format!("{}.previous.json", self.scenario)))?;
                }
                Ok(())
            })
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    pub fn read(path: &Path) -> anyhow::Result<Report> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no report of p2s2-perf", path.display()))
    }
}

/// One row for each limit of a result, with its share, followed by the operations of a mix.
fn rows<'o>(measured: &Measurement, outcome: &'o Outcome) -> Vec<(Row, Option<&'o LimitShare>)> {
    let is_its = |share: &&LimitShare| share.comparison.result == measured.name && share.group == measured.group;
    let shares = outcome.shares.iter().filter(is_its);
    let mut rows: Vec<_> = shares.map(|share| (row(measured, Some(share)), Some(share))).collect();
    if rows.is_empty() {
        rows.push((row(measured, None), None));
    }
    rows.extend(parts(measured).map(|row| (row, None)));
    rows
}

/// The operations of a mix. Their shares of the server's resources are unknown.
fn parts(measured: &Measurement) -> impl Iterator<Item = Row> {
    measured.total().parts.into_iter().map(|(part, _total)| {
        let of_part = |sample: &Sample| {
            let found = sample.parts.iter().find(|(name, _)| *name == part);
            Sample { elapsed: sample.elapsed, ..found.map_or_else(Sample::new, |(_, sample)| sample.clone()) }
        };
        let samples = measured.samples.iter().map(of_part).collect();
        let Measurement { name, group, clients, is_limit, .. } = *measured;
        let row = row(&Measurement { name: part, group, clients, is_limit, samples }, None);
        Row { name: format!("{name}: {part}"), part_of: Some(name.to_owned()), ..row }
    })
}

fn row(measured: &Measurement, share: Option<&LimitShare>) -> Row {
    let total = measured.total();
    let calls = total.done + total.failed;
    let rates = measured.rates();
    let latency_ns = Some(&total.latency_ns).filter(|latency_ns| !latency_ns.is_empty());
    let at = |quantile| latency_ns.map(|latency_ns| latency_ns.value_at_quantile(quantile) as f64 / 1e3);
    Row {
        name: measured.name.to_owned(),
        part_of: None,
        clients: measured.clients,
        ops_per_s: measured.ops_per_s(),
        ops_per_s_mean: mean(&rates),
        limit: share.map(|share| share.comparison.limits.join(" or ")),
        limit_ops_per_s: share.map(|share| share.limit_ops_per_s),
        share_of_limit: share.map(LimitShare::median),
        runs: measured.samples.len(),
        ops_per_s_stddev: stddev(&rates),
        mean_us: latency_ns.map(|latency_ns| latency_ns.mean() / 1e3),
        p50_us: at(0.50),
        p95_us: at(0.95),
        p99_us: at(0.99),
        max_us: latency_ns.map(|latency_ns| latency_ns.max() as f64 / 1e3),
        errors: total.failed + total.lost,
        success_rate: if calls == 0 { 0.0 } else { total.done as f64 / calls as f64 },
        mb_per_s: (total.bytes > 0).then(|| total.bytes as f64 / 1e6 / total.elapsed.as_secs_f64().max(1e-9)),
        server_cpu_s: total.server.map(|server| server.cpu_s),
        server_cpu_us_per_op: CostPerCall::of(&total).cpu_us,
        server_peak_rss_mb: total.server.map(|server| server.peak_rss_mb),
    }
}

fn limits(outcome: &Outcome) -> Value {
    let of = |name: &str, group| outcome.measurements.iter().find(|one| one.name == name && one.group == group);
    let mut limits = Map::new();
    for share in &outcome.shares {
        let Comparison { result, limits: compared, required } = share.comparison;
        let sides = compared.iter().chain([&result]).map(|name| {
            let one = of(name, share.group);
            let cost = one.map(|one| CostPerCall::of(&one.total())).unwrap_or_default();
            let side = json!({
                "ops_per_s": one.map(Measurement::rates),
                "server_cpu_us_per_op": cost.cpu_us,
                "server_context_switches_per_op": cost.switches,
            });
            ((*name).to_owned(), side)
        });
        let runs: Map<_, _> = sides.collect();
        let key = format!("{result} of {} at {}", compared.join(" or "), share.clients);
        let one = json!({"shares": share.shares, "median": share.median(), "required": required, "runs": runs});
        limits.insert(key, one);
    }
    Value::Object(limits)
}

#[derive(Debug, Clone, Copy, Default)]
struct CostPerCall {
    cpu_us: Option<f64>,
    switches: Option<f64>,
}

impl CostPerCall {
    fn of(total: &Sample) -> CostPerCall {
        let calls = (total.done + total.failed) as f64;
        let per_call = |used: f64| (calls > 0.0).then(|| used / calls);
        CostPerCall {
            cpu_us: total.server.and_then(|server| per_call(server.cpu_s * 1e6)),
            switches: total.server.and_then(|server| per_call(server.switches as f64)),
        }
    }
}

/// A line of the table: a row, its share of a limit, and what its calls cost.
type TableLine<'o> = (Row, Option<&'o LimitShare>, CostPerCall);

/// Its title, and its text for a line.
type TableColumn = (&'static str, fn(&TableLine<'_>) -> String);

const COLUMNS: [TableColumn; 15] = [
    ("operation", |(row, ..)| row.name.clone()),
    ("clients", |(row, ..)| row.clients.to_string()),
    ("ops/s", |(row, ..)| number(Some(row.ops_per_s), 0)),
    ("±", |(row, ..)| number(Some(row.ops_per_s_stddev), 0)),
    ("limit", |(row, ..)| row.limit.clone().unwrap_or_default()),
    ("limit/s", |(row, ..)| number(row.limit_ops_per_s, 0)),
    ("share", |(row, ..)| number(row.share_of_limit, 2)),
    ("min–max", |(_, share, _)| share.map(spread).unwrap_or_default()),
    ("p50 µs", |(row, ..)| number(row.p50_us, 0)),
    ("p99 µs", |(row, ..)| number(row.p99_us, 0)),
    ("max µs", |(row, ..)| number(row.max_us, 0)),
    ("errors", |(row, ..)| row.errors.to_string()),
    ("CPU µs/op", |(.., cost)| number(cost.cpu_us, 1)),
    ("switches/op", |(.., cost)| number(cost.switches, 2)),
    ("RSS MB", |(row, ..)| number(row.server_peak_rss_mb, 0)),
];

fn spread(share: &LimitShare) -> String {
    let bound = |fold: fn(f64, f64) -> f64, from| share.shares.iter().copied().fold(from, fold);
    format!("{:.2}–{:.2}", bound(f64::min, f64::INFINITY), bound(f64::max, 0.0))
}

/// A table of all measurements including the limits.
pub fn table(outcome: &Outcome) -> Table {
    let most = outcome.measurements.iter().map(|measured| measured.clients).max();
    let mut lines = Vec::new();
    for measured in &outcome.measurements {
        let total = measured.total();
        let all = if measured.is_limit { vec![(row(measured, None), None)] } else { rows(measured, outcome) };
        for (row, share) in all {
            // The operations of a mix are listed once, at the largest number of clients; page and JSON have them all.
            if row.part_of.is_some() && Some(row.clients) != most {
                continue;
            }
            let cost = if row.part_of.is_some() { CostPerCall::default() } else { CostPerCall::of(&total) };
            let line: TableLine<'_> = (row, share, cost);
            lines.push(COLUMNS.map(|(_, text)| text(&line)).to_vec());
        }
    }
    boxed_table(COLUMNS.map(|(title, _)| title.to_owned()).to_vec(), lines, [0, 4])
}

/// A table whose columns hold numbers, except for those at two places.
pub fn boxed_table(header: Vec<String>, lines: Vec<Vec<String>>, texts: [usize; 2]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(header).add_rows(lines);
    for (place, column) in table.column_iter_mut().enumerate() {
        if !texts.contains(&place) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// A number with its thousands separated; empty if it does not apply.
pub fn number(value: Option<f64>, decimals: usize) -> String {
    let Some(value) = value else { return String::new() };
    let text = format!("{value:.decimals$}");
    let (whole, rest) = text.find('.').map_or((text.as_str(), ""), |point| text.split_at(point));
    let mut spaced = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place) % 3 == 0 && !spaced.ends_with('-') {
            spaced.push(' ');
        }
        spaced.push(digit);
    }
    spaced + rest
}

/// A line for each requirement, and whether all are met.
pub fn requirements(outcome: &Outcome, relax: f64) -> (Vec<String>, bool) {
    let mut all_met = true;
    let lines = outcome.shares.iter().filter_map(|share| {
        let Comparison { result, limits, required } = share.comparison;
        let (met, required) = (share.is_met(relax)?, required? * relax);
        all_met &= met;
        let clients = share.clients;
        Some(format!(
            "{:<6} {result} at {clients} client{}: {:.2} of {} (required {required:.2})",
            if met { "ok" } else { "MISSED" },
            if clients == 1 { "" } else { "s" },
            share.median(),
            limits.join(" or "),
        ))
    });
    (lines.collect(), all_met)
}

fn machine() -> Value {
    let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let memory = after(&file("/proc/meminfo"), "MemTotal");
    let memory_kb = memory.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    let now = time::OffsetDateTime::now_utc().format(&time::format_description::well_known::Rfc3339);
    let kernel = file("/proc/sys/kernel/osrelease");
    json!({
        "os": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
        "kernel": (!kernel.is_empty()).then(|| kernel.trim().to_owned()),
        "cpu": after(&file("/proc/cpuinfo"), "model name"),
        "cores": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        "memory_mb": memory_kb.map(|kb| kb * 1024 / 1_000_000),
        "load_average": file("/proc/loadavg").split_whitespace().next().and_then(|text| text.parse::<f64>().ok()),
        "version": env!("CARGO_PKG_VERSION"),
        "build": if cfg!(debug_assertions) { "debug" } else { "release" },
        "finished_at": now.ok(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(number(Some(1234567.0), 0), "1 234 567");
        assert_eq!(number(Some(999.994), 2), "999.99");
        assert_eq!(number(Some(1000.5), 1), "1 000.5");
        assert_eq!(number(Some(-123456.0), 0), "-123 456");
        assert_eq!(number(None, 1), "");
    }

    #[test]
    fn an_operation_of_a_mix_that_never_succeeds_has_no_latency() {
        let mut sample = Sample { elapsed: std::time::Duration::from_secs(1), ..Sample::new() };
        for (name, is_right) in [("a", true), ("b", false)] {
            let mut part = Sample::new();
            part.record(is_right, std::time::Duration::from_millis(2));
            sample.merge(&Sample { parts: vec![(name, part.clone())], ..part });
        }
        let measured = Measurement { name: "ALL", group: 0, clients: 1, is_limit: false, samples: vec![sample] };
        let rows: Vec<Row> = rows(&measured, &Outcome::default()).into_iter().map(|(row, _)| row).collect();
        let seen: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.ops_per_s, row.p50_us.is_some())).collect();
        assert_eq!(seen, [("ALL", 1.0, true), ("ALL: a", 1.0, true), ("ALL: b", 0.0, false)]);
        assert_eq!(rows.iter().map(|row| row.errors).collect::<Vec<_>>(), [1, 0, 1]);
    }

    #[test]
    fn a_missed_requirement_is_told() {
        let share = |required| LimitShare {
            comparison: Comparison { result: "STATUS", limits: &["bare"], required },
            group: 0,
            clients: 10,
            limit_ops_per_s: 100.0,
            shares: vec![0.5, 0.7, 0.6],
        };
        let outcome =
            Outcome { measurements: Vec::new(), shares: vec![share(Some(0.65)), share(None), share(Some(0.5))] };
        let (lines, met) = requirements(&outcome, 1.0);
        assert_eq!(
            lines,
            [
                "MISSED STATUS at 10 clients: 0.60 of bare (required 0.65)",
                "ok     STATUS at 10 clients: 0.60 of bare (required 0.50)"
            ]
        );
        assert!(!met && requirements(&outcome, 0.9).1);
    }
}
