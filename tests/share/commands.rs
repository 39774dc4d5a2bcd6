//! `p2s2 share` from the command line, against a running node.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use serde_json::{Value, json};

use crate::nodes::{Node, Server, TestDir, content};
use crate::support::{eventually, program};

/// A user at a shell, with a home directory and a node.
struct ShellUser<'a> {
    place: &'a TestDir,
    node: &'a Node,
    home: &'a str,
}

impl ShellUser<'_> {
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

    /// Runs a command that must succeed; returns its output.
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

    /// Runs a command that must fail; returns its error, which must be one line.
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
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let (anns, bobs) = (Node::start(&place, &server, "ann", &[]), Node::start(&place, &server, "bob", &[]));
    let ann = ShellUser { place: &place, node: &anns, home: "home-ann" };
    let bob = ShellUser { place: &place, node: &bobs, home: "home-bob" };
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
    // By the tracked name, by a path, and under another name.
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

/// Runs a command without the node's address, using the nodes' home directory.
fn anywhere(place: &TestDir, config: &str, words: &[&str]) -> (Option<i32>, String, String) {
    let output = program("share")
        .args(words)
        .env("HOME", place.path(""))
        .env("XDG_CONFIG_HOME", place.path(config))
        .env_remove("XDG_STATE_HOME")
        .env("P2S2_PASSWORD", "correct horse")
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_token_is_shown_to_the_node_of_its_name_alone_wherever_that_is() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let (ann, bob) = (Node::start(&place, &server, "ann", &[]), Node::start(&place, &server, "bob", &[]));
    for name in ["ann", "bob"] {
        let (code, said, error) = anywhere(&place, "config", &["register", "--name", name]);
        assert!(code == Some(0) && said.contains(&format!("signed in as {name}")), "{said}{error}");
    }
    let (ann_api, bob_api) = (ann.api().port().to_string(), bob.api().port().to_string());
    let (ann_peer, bob_peer) = (ann.peer().port(), bob.peer().port());
    assert_eq!((ann.stop(), bob.stop()), (0, 0));
    // Started with swapped ports: each has the other's port now.
    let ann = Node::start(&place, &server, "ann", &["--api-port", &bob_api]);
    let bob = Node::start(&place, &server, "bob", &["--api-port", &ann_api]);
    for (port, name) in [(&bob_api, "ann"), (&ann_api, "bob")] {
        let (code, said, error) = anywhere(&place, "config", &["status", "--api-port", port]);
        assert!(code == Some(0) && said.starts_with(&format!("{name} (")), "{said}{error}");
        let (code, said, _) = anywhere(&place, "config", &["status", "--name", name]);
        assert!(code == Some(0) && said.starts_with(&format!("{name} (")), "{said}");
    }
    let at = |name: &str| server.ask("LIST", json!({}))["registry"][name]["addr"][1].clone();
    assert_eq!((at("ann"), at("bob")), (json!(ann_peer), json!(bob_peer)), "no account has moved");
    // Nor does one move when named explicitly, or because of a stored token.
    let (code, _, error) = anywhere(&place, "config", &["status", "--name", "ann", "--api-port", &ann_api]);
    assert!(code == Some(1) && error.contains("is bob's, not ann's"), "{error}");
    let (code, _, error) = anywhere(&place, "config", &["login", "ann", "--api-port", &ann_api]);
    assert!(code == Some(1) && error.contains("is bob's"), "{error}");
    // After a logout the command says so; `status` does not start anything.
    let (code, _, error) = anywhere(&place, "config", &["logout", "--name", "ann"]);
    assert_eq!(code, Some(0), "{error}");
    let (code, _, error) = anywhere(&place, "config", &["status", "--name", "ann"]);
    assert!(code == Some(1) && error.contains("p2s2 share login"), "{error}");
    assert_eq!(at("ann"), Value::Null);
    drop((ann, bob));
}

