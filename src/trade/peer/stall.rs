//! The stall: what is on sale, what matches a search, and the seller's side of deals.
//!
//! The server tells a seller things in one order (search, negotiate, released, reserve, the end), but
//! datagrams may overtake each other. So a word that stands before one already heard is old, and is
//! acknowledged without being acted on.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Change, Core, Effects, Heard, Note, Refused};
use crate::model::text::{self, DESCRIPTION_MAX, ITEM_NAME_MAX};
use crate::model::{Cents, Millis, Name};
use crate::trade::wire::{Amount, Ask, Goods, Side};

/// Most items on one stall.
pub const ITEMS_MAX: usize = 10_000;
/// What is looked for by who would see whatever there is.
pub const ANYTHING: &str = "*";
/// Most units of one item.
pub const QUANTITY_MAX: u64 = 1_000_000;

/// Something on sale.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Unique on a stall, whatever the case of its letters.
    pub name: String,
    /// What is asked for it.
    pub price: Cents,
    /// What is taken for it, if no buyer pays the price.
    pub min_price: Cents,
    /// Units there are: bound ones are among them, sold ones are not.
    pub quantity: u64,
    /// What else a search may match.
    pub description: String,
    /// Units sold so far.
    #[serde(default)]
    pub sold: u64,
}

impl Item {
    /// Checks every rule; the error names the field and says what was expected.
    ///
    /// # Errors
    /// The first rule that is broken.
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

/// Whom and where to something that was sold goes. Its `Debug` output hides the address.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct ShipTo {
    /// The buyer.
    pub name: Name,
    /// Its postal address.
    pub address: String,
}

impl std::fmt::Debug for ShipTo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShipTo").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Where a sale stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SaleState {
    /// We offered; it binds a unit.
    Offered,
    /// We agreed to the buyer's maximum; it binds a unit.
    Accepted,
    /// Another offer was taken. Ours may still be, if that one falls through; it binds nothing.
    Released,
    /// Our offer is taken; it binds a unit.
    Reserved,
    /// We said SHIPPED: the server decides how it ends; it binds a unit.
    Shipped,
    /// As before, but the server has forgotten how it ended. A person must find out; it binds a unit.
    Unknown,
    /// Paid: the unit is gone.
    Sold,
    /// Over without a sale.
    Over,
}

/// A deal, seller's side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sale {
    /// The server's number for our side.
    pub rq: u64,
    /// Which of our items.
    pub item: String,
    /// As the buyer wrote it.
    pub item_name: Arc<str>,
    /// What we asked.
    pub offered: Cents,
    /// What it goes for, as far as is known.
    pub price: Cents,
    /// How far it is.
    pub state: SaleState,
    /// Why it is over.
    pub reason: Option<Arc<str>>,
    /// Where it is to be sent, until it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ship_to: Option<ShipTo>,
    /// When it last changed.
    pub at: Millis,
    pub(super) heard: Heard,
    /// A request about it waits for its answer.
    #[serde(skip)]
    pub(super) pending: bool,
    #[serde(skip)]
    pub(super) changed_in: u64,
}

impl Sale {
    /// Whether a unit of the item is held for it.
    pub fn binds(&self) -> bool {
        matches!(
            self.state,
            SaleState::Offered | SaleState::Accepted | SaleState::Reserved | SaleState::Shipped | SaleState::Unknown
        )
    }

    /// Whether nothing more will come of it.
    pub fn is_over(&self) -> bool {
        matches!(self.state, SaleState::Sold | SaleState::Over)
    }
}

/// For comparing names: the case of letters does not count.
pub(super) fn fold(text: &str) -> String {
    text.to_lowercase()
}

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(fold)
}

