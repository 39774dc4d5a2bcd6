//! What a check for duplicates costs, and how often it is wrong: a node beside 10,000 files of others.
//!
//! | operation | asks for | and fails if |
//! |---|---|---|
//! | `NEW` | files that nobody has | one is called an exact duplicate |
//! | `NEW-SIZE` | the same | one is called a likely duplicate, for its size alone |
//! | `KNOWN` | files that somebody has | one is not called an exact duplicate |
//!
//! So what is reported as errors are false positives, and in the last one duplicates that were overlooked. Sizes are
//! spread as people's files are: as many between 1 and 10 KB as between 100 MB and 1 GB.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Map, Value, json};

use super::chance::Chance;
use super::load::{Length, Sample};
use super::plan::{Bench, Group};
use super::run::Run;
use super::share::{Net, Node};

/// What `--only` may name.
pub const OPERATIONS: &[&str] = &["NEW", "NEW-SIZE", "KNOWN"];
const HOSTS: u64 = 10;
const FILES_OF_HOST: u64 = 1_000;
/// A year, which the files are from, and its beginning, Unix seconds.
const YEAR_S: f64 = 365.0 * 86_400.0;
const YEAR_FROM_S: f64 = 1_735_689_600.0;

/// Measures what is wanted.
///
/// # Errors
/// A process that does not start or answer; the system's.
pub fn measure(run: &mut Run<'_>) -> anyhow::Result<()> {
    let wanted: Vec<&'static str> = OPERATIONS.iter().copied().filter(|operation| run.wants(operation)).collect();
    run.announce(wanted.len());
    let net = Net::start(run, 1)?;
    run.say("publishing 10,000 files");
    // Open until the end: hosts that are there.
    let _hosts = (0..HOSTS).map(|host| register(net.registry, host)).collect::<anyhow::Result<Vec<_>>>()?;
    let node = &net.nodes[0];
    let benches = wanted.into_iter().map(|operation| {
        let mut next = 0;
        Bench::new(operation, move |length, stop| {
            let mut sample = Sample::new();
            let started = Instant::now();
            let mut calls = 0;
            while !length_is_over(length, calls, started) && !stop.is_asked() {
                next += 1;
                calls += 1;
                check(node, operation, next, &mut sample)?;
            }
            sample.elapsed = started.elapsed();
            Ok(sample)
        })
        .on(&node.process)
    });
    let benches = benches.collect();
    run.measure(Group { clients: 1, benches, pairs: Vec::new() })
}

fn length_is_over(length: Length, calls: u64, started: Instant) -> bool {
    length.is_over(calls, started, Instant::now())
}

fn check(node: &Node, operation: &str, nth: u64, sample: &mut Sample) -> anyhow::Result<()> {
    let is_known = operation == "KNOWN";
    // Files that nobody has come after all that somebody has.
    let all = HOSTS * FILES_OF_HOST;
    let (size, modified) = facts(if is_known { nth % all } else { all + nth });
    let begun = Instant::now();
    let answer = node.post("check-duplicate", &json!({"fname": "new.bin", "size": size, "modified": modified}))?;
    let took = begun.elapsed();
    let says = |field: &str| answer[field].as_bool().with_context(|| format!("check-duplicate tells no {field}"));
    let is_right = match operation {
        "NEW" => !says("has_exact_duplicate")?,
        "NEW-SIZE" => !says("has_partial_duplicate")?,
        _ => says("has_exact_duplicate")?,
    };
    count(sample, is_right, took);
    Ok(())
}

fn count(sample: &mut Sample, is_right: bool, took: Duration) {
    if is_right {
        sample.answered(took);
    } else {
        sample.failed += 1;
    }
}

/// Size and time of a file, the same for the same number.
fn facts(nth: u64) -> (u64, f64) {
    let mut chance = Chance::new(nth);
    let size = 1_000.0 * 10_f64.powf(6.0 * chance.even());
    (size as u64, (YEAR_FROM_S + YEAR_S * chance.even()).floor())
}

/// A host with its files.
fn register(at: SocketAddr, host: u64) -> anyhow::Result<BufReader<TcpStream>> {
    let files: Map<String, Value> = (0..FILES_OF_HOST)
        .map(|file| {
            let nth = host * FILES_OF_HOST + file;
            let (size, modified) = facts(nth);
            (format!("file-{nth:05}.bin"), json!({"size": size, "modified": modified, "is_published": true}))
        })
        .collect();
    let data = json!({"hostname": format!("host-{host}"), "port": 6001, "files_metadata": files});
    let mut line = BufReader::new(TcpStream::connect(at).context("the registry cannot be reached")?);
    line.get_mut().write_all(format!("{}\n", json!({"action": "REGISTER", "data": data})).as_bytes())?;
    let mut answer = String::new();
    line.read_line(&mut answer)?;
    let answer: Value = serde_json::from_str(&answer).context("the registry's answer is no JSON")?;
    ensure!(answer["status"] == "OK", "the registry takes no files: {}", answer["reason"]);
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_differ_and_are_the_same_each_time() {
        let sizes: Vec<u64> = (0..10_000).map(|nth| facts(nth).0).collect();
        assert!(sizes.iter().all(|size| (1_000..=1_000_000_000).contains(size)));
        let small = sizes.iter().filter(|size| **size < 10_000).count();
        assert!((1_500..1_850).contains(&small), "{small}");
        assert_eq!(facts(7), facts(7));
        assert_ne!(facts(7), facts(8));
    }
}
