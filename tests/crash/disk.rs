//! Disks that are full or fail, and data dirs that must not be changed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::claims::{Claims, Roster};
use crate::money;
use crate::shim;
use crate::support::{GOOD_CARD, Peer, Server, SettlementConnection, answer_all, eventually, program, settle};

/// A server on a disk that fails on request.
struct FaultyDiskServer {
    server: Server,
    switch: PathBuf,
    _dir: tempfile::TempDir,
}

impl FaultyDiskServer {
    /// `None`, with a printed reason, where disk faults cannot be simulated.
    fn start() -> Option<FaultyDiskServer> {
        let library = shim::library()?;
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (switch, state) = (root.join("fault"), root.join("state"));
        let env = [
            ("LD_PRELOAD", library.to_str().unwrap()),
            ("POWERCUT_DIR", state.to_str().unwrap()),
            ("POWERCUT_FAULT", switch.to_str().unwrap()),
        ];
        let server = Server::start_in(&root, &["--offer-window", "1s", "--settle-timeout", "3s"], &env);
        Some(FaultyDiskServer { server, switch, _dir: dir })
    }

    fn fails(&self, fault: &str) {
        fs::write(&self.switch, fault).unwrap();
    }

    fn works(&self) {
        fs::remove_file(&self.switch).unwrap();
    }
}

/// Sends a request with a new number.
fn once(peer: &mut Peer, kind: &str, fields: Value) -> Value {
    let rq = peer.fresh_rq();
    peer.ask_rq(kind, rq, fields)
}

fn wish(item: &str) -> Value {
    json!({"item_name": item, "description": "", "max_price": 50})
}

/// Checks a disk on which nothing can be stored: changes are refused with UNAVAILABLE and have no effect, reads
/// succeed, and everything works again without a restart once the disk does.
fn nothing_is_stored_while(fault: &str) {
    let Some(faulty_server) = FaultyDiskServer::start() else { return };
    let server = &faulty_server.server;
    let (mut alice, mut bob) = (Peer::new(server, "alice"), Peer::new(server, "bob"));
    let before = bob.look_for("before", 50.0);
    let offered = alice.offer("before", 40.0);
    alice.push("RESERVE");

    faulty_server.fails(fault);
    let search_rq = bob.fresh_rq();
    for _ in 0..3 {
        let refused = bob.ask_rq("LOOKING_FOR", search_rq, wish("while"));
        assert_eq!(refused["code"], "UNAVAILABLE", "{refused}");
    }
    let buy = json!({"item_name": "before", "price": 40});
    assert_eq!(bob.ask_rq("BUY", before, buy)["code"], "UNAVAILABLE");
    assert_eq!(alice.ask_rq("CANCEL", offered, json!({"item_name": "before"}))["code"], "UNAVAILABLE");
    let left = once(&mut alice, "DE-REGISTER", json!({}));
    assert_eq!(left["code"], "UNAVAILABLE", "{left}");
    let mut carol = Peer::unregistered(server.addr, "carol");
    let refused = carol.register();
    assert_eq!(refused["code"], "UNAVAILABLE", "{refused}");
    // Nothing has changed. A read that meets another request's failed change may be refused once.
    let deals = eventually("STATUS to be answered", || {
        let answer = once(&mut bob, "STATUS", json!({}));
        assert!(answer["type"] == "DEALS" || answer["code"] == "UNAVAILABLE", "{answer}");
        answer["deals"].as_array().cloned()
    });
    let states: Vec<_> = deals.iter().map(|deal| (&deal["item_name"], &deal["state"])).collect();
    assert_eq!(states, [(&json!("before"), &json!("reserved"))], "{deals:?}");

    faulty_server.works();
    let answer = bob.ask_rq("LOOKING_FOR", search_rq, wish("while"));
    assert_eq!(answer, json!({"type": "SEARCHING", "rq": search_rq, "peers": 1}));
    assert_eq!(carol.register()["type"], "REGISTERED");
    settle(&mut bob, before, &mut alice, GOOD_CARD);
    assert_eq!(bob.ended(before)["state"], "completed");
    alice.offer("while", 30.0);
    settle(&mut bob, search_rq, &mut alice, GOOD_CARD);
    assert_eq!(alice.ask("DE-REGISTER", json!({}))["type"], "DE-REGISTERED");
    let state = server.state_dir();
    assert_eq!(faulty_server.server.stop(), 0);
    let counted = money::check(&state, &Claims::default(), &Roster::default());
    assert_eq!((counted.captured, counted.not_captured), (2, 0));
}

