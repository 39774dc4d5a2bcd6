//! The customer database: the very core, and the rule that joins it to the world: what it has changed is on disk, then
//! the answer leaves and the bank is asked.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use p2s2::identity::SessionKey;
use p2s2::model::{Cents, FeeRate, Millis};
use p2s2::shop::customer::core::{BeginRequest, CartRequest, CustomerCore, Opening};
use p2s2::shop::customer::purchases::{Beginning, MadeUnderKey};
use p2s2::shop::customer::signed_in::SavedCart;
use p2s2::shop::customer::store::{AnsweredRow, Change, SessionRow, Snapshot};
use p2s2::shop::ops::{Account, Answer, Code, CustomerOp, Line, Refusal, Role};
use p2s2::shop::purchase::driver::{Heard, Op};
use p2s2::shop::purchase::{self, BankCall, Purchase, Row, Stage, Then};
use p2s2::storage::Journal;

use super::Fault;
use super::buyers::Wish;
use super::world::{Ask, Event, Said, World};
use crate::bank::{Answer as BankAnswer, Call};

/// How long a Begin waits for the buyer's purchase before.
const WAIT_MS: u64 = 8_000;
/// Longer than any simulation: buyers stay signed in.
const SESSION_TIMEOUT: Duration = Duration::from_secs(1_000_000);

/// A disk as the contract assumes it: what was committed stays; of the rest a crash keeps some prefix.
#[derive(Clone)]
pub struct Disk(Arc<Mutex<Platter>>);

pub struct Platter {
    pub rows: Rows,
    pending: VecDeque<Vec<Change>>,
    appended: u64,
    committed: u64,
    fault: Option<Fault>,
}

/// What is on disk for good.
#[derive(Default)]
pub struct Rows {
    pub open: BTreeMap<String, Purchase>,
    pub history: BTreeMap<String, Purchase>,
    pub accounts: BTreeMap<String, i64>,
    sessions: BTreeMap<SessionKey, u64>,
    carts: BTreeMap<SessionKey, BTreeMap<Arc<str>, u32>>,
    saved: BTreeMap<(u64, Arc<str>), u32>,
    answered: BTreeMap<(SessionKey, u32), (u64, String, Millis, Option<u32>)>,
    /// For the rules: what a buyer ever put into the cart.
    pub put: BTreeMap<(u64, Arc<str>), u32>,
}

impl Journal for Disk {
    type Change = Change;
    type Receipt = u64;

    fn append(&self, changes: Vec<Change>) -> u64 {
        let mut disk = self.lock();
        disk.pending.push_back(changes);
        disk.appended += 1;
        disk.appended
    }

    fn later(a: u64, b: u64) -> u64 {
        a.max(b)
    }

    fn is_committed(&self, receipt: &u64) -> bool {
        *receipt <= self.lock().committed
    }
}

impl Disk {
    fn new(fault: Option<Fault>) -> Disk {
        let rows = Rows::default();
        Disk(Arc::new(Mutex::new(Platter { rows, pending: VecDeque::new(), appended: 0, committed: 0, fault })))
    }

