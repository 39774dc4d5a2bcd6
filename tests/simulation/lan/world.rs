//! The simulated network and computers: time, loss, delay, partitions and disks.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use p2s2::internals::lan::SocketRole;
use p2s2::internals::lan::node::{
    CommandError, CommandOutcome, InterfaceAddress, MessageRecord, Node, NodeCommand, NodeConfig, NodeEffect,
    NodeEvent, NodeKind, Notification,
};
use p2s2::internals::lan::wire::{Message, Talk, TalkBody};
use p2s2::internals::model::{Millis, Name};

use super::{Fault, Tally};
use crate::invariants::Violation;
use crate::rng::Rng;

const BEGIN_MS: u64 = 1_700_000_000_000;
pub const DISCOVERY_PORT: u16 = 50_999;
pub const ANNOUNCE_MS: u64 = 30_000;
/// The longest interval between announcements: a tenth above the configured one.
pub const ROUND_MS: u64 = ANNOUNCE_MS + ANNOUNCE_MS / 10;
pub const FORGET_MS: u64 = 300_000;

/// Probabilities of faults in thousandths, and the longest delay of a datagram.
#[derive(Debug, Clone, Copy)]
pub struct NetworkConditions {
    pub loss: u64,
    pub repeat: u64,
    pub store_fails: u64,
    pub delay_max_ms: u64,
}

pub const UNRELIABLE: NetworkConditions =
    NetworkConditions { loss: 300, repeat: 100, store_fails: 20, delay_max_ms: 400 };
pub const RELIABLE: NetworkConditions = NetworkConditions { loss: 0, repeat: 0, store_fails: 0, delay_max_ms: 20 };

enum NetworkEvent {
    Tick { peer: usize, run: u32 },
    Arrives { to: Target, from: SocketAddrV4, message: Arc<Message> },
    Refused { peer: usize, run: u32, to: SocketAddrV4 },
}

#[derive(Clone, Copy)]
enum Target {
    /// The discovery socket of one peer.
    Shared(usize, u32),
    Addr(SocketAddrV4),
}

struct QueuedEvent(u64, u64, NetworkEvent);

impl PartialEq for QueuedEvent {
    fn eq(&self, other: &QueuedEvent) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for QueuedEvent {}
impl PartialOrd for QueuedEvent {
    fn partial_cmp(&self, other: &QueuedEvent) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for QueuedEvent {
    fn cmp(&self, other: &QueuedEvent) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// The simulated computer of one peer.
pub struct Host {
    pub ip: Ipv4Addr,
    pub port: u16,
    pub name: Name,
    pub node: Option<Node>,
    pub run: u32,
    /// The side of a partition; only hosts of the same side reach each other.
    pub side: u8,
    tick_at: Option<u64>,
    /// The stored incoming messages, oldest first.
    disk: Vec<MessageRecord>,
}

impl Host {
    pub fn addr(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.ip, self.port)
    }
}

/// A DM that was sent and awaits an ACK.
#[derive(Debug, Clone, Copy)]
pub struct SentDm {
    pub by: usize,
    pub run: u32,
    pub to: SocketAddrV4,
    /// Whether it was notified as confirmed or as unconfirmed.
    pub confirmed_as: Option<bool>,
}

pub struct World {
    pub rng: Rng,
    pub now: u64,
    queue: BinaryHeap<Reverse<QueuedEvent>>,
    scheduled: u64,
    pub conditions: NetworkConditions,
    pub hosts: Vec<Host>,
    at: HashMap<SocketAddrV4, usize>,
    pub fault: Option<Fault>,
    trace: bool,
    pub tally: Tally,
    /// DMs that await an ACK, by MESSAGE_ID.
    pub sent: HashMap<String, SentDm>,
    pub shown: HashMap<(usize, String), u32>,
    /// Which peer has ever known which address, if that is recorded.
    pub met: Option<HashSet<(usize, SocketAddr)>>,
    broken: Option<Violation>,
}

impl World {
    pub fn new(seed: u64, fault: Option<Fault>, trace: bool, conditions: NetworkConditions) -> World {
        World {
            rng: Rng::new(seed),
            now: BEGIN_MS,
            queue: BinaryHeap::new(),
            scheduled: 0,
            conditions,
            hosts: Vec::new(),
            at: HashMap::new(),
            fault,
            trace,
            tally: Tally::default(),
            sent: HashMap::new(),
            shown: HashMap::new(),
            met: None,
            broken: None,
        }
    }

