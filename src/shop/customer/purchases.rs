//! Purchases under way: their records, and which of a buyer's attempts may go on. A part of the customer database's
//! core: plain values, whose changes go to the journal that is handed in. The rules of one record are those of
//! [`purchase`].

use std::collections::HashMap;

use super::carts::Answered;
use super::sales::PurchaseRows;
use super::signed_in::SignedIn;
use super::store::Change;
use crate::model::{FeeRate, Millis};
use crate::shop::ops::{Answer, Begun, Code, Orphan, Purchased, Refusal};
use crate::shop::purchase::{self, Attempt, BankCall, Begin, Event, LEASE_MS, Purchase, Row, Stage, Step};
use crate::storage::Journal;

/// Purchases under way at once.
const UNDER_WAY_MAX: usize = 10_000;

/// Every purchase under way. `R` is the journal's receipt.
pub struct Purchases<R> {
    fee: FeeRate,
    by_id: HashMap<String, OpenPurchase<R>>,
    /// A buyer makes one purchase at a time: its id.
    by_buyer: HashMap<u64, String>,
    /// How many were forgotten because they are over: what was read from disk before may be old by now.
    forgotten: u64,
}

struct OpenPurchase<R> {
    purchase: Purchase,
    /// The newest change of it.
    newest: R,
    /// Questions to the bank that are not answered.
    at_bank: u32,
    /// The bank has charged what it was told to void: a person has to look, and asking again is no use.
    is_in_dispute: bool,
}

/// What stands on disk under an idempotency key of a buyer.
#[derive(Debug)]
pub struct MadeUnderKey {
    /// The purchase that was made under it, if any.
    pub purchase: Option<Purchase>,
    /// [`Purchases::forgotten`] as it was before that was read.
    pub forgotten: u64,
}

/// What becomes of a buyer's attempt.
#[derive(Debug)]
pub enum Beginning<R> {
    /// It is decided; the answer may leave once its receipt is on disk.
    Decided(Answered<Begun, R>),
    /// The buyer's purchase before is under way: to be tried again when something has become of it.
    Wait {
        /// Whose it is.
        buyer_id: u64,
    },
    /// To be tried again with what stands on disk under this key.
    ReadKey {
        /// Whose it is.
        buyer_id: u64,
        /// The key.
        key: String,
        /// For [`MadeUnderKey::forgotten`].
        forgotten: u64,
    },
}

/// What came of a step.
#[derive(Debug)]
pub struct Stepped<R> {
    /// What is to be done once the receipt is on disk. Its rows are on their way.
    pub step: Step,
    /// How far the purchase is now.
    pub stage: Stage,
    /// What whoever asked to complete is answered.
    pub purchased: Answer<Purchased>,
    /// The newest change of the purchase.
    pub newest: R,
}

impl<R: Clone + Default> Purchases<R> {
    /// Resumes what was under way.
    pub fn load(fee: FeeRate, under_way: Vec<Purchase>, now: Millis) -> Purchases<R> {
        let mut purchases = Purchases { fee, by_id: HashMap::new(), by_buyer: HashMap::new(), forgotten: 0 };
        for mut purchase in under_way {
            purchase.resume(now);
            purchases.put(purchase, R::default());
        }
        purchases
    }

