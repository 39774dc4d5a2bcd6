//! The doors of the shop: where connections come in, of clients, of strangers, and of other components.
//!
//! All four servers have one. Behind it stands a [`Host`], who answers clients; at a database's door also
//! a [`Database`], which answers those who have proved the cluster key, and nobody else.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::customer::CustomerDb;
use super::ops::{Answer, Code, CustomerOp, ProductOp, Refusal, Role, Session};
use super::product::ProductDb;
use super::wire::{self, Call, Envelope, MESSAGE_MAX, Outcome, Port, Rejected};
use crate::model::Token;
use crate::net::budget::{Budget, Share};
use crate::net::cluster::ClusterKey;
use crate::net::conn::{Conn, ConnReader, ConnWriter};
use crate::net::counters::Counter;
use crate::net::ended::Ended;
use crate::net::frames::MessageReader;
use crate::net::gate::Gate;
use crate::net::lines::{LineError, LineLimits};
use crate::net::link;
use crate::net::porch::{Newcomer, Porch};
use crate::net::tcp::{self, Busy, TcpServer};
use crate::net::threads::Executor;
use crate::net::tls::Identity;

/// The name by which links know the customer database.
pub const CUSTOMER_DB: &str = "customer-db";
/// The name by which links know the product database.
pub const PRODUCT_DB: &str = "product-db";
/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the servers of a process stand on. Clones are the same.
#[derive(Clone)]
pub struct Floor {
    /// Threads for connections.
    pub executor: Arc<Executor>,
    /// The bound of connections, shared by all listeners for clients. A process that runs frontends and
    /// databases gives the databases a gate of their own: clients that fill this one must not keep the
    /// frontends' links out.
    pub gate: Arc<Gate>,
    /// The bound of what was received and not yet handled, likewise.
    pub budget: Arc<Budget>,
    /// For those who begin with TLS; without it they are closed.
    pub identity: Option<Arc<Identity>>,
    /// Clients on other hosts may speak without TLS.
    pub plain_from_afar: bool,
    /// What the components share.
    pub key: ClusterKey,
}

impl Floor {
    /// Whether a client may speak as it does: from other hosts with TLS, unless it was allowed otherwise.
    fn lets_in(&self, source: IpAddr, is_tls: bool) -> bool {
        is_tls || source.is_loopback() || self.plain_from_afar
    }
}

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port is taken (or not allowed).
    #[error("cannot bind {addr}")]
    Bind {
        /// Which address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The system gave no thread.
    #[error("cannot start")]
    System(#[from] io::Error),
}

/// Who answers clients.
pub trait Host: Send + Sync + 'static {
    /// Which door it is.
    fn port(&self) -> Port;
    /// Does what is asked. `is_flat`: in dialect 2, where the cart is the user's.
    fn call(&self, source: IpAddr, is_flat: bool, call: Call) -> Answer<Outcome>;
    /// Looks into the session of a call whose fields are wrong: that counts as a use of it, and what is
    /// wrong with it goes first.
    fn in_session(&self, sid: String) -> Answer<()>;
}

/// A database: what it is asked over links, it answers with the JSON of the operation's answer.
pub trait Database<Op>: Send + Sync + 'static {
    /// Does what is asked, on the calling thread.
    fn handle(&self, op: Op) -> Answer<String>;
}

impl Database<CustomerOp> for CustomerDb {
    fn handle(&self, op: CustomerOp) -> Answer<String> {
        CustomerDb::handle(self, op)
    }
}

impl Database<ProductOp> for ProductDb {
    fn handle(&self, op: ProductOp) -> Answer<String> {
        ProductDb::handle(self, op)
    }
}

/// What a door did so far.
#[derive(Debug, Default)]
pub struct DoorCounters {
    /// Messages of clients.
    pub requests: Counter,
    /// Messages of clients that were refused.
    pub refused: Counter,
    /// Links that were let in.
    pub links: Counter,
    /// Links without the key.
    pub links_refused: Counter,
    /// Operations asked over links.
    pub operations: Counter,
    /// Connections that failed, or were closed for what came.
    pub connections_failed: Counter,
    /// Strangers at a database who found too many others there.
    pub strangers_refused: Counter,
}

