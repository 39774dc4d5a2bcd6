//! The product database's tables: every statement that touches items, sellers and votes stands here.
//!
//! What an item is and stays is one JSON text, which is shown as it is; what changes is a column. Nothing
//! is ever deleted from the items: purchases and orders name them.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::search;
use crate::model::{Cents, Millis};
use crate::shop::hold::UNITS_MAX;
use crate::shop::ops::{Answer, Code, Feedback, Found, Quantity, Rating, Refusal, Registered};
use crate::storage::{Query, Reader, Row, StoreError, Tx};

/// What makes an empty file the product database's, one step a schema version. (`WITHOUT ROWID` is
/// SQLite's way to keep a row where its key is.)
pub const MIGRATIONS: &[&str] = &[
    "CREATE TABLE product_number (id INTEGER PRIMARY KEY, next BIGINT NOT NULL);
     INSERT INTO product_number (id, next) VALUES (1, 1);
     CREATE TABLE product_item (number INTEGER PRIMARY KEY, category BIGINT NOT NULL, price BIGINT NOT NULL,
         quantity BIGINT NOT NULL CHECK (quantity >= 0), seller_id BIGINT NOT NULL, thumbs_up BIGINT NOT NULL,
         thumbs_down BIGINT NOT NULL, facts TEXT NOT NULL);
     CREATE INDEX product_item_seller ON product_item (seller_id, number);
     CREATE TABLE product_word (kind BIGINT NOT NULL, term TEXT NOT NULL, price BIGINT NOT NULL,
         number BIGINT NOT NULL, PRIMARY KEY (kind, term, price, number)) WITHOUT ROWID;
     CREATE TABLE product_category_word (category BIGINT NOT NULL, kind BIGINT NOT NULL, term TEXT NOT NULL,
         price BIGINT NOT NULL, number BIGINT NOT NULL,
         PRIMARY KEY (category, kind, term, price, number)) WITHOUT ROWID;
     CREATE TABLE product_count (category BIGINT PRIMARY KEY, in_stock BIGINT NOT NULL) WITHOUT ROWID;
     CREATE TABLE product_seller (seller_id BIGINT PRIMARY KEY, items BIGINT NOT NULL, sold BIGINT NOT NULL,
         thumbs_up BIGINT NOT NULL, thumbs_down BIGINT NOT NULL) WITHOUT ROWID;
     CREATE TABLE product_item_vote (buyer_id BIGINT NOT NULL, number BIGINT NOT NULL, up BIGINT NOT NULL,
         PRIMARY KEY (buyer_id, number)) WITHOUT ROWID;
     CREATE TABLE product_seller_vote (buyer_id BIGINT NOT NULL, seller_id BIGINT NOT NULL, up BIGINT NOT NULL,
         PRIMARY KEY (buyer_id, seller_id)) WITHOUT ROWID;
     CREATE TABLE product_request (request TEXT PRIMARY KEY, at BIGINT NOT NULL, answer TEXT NOT NULL) WITHOUT ROWID;
     CREATE INDEX product_request_at ON product_request (at);
     CREATE TABLE product_hold (purchase_id TEXT PRIMARY KEY, hold BIGINT NOT NULL, at BIGINT NOT NULL,
         lines TEXT NOT NULL) WITHOUT ROWID;
     CREATE INDEX product_hold_at ON product_hold (hold, at);",
    // Whether the index holds words in Unicode's form C: see `fold_anew`.
    "CREATE TABLE product_folded (form TEXT PRIMARY KEY) WITHOUT ROWID;",
    // Why an item is not shown (0: it is), and whose items are not, or are to be again: see `hide` and `hide_seller`.
    "ALTER TABLE product_item ADD COLUMN hidden BIGINT NOT NULL DEFAULT 0;
     CREATE TABLE product_hidden_seller (seller_id BIGINT PRIMARY KEY, hides BIGINT NOT NULL) WITHOUT ROWID;",
];

/// Why an item is not shown: the operator has removed it.
const REMOVED: i64 = 1;
/// The same: the operator has blocked its seller.
const OF_BLOCKED: i64 = 2;

