//! The protocol state machine of one LAN peer, without I/O: which peers it knows, what it sends and which claims of
//! others it accepts. See `docs/spec/lan.md`.
//!
//! The driver passes in events ([`Node::handle`]) and the user's commands ([`Node::command`]), applies the returned
//! [`NodeEffect`]s in order, and sends [`NodeEvent::Tick`] when [`Node::next_deadline`] has come. `random` returns 64
//! random bits per call. Every table is bounded ([`Node::sizes`]), and every dropped datagram has a [`DropCause`].

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use super::SocketRole;
use super::wire::{Discovery, Features, Message, MessageStamp, UserId, WireError};
use crate::model::{Millis, Name};

mod addresses;
mod announcement_queue;
mod api;
mod counters;
mod discovery;
mod messages;
mod peer_lists;
mod peer_table;
mod pending_dms;
mod rate_limits;
mod seen_messages;
#[cfg(test)]
mod tests;

use self::addresses::HostAddresses;
use self::announcement_queue::AnnouncementQueue;
pub use self::api::{
    CommandError, CommandOutcome, InterfaceAddress, MessageRecord, NodeCommand, NodeConfig, NodeEffect, NodeEvent,
    NodeKind, Notification, PeerInfo, PeerLeftReason,
};
pub use self::counters::{DropCause, NodeCounters, TableSizes};
use self::discovery::{NameConflict, PortCheck};
use self::peer_table::PeerTable;
use self::pending_dms::{AcknowledgingStrangers, DueDm, PendingDms};
use self::rate_limits::{RateLimit, SourceRateLimiter, TokenBucket};
use self::seen_messages::SeenMessages;

/// This limit is for one source address and port.
const DATAGRAMS_PER_SOURCE: RateLimit = RateLimit { burst: 200, per_s: 100 };
const SOURCES_MAX: usize = 10_000;
/// Far more drops than a user causes by hand. Those beyond are only counted, in one summary a second.
const DROP_NOTIFICATIONS: RateLimit = RateLimit { burst: 200, per_s: 100 };
const DROP_SUMMARY_INTERVAL_MS: u64 = 1_000;
/// A peer list may be a hundred times as long as its request.
const PEER_LISTS_IN_TOTAL: RateLimit = RateLimit { burst: 50, per_s: 20 };
/// One host must not use up the limit for all.
const PEER_LISTS_PER_HOST: RateLimit = RateLimit { burst: 20, per_s: 2 };
const ANSWERS_PER_HOST: RateLimit = RateLimit { burst: 200, per_s: 50 };

pub struct Node {
    config: NodeConfig,
    name: Name,
    named_at: Millis,
    addresses: HostAddresses,
    peers: PeerTable,
    seen: SeenMessages,
    pending_dms: PendingDms,
    acknowledging_strangers: AcknowledgingStrangers,
    announcement_queue: AnnouncementQueue,
    port_checks: BTreeMap<UserId, PortCheck>,
    /// Other peers on this host that have our name.
    name_conflicts: Vec<NameConflict>,
    rename_at: Option<Millis>,
    /// Addresses that are announced to directly, as broadcast does not reach them.
    static_peers: Vec<SocketAddrV4>,
    last_announced_at: Option<Millis>,
    /// `None` before the start.
    next_announce_at: Option<Millis>,
    is_started: bool,
    datagram_limiter: SourceRateLimiter,
    answer_limiter: SourceRateLimiter,
    peer_list_bucket: TokenBucket,
    peer_list_limiter: SourceRateLimiter,
    /// Peers whose list was requested and has not come, and until when it is accepted.
    peer_list_requests: HashMap<SocketAddrV4, Millis>,
    drop_notification_bucket: TokenBucket,
    summarized_drops: BTreeMap<DropCause, u64>,
    drop_summary_at: Option<Millis>,
    has_notified_full: bool,
    counters: NodeCounters,
    wall_clock_ahead_ms: i64,
}

/// The inputs of one call, and the effects that it collects.
struct CallContext<'a> {
    now: Millis,
    /// The time by the wall clock, for timestamps.
    date: Millis,
    random: &'a mut dyn FnMut() -> u64,
    effects: Vec<NodeEffect>,
}

impl CallContext<'_> {
    fn notify(&mut self, notification: Notification) {
        self.effects.push(NodeEffect::Notify(notification));
    }

    fn random_below(&mut self, end: u64) -> u64 {
        (self.random)() % end.max(1)
    }

    fn stamp(&mut self) -> MessageStamp {
        MessageStamp { timestamp: Some(self.date.0 / 1000), message_id: Some(format!("{:016x}", (self.random)())) }
    }
}

