//! Announcements: sending our own, handling those of others, and deciding which claims of identity to accept.

use std::net::SocketAddrV4;

use super::peer_table::{PEERS_MAX, PeerId};
use super::{CallContext, DropCause, Node, NodeEffect, NodeKind, Notification, PeerLeftReason, SocketRole};
use crate::lan::wire::{Discovery, UserId};
use crate::model::{Millis, Name};

const ANSWER_DELAY_MS: u64 = 20;
/// An answer waits up to this much longer, at random, so that not all peers answer at the same time.
const ANSWER_SPREAD_MS: u64 = 230;
/// A unicast announcement within this time after our own is taken for an answer to it.
const ANSWER_WINDOW_MS: u64 = 2_000;
/// How long the old PORT has to answer before a new one is accepted.
const PORT_CHECK_MS: u64 = 1_000;
pub(super) const PORT_CHECKS_MAX: usize = 100;
/// A peer that has had its name for less than this counts as the newer of two.
const NEW_NAME_MS: u64 = 2_000;
/// How long a newer peer with the larger INSTANCE waits for the other one to yield before it yields itself.
const YIELD_AFTER_MS: u64 = 500;
/// After this many announcement intervals, two peers that both count as the older are in a stalemate.
const STALEMATE_ANNOUNCES: u32 = 2;
pub(super) const NAME_CONFLICTS_MAX: usize = 16;

/// A USER_ID was announced with another PORT; the peer at the old one is asked whether it is still there.
pub(super) struct PortCheck {
    old: SocketAddrV4,
    new: Announcement,
    pub until: Millis,
}

/// Another peer on this host that has our name.
pub(super) struct NameConflict {
    instance: Option<String>,
    /// Where it receives unicasts.
    addr: SocketAddrV4,
    met_at: Millis,
}

struct Announcement {
    source: SocketAddrV4,
    /// The source address with the announced PORT.
    addr: SocketAddrV4,
    socket: SocketRole,
    discovery: Discovery,
}

impl Node {
    /// Broadcasts our announcement on every interface, and sends it to static peers that are not known yet.
    pub(super) fn announce(&mut self, ctx: &mut CallContext) {
        self.last_announced_at = Some(ctx.now);
        for (interface_ip, ip) in self.addresses.announcement_routes() {
            let message = self.build_announcement(ctx, UserId { name: self.name.clone(), ip }, false);
            self.counters.broadcasts += 1;
            ctx.effects.push(NodeEffect::Broadcast { interface_ip, message });
        }
        let static_peers: Vec<_> =
            self.static_peers.iter().copied().filter(|addr| !self.knows_peer_at(*addr)).collect();
        for addr in static_peers {
            self.announce_to(ctx, addr, false);
        }
        self.next_announce_at = None;
        if self.config.kind != NodeKind::Probe {
            let every_ms = u64::try_from(self.config.announce_every.as_millis()).unwrap_or(u64::MAX);
            let jitter_ms = ctx.random_below(every_ms / 5 + 1);
            self.next_announce_at = Some(ctx.now.plus_ms((every_ms - every_ms / 10).saturating_add(jitter_ms).max(1)));
        }
    }

    /// With a discovery port, any peer of that host counts: peers send from their own ports.
    fn knows_peer_at(&self, addr: SocketAddrV4) -> bool {
        let shared = addr.port() == self.config.discovery_port;
        let is_match = |at: SocketAddrV4| if shared { at.ip() == addr.ip() } else { at == addr };
        self.peers.iter().any(|peer| peer.addresses().iter().any(|address| is_match(address.addr)))
    }

    pub(super) fn announce_to(&mut self, ctx: &mut CallContext, to: SocketAddrV4, probe: bool) {
        let message = self.build_announcement(ctx, self.own_user_id_for(*to.ip()), probe);
        self.peers.mark_announced_to(to, ctx.now);
        self.send(ctx, to, message);
    }

