//! The customer database: purchases and carts in memory, changes to disk in their order, the bank beside it.

use std::collections::{BTreeMap, VecDeque};

use p2s2::identity::SessionKey;
use p2s2::model::{Cents, FeeRate, Name};
use p2s2::shop::ops::{Answer, Begun, Code, CustomerOp, Line, Refusal};
use p2s2::shop::purchase::driver::{Heard, Op};
use p2s2::shop::purchase::{self, Attempt, BankCall, Begin, Buyer, Cart, LEASE_MS, Purchase, Row, Stage, Then};

use super::Fault;
use super::buyers::Wish;
use super::world::{Ask, Event, Said, World};
use crate::bank::{Answer as BankAnswer, Call};

/// How long a Begin waits for the buyer's purchase before.
const WAIT_MS: u64 = 8_000;

pub type Items = BTreeMap<String, u32>;

/// One row's change.
#[derive(Debug, Clone)]
pub enum Change {
    Keep(Box<Purchase>),
    Drop(String),
    Money(Vec<(String, i64)>),
    Paid(Box<Purchase>),
    Cart(u64, Items),
    /// For the rules: what a buyer ever put into the cart.
    Put(u64, String, u32),
}

/// What is on disk for good.
#[derive(Default)]
pub struct Rows {
    pub open: BTreeMap<String, Purchase>,
    pub history: BTreeMap<String, Purchase>,
    pub accounts: BTreeMap<String, i64>,
    pub carts: BTreeMap<u64, Items>,
    pub put: BTreeMap<(u64, String), u32>,
}

pub struct Disk {
    pub rows: Rows,
    pending: VecDeque<Vec<Change>>,
    appended: u64,
    committed: u64,
    fault: Option<Fault>,
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

struct Waiting {
    thread: u64,
    seq: u32,
    wish: Wish,
    until: u64,
}

pub struct Memory {
    pub open: BTreeMap<String, Purchase>,
    carts: BTreeMap<u64, Items>,
    later: VecDeque<Later>,
    /// Begins that wait for their buyer's purchase to be over.
    waiting: Vec<Waiting>,
    at_bank: BTreeMap<String, u32>,
}

pub struct Customer {
    start: u32,
    ids: u64,
    pub memory: Option<Memory>,
    pub disk: Disk,
}

impl Customer {
    pub fn new(fault: Option<Fault>) -> Customer {
        let disk = Disk { rows: Rows::default(), pending: VecDeque::new(), appended: 0, committed: 0, fault };
        Customer { start: 0, ids: 0, memory: None, disk }
    }
}

impl Disk {
    fn append(&mut self, changes: Vec<Change>) {
        self.pending.push_back(changes);
        self.appended += 1;
    }

    fn commit(&mut self, most: usize) {
        for _ in 0..most {
            let Some(changes) = self.pending.pop_front() else { break };
            let is_paid = changes.iter().any(|change| matches!(change, Change::Paid(_)));
            for change in changes {
                let lost = match (&change, self.fault) {
                    (Change::Keep(record), Some(Fault::LoseRecords)) => record.stage() > Stage::Begun,
                    (Change::Paid(_) | Change::Cart(..), Some(Fault::LosePaid)) => is_paid,
                    _ => false,
                };
                if !lost {
                    self.rows.apply(change);
                }
            }
        }
    }

    /// Nothing more of what was handed over reaches the disk.
    fn forget(&mut self) {
        self.pending.clear();
        self.committed = self.appended;
    }
}

impl Rows {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Keep(purchase) => drop(self.open.insert(purchase.id.clone(), *purchase)),
            Change::Drop(id) => drop(self.open.remove(&id)),
            Change::Money(entries) => {
                for (account, cents) in entries {
                    *self.accounts.entry(account).or_default() += cents;
                }
            }
            Change::Paid(purchase) => drop(self.history.insert(purchase.id.clone(), *purchase)),
            Change::Cart(buyer, items) => drop(self.carts.insert(buyer, items)),
            Change::Put(buyer, item, quantity) => *self.put.entry((buyer, item)).or_default() += quantity,
        }
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

    pub fn customer_crashes(&mut self, down: u64) {
        if self.customer.memory.take().is_some() {
            self.note(|| "-- the customer database dies".to_owned());
            self.tally.customer_crashes += 1;
            // Of what was handed over and not answered, any prefix may have made it.
            let kept = self.rng.below(self.customer.disk.pending.len() as u64 + 1) as usize;
            self.customer.disk.commit(kept);
            self.customer.disk.forget();
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
            self.append(vec![Change::Put(buyer, item.to_owned(), quantity), Change::Cart(buyer, cart)]);
        }
    }

