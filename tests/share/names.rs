//! Names that only an earlier version accepted, and names that have two spellings.

use rusqlite::Connection;
use serde_json::json;

use crate::nodes::{Node, Server, TestDir, content, http};
use crate::support::{eventually, program};

const COMPOSED: &str = "Zo\u{eb}";
const APART: &str = "Zoe\u{308}";

/// Creates an account at the server itself.
fn account(server: &Server, username: &str) {
    let body = json!({"username": username, "password": "correct horse"});
    let (status, answer) = http(server.api(), "POST", "/api/user/register", None, Some(&body));
    assert_eq!(status, 200, "{answer}");
}

/// Runs a command that must succeed; returns its output.
#[track_caller]
fn says(place: &TestDir, words: &[&str]) -> String {
    let output = program("share")
        .args(words)
        .env("HOME", place.path(""))
        .env("XDG_CONFIG_HOME", place.path("config"))
        .env_remove("XDG_STATE_HOME")
        .env("P2S2_PASSWORD", "correct horse")
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (said, error) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(0), "{words:?}: {said}{error}");
    said
}

#[test]
fn an_account_and_its_node_may_be_spelled_differently() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    account(&server, COMPOSED);
    let mut node = Node::start(&place, &server, APART, &[]);
    for spelled in [COMPOSED, APART] {
        let answer = node.does("login", json!({"username": spelled, "password": "correct horse"}));
        assert_eq!(answer["user"]["username"], COMPOSED, "as it was given when the account was made");
        node.token = answer["token"].as_str().map(str::to_owned);
        node.does("init", json!({ "username": spelled }));
    }
    node.does("publish", json!({"fname": "a", "local_path": place.file("a", 10)}));
    let resume = || -> Option<String> {
        let store = Connection::open(place.path(&format!("state-{APART}/share.db"))).unwrap();
        store.query_row("SELECT resume FROM share_user", [], |row| row.get(0)).unwrap()
    };
    assert!(resume().is_some(), "the secret that gives the hostname back is kept");
    // After a restart that secret alone gets it back: no token outlives the process.
    let node = node.kill()();
    eventually("the node to take part", || {
        let state = node.shows("status")["client"]["state"].clone();
        (state == "active" || state == "idle").then_some(())
    });
    assert_eq!(node.shows("local-files")["files"].as_array().map(Vec::len), Some(1));
    // On the command line, too: by name, and by port.
    let port = node.api().port().to_string();
    for (login, named) in [(COMPOSED, APART), (APART, COMPOSED)] {
        says(&place, &["login", login, "--name", named]);
        for words in [&["status", "--name", login][..], &["status", "--name", named, "--api-port", &port]] {
            assert!(says(&place, words).contains("is active"), "{words:?}");
        }
    }
    says(&place, &["logout", "--name", COMPOSED]);
    let kept = std::fs::read_dir(place.path("config/p2s2")).unwrap();
    let tokens = kept.filter(|entry| std::fs::read_to_string(entry.as_ref().unwrap().path()).unwrap().contains("eyJ"));
    assert_eq!(tokens.count(), 0, "none is left under another spelling");
}

#[test]
fn an_account_of_an_earlier_version_takes_part_under_names_that_are_none_any_more() {
    const HIDDEN: &str = "ann\u{200f}";
    let place = TestDir::new();
    let mut server = Server::start(&place, &[]);
    account(&server, "ann");
    let again = server.kill();
    let users = Connection::open(place.path("server/users.db")).unwrap();
    let changed = users.execute("UPDATE users SET username = ?1, display_name = 'Ann\u{200b}'", [HIDDEN]).unwrap();
    assert_eq!(changed, 1);
    drop(users);
    let server = again();
    let mut node = Node::start(&place, &server, HIDDEN, &[]);
    let answer = node.does("login", json!({"username": HIDDEN, "password": "correct horse"}));
    node.token = answer["token"].as_str().map(str::to_owned);
    node.does("init", json!({ "username": HIDDEN }));
    node.publishes(&server, &place.file("a", 10));
    // Others find it, request it by its name, and fetch from it.
    let bob = Node::begun(&place, &server, "bob", &[]);
    assert_eq!(bob.shows("ping/ann%E2%80%8F")["status"], "ALIVE");
    assert!(bob.shows("discover/ann%E2%80%8F")["files"]["a"].is_object());
    let to = place.path("shared/b");
    let begun = bob.does("fetch", json!({"fname": "a", "owner_hostname": HIDDEN, "save_path": to}));
    bob.waits_for(begun["fetch_id"].as_str().unwrap(), "completed");
    assert_eq!(std::fs::read(&to).unwrap(), content("a", 10));
    // Nobody else may have such a name.
    let refused = server.ask("REGISTER", json!({"hostname": "bob\u{200b}", "port": 6001}));
    assert_eq!(refused, json!({"status": "ERROR", "reason": "hostname: expected no characters that cannot be seen"}));
    let refused = server.ask("REGISTER", json!({"hostname": HIDDEN, "port": 6001}));
    assert!(refused["reason"].as_str().unwrap().starts_with("token: "), "{refused}");
}

#[test]
fn two_accounts_of_one_name_in_two_spellings_have_nothing_of_each_other() {
    let place = TestDir::new();
    let mut server = Server::start(&place, &[]);
    account(&server, APART);
    let again = server.kill();
    let users = Connection::open(place.path("server/users.db")).unwrap();
    // Inserted the way an earlier version created the second; it also comes after the first in file order.
    let sql = "INSERT INTO users (username, display_name, password, created_at)
        SELECT ?1, 'Second', password, created_at + 1 FROM users";
    assert_eq!(users.execute(sql, [COMPOSED]).unwrap(), 1);
    drop(users);
    let server = again();
    let token = |username: &str| {
        let body = json!({"username": username, "password": "correct horse"});
        let (status, answer) = http(server.api(), "POST", "/api/user/login", None, Some(&body));
        assert_eq!((status, &answer["user"]["username"]), (200, &json!(username)));
        answer["token"].as_str().unwrap().to_owned()
    };
    let (first, second) = (token(APART), token(COMPOSED));
    let mut node = Node::start(&place, &server, "bob", &[]);
    node.token = Some(first.clone());
    node.does("init", json!({ "username": APART }));
    let repo = node.shows("status")["client"]["repo"].as_str().unwrap().to_owned();
    std::fs::write(format!("{repo}/a"), "a").unwrap();
    node.does("publish", json!({"fname": "a", "local_path": format!("{repo}/a")}));
    // Refused at this node, at a node of its own, and at the registry.
    node.token = Some(second.clone());
    assert!(node.refuses("init", json!({ "username": COMPOSED }), 409).contains("another account"));
    assert_eq!(node.get("local-files").0, 409);
    node.refuses("login", json!({"username": COMPOSED, "password": "correct horse"}), 409);
    let mut own = Node::start(&place, &server, "cid", &[]);
    own.token = Some(second.clone());
    assert!(own.refuses("init", json!({ "username": COMPOSED }), 409).contains("token"));
    for hostname in [COMPOSED, APART] {
        let refused = server.ask("REGISTER", json!({"hostname": hostname, "port": 6001, "token": second}));
        assert!(refused["reason"].as_str().unwrap().starts_with("token: "), "{refused}");
    }
    node.token = Some(first);
    assert_eq!(node.shows("local-files")["files"].as_array().map(Vec::len), Some(1));
    assert_eq!(server.hosts_of("a"), [APART]);
}
