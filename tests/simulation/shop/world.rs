//! Time, the network and everyone in it. Whatever happens next is the next event of one queue.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use p2s2::model::Millis;
use p2s2::shop::ops::{Answer, Begun, Code, Orphan, Purchased, Refusal};
use p2s2::shop::purchase::BankCall;
use p2s2::shop::purchase::driver::{Heard, Op};

use super::Fault;
use super::buyers::{Hand, Wish};
use super::customer::{Asker, Customer};
use super::frontend::Thread;
use super::invariants::Invariants;
use super::product::Product;
use crate::bank::{Answer as BankAnswer, Bank};
use crate::invariants::Broken;
use crate::rng::Rng;

/// The simulated day begins here.
const BEGIN_MS: u64 = 1_700_000_000_000;
/// How long buyers are busy and everything may go wrong.
const STORMY_MS: u64 = 60_000;
/// Then all is well, and every attempt comes to its end.
const CALM_MS: u64 = 150_000;

/// What a frontend asks a database.
#[derive(Debug, Clone)]
pub enum Ask {
    Begin(Wish),
    TakeOver,
    Renew(Vec<(String, u64)>),
    Op(Op),
}

/// What it is answered.
#[derive(Debug, Clone)]
pub enum Said {
    Begun(Answer<Begun>),
    Orphan(Answer<Option<Orphan>>),
    Heard(Heard),
}

#[derive(Debug, Clone)]
pub enum Event {
    Wake(usize),
    MakePurchase {
        frontend: usize,
        hand: usize,
        wish: Wish,
    },
    Answered {
        hand: usize,
        serial: u64,
        answer: Answer<Purchased>,
    },
    GiveUp {
        hand: usize,
        serial: u64,
    },
    // Events of a frontend's thread end with it: its number is used once.
    AskNow {
        thread: u64,
        seq: u32,
        ask: Box<Ask>,
    },
    Said {
        thread: u64,
        seq: u32,
        said: Box<Said>,
    },
    NoAnswer {
        thread: u64,
        seq: u32,
    },
    LookForOrphans {
        frontend: usize,
        start: u32,
    },
    RenewLeases {
        frontend: usize,
        start: u32,
    },
    /// Arrives at a database.
    Asked {
        thread: u64,
        seq: u32,
        ask: Box<Ask>,
    },
    // Events of the customer database die with it: they bear the number of its start.
    Commit {
        start: u32,
    },
    Bank {
        start: u32,
        id: String,
        call: BankCall,
        asker: Option<Asker>,
        tries: u32,
    },
    BankSaid {
        start: u32,
        id: String,
        answer: BankAnswer,
        asker: Option<Asker>,
    },
    Tend {
        start: u32,
    },
    Sweep,
    StartFrontend(usize),
    StartCustomer,
    StartProduct,
}

struct Entry(u64, u64, Event);

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// How bad the weather is, in thousandths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weather {
    pub loss: u64,
    pub repeat: u64,
    pub late: u64,
    pub crash: u64,
    pub store_fails: u64,
    pub bank_away: u64,
    pub bank_refuses: u64,
}

/// A frontend: up or down.
#[derive(Default)]
pub struct Frontend {
    pub is_up: bool,
    pub starts: u32,
}

pub struct World {
    pub rng: Rng,
    pub now: u64,
    queue: BinaryHeap<Reverse<Entry>>,
    scheduled: u64,
    pub weather: Weather,
    pub healed: bool,
    pub hands: Vec<Hand>,
    pub frontends: Vec<Frontend>,
    pub threads: BTreeMap<u64, Thread>,
    pub threads_begun: u64,
    pub customer: Customer,
    pub product: Product,
    pub product_is_up: bool,
    pub bank: Bank,
    pub hold_ms: u64,
    pub rules: Invariants,
    pub fault: Option<Fault>,
    aloud: bool,
    pub tally: Tally,
}

