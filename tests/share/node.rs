//! A node as seen by other peers, the registry and its user's files.

use std::ffi::CString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use serde_json::{Value, json};

use crate::nodes::{Node, Server, TestDir, ask_registry, content};
use crate::support::{PATIENCE, eventually};

/// One request on a connection of its own; returns the whole response.
fn ask_peer(peer: SocketAddr, line: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(peer).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(line).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

#[test]
fn what_one_publishes_another_finds_fetches_and_has() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let ann = Node::begun(&place, &server, "ann", &[]);
    let bob = Node::begun(&place, &server, "bob", &[]);
    let path = place.file("report.pdf", 3_000_000);
    let answer = ann.does("publish", json!({"fname": "report.pdf", "local_path": path}));
    assert_eq!(answer["path"], path.to_str().unwrap());
    // The response came once the registry had it.
    assert_eq!(server.hosts_of("report.pdf"), ["ann"]);
    ann.is_hashed(&server, "report.pdf");
    let shown = server.ask("REQUEST", json!({"fname": "report.pdf"}))["hosts"][0].clone();
    assert_eq!((&shown["size"], &shown["features"]), (&json!(3_000_000), &json!(["range"])));
    assert_eq!(shown["display_name"], "ann Doe");
    let whole = blake3::hash(&content("report.pdf", 3_000_000)).to_hex().to_string();
    assert_eq!(shown["blake3"], whole);
    assert!(!shown.to_string().contains("shared"), "paths never leave the node: {shown}");
    let found = bob.shows("network-files?q=REPORT");
    assert_eq!((&found["total"], &found["files"][0]["owner_hostname"]), (&json!(1), &json!("ann")));
    assert_eq!(found["files"][0]["owner_port"], ann.peer().port());

    let begun = bob.does("fetch", json!({"fname": "report.pdf"}));
    assert_eq!((&begun["peer_hostname"], &begun["total_size"]), (&json!("ann"), &json!(3_000_000)));
    let done = bob.waits_for(begun["fetch_id"].as_str().unwrap(), "completed");
    assert_eq!((&done["downloaded_size"], &done["progress_percent"]), (&json!(3_000_000), &json!(100.0)));
    assert_eq!(done["verified"], true);
    let saved = begun["save_path"].as_str().unwrap();
    assert_eq!(saved, place.text("state-bob/repo/report.pdf"));
    assert_eq!(fs::read(saved).unwrap(), content("report.pdf", 3_000_000));
    // It is tracked as a local file, and not published.
    let local = bob.shows("local-files")["files"][0].clone();
    assert_eq!(
        (&local["name"], &local["path"], &local["is_published"]),
        (&json!("report.pdf"), &json!(saved), &json!(false))
    );
    assert_eq!(bob.shows("published-files")["files"], json!([]));
    assert_eq!(server.hosts_of("report.pdf"), ["ann"]);
    let all = bob.shows("fetches")["fetches"].clone();
    assert_eq!(all.as_object().unwrap().len(), 1);
    // Published by both, then unpublished by one.
    bob.does("publish", json!({"fname": "report.pdf"}));
    assert_eq!(server.hosts_of("report.pdf").len(), 2);
    ann.does("unpublish", json!({"fname": "report.pdf"}));
    assert_eq!(server.hosts_of("report.pdf"), ["bob"]);
    assert_eq!(ask_peer(ann.peer(), b"GET report.pdf\n"), b"ERROR notfound\n");
    assert_eq!(ann.shows("local-files")["files"][0]["is_published"], false);
}

