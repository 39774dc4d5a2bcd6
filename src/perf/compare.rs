//! Compares two reports.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use comfy_table::Table;
use serde_json::json;

use super::report::{Report, Row, boxed_table, number};

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
            let (known, [a, b]) = (json!(a.or(b)), [a, b].map(|row| json!(row)));
            let mut line = json!({"name": known["name"], "clients": known["clients"], "limit": known["limit"]});
            for field in ["ops_per_s", "share_of_limit", "p50_us", "p99_us", "errors"] {
                line[field] = json!([a[field], b[field]]);
            }
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

/// What stands side by side: its title, its decimals, its value.
type ComparedField = (&'static str, usize, fn(&Row) -> Option<f64>);

const COMPARED: [ComparedField; 5] = [
    ("ops/s", 0, |row| Some(row.ops_per_s)),
    ("share", 2, |row| row.share_of_limit),
    ("p50", 0, |row| row.p50_us),
    ("p99", 0, |row| row.p99_us),
    ("errors", 0, |row| Some(row.errors as f64)),
];
/// The ratio stands behind both rates.
const RATIO_AT: usize = 5;

fn table(before: &[Row], after: &[Row]) -> Table {
    let mut header = ["operation", "clients", "limit"].map(str::to_owned).to_vec();
    header.extend(COMPARED.iter().flat_map(|(title, ..)| [format!("{title} A"), format!("{title} B")]));
    header.insert(RATIO_AT, "B/A".to_owned());
    let mut lines = Vec::new();
    for (a, b) in match_rows(before, after) {
        let Some(known) = a.or(b) else { continue };
        let both = |(_, decimals, of): ComparedField| [a, b].map(|row| number(row.and_then(of), decimals));
        let ratio = a.zip(b).map(|(a, b)| b.ops_per_s / a.ops_per_s.max(1e-9));
        let mut line = vec![known.name.clone(), known.clients.to_string(), known.limit.clone().unwrap_or_default()];
        line.extend(COMPARED.into_iter().flat_map(both));
        line.insert(RATIO_AT, number(ratio, 2));
        lines.push(line);
    }
    boxed_table(header, lines, [0, 2])
}
