//! Who may claim which hostname from which address, and that no host can act for another. See `docs/spec/share.md`.

use std::sync::Arc;
use std::time::Duration;

use p2s2::internals::net::tls::TlsIdentity;
use p2s2::internals::share::client::{CertificatePin, RegistryClient, RegistryClientError};
use p2s2::internals::share::registry::RegistryLimits;
use p2s2::internals::share::server::AuthMode;
use p2s2::internals::share::wire::{FileEntry, FileName, RegisterRequest, Seconds};
use serde_json::json;

use crate::registry_harness::*;

const IN_USE: &str = "hostname in use";

#[test]
fn a_free_name_is_the_first_ones() {
    let registry = Registry::start(RegistryOptions::default());
    let mut ann = registry.client();
    ann.register("ann", json!({}));
    ann.publish("ann", "a", 1);
    let mut other = registry.client();
    assert_eq!(other.refused("REGISTER", registration("ann", json!({}))), IN_USE);
    let wrong = json!({"resume": "0".repeat(32)});
    assert_eq!(other.refused("REGISTER", registration("ann", wrong)), IN_USE, "a secret that is none");
    // A user's token is of no use for a name that belongs to no account.
    registry.users.add("user", "token");
    assert_eq!(other.refused("REGISTER", registration("ann", json!({"token": "token"}))), IN_USE);
    drop(ann);
    // Once it is closed, the same address can claim it at once, without the former files.
    eventually("the name to be free", || {
        (other.ask("REGISTER", registration("ann", json!({})))["status"] == "OK").then_some(())
    });
    other.expect("REQUEST", json!({"fname": "a"}), "NOTFOUND");
}

#[test]
fn from_another_address_it_is_free_after_the_timeout() {
    let registry =
        Registry::start(RegistryOptions { peer_timeout: Duration::from_secs(1), ..RegistryOptions::default() });
    let mut ann = registry.client();
    ann.register("ann", json!({}));
    ann.publish("ann", "a", 1);
    let mut other = Client::connect_from("127.0.0.2", registry.addr);
    assert_eq!(other.refused("REGISTER", registration("ann", json!({}))), IN_USE);
    drop(ann);
    eventually("the connection to be gone", || (registry.server.view().totals().active_clients == 0).then_some(()));
    // It is live, and its name cannot be claimed.
    if other.is_alive("ann") {
        let answer = other.ask("REGISTER", registration("ann", json!({})));
        assert!(answer["reason"] == IN_USE || !other.is_alive("ann") || answer["status"] == "OK");
    }
    eventually("the name to be free", || {
        let answer = other.ask("REGISTER", registration("ann", json!({})));
        (answer["status"] == "OK").then_some(())
    });
    other.expect("REQUEST", json!({"fname": "a"}), "NOTFOUND");
    assert_eq!(other.ask("DISCOVER", json!({"hostname": "ann"}))["addr"], json!(["127.0.0.2", 6001]));
}

#[test]
fn a_secret_gives_the_name_back_from_anywhere() {
    let registry = Registry::start(RegistryOptions::default());
    let mut ann = registry.client();
    let secret = ann.register("ann", json!({"files_metadata": {"a": file(1, true)}}));
    // After a lost connection: the old one still seems open.
    let mut back = Client::connect_from("127.0.0.3", registry.addr);
    assert_eq!(back.register("ann", json!({"resume": secret})), secret);
    assert!(ann.is_closed_in_the_end());
    assert_eq!(back.hosts("a"), ["ann"]);
    assert_eq!(registry.counter("connections_replaced"), 1);
    // A wrong secret has no effect and reveals nothing.
    let mut wrong = Client::connect_from("127.0.0.4", registry.addr);
    let resume = json!({"resume": format!("{}x", &secret[..31])});
    assert_eq!(wrong.refused("REGISTER", registration("ann", resume)), IN_USE);
}