impl Node {
    /// A node that has not started yet. It must get [`NodeEvent::InterfacesChanged`], then the messages to
    /// [`remember`](Node::remember_received), then [`NodeEvent::Started`].
    pub fn new(config: NodeConfig) -> Node {
        let forget_after_ms = u64::try_from(config.forget_after.as_millis()).unwrap_or(u64::MAX);
        Node {
            name: config.name.clone(),
            named_at: Millis::default(),
            addresses: HostAddresses::default(),
            peers: PeerTable::new(forget_after_ms),
            seen: SeenMessages::default(),
            pending_dms: PendingDms::default(),
            acknowledging_strangers: AcknowledgingStrangers::default(),
            announcement_queue: AnnouncementQueue::new(),
            port_checks: BTreeMap::new(),
            name_conflicts: Vec::new(),
            rename_at: None,
            static_peers: Vec::new(),
            last_announced_at: None,
            next_announce_at: None,
            is_started: false,
            datagram_limiter: SourceRateLimiter::new(DATAGRAMS_PER_SOURCE, SOURCES_MAX),
            answer_limiter: SourceRateLimiter::new(ANSWERS_PER_HOST, SOURCES_MAX),
            peer_list_bucket: TokenBucket::full(PEER_LISTS_IN_TOTAL),
            peer_list_limiter: SourceRateLimiter::new(PEER_LISTS_PER_HOST, SOURCES_MAX),
            peer_list_requests: HashMap::new(),
            drop_notification_bucket: TokenBucket::full(DROP_NOTIFICATIONS),
            summarized_drops: BTreeMap::new(),
            drop_summary_at: None,
            has_notified_full: false,
            counters: NodeCounters::default(),
            wall_clock_ahead_ms: 0,
            config,
        }
    }

    pub fn handle(&mut self, now: Millis, event: NodeEvent, random: &mut dyn FnMut() -> u64) -> Vec<NodeEffect> {
        let ctx = &mut CallContext { now, date: now.shifted(self.wall_clock_ahead_ms), random, effects: Vec::new() };
        self.run_due_timers(ctx);
        match event {
            NodeEvent::Started => {
                (self.is_started, self.named_at) = (true, now);
                self.announce(ctx);
            }
            NodeEvent::InterfacesChanged(interfaces) => {
                let has_new_address = self.addresses.set(interfaces);
                if has_new_address && self.is_started && self.config.kind != NodeKind::Probe {
                    self.announce(ctx);
                }
            }
            NodeEvent::Datagram { from, socket, message, bytes } => {
                self.handle_datagram(ctx, from, socket, message, bytes)
            }
            NodeEvent::SendRefused { to: SocketAddr::V4(to) } => {
                if let Some(peer) = self.peers.record_refusal(to) {
                    ctx.notify(Notification::PeerLeft { peer, why: PeerLeftReason::Refused });
                }
            }
            NodeEvent::StoreFailed(entry) => self.handle_store_failed(&entry),
            NodeEvent::SendRefused { .. } | NodeEvent::Tick => {}
        }
        self.send_due_announcements(ctx);
        std::mem::take(&mut ctx.effects)
    }

    /// Executes a command of the user. If it is refused, nothing has changed, and nothing is sent.
    pub fn command(
        &mut self,
        now: Millis,
        command: NodeCommand,
        random: &mut dyn FnMut() -> u64,
    ) -> Result<(CommandOutcome, Vec<NodeEffect>), CommandError> {
        let ctx = &mut CallContext { now, date: now.shifted(self.wall_clock_ahead_ms), random, effects: Vec::new() };
        let outcome = match command {
            NodeCommand::Say { to, body } => self.say(ctx, to.as_deref(), body),
            NodeCommand::RequestPeerLists => self.request_peer_lists(ctx),
            NodeCommand::AddPeer(addr) => self.add_peer(ctx, addr),
        }?;
        Ok((outcome, std::mem::take(&mut ctx.effects)))
    }

    /// How far the wall clock, which dates messages, is ahead of the time in `now`, by which timeouts run.
    pub fn set_wall_clock_ahead(&mut self, ms: i64) {
        self.wall_clock_ahead_ms = ms;
    }

    /// When the node needs a [`NodeEvent::Tick`], if there is no other event before.
    pub fn next_deadline(&self) -> Option<Millis> {
        let checks = self.port_checks.values().map(|check| check.until).min();
        let due = [
            self.next_announce_at,
            self.announcement_queue.deadline(),
            self.pending_dms.deadline(),
            self.peers.deadline(),
            self.rename_at,
            self.drop_summary_at,
            checks,
        ];
        due.into_iter().flatten().min()
    }

