//! The cost of checks for duplicates and their error rate, at a node in a network with 10,000 files of others. Errors
//! in the report are false positives, and for `KNOWN` false negatives.
//!
//! | operation | checks | fails if |
//! |---|---|---|
//! | `NEW` | files that nobody has | one is reported as an exact duplicate |
//! | `NEW-SIZE` | the same | one is reported as a likely duplicate because of its size |
//! | `KNOWN` | files that somebody has | one is not reported as an exact duplicate |
//!
//! File sizes are distributed logarithmically: as many between 1 and 10 KB as between 100 MB and 1 GB.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, ensure};
use serde_json::{Map, Value, json};

use super::load;
use super::plan::{Benchmark, BenchmarkGroup};
use super::rng::SeededRng;
use super::run::ScenarioRun;
use super::share::{ShareNetwork, ShareNode};

pub const OPERATIONS: &[&str] = &["NEW", "NEW-SIZE", "KNOWN"];
const HOSTS: u64 = 10;
const FILES_OF_HOST: u64 = 1_000;
/// File times spread over one year; its length in seconds and its start as a Unix time.
const YEAR_S: f64 = 365.0 * 86_400.0;
const YEAR_FROM_S: f64 = 1_735_689_600.0;

pub fn measure(run: &mut ScenarioRun<'_>) -> anyhow::Result<()> {
    let wanted: Vec<&'static str> = OPERATIONS.iter().copied().filter(|operation| run.is_wanted(operation)).collect();
    run.expect_benchmarks(wanted.len());
    let network = ShareNetwork::start(run, 1)?;
    run.set_status("publishing 10,000 files");
    // The connections stay open until the end, so that the hosts stay registered.
    let _hosts = (0..HOSTS).map(|host| register(network.registry, host)).collect::<anyhow::Result<Vec<_>>>()?;
    let node = &network.nodes[0];
    let benchmarks = wanted.into_iter().map(|operation| {
        let mut next = 0;
        Benchmark::new(operation, move |length, stop| {
            load::drive(length, None, stop, |_sample| {
                next += 1;
                Ok((None, check(node, operation, next)?))
            })
        })
        .on(&node.process)
    });
    let benchmarks = benchmarks.collect();
    run.measure(BenchmarkGroup { clients: 1, benchmarks, comparisons: Vec::new() })
}

/// Returns whether the response is right.
fn check(node: &ShareNode, operation: &str, nth: u64) -> anyhow::Result<bool> {
    let is_known = operation == "KNOWN";
    // Numbers of unknown files follow those of all known files.
    let all = HOSTS * FILES_OF_HOST;
    let (size, modified) = file_metadata(if is_known { nth % all } else { all + nth });
    let response = node.post("check-duplicate", &json!({"fname": "new.bin", "size": size, "modified": modified}))?;
    let says = |field: &str| response[field].as_bool().with_context(|| format!("check-duplicate tells no {field}"));
    Ok(match operation {
        "NEW" => !says("has_exact_duplicate")?,
        "NEW-SIZE" => !says("has_partial_duplicate")?,
        _ => says("has_exact_duplicate")?,
    })
}

fn file_metadata(nth: u64) -> (u64, f64) {
    let mut rng = SeededRng::new(nth);
    let size = 1_000.0 * 10_f64.powf(6.0 * rng.uniform());
    (size as u64, (YEAR_FROM_S + YEAR_S * rng.uniform()).floor())
}

/// Registers a host with its files; the returned connection keeps it registered.
fn register(at: SocketAddr, host: u64) -> anyhow::Result<BufReader<TcpStream>> {
    let files: Map<String, Value> = (0..FILES_OF_HOST)
        .map(|file| {
            let nth = host * FILES_OF_HOST + file;
            let (size, modified) = file_metadata(nth);
            (format!("file-{nth:05}.bin"), json!({"size": size, "modified": modified, "is_published": true}))
        })
        .collect();
    let data = json!({"hostname": format!("host-{host}"), "port": 6001, "files_metadata": files});
    let mut line = BufReader::new(TcpStream::connect(at).context("the registry cannot be reached")?);
    line.get_mut().write_all(format!("{}\n", json!({"action": "REGISTER", "data": data})).as_bytes())?;
    let mut response = String::new();
    line.read_line(&mut response)?;
    let response: Value = serde_json::from_str(&response).context("the registry's answer is no JSON")?;
    ensure!(response["status"] == "OK", "the registry takes no files: {}", response["reason"]);
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_differ_and_are_the_same_each_time() {
        let sizes: Vec<u64> = (0..10_000).map(|nth| file_metadata(nth).0).collect();
        assert!(sizes.iter().all(|size| (1_000..=1_000_000_000).contains(size)));
        let small = sizes.iter().filter(|size| **size < 10_000).count();
        assert!((1_500..1_850).contains(&small), "{small}");
        assert_eq!(file_metadata(7), file_metadata(7));
        assert_ne!(file_metadata(7), file_metadata(8));
    }
}
