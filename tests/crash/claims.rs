//! What the server has told its peers, and must therefore stand by ever after.
//!
//! Every message that left the server is read by [`Claims::said`], which notices at once when two of
//! them contradict each other. [`Claims::check`] asks a server (another life of it) about all the rest.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::rng::Rng;
use crate::support::PATIENCE;

/// One registration: its place in [`Roster::peers`]. A name that comes back is another one.
pub type Who = usize;
/// Numbers from here on are picked by the server.
pub const SERVER_NUMBERS: u64 = 1 << 31;

/// Who trades, and what they asked: the peers' own knowledge, whatever the server says.
#[derive(Default, Clone)]
pub struct Roster {
    pub peers: Vec<Member>,
    /// What was sent, by who, type and number.
    pub requests: HashMap<(Who, &'static str, u64), Value>,
}

#[derive(Clone)]
pub struct Member {
    pub name: String,
    pub udp_port: u16,
    pub tcp_port: u16,
    /// It has sent a DE-REGISTER; the length that the disk's log had before.
    pub leaving_from: Option<u64>,
}

/// Where something was said to. A number may be one peer's port of UDP and another's of TCP.
#[derive(Debug, Clone, Copy)]
pub enum Port {
    Udp(u16),
    Tcp(u16),
}

impl Roster {
    pub fn by_port(&self, port: Port) -> Option<Who> {
        self.peers.iter().position(|peer| match port {
            Port::Udp(port) => peer.udp_port == port,
            Port::Tcp(port) => peer.tcp_port == port,
        })
    }

    /// What a buyer's number stands for.
    fn item_sought(&self, who: Who, rq: u64) -> Option<String> {
        Some(self.requests.get(&(who, "LOOKING_FOR", rq))?["item_name"].as_str()?.to_owned())
    }
}

/// The least that a side's STATUS must show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The deal is known.
    Known,
    /// A seller's unit was held for this buyer.
    Found,
    /// BUY was accepted.
    Bought,
    /// It ended without a sale.
    Cancelled,
    /// It ended with one.
    Completed,
}

impl Level {
    fn fits(self, state: &str) -> bool {
        match self {
            Level::Known => true,
            Level::Found => ["reserved", "settling", "cancelled", "completed"].contains(&state),
            Level::Bought => ["settling", "cancelled", "completed"].contains(&state),
            Level::Cancelled => state == "cancelled",
            Level::Completed => state == "completed",
        }
    }
}

#[derive(Default)]
pub struct Claims {
    /// Token and fingerprint that a registration was told.
    registered: BTreeMap<Who, (String, Value)>,
    gone: BTreeMap<Who, ()>,
    deals: BTreeMap<(Who, u64), Level>,
    /// What the server's numbers stand for, for which seller.
    numbers: HashMap<u64, (Who, String)>,
    mids: HashMap<u64, (Who, Value)>,
    answers: BTreeMap<(Who, &'static str, u64), Value>,
}

/// An item's end as a side of it was told.
pub struct Told {
    pub item: String,
    pub is_buyer: bool,
    pub completed: bool,
}

impl Claims {
    /// Something that the server has said to that registration.
    pub fn said(&mut self, roster: &Roster, who: Who, message: &Value) {
        let kind = message["type"].as_str().unwrap_or_else(|| panic!("no type: {message}"));
        let rq = message["rq"].as_u64();
        if let Some(mid) = message["mid"].as_u64() {
            let first = self.mids.entry(mid).or_insert_with(|| (who, message.clone()));
            assert!(first.0 == who && first.1 == *message, "mid {mid} was {first:?} and is now {message} to {who}");
        }
        if let (Some(number @ SERVER_NUMBERS..), Some(item)) = (rq, message["item_name"].as_str()) {
            let first = self.numbers.entry(number).or_insert_with(|| (who, item.to_owned()));
            assert!(first.0 == who && first.1 == item, "number {number} was {first:?} and is now {item} of {who}");
        }
        match (kind, rq) {
            ("REGISTERED", _) => {
                let told = (message["token"].as_str().unwrap().to_owned(), message["cert_sha256"].clone());
                if let Some((other, before)) = self.registered.first_key_value() {
                    assert_eq!(before.1, told.1, "registrations {other} and {who} were told two certificates");
                }
                let first = self.registered.entry(who).or_insert_with(|| told.clone());
                assert!(*first == told, "{who} was registered twice: {first:?}, {told:?}");
            }
            ("DE-REGISTERED", _) => {
                self.gone.insert(who, ());
            }
            ("SEARCHING", Some(rq)) => self.answered(roster, who, &["LOOKING_FOR"], rq, message, Level::Known),
            ("OFFERED", Some(rq)) => self.answered(roster, who, &["OFFER"], rq, message, Level::Known),
            ("BUYING", Some(rq)) => self.answered(roster, who, &["BUY"], rq, message, Level::Bought),
            ("CANCELLED", Some(rq)) => self.answered(roster, who, &["CANCEL"], rq, message, Level::Cancelled),
            ("NOTED", Some(rq)) => {
                let kinds = ["NOT_AVAILABLE", "ACCEPT", "REFUSE"];
                // Having nothing to sell makes no deal of one's own.
                if roster.requests.contains_key(&(who, "NOT_AVAILABLE", rq)) {
                    self.remember(roster, who, &kinds, rq, message);
                } else {
                    self.answered(roster, who, &kinds, rq, message, Level::Known);
                }
            }
            ("NEGOTIATE" | "RESERVE" | "RELEASED", Some(rq)) => self.raise(who, rq, Level::Known),
            ("FOUND", Some(rq)) => self.raise(who, rq, Level::Found),
            ("NOT_FOUND" | "NOT_AVAILABLE" | "CANCEL", Some(rq)) => self.raise(who, rq, Level::Cancelled),
            ("RECEIPT" | "SETTLED", Some(rq)) => self.raise(who, rq, Level::Completed),
            ("DEALS", _) => {
                for deal in message["deals"].as_array().unwrap() {
                    let rq = deal["rq"].as_u64().unwrap();
                    let level = match deal["state"].as_str().unwrap() {
                        "completed" => Level::Completed,
                        // A seller that was released may still be asked again.
                        "cancelled" if deal["side"] == "buyer" => Level::Cancelled,
                        "settling" => Level::Bought,
                        "reserved" if deal["side"] == "buyer" => Level::Found,
                        _ => Level::Known,
                    };
                    self.raise(who, rq, level);
                }
            }
            _ => {}
        }
    }

