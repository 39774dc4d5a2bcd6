//! Who has which address, and whether it hears what is sent there (SPEC section 3, "Pushes").

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Exchange, PeerCell, PeerState};
use crate::model::Millis;
use crate::net::source::{self, Source};
use crate::trade::journal::{Change, Journal, PeerRow};
use crate::trade::wire::Reply;

/// An address whose name was heard within this time is given to no other.
const ADDRESS_KEPT: Duration = Duration::from_secs(120);

/// An address is another's who is there.
pub(super) struct Held;

/// What is known of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// A peer is registered there.
    pub is_registered: bool,
    /// And has proved that it hears there.
    pub is_proved: bool,
}

impl<J: Journal> Exchange<J> {
    /// What came counts on, for both: the exchange that this one was built to replace may still be at work, and
    /// what is answered here was often asked there.
    pub fn stands_in_for(&mut self, before: &Exchange<J>) {
        self.allowances = Arc::clone(&before.allowances);
    }

    /// A datagram of so many bytes came from there. Whether that address has proved that it hears: then
    /// nothing that is sent there counts.
    pub fn came(&self, source: SocketAddr, bytes: usize) -> bool {
        let proved = self.is_proved(source);
        if !proved {
            self.allowances.lock().came(source.ip(), bytes);
        }
        proved
    }

    /// Whether a datagram of so many bytes may be sent there; it counts as sent if so.
    pub fn may_send(&self, to: SocketAddr, bytes: usize) -> bool {
        self.is_proved(to) || self.allowances.lock().take(to.ip(), bytes)
    }

    /// The datagram of an answer, of at most `max` bytes; it counts as sent. To an address that is not `proved`
    /// goes as much of it as may be sent there. Nothing where it cannot be made short enough.
    pub fn fit(&self, reply: &mut Reply, to: SocketAddr, proved: bool, max: usize) -> Option<Vec<u8>> {
        let bytes = reply.fit(max)?;
        let may_go = |bytes: &Vec<u8>| proved || self.allowances.lock().take(to.ip(), bytes.len());
        if may_go(&bytes) {
            return Some(bytes);
        }
        let left = usize::try_from(self.allowances.lock().left(to.ip())).unwrap_or(usize::MAX);
        reply.fit(max.min(left)).filter(may_go)
    }

    /// What is known of an address.
    pub fn standing(&self, address: SocketAddr) -> Standing {
        match self.addresses.read().get(&address) {
            Some(peer) => Standing { is_registered: true, is_proved: peer.proved.load(Ordering::Relaxed) },
            None => Standing { is_registered: false, is_proved: false },
        }
    }

    fn is_proved(&self, address: SocketAddr) -> bool {
        self.standing(address).is_proved
    }

    /// Its token came with a request: from the address that it was first told to, that proves the address.
    pub(super) fn token_came(&self, peer: &PeerCell<J>, state: &mut PeerState<J>, source: SocketAddr) {
        let row = &mut state.row;
        let told_here = source == row.addr && source == row.first_source;
        if state.leaving || row.hearing.here || row.hearing.moved || row.displaced || !told_here {
            return;
        }
        (row.hearing.here, row.hearing.ever) = (true, true);
        peer.proved.store(true, Ordering::Relaxed);
        // Nothing waits for it: where it is lost, the next token proves the same.
        self.journal.append(vec![Change::Peer(Box::new(row.clone()))]);
    }

    /// A push was acknowledged. From the peer's own address that proves the address, if the number of the
    /// push was sent to no other.
    pub(super) fn ack_came(&self, peer: &PeerCell<J>, state: &mut PeerState<J>, source: SocketAddr, mid: u64) {
        let row = &mut state.row;
        let mut hearing = row.hearing;
        hearing.acknowledges = true;
        let sent_here_alone = self.mid_key.place(mid).is_some_and(|place| place > row.addr_since);
        if source == row.addr && !row.displaced && sent_here_alone {
            (hearing.here, hearing.ever) = (true, true);
        }
        if state.leaving || hearing == row.hearing {
            return;
        }
        row.hearing = hearing;
        peer.proved.store(hearing.here, Ordering::Relaxed);
        peer.acknowledges.store(true, Ordering::Relaxed);
        // Handed over under the peer's lock, as every row of it: a LOGIN that comes next is not undone by it. Nothing
        // waits for it: where it is lost, the next ACK proves the same.
        self.journal.append(vec![Change::Peer(Box::new(row.clone()))]);
    }

