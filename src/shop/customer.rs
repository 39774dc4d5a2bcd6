//! The customer database: accounts, sessions, carts, purchases (`docs/spec/shop.md`).
//!
//! | file | holds |
//! |---|---|
//! | `accounts.rs` | accounts and passwords: read from disk when needed |
//! | `active_sessions.rs` | sessions and signed-in buyers: in memory, loaded from disk at the start |
//! | `carts.rs` | the carts of a buyer |
//! | `purchases.rs` | open purchases, and the requests to the bank |
//! | `store.rs`, `sales.rs` | the tables; those of purchases |
//!
//! An operation changes memory and passes its writes to the store's writer thread under the lock of what it changed.
//! Its response leaves once the newest change that it depends on is on disk, so that a Touch or a ShowCart only reads
//! memory. When a transaction fails, memory is rebuilt from disk before the next operation, and the operations that
//! waited for it get UNAVAILABLE: none of their changes has happened.
//!
//! A purchase works in the same way, but asks the bank in between. Its rows and its changes of carts are one
//! transaction ([`store::Journal::append_with`], [`carts::BuyerCarts::remove_purchased`]). A journal and a buyer's
//! carts belong to the same memory; a rebuilt memory has new ones.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock};
use serde::Serialize;

use super::ops::{self, CustomerOp, ErrorCode, LineItem, NewSession, Refusal, ShopResult};
use crate::bank::{Gateway, ledger};
use crate::identity::{HashCost, PasswordError, PasswordHasher, SessionKey};
use crate::model::number::EXACT_MAX;
use crate::model::{Clock, FeeRate, Millis, Token};
use crate::net::threads;
use crate::storage::backup::ID_RANGE_MAX;
use crate::storage::{CommitHandle, Store, StoreError};

mod accounts;
pub mod active_sessions;
pub mod carts;
pub mod purchases;
mod sales;
pub mod store;
#[cfg(test)]
mod tests;

use accounts::Accounts;
use active_sessions::ActiveSessions;
use carts::IdempotentRequest;
use purchases::{BeginWaiters, PurchaseManager};
use store::Journal;

/// The name of the customer database's file in the data directory.
pub const FILE_NAME: &str = "customer.db";

/// The migrations of the customer database, one per schema version.
pub const MIGRATIONS: &[&str] =
    &[ledger::MIGRATION, store::MIGRATION, sales::MIGRATION, store::MIGRATION_SKIPPED, store::MIGRATION_KEYS];

/// The size of a range of user ids. After data loss, ids continue in a new range, beyond all that were assigned.
const ID_RANGE_SIZE: u64 = 1 << 32;
const _: () = assert!(ID_RANGE_SIZE * (ID_RANGE_MAX + 1) <= EXACT_MAX);
/// The longest pause between two checks for expired sessions, and between two retries of requests to the bank.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How often the times of the sessions' last uses are written.
const FLUSH_INTERVAL: Duration = Duration::from_secs(3);

/// An operation's result, and the newest change that it depends on: the result may be told once that is on disk.
pub type PendingResult<T> = (ShopResult<T>, CommitHandle);

/// The configuration of the customer database.
#[derive(Debug, Clone)]
pub struct CustomerDbConfig {
    /// A session expires after this time without a request.
    pub session_timeout: Duration,
    /// The cost of hashing a password.
    pub password_cost: HashCost,
    /// The fee on a sale.
    pub fee: FeeRate,
    pub clock: Clock,
    /// The range in which user ids begin: 0 unless ids may have been assigned that this file does not know, because it
    /// is from a backup or a loss was accepted.
    pub first_id_range: u64,
}

impl Default for CustomerDbConfig {
    /// The defaults of `docs/spec/shop.md`, with a clock that starts now.
    fn default() -> CustomerDbConfig {
        CustomerDbConfig {
            session_timeout: Duration::from_secs(300),
            password_cost: HashCost::default(),
            fee: FeeRate::default(),
            clock: Clock::start(),
            first_id_range: 0,
        }
    }
}