/// Items that [`fold_anew`] reads at a time.
const FOLDED_AT_A_TIME: i64 = 1_000;

/// The row of [`count_in_stock`] that counts all categories.
const ALL_CATEGORIES: i64 = -1;
/// What an item's line in a list takes, about: so that a page is rarely moved while it grows.
const SHOWN_BYTES: usize = 320;

/// An item to be sold, whose form was checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewItem {
    /// Whose it is.
    pub seller_id: u64,
    /// The seller's user name.
    pub seller: String,
    /// 1 to 32 characters.
    pub item_name: String,
    /// 0 to 2147483647.
    pub category: u32,
    /// At most five of at most eight characters.
    pub keywords: Vec<String>,
    /// New rather than used.
    pub condition_is_new: bool,
    /// Of one unit.
    pub price: Cents,
    /// Units.
    pub quantity: u32,
}

/// What an item is and stays, under the names that clients see.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Facts {
    pub item_id: String,
    pub item_name: String,
    pub category: u32,
    pub keywords: Vec<String>,
    pub condition_is_new: bool,
    pub seller_id: u64,
    pub seller: String,
}

impl Facts {
    pub(super) fn read(json: &str) -> Result<Facts, StoreError> {
        serde_json::from_str(json).map_err(|error| StoreError::Invalid(format!("an item's facts: {error}")))
    }
}

/// What is needed of an item to change it.
pub(super) struct Kept {
    pub number: i64,
    pub price: Cents,
    pub quantity: i64,
    pub seller_id: i64,
    pub facts: Facts,
}

/// An answer's JSON.
pub(super) fn json<T: Serialize>(answer: &T) -> Result<String, StoreError> {
    serde_json::to_string(answer).map_err(|error| StoreError::Invalid(format!("an answer: {error}")))
}

/// An id as the tables have it. They count from 1, so that one past the tables' numbers is nobody's.
pub(super) fn id(id: u64) -> i64 {
    i64::try_from(id).unwrap_or(i64::MAX)
}

/// `<category>-<number>`, exactly as it was given out.
pub(super) fn split_id(item_id: &str) -> Option<(i64, i64)> {
    let (category, number) = item_id.split_once('-')?;
    let (category, number): (u32, i64) = (category.parse().ok()?, number.parse().ok()?);
    (format!("{category}-{number}") == item_id).then_some((i64::from(category), number))
}

pub(super) fn unknown_item(item_id: &str) -> Refusal {
    Refusal::new(Code::NotFound, format!("item_id: there is no item {item_id:?}"))
}

/// An item, or nothing if there is none with this id.
pub(super) fn find(reader: &(impl Reader + ?Sized), item_id: &str) -> Result<Option<Kept>, StoreError> {
    let Some((category, number)) = split_id(item_id) else { return Ok(None) };
    reader.first(
        "SELECT price, quantity, seller_id, facts FROM product_item
         WHERE number = $1 AND category = $2 AND hidden = 0",
        &[number.into(), category.into()],
        |row| {
            Ok(Kept {
                number,
                price: row.cents(0)?,
                quantity: row.int(1)?,
                seller_id: row.int(2)?,
                facts: Facts::read(row.text(3)?)?,
            })
        },
    )
}

/// An item of this very seller.
fn find_own(reader: &(impl Reader + ?Sized), seller_id: u64, item_id: &str) -> Result<Answer<Kept>, StoreError> {
    Ok(match find(reader, item_id)? {
        None => Err(unknown_item(item_id)),
        Some(item) if item.seller_id != id(seller_id) => {
            Err(Refusal::new(Code::Forbidden, format!("item_id: {item_id} is another seller's item")))
        }
        Some(item) => Ok(item),
    })
}

/// An item as it is shown.
pub(super) fn show(reader: &(impl Reader + ?Sized), item_id: &str) -> Result<Answer<String>, StoreError> {
    let Some((category, number)) = split_id(item_id) else { return Ok(Err(unknown_item(item_id))) };
    let mut shown = String::with_capacity(SHOWN_BYTES);
    reader.query(
        "SELECT facts, price, quantity, thumbs_up, thumbs_down FROM product_item
         WHERE number = $1 AND category = $2 AND hidden = 0",
        &[number.into(), category.into()],
        &mut |row| show_row(row, &mut shown),
    )?;
    Ok(if shown.is_empty() { Err(unknown_item(item_id)) } else { Ok(shown) })
}

