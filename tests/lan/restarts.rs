//! What is there again after an end of any kind.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use p2s2::lan::history::{Direction, Entry, History};
use p2s2::model::Name;

use crate::netns::Lan;
use crate::peers::{Bare, Peer, Place, datagram};
use crate::support::{eventually, scaled};

#[test]
fn a_message_that_was_acknowledged_outlives_a_kill() {
    let place = Place::new();
    let mut alice = place.start("alice", &[]);
    let first = alice.addr;
    let mut expected = Vec::new();
    for round in 0..scaled(30) {
        let mut zoe = Bare::met(&place, &format!("zoe{round}"), &alice);
        let (content, id) = (format!("message {round}"), format!("z{round}"));
        let dm = zoe.dm(&alice, &content, &id);
        zoe.sends(&alice, &dm);
        zoe.next_from(&alice, "ACK");
        alice.kill();
        expected.push(content.clone());
        alice = place.start("alice", &[]);
        assert_eq!(alice.addr, first, "its last port first");
        let texts: Vec<Value> = alice.history().iter().map(|it| it["text"].clone()).collect();
        assert_eq!(texts, expected);
        // Nor is it shown again: whoever missed the ACK only wants that.
        zoe.announces(&[("FEATURES", "ack")]);
        zoe.next_from(&alice, "PEER_DISCOVERY");
        zoe.sends(&alice, &dm);
        zoe.next_from(&alice, "ACK");
        zoe.posts(&alice, "behind it", &format!("p{round}"));
        alice.hears("post", "behind it");
        expected.push("behind it".to_owned());
        assert_eq!(alice.count(|it| it["event"] == "dm"), 0);
    }
}

/// However much was said since, and from whichever of its host's addresses it came.
#[test]
fn what_was_shown_is_not_shown_again_after_a_restart() {
    let Some(lan) = Lan::new(1) else { return };
    let place = Place::in_a_network();
    let start = || Peer::start(place.on_host(&lan, 0, "alice").arg("--verbose"));
    let mut alice = start();
    let zoe = lan.within(0, || Bare::new(&place, "zoe"));
    let says = |alice: &Peer, ip: Ipv4Addr| {
        let user_id = format!("zoe@{ip}");
        let post = [("TYPE", "POST"), ("USER_ID", &*user_id), ("CONTENT", &user_id), ("MESSAGE_ID", "r1")];
        zoe.socket.send_to(&datagram(&post), (Ipv4Addr::LOCALHOST, alice.addr.port())).unwrap();
        user_id
    };
    // All addresses of the host are one: what came from the first is known from the second.
    alice.hears("post", &says(&alice, Ipv4Addr::LOCALHOST));
    says(&alice, lan.ip(0));
    eventually("it to be dropped", || (alice.dropped("repeated") == 1).then_some(()));
    alice.kill();
    let history = History::open(&place.data_dir("alice"), &Name::new("alice").unwrap()).unwrap();
    let last = history.newest(1).unwrap().remove(0);
    for nth in 0..1_500 {
        let message_id = Some(format!("s{nth}"));
        drop(history.keep(Entry { direction: Direction::Sent, message_id, source: None, ..last.clone() }));
    }
    history.sync_all();
    drop(history);
    alice = start();
    for (nth, ip) in [Ipv4Addr::LOCALHOST, lan.ip(0)].into_iter().enumerate() {
        says(&alice, ip);
        eventually("it to be dropped", || (alice.dropped("repeated") == nth as u64 + 1).then_some(()));
    }
    assert_eq!(alice.count(|it| it["event"] == "post"), 0);
}

