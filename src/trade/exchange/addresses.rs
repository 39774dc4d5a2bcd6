//! The addresses of peers, and whether the peers receive what is sent there (`docs/spec/trade.md`).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Exchange, RegisteredPeer, RegisteredPeerState};
use crate::model::Millis;
use crate::net::source::{self, SourceKey};
use crate::trade::journal::{AddressValidation, ExchangeChange, Journal, PeerRow};
use crate::trade::wire::Response;

/// The address of a peer that was active within this time is not given to another.
const ADDRESS_RETENTION: Duration = Duration::from_secs(120);

pub(super) struct AddressInUse;

/// `is_validated`: the peer that is registered with the address has proved that it receives there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AddressStatus {
    pub is_registered: bool,
    pub is_validated: bool,
}

impl<J: Journal> Exchange<J> {
    /// Shares the amplification limit of the exchange that this one replaces: what is received there, where requests
    /// may still be handled, is often answered here.
    pub fn inherit_limits(&mut self, before: &Exchange<J>) {
        self.amplification = Arc::clone(&before.amplification);
    }

    /// Counts a datagram from `source`. True if that address is validated: the amplification limit does not apply then.
    pub fn datagram_received(&self, source: SocketAddr, bytes: usize) -> bool {
        let is_validated = self.is_validated(source);
        if !is_validated {
            self.amplification.lock().credit(source.ip(), bytes);
        }
        is_validated
    }

    /// Whether so much may be sent to an address; if so, it is counted.
    pub fn may_send(&self, to: SocketAddr, bytes: usize) -> bool {
        self.is_validated(to) || self.amplification.lock().try_spend(to.ip(), bytes)
    }

    /// Encodes a response in at most `max` bytes, and fewer if an address that is not validated has a smaller budget.
    /// It is counted as sent. `None` if it cannot be made short enough.
    pub fn fit_response(
        &self,
        reply: &mut Response,
        to: SocketAddr,
        is_validated: bool,
        max: usize,
    ) -> Option<Vec<u8>> {
        let bytes = reply.fit(max)?;
        let may_go = |bytes: &Vec<u8>| is_validated || self.amplification.lock().try_spend(to.ip(), bytes.len());
        if may_go(&bytes) {
            return Some(bytes);
        }
        let left = usize::try_from(self.amplification.lock().remaining(to.ip())).unwrap_or(usize::MAX);
        reply.fit(max.min(left)).filter(may_go)
    }

    pub fn address_status(&self, address: SocketAddr) -> AddressStatus {
        self.addresses.read().get(&address).map_or_else(AddressStatus::default, |peer| AddressStatus {
            is_registered: true,
            is_validated: peer.is_validated.load(Ordering::Relaxed),
        })
    }

    fn is_validated(&self, address: SocketAddr) -> bool {
        self.address_status(address).is_validated
    }

    /// A token that comes from the address that it was first sent to validates that address.
    pub(super) fn token_presented(
        &self,
        peer: &RegisteredPeer<J>,
        state: &mut RegisteredPeerState<J>,
        source: SocketAddr,
    ) {
        let row = &mut state.row;
        let was_sent_here = source == row.addr && source == row.first_source;
        let AddressValidation { is_validated, has_moved, .. } = row.validation;
        if state.is_leaving || is_validated || has_moved || row.displaced || !was_sent_here {
            return;
        }
        (row.validation.is_validated, row.validation.was_validated) = (true, true);
        peer.is_validated.store(true, Ordering::Relaxed);
        // Nothing waits for this: if it is lost, the next request with the token validates the address again.
        self.journal.append(vec![ExchangeChange::Peer(Box::new(row.clone()))]);
    }

