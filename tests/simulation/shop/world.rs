//! The simulated world: time, the network and all components, driven by one queue of events.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use p2s2::internals::model::Millis;
use p2s2::internals::shop::ops::{BeginResponse, CompletedPurchase, ErrorCode, OrphanedPurchase, Refusal, ShopResult};
use p2s2::internals::shop::purchase::BankRequest;
use p2s2::internals::shop::purchase::driver::{DatabaseOp, OpResponse};

use super::Fault;
use super::buyers::{BuyerClient, PurchaseIntent};
use super::customer::{Caller, CustomerDb};
use super::frontend::FrontendThread;
use super::invariants::Invariants;
use super::product::ProductDb;
use crate::bank::{Answer as BankAnswer, Bank};
use crate::invariants::Violation;
use crate::rng::Rng;

/// The simulated time at the start.
const BEGIN_MS: u64 = 1_700_000_000_000;
/// How long buyers are active and faults occur.
const STORMY_MS: u64 = 60_000;
/// How long the simulation then runs without faults, so that every attempt ends.
const CALM_MS: u64 = 150_000;

/// A request of a frontend to a database.
#[derive(Debug, Clone)]
pub enum DatabaseRequest {
    Begin(PurchaseIntent),
    TakeOver,
    Renew(Vec<(String, u64)>),
    Op(DatabaseOp),
}

/// The response to a [`DatabaseRequest`].
#[derive(Debug, Clone)]
pub enum DatabaseResponse {
    Begun(ShopResult<BeginResponse>),
    OrphanedPurchase(ShopResult<Option<OrphanedPurchase>>),
    OpResponse(OpResponse),
}

#[derive(Debug, Clone)]
pub enum Event {
    Wake(usize),
    MakePurchase {
        frontend: usize,
        client: usize,
        intent: PurchaseIntent,
    },
    Answered {
        client: usize,
        serial: u64,
        answer: ShopResult<CompletedPurchase>,
    },
    GiveUp {
        client: usize,
        serial: u64,
    },
    // Events of a frontend's thread are dropped when it has ended: thread numbers are not reused.
    SendRequest {
        thread: u64,
        seq: u32,
        request: Box<DatabaseRequest>,
    },
    Response {
        thread: u64,
        seq: u32,
        response: Box<DatabaseResponse>,
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
    /// A request arrives at a database.
    RequestArrives {
        thread: u64,
        seq: u32,
        request: Box<DatabaseRequest>,
    },
    // Events of the customer database are dropped when it has crashed: `start` is the number of its start.
    Commit {
        start: u32,
    },
    Bank {
        start: u32,
        id: String,
        call: BankRequest,
        caller: Option<Caller>,
        tries: u32,
    },
    BankResponse {
        start: u32,
        id: String,
        answer: BankAnswer,
        caller: Option<Caller>,
    },
    Tend {
        start: u32,
    },
    Sweep,
    StartFrontend(usize),
    StartCustomer,
    StartProduct,
}

struct ScheduledEvent(u64, u64, Event);

impl PartialEq for ScheduledEvent {
    fn eq(&self, other: &ScheduledEvent) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for ScheduledEvent {}
impl PartialOrd for ScheduledEvent {
    fn partial_cmp(&self, other: &ScheduledEvent) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for ScheduledEvent {
    fn cmp(&self, other: &ScheduledEvent) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// The probability of each fault, in thousandths.
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

#[derive(Default)]
pub struct Frontend {
    pub is_up: bool,
    pub starts: u32,
}

pub struct World {
    pub rng: Rng,
    pub now: u64,
    queue: BinaryHeap<Reverse<ScheduledEvent>>,
    scheduled: u64,
    pub weather: Weather,
    pub healed: bool,
    pub clients: Vec<BuyerClient>,
    pub frontends: Vec<Frontend>,
    pub threads: BTreeMap<u64, FrontendThread>,
    pub threads_begun: u64,
    pub customer: CustomerDb,
    pub product: ProductDb,
    pub product_is_up: bool,
    pub bank: Bank,
    pub hold_ms: u64,
    pub rules: Invariants,
    pub fault: Option<Fault>,
    aloud: bool,
    pub tally: Tally,
}

/// Counts of what a run has seen, which show that the test tests something.
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
    /// Purchases that were completed by another driver than the one that began them.
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
        let clients: Vec<BuyerClient> = (0..2 * buyers).map(|client| BuyerClient::new(client / 2, &mut rng)).collect();
        let mut product = ProductDb { drops_tombstones: fault == Some(Fault::ForgetReleased), ..ProductDb::default() };
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
            clients,
            frontends,
            threads: BTreeMap::new(),
            threads_begun: 0,
            customer: CustomerDb::new(fault),
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
        world.handle_event(Event::StartCustomer);
        for frontend in 0..world.frontends.len() {
            world.handle_event(Event::StartFrontend(frontend));
        }
        world.schedule(1_000, Event::Sweep);
        for client in 0..world.clients.len() {
            world.schedule(10 + client as u64, Event::Wake(client));
        }
        world
    }

