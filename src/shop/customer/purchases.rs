//! OpenPurchases under way: their records, and which of a buyer's attempts may go on. A part of the customer database's
//! core: plain values, whose changes go to the journal that is handed in. The rules of one record are those of
//! [`purchase`].

use std::collections::HashMap;

use super::active_sessions::ActiveSessions;
use super::carts::PendingResult;
use super::sales::PurchaseWrites;
use super::store::CustomerChange;
use crate::model::{FeeRate, Millis};
use crate::shop::ops::{BeginResponse, CompletedPurchase, ErrorCode, OrphanedPurchase, Refusal, ShopResult};
use crate::shop::purchase::{
    self, BankRequest, BeginDecision, LEASE_MS, Purchase, PurchaseAttempt, PurchaseEvent, PurchaseStage, PurchaseWrite,
    Transition,
};
use crate::storage::Journal;

/// OpenPurchases under way at once.
const OPEN_PURCHASES_MAX: usize = 10_000;

/// Every purchase under way. `C` is the journal's commit.
pub struct OpenPurchases<C> {
    fee: FeeRate,
    by_id: HashMap<String, OpenPurchase<C>>,
    /// A buyer makes one purchase at a time: its id.
    by_buyer: HashMap<u64, String>,
    /// How many were forgotten because they are over: what was read from disk before may be old by now.
    forgotten: u64,
}

struct OpenPurchase<C> {
    purchase: Purchase,
    /// The newest change of it.
    newest: C,
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
    /// The number of forgotten purchases as it was before that was read.
    pub forgotten: u64,
}