    pub fn add(&mut self, name: &str, ip: Ipv4Addr) -> usize {
        let name = Name::new(name).unwrap();
        self.hosts.push(Host { ip, port: 0, name, node: None, run: 0, side: 0, tick_at: None, disk: Vec::new() });
        self.hosts.len() - 1
    }

    /// Starts a peer, at its last port or at another one.
    pub fn start(&mut self, peer: usize, same_port: bool) {
        self.bind(peer, same_port);
        self.begin(peer);
    }

    /// Binds the sockets of a peer: from now on it receives datagrams.
    pub fn bind(&mut self, peer: usize, same_port: bool) {
        let host = &mut self.hosts[peer];
        host.run += 1;
        if !same_port || host.port == 0 {
            self.at.remove(&host.addr());
            while host.port == 0 || self.at.contains_key(&host.addr()) {
                host.port = self.rng.range(8_000, 9_999) as u16;
            }
        }
        self.at.insert(host.addr(), peer);
        let one_for_all = self.fault == Some(Fault::SameInstance);
        let instance = if one_for_all { 0 } else { self.rng.below(u64::MAX) };
        let often = self.fault == Some(Fault::AnnounceTooOften);
        let never = self.fault == Some(Fault::NeverForget);
        let node = Node::new(NodeConfig {
            name: host.name.clone(),
            instance: format!("{instance:016x}"),
            kind: NodeKind::Person,
            port: host.port,
            discovery_port: DISCOVERY_PORT,
            announce_every: Duration::from_millis(if often { ANNOUNCE_MS / 2 } else { ANNOUNCE_MS }),
            forget_after: Duration::from_millis(if never { 1 << 40 } else { FORGET_MS }),
        });
        let interface =
            InterfaceAddress { ip: host.ip, netmask: Ipv4Addr::new(255, 0, 0, 0), source_ip: Some(host.ip) };
        (host.node, host.tick_at) = (Some(node), None);
        self.trace(|| format!("{peer} starts"));
        self.handle_event(peer, NodeEvent::InterfacesChanged(vec![interface]));
        let host = &mut self.hosts[peer];
        if let Some(node) = &mut host.node {
            for MessageRecord { at, addr, talk, .. } in &host.disk {
                if let (Some(SocketAddr::V4(source)), Some(id)) = (addr, &talk.stamp.message_id) {
                    node.remember_received(*at, *source.ip(), &talk.from, id);
                }
            }
        }
        self.tally.starts += 1;
    }

    pub fn begin(&mut self, peer: usize) {
        self.handle_event(peer, NodeEvent::Started);
    }

    pub fn stop(&mut self, peer: usize) {
        self.trace(|| format!("{peer} stops"));
        self.hosts[peer].node = None;
    }

    pub fn live(&self) -> Vec<usize> {
        (0..self.hosts.len()).filter(|peer| self.hosts[*peer].node.is_some()).collect()
    }

    pub fn trace(&self, text: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:>9} {}", self.now - BEGIN_MS, text());
        }
    }

    pub fn break_rule(&mut self, rule: &'static str, detail: String) {
        self.broken.get_or_insert(Violation { rule, detail });
    }

    fn schedule(&mut self, at: u64, event: NetworkEvent) {
        self.scheduled += 1;
        self.queue.push(Reverse(QueuedEvent(at, self.scheduled, event)));
    }

    /// Runs the simulation for some time.
    pub fn run(&mut self, ms: u64) -> Result<(), Violation> {
        let end = self.now + ms;
        while self.queue.peek().is_some_and(|Reverse(first)| first.0 <= end) {
            let Some(Reverse(QueuedEvent(at, _, event))) = self.queue.pop() else { break };
            self.now = at;
            self.tally.events += 1;
            match event {
                NetworkEvent::Tick { peer, run } => {
                    let host = &mut self.hosts[peer];
                    if host.run == run && host.tick_at == Some(at) {
                        host.tick_at = None;
                        self.handle_event(peer, NodeEvent::Tick);
                    }
                }
                NetworkEvent::Arrives { to, from, message } => self.deliver(to, from, &message),
                NetworkEvent::Refused { peer, run, to } if self.hosts[peer].run == run => {
                    self.handle_event(peer, NodeEvent::SendRefused { to: to.into() });
                }
                NetworkEvent::Refused { .. } => {}
            }
            if let Some(broken) = self.broken.take() {
                return Err(broken);
            }
        }
        self.now = end;
        Ok(())
    }