    /// Runs the simulation to the end, or to the first broken rule.
    pub fn run(mut self) -> Result<Tally, Violation> {
        self.play(BEGIN_MS + STORMY_MS)?;
        self.note(|| "-- all is well from here on".to_owned());
        self.weather = Weather::default();
        self.healed = true;
        self.play(BEGIN_MS + STORMY_MS + CALM_MS)?;
        let disk = self.customer.disk.clone();
        let rows = &disk.lock().rows;
        self.rules.check_at_end(rows, &self.bank, &self.product, &self.clients);
        self.tally.purchases = rows.history.len() as u64;
        self.checked()?;
        Ok(self.tally)
    }

    fn play(&mut self, until: u64) -> Result<(), Violation> {
        while let Some(Reverse(ScheduledEvent(at, ..))) = self.queue.peek()
            && *at <= until
            && let Some(Reverse(ScheduledEvent(at, _, event))) = self.queue.pop()
        {
            self.now = at;
            self.tally.events += 1;
            self.note(|| format!("{event:?}"));
            self.may_crash();
            self.handle_event(event);
            self.rules.check_after_event(&self.customer, &self.product);
            self.checked()?;
        }
        Ok(())
    }

    fn checked(&mut self) -> Result<(), Violation> {
        self.rules.broken.take().map_or(Ok(()), Err)
    }

    pub fn note(&self, what: impl FnOnce() -> String) {
        if self.aloud {
            eprintln!("{:>8} {}", self.now - BEGIN_MS, what());
        }
    }

    pub fn schedule(&mut self, in_ms: u64, event: Event) {
        self.scheduled += 1;
        self.queue.push(Reverse(ScheduledEvent(self.now + in_ms, self.scheduled, event)));
    }

    pub fn time(&self) -> Millis {
        Millis(self.now)
    }

    /// Crashes a random component with the probability of crashes.
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
            self.schedule(down, Event::StartProduct);
        }
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Wake(client) => self.wake(client),
            Event::Answered { client, serial, answer } => self.answered(client, serial, answer),
            Event::GiveUp { client, serial } => {
                let unknown = Refusal::new(ErrorCode::Unavailable, "no answer came");
                self.answered(client, serial, Err(unknown));
            }
            Event::MakePurchase { frontend, client, intent } => self.begin_purchase(frontend, client, intent),
            Event::SendRequest { thread, seq, request } => self.send_request(thread, seq, *request),
            Event::Response { thread, seq, response } => self.handle_response(thread, seq, *response),
            Event::NoAnswer { thread, seq } => self.no_answer(thread, seq),
            Event::LookForOrphans { frontend, start } => self.look_for_orphans(frontend, start),
            Event::RenewLeases { frontend, start } => self.renew_leases(frontend, start),
            Event::RequestArrives { thread, seq, request } => match *request {
                DatabaseRequest::Op(DatabaseOp::Product(op)) => {
                    if !self.product_is_up {
                        return self.respond_unavailable(thread, seq, &DatabaseRequest::Op(DatabaseOp::Product(op)));
                    }
                    let op_response = self.product.handle(self.time(), &op);
                    // The operation is on disk; its response may still be lost by a crash.
                    if self.rng.permille(2 * self.weather.crash) {
                        let down = self.rng.range(10, 6_000);
                        return self.product_crashes(down);
                    }
                    self.respond(thread, seq, DatabaseResponse::OpResponse(op_response));
                }
                request => self.handle_customer_request(thread, seq, request),
            },
            Event::Sweep => {
                if self.product_is_up {
                    self.product.sweep(self.time());
                }
                self.schedule(1_000, Event::Sweep);
            }
            Event::StartFrontend(frontend) => self.start_frontend(frontend),
            Event::StartProduct => self.product_is_up = true,
            event => self.handle_customer_event(event),
        }
    }

    /// Sends a message over the network, which may lose, repeat or delay it.
    pub fn network(&mut self, event: Event) {
        let copies = 1 + u64::from(self.rng.permille(self.weather.repeat));
        for _ in 0..copies {
            if self.rng.permille(self.weather.loss) {
                continue;
            }
            let late = self.rng.permille(self.weather.late);
            let delay = if late { self.rng.range(100, 25_000) } else { self.rng.range(1, 10) };
            self.schedule(delay, event.clone());
        }
    }

    pub fn respond(&mut self, thread: u64, seq: u32, response: DatabaseResponse) {
        self.network(Event::Response { thread, seq, response: Box::new(response) });
    }

    /// The database is down, which the caller usually notices at once.
    pub fn respond_unavailable(&mut self, thread: u64, seq: u32, request: &DatabaseRequest) {
        if self.rng.permille(700) {
            let away = Refusal::new(ErrorCode::Unavailable, "it is down");
            let response = match request {
                DatabaseRequest::Begin(_) => DatabaseResponse::Begun(Err(away)),
                DatabaseRequest::TakeOver => DatabaseResponse::OrphanedPurchase(Err(away)),
                DatabaseRequest::Renew(_) => return,
                DatabaseRequest::Op(_) => DatabaseResponse::OpResponse(OpResponse::Refused(away)),
            };
            self.respond(thread, seq, response);
        }
    }
}
