//! The exchange: every peer and deal in memory, and what each request does to them. No I/O here.
//!
//! It is shared by all request threads. A peer and a deal have a lock each, so that requests for
//! different deals do not meet; locks are taken deal first, then peer, and never two of a kind. Changes
//! are handed to the [`Journal`] under the lock of what changed, so that the order on disk is the order
//! in memory; nothing of an [`Outcome`] may leave before its receipt is on disk.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use self::allowance::Allowances;
use self::mids::Mids;
use super::deal::{Deal, Party, Payment, Windows};
use super::journal::{Change, FarewellRow, Journal, LogRow, PeerRow, Snapshot};
use super::wire::{Amount, Ask, Code, Push, Refusal, Reply, Request, SERVER_NUMBERS};
use crate::model::{Cents, FeeRate, Millis, Name, Token};
use crate::net::shares::Shares;
use crate::storage::backup::STRETCHES;

mod allowance;
mod dealing;
mod hearing;
mod mids;
mod open;
mod registration;
mod search;
mod sweep;
#[cfg(test)]
mod tests;

pub use dealing::{Settling, SettlingPeer};
pub use hearing::Standing;

/// Open searches of one peer.
pub const SEARCHES_MAX: usize = 64;
/// Registered peers.
pub const PEERS_MAX: usize = 100_000;
/// Names registered from one address other than loopback, which may have half of all.
pub const NAMES_PER_ADDRESS_MAX: usize = 1_000;
/// Peers asked for one search.
pub const ASKED_MAX: usize = 1_000;
/// Open deals that a peer is asked in.
pub const SIDES_MAX: usize = 4_096;
/// Ended deals of a peer whose answers are kept.
pub const ENDED_MAX: usize = 256;
/// Settlements at once.
pub const SETTLEMENTS_MAX: usize = 256;
/// Settlements at once with one address other than loopback.
pub const SETTLEMENTS_PER_ADDRESS_MAX: usize = 8;
/// How long answers are kept after a deal has ended.
pub const ANSWERS_KEPT: Duration = Duration::from_secs(600);
/// Searches in a row that a peer may leave unanswered before nobody waits for it.
const UNANSWERED_MAX: u8 = 3;
/// Numbers are taken from the disk's ceiling in steps of this many.
const NUMBERS_STEP: u64 = 1 << 20;
/// What the idempotency key of a deal's charge begins with; the deal's number follows.
pub const CHARGE_KEYS: &str = "trade-";
/// How long a stretch of the sequence is, which begins anew after a loss: past whatever was handed out before.
const STRETCH: u64 = 1 << 36;
const _: () = assert!(SERVER_NUMBERS + STRETCH * (STRETCHES + 1) <= mids::PLACES);

/// What the operator chose.
#[derive(Debug, Clone)]
pub struct Rules {
    /// How long windows are.
    pub windows: Windows,
    /// What the house takes.
    pub fee: FeeRate,
    /// SHA-256 of the certificate that settlement uses; none without TLS.
    pub cert_sha256: Option<Arc<str>>,
}

impl Rules {
    /// What the house keeps of a price: what was told, else (an older row says nothing) by today's rate.
    fn fee_of(&self, price: Cents, told: Option<Amount>) -> Cents {
        told.map_or_else(|| self.fee.of(price), |Amount(fee)| fee)
    }
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    /// Who sent it, as far as a source address tells.
    pub source: SocketAddr,
    /// Which of this host's addresses it was sent to, where that is known.
    pub asked: Option<IpAddr>,
    /// How it came.
    pub via: Via,
}

/// How a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// In a datagram: its source address may prove who sent it.
    Udp,
    /// On a connection: only a token proves anything.
    Tcp,
}

/// What comes of a request or of time. Nothing of it may leave before `receipt` is on disk.
#[derive(Debug)]
pub struct Outcome<R> {
    /// Everything that this is built on.
    pub receipt: R,
    /// For whoever asked.
    pub answer: Option<Reply>,
    /// Pushes to send, and to repeat.
    pub pushes: Vec<Told>,
    /// Deals that time will change, and when.
    pub deadlines: Vec<(Millis, u64)>,
    /// A settlement to begin.
    pub settle: Option<u64>,
    /// To be sent at once and only once: nobody waits for what comes of it.
    pub once: Vec<Outgoing>,
    /// The registration that ends as soon as its settlements are over: see [`Exchange::leave`].
    pub leaving: Option<u64>,
    /// Ended deals that a peer let go of, to stay within its bound.
    let_go: Vec<u64>,
}

