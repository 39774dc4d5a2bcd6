//! The simulated customer database: purchases and carts in memory, ordered writes to disk, and requests to the bank.

use std::collections::{BTreeMap, VecDeque};

use p2s2::identity::SessionKey;
use p2s2::model::{Cents, FeeRate, Name};
use p2s2::shop::ops::{BeginResponse, CustomerOp, ErrorCode, LineItem, Refusal, ShopResult};
use p2s2::shop::purchase::driver::{DatabaseOp, OpResponse};
use p2s2::shop::purchase::{
    self, BankRequest, BeginDecision, BuyerIdentity, CartSnapshot, LEASE_MS, NextAction, Purchase, PurchaseAttempt,
    PurchaseStage, PurchaseWrite,
};

use super::Fault;
use super::buyers::PurchaseIntent;
use super::world::{DatabaseRequest, DatabaseResponse, Event, World};
use crate::bank::{Answer as BankAnswer, Call};

/// How long a Begin waits for the buyer's open purchase.
const WAIT_MS: u64 = 8_000;

pub type Items = BTreeMap<String, u32>;

/// A change of the stored state.
#[derive(Debug, Clone)]
pub enum StoredChange {
    Keep(Box<Purchase>),
    Drop(String),
    Money(Vec<(String, i64)>),
    Paid(Box<Purchase>),
    Cart(u64, Items),
    /// Counts the units that a buyer has ever put into the cart, for the invariants.
    Put(u64, String, u32),
}

/// The committed state.
#[derive(Default)]
pub struct StoredState {
    pub open: BTreeMap<String, Purchase>,
    pub history: BTreeMap<String, Purchase>,
    pub accounts: BTreeMap<String, i64>,
    pub carts: BTreeMap<u64, Items>,
    pub put: BTreeMap<(u64, String), u32>,
}

pub struct Disk {
    pub rows: StoredState,
    pending: VecDeque<Vec<StoredChange>>,
    appended: u64,
    committed: u64,
    fault: Option<Fault>,
}

/// The thread that waits for the result of an event.
#[derive(Debug, Clone)]
pub struct Caller {
    thread: u64,
    seq: u32,
    card: String,
    completes: bool,
}

/// An effect that is applied once everything up to `receipt` is on disk.
struct PendingEffect {
    receipt: u64,
    effect: Effect,
}

enum Effect {
    Respond(u64, u32, DatabaseResponse),
    AskBank(String, BankRequest, Option<Caller>),
}

struct WaitingBegin {
    thread: u64,
    seq: u32,
    intent: PurchaseIntent,
    until: u64,
}

pub struct Memory {
    pub open: BTreeMap<String, Purchase>,
    carts: BTreeMap<u64, Items>,
    later: VecDeque<PendingEffect>,
    /// The Begins that wait for their buyer's open purchase.
    waiting: Vec<WaitingBegin>,
    at_bank: BTreeMap<String, u32>,
}

pub struct CustomerDb {
    start: u32,
    ids: u64,
    pub memory: Option<Memory>,
    pub disk: Disk,
}

impl CustomerDb {
    pub fn new(fault: Option<Fault>) -> CustomerDb {
        let disk = Disk { rows: StoredState::default(), pending: VecDeque::new(), appended: 0, committed: 0, fault };
        CustomerDb { start: 0, ids: 0, memory: None, disk }
    }
}

impl Disk {
    fn append(&mut self, changes: Vec<StoredChange>) {
        self.pending.push_back(changes);
        self.appended += 1;
    }

    fn commit(&mut self, most: usize) {
        for _ in 0..most {
            let Some(changes) = self.pending.pop_front() else { break };
            let is_paid = changes.iter().any(|change| matches!(change, StoredChange::Paid(_)));
            for change in changes {
                let lost = match (&change, self.fault) {
                    (StoredChange::Keep(record), Some(Fault::LoseRecords)) => record.stage() > PurchaseStage::Begun,
                    (StoredChange::Paid(_) | StoredChange::Cart(..), Some(Fault::LosePaid)) => is_paid,
                    _ => false,
                };
                if !lost {
                    self.rows.apply(change);
                }
            }
        }
    }

