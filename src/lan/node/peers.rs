//! Who is known, by INSTANCE, USER_ID and address.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddrV4;

use super::Known;
use super::rates::{Rate, Tokens};
use crate::lan::wire::{Discovery, Features, UserId};
use crate::model::{Millis, Name};

/// Most that are known.
pub(super) const PEERS_MAX: usize = 10_000;
/// Most addresses of one.
pub(super) const ADDRESSES_MAX: usize = 8;
/// Refused sends in a row after which an address is dropped.
const REFUSED_MAX: u8 = 3;
/// A known peer that announces itself to us is answered again after this pause …
const PAUSE_MIN_MS: u64 = 200;
/// … which doubles each time up to this one: else two with a longer way between them would answer each
/// other for ever.
const PAUSE_MAX_MS: u64 = 10_000;
/// After such a silence it begins anew.
const PAUSE_OVER_MS: u64 = 2 * PAUSE_MAX_MS;

/// A known peer without INSTANCE that announces itself is answered at most this often.
const QUIET_PAUSE_MS: u64 = 30_000;

/// What a person says to one peer: below what such a peer takes from one source, with room for what else we send.
const TURNS: Rate = Rate { burst: 100, per_s: 80 };

pub(super) type PeerId = u64;

/// Where and as whom a peer is heard.
#[derive(Debug, Clone)]
pub(super) struct Address {
    pub user_id: UserId,
    pub addr: SocketAddrV4,
    heard_at: Millis,
    refused: u8,
}

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Served {
    serves: Vec<(String, u16)>,
    cert_sha256: Option<String>,
}

/// A known peer.
#[derive(Debug)]
pub(super) struct Peer {
    instance: Option<Box<str>>,
    /// The latest heard first; never empty while it is in the table.
    addresses: Vec<Address>,
    features: Features,
    served: Option<Box<Served>>,
    /// It has sent an ACK.
    acked: bool,
    since: Millis,
    /// When we last announced ourselves to it alone.
    told_at: Option<Millis>,
    pause_ms: u64,
    turns: Tokens,
    /// When it stands in the table's `by_expiry`.
    expires: Millis,
}

impl Peer {
    /// Where it is spoken to.
    pub fn current(&self) -> &Address {
        &self.addresses[0]
    }

    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    pub fn name(&self) -> &Name {
        &self.current().user_id.name
    }

    pub fn instance(&self) -> Option<&str> {
        self.instance.as_deref()
    }

    pub fn is_server(&self) -> bool {
        self.served.as_ref().is_some_and(|served| !served.serves.is_empty())
    }

    /// When we last announced ourselves to it alone.
    pub fn told_at(&self) -> Option<Millis> {
        self.told_at
    }

    /// Whether one of another make may be answered: he may hear no broadcast, and know us by our answers alone.
    /// Not more often, or two that answer each answer would do so for ever.
    pub fn may_answer_quiet(&self, now: Millis) -> bool {
        self.told_at.is_none_or(|told_at| told_at.plus_ms(QUIET_PAUSE_MS) <= now)
    }

    /// Whether it acknowledges DMs.
    pub fn acknowledges(&self) -> bool {
        self.features.ack || self.acked
    }

    /// Whether it may be told again that we are here; then it counts as told.
    pub fn may_tell_again(&mut self, now: Millis) -> bool {
        let quiet_ms = self.told_at.map_or(PAUSE_OVER_MS, |told_at| now.0.saturating_sub(told_at.0));
        if quiet_ms >= PAUSE_OVER_MS {
            self.pause_ms = PAUSE_MIN_MS;
        } else if quiet_ms >= self.pause_ms {
            self.pause_ms = (self.pause_ms * 2).min(PAUSE_MAX_MS);
        } else {
            return false;
        }
        self.told_at = Some(now);
        true
    }

    /// As a person sees it.
    pub fn known(&self) -> Known {
        let served = self.served.as_deref();
        Known {
            user_id: self.current().user_id.clone(),
            addr: self.current().addr.into(),
            addresses: self.addresses.iter().map(|at| (at.user_id.clone(), at.addr.into())).collect(),
            instance: self.instance.as_deref().map(str::to_owned),
            features: self.features,
            serves: served.map(|served| served.serves.clone()).unwrap_or_default(),
            cert_sha256: served.and_then(|served| served.cert_sha256.clone()),
            since: self.since,
            heard_at: self.current().heard_at,
        }
    }
}

/// Who is known.
#[derive(Debug)]
pub(super) struct Peers {
    forget_after_ms: u64,
    next: PeerId,
    by_id: BTreeMap<PeerId, Peer>,
    by_instance: HashMap<Box<str>, PeerId>,
    by_user: HashMap<UserId, PeerId>,
    by_addr: HashMap<SocketAddrV4, PeerId>,
    /// Not later than when one of its addresses is to be forgotten; looked at again then.
    by_expiry: BTreeSet<(Millis, PeerId)>,
}

