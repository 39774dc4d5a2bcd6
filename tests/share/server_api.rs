//! The server API of a real `p2s2 server`, used over plain sockets by a client that is written only from `docs/spec`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use p2s2::internals::net::conn::Conn;
use p2s2::internals::net::deadline::DeadlineRead;
use serde_json::{Value, json};

use crate::support::*;

/// A server with accounts, a registry and HTTP. Killed when dropped.
pub struct ServerProcess {
    child: Child,
    pub api: SocketAddr,
    pub registry: Option<SocketAddr>,
    pub ready: Value,
}

impl ServerProcess {
    /// Starts on that folder, with whatever an earlier run left there.
    pub fn start(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> ServerProcess {
        let ready = dir.join("ready.json");
        let _ = fs::remove_file(&ready);
        let mut child = command(dir, args, env).arg("--ready-file").arg(&ready).spawn().unwrap();
        let ready: Value = eventually("the server to be ready", || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the server ended with {status}: {}", log_of(dir));
            }
            serde_json::from_str(&fs::read_to_string(&ready).ok()?).ok()
        });
        let addr = |name: &str| ready[name].as_str().map(|addr| addr.parse().unwrap());
        ServerProcess { child, api: addr("server_api").unwrap(), registry: addr("registry"), ready }
    }

    fn stop(mut self) -> i32 {
        signal(self.child.id(), libc::SIGTERM);
        eventually("the server to end", || self.child.try_wait().unwrap()).code().unwrap_or(-1)
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Command {
    let out = |name: &str| fs::OpenOptions::new().create(true).append(true).open(dir.join(name)).unwrap();
    let mut command = program("server");
    command
        .env("P2S2_SERVER_SERVICES", "share")
        .env("P2S2_SERVER_REGISTRY_PORT", "0")
        .env("ADMIN_PASSWORD", "root")
        .envs(env.iter().copied())
        .args(args)
        .arg("--data-dir")
        .arg(dir.join("state"))
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(out("out"))
        .stderr(out("log"));
    for (name, value) in env {
        if value.is_empty() {
            command.env_remove(name);
        }
    }
    command
}

fn log_of(dir: &Path) -> String {
    fs::read_to_string(dir.join("log")).unwrap_or_default()
}

/// Status, head and body of a response.
type Answer = (u16, String, Vec<u8>);

fn ask_raw(addr: SocketAddr, request: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    parse(&bytes)
}

/// Parses a response after which the connection was closed.
fn parse(bytes: &[u8]) -> Answer {
    let end = bytes.windows(4).position(|end| end == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut body = bytes[end + 4..].to_vec();
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        let mut rest = &body[..];
        let mut whole = Vec::new();
        loop {
            let line = rest.iter().position(|byte| *byte == b'\n').unwrap();
            let length = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap().trim(), 16).unwrap();
            if length == 0 {
                break;
            }
            whole.extend_from_slice(&rest[line + 1..line + 1 + length]);
            rest = &rest[line + 1 + length + 2..];
        }
        body = whole;
    }
    (status, head, body)
}

fn request(method: &str, path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    let kind = if body.is_empty() { String::new() } else { "Content-Type: application/json\r\n".to_owned() };
    format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {length}\r\n{kind}{headers}\r\n{body}"
    )
}

fn ask(addr: SocketAddr, method: &str, path: &str, token: Option<&str>, body: &Value) -> (u16, Value) {
    let headers = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let (status, head, body) = ask_raw(addr, request(method, path, &headers, &body).as_bytes());
    assert!(!head.to_ascii_lowercase().contains("set-cookie"), "{head}");
    (status, serde_json::from_slice(&body).unwrap_or_else(|_| json!(String::from_utf8_lossy(&body))))
}

pub fn get(addr: SocketAddr, path: &str, token: Option<&str>) -> (u16, Value) {
    ask(addr, "GET", path, token, &Value::Null)
}

pub fn post(addr: SocketAddr, path: &str, body: &Value) -> (u16, Value) {
    ask(addr, "POST", path, None, body)
}

fn token_of(answer: (u16, Value)) -> String {
    assert_eq!(answer.0, 200, "{}", answer.1);
    answer.1["token"].as_str().unwrap().to_owned()
}

