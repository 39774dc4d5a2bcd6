//! The state machine of a hold, by which the product database reserves and sells the units of a purchase. It does no
//! I/O: the inventory is a trait, implemented by the item table and, in tests, by a map.
//!
//! ```text
//! Unknown ──hold──▶ Held ──sell──▶ Sold
//!    │               │ release,      │ release
//!    │               │ expiry        │
//!    └──release──────┴───▶ Released ◀┘
//! ```
//!
//! Messages may arrive late or twice. So every step is idempotent, and a release that arrives before its hold leaves a
//! tombstone, which makes the hold fail. `Released` is final. A hold counts as released from the instant at which it
//! expires, even before the sweeper has released it.

use super::ops::{ErrorCode, HoldState, LineItem, PricedLine, Refusal, ShopResult};
use crate::model::{Cents, Millis};

/// Lines of one hold.
pub const LINES_MAX: usize = 10_000;
/// Units of one line.
pub const UNITS_MAX: u32 = i32::MAX as u32;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InventoryItem {
    pub quantity: u64,
    /// The present price of one unit.
    pub price: Cents,
    pub seller_id: u64,
    pub seller: String,
}

/// All changes of one step must be applied atomically.
pub trait Inventory {
    type Error;

    fn get(&mut self, item_id: &str) -> Result<Option<InventoryItem>, Self::Error>;

    /// The caller has checked that there are enough units.
    fn take(&mut self, line: &PricedLine) -> Result<(), Self::Error>;

    fn put_back(&mut self, line: &PricedLine) -> Result<(), Self::Error>;

    /// Negative if a sale is undone.
    fn count_sold(&mut self, seller_id: u64, units: i64) -> Result<(), Self::Error>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldRecord {
    pub state: HoldState,
    /// Empty once released.
    pub lines: Vec<PricedLine>,
    /// While held, the time at which the hold expires; in any other state, the time at which it was entered.
    pub at: Millis,
}

impl Default for HoldRecord {
    /// Nothing was held or released.
    fn default() -> HoldRecord {
        HoldRecord { state: HoldState::Unknown, lines: Vec::new(), at: Millis(0) }
    }
}

impl HoldRecord {
    /// Takes all lines out of stock at their present prices, or none.
    ///
    /// A refusal changes nothing, so that the purchase may try again: OUT_OF_STOCK and NOT_FOUND name the item. Once
    /// held or sold, the same lines get the same response and others BAD_REQUEST; once released, FORBIDDEN, because a
    /// released purchase never holds anything again.
    pub fn hold<S: Inventory>(
        &mut self,
        inventory: &mut S,
        now: Millis,
        lines: &[LineItem],
        expires_in_ms: u64,
    ) -> Result<ShopResult<Vec<PricedLine>>, S::Error> {
        self.expire(inventory, now)?;
        match self.state {
            HoldState::Released => {
                let message = "purchase_id: the units of this purchase were released; nothing more is held for it";
                return Ok(Err(Refusal::new(ErrorCode::Forbidden, message)));
            }
            HoldState::Held | HoldState::Sold if self.has_lines(lines) => return Ok(Ok(self.lines.clone())),
            HoldState::Held | HoldState::Sold => {
                return Ok(Err(Refusal::new(ErrorCode::BadRequest, "lines: this purchase holds others already")));
            }
            HoldState::Unknown => {}
        }
        if let Err(refusal) = check_lines(lines) {
            return Ok(Err(refusal));
        }
        let mut priced = Vec::with_capacity(lines.len());
        for line in lines {
            let Some(item) = inventory.get(&line.item_id)? else {
                return Ok(Err(Refusal::new(ErrorCode::NotFound, format!("there is no item {}", line.item_id))));
            };
            if item.quantity < u64::from(line.quantity) {
                let message = format!("item {}: {} wanted, {} left", line.item_id, line.quantity, item.quantity);
                return Ok(Err(Refusal::new(ErrorCode::OutOfStock, message)));
            }
            priced.push(PricedLine {
                item_id: line.item_id.clone(),
                quantity: line.quantity,
                price: item.price,
                seller_id: item.seller_id,
                seller: item.seller,
            });
        }
        // Only after all lines have been checked.
        for line in &priced {
            inventory.take(line)?;
        }
        *self = HoldRecord { state: HoldState::Held, lines: priced.clone(), at: now.plus_ms(expires_in_ms) };
        Ok(Ok(priced))
    }

