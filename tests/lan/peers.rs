//! `p2s2 lan` processes, and peers on bare sockets that are written from the wire format alone.
//!
//! All on loopback, each test with a discovery port of its own; or in a network that the test has made.

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

/// Of which whoever hears announcements on loopback is bound to, and to which they are sent.
const EVERYBODY_HERE: Ipv4Addr = Ipv4Addr::new(127, 255, 255, 255);

/// Where the peers of a test live: a folder, and a discovery port that no other test has.
pub struct Place {
    dir: tempfile::TempDir,
    pub discovery_port: u16,
    /// Has that port on loopback, so that nobody else takes it; and nobody may ever send to it.
    guard: Option<UdpSocket>,
}

impl Place {
    /// On loopback.
    pub fn new() -> Place {
        let guard = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        guard.set_nonblocking(true).unwrap();
        let discovery_port = guard.local_addr().unwrap().port();
        Place { dir: tempfile::tempdir().unwrap(), discovery_port, guard: Some(guard) }
    }

    /// In a network of the test's own.
    pub fn in_a_network() -> Place {
        Place { dir: tempfile::tempdir().unwrap(), discovery_port: 50_999, guard: None }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where the peer of this name keeps what it keeps.
    pub fn data_dir(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// `p2s2 lan`, without a name or a data dir.
    pub fn nameless(&self) -> Command {
        let mut command = program("lan");
        command.args(["--bind", "127.0.0.1", "--discovery-port", &self.discovery_port.to_string()]);
        command.current_dir(self.dir());
        command
    }

    /// `p2s2 lan` as a person runs it.
    pub fn command(&self, name: &str) -> Command {
        let mut command = self.nameless();
        command.args(["--name", name, "--data-dir"]).arg(self.data_dir(name));
        command
    }

    /// The same as scripts run it, on a host of a network.
    pub fn on_host(&self, lan: &Lan, host: usize, name: &str) -> Command {
        let mut command = program("lan");
        command.args(["--json", "--name", name, "--discovery-port", &self.discovery_port.to_string()]);
        command.arg("--data-dir").arg(self.data_dir(name));
        lan.run_in(host, command)
    }

    /// A running peer.
    pub fn start(&self, name: &str, args: &[&str]) -> Peer {
        Peer::start(self.command(name).arg("--json").args(args))
    }

    /// Several that start at once.
    pub fn start_all<const N: usize>(&self, names: [&str; N]) -> [Peer; N] {
        names.map(|name| Peer::spawn(self.command(name).arg("--json"))).map(Peer::started)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(guard) = self.guard.as_ref().filter(|_| !std::thread::panicking()) else { return };
        match guard.recv_from(&mut [0; 2048]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            sent => panic!("something was sent to the discovery port of this host alone: {sent:?}"),
        }
    }
}

/// A `p2s2 lan --json`. Ended by SIGKILL when dropped.
pub struct Peer {
    child: Child,
    input: Option<ChildStdin>,
    said: Arc<Said>,
    readers: Vec<JoinHandle<()>>,
    /// What it goes by, as it said at the start.
    pub name: String,
    pub addr: SocketAddrV4,
    pub started_at: Instant,
    /// All that it said then.
    pub started: Value,
}

/// What a process has printed and nobody has taken yet.
#[derive(Default)]
struct Said {
    lines: Mutex<Vec<Line>>,
    grown: Condvar,
    errors: Mutex<String>,
}

#[derive(Debug, Clone)]
pub struct Line {
    pub at: Instant,
    pub json: Value,
}

impl Peer {
    pub fn start(command: &mut Command) -> Peer {
        Peer::spawn(command).started()
    }

    /// A process that was not heard yet.
    pub fn spawn(command: &mut Command) -> Peer {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let said = Arc::<Said>::default();
        let (out, errors) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let out_said = Arc::clone(&said);
        let out = std::thread::spawn(move || {
            for line in BufReader::new(out).lines() {
                let line = line.unwrap();
                let json = serde_json::from_str(&line).unwrap_or_else(|error| panic!("no JSON ({error}): {line}"));
                out_said.lines.lock().unwrap().push(Line { at: Instant::now(), json });
                out_said.grown.notify_all();
            }
        });
        let errors_said = Arc::clone(&said);
        let errors = std::thread::spawn(move || {
            for line in BufReader::new(errors).lines() {
                *errors_said.errors.lock().unwrap() += &(line.unwrap() + "\n");
            }
        });
        Peer {
            input: child.stdin.take(),
            child,
            said,
            readers: vec![out, errors],
            name: String::new(),
            addr: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0),
            started_at: Instant::now(),
            started: Value::Null,
        }
    }

    /// Waits until it is there.
    pub fn started(mut self) -> Peer {
        let line = self.take("the start", |line| line["event"] == "started");
        self.name = line.json["name"].as_str().unwrap().to_owned();
        self.addr = line.json["lan"].as_str().unwrap().parse().unwrap();
        (self.started_at, self.started) = (line.at, line.json);
        self
    }

    /// Types a line.
    pub fn says(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    /// A command, and what it answers: the next object that is an error, or of that event and not about what
    /// others said.
    #[track_caller]
    pub fn ask(&mut self, line: &str) -> Value {
        self.says(line);
        let event = line.split_whitespace().next().unwrap().to_lowercase();
        let is_answer = |it: &Value| !it["error"].is_null() || it["event"] == event.as_str() && it["from"].is_null();
        self.take(&format!("the answer to {line:?}"), is_answer).json
    }

    /// A command that is refused, and why.
    #[track_caller]
    pub fn refuses(&mut self, line: &str) -> String {
        let answer = self.ask(line);
        answer["error"].as_str().unwrap_or_else(|| panic!("{line:?} is not refused: {answer}")).to_owned()
    }

    /// Takes the first that was printed and is such, waiting for it.
    #[track_caller]
    pub fn take(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Line {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.said.lines.lock().unwrap();
        loop {
            if let Some(at) = lines.iter().position(|line| is_it(&line.json)) {
                return lines.remove(at);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let errors = self.said.errors.lock().unwrap();
                panic!("{}: waited in vain for {what}, in {:#?}; on standard error: {errors}", self.name, *lines);
            }
            lines = self.said.grown.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// Takes the first event of this kind.
    #[track_caller]
    pub fn event(&self, event: &str) -> Value {
        self.take(event, |line| line["event"] == event).json
    }

    /// Takes what somebody said.
    #[track_caller]
    pub fn hears(&self, event: &str, content: &str) -> Value {
        let what = format!("the {event} {content:?}");
        self.take(&what, |line| line["event"] == event && line["from"].is_string() && line["content"] == content).json
    }

    /// Takes a drop of this cause; what it says of it.
    #[track_caller]
    pub fn drops(&self, cause: &str) -> String {
        let what = format!("a drop as {cause}");
        let dropped = self.take(&what, |line| line["event"] == "dropped" && line["cause"] == cause).json;
        dropped["detail"].as_str().unwrap().to_owned()
    }

    /// How many such were printed and not taken.
    pub fn count(&self, is_it: impl Fn(&Value) -> bool) -> usize {
        self.said.lines.lock().unwrap().iter().filter(|line| is_it(&line.json)).count()
    }

    /// The USER_IDs and ports of those whom it lists.
    pub fn lists(&mut self) -> Vec<(String, u16)> {
        let list = self.ask("list");
        let of = |peer: &Value| {
            let (name, ip) = (peer["name"].as_str().unwrap(), peer["ip"].as_str().unwrap());
            assert_eq!(peer["user_id"], format!("{name}@{ip}"), "{list}");
            assert!(peer["last_seen_s"].is_u64(), "{list}");
            (format!("{name}@{ip}"), peer["port"].as_u64().unwrap() as u16)
        };
        list["peers"].as_array().unwrap().iter().map(of).collect()
    }

    /// The names of those whom it lists.
    pub fn names(&mut self) -> Vec<String> {
        self.lists().into_iter().map(|(id, _)| id.rsplit_once('@').unwrap().0.to_owned()).collect()
    }

    /// Waits until it lists these and no others.
    #[track_caller]
    pub fn knows(&mut self, names: &[&str]) {
        eventually(&format!("{} to know {names:?}", self.name), || (self.names() == names).then_some(()));
    }

    /// The messages of HISTORY.
    pub fn history(&mut self) -> Vec<Value> {
        self.ask("history 1000")["messages"].as_array().unwrap().clone()
    }

    /// How many datagrams it dropped for this.
    pub fn dropped(&mut self, cause: &str) -> u64 {
        self.ask("stats")["counters"][format!("dropped: {cause}")].as_u64().unwrap_or(0)
    }

    pub fn user_id(&self) -> String {
        format!("{}@{}", self.name, self.addr.ip())
    }

    /// Ends its input; its exit code.
    #[track_caller]
    pub fn ends(mut self) -> i32 {
        self.input = None;
        let status = eventually("the peer to end", || self.child.try_wait().unwrap());
        self.readers.drain(..).for_each(|reader| reader.join().unwrap());
        status.code().unwrap_or(-1)
    }

    /// Its input stays open: the end of that would be a second reason to end.
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
        // Has it ended already? Then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A datagram as it is sent: KEY:VALUE lines and an empty one.
pub fn datagram(keys: &[(&str, &str)]) -> Vec<u8> {
    keys.iter().map(|(key, value)| format!("{key}:{value}\n")).chain(["\n".to_owned()]).collect::<String>().into_bytes()
}

/// A datagram that came.
#[derive(Debug, Clone)]
pub struct Heard {
    pub at: Instant,
    pub from: SocketAddrV4,
    keys: Vec<(String, String)>,
}

impl Heard {
    /// As it must be written: LF, no blank behind the colon, each key once, an empty line at the end.
    fn read(from: SocketAddrV4, bytes: &[u8]) -> Heard {
        let text = std::str::from_utf8(bytes).unwrap();
        let lines = text.strip_suffix("\n\n").unwrap_or_else(|| panic!("no empty line at the end: {text:?}"));
        let pair = |line: &str| {
            let (key, value) = line.split_once(':').unwrap_or_else(|| panic!("{line:?} in {text:?}"));
            assert!(key.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_')), "{text:?}");
            (key.to_owned(), value.to_owned())
        };
        let heard = Heard { at: Instant::now(), from, keys: lines.split('\n').map(pair).collect() };
        for (key, _) in &heard.keys {
            assert_eq!(heard.keys.iter().filter(|(other, _)| other == key).count(), 1, "{key} in {text:?}");
        }
        heard
    }

    #[track_caller]
    pub fn get(&self, key: &str) -> &str {
        self.maybe(key).unwrap_or_else(|| panic!("no {key} in {self:?}"))
    }

    pub fn maybe(&self, key: &str) -> Option<&str> {
        self.keys.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }
}

/// A peer on a bare socket. It answers nothing by itself.
pub struct Bare {
    pub name: String,
    pub socket: UdpSocket,
    discovery_port: u16,
    instance: String,
    came: VecDeque<Heard>,
}

impl Bare {
    pub fn new(place: &Place, name: &str) -> Bare {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_broadcast(true).unwrap();
        let instance = format!("{name}-{}", socket.local_addr().unwrap().port());
        Bare { name: name.to_owned(), socket, discovery_port: place.discovery_port, instance, came: VecDeque::new() }
    }

    /// One that acknowledges, and knows this peer and is known to it.
    pub fn met(place: &Place, name: &str, peer: &Peer) -> Bare {
        Bare::met_as(place, name, &[("FEATURES", "ack")], peer)
    }

    /// The same, with other keys.
    pub fn met_as(place: &Place, name: &str, keys: &[(&str, &str)], peer: &Peer) -> Bare {
        let mut bare = Bare::new(place, name);
        bare.announces(keys);
        // All who hear it answer.
        while bare.next("PEER_DISCOVERY").from != peer.addr {}
        bare
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

    /// Its PEER_DISCOVERY.
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

    /// To everybody on this host.
    pub fn announces(&self, keys: &[(&str, &str)]) {
        self.broadcasts(&self.discovery(keys));
    }

    pub fn broadcasts(&self, bytes: &[u8]) {
        self.socket.send_to(bytes, (EVERYBODY_HERE, self.discovery_port)).unwrap();
    }

    pub fn sends(&self, peer: &Peer, bytes: &[u8]) {
        assert_eq!(self.socket.send_to(bytes, peer.addr).unwrap(), bytes.len());
    }

    pub fn posts(&self, peer: &Peer, content: &str, id: &str) {
        let post = datagram(&[
            ("TYPE", "POST"),
            ("USER_ID", &self.user_id()),
            ("CONTENT", content),
            ("TIMESTAMP", "1700000000"),
            ("MESSAGE_ID", id),
        ]);
        self.sends(peer, &post);
    }

    /// As it is sent to this peer.
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

    pub fn acks(&self, peer: &Peer, id: &str) {
        self.sends(peer, &datagram(&[("TYPE", "ACK"), ("MESSAGE_ID", id), ("STATUS", "RECEIVED")]));
    }

    /// The next datagram of this TYPE that was not taken.
    #[track_caller]
    pub fn next(&mut self, kind: &str) -> Heard {
        let next = self.next_until(kind, Instant::now() + PATIENCE);
        next.unwrap_or_else(|| panic!("{}: no {kind} came, but {:?}", self.name, self.came))
    }

    /// The same, from one peer.
    #[track_caller]
    pub fn next_from(&mut self, peer: &Peer, kind: &str) -> Heard {
        let next = self.next(kind);
        assert_eq!(next.from, peer.addr, "{next:?}");
        next
    }

    pub fn next_until(&mut self, kind: &str, deadline: Instant) -> Option<Heard> {
        loop {
            if let Some(at) = self.came.iter().position(|heard| heard.get("TYPE") == kind) {
                return self.came.remove(at);
            }
            let heard = self.receive(deadline)?;
            self.came.push_back(heard);
        }
    }

    /// How many of this TYPE came and were not taken, up to an answer to a question that is asked now.
    pub fn count(&mut self, peer: &Peer, kind: &str) -> usize {
        self.asks_for_peers(peer);
        self.came.iter().filter(|heard| heard.get("TYPE") == kind).count()
    }

    /// A PEER_LIST_REQUEST and what is answered.
    pub fn asks_for_peers(&mut self, peer: &Peer) -> Heard {
        let request = datagram(&[("TYPE", "PEER_LIST_REQUEST"), ("FROM", &self.user_id()), ("MESSAGE_ID", "ask")]);
        self.sends(peer, &request);
        self.next_from(peer, "PEER_LIST_RESPONSE")
    }

    fn receive(&self, deadline: Instant) -> Option<Heard> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.socket.set_read_timeout(Some(left.max(Duration::from_millis(1)))).unwrap();
        let mut bytes = vec![0; 65_536];
        match self.socket.recv_from(&mut bytes) {
            Ok((length, SocketAddr::V4(from))) => Some(Heard::read(from, &bytes[..length])),
            Ok((_, from)) => panic!("a datagram from {from}"),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            // By a signal that was for another test.
            Err(error) if error.kind() == ErrorKind::Interrupted => self.receive(deadline),
            Err(error) => panic!("{error}"),
        }
    }
}

/// What hears the announcements on this host as every peer does.
pub fn ear(place: &Place) -> Bare {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&SocketAddr::from((EVERYBODY_HERE, place.discovery_port)).into()).unwrap();
    let (name, instance) = ("ear".to_owned(), "ear".to_owned());
    Bare { name, socket: socket.into(), discovery_port: place.discovery_port, instance, came: VecDeque::new() }
}

/// Runs a command on a pipe to its end: exit code, what it printed, what it complained of.
pub fn in_pipe(command: &mut Command, input: &str) -> (i32, String, String) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    match child.stdin.take().unwrap().write_all(input.as_bytes()) {
        // It has ended without reading.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written.unwrap(),
    }
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// All of a file.
pub fn file(place: &Place, name: &str, bytes: &[u8]) -> PathBuf {
    let path = place.dir().join(name);
    fs::write(&path, bytes).unwrap();
    path
}
