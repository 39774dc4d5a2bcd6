//! The operator's tools: admin commands, backup and restore, start and stop, configuration.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::*;

fn admin(dir: &Path, args: &[&str]) -> Output {
    program("admin").args(args).arg("--data-dir").arg(dir).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The command failed with this code and one line that contains all of these texts.
fn failed(output: &Output, code: i32, says: &[&str]) {
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{errors}");
    for words in says {
        assert!(errors.contains(words), "{words:?} is not in {errors:?}");
    }
    if code == 1 {
        let lines: Vec<&str> = errors.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(lines.len(), 1, "{errors}");
    }
}

/// One purchase, one search without an offer and one open search.
fn some_trade(server: &Server) -> (Peer, Peer, u64) {
    let (mut alice, mut bob) = (Peer::new(server, "alice"), Peer::new(server, "bob"));
    let rq = bob.look_for("lamp", 10.0);
    alice.offer("lamp", 9.99);
    alice.push("RESERVE");
    settle(&mut bob, rq, &mut alice, GOOD_CARD);
    bob.look_for("desk", 5.0);
    let a = alice.offer("desk", 6.0);
    alice.push("NEGOTIATE");
    alice.ask_rq("REFUSE", a, json!({"item_name": "desk", "max_price": 5}));
    bob.push("NOT_FOUND");
    let open = bob.look_for("sofa", 7.0);
    (alice, bob, open)
}

#[test]
fn what_happened_is_shown_beside_a_running_server_and_without() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_in(dir.path(), &["--offer-window", "60s"], &[]);
    let began = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let (..) = some_trade(&server);
    let state = server.state_dir();
    let check = || {
        let json_of = |args: &[&str]| -> Vec<Value> {
            let output = admin(&state, &[args, &["--json"]].concat());
            assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output.stderr));
            text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        let log = json_of(&["log"]);
        let kinds: Vec<&str> = log.iter().map(|line| line["kind"].as_str().unwrap()).collect();
        for kind in ["register", "search", "offer", "negotiate", "refuse", "not_found", "buy", "purchase"] {
            assert!(kinds.contains(&kind), "{kind} is not in {kinds:?}");
        }
        let of_alice = json_of(&["log", "--peer", "alice"]);
        assert!(!of_alice.is_empty() && of_alice.len() < log.len());
        assert!(of_alice.iter().all(|line| line["peer"] == "alice"), "{of_alice:?}");
        assert_eq!(json_of(&["log", "--peer", "nobody"]), [] as [Value; 0]);
        assert_eq!(json_of(&["log", "--since", &began.to_string()]).len(), log.len());
        assert_eq!(json_of(&["log", "--since", "1h"]).len(), log.len());
        assert_eq!(json_of(&["log", "--since", &(began + 3600).to_string()]).len(), 0);
        assert_eq!(json_of(&["log", "--since", "2099-01-01"]).len(), 0);
        let peers = json_of(&["peers"]);
        assert_eq!(peers.iter().map(|peer| peer["name"].as_str().unwrap()).collect::<Vec<_>>(), ["alice", "bob"]);
        let deals = json_of(&["deals"]);
        let states: HashSet<&str> = deals.iter().map(|deal| deal["state"].as_str().unwrap()).collect();
        assert_eq!(states, HashSet::from(["completed", "cancelled", "searching"]));
        let ledger = json_of(&["ledger"]);
        let balance = |account: &str| ledger.iter().find(|line| line["account"] == account).unwrap()["balance"].clone();
        assert_eq!(
            (balance("card:bob"), balance("payout:alice"), balance("fee")),
            (json!(-9.99), json!(8.99), json!(1))
        );
        assert_eq!(ledger.last().unwrap(), &json!({"sum": 0}));

        // The tables for people.
        for (command, words) in [
            ("log", &["purchase", "alice", "lamp", "9.99"][..]),
            ("peers", &["alice", "127.0.0.1", "2 registered"]),
            ("deals", &["lamp", "completed", "NOT_FOUND", "searching"]),
            ("ledger", &["card:bob", "-9.99", "sum: 0"]),
        ] {
            let output = admin(&state, &[command]);
            assert_eq!(output.status.code(), Some(0));
            let shown = text(&output.stdout);
            assert!(words.iter().all(|word| shown.contains(word)), "{command}: {shown}");
            assert!(!shown.contains('\u{1b}'), "no escape codes in a pipe: {shown:?}");
        }
    };
    check();
    assert_eq!(server.stop(), 0);
    check();
    // A ledger that does not balance.
    let db = rusqlite::Connection::open(state.join("trade.db")).unwrap();
    let tables: Vec<String> = {
        let mut found =
            db.prepare("SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE '%cents%'").unwrap();
        found.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    let entries = tables.iter().find(|table| table.contains("entry") || table.contains("ledger")).unwrap();
    assert_eq!(db.execute(&format!("UPDATE {entries} SET cents = cents + 1 WHERE rowid = 1"), []).unwrap(), 1);
    drop(db);
    let output = admin(&state, &["ledger"]);
    failed(&output, 1, &["sums to 0.01"]);
}

