//! The rows of purchases: those under way, those that were made, and what is owed for them.
//!
//! A purchase under way is one row of JSON, read whole at start. One that was made is a row for its key and
//! one for each line, and stays.

use crate::bank::ledger::{self, Posting};
use crate::model::{Cents, FeeRate, Millis, Name};
use crate::shop::ops::{Bought, Order};
use crate::shop::purchase::{Purchase, Row};
use crate::storage::{Query, Reader, StoreError, Tx};

/// Purchases, for the migrations of the customer database.
pub const MIGRATION: &str = "
    CREATE TABLE shop_purchase (purchase_id TEXT PRIMARY KEY, body TEXT NOT NULL);
    CREATE TABLE shop_sale (purchase_id TEXT PRIMARY KEY, buyer_id BIGINT NOT NULL, idempotency_key TEXT,
        at BIGINT NOT NULL, buyer_name TEXT NOT NULL, address TEXT, body TEXT NOT NULL);
    CREATE INDEX shop_sale_by_key ON shop_sale (buyer_id, idempotency_key, at);
    CREATE TABLE shop_sold (purchase_id TEXT NOT NULL, line BIGINT NOT NULL, buyer_id BIGINT NOT NULL,
        seller_id BIGINT NOT NULL, item_id TEXT NOT NULL, quantity BIGINT NOT NULL, price BIGINT NOT NULL,
        payout BIGINT NOT NULL, at BIGINT NOT NULL, shipped_at BIGINT, PRIMARY KEY (purchase_id, line));
    CREATE INDEX shop_sold_by_buyer ON shop_sold (buyer_id, at DESC, purchase_id DESC, line);
    CREATE INDEX shop_sold_by_seller ON shop_sold (seller_id, at DESC, purchase_id DESC, line)";

/// What one step of a purchase writes, ready for the writer: JSON and sums are made by whoever asks.
#[derive(Debug, Clone)]
pub struct PurchaseRows {
    purchase: Purchase,
    body: Result<String, StoreError>,
    rows: Vec<Row>,
    fee: FeeRate,
    at: Millis,
}

impl PurchaseRows {
    /// The rows of a step that was just taken.
    pub fn new(purchase: &Purchase, rows: Vec<Row>, fee: FeeRate, at: Millis) -> PurchaseRows {
        let body = serde_json::to_string(purchase).map_err(|error| StoreError::Invalid(error.to_string()));
        PurchaseRows { purchase: purchase.clone(), body, rows, fee, at }
    }

    /// The purchase as it was after the step.
    pub fn purchase(&self) -> &Purchase {
        &self.purchase
    }

    /// What is written of it.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The same, at another time: an instant of the process's clock becomes a date.
    pub fn shift(&mut self, date: impl FnOnce(Millis) -> Millis) {
        self.at = date(self.at);
    }

    /// Writes them, in a transaction with whatever belongs to them.
    ///
    /// # Errors
    /// The store's, or the ledger's, for money that makes no sense.
    pub fn write(&self, tx: &mut dyn Tx) -> Result<(), StoreError> {
        self.rows.iter().try_for_each(|row| self.write_one(tx, *row))
    }

    fn write_one(&self, tx: &mut dyn Tx, row: Row) -> Result<(), StoreError> {
        let (purchase, at) = (&self.purchase, self.at);
        let (id, buyer) = (purchase.id.as_str(), &purchase.buyer.username);
        match row {
            Row::Keep => {
                let body = self.body.as_ref().map_err(Clone::clone)?;
                tx.execute(
                    "INSERT INTO shop_purchase (purchase_id, body) VALUES ($1, $2)
                     ON CONFLICT (purchase_id) DO UPDATE SET body = excluded.body",
                    &[id.into(), body.into()],
                )?;
            }
            Row::Drop => {
                tx.execute("DELETE FROM shop_purchase WHERE purchase_id = $1", &[id.into()])?;
            }
            Row::Authorised => ledger::post(tx, &Posting::authorise(id, at, buyer, purchase.total())?)?,
            Row::Voided => ledger::post(tx, &Posting::void(id, at, buyer, purchase.total())?)?,
            Row::Paid => self.paid(tx)?,
        }
        Ok(())
    }

    fn paid(&self, tx: &mut dyn Tx) -> Result<(), StoreError> {
        let PurchaseRows { purchase, at, .. } = self;
        let (id, buyer_id) = (purchase.id.as_str(), number(purchase.buyer.user_id)?);
        let body = self.body.as_ref().map_err(Clone::clone)?;
        tx.execute(
            "INSERT INTO shop_sale (purchase_id, buyer_id, idempotency_key, at, buyer_name, address, body)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
            &[
                id.into(),
                buyer_id.into(),
                purchase.key.as_deref().into(),
                (*at).into(),
                (&purchase.buyer.name).into(),
                purchase.address.as_deref().into(),
                body.into(),
            ],
        )?;
        let (mut shares, mut fees) = (Vec::new(), 0);
        for (place, line) in (0i64..).zip(&purchase.priced) {
            // The total was counted before the card was charged with it: no line exceeds that.
            let amount = Cents(line.price.0 * i64::from(line.quantity));
            let fee = self.fee.of(amount);
            let payout = Cents(amount.0 - fee.0);
            fees += fee.0;
            shares.push((Name::kept(&line.seller).map_err(StoreError::Invalid)?, payout));
            tx.execute(
                "INSERT INTO shop_sold (purchase_id, line, buyer_id, seller_id, item_id, quantity, price, payout, at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                &[
                    id.into(),
                    place.into(),
                    buyer_id.into(),
                    number(line.seller_id)?.into(),
                    (&line.item_id).into(),
                    line.quantity.into(),
                    line.price.into(),
                    payout.into(),
                    (*at).into(),
                ],
            )?;
        }
        let shares = shares.iter().map(|(seller, payout)| (seller, *payout));
        ledger::post(tx, &Posting::capture(id, *at, shares, Cents(fees))?)
    }
}

