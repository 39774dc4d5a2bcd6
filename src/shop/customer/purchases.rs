//! The open purchases: their records, and which of a buyer's attempts may proceed. The rules of a single record are in
//! [`purchase`].

use std::collections::HashMap;

use super::active_sessions::ActiveSessions;
use super::carts::PendingResult;
use super::sales::PurchaseWrites;
use super::store::{CustomerChange, CustomerJournal};
use crate::model::{FeeRate, Millis};
use crate::shop::ops::{BeginResponse, CompletedPurchase, ErrorCode, OrphanedPurchase, Refusal, ShopResult};
use crate::shop::purchase::{
    self, BankRequest, BeginDecision, LEASE_MS, Purchase, PurchaseAttempt, PurchaseEvent, PurchaseStage, PurchaseWrite,
    Transition,
};

const OPEN_PURCHASES_MAX: usize = 10_000;

/// `C` is the journal's type of commits.
pub struct OpenPurchases<C> {
    fee: FeeRate,
    by_id: HashMap<String, OpenPurchase<C>>,
    /// A buyer makes one purchase at a time.
    by_buyer: HashMap<u64, String>,
    /// How many finished purchases were evicted. What was read from disk before may be outdated.
    evictions: u64,
}

struct OpenPurchase<C> {
    purchase: Purchase,
    /// The commit of the newest change of the record.
    newest: C,
    /// The requests that are in progress.
    bank_requests: u32,
    /// The bank has captured what it was asked to void. A person must look at it; asking again is useless.
    is_disputed: bool,
}

/// What looking for a purchase with a buyer's idempotency key has found.
#[derive(Debug)]
pub struct CompletedByKey {
    pub purchase: Option<Purchase>,
    /// The number of evictions before the disk was read.
    pub evictions: u64,
}

#[derive(Debug)]
pub enum BeginResult<C> {
    Decided(PendingResult<BeginResponse, C>),
    // Another purchase of the buyer is open: try again when it has changed.
    Wait { buyer_id: u64 },
    // Try again with the `CompletedByKey` of this key and this number of evictions.
    ReadCompletedByKey { buyer_id: u64, key: String, evictions: u64 },
}

#[derive(Debug)]
pub struct StepResult<C> {
    /// What to do once the commit is on disk. Its writes have been appended.
    pub transition: Transition,
    pub stage: PurchaseStage,
    /// The answer to a request to complete the purchase.
    pub purchased: ShopResult<CompletedPurchase>,
    /// The commit of the newest change of the purchase.
    pub newest: C,
}

impl<C: Clone + Default> OpenPurchases<C> {
    /// Resumes the purchases that were open.
    pub fn load(fee: FeeRate, under_way: Vec<Purchase>, now: Millis) -> OpenPurchases<C> {
        let mut purchases = OpenPurchases { fee, by_id: HashMap::new(), by_buyer: HashMap::new(), evictions: 0 };
        for mut purchase in under_way {
            purchase.resume(now);
            purchases.put(purchase, C::default());
        }
        purchases
    }

    pub fn count(&self) -> usize {
        self.by_id.len()
    }

    #[cfg(any(test, feature = "internals"))]
    pub fn get(&self, id: &str) -> Option<&Purchase> {
        self.by_id.get(id).map(|open| &open.purchase)
    }

    /// They are in no particular order.
    #[cfg(any(test, feature = "internals"))]
    pub fn iter(&self) -> impl Iterator<Item = &Purchase> {
        self.by_id.values().map(|open| &open.purchase)
    }

    pub fn has_buyer(&self, buyer_id: u64) -> bool {
        self.by_buyer.contains_key(&buyer_id)
    }