#[test]
fn a_full_disk_refuses_changes_and_nothing_else() {
    nothing_is_stored_while("full");
}

#[test]
fn a_disk_that_cannot_sync_refuses_changes_and_nothing_else() {
    nothing_is_stored_while("sync");
}

/// A peer with an unverified address gets this error too, although the in-memory state is rebuilt between its datagram
/// and the response.
#[test]
fn a_first_register_hears_that_nothing_could_be_stored_without_asking_again() {
    let Some(faulty_server) = FaultyDiskServer::start() else { return };
    let mut carol = Peer::unregistered(faulty_server.server.addr, "carol");
    let register = carol.message("REGISTER", 1, carol.endpoint());
    faulty_server.fails("full");
    for _ in 0..2 {
        carol.send(&register);
        let answer = carol.receive_until(Instant::now() + Duration::from_secs(20));
        assert_eq!(answer.as_ref().map(|answer| &answer["code"]), Some(&json!("UNAVAILABLE")), "{answer:?}");
    }
    faulty_server.works();
    carol.send(&register);
    let answer = carol.receive_until(Instant::now() + Duration::from_secs(20));
    assert_eq!(answer.as_ref().map(|answer| &answer["type"]), Some(&json!("REGISTERED")), "{answer:?}");
    assert_eq!(faulty_server.server.stop(), 0);
}

#[test]
fn a_settlement_waits_for_a_disk_that_fails() {
    let Some(faulty_server) = FaultyDiskServer::start() else { return };
    let server = &faulty_server.server;
    let (mut alice, mut bob) = (Peer::new(server, "alice"), Peer::new(server, "bob"));
    let rq = bob.look_for("lamp", 50.0);
    let sold = alice.offer("lamp", 40.0);
    let found = bob.push("FOUND");
    let answer = bob.ask_rq("BUY", rq, json!({"item_name": "lamp", "price": found["price"]}));
    assert_eq!(answer["type"], "BUYING", "{answer}");
    let bobs = bob.accept_settlement();
    let mut alices: SettlementConnection = alice.accept_settlement();
    assert_eq!(alices.read().unwrap()["type"], "INFORM_REQ");
    alices.write(&alice.inform_res(sold, GOOD_CARD));
    let bought = std::thread::scope(|scope| {
        let bob = &bob;
        let bobs = scope.spawn(move || answer_all(bob, bobs, GOOD_CARD));
        assert_eq!(alices.read().unwrap()["type"], "SHIPPING_INFO");
        // The disk fills up just before SHIPPED, which therefore cannot be stored; nobody must be told of a sale.
        faulty_server.fails("full");
        alices.write(&json!({"type": "SHIPPED", "rq": sold}));
        assert_eq!(alices.read(), None, "a line after a SHIPPED that could not be stored");
        bobs.join().unwrap()
    });
    assert_eq!(bought.len(), 1, "{bought:?}");
    faulty_server.works();
    assert_eq!(bob.ended(rq)["state"], "cancelled");
    assert_eq!(bob.push("CANCEL")["rq"], rq);
    assert_eq!(alice.push("CANCEL")["rq"], sold);
    let state = server.state_dir();
    assert_eq!(faulty_server.server.stop(), 0);
    let counted = money::check(&state, &Claims::default(), &Roster::default());
    assert_eq!((counted.captured, counted.not_captured), (0, 1));
}

/// A small tmpfs, which only root can mount; unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "p2s2-test"]).arg(dir.path()).output();
        match mounted {
            Ok(output) if output.status.success() => Some(SmallDisk(dir)),
            _ => {
                println!("skipped: only root may mount a small tmpfs here");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking(), "cannot umount");
    }
}

