//! `p2s2 lan discover`.

use std::process::Command;

use serde_json::{Value, json};

use crate::netns::Lan;
use crate::peers::{Bare, Peer, Place, ear, in_pipe};
use crate::support::program;

fn discover(place: &Place, args: &[&str]) -> Command {
    let mut command = program("lan");
    command.args(["discover", "--bind", "127.0.0.1", "--discovery-port", &place.discovery_port.to_string()]).args(args);
    command
}

#[test]
fn who_is_there_is_listed_and_lists_nobody_who_asks() {
    let place = Place::new();
    let [mut alice, mut bob] = place.start_all(["alice", "bob"]);
    alice.knows(&["bob"]);
    bob.knows(&["alice"]);
    let mut ear = ear(&place);
    let (code, out, error) = in_pipe(&mut discover(&place, &["--wait", "1s"]), "");
    assert_eq!((code, &*error), (0, ""), "{out}");
    let asked = ear.next("PEER_DISCOVERY");
    let name = asked.get("USER_ID").strip_suffix("@127.0.0.1").unwrap().strip_prefix("discover-").unwrap();
    assert!(name.len() == 6 && name.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{asked:?}");
    assert_eq!(asked.get("FEATURES"), "probe");
    assert_eq!(asked.get("PORT"), asked.from.port().to_string());
    let lines: Vec<&str> = out.lines().collect();
    let people: Vec<&str> = lines.iter().copied().filter(|line| line.contains('@')).collect();
    let expected = [&alice, &bob].map(|peer| format!("{} {}", peer.user_id(), peer.addr));
    assert_eq!(people, expected, "{out}");
    assert!(lines.iter().any(|line| line.starts_with("interface ") && line.contains("127.0.0.1")), "{out}");
    assert!(lines.contains(&"loopback works"), "{out}");
    assert!(lines.iter().any(|line| line.starts_with("broadcast ")), "{out}");

    let (code, out, _) = in_pipe(&mut discover(&place, &["--wait", "1s", "--json"]), "");
    assert_eq!((code, out.lines().count()), (0, 1));
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&found["loopback"], found["peers"].as_array().unwrap().len()), (&json!(true), 2));
    assert_eq!(found["peers"][0]["user_id"], "alice@127.0.0.1");
    assert_eq!(found["peers"][0]["addr"], alice.addr.to_string());
    assert!(found["interfaces"].as_array().unwrap().iter().any(|it| it["ip"] == "127.0.0.1"));

    for peer in [&mut alice, &mut bob] {
        assert_eq!(peer.names().len(), 1);
        let strangers = peer.count(|it| it["event"] == "came" && it["peer"]["name"].to_string().contains("discover"));
        assert_eq!(strangers, 0);
    }
}

#[test]
fn a_bare_probe_is_answered_and_not_listed() {
    let place = Place::new();
    let mut alice = place.start("alice", &[]);
    let mut probe = Bare::met_as(&place, "discover-00ff00", &[("FEATURES", "probe")], &alice);
    for _ in 0..2 {
        probe.sends(&alice, &probe.discovery(&[("FEATURES", "probe")]));
        assert_eq!(probe.next_from(&alice, "PEER_DISCOVERY").get("USER_ID"), "alice@127.0.0.1");
    }
    assert_eq!(alice.names(), Vec::<String>::new());
}

#[test]
fn nobody_there_is_no_error_and_no_network_is_one() {
    let place = Place::new();
    let (code, out, error) = in_pipe(&mut discover(&place, &["--wait", "200ms"]), "");
    assert_eq!((code, &*error), (0, ""));
    assert!(out.contains("nobody answered") && !out.contains('@'), "{out}");
    let (code, _, error) = in_pipe(&mut discover(&place, &["--wait", "soon"]), "");
    assert!(code == 2 && error.contains("--wait"), "{error}");
    let _taken = std::net::UdpSocket::bind(("127.255.255.255", place.discovery_port)).unwrap();
    let (code, out, error) = in_pipe(&mut discover(&place, &["--wait", "200ms"]), "");
    assert_eq!((code, &*out, error.lines().count()), (1, "", 1), "{error}");
    assert!(error.starts_with("error: ") && error.contains("--discovery-port"), "{error}");
}

#[test]
fn on_a_network_it_tells_whether_broadcast_works() {
    let Some(lan) = Lan::new(2) else { return };
    let place = Place::in_a_network();
    let alice = Peer::start(&mut place.on_host(&lan, 0, "alice"));
    let ask = |args: &[&str]| {
        let mut command = program("lan");
        command.args(["discover", "--wait", "1s", "--discovery-port", &place.discovery_port.to_string()]).args(args);
        in_pipe(&mut lan.run_in(1, command), "")
    };
    let (code, out, error) = ask(&[]);
    assert_eq!((code, &*error), (0, ""));
    for line in [format!("alice@{} {}:{}", lan.ip(0), lan.ip(0), alice.addr.port()), "broadcast works".to_owned()] {
        assert!(out.lines().any(|it| it == line), "{line}: {out}");
    }
    assert!(out.lines().any(|line| line == "loopback works"), "{out}");
    assert!(out.contains(&format!(" {} netmask 255.255.255.0 broadcast 10.77.0.255", lan.ip(1))), "{out}");
}
