//! The customer database: accounts, sessions, carts, purchases (SPEC.md section 4).
//!
//! | file | holds |
//! |---|---|
//! | `accounts.rs` | who may sign in: on disk, asked for when needed |
//! | `people.rs` | who is signed in: in memory, built from disk at start |
//! | `carts.rs` | what they have in their carts |
//! | `purchases.rs` | what they are purchasing, and the bank |
//! | `store.rs`, `sales.rs` | the rows of all of it; of purchases |
//!
//! An operation works on memory and hands its changes to the store's writer under the lock of what it
//! changed; the answer leaves once the newest change that it is built on is on disk. So a Touch or a
//! ShowCart is a look into memory. When a transaction fails, memory is built anew from disk before the
//! next operation, and those that waited for it get UNAVAILABLE: nothing of theirs has happened.
//!
//! A purchase is of the same kind, but for the bank that it asks in between: its rows and the changes of
//! carts are one transaction ([`store::Journal::append_with`], [`carts::Buyer::bought`]). A journal and a
//! buyer go together: both are of one memory, and what was built anew has others.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock};
use serde::Serialize;

use super::ops::{self, Answer, Code, CustomerOp, Line, LoggedIn, Refusal};
use crate::bank::{Gateway, ledger};
use crate::identity::{Cost, PasswordError, Passwords, SessionKey};
use crate::model::number::EXACT_MAX;
use crate::model::{Clock, FeeRate, Millis, Token};
use crate::net::threads;
use crate::storage::backup::STRETCHES;
use crate::storage::{Store, StoreError, Ticket};

mod accounts;
pub mod carts;
pub mod people;
pub mod purchases;
mod sales;
pub mod store;
#[cfg(test)]
mod tests;

use accounts::Accounts;
use carts::Once;
use people::People;
use purchases::{Purchases, Waiting};
use store::Journal;

/// The customer database's file in the data dir.
pub const FILE: &str = "customer.db";

/// What makes an empty file the customer database's, one step a schema version.
pub const MIGRATIONS: &[&str] =
    &[ledger::MIGRATION, store::MIGRATION, sales::MIGRATION, store::MIGRATION_SKIPPED, store::MIGRATION_KEYS];

/// How long a stretch of users' ids is, which begin anew after a loss: past whatever was given out before.
const STRETCH: u64 = 1 << 32;
const _: () = assert!(STRETCH * (STRETCHES + 1) <= EXACT_MAX);
/// Between two looks for sessions whose time is up.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two times that last uses are written down.
const FLUSH_EVERY: Duration = Duration::from_secs(3);

/// What an operation comes to, and the newest change that this is built on.
pub type Done<T> = (Answer<T>, Ticket);

/// What the operator chose.
#[derive(Debug, Clone)]
pub struct Config {
    /// After so long without a request a session ends.
    pub session_timeout: Duration,
    /// Of one password hash.
    pub password_cost: Cost,
    /// What the house takes of a sale.
    pub fee: FeeRate,
    /// The process's clock.
    pub clock: Clock,
    /// The stretch at which the ids of users begin: 0 unless some may have been given out that this file does not
    /// know (it is that of a backup, or a loss was accepted).
    pub first_stretch: u64,
}

impl Default for Config {
    /// The defaults of SPEC.md, with a clock that starts now.
    fn default() -> Config {
        Config {
            session_timeout: Duration::from_secs(300),
            password_cost: Cost::default(),
            fee: FeeRate::default(),
            clock: Clock::start(),
            first_stretch: 0,
        }
    }
}

