//! The client API: attempts to break every access rule.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::nodes::{Node, Server, TestDir, content, http, raw_http};
use crate::support::{PATIENCE, eventually, scaled};

const GETS: [&str; 10] = [
    "status",
    "local-files",
    "published-files",
    "network-files",
    "peers",
    "fetches",
    "events",
    "fetch-progress/x",
    "discover/ann",
    "ping/ann",
];
const POSTS: [&str; 11] = [
    "init",
    "add-file",
    "check-duplicate",
    "check-local-duplicate",
    "publish",
    "unpublish",
    "fetch",
    "fetches/x/pause",
    "fetches/x/resume",
    "fetches/x/cancel",
    "logout",
];

/// Requests a route with this token and an empty object; returns the status.
fn ask(node: &Node, token: Option<&str>, method: &str, path: &str) -> u16 {
    let body = (method == "POST").then(|| json!({}));
    let (status, answer) = http(node.api(), method, path, token, body.as_ref());
    assert_eq!(answer["success"], status == 200, "{path}: {answer}");
    status
}

/// The routes that need a token, according to the API's own description, with their methods.
fn guarded_routes(node: &Node) -> Vec<(String, String)> {
    let (_, api) = http(node.api(), "GET", "/api/openapi.json", None, None);
    let paths = api["paths"].as_object().unwrap();
    let in_full = |path: &str| {
        path.split('/').map(|part| if part.starts_with('{') { "x" } else { part }).collect::<Vec<_>>().join("/")
    };
    let guarded = |(path, operations): (&String, &Value)| -> Vec<(String, String)> {
        let operations = operations.as_object().unwrap().iter();
        let guarded = operations.filter(|(_, operation)| operation["security"] != json!([]));
        guarded.map(|(method, _)| (method.to_uppercase(), in_full(path))).collect()
    };
    paths.iter().flat_map(guarded).collect()
}

#[test]
fn without_a_good_token_nothing_is_told() {
    let place = TestDir::new();
    let server = Server::start(&place, &["--jwt-ttl", "2s"]);
    let node = Node::begun(&place, &server, "ann", &[]);
    let good = node.token.clone().unwrap();
    let parts: Vec<&str> = good.split('.').collect();
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let mut later = claims.clone();
    later["exp"] = json!(claims["exp"].as_u64().unwrap() + 3600);
    let forged = [
        format!("{}.{}.{}", parts[0], encode(&later), parts[2]),
        format!("{}.{}.", encode(&json!({"alg": "none", "typ": "JWT"})), parts[1]),
        format!("{}.{}", parts[0], parts[1]),
        "x".to_owned(),
        format!("{}.{}.{}", parts[0], parts[1], URL_SAFE_NO_PAD.encode([0; 32])),
        // A token of another server.
        {
            let elsewhere = TestDir::new();
            let other = Server::start(&elsewhere, &[]);
            Node::begun(&elsewhere, &other, "ann", &[]).token.unwrap()
        },
    ];
    let routes = guarded_routes(&node);
    assert!(routes.len() > GETS.len() + POSTS.len(), "{routes:?}");
    let tokens = forged.iter().map(|token| Some(token.as_str())).chain([None, Some("")]);
    for token in tokens {
        for (method, path) in &routes {
            assert_eq!(ask(&node, token, method, path), 401, "{method} {path} with {token:?}");
        }
    }
    // It expires, though the server has verified it a moment ago.
    eventually("the token to end", || (node.get("status").0 == 401).then_some(()));
    for (method, path) in &routes {
        assert_eq!(ask(&node, Some(&good), method, path), 401, "{method} {path}");
    }
}

