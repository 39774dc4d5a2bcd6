//! Validation of addresses, address conflicts, and lapsing names.

use super::*;

const AL: &str = "127.0.0.1:5000";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

impl World {
    fn is_validated(&self, at: &str) -> bool {
        self.exchange.address_status(address(at)).is_validated
    }

    fn ack(&self, from: &str, mid: u64) -> bool {
        self.exchange.acknowledge(self.now, address(from), &Ack { mid, token: None })
    }

    fn newest_mid(&self, name: &str) -> u64 {
        self.newest(name)["mid"].as_u64().unwrap()
    }

    pub(super) fn status(&mut self, from: &str, name: &str) -> Value {
        let token = self.tokens[name].clone();
        self.from(from, json!({"type": "STATUS", "rq": 900, "name": name, "token": token}))
    }
}

#[test]
fn an_address_is_proved_by_the_token_from_where_it_was_first_told() {
    let mut world = World::with(&["al", "bo"]);
    assert!(!world.is_validated(AL));
    world.deals("al");
    assert!(!world.is_validated(AL), "that it comes from there shows nothing: a source may be forged");
    world.status("10.0.0.1:9", "al");
    assert!(!world.is_validated(AL) && !world.is_validated("10.0.0.1:9"), "it was not told there");
    world.status(AL, "al");
    assert!(world.is_validated(AL) && !world.is_validated("127.0.0.1:5001"));
    world.reload();
    assert!(world.is_validated(AL), "also after a restart");
    world.say("al", json!({"type": "DE-REGISTER", "rq": 901}));
    assert!(!world.is_validated(AL), "it was the name's, and ends with it");
}

#[test]
fn who_registered_from_another_port_is_proved_by_an_ack_alone() {
    let mut world = World::with(&["bo"]);
    let response = world.from("127.0.0.1:7777", register("al", "127.0.0.1", 5100));
    world.tokens.insert("al".to_owned(), response["token"].as_str().unwrap().to_owned());
    world.status("127.0.0.1:7777", "al");
    world.status("127.0.0.1:5100", "al");
    assert!(!world.is_validated("127.0.0.1:5100"), "whoever is at 7777 knows the token and may forge that source");
    world.search("bo", 1);
    let mid = world.newest_mid("al");
    assert!(world.ack("127.0.0.1:5100", mid));
    assert!(world.is_validated("127.0.0.1:5100"));
}

#[test]
fn an_address_named_anew_is_proved_by_an_ack_of_what_was_sent_there() {
    let mut world = World::with(&["al", "bo"]);
    world.status(AL, "al");
    world.search("bo", 1);
    let before = world.newest_mid("al");
    let token = world.tokens["al"].clone();
    assert_eq!(world.from("127.0.0.1:5900", login("al", 7, &token, 5900))["type"], "LOGGED-IN");
    assert!(!world.is_validated("127.0.0.1:5900"));
    world.status("127.0.0.1:5900", "al");
    assert!(!world.is_validated("127.0.0.1:5900"), "the token was told elsewhere");
    assert!(world.ack("127.0.0.1:5900", before), "it is acknowledged");
    assert!(!world.is_validated("127.0.0.1:5900"), "but its number went to the old address first");
    world.search("bo", 2);
    let mid = world.newest_mid("al");
    assert!(!world.ack("127.0.0.1:5901", mid) && !world.ack("127.0.0.1:5900", mid ^ 1));
    assert!(!world.is_validated("127.0.0.1:5900"), "neither another number nor another address");
    assert!(world.ack("127.0.0.1:5900", mid));
    assert!(world.is_validated("127.0.0.1:5900"));
    // Back at its first address, which must be validated again.
    assert_eq!(world.from(AL, login("al", 8, &token, 5000))["type"], "LOGGED-IN");
    world.status(AL, "al");
    assert!(!world.is_validated(AL) && !world.is_validated("127.0.0.1:5900"));
}

