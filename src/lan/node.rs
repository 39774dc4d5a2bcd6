//! One peer's view of the network: whom it knows, what it says to whom, what it believes. SPEC section 5.
//! No I/O here.
//!
//! Whoever drives it tells it what happens ([`Node::handle`]) and what a person wants ([`Node::command`]),
//! makes the [`Effect`]s real in their order, and calls [`Event::Tick`] when [`Node::next_deadline`] has
//! come. `random` gives 64 random bits each time it is called. Every table has a bound ([`Node::sizes`]),
//! and every datagram that is dropped a [`Cause`].

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use super::wire::{Discovery, Features, Message, Refused, Stamp, UserId};
use crate::model::{Millis, Name};

mod addresses;
mod answers;
mod counters;
mod discovery;
mod lists;
mod peers;
mod pending;
mod rates;
mod seen;
mod talk;
#[cfg(test)]
mod tests;
mod words;

use self::addresses::Addresses;
use self::answers::Answers;
pub use self::counters::{Cause, Counters, Sizes};
use self::discovery::{Check, Rival};
use self::peers::Peers;
use self::pending::{Acked, Due, Waiting};
use self::rates::{Rate, Sources, Tokens};
use self::seen::Seen;
pub use self::words::{
    Command, CommandError, Done, Door, Effect, Entry, Event, Interface, Kind, Known, Left, Settings, Shown,
};

/// Datagrams from one source.
const DATAGRAMS: Rate = Rate { burst: 200, per_s: 100 };
/// Sources that are counted.
const SOURCES_MAX: usize = 10_000;
/// Drops that are shown one by one: far more than anybody makes by hand. Of the others a line a second tells
/// how many they were.
const DROPS_SHOWN: Rate = Rate { burst: 200, per_s: 100 };
/// How long drops that are not shown one by one are added up.
const DROPS_SUMMED_MS: u64 = 1_000;
/// Lists of peers that are told, to all: each may be a hundred times as long as the question.
const LISTS_TOLD: Rate = Rate { burst: 50, per_s: 20 };
/// To one host: it is not to take what is there for all.
const LISTS_TOLD_EACH: Rate = Rate { burst: 20, per_s: 2 };
/// Answers to the announcements of one host.
const ANSWERS_EACH: Rate = Rate { burst: 200, per_s: 50 };

/// One peer's view.
pub struct Node {
    settings: Settings,
    name: Name,
    /// Since when it bears it.
    named_at: Millis,
    addresses: Addresses,
    peers: Peers,
    seen: Seen,
    waiting: Waiting,
    acked: Acked,
    answers: Answers,
    checks: BTreeMap<UserId, Check>,
    /// Others on this host that bear our name.
    rivals: Vec<Rival>,
    rename_at: Option<Millis>,
    /// Whom broadcast cannot reach.
    invited: Vec<SocketAddrV4>,
    /// When it last announced itself to everybody.
    announced_at: Option<Millis>,
    /// None before the start.
    next_announce: Option<Millis>,
    started: bool,
    sources: Sources,
    answered_to: Sources,
    lists_told: Tokens,
    lists_told_to: Sources,
    /// Who was asked for his list and has not sent it, and until when it is believed.
    asked: HashMap<SocketAddrV4, Millis>,
    drops_shown: Tokens,
    /// Drops that were not shown, by cause, and when they are told of.
    drops_unshown: BTreeMap<Cause, u64>,
    sum_drops_at: Option<Millis>,
    full_shown: bool,
    counters: Counters,
    wall_ahead_ms: i64,
}

/// What one call is given, and what it brings.
struct Step<'a> {
    now: Millis,
    /// For what is dated.
    date: Millis,
    random: &'a mut dyn FnMut() -> u64,
    effects: Vec<Effect>,
}

impl Step<'_> {
    fn show(&mut self, shown: Shown) {
        self.effects.push(Effect::Show(shown));
    }

    /// A number from 0 to `end` - 1.
    fn below(&mut self, end: u64) -> u64 {
        (self.random)() % end.max(1)
    }

    fn stamp(&mut self) -> Stamp {
        Stamp { timestamp: Some(self.date.0 / 1000), message_id: Some(format!("{:016x}", (self.random)())) }
    }
}

