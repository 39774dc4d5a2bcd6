//! The command `p2s2 lan discover`.

use std::process::Command;

use p2s2::internals::lan::node::NodeKind;
use p2s2::internals::lan::peer::{LanPeer, LanPeerConfig};
use p2s2::internals::model::Name;
use serde_json::{Value, json};

use crate::netns::Lan;
use crate::peers::{Peer, RawPeer, TestEnv, broadcast_listener, in_pipe};
use crate::support::program;

fn discover(env: &TestEnv, args: &[&str]) -> Command {
    let mut command = program("lan");
    command.args(["discover", "--bind", "127.0.0.1", "--discovery-port", &env.discovery_port.to_string()]).args(args);
    command
}

#[test]
fn who_is_there_is_listed_and_lists_nobody_who_asks() {
    let env = TestEnv::new();
    let [mut alice, mut bob] = env.start_all(["alice", "bob"]);
    alice.wait_for_peers(&["bob"]);
    bob.wait_for_peers(&["alice"]);
    let mut listener = broadcast_listener(&env);
    let (code, out, error) = in_pipe(&mut discover(&env, &["--wait", "1s"]), "");
    assert_eq!((code, &*error), (0, ""), "{out}");
    let asked = listener.next("PEER_DISCOVERY");
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

    let (code, out, _) = in_pipe(&mut discover(&env, &["--wait", "1s", "--json"]), "");
    assert_eq!((code, out.lines().count()), (0, 1));
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&found["loopback"], found["peers"].as_array().unwrap().len()), (&json!(true), 2));
    assert_eq!(found["peers"][0]["user_id"], "alice@127.0.0.1");
    assert_eq!(found["peers"][0]["addr"], alice.addr.to_string());
    assert!(found["interfaces"].as_array().unwrap().iter().any(|it| it["ip"] == "127.0.0.1"));

    for peer in [&mut alice, &mut bob] {
        assert_eq!(peer.listed_names().len(), 1);
        let strangers = peer.count(|it| it["event"] == "came" && it["peer"]["name"].to_string().contains("discover"));
        assert_eq!(strangers, 0);
    }
}

#[test]
fn a_bare_probe_is_answered_and_not_listed() {
    let env = TestEnv::new();
    let mut alice = env.start("alice", &[]);
    let mut probe = RawPeer::introduced_with(&env, "discover-00ff00", &[("FEATURES", "probe")], &alice);
    for _ in 0..2 {
        probe.send(&alice, &probe.discovery(&[("FEATURES", "probe")]));
        assert_eq!(probe.next_from(&alice, "PEER_DISCOVERY").get("USER_ID"), "alice@127.0.0.1");
    }
    assert_eq!(alice.listed_names(), Vec::<String>::new());
}

#[test]
fn nobody_there_is_no_error_and_no_network_is_one() {
    let env = TestEnv::new();
    let (code, out, error) = in_pipe(&mut discover(&env, &["--wait", "200ms"]), "");
    assert_eq!((code, &*error), (0, ""));
    assert!(out.contains("nobody answered") && !out.contains('@'), "{out}");
    let (code, _, error) = in_pipe(&mut discover(&env, &["--wait", "soon"]), "");
    assert!(code == 2 && error.contains("--wait"), "{error}");
    let _taken = std::net::UdpSocket::bind(("127.255.255.255", env.discovery_port)).unwrap();
    let (code, out, error) = in_pipe(&mut discover(&env, &["--wait", "200ms"]), "");
    assert_eq!((code, &*out, error.lines().count()), (1, "", 1), "{error}");
    assert!(error.starts_with("error: ") && error.contains("--discovery-port"), "{error}");
}

