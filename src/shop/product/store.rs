//! The product database's tables, with what several operations need of items, sellers and votes. The immutable fields
//! of an item are one JSON text, which is copied into responses; the mutable ones are columns. Items are never deleted,
//! because purchases and orders refer to them.

use std::fmt::Write;

pub(super) use super::item_facts::id_column;
use super::item_facts::{ItemFacts, NewItem};
use super::search;
use super::stock_count::add_to_stock_count;
pub(super) use super::stock_count::stock_count;
use crate::model::{Cents, Millis};
use crate::shop::hold::UNITS_MAX;
use crate::shop::ops::{ErrorCode, ItemPage, Refusal, ShopResult};
use crate::storage::{Reader, ReaderExt, Row, StoreError, Tx, to_json};

/// `WITHOUT ROWID` makes SQLite store a row with its key.
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
    // Whether the index holds words in Unicode's form C: see `normalize_index`.
    "CREATE TABLE product_folded (form TEXT PRIMARY KEY) WITHOUT ROWID;",
    // The reasons for which an item is hidden (0 for a visible one), and the sellers whose items are to be hidden or
    // shown: see `set_hidden` and `hide_seller`.
    "ALTER TABLE product_item ADD COLUMN hidden BIGINT NOT NULL DEFAULT 0;
     CREATE TABLE product_hidden_seller (seller_id BIGINT PRIMARY KEY, hides BIGINT NOT NULL) WITHOUT ROWID;",
];

/// Bits of the column `hidden`: the operator has removed the item, or blocked the seller.
const REMOVED: i64 = 1;
const SELLER_BLOCKED: i64 = 2;

/// Items that [`normalize_index`] reads at a time.
const NORMALIZE_BATCH: i64 = 1_000;

/// The approximate length of an item's JSON, by which a page's buffer is allocated.
const ITEM_JSON_BYTES: usize = 320;

/// What changes of an item need.
pub(super) struct ItemRow {
    pub number: i64,
    pub price: Cents,
    pub quantity: i64,
    pub seller_id: i64,
    pub facts: ItemFacts,
}

/// `<category>-<number>`; `None` unless it is spelled exactly as it was assigned.
pub(super) fn parse_item_id(item_id: &str) -> Option<(i64, i64)> {
    let (category, number) = item_id.split_once('-')?;
    let (category, number): (u32, i64) = (category.parse().ok()?, number.parse().ok()?);
    (format!("{category}-{number}") == item_id).then_some((i64::from(category), number))
}

pub(super) fn unknown_item(item_id: &str) -> Refusal {
    Refusal::new(ErrorCode::NotFound, format!("item_id: there is no item {item_id:?}"))
}

/// Finds an item that is visible.
pub(super) fn find_item(reader: &(impl Reader + ?Sized), item_id: &str) -> Result<Option<ItemRow>, StoreError> {
    let Some((category, number)) = parse_item_id(item_id) else { return Ok(None) };
    reader.first(
        "SELECT price, quantity, seller_id, facts FROM product_item
         WHERE number = $1 AND category = $2 AND hidden = 0",
        &[number.into(), category.into()],
        |row| {
            Ok(ItemRow {
                number,
                price: row.cents(0)?,
                quantity: row.int(1)?,
                seller_id: row.int(2)?,
                facts: ItemFacts::read(row.text(3)?)?,
            })
        },
    )
}

pub(super) fn item_json(reader: &(impl Reader + ?Sized), item_id: &str) -> Result<ShopResult<String>, StoreError> {
    let Some((category, number)) = parse_item_id(item_id) else { return Ok(Err(unknown_item(item_id))) };
    let mut json_text = String::with_capacity(ITEM_JSON_BYTES);
    reader.query(
        "SELECT facts, price, quantity, thumbs_up, thumbs_down FROM product_item
         WHERE number = $1 AND category = $2 AND hidden = 0",
        &[number.into(), category.into()],
        &mut |row| append_item_json(row, &mut json_text),
    )?;
    Ok(if json_text.is_empty() { Err(unknown_item(item_id)) } else { Ok(json_text) })
}