#[test]
fn a_bare_peer_is_served_and_nothing_but_what_is_published() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let ann = Node::begun(&place, &server, "ann", &[]);
    let path = place.file("a.txt", 1000);
    let hidden = place.file("hidden.txt", 10);
    ann.does("add-file", json!({ "filepath": hidden }));
    // Before it is published nothing is served.
    assert_eq!(ask_peer(ann.peer(), b"GET a.txt\n"), b"ERROR notfound\n");
    ann.publishes(&server, &path);
    let mut answer = b"LENGTH 1000\n".to_vec();
    answer.extend(content("a.txt", 1000));
    assert_eq!(ask_peer(ann.peer(), b"GET a.txt\n"), answer);
    let secret = place.path("shared/../server/jwt.key");
    let long = "x".repeat(4000);
    for name in [
        "hidden.txt",
        "../shared/a.txt",
        "./a.txt",
        path.to_str().unwrap(),
        secret.to_str().unwrap(),
        "a.txt\0",
        "a.txt/",
        "shared/a.txt",
        "..",
        "",
        &long,
        "..\\a.txt",
        "%61.txt",
    ] {
        for verb in ["GET ", "META ", "RANGE 0 1 "] {
            let answer = ask_peer_line(ann.peer(), &format!("{verb}{name}\n"));
            assert_eq!(answer, "ERROR notfound\n", "{verb}{name}");
        }
    }
    // A changed file is not served until it is published again.
    fs::write(&path, "other").unwrap();
    assert_eq!(ask_peer(ann.peer(), b"GET a.txt\n"), b"ERROR filenotfound\n");
    ann.does("publish", json!({"fname": "a.txt"}));
    assert_eq!(ask_peer(ann.peer(), b"GET a.txt\n"), b"LENGTH 5\nother");
    fs::remove_file(&path).unwrap();
    assert_eq!(ask_peer(ann.peer(), b"GET a.txt\n"), b"ERROR filenotfound\n");
    // Nor is a link to a secret in its place.
    symlink(place.path("server/jwt.key"), &path).unwrap();
    assert_eq!(ask_peer(ann.peer(), b"GET a.txt\n"), b"ERROR filenotfound\n");
}

/// The first line of the response.
fn ask_peer_line(peer: SocketAddr, line: &str) -> String {
    let mut stream = TcpStream::connect(peer).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(line.as_bytes()).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    answer
}

#[test]
fn a_peer_that_knows_only_get_is_fetched_from_and_shown_as_unverified() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let bob = Node::begun(&place, &server, "bob", &[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let registry = TcpStream::connect(server.registry()).unwrap();
    let register = json!({"action": "REGISTER", "data": {"hostname": "bare", "port": port,
        "files_metadata": {"song.ogg": {"size": 5, "modified": 1_699_267_200, "is_published": true}}}});
    (&registry).write_all(format!("{register}\n").as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(&registry).read_line(&mut line).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["status"], "OK", "{line}");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            let answer: &[u8] = if line == "GET song.ogg\n" { b"LENGTH 5\nhello" } else { b"ERROR notfound\n" };
            // The client may have closed the connection.
            let _ = stream.write_all(answer);
        }
    });
    let id = bob.fetches("song.ogg", &place.path("shared"));
    let done = bob.waits_for(&id, "completed");
    assert_eq!(done["verified"], false);
    assert_eq!(fs::read(place.path("shared/song.ogg")).unwrap(), b"hello");
}

#[test]
fn nobody_fetches_from_himself_and_what_nobody_has_is_not_found() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let ann = Node::begun(&place, &server, "ann", &[]);
    ann.publishes(&server, &place.file("a.txt", 10));
    for name in ["a.txt", "nothing"] {
        let reason = ann.refuses("fetch", json!({"fname": name, "save_path": place.path("shared/new")}), 404);
        assert!(reason.contains("nobody else"), "{reason}");
    }
}

