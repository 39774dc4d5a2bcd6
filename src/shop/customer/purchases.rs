//! Executes open purchases: applies the transitions of [`purchase`] to the store, the ledger, the carts and the bank.
//!
//! A transition changes the record and appends its writes under the lock of the open purchases. The bank is asked
//! without locks and outside of transactions, once those writes are on disk, and its response is the next event. A
//! request that the bank has not answered, above all a capture, is retried by a thread until it does, also after a
//! restart.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde::Serialize;

use super::active_sessions::ActiveSessions;
use super::carts::BuyerCarts;
use super::sales::{self, PurchaseWrites, ShipResult};
use super::store::Journal;
use super::{CustomerDbInner, CustomerMemory, PendingResult, to_json, unavailable};
use crate::bank::{AuthorisationOutcome, CaptureOutcome, GatewayError, VoidOutcome};
use crate::model::{CardNumber, Clock, Expiry, FeeRate, Millis, Name, PaymentCard, Token};
use crate::shop::ops::{
    BeginResponse, CardDetails, CompletedPurchase, CustomerOp, ErrorCode, OrphanedPurchase, Refusal, Role, ShopResult,
};
use crate::shop::purchase::{
    self, BankRequest, BeginDecision, CartSnapshot, LEASE_MS, NextAction, Purchase, PurchaseAttempt, PurchaseEvent,
    PurchaseStage, Transition,
};
use crate::storage::{CommitHandle, CommitState, Reader, StoreError};

#[cfg(test)]
mod tests;

/// How long a Begin waits for its buyer's open purchase: longer than it takes to replace a driver that has died.
pub const BEGIN_WAIT_MAX: Duration = Duration::from_secs(8);
/// How long a driver's operation waits for the bank.
pub const BANK_WAIT_MAX: Duration = Duration::from_secs(3);
/// The pause before a request to the bank is retried, doubled with each retry.
const BANK_RETRY_PAUSE: Duration = Duration::from_millis(20);
/// The maximum number of Begins that wait, of one buyer and in all.
const WAITING_BEGINS_PER_BUYER_MAX: usize = 16;
const WAITING_BEGINS_MAX: usize = 256;
/// The maximum number of open purchases.
const OPEN_PURCHASES_MAX: usize = 10_000;
/// The maximum number of rows of a page.
const PAGE_MAX: u64 = 500;

/// All open purchases.
pub struct PurchaseManager {
    fee: FeeRate,
    /// Converts the process's time to dates.
    clock: Clock,
    open: Mutex<OpenPurchases>,
}

#[derive(Default)]
struct OpenPurchases {
    by_id: HashMap<String, OpenPurchase>,
    by_buyer: HashMap<u64, BuyerSlot>,
}

struct OpenPurchase {
    purchase: Purchase,
    /// Keeps the carts in memory even when the buyer's last session has ended.
    buyer: Arc<BuyerCarts>,
    /// The newest change of it.
    last_commit: CommitHandle,
    /// The number of requests that the bank is working on.
    bank_requests: u32,
    /// The bank has charged what it was asked to void. Retrying is useless, so the operator has to intervene.
    is_in_dispute: bool,
}

/// A buyer's slot for an open purchase: a buyer makes one purchase at a time.
enum BuyerSlot {
    /// An attempt is being decided.
    Reserved,
    Open(String),
}

/// The Begins in progress, some of which wait for changes of their buyer's open purchase. It outlives a rebuilt memory.
#[derive(Default)]
pub struct BeginWaiters {
    state: Mutex<BeginWaitersState>,
    changed: Condvar,
}

#[derive(Default)]
struct BeginWaitersState {
    by_buyer: HashMap<u64, BeginsOfBuyer>,
    total: usize,
}

/// The Begins of one buyer.
#[derive(Default)]
struct BeginsOfBuyer {
    count: usize,
    /// How often the buyer's slot or open purchase has changed.
    changes: u64,
}

