//! Interruptions at random points: sender killed, receiver killed, connection cut, a byte changed in transit. Sender
//! and receiver are processes of their own, ended by SIGKILL.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use p2s2::internals::share::transfer::{Fetch, FetchStatus};

use super::proxy::Proxy;
use super::world::{MIB, NAME, PeerHost, Registry, context, entry, fetch, interrupted, pieces_of, spec, write_large};
use crate::rng::{Rng, Seed};
use crate::support::{eventually, scaled};

const ROLE: &str = "P2S2_TEST_TRANSFER_ROLE";
const SOURCE: &str = "P2S2_TEST_TRANSFER_SOURCE";
const AT: &str = "P2S2_TEST_TRANSFER_AT";
const TO: &str = "P2S2_TEST_TRANSFER_TO";

/// This test program as another process with a role; killed when dropped.
pub struct ChildProcess(Child);

impl ChildProcess {
    pub fn start(role: &str, source: &Path, at: &str, to: &Path) -> ChildProcess {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["transfer::faults::in_a_role", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env(SOURCE, source)
            .env(AT, at)
            .env(TO, to)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        ChildProcess(child)
    }

    /// Starts a sender; returns its address, too.
    pub fn sender(source: &Path, dir: &Path) -> (ChildProcess, SocketAddr) {
        let ready = dir.join("ready");
        let _ = fs::remove_file(&ready);
        let actor = ChildProcess::start("sender", source, "", &ready);
        let at = eventually("the sender to be ready", || fs::read_to_string(&ready).ok()?.parse().ok());
        (actor, at)
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Whether it has ended; asserts that it succeeded then.
    pub fn has_ended(&mut self) -> bool {
        let ended = self.0.try_wait().unwrap();
        assert!(ended.is_none_or(|status| status.success()), "{ended:?}");
        ended.is_some()
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "started by other tests, as a process of its own"]
fn in_a_role() {
    let path = |name| std::path::PathBuf::from(std::env::var_os(name).unwrap());
    let (source, to) = (path(SOURCE), path(TO));
    let at = std::env::var(AT).unwrap();
    match std::env::var(ROLE).unwrap().as_str() {
        "sender" => {
            let host = PeerHost::start();
            host.files.publish(NAME, &source, true);
            let unfinished = to.with_extension("new");
            fs::write(&unfinished, host.addr().to_string()).unwrap();
            fs::rename(unfinished, to).unwrap();
            loop {
                std::thread::park();
            }
        }
        "receiver" => {
            // The source file is only used for the registry's entry.
            let dir = to.parent().unwrap();
            let shown = entry("ann", at.parse().unwrap(), &source, Some(&pieces_of(&source)));
            let registry = Registry::of(&[&shown]);
            let fetch = match interrupted(dir) {
                Some(spec) => Fetch::start(spec, registry, Arc::new(|_| {}), context()).unwrap(),
                None if to.exists() => return,
                None => fetch(&to, &shown, &registry),
            };
            let progress = fetch.wait();
            assert_eq!((progress.status, progress.verified), (FetchStatus::Completed, true), "{progress:?}");
            assert!(fetch.stop(Duration::from_secs(10)));
        }
        role => panic!("{role}"),
    }
}

#[test]
fn interruptions_at_random_points_cost_little_and_spoil_nothing() {
    // The cost of an interruption does not depend on the file's size, so the size grows with their number.
    let a_fetch = scaled(20).min(5);
    let size = 64 * MIB * a_fetch as u64;
    let seed = Seed::of_this_run();
    let mut rng = Rng::new(seed.0);
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    write_large(&source, size);
    let content = pieces_of(&source).blake3();
    let (mut passed, mut fetches) = (0, 0);
    for _ in 0..scaled(50).div_ceil(a_fetch) {
        let dir = tempfile::tempdir_in(dir.path()).unwrap();
        let to = dir.path().join("here");
        let (mut sender, at) = ChildProcess::sender(&source, dir.path());
        let proxy = Proxy::before(at);
        proxy.set_bytes_per_s(100 * MIB);
        let proxy_at = proxy.addr().to_string();
        let mut receiver = ChildProcess::start("receiver", &source, &proxy_at, &to);
        let mut points: Vec<u64> = (0..a_fetch).map(|_| rng.below(size / 10 * 9)).collect();
        points.sort_unstable();
        let mut what = Vec::new();
        for point in points {
            let is_whole = eventually("bytes to come", || {
                if receiver.has_ended() {
                    return Some(true);
                }
                (proxy.passed() >= point).then_some(false)
            });
            if is_whole {
                break;
            }
            match rng.below(4) {
                0 => {
                    what.push("sender killed");
                    proxy.set_target(None);
                    drop(sender);
                    let (again, at) = ChildProcess::sender(&source, dir.path());
                    sender = again;
                    proxy.set_target(Some(at));
                }
                1 => {
                    what.push("receiver killed");
                    drop(receiver);
                    receiver = ChildProcess::start("receiver", &source, &proxy_at, &to);
                }
                2 => {
                    what.push("cut");
                    proxy.cut();
                }
                _ => {
                    what.push("a byte changed");
                    proxy.flip_a_byte();
                }
            }
        }
        eventually("the fetch to end", || receiver.has_ended().then_some(()));
        assert_eq!(pieces_of(&to).blake3(), content, "{what:?}");
        assert_eq!(interrupted(dir.path()), None);
        let extra = proxy.passed() as f64 / size as f64;
        eprintln!("{extra:.3} of the size after {what:?}");
        passed += proxy.passed();
        fetches += 1;
        drop(sender);
    }
    assert!(passed as f64 <= 1.1 * (size * fetches) as f64, "{passed} bytes for {fetches} times {size}");
}

#[test]
fn what_was_good_before_a_kill_is_not_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    write_large(&source, 24 * MIB);
    let (host, mut shown) = PeerHost::with_file("ann", &source);
    let proxy = Proxy::before(host.addr());
    proxy.set_bytes_per_s(20 * MIB);
    shown.port = proxy.addr().port();
    let to = dir.path().join("here");
    let receiver = ChildProcess::start("receiver", &source, &proxy.addr().to_string(), &to);
    eventually("half of it", || (proxy.passed() > 12 * MIB).then_some(()));
    drop(receiver);
    let before = proxy.passed();
    // Synced pieces are not read again.
    let registry = Registry::of(&[&shown]);
    let left = interrupted(dir.path()).unwrap();
    assert_eq!(left, spec("f1", &to, &shown));
    let fetch = Fetch::start(left.clone(), registry, Arc::new(|_| {}), context()).unwrap();
    let had = fetch.progress().downloaded_size;
    assert!(had >= 8 * MIB, "{had} of {before} were good");
    let progress = super::world::completed(&fetch);
    assert!(progress.received_bytes <= 24 * MIB - had + MIB / 2, "{progress:?}, {had} before");
    assert_eq!(pieces_of(&to), pieces_of(&source));
}