#[test]
fn what_was_said_is_there_after_a_restart() {
    let place = Place::new();
    let [mut alice, mut bob] = place.start_all(["alice", "bob"]);
    let mut silent = Bare::met(&place, "silent", &alice);
    alice.knows(&["bob", "silent"]);
    bob.knows(&["alice", "silent"]);
    alice.ask("profile Alice | busy");
    alice.ask("post one");
    alice.ask("dm bob two");
    alice.event("confirmed");
    bob.hears("dm", "two");
    bob.ask("post three");
    alice.hears("post", "three");
    bob.ask("dm alice four");
    alice.hears("dm", "four");
    // What was refused is kept nowhere.
    alice.refuses(&format!("profile {}", "n".repeat(65)));
    alice.ask("dm silent five");
    silent.next_from(&alice, "DM");
    let addr = alice.addr;
    let expected = |fate: &str| {
        [
            ("PROFILE", true, "alice", "Alice | busy", "not asked"),
            ("POST", true, "alice", "one", "not asked"),
            ("DM", true, "bob", "two", "confirmed"),
            ("POST", false, "bob", "three", "not asked"),
            ("DM", false, "bob", "four", "not asked"),
            ("DM", true, "silent", "five", fate),
        ]
        .map(|(kind, sent, who, text, fate)| json!([kind, sent, format!("{who}@127.0.0.1"), text, fate]))
    };
    let history = |alice: &mut Peer| -> Vec<Value> {
        let all = alice.history();
        all.iter().map(|it| json!([it["type"], it["sent"], it["user_id"], it["text"], it["confirmation"]])).collect()
    };
    assert_eq!(history(&mut alice), expected("waiting"));
    alice.kill();
    // Nobody repeats it any more.
    let mut alice = place.start("alice", &[]);
    assert_eq!((history(&mut alice), alice.addr), (expected("unconfirmed").to_vec(), addr));
    alice.says("quit");
    assert_eq!(alice.ends(), 0);
    let profile = || History::open(&place.data_dir("alice"), &Name::new("alice").unwrap()).unwrap().profile().unwrap();
    let profile = profile().unwrap();
    assert_eq!((&*profile.display_name, &*profile.status, profile.avatar), ("Alice", "busy", None));
    let mut alice = place.start("alice", &[]);
    assert_eq!((history(&mut alice), alice.addr), (expected("unconfirmed").to_vec(), addr));
    let newest = alice.ask("history 2");
    assert_eq!(newest["messages"][0]["text"], "four");
    assert_eq!(newest["messages"].as_array().unwrap().len(), 2);

    // Others find it where it was, and speak to it there.
    bob.knows(&["alice", "silent"]);
    bob.ask("dm alice six");
    alice.hears("dm", "six");
    assert_eq!(bob.count(|it| it["event"] == "move_refused"), 0);
}

#[test]
fn a_last_port_that_is_taken_is_left_alone() {
    let place = Place::new();
    let alice = place.start("alice", &[]);
    let (first, data_dir) = (alice.addr, place.data_dir("alice"));
    assert_eq!(alice.ends(), 0);
    let taken = std::net::UdpSocket::bind(first).unwrap();
    let alice = place.start("alice", &[]);
    assert_ne!(alice.addr, first);
    drop((taken, alice));
    // A data dir belongs to one of its kind.
    let mut bob = place.nameless();
    bob.args(["--name", "bob", "--data-dir"]).arg(&data_dir);
    let (code, out, error) = crate::peers::in_pipe(&mut bob, "");
    assert_eq!((code, &*out, error.lines().count()), (1, "", 1), "{error}");
    assert!(error.contains("alice") && error.contains("--data-dir"), "{error}");
}

#[test]
fn a_peer_that_came_again_is_known_as_one() {
    let place = Place::new();
    let mut alice = place.start("alice", &[]);
    for round in 0..3 {
        let mut bob = place.start("bob", &[]);
        let addr = bob.addr;
        eventually("bob to be listed", || (alice.lists() == [(bob.user_id(), addr.port())]).then_some(()));
        alice.knows(&["bob"]);
        bob.knows(&["alice"]);
        alice.ask(&format!("dm bob round {round}"));
        bob.hears("dm", &format!("round {round}"));
        alice.event("confirmed");
        bob.kill();
    }
}
