//! The driver of purchases: the requests to begin one that wait for their turn, and the requests to the bank.
//!
//! A step changes the record in the core, which appends the writes. The bank is asked outside of all locks and
//! transactions, once they are on disk, and its response is the event of the next step. A thread repeats requests that
//! the bank has not answered (captures above all) until it does, also after a restart.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde::Serialize;

use super::carts::PendingResult;
use super::core::BeginRequest;
use super::purchases::{BeginResult, CompletedByKey, StepResult, no_such_purchase};
use super::sales::{self, ShipResult};
use super::{CustomerDbInner, CustomerMemory, read, to_json, unavailable};
use crate::bank::{AuthorisationOutcome, CaptureOutcome, GatewayError, VoidOutcome};
use crate::identity::SessionKey;
use crate::model::{CardNumber, Clock, Expiry, PaymentCard, Token};
use crate::shop::ops::{BeginResponse, CardDetails, ErrorCode, Refusal, Role, ShopResult};
use crate::shop::purchase::{BankRequest, NextAction, PurchaseEvent, PurchaseStage};
use crate::storage::{CommitHandle, Reader, StoreError};

#[cfg(test)]
mod tests;

/// How long a Begin waits for the buyer's open purchase: longer than a driver that died delays it.
pub const BEGIN_WAIT_MAX: Duration = Duration::from_secs(8);
pub const BANK_WAIT_MAX: Duration = Duration::from_secs(3);
/// The pause before the bank is asked again; doubled each time.
const BANK_RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Waiting Begins, per buyer and in total.
const WAITING_BEGINS_PER_BUYER_MAX: usize = 16;
const WAITING_BEGINS_MAX: usize = 256;

/// Begins that wait for their buyer's open purchase, and the changes that they wait for. Outlives the memory that is
/// loaded anew.
#[derive(Default)]
pub struct BeginWaiters {
    state: Mutex<BeginWaitersState>,
    news: Condvar,
}

#[derive(Default)]
struct BeginWaitersState {
    of: HashMap<u64, BeginsOfBuyer>,
    all: usize,
}

#[derive(Default)]
struct BeginsOfBuyer {
    count: usize,
    /// How often the purchase that they wait for has changed.
    news: u64,
}

/// Stops waiting when dropped.
struct BeginWaiter<'a> {
    queue: &'a BeginWaiters,
    buyer_id: u64,
}

impl BeginWaiters {
    /// The Begin misses no change from now on. BUSY when too many wait.
    fn enter(&self, buyer_id: u64) -> ShopResult<BeginWaiter<'_>> {
        let mut state = self.state.lock();
        let of_buyer = state.of.get(&buyer_id).map_or(0, |begins| begins.count);
        if state.all >= WAITING_BEGINS_MAX || of_buyer >= WAITING_BEGINS_PER_BUYER_MAX {
            return Err(Refusal::new(ErrorCode::Busy, "too many purchases wait for others: try again later"));
        }
        state.all += 1;
        state.of.entry(buyer_id).or_default().count += 1;
        Ok(BeginWaiter { queue: self, buyer_id })
    }

    /// A buyer's purchase has changed.
    pub(super) fn notify(&self, buyer_id: u64) {
        if let Some(begins) = self.state.lock().of.get_mut(&buyer_id) {
            begins.news += 1;
            self.news.notify_all();
        }
    }

    /// Memory was loaded anew.
    pub(super) fn notify_all(&self) {
        self.state.lock().of.values_mut().for_each(|begins| begins.news += 1);
        self.news.notify_all();
    }
}

impl BeginWaiter<'_> {
    fn news(&self) -> u64 {
        self.queue.state.lock().of.get(&self.buyer_id).map_or(0, |begins| begins.news)
    }

    /// Waits for a change after `seen`; BUSY when there is none before the deadline.
    fn wait(&self, seen: u64, deadline: Instant) -> ShopResult<()> {
        let mut state = self.queue.state.lock();
        while state.of.get(&self.buyer_id).is_some_and(|begins| begins.news == seen) {
            if self.queue.news.wait_until(&mut state, deadline).timed_out() {
                return Err(Refusal::new(ErrorCode::Busy, "another purchase of this buyer is under way: try again"));
            }
        }
        Ok(())
    }
}

impl Drop for BeginWaiter<'_> {
    fn drop(&mut self) {
        let mut state = self.queue.state.lock();
        state.all -= 1;
        if let Entry::Occupied(mut entry) = state.of.entry(self.buyer_id) {
            entry.get_mut().count -= 1;
            if entry.get().count == 0 {
                entry.remove();
            }
        }
    }
}

