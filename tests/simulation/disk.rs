//! What trade has on its simulated disk.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use p2s2::internals::model::{Millis, Name, Token};
use p2s2::internals::trade::deal::{Deal, DealState, LedgerOperation, Party, SellerSide};
use p2s2::internals::trade::journal::{DepartureRow, ExchangeChange, ExchangeSnapshot, LedgerRow, PeerRow};

use crate::{Fault, journal};

pub type Disk = journal::Disk<Rows>;

/// What is committed.
#[derive(Default)]
pub struct Rows {
    fault: Option<Fault>,
    ceiling: u64,
    mid_key: Option<Token>,
    pub peers: BTreeMap<Name, (PeerRow, Millis)>,
    departures: BTreeMap<(Name, u64), DepartureRow>,
    pub deals: BTreeMap<u64, Deal>,
    sides: BTreeMap<(u64, u64), SellerSide>,
    pub money: Vec<LedgerRow>,
    /// Every settled deal and its price. Deals are removed, but these are not.
    pub completed: BTreeMap<u64, (Name, Name, i64)>,
}

impl Disk {
    pub fn new(seed: u64, fault: Option<Fault>) -> Disk {
        // Drawn from the seed, so that a seed always gives the same run.
        let mid_key = Some(Token::from_text(seed.to_string()));
        Disk::with_rows(Rows { fault, mid_key, ..Rows::default() })
    }

    pub fn snapshot(&self) -> ExchangeSnapshot {
        let disk = self.lock();
        let rows = &disk.rows;
        let deals = rows.deals.values().map(|deal| (deal.clone(), rows.sellers(deal.id))).collect();
        ExchangeSnapshot {
            ceiling: rows.ceiling,
            mid_key: rows.mid_key.clone(),
            peers: rows.peers.values().cloned().collect(),
            departures: rows.departures.values().cloned().collect(),
            deals,
        }
    }

    /// The address of a peer by the newest change, committed or not.
    pub fn newest_address(&self, name: &Name) -> Option<SocketAddr> {
        let disk = self.lock();
        let mut address = disk.rows.peers.get(name).map(|(row, _)| row.addr);
        for change in disk.pending.iter().flatten() {
            match change {
                ExchangeChange::Peer(row) if row.name == *name => address = Some(row.addr),
                ExchangeChange::DropPeer(dropped) if dropped == name => address = None,
                _ => {}
            }
        }
        address
    }

    /// The name of the peer on a side, committed or not.
    pub fn name_of(&self, deal: u64, party: Party) -> Option<Name> {
        let disk = self.lock();
        disk.rows.whole_deal(deal).map(|deal| deal.name_of(party).clone())
    }
}

impl journal::Rows for Rows {
    type Change = ExchangeChange;

    fn keep(&mut self, changes: Vec<ExchangeChange>) {
        for change in changes {
            let lost = match self.fault {
                Some(Fault::LoseOffers) => {
                    matches!(&change, ExchangeChange::Seller { deal, rq, .. } if self.sides.contains_key(&(*deal, *rq)))
                }
                Some(Fault::LosePeerRows) => matches!(change, ExchangeChange::Peer(_)),
                Some(Fault::LoseCeiling) => matches!(change, ExchangeChange::Ceiling(_)),
                Some(Fault::LoseCaptures) => {
                    matches!(&change, ExchangeChange::Ledger(row) if row.operation == LedgerOperation::Capture)
                }
                _ => false,
            };
            if !lost {
                self.apply(change);
            }
        }
    }
}

impl Rows {
    fn apply(&mut self, change: ExchangeChange) {
        match change {
            ExchangeChange::Ceiling(number) => self.ceiling = number,
            ExchangeChange::MidKey(key) => self.mid_key = Some(key),
            ExchangeChange::Peer(row) => {
                let heard_at = self.peers.get(&row.name).map_or(row.registered_at, |(_, heard_at)| *heard_at);
                self.peers.insert(row.name.clone(), (*row, heard_at));
            }
            ExchangeChange::PeerSeen { name, at } => {
                self.peers.entry(name).and_modify(|peer| peer.1 = at);
            }
            ExchangeChange::DropPeer(name) => drop(self.peers.remove(&name)),
            ExchangeChange::Departure(row) => drop(self.departures.insert((row.name.clone(), row.rq), row)),
            ExchangeChange::DropDeparture { name, rq } => drop(self.departures.remove(&(name, rq))),
            ExchangeChange::DropDeparturesBefore(before) => self.departures.retain(|_, row| row.at > before),
            ExchangeChange::Deal { id, body } => {
                let deal: Deal = serde_json::from_str(&body).expect("the exchange writes rows that it can read");
                if let DealState::Completed { seller, price, .. } = deal.state() {
                    let rq = deal.first_rq + *seller as u64;
                    if let Some(side) = self.sides.get(&(id, rq)) {
                        self.completed.insert(id, (deal.buyer.clone(), side.name.clone(), price.0));
                    }
                }
                self.deals.insert(id, deal);
            }
            ExchangeChange::Seller { deal, rq, body } => {
                let side = serde_json::from_str(&body).expect("the exchange writes rows that it can read");
                self.sides.insert((deal, rq), side);
            }
            ExchangeChange::DropDeal(id) => {
                self.deals.remove(&id);
                let gone: Vec<_> = self.sides.range((id, 0)..=(id, u64::MAX)).map(|(key, _)| *key).collect();
                for key in gone {
                    self.sides.remove(&key);
                }
            }
            ExchangeChange::Log(_) => {}
            ExchangeChange::Ledger(row) => self.money.push(row),
        }
    }

    fn sellers(&self, deal: u64) -> Vec<SellerSide> {
        self.sides.range((deal, 0)..=(deal, u64::MAX)).map(|(_, side)| side.clone()).collect()
    }

    pub fn whole_deal(&self, id: u64) -> Option<Deal> {
        Some(Deal::from_rows(self.deals.get(&id)?.clone(), self.sellers(id)))
    }

    /// The newest deal that this peer knows by this number.
    pub fn deal_of(&self, name: &Name, rq: u64) -> Option<u64> {
        let is_side = |id| self.sides.get(&(id, rq)).is_some_and(|side| side.name == *name);
        let mut deals = self.deals.values().rev();
        deals.find(|deal| (deal.buyer == *name && deal.rq == rq) || is_side(deal.id)).map(|deal| deal.id)
    }
}
