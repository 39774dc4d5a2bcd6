//! Several peers with one name: identity claims and renaming.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use crate::peers::{Peer, RawPeer, TestEnv, in_pipe};
use crate::support::eventually;

#[test]
fn a_new_port_is_refused_while_the_old_one_answers() {
    let env = TestEnv::new();
    let mut alice = env.start("alice", &["--verbose"]);
    let mut dora = RawPeer::introduced(&env, "dora", &alice);
    let thief = RawPeer::new(&env, "dora");
    thief.announce(&[("FEATURES", "ack")]);
    let question = dora.next_from(&alice, "PEER_DISCOVERY");
    assert_eq!(question.get("FEATURES"), "ack,probe");
    dora.send(&alice, &dora.discovery(&[("FEATURES", "ack")]));
    let refused = alice.take_event("move_refused");
    assert_eq!(refused["user_id"], "dora@127.0.0.1");
    assert_eq!((refused["old"].as_str(), refused["new"].as_str()), (Some(&*dora.addr()), Some(&*thief.addr())));
    assert_eq!(alice.listed_peers(), [("dora@127.0.0.1".to_owned(), dora.port())]);
    assert!(alice.take_drop("port-refused").contains("dora"));

    // If the old port is silent, the claim is accepted.
    let asked_at = Instant::now();
    thief.announce(&[("FEATURES", "ack")]);
    let moved = alice.take_event("moved");
    assert!(asked_at.elapsed() >= Duration::from_millis(950), "{:?}", asked_at.elapsed());
    assert_eq!((moved["old"].as_str(), moved["new"].as_str()), (Some(&*dora.addr()), Some(&*thief.addr())));
    assert_eq!(alice.listed_peers(), [("dora@127.0.0.1".to_owned(), thief.port())]);
    assert_eq!(dora.next_from(&alice, "PEER_DISCOVERY").get("FEATURES"), "ack,probe");
}

#[test]
fn a_namesake_from_the_same_place_gets_a_number() {
    let env = TestEnv::new();
    let start = || Peer::start(env.nameless().args(["--name", "al ice", "--json"]));
    let mut first = start();
    let mut second = start();
    assert_eq!((&*first.name, &*second.name), ("al ice", "al ice2"));
    first.wait_for_peers(&["al ice2"]);
    second.wait_for_peers(&["al ice"]);
    second.send_line("dm \"al ice\" are you me?");
    assert_eq!(first.take_message("dm", "are you me?")["user_id"], "al ice2@127.0.0.1");
}

#[test]
fn a_namesake_with_the_longest_name_is_shortened() {
    let env = TestEnv::new();
    let long = "x".repeat(64);
    let start = || Peer::start(env.nameless().args(["--name", &long, "--json"]));
    let (first, second) = (start(), start());
    assert_eq!((&*first.name, &*second.name), (&*long, &*format!("{}2", "x".repeat(63))));
}

#[test]
fn a_name_or_a_peer_that_cannot_be_is_refused_at_the_start() {
    let env = TestEnv::new();
    let (code, out, error) = in_pipe(&mut env.command("one\u{2028}two"), "");
    assert_eq!((code, &*out), (2, ""), "{error}");
    assert!(
        error.starts_with("error: ") && error.contains("'--name <NAME>': expected no control characters"),
        "{error}"
    );
    let shared = format!("127.0.0.1:{}", env.discovery_port);
    for (peer, why) in
        [(&*shared, "discovery port"), ("127.0.0.1:0", "1 to 65535"), ("127.255.255.255:8000", "one host")]
    {
        let mut command = env.command("alice");
        let (code, out, error) = in_pipe(command.args(["--peer", peer]), "");
        assert_eq!((code, &*out, error.lines().count()), (1, "", 1), "{peer}: {error}");
        assert!(error.starts_with(&format!("error: --peer {peer}: ")) && error.contains(why), "{peer}: {error}");
    }
}

#[test]
fn a_namesake_from_elsewhere_takes_a_number_when_they_meet() {
    let env = TestEnv::new();
    // With the default of half a minute between announcements: the second one must not be needed.
    let start = |dir: &str| {
        let mut command = env.nameless();
        command.args(["--name", "alice", "--json", "--data-dir"]);
        Peer::spawn(command.arg(env.data_dir(dir)))
    };
    let [mut here, mut there] = ["here", "there"].map(start).map(Peer::started);
    let (mut one, mut two) = (Vec::new(), Vec::new());
    eventually("one of them to be alice2", || {
        (one, two) = (here.listed_names(), there.listed_names());
        let mut names = [one.clone(), two.clone()].concat();
        names.sort();
        (names == ["alice", "alice2"]).then_some(())
    });
    let renamed = if one == ["alice2"] { &there } else { &here };
    assert_eq!(renamed.take_event("renamed")["new"], "alice2");
    let (renamed, other) = if one == ["alice2"] { (&mut there, &mut here) } else { (&mut here, &mut there) };
    assert_eq!(other.count(|it| it["event"] == "renamed"), 0);
    renamed.send_line("post hello");
    assert_eq!(other.take_message("post", "hello")["user_id"], "alice2@127.0.0.1");
    other.send_line("dm alice2 hello yourself");
    assert_eq!(renamed.take_message("dm", "hello yourself")["user_id"], "alice@127.0.0.1");
    other.take_event("confirmed");
}

#[test]
fn a_port_that_is_in_use_is_one_line() {
    let env = TestEnv::new();
    let taken = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, out, error) = in_pipe(env.command("alice").args(["--port", &port]), "");
    assert_eq!((code, &*out), (1, ""));
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.starts_with("error: ") && error.contains(&port) && error.contains("--port"), "{error}");
    drop(taken);
    let alice = env.start("alice", &["--port", &port]);
    assert_eq!(alice.addr.port().to_string(), port);

    // The discovery port, with a program that does not share it.
    let env = TestEnv::new();
    let _taken = UdpSocket::bind((Ipv4Addr::new(127, 255, 255, 255), env.discovery_port)).unwrap();
    let (code, out, error) = in_pipe(&mut env.command("bob"), "");
    assert_eq!((code, &*out), (1, ""));
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.contains(&env.discovery_port.to_string()) && error.contains("--discovery-port"), "{error}");
}
