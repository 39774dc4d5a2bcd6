//! The customer database: accounts, sessions, carts, purchases (`docs/spec/shop.md`).
//!
//! An operation works on the core under its lock, and the core passes its changes to the store's writer. The response
//! leaves once the newest change that it depends on is on disk, so that a Touch or a ShowCart only reads memory. When a
//! transaction fails, memory is loaded anew before the next operation, and the operations that waited for it get
//! UNAVAILABLE: none of their changes has happened ([`Durable`]).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;

use super::ops::{Account, ErrorCode, NewSession, Refusal, Role, ShopResult};
use crate::bank::{Gateway, ledger};
use crate::identity::{HashCost, PasswordError, PasswordHasher, SessionKey};
use crate::model::number::EXACT_MAX;
use crate::model::{Clock, FeeRate, Millis, Token, debug_fields};
use crate::net::periodic::PeriodicTask;
use crate::net::shutdown::ShutdownSignal;
use crate::storage::backup::ID_RANGE_MAX;
use crate::storage::{CommitHandle, Durable, Reader, Store, StoreError};

mod accounts;
pub mod active_sessions;
pub mod carts;
pub mod core;
mod operations;
pub mod purchases;
mod purchasing;
pub mod sales;
pub mod store;
#[cfg(test)]
mod tests;

use accounts::Accounts;
use active_sessions::{Refused, SavedCart};
use carts::PendingResult;
use core::{CustomerCore, OpenSessionResult};
pub use operations::{CustomerCall, CustomerOp};
use purchasing::BeginWaiters;
use store::StoreJournal;

pub const MIGRATIONS: &[&str] =
    &[ledger::MIGRATION, store::MIGRATION, sales::MIGRATION, store::MIGRATION_SKIPPED, store::MIGRATION_KEYS];

/// After data loss, user ids continue in a new range, beyond all that were assigned.
const ID_RANGE_SIZE: u64 = 1 << 32;
const _: () = assert!(ID_RANGE_SIZE * (ID_RANGE_MAX + 1) <= EXACT_MAX);
/// The longest pause of the checks for expired sessions, and of the retries of requests to the bank.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How often the times of the sessions' last uses are written.
const FLUSH_INTERVAL: Duration = Duration::from_secs(3);

#[derive(Debug, Clone)]
pub struct CustomerDbConfig {
    /// A session expires after this time without a request.
    pub session_timeout: Duration,
    pub password_cost: HashCost,
    pub fee: FeeRate,
    pub clock: Clock,
    /// 0 unless user ids may have been assigned that this file does not know, because it is from a backup or a loss was
    /// accepted.
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

#[derive(Debug, thiserror::Error)]
pub enum CustomerDbOpenError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Password(#[from] PasswordError),
    #[error("no thread for the customer database: {0}")]
    Thread(#[from] io::Error),
}

/// Dropping it closes it; the store stays open.
pub struct CustomerDb {
    inner: Arc<CustomerDbInner>,
    /// Expire sessions; retry requests to the bank.
    tasks: Mutex<Vec<PeriodicTask>>,
}

type CustomerMemory = Mutex<CustomerCore<StoreJournal>>;

struct CustomerDbInner {
    config: CustomerDbConfig,
    store: Arc<Store>,
    gateway: Arc<dyn Gateway>,
    accounts: Accounts,
    begin_waiters: BeginWaiters,
    memory: Durable<CustomerMemory>,
    closing: ShutdownSignal,
}

impl CustomerDb {
    /// Loads the state from the store (opened with [`MIGRATIONS`]), repeats the requests that the bank had not
    /// answered, and starts the background threads.
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
        let memory = load_memory(Arc::clone(&store), &config)?;
        let (closing, begin_waiters) = (ShutdownSignal::default(), BeginWaiters::default());
        let inner = Arc::new(CustomerDbInner { config, store, gateway, accounts, begin_waiters, memory, closing });
        // Interrupted charges are completed before anyone can ask about them.
        inner.retry_bank_requests();
        let db = CustomerDb { inner: Arc::clone(&inner), tasks: Mutex::default() };
        let look_every = CHECK_INTERVAL.min(inner.config.session_timeout / 4).max(Duration::from_millis(10));
        let mut flushed_at = inner.config.clock.now();
        let sessions = PeriodicTask::start_paced("shop-sessions", look_every, {
            let inner = Arc::clone(&inner);
            move || {
                let now = inner.config.clock.now();
                let flush = flushed_at.until(now) >= FLUSH_INTERVAL;
                inner.tick(flush);
                if flush {
                    flushed_at = now;
                }
                look_every
            }
        })?;
        db.tasks.lock().push(sessions);
        // A bank that answers slowly has a rest between two passes, however long they take.
        let bank = PeriodicTask::start_paced("shop-bank", CHECK_INTERVAL, move || {
            inner.retry_bank_requests();
            CHECK_INTERVAL
        })?;
        db.tasks.lock().push(bank);
        Ok(db)
    }

    /// The JSON of the result (see [`CustomerOp`]), once it is on disk. After UNAVAILABLE nothing has changed.
    pub fn handle(&self, op: CustomerOp) -> ShopResult<String> {
        self.inner.handle(op)
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.inner.store
    }

    /// The numbers of open sessions, and of buyers in memory.
    pub fn session_and_buyer_counts(&self) -> (usize, usize) {
        self.inner.memory.current().lock().sessions.sizes()
    }

    pub fn open_purchase_count(&self) -> usize {
        self.inner.memory.current().lock().purchases.count()
    }

    /// Writes the times of last uses and waits until everything is on disk. Idempotent.
    pub fn close(&self) {
        self.inner.closing.request();
        let tasks = std::mem::take(&mut *self.tasks.lock());
        if tasks.is_empty() {
            return;
        }
        drop(tasks);
        self.inner.tick(true);
        self.inner.store.sync_all();
    }
}

impl Drop for CustomerDb {
    fn drop(&mut self) {
        self.close();
    }
}

fn load_memory(store: Arc<Store>, config: &CustomerDbConfig) -> Result<Durable<CustomerMemory>, StoreError> {
    let CustomerDbConfig { session_timeout, fee, clock, .. } = *config;
    Durable::open("customer database", store, move |appender, _before| {
        let snapshot = appender.store().read(|reader| store::load(reader, session_timeout))?;
        let journal = StoreJournal::new(appender, clock);
        Ok(Mutex::new(CustomerCore::load(journal, session_timeout, fee, snapshot, clock.now())))
    })
}

impl CustomerDbInner {
    /// The user's password was right.
    fn open_session(&self, role: Role, account: Account) -> ShopResult<NewSession> {
        let logged_in = NewSession { sid: Token::random().reveal().to_owned(), user_id: account.user_id };
        let (key, user_id) = (SessionKey::of(&logged_in.sid), account.user_id);
        let mut saved = None;
        // One memory throughout: a cart that was read for it counts in none that was loaded since.
        let memory = self.memory.current();
        loop {
            let now = self.config.clock.now();
            let opening = memory.lock().open_session(now, role, account.clone(), key, saved.take());
            match opening {
                OpenSessionResult::Decided((answer, newest)) => {
                    self.wait_committed(&memory, &newest)?;
                    return answer.map(|()| logged_in);
                }
                OpenSessionResult::ReadSavedCart { evictions } => {
                    let lines = read(&self.store, |reader| store::saved_cart(reader, user_id))?.into_iter().collect();
                    saved = Some(SavedCart { lines, evictions });
                }
            }
        }
    }