fn admin_token(api: SocketAddr) -> String {
    token_of(post(api, "/api/admin/login", &json!({"username": "admin", "password": "root"})))
}

/// A host's connection to the registry.
struct Host(BufReader<TcpStream>);

impl Host {
    fn connect(node: &ServerProcess) -> Host {
        let stream = TcpStream::connect(node.registry.unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Host(BufReader::new(stream))
    }

    fn ask(&mut self, action: &str, data: &Value) -> Value {
        let message = json!({"action": action, "data": data});
        self.0.get_mut().write_all(format!("{message}\n").as_bytes()).unwrap();
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

#[test]
fn accounts_tokens_and_hosts_outlive_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let node = ServerProcess::start(dir.path(), &[], &[]);
    assert_eq!(node.ready.as_object().unwrap().len(), 2, "{}", node.ready);
    assert_eq!(get(node.api, "/api/health", None), (200, json!({"success": true, "status": "healthy"})));
    let body = json!({"username": "ann", "password": "secret", "display_name": "Ann"});
    let token = token_of(post(node.api, "/api/user/register", &body));
    assert_eq!(post(node.api, "/api/user/register", &body).0, 409);
    // An empty form field counts as absent.
    for (username, display_name) in [("bob", json!("")), ("cid", Value::Null)] {
        let body = json!({"username": username, "password": "secret", "display_name": display_name});
        let (status, answer) = post(node.api, "/api/user/register", &body);
        assert_eq!((status, &answer["user"]["display_name"]), (200, &json!(username)), "{answer}");
    }
    let files = json!({"a.txt": {"size": 5, "modified": 1_700_000_000, "is_published": true}});
    let data = json!({"hostname": "ann", "port": 6001, "token": token, "files_metadata": files});
    let mut host = Host::connect(&node);
    assert_eq!(host.ask("REGISTER", &data)["status"], "OK");
    let admin = admin_token(node.api);
    drop(node);

    let node = ServerProcess::start(dir.path(), &[], &[]);
    let (status, verified) = ask(node.api, "POST", "/api/user/verify", Some(&token), &Value::Null);
    assert_eq!((status, &verified["user"]["display_name"]), (200, &json!("Ann")));
    assert_eq!(post(node.api, "/api/user/login", &json!({"username": "ann", "password": "secret"})).0, 200);
    assert_eq!(post(node.api, "/api/user/login", &json!({"username": "ann", "password": "Secret"})).0, 401);
    let (status, seen) = get(node.api, "/api/admin/registry", Some(&admin));
    assert_eq!(status, 200);
    assert_eq!(seen["stats"], json!({"total_clients": 1, "active_clients": 0, "total_files": 1}));
    // The hosts, then the accounts without a live host.
    let names: Vec<_> = seen["clients"].as_array().unwrap().iter().map(|client| client["hostname"].clone()).collect();
    assert_eq!(names, ["ann", "bob", "cid"]);
    let bob = &seen["clients"][1];
    assert_eq!((&bob["status"], &bob["files"], &bob["file_count"]), (&json!("offline"), &json!({}), &json!(0)));
    assert!(
        bob["ip"].is_null() && bob["port"].is_null() && bob["last_seen"].is_null() && bob["connected_at"].is_null()
    );
    assert!(bob["created_at"].is_string() && bob["last_login"].is_null(), "{bob}");
    let client = &seen["clients"][0];
    assert_eq!((&client["hostname"], &client["status"]), (&json!("ann"), &json!("offline")));
    assert!(client["created_at"].is_string() && client["last_login"].is_string(), "{client}");
    assert_eq!(get(node.api, "/api/admin/discover/ann", Some(&admin)).1["files"]["a.txt"]["size"], 5);
    assert_eq!(get(node.api, "/api/admin/ping/ann", Some(&admin)).1["status"], "ALIVE");
    assert_eq!(get(node.api, "/api/stats", None).1["stats"]["total_size"], 5);
    // Nobody else gets the name now either.
    let stolen = Host::connect(&node).ask("REGISTER", &json!({"hostname": "ann", "port": 6002}));
    assert_eq!(stolen["status"], "ERROR", "{stolen}");
    let log = log_of(dir.path());
    assert!(!log.contains("secret") && !log.contains(&token) && !log.contains(&admin), "{log}");
    assert_eq!(node.stop(), 0);
}

#[test]
fn the_admin_is_made_up_once_and_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let none = [("ADMIN_PASSWORD", "")];
    let out = || fs::read_to_string(dir.path().join("out")).unwrap();
    let told = |out: &str| out.lines().filter(|line| line.starts_with("admin: ")).count();
    let node = ServerProcess::start(dir.path(), &[], &none);
    let said = eventually("the line ready", || Some(out()).filter(|out| out.ends_with("ready\n")));
    assert_eq!(told(&said), 1, "{said}");
    assert!(said.contains(&format!("registry: tcp {}\n", node.registry.unwrap())), "{said}");
    assert!(said.contains(&format!("server-api: http {}\n", node.api)), "{said}");
    let line = said.lines().find(|line| line.starts_with("admin: ")).unwrap();
    let password = line.rsplit(' ').next().unwrap();
    assert!(password.len() >= 20, "{line}");
    let login = json!({"username": "admin", "password": password});
    assert_eq!(post(node.api, "/api/admin/login", &login).0, 200);
    assert!(!log_of(dir.path()).contains(password));
    let key = fs::metadata(dir.path().join("state/jwt.key")).unwrap();
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
        let users = fs::metadata(dir.path().join("state/users.db")).unwrap();
        assert_eq!(users.permissions().mode() & 0o777, 0o600);
    }
    drop(node);
    let node = ServerProcess::start(dir.path(), &[], &none);
    assert_eq!(told(&out()), 1, "only at the first start");
    assert_eq!(post(node.api, "/api/admin/login", &login).0, 200);
    drop(node);
    // The environment takes precedence.
    let node = ServerProcess::start(dir.path(), &[], &[("ADMIN_USERNAME", "boss"), ("ADMIN_PASSWORD", "hunter2")]);
    assert_eq!(post(node.api, "/api/admin/login", &login).0, 401);
    assert_eq!(post(node.api, "/api/admin/login", &json!({"username": "boss", "password": "hunter2"})).0, 200);
}

