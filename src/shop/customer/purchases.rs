//! Purchases: their records in memory and on disk, the ledger with them, and the bank beside them.
//!
//! The rules are those of [`purchase`]; here they meet the store, the carts and the bank. A step changes
//! the record under its lock and hands its rows over there; the bank is asked outside of all locks and
//! transactions, once those rows are on disk, and its answer is the next step. What the bank has not
//! answered (a charge above all) is asked again by a thread, until it does; also after a start.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde::Serialize;

use super::carts::Buyer;
use super::people::People;
use super::sales::{self, Rows, Shipping};
use super::store::Journal;
use super::{Done, Memory, Shared, json, unavailable};
use crate::bank::{Authorisation, Capture, GatewayError, Void};
use crate::model::{Card, CardNumber, Clock, Expiry, FeeRate, Millis, Name, Token};
use crate::shop::ops::{Answer, Begun, Code, CustomerOp, LinkCard, Orphan, Purchased, Refusal, Role};
use crate::shop::purchase::{self, Attempt, BankCall, Begin, Cart, Event, LEASE_MS, Purchase, Stage, Step, Then};
use crate::storage::{Reader, StoreError, Ticket, TicketState};

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
/// Purchases under way at once.
const UNDER_WAY_MAX: usize = 10_000;
/// Most rows of a page.
const PAGE_MAX: u64 = 500;

/// Every purchase under way.
pub struct Purchases {
    fee: FeeRate,
    /// For dates.
    clock: Clock,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    by_id: HashMap<String, Cell>,
    by_buyer: HashMap<u64, Place>,
}

struct Cell {
    purchase: Purchase,
    /// Holds on to the carts, also when the buyer's last session has ended.
    buyer: Arc<Buyer>,
    /// The newest change of it.
    last: Ticket,
    /// Questions to the bank that are not answered.
    at_bank: u32,
    /// The bank has charged what it was told to let go of: a person has to look, asking again is no use.
    is_in_dispute: bool,
}

/// A buyer makes one purchase at a time.
enum Place {
    /// It is looked up whether there may be one.
    Beginning,
    Open(String),
}

/// Begins that are being looked at, and the news that those wait for which meet another purchase of their
/// buyer. It outlives memory that is built anew.
#[derive(Default)]
pub struct Waiting {
    state: Mutex<WaitingState>,
    news: Condvar,
}

#[derive(Default)]
struct WaitingState {
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

/// One begin that is being looked at: it misses no news from here on.
struct Beginning<'a> {
    waiting: &'a Waiting,
    buyer_id: u64,
}

/// What the bank said.
enum Said {
    Authorised,
    Declined(String),
    Captured,
    CaptureRefused(String),
    Voided,
}

/// What came of a step, and when that is on disk.
struct Taken {
    step: Step,
    stage: Stage,
    /// For whoever asked to complete.
    purchased: Answer<Purchased>,
    ticket: Ticket,
}

impl Purchases {
    /// Takes up what was under way; the journal was begun before it was read.
    ///
    /// # Errors
    /// The store's, when a buyer's cart could not be read.
    pub fn load(
        journal: &Journal,
        people: &People,
        under_way: Vec<Purchase>,
        fee: FeeRate,
        clock: Clock,
    ) -> Result<Purchases, StoreError> {
        let now = clock.now();
        let mut open = Open::default();
        for mut purchase in under_way {
            purchase.resume(now);
            let buyer = people.buyer(journal, purchase.buyer.user_id)?;
            open.put(purchase, buyer, Ticket::committed());
        }
        Ok(Purchases { fee, clock, open: Mutex::new(open) })
    }

    /// How many are under way.
    pub fn under_way(&self) -> usize {
        self.open.lock().by_id.len()
    }

    /// Takes a step; nothing if there is no such purchase under way.
    fn step(&self, journal: &Journal, now: Millis, id: &str, event: Event<'_>) -> Option<Taken> {
        let mut open = self.open.lock();
        let cell = open.by_id.get_mut(id)?;
        let mut step = cell.purchase.handle(now, event);
        let rows = std::mem::take(&mut step.rows);
        if !rows.is_empty() {
            cell.last = self.write(journal, cell, rows, now);
        }
        let Cell { purchase, last, .. } = cell;
        Some(Taken { step, stage: purchase.stage(), purchased: purchase.outcome(), ticket: last.clone() })
    }

