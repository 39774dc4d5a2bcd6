//! Test harness for the registry: a registry in this process, and clients on plain sockets that are written only from
//! the specification of the wire format.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use p2s2::internals::model::Clock;
use p2s2::internals::net::budget::{RECEIVE_BUDGET_BYTES, ReceiveBudget};
use p2s2::internals::net::listener::{ConnectionLimiter, ListenerContext};
use p2s2::internals::net::threads::Executor;
use p2s2::internals::net::tls::TlsIdentity;
use p2s2::internals::share::registry::{RegistryLimits, store};
use p2s2::internals::share::server::{
    AccountDirectory, AuthMode, RegistryServer, RegistryServerConfig, RegistryServerContext,
};
use p2s2::internals::storage::Store;
use serde_json::{Value, json};

pub use crate::support::{PATIENCE, eventually, scaled};

/// The accounts of a test: names, tokens, and the addresses from which users signed in.
#[derive(Default)]
pub struct Users {
    tokens: Mutex<HashMap<String, String>>,
    namesakes: Mutex<Vec<String>>,
    addresses: Mutex<HashSet<(String, IpAddr)>>,
}

impl Users {
    /// Adds an account with one valid token.
    pub fn add(&self, name: &str, token: &str) {
        self.tokens.lock().unwrap().insert(name.to_owned(), token.to_owned());
    }

    /// Adds an account whose name is another spelling of an older account's.
    pub fn add_namesake(&self, name: &str) {
        self.namesakes.lock().unwrap().push(name.to_owned());
    }

    pub fn sign_in_from(&self, name: &str, address: &str) {
        self.addresses.lock().unwrap().insert((name.to_owned(), address.parse().unwrap()));
    }
}

impl AccountDirectory for Users {
    fn is_account(&self, hostname: &str) -> bool {
        self.tokens.lock().unwrap().contains_key(hostname)
    }

    fn owner_of(&self, token: &str) -> Option<String> {
        let tokens = self.tokens.lock().unwrap();
        tokens.iter().find(|(_, known)| *known == token).map(|(name, _)| name.clone())
    }

    fn namesakes(&self) -> Vec<String> {
        self.namesakes.lock().unwrap().clone()
    }

    fn signed_in_from(&self, hostname: &str, ip: IpAddr) -> bool {
        self.addresses.lock().unwrap().contains(&(hostname.to_owned(), ip))
    }
}

/// Settings of a registry under test.
pub struct RegistryOptions {
    pub peer_timeout: Duration,
    pub auth: AuthMode,
    pub connections: usize,
    pub received: usize,
    pub identity: Option<Arc<TlsIdentity>>,
    pub bounds: RegistryLimits,
}

impl Default for RegistryOptions {
    fn default() -> RegistryOptions {
        RegistryOptions {
            peer_timeout: Duration::from_secs(1200),
            auth: AuthMode::Strict,
            connections: 12_000,
            received: RECEIVE_BUDGET_BYTES,
            identity: None,
            bounds: RegistryLimits::default(),
        }
    }
}

/// A registry on an existing data directory.
pub struct RunningRegistry {
    pub server: RegistryServer,
    pub addr: SocketAddr,
    pub users: Arc<Users>,
    pub budget: Arc<ReceiveBudget>,
    pub store: Arc<Store>,
}

impl RunningRegistry {
    pub fn on(dir: &Path, users: Arc<Users>, options: RegistryOptions) -> RunningRegistry {
        let store = Arc::new(Store::open(&dir.join("registry.db"), store::MIGRATIONS).unwrap());
        let budget = ReceiveBudget::new(options.received);
        let context = RegistryServerContext {
            listener: ListenerContext {
                executor: Executor::new("registry", options.connections + 10),
                limiter: ConnectionLimiter::new(options.connections),
                budget: Arc::clone(&budget),
                identity: options.identity,
                allows_remote_plaintext: false,
            },
            clock: Clock::start(),
            store: Arc::clone(&store),
            accounts: Arc::clone(&users) as Arc<dyn AccountDirectory>,
        };
        let addr = "127.0.0.1:0".parse().unwrap();
        let config = RegistryServerConfig { addr, peer_timeout: options.peer_timeout, auth: options.auth };
        let server = RegistryServer::start_with_limits(config, context, options.bounds).unwrap();
        RunningRegistry { addr: server.local_addr(), server, users, budget, store }
    }