    /// Discards all pending changes.
    fn forget(&mut self) {
        self.pending.clear();
        self.committed = self.appended;
    }
}

impl StoredState {
    fn apply(&mut self, change: StoredChange) {
        match change {
            StoredChange::Keep(purchase) => drop(self.open.insert(purchase.id.clone(), *purchase)),
            StoredChange::Drop(id) => drop(self.open.remove(&id)),
            StoredChange::Money(entries) => {
                for (account, cents) in entries {
                    *self.accounts.entry(account).or_default() += cents;
                }
            }
            StoredChange::Paid(purchase) => drop(self.history.insert(purchase.id.clone(), *purchase)),
            StoredChange::Cart(buyer, items) => drop(self.carts.insert(buyer, items)),
            StoredChange::Put(buyer, item, quantity) => *self.put.entry((buyer, item)).or_default() += quantity,
        }
    }
}

fn money(row: PurchaseWrite, purchase: &Purchase) -> Vec<(String, i64)> {
    let (card, escrow) = (format!("card:{}", purchase.buyer.user_id), "escrow".to_owned());
    let total = purchase.total().0;
    match row {
        PurchaseWrite::PostAuthorisation => vec![(card, -total), (escrow, total)],
        PurchaseWrite::PostVoid => vec![(escrow, -total), (card, total)],
        PurchaseWrite::PostSale => {
            let fee = |cents: i64| FeeRate::default().fee_on(Cents(cents)).0;
            let mut entries = vec![(escrow, -total)];
            for line in &purchase.priced {
                let amount = line.price.0 * i64::from(line.quantity);
                entries.push((format!("payout:{}", line.seller), amount - fee(amount)));
                entries.push(("fee".to_owned(), fee(amount)));
            }
            entries
        }
        PurchaseWrite::SaveRecord | PurchaseWrite::DeleteRecord => Vec::new(),
    }
}

fn unavailable(why: &str) -> Refusal {
    Refusal::new(ErrorCode::Unavailable, why)
}

impl World {
    pub fn handle_customer_event(&mut self, event: Event) {
        match event {
            Event::StartCustomer => self.start_customer(),
            Event::Commit { start } if self.is_same(start) => self.commit(),
            Event::Bank { start, id, call, caller, tries } => self.send_bank_request(start, id, call, caller, tries),
            Event::BankResponse { start, id, answer, caller } if self.is_same(start) => {
                self.handle_bank_response(id, answer, caller)
            }
            Event::Tend { start } if self.is_same(start) => {
                self.retry_and_expire();
                self.schedule(1_000, Event::Tend { start });
            }
            // An event of an earlier start.
            _ => {}
        }
    }

    fn is_same(&self, start: u32) -> bool {
        self.customer.memory.is_some() && self.customer.start == start
    }

    fn memory(&mut self) -> &mut Memory {
        self.customer.memory.as_mut().expect("only asked while it is up")
    }

    pub fn customer_crashes(&mut self, down: u64) {
        if self.customer.memory.take().is_some() {
            self.note(|| "-- the customer database dies".to_owned());
            self.tally.customer_crashes += 1;
            // Any prefix of the pending changes may have reached the disk.
            let kept = self.rng.below(self.customer.disk.pending.len() as u64 + 1) as usize;
            self.customer.disk.commit(kept);
            self.customer.disk.forget();
            self.schedule(down, Event::StartCustomer);
        }
    }

    fn start_customer(&mut self) {
        self.customer.start += 1;
        self.load();
        let start = self.customer.start;
        self.retry_and_expire();
        self.schedule(1_000, Event::Tend { start });
    }

    fn load(&mut self) {
        let now = self.time();
        let rows = &self.customer.disk.rows;
        let mut open = rows.open.clone();
        open.values_mut().for_each(|purchase| purchase.resume(now));
        let carts = rows.carts.clone();
        let (later, waiting, at_bank) = (VecDeque::new(), Vec::new(), BTreeMap::new());
        self.customer.memory = Some(Memory { open, carts, later, waiting, at_bank });
    }

