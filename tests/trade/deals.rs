//! Deals, from the search to the reservation: all requests, responses, notifications and errors.

use serde_json::{Value, json};

use crate::support::*;

/// Asserts an ERROR with this code, whose reason begins with this text.
fn refused(answer: &Value, code: &str, reason: &str) {
    assert_eq!((&answer["type"], &answer["code"]), (&json!("ERROR"), &json!(code)), "{answer}");
    assert!(answer["reason"].as_str().unwrap().starts_with(reason), "{answer}");
    assert!(answer["mid"].is_null());
}

/// A notification without its `mid`, which must be present.
fn bare(mut push: Value) -> Value {
    assert!(push["mid"].as_u64().is_some(), "{push}");
    push.as_object_mut().unwrap().remove("mid");
    push
}

/// A deal in STATUS without its remaining time, which must be present if the deal is open.
fn status(peer: &mut Peer, rq: u64) -> Value {
    let mut deal = peer.deal(rq).unwrap();
    let left = deal.as_object_mut().unwrap().remove("ends_in_ms");
    let has_window = ["searching", "negotiating", "reserved"].contains(&deal["state"].as_str().unwrap());
    assert_eq!(left.is_some_and(|left| left.as_u64().is_some()), has_window, "{deal}");
    deal
}

#[test]
fn every_reply_and_push_has_exactly_its_fields() {
    let server = Server::start(&["--offer-window", "60s"]);
    let mut bob = Peer::new(&server, "bob");
    let (mut alice, mut carol) = (Peer::new(&server, "alice"), Peer::new(&server, "carol"));
    let search = json!({"item_name": "Lämp", "description": "green", "max_price": "90.50"});
    let rq = bob.fresh_rq();
    assert_eq!(bob.ask_rq("LOOKING_FOR", rq, search), json!({"type": "SEARCHING", "rq": rq, "peers": 2}));
    let asked = bare(alice.push("SEARCH"));
    let a = asked["rq"].as_u64().unwrap();
    assert_eq!(asked, json!({"type": "SEARCH", "rq": a, "item_name": "Lämp", "description": "green"}));
    let c = carol.push("SEARCH")["rq"].as_u64().unwrap();
    assert!(a >= 1 << 31 && c >= 1 << 31 && a != c, "the server picks from 2^31 on");
    assert_eq!(status(&mut bob, rq), json!({"rq": rq, "side": "buyer", "item_name": "Lämp", "state": "searching"}));
    assert_eq!(alice.deal(a), None, "it has not offered");

    let answer = alice.ask_rq("OFFER", a, json!({"item_name": "Lämp", "price": 95.5}));
    assert_eq!(answer, json!({"type": "OFFERED", "rq": a}));
    assert_eq!(
        status(&mut alice, a),
        json!({"rq": a, "side": "seller", "item_name": "Lämp", "state": "searching", "price": 95.5})
    );
    assert_eq!(carol.ask_rq("OFFER", c, json!({"item_name": "Lämp", "price": 99}))["type"], "OFFERED");

    assert_eq!(
        bare(alice.push("NEGOTIATE")),
        json!({"type": "NEGOTIATE", "rq": a, "item_name": "Lämp", "max_price": 90.5})
    );
    assert_eq!(status(&mut bob, rq)["state"], "negotiating");
    let agree = json!({"item_name": "Lämp", "max_price": 90.5});
    refused(&carol.ask_rq("ACCEPT", c, agree.clone()), "WRONG_STATE", "");
    refused(&alice.ask_rq("ACCEPT", a, json!({"item_name": "Lämp", "max_price": 95.5})), "BAD_REQUEST", "max_price");
    assert_eq!(alice.ask_rq("ACCEPT", a, agree), json!({"type": "NOTED", "rq": a}));

    assert_eq!(bare(alice.push("RESERVE")), json!({"type": "RESERVE", "rq": a, "item_name": "Lämp", "price": 90.5}));
    assert_eq!(
        bare(bob.push("FOUND")),
        json!({"type": "FOUND", "rq": rq, "item_name": "Lämp", "price": 90.5, "seller": "alice"})
    );
    assert_eq!(bare(carol.push("RELEASED")), json!({"type": "RELEASED", "rq": c, "item_name": "Lämp"}));
    assert_eq!(
        status(&mut bob, rq),
        json!({"rq": rq, "side": "buyer", "item_name": "Lämp", "state": "reserved", "price": 90.5})
    );
    assert_eq!(status(&mut alice, a)["price"], 90.5);
    assert_eq!(
        status(&mut carol, c),
        json!({"rq": c, "side": "seller", "item_name": "Lämp", "state": "cancelled", "price": 99, "reason": "released"})
    );

    assert_eq!(bob.ask_rq("CANCEL", rq, json!({"item_name": "Lämp"})), json!({"type": "CANCELLED", "rq": rq}));
    let cancel = bare(alice.push("CANCEL"));
    assert_eq!((&cancel["rq"], &cancel["item_name"]), (&json!(a), &json!("Lämp")));
    assert!(cancel["reason"].as_str().is_some() && cancel.as_object().unwrap().len() == 4, "{cancel}");
    assert_eq!(status(&mut bob, rq)["state"], "cancelled");

    // No offer at all, and only offers above the maximum.
    let rq = bob.look_for("desk", 10.0);
    for peer in [&mut alice, &mut carol] {
        let asked = peer.push_of("SEARCH", "desk")["rq"].as_u64().unwrap();
        let answer = peer.ask_rq("NOT_AVAILABLE", asked, json!({"item_name": "desk"}));
        assert_eq!(answer, json!({"type": "NOTED", "rq": asked}));
        assert_eq!(peer.deal(asked), None);
    }
    assert_eq!(bare(bob.push("NOT_AVAILABLE")), json!({"type": "NOT_AVAILABLE", "rq": rq, "item_name": "desk"}));
    assert_eq!(
        status(&mut bob, rq),
        json!({"rq": rq, "side": "buyer", "item_name": "desk", "state": "cancelled", "reason": "NOT_AVAILABLE"})
    );
    let rq = bob.look_for("sofa", 10.0);
    let (a, c) = (
        alice.push_of("SEARCH", "sofa")["rq"].as_u64().unwrap(),
        carol.push_of("SEARCH", "sofa")["rq"].as_u64().unwrap(),
    );
    alice.ask_rq("OFFER", a, json!({"item_name": "sofa", "price": 12}));
    carol.ask_rq("OFFER", c, json!({"item_name": "sofa", "price": 11}));
    for (peer, rq) in [(&mut carol, c), (&mut alice, a)] {
        assert_eq!(peer.push_of("NEGOTIATE", "sofa")["max_price"], 10);
        let answer = peer.ask_rq("REFUSE", rq, json!({"item_name": "sofa", "max_price": 10}));
        assert_eq!(answer, json!({"type": "NOTED", "rq": rq}));
    }
    assert_eq!(
        bare(bob.push("NOT_FOUND")),
        json!({"type": "NOT_FOUND", "rq": rq, "item_name": "sofa", "max_price": 10})
    );
    for (peer, rq) in [(&mut carol, c), (&mut alice, a)] {
        assert_eq!(peer.push_of("RELEASED", "sofa")["rq"], rq);
        assert_eq!(status(peer, rq)["reason"], "released");
    }
    assert_eq!(status(&mut bob, rq)["reason"], "NOT_FOUND");
}

