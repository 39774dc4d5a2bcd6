//! The network and the peers' computers: time, loss, delay, partitions, and what is kept on disks.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use p2s2::lan::node::{
    Command, CommandError, Done, Door, Effect, Entry, Event, Interface, Kind, Node, Settings, Shown,
};
use p2s2::lan::wire::Message;
use p2s2::model::{Millis, Name};

use super::{Fault, Tally};
use crate::invariants::Broken;
use crate::rng::Rng;

const BEGIN_MS: u64 = 1_700_000_000_000;
pub const DISCOVERY_PORT: u16 = 50_999;
pub const ANNOUNCE_MS: u64 = 30_000;
/// An announcement is at most a tenth late.
pub const ROUND_MS: u64 = ANNOUNCE_MS + ANNOUNCE_MS / 10;
pub const FORGET_MS: u64 = 300_000;

/// How bad the network is, in thousandths; how long a datagram is under way at most.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    pub loss: u64,
    pub repeat: u64,
    pub keep_fails: u64,
    pub delay_max_ms: u64,
}

pub const STORM: Weather = Weather { loss: 300, repeat: 100, keep_fails: 20, delay_max_ms: 400 };
pub const CALM: Weather = Weather { loss: 0, repeat: 0, keep_fails: 0, delay_max_ms: 20 };

enum Next {
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

struct Entered(u64, u64, Next);

impl PartialEq for Entered {
    fn eq(&self, other: &Entered) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Entered {}
impl PartialOrd for Entered {
    fn partial_cmp(&self, other: &Entered) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entered {
    fn cmp(&self, other: &Entered) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// Somebody's computer.
pub struct Host {
    pub ip: Ipv4Addr,
    pub port: u16,
    pub name: Name,
    pub node: Option<Node>,
    pub run: u32,
    /// Which side of a partition.
    pub side: u8,
    armed: Option<u64>,
    /// What incoming messages were kept, oldest first.
    disk: Vec<Entry>,
}

impl Host {
    pub fn addr(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.ip, self.port)
    }
}

/// A DM that somebody sent.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    pub by: usize,
    pub run: u32,
    pub to: SocketAddrV4,
    /// Told as confirmed or unconfirmed.
    pub told: Option<bool>,
}

pub struct World {
    pub rng: Rng,
    pub now: u64,
    queue: BinaryHeap<Reverse<Entered>>,
    entered: u64,
    pub weather: Weather,
    pub hosts: Vec<Host>,
    at: HashMap<SocketAddrV4, usize>,
    pub fault: Option<Fault>,
    trace: bool,
    pub tally: Tally,
    /// DMs that are to be acknowledged, by MESSAGE_ID.
    pub sent: HashMap<String, Sent>,
    /// How often each host showed each message.
    pub shown: HashMap<(usize, String), u32>,
    /// Who has ever met whom, if that is to be known.
    pub met: Option<HashSet<(usize, SocketAddr)>>,
    broken: Option<Broken>,
}

impl World {
    pub fn new(seed: u64, fault: Option<Fault>, trace: bool, weather: Weather) -> World {
        World {
            rng: Rng::new(seed),
            now: BEGIN_MS,
            queue: BinaryHeap::new(),
            entered: 0,
            weather,
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
        self.hosts.push(Host { ip, port: 0, name, node: None, run: 0, side: 0, armed: None, disk: Vec::new() });
        self.hosts.len() - 1
    }

    /// Starts a peer, at its last port or another one.
    pub fn start(&mut self, peer: usize, same_port: bool) {
        self.bind(peer, same_port);
        self.begin(peer);
    }

    /// Its sockets are bound: it hears others.
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
        let node = Node::new(Settings {
            name: host.name.clone(),
            instance: format!("{instance:016x}"),
            kind: Kind::Person,
            port: host.port,
            discovery_port: DISCOVERY_PORT,
            announce_every: Duration::from_millis(if often { ANNOUNCE_MS / 2 } else { ANNOUNCE_MS }),
            forget_after: Duration::from_millis(if never { 1 << 40 } else { FORGET_MS }),
        });
        let interface = Interface { ip: host.ip, netmask: Ipv4Addr::new(255, 0, 0, 0), from: Some(host.ip) };
        (host.node, host.armed) = (Some(node), None);
        self.trace(|| format!("{peer} starts"));
        self.tell(peer, Event::Interfaces(vec![interface]));
        let host = &mut self.hosts[peer];
        if let Some(node) = &mut host.node {
            host.disk.iter().for_each(|entry| node.remember(entry));
        }
        self.tally.starts += 1;
    }

