//! Speed and memory of transfers: measured with `--ignored`, in a release build, on an otherwise idle machine.
//! (`p2s2-perf transfer` measures the same for users.)

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Instant;

use super::faults::ChildProcess;
use super::world::{MIB, PeerHost, Registry, completed, fetch, pieces_of, write_large};
use crate::support::eventually;

const SIZE: u64 = 1 << 30;
const ROUNDS: usize = 5;

/// Speed from memory to socket to file, ending with fdatasync: MB/s.
fn bare(to: &Path) -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let content = super::world::bytes(MIB, 1);
    let started_at = Instant::now();
    let sender = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        for _ in 0..SIZE / MIB {
            stream.write_all(&content).unwrap();
        }
    });
    let mut stream = TcpStream::connect(at).unwrap();
    let mut file = File::create(to).unwrap();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let len = stream.read(&mut buffer).unwrap();
        if len == 0 {
            break;
        }
        file.write_all(&buffer[..len]).unwrap();
    }
    file.sync_data().unwrap();
    let took = started_at.elapsed();
    sender.join().unwrap();
    fs::remove_file(to).unwrap();
    SIZE as f64 / 1e6 / took.as_secs_f64()
}

/// Total speed of simultaneous fetches of the same file: MB/s.
fn fetched(dir: &Path, at_once: usize) -> f64 {
    let source = dir.join("source");
    let (host, shown) = PeerHost::with_file("ann", &source);
    let started_at = Instant::now();
    let fetches: Vec<_> = (0..at_once)
        .map(|i| {
            let to = dir.join(format!("to {i}"));
            fs::create_dir_all(&to).unwrap();
            fetch(&to.join("here"), &shown, &Registry::of(&[&shown]))
        })
        .collect();
    fetches.iter().for_each(|fetch| drop(completed(fetch)));
    let took = started_at.elapsed();
    drop((fetches, host));
    for i in 0..at_once {
        fs::remove_dir_all(dir.join(format!("to {i}"))).unwrap();
    }
    (SIZE * at_once as u64) as f64 / 1e6 / took.as_secs_f64()
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

#[test]
#[ignore = "a measurement: needs a release build and a quiet machine"]
fn a_gigabyte_against_a_bare_copy() {
    let dir = tempfile::tempdir().unwrap();
    write_large(&dir.path().join("source"), SIZE);
    let (mut shares, mut together) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let bare = bare(&dir.path().join("bare"));
        let one = fetched(dir.path(), 1);
        let three = fetched(dir.path(), 3);
        eprintln!(
            "round {round}: bare {bare:.0} MB/s; one {one:.0} MB/s, {:.2} of it; three {three:.0} MB/s, {:.2} of one",
            one / bare,
            three / one
        );
        shares.push(one / bare);
        together.push(three / one);
    }
    let (share, together) = (median(shares), median(together));
    eprintln!("medians: {share:.2} of bare; three together {together:.2} of one");
    assert!(share >= 0.4 && together >= 0.8);
}

fn status_kib(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn sender_and_receiver_need_little_memory() {
    let size = crate::support::scaled(1000) as u64 * MIB;
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    write_large(&source, size);
    let (mut sender, at) = ChildProcess::sender(&source, dir.path());
    let idle_kib = status_kib(sender.pid(), "VmRSS");
    // The base line is a process that fetches a small file.
    let small = dir.path().join("small");
    write_large(&small, 1000);
    let peak_of = |at: &str, source: &Path, name: &str| {
        let mut receiver = ChildProcess::start("receiver", source, at, &dir.path().join(name));
        let mut peak = 0;
        eventually("the fetch to end", || {
            // Its status cannot be read once it has ended.
            let status = fs::read_to_string(format!("/proc/{}/status", receiver.pid())).unwrap_or_default();
            let line = status.lines().find(|line| line.starts_with("VmHWM"));
            let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
            peak = peak.max(kib.unwrap_or(0));
            receiver.has_ended().then_some(())
        });
        peak
    };
    let receiver_kib = peak_of(&at.to_string(), &source, "here");
    assert_eq!(pieces_of(&dir.path().join("here")).blake3(), pieces_of(&source).blake3());
    let sender_kib = status_kib(sender.pid(), "VmHWM");
    assert!(!sender.has_ended());
    let (other, at) = ChildProcess::sender(&small, dir.path());
    let receiver_idle_kib = peak_of(&at.to_string(), &small, "here too");
    drop(other);
    eprintln!("sender {idle_kib} KiB idle, {sender_kib} at most; receiver {receiver_idle_kib} and {receiver_kib}");
    assert!(sender_kib < idle_kib + 32 * 1024 && receiver_kib < receiver_idle_kib + 32 * 1024);
}