/// Why the customer database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum CustomerDbOpenError {
    /// The file could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Passwords cannot be hashed at the configured cost.
    #[error(transparent)]
    Password(#[from] PasswordError),
    /// A thread could not be started.
    #[error("no thread for the customer database: {0}")]
    Thread(#[from] io::Error),
}

/// A running customer database. Dropping it closes it; the store stays open.
pub struct CustomerDb {
    inner: Arc<CustomerDbInner>,
    /// One expires sessions, the other retries requests to the bank.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct CustomerDbInner {
    config: CustomerDbConfig,
    store: Arc<Store>,
    gateway: Arc<dyn Gateway>,
    accounts: Accounts,
    begin_waiters: BeginWaiters,
    /// Replaced as a whole when a transaction has failed.
    memory: RwLock<Arc<CustomerMemory>>,
    is_closed: Mutex<bool>,
    closing: Condvar,
}

/// All state in memory, and the journal of its changes.
struct CustomerMemory {
    journal: Journal,
    active_sessions: ActiveSessions,
    purchases: PurchaseManager,
}

impl CustomerDb {
    /// Loads the state from the store (opened with [`MIGRATIONS`]), repeats the requests that the bank had not
    /// answered, and starts the background threads.
    ///
    /// # Errors
    /// The file cannot be read or written, the password cost is unusable, or a thread cannot be started.
    pub fn open(
        store: Arc<Store>,
        gateway: Arc<dyn Gateway>,
        config: CustomerDbConfig,
    ) -> Result<CustomerDb, CustomerDbOpenError> {
        let skipped_up_to = ID_RANGE_SIZE.saturating_mul(config.first_id_range);
        store.write(move |tx| store::skip_user_ids(tx, skipped_up_to))?;
        store.write(store::backfill_username_keys)?;
        let passwords = PasswordHasher::with_shared_threads(config.password_cost)?;
        let accounts = Accounts::new(Arc::clone(&store), config.clock, passwords);
        let memory = RwLock::new(Arc::new(CustomerMemory::load(&store, &config)?));
        let (is_closed, closing, begin_waiters) = (Mutex::new(false), Condvar::new(), BeginWaiters::default());
        let inner =
            Arc::new(CustomerDbInner { config, store, gateway, accounts, begin_waiters, memory, is_closed, closing });
        // An interrupted charge is completed before anyone can ask about it.
        inner.retry_bank_requests();
        let db = CustomerDb { inner: Arc::clone(&inner), threads: Mutex::default() };
        let sessions = threads::spawn("shop-sessions", {
            let inner = Arc::clone(&inner);
            move || inner.run_session_expiry()
        })?;
        db.threads.lock().push(sessions);
        let bank = threads::spawn("shop-bank", move || inner.run_bank_retries())?;
        db.threads.lock().push(bank);
        Ok(db)
    }

    /// Executes an operation and returns the JSON of its result (see [`CustomerOp`]) once it is on disk.
    ///
    /// # Errors
    /// The refusals of the operation itself; UNAVAILABLE if it could not be stored, in which case nothing has changed.
    pub fn handle(&self, op: CustomerOp) -> ShopResult<String> {
        self.inner.handle(op)
    }

    /// Ends expired sessions, and writes the times of last uses if `flush` is set. A background thread calls this at
    /// least every second.
    pub fn expire_sessions(&self, flush: bool) {
        self.inner.tick(flush);
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.inner.store
    }

    /// The number of open sessions, and of buyers in memory.
    pub fn session_and_buyer_counts(&self) -> (usize, usize) {
        self.inner.memory().active_sessions.sizes()
    }

    /// The number of open purchases.
    pub fn open_purchase_count(&self) -> usize {
        self.inner.memory().purchases.under_way()
    }

    /// Stops the background threads, writes the times of last uses and waits until everything is on disk. Idempotent.
    pub fn close(&self) {
        *self.inner.is_closed.lock() = true;
        self.inner.closing.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock());
        if threads.is_empty() {
            return;
        }
        for thread in threads {
            // A panic of the thread has been logged.
            let _ = thread.join();
        }
        self.inner.tick(true);
        self.inner.store.sync_all();
    }
}

impl Drop for CustomerDb {
    fn drop(&mut self) {
        self.close();
    }
}

impl CustomerMemory {
    fn load(store: &Arc<Store>, config: &CustomerDbConfig) -> Result<CustomerMemory, StoreError> {
        let journal = Journal::begin(Arc::clone(store));
        let (snapshot, under_way) = store.read(|reader| {
            Ok::<_, StoreError>((store::load(reader, config.session_timeout)?, sales::open_purchases(reader)?))
        })?;
        let now = config.clock.now();
        let active_sessions = ActiveSessions::load(&journal, config.session_timeout, snapshot, now);
        let purchases = PurchaseManager::load(&journal, &active_sessions, under_way, config.fee, config.clock)?;
        Ok(CustomerMemory { journal, active_sessions, purchases })
    }

