//! One deal, from the search to the receipt: its state and its rules (SPEC section 3). No I/O here.
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
//! Whoever drives it makes the [`Effects`] real in one order: what changed is stored, then pushes go
//! out, then the deadline of [`Deal::deadline`] is armed. A late or repeated tick does nothing.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::wire::{Refusal, Side};
use crate::model::{Cents, Millis, Name};

mod parts;
mod rules;
mod said;
mod step;
#[cfg(test)]
mod tests;
mod view;

use self::parts::{Answered, Note, Offer, Outstanding, Standing};
pub use self::parts::{Asked, Kind, Party, Payment, SellerSide, State};
pub use self::step::{Booking, Effects, Event, LogLine, Money, Step, Windows};
pub use self::view::DealLine;

/// Sellers asked for a better price, one after the other, before the buyer is told NOT_FOUND.
const NEGOTIATIONS_MAX: u32 = 5;
/// What every open deal still has, at least, after the server was started again.
const RESUME_MIN: Duration = Duration::from_secs(5);
/// Who acknowledges pushes acknowledges a search within this time, or is not waited for in it.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_millis(1_500);

/// One deal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deal {
    /// Never used twice in the life of the data dir.
    pub id: u64,
    /// Who searches.
    pub buyer: Name,
    /// The buyer's number for it.
    pub rq: u64,
    /// The number of the first seller's side; the others follow.
    pub first_rq: u64,
    /// As the buyer wrote it.
    pub item_name: Arc<str>,
    /// As the buyer wrote it.
    pub description: Arc<str>,
    /// The most the buyer pays.
    pub max_price: Cents,
    /// When it began.
    pub opened_at: Millis,
    state: State,
    offers_made: u32,
    buyer_gone: bool,
    answered: Vec<Answered>,
    outstanding: Option<Outstanding>,
    /// When those who acknowledge what they get must have acknowledged the search.
    #[serde(default)]
    acks_due: Option<Millis>,
    /// Kept in rows of their own: an offer must not rewrite a thousand others.
    #[serde(skip)]
    sellers: Vec<SellerSide>,
}

