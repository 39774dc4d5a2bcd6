//! Data dirs with a missing or outdated file: no money must be lost or moved because of it.

use std::fs;
use std::path::Path;

use rusqlite::Connection;
use serde_json::json;

use crate::disk::assert_refused;
use crate::support::{DECLINED_CARD, GOOD_CARD, Peer, Server, program, reserved, settle};

/// Makes a purchase between two new peers for this many dollars; returns whether it was paid.
fn purchase(server: &Server, tag: &str, dollars: f64, card: &str) -> bool {
    let (mut seller, mut buyer) =
        (Peer::new(server, &format!("seller {tag}")), Peer::new(server, &format!("buyer {tag}")));
    let rq = buyer.look_for(tag, dollars);
    let sold = seller.push_of("SEARCH", tag)["rq"].as_u64().unwrap();
    let answer = seller.ask_rq("OFFER", sold, json!({"item_name": tag, "price": dollars}));
    assert_eq!(answer["type"], "OFFERED", "{answer}");
    let (bought, _) = settle(&mut buyer, rq, &mut seller, card);
    let ended = buyer.ended(rq);
    for (peer, rq) in [(&mut buyer, rq), (&mut seller, sold)] {
        let answer = peer.ask("DE-REGISTER", json!({}));
        assert_eq!(answer["type"], "DE-REGISTERED", "{answer} {rq}");
    }
    let is_paid = ended["state"] == "completed";
    assert_eq!(bought.last().unwrap()["type"] == "RECEIPT", is_paid, "{bought:?} {ended}");
    is_paid
}

/// The bank's charges: deal number, state, cents.
fn charges(state: &Path) -> Vec<(u64, String, Option<i64>)> {
    let bank = Connection::open(state.join("bank.db")).unwrap();
    let mut found = bank.prepare("SELECT charge_key, state, cents FROM charge").unwrap();
    let rows = found.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?))).unwrap();
    let mut all: Vec<_> = rows
        .map(Result::unwrap)
        .map(|(key, state, cents)| (key.strip_prefix("trade-").unwrap().parse().unwrap(), state, cents))
        .collect();
    all.sort();
    all
}

/// The data dir of a server that has sold one lamp and stopped.
fn sold_one() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_in(dir.path(), &[], &[]);
    assert!(purchase(&server, "lamp", 40.0, GOOD_CARD));
    assert_eq!(server.stop(), 0);
    dir
}

/// Accepts the loss of a file.
fn accept_loss(state: &Path, file: &str) {
    let output = program("admin").args(["accept-loss", file, "--data-dir"]).arg(state).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Gives a store the identity that the manifest expects.
fn as_one_of(state: &Path, file: &str) {
    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(state.join("manifest.json")).unwrap()).unwrap();
    let id = manifest["stores"].as_array().unwrap().iter().find(|store| store["file"] == file).unwrap()["id"].clone();
    let store = Connection::open(state.join(file)).unwrap();
    store.execute("UPDATE store_identity SET id = ?1", [id.as_str().unwrap()]).unwrap();
}

#[test]
fn without_trades_file_no_server_starts_beside_what_is_left() {
    let dir = sold_one();
    let state = dir.path().join("state");
    let whole = fs::read(state.join("trade.db")).unwrap();
    let (bank, identity) = (fs::read(state.join("bank.db")).unwrap(), fs::read(state.join("identity.pem")).unwrap());
    for left in [["bank.db", "identity.pem"], ["bank.db", ""], ["", "identity.pem"]] {
        for (file, bytes) in [("bank.db", &bank), ("identity.pem", &identity)] {
            fs::write(state.join(file), bytes).unwrap();
            if !left.contains(&file) {
                fs::remove_file(state.join(file)).unwrap();
            }
        }
        fs::write(state.join("trade.db"), "").unwrap();
        assert_refused(&state, &["trade.db", "missing or empty", "restore a backup", "accept-loss trade.db"]);
        fs::remove_file(state.join("trade.db")).unwrap();
        assert_refused(&state, &["trade.db", "missing or empty", "restore a backup", "accept-loss trade.db"]);
    }
    // With all files restored the server starts again.
    for (file, bytes) in [("trade.db", &whole), ("bank.db", &bank), ("identity.pem", &identity)] {
        fs::write(state.join(file), bytes).unwrap();
    }
    let server = Server::start_in(dir.path(), &[], &[]);
    assert_eq!(server.balance_cents("payout:seller lamp"), 3_600);
    assert_eq!(server.stop(), 0);
}