    /// Runs an operation on the cart of a buyer's session.
    fn with_cart<T>(
        &self,
        now: Millis,
        sid: &str,
        work: impl FnOnce(&carts::BuyerCarts, &Journal, &SessionKey) -> PendingResult<T>,
    ) -> PendingResult<T> {
        match self.active_sessions.use_buyer_session(now, sid) {
            Ok((session, buyer)) => work(&buyer, &self.journal, &session.key),
            Err((refusal, commit)) => (Err(refusal), commit),
        }
    }
}

impl CustomerDbInner {
    fn handle(&self, op: CustomerOp) -> ShopResult<String> {
        let (memory, now) = (self.memory(), self.config.clock.now());
        let (active_sessions, journal) = (&memory.active_sessions, &memory.journal);
        match op {
            CustomerOp::Create { request, role, username, password, name, source } => {
                to_json(&self.accounts.create(request, role, username, (&password, &source), name)?)
            }
            CustomerOp::Login { role, username, password, source } => {
                let account = self.accounts.authenticate(role, &username, (&password, &source))?;
                let logged_in = NewSession { sid: Token::random().reveal().to_owned(), user_id: account.user_id };
                // Checking the password takes long: memory may have been replaced meanwhile.
                let (memory, now) = (self.memory(), self.config.clock.now());
                let key = SessionKey::of(&logged_in.sid);
                let opened = memory.active_sessions.open_session(&memory.journal, now, role, account, key);
                let (result, commit) = opened.map_err(|error| unavailable(&error))?;
                self.respond(&memory, (result.map(|()| logged_in), commit))
            }
            CustomerOp::Logout { role, sid } => {
                self.respond(&memory, active_sessions.end_session(journal, now, role, &sid))
            }
            CustomerOp::Validate { sid } => {
                let session_info = active_sessions.peek_session(now, &sid).map(|session| {
                    let (user, role) = (session.owner.account.username.clone(), session.owner.role());
                    ops::SessionInfo { user, role }
                });
                self.respond(&memory, lookup_result(session_info))
            }
            CustomerOp::Touch { role, sid } => {
                let account =
                    active_sessions.use_session(now, role, &sid).map(|session| Arc::clone(&session.owner.account));
                match account {
                    Ok(account) => to_json(&*account),
                    Err(refusal) => self.respond::<()>(&memory, lookup_result(Err(refusal))),
                }
            }
            CustomerOp::FindUser { role, username, user_id } => {
                to_json(&self.accounts.find(role, username.as_deref(), user_id)?)
            }
            CustomerOp::AddToCart { request, sid, uses_saved_cart, item_id, quantity, at_most } => {
                let (once, line) = (IdempotentRequest { id: &request, now }, LineItem { item_id, quantity });
                let add = |buyer: &carts::BuyerCarts, journal: &Journal, key: &SessionKey| {
                    buyer.add(journal, (key, uses_saved_cart), &once, &line, at_most)
                };
                self.respond(&memory, memory.with_cart(now, &sid, add))
            }
            CustomerOp::RemoveFromCart { request, sid, uses_saved_cart, item_id, quantity } => {
                let once = IdempotentRequest { id: &request, now };
                let remove = |buyer: &carts::BuyerCarts, journal: &Journal, key: &SessionKey| {
                    buyer.remove(journal, (key, uses_saved_cart), &once, &item_id, quantity)
                };
                self.respond(&memory, memory.with_cart(now, &sid, remove))
            }
            CustomerOp::SaveCart { sid, uses_saved_cart } => self.respond(
                &memory,
                memory.with_cart(now, &sid, |buyer, journal, key| buyer.save(journal, (key, uses_saved_cart))),
            ),
            CustomerOp::ClearCart { sid, uses_saved_cart } => self.respond(
                &memory,
                memory.with_cart(now, &sid, |buyer, journal, key| buyer.clear(journal, (key, uses_saved_cart))),
            ),
            CustomerOp::ShowCart { sid, uses_saved_cart } => self.respond(
                &memory,
                memory.with_cart(now, &sid, |buyer, journal, key| buyer.show(journal, (key, uses_saved_cart))),
            ),
            CustomerOp::Begin { .. }
            | CustomerOp::Authorise { .. }
            | CustomerOp::Complete { .. }
            | CustomerOp::Undo { .. }
            | CustomerOp::Closed { .. }
            | CustomerOp::Renew { .. }
            | CustomerOp::TakeOver
            | CustomerOp::Purchases { .. }
            | CustomerOp::Orders { .. }
            | CustomerOp::MarkShipped { .. } => self.handle_purchase_op(op),
        }
    }

