//! The frontends, to which buyers and sellers connect. They are stateless, sessions included: if one is killed and
//! another started, its clients go on.
//!
//! A request is handled on its connection's thread. Its operations go to the two databases over pooled links
//! ([`crate::net::pool`]), concurrently where neither needs the other's result; then the customer database's is sent
//! first. Results that are only passed on are not parsed.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::apis::{ApiCall, ResponsePayload, ServerKind};
use super::customer::CustomerOp;
use super::listener::{
    self, CUSTOMER_DB, ClientHandler, PRODUCT_DB, ShopContext, ShopListener, ShopStartError, parse_response,
};
use super::ops::{Account, ErrorCode, OrphanedPurchase, Refusal, Role, ShopResult};
use super::product::ProductOp;
use super::purchase::RENEW_MS;
use super::purchase::driver::{DatabaseOp, Driver, DriverStep};
use crate::model::Clock;
use crate::net::backoff::Backoff;
use crate::net::counters::{LatencySnapshot, counters};
use crate::net::link::LinkTarget;
use crate::net::pool::{LinkPool, LinkPoolError, PendingResponse};
use crate::net::shutdown::ShutdownSignal;
use crate::net::threads;

mod calls;
#[cfg(test)]
mod tests;

/// Links to each database.
pub const LINKS_MAX: usize = 512;
/// They are at most one in this many of the process's maximum of connections.
const LINKS_SHARE: usize = 8;
/// Requests that wait for a link.
const WAITING_REQUESTS_MAX: usize = 4096;
/// A database's response must have begun by then.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Where the database may wait: for another purchase of the buyer, or for a password's turn to be hashed.
const LONG_RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);
/// Each step of a purchase is retried after this: longer than the database itself waits for the bank.
const PURCHASE_STEP_TIMEOUT: Duration = Duration::from_secs(4);
/// How often the leases of the purchases that a frontend drives are renewed.
const RENEW_INTERVAL: Duration = Duration::from_millis(RENEW_MS);
/// How often a buyers' frontend looks for orphaned purchases.
const TAKE_OVER_INTERVAL: Duration = Duration::from_millis(500);
/// The same while the customer database is unreachable.
const TAKE_OVER_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Between two attempts to reach a database that was unreachable at the start.
const PROBE_INTERVAL_MAX: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
pub struct FrontendConfig {
    pub role: Role,
    /// Port 0 stands for any free port.
    pub addrs: Vec<SocketAddr>,
    /// `HOST:PORT`, like `customer`.
    pub product: String,
    pub customer: String,
    pub databases: DatabaseLocation,
}

/// Where the databases run, which decides whether links to them use TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseLocation {
    /// They run at the addresses of `--product` and `--customer`: with TLS unless on loopback.
    Remote,
    /// The traffic does not leave the host: with TLS only if the databases have a certificate.
    SameProcess { has_tls: bool },
}

pub struct FrontendServer {
    listeners: Vec<ShopListener>,
    frontend: Arc<Frontend>,
}

/// Shared by all listeners of the frontend.
struct Frontend {
    role: Role,
    customer: LinkPool,
    product: LinkPool,
    clock: Clock,
    counters: FrontendCounters,
    /// The leases of the purchases that are driven here.
    driven_leases: Mutex<HashMap<String, u64>>,
    stopping: ShutdownSignal,
    /// How many background threads run: one probes the databases, one takes over orphaned purchases, one renews leases.
    threads: Mutex<u32>,
    thread_ended: Condvar,
}

counters! {
    /// The purchases that a frontend drives.
    struct FrontendCounters {
        purchases,
        taken_over,
    }
}

