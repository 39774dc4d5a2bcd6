//! What a deal tells of itself to those who ask.

use std::sync::Arc;

use serde::Serialize;

use super::{Deal, Party, Payment, SellerSide, Standing, State};
use crate::model::{Cents, Millis, Name};
use crate::trade::wire::{Amount, DealStatus, Goods, Phase, Side};

/// A deal as the operator sees it, who sees both sides.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DealLine {
    /// Its number.
    pub deal: u64,
    /// When it began, Unix seconds.
    pub opened_at: u64,
    /// Who searches.
    pub buyer: Name,
    /// The number by which the buyer knows it.
    pub rq: u64,
    /// As the buyer wrote it.
    pub item_name: Arc<str>,
    /// The most the buyer pays.
    pub max_price: Cents,
    /// Where it stands.
    pub state: Phase,
    /// Who sells, or is asked for a better price.
    pub seller: Option<Name>,
    /// What that one gets.
    pub price: Option<Cents>,
    /// Why it was cancelled.
    pub reason: Option<Arc<str>>,
    /// How many were asked.
    pub asked: usize,
    /// How long its present window lasts, where it has one, as DEALS has it.
    pub ends_in_ms: Option<u64>,
}

impl Deal {
    /// All of it on one line.
    pub fn line(&self, now: Millis) -> DealLine {
        let (state, seller, price, reason) = match &self.state {
            State::Searching { .. } => (Phase::Searching, None, None, None),
            State::Negotiating { seller, .. } => (Phase::Negotiating, Some(*seller), None, None),
            State::Reserved { seller, price, .. } => (Phase::Reserved, Some(*seller), Some(*price), None),
            State::Settling { seller, price, .. } => (Phase::Settling, Some(*seller), Some(*price), None),
            State::Completed { seller, price, .. } => (Phase::Completed, Some(*seller), Some(*price), None),
            State::Cancelled { reason, .. } => (Phase::Cancelled, None, None, Some(Arc::clone(reason))),
        };
        DealLine {
            deal: self.id,
            opened_at: self.opened_at.0 / 1000,
            buyer: self.buyer.clone(),
            rq: self.rq,
            item_name: Arc::clone(&self.item_name),
            max_price: self.max_price,
            state,
            seller: seller.map(|seller| self.name_of(Party::Seller(seller)).clone()),
            price,
            reason,
            asked: self.sellers.len(),
            ends_in_ms: self.window_ends().map(|until| until.0.saturating_sub(now.0)),
        }
    }

    /// Where it stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// When time will change something by itself.
    pub fn deadline(&self) -> Option<Millis> {
        match self.state {
            State::Searching { until } => Some(self.acks_due.map_or(until, |due| due.min(until))),
            State::Negotiating { until, .. } | State::Reserved { until, .. } => Some(until),
            _ => None,
        }
    }

    /// When its present window ends.
    fn window_ends(&self) -> Option<Millis> {
        match self.state {
            State::Searching { until } => Some(until),
            _ => self.deadline(),
        }
    }

    /// When it ended.
    pub fn ended_at(&self) -> Option<Millis> {
        match self.state {
            State::Completed { at, .. } | State::Cancelled { at, .. } => Some(at),
            _ => None,
        }
    }

    /// Who was asked.
    pub fn sellers(&self) -> &[SellerSide] {
        &self.sellers
    }

    /// What is being settled: the seller, the price, and how far the payment is.
    pub fn settling(&self) -> Option<(Party, Cents, Payment)> {
        match self.state {
            State::Settling { seller, price, payment, .. } => Some((Party::Seller(seller), price, payment)),
            _ => None,
        }
    }

    /// The fee of what is being settled, where it is kept: see [`State::Settling`].
    pub fn fee(&self) -> Option<Amount> {
        match self.state {
            State::Settling { fee, .. } => fee,
            _ => None,
        }
    }

    /// What a seller really offers, in its own words.
    pub fn goods_of(&self, seller: usize) -> Goods {
        let offer = self.sellers.get(seller).and_then(|side| side.offer.as_ref());
        offer.map(|offer| offer.goods.clone()).unwrap_or_default()
    }

