//! State that survives a restart, also after a kill.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use p2s2::internals::lan::history::{Direction, History, HistoryEntry};
use p2s2::internals::model::Name;

use crate::netns::Lan;
use crate::peers::{Peer, RawPeer, TestEnv, datagram};
use crate::support::{eventually, scaled};

#[test]
fn a_message_that_was_acknowledged_outlives_a_kill() {
    let env = TestEnv::new();
    let mut alice = env.start("alice", &[]);
    let first = alice.addr;
    let mut expected = Vec::new();
    for round in 0..scaled(30) {
        let mut zoe = RawPeer::introduced(&env, &format!("zoe{round}"), &alice);
        let (content, id) = (format!("message {round}"), format!("z{round}"));
        let dm = zoe.dm(&alice, &content, &id);
        zoe.send(&alice, &dm);
        zoe.next_from(&alice, "ACK");
        alice.kill();
        expected.push(content.clone());
        alice = env.start("alice", &[]);
        assert_eq!(alice.addr, first, "its last port first");
        let texts: Vec<Value> = alice.history().iter().map(|it| it["text"].clone()).collect();
        assert_eq!(texts, expected);
        // It is not shown again either: a repeated DM only gets another ACK.
        zoe.announce(&[("FEATURES", "ack")]);
        zoe.next_from(&alice, "PEER_DISCOVERY");
        zoe.send(&alice, &dm);
        zoe.next_from(&alice, "ACK");
        zoe.post(&alice, "behind it", &format!("p{round}"));
        alice.take_message("post", "behind it");
        expected.push("behind it".to_owned());
        assert_eq!(alice.count(|it| it["event"] == "dm"), 0);
    }
}

/// Independent of the number of later messages, and of which address of the host it comes from.
#[test]
fn what_was_shown_is_not_shown_again_after_a_restart() {
    let Some(lan) = Lan::new(1) else { return };
    let env = TestEnv::in_network();
    let start = || Peer::start(env.on_host(&lan, 0, "alice").arg("--verbose"));
    let mut alice = start();
    let zoe = lan.within(0, || RawPeer::new(&env, "zoe"));
    let says = |alice: &Peer, ip: Ipv4Addr| {
        let user_id = format!("zoe@{ip}");
        let post = [("TYPE", "POST"), ("USER_ID", &*user_id), ("CONTENT", &user_id), ("MESSAGE_ID", "r1")];
        zoe.socket.send_to(&datagram(&post), (Ipv4Addr::LOCALHOST, alice.addr.port())).unwrap();
        user_id
    };
    // The addresses of the host are interchangeable for deduplication.
    alice.take_message("post", &says(&alice, Ipv4Addr::LOCALHOST));
    says(&alice, lan.ip(0));
    eventually("it to be dropped", || (alice.drop_count("repeated") == 1).then_some(()));
    alice.kill();
    let history = History::open(&env.data_dir("alice"), &Name::new("alice").unwrap()).unwrap();
    let last = history.newest(1).unwrap().remove(0);
    for nth in 0..1_500 {
        let message_id = Some(format!("s{nth}"));
        drop(
            history.append(HistoryEntry { direction: Direction::Sent, message_id, source: None, ..last.clone() }, None),
        );
    }
    history.sync_all();
    drop(history);
    alice = start();
    for (nth, ip) in [Ipv4Addr::LOCALHOST, lan.ip(0)].into_iter().enumerate() {
        says(&alice, ip);
        eventually("it to be dropped", || (alice.drop_count("repeated") == nth as u64 + 1).then_some(()));
    }
    assert_eq!(alice.count(|it| it["event"] == "post"), 0);
}

#[test]
fn what_was_said_is_there_after_a_restart() {
    let env = TestEnv::new();
    let [mut alice, mut bob] = env.start_all(["alice", "bob"]);
    let mut silent = RawPeer::introduced(&env, "silent", &alice);
    alice.wait_for_peers(&["bob", "silent"]);
    bob.wait_for_peers(&["alice", "silent"]);
    alice.run_command("profile Alice | busy");
    alice.run_command("post one");
    alice.run_command("dm bob two");
    alice.take_event("confirmed");
    bob.take_message("dm", "two");
    bob.run_command("post three");
    alice.take_message("post", "three");
    bob.run_command("dm alice four");
    alice.take_message("dm", "four");
    // Refused commands are not stored.
    alice.run_refused(&format!("profile {}", "n".repeat(65)));
    alice.run_command("dm silent five");
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
    // The DM is not repeated after a restart, so it is unconfirmed.
    let mut alice = env.start("alice", &[]);
    assert_eq!((history(&mut alice), alice.addr), (expected("unconfirmed").to_vec(), addr));
    alice.send_line("quit");
    assert_eq!(alice.end_input(), 0);
    let profile = || History::open(&env.data_dir("alice"), &Name::new("alice").unwrap()).unwrap().profile().unwrap();
    let profile = profile().unwrap();
    assert_eq!((&*profile.display_name, &*profile.status, profile.avatar), ("Alice", "busy", None));
    let mut alice = env.start("alice", &[]);
    assert_eq!((history(&mut alice), alice.addr), (expected("unconfirmed").to_vec(), addr));
    let newest = alice.run_command("history 2");
    assert_eq!(newest["messages"][0]["text"], "four");
    assert_eq!(newest["messages"].as_array().unwrap().len(), 2);

    // Other peers find it at the same port.
    bob.wait_for_peers(&["alice", "silent"]);
    bob.run_command("dm alice six");
    alice.take_message("dm", "six");
    assert_eq!(bob.count(|it| it["event"] == "move_refused"), 0);
}

#[test]
fn a_last_port_that_is_taken_is_left_alone() {
    let env = TestEnv::new();
    let alice = env.start("alice", &[]);
    let (first, data_dir) = (alice.addr, env.data_dir("alice"));
    assert_eq!(alice.end_input(), 0);
    let taken = std::net::UdpSocket::bind(first).unwrap();
    let alice = env.start("alice", &[]);
    assert_ne!(alice.addr, first);
    drop((taken, alice));
    // A data dir belongs to one peer.
    let mut bob = env.nameless();
    bob.args(["--name", "bob", "--data-dir"]).arg(&data_dir);
    let (code, out, error) = crate::peers::in_pipe(&mut bob, "");
    assert_eq!((code, &*out, error.lines().count()), (1, "", 1), "{error}");
    assert!(error.contains("alice") && error.contains("--data-dir"), "{error}");
}

#[test]
fn a_peer_that_came_again_is_known_as_one() {
    let env = TestEnv::new();
    let mut alice = env.start("alice", &[]);
    for round in 0..3 {
        let mut bob = env.start("bob", &[]);
        let addr = bob.addr;
        eventually("bob to be listed", || (alice.listed_peers() == [(bob.user_id(), addr.port())]).then_some(()));
        alice.wait_for_peers(&["bob"]);
        bob.wait_for_peers(&["alice"]);
        alice.run_command(&format!("dm bob round {round}"));
        bob.take_message("dm", &format!("round {round}"));
        alice.take_event("confirmed");
        bob.kill();
    }
}