#[test]
fn an_ack_that_comes_after_its_answer_proves_the_address_and_ends_no_repetition() {
    let ways: [fn(&mut World, u64); 4] = [
        // UDP has reordered the two; the window is still open for others.
        |world, number| assert_eq!(world.act("al", "OFFER", number, Some(80))["type"], "OFFERED"),
        // The offer closed the window, and RESERVE has replaced SEARCH.
        |world, number| {
            world.say("cy", json!({"type": "DE-REGISTER", "rq": 2}));
            world.act("al", "OFFER", number, Some(80));
            assert_eq!(world.newest("al")["type"], "RESERVE");
        },
        // Nobody has answered in time.
        |world, _| {
            world.pass(5_000);
            world.tick_all();
        },
        // Acknowledged with the token from another address, which does not validate the peer's own.
        |world, _| {
            let (mid, token) = (world.newest_mid("al"), Token::from_text(&world.tokens["al"]));
            let ack = Ack { mid, token: Some(token) };
            assert!(world.exchange.acknowledge(world.now, address("10.0.0.1:9"), &ack));
        },
    ];
    for (way, happens) in ways.into_iter().enumerate() {
        let mut world = World::with(&["al", "bo", "cy"]);
        world.search("bo", 1);
        let search = world.newest("al");
        let mid = search["mid"].as_u64().unwrap();
        happens(&mut world, search["rq"].as_u64().unwrap());
        let told = world.told("al");
        assert!(!world.is_validated(AL), "{way}");
        for _ in 0..2 {
            assert!(!world.ack("127.0.0.1:5001", mid) && !world.ack(AL, mid ^ 1), "{way}");
        }
        assert!(!world.is_validated(AL), "{way}: neither from another address nor of another number");
        assert!(!world.ack(AL, mid), "{way}: it is not repeated any more as it is");
        assert!(world.is_validated(AL), "{way}");
        assert_eq!(world.told("al"), told, "{way}: what is repeated stays to be acknowledged");
        world.reload();
        assert!(world.is_validated(AL), "{way}: it is stored");
        assert!(world.exchange.peer_named("al").unwrap().acknowledges.load(Ordering::Relaxed), "{way}");
    }
}

#[test]
fn an_ack_of_what_was_told_only_once_proves_the_address() {
    let mut world = World::with(&["al", "bo"]);
    for rq in 1..=3 {
        world.search("bo", rq);
        world.pass(5_000);
        world.tick_all();
    }
    world.search("bo", 4);
    let [OutgoingNotification { notification, .. }] = &world.last.notify_once[..] else {
        panic!("{:?}", world.last.notify_once)
    };
    let mid = notification.mid();
    assert!(!world.is_validated(AL) && !world.ack(AL, mid));
    assert!(world.is_validated(AL));
}

#[test]
fn of_who_has_left_no_row_is_written_any_more() {
    let mut world = World::with(&["al", "bo"]);
    world.search("bo", 1);
    let mid = world.newest_mid("al");
    // Requests that have found the peer but not yet taken its lock.
    let peer = world.exchange.peer_named("al").unwrap();
    let late = |world: &World| {
        let mut state = peer.state.lock();
        world.exchange.token_presented(&peer, &mut state, address(AL));
        world.exchange.acknowledgement_received(&peer, &mut state, address(AL), mid);
    };
    let stored = |world: &World| {
        let rows = world.exchange.journal().snapshot().peers.into_iter().map(|(row, _)| row);
        rows.filter(|row| row.name.as_str() == "al").map(|row| row.addr.port()).collect::<Vec<_>>()
    };
    assert_eq!(world.say("al", json!({"type": "DE-REGISTER", "rq": 2}))["type"], "DE-REGISTERED");
    late(&world);
    assert_eq!(stored(&world), Vec::<u16>::new(), "the name is free");
    world.exchange.cancel_departure(&peer.name, peer.registration_id);
    world.join("al", "127.0.0.1:6000");
    late(&world);
    assert_eq!(stored(&world), [6000], "and its new holder's row is its own");
}