    pub fn begin(&mut self, peer: usize) {
        self.tell(peer, Event::Started);
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
        self.broken.get_or_insert(Broken { rule, detail });
    }

    fn enter(&mut self, at: u64, next: Next) {
        self.entered += 1;
        self.queue.push(Reverse(Entered(at, self.entered, next)));
    }

    /// Lets time pass.
    pub fn run(&mut self, ms: u64) -> Result<(), Broken> {
        let end = self.now + ms;
        while self.queue.peek().is_some_and(|Reverse(first)| first.0 <= end) {
            let Some(Reverse(Entered(at, _, next))) = self.queue.pop() else { break };
            self.now = at;
            self.tally.events += 1;
            match next {
                Next::Tick { peer, run } => {
                    let host = &mut self.hosts[peer];
                    if host.run == run && host.armed == Some(at) {
                        host.armed = None;
                        self.tell(peer, Event::Tick);
                    }
                }
                Next::Arrives { to, from, message } => self.arrives(to, from, &message),
                Next::Refused { peer, run, to } if self.hosts[peer].run == run => {
                    self.tell(peer, Event::SendRefused { to: to.into() });
                }
                Next::Refused { .. } => {}
            }
            if let Some(broken) = self.broken.take() {
                return Err(broken);
            }
        }
        self.now = end;
        Ok(())
    }

    fn arrives(&mut self, to: Target, from: SocketAddrV4, message: &Arc<Message>) {
        let (peer, door) = match to {
            Target::Shared(peer, run) if self.hosts[peer].run == run => (Some(peer), Door::Discovery),
            Target::Shared(..) => return,
            Target::Addr(addr) => (self.at.get(&addr).copied(), Door::Own),
        };
        let alive = |peer: &usize| self.hosts[*peer].node.is_some();
        let Some(peer) = peer.filter(alive) else {
            // Its computer says that nobody is there.
            if let Some(sender) = self.at.get(&from).copied()
                && let Target::Addr(to) = to
                && !self.rng.permille(self.weather.loss)
            {
                let at = self.now + self.rng.range(1, 5);
                self.enter(at, Next::Refused { peer: sender, run: self.hosts[sender].run, to });
            }
            return;
        };
        let message = Ok(Message::clone(message));
        self.tell(peer, Event::Datagram { from: from.into(), door, message, bytes: 0 });
    }

    pub fn tell(&mut self, peer: usize, event: Event) {
        let now = Millis(self.now);
        let Some(node) = self.hosts[peer].node.as_mut() else { return };
        let rng = &mut self.rng;
        let effects = node.handle(now, event, &mut || rng.below(u64::MAX));
        self.make_real(peer, effects);
    }

    pub fn command(&mut self, peer: usize, command: Command) -> Result<Done, CommandError> {
        let now = Millis(self.now);
        let Some(node) = self.hosts[peer].node.as_mut() else { return Err(CommandError::Alone) };
        let rng = &mut self.rng;
        let (done, effects) = node.command(now, command, &mut || rng.below(u64::MAX))?;
        if let Done::DmSent { addr: SocketAddr::V4(to), message_id, awaits_ack: true, .. } = &done {
            let sent = Sent { by: peer, run: self.hosts[peer].run, to: *to, told: None };
            self.sent.insert(message_id.clone(), sent);
            self.tally.dms += 1;
        }
        self.make_real(peer, effects);
        Ok(done)
    }