    /// The contents of the attempt's cart depend on the commit `cart_read`. `id` is the purchase's, if it becomes one.
    /// `made` is the result of looking for its key on disk, if that has been done.
    pub fn begin<J: CustomerJournal<C>>(
        &mut self,
        journal: &J,
        now: Millis,
        id: String,
        attempt: PurchaseAttempt,
        made: Option<&CompletedByKey>,
        cart_read: C,
    ) -> BeginResult<C> {
        let buyer_id = attempt.buyer.user_id;
        if let Some(open) = self.by_buyer.get(&buyer_id).and_then(|id| self.by_id.get(id)) {
            // A finished purchase is evicted once its end is on disk.
            if open.purchase.is_terminal() {
                return BeginResult::Wait { buyer_id };
            }
            let newest = J::latest(cart_read, open.newest.clone());
            return match purchase::begin(now, id, attempt, Some(&open.purchase), None) {
                BeginDecision::Repeat => BeginResult::Decided((Ok(drive(&open.purchase)), newest)),
                BeginDecision::Refuse(refusal) => BeginResult::Decided((Err(refusal), newest)),
                BeginDecision::Wait | BeginDecision::Drive(_) | BeginDecision::Done => BeginResult::Wait { buyer_id },
            };
        }
        if self.by_id.len() >= OPEN_PURCHASES_MAX {
            let refusal = Refusal::new(ErrorCode::Busy, "too many purchases are under way: try again later");
            return BeginResult::Decided((Err(refusal), C::default()));
        }
        // All earlier purchases of this buyer are on disk: they were evicted only then.
        let made = made.filter(|made| made.evictions == self.evictions);
        if let (Some(key), None) = (&attempt.key, made) {
            return BeginResult::ReadCompletedByKey { buyer_id, key: key.clone(), evictions: self.evictions };
        }
        let made = made.and_then(|made| made.purchase.as_ref());
        let (answer, newest) = match purchase::begin(now, id, attempt, None, made) {
            BeginDecision::Drive(purchase) => {
                let begun = drive(&purchase);
                let newest =
                    journal.append(vec![record_change(&purchase, vec![PurchaseWrite::SaveRecord], self.fee, now)]);
                self.put(*purchase, newest.clone());
                (Ok(begun), newest)
            }
            BeginDecision::Done => {
                let done = made.map_or_else(|| Err(no_such_purchase()), Purchase::outcome);
                (done.map(|purchased| BeginResponse::Done { purchased }), cart_read)
            }
            BeginDecision::Refuse(refusal) => (Err(refusal), cart_read),
            // Only an open purchase is waited for, and there is none.
            BeginDecision::Repeat | BeginDecision::Wait => return BeginResult::Wait { buyer_id },
        };
        BeginResult::Decided((answer, newest))
    }

    /// `None` if the purchase is not open. A payment also removes the items from the buyer's carts, in the same
    /// transaction.
    pub fn step<J: CustomerJournal<C>>(
        &mut self,
        journal: &J,
        active_sessions: &mut ActiveSessions<C>,
        now: Millis,
        id: &str,
        event: PurchaseEvent,
    ) -> Option<StepResult<C>> {
        let open = self.by_id.get_mut(id)?;
        let mut transition = open.purchase.handle(now, event);
        let rows = std::mem::take(&mut transition.writes);
        if !rows.is_empty() {
            let is_paid = rows.contains(&PurchaseWrite::PostSale);
            let purchase = &open.purchase;
            let change = record_change(purchase, rows, self.fee, now);
            open.newest = match active_sessions.buyer_mut(purchase.buyer.user_id).filter(|_| is_paid) {
                Some(buyer) => {
                    buyer.remove_purchased(journal, &purchase.cart.session, &purchase.cart.lines, vec![change])
                }
                None => journal.append(vec![change]),
            };
        }
        let OpenPurchase { purchase, newest, .. } = open;
        Some(StepResult { transition, stage: purchase.stage(), purchased: purchase.outcome(), newest: newest.clone() })
    }

    /// Renews the leases of purchases whose drivers are at work.
    pub fn renew(&mut self, now: Millis, leases: &[(String, u64)]) {
        for (id, lease) in leases {
            if let Some(open) = self.by_id.get_mut(id) {
                open.purchase.renew(now, *lease);
            }
        }
    }

