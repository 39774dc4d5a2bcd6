//! Faults: peers, nodes and the registry are killed at the worst moments. In every case a fetch ends with the right
//! content, and published files are available again without any action by a user.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::nodes::{Node, Server, SlowedNode, TestDir, content};
use crate::support::{eventually, scaled};

/// Large enough to be interrupted in the middle.
const LARGE: usize = 40 << 20;

struct Transfer {
    place: TestDir,
    server: Server,
    sender: Node,
    receiver: Node,
    target: PathBuf,
}

impl Transfer {
    fn ready() -> Transfer {
        let place = TestDir::new();
        let server = Server::start(&place, &[]);
        let sender = Node::begun(&place, &server, "ann", &[]);
        let receiver = Node::begun(&place, &server, "bob", &[]);
        sender.publishes(&server, &place.file("large", LARGE));
        fs::create_dir(place.path("shared/got")).unwrap();
        let target = place.path("shared/got/large");
        Transfer { place, server, sender, receiver, target }
    }

    /// Begins a fetch and waits until some of it has arrived. The sender stays slow until the guard is dropped.
    fn begin(&self) -> (String, SlowedNode) {
        let slowed = self.sender.slowed();
        let id = self.receiver.fetches("large", &self.target);
        self.some(&id);
        (id, slowed)
    }

    /// Waits until some, but not all, has arrived.
    fn some(&self, id: &str) {
        let here = eventually("something to come", || {
            let here = self.receiver.progress(id)["downloaded_size"].as_u64().unwrap();
            (here > 0).then_some(here)
        });
        assert!(here < LARGE as u64, "too fast for this test");
    }

    fn ends_well(&self, id: &str) {
        let done = self.receiver.waits_for(id, "completed");
        assert_eq!((&done["verified"], &done["downloaded_size"]), (&json!(true), &json!(LARGE)));
        assert_eq!(fs::read(&self.target).unwrap(), content("large", LARGE));
        let left: Vec<_> = fs::read_dir(self.place.path("shared/got")).unwrap().map(|it| it.unwrap().path()).collect();
        assert_eq!(left, std::slice::from_ref(&self.target));
        let files = self.receiver.shows("local-files")["files"].clone();
        assert_eq!(files[0]["path"], self.target.to_str().unwrap());
    }
}

#[test]
fn a_sender_that_is_killed_comes_back_and_the_fetch_goes_on() {
    let mut transfer = Transfer::ready();
    let (id, slowed) = transfer.begin();
    drop(slowed);
    for _ in 0..scaled(10) {
        let restart = transfer.sender.kill();
        let waiting = eventually("the fetch to wait for the sender", || {
            let progress = transfer.receiver.progress(&id);
            (progress["error"].is_string() || progress["status"] == "completed").then_some(progress)
        });
        if waiting["status"] != "completed" {
            assert!(waiting["error"].as_str().unwrap().contains("ann"), "it names who is offline: {waiting}");
        }
        transfer.sender = restart();
    }
    transfer.ends_well(&id);
}

#[test]
fn a_receiver_that_is_killed_goes_on_by_itself_at_its_next_start() {
    let mut transfer = Transfer::ready();
    let (id, slowed) = transfer.begin();
    for _ in 0..scaled(10) {
        transfer.receiver = transfer.receiver.kill()();
        // The file appears under its name only when complete.
        if let Ok(found) = fs::metadata(&transfer.target) {
            assert_eq!(found.len(), LARGE as u64);
            break;
        }
    }
    drop(slowed);
    transfer.ends_well(&id);
}

#[test]
fn a_paused_fetch_stays_paused_over_a_kill() {
    let mut transfer = Transfer::ready();
    let (id, slowed) = transfer.begin();
    let paused = transfer.receiver.does(&format!("fetches/{id}/pause"), json!({}))["progress"].clone();
    assert_eq!(paused["status"], "paused", "{paused}");
    drop(slowed);
    transfer.receiver = transfer.receiver.kill()();
    let still = transfer.receiver.progress(&id);
    assert_eq!(still["status"], "paused", "{still}");
    assert!(still["downloaded_size"].as_u64().unwrap() > 0, "{still}");
    transfer.receiver.does(&format!("fetches/{id}/resume"), json!({}));
    transfer.ends_well(&id);
}

