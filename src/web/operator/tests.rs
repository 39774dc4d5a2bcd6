use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::bank::BuiltinGateway;
use crate::bank::ledger::{Posting, post};
use crate::identity::jwt::Jwt;
use crate::identity::users::AdminCredentials;
use crate::identity::{HashCost, PasswordHasher, Role, UserError};
use crate::model::{Cents, Millis, Name};
use crate::net::budget::ReceiveBudget;
use crate::net::http::{Body, HeaderMap, Method, header};
use crate::net::listener::{ConnectionLimiter, ListenerContext};
use crate::net::threads::Executor;
use crate::share::registry::store::MIGRATIONS;
use crate::share::server::{AuthMode, RegistryServerConfig, RegistryServerContext};
use crate::shop::customer::CustomerOp;
use crate::shop::product::ProductOp;
use crate::shop::{customer, product};
use crate::storage::Store;
use crate::web::operator::warnings::Warning;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

/// A server process without trade, with a warning buffer of its own.
struct World {
    operator: OperatorApi,
    users: Arc<Users>,
    warnings: &'static Warnings,
    registry: Option<Arc<RegistryServer>>,
    dir: tempfile::TempDir,
}

fn users(dir: &std::path::Path, clock: Clock) -> Arc<Users> {
    let passwords = PasswordHasher::with_own_threads(HashCost { memory_kib: 8, passes: 1 }, 2).unwrap();
    let users = Users::open(dir, clock, passwords, Jwt::with_secret(SECRET, Duration::from_secs(3600))).unwrap();
    let admin = AdminCredentials { username: None, password: Some("root".to_owned()) };
    users.ensure_admin(admin, |_| Ok::<_, UserError>(())).unwrap();
    Arc::new(users)
}

fn world(with_shop: bool, with_registry: bool) -> World {
    world_in(tempfile::tempdir().unwrap(), with_shop, with_registry)
}

fn world_in(dir: tempfile::TempDir, with_shop: bool, with_registry: bool) -> World {
    let clock = Clock::start();
    let users = users(dir.path(), clock);
    let shop = with_shop.then(|| {
        let settings = product::ProductDbSettings { hold_timeout: Duration::from_secs(60), first_id_range: 0 };
        let store = Arc::new(Store::open(&dir.path().join("customer.db"), customer::MIGRATIONS).unwrap());
        let bank = Arc::new(BuiltinGateway::open_file(&dir.path().join("bank.db")).unwrap());
        let config =
            customer::CustomerDbConfig { password_cost: HashCost { memory_kib: 8, passes: 1 }, ..Default::default() };
        ShopDatabases {
            products: Arc::new(ProductDb::open(dir.path(), settings).unwrap()),
            customers: Arc::new(CustomerDb::open(store, bank, config).unwrap()),
        }
    });
    let registry = with_registry.then(|| {
        let floor = RegistryServerContext {
            listener: ListenerContext {
                executor: Executor::new("test", 300),
                limiter: ConnectionLimiter::new(300),
                budget: ReceiveBudget::new(1 << 20),
                identity: None,
                allows_remote_plaintext: false,
            },
            clock,
            store: Arc::new(Store::open(&dir.path().join("registry.db"), MIGRATIONS).unwrap()),
            accounts: Arc::clone(&users) as _,
        };
        let addr = "127.0.0.1:0".parse().unwrap();
        let config = RegistryServerConfig { addr, peer_timeout: Duration::from_secs(60), auth: AuthMode::Strict };
        Arc::new(RegistryServer::start(config, floor).unwrap())
    });
    let warnings: &'static Warnings = Box::leak(Box::default());
    let context = OperatorContext {
        users: Arc::clone(&users),
        metrics: Arc::new(Metrics::new().unwrap()),
        warnings,
        trade: None,
        shop,
        registry: registry.clone(),
        clock,
    };
    World { operator: OperatorApi::start(context).unwrap(), users, warnings, registry, dir }
}

impl World {
    fn answer(&self, method: Method, path: &str, token: Option<&str>) -> Option<Response> {
        let mut headers = HeaderMap::new();
        if let Some(token) = token {
            headers.insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        }
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let (path, query, source) = (path.to_owned(), query.to_owned(), "127.0.0.1:40000".parse().unwrap());
        self.operator.answer(&Request { method, path, query, headers, body: Vec::new(), source })
    }

    /// Sends a request with a token of the admin.
    fn ask(&self, method: Method, path: &str) -> (u16, Value) {
        let answer = self.answer(method, path, Some(&self.admin())).unwrap();
        let value: Value = serde_json::from_slice(answer.body.as_bytes().unwrap()).unwrap();
        assert_eq!(value["success"], answer.status.is_success(), "{value}");
        (answer.status.as_u16(), value)
    }

