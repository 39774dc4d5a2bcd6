//! `--bind` with one address: source addresses, USER_IDs and which claims are accepted.

use std::net::Ipv4Addr;

use crate::netns::Lan;
use crate::peers::{Peer, RawPeer, TestEnv, broadcast_listener, datagram, in_pipe};

/// With one broadcast only, peers must know each other by the first one.
const ONCE: [&str; 2] = ["--announce-every", "1h"];

fn spawn(env: &TestEnv, lan: &Lan, host: usize, name: &str, bind: Ipv4Addr) -> Peer {
    Peer::start(env.on_host(lan, host, name).args(["--verbose", "--bind", &bind.to_string()]).args(ONCE))
}

#[test]
fn who_is_bound_to_one_address_is_heard_on_its_network_and_on_its_host() {
    let Some(mut lan) = Lan::new(2) else { return };
    lan.second_network(&[0, 1]);
    let env = TestEnv::in_network();
    let mut listeners = [0, 1].map(|host| lan.within(host, || broadcast_listener(&env)));
    let mut before = spawn(&env, &lan, 0, "before", Ipv4Addr::LOCALHOST);
    let mut there = spawn(&env, &lan, 1, "there", Ipv4Addr::UNSPECIFIED);
    let mut alice = spawn(&env, &lan, 0, "alice", lan.ip(0));
    // Earlier peers receive its broadcast, later ones are answered.
    let mut after = spawn(&env, &lan, 0, "after", Ipv4Addr::LOCALHOST);
    alice.wait_for_peers(&["after", "before", "there"]);
    for peer in [&mut before, &mut after, &mut there] {
        peer.take("alice to come", |it| it["event"] == "came" && it["peer"]["name"] == "alice");
        let of_alice: Vec<_> = peer.listed_peers().into_iter().filter(|(id, _)| id.starts_with("alice@")).collect();
        assert_eq!(of_alice, [(format!("alice@{}", lan.ip(0)), alice.addr.port())], "{}", peer.name);
        assert_eq!(peer.drop_count("wrong-source"), 0, "{}", peer.name);
    }
    // On loopback, too, USER_ID names the source address; broadcasts on loopback stay on the host.
    let said = std::iter::repeat_with(|| listeners[0].next("PEER_DISCOVERY"));
    let mut said = said.filter(|said| said.get("USER_ID").starts_with("alice@"));
    let said = said.next().unwrap();
    assert_eq!((said.get("USER_ID"), said.from.ip()), (&*format!("alice@{}", lan.ip(0)), &lan.ip(0)));
    assert!(listeners[1].next_until("POST", std::time::Instant::now()).is_none());
    alice.run_command("dm before one");
    before.take_message("dm", "one");
    alice.take_event("confirmed");
    after.send_line("dm alice two");
    alice.take_message("dm", "two");
    after.take_event("confirmed");
    assert_eq!(
        alice.drop_count("wrong-source") + before.drop_count("wrong-source") + after.drop_count("wrong-source"),
        0
    );
}

#[test]
fn the_addresses_of_ones_own_host_count_as_equal_wherever_one_is_bound() {
    let Some(mut lan) = Lan::new(1) else { return };
    lan.second_network(&[0]);
    let env = TestEnv::in_network();
    for (name, bind) in [("alice", Ipv4Addr::LOCALHOST), ("bob", lan.ip(0)), ("carol", Ipv4Addr::UNSPECIFIED)] {
        let peer = spawn(&env, &lan, 0, name, bind);
        let zoe = lan.within(0, || RawPeer::new(&env, "zoe"));
        let to = std::net::SocketAddr::from((
            if bind.is_unspecified() { Ipv4Addr::LOCALHOST } else { bind },
            peer.addr.port(),
        ));
        for (nth, ip) in [Ipv4Addr::LOCALHOST, lan.ip(0), lan.second_ip(0)].iter().enumerate() {
            let (from, content) = (format!("zoe@{ip}"), format!("hello {nth}"));
            zoe.socket.send_to(&datagram(&[("TYPE", "POST"), ("USER_ID", &from), ("CONTENT", &content)]), to).unwrap();
            peer.take_message("post", &content);
            let dm =
                [("TYPE", "DM"), ("FROM", "zoe@127.0.0.1"), ("TO", &*format!("{name}@{ip}")), ("CONTENT", &content)];
            zoe.socket.send_to(&datagram(&dm), to).unwrap();
            peer.take_message("dm", &content);
        }
    }
}

#[test]
fn two_of_one_host_may_have_the_same_port_at_two_addresses() {
    let Some(lan) = Lan::new(1) else { return };
    let env = TestEnv::in_network();
    let start = |name: &str, bind: Ipv4Addr| {
        let mut command = env.on_host(&lan, 0, name);
        Peer::start(command.args(["--port", "8123", "--bind", &bind.to_string()]).args(ONCE))
    };
    let mut alice = start("alice", lan.ip(0));
    let mut bob = start("bob", Ipv4Addr::LOCALHOST);
    alice.wait_for_peers(&["bob"]);
    bob.wait_for_peers(&["alice"]);
}

#[test]
fn an_own_address_of_the_network_may_be_named_from_loopback() {
    let Some(lan) = Lan::new(2) else { return };
    let env = TestEnv::in_network();
    // On another discovery port, so that broadcast does not reach it.
    let mut other = TestEnv::in_network();
    other.discovery_port = 50_998;
    let mut alice = Peer::start(&mut other.on_host(&lan, 0, "alice"));
    let peer = format!("{}:{}", lan.ip(0), alice.addr.port());
    let mut bob = env.on_host(&lan, 0, "bob");
    let mut bob = Peer::start(bob.args(["--bind", "127.0.0.1", "--peer", &peer]));
    alice.wait_for_peers(&["bob"]);
    bob.wait_for_peers(&["alice"]);
    let elsewhere = format!("{}:8000", lan.ip(1));
    let mut carol = env.on_host(&lan, 0, "carol");
    let (code, _, error) = in_pipe(carol.args(["--bind", "127.0.0.1", "--peer", &elsewhere]), "");
    assert!(code == 1 && error.contains("nothing leaves this machine"), "{error}");
}