    pub fn lock(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_idle(&self) -> bool {
        self.lock().pending.is_empty()
    }

    fn commit(&self, most: usize) {
        let mut disk = self.lock();
        for _ in 0..most {
            let Some(changes) = disk.pending.pop_front() else { break };
            disk.keep(changes);
        }
    }

    /// All of what was handed over has made it.
    fn commit_all(&self) {
        self.commit(usize::MAX);
        let mut disk = self.lock();
        disk.committed = disk.appended;
    }

    /// Nothing more of what was handed over reaches the disk.
    fn forget(&self) {
        let mut disk = self.lock();
        disk.pending.clear();
        disk.committed = disk.appended;
    }
}

impl Platter {
    fn keep(&mut self, changes: Vec<Change>) {
        let is_paid = |change: &Change| matches!(change, Change::Purchase(rows) if rows.rows().contains(&Row::Paid));
        let is_payment = changes.iter().any(is_paid);
        for change in changes {
            let is_of_cart = matches!(change, Change::Line { .. } | Change::Saved { .. });
            match (change, self.fault) {
                (_, Some(Fault::LosePaid | Fault::KeepCart)) if is_of_cart && is_payment => {}
                (Change::Purchase(rows), fault) => {
                    for row in rows.rows() {
                        let lost = match fault {
                            Some(Fault::LoseRecords) => *row == Row::Keep && rows.purchase().stage() > Stage::Begun,
                            _ => false,
                        };
                        if !lost {
                            self.rows.purchase(rows.purchase(), *row, fault == Some(Fault::LosePaid));
                        }
                    }
                }
                (change, _) => self.rows.apply(change),
            }
        }
    }
}

impl Rows {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Open { session, user_id, .. } => drop(self.sessions.insert(session, user_id)),
            Change::Close(session) => {
                self.sessions.remove(&session);
                self.carts.remove(&session);
                self.answered.retain(|(of, _), _| *of != session);
            }
            Change::Line { session, item_id, quantity } => {
                let cart = self.carts.entry(session).or_default();
                let before = cart.insert(Arc::clone(&item_id), quantity).unwrap_or(0);
                if let Some(buyer) = self.sessions.get(&session) {
                    *self.put.entry((*buyer, item_id)).or_default() += quantity.saturating_sub(before);
                }
                cart.retain(|_, quantity| *quantity > 0);
            }
            Change::Saved { user_id, item_id, quantity } => {
                self.saved.insert((user_id, item_id), quantity);
                self.saved.retain(|_, quantity| *quantity > 0);
            }
            Change::Answered { session, slot, number, request, at, quantity } => {
                self.answered.insert((session, slot), (number, request, at, quantity));
            }
            Change::Purchase(_) => unreachable!("its rows are applied one by one"),
        }
    }

    fn purchase(&mut self, purchase: &Purchase, row: Row, loses_history: bool) {
        for (account, cents) in money(row, purchase) {
            *self.accounts.entry(account).or_default() += cents;
        }
        match row {
            Row::Keep => drop(self.open.insert(purchase.id.clone(), purchase.clone())),
            Row::Drop => drop(self.open.remove(&purchase.id)),
            Row::Paid if !loses_history => drop(self.history.insert(purchase.id.clone(), purchase.clone())),
            Row::Authorised | Row::Voided | Row::Paid => {}
        }
    }

    fn snapshot(&self) -> Snapshot {
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
        Snapshot {
            sessions: sessions.collect(),
            lines: lines.collect(),
            saved: saved.collect(),
            answered,
            under_way: self.open.values().cloned().collect(),
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
pub struct Asker {
    thread: u64,
    seq: u32,
    card: String,
    completes: bool,
}

/// What is done once everything up to the receipt is on disk.
struct Later {
    receipt: u64,
    what: What,
}

enum What {
    Say(u64, u32, Said),
    Ask(String, BankCall, Option<Asker>),
}

/// A Begin that waits for its buyer's purchase before.
struct WaitingBegin {
    thread: u64,
    seq: u32,
    wish: Wish,
    until: u64,
}

pub struct Memory {
    pub core: CustomerCore<Disk>,
    later: VecDeque<Later>,
    waiting: Vec<WaitingBegin>,
}

pub struct Customer {
    start: u32,
    ids: u64,
    pub memory: Option<Memory>,
    pub disk: Disk,
    is_commit_due: bool,
}

impl Customer {
    pub fn new(fault: Option<Fault>) -> Customer {
        Customer { start: 0, ids: 0, memory: None, disk: Disk::new(fault), is_commit_due: false }
    }
}

fn money(row: Row, purchase: &Purchase) -> Vec<(String, i64)> {
    let (card, escrow) = (format!("card:{}", purchase.buyer.user_id), "escrow".to_owned());
    let total = purchase.total().0;
    match row {
        Row::Authorised => vec![(card, -total), (escrow, total)],
        Row::Voided => vec![(escrow, -total), (card, total)],
        Row::Paid => {
            let fee = |cents: i64| FeeRate::default().of(Cents(cents)).0;
            let mut entries = vec![(escrow, -total)];
            for line in &purchase.priced {
                let amount = line.price.0 * i64::from(line.quantity);
                entries.push((format!("payout:{}", line.seller), amount - fee(amount)));
                entries.push(("fee".to_owned(), fee(amount)));
            }
            entries
        }
        Row::Keep | Row::Drop => Vec::new(),
    }
}

fn unavailable(why: &str) -> Refusal {
    Refusal::new(Code::Unavailable, why)
}

impl World {
    pub fn customer_happens(&mut self, event: Event) {
        match event {
            Event::StartCustomer => self.start_customer(),
            Event::Commit { start } if self.is_same(start) => self.commit(),
            Event::Bank { start, id, call, asker, tries } => self.bank_is_asked(start, id, call, asker, tries),
            Event::BankSaid { start, id, answer, asker } if self.is_same(start) => self.bank_said(id, answer, asker),
            Event::Tend { start } if self.is_same(start) => {
                self.tend();
                self.at(1_000, Event::Tend { start });
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
            let pending = self.customer.disk.lock().pending.len() as u64;
            let kept = self.rng.below(pending + 1) as usize;
            self.customer.disk.commit(kept);
            self.customer.disk.forget();
            self.customer.is_commit_due = false;
            self.at(down, Event::StartCustomer);
        }
    }

    fn start_customer(&mut self) {
        self.customer.start += 1;
        self.load();
        let start = self.customer.start;
        self.tend();
        self.at(1_000, Event::Tend { start });
    }

    fn load(&mut self) {
        let now = self.time();
        let disk = self.customer.disk.clone();
        let snapshot = disk.lock().rows.snapshot();
        let core = CustomerCore::load(disk, SESSION_TIMEOUT, FeeRate::default(), snapshot, now);
        let (later, waiting) = (VecDeque::new(), Vec::new());
        self.customer.memory = Some(Memory { core, later, waiting });
        let mut buyers: Vec<u64> = self.hands.iter().map(|hand| hand.buyer).collect();
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
                Opening::Decided((answer, _)) => return answer.expect("there is room for every buyer"),
                // Nothing is ever saved but what is bought.
                Opening::ReadSavedCart { evictions } => saved = Some(SavedCart { lines: BTreeMap::new(), evictions }),
            }
        }
    }

    pub fn put_into_cart(&mut self, buyer: u64, item: &str, quantity: u32) {
        if self.customer.memory.is_some() {
            self.customer.ids += 1;
            let (now, request) = (self.time(), format!("put {}", self.customer.ids));
            let line = Line { item_id: item.to_owned(), quantity };
            let cart = CartRequest { sid: &sid_of(buyer), users: false };
            let (answer, _) = self.core().add_to_cart(now, cart, &request, &line, u32::MAX);
            answer.expect("a cart has room for a few items");
            self.commit_later();
        }
    }

    /// What was handed over is committed in a while.
    fn commit_later(&mut self) {
        if !self.customer.disk.is_idle() && !self.customer.is_commit_due {
            self.customer.is_commit_due = true;
            let (delay, start) = (self.rng.range(1, 8), self.customer.start);
            self.at(delay, Event::Commit { start });
        }
    }

    /// Nothing leaves before everything that it is built on is on disk.
    fn later(&mut self, receipt: u64, what: What) {
        self.commit_later();
        let early = match &what {
            What::Say(..) => self.fault == Some(Fault::AnswerBeforeDisk),
            What::Ask(..) => self.fault == Some(Fault::BankBeforeDisk),
        };
        if early || self.customer.disk.is_committed(&receipt) {
            return self.now_do(what);
        }
        self.memory().later.push_back(Later { receipt, what });
    }

    fn now_do(&mut self, what: What) {
        match what {
            What::Say(thread, seq, said) => self.say(thread, seq, said),
            What::Ask(id, call, asker) => {
                self.core().bank_is_asked(&id);
                let start = self.customer.start;
                let delay = self.rng.range(1, 30);
                self.at(delay, Event::Bank { start, id, call, asker, tries: 0 });
            }
        }
    }

    fn commit(&mut self) {
        self.customer.is_commit_due = false;
        if self.rng.permille(self.weather.store_fails) {
            // Nothing of the batch is there, and memory is loaded anew.
            self.note(|| "-- the store refuses the batch".to_owned());
            self.tally.store_failures += 1;
            self.customer.disk.forget();
            let Some(was) = self.customer.memory.take() else { return };
            self.load();
            let waited = was.waiting.into_iter().map(|waiting| (waiting.thread, waiting.seq, true));
            let said = was.later.into_iter().filter_map(|later| match later.what {
                What::Say(thread, seq, Said::Heard(_)) => Some((thread, seq, false)),
                What::Ask(_, _, asker) => asker.map(|asker| (asker.thread, asker.seq, false)),
                What::Say(..) => None,
            });
            for (thread, seq, begins) in waited.chain(said) {
                let away = unavailable("the store refuses");
                let said = if begins { Said::Begun(Err(away)) } else { Said::Heard(Heard::Refused(away)) };
                self.say(thread, seq, said);
            }
            return;
        }
        self.customer.disk.commit_all();
        let committed = self.customer.disk.lock().committed;
        // What is over makes room for the buyer's next.
        self.core().forget_over();
        while self.customer.memory.as_ref().is_some_and(|memory| !memory.later.is_empty()) {
            if self.rng.permille(self.weather.crash) {
                let down = self.rng.range(10, 6_000);
                return self.customer_crashes(down);
            }
            let Some(later) = self.memory().later.pop_front() else { break };
            assert!(later.receipt <= committed, "all of a batch is committed at once");
            self.now_do(later.what);
        }
        for waiting in std::mem::take(&mut self.memory().waiting) {
            self.begin(waiting);
        }
    }

    pub fn customer_is_asked(&mut self, thread: u64, seq: u32, ask: Ask) {
        if self.customer.memory.is_none() {
            return self.is_down(thread, seq, &ask);
        }
        match ask {
            Ask::Begin(wish) => self.begin(WaitingBegin { thread, seq, wish, until: self.now + WAIT_MS }),
            Ask::TakeOver => {
                let now = self.time();
                let (orphan, receipt) = self.core().take_over(now);
                self.later(receipt, What::Say(thread, seq, Said::Orphan(orphan)));
            }
            Ask::Renew(leases) => {
                let now = self.time();
                self.core().renew(now, &leases);
            }
            Ask::Op(Op::Customer(op)) => self.op(thread, seq, op),
            Ask::Op(Op::Product(_)) => panic!("the customer database holds no stock"),
        }
    }

    fn begin(&mut self, asking: WaitingBegin) {
        let (now, fault) = (self.time(), self.fault);
        let wish = &asking.wish;
        let sid = sid_of(wish.buyer);
        let request = BeginRequest {
            cart: CartRequest { sid: &sid, users: false },
            request: &wish.request,
            key: wish.key.as_deref(),
            address: wish.address.as_deref(),
        };
        if fault == Some(Fault::TwoAtOnce) {
            let open = self.core().purchases().find(|open| open.buyer.user_id == wish.buyer).map(|open| open.id.clone());
            open.and_then(|id| self.core().forget(&id));
        }
        let mut made = None;
        loop {
            self.customer.ids += 1;
            let id = format!("p{}", self.customer.ids);
            match self.core().begin_purchase(now, id, request, made.take().as_ref()) {
                Beginning::Decided((begun, receipt)) => {
                    return self.later(receipt, What::Say(asking.thread, asking.seq, Said::Begun(begun)));
                }
                Beginning::Wait { .. } => return self.memory().waiting.push(asking),
                Beginning::ReadKey { buyer_id, key, forgotten } => {
                    let disk = self.customer.disk.lock();
                    let of_key = |made: &&Purchase| made.buyer.user_id == buyer_id && made.key.as_ref() == Some(&key);
                    let purchase = disk.rows.history.values().filter(of_key).max_by_key(|made| made.captured_at).cloned();
                    let purchase = purchase.filter(|_| fault != Some(Fault::ForgetKeys));
                    made = Some(MadeUnderKey { purchase, forgotten });
                }
            }
        }
    }

    fn op(&mut self, thread: u64, seq: u32, op: CustomerOp) {
        let mut asker = Asker { thread, seq, card: String::new(), completes: false };
        let (id, asked_lease) = match &op {
            CustomerOp::Authorise { purchase_id, lease, .. }
            | CustomerOp::Complete { purchase_id, lease }
            | CustomerOp::Undo { purchase_id, lease, .. }
            | CustomerOp::Closed { purchase_id, lease } => (purchase_id.clone(), *lease),
            other => panic!("no driver asks {other:?}"),
        };
        let newest = self.core().purchase(&id).map(Purchase::lease);
        let lease = if self.fault == Some(Fault::IgnoreLease) { newest.unwrap_or_default() } else { asked_lease };
        let event = match op {
            CustomerOp::Authorise { lines, card, .. } => {
                asker.card = card.number;
                purchase::Event::Authorise { lease, lines }
            }
            CustomerOp::Complete { .. } => {
                asker.completes = true;
                purchase::Event::Complete { lease }
            }
            CustomerOp::Undo { why, .. } => purchase::Event::Undo { lease, why },
            _ => purchase::Event::Closed { lease },
        };
        if newest.is_some() {
            let before = self.core().purchase(&id).map(Purchase::stage);
            self.step(&id, event, Some(asker));
            let after =
                self.customer.memory.as_ref().and_then(|memory| memory.core.purchase(&id)).map(Purchase::stage);
            self.rules.driven(&id, before != after, asked_lease, newest);
            return;
        }
        let known = self.customer.disk.lock().rows.history.get(&id).cloned();
        let heard = match known {
            Some(known) if asker.completes => known.outcome().map_or_else(Heard::Refused, Heard::Purchased),
            _ => Heard::Refused(Refusal::new(Code::NotFound, "there is no such purchase under way")),
        };
        self.later(0, What::Say(thread, seq, Said::Heard(heard)));
    }

    /// Something happens to a purchase; what is done then waits until its rows are on disk.
    fn step(&mut self, id: &str, event: purchase::Event<'_>, asker: Option<Asker>) {
        let (now, fault) = (self.time(), self.fault);
        let before = self.core().purchase(id).map(Purchase::stage);
        let Some(stepped) = self.core().step(now, id, event) else { return };
        if stepped.stage == Stage::Closed && before != Some(Stage::Closed) {
            self.tally.undone += 1;
        }
        let what = match (stepped.step.then, asker) {
            (Then::Ask(BankCall::Void), asker) if fault == Some(Fault::SkipVoid) => {
                self.commit_later();
                return self.step(id, purchase::Event::Voided, asker);
            }
            (Then::Ask(call), asker) => What::Ask(id.to_owned(), call, asker),
            (Then::Answer(answer), Some(Asker { thread, seq, completes, .. })) => {
                let heard: Answer<Heard> = match (answer, completes) {
                    (Ok(()), true) => stepped.purchased.map(Heard::Purchased),
                    (answer, _) => answer.map(|()| Heard::Done),
                };
                What::Say(thread, seq, Said::Heard(heard.unwrap_or_else(Heard::Refused)))
            }
            (Then::Answer(_), None) => return self.commit_later(),
        };
        self.later(stepped.newest, what);
    }

    /// What the bank has not answered is asked again; who has waited for too long is told so.
    fn tend(&mut self) {
        let (fault, now) = (self.fault, self.now);
        for waiting in std::mem::take(&mut self.memory().waiting) {
            if waiting.until > now {
                self.memory().waiting.push(waiting);
            } else {
                let busy = Refusal::new(Code::Busy, "another purchase is under way");
                self.say(waiting.thread, waiting.seq, Said::Begun(Err(busy)));
            }
        }
        for (id, call) in self.core().unanswered() {
            if fault != Some(Fault::CaptureOnce) || call != BankCall::Capture {
                let newest = self.customer.disk.lock().appended;
                self.later(newest, What::Ask(id, call, None));
            }
        }
    }

    fn bank_is_asked(&mut self, start: u32, id: String, call: BankCall, asker: Option<Asker>, tries: u32) {
        let stale = !self.is_same(start);
        if self.now >= self.bank.away_until_ms && self.rng.permille(self.weather.bank_away / 10) {
            self.bank.away_until_ms = self.now + self.rng.range(500, 15_000);
        }
        if self.now < self.bank.away_until_ms || self.rng.permille(self.weather.bank_away) {
            if !stale {
                self.bank_is_away(start, id, call, asker, tries);
            }
            return;
        }
        let good = asker.as_ref().is_some_and(|asker| !asker.card.ends_with("0002"));
        let asked = match call {
            BankCall::Authorise(_) => Call::Authorise(good),
            BankCall::Capture => Call::Capture,
            BankCall::Void => Call::Void,
        };
        if !stale {
            self.rules.bank_is_asked(&self.customer.disk.lock().rows, &id, call);
        }
        let refuses = self.rng.permille(self.weather.bank_refuses);
        let answer = self.bank.call(&id, asked, refuses);
        self.note(|| format!("the bank: {call:?} of {id} is {answer:?}"));
        if stale {
            return;
        }
        if self.rng.permille(self.weather.bank_away) {
            // Its answer is lost.
            return self.bank_is_away(start, id, call, asker, tries);
        }
        self.at(5, Event::BankSaid { start, id, answer, asker });
    }

    /// No answer: asked again for a while; then nobody waits for it any more.
    fn bank_is_away(&mut self, start: u32, id: String, call: BankCall, asker: Option<Asker>, tries: u32) {
        if tries < 5 {
            return self.at(300, Event::Bank { start, id, call, asker, tries: tries + 1 });
        }
        self.leaves_bank(&id);
        if let Some(Asker { thread, seq, .. }) = asker {
            let away = unavailable("the bank does not answer");
            self.later(0, What::Say(thread, seq, Said::Heard(Heard::Refused(away))));
        }
    }

    fn leaves_bank(&mut self, id: &str) {
        self.core().bank_has_answered(id);
    }

    fn bank_said(&mut self, id: String, answer: BankAnswer, asker: Option<Asker>) {
        self.leaves_bank(&id);
        let event = match answer {
            BankAnswer::Authorised => purchase::Event::Authorised,
            BankAnswer::Declined => purchase::Event::Declined("the bank declines"),
            BankAnswer::Captured => purchase::Event::Captured,
            BankAnswer::CaptureRefused => purchase::Event::CaptureRefused("the bank refuses"),
            BankAnswer::Voided => purchase::Event::Voided,
            BankAnswer::AlreadyCaptured => panic!("{id} was charged, though it is undone"),
        };
        self.step(&id, event, asker);
    }
}
