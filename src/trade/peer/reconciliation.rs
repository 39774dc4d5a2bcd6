//! STATUS corrects what this peer missed while it was away, or what was lost on the way.

use std::collections::HashMap;
use std::time::Duration;

use super::{PeerCore, PeerEffects, PurchaseState, SaleState};
use crate::trade::wire::{DealPhase, DealRequest, DealStatus, Goods, RequestBody, Side};

/// An open deal without news is asked about after this time.
const QUIET: Duration = Duration::from_secs(60);
/// During a settlement much happens in little time.
const QUIET_SETTLING: Duration = Duration::from_secs(15);

/// Deals are listed newest first; a number that a REGISTER made available again refers to the newest.
pub fn index_by_rq(deals: &[DealStatus]) -> HashMap<u64, &DealStatus> {
    deals.iter().rev().map(|deal| (deal.rq, deal)).collect()
}

fn goods(deal: &DealStatus) -> Goods {
    Goods { item: deal.offer_item.clone(), description: deal.offer_description.clone() }
}

impl PeerCore {
    /// Asks about all deals, or about one.
    pub(super) fn ask_status(&mut self, about: Option<u64>, effects: &mut PeerEffects) {
        match self.next_rq(effects) {
            Ok(rq) => {
                self.status_requests.insert(rq, (self.step, about));
                effects.requests.push((rq, RequestBody::Status { rq_deal: about }));
            }
            Err(refused) => effects.trouble(None, refused.0),
        }
    }

    /// A notification may have been lost five times in a row.
    pub(super) fn check_quiet_deals(&mut self, effects: &mut PeerEffects) {
        if !self.status_requests.is_empty() {
            return;
        }
        let quiet_for = |settling| if settling { QUIET_SETTLING } else { QUIET };
        let sales = self.sales.values().filter(|sale| !sale.is_over() && !sale.is_pending);
        let mut sales = sales.filter(|sale| sale.state != SaleState::Unknown);
        let mut purchases = self.purchases.values().filter(|it| !it.is_over() && !it.is_pending);
        let due = sales.any(|sale| sale.at.until(self.now) >= quiet_for(sale.state == SaleState::Shipped))
            || purchases.any(|it| it.at.until(self.now) >= quiet_for(it.state == PurchaseState::Buying));
        if due && self.last_check_at.until(self.now) >= QUIET_SETTLING {
            self.last_check_at = self.now;
            self.ask_status(None, effects);
        }
    }

    /// Not applied to deals that changed after `step`, nor to those with a request in progress. `about` is the deal
    /// that was asked about, if it was only one.
    pub(super) fn reconcile(
        &mut self,
        step: u64,
        about: Option<u64>,
        deals: &[DealStatus],
        more: bool,
        effects: &mut PeerEffects,
    ) {
        let listed = index_by_rq(deals);
        let asked_about = |rq: u64| about.is_none_or(|about| about == rq);
        let open_sales = self.sales.values().filter(|sale| !sale.is_over() && !sale.is_pending);
        let sales: Vec<u64> = open_sales.filter(|it| it.changed_step <= step).map(|it| it.rq).collect();
        let open_purchases = self.purchases.values().filter(|it| !it.is_over() && !it.is_pending);
        let purchases: Vec<u64> = open_purchases.filter(|it| it.changed_step <= step).map(|it| it.rq).collect();
        let mut unlisted = Vec::new();
        for rq in sales.into_iter().chain(purchases).filter(|rq| asked_about(*rq)) {
            match listed.get(&rq) {
                Some(deal) if deal.side == Side::Seller => self.reconcile_sale(deal, effects),
                Some(deal) => self.reconcile_purchase(deal, effects),
                None => unlisted.push(rq),
            }
        }
        for rq in unlisted {
            if more && about.is_none() {
                // It did not fit in the list. Such deals are few, and the response for a single one is conclusive.
                self.ask_status(Some(rq), effects);
            } else {
                self.handle_unlisted(rq, effects);
            }
        }
        // They are of a lost data directory, for example: a reservation that nobody here will ever use.
        for deal in deals.iter().filter(|deal| !self.has_deal(deal.rq)) {
            if deal.side == Side::Seller && deal.state == DealPhase::Reserved {
                effects.requests.push((deal.rq, DealRequest::Cancel.about(deal.item_name.clone())));
            }
        }
    }

