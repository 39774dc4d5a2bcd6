//! The product database: items, search, stock that is held for purchases, votes.
//!
//! Each operation is one transaction, or reads one instant; nothing is kept in memory. So what was answered
//! is on disk, and a start needs no recovery. Holds that expire, and what need not be remembered any longer,
//! are seen to by a thread of its own.
//!
//! | file | holds |
//! |---|---|
//! | `store.rs` | the tables: items, sellers, votes, requests that were answered |
//! | `search.rs` | the index and the ranking |
//! | `holds.rs` | the core of a hold over the tables |

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::ops::{Answer, Code, ProductOp, Refusal};
use crate::model::number::EXACT_MAX;
use crate::model::{Clock, Millis};
use crate::net::threads;
use crate::storage::backup::STRETCHES;
use crate::storage::{OpenError, Reader, Store, StoreError, Tx};

mod holds;
mod search;
mod store;
#[cfg(test)]
mod tests;

pub use store::{MIGRATIONS, NewItem};

/// The product database's file in the data dir.
pub const FILE: &str = "product.db";
/// Most items of one page.
pub const PAGE_MAX: u64 = 500;
/// Most items of one [`ProductDb::load`]: some seconds, in which nobody else's change is stored.
pub const LOAD_MAX: usize = 50_000;
/// How long the answer to a request is remembered for its repeat.
const REQUESTS_KEPT: Duration = Duration::from_secs(600);
/// How long a purchase that was released is remembered, so that its hold, coming late, is refused.
const TOMBSTONES_KEPT: Duration = Duration::from_secs(30 * 86_400);
/// How often the thread looks at least: a hold made since may be the next to expire.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Holds that one transaction releases. Each may have many lines.
const EXPIRED_AT_ONCE: u32 = 100;
/// Items that one transaction hides, or shows again. Each has some twenty rows in the index.
const HIDDEN_AT_ONCE: u32 = 500;
/// Rows that one transaction forgets.
const FORGOTTEN_AT_ONCE: u32 = 5_000;
/// How long a stretch of item numbers is, which begin anew after a loss: past whatever was given out before.
const STRETCH: u64 = 1 << 32;
const _: () = assert!(STRETCH * (STRETCHES + 1) <= EXACT_MAX);

/// What the operator chose, and what is known of the data dir.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Stock is held for a purchase so long at most, whatever the purchase asks for.
    pub hold_timeout: Duration,
    /// The stretch at which the numbers of items begin: 0 unless some may have been given out that this file does not
    /// know (it is that of a backup, or a loss was accepted).
    pub first_stretch: u64,
}

/// The product database. Share it in an `Arc`; dropping it closes it.
pub struct ProductDb {
    room: Arc<Room>,
    settings: Settings,
    sweeper: Mutex<Option<JoinHandle<()>>>,
}

struct Room {
    store: Store,
    clock: Clock,
    is_closing: Mutex<bool>,
    closing: Condvar,
}

impl ProductDb {
    /// Opens the file in the data dir, or creates it, and begins to release what expires.
    ///
    /// # Errors
    /// Those of [`Store::open`], or the system gives no thread.
    pub fn open(data_dir: &Path, settings: Settings) -> Result<ProductDb, OpenError> {
        let db = ProductDb::without_sweeper(data_dir, settings)?;
        let sweeper = threads::spawn("product-holds", {
            let room = Arc::clone(&db.room);
            move || room.sweep_until_closed()
        });
        let sweeper = sweeper
            .map_err(|error: io::Error| OpenError::Other { path: data_dir.join(FILE), detail: error.to_string() })?;
        *db.sweeper.lock() = Some(sweeper);
        Ok(db)
    }

    /// As [`ProductDb::open`], but what expires waits for whoever calls [`Room::sweep`]: for tests whose time is
    /// their own.
    fn without_sweeper(data_dir: &Path, settings: Settings) -> Result<ProductDb, OpenError> {
        let path = data_dir.join(FILE);
        let store = Store::open(&path, MIGRATIONS)?;
        store
            .write(store::fold_anew)
            .map_err(|error: StoreError| OpenError::Other { path: path.clone(), detail: error.to_string() })?;
        let beyond = STRETCH.saturating_mul(settings.first_stretch);
        store
            .write(move |tx| store::skip_numbers(tx, beyond))
            .map_err(|error: StoreError| OpenError::Other { path: path.clone(), detail: error.to_string() })?;
        let room =
            Arc::new(Room { store, clock: Clock::start(), is_closing: Mutex::new(false), closing: Condvar::new() });
        // Where a start came in the middle of it.
        let finish = || room.store.read(store::hidden_sellers)?.into_iter().try_for_each(|id| room.hide_items_of(id));
        finish().map_err(|error: StoreError| OpenError::Other { path, detail: error.to_string() })?;
        Ok(ProductDb { room, settings, sweeper: Mutex::new(None) })
    }

