//! The product database: items, search, stock that is held for purchases, votes.
//!
//! Each operation is one transaction or one consistent read, and nothing is cached in memory. So a result that was
//! returned is on disk, and a start needs no recovery. A background thread, the sweeper, releases expired holds and
//! purges old rows.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::ops::{HoldState, ShopResult};
use crate::model::number::EXACT_MAX;
use crate::model::{Clock, Millis, debug_fields};
use crate::net::periodic::PeriodicTask;
use crate::storage::backup::ID_RANGE_MAX;
use crate::storage::{OpenError, Store, StoreError};

mod holds;
mod item_facts;
mod operations;
mod search;
mod stock_count;
mod store;
#[cfg(test)]
mod tests;

pub use item_facts::NewItem;
pub use operations::ProductOp;
pub use store::MIGRATIONS;

pub const FILE_NAME: &str = "product.db";
/// How long responses are remembered for retries.
const REQUEST_RETENTION: Duration = Duration::from_secs(600);
/// How long a released purchase is remembered, so that a hold that arrives late is refused.
const TOMBSTONE_RETENTION: Duration = Duration::from_secs(30 * 86_400);
/// Short, because a hold made meanwhile may be the next to expire.
const SWEEP_INTERVAL_MAX: Duration = Duration::from_secs(1);
/// Holds that one transaction releases. Each may have many lines.
const EXPIRE_BATCH: u32 = 100;
/// Items that one transaction hides or shows. Each has some twenty rows in the search index.
const HIDE_BATCH: u32 = 500;
/// Rows of each table that one transaction purges.
const PURGE_BATCH: u32 = 5_000;
/// After data loss, item numbers continue in a new range, beyond all that were assigned.
const ID_RANGE_SIZE: u64 = 1 << 32;
const _: () = assert!(ID_RANGE_SIZE * (ID_RANGE_MAX + 1) <= EXACT_MAX);

#[derive(Debug, Clone, Copy)]
pub struct ProductDbSettings {
    /// No hold lasts longer, whatever the purchase asks for.
    pub hold_timeout: Duration,
    /// 0 unless item numbers may have been assigned that this file does not know, because it is from a backup or a loss
    /// was accepted.
    pub first_id_range: u64,
}

/// Dropping it closes it.
pub struct ProductDb {
    inner: Arc<ProductDbInner>,
    settings: ProductDbSettings,
    sweeper: Mutex<Option<PeriodicTask>>,
}

struct ProductDbInner {
    store: Store,
    clock: Clock,
}

impl ProductDb {
    /// Opens or creates the file and starts the sweeper.
    pub fn open(data_dir: &Path, settings: ProductDbSettings) -> Result<ProductDb, OpenError> {
        let db = ProductDb::without_sweeper(data_dir, settings)?;
        let sweeper = PeriodicTask::start_paced("product-holds", Duration::ZERO, {
            let inner = Arc::clone(&db.inner);
            move || inner.sweep_now()
        });
        let sweeper = sweeper.map_err(|error: io::Error| OpenError::Other {
            path: data_dir.join(FILE_NAME),
            detail: error.to_string(),
        })?;
        *db.sweeper.lock() = Some(sweeper);
        Ok(db)
    }

    /// Tests with simulated time call [`ProductDbInner::sweep`] themselves.
    fn without_sweeper(data_dir: &Path, settings: ProductDbSettings) -> Result<ProductDb, OpenError> {
        let path = data_dir.join(FILE_NAME);
        let store = Store::open(&path, MIGRATIONS)?;
        let skipped_up_to = ID_RANGE_SIZE.saturating_mul(settings.first_id_range);
        let inner = Arc::new(ProductDbInner { store, clock: Clock::start() });
        let prepare = || -> Result<(), StoreError> {
            inner.store.write(store::normalize_index)?;
            inner.store.write(move |tx| store::skip_numbers(tx, skipped_up_to))?;
            // A change of a seller's visibility may have been interrupted.
            inner.store.read(store::hidden_sellers)?.into_iter().try_for_each(|id| inner.apply_seller_visibility(id))
        };
        prepare().map_err(|error| OpenError::Other { path, detail: error.to_string() })?;
        Ok(ProductDb { inner, settings, sweeper: Mutex::new(None) })
    }

