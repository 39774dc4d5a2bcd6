//! The limits of the exchange.

use super::*;

#[test]
fn sixty_four_searches_and_no_more() {
    let mut world = World::with(&["al", "bo"]);
    for rq in 0..SEARCHES_MAX as u64 {
        assert_eq!(world.search("bo", rq)["type"], "SEARCHING");
    }
    assert_eq!(code(&world.search("bo", 64)), "BUSY");
    assert_eq!(world.exchange.sizes().1, 64);
    assert_eq!(world.search("bo", 63)["type"], "SEARCHING", "a repeat is answered");
    world.act("bo", "CANCEL", 5, None);
    assert_eq!(world.search("bo", 64)["type"], "SEARCHING");
    world.reload();
    assert_eq!(code(&world.search("bo", 65)), "BUSY");
}

#[test]
fn who_is_in_four_thousand_deals_is_not_asked() {
    let mut world = World::with(&["al", "bo", "cy"]);
    world.exchange.peer_named("al").unwrap().state.lock().open_received = RECEIVED_SEARCHES_MAX - 1;
    assert_eq!(world.search("bo", 1)["peers"], 2);
    assert_eq!(world.search("bo", 2)["peers"], 1);
    world.act("bo", "CANCEL", 1, None);
    assert_eq!(world.search("bo", 3)["peers"], 2);
}

#[test]
fn of_more_than_a_thousand_those_heard_last_are_asked() {
    let mut world = World::with(&["bo"]);
    for peer in 0..1_010 {
        world.join(&format!("s{peer}"), &format!("127.0.0.1:{}", 6_000 + peer));
    }
    world.pass(1);
    // All but the first five and the last five are active again.
    for peer in 5..1_005 {
        world.deals(&format!("s{peer}"));
    }
    assert_eq!(world.search("bo", 1)["peers"], RECIPIENTS_MAX);
    for peer in 0..1_010 {
        let asked = world.exchange.peer_named(&format!("s{peer}")).unwrap().state.lock().open_received;
        assert_eq!(asked, usize::from((5..1_005).contains(&peer)), "s{peer}");
    }
}

#[test]
fn who_is_silent_three_times_is_asked_but_not_waited_for() {
    let mut world = World::with(&["al", "bo", "cy"]);
    let answers = |world: &mut World, name: &str| {
        let number = world.newest(name)["rq"].as_u64().unwrap();
        world.act(name, "NOT_AVAILABLE", number, None);
    };
    for rq in 1..=3 {
        world.search("bo", rq);
        answers(&mut world, "cy");
        assert_eq!(world.deals("bo")[0]["state"], "searching", "al is waited for");
        world.pass(5_000);
        world.tick_all();
    }
    assert_eq!(world.search("bo", 4)["peers"], 2);
    let mid = world.newest("al")["mid"].as_u64().unwrap();
    let ack = Ack { mid, token: None };
    assert!(world.exchange.acknowledge(world.now, world.homes["al"], &ack), "it is asked");
    answers(&mut world, "cy");
    assert_eq!(world.deals("bo")[0]["state"], "cancelled", "but not waited for: an ACK is no request");
    // It sends a request, so the next search waits for it.
    world.deals("al");
    world.search("bo", 5);
    answers(&mut world, "cy");
    assert_eq!(world.deals("bo")[0]["state"], "searching");
}

#[test]
fn who_is_asked_alone_and_not_waited_for_still_hears_of_it_once() {
    let mut world = World::with(&["al", "bo"]);
    for rq in 1..=3 {
        world.search("bo", rq);
        world.pass(5_000);
        world.tick_all();
    }
    assert_eq!(world.search("bo", 4)["peers"], 1);
    assert_eq!(world.deals("bo")[0]["reason"], "NOT_AVAILABLE");
    world.search("bo", 5);
    let once = std::mem::take(&mut world.last.notify_once);
    let [OutgoingNotification { to, notification: Notification::Search { rq, .. }, .. }] = &once[..] else {
        panic!("{once:?}")
    };
    assert_eq!(*to, world.homes["al"]);
    // Its late offer is refused, but from now on it is waited for.
    assert_eq!(code(&world.act("al", "OFFER", *rq, Some(1))), "WRONG_STATE");
    world.search("bo", 6);
    assert_eq!(world.deals("bo")[0]["state"], "searching");
    assert!(world.last.notify_once.is_empty());
}

#[test]
fn of_ended_deals_two_hundred_and_fifty_six_are_kept() {
    let mut world = World::with(&["al", "bo"]);
    for rq in 0..300 {
        world.search("bo", rq);
        world.act("bo", "CANCEL", rq, None);
    }
    assert_eq!(world.exchange.sizes().1, ENDED_MAX);
    assert_eq!(world.exchange.journal().snapshot().deals.len(), ENDED_MAX, "on disk as well");
    assert_eq!(code(&world.act("bo", "CANCEL", 43, None)), "UNKNOWN_DEAL");
    assert_eq!(world.act("bo", "CANCEL", 44, None)["type"], "CANCELLED");
    assert_eq!(world.search("bo", 43)["type"], "SEARCHING", "the number is free again");
    world.reload();
    assert_eq!(world.act("bo", "CANCEL", 43, None)["type"], "CANCELLED");
    world.pass(600_000);
    world.exchange.sweep(world.now);
    world.assert_no_trace();
}

