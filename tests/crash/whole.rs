//! A data dir must be complete: each store that is lost or damaged in any way is refused by name, and its loss can be
//! accepted.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Output;

use p2s2::internals::storage::{Store, StoreError};
use p2s2::internals::{bank, identity, share, shop, trade};
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::disk::lasting;
use crate::support::{Server, program};

const PORTS: [&str; 6] =
    ["--product-port", "--customer-port", "--seller-port", "--buyer-port", "--registry-port", "--trade-port"];

/// Each store of a server with all services, with its migrations.
const STORES: [(&str, &[&str]); 7] = [
    ("trade.db", trade::store::MIGRATIONS),
    ("bank.db", bank::MIGRATIONS),
    ("product.db", shop::product::MIGRATIONS),
    ("customer.db", shop::customer::MIGRATIONS),
    ("shop-bank.db", bank::MIGRATIONS),
    ("users.db", identity::users::MIGRATIONS),
    ("registry.db", share::registry::store::MIGRATIONS),
];

fn args() -> Vec<&'static str> {
    PORTS.iter().flat_map(|port| [*port, "0"]).collect()
}

const ALL: [(&str, &str); 1] = [("P2S2_SERVER_SERVICES", "trade,shop,share")];

fn start_server(dir: &Path) -> Server {
    Server::start_in(dir, &args(), &ALL)
}

/// Checks for one error line that names the file and the remedy, exit code 1, and unchanged files except scratch.
fn assert_refused(state: &Path, file: &str, said: &str) {
    let before = lasting(state);
    let mut command = program("server");
    command.args(args()).arg("--data-dir").arg(state).envs(ALL);
    let Output { status, stderr, .. } = command.output().unwrap();
    let text = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{file} {said}: {text}");
    let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{text}");
    let way_out = format!("p2s2 admin accept-loss {file} --data-dir {}", state.display());
    for word in [file, said, "restore a backup", &way_out] {
        assert!(errors[0].contains(word), "{file}: {word:?} is not in {text}");
    }
    let after = lasting(state);
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>(), "files came or went");
    for (path, bytes) in &before {
        assert!(after[path] == *bytes, "{} was changed", path.display());
    }
}

fn accept_loss(state: &Path, file: &str) -> Output {
    program("admin").args(["accept-loss", file, "--json", "--data-dir"]).arg(state).output().unwrap()
}