    pub(super) fn send_due_announcements(&mut self, ctx: &mut CallContext) {
        while let Some(to) = self.announcement_queue.pop_due(ctx.now) {
            self.announce_to(ctx, to, false);
        }
    }

    pub(super) fn handle_discovery(
        &mut self,
        ctx: &mut CallContext,
        source: SocketAddrV4,
        socket: SocketRole,
        discovery: Discovery,
    ) {
        let mut discovery = discovery;
        let mut addr = SocketAddrV4::new(*source.ip(), discovery.port);
        if self.is_self(addr) {
            return self.drop_datagram(ctx, source, DropCause::Taken, || format!("PORT: {addr} is this node itself"));
        }
        if !self.may_send_to(addr) {
            return self.drop_datagram(ctx, source, DropCause::Unanswerable, || {
                format!("PORT: nothing may be sent to {addr}")
            });
        }
        if discovery.instance.is_none() {
            (discovery.user_id, addr) = self.resolve_local_alias(discovery.user_id, addr);
        }
        let is_answer =
            socket == SocketRole::Own && self.is_answer_to_us(ctx.now, addr) && self.announcement_queue.cancel(addr);
        let announcement = Announcement { source, addr, socket, discovery };
        if announcement.discovery.features.probe {
            if let Some(id) = self.peers.find_by_addr(addr) {
                self.peers.mark_heard(id, addr, ctx.now);
            }
            return self.enqueue_answer(ctx, &announcement);
        }
        if announcement.discovery.user_id.name == self.name && self.addresses.is_own(announcement.discovery.user_id.ip)
        {
            return self.handle_name_conflict(ctx, announcement);
        }
        self.clear_former_claims(&announcement.discovery);
        match self.peers.addr_of(&announcement.discovery.user_id) {
            Some(old) if old.port() != addr.port() => self.start_port_check(ctx, old, announcement),
            _ => self.admit(ctx, &announcement, is_answer),
        }
    }

    /// The USER_ID and address by which a peer of this host that has no INSTANCE is known already. It may send from
    /// several of the host's addresses, with as many USER_IDs, and nothing but the host tells that it is one peer.
    fn resolve_local_alias(&self, user_id: UserId, addr: SocketAddrV4) -> (UserId, SocketAddrV4) {
        let without_instance = |user_id: &UserId| {
            let peer = self.peers.find_by_user_id(user_id).and_then(|id| self.peers.get(id));
            peer.is_some_and(|peer| peer.instance().is_none())
        };
        let mut ids = self.addresses.equivalents(user_id.ip).map(|ip| UserId { name: user_id.name.clone(), ip });
        if let Some(known) = ids.find(without_instance)
            && let Some(at) = self.peers.addr_of(&known)
        {
            // If the known address refuses sends, the peer may have moved to the address it is heard from now.
            let is_there = self.is_same_endpoint(at, addr) && !self.peers.is_refusing(at);
            return (known, if is_there { at } else { addr });
        }
        // It may have another name now.
        let known_addr = self.known_addr_of(addr);
        let is_there = self.peers.peer_at(known_addr).is_some_and(|peer| peer.instance().is_none());
        (user_id, if is_there { known_addr } else { addr })
    }

    /// A unicast announcement that comes while our own answer to that peer is queued answers our announcement: then
    /// ours is not needed, which halves the answers among peers that start together. A unicast at the same moment as
    /// the peer's broadcast is no answer: the peer has another reason (`--peer`) and may not know us.
    fn is_answer_to_us(&self, now: Millis, addr: SocketAddrV4) -> bool {
        let is_recent = |at: Option<Millis>| at.is_some_and(|at| now < at.plus_ms(ANSWER_WINDOW_MS));
        let announced_to_at = self.peers.peer_at(addr).and_then(|peer| peer.announced_to_at);
        let broadcast_at = self.announcement_queue.broadcast_at(addr);
        broadcast_at.is_some_and(|at| now >= at.plus_ms(ANSWER_DELAY_MS))
            && (is_recent(self.last_announced_at) || is_recent(announced_to_at))
    }

