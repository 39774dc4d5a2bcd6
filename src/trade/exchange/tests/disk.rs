//! Memory agrees with the disk.

use super::*;
use crate::model::Cents;

#[test]
fn a_start_finds_all_as_it_was() {
    let mut world = World::with(&["al", "bo", "cy", "di"]);
    world.bought("bo", "al", 1);
    world.search("bo", 2); // searching
    world.search("cy", 2);
    for (seller, price) in [("al", 150), ("bo", 160), ("di", 170)] {
        let number = world.newest(seller)["rq"].as_u64().unwrap();
        world.act(seller, "OFFER", number, Some(price)); // negotiating
    }
    world.search("di", 2);
    for (seller, price) in [("al", 50), ("bo", 60), ("cy", 70)] {
        let number = world.newest(seller)["rq"].as_u64().unwrap();
        world.act(seller, "OFFER", number, Some(price)); // reserved
    }
    world.search("di", 3);
    world.act("di", "CANCEL", 3, None);
    world.say("cy", json!({"type": "DE-REGISTER", "rq": 9}));
    let token = world.tokens["al"].clone();
    world.from("127.0.0.1:1", login("al", 1, &token, 5999));
    world.homes.insert("al".to_owned(), "127.0.0.1:5999".parse().unwrap());
    let before = world.view();
    let mids = world.exchange.parties_by_mid.lock().clone().into_iter();
    let is_repeated = |id: &NotificationId| world.exchange.outgoing_notification(*id).is_some();
    let repeated = mids.map(|(mid, (deal, party))| NotificationId { deal, party, mid }).filter(is_repeated);
    let mut mids: Vec<u64> = repeated.map(|id| id.mid).collect();
    mids.sort();
    let resumed = world.reload();
    assert_eq!(world.view(), before);
    let mut again: Vec<u64> = resumed.notifications.iter().map(|id| id.mid).collect();
    again.sort();
    assert_eq!(again, mids, "with their old numbers");
    assert_eq!(resumed.settlements.len(), 1);
    assert_eq!(resumed.deadlines.len(), 2);
    assert_eq!(world.exchange.addresses.read().len(), 3);
}

#[test]
fn pushes_of_deals_that_ended_long_ago_do_not_go_out_again() {
    let mut world = World::with(&["al", "bo"]);
    world.search("bo", 1);
    world.pass(5_000);
    world.tick_all();
    world.pass(599_999);
    assert_eq!(world.reload().notifications.len(), 1);
    world.pass(1);
    assert_eq!(world.reload().notifications.len(), 0);
    world.exchange.sweep(world.now);
    world.assert_no_trace();
}

#[test]
fn a_number_is_never_given_twice() {
    let mut world = World::new();
    let mut seen = HashSet::new();
    for start in 0..20 {
        for _ in 0..50 {
            let first = world.exchange.allocate_ids(3);
            assert!(first >= FIRST_SERVER_NUMBER);
            for number in first..first + 3 {
                assert!(seen.insert(number), "{number} was given again after start {start}");
            }
        }
        world.reload();
    }
    let highest = *seen.iter().max().unwrap();
    let journal = world.exchange.journal().clone();
    let snapshot = journal.snapshot();
    let (restored, _) = Exchange::load(journal.clone(), rules(), snapshot, first_id(1), world.now);
    let first = restored.allocate_ids(1);
    assert!(first > highest + (1 << 35), "a backup does not know what was given since");
    // Loading again with the same range does not begin it anew.
    let (again, _) = Exchange::load(journal.clone(), rules(), journal.snapshot(), first_id(1), world.now);
    assert!((first + 1..first + (1 << 35)).contains(&again.allocate_ids(1)));
}

#[test]
fn ten_minutes_after_its_end_a_deal_has_left_no_trace() {
    let mut world = World::with(&["al", "bo", "cy"]);
    let deal = world.bought("bo", "al", 1);
    world.settle(deal, &[DealInput::Authorised, DealInput::Shipped, DealInput::Captured]);
    world.search("al", 2);
    world.act("al", "CANCEL", 2, None);
    world.search("cy", 3);
    world.say("cy", json!({"type": "DE-REGISTER", "rq": 9}));
    // A peer with a validated address keeps its name.
    world.status("127.0.0.1:5001", "bo");
    world.pass(599_999);
    world.exchange.sweep(world.now);
    assert_eq!(world.exchange.sizes().1, 3);
    world.pass(1);
    world.exchange.sweep(world.now);
    world.assert_no_trace();
    assert_eq!(code(&world.act("bo", "BUY", 1, Some(80))), "UNKNOWN_DEAL");
    assert_eq!(world.search("bo", 1)["type"], "SEARCHING", "the number is free");
}

#[test]
fn a_deal_is_forgotten_with_the_last_who_was_in_it() {
    let mut world = World::with(&["al", "bo"]);
    world.search("bo", 1);
    world.say("bo", json!({"type": "DE-REGISTER", "rq": 9}));
    assert_eq!(world.exchange.sizes().1, 1);
    world.say("al", json!({"type": "DE-REGISTER", "rq": 9}));
    assert_eq!(world.exchange.sizes().1, 0);
}

#[test]
fn money_is_booked_with_the_fee_of_the_house() {
    let mut world = World::with(&["al", "bo"]);
    let deal = world.bought("bo", "al", 1);
    world.settle(deal, &[DealInput::Authorised]);
    let rows = world.exchange.journal().0.lock();
    let Some(ExchangeChange::Ledger(LedgerRow { key, price, fee, .. })) =
        rows.iter().find(|change| matches!(change, ExchangeChange::Ledger(_)))
    else {
        panic!("nothing was booked")
    };
    assert_eq!((price, fee), (&Cents(8_000), &Cents(800)));
    assert_eq!(*key, world.exchange.settlement_order(deal).unwrap().key);
}

#[test]
fn the_fee_is_that_of_the_moment_of_buy() {
    let mut world = World::with(&["al", "bo"]);
    let deal = world.bought("bo", "al", 1);
    let other_rate = || ExchangeRules { fee: FeeRate::parse_percent("25").unwrap(), ..rules() };
    let reload = |world: &mut World, snapshot| {
        let journal = world.exchange.journal().clone();
        world.exchange = Exchange::load(journal, other_rate(), snapshot, 0, world.now).0;
    };
    let snapshot = world.exchange.journal().snapshot();
    reload(&mut world, snapshot);
    assert_eq!(world.exchange.settlement_order(deal).unwrap().fee, Cents(800), "8 of 80, as was said");
    world.settle(deal, &[DealInput::Authorised, DealInput::Shipped, DealInput::Captured]);
    let fees: Vec<Cents> = world.exchange.journal().money_rows().into_iter().map(|row| row.fee).collect();
    assert_eq!(fees, [Cents(800), Cents(800)]);

    // A row of a version that did not record the fee.
    let deal = world.bought("bo", "al", 2);
    let mut snapshot = world.exchange.journal().snapshot();
    for (row, _) in &mut snapshot.deals {
        let mut older = serde_json::to_value(&*row).unwrap();
        if let Some(settling) = older["state"].get_mut("Settling").and_then(Value::as_object_mut) {
            assert_eq!(settling.remove("fee"), Some(json!(20)), "25 % of 80");
        }
        *row = serde_json::from_value(older).unwrap();
    }
    reload(&mut world, snapshot);
    assert_eq!(world.exchange.settlement_order(deal).unwrap().fee, Cents(2_000), "by the rate of now");
}