#[test]
fn tokens_end_with_their_life_and_are_good_for_one_secret_alone() {
    let dir = tempfile::tempdir().unwrap();
    let secret = [("JWT_SECRET_KEY", "0123456789abcdef0123456789abcdef")];
    let node = ServerProcess::start(dir.path(), &["--jwt-ttl", "2s"], &secret);
    let body = json!({"username": "ann", "password": "p"});
    let token = token_of(post(node.api, "/api/user/register", &body));
    let verify =
        |node: &ServerProcess, token: &str| ask(node.api, "POST", "/api/user/verify", Some(token), &Value::Null).0;
    assert_eq!(verify(&node, &token), 200);
    eventually("the token to expire", || (verify(&node, &token) == 401).then_some(()));
    // Refreshing needs a valid token.
    assert_eq!(ask(node.api, "POST", "/api/user/refresh", Some(&token), &Value::Null).0, 401);
    assert!(!dir.path().join("state/jwt.key").exists(), "the secret is kept by who gave it");
    let claims = token.split('.').nth(1).unwrap();
    assert_eq!(verify(&node, &format!("eyJhbGciOiJub25lIn0.{claims}.")), 401, "alg none");
    drop(node);
    // The documented variable has the effect of the flag.
    let node = ServerProcess::start(dir.path(), &[], &[secret[0], ("SESSION_TIMEOUT", "3600")]);
    let token = token_of(post(node.api, "/api/user/login", &body));
    drop(node);
    let node = ServerProcess::start(dir.path(), &[], &[("JWT_SECRET_KEY", "another secret of thirty-two bytes")]);
    assert_eq!(verify(&node, &token), 401, "a foreign key");
    let admin = admin_token(node.api);
    assert_eq!(verify(&node, &admin), 403);
    assert_eq!(get(node.api, "/api/admin/registry", Some(&token)).0, 401);
    let user = token_of(post(node.api, "/api/user/login", &body));
    assert_eq!(get(node.api, "/api/admin/registry", Some(&user)).0, 403);
    assert_eq!(get(node.api, "/api/admin/registry", None).0, 401);
    assert_eq!(get(node.api, "/api/admin/registry", Some(&admin)).0, 200);
}

