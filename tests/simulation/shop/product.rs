//! The product database: each operation is one transaction, on disk before it is answered.

use std::collections::BTreeMap;
use std::convert::Infallible;

use p2s2::model::{Cents, Millis};
use p2s2::shop::hold::{Record, Shelf, Shelved};
use p2s2::shop::ops::{Hold, PricedLine, ProductOp};
use p2s2::shop::purchase::driver::Heard;

/// Items on a shelf.
#[derive(Default)]
pub struct Shop {
    pub items: BTreeMap<String, Shelved>,
    pub registered: BTreeMap<String, u64>,
}

#[derive(Default)]
pub struct Product {
    pub shop: Shop,
    pub holds: BTreeMap<String, Record>,
    pub forgets_released: bool,
}

impl Shelf for Shop {
    type Error = Infallible;

    fn look(&mut self, item_id: &str) -> Result<Option<Shelved>, Infallible> {
        Ok(self.items.get(item_id).cloned())
    }

    fn take(&mut self, line: &PricedLine) -> Result<(), Infallible> {
        self.items.get_mut(&line.item_id).unwrap().quantity -= u64::from(line.quantity);
        Ok(())
    }

    fn put_back(&mut self, line: &PricedLine) -> Result<(), Infallible> {
        self.items.get_mut(&line.item_id).unwrap().quantity += u64::from(line.quantity);
        Ok(())
    }

    fn count_sold(&mut self, _seller_id: u64, _units: i64) -> Result<(), Infallible> {
        Ok(())
    }
}

impl Product {
    pub fn list(&mut self, item_id: &str, quantity: u64, price: i64) {
        let shelved = Shelved { quantity, price: Cents(price), seller_id: 1, seller: "sam".to_owned() };
        self.shop.items.insert(item_id.to_owned(), shelved);
        self.shop.registered.insert(item_id.to_owned(), quantity);
    }

    pub fn handle(&mut self, now: Millis, op: &ProductOp) -> Heard {
        let of = |id: &String| (id.clone(), self.holds.get(id).cloned().unwrap_or_default());
        let (id, mut record) = match op {
            ProductOp::Hold { purchase_id, .. }
            | ProductOp::Sell { purchase_id }
            | ProductOp::Release { purchase_id }
            | ProductOp::HoldState { purchase_id } => of(purchase_id),
            other => panic!("no driver asks {other:?}"),
        };
        let shop = &mut self.shop;
        let heard = match op {
            ProductOp::Hold { lines, expires_in_ms, .. } => {
                let Ok(answer) = record.hold(shop, now, lines, *expires_in_ms);
                answer.map_or_else(Heard::Refused, Heard::Priced)
            }
            ProductOp::Sell { .. } => {
                let Ok(hold) = record.sell(shop, now);
                Heard::Hold(hold)
            }
            ProductOp::Release { .. } => {
                let Ok(hold) = record.release(shop, now);
                Heard::Hold(hold)
            }
            _ => Heard::Hold(record.state(now)),
        };
        self.put(id, record);
        heard
    }

    /// What was held for too long goes back.
    pub fn sweep(&mut self, now: Millis) {
        let due: Vec<String> = self
            .holds
            .iter()
            .filter(|(_, record)| record.state(now) != record.hold)
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            let mut record = self.holds[&id].clone();
            let Ok(_) = record.expire(&mut self.shop, now);
            self.put(id, record);
        }
    }

    fn put(&mut self, id: String, record: Record) {
        if self.forgets_released && record.hold == Hold::Released {
            self.holds.remove(&id);
        } else {
            self.holds.insert(id, record);
        }
    }
}
