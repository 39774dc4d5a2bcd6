//! Fetches from several hosts at once.

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use p2s2::internals::model::Name;
use p2s2::internals::share::transfer::FetchStatus;
use p2s2::internals::share::transfer::plan::HOSTS_MAX;
use p2s2::internals::share::wire::HostEntry;

use super::proxy::Proxy;
use super::world::{MIB, PeerHost, Registry, bytes, completed, fetch, get_only, pieces_of, wait_until};
use crate::support::{PATIENCE, eventually, scaled};

#[test]
fn hosts_with_the_same_content_send_at_once_and_a_dead_one_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let content = bytes(48 * MIB, 3);
    fs::write(&source, &content).unwrap();
    let mut shown = Vec::new();
    let hosts: Vec<(PeerHost, Proxy)> = ["ann", "ben", "cat"]
        .iter()
        .map(|name| {
            let (host, mut entry) = PeerHost::with_file(name, &source);
            let proxy = Proxy::before(host.addr());
            proxy.set_bytes_per_s(30 * MIB);
            entry.port = proxy.addr().port();
            shown.push(entry);
            (host, proxy)
        })
        .collect();
    let registry = Registry::of(&[&shown[0], &shown[1], &shown[2]]);
    let fetch = fetch(&dir.path().join("here"), &shown[0], &registry);
    wait_until(&fetch, "all to send", |progress| progress.sources.len() == 3 && progress.downloaded_size > 8 * MIB);
    hosts[1].1.set_target(None);
    hosts[1].1.cut();
    completed(&fetch);
    assert!(fs::read(dir.path().join("here")).unwrap() == content);
    assert!(hosts.iter().all(|(_, proxy)| proxy.passed() > MIB));
    let in_all: u64 = hosts.iter().map(|(_, proxy)| proxy.passed()).sum();
    assert!(in_all < 48 * MIB * 11 / 10 + 4 * MIB, "{in_all}");
}

#[test]
fn other_content_under_the_same_name_is_never_mixed_in() {
    let dir = tempfile::tempdir().unwrap();
    let (source, other) = (dir.path().join("source"), dir.path().join("other"));
    fs::write(&source, bytes(4 * MIB, 3)).unwrap();
    fs::write(&other, bytes(4 * MIB, 4)).unwrap();
    let (_ann, same) = PeerHost::with_file("ann", &source);
    let (ben, differs) = PeerHost::with_file("ben", &other);
    let fetch = fetch(&dir.path().join("here"), &same, &Registry::of(&[&differs, &same]));
    completed(&fetch);
    assert!(fs::read(dir.path().join("here")).unwrap() == bytes(4 * MIB, 3));
    assert_eq!((ben.counter("ranges"), ben.counter("metas"), ben.counter("gets")), (0, 0, 0));
}

#[test]
fn a_host_that_knows_only_get_goes_on_where_the_others_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let content = bytes(8 * MIB, 3);
    fs::write(&source, &content).unwrap();
    let (ann, mut first) = PeerHost::with_file("ann", &source);
    let proxy = Proxy::before(ann.addr());
    proxy.set_bytes_per_s(16 * MIB);
    first.port = proxy.addr().port();
    let (ben, second) = PeerHost::with_file("ben", &source);
    let second = get_only(&second, true);
    let registry = Registry::of(&[&second, &first]);
    let fetch = fetch(&dir.path().join("here"), &first, &registry);
    wait_until(&fetch, "something", |progress| progress.downloaded_size > 3 * MIB);
    proxy.set_target(None);
    proxy.cut();
    assert!(completed(&fetch).verified);
    assert!(fs::read(dir.path().join("here")).unwrap() == content);
    assert_eq!((ben.counter("gets"), ben.counter("ranges")), (1, 0));
}