impl CustomerDbInner {
    /// Begins a purchase once the buyer's open one has ended.
    pub(super) fn begin(&self, request: BeginRequest<'_>) -> ShopResult<BeginResponse> {
        let deadline = Instant::now() + BEGIN_WAIT_MAX;
        let mut queued: Option<(u64, BeginWaiter<'_>)> = None;
        loop {
            // Read before the core is asked, so that a change in between is noticed.
            let seen = queued.as_ref().map(|(_, begin)| begin.news());
            let memory = self.memory.current();
            let buyer_id = match self.try_begin(&memory, request, deadline)? {
                Ok((answer, newest)) => return self.settle(&memory, answer, &newest),
                Err(buyer_id) => buyer_id,
            };
            match (&queued, seen) {
                (Some((of, begin)), Some(seen)) if *of == buyer_id => begin.wait(seen, deadline)?,
                // It misses no change from now on; for one just before, the core is asked again.
                _ => queued = Some((buyer_id, self.begin_waiters.enter(buyer_id)?)),
            }
        }
    }

    /// Tries in one memory: what is read for it counts in none that was loaded since. `Err` is the buyer whose open
    /// purchase must end first.
    fn try_begin(
        &self,
        memory: &CustomerMemory,
        request: BeginRequest<'_>,
        deadline: Instant,
    ) -> ShopResult<Result<PendingResult<BeginResponse, CommitHandle>, u64>> {
        let mut made = None;
        loop {
            let (id, now) = (Token::random().reveal().to_owned(), self.config.clock.now());
            let beginning = memory.lock().begin_purchase(now, id, request, made.as_ref());
            match beginning {
                BeginResult::Decided(decided) => return Ok(Ok(decided)),
                BeginResult::Wait { buyer_id } => return Ok(Err(buyer_id)),
                // Purchases of others were evicted each time.
                BeginResult::ReadCompletedByKey { .. } if made.is_some() && Instant::now() >= deadline => {
                    return Err(Refusal::new(ErrorCode::Busy, "too many purchases are under way: try again later"));
                }
                BeginResult::ReadCompletedByKey { buyer_id, key, evictions } => {
                    let purchase =
                        read(&self.store, |reader| sales::completed_purchase_by_key(reader, buyer_id, &key))?;
                    made = Some(CompletedByKey { purchase, evictions });
                }
            }
        }
    }

    /// The answer, once the commit that it depends on is on disk.
    fn settle<T>(&self, memory: &Arc<CustomerMemory>, answer: ShopResult<T>, newest: &CommitHandle) -> ShopResult<T> {
        self.wait_committed(memory, newest)?;
        answer
    }

    /// Handles a driver's event, and then the bank's responses as further events.
    pub(super) fn drive(
        &self,
        id: &str,
        event: PurchaseEvent,
        card: Option<&PaymentCard>,
    ) -> ShopResult<StepResult<CommitHandle>> {
        let deadline = Instant::now() + BANK_WAIT_MAX;
        let mut stepped = self.step(id, event)?;
        loop {
            let NextAction::AskBank(call) = stepped.transition.next else { return Ok(stepped) };
            let Some(event) = self.ask_bank(id, call, card, Some(deadline)) else {
                return Err(Refusal::new(ErrorCode::Unavailable, "the bank does not answer: try again"));
            };
            stepped = self.step(id, event)?;
        }
    }

    pub(super) fn complete(&self, id: &str, lease: u64) -> ShopResult<String> {
        match self.drive(id, PurchaseEvent::Complete { lease }, None) {
            Ok(stepped) => {
                let purchased = stepped.purchased.clone();
                answer_of(stepped)?;
                to_json(&purchased?)
            }
            // It may have completed long ago without its driver having received the response.
            Err(refusal) if refusal.code == ErrorCode::NotFound => {
                let made = read(&self.store, |reader| sales::completed_purchase(reader, id))?;
                to_json(&made.ok_or(refusal)?.outcome()?)
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Waits until the writes of the event are on disk.
    fn step(&self, id: &str, event: PurchaseEvent) -> ShopResult<StepResult<CommitHandle>> {
        let memory = self.memory.current();
        let stepped = memory.lock().step(self.config.clock.now(), id, event).ok_or_else(no_such_purchase)?;
        self.wait_committed(&memory, &stepped.newest)?;
        if matches!(stepped.stage, PurchaseStage::Captured | PurchaseStage::Closed) {
            let evictions = memory.lock().evict(id);
            evictions.into_iter().for_each(|buyer_id| self.begin_waiters.notify(buyer_id));
        }
        Ok(stepped)
    }

    /// Asks until the bank responds or the deadline has passed; without a deadline, once.
    fn ask_bank(
        &self,
        id: &str,
        call: BankRequest,
        card: Option<&PaymentCard>,
        deadline: Option<Instant>,
    ) -> Option<PurchaseEvent> {
        let _asking = BankRequestGuard::new(self, id);
        let mut pause = BANK_RETRY_PAUSE;
        loop {
            let error = match self.ask_bank_once(id, call, card) {
                Ok(word) => return word,
                Err(error) => error,
            };
            log::warn!("purchase {id}: {error}");
            deadline.filter(|deadline| Instant::now() + pause < *deadline)?;
            if self.closing.is_requested() {
                return None;
            }
            // Only time makes a bank answer; unless the database closes, it is waited for.
            self.closing.wait_for(pause);
            pause *= 2;
        }
    }

    /// `None` stands for a response that contradicts an earlier one: a person must look at it.
    fn ask_bank_once(
        &self,
        id: &str,
        call: BankRequest,
        card: Option<&PaymentCard>,
    ) -> Result<Option<PurchaseEvent>, GatewayError> {
        // The bank judges cards by the date.
        let now = Clock::wall();
        Ok(match (call, card) {
            (BankRequest::Authorise(total), Some(card)) => {
                Some(match self.gateway.authorise(id, total, card, now)? {
                    AuthorisationOutcome::Authorised => PurchaseEvent::Authorised,
                    AuthorisationOutcome::Declined { reason } => PurchaseEvent::Declined(reason),
                })
            }
            // Only the driver has the card.
            (BankRequest::Authorise(_), None) => None,
            (BankRequest::Capture, _) => Some(match self.gateway.capture(id, now)? {
                CaptureOutcome::Captured => PurchaseEvent::Captured,
                CaptureOutcome::Refused { reason } => PurchaseEvent::CaptureRefused(reason),
            }),
            (BankRequest::Void, _) => match self.gateway.void(id, now)? {
                VoidOutcome::Voided => Some(PurchaseEvent::Voided),
                VoidOutcome::Captured { amount } => {
                    log::error!("purchase {id} is undone, but the bank has captured {amount} for it");
                    self.memory.current().lock().purchases.mark_disputed(id);
                    None
                }
            },
        })
    }

    /// Repeats once each request that the bank has not answered; evicts finished purchases.
    pub(super) fn retry_bank_requests(&self) {
        let memory = self.memory.current();
        let unanswered = memory.lock().purchases.pending_bank_requests();
        for (id, call) in unanswered {
            if let Some(event) = self.ask_bank(&id, call, None, None)
                && let Err(refusal) = self.drive(&id, event, None)
            {
                log::warn!("purchase {id}: {}", refusal.message);
            }
            if self.closing.is_requested() {
                return;
            }
        }
        let buyers = memory.lock().evict_finished();
        buyers.into_iter().for_each(|buyer_id| self.begin_waiters.notify(buyer_id));
    }

    /// Counts as a use of the session.
    pub(super) fn user_of(&self, role: Role, session: &SessionKey) -> ShopResult<u64> {
        let memory = self.memory.current();
        let used = memory.lock().use_session(self.config.clock.now(), role, session);
        match used {
            Ok(account) => Ok(account.user_id),
            Err((refusal, newest)) => self.settle(&memory, Err(refusal), &newest),
        }
    }

    pub(super) fn page<T: Serialize>(
        &self,
        rows: impl FnOnce(&dyn Reader) -> Result<Vec<T>, StoreError>,
    ) -> ShopResult<String> {
        to_json(&read(&self.store, rows)?)
    }

    pub(super) fn ship(&self, seller_id: u64, purchase_id: String, item_id: String) -> ShopResult<()> {
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

/// The answer to a driver, after the last step.
pub(super) fn answer_of(stepped: StepResult<CommitHandle>) -> ShopResult<()> {
    match stepped.transition.next {
        NextAction::Respond(answer) => answer,
        NextAction::AskBank(call) => {
            debug_assert!(false, "{call:?} was not asked");
            Err(Refusal::new(ErrorCode::Unavailable, "the bank was not asked: try again"))
        }
    }
}

/// A request to the bank is in progress until this is dropped.
struct BankRequestGuard {
    memory: Arc<CustomerMemory>,
    id: String,
}

impl BankRequestGuard {
    fn new(shared: &CustomerDbInner, id: &str) -> BankRequestGuard {
        let memory = shared.memory.current();
        memory.lock().purchases.begin_bank_request(id);
        BankRequestGuard { memory, id: id.to_owned() }
    }
}

impl Drop for BankRequestGuard {
    fn drop(&mut self) {
        self.memory.lock().purchases.end_bank_request(&self.id);
    }
}

/// A frontend has checked the form; the bank decides whether the card is valid.
pub(super) fn read_card(card: &CardDetails) -> ShopResult<PaymentCard> {
    Ok(PaymentCard {
        number: CardNumber::new(&card.number).map_err(|rule| Refusal::wrong("number", rule))?,
        expiry: Expiry::parse(&card.exp).map_err(|rule| Refusal::wrong("exp", rule))?,
    })
}