#[test]
fn each_rule_of_the_paths_holds() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let ann = Node::begun(&place, &server, "ann", &[]);
    let bob = Node::begun(&place, &server, "bob", &[]);
    fs::create_dir(place.path("outside")).unwrap();
    fs::create_dir(place.path("shared/.hidden")).unwrap();
    for file in ["outside/secret", "shared/.dot", "shared/.hidden/file", "state-ann/repo/of-repo", "shared/good"] {
        fs::write(place.path(file), file).unwrap();
    }
    symlink(place.path("outside/secret"), place.path("shared/link-out")).unwrap();
    symlink(place.path("outside"), place.path("shared/way-out")).unwrap();
    symlink(place.path("shared/good"), place.path("outside/way-in")).unwrap();
    let fifo = CString::new(place.text("shared/fifo")).unwrap();
    // SAFETY: mkfifo only reads the path, which is a NUL-terminated string.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    let refused = [
        (place.text("outside/secret"), 403),
        (place.text("shared/../outside/secret"), 403),
        (place.text("shared/link-out"), 403),
        (place.text("shared/way-out/secret"), 403),
        (place.text("shared/.dot"), 403),
        (place.text("shared/.hidden/file"), 403),
        (place.text("state-ann/share.db"), 403),
        (place.text("server/jwt.key"), 403),
        ("/etc/passwd".to_owned(), 403),
        ("/no/such/file".to_owned(), 403),
        (place.text("shared/none"), 404),
        (place.text("shared"), 400),
        (place.text("shared/fifo"), 400),
        ("shared/good".to_owned(), 400),
        ("good".to_owned(), 400),
        (String::new(), 400),
        (format!("{}\0", place.text("shared/good")), 400),
        (format!("/{}", "x".repeat(5000)), 400),
    ];
    for (path, status) in &refused {
        ann.refuses("add-file", json!({ "filepath": path }), *status);
        ann.refuses("publish", json!({"fname": "x", "local_path": path}), *status);
        ann.refuses("publish", json!({"fname": "x", "path": path}), *status);
    }
    assert_eq!(ann.shows("local-files")["files"], json!([]));
    ann.refuses("add-file", json!({ "filepath": 5 }), 400);
    ann.refuses("add-file", json!({}), 400);
    for (path, name) in [("shared/good", "good"), ("outside/way-in", "way-in"), ("state-ann/repo/of-repo", "of-repo")] {
        let file = ann.does("add-file", json!({ "filepath": place.path(path) }))["file"].clone();
        assert_eq!(file["name"], name);
        // The resolved path.
        assert!(!file["path"].as_str().unwrap().contains("way-in"), "{file}");
    }

    bob.publishes(&server, &place.file("wanted", 10));
    let saves = [
        ("shared/good", 409),
        ("outside", 403),
        ("outside/new", 403),
        ("shared/way-out", 403),
        ("shared/way-out/new", 403),
        ("shared/../new", 403),
        ("shared/.new", 403),
        ("shared/.hidden", 403),
        ("shared/.hidden/new", 403),
        ("state-ann/new", 403),
        ("shared/none/new", 404),
        ("shared/link-out", 403),
        ("shared", 409),
    ];
    for (path, status) in saves {
        ann.refuses("fetch", json!({"fname": "wanted", "save_path": place.path(path)}), status);
    }
    for path in ["new", ""] {
        ann.refuses("fetch", json!({"fname": "wanted", "save_path": path}), 400);
    }
    assert!(!place.path("outside/new").exists() && !place.path("new").exists());
    assert_eq!(fs::read(place.path("outside/secret")).unwrap(), b"outside/secret");
    assert_eq!(fs::read(place.path("shared/good")).unwrap(), b"shared/good");
}

#[test]
fn only_the_first_account_names_paths_outside_the_repo() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let mut node = Node::begun(&place, &server, "ann", &[]);
    let ann = node.token.clone();
    let repo = node.shows("status")["client"]["repo"].as_str().unwrap().to_owned();
    let good = place.file("good", 10);
    fs::write(format!("{repo}/in-repo"), "x").unwrap();

    "zoe".clone_into(&mut node.name);
    node.register();
    let client = node.shows("status")["client"].clone();
    assert_eq!(client["hostname"], "zoe");
    assert_ne!(client["port"], node.peer().port(), "each user has a peer port");
    node.refuses("add-file", json!({ "filepath": good }), 403);
    node.refuses("publish", json!({"fname": "good", "local_path": good}), 403);
    node.refuses("fetch", json!({"fname": "good", "save_path": place.path("shared/x")}), 403);
    node.does("publish", json!({"fname": "in-repo", "local_path": format!("{repo}/in-repo")}));
    assert_eq!(server.hosts_of("in-repo"), ["zoe"]);
    // Each user has only their own files.
    node.token = ann;
    assert_eq!(node.shows("local-files")["files"], json!([]));
    node.refuses("unpublish", json!({"fname": "in-repo"}), 404);
    node.does("add-file", json!({ "filepath": good }));
    assert_eq!(node.shows("status")["client"]["port"], node.peer().port());
    assert_eq!(server.hosts_of("in-repo"), ["zoe"]);
}