/// A page of items, in this order, as [`Found`].
pub(super) fn show_all(reader: &(impl Reader + ?Sized), hits: &search::Hits) -> Result<String, StoreError> {
    let mut shown = String::with_capacity(64 + hits.numbers.len() * SHOWN_BYTES);
    shown.push_str("{\"items\":[");
    let mut is_first = true;
    // One statement for the whole page: beginning one costs as much as a row. (`CROSS JOIN` keeps the order:
    // SQLite never exchanges its sides.)
    reader.query(
        "SELECT facts, price, quantity, thumbs_up, thumbs_down
         FROM json_each($1) AS wanted CROSS JOIN product_item WHERE product_item.number = wanted.value",
        &[(&json(&hits.numbers)?).into()],
        &mut |row| {
            if !std::mem::take(&mut is_first) {
                shown.push(',');
            }
            show_row(row, &mut shown)
        },
    )?;
    // The rest of it, as the type writes it.
    let empty = json(&Found { items: Vec::new(), total: hits.total, total_is_at_least: hits.total_is_at_least })?;
    shown.push_str(empty.strip_prefix("{\"items\":[").unwrap_or_default());
    Ok(shown)
}

/// Facts, price, quantity and votes as the JSON of an [`Item`](crate::shop::ops::Item). A search shows many, so
/// that nothing is parsed or taken apart for it: the facts are an object already, which goes on.
fn show_row(row: &Row<'_>, shown: &mut String) -> Result<(), StoreError> {
    let facts = row.text(0)?;
    let price = row.cents(1)?.shortest();
    // More may have come back than could be put up for sale at once.
    let quantity = row.uint(2)?.min(UNITS_MAX.into());
    let (up, down) = (row.uint(3)?, row.uint(4)?);
    shown.push_str(facts.strip_suffix('}').unwrap_or(facts));
    write!(
        shown,
        ",\"price\":{price},\"quantity\":{quantity},\"feedback\":{{\"thumbs_up\":{up},\"thumbs_down\":{down}}}}}"
    )
    .map_err(|_| StoreError::Invalid("an item cannot be shown".to_owned()))
}

/// The answer that this request has had.
fn answered(tx: &dyn Tx, request: &str) -> Result<Option<String>, StoreError> {
    tx.first("SELECT answer FROM product_request WHERE request = $1", &[request.into()], |row| {
        row.text(0).map(str::to_owned)
    })
}

fn remember(tx: &mut dyn Tx, now: Millis, request: &str, answer: &str) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO product_request (request, at, answer) VALUES ($1, $2, $3)",
        &[request.into(), now.into(), answer.into()],
    )?;
    Ok(())
}

/// Forgets answers given up to that instant, so many at most; tells how many it forgot.
pub(super) fn forget_requests(tx: &mut dyn Tx, until: Millis, most: u32) -> Result<u64, StoreError> {
    tx.execute(
        "DELETE FROM product_request WHERE request IN
             (SELECT request FROM product_request WHERE at <= $1 ORDER BY at LIMIT $2)",
        &[until.into(), most.into()],
    )
}

/// When the oldest answer that is remembered was given.
pub(super) fn oldest_request(reader: &dyn Reader) -> Result<Option<Millis>, StoreError> {
    reader.first("SELECT at FROM product_request ORDER BY at LIMIT 1", &[], |row| row.millis(0))
}

/// The first of `count` numbers that no item has had.
fn take_numbers(tx: &mut dyn Tx, count: i64) -> Result<i64, StoreError> {
    let next =
        tx.first("UPDATE product_number SET next = next + $1 WHERE id = 1 RETURNING next", &[count.into()], |row| {
            row.int(0)
        })?;
    next.map(|next| next - count).ok_or_else(|| StoreError::Invalid("the sequence of items is missing".to_owned()))
}

