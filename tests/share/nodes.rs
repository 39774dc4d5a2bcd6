//! Test harness for nodes: a server and nodes as processes, and an HTTP client on a plain socket.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{PATIENCE, eventually, program, signal};

/// A temporary directory with the shared files in `shared` and everything else beside it.
#[derive(Clone)]
pub struct TestDir {
    dir: Arc<tempfile::TempDir>,
}

impl TestDir {
    pub fn new() -> TestDir {
        let dir = tempfile::Builder::new().prefix("share").tempdir().unwrap();
        fs::create_dir(dir.path().join("shared")).unwrap();
        TestDir { dir: Arc::new(dir) }
    }

    /// The resolved path, as nodes show it.
    pub fn path(&self, below: &str) -> PathBuf {
        fs::canonicalize(self.dir.path()).unwrap().join(below)
    }

    pub fn text(&self, below: &str) -> String {
        self.path(below).to_str().unwrap().to_owned()
    }

    /// Creates a file of this size in `shared`, with content that differs from every other file's.
    pub fn file(&self, name: &str, bytes: usize) -> PathBuf {
        let path = self.path("shared").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content(name, bytes)).unwrap();
        path
    }
}

/// Content that depends only on the name.
pub fn content(name: &str, bytes: usize) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(name.as_bytes());
    let mut content = vec![0; bytes];
    hasher.finalize_xof().fill(&mut content);
    content
}

/// A process that writes a ready file. Killed when dropped.
struct Process {
    child: Child,
    ready: Value,
    log: PathBuf,
}