#[test]
fn other_peoples_searches_push_out_nobodys_own_deals() {
    let mut world = World::with(&["al", "bo", "cy"]);
    world.search("cy", 7);
    world.act("cy", "CANCEL", 7, None);
    for rq in 0..300 {
        world.search("bo", rq);
        world.act("bo", "CANCEL", rq, None);
    }
    for _ in 0..2 {
        assert_eq!(world.act("cy", "CANCEL", 7, None)["type"], "CANCELLED");
        assert_eq!(world.exchange.sizes().1, ENDED_MAX + 1);
        assert_eq!(world.deals("cy").len(), 1);
        world.reload();
    }
    // A late answer to a search is refused.
    world.search("bo", 999);
    let number = world.newest("cy")["rq"].as_u64().unwrap();
    world.act("bo", "CANCEL", 999, None);
    assert_eq!(code(&world.act("cy", "OFFER", number, Some(1))), "WRONG_STATE");
}

#[test]
fn settlements_are_bounded_in_all_and_per_address() {
    let mut world = World::new();
    world.join("bo", "10.0.0.1:5000");
    world.join("al", "127.0.0.1:5001");
    let mut deals = Vec::new();
    for rq in 0..SETTLEMENTS_PER_ADDRESS_MAX as u64 {
        deals.push(world.bought("bo", "al", rq));
    }
    world.search("bo", 100);
    let number = world.newest("al")["rq"].as_u64().unwrap();
    world.act("al", "OFFER", number, Some(80));
    assert_eq!(code(&world.act("bo", "BUY", 100, Some(80))), "BUSY");
    assert_eq!(world.deals("bo")[0]["state"], "reserved", "and it may be tried again");
    world.settle(deals[0], &[DealInput::SettlementFailed("x")]);
    assert_eq!(world.act("bo", "BUY", 100, Some(80))["type"], "BUYING");
    // The loopback seller takes part in all of them; that does not block another buyer on loopback.
    world.join("cy", "127.0.0.1:5002");
    let busy = world.bought("cy", "al", 1);
    world.reload();
    assert_eq!(world.exchange.settlement_count(), 9, "they go on after a restart");
    for deal in deals.into_iter().skip(1).chain([busy, world.deal_of("bo", 100)]) {
        world.settle(deal, &[DealInput::SettlementFailed("x")]);
    }
    assert_eq!(world.exchange.settlement_count(), 0);
    assert!(world.exchange.settlement_slots.lock().by_address.is_empty());
    for deal in 0..SETTLEMENTS_MAX as u64 {
        world.exchange.settlement_slots.lock().acquire(deal, vec!["127.0.0.1".parse().unwrap(); 2]);
    }
    world.search("cy", 200);
    let number = world.newest("al")["rq"].as_u64().unwrap();
    world.act("al", "OFFER", number, Some(80));
    world.pass(5_000);
    world.tick_all();
    assert_eq!(code(&world.act("cy", "BUY", 200, Some(80))), "BUSY");
}

#[test]
fn two_sides_at_one_address_are_one_settlement_there() {
    let mut world = World::new();
    world.join("bo", "10.0.0.1:5000");
    world.join("al", "10.0.0.1:5001");
    for rq in 0..SETTLEMENTS_PER_ADDRESS_MAX as u64 {
        world.bought("bo", "al", rq);
    }
}

#[test]
fn a_slot_is_free_again_however_a_settlement_ends() {
    let paid: &[DealInput] = &[DealInput::Authorised, DealInput::Shipped, DealInput::Captured];
    let failed = DealInput::SettlementFailed("x");
    let (asked, held) = ([failed.clone()], [DealInput::Authorised, failed.clone()]);
    let shipped = [DealInput::Authorised, DealInput::Shipped, failed];
    for (events, money) in [
        (paid, vec![LedgerOperation::Authorise, LedgerOperation::Capture]),
        (&asked, vec![]),
        (&held, vec![LedgerOperation::Authorise, LedgerOperation::Void]),
        (&shipped, vec![LedgerOperation::Authorise, LedgerOperation::Void]),
    ] {
        for reloaded in [false, true] {
            let mut world = World::with(&["al", "bo"]);
            let deal = world.bought("bo", "al", 1);
            for (place, event) in events.iter().enumerate() {
                if reloaded {
                    assert_eq!(world.reload().settlements.len(), 1);
                }
                assert_eq!(world.exchange.settlement_count(), 1, "before step {place}");
                world.settle(deal, std::slice::from_ref(event));
                // A late repeat of BUY changes nothing.
                assert_eq!(world.act("bo", "BUY", 1, Some(80))["type"], "BUYING");
            }
            assert_eq!(world.exchange.settlement_count(), 0);
            assert_eq!(world.exchange.journal().money(), money);
            world.pass(600_000);
            world.exchange.sweep(world.now);
            world.assert_no_trace();
        }
    }
}
