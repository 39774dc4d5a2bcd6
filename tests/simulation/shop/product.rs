//! The simulated product database: each operation is one transaction, on disk before the response.

use std::collections::BTreeMap;
use std::convert::Infallible;

use p2s2::internals::model::{Cents, Millis};
use p2s2::internals::shop::hold::{HoldRecord, Inventory, InventoryItem};
use p2s2::internals::shop::ops::{HoldState, PricedLine};
use p2s2::internals::shop::product::ProductOp;
use p2s2::internals::shop::purchase::driver::OpResponse;

/// The inventory: items by id, and the number of units with which each was registered.
#[derive(Default)]
pub struct ShopInventory {
    pub items: BTreeMap<String, InventoryItem>,
    pub registered: BTreeMap<String, u64>,
}

#[derive(Default)]
pub struct ProductDb {
    pub shop: ShopInventory,
    pub holds: BTreeMap<String, HoldRecord>,
    pub drops_tombstones: bool,
}

impl Inventory for ShopInventory {
    type Error = Infallible;

    fn get(&mut self, item_id: &str) -> Result<Option<InventoryItem>, Infallible> {
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

impl ProductDb {
    pub fn list(&mut self, item_id: &str, quantity: u64, price: i64) {
        let shelved = InventoryItem { quantity, price: Cents(price), seller_id: 1, seller: "sam".to_owned() };
        self.shop.items.insert(item_id.to_owned(), shelved);
        self.shop.registered.insert(item_id.to_owned(), quantity);
    }

    pub fn handle(&mut self, now: Millis, op: &ProductOp) -> OpResponse {
        let of = |id: &String| (id.clone(), self.holds.get(id).cloned().unwrap_or_default());
        let (id, mut record) = match op {
            ProductOp::Hold { purchase_id, .. }
            | ProductOp::Sell { purchase_id }
            | ProductOp::Release { purchase_id }
            | ProductOp::HoldState { purchase_id } => of(purchase_id),
            other => panic!("no driver asks {other:?}"),
        };
        let shop = &mut self.shop;
        let op_response = match op {
            ProductOp::Hold { lines, expires_in_ms, .. } => {
                let Ok(answer) = record.hold(shop, now, lines, *expires_in_ms);
                answer.map_or_else(OpResponse::Refused, OpResponse::Priced)
            }
            ProductOp::Sell { .. } => {
                let Ok(hold) = record.sell(shop, now);
                OpResponse::Hold(hold)
            }
            ProductOp::Release { .. } => {
                let Ok(hold) = record.release(shop, now);
                OpResponse::Hold(hold)
            }
            _ => OpResponse::Hold(record.state_at(now)),
        };
        self.put(id, record);
        op_response
    }

    /// Releases expired holds.
    pub fn sweep(&mut self, now: Millis) {
        let due: Vec<String> = self
            .holds
            .iter()
            .filter(|(_, record)| record.state_at(now) != record.state)
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            let mut record = self.holds[&id].clone();
            let Ok(_) = record.expire(&mut self.shop, now);
            self.put(id, record);
        }
    }

    fn put(&mut self, id: String, record: HoldRecord) {
        if self.drops_tombstones && record.state == HoldState::Released {
            self.holds.remove(&id);
        } else {
            self.holds.insert(id, record);
        }
    }
}
