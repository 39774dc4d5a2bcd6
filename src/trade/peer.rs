//! A trading peer: its inventory, its sales and its purchases. The core does no I/O and knows no threads and no clock;
//! [`node`] connects it to the client and the disk.
//!
//! The rules (`docs/spec/trade.md`): a search is answered automatically with the price of the item that matches best
//! and has a free unit. An offer binds one unit until it is RELEASED, cancelled or settled, so that the peer never
//! promises more than it has. The caller applies the [`PeerEffects`] in a fixed order: it stores the changes, then
//! acknowledges, then sends requests.

pub mod catalogue;
mod inventory;
mod messages;
pub mod node;
mod purchases;
mod reconciliation;
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
use super::wire::{Amount, FIRST_SERVER_NUMBER, Notification, RequestBody, Response, Side};
use crate::model::{Cents, Millis, Name, money};
pub use inventory::{ANYTHING, Item, Sale, SaleState, ShipTo};
pub use messages::DealCommand;
pub use purchases::{Purchase, PurchaseState};
pub use reconciliation::index_by_rq;

/// How many are remembered. A repeat of an older one is harmless, since every transition checks the deal's state.
const SEEN_MAX: usize = 8_192;
/// The server repeats a notification until 10 min after its deal has ended.
const SEEN_RETENTION: Duration = Duration::from_secs(3_600);
/// Ended deals that are kept for the user to look at.
const ENDED_MAX: usize = 1_000;
/// How many numbers are reserved on disk at a time.
const RQ_RESERVATION: u64 = 256;
/// The length of an id range. After a loss of data the numbers continue in a new range, past all that were used.
const ID_RANGE_LEN: u64 = 1 << 22;

/// An input to the core.
#[derive(Debug, Clone)]
pub enum PeerInput {
    // Commands of the user. All items are put on sale or none; Browse only shows who sells something.
    Stock(Vec<Item>),
    Remove {
        name: String,
    },
    Find {
        item_name: Arc<str>,
        description: Arc<str>,
        max_price: Cents,
    },
    Browse {
        word: Arc<str>,
    },
    Deal {
        rq: u64,
        command: DealCommand,
    },
    Sent {
        rq: u64,
    },
    // Messages of the server; what asks for all deals; the end of the registration and, with it, of all deals.
    Notification(Notification),
    ResponseReceived {
        rq: u64,
        body: RequestBody,
        response: Result<Response, ClientError>,
    },
    AskStatus,
    Departed,
    // Settlements. Ship is stored before SHIPPED is sent; after an interruption the server is asked how it ended.
    Ship {
        rq: u64,
        price: Cents,
        to: ShipTo,
    },
    Settled {
        rq: u64,
        payout: Amount,
    },
    Receipt {
        rq: u64,
        item_name: Arc<str>,
        price: Cents,
        seller: Name,
    },
    SettlementCancelled {
        rq: u64,
        reason: Arc<str>,
    },
    SettlementInterrupted {
        rq: u64,
    },
    /// Time has passed.
    Tick,
}

/// A command of the user was refused, and nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CommandError(pub String);

impl CommandError {
    fn no_deal(rq: u64) -> CommandError {
        CommandError(format!("there is no deal {rq}; `deals` lists yours"))
    }
}

/// None has been applied yet.
#[derive(Debug, Default)]
pub struct PeerEffects {
    /// They are stored in one transaction, before all other effects.
    pub changes: Vec<PeerChange>,
    pub acks: Vec<u64>,
    /// They have their numbers with them, and are repeated until they are answered.
    pub requests: Vec<(u64, RequestBody)>,
    pub events: Vec<PeerEvent>,
}

impl PeerEffects {
    fn absorb(&mut self, later: PeerEffects) {
        self.changes.extend(later.changes);
        self.acks.extend(later.acks);
        self.requests.extend(later.requests);
        self.events.extend(later.events);
    }

    fn trouble(&mut self, rq: Option<u64>, reason: impl Into<String>) {
        self.events.push(PeerEvent::Trouble { rq, reason: reason.into() });
    }

    fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.acks.is_empty() && self.requests.is_empty() && self.events.is_empty()
    }
}

/// A change to one row. Numbers from `Ceiling` on have never been used.
#[derive(Debug, Clone)]
pub enum PeerChange {
    Item(Item),
    DropItem(String),
    Sale(Sale),
    Purchase(Purchase),
    DropDeal(u64),
    Seen { mid: u64, at: Millis },
    DropSeen(u64),
    Ceiling(u64),
}

/// An event for the user; a JSON object with `--json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum PeerEvent {
    /// A search of ours has begun.
    Searching { rq: u64, item_name: Arc<str>, peers: u64 },
    /// The searched item is reserved for us.
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
    /// All offers were above our maximum.
    NotFound { rq: u64, item_name: Arc<str>, max_price: Cents },
    /// No seller made an offer.
    NotAvailable { rq: u64, item_name: Arc<str> },
    /// Our BUY was accepted; the payment follows.
    Buying { rq: u64, item_name: Arc<str>, price: Cents },
    /// We have paid.
    Bought { rq: u64, item_name: Arc<str>, price: Cents, seller: Option<Name> },
    /// We made an offer in answer to a search.
    Offered { rq: u64, item_name: Arc<str>, item: String, price: Cents },
    /// We agreed to the buyer's maximum.
    Accepted { rq: u64, item_name: Arc<str>, max_price: Cents },
    /// We declined the buyer's maximum.
    Declined { rq: u64, item_name: Arc<str>, max_price: Cents },
    /// Our offer was chosen.
    Reserved { rq: u64, item_name: Arc<str>, price: Cents },
    /// Our offer was not chosen.
    Released { rq: u64, item_name: Arc<str> },
    /// The recipient is known; the goods are sent once we are paid.
    Shipping { rq: u64, item_name: Arc<str>, price: Cents },
    /// We are paid and send the goods.
    Sold { rq: u64, item_name: Arc<str>, price: Cents, payout: Option<Amount> },
    /// A deal was cancelled.
    Cancelled { rq: u64, side: Side, item_name: Arc<str>, reason: Arc<str> },
    /// The server is not answering.
    Silent { server: SocketAddr, cause: &'static str },
    /// An unexpected problem.
    Trouble { rq: Option<u64>, reason: String },
}

impl PeerEvent {
    pub fn rq(&self) -> Option<u64> {
        match self {
            PeerEvent::Searching { rq, .. }
            | PeerEvent::Found { rq, .. }
            | PeerEvent::NotFound { rq, .. }
            | PeerEvent::NotAvailable { rq, .. }
            | PeerEvent::Buying { rq, .. }
            | PeerEvent::Bought { rq, .. }
            | PeerEvent::Offered { rq, .. }
            | PeerEvent::Accepted { rq, .. }
            | PeerEvent::Declined { rq, .. }
            | PeerEvent::Reserved { rq, .. }
            | PeerEvent::Released { rq, .. }
            | PeerEvent::Shipping { rq, .. }
            | PeerEvent::Sold { rq, .. }
            | PeerEvent::Cancelled { rq, .. } => Some(*rq),
            PeerEvent::Trouble { rq, .. } => *rq,
            PeerEvent::Silent { .. } => None,
        }
    }
}

#[derive(Debug, Default)]
pub struct PeerCore {
    /// Items by folded name.
    items: BTreeMap<String, Item>,
    sales: BTreeMap<u64, Sale>,
    purchases: BTreeMap<u64, Purchase>,
    seen: SeenNotifications,
    request_numbers: RequestNumbers,
    /// The time of the input in hand.
    now: Millis,
    /// Counts inputs, so that a STATUS response is not applied to deals that changed after the request.
    step: u64,
    last_check_at: Millis,
    /// The step of each that is in progress, and the deal if it is about one only.
    status_requests: HashMap<u64, (u64, Option<u64>)>,
    auto_buy: bool,
}

#[derive(Debug, Default)]
pub struct PeerSnapshot {
    pub items: Vec<Item>,
    pub sales: Vec<Sale>,
    pub purchases: Vec<Purchase>,
    /// Oldest first.
    pub seen: Vec<(u64, Millis)>,
    /// See [`PeerChange::Ceiling`].
    pub ceiling: u64,
}