#[test]
fn admin_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let nothing = dir.path().join("nothing");
    for command in ["log", "peers", "deals", "ledger"] {
        failed(&admin(&nothing, &[command]), 1, &["nothing"]);
    }
    assert!(!nothing.exists(), "looking makes nothing");
    failed(&admin(&nothing, &["restore", "/no/such/file"]), 1, &["/no/such/file"]);
    failed(&admin(&nothing, &["log", "--since", "yesterday"]), 2, &["--since"]);
    failed(&admin(&nothing, &["dance"]), 2, &["dance"]);
    failed(&admin(&nothing, &["log", "--db", "postgres://u:secret@h/db"]), 1, &["--db"]);
    let garbage = dir.path().join("garbage");
    fs::write(&garbage, [7; 5000]).unwrap();
    failed(&admin(&nothing, &["restore", garbage.to_str().unwrap()]), 1, &["garbage"]);
    assert!(!nothing.join("trade.db").exists());
}

#[test]
fn a_backup_of_a_busy_server_holds_every_rule() {
    let server = Server::start(&["--offer-window", "1h", "--reserve-window", "1h"]);
    let (mut alice, mut bob, open) = some_trade(&server);
    let sold = alice.push_of("SEARCH", "sofa")["rq"].as_u64().unwrap();
    let (mut mids, mut numbers) = (HashSet::new(), HashSet::new());
    let outside = tempfile::tempdir().unwrap();
    let archive = outside.path().join("market.tar");
    let archive_arg = archive.to_str().unwrap();

    // A buyer searches and cancels continuously while the backup is made.
    let mut carol = Peer::new(&server, "carol");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) || rounds < 3 {
                let rq = carol.look_for("busy", 1.0);
                assert_eq!(carol.ask_rq("CANCEL", rq, json!({"item_name": "busy"}))["type"], "CANCELLED");
                rounds += 1;
            }
        });
        let output = server.admin(&["backup", archive_arg]);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        busy.join().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    });
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(&archive).unwrap().permissions().mode() & 0o777, 0o600);
    }
    failed(&server.admin(&["backup", archive_arg]), 1, &["market.tar"]);

    // The restored server knows nothing of the numbers used after the backup, but never repeats them.
    for n in 0..5 {
        let item = format!("after {n}");
        bob.look_for(&item, 1.0);
        for peer in [&mut alice, &mut carol] {
            let push = peer.push_of("SEARCH", &item);
            assert!(mids.insert(push["mid"].as_u64().unwrap()) && numbers.insert(push["rq"].as_u64().unwrap()));
        }
    }
    // The original continues; the backup must be restored to another, empty directory.
    let port = server.addr.port().to_string();
    failed(&admin(&server.state_dir(), &["restore", archive_arg]), 1, &["empty"]);
    let ledger_before = server.admin_json(&["ledger"]);
    drop(server);
    let state = outside.path().join("state");
    let output = admin(&state, &["restore", archive_arg]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    failed(&admin(&state, &["restore", archive_arg]), 1, &["empty"]);
    let args = ["--offer-window", "1h", "--reserve-window", "1h", "--trade-port", &port];
    let server = Server::start_in(outside.path(), &args, &[]);

    // Registered as before, with the same certificate; the open search proceeds to its receipt.
    let (token, pin) = (alice.token.clone(), alice.cert_sha256.clone());
    alice.register();
    assert_eq!((&alice.token, &alice.cert_sha256), (&token, &pin));
    assert_eq!(bob.deal(open).unwrap()["state"], "searching");
    let answer = alice.ask_rq("OFFER", sold, json!({"item_name": "sofa", "price": 7}));
    assert_eq!(answer["type"], "OFFERED", "{answer}");
    carol.ask("STATUS", json!({}));
    let asked = carol.ask("STATUS", json!({}));
    assert_eq!(asked["type"], "DEALS");
    // Carol registered after that search, so nobody else is waited for.
    assert_eq!(alice.push_of("RESERVE", "sofa")["rq"], sold);
    assert_eq!(bob.push_of("FOUND", "sofa")["rq"], open);
    assert_eq!(buy(&mut bob, open, "sofa", 7.0)["type"], "BUYING");
    std::thread::scope(|scope| {
        let alice = &alice;
        let sold = scope.spawn(move || answer_all(alice, alice.accept_settlement(), GOOD_CARD));
        let bought = answer_all(&bob, bob.accept_settlement(), GOOD_CARD);
        assert_eq!(bought.last().unwrap()["type"], "RECEIPT");
        assert_eq!(sold.join().unwrap().last().unwrap()["type"], "SETTLED");
    });
    assert!(server.admin_json(&["ledger"]).len() > ledger_before.len());
    assert_eq!(server.balance_cents("escrow"), 0);

    // Numbers are never used twice, not even those from after the backup.
    let server = server.kill_and_restart();
    for n in 0..5 {
        let item = format!("restored {n}");
        let rq = (1 << 20) + n;
        let search = json!({"item_name": item, "description": "", "max_price": 1});
        assert_eq!(bob.ask_rq("LOOKING_FOR", rq, search)["type"], "SEARCHING");
        for peer in [&mut alice, &mut carol] {
            let push = peer.push_of("SEARCH", &item);
            assert!(mids.insert(push["mid"].as_u64().unwrap()), "{push}: this mid was used before");
            assert!(numbers.insert(push["rq"].as_u64().unwrap()), "{push}: this number was used before");
        }
    }
    assert_eq!(server.stop(), 0);
}