impl Node {
    /// A node that has not begun: it is told its [`Event::Interfaces`], then what it is to
    /// [`remember`](Node::remember), then [`Event::Started`].
    pub fn new(settings: Settings) -> Node {
        let forget_after_ms = u64::try_from(settings.forget_after.as_millis()).unwrap_or(u64::MAX);
        Node {
            name: settings.name.clone(),
            named_at: Millis::default(),
            addresses: Addresses::default(),
            peers: Peers::new(forget_after_ms),
            seen: Seen::default(),
            waiting: Waiting::default(),
            acked: Acked::default(),
            answers: Answers::new(),
            checks: BTreeMap::new(),
            rivals: Vec::new(),
            rename_at: None,
            invited: Vec::new(),
            announced_at: None,
            next_announce: None,
            started: false,
            sources: Sources::new(DATAGRAMS, SOURCES_MAX),
            answered_to: Sources::new(ANSWERS_EACH, SOURCES_MAX),
            lists_told: Tokens::full(LISTS_TOLD),
            lists_told_to: Sources::new(LISTS_TOLD_EACH, SOURCES_MAX),
            asked: HashMap::new(),
            drops_shown: Tokens::full(DROPS_SHOWN),
            drops_unshown: BTreeMap::new(),
            sum_drops_at: None,
            full_shown: false,
            counters: Counters::default(),
            wall_ahead_ms: 0,
            settings,
        }
    }

    /// Takes one event.
    pub fn handle(&mut self, now: Millis, event: Event, random: &mut dyn FnMut() -> u64) -> Vec<Effect> {
        let step = &mut Step { now, date: now.shifted(self.wall_ahead_ms), random, effects: Vec::new() };
        self.pass_time(step);
        match event {
            Event::Started => {
                (self.started, self.named_at) = (true, now);
                self.announce(step);
            }
            Event::Interfaces(interfaces) => {
                let more = self.addresses.set(interfaces);
                if more && self.started && self.settings.kind != Kind::Probe {
                    self.announce(step);
                }
            }
            Event::Datagram { from, door, message, bytes } => self.datagram(step, from, door, message, bytes),
            Event::SendRefused { to } => self.send_refused(step, to),
            Event::NotKept(entry) => self.not_kept(&entry),
            Event::Tick => {}
        }
        self.give_answers(step);
        std::mem::take(&mut step.effects)
    }

    /// Takes what a person wants. An `Err` means that nothing changed, and nothing is sent.
    pub fn command(
        &mut self,
        now: Millis,
        command: Command,
        random: &mut dyn FnMut() -> u64,
    ) -> Result<(Done, Vec<Effect>), CommandError> {
        let step = &mut Step { now, date: now.shifted(self.wall_ahead_ms), random, effects: Vec::new() };
        let done = match command {
            Command::Post { content } => self.post(step, content),
            Command::Dm { to, content } => self.dm(step, &to, content),
            Command::Profile { display_name, status, avatar } => self.profile(step, display_name, status, avatar),
            Command::AskPeers => self.ask_peers(step),
            Command::AddPeer(addr) => self.add_peer(step, addr),
        }?;
        Ok((done, std::mem::take(&mut step.effects)))
    }

    /// How far the machine's clock is ahead of the time that this node is told: what it says and keeps is dated by
    /// that clock, while it waits by the other.
    pub fn set_wall_ahead(&mut self, ms: i64) {
        self.wall_ahead_ms = ms;
    }

    /// When it wants an [`Event::Tick`], if nothing else happens before.
    pub fn next_deadline(&self) -> Option<Millis> {
        let checks = self.checks.values().map(|check| check.until).min();
        let due = [
            self.next_announce,
            self.answers.deadline(),
            self.waiting.deadline(),
            self.peers.deadline(),
            self.rename_at,
            self.sum_drops_at,
            checks,
        ];
        due.into_iter().flatten().min()
    }

    /// Everyone it knows, servers too, by name and address.
    pub fn peers(&self) -> Vec<Known> {
        let mut known: Vec<Known> = self.peers.iter().map(|peer| peer.known()).collect();
        known.sort_by(|a, b| (&a.user_id, a.addr).cmp(&(&b.user_id, b.addr)));
        known
    }