    fn get(&self, path: &str) -> Value {
        let (status, value) = self.ask(Method::GET, path);
        assert_eq!(status, 200, "{path}: {value}");
        value
    }

    fn post(&self, path: &str) -> (u16, Value) {
        self.ask(Method::POST, path)
    }

    fn admin(&self) -> String {
        self.users.issue_token(&Name::new("admin").unwrap(), Role::Admin).0.reveal().to_owned()
    }

    fn user(&self, name: &str, display_name: &str) -> String {
        let user = self.users.register(name, "p", Some(display_name), "127.0.0.1".parse().unwrap()).unwrap();
        self.users.issue_token(&user.username, Role::User).0.reveal().to_owned()
    }

    fn shop(&self) -> &ShopDatabases {
        self.operator.context.shop.as_ref().unwrap()
    }

    fn seller(&self, name: &str) -> u64 {
        let op = CustomerOp::Create {
            request: name.to_owned(),
            role: crate::shop::ops::Role::Seller,
            username: name.to_owned(),
            password: "p".to_owned(),
            name: None,
            source: "127.0.0.1".to_owned(),
        };
        let made: Value = serde_json::from_str(&self.shop().customers.handle(op).unwrap()).unwrap();
        made["user_id"].as_u64().unwrap_or_else(|| panic!("{made}"))
    }

    fn item(&self, seller_id: u64, seller: &str, item_name: &str) -> String {
        let item = product::NewItem {
            seller_id,
            seller: seller.to_owned(),
            item_name: item_name.to_owned(),
            category: 3,
            keywords: vec!["thing".to_owned()],
            condition_is_new: true,
            price: Cents(500),
            quantity: 4,
        };
        let op = ProductOp::Register { request: item_name.to_owned(), item };
        let made: Value = serde_json::from_str(&self.shop().products.handle(op).unwrap()).unwrap();
        made["item_id"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned()
    }

    fn found(&self) -> Vec<String> {
        let op = ProductOp::Search { category: None, keywords: ["thing".to_owned()].into(), offset: 0, limit: 10 };
        let found: Value = serde_json::from_str(&self.shop().products.handle(op).unwrap()).unwrap();
        assert_eq!(found["total"], found["items"].as_array().unwrap().len(), "{found}");
        found["items"].as_array().unwrap().iter().map(|item| item["item_id"].as_str().unwrap().to_owned()).collect()
    }

    fn host(&self, name: &str, token: Option<&str>) -> Host {
        let stream = TcpStream::connect(self.registry.as_ref().unwrap().local_addr()).unwrap();
        let mut host = Host(BufReader::new(stream));
        let data = json!({"hostname": name, "port": 6001, "token": token});
        assert_eq!(host.ask("REGISTER", &data)["status"], "OK");
        host
    }
}

/// A raw-socket host of the registry.
struct Host(BufReader<TcpStream>);

impl Host {
    fn ask(&mut self, action: &str, data: &Value) -> Value {
        let line = json!({"action": action, "data": data}).to_string() + "\n";
        self.0.get_mut().write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        self.0.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    }
}

fn of<'v>(list: &'v Value, field: &str) -> Vec<&'v str> {
    list.as_array().unwrap().iter().map(|entry| entry[field].as_str().unwrap()).collect()
}

#[test]
fn only_the_admin_is_answered_and_other_paths_are_others() {
    let world = world(false, false);
    let user = world.user("ann", "Ann");
    for route in ROUTES {
        let path = route.spec.path.replace("{name}", "ann").replace("{id}", "3-1");
        let method = route.spec.method.method();
        let status = |token: Option<&str>| world.answer(method.clone(), &path, token).unwrap().status.as_u16();
        assert_eq!([status(None), status(Some("x")), status(Some(&user))], [401, 401, 403], "{path}");
        assert_eq!(world.answer(Method::PUT, &path, None).unwrap().status, 405, "{path}");
    }
    assert!(!world.users.search(&Default::default(), 0, 9).unwrap().0[0].is_blocked, "nothing was done");
    for path in ["/api/admin/registry", "/api/admin/users/ann", "/api/user/login", "/", "/api/%ff"] {
        assert!(world.answer(Method::GET, path, Some(&world.admin())).is_none(), "{path}");
    }
}

