//! The items on sale, the matching of searches, and the seller's side of deals.
//!
//! The server notifies a seller in a fixed order (search, negotiate, released, reserve, the end), but datagrams may
//! overtake each other. One that comes before one already handled is outdated: it is acknowledged and ignored.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{CommandError, PeerChange, PeerCore, PeerEffects, PeerEvent, SellerNotification};
use crate::model::text::{self, DESCRIPTION_MAX, ITEM_NAME_MAX};
use crate::model::{Cents, Millis, Name, debug_fields};
use crate::trade::wire::{Amount, DealRequest, Goods, Side};

pub const ITEMS_MAX: usize = 10_000;
/// A search for this matches every item.
pub const ANYTHING: &str = "*";
pub const QUANTITY_MAX: u64 = 1_000_000;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Unique for the peer, ignoring case.
    pub name: String,
    pub price: Cents,
    /// The lowest that is accepted in a negotiation.
    pub min_price: Cents,
    /// It includes bound units but not sold ones.
    pub quantity: u64,
    /// A search may match it too.
    pub description: String,
    #[serde(default)]
    pub sold: u64,
}

impl Item {
    /// An error names the field and the rule that is broken.
    pub fn new(name: &str, price: Cents, min_price: Cents, quantity: u64, description: &str) -> Result<Item, String> {
        text::check(name, 1, ITEM_NAME_MAX).map_err(|wrong| format!("name: {wrong}"))?;
        text::check(description, 0, DESCRIPTION_MAX).map_err(|wrong| format!("description: {wrong}"))?;
        for (field, amount) in [("price", price), ("min_price", min_price)] {
            amount.as_price().ok_or_else(|| format!("{field}: expected an amount from 0.01 to 10000000.00"))?;
        }
        if min_price > price {
            return Err(format!("min_price: expected at most the price ({price}), not {min_price}"));
        }
        if quantity > QUANTITY_MAX {
            return Err(format!("quantity: expected at most {QUANTITY_MAX}"));
        }
        Ok(Item { name: name.to_owned(), price, min_price, quantity, description: description.to_owned(), sold: 0 })
    }
}

/// Its `Debug` output hides the address.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct ShipTo {
    pub name: Name,
    pub address: String,
}

debug_fields!(ShipTo, |to| name: to.name);

/// The state of a sale. All but `Released`, `Sold` and `Over` bind a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SaleState {
    Offered,
    /// We agreed to the buyer's maximum.
    Accepted,
    /// Another offer was chosen. Ours may still be if that one falls through.
    Released,
    Reserved,
    /// SHIPPED was sent and the server decides how the settlement ends.
    Shipped,
    /// The server no longer knows how it ended. A person must find out.
    Unknown,
    Sold,
    Over,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sale {
    /// The server's number for our side.
    pub rq: u64,
    pub item: String,
    /// The item as the buyer named it.
    pub item_name: Arc<str>,
    /// The price of our offer; `price` is what is agreed now.
    pub offered: Cents,
    pub price: Cents,
    pub state: SaleState,
    pub reason: Option<Arc<str>>,
    /// The recipient, until the goods are marked as sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ship_to: Option<ShipTo>,
    pub at: Millis,
    #[serde(rename = "heard")]
    pub(super) last_notification: SellerNotification,
    #[serde(skip)]
    pub(super) is_pending: bool,
    #[serde(skip)]
    pub(super) changed_step: u64,
}

impl Sale {
    /// A unit of the item.
    pub fn binds(&self) -> bool {
        matches!(
            self.state,
            SaleState::Offered | SaleState::Accepted | SaleState::Reserved | SaleState::Shipped | SaleState::Unknown
        )
    }

    pub fn is_over(&self) -> bool {
        matches!(self.state, SaleState::Sold | SaleState::Over)
    }
}

/// Names are compared like this, ignoring case.
pub(super) fn fold(text: &str) -> String {
    text.to_lowercase()
}

fn split_words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(fold)
}

