//! Registration, login and departure.

use super::*;

#[test]
fn an_address_must_be_the_datagrams_own_and_no_services() {
    let mut world = World::new();
    let response = world.from("127.0.0.1:5000", register("al", "127.0.0.2", 5000));
    assert_eq!(response["type"], "REGISTER-DENIED");
    assert!(response["reason"].as_str().unwrap().starts_with("ip: expected 127.0.0.1"), "{response}");
    for (udp, tcp, field) in
        [(1023, 9000, "udp_port: "), (5000, 80, "tcp_port: "), (70_000, 9000, "udp_port: "), (5000, 0, "tcp_port: ")]
    {
        let mut message = register("al", "127.0.0.1", 5000);
        message["udp_port"] = udp.into();
        message["tcp_port"] = tcp.into();
        let response = world.from("127.0.0.1:5000", message);
        assert_eq!(response["type"], "REGISTER-DENIED");
        assert!(response["reason"].as_str().unwrap().starts_with(field), "{response}");
    }
    assert_eq!(world.exchange.sizes().0, 0);
    for port in [1024, 65535] {
        let response = world.from("127.0.0.1:5000", register(&format!("p{port}"), "127.0.0.1", port));
        assert_eq!(response["type"], "REGISTERED");
        assert_eq!(response["cert_sha256"], "ab");
        assert_eq!(response["token"].as_str().unwrap().len(), 32);
    }
}

#[test]
fn a_taken_name_is_given_to_its_own_address_or_token_alone() {
    let mut world = World::with(&["al"]);
    let token = world.tokens["al"].clone();
    let stranger = world.from("127.0.0.1:6000", register("al", "127.0.0.1", 6000));
    assert_eq!(stranger["type"], "REGISTER-DENIED");
    let mut wrong = register("al", "127.0.0.1", 5000);
    wrong["token"] = "00".into();
    assert_eq!(world.from("127.0.0.1:5000", wrong)["type"], "REGISTER-DENIED", "a wrong token proves nothing");
    let again = world.from("127.0.0.1:5000", register("al", "127.0.0.1", 5000));
    assert_eq!(again["token"], token.as_str(), "the same token for its own address");
    let mut elsewhere = register("al", "127.0.0.1", 6001);
    elsewhere["token"] = token.as_str().into();
    assert_eq!(world.from("127.0.0.1:6000", elsewhere)["token"], token.as_str());
    assert!(world.exchange.address_status("127.0.0.1:6001".parse().unwrap()).is_registered);
    assert!(!world.exchange.address_status("127.0.0.1:5000".parse().unwrap()).is_registered);
}

#[test]
fn the_repeat_of_a_first_register_from_another_port_gets_the_same_token_for_ten_minutes() {
    let mut world = World::new();
    let message = register("al", "127.0.0.1", 5000);
    let first = world.from("127.0.0.1:7777", message.clone());
    world.pass(599_999);
    assert_eq!(world.from("127.0.0.1:7777", message.clone())["token"], first["token"]);
    assert_eq!(world.from("127.0.0.1:7778", message.clone())["type"], "REGISTER-DENIED");
    world.reload();
    assert_eq!(world.from("127.0.0.1:7777", message.clone())["token"], first["token"], "also after a restart");
    world.pass(1);
    assert_eq!(world.from("127.0.0.1:7777", message.clone())["type"], "REGISTER-DENIED");
    assert_eq!(world.from("127.0.0.1:5000", message)["token"], first["token"], "its own address still may");
}

#[test]
fn the_repeat_of_a_first_register_moves_nobody_back() {
    let mut world = World::new();
    let message = register("al", "127.0.0.1", 5000);
    let token = world.from("127.0.0.1:7777", message.clone())["token"].as_str().unwrap().to_owned();
    world.from("127.0.0.1:7777", login("al", 2, &token, 5005));
    assert_eq!(world.from("127.0.0.1:7777", message)["type"], "REGISTER-DENIED");
    assert!(world.exchange.address_status("127.0.0.1:5005".parse().unwrap()).is_registered);
}