impl<R: Default> Default for Outcome<R> {
    fn default() -> Self {
        Outcome {
            receipt: R::default(),
            answer: None,
            pushes: Vec::new(),
            deadlines: Vec::new(),
            settle: None,
            once: Vec::new(),
            leaving: None,
            let_go: Vec::new(),
        }
    }
}

impl<R: Default> Outcome<R> {
    /// Whether it is made real by a few datagrams.
    pub fn is_brief(&self) -> bool {
        self.settle.is_none() && self.leaving.is_none() && self.pushes.len() + self.once.len() <= 4
    }

    /// Adds what another step has brought; the answer stays.
    fn absorb<J: Journal<Receipt = R>>(&mut self, other: Outcome<R>) {
        self.receipt = J::later(std::mem::take(&mut self.receipt), other.receipt);
        self.pushes.extend(other.pushes);
        self.once.extend(other.once);
        self.deadlines.extend(other.deadlines);
        self.let_go.extend(other.let_go);
    }
}

/// A push that a side of a deal has not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Told {
    /// The deal.
    pub deal: u64,
    /// The side.
    pub party: Party,
    /// The push.
    pub mid: u64,
}

/// A push on its way out.
#[derive(Debug, Clone, PartialEq)]
pub struct Outgoing {
    /// The peer's address.
    pub to: SocketAddr,
    /// Which of this host's addresses it is to leave from, where the peer is known to expect that.
    pub from: Option<IpAddr>,
    /// Whether the peer has proved that it hears there: else [`Exchange::may_send`] must be asked.
    pub proved: bool,
    /// What it is told.
    pub push: Push,
}

/// What is to be taken up again after a start.
#[derive(Debug, Default)]
pub struct Resumed {
    /// Pushes that nobody acknowledged.
    pub pushes: Vec<Told>,
    /// Deals that time will change.
    pub deadlines: Vec<(Millis, u64)>,
    /// Settlements that were under way, and how far they were.
    pub settlements: Vec<(u64, Payment)>,
}

/// Every peer and every deal.
pub struct Exchange<J: Journal> {
    journal: J,
    rules: Rules,
    peers: RwLock<HashMap<Name, Arc<PeerCell<J>>>>,
    /// Who has which address. The innermost of all locks.
    addresses: RwLock<HashMap<SocketAddr, Arc<PeerCell<J>>>>,
    /// Shared with the exchange that this one stands in for: see [`Exchange::stands_in_for`].
    allowances: Arc<Mutex<Allowances>>,
    /// How many names were registered from where.
    names: Mutex<Shares>,
    mid_key: Mids,
    /// The newest registration or departure: what "there is no such peer" is built on.
    directory_changed: Mutex<J::Receipt>,
    deals: RwLock<HashMap<u64, Arc<DealCell<J>>>>,
    /// Those of them that have not ended. Held for a moment, beneath all other locks.
    open: Mutex<BTreeSet<u64>>,
    touched: open::Touched,
    /// The side that each push was for, as long as its deal is known: also of those that are not repeated any
    /// more. An ACK may come after the answer that it stands for, and proves an address all the same.
    mids: Mutex<HashMap<u64, (u64, Party)>>,
    farewells: Mutex<BTreeMap<(Name, u64), FarewellRow>>,
    ended: Mutex<VecDeque<(Millis, u64)>>,
    numbers: Mutex<Numbers>,
    settling: Mutex<Slots>,
}

struct PeerCell<J: Journal> {
    name: Name,
    since: u64,
    heard_at: AtomicU64,
    heard_saved_at: AtomicU64,
    unanswered: AtomicU8,
    /// As its row says, to be looked at without the lock.
    proved: AtomicBool,
    acknowledges: AtomicBool,
    /// Open deals in which it buys or has offered.
    own_deals: AtomicUsize,
    state: Mutex<PeerState<J>>,
}

struct PeerState<J: Journal> {
    row: PeerRow,
    /// It has left, or is about to: no new deal may begin with it, and its row is not written any more. Who has
    /// found it before it left would bring it back to the disk, and perhaps over someone else's row.
    leaving: bool,
    /// The deal behind each number that the peer may name.
    rqs: HashMap<u64, u64>,
    /// Every deal it is in that is not forgotten, by id, with its number there.
    links: BTreeMap<u64, u64>,
    /// Those of them that have ended, oldest first: where it bought or offered.
    ended: VecDeque<u64>,
    /// Where it was only asked. They go first: other people's searches must not push out its own deals.
    ended_aside: VecDeque<u64>,
    open_searches: usize,
    open_sides: usize,
    last: J::Receipt,
}