    /// The result of `work` on the core, once the commit that it depends on is on disk.
    fn answer<T: Serialize>(
        &self,
        work: impl FnOnce(&mut CustomerCore<StoreJournal>, Millis) -> PendingResult<T, CommitHandle>,
    ) -> ShopResult<String> {
        let (memory, now) = (self.memory.current(), self.config.clock.now());
        let (answer, newest) = work(&mut memory.lock(), now);
        self.wait_committed(&memory, &newest)?;
        to_json(&answer?)
    }

    /// Looks something up. Success depends on no pending commit; a refusal may.
    fn look<T: Serialize>(
        &self,
        work: impl FnOnce(&mut CustomerCore<StoreJournal>, Millis) -> Result<T, Refused<CommitHandle>>,
    ) -> ShopResult<String> {
        self.answer(|core, now| match work(core, now) {
            Ok(found) => (Ok(found), CommitHandle::committed()),
            Err((refusal, newest)) => (Err(refusal), newest),
        })
    }

    /// A change of this memory. If it could not be stored, memory has been loaded anew when this returns.
    fn wait_committed(&self, memory: &Arc<CustomerMemory>, newest: &CommitHandle) -> ShopResult<()> {
        newest.wait().map_err(|error| {
            if self.memory.reload(memory).is_some() {
                self.begin_waiters.notify_all();
            }
            unavailable(&error)
        })
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

    /// Writes which sessions were used since the last time; those that ended meanwhile get no row. What fails is
    /// written the next time.
    fn flush(&self, memory: &Arc<CustomerMemory>, now: Millis) -> Result<(), StoreError> {
        const AT_ONCE: usize = 1_000;
        let uses = memory.lock().sessions.unsaved_uses();
        let chunks = uses.chunks(AT_ONCE).count();
        for (n, uses) in uses.chunks(AT_ONCE).enumerate() {
            let rows = uses.to_vec();
            self.store.write(move |tx| {
                store::write_last_uses(tx, &rows)?;
                // A session that is missing before might look expired at that time.
                if n + 1 == chunks { store::write_flush_time(tx, now) } else { Ok(()) }
            })?;
            memory.lock().sessions.saved_uses(uses);
        }
        Ok(())
    }
}

fn read<T>(store: &Store, read: impl FnOnce(&dyn Reader) -> Result<T, StoreError>) -> ShopResult<T> {
    store.read(read).map_err(|error| unavailable(&error))
}

fn to_json<T: Serialize>(answer: &T) -> ShopResult<String> {
    serde_json::to_string(answer).map_err(|error| {
        log::error!("customer database: an answer could not be written: {error}");
        Refusal::new(ErrorCode::Unavailable, "the answer could not be written")
    })
}

/// Nothing has changed.
fn unavailable(error: &StoreError) -> Refusal {
    log::error!("customer database: {error}");
    Refusal::new(ErrorCode::Unavailable, "the customer database could not store or read it: try again")
}

debug_fields!(CustomerDb, |db| store: db.inner.store);
