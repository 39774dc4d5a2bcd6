//! The customer database: the very core, and the rule that joins it to the world: what it has changed is on disk, then
//! the answer leaves and the bank is asked.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use p2s2::internals::identity::SessionKey;
use p2s2::internals::model::{Cents, FeeRate, Millis};
use p2s2::internals::shop::customer::CustomerOp;
use p2s2::internals::shop::customer::active_sessions::SavedCart;
use p2s2::internals::shop::customer::carts::{CartOf, IdempotentRequest};
use p2s2::internals::shop::customer::core::{BeginRequest, CustomerCore, OpenSessionResult};
use p2s2::internals::shop::customer::purchases::{BeginResult, CompletedByKey};
use p2s2::internals::shop::customer::store::{AnsweredRow, CustomerChange, CustomerSnapshot, SessionRow};
use p2s2::internals::shop::ops::{Account, ErrorCode, LineItem, Refusal, Role, ShopResult};
use p2s2::internals::shop::purchase::driver::{DatabaseOp, OpResponse};
use p2s2::internals::shop::purchase::{self, BankRequest, NextAction, Purchase, PurchaseStage, PurchaseWrite};
use p2s2::internals::storage::Journal;

use super::Fault;
use super::buyers::PurchaseIntent;
use super::world::{DatabaseRequest, DatabaseResponse, Event, World};
use crate::bank::{Answer as BankAnswer, Call};
use crate::journal;

/// How long a Begin waits for the buyer's purchase before.
const WAIT_MS: u64 = 8_000;
/// Longer than any simulation: buyers stay signed in.
const SESSION_TIMEOUT: Duration = Duration::from_secs(1_000_000);

pub type Disk = journal::Disk<StoredState>;

/// The remembered response to a request: its number, the request, when it was answered, and with which quantity.
type Remembered = (u64, String, Millis, Option<u32>);

/// What is on disk for good.
#[derive(Default)]
pub struct StoredState {
    fault: Option<Fault>,
    pub open: BTreeMap<String, Purchase>,
    pub history: BTreeMap<String, Purchase>,
    pub accounts: BTreeMap<String, i64>,
    sessions: BTreeMap<SessionKey, u64>,
    carts: BTreeMap<SessionKey, BTreeMap<Arc<str>, u32>>,
    saved: BTreeMap<(u64, Arc<str>), u32>,
    answered: BTreeMap<(SessionKey, u32), Remembered>,
    /// For the rules: what a buyer ever put into the cart.
    pub put: BTreeMap<(u64, Arc<str>), u32>,
}

impl journal::Rows for StoredState {
    type Change = CustomerChange;

    fn keep(&mut self, changes: Vec<CustomerChange>) {
        let is_paid = |change: &CustomerChange| matches!(change, CustomerChange::Purchase(rows) if rows.kinds().contains(&PurchaseWrite::PostSale));
        let is_payment = changes.iter().any(is_paid);
        for change in changes {
            let is_of_cart = matches!(change, CustomerChange::CartLine { .. } | CustomerChange::SavedCartLine { .. });
            match (change, self.fault) {
                (_, Some(Fault::LosePaid | Fault::KeepCart)) if is_of_cart && is_payment => {}
                (CustomerChange::Purchase(rows), fault) => {
                    for row in rows.kinds() {
                        let lost = match fault {
                            Some(Fault::LoseRecords) => {
                                *row == PurchaseWrite::SaveRecord && rows.purchase().stage() > PurchaseStage::Begun
                            }
                            _ => false,
                        };
                        if !lost {
                            self.purchase(rows.purchase(), *row, fault == Some(Fault::LosePaid));
                        }
                    }
                }
                (change, _) => self.apply(change),
            }
        }
    }
}

impl StoredState {
    fn apply(&mut self, change: CustomerChange) {
        match change {
            CustomerChange::OpenSession { session, user_id, .. } => drop(self.sessions.insert(session, user_id)),
            CustomerChange::CloseSession(session) => {
                self.sessions.remove(&session);
                self.carts.remove(&session);
                self.answered.retain(|(of, _), _| *of != session);
            }
            CustomerChange::CartLine { session, item_id, quantity } => {
                let cart = self.carts.entry(session).or_default();
                let before = cart.insert(Arc::clone(&item_id), quantity).unwrap_or(0);
                if let Some(buyer) = self.sessions.get(&session) {
                    *self.put.entry((*buyer, item_id)).or_default() += quantity.saturating_sub(before);
                }
                cart.retain(|_, quantity| *quantity > 0);
            }
            CustomerChange::SavedCartLine { user_id, item_id, quantity } => {
                self.saved.insert((user_id, item_id), quantity);
                self.saved.retain(|_, quantity| *quantity > 0);
            }
            CustomerChange::AnsweredRequest { session, slot, number, request, at, quantity } => {
                self.answered.insert((session, slot), (number, request, at, quantity));
            }
            CustomerChange::Purchase(_) => unreachable!("its rows are applied one by one"),
        }
    }