#[test]
fn who_could_not_wait_to_leave_is_removed_in_order_all_the_same() {
    let mut world = World::with(&["al", "bo"]);
    let peer = world.exchange.peer_named("al").unwrap();
    world.exchange.begin_departure(world.now, &peer);
    // Another DE-REGISTER of the peer gives up just before this one continues.
    world.exchange.cancel_departure(&peer.name, peer.registration_id);
    world.exchange.remove_peer(world.now, &peer, None);
    world.exchange.token_presented(&peer, &mut peer.state.lock(), address(AL));
    world.reload();
    assert!(world.exchange.peer_named("al").is_none());
}

#[test]
fn to_all_ports_of_an_ip_that_may_not_hear_goes_three_times_what_came_from_it() {
    let mut world = World::with(&["al", "bo"]);
    let (al, bo, elsewhere) = (address(AL), address("127.0.0.1:5001"), address("127.0.0.2:5000"));
    assert!(!world.exchange.datagram_received(al, 100) && !world.exchange.datagram_received(bo, 10));
    assert!(world.exchange.may_send(bo, 300) && !world.exchange.may_send(al, 31), "one allowance for both");
    assert!(!world.exchange.may_send(elsewhere, 1));
    world.status(AL, "al");
    assert!(world.exchange.may_send(al, 10_000), "what goes to a proved one is not counted");
    assert!(world.exchange.may_send(bo, 30) && !world.exchange.may_send(bo, 1));
    assert!(world.exchange.datagram_received(al, 100), "nor is what comes from there");
    assert!(!world.exchange.may_send(bo, 1));
    world.reload();
    assert!(!world.exchange.may_send(bo, 1), "nothing is owed after a restart");
}

#[test]
fn an_answer_to_who_may_not_hear_is_as_long_as_what_came_allows_and_counts_as_sent() {
    let world = World::with(&["al"]);
    let al = address(AL);
    let error = || Response::Error { rq: Some(7), code: ErrorCode::BadRequest, reason: "x".repeat(500) };
    assert!(world.exchange.fit_response(&mut error(), al, false, 1000).is_none(), "nothing came");
    world.exchange.datagram_received(al, 100);
    let cut = world.exchange.fit_response(&mut error(), al, false, 1000).unwrap();
    assert!((290..=300).contains(&cut.len()), "{}", cut.len());
    let left = 300 - cut.len();
    assert!(!world.exchange.may_send(al, left + 1) && world.exchange.may_send(al, left));
    // The limit of the datagram applies as well; sending to a validated address does not count.
    world.exchange.datagram_received(al, 1000);
    assert!(world.exchange.fit_response(&mut error(), al, true, 200).unwrap().len() <= 200);
    assert!(world.exchange.fit_response(&mut error(), al, true, 1000).unwrap().len() > 500);
    assert!(world.exchange.may_send(al, 3000) && !world.exchange.may_send(al, 1));
    // What cannot be shortened is not sent.
    world.exchange.datagram_received(al, 10);
    let told = || Response::Registered { rq: 7, token: Token::random(), cert_sha256: None };
    assert!(world.exchange.fit_response(&mut told(), al, false, 1000).is_none());
    assert!(world.exchange.may_send(al, 30), "and does not count");
}

#[test]
fn what_came_counts_on_where_memory_is_built_anew() {
    let world = World::with(&["al"]);
    let al = address(AL);
    world.exchange.datagram_received(al, 100);
    assert!(world.exchange.may_send(al, 200));
    let journal = world.exchange.journal().clone();
    let snapshot = journal.snapshot();
    let (mut rebuilt, _) = Exchange::load(journal, rules(), snapshot, 0, world.now);
    assert!(!rebuilt.may_send(al, 1), "after a start nothing is known of what came");
    rebuilt.inherit_limits(&world.exchange);
    assert!(!rebuilt.may_send(al, 101));
    // A datagram may be read before and answered after the validation; each response counts once.
    world.exchange.datagram_received(al, 10);
    assert!(rebuilt.may_send(al, 130) && !world.exchange.may_send(al, 1));
}