    fn make_real(&mut self, peer: usize, effects: Vec<Effect>) {
        let mut kept = None;
        for effect in effects {
            match effect {
                Effect::Keep(entry) if self.rng.permille(self.weather.keep_fails) => {
                    self.tally.not_kept += 1;
                    if let (false, Message::Dm(dm)) = (entry.incoming, &entry.message) {
                        self.sent.remove(dm.stamp.message_id.as_deref().unwrap_or_default());
                    }
                    return self.tell(peer, Event::NotKept(entry));
                }
                Effect::Keep(entry) if entry.incoming => {
                    self.hosts[peer].disk.push(Entry::clone(&entry));
                    kept = Some(entry);
                }
                Effect::Keep(_) | Effect::KeepFate { .. } => {}
                Effect::Send { to, message } => self.send(peer, to, message),
                Effect::Broadcast { message, .. } => self.broadcast(peer, message),
                Effect::Show(shown) => self.show(peer, shown),
            }
        }
        if self.fault == Some(Fault::ForgetSeen)
            && let Some(entry) = kept
        {
            self.hosts[peer].disk.pop();
            self.tell(peer, Event::NotKept(entry));
        }
        let Some(deadline) = self.hosts[peer].node.as_ref().and_then(Node::next_deadline) else { return };
        let at = deadline.0.max(self.now);
        if self.hosts[peer].armed.is_none_or(|armed| at < armed) {
            self.hosts[peer].armed = Some(at);
            self.enter(at, Next::Tick { peer, run: self.hosts[peer].run });
        }
    }

    fn broadcast(&mut self, peer: usize, message: Message) {
        self.tally.broadcasts += 1;
        let message = Arc::new(message);
        let (from, side) = (self.hosts[peer].addr(), self.hosts[peer].side);
        for to in 0..self.hosts.len() {
            if self.hosts[to].node.is_some() && self.hosts[to].side == side {
                self.post(from, Target::Shared(to, self.hosts[to].run), &message);
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
        // Says that a DM arrived which may be lost.
        if self.fault == Some(Fault::ForgeAcks)
            && let Message::Dm(dm) = &message
        {
            let message_id = dm.stamp.message_id.clone().unwrap_or_default();
            self.post(to, Target::Addr(from), &Arc::new(Message::Ack { message_id }));
        }
        self.trace(|| format!("{peer} to {to}: {message:?}"));
        self.post(from, Target::Addr(to), &Arc::new(message));
    }

    /// The network: loses, repeats, delays and thereby reorders.
    pub fn post_raw(&mut self, from: SocketAddrV4, message: Message) {
        let message = Arc::new(message);
        for to in 0..self.hosts.len() {
            self.post(from, Target::Shared(to, self.hosts[to].run), &message);
        }
    }

    fn post(&mut self, from: SocketAddrV4, to: Target, message: &Arc<Message>) {
        let copies = 1 + u64::from(self.rng.permille(self.weather.repeat));
        for _ in 0..copies {
            if !self.rng.permille(self.weather.loss) {
                let at = self.now + self.rng.range(1, self.weather.delay_max_ms);
                self.enter(at, Next::Arrives { to, from, message: message.clone() });
            }
        }
    }

    fn show(&mut self, peer: usize, shown: Shown) {
        self.trace(|| format!("{peer} shows {shown:?}"));
        match shown {
            Shown::Post { post, .. } => self.message_shown(peer, post.stamp.message_id, None),
            Shown::Dm { message_id, .. } => {
                let to = message_id.as_ref().and_then(|id| self.sent.get(id)).map(|sent| sent.to);
                self.message_shown(peer, message_id, to);
            }
            Shown::DmConfirmed { message_id, .. } => {
                self.told(peer, &message_id, true);
                let shown_by = |host: &usize| self.shown.get(&(*host, message_id.clone())).copied().unwrap_or(0);
                let count: u32 = (0..self.hosts.len()).map(|host| shown_by(&host)).sum();
                if count != 1 {
                    self.break_rule("a confirmed DM was shown once", format!("{message_id} was shown {count} times"));
                }
                self.tally.confirmed += 1;
            }
            Shown::DmUnconfirmed { .. } if self.fault == Some(Fault::HideUnconfirmed) => {}
            Shown::DmUnconfirmed { message_id, .. } => {
                self.told(peer, &message_id, false);
                self.tally.unconfirmed += 1;
            }
            Shown::Came(known) => {
                self.met.as_mut().map(|met| met.insert((peer, known.addr)));
            }
            Shown::Renamed { .. } => self.tally.renamed += 1,
            Shown::Moved { .. } => self.tally.moved += 1,
            Shown::MoveRefused { .. } => self.tally.moves_refused += 1,
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

    fn told(&mut self, peer: usize, message_id: &str, confirmed: bool) {
        let told = self.sent.get_mut(message_id).map(|sent| sent.told.replace(confirmed));
        if told != Some(None) {
            self.break_rule("a DM is told of once", format!("{peer}: {message_id} {confirmed} after {told:?}"));
        }
    }
}
