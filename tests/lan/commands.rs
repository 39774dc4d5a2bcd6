//! Commands in a pipe: case-insensitive, prompts for missing arguments, errors that do not end the peer.

use std::process::Command;

use crate::peers::{RawPeer, TestEnv, in_pipe};
use crate::support::signal;

#[test]
fn a_pipe_ends_with_its_input() {
    let env = TestEnv::new();
    let input = "frobnicate\n# a comment\n\nLiSt\ndm\nzoe\nhello\ndm nobody hi\nHISTORY 0\nhistory\nVERBOSE maybe\nverbose on\nverbose\n";
    let (code, out, error) = in_pipe(&mut env.command("alice"), input);
    assert_eq!((code, &*error), (0, ""), "{out}");
    assert!(!out.contains('\x1b') && !out.contains("alice>"), "{out:?}");
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("alice is here, at 127.0.0.1:"), "{out}");
    let errors: Vec<_> = lines.iter().filter(|line| line.starts_with("error: ")).collect();
    let expected = ["\"frobnicate\"", "\"zoe\"", "\"nobody\"", "COUNT", "usage: VERBOSE"];
    assert_eq!(errors.len(), expected.len(), "{out}");
    for (error, part) in errors.iter().zip(expected) {
        assert!(error.contains(part), "{part}: {error}");
    }
    for line in ["nobody is here yet", "no messages yet", "verbose is on", "verbose is off"] {
        assert!(lines.contains(&line), "{line}: {out}");
    }
}

#[test]
fn what_is_missing_is_asked_for() {
    let env = TestEnv::new();
    let mut alice = env.start("alice", &[]);
    let mut zoe = RawPeer::introduced(&env, "zoe", &alice);
    let asked = |alice: &mut crate::peers::Peer, lines: &[&str], event: &str| {
        lines.iter().for_each(|line| alice.send_line(line));
        alice.take(event, |it| it["event"] == event && it["from"].is_null() || !it["error"].is_null()).json
    };
    asked(&mut alice, &["pOsT", "# no comment: it answers"], "post");
    assert_eq!(zoe.next_from(&alice, "POST").get("CONTENT"), "# no comment: it answers");
    for lines in [&["Dm", "zoe", "one"][..], &["dm zoe", "one"], &["dm", "\"zoe\"", "one"]] {
        asked(&mut alice, lines, "dm");
        let said = zoe.next_from(&alice, "DM");
        assert_eq!(said.get("CONTENT"), "one", "{lines:?}");
        zoe.ack(&alice, said.get("MESSAGE_ID"));
        alice.take_event("confirmed");
    }
    asked(&mut alice, &["PROFILE", "Alice", "", ""], "profile");
    let said = zoe.next_from(&alice, "PROFILE");
    assert_eq!((said.get("DISPLAY_NAME"), said.get("STATUS")), ("Alice", ""));
    let error = asked(&mut alice, &["post", ""], "post");
    assert!(error["error"].is_string(), "{error}");
    for wrong in ["list now", "quit it", "peers all"] {
        assert!(alice.run_refused(wrong).starts_with("usage: "), "{wrong}");
    }
    let help = alice.run_command("help");
    let all: Vec<_> = help["commands"].as_array().unwrap().iter().map(|it| it["command"].as_str().unwrap()).collect();
    for command in ["POST", "DM", "PROFILE", "LIST", "PEERS", "HISTORY", "VERBOSE", "QUIT"] {
        assert!(all.contains(&command), "{all:?}");
    }
    alice.send_line("Quit");
    assert_eq!(alice.end_input(), 0);
}

#[test]
fn what_is_said_in_a_pipe_is_said_though_it_ends_at_once() {
    let env = TestEnv::new();
    let bob = env.start("bob", &[]);
    let (code, out, error) = in_pipe(&mut env.command("alice"), "post hello all\ndm bob hello bob\n");
    assert_eq!((code, &*error), (0, ""), "{out}");
    bob.take_message("post", "hello all");
    bob.take_message("dm", "hello bob");
    for line in ["sent to 1 peer", "sent to bob@127.0.0.1; waiting for it to be confirmed", "bob has your message"] {
        assert!(out.lines().any(|said| said == line), "{line}: {out}");
    }
}

/// QUIT and SIGTERM wait for pending DMs.
#[test]
fn an_end_waits_for_what_may_be_confirmed_yet() {
    let env = TestEnv::new();
    for by_signal in [false, true] {
        let mut alice = env.start("alice", &[]);
        let mut late = RawPeer::introduced(&env, "late", &alice);
        alice.run_command("dm late hello");
        let first = late.next_from(&alice, "DM");
        if by_signal {
            alice.signal(libc::SIGTERM)
        } else {
            alice.send_line("quit")
        }
        // The DM is still repeated.
        let again = late.next_from(&alice, "DM");
        assert_eq!(again.get("MESSAGE_ID"), first.get("MESSAGE_ID"));
        late.ack(&alice, again.get("MESSAGE_ID"));
        alice.take_event("confirmed");
        assert_eq!(alice.end_input(), 0);
    }
    // The wait is bounded.
    let mut alice = env.start("alice", &[]);
    let _silent = RawPeer::introduced(&env, "silent", &alice);
    alice.run_command("dm silent hello");
    let began_at = std::time::Instant::now();
    alice.send_line("quit");
    assert_eq!(alice.end_input(), 0);
    let took = began_at.elapsed();
    assert!((4_500..9_000).contains(&took.as_millis()), "{took:?}");
}

