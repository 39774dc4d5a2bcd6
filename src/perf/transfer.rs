//! How fast files pass from node to node: five nodes, each a process, driven over their client API.
//!
//! | operation | is |
//! |---|---|
//! | `10KB` … `1GB` | one node after the other fetches such a file from the first; verified piece by piece |
//! | `THREE` | three of them fetch one file at once |
//! | `SOURCES` | the last one fetches what the others have as well, from several at once |
//!
//! `copy` is the least that such a transfer could be, by the standard library: from memory through a socket into a
//! file, and one fdatasync at the end.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};

use super::child::{WorkDir, watch};
use super::load::{Length, Sample};
use super::plan::{Bench, Group, Pair};
use super::run::Run;
use super::share::{Net, Node};
use super::stop::Stop;

const NODES: usize = 5;
/// What `--only` may name.
pub const OPERATIONS: &[&str] = &["10KB", "100KB", "1MB", "10MB", "100MB", "1GB", "THREE", "SOURCES"];
/// Name, bytes, fetches in a measurement.
const SIZES: [(&str, u64, u64); 6] = [
    ("10KB", 10_000, 100),
    ("100KB", 100_000, 100),
    ("1MB", 1_000_000, 40),
    ("10MB", 10_000_000, 8),
    ("100MB", 100_000_000, 2),
    ("1GB", 1_000_000_000, 1),
];
/// What is fetched by several, or from several; of a quick run.
const SHARED: u64 = 1_000_000_000;
const SHARED_QUICK: u64 = 100_000_000;
const CHUNK_BYTES: usize = 256 * 1024;
/// Turns, unless others are asked for: each of the largest takes seconds.
const RUNS: usize = 5;
const RUNS_QUICK: usize = 3;

/// Measures everything that is wanted.
///
/// # Errors
/// A process that does not start or answer, a fetch that fails; the system's.
pub fn measure(run: &mut Run<'_>) -> anyhow::Result<()> {
    run.effort.runs = run.args.runs.map_or(if run.args.quick { RUNS_QUICK } else { RUNS }, usize::from);
    let sizes: Vec<_> = SIZES
        .into_iter()
        .filter(|(name, bytes, _)| run.wants(name) && !(run.args.quick && *bytes > SHARED_QUICK))
        .collect();
    let (three, sources) = (run.wants("THREE"), run.wants("SOURCES"));
    run.announce(sizes.len() * 2 + if three { 2 } else { 0 } + if sources { 2 } else { 0 });
    let net = Net::start(run, NODES)?;
    let files = Files { dir: net.dir.path(), next: std::cell::Cell::new(0) };
    for (name, bytes, fetches) in sizes {
        if run.stop.is_asked() {
            return Ok(());
        }
        run.say("publishing a file");
        let fname = format!("{name}.bin");
        net.nodes[0].publish(&files.make(&fname, bytes)?, &fname, run.stop)?;
        measure_size(run, &net, &files, name, &fname, bytes, fetches)?;
    }
    if !(three || sources) || run.stop.is_asked() {
        return Ok(());
    }
    let bytes = if run.args.quick { SHARED_QUICK } else { SHARED };
    run.say("publishing a file");
    let shared = files.make("shared.bin", bytes)?;
    net.nodes[0].publish(&shared, "shared.bin", run.stop)?;
    if three {
        measure_three(run, &net, &files, bytes)?;
    }
    if sources && !run.stop.is_asked() {
        // The same content elsewhere, under a name that nobody has tracked.
        for node in &net.nodes[..NODES - 1] {
            let copy = files.path(&format!("copy-{}.bin", node.name));
            fs::copy(&shared, &copy).context("cannot copy below --out")?;
            node.publish(&copy, "sources.bin", run.stop)?;
        }
        measure_sources(run, &net, &files, bytes)?;
    }
    Ok(())
}

fn measure_size(
    run: &mut Run<'_>,
    net: &Net,
    files: &Files<'_>,
    name: &'static str,
    fname: &str,
    bytes: u64,
    fetches: u64,
) -> anyhow::Result<()> {
    let fetchers = &net.nodes[1..];
    let out = run.args.out.clone();
    let benches = vec![
        Bench::limit("copy", |length, stop| copies(&out, bytes, count(length, fetches), stop)),
        Bench::new(name, |length, stop| {
            let mut sample = Sample::new();
            let started = Instant::now();
            for nth in 0..count(length, fetches) {
                if stop.is_asked() {
                    break;
                }
                fetch(&fetchers[nth as usize % fetchers.len()], fname, bytes, files, stop, &mut sample)?;
            }
            sample.elapsed = started.elapsed();
            Ok(sample)
        })
        .on(&net.nodes[1].process),
    ];
    let required = (name == "1GB").then_some(0.4);
    run.measure(Group { clients: 1, benches, pairs: vec![Pair { result: name, limits: &["copy"], required }] })
}

/// Three at once, as a share of one alone: in bytes, three times as many.
fn measure_three(run: &mut Run<'_>, net: &Net, files: &Files<'_>, bytes: u64) -> anyhow::Result<()> {
    let at_once = |nodes: &[Node], stop: &Stop| -> anyhow::Result<Sample> {
        let mut total = Sample::new();
        let started = Instant::now();
        let samples = std::thread::scope(|scope| {
            let fetching: Vec<_> = nodes
                .iter()
                .map(|node| {
                    let path = files.fresh();
                    scope.spawn(move || {
                        let mut sample = Sample::new();
                        fetch_to(node, "shared.bin", bytes, &path, stop, &mut sample).map(|()| sample)
                    })
                })
                .collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, anyhow::Result<Sample>>| {
                thread.join().map_err(|_| anyhow::anyhow!("a fetch panicked"))?
            };
            fetching.into_iter().map(join).collect::<anyhow::Result<Vec<_>>>()
        })?;
        samples.iter().for_each(|sample| total.absorb(sample));
        total.elapsed = started.elapsed();
        Ok(total)
    };
    let benches = vec![
        Bench::limit("one alone", |_length, stop| at_once(&net.nodes[1..2], stop)),
        Bench::new("THREE", |_length, stop| at_once(&net.nodes[1..4], stop)).on(&net.nodes[0].process),
    ];
    let pair = Pair { result: "THREE", limits: &["one alone"], required: Some(0.8) };
    run.measure(Group { clients: 3, benches, pairs: vec![pair] })
}