#[test]
fn nothing_is_done_before_init_and_a_logged_out_token_is_refused() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let mut node = Node::start(&place, &server, "ann", &[]);
    let (status, answer) = node.post("register", json!({"username": "ann", "password": "correct horse"}));
    assert_eq!((status, &answer["user"]["username"]), (200, &json!("ann")), "{answer}");
    assert!(answer["user"]["created_at"].is_string(), "{answer}");
    node.token = answer["token"].as_str().map(str::to_owned);
    let routes = GETS.iter().map(|route| ("GET", route)).chain(POSTS.iter().map(|route| ("POST", route)));
    for (method, route) in routes {
        let status = ask(&node, node.token.as_deref(), method, &format!("/api/client/{route}"));
        let expected = match *route {
            "init" => 400,
            "logout" => 200,
            _ => 409,
        };
        assert_eq!(status, expected, "{route}");
    }
    // The logout route was among them.
    assert_eq!(node.get("status").0, 401);

    assert_eq!(node.post("login", json!({"username": "ann", "password": "wrong horse"})).0, 401);
    assert_eq!(node.post("login", json!({"username": "ann"})).0, 400);
    assert_eq!(node.post("register", json!({"username": "ann", "password": "correct horse"})).0, 409);
    let (status, answer) = node.post("login", json!({"username": "ann", "password": "correct horse"}));
    assert_eq!(status, 200, "{answer}");
    node.token = answer["token"].as_str().map(str::to_owned);
    node.refuses("init", json!({"username": "bob"}), 403);
    node.refuses("init", json!({"username": "ann", "server_ip": "127.0.0.2"}), 403);
    node.refuses("init", json!({"username": "ann", "server_port": 1}), 403);
    node.refuses("init", json!({"username": "ann", "server_port": "x"}), 400);
    for ip in ["x", "0.0.0.0", "224.0.0.1", "::"] {
        node.refuses("init", json!({"username": "ann", "advertise_ip": ip}), 400);
    }
    let client = node.does(
        "init",
        json!({"username": "ann", "server_ip": "127.0.0.1", "advertise_ip": "127.0.0.1",
        "server_port": server.registry().port()}),
    )["client"]
        .clone();
    assert_eq!((&client["username"], &client["hostname"]), (&json!("ann"), &json!("ann")));
    assert_eq!((&client["port"], &client["server_host"]), (&json!(node.peer().port()), &json!("127.0.0.1")));
    assert_eq!(client["server_port"], server.registry().port());
    assert_eq!(node.shows("status")["client"]["state"], "active");
    assert_eq!(node.shows("status")["client"]["heartbeat_interval"], 60.0);
    // A repeated init is harmless.
    node.does("init", json!({"username": "ann"}));
    node.does("publish", json!({"fname": "a", "local_path": place.file("a", 10)}));
    node.does("logout", json!({}));
    assert_eq!(server.hosts_of("a"), [""; 0]);
    assert_eq!(node.get("status").0, 401);
    // Also after a restart.
    let node = node.kill()();
    assert_eq!(node.get("status").0, 401);
}

#[test]
fn who_is_signed_in_twice_goes_on_though_one_logs_out_after_a_restart() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let mut node = Node::begun(&place, &server, "ann", &[]);
    node.does("publish", json!({"fname": "a", "local_path": place.file("a", 10)}));
    let pages = node.token.clone();
    let commands = node.does("login", json!({"username": "ann", "password": "correct horse"}))["token"].clone();
    node = node.kill()();
    node.token = commands.as_str().map(str::to_owned);
    node.does("logout", json!({}));
    assert_eq!(node.get("status").0, 401);
    node.token = pages;
    assert_eq!(node.shows("status")["client"]["hostname"], "ann");
    assert_eq!(server.hosts_of("a"), ["ann"]);
    node.does("logout", json!({}));
    assert_eq!(server.hosts_of("a"), [""; 0], "that was the last one");
    let store = rusqlite::Connection::open(place.path("state-ann/share.db")).unwrap();
    let kept: i64 = store.query_row("SELECT COUNT(*) FROM share_token", [], |row| row.get(0)).unwrap();
    assert_eq!(kept, 0);
}

#[test]
fn a_place_in_the_node_is_free_once_its_user_has_left_and_nothing_is_sent() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let mut node = Node::begun(&place, &server, "ann", &[]);
    let (anns, repo) = (node.token.clone(), node.shows("status")["client"]["repo"].as_str().unwrap().to_owned());
    // More users than the node has slots, one after another.
    for number in 0..65 {
        node.name = format!("user{number}");
        node.register();
        node.does("logout", json!({}));
    }
    // One logs out while a file is sent that is larger than all buffers in between.
    let size = 64 << 20;
    std::fs::write(format!("{repo}/big"), content("big", size)).unwrap();
    "zoe".clone_into(&mut node.name);
    node.register();
    node.does("publish", json!({"fname": "big", "local_path": format!("{repo}/big")}));
    let port = node.shows("status")["client"]["port"].as_u64().unwrap();
    let peer = || TcpStream::connect(("127.0.0.1", u16::try_from(port).unwrap()));
    let mut reader = BufReader::new(peer().unwrap());
    reader.get_mut().write_all(b"GET big\n").unwrap();
    let mut head = String::new();
    reader.read_line(&mut head).unwrap();
    assert_eq!(head, format!("LENGTH {size}\n"));
    node.does("logout", json!({}));
    let mut sent = Vec::new();
    reader.read_to_end(&mut sent).unwrap();
    assert!(sent == content("big", size), "{} bytes of {size}", sent.len());
    eventually("the port to be free", || peer().is_err().then_some(()));
    // The node's first user has not lost the slot.
    node.token = anns;
    assert_eq!(node.shows("status")["client"]["hostname"], "ann");
}

