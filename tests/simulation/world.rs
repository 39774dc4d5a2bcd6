//! Time, the network and everyone in it. All events happen in the order of one queue.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;

use p2s2::internals::trade::exchange::NotificationId;
use p2s2::internals::trade::wire::{Ack, Notification, Request, Response, SettlementMessage, Side};

use crate::Fault;
use crate::bank::{Answer, Bank, Call};
use crate::disk::Disk;
use crate::invariants::{Invariants, Violation};
use crate::peer::{DELAY_MAX_MS, Habits, Peer, PeerAction, SettlementReaction};
use crate::rng::Rng;
use crate::server::Server;

/// When the simulated time begins.
const BEGIN_MS: u64 = 1_700_000_000_000;
/// How long peers are active and anything may fail.
const STORMY_MS: u64 = 180_000;
/// Then nothing fails any more, and every window, settlement and open question is resolved.
const CALM_MS: u64 = 420_000;
/// Then nobody sends anything, until everything has expired.
const QUIET_MS: u64 = 700_000;

#[derive(Debug, Clone)]
pub enum Event {
    Wake(usize),
    Retry { peer: usize, rq: u64, tries: u32 },
    Request { from: SocketAddr, request: Box<Request> },
    Ack { from: SocketAddr, mid: u64 },
    Response { to: SocketAddr, response: Box<Response> },
    Notification { to: SocketAddr, notification: Box<Notification> },
    LineToPeer { deal: u64, side: Side, peer: usize, line: Box<SettlementMessage> },
    // Events of the server are dropped when it stops; they carry the number of its start.
    LineToServer { start: u32, deal: u64, side: Side, text: String },
    LineBroke { start: u32, deal: u64, side: Side },
    StepTimeout { start: u32, deal: u64, step: u8 },
    Bank { start: u32, deal: u64, key: String, call: Call, tries: u32 },
    BankSaid { start: u32, deal: u64, answer: Answer },
    StoreAgain { start: u32, deal: u64 },
    Commit { start: u32 },
    Tick { start: u32, deal: u64 },
    Resend { start: u32, id: NotificationId, sent: u32 },
    DepartingPeers { start: u32 },
    Sweep { start: u32 },
    Start,
}

struct Entry(u64, u64, Event);

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// The rates of failures, in thousandths.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    pub loss: u64,
    pub repeat: u64,
    pub late: u64,
    pub crash: u64,
    pub store_fails: u64,
    pub bank_away: u64,
    pub lines_break: u64,
}

const CALM: Weather = Weather { loss: 0, repeat: 0, late: 0, crash: 0, store_fails: 0, bank_away: 0, lines_break: 0 };

pub struct World {
    pub rng: Rng,
    pub now: u64,
    queue: BinaryHeap<Reverse<Entry>>,
    scheduled: u64,
    pub weather: Weather,
    pub healed: bool,
    pub peers: Vec<Peer>,
    pub disk: Disk,
    pub bank: Bank,
    pub server: Option<Server>,
    pub starts: u32,
    pub rules: Invariants,
    pub fault: Option<Fault>,
    trace: bool,
    pub tally: Tally,
}

/// What has occurred in a run, so that a test can check that it tests something.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    pub events: u64,
    pub crashes: u64,
    pub store_failures: u64,
    pub deals: u64,
    pub completed: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.events += other.events;
        self.crashes += other.crashes;
        self.store_failures += other.store_failures;
        self.deals += other.deals;
        self.completed += other.completed;
    }
}

impl World {
    pub fn new(seed: u64, fault: Option<Fault>, trace: bool) -> World {
        let mut rng = Rng::new(seed);
        let rough = rng.below(4);
        let mut upto = |most: u64| if rough == 0 { 0 } else { rng.below(most * rough / 3 + 1) };
        let weather = Weather {
            loss: upto(250),
            repeat: upto(200),
            late: upto(150),
            crash: upto(6),
            store_fails: upto(30),
            bank_away: upto(200),
            lines_break: upto(50),
        };
        let count = rng.range(2, 6) as usize;
        let peers = (0..count).map(|place| {
            let never_acks = rng.permille(150);
            let habits = Habits {
                silent: rng.permille(100),
                never_acks,
                liar: rng.permille(200),
                bad_card: rng.permille(100),
                shows_token: rng.permille(500) || never_acks,
                forgets_units: fault == Some(Fault::SellTwice),
            };
            Peer::new(place, habits, &mut rng)
        });
        let peers = peers.collect();
        let mut world = World {
            rng,
            now: BEGIN_MS,
            queue: BinaryHeap::new(),
            scheduled: 0,
            weather,
            healed: false,
            peers,
            disk: Disk::new(seed, fault),
            bank: Bank::default(),
            server: None,
            starts: 0,
            rules: Invariants::default(),
            fault,
            trace,
            tally: Tally::default(),
        };
        world.note(|| format!("{weather:?}"));
        world.start();
        for peer in 0..count {
            world.at(10 + peer as u64, Event::Wake(peer));
        }
        world
    }

