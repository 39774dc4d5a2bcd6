//! POST, DM, PROFILE and ACK: one's own and those of others.

use std::borrow::Cow;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use super::peers::PeerId;
use super::pending::PENDING_MAX;
use super::{Cause, CommandError, Done, Effect, Entry, Kind, Node, Shown, Step};
use crate::lan::wire::{AVATAR_MAX, Avatar, DATAGRAM_MAX, Dm, Message, Post, Profile, Stamp, UserId};
use crate::model::Millis;
use crate::model::text::{check, check_length, nfc};

/// Most characters of a STATUS.
const STATUS_MAX: usize = 256;
/// Most characters of a DISPLAY_NAME.
const DISPLAY_NAME_MAX: usize = 64;
/// Bytes of a line beside key and value: the colon and its end.
const LINE_EXTRA: usize = 2;
/// TYPE, TIMESTAMP, MESSAGE_ID and the empty line, at their longest.
const FRAME_MAX: usize = 64 + 20 + LINE_EXTRA;

impl Node {
    /// Somebody says something.
    pub(super) fn talked(&mut self, step: &mut Step, source: SocketAddrV4, message: Message) {
        if self.settings.kind != Kind::Person {
            return self.drop(step, source, Cause::NotAPerson, || "this is no person's peer".to_owned());
        }
        if let Message::Dm(Dm { to, .. }) = &message
            && !(to.name == self.name && self.addresses.is_own(to.ip))
        {
            return self.drop(step, source, Cause::NotForUs, || format!("TO: {to}"));
        }
        let Some((sender, Stamp { message_id, .. })) = said_by(&message) else { return };
        let new = message_id.as_deref().is_none_or(|id| {
            let (ip, sender) = self.as_one_sender(*source.ip(), sender);
            self.seen.take(step.now, ip, &sender, id)
        });
        if new {
            let entry = Entry { at: step.date, incoming: true, addr: Some(source.into()), message: message.clone() };
            step.effects.push(Effect::Keep(Box::new(entry)));
        }
        let ack = match &message {
            Message::Dm(dm) => dm.stamp.message_id.clone().zip(self.acknowledges(source, &dm.from)),
            _ => None,
        };
        if new {
            step.effects.extend(shown(source.into(), message).map(Effect::Show));
        } else {
            self.drop(step, source, Cause::Repeated, || "MESSAGE_ID: taken already".to_owned());
        }
        if let Some((message_id, to)) = ack {
            self.send(step, to, Message::Ack { message_id });
        }
    }

    /// Where the sender of a DM wants to be told that it arrived, if he does.
    fn acknowledges(&self, source: SocketAddrV4, sender: &UserId) -> Option<SocketAddrV4> {
        let at = |addr: SocketAddrV4| self.peers.with_addr(addr).and_then(|id| self.peers.get(id));
        let announced = self.peers.addr_of(sender).filter(|addr| at(*addr).is_some_and(|peer| peer.acknowledges()));
        let here = || at(self.place_of(source)).is_some_and(|peer| peer.acknowledges()) || self.acked.contains(source);
        announced.or_else(|| here().then_some(source)).filter(|to| self.may_send(*to))
    }

    /// A DM has arrived.
    pub(super) fn acknowledged(&mut self, step: &mut Step, source: SocketAddrV4, message_id: &str) {
        match self.peers.with_addr(source) {
            Some(id) => self.peers.acked(id),
            None => self.acked.add(source),
        }
        let Some(pending) = self.waiting.acknowledged(source, message_id) else {
            return self.drop(step, source, Cause::StrayAck, || {
                format!("MESSAGE_ID: {message_id:?} waits for nothing from there")
            });
        };
        let message_id = message_id.to_owned();
        step.effects.push(Effect::KeepFate { message_id: message_id.clone(), confirmed: true });
        step.show(Shown::DmConfirmed { to: pending.user_id, message_id });
    }

    /// What could not be kept counts as never seen; one's own as never sent.
    pub(super) fn not_kept(&mut self, entry: &Entry) {
        let Some((sender, Stamp { message_id: Some(message_id), .. })) = said_by(&entry.message) else { return };
        match entry.addr {
            Some(SocketAddr::V4(source)) if entry.incoming => {
                let (ip, sender) = self.as_one_sender(*source.ip(), sender);
                self.seen.forget(ip, &sender, message_id);
            }
            _ => drop(self.waiting.forget(message_id)),
        }
    }