impl Peers {
    pub fn new(forget_after_ms: u64) -> Peers {
        Peers {
            forget_after_ms,
            next: 0,
            by_id: BTreeMap::new(),
            by_instance: HashMap::new(),
            by_user: HashMap::new(),
            by_addr: HashMap::new(),
            by_expiry: BTreeSet::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// How many addresses there are in all.
    pub fn addresses(&self) -> usize {
        debug_assert_eq!(self.by_user.len(), self.by_addr.len());
        debug_assert_eq!(self.by_expiry.len(), self.by_id.len());
        self.by_addr.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.by_id.values()
    }

    pub fn ids(&self) -> Vec<PeerId> {
        self.by_id.keys().copied().collect()
    }

    /// Another message may go to each of these, and counts as gone; or, if that is too early for one of them,
    /// to none: then when it may.
    pub fn take_turn(&mut self, now: Millis, ids: &[PeerId]) -> Result<(), Millis> {
        let ready = |id| self.by_id.get(id).map(|peer: &Peer| peer.turns.ready_at());
        if let Some(at) = ids.iter().filter_map(ready).max().filter(|at| *at > now) {
            return Err(at);
        }
        for id in ids {
            self.charge(*id, now);
        }
        Ok(())
    }

    /// A message goes to this one, whether or not it is its turn.
    pub fn charge(&mut self, id: PeerId, now: Millis) {
        if let Some(peer) = self.by_id.get_mut(&id) {
            peer.turns.take(now);
        }
    }

    pub fn get(&self, id: PeerId) -> Option<&Peer> {
        self.by_id.get(&id)
    }

    pub fn get_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.by_id.get_mut(&id)
    }

    pub fn with_instance(&self, instance: &str) -> Option<PeerId> {
        self.by_instance.get(instance).copied()
    }

    pub fn with_user(&self, user_id: &UserId) -> Option<PeerId> {
        self.by_user.get(user_id).copied()
    }

    pub fn with_addr(&self, addr: SocketAddrV4) -> Option<PeerId> {
        self.by_addr.get(&addr).copied()
    }

    /// Where this USER_ID is.
    pub fn addr_of(&self, user_id: &UserId) -> Option<SocketAddrV4> {
        let peer = self.get(self.with_user(user_id)?)?;
        peer.addresses.iter().find(|address| address.user_id == *user_id).map(|address| address.addr)
    }

    /// Whether sends to there are refused just now.
    pub fn is_refusing(&self, addr: SocketAddrV4) -> bool {
        let peer = self.with_addr(addr).and_then(|id| self.get(id));
        peer.is_some_and(|peer| peer.addresses.iter().any(|at| at.addr == addr && at.refused > 0))
    }

    /// As others see it.
    pub fn known(&self, id: PeerId) -> Option<Known> {
        self.get(id).map(Peer::known)
    }

    /// A peer that has no address yet: [`Peers::settle`] gives it one.
    pub fn add(&mut self, now: Millis) -> PeerId {
        let id = self.next;
        self.next += 1;
        let expires = now.plus_ms(self.forget_after_ms);
        self.by_expiry.insert((expires, id));
        let peer = Peer {
            instance: None,
            addresses: Vec::new(),
            features: Features::default(),
            served: None,
            acked: false,
            since: now,
            told_at: None,
            pause_ms: PAUSE_MIN_MS,
            turns: Tokens::full(TURNS),
            expires,
        };
        self.by_id.insert(id, peer);
        id
    }

    /// What it says of itself. Another INSTANCE is another run: what was known of the former is over.
    pub fn describe(&mut self, id: PeerId, said: &Discovery) {
        let Some(peer) = self.by_id.get_mut(&id) else { return };
        peer.features = said.features;
        let served = peer.served.as_deref().map(|served| (&served.serves, &served.cert_sha256));
        if served != Some((&said.serves, &said.cert_sha256)) {
            let says = !said.serves.is_empty() || said.cert_sha256.is_some();
            let served = || Served { serves: said.serves.clone(), cert_sha256: said.cert_sha256.clone() };
            peer.served = says.then(|| Box::new(served()));
        }
        if peer.instance.as_deref() == said.instance.as_deref() {
            return;
        }
        if let Some(former) = peer.instance.take() {
            self.by_instance.remove(&former);
        }
        (peer.acked, peer.told_at) = (false, None);
        if let Some(instance) = said.instance.as_deref() {
            peer.instance = Some(instance.into());
            self.by_instance.insert(instance.into(), id);
        }
    }

    /// It is heard there, as this. Whoever was there before, or was called so, is so no more: returns
    /// those who had no other address.
    pub fn settle(&mut self, id: PeerId, user_id: &UserId, addr: SocketAddrV4, now: Millis) -> Vec<Known> {
        let mut gone = Vec::new();
        let claims = [self.with_user(user_id), self.with_addr(addr)];
        for holder in claims.into_iter().flatten() {
            let Some(peer) = self.by_id.get(&holder) else { continue };
            let before = (holder != id).then(|| peer.known());
            self.detach(holder, |address| address.user_id == *user_id || address.addr == addr);
            if holder != id && self.by_id.get(&holder).is_some_and(|peer| peer.addresses.is_empty()) {
                self.remove(holder);
                gone.extend(before);
            }
        }
        let Some(peer) = self.by_id.get_mut(&id) else { return gone };
        let address = Address { user_id: user_id.clone(), addr, heard_at: now, refused: 0 };
        peer.addresses.insert(0, address);
        let last = peer.addresses.get(ADDRESSES_MAX).map(|address| address.addr);
        self.by_user.insert(user_id.clone(), id);
        self.by_addr.insert(addr, id);
        if let Some(last) = last {
            self.detach(id, |address| address.addr == last);
        }
        gone
    }

    /// It is nowhere else than there.
    pub fn only_at(&mut self, id: PeerId, addr: SocketAddrV4) {
        self.detach(id, |address| address.addr != addr);
    }

    /// It was heard from there, if that is its address.
    pub fn heard(&mut self, id: PeerId, addr: SocketAddrV4, now: Millis) -> bool {
        let Some(peer) = self.by_id.get_mut(&id) else { return false };
        let Some(at) = peer.addresses.iter().position(|address| address.addr == addr) else { return false };
        peer.addresses[..=at].rotate_right(1);
        let latest = &mut peer.addresses[0];
        (latest.heard_at, latest.refused) = (now, 0);
        true
    }

    /// It was told where it is that we are here.
    pub fn told(&mut self, addr: SocketAddrV4, now: Millis) {
        if let Some(peer) = self.with_addr(addr).and_then(|id| self.by_id.get_mut(&id)) {
            peer.told_at = Some(now);
        }
    }

    /// It has sent an ACK.
    pub fn acked(&mut self, id: PeerId) {
        if let Some(peer) = self.by_id.get_mut(&id) {
            peer.acked = true;
        }
    }

    /// A send to there was refused. Returns the peer if it is known no more.
    pub fn refused(&mut self, addr: SocketAddrV4) -> Option<Known> {
        let id = self.with_addr(addr)?;
        let peer = self.by_id.get_mut(&id)?;
        let address = peer.addresses.iter_mut().find(|address| address.addr == addr)?;
        address.refused += 1;
        if address.refused < REFUSED_MAX {
            return None;
        }
        let before = peer.known();
        self.detach(id, |address| address.addr == addr);
        self.remove_if_nowhere(id).then_some(before)
    }

    /// Forgets addresses that were not heard for long. Returns the next peer that is known no more.
    pub fn next_expired(&mut self, now: Millis) -> Option<Known> {
        while let Some((_, id)) = self.by_expiry.first().copied().filter(|(at, _)| *at <= now) {
            let forget_after_ms = self.forget_after_ms;
            let Some(before) = self.known(id) else {
                self.by_expiry.pop_first();
                continue;
            };
            self.detach(id, |address| address.heard_at.plus_ms(forget_after_ms) <= now);
            if self.remove_if_nowhere(id) {
                return Some(before);
            }
            let Some(peer) = self.by_id.get_mut(&id) else { continue };
            let oldest = peer.addresses.iter().map(|address| address.heard_at).min().unwrap_or(now);
            self.by_expiry.remove(&(peer.expires, id));
            peer.expires = oldest.plus_ms(forget_after_ms);
            self.by_expiry.insert((peer.expires, id));
        }
        None
    }

    pub fn deadline(&self) -> Option<Millis> {
        self.by_expiry.first().map(|(at, _)| *at)
    }

    /// Takes addresses from a peer.
    fn detach(&mut self, id: PeerId, which: impl Fn(&Address) -> bool) {
        let Some(peer) = self.by_id.get_mut(&id) else { return };
        for address in peer.addresses.extract_if(.., |address| which(address)) {
            self.by_user.remove(&address.user_id);
            self.by_addr.remove(&address.addr);
        }
    }

    fn remove_if_nowhere(&mut self, id: PeerId) -> bool {
        let nowhere = self.by_id.get(&id).is_some_and(|peer| peer.addresses.is_empty());
        if nowhere {
            self.remove(id);
        }
        nowhere
    }

    fn remove(&mut self, id: PeerId) {
        let Some(peer) = self.by_id.remove(&id) else { return };
        self.by_expiry.remove(&(peer.expires, id));
        if let Some(instance) = &peer.instance {
            self.by_instance.remove(instance);
        }
    }
}