    fn memory(&self) -> Arc<CustomerMemory> {
        Arc::clone(&self.memory.read())
    }

    /// Returns the JSON of a result once what it depends on is on disk.
    fn respond<T: Serialize>(
        &self,
        memory: &Arc<CustomerMemory>,
        (result, commit): PendingResult<T>,
    ) -> ShopResult<String> {
        self.wait_committed(memory, &commit).map_err(|error| unavailable(&error))?;
        to_json(&result?)
    }

    /// Waits until a change is on disk. If it could not be stored, memory is rebuilt before this returns.
    fn wait_committed(&self, memory: &Arc<CustomerMemory>, commit: &CommitHandle) -> Result<(), StoreError> {
        commit.wait().inspect_err(|_error| self.rebuild(memory))
    }

    /// Rebuilds memory from disk, because a change of the `failed` memory could not be stored.
    fn rebuild(&self, failed: &Arc<CustomerMemory>) {
        // Locked while the store is read, because no operation may read the invalid memory.
        let mut memory = self.memory.write();
        if !Arc::ptr_eq(&memory, failed) {
            return;
        }
        match CustomerMemory::load(&self.store, &self.config) {
            Ok(rebuilt) => {
                *memory = Arc::new(rebuilt);
                self.begin_waiters.notify_all();
                log::warn!("customer database: memory was built anew from the disk");
            }
            // The old memory stays. The store refuses its changes, so every operation that makes one gets UNAVAILABLE
            // and tries to rebuild again.
            Err(error) => log::error!("customer database: the store cannot be read: {error}"),
        }
    }

    /// Runs the thread that ends expired sessions.
    fn run_session_expiry(&self) {
        let check_interval = CHECK_INTERVAL.min(self.config.session_timeout / 4).max(Duration::from_millis(10));
        let mut flushed_at = self.config.clock.now();
        let mut is_closed = self.is_closed.lock();
        while !*is_closed {
            if !self.closing.wait_for(&mut is_closed, check_interval).timed_out() {
                continue;
            }
            parking_lot::MutexGuard::unlocked(&mut is_closed, || {
                let now = self.config.clock.now();
                let flush = flushed_at.until(now) >= FLUSH_INTERVAL;
                self.tick(flush);
                if flush {
                    flushed_at = now;
                }
            });
        }
    }

    /// Runs the thread that retries requests to the bank.
    fn run_bank_retries(&self) {
        let mut is_closed = self.is_closed.lock();
        while !*is_closed {
            if self.closing.wait_for(&mut is_closed, CHECK_INTERVAL).timed_out() {
                parking_lot::MutexGuard::unlocked(&mut is_closed, || self.retry_bank_requests());
            }
        }
    }

    fn tick(&self, flush: bool) {
        let (memory, now) = (self.memory(), self.config.clock.now());
        loop {
            let (expired_count, commit) = memory.active_sessions.expire_sessions(&memory.journal, now);
            if let Err(error) = self.wait_committed(&memory, &commit) {
                log::error!("customer database: ends of sessions could not be stored: {error}");
                return;
            }
            if expired_count == 0 {
                break;
            }
            log::debug!("customer database: the time of {expired_count} sessions was up");
        }
        if flush && let Err(error) = memory.active_sessions.flush_last_uses(&memory.journal, now) {
            log::warn!("customer database: last uses of sessions could not be stored: {error}");
        }
    }
}

/// The result of a lookup whose success depends on nothing that is not on disk.
fn lookup_result<T>(found: Result<T, (Refusal, CommitHandle)>) -> PendingResult<T> {
    match found {
        Ok(found) => (Ok(found), CommitHandle::committed()),
        Err((refusal, commit)) => (Err(refusal), commit),
    }
}

fn to_json<T: Serialize>(result: &T) -> ShopResult<String> {
    serde_json::to_string(result).map_err(|error| {
        log::error!("customer database: an answer could not be written: {error}");
        Refusal::new(ErrorCode::Unavailable, "the answer could not be written")
    })
}

fn session_expired() -> Refusal {
    Refusal::new(ErrorCode::SessionExpired, "session_id: this session is unknown or has ended; log in again")
}

/// The refusal for a failure of the store, whose details go to the log. Nothing has changed.
fn unavailable(error: &StoreError) -> Refusal {
    log::error!("customer database: {error}");
    Refusal::new(ErrorCode::Unavailable, "the customer database could not store or read it: try again")
}

impl fmt::Debug for CustomerDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CustomerDb").field("store", &self.inner.store).finish_non_exhaustive()
    }
}
