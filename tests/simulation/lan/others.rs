//! Simulation of our peers among those of another implementation, which have no INSTANCE. Such a peer hears us from
//! several addresses of its host, keeps one entry for each, answers each of our announcements, and sends every message
//! to each entry.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use p2s2::internals::lan::SocketRole;
use p2s2::internals::lan::node::{
    CommandOutcome, InterfaceAddress, Node, NodeCommand, NodeConfig, NodeEffect, NodeEvent, NodeKind, Notification,
};
use p2s2::internals::lan::wire::{Discovery, Features, Message, MessageStamp, Post, Talk, TalkBody, UserId};
use p2s2::internals::model::{Millis, Name};

use super::world::{ANNOUNCE_MS, DISCOVERY_PORT, FORGET_MS, NetworkConditions, RELIABLE, ROUND_MS, UNRELIABLE};
use crate::rng::Rng;

const BEGIN_MS: u64 = 1_700_000_000_000;
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A peer of either implementation.
struct Program {
    computer: usize,
    port: u16,
    implementation: Implementation,
}

enum Implementation {
    Ours(Box<Node>),
    Foreign(ForeignPeer),
}

/// A peer of the other implementation.
struct ForeignPeer {
    name: String,
    /// Whether its USER_ID names the address that it sends from, else always that of its network interface.
    names_source: bool,
    /// Known peers by USER_ID.
    known: BTreeMap<String, SocketAddrV4>,
    received: Vec<String>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum NetworkEvent {
    Announce(usize),
    Tick(usize),
    /// The datagram with this key in `in_flight` arrives.
    Arrives(u64),
}

struct Datagram {
    to: usize,
    from: SocketAddrV4,
    socket: SocketRole,
    message: Message,
}

struct Network {
    rng: Rng,
    now: u64,
    conditions: NetworkConditions,
    programs: Vec<Program>,
    queue: BinaryHeap<Reverse<(u64, u64, NetworkEvent)>>,
    in_flight: HashMap<u64, Datagram>,
    scheduled: u64,
    /// How many unicasts were sent.
    unicasts: u64,
    /// How often each of our peers showed each message.
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
            conditions: UNRELIABLE,
            programs: Vec::new(),
            queue: BinaryHeap::new(),
            in_flight: HashMap::new(),
            scheduled: 0,
            unicasts: 0,
            shown: HashMap::new(),
        };
        for computer in 0..computers {
            for n in 0..2 {
                let names_source = network.rng.permille(500);
                let (name, known) = (format!("other{n}"), BTreeMap::new());
                let implementation =
                    Implementation::Foreign(ForeignPeer { name, names_source, known, received: Vec::new() });
                network.programs.push(Program { computer, port: 9_000 + n, implementation });
                let settings = NodeConfig {
                    name: Name::new(&format!("ours{n}")).unwrap(),
                    instance: format!("{computer:08x}{n:08x}"),
                    kind: NodeKind::Person,
                    port: 8_000 + n,
                    discovery_port: DISCOVERY_PORT,
                    announce_every: Duration::from_millis(ANNOUNCE_MS),
                    forget_after: Duration::from_millis(FORGET_MS),
                };
                let implementation = Implementation::Ours(Box::new(Node::new(settings)));
                network.programs.push(Program { computer, port: 8_000 + n, implementation });
            }
        }
        for program in 0..network.programs.len() {
            let at = network.now + network.rng.below(2_000);
            match network.programs[program].implementation {
                Implementation::Foreign(_) => network.schedule(at, NetworkEvent::Announce(program)),
                Implementation::Ours(_) => {
                    let own = ip_of(network.programs[program].computer);
                    let interface = |ip, netmask: [u8; 4]| InterfaceAddress {
                        ip,
                        netmask: Ipv4Addr::from(netmask),
                        source_ip: Some(ip),
                    };
                    let both = vec![interface(LOOPBACK, [255, 0, 0, 0]), interface(own, [255, 255, 255, 0])];
                    network.handle_event(program, NodeEvent::InterfacesChanged(both));
                    network.handle_event(program, NodeEvent::Started);
                }
            }
        }
        network
    }

    fn schedule(&mut self, at: u64, event: NetworkEvent) {
        self.scheduled += 1;
        self.queue.push(Reverse((at, self.scheduled, event)));
    }

    fn run(&mut self, ms: u64) {
        let end = self.now + ms;
        while self.queue.peek().is_some_and(|Reverse((at, ..))| *at <= end) {
            let Some(Reverse((at, _, event))) = self.queue.pop() else { break };
            self.now = at;
            match event {
                NetworkEvent::Announce(other) => {
                    self.other_broadcasts(other);
                    self.schedule(at + ANNOUNCE_MS, NetworkEvent::Announce(other));
                }
                NetworkEvent::Tick(ours) => self.handle_event(ours, NodeEvent::Tick),
                NetworkEvent::Arrives(number) => {
                    let Some(datagram) = self.in_flight.remove(&number) else { continue };
                    self.deliver(datagram);
                }
            }
        }
        self.now = end;
    }

    fn deliver(&mut self, Datagram { to, from, socket, message }: Datagram) {
        let Implementation::Foreign(other) = &mut self.programs[to].implementation else {
            let message = Ok(message);
            return self.handle_event(to, NodeEvent::Datagram { from: from.into(), socket, message, bytes: 100 });
        };
        match message {
            Message::Discovery(said) => {
                let at = SocketAddrV4::new(*from.ip(), said.port);
                other.known.insert(said.user_id.to_string(), at);
                // They do not answer each other: two of them would do so for ever.
                if said.instance.is_some() {
                    self.other_announces(to, at);
                }
            }
            Message::Talk(Talk { body: TalkBody::Post(post), .. }) => other.received.push(post.content),
            _ => {}
        }
    }

    fn handle_event(&mut self, ours: usize, event: NodeEvent) {
        let rng = &mut self.rng;
        let Implementation::Ours(node) = &mut self.programs[ours].implementation else { return };
        let effects = node.handle(Millis(self.now), event, &mut || rng.below(u64::MAX));
        self.apply_effects(ours, effects);
    }

    fn post(&mut self, ours: usize, content: &str) -> usize {
        let rng = &mut self.rng;
        let Implementation::Ours(node) = &mut self.programs[ours].implementation else { return 0 };
        let command = NodeCommand::Say { to: None, body: Post { content: content.to_owned() }.into() };
        let (done, effects) = node.command(Millis(self.now), command, &mut || rng.below(u64::MAX)).unwrap();
        self.apply_effects(ours, effects);
        if let CommandOutcome::SaidToAll { to, .. } = done { to } else { 0 }
    }

    fn apply_effects(&mut self, ours: usize, effects: Vec<NodeEffect>) {
        for effect in effects {
            match effect {
                NodeEffect::Send { to: SocketAddr::V4(to), message } => self.send(ours, to, message),
                NodeEffect::Broadcast { interface_ip, message } => self.broadcast(ours, interface_ip, &message),
                NodeEffect::Notify(Notification::Heard { talk: Talk { body: TalkBody::Post(post), .. }, .. }) => {
                    *self.shown.entry((ours, post.content)).or_default() += 1;
                }
                _ => {}
            }
        }
        let Implementation::Ours(node) = &self.programs[ours].implementation else { return };
        if let Some(at) = node.next_deadline() {
            self.schedule(at.0.max(self.now), NetworkEvent::Tick(ours));
        }
    }

    /// The source address of a program towards a target: loopback for targets on loopback.
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
        self.transmit(target, self.source(program, *to.ip()), SocketRole::Own, message);
    }

    fn broadcast(&mut self, program: usize, interface_ip: Ipv4Addr, message: &Message) {
        let (computer, from) = (self.programs[program].computer, self.source(program, interface_ip));
        for target in 0..self.programs.len() {
            if !interface_ip.is_loopback() || self.programs[target].computer == computer {
                self.transmit(target, from, SocketRole::Discovery, message.clone());
            }
        }
    }

    fn transmit(&mut self, to: usize, from: SocketAddrV4, socket: SocketRole, message: Message) {
        if self.rng.permille(self.conditions.loss) {
            return;
        }
        let copies = 1 + u64::from(self.rng.permille(self.conditions.repeat));
        for _ in 0..copies {
            let at = self.now + self.rng.range(1, self.conditions.delay_max_ms);
            self.schedule(at, NetworkEvent::Arrives(self.scheduled + 1));
            self.in_flight.insert(self.scheduled, Datagram { to, from, socket, message: message.clone() });
        }
    }

    // The behaviour of the other implementation.

    fn user_id(&self, other: usize, from: Ipv4Addr) -> UserId {
        let Program { computer, implementation: Implementation::Foreign(it), .. } = &self.programs[other] else {
            panic!("{other} is ours")
        };
        let ip = if it.names_source { from } else { ip_of(*computer) };
        UserId { name: Name::new(&it.name).unwrap(), ip }
    }

    fn stamp(&mut self) -> MessageStamp {
        let message_id = Some(format!("{:x}", self.rng.below(u64::MAX)));
        MessageStamp { timestamp: Some(self.now / 1000), message_id }
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

    fn other_broadcasts(&mut self, other: usize) {
        for interface_ip in [LOOPBACK, ip_of(self.programs[other].computer)] {
            let message = self.discovery(other, interface_ip);
            self.broadcast(other, interface_ip, &message);
        }
    }

    /// Sends the same message to each entry.
    fn other_posts(&mut self, other: usize, content: &str) {
        let Implementation::Foreign(it) = &self.programs[other].implementation else { return };
        let to: Vec<SocketAddrV4> = it.known.values().copied().collect();
        let stamp = self.stamp();
        for to in to {
            let from = self.user_id(other, *self.source(other, *to.ip()).ip());
            let body = Post { content: content.to_owned() }.into();
            self.send(other, to, Message::Talk(Talk { from, to: None, body, stamp: stamp.clone() }));
        }
    }

    fn peers(&self, ours: usize) -> Vec<(UserId, SocketAddr)> {
        let Implementation::Ours(node) = &self.programs[ours].implementation else { return Vec::new() };
        node.peers().into_iter().map(|known| (known.user_id, known.addr)).collect()
    }
}