#[test]
fn what_does_not_run_here_is_said_to_be_elsewhere() {
    let world = world(false, false);
    for (method, path, says) in [
        (Method::GET, "/api/admin/deals", "no trade here"),
        (Method::GET, "/api/admin/ledger", "no ledger here"),
        (Method::POST, "/api/admin/items/3-1/remove", "no shop here"),
    ] {
        let (status, answer) = world.ask(method, path);
        assert_eq!(status, 503, "{path}");
        assert!(answer["error"].as_str().unwrap().contains(says), "{answer}");
    }
    world.user("ann", "Ann");
    let answer = world.get("/api/admin/users");
    assert_eq!((&answer["users"][0]["shop"], &answer["users"][0]["hostname"]), (&Value::Null, &Value::Null));
    assert_eq!(world.get("/api/admin/log")["log"], json!([]));
    let metrics = world.get("/api/admin/metrics");
    assert_eq!(metrics["step_s"], 2);
    let lengths: Vec<usize> =
        metrics["series"].as_array().unwrap().iter().map(|it| it["points"].as_array().unwrap().len()).collect();
    assert!(lengths.iter().all(|length| *length == metrics["times"].as_array().unwrap().len()), "{metrics}");
    for wrong in ["?limit=x", "?offset=-1"] {
        for path in ["users", "log"] {
            assert_eq!(world.ask(Method::GET, &format!("/api/admin/{path}{wrong}")).0, 400, "{path}{wrong}");
        }
    }
    assert_eq!(world.ask(Method::GET, "/api/admin/log?of=x").0, 400);
}

#[test]
fn users_are_found_by_either_name_and_told_where_they_are() {
    let world = world(true, true);
    for (name, display_name) in [("dora", "Dora D"), ("ann", "Änn"), ("carl", "Carl"), ("bob", "Annabel")] {
        world.user(name, display_name);
    }
    world.seller("carl");
    let token = world.user("eve", "Eve");
    let _host = world.host("eve", Some(&token));
    let all = world.get("/api/admin/users");
    assert_eq!((of(&all["users"], "username"), &all["total"]), (vec!["ann", "bob", "carl", "dora", "eve"], &json!(5)));
    let flags: Vec<(&Value, &Value)> =
        all["users"].as_array().unwrap().iter().map(|user| (&user["shop"], &user["hostname"])).collect();
    let (yes, no) = (&Value::Bool(true), &Value::Bool(false));
    assert_eq!(flags, [(no, no), (no, no), (yes, no), (no, no), (no, yes)]);
    assert!(all["users"][0]["created_at"].as_str().unwrap().ends_with('Z') && all["users"][0]["last_login"].is_null());
    for (query, names, total) in [
        ("?offset=1&limit=2", vec!["bob", "carl"], 5),
        ("?q=ANN", vec!["ann", "bob"], 2),
        ("?q=%C3%A4n", vec!["ann"], 1),
        ("?q=a&offset=2&limit=1", vec!["carl"], 4),
        ("?q=zzz", vec![], 0),
        ("?limit=0", vec![], 5),
    ] {
        let found = world.get(&format!("/api/admin/users{query}"));
        assert_eq!((of(&found["users"], "username"), &found["total"]), (names, &json!(total)), "{query}");
    }
}

#[test]
fn a_blocked_user_signs_in_no_more_and_sells_nothing_until_unblocked() {
    let mut world = world(true, false);
    let source = "127.0.0.1".parse().unwrap();
    let token = world.user("ann", "Ann");
    world.user("bob", "Bob");
    let (ann, bob) = (world.seller("ann"), world.seller("bob"));
    let (hers, his) = (world.item(ann, "ann", "pot"), world.item(bob, "bob", "pan"));
    let login = |world: &World, name: &str| world.users.login(name, "p", source).map(drop);
    for _again in 0..2 {
        let (status, answer) = world.post("/api/admin/users/ann/block");
        assert_eq!(
            (status, &answer["user"]["blocked"], &answer["user"]["username"]),
            (200, &json!(true), &json!("ann"))
        );
        assert_eq!(login(&world, "ann"), Err(UserError::Blocked));
        assert_eq!(world.users.login("ann", "wrong", source), Err(UserError::WrongCredentials), "only to who knows it");
        assert_eq!(
            world.users.authenticate_user(&token),
            Err(UserError::Token(crate::identity::jwt::TokenError::Blocked))
        );
        assert_eq!(world.users.hostname_of_token(&token), None, "the registry takes it no more");
        assert_eq!(login(&world, "bob"), Ok(()));
        assert_eq!(world.found(), [his.as_str()]);
        world.users.close();
        let World { operator, dir, .. } = world;
        let shop = operator.context.shop.clone().unwrap();
        shop.products.close();
        shop.customers.close();
        shop.customers.store().close();
        drop((operator, shop));
        // It outlives a restart.
        world = world_in(dir, true, false);
    }
    // Items that are put up for sale meanwhile are hidden as well, and shown with the others later.
    let later = world.item(ann, "ann", "lid");
    assert_eq!(world.found(), [his.as_str()]);
    let get = |world: &World, item_id: &str| {
        world.shop().products.handle(ProductOp::GetItem { item_id: item_id.to_owned() }).is_ok()
    };
    assert!(!get(&world, &hers) && !get(&world, &later) && get(&world, &his));
    for _again in 0..2 {
        let (status, answer) = world.post("/api/admin/users/ann/unblock");
        assert_eq!((status, &answer["user"]["blocked"]), (200, &json!(false)));
        assert_eq!(world.found(), [hers.as_str(), his.as_str(), later.as_str()]);
    }
    assert_eq!(login(&world, "ann"), Ok(()));
    assert!(world.users.authenticate_user(&token).is_ok(), "a token of before that has not expired is one again");
    assert_eq!(world.post("/api/admin/users/nobody/block").0, 404);
    assert_eq!(world.post("/api/admin/users/nobody/unblock").0, 404);
    assert_eq!(world.post("/api/admin/users/admin/block").0, 409);
    assert_eq!(world.post("/api/admin/users/%00/block").0, 404);
}

