//! The client library: requests that are repeated until they are answered, notifications that are handed on and
//! acknowledged, and settlements for which the server connects to the client.
//!
//! It knows nothing of items and deals: a [`ClientHandler`] decides how to react to a notification and what to answer
//! in a settlement. It has three threads of its own (receive, repeat, accept) and at most [`SETTLEMENTS_MAX`] more
//! for settlements, with some to spare for connections that only pretend to be the server.

mod requests;
mod settlement;
#[cfg(test)]
pub(crate) mod tests;
mod unauthenticated;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::model::{Cents, Name, Token};
use crate::net::budget::{RECEIVE_BUDGET_BYTES, ReceiveBudget};
use crate::net::counters::Counter;
use crate::net::listener::{
    self, AcceptedConnection, BusyResponse, ConnectionHandler, ConnectionLimiter, Listener, ListenerContext,
};
use crate::net::threads::{self, Executor};
use crate::trade::wire::{Amount, DATAGRAM_MAX, InformResponse, Notification, PeerEndpoint};
pub use requests::REQUESTS_MAX;
use requests::{POLL_INTERVAL, PendingRequest};
use unauthenticated::UnauthenticatedConnections;

/// Concurrent settlements; the server has the same limit.
pub const SETTLEMENTS_MAX: usize = 256;
/// The lowest port that the server accepts; lower ones belong to system services.
const PORT_MIN: u16 = 1024;

/// The addresses and timeouts of a client.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    pub name: Name,
    pub server: SocketAddr,
    /// Where to listen, which the server is told. If unspecified (0.0.0.0), the address that reaches the server.
    pub bind: IpAddr,
    /// The port for datagrams; 0 means any free one.
    pub udp_port: u16,
    /// The port for settlements; 0 means any free one.
    pub tcp_port: u16,
    /// The pauses after each sending of a request. After the last one the request fails.
    pub pauses: Vec<Duration>,
    /// The timeout of each step of a settlement, including connecting and the TLS handshake.
    pub settle_timeout: Duration,
}

impl ClientConfig {
    /// A client on loopback with any free ports that sends a request five times within eleven and a half seconds.
    pub fn new(name: Name, server: SocketAddr) -> ClientConfig {
        ClientConfig {
            name,
            server,
            bind: IpAddr::from([127, 0, 0, 1]),
            udp_port: 0,
            tcp_port: 0,
            pauses: [500, 1000, 2000, 4000, 4000].map(Duration::from_millis).to_vec(),
            settle_timeout: Duration::from_secs(10),
        }
    }
}

/// Why a client could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ClientOpenError {
    #[error("port {port} ({what}) is in use: choose another one, or 0 for any free one")]
    InUse { what: &'static str, port: u16 },
    #[error("cannot {doing}: {error}")]
    Io { doing: String, error: io::Error },
    #[error("{bind} cannot reach the server at {server}: listen on an address of this host's network (--bind IP)")]
    Unreachable { bind: IpAddr, server: SocketAddr },
}

/// Why a request has no response.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no answer from the server at {server} to {kind} ({sent} datagrams in {} s): is it running there?",
        waited.as_secs_f64()
    )]
    Unanswered { server: SocketAddr, kind: &'static str, sent: usize, waited: Duration },
    #[error("a later request took its place")]
    Superseded,
    #[error("{REQUESTS_MAX} requests wait for their answers already")]
    Busy,
    #[error("{0}")]
    Untrusted(Arc<str>),
    #[error("the request is longer than {DATAGRAM_MAX} bytes")]
    TooLong,
    #[error("the peer is closed")]
    Closed,
}

/// How settlements are secured. The user of the client decides it by the response to REGISTER or LOGIN and the
/// fingerprint that it pinned (`docs/spec/trade.md`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettlementSecurity {
    /// Not agreed yet; settlements are refused.
    Unknown,
    /// TLS; the server must present the certificate with this fingerprint (64 hex digits).
    Pinned(Arc<str>),
    /// No TLS, as both sides have agreed.
    Plaintext,
    /// The server is not the one that it was, for this reason. Its notifications are ignored, its settlements refused,
    /// and only REGISTER, LOGIN and DE-REGISTER are sent to it.
    Untrusted(Arc<str>),
}

/// The content of SHIPPING_INFO.
#[derive(Debug, Clone)]
pub struct ShippingOrder {
    pub rq: u64,
    pub name: Name,
    /// Never log it.
    pub address: String,
    pub price: Cents,
    pub fee: Amount,
    pub payout: Amount,
}