/// The command `p2s2 server` as an operator runs it.
fn server_command(dir: &Path, args: &[&str]) -> Command {
    let mut command = program("server");
    command.args(args).arg("--data-dir").arg(dir.join("state")).current_dir(dir);
    command
}

/// A port that is in use for UDP and TCP, with the sockets that use it.
fn taken_port() -> (u16, TcpListener, UdpSocket) {
    eventually("a port", || {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = tcp.local_addr().unwrap().port();
        Some((port, tcp, UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).ok()?))
    })
}

#[test]
fn a_port_in_use_is_named_with_its_flag() {
    let dir = tempfile::tempdir().unwrap();
    let (port, tcp, udp) = taken_port();
    let word = port.to_string();
    failed(
        &server_command(dir.path(), &["--trade-port", &word]).output().unwrap(),
        1,
        &[&word, "--trade-port", "in use"],
    );
    // In use for only one of them is as bad.
    drop(tcp);
    failed(
        &server_command(dir.path(), &["--trade-port", &word]).output().unwrap(),
        1,
        &[&word, "--trade-port", "in use"],
    );
    drop(udp);
}

#[test]
fn two_servers_cannot_share_a_data_dir() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_in(dir.path(), &[], &[]);
    let second = server_command(dir.path(), &["--trade-port", "0"]).output().unwrap();
    failed(&second, 1, &["state"]);
    assert_eq!(Peer::new(&server, "alice").ask("STATUS", json!({}))["type"], "DEALS", "the first goes on");
    assert_eq!(server.stop(), 0);
    // A stopped server releases its directory.
    assert_eq!(Server::start_in(dir.path(), &[], &[]).stop(), 0);
}

