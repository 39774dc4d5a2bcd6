//! A trading peer: a person's stall and shopping list. This file and those of the core know no socket,
//! thread, clock, file or database; [`node`] is where they meet the world.
//!
//! The rules (SPEC section 3): a search is answered without asking anyone, with the price of the item
//! that matches best and of which a unit is free. An offer binds one unit until it is RELEASED,
//! cancelled or settled, so that never more is promised than there is. Whoever drives the core makes
//! its [`Effects`] real in one order: store the changes, then acknowledge, then send.
//!
//! | file | holds |
//! |---|---|
//! | `stall.rs` | items, what matches a search, the seller's side of deals |
//! | `shopping.rs` | the buyer's side of deals |
//! | `squaring.rs` | how the server's STATUS sets right what was missed |
//! | `node.rs` | a running peer: core, [`client`](super::client) and store |
//! | `store.rs`, `wallet.rs`, `catalogue.rs` | its files |

pub mod catalogue;
pub mod node;
mod shopping;
mod squaring;
mod stall;
pub mod store;
#[cfg(test)]
mod tests;
pub mod wallet;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::client::ClientError;
use super::client::messages::Answer;
use super::wire::{Amount, Ask, Code, Goods, Push, SERVER_NUMBERS, Side};
use crate::model::{Cents, Millis, Name, money};
pub use shopping::{Purchase, PurchaseState};
pub use squaring::by_number;
pub use stall::{ANYTHING, Item, Sale, SaleState, ShipTo};

/// Pushes that are remembered as seen. Older ones are harmless too: every rule looks at the deal's state.
const SEEN_MAX: usize = 8_192;
/// How long a push is remembered: the server repeats it until 10 min after its deal has ended.
const SEEN_KEPT: Duration = Duration::from_secs(3_600);
/// Ended deals that are kept for the person to look at.
const ENDED_MAX: usize = 1_000;
/// Numbers are taken from the disk's ceiling in steps of this many.
const NUMBERS_STEP: u64 = 256;
/// How long a stretch of numbers is, which begin anew after a loss: past whatever was used before.
const STRETCH: u64 = 1 << 22;

/// What happens to a peer.
#[derive(Debug, Clone)]
pub enum Event {
    /// The person puts items on sale, or changes them: all of them or none.
    Stock(Vec<Item>),
    /// The person takes an item off sale.
    Remove { name: String },
    /// The person looks for something.
    Find { item_name: Arc<str>, description: Arc<str>, max_price: Cents },
    /// The person wants to see who sells what, and buys nothing.
    Browse { word: Arc<str> },
    /// The person buys what was found.
    Buy { rq: u64 },
    /// The person steps back, on either side.
    Cancel { rq: u64 },
    /// The server said something of its own accord.
    Push(Push),
    /// A request was answered, or was not.
    Answered { rq: u64, ask: Ask, answer: Result<Answer, ClientError> },
    /// How do our deals stand? Asked when we are back, and when the person wants to know.
    AskStatus,
    /// We are not registered any more: the server has ended our deals.
    Left,
    /// In the settlement, as seller: where to ship to. Stored before SHIPPED is said.
    Ship { rq: u64, price: Cents, to: ShipTo },
    /// The person has sent what was sold.
    Sent { rq: u64 },
    /// In the settlement, as seller: we are paid.
    Settled { rq: u64, payout: Amount },
    /// In the settlement, as buyer: we have paid.
    Receipt { rq: u64, item_name: Arc<str>, price: Cents, seller: Name },
    /// In the settlement: nothing is charged.
    SettlementCancelled { rq: u64, reason: Arc<str> },
    /// The settlement's line broke: how did it end?
    SettlementBroke { rq: u64 },
    /// Time has passed: ask about deals of which nothing was heard for long.
    Tick,
}

/// Why a person's command is not done; nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// What a step changed and wants done. Nothing of it has happened yet.
#[derive(Debug, Default)]
pub struct Effects {
    /// Rows to be stored, in one transaction, before anything else.
    pub changes: Vec<Change>,
    /// Pushes to acknowledge.
    pub acks: Vec<u64>,
    /// Requests to send (and to repeat): their number and what they ask.
    pub requests: Vec<(u64, Ask)>,
    /// What the person should see.
    pub notes: Vec<Note>,
}

impl Effects {
    fn absorb(&mut self, later: Effects) {
        self.changes.extend(later.changes);
        self.acks.extend(later.acks);
        self.requests.extend(later.requests);
        self.notes.extend(later.notes);
    }

    fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.acks.is_empty() && self.requests.is_empty() && self.notes.is_empty()
    }
}

/// One row's change.
#[derive(Debug, Clone)]
pub enum Change {
    /// An item is new or has changed.
    Item(Item),
    /// An item is off sale.
    DropItem(String),
    /// A deal, seller's side.
    Sale(Sale),
    /// A deal, buyer's side.
    Purchase(Purchase),
    /// A deal is forgotten.
    DropDeal(u64),
    /// A push was acted on.
    Seen { mid: u64, at: Millis },
    /// A push is forgotten.
    DropSeen(u64),
    /// No number from here on was used yet.
    Ceiling(u64),
}

/// What a person sees happen; one JSON object with `--json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Note {
    /// Our search is on.
    Searching { rq: u64, item_name: Arc<str>, peers: u64 },
    /// One is reserved for us.
    Found {
        rq: u64,
        item_name: Arc<str>,
        price: Cents,
        seller: Option<Name>,
        #[serde(skip_serializing_if = "Option::is_none")]
        offer_item: Option<Arc<str>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        offer_description: Option<Arc<str>>,
    },
    /// There were offers, all above our maximum.
    NotFound { rq: u64, item_name: Arc<str>, max_price: Cents },
    /// Nobody has it.
    NotAvailable { rq: u64, item_name: Arc<str> },
    /// We are about to pay.
    Buying { rq: u64, item_name: Arc<str>, price: Cents },
    /// We have paid.
    Bought { rq: u64, item_name: Arc<str>, price: Cents, seller: Option<Name> },
    /// We offer something that someone looks for.
    Offered { rq: u64, item_name: Arc<str>, item: String, price: Cents },
    /// We agree to the buyer's maximum.
    Accepted { rq: u64, item_name: Arc<str>, max_price: Cents },
    /// We do not agree.
    Declined { rq: u64, item_name: Arc<str>, max_price: Cents },
    /// Our offer is taken.
    Reserved { rq: u64, item_name: Arc<str>, price: Cents },
    /// Our offer is not taken.
    Released { rq: u64, item_name: Arc<str> },
    /// The goods are to be sent once we are paid.
    Shipping { rq: u64, item_name: Arc<str>, price: Cents },
    /// We are paid: the goods are sent.
    Sold { rq: u64, item_name: Arc<str>, price: Cents, payout: Option<Amount> },
    /// A deal is off.
    Cancelled { rq: u64, side: Side, item_name: Arc<str>, reason: Arc<str> },
    /// The server does not answer for the time being.
    Silent { server: SocketAddr, cause: &'static str },
    /// Something did not go as it should.
    Trouble { rq: Option<u64>, reason: String },
}

impl Note {
    /// The deal that it is about.
    pub fn rq(&self) -> Option<u64> {
        match self {
            Note::Searching { rq, .. }
            | Note::Found { rq, .. }
            | Note::NotFound { rq, .. }
            | Note::NotAvailable { rq, .. }
            | Note::Buying { rq, .. }
            | Note::Bought { rq, .. }
            | Note::Offered { rq, .. }
            | Note::Accepted { rq, .. }
            | Note::Declined { rq, .. }
            | Note::Reserved { rq, .. }
            | Note::Released { rq, .. }
            | Note::Shipping { rq, .. }
            | Note::Sold { rq, .. }
            | Note::Cancelled { rq, .. } => Some(*rq),
            Note::Trouble { rq, .. } => *rq,
            Note::Silent { .. } => None,
        }
    }
}

/// A peer's items and deals.
#[derive(Debug, Default)]
pub struct Core {
    /// By folded name.
    items: BTreeMap<String, Item>,
    sales: BTreeMap<u64, Sale>,
    purchases: BTreeMap<u64, Purchase>,
    seen: Seen,
    numbers: Numbers,
    /// Counts steps, so that an answer to STATUS is not held against what changed after it was asked.
    step: u64,
    /// When we last asked about quiet deals.
    looked_at: Millis,
    /// STATUS requests under way: the step when each was asked, and the deal if it was about one.
    asked: HashMap<u64, (u64, Option<u64>)>,
    auto_buy: bool,
}

/// What a core is put together from.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Items on sale.
    pub items: Vec<Item>,
    /// Deals, seller's side.
    pub sales: Vec<Sale>,
    /// Deals, buyer's side.
    pub purchases: Vec<Purchase>,
    /// Pushes that were acted on, oldest first.
    pub seen: Vec<(u64, Millis)>,
    /// No number from here on was used yet.
    pub ceiling: u64,
}