/// An [`ItemPage`] with the items of `hits` in their order.
pub(super) fn page_json(reader: &(impl Reader + ?Sized), hits: &search::SearchHits) -> Result<String, StoreError> {
    let mut json_text = String::with_capacity(64 + hits.numbers.len() * ITEM_JSON_BYTES);
    json_text.push_str("{\"items\":[");
    let mut is_first = true;
    // Starting a statement costs as much as reading a row. (`CROSS JOIN` keeps the order: SQLite never swaps its
    // sides.)
    reader.query(
        "SELECT facts, price, quantity, thumbs_up, thumbs_down
         FROM json_each($1) AS wanted CROSS JOIN product_item WHERE product_item.number = wanted.value",
        &[(&to_json(&hits.numbers)?).into()],
        &mut |row| {
            if !std::mem::take(&mut is_first) {
                json_text.push(',');
            }
            append_item_json(row, &mut json_text)
        },
    )?;
    // The rest is that of an empty page.
    let empty = to_json(&ItemPage { items: Vec::new(), total: hits.total, total_is_at_least: hits.total_is_at_least })?;
    json_text.push_str(empty.strip_prefix("{\"items\":[").unwrap_or_default());
    Ok(json_text)
}

/// An [`Item`](crate::shop::ops::Item). Because a search returns many items, the facts are not parsed: their JSON
/// object is continued with the other fields.
fn append_item_json(row: &Row<'_>, json_text: &mut String) -> Result<(), StoreError> {
    let facts = row.text(0)?;
    let price = row.cents(1)?.shortest();
    // Released holds may bring the stock above the maximum that may be offered.
    let quantity = row.uint(2)?.min(UNITS_MAX.into());
    let (up, down) = (row.uint(3)?, row.uint(4)?);
    json_text.push_str(facts.strip_suffix('}').unwrap_or(facts));
    write!(
        json_text,
        ",\"price\":{price},\"quantity\":{quantity},\"feedback\":{{\"thumbs_up\":{up},\"thumbs_down\":{down}}}}}"
    )
    .map_err(|_| StoreError::Invalid("an item cannot be shown".to_owned()))
}

/// Makes a change once, however often a frontend's link repeats its request: every repeat gets the first answer. A
/// refusal has changed nothing, and is found again.
pub(super) fn change_once(
    tx: &mut dyn Tx,
    now: Millis,
    request: &str,
    change: impl FnOnce(&mut dyn Tx) -> Result<ShopResult<String>, StoreError>,
) -> Result<ShopResult<String>, StoreError> {
    let former = tx.first("SELECT answer FROM product_request WHERE request = $1", &[request.into()], |row| {
        row.text(0).map(str::to_owned)
    })?;
    if let Some(answer) = former {
        return Ok(Ok(answer));
    }
    let result = change(tx)?;
    if let Ok(answer) = &result {
        tx.execute(
            "INSERT INTO product_request (request, at, answer) VALUES ($1, $2, $3)",
            &[request.into(), now.into(), answer.into()],
        )?;
    }
    Ok(result)
}

/// Purges at most `limit` responses of up to this time; returns how many.
pub(super) fn purge_requests(tx: &mut dyn Tx, until: Millis, limit: u32) -> Result<u64, StoreError> {
    tx.execute(
        "DELETE FROM product_request WHERE request IN
             (SELECT request FROM product_request WHERE at <= $1 ORDER BY at LIMIT $2)",
        &[until.into(), limit.into()],
    )
}

pub(super) fn oldest_request(reader: &dyn Reader) -> Result<Option<Millis>, StoreError> {
    reader.first("SELECT at FROM product_request ORDER BY at LIMIT 1", &[], |row| row.millis(0))
}

/// It was never used.
fn allocate_number(tx: &mut dyn Tx) -> Result<i64, StoreError> {
    tx.first("UPDATE product_number SET next = next + 1 WHERE id = 1 RETURNING next - 1", &[], |row| row.int(0))?
        .ok_or_else(|| StoreError::Invalid("the sequence of items is missing".to_owned()))
}

