//! Every action of the registry and its responses.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::registry_harness::*;

#[test]
fn a_whole_story_on_one_connection() {
    let registry = Registry::start(RegistryOptions::default());
    let (mut ann, mut bob) = (registry.client(), registry.client());
    let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    assert_eq!(ann.ask("LIST", json!({})), json!({"status": "OK", "total": 0, "registry": {}}));
    let files = json!({"a.pdf": file(5, true), "hidden": file(6, false)});
    let resume = ann.register("ann", json!({"display_name": "Ann Smith", "ip": "127.0.0.1", "files_metadata": files}));
    assert_eq!(resume.len(), 32);
    let published = json!({
        "hostname": "ann", "fname": "ü b", "size": 7, "modified": 1.5, "created": 2, "published_at": 3,
        "blake3": "ab".repeat(32), "pieces_root": "cd".repeat(32), "features": ["range", "x"], "unknown": 1,
    });
    assert_eq!(ann.ask("PUBLISH", published), json!({"status": "ACK"}));
    bob.register("bob", json!({"port": 65535}));
    bob.publish("bob", "a.pdf", 9);

    let whole = json!({
        "size": 7, "modified": 1.5, "created": 2, "published_at": 3, "is_published": true,
        "blake3": "ab".repeat(32), "pieces_root": "cd".repeat(32), "features": ["range", "x"],
    });
    let found = bob.expect("REQUEST", json!({"fname": "ü b"}), "FOUND");
    let mut host = whole.clone();
    host.as_object_mut().unwrap().extend(
        json!({"hostname": "ann", "display_name": "Ann Smith", "ip": "127.0.0.1", "port": 6001})
            .as_object()
            .unwrap()
            .clone(),
    );
    assert_eq!(found, json!({"status": "FOUND", "hosts": [host]}));
    assert_eq!(bob.hosts("a.pdf"), ["ann", "bob"]);
    assert_eq!(bob.ask("REQUEST", json!({"fname": "hidden"})), json!({"status": "NOTFOUND", "hosts": []}));
    let bare = json!({"size": 5, "modified": 1_699_267_200, "is_published": true});
    let discovered = json!({"status": "OK", "addr": ["127.0.0.1", 6001], "files": {"a.pdf": bare, "ü b": whole}});
    assert_eq!(bob.ask("DISCOVER", json!({"hostname": "ann"})), discovered);
    let list = bob.expect("LIST", json!({}), "OK");
    assert_eq!(list["total"], 2);
    assert_eq!(list["registry"].as_object().unwrap().len(), 2);
    let mut shown = list["registry"]["ann"].clone();
    let times: Vec<f64> = ["last_seen", "connected_at"]
        .map(|field| shown.as_object_mut().unwrap().remove(field).unwrap().as_f64().unwrap())
        .into();
    assert!(times.iter().all(|at| (begun - 1.0..begun + 60.0).contains(at)), "{times:?}");
    let expected = json!({"addr": ["127.0.0.1", 6001], "display_name": "Ann Smith", "files": discovered["files"]});
    assert_eq!(shown, expected);
    assert_eq!(list["registry"]["bob"]["display_name"], "bob");

    assert_eq!(bob.ask("PING", json!({"hostname": "ann", "state": "idle"})), json!({"status": "ALIVE"}));
    assert_eq!(bob.ask("PING", json!({"hostname": "nobody"})), json!({"status": "DEAD"}));
    for _ in 0..2 {
        assert_eq!(ann.ask("UNPUBLISH", json!({"hostname": "ann", "fname": "a.pdf"})), json!({"status": "ACK"}));
    }
    assert_eq!(bob.hosts("a.pdf"), ["bob"]);
    ann.publish("ann", "a.pdf", 10);
    assert_eq!(bob.expect("REQUEST", json!({"fname": "a.pdf"}), "FOUND")["hosts"][0]["size"], 10);
    assert_eq!(ann.ask("UNREGISTER", json!({"hostname": "ann"})), json!({"status": "OK"}));
    assert_eq!(bob.listed(), ["bob"]);
    assert_eq!(bob.hosts("a.pdf"), ["bob"]);
    assert!(!bob.is_alive("ann"));
    assert!(bob.refused("DISCOVER", json!({"hostname": "ann"})).starts_with("hostname: "));
    // Its files are forgotten; its secret gets the name back from any address.
    let mut back = Client::connect_from("127.0.0.5", registry.addr);
    assert_eq!(back.register("ann", json!({"resume": resume})), resume);
    assert_eq!(ann.expect("DISCOVER", json!({"hostname": "ann"}), "OK")["files"], json!({}));
}

