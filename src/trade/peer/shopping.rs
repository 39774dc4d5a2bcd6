//! The shopping list: the buyer's side of deals.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Change, Core, Effects, Note, Refused};
use crate::model::text::{self, DESCRIPTION_MAX, ITEM_NAME_MAX};
use crate::model::{Cents, Millis, Name};
use crate::trade::wire::{Ask, Goods, Side};

/// Where a search stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PurchaseState {
    /// The server asks around.
    Searching,
    /// One is reserved for us; we may buy.
    Found,
    /// We said BUY.
    Buying,
    /// Paid.
    Bought,
    /// Over without a purchase.
    Over,
}

/// A deal, buyer's side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Purchase {
    /// Our number for it.
    pub rq: u64,
    /// What we look for.
    pub item_name: Arc<str>,
    /// What else we said of it.
    pub description: Arc<str>,
    /// The most we pay.
    pub max_price: Cents,
    /// How far it is.
    pub state: PurchaseState,
    /// The newest price that was found.
    pub price: Option<Cents>,
    /// Who sells it for that.
    pub seller: Option<Name>,
    /// The price that our BUY named.
    pub bought_at: Option<Cents>,
    /// Why it is over.
    pub reason: Option<Arc<str>>,
    /// When it last changed.
    pub at: Millis,
    /// What is really offered for it.
    #[serde(default)]
    pub goods: Goods,
    /// It was to be seen who sells what: nothing is bought.
    #[serde(default)]
    pub browse: bool,
    /// Earlier versions knew a newer FOUND by its larger number.
    #[serde(default)]
    found_mid: u64,
    /// We said CANCEL: whatever is found now is not wanted.
    pub(super) unwanted: bool,
    /// A request about it waits for its answer.
    #[serde(skip)]
    pub(super) pending: bool,
    #[serde(skip)]
    pub(super) changed_in: u64,
}

impl Purchase {
    /// Whether nothing more will come of it.
    pub fn is_over(&self) -> bool {
        matches!(self.state, PurchaseState::Bought | PurchaseState::Over)
    }
}

impl Core {
    pub(super) fn find(
        &mut self,
        now: Millis,
        item_name: Arc<str>,
        description: Arc<str>,
        max_price: Cents,
        browse: bool,
        fx: &mut Effects,
    ) -> Result<(), Refused> {
        let named = |field: &'static str| move |wrong: String| Refused(format!("{field}: {wrong}"));
        text::check_length(&item_name, 1, ITEM_NAME_MAX).map_err(named("NAME"))?;
        text::check_length(&description, 0, DESCRIPTION_MAX).map_err(named("DESCRIPTION"))?;
        let rq = self.number(fx)?;
        let purchase = Purchase {
            rq,
            item_name: item_name.clone(),
            description: description.clone(),
            max_price,
            state: PurchaseState::Searching,
            price: None,
            seller: None,
            bought_at: None,
            reason: None,
            at: now,
            goods: Goods::default(),
            browse,
            found_mid: 0,
            unwanted: false,
            pending: true,
            changed_in: self.step,
        };
        fx.changes.push(Change::Purchase(purchase.clone()));
        fx.requests.push((rq, Ask::LookingFor { item_name, description, max_price }));
        self.purchases.insert(rq, purchase);
        Ok(())
    }

    pub(super) fn buy(&mut self, now: Millis, rq: u64, fx: &mut Effects) -> Result<(), Refused> {
        let purchase =
            self.purchases.get(&rq).ok_or_else(|| Refused(format!("there is no search {rq}; `deals` lists yours")))?;
        let (item_name, price) = match (purchase.state, purchase.price) {
            (PurchaseState::Found, Some(price)) => (purchase.item_name.clone(), price),
            (PurchaseState::Searching | PurchaseState::Found, _) => {
                return Err(Refused(format!("nothing is found for {rq} yet")));
            }
            (PurchaseState::Buying, _) => return Err(Refused(format!("{rq} is being bought already"))),
            (PurchaseState::Bought, _) => return Err(Refused(format!("{rq} is bought already"))),
            (PurchaseState::Over, _) => {
                return Err(Refused(format!("{rq} is over: {}", purchase.reason.as_deref().unwrap_or("no purchase"))));
            }
        };
        self.change_purchase(now, rq, fx, |purchase| {
            (purchase.state, purchase.bought_at, purchase.pending) = (PurchaseState::Buying, Some(price), true);
        });
        fx.requests.push((rq, Ask::Buy { item_name, price }));
        Ok(())
    }

