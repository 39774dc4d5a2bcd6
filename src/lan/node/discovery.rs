//! Announcements: one's own, those of others, and who is believed to be whom.

use std::net::SocketAddrV4;

use super::peers::{PEERS_MAX, PeerId};
use super::{Cause, Door, Effect, Kind, Left, Node, Shown, Step};
use crate::lan::wire::{Discovery, UserId};
use crate::model::{Millis, Name};

/// An answer to a broadcast waits at least so long …
const ANSWER_AFTER_MS: u64 = 20;
/// … and up to so much longer, so that not all answer at the same time.
const ANSWER_SPREAD_MS: u64 = 230;
/// So long after we announced ourselves a direct announcement answers that.
const ANSWERED_WITHIN_MS: u64 = 2_000;
/// How long an old PORT has to answer before a new one is believed.
const CHECK_MS: u64 = 1_000;
/// Changes of PORT that are looked into at once.
pub(super) const CHECKS_MAX: usize = 100;
/// Who bears his name for less than this is the newer of two.
const YOUNG_MS: u64 = 2_000;
/// How long a young one that need not yield waits for the other to do so, in case that one is old.
const YIELD_AFTER_MS: u64 = 500;
/// Two that both think that they are the elder have known each other for this many announcements.
const STALEMATE_ANNOUNCES: u32 = 2;
/// Others of our name that are remembered.
pub(super) const RIVALS_MAX: usize = 16;

/// A USER_ID was heard with another PORT.
pub(super) struct Check {
    old: SocketAddrV4,
    new: Heard,
    pub until: Millis,
}

/// Another on this host that bears our name.
pub(super) struct Rival {
    instance: Option<String>,
    /// Where it is spoken to.
    addr: SocketAddrV4,
    met_at: Millis,
}

/// An announcement, and how it came.
struct Heard {
    source: SocketAddrV4,
    /// Where its sender is spoken to.
    addr: SocketAddrV4,
    door: Door,
    said: Discovery,
}

impl Node {
    /// Tells everybody that we are here.
    pub(super) fn announce(&mut self, step: &mut Step) {
        self.announced_at = Some(step.now);
        for (by, ip) in self.addresses.announced_by() {
            let message = self.announcement(step, UserId { name: self.name.clone(), ip }, false);
            self.counters.broadcasts += 1;
            step.effects.push(Effect::Broadcast { by, message });
        }
        let invited: Vec<_> = self.invited.iter().copied().filter(|addr| !self.knows_somebody_at(*addr)).collect();
        for addr in invited {
            self.announce_to(step, addr, false);
        }
        self.next_announce = None;
        if self.settings.kind != Kind::Probe {
            let every_ms = u64::try_from(self.settings.announce_every.as_millis()).unwrap_or(u64::MAX);
            let jitter_ms = step.below(every_ms / 5 + 1);
            self.next_announce = Some(step.now.plus_ms((every_ms - every_ms / 10).saturating_add(jitter_ms).max(1)));
        }
    }

    /// Of an address with a discovery port one never hears: whoever is behind it speaks from its own.
    fn knows_somebody_at(&self, addr: SocketAddrV4) -> bool {
        let shared = addr.port() == self.settings.discovery_port;
        let there = |at: SocketAddrV4| if shared { at.ip() == addr.ip() } else { at == addr };
        self.peers.iter().any(|peer| peer.addresses().iter().any(|address| there(address.addr)))
    }

    /// Tells one that we are here.
    pub(super) fn announce_to(&mut self, step: &mut Step, to: SocketAddrV4, probe: bool) {
        let message = self.announcement(step, self.user_id_towards(*to.ip()), probe);
        self.peers.told(to, step.now);
        self.send(step, to, message);
    }

    /// The answers whose time has come.
    pub(super) fn give_answers(&mut self, step: &mut Step) {
        while let Some(to) = self.answers.next_due(step.now) {
            self.announce_to(step, to, false);
        }
    }