impl Process {
    fn spawn(mut command: Command, dir: &Path, name: &str) -> Process {
        let ready = dir.join(format!("{name}.ready"));
        let _ = fs::remove_file(&ready);
        let log_path = dir.join(format!("{name}.log"));
        let log = fs::OpenOptions::new().create(true).append(true).open(&log_path).unwrap();
        let mut child = command
            .arg("--ready-file")
            .arg(&ready)
            .env("HOME", dir)
            .env_remove("XDG_CONFIG_HOME")
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let ready = eventually("the process to be ready", || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("{name} ended with {status}: {}", fs::read_to_string(&log_path).unwrap());
            }
            Some(serde_json::from_str(&fs::read_to_string(&ready).ok()?).unwrap())
        });
        Process { child, ready, log: log_path }
    }

    fn addr(&self, name: &str) -> SocketAddr {
        self.ready[name].as_str().unwrap().parse().unwrap()
    }

    fn kill(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends SIGTERM; returns the exit code.
    fn stop(&mut self) -> i32 {
        signal(self.child.id(), libc::SIGTERM);
        eventually("the process to end", || self.child.try_wait().unwrap()).code().unwrap_or(-1)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- {}:\n{}", self.log.display(), fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// A `p2s2 server --services share` process.
pub struct Server {
    process: Process,
    place: TestDir,
    args: Vec<String>,
}

impl Server {
    pub fn start(place: &TestDir, args: &[&str]) -> Server {
        Server::start_with(place, args, &[])
    }

    /// With extra environment variables, which a later restart does not have.
    pub fn start_with(place: &TestDir, args: &[&str], env: &[(&str, &str)]) -> Server {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Server::start_at(place, args, env, 0, 0)
    }

    fn start_at(place: &TestDir, args: Vec<String>, env: &[(&str, &str)], registry: u16, api: u16) -> Server {
        let mut command = program("server");
        command
            .envs(env.iter().copied())
            .env("P2S2_SERVER_SERVICES", "share")
            .args(["--registry-port", &registry.to_string(), "--api-port", &api.to_string()])
            .arg("--data-dir")
            .arg(place.path("server"))
            .args(&args);
        Server { process: Process::spawn(command, &place.path(""), "server"), place: place.clone(), args }
    }

    /// Kills it; the returned function starts it again on the same data and ports.
    pub fn kill(&mut self) -> impl FnOnce() -> Server + use<> {
        let (registry, api) = (self.registry().port(), self.api().port());
        self.process.kill();
        let (place, args) = (self.place.clone(), self.args.clone());
        move || Server::start_at(&place, args, &[], registry, api)
    }

    pub fn registry(&self) -> SocketAddr {
        self.process.addr("registry")
    }

    pub fn api(&self) -> SocketAddr {
        self.process.addr("server_api")
    }

    /// One registry request on a connection of its own.
    pub fn ask(&self, action: &str, data: Value) -> Value {
        ask_registry(self.registry(), action, data)
    }

    /// Hostnames of the hosts that have a file.
    pub fn hosts_of(&self, file: &str) -> Vec<String> {
        let answer = self.ask("REQUEST", json!({ "fname": file }));
        let hosts = answer["hosts"].as_array().unwrap().iter();
        hosts.map(|host| host["hostname"].as_str().unwrap().to_owned()).collect()
    }
}

/// One registry request on a connection of its own.
pub fn ask_registry(registry: SocketAddr, action: &str, data: Value) -> Value {
    let mut stream = TcpStream::connect(registry).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(format!("{}\n", json!({"action": action, "data": data})).as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

/// A `p2s2 share` process and its user.
pub struct Node {
    process: Process,
    place: TestDir,
    pub name: String,
    registry: u16,
    server_api: u16,
    args: Vec<String>,
    pub token: Option<String>,
}

impl Node {
    /// Starts a node without a signed-in user.
    pub fn start(place: &TestDir, server: &Server, name: &str, args: &[&str]) -> Node {
        Node::start_between(place, (server.registry().port(), server.api().port()), name, args)
    }

    /// Starts a node whose server is at these two ports.
    pub fn start_between(place: &TestDir, ports: (u16, u16), name: &str, args: &[&str]) -> Node {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Node::start_at(place, ports, name, args)
    }

    fn start_at(place: &TestDir, (registry, server_api): (u16, u16), name: &str, args: Vec<String>) -> Node {
        let process = Process::spawn(Node::command(place, registry, server_api, name, &args), &place.path(""), name);
        Node { process, place: place.clone(), name: name.to_owned(), registry, server_api, args, token: None }
    }

    pub fn command(place: &TestDir, registry: u16, server_api: u16, name: &str, args: &[String]) -> Command {
        let mut command = program("share");
        let given = |flag: &str| args.iter().any(|arg| arg == flag);
        command.args(["--name", name, "--server-api-port", &server_api.to_string()]);
        if !given("--registry-port") {
            command.args(["--registry-port", &registry.to_string()]);
        }
        if !given("--api-port") {
            command.args(["--api-port", "0"]);
        }
        if !given("--folder") {
            command.arg("--folder").arg(place.path("shared"));
        }
        command.arg("--data-dir").arg(place.path(&format!("state-{name}"))).args(args);
        command
    }

    /// Starts a node, registers its user, and initializes it.
    pub fn begun(place: &TestDir, server: &Server, name: &str, args: &[&str]) -> Node {
        let mut node = Node::start(place, server, name, args);
        node.register();
        node
    }

    /// Registers an account of the node's name, and calls init.
    pub fn register(&mut self) {
        let body =
            json!({"username": self.name, "password": "correct horse", "display_name": format!("{} Doe", self.name)});
        let answer = self.post("register", body);
        assert_eq!(answer.0, 200, "{answer:?}");
        self.token = Some(answer.1["token"].as_str().unwrap().to_owned());
        let answer = self.post("init", json!({ "username": self.name }));
        assert_eq!(answer.0, 200, "{answer:?}");
    }

    /// Kills it; the returned function starts it again on the same data.
    pub fn kill(mut self) -> impl FnOnce() -> Node {
        self.process.kill();
        let (place, ports, name) = (self.place.clone(), (self.registry, self.server_api), self.name.clone());
        let (args, token) = (self.args.clone(), self.token.take());
        move || {
            let mut node = Node::start_at(&place, ports, &name, args);
            node.token = token;
            node
        }
    }

    /// Sends SIGTERM; returns the exit code.
    pub fn stop(mut self) -> i32 {
        self.process.stop()
    }

    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// Slows the process down until the guard is dropped, which must happen before the node is dropped.
    pub fn slowed(&self) -> SlowedNode {
        let pid = self.process.child.id();
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            while !ends.load(Relaxed) {
                signal(pid, libc::SIGSTOP);
                std::thread::sleep(Duration::from_millis(40));
                signal(pid, libc::SIGCONT);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        SlowedNode { is_over, thread: Some(thread) }
    }

    pub fn api(&self) -> SocketAddr {
        self.process.addr("client_api")
    }

    pub fn peer(&self) -> SocketAddr {
        self.process.addr("peer")
    }

    pub fn get(&self, path: &str) -> (u16, Value) {
        http(self.api(), "GET", &format!("/api/client/{path}"), self.token.as_deref(), None)
    }

    pub fn post(&self, path: &str, body: Value) -> (u16, Value) {
        http(self.api(), "POST", &format!("/api/client/{path}"), self.token.as_deref(), Some(&body))
    }

    /// Sends a POST that must succeed.
    #[track_caller]
    pub fn does(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.post(path, body);
        assert_eq!((status, &answer["success"]), (200, &json!(true)), "{path}: {answer}");
        answer
    }

    /// Sends a GET that must succeed.
    #[track_caller]
    pub fn shows(&self, path: &str) -> Value {
        let (status, answer) = self.get(path);
        assert_eq!((status, &answer["success"]), (200, &json!(true)), "{path}: {answer}");
        answer
    }

    /// Sends a POST that must be refused with this status; returns the reason.
    #[track_caller]
    pub fn refuses(&self, path: &str, body: Value, status: u16) -> String {
        let (got, answer) = self.post(path, body.clone());
        assert_eq!((got, &answer["success"]), (status, &json!(false)), "{path} {body}: {answer}");
        answer["error"].as_str().unwrap().to_owned()
    }

    /// Publishes a file of `shared` under its name, and waits until the registry has its digests.
    pub fn publishes(&self, server: &Server, path: &Path) {
        let name = path.file_name().unwrap().to_str().unwrap();
        self.does("publish", json!({"fname": name, "local_path": path}));
        self.is_hashed(server, name);
    }

    pub fn is_hashed(&self, server: &Server, name: &str) {
        eventually("the registry to know the digests", || {
            let answer = server.ask("REQUEST", json!({ "fname": name }));
            let mut hosts = answer["hosts"].as_array().unwrap().iter();
            hosts.any(|host| host["hostname"] == self.name && host["pieces_root"].is_string()).then_some(())
        });
    }

    /// Begins a fetch to `save_path`; returns its id.
    #[track_caller]
    pub fn fetches(&self, name: &str, save_path: &Path) -> String {
        let begun = self.does("fetch", json!({"fname": name, "save_path": save_path}));
        begun["fetch_id"].as_str().unwrap().to_owned()
    }

    pub fn progress(&self, id: &str) -> Value {
        self.shows(&format!("fetch-progress/{id}"))["progress"].clone()
    }

    /// Waits until a fetch has this status.
    pub fn waits_for(&self, id: &str, status: &str) -> Value {
        let give_up_at = Instant::now() + PATIENCE;
        loop {
            let progress = self.progress(id);
            if progress["status"] == status {
                return progress;
            }
            let is_over = ["completed", "failed", "cancelled"].iter().any(|over| progress["status"] == *over);
            assert!(!is_over && Instant::now() < give_up_at, "not {status}, but {progress}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Guard of a node that is slowed down.
pub struct SlowedNode {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for SlowedNode {
    fn drop(&mut self) {
        self.is_over.store(true, Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// One HTTP request on a connection of its own; returns status and body.
pub fn http(at: SocketAddr, method: &str, path: &str, token: Option<&str>, body: Option<&Value>) -> (u16, Value) {
    let mut head = vec![format!("Host: {at}")];
    if let Some(token) = token {
        head.push(format!("Authorization: Bearer {token}"));
    }
    if body.is_some() {
        head.push("Content-Type: application/json".to_owned());
    }
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    let (status, text) = raw_http(at, method, path, &head, body.map(Value::to_string).as_deref());
    (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}")))
}

/// The same with exactly these headers and this body.
pub fn raw_http(at: SocketAddr, method: &str, path: &str, headers: &[&str], body: Option<&str>) -> (u16, String) {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    headers.iter().for_each(|header| request.push_str(&format!("{header}\r\n")));
    if let Some(body) = body {
        request.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    request.push_str("\r\n");
    request.push_str(body.unwrap_or_default());
    match stream.write_all(request.as_bytes()) {
        // It may have responded after the head.
        Err(error) if !matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => panic!("{error}"),
        _ => {}
    }
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
        _ => {}
    }
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let is_chunked = head.to_lowercase().contains("transfer-encoding: chunked");
    (status, if is_chunked { unchunked(body) } else { body.to_owned() })
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        whole.push_str(&rest[..length]);
        body = rest[length..].trim_start_matches("\r\n");
    }
    whole
}