/// How well an item matches a search: lower is better, `None` is no match.
///
/// An item matches if the searched name equals its name, ignoring case, or if every word of it (a run of letters and
/// digits) is a word of the item's name or description. An equal name ranks first, then all words in the name, then
/// other matches, then those that only [`ANYTHING`] finds. Ties go to the item that has more words of the search's
/// description, then to the cheaper one, then to the first by name. So the description only chooses among matches: "a
/// lamp, green" must not find a green chair.
fn match_rank(item: &Item, item_name: &str, description: &str) -> Option<(u8, usize, Cents)> {
    let in_name: Vec<String> = split_words(&item.name).collect();
    let in_description: Vec<String> = split_words(&item.description).collect();
    let wanted: Vec<String> = split_words(item_name).collect();
    let kind = if fold(&item.name) == fold(item_name) {
        0
    } else if item_name == ANYTHING {
        3
    } else if wanted.is_empty() {
        return None;
    } else if wanted.iter().all(|word| in_name.contains(word)) {
        1
    } else if wanted.iter().all(|word| in_name.contains(word) || in_description.contains(word)) {
        2
    } else {
        return None;
    };
    let shared =
        split_words(description).filter(|word| in_name.contains(word) || in_description.contains(word)).count();
    Some((kind, usize::MAX - shared, item.price))
}

