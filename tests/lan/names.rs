//! One name, several peers: who is believed, and who takes another.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use crate::peers::{Bare, Peer, Place, in_pipe};
use crate::support::eventually;

#[test]
fn a_new_port_is_refused_while_the_old_one_answers() {
    let place = Place::new();
    let mut alice = place.start("alice", &["--verbose"]);
    let mut dora = Bare::met(&place, "dora", &alice);
    let thief = Bare::new(&place, "dora");
    thief.announces(&[("FEATURES", "ack")]);
    let question = dora.next_from(&alice, "PEER_DISCOVERY");
    assert_eq!(question.get("FEATURES"), "ack,probe");
    dora.sends(&alice, &dora.discovery(&[("FEATURES", "ack")]));
    let refused = alice.event("move_refused");
    assert_eq!(refused["user_id"], "dora@127.0.0.1");
    assert_eq!((refused["old"].as_str(), refused["new"].as_str()), (Some(&*dora.addr()), Some(&*thief.addr())));
    assert_eq!(alice.lists(), [("dora@127.0.0.1".to_owned(), dora.port())]);
    assert!(alice.drops("port-refused").contains("dora"));

    // Silence is no answer.
    let asked_at = Instant::now();
    thief.announces(&[("FEATURES", "ack")]);
    let moved = alice.event("moved");
    assert!(asked_at.elapsed() >= Duration::from_millis(950), "{:?}", asked_at.elapsed());
    assert_eq!((moved["old"].as_str(), moved["new"].as_str()), (Some(&*dora.addr()), Some(&*thief.addr())));
    assert_eq!(alice.lists(), [("dora@127.0.0.1".to_owned(), thief.port())]);
    assert_eq!(dora.next_from(&alice, "PEER_DISCOVERY").get("FEATURES"), "ack,probe");
}

#[test]
fn a_namesake_from_the_same_place_gets_a_number() {
    let place = Place::new();
    let start = || Peer::start(place.nameless().args(["--name", "al ice", "--json"]));
    let mut first = start();
    let mut second = start();
    assert_eq!((&*first.name, &*second.name), ("al ice", "al ice2"));
    first.knows(&["al ice2"]);
    second.knows(&["al ice"]);
    second.says("dm \"al ice\" are you me?");
    assert_eq!(first.hears("dm", "are you me?")["user_id"], "al ice2@127.0.0.1");
}

#[test]
fn a_namesake_with_the_longest_name_is_shortened() {
    let place = Place::new();
    let long = "x".repeat(64);
    let start = || Peer::start(place.nameless().args(["--name", &long, "--json"]));
    let (first, second) = (start(), start());
    assert_eq!((&*first.name, &*second.name), (&*long, &*format!("{}2", "x".repeat(63))));
}

#[test]
fn a_name_or_a_peer_that_cannot_be_is_refused_at_the_start() {
    let place = Place::new();
    let (code, out, error) = in_pipe(&mut place.command("one\u{2028}two"), "");
    assert_eq!((code, &*out), (2, ""), "{error}");
    assert!(
        error.starts_with("error: ") && error.contains("'--name <NAME>': expected no control characters"),
        "{error}"
    );
    let shared = format!("127.0.0.1:{}", place.discovery_port);
    for (peer, why) in
        [(&*shared, "discovery port"), ("127.0.0.1:0", "1 to 65535"), ("127.255.255.255:8000", "one host")]
    {
        let mut command = place.command("alice");
        let (code, out, error) = in_pipe(command.args(["--peer", peer]), "");
        assert_eq!((code, &*out, error.lines().count()), (1, "", 1), "{peer}: {error}");
        assert!(error.starts_with(&format!("error: --peer {peer}: ")) && error.contains(why), "{peer}: {error}");
    }
}

#[test]
fn a_namesake_from_elsewhere_takes_a_number_when_they_meet() {
    let place = Place::new();
    // At the usual half a minute between announcements: nobody is to be known only by the next.
    let start = |dir: &str| {
        let mut command = place.nameless();
        command.args(["--name", "alice", "--json", "--data-dir"]);
        Peer::spawn(command.arg(place.data_dir(dir)))
    };
    let [mut here, mut there] = ["here", "there"].map(start).map(Peer::started);
    let (mut one, mut two) = (Vec::new(), Vec::new());
    eventually("one of them to be alice2", || {
        (one, two) = (here.names(), there.names());
        let mut names = [one.clone(), two.clone()].concat();
        names.sort();
        (names == ["alice", "alice2"]).then_some(())
    });
    let renamed = if one == ["alice2"] { &there } else { &here };
    assert_eq!(renamed.event("renamed")["new"], "alice2");
    let (renamed, other) = if one == ["alice2"] { (&mut there, &mut here) } else { (&mut here, &mut there) };
    assert_eq!(other.count(|it| it["event"] == "renamed"), 0);
    renamed.says("post hello");
    assert_eq!(other.hears("post", "hello")["user_id"], "alice2@127.0.0.1");
    other.says("dm alice2 hello yourself");
    assert_eq!(renamed.hears("dm", "hello yourself")["user_id"], "alice@127.0.0.1");
    other.event("confirmed");
}

#[test]
fn a_port_that_is_in_use_is_one_line() {
    let place = Place::new();
    let taken = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, out, error) = in_pipe(place.command("alice").args(["--port", &port]), "");
    assert_eq!((code, &*out), (1, ""));
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.starts_with("error: ") && error.contains(&port) && error.contains("--port"), "{error}");
    drop(taken);
    let alice = place.start("alice", &["--port", &port]);
    assert_eq!(alice.addr.port().to_string(), port);

    // The other port, with somebody who does not share it.
    let place = Place::new();
    let _taken = UdpSocket::bind((Ipv4Addr::new(127, 255, 255, 255), place.discovery_port)).unwrap();
    let (code, out, error) = in_pipe(&mut place.command("bob"), "");
    assert_eq!((code, &*out), (1, ""));
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.contains(&place.discovery_port.to_string()) && error.contains("--discovery-port"), "{error}");
}