    fn answered(&mut self, roster: &Roster, who: Who, kinds: &[&'static str], rq: u64, answer: &Value, level: Level) {
        self.remember(roster, who, kinds, rq, answer);
        self.raise(who, rq, level);
    }

    fn remember(&mut self, roster: &Roster, who: Who, kinds: &[&'static str], rq: u64, answer: &Value) {
        let kind = kinds.iter().find(|kind| roster.requests.contains_key(&(who, kind, rq)));
        let kind = kind.unwrap_or_else(|| panic!("{who} was answered {answer} and had not asked"));
        let first = self.answers.entry((who, kind, rq)).or_insert_with(|| answer.clone());
        assert_eq!(first, answer, "two answers to one {kind} of {who}");
    }

    fn raise(&mut self, who: Who, rq: u64, level: Level) {
        let known = self.deals.entry((who, rq)).or_insert(level);
        let both = [*known, level];
        assert!(
            !(both.contains(&Level::Completed) && both.contains(&Level::Cancelled)),
            "deal {rq} of {who} was told both completed and cancelled"
        );
        *known = level.max(*known);
    }

    /// How many registrations, deals and answers there are to stand by.
    pub fn sizes(&self) -> (usize, usize, usize) {
        (self.registered.len(), self.deals.len(), self.answers.len())
    }

    /// How each item ended, as far as a side was told. (A seller is told CANCELLED of offers that were
    /// not taken as well: that says nothing of the item.)
    pub fn ends(&self, roster: &Roster) -> Vec<Told> {
        let ended = self.deals.iter().filter(|(_, level)| **level >= Level::Cancelled);
        ended
            .filter_map(|((who, rq), level)| {
                let is_buyer = *rq < SERVER_NUMBERS;
                let item = if is_buyer {
                    roster.item_sought(*who, *rq)?
                } else {
                    let number = self.numbers.get(rq).unwrap_or_else(|| panic!("nobody was asked under {rq}"));
                    number.1.clone()
                };
                Some(Told { item, is_buyer, completed: *level == Level::Completed })
            })
            .collect()
    }

    /// Asks a server whether it stands by everything. `in_limbo` are registrations that may or may not
    /// have left; `repeats` is how many requests are made once more, to see the same answer.
    pub fn check(
        &mut self,
        roster: &Roster,
        server: SocketAddr,
        in_limbo: &dyn Fn(Who) -> bool,
        repeats: usize,
        rng: &mut Rng,
    ) {
        let mut probe = Probe::new(server);
        for (who, (token, cert)) in &self.registered {
            let name = &roster.peers[*who].name;
            if self.gone.contains_key(who) {
                let answer = probe.status(name, token, None);
                assert_eq!(answer["type"], "ERROR", "{name} ({who}) has left, and {answer}");
            } else if !in_limbo(*who) {
                let answer = probe.status(name, token, None);
                assert_eq!(answer["type"], "DEALS", "the registration of {name} ({who}) is lost: {answer}");
                assert_eq!(*cert, probe.cert_sha256, "the certificate is another one");
            }
        }
        let here = |who: &Who| self.registered.contains_key(who) && !self.gone.contains_key(who) && !in_limbo(*who);
        let deals: Vec<_> = self.deals.iter().filter(|((who, _), _)| here(who)).map(|(k, v)| (*k, *v)).collect();
        let mut said = Vec::new();
        for ((who, rq), level) in deals {
            let (name, token) = (&roster.peers[who].name, &self.registered[&who].0);
            let answer = probe.status(name, token, Some(rq));
            assert_eq!(answer["type"], "DEALS", "{answer}");
            let deals = answer["deals"].as_array().unwrap();
            assert_eq!(deals.len(), 1, "deal {rq} of {name} ({who}), which was {level:?}, is lost: {answer}");
            let state = deals[0]["state"].as_str().unwrap();
            assert!(level.fits(state), "deal {rq} of {name} ({who}) was {level:?} and is {}", deals[0]);
            said.push((who, answer));
        }
        let mut asked: Vec<_> = self.answers.iter().filter(|((who, ..), _)| here(who)).collect();
        while asked.len() > repeats {
            asked.swap_remove(rng.below(asked.len() as u64) as usize);
        }
        for ((who, kind, rq), answer) in asked {
            let mut request = roster.requests[&(*who, *kind, *rq)].clone();
            request["token"] = json!(self.registered[who].0);
            let again = probe.ask(&request, answer["type"].as_str().unwrap());
            assert_eq!(again, *answer, "another answer to the repeated {request}");
        }
        for (who, answer) in said {
            self.said(roster, who, &answer);
        }
        probe.leave();
    }

    /// Trades with a server, to see that no number of before comes again.
    pub fn check_fresh_numbers(&self, server: SocketAddr) {
        let (mut a, mut b) = (Probe::new(server), Probe::new(server));
        let request = json!({"type": "LOOKING_FOR", "rq": 1, "name": a.name, "item_name": "fresh", "description": "",
            "max_price": 1, "token": a.token});
        a.ask(&request, "SEARCHING");
        let search = b.push("SEARCH");
        let (mid, rq) = (search["mid"].as_u64().unwrap(), search["rq"].as_u64().unwrap());
        assert!(!self.mids.contains_key(&mid), "mid {mid} comes again: {search}");
        assert!(!self.numbers.contains_key(&rq), "number {rq} comes again: {search}");
        a.leave();
        b.leave();
    }
}

/// A peer of its own that asks for others with their tokens. (Registered, because strangers get few
/// and short answers.)
struct Probe {
    name: String,
    token: String,
    cert_sha256: Value,
    socket: UdpSocket,
    server: SocketAddr,
    next_rq: u64,
}

impl Probe {
    fn new(server: SocketAddr) -> Probe {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        let name = format!("probe-{port}");
        let mut probe =
            Probe { name, token: String::new(), cert_sha256: Value::Null, socket, server, next_rq: 1 << 30 };
        let request = json!({"type": "REGISTER", "rq": 0, "name": probe.name, "ip": "127.0.0.1", "udp_port": port,
            "tcp_port": port});
        let answer = probe.ask(&request, "REGISTERED");
        assert_eq!(answer["type"], "REGISTERED", "{answer}");
        probe.token = answer["token"].as_str().unwrap().to_owned();
        probe.cert_sha256 = answer["cert_sha256"].clone();
        probe
    }

    fn leave(mut self) {
        let request = json!({"type": "DE-REGISTER", "rq": 0, "name": self.name, "token": self.token});
        assert_eq!(self.ask(&request, "DE-REGISTERED")["type"], "DE-REGISTERED");
    }

    fn status(&mut self, name: &str, token: &str, rq_deal: Option<u64>) -> Value {
        self.next_rq += 1;
        let rq = self.next_rq;
        self.ask(&json!({"type": "STATUS", "rq": rq, "name": name, "token": token, "rq_deal": rq_deal}), "DEALS")
    }

    /// Sends until an answer of that type, or an error, comes.
    fn ask(&mut self, request: &Value, expected: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            self.socket.send_to(request.to_string().as_bytes(), self.server).unwrap();
            let again_at = Instant::now() + Duration::from_millis(500);
            while let Some(message) = self.receive(again_at) {
                let fits = message["type"] == expected || message["type"] == "ERROR";
                if message["mid"].is_null() && message["rq"] == request["rq"] && fits {
                    return message;
                }
            }
        }
        panic!("no answer to {request}")
    }

    fn push(&mut self, kind: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let message = self.receive(deadline).unwrap_or_else(|| panic!("no {kind} came"));
            if message["type"] == kind {
                return message;
            }
        }
    }

    fn receive(&mut self, deadline: Instant) -> Option<Value> {
        let mut bytes = [0; 65_536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            self.socket.set_read_timeout(Some(left.max(Duration::from_millis(1)))).unwrap();
            match self.socket.recv_from(&mut bytes) {
                Ok((length, source)) if source == self.server => {
                    return Some(serde_json::from_slice(&bytes[..length]).unwrap());
                }
                // The server of another test, to whoever had this port before.
                Ok(_) if !left.is_zero() => {}
                Ok(_) | Err(_) => return None,
            }
        }
    }
}

#[test]
fn one_number_may_be_two_ports() {
    let member = |udp_port, tcp_port| Member { name: String::new(), udp_port, tcp_port, leaving_from: None };
    let roster = Roster { peers: vec![member(40_000, 40_001), member(40_001, 40_000)], ..Roster::default() };
    assert_eq!(roster.by_port(Port::Udp(40_001)), Some(1));
    assert_eq!(roster.by_port(Port::Tcp(40_001)), Some(0));
    assert_eq!(roster.by_port(Port::Tcp(40_002)), None);
}