    /// Does what a frontend asks; answers with the JSON of what [`ProductOp`] says, once it is on disk.
    ///
    /// # Errors
    /// The refusal for whoever asked: UNAVAILABLE and BUSY when the disk does not take it, else the
    /// operation's own.
    pub fn handle(&self, op: ProductOp) -> Answer<String> {
        self.handle_at(self.room.clock.now(), op)
    }

    fn handle_at(&self, now: Millis, op: ProductOp) -> Answer<String> {
        match op {
            ProductOp::Search { category, keywords, offset, limit } => {
                let keywords = keywords.iter().map(|keyword| search::fold(keyword)).collect();
                let ranked_max = search::RANKED_MAX;
                self.search(&search::Wanted { category, keywords, offset, limit: limit.min(PAGE_MAX), ranked_max })
            }
            ProductOp::GetItem { item_id } => self.read(|reader| store::show(reader, &item_id)),
            ProductOp::Register {
                request,
                seller_id,
                seller,
                item_name,
                category,
                keywords,
                condition_is_new,
                price,
                quantity,
            } => {
                let item =
                    NewItem { seller_id, seller, item_name, category, keywords, condition_is_new, price, quantity };
                self.write(move |tx| store::register(tx, now, &request, item))
            }
            ProductOp::ChangePrice { seller_id, item_id, price } => {
                self.write(move |tx| with_json(store::change_price(tx, seller_id, &item_id, price)?))
            }
            ProductOp::UpdateUnits { request, seller_id, item_id, delta } => {
                self.write(move |tx| store::update_units(tx, now, &request, seller_id, &item_id, delta))
            }
            ProductOp::ItemsOf { seller_id, offset, limit } => self.read(|reader| {
                let hits = store::items_of(reader, seller_id, offset, limit.min(PAGE_MAX))?;
                store::show_all(reader, &hits).map(Ok)
            }),
            ProductOp::VoteItem { buyer_id, item_id, up } => {
                self.write(move |tx| with_json(store::vote_item(tx, buyer_id, &item_id, up)?))
            }
            ProductOp::VoteSeller { buyer_id, seller_id, up } => {
                self.write(move |tx| with_json(store::vote_seller(tx, buyer_id, seller_id, up)?))
            }
            ProductOp::RatingOf { seller_id } => self.read(|reader| with_json(Ok(store::rating(reader, seller_id)?))),
            ProductOp::Hold { purchase_id, lines, expires_in_ms } => {
                let bound_ms = u64::try_from(self.settings.hold_timeout.as_millis()).unwrap_or(u64::MAX);
                let expires_in_ms = expires_in_ms.min(bound_ms);
                self.write(move |tx| with_json(holds::hold(tx, now, &purchase_id, &lines, expires_in_ms)?))
            }
            ProductOp::Sell { purchase_id } => self.write(move |tx| with_json(Ok(holds::sell(tx, now, &purchase_id)?))),
            ProductOp::Release { purchase_id } => {
                self.write(move |tx| with_json(Ok(holds::release(tx, now, &purchase_id)?)))
            }
            ProductOp::HoldState { purchase_id } => {
                self.read(|reader| with_json(Ok(holds::state(reader, now, &purchase_id)?)))
            }
        }
    }

    fn search(&self, wanted: &search::Wanted) -> Answer<String> {
        let keywords = wanted.keywords.len();
        if keywords > search::KEYWORDS_MAX {
            let message = format!("keywords: expected at most {}, not {keywords}", search::KEYWORDS_MAX);
            return Err(Refusal::new(Code::BadRequest, message));
        }
        self.read(|reader| store::show_all(reader, &search::search(reader, wanted)?).map(Ok))
    }

    /// Puts a whole catalogue up for sale, or its next part: all of it or nothing, in one transaction. The
    /// items' form is to be checked by whoever read them. Answers with their ids, in their order.
    ///
    /// The more at once, the less the index costs an item, and the longer others wait; at most [`LOAD_MAX`].
    ///
    /// # Errors
    /// UNAVAILABLE or BUSY when the disk does not take it; then nothing of it is there.
    pub fn load(&self, items: Vec<NewItem>) -> Answer<Vec<String>> {
        if items.len() > LOAD_MAX {
            let message = format!("items: expected at most {LOAD_MAX} at once, not {}", items.len());
            return Err(Refusal::new(Code::BadRequest, message));
        }
        let loaded = Arc::new(Mutex::new(Vec::new()));
        let change = {
            let loaded = Arc::clone(&loaded);
            move |tx: &mut dyn Tx| {
                let first = store::insert(tx, &items)?;
                *loaded.lock() =
                    (first..).zip(&items).map(|(number, item)| format!("{}-{number}", item.category)).collect();
                Ok(())
            }
        };
        // Chained, because that costs no savepoint, which would keep a copy of each page that it touches.
        let ticket = self.room.store.append(self.room.store.chain(), change);
        ticket.wait().map_err(refusal_of)?;
        let loaded = std::mem::take(&mut *loaded.lock());
        Ok(loaded)
    }