#[test]
fn an_item_that_was_removed_is_gone_for_everybody_and_its_units_stay_counted() {
    let world = world(true, false);
    let seller = world.seller("ann");
    let [pot, pan] = ["pot", "pan"].map(|name| world.item(seller, "ann", name));
    for _again in 0..2 {
        let (status, answer) = world.post(&format!("/api/admin/items/{pot}/remove"));
        assert_eq!((status, &answer["item_id"]), (200, &json!(pot)));
        assert_eq!(world.found(), [pan.as_str()]);
    }
    let ask = |op: ProductOp| world.shop().products.handle(op);
    assert!(ask(ProductOp::GetItem { item_id: pot.clone() }).is_err());
    let own = ask(ProductOp::ItemsOf { seller_id: seller, offset: 0, limit: 9 }).unwrap();
    let own: Value = serde_json::from_str(&own).unwrap();
    assert_eq!((&own["total"], own["items"].as_array().unwrap().len()), (&json!(1), 1));
    let price = ProductOp::ChangePrice { seller_id: seller, item_id: pot.clone(), price: Cents(1) };
    assert!(ask(price).is_err());
    // Blocking and unblocking the seller does not restore it.
    world.shop().products.hide_seller(seller, true).unwrap();
    assert!(world.found().is_empty());
    world.shop().products.hide_seller(seller, false).unwrap();
    assert_eq!(world.found(), [pan.as_str()]);
    for unknown in ["3-99", "4-1", "nonsense", "%20"] {
        assert_eq!(world.post(&format!("/api/admin/items/{unknown}/remove")).0, 404, "{unknown}");
    }
}

#[test]
fn the_ledger_is_told_with_exact_amounts() {
    let world = world(true, false);
    let (ann, bob, at) = (Name::new("ann").unwrap(), Name::new("bob").unwrap(), Millis(1_795_253_400_000));
    world
        .shop()
        .customers
        .store()
        .write(move |tx| {
            post(tx, &Posting::authorise("p1", at, &ann, Cents(1250))?)?;
            post(tx, &Posting::capture("p1", at.plus_ms(5), [(&bob, Cents(1125))], Cents(125))?)
        })
        .unwrap();
    let answer = world.get("/api/admin/ledger");
    assert_eq!(
        answer["balances"],
        json!([
            {"room": "shop", "account": "escrow", "balance": 0},
            {"room": "shop", "account": "fee", "balance": 1.25},
            {"room": "shop", "account": "card:ann", "balance": -12.5},
            {"room": "shop", "account": "payout:bob", "balance": 11.25},
        ])
    );
    assert_eq!(answer["totals"], json!({"card": -12.5, "escrow": 0, "payout": 11.25, "fee": 1.25}));
    assert_eq!((&answer["sum"], &answer["total"], &answer["balances_total"]), (&json!(0), &json!(5), &json!(4)));
    let newest = &answer["entries"][0];
    let expected = json!({"room": "shop", "at": 1_795_253_400, "key": "p1", "step": "capture", "account": "payout:bob",
        "amount": 11.25});
    assert_eq!(*newest, expected);
    let part = world.get("/api/admin/ledger?offset=4&limit=5&balances_offset=1&balances_limit=2");
    assert_eq!(
        (of(&part["balances"], "account"), of(&part["entries"], "account")),
        (vec!["fee", "card:ann"], vec!["card:ann"])
    );
    assert_eq!(world.ask(Method::GET, "/api/admin/ledger?balances_limit=x").0, 400);
}