    fn purchase(&mut self, purchase: &Purchase, row: PurchaseWrite, loses_history: bool) {
        for (account, cents) in money(row, purchase) {
            *self.accounts.entry(account).or_default() += cents;
        }
        match row {
            PurchaseWrite::SaveRecord => drop(self.open.insert(purchase.id.clone(), purchase.clone())),
            PurchaseWrite::DeleteRecord => drop(self.open.remove(&purchase.id)),
            PurchaseWrite::PostSale if !loses_history => {
                drop(self.history.insert(purchase.id.clone(), purchase.clone()))
            }
            PurchaseWrite::PostAuthorisation | PurchaseWrite::PostVoid | PurchaseWrite::PostSale => {}
        }
    }

    fn snapshot(&self) -> CustomerSnapshot {
        let sessions = self.sessions.iter().map(|(session, user_id)| SessionRow {
            session: *session,
            role: Role::Buyer,
            account: account(*user_id),
            used_at: Millis::default(),
            was_over: false,
        });
        let carts = self.carts.iter();
        let lines = carts.flat_map(|(session, cart)| cart.iter().map(|(item, n)| (*session, Arc::clone(item), *n)));
        let saved = self.saved.iter().map(|((user_id, item), n)| (*user_id, Arc::clone(item), *n));
        let mut answered: Vec<AnsweredRow> = self
            .answered
            .iter()
            .map(|((session, _), (number, request, at, quantity))| AnsweredRow {
                session: *session,
                number: *number,
                request: request.clone(),
                at: *at,
                quantity: *quantity,
            })
            .collect();
        answered.sort_by_key(|row| (row.session, row.number));
        CustomerSnapshot {
            sessions: sessions.collect(),
            lines: lines.collect(),
            saved: saved.collect(),
            answered,
            open_purchases: self.open.values().cloned().collect(),
        }
    }

    /// How many units of an item are in a buyer's cart.
    pub fn in_cart(&self, buyer: u64, item: &str) -> u32 {
        self.carts.get(&session_of(buyer)).and_then(|cart| cart.get(item)).copied().unwrap_or(0)
    }
}

fn account(user_id: u64) -> Account {
    let username = format!("buyer {user_id}");
    Account { user_id, name: username.clone(), username }
}

fn sid_of(buyer: u64) -> String {
    format!("session of {buyer}")
}

fn session_of(buyer: u64) -> SessionKey {
    SessionKey::of(&sid_of(buyer))
}

/// Who waits for what comes of an event.
#[derive(Debug, Clone)]
pub struct Caller {
    thread: u64,
    seq: u32,
    card: String,
    completes: bool,
}

/// What is done once everything up to the commit is on disk.
struct PendingEffect {
    commit: u64,
    effect: Effect,
}

enum Effect {
    Respond(u64, u32, DatabaseResponse),
    DatabaseRequest(String, BankRequest, Option<Caller>),
}

/// A Begin that waits for its buyer's purchase before.
struct WaitingBegin {
    thread: u64,
    seq: u32,
    intent: PurchaseIntent,
    until: u64,
}

pub struct Memory {
    pub core: CustomerCore<Disk>,
    later: VecDeque<PendingEffect>,
    waiting: Vec<WaitingBegin>,
}

pub struct CustomerDb {
    start: u32,
    ids: u64,
    pub memory: Option<Memory>,
    pub disk: Disk,
    is_commit_due: bool,
}

impl CustomerDb {
    pub fn new(fault: Option<Fault>) -> CustomerDb {
        CustomerDb {
            start: 0,
            ids: 0,
            memory: None,
            disk: Disk::with_rows(StoredState { fault, ..StoredState::default() }),
            is_commit_due: false,
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
            // Of a database that is no more.
            _ => {}
        }
    }

    fn is_same(&self, start: u32) -> bool {
        self.customer.memory.is_some() && self.customer.start == start
    }

    fn memory(&mut self) -> &mut Memory {
        self.customer.memory.as_mut().expect("only asked while it is up")
    }

    fn core(&mut self) -> &mut CustomerCore<Disk> {
        &mut self.memory().core
    }

