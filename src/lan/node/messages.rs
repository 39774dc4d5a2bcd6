//! Sending and receiving of POST, DM, PROFILE and ACK.

use std::borrow::Cow;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use super::peer_table::PeerId;
use super::pending_dms::PENDING_DMS_MAX;
use super::{
    CallContext, CommandError, CommandOutcome, DropCause, MessageRecord, Node, NodeEffect, NodeKind, Notification,
};
use crate::lan::wire::{
    AVATAR_MAX, Avatar, DATAGRAM_MAX, DISPLAY_NAME_MAX, Dm, Message, MessageStamp, Post, Profile, STATUS_MAX, UserId,
};
use crate::model::Millis;
use crate::model::text::{check, check_length, nfc};

/// Bytes of a line besides key and value: the colon and the line feed.
const LINE_EXTRA: usize = 2;
/// The largest size of the lines TYPE, TIMESTAMP and MESSAGE_ID and of the empty line.
const FRAME_MAX: usize = 64 + 20 + LINE_EXTRA;

impl Node {
    /// Handles a received POST, DM or PROFILE.
    pub(super) fn handle_message(&mut self, ctx: &mut CallContext, source: SocketAddrV4, message: Message) {
        if self.config.kind != NodeKind::Person {
            return self.drop_datagram(ctx, source, DropCause::NotAPerson, || "this is no person's peer".to_owned());
        }
        if let Message::Dm(Dm { to, .. }) = &message
            && !(to.name == self.name && self.addresses.is_own(to.ip))
        {
            return self.drop_datagram(ctx, source, DropCause::NotForUs, || format!("TO: {to}"));
        }
        let Some((sender, MessageStamp { message_id, .. })) = sender_and_stamp(&message) else { return };
        let is_new = message_id.as_deref().is_none_or(|id| {
            let (ip, sender) = self.dedup_sender(*source.ip(), sender);
            self.seen.insert(ctx.now, ip, &sender, id)
        });
        if is_new {
            let entry =
                MessageRecord { at: ctx.date, is_incoming: true, addr: Some(source.into()), message: message.clone() };
            ctx.effects.push(NodeEffect::Store(Box::new(entry)));
        }
        let ack = match &message {
            Message::Dm(dm) => dm.stamp.message_id.clone().zip(self.ack_target(source, &dm.from)),
            _ => None,
        };
        if is_new {
            ctx.effects.extend(notification_for(source.into(), message).map(NodeEffect::Notify));
        } else {
            self.drop_datagram(ctx, source, DropCause::Repeated, || "MESSAGE_ID: taken already".to_owned());
        }
        if let Some((message_id, to)) = ack {
            self.send(ctx, to, Message::Ack { message_id });
        }
    }

