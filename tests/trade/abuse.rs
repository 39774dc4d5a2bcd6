//! Garbage, floods and unregistered senders: the server stays up, small and polite.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::*;

/// A small random number generator (splitmix64). A failing run prints its seed, so that it can be repeated.
struct Dice(u64);

impl Dice {
    fn fresh() -> Dice {
        let seed = match std::env::var("P2S2_TEST_SEED") {
            Ok(seed) => seed.parse().unwrap(),
            Err(_) => {
                u64::from(std::process::id()) << 20
                    | u64::from(std::time::UNIX_EPOCH.elapsed().unwrap().subsec_micros())
            }
        };
        println!("P2S2_TEST_SEED={seed}");
        Dice(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// Random bytes, or a valid message with a defect.
fn garbage(dice: &mut Dice, name: &str) -> Vec<u8> {
    if dice.below(5) == 0 {
        return (0..dice.below(600)).map(|_| dice.next() as u8).collect();
    }
    let kinds = [
        "REGISTER",
        "LOGIN",
        "LOOKING_FOR",
        "OFFER",
        "NOT_AVAILABLE",
        "ACCEPT",
        "REFUSE",
        "BUY",
        "CANCEL",
        "STATUS",
        "ACK",
        "ERROR",
        "FOUND",
        "INFORM_RES",
        "SHIPPED",
    ];
    let odd = [
        json!(null),
        json!(-1),
        json!(1e308),
        json!(u64::MAX),
        json!("\u{0}\u{202e}"),
        json!([[[]]]),
        json!({"a": {}}),
        json!(true),
        json!("x".repeat(300)),
        json!(0.1),
        json!("99999999999999999999"),
        json!(2_147_483_648_u64),
    ];
    let mut message = json!({"type": kinds[dice.below(kinds.len())], "rq": dice.below(100), "name": name,
        "ip": "127.0.0.1", "udp_port": 5000, "tcp_port": 5001, "item_name": "lamp", "description": "", "price": 5,
        "max_price": 5, "mid": dice.below(100), "token": "t"});
    let fields: Vec<String> = message.as_object().unwrap().keys().cloned().collect();
    for _ in 0..dice.below(3) {
        let field = &fields[dice.below(fields.len())];
        if dice.below(3) == 0 {
            message.as_object_mut().unwrap().remove(field);
        } else {
            message[field] = odd[dice.below(odd.len())].clone();
        }
    }
    let mut bytes = message.to_string().into_bytes();
    for _ in 0..dice.below(4) {
        let at = dice.below(bytes.len());
        match dice.below(5) {
            0 => bytes[at] = dice.next() as u8,
            1 => bytes.truncate(at + 1),
            2 => bytes.insert(at, b"{}[]\",:\\"[dice.below(8)]),
            3 => drop(bytes.remove(at)),
            _ => bytes.extend_from_within(at..),
        }
        if bytes.is_empty() {
            return bytes;
        }
    }
    bytes.truncate(60_000);
    bytes
}

fn grown_kib(server: &Server, before: u64) -> u64 {
    server.rss_kib().saturating_sub(before)
}

#[test]
fn garbage_in_datagrams_harms_nothing() {
    let server = Server::start(&["--offer-window", "100ms"]);
    let mut dice = Dice::fresh();
    let (mut eve, mut alice) = (Peer::new(&server, "eve"), Peer::new(&server, "alice"));
    let rounds = scaled(10_000) / 50;
    let mut warm = 0;
    for round in 0..2 * rounds {
        for _ in 0..25 {
            eve.send_bytes(&garbage(&mut dice, "eve"));
        }
        // Read what arrives, so that the test does not depend on the buffers of either end.
        eve.datagrams_until_fence();
        if round == rounds / 2 {
            warm = server.rss_kib();
        }
    }
    assert_eq!(alice.ask("STATUS", json!({}))["type"], "DEALS");
    // This includes what eve's valid searches may occupy (64 open, 256 ended).
    assert!(grown_kib(&server, warm) < 24 * 1024, "{} KiB more than {warm}", grown_kib(&server, warm));
    assert!(!server.log().contains("panicked"), "{}", server.log());
    assert_eq!(server.stop(), 0);
}

#[test]
fn garbage_on_connections_harms_nothing() {
    let server = Server::start(&[]);
    let mut dice = Dice::fresh();
    let mut alice = Peer::new(&server, "alice");
    let connections = scaled(10_000) / 10;
    let mut warm = 0;
    for round in 0..connections {
        let mut stream = TcpStream::connect(server.addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        for _ in 0..10 {
            let line = [garbage(&mut dice, "alice"), b"\n".to_vec()].concat();
            // The server may have closed the connection, as it does for input that is not text.
            if stream.write_all(&line).is_err() {
                break;
            }
        }
        if dice.below(2) == 0 {
            // A reset connection is as good.
            let _ = stream.shutdown(Shutdown::Write);
            let mut answers = Vec::new();
            // It is a reset if the server closed before reading everything.
            let _ = stream.read_to_end(&mut answers);
            for line in answers.split(|byte| *byte == b'\n').filter(|line| !line.is_empty() && line[0] == b'{') {
                let answer: Value = serde_json::from_slice(line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
                assert_eq!(answer["type"], "ERROR", "{answer}");
            }
        }
        if round == connections / 4 {
            warm = server.rss_kib();
        }
    }
    assert_eq!(alice.ask("STATUS", json!({}))["type"], "DEALS");
    assert!(grown_kib(&server, warm) < 24 * 1024, "{} KiB more than {warm}", grown_kib(&server, warm));
    assert!(!server.log().contains("panicked"), "{}", server.log());
    assert_eq!(server.stop(), 0);
}

fn threads(server: &Server) -> usize {
    std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap().count()
}

/// Ends the flood even if the test fails.
struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A counter from the log of the server's shutdown.
fn counter(log: &str, name: &str) -> u64 {
    let line = log.lines().rev().find_map(|line| line.split_once(&format!(" {name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {log}")).1.trim().parse().unwrap()
}

#[test]
fn a_flood_past_the_bound_is_dropped_and_counted() {
    const CLIENTS: usize = 100;
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_in(dir.path(), &[], &[("RUST_LOG", "debug")]);
    let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    let before = server.rss_kib();

    // While the disk is blocked, every request that depends on it waits: first every thread, then the queue; what
    // exceeds both is dropped.
    let held = rusqlite::Connection::open(server.state_dir().join("trade.db")).unwrap();
    held.execute_batch("BEGIN IMMEDIATE").unwrap();
    let rq = bob.fresh_rq();
    let search = bob.message("LOOKING_FOR", rq, json!({"item_name": "lamp", "description": "", "max_price": 10}));
    bob.send(&search);
    let status = bob.message("STATUS", 1, json!({"token": bob.token})).to_string();
    let is_over = AtomicBool::new(false);
    let sent = AtomicUsize::new(0);
    // More than the server can handle, while the few cores of the machine have some time left for it.
    let flood = || {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        while !is_over.load(Ordering::Relaxed) {
            for _ in 0..10 {
                socket.send_to(status.as_bytes(), server.addr).unwrap();
            }
            sent.fetch_add(10, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    std::thread::scope(|scope| {
        (0..CLIENTS).for_each(|_| drop(scope.spawn(flood)));
        let _end = EndOnDrop(&is_over);
        eventually("every thread to be in use", || (threads(&server) >= 512).then_some(()));
        // As many as the queue holds, and twice that for those that the kernel may drop.
        let full_at = sent.load(Ordering::Relaxed);
        eventually("the queue to be full", || {
            (sent.load(Ordering::Relaxed) > full_at + 3 * 16_384 + 2000).then_some(())
        });
    });
    held.execute_batch("ROLLBACK").unwrap();
    drop(held);
    assert_eq!(bob.ask_raw(&search, rq).unwrap()["type"], "SEARCHING");
    let sold = alice.offer("lamp", 9.0);
    assert_eq!(alice.push("RESERVE")["rq"], sold);

    // During a continuous flood the server still serves a complete purchase.
    is_over.store(false, Ordering::Relaxed);
    std::thread::scope(|scope| {
        (0..CLIENTS).for_each(|_| drop(scope.spawn(flood)));
        let _end = EndOnDrop(&is_over);
        settle(&mut bob, rq, &mut alice, GOOD_CARD);
        let ended = bob.ended(rq);
        assert_eq!(ended["state"], "completed");
    });
    // 512 threads and 16,384 waiting datagrams may have existed at once.
    assert!(grown_kib(&server, before) < 64 * 1024, "{} KiB more than {before}", grown_kib(&server, before));
    let code = server.stop();
    let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
    assert_eq!(code, 0, "{}", &log[log.len().saturating_sub(3000)..]);
    let [received, queued, dropped] =
        ["received", "queued", "dropped"].map(|name| counter(&log, &format!("trade_udp_{name}")));
    assert!(dropped > 0 && queued > 0 && received > dropped + queued, "{received} {queued} {dropped}");
    assert!(!log.contains("panicked"), "{log}");
}

/// A socket that is not registered.
struct Stranger {
    socket: UdpSocket,
    server: SocketAddr,
    sent: usize,
}

impl Stranger {
    fn new(server: &Server) -> Stranger {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_nonblocking(true).unwrap();
        Stranger { socket, server: server.addr, sent: 0 }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.socket.send_to(bytes, self.server).unwrap();
        self.sent += bytes.len();
    }

    /// What has arrived from this server so far. (The server of another test may still notify a peer that had this
    /// port before.)
    fn came(&self) -> Vec<Vec<u8>> {
        let mut bytes = [0; 65_536];
        let receive = || self.socket.recv_from(&mut bytes).ok().map(|(length, from)| (bytes[..length].to_vec(), from));
        std::iter::from_fn(receive).filter(|(_, from)| *from == self.server).map(|(bytes, _)| bytes).collect()
    }
}

#[test]
fn a_stranger_gets_at_most_three_times_what_it_sent() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_in(dir.path(), &[], &[("RUST_LOG", "debug")]);
    let mut bob = Peer::new(&server, "bob");
    for n in 0..40 {
        bob.look_for(&format!("item {n}"), 10.0);
    }
    let token = bob.token.clone().unwrap();
    let long = "ü".repeat(200);
    let mut messages: Vec<Vec<u8>> = [
        "", "1", "{}", "[]", "{\"rq\":1}", "{\"type\":1}", "{\"type\":\"\"}", "{\"type\":\"X\",\"rq\":1}", "\"\"",
        "{\"type\":\"STATUS\",\"rq\":1,\"name\":\"n\"}", "{\"type\":\"STATUS\",\"rq\":1,\"name\":\"bob\"}",
        "{\"type\":\"DE-REGISTER\",\"rq\":1,\"name\":\"n\"}",
        "{\"rq\":1,\"name\":\"n\",\"ip\":\"127.0.0.1\",\"tcp_port\":5000,\"udp_port\":5000,\"type\":\"LOGIN\",\"token\":\"\"}",
        "{\"rq\":1,\"name\":\"n\",\"ip\":\"10.1.2.3\",\"tcp_port\":5000,\"udp_port\":5000,\"type\":\"REGISTER\"}",
        "{\"rq\":1,\"name\":\"n\",\"ip\":\"127.0.0.1\",\"tcp_port\":1,\"udp_port\":5000,\"type\":\"REGISTER\"}",
        "{\"rq\":1,\"name\":\"bob\",\"ip\":\"127.0.0.1\",\"tcp_port\":5000,\"udp_port\":5000,\"type\":\"REGISTER\"}",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect();
    messages.push(format!("{{\"type\":\"STATUS\",\"rq\":1,\"name\":\"bob\",\"token\":\"{token}\"}}").into_bytes());
    messages.push(format!("{{\"type\":\"STATUS\",\"rq\":1,\"name\":\"{long}\"}}").into_bytes());
    messages.push(json!({"type": "LOOKING_FOR", "rq": 1, "name": "n", "item_name": long}).to_string().into_bytes());
    messages.push(vec![b'{'; 8300]);
    let mut dice = Dice::fresh();
    messages.extend((0..scaled(1000)).map(|_| garbage(&mut dice, "bob")));
    let mut strangers = Vec::new();
    for message in &messages {
        let mut stranger = Stranger::new(&server);
        stranger.send(message);
        strangers.push((stranger, message));
        if strangers.len() % 50 == 0 {
            bob.datagrams_until_fence();
        }
    }
    let mut answers = 0;
    let mut check = |strangers: &[(Stranger, &Vec<u8>)]| {
        for (stranger, message) in strangers {
            let came = stranger.came();
            let bytes: usize = came.iter().map(Vec::len).sum();
            assert!(bytes <= 3 * stranger.sent, "{bytes} for {}", String::from_utf8_lossy(message));
            for answer in &came {
                let answer: Value = serde_json::from_slice(answer).unwrap();
                assert!(answer["mid"].is_null(), "{answer}");
                answers += 1;
            }
        }
        answers
    };
    eventually("some answers", || (check(&strangers) > messages.len() / 4).then_some(()));
    assert_eq!(server.stop(), 0);
    check(&strangers);
    assert!(counter(&std::fs::read_to_string(dir.path().join("log")).unwrap(), "trade_answers_too_long") > 0);
}

#[test]
fn a_stranger_is_told_of_ten_errors_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_in(dir.path(), &[], &[("RUST_LOG", "debug")]);
    let mut stranger = Stranger::new(&server);
    let message = json!({"type": "STATUS", "rq": 1, "name": "nobody", "pad": "x".repeat(200)}).to_string();
    let begun = Instant::now();
    let mut times = Vec::new();
    let mut bob = Peer::new(&server, "bob");
    while begun.elapsed() < Duration::from_millis(2_300) {
        stranger.send(message.as_bytes());
        let now = Instant::now();
        times.extend(stranger.came().iter().map(|_| now));
        std::thread::sleep(Duration::from_millis(4));
    }
    bob.datagrams_until_fence();
    let now = Instant::now();
    times.extend(stranger.came().iter().map(|_| now));
    assert!(times.len() >= 20, "a new second brings new answers: {}", times.len());
    // No more than ten in any second, with a margin for late reads.
    for window in times.windows(11) {
        assert!(window[10] - window[0] > Duration::from_millis(800), "eleven within {:?}", window[10] - window[0]);
    }
    // Other responses and registered addresses are not limited.
    for n in 0..30 {
        assert_eq!(bob.ask_rq("CANCEL", 5000 + n, json!({"item_name": "x"}))["code"], "UNKNOWN_DEAL");
    }
    assert_eq!(server.stop(), 0);
    assert!(counter(&std::fs::read_to_string(dir.path().join("log")).unwrap(), "trade_errors_withheld") > 0);
}

#[test]
fn nothing_goes_to_who_did_not_ask() {
    let server = Server::start(&["--offer-window", "60s"]);
    // A victim elsewhere that unregistered senders and a peer try to direct the server at.
    let victim = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).unwrap();
    let port = victim.local_addr().unwrap().port();
    let mut eve = Peer::new(&server, "eve");
    let mut stranger = Peer::unregistered(server.addr, "mallory");
    let endpoint = json!({"ip": "127.0.0.2", "udp_port": port, "tcp_port": port, "token": eve.token});
    assert_eq!(stranger.ask("REGISTER", endpoint.clone())["type"], "REGISTER-DENIED");
    assert_eq!(eve.ask("REGISTER", endpoint.clone())["type"], "REGISTER-DENIED");
    assert_eq!(eve.ask("LOGIN", endpoint.clone())["type"], "LOGIN-DENIED");
    for spelled in ["::ffff:127.0.0.2", "0.0.0.0", "255.255.255.255", "224.0.0.1", "::1"] {
        let mut endpoint = endpoint.clone();
        endpoint["ip"] = json!(spelled);
        assert_eq!(eve.ask("LOGIN", endpoint.clone())["type"], "LOGIN-DENIED", "{spelled}");
    }
    let mut fields = endpoint;
    fields
        .as_object_mut()
        .unwrap()
        .extend(json!({"item_name": "x", "description": "", "max_price": 1}).as_object().unwrap().clone());
    let mut bob = Peer::new(&server, "bob");
    assert_eq!(
        bob.ask("LOOKING_FOR", json!({"item_name": "x", "description": "", "max_price": 1}))["type"],
        "SEARCHING"
    );
    assert_eq!(eve.push("SEARCH")["item_name"], "x");
    victim.set_nonblocking(true).unwrap();
    assert!(victim.recv(&mut [0; 100]).is_err());
}

#[test]
fn what_a_server_says_is_never_answered() {
    let server = Server::start(&[]);
    let mut bob = Peer::new(&server, "bob");
    for kind in [
        "ERROR",
        "ACK",
        "REGISTERED",
        "REGISTER-DENIED",
        "LOGGED-IN",
        "LOGIN-DENIED",
        "DE-REGISTERED",
        "SEARCHING",
        "OFFERED",
        "NOTED",
        "BUYING",
        "CANCELLED",
        "DEALS",
        "SEARCH",
        "NEGOTIATE",
        "RESERVE",
        "RELEASED",
        "FOUND",
        "NOT_FOUND",
        "NOT_AVAILABLE",
        "CANCEL",
    ] {
        for message in [
            json!({"type": kind, "rq": 1, "mid": 5, "name": "bob", "item_name": "x", "price": 1, "max_price": 1}),
            json!({"type": kind, "rq": "x", "mid": -5, "code": 1, "reason": []}),
        ] {
            bob.send(&message);
        }
        if kind != "NOT_AVAILABLE" && kind != "CANCEL" {
            bob.send(&json!({"type": kind}));
            bob.send(&json!({"type": kind, "rq": 1, "mid": null}));
        }
    }
    // Requests are handled in parallel, but all were begun before the last one; a little later they are done.
    bob.datagrams_until_fence();
    assert_eq!(bob.datagrams_until_fence(), [] as [Value; 0]);
    // Without `mid`, CANCEL and NOT_AVAILABLE are requests of peers.
    assert_eq!(bob.ask("CANCEL", json!({"item_name": "x"}))["code"], "UNKNOWN_DEAL");
    assert_eq!(bob.ask("NOT_AVAILABLE", json!({"item_name": "x"}))["code"], "UNKNOWN_DEAL");
}