    fn write(&self, journal: &Journal, cell: &Cell, rows: Vec<purchase::Row>, now: Millis) -> Ticket {
        let is_paid = rows.contains(&purchase::Row::Paid);
        let rows = Rows::new(&cell.purchase, rows, self.fee, self.clock.dated(now));
        if !is_paid {
            return journal.append_with(Vec::new(), move |tx| rows.write(tx));
        }
        let Cart { session, lines, .. } = &cell.purchase.cart;
        cell.buyer.bought(session, lines, |changes| journal.append_with(changes, move |tx| rows.write(tx)))
    }

    fn renew(&self, now: Millis, leases: &[(String, u64)]) {
        let mut open = self.open.lock();
        for (id, lease) in leases {
            if let Some(cell) = open.by_id.get_mut(id) {
                cell.purchase.renew(now, *lease);
            }
        }
    }

    /// Gives the purchase that has waited longest for its driver to another.
    fn take_over(&self, journal: &Journal, now: Millis) -> Done<Option<Orphan>> {
        let mut open = self.open.lock();
        let idle = open.by_id.values_mut().filter(|cell| cell.is_idle());
        let Some(cell) =
            idle.filter(|cell| cell.purchase.is_orphan(now)).min_by_key(|cell| cell.purchase.leased_until())
        else {
            return (Ok(None), Ticket::committed());
        };
        let orphan = cell.purchase.take_over(now);
        cell.last = self.write(journal, cell, vec![purchase::Row::Keep], now);
        (Ok(orphan), cell.last.clone())
    }

    /// Forgets those that are over and on disk, and that whoever took the last step has not forgotten.
    fn sweep(&self, waiting: &Waiting) {
        let over: Vec<String> = {
            let open = self.open.lock();
            let over = open
                .by_id
                .iter()
                .filter(|(_, cell)| cell.purchase.is_over() && cell.last.state() == TicketState::Committed);
            over.map(|(id, _)| id.clone()).collect()
        };
        over.iter().for_each(|id| self.forget(id, waiting));
    }

    /// One that is over, and is so on disk, makes room for its buyer's next.
    fn forget(&self, id: &str, waiting: &Waiting) {
        let forgotten = self.open.lock().take(id);
        if let Some(buyer_id) = forgotten {
            waiting.tell(buyer_id);
        }
    }

    /// What the bank has to be asked again, and is not being asked.
    fn unanswered(&self) -> Vec<(String, BankCall)> {
        let open = self.open.lock();
        let idle = open.by_id.values().filter(|cell| cell.is_idle());
        idle.filter_map(|cell| Some((cell.purchase.id.clone(), cell.purchase.unanswered()?))).collect()
    }

    fn dispute(&self, id: &str) {
        if let Some(cell) = self.open.lock().by_id.get_mut(id) {
            cell.is_in_dispute = true;
        }
    }

    fn is_at_bank(&self, id: &str, change: i32) {
        if let Some(cell) = self.open.lock().by_id.get_mut(id) {
            cell.at_bank = cell.at_bank.saturating_add_signed(change);
        }
    }
}

impl Cell {
    /// Whether someone may see to it of his own accord.
    fn is_idle(&self) -> bool {
        self.at_bank == 0 && !self.is_in_dispute
    }
}

impl Open {
    fn put(&mut self, purchase: Purchase, buyer: Arc<Buyer>, last: Ticket) {
        self.by_buyer.insert(purchase.buyer.user_id, Place::Open(purchase.id.clone()));
        self.by_id.insert(purchase.id.clone(), Cell { purchase, buyer, last, at_bank: 0, is_in_dispute: false });
    }

    fn take(&mut self, id: &str) -> Option<u64> {
        let buyer_id = self.by_id.remove(id)?.purchase.buyer.user_id;
        self.by_buyer.remove(&buyer_id);
        Some(buyer_id)
    }
}