/// A Begin in progress, which misses no changes as long as this exists.
struct BeginWaiter<'a> {
    begin_waiters: &'a BeginWaiters,
    buyer_id: u64,
}

enum BankResponse {
    Authorised,
    Declined(String),
    Captured,
    CaptureRefused(String),
    Voided,
}

/// The result of an event, and the commit of its writes.
struct StepResult {
    transition: Transition,
    stage: PurchaseStage,
    /// The result for the caller of Complete.
    purchased: ShopResult<CompletedPurchase>,
    commit: CommitHandle,
}

impl PurchaseManager {
    /// Resumes open purchases that were read after `journal` was begun.
    ///
    /// # Errors
    /// A buyer's saved cart cannot be read.
    pub fn load(
        journal: &Journal,
        active_sessions: &ActiveSessions,
        under_way: Vec<Purchase>,
        fee: FeeRate,
        clock: Clock,
    ) -> Result<PurchaseManager, StoreError> {
        let now = clock.now();
        let mut open = OpenPurchases::default();
        for mut purchase in under_way {
            purchase.resume(now);
            let buyer = active_sessions.load_buyer(journal, purchase.buyer.user_id)?;
            open.insert(purchase, buyer, CommitHandle::committed());
        }
        Ok(PurchaseManager { fee, clock, open: Mutex::new(open) })
    }

    /// The number of open purchases.
    pub fn under_way(&self) -> usize {
        self.open.lock().by_id.len()
    }

    /// Handles an event of an open purchase; `None` if there is no such purchase.
    fn handle_event(&self, journal: &Journal, now: Millis, id: &str, event: PurchaseEvent<'_>) -> Option<StepResult> {
        let mut open = self.open.lock();
        let entry = open.by_id.get_mut(id)?;
        let mut transition = entry.purchase.handle(now, event);
        let writes = std::mem::take(&mut transition.writes);
        if !writes.is_empty() {
            entry.last_commit = self.write(journal, entry, writes, now);
        }
        let OpenPurchase { purchase, last_commit, .. } = entry;
        Some(StepResult {
            transition,
            stage: purchase.stage(),
            purchased: purchase.outcome(),
            commit: last_commit.clone(),
        })
    }

    fn write(
        &self,
        journal: &Journal,
        entry: &OpenPurchase,
        writes: Vec<purchase::PurchaseWrite>,
        now: Millis,
    ) -> CommitHandle {
        let is_paid = writes.contains(&purchase::PurchaseWrite::PostSale);
        let writes = PurchaseWrites::new(&entry.purchase, writes, self.fee, self.clock.date_of(now));
        if !is_paid {
            return journal.append_with(Vec::new(), move |tx| writes.write(tx));
        }
        let CartSnapshot { session, lines, .. } = &entry.purchase.cart;
        entry.buyer.remove_purchased(session, lines, |changes| journal.append_with(changes, move |tx| writes.write(tx)))
    }

    fn renew(&self, now: Millis, leases: &[(String, u64)]) {
        let mut open = self.open.lock();
        for (id, lease) in leases {
            if let Some(entry) = open.by_id.get_mut(id) {
                entry.purchase.renew(now, *lease);
            }
        }
    }

    /// Gives the purchase whose lease expired first to another driver.
    fn take_over(&self, journal: &Journal, now: Millis) -> PendingResult<Option<OrphanedPurchase>> {
        let mut open = self.open.lock();
        let idle = open.by_id.values_mut().filter(|entry| entry.is_idle());
        let Some(entry) =
            idle.filter(|entry| entry.purchase.is_orphan(now)).min_by_key(|entry| entry.purchase.leased_until())
        else {
            return (Ok(None), CommitHandle::committed());
        };
        let orphan = entry.purchase.take_over(now);
        entry.last_commit = self.write(journal, entry, vec![purchase::PurchaseWrite::SaveRecord], now);
        (Ok(orphan), entry.last_commit.clone())
    }