    /// How many are under way.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether none is under way.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// A purchase under way.
    pub fn get(&self, id: &str) -> Option<&Purchase> {
        self.by_id.get(id).map(|open| &open.purchase)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Purchase> {
        self.by_id.values().map(|open| &open.purchase)
    }

    /// Whether a buyer has one under way.
    pub fn has_buyer(&self, buyer_id: u64) -> bool {
        self.by_buyer.contains_key(&buyer_id)
    }

    /// Decides on an attempt, whose cart was read at the receipt `cart_read`. `id` names it if it becomes a purchase.
    /// `made` is what stands on disk under its key, if that has been asked for.
    pub fn begin<J>(
        &mut self,
        journal: &J,
        now: Millis,
        id: String,
        attempt: Attempt,
        made: Option<&MadeUnderKey>,
        cart_read: R,
    ) -> Beginning<R>
    where
        J: Journal<Change = Change, Receipt = R>,
    {
        let buyer_id = attempt.buyer.user_id;
        if let Some(open) = self.by_buyer.get(&buyer_id).and_then(|id| self.by_id.get(id)) {
            // One that is over makes room as soon as that is on disk.
            if open.purchase.is_over() {
                return Beginning::Wait { buyer_id };
            }
            let newest = J::later(cart_read, open.newest.clone());
            return match purchase::begin(now, id, attempt, Some(&open.purchase), None) {
                Begin::Again => Beginning::Decided((Ok(drive(&open.purchase)), newest)),
                Begin::Refuse(refusal) => Beginning::Decided((Err(refusal), newest)),
                Begin::Wait | Begin::Drive(_) | Begin::Done => Beginning::Wait { buyer_id },
            };
        }
        if self.by_id.len() >= UNDER_WAY_MAX {
            let refusal = Refusal::new(Code::Busy, "too many purchases are under way: try again later");
            return Beginning::Decided((Err(refusal), R::default()));
        }
        // What this buyer has purchased before is on disk: it made room only then.
        let made = made.filter(|made| made.forgotten == self.forgotten);
        if let (Some(key), None) = (&attempt.key, made) {
            return Beginning::ReadKey { buyer_id, key: key.clone(), forgotten: self.forgotten };
        }
        let made = made.and_then(|made| made.purchase.as_ref());
        let (answer, newest) = match purchase::begin(now, id, attempt, None, made) {
            Begin::Drive(purchase) => {
                let begun = drive(&purchase);
                let newest = journal.append(vec![self.rows(&purchase, vec![Row::Keep], now)]);
                self.put(*purchase, newest.clone());
                (Ok(begun), newest)
            }
            Begin::Done => {
                let done = made.map_or_else(|| Err(not_under_way()), Purchase::outcome);
                (done.map(|purchased| Begun::Done { purchased }), cart_read)
            }
            Begin::Refuse(refusal) => (Err(refusal), cart_read),
            // Only an open purchase is waited for, and there is none.
            Begin::Again | Begin::Wait => return Beginning::Wait { buyer_id },
        };
        Beginning::Decided((answer, newest))
    }

    /// Takes a step of a purchase; `None` if there is no such purchase under way. What was paid for leaves its buyer's
    /// carts with it.
    pub fn step<J>(
        &mut self,
        journal: &J,
        signed_in: &mut SignedIn<R>,
        now: Millis,
        id: &str,
        event: Event<'_>,
    ) -> Option<Stepped<R>>
    where
        J: Journal<Change = Change, Receipt = R>,
    {
        let open = self.by_id.get_mut(id)?;
        let mut step = open.purchase.handle(now, event);
        let rows = std::mem::take(&mut step.rows);
        if !rows.is_empty() {
            let is_paid = rows.contains(&Row::Paid);
            let purchase = &open.purchase;
            let change = Change::Purchase(Box::new(PurchaseRows::new(purchase, rows, self.fee, now)));
            open.newest = match signed_in.buyer_mut(purchase.buyer.user_id).filter(|_| is_paid) {
                Some(buyer) => buyer.bought(journal, &purchase.cart.session, &purchase.cart.lines, vec![change]),
                None => journal.append(vec![change]),
            };
        }
        let OpenPurchase { purchase, newest, .. } = open;
        Some(Stepped { step, stage: purchase.stage(), purchased: purchase.outcome(), newest: newest.clone() })
    }

    /// The drivers of these are at work: their leases are renewed.
    pub fn renew(&mut self, now: Millis, leases: &[(String, u64)]) {
        for (id, lease) in leases {
            if let Some(open) = self.by_id.get_mut(id) {
                open.purchase.renew(now, *lease);
            }
        }
    }

    /// Gives the purchase that has waited longest for its driver to another.
    pub fn take_over<J>(&mut self, journal: &J, now: Millis) -> Answered<Option<Orphan>, R>
    where
        J: Journal<Change = Change, Receipt = R>,
    {
        let idle = self.by_id.values_mut().filter(|open| open.is_idle() && open.purchase.is_orphan(now));
        let age = |open: &OpenPurchase<R>| (open.purchase.leased_until(), open.purchase.id.clone());
        let Some(open) = idle.min_by_key(|open| age(open)) else {
            return (Ok(None), R::default());
        };
        let orphan = open.purchase.take_over(now);
        let rows = PurchaseRows::new(&open.purchase, vec![Row::Keep], self.fee, now);
        open.newest = journal.append(vec![Change::Purchase(Box::new(rows))]);
        (Ok(orphan), open.newest.clone())
    }

    /// Forgets a purchase that is over, and is so on disk: its buyer may begin the next one. Answers whose it was.
    pub fn forget(&mut self, id: &str) -> Option<u64> {
        let buyer_id = self.by_id.remove(id)?.purchase.buyer.user_id;
        self.by_buyer.remove(&buyer_id);
        self.forgotten += 1;
        Some(buyer_id)
    }

    /// Those that are over, and are so on disk, and that whoever took the last step has not forgotten.
    pub fn over<J>(&self, journal: &J) -> Vec<String>
    where
        J: Journal<Change = Change, Receipt = R>,
    {
        let over = self.by_id.iter().filter(|(_, open)| open.purchase.is_over() && journal.is_committed(&open.newest));
        over.map(|(id, _)| id.clone()).collect()
    }

    /// What the bank has to be asked again, and is not being asked; by id.
    pub fn unanswered(&self) -> Vec<(String, BankCall)> {
        let idle = self.by_id.values().filter(|open| open.is_idle());
        let calls = idle.filter_map(|open| Some((open.purchase.id.clone(), open.purchase.unanswered()?)));
        let mut calls: Vec<_> = calls.collect();
        calls.sort_by(|a, b| a.0.cmp(&b.0));
        calls
    }

    /// The bank has charged what it was told to void.
    pub fn dispute(&mut self, id: &str) {
        if let Some(open) = self.by_id.get_mut(id) {
            open.is_in_dispute = true;
        }
    }

    /// The bank is being asked about a purchase: until it has answered, nobody takes it over or asks of his own accord.
    pub fn bank_is_asked(&mut self, id: &str) {
        if let Some(open) = self.by_id.get_mut(id) {
            open.at_bank += 1;
        }
    }

    /// A question to the bank is answered, or given up.
    pub fn bank_has_answered(&mut self, id: &str) {
        if let Some(open) = self.by_id.get_mut(id) {
            open.at_bank = open.at_bank.saturating_sub(1);
        }
    }

    /// As if the drivers of all of them had been silent for ages.
    #[cfg(test)]
    pub fn let_leases_run_out(&mut self) {
        self.by_id.values_mut().for_each(|open| open.purchase.let_lease_run_out());
    }

    fn rows(&self, purchase: &Purchase, rows: Vec<Row>, now: Millis) -> Change {
        Change::Purchase(Box::new(PurchaseRows::new(purchase, rows, self.fee, now)))
    }

    fn put(&mut self, purchase: Purchase, newest: R) {
        self.by_buyer.insert(purchase.buyer.user_id, purchase.id.clone());
        let id = purchase.id.clone();
        self.by_id.insert(id, OpenPurchase { purchase, newest, at_bank: 0, is_in_dispute: false });
    }
}

impl<R> OpenPurchase<R> {
    /// Whether someone may see to it of his own accord.
    fn is_idle(&self) -> bool {
        self.at_bank == 0 && !self.is_in_dispute
    }
}

/// How a purchase is to be driven by whoever began it.
fn drive(purchase: &Purchase) -> Begun {
    Begun::Drive {
        purchase_id: purchase.id.clone(),
        lease: purchase.lease(),
        lease_ms: LEASE_MS,
        lines: purchase.cart.lines.clone(),
    }
}

/// There is no such purchase (any more).
pub fn not_under_way() -> Refusal {
    Refusal::new(Code::NotFound, "purchase_id: no such purchase is under way")
}