impl DoorCounters {
    /// Every counter with its name.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("requests", self.requests.get()),
            ("requests_refused", self.refused.get()),
            ("links", self.links.get()),
            ("links_refused", self.links_refused.get()),
            ("operations", self.operations.get()),
            ("connections_failed", self.connections_failed.get()),
            ("strangers_refused", self.strangers_refused.get()),
        ]
    }
}

/// A door that is open.
pub struct Door {
    tcp: TcpServer,
    counters: Arc<DoorCounters>,
    porch: Option<Arc<Porch>>,
}

type Operate = Arc<dyn Fn(&[u8]) -> Vec<u8> + Send + Sync>;

/// At a database's door, where links are at home and strangers are guests.
struct Links {
    /// The component's name.
    name: &'static str,
    operate: Operate,
    /// Whoever has not said which of both he is.
    porch: Arc<Porch>,
    /// The bound of strangers, so that they leave room for links.
    strangers: Arc<Gate>,
}

/// Which part of a database's connections strangers may have. With what the porch keeps free, more than
/// three quarters are left for links.
const STRANGERS_SHARE: usize = 8;

struct Keeper {
    floor: Floor,
    host: Arc<dyn Host>,
    links: Option<Links>,
    counters: Arc<DoorCounters>,
}

impl Door {
    /// A frontend's: for clients alone.
    ///
    /// # Errors
    /// [`StartError`]: the port is in use.
    pub fn open(addr: SocketAddr, floor: Floor, host: Arc<dyn Host>) -> Result<Door, StartError> {
        Door::start(addr, floor, host, None)
    }

    /// The customer database's: for links, and from strangers CREATE, LOGIN, LOGOUT and VALIDATE.
    ///
    /// # Errors
    /// [`StartError`]: the port is in use.
    pub fn open_customer(
        addr: SocketAddr,
        floor: Floor,
        database: Arc<dyn Database<CustomerOp>>,
    ) -> Result<Door, StartError> {
        let host = Arc::new(CustomerHost(Arc::clone(&database)));
        let operate = Arc::new(move |request: &[u8]| operate(&*database, request));
        Door::start(addr, floor, host, Some((CUSTOMER_DB, operate)))
    }

    /// The product database's: for links alone.
    ///
    /// # Errors
    /// [`StartError`]: the port is in use.
    pub fn open_product(
        addr: SocketAddr,
        floor: Floor,
        database: Arc<dyn Database<ProductOp>>,
    ) -> Result<Door, StartError> {
        let operate = Arc::new(move |request: &[u8]| operate(&*database, request));
        Door::start(addr, floor, Arc::new(ProductHost), Some((PRODUCT_DB, operate)))
    }

    fn start(
        addr: SocketAddr,
        floor: Floor,
        host: Arc<dyn Host>,
        links: Option<(&'static str, Operate)>,
    ) -> Result<Door, StartError> {
        let listener = tcp::listen(addr).map_err(|source| StartError::Bind { addr, source })?;
        let counters = Arc::new(DoorCounters::default());
        let (executor, gate) = (Arc::clone(&floor.executor), Arc::clone(&floor.gate));
        let links = links.map(|(name, operate)| {
            let strangers = Gate::new((gate.max_connections() / STRANGERS_SHARE).max(1));
            Links { name, operate, porch: Porch::new(Arc::clone(&gate)), strangers }
        });
        let porch = links.as_ref().map(|links| Arc::clone(&links.porch));
        let keeper = Keeper { floor, host, links, counters: Arc::clone(&counters) };
        let busy = Refusal::new(Code::Busy, "too many connections; try again");
        let busy = Busy::in_either_framing(&wire::write(&Envelope::NO_MESSAGE, &Err(busy)));
        let handler = Arc::new(move |stream: Arc<TcpStream>, source: SocketAddr| keeper.receive(stream, source));
        Ok(Door { tcp: TcpServer::start(listener, executor, gate, busy, handler)?, counters, porch })
    }

    /// Where it is.
    pub fn local_addr(&self) -> SocketAddr {
        self.tcp.local_addr()
    }

    /// Every counter of the door and of the listener beneath it, with its name.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let closed = self.porch.as_ref().map_or(0, |porch| porch.closed());
        [self.counters.list(), vec![("newcomers_closed", closed)], self.tcp.counters().list()].concat()
    }