#[test]
fn peers_of_another_make_are_one_each_and_make_no_storm() {
    const COMPUTERS: usize = 3;
    for seed in 0..(super::seeds() / 10).max(3) {
        let mut network = Network::new(seed, COMPUTERS);
        network.run(4 * ROUND_MS);
        network.conditions = RELIABLE;
        // After losses, duplicates and delays have ended and all peers have announced themselves again.
        network.run(3 * ROUND_MS);

        let all = network.programs.len();
        let (ours, others): (Vec<usize>, Vec<usize>) =
            (0..all).partition(|program| matches!(network.programs[*program].implementation, Implementation::Ours(_)));
        for peer in &ours {
            let known = network.peers(*peer);
            assert_eq!(known.len(), all - 1, "seed {seed}: {peer} knows {known:?}");
        }
        for peer in &ours {
            let content = format!("from {peer}");
            assert_eq!(network.post(*peer, &content), all - 1);
            network.run(1_000);
            for program in (0..all).filter(|program| program != peer) {
                let times = match &network.programs[program].implementation {
                    Implementation::Foreign(it) => {
                        it.received.iter().filter(|received| **received == content).count() as u32
                    }
                    Implementation::Ours(_) => network.shown.get(&(program, content.clone())).copied().unwrap_or(0),
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

        // Ten idle minutes. Each of the others answers our broadcasts, twice a minute by at most two addresses; ours
        // answer each of them twice a minute, and it answers that as well.
        let before = network.unicasts;
        network.run(600_000);
        let minute = (network.unicasts - before) / 10;
        let bound = (ours.len() * others.len()) as u64 * 9;
        assert!(minute <= bound, "seed {seed}: {minute} a minute, at most {bound}");
    }
}
