use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::identity::jwt::Jwt;
use crate::identity::users::AdminCredentials;
use crate::identity::{HashCost, PasswordHasher, Role};
use crate::model::{Millis, Name};
use crate::net::budget::ReceiveBudget;
use crate::net::http::{Body, HeaderMap, Method, header};
use crate::net::listener::{ConnectionLimiter, ListenerContext};
use crate::net::threads::Executor;
use crate::share::registry::store::MIGRATIONS;
use crate::share::server::{AuthMode, RegistryServerConfig, RegistryServerContext};
use crate::storage::{Store, StoreError};

const HERE: &str = "127.0.0.1:40000";
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

struct World {
    api: ServerApi,
    users: Arc<Users>,
    registry: Option<Arc<RegistryServer>>,
    _dir: tempfile::TempDir,
}

fn users(dir: &Path, clock: Clock) -> Arc<Users> {
    let passwords = PasswordHasher::with_own_threads(HashCost { memory_kib: 8, passes: 1 }, 2).unwrap();
    let users = Users::open(dir, clock, passwords, Jwt::with_secret(SECRET, Duration::from_secs(3600))).unwrap();
    let admin = AdminCredentials { username: None, password: Some("root".to_owned()) };
    users.ensure_admin(admin, |_| Ok::<_, UserError>(())).unwrap();
    Arc::new(users)
}

fn world(with_registry: bool) -> World {
    world_in(tempfile::tempdir().unwrap(), with_registry)
}

fn world_in(dir: tempfile::TempDir, with_registry: bool) -> World {
    let clock = Clock::start();
    let users = users(dir.path(), clock);
    let registry = with_registry.then(|| {
        let floor = RegistryServerContext {
            listener: ListenerContext {
                executor: Executor::new("test", 100),
                limiter: ConnectionLimiter::new(100),
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
    let metrics = Arc::new(Metrics::new().unwrap());
    let api = ServerApi::new(Arc::clone(&users), registry.clone(), metrics);
    World { api, users, registry, _dir: dir }
}

impl World {
    fn ask(&self, method: Method, path: &str, token: Option<&str>, body: Value) -> (u16, Value) {
        self.ask_from(HERE, method, path, token, body)
    }

    fn ask_from(&self, from: &str, method: Method, path: &str, token: Option<&str>, body: Value) -> (u16, Value) {
        let mut headers = HeaderMap::new();
        if let Some(token) = token {
            headers.insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        }
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let (path, query, source) = (path.to_owned(), String::new(), from.parse().unwrap());
        let answer = self.api.handle(Request { method, path, query, headers, body, source });
        let bytes = match answer.body {
            Body::Bytes(bytes) => bytes,
            Body::Chunks(chunks) => chunks.flatten().collect(),
            Body::File { .. } | Body::Events(_) => panic!("neither files nor events here"),
        };
        let value: Value = serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes)));
        if answer.headers[header::CONTENT_TYPE] == "application/json" {
            assert_eq!(value["success"], answer.status.is_success(), "{value}");
            assert_eq!(value["error"].is_string(), !answer.status.is_success(), "{value}");
        }
        (answer.status.as_u16(), value)
    }

    fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.ask(Method::POST, path, None, body)
    }

    fn get(&self, path: &str, token: Option<&str>) -> (u16, Value) {
        self.ask(Method::GET, path, token, Value::Null)
    }

    fn admin_token(&self) -> String {
        let (status, answer) = self.post("/api/admin/login", json!({"username": "admin", "password": "root"}));
        assert_eq!((status, &answer["username"]), (200, &json!("admin")));
        answer["token"].as_str().unwrap().to_owned()
    }

    fn user_token(&self, name: &str) -> String {
        let (status, answer) = self.post("/api/user/register", json!({"username": name, "password": "p"}));
        assert_eq!(status, 200, "{answer}");
        answer["token"].as_str().unwrap().to_owned()
    }
}

/// A host of the registry, using a plain socket.
struct Host(BufReader<TcpStream>);