#[test]
fn an_address_whose_name_is_there_is_refused_to_any_other() {
    let mut world = World::with(&["al", "bo"]);
    let token = world.tokens["bo"].clone();
    for reloaded in [false, true] {
        if reloaded {
            world.reload();
        }
        let denied = world.from(AL, register("eve", "127.0.0.1", 5000));
        assert_eq!(denied["type"], "REGISTER-DENIED");
        assert!(denied["reason"].as_str().unwrap().starts_with("udp_port: "), "{denied}");
        assert_eq!(world.from("127.0.0.1:5001", login("bo", 5, &token, 5000))["type"], "LOGIN-DENIED");
        let mut moves = register("bo", "127.0.0.1", 5000);
        moves["token"] = token.as_str().into();
        assert_eq!(world.from("127.0.0.1:5001", moves)["type"], "REGISTER-DENIED");
        assert_eq!(world.status("127.0.0.1:5001", "bo")["type"], "DEALS", "it is where it was");
    }
    world.pass(119_999);
    assert_eq!(world.from(AL, register("eve", "127.0.0.1", 5000))["type"], "REGISTER-DENIED");
    // A peer with an open deal keeps its address however silent it is: a buyer, or a seller that has offered.
    world.pass(1);
    world.search("al", 1);
    let number = world.newest("bo")["rq"].as_u64().unwrap();
    world.act("bo", "OFFER", number, Some(80));
    world.pass(119_999);
    world.reload();
    world.pass(1_000_000);
    for port in [5000, 5001] {
        let source = format!("127.0.0.1:{port}");
        assert_eq!(world.from(&source, register("eve", "127.0.0.1", port))["type"], "REGISTER-DENIED", "{port}");
    }
}

#[test]
fn who_lost_its_address_is_not_whoever_is_there_now() {
    let mut world = World::with(&["al", "bo"]);
    world.status(AL, "al");
    world.pass(120_000);
    assert_eq!(world.from(AL, register("eve", "127.0.0.1", 5000))["type"], "REGISTERED");
    for reloaded in [false, true] {
        if reloaded {
            world.reload();
        }
        assert!(!world.is_validated(AL), "the newcomer has shown nothing yet");
        assert_eq!(code(&world.say("al", json!({"type": "STATUS", "rq": 1}))), "FORBIDDEN");
        assert_eq!(world.from(AL, register("al", "127.0.0.1", 5000))["type"], "REGISTER-DENIED", "nor its token told");
        assert_eq!(world.search("bo", 10 + u64::from(reloaded))["peers"], 1, "it is asked nothing there");
        assert_eq!(world.status("127.0.0.9:1", "al")["type"], "DEALS", "its token is good");
    }
    let token = world.tokens["al"].clone();
    assert_eq!(world.from("127.0.0.1:5002", login("al", 3, &token, 5002))["type"], "LOGGED-IN");
    assert_eq!(world.search("bo", 20)["peers"], 2);
}

#[test]
fn names_lapse() {
    let mut world = World::with(&["silent", "heard", "buyer"]);
    world.status("127.0.0.1:5001", "heard");
    world.pass(599_999);
    world.exchange.sweep(world.now);
    assert_eq!(world.exchange.sizes().0, 3);
    world.deals("buyer");
    world.pass(1);
    world.exchange.sweep(world.now);
    assert!(world.exchange.peer_named("silent").is_none(), "it never showed that it hears");
    assert!(world.exchange.peer_named("heard").is_some() && world.exchange.peer_named("buyer").is_some());
    assert!(!world.exchange.journal().snapshot().peers.iter().any(|(row, _)| row.name.as_str() == "silent"));
    // Silent for a day: not asked until it is active again.
    world.pass(86_400_000 - 600_000);
    world.deals("buyer");
    assert_eq!(world.search("buyer", 1)["peers"], 0);
    world.status("127.0.0.1:5001", "heard");
    assert_eq!(world.search("buyer", 2)["peers"], 1);
    // Silent for a month: its name is free.
    world.pass(30 * 86_400_000 - 1);
    world.exchange.sweep(world.now);
    assert!(world.exchange.peer_named("heard").is_some() && world.exchange.peer_named("buyer").is_none());
    world.pass(1);
    world.exchange.sweep(world.now);
    assert_eq!(world.exchange.sizes().0, 0);
}