/// Every purchase under way.
///
/// # Errors
/// The store's; `Invalid` for a row that this program did not write.
pub fn under_way(reader: &dyn Reader) -> Result<Vec<Purchase>, StoreError> {
    reader.all("SELECT body FROM shop_purchase ORDER BY purchase_id", &[], |row| parse(row.text(0)?))
}

/// A purchase that was made, by its id.
pub fn made(reader: &dyn Reader, purchase_id: &str) -> Result<Option<Purchase>, StoreError> {
    let sql = "SELECT body FROM shop_sale WHERE purchase_id = $1";
    reader.first(sql, &[purchase_id.into()], |row| parse(row.text(0)?))
}

/// The newest purchase that a buyer has made under a key.
pub fn made_under(reader: &dyn Reader, buyer_id: u64, key: &str) -> Result<Option<Purchase>, StoreError> {
    let sql = "SELECT body FROM shop_sale WHERE buyer_id = $1 AND idempotency_key = $2 ORDER BY at DESC LIMIT 1";
    reader.first(sql, &[number(buyer_id)?.into(), key.into()], |row| parse(row.text(0)?))
}

/// A page of what a buyer has bought, newest first.
pub fn bought(reader: &dyn Reader, buyer_id: u64, offset: u64, limit: u32) -> Result<Vec<Bought>, StoreError> {
    reader.all(
        "SELECT purchase_id, item_id, quantity, price, at, shipped_at FROM shop_sold WHERE buyer_id = $1
         ORDER BY at DESC, purchase_id DESC, line LIMIT $2 OFFSET $3",
        &[number(buyer_id)?.into(), limit.into(), page(offset).into()],
        |row| {
            Ok(Bought {
                purchase_id: row.text(0)?.to_owned(),
                item_id: row.text(1)?.to_owned(),
                quantity: quantity(row.uint(2)?)?,
                price: row.cents(3)?,
                purchased_at: row.millis(4)?,
                shipped_at: row.opt_int(5)?.map(|_| row.millis(5)).transpose()?,
            })
        },
    )
}

/// A page of what a seller has sold, newest first.
pub fn orders(reader: &dyn Reader, seller_id: u64, offset: u64, limit: u32) -> Result<Vec<Order>, StoreError> {
    reader.all(
        "SELECT l.purchase_id, l.item_id, l.quantity, l.price, l.payout, s.buyer_name, s.address, l.at, l.shipped_at
         FROM shop_sold l JOIN shop_sale s ON s.purchase_id = l.purchase_id WHERE l.seller_id = $1
         ORDER BY l.at DESC, l.purchase_id DESC, l.line LIMIT $2 OFFSET $3",
        &[number(seller_id)?.into(), limit.into(), page(offset).into()],
        |row| {
            Ok(Order {
                purchase_id: row.text(0)?.to_owned(),
                item_id: row.text(1)?.to_owned(),
                quantity: quantity(row.uint(2)?)?,
                price: row.cents(3)?,
                payout: row.cents(4)?,
                buyer_name: row.text(5)?.to_owned(),
                address: row.opt_text(6)?.map(str::to_owned),
                purchased_at: row.millis(7)?,
                shipped_at: row.opt_int(8)?.map(|_| row.millis(8)).transpose()?,
            })
        },
    )
}

/// Whose a line is, as far as a seller may know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shipping {
    /// It is on its way, now or since before.
    Shipped,
    /// Another seller's.
    Foreign,
    /// There is no such line.
    Unknown,
}

/// One line of a seller's is on its way; the first time counts.
pub fn ship(
    tx: &mut dyn Tx,
    seller_id: u64,
    purchase_id: &str,
    item_id: &str,
    at: Millis,
) -> Result<Shipping, StoreError> {
    let sql = "SELECT seller_id FROM shop_sold WHERE purchase_id = $1 AND item_id = $2";
    let Some(whose) = tx.first(sql, &[purchase_id.into(), item_id.into()], |row| row.uint(0))? else {
        return Ok(Shipping::Unknown);
    };
    if whose != seller_id {
        return Ok(Shipping::Foreign);
    }
    tx.execute(
        "UPDATE shop_sold SET shipped_at = $1 WHERE purchase_id = $2 AND item_id = $3 AND shipped_at IS NULL",
        &[at.into(), purchase_id.into(), item_id.into()],
    )?;
    Ok(Shipping::Shipped)
}

fn parse(body: &str) -> Result<Purchase, StoreError> {
    serde_json::from_str(body).map_err(|error| StoreError::Invalid(format!("shop_purchase or shop_sale: {error}")))
}

fn page(offset: u64) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}

/// A quantity as it is read.
pub(super) fn quantity(number: u64) -> Result<u32, StoreError> {
    u32::try_from(number).map_err(|_| StoreError::Invalid(format!("{number} is no quantity of this program")))
}

/// A number as it is stored.
pub(super) fn number(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| StoreError::Invalid(format!("{number} is no number of this program")))
}