    /// A message that was kept before this start, oldest first: its repeats are not shown again.
    pub fn remember(&mut self, entry: &Entry) {
        if let Some((sender, Stamp { message_id: Some(message_id), .. })) = said_by(&entry.message)
            && let Some(SocketAddr::V4(source)) = entry.addr
            && entry.incoming
        {
            let (ip, sender) = self.as_one_sender(*source.ip(), sender);
            self.seen.take(entry.at, ip, &sender, message_id);
        }
    }

    /// By whom a message is known that came from there: the addresses of this host are one for what was shown.
    fn as_one_sender<'a>(&self, source: Ipv4Addr, sender: &'a UserId) -> (Ipv4Addr, Cow<'a, UserId>) {
        let ip = self.addresses.one_for_all(sender.ip);
        let sender = match ip == sender.ip {
            true => Cow::Borrowed(sender),
            false => Cow::Owned(UserId { name: sender.name.clone(), ip }),
        };
        (self.addresses.one_for_all(source), sender)
    }

    pub(super) fn post(&mut self, step: &mut Step, content: String) -> Result<Done, CommandError> {
        check_content(&content, self.longest_user_id())?;
        if !self.peers.iter().any(|peer| !peer.is_server()) {
            return Err(CommandError::Alone);
        }
        self.take_turn(step, &self.peers.ids())?;
        let stamp = step.stamp();
        let message = |user_id| Message::Post(Post { user_id, content: content.clone(), stamp: stamp.clone() });
        let to = self.send_all(step, message);
        Ok(Done::Posted { to, message_id: stamp.message_id.unwrap_or_default() })
    }

    pub(super) fn profile(
        &mut self,
        step: &mut Step,
        display_name: String,
        status: String,
        avatar: Option<Avatar>,
    ) -> Result<Done, CommandError> {
        let bad = |key: &str, problem: String| CommandError::Bad(format!("{key}: {problem}"));
        check(&display_name, 1, DISPLAY_NAME_MAX).map_err(|problem| bad("NAME", problem))?;
        check_length(&status, 0, STATUS_MAX).map_err(|problem| bad("STATUS", problem))?;
        if let Some(Avatar { bytes, .. }) = &avatar
            && bytes.len() > AVATAR_MAX
        {
            return Err(bad("AVATAR-FILE", format!("expected at most {AVATAR_MAX} bytes, not {}", bytes.len())));
        }
        self.take_turn(step, &self.peers.ids())?;
        let stamp = step.stamp();
        let to = self.send_all(step, |user_id| {
            let (display_name, status, avatar) = (display_name.clone(), status.clone(), avatar.clone());
            Message::Profile(Profile { user_id, display_name, status, avatar, stamp: stamp.clone() })
        });
        Ok(Done::ProfileSent { to, message_id: stamp.message_id.unwrap_or_default() })
    }

    /// Whoever gets more at once than he takes from one source drops the rest, and nobody tells us.
    fn take_turn(&mut self, step: &Step, to: &[PeerId]) -> Result<(), CommandError> {
        let later = |at: Millis| CommandError::TooFast { again_in_ms: at.0.saturating_sub(step.now.0) };
        self.peers.take_turn(step.now, to).map_err(later)
    }

    /// Keeps a message of one's own and sends it to every known peer. Returns how many of them are people.
    fn send_all(&mut self, step: &mut Step, message: impl Fn(UserId) -> Message) -> usize {
        let entry = Entry { at: step.date, incoming: false, addr: None, message: message(self.user_id()) };
        step.effects.push(Effect::Keep(Box::new(entry)));
        let to: Vec<SocketAddrV4> = self.peers.iter().map(|peer| peer.current().addr).collect();
        for addr in to {
            let message = message(self.user_id_towards(*addr.ip()));
            self.send(step, addr, message);
        }
        self.peers.iter().filter(|peer| !peer.is_server()).count()
    }

    pub(super) fn dm(&mut self, step: &mut Step, to: &str, content: String) -> Result<Done, CommandError> {
        let (to, addr, awaits_ack) = self.named(to)?;
        let from = self.user_id_towards(*addr.ip());
        check_content(&content, self.longest_user_id() + to.to_string().len())?;
        if awaits_ack && self.waiting.len() >= PENDING_MAX {
            return Err(CommandError::Busy(PENDING_MAX));
        }
        self.take_turn(step, self.peers.with_addr(addr).as_slice())?;
        let stamp = step.stamp();
        let message_id = stamp.message_id.clone().unwrap_or_default();
        let message = Message::Dm(Dm { from, to: to.clone(), content, stamp });
        let entry = Entry { at: step.date, incoming: false, addr: Some(addr.into()), message: message.clone() };
        step.effects.push(Effect::Keep(Box::new(entry)));
        self.send(step, addr, message.clone());
        if awaits_ack {
            self.waiting.add(step.now, message_id.clone(), addr, to.clone(), message);
        }
        Ok(Done::DmSent { to, addr: addr.into(), message_id, awaits_ack })
    }

    /// Who is meant by a name, or by `name@ip`, and where; a name may hold an `@` itself.
    fn named(&self, wanted: &str) -> Result<(UserId, SocketAddrV4, bool), CommandError> {
        let mut meant = Vec::new();
        // However it is spelled: nobody sees what he types.
        let key = nfc(wanted);
        let is_id = |user_id: &UserId| nfc(&user_id.to_string()) == key;
        for peer in self.peers.iter() {
            let by_id = peer.addresses().iter().find(|address| is_id(&address.user_id));
            let by_name = || (peer.name().key() == key).then(|| peer.current());
            if let Some(address) = by_id.or_else(by_name) {
                meant.push((peer, address));
            }
        }
        if meant.iter().any(|(peer, _)| !peer.is_server()) {
            meant.retain(|(peer, _)| !peer.is_server());
        }
        match &*meant {
            [(peer, address)] if !peer.is_server() => Ok((address.user_id.clone(), address.addr, peer.acknowledges())),
            [] if key == self.name.key() || is_id(&self.user_id()) => {
                Err(CommandError::Bad(format!("USER: {wanted:?} is yourself")))
            }
            [] => Err(CommandError::Nobody(wanted.to_owned())),
            [(server, address), ..] if server.is_server() => Err(CommandError::IsServer(address.user_id.clone())),
            several => {
                let mut candidates: Vec<_> = several.iter().map(|(_, address)| address.user_id.clone()).collect();
                candidates.sort();
                Err(CommandError::Several { name: wanted.to_owned(), candidates })
            }
        }
    }

    /// As bytes, whichever interface it leaves by.
    fn longest_user_id(&self) -> usize {
        self.name.as_str().len() + "@255.255.255.255".len()
    }
}

