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

use super::wire::{Amount, Code, DealStatus, Phase, Push, Refusal, Side};
use crate::model::{Cents, FeeRate, Millis, Name};

#[cfg(test)]
mod tests;

/// Sellers asked for a better price, one after the other, before the buyer is told NOT_FOUND.
const NEGOTIATIONS_MAX: u32 = 5;
/// What every open deal still has, at least, after the server was started again.
const RESUME_MIN: Duration = Duration::from_secs(5);

/// How long each window is open.
#[derive(Debug, Clone)]
pub struct Windows {
    /// For offers after a search.
    pub offer: Duration,
    /// For each seller asked for a better price.
    pub negotiate: Duration,
    /// For the buyer to buy what was found.
    pub reserve: Duration,
}

/// A side of this deal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Party {
    /// The one who searches.
    Buyer,
    /// One who was asked: its place among them.
    Seller(usize),
}

/// How far the payment is. Each step is on disk before the next begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Payment {
    /// BUY was accepted; the bank may have been asked.
    Asked,
    /// The buyer's card is authorised.
    Authorised,
    /// The seller has shipped: from here on there is no way back but the bank's definite refusal.
    Shipped,
}

/// Where a deal stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum State {
    /// Offers are awaited.
    Searching { until: Millis },
    /// That seller is asked whether it would sell for the maximum.
    Negotiating { seller: usize, until: Millis, round: u32 },
    /// That seller's unit is held for the buyer.
    Reserved { seller: usize, price: Cents, until: Millis },
    /// It is being paid. The fee is that of the moment of BUY, whatever the rate is later; rows from before
    /// it was kept have none.
    Settling { seller: usize, price: Cents, fee: Option<Amount>, payment: Payment },
    /// Charged, shipped, over.
    Completed { seller: usize, price: Cents, at: Millis },
    /// Over without a sale.
    Cancelled { reason: Arc<str>, at: Millis },
}

/// What a side was told last and has not acknowledged. What is told later replaces it: a peer acts on
/// the newest word, and an old RESERVE that arrives after its CANCEL would bind a unit for nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Outstanding {
    mid: u64,
    note: Note,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Note {
    Search,
    Negotiate,
    Reserve(Cents),
    Released,
    Found(Cents, usize),
    NotFound,
    NotAvailable,
    Cancel(Arc<str>),
}

/// A request that was answered: with the same content it gets the same answer again.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Answered {
    kind: Kind,
    amount: Option<Cents>,
}

/// The kinds of request that a deal answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// OFFER
    Offer,
    /// NOT_AVAILABLE
    NotAvailable,
    /// ACCEPT
    Accept,
    /// REFUSE
    Refuse,
    /// BUY
    Buy,
    /// CANCEL
    Cancel,
}

/// What a seller's offer is worth now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Standing {
    /// It binds a unit.
    Bound,
    /// The seller was told RELEASED; it may still be asked.
    Released,
    /// The seller took it back, or left.
    Withdrawn,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Offer {
    price: Cents,
    /// Earlier offers win among equals.
    place: u32,
    standing: Standing,
    /// It was asked for a better price (and has not agreed).
    negotiated: bool,
}

/// The seller's side of a deal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SellerSide {
    /// Who was asked.
    pub name: Name,
    /// Whether the window stays open for it.
    waited_for: bool,
    /// It said OFFER or NOT_AVAILABLE (or left).
    replied: bool,
    gone: bool,
    offer: Option<Offer>,
    answered: Vec<Answered>,
    outstanding: Option<Outstanding>,
}

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
    /// Kept in rows of their own: an offer must not rewrite a thousand others.
    #[serde(skip)]
    sellers: Vec<SellerSide>,
}

/// What money does, beside the deal's own change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Money {
    /// Card to escrow.
    Authorise,
    /// Escrow to payout and fee.
    Capture,
    /// Escrow back to the card.
    Void,
}

