//! Shared by black-box tests: a server process, peers on bare sockets, waiting for conditions.
//!
//! The peers know only the wire format: JSON in, JSON out.
#![allow(dead_code, reason = "each test target uses its part")]

use std::collections::{HashSet, VecDeque};
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use p2s2::internals::net::conn::{Conn, ConnReader, ConnWriter};
use p2s2::internals::net::lines::{LineLimits, LineReader};
use serde_json::{Value, json};

/// Timeout of anything that works, also on a slow and shared machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A card that is accepted, and one that is declined.
pub const GOOD_CARD: &str = "4111111111111111";
pub const DECLINED_CARD: &str = "4000000000000002";

/// The number of repetitions of long tests: all of them with `P2S2_TEST_SCALE=full`, else a tenth.
pub fn scaled(full: usize) -> usize {
    if std::env::var("P2S2_TEST_SCALE").is_ok_and(|scale| scale == "full") { full } else { (full / 10).max(1) }
}

/// Polls until `check` returns a value; fails the test after a timeout.
#[track_caller]
pub fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Builds an example of this package as this test program was built, and returns the folder of examples.
///
/// This program is `target/PROFILE/deps/NAME-…`, an example `target/PROFILE/examples/NAME`. Cargo builds examples with
/// all tests, but not if one target alone was requested, so it is built here.
pub fn build_example(name: &str) -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let profile = program.parent().and_then(Path::parent).unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    // The feature that this test was built with: so the crate itself is there already.
    cargo.args(["build", "--quiet", "--offline", "--features", "internals", "--example", name, "--manifest-path"]);
    cargo.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
    cargo.arg("--target-dir").arg(profile.parent().unwrap());
    if profile.file_name().is_some_and(|name| name == "release") {
        cargo.arg("--release");
    }
    // Variables that cargo set for this test are removed: build scripts that read them (ring's) would run again,
    // and everything that depends on them would be rebuilt, here and in the next ordinary build.
    for (name, _) in std::env::vars_os() {
        let told = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
        if told.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            cargo.env_remove(name);
        }
    }
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    profile.join("examples")
}

/// A `p2s2 server` process, killed with SIGKILL when dropped.
pub struct Server {
    child: Child,
    pub dir: PathBuf,
    pub addr: SocketAddr,
    args: Vec<String>,
    _temporary: Option<Arc<tempfile::TempDir>>,
}

impl Server {
    /// Starts a server with a new data dir and free ports.
    pub fn start(args: &[&str]) -> Server {
        let temporary = Arc::new(tempfile::tempdir().unwrap());
        let mut server = Server::start_in(temporary.path(), args, &[]);
        server._temporary = Some(temporary);
        server
    }