/// Reacts to messages of the server. Called on threads of the client.
pub trait ClientHandler: Send + Sync + 'static {
    /// A notification has arrived, possibly again. Must not block, since it delays all other datagrams. Acknowledge it
    /// with [`Client::ack`] once it cannot be lost any more.
    fn notification(&self, notification: Notification);

    /// Answers INFORM_REQ with the peer's identity and payment details, or closes the connection. May wait until
    /// `deadline` for a notification that is still on its way.
    fn inform(&self, rq: u64, item_name: &str, price: Cents, deadline: Instant) -> Result<InformResponse, String>;

    /// Handles SHIPPING_INFO. `Ok` sends SHIPPED, and what was shipped must be on disk by then; an error closes the
    /// connection.
    fn ship(&self, shipping: &ShippingOrder) -> Result<(), String>;

    /// SETTLED: the seller is paid and ships the goods.
    fn settled(&self, rq: u64, payout: Amount);

    /// RECEIPT: the buyer has paid.
    fn receipt(&self, rq: u64, item_name: Arc<str>, price: Cents, seller: Name);

    /// CANCEL: nothing is charged.
    fn cancelled(&self, rq: u64, reason: Arc<str>);

    /// The connection ended before the settlement did; STATUS tells how it ended.
    fn interrupted(&self, rq: u64, why: &str);

    /// A settlement was refused before it began.
    fn rejected(&self, why: &str);

    /// Repeated requests are unanswered, and go on. Called once until the server is heard again. `is_closed`: its host
    /// reports the port as closed.
    fn server_silent(&self, is_closed: bool) {
        let _ = is_closed;
    }
}

/// The counters of a client.
#[derive(Debug, Default)]
pub struct ClientCounters {
    /// They include repeats.
    pub sent: Counter,
    pub repeated: Counter,
    pub received: Counter,
    /// Malformed, or responses that nobody waited for.
    pub ignored: Counter,
    pub foreign_connections: Counter,
    /// Connections closed in favour of newer ones because they had not authenticated.
    pub evicted_connections: Counter,
}

struct SettlementService {
    inner: Arc<ClientInner>,
    handler: Arc<dyn ClientHandler>,
}

impl ConnectionHandler for SettlementService {
    /// Closes excess connections without a response, since the server does not retry.
    fn busy_response(&self) -> BusyResponse {
        Vec::new().into()
    }

    fn serve(&self, accepted: AcceptedConnection) {
        // Silent connections are limited by `unauthenticated` instead.
        let (stream, source, mut permit) = accepted.into_parts();
        if permit.mark_request_completed() {
            self.inner.serve_settlement(stream, source, &*self.handler);
        }
    }
}

/// A running client. It closes when dropped; share it in an `Arc`.
pub struct Client {
    inner: Arc<ClientInner>,
    endpoint: PeerEndpoint,
    tcp: Listener,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct ClientInner {
    config: ClientConfig,
    /// Connected, so that the system drops datagrams from other addresses than the server's.
    udp: UdpSocket,
    token: Mutex<Option<Token>>,
    security: Mutex<SettlementSecurity>,
    pending: Mutex<HashMap<u64, PendingRequest>>,
    /// Notified when a request was added or the client is closed.
    changed: Condvar,
    is_closed: AtomicBool,
    is_silent: AtomicBool,
    /// Whether the server's host last reported the port as closed.
    is_port_closed: AtomicBool,
    unauthenticated: Arc<UnauthenticatedConnections>,
    counters: ClientCounters,
}

impl Client {
    /// Binds the sockets and begins to listen. `handler` receives notifications and settlements.
    pub fn open(config: ClientConfig, handler: Arc<dyn ClientHandler>) -> Result<Client, ClientOpenError> {
        let ClientConfig { server, .. } = config;
        if config.bind.is_loopback() && !server.ip().is_loopback() {
            return Err(ClientOpenError::Unreachable { bind: config.bind, server });
        }
        let udp = bind_udp(&config)?;
        let failed = |doing: &str| {
            let doing = doing.to_owned();
            move |error| ClientOpenError::Io { doing, error }
        };
        udp.connect(server).map_err(failed(&format!("reach the server at {server}")))?;
        udp.set_read_timeout(Some(POLL_INTERVAL)).map_err(failed("set a timeout"))?;
        let here = udp.local_addr().map_err(failed("read the socket's address"))?;
        let listener = bind_tcp(SocketAddr::new(here.ip(), config.tcp_port))?;
        let tcp_port = listener.local_addr().map_err(failed("read the socket's address"))?.port();
        let ip = here.ip().to_canonical();
        let endpoint = PeerEndpoint { ip, udp_port: u32::from(here.port()), tcp_port: u32::from(tcp_port) };
        let inner = Arc::new(ClientInner {
            config,
            udp,
            token: Mutex::new(None),
            security: Mutex::new(SettlementSecurity::Unknown),
            pending: Mutex::default(),
            changed: Condvar::new(),
            is_closed: AtomicBool::new(false),
            is_silent: AtomicBool::new(false),
            is_port_closed: AtomicBool::new(false),
            unauthenticated: Arc::default(),
            counters: ClientCounters::default(),
        });
        let connections_max = SETTLEMENTS_MAX + unauthenticated::SPARE_CONNECTIONS_MAX;
        let context = ListenerContext {
            executor: Executor::new("settle", connections_max),
            limiter: ConnectionLimiter::new(connections_max),
            budget: ReceiveBudget::new(RECEIVE_BUDGET_BYTES),
            identity: None,
            allows_remote_plaintext: true,
        };
        let settling = Arc::new(SettlementService { inner: Arc::clone(&inner), handler: Arc::clone(&handler) });
        let tcp = Listener::start(listener, context, settling).map_err(failed("listen"))?;
        let client = Client { inner, endpoint, tcp, threads: Mutex::default() };
        type ThreadBody = fn(&ClientInner, &dyn ClientHandler);
        let receive: ThreadBody = ClientInner::receive;
        for (name, job) in [("trade-receive", receive), ("trade-repeat", ClientInner::resend_pending)] {
            let (inner, handler) = (Arc::clone(&client.inner), Arc::clone(&handler));
            let thread = threads::spawn(name, move || job(&inner, &*handler)).map_err(failed("start a thread"))?;
            client.threads.lock().push(thread);
        }
        Ok(client)
    }