    /// An ACK that comes from the peer's own address validates it if the notification was sent to no other.
    pub(super) fn acknowledgement_received(
        &self,
        peer: &RegisteredPeer<J>,
        state: &mut RegisteredPeerState<J>,
        source: SocketAddr,
        mid: u64,
    ) {
        let row = &mut state.row;
        let mut validation = row.validation;
        validation.acknowledges = true;
        let sent_only_here = self.mid_cipher.decrypt(mid).is_some_and(|place| place > row.addr_sequence);
        if source == row.addr && !row.displaced && sent_only_here {
            (validation.is_validated, validation.was_validated) = (true, true);
        }
        if state.is_leaving || validation == row.validation {
            return;
        }
        row.validation = validation;
        peer.is_validated.store(validation.is_validated, Ordering::Relaxed);
        peer.acknowledges.store(true, Ordering::Relaxed);
        // It is appended under the peer's lock, like every change of its row, so that it cannot undo a LOGIN that
        // follows. Nothing waits for it: if it is lost, the next ACK validates the address again.
        self.journal.append(vec![ExchangeChange::Peer(Box::new(row.clone()))]);
    }

    /// Gives an address to a peer unless another one that is present holds it. An absent one that held it is returned,
    /// to be [displaced](Exchange::displace).
    pub(super) fn claim_address(
        &self,
        now: Millis,
        address: SocketAddr,
        peer: &Arc<RegisteredPeer<J>>,
    ) -> Result<Option<Arc<RegisteredPeer<J>>>, AddressInUse> {
        let mut addresses = self.addresses.write();
        let before = addresses.get(&address).filter(|before| !Arc::ptr_eq(before, peer)).cloned();
        if before.as_ref().is_some_and(|before| before.holds_address(now)) {
            return Err(AddressInUse);
        }
        addresses.insert(address, Arc::clone(peer));
        Ok(before)
    }

    pub(super) fn release_address(&self, address: SocketAddr, peer: &RegisteredPeer<J>) {
        let mut addresses = self.addresses.write();
        if addresses.get(&address).is_some_and(|holder| std::ptr::eq(&raw const **holder, peer)) {
            addresses.remove(&address);
        }
    }

    /// The peer's address was taken by another one: datagrams from there are no longer its own. The caller must hold no
    /// other peer's lock.
    pub(super) fn displace(&self, now: Millis, peer: Option<Arc<RegisteredPeer<J>>>, address: SocketAddr) {
        let Some(peer) = peer else { return };
        let mut state = peer.state.lock();
        // The peer may have moved, left or come back in the meantime.
        let is_its_own = self.addresses.read().get(&address).is_some_and(|holder| Arc::ptr_eq(holder, &peer));
        if state.is_leaving || state.row.addr != address || is_its_own {
            return;
        }
        state.row.displaced = true;
        state.row.validation.is_validated = false;
        peer.is_validated.store(false, Ordering::Relaxed);
        let log = state.row.log("displaced", now, format!("from {address}"));
        state.last_commit = self.journal.append(vec![ExchangeChange::Peer(Box::new(state.row.clone())), log]);
    }

    /// If two peers have the same address, the server stopped between giving it to one and recording the loss of the
    /// other; it belongs to the one that named it later.
    pub(super) fn restore_peer(&self, row: PeerRow, last_seen_at: Millis) {
        let peer = Arc::new(RegisteredPeer::new(row, last_seen_at));
        let named_at = |peer: &RegisteredPeer<J>| {
            let row = &peer.state.lock().row;
            (!row.displaced).then_some((row.addr_sequence.max(row.registration_id), row.addr))
        };
        self.names_by_source.lock().acquire(peer.registration_source(), 1);
        self.peers.write().insert(peer.name.clone(), Arc::clone(&peer));
        let Some((registration_id, address)) = named_at(&peer) else { return };
        let mut addresses = self.addresses.write();
        let later = addresses.get(&address).filter(|other| named_at(other).is_some_and(|(at, _)| at > registration_id));
        let loser = match later {
            Some(_) => Some(peer),
            None => addresses.insert(address, peer),
        };
        if let Some(loser) = loser {
            let mut state = loser.state.lock();
            state.row.displaced = true;
            state.row.validation.is_validated = false;
            loser.is_validated.store(false, Ordering::Relaxed);
        }
    }
}

impl<J: Journal> RegisteredPeer<J> {
    /// What the peer's name counts against; it does not change when the peer moves.
    pub(super) fn registration_source(&self) -> SourceKey {
        source::key_of(self.state.lock().row.first_source.ip())
    }

    fn holds_address(&self, now: Millis) -> bool {
        self.own_deals.load(Ordering::Relaxed) > 0 || self.last_seen_at().until(now) < ADDRESS_RETENTION
    }
}
