//! Speed of file transfers between five node processes, which are controlled through their client API.
//!
//! | operation | measures |
//! |---|---|
//! | `10KB` … `1GB` | one node after the other fetches a file of this size from the first; each piece is verified |
//! | `THREE` | three nodes fetch the same file concurrently |
//! | `SOURCES` | the last node fetches a file that all others have, from several at once |
//!
//! The limit `copy` is the minimum work of such a transfer, with the standard library: from memory through a socket into
//! a file, and one fdatasync at the end.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, ensure};

use super::child::WorkDir;
use super::load::{self, MeasurementLength, Sample};
use super::plan::{Benchmark, BenchmarkGroup, Comparison};
use super::run::ScenarioRun;
use super::share::{ShareNetwork, ShareNode};
use super::stop::StopFlag;

const NODES: usize = 5;
pub const OPERATIONS: &[&str] = &["10KB", "100KB", "1MB", "10MB", "100MB", "1GB", "THREE", "SOURCES"];
/// Name, bytes, fetches per measurement.
const SIZES: [(&str, u64, u64); 6] = [
    ("10KB", 10_000, 100),
    ("100KB", 100_000, 100),
    ("1MB", 1_000_000, 40),
    ("10MB", 10_000_000, 8),
    ("100MB", 100_000_000, 2),
    ("1GB", 1_000_000_000, 1),
];
/// Size of the file that is fetched by or from several nodes, and in a quick run.
const SHARED_FILE_BYTES: u64 = 1_000_000_000;
const SHARED_FILE_BYTES_QUICK: u64 = 100_000_000;
const CHUNK_BYTES: usize = 256 * 1024;
/// Default number of turns: each of the largest sizes takes seconds.
const RUNS: usize = 5;
const RUNS_QUICK: usize = 3;

pub fn measure(run: &mut ScenarioRun<'_>) -> anyhow::Result<()> {
    run.sampling.runs = run.args.runs.map_or(if run.args.quick { RUNS_QUICK } else { RUNS }, usize::from);
    let sizes: Vec<_> = SIZES
        .into_iter()
        .filter(|(name, bytes, _)| run.is_wanted(name) && !(run.args.quick && *bytes > SHARED_FILE_BYTES_QUICK))
        .collect();
    let (three, sources) = (run.is_wanted("THREE"), run.is_wanted("SOURCES"));
    run.expect_benchmarks(sizes.len() * 2 + if three { 2 } else { 0 } + if sources { 2 } else { 0 });
    let network = ShareNetwork::start(run, NODES)?;
    let files = TestFiles { dir: network.dir.path(), next: AtomicU64::new(0) };
    for (name, bytes, fetches) in sizes {
        if run.stop.is_set() {
            return Ok(());
        }
        run.set_status("publishing a file");
        let fname = format!("{name}.bin");
        network.nodes[0].publish(&files.create(&fname, bytes)?, &fname, run.stop)?;
        let file = PublishedFile { files: &files, fname: &fname, bytes };
        let required = (name == "1GB").then_some(0.4);
        measure_fetches(run, &network.nodes[1..], &file, name, |length| count(length, fetches), required)?;
    }
    if !(three || sources) || run.stop.is_set() {
        return Ok(());
    }
    let bytes = if run.args.quick { SHARED_FILE_BYTES_QUICK } else { SHARED_FILE_BYTES };
    run.set_status("publishing a file");
    let shared = files.create("shared.bin", bytes)?;
    network.nodes[0].publish(&shared, "shared.bin", run.stop)?;
    if three {
        measure_three(run, &network, &PublishedFile { files: &files, fname: "shared.bin", bytes })?;
    }
    if sources && !run.stop.is_set() {
        // The same content from other nodes, under a name that no node tracks yet.
        for node in &network.nodes[..NODES - 1] {
            let copy = files.path(&format!("copy-{}.bin", node.name));
            fs::copy(&shared, &copy).context("cannot copy below --out")?;
            node.publish(&copy, "sources.bin", run.stop)?;
        }
        let file = PublishedFile { files: &files, fname: "sources.bin", bytes };
        measure_fetches(run, &network.nodes[NODES - 1..], &file, "SOURCES", |_length| 1, None)?;
    }
    Ok(())
}

/// Fetches as many as `count` says, one after the other, each by the next of these nodes.
fn measure_fetches(
    run: &mut ScenarioRun<'_>,
    fetchers: &[ShareNode],
    file: &PublishedFile<'_>,
    name: &'static str,
    count: impl Fn(MeasurementLength) -> u64,
    required: Option<f64>,
) -> anyhow::Result<()> {
    let out = run.args.out.clone();
    let benchmarks = vec![
        Benchmark::limit("copy", |length, stop| copy_repeatedly(&out, file.bytes, count(length), stop)),
        Benchmark::new(name, |length, stop| {
            Sample::timed(|sample| {
                let mut nodes = fetchers.iter().cycle().take(count(length) as usize);
                nodes.try_for_each(|node| file.fetch(node, stop, sample))
            })
        })
        .on(&fetchers[0].process),
    ];
    let comparisons = vec![Comparison { result: name, limits: &["copy"], required }];
    run.measure(BenchmarkGroup { clients: 1, benchmarks, comparisons })
}

