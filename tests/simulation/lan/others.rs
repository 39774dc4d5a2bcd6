//! Peers of another make among ours: as document 003 has them, without INSTANCE. Each hears us from several
//! addresses of its host, keeps one entry for each, answers each of our announcements, and says everything to each entry.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use p2s2::lan::node::{Command, Done, Door, Effect, Event, Interface, Kind, Node, Settings, Shown};
use p2s2::lan::wire::{Discovery, Features, Message, Post, Stamp, UserId};
use p2s2::model::{Millis, Name};

use super::world::{ANNOUNCE_MS, CALM, DISCOVERY_PORT, FORGET_MS, ROUND_MS, STORM, Weather};
use crate::rng::Rng;

const BEGIN_MS: u64 = 1_700_000_000_000;
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// One program: on which computer, at which port.
struct Program {
    computer: usize,
    port: u16,
    what: What,
}

enum What {
    Ours(Box<Node>),
    Other(Other),
}

/// A peer of another make.
struct Other {
    name: String,
    /// Its USER_ID names the address that it speaks from, else always that of its network.
    names_source: bool,
    /// Whom it knows, and where.
    known: BTreeMap<String, SocketAddrV4>,
    got: Vec<String>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    Announce(usize),
    Tick(usize),
    /// The datagram of this number.
    Arrives(u64),
}

struct Datagram {
    to: usize,
    from: SocketAddrV4,
    door: Door,
    message: Message,
}

struct Network {
    rng: Rng,
    now: u64,
    weather: Weather,
    programs: Vec<Program>,
    queue: BinaryHeap<Reverse<(u64, u64, Next)>>,
    under_way: HashMap<u64, Datagram>,
    entered: u64,
    /// Datagrams to one address.
    unicasts: u64,
    /// How often each of ours showed each message.
    shown: HashMap<(usize, String), u32>,
}

fn ip_of(computer: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, 1 + computer as u8)
}

impl Network {
    fn new(seed: u64, computers: usize) -> Network {
        let mut network = Network {
            rng: Rng::new(seed),
            now: BEGIN_MS,
            weather: STORM,
            programs: Vec::new(),
            queue: BinaryHeap::new(),
            under_way: HashMap::new(),
            entered: 0,
            unicasts: 0,
            shown: HashMap::new(),
        };
        for computer in 0..computers {
            for n in 0..2 {
                let names_source = network.rng.permille(500);
                let (name, known) = (format!("other{n}"), BTreeMap::new());
                let what = What::Other(Other { name, names_source, known, got: Vec::new() });
                network.programs.push(Program { computer, port: 9_000 + n, what });
                let settings = Settings {
                    name: Name::new(&format!("ours{n}")).unwrap(),
                    instance: format!("{computer:08x}{n:08x}"),
                    kind: Kind::Person,
                    port: 8_000 + n,
                    discovery_port: DISCOVERY_PORT,
                    announce_every: Duration::from_millis(ANNOUNCE_MS),
                    forget_after: Duration::from_millis(FORGET_MS),
                };
                let what = What::Ours(Box::new(Node::new(settings)));
                network.programs.push(Program { computer, port: 8_000 + n, what });
            }
        }
        for program in 0..network.programs.len() {
            let at = network.now + network.rng.below(2_000);
            match network.programs[program].what {
                What::Other(_) => network.enter(at, Next::Announce(program)),
                What::Ours(_) => {
                    let own = ip_of(network.programs[program].computer);
                    let interface =
                        |ip, netmask: [u8; 4]| Interface { ip, netmask: Ipv4Addr::from(netmask), from: Some(ip) };
                    let both = vec![interface(LOOPBACK, [255, 0, 0, 0]), interface(own, [255, 255, 255, 0])];
                    network.tell(program, Event::Interfaces(both));
                    network.tell(program, Event::Started);
                }
            }
        }
        network
    }

    fn enter(&mut self, at: u64, next: Next) {
        self.entered += 1;
        self.queue.push(Reverse((at, self.entered, next)));
    }