    /// All known peers, servers too, sorted by name and address.
    pub fn peers(&self) -> Vec<PeerInfo> {
        let mut known: Vec<PeerInfo> = self.peers.iter().map(|peer| peer.info()).collect();
        known.sort_by(|a, b| (&a.user_id, a.addr).cmp(&(&b.user_id, b.addr)));
        known
    }

    /// The current name: that of the configuration, or that with a number appended.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The node's USER_ID, with the first address that others can reach.
    pub fn user_id(&self) -> UserId {
        UserId { name: self.name.clone(), ip: self.addresses.primary() }
    }

    pub fn counters(&self) -> &NodeCounters {
        &self.counters
    }

    pub fn sizes(&self) -> TableSizes {
        TableSizes {
            peers: self.peers.len(),
            addresses: self.peers.address_count(),
            seen: self.seen.len(),
            senders: self.seen.sender_count(),
            pending_dms: self.pending_dms.len(),
            queued_announcements: self.announcement_queue.len(),
            port_checks: self.port_checks.len(),
            name_conflicts: self.name_conflicts.len(),
            static_peers: self.static_peers.len(),
            sources: self.datagram_limiter.len().max(self.answer_limiter.len()).max(self.peer_list_limiter.len()),
            peer_list_requests: self.peer_list_requests.len(),
            acknowledging_strangers: self.acknowledging_strangers.len(),
        }
    }

    fn run_due_timers(&mut self, ctx: &mut CallContext) {
        if self.next_deadline().is_none_or(|deadline| deadline > ctx.now) {
            return;
        }
        while let Some(due) = self.pending_dms.pop_due(ctx.now) {
            match due {
                DueDm::Resend { to, message } => {
                    if let Some(id) = self.peers.find_by_addr(to) {
                        self.peers.record_send(id, ctx.now);
                    }
                    self.send(ctx, to, message);
                }
                DueDm::GiveUp { message_id, user_id } => {
                    let id = message_id.clone();
                    ctx.effects.push(NodeEffect::StoreConfirmation { message_id: id, confirmed: false });
                    ctx.notify(Notification::DmUnconfirmed { to: user_id, message_id });
                }
            }
        }
        self.accept_expired_port_checks(ctx);
        while let Some(peer) = self.peers.next_expired(ctx.now) {
            ctx.notify(Notification::PeerLeft { peer, why: PeerLeftReason::TimedOut });
        }
        if self.rename_at.is_some_and(|at| at <= ctx.now) {
            self.take_next_name(ctx);
        }
        if self.next_announce_at.is_some_and(|at| at <= ctx.now) {
            self.announce(ctx);
        }
        if self.drop_summary_at.is_some_and(|at| at <= ctx.now) {
            self.drop_summary_at = None;
            let counts = std::mem::take(&mut self.summarized_drops).into_iter().collect();
            ctx.notify(Notification::DropSummary { counts });
        }
        self.send_due_announcements(ctx);
    }

    fn handle_datagram(
        &mut self,
        ctx: &mut CallContext,
        from: SocketAddr,
        socket: SocketRole,
        message: Result<Message, WireError>,
        bytes: usize,
    ) {
        self.counters.received += 1;
        self.counters.received_bytes += bytes as u64;
        let SocketAddr::V4(source) = from else {
            return self.drop_datagram(ctx, from, DropCause::NotIpv4, || "expected an IPv4 source".to_owned());
        };
        // An awaited ACK is exempt from the rate limit: we have asked for it.
        let known_addr = self.known_addr_of(source);
        let is_awaited = |message: &Message| matches!(message, Message::Ack { message_id } if self.pending_dms.is_awaited(known_addr, message_id));
        if !message.as_ref().is_ok_and(is_awaited) && !self.datagram_limiter.take(ctx.now, source) {
            return self.drop_datagram(ctx, from, DropCause::TooMany, || {
                format!("more than {} a second", DATAGRAMS_PER_SOURCE.per_s)
            });
        }
        let message = match message {
            Ok(message) => message,
            Err(refused) => {
                let cause = match refused {
                    WireError::UnknownType(_) => DropCause::UnknownType,
                    WireError::Malformed(_) => DropCause::Malformed,
                };
                return self.drop_datagram(ctx, from, cause, || refused.to_string());
            }
        };
        if let Message::Discovery(discovery) = &message
            && discovery.instance.as_deref() == Some(&*self.config.instance)
        {
            self.counters.own += 1;
            return;
        }
        let sender = message.sender();
        let claimed = sender.map_or(*source.ip(), |sender| sender.ip);
        if !self.addresses.may_claim(*source.ip(), claimed) || !self.addresses.is_unicast(*source.ip()) {
            return self
                .drop_datagram(ctx, from, DropCause::WrongSource, || format!("it says that it is from {claimed}"));
        }
        let announces = matches!(message, Message::Discovery(_));
        self.resolve_port_checks(ctx, known_addr, sender, announces);
        if !announces {
            self.mark_sender_heard(ctx.now, source, sender);
        }
        match message {
            Message::Discovery(discovery) => self.handle_discovery(ctx, source, socket, discovery),
            Message::Talk(talk) => self.handle_talk(ctx, source, talk),
            Message::PeerListRequest { from: asker, .. } => self.handle_peer_list_request(ctx, source, socket, &asker),
            Message::PeerListResponse(list) => self.handle_peer_list(ctx, known_addr, &list),
            Message::Ack { message_id } => self.handle_ack(ctx, known_addr, &message_id),
        }
    }