#[test]
fn a_name_that_lapses_tells_those_it_dealt_with() {
    let mut world = World::with(&["al", "bo"]);
    world.status("127.0.0.1:5001", "bo");
    world.search("al", 1);
    let number = world.newest("bo")["rq"].as_u64().unwrap();
    world.act("bo", "OFFER", number, Some(80));
    assert_eq!(world.newest("bo")["type"], "RESERVE");
    world.pass(600_000);
    let effects = world.exchange.sweep(world.now);
    assert_eq!(effects.notifications.len(), 1);
    assert_eq!(world.newest("bo")["type"], "CANCEL");
}

#[test]
fn of_a_row_of_an_earlier_version_nothing_is_asked_that_it_could_not_know() {
    let mut world = World::with(&["al"]);
    let mut snapshot = world.exchange.journal().snapshot();
    let mut body = serde_json::to_value(&snapshot.peers[0].0).unwrap();
    for field in ["addr_since", "displaced", "hearing", "asked"] {
        body.as_object_mut().unwrap().remove(field);
    }
    snapshot.peers[0].0 = serde_json::from_value(body).unwrap();
    let (exchange, _) = Exchange::load(Memory::default(), rules(), snapshot, 0, world.now);
    world.exchange = exchange;
    assert!(!world.is_validated(AL));
    world.pass(3_600_000);
    world.exchange.sweep(world.now);
    assert!(world.exchange.peer_named("al").is_some(), "it does not lapse for it");
    world.status(AL, "al");
    assert!(world.is_validated(AL));
}

#[test]
fn an_address_holds_a_thousand_names_and_what_is_given_back_is_free_at_once() {
    let mut world = World::new();
    let reg = |world: &mut World, ip: &str, n: u16| {
        world.from(&format!("{ip}:{}", 2000 + n), register(&format!("{ip} {n}"), ip, 2000 + n))
    };
    for n in 0..1_000 {
        assert_eq!(reg(&mut world, "10.0.0.1", n)["type"], "REGISTERED", "{n}");
    }
    let full = reg(&mut world, "10.0.0.1", 1_000);
    assert_eq!(code(&full), "BUSY");
    assert!(full["reason"].as_str().unwrap().starts_with("10.0.0.1 holds 1000 already"), "{full}");
    let PeerMessage::Request(one_more) = parse_message(register("one more", "10.0.0.1", 9_000).to_string().as_bytes())
    else {
        panic!("REGISTER is a request")
    };
    let origin = RequestOrigin { source: "10.0.0.1:9000".parse().unwrap(), local_ip: None, transport: Transport::Udp };
    let refused = world.exchange.handle_request(world.now, &origin, &one_more);
    let stored = world.exchange.journal().0.lock().len();
    let is_last =
        matches!(world.exchange.journal().0.lock().last(), Some(ExchangeChange::Log(row)) if row.kind == "register");
    assert!(is_last, "the last change is that of the name that filled the address");
    assert_eq!(refused.commit, stored, "what is refused for names is not told before they are on disk");
    for ip in ["10.0.0.2", "127.0.0.1"] {
        assert_eq!(reg(&mut world, ip, 1)["type"], "REGISTERED", "others have room");
    }
    world.reload();
    assert_eq!(code(&reg(&mut world, "10.0.0.1", 1_000)), "BUSY", "also after a restart");
    let leave = json!({"type": "DE-REGISTER", "rq": 5, "name": "10.0.0.1 7"});
    assert_eq!(world.from("10.0.0.1:2007", leave)["type"], "DE-REGISTERED");
    assert_eq!(reg(&mut world, "10.0.0.1", 1_000)["type"], "REGISTERED");
}
