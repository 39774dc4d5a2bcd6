//! REGISTER, LOGIN and DE-REGISTER: who gets a name, who keeps it, and what leaving ends.

use std::net::{Ipv4Addr, UdpSocket};

use serde_json::{Value, json};

use crate::support::*;

/// Asserts a denial whose reason names the field.
fn denied(answer: &Value, kind: &str, field: &str) {
    assert_eq!(answer["type"], kind, "{answer}");
    assert!(answer["reason"].as_str().unwrap().starts_with(field), "{answer}");
}

#[test]
fn registered_has_a_token_and_the_certificates_fingerprint() {
    let server = Server::start(&[]);
    let mut alice = Peer::unregistered(server.addr, "alice");
    let answer = alice.register();
    let fields: Vec<&String> = answer.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["cert_sha256", "rq", "token", "type"]);
    assert!(alice.token.as_ref().unwrap().len() >= 22, "128 bits do not fit into less");
    let pin = alice.cert_sha256.clone().unwrap();
    assert!(pin.len() == 64 && pin.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)), "{pin}");

    // Answered for any number, always with the same token.
    for rq in [1, 1, 77] {
        let again = alice.ask_rq("REGISTER", rq, alice.endpoint());
        assert_eq!((&again["type"], &again["token"]), (&json!("REGISTERED"), &answer["token"]), "{again}");
    }
    let bob = Peer::new(&server, "bob");
    assert_ne!(bob.token, alice.token);
    assert_eq!(bob.cert_sha256, alice.cert_sha256);

    // The certificate is created only once.
    let server = server.kill_and_restart();
    let again = alice.register();
    assert_eq!((&again["token"], &again["cert_sha256"]), (&answer["token"], &answer["cert_sha256"]));
    assert_eq!(server.stop(), 0);
}

#[test]
fn without_tls_there_is_no_fingerprint() {
    let server = Server::start(&["--plaintext"]);
    let mut alice = Peer::unregistered(server.addr, "alice");
    let answer = alice.register();
    assert!(answer.as_object().unwrap().contains_key("cert_sha256") && answer["cert_sha256"].is_null(), "{answer}");
    let login = alice.message("LOGIN", 9, alice.endpoint_with_token());
    let answer = alice.ask_raw(&login, 9).unwrap();
    assert_eq!(answer, json!({"type": "LOGGED-IN", "rq": 9, "cert_sha256": null}));
}

#[test]
fn a_peer_is_where_its_datagram_comes_from() {
    let server = Server::start(&[]);
    let mut alice = Peer::unregistered(server.addr, "alice");
    let (udp, tcp) = (alice.udp_port(), alice.tcp_port());
    for (endpoint, field) in [
        (json!({"ip": "192.0.2.1", "udp_port": udp, "tcp_port": tcp}), "ip"),
        (json!({"ip": "127.0.0.2", "udp_port": udp, "tcp_port": tcp}), "ip"),
        (json!({"ip": "127.0.0.1", "udp_port": 1023, "tcp_port": tcp}), "udp_port"),
        (json!({"ip": "127.0.0.1", "udp_port": udp, "tcp_port": 1023}), "tcp_port"),
        (json!({"ip": "127.0.0.1", "udp_port": 0, "tcp_port": tcp}), "udp_port"),
        (json!({"ip": "127.0.0.1", "udp_port": 65_536, "tcp_port": tcp}), "udp_port"),
    ] {
        denied(&alice.ask("REGISTER", endpoint), "REGISTER-DENIED", field);
    }
    let bad = |answer: &Value, field: &str| {
        assert_eq!((&answer["type"], &answer["code"]), (&json!("ERROR"), &json!("BAD_REQUEST")), "{answer}");
        assert!(answer["reason"].as_str().unwrap().starts_with(field), "{answer}");
    };
    bad(&alice.ask("REGISTER", json!({"ip": "localhost", "udp_port": udp, "tcp_port": tcp})), "ip");
    bad(&alice.ask("REGISTER", json!({"udp_port": udp, "tcp_port": tcp})), "ip");
    bad(&alice.ask("REGISTER", json!({"ip": "127.0.0.1", "udp_port": "x", "tcp_port": tcp})), "udp_port");
    bad(&alice.ask("REGISTER", json!({"ip": "127.0.0.1", "udp_port": udp})), "tcp_port");
    assert_eq!(server.admin_json(&["peers"]), [] as [Value; 0]);
}

