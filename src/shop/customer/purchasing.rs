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
use super::sales::{self, Shipping};
use super::{Memory, Shared, json, unavailable};
use crate::bank::{Authorisation, Capture, GatewayError, Void};
use crate::model::{Card, CardNumber, Clock, Expiry, Token};
use crate::shop::ops::{Answer, Begun, Code, CustomerOp, LinkCard, Refusal, Role};
use crate::shop::purchase::{BankCall, Event, Stage, Then};
use crate::storage::{CommitHandle, Reader, StoreError};

#[cfg(test)]
mod tests;

/// How long a Begin waits for its buyer's purchase before: longer than a driver that died holds it up.
pub const BEGIN_WAIT: Duration = Duration::from_secs(8);
/// How long whoever asked waits for the bank.
pub const BANK_WAIT: Duration = Duration::from_secs(3);
/// How long the bank is left alone after it gave no answer; doubled each time.
const BANK_PAUSE: Duration = Duration::from_millis(20);
/// Begins that may wait: of one buyer, and in all.
const WAITING_OF_BUYER_MAX: usize = 16;
const WAITING_MAX: usize = 256;
/// Most rows of a page.
const PAGE_MAX: u64 = 500;

/// Begins that wait for their buyer's purchase before, and the news that they wait for. It outlives memory that is
/// loaded anew.
#[derive(Default)]
pub struct BeginQueue {
    state: Mutex<BeginQueueState>,
    news: Condvar,
}

#[derive(Default)]
struct BeginQueueState {
    of: HashMap<u64, Begins>,
    all: usize,
}

/// The begins of one buyer.
#[derive(Default)]
struct Begins {
    count: usize,
    /// How often something has become of the purchase that they meet.
    news: u64,
}

/// A begin in the queue, which it leaves by drop.
struct QueuedBegin<'a> {
    queue: &'a BeginQueue,
    buyer_id: u64,
}

impl BeginQueue {
    /// Takes a begin in, if there are not too many: it misses no news from here on.
    ///
    /// # Errors
    /// BUSY.
    fn enter(&self, buyer_id: u64) -> Answer<QueuedBegin<'_>> {
        let mut state = self.state.lock();
        let of_buyer = state.of.get(&buyer_id).map_or(0, |begins| begins.count);
        if state.all >= WAITING_MAX || of_buyer >= WAITING_OF_BUYER_MAX {
            return Err(Refusal::new(Code::Busy, "too many purchases wait for others: try again later"));
        }
        state.all += 1;
        state.of.entry(buyer_id).or_default().count += 1;
        Ok(QueuedBegin { queue: self, buyer_id })
    }

    /// Something has become of a buyer's purchase: its begins look again.
    pub(super) fn notify(&self, buyer_id: u64) {
        if let Some(begins) = self.state.lock().of.get_mut(&buyer_id) {
            begins.news += 1;
            self.news.notify_all();
        }
    }

    /// Memory was loaded anew: all begins look again.
    pub(super) fn notify_all(&self) {
        self.state.lock().of.values_mut().for_each(|begins| begins.news += 1);
        self.news.notify_all();
    }
}

impl QueuedBegin<'_> {
    fn news(&self) -> u64 {
        self.queue.state.lock().of.get(&self.buyer_id).map_or(0, |begins| begins.news)
    }

    /// Waits for other news than those; BUSY when there are none before the deadline.
    fn wait(&self, seen: u64, deadline: Instant) -> Answer<()> {
        let mut state = self.queue.state.lock();
        while state.of.get(&self.buyer_id).is_some_and(|begins| begins.news == seen) {
            if self.queue.news.wait_until(&mut state, deadline).timed_out() {
                return Err(Refusal::new(Code::Busy, "another purchase of this buyer is under way: try again"));
            }
        }
        Ok(())
    }
}

impl Drop for QueuedBegin<'_> {
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