#[test]
fn who_has_not_registered_may_ask_and_nothing_else() {
    let registry = Registry::start(RegistryOptions::default());
    let mut stranger = registry.client();
    for (action, data) in [
        ("PUBLISH", json!({"hostname": "ann", "fname": "a", "size": 1, "modified": 2})),
        ("UNPUBLISH", json!({"hostname": "ann", "fname": "a"})),
        ("UNREGISTER", json!({"hostname": "ann"})),
    ] {
        assert_eq!(stranger.refused(action, data), "expected REGISTER first");
    }
    assert_eq!(stranger.refused("DISCOVER", json!({"hostname": "ann"})), "hostname: no such host is there");
    stranger.expect("REQUEST", json!({"fname": "a"}), "NOTFOUND");
    stranger.expect("LIST", json!({}), "OK");
    stranger.expect("PING", json!({"hostname": "ann"}), "DEAD");
    stranger.register("ann", json!({}));
    assert_eq!(
        stranger.refused("UNPUBLISH", json!({"hostname": "ann", "fname": "a"})),
        "fname: this host has no such file"
    );
}

#[test]
fn bad_lines_are_refused_and_the_connection_goes_on() {
    let registry = Registry::start(RegistryOptions::default());
    let mut client = registry.client();
    for line in
        ["{", "[]", "5", "x", "{}", "null", "{\"action\":5}", "{\"action\":\"list\"}", "{\"action\":\"LIST\"} x"]
    {
        client.send(line);
        let answer = client.receive().unwrap();
        assert_eq!(answer["status"], "ERROR", "{line}");
        assert!(answer["reason"].as_str().unwrap().contains("expected"), "{line}: {answer}");
    }
    use std::io::Write;
    client.stream().write_all(b"\xff\xfe\n\r\n\n").unwrap();
    assert_eq!(client.receive().unwrap(), json!({"status": "ERROR", "reason": "the message is not UTF-8"}));
    // Responses come in the order of the requests, however those are sent.
    client.send("{\"action\":\"LIST\"}\r\n{\"action\":\"PING\",\"data\":{\"hostname\":\"x\"}}\n{\"action\":\"x\"}\n{\"action\":\"LIST\"}");
    let statuses: Vec<Value> = (0..4).map(|_| client.receive().unwrap()["status"].clone()).collect();
    assert_eq!(statuses, ["OK", "DEAD", "ERROR", "OK"]);
}

#[test]
fn too_long_a_line_is_refused_and_closed() {
    let registry = Registry::start(RegistryOptions::default());
    let mut client = registry.client();
    let writer = client.stream().try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            use std::io::Write;
            // The registry may close it before everything is written.
            let _ = (&writer).write_all(&vec![b' '; (16 << 20) + 3]);
        });
        let answer = client.receive().unwrap();
        assert_eq!(answer["reason"], "the message is longer than 16777216 bytes");
        assert!(client.is_closed_in_the_end());
    });
    // Up to the limit it is accepted.
    let mut client = registry.client();
    let spaces = " ".repeat((16 << 20) - 17);
    client.send(&format!("{spaces}{{\"action\":\"LIST\"}}"));
    assert_eq!(client.receive().unwrap()["status"], "OK");
}

#[test]
fn lists_come_in_pages_by_name() {
    let registry = Registry::start(RegistryOptions::default());
    let hosts: Vec<Client> = (0..30)
        .map(|number| {
            let mut host = registry.client();
            let files: serde_json::Map<String, Value> =
                (0..number * 20).map(|n| (format!("f{n}"), file(n, n % 2 == 0))).collect();
            host.register(&format!("h{number:02}"), json!({"files_metadata": files}));
            host
        })
        .collect();
    let mut client = registry.client();
    let all = client.expect("LIST", json!({}), "OK");
    assert_eq!(all["total"], 30);
    let whole = all["registry"].as_object().unwrap();
    for (number, (name, host)) in whole.iter().enumerate() {
        assert_eq!(*name, format!("h{number:02}"));
        let files = host["files"].as_object().unwrap();
        assert_eq!(files.len(), number * 10, "only what is published");
        assert!(files.values().all(|file| file["is_published"] == true && file["size"].as_u64().unwrap() % 2 == 0));
        assert_eq!(client.ask("DISCOVER", json!({"hostname": name}))["files"], host["files"]);
    }
    for (offset, limit) in [(0, 1), (3, 10), (25, 10), (30, 5), (1000, 1), (0, 0), (29, u64::MAX)] {
        let page = client.expect("LIST", json!({"offset": offset, "limit": limit}), "OK");
        let expected: serde_json::Map<String, Value> = whole
            .iter()
            .skip(offset)
            .take(usize::try_from(limit).unwrap())
            .map(|(name, host)| (name.clone(), host.clone()))
            .collect();
        assert_eq!(page, json!({"status": "OK", "total": 30, "registry": expected}), "{offset} {limit}");
    }
    assert_eq!(client.hosts("f0").len(), 29);
    drop(hosts);
}