#[test]
fn a_login_moves_once() {
    let mut world = World::with(&["al"]);
    let token = world.tokens["al"].clone();
    assert_eq!(world.from("127.0.0.1:1", login("nobody", 1, &token, 5001))["type"], "LOGIN-DENIED");
    assert_eq!(world.from("127.0.0.1:1", login("al", 1, "x", 5001))["type"], "LOGIN-DENIED");
    let first = login("al", 7, &token, 5001);
    let response = world.from("127.0.0.1:1", first.clone());
    assert_eq!(
        (&response["type"], &response["rq"], &response["cert_sha256"]),
        (&json!("LOGGED-IN"), &json!(7), &json!("ab"))
    );
    world.from("127.0.0.1:1", login("al", 8, &token, 5002));
    let at = |world: &World| world.exchange.peer_named("al").unwrap().state.lock().row.addr.port();
    assert_eq!(at(&world), 5002);
    assert_eq!(world.from("127.0.0.1:1", first.clone())["type"], "LOGGED-IN", "the same answer");
    assert_eq!(at(&world), 5002, "and nothing changes");
    let other = world.from("127.0.0.1:1", login("al", 7, &token, 5003));
    assert_eq!((code(&other), &other["reason"]), ("BAD_REQUEST", &json!("rq already used")));
    // Neither a restart nor a REGISTER lets a late repeat move the peer back.
    world.reload();
    let mut again = register("al", "127.0.0.1", 5004);
    again["token"] = token.as_str().into();
    world.homes.insert("al".to_owned(), "127.0.0.1:5002".parse().unwrap());
    world.search("al", 1);
    assert_eq!(world.from("127.0.0.1:1", again)["type"], "REGISTERED");
    assert_eq!(world.from("127.0.0.1:1", first.clone())["type"], "LOGGED-IN");
    assert_eq!(at(&world), 5004);
    world.pass(600_000);
    world.from("127.0.0.1:1", first);
    assert_eq!(at(&world), 5001, "after ten minutes it is a request of its own");
}

#[test]
fn who_asks_must_show_who_it_is() {
    let mut world = World::with(&["al"]);
    let status = json!({"type": "STATUS", "rq": 1, "name": "al"});
    let with = |token: &str| json!({"type": "STATUS", "rq": 1, "name": "al", "token": token});
    let token = world.tokens["al"].clone();
    assert_eq!(world.from("127.0.0.1:5000", status.clone())["type"], "DEALS");
    assert_eq!(code(&world.from("127.0.0.1:5001", status.clone())), "FORBIDDEN");
    assert_eq!(code(&world.from("127.0.0.2:5000", status.clone())), "FORBIDDEN");
    assert_eq!(code(&world.from("127.0.0.1:5000", with("x"))), "FORBIDDEN", "a wrong token, whatever the address");
    assert_eq!(world.from("10.0.0.9:5001", with(&token))["type"], "DEALS");
    assert_eq!(code(&world.transport("127.0.0.1:5000", Transport::Tcp, status)), "FORBIDDEN", "TCP proves nothing");
    assert_eq!(world.transport("127.0.0.1:9", Transport::Tcp, with(&token))["type"], "DEALS");
    assert_eq!(code(&world.from("127.0.0.1:5000", json!({"type":"STATUS","rq":1,"name":"b"}))), "NOT_REGISTERED");
}

#[test]
fn leaving_twice_is_leaving_once() {
    let mut world = World::with(&["al", "bo"]);
    let leave = json!({"type": "DE-REGISTER", "rq": 5, "name": "al"});
    assert_eq!(code(&world.from("127.0.0.1:5001", leave.clone())), "FORBIDDEN");
    assert_eq!(world.from("127.0.0.1:5000", leave.clone()), json!({"type": "DE-REGISTERED", "rq": 5}));
    assert_eq!(world.from("127.0.0.1:5000", leave.clone()), json!({"type": "DE-REGISTERED", "rq": 5}));
    assert_eq!(world.from("127.0.0.1:5009", leave.clone())["type"], "DE-REGISTERED", "of a name nobody holds");
    // The name has a holder again at the same address, with later numbers: the late repeat does not remove it.
    world.join_with("al", "127.0.0.1:5000", 6);
    assert_eq!(world.from("127.0.0.1:5000", leave.clone())["type"], "DE-REGISTERED");
    world.reload();
    assert_eq!(world.from("127.0.0.1:5000", leave.clone())["type"], "DE-REGISTERED");
    assert!(world.exchange.peer_named("al").is_some());
    // The new holder's own DE-REGISTER, with its own token, is not a repeat.
    let mut own = leave.clone();
    own["token"] = world.tokens["al"].as_str().into();
    assert_eq!(world.from("127.0.0.1:5000", own)["type"], "DE-REGISTERED");
    assert!(world.exchange.peer_named("al").is_none());
    world.pass(600_000);
    world.exchange.sweep(world.now);
    world.assert_no_trace();
}

