//! Requests, responses and repeats.

use super::*;

#[test]
fn every_kind_of_request_is_answered_the_same_and_done_once() {
    let mut world = World::with(&["al", "bo", "cy"]);
    let journal = world.exchange.journal().clone();
    let again = |world: &mut World, name: &str, message: Value, expected: &str| {
        let first = world.say(name, message.clone());
        assert_eq!(first["type"], expected, "{first}");
        let written = journal.0.lock().len();
        assert_eq!(world.say(name, message.clone()), first, "another answer to the same {message}");
        assert!(world.last.notifications.is_empty() && world.last.settlement.is_none());
        assert_eq!(journal.0.lock().len(), written, "the repeat of {message} wrote something");
        // With another price or item it is refused, and nothing changes.
        let mut other = message.clone();
        other["item_name"] = "lump".into();
        assert_eq!(world.say(name, other)["reason"], "rq already used");
        for amount in ["price", "max_price"] {
            if message.get(amount).is_some() {
                let mut other = message.clone();
                other[amount] = 1.into();
                let response = world.say(name, other);
                assert_eq!((code(&response), &response["reason"]), ("BAD_REQUEST", &json!("rq already used")));
            }
        }
        assert_eq!(journal.0.lock().len(), written, "a refusal wrote something");
        message["rq"].as_u64().unwrap()
    };
    let search =
        |rq| json!({"type": "LOOKING_FOR", "rq": rq, "item_name": "lamp", "description": "d", "max_price": 100});
    let side = |kind: &str, rq: &Value| json!({"type": kind, "rq": rq, "item_name": "lamp"});
    let priced =
        |kind: &str, rq: &Value, price: i64| json!({"type": kind, "rq": rq, "item_name": "lamp", "price": price});
    let haggled = |kind: &str, rq: &Value| json!({"type": kind, "rq": rq, "item_name": "lamp", "max_price": 100});

    again(&mut world, "bo", search(1), "SEARCHING");
    let (al, cy) = (world.newest("al")["rq"].clone(), world.newest("cy")["rq"].clone());
    again(&mut world, "al", side("NOT_AVAILABLE", &al), "NOTED");
    again(&mut world, "cy", priced("OFFER", &cy, 80), "OFFERED");
    again(&mut world, "bo", priced("BUY", &json!(1), 80), "BUYING");

    again(&mut world, "bo", search(2), "SEARCHING");
    let (al, cy) = (world.newest("al")["rq"].clone(), world.newest("cy")["rq"].clone());
    again(&mut world, "al", priced("OFFER", &al, 150), "OFFERED");
    again(&mut world, "cy", priced("OFFER", &cy, 160), "OFFERED");
    again(&mut world, "al", haggled("REFUSE", &al), "NOTED");
    again(&mut world, "cy", haggled("ACCEPT", &cy), "NOTED");
    again(&mut world, "cy", side("CANCEL", &cy), "CANCELLED");

    again(&mut world, "bo", search(3), "SEARCHING");
    again(&mut world, "bo", side("CANCEL", &json!(3)), "CANCELLED");
    // All of it holds after a restart.
    world.reload();
    assert_eq!(world.say("bo", priced("BUY", &json!(1), 80))["type"], "BUYING");
    assert!(world.last.settlement.is_none());
    assert_eq!(world.say("cy", haggled("ACCEPT", &cy))["type"], "NOTED");
    assert_eq!(world.say("bo", search(3)), json!({"type": "SEARCHING", "rq": 3, "peers": 2}));
    let mut other = search(3);
    other["description"] = "e".into();
    assert_eq!(world.say("bo", other)["reason"], "rq already used");
}

#[test]
fn an_error_is_not_remembered() {
    let mut world = World::with(&["al", "bo"]);
    world.search("bo", 1);
    assert_eq!(code(&world.act("bo", "BUY", 1, Some(80))), "WRONG_STATE");
    let number = world.newest("al")["rq"].as_u64().unwrap();
    world.act("al", "OFFER", number, Some(80));
    assert_eq!(code(&world.act("bo", "BUY", 1, Some(81))), "BAD_REQUEST");
    assert_eq!(world.exchange.settlement_count(), 0, "a refused BUY holds no slot");
    assert_eq!(world.act("bo", "BUY", 1, Some(80))["type"], "BUYING");
    assert_eq!(world.exchange.settlement_count(), 1);
}

#[test]
fn a_deal_is_known_to_its_own_sides_alone() {
    let mut world = World::with(&["al", "bo", "cy"]);
    world.search("bo", 1);
    let number = world.newest("al")["rq"].as_u64().unwrap();
    assert!(number >= FIRST_SERVER_NUMBER);
    for (name, rq) in [("cy", number), ("bo", number), ("al", 1), ("bo", 2)] {
        assert_eq!(code(&world.act(name, "CANCEL", rq, None)), "UNKNOWN_DEAL");
    }
}