    /// What it goes by now: the name of its settings, or that with a number behind.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Its USER_ID, at the first of its addresses that others can reach.
    pub fn user_id(&self) -> UserId {
        UserId { name: self.name.clone(), ip: self.addresses.first() }
    }

    /// What it has counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How many entries its tables have.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            peers: self.peers.len(),
            addresses: self.peers.addresses(),
            seen: self.seen.len(),
            senders: self.seen.senders(),
            waiting: self.waiting.len(),
            answers: self.answers.len(),
            checks: self.checks.len(),
            rivals: self.rivals.len(),
            invited: self.invited.len(),
            sources: self.sources.len().max(self.answered_to.len()).max(self.lists_told_to.len()),
            asked: self.asked.len(),
            acked: self.acked.len(),
        }
    }

    fn pass_time(&mut self, step: &mut Step) {
        if self.next_deadline().is_none_or(|deadline| deadline > step.now) {
            return;
        }
        while let Some(due) = self.waiting.next_due(step.now) {
            match due {
                Due::Again { to, message } => {
                    if let Some(id) = self.peers.with_addr(to) {
                        self.peers.charge(id, step.now);
                    }
                    self.send(step, to, message);
                }
                Due::GivenUp { message_id, user_id } => {
                    step.effects.push(Effect::KeepFate { message_id: message_id.clone(), confirmed: false });
                    step.show(Shown::DmUnconfirmed { to: user_id, message_id });
                }
            }
        }
        self.conclude_checks(step);
        while let Some(peer) = self.peers.next_expired(step.now) {
            step.show(Shown::Left { peer, why: Left::Unheard });
        }
        if self.rename_at.is_some_and(|at| at <= step.now) {
            self.rename(step);
        }
        if self.next_announce.is_some_and(|at| at <= step.now) {
            self.announce(step);
        }
        if self.sum_drops_at.is_some_and(|at| at <= step.now) {
            self.sum_drops_at = None;
            let counts = std::mem::take(&mut self.drops_unshown).into_iter().collect();
            step.show(Shown::DroppedMore { counts });
        }
        self.give_answers(step);
    }

    fn datagram(
        &mut self,
        step: &mut Step,
        from: SocketAddr,
        door: Door,
        message: Result<Message, Refused>,
        bytes: usize,
    ) {
        self.counters.received += 1;
        self.counters.received_bytes += bytes as u64;
        let SocketAddr::V4(source) = from else {
            return self.drop(step, from, Cause::NotIpv4, || "expected an IPv4 source".to_owned());
        };
        // An ACK of what we sent is no flood: we have asked for it.
        let place = self.place_of(source);
        let is_awaited = |message: &Message| matches!(message, Message::Ack { message_id } if self.waiting.is_awaited(place, message_id));
        if !message.as_ref().is_ok_and(is_awaited) && !self.sources.take(step.now, source) {
            return self.drop(step, from, Cause::TooMany, || format!("more than {} a second", DATAGRAMS.per_s));
        }
        let message = match message {
            Ok(message) => message,
            Err(refused @ Refused::UnknownType(_)) => {
                return self.drop(step, from, Cause::UnknownType, || refused.to_string());
            }
            Err(refused @ Refused::Malformed(_)) => {
                return self.drop(step, from, Cause::Malformed, || refused.to_string());
            }
        };
        let sender = match &message {
            Message::Discovery(said) if said.instance.as_deref() == Some(&*self.settings.instance) => {
                self.counters.own += 1;
                return;
            }
            Message::Discovery(Discovery { user_id, .. }) => Some(user_id),
            Message::Post(post) => Some(&post.user_id),
            Message::Dm(dm) => Some(&dm.from),
            Message::Profile(profile) => Some(&profile.user_id),
            Message::PeerListRequest { from, .. } => Some(from),
            Message::PeerListResponse(list) => Some(&list.from),
            Message::Ack { .. } => None,
        };
        let claimed = sender.map_or(*source.ip(), |sender| sender.ip);
        if !self.addresses.may_say(*source.ip(), claimed) || !self.addresses.is_unicast(*source.ip()) {
            return self.drop(step, from, Cause::WrongSource, || format!("it says that it is from {claimed}"));
        }
        let announces = matches!(message, Message::Discovery(_));
        self.answered(step, place, sender, announces);
        if !announces {
            self.heard(step.now, source, sender);
        }
        match message {
            Message::Discovery(said) => self.discovered(step, source, door, said),
            Message::Post(_) | Message::Dm(_) | Message::Profile(_) => self.talked(step, source, message),
            Message::PeerListRequest { from: asker, .. } => self.asked_for_peers(step, source, door, &asker),
            Message::PeerListResponse(list) => self.told_of_peers(step, place, &list),
            Message::Ack { message_id } => self.acknowledged(step, place, &message_id),
        }
    }

    /// A message shows that its sender is there, if he is known at all.
    fn heard(&mut self, now: Millis, source: SocketAddrV4, sender: Option<&UserId>) {
        let place = self.place_of(source);
        if let Some(id) = self.peers.with_addr(place) {
            self.peers.heard(id, place, now);
        } else if let Some(sender) = sender
            && let Some(id) = self.peers.with_user(sender)
            && let Some(addr) = self.peers.addr_of(sender)
        {
            self.peers.heard(id, addr, now);
        }
    }

    fn send_refused(&mut self, step: &mut Step, to: SocketAddr) {
        let SocketAddr::V4(to) = to else { return };
        if let Some(peer) = self.peers.refused(to) {
            step.show(Shown::Left { peer, why: Left::Refused });
        }
    }

    /// Counts what is dropped, and shows it; of very many only how many they are.
    fn drop(&mut self, step: &mut Step, from: impl Into<SocketAddr>, cause: Cause, detail: impl FnOnce() -> String) {
        self.counters.drop(cause);
        if self.drops_shown.take(step.now) {
            step.show(Shown::Dropped { from: from.into(), cause, detail: detail() });
        } else {
            *self.drops_unshown.entry(cause).or_default() += 1;
            self.sum_drops_at.get_or_insert(step.now.plus_ms(DROPS_SUMMED_MS));
        }
    }

    fn send(&mut self, step: &mut Step, to: SocketAddrV4, message: Message) {
        self.counters.sent += 1;
        step.effects.push(Effect::Send { to: to.into(), message });
    }

    /// Who we are to somebody there.
    fn user_id_towards(&self, ip: Ipv4Addr) -> UserId {
        UserId { name: self.name.clone(), ip: self.addresses.towards(ip) }
    }

    fn announcement(&self, step: &mut Step, user_id: UserId, probe: bool) -> Message {
        let (serves, cert_sha256) = match &self.settings.kind {
            Kind::Server { serves, cert_sha256 } => (serves.clone(), cert_sha256.clone()),
            Kind::Person | Kind::Probe => (Vec::new(), None),
        };
        let features = Features { ack: true, probe: probe || self.settings.kind == Kind::Probe };
        Message::Discovery(Discovery {
            user_id,
            port: self.settings.port,
            instance: Some(self.settings.instance.clone()),
            features,
            serves,
            cert_sha256,
            stamp: step.stamp(),
        })
    }

    /// Where somebody is known who speaks from there: the addresses of this host are one for where a peer is.
    fn place_of(&self, source: SocketAddrV4) -> SocketAddrV4 {
        let mut places = self.addresses.equal_to(*source.ip()).map(|ip| SocketAddrV4::new(ip, source.port()));
        places.find(|place| self.peers.with_addr(*place).is_some()).unwrap_or(source)
    }

    /// Whether two are one place.
    fn is_same_place(&self, one: SocketAddrV4, other: SocketAddrV4) -> bool {
        let of = |addr: SocketAddrV4| (self.addresses.one_for_all(*addr.ip()), addr.port());
        of(one) == of(other)
    }

    /// Whether it is this node itself.
    fn is_self(&self, addr: SocketAddrV4) -> bool {
        addr.port() == self.settings.port && self.addresses.is_here(*addr.ip())
    }

    /// Whether something may be sent there. To the discovery port of this host nothing ever goes to one:
    /// whichever of the sockets that share it got it would be chance.
    fn may_send(&self, to: SocketAddrV4) -> bool {
        let shared = to.port() == self.settings.discovery_port && self.addresses.is_own(*to.ip());
        to.port() != 0 && !shared && self.addresses.is_unicast(*to.ip())
    }
}