impl FrontendServer {
    /// The databases need not be reachable yet.
    pub fn start(config: FrontendConfig, context: &ShopContext) -> Result<FrontendServer, ShopStartError> {
        let from = match config.role {
            Role::Buyer => "buyer-server",
            Role::Seller => "seller-server",
        };
        // Where the limit of connections is low, links must leave some of them to clients.
        let links_max = LINKS_MAX.min(context.listener.limiter.max_connections() / LINKS_SHARE).max(1);
        let is_plain = config.databases == DatabaseLocation::SameProcess { has_tls: false };
        let pool = |address, to, flag| {
            let flag = if config.databases == DatabaseLocation::Remote { flag } else { "" };
            let target = LinkTarget {
                address,
                server_name: to,
                client_name: from,
                address_flag: flag,
                is_plaintext: is_plain,
                key: context.key.clone(),
            };
            LinkPool::new(target, links_max, WAITING_REQUESTS_MAX)
        };
        let frontend = Arc::new(Frontend {
            role: config.role,
            customer: pool(config.customer, CUSTOMER_DB, "--customer"),
            product: pool(config.product, PRODUCT_DB, "--product"),
            clock: Clock::start(),
            counters: FrontendCounters::default(),
            driven_leases: Mutex::default(),
            stopping: ShutdownSignal::default(),
            threads: Mutex::new(0),
            thread_ended: Condvar::new(),
        });
        let open = |addr: &SocketAddr| {
            ShopListener::open(*addr, context.clone(), Arc::clone(&frontend) as Arc<dyn ClientHandler>)
        };
        let listeners = config.addrs.iter().map(open).collect::<Result<Vec<ShopListener>, ShopStartError>>()?;
        type Task = fn(&Frontend);
        let tasks: [(&str, Task); 3] = [
            ("databases", Frontend::probe_databases),
            ("take-over", Frontend::take_over_orphans),
            ("leases", Frontend::renew_leases),
        ];
        let tasks_of_role = if config.role == Role::Buyer { &tasks[..] } else { &tasks[..1] };
        for (name, task) in tasks_of_role {
            let (thread, task) = (Arc::clone(&frontend), *task);
            *frontend.threads.lock() += 1;
            threads::spawn(name, move || {
                task(&thread);
                *thread.threads.lock() -= 1;
                thread.thread_ended.notify_all();
            })?;
        }
        Ok(FrontendServer { listeners, frontend })
    }

    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(ShopListener::local_addr).collect()
    }

    /// The counters of the frontend, its pools and its listeners, with their metric names.
    pub fn counters(&self) -> Vec<(String, u64)> {
        let named = |prefix: &str, list: Vec<(&'static str, u64)>| {
            list.into_iter().map(|(name, count)| (format!("{prefix}{name}"), count)).collect::<Vec<_>>()
        };
        let frontend = &self.frontend;
        let mut all = named("", frontend.counters.list());
        all.extend(named("customer_", frontend.customer.counters().list()));
        all.extend(named("product_", frontend.product.counters().list()));
        let listeners: Vec<_> = self.listeners.iter().map(ShopListener::counters).collect();
        if let Some((first, others)) = listeners.split_first() {
            // All have the same counters in the same order.
            let sum = |(n, (name, count)): (usize, &(&'static str, u64))| {
                (*name, count + others.iter().map(|other| other[n].1).sum::<u64>())
            };
            all.extend(named("", first.iter().enumerate().map(sum).collect()));
        }
        all
    }

    /// The response times of clients' messages, on all listeners.
    pub fn latencies(&self) -> LatencySnapshot {
        self.listeners.iter().fold(LatencySnapshot::default(), |sum, listener| sum.merged_with(&listener.latencies()))
    }

    /// What is in progress has `grace` to finish.
    pub fn stop(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        self.frontend.stopping.request();
        for listener in &self.listeners {
            listener.stop(deadline.saturating_duration_since(Instant::now()));
        }
        // Another frontend takes over a purchase that is left unfinished.
        let mut threads = self.frontend.threads.lock();
        self.frontend.thread_ended.wait_while_until(&mut threads, |threads| *threads > 0, deadline);
    }
}