#[test]
fn a_users_name_is_for_who_has_the_token() {
    let registry = Registry::start(RegistryOptions::default());
    registry.users.add("ann", "anns");
    registry.users.add("bob", "bobs");
    registry.users.sign_in_from("ann", "127.0.0.1");
    let mut stranger = registry.client();
    for more in [json!({}), json!({"token": "bobs"}), json!({"token": ""}), json!({"token": "anns "})] {
        let reason = stranger.refused("REGISTER", registration("ann", more));
        assert!(reason.starts_with("token: "), "{reason}");
    }
    let mut first = registry.client();
    let secret = first.register("ann", json!({"token": "anns"}));
    first.publish("ann", "a", 1);
    // The token replaces any connection that holds the name; so does the secret when the token has expired.
    let mut second = registry.client();
    assert_ne!(second.register("ann", json!({"token": "anns"})), secret);
    assert!(first.is_closed_in_the_end());
    registry.users.add("ann", "another");
    stranger.refused("REGISTER", registration("ann", json!({"token": "anns"})));
    let mut third = registry.client();
    assert_eq!(third.register("ann", json!({"token": "anns", "resume": secret})), secret);
    assert!(second.is_closed_in_the_end());
    drop(third);
    eventually("the connection to be gone", || (registry.server.view().totals().active_clients == 0).then_some(()));
    stranger.refused("REGISTER", registration("ann", json!({})));
}

#[test]
fn by_address_a_user_is_known_where_that_is_wanted() {
    let registry = Registry::start(RegistryOptions { auth: AuthMode::Address, ..RegistryOptions::default() });
    registry.users.add("ann", "anns");
    registry.users.sign_in_from("ann", "127.0.0.1");
    let mut elsewhere = Client::connect_from("127.0.0.2", registry.addr);
    assert!(elsewhere.refused("REGISTER", registration("ann", json!({}))).starts_with("token: "));
    let mut here = registry.client();
    here.register("ann", json!({}));
    let mut with_token = Client::connect_from("127.0.0.2", registry.addr);
    with_token.register("ann", json!({"token": "anns"}));
    assert!(here.is_closed_in_the_end());
    let mut again = registry.client();
    let reason = again.refused("REGISTER", registration("ann", json!({"ip": "192.0.2.1"})));
    assert!(reason.starts_with("ip: "), "another address takes the token itself: {reason}");
    again.register("ann", json!({}));
    assert!(with_token.is_closed_in_the_end());
}

#[test]
fn the_address_is_the_connections_own() {
    let registry = Registry::start(RegistryOptions::default());
    registry.users.add("ann", "anns");
    let mut client = registry.client();
    for ip in ["192.0.2.1", "0.0.0.0", "224.0.0.1", "::", "ff02::1", "255.255.255.255"] {
        let reason = client.refused("REGISTER", registration("bob", json!({"ip": ip})));
        assert!(reason.starts_with("ip: "), "{ip}: {reason}");
    }
    for ip in ["0.0.0.0", "224.0.0.1", "::", "ff02::1"] {
        let reason = client.refused("REGISTER", registration("ann", json!({"ip": ip, "token": "anns"})));
        assert!(reason.starts_with("ip: "), "{ip}: {reason}");
    }
    client.register("ann", json!({"ip": "198.51.100.7", "token": "anns"}));
    assert_eq!(client.ask("DISCOVER", json!({"hostname": "ann"}))["addr"], json!(["198.51.100.7", 6001]));
    let mut other = registry.client();
    other.register("bob", json!({"ip": "::ffff:127.0.0.1"}));
    assert_eq!(other.ask("DISCOVER", json!({"hostname": "bob"}))["addr"], json!(["127.0.0.1", 6001]));
}