#[derive(Debug, Default)]
struct SeenNotifications {
    at: HashMap<u64, Millis>,
    order: VecDeque<u64>,
}

/// None from the ceiling on was ever used, so a restart begins there.
#[derive(Debug, Default)]
struct RequestNumbers {
    next: u64,
    ceiling: u64,
}

fn first_id(range: u64) -> u64 {
    1 + ID_RANGE_LEN.saturating_mul(range)
}

impl PeerCore {
    /// `auto_buy`: whatever is FOUND is bought.
    pub fn new(snapshot: PeerSnapshot, auto_buy: bool) -> PeerCore {
        let mut core = PeerCore { auto_buy, ..PeerCore::default() };
        core.request_numbers = RequestNumbers { next: snapshot.ceiling.max(1), ceiling: snapshot.ceiling.max(1) };
        core.items = snapshot.items.into_iter().map(|item| (inventory::fold(&item.name), item)).collect();
        core.sales = snapshot.sales.into_iter().map(|sale| (sale.rq, sale)).collect();
        core.purchases = snapshot.purchases.into_iter().map(|purchase| (purchase.rq, purchase)).collect();
        core.seen.order = snapshot.seen.iter().map(|(mid, _)| *mid).collect();
        core.seen.at = snapshot.seen.into_iter().collect();
        core
    }

    /// Handles one input; a command that is refused changes nothing.
    pub fn handle(&mut self, now: Millis, input: PeerInput) -> Result<PeerEffects, CommandError> {
        let mut effects = PeerEffects::default();
        self.now = now;
        self.step += 1;
        match input {
            PeerInput::Stock(items) => self.stock(items, &mut effects)?,
            PeerInput::Remove { name } => self.remove(&name, &mut effects)?,
            PeerInput::Find { item_name, description, max_price } => {
                self.find(item_name, description, max_price, false, &mut effects)?;
            }
            PeerInput::Browse { word } => self.find(word, "".into(), money::PRICE_MAX, true, &mut effects)?,
            PeerInput::Deal { rq, command } => self.handle_deal_command(rq, command, &mut effects)?,
            PeerInput::Notification(notification) => self.handle_notification(notification, &mut effects),
            PeerInput::ResponseReceived { rq, body, response } => {
                self.handle_response(rq, &body, response, &mut effects)
            }
            PeerInput::AskStatus => self.ask_status(None, &mut effects),
            PeerInput::Departed => self.departed(&mut effects),
            PeerInput::Ship { rq, price, to } => self.ship(rq, price, to, &mut effects)?,
            PeerInput::Sent { rq } => self.sent(rq, &mut effects)?,
            PeerInput::Settled { rq, payout } => self.sold(rq, None, Some(payout), &mut effects),
            PeerInput::Receipt { rq, item_name, price, seller } => {
                self.receipt(rq, &item_name, price, seller, &mut effects);
            }
            PeerInput::SettlementCancelled { rq, reason } => self.end_deal(rq, &reason, &mut effects),
            PeerInput::SettlementInterrupted { rq } => self.ask_status(Some(rq), &mut effects),
            PeerInput::Tick => self.check_quiet_deals(&mut effects),
        }
        self.evict_ended(&mut effects);
        Ok(effects)
    }

    fn end_deal(&mut self, rq: u64, reason: &str, effects: &mut PeerEffects) {
        if self.sales.contains_key(&rq) {
            self.end_sale(rq, reason, effects);
        } else if self.purchases.contains_key(&rq) {
            self.end_purchase(rq, reason, effects);
        }
    }

    /// A unit that was SHIPPED stays bound: a peer that has left does not learn how that settlement ended.
    fn departed(&mut self, effects: &mut PeerEffects) {
        let sales = self.sales.values().filter(|sale| sale.state != SaleState::Shipped && !sale.is_over());
        let open: Vec<u64> = sales.map(|sale| sale.rq).chain(self.purchases.keys().copied()).collect();
        for rq in open {
            self.end_deal(rq, "we have left", effects);
        }
    }

