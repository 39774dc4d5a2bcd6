//! The commands as people and scripts meet them: words in, words out, exit codes.

#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use support::*;

fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn every_command_has_help_with_an_example() {
    for command in ["server", "peer", "admin", "story"] {
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
fn settings_come_from_flag_then_environment_then_dotenv() {
    let dir = tempfile::tempdir().unwrap();
    // A value that is refused shows which one was read, without a server being started.
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
}

#[test]
fn the_whole_story_works() {
    // A port that nobody answers at: ours, bound and silent.
    let silent = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let (code, story, error) = run(program("story").args(["--server", &silent.local_addr().unwrap().to_string()]));
    assert_eq!(code, 0, "{story}\n{error}");
    for words in ["accepted [", "reserved [", "bought [", "sold [", "All of it worked."] {
        assert!(story.contains(words), "{words:?} is missing: {story}");
    }
    // And against a server that runs.
    let server = Server::start(&[]);
    let (code, story, error) = run(program("story").args(["--server", &server.addr.to_string()]));
    assert_eq!(code, 0, "{story}\n{error}");
    assert!(story.contains("A server answers"));
    assert_eq!(server.balance_cents("escrow"), 0);
    assert_eq!(server.balance_cents("fee"), 1_000);
    assert!(server.admin_json(&["peers"]).is_empty(), "the story's peers have left");
    // One that settles without TLS, found where the server's own setting says that it is.
    let server = Server::start(&["--plaintext"]);
    let dir = tempfile::tempdir().unwrap();
    let lines = format!("P2S2_SERVER_TRADE_PORT={}\nP2S2_PEER_WALLET=/nowhere\n", server.addr.port());
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

/// A peer with this input; its exit code, and what it printed and complained of.
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