    /// If the resulting state is not `Sold`, nothing was sold.
    pub fn sell<S: Inventory>(&mut self, inventory: &mut S, now: Millis) -> Result<HoldState, S::Error> {
        self.expire(inventory, now)?;
        if self.state == HoldState::Held {
            for line in &self.lines {
                inventory.count_sold(line.seller_id, i64::from(line.quantity))?;
            }
            self.state = HoldState::Sold;
            self.at = now;
        }
        Ok(self.state)
    }

    /// Returns held or sold units to stock and refuses any later hold.
    pub fn release<S: Inventory>(&mut self, inventory: &mut S, now: Millis) -> Result<HoldState, S::Error> {
        if self.state != HoldState::Released {
            for line in &self.lines {
                inventory.put_back(line)?;
                if self.state == HoldState::Sold {
                    inventory.count_sold(line.seller_id, -i64::from(line.quantity))?;
                }
            }
            *self = HoldRecord { state: HoldState::Released, lines: Vec::new(), at: now };
        }
        Ok(self.state)
    }

    /// Releases a hold that has expired. Returns whether it did.
    pub fn expire<S: Inventory>(&mut self, inventory: &mut S, now: Millis) -> Result<bool, S::Error> {
        let is_due = self.state_at(now) != self.state;
        if is_due {
            self.release(inventory, now)?;
        }
        Ok(is_due)
    }

    /// A hold that has expired counts as released, even if it is still stored as held.
    pub fn state_at(&self, now: Millis) -> HoldState {
        if self.state == HoldState::Held && self.at <= now { HoldState::Released } else { self.state }
    }

