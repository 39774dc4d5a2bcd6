//! What must hold, whatever is lost, repeated, late or switched off.

use std::collections::BTreeMap;

use p2s2::shop::ops::{Hold, Purchased, Refusal};
use p2s2::shop::purchase::{BankCall, Stage};

use super::buyers::Hand;
use super::customer::{Customer, Rows};
use super::product::Product;
use crate::bank::Bank;
use crate::invariants::Broken;

/// What was seen so far, as far as rules speak of it.
#[derive(Default)]
pub struct Invariants {
    pub broken: Option<Broken>,
    promised: Vec<(u64, Purchased)>,
    refused: Vec<(String, Refusal)>,
    /// What each buyer's keys were answered with, whichever hand asked.
    keys: BTreeMap<(u64, String), String>,
}

impl Invariants {
    fn hold(&mut self, holds: bool, rule: &'static str, detail: impl FnOnce() -> String) {
        if !holds && self.broken.is_none() {
            self.broken = Some(Broken { rule, detail: detail() });
        }
    }

    /// After every event.
    pub fn always(&mut self, customer: &Customer, product: &Product) {
        let disk = customer.disk.lock();
        let rows = &disk.rows;
        for (item, registered) in &product.shop.registered {
            let left = product.shop.items[item].quantity;
            let lines = product.holds.values().flat_map(|record| &record.lines);
            let taken: u64 = lines.filter(|line| line.item_id == *item).map(|line| u64::from(line.quantity)).sum();
            self.hold(left + taken == *registered, "units are neither made nor lost", || {
                format!("{item}: {left} left, {taken} held or sold, of {registered}")
            });
        }
        for (id, record) in product.holds.iter().filter(|(_, record)| !record.lines.is_empty()) {
            let is_known = rows.open.contains_key(id) || rows.history.contains_key(id);
            self.hold(is_known, "nothing is held for what is over", || format!("{id} is {:?}", record.hold));
        }
        let sum: i64 = rows.accounts.values().sum();
        self.hold(sum == 0, "the ledger sums to zero", || format!("{:?}", rows.accounts));
        let held: i64 = rows.open.values().map(|purchase| purchase.in_escrow().0).sum();
        let escrow = rows.accounts.get("escrow").copied().unwrap_or_default();
        self.hold(escrow == held, "escrow is what is held", || format!("{escrow} in escrow, {held} held"));
        let open = rows.open.values().chain(customer.memory.iter().flat_map(|memory| memory.core.purchases()));
        let mut ids: BTreeMap<u64, &str> = BTreeMap::new();
        for purchase in open.filter(|purchase| !purchase.is_over()) {
            let one = *ids.entry(purchase.buyer.user_id).or_insert(&purchase.id);
            let in_memory = customer.memory.as_ref().is_none_or(|memory| {
                [one, &purchase.id].iter().all(|id| memory.core.purchase(id).is_some_and(|purchase| !purchase.is_over()))
            });
            self.hold(one == purchase.id || !in_memory, "one purchase of a buyer at a time", || {
                format!("buyer {}: {one} and {}", purchase.buyer.user_id, purchase.id)
            });
        }
        for ((buyer, item), put) in &rows.put {
            let left = rows.in_cart(*buyer, item);
            let history = rows.history.values().filter(|purchase| purchase.buyer.user_id == *buyer);
            let lines = history.flat_map(|purchase| &purchase.priced).filter(|line| line.item_id == **item);
            let bought: u32 = lines.map(|line| line.quantity).sum();
            self.hold(left + bought <= *put, "one state of a cart is charged once", || {
                format!("buyer {buyer} put {put} of {item} into the cart, bought {bought}, {left} are in it")
            });
        }
    }

    /// Nothing is asked of the bank that a power cut could make us forget.
    pub fn bank_is_asked(&mut self, rows: &Rows, id: &str, call: BankCall) {
        let stage = rows.open.get(id).map(|purchase| purchase.stage());
        // A second asker of the same may come when the first has been answered.
        let is_known = match call {
            BankCall::Authorise(_) => stage >= Some(Stage::Authorising),
            BankCall::Capture => stage >= Some(Stage::Completed) || rows.history.contains_key(id),
            BankCall::Void => stage >= Some(Stage::Undone),
        };
        self.hold(is_known || stage.is_none(), "the bank is asked for what is on disk", || {
            format!("{call:?} of {id}, which is {stage:?}")
        });
    }

    /// A driver's step has changed the record.
    pub fn driven(&mut self, id: &str, changed: bool, lease: u64, newest: Option<u64>) {
        self.hold(!changed || Some(lease) == newest, "only the lease's holder drives", || {
            format!("{id} was changed with lease {lease}, the newest is {newest:?}")
        });
    }

