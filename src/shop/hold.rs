//! The core of a hold: what the product database does with a purchase's units. No I/O here; the shelf
//! that units come from and go back to is a trait, which a table or a map can stand behind.
//!
//! ```text
//! Unknown ──hold──▶ Held ──sell──▶ Sold
//!    │               │ release,      │ release
//!    │               │ expiry        │
//!    └──release──────┴───▶ Released ◀┘
//! ```
//!
//! Messages may come late and twice. So every step may be repeated and then changes nothing, and a release
//! that comes before its hold leaves a tombstone, which refuses the hold when it comes. Nothing leads out
//! of `Released`. A hold past its time counts as released from that instant on, whether or not anybody
//! has looked at it since.

use super::ops::{Answer, Code, Hold, Line, PricedLine, Refusal};
use crate::model::{Cents, Millis};

/// Most lines that are held at once.
pub const LINES_MAX: usize = 10_000;
/// Most units of one line.
pub const UNITS_MAX: u32 = i32::MAX as u32;

/// What is known of an item that somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shelved {
    /// Units that can be taken.
    pub quantity: u64,
    /// Of one unit, now.
    pub price: Cents,
    /// Whose it is.
    pub seller_id: u64,
    /// The seller's user name.
    pub seller: String,
}

/// Where units come from and go back to. What one step does to it happens as a whole or not at all.
pub trait Shelf {
    /// Why it could not be asked or changed.
    type Error;

    /// What there is of an item; nothing if it is unknown.
    fn look(&mut self, item_id: &str) -> Result<Option<Shelved>, Self::Error>;

    /// Takes units away; there are as many.
    fn take(&mut self, line: &PricedLine) -> Result<(), Self::Error>;

    /// Puts units back.
    fn put_back(&mut self, line: &PricedLine) -> Result<(), Self::Error>;

    /// Units of a seller were sold, or (negative) are not any more.
    fn count_sold(&mut self, seller_id: u64, units: i64) -> Result<(), Self::Error>;
}

/// All that is kept of a purchase's units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// How far it is.
    pub hold: Hold,
    /// What is held or sold; empty once released.
    pub lines: Vec<PricedLine>,
    /// When it expires while held; else when it came to be what it is.
    pub at: Millis,
}

impl Default for Record {
    /// A purchase that nobody has heard of.
    fn default() -> Record {
        Record { hold: Hold::Unknown, lines: Vec::new(), at: Millis(0) }
    }
}

impl Record {
    /// Takes all lines from the shelf, at its prices, or none.
    ///
    /// A refusal leaves record and shelf as they were, so that the same purchase may ask again:
    /// OUT_OF_STOCK and NOT_FOUND name the item. Once held or sold, the same lines get the same answer and
    /// others BAD_REQUEST; once released, FORBIDDEN: that purchase is over and will never hold anything.
    pub fn hold<S: Shelf>(
        &mut self,
        shelf: &mut S,
        now: Millis,
        lines: &[Line],
        expires_in_ms: u64,
    ) -> Result<Answer<Vec<PricedLine>>, S::Error> {
        self.expire(shelf, now)?;
        match self.hold {
            Hold::Released => return Ok(Err(is_over())),
            Hold::Held | Hold::Sold if self.is_of(lines) => return Ok(Ok(self.lines.clone())),
            Hold::Held | Hold::Sold => {
                return Ok(Err(Refusal::new(Code::BadRequest, "lines: this purchase holds others already")));
            }
            Hold::Unknown => {}
        }
        if let Err(refusal) = check(lines) {
            return Ok(Err(refusal));
        }
        let mut priced = Vec::with_capacity(lines.len());
        for line in lines {
            let Some(shelved) = shelf.look(&line.item_id)? else {
                return Ok(Err(Refusal::new(Code::NotFound, format!("there is no item {}", line.item_id))));
            };
            if shelved.quantity < u64::from(line.quantity) {
                let message = format!("item {}: {} wanted, {} left", line.item_id, line.quantity, shelved.quantity);
                return Ok(Err(Refusal::new(Code::OutOfStock, message)));
            }
            priced.push(PricedLine {
                item_id: line.item_id.clone(),
                quantity: line.quantity,
                price: shelved.price,
                seller_id: shelved.seller_id,
                seller: shelved.seller,
            });
        }
        // Only now that all are known to be there: none is taken for nothing.
        for line in &priced {
            shelf.take(line)?;
        }
        *self = Record { hold: Hold::Held, lines: priced.clone(), at: now.plus_ms(expires_in_ms) };
        Ok(Ok(priced))
    }