impl Drop for FrontendServer {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

impl ClientHandler for Frontend {
    fn server_kind(&self) -> ServerKind {
        match self.role {
            Role::Buyer => ServerKind::Buyer,
            Role::Seller => ServerKind::Seller,
        }
    }

    fn call(&self, source: IpAddr, is_dialect2: bool, call: ApiCall) -> ShopResult<ResponsePayload> {
        match call {
            ApiCall::InSession { sid, call } => self.handle_session_call(sid, is_dialect2, call),
            call => listener::handle_account_call(source, self.role, call, |op| self.call_customer_raw(&op)),
        }
    }

    fn check_session(&self, sid: String) -> ShopResult<()> {
        self.touch_session(sid).map(|_account| ())
    }
}

impl Frontend {
    fn call_customer_raw(&self, op: &CustomerOp) -> ShopResult<String> {
        let timeout = match op {
            CustomerOp::Begin { .. } | CustomerOp::Create { .. } | CustomerOp::Login { .. } => LONG_RESPONSE_TIMEOUT,
            CustomerOp::Authorise { .. }
            | CustomerOp::Complete { .. }
            | CustomerOp::Undo { .. }
            | CustomerOp::Closed { .. } => PURCHASE_STEP_TIMEOUT,
            // A lost renewal does no harm; waiting for it would delay the next one.
            CustomerOp::Renew { .. } => RENEW_INTERVAL,
            _ => RESPONSE_TIMEOUT,
        };
        await_response(send_op(&self.customer, op), timeout)
    }

    fn call_product_raw(&self, op: &ProductOp) -> ShopResult<String> {
        let timeout = match op {
            ProductOp::Hold { .. }
            | ProductOp::Sell { .. }
            | ProductOp::Release { .. }
            | ProductOp::HoldState { .. } => PURCHASE_STEP_TIMEOUT,
            _ => RESPONSE_TIMEOUT,
        };
        await_response(send_op(&self.product, op), timeout)
    }

    fn call_customer<T: DeserializeOwned>(&self, op: &CustomerOp) -> ShopResult<T> {
        parse_response(&self.call_customer_raw(op)?)
    }

    /// Counts as a use of the session.
    fn touch_session(&self, sid: String) -> ShopResult<Account> {
        self.call_customer(&CustomerOp::Touch { role: self.role, sid })
    }

    /// Checks the session and asks the product database concurrently; returns the JSON of the account and of the
    /// result. Errors of the session take precedence.
    fn call_product_in_session(&self, sid: String, op: &ProductOp) -> ShopResult<(String, String)> {
        let touching = send_op(&self.customer, &CustomerOp::Touch { role: self.role, sid });
        let asking = send_op(&self.product, op);
        // Both are read in any case: a link with an unread response cannot be used again.
        let (account, product) = (await_response(touching, RESPONSE_TIMEOUT), await_response(asking, RESPONSE_TIMEOUT));
        Ok((account?, product?))
    }

    /// Carries a purchase's operations out until the driver has finished.
    fn drive(&self, (mut driver, mut step): (Driver, DriverStep)) -> ShopResult<super::ops::CompletedPurchase> {
        let _driven = LeaseRegistration::new(&self.driven_leases, &driver);
        loop {
            match step {
                DriverStep::Send { after, op } => {
                    if !after.is_zero() {
                        std::thread::sleep(after);
                    }
                    let answer = match &op {
                        DatabaseOp::Customer(op) => self.call_customer_raw(op),
                        DatabaseOp::Product(op) => self.call_product_raw(op),
                    };
                    let response = op.parse_response(answer.as_deref().map_err(Clone::clone));
                    step = driver.handle_response(self.clock.now(), response);
                }
                DriverStep::Finished(result) => return result,
            }
        }
    }