    /// Adds or updates the announced peer, and answers it if it may not know us. `is_answer` says that it does.
    fn admit(&mut self, ctx: &mut CallContext, announcement: &Announcement, is_answer: bool) {
        let Announcement { source, addr, socket, discovery } = announcement;
        let by_user_id = self.peers.find_by_user_id(&discovery.user_id);
        let old_addr = self.peers.addr_of(&discovery.user_id);
        let by_instance = discovery.instance.as_deref().and_then(|instance| self.peers.find_by_instance(instance));
        let by_addr = self.peers.find_by_addr(*addr);
        let is_there = |id: PeerId| by_addr == Some(id);
        let id = match (by_instance, by_user_id) {
            (Some(id), _) => {
                // A run may change its name only from the address at which it is known.
                let is_same_name = self.peers.get(id).is_some_and(|peer| *peer.name() == discovery.user_id.name);
                if !is_same_name && !is_there(id) {
                    return self
                        .drop_datagram(ctx, *source, DropCause::Taken, || "INSTANCE: another peer's".to_owned());
                }
                Some(id)
            }
            (None, Some(id)) => Some(id),
            // A peer without INSTANCE that has another name now.
            (None, None) => by_addr.filter(|id| {
                discovery.instance.is_none() && self.peers.get(*id).is_some_and(|peer| peer.instance().is_none())
            }),
        };
        let is_unchanged = id.is_some() && by_user_id == id && old_addr == Some(*addr);
        let is_same_run =
            id.and_then(|id| self.peers.get(id)).is_some_and(|peer| peer.instance() == discovery.instance.as_deref());
        if let Some(id) = id.filter(|_| is_unchanged && is_same_run) {
            return self.refresh_peer(ctx, id, announcement, is_answer);
        }
        // An address that another peer has can be taken over only by sending from it.
        if by_addr.is_some() && source.port() != addr.port() {
            return self.drop_datagram(ctx, *source, DropCause::Taken, || format!("PORT: another peer is at {addr}"));
        }
        if id.is_none() && self.peers.len() >= PEERS_MAX {
            if !std::mem::replace(&mut self.has_notified_full, true) {
                ctx.notify(Notification::PeerTableFull { peers: PEERS_MAX });
            }
            return self
                .drop_datagram(ctx, *source, DropCause::Full, || format!("{PEERS_MAX} peers are known already"));
        }
        // Without INSTANCE, only another PORT reveals another run.
        let has_moved = old_addr.is_some_and(|old| old != *addr);
        let has_restarted = id.is_some() && by_instance.is_none() && (!is_same_run || has_moved);
        let is_new = id.is_none();
        let id = id.unwrap_or_else(|| self.peers.add(ctx.now));
        let old_user = self.peers.get(id).and_then(|peer| peer.addresses().first()).map(|at| at.user_id.clone());
        for peer in self.peers.assign_address(id, &discovery.user_id, *addr, ctx.now) {
            if peer.user_id.name != discovery.user_id.name {
                ctx.notify(Notification::PeerLeft { peer, why: PeerLeftReason::Replaced });
            }
        }
        self.peers.update_description(id, discovery);
        let renamed = old_user.filter(|old| old.name != discovery.user_id.name);
        if has_restarted || renamed.is_some() {
            self.peers.remove_addresses(id, |address| address.addr != *addr);
        }
        if let Some(old) = renamed {
            ctx.notify(Notification::PeerRenamed { old, new: discovery.user_id.clone() });
        }
        if let Some(old) = old_addr.filter(|old| old != addr) {
            ctx.notify(Notification::PeerMoved {
                user_id: discovery.user_id.clone(),
                old: old.into(),
                new: (*addr).into(),
            });
        }
        if is_new {
            self.has_notified_full = false;
            let joined = self.peers.get(id).map(|peer| NodeEffect::Notify(Notification::PeerJoined(peer.info())));
            ctx.effects.extend(joined);
        }
        if is_new || has_restarted || *socket == SocketRole::Own && !is_answer {
            self.enqueue_answer(ctx, announcement);
        }
    }

