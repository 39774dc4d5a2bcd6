//! Silent connections, incomplete messages and floods of those at one port do not affect the others; and a last line
//! needs no line feed.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::netns::Lan;
use crate::support::{Server, eventually, program};

/// The ports of a server: name in the ready file, a request, and what the response must contain.
const PORTS: [(&str, &str, &str); 7] = [
    ("trade_tcp", "{\"type\":\"STATUS\",\"rq\":1,\"name\":\"x\"}\n", "BAD_REQUEST"),
    ("product_db", "{\"type\":\"GET_ITEMS\"}\n", "\"ERR\""),
    ("customer_db", "{\"type\":\"VALIDATE\",\"sid\":\"x\"}\n", "SESSION_EXPIRED"),
    // These two forward to the databases.
    ("seller", "{\"type\":\"GET_ITEMS\",\"sid\":\"x\"}\n", "SESSION_EXPIRED"),
    ("buyer", "{\"type\":\"GET_CART\",\"sid\":\"x\"}\n", "SESSION_EXPIRED"),
    ("registry", "{\"action\":\"PING\",\"data\":{\"hostname\":\"x\"}}\n", "DEAD"),
    ("server_api", "GET /api/health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", "200 OK"),
];
const ALL_PORTS: [&str; 16] = [
    "--services",
    "trade,shop,share",
    "--trade-port",
    "0",
    "--product-port",
    "0",
    "--customer-port",
    "0",
    "--seller-port",
    "0",
    "--buyer-port",
    "0",
    "--registry-port",
    "0",
    "--api-port",
    "0",
];
/// How long a response may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// Maps a port name to its address: the port from the ready file, at the IP address `at`.
fn addresses(ready: &str, at: IpAddr) -> impl Fn(&str) -> SocketAddr + use<> {
    let ready: Value = serde_json::from_str(ready).unwrap();
    move |port| {
        let bound: SocketAddr = ready[port].as_str().unwrap().parse().unwrap();
        SocketAddr::new(at, bound.port())
    }
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends a request and reads until the response contains `wanted`. If `last`, the sending side is shut down after it.
fn exchange(to: SocketAddr, asked: &[u8], wanted: &str, last: bool) -> String {
    let mut stream = connect(to);
    let mut answer = Vec::new();
    let sent = stream.write_all(asked);
    if last && sent.is_ok() {
        stream.shutdown(Shutdown::Write).unwrap();
    }
    let mut some = [0; 4096];
    while !String::from_utf8_lossy(&answer).contains(wanted) {
        match stream.read(&mut some) {
            Ok(length @ 1..) => answer.extend_from_slice(&some[..length]),
            _ => break,
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// A process that is killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn silence_at_one_port_shuts_no_other() {
    let Some(lan) = Lan::new(4) else { return };
    let dir = tempfile::tempdir().unwrap();
    let ready = dir.path().join("ready.json");
    let log = fs::File::create(dir.path().join("log")).unwrap();
    let mut command = program("server");
    command
        .args(["--bind", "0.0.0.0", "--insecure", "--no-announce", "--max-connections", "100"])
        .args(ALL_PORTS)
        .arg("--data-dir")
        .arg(dir.path().join("state"))
        .arg("--ready-file")
        .arg(&ready)
        .stdout(Stdio::null())
        .stderr(log);
    let mut server = Process(lan.run_in(0, command).spawn().unwrap());
    let said = eventually("the server to be ready", || {
        assert!(server.0.try_wait().unwrap().is_none(), "{:?}", fs::read_to_string(dir.path().join("log")));
        fs::read_to_string(&ready).ok()
    });
    let at = addresses(&said, lan.ip(0).into());
    flood_each(&lan, &PORTS, at, 80);
}

/// Opens connections that are silent or send half a request to each port in turn, `of_each_host` from each of two
/// hosts, while a third host sends a request to every port.
fn flood_each(lan: &Lan, ports: &[(&str, &str, &str)], at: impl Fn(&str) -> SocketAddr + Sync, of_each_host: usize) {
    let ask_all = |flooded: &str| {
        for (port, asked, wanted) in ports {
            let begun = Instant::now();
            let answer = lan.within(3, || exchange(at(port), asked.as_bytes(), wanted, false));
            assert!(answer.contains(wanted), "{port} beside {flooded}: {answer:?} after {:?}", begun.elapsed());
        }
    };
    ask_all("nothing");
    for (flooded, begun, _) in ports {
        // More connections than the limit, from two addresses that may have half of it each.
        let flood = |host: usize| {
            lan.within(host, || {
                (0..of_each_host)
                    .map(|nth| {
                        let mut stream = connect(at(flooded));
                        if nth % 2 == 0 {
                            // The server may have closed it by now.
                            let _ = stream.write_all(&begun.as_bytes()[..begun.len() / 2]);
                        }
                        stream
                    })
                    .collect::<Vec<_>>()
            })
        };
        let held = [flood(1), flood(2)];
        // The flooded port itself as well: connections that send a request are served.
        ask_all(flooded);
        drop(held);
    }
}

/// The two ports of a share node with a low limit of open files.
#[test]
fn silence_at_one_port_of_a_node_shuts_no_other() {
    const PORTS: [(&str, &str, &str); 2] = [
        ("peer", "GET nothing.txt\n", "notfound\n"),
        ("client_api", "GET /api/client/node HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", "\"ann\""),
    ];
    let Some(lan) = Lan::new(4) else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let log = fs::File::create(path("log")).unwrap();
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -n 400 && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_p2s2"), "share", "--name", "ann"])
        // There is no such server, and the node serves its ports all the same.
        .args(["--server", "127.0.0.1", "--bind", "0.0.0.0", "--api-bind", "0.0.0.0", "--insecure"])
        .args(["--port", "0", "--api-port", "0"])
        .arg("--folder")
        .arg(dir.path())
        .arg("--data-dir")
        .arg(path("state"))
        .arg("--ready-file")
        .arg(path("ready.json"))
        .env("HOME", path("home"))
        .env_remove("XDG_STATE_HOME")
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    let mut node = Process(lan.run_in(0, command).spawn().unwrap());
    let logged = || fs::read_to_string(path("log")).unwrap();
    let ready = eventually("the node to be ready", || {
        assert!(node.0.try_wait().unwrap().is_none(), "{:?}", logged());
        fs::read_to_string(path("ready.json")).ok()
    });
    let logged = logged();
    let lowered = logged.split("lowered to ").nth(1).unwrap_or_else(|| panic!("{logged}"));
    let bound: usize = lowered.split(':').next().unwrap().parse().unwrap();
    assert!((50..400).contains(&bound), "{logged}");
    flood_each(&lan, &PORTS, addresses(&ready, lan.ip(0).into()), bound * 3 / 4);
}

#[test]
fn a_last_line_needs_no_end_on_any_port_and_may_begin_with_a_byte_order_mark() {
    let server = Server::start(&ALL_PORTS);
    let ready = fs::read_to_string(server.dir.join("ready.json")).unwrap();
    let at = addresses(&ready, Ipv4Addr::LOCALHOST.into());
    for (port, asked, wanted) in PORTS.iter().filter(|(port, ..)| *port != "server_api") {
        let line = asked.trim_end();
        for before in ["", "\u{feff}", "\n", "\r\n\u{feff}"] {
            let answer = exchange(at(port), [before, line].concat().as_bytes(), wanted, true);
            assert!(answer.contains(wanted), "{port}, {before:?}: {answer:?}");
        }
    }
    assert_eq!(server.stop(), 0);
}

#[test]
fn unfinished_messages_of_all_ports_together_are_bounded() {
    const EACH_BYTES: usize = 1_000_000;
    const BOUND_KIB: u64 = 256 * 1024;
    let server = Server::start(&ALL_PORTS);
    let ready = fs::read_to_string(server.dir.join("ready.json")).unwrap();
    let at = addresses(&ready, Ipv4Addr::LOCALHOST.into());
    let before = server.rss_kib();
    let ports = ["trade_tcp", "buyer", "registry", "seller", "customer_db"];
    let unfinished = [b"{\"type\":\"", &vec![b'x'; EACH_BYTES][..]].concat();
    let (mut held, mut was_busy, begun) = (Vec::new(), false, Instant::now());
    for nth in 0..330 {
        let mut stream = connect(at(ports[nth % ports.len()]));
        // Beyond the limit the server responds BUSY and may close before everything is written.
        let _ = stream.write_all(&unfinished);
        held.push(stream);
        let used = server.rss_kib().saturating_sub(before);
        assert!(used < BOUND_KIB + 64 * 1024, "{used} KiB after {nth}");
    }
    for stream in &mut held {
        stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let mut told = [0; 200];
        let length = stream.read(&mut told).unwrap_or(0);
        was_busy |= String::from_utf8_lossy(&told[..length]).contains("BUSY");
    }
    // On a very slow machine, the first ones time out before the last ones come.
    assert!(was_busy || begun.elapsed() > Duration::from_secs(8), "the last ones were told");
    // Short requests are served meanwhile.
    for (port, asked, wanted) in PORTS {
        let answer = exchange(at(port), asked.as_bytes(), wanted, false);
        assert!(answer.contains(wanted), "{port}: {answer:?}");
    }
    drop(held);
    // The allocator may keep some of the 256 MiB, as each connection has another thread.
    eventually("the memory to be given back", || (server.rss_kib() < before + 96 * 1024).then_some(()));
    eventually("a long message to be taken again", || {
        let long = format!("{{\"type\":\"GET_CART\",\"x\":\"{}\"}}\n", "x".repeat(EACH_BYTES / 2));
        exchange(at("buyer"), long.as_bytes(), "NOT_LOGGED_IN", false).contains("NOT_LOGGED_IN").then_some(())
    });
}