/// What becomes of a buyer's attempt.
#[derive(Debug)]
pub enum Beginning<C> {
    /// It is decided; the answer may leave once its commit is on disk.
    Decided(PendingResult<BeginResponse, C>),
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
pub struct Stepped<C> {
    /// What is to be done once the commit is on disk. Its rows are on their way.
    pub transition: Transition,
    /// How far the purchase is now.
    pub stage: PurchaseStage,
    /// What whoever asked to complete is answered.
    pub purchased: ShopResult<CompletedPurchase>,
    /// The newest change of the purchase.
    pub newest: C,
}

impl<C: Clone + Default> OpenPurchases<C> {
    /// Resumes what was under way.
    pub fn load(fee: FeeRate, under_way: Vec<Purchase>, now: Millis) -> OpenPurchases<C> {
        let mut purchases = OpenPurchases { fee, by_id: HashMap::new(), by_buyer: HashMap::new(), forgotten: 0 };
        for mut purchase in under_way {
            purchase.resume(now);
            purchases.put(purchase, C::default());
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

    /// Decides on an attempt, whose cart was read at the commit `cart_read`. `id` names it if it becomes a purchase.
    /// `made` is what stands on disk under its key, if that has been asked for.
    pub fn begin<J>(
        &mut self,
        journal: &J,
        now: Millis,
        id: String,
        attempt: PurchaseAttempt,
        made: Option<&MadeUnderKey>,
        cart_read: C,
    ) -> Beginning<C>
    where
        J: Journal<Change = CustomerChange, Commit = C>,
    {
        let buyer_id = attempt.buyer.user_id;
        if let Some(open) = self.by_buyer.get(&buyer_id).and_then(|id| self.by_id.get(id)) {
            // One that is over makes room as soon as that is on disk.
            if open.purchase.is_terminal() {
                return Beginning::Wait { buyer_id };
            }
            let newest = J::latest(cart_read, open.newest.clone());
            return match purchase::begin(now, id, attempt, Some(&open.purchase), None) {
                BeginDecision::Repeat => Beginning::Decided((Ok(drive(&open.purchase)), newest)),
                BeginDecision::Refuse(refusal) => Beginning::Decided((Err(refusal), newest)),
                BeginDecision::Wait | BeginDecision::Drive(_) | BeginDecision::Done => Beginning::Wait { buyer_id },
            };
        }
        if self.by_id.len() >= OPEN_PURCHASES_MAX {
            let refusal = Refusal::new(ErrorCode::Busy, "too many purchases are under way: try again later");
            return Beginning::Decided((Err(refusal), C::default()));
        }
        // What this buyer has purchased before is on disk: it made room only then.
        let made = made.filter(|made| made.forgotten == self.forgotten);
        if let (Some(key), None) = (&attempt.key, made) {
            return Beginning::ReadKey { buyer_id, key: key.clone(), forgotten: self.forgotten };
        }
        let made = made.and_then(|made| made.purchase.as_ref());
        let (answer, newest) = match purchase::begin(now, id, attempt, None, made) {
            BeginDecision::Drive(purchase) => {
                let begun = drive(&purchase);
                let newest = journal.append(vec![self.rows(&purchase, vec![PurchaseWrite::SaveRecord], now)]);
                self.put(*purchase, newest.clone());
                (Ok(begun), newest)
            }
            BeginDecision::Done => {
                let done = made.map_or_else(|| Err(not_under_way()), Purchase::outcome);
                (done.map(|purchased| BeginResponse::Done { purchased }), cart_read)
            }
            BeginDecision::Refuse(refusal) => (Err(refusal), cart_read),
            // Only an open purchase is waited for, and there is none.
            BeginDecision::Repeat | BeginDecision::Wait => return Beginning::Wait { buyer_id },
        };
        Beginning::Decided((answer, newest))
    }

    /// Takes a step of a purchase; `None` if there is no such purchase under way. What was paid for leaves its buyer's
    /// carts with it.
    pub fn step<J>(
        &mut self,
        journal: &J,
        active_sessions: &mut ActiveSessions<C>,
        now: Millis,
        id: &str,
        event: PurchaseEvent<'_>,
    ) -> Option<Stepped<C>>
    where
        J: Journal<Change = CustomerChange, Commit = C>,
    {
        let open = self.by_id.get_mut(id)?;
        let mut transition = open.purchase.handle(now, event);
        let rows = std::mem::take(&mut transition.writes);
        if !rows.is_empty() {
            let is_paid = rows.contains(&PurchaseWrite::PostSale);
            let purchase = &open.purchase;
            let change = CustomerChange::Purchase(Box::new(PurchaseWrites::new(purchase, rows, self.fee, now)));
            open.newest = match active_sessions.buyer_mut(purchase.buyer.user_id).filter(|_| is_paid) {
                Some(buyer) => {
                    buyer.remove_purchased(journal, &purchase.cart.session, &purchase.cart.lines, vec![change])
                }
                None => journal.append(vec![change]),
            };
        }
        let OpenPurchase { purchase, newest, .. } = open;
        Some(Stepped { transition, stage: purchase.stage(), purchased: purchase.outcome(), newest: newest.clone() })
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
    pub fn take_over<J>(&mut self, journal: &J, now: Millis) -> PendingResult<Option<OrphanedPurchase>, C>
    where
        J: Journal<Change = CustomerChange, Commit = C>,
    {
        let idle = self.by_id.values_mut().filter(|open| open.is_idle() && open.purchase.is_orphan(now));
        let age = |open: &OpenPurchase<C>| (open.purchase.leased_until(), open.purchase.id.clone());
        let Some(open) = idle.min_by_key(|open| age(open)) else {
            return (Ok(None), C::default());
        };
        let orphan = open.purchase.take_over(now);
        let rows = PurchaseWrites::new(&open.purchase, vec![PurchaseWrite::SaveRecord], self.fee, now);
        open.newest = journal.append(vec![CustomerChange::Purchase(Box::new(rows))]);
        (Ok(orphan), open.newest.clone())
    }

    /// Forgets a purchase that is over, and is so on disk: its buyer may begin the next one. AnsweredRequests whose it was.
    pub fn forget(&mut self, id: &str) -> Option<u64> {
        let buyer_id = self.by_id.remove(id)?.purchase.buyer.user_id;
        self.by_buyer.remove(&buyer_id);
        self.forgotten += 1;
        Some(buyer_id)
    }

    /// Those that are over, and are so on disk, and that whoever took the last step has not forgotten.
    pub fn over<J>(&self, journal: &J) -> Vec<String>
    where
        J: Journal<Change = CustomerChange, Commit = C>,
    {
        let over =
            self.by_id.iter().filter(|(_, open)| open.purchase.is_terminal() && journal.is_committed(&open.newest));
        over.map(|(id, _)| id.clone()).collect()
    }

    /// What the bank has to be asked again, and is not being asked; by id.
    pub fn unanswered(&self) -> Vec<(String, BankRequest)> {
        let idle = self.by_id.values().filter(|open| open.is_idle());
        let calls = idle.filter_map(|open| Some((open.purchase.id.clone(), open.purchase.pending_bank_request()?)));
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
    pub fn expire_leases(&mut self) {
        self.by_id.values_mut().for_each(|open| open.purchase.expire_lease());
    }

    fn rows(&self, purchase: &Purchase, rows: Vec<PurchaseWrite>, now: Millis) -> CustomerChange {
        CustomerChange::Purchase(Box::new(PurchaseWrites::new(purchase, rows, self.fee, now)))
    }

    fn put(&mut self, purchase: Purchase, newest: C) {
        self.by_buyer.insert(purchase.buyer.user_id, purchase.id.clone());
        let id = purchase.id.clone();
        self.by_id.insert(id, OpenPurchase { purchase, newest, at_bank: 0, is_in_dispute: false });
    }
}

impl<C> OpenPurchase<C> {
    /// Whether someone may see to it of his own accord.
    fn is_idle(&self) -> bool {
        self.at_bank == 0 && !self.is_in_dispute
    }
}

/// How a purchase is to be driven by whoever began it.
fn drive(purchase: &Purchase) -> BeginResponse {
    BeginResponse::Drive {
        purchase_id: purchase.id.clone(),
        lease: purchase.lease(),
        lease_ms: LEASE_MS,
        lines: purchase.cart.lines.clone(),
    }
}

/// There is no such purchase (any more).
pub fn not_under_way() -> Refusal {
    Refusal::new(ErrorCode::NotFound, "purchase_id: no such purchase is under way")
}
