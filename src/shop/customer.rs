//! The customer database: accounts, sessions, carts, purchases (docs/spec/shop.md).
//!
//! | file | holds |
//! |---|---|
//! | `core.rs` | everything that is held in memory, as a value: sessions, carts, purchases under way |
//! | `signed_in.rs`, `carts.rs`, `purchases.rs` | the parts of the core |
//! | `accounts.rs` | who may sign in: on disk, asked for when needed |
//! | `purchasing.rs` | the driver of purchases: begins that wait, and the bank |
//! | `store.rs`, `sales.rs` | the rows of all of it; of purchases |
//!
//! An operation works on the core under its lock, which hands its changes to the store's writer; the answer leaves once
//! the newest change that it is built on is on disk. So a Touch or a ShowCart is a look into memory. When a transaction
//! fails, memory is loaded anew before the next operation, and those that waited for it get UNAVAILABLE: nothing of
//! theirs has happened ([`Durable`]).

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use serde::Serialize;

use super::ops::{self, Account, Answer, Code, CustomerOp, Line, LoggedIn, Refusal, Role};
use crate::bank::{Gateway, ledger};
use crate::identity::{Cost, PasswordError, Passwords, SessionKey};
use crate::model::number::EXACT_MAX;
use crate::model::{Clock, FeeRate, Millis, Token};
use crate::net::threads;
use crate::storage::backup::STRETCHES;
use crate::storage::{CommitHandle, Durable, Store, StoreError};

mod accounts;
pub mod carts;
pub mod core;
pub mod purchases;
mod purchasing;
pub mod sales;
pub mod signed_in;
pub mod store;
#[cfg(test)]
mod tests;

use accounts::Accounts;
use carts::Answered;
use core::{CartRequest, CustomerCore, Opening};
use purchasing::BeginQueue;
use signed_in::{Refused, SavedCart};
use store::StoreJournal;

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

/// The core behind its lock. Looking at it and changing it is memory work.
type Memory = Mutex<CustomerCore<StoreJournal>>;