#[test]
fn settings_come_from_flag_environment_dotenv_in_that_order() {
    let dir = tempfile::tempdir().unwrap();
    let taken = [taken_port(), taken_port(), taken_port()];
    let [flag, environment, dotenv] = taken.each_ref().map(|(port, ..)| port.to_string());
    // The error about the port in use shows which value was taken.
    fs::write(dir.path().join(".env"), format!("P2S2_SERVER_TRADE_PORT={dotenv}\n")).unwrap();
    failed(&server_command(dir.path(), &[]).output().unwrap(), 1, &[&dotenv]);
    let mut command = server_command(dir.path(), &[]);
    failed(&command.env("P2S2_SERVER_TRADE_PORT", &environment).output().unwrap(), 1, &[&environment]);
    let mut command = server_command(dir.path(), &["--trade-port", &flag]);
    failed(&command.env("P2S2_SERVER_TRADE_PORT", &environment).output().unwrap(), 1, &[&flag]);
    fs::write(dir.path().join(".env"), "P2S2_SERVER_OFFER_WINDOW=soon\n").unwrap();
    failed(&server_command(dir.path(), &["--trade-port", &flag]).output().unwrap(), 2, &["--offer-window", "soon"]);
    // An invalid line is reported by its number alone and has no other effect.
    let lines = format!("# ours\nthis is no setting: hunter2\nP2S2_SERVER_TRADE_PORT={dotenv}\n");
    fs::write(dir.path().join(".env"), lines).unwrap();
    let output = server_command(dir.path(), &[]).output().unwrap();
    failed(&output, 1, &["warning: .env, line 2", &dotenv, "in use"]);
    assert!(!text(&output.stderr).contains("hunter2"));
}

#[test]
fn a_variable_without_a_value_is_none_and_switches_may_be_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let plaintext = |name: &str, env: &[(&str, &str)]| {
        let dir = dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        let server = Server::start_in(&dir, &[], env);
        Peer::new(&server, "alice").cert_sha256.is_none()
    };
    for (place, (value, on)) in
        [("1", true), ("yes", true), ("on", true), ("true", true), ("0", false), ("no", false), ("off", false)]
            .into_iter()
            .enumerate()
    {
        assert_eq!(plaintext(&place.to_string(), &[("P2S2_SERVER_PLAINTEXT", value)]), on, "{value}");
    }
    let empty = ["P2S2_SERVER_PLAINTEXT", "P2S2_DB", "P2S2_SERVER_BIND", "P2S2_SERVER_FEE_PERCENT", "SERVER_HOST"];
    assert!(!plaintext("empty", &empty.map(|name| (name, ""))));
    let mut command = server_command(dir.path(), &[]);
    failed(&command.env("P2S2_SERVER_PLAINTEXT", "perhaps").output().unwrap(), 2, &["--plaintext"]);
    // Without a value in the environment, `.env` applies; an empty line there does not.
    let (port, _tcp, _udp) = taken_port();
    let lines = format!("P2S2_DB=\nP2S2_SERVER_TRADE_PORT={port}\n");
    fs::write(dir.path().join(".env"), lines).unwrap();
    let mut command = server_command(dir.path(), &[]);
    failed(&command.env("P2S2_SERVER_TRADE_PORT", "").output().unwrap(), 1, &[&port.to_string(), "in use"]);
}