    /// Evicts finished purchases that are on disk, if the thread that finished them has not done so.
    fn evict_finished(&self, begin_waiters: &BeginWaiters) {
        let finished: Vec<String> = {
            let open = self.open.lock();
            let finished = open.by_id.iter().filter(|(_, entry)| {
                entry.purchase.is_terminal() && entry.last_commit.state() == CommitState::Committed
            });
            finished.map(|(id, _)| id.clone()).collect()
        };
        finished.iter().for_each(|id| self.evict(id, begin_waiters));
    }

    /// Evicts a purchase that is finished on disk, so that its buyer's next one can begin.
    fn evict(&self, id: &str, begin_waiters: &BeginWaiters) {
        let evicted = self.open.lock().remove(id);
        if let Some(buyer_id) = evicted {
            begin_waiters.notify(buyer_id);
        }
    }

    /// The requests to the bank that are to be retried and are not in progress.
    fn pending_bank_requests(&self) -> Vec<(String, BankRequest)> {
        let open = self.open.lock();
        let idle = open.by_id.values().filter(|entry| entry.is_idle());
        idle.filter_map(|entry| Some((entry.purchase.id.clone(), entry.purchase.pending_bank_request()?))).collect()
    }

    fn mark_disputed(&self, id: &str) {
        if let Some(entry) = self.open.lock().by_id.get_mut(id) {
            entry.is_in_dispute = true;
        }
    }

    fn adjust_bank_requests(&self, id: &str, change: i32) {
        if let Some(entry) = self.open.lock().by_id.get_mut(id) {
            entry.bank_requests = entry.bank_requests.saturating_add_signed(change);
        }
    }
}

impl OpenPurchase {
    /// Whether the purchase may be taken over or its request to the bank retried.
    fn is_idle(&self) -> bool {
        self.bank_requests == 0 && !self.is_in_dispute
    }
}

impl OpenPurchases {
    fn insert(&mut self, purchase: Purchase, buyer: Arc<BuyerCarts>, last_commit: CommitHandle) {
        self.by_buyer.insert(purchase.buyer.user_id, BuyerSlot::Open(purchase.id.clone()));
        self.by_id.insert(
            purchase.id.clone(),
            OpenPurchase { purchase, buyer, last_commit, bank_requests: 0, is_in_dispute: false },
        );
    }

    fn remove(&mut self, id: &str) -> Option<u64> {
        let buyer_id = self.by_id.remove(id)?.purchase.buyer.user_id;
        self.by_buyer.remove(&buyer_id);
        Some(buyer_id)
    }
}

/// Reserves a buyer's slot while an attempt is being decided; frees it when dropped unless it was filled.
struct BuyerReservation<'a> {
    purchases: &'a PurchaseManager,
    begin_waiters: &'a BeginWaiters,
    buyer_id: u64,
    is_filled: bool,
}

impl Drop for BuyerReservation<'_> {
    fn drop(&mut self) {
        if !self.is_filled {
            self.purchases.open.lock().by_buyer.remove(&self.buyer_id);
            self.begin_waiters.notify(self.buyer_id);
        }
    }
}

impl BeginWaiters {
    /// Registers a Begin, unless there are too many.
    fn enter(&self, buyer_id: u64) -> ShopResult<BeginWaiter<'_>> {
        let mut state = self.state.lock();
        let of_buyer = state.by_buyer.get(&buyer_id).map_or(0, |begins| begins.count);
        if state.total >= WAITING_BEGINS_MAX || of_buyer >= WAITING_BEGINS_PER_BUYER_MAX {
            return Err(Refusal::new(ErrorCode::Busy, "too many purchases wait for others: try again later"));
        }
        state.total += 1;
        state.by_buyer.entry(buyer_id).or_default().count += 1;
        Ok(BeginWaiter { begin_waiters: self, buyer_id })
    }

    /// Wakes the Begins of a buyer because the buyer's slot or open purchase has changed.
    fn notify(&self, buyer_id: u64) {
        if let Some(begins) = self.state.lock().by_buyer.get_mut(&buyer_id) {
            begins.changes += 1;
            self.changed.notify_all();
        }
    }

    /// Wakes all Begins, because memory was rebuilt.
    pub(super) fn notify_all(&self) {
        self.state.lock().by_buyer.values_mut().for_each(|begins| begins.changes += 1);
        self.changed.notify_all();
    }
}

