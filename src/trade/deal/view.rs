use std::sync::Arc;

use serde::Serialize;

use super::{Deal, DealState, OfferStatus, Party, PaymentProgress, SellerSide};
use crate::model::{Cents, Millis, Name};
use crate::trade::wire::{Amount, DealPhase, DealStatus, Goods, Side};

/// A deal as the operator sees it, who sees both sides.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DealSummary {
    pub deal: u64,
    /// Unix seconds.
    pub opened_at: u64,
    pub buyer: Name,
    pub rq: u64,
    pub item_name: Arc<str>,
    pub max_price: Cents,
    pub state: DealPhase,
    /// The seller that was chosen, or is being asked for a better price.
    pub seller: Option<Name>,
    pub price: Option<Cents>,
    pub reason: Option<Arc<str>>,
    pub asked: usize,
    /// The same as in DEALS.
    pub ends_in_ms: Option<u64>,
}

impl Deal {
    /// The phase, the seller that was chosen or is asked, the price that was agreed, and why the deal was cancelled.
    fn outline(&self) -> (DealPhase, Option<usize>, Option<Cents>, Option<Arc<str>>) {
        match &self.state {
            DealState::Searching { .. } => (DealPhase::Searching, None, None, None),
            DealState::Negotiating { seller, .. } => (DealPhase::Negotiating, Some(*seller), None, None),
            DealState::Reserved { seller, price, .. } => (DealPhase::Reserved, Some(*seller), Some(*price), None),
            DealState::Settling { seller, price, .. } => (DealPhase::Settling, Some(*seller), Some(*price), None),
            DealState::Completed { seller, price, .. } => (DealPhase::Completed, Some(*seller), Some(*price), None),
            DealState::Cancelled { reason, .. } => (DealPhase::Cancelled, None, None, Some(Arc::clone(reason))),
        }
    }

    pub fn summary(&self, now: Millis) -> DealSummary {
        let (state, seller, price, reason) = self.outline();
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

    pub fn deadline(&self) -> Option<Millis> {
        match self.state {
            DealState::Searching { until } => Some(self.acks_due.map_or(until, |due| due.min(until))),
            DealState::Negotiating { until, .. } | DealState::Reserved { until, .. } => Some(until),
            _ => None,
        }
    }

    /// Unlike [`Deal::deadline`] it ignores when acknowledgements are due.
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

    pub fn sellers(&self) -> &[SellerSide] {
        &self.sellers
    }

    /// The seller, the price and the progress of the payment, while the deal is being settled.
    pub fn settling(&self) -> Option<(Party, Cents, PaymentProgress)> {
        match self.state {
            DealState::Settling { seller, price, payment, .. } => Some((Party::Seller(seller), price, payment)),
            _ => None,
        }
    }

    /// See [`DealState::Settling`].
    pub fn fee(&self) -> Option<Amount> {
        match self.state {
            DealState::Settling { fee, .. } => fee,
            _ => None,
        }
    }

    /// What the seller offers, in its own words.
    pub fn goods_of(&self, seller: usize) -> Goods {
        let offer = self.sellers.get(seller).and_then(|side| side.offer.as_ref());
        offer.map(|offer| offer.goods.clone()).unwrap_or_default()
    }

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

    pub fn parties(&self) -> impl Iterator<Item = Party> + use<> {
        std::iter::once(Party::Buyer).chain((0..self.sellers.len()).map(Party::Seller))
    }

    /// The buyer takes part, and a seller with an offer. Other sides were merely asked.
    pub fn takes_part(&self, party: Party) -> bool {
        match party {
            Party::Buyer => true,
            Party::Seller(seller) => self.sellers[seller].offer.is_some(),
        }
    }

    pub fn name_of(&self, party: Party) -> &Name {
        match party {
            Party::Buyer => &self.buyer,
            Party::Seller(seller) => &self.sellers[seller].name,
        }
    }

    pub fn rq_of(&self, party: Party) -> u64 {
        match party {
            Party::Buyer => self.rq,
            Party::Seller(seller) => self.first_rq + seller as u64,
        }
    }

    pub fn party_of(&self, rq: u64) -> Option<Party> {
        if rq == self.rq {
            return Some(Party::Buyer);
        }
        let seller = usize::try_from(rq.checked_sub(self.first_rq)?).ok()?;
        (seller < self.sellers.len()).then_some(Party::Seller(seller))
    }

    /// The deal as this side sees it; `None` for a seller that never made an offer.
    pub fn status(&self, party: Party, now: Millis) -> Option<DealStatus> {
        let (state, chosen, agreed, reason) = self.outline();
        let own_offer = match party {
            Party::Buyer => None,
            Party::Seller(seller) => Some((seller, self.sellers[seller].offer.as_ref()?)),
        };
        let taken = chosen.filter(|_| agreed.is_some());
        let off = own_offer.filter(|(seller, _)| taken != Some(*seller)).and_then(|(_, offer)| match offer.status {
            OfferStatus::Withdrawn => Some("cancelled by the seller"),
            OfferStatus::Released => Some("released"),
            OfferStatus::Bound => None,
        });
        let own_price = own_offer.map(|(_, offer)| offer.price);
        let (state, price, reason) = match off {
            Some(off) => (DealPhase::Cancelled, own_price, Some(off.into())),
            None => (state, agreed.or(own_price), reason),
        };
        let seller = own_offer.map(|(seller, _)| seller).or(taken);
        let goods = seller.map(|seller| self.goods_of(seller)).unwrap_or_default();
        let ends_at = self.window_ends().filter(|_| state != DealPhase::Cancelled);
        Some(DealStatus {
            rq: self.rq_of(party),
            side: if party == Party::Buyer { Side::Buyer } else { Side::Seller },
            item_name: self.item_name.clone(),
            state,
            price,
            reason,
            offer_item: goods.item,
            offer_description: goods.description,
            ends_in_ms: ends_at.map(|until| until.0.saturating_sub(now.0)),
        })
    }
}