#[test]
fn an_address_that_is_not_ours_is_said_once() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--bind", "192.0.2.1", "--api-bind", "127.0.0.1", "--trade-port", "0"];
    let output = server_command(dir.path(), &args).output().unwrap();
    failed(&output, 1, &["cannot bind trade port 192.0.2.1:0"]);
    assert_eq!(text(&output.stderr).matches("os error").count(), 1, "{}", text(&output.stderr));
}

#[test]
fn it_is_ready_only_once_the_ready_file_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("nowhere/ready.json");
    let mut command = server_command(dir.path(), &["--trade-port", "0"]);
    let output = command.arg("--ready-file").arg(&nowhere).output().unwrap();
    failed(&output, 1, &["nowhere/ready.json"]);
    assert!(!text(&output.stdout).contains("ready"), "{}", text(&output.stdout));

    let ready = dir.path().join("ready.json");
    let mut command = server_command(dir.path(), &["--trade-port", "0"]);
    let mut child = command.arg("--ready-file").arg(&ready).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "ready"));
    let addresses: Value = serde_json::from_str(&fs::read_to_string(&ready).unwrap()).unwrap();
    assert!(addresses["trade_udp"].is_string(), "{addresses}");
    signal(child.id(), libc::SIGTERM);
    assert_eq!(ended(&mut child), Some(0));
}

#[test]
fn what_peers_write_drives_no_terminal() {
    let server = Server::start(&["--offer-window", "60s"]);
    let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    let item = "a\u{1b}[2J\n\u{9b}31m\u{202e}\u{7f}b";
    let rq = bob.look_for(item, 10.0);
    alice.offer(item, 9.0);
    assert_eq!(alice.push("RESERVE")["item_name"], item, "as the buyer wrote it");
    assert_eq!(bob.deal(rq).unwrap()["item_name"], item);
    for args in [&["deals"][..], &["log"], &["deals", "--json"], &["log", "--json"]] {
        let output = text(&server.admin(args).stdout);
        assert!(output.contains("[2J"), "{args:?}: {output}");
        let drives = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
        assert!(!output.contains(drives), "{args:?}: {output:?}");
    }
    assert_eq!(server.admin_json(&["deals"])[0]["item_name"], item, "and JSON says what it is");
}

#[test]
fn wrong_values_end_with_2_and_name_the_flag() {
    let dir = tempfile::tempdir().unwrap();
    for (flag, value) in [
        ("--trade-port", "70000"),
        ("--trade-port", "-1"),
        ("--bind", "everywhere"),
        ("--offer-window", "0"),
        ("--offer-window", "5 parsecs"),
        ("--negotiate-window", "-1s"),
        ("--reserve-window", ""),
        ("--settle-timeout", "0ms"),
        ("--fee-percent", "101"),
        ("--fee-percent", "-1"),
        ("--fee-percent", "ten"),
        ("--max-connections", "many"),
        ("--services", "cleaning"),
    ] {
        let argument = format!("{flag}={value}");
        failed(&server_command(dir.path(), &[&argument]).output().unwrap(), 2, &[flag]);
    }
    failed(&server_command(dir.path(), &["--no-such-flag"]).output().unwrap(), 2, &["--no-such-flag"]);
    assert!(!dir.path().join("state").exists(), "nothing is made before the words are right");
    for command in ["server", "admin"] {
        let help = program(command).arg("--help").output().unwrap();
        assert!(help.status.success() && text(&help.stdout).contains("Example"));
    }
}

/// Waits until the process has ended; returns its exit code.
fn ended(child: &mut Child) -> Option<i32> {
    eventually("the server to end", || child.try_wait().unwrap()).code()
}