#[test]
fn who_comes_and_goes_with_the_same_numbers_comes_and_goes() {
    let mut world = World::new();
    let leave = json!({"type": "DE-REGISTER", "rq": 2, "name": "al"});
    for reloads in [false, true, false] {
        world.join("al", "127.0.0.1:5000");
        if reloads {
            world.reload();
        }
        for _ in 0..2 {
            assert_eq!(world.from("127.0.0.1:5000", leave.clone()), json!({"type": "DE-REGISTERED", "rq": 2}));
            assert!(world.exchange.peer_named("al").is_none());
        }
    }
    // A new holder at another address is not removed by a late repeat.
    world.join("al", "127.0.0.1:5001");
    assert_eq!(world.from("127.0.0.1:5000", leave)["type"], "DE-REGISTERED");
    assert!(world.exchange.peer_named("al").is_some());
}

#[test]
fn a_new_holder_of_a_name_sees_nothing_of_the_former_one() {
    let mut world = World::with(&["al", "bo"]);
    world.search("bo", 1);
    let number = world.newest("al")["rq"].as_u64().unwrap();
    world.act("al", "OFFER", number, Some(80));
    assert_eq!(world.newest("bo")["type"], "FOUND");
    world.search("al", 3);
    assert_eq!(world.newest("bo")["type"], "SEARCH");
    world.say("al", json!({"type": "DE-REGISTER", "rq": 5}));
    assert_eq!(world.newest("bo")["type"], "CANCEL", "the other side is told");
    world.join("al", "127.0.0.1:5000");
    for _ in 0..2 {
        assert!(world.deals("al").is_empty());
        assert_eq!(code(&world.act("al", "CANCEL", number, None)), "UNKNOWN_DEAL");
        assert_eq!(code(&world.act("al", "CANCEL", 3, None)), "UNKNOWN_DEAL");
        assert_eq!(world.deals("bo").len(), 1);
        world.reload();
    }
    assert!(world.told("al").is_empty());
    assert_eq!(world.search("al", 3)["type"], "SEARCHING", "its numbers are its own");
}

#[test]
fn a_name_silent_for_a_month_is_free_again() {
    let mut world = World::with(&["al", "bo"]);
    let month = 30 * 86_400_000;
    for (name, home) in [("al", "127.0.0.1:5000"), ("bo", "127.0.0.1:5001")] {
        world.status(home, name);
    }
    world.pass(month - 1);
    assert_eq!(world.from("127.0.0.1:6000", register("al", "127.0.0.1", 6000))["type"], "REGISTER-DENIED");
    world.deals("bo");
    world.pass(1);
    assert_eq!(world.from("127.0.0.1:6000", register("al", "127.0.0.1", 6000))["type"], "REGISTERED");
    assert_eq!(world.from("127.0.0.1:6000", register("bo", "127.0.0.1", 6000))["type"], "REGISTER-DENIED");
}

#[test]
fn a_departure_waits_for_a_settlement_under_way_and_for_nothing_else() {
    let mut world = World::with(&["al", "bo", "cy"]);
    let deal = world.bought("bo", "al", 1);
    world.search("cy", 2);
    let number = world.newest("al")["rq"].as_u64().unwrap();
    world.act("al", "OFFER", number, Some(70));
    let home = world.homes["al"];
    assert!(world.say("al", json!({"type": "DE-REGISTER", "rq": 5})).is_null(), "no answer yet");
    let registration_id = world.last.departing.unwrap();
    assert_eq!(code(&world.search("al", 9)), "WRONG_STATE", "it begins nothing new");
    let name = Name::new("al").unwrap();
    assert_eq!(
        world.exchange.resume_departure(world.now, home, 5, &name, registration_id).departing,
        Some(registration_id)
    );
    assert!(world.say("al", json!({"type": "DE-REGISTER", "rq": 5})).is_null(), "a repeat waits as well");
    let token = world.tokens["al"].clone();
    assert_eq!(world.from("127.0.0.1:1", login("al", 6, &token, 5001))["type"], "LOGIN-DENIED");
    world.settle(deal, &[DealInput::Authorised, DealInput::Shipped, DealInput::Captured]);
    let left = world.exchange.resume_departure(world.now, home, 5, &name, registration_id);
    assert!(matches!(left.response, Some(Response::DeRegistered { rq: 5 })));
    assert_eq!(world.deals("bo")[0]["state"], "completed");
    // The second waiting request finds a new holder of the name and leaves it alone.
    world.join("al", "127.0.0.1:6000");
    let late = world.exchange.resume_departure(world.now, home, 6, &name, registration_id);
    assert!(matches!(late.response, Some(Response::DeRegistered { rq: 6 })));
    world.exchange.cancel_departure(&name, registration_id);
    assert!(world.exchange.peer_named("al").is_some());
}