    /// Starts a server with the data dir `dir/state` and additional environment variables.
    pub fn start_in(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Server {
        let ready = dir.join("ready.json");
        match fs::remove_file(&ready) {
            Err(error) if error.kind() != ErrorKind::NotFound => panic!("{error}"),
            _ => {}
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).unwrap();
        let mut child = program("server")
            .args(args)
            .args(if args.contains(&"--trade-port") { &[][..] } else { &["--trade-port", "0"] })
            .arg("--data-dir")
            .arg(dir.join("state"))
            .arg("--ready-file")
            .arg(&ready)
            .envs(env.iter().copied())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let addr = eventually("the server to be ready", || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the server ended with {status}: {}", fs::read_to_string(dir.join("log")).unwrap());
            }
            let ready: Value = serde_json::from_str(&fs::read_to_string(&ready).ok()?).unwrap();
            // Without the trade service, the address of the HTTP port.
            let addr = ready["trade_udp"].as_str().or(ready["server_api"].as_str()).unwrap();
            Some(addr.parse().unwrap())
        });
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Server { child, dir: dir.to_owned(), addr, args, _temporary: None }
    }

    /// Kills the server with SIGKILL and starts it again on the same data and port.
    pub fn kill_and_restart(self) -> Server {
        let (dir, port, temporary) = (self.dir.clone(), self.addr.port().to_string(), self._temporary.clone());
        let mut args = self.args.clone();
        drop(self);
        if !args.iter().any(|arg| arg == "--trade-port") {
            args.extend(["--trade-port".to_owned(), port]);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut server = Server::start_in(&dir, &args, &[]);
        server._temporary = temporary;
        server
    }

    /// Stops the server with SIGTERM; returns the exit code, which is 0 if all is well.
    pub fn stop(self) -> i32 {
        signal(self.child.id(), libc::SIGTERM);
        self.wait()
    }

    /// The exit code of a server that was told to stop.
    pub fn wait(mut self) -> i32 {
        let status = eventually("the server to end", || self.child.try_wait().unwrap());
        status.code().unwrap_or(-1)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The server's output so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap()
    }

    /// Runs an admin command on the server's data.
    pub fn admin(&self, args: &[&str]) -> Output {
        program("admin").args(args).arg("--data-dir").arg(self.state_dir()).output().unwrap()
    }

    /// The JSON lines that an admin command prints with `--json`.
    pub fn admin_json(&self, args: &[&str]) -> Vec<Value> {
        let output = self.admin(&[args, &["--json"]].concat());
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The balance of an account in cents. Checks that the ledger sums to zero.
    pub fn balance_cents(&self, account: &str) -> i64 {
        let lines = self.admin_json(&["ledger"]);
        assert_eq!(lines.last().unwrap()["sum"], json!(0), "the ledger does not sum to zero");
        let balance = lines.iter().find(|line| line["account"] == account && !line["balance"].is_null());
        balance.map_or(0, |line| (line["balance"].as_f64().unwrap() * 100.0).round() as i64)
    }

    /// Resident memory in KiB.
    pub fn rss_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program under test, without settings from the environment.
pub fn program(command: &str) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_p2s2"));
    program.arg(command).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["P2S2_", "SERVER_", "ADMIN_", "JWT_SECRET_KEY", "SESSION_TIMEOUT"].iter().any(|ours| text.starts_with(ours))
        {
            program.env_remove(name);
        }
    }
    // The other services have fixed default ports.
    program.env("P2S2_SERVER_SERVICES", "trade");
    program.env("P2S2_SERVER_API_PORT", "0");
    // Servers are not announced unless a test needs that.
    for server in ["SERVER", "SELLER_SERVER", "BUYER_SERVER"] {
        program.env(format!("P2S2_{server}_NO_ANNOUNCE"), "yes");
    }
    program
}

pub fn signal(pid: u32, signal: i32) {
    // SAFETY: kill(2) takes plain integers; the child has not been waited for, so the pid is still its own.
    assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
}

/// A trading peer on bare sockets. By default it acknowledges server notifications ("pushes").
pub struct Peer {
    pub name: String,
    pub server: SocketAddr,
    pub udp: UdpSocket,
    pub tcp: TcpListener,
    pub token: Option<String>,
    pub cert_sha256: Option<String>,
    pub acknowledges: bool,
    /// Every datagram, in either direction, is dropped the first time; repetitions arrive.
    pub loses_first: bool,
    passed: Mutex<HashSet<Vec<u8>>>,
    next_rq: u64,
    pushes: VecDeque<Value>,
    seen_mids: HashSet<u64>,
}

impl Peer {
    /// Opens the sockets without contacting the server.
    pub fn unregistered(server: SocketAddr, name: &str) -> Peer {
        Peer {
            name: name.to_owned(),
            server,
            udp: UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(),
            tcp: TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(),
            token: None,
            cert_sha256: None,
            acknowledges: true,
            loses_first: false,
            passed: Mutex::default(),
            next_rq: 1,
            pushes: VecDeque::new(),
            seen_mids: HashSet::new(),
        }
    }

    /// A registered peer.
    pub fn new(server: &Server, name: &str) -> Peer {
        let mut peer = Peer::unregistered(server.addr, name);
        let answer = peer.register();
        assert_eq!(answer["type"], "REGISTERED", "{answer}");
        peer
    }