    /// Where to send the ACK of a DM; `None` if its sender does not understand ACKs.
    fn ack_target(&self, source: SocketAddrV4, sender: &UserId) -> Option<SocketAddrV4> {
        let at = |addr: SocketAddrV4| self.peers.find_by_addr(addr).and_then(|id| self.peers.get(id));
        let by_sender = self.peers.addr_of(sender).filter(|addr| at(*addr).is_some_and(|peer| peer.acknowledges()));
        let by_source = || {
            at(self.known_addr_of(source)).is_some_and(|peer| peer.acknowledges())
                || self.acknowledging_strangers.contains(source)
        };
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
    pub(super) fn handle_store_failed(&mut self, entry: &MessageRecord) {
        let Some((sender, MessageStamp { message_id: Some(message_id), .. })) = sender_and_stamp(&entry.message) else {
            return;
        };
        match entry.addr {
            Some(SocketAddr::V4(source)) if entry.is_incoming => {
                let (ip, sender) = self.dedup_sender(*source.ip(), sender);
                self.seen.remove(ip, &sender, message_id);
            }
            _ => drop(self.pending_dms.remove(message_id)),
        }
    }

    /// Registers a message that was stored before this start, so that its repeats are dropped. Oldest messages come
    /// first.
    pub fn remember_received(&mut self, entry: &MessageRecord) {
        if let Some((sender, MessageStamp { message_id: Some(message_id), .. })) = sender_and_stamp(&entry.message)
            && let Some(SocketAddr::V4(source)) = entry.addr
            && entry.is_incoming
        {
            let (ip, sender) = self.dedup_sender(*source.ip(), sender);
            self.seen.insert(entry.at, ip, &sender, message_id);
        }
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

    pub(super) fn send_post(&mut self, ctx: &mut CallContext, content: String) -> Result<CommandOutcome, CommandError> {
        check_content(&content, self.user_id_bytes_max())?;
        if !self.peers.iter().any(|peer| !peer.is_server()) {
            return Err(CommandError::NoPeers);
        }
        self.reserve_sends(ctx, &self.peers.ids())?;
        let stamp = ctx.stamp();
        let message = |user_id| Message::Post(Post { user_id, content: content.clone(), stamp: stamp.clone() });
        let to = self.send_to_all(ctx, message);
        Ok(CommandOutcome::Posted { to, message_id: stamp.message_id.unwrap_or_default() })
    }

    pub(super) fn send_profile(
        &mut self,
        ctx: &mut CallContext,
        display_name: String,
        status: String,
        avatar: Option<Avatar>,
    ) -> Result<CommandOutcome, CommandError> {
        let bad = |key: &str, problem: String| CommandError::InvalidArgument(format!("{key}: {problem}"));
        check(&display_name, 1, DISPLAY_NAME_MAX).map_err(|problem| bad("NAME", problem))?;
        check_length(&status, 0, STATUS_MAX).map_err(|problem| bad("STATUS", problem))?;
        if let Some(Avatar { bytes, .. }) = &avatar
            && bytes.len() > AVATAR_MAX
        {
            return Err(bad("AVATAR-FILE", format!("expected at most {AVATAR_MAX} bytes, not {}", bytes.len())));
        }
        self.reserve_sends(ctx, &self.peers.ids())?;
        let stamp = ctx.stamp();
        let to = self.send_to_all(ctx, |user_id| {
            let (display_name, status, avatar) = (display_name.clone(), status.clone(), avatar.clone());
            Message::Profile(Profile { user_id, display_name, status, avatar, stamp: stamp.clone() })
        });
        Ok(CommandOutcome::ProfileSent { to, message_id: stamp.message_id.unwrap_or_default() })
    }

    /// Takes send permits for these peers: they silently drop what exceeds their rate limit per source.
    fn reserve_sends(&mut self, ctx: &CallContext, to: &[PeerId]) -> Result<(), CommandError> {
        let later = |at: Millis| CommandError::RateLimited { retry_after_ms: at.0.saturating_sub(ctx.now.0) };
        self.peers.reserve_sends(ctx.now, to).map_err(later)
    }

    /// Stores a message and sends it to every known peer. Returns how many of them are not servers.
    fn send_to_all(&mut self, ctx: &mut CallContext, message: impl Fn(UserId) -> Message) -> usize {
        let entry = MessageRecord { at: ctx.date, is_incoming: false, addr: None, message: message(self.user_id()) };
        ctx.effects.push(NodeEffect::Store(Box::new(entry)));
        let to: Vec<SocketAddrV4> = self.peers.iter().map(|peer| peer.current().addr).collect();
        for addr in to {
            let message = message(self.own_user_id_for(*addr.ip()));
            self.send(ctx, addr, message);
        }
        self.peers.iter().filter(|peer| !peer.is_server()).count()
    }

    pub(super) fn send_dm(
        &mut self,
        ctx: &mut CallContext,
        to: &str,
        content: String,
    ) -> Result<CommandOutcome, CommandError> {
        let (to, addr, awaits_ack) = self.resolve_user(to)?;
        let from = self.own_user_id_for(*addr.ip());
        check_content(&content, self.user_id_bytes_max() + to.to_string().len())?;
        if awaits_ack && self.pending_dms.len() >= PENDING_DMS_MAX {
            return Err(CommandError::TooManyUnconfirmed(PENDING_DMS_MAX));
        }
        self.reserve_sends(ctx, self.peers.find_by_addr(addr).as_slice())?;
        let stamp = ctx.stamp();
        let message_id = stamp.message_id.clone().unwrap_or_default();
        let message = Message::Dm(Dm { from, to: to.clone(), content, stamp });
        let entry =
            MessageRecord { at: ctx.date, is_incoming: false, addr: Some(addr.into()), message: message.clone() };
        ctx.effects.push(NodeEffect::Store(Box::new(entry)));
        self.send(ctx, addr, message.clone());
        if awaits_ack {
            self.pending_dms.add(ctx.now, message_id.clone(), addr, to.clone(), message);
        }
        Ok(CommandOutcome::DmSent { to, addr: addr.into(), message_id, awaits_ack })
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

    /// The largest size in bytes of our USER_ID on any interface.
    fn user_id_bytes_max(&self) -> usize {
        self.name.as_str().len() + "@255.255.255.255".len()
    }
}

/// The sender and stamp of a message; none of an ACK.
fn sender_and_stamp(message: &Message) -> Option<(&UserId, &MessageStamp)> {
    message.sender().zip(message.stamp())
}

fn notification_for(from: SocketAddr, message: Message) -> Option<Notification> {
    match message {
        Message::Post(post) => Some(Notification::Post { from, post }),
        Message::Dm(Dm { from: sender, content, stamp: MessageStamp { timestamp, message_id }, .. }) => {
            Some(Notification::Dm { from, sender, content, message_id, timestamp })
        }
        Message::Profile(profile) => Some(Notification::Profile { from, profile }),
        _ => None,
    }
}

/// Checks that a text fits into a datagram together with `users` bytes of USER_IDs. Line breaks are sent as U+2028.
fn check_content(content: &str, users: usize) -> Result<(), CommandError> {
    let single = content.replace("\r\n", "\n");
    let breaks = single.matches(['\n', '\r']).count();
    let written = single.len() + breaks * ('\u{2028}'.len_utf8() - 1);
    let keys = "USER_ID".len() + "TO".len() + "CONTENT".len() + 3 * LINE_EXTRA;
    let most = DATAGRAM_MAX - FRAME_MAX - keys - users;
    if single.is_empty() {
        return Err(CommandError::InvalidArgument("TEXT: expected at least one character".to_owned()));
    }
    if written > most {
        return Err(CommandError::InvalidArgument(format!("TEXT: expected at most {most} bytes, not {written}")));
    }
    Ok(())
}