#[test]
fn a_departure_that_cannot_wait_leaves_the_peer_as_it_was() {
    let mut world = World::with(&["al", "bo"]);
    world.bought("bo", "al", 1);
    world.say("bo", json!({"type": "DE-REGISTER", "rq": 5}));
    world.exchange.cancel_departure(&Name::new("bo").unwrap(), world.last.departing.unwrap());
    assert_eq!(world.search("bo", 2)["type"], "SEARCHING");
}

#[test]
fn leaving_ends_every_deal_in_every_state_and_tells_the_others() {
    // The state, what the other side is told when the buyer departs, and when the seller does.
    for (state, by_buyer, by_seller) in [
        ("searching", "RELEASED", "NOT_AVAILABLE"),
        ("negotiating", "CANCEL", "NOT_FOUND"),
        ("reserved", "CANCEL", "CANCEL"),
    ] {
        for (leaver, other, told) in [("bo", "al", by_buyer), ("al", "bo", by_seller)] {
            // The third seller keeps a search open; where the search is over, it has departed before.
            let mut world = World::with(&["al", "bo", "cy"]);
            world.search("bo", 1);
            let number = world.newest("al")["rq"].as_u64().unwrap();
            world.act("al", "OFFER", number, Some(if state == "negotiating" { 150 } else { 80 }));
            if state != "searching" {
                world.say("cy", json!({"type": "DE-REGISTER", "rq": 1}));
            }
            assert_eq!(world.deals("bo")[0]["state"], state);
            world.say(leaver, json!({"type": "DE-REGISTER", "rq": 5}));
            if state == "searching" && leaver == "al" {
                world.say("cy", json!({"type": "DE-REGISTER", "rq": 1}));
            }
            assert_eq!(world.newest(other)["type"], told, "{leaver} leaves while {state}");
            assert_eq!(world.deals(other)[0]["state"], "cancelled");
            assert!(world.told(leaver).is_empty());
            let (before, again) = (world.view(), world.reload());
            assert_eq!(world.view(), before);
            assert!(again.deadlines.is_empty() && again.settlements.is_empty());
        }
    }
}

#[test]
fn those_who_left_are_bounded_too() {
    let mut world = World::with(&["al"]);
    for rq in 0..2 * PEERS_MAX as u64 {
        let name = Name::new("ghost").unwrap();
        let row = DepartureRow { name: name.clone(), rq, source: world.homes["al"], at: world.now };
        world.exchange.departures.lock().insert((name, rq), row);
    }
    assert_eq!(code(&world.from("127.0.0.1:6000", register("bo", "127.0.0.1", 6000))), "BUSY");
    world.pass(600_000);
    world.exchange.sweep(world.now);
    world.join("bo", "127.0.0.1:6000");
}

#[test]
fn who_has_a_name_that_cannot_be_seen_keeps_it_and_nobody_gets_one_anew() {
    const HIDDEN: &str = "al\u{200b}";
    let mut world = World::with(&["al", "bo"]);
    // As an earlier version left it, which did not check for invisible characters.
    let mut snapshot = world.exchange.journal().snapshot();
    snapshot.peers[0].0.name = Name::from_stored(HIDDEN).unwrap();
    (world.exchange, _) = Exchange::load(Memory::default(), rules(), snapshot, 0, world.now);
    let (home, token) = (world.homes["al"], world.tokens["al"].clone());
    world.homes.insert(HIDDEN.to_owned(), home);
    assert_eq!(world.from("127.0.0.1:5000", login(HIDDEN, 3, &token, 5000))["type"], "LOGGED-IN");
    assert_eq!(world.from("127.0.0.1:5000", register(HIDDEN, "127.0.0.1", 5000))["type"], "REGISTERED");
    assert_eq!(world.search("bo", 1)["peers"], 1);
    let number = world.newest(HIDDEN)["rq"].as_u64().unwrap();
    assert_eq!(world.act(HIDDEN, "OFFER", number, Some(80))["type"], "OFFERED");
    assert_eq!(world.deals(HIDDEN)[0]["state"], "reserved");
    assert_eq!(world.say(HIDDEN, json!({"type": "DE-REGISTER", "rq": 4}))["type"], "DE-REGISTERED");
    let refused = world.from("127.0.0.1:5000", register(HIDDEN, "127.0.0.1", 5000));
    assert_eq!(code(&refused), "BAD_REQUEST");
    assert_eq!(refused["reason"], "name: expected no characters that cannot be seen");
}
