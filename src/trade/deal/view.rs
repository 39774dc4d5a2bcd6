//! Read access to a deal.

use std::sync::Arc;

use serde::Serialize;

use super::{Deal, DealState, OfferStatus, Party, PaymentProgress, SellerSide};
use crate::model::{Cents, Millis, Name};
use crate::trade::wire::{Amount, DealPhase, DealStatus, Goods, Side};

/// A deal as shown to the operator, who sees both sides.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DealSummary {
    pub deal: u64,
    /// When the deal was opened, in Unix seconds.
    pub opened_at: u64,
    pub buyer: Name,
    /// The number by which the buyer knows the deal.
    pub rq: u64,
    /// The item as the buyer named it.
    pub item_name: Arc<str>,
    pub max_price: Cents,
    pub state: DealPhase,
    /// The seller that was chosen, or is being asked for a better price.
    pub seller: Option<Name>,
    pub price: Option<Cents>,
    pub reason: Option<Arc<str>>,
    pub asked: usize,
    /// The time until the current window closes, if one is open; as in DEALS.
    pub ends_in_ms: Option<u64>,
}

impl Deal {
    /// The operator's view of the deal.
    pub fn summary(&self, now: Millis) -> DealSummary {
        let (state, seller, price, reason) = match &self.state {
            DealState::Searching { .. } => (DealPhase::Searching, None, None, None),
            DealState::Negotiating { seller, .. } => (DealPhase::Negotiating, Some(*seller), None, None),
            DealState::Reserved { seller, price, .. } => (DealPhase::Reserved, Some(*seller), Some(*price), None),
            DealState::Settling { seller, price, .. } => (DealPhase::Settling, Some(*seller), Some(*price), None),
            DealState::Completed { seller, price, .. } => (DealPhase::Completed, Some(*seller), Some(*price), None),
            DealState::Cancelled { reason, .. } => (DealPhase::Cancelled, None, None, Some(Arc::clone(reason))),
        };
        DealSummary {
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

    pub fn state(&self) -> &DealState {
        &self.state
    }

    /// When the next tick is due.
    pub fn deadline(&self) -> Option<Millis> {
        match self.state {
            DealState::Searching { until } => Some(self.acks_due.map_or(until, |due| due.min(until))),
            DealState::Negotiating { until, .. } | DealState::Reserved { until, .. } => Some(until),
            _ => None,
        }
    }

    /// When the current window closes. Unlike [`Deal::deadline`] it ignores the acknowledgement deadline.
    fn window_ends(&self) -> Option<Millis> {
        match self.state {
            DealState::Searching { until } => Some(until),
            _ => self.deadline(),
        }
    }

    pub fn ended_at(&self) -> Option<Millis> {
        match self.state {
            DealState::Completed { at, .. } | DealState::Cancelled { at, .. } => Some(at),
            _ => None,
        }
    }

    /// The sellers that were asked.
    pub fn sellers(&self) -> &[SellerSide] {
        &self.sellers
    }

    /// If the deal is being settled: the seller, the price and the progress of the payment.
    pub fn settling(&self) -> Option<(Party, Cents, PaymentProgress)> {
        match self.state {
            DealState::Settling { seller, price, payment, .. } => Some((Party::Seller(seller), price, payment)),
            _ => None,
        }
    }

    /// The recorded fee of a deal that is being settled: see [`DealState::Settling`].
    pub fn fee(&self) -> Option<Amount> {
        match self.state {
            DealState::Settling { fee, .. } => fee,
            _ => None,
        }
    }

    /// What the seller actually offers, in its own words.
    pub fn goods_of(&self, seller: usize) -> Goods {
        let offer = self.sellers.get(seller).and_then(|side| side.offer.as_ref());
        offer.map(|offer| offer.goods.clone()).unwrap_or_default()
    }

    /// Whether this side is part of a settlement in progress.
    pub fn is_settling_with(&self, party: Party) -> bool {
        self.settling().is_some_and(|(seller, ..)| party == Party::Buyer || party == seller)
    }

    /// The seller that would be paid if the buyer bought now.
    pub fn reserved_seller(&self) -> Option<Party> {
        match self.state {
            DealState::Reserved { seller, .. } => Some(Party::Seller(seller)),
            _ => None,
        }
    }

    /// All sides, the buyer first.
    pub fn parties(&self) -> impl Iterator<Item = Party> + use<> {
        std::iter::once(Party::Buyer).chain((0..self.sellers.len()).map(Party::Seller))
    }

    /// Whether this side is the buyer or has made an offer. Other sides were merely asked.
    pub fn takes_part(&self, party: Party) -> bool {
        match party {
            Party::Buyer => true,
            Party::Seller(seller) => self.sellers[seller].offer.is_some(),
        }
    }

    /// The name of the peer on this side.
    pub fn name_of(&self, party: Party) -> &Name {
        match party {
            Party::Buyer => &self.buyer,
            Party::Seller(seller) => &self.sellers[seller].name,
        }
    }

    /// The number by which this side knows the deal.
    pub fn rq_of(&self, party: Party) -> u64 {
        match party {
            Party::Buyer => self.rq,
            Party::Seller(seller) => self.first_rq + seller as u64,
        }
    }

    /// The side that knows the deal by this number.
    pub fn party_of(&self, rq: u64) -> Option<Party> {
        if rq == self.rq {
            return Some(Party::Buyer);
        }
        let seller = usize::try_from(rq.checked_sub(self.first_rq)?).ok()?;
        (seller < self.sellers.len()).then_some(Party::Seller(seller))
    }

    /// The deal as this side sees it; `None` for a seller that never made an offer.
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
                .filter(|_| state != DealPhase::Cancelled)
                .map(|until| until.0.saturating_sub(now.0)),
        };
        let own_offer = match party {
            Party::Buyer => None,
            Party::Seller(seller) => Some((seller, self.sellers[seller].offer.as_ref()?)),
        };
        let taken = match self.state {
            DealState::Reserved { seller, price, .. }
            | DealState::Settling { seller, price, .. }
            | DealState::Completed { seller, price, .. } => Some((seller, price)),
            _ => None,
        };
        let with_goods = |entry: DealStatus| {
            let seller = own_offer.map(|(seller, _)| seller).or(taken.map(|(seller, _)| seller));
            let goods = seller.map(|seller| self.goods_of(seller)).unwrap_or_default();
            DealStatus { offer_item: goods.item, offer_description: goods.description, ..entry }
        };
        if let Some((seller, offer)) = own_offer {
            let off = match offer.status {
                OfferStatus::Withdrawn => Some("cancelled by the seller"),
                OfferStatus::Released => Some("released"),
                OfferStatus::Bound => None,
            };
            if let Some(reason) = off.filter(|_| taken.is_none_or(|(taken, _)| taken != seller)) {
                return Some(with_goods(entry(DealPhase::Cancelled, Some(offer.price), Some(reason.into()))));
            }
        }
        let price = taken.map(|(_, price)| price).or(own_offer.map(|(_, offer)| offer.price));
        Some(with_goods(match &self.state {
            DealState::Searching { .. } => entry(DealPhase::Searching, price, None),
            DealState::Negotiating { .. } => entry(DealPhase::Negotiating, price, None),
            DealState::Reserved { .. } => entry(DealPhase::Reserved, price, None),
            DealState::Settling { .. } => entry(DealPhase::Settling, price, None),
            DealState::Completed { .. } => entry(DealPhase::Completed, price, None),
            DealState::Cancelled { reason, .. } => entry(DealPhase::Cancelled, price, Some(reason.clone())),
        }))
    }
}
