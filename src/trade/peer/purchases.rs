//! The buyer's side of deals.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{CommandError, PeerChange, PeerCore, PeerEffects, PeerEvent};
use crate::model::text::{self, DESCRIPTION_MAX, ITEM_NAME_MAX};
use crate::model::{Cents, Millis, Name};
use crate::trade::wire::{DealRequest, Goods, RequestBody, Side};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PurchaseState {
    Searching,
    /// An item is reserved for us.
    Found,
    Buying,
    Bought,
    /// The search ended without a purchase.
    Over,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Purchase {
    pub rq: u64,
    pub item_name: Arc<str>,
    pub description: Arc<str>,
    pub max_price: Cents,
    pub state: PurchaseState,
    /// The price that was found most recently.
    pub price: Option<Cents>,
    pub seller: Option<Name>,
    /// The price named in our BUY.
    pub bought_at: Option<Cents>,
    pub reason: Option<Arc<str>>,
    pub at: Millis,
    /// What the seller offers, in its own words.
    #[serde(default)]
    pub goods: Goods,
    /// Only to look at offers: nothing is bought.
    #[serde(default)]
    pub browse: bool,
    /// Unused; earlier versions told a newer FOUND by its larger number.
    #[serde(default)]
    found_mid: u64,
    /// We have sent CANCEL: whatever is found is declined.
    pub(super) unwanted: bool,
    #[serde(skip)]
    pub(super) is_pending: bool,
    #[serde(skip)]
    pub(super) changed_step: u64,
}

impl Purchase {
    pub fn is_over(&self) -> bool {
        matches!(self.state, PurchaseState::Bought | PurchaseState::Over)
    }

    fn is_over_error(&self) -> CommandError {
        CommandError(format!("{} is over: {}", self.rq, self.reason.as_deref().unwrap_or("no purchase")))
    }
}

impl PeerCore {
    pub(super) fn find(
        &mut self,
        item_name: Arc<str>,
        description: Arc<str>,
        max_price: Cents,
        browse: bool,
        effects: &mut PeerEffects,
    ) -> Result<(), CommandError> {
        let named = |field: &'static str| move |wrong: String| CommandError(format!("{field}: {wrong}"));
        text::check_length(&item_name, 1, ITEM_NAME_MAX).map_err(named("NAME"))?;
        text::check_length(&description, 0, DESCRIPTION_MAX).map_err(named("DESCRIPTION"))?;
        let rq = self.next_rq(effects)?;
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
            at: self.now,
            goods: Goods::default(),
            browse,
            found_mid: 0,
            unwanted: false,
            is_pending: true,
            changed_step: self.step,
        };
        effects.changes.push(PeerChange::Purchase(purchase.clone()));
        effects.requests.push((rq, RequestBody::LookingFor { item_name, description, max_price }));
        self.purchases.insert(rq, purchase);
        Ok(())
    }

    pub(super) fn buy(&mut self, rq: u64, effects: &mut PeerEffects) -> Result<(), CommandError> {
        let unknown = || CommandError(format!("there is no search {rq}; `deals` lists yours"));
        let purchase = self.purchases.get(&rq).ok_or_else(unknown)?;
        let (item_name, price) = match (purchase.state, purchase.price) {
            (PurchaseState::Found, Some(price)) => (purchase.item_name.clone(), price),
            (PurchaseState::Searching | PurchaseState::Found, _) => {
                return Err(CommandError(format!("nothing is found for {rq} yet")));
            }
            (PurchaseState::Buying, _) => return Err(CommandError(format!("{rq} is being bought already"))),
            (PurchaseState::Bought, _) => return Err(CommandError(format!("{rq} is bought already"))),
            (PurchaseState::Over, _) => return Err(purchase.is_over_error()),
        };
        self.change_purchase(rq, effects, |purchase| {
            (purchase.state, purchase.bought_at, purchase.is_pending) = (PurchaseState::Buying, Some(price), true);
        });
        effects.requests.push((rq, DealRequest::Buy { price }.about(item_name)));
        Ok(())
    }

    pub(super) fn cancel_purchase(&mut self, rq: u64, effects: &mut PeerEffects) -> Result<(), CommandError> {
        let purchase = self.purchases.get(&rq).ok_or_else(|| CommandError::no_deal(rq))?;
        match purchase.state {
            PurchaseState::Bought => return Err(CommandError(format!("{rq} is bought"))),
            PurchaseState::Over => return Err(purchase.is_over_error()),
            PurchaseState::Searching | PurchaseState::Found | PurchaseState::Buying => {}
        }
        let item_name = purchase.item_name.clone();
        // During a purchase only the server knows whether it can still be cancelled.
        let unwanted = purchase.state != PurchaseState::Buying;
        self.change_purchase(rq, effects, |purchase| {
            purchase.unwanted |= unwanted;
            purchase.is_pending = true;
        });
        effects.requests.push((rq, DealRequest::Cancel.about(item_name)));
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // the fields of FOUND; without `mid` it is what STATUS says
    pub(super) fn found(
        &mut self,
        mid: Option<u64>,
        rq: u64,
        item_name: Arc<str>,
        price: Cents,
        seller: Option<Name>,
        goods: Goods,
        effects: &mut PeerEffects,
    ) {
        let Some(purchase) = self.purchases.get(&rq) else {
            // It is of a lost data directory, for example: nobody here wants it, and a seller holds a unit for it.
            effects.requests.push((rq, DealRequest::Cancel.about(item_name)));
            return;
        };
        if purchase.state == PurchaseState::Bought {
            return;
        }
        if purchase.browse && purchase.price.is_none() {
            self.change_purchase(rq, effects, |purchase| {
                (purchase.price, purchase.seller, purchase.goods) = (Some(price), seller, goods);
                (purchase.unwanted, purchase.is_pending) = (true, true);
            });
            effects.requests.push((rq, DealRequest::Cancel.about(item_name)));
            return;
        }
        if purchase.unwanted || price > purchase.max_price {
            if !purchase.unwanted {
                let reason = format!("found for {price}, above the maximum of {}: refused", purchase.max_price);
                effects.trouble(Some(rq), reason);
            }
            self.change_purchase(rq, effects, |purchase| (purchase.unwanted, purchase.is_pending) = (true, true));
            effects.requests.push((rq, DealRequest::Cancel.about(item_name)));
            return;
        }
        if purchase.state == PurchaseState::Over {
            return;
        }
        let buying = purchase.state == PurchaseState::Buying;
        // Numbers of notifications have no order: only the server knows which of two different FOUNDs is valid.
        let differs = purchase.price.is_some_and(|before| before != price);
        self.change_purchase(rq, effects, |purchase| {
            purchase.price = Some(price);
            purchase.goods = goods.clone();
            purchase.seller = seller.clone().or(purchase.seller.take());
            if !buying {
                purchase.state = PurchaseState::Found;
            }
        });
        if differs && mid.is_some() {
            self.ask_status(Some(rq), effects);
        }
        if buying {
            return;
        }
        let Goods { item: offer_item, description: offer_description } = goods;
        effects.events.push(PeerEvent::Found { rq, item_name, price, seller, offer_item, offer_description });
        if self.auto_buy {
            // It has just been found, so it can be bought.
            if let Err(refused) = self.buy(rq, effects) {
                effects.trouble(Some(rq), refused.0);
            }
        }
    }

    pub(super) fn search_failed(&mut self, rq: u64, reason: &str, effects: &mut PeerEffects) {
        let Some(purchase) = self.purchases.get(&rq).filter(|purchase| !purchase.is_over()) else { return };
        let (item_name, max_price, browse) = (purchase.item_name.clone(), purchase.max_price, purchase.browse);
        self.change_purchase(rq, effects, |purchase| {
            (purchase.state, purchase.reason) = (PurchaseState::Over, Some(reason.into()));
        });
        // The browse command reports the result itself.
        if browse {
            return;
        }
        effects.events.push(match reason {
            "NOT_FOUND" => PeerEvent::NotFound { rq, item_name, max_price },
            _ => PeerEvent::NotAvailable { rq, item_name },
        });
    }

    pub(super) fn receipt(&mut self, rq: u64, item_name: &str, price: Cents, seller: Name, effects: &mut PeerEffects) {
        let agreed = self.purchases.get(&rq).and_then(|purchase| purchase.bought_at);
        if agreed != Some(price) || self.purchases.get(&rq).is_some_and(|purchase| *purchase.item_name != *item_name) {
            let reason = format!("the receipt for {price} is not what was bought");
            effects.trouble(Some(rq), reason);
        }
        self.bought(rq, Some(price), Some(seller), effects);
    }

    pub(super) fn bought(&mut self, rq: u64, price: Option<Cents>, seller: Option<Name>, effects: &mut PeerEffects) {
        let Some(purchase) = self.purchases.get(&rq).filter(|purchase| purchase.state != PurchaseState::Bought) else {
            return;
        };
        let item_name = purchase.item_name.clone();
        let price = price.or(purchase.bought_at).or(purchase.price).unwrap_or_default();
        let seller = seller.or_else(|| purchase.seller.clone());
        self.change_purchase(rq, effects, |purchase| {
            (purchase.state, purchase.price, purchase.reason) = (PurchaseState::Bought, Some(price), None);
            purchase.seller.clone_from(&seller);
        });
        effects.events.push(PeerEvent::Bought { rq, item_name, price, seller });
    }

    pub(super) fn end_purchase(&mut self, rq: u64, reason: &str, effects: &mut PeerEffects) {
        let Some(purchase) = self.purchases.get(&rq).filter(|purchase| !purchase.is_over()) else { return };
        let (item_name, browse) = (purchase.item_name.clone(), purchase.browse);
        self.change_purchase(rq, effects, |purchase| {
            (purchase.state, purchase.reason) = (PurchaseState::Over, Some(reason.into()));
        });
        if !browse {
            effects.events.push(PeerEvent::Cancelled { rq, side: Side::Buyer, item_name, reason: reason.into() });
        }
    }

    /// The item is not bought, and the reservation may have changed.
    pub(super) fn buy_refused(&mut self, rq: u64, again: bool, reason: &str, effects: &mut PeerEffects) {
        if self.purchases.get(&rq).is_some_and(|purchase| purchase.state == PurchaseState::Buying) {
            self.change_purchase(rq, effects, |purchase| {
                (purchase.state, purchase.bought_at) = (PurchaseState::Found, None);
            });
            effects.trouble(Some(rq), format!("not bought: {reason}"));
            if !again {
                self.ask_status(Some(rq), effects);
            }
        }
    }

    pub(super) fn change_purchase(&mut self, rq: u64, effects: &mut PeerEffects, change: impl FnOnce(&mut Purchase)) {
        if let Some(purchase) = self.purchases.get_mut(&rq) {
            change(purchase);
            purchase.at = self.now;
            purchase.changed_step = self.step;
            effects.changes.push(PeerChange::Purchase(purchase.clone()));
        }
    }
}
