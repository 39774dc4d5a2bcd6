//! `p2s2 share` from the command line, against a running node.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use serde_json::{Value, json};

use crate::nodes::{Node, Place, Server, content};
use crate::support::{eventually, program};

/// Somebody at a shell: a home, and the node that he uses.
struct Shell<'a> {
    place: &'a Place,
    node: &'a Node,
    home: &'a str,
}

impl Shell<'_> {
    fn run(&self, words: &[&str]) -> Output {
        program("share")
            .args(words)
            .args(["--api-port", &self.node.api().port().to_string()])
            .current_dir(self.place.path("shared"))
            .env("HOME", self.place.path(self.home))
            .env_remove("XDG_CONFIG_HOME")
            .env("P2S2_PASSWORD", "correct horse")
            .output()
            .unwrap()
    }

    /// What a command prints that succeeds.
    #[track_caller]
    fn says(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let (said, error) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert_eq!(output.status.code(), Some(0), "{words:?}: {said}{error}");
        assert!(!said.contains('\x1b') && !error.contains('\x1b'), "{words:?}: {said}{error}");
        said
    }

    /// The same with `--json`.
    #[track_caller]
    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.says(&[words, &["--json"]].concat())).unwrap()
    }

    /// What a command says that fails: one line.
    #[track_caller]
    fn fails(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{words:?}: {error}");
        assert!(error.starts_with("error: ") && error.lines().count() == 1, "{words:?}: {error}");
        error
    }
}

#[test]
fn a_whole_story_at_two_shells() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let (anns, bobs) = (Node::start(&place, &server, "ann", &[]), Node::start(&place, &server, "bob", &[]));
    let ann = Shell { place: &place, node: &anns, home: "home-ann" };
    let bob = Shell { place: &place, node: &bobs, home: "home-bob" };
    let none = ann.fails(&["list"]);
    assert!(none.contains("p2s2 share login"), "{none}");

    let said = ann.says(&["register", "ann", "--display-name", "Ann Doe"]);
    assert!(said.contains("signed in as ann"), "{said}");
    let signed_in = bob.json(&["register", "bob"]);
    assert_eq!((&signed_in["ok"], &signed_in["user"]["username"]), (&json!("register"), &json!("bob")));
    assert!(signed_in["token"].is_null(), "the token is not for the screen");
    let folder = place.path("home-ann/.config/p2s2");
    let kept: Vec<_> = fs::read_dir(&folder).unwrap().map(|it| it.unwrap().path()).collect();
    assert!(kept.iter().any(|file| fs::read_to_string(file).unwrap().contains("eyJ")), "{kept:?}");
    for file in &kept {
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
    }

    place.file("notes.txt", 2048);
    place.file("other.txt", 10);
    assert_eq!(ann.says(&["list"]), "no files yet: `p2s2 share add FILE`, or `publish FILE`\n");
    assert_eq!(ann.says(&["add", "notes.txt", "./other.txt"]), "notes.txt is tracked\nother.txt is tracked\n");
    // By the name that is tracked, by a path, and under another name.
    assert_eq!(ann.says(&["publish", "notes.txt"]), "notes.txt is published\n");
    let published = ann.json(&["publish", &place.text("shared/other.txt"), "--as", "another.txt"]);
    assert_eq!(published["path"], place.text("shared/other.txt"));
    let listed = ann.says(&["list", "--published"]);
    assert!(listed.contains("notes.txt") && listed.contains("2.00 KiB") && listed.contains("another.txt"), "{listed}");
    assert_eq!(listed.lines().count(), 3, "{listed}");
    eventually("bob to see them", || bob.says(&["network"]).contains("2 files").then_some(()));
    let found = bob.says(&["search", "NOTES"]);
    assert!(found.contains("notes.txt") && found.contains("Ann Doe (ann)") && found.contains("1 file\n"), "{found}");
    let peers = bob.says(&["peers"]);
    assert!(peers.contains("ann") && peers.contains(&anns.peer().to_string()) && peers.contains("2 peers"), "{peers}");
    let status = bob.says(&["status"]);
    assert!(status.contains("bob (bob) is active"), "{status}");
    anns_digests(&server);

    let got = place.path("shared/got");
    fs::create_dir(&got).unwrap();
    let fetched = bob.says(&["fetch", "notes.txt", "--to", "got/"]);
    assert!(fetched.contains(got.join("notes.txt").to_str().unwrap()) && fetched.contains("verified"), "{fetched}");
    assert_eq!(fs::read(got.join("notes.txt")).unwrap(), content("notes.txt", 2048));
    let again = bob.fails(&["fetch", "notes.txt", "--to", "got/notes.txt"]);
    assert!(again.contains("never overwritten"), "{again}");
    let begun = bob.json(&["fetch", "another.txt", "--background"]);
    let id = begun["fetch_id"].as_str().unwrap();
    eventually("it to be here", || (bob.json(&["fetches"])["fetches"][id]["status"] == "completed").then_some(()));
    let over = bob.fails(&["fetches", "pause", id]);
    assert!(over.contains("completed"), "{over}");

    assert_eq!(ann.says(&["unpublish", "notes.txt"]), "notes.txt is hidden from others\n");
    eventually("it to be hidden", || bob.says(&["search", "notes"]).contains("0 files").then_some(()));
    let missing = bob.fails(&["fetch", "notes.txt"]);
    assert!(missing.contains("nobody else"), "{missing}");
    let outside = ann.fails(&["publish", "/etc/hostname"]);
    assert!(outside.contains("--folder"), "{outside}");

    assert_eq!(ann.says(&["logout"]), "ann is signed out\n");
    assert!(ann.fails(&["list"]).contains("p2s2 share login"));
    assert!(ann.says(&["login"]).contains("signed in as ann"), "who signed in last");
    assert!(ann.says(&["list"]).contains("notes.txt"));
}