/// Why a customer database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its file could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Passwords cannot be hashed at the cost that was asked for.
    #[error(transparent)]
    Password(#[from] PasswordError),
    /// The system gave no thread.
    #[error("no thread for the customer database: {0}")]
    Thread(#[from] io::Error),
}

/// A customer database that runs. Dropping it closes it; the store stays open for whoever gave it.
pub struct CustomerDb {
    shared: Arc<Shared>,
    /// The one that ends sessions, and the one that asks the bank again.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    config: Config,
    store: Arc<Store>,
    gateway: Arc<dyn Gateway>,
    accounts: Accounts,
    waiting: Waiting,
    /// Replaced as a whole when the disk holds less than it.
    memory: RwLock<Arc<Memory>>,
    is_closed: Mutex<bool>,
    closing: Condvar,
}

/// Everything that is held in memory, and the chain of its changes.
struct Memory {
    journal: Journal,
    people: People,
    purchases: Purchases,
}

impl CustomerDb {
    /// Takes up what the file holds (opened with [`MIGRATIONS`]), asks the bank again for what it had not
    /// answered, and starts the threads that end sessions and go on asking.
    ///
    /// # Errors
    /// The file cannot be read, or the system gives no thread.
    pub fn open(store: Arc<Store>, gateway: Arc<dyn Gateway>, config: Config) -> Result<CustomerDb, OpenError> {
        let beyond = STRETCH.saturating_mul(config.first_stretch);
        store.write(move |tx| store::skip_user_ids(tx, beyond))?;
        store.write(store::fill_in_keys)?;
        let passwords = Passwords::sharing(config.password_cost)?;
        let accounts = Accounts::new(Arc::clone(&store), config.clock, passwords);
        let memory = RwLock::new(Arc::new(Memory::load(&store, &config)?));
        let (is_closed, closing, waiting) = (Mutex::new(false), Condvar::new(), Waiting::default());
        let shared = Arc::new(Shared { config, store, gateway, accounts, waiting, memory, is_closed, closing });
        // A charge that was interrupted is done before anybody can ask for it.
        shared.tend_purchases();
        let db = CustomerDb { shared: Arc::clone(&shared), threads: Mutex::default() };
        let sessions = threads::spawn("shop-sessions", {
            let shared = Arc::clone(&shared);
            move || shared.keep_time()
        })?;
        db.threads.lock().push(sessions);
        let bank = threads::spawn("shop-bank", move || shared.keep_asking())?;
        db.threads.lock().push(bank);
        Ok(db)
    }

    /// Does what a frontend asks, and answers once that is on disk. The answer is JSON, of the type that
    /// [`CustomerOp`] names.
    ///
    /// # Errors
    /// The operation's refusals; UNAVAILABLE when it could not be stored: nothing has changed then.
    pub fn handle(&self, op: CustomerOp) -> Answer<String> {
        self.shared.handle(op)
    }

    /// Ends sessions whose time is up; writes down last uses if `flush` says so. The database's own thread
    /// does this every second or oftener.
    pub fn tick(&self, flush: bool) {
        self.shared.tick(flush);
    }

    /// Its file.
    pub fn store(&self) -> &Arc<Store> {
        &self.shared.store
    }

    /// How many sessions are open, and how many buyers are held in memory.
    pub fn sizes(&self) -> (usize, usize) {
        self.shared.memory().people.sizes()
    }

    /// How many purchases are under way.
    pub fn purchases_under_way(&self) -> usize {
        self.shared.memory().purchases.under_way()
    }

    /// Ends the thread, writes down last uses and waits until everything is on disk. Repeating it does
    /// nothing more.
    pub fn close(&self) {
        *self.shared.is_closed.lock() = true;
        self.shared.closing.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock());
        if threads.is_empty() {
            return;
        }
        for thread in threads {
            // A panic of it was logged there.
            let _ = thread.join();
        }
        self.shared.tick(true);
        self.shared.store.sync_all();
    }
}

impl Drop for CustomerDb {
    fn drop(&mut self) {
        self.close();
    }
}

impl Memory {
    fn load(store: &Arc<Store>, config: &Config) -> Result<Memory, StoreError> {
        let journal = Journal::begin(Arc::clone(store));
        let (snapshot, under_way) = store.read(|reader| {
            Ok::<_, StoreError>((store::load(reader, config.session_timeout)?, sales::under_way(reader)?))
        })?;
        let now = config.clock.now();
        let people = People::load(&journal, config.session_timeout, snapshot, now);
        let purchases = Purchases::load(&journal, &people, under_way, config.fee, config.clock)?;
        Ok(Memory { journal, people, purchases })
    }