/// What a run has seen, so that a test can tell that it tests something.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    pub events: u64,
    pub frontend_crashes: u64,
    pub customer_crashes: u64,
    pub product_crashes: u64,
    pub store_failures: u64,
    pub purchases: u64,
    pub undone: u64,
    pub declined: u64,
    pub takeovers: u64,
    /// Purchases that another driver completed than the one that began them.
    pub completed_by_others: u64,
    pub answered: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.events += other.events;
        self.frontend_crashes += other.frontend_crashes;
        self.customer_crashes += other.customer_crashes;
        self.product_crashes += other.product_crashes;
        self.store_failures += other.store_failures;
        self.purchases += other.purchases;
        self.undone += other.undone;
        self.declined += other.declined;
        self.takeovers += other.takeovers;
        self.completed_by_others += other.completed_by_others;
        self.answered += other.answered;
    }
}

impl World {
    pub fn new(seed: u64, fault: Option<Fault>, aloud: bool) -> World {
        let mut rng = Rng::new(seed);
        let rough = rng.below(4);
        let mut upto = |most: u64| if rough == 0 { 0 } else { rng.below(most * rough / 3 + 1) };
        let weather = Weather {
            loss: upto(200),
            repeat: upto(200),
            late: upto(150),
            crash: upto(12),
            store_fails: upto(60),
            bank_away: upto(200),
            bank_refuses: upto(60),
        };
        let buyers = rng.range(1, 4);
        let hands: Vec<Hand> = (0..2 * buyers).map(|hand| Hand::new(hand / 2, &mut rng)).collect();
        let mut product = Product { forgets_released: fault == Some(Fault::ForgetReleased), ..Product::default() };
        for item in 1..=rng.range(1, 4) {
            product.list(&format!("1-{item}"), rng.range(1, 150), rng.range(1, 900) as i64);
        }
        let frontends = (0..rng.range(1, 3)).map(|_| Frontend::default()).collect();
        let hold_ms = if rng.permille(300) { rng.range(50, 5_000) } else { 60_000 };
        let mut world = World {
            rng,
            now: BEGIN_MS,
            queue: BinaryHeap::new(),
            scheduled: 0,
            weather,
            healed: false,
            hands,
            frontends,
            threads: BTreeMap::new(),
            threads_begun: 0,
            customer: Customer::new(fault),
            product,
            product_is_up: true,
            bank: Bank::default(),
            hold_ms,
            rules: Invariants::default(),
            fault,
            aloud,
            tally: Tally::default(),
        };
        world.note(|| format!("{weather:?}"));
        world.happen(Event::StartCustomer);
        for frontend in 0..world.frontends.len() {
            world.happen(Event::StartFrontend(frontend));
        }
        world.at(1_000, Event::Sweep);
        for hand in 0..world.hands.len() {
            world.at(10 + hand as u64, Event::Wake(hand));
        }
        world
    }

    /// Plays it to the end, or to the first broken rule.
    pub fn run(mut self) -> Result<Tally, Broken> {
        self.play(BEGIN_MS + STORMY_MS)?;
        self.note(|| "-- all is well from here on".to_owned());
        self.weather = Weather::default();
        self.healed = true;
        self.play(BEGIN_MS + STORMY_MS + CALM_MS)?;
        let disk = self.customer.disk.clone();
        let rows = &disk.lock().rows;
        self.rules.end(rows, &self.bank, &self.product, &self.hands);
        self.tally.purchases = rows.history.len() as u64;
        self.checked()?;
        Ok(self.tally)
    }

    fn play(&mut self, until: u64) -> Result<(), Broken> {
        while let Some(Reverse(Entry(at, ..))) = self.queue.peek()
            && *at <= until
            && let Some(Reverse(Entry(at, _, event))) = self.queue.pop()
        {
            self.now = at;
            self.tally.events += 1;
            self.note(|| format!("{event:?}"));
            self.may_crash();
            self.happen(event);
            self.rules.always(&self.customer, &self.product);
            self.checked()?;
        }
        Ok(())
    }

    fn checked(&mut self) -> Result<(), Broken> {
        self.rules.broken.take().map_or(Ok(()), Err)
    }

    pub fn note(&self, what: impl FnOnce() -> String) {
        if self.aloud {
            eprintln!("{:>8} {}", self.now - BEGIN_MS, what());
        }
    }