#[test]
fn one_user_does_nothing_for_another() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let ann = Node::begun(&place, &server, "ann", &[]);
    let bob = Node::begun(&place, &server, "bob", &[]);
    ann.publishes(&server, &place.file("a", 10));
    bob.refuses("unpublish", json!({"fname": "a"}), 404);
    // Ann's token at bob's node still means ann, who has not been initialized there.
    let (status, _) = http(bob.api(), "GET", "/api/client/local-files", ann.token.as_deref(), None);
    assert_eq!(status, 409);
    // Nor can anybody at the registry act for another.
    for (action, data) in [
        ("REGISTER", json!({"hostname": "ann", "port": 6001})),
        ("PUBLISH", json!({"hostname": "ann", "fname": "x", "size": 1, "modified": 1})),
        ("UNPUBLISH", json!({"hostname": "ann", "fname": "a"})),
        ("UNREGISTER", json!({"hostname": "ann"})),
    ] {
        assert_eq!(server.ask(action, data)["status"], "ERROR", "{action}");
    }
    let taken = server.ask("REGISTER", json!({"hostname": "ann", "port": 6001, "token": bob.token}));
    assert_eq!(taken["status"], "ERROR", "{taken}");
    assert_eq!(server.hosts_of("a"), ["ann"]);
}

#[test]
fn while_the_server_is_away_who_is_known_goes_on() {
    let place = TestDir::new();
    let mut server = Server::start(&place, &[]);
    let node = Node::begun(&place, &server, "ann", &[]);
    node.does("publish", json!({"fname": "shown", "local_path": place.file("shown", 10)}));
    assert_eq!(server.hosts_of("shown"), ["ann"]);
    let (status, answer) = http(
        server.api(),
        "POST",
        "/api/user/login",
        None,
        Some(&json!({"username": "ann", "password": "correct horse"})),
    );
    assert_eq!(status, 200, "{answer}");
    let unknown = answer["token"].as_str().unwrap().to_owned();
    let restart = server.kill();
    node.does("add-file", json!({ "filepath": place.file("a", 10) }));
    let (status, answer) = http(node.api(), "GET", "/api/client/status", Some(&unknown), None);
    assert_eq!((status, &answer["success"]), (503, &json!(false)), "{answer}");
    assert_eq!(node.post("login", json!({"username": "ann", "password": "x"})).0, 503);
    // An unpublished file is not served from now on, and the server learns of it when it is back.
    assert_eq!(node.does("unpublish", json!({"fname": "shown"}))["file"]["is_published"], false);
    assert_eq!(node.post("publish", json!({"fname": "a"})).0, 503);
    assert_eq!(node.shows("published-files")["total"], 0, "what the server cannot show is not published");
    let server = restart();
    let (status, _) = http(node.api(), "GET", "/api/client/status", Some(&unknown), None);
    assert_eq!(status, 200);
    eventually("the server to learn of it", || server.hosts_of("shown").is_empty().then_some(()));
    assert_eq!(server.ask("DISCOVER", json!({"hostname": "ann"}))["status"], "OK");
}