    /// An operation on a cart: whose session, and which cart.
    fn cart<T>(
        &self,
        now: Millis,
        sid: &str,
        work: impl FnOnce(&carts::Buyer, &Journal, &SessionKey) -> Done<T>,
    ) -> Done<T> {
        match self.people.buyers_session(now, sid) {
            Ok((session, buyer)) => work(&buyer, &self.journal, &session.key),
            Err((refusal, ticket)) => (Err(refusal), ticket),
        }
    }
}

impl Shared {
    fn handle(&self, op: CustomerOp) -> Answer<String> {
        let (memory, now) = (self.memory(), self.config.clock.now());
        let (people, journal) = (&memory.people, &memory.journal);
        match op {
            CustomerOp::Create { request, role, username, password, name, source } => {
                json(&self.accounts.create(request, role, username, (&password, &source), name)?)
            }
            CustomerOp::Login { role, username, password, source } => {
                let account = self.accounts.prove(role, &username, (&password, &source))?;
                let logged_in = LoggedIn { sid: Token::random().reveal().to_owned(), user_id: account.user_id };
                // The password took its time.
                let (memory, now) = (self.memory(), self.config.clock.now());
                let key = SessionKey::of(&logged_in.sid);
                let opened = memory.people.open(&memory.journal, now, role, account, key);
                let (answer, ticket) = opened.map_err(|error| unavailable(&error))?;
                self.answer(&memory, (answer.map(|()| logged_in), ticket))
            }
            CustomerOp::Logout { role, sid } => self.answer(&memory, people.end(journal, now, role, &sid)),
            CustomerOp::Validate { sid } => {
                let shown = people.look(now, &sid).map(|session| {
                    let (user, role) = (session.who.account.username.clone(), session.who.role());
                    ops::Session { user, role }
                });
                self.answer(&memory, settled(shown))
            }
            CustomerOp::Touch { role, sid } => {
                let account = people.session(now, role, &sid).map(|session| Arc::clone(&session.who.account));
                match account {
                    Ok(account) => json(&*account),
                    Err(refused) => self.answer::<()>(&memory, settled(Err(refused))),
                }
            }
            CustomerOp::FindUser { role, username, user_id } => {
                json(&self.accounts.find(role, username.as_deref(), user_id)?)
            }
            CustomerOp::AddToCart { request, sid, users, item_id, quantity, at_most } => {
                let (once, line) = (Once { request: &request, now }, Line { item_id, quantity });
                let add = |buyer: &carts::Buyer, journal: &Journal, key: &SessionKey| {
                    buyer.add(journal, (key, users), &once, &line, at_most)
                };
                self.answer(&memory, memory.cart(now, &sid, add))
            }
            CustomerOp::RemoveFromCart { request, sid, users, item_id, quantity } => {
                let once = Once { request: &request, now };
                let remove = |buyer: &carts::Buyer, journal: &Journal, key: &SessionKey| {
                    buyer.remove(journal, (key, users), &once, &item_id, quantity)
                };
                self.answer(&memory, memory.cart(now, &sid, remove))
            }
            CustomerOp::SaveCart { sid, users } => {
                self.answer(&memory, memory.cart(now, &sid, |buyer, journal, key| buyer.save(journal, (key, users))))
            }
            CustomerOp::ClearCart { sid, users } => {
                self.answer(&memory, memory.cart(now, &sid, |buyer, journal, key| buyer.clear(journal, (key, users))))
            }
            CustomerOp::ShowCart { sid, users } => {
                self.answer(&memory, memory.cart(now, &sid, |buyer, journal, key| buyer.show(journal, (key, users))))
            }
            CustomerOp::Begin { .. }
            | CustomerOp::Authorise { .. }
            | CustomerOp::Complete { .. }
            | CustomerOp::Undo { .. }
            | CustomerOp::Closed { .. }
            | CustomerOp::Renew { .. }
            | CustomerOp::TakeOver
            | CustomerOp::Purchases { .. }
            | CustomerOp::Orders { .. }
            | CustomerOp::MarkShipped { .. } => self.purchase(op),
        }
    }

    fn memory(&self) -> Arc<Memory> {
        Arc::clone(&self.memory.read())
    }