    fn append(&mut self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        self.customer.disk.append(changes);
        if self.customer.disk.pending.len() == 1 {
            let (delay, start) = (self.rng.range(1, 8), self.customer.start);
            self.at(delay, Event::Commit { start });
        }
    }

    /// Nothing leaves before everything that it is built on is on disk.
    fn later(&mut self, what: What) {
        let early = match &what {
            What::Say(..) => self.fault == Some(Fault::AnswerBeforeDisk),
            What::Ask(..) => self.fault == Some(Fault::BankBeforeDisk),
        };
        if early || self.customer.disk.pending.is_empty() {
            return self.now_do(what);
        }
        let receipt = self.customer.disk.appended;
        self.memory().later.push_back(Later { receipt, what });
    }

    fn now_do(&mut self, what: What) {
        match what {
            What::Say(thread, seq, said) => self.say(thread, seq, said),
            What::Ask(id, call, asker) => {
                *self.memory().at_bank.entry(id.clone()).or_default() += 1;
                let start = self.customer.start;
                let delay = self.rng.range(1, 30);
                self.at(delay, Event::Bank { start, id, call, asker, tries: 0 });
            }
        }
    }

    fn commit(&mut self) {
        if self.rng.permille(self.weather.store_fails) {
            // Nothing of the batch is there, and memory is built anew.
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
        self.customer.disk.commit(usize::MAX);
        self.customer.disk.committed = self.customer.disk.appended;
        let committed = self.customer.disk.committed;
        // What is over makes room for the buyer's next.
        self.memory().open.retain(|_, purchase| !purchase.is_over());
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
            Ask::Begin(wish) => self.begin(Waiting { thread, seq, wish, until: self.now + WAIT_MS }),
            Ask::TakeOver => self.take_over(thread, seq),
            Ask::Renew(leases) => {
                let now = self.time();
                for (id, lease) in leases {
                    if let Some(purchase) = self.memory().open.get_mut(&id) {
                        purchase.renew(now, lease);
                    }
                }
            }
            Ask::Op(Op::Customer(op)) => self.op(thread, seq, op),
            Ask::Op(Op::Product(_)) => panic!("the customer database holds no stock"),
        }
    }

    fn begin(&mut self, asking: Waiting) {
        let (now, fault) = (self.time(), self.fault);
        let wish = &asking.wish;
        self.customer.ids += 1;
        let id = format!("p{}", self.customer.ids);
        let Customer { memory: Some(memory), disk, .. } = &mut self.customer else { return };
        let open = memory.open.values().find(|open| open.buyer.user_id == wish.buyer && !open.is_over());
        let is_going = memory.open.values().any(|open| open.buyer.user_id == wish.buyer);
        let known = wish.key.as_ref().and_then(|key| {
            let mut history = disk.rows.history.values();
            history.find(|known| known.buyer.user_id == wish.buyer && known.key.as_ref() == Some(key))
        });
        if is_going && open.is_none() {
            // It is over, but that is not on disk yet.
            return memory.waiting.push(asking);
        }
        let (open, known) = match fault {
            Some(Fault::TwoAtOnce) => (None, known),
            Some(Fault::ForgetKeys) => (open, None),
            _ => (open, known),
        };
        let lines = memory.carts.get(&wish.buyer).into_iter().flatten();
        let lines = lines.map(|(item_id, quantity)| Line { item_id: item_id.clone(), quantity: *quantity }).collect();
        let buyer = Buyer {
            user_id: wish.buyer,
            username: Name::new(&format!("buyer {}", wish.buyer)).expect("it is a name"),
            name: String::new(),
        };
        let attempt = Attempt {
            buyer,
            request: wish.request.clone(),
            cart: Cart { session: SessionKey::of("sid"), users: false, lines },
            key: wish.key.clone(),
            address: wish.address.clone(),
        };
        let drive = |purchase: &Purchase| Begun::Drive {
            purchase_id: purchase.id.clone(),
            lease: purchase.lease(),
            lease_ms: LEASE_MS,
            lines: purchase.cart.lines.clone(),
        };
        let begun = match purchase::begin(now, id, attempt, open, known) {
            Begin::Drive(purchase) => {
                let begun = drive(&purchase);
                memory.open.insert(purchase.id.clone(), (*purchase).clone());
                self.append(vec![Change::Keep(purchase)]);
                Ok(begun)
            }
            Begin::Again => Ok(drive(open.expect("it is that of this request"))),
            Begin::Wait => return memory.waiting.push(asking),
            Begin::Done => {
                let known = known.expect("it was done under this key");
                known.outcome().map(|purchased| Begun::Done { purchased })
            }
            Begin::Refuse(refusal) => Err(refusal),
        };
        self.later(What::Say(asking.thread, asking.seq, Said::Begun(begun)));
    }

