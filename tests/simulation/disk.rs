//! A disk as the contract assumes it: what was committed stays; of the rest a crash keeps some prefix.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use p2s2::model::{Millis, Name, Token};
use p2s2::trade::deal::{Deal, Money, Party, SellerSide, State};
use p2s2::storage::Journal;
use p2s2::trade::journal::{Change, FarewellRow, MoneyRow, PeerRow, Snapshot};

use crate::Fault;
use crate::rng::Rng;

#[derive(Clone)]
pub struct Disk(Arc<Mutex<Platter>>);

pub struct Platter {
    pub rows: Rows,
    pending: VecDeque<Vec<Change>>,
    appended: u64,
    committed: u64,
    fault: Option<Fault>,
}

/// What is on disk for good.
#[derive(Default)]
pub struct Rows {
    ceiling: u64,
    mid_key: Option<Token>,
    pub peers: BTreeMap<Name, (PeerRow, Millis)>,
    farewells: BTreeMap<(Name, u64), FarewellRow>,
    pub deals: BTreeMap<u64, Deal>,
    sides: BTreeMap<(u64, u64), SellerSide>,
    pub money: Vec<MoneyRow>,
    /// Every deal that was ever settled, with its ending; deals are forgotten, these are not.
    pub completed: BTreeMap<u64, (Name, Name, i64)>,
}

impl Journal for Disk {
    type Change = Change;
    type Receipt = u64;

    fn append(&self, changes: Vec<Change>) -> u64 {
        let mut disk = self.lock();
        disk.pending.push_back(changes);
        disk.appended += 1;
        disk.appended
    }

    fn later(a: u64, b: u64) -> u64 {
        a.max(b)
    }

    fn is_committed(&self, receipt: &u64) -> bool {
        *receipt <= self.lock().committed
    }
}

impl Disk {
    pub fn new(seed: u64, fault: Option<Fault>) -> Disk {
        // Drawn from the seed like everything else, so that a seed plays the same every time.
        let rows = Rows { mid_key: Some(Token::from_text(seed.to_string())), ..Rows::default() };
        Disk(Arc::new(Mutex::new(Platter { rows, pending: VecDeque::new(), appended: 0, committed: 0, fault })))
    }

    pub fn lock(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn commit(&self) {
        let mut disk = self.lock();
        while let Some(changes) = disk.pending.pop_front() {
            disk.keep(changes);
        }
        disk.committed = disk.appended;
    }

    /// Nothing of the batch reaches the disk.
    pub fn fail(&self) {
        let mut disk = self.lock();
        disk.pending.clear();
        disk.committed = disk.appended;
    }

    /// The power is cut: some prefix of what was handed over has made it.
    pub fn crash(&self, rng: &mut Rng) {
        let kept = rng.below(self.lock().pending.len() as u64 + 1);
        let mut disk = self.lock();
        for _ in 0..kept {
            if let Some(changes) = disk.pending.pop_front() {
                disk.keep(changes);
            }
        }
        drop(disk);
        self.fail();
    }

    pub fn snapshot(&self) -> Snapshot {
        let disk = self.lock();
        let rows = &disk.rows;
        let deals = rows.deals.values().map(|deal| (deal.clone(), rows.sellers(deal.id))).collect();
        Snapshot {
            ceiling: rows.ceiling,
            mid_key: rows.mid_key.clone(),
            peers: rows.peers.values().cloned().collect(),
            farewells: rows.farewells.values().cloned().collect(),
            deals,
        }
    }

    /// Where a peer is, as the newest change says, committed or not.
    pub fn newest_address(&self, name: &Name) -> Option<SocketAddr> {
        let disk = self.lock();
        let mut address = disk.rows.peers.get(name).map(|(row, _)| row.addr);
        for change in disk.pending.iter().flatten() {
            match change {
                Change::Peer(row) if row.name == *name => address = Some(row.addr),
                Change::DropPeer(dropped) if dropped == name => address = None,
                _ => {}
            }
        }
        address
    }

    /// Who is behind a side, committed or not.
    pub fn name_of(&self, deal: u64, party: Party) -> Option<Name> {
        let disk = self.lock();
        disk.rows.whole_deal(deal).map(|deal| deal.name_of(party).clone())
    }
}

impl Platter {
    fn keep(&mut self, changes: Vec<Change>) {
        for change in changes {
            let lost = match self.fault {
                Some(Fault::LoseOffers) => {
                    matches!(&change, Change::Seller { deal, rq, .. } if self.rows.sides.contains_key(&(*deal, *rq)))
                }
                Some(Fault::LosePeerRows) => matches!(change, Change::Peer(_)),
                Some(Fault::LoseCeiling) => matches!(change, Change::Ceiling(_)),
                Some(Fault::LoseCaptures) => {
                    matches!(&change, Change::Money(row) if row.money == Money::Capture)
                }
                _ => false,
            };
            if !lost {
                self.rows.apply(change);
            }
        }
    }
}

impl Rows {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Ceiling(number) => self.ceiling = number,
            Change::MidKey(key) => self.mid_key = Some(key),
            Change::Peer(row) => {
                let heard_at = self.peers.get(&row.name).map_or(row.registered_at, |(_, heard_at)| *heard_at);
                self.peers.insert(row.name.clone(), (*row, heard_at));
            }
            Change::Heard { name, at } => {
                self.peers.entry(name).and_modify(|peer| peer.1 = at);
            }
            Change::DropPeer(name) => drop(self.peers.remove(&name)),
            Change::Farewell(row) => drop(self.farewells.insert((row.name.clone(), row.rq), row)),
            Change::DropFarewell { name, rq } => drop(self.farewells.remove(&(name, rq))),
            Change::DropFarewells(before) => self.farewells.retain(|_, row| row.at > before),
            Change::Deal { id, body } => {
                let deal: Deal = serde_json::from_str(&body).expect("the exchange writes rows that it can read");
                if let State::Completed { seller, price, .. } = deal.state() {
                    let rq = deal.first_rq + *seller as u64;
                    if let Some(side) = self.sides.get(&(id, rq)) {
                        self.completed.insert(id, (deal.buyer.clone(), side.name.clone(), price.0));
                    }
                }
                self.deals.insert(id, deal);
            }
            Change::Seller { deal, rq, body } => {
                let side = serde_json::from_str(&body).expect("the exchange writes rows that it can read");
                self.sides.insert((deal, rq), side);
            }
            Change::DropDeal(id) => {
                self.deals.remove(&id);
                let gone: Vec<_> = self.sides.range((id, 0)..=(id, u64::MAX)).map(|(key, _)| *key).collect();
                for key in gone {
                    self.sides.remove(&key);
                }
            }
            Change::Log(_) => {}
            Change::Money(row) => self.money.push(row),
        }
    }

    fn sellers(&self, deal: u64) -> Vec<SellerSide> {
        self.sides.range((deal, 0)..=(deal, u64::MAX)).map(|(_, side)| side.clone()).collect()
    }

    pub fn whole_deal(&self, id: u64) -> Option<Deal> {
        Some(Deal::from_rows(self.deals.get(&id)?.clone(), self.sellers(id)))
    }

    /// The newest deal that this name knows by this number.
    pub fn deal_of(&self, name: &Name, rq: u64) -> Option<u64> {
        let is_side = |id| self.sides.get(&(id, rq)).is_some_and(|side| side.name == *name);
        let mut deals = self.deals.values().rev();
        deals.find(|deal| (deal.buyer == *name && deal.rq == rq) || is_side(deal.id)).map(|deal| deal.id)
    }
}