/// Fetches the same file from one source, then from it and another with a tenth of its speed; returns both durations.
fn with_and_without_a_slow_one(size: u64, bytes_per_s: u64) -> (Duration, Duration) {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    super::world::write_large(&source, size);
    let (fast_host, mut fast) = PeerHost::with_file("fast", &source);
    let (slow_host, mut slow) = PeerHost::with_file("slow", &source);
    let (fast_proxy, slow_proxy) = (Proxy::before(fast_host.addr()), Proxy::before(slow_host.addr()));
    fast_proxy.set_bytes_per_s(bytes_per_s);
    slow_proxy.set_bytes_per_s(bytes_per_s / 10);
    (fast.port, slow.port) = (fast_proxy.addr().port(), slow_proxy.addr().port());
    let time = |name: &str, registry: &std::sync::Arc<Registry>| {
        let started_at = Instant::now();
        let fetch = fetch(&dir.path().join(name), &fast, registry);
        completed(&fetch);
        started_at.elapsed()
    };
    let alone = time("alone", &Registry::of(&[&fast]));
    let both = time("both", &Registry::of(&[&slow, &fast]));
    let same = pieces_of(&dir.path().join("both")).blake3() == pieces_of(&source).blake3();
    assert!(same && slow_proxy.passed() > 0);
    eprintln!(
        "alone {alone:.2?}, with a slow one {both:.2?}: {:.2}; {} KiB of it from the slow one, {} KiB for nothing",
        both.as_secs_f64() / alone.as_secs_f64(),
        slow_proxy.passed() / 1024,
        (fast_proxy.passed() + slow_proxy.passed()).saturating_sub(2 * size) / 1024
    );
    (alone, both)
}

#[test]
fn a_slow_second_source_does_not_hold_the_fast_one_up() {
    // Other load on the machine can spoil a ratio, but hardly three in a row.
    let holds = |(alone, both): (Duration, Duration)| both.as_secs_f64() <= 1.3 * alone.as_secs_f64();
    let size = scaled(400) as u64 * MIB;
    assert!((0..3).any(|_| holds(with_and_without_a_slow_one(size, 40 * MIB))));
}

#[test]
fn a_source_that_hangs_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let content = bytes(24 * MIB, 3);
    fs::write(&source, &content).unwrap();
    let (ann, mut first) = PeerHost::with_file("ann", &source);
    let proxy = Proxy::before(ann.addr());
    proxy.set_bytes_per_s(20 * MIB);
    first.port = proxy.addr().port();
    let (ben, mut second) = PeerHost::with_file("ben", &source);
    let steady = Proxy::before(ben.addr());
    steady.set_bytes_per_s(20 * MIB);
    second.port = steady.addr().port();
    let fetch = fetch(&dir.path().join("here"), &first, &Registry::of(&[&first, &second]));
    wait_until(&fetch, "both to send", |progress| progress.sources.len() == 2 && progress.downloaded_size > 6 * MIB);
    // Next to nothing arrives, but the connection stays.
    proxy.set_bytes_per_s(1);
    let started_at = Instant::now();
    completed(&fetch);
    assert!(started_at.elapsed() < PATIENCE / 2, "{:?}", started_at.elapsed());
    assert!(fs::read(dir.path().join("here")).unwrap() == content);
    assert_eq!(fetch.progress().status, FetchStatus::Completed);
    eventually("nothing to run", || (ben.server.active_transfers() == 0).then_some(()));
}

#[test]
fn of_more_hosts_than_can_be_known_those_that_do_not_answer_give_way() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::write(&source, bytes(MIB, 3)).unwrap();
    let (_host, good) = PeerHost::with_file("zoe", &source);
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // More hosts than a fetch remembers.
    let mut shown: Vec<HostEntry> = (0..HOSTS_MAX + 10)
        .map(|n| HostEntry { hostname: Name::new(&format!("host-{n}")).unwrap(), port: nobody.port(), ..good.clone() })
        .collect();
    shown.push(good);
    let registry = Registry::of(&shown.iter().collect::<Vec<_>>());
    let fetch = fetch(&dir.path().join("here"), &shown[0], &registry);
    assert!(completed(&fetch).verified);
}