struct Shared {
    config: Config,
    store: Arc<Store>,
    gateway: Arc<dyn Gateway>,
    accounts: Accounts,
    begins: BeginQueue,
    memory: Durable<Memory>,
    is_closed: Mutex<bool>,
    closing: Condvar,
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
        let memory = load_memory(Arc::clone(&store), &config)?;
        let (is_closed, closing, begins) = (Mutex::new(false), Condvar::new(), BeginQueue::default());
        let shared = Arc::new(Shared { config, store, gateway, accounts, begins, memory, is_closed, closing });
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
        self.shared.memory.current().lock().sizes()
    }

    /// How many purchases are under way.
    pub fn purchases_under_way(&self) -> usize {
        self.shared.memory.current().lock().purchases().count()
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

fn load_memory(store: Arc<Store>, config: &Config) -> Result<Durable<Memory>, StoreError> {
    let Config { session_timeout, fee, clock, .. } = *config;
    Durable::open("customer database", store, move |appender, _before| {
        let snapshot = appender.store().read(|reader| store::load(reader, session_timeout))?;
        let journal = StoreJournal::new(appender, clock);
        Ok(Mutex::new(CustomerCore::load(journal, session_timeout, fee, snapshot, clock.now())))
    })
}

impl Shared {
    fn handle(&self, op: CustomerOp) -> Answer<String> {
        match op {
            CustomerOp::Create { request, role, username, password, name, source } => {
                json(&self.accounts.create(request, role, username, (&password, &source), name)?)
            }
            CustomerOp::Login { role, username, password, source } => {
                let account = self.accounts.prove(role, &username, (&password, &source))?;
                json(&self.open_session(role, account)?)
            }
            CustomerOp::Logout { role, sid } => self.answer(|core, now| core.end_session(now, role, &sid)),
            CustomerOp::Validate { sid } => self.look(|core, now| {
                let owner = core.look(now, &sid)?;
                Ok(ops::Session { user: owner.account.username.clone(), role: owner.role })
            }),
            CustomerOp::Touch { role, sid } => self.look(|core, now| core.use_session(now, role, &sid)),
            CustomerOp::FindUser { role, username, user_id } => {
                json(&self.accounts.find(role, username.as_deref(), user_id)?)
            }
            CustomerOp::AddToCart { request, sid, users, item_id, quantity, at_most } => {
                let (cart, line) = (CartRequest { sid: &sid, users }, Line { item_id, quantity });
                self.answer(|core, now| core.add_to_cart(now, cart, &request, &line, at_most))
            }
            CustomerOp::RemoveFromCart { request, sid, users, item_id, quantity } => {
                let cart = CartRequest { sid: &sid, users };
                self.answer(|core, now| core.remove_from_cart(now, cart, &request, &item_id, quantity))
            }
            CustomerOp::SaveCart { sid, users } => {
                self.answer(|core, now| core.save_cart(now, CartRequest { sid: &sid, users }))
            }
            CustomerOp::ClearCart { sid, users } => {
                self.answer(|core, now| core.clear_cart(now, CartRequest { sid: &sid, users }))
            }
            CustomerOp::ShowCart { sid, users } => {
                self.answer(|core, now| core.show_cart(now, CartRequest { sid: &sid, users }))
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

    /// Opens a session of a user whose password was right.
    fn open_session(&self, role: Role, account: Account) -> Answer<LoggedIn> {
        let logged_in = LoggedIn { sid: Token::random().reveal().to_owned(), user_id: account.user_id };
        let (key, user_id) = (SessionKey::of(&logged_in.sid), account.user_id);
        let mut saved = None;
        loop {
            let memory = self.memory.current();
            let now = self.config.clock.now();
            let opening = memory.lock().open_session(now, role, account.clone(), key, saved.take());
            match opening {
                Opening::Decided((answer, newest)) => {
                    self.wait_committed(&memory, &newest)?;
                    return answer.map(|()| logged_in);
                }
                Opening::ReadSavedCart { evictions } => {
                    let lines = self.store.read(|reader| store::saved_of(reader, user_id));
                    let lines = lines.map_err(|error: StoreError| unavailable(&error))?.into_iter().collect();
                    saved = Some(SavedCart { lines, evictions });
                }
            }
        }
    }

    /// Does something to the core, and answers once what the answer is built on is on disk.
    fn answer<T: Serialize>(
        &self,
        work: impl FnOnce(&mut CustomerCore<StoreJournal>, Millis) -> Answered<T, CommitHandle>,
    ) -> Answer<String> {
        let (memory, now) = (self.memory.current(), self.config.clock.now());
        let (answer, newest) = work(&mut memory.lock(), now);
        self.wait_committed(&memory, &newest)?;
        json(&answer?)
    }

    /// Looks something up in the core. What is found depends on nothing that is not on disk; a refusal may.
    fn look<T: Serialize>(
        &self,
        work: impl FnOnce(&mut CustomerCore<StoreJournal>, Millis) -> Result<T, Refused<CommitHandle>>,
    ) -> Answer<String> {
        self.answer(|core, now| match work(core, now) {
            Ok(found) => (Ok(found), CommitHandle::committed()),
            Err((refusal, newest)) => (Err(refusal), newest),
        })
    }

    /// Waits for a change of this memory. When it could not be stored, memory has been loaded anew when this returns.
    fn wait_committed(&self, memory: &Arc<Memory>, newest: &CommitHandle) -> Answer<()> {
        newest.wait().map_err(|error| {
            if self.memory.reload(memory).is_some() {
                self.begins.notify_all();
            }
            unavailable(&error)
        })
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
        let (memory, now) = (self.memory.current(), self.config.clock.now());
        loop {
            let (over, newest) = memory.lock().expire(now);
            if self.wait_committed(&memory, &newest).is_err() {
                log::error!("customer database: ends of sessions could not be stored");
                return;
            }
            if over == 0 {
                break;
            }
            log::debug!("customer database: the time of {over} sessions was up");
        }
        if flush && let Err(error) = self.flush(&memory, now) {
            log::warn!("customer database: last uses of sessions could not be stored: {error}");
        }
    }

    /// Writes down which sessions were used since the last time. Those that ended meanwhile have no row any more, and
    /// get none.
    ///
    /// # Errors
    /// The store's; then they are written the next time.
    fn flush(&self, memory: &Arc<Memory>, now: Millis) -> Result<(), StoreError> {
        const AT_ONCE: usize = 1_000;
        let uses = memory.lock().unsaved_uses();
        let chunks = uses.chunks(AT_ONCE).count();
        for (n, uses) in uses.chunks(AT_ONCE).enumerate() {
            let rows = uses.to_vec();
            self.store.write(move |tx| {
                store::write_uses(tx, &rows)?;
                // Of all or of none: who was not used since may be over by then.
                if n + 1 == chunks { store::write_flushed(tx, now) } else { Ok(()) }
            })?;
            memory.lock().saved_uses(uses);
        }
        Ok(())
    }
}

fn json<T: Serialize>(answer: &T) -> Answer<String> {
    serde_json::to_string(answer).map_err(|error| {
        log::error!("customer database: an answer could not be written: {error}");
        Refusal::new(Code::Unavailable, "the answer could not be written")
    })
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