#[test]
fn a_page_elsewhere_cannot_drive_a_node() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let args = ["--http-host", "share.example", "--allow-origin", "http://page.example"];
    let node = Node::begun(&place, &server, "ann", &args);
    let (api, token) = (node.api(), node.token.clone().unwrap());
    let own = format!("Host: {api}");
    let bearer = format!("Authorization: Bearer {token}");
    let status =
        |headers: &[&str]| raw_http(api, "GET", "/api/client/status", &[&[bearer.as_str()], headers].concat(), None).0;
    assert_eq!(status(&[&own]), 200);
    for host in ["localhost", "127.0.0.1", "[::1]", "share.example", "SHARE.example:80"] {
        assert_eq!(status(&[&format!("Host: {host}")]), 200, "{host}");
    }
    for host in ["evil.example", "share.example.evil", "localhost.evil", ""] {
        let status = status(&[&format!("Host: {host}")]);
        assert!((400..500).contains(&status), "{host}: {status}");
    }
    for (origin, is_good) in [
        (format!("http://{api}"), true),
        ("http://page.example".to_owned(), true),
        ("http://evil.example".to_owned(), false),
        ("https://page.example".to_owned(), false),
        ("null".to_owned(), false),
        (format!("http://{}:1", api.ip()), false),
    ] {
        let status = status(&[&own, &format!("Origin: {origin}")]);
        assert_eq!(status == 200, is_good, "{origin}: {status}");
    }
    let post = |headers: &[&str], body: &str| {
        raw_http(api, "POST", "/api/client/add-file", &[&[own.as_str(), bearer.as_str()], headers].concat(), Some(body))
            .0
    };
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        assert_eq!(post(&[&format!("Content-Type: {kind}")], "{}"), 415, "{kind}");
    }
    assert_eq!(post(&[], "{}"), 415);
    assert_eq!(post(&["Content-Type: application/json"], "{"), 400);
    assert_eq!(post(&["Content-Type: application/json"], "[]"), 400);
    assert_eq!(post(&["Content-Type: application/json"], &format!("\"{}\"", "x".repeat(1 << 20))), 413);
    // A token in a URL is not accepted.
    assert_eq!(raw_http(api, "GET", &format!("/api/client/status?token={token}"), &[&own], None).0, 401);
    for (method, path, expected) in
        [("GET", "init", 405), ("POST", "status", 405), ("GET", "nothing", 404), ("DELETE", "fetches", 405)]
    {
        let path = format!("/api/client/{path}");
        let kind = "Content-Type: application/json";
        let body = (method == "POST").then_some("{}");
        let (status, body) = raw_http(api, method, &path, &[&own, &bearer, kind], body);
        assert_eq!(status, expected, "{method} {path}: {body}");
        assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["success"], false);
    }
    assert_eq!(raw_http(api, "GET", "/api/other", &[&own], None).0, 404);
}

#[test]
fn whoever_watches_is_told() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let ann = Node::begun(&place, &server, "ann", &[]);
    let mut bob = Node::begun(&place, &server, "bob", &[]);
    let mut stream = TcpStream::connect(bob.api()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let token = bob.token.clone().unwrap();
    let head =
        format!("GET /api/client/events HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\n\r\n", bob.api());
    stream.write_all(head.as_bytes()).unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    assert!(lines.next().unwrap().contains(" 200 "));
    let mut event = |name: &str, part: &str| {
        let mut last = String::new();
        for line in lines.by_ref() {
            if let Some(event) = line.strip_prefix("event: ") {
                event.clone_into(&mut last);
            }
            let Some(data) = line.strip_prefix("data: ").filter(|_| last == name) else { continue };
            if data.contains(part) {
                return serde_json::from_str::<Value>(data).unwrap();
            }
        }
        panic!("no event {name} with {part}");
    };
    ann.publishes(&server, &place.file("a", 2_000_000));
    event("files", "\"fname\":\"a\"");
    bob.does("add-file", json!({ "filepath": place.file("b", 10) }));
    assert_eq!(event("files", "\"b\"")["change"], "added");
    std::fs::create_dir(place.path("shared/got")).unwrap();
    let id = bob.fetches("a", &place.path("shared/got"));
    let done = event("fetches", "completed");
    assert_eq!((&done["id"], &done["progress"]["downloaded_size"]), (&json!(id), &json!(2_000_000)));
    bob.does("logout", json!({}));
    assert_eq!(event("node", "disconnected")["state"], "disconnected");
    bob.token = None;
}

