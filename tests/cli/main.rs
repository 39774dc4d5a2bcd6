//! The command line as users and scripts see it: arguments, output, exit codes.

#[path = "../support/mod.rs"]
mod support;

#[cfg(unix)]
mod at_terminal;
#[cfg(target_os = "linux")]
mod auto;
mod examples;
#[cfg(unix)]
mod terminal;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use support::*;

fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn every_command_has_help_with_an_example() {
    for command in ["server", "peer", "seller", "buyer", "admin", "story"] {
        let (code, help, _) = run(program(command).arg("--help"));
        assert_eq!(code, 0, "{command}");
        assert!(help.contains("Example") && help.contains(&format!("p2s2 {command}")), "{command}: {help}");
    }
    for command in ["ledger", "peers", "deals", "log", "backup", "restore"] {
        let (code, help, _) = run(program("admin").args([command, "--help"]));
        assert!(code == 0 && help.contains(&format!("Example:\n  p2s2 admin {command}")), "{command}: {help}");
    }
    let (code, _, error) = run(&mut program("nonsense"));
    assert_eq!(code, 2);
    assert!(error.starts_with("error: "), "{error}");
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    for (shell, known) in [("bash", "p2s2__subcmd__server"), ("zsh", "#compdef p2s2"), ("fish", "complete -c p2s2")] {
        let (code, script, _) = run(program("completions").arg(shell));
        assert!(code == 0 && script.contains(known) && script.contains("offer-window"), "{shell}");
    }
    let (code, _, error) = run(program("completions").arg("cmd.exe"));
    assert!(code == 2 && error.contains("bash") && error.contains("fish"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man/man1");
    let (code, _, error) = run(program("man").arg(&pages));
    assert_eq!(code, 0, "{error}");
    let server = fs::read_to_string(pages.join("p2s2-server.1")).unwrap();
    assert!(server.contains(r"\-\-offer\-window") && server.contains("2min"), "{server}");
    for page in ["p2s2.1", "p2s2-share-fetch.1", "p2s2-admin-restore.1"] {
        assert!(pages.join(page).exists(), "{page}");
    }
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let (code, _, error) = run(program("man").arg(&file));
    assert!(code == 1 && error.lines().count() == 1 && error.contains("file"), "{error}");
}

#[test]
fn wrong_values_are_named_with_their_flag() {
    for (flag, value) in [
        ("--offer-window", "soon"),
        ("--offer-window", "0"),
        ("--fee-percent", "101"),
        ("--trade-port", "70000"),
        ("--bind", "home"),
        ("--services", "bakery"),
    ] {
        let (code, _, error) = run(program("server").args([flag, value]));
        assert_eq!(code, 2, "{flag} {value}");
        assert!(error.contains(flag), "{flag} {value}: {error}");
    }
}

#[test]
fn a_value_that_begins_with_a_dash_is_a_value() {
    for (command, flag, value) in [
        (&["server"][..], "--trade-port", "-1"),
        (&["server"], "--fee-percent", "-1"),
        (&["server"], "--fee-percent", "-0.5"),
        (&["server"], "--max-connections", "-1"),
        (&["server"], "--max-connections", "0"),
        (&["server"], "--offer-window", "-1s"),
        (&["server"], "--negotiate-window", "-1"),
        (&["server"], "--reserve-window", "-1h"),
        (&["server"], "--settle-timeout", "-1ms"),
        (&["peer", "--name", "x"], "--udp-port", "-1"),
        (&["peer", "--name", "x"], "--tcp-port", "-1"),
        (&["admin", "log"], "--since", "-1h"),
    ] {
        let (code, _, error) = run(program(command[0]).args(&command[1..]).args([flag, value]));
        assert_eq!(code, 2, "{flag} {value}");
        assert!(error.contains(flag) && error.contains(value) && !error.contains("unexpected"), "{error}");
    }
}

/// A process that is killed when dropped.
struct KillOnDrop(std::process::Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // It may have already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Text that would clear the screen, hide itself or reverse direction if it were printed unchanged.
const HOSTILE: &str = "\u{1b}[2J\u{9b}1m\u{7}\u{202e}evil";

fn is_harmless(text: &str) -> bool {
    !text.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}')
}

#[test]
fn what_others_said_is_printed_without_its_control_characters() {
    let dir = tempfile::tempdir().unwrap();
    // In a server's refusal.
    let server = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let peer = program("peer")
        .args(["--name", "carol", "--server", &server.local_addr().unwrap().to_string(), "--data-dir"])
        .arg(dir.path().join("peer"))
        .env("RUST_LOG", "debug")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut request = [0; 9_000];
    let (length, source) = server.recv_from(&mut request).unwrap();
    let request: serde_json::Value = serde_json::from_slice(&request[..length]).unwrap();
    for answer in [
        serde_json::json!({"type": "ERROR", "rq": null, "code": "BUSY", "reason": HOSTILE}),
        serde_json::json!({"type": "REGISTER-DENIED", "rq": request["rq"], "reason": HOSTILE}),
    ] {
        server.send_to(answer.to_string().as_bytes(), source).unwrap();
    }
    let output = peer.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("evil").count(), 2, "in the log and as the error: {said}");
    assert!(is_harmless(&said), "{said:?}");
    // In a setting and in a file name.
    fs::write(dir.path().join(".env"), format!("P2S2_SERVER_FEE_PERCENT='{HOSTILE}'\n")).unwrap();
    let (code, _, said) = run(program("server").current_dir(dir.path()));
    assert!(code == 2 && said.contains("evil") && is_harmless(&said), "{said:?}");
    fs::remove_file(dir.path().join(".env")).unwrap();
    let (code, _, said) = run(program("admin").arg("ledger").arg("--data-dir").arg(dir.path().join(HOSTILE)));
    assert!(code == 1 && said.contains("evil") && is_harmless(&said), "{said:?}");
}

#[test]
fn a_file_in_the_data_dirs_place_is_called_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("afile");
    fs::write(&file, "mine").unwrap();
    let (code, _, error) = run(program("server").args(["--trade-port", "0", "--data-dir"]).arg(&file));
    assert!(code == 1 && error.contains("afile is a file, not a folder"), "{error}");
    let (code, _, error) = run(program("admin").args(["peers", "--data-dir"]).arg(&file));
    assert!(code == 1 && error.contains("afile is a file, not a folder"), "{error}");
    assert_eq!(fs::read(&file).unwrap(), b"mine");
}

