//! The open deals as the operator sees them.

use super::*;
use crate::trade::wire::DealPhase;

/// The deal numbers of a page, and the total.
fn open(world: &World, offset: usize, limit: usize) -> (Vec<u64>, usize) {
    let (lines, total, _) = world.exchange.open_deals(world.now, offset, limit);
    (lines.into_iter().map(|line| line.deal).collect(), total)
}

#[test]
fn deals_are_open_until_they_end_and_after_a_start() {
    let mut world = World::with(&["ann", "bob"]);
    assert_eq!(open(&world, 0, 9), (vec![], 0));
    let deal = world.bought("ann", "bob", 1);
    let later: Vec<u64> = (2..5)
        .map(|rq| {
            world.search("ann", rq);
            world.deal_of("ann", rq)
        })
        .collect();
    let newest_first = vec![later[2], later[1], later[0], deal];
    for _again in 0..2 {
        assert_eq!(open(&world, 0, 9), (newest_first.clone(), 4));
        assert_eq!(open(&world, 1, 2), (newest_first[1..3].to_vec(), 4));
        assert_eq!(open(&world, 4, 2), (vec![], 4));
        let (lines, _, commit) = world.exchange.open_deals(world.now, 3, 1);
        let line = &lines[0];
        assert_eq!((line.buyer.as_str(), line.seller.as_ref().unwrap().as_str()), ("ann", "bob"));
        assert_eq!((line.state, line.price, line.ends_in_ms), (DealPhase::Settling, Some(Cents(8000)), None));
        assert!(commit > 0 || _again == 1, "it waits for what it is built on");
        world.reload();
    }
    world.settle(deal, &[DealInput::Authorised, DealInput::Shipped, DealInput::Captured]);
    assert_eq!(open(&world, 0, 9).1, 3);
    // Nobody offers, so the searches end with their windows.
    world.pass(6_000);
    world.tick_all();
    assert_eq!(open(&world, 0, 9), (vec![], 0));
    assert_eq!(world.exchange.open_deal(world.now, deal).0, None);
    world.pass(ANSWER_RETENTION.as_millis() as u64);
    world.exchange.sweep(world.now);
    world.assert_no_trace();
}

#[test]
fn what_changes_is_remembered_only_while_somebody_wants_to_know() {
    let mut world = World::with(&["ann", "bob"]);
    world.search("ann", 1);
    assert_eq!(world.exchange.take_changed_deals(true), None, "nobody had asked");
    assert_eq!(world.exchange.take_changed_deals(true), Some(BTreeSet::new()));
    world.search("ann", 2);
    let deal = world.deal_of("ann", 2);
    assert_eq!(world.exchange.take_changed_deals(true), Some(BTreeSet::from([deal])));
    let number = world.newest("bob")["rq"].as_u64().unwrap();
    world.act("bob", "OFFER", number, Some(80));
    assert_eq!(world.exchange.take_changed_deals(false), Some(BTreeSet::from([deal])));
    world.pass(5_000);
    world.tick_all();
    assert_eq!(world.exchange.take_changed_deals(true), None, "nobody wanted to know");
    assert_eq!(world.exchange.take_changed_deals(true), Some(BTreeSet::new()));
}