    /// Where the server reaches this client, as named in REGISTER and LOGIN.
    pub fn endpoint(&self) -> PeerEndpoint {
        self.endpoint
    }

    /// The address of the server.
    pub fn server(&self) -> SocketAddr {
        self.inner.config.server
    }

    /// The name of this peer.
    pub fn name(&self) -> &Name {
        &self.inner.config.name
    }

    /// Sets the token that requests carry from now on.
    pub fn set_token(&self, token: Option<Token>) {
        *self.inner.token.lock() = token;
    }

    /// Sets how settlements are secured from now on.
    pub fn set_security(&self, security: SettlementSecurity) {
        *self.inner.security.lock() = security;
    }

    /// Requests are sent at all only to a server that is trusted.
    pub fn check_trust(&self) -> Result<(), ClientError> {
        self.inner.distrust_reason().map_or(Ok(()), |why| Err(ClientError::Untrusted(why)))
    }

    /// The counters of this client.
    pub fn counters(&self) -> &ClientCounters {
        &self.inner.counters
    }

    /// Stops all threads and fails pending requests. Settlements in progress get a second to finish.
    pub fn close(&self) {
        {
            let _order = self.inner.pending.lock();
            self.inner.is_closed.store(true, SeqCst);
        }
        self.inner.changed.notify_all();
        self.tcp.stop(Duration::from_secs(1));
        for thread in std::mem::take(&mut *self.threads.lock()) {
            // An `Err` would be a panic, which `threads::spawn` has caught and logged.
            let _ = thread.join();
        }
        let pending: Vec<PendingRequest> = self.inner.pending.lock().drain().map(|(_, pending)| pending).collect();
        for pending in pending {
            (pending.on_response)(Err(ClientError::Closed));
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.close();
    }
}

impl ClientInner {
    fn distrust_reason(&self) -> Option<Arc<str>> {
        match &*self.security.lock() {
            SettlementSecurity::Untrusted(why) => Some(Arc::clone(why)),
            _ => None,
        }
    }
}

fn bind_udp(config: &ClientConfig) -> Result<UdpSocket, ClientOpenError> {
    any_high_port(config.udp_port, || {
        let socket = UdpSocket::bind((config.bind, config.udp_port))?;
        Ok((socket.local_addr()?.port(), socket))
    })
    .map_err(|error| bind_error("UDP", config.udp_port, config.bind, error))
}

fn bind_tcp(address: SocketAddr) -> Result<std::net::TcpListener, ClientOpenError> {
    any_high_port(address.port(), || {
        let listener = listener::listen(address)?;
        Ok((listener.local_addr()?.port(), listener))
    })
    .map_err(|error| bind_error("TCP", address.port(), address.ip(), error))
}

/// Binds a port; if any will do, tries again while the system assigns ports that the server does not accept.
fn any_high_port<S>(asked: u16, bind: impl Fn() -> io::Result<(u16, S)>) -> io::Result<S> {
    let mut too_low = Vec::new();
    for _ in 0..64 {
        let (port, socket) = bind()?;
        if asked != 0 || port >= PORT_MIN {
            return Ok(socket);
        }
        // Kept open, so that it is not assigned again.
        too_low.push(socket);
    }
    Err(io::Error::other(format!("the system gives no port from {PORT_MIN} on")))
}

fn bind_error(what: &'static str, port: u16, bind: IpAddr, error: io::Error) -> ClientOpenError {
    if error.kind() == io::ErrorKind::AddrInUse {
        return ClientOpenError::InUse { what, port };
    }
    ClientOpenError::Io { doing: format!("listen on {bind}, {what} port {port}"), error }
}
