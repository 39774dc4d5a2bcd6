//! The frontends: what buyers and sellers speak with. They keep nothing, sessions included: kill one, start
//! another, and a client goes on.
//!
//! Each request has its connection's thread. What it asks of the two databases goes out over pooled links
//! ([`crate::net::pool`]), at the same time where one does not need the other's answer; who needs both sends
//! to the customer database first. Payloads that only pass through are not parsed.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::door::{self, CUSTOMER_DB, Door, Floor, Host, PRODUCT_DB, StartError, parse};
use super::ops::{Account, Answer, Code, CustomerOp, Orphan, ProductOp, Refusal, Role};
use super::purchase::RENEW_MS;
use super::purchase::driver::{Driver, Op, Step};
use super::wire::{Call, Outcome, Port};
use crate::model::Clock;
use crate::net::counters::{Counter, LatencyCounts};
use crate::net::link::Target;
use crate::net::pool::{Asked, Pool, PoolError};
use crate::net::threads;

mod buyer;
mod seller;
#[cfg(test)]
mod tests;

/// Links to each database at most.
pub const LINKS_MAX: usize = 512;
/// Which part of the bound of connections that is at most.
const LINKS_SHARE: usize = 8;
/// Requests that wait for a link.
const WAITING_MAX: usize = 4096;
/// How long an answer may take to begin.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a purchase waits for another one of the same buyer, and how long a login waits for its turn.
const PATIENT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long each step of a purchase may take, longer than the database itself waits for the bank; then it is
/// asked again.
const STEP_TIMEOUT: Duration = Duration::from_secs(4);
/// How often it renews the leases of what it drives.
const RENEW_EVERY: Duration = Duration::from_millis(RENEW_MS);
/// How often it looks for purchases that lost their driver.
const TAKE_OVER_EVERY: Duration = Duration::from_millis(500);
/// The same while the database that knows of them is away.
const TAKE_OVER_AGAIN: Duration = Duration::from_millis(100);

/// A database that was not there at the start is looked for at least so often.
const GREET_AGAIN_MAX: Duration = Duration::from_secs(2);

/// What the operator chose.
#[derive(Debug, Clone)]
pub struct Config {
    /// Whose frontend it is.
    pub role: Role,
    /// Where clients come in; port 0: any free one.
    pub addrs: Vec<SocketAddr>,
    /// `HOST:PORT` of the product database.
    pub product: String,
    /// `HOST:PORT` of the customer database.
    pub customer: String,
    /// Where both are.
    pub databases: Databases,
}

/// Where the databases of a frontend are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Databases {
    /// Wherever the operator says, by `--product` and `--customer`: with TLS unless that is loopback.
    Elsewhere,
    /// In the same process. What goes there leaves it by none of its addresses: with TLS only if they have a
    /// certificate.
    Here {
        /// They have one.
        have_tls: bool,
    },
}

/// A running frontend.
pub struct FrontendServer {
    doors: Vec<Door>,
    frontend: Arc<Frontend>,
}

/// What answers, on every door.
struct Frontend {
    role: Role,
    customer: Pool,
    product: Pool,
    clock: Clock,
    counters: FrontendCounters,
    /// Purchases that are driven here, each with its lease.
    driven: Mutex<HashMap<String, u64>>,
    life: Mutex<Life>,
    /// Told when that changes.
    life_changed: Condvar,
}

#[derive(Default)]
struct Life {
    is_stopping: bool,
    /// Threads of its own that have not ended: one greets the databases, one takes purchases over, one renews leases.
    threads: u32,
}

/// What a frontend did so far.
#[derive(Debug, Default)]
struct FrontendCounters {
    purchases: Counter,
    taken_over: Counter,
}