    pub fn put_into_cart(&mut self, buyer: u64, item: &str, quantity: u32) {
        if let Some(memory) = &mut self.customer.memory {
            let cart = memory.carts.entry(buyer).or_default();
            *cart.entry(item.to_owned()).or_default() += quantity;
            let cart = cart.clone();
            self.append(vec![StoredChange::Put(buyer, item.to_owned(), quantity), StoredChange::Cart(buyer, cart)]);
        }
    }

    fn append(&mut self, changes: Vec<StoredChange>) {
        if changes.is_empty() {
            return;
        }
        self.customer.disk.append(changes);
        if self.customer.disk.pending.len() == 1 {
            let (delay, start) = (self.rng.range(1, 8), self.customer.start);
            self.schedule(delay, Event::Commit { start });
        }
    }

    /// Applies an effect once all pending changes are on disk.
    fn after_commit(&mut self, effect: Effect) {
        let early = match &effect {
            Effect::Respond(..) => self.fault == Some(Fault::AnswerBeforeDisk),
            Effect::AskBank(..) => self.fault == Some(Fault::BankBeforeDisk),
        };
        if early || self.customer.disk.pending.is_empty() {
            return self.apply_effect(effect);
        }
        let receipt = self.customer.disk.appended;
        self.memory().later.push_back(PendingEffect { receipt, effect });
    }