#[test]
fn names_are_counted_in_characters() {
    let server = Server::start(&[]);
    for (name, good) in [
        ("ü".repeat(64), true),
        ("🦀".repeat(64), true),
        ("ü".repeat(65), false),
        (String::new(), false),
        ("a\u{0}b".to_owned(), false),
        ("a\nb".to_owned(), false),
        ("a\u{7f}b".to_owned(), false),
        ("a\u{85}b".to_owned(), false),
        ("a b".to_owned(), true),
        ("\"quoted\\\"".to_owned(), true),
    ] {
        let answer = Peer::unregistered(server.addr, &name).register();
        if good {
            assert_eq!(answer["type"], "REGISTERED", "{name:?}: {answer}");
        } else {
            assert_eq!(answer["code"], "BAD_REQUEST", "{name:?}: {answer}");
            assert!(answer["reason"].as_str().unwrap().starts_with("name"), "{answer}");
        }
    }
    let names: Vec<Value> = server.admin_json(&["peers"]).into_iter().map(|peer| peer["name"].clone()).collect();
    assert!(names.contains(&json!("ü".repeat(64))), "{names:?}");
}

#[test]
fn a_taken_name_goes_to_its_own_address_or_token_only() {
    let server = Server::start(&[]);
    let alice = Peer::new(&server, "alice");
    let mut thief = Peer::unregistered(server.addr, "alice");
    denied(&thief.register(), "REGISTER-DENIED", "name");
    let mut fields = thief.endpoint();
    fields["token"] = json!("0".repeat(32));
    denied(&thief.ask("REGISTER", fields), "REGISTER-DENIED", "name");
    // Claiming the victim's address does not help: the source address counts.
    denied(&thief.ask("REGISTER", alice.endpoint()), "REGISTER-DENIED", "name");

    // With the token, from elsewhere: the peer has moved, and its notifications follow.
    let mut moved = Peer::unregistered(server.addr, "alice");
    let mut fields = moved.endpoint();
    fields["token"] = json!(alice.token);
    let answer = moved.ask("REGISTER", fields);
    assert_eq!((&answer["type"], &answer["token"]), (&json!("REGISTERED"), &json!(alice.token)), "{answer}");
    let mut bob = Peer::new(&server, "bob");
    bob.look_for("lamp", 10.0);
    moved.push("SEARCH");
    // The old address no longer belongs to the peer.
    let mut old = alice;
    let answer = old.ask("STATUS", json!({}));
    assert_eq!(answer["code"], "FORBIDDEN", "{answer}");
}

#[test]
fn a_first_register_may_come_from_another_port() {
    let server = Server::start(&[]);
    let mut alice = Peer::unregistered(server.addr, "alice");
    let mut other = Peer::unregistered(server.addr, "alice");
    let first = other.ask("REGISTER", alice.endpoint());
    assert_eq!(first["type"], "REGISTERED", "{first}");
    let again = other.ask("REGISTER", alice.endpoint());
    assert_eq!(again["token"], first["token"], "the answer may have been lost: {again}");
    // That port may repeat its first request and nothing else.
    denied(&other.ask("REGISTER", other.endpoint()), "REGISTER-DENIED", "name");
    assert_eq!(other.ask("STATUS", json!({}))["code"], "FORBIDDEN");
    assert_eq!(alice.ask("STATUS", json!({}))["type"], "DEALS");
    let mut bob = Peer::new(&server, "bob");
    bob.look_for("lamp", 10.0);
    alice.push("SEARCH");
    // Also after a restart.
    let _server = server.kill_and_restart();
    assert_eq!(other.ask("REGISTER", alice.endpoint())["token"], first["token"]);
    // Once the peer has moved, the repeat no longer matches its address.
    let mut moved = Peer::unregistered(bob.server, "alice");
    moved.token = first["token"].as_str().map(str::to_owned);
    let login = moved.message("LOGIN", 1, moved.endpoint_with_token());
    assert_eq!(moved.ask_raw(&login, 1).unwrap()["type"], "LOGGED-IN");
    denied(&other.ask("REGISTER", alice.endpoint()), "REGISTER-DENIED", "name");
}