impl Shared {
    /// Does what an operation on purchases asks.
    pub(super) fn purchase(&self, op: CustomerOp) -> Answer<String> {
        match op {
            CustomerOp::Begin { request, sid, users, idempotency_key, address } => {
                let begin = BeginRequest {
                    cart: CartRequest { sid: &sid, users },
                    request: &request,
                    key: idempotency_key.as_deref(),
                    address: address.as_deref(),
                };
                json(&self.begin(begin)?)
            }
            CustomerOp::Authorise { purchase_id, lease, lines, card } => {
                let card = read_card(&card)?;
                json(&answer_of(self.drive(&purchase_id, Event::Authorise { lease, lines }, Some(&card))?)?)
            }
            CustomerOp::Complete { purchase_id, lease } => self.complete(&purchase_id, lease),
            CustomerOp::Undo { purchase_id, lease, why } => {
                json(&answer_of(self.drive(&purchase_id, Event::Undo { lease, why }, None)?)?)
            }
            CustomerOp::Closed { purchase_id, lease } => {
                json(&answer_of(self.drive(&purchase_id, Event::Closed { lease }, None)?)?)
            }
            CustomerOp::Renew { leases } => {
                self.memory.current().lock().renew(self.config.clock.now(), &leases);
                json(&())
            }
            CustomerOp::TakeOver => self.answer(|core, now| core.take_over(now)),
            CustomerOp::Purchases { sid, offset, limit } => {
                let buyer_id = self.user_of(Role::Buyer, &sid)?;
                self.page(|reader| sales::bought(reader, buyer_id, offset, limit.min(PAGE_MAX) as u32))
            }
            CustomerOp::Orders { sid, offset, limit } => {
                let seller_id = self.user_of(Role::Seller, &sid)?;
                self.page(|reader| sales::orders(reader, seller_id, offset, limit.min(PAGE_MAX) as u32))
            }
            CustomerOp::MarkShipped { sid, purchase_id, item_id } => {
                let seller_id = self.user_of(Role::Seller, &sid)?;
                json(&self.ship(seller_id, purchase_id, item_id)?)
            }
            other => Err(Refusal::new(Code::UnknownApi, format!("{other:?}: this is no matter of a purchase"))),
        }
    }

