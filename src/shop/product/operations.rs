//! The operations of the product database: what frontends ask for, and how it is carried out.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::holds;
use super::item_facts::{NewItem, id_column};
use super::search::{self, SearchQuery};
use super::store::{
    self, ItemRow, SellerCountDeltas, add_to_seller_counts, add_units, change_once, find_item, insert_item,
    unknown_item,
};
use crate::model::{Cents, Millis};
use crate::shop::hold::UNITS_MAX;
use crate::shop::ops::{
    ErrorCode, Feedback, LineItem, PAGE_MAX, Refusal, RegisteredItem, RemainingQuantity, SellerRating, ShopResult,
};
use crate::storage::{Reader, ReaderExt, Store, StoreError, Tx, to_json};

/// Each variant names the type of its result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum ProductOp {
    /// → `ItemPage`
    Search {
        category: Option<u32>,
        /// Distinct and lowercase; at most five.
        keywords: Vec<String>,
        offset: u64,
        limit: u64,
    },
    /// → `Item`
    GetItem { item_id: String },
    /// → [`RegisteredItem`]
    Register { request: String, item: NewItem },
    /// → `()`; FORBIDDEN for another seller's item.
    ChangePrice { seller_id: u64, item_id: String, price: Cents },
    /// → [`RemainingQuantity`]; OUT_OF_STOCK when more units are removed than there are.
    UpdateUnits {
        request: String,
        seller_id: u64,
        item_id: String,
        /// Negative to remove units.
        delta: i64,
    },
    /// → `ItemPage` of a seller, including items without stock, oldest first.
    ItemsOf { seller_id: u64, offset: u64, limit: u64 },
    /// → `()`: a buyer has one vote, which may be changed. It also counts for the item's seller.
    VoteItem { buyer_id: u64, item_id: String, up: bool },
    /// → `()`: a buyer has one vote, which may be changed.
    VoteSeller { buyer_id: u64, seller_id: u64, up: bool },
    /// → [`SellerRating`]; all zeros for an unknown seller.
    RatingOf { seller_id: u64 },
    /// → `Vec<PricedLine>`: takes all lines out of stock or none, until they are sold, released or expire. Idempotent
    /// per purchase. OUT_OF_STOCK or NOT_FOUND names the item; after a release or expiry, FORBIDDEN.
    Hold { purchase_id: String, lines: Vec<LineItem>, expires_in_ms: u64 },
    /// → `HoldState`: what is sold does not expire. Idempotent.
    Sell { purchase_id: String },
    /// → `HoldState` `Released`: held or sold units return to stock. A release that arrives before its hold makes that
    /// hold fail.
    Release { purchase_id: String },
    /// → `HoldState`
    HoldState { purchase_id: String },
}

impl ProductOp {
    /// The JSON of the result, once it is on disk.
    pub(super) fn run(self, store: &Store, now: Millis, hold_timeout: Duration) -> ShopResult<String> {
        match self {
            ProductOp::Search { category, keywords, offset, limit } => {
                let keywords = keywords.iter().map(|keyword| search::fold(keyword)).collect();
                let (limit, ranked_max) = (limit.min(PAGE_MAX), search::RANKED_MAX);
                search_items(store, &SearchQuery { category, keywords, offset, limit, ranked_max })
            }
            ProductOp::GetItem { item_id } => read_json(store, |reader| store::item_json(reader, &item_id)),
            ProductOp::Register { request, item } => {
                write_json(store, move |tx| change_once(tx, now, &request, |tx| register(tx, item)))
            }
            ProductOp::ChangePrice { seller_id, item_id, price } => {
                write(store, move |tx| change_price(tx, seller_id, &item_id, price))
            }
            ProductOp::UpdateUnits { request, seller_id, item_id, delta } => write_json(store, move |tx| {
                change_once(tx, now, &request, |tx| update_units(tx, seller_id, &item_id, delta))
            }),
            ProductOp::ItemsOf { seller_id, offset, limit } => read_json(store, |reader| {
                let hits = seller_items(reader, seller_id, offset, limit.min(PAGE_MAX))?;
                store::page_json(reader, &hits).map(Ok)
            }),
            ProductOp::VoteItem { buyer_id, item_id, up } => {
                write(store, move |tx| vote_item(tx, buyer_id, &item_id, up))
            }
            ProductOp::VoteSeller { buyer_id, seller_id, up } => {
                write(store, move |tx| vote_seller(tx, buyer_id, seller_id, up).map(Ok))
            }
            ProductOp::RatingOf { seller_id } => read(store, |reader| seller_rating(reader, seller_id)),
            ProductOp::Hold { purchase_id, lines, expires_in_ms } => {
                let bound_ms = u64::try_from(hold_timeout.as_millis()).unwrap_or(u64::MAX);
                let expires_in_ms = expires_in_ms.min(bound_ms);
                write(store, move |tx| holds::hold(tx, now, &purchase_id, &lines, expires_in_ms))
            }
            ProductOp::Sell { purchase_id } => write(store, move |tx| holds::sell(tx, now, &purchase_id).map(Ok)),
            ProductOp::Release { purchase_id } => write(store, move |tx| holds::release(tx, now, &purchase_id).map(Ok)),
            ProductOp::HoldState { purchase_id } => read(store, |reader| holds::state(reader, now, &purchase_id)),
        }
    }
}