    fn reconcile_sale(&mut self, deal: &DealStatus, effects: &mut PeerEffects) {
        let rq = deal.rq;
        let Some(state) = self.sales.get(&rq).map(|sale| sale.state) else { return };
        match deal.state {
            DealPhase::Searching | DealPhase::Settling => {}
            DealPhase::Negotiating => {
                if state == SaleState::Accepted
                    && let Some(sale) = self.sales.get(&rq)
                {
                    let body = DealRequest::Accept { max_price: sale.price }.about(sale.item_name.clone());
                    self.change_sale(rq, effects, |sale| sale.is_pending = true);
                    effects.requests.push((rq, body));
                }
            }
            DealPhase::Reserved => {
                if let Some(price) = deal.price {
                    self.reserve(rq, deal.item_name.clone(), price, effects);
                }
            }
            DealPhase::Completed => self.sold(rq, deal.price, None, effects),
            DealPhase::Cancelled => match deal.reason.as_deref() {
                Some("released") if state != SaleState::Released => self.released(rq, effects),
                Some("released") => {}
                reason => self.end_sale(rq, reason.unwrap_or("cancelled"), effects),
            },
        }
    }

    fn reconcile_purchase(&mut self, deal: &DealStatus, effects: &mut PeerEffects) {
        let rq = deal.rq;
        let Some(purchase) = self.purchases.get(&rq) else { return };
        let (state, price, unwanted) = (purchase.state, purchase.price, purchase.unwanted);
        match (deal.state, state) {
            (DealPhase::Reserved, PurchaseState::Buying) => {
                // Our BUY did not arrive.
                self.change_purchase(rq, effects, |purchase| {
                    (purchase.state, purchase.bought_at) = (PurchaseState::Found, None);
                });
                let price = deal.price.or(price).unwrap_or_default();
                self.found(None, rq, deal.item_name.clone(), price, None, goods(deal), effects);
            }
            (DealPhase::Reserved, _) if unwanted || deal.price != price || state == PurchaseState::Searching => {
                if let Some(price) = deal.price {
                    self.found(None, rq, deal.item_name.clone(), price, None, goods(deal), effects);
                }
            }
            (DealPhase::Searching | DealPhase::Negotiating, _) if unwanted => {
                self.change_purchase(rq, effects, |purchase| purchase.is_pending = true);
                effects.requests.push((rq, DealRequest::Cancel.about(deal.item_name.clone())));
            }
            (DealPhase::Completed, _) => self.bought(rq, deal.price, None, effects),
            (DealPhase::Cancelled, _) => match deal.reason.as_deref() {
                Some(reason @ ("NOT_FOUND" | "NOT_AVAILABLE")) => self.search_failed(rq, reason, effects),
                reason => self.end_purchase(rq, reason.unwrap_or("cancelled"), effects),
            },
            (DealPhase::Searching | DealPhase::Negotiating | DealPhase::Reserved | DealPhase::Settling, _) => {}
        }
    }

    /// The deal does not exist on the server or ended too long ago.
    fn handle_unlisted(&mut self, rq: u64, effects: &mut PeerEffects) {
        if self.sales.get(&rq).is_some_and(|sale| sale.state == SaleState::Unknown) {
            return;
        }
        if self.sales.get(&rq).is_some_and(|sale| sale.state == SaleState::Shipped) {
            // It may have been paid, so the unit stays bound until a person has clarified that.
            self.change_sale(rq, effects, |sale| sale.state = SaleState::Unknown);
            let reason = format!(
                "the server does not know any more how deal {rq} ended: ask its operator whether it was paid; \
                 `cancel {rq}` frees the unit"
            );
            effects.trouble(Some(rq), reason);
        } else {
            self.end_deal(rq, "the server does not know of it any more", effects);
        }
    }
}