    pub(super) fn cancel_purchase(&mut self, now: Millis, rq: u64, fx: &mut Effects) -> Result<(), Refused> {
        let purchase =
            self.purchases.get(&rq).ok_or_else(|| Refused(format!("there is no deal {rq}; `deals` lists yours")))?;
        match purchase.state {
            PurchaseState::Bought => return Err(Refused(format!("{rq} is bought"))),
            PurchaseState::Over => {
                return Err(Refused(format!("{rq} is over: {}", purchase.reason.as_deref().unwrap_or("no purchase"))));
            }
            _ => {}
        }
        let item_name = purchase.item_name.clone();
        // Not yet while it is being bought: the server alone knows whether there is still a way back.
        let unwanted = purchase.state != PurchaseState::Buying;
        self.change_purchase(now, rq, fx, |purchase| {
            purchase.unwanted |= unwanted;
            purchase.pending = true;
        });
        fx.requests.push((rq, Ask::Cancel { item_name }));
        Ok(())
    }

    // What the server says.

    #[allow(clippy::too_many_arguments)] // the fields of FOUND; without `mid` it is what STATUS says
    pub(super) fn found(
        &mut self,
        now: Millis,
        mid: Option<u64>,
        rq: u64,
        item_name: Arc<str>,
        price: Cents,
        seller: Option<Name>,
        goods: Goods,
        fx: &mut Effects,
    ) {
        let Some(purchase) = self.purchases.get(&rq) else {
            // Of a data dir that was lost, say: nobody here wants it, and a seller holds it.
            fx.requests.push((rq, Ask::Cancel { item_name }));
            return;
        };
        if purchase.state == PurchaseState::Bought {
            return;
        }
        if purchase.browse && purchase.price.is_none() {
            self.change_purchase(now, rq, fx, |purchase| {
                (purchase.price, purchase.seller, purchase.goods) = (Some(price), seller, goods);
                (purchase.unwanted, purchase.pending) = (true, true);
            });
            fx.requests.push((rq, Ask::Cancel { item_name }));
            return;
        }
        if purchase.unwanted || price > purchase.max_price {
            if !purchase.unwanted {
                let reason = format!("found for {price}, above the maximum of {}: refused", purchase.max_price);
                fx.notes.push(Note::Trouble { rq: Some(rq), reason });
            }
            self.change_purchase(now, rq, fx, |purchase| (purchase.unwanted, purchase.pending) = (true, true));
            fx.requests.push((rq, Ask::Cancel { item_name }));
            return;
        }
        if purchase.state == PurchaseState::Over {
            return;
        }
        let buying = purchase.state == PurchaseState::Buying;
        // Numbers of pushes tell no order: of two words that differ, the server knows which holds.
        let differs = purchase.price.is_some_and(|before| before != price);
        self.change_purchase(now, rq, fx, |purchase| {
            purchase.price = Some(price);
            purchase.goods = goods.clone();
            purchase.seller = seller.clone().or(purchase.seller.take());
            if !buying {
                purchase.state = PurchaseState::Found;
            }
        });
        if differs && mid.is_some() {
            self.ask_status(Some(rq), fx);
        }
        if buying {
            return;
        }
        let Goods { item: offer_item, description: offer_description } = goods;
        fx.notes.push(Note::Found { rq, item_name, price, seller, offer_item, offer_description });
        if self.auto_buy {
            // It is found, so it can be bought.
            if let Err(refused) = self.buy(now, rq, fx) {
                fx.notes.push(Note::Trouble { rq: Some(rq), reason: refused.0 });
            }
        }
    }