#[test]
fn the_rules_of_both_apis_hold_at_the_servers_port() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--allow-origin", "https://page.example", "--http-host", "share.example"];
    let node = ServerProcess::start(dir.path(), &args, &[]);
    let raw = |text: &str| ask_raw(node.api, text.as_bytes());
    let with_host = |host: &str, more: &str| {
        raw(&format!("GET /api/health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n"))
    };
    for (host, status) in [("127.0.0.1", 200), ("localhost:1", 200), ("share.example", 200), ("evil.example", 421)] {
        assert_eq!(with_host(host, "").0, status, "{host}");
    }
    assert_eq!(with_host("127.0.0.1", "Origin: https://evil.example\r\n").0, 403);
    let (status, head, _) = with_host("127.0.0.1", "Origin: https://page.example\r\n");
    assert!(status == 200 && head.contains("access-control-allow-origin: https://page.example"), "{head}");
    let preflight = |origin: &str| {
        let text = format!(
            "OPTIONS /api/user/login HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nOrigin: {origin}\r\n\
             Access-Control-Request-Method: POST\r\n\r\n"
        );
        raw(&text).0
    };
    assert_eq!((preflight("https://page.example"), preflight("https://evil.example")), (204, 403));
    let form = "POST /api/user/register HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}";
    assert_eq!(raw(form).0, 415);
    let huge = "POST /api/user/register HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 1048577\r\n\r\n";
    assert_eq!(raw(huge).0, 413);
    assert_eq!(get(node.api, "/api/nothing", None).0, 404);
    assert_eq!(get(node.api, "/api/user/login", None).0, 405);
    let (status, metrics) = get(node.api, "/metrics", None);
    let metrics = metrics.as_str().unwrap();
    assert_eq!(status, 200);
    for name in [
        "p2s2_http_requests_total ",
        "p2s2_registry_requests_total ",
        "# TYPE p2s2_registry_hosts_known gauge",
        "p2s2_users_accounts 0",
        "p2s2_http_request_seconds",
    ] {
        assert!(metrics.contains(name), "{name}: {metrics}");
    }
}

#[test]
fn a_crowd_that_idles_leaves_health_its_answer() {
    let dir = tempfile::tempdir().unwrap();
    let node = ServerProcess::start(dir.path(), &[], &[]);
    let idle: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(node.api).unwrap()).collect();
    // And those that send a byte now and then.
    let slow: Vec<TcpStream> = (0..50)
        .map(|_| {
            let mut stream = TcpStream::connect(node.api).unwrap();
            stream.write_all(b"GET /api/health HT").unwrap();
            stream
        })
        .collect();
    for _ in 0..20 {
        let begun = Instant::now();
        assert_eq!(get(node.api, "/api/health", None).0, 200);
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
    drop((idle, slow));
    assert_eq!(node.stop(), 0);
}

#[test]
fn the_http_port_is_there_whatever_services_run() {
    let dir = tempfile::tempdir().unwrap();
    let node = ServerProcess::start(dir.path(), &["--services", "trade", "--trade-port", "0"], &[]);
    assert!(node.registry.is_none() && node.ready["trade_tcp"].is_string(), "{}", node.ready);
    assert_eq!(get(node.api, "/api/health", None).0, 200);
    assert_eq!(get(node.api, "/api/stats", None).0, 503);
    let admin = admin_token(node.api);
    assert_eq!(get(node.api, "/api/admin/registry", Some(&admin)).0, 503);
    let metrics = get(node.api, "/metrics", None).1.as_str().unwrap().to_owned();
    assert!(metrics.contains("\np2s2_trade_udp_received_total 0\n") && metrics.contains("\np2s2_trade_peers 0\n"));
    assert!(!dir.path().join("state/registry.db").exists());
    assert_eq!(node.stop(), 0);
}

#[test]
fn a_port_that_is_taken_is_named_with_its_flag() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (args, env, flag) in [
        (vec!["--api-port", &port], vec![], "--api-port"),
        (vec!["--registry-port", &port], vec![], "--registry-port"),
        // The manual's names apply where ours are not set.
        (vec![], vec![("ADMIN_API_PORT", &*port), ("P2S2_SERVER_API_PORT", "")], "--api-port"),
        (vec![], vec![("SERVER_PORT", &*port), ("P2S2_SERVER_REGISTRY_PORT", "")], "--registry-port"),
    ] {
        let status = command(dir.path(), &args, &env).status().unwrap();
        let log = log_of(dir.path());
        let last = log.lines().last().unwrap();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(last.starts_with("error: ") && last.contains(&port) && last.contains(flag), "{log}");
    }
}