    /// INFORM_REQ is answered only for one of our deals, with its item and price.
    pub fn check_inform(&self, rq: u64, item_name: &str, price: Cents) -> Result<Side, InformError> {
        let never = |reason: String| Err(InformError { reason, is_retryable: false });
        let (side, our_item, our_price) = if let Some(sale) = self.sales.get(&rq) {
            match sale.state {
                SaleState::Reserved => (Side::Seller, &sale.item_name, sale.price),
                SaleState::Offered | SaleState::Accepted | SaleState::Released => {
                    return Err(InformError { reason: format!("no RESERVE came for {rq}"), is_retryable: true });
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

    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.items.values()
    }

    pub fn sales(&self) -> impl DoubleEndedIterator<Item = &Sale> {
        self.sales.values()
    }

    pub fn purchases(&self) -> impl DoubleEndedIterator<Item = &Purchase> {
        self.purchases.values()
    }

    pub fn purchase(&self, rq: u64) -> Option<&Purchase> {
        self.purchases.get(&rq)
    }

    pub fn sale(&self, rq: u64) -> Option<&Sale> {
        self.sales.get(&rq)
    }

    fn has_deal(&self, rq: u64) -> bool {
        self.sales.contains_key(&rq) || self.purchases.contains_key(&rq)
    }

    /// A number that this peer has never used, not even before a restart. An error when all two billion are used up.
    pub fn next_rq(&mut self, effects: &mut PeerEffects) -> Result<u64, CommandError> {
        let RequestNumbers { next, ceiling } = &mut self.request_numbers;
        if *next >= FIRST_SERVER_NUMBER {
            return Err(CommandError("this data dir has used up its numbers: begin with a new --data-dir".to_owned()));
        }
        if *next >= *ceiling {
            *ceiling = *next + RQ_RESERVATION;
            effects.changes.push(PeerChange::Ceiling(*ceiling));
        }
        *next += 1;
        Ok(*next - 1)
    }

    fn evict_ended(&mut self, effects: &mut PeerEffects) {
        let ended = |over: bool, at: Millis, rq: u64| over.then_some((at, rq));
        if self.sales.len() + self.purchases.len() <= ENDED_MAX {
            return;
        }
        // Sales that are still to be sent are kept.
        let sales = self.sales.values().filter(|sale| sale.ship_to.is_none());
        let sales = sales.filter_map(|sale| ended(sale.is_over(), sale.at, sale.rq));
        let purchases = self.purchases.values().filter_map(|it| ended(it.is_over(), it.at, it.rq));
        let mut over: Vec<(Millis, u64)> = sales.chain(purchases).collect();
        over.sort_unstable();
        for (_, rq) in over.iter().take(over.len().saturating_sub(ENDED_MAX)) {
            self.sales.remove(rq);
            self.purchases.remove(rq);
            effects.changes.push(PeerChange::DropDeal(*rq));
        }
    }
}

/// Why INFORM_REQ is not answered. `is_retryable`: a RESERVE may still be on its way, since TCP can be faster than UDP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InformError {
    pub reason: String,
    pub is_retryable: bool,
}

impl SeenNotifications {
    /// False if it had been seen before.
    fn insert(&mut self, now: Millis, mid: u64, effects: &mut PeerEffects) -> bool {
        if self.at.contains_key(&mid) {
            return false;
        }
        while let Some(oldest) = self.order.front().copied() {
            let old = self.at.get(&oldest).is_none_or(|at| at.until(now) > SEEN_RETENTION);
            if !old && self.order.len() < SEEN_MAX {
                break;
            }
            self.order.pop_front();
            self.at.remove(&oldest);
            effects.changes.push(PeerChange::DropSeen(oldest));
        }
        self.at.insert(mid, now);
        self.order.push_back(mid);
        effects.changes.push(PeerChange::Seen { mid, at: now });
        true
    }
}

/// What a sale has been notified of, in the order in which the server does so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SellerNotification {
    /// Only SEARCH, or none.
    Search,
    Negotiate,
    Released,
    Reserve,
}