/// Once in a file's life: the words of items of before are put into the index in the form in which they are
/// looked for. What is of ASCII alone (which its length tells) is in it.
pub(super) fn fold_anew(tx: &mut dyn Tx) -> Result<(), StoreError> {
    if tx.first("SELECT form FROM product_folded WHERE form = 'nfc'", &[], |_| Ok(()))?.is_some() {
        return Ok(());
    }
    let mut last = 0;
    loop {
        let items = tx.all(
            "SELECT number, price, facts FROM product_item
             WHERE number > $1 AND quantity > 0 AND hidden = 0 AND length(CAST(facts AS BLOB)) <> length(facts)
             ORDER BY number LIMIT $2",
            &[last.into(), FOLDED_AT_A_TIME.into()],
            |row| Ok((row.int(0)?, row.cents(1)?, Facts::read(row.text(2)?)?)),
        )?;
        let Some((number, ..)) = items.last() else { break };
        last = *number;
        for (number, price, facts) in &items {
            search::post_anew(tx, facts, *price, *number)?;
        }
    }
    tx.execute("INSERT INTO product_folded (form) VALUES ('nfc')", &[]).map(drop)
}

/// Leaves the numbers out up to this one: they may have been given out by a file that is lost, or since the backup
/// that this one is from.
pub(super) fn skip_numbers(tx: &mut dyn Tx, up_to: u64) -> Result<(), StoreError> {
    let next = id(up_to).saturating_add(1);
    tx.execute("UPDATE product_number SET next = $1 WHERE id = 1 AND next < $1", &[next.into()]).map(drop)
}

pub(super) fn register(
    tx: &mut dyn Tx,
    now: Millis,
    request: &str,
    item: NewItem,
) -> Result<Answer<String>, StoreError> {
    if let Some(answer) = answered(tx, request)? {
        return Ok(Ok(answer));
    }
    let number = insert(tx, std::slice::from_ref(&item))?;
    let answer = json(&Registered { item_id: format!("{}-{number}", item.category) })?;
    remember(tx, now, request, &answer)?;
    Ok(Ok(answer))
}

/// Puts items up for sale; the first one's number, from which the others' count on.
///
/// Each table and index gets its rows in its own order, so that a large catalogue touches each page once.
pub(super) fn insert(tx: &mut dyn Tx, items: &[NewItem]) -> Result<i64, StoreError> {
    let first = take_numbers(tx, items.len() as i64)?;
    let mut postings = Vec::new();
    let mut in_stock: BTreeMap<u32, i64> = BTreeMap::new();
    let mut by_seller: BTreeMap<u64, i64> = BTreeMap::new();
    for (number, item) in (first..).zip(items) {
        let facts = Facts {
            item_id: format!("{}-{number}", item.category),
            item_name: item.item_name.clone(),
            category: item.category,
            keywords: item.keywords.clone(),
            condition_is_new: item.condition_is_new,
            seller_id: item.seller_id,
            seller: item.seller.clone(),
        };
        tx.execute(
            "INSERT INTO product_item (number, category, price, quantity, seller_id, thumbs_up, thumbs_down, facts)
             VALUES ($1, $2, $3, $4, $5, 0, 0, $6)",
            &[
                number.into(),
                item.category.into(),
                item.price.into(),
                item.quantity.into(),
                id(item.seller_id).into(),
                (&json(&facts)?).into(),
            ],
        )?;
        *by_seller.entry(item.seller_id).or_default() += 1;
        if item.quantity > 0 {
            *in_stock.entry(item.category).or_default() += 1;
            postings.extend(search::postings(&facts, item.price, number));
        }
    }
    search::add(tx, postings)?;
    for (category, items) in in_stock {
        count_in_stock(tx, category, items)?;
    }
    for (seller_id, count) in by_seller {
        count_for_seller(tx, id(seller_id), Counts { items: count, ..Counts::default() })?;
        if hides(tx, id(seller_id))? == Some(true) {
            for (number, _) in (first..).zip(items).filter(|(_, item)| item.seller_id == seller_id) {
                hide(tx, number, OF_BLOCKED, true)?;
            }
        }
    }
    Ok(first)
}