#[test]
fn warnings_are_in_the_log() {
    let world = world(false, false);
    for nth in 0..3 {
        let at = Millis(1_795_253_400_000 + nth * 500);
        world.warnings.push(Warning { at, is_error: nth == 2, text: format!("w{nth}") });
    }
    let log = world.get("/api/admin/log");
    assert_eq!((of(&log["log"], "text"), &log["total"]), (vec!["w2", "w1", "w0"], &json!(3)));
    assert_eq!(log["log"][0], json!({"at": 1_795_253_401, "kind": "error", "peer": null, "text": "w2"}));
    assert_eq!(log["log"][1]["at"], 1_795_253_400.5);
    assert_eq!(of(&world.get("/api/admin/log?offset=1&limit=1")["log"], "text"), ["w1"]);
    assert_eq!(world.get("/api/admin/log?of=warnings")["total"], 3);
    assert_eq!(world.get("/api/admin/log?of=trade")["total"], 0);
}

#[test]
fn what_happens_is_told_to_who_watches() {
    let world = world(false, true);
    let answer = world.answer(Method::GET, "/api/admin/events", Some(&world.admin())).unwrap();
    let Body::Events(events) = answer.body else { panic!("no events: {answer:?}") };
    let next = || {
        let event = events.queue().recv_timeout(Duration::from_secs(10)).unwrap();
        (event.name.clone(), serde_json::from_str::<Value>(&event.data).unwrap())
    };
    let mut host = world.host("pc", None);
    assert_eq!(next(), ("hosts".to_owned(), json!({"hostname": "pc", "online": true, "file_count": 0})));
    let file = json!({"hostname": "pc", "fname": "a.txt", "size": 5, "modified": 1});
    assert_eq!(host.ask("PUBLISH", &file)["status"], "ACK");
    assert_eq!(next(), ("hosts".to_owned(), json!({"hostname": "pc", "online": true, "file_count": 1})));
    world.warnings.push(Warning { at: Millis(5_000), is_error: false, text: "w".to_owned() });
    assert_eq!(next(), ("warnings".to_owned(), json!({"at": 5, "kind": "warning", "peer": null, "text": "w"})));
    assert_eq!(host.ask("UNREGISTER", &json!({"hostname": "pc"}))["status"], "OK");
    assert_eq!(next(), ("hosts".to_owned(), json!({"hostname": "pc", "online": false, "file_count": 0})));
    // With too many changes at once, watchers are told to read everything anew.
    let poller = world.operator.event_feed.poller.lock();
    let _hosts: Vec<Host> = (0..101).map(|nth| world.host(&format!("h{nth}"), None)).collect();
    drop(poller);
    assert_eq!(next(), ("reset".to_owned(), json!({})));
    drop(host);
}

#[test]
fn who_waits_for_a_change_is_not_taken_for_a_slow_answer() {
    let world = world(false, true);
    let registry = world.registry.as_ref().unwrap();
    let mut host = Host(BufReader::new(TcpStream::connect(registry.local_addr()).unwrap()));
    let version = host.ask("CHANGES", &json!({}))["version"].clone();
    for _ in 0..3 {
        assert_eq!(host.ask("CHANGES", &json!({"since": version, "wait": 0.05}))["changes"], json!([]));
    }
    // The last but one is counted by now: the first and perhaps this one.
    assert_eq!(host.ask("LIST", &json!({}))["status"], "OK");
    assert!(registry.latencies().count() <= 2, "{:?}", registry.latencies());
}

#[test]
fn what_is_blocked_in_part_is_seen_as_not_blocked() {
    let world = world(true, false);
    world.user("ann", "Ann");
    let ann = world.seller("ann");
    let pot = world.item(ann, "ann", "pot");
    // Writes to the account database fail, as on a full disk.
    world.users.close();
    assert_eq!(world.post("/api/admin/users/ann/block").0, 503);
    assert!(world.found().is_empty(), "the shop has done its part");
    let World { operator, dir, .. } = world;
    let shop = operator.context.shop.clone().unwrap();
    shop.products.close();
    shop.customers.close();
    shop.customers.store().close();
    drop((operator, shop));
    let world = world_in(dir, true, false);
    assert_eq!(world.get("/api/admin/users")["users"][0]["blocked"], false);
    for (what, shown) in [("block", vec![]), ("unblock", vec![pot])] {
        assert_eq!(world.post(&format!("/api/admin/users/ann/{what}")).0, 200);
        assert_eq!(world.found(), shown);
    }
}