    /// The JSON of the result (see [`ProductOp`]), once it is on disk.
    pub fn handle(&self, op: ProductOp) -> ShopResult<String> {
        self.handle_at(self.inner.clock.now(), op)
    }

    fn handle_at(&self, now: Millis, op: ProductOp) -> ShopResult<String> {
        op.run(&self.inner.store, now, self.settings.hold_timeout)
    }

    pub fn items_on_sale(&self) -> Result<u64, StoreError> {
        self.inner.store.read(|reader| store::stock_count(reader, None))
    }

    /// On behalf of the operator, for good: nobody finds, sees or buys the item any more. Whether there is such an
    /// item.
    pub fn remove_item(&self, item_id: &str) -> Result<bool, StoreError> {
        let item_id = item_id.to_owned();
        self.inner.store.write(move |tx| store::remove_item(tx, &item_id))
    }

    /// On behalf of the operator: all present and future items of a seller. If that was stored in part, the next start
    /// or another call completes it.
    pub fn hide_seller(&self, seller_id: u64, is_hidden: bool) -> Result<(), StoreError> {
        self.inner.store.write(move |tx| store::hide_seller(tx, seller_id, is_hidden))?;
        self.inner.apply_seller_visibility(seller_id)
    }

    /// Idempotent.
    pub fn close(&self) {
        drop(self.sweeper.lock().take());
        self.inner.store.close();
    }
}

impl Drop for ProductDb {
    fn drop(&mut self) {
        self.close();
    }
}

debug_fields!(ProductDb, |db| store: db.inner.store);

impl ProductDbInner {
    /// It is applied in batches, so that other changes get their turn.
    fn apply_seller_visibility(&self, seller_id: u64) -> Result<(), StoreError> {
        while self.store.write(move |tx| store::hide_items_batch(tx, seller_id, HIDE_BATCH))? {}
        Ok(())
    }

    fn sweep_now(&self) -> Duration {
        self.sweep(self.clock.now()).unwrap_or_else(|error| {
            log::warn!("what was held for too long could not be released: {error}");
            SWEEP_INTERVAL_MAX
        })
    }

    /// Releases expired holds and purges old rows, one batch of each. Returns how long there is nothing more to do.
    fn sweep(&self, now: Millis) -> Result<Duration, StoreError> {
        let kept_since = |kept: Duration| Millis(now.0.saturating_sub(kept.as_millis() as u64)); // thirty days fit
        let (requests, tombstones) = (kept_since(REQUEST_RETENTION), kept_since(TOMBSTONE_RETENTION));
        // An idle shop writes nothing.
        let (next, forget) = self.store.read(|reader| -> Result<_, StoreError> {
            let is_due = |oldest: Option<Millis>, until: Millis| oldest.is_some_and(|at| at <= until);
            let forget = is_due(store::oldest_request(reader)?, requests)
                || is_due(holds::earliest(reader, HoldState::Released)?, tombstones);
            Ok((holds::earliest(reader, HoldState::Held)?, forget))
        })?;
        let expire = next.is_some_and(|at| at <= now);
        if !expire && !forget {
            return Ok(next.map_or(SWEEP_INTERVAL_MAX, |at| now.until(at).min(SWEEP_INTERVAL_MAX)));
        }
        self.store.write(move |tx| -> Result<(), StoreError> {
            if expire {
                let released = holds::expire(tx, now, EXPIRE_BATCH)?;
                log::info!("{released} purchases held stock for too long: it is back");
            }
            store::purge_requests(tx, requests, PURGE_BATCH)?;
            holds::purge_tombstones(tx, tombstones, PURGE_BATCH)?;
            Ok(())
        })?;
        // There may be more.
        Ok(Duration::ZERO)
    }
}
