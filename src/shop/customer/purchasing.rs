//! The driver of purchases: begins that wait for their turn, and the bank.
//!
//! A step changes the record in the core and hands its rows over there; the bank is asked outside of all locks and
//! transactions, once those rows are on disk, and its answer is the next step. What the bank has not answered (a charge
//! above all) is asked again by a thread, until it does; also after a start.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde::Serialize;

use super::core::{BeginRequest, CartRequest};
use super::purchases::{Beginning, MadeUnderKey, Stepped, not_under_way};
use super::sales::{self, ShipResult};
use super::{CustomerDbInner, CustomerMemory, to_json, unavailable};
use crate::bank::{AuthorisationOutcome, CaptureOutcome, GatewayError, VoidOutcome};
use crate::model::{CardNumber, Clock, Expiry, PaymentCard, Token};
use crate::shop::ops::{BeginResponse, CardDetails, CustomerOp, ErrorCode, Refusal, Role, ShopResult};
use crate::shop::purchase::{BankRequest, NextAction, PurchaseEvent, PurchaseStage};
use crate::storage::{CommitHandle, Reader, StoreError};

#[cfg(test)]
mod tests;

/// How long a Begin waits for its buyer's purchase before: longer than a driver that died holds it up.
pub const BEGIN_WAIT_MAX: Duration = Duration::from_secs(8);
/// How long whoever asked waits for the bank.
pub const BANK_WAIT_MAX: Duration = Duration::from_secs(3);
/// How long the bank is left alone after it gave no answer; doubled each time.
const BANK_RETRY_PAUSE: Duration = Duration::from_millis(20);
/// BeginsOfBuyer that may wait: of one buyer, and in all.
const WAITING_BEGINS_PER_BUYER_MAX: usize = 16;
const WAITING_BEGINS_MAX: usize = 256;
/// Most rows of a page.
const PAGE_MAX: u64 = 500;

/// BeginsOfBuyer that wait for their buyer's purchase before, and the news that they wait for. It outlives memory that is
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

/// The begins of one buyer.
#[derive(Default)]
struct BeginsOfBuyer {
    count: usize,
    /// How often something has become of the purchase that they meet.
    news: u64,
}

/// A begin in the queue, which it leaves by drop.
struct BeginWaiter<'a> {
    queue: &'a BeginWaiters,
    buyer_id: u64,
}

impl BeginWaiters {
    /// Takes a begin in, if there are not too many: it misses no news from here on.
    ///
    /// # Errors
    /// BUSY.
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

    /// Something has become of a buyer's purchase: its begins look again.
    pub(super) fn notify(&self, buyer_id: u64) {
        if let Some(begins) = self.state.lock().of.get_mut(&buyer_id) {
            begins.news += 1;
            self.news.notify_all();
        }
    }

    /// CustomerMemory was loaded anew: all begins look again.
    pub(super) fn notify_all(&self) {
        self.state.lock().of.values_mut().for_each(|begins| begins.news += 1);
        self.news.notify_all();
    }
}

impl BeginWaiter<'_> {
    fn news(&self) -> u64 {
        self.queue.state.lock().of.get(&self.buyer_id).map_or(0, |begins| begins.news)
    }

    /// Waits for other news than those; BUSY when there are none before the deadline.
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

/// What the bank said.
enum BankWord {
    Authorised,
    Declined(String),
    Captured,
    CaptureRefused(String),
    Voided,
}

impl CustomerDbInner {
    /// Does what an operation on purchases asks.
    pub(super) fn handle_purchase_op(&self, op: CustomerOp) -> ShopResult<String> {
        match op {
            CustomerOp::Begin { request, sid, uses_saved_cart, idempotency_key, address } => {
                let begin = BeginRequest {
                    cart: CartRequest { sid: &sid, uses_saved_cart },
                    request: &request,
                    key: idempotency_key.as_deref(),
                    address: address.as_deref(),
                };
                to_json(&self.begin(begin)?)
            }
            CustomerOp::Authorise { purchase_id, lease, lines, card } => {
                let card = read_card(&card)?;
                to_json(&answer_of(self.drive(
                    &purchase_id,
                    PurchaseEvent::Authorise { lease, lines },
                    Some(&card),
                )?)?)
            }
            CustomerOp::Complete { purchase_id, lease } => self.complete(&purchase_id, lease),
            CustomerOp::Undo { purchase_id, lease, why } => {
                to_json(&answer_of(self.drive(&purchase_id, PurchaseEvent::Undo { lease, why }, None)?)?)
            }
            CustomerOp::Closed { purchase_id, lease } => {
                to_json(&answer_of(self.drive(&purchase_id, PurchaseEvent::Closed { lease }, None)?)?)
            }
            CustomerOp::Renew { leases } => {
                self.memory.current().lock().renew(self.config.clock.now(), &leases);
                to_json(&())
            }
            CustomerOp::TakeOver => self.answer(|core, now| core.take_over(now)),
            CustomerOp::Purchases { sid, offset, limit } => {
                let buyer_id = self.user_of(Role::Buyer, &sid)?;
                self.page(|reader| sales::purchase_history(reader, buyer_id, offset, limit.min(PAGE_MAX) as u32))
            }
            CustomerOp::Orders { sid, offset, limit } => {
                let seller_id = self.user_of(Role::Seller, &sid)?;
                self.page(|reader| sales::seller_orders(reader, seller_id, offset, limit.min(PAGE_MAX) as u32))
            }
            CustomerOp::MarkShipped { sid, purchase_id, item_id } => {
                let seller_id = self.user_of(Role::Seller, &sid)?;
                to_json(&self.ship(seller_id, purchase_id, item_id)?)
            }
            other => Err(Refusal::new(ErrorCode::UnknownApi, format!("{other:?}: this is no matter of a purchase"))),
        }
    }