impl Deal {
    /// Opens a search. `sellers` are those who are asked; their numbers are `first_rq` and the following.
    #[allow(clippy::too_many_arguments)] // what a search consists of, in the order of the message
    pub fn open(
        id: u64,
        buyer: Name,
        rq: u64,
        first_rq: u64,
        item_name: Arc<str>,
        description: Arc<str>,
        max_price: Cents,
        sellers: Vec<Asked>,
        step: &mut Step,
    ) -> (Deal, Effects) {
        let sellers = sellers
            .into_iter()
            .map(|Asked { name, waited_for, acknowledges }| SellerSide {
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
            id,
            buyer,
            rq,
            first_rq,
            item_name,
            description,
            max_price,
            opened_at: step.now,
            state: State::Searching { until: step.now.plus(step.windows.offer) },
            offers_made: 0,
            buyer_gone: false,
            answered: Vec::new(),
            outstanding: None,
            acks_due: Some(step.now.plus(ACKNOWLEDGED_WITHIN)),
            sellers,
        };
        let mut effects = Effects { deal_changed: true, ..Effects::default() };
        effects.sellers_changed = (0..deal.sellers.len()).collect();
        deal.log(&mut effects, "search", Party::Buyer, Some(deal.max_price), &deal.description.clone());
        for seller in 0..deal.sellers.len() {
            deal.tell(Party::Seller(seller), Note::Search, step, &mut effects);
        }
        // Where nobody is waited for the window closes now. Those asked still hear of it, once: that is
        // how they learn that they are to be waited for again.
        if deal.sellers.iter().all(|side| !side.waited_for) {
            effects.told_once = deal.parties().filter_map(|party| Some((party, deal.push(party)?))).collect();
        }
        deal.close_window_if_answered(step, &mut effects);
        (deal, effects)
    }

    /// Stands where a deal is about to be, locked until [`Deal::open`] has made it.
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
            state: State::Searching { until: Millis::default() },
            offers_made: 0,
            buyer_gone: false,
            answered: Vec::new(),
            outstanding: None,
            acks_due: None,
            sellers: Vec::new(),
        }
    }

    /// Puts a deal together again from its rows. `sellers` in the order of their numbers.
    pub fn from_rows(deal: Deal, sellers: Vec<SellerSide>) -> Deal {
        Deal { sellers, ..deal }
    }

    /// After a restart: deadlines hold, but everyone gets a little time to come back, and a clock that
    /// was set back never makes a window longer than it is.
    pub fn resume(&mut self, now: Millis, windows: &Windows) {
        let (until, window) = match &mut self.state {
            State::Searching { until } => (until, windows.offer),
            State::Negotiating { until, .. } => (until, windows.negotiate),
            State::Reserved { until, .. } => (until, windows.reserve),
            _ => return,
        };
        *until = (*until).min(now.plus(window)).max(now.plus(RESUME_MIN));
        // The search goes out again, and whoever gets it acknowledges it now.
        self.acks_due = self.acks_due.map(|_| now.plus(ACKNOWLEDGED_WITHIN));
    }

    /// Takes one event. An `Err` means that nothing changed.
    pub fn handle(&mut self, event: Event, step: &mut Step) -> Result<Effects, Refusal> {
        let mut effects = Effects::default();
        match event {
            Event::Ask { party, kind, item_name, amount, goods } => {
                let asked = Answered { kind, amount };
                if self.repeats(party, asked, item_name, goods)? {
                    return Ok(effects);
                }
                let told_before = self.outstanding_mid(party);
                self.ask(party, kind, amount, goods, step, &mut effects)?;
                // Whoever asks further has read what it was told, or does not want it any more.
                if self.outstanding_mid(party) == told_before {
                    self.drop_outstanding(party);
                }
                self.answered_mut(party).push(asked);
                self.changed(party, &mut effects);
            }
            Event::Tick => self.tick(step, &mut effects),
            Event::Gone(party) => self.gone(party, step, &mut effects),
            Event::Authorised => self.pay(Payment::Asked, Payment::Authorised, &mut effects)?,
            Event::Shipped => self.pay(Payment::Authorised, Payment::Shipped, &mut effects)?,
            Event::Captured => {
                let State::Settling { seller, price, fee, payment: Payment::Shipped } = self.state else {
                    return Err(self.wrong_state());
                };
                effects.money = Some(Booking { money: Money::Capture, seller, price, fee });
                self.log(
                    &mut effects,
                    "purchase",
                    Party::Buyer,
                    Some(price),
                    &format!("from {}", self.sellers[seller].name),
                );
                self.end(State::Completed { seller, price, at: step.now }, &mut effects);
            }
            Event::SettlementFailed(reason) => self.settlement_failed(reason, [reason; 2], step, &mut effects)?,
            Event::Unreached { side: Side::Buyer, reason, detail } => {
                self.settlement_failed(reason, [detail, reason], step, &mut effects)?;
            }
            Event::Unreached { side: Side::Seller, reason, detail } => {
                self.settlement_failed(reason, [reason, detail], step, &mut effects)?;
            }
        }
        Ok(effects)
    }

    /// What is written down, and what the buyer and the seller are told.
    fn settlement_failed(
        &mut self,
        reason: &str,
        [to_buyer, to_seller]: [&str; 2],
        step: &mut Step,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        let State::Settling { seller, price, fee, payment } = self.state else {
            return Err(self.wrong_state());
        };
        let void = Booking { money: Money::Void, seller, price, fee };
        effects.money = (payment > Payment::Asked).then_some(void);
        self.log(effects, "cancel", Party::Buyer, None, reason);
        self.cancel(reason, step, effects);
        self.tell(Party::Buyer, Note::Cancel(to_buyer.into()), step, effects);
        self.tell(Party::Seller(seller), Note::Cancel(to_seller.into()), step, effects);
        Ok(())
    }
}
