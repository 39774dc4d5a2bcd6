//! Squaring with the server: what STATUS says sets right what this peer missed while it was away, or
//! what was lost on the way.

use std::collections::HashMap;
use std::time::Duration;

use super::{Core, Effects, Note, PurchaseState, SaleState};
use crate::model::Millis;
use crate::trade::wire::{Ask, DealStatus, Goods, Phase, Side};

/// An open deal of which nothing was heard for this long is asked about.
const QUIET: Duration = Duration::from_secs(60);
/// The same while money is about to move, when the server has much to say in little time.
const QUIET_SETTLING: Duration = Duration::from_secs(15);

/// The deals of an answer to STATUS by their numbers. They are listed newest first; where a REGISTER let a
/// number be used again, it stands for the newest.
pub fn by_number(deals: &[DealStatus]) -> HashMap<u64, &DealStatus> {
    deals.iter().rev().map(|deal| (deal.rq, deal)).collect()
}

fn goods(deal: &DealStatus) -> Goods {
    Goods { item: deal.offer_item.clone(), description: deal.offer_description.clone() }
}

impl Core {
    /// Asks how our deals stand, or how one does.
    pub(super) fn ask_status(&mut self, about: Option<u64>, fx: &mut Effects) {
        match self.number(fx) {
            Ok(rq) => {
                self.asked.insert(rq, (self.step, about));
                fx.requests.push((rq, Ask::Status { rq_deal: about }));
            }
            Err(refused) => fx.notes.push(Note::Trouble { rq: None, reason: refused.0 }),
        }
    }

    /// Asks about deals that were quiet for long: a push may have been lost five times in a row.
    pub(super) fn look_after(&mut self, now: Millis, fx: &mut Effects) {
        if !self.asked.is_empty() {
            return;
        }
        let quiet_for = |settling| if settling { QUIET_SETTLING } else { QUIET };
        let sales = self.sales.values().filter(|sale| !sale.is_over() && !sale.pending);
        let mut sales = sales.filter(|sale| sale.state != SaleState::Unknown);
        let mut purchases = self.purchases.values().filter(|it| !it.is_over() && !it.pending);
        let due = sales.any(|sale| sale.at.until(now) >= quiet_for(sale.state == SaleState::Shipped))
            || purchases.any(|it| it.at.until(now) >= quiet_for(it.state == PurchaseState::Buying));
        if due && self.looked_at.until(now) >= QUIET_SETTLING {
            self.looked_at = now;
            self.ask_status(None, fx);
        }
    }

    /// Holds the server's list against ours. What changed after `step` is not held against it, nor what
    /// a request is under way for; `about` is the one deal that was asked about.
    pub(super) fn square(
        &mut self,
        now: Millis,
        step: u64,
        about: Option<u64>,
        deals: &[DealStatus],
        more: bool,
        fx: &mut Effects,
    ) {
        let listed = by_number(deals);
        let asked_about = |rq: u64| about.is_none_or(|about| about == rq);
        let open_sales = self.sales.values().filter(|sale| !sale.is_over() && !sale.pending);
        let sales: Vec<u64> = open_sales.filter(|it| it.changed_in <= step).map(|it| it.rq).collect();
        let open_purchases = self.purchases.values().filter(|it| !it.is_over() && !it.pending);
        let purchases: Vec<u64> = open_purchases.filter(|it| it.changed_in <= step).map(|it| it.rq).collect();
        let mut unlisted = Vec::new();
        for rq in sales.into_iter().chain(purchases).filter(|rq| asked_about(*rq)) {
            match listed.get(&rq) {
                Some(deal) if deal.side == Side::Seller => self.square_sale(now, deal, fx),
                Some(deal) => self.square_purchase(now, deal, fx),
                None => unlisted.push(rq),
            }
        }
        for rq in unlisted {
            if more && about.is_none() {
                // It did not fit. Few of these wait at a time: the answer to each is the last word.
                self.ask_status(Some(rq), fx);
            } else {
                self.not_listed(now, rq, fx);
            }
        }
        // Of a data dir that was lost, say: a reservation that nobody here will ever buy.
        for deal in deals.iter().filter(|deal| !self.knows(deal.rq)) {
            if deal.side == Side::Seller && deal.state == Phase::Reserved {
                fx.requests.push((deal.rq, Ask::Cancel { item_name: deal.item_name.clone() }));
            }
        }
    }