    fn has_lines(&self, lines: &[LineItem]) -> bool {
        let same =
            |(held, line): (&PricedLine, &LineItem)| held.item_id == line.item_id && held.quantity == line.quantity;
        self.lines.len() == lines.len() && self.lines.iter().zip(lines).all(same)
    }
}

fn check_lines(lines: &[LineItem]) -> ShopResult<()> {
    let wrong = |why: String| Err(Refusal::new(ErrorCode::BadRequest, why));
    if lines.is_empty() || lines.len() > LINES_MAX {
        return wrong(format!("lines: expected 1 to {LINES_MAX}, not {}", lines.len()));
    }
    if let Some(line) = lines.iter().find(|line| !(1..=UNITS_MAX).contains(&line.quantity)) {
        return wrong(format!("quantity: expected 1 to {UNITS_MAX} of item {}, not {}", line.item_id, line.quantity));
    }
    let mut ids: Vec<&str> = lines.iter().map(|line| line.item_id.as_str()).collect();
    ids.sort_unstable();
    match ids.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => wrong(format!("lines: item {} is named twice", pair[0])),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    const NOW: Millis = Millis(1_795_253_400_000);

    /// An inventory in memory: items by id, units sold by seller.
    #[derive(Debug, Clone, Default, PartialEq)]
    struct MapInventory {
        items: BTreeMap<String, InventoryItem>,
        sold: BTreeMap<u64, i64>,
    }

    impl MapInventory {
        fn of(items: &[(&str, u64)]) -> MapInventory {
            let item = |quantity| InventoryItem { quantity, price: Cents(250), seller_id: 7, seller: "sam".to_owned() };
            let items = items.iter().map(|(id, quantity)| ((*id).to_owned(), item(*quantity)));
            MapInventory { items: items.collect(), sold: BTreeMap::new() }
        }

        fn left(&self, item_id: &str) -> u64 {
            self.items[item_id].quantity
        }

        fn sold(&self) -> i64 {
            self.sold.values().sum()
        }
    }

    impl Inventory for MapInventory {
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

        fn count_sold(&mut self, seller_id: u64, units: i64) -> Result<(), Infallible> {
            *self.sold.entry(seller_id).or_default() += units;
            Ok(())
        }
    }

    fn line(item_id: &str, quantity: u32) -> LineItem {
        LineItem { item_id: item_id.to_owned(), quantity }
    }

    fn code(answer: ShopResult<Vec<PricedLine>>) -> ErrorCode {
        answer.unwrap_err().code
    }

    #[test]
    fn all_lines_are_held_or_none() {
        let mut inventory = MapInventory::of(&[("1-1", 5), ("1-2", 1)]);
        let mut record = HoldRecord::default();
        let Ok(answer) = record.hold(&mut inventory, NOW, &[line("1-1", 2), line("1-2", 2)], 100);
        let refusal = answer.unwrap_err();
        assert_eq!(refusal.code, ErrorCode::OutOfStock);
        assert!(refusal.message.contains("1-2"), "{}", refusal.message);
        let Ok(answer) = record.hold(&mut inventory, NOW, &[line("1-1", 2), line("9-9", 1)], 100);
        assert_eq!(answer.unwrap_err(), Refusal::new(ErrorCode::NotFound, "there is no item 9-9"));
        assert_eq!(inventory, MapInventory::of(&[("1-1", 5), ("1-2", 1)]));
        assert_eq!(record, HoldRecord::default());
        // A refusal is not a release: with fewer units the same purchase can go on.
        let Ok(answer) = record.hold(&mut inventory, NOW, &[line("1-1", 2), line("1-2", 1)], 100);
        let priced = answer.unwrap();
        assert_eq!((priced.len(), priced[0].price, priced[0].seller.as_str()), (2, Cents(250), "sam"));
        assert_eq!((inventory.left("1-1"), inventory.left("1-2")), (3, 0));
    }

    #[test]
    fn a_repeat_gets_the_same_answer_and_takes_nothing() {
        let mut inventory = MapInventory::of(&[("1-1", 5)]);
        let mut record = HoldRecord::default();
        let Ok(first) = record.hold(&mut inventory, NOW, &[line("1-1", 2)], 100);
        // The repeat gets the old price, and the hold expires at the same time as before.
        inventory.items.get_mut("1-1").unwrap().price = Cents(999);
        let Ok(again) = record.hold(&mut inventory, NOW.plus_ms(50), &[line("1-1", 2)], 100);
        assert_eq!(again, first);
        assert_eq!((inventory.left("1-1"), record.at), (3, NOW.plus_ms(100)));
        let Ok(other) = record.hold(&mut inventory, NOW, &[line("1-1", 1)], 100);
        assert_eq!(code(other), ErrorCode::BadRequest);
        for _repeat in 0..2 {
            assert_eq!(record.sell(&mut inventory, NOW), Ok(HoldState::Sold));
            assert_eq!((inventory.left("1-1"), inventory.sold()), (3, 2));
        }
        let Ok(sold) = record.hold(&mut inventory, NOW.plus_ms(9_999), &[line("1-1", 2)], 100);
        assert_eq!(sold, first);
        for _repeat in 0..2 {
            assert_eq!(record.release(&mut inventory, NOW), Ok(HoldState::Released));
            assert_eq!((inventory.left("1-1"), inventory.sold()), (5, 0));
        }
        assert_eq!(record.sell(&mut inventory, NOW), Ok(HoldState::Released));
        let Ok(late) = record.hold(&mut inventory, NOW, &[line("1-1", 2)], 100);
        assert_eq!(code(late), ErrorCode::Forbidden);
    }

    #[test]
    fn a_release_before_its_hold_refuses_it() {
        let mut inventory = MapInventory::of(&[("1-1", 5)]);
        let mut record = HoldRecord::default();
        assert_eq!(record.sell(&mut inventory, NOW), Ok(HoldState::Unknown));
        assert_eq!(record.release(&mut inventory, NOW), Ok(HoldState::Released));
        let Ok(late) = record.hold(&mut inventory, NOW, &[line("1-1", 2)], 100);
        assert_eq!(code(late), ErrorCode::Forbidden);
        assert_eq!(inventory.left("1-1"), 5);
    }

    #[test]
    fn a_hold_ends_at_its_time_and_a_sale_never() {
        let (mut inventory, mut record) = (MapInventory::of(&[("1-1", 5)]), HoldRecord::default());
        let Ok(Ok(_held)) = record.hold(&mut inventory, NOW, &[line("1-1", 2)], 100) else { panic!("not held") };
        assert_eq!(record.expire(&mut inventory, NOW.plus_ms(99)), Ok(false));
        assert_eq!(record.state_at(NOW.plus_ms(99)), HoldState::Held);
        assert_eq!(record.state_at(NOW.plus_ms(100)), HoldState::Released);
        // The sweeper has not run yet, but the hold has expired all the same.
        let mut swept = (inventory.clone(), record.clone());
        assert_eq!(record.sell(&mut inventory, NOW.plus_ms(100)), Ok(HoldState::Released));
        assert_eq!((inventory.left("1-1"), inventory.sold()), (5, 0));
        assert_eq!(swept.1.expire(&mut swept.0, NOW.plus_ms(100)), Ok(true));
        assert_eq!(swept.1.expire(&mut swept.0, NOW.plus_ms(100)), Ok(false));
        assert_eq!(swept, (inventory, record));

        let (mut inventory, mut record) = (MapInventory::of(&[("1-1", 5)]), HoldRecord::default());
        let Ok(Ok(_held)) = record.hold(&mut inventory, NOW, &[line("1-1", 2)], 100) else { panic!("not held") };
        assert_eq!(record.sell(&mut inventory, NOW.plus_ms(99)), Ok(HoldState::Sold));
        assert_eq!(record.expire(&mut inventory, Millis(u64::MAX)), Ok(false));
        assert_eq!(record.state_at(Millis(u64::MAX)), HoldState::Sold);
    }

    #[test]
    fn lines_that_make_no_sense_are_refused() {
        let mut inventory = MapInventory::of(&[("1-1", 5)]);
        let many: Vec<LineItem> = (0..=LINES_MAX).map(|number| line(&format!("1-{number}"), 1)).collect();
        for lines in [vec![], vec![line("1-1", 0)], vec![line("1-1", UNITS_MAX + 1)], many] {
            let Ok(answer) = HoldRecord::default().hold(&mut inventory, NOW, &lines, 100);
            assert_eq!(code(answer), ErrorCode::BadRequest);
        }
        // Each of the two lines alone would find enough units.
        let Ok(twice) = HoldRecord::default().hold(&mut inventory, NOW, &[line("1-1", 3), line("1-1", 3)], 100);
        assert_eq!(code(twice), ErrorCode::BadRequest);
    }

    proptest! {
        /// In whatever order the operations come, units in stock, held and sold add up to the initial number.
        #[test]
        fn units_are_never_made_nor_lost(
            steps in prop::collection::vec((0..5u8, 0..3usize, 0..4u32, 0..4u32, 0..120u64), 0..60),
        ) {
            let mut inventory = MapInventory::of(&[("1-1", 6), ("1-2", 3)]);
            let mut records = vec![HoldRecord::default(); 3];
            let mut now = NOW;
            for (step, purchase, first, second, wait_ms) in steps {
                let record = &mut records[purchase];
                let was = record.state_at(now);
                match step {
                    0 | 1 => {
                        let lines = [line("1-1", first), line("1-2", second)];
                        let lines: Vec<LineItem> = lines.into_iter().filter(|line| line.quantity > 0).collect();
                        let Ok(answer) = record.hold(&mut inventory, now, &lines, 100);
                        prop_assert!(was != HoldState::Released || answer.is_err());
                    }
                    2 => {
                        let Ok(hold) = record.sell(&mut inventory, now);
                        prop_assert_eq!(hold == HoldState::Sold, matches!(was, HoldState::Held | HoldState::Sold));
                    }
                    3 => prop_assert_eq!(record.release(&mut inventory, now), Ok(HoldState::Released)),
                    _ => now = now.plus_ms(wait_ms),
                }
                let units = |hold: HoldState| -> u64 {
                    let lines = records.iter().filter(|record| record.state == hold).flat_map(|record| &record.lines);
                    lines.map(|line| u64::from(line.quantity)).sum()
                };
                prop_assert_eq!(units(HoldState::Sold) as i64, inventory.sold());
                prop_assert_eq!(
                    inventory.left("1-1") + inventory.left("1-2") + units(HoldState::Held) + units(HoldState::Sold),
                    9
                );
            }
        }
    }
}
