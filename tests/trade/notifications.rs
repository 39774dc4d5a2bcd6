//! Notifications: repeated until acknowledged, each with a number of its own.

use std::collections::HashSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Instant;

use serde_json::{Value, json};

use crate::support::*;

/// A peer that does not acknowledge.
fn mute(server: &Server, name: &str) -> Peer {
    let mut peer = Peer::new(server, name);
    peer.acknowledges = false;
    peer
}

/// Waits for this many copies of one notification; returns its number and the times of arrival.
fn copies(peer: &mut Peer, kind: &str, count: usize) -> (u64, Vec<Instant>) {
    let mut mid = None;
    let mut times = Vec::new();
    while times.len() < count {
        let push =
            peer.receive_until(Instant::now() + PATIENCE).unwrap_or_else(|| panic!("only {} {kind}", times.len()));
        if push["type"] == kind {
            assert_eq!(*mid.get_or_insert(push["mid"].clone()), push["mid"], "a repeat has the same mid");
            times.push(Instant::now());
        }
    }
    (mid.unwrap().as_u64().unwrap(), times)
}

fn count(datagrams: &[Value], mid: u64) -> usize {
    datagrams.iter().filter(|datagram| datagram["mid"] == mid).count()
}

#[test]
fn repeated_after_half_a_second_one_two_and_four_and_no_more() {
    let server = Server::start(&["--offer-window", "60s"]);
    let mut mute = mute(&server, "mute");
    let mut bob = Peer::new(&server, "bob");
    bob.look_for("lamp", 10.0);
    let (mid, times) = copies(&mut mute, "SEARCH", 5);
    for (gap, least) in times.windows(2).zip([0.5, 1.0, 2.0, 4.0]) {
        let waited = (gap[1] - gap[0]).as_secs_f64();
        // Lower bounds: a busy machine may be late but never early (by more than the delay of the first copy).
        assert!(waited > least * 0.8, "{waited} s instead of {least}");
    }
    let total = (times[4] - times[0]).as_secs_f64();
    assert!((7.0..12.0).contains(&total), "{total}");
    assert_eq!(count(&mute.datagrams_until_fence(), mid), 0);
}

#[test]
fn acknowledged_from_the_own_address_or_with_the_token() {
    let server = Server::start(&["--offer-window", "60s"]);
    let mut peers = ["direct", "stranger", "token", "wrong token", "other mid"].map(|name| mute(&server, name));
    let mut witness = mute(&server, "witness");
    let mut bob = Peer::new(&server, "bob");
    bob.look_for("lamp", 10.0);
    let elsewhere = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mids: Vec<u64> = peers.iter_mut().map(|peer| peer.push("SEARCH")["mid"].as_u64().unwrap()).collect();
    peers[0].send(&json!({"type": "ACK", "mid": mids[0]}));
    let from_elsewhere = |ack: Value| assert!(elsewhere.send_to(ack.to_string().as_bytes(), server.addr).is_ok());
    from_elsewhere(json!({"type": "ACK", "mid": mids[1]}));
    from_elsewhere(json!({"type": "ACK", "mid": mids[2], "token": peers[2].token}));
    from_elsewhere(json!({"type": "ACK", "mid": mids[3], "token": peers[2].token}));
    peers[4].send(&json!({"type": "ACK", "mid": mids[0]}));
    for peer in &mut peers {
        // What arrived before the acknowledgements were handled does not count.
        peer.datagrams_until_fence();
    }
    let (_, _) = copies(&mut witness, "SEARCH", 4);
    // When the witness has its third repeat, every peer that was not acknowledged has at least one more.
    let again: Vec<bool> =
        peers.iter_mut().zip(&mids).map(|(peer, mid)| count(&peer.datagrams_until_fence(), *mid) > 0).collect();
    assert_eq!(again, [false, true, false, true, true]);
    // An ACK is never answered.
    elsewhere.set_nonblocking(true).unwrap();
    assert!(elsewhere.recv(&mut [0; 100]).is_err());
}

#[test]
fn a_search_is_not_repeated_after_its_window() {
    let server = Server::start(&["--offer-window", "700ms"]);
    let mut mute = mute(&server, "mute");
    let mut bob = Peer::new(&server, "bob");
    bob.acknowledges = false;
    bob.look_for("lamp", 10.0);
    // The third repeat of the next notification comes when the search's third would be long due.
    copies(&mut bob, "NOT_AVAILABLE", 4);
    let searches = mute.datagrams_until_fence();
    assert!((1..=2).contains(&searches.len()), "{searches:?}");
}