impl FrontendServer {
    /// Binds, and serves. The databases need not be there yet.
    ///
    /// # Errors
    /// [`StartError`]: a port is in use.
    pub fn start(config: Config, floor: &Floor) -> Result<FrontendServer, StartError> {
        let from = match config.role {
            Role::Buyer => "buyer-server",
            Role::Seller => "seller-server",
        };
        // Where few connections are allowed, links must leave some of them to clients.
        let links_max = LINKS_MAX.min(floor.limiter.max_connections() / LINKS_SHARE).max(1);
        let is_plain = config.databases == Databases::Here { have_tls: false };
        let pool = |address, to, flag| {
            let flag = if config.databases == Databases::Elsewhere { flag } else { "" };
            let target = Target { address, to, from, flag, is_plain, key: floor.key.clone() };
            Pool::new(target, links_max, WAITING_MAX)
        };
        let frontend = Arc::new(Frontend {
            role: config.role,
            customer: pool(config.customer, CUSTOMER_DB, "--customer"),
            product: pool(config.product, PRODUCT_DB, "--product"),
            clock: Clock::start(),
            counters: FrontendCounters::default(),
            driven: Mutex::default(),
            life: Mutex::new(Life { is_stopping: false, threads: 0 }),
            life_changed: Condvar::new(),
        });
        let open = |addr: &SocketAddr| Door::open(*addr, floor.clone(), Arc::clone(&frontend) as Arc<dyn Host>);
        let doors = config.addrs.iter().map(open).collect::<Result<Vec<Door>, StartError>>()?;
        type Work = fn(&Frontend);
        let works: [(&str, Work); 3] = [
            ("databases", Frontend::greet_databases),
            ("take-over", Frontend::take_over),
            ("leases", Frontend::renew_leases),
        ];
        let of_role = if config.role == Role::Buyer { &works[..] } else { &works[..1] };
        for (name, work) in of_role {
            let (thread, work) = (Arc::clone(&frontend), *work);
            frontend.life.lock().threads += 1;
            threads::spawn(name, move || {
                work(&thread);
                thread.life.lock().threads -= 1;
                thread.life_changed.notify_all();
            })?;
        }
        Ok(FrontendServer { doors, frontend })
    }

    /// Where clients come in.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.doors.iter().map(Door::local_addr).collect()
    }

    /// Every counter of the frontend and of what is beneath it, with its name.
    pub fn counters(&self) -> Vec<(String, u64)> {
        let named = |prefix: &str, list: Vec<(&'static str, u64)>| {
            list.into_iter().map(|(name, count)| (format!("{prefix}{name}"), count)).collect::<Vec<_>>()
        };
        let frontend = &self.frontend;
        let own =
            vec![("purchases", frontend.counters.purchases.get()), ("taken_over", frontend.counters.taken_over.get())];
        let mut all = named("", own);
        all.extend(named("customer_", frontend.customer.counters().list()));
        all.extend(named("product_", frontend.product.counters().list()));
        let doors: Vec<_> = self.doors.iter().map(Door::counters).collect();
        if let Some((first, others)) = doors.split_first() {
            // All doors count the same things, in the same order.
            let sum = |(n, (name, count)): (usize, &(&'static str, u64))| {
                (*name, count + others.iter().map(|other| other[n].1).sum::<u64>())
            };
            all.extend(named("", first.iter().enumerate().map(sum).collect()));
        }
        all
    }

    /// How long clients' messages took to be answered, at all doors.
    pub fn latencies(&self) -> LatencyCounts {
        self.doors.iter().fold(LatencyCounts::default(), |sum, door| sum.plus(&door.latencies()))
    }

    /// Takes no more work; what is in hand may be finished within `grace`.
    pub fn stop(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        self.frontend.life.lock().is_stopping = true;
        self.frontend.life_changed.notify_all();
        for door in &self.doors {
            door.stop(deadline.saturating_duration_since(Instant::now()));
        }
        // A purchase that is left behind is taken over by another frontend.
        let mut life = self.frontend.life.lock();
        while life.threads > 0 && Instant::now() < deadline {
            self.frontend.life_changed.wait_until(&mut life, deadline);
        }
    }
}