    fn deliver(&mut self, to: Target, from: SocketAddrV4, message: &Arc<Message>) {
        let (peer, socket) = match to {
            Target::Shared(peer, run) if self.hosts[peer].run == run => (Some(peer), SocketRole::Discovery),
            Target::Shared(..) => return,
            Target::Addr(addr) => (self.at.get(&addr).copied(), SocketRole::Own),
        };
        let alive = |peer: &usize| self.hosts[*peer].node.is_some();
        let Some(peer) = peer.filter(alive) else {
            // The computer reports that the port is closed.
            if let Some(sender) = self.at.get(&from).copied()
                && let Target::Addr(to) = to
                && !self.rng.permille(self.conditions.loss)
            {
                let at = self.now + self.rng.range(1, 5);
                self.schedule(at, NetworkEvent::Refused { peer: sender, run: self.hosts[sender].run, to });
            }
            return;
        };
        let message = Ok(Message::clone(message));
        self.handle_event(peer, NodeEvent::Datagram { from: from.into(), socket, message, bytes: 0 });
    }

    pub fn handle_event(&mut self, peer: usize, event: NodeEvent) {
        let now = Millis(self.now);
        let Some(node) = self.hosts[peer].node.as_mut() else { return };
        let rng = &mut self.rng;
        let effects = node.handle(now, event, &mut || rng.below(u64::MAX));
        self.apply_effects(peer, effects);
    }

    pub fn command(&mut self, peer: usize, command: NodeCommand) -> Result<CommandOutcome, CommandError> {
        let now = Millis(self.now);
        let Some(node) = self.hosts[peer].node.as_mut() else { return Err(CommandError::NoPeers) };
        let rng = &mut self.rng;
        let (done, effects) = node.command(now, command, &mut || rng.below(u64::MAX))?;
        if let CommandOutcome::SaidToOne { addr: SocketAddr::V4(to), message_id, awaits_ack: true, .. } = &done {
            let sent = SentDm { by: peer, run: self.hosts[peer].run, to: *to, confirmed_as: None };
            self.sent.insert(message_id.clone(), sent);
            self.tally.dms += 1;
        }
        self.apply_effects(peer, effects);
        Ok(done)
    }

    fn apply_effects(&mut self, peer: usize, effects: Vec<NodeEffect>) {
        let mut stored = None;
        for effect in effects {
            match effect {
                NodeEffect::Store(entry) if self.rng.permille(self.conditions.store_fails) => {
                    self.tally.not_kept += 1;
                    if let (false, TalkBody::Dm(_)) = (entry.is_incoming, &entry.talk.body) {
                        self.sent.remove(entry.talk.stamp.message_id.as_deref().unwrap_or_default());
                    }
                    return self.handle_event(peer, NodeEvent::StoreFailed(entry));
                }
                NodeEffect::Store(entry) if entry.is_incoming => {
                    self.hosts[peer].disk.push(MessageRecord::clone(&entry));
                    stored = Some(entry);
                }
                NodeEffect::Store(_) | NodeEffect::StoreConfirmation { .. } => {}
                NodeEffect::Send { to, message } => self.send(peer, to, message),
                NodeEffect::Broadcast { message, .. } => self.broadcast(peer, message),
                NodeEffect::Notify(notification) => self.handle_notification(peer, notification),
            }
        }
        if self.fault == Some(Fault::ForgetSeen)
            && let Some(entry) = stored
        {
            self.hosts[peer].disk.pop();
            self.handle_event(peer, NodeEvent::StoreFailed(entry));
        }
        let Some(deadline) = self.hosts[peer].node.as_ref().and_then(Node::next_deadline) else { return };
        let at = deadline.0.max(self.now);
        if self.hosts[peer].tick_at.is_none_or(|tick_at| at < tick_at) {
            self.hosts[peer].tick_at = Some(at);
            self.schedule(at, NetworkEvent::Tick { peer, run: self.hosts[peer].run });
        }
    }

    fn broadcast(&mut self, peer: usize, message: Message) {
        self.tally.broadcasts += 1;
        let message = Arc::new(message);
        let (from, side) = (self.hosts[peer].addr(), self.hosts[peer].side);
        for to in 0..self.hosts.len() {
            if self.hosts[to].node.is_some() && self.hosts[to].side == side {
                self.transmit(from, Target::Shared(to, self.hosts[to].run), &message);
            }
        }
    }