    /// Asks until both have been reachable once, so that the log tells which one is not, and when it becomes so.
    fn probe_databases(&self) {
        let (mut missing, mut pause) = (vec![&self.customer, &self.product], Duration::ZERO);
        let mut backoff = Backoff::new(TAKE_OVER_RETRY_INTERVAL, PROBE_INTERVAL_MAX);
        while !missing.is_empty() && !self.stopping.wait_for(pause) {
            missing.retain(|database| database.ensure_connected().is_err());
            pause = backoff.next_pause();
        }
    }

    /// Begins at once, because a frontend that this one replaces may have left some.
    fn take_over_orphans(&self) {
        let mut pause = Duration::ZERO;
        while !self.stopping.wait_for(pause) {
            pause = match self.call_customer::<Option<OrphanedPurchase>>(&CustomerOp::TakeOver) {
                Ok(Some(orphan)) => {
                    self.counters.taken_over.add(1);
                    log::info!("purchase {}: its driver is gone; bringing it to its end", orphan.purchase_id);
                    if let Err(refusal) = self.drive(Driver::take_over(self.clock.now(), orphan)) {
                        log::debug!("a purchase that was taken over: {}", refusal.message);
                    }
                    // There may be more.
                    Duration::ZERO
                }
                Ok(None) => TAKE_OVER_INTERVAL,
                // The pool has logged that the database is unreachable.
                Err(_) => TAKE_OVER_RETRY_INTERVAL,
            };
        }
    }

    /// It goes on while a stopping frontend finishes what it drives.
    fn renew_leases(&self) {
        while !self.stopping.wait_for(RENEW_INTERVAL) || !self.driven_leases.lock().is_empty() {
            if self.stopping.is_requested() {
                std::thread::sleep(RENEW_INTERVAL / 10);
            }
            let leases: Vec<(String, u64)> =
                self.driven_leases.lock().iter().map(|(purchase_id, lease)| (purchase_id.clone(), *lease)).collect();
            if !leases.is_empty()
                && let Err(refusal) = self.call_customer_raw(&CustomerOp::Renew { leases })
            {
                log::debug!("leases could not be renewed: {}", refusal.message);
            }
        }
    }
}

/// The lease is renewed until this is dropped.
struct LeaseRegistration<'a> {
    driven_leases: &'a Mutex<HashMap<String, u64>>,
    purchase_id: String,
    lease: u64,
}

impl<'a> LeaseRegistration<'a> {
    fn new(driven_leases: &'a Mutex<HashMap<String, u64>>, driver: &Driver) -> LeaseRegistration<'a> {
        let (purchase_id, lease) = (driver.purchase_id().to_owned(), driver.lease());
        driven_leases.lock().insert(purchase_id.clone(), lease);
        LeaseRegistration { driven_leases, purchase_id, lease }
    }
}

impl Drop for LeaseRegistration<'_> {
    fn drop(&mut self) {
        let mut driven_leases = self.driven_leases.lock();
        // Otherwise this purchase was lost meanwhile and is now driven here by another thread.
        if driven_leases.get(&self.purchase_id) == Some(&self.lease) {
            driven_leases.remove(&self.purchase_id);
        }
    }
}

fn send_op<'a>(pool: &'a LinkPool, op: &impl Serialize) -> Result<PendingResponse<'a>, LinkPoolError> {
    // Serialising strings and numbers to memory cannot fail.
    pool.send(serde_json::to_vec(op).unwrap_or_default())
}

fn await_response(asked: Result<PendingResponse<'_>, LinkPoolError>, timeout: Duration) -> ShopResult<String> {
    match asked.and_then(|asked| asked.wait(timeout)) {
        Ok(answer) => listener::decode_response(answer),
        Err(error @ LinkPoolError::Busy { .. }) => Err(Refusal::new(ErrorCode::Busy, format!("{error}; try again"))),
        Err(ref error @ LinkPoolError::Unavailable { to, .. }) => {
            log::debug!("{error}");
            // The cause is not told: clients need not know where the components are.
            Err(Refusal::new(ErrorCode::Unavailable, format!("the {to} cannot be reached; try again")))
        }
    }
}