#[test]
fn beyond_loopback_there_is_tls_or_a_word_of_the_operator() {
    let dir = tempfile::tempdir().unwrap();
    let status = command(dir.path(), &["--api-bind", "0.0.0.0"], &[]).status().unwrap();
    assert_eq!(status.code(), Some(1));
    let log = log_of(dir.path());
    assert!(["--tls", "--insecure", "--api-bind"].iter().all(|flag| log.contains(flag)), "{log}");
    assert!(!dir.path().join("state").exists(), "nothing is made before the words are right");
    let status = command(dir.path(), &["--bind", "0.0.0.0", "--api-bind", "127.0.0.1"], &[]).status().unwrap();
    assert_eq!(status.code(), Some(1), "the registry too");
    // Environment variables of an earlier version do not make it listen on other addresses.
    let node = ServerProcess::start(dir.path(), &[], &[("SERVER_HOST", "0.0.0.0"), ("ADMIN_API_HOST", "0.0.0.0")]);
    assert!(node.api.ip().is_loopback() && node.registry.unwrap().ip().is_loopback());
    let log = log_of(dir.path());
    for (name, flag) in [("SERVER_HOST", "--bind"), ("ADMIN_API_HOST", "--api-bind")] {
        let line = log.lines().find(|line| line.contains(&format!("{name}=0.0.0.0"))).unwrap();
        assert!(line.contains("127.0.0.1") && line.contains(flag) && line.contains("--tls"), "{line}");
    }
    for (name, value, said) in
        [("ADMIN_API_HOST", "home", "ADMIN_API_HOST"), ("SESSION_TIMEOUT", "soon", "SESSION_TIMEOUT")]
    {
        assert_eq!(command(dir.path(), &[], &[(name, value)]).status().unwrap().code(), Some(1));
        assert!(log_of(dir.path()).lines().last().unwrap().contains(said));
    }
}

#[test]
fn over_tls_the_same_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let node = ServerProcess::start(dir.path(), &["--tls"], &[]);
    let deadline = Instant::now() + PATIENCE;
    let stream = TcpStream::connect(node.api).unwrap();
    let (mut reader, writer) = Conn::tls_client_unpinned(stream, deadline).unwrap().split();
    writer.write_all(request("GET", "/api/health", "", "").as_bytes(), deadline).unwrap();
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match reader.read_before(&mut buffer, deadline).unwrap() {
            0 => break,
            length => bytes.extend_from_slice(&buffer[..length]),
        }
    }
    assert_eq!(parse(&bytes).0, 200);
    // From this machine plaintext is accepted too.
    assert_eq!(get(node.api, "/api/health", None).0, 200);
}

#[test]
fn a_backup_holds_accounts_hosts_and_the_secret() {
    let dir = tempfile::tempdir().unwrap();
    let node = ServerProcess::start(dir.path(), &[], &[]);
    let token = token_of(post(node.api, "/api/user/register", &json!({"username": "ann", "password": "p"})));
    let archive = dir.path().join("backup.tar");
    let admin = |words: &[&str], state: &Path| {
        let output = program("admin").args(words).arg(&archive).arg("--data-dir").arg(state).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    admin(&["backup"], &dir.path().join("state"));
    let users =
        program("admin").args(["users", "--json", "--data-dir"]).arg(dir.path().join("state")).output().unwrap();
    let line: Value = serde_json::from_slice(&users.stdout).unwrap();
    assert_eq!((&line["role"], &line["username"], &line["user_id"]), (&json!("user"), &json!("ann"), &Value::Null));
    drop(node);
    let other = tempfile::tempdir().unwrap();
    admin(&["restore"], &other.path().join("state"));
    let node = ServerProcess::start(other.path(), &[], &[]);
    assert_eq!(ask(node.api, "POST", "/api/user/verify", Some(&token), &Value::Null).0, 200);
    assert_eq!(post(node.api, "/api/user/login", &json!({"username": "ann", "password": "p"})).0, 200);
    assert_eq!(
        Host::connect(&node).ask("REGISTER", &json!({"hostname": "ann", "port": 6001, "token": token}))["status"],
        "OK"
    );
}