    pub(super) fn search_failed(&mut self, now: Millis, rq: u64, reason: &str, fx: &mut Effects) {
        let Some(purchase) = self.purchases.get(&rq).filter(|purchase| !purchase.is_over()) else { return };
        let (item_name, max_price, browse) = (purchase.item_name.clone(), purchase.max_price, purchase.browse);
        self.change_purchase(now, rq, fx, |purchase| {
            (purchase.state, purchase.reason) = (PurchaseState::Over, Some(reason.into()));
        });
        // Who browses is told by the command itself.
        if browse {
            return;
        }
        fx.notes.push(match reason {
            "NOT_FOUND" => Note::NotFound { rq, item_name, max_price },
            _ => Note::NotAvailable { rq, item_name },
        });
    }

    pub(super) fn receipt(
        &mut self,
        now: Millis,
        rq: u64,
        item_name: &str,
        price: Cents,
        seller: Name,
        fx: &mut Effects,
    ) {
        let agreed = self.purchases.get(&rq).and_then(|purchase| purchase.bought_at);
        if agreed != Some(price) || self.purchases.get(&rq).is_some_and(|purchase| *purchase.item_name != *item_name) {
            let reason = format!("the receipt for {price} is not what was bought");
            fx.notes.push(Note::Trouble { rq: Some(rq), reason });
        }
        self.bought(now, rq, Some(price), Some(seller), fx);
    }

    pub(super) fn bought(
        &mut self,
        now: Millis,
        rq: u64,
        price: Option<Cents>,
        seller: Option<Name>,
        fx: &mut Effects,
    ) {
        let Some(purchase) = self.purchases.get(&rq).filter(|purchase| purchase.state != PurchaseState::Bought) else {
            return;
        };
        let item_name = purchase.item_name.clone();
        let price = price.or(purchase.bought_at).or(purchase.price).unwrap_or_default();
        let seller = seller.or_else(|| purchase.seller.clone());
        self.change_purchase(now, rq, fx, |purchase| {
            (purchase.state, purchase.price, purchase.reason) = (PurchaseState::Bought, Some(price), None);
            purchase.seller.clone_from(&seller);
        });
        fx.notes.push(Note::Bought { rq, item_name, price, seller });
    }

    pub(super) fn end_purchase(&mut self, now: Millis, rq: u64, reason: &str, fx: &mut Effects) {
        let Some(purchase) = self.purchases.get(&rq).filter(|purchase| !purchase.is_over()) else { return };
        let (item_name, browse) = (purchase.item_name.clone(), purchase.browse);
        self.change_purchase(now, rq, fx, |purchase| {
            (purchase.state, purchase.reason) = (PurchaseState::Over, Some(reason.into()));
        });
        if browse {
            return;
        }
        fx.notes.push(Note::Cancelled { rq, side: Side::Buyer, item_name, reason: reason.into() });
    }

    // What our requests come to.

    pub(super) fn search_refused(&mut self, now: Millis, rq: u64, reason: &str, fx: &mut Effects) {
        self.end_purchase(now, rq, reason, fx);
    }

    /// The server did not take our BUY: what was found is not bought, and may have changed.
    pub(super) fn buy_refused(&mut self, now: Millis, rq: u64, again: bool, reason: &str, fx: &mut Effects) {
        if self.purchases.get(&rq).is_some_and(|purchase| purchase.state == PurchaseState::Buying) {
            self.change_purchase(now, rq, fx, |purchase| {
                (purchase.state, purchase.bought_at) = (PurchaseState::Found, None);
            });
            fx.notes.push(Note::Trouble { rq: Some(rq), reason: format!("not bought: {reason}") });
            if !again {
                self.ask_status(Some(rq), fx);
            }
        }
    }

    pub(super) fn change_purchase(
        &mut self,
        now: Millis,
        rq: u64,
        fx: &mut Effects,
        change: impl FnOnce(&mut Purchase),
    ) {
        if let Some(purchase) = self.purchases.get_mut(&rq) {
            change(purchase);
            purchase.at = now;
            purchase.changed_in = self.step;
            fx.changes.push(Change::Purchase(purchase.clone()));
        }
    }
}
