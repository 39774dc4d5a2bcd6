//! The promises that the server has made to its peers and must keep forever.
//!
//! Every message from the server is recorded by [`Claims::record_message`], which detects contradictions at once.
//! [`Claims::check`] verifies the rest against a (restarted) server.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::rng::Rng;
use crate::support::PATIENCE;

/// A registration: its index in [`Roster::peers`]. A name that registers again is a new registration.
pub type RegistrationId = usize;
/// Request numbers from here on are assigned by the server.
pub const FIRST_SERVER_NUMBER: u64 = 1 << 31;

/// The traders and their requests, as the peers know them.
#[derive(Default, Clone)]
pub struct Roster {
    pub peers: Vec<RegisteredPeer>,
    /// Requests by registration, type and number.
    pub requests: HashMap<(RegistrationId, &'static str, u64), Value>,
}

#[derive(Clone)]
pub struct RegisteredPeer {
    pub name: String,
    pub udp_port: u16,
    pub tcp_port: u16,
    /// Set once DE-REGISTER was sent: the length of the disk log before that.
    pub left_at_log_length: Option<u64>,
}

/// The destination port of a message. The same number may be one peer's UDP port and another's TCP port.
#[derive(Debug, Clone, Copy)]
pub enum Port {
    Udp(u16),
    Tcp(u16),
}

impl Roster {
    pub fn by_port(&self, port: Port) -> Option<RegistrationId> {
        self.peers.iter().position(|peer| match port {
            Port::Udp(port) => peer.udp_port == port,
            Port::Tcp(port) => peer.tcp_port == port,
        })
    }

    /// The item of a buyer's search.
    fn searched_item(&self, who: RegistrationId, rq: u64) -> Option<String> {
        Some(self.requests.get(&(who, "LOOKING_FOR", rq))?["item_name"].as_str()?.to_owned())
    }
}

/// The minimum progress that STATUS must show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DealProgress {
    /// The deal exists.
    Known,
    /// A seller's unit was reserved for this buyer.
    Found,
    /// BUY was accepted.
    Bought,
    /// It ended without a sale.
    Cancelled,
    /// It ended with a sale.
    Completed,
}

impl DealProgress {
    fn fits(self, state: &str) -> bool {
        match self {
            DealProgress::Known => true,
            DealProgress::Found => ["reserved", "settling", "cancelled", "completed"].contains(&state),
            DealProgress::Bought => ["settling", "cancelled", "completed"].contains(&state),
            DealProgress::Cancelled => state == "cancelled",
            DealProgress::Completed => state == "completed",
        }
    }
}

#[derive(Default)]
pub struct Claims {
    /// Token and certificate fingerprint of each registration.
    registered: BTreeMap<RegistrationId, (String, Value)>,
    gone: BTreeMap<RegistrationId, ()>,
    deals: BTreeMap<(RegistrationId, u64), DealProgress>,
    /// The item and seller for which the server assigned each number.
    numbers: HashMap<u64, (RegistrationId, String)>,
    mids: HashMap<u64, (RegistrationId, Value)>,
    answers: BTreeMap<(RegistrationId, &'static str, u64), Value>,
}

/// How an item's deal ended, as one side was told.
pub struct ItemOutcome {
    pub item: String,
    pub is_buyer: bool,
    pub completed: bool,
}

impl Claims {
    /// Records a message from the server to a registration.
    pub fn record_message(&mut self, roster: &Roster, who: RegistrationId, message: &Value) {
        let kind = message["type"].as_str().unwrap_or_else(|| panic!("no type: {message}"));
        let rq = message["rq"].as_u64();
        if let Some(mid) = message["mid"].as_u64() {
            let first = self.mids.entry(mid).or_insert_with(|| (who, message.clone()));
            assert!(first.0 == who && first.1 == *message, "mid {mid} was {first:?} and is now {message} to {who}");
        }
        if let (Some(number @ FIRST_SERVER_NUMBER..), Some(item)) = (rq, message["item_name"].as_str()) {
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
            ("SEARCHING", Some(rq)) => self.answered(roster, who, &["LOOKING_FOR"], rq, message, DealProgress::Known),
            ("OFFERED", Some(rq)) => self.answered(roster, who, &["OFFER"], rq, message, DealProgress::Known),
            ("BUYING", Some(rq)) => self.answered(roster, who, &["BUY"], rq, message, DealProgress::Bought),
            ("CANCELLED", Some(rq)) => self.answered(roster, who, &["CANCEL"], rq, message, DealProgress::Cancelled),
            ("NOTED", Some(rq)) => {
                let kinds = ["NOT_AVAILABLE", "ACCEPT", "REFUSE"];
                // NOT_AVAILABLE creates no deal for the sender.
                if roster.requests.contains_key(&(who, "NOT_AVAILABLE", rq)) {
                    self.remember(roster, who, &kinds, rq, message);
                } else {
                    self.answered(roster, who, &kinds, rq, message, DealProgress::Known);
                }
            }
            ("NEGOTIATE" | "RESERVE" | "RELEASED", Some(rq)) => self.raise(who, rq, DealProgress::Known),
            ("FOUND", Some(rq)) => self.raise(who, rq, DealProgress::Found),
            ("NOT_FOUND" | "NOT_AVAILABLE" | "CANCEL", Some(rq)) => self.raise(who, rq, DealProgress::Cancelled),
            ("RECEIPT" | "SETTLED", Some(rq)) => self.raise(who, rq, DealProgress::Completed),
            ("DEALS", _) => {
                for deal in message["deals"].as_array().unwrap() {
                    let rq = deal["rq"].as_u64().unwrap();
                    let level = match deal["state"].as_str().unwrap() {
                        "completed" => DealProgress::Completed,
                        // A released seller may be asked again.
                        "cancelled" if deal["side"] == "buyer" => DealProgress::Cancelled,
                        "settling" => DealProgress::Bought,
                        "reserved" if deal["side"] == "buyer" => DealProgress::Found,
                        _ => DealProgress::Known,
                    };
                    self.raise(who, rq, level);
                }
            }
            _ => {}
        }
    }

