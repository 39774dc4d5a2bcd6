//! Compares two reports.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::json;

use super::report::{Report, Row, number};

/// Which two.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The report of before
    #[arg(value_name = "A.json")]
    before: PathBuf,
    /// The report of now
    #[arg(value_name = "B.json")]
    after: PathBuf,
    /// One JSON object a line instead of the table
    #[arg(long)]
    json: bool,
}

/// Prints both reports side by side.
pub fn run(args: &CompareArgs) -> anyhow::Result<ExitCode> {
    let (before, after) = (Report::read(&args.before)?, Report::read(&args.after)?);
    if before.scenario != after.scenario {
        anyhow::bail!("these cannot be compared: one is of {}, the other of {}", before.scenario, after.scenario);
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        for (a, b) in match_rows(&before.results, &after.results) {
            let known = a.or(b);
            let line = json!({
                "name": known.map(|row| &row.name),
                "clients": known.map(|row| row.clients),
                "limit": known.map(|row| &row.limit),
                "ops_per_s": [a.map(|row| row.ops_per_s), b.map(|row| row.ops_per_s)],
                "share_of_limit": [a.and_then(|row| row.share_of_limit), b.and_then(|row| row.share_of_limit)],
                "p50_us": [a.and_then(|row| row.p50_us), b.and_then(|row| row.p50_us)],
                "p99_us": [a.and_then(|row| row.p99_us), b.and_then(|row| row.p99_us)],
                "errors": [a.map(|row| row.errors), b.map(|row| row.errors)],
            });
            writeln!(out, "{line}")?;
        }
    } else {
        if before.machine["cpu"] != after.machine["cpu"] || before.machine["build"] != after.machine["build"] {
            eprintln!("warning: they come from different machines or builds");
        }
        writeln!(out, "{}", table(&before.results, &after.results))?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Pairs the rows of both reports, in the order of the first one, followed by rows that only the second has.
fn match_rows<'a>(before: &'a [Row], after: &'a [Row]) -> Vec<(Option<&'a Row>, Option<&'a Row>)> {
    let same = |a: &Row, b: &Row| (&a.name, a.clients, &a.limit) == (&b.name, b.clients, &b.limit);
    let both = before.iter().map(|a| (Some(a), after.iter().find(|b| same(a, b))));
    let new = after.iter().filter(|b| !before.iter().any(|a| same(a, b))).map(|b| (None, Some(b)));
    both.chain(new).collect()
}

fn table(before: &[Row], after: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "operation",
        "clients",
        "limit",
        "ops/s A",
        "ops/s B",
        "B/A",
        "share A",
        "share B",
        "p50 A",
        "p50 B",
        "p99 A",
        "p99 B",
        "errors A",
        "errors B",
    ]);
    for (a, b) in match_rows(before, after) {
        let Some(known) = a.or(b) else { continue };
        let both = |of: fn(&Row) -> Option<f64>, decimals| [a, b].map(|row| number(row.and_then(of), decimals));
        let [rate_a, rate_b] = both(|row| Some(row.ops_per_s), 0);
        let [share_a, share_b] = both(|row| row.share_of_limit, 2);
        let [p50_a, p50_b] = both(|row| row.p50_us, 0);
        let [p99_a, p99_b] = both(|row| row.p99_us, 0);
        let [errors_a, errors_b] = both(|row| Some(row.errors as f64), 0);
        let ratio = a.zip(b).map(|(a, b)| b.ops_per_s / a.ops_per_s.max(1e-9));
        table.add_row([
            known.name.clone(),
            known.clients.to_string(),
            known.limit.clone().unwrap_or_default(),
            rate_a,
            rate_b,
            number(ratio, 2),
            share_a,
            share_b,
            p50_a,
            p50_b,
            p99_a,
            p99_b,
            errors_a,
            errors_b,
        ]);
    }
    for (place, column) in table.column_iter_mut().enumerate() {
        if place != 0 && place != 2 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