    pub fn register(&mut self) -> Value {
        let fields = self.endpoint();
        let answer = self.ask("REGISTER", fields);
        if answer["type"] == "REGISTERED" {
            self.token = Some(answer["token"].as_str().unwrap().to_owned());
            self.cert_sha256 = answer["cert_sha256"].as_str().map(str::to_owned);
            self.prove_address();
        }
        answer
    }

    /// Returns the token from the address to which it was sent. Until then the server sends at most three times as much
    /// as it has received from this address.
    pub fn prove_address(&mut self) {
        let answer = self.ask_rq("STATUS", 2_000_000_000, json!({"token": self.token}));
        assert_eq!(answer["type"], "DEALS", "{answer}");
    }

    /// The fields of a request that tell the peer's endpoint.
    pub fn endpoint(&self) -> Value {
        json!({"ip": "127.0.0.1", "udp_port": self.udp_port(), "tcp_port": self.tcp_port()})
    }

    /// The endpoint and the token, for LOGIN.
    pub fn endpoint_with_token(&self) -> Value {
        let mut endpoint = self.endpoint();
        endpoint["token"] = json!(self.token);
        endpoint
    }

    pub fn udp_port(&self) -> u16 {
        self.udp.local_addr().unwrap().port()
    }

    pub fn tcp_port(&self) -> u16 {
        self.tcp.local_addr().unwrap().port()
    }

    pub fn fresh_rq(&mut self) -> u64 {
        self.next_rq += 1;
        self.next_rq - 1
    }

    /// Sends a request with a new number, repeated until a response arrives.
    pub fn ask(&mut self, kind: &str, fields: Value) -> Value {
        let rq = self.fresh_rq();
        self.ask_rq(kind, rq, fields)
    }

    /// Sends a request with this number.
    pub fn ask_rq(&mut self, kind: &str, rq: u64, fields: Value) -> Value {
        let message = self.message(kind, rq, fields);
        self.ask_raw(&message, rq).unwrap_or_else(|| panic!("{}: no answer to {message}", self.name))
    }

    pub fn message(&self, kind: &str, rq: u64, fields: Value) -> Value {
        let mut message = json!({"type": kind, "rq": rq, "name": self.name});
        message.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        message
    }

    /// Sends a message until a response with this number arrives; `None` after about ten seconds.
    pub fn ask_raw(&mut self, message: &Value, rq: u64) -> Option<Value> {
        for _ in 0..20 {
            self.send(message);
            let deadline = Instant::now() + Duration::from_millis(500);
            while let Some(answer) = self.receive_until(deadline) {
                if answer["mid"].is_null() && answer["rq"] == rq {
                    return Some(answer);
                }
            }
        }
        None
    }

    pub fn send(&self, message: &Value) {
        self.send_bytes(message.to_string().as_bytes());
    }

    pub fn send_bytes(&self, bytes: &[u8]) {
        if self.is_lost(bytes) {
            return;
        }
        match self.udp.send_to(bytes, self.server) {
            // After a server was killed, the next call reports its closed port as "connection refused".
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            result => assert_eq!(result.unwrap(), bytes.len()),
        }
    }