fn count_in_stock(tx: &mut dyn Tx, category: u32, items: i64) -> Result<(), StoreError> {
    for category in [i64::from(category), ALL_CATEGORIES] {
        tx.execute(
            "INSERT INTO product_count (category, in_stock) VALUES ($1, $2)
             ON CONFLICT (category) DO UPDATE SET in_stock = product_count.in_stock + excluded.in_stock",
            &[category.into(), items.into()],
        )?;
    }
    Ok(())
}

/// How many items have stock.
pub(super) fn in_stock(reader: &(impl Reader + ?Sized), category: Option<u32>) -> Result<u64, StoreError> {
    let category = category.map_or(ALL_CATEGORIES, i64::from);
    let count = reader
        .first("SELECT in_stock FROM product_count WHERE category = $1", &[category.into()], |row| row.uint(0))?;
    Ok(count.unwrap_or(0))
}

/// What is added to a seller's numbers.
#[derive(Default)]
pub(super) struct Counts {
    pub items: i64,
    pub sold: i64,
    pub thumbs_up: i64,
    pub thumbs_down: i64,
}

pub(super) fn count_for_seller(tx: &mut dyn Tx, seller_id: i64, add: Counts) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO product_seller (seller_id, items, sold, thumbs_up, thumbs_down) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (seller_id) DO UPDATE SET items = product_seller.items + excluded.items,
             sold = product_seller.sold + excluded.sold,
             thumbs_up = product_seller.thumbs_up + excluded.thumbs_up,
             thumbs_down = product_seller.thumbs_down + excluded.thumbs_down",
        &[seller_id.into(), add.items.into(), add.sold.into(), add.thumbs_up.into(), add.thumbs_down.into()],
    )?;
    Ok(())
}

pub(super) fn rating(reader: &dyn Reader, seller_id: u64) -> Result<Rating, StoreError> {
    let rating = reader.first(
        "SELECT thumbs_up, thumbs_down, sold FROM product_seller WHERE seller_id = $1",
        &[id(seller_id).into()],
        |row| {
            let feedback = Feedback { thumbs_up: row.uint(0)?, thumbs_down: row.uint(1)? };
            Ok(Rating { feedback, items_sold: row.uint(2)? })
        },
    )?;
    Ok(rating.unwrap_or_default())
}

/// A seller's own items, oldest first.
pub(super) fn items_of(
    reader: &dyn Reader,
    seller_id: u64,
    offset: u64,
    limit: u64,
) -> Result<search::Hits, StoreError> {
    let seller_id = id(seller_id);
    let numbers = reader.all(
        "SELECT number FROM product_item WHERE seller_id = $1 AND hidden = 0 ORDER BY number LIMIT $2 OFFSET $3",
        &[seller_id.into(), id(limit).into(), id(offset).into()],
        |row| row.int(0),
    )?;
    let total = reader
        .first("SELECT items FROM product_seller WHERE seller_id = $1", &[seller_id.into()], |row| row.uint(0))?;
    Ok(search::Hits { numbers, total: total.unwrap_or(0), total_is_at_least: false })
}