impl BeginWaiter<'_> {
    fn changes(&self) -> u64 {
        self.begin_waiters.state.lock().by_buyer.get(&self.buyer_id).map_or(0, |begins| begins.changes)
    }

    /// Waits for a change after the `seen_changes` ones; BUSY if there is none before the deadline.
    fn wait(&self, seen_changes: u64, deadline: Instant) -> ShopResult<()> {
        let mut state = self.begin_waiters.state.lock();
        while state.by_buyer.get(&self.buyer_id).is_some_and(|begins| begins.changes == seen_changes) {
            if self.begin_waiters.changed.wait_until(&mut state, deadline).timed_out() {
                return Err(Refusal::new(ErrorCode::Busy, "another purchase of this buyer is under way: try again"));
            }
        }
        Ok(())
    }
}

impl Drop for BeginWaiter<'_> {
    fn drop(&mut self) {
        let mut state = self.begin_waiters.state.lock();
        state.total -= 1;
        if let Entry::Occupied(mut entry) = state.by_buyer.entry(self.buyer_id) {
            entry.get_mut().count -= 1;
            if entry.get().count == 0 {
                entry.remove();
            }
        }
    }
}

impl CustomerDbInner {
    /// Executes an operation that concerns purchases.
    pub(super) fn handle_purchase_op(&self, op: CustomerOp) -> ShopResult<String> {
        match op {
            CustomerOp::Begin { request, sid, uses_saved_cart, idempotency_key, address } => {
                to_json(&self.begin(request, &sid, uses_saved_cart, idempotency_key, address)?)
            }
            CustomerOp::Authorise { purchase_id, lease, lines, card } => {
                let card = parse_card(&card)?;
                to_json(
                    &self
                        .drive(&purchase_id, PurchaseEvent::Authorise { lease, lines }, Some(&card))?
                        .into_response()?,
                )
            }
            CustomerOp::Complete { purchase_id, lease } => self.complete(&purchase_id, lease),
            CustomerOp::Undo { purchase_id, lease, why } => {
                to_json(&self.drive(&purchase_id, PurchaseEvent::Undo { lease, why }, None)?.into_response()?)
            }
            CustomerOp::Closed { purchase_id, lease } => {
                to_json(&self.drive(&purchase_id, PurchaseEvent::Closed { lease }, None)?.into_response()?)
            }
            CustomerOp::Renew { leases } => {
                self.memory().purchases.renew(self.config.clock.now(), &leases);
                to_json(&())
            }
            CustomerOp::TakeOver => {
                let memory = self.memory();
                self.respond(&memory, memory.purchases.take_over(&memory.journal, self.config.clock.now()))
            }
            CustomerOp::Purchases { sid, offset, limit } => {
                let buyer_id = self.session_user_id(Role::Buyer, &sid)?;
                self.page(|reader| sales::purchase_history(reader, buyer_id, offset, limit.min(PAGE_MAX) as u32))
            }
            CustomerOp::Orders { sid, offset, limit } => {
                let seller_id = self.session_user_id(Role::Seller, &sid)?;
                self.page(|reader| sales::seller_orders(reader, seller_id, offset, limit.min(PAGE_MAX) as u32))
            }
            CustomerOp::MarkShipped { sid, purchase_id, item_id } => {
                let seller_id = self.session_user_id(Role::Seller, &sid)?;
                to_json(&self.mark_shipped(seller_id, purchase_id, item_id)?)
            }
            other => Err(Refusal::new(ErrorCode::UnknownApi, format!("{other:?}: this is no matter of a purchase"))),
        }
    }