struct DealCell<J: Journal> {
    /// Peers that still hold it among their links.
    holders: AtomicUsize,
    state: Mutex<DealState<J>>,
}

struct DealState<J: Journal> {
    deal: Deal,
    /// The numbers of all that its sides were told, to be forgotten with it: for a seller a few, for the buyer
    /// one for each seller at most.
    mids: Vec<u64>,
    forgotten: bool,
    last: J::Receipt,
}

/// One sequence for everything that is never used twice: deals, sellers' sides, pushes, registrations.
struct Numbers {
    next: u64,
    ceiling: u64,
}

/// Settlements under way.
#[derive(Default)]
struct Slots {
    /// The addresses that each one counts for; none where a side has left.
    by_deal: HashMap<u64, Vec<IpAddr>>,
    by_address: HashMap<IpAddr, usize>,
}

impl Slots {
    /// Two sides at one address are one settlement with that address.
    fn take(&mut self, deal: u64, mut addresses: Vec<IpAddr>) {
        addresses.dedup();
        for ip in &addresses {
            *self.by_address.entry(*ip).or_default() += 1;
        }
        self.by_deal.insert(deal, addresses);
    }
}

/// The first number of a stretch.
pub fn first_number(stretch: u64) -> u64 {
    SERVER_NUMBERS + STRETCH.saturating_mul(stretch)
}

impl<J: Journal> Exchange<J> {
    /// Builds the exchange from what is on disk. No number below `first` is given out: the disk may not know all that
    /// were.
    pub fn load(journal: J, rules: Rules, snapshot: Snapshot, first: u64, now: Millis) -> (Exchange<J>, Resumed) {
        let known = snapshot.ceiling.max(SERVER_NUMBERS);
        let next = known.max(first);
        let mid_key = snapshot.mid_key.unwrap_or_else(|| {
            let key = Token::random();
            // Appended before any change that bears a number made with it, so it is on disk before that is.
            journal.append(vec![Change::MidKey(key.clone())]);
            key
        });
        let exchange = Exchange {
            journal,
            rules,
            peers: RwLock::default(),
            addresses: RwLock::default(),
            allowances: Arc::default(),
            names: Mutex::new(Shares::new(PEERS_MAX, NAMES_PER_ADDRESS_MAX)),
            mid_key: Mids::new(&mid_key),
            directory_changed: Mutex::default(),
            deals: RwLock::default(),
            open: Mutex::default(),
            touched: open::Touched::default(),
            mids: Mutex::default(),
            farewells: Mutex::default(),
            ended: Mutex::default(),
            numbers: Mutex::new(Numbers { next, ceiling: next }),
            settling: Mutex::default(),
        };
        if next > known {
            // On disk at once, whether or not a number is asked for.
            exchange.number(1);
        }
        for (row, heard_at) in snapshot.peers {
            exchange.put_back(row, heard_at.min(now));
        }
        for farewell in snapshot.farewells {
            exchange.farewells.lock().insert((farewell.name.clone(), farewell.rq), farewell);
        }
        let mut resumed = Resumed::default();
        for (deal, sellers) in snapshot.deals {
            exchange.resume(Deal::from_rows(deal, sellers), now, &mut resumed);
        }
        exchange.ended.lock().make_contiguous().sort();
        (exchange, resumed)
    }

    fn resume(&self, mut deal: Deal, now: Millis, resumed: &mut Resumed) {
        deal.resume(now, &self.rules.windows);
        let id = deal.id;
        let (mut holders, mut mids) = (0, Vec::new());
        let heard_of = deal.ended_at().is_none_or(|at| at.until(now) < ANSWERS_KEPT);
        for party in deal.parties() {
            let Some(peer_cell) = self.peer_in(&deal, party) else { continue };
            let mut peer = peer_cell.state.lock();
            peer_cell.link(&mut peer, &deal, party);
            holders += 1;
            if deal.ended_at().is_some() {
                if peer.row.forgotten.contains(&id) {
                    peer.forget_number(id);
                }
                // More than the bound is let go at the next end of a deal.
                peer_cell.end(&mut peer, &deal, party, usize::MAX);
            }
            if let Some(mid) = deal.outstanding_mid(party) {
                self.mids.lock().insert(mid, (id, party));
                mids.push(mid);
                resumed.pushes.extend(heard_of.then_some(Told { deal: id, party, mid }));
            }
        }
        match deal.state() {
            super::deal::State::Settling { seller, payment, .. } => {
                let addresses = self.addresses_of(&deal, Party::Seller(*seller));
                self.settling.lock().take(id, addresses.map(Vec::from).unwrap_or_default());
                resumed.settlements.push((id, *payment));
            }
            _ => resumed.deadlines.extend(deal.deadline().map(|at| (at, id))),
        }
        match deal.ended_at() {
            Some(at) => self.ended.lock().push_back((at.min(now), id)),
            None => drop(self.open.lock().insert(id)),
        }
        let state = DealState { deal, mids, forgotten: false, last: J::Receipt::default() };
        let cell = DealCell { holders: AtomicUsize::new(holders), state: Mutex::new(state) };
        self.deals.write().insert(id, Arc::new(cell));
    }