#[test]
fn a_signal_ends_it_when_what_is_in_hand_is_done() {
    let server = Server::start(&[]);
    let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    let (rq, sold) = reserved(&mut bob, &mut alice, "lamp", 10.0);
    assert_eq!(buy(&mut bob, rq, "lamp", 10.0)["type"], "BUYING");
    let (mut seller, mut buyer) = (alice.accept_settlement(), bob.accept_settlement());
    assert_eq!(buyer.read().unwrap()["type"], "INFORM_REQ");
    assert_eq!(seller.read().unwrap()["type"], "INFORM_REQ");
    signal(server.pid(), libc::SIGTERM);
    eventually("it to take no more work", || std::net::TcpStream::connect(server.addr).err());
    // The settlement had begun, so it is completed.
    buyer.write(&bob.inform_res(rq, GOOD_CARD));
    seller.write(&alice.inform_res(sold, GOOD_CARD));
    assert_eq!(seller.read().unwrap()["type"], "SHIPPING_INFO");
    seller.write(&json!({"type": "SHIPPED", "rq": sold}));
    assert_eq!(seller.read().unwrap()["type"], "SETTLED");
    assert_eq!(buyer.read().unwrap()["type"], "RECEIPT");
    drop((buyer, seller));
    assert_eq!(server.balance_cents("payout:alice"), 900);
    assert_eq!(server.wait(), 0);
}

#[test]
fn a_signal_ends_it_within_five_seconds_whoever_is_silent() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_in(dir.path(), &["--settle-timeout", "1h"], &[]);
    let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    let (rq, sold) = reserved(&mut bob, &mut alice, "lamp", 10.0);
    assert_eq!(buy(&mut bob, rq, "lamp", 10.0)["type"], "BUYING");
    let port = server.addr.port().to_string();
    let lines = (alice.accept_settlement(), bob.accept_settlement());
    let begun = Instant::now();
    assert_eq!(server.stop(), 0);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    // What was unfinished is resumed by the next start: nobody was charged, and both are told.
    let server = Server::start_in(dir.path(), &["--trade-port", &port], &[]);
    for (peer, rq) in [(&mut bob, rq), (&mut alice, sold)] {
        assert_eq!(peer.push("CANCEL")["rq"], rq);
    }
    assert_eq!(bob.deal(rq).unwrap()["state"], "cancelled");
    assert_eq!(server.balance_cents("card:bob"), 0);
    drop(lines);
}

#[test]
fn a_second_signal_ends_at_once() {
    let dir = tempfile::tempdir().unwrap();
    for first in [libc::SIGTERM, libc::SIGINT] {
        let ready = dir.path().join("ready.json");
        let mut child = server_command(dir.path(), &["--trade-port", "0", "--settle-timeout", "60s", "--plaintext"])
            .arg("--ready-file")
            .arg(&ready)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let addr = eventually("the server to be ready", || {
            let ready: Value = serde_json::from_str(&fs::read_to_string(&ready).ok()?).unwrap();
            ready["trade_udp"].as_str().unwrap().parse().ok()
        });
        fs::remove_file(&ready).unwrap();
        // A settlement without answers keeps the server busy.
        let mut peers = ["alice", "bob"].map(|name| Peer::unregistered(addr, name));
        peers.iter_mut().for_each(|peer| drop(peer.register()));
        let [mut alice, mut bob] = peers;
        let (rq, _) = reserved(&mut bob, &mut alice, "lamp", 10.0);
        assert_eq!(buy(&mut bob, rq, "lamp", 10.0)["type"], "BUYING");
        let lines = (alice.accept_settlement(), bob.accept_settlement());
        signal(child.id(), first);
        // The first signal has taken effect once the server no longer listens.
        eventually("it to stop listening", || std::net::TcpStream::connect(addr).err());
        let begun = Instant::now();
        signal(child.id(), libc::SIGTERM);
        let code = ended(&mut child);
        assert!(code == Some(130) || code == Some(0), "{code:?}");
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
        drop(lines);
        fs::remove_dir_all(dir.path().join("state")).unwrap();
    }
}