#[test]
fn verbose_says_who_when_and_why() {
    let env = TestEnv::new();
    let mut alice = crate::peers::Peer::spawn(&mut quiet(&env));
    alice = alice.started();
    let zoe = RawPeer::introduced(&env, "zoe", &alice);
    zoe.send(&alice, b"nonsense\n\n");
    zoe.post(&alice, "a fence", "f1");
    alice.take_message("post", "a fence");
    assert_eq!(alice.count(|it| it["event"] == "dropped"), 0, "terse");
    assert_eq!(alice.run_command("verbose")["on"], true);
    zoe.send(&alice, b"nonsense\n\n");
    let dropped = alice.take_event("dropped");
    assert_eq!((dropped["cause"].as_str(), dropped["from"].as_str()), (Some("malformed"), Some(&*zoe.addr())));
    assert!(dropped["at"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(alice.run_command("Verbose OFF")["on"], false);

    // Without --json: names and texts only, or everything with --verbose.
    for (flags, shown) in [(&[][..], "zoe: hi"), (&["--verbose"], &*format!("{} POST zoe@127.0.0.1: hi", zoe.addr()))] {
        let mut bob = env.command("bob");
        bob.args(flags).args(["--ready-file"]).arg(env.dir().join("ready.json"));
        let out = in_prose(&env, &zoe, bob);
        let line = out.lines().find(|line| line.ends_with(" hi")).unwrap_or_else(|| panic!("{out}"));
        assert!(
            if flags.is_empty() { line == shown } else { line.starts_with('[') && line.ends_with(shown) },
            "{line}"
        );
    }
}

fn quiet(env: &TestEnv) -> Command {
    let mut command = env.command("alice");
    command.arg("--json");
    command
}

/// Starts a peer, sends it a POST "hi", ends it by SIGTERM and returns its output.
fn in_prose(env: &TestEnv, zoe: &RawPeer, mut command: Command) -> String {
    use std::process::Stdio;
    let ready = env.dir().join("ready.json");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // Kept open: closing it would end the peer as well, and the signal would then force an immediate end.
    let input = child.stdin.take();
    let text = crate::support::eventually("the ready file", || std::fs::read_to_string(&ready).ok());
    std::fs::remove_file(&ready).unwrap();
    let ready: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(ready["discovery"], format!("127.255.255.255:{}", env.discovery_port));
    let to: std::net::SocketAddr = ready["lan"].as_str().unwrap().parse().unwrap();
    zoe.socket.send_to(b"TYPE:POST\nUSER_ID:zoe@127.0.0.1\nCONTENT:hi\n\n", to).unwrap();
    let mut question = RawPeer::new(env, "asker");
    // Datagrams are handled in order: after the response, the POST has been shown.
    question.socket.send_to(b"TYPE:PEER_LIST_REQUEST\nFROM:asker@127.0.0.1\n\n", to).unwrap();
    question.next("PEER_LIST_RESPONSE");
    signal(child.id(), libc::SIGTERM);
    let output = child.wait_with_output().unwrap();
    drop(input);
    assert_eq!(output.status.code(), Some(0));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_name_is_the_first_line_where_no_flag_says_it() {
    let env = TestEnv::new();
    let (code, out, _) = in_pipe(&mut env.nameless(), "dave\nlist\n");
    assert_eq!(code, 0);
    assert!(out.starts_with("dave is here"), "{out}");
    assert!(env.dir().join("data/state/lan-dave").is_dir());
    let (code, _, error) = in_pipe(&mut env.nameless(), "");
    assert_eq!(code, 2);
    assert!(error.starts_with("error: ") && error.contains("--name"), "{error}");
    for (flag, value) in [("--name", ""), ("--bind", "home"), ("--port", "70000"), ("--forget-after", "never")] {
        let (code, _, error) = in_pipe(env.nameless().args([flag, value]), "");
        assert!(code == 2 && error.contains(flag), "{flag}: {error}");
    }
    let (code, _, error) = in_pipe(env.command("eve").args(["--peer", "nowhere"]), "");
    assert!(code == 1 && error.contains("--peer nowhere") && error.lines().count() == 1, "{error}");
}

/// Received text is printed without control characters.
#[test]
fn what_others_say_is_harmless() {
    let env = TestEnv::new();
    let zoe = RawPeer::new(&env, "zoe");
    let mut alice = env.start("alice", &[]);
    let hostile = "\u{1b}[2J\u{7}\u{202e}evil";
    zoe.post(&alice, hostile, "h1");
    alice.take_message("post", hostile);
    let history = alice.history();
    assert_eq!(history[0]["text"], hostile, "JSON escapes it");
    alice.send_line("quit");
    assert_eq!(alice.end_input(), 0);
    let (code, out, _) = in_pipe(&mut env.command("alice"), "history\n");
    assert_eq!(code, 0);
    assert!(
        out.contains("evil") && !out.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}'),
        "{out:?}"
    );
}

#[test]
fn a_name_with_a_blank_is_the_whole_line_where_it_is_asked_for() {
    let env = TestEnv::new();
    let [mut bob, mary] = env.start_all(["bob", "Mary Ann"]);
    bob.wait_for_peers(&["Mary Ann"]);
    for lines in [&["dm", "Mary Ann", "one"][..], &["dm", "\"Mary Ann\"", "two"], &["dm \"Mary Ann\" three"]] {
        lines.iter().for_each(|line| bob.send_line(line));
        mary.take_message("dm", lines.last().unwrap().rsplit(' ').next().unwrap());
    }
}