    /// Does what a peer asks.
    pub fn request(&self, now: Millis, origin: &Origin, request: &Request) -> Outcome<J::Receipt> {
        let result = match &request.ask {
            Ask::Register(reach) => self.register(now, origin, request, reach),
            Ask::Login(reach) => self.login(now, origin, request, reach),
            Ask::DeRegister => self.deregister(now, origin, request),
            _ => self.known_peer(now, origin, request).and_then(|peer| match &request.ask {
                Ask::LookingFor { item_name, description, max_price } => {
                    self.look_for(now, &peer, request.rq, item_name, description, *max_price)
                }
                Ask::Status { rq_deal } => Ok(self.status(now, &peer, request.rq, *rq_deal)),
                _ => self.ask(now, &peer, request),
            }),
        };
        result.unwrap_or_else(|(refusal, receipt)| Outcome {
            receipt,
            answer: Some(Reply::Error { rq: Some(request.rq), code: refusal.code, reason: refusal.reason }),
            ..Outcome::default()
        })
    }

    /// How many peers are registered, and how many deals are in memory.
    pub fn sizes(&self) -> (usize, usize) {
        (self.peers.read().len(), self.deals.read().len())
    }

    /// The door to the disk.
    pub fn journal(&self) -> &J {
        &self.journal
    }

    /// What the operator chose.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The first of `count` numbers that were never used before.
    fn number(&self, count: u64) -> u64 {
        let mut numbers = self.numbers.lock();
        let first = numbers.next;
        numbers.next += count;
        if numbers.next > numbers.ceiling {
            numbers.ceiling = numbers.next + NUMBERS_STEP;
            // Appended before any change that bears such a number, so it is on disk before that is.
            self.journal.append(vec![Change::Ceiling(numbers.ceiling)]);
        }
        first
    }

    fn peer(&self, name: &Name) -> Option<Arc<PeerCell<J>>> {
        self.peers.read().get(name).cloned()
    }

    #[cfg(test)]
    fn named(&self, name: &str) -> Option<Arc<PeerCell<J>>> {
        self.peer(&Name::new(name).unwrap())
    }

    /// The peer behind a side of a deal, if it is still the one that the deal began with.
    fn peer_in(&self, deal: &Deal, party: Party) -> Option<Arc<PeerCell<J>>> {
        self.peer(deal.name_of(party)).filter(|peer| peer.since < deal.id)
    }

    fn deal(&self, id: u64) -> Option<Arc<DealCell<J>>> {
        self.deals.read().get(&id).cloned()
    }

    /// The peer that a request names, if the request shows that it is that peer's.
    fn known_peer(&self, now: Millis, origin: &Origin, request: &Request) -> Result<Arc<PeerCell<J>>, Refused<J>> {
        let Some(peer) = self.peer(&request.name) else {
            let receipt = self.directory_changed.lock().clone();
            return Err((
                Refusal::new(Code::NotRegistered, format!("no peer {:?} is registered", request.name)),
                receipt,
            ));
        };
        let mut state = peer.state.lock();
        state.row.proves(request.token.as_ref(), origin).map_err(|refusal| (refusal, state.last.clone()))?;
        if request.token.is_some() {
            self.token_came(&peer, &mut state, origin.source);
        }
        drop(state);
        peer.heard(now);
        // Whoever asks for something is there: searches wait for it again.
        peer.unanswered.store(0, Ordering::Relaxed);
        Ok(peer)
    }
}

/// A refusal, and what it is built on.
type Refused<J> = (Refusal, <J as crate::storage::Journal>::Receipt);

