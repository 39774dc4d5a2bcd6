//! Random operations of purchases and sellers on a few items: on disk, no units are created or lost, and a search finds
//! exactly the items with stock.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::shop::ops::ItemPage;

#[derive(Debug, Clone)]
enum Step {
    Hold(u8, [u32; 2]),
    Sell(u8),
    Release(u8),
    Units(bool, i64),
    Wait(u64),
    Sweep,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4u8, [0..4u32, 0..4u32]).prop_map(|(purchase, units)| Step::Hold(purchase, units)),
        (0..4u8).prop_map(Step::Sell),
        (0..4u8).prop_map(Step::Release),
        (any::<bool>(), -3..4i64).prop_map(|(second, delta)| Step::Units(second, delta)),
        (0..700u64).prop_map(Step::Wait),
        Just(Step::Sweep),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn units_are_neither_made_nor_lost_on_the_disk(steps in prop::collection::vec(any_step(), 0..50)) {
        let (_dir, db) = open();
        let items = [shelve(&db, 5), shelve(&db, 2)];
        let (mut now, mut registered) = (NOW, [5i64, 2]);
        // The lines that each purchase held.
        let mut taken: BTreeMap<u8, [i64; 2]> = BTreeMap::new();
        for (round, step) in steps.into_iter().enumerate() {
            match step {
                Step::Hold(purchase, units) => {
                    let lines = items.iter().zip(units).filter(|(_item, units)| *units > 0);
                    let lines = lines.map(|(item, quantity)| LineItem { item_id: item.clone(), quantity }).collect();
                    let op = ProductOp::Hold { purchase_id: purchase.to_string(), lines, expires_in_ms: 1_000 };
                    if db.handle_at(now, op).is_ok() {
                        taken.insert(purchase, units.map(i64::from));
                    }
                }
                Step::Sell(purchase) => drop(db.handle_at(now, sell(&purchase.to_string())).unwrap()),
                Step::Release(purchase) => {
                    prop_assert_eq!(db.handle_at(now, release(&purchase.to_string())).unwrap(), r#""released""#);
                }
                Step::Units(second, delta) => {
                    let place = usize::from(second);
                    if db.handle_at(now, units(&round.to_string(), 7, &items[place], delta)).is_ok() {
                        registered[place] += delta;
                    }
                }
                Step::Wait(ms) => now = now.plus_ms(ms),
                Step::Sweep => while db.inner.sweep(now).unwrap().is_zero() {},
            }
            // Expired holds may not be released on disk yet, so the stored state counts.
            let at = |purchase: &u8| db.handle_at(Millis(0), state(&purchase.to_string())).unwrap();
            let sum = |hold: &str, place: usize| -> i64 {
                taken.iter().filter(|(purchase, _)| at(purchase) == hold).map(|(_, units)| units[place]).sum()
            };
            let mut for_sale = 0;
            for (place, item_id) in items.iter().enumerate() {
                let left = item(&db, item_id).quantity;
                for_sale += u64::from(left > 0);
                let elsewhere = sum(r#""held""#, place) + sum(r#""sold""#, place);
                prop_assert_eq!(i64::from(left) + elsewhere, registered[place]);
            }
            prop_assert_eq!(sold(&db) as i64, sum(r#""sold""#, 0) + sum(r#""sold""#, 1));
            for keywords in [&["lamp"][..], &[]] {
                let found: ItemPage = ask(&db, search(Some(3), keywords));
                prop_assert_eq!((found.total, found.items.len() as u64), (for_sale, for_sale));
                prop_assert!(found.items.iter().all(|item| item.quantity > 0));
            }
        }
    }
}

#[test]
fn what_is_hidden_is_found_by_nobody_while_what_holds_it_goes_on() {
    let (_dir, db) = open();
    let items: [String; 3] = std::array::from_fn(|_| shelve(&db, 2));
    let found = |keywords: &[&str]| -> Vec<String> {
        let found: ItemPage = ask(&db, search(Some(3), keywords));
        assert_eq!(found.total, found.items.len() as u64);
        found.items.into_iter().map(|item| item.item_id).collect()
    };
    for (purchase, item_id) in ["p0", "p1", "p2"].into_iter().zip(&items) {
        db.handle_at(NOW, hold(purchase, item_id, 2)).unwrap();
    }
    assert!(found(&["lamp"]).is_empty(), "all units are held");
    assert_eq!(db.remove_item(&items[0]), Ok(true));
    assert_eq!(db.remove_item(&items[1]), Ok(true));
    assert_eq!(db.handle_at(NOW, sell("p0")).unwrap(), r#""sold""#);
    for purchase in ["p1", "p2"] {
        db.handle_at(NOW, release(purchase)).unwrap();
    }
    // Its units are back in stock, but the removed item is not found.
    for keywords in [&["lamp"][..], &[]] {
        assert_eq!(found(keywords), [items[2].as_str()]);
    }
    assert_eq!(refused(&db, hold("p3", &items[1], 1)), ErrorCode::NotFound);
    assert_eq!(refused(&db, units("u", 7, &items[1], 1)), ErrorCode::NotFound);
    assert_eq!(sold(&db), 2, "what was sold stays sold");
    db.hide_seller(7, true).unwrap();
    assert!(found(&["lamp"]).is_empty() && found(&[]).is_empty());
    let new: crate::shop::ops::RegisteredItem = ask(&db, register("r", new_item(3, "A lamp", &["lamp"], 100, 1)));
    assert!(found(&[]).is_empty(), "a new one neither");
    db.hide_seller(7, false).unwrap();
    assert_eq!(found(&["lamp"]), [new.item_id.as_str(), items[2].as_str()]);
    db.hide_seller(99, false).unwrap();
}