#[test]
fn from_loopback_every_address_of_the_host_is_ones_own() {
    let registry = Registry::start(RegistryOptions::default());
    let own = if_addrs::get_if_addrs().unwrap().into_iter().map(|interface| interface.ip());
    for (n, ip) in own.chain(["127.0.0.2".parse().unwrap(), "::1".parse().unwrap()]).enumerate() {
        let hostname = format!("host-{n}");
        let mut client = registry.client();
        let answer = client.expect("REGISTER", registration(&hostname, json!({"ip": ip})), "OK");
        assert_eq!(answer["ip"], json!(ip), "as it is registered");
        assert_eq!(client.ask("DISCOVER", json!({"hostname": hostname}))["addr"], json!([ip, 6001]));
    }
    // By default it is the connection's address.
    let mut client = Client::connect_from("127.0.0.7", registry.addr);
    assert_eq!(client.expect("REGISTER", registration("bob", json!({})), "OK")["ip"], "127.0.0.7");
}

#[test]
fn past_the_timeout_a_name_is_free_though_its_connection_is_open() {
    let registry =
        Registry::start(RegistryOptions { peer_timeout: Duration::from_secs(1), ..RegistryOptions::default() });
    let mut silent = registry.client();
    let secret = silent.register("lap", json!({"files_metadata": {"a": file(1, true)}}));
    let mut other = Client::connect_from("127.0.0.2", registry.addr);
    eventually("the name to be free", || {
        let answer = other.ask("REGISTER", registration("lap", json!({})));
        assert!(answer["status"] == "OK" || answer["reason"] == IN_USE, "{answer}");
        (answer["status"] == "OK").then_some(())
    });
    other.expect("REQUEST", json!({"fname": "a"}), "NOTFOUND");
    assert!(silent.is_closed_in_the_end(), "its connection is another's word no more");
    // Another host has held it since.
    let mut back = registry.client();
    let answer = back.ask("REGISTER", registration("lap", json!({"resume": secret})));
    assert!(answer["reason"] == IN_USE || answer["resume"] != json!(secret), "{answer}");
}

#[test]
fn one_source_cannot_fill_the_registry() {
    let bounds = RegistryLimits { hosts: 4, files: 8, ..RegistryLimits::default() };
    let registry = Registry::start(RegistryOptions { bounds, ..RegistryOptions::default() });
    registry.users.add("ann", "anns");
    let mut hosts: Vec<Client> =
        (0..2).map(|n| Client::connect_from(&format!("127.0.0.{}", n + 1), registry.addr)).collect();
    for (n, host) in hosts.iter_mut().enumerate() {
        host.register(&format!("host-{n}"), json!({}));
    }
    // Loopback may have half of the total, over all its addresses.
    let mut more = Client::connect_from("127.0.0.3", registry.addr);
    let full = more.refused("REGISTER", registration("more", json!({})));
    assert!(full.starts_with("BUSY: loopback has 2 hostnames without an account here"), "{full}");
    // Users are not counted, nor are hosts that unregistered.
    let mut ann = registry.client();
    ann.register("ann", json!({"token": "anns", "files_metadata": {"u": file(1, true)}}));
    hosts[1].expect("UNREGISTER", json!({"hostname": "host-1"}), "OK");
    more.register("more", json!({"files_metadata": {"a": file(1, true), "b": file(1, true), "c": file(1, true)}}));
    hosts[0].publish("host-0", "d", 1);
    let one_more = json!({"hostname": "host-0", "fname": "e", "size": 1, "modified": 2});
    let full = hosts[0].refused("PUBLISH", one_more.clone());
    assert!(full.starts_with("BUSY: loopback has 4 files without an account here"), "{full}");
    more.expect("UNPUBLISH", json!({"hostname": "more", "fname": "a"}), "ACK");
    hosts[0].expect("PUBLISH", one_more, "ACK");
    assert_eq!(registry.counter("refused_share"), 2);
    // A host whose connection only closed still counts.
    drop(more);
    let mut late = registry.client();
    eventually("the connection to be gone", || (registry.server.view().totals().active_clients == 2).then_some(()));
    assert!(late.refused("REGISTER", registration("late", json!({}))).starts_with("BUSY: "));
}