#[test]
fn each_request_twice_gets_the_same_answer_and_other_content_none() {
    let server = Server::start(&["--offer-window", "60s", "--negotiate-window", "60s"]);
    let mut bob = Peer::new(&server, "bob");
    let mut alice = Peer::new(&server, "alice");
    /// The same request again, also with the token, and also as seen after a restart; then with a different field.
    fn twice(peer: &mut Peer, kind: &str, rq: u64, fields: &Value, field: &str, other: Value) {
        let first = peer.ask_rq(kind, rq, fields.clone());
        assert_ne!(first["type"], "ERROR", "{first}");
        let mut again = fields.clone();
        again["token"] = json!(peer.token);
        assert_eq!(peer.ask_rq(kind, rq, again), first);
        for (field, other) in [(field, other), ("item_name", json!("something else"))] {
            let mut changed = fields.clone();
            changed[field] = other;
            refused(&peer.ask_rq(kind, rq, changed), "BAD_REQUEST", "rq already used");
        }
        assert_eq!(peer.ask_rq(kind, rq, fields.clone()), first, "an error is not remembered");
    }
    let search = json!({"item_name": "lamp", "description": "d", "max_price": 10});
    let rq = bob.fresh_rq();
    twice(&mut bob, "LOOKING_FOR", rq, &search, "max_price", json!(11));
    twice(&mut bob, "LOOKING_FOR", rq, &search, "description", json!("D"));
    let a = alice.push("SEARCH")["rq"].as_u64().unwrap();
    twice(&mut alice, "OFFER", a, &json!({"item_name": "lamp", "price": 20}), "price", json!(19));
    alice.push("NEGOTIATE");
    // The same amount in a different notation is the same content.
    let answer = alice.ask_rq("OFFER", a, json!({"item_name": "lamp", "price": "20.00"}));
    assert_eq!(answer["type"], "OFFERED", "{answer}");
    twice(&mut alice, "ACCEPT", a, &json!({"item_name": "lamp", "max_price": 10}), "max_price", json!(9));
    bob.push("FOUND");
    twice(&mut bob, "CANCEL", rq, &json!({"item_name": "lamp"}), "item_name", json!("x"));
    assert_eq!(alice.push("CANCEL")["rq"], a);
    // A repeat of an answered request changes nothing.
    assert_eq!(alice.ask_rq("ACCEPT", a, json!({"item_name": "lamp", "max_price": 10}))["type"], "NOTED");
    assert_eq!(bob.deal(rq).unwrap()["state"], "cancelled");

    let rq = bob.look_for("desk", 10.0);
    let a = alice.push_of("SEARCH", "desk")["rq"].as_u64().unwrap();
    twice(&mut alice, "NOT_AVAILABLE", a, &json!({"item_name": "desk"}), "item_name", json!("x"));
    bob.push("NOT_AVAILABLE");
    refused(&alice.ask_rq("OFFER", a, json!({"item_name": "desk", "price": 5})), "WRONG_STATE", "");

    let server = server.kill_and_restart();
    let search = json!({"item_name": "desk", "description": "", "max_price": 10});
    assert_eq!(bob.ask_rq("LOOKING_FOR", rq, search), json!({"type": "SEARCHING", "rq": rq, "peers": 1}));
    assert_eq!(alice.ask_rq("NOT_AVAILABLE", a, json!({"item_name": "desk"}))["type"], "NOTED");
    let log = server.admin_json(&["log", "--peer", "bob"]);
    assert_eq!(log.iter().filter(|line| line["kind"] == "search").count(), 2, "each once: {log:?}");

    // REFUSE, and a seller's CANCEL.
    bob.look_for("sofa", 10.0);
    let a = alice.offer("sofa", 20.0);
    alice.push_of("NEGOTIATE", "sofa");
    twice(&mut alice, "REFUSE", a, &json!({"item_name": "sofa", "max_price": 10}), "max_price", json!(9));
    bob.push("NOT_FOUND");
    let (rq, a) = reserved(&mut bob, &mut alice, "bed", 10.0);
    twice(&mut alice, "CANCEL", a, &json!({"item_name": "bed"}), "item_name", json!("x"));
    assert_eq!(bob.push("CANCEL")["rq"], rq);
    // A REGISTER makes the numbers of ended deals available again.
    bob.register();
    let answer = bob.ask_rq("LOOKING_FOR", rq, json!({"item_name": "rug", "description": "", "max_price": 10}));
    assert_eq!(answer["type"], "SEARCHING", "{answer}");
    assert_eq!(alice.push_of("SEARCH", "rug")["description"], "");
}

