//! The state machine of one deal, from the search to the receipt (`docs/spec/trade.md`). It does no I/O.
//!
//! ```text
//!            offers in time            every offer above the maximum
//! Searching ────────────────┬────────► Negotiating ──── all refuse ───► Cancelled (NOT_FOUND)
//!     │ no offer            │               │ one accepts
//!     ▼                     ▼               ▼
//! Cancelled            Reserved ◄───────────┘     seller cancels: the next offer is taken
//! (NOT_AVAILABLE)           │ BUY
//!                           ▼
//!                       Settling (asked ► authorised ► shipped) ───► Completed
//! ```
//!
//! The caller applies the [`DealEffects`] in a fixed order: it stores the changes, then sends the notifications, then
//! arms a timer for [`Deal::deadline`]. A late or repeated tick has no effect.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::wire::{RequestError, Side};
use crate::model::{Cents, Millis, Name};

mod messaging;
mod rules;
mod state;
#[cfg(test)]
mod tests;
mod transition;
mod view;

use self::messaging::{NotificationBody, OutstandingNotification};
use self::state::{AnsweredRequest, Offer, OfferStatus};
pub use self::state::{DealState, Party, PaymentProgress, SearchRecipient, SellerSide};
use self::transition::DealStep;
pub use self::transition::{DealContext, DealEffects, DealInput, DealLogEntry, DealPosting, LedgerOperation, Windows};
pub use self::view::DealSummary;

/// How many sellers are asked for a better price, one after the other, before the buyer is told NOT_FOUND.
const NEGOTIATIONS_MAX: u32 = 5;
/// The minimum that remains to every open deal after a restart of the server.
const RESUME_MIN: Duration = Duration::from_secs(5);
/// If a peer that usually acknowledges has not done so for a search within this time, the search does not wait for it.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_millis(1_500);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deal {
    /// Unique for the lifetime of the data directory.
    pub id: u64,
    pub buyer: Name,
    /// The number by which the buyer knows the deal.
    pub rq: u64,
    /// The number of the first seller's side; the other sellers have the following ones.
    pub first_rq: u64,
    pub item_name: Arc<str>,
    pub description: Arc<str>,
    pub max_price: Cents,
    pub opened_at: Millis,
    state: DealState,
    offers_made: u32,
    buyer_gone: bool,
    answered: Vec<AnsweredRequest>,
    outstanding: Option<OutstandingNotification>,
    /// When the recipients that acknowledge notifications must have acknowledged the search.
    #[serde(default)]
    acks_due: Option<Millis>,
    /// Stored in rows of their own, so that one offer does not rewrite up to a thousand other sides.
    #[serde(skip)]
    sellers: Vec<SellerSide>,
}

impl Deal {
    /// Opens a search; the sides of `sellers` are numbered from `first_rq` on.
    #[allow(clippy::too_many_arguments)] // what a search consists of, in the order of the message
    pub fn open(
        id: u64,
        buyer: Name,
        rq: u64,
        first_rq: u64,
        item_name: Arc<str>,
        description: Arc<str>,
        max_price: Cents,
        sellers: Vec<SearchRecipient>,
        context: &mut DealContext,
    ) -> (Deal, DealEffects) {
        let sellers = sellers
            .into_iter()
            .map(|SearchRecipient { name, waited_for, acknowledges }| SellerSide {
                name,
                waited_for,
                acknowledges,
                replied: false,
                gone: false,
                offer: None,
                answered: Vec::new(),
                outstanding: None,
            })
            .collect();
        let mut deal = Deal {
            first_rq,
            item_name,
            description,
            max_price,
            opened_at: context.now,
            state: DealState::Searching { until: context.now.plus(context.windows.offer) },
            acks_due: Some(context.now.plus(ACKNOWLEDGED_WITHIN)),
            sellers,
            ..Deal::placeholder(id, buyer, rq)
        };
        let sellers_changed = (0..deal.sellers.len()).collect();
        let effects = DealEffects { deal_changed: true, sellers_changed, ..DealEffects::default() };
        let mut step = DealStep { context, effects };
        deal.log(&mut step, "search", Party::Buyer, Some(deal.max_price), &deal.description.clone());
        for seller in 0..deal.sellers.len() {
            deal.notify(Party::Seller(seller), NotificationBody::Search, &mut step);
        }
        // If there is nobody to wait for, the window closes now. The recipients are still notified once: who responds
        // is waited for again.
        if deal.sellers.iter().all(|side| !side.waited_for) {
            step.effects.notify_once =
                deal.parties().filter_map(|party| Some((party, deal.outstanding_notification(party)?))).collect();
        }
        deal.close_window_if_answered(&mut step);
        (deal, step.effects)
    }