/// A buyer's place while it is looked up what becomes of an attempt.
struct Reserved<'a> {
    purchases: &'a Purchases,
    waiting: &'a Waiting,
    buyer_id: u64,
    is_taken: bool,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if !self.is_taken {
            self.purchases.open.lock().by_buyer.remove(&self.buyer_id);
            self.waiting.tell(self.buyer_id);
        }
    }
}

impl Waiting {
    /// Lets a begin in, if there are not too many.
    fn enter(&self, buyer_id: u64) -> Answer<Beginning<'_>> {
        let mut state = self.state.lock();
        let of_buyer = state.of.get(&buyer_id).map_or(0, |begins| begins.count);
        if state.all >= WAITING_MAX || of_buyer >= WAITING_OF_BUYER_MAX {
            return Err(Refusal::new(Code::Busy, "too many purchases wait for others: try again later"));
        }
        state.all += 1;
        state.of.entry(buyer_id).or_default().count += 1;
        Ok(Beginning { waiting: self, buyer_id })
    }

    /// Something has become of a buyer's purchase.
    fn tell(&self, buyer_id: u64) {
        if let Some(begins) = self.state.lock().of.get_mut(&buyer_id) {
            begins.news += 1;
            self.news.notify_all();
        }
    }

    /// Everything may be otherwise.
    pub(super) fn tell_all(&self) {
        self.state.lock().of.values_mut().for_each(|begins| begins.news += 1);
        self.news.notify_all();
    }
}

impl Beginning<'_> {
    fn news(&self) -> u64 {
        self.waiting.state.lock().of.get(&self.buyer_id).map_or(0, |begins| begins.news)
    }

    /// Waits for other news than those; BUSY when there are none before the deadline.
    fn wait(&self, seen: u64, deadline: Instant) -> Answer<()> {
        let mut state = self.waiting.state.lock();
        while state.of.get(&self.buyer_id).is_some_and(|begins| begins.news == seen) {
            if self.waiting.news.wait_until(&mut state, deadline).timed_out() {
                return Err(Refusal::new(Code::Busy, "another purchase of this buyer is under way: try again"));
            }
        }
        Ok(())
    }
}

impl Drop for Beginning<'_> {
    fn drop(&mut self) {
        let mut state = self.waiting.state.lock();
        state.all -= 1;
        if let Entry::Occupied(mut entry) = state.of.entry(self.buyer_id) {
            entry.get_mut().count -= 1;
            if entry.get().count == 0 {
                entry.remove();
            }
        }
    }
}

impl Shared {
    /// What belongs to a purchase.
    pub(super) fn purchase(&self, op: CustomerOp) -> Answer<String> {
        match op {
            CustomerOp::Begin { request, sid, users, idempotency_key, address } => {
                json(&self.begin(request, &sid, users, idempotency_key, address)?)
            }
            CustomerOp::Authorise { purchase_id, lease, lines, card } => {
                let card = read_card(&card)?;
                json(&self.drive(&purchase_id, Event::Authorise { lease, lines }, Some(&card))?.step_answer()?)
            }
            CustomerOp::Complete { purchase_id, lease } => self.complete(&purchase_id, lease),
            CustomerOp::Undo { purchase_id, lease, why } => {
                json(&self.drive(&purchase_id, Event::Undo { lease, why }, None)?.step_answer()?)
            }
            CustomerOp::Closed { purchase_id, lease } => {
                json(&self.drive(&purchase_id, Event::Closed { lease }, None)?.step_answer()?)
            }
            CustomerOp::Renew { leases } => {
                self.memory().purchases.renew(self.config.clock.now(), &leases);
                json(&())
            }
            CustomerOp::TakeOver => {
                let memory = self.memory();
                self.answer(&memory, memory.purchases.take_over(&memory.journal, self.config.clock.now()))
            }
            CustomerOp::Purchases { sid, offset, limit } => {
                let buyer_id = self.whose(Role::Buyer, &sid)?;
                self.page(|reader| sales::bought(reader, buyer_id, offset, limit.min(PAGE_MAX) as u32))
            }
            CustomerOp::Orders { sid, offset, limit } => {
                let seller_id = self.whose(Role::Seller, &sid)?;
                self.page(|reader| sales::orders(reader, seller_id, offset, limit.min(PAGE_MAX) as u32))
            }
            CustomerOp::MarkShipped { sid, purchase_id, item_id } => {
                let seller_id = self.whose(Role::Seller, &sid)?;
                json(&self.ship(seller_id, purchase_id, item_id)?)
            }
            other => Err(Refusal::new(Code::UnknownApi, format!("{other:?}: this is no matter of a purchase"))),
        }
    }