#[test]
fn numbers_are_a_peers_own() {
    let server = Server::start(&["--offer-window", "60s"]);
    let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    let mut carol = Peer::new(&server, "carol");
    let rq = bob.look_for("lamp", 10.0);
    let a = alice.push("SEARCH")["rq"].as_u64().unwrap();
    let offer = json!({"item_name": "lamp", "price": 5});
    // The number of another peer's side, an unused number, and a number of the wrong kind.
    refused(&carol.ask_rq("OFFER", a, offer.clone()), "UNKNOWN_DEAL", "rq");
    refused(&alice.ask_rq("OFFER", (1 << 31) + (1 << 30), offer.clone()), "UNKNOWN_DEAL", "rq");
    refused(&alice.ask_rq("OFFER", rq + 1000, offer.clone()), "UNKNOWN_DEAL", "rq");
    refused(&bob.ask_rq("CANCEL", 999_999, json!({"item_name": "lamp"})), "UNKNOWN_DEAL", "rq");
    refused(&bob.ask_rq("BUY", 999_999, offer.clone()), "UNKNOWN_DEAL", "rq");
    refused(&carol.ask_rq("CANCEL", rq, json!({"item_name": "lamp"})), "UNKNOWN_DEAL", "rq");
    refused(&alice.ask_rq("OFFER", a, json!({"item_name": "Lamp", "price": 5})), "BAD_REQUEST", "item_name");
    // Numbers from 2^31 on are assigned by the server.
    for kind in ["LOOKING_FOR", "BUY", "STATUS", "REGISTER", "DE-REGISTER"] {
        let mut fields = json!({"item_name": "lamp", "description": "", "max_price": 1, "price": 1});
        fields.as_object_mut().unwrap().extend(bob.endpoint().as_object().unwrap().clone());
        refused(&bob.ask_rq(kind, 1 << 31, fields), "BAD_REQUEST", "rq");
    }
    let answer = bob.ask_rq("LOOKING_FOR", (1 << 31) - 1, json!({"item_name": "x", "description": "", "max_price": 1}));
    assert_eq!(answer["type"], "SEARCHING", "{answer}");
    // Requests that this side may not make.
    refused(&bob.ask_rq("OFFER", rq, offer), "WRONG_STATE", "");
    refused(&alice.ask_rq("CANCEL", a, json!({"item_name": "lamp"})), "WRONG_STATE", "");
    refused(&bob.ask_rq("BUY", rq, json!({"item_name": "lamp", "price": 5})), "WRONG_STATE", "");
    assert_eq!(bob.deal(rq).unwrap()["state"], "searching");
}