    pub fn customer_crashes(&mut self, down: u64) {
        if self.customer.memory.take().is_some() {
            self.note(|| "-- the customer database dies".to_owned());
            self.tally.customer_crashes += 1;
            // Of what was handed over and not answered, any prefix may have made it.
            self.customer.disk.crash(&mut self.rng);
            self.customer.is_commit_due = false;
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
        let disk = self.customer.disk.clone();
        let snapshot = disk.lock().rows.snapshot();
        let core = CustomerCore::load(disk, SESSION_TIMEOUT, FeeRate::default(), snapshot, now);
        let (later, waiting) = (VecDeque::new(), Vec::new());
        self.customer.memory = Some(Memory { core, later, waiting });
        let mut buyers: Vec<u64> = self.clients.iter().map(|client| client.buyer).collect();
        buyers.dedup();
        for buyer in buyers {
            if self.core().look(now, &sid_of(buyer)).is_err() {
                self.sign_in(now, buyer);
            }
        }
        self.commit_later();
    }

    fn sign_in(&mut self, now: Millis, buyer: u64) {
        let mut saved = None;
        loop {
            let (account, key) = (account(buyer), session_of(buyer));
            match self.core().open_session(now, Role::Buyer, account, key, saved.take()) {
                OpenSessionResult::Decided((answer, _)) => return answer.expect("there is room for every buyer"),
                // Nothing is ever saved but what is bought.
                OpenSessionResult::ReadSavedCart { evictions } => {
                    saved = Some(SavedCart { lines: BTreeMap::new(), evictions })
                }
            }
        }
    }

    pub fn put_into_cart(&mut self, buyer: u64, item: &str, quantity: u32) {
        if self.customer.memory.is_some() {
            self.customer.ids += 1;
            let (now, request) = (self.time(), format!("put {}", self.customer.ids));
            let line = LineItem { item_id: item.to_owned(), quantity };
            let cart = CartOf::new(&sid_of(buyer), false);
            let (answer, _) = self.core().with_cart(now, cart, |buyer, journal, cart| {
                buyer.add(journal, cart, IdempotentRequest { id: &request, now }, &line, u32::MAX)
            });
            answer.expect("a cart has room for a few items");
            self.commit_later();
        }
    }

    /// What was handed over is committed in a while.
    fn commit_later(&mut self) {
        if !self.customer.disk.is_idle() && !self.customer.is_commit_due {
            self.customer.is_commit_due = true;
            let (delay, start) = (self.rng.range(1, 8), self.customer.start);
            self.schedule(delay, Event::Commit { start });
        }
    }

    /// Nothing leaves before everything that it is built on is on disk.
    fn after_commit(&mut self, commit: u64, effect: Effect) {
        self.commit_later();
        let early = match &effect {
            Effect::Respond(..) => self.fault == Some(Fault::AnswerBeforeDisk),
            Effect::DatabaseRequest(..) => self.fault == Some(Fault::BankBeforeDisk),
        };
        if early || self.customer.disk.is_committed(&commit) {
            return self.apply_effect(effect);
        }
        self.memory().later.push_back(PendingEffect { commit, effect });
    }

    fn apply_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Respond(thread, seq, said) => self.respond(thread, seq, said),
            Effect::DatabaseRequest(id, call, caller) => {
                self.core().purchases.begin_bank_request(&id);
                let start = self.customer.start;
                let delay = self.rng.range(1, 30);
                self.schedule(delay, Event::Bank { start, id, call, caller, tries: 0 });
            }
        }
    }

    fn commit(&mut self) {
        self.customer.is_commit_due = false;
        if self.rng.permille(self.weather.store_fails) {
            // Nothing of the batch is there, and memory is loaded anew.
            self.note(|| "-- the store refuses the batch".to_owned());
            self.tally.store_failures += 1;
            self.customer.disk.fail();
            let Some(was) = self.customer.memory.take() else { return };
            self.load();
            let waited = was.waiting.into_iter().map(|waiting| (waiting.thread, waiting.seq, true));
            let said = was.later.into_iter().filter_map(|later| match later.effect {
                Effect::Respond(thread, seq, DatabaseResponse::OpResponse(_)) => Some((thread, seq, false)),
                Effect::DatabaseRequest(_, _, caller) => caller.map(|caller| (caller.thread, caller.seq, false)),
                Effect::Respond(..) => None,
            });
            for (thread, seq, begins) in waited.chain(said) {
                let away = unavailable("the store refuses");
                let said = if begins {
                    DatabaseResponse::Begun(Err(away))
                } else {
                    DatabaseResponse::OpResponse(OpResponse::Refused(away))
                };
                self.respond(thread, seq, said);
            }
            return;
        }
        self.customer.disk.commit();
        let committed = self.customer.disk.lock().committed;
        // What is over makes room for the buyer's next.
        self.core().evict_finished();
        while self.customer.memory.as_ref().is_some_and(|memory| !memory.later.is_empty()) {
            if self.rng.permille(self.weather.crash) {
                let down = self.rng.range(10, 6_000);
                return self.customer_crashes(down);
            }
            let Some(later) = self.memory().later.pop_front() else { break };
            assert!(later.commit <= committed, "all of a batch is committed at once");
            self.apply_effect(later.effect);
        }
        for waiting in std::mem::take(&mut self.memory().waiting) {
            self.begin(waiting);
        }
    }

    pub fn handle_customer_request(&mut self, thread: u64, seq: u32, ask: DatabaseRequest) {
        if self.customer.memory.is_none() {
            return self.respond_unavailable(thread, seq, &ask);
        }
        match ask {
            DatabaseRequest::Begin(intent) => {
                self.begin(WaitingBegin { thread, seq, intent, until: self.now + WAIT_MS })
            }
            DatabaseRequest::TakeOver => {
                let now = self.time();
                let (orphan, commit) = self.core().take_over(now);
                self.after_commit(commit, Effect::Respond(thread, seq, DatabaseResponse::OrphanedPurchase(orphan)));
            }
            DatabaseRequest::Renew(leases) => {
                let now = self.time();
                self.core().purchases.renew(now, &leases);
            }
            DatabaseRequest::Op(DatabaseOp::Customer(op)) => self.op(thread, seq, op),
            DatabaseRequest::Op(DatabaseOp::Product(_)) => panic!("the customer database holds no stock"),
        }
    }

    fn begin(&mut self, asking: WaitingBegin) {
        let (now, fault) = (self.time(), self.fault);
        let intent = &asking.intent;
        let sid = sid_of(intent.buyer);
        let request = BeginRequest {
            cart: CartOf::new(&sid, false),
            request: &intent.request,
            key: intent.key.as_deref(),
            address: intent.address.as_deref(),
        };
        if fault == Some(Fault::TwoAtOnce) {
            let open = self
                .core()
                .purchases
                .iter()
                .find(|open| open.buyer.user_id == intent.buyer)
                .map(|open| open.id.clone());
            open.and_then(|id| self.core().evict(&id));
        }
        let mut made = None;
        loop {
            self.customer.ids += 1;
            let id = format!("p{}", self.customer.ids);
            match self.core().begin_purchase(now, id, request, made.take().as_ref()) {
                BeginResult::Decided((begun, commit)) => {
                    return self.after_commit(
                        commit,
                        Effect::Respond(asking.thread, asking.seq, DatabaseResponse::Begun(begun)),
                    );
                }
                BeginResult::Wait { .. } => return self.memory().waiting.push(asking),
                BeginResult::ReadCompletedByKey { buyer_id, key, evictions } => {
                    let disk = self.customer.disk.lock();
                    let of_key = |made: &&Purchase| made.buyer.user_id == buyer_id && made.key.as_ref() == Some(&key);
                    let purchase =
                        disk.rows.history.values().filter(of_key).max_by_key(|made| made.captured_at).cloned();
                    let purchase = purchase.filter(|_| fault != Some(Fault::ForgetKeys));
                    made = Some(CompletedByKey { purchase, evictions });
                }
            }
        }
    }

    fn op(&mut self, thread: u64, seq: u32, op: CustomerOp) {
        let mut caller = Caller { thread, seq, card: String::new(), completes: false };
        let (id, asked_lease) = match &op {
            CustomerOp::Authorise { purchase_id, lease, .. }
            | CustomerOp::Complete { purchase_id, lease }
            | CustomerOp::Undo { purchase_id, lease, .. }
            | CustomerOp::Closed { purchase_id, lease } => (purchase_id.clone(), *lease),
            other => panic!("no driver asks {other:?}"),
        };
        let newest = self.core().purchases.get(&id).map(Purchase::lease);
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
            let before = self.core().purchases.get(&id).map(Purchase::stage);
            self.step(&id, event, Some(caller));
            let after =
                self.customer.memory.as_ref().and_then(|memory| memory.core.purchases.get(&id)).map(Purchase::stage);
            self.rules.check_driver_step(&id, before != after, asked_lease, newest);
            return;
        }
        let known = self.customer.disk.lock().rows.history.get(&id).cloned();
        let heard = match known {
            Some(known) if caller.completes => known.outcome().map_or_else(OpResponse::Refused, OpResponse::Purchased),
            _ => OpResponse::Refused(Refusal::new(ErrorCode::NotFound, "there is no such purchase under way")),
        };
        self.after_commit(0, Effect::Respond(thread, seq, DatabaseResponse::OpResponse(heard)));
    }

    /// Something happens to a purchase; what is done then waits until its rows are on disk.
    fn step(&mut self, id: &str, event: purchase::PurchaseEvent, caller: Option<Caller>) {
        let (now, fault) = (self.time(), self.fault);
        let before = self.core().purchases.get(id).map(Purchase::stage);
        let Some(stepped) = self.core().step(now, id, event) else { return };
        if stepped.stage == PurchaseStage::Closed && before != Some(PurchaseStage::Closed) {
            self.tally.undone += 1;
        }
        let what = match (stepped.transition.next, caller) {
            (NextAction::AskBank(BankRequest::Void), caller) if fault == Some(Fault::SkipVoid) => {
                self.commit_later();
                return self.step(id, purchase::PurchaseEvent::Voided, caller);
            }
            (NextAction::AskBank(call), caller) => Effect::DatabaseRequest(id.to_owned(), call, caller),
            (NextAction::Respond(answer), Some(Caller { thread, seq, completes, .. })) => {
                let heard: ShopResult<OpResponse> = match (answer, completes) {
                    (Ok(()), true) => stepped.purchased.map(OpResponse::Purchased),
                    (answer, _) => answer.map(|()| OpResponse::Done),
                };
                Effect::Respond(thread, seq, DatabaseResponse::OpResponse(heard.unwrap_or_else(OpResponse::Refused)))
            }
            (NextAction::Respond(_), None) => return self.commit_later(),
        };
        self.after_commit(stepped.newest, what);
    }

    /// What the bank has not answered is asked again; who has waited for too long is told so.
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
        for (id, call) in self.core().purchases.pending_bank_requests() {
            if fault != Some(Fault::CaptureOnce) || call != BankRequest::Capture {
                let newest = self.customer.disk.lock().appended;
                self.after_commit(newest, Effect::DatabaseRequest(id, call, None));
            }
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
        let asked = match call {
            BankRequest::Authorise(_) => Call::Authorise(good),
            BankRequest::Capture => Call::Capture,
            BankRequest::Void => Call::Void,
        };
        if !stale {
            self.rules.check_bank_request(&self.customer.disk.lock().rows, &id, call);
        }
        let refuses = self.rng.permille(self.weather.bank_refuses);
        let answer = self.bank.call(&id, asked, refuses);
        self.note(|| format!("the bank: {call:?} of {id} is {answer:?}"));
        if stale {
            return;
        }
        if self.rng.permille(self.weather.bank_away) {
            // Its answer is lost.
            return self.handle_bank_failure(start, id, call, caller, tries);
        }
        self.schedule(5, Event::BankResponse { start, id, answer, caller });
    }

    /// No answer: asked again for a while; then nobody waits for it any more.
    fn handle_bank_failure(&mut self, start: u32, id: String, call: BankRequest, caller: Option<Caller>, tries: u32) {
        if tries < 5 {
            return self.schedule(300, Event::Bank { start, id, call, caller, tries: tries + 1 });
        }
        self.end_bank_request(&id);
        if let Some(Caller { thread, seq, .. }) = caller {
            let away = unavailable("the bank does not answer");
            self.after_commit(0, Effect::Respond(thread, seq, DatabaseResponse::OpResponse(OpResponse::Refused(away))));
        }
    }

    fn end_bank_request(&mut self, id: &str) {
        self.core().purchases.end_bank_request(id);
    }

    fn handle_bank_response(&mut self, id: String, answer: BankAnswer, caller: Option<Caller>) {
        self.end_bank_request(&id);
        let event = match answer {
            BankAnswer::Authorised => purchase::PurchaseEvent::Authorised,
            BankAnswer::Declined => purchase::PurchaseEvent::Declined("the bank declines".to_owned()),
            BankAnswer::Captured => purchase::PurchaseEvent::Captured,
            BankAnswer::CaptureRefused => purchase::PurchaseEvent::CaptureRefused("the bank refuses".to_owned()),
            BankAnswer::Voided => purchase::PurchaseEvent::Voided,
            BankAnswer::AlreadyCaptured => panic!("{id} was charged, though it is undone"),
        };
        self.step(&id, event, caller);
    }
}