    /// Whether this side takes part in a settlement that is under way.
    pub fn is_settling_with(&self, party: Party) -> bool {
        self.settling().is_some_and(|(seller, ..)| party == Party::Buyer || party == seller)
    }

    /// Who would be paid, if the buyer bought now.
    pub fn reserved_seller(&self) -> Option<Party> {
        match self.state {
            State::Reserved { seller, .. } => Some(Party::Seller(seller)),
            _ => None,
        }
    }

    /// Everyone in it.
    pub fn parties(&self) -> impl Iterator<Item = Party> + use<> {
        std::iter::once(Party::Buyer).chain((0..self.sellers.len()).map(Party::Seller))
    }

    /// Whether a side has a part in it: buys, or has offered. Others were only asked.
    pub fn concerns(&self, party: Party) -> bool {
        match party {
            Party::Buyer => true,
            Party::Seller(seller) => self.sellers[seller].offer.is_some(),
        }
    }

    /// The name behind a side.
    pub fn name_of(&self, party: Party) -> &Name {
        match party {
            Party::Buyer => &self.buyer,
            Party::Seller(seller) => &self.sellers[seller].name,
        }
    }

    /// The number that a side knows the deal by.
    pub fn rq_of(&self, party: Party) -> u64 {
        match party {
            Party::Buyer => self.rq,
            Party::Seller(seller) => self.first_rq + seller as u64,
        }
    }

    /// The side that a number stands for.
    pub fn party_of(&self, rq: u64) -> Option<Party> {
        if rq == self.rq {
            return Some(Party::Buyer);
        }
        let seller = usize::try_from(rq.checked_sub(self.first_rq)?).ok()?;
        (seller < self.sellers.len()).then_some(Party::Seller(seller))
    }

    /// The deal as one side sees it; nothing for a seller that never offered.
    pub fn status(&self, party: Party, now: Millis) -> Option<DealStatus> {
        let entry = |state, price, reason| DealStatus {
            rq: self.rq_of(party),
            side: if party == Party::Buyer { Side::Buyer } else { Side::Seller },
            item_name: self.item_name.clone(),
            state,
            price,
            reason,
            offer_item: None,
            offer_description: None,
            ends_in_ms: self
                .window_ends()
                .filter(|_| state != Phase::Cancelled)
                .map(|until| until.0.saturating_sub(now.0)),
        };
        let own_offer = match party {
            Party::Buyer => None,
            Party::Seller(seller) => Some((seller, self.sellers[seller].offer.as_ref()?)),
        };
        let taken = match self.state {
            State::Reserved { seller, price, .. }
            | State::Settling { seller, price, .. }
            | State::Completed { seller, price, .. } => Some((seller, price)),
            _ => None,
        };
        let with_goods = |entry: DealStatus| {
            let seller = own_offer.map(|(seller, _)| seller).or(taken.map(|(seller, _)| seller));
            let goods = seller.map(|seller| self.goods_of(seller)).unwrap_or_default();
            DealStatus { offer_item: goods.item, offer_description: goods.description, ..entry }
        };
        if let Some((seller, offer)) = own_offer {
            let off = match offer.standing {
                Standing::Withdrawn => Some("cancelled by the seller"),
                Standing::Released => Some("released"),
                Standing::Bound => None,
            };
            if let Some(reason) = off.filter(|_| taken.is_none_or(|(taken, _)| taken != seller)) {
                return Some(with_goods(entry(Phase::Cancelled, Some(offer.price), Some(reason.into()))));
            }
        }
        let price = taken.map(|(_, price)| price).or(own_offer.map(|(_, offer)| offer.price));
        Some(with_goods(match &self.state {
            State::Searching { .. } => entry(Phase::Searching, price, None),
            State::Negotiating { .. } => entry(Phase::Negotiating, price, None),
            State::Reserved { .. } => entry(Phase::Reserved, price, None),
            State::Settling { .. } => entry(Phase::Settling, price, None),
            State::Completed { .. } => entry(Phase::Completed, price, None),
            State::Cancelled { reason, .. } => entry(Phase::Cancelled, price, Some(reason.clone())),
        }))
    }
}
