//! The exchange: all peers and deals in memory, and what each request does to them. It does no I/O.
//!
//! All request threads share it. Every peer and every deal has a lock of its own, taken in the order deal, then peer,
//! and never two of one kind. Changes are appended to the [`Journal`] under the lock of what changed, so that the order
//! on disk is the order in memory. No effect in [`ExchangeEffects`] may become visible before its commit is on disk.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use self::amplification::AmplificationLimiter;
use self::mid_cipher::MidCipher;
use self::peers::{RegisteredPeer, RegisteredPeerState};
use super::deal::{Deal, Party, PaymentProgress, Windows};
use super::journal::{DepartureRow, ExchangeChange, ExchangeSnapshot, Journal};
use super::wire::{Amount, ErrorCode, FIRST_SERVER_NUMBER, Notification, Request, RequestBody, RequestError, Response};
use crate::model::{Cents, FeeRate, Millis, Name, Token};
use crate::net::quotas::SourceQuotas;
use crate::storage::backup::ID_RANGE_MAX;

mod addresses;
mod amplification;
mod deals;
mod mid_cipher;
mod open_deals;
mod peers;
mod registration;
mod search;
mod sweep;
#[cfg(test)]
mod tests;

pub use deals::{SettlementOrder, SettlementParty};

/// The open searches of one peer.
pub const SEARCHES_MAX: usize = 64;
pub const PEERS_MAX: usize = 100_000;
/// The names registered from one address. Loopback may have half of all names instead.
pub const NAMES_PER_ADDRESS_MAX: usize = 1_000;
/// Peers that one search is sent to.
pub const RECIPIENTS_MAX: usize = 1_000;
/// The open deals in which a peer is asked as a seller.
pub const RECEIVED_SEARCHES_MAX: usize = 4_096;
/// How many ended deals of a peer are kept, so that repeated requests get the same response.
pub const ENDED_MAX: usize = 256;
pub const SETTLEMENTS_MAX: usize = 256;
/// The concurrent settlements with one address other than loopback.
pub const SETTLEMENTS_PER_ADDRESS_MAX: usize = 8;
/// How long an ended deal is kept, for the same reason.
pub const ANSWER_RETENTION: Duration = Duration::from_secs(600);
/// After this many consecutive searches without an answer, searches no longer wait for a peer.
const UNANSWERED_MAX: u8 = 3;
/// How many ids are reserved on disk at a time.
const ID_RESERVATION: u64 = 1 << 20;
/// The prefix of the idempotency keys of charges; the deal's number follows.
pub const CHARGE_KEY_PREFIX: &str = "trade-";
/// The length of an id range. After a loss of data the ids continue in a new range, past all handed out before.
const ID_RANGE_LEN: u64 = 1 << 36;
const _: () = assert!(FIRST_SERVER_NUMBER + ID_RANGE_LEN * (ID_RANGE_MAX + 1) <= mid_cipher::SEQUENCE_MAX);

#[derive(Debug, Clone)]
pub struct ExchangeRules {
    pub windows: Windows,
    pub fee: FeeRate,
    /// The SHA-256 fingerprint of the certificate for settlements; none without TLS.
    pub cert_sha256: Option<Arc<str>>,
}

impl ExchangeRules {
    /// The fee on a price: the recorded one, or by today's rate for rows of older versions, which have none.
    fn fee_of(&self, price: Cents, recorded: Option<Amount>) -> Cents {
        recorded.map_or_else(|| self.fee.fee_on(price), |Amount(fee)| fee)
    }
}

#[derive(Debug, Clone, Copy)]
pub struct RequestOrigin {
    /// It may be forged in a datagram.
    pub source: SocketAddr,
    /// The address of this host that it was sent to, if known.
    pub local_ip: Option<IpAddr>,
    pub transport: Transport,
}

/// In a datagram the source address may identify the sender; on a TCP connection only a token does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// None may become visible before `commit` is on disk.
#[derive(Debug, Default)]
pub struct ExchangeEffects<R> {
    pub commit: R,
    pub response: Option<Response>,
    /// They are repeated until they are acknowledged.
    pub notifications: Vec<NotificationId>,
    /// When the next ticks of deals are due.
    pub deadlines: Vec<(Millis, u64)>,
    pub settlement: Option<u64>,
    /// They are sent once.
    pub notify_once: Vec<OutgoingNotification>,
    /// A registration that ends once its settlements are over: see [`Exchange::resume_departure`].
    pub departing: Option<u64>,
    /// Deals that a peer has released to stay within [`ENDED_MAX`].
    released_deals: Vec<u64>,
}

