//! The registry under load: very many clients, very long lists, clients that do not read, and clients that fill it up.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use p2s2::internals::share::client::RegistryClient;
use p2s2::internals::share::wire::{FileMap, FileName, RegisterRequest};
use serde_json::{Map, Value, json};

use crate::registry_harness::*;
use crate::registry_process::Process;

/// Registers hosts with this many files in total, on connections that are closed again.
fn fill(addr: std::net::SocketAddr, files: usize) {
    const EACH: usize = 1000;
    for number in 0..files.div_ceil(EACH) {
        let list: Map<String, Value> =
            (0..EACH).map(|n| (format!("file-{number}-{n}"), file(n as u64, true))).collect();
        Client::connect(addr).register(&format!("host-{number:05}"), json!({"files_metadata": list}));
    }
}

#[test]
fn a_reader_that_stops_holds_nothing() {
    let registry = Registry::start(RegistryOptions::default());
    fill(registry.addr, scaled(200_000));
    let mut ann = registry.client();
    ann.register("ann", json!({}));
    // Each requests more than all buffers hold, and reads nothing.
    let stopped: Vec<Client> = (0..4)
        .map(|_| {
            let mut client = registry.client();
            (0..50).for_each(|_| client.send("{\"action\":\"LIST\"}"));
            client
        })
        .collect();
    let mut begun = [0; 1];
    stopped.iter().for_each(|client| assert_eq!(client.stream().peek(&mut begun).unwrap(), 1));
    // Meanwhile reads and changes continue.
    for number in 0..100 {
        assert!(ann.is_alive("host-00000"));
        ann.publish("ann", &format!("f{number}"), 1);
    }
    assert_eq!(ann.hosts("f99"), ["ann"]);
    let page = ann.expect("LIST", json!({"offset": 1, "limit": 5}), "OK");
    assert_eq!(page["registry"].as_object().unwrap().len(), 5);
    // A client that reads in the end gets everything.
    let mut one = stopped.into_iter().next().unwrap();
    let all = one.receive().unwrap();
    assert_eq!(all["registry"]["host-00003"]["files"].as_object().unwrap().len(), 1000);
}

#[test]
fn what_is_received_and_not_handled_is_bounded() {
    let registry = Registry::start(RegistryOptions { received: 1 << 20, ..RegistryOptions::default() });
    let mut slow = registry.client();
    slow.stream().write_all(&vec![b' '; 700 << 10]).unwrap();
    eventually("it to be received", || (registry.budget.used_bytes() >= 600 << 10).then_some(()));
    let mut other = registry.client();
    other.stream().write_all(&vec![b' '; 500 << 10]).unwrap();
    let answer = other.receive().unwrap();
    assert_eq!(answer["status"], "ERROR");
    assert!(answer["reason"].as_str().unwrap().starts_with("BUSY: "), "{answer}");
    assert!(other.is_closed_in_the_end());
    // Short requests continue to work, and those that were begun are accepted in the end.
    registry.client().expect("LIST", json!({}), "OK");
    slow.send("{\"action\":\"LIST\"}");
    assert_eq!(slow.receive().unwrap()["status"], "OK");
    slow.send("{\"action\":\"LIST\"}");
    assert_eq!(slow.receive().unwrap()["status"], "OK");
    // A refused request leaves nothing behind once its connection is closed.
    eventually("all to be given back", || (registry.budget.used_bytes() == 0).then_some(()));
}

#[test]
fn past_the_bound_of_connections_it_says_busy() {
    let registry = Registry::start(RegistryOptions { connections: 4, ..RegistryOptions::default() });
    let host = |number: u32| {
        let mut host = registry.client();
        host.register(&format!("h{number}"), json!({}));
        host
    };
    let mut held = vec![host(0), host(1)];
    let mut stranger = registry.client();
    stranger.expect("LIST", json!({}), "OK");
    held.push(host(2));
    let fourth = std::cell::RefCell::new(None);
    eventually("its place to be taken", || {
        let mut client = registry.client();
        client.send("{\"action\":\"REGISTER\",\"data\":{\"hostname\":\"h3\",\"port\":6001}}");
        let is_in = client.receive()?["status"] == "OK";
        is_in.then(|| fourth.replace(Some(client))).map(drop)
    });
    held.extend(fourth.into_inner());
    // Unregistered connections were closed to make room for others.
    assert!(stranger.is_closed_in_the_end());
    assert_eq!(registry.counter("newcomers_closed"), 1);
    let mut fifth = registry.client();
    let answer = fifth.receive().unwrap();
    assert_eq!(answer["status"], "ERROR");
    assert!(answer["reason"].as_str().unwrap().starts_with("BUSY: "), "{answer}");
    assert!(fifth.is_closed_in_the_end());
    drop(held.pop());
    eventually("a place", || {
        let mut client = registry.client();
        client.send("{\"action\":\"LIST\"}");
        (client.receive()?["status"] == "OK").then_some(())
    });
    assert!(held[0].is_alive("h0"));
}