#[test]
fn register_replaces_the_list_and_resume_keeps_it() {
    let registry = Registry::start(RegistryOptions::default());
    let mut ann = registry.client();
    let files = |ann: &mut Client| -> Vec<String> {
        let answer = ann.expect("DISCOVER", json!({"hostname": "ann"}), "OK");
        answer["files"].as_object().unwrap().keys().cloned().collect()
    };
    let secret = ann.register("ann", json!({"files_metadata": {"a": file(1, true), "b": file(2, true)}}));
    assert_eq!(files(&mut ann), ["a", "b"]);
    assert_eq!(ann.register("ann", json!({"files_metadata": {"b": file(3, true), "c": file(4, true)}})), secret);
    assert_eq!(files(&mut ann), ["b", "c"]);
    // Register again on the same connection with the former list, and from another one.
    assert_eq!(ann.register("ann", json!({"resume": secret})), secret);
    assert_eq!(files(&mut ann), ["b", "c"]);
    let mut again = registry.client();
    assert_eq!(again.register("ann", json!({"resume": secret, "port": 6002})), secret);
    assert_eq!(files(&mut again), ["b", "c"]);
    assert_eq!(again.ask("DISCOVER", json!({"hostname": "ann"}))["addr"], json!(["127.0.0.1", 6002]));
    assert!(ann.is_closed_in_the_end(), "it was replaced");
    assert_eq!(again.register("ann", json!({})), secret);
    assert_eq!(files(&mut again), [""; 0], "no list: an empty one");
    assert_eq!(again.register("ann", json!({"resume": secret, "files_metadata": {"d": file(1, true)}})), secret);
    assert_eq!(files(&mut again), ["d"]);
}

#[test]
fn a_host_is_there_until_the_timeout_after_it_was_last_heard() {
    let registry =
        Registry::start(RegistryOptions { peer_timeout: Duration::from_millis(1500), ..RegistryOptions::default() });
    let (mut ann, mut bob, mut looks) = (registry.client(), registry.client(), registry.client());
    ann.register("ann", json!({"files_metadata": {"a": file(1, true)}}));
    bob.register("bob", json!({"files_metadata": {"a": file(1, true)}}));
    drop(bob);
    assert_eq!(looks.hosts("a"), ["ann", "bob"], "also when its connection is closed");
    eventually("the silent one to go", || {
        // Any request is a sign of life.
        ann.is_alive("ann");
        (looks.listed() == ["ann"]).then_some(())
    });
    assert_eq!(looks.hosts("a"), ["ann"]);
    assert_eq!(looks.ask("LIST", json!({}))["total"], 1);
    assert!(!looks.is_alive("bob"));
    looks.refused("DISCOVER", json!({"hostname": "bob"}));
    eventually("the other one to go", || looks.listed().is_empty().then_some(()));
    looks.expect("REQUEST", json!({"fname": "a"}), "NOTFOUND");
    // Its connection is open: with its next request it is live again, with its files.
    assert!(ann.is_alive("ann"));
    assert_eq!(looks.hosts("a"), ["ann"]);
    registry.server.sweep();
    assert_eq!(looks.listed(), ["ann"]);
    // Whichever request it is.
    eventually("it to go again", || looks.listed().is_empty().then_some(()));
    assert_eq!(ann.hosts("a"), ["ann"]);
    assert_eq!(looks.listed(), ["ann"]);
}