    fn send(&mut self, peer: usize, to: SocketAddr, message: Message) {
        self.tally.unicasts += 1;
        let SocketAddr::V4(to) = to else { return self.break_rule("IPv4 only", format!("{peer} sends to {to}")) };
        let from = self.hosts[peer].addr();
        if to.port() == DISCOVERY_PORT && to.ip() == from.ip() {
            self.break_rule("nothing goes to one's own discovery port", format!("{peer}: {message:?}"));
        }
        let lost = match (&message, self.fault) {
            (Message::Discovery(said), Some(Fault::LoseProbes)) => said.features.probe,
            (Message::Discovery(said), Some(Fault::LoseAnswers)) => !said.features.probe,
            _ => false,
        };
        let other_side = |to: &usize| self.hosts[*to].side != self.hosts[peer].side;
        if lost || self.at.get(&to).is_some_and(other_side) {
            return;
        }
        // Acknowledges a DM that may be lost.
        if self.fault == Some(Fault::ForgeAcks)
            && let Message::Talk(Talk { body: TalkBody::Dm(_), stamp, .. }) = &message
        {
            let message_id = stamp.message_id.clone().unwrap_or_default();
            self.transmit(to, Target::Addr(from), &Arc::new(Message::Ack { message_id }));
        }
        self.trace(|| format!("{peer} to {to}: {message:?}"));
        self.transmit(from, Target::Addr(to), &Arc::new(message));
    }

    /// Broadcasts a message from any address.
    pub fn broadcast_from(&mut self, from: SocketAddrV4, message: Message) {
        let message = Arc::new(message);
        for to in 0..self.hosts.len() {
            self.transmit(from, Target::Shared(to, self.hosts[to].run), &message);
        }
    }

    /// Transmits a datagram with random loss, duplication and delay, which also reorders.
    fn transmit(&mut self, from: SocketAddrV4, to: Target, message: &Arc<Message>) {
        let copies = 1 + u64::from(self.rng.permille(self.conditions.repeat));
        for _ in 0..copies {
            if !self.rng.permille(self.conditions.loss) {
                let at = self.now + self.rng.range(1, self.conditions.delay_max_ms);
                self.schedule(at, NetworkEvent::Arrives { to, from, message: message.clone() });
            }
        }
    }

    fn handle_notification(&mut self, peer: usize, notification: Notification) {
        self.trace(|| format!("{peer} shows {notification:?}"));
        match notification {
            Notification::Heard { talk: Talk { body, stamp, .. }, .. } => match body {
                TalkBody::Post(_) => self.message_shown(peer, stamp.message_id, None),
                TalkBody::Dm(_) => {
                    let to = stamp.message_id.as_ref().and_then(|id| self.sent.get(id)).map(|sent| sent.to);
                    self.message_shown(peer, stamp.message_id, to);
                }
                TalkBody::Profile(_) => {}
            },
            Notification::DmConfirmed { message_id, .. } => {
                self.record_confirmation(peer, &message_id, true);
                let shown_by = |host: &usize| self.shown.get(&(*host, message_id.clone())).copied().unwrap_or(0);
                let count: u32 = (0..self.hosts.len()).map(|host| shown_by(&host)).sum();
                if count != 1 {
                    self.break_rule("a confirmed DM was shown once", format!("{message_id} was shown {count} times"));
                }
                self.tally.confirmed += 1;
            }
            Notification::DmUnconfirmed { .. } if self.fault == Some(Fault::HideUnconfirmed) => {}
            Notification::DmUnconfirmed { message_id, .. } => {
                self.record_confirmation(peer, &message_id, false);
                self.tally.unconfirmed += 1;
            }
            Notification::PeerJoined(known) => {
                self.met.as_mut().map(|met| met.insert((peer, known.addr)));
            }
            Notification::SelfRenamed { .. } => self.tally.renamed += 1,
            Notification::PeerMoved { .. } => self.tally.moved += 1,
            Notification::PeerMoveRefused { .. } => self.tally.moves_refused += 1,
            _ => {}
        }
    }

    fn message_shown(&mut self, peer: usize, message_id: Option<String>, to: Option<SocketAddrV4>) {
        let Some(id) = message_id else { return };
        if to.is_some_and(|to| to != self.hosts[peer].addr()) {
            self.break_rule("a DM is shown to whom it was sent", format!("{id} was shown to {peer}"));
        }
        let count = self.shown.entry((peer, id.clone())).or_default();
        *count += 1;
        if *count > 1 {
            self.break_rule("a message is shown once", format!("{peer} showed {id} again"));
        }
        self.tally.shown += 1;
    }

    fn record_confirmation(&mut self, peer: usize, message_id: &str, confirmed: bool) {
        let confirmed_as = self.sent.get_mut(message_id).map(|sent| sent.confirmed_as.replace(confirmed));
        if confirmed_as != Some(None) {
            self.break_rule("a DM is told of once", format!("{peer}: {message_id} {confirmed} after {confirmed_as:?}"));
        }
    }
}