fn accept_loss_ok(state: &Path, file: &str) -> Value {
    let output = accept_loss(state, file);
    assert_eq!(output.status.code(), Some(0), "{file}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

type Files = BTreeMap<String, Vec<u8>>;

/// The files that a server finds, the changed file and its new contents (`None`: deleted), the expected error, and the
/// expected result of accept-loss.
type LossCase<'a> = (&'a Files, &'a str, Option<Vec<u8>>, &'a str, &'a str);

/// Three successive states of a data dir.
struct StateSnapshots {
    /// After the first start.
    older: Files,
    /// Each store has changed since and was closed in order.
    newer: Files,
    /// Each store has changed once more, as a kill leaves it: the change is only in the log.
    killed: Files,
}

fn read(state: &Path) -> Files {
    let entries = fs::read_dir(state).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    entries.map(|path| (name(&path), fs::read(&path).unwrap())).filter(|(name, _)| !name.ends_with("-shm")).collect()
}

/// Writes the files to a new folder.
fn restore_files(files: &Files) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    fs::create_dir(&state).unwrap();
    for (name, bytes) in files {
        fs::write(state.join(name), bytes).unwrap();
    }
    dir
}

impl StateSnapshots {
    fn new() -> StateSnapshots {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        assert_eq!(start_server(dir.path()).stop(), 0);
        let older = read(&state);
        let change = |store: &Store| store.write(|_tx| Ok::<_, StoreError>(())).unwrap();
        for (file, migrations) in STORES {
            change(&Store::open(&state.join(file), migrations).unwrap());
        }
        let newer = read(&state);
        let open: Vec<Store> =
            STORES.map(|(file, migrations)| Store::open(&state.join(file), migrations).unwrap()).into();
        open.iter().for_each(change);
        // The mark file is written after the response; syncing ensures that no work is pending.
        open.iter().for_each(Store::sync_all);
        let killed = crate::support::eventually("the marks", || {
            let files = read(&state);
            STORES.iter().all(|(file, _)| files[&mark(file)] != newer[&mark(file)]).then_some(files)
        });
        StateSnapshots { older, newer, killed }
    }
}

fn mark(file: &str) -> String {
    format!("{file}-mark")
}

#[test]
fn each_store_lost_in_each_way_is_refused_by_name_and_can_be_given_up() {
    let snapshots = StateSnapshots::new();
    let other = StateSnapshots::new();
    for (place, (file, _)) in STORES.iter().enumerate() {
        let name = (*file).to_owned();
        let (wal, neighbour) = (format!("{file}-wal"), STORES[(place + 1) % STORES.len()].0);
        let page = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes[4096..8192].fill(0x5a);
            bytes
        };
        let header = |at: usize, with: u8| {
            let mut bytes = snapshots.newer[*file].clone();
            bytes[at] = with;
            bytes
        };
        let flipped_log = || {
            let mut bytes = snapshots.killed[&wal].clone();
            bytes[24] ^= 1;
            bytes
        };
        let ways: Vec<LossCase<'_>> = vec![
            (&snapshots.newer, file, None, "missing or empty", "anew"),
            (&snapshots.newer, file, Some(Vec::new()), "missing or empty", "anew"),
            (&snapshots.newer, file, Some(other.newer[*file].clone()), "of another data dir", "anew"),
            (&snapshots.newer, file, Some(snapshots.newer[neighbour].clone()), neighbour, "anew"),
            (&snapshots.newer, file, Some(page(&snapshots.newer[*file])), "damaged", "anew"),
            (&snapshots.newer, file, Some(b"no database at all".to_vec()), "not a database", "anew"),
            // Damaged header: the schema version, and the application id.
            (&snapshots.newer, file, Some(header(60, 0x7f)), "damaged", "anew"),
            (&snapshots.newer, file, Some(header(68, 0x7f)), "header is damaged", "anew"),
            (&snapshots.newer, file, Some(snapshots.older[*file].clone()), "has lost changes", "kept"),
            (&snapshots.killed, &wal, None, "has lost changes", "kept"),
            (&snapshots.killed, &wal, Some(flipped_log()), "has lost changes", "kept"),
            (&snapshots.killed, file, None, "its log beside it", "anew"),
        ];
        for (way, (files, what, becomes, said, outcome)) in ways.into_iter().enumerate() {
            let mut files = files.clone();
            match becomes {
                Some(bytes) => files.insert(what.to_owned(), bytes),
                None => files.remove(what),
            };
            let spoilt = files.get(what).cloned();
            let dir = restore_files(&files);
            let state = dir.path().join("state");
            assert_refused(&state, file, said);
            let answer = accept_loss_ok(&state, file);
            assert_eq!(
                (&answer["accepted"], &answer["became"]),
                (&json!(name), &json!(outcome)),
                "way {way}: {answer}"
            );
            if let (Some(spoilt), "anew") = (&spoilt, outcome) {
                let aside = answer["aside"][0].as_str().unwrap();
                assert!(fs::read(aside).unwrap() == *spoilt, "way {way}: what was left is kept");
            }
            // A second accept-loss is refused, and a server starts, once and again. (Only for some cases, to save
            // time.)
            if way % 4 == place % 4 {
                let server = start_server(dir.path());
                assert_eq!(server.stop(), 0);
                let refused = accept_loss(&state, file);
                let text = String::from_utf8_lossy(&refused.stderr).into_owned();
                assert!(refused.status.code() == Some(1) && text.contains("is whole"), "{text}");
                let restarted = start_server(dir.path());
                let refused = accept_loss(&state, file);
                let text = String::from_utf8_lossy(&refused.stderr).into_owned();
                assert!(refused.status.code() == Some(1) && text.contains("in use by process"), "{text}");
                assert_eq!(restarted.stop(), 0);
            }
        }
    }
}