/// Money that moves with a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Booking {
    /// Which way.
    pub money: Money,
    /// Who is paid: its place among the sellers.
    pub seller: usize,
    /// What the buyer pays.
    pub price: Cents,
    /// What the house keeps of it: see [`State::Settling`].
    pub fee: Option<Amount>,
}

/// A line for the log of trade.
#[derive(Debug, Clone, PartialEq)]
pub struct LogLine {
    /// What happened: `search`, `offer`, `refuse`, …
    pub kind: &'static str,
    /// Who did it, or to whom it happened.
    pub peer: Name,
    /// The price in question.
    pub price: Option<Cents>,
    /// What a person may want to know besides.
    pub detail: String,
}

/// What a step changed and wants done. Nothing of it has happened yet.
#[derive(Debug, Default)]
pub struct Effects {
    /// The deal's own row changed.
    pub deal_changed: bool,
    /// These sellers' rows changed.
    pub sellers_changed: Vec<usize>,
    /// These have something new to be told (see [`Deal::push`]).
    pub told: Vec<Party>,
    /// Pushes that go out once and are not repeated.
    pub told_once: Vec<(Party, Push)>,
    /// Mids that need not be acknowledged any more.
    pub withdrawn_mids: Vec<u64>,
    /// To be written in the log.
    pub log: Vec<LogLine>,
    /// To be booked with the change.
    pub money: Option<Booking>,
    /// Sellers that let the window pass without a word.
    pub silent: Vec<usize>,
    /// The deal ended in this step.
    pub ended: bool,
}

/// What happens to a deal.
#[derive(Debug, Clone)]
pub enum Event<'a> {
    /// A side asks for something; the item's name and, where the kind has one, the amount it named.
    Ask { party: Party, kind: Kind, item_name: &'a str, amount: Option<Cents> },
    /// Time has passed.
    Tick,
    /// A side has left for good.
    Gone(Party),
    /// The buyer's card is authorised.
    Authorised,
    /// The seller has shipped.
    Shipped,
    /// The charge is captured.
    Captured,
    /// The settlement failed; nothing is or will be charged.
    SettlementFailed(&'a str),
}

/// What a step is given from outside: the time, the windows, the fee's rate, fresh numbers for pushes.
pub struct Step<'a> {
    /// The time.
    pub now: Millis,
    /// How long windows are.
    pub windows: &'a Windows,
    /// What the house takes of what is bought now.
    pub fee: FeeRate,
    /// A number that was never used before.
    pub next_mid: &'a mut dyn FnMut() -> u64,
}