    /// Held becomes sold, for good. Answers how it stands then: anything but `Sold` means that it was not.
    pub fn sell<S: Shelf>(&mut self, shelf: &mut S, now: Millis) -> Result<Hold, S::Error> {
        self.expire(shelf, now)?;
        if self.hold == Hold::Held {
            for line in &self.lines {
                shelf.count_sold(line.seller_id, i64::from(line.quantity))?;
            }
            self.hold = Hold::Sold;
            self.at = now;
        }
        Ok(self.hold)
    }

    /// Whatever was held or sold goes back, and nothing will be held any more.
    pub fn release<S: Shelf>(&mut self, shelf: &mut S, now: Millis) -> Result<Hold, S::Error> {
        if self.hold != Hold::Released {
            for line in &self.lines {
                shelf.put_back(line)?;
                if self.hold == Hold::Sold {
                    shelf.count_sold(line.seller_id, -i64::from(line.quantity))?;
                }
            }
            *self = Record { hold: Hold::Released, lines: Vec::new(), at: now };
        }
        Ok(self.hold)
    }

    /// Releases what was held for too long. Answers whether it did.
    pub fn expire<S: Shelf>(&mut self, shelf: &mut S, now: Millis) -> Result<bool, S::Error> {
        let is_due = self.state(now) != self.hold;
        if is_due {
            self.release(shelf, now)?;
        }
        Ok(is_due)
    }

    /// How it stands at this instant, without changing anything.
    pub fn state(&self, now: Millis) -> Hold {
        if self.hold == Hold::Held && self.at <= now { Hold::Released } else { self.hold }
    }

    fn is_of(&self, lines: &[Line]) -> bool {
        let same = |(held, line): (&PricedLine, &Line)| held.item_id == line.item_id && held.quantity == line.quantity;
        self.lines.len() == lines.len() && self.lines.iter().zip(lines).all(same)
    }
}

fn is_over() -> Refusal {
    Refusal::new(Code::Forbidden, "purchase_id: the units of this purchase were released; nothing more is held for it")
}

