//! Discovery: peers find each other within a second, are forgotten, and are found again.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::netns::Lan;
use crate::peers::{Peer, RawPeer, TestEnv, broadcast_listener};
use crate::support::eventually;

/// The promised time.
const SOON: Duration = Duration::from_secs(1);
/// One of these tries must be in time: a machine that is busy with other tests may take longer.
const TRIES: usize = 5;

/// Waits until every peer has reported every other one. Returns when the last report came.
fn all_came(peers: &[Peer]) -> Instant {
    let mut last = peers.iter().map(|peer| peer.started_at).max().unwrap();
    for peer in peers {
        for other in peers.iter().filter(|other| other.name != peer.name) {
            let is_it = |it: &Value| it["event"] == "came" && it["peer"]["name"] == other.name;
            last = last.max(peer.take(&format!("{} to come", other.name), is_it).at);
        }
    }
    last
}

#[test]
fn three_that_start_at_once_know_each_other_within_a_second() {
    let mut slow = Vec::new();
    let (_place, mut peers) = std::iter::repeat_with(|| {
        assert!(slow.len() < TRIES, "it took {slow:?}");
        let env = TestEnv::new();
        let peers = env.start_all(["alice", "bob", "carol"]);
        let last_start = peers.iter().map(|peer| peer.started_at).max().unwrap();
        let took = all_came(&peers) - last_start;
        slow.push(took);
        (took < SOON).then_some((env, peers))
    })
    .find_map(|met| met)
    .unwrap();
    let all: Vec<_> = peers.iter().map(|peer| (peer.user_id(), peer.addr.port())).collect();
    for (nth, peer) in peers.iter_mut().enumerate() {
        let mut others = all.clone();
        others.remove(nth);
        assert_eq!(peer.listed_peers(), others);
        assert!((8000..=9999).contains(&peer.addr.port()), "{}", peer.addr);
    }
}

#[test]
fn ten_hosts_lose_each_other_and_find_each_other_again() {
    let Some(lan) = Lan::new(10) else { return };
    let env = TestEnv::in_network();
    let spawn = |host| {
        let mut command = env.on_host(&lan, host, &format!("peer{host}"));
        Peer::spawn(command.args(["--announce-every", "500ms", "--forget-after", "2s"]))
    };
    let peers: Vec<Peer> = (0..10).map(spawn).collect();
    let mut peers: Vec<Peer> = peers.into_iter().map(Peer::started).collect();
    all_came(&peers);
    for (host, peer) in peers.iter_mut().enumerate() {
        let of = |other: &usize| format!("peer{other}@{}", lan.ip(*other));
        let others: Vec<_> = (0..10).filter(|other| *other != host).collect();
        let listed: Vec<String> = peer.listed_peers().into_iter().map(|(user_id, _)| user_id).collect();
        assert_eq!(listed, others.iter().map(of).collect::<Vec<_>>());
    }
    lan.cut(&(0..10).collect::<Vec<_>>());
    for peer in &mut peers {
        for _ in 0..9 {
            assert_eq!(peer.take_event("left")["why"], "unheard");
        }
        assert_eq!(peer.listed_names(), Vec::<String>::new());
    }
    lan.heal();
    all_came(&peers);
    for peer in &mut peers {
        assert_eq!(peer.listed_names().len(), 9);
    }
}