impl PeerRow {
    /// Whether a request is this peer's: by its token, or by its very address.
    fn proves(&self, token: Option<&Token>, origin: &Origin) -> Result<(), Refusal> {
        let Origin { source, via, .. } = *origin;
        match token {
            Some(token) if self.token.matches(token) => Ok(()),
            Some(_) => Err(Refusal::new(Code::Forbidden, "token: this is not the token of that name")),
            None if via == Via::Udp && source == self.addr && !self.displaced => Ok(()),
            None if via == Via::Tcp => Err(Refusal::new(Code::Forbidden, "token: needed on a connection")),
            None => Err(Refusal::new(Code::Forbidden, "token: needed from an address that is not the peer's own")),
        }
    }

    fn log(&self, kind: &str, at: Millis, detail: String) -> Change {
        Change::Log(LogRow {
            at,
            kind: kind.to_owned(),
            peer: self.name.clone(),
            deal: None,
            rq: None,
            item_name: None,
            price: None,
            detail,
        })
    }
}

impl<J: Journal> PeerCell<J> {
    fn new(row: PeerRow, heard_at: Millis) -> PeerCell<J> {
        PeerCell {
            name: row.name.clone(),
            since: row.since,
            heard_at: AtomicU64::new(heard_at.0),
            heard_saved_at: AtomicU64::new(heard_at.0),
            unanswered: AtomicU8::new(0),
            proved: AtomicBool::new(row.hearing.here),
            acknowledges: AtomicBool::new(row.hearing.acknowledges),
            own_deals: AtomicUsize::new(0),
            state: Mutex::new(PeerState {
                row,
                leaving: false,
                rqs: HashMap::new(),
                links: BTreeMap::new(),
                ended: VecDeque::new(),
                ended_aside: VecDeque::new(),
                open_searches: 0,
                open_sides: 0,
                last: J::Receipt::default(),
            }),
        }
    }

    fn heard(&self, now: Millis) {
        self.heard_at.fetch_max(now.0, Ordering::Relaxed);
    }

    fn heard_at(&self) -> Millis {
        Millis(self.heard_at.load(Ordering::Relaxed))
    }

    /// The peer has a side in a deal.
    fn link(&self, state: &mut PeerState<J>, deal: &Deal, party: Party) {
        state.link(deal.id, deal.rq_of(party), party);
        if deal.concerns(party) {
            self.own_deals.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The deal has ended. Returns the ended deals that are let go to stay within `max`.
    fn end(&self, state: &mut PeerState<J>, deal: &Deal, party: Party, max: usize) -> Vec<u64> {
        if deal.concerns(party) && state.links.contains_key(&deal.id) {
            self.own_deals.fetch_sub(1, Ordering::Relaxed);
        }
        state.end(deal, party, max)
    }
}

impl<J: Journal> PeerState<J> {
    fn link(&mut self, deal: u64, rq: u64, party: Party) {
        self.rqs.insert(rq, deal);
        self.links.insert(deal, rq);
        *self.open_count(party) += 1;
    }

    fn end(&mut self, deal: &Deal, party: Party, max: usize) -> Vec<u64> {
        if !self.links.contains_key(&deal.id) {
            return Vec::new();
        }
        *self.open_count(party) -= 1;
        let ended = if deal.concerns(party) { &mut self.ended } else { &mut self.ended_aside };
        ended.push_back(deal.id);
        let mut let_go = Vec::new();
        while self.ended.len() + self.ended_aside.len() > max {
            let Some(oldest) = self.ended_aside.pop_front().or_else(|| self.ended.pop_front()) else { break };
            self.forget_number(oldest);
            self.links.remove(&oldest);
            let_go.push(oldest);
        }
        let_go
    }

    /// Nothing is left of an ended deal.
    fn unlink(&mut self, deal: u64) {
        self.forget_number(deal);
        self.links.remove(&deal);
        self.ended.retain(|ended| *ended != deal);
        self.ended_aside.retain(|ended| *ended != deal);
    }

    /// The peer's number for this deal may be used again.
    fn forget_number(&mut self, deal: u64) {
        if self.knows_number(deal) {
            self.rqs.remove(&self.links[&deal]);
        }
    }

    /// Whether the peer's number for this deal still stands for it.
    fn knows_number(&self, deal: u64) -> bool {
        self.links.get(&deal).is_some_and(|rq| self.rqs.get(rq) == Some(&deal))
    }

    fn open_count(&mut self, party: Party) -> &mut usize {
        match party {
            Party::Buyer => &mut self.open_searches,
            Party::Seller(_) => &mut self.open_sides,
        }
    }
}