impl Deal {
    /// Opens a search. `sellers` are those who are asked, each with whether the window waits for it;
    /// their numbers are `first_rq` and the following.
    #[allow(clippy::too_many_arguments)] // what a search consists of, in the order of the message
    pub fn open(
        id: u64,
        buyer: Name,
        rq: u64,
        first_rq: u64,
        item_name: Arc<str>,
        description: Arc<str>,
        max_price: Cents,
        sellers: Vec<(Name, bool)>,
        step: &mut Step,
    ) -> (Deal, Effects) {
        let sellers = sellers
            .into_iter()
            .map(|(name, waited_for)| SellerSide {
                name,
                waited_for,
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
    }

    /// Takes one event. An `Err` means that nothing changed.
    pub fn handle(&mut self, event: Event, step: &mut Step) -> Result<Effects, Refusal> {
        let mut effects = Effects::default();
        match event {
            Event::Ask { party, kind, item_name, amount } => {
                let asked = Answered { kind, amount };
                if self.repeats(party, asked, item_name)? {
                    return Ok(effects);
                }
                let told_before = self.outstanding_mid(party);
                self.ask(party, kind, amount, step, &mut effects)?;
                // Whoever asks further has read what it was told, or does not want it any more.
                if self.outstanding_mid(party) == told_before {
                    self.drop_outstanding(party, &mut effects);
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
            Event::SettlementFailed(reason) => {
                let State::Settling { seller, price, fee, payment } = self.state else {
                    return Err(self.wrong_state());
                };
                let void = Booking { money: Money::Void, seller, price, fee };
                effects.money = (payment > Payment::Asked).then_some(void);
                self.log(&mut effects, "cancel", Party::Buyer, None, reason);
                self.cancel(reason, step, &mut effects);
                self.tell(Party::Buyer, Note::Cancel(reason.into()), step, &mut effects);
                self.tell(Party::Seller(seller), Note::Cancel(reason.into()), step, &mut effects);
            }
        }
        Ok(effects)
    }

    // What sides ask for.

    fn ask(
        &mut self,
        party: Party,
        kind: Kind,
        amount: Option<Cents>,
        step: &mut Step,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        match (party, kind) {
            (Party::Seller(seller), Kind::Offer) => self.offer(seller, amount.unwrap_or_default(), step, effects),
            (Party::Seller(seller), Kind::NotAvailable) => self.not_available(seller, step, effects),
            (Party::Seller(seller), Kind::Accept | Kind::Refuse) => self.haggle(seller, kind, amount, step, effects),
            (Party::Seller(seller), Kind::Cancel) => self.seller_cancels(seller, step, effects),
            (Party::Buyer, Kind::Buy) => self.buy(amount.unwrap_or_default(), step, effects),
            (Party::Buyer, Kind::Cancel) => self.buyer_cancels(step, effects),
            _ => Err(Refusal::new(Code::WrongState, "this is not for this side of the deal")),
        }
    }

    fn offer(&mut self, seller: usize, price: Cents, step: &mut Step, effects: &mut Effects) -> Result<(), Refusal> {
        if !matches!(self.state, State::Searching { .. }) {
            return Err(Refusal::new(Code::WrongState, "the window for offers is closed"));
        }
        if self.sellers[seller].replied {
            return Err(Refusal::new(Code::WrongState, "this search is answered already"));
        }
        self.offers_made += 1;
        let place = self.offers_made;
        let side = &mut self.sellers[seller];
        side.replied = true;
        side.offer = Some(Offer { price, place, standing: Standing::Bound, negotiated: false });
        effects.deal_changed = true;
        self.log(effects, "offer", Party::Seller(seller), Some(price), "");
        self.close_window_if_answered(step, effects);
        Ok(())
    }

    fn not_available(&mut self, seller: usize, step: &mut Step, effects: &mut Effects) -> Result<(), Refusal> {
        if !matches!(self.state, State::Searching { .. }) {
            return Err(Refusal::new(Code::WrongState, "the window for offers is closed"));
        }
        if self.sellers[seller].replied {
            return Err(Refusal::new(Code::WrongState, "this search is answered already"));
        }
        self.sellers[seller].replied = true;
        self.log(effects, "not_available", Party::Seller(seller), None, "");
        self.close_window_if_answered(step, effects);
        Ok(())
    }

    fn haggle(
        &mut self,
        seller: usize,
        kind: Kind,
        amount: Option<Cents>,
        step: &mut Step,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        if !matches!(self.state, State::Negotiating { seller: asked, .. } if asked == seller) {
            return Err(Refusal::new(Code::WrongState, "no negotiation is open with this seller"));
        }
        if amount != Some(self.max_price) {
            return Err(Refusal::new(
                Code::BadRequest,
                format!("max_price: expected {}, as in NEGOTIATE", self.max_price),
            ));
        }
        if kind == Kind::Accept {
            if let Some(offer) = &mut self.sellers[seller].offer {
                offer.price = self.max_price;
            }
            self.log(effects, "accept", Party::Seller(seller), amount, "");
            self.reserve(seller, self.max_price, step, effects);
        } else {
            self.log(effects, "refuse", Party::Seller(seller), amount, "");
            self.negotiate_next(step, effects);
        }
        Ok(())
    }

    fn seller_cancels(&mut self, seller: usize, step: &mut Step, effects: &mut Effects) -> Result<(), Refusal> {
        let bound = self.sellers[seller].offer.as_ref().is_some_and(|offer| offer.standing != Standing::Withdrawn);
        if !bound || !self.open_for_cancel() {
            return Err(self.wrong_state());
        }
        self.log(effects, "cancel", Party::Seller(seller), None, "");
        self.withdraw(seller, step, effects);
        Ok(())
    }

    fn buy(&mut self, price: Cents, step: &Step, effects: &mut Effects) -> Result<(), Refusal> {
        let State::Reserved { seller, price: reserved, .. } = self.state else {
            return Err(self.wrong_state());
        };
        if price != reserved {
            return Err(Refusal::new(Code::BadRequest, format!("price: expected {reserved}, as in the newest FOUND")));
        }
        self.state = State::Settling { seller, price, fee: Some(Amount(step.fee.of(price))), payment: Payment::Asked };
        effects.deal_changed = true;
        self.log(effects, "buy", Party::Buyer, Some(price), &format!("from {}", self.sellers[seller].name));
        Ok(())
    }

    fn buyer_cancels(&mut self, step: &mut Step, effects: &mut Effects) -> Result<(), Refusal> {
        if !self.open_for_cancel() {
            return Err(self.wrong_state());
        }
        self.log(effects, "cancel", Party::Buyer, None, "");
        self.call_off("cancelled by the buyer", step, effects);
        Ok(())
    }

    fn open_for_cancel(&self) -> bool {
        matches!(self.state, State::Searching { .. } | State::Negotiating { .. } | State::Reserved { .. })
    }

    // What time and departures do.

    fn tick(&mut self, step: &mut Step, effects: &mut Effects) {
        match self.state {
            State::Searching { until } if until <= step.now => self.close_window(step, effects),
            State::Negotiating { seller, until, .. } if until <= step.now => {
                self.log(effects, "refuse", Party::Seller(seller), Some(self.max_price), "no answer in time");
                self.negotiate_next(step, effects);
            }
            State::Reserved { seller, until, .. } if until <= step.now => {
                let reason = "the reservation ran out";
                self.log(effects, "cancel", Party::Buyer, None, reason);
                self.cancel(reason, step, effects);
                self.tell(Party::Buyer, Note::Cancel(reason.into()), step, effects);
                self.tell(Party::Seller(seller), Note::Cancel(reason.into()), step, effects);
            }
            _ => {}
        }
    }

    fn gone(&mut self, party: Party, step: &mut Step, effects: &mut Effects) {
        self.drop_outstanding(party, effects);
        self.changed(party, effects);
        match party {
            Party::Buyer => {
                self.buyer_gone = true;
                if self.open_for_cancel() {
                    self.call_off("the buyer has left", step, effects);
                }
            }
            Party::Seller(seller) => {
                self.sellers[seller].gone = true;
                self.sellers[seller].replied = true;
                self.withdraw(seller, step, effects);
            }
        }
    }

    // The rules that several events share.

    /// The seller's offer is off: a search no longer waits for it, a negotiation goes to the next, a
    /// reservation to the next offer at or below the maximum.
    fn withdraw(&mut self, seller: usize, step: &mut Step, effects: &mut Effects) {
        if let Some(offer) = &mut self.sellers[seller].offer {
            offer.standing = Standing::Withdrawn;
            effects.sellers_changed.push(seller);
        }
        match self.state {
            State::Searching { .. } => self.close_window_if_answered(step, effects),
            State::Negotiating { seller: asked, .. } if asked == seller => self.negotiate_next(step, effects),
            State::Reserved { seller: taken, .. } if taken == seller => {
                match self.cheapest(|offer, max| offer.price <= max) {
                    Some((next, price)) => self.reserve(next, price, step, effects),
                    None => {
                        let reason = "the seller has cancelled";
                        self.cancel(reason, step, effects);
                        self.tell(Party::Buyer, Note::Cancel(reason.into()), step, effects);
                    }
                }
            }
            _ => {}
        }
    }

    fn close_window_if_answered(&mut self, step: &mut Step, effects: &mut Effects) {
        let searching = matches!(self.state, State::Searching { .. });
        if searching && self.sellers.iter().all(|side| side.replied || !side.waited_for) {
            self.close_window(step, effects);
        }
    }

    fn close_window(&mut self, step: &mut Step, effects: &mut Effects) {
        effects.silent.extend((0..self.sellers.len()).filter(|&seller| !self.sellers[seller].replied));
        self.drop_searches(effects);
        match self.cheapest(|_, _| true) {
            None => {
                self.cancel("NOT_AVAILABLE", step, effects);
                self.log(effects, "not_available", Party::Buyer, None, "no offer");
                self.tell(Party::Buyer, Note::NotAvailable, step, effects);
            }
            Some((seller, price)) if price <= self.max_price => self.reserve(seller, price, step, effects),
            Some(_) => self.negotiate_next(step, effects),
        }
    }

    /// Asks the cheapest seller that was not asked yet; when there is none (or five have refused), the
    /// buyer is told NOT_FOUND.
    fn negotiate_next(&mut self, step: &mut Step, effects: &mut Effects) {
        let round = if let State::Negotiating { round, .. } = self.state { round } else { 0 };
        let next = self.cheapest(|offer, _| !offer.negotiated).filter(|_| round < NEGOTIATIONS_MAX);
        effects.deal_changed = true;
        let Some((seller, _)) = next else {
            self.cancel("NOT_FOUND", step, effects);
            self.log(effects, "not_found", Party::Buyer, Some(self.max_price), "every offer is above the maximum");
            self.release_offers(None, step, effects);
            self.tell(Party::Buyer, Note::NotFound, step, effects);
            return;
        };
        if let Some(offer) = &mut self.sellers[seller].offer {
            offer.negotiated = true;
        }
        self.state = State::Negotiating { seller, until: step.now.plus(step.windows.negotiate), round: round + 1 };
        self.log(effects, "negotiate", Party::Seller(seller), Some(self.max_price), "");
        self.tell(Party::Seller(seller), Note::Negotiate, step, effects);
    }

    fn reserve(&mut self, seller: usize, price: Cents, step: &mut Step, effects: &mut Effects) {
        self.state = State::Reserved { seller, price, until: step.now.plus(step.windows.reserve) };
        if let Some(offer) = &mut self.sellers[seller].offer {
            offer.standing = Standing::Bound;
        }
        effects.deal_changed = true;
        self.log(effects, "reserve", Party::Seller(seller), Some(price), "");
        self.tell(Party::Seller(seller), Note::Reserve(price), step, effects);
        self.tell(Party::Buyer, Note::Found(price, seller), step, effects);
        self.release_offers(Some(seller), step, effects);
    }

    /// The cheapest offer that still counts, earlier ones first; `fits` sees the offer and the maximum.
    fn cheapest(&self, fits: impl Fn(&Offer, Cents) -> bool) -> Option<(usize, Cents)> {
        let offers = self.sellers.iter().enumerate().filter_map(|(seller, side)| Some((seller, side.offer.as_ref()?)));
        offers
            .filter(|(_, offer)| offer.standing != Standing::Withdrawn && fits(offer, self.max_price))
            .min_by_key(|(_, offer)| (offer.price, offer.place))
            .map(|(seller, offer)| (seller, offer.price))
    }

    /// Tells everyone whose offer still binds, but for the one that was taken.
    fn release_offers(&mut self, taken: Option<usize>, step: &mut Step, effects: &mut Effects) {
        for seller in (0..self.sellers.len()).filter(|&seller| Some(seller) != taken) {
            if let Some(offer) = self.sellers[seller].offer.as_mut().filter(|offer| offer.standing == Standing::Bound) {
                offer.standing = Standing::Released;
                self.tell(Party::Seller(seller), Note::Released, step, effects);
            }
        }
    }

    /// The buyer's side is off: the seller it stood with gets CANCEL, the others RELEASED.
    fn call_off(&mut self, reason: &str, step: &mut Step, effects: &mut Effects) {
        let with = match self.state {
            State::Negotiating { seller, .. } | State::Reserved { seller, .. } => Some(seller),
            _ => None,
        };
        self.cancel(reason, step, effects);
        if let Some(seller) = with {
            self.tell(Party::Seller(seller), Note::Cancel(reason.into()), step, effects);
        }
        self.release_offers(with, step, effects);
        self.drop_searches(effects);
    }

    /// A search is not repeated after its window.
    fn drop_searches(&mut self, effects: &mut Effects) {
        for seller in 0..self.sellers.len() {
            if matches!(self.sellers[seller].outstanding, Some(Outstanding { note: Note::Search, .. })) {
                self.drop_outstanding(Party::Seller(seller), effects);
                effects.sellers_changed.push(seller);
            }
        }
    }

    fn cancel(&mut self, reason: &str, step: &Step, effects: &mut Effects) {
        self.end(State::Cancelled { reason: reason.into(), at: step.now }, effects);
    }

    fn end(&mut self, state: State, effects: &mut Effects) {
        debug_assert!(self.ended_at().is_none(), "a deal ends once");
        self.state = state;
        effects.deal_changed = true;
        effects.ended = true;
    }

    fn pay(&mut self, from: Payment, to: Payment, effects: &mut Effects) -> Result<(), Refusal> {
        match &mut self.state {
            State::Settling { seller, price, fee, payment } if *payment == from => {
                *payment = to;
                let authorise = Booking { money: Money::Authorise, seller: *seller, price: *price, fee: *fee };
                effects.money = (to == Payment::Authorised).then_some(authorise);
            }
            _ => return Err(self.wrong_state()),
        }
        effects.deal_changed = true;
        Ok(())
    }

    fn wrong_state(&self) -> Refusal {
        let state = match &self.state {
            State::Searching { .. } => "offers are still awaited".to_owned(),
            State::Negotiating { .. } => "a price is being negotiated".to_owned(),
            State::Reserved { .. } => "it is reserved".to_owned(),
            State::Settling { .. } => "it is being settled".to_owned(),
            State::Completed { .. } => "it is completed".to_owned(),
            State::Cancelled { reason, .. } => format!("it is cancelled: {reason}"),
        };
        Refusal::new(Code::WrongState, state)
    }

    // Requests once, pushes until acknowledged.

    /// Whether the same was asked and answered before. With other content it is refused: a number
    /// stands for one request.
    fn repeats(&self, party: Party, asked: Answered, item_name: &str) -> Result<bool, Refusal> {
        let answered = match party {
            Party::Buyer => &self.answered,
            Party::Seller(seller) => &self.sellers[seller].answered,
        };
        let before = answered.iter().find(|before| before.kind == asked.kind);
        let same_item = item_name == &*self.item_name;
        match before {
            Some(before) if same_item && before.amount == asked.amount => Ok(true),
            Some(_) => Err(Refusal::new(Code::BadRequest, "rq already used")),
            None if same_item => Ok(false),
            None => Err(Refusal::new(
                Code::BadRequest,
                format!("item_name: expected {:?}, as in the search", self.item_name),
            )),
        }
    }

    fn answered_mut(&mut self, party: Party) -> &mut Vec<Answered> {
        match party {
            Party::Buyer => &mut self.answered,
            Party::Seller(seller) => &mut self.sellers[seller].answered,
        }
    }

    fn changed(&self, party: Party, effects: &mut Effects) {
        match party {
            Party::Buyer => effects.deal_changed = true,
            Party::Seller(seller) => effects.sellers_changed.push(seller),
        }
    }

    fn outstanding(&self, party: Party) -> Option<&Outstanding> {
        match party {
            Party::Buyer => self.outstanding.as_ref(),
            Party::Seller(seller) => self.sellers[seller].outstanding.as_ref(),
        }
    }

    fn outstanding_mut(&mut self, party: Party) -> &mut Option<Outstanding> {
        match party {
            Party::Buyer => &mut self.outstanding,
            Party::Seller(seller) => &mut self.sellers[seller].outstanding,
        }
    }

    fn drop_outstanding(&mut self, party: Party, effects: &mut Effects) {
        effects.withdrawn_mids.extend(self.outstanding_mut(party).take().map(|old| old.mid));
    }

    fn tell(&mut self, party: Party, note: Note, step: &mut Step, effects: &mut Effects) {
        let gone = match party {
            Party::Buyer => self.buyer_gone,
            Party::Seller(seller) => self.sellers[seller].gone,
        };
        if gone {
            return;
        }
        self.drop_outstanding(party, effects);
        *self.outstanding_mut(party) = Some(Outstanding { mid: (step.next_mid)(), note });
        self.changed(party, effects);
        // Only the newest word of a step goes out.
        if !effects.told.contains(&party) {
            effects.told.push(party);
        }
    }

    /// What this side is to be told until it acknowledges.
    pub fn push(&self, party: Party) -> Option<Push> {
        let Outstanding { mid, note } = self.outstanding(party)?;
        let (mid, rq, item_name) = (*mid, self.rq_of(party), self.item_name.clone());
        Some(match note {
            Note::Search => Push::Search { rq, mid, item_name, description: self.description.clone() },
            Note::Negotiate => Push::Negotiate { rq, mid, item_name, max_price: self.max_price },
            Note::Reserve(price) => Push::Reserve { rq, mid, item_name, price: *price },
            Note::Released => Push::Released { rq, mid, item_name },
            Note::Found(price, seller) => {
                Push::Found { rq, mid, item_name, price: *price, seller: self.sellers[*seller].name.clone() }
            }
            Note::NotFound => Push::NotFound { rq, mid, item_name, max_price: self.max_price },
            Note::NotAvailable => Push::NotAvailable { rq, mid, item_name },
            Note::Cancel(reason) => Push::Cancel { rq, mid, item_name, reason: reason.clone() },
        })
    }

    /// The number of the push that this side has not acknowledged.
    pub fn outstanding_mid(&self, party: Party) -> Option<u64> {
        self.outstanding(party).map(|outstanding| outstanding.mid)
    }

    /// The side has got this push. False if nothing of that number is outstanding.
    pub fn acknowledge(&mut self, party: Party, mid: u64) -> bool {
        let known = self.outstanding_mid(party) == Some(mid);
        if known {
            *self.outstanding_mut(party) = None;
        }
        known
    }

    fn log(&self, effects: &mut Effects, kind: &'static str, party: Party, price: Option<Cents>, detail: &str) {
        effects.log.push(LogLine { kind, peer: self.name_of(party).clone(), price, detail: detail.to_owned() });
    }

    // Questions.

    /// Where it stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// When time will change something by itself.
    pub fn deadline(&self) -> Option<Millis> {
        match self.state {
            State::Searching { until } | State::Negotiating { until, .. } | State::Reserved { until, .. } => {
                Some(until)
            }
            _ => None,
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
            ends_in_ms: self
                .deadline()
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
        if let Some((seller, offer)) = own_offer {
            let off = match offer.standing {
                Standing::Withdrawn => Some("cancelled by the seller"),
                Standing::Released => Some("released"),
                Standing::Bound => None,
            };
            if let Some(reason) = off.filter(|_| taken.is_none_or(|(taken, _)| taken != seller)) {
                return Some(entry(Phase::Cancelled, Some(offer.price), Some(reason.into())));
            }
        }
        let price = taken.map(|(_, price)| price).or(own_offer.map(|(_, offer)| offer.price));
        Some(match &self.state {
            State::Searching { .. } => entry(Phase::Searching, price, None),
            State::Negotiating { .. } => entry(Phase::Negotiating, price, None),
            State::Reserved { .. } => entry(Phase::Reserved, price, None),
            State::Settling { .. } => entry(Phase::Settling, price, None),
            State::Completed { .. } => entry(Phase::Completed, price, None),
            State::Cancelled { reason, .. } => entry(Phase::Cancelled, price, Some(reason.clone())),
        })
    }
}