    /// How many items are on sale.
    ///
    /// # Errors
    /// The store's.
    pub fn on_sale(&self) -> Result<u64, StoreError> {
        self.room.store.read(|reader| store::in_stock(reader, None))
    }

    /// The operator removes an item: nobody finds, sees or buys it any more. Whether there is such an item; once it
    /// is on disk.
    ///
    /// # Errors
    /// The store's.
    pub fn remove_item(&self, item_id: &str) -> Result<bool, StoreError> {
        let item_id = item_id.to_owned();
        self.room.store.write(move |tx| store::remove_item(tx, &item_id))
    }

    /// The operator has all items of a seller hidden, those to come too, or shown again; once it is on disk.
    ///
    /// # Errors
    /// The store's. What was not done is done at the next start, or when this is said again.
    pub fn hide_seller(&self, seller_id: u64, hides: bool) -> Result<(), StoreError> {
        self.room.store.write(move |tx| store::hide_seller(tx, seller_id, hides))?;
        self.room.hide_items_of(seller_id)
    }

    /// Takes no more changes, ends the thread and closes the file. Repeating it does nothing.
    pub fn close(&self) {
        *self.room.is_closing.lock() = true;
        self.room.closing.notify_all();
        if let Some(sweeper) = self.sweeper.lock().take()
            && sweeper.join().is_err()
        {
            log::error!("the thread that releases holds ended by a panic");
        }
        self.room.store.close();
    }

    fn read(&self, f: impl FnOnce(&dyn Reader) -> Result<Answer<String>, StoreError>) -> Answer<String> {
        self.room.store.read(f).map_err(refusal_of)?
    }

    /// A change that refuses has written nothing.
    fn write(
        &self,
        f: impl FnOnce(&mut dyn Tx) -> Result<Answer<String>, StoreError> + Send + 'static,
    ) -> Answer<String> {
        self.room.store.write(f).map_err(refusal_of)?
    }
}

impl Drop for ProductDb {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for ProductDb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProductDb").field("store", &self.room.store).finish_non_exhaustive()
    }
}

impl Room {
    /// A bounded part of them at a time: others' changes come in between.
    fn hide_items_of(&self, seller_id: u64) -> Result<(), StoreError> {
        while self.store.write(move |tx| store::hide_some_items(tx, seller_id, HIDDEN_AT_ONCE))? {}
        Ok(())
    }

    fn sweep_until_closed(&self) {
        let mut is_closing = self.is_closing.lock();
        while !*is_closing {
            drop(is_closing);
            let pause = self.sweep(self.clock.now()).unwrap_or_else(|error| {
                log::warn!("what was held for too long could not be released: {error}");
                LOOK_EVERY
            });
            is_closing = self.is_closing.lock();
            if !*is_closing && !pause.is_zero() {
                self.closing.wait_for(&mut is_closing, pause);
            }
        }
    }

    /// Releases and forgets what is due, a bounded part of it; answers how long there is nothing to do.
    fn sweep(&self, now: Millis) -> Result<Duration, StoreError> {
        let kept_since = |kept: Duration| Millis(now.0.saturating_sub(kept.as_millis() as u64)); // thirty days fit
        let (requests, tombstones) = (kept_since(REQUESTS_KEPT), kept_since(TOMBSTONES_KEPT));
        // Asked before, so that a shop where nothing happens writes nothing.
        let (next, forget) = self.store.read(|reader| -> Result<_, StoreError> {
            let is_due = |oldest: Option<Millis>, until: Millis| oldest.is_some_and(|at| at <= until);
            let forget = is_due(store::oldest_request(reader)?, requests)
                || is_due(holds::oldest_tombstone(reader)?, tombstones);
            Ok((holds::next_expiry(reader)?, forget))
        })?;
        let expire = next.is_some_and(|at| at <= now);
        if !expire && !forget {
            return Ok(next.map_or(LOOK_EVERY, |at| now.until(at).min(LOOK_EVERY)));
        }
        self.store.write(move |tx| -> Result<(), StoreError> {
            if expire {
                let released = holds::expire(tx, now, EXPIRED_AT_ONCE)?;
                log::info!("{released} purchases held stock for too long: it is back");
            }
            store::forget_requests(tx, requests, FORGOTTEN_AT_ONCE)?;
            holds::forget_released(tx, tombstones, FORGOTTEN_AT_ONCE)?;
            Ok(())
        })?;
        // There may be more of it.
        Ok(Duration::ZERO)
    }
}

fn with_json<T: serde::Serialize>(answer: Answer<T>) -> Result<Answer<String>, StoreError> {
    Ok(match answer {
        Ok(answer) => Ok(store::json(&answer)?),
        Err(refusal) => Err(refusal),
    })
}

/// What a client hears when the store could not do it. What it said in detail is for the log.
fn refusal_of(error: StoreError) -> Refusal {
    if error == StoreError::Busy {
        return Refusal::new(Code::Busy, "too much waits for the product database: try again");
    }
    log::error!("the product database: {error}");
    Refusal::new(Code::Unavailable, "the product database could not store or read it: try again")
}