    /// BeginsOfBuyer a purchase, once the buyer's purchase before is over.
    fn begin(&self, request: BeginRequest<'_>) -> ShopResult<BeginResponse> {
        let deadline = Instant::now() + BEGIN_WAIT_MAX;
        let mut queued: Option<(u64, BeginWaiter<'_>)> = None;
        let mut made: Option<MadeUnderKey> = None;
        loop {
            // Before the core is looked at, so that what happens in between is seen.
            let seen = queued.as_ref().map(|(_, begin)| begin.news());
            let (memory, now) = (self.memory.current(), self.config.clock.now());
            let id = Token::random().reveal().to_owned();
            let beginning = memory.lock().begin_purchase(now, id, request, made.take().as_ref());
            match beginning {
                Beginning::Decided((answer, newest)) => return self.settle(&memory, answer, &newest),
                Beginning::ReadKey { buyer_id, key, forgotten } => {
                    let purchase = self.store.read(|reader| sales::completed_purchase_by_key(reader, buyer_id, &key));
                    let purchase = purchase.map_err(|error: StoreError| unavailable(&error))?;
                    made = Some(MadeUnderKey { purchase, forgotten });
                }
                Beginning::Wait { buyer_id } => match (&queued, seen) {
                    (Some((of, begin)), Some(seen)) if *of == buyer_id => begin.wait(seen, deadline)?,
                    // From now on it misses no news; something may have happened just before, so it looks once more.
                    _ => queued = Some((buyer_id, self.begin_waiters.enter(buyer_id)?)),
                },
            }
        }
    }

    /// Gives an answer once what it is built on is on disk.
    fn settle<T>(&self, memory: &Arc<CustomerMemory>, answer: ShopResult<T>, newest: &CommitHandle) -> ShopResult<T> {
        self.wait_committed(memory, newest)?;
        answer
    }

    /// Takes a step of a driver, and those that follow by the bank's word.
    fn drive(
        &self,
        id: &str,
        event: PurchaseEvent<'_>,
        card: Option<&PaymentCard>,
    ) -> ShopResult<Stepped<CommitHandle>> {
        let deadline = Instant::now() + BANK_WAIT_MAX;
        let mut stepped = self.step(id, event)?;
        loop {
            let NextAction::AskBank(call) = stepped.transition.next else { return Ok(stepped) };
            let Some(word) = self.ask_bank(id, call, card, Some(deadline)) else {
                return Err(Refusal::new(ErrorCode::Unavailable, "the bank does not answer: try again"));
            };
            stepped = self.step(id, word.event())?;
        }
    }

    fn complete(&self, id: &str, lease: u64) -> ShopResult<String> {
        match self.drive(id, PurchaseEvent::Complete { lease }, None) {
            Ok(stepped) => {
                let purchased = stepped.purchased.clone();
                answer_of(stepped)?;
                to_json(&purchased?)
            }
            // It may be over since long, and its driver never heard of it.
            Err(refusal) if refusal.code == ErrorCode::NotFound => {
                let made = self.store.read(|reader| sales::completed_purchase(reader, id));
                let made = made.map_err(|error: StoreError| unavailable(&error))?;
                to_json(&made.ok_or(refusal)?.outcome()?)
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Takes one step and waits until it is on disk.
    fn step(&self, id: &str, event: PurchaseEvent<'_>) -> ShopResult<Stepped<CommitHandle>> {
        let memory = self.memory.current();
        let stepped = memory.lock().step(self.config.clock.now(), id, event).ok_or_else(not_under_way)?;
        self.wait_committed(&memory, &stepped.newest)?;
        if matches!(stepped.stage, PurchaseStage::Captured | PurchaseStage::Closed) {
            let forgotten = memory.lock().forget(id);
            forgotten.into_iter().for_each(|buyer_id| self.begin_waiters.notify(buyer_id));
        }
        Ok(stepped)
    }

    /// Asks the bank, until it answers or the deadline has passed; without a deadline, once.
    fn ask_bank(
        &self,
        id: &str,
        call: BankRequest,
        card: Option<&PaymentCard>,
        deadline: Option<Instant>,
    ) -> Option<BankWord> {
        let _asking = AtBank::new(self, id);
        let mut pause = BANK_RETRY_PAUSE;
        loop {
            let error = match self.ask_bank_once(id, call, card) {
                Ok(word) => return word,
                Err(error) => error,
            };
            log::warn!("purchase {id}: {error}");
            let deadline = deadline.filter(|deadline| Instant::now() + pause < *deadline)?;
            // Nothing but time makes a bank answer; unless the database closes, it is waited for.
            let mut is_closed = self.is_closed.lock();
            if *is_closed {
                return None;
            }
            self.closing.wait_until(&mut is_closed, deadline.min(Instant::now() + pause));
            pause *= 2;
        }
    }

    /// `None` for a word of the bank that contradicts what it said before: a person has to look.
    fn ask_bank_once(
        &self,
        id: &str,
        call: BankRequest,
        card: Option<&PaymentCard>,
    ) -> Result<Option<BankWord>, GatewayError> {
        // The bank judges cards by the date.
        let now = Clock::wall();
        Ok(match (call, card) {
            (BankRequest::Authorise(total), Some(card)) => {
                Some(match self.gateway.authorise(id, total, card, now)? {
                    AuthorisationOutcome::Authorised => BankWord::Authorised,
                    AuthorisationOutcome::Declined { reason } => BankWord::Declined(reason),
                })
            }
            // Only who brings a card asks for that.
            (BankRequest::Authorise(_), None) => None,
            (BankRequest::Capture, _) => Some(match self.gateway.capture(id, now)? {
                CaptureOutcome::Captured => BankWord::Captured,
                CaptureOutcome::Refused { reason } => BankWord::CaptureRefused(reason),
            }),
            (BankRequest::Void, _) => match self.gateway.void(id, now)? {
                VoidOutcome::Voided => Some(BankWord::Voided),
                VoidOutcome::Captured { amount } => {
                    log::error!("purchase {id} is undone, but the bank has captured {amount} for it");
                    self.memory.current().lock().dispute(id);
                    None
                }
            },
        })
    }

    /// Asks again for whatever the bank has not answered, once each; forgets what is over.
    pub(super) fn retry_bank_requests(&self) {
        let memory = self.memory.current();
        let unanswered = memory.lock().unanswered();
        for (id, call) in unanswered {
            if let Some(word) = self.ask_bank(&id, call, None, None)
                && let Err(refusal) = self.drive(&id, word.event(), None)
            {
                log::warn!("purchase {id}: {}", refusal.message);
            }
            if *self.is_closed.lock() {
                return;
            }
        }
        let buyers = memory.lock().forget_over();
        buyers.into_iter().for_each(|buyer_id| self.begin_waiters.notify(buyer_id));
    }

    /// The user behind a session.
    fn user_of(&self, role: Role, sid: &str) -> ShopResult<u64> {
        let memory = self.memory.current();
        let used = memory.lock().use_session(self.config.clock.now(), role, sid);
        match used {
            Ok(account) => Ok(account.user_id),
            Err((refusal, newest)) => self.settle(&memory, Err(refusal), &newest),
        }
    }

    fn page<T: Serialize>(&self, read: impl FnOnce(&dyn Reader) -> Result<Vec<T>, StoreError>) -> ShopResult<String> {
        to_json(&self.store.read(read).map_err(|error| unavailable(&error))?)
    }

    fn ship(&self, seller_id: u64, purchase_id: String, item_id: String) -> ShopResult<()> {
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

/// What the last step of a driver answers.
fn answer_of(stepped: Stepped<CommitHandle>) -> ShopResult<()> {
    match stepped.transition.next {
        NextAction::Respond(answer) => answer,
        NextAction::AskBank(call) => {
            debug_assert!(false, "{call:?} was not asked");
            Err(Refusal::new(ErrorCode::Unavailable, "the bank was not asked: try again"))
        }
    }
}

impl BankWord {
    fn event(&self) -> PurchaseEvent<'_> {
        match self {
            BankWord::Authorised => PurchaseEvent::Authorised,
            BankWord::Declined(reason) => PurchaseEvent::Declined(reason),
            BankWord::Captured => PurchaseEvent::Captured,
            BankWord::CaptureRefused(reason) => PurchaseEvent::CaptureRefused(reason),
            BankWord::Voided => PurchaseEvent::Voided,
        }
    }
}

/// While it lives, the bank is being asked about a purchase.
struct AtBank {
    memory: Arc<CustomerMemory>,
    id: String,
}

impl AtBank {
    fn new(shared: &CustomerDbInner, id: &str) -> AtBank {
        let memory = shared.memory.current();
        memory.lock().bank_is_asked(id);
        AtBank { memory, id: id.to_owned() }
    }
}

impl Drop for AtBank {
    fn drop(&mut self) {
        self.memory.lock().bank_has_answered(&self.id);
    }
}

/// Whether a card is good is the bank's to say; a frontend has checked its form.
fn read_card(card: &CardDetails) -> ShopResult<PaymentCard> {
    let wrong = |field: &str, rule: String| Refusal::new(ErrorCode::BadRequest, format!("{field}: {rule}"));
    Ok(PaymentCard {
        number: CardNumber::new(&card.number).map_err(|rule| wrong("number", rule))?,
        expiry: Expiry::parse(&card.exp).map_err(|rule| wrong("exp", rule))?,
    })
}