fn percentile(mut times: Vec<Duration>, of_100: usize) -> Duration {
    times.sort();
    times[(times.len() * of_100 / 100).min(times.len() - 1)]
}

/// Sends PINGs at an even rate over all clients; returns how long each took.
fn ping_paced(clients: &mut [(String, Client)], per_s: u32, count: u32) -> Vec<Duration> {
    let threads = 4;
    let begun = Instant::now() + Duration::from_millis(10);
    let chunk = clients.len().div_ceil(threads);
    std::thread::scope(|scope| {
        let workers: Vec<_> = clients
            .chunks_mut(chunk)
            .enumerate()
            .map(|(worker, clients)| {
                scope.spawn(move || {
                    let mut times = Vec::new();
                    for n in (worker as u32..count).step_by(threads) {
                        let due = begun + Duration::from_secs(1) * n / per_s;
                        std::thread::sleep(due.saturating_duration_since(Instant::now()));
                        let at = (n as usize / threads) % clients.len();
                        let (name, client) = &mut clients[at];
                        let sent = Instant::now();
                        assert!(client.is_alive(name));
                        times.push(sent.elapsed());
                    }
                    times
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

#[test]
fn ten_thousand_hosts_at_once() {
    p2s2::internals::net::limits::raise_open_files().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(dir.path());
    let count = scaled(10_000);
    let mut clients: Vec<(String, Client)> = Vec::new();
    let threads = 50;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                let addr = process.addr;
                scope.spawn(move || {
                    (worker..count)
                        .step_by(threads)
                        .map(|number| {
                            let name = format!("h{number}");
                            let mut client = Client::connect(addr);
                            client.register(&name, json!({"files_metadata": {"f": file(1, true)}}));
                            client.publish(&name, "g", 2);
                            (name, client)
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        clients.extend(workers.into_iter().flat_map(|worker| worker.join().unwrap()));
    });
    assert_eq!(clients.len(), count);
    let listed = clients[0].1.expect("LIST", json!({"limit": 1}), "OK");
    assert_eq!(listed["total"], count, "every one of them is registered");
    assert_eq!(clients[0].1.hosts("f").len(), count);
    let rss_mb = process.rss_mb();
    // Other load on the machine may spoil one measurement, but not three.
    let is_even = (0..3).any(|_| {
        let few = percentile(ping_paced(&mut clients[..count.min(100)], 2000, 4000), 99);
        let many = percentile(ping_paced(&mut clients, 2000, 4000), 99);
        println!("{count} hosts: {rss_mb} MB, PING p99 over 100 connections {few:?}, over all {many:?}");
        many <= few * 5
    });
    // The requirement is for the release build.
    assert!(is_even || cfg!(debug_assertions));
    // Without optimization, stack frames are several times as large.
    let allowed_mb = if cfg!(debug_assertions) { 100 + count as u64 * 60 / 1000 } else { 300 };
    assert!(rss_mb < allowed_mb, "{rss_mb} MB");
}

/// The 99th percentile of PINGs while one client reads pages of a long list 50 times a second.
#[test]
fn a_long_list_that_is_read_does_not_hold_pings_up() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(dir.path());
    fill(process.addr, scaled(100_000));
    let mut clients: Vec<(String, Client)> = (0..100)
        .map(|number| {
            let (name, mut client) = (format!("p{number}"), Client::connect(process.addr));
            client.register(&name, json!({}));
            (name, client)
        })
        .collect();
    let without = percentile(ping_paced(&mut clients, 2000, 4000), 99);
    let (is_over, pages) = (AtomicBool::new(false), AtomicU64::new(0));
    let with = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut reader = Client::connect(process.addr);
            let hosts = scaled(100_000) / 1000;
            let begun = Instant::now();
            for n in 0.. {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::sleep((begun + Duration::from_millis(20) * n).saturating_duration_since(Instant::now()));
                reader.send(&json!({"action": "LIST", "data": {"offset": n as usize % hosts, "limit": 1}}).to_string());
                let mut last = [0];
                // Read without parsing, so as not to measure the reader's own work.
                while last != *b"\n" {
                    let mut part = [0; 65536];
                    let len = reader.stream().read(&mut part).unwrap();
                    last = [part[len - 1]];
                }
                pages.fetch_add(1, Ordering::Relaxed);
            }
        });
        let times = ping_paced(&mut clients, 2000, 4000);
        is_over.store(true, Ordering::Relaxed);
        times
    });
    let with = percentile(with, 99);
    let pages = pages.into_inner();
    println!("PING p99 {without:?} alone, {with:?} while {pages} pages of 1000 files were read");
    // The requirement is for the release build on a dedicated machine; a lock that is held too long shows here too.
    assert!(with <= (without * 5).max(Duration::from_millis(if cfg!(debug_assertions) { 50 } else { 5 })));
}

#[test]
fn killed_again_and_again_it_keeps_what_it_has_answered() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path());
    let mut acknowledged: Vec<(usize, String)> = Vec::new();
    let mut secrets: Vec<Option<String>> = vec![None; 4];
    for round in 0..scaled(50) {
        let (addr, is_over) = (process.addr, AtomicBool::new(false));
        let (results, killed) = std::thread::scope(|scope| {
            let workers: Vec<_> = secrets
                .iter()
                .cloned()
                .enumerate()
                .map(|(worker, secret)| {
                    let is_over = &is_over;
                    scope.spawn(move || {
                        let mut taken = Vec::new();
                        let secret = publish_until_the_end(addr, worker, round, secret, &mut taken, is_over);
                        (secret, taken)
                    })
                })
                .collect();
            // At a different moment each time.
            std::thread::sleep(Duration::from_millis(30 + (round as u64 * 37) % 170));
            let killed = process.kill();
            is_over.store(true, Ordering::Relaxed);
            (workers.into_iter().map(|worker| worker.join().unwrap()).collect::<Vec<_>>(), killed)
        });
        for (worker, (secret, taken)) in results.into_iter().enumerate() {
            secrets[worker] = secret.or(secrets[worker].take());
            acknowledged.extend(taken.into_iter().map(|fname| (worker, fname)));
        }
        process = Process::start(&killed);
        // Without any client doing anything.
        let mut looks = Client::connect(process.addr);
        for (worker, fname) in acknowledged.iter().rev().take(200) {
            assert_eq!(looks.hosts(fname), [format!("worker-{worker}")], "{fname} in round {round}");
        }
    }
    assert!(acknowledged.len() >= scaled(50), "{} were acknowledged", acknowledged.len());
    let mut looks = Client::connect(process.addr);
    for (worker, fname) in &acknowledged {
        assert_eq!(looks.hosts(fname), [format!("worker-{worker}")]);
    }
}

/// Resumes with its secret and publishes file after file; returns the secret, if one was issued.
fn publish_until_the_end(
    addr: std::net::SocketAddr,
    worker: usize,
    round: usize,
    secret: Option<String>,
    taken: &mut Vec<String>,
    is_over: &AtomicBool,
) -> Option<String> {
    let client = RegistryClient::connect(addr, None, PATIENCE).ok()?;
    let hostname = p2s2::internals::model::Name::new(&format!("worker-{worker}")).unwrap();
    let register = RegisterRequest {
        hostname: hostname.clone(),
        port: 6001,
        ip: None,
        display_name: None,
        files: secret.is_none().then(FileMap::new),
        token: None,
        resume: secret.map(p2s2::internals::model::Token::from_text),
    };
    let secret = client.register(&register).ok()?;
    for n in 0.. {
        let text = format!("{worker}-{round}-{n}");
        let fname = FileName::new(&text).unwrap();
        let entry = serde_json::from_value(json!({"size": n, "modified": 1, "is_published": true})).unwrap();
        if is_over.load(Ordering::Relaxed) || client.publish(&hostname, &fname, &entry).is_err() {
            break;
        }
        taken.push(text);
    }
    Some(secret)
}

#[test]
fn a_power_cut_of_the_process_alone_loses_nothing_of_a_list() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(dir.path());
    fill(process.addr, 5000);
    let process = process.kill_and_restart();
    let mut looks = Client::connect(process.addr);
    let list = looks.expect("LIST", json!({}), "OK");
    assert_eq!(list["total"], 5);
    let hosts = list["registry"].as_object().unwrap();
    assert!(hosts.values().all(|host| host["files"].as_object().unwrap().len() == 1000));
    assert!(Path::new(dir.path()).join("registry.db").is_file());
}