    /// Answers once what the answer is built on is on disk.
    fn answer<T: Serialize>(&self, memory: &Arc<Memory>, (answer, ticket): Done<T>) -> Answer<String> {
        self.wait(memory, &ticket).map_err(|error| unavailable(&error))?;
        json(&answer?)
    }

    /// Waits for a change. When it could not be stored, memory is built anew before this returns.
    fn wait(&self, memory: &Arc<Memory>, ticket: &Ticket) -> Result<(), StoreError> {
        ticket.wait().inspect_err(|_error| self.rebuild(memory))
    }

    /// The disk holds less than memory: memory is built anew from it, before the next operation.
    fn rebuild(&self, failed: &Arc<Memory>) {
        // Held while the store is read, on purpose: nobody may look at the memory that is wrong.
        let mut memory = self.memory.write();
        if !Arc::ptr_eq(&memory, failed) {
            return;
        }
        match Memory::load(&self.store, &self.config) {
            Ok(rebuilt) => {
                *memory = Arc::new(rebuilt);
                self.waiting.tell_all();
                log::warn!("customer database: memory was built anew from the disk");
            }
            // The old one stays: its changes are refused, so every operation that makes one is answered
            // UNAVAILABLE and tries this again.
            Err(error) => log::error!("customer database: the store cannot be read: {error}"),
        }
    }

    /// The thread that ends sessions.
    fn keep_time(&self) {
        let look_every = LOOK_EVERY.min(self.config.session_timeout / 4).max(Duration::from_millis(10));
        let mut flushed_at = self.config.clock.now();
        let mut is_closed = self.is_closed.lock();
        while !*is_closed {
            if !self.closing.wait_for(&mut is_closed, look_every).timed_out() {
                continue;
            }
            parking_lot::MutexGuard::unlocked(&mut is_closed, || {
                let now = self.config.clock.now();
                let flush = flushed_at.until(now) >= FLUSH_EVERY;
                self.tick(flush);
                if flush {
                    flushed_at = now;
                }
            });
        }
    }

    /// The thread that asks the bank again.
    fn keep_asking(&self) {
        let mut is_closed = self.is_closed.lock();
        while !*is_closed {
            if self.closing.wait_for(&mut is_closed, LOOK_EVERY).timed_out() {
                parking_lot::MutexGuard::unlocked(&mut is_closed, || self.tend_purchases());
            }
        }
    }

    fn tick(&self, flush: bool) {
        let (memory, now) = (self.memory(), self.config.clock.now());
        loop {
            let (over, ticket) = memory.people.expire(&memory.journal, now);
            if let Err(error) = self.wait(&memory, &ticket) {
                log::error!("customer database: ends of sessions could not be stored: {error}");
                return;
            }
            if over == 0 {
                break;
            }
            log::debug!("customer database: the time of {over} sessions was up");
        }
        if flush && let Err(error) = memory.people.flush(&memory.journal, now) {
            log::warn!("customer database: last uses of sessions could not be stored: {error}");
        }
    }
}

/// What was found or refused, where finding depends on nothing that is not on disk.
fn settled<T>(found: Result<T, (Refusal, Ticket)>) -> Done<T> {
    match found {
        Ok(found) => (Ok(found), Ticket::committed()),
        Err((refusal, ticket)) => (Err(refusal), ticket),
    }
}

fn json<T: Serialize>(answer: &T) -> Answer<String> {
    serde_json::to_string(answer).map_err(|error| {
        log::error!("customer database: an answer could not be written: {error}");
        Refusal::new(Code::Unavailable, "the answer could not be written")
    })
}

/// There is no such session (any more).
fn session_expired() -> Refusal {
    Refusal::new(Code::SessionExpired, "session_id: this session is unknown or has ended; log in again")
}

/// Nothing has changed: a person may try again.
fn unavailable(error: &StoreError) -> Refusal {
    log::error!("customer database: {error}");
    Refusal::new(Code::Unavailable, "the customer database could not store or read it: try again")
}

impl fmt::Debug for CustomerDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CustomerDb").field("store", &self.shared.store).finish_non_exhaustive()
    }
}