    fn answered(
        &mut self,
        roster: &Roster,
        who: RegistrationId,
        kinds: &[&'static str],
        rq: u64,
        answer: &Value,
        level: DealProgress,
    ) {
        self.remember(roster, who, kinds, rq, answer);
        self.raise(who, rq, level);
    }

    fn remember(&mut self, roster: &Roster, who: RegistrationId, kinds: &[&'static str], rq: u64, answer: &Value) {
        let kind = kinds.iter().find(|kind| roster.requests.contains_key(&(who, kind, rq)));
        let kind = kind.unwrap_or_else(|| panic!("{who} was answered {answer} and had not asked"));
        let first = self.answers.entry((who, kind, rq)).or_insert_with(|| answer.clone());
        assert_eq!(first, answer, "two answers to one {kind} of {who}");
    }

    fn raise(&mut self, who: RegistrationId, rq: u64, level: DealProgress) {
        let known = self.deals.entry((who, rq)).or_insert(level);
        let both = [*known, level];
        assert!(
            !(both.contains(&DealProgress::Completed) && both.contains(&DealProgress::Cancelled)),
            "deal {rq} of {who} was told both completed and cancelled"
        );
        *known = level.max(*known);
    }

    /// The numbers of registrations, deals and responses to verify.
    pub fn sizes(&self) -> (usize, usize, usize) {
        (self.registered.len(), self.deals.len(), self.answers.len())
    }

    /// How each item ended, as far as a side was told. (Sellers receive CANCELLED also for offers that were not taken,
    /// which says nothing about the item.)
    pub fn ends(&self, roster: &Roster) -> Vec<ItemOutcome> {
        let ended = self.deals.iter().filter(|(_, level)| **level >= DealProgress::Cancelled);
        ended
            .filter_map(|((who, rq), level)| {
                let is_buyer = *rq < FIRST_SERVER_NUMBER;
                let item = if is_buyer {
                    roster.searched_item(*who, *rq)?
                } else {
                    let number = self.numbers.get(rq).unwrap_or_else(|| panic!("nobody was asked under {rq}"));
                    number.1.clone()
                };
                Some(ItemOutcome { item, is_buyer, completed: *level == DealProgress::Completed })
            })
            .collect()
    }

    /// Verifies all promises against a server. `may_have_left` tells which registrations may or may not exist;
    /// `repeats` is the number of requests that are repeated and must get the same response.
    pub fn check(
        &mut self,
        roster: &Roster,
        server: SocketAddr,
        may_have_left: &dyn Fn(RegistrationId) -> bool,
        repeats: usize,
        rng: &mut Rng,
    ) {
        let mut probe = Probe::new(server);
        for (who, (token, cert)) in &self.registered {
            let name = &roster.peers[*who].name;
            if self.gone.contains_key(who) {
                let answer = probe.status(name, token, None);
                assert_eq!(answer["type"], "ERROR", "{name} ({who}) has left, and {answer}");
            } else if !may_have_left(*who) {
                let answer = probe.status(name, token, None);
                assert_eq!(answer["type"], "DEALS", "the registration of {name} ({who}) is lost: {answer}");
                assert_eq!(*cert, probe.cert_sha256, "the certificate is another one");
            }
        }
        let here = |who: &RegistrationId| {
            self.registered.contains_key(who) && !self.gone.contains_key(who) && !may_have_left(*who)
        };
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
            self.record_message(roster, who, &answer);
        }
        probe.leave();
    }

    /// Makes a deal to check that numbers are never reused.
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

/// A separate peer that queries with the other peers' tokens. It is registered because unregistered peers get few and
/// short responses.
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

    /// Sends until a response of this type, or an error, arrives.
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
                // From another test's server to the previous owner of this port.
                Ok(_) if !left.is_zero() => {}
                Ok(_) | Err(_) => return None,
            }
        }
    }
}

#[test]
fn one_number_may_be_two_ports() {
    let member =
        |udp_port, tcp_port| RegisteredPeer { name: String::new(), udp_port, tcp_port, left_at_log_length: None };
    let roster = Roster { peers: vec![member(40_000, 40_001), member(40_001, 40_000)], ..Roster::default() };
    assert_eq!(roster.by_port(Port::Udp(40_001)), Some(1));
    assert_eq!(roster.by_port(Port::Tcp(40_001)), Some(0));
    assert_eq!(roster.by_port(Port::Tcp(40_002)), None);
}