/// Opens an event stream of a node with a token, and reads past its head and initial comment.
fn stream_of(node: &Node, token: &str) -> BufReader<TcpStream> {
    let mut stream = TcpStream::connect(node.api()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // So that the end of the stream closes the connection.
    let head = format!(
        "GET /api/client/events HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n",
        node.api()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let mut begun = String::new();
    while !begun.ends_with("\r\n\r\n3\r\n:\n\n\r\n") {
        assert_ne!(reader.read_line(&mut begun).unwrap(), 0, "{begun}");
    }
    assert!(begun.contains(" 200 ") && begun.to_lowercase().contains("x-accel-buffering: no"), "{begun}");
    reader
}

#[test]
fn an_event_stream_ends_with_its_token_and_no_other() {
    let place = TestDir::new();
    let server = Server::start(&place, &["--jwt-ttl", "5s"]);
    let mut ann = Node::begun(&place, &server, "ann", &[]);
    let first = ann.token.clone().unwrap();
    let (_, answer) = ann.post("login", json!({"username": "ann", "password": "correct horse"}));
    let second = answer["token"].as_str().unwrap().to_owned();
    let (mut of_first, mut of_second) = (stream_of(&ann, &first), stream_of(&ann, &second));
    ann.does("logout", json!({}));
    ann.token = Some(second.clone());
    let mut rest = String::new();
    of_first.read_to_string(&mut rest).unwrap();
    assert!(!rest.contains("data:"), "the first token's has ended, and said nothing: {rest}");
    // The user has another session: the node keeps running, and its stream gets events.
    ann.does("add-file", json!({ "filepath": place.file("a", 10) }));
    let mut told = String::new();
    while !told.contains("\"a\"") {
        assert_ne!(of_second.read_line(&mut told).unwrap(), 0, "{told}");
    }
    // That stream ends by itself when its token expires.
    let mut rest = String::new();
    of_second.read_to_string(&mut rest).unwrap();
    eventually("the token to be refused", || (ann.get("status").0 == 401).then_some(()));
}

#[test]
fn what_a_host_has_and_whether_it_is_there() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let ann = Node::begun(&place, &server, "ann", &[]);
    let bob = Node::begun(&place, &server, "bob b&", &[]);
    ann.publishes(&server, &place.file("a", 10));
    for index in 0..5 {
        bob.does("publish", json!({"fname": format!("b{index}"), "local_path": place.file(&format!("b{index}"), 20)}));
    }
    let found = bob.shows("discover/ann");
    assert_eq!((&found["files"]["a"]["size"], &found["addr"][1]), (&json!(10), &json!(ann.peer().port())));
    assert_eq!(ann.shows("discover/bob%20b%26")["files"].as_object().unwrap().len(), 5);
    assert_eq!(ann.get("discover/nobody").0, 404);
    assert_eq!(ann.shows("ping/bob%20b%26")["status"], "ALIVE");
    assert_eq!(ann.shows("ping/nobody")["status"], "DEAD");
    let names = |answer: &Value| -> Vec<String> {
        let files = answer["files"].as_array().unwrap().iter();
        files.map(|file| file["name"].as_str().unwrap().to_owned()).collect()
    };
    eventually("all to be seen", || (ann.shows("network-files")["total"] == 6).then_some(()));
    let page = ann.shows("network-files?offset=1&limit=2");
    assert_eq!((names(&page), &page["total"]), (vec!["b0".to_owned(), "b1".to_owned()], &json!(6)));
    let page = ann.shows("network-files?q=B&offset=4");
    assert_eq!((names(&page), &page["total"]), (vec!["b4".to_owned()], &json!(5)));
    let peers = ann.shows("peers");
    assert_eq!((&peers["total"], &peers["peers"][0]["hostname"]), (&json!(2), &json!("ann")));
    assert_eq!(ann.get("network-files?limit=x").0, 400);
}

#[test]
fn whoever_begins_while_another_logs_out_is_in_or_out_and_stays_it() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let mut node = Node::begun(&place, &server, "ann", &[]);
    node.does("publish", json!({"fname": "a", "local_path": place.file("a", 10)}));
    let mut is_on = true;
    for round in 0..scaled(400) {
        let refreshed = |token: &str| {
            let (status, answer) = http(server.api(), "POST", "/api/user/refresh", Some(token), None);
            assert_eq!(status, 200, "{answer}");
            answer["token"].as_str().unwrap().to_owned()
        };
        // The token that logs out is the last one that the node knows.
        let leaves = node.token.clone().unwrap();
        let stays = refreshed(&leaves);
        let ask = |path: &str, token: &str, body: Value| {
            http(node.api(), "POST", &format!("/api/client/{path}"), Some(token), Some(&body))
        };
        // Use it once, so that it is cached and need not be verified.
        http(node.api(), "GET", "/api/client/status", Some(&leaves), None);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_micros(round as u64 * 150 % 6_000));
                ask("logout", &leaves, json!({}));
            });
            ask("init", &stays, json!({"username": "ann"}));
        });
        node.token = Some(stays);
        is_on = node.get("status").0 == 200;
        let store = rusqlite::Connection::open(place.path("state-ann/share.db")).unwrap();
        let kept: bool = store.query_row("SELECT is_on FROM share_user", [], |row| row.get(0)).unwrap();
        assert_eq!(kept, is_on, "in round {round}");
        let mut peer = TcpStream::connect(node.peer()).unwrap();
        peer.write_all(b"GET a\n").unwrap();
        let mut answer = Vec::new();
        peer.read_to_end(&mut answer).unwrap();
        assert_eq!(answer.starts_with(b"LENGTH"), is_on, "in round {round}: {answer:?}");
    }
    // And it is the same after a restart.
    node = node.kill()();
    assert_eq!(node.get("status").0 == 200, is_on);
}
