//! The output of a run: a JSON report (docs/spec/general.md), a table, and a line for each requirement.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::load::{MixPart, Sample};
use super::plan::{LimitShare, Measurement, Outcome, mean, median, stddev};
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
            results: results.collect(),
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

/// One row for each limit of a result, followed by the operations of a mix.
fn rows(measured: &Measurement, outcome: &Outcome) -> Vec<Row> {
    let shares: Vec<&LimitShare> = shares_of(measured, outcome).collect();
    let mut rows: Vec<Row> = shares.into_iter().map(|share| row(measured, Some(share))).collect();
    if rows.is_empty() {
        rows.push(row(measured, None));
    }
    rows.extend(parts(measured));
    rows
}

/// The operations of a mix. Their shares of the server's resources are unknown.
fn parts(measured: &Measurement) -> Vec<Row> {
    let total = measured.total();
    let of_runs = |name: &str| {
        let rate = |sample: &Sample| {
            let part = sample.parts.iter().find(|part| part.name == name);
            part.map_or(0.0, |part| part.done as f64) / sample.elapsed.as_secs_f64().max(1e-9)
        };
        measured.samples.iter().map(rate).collect::<Vec<f64>>()
    };
    let whole = row(measured, None);
    let row_of = |part: &MixPart| {
        let rates = of_runs(part.name);
        let calls = part.done + part.failed;
        Row {
            name: format!("{}: {}", measured.name, part.name),
            part_of: Some(measured.name.to_owned()),
            ops_per_s: median(rates.iter().copied()),
            ops_per_s_mean: mean(&rates),
            ops_per_s_stddev: stddev(&rates),
            errors: part.failed,
            success_rate: if calls == 0 { 0.0 } else { part.done as f64 / calls as f64 },
            server_cpu_s: None,
            server_cpu_us_per_op: None,
            server_peak_rss_mb: None,
            ..with_latencies(whole.clone(), &part.latency_ns)
        }
    };
    total.parts.iter().map(row_of).collect()
}

fn shares_of<'a>(measured: &'a Measurement, outcome: &'a Outcome) -> impl Iterator<Item = &'a LimitShare> {
    outcome.shares.iter().filter(|share| share.result == measured.name && share.group == measured.group)
}

fn row(measured: &Measurement, share: Option<&LimitShare>) -> Row {
    let total = measured.total();
    let calls = total.done + total.failed;
    let rates = measured.rates();
    let row = Row {
        name: measured.name.to_owned(),
        part_of: None,
        clients: measured.clients,
        ops_per_s: measured.ops_per_s(),
        ops_per_s_mean: mean(&rates),
        limit: share.map(|share| share.limits.join(" or ")),
        limit_ops_per_s: share.map(|share| share.limit_ops_per_s),
        share_of_limit: share.map(LimitShare::median),
        runs: measured.samples.len(),
        ops_per_s_stddev: stddev(&rates),
        mean_us: None,
        p50_us: None,
        p95_us: None,
        p99_us: None,
        max_us: None,
        errors: total.failed + total.lost,
        success_rate: if calls == 0 { 0.0 } else { total.done as f64 / calls as f64 },
        mb_per_s: (total.bytes > 0).then(|| total.bytes as f64 / 1e6 / total.elapsed.as_secs_f64().max(1e-9)),
        server_cpu_s: total.server.map(|server| server.cpu_s),
        server_cpu_us_per_op: CostPerCall::of(&total).cpu_us,
        server_peak_rss_mb: total.server.map(|server| server.peak_rss_mb),
    };
    with_latencies(row, &total.latency_ns)
}

fn with_latencies(row: Row, latency_ns: &Histogram<u64>) -> Row {
    if latency_ns.is_empty() {
        return row;
    }
    let at = |quantile| Some(latency_ns.value_at_quantile(quantile) as f64 / 1e3);
    Row {
        mean_us: Some(latency_ns.mean() / 1e3),
        p50_us: at(0.50),
        p95_us: at(0.95),
        p99_us: at(0.99),
        max_us: Some(latency_ns.max() as f64 / 1e3),
        ..row
    }
}

