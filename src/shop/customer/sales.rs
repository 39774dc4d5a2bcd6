//! The tables of purchases. An open one is one row of JSON, and all are loaded at the start. A completed one is a row
//! with its idempotency key and a row for each line, which stay.

use crate::bank::ledger::{self, Posting};
use crate::model::{Cents, FeeRate, Millis, Name};
use crate::shop::ops::{PurchaseHistoryEntry, SellerOrder};
use crate::shop::purchase::{Purchase, PurchaseWrite};
use crate::storage::{Reader, ReaderExt, StoreError, Tx, bigint, from_json, to_json};

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

/// The JSON is serialised here, on the caller's thread, not on the writer's.
#[derive(Debug, Clone)]
pub struct PurchaseWrites {
    purchase: Purchase,
    body: Result<String, StoreError>,
    writes: Vec<PurchaseWrite>,
    fee: FeeRate,
    at: Millis,
}

impl PurchaseWrites {
    /// The purchase has just made the transition.
    pub fn new(purchase: &Purchase, writes: Vec<PurchaseWrite>, fee: FeeRate, at: Millis) -> PurchaseWrites {
        let body = to_json(purchase);
        PurchaseWrites { purchase: purchase.clone(), body, writes, fee, at }
    }

    /// The purchase as it is after the transition.
    #[cfg(any(test, feature = "internals"))]
    pub fn purchase(&self) -> &Purchase {
        &self.purchase
    }

    #[cfg(any(test, feature = "internals"))]
    pub fn kinds(&self) -> &[PurchaseWrite] {
        &self.writes
    }

    /// The core's instant becomes a date.
    pub fn convert_time(&mut self, to_date: impl FnOnce(Millis) -> Millis) {
        self.at = to_date(self.at);
    }

    pub fn write(&self, tx: &mut dyn Tx) -> Result<(), StoreError> {
        self.writes.iter().try_for_each(|row| self.write_one(tx, *row))
    }

    fn write_one(&self, tx: &mut dyn Tx, row: PurchaseWrite) -> Result<(), StoreError> {
        let (purchase, at) = (&self.purchase, self.at);
        let (id, buyer) = (purchase.id.as_str(), &purchase.buyer.username);
        match row {
            PurchaseWrite::SaveRecord => {
                let body = self.body.as_ref().map_err(Clone::clone)?;
                tx.execute(
                    "INSERT INTO shop_purchase (purchase_id, body) VALUES ($1, $2)
                     ON CONFLICT (purchase_id) DO UPDATE SET body = excluded.body",
                    &[id.into(), body.into()],
                )?;
            }
            PurchaseWrite::DeleteRecord => {
                tx.execute("DELETE FROM shop_purchase WHERE purchase_id = $1", &[id.into()])?;
            }
            PurchaseWrite::PostAuthorisation => {
                ledger::post(tx, &Posting::authorise(id, at, buyer, purchase.total())?)?
            }
            PurchaseWrite::PostVoid => ledger::post(tx, &Posting::void(id, at, buyer, purchase.total())?)?,
            PurchaseWrite::PostSale => self.write_sale(tx)?,
        }
        Ok(())
    }