#[test]
fn login_moves_a_peer() {
    let server = Server::start(&["--offer-window", "60s"]);
    let (alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    bob.look_for("lamp", 10.0);
    let mut moved = Peer::unregistered(server.addr, "alice");
    moved.token = alice.token.clone();
    let login = moved.message("LOGIN", 1, moved.endpoint_with_token());
    let answer = moved.ask_raw(&login, 1).unwrap();
    assert_eq!(answer, json!({"type": "LOGGED-IN", "rq": 1, "cert_sha256": alice.cert_sha256}));
    // Outstanding notifications are repeated at the new address.
    moved.push("SEARCH");
    assert_eq!(moved.ask("STATUS", json!({}))["type"], "DEALS");
    // The same request gets the same response; the same number with another address is refused.
    assert_eq!(moved.ask_raw(&login, 1).unwrap()["type"], "LOGGED-IN");
    let mut other = login.clone();
    other["tcp_port"] = json!(4000);
    let answer = moved.ask_raw(&other, 1).unwrap();
    assert_eq!((&answer["code"], &answer["reason"]), (&json!("BAD_REQUEST"), &json!("rq already used")));

    let mut stranger = Peer::unregistered(server.addr, "alice");
    stranger.token = Some("f".repeat(32));
    denied(&stranger.ask("LOGIN", stranger.endpoint_with_token()), "LOGIN-DENIED", "token");
    let answer = stranger.ask("LOGIN", stranger.endpoint());
    assert_eq!(answer["code"], "BAD_REQUEST", "{answer}");
    assert!(answer["reason"].as_str().unwrap().starts_with("token"), "{answer}");
    stranger.token = alice.token.clone();
    let mut elsewhere = stranger.endpoint_with_token();
    elsewhere["ip"] = json!("192.0.2.7");
    denied(&stranger.ask("LOGIN", elsewhere), "LOGIN-DENIED", "ip");
    let mut nobody = Peer::unregistered(server.addr, "nobody");
    nobody.token = alice.token.clone();
    let answer = nobody.ask("LOGIN", nobody.endpoint_with_token());
    assert_eq!(answer["type"], "LOGIN-DENIED", "{answer}");
    assert!(!answer["reason"].as_str().unwrap().is_empty());
}

#[test]
fn requests_are_taken_from_the_own_address_or_with_the_token() {
    let server = Server::start(&["--offer-window", "60s"]);
    let (mut alice, mut carol) = (Peer::new(&server, "alice"), Peer::new(&server, "carol"));
    let mut elsewhere = Peer::unregistered(server.addr, "alice");
    let search = json!({"item_name": "lamp", "description": "", "max_price": 5});
    assert_eq!(elsewhere.ask("LOOKING_FOR", search.clone())["code"], "FORBIDDEN");
    let mut with = search.clone();
    with["token"] = json!("wrong");
    assert_eq!(elsewhere.ask("LOOKING_FOR", with.clone())["code"], "FORBIDDEN");
    // A wrong token is refused from the right address too.
    assert_eq!(alice.ask("LOOKING_FOR", with.clone())["code"], "FORBIDDEN");
    // Another peer's address and token do not authenticate this one.
    with["token"] = json!(carol.token);
    assert_eq!(elsewhere.ask("LOOKING_FOR", with.clone())["code"], "FORBIDDEN");
    with["token"] = json!(alice.token);
    let rq = elsewhere.fresh_rq();
    let answer = elsewhere.ask_rq("LOOKING_FOR", rq, with);
    assert_eq!(answer["type"], "SEARCHING", "{answer}");
    // The search belongs to alice: she gets the notifications, and may cancel it without a token from her address.
    carol.push("SEARCH");
    assert_eq!(alice.ask_rq("CANCEL", rq, json!({"item_name": "lamp"}))["type"], "CANCELLED");
    let mut nobody = Peer::unregistered(server.addr, "nobody");
    assert_eq!(nobody.ask("LOOKING_FOR", search)["code"], "NOT_REGISTERED");
    assert_eq!(nobody.ask("STATUS", json!({}))["code"], "NOT_REGISTERED");
}

#[test]
fn de_register_frees_the_name_and_ends_the_token() {
    let server = Server::start(&[]);
    let mut alice = Peer::new(&server, "alice");
    let mut stranger = Peer::unregistered(server.addr, "alice");
    assert_eq!(stranger.ask("DE-REGISTER", json!({}))["code"], "FORBIDDEN");
    let rq = alice.fresh_rq();
    assert_eq!(alice.ask_rq("DE-REGISTER", rq, json!({})), json!({"type": "DE-REGISTERED", "rq": rq}));
    // Twice, and for a name that nobody holds.
    assert_eq!(alice.ask_rq("DE-REGISTER", rq, json!({}))["type"], "DE-REGISTERED");
    assert_eq!(alice.ask("DE-REGISTER", json!({}))["type"], "DE-REGISTERED");
    assert_eq!(alice.ask("STATUS", json!({}))["code"], "NOT_REGISTERED");
    let mut login = alice.endpoint_with_token();
    assert_eq!(alice.ask("LOGIN", login.take())["type"], "LOGIN-DENIED");
    let answer = stranger.register();
    assert_eq!(answer["type"], "REGISTERED", "{answer}");
    assert_ne!(answer["token"], json!(alice.token));
    // A late repeat of the former holder's DE-REGISTER does not affect the new holder.
    assert_eq!(alice.ask_rq("DE-REGISTER", rq, json!({}))["type"], "DE-REGISTERED");
    assert_eq!(stranger.ask("STATUS", json!({}))["type"], "DEALS");
    // Not after a restart either.
    let _server = server.kill_and_restart();
    assert_eq!(alice.ask_rq("DE-REGISTER", rq, json!({}))["type"], "DE-REGISTERED");
    assert_eq!(stranger.ask("STATUS", json!({}))["type"], "DEALS");
}

#[test]
fn who_comes_and_goes_with_the_same_numbers_comes_and_goes() {
    let mut server = Server::start(&[]);
    let mut alice = Peer::unregistered(server.addr, "alice");
    let has = |server: &Server, count| {
        eventually("the peers to be so many", || (server.admin_json(&["peers"]).len() == count).then_some(()));
    };
    for round in 0..3 {
        assert_eq!(alice.ask_rq("REGISTER", 1, alice.endpoint())["type"], "REGISTERED");
        has(&server, 1);
        assert_eq!(alice.ask_rq("DE-REGISTER", 2, json!({})), json!({"type": "DE-REGISTERED", "rq": 2}));
        assert_eq!(alice.ask_rq("STATUS", 3, json!({}))["code"], "NOT_REGISTERED");
        has(&server, 0);
        if round == 1 {
            server = server.kill_and_restart();
        }
    }
}

#[test]
fn a_buyer_that_leaves_ends_its_deals_at_every_stage() {
    let server = Server::start(&["--offer-window", "60s"]);
    let mut alice = Peer::new(&server, "alice");
    for stage in ["searching", "offered", "negotiating", "reserved"] {
        // Besides alice, a peer that never answers keeps the window open where needed.
        let mut mute = (stage == "searching" || stage == "offered").then(|| Peer::new(&server, "mute"));
        let mut bob = Peer::new(&server, "bob");
        bob.look_for(stage, 10.0);
        let rq = match stage {
            "searching" => {
                let rq = alice.push("SEARCH")["rq"].as_u64().unwrap();
                assert_eq!(bob.ask("DE-REGISTER", json!({}))["type"], "DE-REGISTERED");
                let answer = alice.ask_rq("OFFER", rq, json!({"item_name": stage, "price": 5}));
                assert_eq!(answer["code"], "WRONG_STATE", "{answer}");
                rq
            }
            "negotiating" => alice.offer(stage, 11.0),
            _ => alice.offer(stage, 9.0),
        };
        match stage {
            "negotiating" => drop(alice.push("NEGOTIATE")),
            "reserved" => drop(alice.push("RESERVE")),
            _ => {}
        }
        if stage != "searching" {
            assert_eq!(bob.ask("DE-REGISTER", json!({}))["type"], "DE-REGISTERED");
            let kind = if stage == "offered" { "RELEASED" } else { "CANCEL" };
            let push = alice.push(kind);
            assert_eq!((&push["rq"], &push["item_name"]), (&json!(rq), &json!(stage)), "{push}");
            assert_eq!(alice.ended(rq)["state"], "cancelled");
        }
        if let Some(mute) = &mut mute {
            mute.ask("DE-REGISTER", json!({}));
        }
    }
}

#[test]
fn a_seller_that_leaves_makes_room_for_the_next_offer() {
    let server = Server::start(&["--offer-window", "60s"]);
    let mut bob = Peer::new(&server, "bob");
    let (mut alice, mut carol) = (Peer::new(&server, "alice"), Peer::new(&server, "carol"));
    let rq = bob.look_for("lamp", 10.0);
    let (_, second) = (alice.offer("lamp", 8.0), carol.offer("lamp", 9.0));
    let found = bob.push("FOUND");
    assert_eq!(found["seller"], "alice");
    carol.push("RELEASED");
    alice.ask("DE-REGISTER", json!({}));
    let reserve = carol.push("RESERVE");
    assert_eq!((&reserve["rq"], &reserve["price"]), (&json!(second), &json!(9)));
    let found = bob.push("FOUND");
    assert_eq!((&found["seller"], &found["price"]), (&json!("carol"), &json!(9)));
    carol.ask("DE-REGISTER", json!({}));
    assert_eq!(bob.push("CANCEL")["rq"], json!(rq));
    assert_eq!(bob.ended(rq)["state"], "cancelled");

    // A recipient that departs is not waited for; a seller that departs during a negotiation has refused.
    let mut alice = Peer::new(&server, "alice");
    let mut dave = Peer::new(&server, "dave");
    let rq = bob.look_for("desk", 10.0);
    alice.offer("desk", 20.0);
    dave.ask("DE-REGISTER", json!({}));
    alice.push("NEGOTIATE");
    alice.ask("DE-REGISTER", json!({}));
    assert_eq!(bob.push("NOT_FOUND")["rq"], json!(rq));
}

#[test]
fn leaving_waits_for_a_settlement_under_way() {
    let server = Server::start(&[]);
    for (name, item) in [("alice", "first"), ("bob", "second")] {
        let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
        let (rq, sold) = reserved(&mut bob, &mut alice, item, 10.0);
        assert_eq!(buy(&mut bob, rq, item, 10.0)["type"], "BUYING");
        let (mut seller_line, mut buyer_line) = (alice.accept_settlement(), bob.accept_settlement());
        assert_eq!(seller_line.read().unwrap()["type"], "INFORM_REQ");
        assert_eq!(buyer_line.read().unwrap()["type"], "INFORM_REQ");
        let leaver = if name == "alice" { &alice } else { &bob };
        let goodbye = leaver.message("DE-REGISTER", 500, json!({}));
        leaver.send(&goodbye);
        leaver.send(&goodbye);
        // No new deal begins with a peer that is about to leave.
        let other = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut taken = leaver.message("REGISTER", 1, leaver.endpoint());
        taken["token"] = json!(leaver.token);
        other.set_read_timeout(Some(PATIENCE)).unwrap();
        let answer = eventually("the name to be about to become free", || {
            other.send_to(taken.to_string().as_bytes(), server.addr).unwrap();
            let mut bytes = [0; 2000];
            let length = other.recv(&mut bytes).unwrap();
            let answer: Value = serde_json::from_slice(&bytes[..length]).unwrap();
            (answer["type"] == "REGISTER-DENIED").then_some(answer)
        });
        assert_eq!(answer["rq"], 1);
        buyer_line.write(&bob.inform_res(rq, GOOD_CARD));
        seller_line.write(&alice.inform_res(sold, GOOD_CARD));
        assert_eq!(seller_line.read().unwrap()["type"], "SHIPPING_INFO");
        seller_line.write(&json!({"type": "SHIPPED", "rq": sold}));
        assert_eq!(seller_line.read().unwrap()["type"], "SETTLED");
        assert_eq!(buyer_line.read().unwrap()["type"], "RECEIPT");
        drop((seller_line, buyer_line));
        let (mut leaver, mut stayer) = if name == "alice" { (alice, bob) } else { (bob, alice) };
        assert_eq!(leaver.ask_raw(&goodbye, 500).unwrap(), json!({"type": "DE-REGISTERED", "rq": 500}));
        let own = if name == "alice" { rq } else { sold };
        assert_eq!(stayer.ended(own)["state"], "completed");
        stayer.ask("DE-REGISTER", json!({}));
    }
    assert_eq!(server.balance_cents("payout:alice"), 1800);
    assert_eq!(server.balance_cents("escrow"), 0);
}