#[test]
fn a_disk_that_fills_up_while_it_trades_can_be_emptied_again() {
    let Some(disk) = SmallDisk::mount() else { return };
    let root = disk.0.path();
    let server = Server::start_in(root, &["--offer-window", "1s"], &[]);
    let mut bob = Peer::new(&server, "bob");
    // Fills most of the remaining space; searches fill the rest.
    let ballast = root.join("ballast");
    let mut chunk = 64 * 1024;
    let mut bytes = Vec::new();
    while chunk >= 4096 {
        bytes.resize(bytes.len() + chunk, 7);
        if fs::write(&ballast, &bytes).is_err() {
            bytes.truncate(bytes.len() - chunk);
            chunk /= 2;
        }
    }
    fs::write(&ballast, &bytes).unwrap();
    let mut searched = Vec::new();
    let refused = eventually("the disk to be full", || {
        let rq = bob.fresh_rq();
        let answer = bob.ask_rq("LOOKING_FOR", rq, wish("lamp"));
        if answer["type"] == "SEARCHING" {
            searched.push(rq);
            return None;
        }
        Some((rq, answer))
    });
    assert_eq!(refused.1["code"], "UNAVAILABLE", "{}", refused.1);
    fs::remove_file(&ballast).unwrap();
    let again = bob.ask_rq("LOOKING_FOR", refused.0, wish("lamp"));
    assert_eq!(again["type"], "SEARCHING", "{again}");
    searched.push(refused.0);
    for rq in &searched {
        assert!(bob.deal(*rq).is_some(), "search {rq} is lost");
    }
    let server = server.kill_and_restart();
    for rq in &searched {
        assert!(bob.deal(*rq).is_some(), "search {rq} is lost after a restart");
    }
    assert_eq!(server.stop(), 0);
}

// Data dirs on which a server must not start.

fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    // The lock file names the last process that tried.
    let files = entries.filter(|path| path.file_name().is_some_and(|name| name != "lock"));
    files.map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
}

/// The data dir of a server that has traded and stopped.
fn used_state() -> tempfile::TempDir {
    used_state_with_bob().0
}

/// Keeps bob's sockets open, because no other peer may use his address.
fn used_state_with_bob() -> (tempfile::TempDir, Peer) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_in(dir.path(), &[], &[]);
    let mut bob = Peer::new(&server, "bob");
    bob.look_for("lamp", 50.0);
    assert_eq!(server.stop(), 0);
    (dir, bob)
}

fn start_on(state: &Path) -> Output {
    program("server").args(["--trade-port", "0", "--data-dir"]).arg(state).output().unwrap()
}

/// Checks for one error line with these words, exit code 1, and unchanged files.
pub fn assert_refused(state: &Path, words: &[&str]) {
    let before = contents(state);
    let output = start_on(state);
    let (said, printed) = (String::from_utf8(output.stderr).unwrap(), String::from_utf8(output.stdout).unwrap());
    assert_eq!(output.status.code(), Some(1), "{said}{printed}");
    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{said}");
    assert!(said.lines().last().is_some_and(|last| last == errors[0]), "more than one line: {said}");
    for word in words {
        assert!(errors[0].contains(word), "{word:?} is not in {said}");
    }
    assert!(!printed.contains("ready"), "{printed}");
    let after = contents(state);
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&before), names(&after), "files came or went");
    for (path, bytes) in &before {
        assert!(after[path] == *bytes, "{} was changed", path.display());
    }
}

#[test]
fn a_damaged_file_is_left_as_it_is() {
    for file in ["trade.db", "bank.db"] {
        let dir = used_state();
        let state = dir.path().join("state");
        let whole = fs::read(state.join(file)).unwrap();
        // Damage at the beginning, within a page, and at the end.
        let mut beginning = whole.clone();
        beginning[..64].fill(0xAA);
        let mut within = whole.clone();
        within[4096..4096 + 200].fill(0x55);
        for damaged in [beginning, within, whole[..whole.len() / 2].to_vec(), b"no database at all".to_vec()] {
            fs::write(state.join(file), damaged).unwrap();
            assert_refused(&state, &[file]);
        }
        fs::write(state.join(file), whole).unwrap();
        let server = Server::start_in(dir.path(), &[], &[]);
        assert_eq!(server.stop(), 0);
    }
}