impl<R: Default> ExchangeEffects<R> {
    fn answer(commit: R, response: Response) -> ExchangeEffects<R> {
        ExchangeEffects { commit, response: Some(response), ..ExchangeEffects::default() }
    }

    /// Whether they take no more than sending a few datagrams.
    pub fn is_brief(&self) -> bool {
        self.settlement.is_none() && self.departing.is_none() && self.notifications.len() + self.notify_once.len() <= 4
    }

    /// Adds a further step, except for its response.
    fn absorb<J: Journal<Commit = R>>(&mut self, other: ExchangeEffects<R>) {
        self.commit = J::latest(std::mem::take(&mut self.commit), other.commit);
        self.notifications.extend(other.notifications);
        self.notify_once.extend(other.notify_once);
        self.deadlines.extend(other.deadlines);
        self.released_deals.extend(other.released_deals);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NotificationId {
    pub deal: u64,
    pub party: Party,
    pub mid: u64,
}

/// Ready to be sent.
#[derive(Debug, Clone, PartialEq)]
pub struct OutgoingNotification {
    pub to: SocketAddr,
    /// The address of this host that the peer expects it from, if known.
    pub from: Option<IpAddr>,
    /// Otherwise [`Exchange::may_send`] must be asked first.
    pub is_validated: bool,
    pub notification: Notification,
}

/// The work that is resumed after a start.
#[derive(Debug, Default)]
pub struct ResumedWork {
    pub notifications: Vec<NotificationId>,
    pub deadlines: Vec<(Millis, u64)>,
    /// Interrupted settlements, and how far their payments had progressed.
    pub settlements: Vec<(u64, PaymentProgress)>,
}

/// All registered peers and all deals.
pub struct Exchange<J: Journal> {
    journal: J,
    rules: ExchangeRules,
    peers: RwLock<HashMap<Name, Arc<RegisteredPeer<J>>>>,
    /// The innermost of all locks.
    addresses: RwLock<HashMap<SocketAddr, Arc<RegisteredPeer<J>>>>,
    /// Shared with the exchange that this one replaces: see [`Exchange::inherit_limits`].
    amplification: Arc<Mutex<AmplificationLimiter>>,
    names_by_source: Mutex<SourceQuotas>,
    mid_cipher: MidCipher,
    /// The commit of the newest registration or departure, on which "no such peer" depends.
    directory_commit: Mutex<J::Commit>,
    deals: RwLock<HashMap<u64, Arc<TrackedDeal<J>>>>,
    /// The deals that have not ended. The lock is held briefly, below all others.
    open_deals: Mutex<BTreeSet<u64>>,
    changed_deals: open_deals::ChangedDeals,
    /// The recipients of notifications, for as long as the deal is kept, even if the notification is no longer
    /// repeated: an ACK that arrives after the response still validates the address.
    parties_by_mid: Mutex<HashMap<u64, (u64, Party)>>,
    departures: Mutex<BTreeMap<(Name, u64), DepartureRow>>,
    ended_deals: Mutex<VecDeque<(Millis, u64)>>,
    ids: Mutex<IdSequence>,
    settlement_slots: Mutex<SettlementSlots>,
}

struct TrackedDeal<J: Journal> {
    /// How many peers still refer to it.
    holder_count: AtomicUsize,
    state: Mutex<TrackedDealState<J>>,
}

struct TrackedDealState<J: Journal> {
    deal: Deal,
    /// The numbers of all its notifications, removed together with it. A seller gets a few, the buyer at most one for
    /// each seller.
    mids: Vec<u64>,
    is_removed: bool,
    last_commit: J::Commit,
}

/// The ids of deals, sellers' sides, notifications and registrations. None is used twice.
struct IdSequence {
    next: u64,
    ceiling: u64,
}

#[derive(Default)]
struct SettlementSlots {
    /// What each settlement counts against; empty if a side has left.
    by_deal: HashMap<u64, Vec<IpAddr>>,
    by_address: HashMap<IpAddr, usize>,
}

impl SettlementSlots {
    /// A settlement between two sides at the same address counts once.
    fn acquire(&mut self, deal: u64, mut addresses: Vec<IpAddr>) {
        addresses.dedup();
        for ip in &addresses {
            *self.by_address.entry(*ip).or_default() += 1;
        }
        self.by_deal.insert(deal, addresses);
    }
}

pub fn first_id(range: u64) -> u64 {
    FIRST_SERVER_NUMBER + ID_RANGE_LEN.saturating_mul(range)
}

impl<J: Journal> Exchange<J> {
    /// No id below `first` is allocated, since the disk may not know all that were used.
    pub fn load(
        journal: J,
        rules: ExchangeRules,
        snapshot: ExchangeSnapshot,
        first: u64,
        now: Millis,
    ) -> (Exchange<J>, ResumedWork) {
        let known = snapshot.ceiling.max(FIRST_SERVER_NUMBER);
        let next = known.max(first);
        let mid_key = snapshot.mid_key.unwrap_or_else(|| {
            let key = Token::random();
            // It is on disk before any change that holds a number made with it.
            journal.append(vec![ExchangeChange::MidKey(key.clone())]);
            key
        });
        let exchange = Exchange {
            journal,
            rules,
            peers: RwLock::default(),
            addresses: RwLock::default(),
            amplification: Arc::default(),
            names_by_source: Mutex::new(SourceQuotas::new(PEERS_MAX, NAMES_PER_ADDRESS_MAX)),
            mid_cipher: MidCipher::new(&mid_key),
            directory_commit: Mutex::default(),
            deals: RwLock::default(),
            open_deals: Mutex::default(),
            changed_deals: open_deals::ChangedDeals::default(),
            parties_by_mid: Mutex::default(),
            departures: Mutex::default(),
            ended_deals: Mutex::default(),
            ids: Mutex::new(IdSequence { next, ceiling: next }),
            settlement_slots: Mutex::default(),
        };
        if next > known {
            // The jump is on disk even if no id is needed.
            exchange.allocate_ids(1);
        }
        for (row, last_seen_at) in snapshot.peers {
            exchange.restore_peer(row, last_seen_at.min(now));
        }
        for departure in snapshot.departures {
            exchange.departures.lock().insert((departure.name.clone(), departure.rq), departure);
        }
        let mut resumed = ResumedWork::default();
        for (deal, sellers) in snapshot.deals {
            exchange.resume(Deal::from_rows(deal, sellers), now, &mut resumed);
        }
        exchange.ended_deals.lock().make_contiguous().sort();
        (exchange, resumed)
    }

    fn resume(&self, mut deal: Deal, now: Millis, resumed: &mut ResumedWork) {
        deal.resume(now, &self.rules.windows);
        let id = deal.id;
        let (mut holder_count, mut mids) = (0, Vec::new());
        let is_remembered = deal.ended_at().is_none_or(|at| at.until(now) < ANSWER_RETENTION);
        for party in deal.parties() {
            let Some(registered) = self.party_peer(&deal, party) else { continue };
            let mut peer = registered.state.lock();
            registered.link(&mut peer, &deal, party);
            holder_count += 1;
            if deal.ended_at().is_some() {
                if peer.row.forgotten.contains(&id) {
                    peer.free_rq(id);
                }
                // Deals beyond the limit are released when the next deal ends.
                registered.end(&mut peer, &deal, party, usize::MAX);
            }
            if let Some(mid) = deal.outstanding_mid(party) {
                self.parties_by_mid.lock().insert(mid, (id, party));
                mids.push(mid);
                resumed.notifications.extend(is_remembered.then_some(NotificationId { deal: id, party, mid }));
            }
        }
        match deal.state() {
            super::deal::DealState::Settling { seller, payment, .. } => {
                let addresses = self.addresses_of(&deal, Party::Seller(*seller));
                self.settlement_slots.lock().acquire(id, addresses.map(Vec::from).unwrap_or_default());
                resumed.settlements.push((id, *payment));
            }
            _ => resumed.deadlines.extend(deal.deadline().map(|at| (at, id))),
        }
        match deal.ended_at() {
            Some(at) => self.ended_deals.lock().push_back((at.min(now), id)),
            None => drop(self.open_deals.lock().insert(id)),
        }
        let state = TrackedDealState { deal, mids, is_removed: false, last_commit: J::Commit::default() };
        let tracked = TrackedDeal { holder_count: AtomicUsize::new(holder_count), state: Mutex::new(state) };
        self.deals.write().insert(id, Arc::new(tracked));
    }

    pub fn handle_request(&self, now: Millis, origin: &RequestOrigin, request: &Request) -> ExchangeEffects<J::Commit> {
        let result = match &request.body {
            RequestBody::Register { endpoint } => self.register(now, origin, request, endpoint),
            RequestBody::Login { endpoint } => self.login(now, origin, request, endpoint),
            RequestBody::DeRegister => self.deregister(now, origin, request),
            RequestBody::LookingFor { item_name, description, max_price } => self
                .authenticate(now, origin, request)
                .and_then(|peer| self.begin_search(now, &peer, request.rq, item_name, description, *max_price)),
            RequestBody::Status { rq_deal } => {
                self.authenticate(now, origin, request).map(|peer| self.status(now, &peer, request.rq, *rq_deal))
            }
            RequestBody::Deal { item_name, request: about } => self
                .authenticate(now, origin, request)
                .and_then(|peer| self.handle_deal_request(now, &peer, request.rq, item_name, about)),
        };
        result.unwrap_or_else(|(RequestError { code, reason }, commit)| {
            ExchangeEffects::answer(commit, Response::Error { rq: Some(request.rq), code, reason })
        })
    }

    /// The numbers of registered peers, and of deals in memory.
    pub fn sizes(&self) -> (usize, usize) {
        (self.peers.read().len(), self.deals.read().len())
    }

    pub fn journal(&self) -> &J {
        &self.journal
    }

    /// The first of `count` consecutive new ids.
    fn allocate_ids(&self, count: u64) -> u64 {
        let mut ids = self.ids.lock();
        let first = ids.next;
        ids.next += count;
        if ids.next > ids.ceiling {
            ids.ceiling = ids.next + ID_RESERVATION;
            // It is on disk before any change that holds one of them.
            self.journal.append(vec![ExchangeChange::Ceiling(ids.ceiling)]);
        }
        first
    }

    fn peer(&self, name: &Name) -> Option<Arc<RegisteredPeer<J>>> {
        self.peers.read().get(name).cloned()
    }

    #[cfg(test)]
    fn peer_named(&self, name: &str) -> Option<Arc<RegisteredPeer<J>>> {
        self.peer(&Name::new(name).unwrap())
    }

    /// The peer on this side, unless its registration has ended since the deal began.
    fn party_peer(&self, deal: &Deal, party: Party) -> Option<Arc<RegisteredPeer<J>>> {
        self.peer(deal.name_of(party)).filter(|peer| peer.registration_id < deal.id)
    }

    fn deal(&self, id: u64) -> Option<Arc<TrackedDeal<J>>> {
        self.deals.read().get(&id).cloned()
    }

    /// The peer that a request names, if it proves to come from it.
    fn authenticate(
        &self,
        now: Millis,
        origin: &RequestOrigin,
        request: &Request,
    ) -> Result<Arc<RegisteredPeer<J>>, FailedRequest<J>> {
        let Some(peer) = self.peer(&request.name) else {
            let reason = format!("no peer {:?} is registered", request.name);
            let error = RequestError::new(ErrorCode::NotRegistered, reason);
            return Err((error, self.directory_commit.lock().clone()));
        };
        let mut state = peer.state.lock();
        state.row.proves(request.token.as_ref(), origin).map_err(|error| (error, state.last_commit.clone()))?;
        if request.token.is_some() {
            self.token_presented(&peer, &mut state, origin.source);
        }
        drop(state);
        peer.mark_seen(now);
        // It is present, so searches wait for it again.
        peer.unanswered_searches.store(0, Ordering::Relaxed);
        Ok(peer)
    }
}

/// An error and the commit that it depends on.
type FailedRequest<J> = (RequestError, <J as crate::storage::Journal>::Commit);

type RequestResult<J> = Result<ExchangeEffects<<J as crate::storage::Journal>::Commit>, FailedRequest<J>>;
