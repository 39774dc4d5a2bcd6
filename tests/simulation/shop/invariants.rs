//! The invariants, which must hold whatever is lost, repeated, late or crashed.

use std::collections::BTreeMap;

use p2s2::internals::shop::ops::{CompletedPurchase, HoldState, Refusal};
use p2s2::internals::shop::purchase::{BankRequest, PurchaseStage};

use super::buyers::BuyerClient;
use super::customer::{CustomerDb, StoredState};
use super::product::ProductDb;
use crate::bank::Bank;
use crate::invariants::Violation;

/// Checks the invariants and collects the observations that they need.
#[derive(Default)]
pub struct Invariants {
    pub broken: Option<Violation>,
    promised: Vec<(u64, CompletedPurchase)>,
    refused: Vec<(String, Refusal)>,
    /// The purchase id that each buyer's idempotency key returned, on either client.
    keys: BTreeMap<(u64, String), String>,
}

impl Invariants {
    fn require(&mut self, holds: bool, rule: &'static str, detail: impl FnOnce() -> String) {
        if !holds && self.broken.is_none() {
            self.broken = Some(Violation { rule, detail: detail() });
        }
    }

    /// Checks the invariants of the whole state after an event.
    pub fn check_after_event(&mut self, customer: &CustomerDb, product: &ProductDb) {
        let disk = customer.disk.lock();
        let rows = &disk.rows;
        for (item, registered) in &product.shop.registered {
            let left = product.shop.items[item].quantity;
            let lines = product.holds.values().flat_map(|record| &record.lines);
            let taken: u64 = lines.filter(|line| line.item_id == *item).map(|line| u64::from(line.quantity)).sum();
            self.require(left + taken == *registered, "units are neither made nor lost", || {
                format!("{item}: {left} left, {taken} held or sold, of {registered}")
            });
        }
        for (id, record) in product.holds.iter().filter(|(_, record)| !record.lines.is_empty()) {
            let is_known = rows.open.contains_key(id) || rows.history.contains_key(id);
            self.require(is_known, "nothing is held for what is over", || format!("{id} is {:?}", record.state));
        }
        let sum: i64 = rows.accounts.values().sum();
        self.require(sum == 0, "the ledger sums to zero", || format!("{:?}", rows.accounts));
        let held: i64 = rows.open.values().map(|purchase| purchase.in_escrow().0).sum();
        let escrow = rows.accounts.get("escrow").copied().unwrap_or_default();
        self.require(escrow == held, "escrow is what is held", || format!("{escrow} in escrow, {held} held"));
        let open = rows.open.values().chain(customer.memory.iter().flat_map(|memory| memory.core.purchases.iter()));
        let mut ids: BTreeMap<u64, &str> = BTreeMap::new();
        for purchase in open.filter(|purchase| !purchase.is_terminal()) {
            let one = *ids.entry(purchase.buyer.user_id).or_insert(&purchase.id);
            let in_memory = customer.memory.as_ref().is_none_or(|memory| {
                [one, &purchase.id]
                    .iter()
                    .all(|id| memory.core.purchases.get(id).is_some_and(|purchase| !purchase.is_terminal()))
            });
            self.require(one == purchase.id || !in_memory, "one purchase of a buyer at a time", || {
                format!("buyer {}: {one} and {}", purchase.buyer.user_id, purchase.id)
            });
        }
        for ((buyer, item), put) in &rows.put {
            let left = rows.in_cart(*buyer, item);
            let history = rows.history.values().filter(|purchase| purchase.buyer.user_id == *buyer);
            let lines = history.flat_map(|purchase| &purchase.priced).filter(|line| line.item_id == **item);
            let bought: u32 = lines.map(|line| line.quantity).sum();
            self.require(left + bought <= *put, "one state of a cart is charged once", || {
                format!("buyer {buyer} put {put} of {item} into the cart, bought {bought}, {left} are in it")
            });
        }
    }

    /// A request to the bank must be one that is known after a crash.
    pub fn check_bank_request(&mut self, rows: &StoredState, id: &str, call: BankRequest) {
        let stage = rows.open.get(id).map(|purchase| purchase.stage());
        // A repeated request may be sent after the first was answered, when the stage is a later one.
        let is_known = match call {
            BankRequest::Authorise(_) => stage >= Some(PurchaseStage::Authorising),
            BankRequest::Capture => stage >= Some(PurchaseStage::Completed) || rows.history.contains_key(id),
            BankRequest::Void => stage >= Some(PurchaseStage::Undone),
        };
        self.require(is_known || stage.is_none(), "the bank is asked for what is on disk", || {
            format!("{call:?} of {id}, which is {stage:?}")
        });
    }

    /// Checks the lease of a driver's event that may have changed the record.
    pub fn check_driver_step(&mut self, id: &str, changed: bool, lease: u64, newest: Option<u64>) {
        self.require(!changed || Some(lease) == newest, "only the lease's holder drives", || {
            format!("{id} was changed with lease {lease}, the newest is {newest:?}")
        });
    }