#[test]
fn tracking_is_idempotent_and_a_name_stands_for_one_path() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let ann = Node::begun(&place, &server, "ann", &[]);
    let (one, other) = (place.file("one", 10), place.file("other", 11));
    let first = ann.does("add-file", json!({ "filepath": one }))["file"].clone();
    assert_eq!(ann.does("add-file", json!({ "filepath": one }))["file"], first);
    ann.does("publish", json!({"fname": "one"}));
    ann.does("publish", json!({"fname": "one", "local_path": one}));
    ann.refuses("publish", json!({"fname": "one", "local_path": other}), 409);
    ann.does("publish", json!({"fname": "uno", "local_path": one}));
    ann.refuses("publish", json!({"fname": "nothing"}), 404);
    ann.refuses("publish", json!({"fname": "a/b", "local_path": one}), 400);
    ann.refuses("unpublish", json!({"fname": "nothing"}), 404);
    ann.does("unpublish", json!({"fname": "one"}));
    ann.does("unpublish", json!({"fname": "one"}));
    let here = ann.does("check-local-duplicate", json!({"fname": "one"}));
    assert_eq!((&here["exists"], &here["local_file"]["size"]), (&json!(true), &json!(10)));
    assert_eq!(ann.does("check-local-duplicate", json!({"fname": "x"}))["exists"], false);
    fs::remove_file(&one).unwrap();
    ann.refuses("publish", json!({"fname": "one"}), 404);
}

#[test]
fn duplicates_are_warned_of_and_may_be_refused() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let ann = Node::begun(&place, &server, "ann", &[]);
    let bob = Node::begun(&place, &server, "bob", &[]);
    let path = place.file("a", 1234);
    ann.publishes(&server, &path);
    let modified = ann.shows("local-files")["files"][0]["modified"].clone();
    // Bob's node refreshes its view of the network.
    eventually("bob to see it", || (bob.shows("network-files")["total"] == 1).then_some(()));
    let found = bob.does("check-duplicate", json!({"fname": "b", "size": 1234, "modified": modified}));
    assert_eq!((&found["has_exact_duplicate"], &found["has_partial_duplicate"]), (&json!(true), &json!(false)));
    assert_eq!(found["exact_matches"][0]["owner_hostname"], "ann");
    let found = bob.does("check-duplicate", json!({"fname": "b", "size": 1234, "modified": 5}));
    assert_eq!((&found["has_exact_duplicate"], &found["has_partial_duplicate"]), (&json!(false), &json!(true)));
    let found = bob.does("check-duplicate", json!({"fname": "b", "size": 1234}));
    assert_eq!(found["has_partial_duplicate"], true);
    let found = bob.does("check-duplicate", json!({"fname": "b", "size": 1}));
    assert_eq!((&found["exact_matches"], &found["partial_matches"]), (&json!([]), &json!([])));
    bob.refuses("publish", json!({"fname": "b", "local_path": path, "overwrite": false}), 409);
    assert_eq!(server.hosts_of("b"), [""; 0]);
    let warned = bob.does("publish", json!({"fname": "b", "local_path": path}));
    assert_eq!(warned["duplicates"]["exact_matches"][0]["name"], "a");
    assert_eq!(server.hosts_of("b"), ["bob"]);
}