    /// Somebody announced himself.
    pub(super) fn discovered(&mut self, step: &mut Step, source: SocketAddrV4, door: Door, said: Discovery) {
        let mut said = said;
        let mut addr = SocketAddrV4::new(*source.ip(), said.port);
        if self.is_self(addr) {
            return self.drop(step, source, Cause::Taken, || format!("PORT: {addr} is this node itself"));
        }
        if !self.may_send(addr) {
            return self.drop(step, source, Cause::Unanswerable, || format!("PORT: nothing may be sent to {addr}"));
        }
        if said.instance.is_none() {
            (said.user_id, addr) = self.as_known_here(said.user_id, addr);
        }
        let answered = door == Door::Own && self.answers_us(step.now, addr) && self.answers.not_needed(addr);
        let heard = Heard { source, addr, door, said };
        if heard.said.features.probe {
            if let Some(id) = self.peers.with_addr(addr) {
                self.peers.heard(id, addr, step.now);
            }
            return self.answer(step, &heard);
        }
        if heard.said.user_id.name == self.name && self.addresses.is_own(heard.said.user_id.ip) {
            return self.met_rival(step, heard);
        }
        self.not_called_so_any_more(&heard.said);
        match self.peers.addr_of(&heard.said.user_id) {
            Some(old) if old.port() != addr.port() => self.check_port(step, old, heard),
            _ => self.admit(step, &heard, answered),
        }
    }

    /// One of another make on this host speaks by several of its addresses, and perhaps under as many USER_IDs,
    /// without saying that it is one: the addresses of this host are one for where a peer is. (Who says it, by an
    /// INSTANCE, is one by that, wherever he is.)
    fn as_known_here(&self, user_id: UserId, addr: SocketAddrV4) -> (UserId, SocketAddrV4) {
        let without_instance = |user_id: &UserId| {
            let peer = self.peers.with_user(user_id).and_then(|id| self.peers.get(id));
            peer.is_some_and(|peer| peer.instance().is_none())
        };
        let mut ids = self.addresses.equal_to(user_id.ip).map(|ip| UserId { name: user_id.name.clone(), ip });
        if let Some(known) = ids.find(without_instance)
            && let Some(at) = self.peers.addr_of(&known)
        {
            // Where nobody answers any more it may have left for the address that it is heard from now.
            let is_there = self.is_same_place(at, addr) && !self.peers.is_refusing(at);
            return (known, if is_there { at } else { addr });
        }
        // It may go by another name now.
        let place = self.place_of(addr);
        let there = self.peers.with_addr(place).and_then(|id| self.peers.get(id));
        (user_id, if there.is_some_and(|peer| peer.instance().is_none()) { place } else { addr })
    }

    /// Whether who announces himself directly while our answer waits has heard our own announcement: n that
    /// start at once need not all answer each other twice. He does not do so at the same moment as he
    /// announces himself to everybody; who does has a reason of his own (`--peer`), and may not know us.
    fn answers_us(&self, now: Millis, addr: SocketAddrV4) -> bool {
        let said = |at: Option<Millis>| at.is_some_and(|at| now < at.plus_ms(ANSWERED_WITHIN_MS));
        let told_at = self.peers.with_addr(addr).and_then(|id| self.peers.get(id)?.told_at());
        let broadcast_at = self.answers.broadcast_at(addr);
        broadcast_at.is_some_and(|at| now >= at.plus_ms(ANSWER_AFTER_MS)) && (said(self.announced_at) || said(told_at))
    }