impl Drop for FrontendServer {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

impl fmt::Debug for FrontendServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrontendServer")
            .field("role", &self.frontend.role)
            .field("addrs", &self.local_addrs())
            .finish_non_exhaustive()
    }
}

impl Host for Frontend {
    fn port(&self) -> Port {
        match self.role {
            Role::Buyer => Port::Buyer,
            Role::Seller => Port::Seller,
        }
    }

    fn call(&self, source: IpAddr, is_flat: bool, call: Call) -> Answer<Outcome> {
        match call {
            Call::Act { sid, act } => match self.role {
                Role::Buyer => self.buyer_act(sid, is_flat, act),
                Role::Seller => self.seller_act(sid, act),
            },
            call => door::account_call(source, self.role, call, |op| self.ask_customer(&op)),
        }
    }

    fn in_session(&self, sid: String) -> Answer<()> {
        self.touch(sid).map(|_account| ())
    }
}

impl Frontend {
    // The databases.

    fn ask_customer(&self, op: &CustomerOp) -> Answer<String> {
        let timeout = match op {
            CustomerOp::Begin { .. } | CustomerOp::Create { .. } | CustomerOp::Login { .. } => PATIENT_TIMEOUT,
            CustomerOp::Authorise { .. }
            | CustomerOp::Complete { .. }
            | CustomerOp::Undo { .. }
            | CustomerOp::Closed { .. } => STEP_TIMEOUT,
            // One that is lost does no harm; one that is waited for holds up the next.
            CustomerOp::Renew { .. } => RENEW_EVERY,
            _ => ANSWER_TIMEOUT,
        };
        answer(send(&self.customer, op), timeout)
    }

    fn ask_product(&self, op: &ProductOp) -> Answer<String> {
        let timeout = match op {
            ProductOp::Hold { .. }
            | ProductOp::Sell { .. }
            | ProductOp::Release { .. }
            | ProductOp::HoldState { .. } => STEP_TIMEOUT,
            _ => ANSWER_TIMEOUT,
        };
        answer(send(&self.product, op), timeout)
    }

    /// The same where the answer must be understood.
    fn customer<T: DeserializeOwned>(&self, op: &CustomerOp) -> Answer<T> {
        parse(&self.ask_customer(op)?)
    }

    fn product<T: DeserializeOwned>(&self, op: &ProductOp) -> Answer<T> {
        parse(&self.ask_product(op)?)
    }

    /// Whose session it is.
    fn touch(&self, sid: String) -> Answer<Account> {
        self.customer(&CustomerOp::Touch { role: self.role, sid })
    }

    /// Looks into the session and asks the product database at the same time. That the session is none
    /// comes first.
    fn ask_in_session(&self, sid: String, op: &ProductOp) -> Answer<(String, String)> {
        let touching = send(&self.customer, &CustomerOp::Touch { role: self.role, sid });
        let asking = send(&self.product, op);
        // Both are read whatever comes: a link whose answer nobody reads is of no more use.
        let (account, product) = (answer(touching, ANSWER_TIMEOUT), answer(asking, ANSWER_TIMEOUT));
        Ok((account?, product?))
    }

    // Purchases.

    /// Asks one operation after the other until it is over.
    fn drive(&self, (mut driver, mut step): (Driver, Step)) -> Answer<super::ops::Purchased> {
        let _driven = Driven::begin(&self.driven, &driver);
        loop {
            match step {
                Step::Ask { after, op } => {
                    if !after.is_zero() {
                        std::thread::sleep(after);
                    }
                    let answer = match &op {
                        Op::Customer(op) => self.ask_customer(op),
                        Op::Product(op) => self.ask_product(op),
                    };
                    let heard = op.read(answer.as_deref().map_err(Clone::clone));
                    step = driver.heard(self.clock.now(), heard);
                }
                Step::Over(result) => return result,
            }
        }
    }