#[test]
fn unacknowledged_pushes_survive_a_kill_and_numbers_are_never_used_twice() {
    let mut server = Server::start(&["--offer-window", "60s"]);
    let mut mute = mute(&server, "mute");
    let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    let (mut mids, mut numbers) = (HashSet::new(), HashSet::new());
    for round in 0..3 {
        let item = format!("item {round}");
        bob.look_for(&item, 10.0);
        let (told, acknowledged) = (mute.push_of("SEARCH", &item), alice.push_of("SEARCH", &item));
        for push in [&told, &acknowledged] {
            assert!(mids.insert(push["mid"].as_u64().unwrap()), "{push}: this mid was used before");
            assert!(numbers.insert(push["rq"].as_u64().unwrap()), "{push}: this number was used before");
        }
        // When the mute peer gets it again, the acknowledgement, sent before, has been handled; the fence's response
        // depends on it, so it is on disk.
        eventually("a repeat", || {
            mute.receive_until(Instant::now() + PATIENCE).filter(|push| push["mid"] == told["mid"])
        });
        alice.datagrams_until_fence();
        server = server.kill_and_restart();
        let again = eventually("the push to go out again", || {
            mute.receive_until(Instant::now() + PATIENCE).filter(|push| push["mid"] == told["mid"])
        });
        assert_eq!(again, told, "word for word");
        let mid = acknowledged["mid"].as_u64().unwrap();
        // Datagrams from before the kill are in the socket as well, but they were read before the fence above.
        assert_eq!(count(&alice.datagrams_until_fence(), mid), 0);
    }
    // Also the notifications of a deal that has ended recently.
    bob.acknowledges = false;
    let rq = bob.look_for("last", 10.0);
    assert_eq!(bob.ask_rq("CANCEL", rq, json!({"item_name": "last"}))["type"], "CANCELLED");
    let rq = bob.look_for("more", 10.0);
    let sold = alice.push_of("SEARCH", "more")["rq"].as_u64().unwrap();
    alice.ask_rq("OFFER", sold, json!({"item_name": "more", "price": 9}));
    let m = mute.push_of("SEARCH", "more")["rq"].as_u64().unwrap();
    mute.ask_rq("NOT_AVAILABLE", m, json!({"item_name": "more"}));
    bob.push_of("FOUND", "more");
    alice.push_of("RESERVE", "more");
    assert_eq!(alice.ask_rq("CANCEL", sold, json!({"item_name": "more"}))["type"], "CANCELLED");
    let told = bob.push_of("CANCEL", "more");
    assert_eq!(told["rq"], rq);
    let _server = server.kill_and_restart();
    let again = eventually("the CANCEL to go out again", || {
        bob.receive_until(Instant::now() + PATIENCE).filter(|push| push["mid"] == told["mid"])
    });
    assert_eq!(again, told);
}

#[test]
fn peers_that_never_acknowledge_still_trade() {
    let server = Server::start(&[]);
    let (mut alice, mut bob) = (mute(&server, "alice"), mute(&server, "bob"));
    let rq = bob.look_for("lamp", 10.0);
    alice.offer("lamp", 9.0);
    alice.push("RESERVE");
    settle(&mut bob, rq, &mut alice, GOOD_CARD);
    assert_eq!(bob.ended(rq)["state"], "completed");
}

#[test]
fn datagrams_lost_either_way_change_nothing() {
    let server = Server::start(&["--offer-window", "60s", "--negotiate-window", "60s"]);
    let mut peers = ["alice", "bob"].map(|name| Peer::unregistered(server.addr, name));
    for peer in &mut peers {
        peer.loses_first = true;
        assert_eq!(peer.register()["type"], "REGISTERED");
    }
    let [mut alice, mut bob] = peers;
    let rq = bob.look_for("lamp", 10.0);
    let sold = alice.offer("lamp", 12.0);
    alice.push("NEGOTIATE");
    assert_eq!(alice.ask_rq("ACCEPT", sold, json!({"item_name": "lamp", "max_price": 10}))["type"], "NOTED");
    assert_eq!(alice.push("RESERVE")["price"], 10);
    settle(&mut bob, rq, &mut alice, GOOD_CARD);
    assert_eq!(bob.ended(rq)["state"], "completed");
    assert_eq!(alice.ask("DE-REGISTER", json!({}))["type"], "DE-REGISTERED");
    assert_eq!(server.balance_cents("card:bob"), -1000);
    let log = server.admin_json(&["log"]);
    for kind in ["search", "offer", "accept", "buy", "purchase", "de-register"] {
        assert_eq!(log.iter().filter(|line| line["kind"] == kind).count(), 1, "{kind}: {log:?}");
    }
}