    fn run(&mut self, ms: u64) {
        let end = self.now + ms;
        while self.queue.peek().is_some_and(|Reverse((at, ..))| *at <= end) {
            let Some(Reverse((at, _, next))) = self.queue.pop() else { break };
            self.now = at;
            match next {
                Next::Announce(other) => {
                    self.other_says_to_all(other);
                    self.enter(at + ANNOUNCE_MS, Next::Announce(other));
                }
                Next::Tick(ours) => self.tell(ours, Event::Tick),
                Next::Arrives(number) => {
                    let Some(datagram) = self.under_way.remove(&number) else { continue };
                    self.arrives(datagram);
                }
            }
        }
        self.now = end;
    }

    fn arrives(&mut self, Datagram { to, from, door, message }: Datagram) {
        let What::Other(other) = &mut self.programs[to].what else {
            let message = Ok(message);
            return self.tell(to, Event::Datagram { from: from.into(), door, message, bytes: 100 });
        };
        match message {
            Message::Discovery(said) => {
                let at = SocketAddrV4::new(*from.ip(), said.port);
                other.known.insert(said.user_id.to_string(), at);
                // What they say among themselves is theirs: two of them would answer each other for ever.
                if said.instance.is_some() {
                    self.other_announces(to, at);
                }
            }
            Message::Post(post) => other.got.push(post.content),
            _ => {}
        }
    }

    fn tell(&mut self, ours: usize, event: Event) {
        let rng = &mut self.rng;
        let What::Ours(node) = &mut self.programs[ours].what else { return };
        let effects = node.handle(Millis(self.now), event, &mut || rng.below(u64::MAX));
        self.make_real(ours, effects);
    }

    fn post(&mut self, ours: usize, content: &str) -> usize {
        let rng = &mut self.rng;
        let What::Ours(node) = &mut self.programs[ours].what else { return 0 };
        let command = Command::Post { content: content.to_owned() };
        let (done, effects) = node.command(Millis(self.now), command, &mut || rng.below(u64::MAX)).unwrap();
        self.make_real(ours, effects);
        if let Done::Posted { to, .. } = done { to } else { 0 }
    }

    fn make_real(&mut self, ours: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send { to: SocketAddr::V4(to), message } => self.send(ours, to, message),
                Effect::Broadcast { by, message } => self.broadcast(ours, by, &message),
                Effect::Show(Shown::Post { post, .. }) => {
                    *self.shown.entry((ours, post.content)).or_default() += 1;
                }
                _ => {}
            }
        }
        let What::Ours(node) = &self.programs[ours].what else { return };
        if let Some(at) = node.next_deadline() {
            self.enter(at.0.max(self.now), Next::Tick(ours));
        }
    }

    /// The address that a program speaks from to another: on its own computer that which it speaks to.
    fn source(&self, program: usize, to: Ipv4Addr) -> SocketAddrV4 {
        let Program { computer, port, .. } = self.programs[program];
        SocketAddrV4::new(if to.is_loopback() { LOOPBACK } else { ip_of(computer) }, port)
    }

    fn send(&mut self, program: usize, to: SocketAddrV4, message: Message) {
        self.unicasts += 1;
        let computer = self.programs[program].computer;
        let is_there = |other: &Program| {
            let here =
                if to.ip().is_loopback() { other.computer == computer } else { ip_of(other.computer) == *to.ip() };
            here && other.port == to.port()
        };
        let Some(target) = self.programs.iter().position(is_there) else { return };
        self.carry(target, self.source(program, *to.ip()), Door::Own, message);
    }

    fn broadcast(&mut self, program: usize, by: Ipv4Addr, message: &Message) {
        let (computer, from) = (self.programs[program].computer, self.source(program, by));
        for target in 0..self.programs.len() {
            if !by.is_loopback() || self.programs[target].computer == computer {
                self.carry(target, from, Door::Discovery, message.clone());
            }
        }
    }

    fn carry(&mut self, to: usize, from: SocketAddrV4, door: Door, message: Message) {
        if self.rng.permille(self.weather.loss) {
            return;
        }
        let copies = 1 + u64::from(self.rng.permille(self.weather.repeat));
        for _ in 0..copies {
            let at = self.now + self.rng.range(1, self.weather.delay_max_ms);
            self.enter(at, Next::Arrives(self.entered + 1));
            self.under_way.insert(self.entered, Datagram { to, from, door, message: message.clone() });
        }
    }

    // What others do.

    fn user_id(&self, other: usize, from: Ipv4Addr) -> UserId {
        let Program { computer, what: What::Other(it), .. } = &self.programs[other] else { panic!("{other} is ours") };
        let ip = if it.names_source { from } else { ip_of(*computer) };
        UserId { name: Name::new(&it.name).unwrap(), ip }
    }

    fn stamp(&mut self) -> Stamp {
        let message_id = Some(format!("{:x}", self.rng.below(u64::MAX)));
        Stamp { timestamp: Some(self.now / 1000), message_id }
    }

    fn discovery(&mut self, other: usize, from: Ipv4Addr) -> Message {
        Message::Discovery(Discovery {
            user_id: self.user_id(other, from),
            port: self.programs[other].port,
            instance: None,
            features: Features::default(),
            serves: Vec::new(),
            cert_sha256: None,
            stamp: self.stamp(),
        })
    }

    fn other_announces(&mut self, other: usize, to: SocketAddrV4) {
        let from = *self.source(other, *to.ip()).ip();
        let message = self.discovery(other, from);
        self.send(other, to, message);
    }

    fn other_says_to_all(&mut self, other: usize) {
        for by in [LOOPBACK, ip_of(self.programs[other].computer)] {
            let message = self.discovery(other, by);
            self.broadcast(other, by, &message);
        }
    }

    /// The same message to each entry.
    fn other_posts(&mut self, other: usize, content: &str) {
        let What::Other(it) = &self.programs[other].what else { return };
        let to: Vec<SocketAddrV4> = it.known.values().copied().collect();
        let stamp = self.stamp();
        for to in to {
            let user_id = self.user_id(other, *self.source(other, *to.ip()).ip());
            let post = Post { user_id, content: content.to_owned(), stamp: stamp.clone() };
            self.send(other, to, Message::Post(post));
        }
    }

    fn peers(&self, ours: usize) -> Vec<(UserId, SocketAddr)> {
        let What::Ours(node) = &self.programs[ours].what else { return Vec::new() };
        node.peers().into_iter().map(|known| (known.user_id, known.addr)).collect()
    }
}

