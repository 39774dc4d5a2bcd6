//! `--bind` one address: who speaks by which interface, as whom, and who is believed.

use std::net::Ipv4Addr;

use crate::netns::Lan;
use crate::peers::{Bare, Peer, Place, datagram, ear, in_pipe};

/// Nobody is known by a second announcement.
const ONCE: [&str; 2] = ["--announce-every", "1h"];

fn spawn(place: &Place, lan: &Lan, host: usize, name: &str, bind: Ipv4Addr) -> Peer {
    Peer::start(place.on_host(lan, host, name).args(["--verbose", "--bind", &bind.to_string()]).args(ONCE))
}

#[test]
fn who_is_bound_to_one_address_is_heard_on_its_network_and_on_its_host() {
    let Some(mut lan) = Lan::new(2) else { return };
    lan.second_network(&[0, 1]);
    let place = Place::in_a_network();
    let mut ears = [0, 1].map(|host| lan.within(host, || ear(&place)));
    let mut before = spawn(&place, &lan, 0, "before", Ipv4Addr::LOCALHOST);
    let mut there = spawn(&place, &lan, 1, "there", Ipv4Addr::UNSPECIFIED);
    let mut alice = spawn(&place, &lan, 0, "alice", lan.ip(0));
    // Whoever was there before hears it, whoever comes later is answered.
    let mut after = spawn(&place, &lan, 0, "after", Ipv4Addr::LOCALHOST);
    alice.knows(&["after", "before", "there"]);
    for peer in [&mut before, &mut after, &mut there] {
        peer.take("alice to come", |it| it["event"] == "came" && it["peer"]["name"] == "alice");
        let of_alice: Vec<_> = peer.lists().into_iter().filter(|(id, _)| id.starts_with("alice@")).collect();
        assert_eq!(of_alice, [(format!("alice@{}", lan.ip(0)), alice.addr.port())], "{}", peer.name);
        assert_eq!(peer.dropped("wrong-source"), 0, "{}", peer.name);
    }
    // On loopback too it says whence it speaks; what is broadcast there stays there.
    let said = std::iter::repeat_with(|| ears[0].next("PEER_DISCOVERY"));
    let mut said = said.filter(|said| said.get("USER_ID").starts_with("alice@"));
    let said = said.next().unwrap();
    assert_eq!((said.get("USER_ID"), said.from.ip()), (&*format!("alice@{}", lan.ip(0)), &lan.ip(0)));
    assert!(ears[1].next_until("POST", std::time::Instant::now()).is_none());
    alice.ask("dm before one");
    before.hears("dm", "one");
    alice.event("confirmed");
    after.says("dm alice two");
    alice.hears("dm", "two");
    after.event("confirmed");
    assert_eq!(alice.dropped("wrong-source") + before.dropped("wrong-source") + after.dropped("wrong-source"), 0);
}

#[test]
fn the_addresses_of_ones_own_host_count_as_equal_wherever_one_is_bound() {
    let Some(mut lan) = Lan::new(1) else { return };
    lan.second_network(&[0]);
    let place = Place::in_a_network();
    for (name, bind) in [("alice", Ipv4Addr::LOCALHOST), ("bob", lan.ip(0)), ("carol", Ipv4Addr::UNSPECIFIED)] {
        let peer = spawn(&place, &lan, 0, name, bind);
        let zoe = lan.within(0, || Bare::new(&place, "zoe"));
        let to = std::net::SocketAddr::from((
            if bind.is_unspecified() { Ipv4Addr::LOCALHOST } else { bind },
            peer.addr.port(),
        ));
        for (nth, ip) in [Ipv4Addr::LOCALHOST, lan.ip(0), lan.second_ip(0)].iter().enumerate() {
            let (from, content) = (format!("zoe@{ip}"), format!("hello {nth}"));
            zoe.socket.send_to(&datagram(&[("TYPE", "POST"), ("USER_ID", &from), ("CONTENT", &content)]), to).unwrap();
            peer.hears("post", &content);
            let dm =
                [("TYPE", "DM"), ("FROM", "zoe@127.0.0.1"), ("TO", &*format!("{name}@{ip}")), ("CONTENT", &content)];
            zoe.socket.send_to(&datagram(&dm), to).unwrap();
            peer.hears("dm", &content);
        }
    }
}

#[test]
fn two_of_one_host_may_have_the_same_port_at_two_addresses() {
    let Some(lan) = Lan::new(1) else { return };
    let place = Place::in_a_network();
    let start = |name: &str, bind: Ipv4Addr| {
        let mut command = place.on_host(&lan, 0, name);
        Peer::start(command.args(["--port", "8123", "--bind", &bind.to_string()]).args(ONCE))
    };
    let mut alice = start("alice", lan.ip(0));
    let mut bob = start("bob", Ipv4Addr::LOCALHOST);
    alice.knows(&["bob"]);
    bob.knows(&["alice"]);
}

#[test]
fn an_own_address_of_the_network_may_be_named_from_loopback() {
    let Some(lan) = Lan::new(2) else { return };
    let place = Place::in_a_network();
    // Where broadcast does not reach it.
    let mut other = Place::in_a_network();
    other.discovery_port = 50_998;
    let mut alice = Peer::start(&mut other.on_host(&lan, 0, "alice"));
    let peer = format!("{}:{}", lan.ip(0), alice.addr.port());
    let mut bob = place.on_host(&lan, 0, "bob");
    let mut bob = Peer::start(bob.args(["--bind", "127.0.0.1", "--peer", &peer]));
    alice.knows(&["bob"]);
    bob.knows(&["alice"]);
    let elsewhere = format!("{}:8000", lan.ip(1));
    let mut carol = place.on_host(&lan, 0, "carol");
    let (code, _, error) = in_pipe(carol.args(["--bind", "127.0.0.1", "--peer", &elsewhere]), "");
    assert!(code == 1 && error.contains("nothing leaves this machine"), "{error}");
}