#[derive(Debug, Default)]
struct Seen {
    at: HashMap<u64, Millis>,
    order: VecDeque<u64>,
}

/// Numbers for requests. Above the ceiling none was ever used: a restart begins there.
#[derive(Debug, Default)]
struct Numbers {
    next: u64,
    ceiling: u64,
}

/// The first number of a stretch.
fn first_number(stretch: u64) -> u64 {
    1 + STRETCH.saturating_mul(stretch)
}

impl Core {
    /// A peer as it was stored. `auto_buy`: whatever is FOUND is bought.
    pub fn new(snapshot: Snapshot, auto_buy: bool) -> Core {
        let mut core = Core { auto_buy, ..Core::default() };
        core.numbers = Numbers { next: snapshot.ceiling.max(1), ceiling: snapshot.ceiling.max(1) };
        core.items = snapshot.items.into_iter().map(|item| (stall::fold(&item.name), item)).collect();
        core.sales = snapshot.sales.into_iter().map(|sale| (sale.rq, sale)).collect();
        core.purchases = snapshot.purchases.into_iter().map(|purchase| (purchase.rq, purchase)).collect();
        core.seen.order = snapshot.seen.iter().map(|(mid, _)| *mid).collect();
        core.seen.at = snapshot.seen.into_iter().collect();
        core
    }

    /// Takes one event. An `Err` means that nothing changed; only a person's command gets one.
    ///
    /// # Errors
    /// Why the command is not done, for the person who gave it.
    pub fn handle(&mut self, now: Millis, event: Event) -> Result<Effects, Refused> {
        let mut fx = Effects::default();
        self.step += 1;
        match event {
            Event::Stock(items) => self.stock(items, &mut fx)?,
            Event::Remove { name } => self.remove(&name, &mut fx)?,
            Event::Find { item_name, description, max_price } => {
                self.find(now, item_name, description, max_price, false, &mut fx)?;
            }
            Event::Browse { word } => self.find(now, word, "".into(), money::PRICE_MAX, true, &mut fx)?,
            Event::Buy { rq } => self.buy(now, rq, &mut fx)?,
            Event::Cancel { rq } if self.sales.contains_key(&rq) => self.cancel_sale(now, rq, &mut fx)?,
            Event::Cancel { rq } => self.cancel_purchase(now, rq, &mut fx)?,
            Event::Push(push) => self.push(now, push, &mut fx),
            Event::Answered { rq, ask, answer } => self.answered(now, rq, &ask, answer, &mut fx),
            Event::AskStatus => self.ask_status(None, &mut fx),
            Event::Left => self.left(now, &mut fx),
            Event::Ship { rq, price, to } => self.ship(now, rq, price, to, &mut fx)?,
            Event::Sent { rq } => self.sent(now, rq, &mut fx)?,
            Event::Settled { rq, payout } => self.sold(now, rq, None, Some(payout), &mut fx),
            Event::Receipt { rq, item_name, price, seller } => {
                self.receipt(now, rq, &item_name, price, seller, &mut fx);
            }
            Event::SettlementCancelled { rq, reason } => self.called_off(now, rq, &reason, &mut fx),
            Event::SettlementBroke { rq } => self.ask_status(Some(rq), &mut fx),
            Event::Tick => self.look_after(now, &mut fx),
        }
        self.forget_ended(&mut fx);
        Ok(fx)
    }

    /// Every copy of a push is acknowledged; only the first is acted on.
    fn push(&mut self, now: Millis, push: Push, fx: &mut Effects) {
        let mid = push.mid();
        fx.acks.push(mid);
        if !self.seen.insert(now, mid, fx) {
            return;
        }
        match push {
            Push::Search { rq, item_name, description, .. } => self.search(now, rq, item_name, &description, fx),
            Push::Negotiate { rq, item_name, max_price, .. } => self.negotiate(now, rq, item_name, max_price, fx),
            Push::Reserve { rq, item_name, price, .. } => self.reserve(now, rq, item_name, price, fx),
            Push::Released { rq, .. } => self.released(now, rq, fx),
            Push::Found { rq, item_name, price, seller, offer_item, offer_description, .. } => {
                let goods = Goods { item: offer_item, description: offer_description };
                self.found(now, Some(mid), rq, item_name, price, Some(seller), goods, fx);
            }
            Push::NotFound { rq, .. } => self.search_failed(now, rq, "NOT_FOUND", fx),
            Push::NotAvailable { rq, .. } => self.search_failed(now, rq, "NOT_AVAILABLE", fx),
            Push::Cancel { rq, reason, .. } => self.called_off(now, rq, &reason, fx),
        }
    }

