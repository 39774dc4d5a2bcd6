//! The operator's view of a real server with all services, and the operator's actions, by a client that is written
//! only from `docs/spec`.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use serde_json::{Value, json};

use crate::server_api::{get, post};
use crate::support::*;

const EVERYTHING: &[&str] = &[
    "--services",
    "trade,shop,share",
    "--product-port",
    "0",
    "--customer-port",
    "0",
    "--seller-port",
    "0",
    "--buyer-port",
    "0",
    "--registry-port",
    "0",
    "--api-port",
    "0",
    "--offer-window",
    "60s",
];

/// A server with all services, and its admin's token.
struct TestServer {
    server: Server,
    api: SocketAddr,
    ready: Value,
    token: String,
    _dir: tempfile::TempDir,
}

impl TestServer {
    fn start() -> TestServer {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start_in(dir.path(), EVERYTHING, &[("ADMIN_PASSWORD", "root")]);
        let ready: Value =
            serde_json::from_str(&std::fs::read_to_string(dir.path().join("ready.json")).unwrap()).unwrap();
        let api = ready["server_api"].as_str().unwrap().parse().unwrap();
        let (status, answer) = post(api, "/api/admin/login", &json!({"username": "admin", "password": "root"}));
        assert_eq!(status, 200, "{answer}");
        let token = answer["token"].as_str().unwrap().to_owned();
        TestServer { server, api, ready, token, _dir: dir }
    }

    fn get(&self, path: &str) -> Value {
        let (status, answer) = get(self.api, path, Some(&self.token));
        assert_eq!((status, &answer["success"]), (200, &json!(true)), "{path}: {answer}");
        answer
    }

    /// Sends a POST without a body.
    fn act(&self, path: &str) -> (u16, Value) {
        let mut stream = self.request("POST", path);
        let mut head = String::new();
        stream.read_line(&mut head).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut stream, &mut rest).unwrap();
        let body = rest.split_once("\r\n\r\n").unwrap().1;
        (status, serde_json::from_str(body).unwrap())
    }

    fn request(&self, method: &str, path: &str) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(self.api).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: 0\r\n\
             Authorization: Bearer {}\r\n\r\n",
            self.token
        );
        stream.write_all(head.as_bytes()).unwrap();
        BufReader::new(stream)
    }

    fn register(&self, name: &str) -> String {
        let (status, answer) = post(self.api, "/api/user/register", &json!({"username": name, "password": "secret"}));
        assert_eq!(status, 200, "{answer}");
        answer["token"].as_str().unwrap().to_owned()
    }

    fn line(&self, port: &str) -> SettlementConnection {
        SettlementConnection::over(TcpStream::connect(self.ready[port].as_str().unwrap()).unwrap(), None)
    }
}

fn ask(line: &mut SettlementConnection, message: &Value) -> Value {
    line.write(message);
    line.read().unwrap()
}