#[test]
fn what_is_bound_to_one_address_is_tested_all_the_same() {
    let Some(mut lan) = Lan::new(2) else { return };
    lan.second_network(&[0, 1]);
    let env = TestEnv::in_network();
    let alice = Peer::start(&mut env.on_host(&lan, 0, "alice"));
    let shop = Peer::start(env.on_host(&lan, 1, "shop").args(["--bind", &lan.ip(1).to_string()]));
    let ask = |args: &[&str]| {
        let mut command = program("lan");
        command.args(["discover", "--wait", "1s", "--discovery-port", &env.discovery_port.to_string()]).args(args);
        let (code, out, error) = in_pipe(&mut lan.run_in(1, command), "");
        assert_eq!((code, &*error), (0, ""));
        out
    };
    let lines = |out: &str| out.lines().map(str::to_owned).collect::<Vec<_>>();
    let people = |out: &str| lines(out).into_iter().filter(|line| line.contains('@')).collect::<Vec<_>>();
    let of_shop = format!("shop@{} {}:{}", lan.ip(1), lan.ip(1), shop.addr.port());

    let out = ask(&["--bind", &lan.ip(1).to_string()]);
    for works in ["broadcast works", "loopback works"] {
        assert!(lines(&out).iter().any(|line| line == works), "{works}: {out}");
    }
    assert_eq!(people(&out), [format!("alice@{} {}:{}", lan.ip(0), lan.ip(0), alice.addr.port()), of_shop.clone()]);

    // A peer that is bound to another address of this host is reached by loopback.
    let out = ask(&["--bind", "127.0.0.1"]);
    assert!(lines(&out).iter().any(|line| line == "loopback works"), "{out}");
    let not_tried = "broadcast not tried: with --bind 127.0.0.1 nothing leaves this machine";
    assert!(lines(&out).iter().any(|line| line == not_tried), "{out}");
    assert_eq!(people(&out), std::slice::from_ref(&of_shop));

    // Peers that respond by several interfaces are listed once.
    let out = ask(&[]);
    let people = people(&out);
    assert!(people.len() == 2 && people[1] == of_shop && people[0].starts_with("alice@10."), "{out}");
    let out: Value = serde_json::from_str(&ask(&["--json"])).unwrap();
    assert_eq!(out["peers"].as_array().unwrap().len(), 2, "{out}");
}

#[test]
fn whoever_stops_reading_has_seen_enough() {
    let env = TestEnv::new();
    let mut command = discover(&env, &[]);
    // The flags of subcommands have environment variables too.
    command.env("P2S2_LAN_WAIT", "100ms").stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let began_at = std::time::Instant::now();
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &*String::from_utf8(output.stderr).unwrap()), (Some(0), ""));
    assert!(began_at.elapsed() < std::time::Duration::from_millis(2_900), "{:?}", began_at.elapsed());
}

/// Such a server is confirmed only by its address.
#[test]
fn nothing_is_paid_through_a_server_without_a_certificate_elsewhere() {
    let Some(lan) = Lan::new(2) else { return };
    let env = TestEnv::in_network();
    let shop = lan.within(1, || LanPeer::start(server(&env))).unwrap();
    let folder = env.dir().join("config/p2s2");
    std::fs::create_dir_all(&folder).unwrap();
    let servers = json!([8001, 7001].map(|port| json!({ "address": format!("{}:{port}", lan.ip(1)), "at": 1 })));
    let known = json!({ "format": 1, "servers": servers });
    std::fs::write(folder.join("known-servers.json"), known.to_string()).unwrap();
    let wallet = concat!(env!("CARGO_MANIFEST_DIR"), "/data/samples/wallet-bob.json");
    let run = |role: &str, args: &[&str], input: &str| {
        let mut client = program(role);
        client.args(["--server", "auto", "--bind", "0.0.0.0"]).args(args).current_dir(env.dir());
        client.env("XDG_CONFIG_HOME", env.dir().join("config")).env("HOME", env.dir());
        in_pipe(&mut lan.run_in(0, client), input)
    };
    let (code, out, error) = run("buyer", &["--wallet", wallet], "purchase\n");
    let named = format!("--server {}:8001", lan.ip(1));
    assert!(code == 0 && out.contains("nothing is paid through") && out.trim_end().ends_with(&named), "{out}{error}");
    let (code, out, error) = run("peer", &["--name", "carol", "--plaintext"], "items\n");
    let named = format!("--server {}:7001 --plaintext", lan.ip(1));
    assert!(
        code == 1 && error.contains("nothing is paid through") && error.trim_end().ends_with(&named),
        "{out}{error}"
    );
    shop.stop();
}

/// A server that announces services which do not exist.
fn server(env: &TestEnv) -> LanPeerConfig {
    LanPeerConfig {
        name: Name::new("server").unwrap(),
        kind: NodeKind::Server {
            serves: vec![("buyer".to_owned(), 8001), ("trade".to_owned(), 7001)],
            cert_sha256: None,
        },
        bind: std::net::Ipv4Addr::UNSPECIFIED,
        port: None,
        discovery_port: env.discovery_port,
        announce_every: std::time::Duration::from_secs(30),
        forget_after: std::time::Duration::from_secs(300),
        static_peers: Vec::new(),
        data_dir: None,
    }
}

#[test]
fn on_a_network_it_tells_whether_broadcast_works() {
    let Some(lan) = Lan::new(2) else { return };
    let env = TestEnv::in_network();
    let alice = Peer::start(&mut env.on_host(&lan, 0, "alice"));
    let ask = |args: &[&str]| {
        let mut command = program("lan");
        command.args(["discover", "--wait", "1s", "--discovery-port", &env.discovery_port.to_string()]).args(args);
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