    fn answered(&mut self, now: Millis, rq: u64, ask: &Ask, answer: Result<Answer, ClientError>, fx: &mut Effects) {
        if matches!(answer, Err(ClientError::Superseded)) {
            return;
        }
        if let Some(purchase) = self.purchases.get_mut(&rq) {
            purchase.pending = false;
        }
        if let Some(sale) = self.sales.get_mut(&rq) {
            sale.pending = false;
        }
        // No answer: whether it arrived, STATUS will tell.
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.asked.remove(&rq);
                let reason = error.to_string();
                fx.notes.push(Note::Trouble { rq: self.knows(rq).then_some(rq), reason });
                return;
            }
        };
        match (ask, answer) {
            (Ask::Status { .. }, Answer::Deals { deals, more, .. }) => {
                if let Some((step, about)) = self.asked.remove(&rq) {
                    self.square(now, step, about, &deals, more, fx);
                }
            }
            (Ask::LookingFor { item_name, .. }, Answer::Searching { peers, .. }) => {
                fx.notes.push(Note::Searching { rq, item_name: item_name.clone(), peers });
            }
            (Ask::Buy { item_name, price }, Answer::Buying { .. }) => {
                fx.notes.push(Note::Buying { rq, item_name: item_name.clone(), price: *price });
            }
            (Ask::Cancel { .. }, Answer::Cancelled { .. }) => self.called_off(now, rq, "cancelled by us", fx),
            (_, Answer::Error { code, reason, .. }) => self.refused(now, rq, ask, code, &reason, fx),
            _ => {}
        }
    }

    fn refused(&mut self, now: Millis, rq: u64, ask: &Ask, code: Code, reason: &str, fx: &mut Effects) {
        self.asked.remove(&rq);
        // Nothing changed at the server's: what we did still waits for its turn, or for STATUS.
        let to_be_tried_again = matches!(code, Code::Busy | Code::Unavailable);
        match ask {
            Ask::Offer { .. } if !to_be_tried_again => self.offer_refused(now, rq, reason, fx),
            Ask::Accept { .. } if !to_be_tried_again => self.accept_refused(now, rq, reason, fx),
            Ask::LookingFor { .. } => self.search_refused(now, rq, reason, fx),
            Ask::Buy { .. } => self.buy_refused(now, rq, to_be_tried_again, reason, fx),
            Ask::Cancel { .. } if code == Code::UnknownDeal => self.called_off(now, rq, reason, fx),
            Ask::Cancel { .. } => {
                fx.notes.push(Note::Trouble { rq: Some(rq), reason: format!("not cancelled: {reason}") });
                self.ask_status(Some(rq), fx);
            }
            // A late NOT_AVAILABLE or REFUSE changes nothing for anyone.
            Ask::NotAvailable { .. } | Ask::Refuse { .. } => {}
            _ => fx.notes.push(Note::Trouble { rq: None, reason: reason.to_owned() }),
        }
    }

    /// A deal is off, by a push, by the last line of its settlement, or by an answer of the server.
    fn called_off(&mut self, now: Millis, rq: u64, reason: &str, fx: &mut Effects) {
        if self.sales.contains_key(&rq) {
            self.end_sale(now, rq, reason, fx);
        } else if self.purchases.contains_key(&rq) {
            self.end_purchase(now, rq, reason, fx);
        }
    }

    /// A unit that was SHIPPED stays held: how that ended is not told to those who left.
    fn left(&mut self, now: Millis, fx: &mut Effects) {
        let sales = self.sales.values().filter(|sale| sale.state != SaleState::Shipped && !sale.is_over());
        let open: Vec<u64> = sales.map(|sale| sale.rq).chain(self.purchases.keys().copied()).collect();
        for rq in open {
            self.called_off(now, rq, "we have left", fx);
        }
    }

    /// Whether INFORM_REQ may be answered: only for a deal that we hold, with that item and price.
    ///
    /// # Errors
    /// What speaks against it, and whether that may change in a moment.
    pub fn may_inform(&self, rq: u64, item_name: &str, price: Cents) -> Result<Side, NotHeld> {
        let never = |why: String| Err(NotHeld { why, may_come: false });
        let (side, our_item, our_price) = if let Some(sale) = self.sales.get(&rq) {
            match sale.state {
                SaleState::Reserved => (Side::Seller, &sale.item_name, sale.price),
                SaleState::Offered | SaleState::Accepted | SaleState::Released => {
                    return Err(NotHeld { why: format!("no RESERVE came for {rq}"), may_come: true });
                }
                _ => return never(format!("deal {rq} is not to be settled now")),
            }
        } else if let Some(purchase) = self.purchases.get(&rq) {
            match (&purchase.state, purchase.bought_at) {
                (PurchaseState::Buying, Some(price)) => (Side::Buyer, &purchase.item_name, price),
                _ => return never(format!("we did not BUY {rq}")),
            }
        } else {
            return never(format!("we have no deal {rq}"));
        };
        if **our_item != *item_name {
            return never(format!("item_name: deal {rq} is about another item"));
        }
        if our_price != price {
            return never(format!("price: deal {rq} is for {our_price}, not {price}"));
        }
        Ok(side)
    }

    // Questions.

    /// Items on sale, by name.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.items.values()
    }

    /// Deals, seller's side.
    pub fn sales(&self) -> impl DoubleEndedIterator<Item = &Sale> {
        self.sales.values()
    }

    /// Deals, buyer's side.
    pub fn purchases(&self) -> impl DoubleEndedIterator<Item = &Purchase> {
        self.purchases.values()
    }

    /// One of our searches.
    pub fn purchase(&self, rq: u64) -> Option<&Purchase> {
        self.purchases.get(&rq)
    }

    /// One of our sales.
    pub fn sale(&self, rq: u64) -> Option<&Sale> {
        self.sales.get(&rq)
    }

    fn knows(&self, rq: u64) -> bool {
        self.sales.contains_key(&rq) || self.purchases.contains_key(&rq)
    }

    /// A number that was never used by this peer, also not before a restart.
    ///
    /// # Errors
    /// After two billion numbers there is none left.
    pub fn number(&mut self, fx: &mut Effects) -> Result<u64, Refused> {
        let Numbers { next, ceiling } = &mut self.numbers;
        if *next >= SERVER_NUMBERS {
            return Err(Refused("this data dir has used up its numbers: begin with a new --data-dir".to_owned()));
        }
        if *next >= *ceiling {
            *ceiling = *next + NUMBERS_STEP;
            fx.changes.push(Change::Ceiling(*ceiling));
        }
        *next += 1;
        Ok(*next - 1)
    }

    /// Of what has ended, the oldest is forgotten.
    fn forget_ended(&mut self, fx: &mut Effects) {
        let ended = |over: bool, at: Millis, rq: u64| over.then_some((at, rq));
        if self.sales.len() + self.purchases.len() <= ENDED_MAX {
            return;
        }
        // What is still to be sent is kept until it is.
        let sales = self.sales.values().filter(|sale| sale.ship_to.is_none());
        let sales = sales.filter_map(|sale| ended(sale.is_over(), sale.at, sale.rq));
        let purchases = self.purchases.values().filter_map(|it| ended(it.is_over(), it.at, it.rq));
        let mut over: Vec<(Millis, u64)> = sales.chain(purchases).collect();
        over.sort_unstable();
        for (_, rq) in over.iter().take(over.len().saturating_sub(ENDED_MAX)) {
            self.sales.remove(rq);
            self.purchases.remove(rq);
            fx.changes.push(Change::DropDeal(*rq));
        }
    }
}

/// Why INFORM_REQ is not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotHeld {
    /// For the log and the person.
    pub why: String,
    /// RESERVE may still be under way: TCP can be quicker than UDP.
    pub may_come: bool,
}

impl Seen {
    /// False if it was there before.
    fn insert(&mut self, now: Millis, mid: u64, fx: &mut Effects) -> bool {
        if self.at.contains_key(&mid) {
            return false;
        }
        while let Some(oldest) = self.order.front().copied() {
            let old = self.at.get(&oldest).is_none_or(|at| at.until(now) > SEEN_KEPT);
            if !old && self.order.len() < SEEN_MAX {
                break;
            }
            self.order.pop_front();
            self.at.remove(&oldest);
            fx.changes.push(Change::DropSeen(oldest));
        }
        self.at.insert(mid, now);
        self.order.push_back(mid);
        fx.changes.push(Change::Seen { mid, at: now });
        true
    }
}

/// A person's word for a side's part in a deal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Heard {
    /// Nothing but the search (or nothing at all).
    Search,
    /// NEGOTIATE
    Negotiate,
    /// RELEASED
    Released,
    /// RESERVE
    Reserve,
}
