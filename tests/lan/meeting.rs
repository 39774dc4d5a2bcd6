//! Who is there: found within a second, forgotten, found again.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::netns::Lan;
use crate::peers::{Bare, Peer, Place, ear};
use crate::support::eventually;

/// What is promised.
const SOON: Duration = Duration::from_secs(1);
/// Of so many times it must be so once: a machine that is busy with other tests may take longer.
const TRIES: usize = 5;

/// Takes every peer's news of every other; when the last came.
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
        let place = Place::new();
        let peers = place.start_all(["alice", "bob", "carol"]);
        let last_start = peers.iter().map(|peer| peer.started_at).max().unwrap();
        let took = all_came(&peers) - last_start;
        slow.push(took);
        (took < SOON).then_some((place, peers))
    })
    .find_map(|met| met)
    .unwrap();
    let all: Vec<_> = peers.iter().map(|peer| (peer.user_id(), peer.addr.port())).collect();
    for (nth, peer) in peers.iter_mut().enumerate() {
        let mut others = all.clone();
        others.remove(nth);
        assert_eq!(peer.lists(), others);
        assert!((8000..=9999).contains(&peer.addr.port()), "{}", peer.addr);
    }
}

#[test]
fn ten_hosts_lose_each_other_and_find_each_other_again() {
    let Some(lan) = Lan::new(10) else { return };
    let place = Place::in_a_network();
    let spawn = |host| {
        let mut command = place.on_host(&lan, host, &format!("peer{host}"));
        Peer::spawn(command.args(["--announce-every", "500ms", "--forget-after", "2s"]))
    };
    let peers: Vec<Peer> = (0..10).map(spawn).collect();
    let mut peers: Vec<Peer> = peers.into_iter().map(Peer::started).collect();
    all_came(&peers);
    for (host, peer) in peers.iter_mut().enumerate() {
        let of = |other: &usize| format!("peer{other}@{}", lan.ip(*other));
        let others: Vec<_> = (0..10).filter(|other| *other != host).collect();
        let listed: Vec<String> = peer.lists().into_iter().map(|(user_id, _)| user_id).collect();
        assert_eq!(listed, others.iter().map(of).collect::<Vec<_>>());
    }
    lan.cut(&(0..10).collect::<Vec<_>>());
    for peer in &mut peers {
        for _ in 0..9 {
            assert_eq!(peer.event("left")["why"], "unheard");
        }
        assert_eq!(peer.names(), Vec::<String>::new());
    }
    lan.heal();
    all_came(&peers);
    for peer in &mut peers {
        assert_eq!(peer.names().len(), 9);
    }
}

#[test]
fn what_a_peer_announces_of_itself() {
    let place = Place::new();
    let mut ear = ear(&place);
    let mut alice = place.start("alice", &["--announce-every", "300ms"]);
    let first = ear.next("PEER_DISCOVERY");
    let again = ear.next("PEER_DISCOVERY");
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
    assert_eq!(alice.names(), Vec::<String>::new(), "it does not list itself");
    assert_eq!(alice.ends(), 0);
    let _alice = place.start("alice", &[]);
    let other = std::iter::repeat_with(|| ear.next("PEER_DISCOVERY"))
        .find(|said| said.get("INSTANCE") != first.get("INSTANCE"));
    assert_eq!(other.unwrap().get("USER_ID"), "alice@127.0.0.1");
}

#[test]
fn one_whom_broadcast_cannot_reach_is_named() {
    let (here, there) = (Place::new(), Place::new());
    let mut alice = here.start("alice", &[]);
    let mut bob = there.start("bob", &["--peer", &alice.addr.to_string()]);
    alice.knows(&["bob"]);
    bob.knows(&["alice"]);
}

#[test]
fn one_who_is_named_although_broadcast_reaches_him_is_known_at_once() {
    let place = Place::new();
    let once = ["--announce-every", "1h"];
    let mut alice = place.start("alice", &once);
    for name in ["bob", "carol", "dave"] {
        let mut named = place.start(name, &[&once[..], &["--peer", &alice.addr.to_string()]].concat());
        let is_alice = |it: &Value| it["event"] == "came" && it["peer"]["name"] == "alice";
        named.take("alice to come", is_alice);
        alice.take("it to come", |it| it["event"] == "came" && it["peer"]["name"] == name);
        named.ask("dm alice hello");
        named.event("confirmed");
        assert!(alice.names().contains(&name.to_owned()));
    }
}

/// A client that knows the contract and no more.
#[test]
fn whoever_speaks_before_he_is_answered_is_answered_all_the_same() {
    let place = Place::new();
    let mut alice = place.start("alice", &["--announce-every", "1h"]);
    for (nth, kind) in ["POST", "DM", "PEER_LIST_REQUEST", "ACK"].into_iter().enumerate() {
        let mut bare = Bare::new(&place, &format!("hasty{nth}"));
        bare.announces(&[]);
        eventually("it to be known", || alice.names().contains(&bare.name).then_some(()));
        match kind {
            "POST" => bare.posts(&alice, "hello", "h1"),
            "DM" => bare.sends(&alice, &bare.dm(&alice, "hello", "h2")),
            "ACK" => bare.acks(&alice, "h3"),
            _ => drop(bare.asks_for_peers(&alice)),
        }
        let answer = bare.next_from(&alice, "PEER_DISCOVERY");
        assert_eq!(answer.get("USER_ID"), alice.user_id(), "{kind}");
    }
}

#[test]
fn servers_are_not_listed_as_people() {
    let place = Place::new();
    let mut alice = place.start("alice", &[]);
    let cert = "ab".repeat(32);
    let shop = Bare::met_as(&place, "shop", &[("SERVES", "trade=7001,registry=9000"), ("CERT_SHA256", &cert)], &alice);
    let mut bob = Bare::met(&place, "bob", &alice);
    let came = alice.take("the server", |it| it["event"] == "came" && it["peer"]["name"] == "shop").json;
    assert_eq!((&came["peer"]["serves"]["trade"], &came["peer"]["cert_sha256"]), (&7001.into(), &cert.into()));
    assert_eq!(alice.names(), ["bob"]);
    assert!(alice.refuses("dm shop hello").contains("server"));
    let told = bob.asks_for_peers(&alice);
    assert_eq!((told.get("PEERS"), told.get("COUNT"), told.get("ADDRS")), ("[]", "0", "[]"), "{}", shop.name);
}