    /// Takes no more work; what is in hand may be finished within `grace`.
    pub fn stop(&self, grace: Duration) {
        let left = self.tcp.stop(grace);
        if left > 0 {
            log::warn!("{left} requests were not finished");
        }
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("tcp", &self.tcp).finish_non_exhaustive()
    }
}

impl Keeper {
    fn receive(&self, stream: Arc<TcpStream>, source: SocketAddr) {
        let source = source.ip().to_canonical();
        match self.serve(stream, source) {
            Ok(()) => {}
            // Who says nothing more is no failure.
            Err(Ended::Silent) => {}
            Err(Ended::Failed(why)) => {
                self.counters.connections_failed.add(1);
                log::debug!("connection from {source}: {why}");
            }
        }
    }

    fn serve(&self, stream: Arc<TcpStream>, source: IpAddr) -> Result<(), Ended> {
        let limits = LineLimits::new(MESSAGE_MAX);
        let mut newcomer = self.links.as_ref().map(|links| links.porch.enter(&stream, source));
        let conn = match &self.floor.identity {
            Some(identity) => {
                Conn::accept_any(stream, identity, Instant::now() + limits.idle_timeout, HANDSHAKE_TIMEOUT)?
            }
            None => Conn::plain(stream),
        };
        let (is_tls, tcp) = (conn.is_tls(), Arc::clone(conn.stream()));
        let (incoming, writer) = conn.split();
        let share = Share::of(Arc::clone(&self.floor.budget));
        let Some(mut reader) = MessageReader::begin(incoming, limits, share)? else { return Ok(()) };
        if !self.floor.lets_in(source, is_tls) {
            self.refuse(&reader, &writer, Refusal::new(Code::Forbidden, "from another host this port wants TLS"))?;
            reader.linger(&writer);
            return Ok(());
        }
        // Held for as long as the connection lasts.
        let mut _place_of_stranger = None;
        loop {
            match reader.read() {
                Ok(Some(message)) => {
                    if let Some(links) = &self.links
                        && newcomer.is_some()
                    {
                        if link::is_hello(&message) {
                            link::keep_alive(&tcp);
                            // Links from other hosts are encrypted whatever was allowed to clients.
                            let is_private = is_tls || source.is_loopback() || stays_here(&tcp, source);
                            return self.link(&message, reader, &writer, (is_private, is_tls), (links, newcomer));
                        }
                        match links.strangers.enter(source) {
                            Ok(place) => _place_of_stranger = Some(place),
                            Err(full) => {
                                self.counters.strangers_refused.add(1);
                                log::debug!("a stranger from {source}: {full}");
                                let busy = Refusal::new(Code::Busy, "too many connections; try again");
                                self.refuse(&reader, &writer, busy)?;
                                // Still on the porch, from where it can be closed.
                                reader.linger(&writer);
                                return Ok(());
                            }
                        }
                        newcomer = None;
                    }
                    let answer = self.answer(source, &message);
                    // Not held while the answer goes out.
                    drop(message);
                    reader.framing().write(&writer, &answer)?;
                }
                Ok(None) => {
                    writer.finish();
                    return Ok(());
                }
                Err(error) => {
                    let code = match &error {
                        LineError::TooLong { .. } | LineError::MessageTimeout { .. } => Code::BadRequest,
                        LineError::Busy => Code::Busy,
                        // Bytes that are no text are a message all the same, whose answer says so.
                        LineError::Idle { .. } | LineError::Truncated | LineError::NotUtf8 | LineError::Io(_) => {
                            return Err(error.into());
                        }
                    };
                    self.refuse(&reader, &writer, Refusal::new(code, error.to_string()))?;
                    reader.linger(&writer);
                    return Err(error.into());
                }
            }
        }
    }

    fn answer(&self, source: IpAddr, message: &[u8]) -> Vec<u8> {
        self.counters.requests.add(1);
        let (envelope, answer) = match wire::read(self.host.port(), message) {
            Ok(request) => {
                let answer = self.host.call(source, request.envelope.is_flat(), request.call);
                (request.envelope, answer)
            }
            Err(Rejected { envelope, refusal, sid }) => {
                // Only now, so that a call that is well formed costs no look of its own.
                let session = sid.map_or(Ok(()), |sid| self.host.in_session(sid));
                (envelope, Err(session.err().unwrap_or(refusal)))
            }
        };
        if answer.is_err() {
            self.counters.refused.add(1);
        }
        wire::write(&envelope, &answer)
    }