    fn take_over(&mut self, thread: u64, seq: u32) {
        let now = self.time();
        let memory = self.memory();
        let idle = memory.open.values_mut().filter(|purchase| !memory.at_bank.contains_key(&purchase.id));
        let taken = idle.filter_map(|purchase| Some((purchase.take_over(now)?, purchase.clone()))).next();
        let orphan = taken.map(|(orphan, purchase)| {
            self.append(vec![Change::Keep(Box::new(purchase))]);
            orphan
        });
        self.later(What::Say(thread, seq, Said::Orphan(Ok(orphan))));
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
        let newest = self.memory().open.get(&id).map(Purchase::lease);
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
            let before = self.memory().open.get(&id).map(Purchase::stage);
            self.step(&id, event, Some(asker));
            let after = self.customer.memory.as_ref().and_then(|memory| memory.open.get(&id)).map(Purchase::stage);
            self.rules.driven(&id, before != after, asked_lease, newest);
            return;
        }
        let heard = match self.customer.disk.rows.history.get(&id) {
            Some(known) if asker.completes => known.outcome().map_or_else(Heard::Refused, Heard::Purchased),
            _ => Heard::Refused(Refusal::new(Code::NotFound, "there is no such purchase under way")),
        };
        self.later(What::Say(thread, seq, Said::Heard(heard)));
    }

    /// Something happens to a purchase: the rows of it, then what is done when they are on disk.
    fn step(&mut self, id: &str, event: purchase::Event<'_>, asker: Option<Asker>) {
        let (now, fault) = (self.time(), self.fault);
        let memory = self.memory();
        let Some(purchase) = memory.open.get_mut(id) else { return };
        let step = purchase.handle(now, event);
        let purchase = purchase.clone();
        let mut changes = Vec::new();
        for row in step.rows {
            match row {
                Row::Keep => changes.push(Change::Keep(Box::new(purchase.clone()))),
                Row::Drop => changes.push(Change::Drop(id.to_owned())),
                Row::Authorised | Row::Voided => changes.push(Change::Money(money(row, &purchase))),
                Row::Paid => {
                    let cart = memory.carts.entry(purchase.buyer.user_id).or_default();
                    if fault != Some(Fault::KeepCart) {
                        cart.clear();
                    }
                    changes.push(Change::Money(money(row, &purchase)));
                    changes.push(Change::Cart(purchase.buyer.user_id, cart.clone()));
                    changes.push(Change::Paid(Box::new(purchase.clone())));
                }
            }
        }
        if purchase.stage() == Stage::Closed && !changes.is_empty() {
            self.tally.undone += 1;
        }
        self.append(changes);
        let what = match (step.then, asker) {
            (Then::Ask(BankCall::Void), asker) if fault == Some(Fault::SkipVoid) => {
                return self.step(id, purchase::Event::Voided, asker);
            }
            (Then::Ask(call), asker) => What::Ask(id.to_owned(), call, asker),
            (Then::Answer(answer), Some(Asker { thread, seq, completes, .. })) => {
                let heard: Answer<Heard> = match (answer, completes) {
                    (Ok(()), true) => purchase.outcome().map(Heard::Purchased),
                    (answer, _) => answer.map(|()| Heard::Done),
                };
                What::Say(thread, seq, Said::Heard(heard.unwrap_or_else(Heard::Refused)))
            }
            (Then::Answer(_), None) => return,
        };
        self.later(what);
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
        let memory = self.memory();
        let idle = memory.open.values().filter(|purchase| !memory.at_bank.contains_key(&purchase.id));
        let unanswered = idle.filter_map(|purchase| Some((purchase.id.clone(), purchase.unanswered()?)));
        let unanswered = unanswered.filter(|(_, call)| fault != Some(Fault::CaptureOnce) || *call != BankCall::Capture);
        for (id, call) in unanswered.collect::<Vec<_>>() {
            self.later(What::Ask(id, call, None));
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
            self.rules.bank_is_asked(&self.customer.disk.rows, &id, call);
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
            self.later(What::Say(thread, seq, Said::Heard(Heard::Refused(away))));
        }
    }

    fn leaves_bank(&mut self, id: &str) {
        let at_bank = &mut self.memory().at_bank;
        if let Some(count) = at_bank.get_mut(id) {
            *count -= 1;
            if *count == 0 {
                at_bank.remove(id);
            }
        }
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