#[test]
fn bad_fields_are_named() {
    let server = Server::start(&[]);
    let mut bob = Peer::new(&server, "bob");
    let good = json!({"item_name": "lamp", "description": "", "max_price": 1});
    for (field, value) in [
        ("item_name", Value::Null),
        ("item_name", json!("")),
        ("item_name", json!("x".repeat(65))),
        ("item_name", json!(7)),
        ("description", Value::Null),
        ("description", json!("ü".repeat(257))),
        ("max_price", Value::Null),
        ("max_price", json!(0)),
        ("max_price", json!(-1)),
        ("max_price", json!(0.001)),
        ("max_price", json!(1.005)),
        ("max_price", json!(10_000_000.01)),
        ("max_price", json!("1,50")),
        ("max_price", json!("50.050")),
        ("max_price", json!(true)),
        ("max_price", json!([1])),
        ("name", json!("")),
        ("name", json!({})),
        ("token", json!(5)),
        ("rq", json!("1")),
        ("rq", json!(-1)),
        ("rq", json!(1.5)),
        ("type", json!(5)),
        ("type", json!("looking_for")),
    ] {
        let rq = bob.fresh_rq();
        let mut message = bob.message("LOOKING_FOR", rq, good.clone());
        message[field] = value.clone();
        // If the number cannot be read, the error has none.
        let answered = if field == "rq" { Value::Null } else { json!(rq) };
        bob.send(&message);
        let answer = eventually("an answer", || {
            bob.receive_until(std::time::Instant::now() + PATIENCE).filter(|answer| answer["mid"].is_null())
        });
        assert_eq!(answer["rq"], answered, "{message}");
        refused(&answer, "BAD_REQUEST", &format!("{field}:"));
    }
    for (bytes, reason) in [
        (&b"{"[..], "expected one JSON object"),
        (b"[]", "expected one JSON object"),
        // serde would read this array as an object with its fields in order.
        (br#"["STATUS",1,null,"bob",null,null,null,null,null,null,null,null,null]"#, "expected one JSON object"),
        (br#"{"type":"STATUS","rq":1,"name":"bob","rq":2,"padding":"................"}"#, "rq: expected once"),
        (br#"{"type":"STATUS","rq":1e400,"name":"bob","padding":"................"}"#, "rq: expected a number"),
        (b"\xff\xfe", "expected UTF-8"),
        (b"{\"type\":\"STATUS\",\"rq\":1,\"name\":\"bob\",\"unknown\":\"\xff\"}", "expected UTF-8"),
    ] {
        bob.send_bytes(bytes);
        let answer = bob.receive_until(std::time::Instant::now() + PATIENCE).unwrap();
        assert!(answer["rq"].is_null(), "{answer}");
        refused(&answer, "BAD_REQUEST", reason);
    }
    // Values at their limits are valid, and unknown fields are ignored.
    let edge = json!({"item_name": "ü".repeat(64), "description": "ü".repeat(256), "max_price": "10000000.00", "colour": {"r": 1}});
    assert_eq!(bob.ask("LOOKING_FOR", edge)["type"], "SEARCHING");
    let edge = json!({"item_name": "two\nlines\u{1b}[2J\u{0}", "description": "two\nlines", "max_price": "0.01"});
    assert_eq!(bob.ask("LOOKING_FOR", edge)["type"], "SEARCHING");
}

#[test]
fn after_accept_the_price_is_the_maximum_also_without_a_sale() {
    let server = Server::start(&["--offer-window", "60s"]);
    let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    let rq = bob.look_for("lamp", 10.0);
    let a = alice.offer("lamp", 12.0);
    alice.push("NEGOTIATE");
    assert_eq!(status(&mut alice, a)["price"], 12);
    let agree = json!({"item_name": "lamp", "max_price": 10});
    assert_eq!(alice.ask_rq("ACCEPT", a, agree)["type"], "NOTED");
    assert_eq!(status(&mut alice, a)["price"], 10);
    assert_eq!(bob.ask_rq("CANCEL", rq, json!({"item_name": "lamp"}))["type"], "CANCELLED");
    let deal = status(&mut alice, a);
    assert_eq!((&deal["state"], &deal["price"]), (&json!("cancelled"), &json!(10)), "{deal}");
    // Also after a restart.
    let _server = server.kill_and_restart();
    assert_eq!(status(&mut alice, a), deal);
}

#[test]
fn two_buyers_after_one_item() {
    let server = Server::start(&["--offer-window", "60s"]);
    let (mut bob, mut carol) = (Peer::new(&server, "bob"), Peer::new(&server, "carol"));
    let mut alice = Peer::new(&server, "alice");
    let (first, second) = (bob.look_for("lamp", 10.0), carol.look_for("lamp", 10.0));
    for peer in [&mut bob, &mut carol] {
        let rq = peer.push("SEARCH")["rq"].as_u64().unwrap();
        peer.ask_rq("NOT_AVAILABLE", rq, json!({"item_name": "lamp"}));
    }
    // There is one lamp: it is offered to one buyer and not available to the other.
    let mut asked = [alice.push("SEARCH")["rq"].as_u64().unwrap(), alice.push("SEARCH")["rq"].as_u64().unwrap()];
    asked.sort_unstable();
    assert_eq!(alice.ask_rq("OFFER", asked[0], json!({"item_name": "lamp", "price": 8}))["type"], "OFFERED");
    assert_eq!(alice.ask_rq("NOT_AVAILABLE", asked[1], json!({"item_name": "lamp"}))["type"], "NOTED");
    assert_eq!(bob.push("FOUND")["rq"], first);
    assert_eq!(carol.push("NOT_AVAILABLE")["rq"], second);
    alice.push("RESERVE");
    // Neither deal accepts the other's numbers.
    refused(&carol.ask_rq("BUY", second, json!({"item_name": "lamp", "price": 8})), "WRONG_STATE", "");
    let answer = buy(&mut bob, first, "lamp", 8.0);
    assert_eq!(answer["type"], "BUYING", "{answer}");
}

#[test]
fn the_window_closes_by_its_timer_and_late_offers_are_refused() {
    let server = Server::start(&["--offer-window", "300ms"]);
    let (mut bob, mut mute) = (Peer::new(&server, "bob"), Peer::new(&server, "mute"));
    let rq = bob.look_for("lamp", 10.0);
    let late = mute.push("SEARCH")["rq"].as_u64().unwrap();
    bob.push("NOT_AVAILABLE");
    refused(&mute.ask_rq("OFFER", late, json!({"item_name": "lamp", "price": 5})), "WRONG_STATE", "the window");
    refused(&mute.ask_rq("NOT_AVAILABLE", late, json!({"item_name": "lamp"})), "WRONG_STATE", "the window");
    assert_eq!(mute.deal(late), None);
    assert_eq!(bob.deal(rq).unwrap()["reason"], "NOT_AVAILABLE");
}

#[test]
fn who_is_silent_while_negotiating_has_refused() {
    let server = Server::start(&["--offer-window", "60s", "--negotiate-window", "300ms"]);
    let mut bob = Peer::new(&server, "bob");
    let (mut alice, mut carol) = (Peer::new(&server, "alice"), Peer::new(&server, "carol"));
    let rq = bob.look_for("desk", 10.0);
    let (a, c) = (alice.offer("desk", 11.0), carol.offer("desk", 12.0));
    alice.push_of("NEGOTIATE", "desk");
    carol.push_of("NEGOTIATE", "desk");
    refused(&alice.ask_rq("ACCEPT", a, json!({"item_name": "desk", "max_price": 10})), "WRONG_STATE", "");
    assert_eq!(bob.push("NOT_FOUND")["rq"], rq);
    assert_eq!(alice.push("RELEASED")["rq"], a);
    assert_eq!(carol.push("RELEASED")["rq"], c);
}

fn asked(peer: &mut Peer, item: &str) -> u64 {
    peer.push_of("SEARCH", item)["rq"].as_u64().unwrap()
}

#[test]
fn at_most_five_sellers_are_asked_for_less() {
    let server = Server::start(&["--offer-window", "60s", "--negotiate-window", "60s"]);
    let mut bob = Peer::new(&server, "bob");
    let mut sellers: Vec<Peer> = (0..6).map(|n| Peer::new(&server, &format!("seller {n}"))).collect();
    let rq = bob.look_for("lamp", 10.0);
    // The dearest offers come first: the price decides the order, not the time.
    let mut numbers: Vec<u64> = Vec::new();
    for (place, seller) in sellers.iter_mut().enumerate() {
        numbers.push(seller.offer("lamp", 20.0 - place as f64));
    }
    for place in (1..6).rev() {
        sellers[place].push("NEGOTIATE");
        let answer = sellers[place].ask_rq("REFUSE", numbers[place], json!({"item_name": "lamp", "max_price": 10}));
        assert_eq!(answer["type"], "NOTED");
    }
    assert_eq!(bob.push("NOT_FOUND")["rq"], rq);
    for (seller, number) in sellers.iter_mut().zip(&numbers) {
        assert_eq!(seller.push("RELEASED")["rq"], *number);
    }
    assert!(!sellers[0].pushed().iter().any(|push| push["type"] == "NEGOTIATE"));
}

#[test]
fn the_cheapest_wins_and_the_earlier_of_equals() {
    let server = Server::start(&["--offer-window", "60s"]);
    let mut bob = Peer::new(&server, "bob");
    let mut sellers: Vec<Peer> = ["zoe", "amy", "eve"].iter().map(|name| Peer::new(&server, name)).collect();
    bob.look_for("lamp", 10.0);
    let prices = [9.0, 7.5, 7.5];
    for place in [2, 0, 1] {
        sellers[place].offer("lamp", prices[place]);
    }
    let found = bob.push("FOUND");
    assert_eq!((&found["seller"], &found["price"]), (&json!("eve"), &json!(7.5)));
    sellers[2].push("RESERVE");
    sellers[0].push("RELEASED");
    sellers[1].push("RELEASED");
}

#[test]
fn with_nobody_to_ask_nothing_is_available_at_once() {
    let server = Server::start(&["--offer-window", "1h"]);
    let mut bob = Peer::new(&server, "bob");
    let rq = bob.fresh_rq();
    let answer = bob.ask_rq("LOOKING_FOR", rq, json!({"item_name": "x", "description": "", "max_price": 1}));
    assert_eq!(answer, json!({"type": "SEARCHING", "rq": rq, "peers": 0}));
    assert_eq!(bob.push("NOT_AVAILABLE")["rq"], rq);
    refused(&bob.ask_rq("CANCEL", rq, json!({"item_name": "x"})), "WRONG_STATE", "");
}

#[test]
fn either_side_may_cancel_until_buy() {
    let server = Server::start(&["--offer-window", "60s", "--negotiate-window", "60s"]);
    let mut bob = Peer::new(&server, "bob");
    let (mut alice, mut carol) = (Peer::new(&server, "alice"), Peer::new(&server, "carol"));
    let cancel = |peer: &mut Peer, rq: u64, item: &str| {
        let answer = peer.ask_rq("CANCEL", rq, json!({"item_name": item}));
        assert_eq!(answer, json!({"type": "CANCELLED", "rq": rq}));
    };
    // The buyer cancels during the search: sellers that offered are released, and the search ends for the others.
    let rq = bob.look_for("a", 10.0);
    let a = alice.offer("a", 9.0);
    let c = asked(&mut carol, "a");
    cancel(&mut bob, rq, "a");
    assert_eq!(alice.push("RELEASED")["rq"], a);
    refused(&carol.ask_rq("OFFER", c, json!({"item_name": "a", "price": 1})), "WRONG_STATE", "");
    // The buyer cancels during a negotiation: that seller gets CANCEL, the others RELEASED.
    let rq = bob.look_for("b", 10.0);
    let (a, c) = (alice.offer("b", 11.0), carol.offer("b", 12.0));
    alice.push_of("NEGOTIATE", "b");
    cancel(&mut bob, rq, "b");
    assert_eq!(alice.push_of("CANCEL", "b")["rq"], a);
    assert_eq!(carol.push_of("RELEASED", "b")["rq"], c);
    // A seller cancels before RESERVE: its offer is withdrawn, and it may not offer again.
    let rq = bob.look_for("c", 10.0);
    let (a, c) = (alice.offer("c", 5.0), asked(&mut carol, "c"));
    cancel(&mut alice, a, "c");
    assert_eq!(status(&mut alice, a)["state"], "cancelled");
    carol.ask_rq("OFFER", c, json!({"item_name": "c", "price": 8}));
    let found = bob.push_of("FOUND", "c");
    assert_eq!((&found["seller"], &found["price"]), (&json!("carol"), &json!(8)));
    cancel(&mut carol, c, "c");
    let told = bob.push_of("CANCEL", "c");
    assert_eq!(told["rq"], rq);
    // A seller cancels during a negotiation: as REFUSE.
    let rq = bob.look_for("d", 10.0);
    let (a, c) = (alice.offer("d", 11.0), carol.offer("d", 12.0));
    alice.push_of("NEGOTIATE", "d");
    cancel(&mut alice, a, "d");
    carol.push_of("NEGOTIATE", "d");
    cancel(&mut carol, c, "d");
    assert_eq!(bob.push_of("NOT_FOUND", "d")["rq"], rq);
    refused(&bob.ask_rq("CANCEL", rq, json!({"item_name": "d"})), "WRONG_STATE", "");
    // A seller that has not offered cannot cancel.
    let rq = bob.look_for("e", 10.0);
    let (a, c) = (asked(&mut alice, "e"), asked(&mut carol, "e"));
    refused(&alice.ask_rq("CANCEL", a, json!({"item_name": "e"})), "WRONG_STATE", "");
    for (peer, rq) in [(&mut alice, a), (&mut carol, c)] {
        peer.ask_rq("NOT_AVAILABLE", rq, json!({"item_name": "e"}));
    }
    assert_eq!(bob.push_of("NOT_AVAILABLE", "e")["rq"], rq);
}

#[test]
fn a_seller_that_cannot_honour_its_reserve_makes_room_for_the_next() {
    let server = Server::start(&["--offer-window", "60s"]);
    let mut bob = Peer::new(&server, "bob");
    let mut sellers: Vec<Peer> = ["amy", "eve", "zoe"].iter().map(|name| Peer::new(&server, name)).collect();
    let rq = bob.look_for("lamp", 10.0);
    let numbers: Vec<u64> =
        sellers.iter_mut().zip([7.0, 8.0, 10.5]).map(|(seller, price)| seller.offer("lamp", price)).collect();
    assert_eq!(bob.push("FOUND")["price"], 7);
    sellers[1].push("RELEASED");
    sellers[2].push("RELEASED");
    sellers[0].push("RESERVE");
    sellers[0].ask_rq("CANCEL", numbers[0], json!({"item_name": "lamp"}));
    let found = bob.push("FOUND");
    assert_eq!((&found["price"], &found["seller"], &found["rq"]), (&json!(8), &json!("eve"), &json!(rq)));
    assert_eq!(sellers[1].push("RESERVE")["rq"], numbers[1], "though it was released");
    assert_eq!(status(&mut sellers[1], numbers[1])["state"], "reserved");
    assert_eq!(status(&mut sellers[0], numbers[0])["state"], "cancelled");
    // Only the newest price is accepted.
    refused(&buy(&mut bob, rq, "lamp", 7.0), "BAD_REQUEST", "price");
    assert_eq!(bob.deal(rq).unwrap()["state"], "reserved");
    // The third offer is above the maximum, so there is no next one.
    sellers[1].ask_rq("CANCEL", numbers[1], json!({"item_name": "lamp"}));
    assert_eq!(bob.push("CANCEL")["rq"], rq);
    refused(&buy(&mut bob, rq, "lamp", 8.0), "WRONG_STATE", "");
    assert!(!sellers[2].pushed().iter().any(|push| push["type"] == "RESERVE"));
}

#[test]
fn a_reservation_runs_out_and_both_are_told() {
    let server = Server::start(&["--reserve-window", "300ms"]);
    let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    let (rq, sold) = reserved(&mut bob, &mut alice, "lamp", 10.0);
    let (told, also) = (bob.push("CANCEL"), alice.push("CANCEL"));
    assert_eq!((&told["rq"], &also["rq"]), (&json!(rq), &json!(sold)));
    assert_eq!(told["reason"], also["reason"]);
    refused(&buy(&mut bob, rq, "lamp", 10.0), "WRONG_STATE", "");
    assert_eq!(alice.deal(sold).unwrap()["state"], "cancelled");
}

#[test]
fn status_lists_newest_first_and_says_when_there_is_more() {
    let server = Server::start(&["--offer-window", "60s"]);
    let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    assert_eq!(bob.ask("STATUS", json!({}))["deals"], json!([]));
    let item = "long item name ".repeat(4);
    let mut numbers = Vec::new();
    for n in 0..64 {
        numbers.push(bob.look_for(&format!("{item}{n}"), 10.0));
    }
    let answer = bob.ask("LOOKING_FOR", json!({"item_name": "x", "description": "", "max_price": 1}));
    refused(&answer, "BUSY", "64 searches");
    let answer = bob.ask("STATUS", json!({}));
    let listed: Vec<u64> =
        answer["deals"].as_array().unwrap().iter().map(|deal| deal["rq"].as_u64().unwrap()).collect();
    numbers.reverse();
    assert_eq!((listed.as_slice(), &answer["more"]), (&numbers[..listed.len()], &json!(true)));
    assert!(listed.len() > 40 && answer.to_string().len() <= 8192, "as many as fit: {}", listed.len());
    assert!(answer.to_string().len() + answer["deals"][0].to_string().len() + 2 > 8192, "one more would have fitted");
    // The oldest deal is found by its number.
    let answer = bob.ask("STATUS", json!({"rq_deal": numbers[63]}));
    assert_eq!((answer["deals"].as_array().unwrap().len(), &answer["more"]), (1, &json!(false)));
    assert_eq!(answer["deals"][0]["rq"], numbers[63]);
    assert_eq!(bob.ask("STATUS", json!({"rq_deal": 99_999}))["deals"], json!([]));
    refused(&bob.ask("STATUS", json!({"rq_deal": "x"})), "BAD_REQUEST", "rq_deal");
    let left = answer["deals"][0]["ends_in_ms"].as_u64().unwrap();
    assert!((1..=60_000).contains(&left), "{left}");
    // A search that ends makes room for another.
    let oldest = format!("{item}0");
    assert_eq!(bob.ask_rq("CANCEL", numbers[63], json!({"item_name": oldest}))["type"], "CANCELLED");
    bob.look_for("x", 1.0);
    refused(&bob.ask("LOOKING_FOR", json!({"item_name": "y", "description": "", "max_price": 1})), "BUSY", "");
    // A peer that was asked but has not offered sees no deals.
    assert_eq!(alice.ask("STATUS", json!({}))["deals"], json!([]));
    // With the token from an unvalidated address, no more than three times the request is sent.
    let mut elsewhere = Peer::unregistered(server.addr, "bob");
    let request = elsewhere.message("STATUS", 5, json!({"token": bob.token}));
    let answer = elsewhere.ask_raw(&request, 5).unwrap();
    assert!(answer["more"] == true && answer.to_string().len() <= 3 * request.to_string().len(), "{answer}");
}

#[test]
fn who_stays_silent_is_asked_but_not_waited_for_until_it_asks() {
    let server = Server::start(&["--offer-window", "2s"]);
    let (mut bob, mut mute) = (Peer::new(&server, "bob"), Peer::new(&server, "mute"));
    // Three windows close without an answer. (Windows that the buyer ended early would not count.)
    let silences: Vec<u64> = (0..3).map(|n| bob.look_for(&format!("silence {n}"), 10.0)).collect();
    for n in 0..3 {
        mute.push_of("SEARCH", &format!("silence {n}"));
        bob.push_of("NOT_AVAILABLE", &format!("silence {n}"));
    }
    assert_eq!(bob.deal(silences[2]).unwrap()["state"], "cancelled");
    // Nobody is waited for, but one peer was asked.
    let rq = bob.fresh_rq();
    let answer = bob.ask_rq("LOOKING_FOR", rq, json!({"item_name": "now", "description": "", "max_price": 1}));
    assert_eq!(answer["peers"], 1);
    assert_eq!(bob.deal(rq).unwrap()["reason"], "NOT_AVAILABLE", "at once");
    mute.push_of("SEARCH", "now");
    let mut alice = Peer::new(&server, "alice");
    let rq = bob.look_for("quick", 10.0);
    let asked = alice.push_of("SEARCH", "quick")["rq"].as_u64().unwrap();
    let late = mute.push_of("SEARCH", "quick")["rq"].as_u64().unwrap();
    alice.ask_rq("OFFER", asked, json!({"item_name": "quick", "price": 9}));
    assert_eq!(bob.deal(rq).unwrap()["state"], "reserved", "at once");
    // Any request makes the peer count again, even one that is refused.
    refused(&mute.ask_rq("OFFER", late, json!({"item_name": "quick", "price": 1})), "WRONG_STATE", "");
    let rq = bob.look_for("waited", 10.0);
    let m = mute.push_of("SEARCH", "waited")["rq"].as_u64().unwrap();
    let asked = alice.push_of("SEARCH", "waited")["rq"].as_u64().unwrap();
    mute.pushed();
    alice.ask_rq("OFFER", asked, json!({"item_name": "waited", "price": 9}));
    assert_eq!(bob.deal(rq).unwrap()["state"], "searching");
    mute.ask_rq("OFFER", m, json!({"item_name": "waited", "price": 8}));
    assert_eq!(bob.push_of("FOUND", "waited")["seller"], "mute");
}