fn check(lines: &[Line]) -> Answer<()> {
    let wrong = |why: String| Err(Refusal::new(Code::BadRequest, why));
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

    /// A shelf in memory: items by id, units sold by seller.
    #[derive(Debug, Clone, Default, PartialEq)]
    struct Shop {
        items: BTreeMap<String, Shelved>,
        sold: BTreeMap<u64, i64>,
    }

    impl Shop {
        fn of(items: &[(&str, u64)]) -> Shop {
            let shelved = |quantity| Shelved { quantity, price: Cents(250), seller_id: 7, seller: "sam".to_owned() };
            let items = items.iter().map(|(id, quantity)| ((*id).to_owned(), shelved(*quantity)));
            Shop { items: items.collect(), sold: BTreeMap::new() }
        }

        fn left(&self, item_id: &str) -> u64 {
            self.items[item_id].quantity
        }

        fn sold(&self) -> i64 {
            self.sold.values().sum()
        }
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

        fn count_sold(&mut self, seller_id: u64, units: i64) -> Result<(), Infallible> {
            *self.sold.entry(seller_id).or_default() += units;
            Ok(())
        }
    }

    fn line(item_id: &str, quantity: u32) -> Line {
        Line { item_id: item_id.to_owned(), quantity }
    }

    fn code(answer: Answer<Vec<PricedLine>>) -> Code {
        answer.unwrap_err().code
    }

    #[test]
    fn all_lines_are_held_or_none() {
        let mut shop = Shop::of(&[("1-1", 5), ("1-2", 1)]);
        let mut record = Record::default();
        let Ok(answer) = record.hold(&mut shop, NOW, &[line("1-1", 2), line("1-2", 2)], 100);
        let refusal = answer.unwrap_err();
        assert_eq!(refusal.code, Code::OutOfStock);
        assert!(refusal.message.contains("1-2"), "{}", refusal.message);
        let Ok(answer) = record.hold(&mut shop, NOW, &[line("1-1", 2), line("9-9", 1)], 100);
        assert_eq!(answer.unwrap_err(), Refusal::new(Code::NotFound, "there is no item 9-9"));
        assert_eq!(shop, Shop::of(&[("1-1", 5), ("1-2", 1)]));
        assert_eq!(record, Record::default());
        // Refused is not released: with less it goes on under the same id.
        let Ok(answer) = record.hold(&mut shop, NOW, &[line("1-1", 2), line("1-2", 1)], 100);
        let priced = answer.unwrap();
        assert_eq!((priced.len(), priced[0].price, priced[0].seller.as_str()), (2, Cents(250), "sam"));
        assert_eq!((shop.left("1-1"), shop.left("1-2")), (3, 0));
    }

    #[test]
    fn a_repeat_gets_the_same_answer_and_takes_nothing() {
        let mut shop = Shop::of(&[("1-1", 5)]);
        let mut record = Record::default();
        let Ok(first) = record.hold(&mut shop, NOW, &[line("1-1", 2)], 100);
        // Also at the old price, and with the same end.
        shop.items.get_mut("1-1").unwrap().price = Cents(999);
        let Ok(again) = record.hold(&mut shop, NOW.plus_ms(50), &[line("1-1", 2)], 100);
        assert_eq!(again, first);
        assert_eq!((shop.left("1-1"), record.at), (3, NOW.plus_ms(100)));
        let Ok(other) = record.hold(&mut shop, NOW, &[line("1-1", 1)], 100);
        assert_eq!(code(other), Code::BadRequest);
        for _repeat in 0..2 {
            assert_eq!(record.sell(&mut shop, NOW), Ok(Hold::Sold));
            assert_eq!((shop.left("1-1"), shop.sold()), (3, 2));
        }
        let Ok(sold) = record.hold(&mut shop, NOW.plus_ms(9_999), &[line("1-1", 2)], 100);
        assert_eq!(sold, first);
        for _repeat in 0..2 {
            assert_eq!(record.release(&mut shop, NOW), Ok(Hold::Released));
            assert_eq!((shop.left("1-1"), shop.sold()), (5, 0));
        }
        assert_eq!(record.sell(&mut shop, NOW), Ok(Hold::Released));
        let Ok(late) = record.hold(&mut shop, NOW, &[line("1-1", 2)], 100);
        assert_eq!(code(late), Code::Forbidden);
    }

    #[test]
    fn a_release_before_its_hold_refuses_it() {
        let mut shop = Shop::of(&[("1-1", 5)]);
        let mut record = Record::default();
        assert_eq!(record.sell(&mut shop, NOW), Ok(Hold::Unknown));
        assert_eq!(record.release(&mut shop, NOW), Ok(Hold::Released));
        let Ok(late) = record.hold(&mut shop, NOW, &[line("1-1", 2)], 100);
        assert_eq!(code(late), Code::Forbidden);
        assert_eq!(shop.left("1-1"), 5);
    }

    #[test]
    fn a_hold_ends_at_its_time_and_a_sale_never() {
        let (mut shop, mut record) = (Shop::of(&[("1-1", 5)]), Record::default());
        let Ok(Ok(_held)) = record.hold(&mut shop, NOW, &[line("1-1", 2)], 100) else { panic!("not held") };
        assert_eq!(record.expire(&mut shop, NOW.plus_ms(99)), Ok(false));
        assert_eq!(record.state(NOW.plus_ms(99)), Hold::Held);
        assert_eq!(record.state(NOW.plus_ms(100)), Hold::Released);
        // Nobody has swept yet: too late all the same.
        let mut swept = (shop.clone(), record.clone());
        assert_eq!(record.sell(&mut shop, NOW.plus_ms(100)), Ok(Hold::Released));
        assert_eq!((shop.left("1-1"), shop.sold()), (5, 0));
        assert_eq!(swept.1.expire(&mut swept.0, NOW.plus_ms(100)), Ok(true));
        assert_eq!(swept.1.expire(&mut swept.0, NOW.plus_ms(100)), Ok(false));
        assert_eq!(swept, (shop, record));

        let (mut shop, mut record) = (Shop::of(&[("1-1", 5)]), Record::default());
        let Ok(Ok(_held)) = record.hold(&mut shop, NOW, &[line("1-1", 2)], 100) else { panic!("not held") };
        assert_eq!(record.sell(&mut shop, NOW.plus_ms(99)), Ok(Hold::Sold));
        assert_eq!(record.expire(&mut shop, Millis(u64::MAX)), Ok(false));
        assert_eq!(record.state(Millis(u64::MAX)), Hold::Sold);
    }

    #[test]
    fn lines_that_make_no_sense_are_refused() {
        let mut shop = Shop::of(&[("1-1", 5)]);
        let many: Vec<Line> = (0..=LINES_MAX).map(|number| line(&format!("1-{number}"), 1)).collect();
        for lines in [vec![], vec![line("1-1", 0)], vec![line("1-1", UNITS_MAX + 1)], many] {
            let Ok(answer) = Record::default().hold(&mut shop, NOW, &lines, 100);
            assert_eq!(code(answer), Code::BadRequest);
        }
        // Else each alone would find enough.
        let Ok(twice) = Record::default().hold(&mut shop, NOW, &[line("1-1", 3), line("1-1", 3)], 100);
        assert_eq!(code(twice), Code::BadRequest);
    }

    proptest! {
        /// Whatever comes in whatever order: units left, held and sold are those that there were.
        #[test]
        fn units_are_never_made_nor_lost(
            steps in prop::collection::vec((0..5u8, 0..3usize, 0..4u32, 0..4u32, 0..120u64), 0..60),
        ) {
            let mut shop = Shop::of(&[("1-1", 6), ("1-2", 3)]);
            let mut records = vec![Record::default(); 3];
            let mut now = NOW;
            for (step, purchase, first, second, wait_ms) in steps {
                let record = &mut records[purchase];
                let was = record.state(now);
                match step {
                    0 | 1 => {
                        let lines = [line("1-1", first), line("1-2", second)];
                        let lines: Vec<Line> = lines.into_iter().filter(|line| line.quantity > 0).collect();
                        let Ok(answer) = record.hold(&mut shop, now, &lines, 100);
                        prop_assert!(was != Hold::Released || answer.is_err());
                    }
                    2 => {
                        let Ok(hold) = record.sell(&mut shop, now);
                        prop_assert_eq!(hold == Hold::Sold, matches!(was, Hold::Held | Hold::Sold));
                    }
                    3 => prop_assert_eq!(record.release(&mut shop, now), Ok(Hold::Released)),
                    _ => now = now.plus_ms(wait_ms),
                }
                let units = |hold: Hold| -> u64 {
                    let lines = records.iter().filter(|record| record.hold == hold).flat_map(|record| &record.lines);
                    lines.map(|line| u64::from(line.quantity)).sum()
                };
                prop_assert_eq!(units(Hold::Sold) as i64, shop.sold());
                prop_assert_eq!(
                    shop.left("1-1") + shop.left("1-2") + units(Hold::Held) + units(Hold::Sold),
                    9
                );
            }
        }
    }
}