/// Three concurrent fetches, compared with a single one; together they carry three times as many bytes.
fn measure_three(run: &mut ScenarioRun<'_>, network: &ShareNetwork, file: &PublishedFile<'_>) -> anyhow::Result<()> {
    let fetch_concurrently = |nodes: &[ShareNode], stop: &StopFlag| {
        let mut nodes: Vec<&ShareNode> = nodes.iter().collect();
        load::run_all(&mut nodes, |_nth, node| Sample::timed(|sample| file.fetch(node, stop, sample)))
    };
    let benchmarks = vec![
        Benchmark::limit("one alone", |_length, stop| fetch_concurrently(&network.nodes[1..2], stop)),
        Benchmark::new("THREE", |_length, stop| fetch_concurrently(&network.nodes[1..4], stop))
            .on(&network.nodes[0].process),
    ];
    let comparison = Comparison { result: "THREE", limits: &["one alone"], required: Some(0.8) };
    run.measure(BenchmarkGroup { clients: 3, benchmarks, comparisons: vec![comparison] })
}

/// The number of fetches: as given with `--calls`, else fixed, since a time does not tell how many fit into it.
fn count(length: MeasurementLength, fetches: u64) -> u64 {
    match length {
        MeasurementLength::Calls(calls) => calls,
        MeasurementLength::Time(_) => fetches,
    }
}

/// A file that nodes can fetch.
struct PublishedFile<'f> {
    files: &'f TestFiles<'f>,
    fname: &'f str,
    bytes: u64,
}

impl PublishedFile<'_> {
    /// Does nothing once the flag is set.
    fn fetch(&self, node: &ShareNode, stop: &StopFlag, sample: &mut Sample) -> anyhow::Result<()> {
        if stop.is_set() {
            return Ok(());
        }
        let (fname, path) = (self.fname, self.files.unused_path());
        let took = node.fetch(fname, &path, stop)?;
        if stop.is_set() {
            return Ok(());
        }
        let length = fs::metadata(&path).with_context(|| format!("{fname} was fetched and is not there"))?.len();
        ensure!(length == self.bytes, "{fname} has {length} bytes instead of {}", self.bytes);
        fs::remove_file(&path)?;
        sample.record(true, took);
        sample.bytes += self.bytes;
        Ok(())
    }
}

/// Files in the folder from which nodes may share.
struct TestFiles<'d> {
    dir: &'d Path,
    next: AtomicU64,
}

impl TestFiles<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A path that does not exist yet.
    fn unused_path(&self) -> PathBuf {
        self.path(&format!("fetched-{}.bin", self.next.fetch_add(1, Ordering::Relaxed)))
    }

    /// Creates a file of pseudo-random content, so that no two pieces are equal.
    fn create(&self, name: &str, bytes: u64) -> anyhow::Result<PathBuf> {
        let path = self.path(name);
        let mut hasher = blake3::Hasher::new();
        hasher.update(name.as_bytes());
        let file = File::create(&path).context("cannot write below --out")?;
        let mut writer = BufWriter::with_capacity(CHUNK_BYTES, &file);
        io::copy(&mut hasher.finalize_xof().take(bytes), &mut writer)?;
        writer.flush()?;
        file.sync_all()?;
        Ok(path)
    }
}

fn copy_repeatedly(out: &Path, bytes: u64, count: u64, stop: &StopFlag) -> anyhow::Result<Sample> {
    let dir = WorkDir::create(out)?;
    Sample::timed(|sample| {
        for _ in 0..count {
            if stop.is_set() {
                break;
            }
            let begun = Instant::now();
            let path = dir.path().join("copy.bin");
            copy(&path, bytes)?;
            sample.record(true, begun.elapsed());
            sample.bytes += bytes;
            fs::remove_file(&path)?;
        }
        Ok(())
    })
}

/// Copies from memory through a socket to a file, which is on disk at the end.
fn copy(path: &Path, bytes: u64) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut sender = TcpStream::connect(listener.local_addr()?)?;
    let (mut receiver, _) = listener.accept()?;
    std::thread::scope(|scope| {
        let sending = scope.spawn(move || -> std::io::Result<()> {
            let chunk = vec![0x5A; CHUNK_BYTES];
            let mut left = bytes;
            while left > 0 {
                let length = left.min(CHUNK_BYTES as u64) as usize;
                sender.write_all(&chunk[..length])?;
                left -= length as u64;
            }
            Ok(())
        });
        let mut file = File::create_new(path)?;
        let (mut chunk, mut received) = (vec![0; CHUNK_BYTES], 0);
        loop {
            let length = receiver.read(&mut chunk)?;
            if length == 0 {
                break;
            }
            file.write_all(&chunk[..length])?;
            received += length as u64;
        }
        file.sync_data()?;
        sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        ensure!(received == bytes, "{received} bytes came instead of {bytes}");
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_copy_is_whole_and_leaves_nothing() {
        let out = tempfile::tempdir().unwrap();
        let sample = copy_repeatedly(out.path(), 700_001, 3, &StopFlag::default()).unwrap();
        assert_eq!((sample.done, sample.bytes), (3, 2_100_003));
        assert_eq!(out.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn files_are_made_of_what_does_not_repeat() {
        let out = tempfile::tempdir().unwrap();
        let files = TestFiles { dir: out.path(), next: AtomicU64::new(0) };
        let made = fs::read(files.create("a.bin", 3 * CHUNK_BYTES as u64 + 7).unwrap()).unwrap();
        assert_eq!(made.len(), 3 * CHUNK_BYTES + 7);
        assert_ne!(made[..1000], made[CHUNK_BYTES..][..1000]);
        assert_ne!(files.unused_path(), files.unused_path());
    }
}