#[test]
fn trade_begins_beside_what_other_services_made_before() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let identity = state.join("identity.pem");
    let before = Server::start_in(dir.path(), &["--tls", "--registry-port", "0"], &[("P2S2_SERVER_SERVICES", "share")]);
    assert_eq!(before.stop(), 0);
    let made = fs::read(&identity).unwrap();
    let server = Server::start_in(dir.path(), &["--tls"], &[]);
    assert!(purchase(&server, "lamp", 40.0, GOOD_CARD));
    assert_eq!(server.stop(), 0);
    assert_eq!(fs::read(&identity).unwrap(), made, "who knows it knows it still");
    // A certificate that trade itself created is still a sign of a missing store.
    fs::remove_file(state.join("trade.db")).unwrap();
    assert_refused(&state, &["trade.db", "missing or empty", "accept-loss"]);
}

#[test]
fn without_the_banks_file_no_server_starts_once_money_has_moved() {
    let dir = sold_one();
    let state = dir.path().join("state");
    let bank = fs::read(state.join("bank.db")).unwrap();
    fs::write(state.join("bank.db"), "").unwrap();
    assert_refused(&state, &["bank.db", "missing or empty", "restore a backup"]);
    fs::remove_file(state.join("bank.db")).unwrap();
    assert_refused(&state, &["bank.db", "missing or empty", "restore a backup"]);
    fs::write(state.join("bank.db"), bank).unwrap();
    assert_eq!(Server::start_in(dir.path(), &[], &[]).stop(), 0);
}

#[test]
fn a_first_start_that_was_cut_off_is_no_loss() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    assert_eq!(Server::start_in(dir.path(), &[], &[]).stop(), 0);
    // The stores in the order of their creation, interrupted before each: planned in the manifest, but missing or
    // empty.
    for cut in [&["users.db"][..], &["bank.db", "users.db"], &["trade.db", "bank.db", "users.db"]] {
        let path = state.join("manifest.json");
        let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for store in manifest["stores"].as_array_mut().unwrap() {
            if cut.contains(&store["file"].as_str().unwrap()) {
                store["state"] = json!("making");
            }
        }
        fs::write(&path, manifest.to_string()).unwrap();
        for file in cut {
            fs::remove_file(state.join(file)).unwrap();
            fs::remove_file(state.join(format!("{file}-mark"))).unwrap();
        }
        fs::write(state.join(cut[0]), "").unwrap();
        fs::remove_file(state.join("identity.pem")).unwrap();
        let server = Server::start_in(dir.path(), &[], &[]);
        assert!(!server.log().contains("WARN"), "{}", server.log());
        assert_eq!(server.stop(), 0);
    }
    // Interrupted before the manifest was written.
    fs::remove_dir_all(&state).unwrap();
    fs::create_dir(&state).unwrap();
    fs::write(state.join("manifest.json-new"), "{").unwrap();
    assert_eq!(Server::start_in(dir.path(), &[], &[]).stop(), 0);
}

#[test]
fn a_new_certificate_among_peers_who_know_the_former_one_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let server = Server::start_in(dir.path(), &[], &[]);
    Peer::new(&server, "alice");
    assert_eq!(server.stop(), 0);
    fs::remove_file(state.join("identity.pem")).unwrap();
    let server = Server::start_in(dir.path(), &[], &[]);
    assert!(server.log().contains("WARN") && server.log().contains("identity.pem was missing"), "{}", server.log());
    assert_eq!(server.stop(), 0);
}

