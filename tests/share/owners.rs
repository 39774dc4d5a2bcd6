//! Which owner's content a fetch gets, and what happens when that is no longer available.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::nodes::{Node, Server, TestDir, content};
use crate::support::eventually;

#[test]
fn new_content_of_the_same_size_and_time_is_what_is_fetched() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let ann = Node::begun(&place, &server, "ann", &[]);
    let bob = Node::begun(&place, &server, "bob", &[]);
    // One file is hashed at once, the other later.
    for (name, bytes) in [("small.hc", 5_000), ("large.hc", 3_000_000)] {
        let path = place.file(name, bytes);
        ann.publishes(&server, &path);
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        let other = content(&format!("other {name}"), bytes);
        let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all(&other).unwrap();
        file.set_modified(modified).unwrap();
        ann.does("publish", json!({"fname": name, "local_path": path}));
        let whole = blake3::hash(&other).to_hex().to_string();
        eventually("the new digest", || {
            (server.ask("REQUEST", json!({ "fname": name }))["hosts"][0]["blake3"] == whole).then_some(())
        });
        let to = place.path("shared").join(format!("got-{name}"));
        let done = bob.waits_for(&bob.fetches(name, &to), "completed");
        assert_eq!(done["verified"], true);
        assert_eq!(fs::read(to).unwrap(), other, "{name}");
    }
}

#[test]
fn a_fetch_of_what_is_gone_ends_with_the_reason_and_bars_no_new_one() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let ann = Node::begun(&place, &server, "ann", &[]);
    let bob = Node::begun(&place, &server, "bob", &[]);
    let path = place.file("log.bin", 64 << 20);
    ann.publishes(&server, &path);
    let slowed = ann.slowed();
    let id = bob.does("fetch", json!({"fname": "log.bin"}))["fetch_id"].as_str().unwrap().to_owned();
    bob.does(&format!("fetches/{id}/pause"), json!({}));
    drop(slowed);
    assert_eq!(bob.progress(&id)["status"], "paused");
    fs::write(&path, "short now").unwrap();
    ann.publishes(&server, &path);
    bob.does(&format!("fetches/{id}/resume"), json!({}));
    let begun = Instant::now();
    let failed = eventually("its end", || {
        let progress = bob.progress(&id);
        (progress["status"] == "failed").then_some(progress)
    });
    assert!(begun.elapsed() < Duration::from_secs(20), "on a busy machine");
    assert!(failed["error"].as_str().unwrap().contains("ann no longer offers this content"), "{failed}");
    let begun = bob.does("fetch", json!({"fname": "log.bin"}));
    bob.waits_for(begun["fetch_id"].as_str().unwrap(), "completed");
    assert_eq!(fs::read(begun["save_path"].as_str().unwrap()).unwrap(), b"short now");
    // A failed fetch can be cancelled and leaves nothing behind, also after a restart.
    bob.does(&format!("fetches/{id}/cancel"), json!({}));
    let repo = place.path("state-bob/repo");
    let left: Vec<_> = fs::read_dir(&repo).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(left, ["log.bin"]);
}

#[test]
fn where_several_have_different_files_of_a_name_the_owner_is_chosen() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let nodes = ["ann", "bob", "cleo"].map(|name| Node::begun(&place, &server, name, &[]));
    let [ann, bob, cleo] = &nodes;
    for (node, text) in [(ann, "of ann"), (bob, "of bob, longer")] {
        let path = place.file(&format!("{}/invoice.txt", node.name), 0);
        fs::write(&path, text).unwrap();
        node.does("publish", json!({"fname": "invoice.txt", "local_path": path}));
    }
    let (status, answer) = cleo.post("fetch", json!({"fname": "invoice.txt"}));
    assert_eq!((status, &answer["success"]), (409, &json!(false)), "{answer}");
    let mut owners: Vec<(&Value, &Value)> =
        answer["owners"].as_array().unwrap().iter().map(|it| (&it["owner_hostname"], &it["size"])).collect();
    owners.sort_by_key(|(name, _)| name.as_str());
    assert_eq!(owners, [(&json!("ann"), &json!(6)), (&json!("bob"), &json!(14))]);
    assert!(answer["owners"][0]["modified"].is_number());
    assert!(answer["error"].as_str().unwrap().contains("owner_hostname"));
    for (owner, text) in [("ann", "of ann"), ("bob", "of bob, longer")] {
        let to = place.path("shared").join(format!("from-{owner}"));
        let begun = cleo.does("fetch", json!({"fname": "invoice.txt", "owner_hostname": owner, "save_path": to}));
        assert_eq!(begun["peer_hostname"], owner);
        cleo.waits_for(begun["fetch_id"].as_str().unwrap(), "completed");
        assert_eq!(fs::read_to_string(to).unwrap(), text);
    }
    let reason = cleo.refuses("fetch", json!({"fname": "invoice.txt", "owner_hostname": "dee"}), 404);
    assert!(reason.contains("dee") && reason.contains("invoice.txt"), "{reason}");
    cleo.refuses("fetch", json!({"fname": "invoice.txt", "owner_hostname": "a\nb"}), 400);
    // With equal content no owner needs to be named.
    for node in [ann, bob] {
        let path = place.file(&format!("{}/same.txt", node.name), 0);
        fs::write(&path, "equal").unwrap();
        node.does("publish", json!({"fname": "same.txt", "local_path": path}));
    }
    let begun = cleo.does("fetch", json!({"fname": "same.txt"}));
    cleo.waits_for(begun["fetch_id"].as_str().unwrap(), "completed");
}

#[test]
fn what_is_alike_is_found_by_the_registry_and_never_all_of_it() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let mut host = std::net::TcpStream::connect(server.registry()).unwrap();
    let files: serde_json::Map<String, Value> = (0..5_000)
        .map(|n| (format!("of-others-{n}"), json!({"size": 77, "modified": 1000 + n, "is_published": true})))
        .chain([("named".to_owned(), json!({"size": 5, "modified": 9, "is_published": true}))])
        .collect();
    let data = json!({"hostname": "other", "port": 6001, "files_metadata": files});
    host.write_all(format!("{}\n", json!({"action": "REGISTER", "data": data})).as_bytes()).unwrap();
    eventually("the registry to know them", || (server.hosts_of("named") == ["other"]).then_some(()));
    let alike = |data: Value| server.ask("REQUEST", data);
    let found = alike(json!({"fname": "named", "size": 77, "modified": 3500.5}));
    let hosts = found["hosts"].as_array().unwrap();
    assert_eq!(hosts.len(), 100);
    // The most similar first: same size and time, then same name, then same size.
    let names: Vec<&str> = hosts.iter().map(|it| it["fname"].as_str().unwrap()).collect();
    assert_eq!(
        names[..6],
        ["of-others-2498", "of-others-2499", "of-others-2500", "of-others-2501", "of-others-2502", "named"]
    );
    assert_eq!(alike(json!({"fname": "x", "size": 78}))["status"], "NOTFOUND");
    assert!(alike(json!({"fname": "x", "size": "y"}))["reason"].as_str().unwrap().starts_with("size: "));
    let ann = Node::begun(&place, &server, "ann", &[]);
    let found = ann.does("check-duplicate", json!({"fname": "named", "size": 77, "modified": 3500}));
    assert_eq!((&found["has_exact_duplicate"], &found["has_partial_duplicate"]), (&json!(true), &json!(true)));
    assert_eq!(found["partial_matches"][0]["name"], "named", "the same name, of another size");
    assert_eq!(found["partial_matches"][0]["hostname"], "other");
}