/// Who said it, and how it is known. Of what people say to people.
fn said_by(message: &Message) -> Option<(&UserId, &Stamp)> {
    match message {
        Message::Post(post) => Some((&post.user_id, &post.stamp)),
        Message::Dm(dm) => Some((&dm.from, &dm.stamp)),
        Message::Profile(profile) => Some((&profile.user_id, &profile.stamp)),
        _ => None,
    }
}

fn shown(from: SocketAddr, message: Message) -> Option<Shown> {
    match message {
        Message::Post(post) => Some(Shown::Post { from, post }),
        Message::Dm(Dm { from: sender, content, stamp: Stamp { timestamp, message_id }, .. }) => {
            Some(Shown::Dm { from, sender, content, message_id, timestamp })
        }
        Message::Profile(profile) => Some(Shown::Profile { from, profile }),
        _ => None,
    }
}

/// A text must fit into a datagram, with whom it is from and to. A line break travels as U+2028.
fn check_content(content: &str, users: usize) -> Result<(), CommandError> {
    let single = content.replace("\r\n", "\n");
    let breaks = single.matches(['\n', '\r']).count();
    let written = single.len() + breaks * ('\u{2028}'.len_utf8() - 1);
    let keys = "USER_ID".len() + "TO".len() + "CONTENT".len() + 3 * LINE_EXTRA;
    let most = DATAGRAM_MAX - FRAME_MAX - keys - users;
    if single.is_empty() {
        return Err(CommandError::Bad("TEXT: expected at least one character".to_owned()));
    }
    if written > most {
        return Err(CommandError::Bad(format!("TEXT: expected at most {most} bytes, not {written}")));
    }
    Ok(())
}