impl PeerCore {
    pub(super) fn stock(&mut self, items: Vec<Item>, effects: &mut PeerEffects) -> Result<(), CommandError> {
        let added = items.iter().filter(|item| !self.items.contains_key(&fold(&item.name))).count();
        if self.items.len() + added > ITEMS_MAX {
            return Err(CommandError(format!("expected at most {ITEMS_MAX} items on one stall")));
        }
        for item in &items {
            let bound = self.bound_units(&item.name);
            if item.quantity < bound {
                let name = &item.name;
                return Err(CommandError(format!(
                    "quantity: {bound} of {name:?} are bound to open deals; cancel them first"
                )));
            }
        }
        for mut item in items {
            let key = fold(&item.name);
            item.sold = self.items.get(&key).map_or(0, |before| before.sold);
            effects.changes.push(PeerChange::Item(item.clone()));
            self.items.insert(key, item);
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, name: &str, effects: &mut PeerEffects) -> Result<(), CommandError> {
        let item = self.items.get(&fold(name)).ok_or_else(|| CommandError(format!("no item is named {name:?}")))?;
        let bound = self.bound_units(name);
        if bound > 0 {
            return Err(CommandError(format!("{bound} of {name:?} are bound to open deals; cancel them first")));
        }
        effects.changes.push(PeerChange::DropItem(item.name.clone()));
        self.items.remove(&fold(name));
        Ok(())
    }

    /// Bound to deals.
    pub fn bound_units(&self, name: &str) -> u64 {
        let name = fold(name);
        self.sales.values().filter(|sale| sale.binds() && fold(&sale.item) == name).count() as u64
    }

    fn free_units(&self, name: &str) -> u64 {
        let quantity = self.items.get(&fold(name)).map_or(0, |item| item.quantity);
        quantity.saturating_sub(self.bound_units(name))
    }

    pub(super) fn search(&mut self, rq: u64, item_name: Arc<str>, description: &str, effects: &mut PeerEffects) {
        if self.sales.contains_key(&rq) {
            return;
        }
        let mut matching: Vec<_> = self
            .items
            .values()
            .filter(|item| item.quantity > 0)
            .filter_map(|item| Some((match_rank(item, &item_name, description)?, item)))
            .collect();
        // Stable, so equal matches stay in the order of their names.
        matching.sort_by_key(|(match_rank, _)| *match_rank);
        let Some((_, item)) = matching.into_iter().find(|(_, item)| self.free_units(&item.name) > 0) else {
            effects.requests.push((rq, DealRequest::NotAvailable.about(item_name)));
            return;
        };
        let sale = Sale {
            rq,
            item: item.name.clone(),
            item_name: item_name.clone(),
            offered: item.price,
            price: item.price,
            state: SaleState::Offered,
            reason: None,
            ship_to: None,
            at: self.now,
            last_notification: SellerNotification::Search,
            is_pending: true,
            changed_step: self.step,
        };
        let description = Some(item.description.as_str()).filter(|text| !text.is_empty()).map(Arc::from);
        let goods = Goods { item: Some(item.name.as_str().into()), description };
        let (item, price) = (sale.item.clone(), sale.price);
        effects.events.push(PeerEvent::Offered { rq, item_name: item_name.clone(), item, price });
        effects.requests.push((rq, DealRequest::Offer { price: sale.price, goods }.about(item_name)));
        effects.changes.push(PeerChange::Sale(sale.clone()));
        self.sales.insert(rq, sale);
    }

    pub(super) fn negotiate(&mut self, rq: u64, item_name: Arc<str>, max_price: Cents, effects: &mut PeerEffects) {
        let Some(sale) = self.sales.get(&rq) else {
            effects.requests.push((rq, DealRequest::Refuse { max_price }.about(item_name)));
            return;
        };
        if sale.last_notification as u8 > SellerNotification::Negotiate as u8
            || !matches!(sale.state, SaleState::Offered | SaleState::Accepted)
        {
            return;
        }
        let agreed = self.items.get(&fold(&sale.item)).is_some_and(|item| max_price >= item.min_price);
        let (request, event) = if agreed {
            (DealRequest::Accept { max_price }, PeerEvent::Accepted { rq, item_name: item_name.clone(), max_price })
        } else {
            (DealRequest::Refuse { max_price }, PeerEvent::Declined { rq, item_name: item_name.clone(), max_price })
        };
        self.change_sale(rq, effects, |sale| {
            sale.last_notification = SellerNotification::Negotiate;
            sale.is_pending = true;
            if agreed {
                (sale.state, sale.price) = (SaleState::Accepted, max_price);
            }
        });
        effects.events.push(event);
        effects.requests.push((rq, request.about(item_name)));
    }

    pub(super) fn reserve(&mut self, rq: u64, item_name: Arc<str>, price: Cents, effects: &mut PeerEffects) {
        let Some(sale) = self.sales.get(&rq) else {
            // No unit is bound for it, and another seller can be chosen as soon as the server knows.
            effects.requests.push((rq, DealRequest::Cancel.about(item_name)));
            effects.trouble(Some(rq), "RESERVE for a deal that is not ours");
            return;
        };
        if !matches!(sale.state, SaleState::Offered | SaleState::Accepted | SaleState::Released) {
            return;
        }
        let agreed = price >= sale.offered || (sale.state == SaleState::Accepted && price == sale.price);
        let why_not = if !agreed {
            Some(format!("it was to go for {}, not {price}", sale.price))
        } else if !sale.binds() && self.free_units(&sale.item) == 0 {
            Some("no unit is free any more".to_owned())
        } else {
            None
        };
        if let Some(reason) = why_not {
            self.end_sale(rq, &reason, effects);
            effects.requests.push((rq, DealRequest::Cancel.about(item_name)));
            return;
        }
        self.change_sale(rq, effects, |sale| {
            (sale.last_notification, sale.state, sale.price) =
                (SellerNotification::Reserve, SaleState::Reserved, price);
            // It implies the response to an OFFER or ACCEPT that is still pending.
            sale.is_pending = false;
        });
        effects.events.push(PeerEvent::Reserved { rq, item_name, price });
    }

    pub(super) fn released(&mut self, rq: u64, effects: &mut PeerEffects) {
        let Some(sale) = self.sales.get(&rq) else { return };
        if !matches!(sale.state, SaleState::Offered | SaleState::Accepted)
            || sale.last_notification == SellerNotification::Reserve
        {
            return;
        }
        let item_name = sale.item_name.clone();
        self.change_sale(rq, effects, |sale| {
            (sale.last_notification, sale.state) = (SellerNotification::Released, SaleState::Released)
        });
        effects.events.push(PeerEvent::Released { rq, item_name });
    }

    pub(super) fn offer_refused(&mut self, rq: u64, reason: &str, effects: &mut PeerEffects) {
        if self.sales.get(&rq).is_some_and(|sale| {
            sale.state == SaleState::Offered && sale.last_notification == SellerNotification::Search
        }) {
            self.end_sale(rq, reason, effects);
        }
    }

    /// Our offer remains valid at its own price until it is released.
    pub(super) fn accept_refused(&mut self, rq: u64, reason: &str, effects: &mut PeerEffects) {
        if self.sales.get(&rq).is_some_and(|sale| sale.state == SaleState::Accepted) {
            self.change_sale(rq, effects, |sale| (sale.state, sale.price) = (SaleState::Offered, sale.offered));
            self.report_and_ask(rq, format!("not accepted: {reason}"), effects);
        }
    }

    /// The unit becomes free once the server agrees.
    pub(super) fn cancel_sale(&mut self, rq: u64, effects: &mut PeerEffects) -> Result<(), CommandError> {
        let sale = self.sales.get(&rq).ok_or_else(|| CommandError::no_deal(rq))?;
        match sale.state {
            SaleState::Sold => Err(CommandError(format!("{rq} is sold"))),
            SaleState::Over => {
                Err(CommandError(format!("{rq} is over: {}", sale.reason.as_deref().unwrap_or("no sale"))))
            }
            SaleState::Shipped => Err(CommandError(format!("{rq} is being settled"))),
            SaleState::Unknown => {
                self.end_sale(rq, "given up", effects);
                Ok(())
            }
            _ => {
                let item_name = sale.item_name.clone();
                self.change_sale(rq, effects, |sale| sale.is_pending = true);
                effects.requests.push((rq, DealRequest::Cancel.about(item_name)));
                Ok(())
            }
        }
    }

    pub(super) fn ship(
        &mut self,
        rq: u64,
        price: Cents,
        to: ShipTo,
        effects: &mut PeerEffects,
    ) -> Result<(), CommandError> {
        let sale = self.sales.get(&rq).filter(|sale| sale.state == SaleState::Reserved);
        let Some(sale) = sale else { return Err(CommandError(format!("nothing of {rq} is reserved"))) };
        if sale.price != price {
            return Err(CommandError(format!("price: {rq} is for {}, not {price}", sale.price)));
        }
        let item_name = sale.item_name.clone();
        self.change_sale(rq, effects, |sale| (sale.state, sale.ship_to) = (SaleState::Shipped, Some(to)));
        effects.events.push(PeerEvent::Shipping { rq, item_name, price });
        Ok(())
    }

    /// Deletes the recipient.
    pub(super) fn sent(&mut self, rq: u64, effects: &mut PeerEffects) -> Result<(), CommandError> {
        let sale = self.sales.get(&rq).ok_or_else(|| CommandError(format!("there is no deal {rq}")))?;
        if sale.state != SaleState::Sold {
            return Err(CommandError(format!("{rq} is not sold: there is nothing to be sent")));
        }
        if sale.ship_to.is_none() {
            return Err(CommandError(format!("{rq} is marked as shipped already")));
        }
        self.change_sale(rq, effects, |sale| sale.ship_to = None);
        Ok(())
    }

    /// `price` is known from STATUS, `payout` from SETTLED.
    pub(super) fn sold(&mut self, rq: u64, price: Option<Cents>, payout: Option<Amount>, effects: &mut PeerEffects) {
        let Some(sale) = self.sales.get(&rq).filter(|sale| !sale.is_over()) else { return };
        // A unit that was not bound may have been sold otherwise.
        let is_there = sale.binds() || self.free_units(&sale.item) > 0;
        let (item, item_name) = (sale.item.clone(), sale.item_name.clone());
        let price = price.unwrap_or(sale.price);
        if is_there && let Some(item) = self.items.get_mut(&fold(&item)) {
            item.quantity = item.quantity.saturating_sub(1);
            item.sold += 1;
            effects.changes.push(PeerChange::Item(item.clone()));
        }
        self.change_sale(rq, effects, |sale| (sale.state, sale.price) = (SaleState::Sold, price));
        effects.events.push(PeerEvent::Sold { rq, item_name, price, payout });
    }

    /// Frees the unit.
    pub(super) fn end_sale(&mut self, rq: u64, reason: &str, effects: &mut PeerEffects) {
        let Some(sale) = self.sales.get(&rq).filter(|sale| !sale.is_over()) else { return };
        let item_name = sale.item_name.clone();
        self.change_sale(rq, effects, |sale| {
            (sale.state, sale.reason, sale.ship_to) = (SaleState::Over, Some(reason.into()), None);
        });
        effects.events.push(PeerEvent::Cancelled { rq, side: Side::Seller, item_name, reason: reason.into() });
    }

    pub(super) fn change_sale(&mut self, rq: u64, effects: &mut PeerEffects, change: impl FnOnce(&mut Sale)) {
        if let Some(sale) = self.sales.get_mut(&rq) {
            change(sale);
            sale.at = self.now;
            sale.changed_step = self.step;
            effects.changes.push(PeerChange::Sale(sale.clone()));
        }
    }
}
