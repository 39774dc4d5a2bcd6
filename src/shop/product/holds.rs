//! Applies the state machine of `shop/hold.rs` to the tables, in one transaction per step.

use super::store::{self, SellerCountDeltas};
use crate::model::Millis;
use crate::shop::hold::{HoldRecord, Inventory, InventoryItem};
use crate::shop::ops::{HoldState, LineItem, PricedLine, ShopResult};
use crate::storage::{Reader, ReaderExt, Row, StoreError, Tx, from_json, to_json};

const HOLD_STATES: [HoldState; 4] = [HoldState::Unknown, HoldState::Held, HoldState::Sold, HoldState::Released];

/// The item table as an [`Inventory`].
struct ItemTable<'t>(&'t mut dyn Tx);

impl Inventory for ItemTable<'_> {
    type Error = StoreError;

    fn get(&mut self, item_id: &str) -> Result<Option<InventoryItem>, StoreError> {
        let item = store::find_item(self.0, item_id)?;
        Ok(item.map(|item| InventoryItem {
            quantity: item.quantity.unsigned_abs(), // the table allows none below zero
            price: item.price,
            seller_id: item.facts.seller_id,
            seller: item.facts.seller,
        }))
    }

    fn take(&mut self, line: &PricedLine) -> Result<(), StoreError> {
        self.add(line, -i64::from(line.quantity))
    }

    fn put_back(&mut self, line: &PricedLine) -> Result<(), StoreError> {
        self.add(line, i64::from(line.quantity))
    }

    fn count_sold(&mut self, seller_id: u64, units: i64) -> Result<(), StoreError> {
        let add = SellerCountDeltas { sold: units, ..SellerCountDeltas::default() };
        store::add_to_seller_counts(self.0, store::id_column(seller_id), add)
    }
}

impl ItemTable<'_> {
    fn add(&mut self, line: &PricedLine, units: i64) -> Result<(), StoreError> {
        let wrong = || StoreError::Invalid(format!("a hold of {:?}, which is no item", line.item_id));
        let (_category, number) = store::parse_item_id(&line.item_id).ok_or_else(wrong)?;
        store::add_units(self.0, number, units)
    }
}

/// Stores the record if the step has changed it.
fn update_record<T>(
    tx: &mut dyn Tx,
    purchase_id: &str,
    run: impl FnOnce(&mut HoldRecord, &mut ItemTable<'_>) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let before = read_record(tx, purchase_id)?;
    let mut record = before.clone();
    let answer = run(&mut record, &mut ItemTable(tx))?;
    if record != before {
        tx.execute(
            "INSERT INTO product_hold (purchase_id, hold, at, lines) VALUES ($1, $2, $3, $4)
             ON CONFLICT (purchase_id) DO UPDATE
                 SET hold = excluded.hold, at = excluded.at, lines = excluded.lines",
            &[purchase_id.into(), (record.state as i64).into(), record.at.into(), (&to_json(&record.lines)?).into()],
        )?;
    }
    Ok(answer)
}

fn read_record(reader: &(impl Reader + ?Sized), purchase_id: &str) -> Result<HoldRecord, StoreError> {
    let record = reader.first(
        "SELECT hold, at, lines FROM product_hold WHERE purchase_id = $1",
        &[purchase_id.into()],
        record_from_row,
    )?;
    Ok(record.unwrap_or_default())
}

fn record_from_row(row: &Row<'_>) -> Result<HoldRecord, StoreError> {
    let state = row.int(0)?;
    let hold = HOLD_STATES.into_iter().find(|hold| *hold as i64 == state);
    Ok(HoldRecord {
        state: hold.ok_or_else(|| StoreError::Invalid(format!("a hold: the unknown state {state}")))?,
        at: row.millis(1)?,
        lines: from_json("a hold", row.text(2)?)?,
    })
}

pub(super) fn hold(
    tx: &mut dyn Tx,
    now: Millis,
    purchase_id: &str,
    lines: &[LineItem],
    expires_in_ms: u64,
) -> Result<ShopResult<Vec<PricedLine>>, StoreError> {
    update_record(tx, purchase_id, |record, items| record.hold(items, now, lines, expires_in_ms))
}

pub(super) fn sell(tx: &mut dyn Tx, now: Millis, purchase_id: &str) -> Result<HoldState, StoreError> {
    update_record(tx, purchase_id, |record, items| record.sell(items, now))
}

pub(super) fn release(tx: &mut dyn Tx, now: Millis, purchase_id: &str) -> Result<HoldState, StoreError> {
    update_record(tx, purchase_id, |record, items| record.release(items, now))
}

pub(super) fn state(reader: &dyn Reader, now: Millis, purchase_id: &str) -> Result<HoldState, StoreError> {
    Ok(read_record(reader, purchase_id)?.state_at(now))
}

/// The earliest time of a hold in this state; of those that are held, the next expiry.
pub(super) fn earliest(reader: &dyn Reader, state: HoldState) -> Result<Option<Millis>, StoreError> {
    let sql = "SELECT at FROM product_hold WHERE hold = $1 ORDER BY at LIMIT 1";
    reader.first(sql, &[(state as i64).into()], |row| row.millis(0))
}

/// Releases at most `limit` holds; returns how many.
pub(super) fn expire(tx: &mut dyn Tx, now: Millis, limit: u32) -> Result<usize, StoreError> {
    let due = tx.all(
        "SELECT purchase_id FROM product_hold WHERE hold = $1 AND at <= $2 ORDER BY at LIMIT $3",
        &[(HoldState::Held as i64).into(), now.into(), limit.into()],
        |row| row.text(0).map(str::to_owned),
    )?;
    for purchase_id in &due {
        update_record(tx, purchase_id, |record, items| record.expire(items, now))?;
    }
    Ok(due.len())
}

/// Purges at most `limit` tombstones of up to this time; returns how many.
pub(super) fn purge_tombstones(tx: &mut dyn Tx, until: Millis, limit: u32) -> Result<u64, StoreError> {
    tx.execute(
        "DELETE FROM product_hold WHERE purchase_id IN
             (SELECT purchase_id FROM product_hold WHERE hold = $1 AND at <= $2 ORDER BY at LIMIT $3)",
        &[(HoldState::Released as i64).into(), until.into(), limit.into()],
    )
}