/// How well an item answers a search: less is better, nothing is no match.
///
/// An item matches if the name that is looked for is its name, whatever the case of the letters, or if
/// every word of it (a run of letters and digits) is a word of the item's name or description. Best is
/// the same name, then all words in the name, then the rest (and then all there is, for who asks for
/// [`ANYTHING`]); among equals the one that has more words
/// of the search's description, then the cheaper one, then the first by name. So the description
/// chooses among matches, and never makes one: "a lamp, green" must not find a green chair.
fn fit(item: &Item, item_name: &str, description: &str) -> Option<(u8, usize, Cents)> {
    let in_name: Vec<String> = words(&item.name).collect();
    let in_description: Vec<String> = words(&item.description).collect();
    let wanted: Vec<String> = words(item_name).collect();
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
    let shared = words(description).filter(|word| in_name.contains(word) || in_description.contains(word)).count();
    Some((kind, usize::MAX - shared, item.price))
}

impl Core {
    pub(super) fn stock(&mut self, items: Vec<Item>, fx: &mut Effects) -> Result<(), Refused> {
        let added = items.iter().filter(|item| !self.items.contains_key(&fold(&item.name))).count();
        if self.items.len() + added > ITEMS_MAX {
            return Err(Refused(format!("expected at most {ITEMS_MAX} items on one stall")));
        }
        for item in &items {
            let bound = self.bound(&item.name);
            if item.quantity < bound {
                let name = &item.name;
                return Err(Refused(format!(
                    "quantity: {bound} of {name:?} are bound to open deals; cancel them first"
                )));
            }
        }
        for mut item in items {
            let key = fold(&item.name);
            item.sold = self.items.get(&key).map_or(0, |before| before.sold);
            fx.changes.push(Change::Item(item.clone()));
            self.items.insert(key, item);
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, name: &str, fx: &mut Effects) -> Result<(), Refused> {
        let item = self.items.get(&fold(name)).ok_or_else(|| Refused(format!("no item is named {name:?}")))?;
        let bound = self.bound(name);
        if bound > 0 {
            return Err(Refused(format!("{bound} of {name:?} are bound to open deals; cancel them first")));
        }
        fx.changes.push(Change::DropItem(item.name.clone()));
        self.items.remove(&fold(name));
        Ok(())
    }

    /// Units of an item that are held for deals.
    pub fn bound(&self, name: &str) -> u64 {
        let name = fold(name);
        self.sales.values().filter(|sale| sale.binds() && fold(&sale.item) == name).count() as u64
    }

    fn free(&self, name: &str) -> u64 {
        let quantity = self.items.get(&fold(name)).map_or(0, |item| item.quantity);
        quantity.saturating_sub(self.bound(name))
    }

    // What the server says.

    pub(super) fn search(&mut self, now: Millis, rq: u64, item_name: Arc<str>, description: &str, fx: &mut Effects) {
        if self.sales.contains_key(&rq) {
            return;
        }
        let mut matching: Vec<_> = self
            .items
            .values()
            .filter(|item| item.quantity > 0)
            .filter_map(|item| Some((fit(item, &item_name, description)?, item)))
            .collect();
        // Stable: among equals the order of names stays.
        matching.sort_by_key(|(fit, _)| *fit);
        let Some((_, item)) = matching.into_iter().find(|(_, item)| self.free(&item.name) > 0) else {
            fx.requests.push((rq, Ask::NotAvailable { item_name }));
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
            at: now,
            heard: Heard::Search,
            pending: true,
            changed_in: self.step,
        };
        fx.notes.push(Note::Offered { rq, item_name: item_name.clone(), item: sale.item.clone(), price: sale.price });
        let description = Some(item.description.as_str()).filter(|text| !text.is_empty()).map(Arc::from);
        let goods = Goods { item: Some(item.name.as_str().into()), description };
        fx.requests.push((rq, Ask::Offer { item_name, price: sale.price, goods }));
        fx.changes.push(Change::Sale(sale.clone()));
        self.sales.insert(rq, sale);
    }

    pub(super) fn negotiate(&mut self, now: Millis, rq: u64, item_name: Arc<str>, max_price: Cents, fx: &mut Effects) {
        let Some(sale) = self.sales.get(&rq) else {
            fx.requests.push((rq, Ask::Refuse { item_name, max_price }));
            return;
        };
        if sale.heard as u8 > Heard::Negotiate as u8 || !matches!(sale.state, SaleState::Offered | SaleState::Accepted)
        {
            return;
        }
        let agreed = self.items.get(&fold(&sale.item)).is_some_and(|item| max_price >= item.min_price);
        let (ask, note) = if agreed {
            (
                Ask::Accept { item_name: item_name.clone(), max_price },
                Note::Accepted { rq, item_name: item_name.clone(), max_price },
            )
        } else {
            (Ask::Refuse { item_name: item_name.clone(), max_price }, Note::Declined { rq, item_name, max_price })
        };
        self.change_sale(now, rq, fx, |sale| {
            sale.heard = Heard::Negotiate;
            sale.pending = true;
            if agreed {
                (sale.state, sale.price) = (SaleState::Accepted, max_price);
            }
        });
        fx.notes.push(note);
        fx.requests.push((rq, ask));
    }

    pub(super) fn reserve(&mut self, now: Millis, rq: u64, item_name: Arc<str>, price: Cents, fx: &mut Effects) {
        let Some(sale) = self.sales.get(&rq) else {
            // Nothing is held for it: the sooner the server knows, the sooner someone else can sell.
            fx.requests.push((rq, Ask::Cancel { item_name }));
            fx.notes.push(Note::Trouble { rq: Some(rq), reason: "RESERVE for a deal that is not ours".to_owned() });
            return;
        };
        if !matches!(sale.state, SaleState::Offered | SaleState::Accepted | SaleState::Released) {
            return;
        }
        let agreed = price >= sale.offered || (sale.state == SaleState::Accepted && price == sale.price);
        let why_not = if !agreed {
            Some(format!("it was to go for {}, not {price}", sale.price))
        } else if !sale.binds() && self.free(&sale.item) == 0 {
            Some("no unit is free any more".to_owned())
        } else {
            None
        };
        if let Some(reason) = why_not {
            self.end_sale(now, rq, &reason, fx);
            fx.requests.push((rq, Ask::Cancel { item_name }));
            return;
        }
        self.change_sale(now, rq, fx, |sale| {
            (sale.heard, sale.state, sale.price) = (Heard::Reserve, SaleState::Reserved, price);
            // Whatever the OFFER or ACCEPT is still waiting for, this is the answer.
            sale.pending = false;
        });
        fx.notes.push(Note::Reserved { rq, item_name, price });
    }

    pub(super) fn released(&mut self, now: Millis, rq: u64, fx: &mut Effects) {
        let Some(sale) = self.sales.get(&rq) else { return };
        if !matches!(sale.state, SaleState::Offered | SaleState::Accepted) || sale.heard == Heard::Reserve {
            return;
        }
        let item_name = sale.item_name.clone();
        self.change_sale(now, rq, fx, |sale| (sale.heard, sale.state) = (Heard::Released, SaleState::Released));
        fx.notes.push(Note::Released { rq, item_name });
    }

    // What our requests come to.

    pub(super) fn offer_refused(&mut self, now: Millis, rq: u64, reason: &str, fx: &mut Effects) {
        if self.sales.get(&rq).is_some_and(|sale| sale.state == SaleState::Offered && sale.heard == Heard::Search) {
            self.end_sale(now, rq, reason, fx);
        }
    }

    /// Our offer still stands at its own price, until the server releases it.
    pub(super) fn accept_refused(&mut self, now: Millis, rq: u64, reason: &str, fx: &mut Effects) {
        if self.sales.get(&rq).is_some_and(|sale| sale.state == SaleState::Accepted) {
            self.change_sale(now, rq, fx, |sale| (sale.state, sale.price) = (SaleState::Offered, sale.offered));
            fx.notes.push(Note::Trouble { rq: Some(rq), reason: format!("not accepted: {reason}") });
            self.ask_status(Some(rq), fx);
        }
    }

    /// The person steps back. The unit is free once the server agrees.
    pub(super) fn cancel_sale(&mut self, now: Millis, rq: u64, fx: &mut Effects) -> Result<(), Refused> {
        let Some(sale) = self.sales.get(&rq) else {
            return Err(Refused(format!("there is no deal {rq}; `deals` lists yours")));
        };
        match sale.state {
            SaleState::Sold => Err(Refused(format!("{rq} is sold"))),
            SaleState::Over => Err(Refused(format!("{rq} is over: {}", sale.reason.as_deref().unwrap_or("no sale")))),
            SaleState::Shipped => Err(Refused(format!("{rq} is being settled"))),
            SaleState::Unknown => {
                self.end_sale(now, rq, "given up", fx);
                Ok(())
            }
            _ => {
                let item_name = sale.item_name.clone();
                self.change_sale(now, rq, fx, |sale| sale.pending = true);
                fx.requests.push((rq, Ask::Cancel { item_name }));
                Ok(())
            }
        }
    }

    // The settlement.

    pub(super) fn ship(
        &mut self,
        now: Millis,
        rq: u64,
        price: Cents,
        to: ShipTo,
        fx: &mut Effects,
    ) -> Result<(), Refused> {
        let sale = self.sales.get(&rq).filter(|sale| sale.state == SaleState::Reserved);
        let Some(sale) = sale else { return Err(Refused(format!("nothing of {rq} is reserved"))) };
        if sale.price != price {
            return Err(Refused(format!("price: {rq} is for {}, not {price}", sale.price)));
        }
        let item_name = sale.item_name.clone();
        self.change_sale(now, rq, fx, |sale| (sale.state, sale.ship_to) = (SaleState::Shipped, Some(to)));
        fx.notes.push(Note::Shipping { rq, item_name, price });
        Ok(())
    }

    /// The person has sent it: where to is forgotten.
    pub(super) fn sent(&mut self, now: Millis, rq: u64, fx: &mut Effects) -> Result<(), Refused> {
        let sale = self.sales.get(&rq).ok_or_else(|| Refused(format!("there is no deal {rq}")))?;
        if sale.state != SaleState::Sold {
            return Err(Refused(format!("{rq} is not sold: there is nothing to be sent")));
        }
        if sale.ship_to.is_none() {
            return Err(Refused(format!("{rq} is marked as shipped already")));
        }
        self.change_sale(now, rq, fx, |sale| sale.ship_to = None);
        Ok(())
    }

    /// Paid: the goods are sent. `price` where the server names it (STATUS), `payout` where it does (SETTLED).
    pub(super) fn sold(
        &mut self,
        now: Millis,
        rq: u64,
        price: Option<Cents>,
        payout: Option<Amount>,
        fx: &mut Effects,
    ) {
        let Some(sale) = self.sales.get(&rq).filter(|sale| !sale.is_over()) else { return };
        // A unit that is not held may have gone elsewhere since; the count must not become a lie.
        let is_there = sale.binds() || self.free(&sale.item) > 0;
        let (item, item_name) = (sale.item.clone(), sale.item_name.clone());
        let price = price.unwrap_or(sale.price);
        if is_there && let Some(item) = self.items.get_mut(&fold(&item)) {
            item.quantity = item.quantity.saturating_sub(1);
            item.sold += 1;
            fx.changes.push(Change::Item(item.clone()));
        }
        self.change_sale(now, rq, fx, |sale| (sale.state, sale.price) = (SaleState::Sold, price));
        fx.notes.push(Note::Sold { rq, item_name, price, payout });
    }

    /// Over without a sale: its unit is free.
    pub(super) fn end_sale(&mut self, now: Millis, rq: u64, reason: &str, fx: &mut Effects) {
        let Some(sale) = self.sales.get(&rq).filter(|sale| !sale.is_over()) else { return };
        let item_name = sale.item_name.clone();
        self.change_sale(now, rq, fx, |sale| {
            (sale.state, sale.reason, sale.ship_to) = (SaleState::Over, Some(reason.into()), None);
        });
        fx.notes.push(Note::Cancelled { rq, side: Side::Seller, item_name, reason: reason.into() });
    }

    pub(super) fn change_sale(&mut self, now: Millis, rq: u64, fx: &mut Effects, change: impl FnOnce(&mut Sale)) {
        if let Some(sale) = self.sales.get_mut(&rq) {
            change(sale);
            sale.at = now;
            sale.changed_in = self.step;
            fx.changes.push(Change::Sale(sale.clone()));
        }
    }
}
