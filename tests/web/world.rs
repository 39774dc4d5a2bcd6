//! The environment of the tests: a server, nodes and raw hosts; and named steps on the pages.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::browser::*;
use crate::nodes::{Node, Server, TestDir, content};
use crate::proxy::Proxy;
use crate::support::PATIENCE;

/// The address at which a node behind a proxy is advertised: another address of this host.
const PROXY_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// The password of all accounts; `Node::register` uses the same.
pub const PASSWORD: &str = "correct horse";

/// A server and the folder of all files.
pub struct World {
    pub place: TestDir,
    pub server: Server,
}

impl World {
    pub fn start() -> World {
        World::start_with(&[])
    }

    pub fn start_with(args: &[&str]) -> World {
        let place = TestDir::new();
        let server = Server::start(&place, args);
        World { place, server }
    }

    /// Starts a node at which nobody has signed in. It keeps its API port over restarts.
    pub fn node(&self, name: &str) -> Node {
        self.node_with(name, &[])
    }

    pub fn node_with(&self, name: &str, args: &[&str]) -> Node {
        Node::start(&self.place, &self.server, name, &[&["--api-port", &free_port()], args].concat())
    }

    /// Starts a node that is registered and that its peers reach through a proxy.
    pub fn node_behind_proxy(&self, name: &str) -> (Node, Proxy) {
        // A fixed port, so that no other node gets it while this one is down.
        let mut node = self.node_with(name, &["--advertise-ip", &PROXY_IP.to_string(), "--port", &free_port()]);
        let proxy = Proxy::at(SocketAddr::new(PROXY_IP, node.peer().port()), node.peer());
        node.register();
        (node, proxy)
    }

    /// The path of a file that a node has fetched.
    pub fn fetched_path(&self, node: &Node, name: &str) -> PathBuf {
        self.place.path(&format!("state-{}/repo/{name}", node.name))
    }

    /// Creates a file outside of the nodes' folders: on the device of the browser.
    pub fn device_file(&self, name: &str, bytes: usize) -> PathBuf {
        let folder = self.place.path("device");
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join(name);
        fs::write(&path, content(name, bytes)).unwrap();
        path
    }

    /// Registers a raw-socket host with these published files, given by name and size.
    pub fn host<'a>(
        &self,
        hostname: &str,
        display_name: &str,
        files: impl IntoIterator<Item = (&'a str, u64)>,
    ) -> Host {
        Host::register(self.server.registry(), hostname, display_name, files)
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

/// A raw-socket host of a registry. Dropping it disconnects it, but the registry counts it as online for a while.
#[must_use = "dropped, it is not connected"]
pub struct Host(TcpStream);

impl Host {
    pub fn register<'a>(
        registry: SocketAddr,
        hostname: &str,
        display_name: &str,
        files: impl IntoIterator<Item = (&'a str, u64)>,
    ) -> Host {
        let of = |size: u64| json!({"size": size, "modified": 1_700_000_000, "is_published": true});
        let files: Map<String, Value> = files.into_iter().map(|(name, size)| (name.to_owned(), of(size))).collect();
        let data = json!({"hostname": hostname, "port": 6001, "display_name": display_name, "files_metadata": files});
        let stream = TcpStream::connect(registry).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut host = Host(stream);
        let answer = host.ask("REGISTER", &data);
        assert_eq!(answer["status"], "OK", "{answer}");
        host
    }

    pub fn ask(&mut self, action: &str, data: &Value) -> Value {
        self.0.write_all(format!("{}\n", json!({"action": action, "data": data})).as_bytes()).unwrap();
        let mut line = String::new();
        // A response is one line and nothing is pushed, so the reader buffers nothing beyond it.
        BufReader::new(&self.0).read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

/// The URL of a node's page.
pub fn node_url(node: &Node) -> String {
    format!("http://{}/", node.api())
}

/// Signs up with the node's name.
#[track_caller]
pub fn sign_up(browser: &Browser, node: &Node) {
    browser.open(&node_url(node));
    browser.fill(&textbox("User name"), &node.name);
    browser.fill(&textbox("Password"), PASSWORD);
    browser.click(&button("Sign up"));
    wait_until_signed_in(browser);
}

/// Signs in with an existing account of the node's name.
#[track_caller]
pub fn sign_in(browser: &Browser, node: &Node) {
    browser.open(&node_url(node));
    browser.fill(&textbox("User name"), &node.name);
    browser.fill(&textbox("Password"), PASSWORD);
    browser.click(&button("Sign in"));
    wait_until_signed_in(browser);
}

/// Waits until the page is signed in and gets events.
#[track_caller]
pub fn wait_until_signed_in(browser: &Browser) {
    browser.sees(&role("link", "My files"));
    browser.sees(&button("Node:"));
}

/// Opens a section of the page.
#[track_caller]
pub fn open_section(browser: &Browser, section: &str) {
    browser.click(&role("link", section).within(css("nav")));
}

/// Starts to record when the page sent its last request.
#[track_caller]
pub fn watch_requests(browser: &Browser) {
    browser.ask(
        "window.askedAt = performance.now();
         new PerformanceObserver(() => { window.askedAt = performance.now(); }).observe({ type: 'resource' });",
    );
}

/// Waits until the page has sent no request for a second.
#[track_caller]
pub fn wait_until_idle(browser: &Browser) {
    browser.until("a second without a request", "return performance.now() - window.askedAt > 1000");
}

pub fn network_row(name: &str) -> Locator {
    row(name).within(role("table", "Files on the network"))
}

pub fn my_files_row(name: &str) -> Locator {
    row(name).within(role("table", "My files"))
}

pub fn transfers_row(name: &str) -> Locator {
    row(name).within(role("table", "Transfers"))
}

/// Asserts that a file has the expected content.
#[track_caller]
pub fn assert_fetched(path: &Path, expected: &[u8]) {
    let found = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(found == expected, "{} is another content", path.display());
}