#[cfg(target_os = "linux")]
#[test]
fn a_server_that_cannot_say_that_it_is_ready_says_why() {
    let (reader, closed) = std::io::pipe().unwrap();
    drop(reader);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    for stdout in [Stdio::from(full), Stdio::from(closed)] {
        let dir = tempfile::tempdir().unwrap();
        let mut server = program("server");
        server.args(["--trade-port", "0", "--data-dir"]).arg(dir.path().join("state")).stdout(stdout);
        let output = server.stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        let error = said.lines().last().unwrap();
        assert!(error.starts_with("error: standard output cannot be written: "), "{said}");
        assert_eq!(error.matches("os error").count(), 1, "{error}");
    }
}

#[cfg(unix)]
#[test]
fn a_signal_ends_a_peer_that_waits_for_its_server() {
    for signal_number in [libc::SIGINT, libc::SIGTERM] {
        let dir = tempfile::tempdir().unwrap();
        let silent = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        silent.set_read_timeout(Some(PATIENCE)).unwrap();
        let peer = program("peer")
            .args(["--name", "carol", "--server", &silent.local_addr().unwrap().to_string(), "--data-dir"])
            .arg(dir.path().join("peer"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        silent.recv_from(&mut [0; 9_000]).unwrap();
        let begun = Instant::now();
        signal(peer.id(), signal_number);
        let output = peer.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert!(!said.contains("error"), "{said}");
        // Without the signal it would wait for about eleven seconds.
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
}

#[cfg(target_os = "linux")]
/// Starts a server with all services and a limit of open files; returns the ready file, or the log if the server ended.
fn start_all_services(open_files: usize, dir: &Path) -> Result<(KillOnDrop, serde_json::Value), String> {
    let ready = dir.join("ready.json");
    let limit = format!("ulimit -n {open_files} && exec \"$0\" \"$@\"");
    let log = dir.join("log");
    let ports = ["--trade-port", "--product-port", "--customer-port", "--seller-port", "--buyer-port"];
    let server = Command::new("sh")
        .args(["-c", &limit, env!("CARGO_BIN_EXE_p2s2"), "server", "--no-announce"])
        .args(ports.into_iter().chain(["--registry-port", "--api-port"]).flat_map(|port| [port, "0"]))
        .arg("--data-dir")
        .arg(dir.join("state"))
        .arg("--ready-file")
        .arg(&ready)
        .env_remove("P2S2_SERVER_SERVICES")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mut server = KillOnDrop(server);
    let said = || fs::read_to_string(&log).unwrap();
    let ended = eventually("the server to be ready, or to end", || match server.0.try_wait().unwrap() {
        Some(status) => Some(Err(format!("{status}: {}", said()))),
        None => fs::read_to_string(&ready).ok().map(|ready| Ok(serde_json::from_str(&ready).unwrap())),
    });
    ended.map(|ready| (server, ready))
}

#[test]
fn too_few_open_files_are_told_with_how_many_are_enough() {
    let dir = tempfile::tempdir().unwrap();
    let said = start_all_services(64, dir.path()).map(drop).unwrap_err();
    assert!(said.contains("exit status: 1") && said.contains("--services") && said.lines().count() == 1, "{said}");
    let wanted = said.split("ulimit -n) is 64, and ").nth(1).unwrap_or_else(|| panic!("{said}"));
    let wanted: usize = wanted.split(' ').next().unwrap().parse().unwrap();
    // The number that the error names is sufficient: every port responds, including those that need the databases.
    let (_server, ready) = start_all_services(wanted, dir.path()).unwrap_or_else(|said| panic!("{said}"));
    for (port, asked, wanted) in [
        ("trade_tcp", "{}\n", "BAD_REQUEST"),
        ("seller", "{\"type\":\"GET_ITEMS\",\"sid\":\"x\"}\n", "SESSION_EXPIRED"),
        ("buyer", "{\"type\":\"GET_CART\",\"sid\":\"x\"}\n", "SESSION_EXPIRED"),
        ("registry", "{\"action\":\"PING\",\"data\":{\"hostname\":\"x\"}}\n", "DEAD"),
        ("server_api", "GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n", "200 OK"),
    ] {
        let mut connection = std::net::TcpStream::connect(ready[port].as_str().unwrap()).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        connection.write_all(asked.as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(&connection).read_line(&mut answer).unwrap();
        assert!(answer.contains(wanted), "{port}: {answer}");
    }
}

#[test]
fn few_open_files_lower_the_connections_and_not_to_one() {
    let dir = tempfile::tempdir().unwrap();
    let (mut server, ready) = start_all_services(1024, dir.path()).unwrap_or_else(|said| panic!("{said}"));
    let addr: std::net::SocketAddr = ready["trade_tcp"].as_str().unwrap().parse().unwrap();
    let said = fs::read_to_string(dir.path().join("log")).unwrap();
    let lowered = said.split("--max-connections 12000 lowered to ").nth(1).unwrap_or_else(|| panic!("{said}"));
    let (bound, why) = lowered.split_once(": ").unwrap();
    let bound: usize = bound.parse().unwrap();
    assert!((300..1_000).contains(&bound) && why.contains("open files") && why.contains("1024"), "{said}");
    // All connections are served, except for the sixteenth reserved for each of the six other ports.
    let of_one_port = bound - 6 * (bound / 16);
    // Each connection sends at once, because the oldest silent ones would be closed.
    let serve = |_| {
        let mut connection = std::net::TcpStream::connect(addr).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        connection.write_all(b"{}\n").unwrap();
        let mut answer = String::new();
        BufReader::new(&connection).read_line(&mut answer).unwrap();
        assert!(answer.contains("BAD_REQUEST"), "{answer}");
        connection
    };
    let _served: Vec<_> = (0..of_one_port).map(serve).collect();
    let mut answer = String::new();
    BufReader::new(std::net::TcpStream::connect(addr).unwrap()).read_line(&mut answer).unwrap();
    assert!(answer.contains("BUSY"), "{answer}");
    signal(server.0.id(), libc::SIGTERM);
    assert_eq!(server.0.wait().unwrap().code(), Some(0));
}

#[test]
fn settings_come_from_flag_then_environment_then_dotenv() {
    let dir = tempfile::tempdir().unwrap();
    // An invalid value shows which source was read without starting a server.
    fs::write(dir.path().join(".env"), "P2S2_SERVER_FEE_PERCENT=from-dotenv\n").unwrap();
    let server = || {
        let mut server = program("server");
        server.current_dir(dir.path());
        server
    };
    let (code, _, error) = run(&mut server());
    assert!(code == 2 && error.contains("from-dotenv"), "{error}");
    let (code, _, error) = run(server().env("P2S2_SERVER_FEE_PERCENT", "from-env"));
    assert!(code == 2 && error.contains("from-env"), "{error}");
    let (code, _, error) =
        run(server().env("P2S2_SERVER_FEE_PERCENT", "from-env").args(["--fee-percent", "from-flag"]));
    assert!(code == 2 && error.contains("from-flag"), "{error}");
    let lines = "this is = no 'dotenv\nP2S2_SERVER_FEE_PERCENT=from dotenv with blanks # and a remark\n";
    fs::write(dir.path().join(".env"), lines).unwrap();
    let (code, _, error) = run(&mut server());
    assert!(code == 2 && error.contains("from dotenv with blanks") && !error.contains("remark"), "{error}");
    assert!(error.contains(".env, line 1") && !error.contains("no 'dotenv"), "{error}");
    // Values are literal, a byte order mark is skipped, and unknown variables cause a warning.
    let lines = "\u{feff}P2S2_SERVER_FEE_PERCENT=$HOME and ${HOME}#1\nP2S2_SERVER_FEE_PRECENT=5\n";
    fs::write(dir.path().join(".env"), lines).unwrap();
    let (code, _, error) = run(&mut server());
    assert!(code == 2 && error.contains("$HOME and ${HOME}#1"), "{error}");
    assert!(error.contains("warning: P2S2_SERVER_FEE_PRECENT: no flag has this name"), "{error}");
    let (_, _, error) = run(server().env("P2S2_SERVER_FEE_PRECENT", "5").env("P2S2_PASSWORD", "x"));
    assert!(error.contains("P2S2_SERVER_FEE_PRECENT") && !error.contains("P2S2_PASSWORD"), "{error}");
    let (_, _, error) = run(server().env("P2S2_SHARE_API_PORT", "1"));
    assert!(!error.contains("P2S2_SHARE_API_PORT"), "another command's: {error}");
}

/// A full disk, simulated with /dev/full.
#[cfg(target_os = "linux")]
#[test]
fn what_cannot_be_written_is_told_and_ends_with_1() {
    let dir = tempfile::tempdir().unwrap();
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let into_full = |command: &mut Command| {
        let child = command.stdin(Stdio::null()).stdout(full()).stderr(Stdio::piped()).current_dir(dir.path()).spawn();
        let output = child.unwrap().wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    // A port that is free at the moment; another user of it does no harm.
    let discovery = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let discover = ["lan", "discover", "--bind", "127.0.0.1", "--wait", "10ms", "--discovery-port", &discovery];
    for words in [&["--help"][..], &["server", "--help"], &["--version"], &discover] {
        let (code, said) = into_full(program(words[0]).args(&words[1..]));
        assert_eq!((code, said.lines().count()), (Some(1), 1), "{words:?}: {said}");
        assert!(said.starts_with("error: ") && said.contains("No space left"), "{words:?}: {said}");
    }
    // An interactive command whose output is lost.
    let mut lan = program("lan");
    lan.args(["--name", "ann", "--bind", "127.0.0.1", "--discovery-port", &discovery, "--data-dir"]).arg(dir.path());
    let (code, said) = into_full(&mut lan);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("error: the output could not be written: No space left"), "{said}");
}

#[test]
fn the_whole_story_works() {
    // A port at which nobody responds: bound here, but silent.
    let silent = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let (code, story, error) = run(program("story").args(["--server", &silent.local_addr().unwrap().to_string()]));
    assert_eq!(code, 0, "{story}\n{error}");
    let trade = ["accepted [", "reserved [", "bought [", "sold ["];
    let shop = ["on sale as 3-", "bought for 21.00", "shipped 3-", "+1 -0 (100 % up), 2 units sold"];
    let lan = [
        ": the harbour market opens at eight",
        "(to you): keep me a lamp",
        "has your message",
        "is Ann of the harbour",
    ];
    for words in trade.into_iter().chain(shop).chain(lan).chain(["All of it worked."]) {
        assert!(story.contains(words), "{words:?} is missing: {story}");
    }
    // Against a running server.
    let server = Server::start(&[]);
    // That server has no shop, and nobody listens at that port.
    let mut told = program("story");
    told.args(["--server", &server.addr.to_string(), "--seller", "127.0.0.1:1", "--buyer", "127.0.0.1:1"]);
    let (code, story, error) = run(&mut told);
    assert_eq!(code, 0, "{story}\n{error}");
    assert!(story.contains("A server answers") && story.contains("No shop answers at 127.0.0.1:1"), "{story}");
    assert_eq!(server.balance_cents("escrow"), 0);
    assert_eq!(server.balance_cents("fee"), 1_000);
    assert!(server.admin_json(&["peers"]).is_empty(), "the story's peers have left");
    // A server without TLS, found through the server's own settings.
    let server = Server::start(&["--plaintext"]);
    let dir = tempfile::tempdir().unwrap();
    let ports = "P2S2_SERVER_SELLER_PORT=1,0\nP2S2_SERVER_BUYER_PORT=1\nP2S2_BUYER_USER=nobody\n";
    let lines = format!("{ports}P2S2_SERVER_TRADE_PORT={}\nP2S2_PEER_WALLET=/nowhere\n", server.addr.port());
    fs::write(dir.path().join(".env"), lines).unwrap();
    let (code, story, error) = run(program("story").current_dir(dir.path()));
    assert_eq!(code, 0, "{story}\n{error}");
    assert!(
        story.contains(&format!("A server answers at {}", server.addr)) && story.contains("without TLS"),
        "{story}"
    );
    assert_eq!(server.balance_cents("fee"), 1_000);
    assert!(server.admin_json(&["peers"]).is_empty());
}

#[test]
fn a_peer_in_a_pipe_speaks_plainly_and_ends_with_its_input() {
    let server = Server::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let mut peer = program("peer")
        .args(["--name", "carol", "--server", &server.addr.to_string(), "--data-dir"])
        .arg(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let catalogue = concat!(env!("CARGO_MANIFEST_DIR"), "/data/samples/catalogue.json");
    let words = format!("sell lamp ten\nload {catalogue}\nitems\nfind ghost 1\nbogus\n");
    peer.stdin.take().unwrap().write_all(words.as_bytes()).unwrap();
    let output = peer.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let all = format!("{}{}", String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(!all.contains('\x1b'), "{all}");
    assert!(all.matches("error: ").count() >= 2, "a failed command is an error, and the loop goes on: {all}");
    assert!(all.contains("items on sale") && all.contains("PRICE"), "{all}");
}

/// Runs a peer with this input; returns exit code, standard output and standard error.
fn peer(server: &Server, dir: &std::path::Path, args: &[&str], input: &str) -> (i32, String, String) {
    let mut peer = program("peer")
        .args(["--server", &server.addr.to_string(), "--data-dir"])
        .arg(dir.join("peer"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    peer.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = peer.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_peer_without_a_name_takes_the_first_line_for_it() {
    let server = Server::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let (code, said, _) = peer(&server, dir.path(), &[], "\ncarol\nitems\n");
    assert_eq!(code, 0);
    assert!(said.starts_with("registered as carol") && said.contains("nothing is on sale"), "{said}");
    for input in ["", "\n\n"] {
        let (code, said, error) = peer(&server, dir.path(), &[], input);
        assert!(code == 2 && said.is_empty() && error.starts_with("error: a peer needs a name"), "{error}");
    }
    let (code, _, error) = peer(&server, dir.path(), &[], &format!("{}\nitems\n", "x".repeat(65)));
    assert!(code == 1 && error.contains("1 to 64 characters") && error.contains("--name"), "{error}");
}

#[test]
fn what_a_peer_prints_drives_no_terminal() {
    let server = Server::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let words = "find \"a\u{1b}[2J\u{9b}31m\u{202e}b\" 1\nwait last\ndeals\n";
    for args in [&["--name", "carol"][..], &["--name", "carol", "--json"]] {
        let (code, said, error) = peer(&server, dir.path(), args, words);
        assert_eq!(code, 0, "{error}");
        assert!(said.contains("[2J"), "{said}");
        assert!(!said.contains(|c: char| c != '\n' && (c.is_control() || c == '\u{202e}')), "{said:?}");
    }
}

#[test]
fn a_server_that_is_silent_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let deaf = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let closed = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    for (addr, cause) in [(deaf.local_addr().unwrap(), "nothing comes from there"), (closed, "nothing listens there")] {
        let mut peer = KillOnDrop(
            program("peer")
                .args(["--name", "carol", "--server", &addr.to_string(), "--data-dir"])
                .arg(dir.path().join(addr.port().to_string()))
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
        // The peer keeps asking; if it ended, the pipe would close without a line.
        let mut line = String::new();
        BufReader::new(peer.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains(&addr.to_string()) && line.contains(cause), "{line:?}");
        assert!(line.contains("does not answer yet") && line.contains("`p2s2 server`"), "{line:?}");
    }
}
