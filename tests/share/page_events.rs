//! The events that the node's web page follows, and the registry's changes behind them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::nodes::{Node, Server, TestDir, ask_registry};
use crate::page_routes::names;
use crate::support::{PATIENCE, eventually};

/// Reads the event stream of a node.
struct Events(BufReader<TcpStream>);

impl Events {
    fn of(node: &Node) -> Events {
        let mut stream = TcpStream::connect(node.api()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let token = node.token.clone().unwrap();
        let head =
            format!("GET /api/client/events HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\n\r\n", node.api());
        stream.write_all(head.as_bytes()).unwrap();
        let mut events = Events(BufReader::new(stream));
        while events.line() != ":\n" {}
        events
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "the stream has ended");
        line
    }

    /// The next event of that name that meets a condition.
    fn next(&mut self, name: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = String::new();
        loop {
            let line = self.line();
            if let Some(event) = line.strip_prefix("event: ") {
                event.trim().clone_into(&mut last);
            }
            if let Some(data) = line.strip_prefix("data: ").filter(|_| last == name) {
                let data: Value = serde_json::from_str(data).unwrap();
                if is_wanted(&data) {
                    return data;
                }
            }
        }
    }
}

#[test]
fn what_happens_on_the_network_is_told_within_a_second() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let ann = Node::begun(&place, &server, "ann", &[]);
    let mut bob = Node::begun(&place, &server, "bob", &[]);
    let mut events = Events::of(&bob);
    // Before it follows the registry, it sends no events that could be incomplete.
    eventually("bob to follow", || {
        ann.does("publish", json!({"fname": "first", "local_path": place.file("first", 3)}));
        ann.does("unpublish", json!({"fname": "first"}));
        std::thread::sleep(Duration::from_millis(300));
        Some(())
    });
    let within = |begun: Instant, what: &str| {
        assert!(begun.elapsed() < Duration::from_secs(1), "{what}: {:?}", begun.elapsed());
    };
    let begun = Instant::now();
    ann.does("publish", json!({"fname": "a", "local_path": place.file("a", 10)}));
    let told = events.next("files", |data| data["fname"] == "a");
    within(begun, "published");
    assert_eq!((&told["hostname"], &told["entry"]["size"]), (&json!("ann"), &json!(10)));
    assert_eq!(bob.shows("network-files?q=a")["total"], 1);
    let begun = Instant::now();
    ann.does("unpublish", json!({"fname": "a"}));
    let told = events.next("files", |data| data["fname"] == "a" && data["entry"].is_null());
    within(begun, "unpublished");
    assert_eq!(told["hostname"], "ann");
    assert_eq!(bob.shows("network-files?q=a")["total"], 0);
    // Events of hosts that appear and disappear.
    let begun = Instant::now();
    let registry = TcpStream::connect(server.registry()).unwrap();
    let register = json!({"action": "REGISTER", "data": {"hostname": "cy", "port": 6009,
        "files_metadata": {"cys": {"size": 3, "modified": 5, "is_published": true}}}});
    (&registry).write_all(format!("{register}\n").as_bytes()).unwrap();
    let told = events.next("peers", |data| data["hostname"] == "cy");
    assert_eq!(told["online"], true);
    assert_eq!(events.next("files", |data| data["hostname"] == "cy")["fname"], "cys");
    within(begun, "came");
    assert_eq!(names(&bob.shows("peers"), "peers", "hostname"), ["ann", "bob", "cy"]);
    let begun = Instant::now();
    let leave = json!({"action": "UNREGISTER", "data": {"hostname": "cy"}});
    (&registry).write_all(format!("{leave}\n").as_bytes()).unwrap();
    let told = events.next("peers", |data| data["hostname"] == "cy" && data["online"] == false);
    within(begun, "gone");
    assert_eq!(told["online"], false);
    assert_eq!(bob.shows("network-files?q=cys")["total"], 0);
    // Events of the node's own files and fetches come at once.
    bob.does("publish", json!({"fname": "b", "local_path": place.file("b", 10)}));
    let own = events.next("files", |data| data["fname"] == "b");
    assert_eq!(
        (&own["hostname"], &own["entry"]["size"], &own["change"]),
        (&json!("bob"), &json!(10), &json!("published"))
    );
    ann.publishes(&server, &place.file("big", 2_000_000));
    fs::create_dir(place.path("shared/got")).unwrap();
    let id = bob.fetches("big", &place.path("shared/got"));
    let done = events.next("fetches", |data| data["progress"]["status"] == "completed");
    assert_eq!((&done["id"], &done["progress"]["downloaded_size"]), (&json!(id), &json!(2_000_000)));
    bob.does("logout", json!({}));
    assert_eq!(events.next("node", |data| data["state"] == "disconnected")["hostname"], "bob");
    bob.token = None;
}