fn anns_digests(server: &Server) {
    eventually("the digests", || {
        let answer = server.ask("REQUEST", json!({"fname": "notes.txt"}));
        answer["hosts"][0]["pieces_root"].is_string().then_some(())
    });
}

#[test]
fn a_node_that_was_begun_anew_is_told_to_take_part() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let node = Node::start(&place, &server, "ann", &[]);
    let shell = Shell { place: &place, node: &node, home: "home" };
    shell.says(&["register", "ann"]);
    // The same user at another node, with the token of before.
    let other = Node::start(&place, &server, "cy", &["--folder", &place.text("shared")]);
    let folder = place.path("home/.config/p2s2");
    let (from, to) = (node.api().port().to_string(), other.api().port().to_string());
    for file in fs::read_dir(&folder).unwrap().map(|it| it.unwrap().path()) {
        let named = file.file_name().unwrap().to_str().unwrap().replace(&from, &to);
        fs::copy(&file, folder.join(named)).unwrap();
    }
    let there = Shell { place: &place, node: &other, home: "home" };
    assert!(there.says(&["status"]).contains("ann (ann) is active"));
}

#[test]
fn words_that_are_wrong_end_with_2_and_nobody_there_with_1() {
    let place = Place::new();
    let run = |words: &[&str]| {
        program("share").args(words).env("HOME", place.path("home")).env_remove("XDG_CONFIG_HOME").output().unwrap()
    };
    for words in [&["publish"][..], &["frobnicate"], &["fetch", "a", "--too"], &["fetches", "pause"], &["--port", "x"]]
    {
        let output = run(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let help = run(&["--help"]);
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.contains("Examples:") && help.contains("p2s2 share publish"), "{help}");
    for command in ["register", "publish", "search", "fetch"] {
        let output = run(&[command, "--help"]);
        assert!(String::from_utf8(output.stdout).unwrap().contains("Example"), "{command}");
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let output = program("share")
        .args(["login", "ann", "--api-port", &nobody])
        .env("HOME", place.path("home"))
        .env("P2S2_PASSWORD", "x")
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");
    assert!(error.contains("does not answer") && error.contains(&nobody), "{error}");
    let json = run(&["list", "--json"]);
    assert_eq!(json.status.code(), Some(1));
    assert!(serde_json::from_slice::<Value>(&json.stdout).unwrap()["error"].is_string());
}