    /// Runs to the end or to the first violation.
    pub fn run(mut self) -> Result<Tally, Violation> {
        self.play(BEGIN_MS + STORMY_MS)?;
        self.note(|| "-- all is well from here on".to_owned());
        self.weather = CALM;
        self.healed = true;
        self.play(BEGIN_MS + STORMY_MS + CALM_MS)?;
        {
            let disk = self.disk.lock();
            self.rules.end(&disk.rows, &self.bank, &self.peers);
            self.tally.completed = disk.rows.completed.len() as u64;
        }
        self.checked()?;
        self.peers.iter_mut().for_each(|peer| peer.token = None);
        self.peers.iter_mut().for_each(|peer| peer.pending.clear());
        self.note(|| "-- nobody says anything from here on".to_owned());
        self.queue.retain(|Reverse(Entry(.., event))| !matches!(event, Event::Wake(_)));
        self.play(BEGIN_MS + STORMY_MS + CALM_MS + QUIET_MS)?;
        let in_memory = self.server.as_ref().map_or(0, |server| server.exchange.sizes().1);
        self.rules.swept(&self.disk.lock().rows, in_memory);
        self.checked()?;
        Ok(self.tally)
    }

    fn play(&mut self, until: u64) -> Result<(), Violation> {
        while let Some(Reverse(Entry(at, ..))) = self.queue.peek()
            && *at <= until
            && let Some(Reverse(Entry(at, _, event))) = self.queue.pop()
        {
            self.now = at;
            self.tally.events += 1;
            self.note(|| format!("{event:?}"));
            if !matches!(event, Event::Wake(_) | Event::Retry { .. } | Event::Start) && self.may_crash() {
                continue;
            }
            self.happen(event);
            self.checked()?;
        }
        Ok(())
    }

    fn checked(&mut self) -> Result<(), Violation> {
        self.rules.broken.take().map_or(Ok(()), Err)
    }

    pub fn note(&self, what: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:>8} {}", self.now - BEGIN_MS, what());
        }
    }

    pub fn at(&mut self, in_ms: u64, event: Event) {
        self.scheduled += 1;
        self.queue.push(Reverse(Entry(self.now + in_ms, self.scheduled, event)));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Wake(peer) => {
                let done = self.peers[peer].wake(self.now, self.healed, &mut self.rng);
                self.peer_does(peer, done);
                let pause = if self.healed { 20_000 } else { self.rng.range(200, 8_000) };
                self.at(pause, Event::Wake(peer));
            }
            Event::Retry { peer, rq, tries } => {
                if let Some(request) = self.peers[peer].pending.get(&rq).cloned() {
                    if tries >= 8 && !self.healed {
                        self.peers[peer].pending.remove(&rq);
                    } else {
                        self.send_request(peer, request);
                        self.at(1_500, Event::Retry { peer, rq, tries: tries + 1 });
                    }
                }
            }
            Event::Response { to, response } => {
                if let Some(peer) = self.peers.iter_mut().find(|peer| peer.home == to) {
                    peer.response(&response, self.now);
                }
            }
            Event::Notification { to, notification } => {
                if let Some(peer) = self.peers.iter().position(|peer| peer.home == to) {
                    let done = self.peers[peer].push(&notification, self.now, &mut self.rng);
                    self.peer_does(peer, done);
                }
            }
            Event::LineToPeer { deal, side, peer, line } => {
                let start = self.starts;
                match self.peers[peer].line(&line, self.now, &mut self.rng) {
                    SettlementReaction::Line(text) => self.at(5, Event::LineToServer { start, deal, side, text }),
                    SettlementReaction::Nothing => {}
                    SettlementReaction::HangUp => self.at(5, Event::LineBroke { start, deal, side }),
                }
            }
            Event::Start => self.start(),
            event => self.server_happens(event),
        }
        // The stock of every peer is checked, since any may have changed.
        let disk = self.disk.lock();
        for peer in &self.peers {
            self.rules.stock(peer, &disk.rows);
        }
    }

    fn peer_does(&mut self, peer: usize, done: Vec<PeerAction>) {
        for one in done {
            match one {
                PeerAction::Ask(request) => {
                    let rq = request.rq;
                    self.send_request(peer, request);
                    self.at(1_000, Event::Retry { peer, rq, tries: 1 });
                }
                PeerAction::Ack(mid) => {
                    let from = self.peers[peer].home;
                    self.network(Event::Ack { from, mid });
                }
            }
        }
    }

    fn send_request(&mut self, peer: usize, request: Request) {
        let from = self.peers[peer].home;
        self.network(Event::Request { from, request: Box::new(request) });
    }

    /// Delivers a datagram: it may be lost, duplicated or delayed.
    pub fn network(&mut self, event: Event) {
        let copies = 1 + u64::from(self.rng.permille(self.weather.repeat));
        for _ in 0..copies {
            if self.rng.permille(self.weather.loss) {
                continue;
            }
            let late = self.rng.permille(self.weather.late);
            let delay = if late { self.rng.range(100, DELAY_MAX_MS - 1_000) } else { self.rng.range(1, 30) };
            self.at(delay, event.clone());
        }
    }

    pub fn ack(from: SocketAddr, mid: u64) -> (SocketAddr, Ack) {
        (from, Ack { mid, token: None })
    }
}
