//! Sending and receiving of talk, and of ACKs.

use std::borrow::Cow;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use super::peer_table::PeerId;
use super::pending_dms::PENDING_DMS_MAX;
use super::{
    CallContext, CommandError, CommandOutcome, DropCause, MessageRecord, Node, NodeEffect, NodeKind, Notification,
};
use crate::lan::wire::{Message, Talk, TalkBody, UserId};
use crate::model::Millis;
use crate::model::text::nfc;

impl Node {
    pub(super) fn handle_talk(&mut self, ctx: &mut CallContext, source: SocketAddrV4, talk: Talk) {
        if self.config.kind != NodeKind::Person {
            return self.drop_datagram(ctx, source, DropCause::NotAPerson, || "this is no person's peer".to_owned());
        }
        if let Some(to) = &talk.to
            && !(to.name == self.name && self.addresses.is_own(to.ip))
        {
            return self.drop_datagram(ctx, source, DropCause::NotForUs, || format!("TO: {to}"));
        }
        let is_new = talk.stamp.message_id.as_deref().is_none_or(|id| {
            let (ip, sender) = self.dedup_sender(*source.ip(), &talk.from);
            self.seen.insert(ctx.now, ip, &sender, id)
        });
        let ack_to = talk.body.kind().wants_ack.then(|| self.ack_target(source, &talk.from)).flatten();
        let ack = talk.stamp.message_id.clone().zip(ack_to);
        if is_new {
            ctx.store(true, Some(source), &talk);
            ctx.notify(Notification::Heard { from: source.into(), talk });
        } else {
            self.drop_datagram(ctx, source, DropCause::Repeated, || "MESSAGE_ID: taken already".to_owned());
        }
        if let Some((message_id, to)) = ack {
            self.send(ctx, to, Message::Ack { message_id });
        }
    }

    /// Where to send the ACK of a message; `None` if its sender does not understand ACKs.
    fn ack_target(&self, source: SocketAddrV4, sender: &UserId) -> Option<SocketAddrV4> {
        let acknowledges = |addr| self.peers.peer_at(addr).is_some_and(|peer| peer.acknowledges());
        let by_sender = self.peers.addr_of(sender).filter(|addr| acknowledges(*addr));
        let by_source = || acknowledges(self.known_addr_of(source)) || self.acknowledging_strangers.contains(source);
        by_sender.or_else(|| by_source().then_some(source)).filter(|to| self.may_send_to(*to))
    }

    pub(super) fn handle_ack(&mut self, ctx: &mut CallContext, source: SocketAddrV4, message_id: &str) {
        match self.peers.find_by_addr(source) {
            Some(id) => self.peers.mark_acknowledging(id),
            None => self.acknowledging_strangers.add(source),
        }
        let Some(pending) = self.pending_dms.acknowledge(source, message_id) else {
            return self.drop_datagram(ctx, source, DropCause::StrayAck, || {
                format!("MESSAGE_ID: {message_id:?} waits for nothing from there")
            });
        };
        let message_id = message_id.to_owned();
        ctx.effects.push(NodeEffect::StoreConfirmation { message_id: message_id.clone(), confirmed: true });
        ctx.notify(Notification::DmConfirmed { to: pending.user_id, message_id });
    }

    /// A received message that could not be stored counts as never seen, an own one as never sent.
    pub(super) fn handle_store_failed(&mut self, MessageRecord { is_incoming, addr, talk, .. }: &MessageRecord) {
        let Some(message_id) = &talk.stamp.message_id else { return };
        match addr {
            Some(SocketAddr::V4(source)) if *is_incoming => {
                let (ip, sender) = self.dedup_sender(*source.ip(), &talk.from);
                self.seen.remove(ip, &sender, message_id);
            }
            _ => drop(self.pending_dms.remove(message_id)),
        }
    }

    /// Drops the repeats of a message that was received before this start. Oldest messages come first.
    pub fn remember_received(&mut self, at: Millis, source: Ipv4Addr, sender: &UserId, message_id: &str) {
        let (ip, sender) = self.dedup_sender(source, sender);
        self.seen.insert(at, ip, &sender, message_id);
    }