fn read<T: Serialize>(store: &Store, f: impl FnOnce(&dyn Reader) -> Result<T, StoreError>) -> ShopResult<String> {
    read_json(store, |reader| to_json(&f(reader)?).map(Ok))
}

fn read_json(
    store: &Store,
    f: impl FnOnce(&dyn Reader) -> Result<ShopResult<String>, StoreError>,
) -> ShopResult<String> {
    store.read(f).map_err(refusal_for)?
}

/// An operation that returns a refusal must not have written anything.
fn write<T: Serialize>(
    store: &Store,
    f: impl FnOnce(&mut dyn Tx) -> Result<ShopResult<T>, StoreError> + Send + 'static,
) -> ShopResult<String> {
    write_json(store, |tx| match f(tx)? {
        Ok(answer) => to_json(&answer).map(Ok),
        Err(refusal) => Ok(Err(refusal)),
    })
}

/// The same, of an operation that returns JSON.
fn write_json(
    store: &Store,
    f: impl FnOnce(&mut dyn Tx) -> Result<ShopResult<String>, StoreError> + Send + 'static,
) -> ShopResult<String> {
    store.write(f).map_err(refusal_for)?
}

/// The details go to the log.
pub(super) fn refusal_for(error: StoreError) -> Refusal {
    if error == StoreError::Busy {
        return Refusal::new(ErrorCode::Busy, "too much waits for the product database: try again");
    }
    log::error!("the product database: {error}");
    Refusal::new(ErrorCode::Unavailable, "the product database could not store or read it: try again")
}

fn search_items(store: &Store, query: &SearchQuery) -> ShopResult<String> {
    let keywords = query.keywords.len();
    if keywords > search::KEYWORDS_MAX {
        let message = format!("keywords: expected at most {}, not {keywords}", search::KEYWORDS_MAX);
        return Err(Refusal::new(ErrorCode::BadRequest, message));
    }
    read_json(store, |reader| store::page_json(reader, &search::search(reader, query)?).map(Ok))
}

fn register(tx: &mut dyn Tx, item: NewItem) -> Result<ShopResult<String>, StoreError> {
    let category = item.category;
    let number = insert_item(tx, item)?;
    Ok(Ok(to_json(&RegisteredItem { item_id: format!("{category}-{number}") })?))
}

/// It must be the seller's.
fn find_own_item(
    reader: &(impl Reader + ?Sized),
    seller_id: u64,
    item_id: &str,
) -> Result<ShopResult<ItemRow>, StoreError> {
    Ok(match find_item(reader, item_id)? {
        None => Err(unknown_item(item_id)),
        Some(item) if item.seller_id != id_column(seller_id) => {
            Err(Refusal::new(ErrorCode::Forbidden, format!("item_id: {item_id} is another seller's item")))
        }
        Some(item) => Ok(item),
    })
}

fn change_price(tx: &mut dyn Tx, seller_id: u64, item_id: &str, price: Cents) -> Result<ShopResult<()>, StoreError> {
    let item = match find_own_item(tx, seller_id, item_id)? {
        Ok(item) => item,
        Err(refusal) => return Ok(Err(refusal)),
    };
    tx.execute("UPDATE product_item SET price = $1 WHERE number = $2", &[price.into(), item.number.into()])?;
    if item.quantity > 0 && item.price != price {
        search::remove(tx, search::postings(&item.facts, item.price, item.number))?;
        search::add(tx, search::postings(&item.facts, price, item.number))?;
    }
    Ok(Ok(()))
}