impl Host {
    fn register(world: &World, name: &str, token: Option<&str>, files: &Value) -> Result<Host, String> {
        let stream = TcpStream::connect(world.registry.as_ref().unwrap().local_addr()).unwrap();
        let mut host = Host(BufReader::new(stream));
        let data = json!({"hostname": name, "port": 6001, "files_metadata": files, "token": token});
        let answer = host.ask("REGISTER", &data);
        if answer["status"] == "OK" { Ok(host) } else { Err(answer["reason"].as_str().unwrap().to_owned()) }
    }

    fn ask(&mut self, action: &str, data: &Value) -> Value {
        let message = json!({"action": action, "data": data});
        self.0.get_mut().write_all(format!("{message}\n").as_bytes()).unwrap();
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

fn file(size: u64, is_published: bool) -> Value {
    json!({"size": size, "modified": 1_700_000_000, "is_published": is_published})
}

#[test]
fn an_account_is_made_signs_in_and_is_known_by_its_token() {
    let world = world(false);
    let body = json!({"username": "ann", "password": "secret", "display_name": "Ann B.", "other": 5});
    let (status, made) = world.post("/api/user/register", body.clone());
    assert_eq!(status, 200, "{made}");
    assert_eq!((&made["user"]["username"], &made["user"]["display_name"]), (&json!("ann"), &json!("Ann B.")));
    assert!(Millis::parse_iso(made["user"]["created_at"].as_str().unwrap()).is_some());
    assert!(made["user"].get("last_login").is_none() && made["user"].get("password").is_none());
    assert_eq!(world.post("/api/user/register", body).0, 409);
    let (status, answer) = world.post("/api/user/login", json!({"username": "ann", "password": "secret"}));
    assert_eq!(status, 200);
    assert!(Millis::parse_iso(answer["user"]["last_login"].as_str().unwrap()).is_some());
    let token = answer["token"].as_str().unwrap();
    for (bearer, body) in
        [(Some(token), Value::Null), (None, json!({ "token": token })), (Some(token), json!({"token": "x"}))]
    {
        let (status, verified) = world.ask(Method::POST, "/api/user/verify", bearer, body);
        assert_eq!((status, &verified["user"]), (200, &answer["user"]));
        assert!(verified["exp"].as_u64().unwrap() > 1_700_000_000);
    }
    let (status, fresh) = world.ask(Method::POST, "/api/user/refresh", Some(token), Value::Null);
    assert_eq!((status, &fresh["user"]), (200, &answer["user"]));
    assert_ne!(fresh["token"], answer["token"]);
    assert_eq!(world.ask(Method::POST, "/api/user/verify", fresh["token"].as_str(), Value::Null).0, 200);
}

#[test]
fn wrong_fields_wrong_passwords_and_wrong_tokens_have_their_statuses() {
    let world = world(false);
    world.user_token("ann");
    for (path, body, named) in [
        ("/api/user/register", json!({"password": "p"}), "username"),
        ("/api/user/register", json!({"username": "x"}), "password"),
        ("/api/user/register", json!({"username": 5, "password": "p"}), "username"),
        ("/api/user/register", json!({"username": "", "password": "p"}), "username"),
        ("/api/user/register", json!({"username": "x", "password": ""}), "password"),
        ("/api/user/register", json!({"username": "x", "password": "p", "display_name": []}), "display_name"),
        ("/api/user/login", json!({"username": "x"}), "password"),
        ("/api/user/login", json!({"username": "a\u{0}", "password": "p"}), "username"),
        ("/api/user/login", json!([]), "body"),
        ("/api/user/login", Value::Null, "body"),
        ("/api/user/verify", json!({"token": 5}), "token"),
        ("/api/admin/login", json!({"password": "p"}), "username"),
        ("/api/admin/login", json!({"username": "x".repeat(65), "password": "p"}), "username"),
    ] {
        let (status, answer) = world.post(path, body.clone());
        assert_eq!(status, 400, "{path} {body}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(named), "{path} {body}: {answer}");
    }
    for (path, body) in [
        ("/api/user/login", json!({"username": "ann", "password": "wrong"})),
        ("/api/user/login", json!({"username": "nobody", "password": "p"})),
        ("/api/user/login", json!({"username": "admin", "password": "root"})),
        ("/api/admin/login", json!({"username": "admin", "password": "wrong"})),
        ("/api/admin/login", json!({"username": "ann", "password": "p"})),
        ("/api/user/verify", Value::Null),
        ("/api/user/verify", json!({"token": "nonsense"})),
        ("/api/user/refresh", Value::Null),
        ("/api/admin/verify", Value::Null),
    ] {
        assert_eq!(world.post(path, body.clone()).0, 401, "{path} {body}");
    }
    // The response does not reveal which of the two reasons made a login fail.
    let wrong = world.post("/api/user/login", json!({"username": "ann", "password": "wrong"}));
    assert_eq!(wrong, world.post("/api/user/login", json!({"username": "bob", "password": "wrong"})));
    assert_eq!(world.get("/api/nothing", None).0, 404);
    assert_eq!(world.get("/", None).0, 404);
    assert_eq!(world.get("/api/user/%ff", None).0, 400);
    assert_eq!(world.get("/api/user/login", None).0, 405);
    assert_eq!(world.post("/api/stats", json!({})).0, 405);
}

#[test]
fn who_guesses_is_told_to_wait() {
    let world = world(false);
    for _ in 0..10 {
        assert_eq!(world.post("/api/user/login", json!({"username": "ann", "password": "wrong"})).0, 401);
    }
    let (status, answer) = world.post("/api/user/login", json!({"username": "ann", "password": "wrong"}));
    assert_eq!(status, 429, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("try again in "), "{answer}");
    let elsewhere = json!({"username": "ann", "password": "wrong"});
    assert_eq!(world.ask_from("192.0.2.1:1", Method::POST, "/api/user/login", None, elsewhere).0, 401);
}

#[test]
fn expired_forged_and_foreign_tokens_are_good_for_nothing() {
    let world = world(true);
    let user = world.user_token("ann");
    let now = Clock::start().now();
    let an_hour = Duration::from_secs(3600);
    let long_ago = Millis(now.0 - 3_600_001);
    let expired = |role| Jwt::with_secret(SECRET, an_hour).issue(long_ago, "ann", role).0.reveal().to_owned();
    let foreign = |role| Jwt::with_secret(b"another", an_hour).issue(now, "ann", role).0.reveal().to_owned();
    // {"alg":"none"} with the claims of a valid token.
    let claims = user.split('.').nth(1).unwrap();
    let none = format!("eyJhbGciOiJub25lIn0.{claims}.");
    let cut = &user[..user.len() - 1];
    let bad =
        [expired(Role::User), expired(Role::Admin), foreign(Role::User), foreign(Role::Admin), none, cut.to_owned()];
    for token in &bad {
        for (method, path) in [
            (Method::POST, "/api/user/verify"),
            (Method::POST, "/api/user/refresh"),
            (Method::POST, "/api/admin/verify"),
            (Method::GET, "/api/admin/registry"),
            (Method::GET, "/api/admin/discover/ann"),
            (Method::GET, "/api/admin/ping/ann"),
        ] {
            assert_eq!(world.ask(method, path, Some(token), Value::Null).0, 401, "{path} {token}");
        }
        let error = Host::register(&world, "ann", Some(token), &json!({})).err().unwrap();
        assert!(error.contains("token"), "{error}");
    }
    assert!(Host::register(&world, "ann", Some(&user), &json!({})).is_ok());
}

#[test]
fn only_an_admin_sees_the_registry() {
    let world = world(true);
    let (user, admin) = (world.user_token("ann"), world.admin_token());
    for path in ["/api/admin/registry", "/api/admin/discover/ann", "/api/admin/ping/ann"] {
        assert_eq!(world.get(path, None).0, 401, "{path}");
        assert_eq!(world.get(path, Some(&user)).0, 403, "{path}");
        assert_ne!(world.get(path, Some(&admin)).0, 403, "{path}");
    }
    let verify = |token: &str| world.ask(Method::POST, "/api/admin/verify", Some(token), Value::Null);
    assert_eq!(verify(&user).0, 403);
    assert_eq!(verify(&admin), (200, json!({"success": true, "username": "admin"})));
    assert_eq!(world.ask(Method::POST, "/api/user/verify", Some(&admin), Value::Null).0, 403);
    // A token in the URL is not accepted.
    assert_eq!(world.get(&format!("/api/admin/registry?token={admin}"), None).0, 404);
}

#[test]
fn the_admin_sees_hosts_with_their_files_and_accounts() {
    let world = world(true);
    let (token, admin) = (world.user_token("ann"), world.admin_token());
    let files = json!({"a.txt": file(5, true), "b c.txt": file(7, true), "own.txt": file(9, false)});
    let ann = Host::register(&world, "ann", Some(&token), &files).unwrap();
    let bob = Host::register(&world, "bob é/x", None, &json!({})).unwrap();
    drop(bob);
    let registry = world.registry.as_ref().unwrap();
    while registry.view().totals().active_clients == 2 {
        std::thread::yield_now();
    }
    let (status, answer) = world.get("/api/admin/registry", Some(&admin));
    assert_eq!(status, 200);
    assert_eq!(answer["stats"], json!({"total_clients": 2, "active_clients": 1, "total_files": 2}));
    let clients = answer["clients"].as_array().unwrap();
    let [first, second] = &clients[..] else { panic!("{clients:?}") };
    assert_eq!((&first["hostname"], &first["status"], &first["port"]), (&json!("ann"), &json!("online"), &json!(6001)));
    assert_eq!((&first["ip"], &first["file_count"]), (&json!("127.0.0.1"), &json!(2)));
    assert_eq!(first["files"], json!({"a.txt": file(5, true), "b c.txt": file(7, true)}));
    assert!(first["last_seen"].as_f64().unwrap() >= first["connected_at"].as_f64().unwrap());
    assert!(Millis::parse_iso(first["created_at"].as_str().unwrap()).is_some() && first["last_login"].is_null());
    assert_eq!((&second["hostname"], &second["status"]), (&json!("bob é/x"), &json!("offline")));
    assert!(second["created_at"].is_null() && second["files"] == json!({}));

    let (status, found) = world.get("/api/admin/discover/ann", Some(&admin));
    assert_eq!((status, &found["addr"], &found["files"]), (200, &json!(["127.0.0.1", 6001]), &first["files"]));
    assert_eq!(found["hostname"], "ann");
    assert_eq!(world.get("/api/admin/discover/bob%20%C3%A9%2Fx", Some(&admin)).0, 200);
    assert_eq!(world.get("/api/admin/discover/nobody", Some(&admin)).0, 404);
    let ping = |name: &str| world.get(&format!("/api/admin/ping/{name}"), Some(&admin)).1["status"].clone();
    assert_eq!((ping("ann"), ping("nobody")), (json!("ALIVE"), json!("DEAD")));

    let (status, stats) = world.get("/api/stats", None);
    assert_eq!(status, 200);
    let stats = &stats["stats"];
    assert_eq!(
        (&stats["total_size"], &stats["total_files"], &stats["total_clients"]),
        (&json!(12), &json!(2), &json!(2))
    );
    assert!(stats["timestamp"].as_f64().unwrap() > 1_700_000_000.0);
    drop(ann);
}

#[test]
fn a_registry_of_several_pages_is_told_whole_and_in_order() {
    let world = world(true);
    let admin = world.admin_token();
    // One connection after another; each host stays listed after its connection has closed.
    for n in 0..600 {
        Host::register(&world, &format!("host{n:04}"), None, &json!({"f": file(1, true)})).unwrap();
    }
    let (_, answer) = world.get("/api/admin/registry", Some(&admin));
    let names: Vec<&str> =
        answer["clients"].as_array().unwrap().iter().map(|client| client["hostname"].as_str().unwrap()).collect();
    let expected: Vec<String> = (0..600).map(|n| format!("host{n:04}")).collect();
    assert_eq!(names, expected);
}

#[test]
fn a_stranger_loses_the_hostname_to_the_account_that_is_made() {
    let world = world(true);
    let mut stranger = Host::register(&world, "ann", None, &json!({"a.txt": file(5, true)})).unwrap();
    let token = world.user_token("ann");
    let answer = stranger.ask("UNPUBLISH", &json!({"hostname": "ann", "fname": "a.txt"}));
    assert_eq!(answer["status"], "ERROR", "{answer}");
    assert!(answer["reason"].as_str().unwrap().contains("token"), "{answer}");
    assert!(Host::register(&world, "ann", None, &json!({})).is_err());
    assert!(Host::register(&world, "ann", Some(&world.user_token("bob")), &json!({})).is_err());
    assert!(Host::register(&world, "ann", Some(&token), &json!({})).is_ok());
}

#[test]
fn without_a_registry_the_rest_is_there() {
    let world = world(false);
    assert_eq!(world.get("/api/health", None), (200, json!({"success": true, "status": "healthy"})));
    let admin = world.admin_token();
    assert_eq!(world.get("/api/admin/registry", Some(&admin)).0, 503);
    assert_eq!(world.get("/api/admin/registry", None).0, 401);
    assert_eq!(world.get("/api/stats", None).0, 503);
}

#[test]
fn metrics_are_told_on_this_machine_alone() {
    let world = world(false);
    world.get("/api/health", None);
    let (status, text) = world.get("/metrics", None);
    let text = text.as_str().unwrap();
    assert_eq!(status, 200);
    assert!(text.contains("p2s2_http_request_seconds_count{route=\"health\",status=\"200\"} 1"), "{text}");
    assert_eq!(world.ask_from("192.0.2.1:1", Method::GET, "/metrics", None, Value::Null).0, 403);
    assert_eq!(world.ask_from("[::1]:1", Method::GET, "/metrics", None, Value::Null).0, 200);
}

#[test]
fn the_registry_asks_about_accounts_by_the_same_tokens() {
    use crate::share::server::AccountDirectory;
    let world = world(false);
    let token = world.user_token("ann");
    let accounts: &dyn AccountDirectory = &*world.users;
    assert!(accounts.is_account("ann") && !accounts.is_account("bob"));
    assert_eq!(accounts.owner_of(&token).as_deref(), Some("ann"));
    let (ghost, _) = world.users.issue_token(&Name::new("ghost").unwrap(), Role::User);
    assert_eq!(accounts.owner_of(ghost.reveal()), None);
    let (here, there): (IpAddr, IpAddr) = ("127.0.0.1".parse().unwrap(), "192.0.2.1".parse().unwrap());
    assert!(accounts.signed_in_from("ann", here) && !accounts.signed_in_from("ann", there));
}

#[test]
fn the_admins_list_goes_past_a_name_of_an_earlier_version_that_cannot_be_seen_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("registry.db"), MIGRATIONS).unwrap();
    let names = ["ann", "b\u{200b}ob", "cy"];
    for (id, name) in (1_i64..).zip(names) {
        let sql = "INSERT INTO registry_host (id, hostname, display_name, ip, port, source, by_account, tenure, \
                   connected_at, heard_at) VALUES ($1, $2, 'x', '192.0.2.1', 6001, '192.0.2.1', 0, $1, $3, $3)";
        let now = Clock::wall();
        store
            .write(move |tx| tx.execute(sql, &[id.into(), name.into(), now.into()]).map(drop))
            .map_err(|error: StoreError| error.to_string())
            .unwrap();
    }
    store.close();
    let world = world_in(dir, true);
    let view = world.registry.as_ref().unwrap().view();
    let mut after: Option<Name> = None;
    for name in names {
        let page = view.page(after.as_ref().map(Name::as_str), 1);
        after = page.into_iter().next().map(|client| client.host.hostname);
        assert_eq!(after.as_ref().map(Name::as_str), Some(name));
    }
    assert!(view.page(Some("cy"), 1).is_empty());
}

#[test]
fn the_admins_list_is_made_in_pages_however_many_files_hosts_have() {
    let world = world(true);
    let files: serde_json::Map<String, Value> = (0..6_000).map(|n| (format!("f{n}"), file(1, true))).collect();
    let names = ["ann", "bob", "cy", "dee", "eve"];
    let _hosts = names.map(|name| Host::register(&world, name, None, &Value::Object(files.clone())).unwrap());
    let view = world.registry.as_ref().unwrap().view();
    let mut seen: Vec<Name> = Vec::new();
    loop {
        let page = view.page(seen.last().map(Name::as_str), 256);
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 2, "{}", page.len());
        assert!(page.iter().all(|client| client.files.len() == 6_000));
        seen.extend(page.into_iter().map(|client| client.host.hostname));
    }
    assert_eq!(seen.iter().map(Name::as_str).collect::<Vec<_>>(), names);
    let (_, answer) = world.get("/api/admin/registry", Some(&world.admin_token()));
    assert_eq!(answer["clients"].as_array().unwrap().len(), names.len());
}