#[test]
fn peers_of_another_make_are_one_each_and_make_no_storm() {
    const COMPUTERS: usize = 3;
    for seed in 0..(super::seeds() / 10).max(3) {
        let mut network = Network::new(seed, COMPUTERS);
        network.run(4 * ROUND_MS);
        network.weather = CALM;
        // What was lost, doubled and late is over, and everybody has announced himself once more.
        network.run(3 * ROUND_MS);

        let all = network.programs.len();
        let (ours, others): (Vec<usize>, Vec<usize>) =
            (0..all).partition(|program| matches!(network.programs[*program].what, What::Ours(_)));
        for peer in &ours {
            let known = network.peers(*peer);
            assert_eq!(known.len(), all - 1, "seed {seed}: {peer} knows {known:?}");
        }
        for peer in &ours {
            let content = format!("from {peer}");
            assert_eq!(network.post(*peer, &content), all - 1);
            network.run(1_000);
            for program in (0..all).filter(|program| program != peer) {
                let times = match &network.programs[program].what {
                    What::Other(it) => it.got.iter().filter(|got| **got == content).count() as u32,
                    What::Ours(_) => network.shown.get(&(program, content.clone())).copied().unwrap_or(0),
                };
                assert_eq!(times, 1, "seed {seed}: {content} at {program}");
            }
        }
        for other in &others {
            let content = format!("from {other}");
            network.other_posts(*other, &content);
            network.run(1_000);
            for peer in &ours {
                let times = network.shown.get(&(*peer, content.clone())).copied().unwrap_or(0);
                assert_eq!(times, 1, "seed {seed}: {content} at {peer}");
            }
        }

        // Ten minutes in which nothing happens. Each of the others answers what ours broadcast, twice a minute by at
        // most two ways; ours answer each of them twice a minute, which it answers too.
        let before = network.unicasts;
        network.run(600_000);
        let minute = (network.unicasts - before) / 10;
        let bound = (ours.len() * others.len()) as u64 * 9;
        assert!(minute <= bound, "seed {seed}: {minute} a minute, at most {bound}");
    }
}