/// Rewrites what earlier versions indexed to Unicode's form C, once in a file's life. Facts that are all ASCII, which
/// their length in bytes tells, need no change.
pub(super) fn normalize_index(tx: &mut dyn Tx) -> Result<(), StoreError> {
    if tx.first("SELECT form FROM product_folded WHERE form = 'nfc'", &[], |_| Ok(()))?.is_some() {
        return Ok(());
    }
    let mut last = 0;
    loop {
        let items = tx.all(
            "SELECT number, price, facts FROM product_item
             WHERE number > $1 AND quantity > 0 AND hidden = 0 AND length(CAST(facts AS BLOB)) <> length(facts)
             ORDER BY number LIMIT $2",
            &[last.into(), NORMALIZE_BATCH.into()],
            |row| Ok((row.int(0)?, row.cents(1)?, ItemFacts::read(row.text(2)?)?)),
        )?;
        let Some((number, ..)) = items.last() else { break };
        last = *number;
        for (number, price, facts) in &items {
            search::reindex_normalized(tx, facts, *price, *number)?;
        }
    }
    tx.execute("INSERT INTO product_folded (form) VALUES ('nfc')", &[]).map(drop)
}

/// Numbers up to this one may have been assigned by a lost file or after the backup that this file is from.
pub(super) fn skip_numbers(tx: &mut dyn Tx, up_to: u64) -> Result<(), StoreError> {
    let next = id_column(up_to).saturating_add(1);
    tx.execute("UPDATE product_number SET next = $1 WHERE id = 1 AND next < $1", &[next.into()]).map(drop)
}

/// Returns the item's number.
pub(super) fn insert_item(tx: &mut dyn Tx, item: NewItem) -> Result<i64, StoreError> {
    let number = allocate_number(tx)?;
    let NewItem { seller_id, seller, item_name, category, keywords, condition_is_new, price, quantity } = item;
    let item_id = format!("{category}-{number}");
    let facts = ItemFacts { item_id, item_name, category, keywords, condition_is_new, seller_id, seller };
    let seller_id = id_column(seller_id);
    tx.execute(
        "INSERT INTO product_item (number, category, price, quantity, seller_id, thumbs_up, thumbs_down, facts)
         VALUES ($1, $2, $3, $4, $5, 0, 0, $6)",
        &[number.into(), category.into(), price.into(), quantity.into(), seller_id.into(), (&to_json(&facts)?).into()],
    )?;
    if quantity > 0 {
        search::add(tx, search::postings(&facts, price, number))?;
        add_to_stock_count(tx, category, 1)?;
    }
    add_to_seller_counts(tx, seller_id, SellerCountDeltas { items: 1, ..SellerCountDeltas::default() })?;
    if is_seller_hidden(tx, seller_id)? == Some(true) {
        set_hidden(tx, number, SELLER_BLOCKED, true)?;
    }
    Ok(number)
}

#[derive(Default)]
pub(super) struct SellerCountDeltas {
    pub items: i64,
    pub sold: i64,
    pub thumbs_up: i64,
    pub thumbs_down: i64,
}