#[test]
fn deals_money_and_what_happened_are_seen_while_it_happens() {
    let market = TestServer::start();
    assert_eq!(market.get("/api/admin/deals")["total"], 0);
    let mut events = market.request("GET", "/api/admin/events");
    let mut next_event = |wanted: &str| -> Value {
        let deadline = Instant::now() + PATIENCE;
        let mut is_it = false;
        loop {
            assert!(Instant::now() < deadline, "no event {wanted}");
            let mut line = String::new();
            events.read_line(&mut line).unwrap();
            match line.trim_end().split_once(": ") {
                Some(("event", name)) => is_it = name == wanted,
                Some(("data", data)) if is_it => return serde_json::from_str(data).unwrap(),
                _ => {}
            }
        }
    };
    let (mut alice, mut bob) = (Peer::new(&market.server, "alice"), Peer::new(&market.server, "bob"));
    let rq = bob.look_for("lamp", 10.0);
    let told = next_event("deals");
    assert_eq!((&told["row"]["state"], &told["row"]["buyer"]), (&json!("searching"), &json!("bob")), "{told}");
    alice.offer("lamp", 9.99);
    alice.push("RESERVE");
    let deals = market.get("/api/admin/deals");
    let deal = &deals["deals"][0];
    assert_eq!((&deals["total"], &deal["deal"]), (&json!(1), &told["deal"]));
    assert_eq!((&deal["state"], &deal["seller"]), (&json!("reserved"), &json!("alice")), "{deal}");
    assert_eq!((&deal["price"], &deal["max_price"], &deal["asked"]), (&json!(9.99), &json!(10), &json!(1)));
    assert!(deal["ends_in_ms"].as_u64().unwrap() <= 120_000, "{deal}");
    settle(&mut bob, rq, &mut alice, GOOD_CARD);
    eventually("the deal to be over", || (market.get("/api/admin/deals")["total"] == 0).then_some(()));
    eventually("that to be told", || next_event("deals")["row"].is_null().then_some(()));
    // Two more, newest first, in pages.
    bob.look_for("desk", 5.0);
    bob.look_for("sofa", 7.0);
    let names = |query: &str| -> Vec<String> {
        let page = market.get(&format!("/api/admin/deals{query}"));
        assert_eq!(page["total"], 2);
        page["deals"].as_array().unwrap().iter().map(|deal| deal["item_name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(""), ["sofa", "desk"]);
    assert_eq!(names("?offset=1&limit=1"), ["desk"]);
    assert!(names("?offset=2").is_empty());

    let ledger = market.get("/api/admin/ledger");
    assert_eq!((&ledger["sum"], &ledger["total"]), (&json!(0), &json!(5)), "{ledger}");
    assert_eq!(ledger["totals"], json!({"card": -9.99, "escrow": 0, "payout": 8.99, "fee": 1}));
    assert_eq!((&ledger["entries"][0]["room"], &ledger["entries"][0]["step"]), (&json!("trade"), &json!("capture")));
    let log = market.get("/api/admin/log?of=trade&limit=3");
    let kinds: Vec<&str> = log["log"].as_array().unwrap().iter().map(|line| line["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["search", "search", "purchase"], "{log}");
    assert_eq!(log["log"][2]["peer"], "bob");
    assert!(log["total"].as_u64().unwrap() >= 6, "{log}");
    // The command line shows the same.
    let lines = market.server.admin_json(&["log"]);
    assert_eq!(log["total"], lines.len());
    let shown = market.server.admin_json(&["deals"]);
    let open = market.get("/api/admin/deals")["deals"][0].clone();
    let same = shown.iter().find(|deal| deal["deal"] == open["deal"]).unwrap();
    for field in ["buyer", "rq", "item_name", "max_price", "state", "seller", "price", "reason", "asked", "opened_at"] {
        assert_eq!(same[field], open[field], "{field}");
    }
}

#[test]
fn figures_of_every_room_are_there_within_seconds() {
    let market = TestServer::start();
    let (mut bob, _alice) = (Peer::new(&market.server, "bob"), Peer::new(&market.server, "alice"));
    bob.look_for("desk", 5.0);
    let token = market.register("ann");
    let mut host = market.line("registry");
    let answer =
        ask(&mut host, &json!({"action": "REGISTER", "data": {"hostname": "ann", "port": 6001, "token": token}}));
    assert_eq!(answer["status"], "OK");
    let points = |metrics: &Value, room: &str, name: &str| -> Option<Vec<Value>> {
        let mut series = metrics["series"].as_array().unwrap().iter();
        let found = series.find(|series| series["room"] == room && series["name"] == name)?;
        let points = found["points"].as_array().unwrap().clone();
        assert_eq!(points.len(), metrics["times"].as_array().unwrap().len());
        Some(points)
    };
    let point = |metrics: &Value, room: &str, name: &str| -> Option<f64> {
        points(metrics, room, name)?.iter().filter_map(Value::as_f64).max_by(f64::total_cmp)
    };
    let metrics = eventually("figures", || {
        let metrics = market.get("/api/admin/metrics");
        let is_there = |room, name| point(&metrics, room, name).is_some_and(|most| most > 0.0);
        let all = is_there("trade", "requests") && is_there("trade", "p95") && is_there("share", "p50");
        (all && is_there("http", "requests") && is_there("share", "hosts")).then_some(metrics)
    });
    for (room, name) in [
        ("trade", "peers"),
        ("trade", "open deals"),
        ("process", "threads"),
        ("process", "connections"),
        ("http", "p95"),
    ] {
        assert!(point(&metrics, room, name).is_some_and(|most| most > 0.0), "{room} {name}");
    }
    assert!(point(&metrics, "process", "memory").unwrap() > 1e6);
    for (room, name) in [("shop", "requests"), ("shop", "p95"), ("shop", "purchases"), ("trade", "commit p95")] {
        assert!(points(&metrics, room, name).is_some(), "{room} {name}");
    }
    let times: Vec<u64> = metrics["times"].as_array().unwrap().iter().map(|at| at.as_u64().unwrap()).collect();
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
    // The Prometheus metrics have the same.
    let (status, text) = get(market.api, "/metrics", None);
    assert_eq!(status, 200);
    for line in
        ["p2s2_trade_requests_seconds_count ", "p2s2_registry_requests_seconds_bucket{le=", "p2s2_trade_deals_open 1"]
    {
        assert!(text.as_str().unwrap().contains(line), "{line}: {text}");
    }
}

#[test]
fn who_is_blocked_is_out_everywhere_and_what_is_removed_is_gone() {
    let market = TestServer::start();
    let token = market.register("ann");
    let users = market.get("/api/admin/users?q=AN");
    assert_eq!((&users["total"], &users["users"][0]["blocked"]), (&json!(1), &json!(false)), "{users}");
    assert_eq!((&users["users"][0]["shop"], &users["users"][0]["hostname"]), (&json!(false), &json!(false)));
    assert_eq!(market.act("/api/admin/users/ann/block").0, 200);
    let login = json!({"username": "ann", "password": "secret"});
    let (status, answer) = post(market.api, "/api/user/login", &login);
    assert_eq!(status, 403, "{answer}");
    let register = json!({"action": "REGISTER", "data": {"hostname": "ann", "port": 6001, "token": token}});
    assert_eq!(ask(&mut market.line("registry"), &register)["status"], "ERROR");
    assert_eq!(market.get("/api/admin/users?q=ann")["users"][0]["blocked"], true);
    assert_eq!(market.act("/api/admin/users/ann/unblock").0, 200);
    assert_eq!(post(market.api, "/api/user/login", &login).0, 200);
    assert_eq!(market.act("/api/admin/users/admin/block").0, 409);
    assert_eq!(market.act("/api/admin/items/3-1/remove").0, 404);
    // A user's token is not enough.
    assert_eq!(get(market.api, "/api/admin/users", Some(&token)).0, 403);
    assert_eq!(get(market.api, "/api/admin/users", None).0, 401);
}

#[test]
fn the_registry_is_told_in_parts_and_searched() {
    let market = TestServer::start();
    for name in ["zoe", "yan"] {
        market.register(name);
    }
    let token = market.register("xia");
    let mut hosts = Vec::new();
    for (name, display_name) in [("h1", "Kitchen"), ("h2", "Attic"), ("h3", "Kitchen too")] {
        let mut host = market.line("registry");
        let data = json!({"hostname": name, "port": 6001, "display_name": display_name});
        assert_eq!(ask(&mut host, &json!({"action": "REGISTER", "data": data}))["status"], "OK");
        hosts.push(host);
    }
    let mut host = market.line("registry");
    let files = json!({"a.txt": {"size": 5, "modified": 1, "is_published": true}});
    let data = json!({"hostname": "xia", "port": 6001, "token": token, "files_metadata": files});
    assert_eq!(ask(&mut host, &json!({"action": "REGISTER", "data": data}))["status"], "OK");
    let names = |query: &str| -> (Vec<String>, Value) {
        let page = market.get(&format!("/api/admin/registry{query}"));
        assert_eq!(page["stats"]["total_clients"], 4);
        let clients = page["clients"].as_array().unwrap().iter();
        (clients.map(|client| client["hostname"].as_str().unwrap().to_owned()).collect(), page["total"].clone())
    };
    // Hosts by name, then accounts without one, by name.
    let all = ["h1", "h2", "h3", "xia", "yan", "zoe"];
    assert_eq!(names(""), (all.map(str::to_owned).to_vec(), Value::Null));
    for offset in 0..8_usize {
        for limit in 0..7 {
            let part: Vec<String> = all.iter().skip(offset).take(limit).map(|name| (*name).to_owned()).collect();
            assert_eq!(names(&format!("?offset={offset}&limit={limit}")), (part, json!(6)), "{limit} from {offset} on");
        }
    }
    for (query, found, total) in [
        ("?q=KITCHEN", vec!["h1", "h3"], 2),
        ("?q=kitchen&offset=1", vec!["h3"], 2),
        ("?q=o&limit=1", vec!["h3"], 2),
        ("?q=o&offset=1", vec!["zoe"], 2),
        ("?q=yan", vec!["yan"], 1),
        ("?q=nobody", vec![], 0),
    ] {
        assert_eq!(names(query), (found.into_iter().map(str::to_owned).collect(), json!(total)), "{query}");
    }
    let xia = &market.get("/api/admin/registry?q=xia")["clients"][0];
    assert_eq!((&xia["files"]["a.txt"]["size"], &xia["status"]), (&json!(5), &json!("online")), "{xia}");
    assert!(xia["created_at"].is_string());
    drop(hosts);
}