#[test]
fn a_fetch_pauses_goes_on_and_is_cancelled() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let bob = Node::begun(&place, &server, "bob", &[]);
    // A host that begins a response and then sends nothing more.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let registry = TcpStream::connect(server.registry()).unwrap();
    let register = json!({"action": "REGISTER", "data": {"hostname": "slow", "port": port,
        "files_metadata": {"big": {"size": 50_000_000, "modified": 5, "is_published": true}}}});
    (&registry).write_all(format!("{register}\n").as_bytes()).unwrap();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // The client may have closed the connection.
            let _ = stream.write_all(b"LENGTH 50000000\nbegin");
            open.push(stream);
        }
    });
    eventually("the host to be known", || (!server.hosts_of("big").is_empty()).then_some(()));
    let target = place.path("shared/big");
    let id = bob.fetches("big", &target);
    bob.refuses("fetch", json!({"fname": "big", "save_path": target}), 409);
    eventually("bytes", || (bob.progress(&id)["status"] == "downloading").then_some(()));
    assert_eq!(
        eventually("busy", || {
            let client = bob.shows("status")["client"].clone();
            (client["state"] == "busy").then(|| client["heartbeat_interval"].clone())
        }),
        30.0
    );
    assert_eq!(bob.does(&format!("fetches/{id}/pause"), json!({}))["progress"]["status"], "paused");
    eventually("no more busy", || (bob.shows("status")["client"]["state"] == "active").then_some(()));
    bob.does(&format!("fetches/{id}/resume"), json!({}));
    bob.waits_for(&id, "downloading");
    assert_eq!(bob.does(&format!("fetches/{id}/cancel"), json!({}))["progress"]["status"], "cancelled");
    assert!(!target.exists());
    let left: Vec<_> = fs::read_dir(place.path("shared")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
    bob.refuses(&format!("fetches/{id}/resume"), json!({}), 409);
    bob.refuses("fetches/none/pause", json!({}), 404);
    assert_eq!(bob.get("fetch-progress/none").0, 404);
}

#[test]
fn the_peer_port_is_kept_and_one_that_is_taken_is_told() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let ann = Node::begun(&place, &server, "ann", &["--port-min", "6100", "--port-max", "6900"]);
    let port = ann.peer().port();
    assert!((6100..=6900).contains(&port));
    // Another node gets another port.
    let bob = Node::begun(&place, &server, "bob", &["--port-min", "6100", "--port-max", "6900"]);
    assert_ne!(bob.peer().port(), port);
    let again = ann.kill()();
    assert_eq!(again.peer().port(), port);
    for (flag, port) in [("--port", port), ("--api-port", again.api().port())] {
        let args = [flag.to_owned(), port.to_string()];
        let output =
            Node::command(&place, server.registry().port(), server.api().port(), "cy", &args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        let line = said.lines().find(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("{said}"));
        assert!(line.contains(flag) && line.contains(&port.to_string()), "{line}");
    }
}

#[test]
fn a_node_that_ends_takes_its_files_with_it_and_comes_back_with_them() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let ann = Node::begun(&place, &server, "ann", &[]);
    ann.publishes(&server, &place.file("a", 10));
    assert_eq!(ann.stop(), 0);
    assert_eq!(server.hosts_of("a"), [""; 0]);
    // Without a sign-in: the secret that the registry issued is enough.
    let _ann = Node::start(&place, &server, "ann", &[]);
    eventually("the file to be back", || (server.hosts_of("a") == ["ann"]).then_some(()));
    // And nobody else can get the name in the meantime.
    let stranger = ask_registry(server.registry(), "REGISTER", json!({"hostname": "ann", "port": 6001}));
    assert_eq!(stranger["status"], "ERROR", "{stranger}");
}