    fn refuse(&self, reader: &MessageReader<ConnReader>, writer: &ConnWriter, refusal: Refusal) -> Result<(), Ended> {
        self.counters.refused.add(1);
        Ok(reader.framing().write(writer, &wire::write(&Envelope::NO_MESSAGE, &Err(refusal)))?)
    }

    fn link(
        &self,
        hello: &[u8],
        mut reader: MessageReader<ConnReader>,
        writer: &ConnWriter,
        (is_private, is_tls): (bool, bool),
        (links, newcomer): (&Links, Option<Newcomer>),
    ) -> Result<(), Ended> {
        let (name, operate) = (links.name, &links.operate);
        let own = self.floor.identity.as_ref().filter(|_| is_tls);
        let fingerprint = own.map_or("", |identity| identity.fingerprint());
        if !is_private || !link::welcome(hello, &mut reader, writer, (name, &self.floor.key, fingerprint))? {
            self.counters.links_refused.add(1);
            let why = if is_private {
                format!("this is the {name}, for those with its cluster key")
            } else {
                format!("this is the {name}; from another host a link wants TLS: start it with --tls")
            };
            let refusal = Refusal::new(Code::Forbidden, why);
            self.refuse(&reader, writer, refusal)?;
            reader.linger(writer);
            return Ok(());
        }
        drop(newcomer);
        self.counters.links.add(1);
        Ok(link::serve(reader, writer, |request| {
            self.counters.operations.add(1);
            operate(request)
        })?)
    }
}

/// Whether a connection never leaves this host: of two ends with one address, none is on another.
fn stays_here(stream: &TcpStream, source: IpAddr) -> bool {
    stream.local_addr().is_ok_and(|own| own.ip().to_canonical() == source)
}

// What is in a link's frames: an operation; `{"ok":…}` or `{"error":{"code":…,"message":…}}`.

const OK: &[u8] = b"{\"ok\":";

fn operate<Op: DeserializeOwned>(database: &(impl Database<Op> + ?Sized), request: &[u8]) -> Vec<u8> {
    let answer = match serde_json::from_slice(request) {
        Ok(op) => database.handle(op),
        // Not the error: it may quote what was asked.
        Err(_) => Err(Refusal::new(Code::BadRequest, "the components are of different versions")),
    };
    encode_answer(&answer)
}

fn encode_answer(answer: &Answer<String>) -> Vec<u8> {
    match answer {
        Ok(json) => [OK, json.as_bytes(), b"}"].concat(),
        // Texts alone: writing them to memory cannot fail.
        Err(refusal) => serde_json::to_vec(&serde_json::json!({ "error": refusal })).unwrap_or_default(),
    }
}

/// What a database answered. What is in it is not parsed here: most of it only passes through.
pub(super) fn decode_answer(mut answer: Vec<u8>) -> Answer<String> {
    #[derive(serde::Deserialize)]
    struct Refused {
        error: Refusal,
    }
    let improper = || Refusal::new(Code::Unavailable, "a database gave no proper answer");
    if answer.starts_with(OK) && answer.last() == Some(&b'}') {
        answer.pop();
        answer.drain(..OK.len());
        return String::from_utf8(answer).map_err(|_| improper());
    }
    Err(serde_json::from_slice::<Refused>(&answer).map_or_else(|_| improper(), |refused| refused.error))
}

// What strangers may ask of the databases.

struct CustomerHost(Arc<dyn Database<CustomerOp>>);

impl Host for CustomerHost {
    fn port(&self) -> Port {
        Port::Customer
    }

    fn call(&self, source: IpAddr, _is_flat: bool, call: Call) -> Answer<Outcome> {
        match call {
            Call::Validate { sid } => Ok(Outcome::Session(self.session(sid)?)),
            Call::Logout { sid } => {
                let role = self.session(sid.clone())?.role;
                account_call(source, role, Call::Logout { sid }, |op| self.0.handle(op))
            }
            Call::Create { role, .. } | Call::Login { role, .. } => {
                account_call(source, role, call, |op| self.0.handle(op))
            }
            Call::Act { .. } => Err(stranger()),
        }
    }