#[test]
fn a_command_finds_the_only_node_and_names_several() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let (code, _, error) = anywhere(&place, "config", &["status", "--name", "ann"]);
    assert!(code == Some(1) && error.contains("no node of ann runs here"), "{error}");
    let ann = Node::start(&place, &server, "ann", &[]);
    let about = crate::nodes::http(ann.api(), "GET", "/api/client/node", None, None);
    assert_eq!((about.0, &about.1["name"]), (200, &json!("ann")));
    assert_eq!(about.1["server"], format!("127.0.0.1:{}", server.registry().port()));
    assert_eq!(about.1["version"], env!("CARGO_PKG_VERSION"));
    let bob = Node::start(&place, &server, "bob", &[]);
    let (code, _, error) = anywhere(&place, "config", &["status"]);
    let named = |name: &str, node: &Node| error.contains(&format!("{name} ({})", node.api()));
    assert!(code == Some(1) && error.lines().count() == 1 && error.contains("--name"), "{error}");
    assert!(named("ann", &ann) && named("bob", &bob), "{error}");
    // A killed node has left its running-node file behind, and is not listed.
    drop(bob);
    let (_, _, error) = anywhere(&place, "config", &["status", "--name", "bob"]);
    assert!(error.contains("no node of bob runs here, but of ") && error.contains("ann ("), "{error}");
    assert_eq!(anywhere(&place, "config", &["register", "--name", "ann"]).0, Some(0));
    assert_eq!(anywhere(&place, "config", &["status", "--name", "ann"]).0, Some(0));
}