    pub fn counter(&self, name: &str) -> u64 {
        let all = [self.server.counters(), self.server.sizes()].concat();
        all.into_iter().find(|(known, _)| *known == name).unwrap().1
    }

    pub fn stop(self) {
        self.server.stop(Duration::from_secs(5));
        self.store.close();
    }
}

/// A registry on a data directory of its own.
pub struct Registry {
    pub running: RunningRegistry,
    _dir: tempfile::TempDir,
}

impl Registry {
    pub fn start(options: RegistryOptions) -> Registry {
        let dir = tempfile::tempdir().unwrap();
        Registry { running: RunningRegistry::on(dir.path(), Arc::default(), options), _dir: dir }
    }

    pub fn client(&self) -> Client {
        Client::connect(self.running.addr)
    }
}

impl std::ops::Deref for Registry {
    type Target = RunningRegistry;

    fn deref(&self) -> &RunningRegistry {
        &self.running
    }
}

/// A client on a plain socket.
pub struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(addr: SocketAddr) -> Client {
        Client::over(TcpStream::connect(addr).unwrap())
    }

    /// Connects from another loopback address.
    pub fn connect_from(source: &str, addr: SocketAddr) -> Client {
        use socket2::{Domain, Socket, Type};
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(source.parse().unwrap(), 0).into()).unwrap();
        socket.connect(&addr.into()).unwrap();
        Client::over(socket.into())
    }

    fn over(stream: TcpStream) -> Client {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { reader: BufReader::with_capacity(1024, stream) }
    }

    pub fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }

    pub fn send(&mut self, line: &str) {
        self.stream().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// The next line; `None` at the end of the connection.
    pub fn receive(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("{error}"),
        }
    }

    #[track_caller]
    pub fn ask(&mut self, action: &str, data: Value) -> Value {
        self.send(&json!({"action": action, "data": data}).to_string());
        self.receive().expect("an answer")
    }

    /// Sends a request and expects this status.
    #[track_caller]
    pub fn expect(&mut self, action: &str, data: Value, status: &str) -> Value {
        let answer = self.ask(action, data);
        assert_eq!(answer["status"], status, "{action}: {answer}");
        answer
    }

    /// Sends a request and expects ERROR; returns its reason.
    #[track_caller]
    pub fn refused(&mut self, action: &str, data: Value) -> String {
        let answer = self.expect(action, data, "ERROR");
        assert_eq!(answer.as_object().unwrap().len(), 2);
        answer["reason"].as_str().unwrap().to_owned()
    }

    /// Registers; returns the issued secret.
    #[track_caller]
    pub fn register(&mut self, hostname: &str, more: Value) -> String {
        let answer = self.expect("REGISTER", registration(hostname, more), "OK");
        answer["resume"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn publish(&mut self, hostname: &str, fname: &str, size: u64) {
        let data = json!({"hostname": hostname, "fname": fname, "size": size, "modified": 1_699_267_200});
        assert_eq!(self.expect("PUBLISH", data, "ACK"), json!({"status": "ACK"}));
    }

    pub fn hosts(&mut self, fname: &str) -> Vec<String> {
        let answer = self.ask("REQUEST", json!({"fname": fname}));
        let hosts = answer["hosts"].as_array().unwrap();
        assert_eq!(answer["status"], if hosts.is_empty() { "NOTFOUND" } else { "FOUND" });
        hosts.iter().map(|host| host["hostname"].as_str().unwrap().to_owned()).collect()
    }

    pub fn is_alive(&mut self, hostname: &str) -> bool {
        match self.ask("PING", json!({"hostname": hostname}))["status"].as_str() {
            Some("ALIVE") => true,
            Some("DEAD") => false,
            other => panic!("{other:?}"),
        }
    }

    /// The hostnames that LIST returns.
    pub fn listed(&mut self) -> Vec<String> {
        let answer = self.expect("LIST", json!({}), "OK");
        answer["registry"].as_object().unwrap().keys().cloned().collect()
    }

    /// Waits for the other end to close.
    pub fn is_closed_in_the_end(&mut self) -> bool {
        self.receive().is_none()
    }
}

/// The data of a REGISTER request.
pub fn registration(hostname: &str, more: Value) -> Value {
    let mut data = json!({"hostname": hostname, "port": 6001});
    data.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    data
}

/// A file entry of `files_metadata`.
pub fn file(size: u64, is_published: bool) -> Value {
    json!({"size": size, "modified": 1_699_267_200, "is_published": is_published})
}