    /// The next datagram before the deadline. Pushes are acknowledged, queued once per `mid` for [`Peer::push`], and
    /// returned too.
    pub fn receive_until(&mut self, deadline: Instant) -> Option<Value> {
        let mut bytes = [0; 65_536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.udp.set_read_timeout(Some(left.max(Duration::from_millis(1)))).unwrap();
            let (length, source) = match self.udp.recv_from(&mut bytes) {
                Ok(received) => received,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return None,
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::Interrupted) => continue,
                Err(error) => panic!("{error}"),
            };
            assert_eq!(source, self.server, "a datagram from someone else");
            if self.is_lost(&bytes[..length]) {
                continue;
            }
            let message: Value = serde_json::from_slice(&bytes[..length]).unwrap();
            if let Some(mid) = message["mid"].as_u64() {
                if self.acknowledges {
                    self.send(&json!({"type": "ACK", "mid": mid}));
                }
                if self.seen_mids.insert(mid) {
                    self.pushes.push_back(message.clone());
                }
            }
            return Some(message);
        }
    }

    fn is_lost(&self, datagram: &[u8]) -> bool {
        self.loses_first && self.passed.lock().unwrap().insert(datagram.to_owned())
    }

    /// All datagrams, including repetitions, that arrive before the response to a request sent now.
    pub fn datagrams_until_fence(&mut self) -> Vec<Value> {
        let rq = self.fresh_rq();
        let fence = self.message("STATUS", rq, json!({"token": self.token}));
        let mut came = Vec::new();
        self.send(&fence);
        eventually("the fence's answer", || {
            let message = self.receive_until(Instant::now() + Duration::from_millis(500));
            if message.is_none() {
                self.send(&fence);
            }
            let is_answer = message.as_ref().is_some_and(|m| m["mid"].is_null() && m["rq"] == rq);
            came.extend(message.filter(|_| !is_answer));
            is_answer.then_some(())
        });
        came
    }

    /// The next queued push of this type, in any order.
    pub fn push(&mut self, kind: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        self.push_until(kind, deadline)
            .unwrap_or_else(|| panic!("{}: no {kind} came, but {:?}", self.name, self.pushes))
    }

    pub fn push_until(&mut self, kind: &str, deadline: Instant) -> Option<Value> {
        loop {
            if let Some(at) = self.pushes.iter().position(|push| push["type"] == kind) {
                return self.pushes.remove(at);
            }
            self.receive_until(deadline)?;
        }
    }

    /// The next queued push of this type for this item.
    pub fn push_of(&mut self, kind: &str, item: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.pushes.iter().position(|push| push["type"] == kind && push["item_name"] == item) {
                return self.pushes.remove(at).unwrap();
            }
            if self.receive_until(deadline).is_none() {
                panic!("{}: no {kind} of {item} came, but {:?}", self.name, self.pushes);
            }
        }
    }

    /// The queued pushes, once everything that was sent before now has arrived: the response to a request serves as the
    /// fence.
    pub fn pushed(&mut self) -> Vec<Value> {
        let answer = self.ask("STATUS", json!({}));
        assert!(answer["type"] == "DEALS" || answer["type"] == "ERROR", "{answer}");
        self.pushes.iter().cloned().collect()
    }

    /// Sends LOOKING_FOR; returns its number.
    pub fn look_for(&mut self, item: &str, max_price: f64) -> u64 {
        let rq = self.fresh_rq();
        let answer =
            self.ask_rq("LOOKING_FOR", rq, json!({"item_name": item, "description": "", "max_price": max_price}));
        assert_eq!(answer["type"], "SEARCHING", "{answer}");
        rq
    }

    /// Waits for a SEARCH and offers; returns the seller's number of the deal.
    pub fn offer(&mut self, item: &str, price: f64) -> u64 {
        let rq = self.push("SEARCH")["rq"].as_u64().unwrap();
        let answer = self.ask_rq("OFFER", rq, json!({"item_name": item, "price": price}));
        assert_eq!(answer["type"], "OFFERED", "{answer}");
        rq
    }

    /// The entry of a deal in the peer's STATUS.
    pub fn deal(&mut self, rq: u64) -> Option<Value> {
        let answer = self.ask("STATUS", json!({"rq_deal": rq}));
        assert_eq!(answer["type"], "DEALS", "{answer}");
        answer["deals"].as_array().unwrap().first().cloned()
    }

    /// The STATUS entry of a deal once it has ended.
    pub fn ended(&mut self, rq: u64) -> Value {
        eventually("the deal to end", || {
            self.deal(rq).filter(|deal| deal["state"] == "completed" || deal["state"] == "cancelled")
        })
    }

    /// Accepts the server's settlement connection, with TLS and the pinned certificate.
    pub fn accept_settlement(&self) -> SettlementConnection {
        SettlementConnection::accept(&self.tcp, self.cert_sha256.as_deref())
    }

    pub fn inform_res(&self, rq: u64, card: &str) -> Value {
        json!({"type": "INFORM_RES", "rq": rq, "name": self.name, "token": self.token, "cc_number": card,
            "cc_exp": "12/39", "address": format!("1 {} Street", self.name)})
    }
}