#[test]
fn many_files_are_published_and_fetched_by_one_command() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let (anns, bobs) = (Node::begun(&place, &server, "ann", &[]), Node::begun(&place, &server, "bob", &[]));
    let ann = ShellUser { place: &place, node: &anns, home: "home-ann" };
    let bob = ShellUser { place: &place, node: &bobs, home: "home-bob" };
    ann.says(&["login"]);
    bob.says(&["login"]);
    for number in 0..40 {
        place.file(&format!("many/f{number:02}.txt"), number);
    }
    place.file("many/other.pdf", 9);
    fs::create_dir(place.path("shared/many/sub")).unwrap();
    let said = ann.says(&["publish", "many/*"]);
    assert_eq!(said.lines().filter(|line| line.ends_with("is published")).count(), 41, "{said}");
    // A failure is reported and does not stop the other files.
    let output = ann.run(&["publish", "many/f00.txt", "many/none.txt", "many/f01.txt"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");
    assert!(error.contains("many/none.txt"), "{error}");
    fs::create_dir(place.path("shared/got")).unwrap();
    let said = bob.says(&["fetch", "f*.txt", "--to", "got"]);
    assert_eq!(said.lines().count(), 40, "{said}");
    for number in 0..40 {
        let name = format!("f{number:02}.txt");
        assert_eq!(fs::read(place.path("shared/got").join(&name)).unwrap(), content(&format!("many/{name}"), number));
    }
    assert!(!place.path("shared/got/other.pdf").exists());
    // From one owner, whatever others have; each file once, even if it matches twice.
    let cees = Node::begun(&place, &server, "cee", &[]);
    let cee = ShellUser { place: &place, node: &cees, home: "home-cee" };
    cee.says(&["login"]);
    place.file("cees/g1.txt", 100);
    place.file("cees/g2.txt", 101);
    cee.says(&["publish", "cees/g1.txt", "cees/g2.txt"]);
    place.file("many/g3.txt", 102);
    ann.says(&["publish", "many/g3.txt"]);
    fs::create_dir(place.path("shared/of-cee")).unwrap();
    let said = bob.says(&["fetch", "g*.txt", "g1.txt", "--from", "cee", "--to", "of-cee"]);
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(!place.path("shared/of-cee/g3.txt").exists() && place.path("shared/of-cee/g1.txt").exists());
    let missing = bob.fails(&["fetch", "f*", "--from", "cee", "--to", "of-cee"]);
    assert!(missing.contains("cee has no file like f*"), "{missing}");
    let missing = bob.fails(&["fetch", "other.pdf", "--to", "nowhere/other.pdf"]);
    assert!(missing.contains("no such folder") && missing.contains("nowhere"), "{missing}");
}

#[test]
fn who_interrupts_a_fetch_is_told_that_it_goes_on() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let bobs = Node::begun(&place, &server, "bob", &[]);
    let bob = ShellUser { place: &place, node: &bobs, home: "home-bob" };
    bob.says(&["login"]);
    // A host that accepts connections and never responds.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut host = std::net::TcpStream::connect(server.registry()).unwrap();
    let files = json!({"slow.bin": {"size": 5, "modified": 1, "is_published": true}});
    let data = json!({"hostname": "slow", "port": silent.local_addr().unwrap().port(), "files_metadata": files});
    std::io::Write::write_all(&mut host, format!("{}\n", json!({"action": "REGISTER", "data": data})).as_bytes())
        .unwrap();
    eventually("the registry to know it", || (server.hosts_of("slow.bin") == ["slow"]).then_some(()));
    let mut fetch = program("share")
        .args(["fetch", "slow.bin", "--api-port", &bobs.api().port().to_string()])
        .env("HOME", place.path("home-bob"))
        .env_remove("XDG_CONFIG_HOME")
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let id = eventually("the fetch to begin", || {
        bobs.shows("fetches")["fetches"].as_object().unwrap().keys().next().cloned()
    });
    crate::support::signal(fetch.id(), libc::SIGINT);
    let code = eventually("the command to end", || fetch.try_wait().unwrap()).code();
    let mut error = String::new();
    std::io::Read::read_to_string(&mut fetch.stderr.take().unwrap(), &mut error).unwrap();
    assert_eq!(code, Some(130), "{error}");
    assert!(error.contains("goes on in the node") && error.contains(&format!("fetches cancel {id}")), "{error}");
    assert_ne!(bobs.progress(&id)["status"], "cancelled");
    let said = bob.says(&["fetches", "cancel", &id]);
    assert!(said.contains("cancelled"), "{said}");
    // With many files, each fetch that continues is named, and how many were not begun.
    let names: Vec<String> = (0..12).map(|number| format!("slow{number:02}.bin")).collect();
    let file = |name: &String| (name.clone(), json!({"size": 5, "modified": 1, "is_published": true}));
    let files: serde_json::Map<String, Value> = names.iter().map(file).collect();
    let data = json!({"hostname": "slow2", "port": silent.local_addr().unwrap().port(), "files_metadata": files});
    let mut other = std::net::TcpStream::connect(server.registry()).unwrap();
    std::io::Write::write_all(&mut other, format!("{}\n", json!({"action": "REGISTER", "data": data})).as_bytes())
        .unwrap();
    eventually("the registry to know it", || (server.hosts_of("slow11.bin") == ["slow2"]).then_some(()));
    fs::create_dir(place.path("shared/got")).unwrap();
    let mut fetch = program("share")
        .args(["fetch", "slow*", "--from", "slow2", "--to", place.path("shared/got").to_str().unwrap()])
        .args(["--api-port", &bobs.api().port().to_string()])
        .env("HOME", place.path("home-bob"))
        .env_remove("XDG_CONFIG_HOME")
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let of_many = |fetches: Value| {
        let all = fetches["fetches"].as_object().unwrap().clone();
        all.into_iter().filter(|(_, fetch)| fetch["status"] != "cancelled").map(|(id, _)| id).collect::<Vec<_>>()
    };
    let ids = eventually("as many as go at a time to begin", || {
        Some(of_many(bobs.shows("fetches"))).filter(|ids| ids.len() == 8)
    });
    crate::support::signal(fetch.id(), libc::SIGINT);
    let code = eventually("the command to end", || fetch.try_wait().unwrap()).code();
    let mut error = String::new();
    std::io::Read::read_to_string(&mut fetch.stderr.take().unwrap(), &mut error).unwrap();
    assert_eq!(code, Some(130), "{error}");
    for id in &ids {
        assert!(error.contains(&format!("fetches cancel {id}")), "{id}: {error}");
    }
    assert!(error.contains("4 of 12 files were not begun") && error.lines().count() == 9, "{error}");
}

#[test]
fn words_that_are_wrong_end_with_2_and_nobody_there_with_1() {
    let place = TestDir::new();
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
