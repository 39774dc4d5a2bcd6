//! Drivers for the tests: `p2s2 lan` processes, and raw-socket peers that implement only the wire format.
//!
//! They run on loopback, with a discovery port per test, or in a virtual network that the test has made.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::netns::Lan;
use crate::support::{PATIENCE, eventually, program, signal};

/// The address to which broadcasts on loopback are sent, and to which their receivers are bound.
const LOOPBACK_BROADCAST: Ipv4Addr = Ipv4Addr::new(127, 255, 255, 255);

/// The environment of a test: a folder, and a discovery port that no other test has.
pub struct TestEnv {
    dir: tempfile::TempDir,
    pub discovery_port: u16,
    /// Reserves that port on 127.0.0.1. Nothing may ever be sent there: dropping the environment checks that.
    guard: Option<UdpSocket>,
}

impl TestEnv {
    /// An environment on loopback.
    pub fn new() -> TestEnv {
        let guard = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        guard.set_nonblocking(true).unwrap();
        let discovery_port = guard.local_addr().unwrap().port();
        TestEnv { dir: tempfile::tempdir().unwrap(), discovery_port, guard: Some(guard) }
    }

    /// An environment in a virtual network, with the default discovery port.
    pub fn in_network() -> TestEnv {
        TestEnv { dir: tempfile::tempdir().unwrap(), discovery_port: 50_999, guard: None }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The data dir of the peer of this name.
    pub fn data_dir(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// A `p2s2 lan` command without a name or a data dir.
    pub fn nameless(&self) -> Command {
        let mut command = program("lan");
        command.args(["--bind", "127.0.0.1", "--discovery-port", &self.discovery_port.to_string()]);
        command.current_dir(self.dir());
        command
    }

    /// A `p2s2 lan` command with a name and a data dir.
    pub fn command(&self, name: &str) -> Command {
        let mut command = self.nameless();
        command.args(["--name", name, "--data-dir"]).arg(self.data_dir(name));
        command
    }

    /// The same with `--json`, on a host of a virtual network.
    pub fn on_host(&self, lan: &Lan, host: usize, name: &str) -> Command {
        let mut command = program("lan");
        command.args(["--json", "--name", name, "--discovery-port", &self.discovery_port.to_string()]);
        command.arg("--data-dir").arg(self.data_dir(name));
        lan.run_in(host, command)
    }

    /// Starts a peer and waits until it runs.
    pub fn start(&self, name: &str, args: &[&str]) -> Peer {
        Peer::start(self.command(name).arg("--json").args(args))
    }

    /// Starts several peers at the same time.
    pub fn start_all<const N: usize>(&self, names: [&str; N]) -> [Peer; N] {
        names.map(|name| Peer::spawn(self.command(name).arg("--json"))).map(Peer::started)
    }
}

impl Drop for TestEnv {
    fn drop(&mut self) {
        let Some(guard) = self.guard.as_ref().filter(|_| !std::thread::panicking()) else { return };
        match guard.recv_from(&mut [0; 2048]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            sent => panic!("something was sent to the discovery port of this host alone: {sent:?}"),
        }
    }
}

/// A `p2s2 lan --json` process. Killed when dropped.
pub struct Peer {
    child: Child,
    input: Option<ChildStdin>,
    output: Arc<ProcessOutput>,
    readers: Vec<JoinHandle<()>>,
    /// Its name, as it reported at the start.
    pub name: String,
    pub addr: SocketAddrV4,
    pub started_at: Instant,
    /// The `started` event.
    pub started: Value,
}

/// Printed lines that no test has taken yet.
#[derive(Default)]
struct ProcessOutput {
    lines: Mutex<Vec<OutputLine>>,
    has_new_line: Condvar,
    errors: Mutex<String>,
}

#[derive(Debug, Clone)]
pub struct OutputLine {
    pub at: Instant,
    pub json: Value,
}

impl Peer {
    pub fn start(command: &mut Command) -> Peer {
        Peer::spawn(command).started()
    }

    /// Starts a process without waiting for its `started` event.
    pub fn spawn(command: &mut Command) -> Peer {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = Arc::<ProcessOutput>::default();
        let (out, errors) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let out_output = Arc::clone(&output);
        let out = std::thread::spawn(move || {
            for line in BufReader::new(out).lines() {
                let line = line.unwrap();
                let json = serde_json::from_str(&line).unwrap_or_else(|error| panic!("no JSON ({error}): {line}"));
                out_output.lines.lock().unwrap().push(OutputLine { at: Instant::now(), json });
                out_output.has_new_line.notify_all();
            }
        });
        let errors_output = Arc::clone(&output);
        let errors = std::thread::spawn(move || {
            for line in BufReader::new(errors).lines() {
                *errors_output.errors.lock().unwrap() += &(line.unwrap() + "\n");
            }
        });
        Peer {
            input: child.stdin.take(),
            child,
            output,
            readers: vec![out, errors],
            name: String::new(),
            addr: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0),
            started_at: Instant::now(),
            started: Value::Null,
        }
    }

    /// Waits for the `started` event.
    pub fn started(mut self) -> Peer {
        let line = self.take("the start", |line| line["event"] == "started");
        self.name = line.json["name"].as_str().unwrap().to_owned();
        self.addr = line.json["lan"].as_str().unwrap().parse().unwrap();
        (self.started_at, self.started) = (line.at, line.json);
        self
    }

    /// Writes a line to its standard input.
    pub fn send_line(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Runs a command and returns its response: the next object that is an error or has the command's event and is not
    /// a received message.
    #[track_caller]
    pub fn run_command(&mut self, line: &str) -> Value {
        self.send_line(line);
        let event = line.split_whitespace().next().unwrap().to_lowercase();
        let is_answer = |it: &Value| !it["error"].is_null() || it["event"] == event.as_str() && it["from"].is_null();
        self.take(&format!("the answer to {line:?}"), is_answer).json
    }

    /// Runs a command that must be refused, and returns the error.
    #[track_caller]
    pub fn run_refused(&mut self, line: &str) -> String {
        let answer = self.run_command(line);
        answer["error"].as_str().unwrap_or_else(|| panic!("{line:?} is not refused: {answer}")).to_owned()
    }

    /// Waits for the first line that matches, and takes it.
    #[track_caller]
    pub fn take(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> OutputLine {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.output.lines.lock().unwrap();
        loop {
            if let Some(at) = lines.iter().position(|line| is_it(&line.json)) {
                return lines.remove(at);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let errors = self.output.errors.lock().unwrap();
                panic!("{}: waited in vain for {what}, in {:#?}; on standard error: {errors}", self.name, *lines);
            }
            lines = self.output.has_new_line.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// Waits for the first event of this kind, and takes it.
    #[track_caller]
    pub fn take_event(&self, event: &str) -> Value {
        self.take(event, |line| line["event"] == event).json
    }

    /// Waits for a received message, and takes it.
    #[track_caller]
    pub fn take_message(&self, event: &str, content: &str) -> Value {
        let what = format!("the {event} {content:?}");
        self.take(&what, |line| line["event"] == event && line["from"].is_string() && line["content"] == content).json
    }

    /// Waits for a drop with this cause, takes it and returns its detail.
    #[track_caller]
    pub fn take_drop(&self, cause: &str) -> String {
        let what = format!("a drop as {cause}");
        let dropped = self.take(&what, |line| line["event"] == "dropped" && line["cause"] == cause).json;
        dropped["detail"].as_str().unwrap().to_owned()
    }

    /// How many matching lines were printed and not taken.
    pub fn count(&self, is_it: impl Fn(&Value) -> bool) -> usize {
        self.output.lines.lock().unwrap().iter().filter(|line| is_it(&line.json)).count()
    }

    /// USER_IDs and ports of the peers that LIST shows.
    pub fn listed_peers(&mut self) -> Vec<(String, u16)> {
        let list = self.run_command("list");
        let of = |peer: &Value| {
            let (name, ip) = (peer["name"].as_str().unwrap(), peer["ip"].as_str().unwrap());
            assert_eq!(peer["user_id"], format!("{name}@{ip}"), "{list}");
            assert!(peer["last_seen_s"].is_u64(), "{list}");
            (format!("{name}@{ip}"), peer["port"].as_u64().unwrap() as u16)
        };
        list["peers"].as_array().unwrap().iter().map(of).collect()
    }

    /// Names of the peers that LIST shows.
    pub fn listed_names(&mut self) -> Vec<String> {
        self.listed_peers().into_iter().map(|(id, _)| id.rsplit_once('@').unwrap().0.to_owned()).collect()
    }

    /// Waits until LIST shows exactly these peers.
    #[track_caller]
    pub fn wait_for_peers(&mut self, names: &[&str]) {
        eventually(&format!("{} to know {names:?}", self.name), || (self.listed_names() == names).then_some(()));
    }

    /// The messages that HISTORY shows.
    pub fn history(&mut self) -> Vec<Value> {
        self.run_command("history 1000")["messages"].as_array().unwrap().clone()
    }

    /// How many datagrams it has dropped for this cause.
    pub fn drop_count(&mut self, cause: &str) -> u64 {
        self.run_command("stats")["counters"][format!("dropped: {cause}")].as_u64().unwrap_or(0)
    }

    pub fn user_id(&self) -> String {
        format!("{}@{}", self.name, self.addr.ip())
    }

    /// Closes its standard input and returns its exit code.
    #[track_caller]
    pub fn end_input(mut self) -> i32 {
        self.input = None;
        let status = eventually("the peer to end", || self.child.try_wait().unwrap());
        self.readers.drain(..).for_each(|reader| reader.join().unwrap());
        status.code().unwrap_or(-1)
    }

    /// Sends a signal. Standard input stays open, as closing it would be a second reason to end.
    pub fn signal(&self, which: i32) {
        signal(self.child.id(), which);
    }

    pub fn kill(mut self) {
        signal(self.child.id(), libc::SIGKILL);
        self.child.wait().unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The bytes of a datagram with these keys and values.
pub fn datagram(keys: &[(&str, &str)]) -> Vec<u8> {
    keys.iter().map(|(key, value)| format!("{key}:{value}\n")).chain(["\n".to_owned()]).collect::<String>().into_bytes()
}

/// A received datagram.
#[derive(Debug, Clone)]
pub struct ReceivedDatagram {
    pub at: Instant,
    pub from: SocketAddrV4,
    keys: Vec<(String, String)>,
}

impl ReceivedDatagram {
    /// Parses a datagram strictly: LF, no blank after the colon, each key once, an empty line at the end.
    fn read(from: SocketAddrV4, bytes: &[u8]) -> ReceivedDatagram {
        let text = std::str::from_utf8(bytes).unwrap();
        let lines = text.strip_suffix("\n\n").unwrap_or_else(|| panic!("no empty line at the end: {text:?}"));
        let pair = |line: &str| {
            let (key, value) = line.split_once(':').unwrap_or_else(|| panic!("{line:?} in {text:?}"));
            assert!(key.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_')), "{text:?}");
            (key.to_owned(), value.to_owned())
        };
        let datagram = ReceivedDatagram { at: Instant::now(), from, keys: lines.split('\n').map(pair).collect() };
        for (key, _) in &datagram.keys {
            assert_eq!(datagram.keys.iter().filter(|(other, _)| other == key).count(), 1, "{key} in {text:?}");
        }
        datagram
    }

    #[track_caller]
    pub fn get(&self, key: &str) -> &str {
        self.maybe(key).unwrap_or_else(|| panic!("no {key} in {self:?}"))
    }

    pub fn maybe(&self, key: &str) -> Option<&str> {
        self.keys.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }
}

/// A hand-written peer on a raw socket. It answers nothing by itself.
pub struct RawPeer {
    pub name: String,
    pub socket: UdpSocket,
    discovery_port: u16,
    instance: String,
    received: VecDeque<ReceivedDatagram>,
}

impl RawPeer {
    pub fn new(env: &TestEnv, name: &str) -> RawPeer {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_broadcast(true).unwrap();
        let instance = format!("{name}-{}", socket.local_addr().unwrap().port());
        RawPeer {
            name: name.to_owned(),
            socket,
            discovery_port: env.discovery_port,
            instance,
            received: VecDeque::new(),
        }
    }

    /// A peer that acknowledges DMs and has exchanged announcements with `peer`.
    pub fn introduced(env: &TestEnv, name: &str, peer: &Peer) -> RawPeer {
        RawPeer::introduced_with(env, name, &[("FEATURES", "ack")], peer)
    }

    /// The same with other keys in its announcement.
    pub fn introduced_with(env: &TestEnv, name: &str, keys: &[(&str, &str)], peer: &Peer) -> RawPeer {
        let mut raw = RawPeer::new(env, name);
        raw.announce(keys);
        // Other peers answer the broadcast too.
        while raw.next("PEER_DISCOVERY").from != peer.addr {}
        raw
    }

    pub fn port(&self) -> u16 {
        self.socket.local_addr().unwrap().port()
    }

    pub fn addr(&self) -> String {
        self.socket.local_addr().unwrap().to_string()
    }

    pub fn user_id(&self) -> String {
        format!("{}@127.0.0.1", self.name)
    }

    /// Its announcement with further keys.
    pub fn discovery(&self, keys: &[(&str, &str)]) -> Vec<u8> {
        let (user_id, port) = (self.user_id(), self.port().to_string());
        let own = [
            ("TYPE", "PEER_DISCOVERY"),
            ("USER_ID", &user_id),
            ("PORT", &port),
            ("TIMESTAMP", "1700000000"),
            ("MESSAGE_ID", "00000000000000aa"),
            ("INSTANCE", &self.instance),
        ];
        datagram(&[&own[..], keys].concat())
    }

    /// Broadcasts its announcement on loopback.
    pub fn announce(&self, keys: &[(&str, &str)]) {
        self.broadcast(&self.discovery(keys));
    }

    pub fn broadcast(&self, bytes: &[u8]) {
        self.socket.send_to(bytes, (LOOPBACK_BROADCAST, self.discovery_port)).unwrap();
    }

    pub fn send(&self, peer: &Peer, bytes: &[u8]) {
        assert_eq!(self.socket.send_to(bytes, peer.addr).unwrap(), bytes.len());
    }

    pub fn post(&self, peer: &Peer, content: &str, id: &str) {
        let post = datagram(&[
            ("TYPE", "POST"),
            ("USER_ID", &self.user_id()),
            ("CONTENT", content),
            ("TIMESTAMP", "1700000000"),
            ("MESSAGE_ID", id),
        ]);
        self.send(peer, &post);
    }

    /// A DM to this peer.
    pub fn dm(&self, peer: &Peer, content: &str, id: &str) -> Vec<u8> {
        datagram(&[
            ("TYPE", "DM"),
            ("FROM", &self.user_id()),
            ("TO", &peer.user_id()),
            ("CONTENT", content),
            ("TIMESTAMP", "1700000000"),
            ("MESSAGE_ID", id),
        ])
    }

    pub fn ack(&self, peer: &Peer, id: &str) {
        self.send(peer, &datagram(&[("TYPE", "ACK"), ("MESSAGE_ID", id), ("STATUS", "RECEIVED")]));
    }

    /// Waits for the next datagram of this TYPE, and takes it.
    #[track_caller]
    pub fn next(&mut self, kind: &str) -> ReceivedDatagram {
        let next = self.next_until(kind, Instant::now() + PATIENCE);
        next.unwrap_or_else(|| panic!("{}: no {kind} came, but {:?}", self.name, self.received))
    }

    /// The same; it must come from this peer.
    #[track_caller]
    pub fn next_from(&mut self, peer: &Peer, kind: &str) -> ReceivedDatagram {
        let next = self.next(kind);
        assert_eq!(next.from, peer.addr, "{next:?}");
        next
    }

    pub fn next_until(&mut self, kind: &str, deadline: Instant) -> Option<ReceivedDatagram> {
        loop {
            if let Some(at) = self.received.iter().position(|datagram| datagram.get("TYPE") == kind) {
                return self.received.remove(at);
            }
            let datagram = self.receive(deadline)?;
            self.received.push_back(datagram);
        }
    }

    /// How many datagrams of this TYPE were received and not taken. A request to `peer` flushes those still on the way.
    pub fn count(&mut self, peer: &Peer, kind: &str) -> usize {
        self.request_peers(peer);
        self.received.iter().filter(|datagram| datagram.get("TYPE") == kind).count()
    }

    /// Sends a PEER_LIST_REQUEST and returns the response.
    pub fn request_peers(&mut self, peer: &Peer) -> ReceivedDatagram {
        let request = datagram(&[("TYPE", "PEER_LIST_REQUEST"), ("FROM", &self.user_id()), ("MESSAGE_ID", "ask")]);
        self.send(peer, &request);
        self.next_from(peer, "PEER_LIST_RESPONSE")
    }

    fn receive(&self, deadline: Instant) -> Option<ReceivedDatagram> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.socket.set_read_timeout(Some(left.max(Duration::from_millis(1)))).unwrap();
        let mut bytes = vec![0; 65_536];
        match self.socket.recv_from(&mut bytes) {
            Ok((length, SocketAddr::V4(from))) => Some(ReceivedDatagram::read(from, &bytes[..length])),
            Ok((_, from)) => panic!("a datagram from {from}"),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            // Interrupted by a signal of another test.
            Err(error) if error.kind() == ErrorKind::Interrupted => self.receive(deadline),
            Err(error) => panic!("{error}"),
        }
    }
}

/// A socket that receives the broadcasts on loopback as every peer does.
pub fn broadcast_listener(env: &TestEnv) -> RawPeer {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&SocketAddr::from((LOOPBACK_BROADCAST, env.discovery_port)).into()).unwrap();
    let (name, instance) = ("ear".to_owned(), "ear".to_owned());
    RawPeer { name, socket: socket.into(), discovery_port: env.discovery_port, instance, received: VecDeque::new() }
}

/// Runs a command with this input to its end. Returns exit code, standard output and standard error.
pub fn in_pipe(command: &mut Command, input: &str) -> (i32, String, String) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    match child.stdin.take().unwrap().write_all(input.as_bytes()) {
        // The process has ended without reading its input.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written.unwrap(),
    }
    let result = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (result.status.code().unwrap_or(-1), text(result.stdout), text(result.stderr))
}

/// Writes a file to the folder of the test.
pub fn file(env: &TestEnv, name: &str, bytes: &[u8]) -> PathBuf {
    let path = env.dir().join(name);
    fs::write(&path, bytes).unwrap();
    path
}