    /// Begins an attempt, after the buyer's purchase before is over.
    fn begin(
        &self,
        request: String,
        sid: &str,
        users: bool,
        key: Option<String>,
        address: Option<String>,
    ) -> Answer<Begun> {
        let deadline = Instant::now() + BEGIN_WAIT;
        let mut beginning = None;
        loop {
            let (memory, now) = (self.memory(), self.config.clock.now());
            let (session, buyer) = match memory.people.buyers_session(now, sid) {
                Ok(found) => found,
                Err((refusal, ticket)) => {
                    return self.wait(&memory, &ticket).map_err(|error| unavailable(&error)).and(Err(refusal));
                }
            };
            let account = &session.who.account;
            let beginning = match &beginning {
                Some(beginning) => beginning,
                None => beginning.insert(self.waiting.enter(account.user_id)?),
            };
            let seen = beginning.news();
            let username = Name::kept(&account.username).map_err(|rule| {
                Refusal::new(Code::BadRequest, format!("username: {rule}, so nobody can be charged"))
            })?;
            let attempt = |lines| Attempt {
                buyer: purchase::Buyer {
                    user_id: account.user_id,
                    username: username.clone(),
                    name: account.name.clone(),
                },
                request: request.clone(),
                cart: Cart { session: session.key, users, lines },
                key: key.clone(),
                address: address.clone(),
            };
            let show = || buyer.show(&memory.journal, (&session.key, users));
            // A begin that waits looks again; one that may go on holds the buyer's place until it knows.
            let place = match memory.purchases.place(account.user_id, &self.waiting) {
                Err(full) => return Err(full),
                Ok(Ok(place)) => place,
                Ok(Err(None)) => {
                    beginning.wait(seen, deadline)?;
                    continue;
                }
                Ok(Err(Some(id))) => {
                    let (lines, ticket) = show();
                    let lines = match lines {
                        Ok(lines) => lines,
                        Err(refusal) => return self.settle(&memory, Err(refusal), &ticket),
                    };
                    match memory.purchases.meets(now, &id, attempt(lines)) {
                        Some((Begin::Again, begun, last)) => {
                            return self.settle(&memory, Ok(begun), &Ticket::later(ticket, last));
                        }
                        Some((Begin::Refuse(refusal), _, last)) => {
                            return self.settle(&memory, Err(refusal), &Ticket::later(ticket, last));
                        }
                        Some(_) => beginning.wait(seen, deadline)?,
                        None => {}
                    }
                    continue;
                }
            };
            // All that this buyer has purchased before is on disk: it made room only then.
            let known = match &key {
                Some(key) => self
                    .store
                    .read(|reader| sales::made_under(reader, account.user_id, key))
                    .map_err(|error: StoreError| unavailable(&error))?,
                None => None,
            };
            let (lines, ticket) = show();
            let lines = match lines {
                Ok(lines) => lines,
                Err(refusal) => return self.settle(&memory, Err(refusal), &ticket),
            };
            let id = Token::random().reveal().to_owned();
            return match purchase::begin(now, id, attempt(lines), None, known.as_ref()) {
                Begin::Drive(purchase) => {
                    let (begun, ticket) = place.take(&memory.journal, *purchase, Arc::clone(&buyer), now);
                    self.settle(&memory, Ok(begun), &ticket)
                }
                Begin::Done => {
                    let done = known.as_ref().map(Purchase::outcome).unwrap_or_else(|| Err(not_known()));
                    self.settle(&memory, done.map(|purchased| Begun::Done { purchased }), &ticket)
                }
                Begin::Refuse(refusal) => self.settle(&memory, Err(refusal), &ticket),
                // Only an open purchase is waited for, and there is none.
                Begin::Again | Begin::Wait => continue,
            };
        }
    }

    /// Gives an answer once what it is built on is on disk.
    fn settle<T>(&self, memory: &Arc<Memory>, answer: Answer<T>, ticket: &Ticket) -> Answer<T> {
        self.wait(memory, ticket).map_err(|error| unavailable(&error))?;
        answer
    }