#[test]
fn nobody_changes_what_is_anothers() {
    let registry = Registry::start(RegistryOptions::default());
    let (mut ann, mut bob) = (registry.client(), registry.client());
    ann.register("ann", json!({}));
    ann.publish("ann", "a", 1);
    bob.register("bob", json!({}));
    let publish = json!({"hostname": "ann", "fname": "b", "size": 1, "modified": 2});
    for (action, data) in [
        ("PUBLISH", publish.clone()),
        ("UNPUBLISH", json!({"hostname": "ann", "fname": "a"})),
        ("UNREGISTER", json!({"hostname": "ann"})),
        ("REGISTER", registration("ann", json!({}))),
        ("REGISTER", registration("cid", json!({}))),
    ] {
        let reason = bob.refused(action, data);
        assert_eq!(reason, "hostname: this connection is registered as bob and may change nothing else");
    }
    assert_eq!(registry.client().refused("PUBLISH", publish), "expected REGISTER first");
    assert_eq!(bob.hosts("a"), ["ann"]);
    assert_eq!(bob.hosts("b"), [""; 0]);
    // PINGing another host is no sign of life of that host, and changes nothing.
    assert!(bob.is_alive("ann"));
}

#[test]
fn a_stranger_loses_a_name_that_becomes_a_users() {
    let registry = Registry::start(RegistryOptions::default());
    let mut stranger = registry.client();
    let secret = stranger.register("ann", json!({}));
    stranger.publish("ann", "a", 1);
    registry.users.add("ann", "anns");
    registry.server.account_created("ann");
    assert_eq!(stranger.hosts("a"), [""; 0]);
    let publish = json!({"hostname": "ann", "fname": "b", "size": 1, "modified": 2});
    for (action, data) in [
        ("PUBLISH", publish),
        ("UNPUBLISH", json!({"hostname": "ann", "fname": "a"})),
        ("UNREGISTER", json!({"hostname": "ann"})),
        ("REGISTER", registration("ann", json!({"resume": secret}))),
    ] {
        let reason = stranger.refused(action, data);
        assert!(reason.starts_with("token: "), "{action}: {reason}");
    }
    registry.client().register("ann", json!({"token": "anns"}));
}

#[test]
fn an_account_that_was_made_while_the_registry_was_away_counts() {
    let dir = tempfile::tempdir().unwrap();
    let users = Arc::new(Users::default());
    let running = RunningRegistry::on(dir.path(), Arc::clone(&users), RegistryOptions::default());
    let mut stranger = Client::connect(running.addr);
    let secret = stranger.register("ann", json!({}));
    stranger.publish("ann", "a", 1);
    running.stop();
    users.add("ann", "anns");
    let running = RunningRegistry::on(dir.path(), users, RegistryOptions::default());
    let mut stranger = Client::connect(running.addr);
    assert_eq!(stranger.hosts("a"), [""; 0]);
    assert!(stranger.refused("REGISTER", registration("ann", json!({"resume": secret}))).starts_with("token: "));
    running.stop();
}

#[test]
fn a_hostname_of_an_earlier_version_does_not_come_back_to_a_namesake_of_its_user() {
    let (composed, apart) = ("Zo\u{eb}", "Zoe\u{308}");
    let dir = tempfile::tempdir().unwrap();
    let users = Arc::new(Users::default());
    users.add(apart, "younger's");
    let running = RunningRegistry::on(dir.path(), Arc::clone(&users), RegistryOptions::default());
    let mut younger = Client::connect(running.addr);
    let secret = younger.register(apart, json!({"token": "younger's"}));
    younger.publish(apart, "a", 1);
    running.stop();
    users.add(composed, "older's");
    users.add_namesake(apart);
    let running = RunningRegistry::on(dir.path(), users, RegistryOptions::default());
    let mut client = Client::connect(running.addr);
    assert_eq!(client.hosts("a"), [""; 0]);
    for hostname in [composed, apart] {
        let reason = client.refused("REGISTER", registration(hostname, json!({"resume": secret})));
        assert!(reason.starts_with("token: "), "{reason}");
    }
    client.register(composed, json!({"token": "older's"}));
    running.stop();
}