#[test]
fn a_register_forgets_the_answers_of_ended_deals_alone() {
    let mut world = World::with(&["al", "bo"]);
    world.search("bo", 1);
    world.act("bo", "CANCEL", 1, None);
    world.search("bo", 2);
    assert_eq!(world.from("127.0.0.1:5001", register("bo", "127.0.0.1", 5001))["type"], "REGISTERED");
    assert_eq!(world.deals("bo").len(), 2, "STATUS still tells of both");
    // The open deal ends afterwards; its responses are kept, also across a restart.
    world.act("bo", "CANCEL", 2, None);
    for _ in 0..2 {
        assert_eq!(code(&world.act("bo", "CANCEL", 1, None)), "UNKNOWN_DEAL");
        assert_eq!(world.act("bo", "CANCEL", 2, None)["type"], "CANCELLED");
        let before = world.view();
        world.reload();
        assert_eq!(world.view(), before);
    }
    // A second REGISTER makes that number available as well.
    world.from("127.0.0.1:5001", register("bo", "127.0.0.1", 5001));
    assert_eq!(code(&world.act("bo", "CANCEL", 2, None)), "UNKNOWN_DEAL");
    // The number refers to the new deal from now on.
    assert_eq!(world.search("bo", 1)["type"], "SEARCHING");
    let before = world.view();
    world.reload();
    assert_eq!(world.view(), before);
    assert_eq!(world.act("bo", "CANCEL", 1, None)["type"], "CANCELLED");
    let seller = world.told("al").pop().map(|notification| notification["type"].clone());
    assert_eq!(seller, None, "a search that is off is not asked further");
}

#[test]
fn status_tells_ones_own_deals_newest_first() {
    let mut world = World::with(&["al", "bo", "cy"]);
    world.search("bo", 1);
    let number = world.newest("al")["rq"].as_u64().unwrap();
    world.act("al", "OFFER", number, Some(80));
    world.search("bo", 2);
    world.search("al", 3);
    world.pass(1_000);
    let bo = world.deals("bo");
    assert_eq!(
        bo,
        [
            json!({"rq": 2, "side": "buyer", "item_name": "lamp", "state": "searching", "ends_in_ms": 4_000}),
            json!({"rq": 1, "side": "buyer", "item_name": "lamp", "state": "searching", "ends_in_ms": 4_000}),
        ]
    );
    assert!(world.deals("cy").is_empty(), "who never offered is not told");
    let al = world.deals("al");
    assert_eq!(al.len(), 2);
    assert_eq!(
        al[1],
        json!({"rq": number, "side": "seller", "item_name": "lamp", "state": "searching", "price": 80,
               "ends_in_ms": 4_000})
    );
    let one = world.say("bo", json!({"type": "STATUS", "rq": 1, "rq_deal": 2}));
    assert_eq!(one["deals"], json!([bo[0]]));
    assert_eq!(world.say("bo", json!({"type": "STATUS", "rq": 1, "rq_deal": 77}))["deals"], json!([]));
    world.act("bo", "CANCEL", 2, None);
    assert_eq!(world.deals("bo")[0]["reason"], "cancelled by the buyer");
    world.pass(599_999);
    assert_eq!(world.deals("bo").len(), 2);
    world.pass(1);
    assert_eq!(world.deals("bo").len(), 1, "ten minutes after its end nobody hears of it, swept or not");
}

#[test]
fn an_ack_counts_from_the_peers_address_or_with_its_token() {
    let mut world = World::with(&["al", "bo"]);
    world.search("bo", 1);
    let ack = |world: &World, source: &str, mid, token: Option<&str>| {
        let ack = Ack { mid, token: token.map(Token::from_text) };
        world.exchange.acknowledge(world.now, source.parse().unwrap(), &ack)
    };
    let mid = world.newest("al")["mid"].as_u64().unwrap();
    let token = world.tokens["al"].clone();
    assert!(!ack(&world, "127.0.0.1:5001", mid, None), "another's address");
    assert!(!ack(&world, "127.0.0.1:5001", mid, Some("x")));
    assert!(!ack(&world, "127.0.0.1:5000", mid + 1_000, None));
    assert_eq!(world.told("al").len(), 1);
    assert!(ack(&world, "10.0.0.1:1", mid, Some(&token)));
    assert!(world.told("al").is_empty());
    assert!(!ack(&world, "127.0.0.1:5000", mid, None), "once is enough");
    world.reload();
    assert!(world.told("al").is_empty(), "it is on disk");
    world.tick_all();
    world.pass(5_000);
    world.tick_all();
    let mid = world.newest("bo")["mid"].as_u64().unwrap();
    assert!(ack(&world, "127.0.0.1:5001", mid, None));
}

#[test]
fn pushes_go_where_the_peer_is_now() {
    let mut world = World::with(&["al", "bo"]);
    world.search("bo", 1);
    let told = world.last.notifications[0];
    assert_eq!(world.exchange.outgoing_notification(told).unwrap().to, world.homes["al"]);
    let token = world.tokens["al"].clone();
    world.from("127.0.0.1:1", login("al", 1, &token, 5999));
    assert_eq!(world.exchange.outgoing_notification(told).unwrap().to, "127.0.0.1:5999".parse().unwrap());
    world.pass(5_000);
    world.tick_all();
    assert!(world.exchange.outgoing_notification(told).is_none(), "a SEARCH is not repeated after its window");
}