    /// Finds out whether the databases are there, and looks again until both have been: an operator reads at
    /// once which of them is not, and when it comes.
    fn greet_databases(&self) {
        let (mut missing, mut pause) = (vec![&self.customer, &self.product], Duration::ZERO);
        while !missing.is_empty() && !self.is_over_within(pause) {
            missing.retain(|database| database.greet().is_err());
            pause = (2 * pause).clamp(TAKE_OVER_AGAIN, GREET_AGAIN_MAX);
        }
    }

    /// Brings purchases to their end whose driver is gone, for as long as the frontend lives; from its first
    /// moment on, because the one that it replaces may have left some.
    fn take_over(&self) {
        let mut pause = Duration::ZERO;
        while !self.is_over_within(pause) {
            pause = match self.customer::<Option<Orphan>>(&CustomerOp::TakeOver) {
                Ok(Some(orphan)) => {
                    self.counters.taken_over.add(1);
                    log::info!("purchase {}: its driver is gone; bringing it to its end", orphan.purchase_id);
                    if let Err(refusal) = self.drive(Driver::take_over(self.clock.now(), orphan)) {
                        log::debug!("a purchase that was taken over: {}", refusal.message);
                    }
                    // There may be another.
                    Duration::ZERO
                }
                Ok(None) => TAKE_OVER_EVERY,
                // A database that is away has been complained of.
                Err(_) => TAKE_OVER_AGAIN,
            };
        }
    }

    /// Tells that whoever drives here is still at work; also while the frontend stops and finishes that.
    fn renew_leases(&self) {
        while !self.is_over_within(RENEW_EVERY) || !self.driven.lock().is_empty() {
            if self.life.lock().is_stopping {
                std::thread::sleep(RENEW_EVERY / 10);
            }
            let leases: Vec<(String, u64)> =
                self.driven.lock().iter().map(|(purchase_id, lease)| (purchase_id.clone(), *lease)).collect();
            if !leases.is_empty()
                && let Err(refusal) = self.ask_customer(&CustomerOp::Renew { leases })
            {
                log::debug!("leases could not be renewed: {}", refusal.message);
            }
        }
    }

    fn is_over_within(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut life = self.life.lock();
        while !life.is_stopping && Instant::now() < until {
            self.life_changed.wait_until(&mut life, until);
        }
        life.is_stopping
    }
}

/// A purchase that is being driven here.
struct Driven<'a> {
    driven: &'a Mutex<HashMap<String, u64>>,
    purchase_id: String,
    lease: u64,
}

impl<'a> Driven<'a> {
    fn begin(driven: &'a Mutex<HashMap<String, u64>>, driver: &Driver) -> Driven<'a> {
        let (purchase_id, lease) = (driver.purchase_id().to_owned(), driver.lease());
        driven.lock().insert(purchase_id.clone(), lease);
        Driven { driven, purchase_id, lease }
    }
}

impl Drop for Driven<'_> {
    fn drop(&mut self) {
        let mut driven = self.driven.lock();
        // Unless it was lost, and taken over here again, meanwhile.
        if driven.get(&self.purchase_id) == Some(&self.lease) {
            driven.remove(&self.purchase_id);
        }
    }
}

fn send<'a>(pool: &'a Pool, op: &impl Serialize) -> Result<Asked<'a>, PoolError> {
    // Texts and numbers alone: writing them to memory cannot fail.
    pool.send(serde_json::to_vec(op).unwrap_or_default())
}

fn answer(asked: Result<Asked<'_>, PoolError>, timeout: Duration) -> Answer<String> {
    match asked.and_then(|asked| asked.answer(timeout)) {
        Ok(answer) => door::decode_answer(answer),
        Err(error @ PoolError::Busy { .. }) => Err(Refusal::new(Code::Busy, format!("{error}; try again"))),
        Err(error @ PoolError::Away { .. }) => {
            log::debug!("{error}");
            let PoolError::Away { to, .. } = error else { return Err(unavailable("a database")) };
            Err(unavailable(to))
        }
    }
}

/// Without the cause: clients need not know where the components are.
fn unavailable(whom: &str) -> Refusal {
    Refusal::new(Code::Unavailable, format!("the {whom} cannot be reached; try again"))
}