#[test]
fn a_secret_that_is_forgotten_stays_it_however_the_hostname_was_spelled() {
    let (composed, apart) = ("Zo\u{eb}", "Zoe\u{308}");
    let dir = tempfile::tempdir().unwrap();
    let running = RunningRegistry::on(dir.path(), Arc::default(), RegistryOptions::default());
    let register = |running: &RunningRegistry, hostname: &str, more| {
        let secret = Client::connect(running.addr).register(hostname, more);
        eventually("the connection to be gone", || (running.server.view().totals().active_clients == 0).then_some(()));
        secret
    };
    let secret = register(&running, apart, json!({}));
    assert_eq!(register(&running, composed, json!({"resume": secret})), secret);
    // Another host has it since.
    assert_ne!(register(&running, composed, json!({})), secret);
    running.stop();
    let running = RunningRegistry::on(dir.path(), Arc::default(), RegistryOptions::default());
    assert_ne!(register(&running, composed, json!({"resume": secret})), secret);
    running.stop();
}

#[test]
fn the_first_byte_tells_tls_and_our_client_speaks_both() {
    let dir = tempfile::tempdir().unwrap();
    let identity = Arc::new(TlsIdentity::load_or_create(dir.path()).unwrap());
    let registry =
        Registry::start(RegistryOptions { identity: Some(Arc::clone(&identity)), ..RegistryOptions::default() });
    let timeout = Duration::from_secs(20);
    let pin = CertificatePin::new(identity.fingerprint()).unwrap();
    let wrong = CertificatePin::new(&"ab".repeat(32)).unwrap();
    assert!(matches!(
        RegistryClient::connect(registry.addr, Some(wrong), timeout),
        Err(RegistryClientError::Disconnected(_))
    ));
    let name = |text| p2s2::internals::model::Name::new(text).unwrap();
    let fname = FileName::new("a.pdf").unwrap();
    for (tls, hostname) in [(Some(pin), "ann"), (None, "bob")] {
        let client = RegistryClient::connect(registry.addr, tls, timeout).unwrap();
        let register = RegisterRequest {
            hostname: name(hostname),
            port: 6001,
            ip: None,
            display_name: Some(name("X")),
            files: None,
            token: None,
            resume: None,
        };
        let secret = client.register(&register).unwrap();
        assert_eq!(client.register(&register).unwrap(), secret);
        let entry = FileEntry {
            size: 5,
            modified: Seconds::new(7.5).unwrap(),
            created: None,
            published_at: None,
            is_published: true,
            blake3: None,
            pieces_root: None,
            features: Arc::new(["range".into()]),
        };
        client.publish(&name(hostname), &fname, &entry).unwrap();
        let hosts = client.request(&fname).unwrap();
        assert_eq!((hosts.len(), &*hosts[0].file, &*hosts[0].display_name), (1, &entry, "X"));
        let (files, addr) = client.discover(&name(hostname)).unwrap();
        assert_eq!((files.get(&fname), addr), (Some(&entry), ("127.0.0.1".parse().unwrap(), 6001)));
        let listing = client.list(Some(0), Some(10)).unwrap();
        assert_eq!((listing.total, listing.registry[&name(hostname)].files.len()), (1, 1));
        assert!(client.ping(&name(hostname), Some("idle")).unwrap());
        assert!(!client.ping(&name("nobody"), None).unwrap());
        client.unpublish(&name(hostname), &fname).unwrap();
        assert!(client.request(&fname).unwrap().is_empty());
        let refused = client.unpublish(&name("cid"), &fname).unwrap_err();
        assert!(
            matches!(&refused, RegistryClientError::Refused(reason) if reason.starts_with("hostname: ")),
            "{refused}"
        );
        assert!(!client.is_closed(), "a refusal is an answer");
        client.unregister(&name(hostname)).unwrap();
        client.close();
        assert!(client.is_closed());
        assert!(matches!(client.ping(&name(hostname), None), Err(RegistryClientError::Disconnected(_))));
    }
}