/// A settlement connection, from one side.
pub struct SettlementConnection {
    pub reader: LineReader<ConnReader>,
    pub writer: ConnWriter,
}

impl SettlementConnection {
    pub fn accept(listener: &TcpListener, pin: Option<&str>) -> SettlementConnection {
        listener.set_nonblocking(true).unwrap();
        let (stream, _) = eventually("the server to connect", || match listener.accept() {
            Ok(accepted) => Some(accepted),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        });
        stream.set_nonblocking(false).unwrap();
        SettlementConnection::over(stream, pin)
    }

    pub fn over(stream: TcpStream, pin: Option<&str>) -> SettlementConnection {
        let conn = match pin {
            Some(pin) => Conn::tls_client(stream, pin, Instant::now() + PATIENCE).unwrap(),
            None => Conn::plain(stream),
        };
        let (reader, writer) = conn.split();
        SettlementConnection { reader: LineReader::new(reader, LineLimits::new(1 << 20)), writer }
    }

    /// The next message, or `None` at the end.
    pub fn read(&mut self) -> Option<Value> {
        let line = self.reader.read_line_before(Instant::now() + PATIENCE).unwrap()?;
        Some(serde_json::from_str(&line).unwrap())
    }

    pub fn write(&self, message: &Value) {
        self.writer.write_line(message.to_string(), Instant::now() + PATIENCE).unwrap();
    }
}

/// Brings a deal between these two peers (and no others) to the reserved state; returns the buyer's and the seller's
/// number.
pub fn reserved(buyer: &mut Peer, seller: &mut Peer, item: &str, price: f64) -> (u64, u64) {
    let rq = buyer.look_for(item, price);
    let sold = seller.push_of("SEARCH", item)["rq"].as_u64().unwrap();
    let answer = seller.ask_rq("OFFER", sold, json!({"item_name": item, "price": price}));
    assert_eq!(answer["type"], "OFFERED", "{answer}");
    assert_eq!(seller.push_of("RESERVE", item)["rq"], sold);
    assert_eq!(buyer.push_of("FOUND", item)["rq"], rq);
    (rq, sold)
}

/// Sends BUY; returns the response.
pub fn buy(buyer: &mut Peer, rq: u64, item: &str, price: f64) -> Value {
    buyer.ask_rq("BUY", rq, json!({"item_name": item, "price": price}))
}

/// Buys what is reserved and settles on both sides, as well-behaved peers do.
pub fn settle(buyer: &mut Peer, buyer_rq: u64, seller: &mut Peer, card: &str) -> (Vec<Value>, Vec<Value>) {
    let found = buyer.push("FOUND");
    assert_eq!(found["rq"], buyer_rq);
    let answer = buyer.ask_rq("BUY", buyer_rq, json!({"item_name": found["item_name"], "price": found["price"]}));
    assert_eq!(answer["type"], "BUYING", "{answer}");
    std::thread::scope(|scope| {
        let seller = &*seller;
        let sold = scope.spawn(move || answer_all(seller, seller.accept_settlement(), GOOD_CARD));
        let bought = answer_all(buyer, buyer.accept_settlement(), card);
        (bought, sold.join().unwrap())
    })
}

/// Answers every request on a settlement connection; returns all messages received.
pub fn answer_all(peer: &Peer, mut line: SettlementConnection, card: &str) -> Vec<Value> {
    let mut lines = Vec::new();
    while let Some(message) = line.read() {
        let rq = message["rq"].as_u64().unwrap();
        match message["type"].as_str().unwrap() {
            "INFORM_REQ" => line.write(&peer.inform_res(rq, card)),
            "SHIPPING_INFO" => line.write(&json!({"type": "SHIPPED", "rq": rq})),
            _ => {}
        }
        lines.push(message);
    }
    lines
}