    pub fn at(&mut self, in_ms: u64, event: Event) {
        self.scheduled += 1;
        self.queue.push(Reverse(Entry(self.now + in_ms, self.scheduled, event)));
    }

    pub fn time(&self) -> Millis {
        Millis(self.now)
    }

    /// The power of one component is cut, before or between whatever it does.
    pub fn may_crash(&mut self) {
        if !self.rng.permille(self.weather.crash) {
            return;
        }
        let down = self.rng.range(10, 6_000);
        match self.rng.below(2 + self.frontends.len() as u64) {
            0 => self.customer_crashes(down),
            1 => self.product_crashes(down),
            frontend => self.frontend_crashes(frontend as usize - 2, down),
        }
    }

    pub fn product_crashes(&mut self, down: u64) {
        if self.product_is_up {
            self.note(|| "-- the product database dies".to_owned());
            self.product_is_up = false;
            self.tally.product_crashes += 1;
            self.at(down, Event::StartProduct);
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Wake(hand) => self.wake(hand),
            Event::Answered { hand, serial, answer } => self.answered(hand, serial, answer),
            Event::GiveUp { hand, serial } => {
                let unknown = Refusal::new(Code::Unavailable, "no answer came");
                self.answered(hand, serial, Err(unknown));
            }
            Event::MakePurchase { frontend, hand, wish } => self.purchase_is_wanted(frontend, hand, wish),
            Event::AskNow { thread, seq, ask } => self.ask_now(thread, seq, *ask),
            Event::Said { thread, seq, said } => self.said(thread, seq, *said),
            Event::NoAnswer { thread, seq } => self.no_answer(thread, seq),
            Event::LookForOrphans { frontend, start } => self.look_for_orphans(frontend, start),
            Event::RenewLeases { frontend, start } => self.renew_leases(frontend, start),
            Event::Asked { thread, seq, ask } => match *ask {
                Ask::Op(Op::Product(op)) => {
                    if !self.product_is_up {
                        return self.is_down(thread, seq, &Ask::Op(Op::Product(op)));
                    }
                    let heard = self.product.handle(self.time(), &op);
                    // It is done and on disk; whether its answer comes to anyone is another matter.
                    if self.rng.permille(2 * self.weather.crash) {
                        let down = self.rng.range(10, 6_000);
                        return self.product_crashes(down);
                    }
                    self.say(thread, seq, Said::Heard(heard));
                }
                ask => self.customer_is_asked(thread, seq, ask),
            },
            Event::Sweep => {
                if self.product_is_up {
                    self.product.sweep(self.time());
                }
                self.at(1_000, Event::Sweep);
            }
            Event::StartFrontend(frontend) => self.start_frontend(frontend),
            Event::StartProduct => self.product_is_up = true,
            event => self.customer_happens(event),
        }
    }

    /// The way from one component to another and back: lost, repeated, late, or none of it.
    pub fn network(&mut self, event: Event) {
        let copies = 1 + u64::from(self.rng.permille(self.weather.repeat));
        for _ in 0..copies {
            if self.rng.permille(self.weather.loss) {
                continue;
            }
            let late = self.rng.permille(self.weather.late);
            let delay = if late { self.rng.range(100, 25_000) } else { self.rng.range(1, 10) };
            self.at(delay, event.clone());
        }
    }

    pub fn say(&mut self, thread: u64, seq: u32, said: Said) {
        self.network(Event::Said { thread, seq, said: Box::new(said) });
    }

    /// Nobody is at home: mostly that is known at once.
    pub fn is_down(&mut self, thread: u64, seq: u32, ask: &Ask) {
        if self.rng.permille(700) {
            let away = Refusal::new(Code::Unavailable, "it is down");
            let said = match ask {
                Ask::Begin(_) => Said::Begun(Err(away)),
                Ask::TakeOver => Said::Orphan(Err(away)),
                Ask::Renew(_) => return,
                Ask::Op(_) => Said::Heard(Heard::Refused(away)),
            };
            self.say(thread, seq, said);
        }
    }
}