pub(super) fn change_price(
    tx: &mut dyn Tx,
    seller_id: u64,
    item_id: &str,
    price: Cents,
) -> Result<Answer<()>, StoreError> {
    let item = match find_own(tx, seller_id, item_id)? {
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

pub(super) fn update_units(
    tx: &mut dyn Tx,
    now: Millis,
    request: &str,
    seller_id: u64,
    item_id: &str,
    delta: i64,
) -> Result<Answer<String>, StoreError> {
    if let Some(answer) = answered(tx, request)? {
        return Ok(Ok(answer));
    }
    let item = match find_own(tx, seller_id, item_id)? {
        Ok(item) => item,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let left = item.quantity.saturating_add(delta);
    if left < 0 {
        let (there, taken) = (item.quantity, delta.unsigned_abs());
        let message = format!("quantity: there are {there} units of item {item_id}, {taken} cannot be taken away");
        return Ok(Err(Refusal::new(Code::OutOfStock, message)));
    }
    if delta > 0 && left > i64::from(UNITS_MAX) {
        let message = format!("quantity: expected at most {UNITS_MAX} units of item {item_id}, not {left}");
        return Ok(Err(Refusal::new(Code::BadRequest, message)));
    }
    add_units(tx, item.number, delta)?;
    let answer = json(&Quantity { quantity: left.min(UNITS_MAX.into()) as u32 })?;
    remember(tx, now, request, &answer)?;
    Ok(Ok(answer))
}

/// Adds units to an item, or takes them away: there must be as many. It is found by searches exactly while
/// it has some and is not hidden.
pub(super) fn add_units(tx: &mut dyn Tx, number: i64, delta: i64) -> Result<(), StoreError> {
    let after = tx.first(
        "UPDATE product_item SET quantity = quantity + $1 WHERE number = $2 RETURNING quantity, price, facts, hidden",
        &[delta.into(), number.into()],
        |row| {
            let after = row.int(0)?;
            // One that is hidden stays hidden.
            let changes_side = (after > 0) != (after - delta > 0) && row.int(3)? == 0;
            let facts = if changes_side { Some(Facts::read(row.text(2)?)?) } else { None };
            Ok((after, row.cents(1)?, facts))
        },
    )?;
    let Some((after, price, facts)) = after else {
        return Err(StoreError::Invalid(format!("units of an item that is not there: {number}")));
    };
    let Some(facts) = facts else { return Ok(()) };
    let postings = search::postings(&facts, price, number);
    if after > 0 {
        search::add(tx, postings)?;
        count_in_stock(tx, facts.category, 1)
    } else {
        search::remove(tx, postings)?;
        count_in_stock(tx, facts.category, -1)
    }
}

/// Hides an item for a reason, or shows it again unless there is another one. It keeps its units and votes, and what
/// holds it goes on; but nobody finds it, sees it, or begins to buy it.
fn hide(tx: &mut dyn Tx, number: i64, reason: i64, hides: bool) -> Result<(), StoreError> {
    let item = tx.first(
        "SELECT hidden, quantity, price, facts, seller_id FROM product_item WHERE number = $1",
        &[number.into()],
        |row| Ok((row.int(0)?, row.int(1)?, row.cents(2)?, Facts::read(row.text(3)?)?, row.int(4)?)),
    )?;
    let Some((before, quantity, price, facts, seller_id)) = item else { return Ok(()) };
    let after = if hides { before | reason } else { before & !reason };
    tx.execute("UPDATE product_item SET hidden = $1 WHERE number = $2", &[after.into(), number.into()])?;
    if (before == 0) == (after == 0) {
        return Ok(());
    }
    let more = if after == 0 { 1 } else { -1 };
    count_for_seller(tx, seller_id, Counts { items: more, ..Counts::default() })?;
    if quantity == 0 {
        return Ok(());
    }
    let postings = search::postings(&facts, price, number);
    if after == 0 { search::add(tx, postings) } else { search::remove(tx, postings) }?;
    count_in_stock(tx, facts.category, more)
}

/// The operator removes an item from the shop; whether there is such an item. (What was sold of it stays sold.)
pub(super) fn remove_item(tx: &mut dyn Tx, item_id: &str) -> Result<bool, StoreError> {
    let Some((category, number)) = split_id(item_id) else { return Ok(false) };
    let sql = "SELECT 1 FROM product_item WHERE number = $1 AND category = $2";
    if tx.first(sql, &[number.into(), category.into()], |_| Ok(()))?.is_none() {
        return Ok(false);
    }
    hide(tx, number, REMOVED, true)?;
    Ok(true)
}

/// From now on no item of this seller is shown, a new one neither; or they are again. Done by
/// [`hide_some_items`], which is to be called until it has nothing more to do.
pub(super) fn hide_seller(tx: &mut dyn Tx, seller_id: u64, hides: bool) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO product_hidden_seller (seller_id, hides) VALUES ($1, $2)
         ON CONFLICT (seller_id) DO UPDATE SET hides = excluded.hides",
        &[id(seller_id).into(), hides.into()],
    )
    .map(drop)
}

/// The sellers whose items are hidden, or are to be shown again.
pub(super) fn hidden_sellers(reader: &dyn Reader) -> Result<Vec<u64>, StoreError> {
    reader.all("SELECT seller_id FROM product_hidden_seller", &[], |row| row.uint(0))
}

/// Does with so many of a seller's items what [`hide_seller`] said; whether there may be more to do.
pub(super) fn hide_some_items(tx: &mut dyn Tx, seller_id: u64, most: u32) -> Result<bool, StoreError> {
    let seller = id(seller_id);
    let Some(hides) = hides(tx, seller)? else { return Ok(false) };
    let wrong = tx.all(
        "SELECT number FROM product_item WHERE seller_id = $1 AND ((hidden & $2) = 0) = $3 ORDER BY number LIMIT $4",
        &[seller.into(), OF_BLOCKED.into(), hides.into(), most.into()],
        |row| row.int(0),
    )?;
    for number in &wrong {
        hide(tx, *number, OF_BLOCKED, hides)?;
    }
    let more = wrong.len() as u64 == u64::from(most);
    if !more && !hides {
        tx.execute("DELETE FROM product_hidden_seller WHERE seller_id = $1", &[seller.into()])?;
    }
    Ok(more)
}

/// What [`hide_seller`] said of a seller last.
fn hides(reader: &(impl Reader + ?Sized), seller_id: i64) -> Result<Option<bool>, StoreError> {
    let sql = "SELECT hides FROM product_hidden_seller WHERE seller_id = $1";
    reader.first(sql, &[seller_id.into()], |row| row.bool(0))
}

pub(super) fn vote_item(tx: &mut dyn Tx, buyer_id: u64, item_id: &str, up: bool) -> Result<Answer<()>, StoreError> {
    let Some(item) = find(tx, item_id)? else { return Ok(Err(unknown_item(item_id))) };
    let key = [id(buyer_id).into(), item.number.into()];
    let before =
        tx.first("SELECT up FROM product_item_vote WHERE buyer_id = $1 AND number = $2", &key, |row| row.bool(0))?;
    let Some(add) = change_of_vote(before, up) else { return Ok(Ok(())) };
    tx.execute(
        "INSERT INTO product_item_vote (buyer_id, number, up) VALUES ($1, $2, $3)
         ON CONFLICT (buyer_id, number) DO UPDATE SET up = excluded.up",
        &[key[0], key[1], up.into()],
    )?;
    tx.execute(
        "UPDATE product_item SET thumbs_up = thumbs_up + $1, thumbs_down = thumbs_down + $2 WHERE number = $3",
        &[add.thumbs_up.into(), add.thumbs_down.into(), item.number.into()],
    )?;
    count_for_seller(tx, item.seller_id, add)?;
    Ok(Ok(()))
}

pub(super) fn vote_seller(tx: &mut dyn Tx, buyer_id: u64, seller_id: u64, up: bool) -> Result<Answer<()>, StoreError> {
    let key = [id(buyer_id).into(), id(seller_id).into()];
    let before =
        tx.first("SELECT up FROM product_seller_vote WHERE buyer_id = $1 AND seller_id = $2", &key, |row| row.bool(0))?;
    let Some(add) = change_of_vote(before, up) else { return Ok(Ok(())) };
    tx.execute(
        "INSERT INTO product_seller_vote (buyer_id, seller_id, up) VALUES ($1, $2, $3)
         ON CONFLICT (buyer_id, seller_id) DO UPDATE SET up = excluded.up",
        &[key[0], key[1], up.into()],
    )?;
    count_for_seller(tx, id(seller_id), add)?;
    Ok(Ok(()))
}

/// What a vote adds to the counts; nothing if it is the one that was there.
fn change_of_vote(before: Option<bool>, up: bool) -> Option<Counts> {
    let taken_back = |vote: bool| i64::from(before == Some(vote));
    (before != Some(up)).then(|| Counts {
        thumbs_up: i64::from(up) - taken_back(true),
        thumbs_down: i64::from(!up) - taken_back(false),
        ..Counts::default()
    })
}
