//! The report as a self-contained HTML page with plots and tables.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::load::Sample;
use super::plan::{Measurement, Outcome};
use super::report::{Report, Row, number};
use crate::storage::files;

mod plot;

use plot::{Curve, XAxis, YScale, css_colour};

const STYLE: &str = include_str!("page/style.css");
/// Largest `1 / (1 - quantile)` shown in the distribution plot.
const SLOWEST_MAX: f64 = 100_000.0;
/// Points per decade of the distribution plot.
const POINTS: u32 = 12;

/// Writes `SCENARIO.html` to the folder.
pub fn write(dir: &Path, report: &Report, outcome: &Outcome, requirements: &[String]) -> anyhow::Result<PathBuf> {
    let path = dir.join(format!("{}.html", report.scenario));
    let page = page(report, outcome, requirements)?;
    files::replace(&path, OpenOptions::new(), |file| file.write_all(page.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn page(report: &Report, outcome: &Outcome, requirements: &[String]) -> anyhow::Result<String> {
    let title = format!("P2S2 {}", escaped(&report.scenario));
    let mut html = String::new();
    write!(
        html,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
    )?;
    machine(&mut html, report)?;
    if !requirements.is_empty() {
        html.push_str("<h2>What is asked for</h2>\n<ul class=\"required\">\n");
        for line in requirements {
            let class = if line.starts_with("ok") { "ok" } else { "missed" };
            writeln!(html, "<li class=\"{class}\">{}</li>", escaped(line))?;
        }
        html.push_str("</ul>\n");
    }
    if report.results.is_empty() {
        html.push_str("<p>Nothing was measured.</p>\n");
    }
    html.push_str("<div class=\"plots\">\n");
    for plot in plots(report, outcome) {
        let Some(svg) = plot::draw(plot.x_axis, plot.y_scale, plot.unit, &plot.curves)? else { continue };
        writeln!(html, "<figure id=\"{}\">\n<figcaption>{}</figcaption>\n{svg}", plot.id, escaped(&plot.title))?;
        html.push_str("<ul class=\"legend\">");
        for curve in &plot.curves {
            let colour = css_colour(curve.colour);
            write!(html, "<li><i style=\"background:{colour}\"></i>{}</li>", escaped(&curve.name))?;
        }
        html.push_str("</ul>\n</figure>\n");
    }
    html.push_str("</div>\n");
    table(&mut html, &report.results)?;
    html.push_str("</body>\n</html>\n");
    Ok(html)
}

fn machine(html: &mut String, report: &Report) -> anyhow::Result<()> {
    let said = |field: &str| match &report.machine[field] {
        serde_json::Value::String(text) => escaped(text),
        serde_json::Value::Null => "unknown".to_owned(),
        other => escaped(&other.to_string()),
    };
    let [cores, cpu, memory, os, arch, kernel, version, build, finished_at] =
        ["cores", "cpu", "memory_mb", "os", "arch", "kernel", "version", "build", "finished_at"].map(said);
    writeln!(
        html,
        "<p class=\"machine\">{cores} cores of {cpu}, {memory} MB, {os} {arch} {kernel}; \
         version {version} ({build} build); {finished_at}</p>"
    )?;
    Ok(())
}

struct Plot {
    id: &'static str,
    title: String,
    unit: &'static str,
    x_axis: XAxis,
    y_scale: YScale,
    curves: Vec<Curve>,
}

fn plots(report: &Report, outcome: &Outcome) -> Vec<Plot> {
    let names = names(&report.results);
    let over_clients = |id, title: &str, unit, y_scale, of: fn(&Row) -> Option<f64>| {
        let curves = names.iter().enumerate().map(|(colour, name)| {
            let mut points: Vec<(f64, f64)> = Vec::new();
            for row in report.results.iter().filter(|row| row.name == *name) {
                // A result has one row for each of its limits; its value is plotted once.
                if let Some(value) = of(row)
                    && points.last().is_none_or(|last| last.0 != row.clients as f64)
                {
                    points.push((row.clients as f64, value));
                }
            }
            Curve { name: (*name).to_owned(), colour, points }
        });
        let curves = curves.filter(|curve| !curve.points.is_empty()).collect();
        Plot { id, title: title.to_owned(), unit, x_axis: XAxis::Clients, y_scale, curves }
    };
    vec![
        over_clients("throughput", "Calls a second", "calls/s", YScale::Logarithmic, |row| Some(row.ops_per_s)),
        over_clients("p50", "Latency: half of the calls took no longer", "µs", YScale::Logarithmic, |row| row.p50_us),
        over_clients("p99", "Latency: 99 of 100 took no longer", "µs", YScale::Logarithmic, |row| row.p99_us),
        distribution(&names, outcome),
        shares(&names, &report.results),
        over_clients("cpu", "The servers' CPU time, each call", "µs", YScale::Logarithmic, |row| {
            row.server_cpu_us_per_op
        }),
        over_clients("memory", "The servers' memory at its most", "MB", YScale::FromZero, |row| row.server_peak_rss_mb),
    ]
}

/// One curve for each pair of result and limit.
fn shares(names: &[&str], results: &[Row]) -> Plot {
    let mut curves: Vec<Curve> = Vec::new();
    for row in results {
        let (Some(limit), Some(share)) = (&row.limit, row.share_of_limit) else { continue };
        let (name, point) = (format!("{} of {limit}", row.name), (row.clients as f64, share));
        match curves.iter_mut().find(|curve| curve.name == name) {
            Some(curve) => curve.points.push(point),
            None => {
                let colour = names.iter().position(|known| *known == row.name).unwrap_or_default();
                curves.push(Curve { name, colour, points: vec![point] });
            }
        }
    }
    let title = "Share of the limit: 1 is all that the machine could do".to_owned();
    Plot { id: "share", title, unit: "share", x_axis: XAxis::Clients, y_scale: YScale::Logarithmic, curves }
}

/// Each operation at the largest number of clients with which it was measured.
fn distribution(names: &[&str], outcome: &Outcome) -> Plot {
    let mut curves = Vec::new();
    let mut most = 0;
    for (colour, name) in names.iter().enumerate() {
        let of_name = outcome.measurements.iter().filter(|one| one.name == *name && !one.is_limit);
        let Some(measured) = of_name.max_by_key(|one| one.clients) else { continue };
        let total: Sample = Measurement::total(measured);
        if total.latency_ns.is_empty() {
            continue;
        }
        most = most.max(measured.clients);
        let at = |step: u32| 10f64.powf(f64::from(step) / f64::from(POINTS));
        // Quantiles beyond the number of calls are left out.
        let known = |slowest: &f64| *slowest <= SLOWEST_MAX.min(total.latency_ns.len() as f64);
        let points = (0..)
            .map(at)
            .take_while(known)
            .map(|slowest| (slowest, total.latency_ns.value_at_quantile(1.0 - 1.0 / slowest) as f64 / 1e3));
        curves.push(Curve { name: (*name).to_owned(), colour, points: points.collect() });
    }
    let title = format!("Distribution of latencies at {most} clients");
    Plot { id: "distribution", title, unit: "µs", x_axis: XAxis::Slowest, y_scale: YScale::Logarithmic, curves }
}

/// The distinct names in the order of the report. Operations of a mix are only in the table, because there are many.
fn names(results: &[Row]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for row in results.iter().filter(|row| row.part_of.is_none()) {
        if !names.contains(&row.name.as_str()) {
            names.push(&row.name);
        }
    }
    names
}

fn table(html: &mut String, results: &[Row]) -> anyhow::Result<()> {
    html.push_str(
        "<table>\n<thead><tr><th>operation</th><th>clients</th><th>calls/s</th><th>±</th><th>limit</th>\
         <th>limit/s</th><th>share</th><th>mean µs</th><th>p50</th><th>p95</th><th>p99</th><th>max</th>\
         <th>errors</th><th>CPU µs</th><th>MB</th></tr></thead>\n<tbody>\n",
    );
    for row in results {
        write!(html, "<tr><td>{}</td><td>{}</td>", escaped(&row.name), row.clients)?;
        write!(html, "<td>{}</td>", number(Some(row.ops_per_s), 0))?;
        write!(html, "<td>{}</td>", number(Some(row.ops_per_s_stddev), 0))?;
        write!(html, "<td>{}</td>", escaped(row.limit.as_deref().unwrap_or_default()))?;
        let cells = [
            (row.limit_ops_per_s, 0),
            (row.share_of_limit, 2),
            (row.mean_us, 0),
            (row.p50_us, 0),
            (row.p95_us, 0),
            (row.p99_us, 0),
            (row.max_us, 0),
            (Some(row.errors as f64), 0),
            (row.server_cpu_us_per_op, 1),
            (row.server_peak_rss_mb, 0),
        ];
        for (value, decimals) in cells {
            write!(html, "<td>{}</td>", number(value, decimals))?;
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody>\n</table>\n");
    Ok(())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