pub(super) fn add_to_seller_counts(tx: &mut dyn Tx, seller_id: i64, add: SellerCountDeltas) -> Result<(), StoreError> {
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

/// `delta` may be negative; there must be enough units. The index lists an item while it has stock and is not hidden.
pub(super) fn add_units(tx: &mut dyn Tx, number: i64, delta: i64) -> Result<(), StoreError> {
    let after = tx.first(
        "UPDATE product_item SET quantity = quantity + $1 WHERE number = $2 RETURNING quantity, price, facts, hidden",
        &[delta.into(), number.into()],
        |row| {
            let after = row.int(0)?;
            // A hidden item is not in the index.
            let changes_side = (after > 0) != (after - delta > 0) && row.int(3)? == 0;
            let facts = if changes_side { Some(ItemFacts::read(row.text(2)?)?) } else { None };
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
        add_to_stock_count(tx, facts.category, 1)
    } else {
        search::remove(tx, postings)?;
        add_to_stock_count(tx, facts.category, -1)
    }
}

/// Sets or clears a reason. A hidden item keeps its units, votes and holds, but nobody can find it, see it, or begin to
/// buy it.
fn set_hidden(tx: &mut dyn Tx, number: i64, reason: i64, hides: bool) -> Result<(), StoreError> {
    let item = tx.first(
        "SELECT hidden, quantity, price, facts, seller_id FROM product_item WHERE number = $1",
        &[number.into()],
        |row| Ok((row.int(0)?, row.int(1)?, row.cents(2)?, ItemFacts::read(row.text(3)?)?, row.int(4)?)),
    )?;
    let Some((before, quantity, price, facts, seller_id)) = item else { return Ok(()) };
    let after = if hides { before | reason } else { before & !reason };
    tx.execute("UPDATE product_item SET hidden = $1 WHERE number = $2", &[after.into(), number.into()])?;
    if (before == 0) == (after == 0) {
        return Ok(());
    }
    let more = if after == 0 { 1 } else { -1 };
    add_to_seller_counts(tx, seller_id, SellerCountDeltas { items: more, ..SellerCountDeltas::default() })?;
    if quantity == 0 {
        return Ok(());
    }
    let postings = search::postings(&facts, price, number);
    if after == 0 { search::add(tx, postings) } else { search::remove(tx, postings) }?;
    add_to_stock_count(tx, facts.category, more)
}

/// Returns whether there is such an item. What was sold of it stays sold.
pub(super) fn remove_item(tx: &mut dyn Tx, item_id: &str) -> Result<bool, StoreError> {
    let Some((category, number)) = parse_item_id(item_id) else { return Ok(false) };
    let sql = "SELECT 1 FROM product_item WHERE number = $1 AND category = $2";
    if tx.first(sql, &[number.into(), category.into()], |_| Ok(()))?.is_none() {
        return Ok(false);
    }
    set_hidden(tx, number, REMOVED, true)?;
    Ok(true)
}

/// Includes future items. The caller then calls [`hide_items_batch`] until it has nothing more to do.
pub(super) fn hide_seller(tx: &mut dyn Tx, seller_id: u64, hides: bool) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO product_hidden_seller (seller_id, hides) VALUES ($1, $2)
         ON CONFLICT (seller_id) DO UPDATE SET hides = excluded.hides",
        &[id_column(seller_id).into(), hides.into()],
    )
    .map(drop)
}

/// The sellers whose items are hidden or are being shown again.
pub(super) fn hidden_sellers(reader: &dyn Reader) -> Result<Vec<u64>, StoreError> {
    reader.all("SELECT seller_id FROM product_hidden_seller", &[], |row| row.uint(0))
}

/// Applies [`hide_seller`] to at most `limit` items. Whether there may be more.
pub(super) fn hide_items_batch(tx: &mut dyn Tx, seller_id: u64, limit: u32) -> Result<bool, StoreError> {
    let seller = id_column(seller_id);
    let Some(hides) = is_seller_hidden(tx, seller)? else { return Ok(false) };
    let wrong = tx.all(
        "SELECT number FROM product_item WHERE seller_id = $1 AND ((hidden & $2) = 0) = $3 ORDER BY number LIMIT $4",
        &[seller.into(), SELLER_BLOCKED.into(), hides.into(), limit.into()],
        |row| row.int(0),
    )?;
    for number in &wrong {
        set_hidden(tx, *number, SELLER_BLOCKED, hides)?;
    }
    let more = wrong.len() as u64 == u64::from(limit);
    if !more && !hides {
        tx.execute("DELETE FROM product_hidden_seller WHERE seller_id = $1", &[seller.into()])?;
    }
    Ok(more)
}

/// What [`hide_seller`] has stored, if anything.
fn is_seller_hidden(reader: &(impl Reader + ?Sized), seller_id: i64) -> Result<Option<bool>, StoreError> {
    let sql = "SELECT hides FROM product_hidden_seller WHERE seller_id = $1";
    reader.first(sql, &[seller_id.into()], |row| row.bool(0))
}