    /// Begins a purchase, once the buyer's purchase before is over.
    fn begin(&self, request: BeginRequest<'_>) -> Answer<Begun> {
        let deadline = Instant::now() + BEGIN_WAIT;
        let mut queued: Option<(u64, QueuedBegin<'_>)> = None;
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
                    let purchase = self.store.read(|reader| sales::made_under(reader, buyer_id, &key));
                    let purchase = purchase.map_err(|error: StoreError| unavailable(&error))?;
                    made = Some(MadeUnderKey { purchase, forgotten });
                }
                Beginning::Wait { buyer_id } => match (&queued, seen) {
                    (Some((of, begin)), Some(seen)) if *of == buyer_id => begin.wait(seen, deadline)?,
                    // From now on it misses no news; something may have happened just before, so it looks once more.
                    _ => queued = Some((buyer_id, self.begins.enter(buyer_id)?)),
                },
            }
        }
    }

    /// Gives an answer once what it is built on is on disk.
    fn settle<T>(&self, memory: &Arc<Memory>, answer: Answer<T>, newest: &CommitHandle) -> Answer<T> {
        self.wait_committed(memory, newest)?;
        answer
    }

    /// Takes a step of a driver, and those that follow by the bank's word.
    fn drive(&self, id: &str, event: Event<'_>, card: Option<&Card>) -> Answer<Stepped<CommitHandle>> {
        let deadline = Instant::now() + BANK_WAIT;
        let mut stepped = self.step(id, event)?;
        loop {
            let Then::Ask(call) = stepped.step.then else { return Ok(stepped) };
            let Some(word) = self.ask_bank(id, call, card, Some(deadline)) else {
                return Err(Refusal::new(Code::Unavailable, "the bank does not answer: try again"));
            };
            stepped = self.step(id, word.event())?;
        }
    }

    fn complete(&self, id: &str, lease: u64) -> Answer<String> {
        match self.drive(id, Event::Complete { lease }, None) {
            Ok(stepped) => {
                let purchased = stepped.purchased.clone();
                answer_of(stepped)?;
                json(&purchased?)
            }
            // It may be over since long, and its driver never heard of it.
            Err(refusal) if refusal.code == Code::NotFound => {
                let made = self.store.read(|reader| sales::made(reader, id));
                let made = made.map_err(|error: StoreError| unavailable(&error))?;
                json(&made.ok_or(refusal)?.outcome()?)
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Takes one step and waits until it is on disk.
    fn step(&self, id: &str, event: Event<'_>) -> Answer<Stepped<CommitHandle>> {
        let memory = self.memory.current();
        let stepped = memory.lock().step(self.config.clock.now(), id, event).ok_or_else(not_under_way)?;
        self.wait_committed(&memory, &stepped.newest)?;
        if matches!(stepped.stage, Stage::Captured | Stage::Closed) {
            let forgotten = memory.lock().forget(id);
            forgotten.into_iter().for_each(|buyer_id| self.begins.notify(buyer_id));
        }
        Ok(stepped)
    }

    /// Asks the bank, until it answers or the deadline has passed; without a deadline, once.
    fn ask_bank(&self, id: &str, call: BankCall, card: Option<&Card>, deadline: Option<Instant>) -> Option<BankWord> {
        let _asking = AtBank::new(self, id);
        let mut pause = BANK_PAUSE;
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
    fn ask_bank_once(&self, id: &str, call: BankCall, card: Option<&Card>) -> Result<Option<BankWord>, GatewayError> {
        // The bank judges cards by the date.
        let now = Clock::wall();
        Ok(match (call, card) {
            (BankCall::Authorise(total), Some(card)) => Some(match self.gateway.authorise(id, total, card, now)? {
                Authorisation::Authorised => BankWord::Authorised,
                Authorisation::Declined { reason } => BankWord::Declined(reason),
            }),
            // Only who brings a card asks for that.
            (BankCall::Authorise(_), None) => None,
            (BankCall::Capture, _) => Some(match self.gateway.capture(id, now)? {
                Capture::Captured => BankWord::Captured,
                Capture::Refused { reason } => BankWord::CaptureRefused(reason),
            }),
            (BankCall::Void, _) => match self.gateway.void(id, now)? {
                Void::Voided => Some(BankWord::Voided),
                Void::Captured { amount } => {
                    log::error!("purchase {id} is undone, but the bank has captured {amount} for it");
                    self.memory.current().lock().dispute(id);
                    None
                }
            },
        })
    }

    /// Asks again for whatever the bank has not answered, once each; forgets what is over.
    pub(super) fn tend_purchases(&self) {
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
        buyers.into_iter().for_each(|buyer_id| self.begins.notify(buyer_id));
    }

    /// The user behind a session.
    fn user_of(&self, role: Role, sid: &str) -> Answer<u64> {
        let memory = self.memory.current();
        let used = memory.lock().use_session(self.config.clock.now(), role, sid);
        match used {
            Ok(account) => Ok(account.user_id),
            Err((refusal, newest)) => self.settle(&memory, Err(refusal), &newest),
        }
    }

    fn page<T: Serialize>(&self, read: impl FnOnce(&dyn Reader) -> Result<Vec<T>, StoreError>) -> Answer<String> {
        json(&self.store.read(read).map_err(|error| unavailable(&error))?)
    }

    fn ship(&self, seller_id: u64, purchase_id: String, item_id: String) -> Answer<()> {
        let now = Clock::wall();
        let text = format!("purchase_id: there is no item {item_id} in purchase {purchase_id}");
        let shipped = self.store.write(move |tx| sales::ship(tx, seller_id, &purchase_id, &item_id, now));
        match shipped.map_err(|error: StoreError| unavailable(&error))? {
            Shipping::Shipped => Ok(()),
            Shipping::Foreign => Err(Refusal::new(Code::Forbidden, "item_id: it is another seller's")),
            Shipping::Unknown => Err(Refusal::new(Code::NotFound, text)),
        }
    }
}

/// What the last step of a driver answers.
fn answer_of(stepped: Stepped<CommitHandle>) -> Answer<()> {
    match stepped.step.then {
        Then::Answer(answer) => answer,
        Then::Ask(call) => {
            debug_assert!(false, "{call:?} was not asked");
            Err(Refusal::new(Code::Unavailable, "the bank was not asked: try again"))
        }
    }
}

impl BankWord {
    fn event(&self) -> Event<'_> {
        match self {
            BankWord::Authorised => Event::Authorised,
            BankWord::Declined(reason) => Event::Declined(reason),
            BankWord::Captured => Event::Captured,
            BankWord::CaptureRefused(reason) => Event::CaptureRefused(reason),
            BankWord::Voided => Event::Voided,
        }
    }
}

/// While it lives, the bank is being asked about a purchase.
struct AtBank {
    memory: Arc<Memory>,
    id: String,
}

impl AtBank {
    fn new(shared: &Shared, id: &str) -> AtBank {
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
fn read_card(card: &LinkCard) -> Answer<Card> {
    let wrong = |field: &str, rule: String| Refusal::new(Code::BadRequest, format!("{field}: {rule}"));
    Ok(Card {
        number: CardNumber::new(&card.number).map_err(|rule| wrong("number", rule))?,
        expiry: Expiry::parse(&card.exp).map_err(|rule| wrong("exp", rule))?,
    })
}