    fn refresh_peer(&mut self, ctx: &mut CallContext, id: PeerId, announcement: &Announcement, is_answer: bool) {
        let Announcement { addr, socket, discovery, .. } = announcement;
        self.peers.mark_heard(id, *addr, ctx.now);
        self.peers.update_description(id, discovery);
        let has_no_instance = discovery.instance.is_none();
        let may_answer = self.peers.get_mut(id).is_some_and(|peer| match socket {
            _ if is_answer => false,
            _ if has_no_instance => peer.may_answer_without_instance(ctx.now),
            SocketRole::Own => peer.try_answer_again(ctx.now),
            SocketRole::Discovery => false,
        });
        if may_answer {
            self.enqueue_answer(ctx, announcement);
        }
    }

    /// Queues an answer: to a unicast at once, to a broadcast after a delay, as the peer may hear of us before.
    fn enqueue_answer(&mut self, ctx: &mut CallContext, announcement: &Announcement) {
        if self.config.kind == NodeKind::Probe {
            return;
        }
        let broadcast = announcement.socket == SocketRole::Discovery;
        let wait_ms = if broadcast { ANSWER_DELAY_MS + ctx.random_below(ANSWER_SPREAD_MS + 1) } else { 0 };
        let broadcast_at = (broadcast && !announcement.discovery.features.probe).then_some(ctx.now);
        let is_allowed = self.answer_limiter.take(ctx.now, self.addresses.rate_limit_key(announcement.source));
        if !is_allowed || !self.announcement_queue.enqueue(ctx.now.plus_ms(wait_ms), announcement.addr, broadcast_at) {
            self.drop_datagram(ctx, announcement.source, DropCause::Unanswerable, || {
                "too many answers wait already".to_owned()
            });
        }
    }

    /// If the peer still answers at the old PORT, the claim is refused.
    fn start_port_check(&mut self, ctx: &mut CallContext, old: SocketAddrV4, announcement: Announcement) {
        if let Some(check) = self.port_checks.get_mut(&announcement.discovery.user_id) {
            if check.new.addr == announcement.addr {
                check.new = announcement;
                return;
            }
            return self.drop_datagram(ctx, announcement.source, DropCause::TooManyChecks, || {
                format!("USER_ID: {} is looked into already", announcement.discovery.user_id)
            });
        }
        if self.port_checks.len() >= PORT_CHECKS_MAX {
            return self.drop_datagram(ctx, announcement.source, DropCause::TooManyChecks, || {
                format!("{PORT_CHECKS_MAX} changes of PORT are looked into already")
            });
        }
        self.announce_to(ctx, old, true);
        let until = ctx.now.plus_ms(PORT_CHECK_MS);
        self.port_checks.insert(announcement.discovery.user_id.clone(), PortCheck { old, new: announcement, until });
    }

    /// A datagram from the checked old address shows that the peer is still there, so the claim is refused. But if it
    /// is an announcement of another name, the claim is accepted (otherwise two peers that have exchanged their names
    /// would be checked for ever).
    pub(super) fn resolve_port_checks(
        &mut self,
        ctx: &mut CallContext,
        source: SocketAddrV4,
        sender: Option<&UserId>,
        is_announcement: bool,
    ) {
        let asked = self.port_checks.iter().filter(|(_, check)| check.old == source);
        for user_id in asked.map(|(user_id, _)| user_id.clone()).collect::<Vec<_>>() {
            let has_same_name = sender.is_none_or(|sender| sender.name == user_id.name);
            if !has_same_name && !is_announcement {
                continue;
            }
            let Some(check) = self.port_checks.remove(&user_id) else { continue };
            if !has_same_name {
                self.admit(ctx, &check.new, false);
                continue;
            }
            let (old, new) = (check.old, check.new.addr);
            // The datagram answers our question, so it needs no answer.
            self.peers.mark_announced_to(old, ctx.now);
            self.drop_datagram(ctx, check.new.source, DropCause::PortRefused, || {
                format!("USER_ID: {user_id} is at {old}")
            });
            ctx.notify(Notification::PeerMoveRefused { user_id, old: old.into(), new: new.into() });
        }
    }