    /// A driver has finished with a completed purchase.
    pub fn check_purchased(&mut self, rows: &StoredState, bank: &Bank, is_sold: bool, purchased: &CompletedPurchase) {
        let id = &purchased.purchase_id;
        let is_kept = rows.history.get(id).is_some_and(|known| known.outcome().as_ref() == Ok(purchased));
        self.require(is_kept, "what was answered is on disk", || format!("{purchased:?}"));
        let captured = bank.accounts.get(id).is_some_and(|account| account.captured == 1);
        self.require(captured, "charged if and only if purchased", || format!("{id} was answered and not charged"));
        self.require(is_sold, "sold if and only if purchased", || format!("{id} was answered and is not sold"));
    }

    /// A driver has finished with a refusal.
    pub fn check_refused(&mut self, bank: &Bank, id: &str, refusal: &Refusal, is_back: bool) {
        self.require(is_back, "stock is back before a refusal", || format!("{id}: {refusal:?}"));
        let captured = bank.accounts.get(id).is_some_and(|account| account.captured > 0);
        self.require(!captured, "charged if and only if purchased", || format!("{id}: {refusal:?}, and charged"));
        self.refused.push((id.to_owned(), refusal.clone()));
    }

    /// A buyer got this purchase for an idempotency key.
    pub fn check_key(&mut self, buyer: u64, key: &str, before: &str, id: &str) {
        let anyone = self.keys.entry((buyer, key.to_owned())).or_insert_with(|| id.to_owned()).clone();
        self.require(before == id && anyone == id, "a key is one purchase", || {
            format!("buyer {buyer}, {key}: {before}, {anyone} and now {id}")
        });
    }

    /// A buyer was told of this purchase, which the check at the end must find.
    pub fn record_promise(&mut self, buyer: u64, purchased: CompletedPurchase) {
        self.promised.push((buyer, purchased));
    }

    /// Checks the final state.
    pub fn check_at_end(&mut self, rows: &StoredState, bank: &Bank, product: &ProductDb, clients: &[BuyerClient]) {
        self.require(rows.open.is_empty(), "every attempt ends", || format!("{:?}", rows.open));
        for client in clients {
            let asks = [&client.waiting, &client.unresolved];
            self.require(asks.iter().all(|request| request.is_none()), "every attempt ends", || format!("{asks:?}"));
        }
        for (id, account) in &bank.accounts {
            let purchased = rows.history.contains_key(id);
            self.require((account.captured == 1) == purchased, "charged if and only if purchased", || {
                format!("{id}: {account:?}, purchased: {purchased}")
            });
            let held = account.authorised > 0 && account.captured == 0 && account.voided == 0;
            self.require(!held, "nothing stays authorised", || format!("{id}: {account:?}"));
            self.require(account.captured <= 1 && account.authorised <= 1, "charged once", || {
                format!("{id}: {account:?}")
            });
        }
        for (id, record) in &product.holds {
            let purchased = rows.history.get(id);
            self.require(
                (record.state == HoldState::Sold) == purchased.is_some(),
                "sold if and only if purchased",
                || format!("{id} is {:?}, purchased: {purchased:?}", record.state),
            );
            self.require(record.state != HoldState::Held, "every attempt ends", || format!("{id} is held for ever"));
            if let Some(purchased) = purchased {
                self.require(record.lines == purchased.priced, "sold if and only if purchased", || {
                    format!("{id}: {:?} were sold, {:?} paid", record.lines, purchased.priced)
                });
            }
        }
        for id in rows.history.keys() {
            let is_sold = product.holds.get(id).is_some_and(|record| record.state == HoldState::Sold);
            self.require(is_sold, "sold if and only if purchased", || format!("{id} is purchased and not sold"));
        }
        for (buyer, purchased) in std::mem::take(&mut self.promised) {
            let known = rows.history.get(&purchased.purchase_id);
            let is_kept =
                known.is_some_and(|known| known.buyer.user_id == buyer && known.outcome().as_ref() == Ok(&purchased));
            self.require(is_kept, "what was answered is on disk", || format!("{purchased:?}: {known:?}"));
        }
        for (id, refusal) in std::mem::take(&mut self.refused) {
            self.require(!rows.history.contains_key(&id), "what was refused is no purchase", || {
                format!("{id} was refused: {refusal:?}")
            });
        }
        let mut keys: BTreeMap<(u64, &String), &String> = BTreeMap::new();
        for (id, purchase) in &rows.history {
            if let Some(key) = &purchase.key {
                let one = *keys.entry((purchase.buyer.user_id, key)).or_insert(id);
                self.require(one == id, "a key is one purchase", || format!("{key}: {one} and {id}"));
            }
        }
        let spent: i64 = rows.history.values().map(|purchase| purchase.total().0).sum();
        let cards = rows.accounts.iter().filter(|(account, _)| account.starts_with("card:"));
        let charged: i64 = cards.map(|(_, cents)| -cents).sum();
        self.require(spent == charged, "the ledger is what was purchased", || {
            format!("{spent} was purchased, {charged} charged: {:?}", rows.accounts)
        });
    }
}