    /// Gives an address to a peer, unless a name that is there has it. The one that had it before, and was
    /// not there, is to be told that it has lost it: see [`Exchange::displace`].
    pub(super) fn claim(
        &self,
        now: Millis,
        address: SocketAddr,
        peer: &Arc<PeerCell<J>>,
    ) -> Result<Option<Arc<PeerCell<J>>>, Held> {
        let mut addresses = self.addresses.write();
        let before = addresses.get(&address).filter(|before| !Arc::ptr_eq(before, peer)).cloned();
        if before.as_ref().is_some_and(|before| before.is_there(now)) {
            return Err(Held);
        }
        addresses.insert(address, Arc::clone(peer));
        Ok(before)
    }

    /// An address is not this peer's any more.
    pub(super) fn leave_address(&self, address: SocketAddr, peer: &PeerCell<J>) {
        let mut addresses = self.addresses.write();
        if addresses.get(&address).is_some_and(|holder| std::ptr::eq(&raw const **holder, peer)) {
            addresses.remove(&address);
        }
    }

    /// Another peer has taken this one's address: what comes from there is not its own any more. No other
    /// peer may be locked.
    pub(super) fn displace(&self, now: Millis, peer: Option<Arc<PeerCell<J>>>, address: SocketAddr) {
        let Some(peer) = peer else { return };
        let mut state = peer.state.lock();
        // It may have moved, or left, or come back in the meantime.
        let is_its_own = self.addresses.read().get(&address).is_some_and(|holder| Arc::ptr_eq(holder, &peer));
        if state.leaving || state.row.addr != address || is_its_own {
            return;
        }
        state.row.displaced = true;
        state.row.hearing.here = false;
        peer.proved.store(false, Ordering::Relaxed);
        let log = state.row.log("displaced", now, format!("from {address}"));
        state.last = self.journal.append(vec![Change::Peer(Box::new(state.row.clone())), log]);
    }

    /// A peer as it was on disk. Where two have one address, the power went between taking it from one and
    /// writing that down: it is the later one's.
    pub(super) fn put_back(&self, row: PeerRow, heard_at: Millis) {
        let peer = Arc::new(PeerCell::new(row, heard_at));
        let named_at = |peer: &PeerCell<J>| {
            let row = &peer.state.lock().row;
            (!row.displaced).then_some((row.addr_since.max(row.since), row.addr))
        };
        self.names.lock().take(peer.registered_from(), 1);
        self.peers.write().insert(peer.name.clone(), Arc::clone(&peer));
        let Some((since, address)) = named_at(&peer) else { return };
        let mut addresses = self.addresses.write();
        let later = addresses.get(&address).filter(|other| named_at(other).is_some_and(|(at, _)| at > since));
        let loser = match later {
            Some(_) => Some(peer),
            None => addresses.insert(address, peer),
        };
        if let Some(loser) = loser {
            let mut state = loser.state.lock();
            state.row.displaced = true;
            state.row.hearing.here = false;
            loser.proved.store(false, Ordering::Relaxed);
        }
    }
}

impl<J: Journal> PeerCell<J> {
    /// Whose share of all names its own counts for: that does not change when it moves.
    pub(super) fn registered_from(&self) -> Source {
        source::of(self.state.lock().row.first_source.ip())
    }

    /// Whether its address is to be kept for it.
    fn is_there(&self, now: Millis) -> bool {
        self.own_deals.load(Ordering::Relaxed) > 0 || self.heard_at().until(now) < ADDRESS_KEPT
    }
}