    fn write_sale(&self, tx: &mut dyn Tx) -> Result<(), StoreError> {
        let PurchaseWrites { purchase, at, .. } = self;
        let (id, buyer_id) = (purchase.id.as_str(), bigint(purchase.buyer.user_id)?);
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
        for (line_number, line) in (0i64..).zip(&purchase.priced) {
            // Cannot overflow: the total was checked before the card was charged.
            let amount = Cents(line.price.0 * i64::from(line.quantity));
            let fee = self.fee.fee_on(amount);
            let payout = Cents(amount.0 - fee.0);
            fees += fee.0;
            shares.push((Name::from_stored(&line.seller).map_err(StoreError::Invalid)?, payout));
            tx.execute(
                "INSERT INTO shop_sold (purchase_id, line, buyer_id, seller_id, item_id, quantity, price, payout, at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                &[
                    id.into(),
                    line_number.into(),
                    buyer_id.into(),
                    bigint(line.seller_id)?.into(),
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

pub fn open_purchases(reader: &dyn Reader) -> Result<Vec<Purchase>, StoreError> {
    reader.all("SELECT body FROM shop_purchase ORDER BY purchase_id", &[], |row| parse_purchase(row.text(0)?))
}

pub fn completed_purchase(reader: &dyn Reader, purchase_id: &str) -> Result<Option<Purchase>, StoreError> {
    let sql = "SELECT body FROM shop_sale WHERE purchase_id = $1";
    reader.first(sql, &[purchase_id.into()], |row| parse_purchase(row.text(0)?))
}

/// The newest under an idempotency key.
pub fn completed_purchase_by_key(
    reader: &dyn Reader,
    buyer_id: u64,
    key: &str,
) -> Result<Option<Purchase>, StoreError> {
    let sql = "SELECT body FROM shop_sale WHERE buyer_id = $1 AND idempotency_key = $2 ORDER BY at DESC LIMIT 1";
    reader.first(sql, &[bigint(buyer_id)?.into(), key.into()], |row| parse_purchase(row.text(0)?))
}

/// The newest comes first.
pub fn purchase_history(
    reader: &dyn Reader,
    buyer_id: u64,
    offset: u64,
    limit: u32,
) -> Result<Vec<PurchaseHistoryEntry>, StoreError> {
    reader.all(
        "SELECT purchase_id, item_id, quantity, price, at, shipped_at FROM shop_sold WHERE buyer_id = $1
         ORDER BY at DESC, purchase_id DESC, line LIMIT $2 OFFSET $3",
        &[bigint(buyer_id)?.into(), limit.into(), offset_column(offset).into()],
        |row| {
            Ok(PurchaseHistoryEntry {
                purchase_id: row.text(0)?.to_owned(),
                item_id: row.text(1)?.to_owned(),
                quantity: to_quantity(row.uint(2)?)?,
                price: row.cents(3)?,
                purchased_at: row.millis(4)?,
                shipped_at: row.opt_int(5)?.map(|_| row.millis(5)).transpose()?,
            })
        },
    )
}

/// The newest comes first.
pub fn seller_orders(
    reader: &dyn Reader,
    seller_id: u64,
    offset: u64,
    limit: u32,
) -> Result<Vec<SellerOrder>, StoreError> {
    reader.all(
        "SELECT l.purchase_id, l.item_id, l.quantity, l.price, l.payout, s.buyer_name, s.address, l.at, l.shipped_at
         FROM shop_sold l JOIN shop_sale s ON s.purchase_id = l.purchase_id WHERE l.seller_id = $1
         ORDER BY l.at DESC, l.purchase_id DESC, l.line LIMIT $2 OFFSET $3",
        &[bigint(seller_id)?.into(), limit.into(), offset_column(offset).into()],
        |row| {
            Ok(SellerOrder {
                purchase_id: row.text(0)?.to_owned(),
                item_id: row.text(1)?.to_owned(),
                quantity: to_quantity(row.uint(2)?)?,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShipResult {
    /// The line is marked as shipped, now or since before.
    Shipped,
    /// It is another seller's.
    Foreign,
    /// There is no such line.
    Unknown,
}

/// The time of the first call is kept.
pub fn mark_shipped(
    tx: &mut dyn Tx,
    seller_id: u64,
    purchase_id: &str,
    item_id: &str,
    at: Millis,
) -> Result<ShipResult, StoreError> {
    let sql = "SELECT seller_id FROM shop_sold WHERE purchase_id = $1 AND item_id = $2";
    let Some(whose) = tx.first(sql, &[purchase_id.into(), item_id.into()], |row| row.uint(0))? else {
        return Ok(ShipResult::Unknown);
    };
    if whose != seller_id {
        return Ok(ShipResult::Foreign);
    }
    tx.execute(
        "UPDATE shop_sold SET shipped_at = $1 WHERE purchase_id = $2 AND item_id = $3 AND shipped_at IS NULL",
        &[at.into(), purchase_id.into(), item_id.into()],
    )?;
    Ok(ShipResult::Shipped)
}

fn parse_purchase(body: &str) -> Result<Purchase, StoreError> {
    from_json("shop_purchase or shop_sale", body)
}

fn offset_column(offset: u64) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}

pub(super) fn to_quantity(number: u64) -> Result<u32, StoreError> {
    u32::try_from(number).map_err(|_| StoreError::Invalid(format!("{number} is no quantity of this program")))
}