    /// The source and sender by which a message is deduplicated: the addresses of this host are interchangeable.
    fn dedup_sender<'a>(&self, source: Ipv4Addr, sender: &'a UserId) -> (Ipv4Addr, Cow<'a, UserId>) {
        let ip = self.addresses.canonical(sender.ip);
        let sender = match ip == sender.ip {
            true => Cow::Borrowed(sender),
            false => Cow::Owned(UserId { name: sender.name.clone(), ip }),
        };
        (self.addresses.canonical(source), sender)
    }

    pub(super) fn say(
        &mut self,
        ctx: &mut CallContext,
        to: Option<&str>,
        body: TalkBody,
    ) -> Result<CommandOutcome, CommandError> {
        let kind = body.kind();
        match to {
            Some(to) if kind.is_to_one => self.say_to_one(ctx, to, body),
            None if !kind.is_to_one => self.say_to_all(ctx, body),
            Some(_) => Err(CommandError::InvalidArgument(format!("USER: a {} goes to all", kind.type_name))),
            None => Err(CommandError::InvalidArgument(format!("USER: a {} goes to one", kind.type_name))),
        }
    }

    fn say_to_all(&mut self, ctx: &mut CallContext, body: TalkBody) -> Result<CommandOutcome, CommandError> {
        body.check_entered(self.user_id_bytes_max()).map_err(CommandError::InvalidArgument)?;
        if !body.kind().needs_no_peers && !self.peers.iter().any(|peer| !peer.is_server()) {
            return Err(CommandError::NoPeers);
        }
        self.reserve_sends(ctx, &self.peers.ids())?;
        let stamp = ctx.stamp();
        let talk = |from| Talk { from, to: None, body: body.clone(), stamp: stamp.clone() };
        ctx.store(false, None, &talk(self.user_id()));
        let to: Vec<SocketAddrV4> = self.peers.iter().map(|peer| peer.current().addr).collect();
        for addr in to {
            let talk = talk(self.own_user_id_for(*addr.ip()));
            self.send(ctx, addr, Message::Talk(talk));
        }
        let to = self.peers.iter().filter(|peer| !peer.is_server()).count();
        Ok(CommandOutcome::SaidToAll { to, message_id: stamp.message_id.unwrap_or_default() })
    }

    fn say_to_one(&mut self, ctx: &mut CallContext, to: &str, body: TalkBody) -> Result<CommandOutcome, CommandError> {
        let (to, addr, acknowledges) = self.resolve_user(to)?;
        let awaits_ack = acknowledges && body.kind().wants_ack;
        let user_ids_len = self.user_id_bytes_max() + to.to_string().len();
        body.check_entered(user_ids_len).map_err(CommandError::InvalidArgument)?;
        if awaits_ack && self.pending_dms.len() >= PENDING_DMS_MAX {
            return Err(CommandError::TooManyUnconfirmed(PENDING_DMS_MAX));
        }
        self.reserve_sends(ctx, self.peers.find_by_addr(addr).as_slice())?;
        let stamp = ctx.stamp();
        let message_id = stamp.message_id.clone().unwrap_or_default();
        let talk = Talk { from: self.own_user_id_for(*addr.ip()), to: Some(to.clone()), body, stamp };
        ctx.store(false, Some(addr), &talk);
        self.send(ctx, addr, Message::Talk(talk.clone()));
        if awaits_ack {
            self.pending_dms.add(ctx.now, message_id.clone(), addr, to.clone(), Message::Talk(talk));
        }
        Ok(CommandOutcome::SaidToOne { to, addr: addr.into(), message_id, awaits_ack })
    }

    /// Takes send permits for these peers: they silently drop what exceeds their rate limit per source.
    fn reserve_sends(&mut self, ctx: &CallContext, to: &[PeerId]) -> Result<(), CommandError> {
        let later = |at: Millis| CommandError::RateLimited { retry_after_ms: at.0.saturating_sub(ctx.now.0) };
        self.peers.reserve_sends(ctx.now, to).map_err(later)
    }

    /// Finds the peer with this name or `name@ip`: its USER_ID, its address, and whether it sends ACKs. A name may
    /// contain `@` itself.
    fn resolve_user(&self, user: &str) -> Result<(UserId, SocketAddrV4, bool), CommandError> {
        let mut matches = Vec::new();
        // Names are compared in Unicode normal form: users cannot see how they are encoded.
        let key = nfc(user);
        let is_id = |user_id: &UserId| nfc(&user_id.to_string()) == key;
        for peer in self.peers.iter() {
            let by_id = peer.addresses().iter().find(|address| is_id(&address.user_id));
            let by_name = || (peer.name().key() == key).then(|| peer.current());
            if let Some(address) = by_id.or_else(by_name) {
                matches.push((peer, address));
            }
        }
        if matches.iter().any(|(peer, _)| !peer.is_server()) {
            matches.retain(|(peer, _)| !peer.is_server());
        }
        match &*matches {
            [(peer, address)] if !peer.is_server() => Ok((address.user_id.clone(), address.addr, peer.acknowledges())),
            [] if key == self.name.key() || is_id(&self.user_id()) => {
                Err(CommandError::InvalidArgument(format!("USER: {user:?} is yourself")))
            }
            [] => Err(CommandError::UnknownUser(user.to_owned())),
            [(server, address), ..] if server.is_server() => Err(CommandError::IsServer(address.user_id.clone())),
            several => {
                let mut candidates: Vec<_> = several.iter().map(|(_, address)| address.user_id.clone()).collect();
                candidates.sort();
                Err(CommandError::AmbiguousUser { name: user.to_owned(), candidates })
            }
        }
    }

    /// This is the most that our USER_ID takes on any interface.
    fn user_id_bytes_max(&self) -> usize {
        self.name.as_str().len() + "@255.255.255.255".len()
    }
}

impl CallContext<'_> {
    fn store(&mut self, is_incoming: bool, addr: Option<SocketAddrV4>, talk: &Talk) {
        if talk.body.kind().is_kept {
            let (at, addr) = (self.date, addr.map(SocketAddr::V4));
            self.effects.push(NodeEffect::Store(Box::new(MessageRecord { at, is_incoming, addr, talk: talk.clone() })));
        }
    }
}