    /// A driver says that it is done.
    pub fn purchased(&mut self, rows: &Rows, bank: &Bank, is_sold: bool, purchased: &Purchased) {
        let id = &purchased.purchase_id;
        let is_kept = rows.history.get(id).is_some_and(|known| known.outcome().as_ref() == Ok(purchased));
        self.hold(is_kept, "what was answered is on disk", || format!("{purchased:?}"));
        let captured = bank.accounts.get(id).is_some_and(|account| account.captured == 1);
        self.hold(captured, "charged if and only if purchased", || format!("{id} was answered and not charged"));
        self.hold(is_sold, "sold if and only if purchased", || format!("{id} was answered and is not sold"));
    }

    /// A driver says that it cannot be.
    pub fn refused(&mut self, bank: &Bank, id: &str, refusal: &Refusal, is_back: bool) {
        self.hold(is_back, "stock is back before a refusal", || format!("{id}: {refusal:?}"));
        let captured = bank.accounts.get(id).is_some_and(|account| account.captured > 0);
        self.hold(!captured, "charged if and only if purchased", || format!("{id}: {refusal:?}, and charged"));
        self.refused.push((id.to_owned(), refusal.clone()));
    }

    /// A buyer's key is answered.
    pub fn same_key(&mut self, buyer: u64, key: &str, before: &str, id: &str) {
        let anyone = self.keys.entry((buyer, key.to_owned())).or_insert_with(|| id.to_owned()).clone();
        self.hold(before == id && anyone == id, "a key is one purchase", || {
            format!("buyer {buyer}, {key}: {before}, {anyone} and now {id}")
        });
    }

    /// A buyer was told.
    pub fn promised(&mut self, buyer: u64, purchased: Purchased) {
        self.promised.push((buyer, purchased));
    }

    /// When all is quiet.
    pub fn end(&mut self, rows: &Rows, bank: &Bank, product: &Product, hands: &[Hand]) {
        self.hold(rows.open.is_empty(), "every attempt ends", || format!("{:?}", rows.open));
        for hand in hands {
            let asks = [&hand.waiting, &hand.in_doubt];
            self.hold(asks.iter().all(|ask| ask.is_none()), "every attempt ends", || format!("{asks:?}"));
        }
        for (id, account) in &bank.accounts {
            let purchased = rows.history.contains_key(id);
            self.hold((account.captured == 1) == purchased, "charged if and only if purchased", || {
                format!("{id}: {account:?}, purchased: {purchased}")
            });
            let held = account.authorised > 0 && account.captured == 0 && account.voided == 0;
            self.hold(!held, "nothing stays authorised", || format!("{id}: {account:?}"));
            self.hold(account.captured <= 1 && account.authorised <= 1, "charged once", || {
                format!("{id}: {account:?}")
            });
        }
        for (id, record) in &product.holds {
            let purchased = rows.history.get(id);
            self.hold((record.hold == Hold::Sold) == purchased.is_some(), "sold if and only if purchased", || {
                format!("{id} is {:?}, purchased: {purchased:?}", record.hold)
            });
            self.hold(record.hold != Hold::Held, "every attempt ends", || format!("{id} is held for ever"));
            if let Some(purchased) = purchased {
                self.hold(record.lines == purchased.priced, "sold if and only if purchased", || {
                    format!("{id}: {:?} were sold, {:?} paid", record.lines, purchased.priced)
                });
            }
        }
        for id in rows.history.keys() {
            let is_sold = product.holds.get(id).is_some_and(|record| record.hold == Hold::Sold);
            self.hold(is_sold, "sold if and only if purchased", || format!("{id} is purchased and not sold"));
        }
        for (buyer, purchased) in std::mem::take(&mut self.promised) {
            let known = rows.history.get(&purchased.purchase_id);
            let is_kept =
                known.is_some_and(|known| known.buyer.user_id == buyer && known.outcome().as_ref() == Ok(&purchased));
            self.hold(is_kept, "what was answered is on disk", || format!("{purchased:?}: {known:?}"));
        }
        for (id, refusal) in std::mem::take(&mut self.refused) {
            self.hold(!rows.history.contains_key(&id), "what was refused is no purchase", || {
                format!("{id} was refused: {refusal:?}")
            });
        }
        let mut keys: BTreeMap<(u64, &String), &String> = BTreeMap::new();
        for (id, purchase) in &rows.history {
            if let Some(key) = &purchase.key {
                let one = *keys.entry((purchase.buyer.user_id, key)).or_insert(id);
                self.hold(one == id, "a key is one purchase", || format!("{key}: {one} and {id}"));
            }
        }
        let spent: i64 = rows.history.values().map(|purchase| purchase.total().0).sum();
        let cards = rows.accounts.iter().filter(|(account, _)| account.starts_with("card:"));
        let charged: i64 = cards.map(|(_, cents)| -cents).sum();
        self.hold(spent == charged, "the ledger is what was purchased", || {
            format!("{spent} was purchased, {charged} charged: {:?}", rows.accounts)
        });
    }
}