#[test]
fn what_a_peer_announces_of_itself() {
    let env = TestEnv::new();
    let mut listener = broadcast_listener(&env);
    let mut alice = env.start("alice", &["--announce-every", "300ms"]);
    let first = listener.next("PEER_DISCOVERY");
    let again = listener.next("PEER_DISCOVERY");
    for said in [&first, &again] {
        assert_eq!(said.from, alice.addr, "from its own socket");
        assert_eq!(said.get("USER_ID"), "alice@127.0.0.1");
        assert_eq!(said.get("PORT"), alice.addr.port().to_string());
        assert_eq!(said.get("FEATURES"), "ack");
        let id = said.get("MESSAGE_ID");
        assert!(id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        assert!(said.get("TIMESTAMP").parse::<u64>().unwrap() > 1_700_000_000);
        assert!(said.maybe("SERVES").is_none() && said.maybe("CERT_SHA256").is_none());
    }
    assert_eq!(first.get("INSTANCE"), again.get("INSTANCE"), "one per run");
    assert_ne!(first.get("MESSAGE_ID"), again.get("MESSAGE_ID"));
    assert_eq!(alice.listed_names(), Vec::<String>::new(), "it does not list itself");
    assert_eq!(alice.end_input(), 0);
    let _alice = env.start("alice", &[]);
    let other = std::iter::repeat_with(|| listener.next("PEER_DISCOVERY"))
        .find(|said| said.get("INSTANCE") != first.get("INSTANCE"));
    assert_eq!(other.unwrap().get("USER_ID"), "alice@127.0.0.1");
}

#[test]
fn one_whom_broadcast_cannot_reach_is_named() {
    let (here, there) = (TestEnv::new(), TestEnv::new());
    let mut alice = here.start("alice", &[]);
    let mut bob = there.start("bob", &["--peer", &alice.addr.to_string()]);
    alice.wait_for_peers(&["bob"]);
    bob.wait_for_peers(&["alice"]);
}

#[test]
fn one_who_is_named_although_broadcast_reaches_him_is_known_at_once() {
    let env = TestEnv::new();
    let once = ["--announce-every", "1h"];
    let mut alice = env.start("alice", &once);
    for name in ["bob", "carol", "dave"] {
        let mut named = env.start(name, &[&once[..], &["--peer", &alice.addr.to_string()]].concat());
        let is_alice = |it: &Value| it["event"] == "came" && it["peer"]["name"] == "alice";
        named.take("alice to come", is_alice);
        alice.take("it to come", |it| it["event"] == "came" && it["peer"]["name"] == name);
        named.run_command("dm alice hello");
        named.take_event("confirmed");
        assert!(alice.listed_names().contains(&name.to_owned()));
    }
}

/// A client that implements only the wire format.
#[test]
fn whoever_speaks_before_he_is_answered_is_answered_all_the_same() {
    let env = TestEnv::new();
    let mut alice = env.start("alice", &["--announce-every", "1h"]);
    for (nth, kind) in ["POST", "DM", "PEER_LIST_REQUEST", "ACK"].into_iter().enumerate() {
        let mut raw = RawPeer::new(&env, &format!("hasty{nth}"));
        raw.announce(&[]);
        eventually("it to be known", || alice.listed_names().contains(&raw.name).then_some(()));
        match kind {
            "POST" => raw.post(&alice, "hello", "h1"),
            "DM" => raw.send(&alice, &raw.dm(&alice, "hello", "h2")),
            "ACK" => raw.ack(&alice, "h3"),
            _ => drop(raw.request_peers(&alice)),
        }
        let answer = raw.next_from(&alice, "PEER_DISCOVERY");
        assert_eq!(answer.get("USER_ID"), alice.user_id(), "{kind}");
    }
}

#[test]
fn servers_are_not_listed_as_people() {
    let env = TestEnv::new();
    let mut alice = env.start("alice", &[]);
    let cert = "ab".repeat(32);
    let shop = RawPeer::introduced_with(
        &env,
        "shop",
        &[("SERVES", "trade=7001,registry=9000"), ("CERT_SHA256", &cert)],
        &alice,
    );
    let mut bob = RawPeer::introduced(&env, "bob", &alice);
    let came = alice.take("the server", |it| it["event"] == "came" && it["peer"]["name"] == "shop").json;
    assert_eq!((&came["peer"]["serves"]["trade"], &came["peer"]["cert_sha256"]), (&7001.into(), &cert.into()));
    assert_eq!(alice.listed_names(), ["bob"]);
    assert!(alice.run_refused("dm shop hello").contains("server"));
    let told = bob.request_peers(&alice);
    assert_eq!((told.get("PEERS"), told.get("COUNT"), told.get("ADDRS")), ("[]", "0", "[]"), "{}", shop.name);
}