    pub(super) fn accept_expired_port_checks(&mut self, ctx: &mut CallContext) {
        let now = ctx.now;
        while let Some(user_id) =
            self.port_checks.iter().find(|(_, check)| check.until <= now).map(|(id, _)| id.clone())
        {
            let Some(check) = self.port_checks.remove(&user_id) else { return };
            self.admit(ctx, &check.new, false);
        }
    }

    /// A run that announces another name gives up its claims to the former one: pending port checks and name conflicts.
    fn clear_former_claims(&mut self, discovery: &Discovery) {
        let Some(instance) = discovery.instance.as_deref() else { return };
        if !self.port_checks.is_empty() {
            self.port_checks.retain(|user_id, check| {
                check.new.discovery.instance.as_deref() != Some(instance) || user_id.name == discovery.user_id.name
            });
        }
        if !self.name_conflicts.is_empty() {
            self.name_conflicts.retain(|conflict| conflict.instance.as_deref() != Some(instance));
            if self.name_conflicts.is_empty() {
                self.rename_at = None;
            }
        }
    }

    /// Another peer on this host has our name. The newer of the two must take another one. Each knows only its own age,
    /// so the smaller INSTANCE yields if both are new, and after a stalemate in which both count as the older.
    fn handle_name_conflict(&mut self, ctx: &mut CallContext, announcement: Announcement) {
        let Announcement { addr, socket, discovery, .. } = announcement;
        let known = self.name_conflicts.iter().find(|conflict| conflict.instance == discovery.instance);
        let met_at = known.map(|conflict| conflict.met_at);
        if met_at.is_none() {
            if self.name_conflicts.len() >= NAME_CONFLICTS_MAX {
                self.name_conflicts.remove(0);
            }
            self.name_conflicts.push(NameConflict { instance: discovery.instance.clone(), addr, met_at: ctx.now });
        }
        // The other one must know of us, whoever has to yield. Its answer is not answered again.
        if met_at.is_none() || socket == SocketRole::Discovery {
            self.announcement_queue.enqueue(ctx.now, addr, None);
        }
        let must_yield = discovery.instance.as_deref().is_none_or(|theirs| *self.config.instance < *theirs);
        let stalemate = self.config.announce_every * STALEMATE_ANNOUNCES;
        if self.named_at.plus_ms(NEW_NAME_MS) > ctx.now {
            if must_yield {
                self.take_next_name(ctx);
            } else {
                self.rename_at.get_or_insert(ctx.now.plus_ms(YIELD_AFTER_MS));
            }
        } else if must_yield && met_at.is_some_and(|met_at| met_at.plus(stalemate) <= ctx.now) {
            self.take_next_name(ctx);
        }
    }

    /// The configured name with the smallest free number, from 2 on.
    pub(super) fn take_next_name(&mut self, ctx: &mut CallContext) {
        (self.rename_at, self.named_at) = (None, ctx.now);
        let conflicts = std::mem::take(&mut self.name_conflicts);
        let on_this_host = |name: &Name| {
            let mut addresses = self.peers.iter().flat_map(|peer| peer.addresses());
            addresses.any(|at| at.user_id.name == *name && self.addresses.is_own(at.user_id.ip))
        };
        // There cannot be more other names than these numbers, so one is free.
        let numbers = 2..=PEERS_MAX * 8 + 3;
        let mut names = numbers.map(|number| self.config.name.numbered(number));
        let Some(free) = names.find(|name| *name != self.name && !on_this_host(name)) else { return };
        let old = std::mem::replace(&mut self.name, free.clone());
        ctx.notify(Notification::SelfRenamed { old, new: free });
        self.announce(ctx);
        // The peers with the old name can be listed from now on. A probe makes them answer, whatever they know of us.
        for conflict in conflicts {
            self.announce_to(ctx, conflict.addr, true);
        }
    }
}
