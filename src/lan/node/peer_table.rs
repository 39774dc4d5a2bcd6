//! The table of known peers, indexed by INSTANCE, USER_ID and address.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddrV4;
use std::time::Duration;

use super::PeerInfo;
use super::rate_limits::{RateLimit, TokenBucket};
use crate::lan::wire::{Discovery, Features, UserId};
use crate::model::{Millis, Name};
use crate::net::backoff::Backoff;

pub(super) const PEERS_MAX: usize = 10_000;
pub(super) const ADDRESSES_MAX: usize = 8;
/// After so many refused sends in a row, an address is removed.
const REFUSED_MAX: u8 = 3;
/// A known peer that announces itself to us is answered again after this pause.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// The pause doubles with each answer up to this value: otherwise two peers with a long round trip would answer each
/// other for ever.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// After so long without an answer the pause starts from its minimum again.
const PAUSE_RESET_MS: u64 = 2 * PAUSE_MAX.as_millis() as u64;

/// A known peer without INSTANCE that announces itself is answered at most once in this time.
const NO_INSTANCE_PAUSE_MS: u64 = 30_000;

/// Messages of the user to one peer: below what a peer accepts from one source, with a reserve for other datagrams.
const SENDS_PER_PEER: RateLimit = RateLimit { burst: 100, per_s: 80 };

pub(super) type PeerId = u64;

/// An address of a peer, with the USER_ID that it uses there.
#[derive(Debug, Clone)]
pub(super) struct PeerAddress {
    pub user_id: UserId,
    pub addr: SocketAddrV4,
    heard_at: Millis,
    refused: u8,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ServerInfo {
    serves: Vec<(String, u16)>,
    cert_sha256: Option<String>,
}

#[derive(Debug)]
pub(super) struct Peer {
    instance: Option<Box<str>>,
    /// The last heard first. Never empty while the peer is in the table.
    addresses: Vec<PeerAddress>,
    features: Features,
    served: Option<Box<ServerInfo>>,
    acked: bool,
    since: Millis,
    /// Our last unicast announcement to it.
    pub announced_to_at: Option<Millis>,
    backoff: Backoff,
    send_bucket: TokenBucket,
    /// Its key in the table's `by_expiry`.
    expires: Millis,
}

impl Peer {
    /// The address that is used to reach it.
    pub fn current(&self) -> &PeerAddress {
        &self.addresses[0]
    }