    /// Begins a purchase, after the buyer's open one is finished.
    fn begin(
        &self,
        request: String,
        sid: &str,
        uses_saved_cart: bool,
        key: Option<String>,
        address: Option<String>,
    ) -> ShopResult<BeginResponse> {
        let deadline = Instant::now() + BEGIN_WAIT_MAX;
        let mut waiter = None;
        loop {
            let (memory, now) = (self.memory(), self.config.clock.now());
            let (session, buyer) = match memory.active_sessions.use_buyer_session(now, sid) {
                Ok(found) => found,
                Err((refusal, commit)) => {
                    return self
                        .wait_committed(&memory, &commit)
                        .map_err(|error| unavailable(&error))
                        .and(Err(refusal));
                }
            };
            let account = &session.owner.account;
            let waiter = match &waiter {
                Some(waiter) => waiter,
                None => waiter.insert(self.begin_waiters.enter(account.user_id)?),
            };
            let seen_changes = waiter.changes();
            let username = Name::from_stored(&account.username).map_err(|rule| {
                Refusal::new(ErrorCode::BadRequest, format!("username: {rule}, so nobody can be charged"))
            })?;
            let attempt = |lines| PurchaseAttempt {
                buyer: purchase::BuyerIdentity {
                    user_id: account.user_id,
                    username: username.clone(),
                    name: account.name.clone(),
                },
                request: request.clone(),
                cart: CartSnapshot { session: session.key, uses_saved_cart, lines },
                key: key.clone(),
                address: address.clone(),
            };
            let show = || buyer.show(&memory.journal, (&session.key, uses_saved_cart));
            // Either reserves the buyer's slot until the attempt is decided, or waits for a change and tries again.
            let reservation = match memory.purchases.reserve_buyer(account.user_id, &self.begin_waiters) {
                Err(full) => return Err(full),
                Ok(Ok(reservation)) => reservation,
                Ok(Err(None)) => {
                    waiter.wait(seen_changes, deadline)?;
                    continue;
                }
                Ok(Err(Some(id))) => {
                    let (lines, commit) = show();
                    let lines = match lines {
                        Ok(lines) => lines,
                        Err(refusal) => return self.after_commit(&memory, Err(refusal), &commit),
                    };
                    match memory.purchases.decide_against_open(now, &id, attempt(lines)) {
                        Some((BeginDecision::Repeat, response, last_commit)) => {
                            return self.after_commit(&memory, Ok(response), &CommitHandle::later(commit, last_commit));
                        }
                        Some((BeginDecision::Refuse(refusal), _, last_commit)) => {
                            return self.after_commit(&memory, Err(refusal), &CommitHandle::later(commit, last_commit));
                        }
                        Some(_) => waiter.wait(seen_changes, deadline)?,
                        None => {}
                    }
                    continue;
                }
            };
            // All earlier purchases of this buyer are on disk, because a slot becomes free only then.
            let completed = match &key {
                Some(key) => self
                    .store
                    .read(|reader| sales::completed_purchase_by_key(reader, account.user_id, key))
                    .map_err(|error: StoreError| unavailable(&error))?,
                None => None,
            };
            let (lines, commit) = show();
            let lines = match lines {
                Ok(lines) => lines,
                Err(refusal) => return self.after_commit(&memory, Err(refusal), &commit),
            };
            let id = Token::random().reveal().to_owned();
            return match purchase::begin(now, id, attempt(lines), None, completed.as_ref()) {
                BeginDecision::Drive(purchase) => {
                    let (response, commit) = reservation.fill(&memory.journal, *purchase, Arc::clone(&buyer), now);
                    self.after_commit(&memory, Ok(response), &commit)
                }
                BeginDecision::Done => {
                    let done = completed.as_ref().map(Purchase::outcome).unwrap_or_else(|| Err(no_such_purchase()));
                    self.after_commit(&memory, done.map(|purchased| BeginResponse::Done { purchased }), &commit)
                }
                BeginDecision::Refuse(refusal) => self.after_commit(&memory, Err(refusal), &commit),
                // Impossible, because there is no open purchase.
                BeginDecision::Repeat | BeginDecision::Wait => continue,
            };
        }
    }