#[test]
fn a_file_of_a_newer_version_is_left_as_it_is() {
    for file in ["trade.db", "bank.db"] {
        let dir = used_state();
        let state = dir.path().join("state");
        let open = || Connection::open(state.join(file)).unwrap();
        open().pragma_update(None, "user_version", 999).unwrap();
        // Only the header has the newer version, which could also be damage.
        assert_refused(&state, &[file, "damaged", "newer version", "999"]);
        open().execute_batch("UPDATE store_identity SET schema = 999").unwrap();
        assert_refused(&state, &[file, "written by a newer version", "999", "accept-loss"]);
    }
}

#[test]
fn a_damaged_certificate_is_left_as_it_is() {
    let dir = used_state();
    let state = dir.path().join("state");
    fs::write(state.join("identity.pem"), "-----BEGIN NONSENSE-----").unwrap();
    assert_refused(&state, &["identity.pem"]);
}

#[cfg(unix)]
#[test]
fn a_missing_permission_is_one_clear_line() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;

    const NOBODY: u32 = 65_534;
    // SAFETY: no arguments, cannot fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    let dir = used_state();
    let state = dir.path().join("state");
    let before = contents(&state);
    // Root may do everything, so the server runs as another user.
    if is_root {
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).unwrap();
    } else {
        fs::set_permissions(state.join("trade.db"), fs::Permissions::from_mode(0o000)).unwrap();
    }
    let mut command = program("server");
    command.args(["--trade-port", "0", "--data-dir"]).arg(&state);
    if is_root {
        // The build folder may not be accessible to others, so the program is copied.
        let copy = dir.path().join("p2s2");
        fs::copy(env!("CARGO_BIN_EXE_p2s2"), &copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        command = Command::new(copy);
        command.args(["server", "--trade-port", "0", "--data-dir"]).arg(&state);
        command.env("P2S2_SERVER_SERVICES", "trade").env("P2S2_SERVER_API_PORT", "0");
        command.current_dir(dir.path()).uid(NOBODY).gid(NOBODY);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{said}");
    assert!(errors[0].to_lowercase().contains("permission"), "{said}");
    if !is_root {
        fs::set_permissions(state.join("trade.db"), fs::Permissions::from_mode(0o600)).unwrap();
    }
    assert!(contents(&state) == before, "something was changed");
}

/// The program run by the owner of the folder, who is not root.
#[cfg(unix)]
fn as_its_owner(dir: &Path, args: &[&str]) -> Command {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;

    const NOBODY: u32 = 65_534;
    let state = dir.join("state");
    // SAFETY: no arguments, cannot fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    let mut command = if is_root {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        let files = fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().path());
        for path in files.chain([state.clone()]) {
            std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        // The build folder may not be accessible to others, so the program is copied.
        let copy = dir.join("p2s2");
        if !copy.exists() {
            fs::copy(env!("CARGO_BIN_EXE_p2s2"), &copy).unwrap();
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let mut command = Command::new(copy);
        command.uid(NOBODY).gid(NOBODY);
        command
    } else {
        Command::new(env!("CARGO_BIN_EXE_p2s2"))
    };
    command.env("P2S2_SERVER_SERVICES", "trade").env("P2S2_SERVER_API_PORT", "0");
    command.args(args).arg("--data-dir").arg(&state).current_dir(dir);
    command
}

#[cfg(unix)]
#[test]
fn a_file_that_may_not_be_written_is_told_at_the_start() {
    use std::os::unix::fs::PermissionsExt;
    let mode_of = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for file in ["trade.db", "bank.db"] {
        let dir = used_state();
        let state = dir.path().join("state");
        fs::set_permissions(state.join(file), fs::Permissions::from_mode(0o400)).unwrap();
        let before = contents(&state);
        let output = as_its_owner(dir.path(), &["server", "--trade-port", "0"]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(errors.len() == 1 && errors[0].contains(file) && errors[0].contains("permission"), "{said}");
        assert!(contents(&state) == before, "something was made or changed");
        // Reading is allowed, and leaves no files that the server could not write.
        let output = as_its_owner(dir.path(), &["admin", "peers"]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        for path in contents(&state).keys() {
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(name == file || mode_of(path) & 0o600 == 0o600, "{name}: {:o}", mode_of(path));
        }
        fs::set_permissions(state.join(file), fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(Server::start_in(dir.path(), &[], &[]).stop(), 0);
    }
}

/// The data dir of a killed server, whose write-ahead logs have changes that the files do not have yet.
fn killed_state() -> tempfile::TempDir {
    let (dir, _bob) = used_state_with_bob();
    let server = Server::start_in(dir.path(), &[], &[]);
    let _peers: Vec<Peer> = (0..50).map(|n| Peer::new(&server, &format!("peer {n}"))).collect();
    drop(server);
    assert!(fs::metadata(dir.path().join("state/trade.db-wal")).unwrap().len() > 0);
    dir
}

/// All files that must not change: everything but locks and the logs' shared-memory index.
pub fn lasting(state: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let is_scratch = |name: &str| name.ends_with("-shm") || name.starts_with("lock");
    let is_kept = |path: &Path| !path.file_name().is_some_and(|name| is_scratch(&name.to_string_lossy()));
    contents(state).into_iter().filter(|(path, _)| is_kept(path)).collect()
}

#[test]
fn a_damaged_file_keeps_its_log_whoever_looks() {
    for parts_of_3 in [2, 1, 0] {
        let dir = killed_state();
        let state = dir.path().join("state");
        let whole = fs::read(state.join("trade.db")).unwrap();
        fs::write(state.join("trade.db"), &whole[..whole.len() * parts_of_3 / 3]).unwrap();
        let before = lasting(&state);
        for command in ["peers", "deals", "log", "ledger"] {
            let output = program("admin").args([command, "--data-dir"]).arg(&state).output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.code() == Some(1) && said.contains("trade.db"), "{command}: {said}");
            assert!(lasting(&state) == before, "admin {command} has changed something");
        }
        let output = start_on(&state);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && said.contains("trade.db"), "{said}");
        assert!(lasting(&state) == before, "the server has changed something");
        fs::write(state.join("trade.db"), &whole).unwrap();
        let server = Server::start_in(dir.path(), &[], &[]);
        assert_eq!(server.admin_json(&["peers"]).len(), 51);
        assert_eq!(server.stop(), 0);
    }
}

#[test]
fn looking_at_what_a_killed_server_left_changes_nothing() {
    let dir = killed_state();
    let state = dir.path().join("state");
    let before = lasting(&state);
    let output = program("admin").args(["peers", "--json", "--data-dir"]).arg(&state).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 51);
    assert!(lasting(&state) == before);
    // After an orderly stop there are not even scratch files.
    let dir = used_state();
    let state = dir.path().join("state");
    let before = contents(&state);
    let output = program("admin").args(["peers", "--json", "--data-dir"]).arg(&state).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 1);
    assert!(contents(&state) == before);
}

#[test]
fn a_start_on_a_full_disk_says_what_to_look_at() {
    let Some(disk) = SmallDisk::mount() else { return };
    let server = Server::start_in(disk.0.path(), &[], &[]);
    Peer::new(&server, "alice");
    assert_eq!(server.stop(), 0);
    let mut pad = fs::File::create(disk.0.path().join("pad")).unwrap();
    while std::io::Write::write_all(&mut pad, &[0; 4096]).is_ok() {}
    drop(pad);
    for state in ["state", "new"] {
        let output = start_on(&disk.0.path().join(state));
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("full") || said.contains("No space") || said.contains("no room"), "{said}");
    }
    fs::remove_file(disk.0.path().join("pad")).unwrap();
    let server = Server::start_in(disk.0.path(), &[], &[]);
    assert_eq!(server.admin_json(&["peers"]).len(), 1);
    assert_eq!(server.stop(), 0);
}