    /// Takes a step of a driver, and those that follow by the bank's word.
    fn drive(&self, id: &str, event: Event<'_>, card: Option<&Card>) -> Answer<Taken> {
        let deadline = Instant::now() + BANK_WAIT;
        let mut taken = self.step(id, event)?;
        loop {
            let Then::Ask(call) = taken.step.then else { return Ok(taken) };
            let Some(said) = self.ask_bank(id, call, card, Some(deadline)) else {
                return Err(Refusal::new(Code::Unavailable, "the bank does not answer: try again"));
            };
            taken = self.step(id, said.event())?;
        }
    }

    fn complete(&self, id: &str, lease: u64) -> Answer<String> {
        match self.drive(id, Event::Complete { lease }, None) {
            Ok(taken) => {
                let purchased = taken.purchased.clone();
                taken.step_answer()?;
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
    fn step(&self, id: &str, event: Event<'_>) -> Answer<Taken> {
        let memory = self.memory();
        let taken = memory.purchases.step(&memory.journal, self.config.clock.now(), id, event).ok_or_else(not_known)?;
        self.wait(&memory, &taken.ticket).map_err(|error| unavailable(&error))?;
        if matches!(taken.stage, Stage::Captured | Stage::Closed) {
            memory.purchases.forget(id, &self.waiting);
        }
        Ok(taken)
    }

    /// Asks the bank, until it answers or the deadline has passed; without a deadline, once.
    fn ask_bank(&self, id: &str, call: BankCall, card: Option<&Card>, deadline: Option<Instant>) -> Option<Said> {
        let _asking = AtBank::new(self, id);
        let mut pause = BANK_PAUSE;
        loop {
            let error = match self.ask_bank_once(id, call, card) {
                Ok(said) => return said,
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
    fn ask_bank_once(&self, id: &str, call: BankCall, card: Option<&Card>) -> Result<Option<Said>, GatewayError> {
        // The bank judges cards by the date.
        let now = Clock::wall();
        Ok(match (call, card) {
            (BankCall::Authorise(total), Some(card)) => Some(match self.gateway.authorise(id, total, card, now)? {
                Authorisation::Authorised => Said::Authorised,
                Authorisation::Declined { reason } => Said::Declined(reason),
            }),
            // Only who brings a card asks for that.
            (BankCall::Authorise(_), None) => None,
            (BankCall::Capture, _) => Some(match self.gateway.capture(id, now)? {
                Capture::Captured => Said::Captured,
                Capture::Refused { reason } => Said::CaptureRefused(reason),
            }),
            (BankCall::Void, _) => match self.gateway.void(id, now)? {
                Void::Voided => Some(Said::Voided),
                Void::Captured { amount } => {
                    log::error!("purchase {id} is undone, but the bank has captured {amount} for it");
                    self.memory().purchases.dispute(id);
                    None
                }
            },
        })
    }

    /// Asks again for whatever the bank has not answered, once each; forgets what is over.
    pub(super) fn tend_purchases(&self) {
        let memory = self.memory();
        for (id, call) in memory.purchases.unanswered() {
            if let Some(said) = self.ask_bank(&id, call, None, None)
                && let Err(refusal) = self.drive(&id, said.event(), None)
            {
                log::warn!("purchase {id}: {}", refusal.message);
            }
            if *self.is_closed.lock() {
                return;
            }
        }
        memory.purchases.sweep(&self.waiting);
    }

    /// The user behind a session.
    fn whose(&self, role: Role, sid: &str) -> Answer<u64> {
        let memory = self.memory();
        match memory.people.session(self.config.clock.now(), role, sid) {
            Ok(session) => Ok(session.who.account.user_id),
            Err((refusal, ticket)) => self.settle(&memory, Err(refusal), &ticket),
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

impl Purchases {
    /// A buyer's place for an attempt; or the purchase that is in it, `None` while that is being decided.
    fn place<'a>(&'a self, buyer_id: u64, waiting: &'a Waiting) -> Answer<Result<Reserved<'a>, Option<String>>> {
        let mut open = self.open.lock();
        if open.by_buyer.len() >= UNDER_WAY_MAX {
            return Err(Refusal::new(Code::Busy, "too many purchases are under way: try again later"));
        }
        Ok(match open.by_buyer.entry(buyer_id) {
            Entry::Occupied(entry) => match entry.get() {
                Place::Beginning => Err(None),
                Place::Open(id) => Err(Some(id.clone())),
            },
            Entry::Vacant(entry) => {
                entry.insert(Place::Beginning);
                Ok(Reserved { purchases: self, waiting, buyer_id, is_taken: false })
            }
        })
    }

    /// What an attempt comes to that meets this open purchase, and how that is driven.
    fn meets(&self, now: Millis, id: &str, attempt: Attempt) -> Option<(Begin, Begun, Ticket)> {
        let open = self.open.lock();
        // One that is over makes room as soon as that is on disk.
        let cell = open.by_id.get(id).filter(|cell| !cell.purchase.is_over());
        let Some(Cell { purchase, last, .. }) = cell else {
            return open.by_id.get(id).map(|cell| (Begin::Wait, drive(&cell.purchase), cell.last.clone()));
        };
        let begin = purchase::begin(now, String::new(), attempt, Some(purchase), None);
        Some((begin, drive(purchase), last.clone()))
    }
}

impl Reserved<'_> {
    /// The attempt is a purchase from now on.
    fn take(mut self, journal: &Journal, purchase: Purchase, buyer: Arc<Buyer>, now: Millis) -> (Begun, Ticket) {
        let begun = drive(&purchase);
        let Purchases { fee, clock, .. } = self.purchases;
        let rows = Rows::new(&purchase, vec![purchase::Row::Keep], *fee, clock.dated(now));
        let mut open = self.purchases.open.lock();
        let last = journal.append_with(Vec::new(), move |tx| rows.write(tx));
        open.put(purchase, buyer, last.clone());
        self.is_taken = true;
        drop(open);
        // A repeat of the same message has waited only for this.
        self.waiting.tell(self.buyer_id);
        (begun, last)
    }
}

/// How a purchase is to be driven by the one who began it.
fn drive(purchase: &Purchase) -> Begun {
    Begun::Drive {
        purchase_id: purchase.id.clone(),
        lease: purchase.lease(),
        lease_ms: LEASE_MS,
        lines: purchase.cart.lines.clone(),
    }
}

impl Taken {
    fn step_answer(self) -> Answer<()> {
        match self.step.then {
            Then::Answer(answer) => answer,
            Then::Ask(call) => {
                debug_assert!(false, "{call:?} was not asked");
                Err(Refusal::new(Code::Unavailable, "the bank was not asked: try again"))
            }
        }
    }
}

impl Said {
    fn event(&self) -> Event<'_> {
        match self {
            Said::Authorised => Event::Authorised,
            Said::Declined(reason) => Event::Declined(reason),
            Said::Captured => Event::Captured,
            Said::CaptureRefused(reason) => Event::CaptureRefused(reason),
            Said::Voided => Event::Voided,
        }
    }
}

/// While the bank is asked about a purchase, nobody takes it over and nobody else asks of his own accord.
struct AtBank {
    memory: Arc<Memory>,
    id: String,
}

impl AtBank {
    fn new(shared: &Shared, id: &str) -> AtBank {
        let memory = shared.memory();
        memory.purchases.is_at_bank(id, 1);
        AtBank { memory, id: id.to_owned() }
    }
}

impl Drop for AtBank {
    fn drop(&mut self) {
        self.memory.purchases.is_at_bank(&self.id, -1);
    }
}

fn not_known() -> Refusal {
    Refusal::new(Code::NotFound, "purchase_id: no such purchase is under way")
}

/// Whether a card is good is the bank's to say; a frontend has checked its form.
fn read_card(card: &LinkCard) -> Answer<Card> {
    let wrong = |field: &str, rule: String| Refusal::new(Code::BadRequest, format!("{field}: {rule}"));
    Ok(Card {
        number: CardNumber::new(&card.number).map_err(|rule| wrong("number", rule))?,
        expiry: Expiry::parse(&card.exp).map_err(|rule| wrong("exp", rule))?,
    })
}