#[test]
fn the_registry_tells_what_has_changed_since_then() {
    let place = TestDir::new();
    let server = Server::start(&place, &[]);
    let changes = |data: Value| ask_registry(server.registry(), "CHANGES", data);
    let begun = changes(json!({}));
    assert_eq!((&begun["status"], &begun["reset"]), (&json!("OK"), &json!(true)), "{begun}");
    let version = begun["version"].as_u64().unwrap();
    let nothing = changes(json!({ "since": version }));
    assert_eq!((&nothing["version"], &nothing["changes"], nothing.get("reset")), (&json!(version), &json!([]), None));
    let waits = std::thread::spawn({
        let registry = server.registry();
        move || {
            let begun = Instant::now();
            (ask_registry(registry, "CHANGES", json!({"since": version, "wait": 20})), begun.elapsed())
        }
    });
    std::thread::sleep(Duration::from_millis(200));
    let host = TcpStream::connect(server.registry()).unwrap();
    let mut answers = BufReader::new(&host).lines();
    let mut does = |action: &str, data: Value| {
        (&host).write_all(format!("{}\n", json!({"action": action, "data": data})).as_bytes()).unwrap();
        let answer: Value = serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap();
        assert!(matches!(answer["status"].as_str(), Some("OK" | "ACK")), "{answer}");
    };
    let files = json!({"a": {"size": 3, "modified": 5, "is_published": true}, "hid": {"size": 3, "modified": 5, "is_published": false}});
    does("REGISTER", json!({"hostname": "ann", "port": 6009, "display_name": "Ann", "files_metadata": files}));
    let (told, took) = waits.join().unwrap();
    assert!(took < Duration::from_millis(1_200), "{took:?}");
    let first = told["changes"].as_array().unwrap();
    assert_eq!(
        first[0],
        json!({"hostname": "ann", "display_name": "Ann", "addr": ["127.0.0.1", 6009]}),
        "the host itself: {told}"
    );
    does("PUBLISH", json!({"hostname": "ann", "fname": "b", "size": 4, "modified": 6}));
    does("UNPUBLISH", json!({"hostname": "ann", "fname": "a"}));
    does("UNREGISTER", json!({"hostname": "ann"}));
    let told = changes(json!({ "since": version }));
    let short: Vec<String> = told["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| {
            let what = match it.get("entry") {
                None => "is there".to_owned(),
                Some(Value::Null) => "gone".to_owned(),
                Some(entry) => entry["size"].to_string(),
            };
            format!("{} {what}", it["fname"].as_str().unwrap_or("-"))
        })
        .collect();
    assert_eq!(short, ["- is there", "a 3", "b 4", "a gone", "- gone"]);
    let version = told["version"].as_u64().unwrap();
    assert_eq!(changes(json!({ "since": version }))["changes"], json!([]));
    for unknown in [0, version + 1] {
        assert_eq!(changes(json!({ "since": unknown }))["reset"], true, "{unknown}");
    }
    for wrong in
        [json!({"wait": 26}), json!({"wait": -1}), json!({"wait": "x"}), json!({"since": -1}), json!({"since": "x"})]
    {
        assert_eq!(changes(wrong.clone())["status"], "ERROR", "{wrong}");
    }
    let begun = Instant::now();
    assert_eq!(changes(json!({"since": version, "wait": 1}))["changes"], json!([]));
    assert!(begun.elapsed() >= Duration::from_secs(1));
}