    pub fn addresses(&self) -> &[PeerAddress] {
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

    /// Whether a peer without INSTANCE may be answered now. Such a peer may receive no broadcasts and know us only by
    /// our answers; the pause keeps two peers that answer every answer from doing so for ever.
    pub fn may_answer_without_instance(&self, now: Millis) -> bool {
        self.announced_to_at.is_none_or(|announced_to_at| announced_to_at.plus_ms(NO_INSTANCE_PAUSE_MS) <= now)
    }

    pub fn acknowledges(&self) -> bool {
        self.features.ack || self.acked
    }

    /// If it may be answered again now, it counts as answered.
    pub fn try_answer_again(&mut self, now: Millis) -> bool {
        let quiet_ms =
            self.announced_to_at.map_or(PAUSE_RESET_MS, |announced_to_at| now.0.saturating_sub(announced_to_at.0));
        if quiet_ms >= PAUSE_RESET_MS {
            self.backoff.reset();
        } else if Duration::from_millis(quiet_ms) >= self.backoff.current() {
            self.backoff.next_pause();
        } else {
            return false;
        }
        self.announced_to_at = Some(now);
        true
    }

    pub fn info(&self) -> PeerInfo {
        let served = self.served.as_deref();
        PeerInfo {
            user_id: self.current().user_id.clone(),
            addr: self.current().addr.into(),
            addresses: self.addresses.iter().map(|at| (at.user_id.clone(), at.addr.into())).collect(),
            instance: self.instance.as_deref().map(str::to_owned),
            features: self.features,
            serves: served.map(|served| served.serves.clone()).unwrap_or_default(),
            cert_sha256: served.and_then(|served| served.cert_sha256.clone()),
            known_since: self.since,
            heard_at: self.current().heard_at,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct PeerTable {
    forget_after_ms: u64,
    next_id: PeerId,
    by_id: BTreeMap<PeerId, Peer>,
    by_instance: HashMap<Box<str>, PeerId>,
    by_user_id: HashMap<UserId, PeerId>,
    by_addr: HashMap<SocketAddrV4, PeerId>,
    /// Peers by a time not later than when the first of their addresses expires; they are checked then.
    by_expiry: BTreeSet<(Millis, PeerId)>,
}

impl PeerTable {
    pub fn new(forget_after_ms: u64) -> PeerTable {
        PeerTable { forget_after_ms, ..PeerTable::default() }
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn address_count(&self) -> usize {
        debug_assert_eq!(self.by_user_id.len(), self.by_addr.len());
        debug_assert_eq!(self.by_expiry.len(), self.by_id.len());
        self.by_addr.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.by_id.values()
    }

    pub fn ids(&self) -> Vec<PeerId> {
        self.by_id.keys().copied().collect()
    }

    /// Takes a send permit for each of these peers, or for none of them if one has no permit left: the error says when
    /// all of them will have one.
    pub fn reserve_sends(&mut self, now: Millis, ids: &[PeerId]) -> Result<(), Millis> {
        let ready = |id| self.by_id.get(id).map(|peer: &Peer| peer.send_bucket.ready_at());
        if let Some(at) = ids.iter().filter_map(ready).max().filter(|at| *at > now) {
            return Err(at);
        }
        for id in ids {
            self.record_send(*id, now);
        }
        Ok(())
    }

    /// Counts a message to this peer against its permits, even if there is none left.
    pub fn record_send(&mut self, id: PeerId, now: Millis) {
        if let Some(peer) = self.by_id.get_mut(&id) {
            peer.send_bucket.take(now);
        }
    }

    pub fn get(&self, id: PeerId) -> Option<&Peer> {
        self.by_id.get(&id)
    }

    pub fn get_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.by_id.get_mut(&id)
    }

    pub fn find_by_instance(&self, instance: &str) -> Option<PeerId> {
        self.by_instance.get(instance).copied()
    }

    pub fn find_by_user_id(&self, user_id: &UserId) -> Option<PeerId> {
        self.by_user_id.get(user_id).copied()
    }

    pub fn find_by_addr(&self, addr: SocketAddrV4) -> Option<PeerId> {
        self.by_addr.get(&addr).copied()
    }

    pub fn peer_at(&self, addr: SocketAddrV4) -> Option<&Peer> {
        self.get(self.find_by_addr(addr)?)
    }

    pub fn addr_of(&self, user_id: &UserId) -> Option<SocketAddrV4> {
        let peer = self.get(self.find_by_user_id(user_id)?)?;
        peer.addresses.iter().find(|address| address.user_id == *user_id).map(|address| address.addr)
    }

    /// Whether the last send to this address was refused.
    pub fn is_refusing(&self, addr: SocketAddrV4) -> bool {
        self.peer_at(addr).is_some_and(|peer| peer.addresses.iter().any(|at| at.addr == addr && at.refused > 0))
    }

    /// Adds a peer without an address: [`PeerTable::assign_address`] must follow.
    pub fn add(&mut self, now: Millis) -> PeerId {
        let id = self.next_id;
        self.next_id += 1;
        let expires = now.plus_ms(self.forget_after_ms);
        self.by_expiry.insert((expires, id));
        let peer = Peer {
            instance: None,
            addresses: Vec::new(),
            features: Features::default(),
            served: None,
            acked: false,
            since: now,
            announced_to_at: None,
            backoff: Backoff::new(PAUSE_MIN, PAUSE_MAX),
            send_bucket: TokenBucket::full(SENDS_PER_PEER),
            expires,
        };
        self.by_id.insert(id, peer);
        id
    }

    /// Updates what a peer announces about itself. Another INSTANCE is another run: the state of the former is reset.
    pub fn update_description(&mut self, id: PeerId, discovery: &Discovery) {
        let Some(peer) = self.by_id.get_mut(&id) else { return };
        peer.features = discovery.features;
        let served = peer.served.as_deref().map(|served| (&served.serves, &served.cert_sha256));
        if served != Some((&discovery.serves, &discovery.cert_sha256)) {
            let says = !discovery.serves.is_empty() || discovery.cert_sha256.is_some();
            let served = || ServerInfo { serves: discovery.serves.clone(), cert_sha256: discovery.cert_sha256.clone() };
            peer.served = says.then(|| Box::new(served()));
        }
        if peer.instance.as_deref() == discovery.instance.as_deref() {
            return;
        }
        if let Some(former) = peer.instance.take() {
            self.by_instance.remove(&former);
        }
        (peer.acked, peer.announced_to_at) = (false, None);
        if let Some(instance) = discovery.instance.as_deref() {
            peer.instance = Some(instance.into());
            self.by_instance.insert(instance.into(), id);
        }
    }

    /// Gives a peer an address and a USER_ID, which are taken from any other peer. Returns the peers that were removed,
    /// as they had no other address.
    pub fn assign_address(&mut self, id: PeerId, user_id: &UserId, addr: SocketAddrV4, now: Millis) -> Vec<PeerInfo> {
        let mut gone = Vec::new();
        let claims = [self.find_by_user_id(user_id), self.find_by_addr(addr)];
        for holder in claims.into_iter().flatten() {
            let Some(peer) = self.by_id.get(&holder) else { continue };
            let before = (holder != id).then(|| peer.info());
            self.remove_addresses(holder, |address| address.user_id == *user_id || address.addr == addr);
            if holder != id && self.remove_if_without_address(holder) {
                gone.extend(before);
            }
        }
        let Some(peer) = self.by_id.get_mut(&id) else { return gone };
        let address = PeerAddress { user_id: user_id.clone(), addr, heard_at: now, refused: 0 };
        peer.addresses.insert(0, address);
        let last = peer.addresses.get(ADDRESSES_MAX).map(|address| address.addr);
        self.by_user_id.insert(user_id.clone(), id);
        self.by_addr.insert(addr, id);
        if let Some(last) = last {
            self.remove_addresses(id, |address| address.addr == last);
        }
        gone
    }

    /// False if that is not one of its addresses.
    pub fn mark_heard(&mut self, id: PeerId, addr: SocketAddrV4, now: Millis) -> bool {
        let Some(peer) = self.by_id.get_mut(&id) else { return false };
        let Some(at) = peer.addresses.iter().position(|address| address.addr == addr) else { return false };
        peer.addresses[..=at].rotate_right(1);
        let latest = &mut peer.addresses[0];
        (latest.heard_at, latest.refused) = (now, 0);
        true
    }

    pub fn mark_announced_to(&mut self, addr: SocketAddrV4, now: Millis) {
        if let Some(peer) = self.find_by_addr(addr).and_then(|id| self.by_id.get_mut(&id)) {
            peer.announced_to_at = Some(now);
        }
    }

    pub fn mark_acknowledging(&mut self, id: PeerId) {
        if let Some(peer) = self.by_id.get_mut(&id) {
            peer.acked = true;
        }
    }

    /// Returns the peer if the refused send removed it.
    pub fn record_refusal(&mut self, addr: SocketAddrV4) -> Option<PeerInfo> {
        let id = self.find_by_addr(addr)?;
        let peer = self.by_id.get_mut(&id)?;
        let address = peer.addresses.iter_mut().find(|address| address.addr == addr)?;
        address.refused += 1;
        if address.refused < REFUSED_MAX {
            return None;
        }
        let before = peer.info();
        self.remove_addresses(id, |address| address.addr == addr);
        self.remove_if_without_address(id).then_some(before)
    }

    /// Removes addresses that were silent for too long. Returns the next peer that this removes.
    pub fn next_expired(&mut self, now: Millis) -> Option<PeerInfo> {
        while let Some((_, id)) = self.by_expiry.first().copied().filter(|(at, _)| *at <= now) {
            let forget_after_ms = self.forget_after_ms;
            let Some(before) = self.get(id).map(Peer::info) else {
                self.by_expiry.pop_first();
                continue;
            };
            self.remove_addresses(id, |address| address.heard_at.plus_ms(forget_after_ms) <= now);
            if self.remove_if_without_address(id) {
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

    /// The peer stays in the table.
    pub fn remove_addresses(&mut self, id: PeerId, which: impl Fn(&PeerAddress) -> bool) {
        let Some(peer) = self.by_id.get_mut(&id) else { return };
        for address in peer.addresses.extract_if(.., |address| which(address)) {
            self.by_user_id.remove(&address.user_id);
            self.by_addr.remove(&address.addr);
        }
    }

    fn remove_if_without_address(&mut self, id: PeerId) -> bool {
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