    fn square_sale(&mut self, now: Millis, deal: &DealStatus, fx: &mut Effects) {
        let rq = deal.rq;
        let Some(state) = self.sales.get(&rq).map(|sale| sale.state) else { return };
        match deal.state {
            Phase::Searching | Phase::Settling => {}
            Phase::Negotiating => {
                if state == SaleState::Accepted
                    && let Some(sale) = self.sales.get(&rq)
                {
                    let ask = Ask::Accept { item_name: sale.item_name.clone(), max_price: sale.price };
                    self.change_sale(now, rq, fx, |sale| sale.pending = true);
                    fx.requests.push((rq, ask));
                }
            }
            Phase::Reserved => {
                if let Some(price) = deal.price {
                    self.reserve(now, rq, deal.item_name.clone(), price, fx);
                }
            }
            Phase::Completed => self.sold(now, rq, deal.price, None, fx),
            Phase::Cancelled => match deal.reason.as_deref() {
                Some("released") if state != SaleState::Released => self.released(now, rq, fx),
                Some("released") => {}
                reason => self.end_sale(now, rq, reason.unwrap_or("cancelled"), fx),
            },
        }
    }

    fn square_purchase(&mut self, now: Millis, deal: &DealStatus, fx: &mut Effects) {
        let rq = deal.rq;
        let Some(purchase) = self.purchases.get(&rq) else { return };
        let (state, price, unwanted) = (purchase.state, purchase.price, purchase.unwanted);
        match (deal.state, state) {
            (Phase::Reserved, PurchaseState::Buying) => {
                // Our BUY did not arrive.
                self.change_purchase(now, rq, fx, |purchase| {
                    (purchase.state, purchase.bought_at) = (PurchaseState::Found, None);
                });
                let price = deal.price.or(price).unwrap_or_default();
                self.found(now, None, rq, deal.item_name.clone(), price, None, goods(deal), fx);
            }
            (Phase::Reserved, _) if unwanted || deal.price != price || state == PurchaseState::Searching => {
                if let Some(price) = deal.price {
                    self.found(now, None, rq, deal.item_name.clone(), price, None, goods(deal), fx);
                }
            }
            (Phase::Searching | Phase::Negotiating, _) if unwanted => {
                self.change_purchase(now, rq, fx, |purchase| purchase.pending = true);
                fx.requests.push((rq, Ask::Cancel { item_name: deal.item_name.clone() }));
            }
            (Phase::Completed, _) => self.bought(now, rq, deal.price, None, fx),
            (Phase::Cancelled, _) => match deal.reason.as_deref() {
                Some(reason @ ("NOT_FOUND" | "NOT_AVAILABLE")) => self.search_failed(now, rq, reason, fx),
                reason => self.end_purchase(now, rq, reason.unwrap_or("cancelled"), fx),
            },
            (Phase::Searching | Phase::Negotiating | Phase::Reserved | Phase::Settling, _) => {}
        }
    }

    /// The server has no such deal, or it ended too long ago.
    fn not_listed(&mut self, now: Millis, rq: u64, fx: &mut Effects) {
        if self.sales.get(&rq).is_some_and(|sale| sale.state == SaleState::Unknown) {
            return;
        }
        if self.sales.get(&rq).is_some_and(|sale| sale.state == SaleState::Shipped) {
            // It may have been paid: the unit stays held until a person knows.
            self.change_sale(now, rq, fx, |sale| sale.state = SaleState::Unknown);
            let reason = format!(
                "the server does not know any more how deal {rq} ended: ask its operator whether it was paid; \
                 `cancel {rq}` frees the unit"
            );
            fx.notes.push(Note::Trouble { rq: Some(rq), reason });
        } else {
            self.called_off(now, rq, "the server does not know of it any more", fx);
        }
    }
}