    /// Who announces himself is listed, or found in the list, and answered if he does not know us.
    fn admit(&mut self, step: &mut Step, heard: &Heard, answered: bool) {
        let Heard { source, addr, door, said } = heard;
        let user = self.peers.with_user(&said.user_id);
        let old_addr = self.peers.addr_of(&said.user_id);
        let of_instance = said.instance.as_deref().and_then(|instance| self.peers.with_instance(instance));
        let at_addr = self.peers.with_addr(*addr);
        let is_there = |id: PeerId| at_addr == Some(id);
        let id = match (of_instance, user) {
            (Some(id), _) => {
                // One run has one name. A new one is believed only from where it had the old one.
                let same_name = self.peers.get(id).is_some_and(|peer| *peer.name() == said.user_id.name);
                if !same_name && !is_there(id) {
                    return self.drop(step, *source, Cause::Taken, || "INSTANCE: another peer's".to_owned());
                }
                Some(id)
            }
            (None, Some(id)) => Some(id),
            // One without an INSTANCE that goes by another name now.
            (None, None) => at_addr.filter(|id| {
                said.instance.is_none() && self.peers.get(*id).is_some_and(|peer| peer.instance().is_none())
            }),
        };
        let known_so = id.is_some() && user == id && old_addr == Some(*addr);
        let same_run =
            id.and_then(|id| self.peers.get(id)).is_some_and(|peer| peer.instance() == said.instance.as_deref());
        if known_so && same_run {
            if let Some(id) = id {
                self.peers.heard(id, *addr, step.now);
                self.peers.describe(id, said);
                let is_quiet = said.instance.is_none();
                let again = self.peers.get_mut(id).is_some_and(|peer| match door {
                    _ if answered => false,
                    _ if is_quiet => peer.may_answer_quiet(step.now),
                    Door::Own => peer.may_tell_again(step.now),
                    Door::Discovery => false,
                });
                if again {
                    self.answer(step, heard);
                }
            }
            return;
        }
        // Only who speaks from an address takes it from whoever had it.
        if at_addr.is_some() && source.port() != addr.port() {
            return self.drop(step, *source, Cause::Taken, || format!("PORT: another peer is at {addr}"));
        }
        if id.is_none() && self.peers.len() >= PEERS_MAX {
            if !std::mem::replace(&mut self.full_shown, true) {
                step.show(Shown::Full { peers: PEERS_MAX });
            }
            return self.drop(step, *source, Cause::Full, || format!("{PEERS_MAX} peers are known already"));
        }
        // Without an INSTANCE another PORT is all that tells of another run.
        let moved = old_addr.is_some_and(|old| old != *addr);
        let started_again = id.is_some() && of_instance.is_none() && (!same_run || moved);
        let newcomer = id.is_none();
        let id = id.unwrap_or_else(|| self.peers.add(step.now));
        let old_user = self.peers.get(id).and_then(|peer| peer.addresses().first()).map(|at| at.user_id.clone());
        for peer in self.peers.settle(id, &said.user_id, *addr, step.now) {
            if peer.user_id.name != said.user_id.name {
                step.show(Shown::Left { peer, why: Left::Replaced });
            }
        }
        self.peers.describe(id, said);
        let renamed = old_user.filter(|old| old.name != said.user_id.name);
        if started_again || renamed.is_some() {
            self.peers.only_at(id, *addr);
        }
        if let Some(old) = renamed {
            step.show(Shown::PeerRenamed { old, new: said.user_id.clone() });
        }
        if let Some(old) = old_addr.filter(|old| old != addr) {
            step.show(Shown::Moved { user_id: said.user_id.clone(), old: old.into(), new: (*addr).into() });
        }
        if newcomer {
            self.full_shown = false;
            step.effects.extend(self.peers.known(id).map(|known| Effect::Show(Shown::Came(known))));
        }
        if newcomer || started_again || *door == Door::Own && !answered {
            self.answer(step, heard);
        }
    }

    /// To whoever came directly at once; to a broadcast a little later: the other may hear of us before.
    fn answer(&mut self, step: &mut Step, heard: &Heard) {
        if self.settings.kind == Kind::Probe {
            return;
        }
        let broadcast = heard.door == Door::Discovery;
        let wait_ms = if broadcast { ANSWER_AFTER_MS + step.below(ANSWER_SPREAD_MS + 1) } else { 0 };
        let broadcast_at = (broadcast && !heard.said.features.probe).then_some(step.now);
        let has_share = self.answered_to.take(step.now, self.addresses.share_of(heard.source));
        if !has_share || !self.answers.add(step.now.plus_ms(wait_ms), heard.addr, broadcast_at) {
            self.drop(step, heard.source, Cause::Unanswerable, || "too many answers wait already".to_owned());
        }
    }

    /// A USER_ID with another PORT: if the old one still answers, the new one is not believed.
    fn check_port(&mut self, step: &mut Step, old: SocketAddrV4, heard: Heard) {
        if let Some(check) = self.checks.get_mut(&heard.said.user_id) {
            if check.new.addr == heard.addr {
                check.new = heard;
                return;
            }
            return self.drop(step, heard.source, Cause::TooManyChecks, || {
                format!("USER_ID: {} is looked into already", heard.said.user_id)
            });
        }
        if self.checks.len() >= CHECKS_MAX {
            return self.drop(step, heard.source, Cause::TooManyChecks, || {
                format!("{CHECKS_MAX} changes of PORT are looked into already")
            });
        }
        self.announce_to(step, old, true);
        let until = step.now.plus_ms(CHECK_MS);
        self.checks.insert(heard.said.user_id.clone(), Check { old, new: heard, until });
    }