    /// Returns a result once the commit that it depends on is on disk.
    fn after_commit<T>(
        &self,
        memory: &Arc<CustomerMemory>,
        result: ShopResult<T>,
        commit: &CommitHandle,
    ) -> ShopResult<T> {
        self.wait_committed(memory, commit).map_err(|error| unavailable(&error))?;
        result
    }

    /// Handles an event from a driver, and then the bank's responses to the requests that follow from it.
    fn drive(&self, id: &str, event: PurchaseEvent<'_>, card: Option<&PaymentCard>) -> ShopResult<StepResult> {
        let deadline = Instant::now() + BANK_WAIT_MAX;
        let mut result = self.handle_event(id, event)?;
        loop {
            let NextAction::AskBank(call) = result.transition.next else { return Ok(result) };
            let Some(response) = self.request_bank(id, call, card, Some(deadline)) else {
                return Err(Refusal::new(ErrorCode::Unavailable, "the bank does not answer: try again"));
            };
            result = self.handle_event(id, response.event())?;
        }
    }

    fn complete(&self, id: &str, lease: u64) -> ShopResult<String> {
        match self.drive(id, PurchaseEvent::Complete { lease }, None) {
            Ok(result) => {
                let purchased = result.purchased.clone();
                result.into_response()?;
                to_json(&purchased?)
            }
            // It may have been completed long ago, if its driver did not get the response.
            Err(refusal) if refusal.code == ErrorCode::NotFound => {
                let completed = self.store.read(|reader| sales::completed_purchase(reader, id));
                let completed = completed.map_err(|error: StoreError| unavailable(&error))?;
                to_json(&completed.ok_or(refusal)?.outcome()?)
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Handles one event and waits until its writes are on disk.
    fn handle_event(&self, id: &str, event: PurchaseEvent<'_>) -> ShopResult<StepResult> {
        let memory = self.memory();
        let result = memory
            .purchases
            .handle_event(&memory.journal, self.config.clock.now(), id, event)
            .ok_or_else(no_such_purchase)?;
        self.wait_committed(&memory, &result.commit).map_err(|error| unavailable(&error))?;
        if matches!(result.stage, PurchaseStage::Captured | PurchaseStage::Closed) {
            memory.purchases.evict(id, &self.begin_waiters);
        }
        Ok(result)
    }

    /// Sends a request to the bank and retries it until the deadline; without a deadline, sends it once.
    fn request_bank(
        &self,
        id: &str,
        call: BankRequest,
        card: Option<&PaymentCard>,
        deadline: Option<Instant>,
    ) -> Option<BankResponse> {
        let _asking = BankRequestGuard::new(self, id);
        let mut pause = BANK_RETRY_PAUSE;
        loop {
            let error = match self.request_bank_once(id, call, card) {
                Ok(response) => return response,
                Err(error) => error,
            };
            log::warn!("purchase {id}: {error}");
            let deadline = deadline.filter(|deadline| Instant::now() + pause < *deadline)?;
            // Waits for the pause, unless the database closes.
            let mut is_closed = self.is_closed.lock();
            if *is_closed {
                return None;
            }
            self.closing.wait_until(&mut is_closed, deadline.min(Instant::now() + pause));
            pause *= 2;
        }
    }

    /// Sends a request to the bank once. `None` if the response contradicts an earlier one, so that the operator has to
    /// intervene.
    fn request_bank_once(
        &self,
        id: &str,
        call: BankRequest,
        card: Option<&PaymentCard>,
    ) -> Result<Option<BankResponse>, GatewayError> {
        // The bank checks a card's expiry by the date.
        let now = Clock::wall();
        Ok(match (call, card) {
            (BankRequest::Authorise(total), Some(card)) => {
                Some(match self.gateway.authorise(id, total, card, now)? {
                    AuthorisationOutcome::Authorised => BankResponse::Authorised,
                    AuthorisationOutcome::Declined { reason } => BankResponse::Declined(reason),
                })
            }
            // Only a driver with card details causes this request.
            (BankRequest::Authorise(_), None) => None,
            (BankRequest::Capture, _) => Some(match self.gateway.capture(id, now)? {
                CaptureOutcome::Captured => BankResponse::Captured,
                CaptureOutcome::Refused { reason } => BankResponse::CaptureRefused(reason),
            }),
            (BankRequest::Void, _) => match self.gateway.void(id, now)? {
                VoidOutcome::Voided => Some(BankResponse::Voided),
                VoidOutcome::Captured { amount } => {
                    log::error!("purchase {id} is undone, but the bank has captured {amount} for it");
                    self.memory().purchases.mark_disputed(id);
                    None
                }
            },
        })
    }

    /// Retries each unanswered request to the bank once, and evicts finished purchases.
    pub(super) fn retry_bank_requests(&self) {
        let memory = self.memory();
        for (id, call) in memory.purchases.pending_bank_requests() {
            if let Some(response) = self.request_bank(&id, call, None, None)
                && let Err(refusal) = self.drive(&id, response.event(), None)
            {
                log::warn!("purchase {id}: {}", refusal.message);
            }
            if *self.is_closed.lock() {
                return;
            }
        }
        memory.purchases.evict_finished(&self.begin_waiters);
    }

    /// The user id of a session's owner; counts as a use of the session.
    fn session_user_id(&self, role: Role, sid: &str) -> ShopResult<u64> {
        let memory = self.memory();
        match memory.active_sessions.use_session(self.config.clock.now(), role, sid) {
            Ok(session) => Ok(session.owner.account.user_id),
            Err((refusal, commit)) => self.after_commit(&memory, Err(refusal), &commit),
        }
    }

    fn page<T: Serialize>(&self, read: impl FnOnce(&dyn Reader) -> Result<Vec<T>, StoreError>) -> ShopResult<String> {
        to_json(&self.store.read(read).map_err(|error| unavailable(&error))?)
    }

    fn mark_shipped(&self, seller_id: u64, purchase_id: String, item_id: String) -> ShopResult<()> {
        let now = Clock::wall();
        let text = format!("purchase_id: there is no item {item_id} in purchase {purchase_id}");
        let shipped = self.store.write(move |tx| sales::mark_shipped(tx, seller_id, &purchase_id, &item_id, now));
        match shipped.map_err(|error: StoreError| unavailable(&error))? {
            ShipResult::Shipped => Ok(()),
            ShipResult::Foreign => Err(Refusal::new(ErrorCode::Forbidden, "item_id: it is another seller's")),
            ShipResult::Unknown => Err(Refusal::new(ErrorCode::NotFound, text)),
        }
    }
}

impl PurchaseManager {
    /// Reserves a buyer's slot. If it is taken, the inner error is the id of the open purchase, or `None` while another
    /// attempt is being decided.
    fn reserve_buyer<'a>(
        &'a self,
        buyer_id: u64,
        begin_waiters: &'a BeginWaiters,
    ) -> ShopResult<Result<BuyerReservation<'a>, Option<String>>> {
        let mut open = self.open.lock();
        if open.by_buyer.len() >= OPEN_PURCHASES_MAX {
            return Err(Refusal::new(ErrorCode::Busy, "too many purchases are under way: try again later"));
        }
        Ok(match open.by_buyer.entry(buyer_id) {
            Entry::Occupied(entry) => match entry.get() {
                BuyerSlot::Reserved => Err(None),
                BuyerSlot::Open(id) => Err(Some(id.clone())),
            },
            Entry::Vacant(entry) => {
                entry.insert(BuyerSlot::Reserved);
                Ok(BuyerReservation { purchases: self, begin_waiters, buyer_id, is_filled: false })
            }
        })
    }

    /// Decides on an attempt of a buyer who has this open purchase.
    fn decide_against_open(
        &self,
        now: Millis,
        id: &str,
        attempt: PurchaseAttempt,
    ) -> Option<(BeginDecision, BeginResponse, CommitHandle)> {
        let open = self.open.lock();
        // A finished one frees the slot as soon as that is on disk.
        let entry = open.by_id.get(id).filter(|entry| !entry.purchase.is_terminal());
        let Some(OpenPurchase { purchase, last_commit, .. }) = entry else {
            return open
                .by_id
                .get(id)
                .map(|entry| (BeginDecision::Wait, drive(&entry.purchase), entry.last_commit.clone()));
        };
        let begin = purchase::begin(now, String::new(), attempt, Some(purchase), None);
        Some((begin, drive(purchase), last_commit.clone()))
    }
}

impl BuyerReservation<'_> {
    /// Turns the attempt into an open purchase.
    fn fill(
        mut self,
        journal: &Journal,
        purchase: Purchase,
        buyer: Arc<BuyerCarts>,
        now: Millis,
    ) -> (BeginResponse, CommitHandle) {
        let response = drive(&purchase);
        let PurchaseManager { fee, clock, .. } = self.purchases;
        let writes =
            PurchaseWrites::new(&purchase, vec![purchase::PurchaseWrite::SaveRecord], *fee, clock.date_of(now));
        let mut open = self.purchases.open.lock();
        let last_commit = journal.append_with(Vec::new(), move |tx| writes.write(tx));
        open.insert(purchase, buyer, last_commit.clone());
        self.is_filled = true;
        drop(open);
        // A retry of the same message may have waited for this.
        self.begin_waiters.notify(self.buyer_id);
        (response, last_commit)
    }
}