    /// Any message shows that its sender, if known, is still there.
    fn mark_sender_heard(&mut self, now: Millis, source: SocketAddrV4, sender: Option<&UserId>) {
        let known_addr = self.known_addr_of(source);
        if let Some(id) = self.peers.find_by_addr(known_addr) {
            self.peers.mark_heard(id, known_addr, now);
        } else if let Some(sender) = sender
            && let Some(id) = self.peers.find_by_user_id(sender)
            && let Some(addr) = self.peers.addr_of(sender)
        {
            self.peers.mark_heard(id, addr, now);
        }
    }

    /// Counts a drop and notifies the user of it; of very many, only the number.
    fn drop_datagram(
        &mut self,
        ctx: &mut CallContext,
        from: impl Into<SocketAddr>,
        cause: DropCause,
        detail: impl FnOnce() -> String,
    ) {
        self.counters.count_drop(cause);
        if self.drop_notification_bucket.take(ctx.now) {
            ctx.notify(Notification::DatagramDropped { from: from.into(), cause, detail: detail() });
        } else {
            *self.summarized_drops.entry(cause).or_default() += 1;
            self.drop_summary_at.get_or_insert(ctx.now.plus_ms(DROP_SUMMARY_INTERVAL_MS));
        }
    }

    fn send(&mut self, ctx: &mut CallContext, to: SocketAddrV4, message: Message) {
        self.counters.sent += 1;
        ctx.effects.push(NodeEffect::Send { to: to.into(), message });
    }

    /// Our USER_ID as seen by a peer at that address.
    fn own_user_id_for(&self, ip: Ipv4Addr) -> UserId {
        UserId { name: self.name.clone(), ip: self.addresses.source_for(ip) }
    }

    fn build_announcement(&self, ctx: &mut CallContext, user_id: UserId, probe: bool) -> Message {
        let (serves, cert_sha256) = match &self.config.kind {
            NodeKind::Server { serves, cert_sha256 } => (serves.clone(), cert_sha256.clone()),
            NodeKind::Person | NodeKind::Probe => (Vec::new(), None),
        };
        let features = Features { ack: true, probe: probe || self.config.kind == NodeKind::Probe };
        Message::Discovery(Discovery {
            user_id,
            port: self.config.port,
            instance: Some(self.config.instance.clone()),
            features,
            serves,
            cert_sha256,
            stamp: ctx.stamp(),
        })
    }

    /// The address by which the peer behind a source is known: the addresses of this host are interchangeable.
    fn known_addr_of(&self, source: SocketAddrV4) -> SocketAddrV4 {
        let mut candidates = self.addresses.equivalents(*source.ip()).map(|ip| SocketAddrV4::new(ip, source.port()));
        candidates.find(|known_addr| self.peers.find_by_addr(*known_addr).is_some()).unwrap_or(source)
    }

    fn is_same_endpoint(&self, one: SocketAddrV4, other: SocketAddrV4) -> bool {
        let of = |addr: SocketAddrV4| (self.addresses.canonical(*addr.ip()), addr.port());
        of(one) == of(other)
    }

    fn is_self(&self, addr: SocketAddrV4) -> bool {
        addr.port() == self.config.port && self.addresses.reaches_own_socket(*addr.ip())
    }

    /// Unicasts to the discovery port of this host are not sent: any one of the sockets that share it would get them.
    fn may_send_to(&self, to: SocketAddrV4) -> bool {
        let shared = to.port() == self.config.discovery_port && self.addresses.is_own(*to.ip());
        to.port() != 0 && !shared && self.addresses.is_unicast(*to.ip())
    }
}
