//! What people meet: a server, nodes, and their pages in browsers; and what they do there by name.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::browser::*;
use crate::nodes::{Node, Place, Server, content};
use crate::proxy::Proxy;
use crate::support::PATIENCE;

/// Where a node's peers are sent, when a proxy stands before it: another address of this host.
const AWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// The password of everybody here; `Node::register` knows it too.
pub const PASSWORD: &str = "correct horse";

/// A server, and where everything lies.
pub struct World {
    pub place: Place,
    pub server: Server,
}

impl World {
    pub fn start() -> World {
        World::start_with(&[])
    }

    pub fn start_with(args: &[&str]) -> World {
        let place = Place::new();
        let server = Server::start(&place, args);
        World { place, server }
    }

    /// A node at which nobody has signed in; it keeps its API's port when it is started again.
    pub fn node(&self, name: &str) -> Node {
        self.node_with(name, &[])
    }

    pub fn node_with(&self, name: &str, args: &[&str]) -> Node {
        Node::start(&self.place, &self.server, name, &[&["--api-port", &free_port()], args].concat())
    }

    /// A node whose peers reach it through a proxy, with an account that takes part.
    pub fn node_behind_proxy(&self, name: &str) -> (Node, Proxy) {
        // A port that is no other node's while this one is away.
        let mut node = self.node_with(name, &["--advertise-ip", &AWAY.to_string(), "--port", &free_port()]);
        let proxy = Proxy::at(SocketAddr::new(AWAY, node.peer().port()), node.peer());
        node.register();
        (node, proxy)
    }

    /// Where a node keeps what it fetched.
    pub fn repo(&self, node: &Node, name: &str) -> PathBuf {
        self.place.path(&format!("state-{}/repo/{name}", node.name))
    }

    /// A file of the disk that no node may see: people have it in their browsers.
    pub fn own_file(&self, name: &str, bytes: usize) -> PathBuf {
        let folder = self.place.path("device");
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join(name);
        fs::write(&path, content(name, bytes)).unwrap();
        path
    }

    /// A host on a bare socket, with these published files: their names and sizes.
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

/// A host of a registry on a bare socket. Once it is dropped it is not connected any more, but counts as there for a
/// while.
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
        // An answer is a line, and nothing comes that was not asked for: no more than it is read.
        BufReader::new(&self.0).read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

/// A node's page.
pub fn url(node: &Node) -> String {
    format!("http://{}/", node.api())
}

/// A browser in which somebody has signed up under the node's name.
#[track_caller]
pub fn sign_up(browser: &Browser, node: &Node) {
    browser.open(&url(node));
    browser.fill(&textbox("User name"), &node.name);
    browser.fill(&textbox("Password"), PASSWORD);
    browser.click(&button("Sign up"));
    is_in(browser);
}

/// A browser in which somebody has signed in who has an account of the node's name.
#[track_caller]
pub fn sign_in(browser: &Browser, node: &Node) {
    browser.open(&url(node));
    browser.fill(&textbox("User name"), &node.name);
    browser.fill(&textbox("Password"), PASSWORD);
    browser.click(&button("Sign in"));
    is_in(browser);
}

/// Waits until the page shows what there is, and is told of what comes.
#[track_caller]
pub fn is_in(browser: &Browser) {
    browser.sees(&role("link", "My files"));
    browser.sees(&button("Node:"));
}

/// Goes to another part of the page.
#[track_caller]
pub fn go(browser: &Browser, section: &str) {
    browser.click(&role("link", section).within(css("nav")));
}

/// From now on it is known when the page asked for something last.
#[track_caller]
pub fn watch_requests(browser: &Browser) {
    browser.ask(
        "window.askedAt = performance.now();
         new PerformanceObserver(() => { window.askedAt = performance.now(); }).observe({ type: 'resource' });",
    );
}

/// Waits until the page has asked for nothing for a while.
#[track_caller]
pub fn is_at_rest(browser: &Browser) {
    browser.until("a second without a request", "return performance.now() - window.askedAt > 1000");
}

pub fn on_network(name: &str) -> What {
    row(name).within(role("table", "Files on the network"))
}

pub fn in_my_files(name: &str) -> What {
    row(name).within(role("table", "My files"))
}

pub fn in_transfers(name: &str) -> What {
    row(name).within(role("table", "Transfers"))
}

/// Waits until a file is whole, and compares it with what was published.
#[track_caller]
pub fn is_fetched(path: &Path, expected: &[u8]) {
    let found = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(found == expected, "{} is another content", path.display());
}