#[test]
fn beside_an_older_file_of_trade_no_charge_is_taken_for_another() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let server = Server::start_in(dir.path(), &[], &[]);
    Peer::new(&server, "someone");
    assert_eq!(server.stop(), 0);
    let older = fs::read(state.join("trade.db")).unwrap();
    let server = Server::start_in(dir.path(), &[], &[]);
    // Enough deals that numbers starting again from the old value would collide with these.
    for n in 0..3 {
        assert!(purchase(&server, &format!("lamp {n}"), 40.0, GOOD_CARD));
    }
    assert!(!server.log().contains("older than the bank's"), "{}", server.log());
    assert_eq!(server.stop(), 0);
    let first = charges(&state);
    assert_eq!(first.len(), 3);

    fs::write(state.join("trade.db"), older).unwrap();
    assert_refused(&state, &["trade.db", "has lost changes", "accept-loss trade.db"]);
    accept_loss(&state, "trade.db");
    let server = Server::start_in(dir.path(), &[], &[]);
    assert!(server.log().contains("older than the bank's"), "{}", server.log());
    assert!(!purchase(&server, "oven", 45.0, DECLINED_CARD), "sold for a card that must be declined");
    assert!(purchase(&server, "lamp", 40.0, GOOD_CARD));
    // The new numbers are on disk, and the warning is not repeated.
    let server = server.kill_and_restart();
    assert_eq!(server.log().matches("older than the bank's").count(), 1, "{}", server.log());
    assert!(purchase(&server, "lamp too", 40.0, GOOD_CARD));
    assert_eq!(server.balance_cents("fee"), 800);
    assert_eq!(server.stop(), 0);
    let all = charges(&state);
    let highest = first.iter().map(|(deal, ..)| *deal).max().unwrap();
    let (before, after): (Vec<_>, Vec<_>) = all.into_iter().partition(|(deal, ..)| *deal <= highest);
    assert_eq!(before, first, "a former charge was touched");
    let states: Vec<_> = after.iter().map(|(_, state, cents)| (state.as_str(), *cents)).collect();
    assert_eq!(states, [("declined", Some(4_500)), ("captured", Some(4_000)), ("captured", Some(4_000))]);
}

#[test]
fn a_settlement_that_an_older_file_of_trade_remembers_is_brought_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let server = Server::start_in(dir.path(), &["--settle-timeout", "60s"], &[]);
    let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    let (rq, sold) = reserved(&mut bob, &mut alice, "lamp", 40.0);
    let port = server.addr.port().to_string();
    assert_eq!(crate::support::buy(&mut bob, rq, "lamp", 40.0)["type"], "BUYING");
    let (mut seller, mut buyer) = (alice.accept_settlement(), bob.accept_settlement());
    // Only BUY is on disk at this point: this becomes the older file.
    let older = tempfile::tempdir().unwrap();
    let archive = older.path().join("older.tar");
    assert!(server.admin(&["backup", archive.to_str().unwrap()]).status.success());
    for (line, peer, rq) in [(&mut buyer, &bob, rq), (&mut seller, &alice, sold)] {
        assert_eq!(line.read().unwrap()["type"], "INFORM_REQ");
        line.write(&peer.inform_res(rq, GOOD_CARD));
    }
    assert_eq!(seller.read().unwrap()["type"], "SHIPPING_INFO");
    seller.write(&json!({"type": "SHIPPED", "rq": sold}));
    assert_eq!(buyer.read().unwrap()["type"], "RECEIPT");
    assert_eq!(server.stop(), 0);
    let again = older.path().join("state");
    let restored = crate::support::program("admin").arg("restore").arg(&archive).arg("--data-dir").arg(&again).output();
    assert!(restored.unwrap().status.success());
    fs::copy(again.join("trade.db"), state.join("trade.db")).unwrap();
    // A restored store has a different identity.
    assert_refused(&state, &["trade.db", "of another data dir"]);
    as_one_of(&state, "trade.db");
    assert_refused(&state, &["trade.db", "has lost changes"]);
    accept_loss(&state, "trade.db");
    // The bank decides: the deal was paid, at this price.
    let server = Server::start_in(dir.path(), &["--trade-port", &port], &[]);
    assert_eq!(bob.ended(rq)["state"], "completed");
    assert_eq!(server.balance_cents("payout:alice"), 3_600);
    assert_eq!(server.stop(), 0);
}
