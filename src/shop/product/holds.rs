//! Holds on the disk: the core of `hold.rs` over the tables, within one transaction each.

use super::store::{self, Counts};
use crate::model::Millis;
use crate::shop::hold::{Record, Shelf, Shelved};
use crate::shop::ops::{Answer, Hold, Line, PricedLine};
use crate::storage::{Query, Reader, Row, StoreError, Tx};

/// Holds as the tables have them.
const STATES: [Hold; 4] = [Hold::Unknown, Hold::Held, Hold::Sold, Hold::Released];

fn state_of(hold: Hold) -> i64 {
    match hold {
        Hold::Unknown => 0,
        Hold::Held => 1,
        Hold::Sold => 2,
        Hold::Released => 3,
    }
}

/// The items' table as a shelf.
struct Items<'t>(&'t mut dyn Tx);

impl Shelf for Items<'_> {
    type Error = StoreError;

    fn look(&mut self, item_id: &str) -> Result<Option<Shelved>, StoreError> {
        let item = store::find(self.0, item_id)?;
        Ok(item.map(|item| Shelved {
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
        store::count_for_seller(self.0, store::id(seller_id), Counts { sold: units, ..Counts::default() })
    }
}

impl Items<'_> {
    fn add(&mut self, line: &PricedLine, units: i64) -> Result<(), StoreError> {
        let wrong = || StoreError::Invalid(format!("a hold of {:?}, which is no item", line.item_id));
        let (_category, number) = store::split_id(&line.item_id).ok_or_else(wrong)?;
        store::add_units(self.0, number, units)
    }
}

/// Runs a step of the core on a purchase's record, and stores what became of it.
fn step<T>(
    tx: &mut dyn Tx,
    purchase_id: &str,
    run: impl FnOnce(&mut Record, &mut Items<'_>) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let before = read(tx, purchase_id)?;
    let mut record = before.clone();
    let answer = run(&mut record, &mut Items(tx))?;
    if record != before {
        tx.execute(
            "INSERT INTO product_hold (purchase_id, hold, at, lines) VALUES ($1, $2, $3, $4)
             ON CONFLICT (purchase_id) DO UPDATE
                 SET hold = excluded.hold, at = excluded.at, lines = excluded.lines",
            &[
                purchase_id.into(),
                state_of(record.hold).into(),
                record.at.into(),
                (&store::json(&record.lines)?).into(),
            ],
        )?;
    }
    Ok(answer)
}

fn read(reader: &(impl Reader + ?Sized), purchase_id: &str) -> Result<Record, StoreError> {
    let record = reader.first(
        "SELECT hold, at, lines FROM product_hold WHERE purchase_id = $1",
        &[purchase_id.into()],
        read_record,
    )?;
    Ok(record.unwrap_or_default())
}

fn read_record(row: &Row<'_>) -> Result<Record, StoreError> {
    let wrong = |what: String| StoreError::Invalid(format!("a hold: {what}"));
    let state = row.int(0)?;
    let hold = STATES.into_iter().find(|hold| state_of(*hold) == state);
    Ok(Record {
        hold: hold.ok_or_else(|| wrong(format!("the unknown state {state}")))?,
        at: row.millis(1)?,
        lines: serde_json::from_str(row.text(2)?).map_err(|error| wrong(error.to_string()))?,
    })
}

pub(super) fn hold(
    tx: &mut dyn Tx,
    now: Millis,
    purchase_id: &str,
    lines: &[Line],
    expires_in_ms: u64,
) -> Result<Answer<Vec<PricedLine>>, StoreError> {
    step(tx, purchase_id, |record, items| record.hold(items, now, lines, expires_in_ms))
}

pub(super) fn sell(tx: &mut dyn Tx, now: Millis, purchase_id: &str) -> Result<Hold, StoreError> {
    step(tx, purchase_id, |record, items| record.sell(items, now))
}

pub(super) fn release(tx: &mut dyn Tx, now: Millis, purchase_id: &str) -> Result<Hold, StoreError> {
    step(tx, purchase_id, |record, items| record.release(items, now))
}

pub(super) fn state(reader: &dyn Reader, now: Millis, purchase_id: &str) -> Result<Hold, StoreError> {
    Ok(read(reader, purchase_id)?.state(now))
}

/// When the next hold expires.
pub(super) fn next_expiry(reader: &dyn Reader) -> Result<Option<Millis>, StoreError> {
    reader.first(
        "SELECT at FROM product_hold WHERE hold = $1 ORDER BY at LIMIT 1",
        &[state_of(Hold::Held).into()],
        |row| row.millis(0),
    )
}

/// Releases what was held for too long, so many purchases at most; tells how many there were.
pub(super) fn expire(tx: &mut dyn Tx, now: Millis, most: u32) -> Result<usize, StoreError> {
    let due = tx.all(
        "SELECT purchase_id FROM product_hold WHERE hold = $1 AND at <= $2 ORDER BY at LIMIT $3",
        &[state_of(Hold::Held).into(), now.into(), most.into()],
        |row| row.text(0).map(str::to_owned),
    )?;
    for purchase_id in &due {
        step(tx, purchase_id, |record, items| record.expire(items, now))?;
    }
    Ok(due.len())
}

/// When the oldest tombstone was set.
pub(super) fn oldest_tombstone(reader: &dyn Reader) -> Result<Option<Millis>, StoreError> {
    reader.first(
        "SELECT at FROM product_hold WHERE hold = $1 ORDER BY at LIMIT 1",
        &[state_of(Hold::Released).into()],
        |row| row.millis(0),
    )
}

/// Removes tombstones set up to that instant, so many at most; tells how many it removed.
pub(super) fn forget_released(tx: &mut dyn Tx, until: Millis, most: u32) -> Result<u64, StoreError> {
    tx.execute(
        "DELETE FROM product_hold WHERE purchase_id IN
             (SELECT purchase_id FROM product_hold WHERE hold = $1 AND at <= $2 ORDER BY at LIMIT $3)",
        &[state_of(Hold::Released).into(), until.into(), most.into()],
    )
}