fn measure_sources(run: &mut Run<'_>, net: &Net, files: &Files<'_>, bytes: u64) -> anyhow::Result<()> {
    let out = run.args.out.clone();
    let last = &net.nodes[NODES - 1];
    let benches = vec![
        Bench::limit("copy", |_length, stop| copies(&out, bytes, 1, stop)),
        Bench::new("SOURCES", |_length, stop| {
            let mut sample = Sample::new();
            let started = Instant::now();
            fetch(last, "sources.bin", bytes, files, stop, &mut sample)?;
            sample.elapsed = started.elapsed();
            Ok(sample)
        })
        .on(&last.process),
    ];
    run.measure(Group {
        clients: 1,
        benches,
        pairs: vec![Pair { result: "SOURCES", limits: &["copy"], required: None }],
    })
}

/// A time says nothing of how many fetches fit: so many, unless calls are counted.
fn count(length: Length, fetches: u64) -> u64 {
    match length {
        Length::Calls(calls) => calls,
        Length::Time(_) => fetches,
    }
}

fn fetch(
    node: &Node,
    fname: &str,
    bytes: u64,
    files: &Files<'_>,
    stop: &Stop,
    sample: &mut Sample,
) -> anyhow::Result<()> {
    fetch_to(node, fname, bytes, &files.fresh(), stop, sample)
}

fn fetch_to(node: &Node, fname: &str, bytes: u64, path: &Path, stop: &Stop, sample: &mut Sample) -> anyhow::Result<()> {
    let took = node.fetch(fname, path, stop)?;
    if stop.is_asked() {
        return Ok(());
    }
    let length = fs::metadata(path).with_context(|| format!("{fname} was fetched and is not there"))?.len();
    ensure!(length == bytes, "{fname} has {length} bytes instead of {bytes}");
    fs::remove_file(path)?;
    sample.answered(took);
    sample.bytes += bytes;
    Ok(())
}

/// Files below the folder that nodes may name.
struct Files<'d> {
    dir: &'d Path,
    next: std::cell::Cell<u64>,
}

impl Files<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where nothing is yet.
    fn fresh(&self) -> PathBuf {
        self.next.set(self.next.get() + 1);
        self.path(&format!("fetched-{}.bin", self.next.get()))
    }

    /// A file of so many bytes that no two pieces share.
    fn make(&self, name: &str, bytes: u64) -> anyhow::Result<PathBuf> {
        let path = self.path(name);
        let mut hasher = blake3::Hasher::new();
        hasher.update(name.as_bytes());
        let mut random = hasher.finalize_xof();
        let mut file = File::create(&path).context("cannot write below --out")?;
        let (mut left, mut chunk) = (bytes, vec![0; CHUNK_BYTES]);
        while left > 0 {
            let length = left.min(CHUNK_BYTES as u64) as usize;
            random.fill(&mut chunk[..length]);
            file.write_all(&chunk[..length])?;
            left -= length as u64;
        }
        file.sync_all()?;
        Ok(path)
    }
}

/// Bare copies, one after the other.
fn copies(out: &Path, bytes: u64, count: u64, stop: &Stop) -> anyhow::Result<Sample> {
    let dir = WorkDir::create(out)?;
    let mut sample = Sample::new();
    let started = Instant::now();
    for _ in 0..count {
        if stop.is_asked() {
            break;
        }
        let begun = Instant::now();
        let path = dir.path().join("copy.bin");
        copy(&path, bytes)?;
        sample.answered(begun.elapsed());
        sample.bytes += bytes;
        fs::remove_file(&path)?;
    }
    sample.elapsed = started.elapsed();
    watch(&[], || Ok(sample))
}

/// From memory through a socket into a file that is on disk then.
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
        let (mut chunk, mut come) = (vec![0; CHUNK_BYTES], 0);
        loop {
            let length = receiver.read(&mut chunk)?;
            if length == 0 {
                break;
            }
            file.write_all(&chunk[..length])?;
            come += length as u64;
        }
        file.sync_data()?;
        sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        ensure!(come == bytes, "{come} bytes came instead of {bytes}");
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_copy_is_whole_and_leaves_nothing() {
        let out = tempfile::tempdir().unwrap();
        let sample = copies(out.path(), 700_001, 3, &Stop::default()).unwrap();
        assert_eq!((sample.done, sample.bytes), (3, 2_100_003));
        assert_eq!(out.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn files_are_made_of_what_does_not_repeat() {
        let out = tempfile::tempdir().unwrap();
        let files = Files { dir: out.path(), next: std::cell::Cell::new(0) };
        let made = fs::read(files.make("a.bin", 3 * CHUNK_BYTES as u64 + 7).unwrap()).unwrap();
        assert_eq!(made.len(), 3 * CHUNK_BYTES + 7);
        assert_ne!(made[..1000], made[CHUNK_BYTES..][..1000]);
        assert_ne!(files.fresh(), files.fresh());
    }
}