#[test]
fn a_mark_that_a_power_cut_has_spoilt_refuses_nothing() {
    let snapshots = StateSnapshots::new();
    for how in 0..3 {
        let mut files = snapshots.killed.clone();
        for (file, _) in STORES {
            let whole = files[&mark(file)].clone();
            let spoilt = match how {
                0 => Vec::new(),
                1 => whole[..whole.len() / 2].to_vec(),
                _ => vec![0; whole.len()],
            };
            files.insert(mark(file), spoilt);
        }
        let dir = restore_files(&files);
        let server = start_server(dir.path());
        let warned = server.log().matches("cannot be read as the mark of this store").count();
        assert!(warned > 0, "{}", server.log());
        assert_eq!(server.stop(), 0);
        // The mark file was recreated, so later losses are detected.
        let state = dir.path().join("state");
        fs::write(state.join("customer.db"), &snapshots.older["customer.db"]).unwrap();
        assert_refused(&state, "customer.db", "has lost changes");
    }
}

/// A mark file is created durably and never removed. If a store without it were accepted, a lost log would go
/// unnoticed, and one seller's items could become another's.
#[test]
fn a_store_without_its_mark_is_refused_until_that_is_accepted() {
    let snapshots = StateSnapshots::new();
    for (file, _) in STORES {
        let mut files = snapshots.killed.clone();
        files.remove(&mark(file)).unwrap();
        assert_refused(&restore_files(&files).path().join("state"), file, "-mark is missing");
        files.remove(&format!("{file}-wal"));
        assert_refused(&restore_files(&files).path().join("state"), file, "");
    }
    let mut files = snapshots.killed.clone();
    files.remove(&mark("customer.db")).unwrap();
    let dir = restore_files(&files);
    let state = dir.path().join("state");
    let given_up = program("admin").args(["accept-loss", "customer.db", "--data-dir"]).arg(&state).output().unwrap();
    assert_eq!(given_up.status.code(), Some(0), "{given_up:?}");
    assert_eq!(start_server(dir.path()).stop(), 0);
    assert!(state.join("customer.db-mark").exists());
}

#[test]
fn a_data_dir_of_an_earlier_version_gets_its_manifest_once_all_is_there() {
    let snapshots = StateSnapshots::new();
    let mut files = snapshots.newer.clone();
    files
        .retain(|name, _| !name.ends_with("-mark") && !name.ends_with("manifest.json") && !name.ends_with("-manifest"));
    let dir = restore_files(&files);
    let state = dir.path().join("state");
    for (file, _) in STORES {
        Connection::open(state.join(file)).unwrap().execute_batch("DROP TABLE store_identity").unwrap();
    }
    let customers = fs::read(state.join("customer.db")).unwrap();
    fs::remove_file(state.join("customer.db")).unwrap();
    assert_refused(&state, "customer.db", "product.db is of one that had it");
    fs::write(state.join("customer.db"), customers).unwrap();
    // One service after the other.
    for services in ["trade", "shop", "share"] {
        let server = Server::start_in(dir.path(), &args(), &[("P2S2_SERVER_SERVICES", services)]);
        assert_eq!(server.stop(), 0);
    }
    for (file, _) in STORES {
        let whole = fs::read(state.join(file)).unwrap();
        fs::remove_file(state.join(file)).unwrap();
        assert_refused(&state, file, "missing or empty");
        fs::write(state.join(file), whole).unwrap();
    }
    assert_eq!(start_server(dir.path()).stop(), 0);
}