#[test]
fn a_fetch_does_not_go_on_outside_the_folders_that_are_shared_now() {
    let mut transfer = Transfer::ready();
    let (id, slowed) = transfer.begin();
    fs::create_dir(transfer.place.path("other")).unwrap();
    let other = transfer.place.path("other");
    let token = transfer.receiver.token.clone();
    assert_eq!(transfer.receiver.stop(), 0);
    drop(slowed);
    let start = |folder: Option<&Path>| {
        let args: Vec<&str> = folder.map_or(Vec::new(), |folder| vec!["--folder", folder.to_str().unwrap()]);
        let mut node = Node::start(&transfer.place, &transfer.server, "bob", &args);
        node.token = token.clone();
        node
    };
    let node = start(Some(&other));
    let failed = node.waits_for(&id, "failed");
    assert!(failed["error"].as_str().unwrap().contains("is outside the folders"), "{failed}");
    node.refuses(&format!("fetches/{id}/resume"), json!({}), 403);
    assert!(!transfer.target.exists());
    // Once it may be written again, the fetch resumes with what has arrived.
    assert_eq!(node.stop(), 0);
    transfer.receiver = start(None);
    transfer.receiver.does(&format!("fetches/{id}/resume"), json!({}));
    transfer.ends_well(&id);
}

#[test]
fn a_registry_that_is_killed_while_files_are_fetched_harms_no_fetch() {
    let mut transfer = Transfer::ready();
    let (id, slowed) = transfer.begin();
    let restart = transfer.server.kill();
    drop(slowed);
    transfer.ends_well(&id);
    transfer.server = restart();
    eventually("all to be published again", || (transfer.server.hosts_of("large") == ["ann"]).then_some(()));
}

#[test]
fn a_registry_that_lost_everything_is_told_everything_again() {
    let place = TestDir::new();
    let mut server = Server::start(&place, &[]);
    let ann = Node::begun(&place, &server, "ann", &[]);
    for name in ["a", "b", "c"] {
        ann.publishes(&server, &place.file(name, 10));
    }
    ann.does("unpublish", json!({"fname": "b"}));
    let restart = server.kill();
    // While the registry is down, requests that need it say so, and the rest works.
    let reason = ann.refuses("publish", json!({"fname": "b"}), 503);
    assert!(reason.contains("registry"), "{reason}");
    assert_eq!(ann.get("network-files").0, 503);
    assert_eq!(ann.shows("local-files")["files"].as_array().unwrap().len(), 3);
    eventually("it to be seen", || (ann.shows("status")["client"]["state"] == "disconnected").then_some(()));
    for ending in ["", "-wal", "-shm"] {
        match fs::remove_file(place.path(&format!("server/registry.db{ending}"))) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
            _ => {}
        }
    }
    // It does not start with an empty database without the operator's consent.
    let accepted = std::process::Command::new(env!("CARGO_BIN_EXE_p2s2"))
        .args(["admin", "accept-loss", "registry.db", "--data-dir"])
        .arg(place.path("server"))
        .output()
        .unwrap();
    assert!(accepted.status.success(), "{accepted:?}");
    server = restart();
    eventually("all to be published again", || {
        let has = |name: &str| server.hosts_of(name) == ["ann"];
        (has("a") && has("c")).then_some(())
    });
    assert_eq!(server.hosts_of("b"), [""; 0], "what was not to be published is not");
    eventually("it to be seen", || (ann.shows("status")["client"]["state"] == "active").then_some(()));
    // Including the digests.
    ann.is_hashed(&server, "a");
}

#[test]
fn a_node_that_is_killed_has_all_that_it_answered() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let mut ann = Node::begun(&place, &server, "ann", &[]);
    for round in 0..scaled(20) {
        let name = format!("file-{round}");
        ann.does("publish", json!({"fname": name, "local_path": place.file(&name, 100 + round)}));
        if round % 2 == 1 {
            ann.does("unpublish", json!({"fname": name}));
        }
        ann = ann.kill()();
        let files = ann.shows("local-files")["files"].clone();
        let files = files.as_array().unwrap();
        assert_eq!(files.len(), round + 1);
        let published = files.iter().filter(|file| file["is_published"] == true).count();
        assert_eq!(published, round / 2 + 1);
    }
    eventually("the newest to be known", || (server.hosts_of("file-0") == ["ann"]).then_some(()));
}

#[test]
fn a_receiver_that_is_killed_when_the_file_was_in_its_place_has_fetched_it() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let ann = Node::begun(&place, &server, "ann", &[]);
    let mut bob = Node::begun(&place, &server, "bob", &[]);
    ann.publishes(&server, &place.file("small", 10));
    let target = place.path("shared/got");
    let id = bob.fetches("small", &target);
    bob.waits_for(&id, "completed");
    // A small file may arrive before any progress is seen.
    for status in ["pending", "downloading"] {
        let restart = bob.kill();
        let store = rusqlite::Connection::open(place.path("state-bob/share.db")).unwrap();
        store.execute("UPDATE share_fetch SET status = ?1, downloaded_size = 0", [status]).unwrap();
        assert_eq!(store.execute("DELETE FROM share_file", []).unwrap(), 1);
        drop(store);
        bob = restart();
        bob.waits_for(&id, "completed");
        assert_eq!(bob.shows("local-files")["files"][0]["path"], target.to_str().unwrap(), "{status}");
    }
}