#[test]
fn a_restart_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let users = Arc::new(Users::default());
    let running = RunningRegistry::on(dir.path(), Arc::clone(&users), RegistryOptions::default());
    let (mut ann, mut bob) = (Client::connect(running.addr), Client::connect(running.addr));
    let secret = ann.register("ann", json!({"display_name": "Ann", "files_metadata": {"a": file(1, true)}}));
    bob.register("bob", json!({}));
    bob.publish("bob", "b", 2);
    bob.publish("bob", "gone", 2);
    bob.expect("UNPUBLISH", json!({"hostname": "bob", "fname": "gone"}), "ACK");
    let before = ann.ask("LIST", json!({}));
    running.stop();
    let running = RunningRegistry::on(dir.path(), users, RegistryOptions::default());
    let mut looks = Client::connect(running.addr);
    let mut after = looks.ask("LIST", json!({}));
    for name in ["ann", "bob"] {
        let [was, is] = [&before, &after].map(|list| list["registry"][name]["last_seen"].as_f64().unwrap());
        assert!(is >= was - 0.001);
        after["registry"][name]["last_seen"] = before["registry"][name]["last_seen"].clone();
    }
    assert_eq!(after, before);
    assert_eq!(looks.hosts("b"), ["bob"]);
    // Nobody holds the names; a host that comes back has its files again.
    assert_eq!(looks.register("ann", json!({"resume": secret})), secret);
    assert_eq!(looks.hosts("a"), ["ann"]);
    running.stop();
}

#[test]
fn what_cannot_be_stored_has_not_happened() {
    let registry = Registry::start(RegistryOptions::default());
    let (mut ann, mut looks) = (registry.client(), registry.client());
    let secret = ann.register("ann", json!({}));
    ann.publish("ann", "a", 1);
    let write = |sql: &'static str| {
        registry.store.write(move |tx| tx.execute(sql, &[]).map(drop)).unwrap();
    };
    write("CREATE TRIGGER full BEFORE INSERT ON registry_file BEGIN SELECT RAISE(ABORT, 'full'); END");
    let refused = [
        ("PUBLISH", json!({"hostname": "ann", "fname": "b", "size": 1, "modified": 2})),
        ("REGISTER", registration("ann", json!({"files_metadata": {"c": file(1, true)}}))),
    ];
    for (action, data) in &refused {
        let reason = ann.refused(action, data.clone());
        assert!(reason.starts_with("UNAVAILABLE: "), "{reason}");
        assert_eq!(looks.expect("DISCOVER", json!({"hostname": "ann"}), "OK")["files"].as_object().unwrap().len(), 1);
        assert_eq!((looks.hosts("a").len(), looks.hosts("b").len(), looks.hosts("c").len()), (1, 0, 0));
    }
    // Connections stay open, and work again as soon as changes can be stored.
    write("DROP TRIGGER full");
    ann.publish("ann", "b", 1);
    assert_eq!(looks.hosts("b"), ["ann"]);
    assert_eq!(ann.register("ann", json!({"resume": secret})), secret);
    assert_eq!(looks.hosts("a"), ["ann"]);
}

#[test]
fn the_view_shows_what_clients_see() {
    let registry = Registry::start(RegistryOptions::default());
    let view = registry.server.view();
    let (mut ann, mut bob) = (registry.client(), registry.client());
    let files = json!({"a": file(5, true), "hidden": file(6, false)});
    ann.register("ann", json!({"display_name": "Ann", "files_metadata": files}));
    bob.register("bob", json!({}));
    bob.publish("bob", "a", 7);
    drop(bob);
    eventually("the connection to be gone", || (view.totals().active_clients == 1).then_some(()));
    let totals = view.totals();
    assert_eq!((totals.total_clients, totals.total_files, totals.total_size), (2, 2, 12));
    let page = view.page(None, 10);
    assert_eq!(page.iter().map(|client| client.host.hostname.as_str()).collect::<Vec<_>>(), ["ann", "bob"]);
    assert_eq!(page.iter().map(|client| client.host.is_connected).collect::<Vec<_>>(), [true, false]);
    assert_eq!((page[0].host.file_count, page[0].files.len(), page[0].files[0].1.size), (1, 1, 5));
    assert_eq!(&*page[0].host.display_name, "Ann");
    assert_eq!(view.page(Some("ann"), 10)[..], page[1..]);
    assert_eq!(view.page(None, 1)[..], page[..1]);
    assert!(view.page(Some("bob"), 10).is_empty());
    let (files, addr) = view.discover("bob").unwrap();
    assert_eq!((files.len(), addr), (1, ("127.0.0.1".parse().unwrap(), 6001)));
    assert!(view.discover("nobody").is_none());
    assert!(view.is_live("ann") && !view.is_live("nobody"));
    assert!(registry.counter("requests") >= 3);
    assert_eq!(registry.counter("registered"), 2);
    assert_eq!(registry.counter("hosts_known"), 2);
}