#[test]
fn a_lost_manifest_is_missed_and_made_anew_on_purpose() {
    let snapshots = StateSnapshots::new();
    for manifest in [None, Some(&b""[..]), Some(&b"{\"format\":1"[..])] {
        let mut files = snapshots.newer.clone();
        match manifest {
            Some(bytes) => files.insert("manifest.json".to_owned(), bytes.to_vec()),
            None => files.remove("manifest.json"),
        };
        let dir = restore_files(&files);
        let state = dir.path().join("state");
        assert_refused(&state, "manifest.json", "cannot be used");
        assert_eq!(accept_loss_ok(&state, "manifest.json")["became"], "manifest");
        assert_eq!(start_server(dir.path()).stop(), 0);
        fs::remove_file(state.join("users.db")).unwrap();
        assert_refused(&state, "users.db", "missing or empty");
    }
}

#[test]
fn what_is_no_store_of_a_data_dir_cannot_be_given_up() {
    let snapshots = StateSnapshots::new();
    let dir = restore_files(&snapshots.newer);
    let state = dir.path().join("state");
    let before = lasting(&state);
    for (file, said) in [
        ("share.db", "is no store of the data dir"),
        ("identity.pem", "is no store of the data dir"),
        ("../customer.db", "expected a file of"),
        ("customer.db", "is whole"),
        ("manifest.json", "is whole"),
    ] {
        let output = accept_loss(&state, file);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && text.contains(said), "{file}: {text}");
    }
    let new = |name: &PathBuf| !before.contains_key(name) && !name.to_string_lossy().contains("lock");
    assert_eq!(lasting(&state).into_keys().filter(new).count(), 0);
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(accept_loss(empty.path(), "customer.db").status.code(), Some(1));
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0, "nothing was made there");
}

/// Makes a call in the shop's first dialect.
fn call(line: &mut BufReader<TcpStream>, api: &str, session: Option<&str>, payload: &Value) -> Value {
    let request = json!({"type": "request", "api": api, "session_id": session, "payload": payload});
    writeln!(line.get_mut(), "{request}").unwrap();
    let mut answer = String::new();
    line.read_line(&mut answer).unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["type"], "response", "{api}: {answer}");
    answer["payload"].clone()
}

/// A new seller, signed in.
fn seller(dir: &Path, name: &str) -> (BufReader<TcpStream>, String) {
    let ready: Value = serde_json::from_slice(&fs::read(dir.join("ready.json")).unwrap()).unwrap();
    let mut line = BufReader::new(TcpStream::connect(ready["seller"].as_str().unwrap()).unwrap());
    let account = json!({"username": name, "password": "secret-1234"});
    call(&mut line, "CreateAccount", None, &account);
    let session = call(&mut line, "Login", None, &account)["session_id"].as_str().unwrap().to_owned();
    (line, session)
}

#[test]
fn after_an_accepted_loss_nobody_gets_what_was_anothers_however_often() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let mut items = Vec::new();
    for round in 0..3 {
        let server = start_server(dir.path());
        let (mut line, session) = seller(dir.path(), "sal");
        let own = call(&mut line, "DisplayItemsForSale", Some(&session), &json!({}));
        assert_eq!(own["items"], json!([]), "round {round}: the former seller's goods");
        let lamp = json!({"item_name": "lamp", "category": 3, "keywords": ["k"], "condition": "New", "price": 5, "quantity": 5});
        let item = call(&mut line, "RegisterItemForSale", Some(&session), &lamp)["item_id"].clone();
        assert!(!items.contains(&item), "round {round}: {item} was given out before");
        items.push(item);
        assert_eq!(server.stop(), 0);
        // Ids of both kinds start anew and must not collide with those of an earlier round.
        for file in ["customer.db", "product.db"] {
            if file == "customer.db" || round == 1 {
                fs::remove_file(state.join(file)).unwrap();
                accept_loss_ok(&state, file);
            }
        }
    }
}