    fn apply_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Respond(thread, seq, response) => self.respond(thread, seq, response),
            Effect::AskBank(id, call, caller) => {
                *self.memory().at_bank.entry(id.clone()).or_default() += 1;
                let start = self.customer.start;
                let delay = self.rng.range(1, 30);
                self.schedule(delay, Event::Bank { start, id, call, caller, tries: 0 });
            }
        }
    }

    fn commit(&mut self) {
        if self.rng.permille(self.weather.store_fails) {
            // Nothing of the batch is stored, and memory is rebuilt.
            self.note(|| "-- the store refuses the batch".to_owned());
            self.tally.store_failures += 1;
            self.customer.disk.forget();
            let Some(was) = self.customer.memory.take() else { return };
            self.load();
            let waited = was.waiting.into_iter().map(|waiting| (waiting.thread, waiting.seq, true));
            let response = was.later.into_iter().filter_map(|later| match later.effect {
                Effect::Respond(thread, seq, DatabaseResponse::OpResponse(_)) => Some((thread, seq, false)),
                Effect::AskBank(_, _, caller) => caller.map(|caller| (caller.thread, caller.seq, false)),
                Effect::Respond(..) => None,
            });
            for (thread, seq, begins) in waited.chain(response) {
                let away = unavailable("the store refuses");
                let response = if begins {
                    DatabaseResponse::Begun(Err(away))
                } else {
                    DatabaseResponse::OpResponse(OpResponse::Refused(away))
                };
                self.respond(thread, seq, response);
            }
            return;
        }
        self.customer.disk.commit(usize::MAX);
        self.customer.disk.committed = self.customer.disk.appended;
        let committed = self.customer.disk.committed;
        // Finished purchases make room for the buyer's next one.
        self.memory().open.retain(|_, purchase| !purchase.is_terminal());
        while self.customer.memory.as_ref().is_some_and(|memory| !memory.later.is_empty()) {
            if self.rng.permille(self.weather.crash) {
                let down = self.rng.range(10, 6_000);
                return self.customer_crashes(down);
            }
            let Some(later) = self.memory().later.pop_front() else { break };
            assert!(later.receipt <= committed, "all of a batch is committed at once");
            self.apply_effect(later.effect);
        }
        for waiting in std::mem::take(&mut self.memory().waiting) {
            self.begin(waiting);
        }
    }

    pub fn handle_customer_request(&mut self, thread: u64, seq: u32, request: DatabaseRequest) {
        if self.customer.memory.is_none() {
            return self.respond_unavailable(thread, seq, &request);
        }
        match request {
            DatabaseRequest::Begin(intent) => {
                self.begin(WaitingBegin { thread, seq, intent, until: self.now + WAIT_MS })
            }
            DatabaseRequest::TakeOver => self.take_over(thread, seq),
            DatabaseRequest::Renew(leases) => {
                let now = self.time();
                for (id, lease) in leases {
                    if let Some(purchase) = self.memory().open.get_mut(&id) {
                        purchase.renew(now, lease);
                    }
                }
            }
            DatabaseRequest::Op(DatabaseOp::Customer(op)) => self.handle_op(thread, seq, op),
            DatabaseRequest::Op(DatabaseOp::Product(_)) => panic!("the customer database holds no stock"),
        }
    }

    fn begin(&mut self, begin: WaitingBegin) {
        let (now, fault) = (self.time(), self.fault);
        let intent = &begin.intent;
        self.customer.ids += 1;
        let id = format!("p{}", self.customer.ids);
        let CustomerDb { memory: Some(memory), disk, .. } = &mut self.customer else { return };
        let open = memory.open.values().find(|open| open.buyer.user_id == intent.buyer && !open.is_terminal());
        let is_going = memory.open.values().any(|open| open.buyer.user_id == intent.buyer);
        let known = intent.key.as_ref().and_then(|key| {
            let mut history = disk.rows.history.values();
            history.find(|known| known.buyer.user_id == intent.buyer && known.key.as_ref() == Some(key))
        });
        if is_going && open.is_none() {
            // The open purchase is finished, but that is not on disk yet.
            return memory.waiting.push(begin);
        }
        let (open, known) = match fault {
            Some(Fault::TwoAtOnce) => (None, known),
            Some(Fault::ForgetKeys) => (open, None),
            _ => (open, known),
        };
        let lines = memory.carts.get(&intent.buyer).into_iter().flatten();
        let lines =
            lines.map(|(item_id, quantity)| LineItem { item_id: item_id.clone(), quantity: *quantity }).collect();
        let buyer = BuyerIdentity {
            user_id: intent.buyer,
            username: Name::new(&format!("buyer {}", intent.buyer)).expect("it is a name"),
            name: String::new(),
        };
        let attempt = PurchaseAttempt {
            buyer,
            request: intent.request.clone(),
            cart: CartSnapshot { session: SessionKey::of("sid"), uses_saved_cart: false, lines },
            key: intent.key.clone(),
            address: intent.address.clone(),
        };
        let drive = |purchase: &Purchase| BeginResponse::Drive {
            purchase_id: purchase.id.clone(),
            lease: purchase.lease(),
            lease_ms: LEASE_MS,
            lines: purchase.cart.lines.clone(),
        };
        let begun = match purchase::begin(now, id, attempt, open, known) {
            BeginDecision::Drive(purchase) => {
                let begun = drive(&purchase);
                memory.open.insert(purchase.id.clone(), (*purchase).clone());
                self.append(vec![StoredChange::Keep(purchase)]);
                Ok(begun)
            }
            BeginDecision::Repeat => Ok(drive(open.expect("it is that of this request"))),
            BeginDecision::Wait => return memory.waiting.push(begin),
            BeginDecision::Done => {
                let known = known.expect("it was done under this key");
                known.outcome().map(|purchased| BeginResponse::Done { purchased })
            }
            BeginDecision::Refuse(refusal) => Err(refusal),
        };
        self.after_commit(Effect::Respond(begin.thread, begin.seq, DatabaseResponse::Begun(begun)));
    }

    fn take_over(&mut self, thread: u64, seq: u32) {
        let now = self.time();
        let memory = self.memory();
        let idle = memory.open.values_mut().filter(|purchase| !memory.at_bank.contains_key(&purchase.id));
        let taken = idle.filter_map(|purchase| Some((purchase.take_over(now)?, purchase.clone()))).next();
        let orphan = taken.map(|(orphan, purchase)| {
            self.append(vec![StoredChange::Keep(Box::new(purchase))]);
            orphan
        });
        self.after_commit(Effect::Respond(thread, seq, DatabaseResponse::OrphanedPurchase(Ok(orphan))));
    }

    fn handle_op(&mut self, thread: u64, seq: u32, op: CustomerOp) {
        let mut caller = Caller { thread, seq, card: String::new(), completes: false };
        let (id, asked_lease) = match &op {
            CustomerOp::Authorise { purchase_id, lease, .. }
            | CustomerOp::Complete { purchase_id, lease }
            | CustomerOp::Undo { purchase_id, lease, .. }
            | CustomerOp::Closed { purchase_id, lease } => (purchase_id.clone(), *lease),
            other => panic!("no driver asks {other:?}"),
        };
        let newest = self.memory().open.get(&id).map(Purchase::lease);
        let lease = if self.fault == Some(Fault::IgnoreLease) { newest.unwrap_or_default() } else { asked_lease };
        let event = match op {
            CustomerOp::Authorise { lines, card, .. } => {
                caller.card = card.number;
                purchase::PurchaseEvent::Authorise { lease, lines }
            }
            CustomerOp::Complete { .. } => {
                caller.completes = true;
                purchase::PurchaseEvent::Complete { lease }
            }
            CustomerOp::Undo { why, .. } => purchase::PurchaseEvent::Undo { lease, why },
            _ => purchase::PurchaseEvent::Closed { lease },
        };
        if newest.is_some() {
            let before = self.memory().open.get(&id).map(Purchase::stage);
            self.handle_purchase_event(&id, event, Some(caller));
            let after = self.customer.memory.as_ref().and_then(|memory| memory.open.get(&id)).map(Purchase::stage);
            self.rules.check_driver_step(&id, before != after, asked_lease, newest);
            return;
        }
        let op_response = match self.customer.disk.rows.history.get(&id) {
            Some(known) if caller.completes => known.outcome().map_or_else(OpResponse::Refused, OpResponse::Purchased),
            _ => OpResponse::Refused(Refusal::new(ErrorCode::NotFound, "there is no such purchase under way")),
        };
        self.after_commit(Effect::Respond(thread, seq, DatabaseResponse::OpResponse(op_response)));
    }

    /// Handles an event of a purchase: appends its writes and schedules the action that follows them.
    fn handle_purchase_event(&mut self, id: &str, event: purchase::PurchaseEvent<'_>, caller: Option<Caller>) {
        let (now, fault) = (self.time(), self.fault);
        let memory = self.memory();
        let Some(purchase) = memory.open.get_mut(id) else { return };
        let transition = purchase.handle(now, event);
        let purchase = purchase.clone();
        let mut changes = Vec::new();
        for row in transition.writes {
            match row {
                PurchaseWrite::SaveRecord => changes.push(StoredChange::Keep(Box::new(purchase.clone()))),
                PurchaseWrite::DeleteRecord => changes.push(StoredChange::Drop(id.to_owned())),
                PurchaseWrite::PostAuthorisation | PurchaseWrite::PostVoid => {
                    changes.push(StoredChange::Money(money(row, &purchase)))
                }
                PurchaseWrite::PostSale => {
                    let cart = memory.carts.entry(purchase.buyer.user_id).or_default();
                    if fault != Some(Fault::KeepCart) {
                        cart.clear();
                    }
                    changes.push(StoredChange::Money(money(row, &purchase)));
                    changes.push(StoredChange::Cart(purchase.buyer.user_id, cart.clone()));
                    changes.push(StoredChange::Paid(Box::new(purchase.clone())));
                }
            }
        }
        if purchase.stage() == PurchaseStage::Closed && !changes.is_empty() {
            self.tally.undone += 1;
        }
        self.append(changes);
        let effect = match (transition.next, caller) {
            (NextAction::AskBank(BankRequest::Void), caller) if fault == Some(Fault::SkipVoid) => {
                return self.handle_purchase_event(id, purchase::PurchaseEvent::Voided, caller);
            }
            (NextAction::AskBank(call), caller) => Effect::AskBank(id.to_owned(), call, caller),
            (NextAction::Respond(answer), Some(Caller { thread, seq, completes, .. })) => {
                let op_response: ShopResult<OpResponse> = match (answer, completes) {
                    (Ok(()), true) => purchase.outcome().map(OpResponse::Purchased),
                    (answer, _) => answer.map(|()| OpResponse::Done),
                };
                Effect::Respond(
                    thread,
                    seq,
                    DatabaseResponse::OpResponse(op_response.unwrap_or_else(OpResponse::Refused)),
                )
            }
            (NextAction::Respond(_), None) => return,
        };
        self.after_commit(effect);
    }

    /// Retries unanswered requests to the bank, and refuses Begins that have waited too long.
    fn retry_and_expire(&mut self) {
        let (fault, now) = (self.fault, self.now);
        for waiting in std::mem::take(&mut self.memory().waiting) {
            if waiting.until > now {
                self.memory().waiting.push(waiting);
            } else {
                let busy = Refusal::new(ErrorCode::Busy, "another purchase is under way");
                self.respond(waiting.thread, waiting.seq, DatabaseResponse::Begun(Err(busy)));
            }
        }
        let memory = self.memory();
        let idle = memory.open.values().filter(|purchase| !memory.at_bank.contains_key(&purchase.id));
        let unanswered = idle.filter_map(|purchase| Some((purchase.id.clone(), purchase.pending_bank_request()?)));
        let unanswered =
            unanswered.filter(|(_, call)| fault != Some(Fault::CaptureOnce) || *call != BankRequest::Capture);
        for (id, call) in unanswered.collect::<Vec<_>>() {
            self.after_commit(Effect::AskBank(id, call, None));
        }
    }

    fn send_bank_request(&mut self, start: u32, id: String, call: BankRequest, caller: Option<Caller>, tries: u32) {
        let stale = !self.is_same(start);
        if self.now >= self.bank.away_until_ms && self.rng.permille(self.weather.bank_away / 10) {
            self.bank.away_until_ms = self.now + self.rng.range(500, 15_000);
        }
        if self.now < self.bank.away_until_ms || self.rng.permille(self.weather.bank_away) {
            if !stale {
                self.handle_bank_failure(start, id, call, caller, tries);
            }
            return;
        }
        let good = caller.as_ref().is_some_and(|caller| !caller.card.ends_with("0002"));
        let bank_call = match call {
            BankRequest::Authorise(_) => Call::Authorise(good),
            BankRequest::Capture => Call::Capture,
            BankRequest::Void => Call::Void,
        };
        if !stale {
            self.rules.check_bank_request(&self.customer.disk.rows, &id, call);
        }
        let refuses = self.rng.permille(self.weather.bank_refuses);
        let answer = self.bank.call(&id, bank_call, refuses);
        self.note(|| format!("the bank: {call:?} of {id} is {answer:?}"));
        if stale {
            return;
        }
        if self.rng.permille(self.weather.bank_away) {
            // The bank's response is lost.
            return self.handle_bank_failure(start, id, call, caller, tries);
        }
        self.schedule(5, Event::BankResponse { start, id, answer, caller });
    }

    /// The bank did not respond: retries the request a few times, then refuses it.
    fn handle_bank_failure(&mut self, start: u32, id: String, call: BankRequest, caller: Option<Caller>, tries: u32) {
        if tries < 5 {
            return self.schedule(300, Event::Bank { start, id, call, caller, tries: tries + 1 });
        }
        self.end_bank_request(&id);
        if let Some(Caller { thread, seq, .. }) = caller {
            let away = unavailable("the bank does not answer");
            self.after_commit(Effect::Respond(thread, seq, DatabaseResponse::OpResponse(OpResponse::Refused(away))));
        }
    }

    fn end_bank_request(&mut self, id: &str) {
        let at_bank = &mut self.memory().at_bank;
        if let Some(count) = at_bank.get_mut(id) {
            *count -= 1;
            if *count == 0 {
                at_bank.remove(id);
            }
        }
    }

    fn handle_bank_response(&mut self, id: String, answer: BankAnswer, caller: Option<Caller>) {
        self.end_bank_request(&id);
        let event = match answer {
            BankAnswer::Authorised => purchase::PurchaseEvent::Authorised,
            BankAnswer::Declined => purchase::PurchaseEvent::Declined("the bank declines"),
            BankAnswer::Captured => purchase::PurchaseEvent::Captured,
            BankAnswer::CaptureRefused => purchase::PurchaseEvent::CaptureRefused("the bank refuses"),
            BankAnswer::Voided => purchase::PurchaseEvent::Voided,
            BankAnswer::AlreadyCaptured => panic!("{id} was charged, though it is undone"),
        };
        self.handle_purchase_event(&id, event, caller);
    }
}