/// The response that makes the caller of Begin the driver.
fn drive(purchase: &Purchase) -> BeginResponse {
    BeginResponse::Drive {
        purchase_id: purchase.id.clone(),
        lease: purchase.lease(),
        lease_ms: LEASE_MS,
        lines: purchase.cart.lines.clone(),
    }
}

impl StepResult {
    fn into_response(self) -> ShopResult<()> {
        match self.transition.next {
            NextAction::Respond(result) => result,
            NextAction::AskBank(call) => {
                debug_assert!(false, "{call:?} was not asked");
                Err(Refusal::new(ErrorCode::Unavailable, "the bank was not asked: try again"))
            }
        }
    }
}

impl BankResponse {
    fn event(&self) -> PurchaseEvent<'_> {
        match self {
            BankResponse::Authorised => PurchaseEvent::Authorised,
            BankResponse::Declined(reason) => PurchaseEvent::Declined(reason),
            BankResponse::Captured => PurchaseEvent::Captured,
            BankResponse::CaptureRefused(reason) => PurchaseEvent::CaptureRefused(reason),
            BankResponse::Voided => PurchaseEvent::Voided,
        }
    }
}

/// Marks a purchase as having a request at the bank: it is not taken over, and the request not retried by the thread,
/// until this is dropped.
struct BankRequestGuard {
    memory: Arc<CustomerMemory>,
    id: String,
}

impl BankRequestGuard {
    fn new(inner: &CustomerDbInner, id: &str) -> BankRequestGuard {
        let memory = inner.memory();
        memory.purchases.adjust_bank_requests(id, 1);
        BankRequestGuard { memory, id: id.to_owned() }
    }
}

impl Drop for BankRequestGuard {
    fn drop(&mut self) {
        self.memory.purchases.adjust_bank_requests(&self.id, -1);
    }
}

fn no_such_purchase() -> Refusal {
    Refusal::new(ErrorCode::NotFound, "purchase_id: no such purchase is under way")
}

/// Parses the card details, whose form a frontend has checked; the bank decides whether the card is valid.
fn parse_card(card: &CardDetails) -> ShopResult<PaymentCard> {
    let wrong = |field: &str, rule: String| Refusal::new(ErrorCode::BadRequest, format!("{field}: {rule}"));
    Ok(PaymentCard {
        number: CardNumber::new(&card.number).map_err(|rule| wrong("number", rule))?,
        expiry: Expiry::parse(&card.exp).map_err(|rule| wrong("exp", rule))?,
    })
}