#[cfg(target_os = "linux")]
#[test]
fn fetches_that_failed_hold_nothing_and_can_be_taken_up_again() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    const FILES: usize = 24;
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let bob = Node::begun(&place, &server, "bob", &[]);
    // A host that sends wrong content until told otherwise.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let is_good = Arc::new(AtomicBool::new(false));
    let registry = TcpStream::connect(server.registry()).unwrap();
    let files: serde_json::Map<String, Value> =
        (0..FILES).map(|n| (format!("f{n}"), json!({"size": 3, "modified": 5, "is_published": true}))).collect();
    let register = json!({"action": "REGISTER", "data": {"hostname": "odd", "port": port, "files_metadata": files}});
    (&registry).write_all(format!("{register}\n").as_bytes()).unwrap();
    let says = Arc::clone(&is_good);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let answer: &[u8] = if says.load(Relaxed) { b"LENGTH 3\nabc" } else { b"LENGTH 7\nabcdefg" };
            let mut stream = stream.unwrap();
            let _ = BufReader::new(&stream).read_line(&mut String::new());
            // The client may have closed the connection.
            let _ = stream.write_all(answer);
        }
    });
    eventually("the host to be known", || (!server.hosts_of("f0").is_empty()).then_some(()));
    let begun: Vec<String> = (0..FILES)
        .map(|n| {
            let id = bob.fetches(&format!("f{n}"), &place.path(&format!("shared/f{n}")));
            bob.waits_for(&id, "failed");
            id
        })
        .collect();
    let open_parts = || {
        let open = fs::read_dir(format!("/proc/{}/fd", bob.pid())).unwrap();
        let leads_to = |entry: std::io::Result<fs::DirEntry>| fs::read_link(entry.unwrap().path()).unwrap_or_default();
        open.map(leads_to).filter(|path| path.extension().is_some_and(|kind| kind == "part")).count()
    };
    eventually("most to be let go of", || (open_parts() < FILES / 2).then_some(()));
    // The first one is among them: it can be cancelled or resumed like any other.
    assert_eq!(bob.progress(&begun[0])["status"], "failed");
    assert_eq!(bob.does(&format!("fetches/{}/cancel", begun[0]), json!({}))["progress"]["status"], "cancelled");
    is_good.store(true, Relaxed);
    bob.does(&format!("fetches/{}/resume", begun[1]), json!({}));
    bob.waits_for(&begun[1], "completed");
    assert_eq!(fs::read(place.path("shared/f1")).unwrap(), b"abc");
    for id in &begun[2..] {
        bob.does(&format!("fetches/{id}/cancel"), json!({}));
    }
    let left = || fs::read_dir(place.path("shared")).unwrap().map(|it| it.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!(left(), ["f1"]);
}

#[test]
fn what_is_wrong_with_a_path_is_said_of_its_field() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let ann = Node::begun(&place, &server, "ann", &[]);
    let good = place.file("good", 10);
    for (path, status) in [("relative", 400), ("", 400), ("/a\0b", 400), ("/etc/passwd", 403)] {
        for (route, body, field) in [
            ("add-file", json!({ "filepath": path }), "filepath: "),
            ("publish", json!({"fname": "x", "local_path": path}), "local_path: "),
            ("publish", json!({"fname": "x", "path": path}), "path: "),
            ("fetch", json!({"fname": "x", "save_path": path}), "save_path"),
        ] {
            let said = ann.refuses(route, body, status);
            assert!(said.starts_with(field), "{route} {path:?}: {said}");
        }
    }
    ann.does("add-file", json!({ "filepath": good }));
}

/// A proxy in front of a registry that refuses one action this many times.
fn refusing(registry: SocketAddr, action: &'static str, times: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let left = Arc::new(AtomicUsize::new(times));
    // It ends with the test process.
    thread::spawn(move || {
        for node in listener.incoming() {
            let (node, left) = (node.unwrap(), Arc::clone(&left));
            thread::spawn(move || {
                let server = TcpStream::connect(registry).unwrap();
                let mut answers = BufReader::new(&server).lines();
                for line in BufReader::new(&node).lines() {
                    let line = line.unwrap();
                    let is_refused =
                        line.contains(action) && left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
                    let answer = if is_refused {
                        json!({"status": "ERROR", "reason": "UNAVAILABLE: try again"}).to_string()
                    } else {
                        writeln!(&server, "{line}").unwrap();
                        answers.next().unwrap().unwrap()
                    };
                    writeln!(&node, "{answer}").unwrap();
                }
                let _ = server.shutdown(Shutdown::Both);
            });
        }
    });
    addr
}

#[test]
fn what_the_registry_does_not_hide_is_not_said_to_be_hidden() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let between = refusing(server.registry(), "\"UNPUBLISH\"", 1);
    let ann = Node::begun(&place, &server, "ann", &["--registry-port", &between.port().to_string()]);
    ann.does("publish", json!({"fname": "a", "local_path": place.file("a", 10)}));
    assert_eq!(server.hosts_of("a"), ["ann"]);
    ann.does("unpublish", json!({"fname": "a"}));
    assert_eq!(server.hosts_of("a"), [""; 0]);
}