fn limits(outcome: &Outcome) -> Value {
    let of = |name: &str, group| outcome.measurements.iter().find(|one| one.name == name && one.group == group);
    let mut limits = Map::new();
    for share in &outcome.shares {
        let sides = share.limits.iter().chain([&share.result]).map(|name| {
            let one = of(name, share.group);
            let cost = one.map(|one| CostPerCall::of(&one.total()));
            let side = json!({
                "ops_per_s": one.map(Measurement::rates),
                "server_cpu_us_per_op": cost.and_then(|cost| cost.cpu_us),
                "server_context_switches_per_op": cost.and_then(|cost| cost.switches),
            });
            ((*name).to_owned(), side)
        });
        let key = format!("{} of {} at {}", share.result, share.limits.join(" or "), share.clients);
        limits.insert(
            key,
            json!({
                "shares": share.shares,
                "median": share.median(),
                "required": share.required,
                "runs": sides.collect::<Map<_, _>>(),
            }),
        );
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

/// A table of all measurements including the limits.
pub fn table(outcome: &Outcome) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "operation",
        "clients",
        "ops/s",
        "±",
        "limit",
        "limit/s",
        "share",
        "min–max",
        "p50 µs",
        "p99 µs",
        "max µs",
        "errors",
        "CPU µs/op",
        "switches/op",
        "RSS MB",
    ]);
    let most = outcome.measurements.iter().map(|measured| measured.clients).max();
    for measured in &outcome.measurements {
        let total = measured.total();
        let all: Vec<Row> = if measured.is_limit { vec![row(measured, None)] } else { rows(measured, outcome) };
        let shares: Vec<Option<&LimitShare>> = match measured.is_limit {
            true => vec![None],
            false => shares_of(measured, outcome).map(Some).chain(std::iter::repeat(None)).take(all.len()).collect(),
        };
        for (row, share) in all.iter().zip(shares) {
            // The operations of a mix are listed once, at the largest number of clients; page and JSON have them all.
            if row.part_of.is_some() && Some(row.clients) != most {
                continue;
            }
            let cost = if row.part_of.is_some() { CostPerCall::default() } else { CostPerCall::of(&total) };
            let spread = share.map(|share| {
                let bound = |fold: fn(f64, f64) -> f64, from| share.shares.iter().copied().fold(from, fold);
                format!("{:.2}–{:.2}", bound(f64::min, f64::INFINITY), bound(f64::max, 0.0))
            });
            table.add_row([
                row.name.clone(),
                row.clients.to_string(),
                number(Some(row.ops_per_s), 0),
                number(Some(row.ops_per_s_stddev), 0),
                row.limit.clone().unwrap_or_default(),
                number(row.limit_ops_per_s, 0),
                number(row.share_of_limit, 2),
                spread.unwrap_or_default(),
                number(row.p50_us, 0),
                number(row.p99_us, 0),
                number(row.max_us, 0),
                row.errors.to_string(),
                number(cost.cpu_us, 1),
                number(cost.switches, 2),
                number(row.server_peak_rss_mb, 0),
            ]);
        }
    }
    for (place, column) in table.column_iter_mut().enumerate() {
        if place != 0 && place != 4 {
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
        let (met, required) = (share.is_met(relax)?, share.required? * relax);
        all_met &= met;
        let LimitShare { result, clients, limits, .. } = share;
        Some(format!(
            "{:<6} {result} at {clients} client{}: {:.2} of {} (required {required:.2})",
            if met { "ok" } else { "MISSED" },
            if *clients == 1 { "" } else { "s" },
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
    fn a_missed_requirement_is_told() {
        let share = |required| LimitShare {
            result: "STATUS",
            group: 0,
            clients: 10,
            limits: &["bare"],
            limit_ops_per_s: 100.0,
            shares: vec![0.5, 0.7, 0.6],
            required,
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