    /// Whoever speaks is there: if somebody else claimed to be him, he is refused. But if the old PORT goes
    /// by another name now, the claim is right (else two that exchanged their names would be asked for ever).
    pub(super) fn answered(&mut self, step: &mut Step, source: SocketAddrV4, speaks: Option<&UserId>, announces: bool) {
        let asked = self.checks.iter().filter(|(_, check)| check.old == source);
        for user_id in asked.map(|(user_id, _)| user_id.clone()).collect::<Vec<_>>() {
            let still_so = speaks.is_none_or(|speaks| speaks.name == user_id.name);
            if !still_so && !announces {
                continue;
            }
            let Some(check) = self.checks.remove(&user_id) else { continue };
            if !still_so {
                self.admit(step, &check.new, false);
                continue;
            }
            let (old, new) = (check.old, check.new.addr);
            // What it says answers us: it need not be answered.
            self.peers.told(old, step.now);
            self.drop(step, check.new.source, Cause::PortRefused, || format!("USER_ID: {user_id} is at {old}"));
            step.show(Shown::MoveRefused { user_id, old: old.into(), new: new.into() });
        }
    }

    pub(super) fn conclude_checks(&mut self, step: &mut Step) {
        let now = step.now;
        while let Some(user_id) = self.checks.iter().find(|(_, check)| check.until <= now).map(|(id, _)| id.clone()) {
            let Some(check) = self.checks.remove(&user_id) else { return };
            self.admit(step, &check.new, false);
        }
    }

    /// Who goes by another name claims the former no more, be it ours or another's.
    fn not_called_so_any_more(&mut self, said: &Discovery) {
        let Some(instance) = said.instance.as_deref() else { return };
        if !self.checks.is_empty() {
            self.checks.retain(|user_id, check| {
                check.new.said.instance.as_deref() != Some(instance) || user_id.name == said.user_id.name
            });
        }
        if !self.rivals.is_empty() {
            self.rivals.retain(|rival| rival.instance.as_deref() != Some(instance));
            if self.rivals.is_empty() {
                self.rename_at = None;
            }
        }
    }

    /// Another on this host bears our name. The newer of the two takes another; who is the newer each
    /// can only tell of himself, so that of two young ones the smaller INSTANCE decides, as it does when
    /// both think for long that they are the elder.
    fn met_rival(&mut self, step: &mut Step, heard: Heard) {
        let known = self.rivals.iter().find(|rival| rival.instance == heard.said.instance).map(|rival| rival.met_at);
        if known.is_none() {
            if self.rivals.len() >= RIVALS_MAX {
                self.rivals.remove(0);
            }
            self.rivals.push(Rival { instance: heard.said.instance.clone(), addr: heard.addr, met_at: step.now });
        }
        // It must know of us, whoever of us is to yield. To its answer none follows.
        if known.is_none() || heard.door == Door::Discovery {
            self.answers.add(step.now, heard.addr, None);
        }
        let yields = heard.said.instance.as_deref().is_none_or(|theirs| *self.settings.instance < *theirs);
        let stalemate = self.settings.announce_every * STALEMATE_ANNOUNCES;
        if self.named_at.plus_ms(YOUNG_MS) > step.now {
            if yields {
                self.rename(step);
            } else {
                self.rename_at.get_or_insert(step.now.plus_ms(YIELD_AFTER_MS));
            }
        } else if yields && known.is_some_and(|met_at| met_at.plus(stalemate) <= step.now) {
            self.rename(step);
        }
    }

    /// Takes the next free name.
    pub(super) fn rename(&mut self, step: &mut Step) {
        (self.rename_at, self.named_at) = (None, step.now);
        let rivals = std::mem::take(&mut self.rivals);
        let on_this_host = |name: &Name| {
            let mut addresses = self.peers.iter().flat_map(|peer| peer.addresses());
            addresses.any(|at| at.user_id.name == *name && self.addresses.is_own(at.user_id.ip))
        };
        // There are at most so many others: one of these is free.
        let numbers = 2..=PEERS_MAX * 8 + 3;
        let mut names = numbers.map(|number| self.settings.name.numbered(number));
        let Some(free) = names.find(|name| *name != self.name && !on_this_host(name)) else { return };
        let old = std::mem::replace(&mut self.name, free.clone());
        step.show(Shown::Renamed { old, new: free });
        self.announce(step);
        // Whoever bears the name can be known from now on, but was not listed before: asked, he answers,
        // whatever he has heard of us already.
        for rival in rivals {
            self.announce_to(step, rival.addr, true);
        }
    }
}
