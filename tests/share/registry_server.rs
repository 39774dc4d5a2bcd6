//! The registry of a real `p2s2 server`: hostnames of users, and its state after a kill.

use serde_json::{Value, json};

use crate::registry_harness::{Client, registration};
use crate::server_api::{ServerProcess, post};
use crate::support::scaled;

fn registry_of(node: &ServerProcess) -> Client {
    Client::connect(node.registry.unwrap())
}

fn sign_up(node: &ServerProcess, username: &str) -> String {
    let account = json!({"username": username, "password": "a long secret", "display_name": "X"});
    let (status, answer) = post(node.api, "/api/user/register", &account);
    assert_eq!(answer["success"], true, "{status} {answer}");
    answer["token"].as_str().unwrap().to_owned()
}

#[test]
fn an_account_takes_its_name_from_a_stranger() {
    let dir = tempfile::tempdir().unwrap();
    let node = ServerProcess::start(dir.path(), &[], &[]);
    let mut stranger = registry_of(&node);
    let secret = stranger.register("ann", json!({}));
    stranger.publish("ann", "a", 1);
    let token = sign_up(&node, "ann");
    assert!(stranger.hosts("a").is_empty());
    let publish = json!({"hostname": "ann", "fname": "b", "size": 1, "modified": 2});
    assert!(stranger.refused("PUBLISH", publish).starts_with("token: "));
    let forged = format!("{}x", &token[..token.len() - 1]);
    let none = token.split('.').nth(1).map(|claims| format!("eyJhbGciOiJub25lIn0.{claims}.")).unwrap();
    let bobs = sign_up(&node, "bob");
    for more in
        [json!({}), json!({"resume": secret}), json!({"token": forged}), json!({"token": none}), json!({"token": bobs})]
    {
        let reason = stranger.refused("REGISTER", registration("ann", more.clone()));
        assert!(reason.starts_with("token: "), "{more}: {reason}");
    }
    let mut ann = registry_of(&node);
    ann.register("ann", json!({"token": token, "ip": "198.51.100.7"}));
    ann.publish("ann", "a", 1);
    assert_eq!(stranger.hosts("a"), ["ann"]);
}

#[test]
fn killed_under_load_it_has_what_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = ServerProcess::start(dir.path(), &[], &[]);
    let token = sign_up(&node, "ann");
    let mut acknowledged: Vec<String> = Vec::new();
    let mut files: serde_json::Map<String, Value> = serde_json::Map::new();
    for round in 0..scaled(20) {
        let mut ann = registry_of(&node);
        // The whole list again, as a node sends it when it reconnects.
        ann.register("ann", json!({"token": token, "files_metadata": files}));
        for n in 0..20 {
            let fname = format!("{round}-{n}");
            ann.publish("ann", &fname, 1);
            files.insert(fname.clone(), crate::registry_harness::file(1, true));
            acknowledged.push(fname);
        }
        // One more is in progress.
        ann.send(r#"{"action":"PUBLISH","data":{"hostname":"ann","fname":"late","size":1,"modified":2}}"#);
        drop(node);
        node = ServerProcess::start(dir.path(), &[], &[]);
        let mut looks = registry_of(&node);
        let shown = looks.expect("DISCOVER", json!({"hostname": "ann"}), "OK");
        let shown = shown["files"].as_object().unwrap();
        assert!(acknowledged.iter().all(|fname| shown.contains_key(fname)));
        assert!((acknowledged.len()..=acknowledged.len() + 1).contains(&shown.len()), "at most the late one besides");
        let stolen = looks.refused("REGISTER", registration("ann", json!({})));
        assert!(stolen.starts_with("token: "), "{stolen}");
    }
}