    /// Stands in, locked, until [`Deal::open`] has created the deal.
    pub fn placeholder(id: u64, buyer: Name, rq: u64) -> Deal {
        Deal {
            id,
            buyer,
            rq,
            first_rq: 0,
            item_name: "".into(),
            description: "".into(),
            max_price: Cents::default(),
            opened_at: Millis::default(),
            state: DealState::Searching { until: Millis::default() },
            offers_made: 0,
            buyer_gone: false,
            answered: Vec::new(),
            outstanding: None,
            acks_due: None,
            sellers: Vec::new(),
        }
    }

    /// `sellers` must be in the order of their numbers.
    pub fn from_rows(deal: Deal, sellers: Vec<SellerSide>) -> Deal {
        Deal { sellers, ..deal }
    }

    /// After a restart deadlines stay valid, but every window is open for a minimum so that peers can come back, and
    /// none is longer than configured if the clock was set back.
    pub fn resume(&mut self, now: Millis, windows: &Windows) {
        let (until, window) = match &mut self.state {
            DealState::Searching { until } => (until, windows.offer),
            DealState::Negotiating { until, .. } => (until, windows.negotiate),
            DealState::Reserved { until, .. } => (until, windows.reserve),
            _ => return,
        };
        *until = (*until).min(now.plus(window)).max(now.plus(RESUME_MIN));
        // The search is sent again, so its acknowledgements are due anew.
        self.acks_due = self.acks_due.map(|_| now.plus(ACKNOWLEDGED_WITHIN));
    }

    /// Handles one input; one that is refused changes nothing.
    pub fn handle(&mut self, input: DealInput, context: &mut DealContext) -> Result<DealEffects, RequestError> {
        let mut step = DealStep { context, effects: DealEffects::default() };
        match input {
            DealInput::Request { party, item_name, request } => {
                let asked = AnsweredRequest { kind: request.kind(), amount: request.amount() };
                if self.is_repeat(party, asked, item_name, request)? {
                    return Ok(step.effects);
                }
                let mid_before = self.outstanding_mid(party);
                self.apply_request(party, request, &mut step)?;
                // A side that makes a further request has seen its outstanding notification, or no longer needs it.
                if self.outstanding_mid(party) == mid_before {
                    self.clear_outstanding(party);
                }
                self.answered_requests_mut(party).push(asked);
                self.mark_changed(party, &mut step);
            }
            DealInput::Tick => self.tick(&mut step),
            DealInput::Departed(party) => self.depart(party, &mut step),
            DealInput::Authorised => {
                self.advance_payment(PaymentProgress::Asked, PaymentProgress::Authorised, &mut step)?
            }
            DealInput::Shipped => {
                self.advance_payment(PaymentProgress::Authorised, PaymentProgress::Shipped, &mut step)?
            }
            DealInput::Captured => {
                let DealState::Settling { seller, price, fee, payment: PaymentProgress::Shipped } = self.state else {
                    return Err(self.wrong_state());
                };
                step.effects.posting = Some(DealPosting { operation: LedgerOperation::Capture, seller, price, fee });
                let from = format!("from {}", self.sellers[seller].name);
                self.log(&mut step, "purchase", Party::Buyer, Some(price), &from);
                self.end(DealState::Completed { seller, price, at: step.context.now }, &mut step);
            }
            DealInput::SettlementFailed(reason) => self.settlement_failed(reason, [reason; 2], &mut step)?,
            DealInput::Unreachable { side, reason, detail } => {
                let texts = if side == Side::Buyer { [detail, reason] } else { [reason, detail] };
                self.settlement_failed(reason, texts, &mut step)?;
            }
        }
        Ok(step.effects)
    }

    /// `reason` is logged; each side is told its own text.
    fn settlement_failed(
        &mut self,
        reason: &str,
        [to_buyer, to_seller]: [&str; 2],
        step: &mut DealStep,
    ) -> Result<(), RequestError> {
        let DealState::Settling { seller, price, fee, payment } = self.state else {
            return Err(self.wrong_state());
        };
        let void = DealPosting { operation: LedgerOperation::Void, seller, price, fee };
        step.effects.posting = (payment > PaymentProgress::Asked).then_some(void);
        self.log(step, "cancel", Party::Buyer, None, reason);
        self.cancel(reason, step);
        self.notify(Party::Buyer, NotificationBody::Cancel(to_buyer.into()), step);
        self.notify(Party::Seller(seller), NotificationBody::Cancel(to_seller.into()), step);
        Ok(())
    }
}