fn update_units(tx: &mut dyn Tx, seller_id: u64, item_id: &str, delta: i64) -> Result<ShopResult<String>, StoreError> {
    let item = match find_own_item(tx, seller_id, item_id)? {
        Ok(item) => item,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let left = item.quantity.saturating_add(delta);
    if left < 0 {
        let (there, taken) = (item.quantity, delta.unsigned_abs());
        let message = format!("quantity: there are {there} units of item {item_id}, {taken} cannot be taken away");
        return Ok(Err(Refusal::new(ErrorCode::OutOfStock, message)));
    }
    if delta > 0 && left > i64::from(UNITS_MAX) {
        let message = format!("quantity: expected at most {UNITS_MAX} units of item {item_id}, not {left}");
        return Ok(Err(Refusal::new(ErrorCode::BadRequest, message)));
    }
    add_units(tx, item.number, delta)?;
    Ok(Ok(to_json(&RemainingQuantity { quantity: left.min(UNITS_MAX.into()) as u32 })?))
}

/// Oldest first.
fn seller_items(
    reader: &dyn Reader,
    seller_id: u64,
    offset: u64,
    limit: u64,
) -> Result<search::SearchHits, StoreError> {
    let seller_id = id_column(seller_id);
    let numbers = reader.all(
        "SELECT number FROM product_item WHERE seller_id = $1 AND hidden = 0 ORDER BY number LIMIT $2 OFFSET $3",
        &[seller_id.into(), id_column(limit).into(), id_column(offset).into()],
        |row| row.int(0),
    )?;
    let total = reader
        .first("SELECT items FROM product_seller WHERE seller_id = $1", &[seller_id.into()], |row| row.uint(0))?;
    Ok(search::SearchHits { numbers, total: total.unwrap_or(0), total_is_at_least: false })
}

fn seller_rating(reader: &dyn Reader, seller_id: u64) -> Result<SellerRating, StoreError> {
    let rating = reader.first(
        "SELECT thumbs_up, thumbs_down, sold FROM product_seller WHERE seller_id = $1",
        &[id_column(seller_id).into()],
        |row| {
            let feedback = Feedback { thumbs_up: row.uint(0)?, thumbs_down: row.uint(1)? };
            Ok(SellerRating { feedback, items_sold: row.uint(2)? })
        },
    )?;
    Ok(rating.unwrap_or_default())
}

fn vote_item(tx: &mut dyn Tx, buyer_id: u64, item_id: &str, up: bool) -> Result<ShopResult<()>, StoreError> {
    let Some(item) = find_item(tx, item_id)? else { return Ok(Err(unknown_item(item_id))) };
    let key = [id_column(buyer_id).into(), item.number.into()];
    let before =
        tx.first("SELECT up FROM product_item_vote WHERE buyer_id = $1 AND number = $2", &key, |row| row.bool(0))?;
    let Some(add) = vote_delta(before, up) else { return Ok(Ok(())) };
    tx.execute(
        "INSERT INTO product_item_vote (buyer_id, number, up) VALUES ($1, $2, $3)
         ON CONFLICT (buyer_id, number) DO UPDATE SET up = excluded.up",
        &[key[0], key[1], up.into()],
    )?;
    tx.execute(
        "UPDATE product_item SET thumbs_up = thumbs_up + $1, thumbs_down = thumbs_down + $2 WHERE number = $3",
        &[add.thumbs_up.into(), add.thumbs_down.into(), item.number.into()],
    )?;
    add_to_seller_counts(tx, item.seller_id, add)?;
    Ok(Ok(()))
}

fn vote_seller(tx: &mut dyn Tx, buyer_id: u64, seller_id: u64, up: bool) -> Result<(), StoreError> {
    let key = [id_column(buyer_id).into(), id_column(seller_id).into()];
    let before =
        tx.first("SELECT up FROM product_seller_vote WHERE buyer_id = $1 AND seller_id = $2", &key, |row| row.bool(0))?;
    let Some(add) = vote_delta(before, up) else { return Ok(()) };
    tx.execute(
        "INSERT INTO product_seller_vote (buyer_id, seller_id, up) VALUES ($1, $2, $3)
         ON CONFLICT (buyer_id, seller_id) DO UPDATE SET up = excluded.up",
        &[key[0], key[1], up.into()],
    )?;
    add_to_seller_counts(tx, id_column(seller_id), add)
}

/// `None` if the buyer has voted the same before.
fn vote_delta(before: Option<bool>, up: bool) -> Option<SellerCountDeltas> {
    let taken_back = |vote: bool| i64::from(before == Some(vote));
    (before != Some(up)).then(|| SellerCountDeltas {
        thumbs_up: i64::from(up) - taken_back(true),
        thumbs_down: i64::from(!up) - taken_back(false),
        ..SellerCountDeltas::default()
    })
}