    /// A stranger may do nothing that has a session and fields.
    fn in_session(&self, _sid: String) -> Answer<()> {
        Err(stranger())
    }
}

impl CustomerHost {
    fn session(&self, sid: String) -> Answer<Session> {
        parse(&self.0.handle(CustomerOp::Validate { sid })?)
    }
}

struct ProductHost;

impl Host for ProductHost {
    fn port(&self) -> Port {
        Port::Product
    }

    fn call(&self, _source: IpAddr, _is_flat: bool, _call: Call) -> Answer<Outcome> {
        Err(stranger())
    }

    fn in_session(&self, _sid: String) -> Answer<()> {
        Err(stranger())
    }
}

fn stranger() -> Refusal {
    Refusal::new(Code::Forbidden, "only the frontends may ask this database")
}

/// CREATE, LOGIN and LOGOUT, which are the same everywhere.
pub(super) fn account_call(
    source: IpAddr,
    role: Role,
    call: Call,
    ask: impl FnOnce(CustomerOp) -> Answer<String>,
) -> Answer<Outcome> {
    match call {
        Call::Create { username, password, name, .. } => {
            let request = request_id();
            let answer = ask(CustomerOp::Create { request, role, username, password, name })?;
            Ok(Outcome::Created(role, parse(&answer)?))
        }
        Call::Login { username, password, .. } => {
            let answer = ask(CustomerOp::Login { role, username, password, source: source.to_string() })?;
            Ok(Outcome::LoggedIn(role, parse(&answer)?))
        }
        Call::Logout { sid } => ask(CustomerOp::Logout { role, sid }).map(|_| Outcome::Done),
        Call::Validate { .. } | Call::Act { .. } => Err(stranger()),
    }
}

/// For operations that would do their work twice when repeated.
pub(super) fn request_id() -> String {
    Token::random().reveal().to_owned()
}

/// Reads a database's answer where it must be understood.
pub(super) fn parse<T: DeserializeOwned>(json: &str) -> Answer<T> {
    serde_json::from_str(json).map_err(|_| Refusal::new(Code::Unavailable, "a database gave no proper answer"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn answers_pass_through_as_they_are() {
        for json in ["null", "{\"items\":[],\"total\":0}", "\"ü\"", ""] {
            assert_eq!(decode_answer(encode_answer(&Ok(json.to_owned()))), Ok(json.to_owned()));
        }
        let refusal = Refusal::new(Code::OutOfStock, "there are \"two\" left");
        assert_eq!(decode_answer(encode_answer(&Err(refusal.clone()))), Err(refusal));
        for nonsense in [&b""[..], b"{\"ok\":", b"{\"ok\":\xff}", b"[]", b"{\"error\":{\"code\":\"X\"}}"] {
            assert_eq!(decode_answer(nonsense.to_vec()).unwrap_err().code, Code::Unavailable);
        }
    }

    #[test]
    fn from_other_hosts_clients_speak_tls_unless_it_was_allowed_otherwise() {
        let floor = |plain_from_afar| Floor {
            executor: Executor::new("test-door", 1),
            gate: Gate::new(1),
            budget: Budget::new(1),
            identity: None,
            plain_from_afar,
            key: ClusterKey::random(),
        };
        let (here, afar) = ("127.0.0.1".parse().unwrap(), "192.0.2.1".parse().unwrap());
        let lets_in = |plain_from_afar: bool, source, is_tls| floor(plain_from_afar).lets_in(source, is_tls);
        assert!(lets_in(false, here, false) && lets_in(false, afar, true) && lets_in(true, afar, false));
        assert!(!lets_in(false, afar, false));
    }

    proptest! {
        #[test]
        fn nonsense_on_a_link_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            struct Never;
            impl Database<CustomerOp> for Never {
                fn handle(&self, op: CustomerOp) -> Answer<String> {
                    Ok(format!("{op:?}"))
                }
            }
            let _ = decode_answer(bytes.clone());
            let _ = decode_answer(operate(&Never, &bytes));
        }
    }
}