    /// Gives the purchase whose lease expired first to another driver.
    pub fn take_over<J: CustomerJournal<C>>(
        &mut self,
        journal: &J,
        now: Millis,
    ) -> PendingResult<Option<OrphanedPurchase>, C> {
        let idle = self.by_id.values_mut().filter(|open| open.is_idle() && open.purchase.is_orphan(now));
        let age = |open: &OpenPurchase<C>| (open.purchase.leased_until(), open.purchase.id.clone());
        let Some(open) = idle.min_by_key(|open| age(open)) else {
            return (Ok(None), C::default());
        };
        let orphan = open.purchase.take_over(now);
        let change = record_change(&open.purchase, vec![PurchaseWrite::SaveRecord], self.fee, now);
        open.newest = journal.append(vec![change]);
        (Ok(orphan), open.newest.clone())
    }

    /// The purchase's end is on disk, so its buyer may begin the next one. Returns the buyer's id.
    pub fn evict(&mut self, id: &str) -> Option<u64> {
        let buyer_id = self.by_id.remove(id)?.purchase.buyer.user_id;
        self.by_buyer.remove(&buyer_id);
        self.evictions += 1;
        Some(buyer_id)
    }

    /// Finished purchases whose end is on disk and that were not evicted by whoever took the last step.
    pub fn over<J: CustomerJournal<C>>(&self, journal: &J) -> Vec<String> {
        let over =
            self.by_id.iter().filter(|(_, open)| open.purchase.is_terminal() && journal.is_committed(&open.newest));
        over.map(|(id, _)| id.clone()).collect()
    }

    /// The requests that nobody is asking, ordered by purchase.
    pub fn pending_bank_requests(&self) -> Vec<(String, BankRequest)> {
        let idle = self.by_id.values().filter(|open| open.is_idle());
        let calls = idle.filter_map(|open| Some((open.purchase.id.clone(), open.purchase.pending_bank_request()?)));
        let mut calls: Vec<_> = calls.collect();
        calls.sort_by(|a, b| a.0.cmp(&b.0));
        calls
    }

    /// The bank has captured what it was asked to void: the request is not repeated.
    pub fn mark_disputed(&mut self, id: &str) {
        if let Some(open) = self.by_id.get_mut(id) {
            open.is_disputed = true;
        }
    }

    /// Until the request ends, the purchase is not taken over, and no request is repeated.
    pub fn begin_bank_request(&mut self, id: &str) {
        if let Some(open) = self.by_id.get_mut(id) {
            open.bank_requests += 1;
        }
    }

    /// Answered or given up.
    pub fn end_bank_request(&mut self, id: &str) {
        if let Some(open) = self.by_id.get_mut(id) {
            open.bank_requests = open.bank_requests.saturating_sub(1);
        }
    }

    #[cfg(test)]
    pub fn expire_leases(&mut self) {
        self.by_id.values_mut().for_each(|open| open.purchase.expire_lease());
    }

    fn put(&mut self, purchase: Purchase, newest: C) {
        self.by_buyer.insert(purchase.buyer.user_id, purchase.id.clone());
        let id = purchase.id.clone();
        self.by_id.insert(id, OpenPurchase { purchase, newest, bank_requests: 0, is_disputed: false });
    }
}

impl<C> OpenPurchase<C> {
    /// No request to the bank is in progress and none is useless.
    fn is_idle(&self) -> bool {
        self.bank_requests == 0 && !self.is_disputed
    }
}

/// Makes the caller the purchase's driver.
fn drive(purchase: &Purchase) -> BeginResponse {
    BeginResponse::Drive {
        purchase_id: purchase.id.clone(),
        lease: purchase.lease(),
        lease_ms: LEASE_MS,
        lines: purchase.cart.lines.clone(),
    }
}

fn record_change(purchase: &Purchase, writes: Vec<PurchaseWrite>, fee: FeeRate, now: Millis) -> CustomerChange {
    CustomerChange::Purchase(Box::new(PurchaseWrites::new(purchase, writes, fee, now)))
}

pub fn no_such_purchase() -> Refusal {
    Refusal::new(ErrorCode::NotFound, "purchase_id: no such purchase is under way")
}
