//! The doors of the shop: where connections come in, of clients, of strangers, and of other components.
//!
//! All four servers have one. Behind it stands a [`Host`], who answers clients; at a database's door also
//! a [`Database`], which answers those who have proved the cluster key, and nobody else.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::de::DeserializeOwned;

use super::customer::CustomerDb;
use super::ops::{Answer, Code, CustomerOp, ProductOp, Refusal, Role, Session};
use super::product::ProductDb;
use super::wire::{self, Call, Envelope, MESSAGE_MAX, Outcome, Port, Rejected};
use crate::model::Token;
use crate::net::budget::Budget;
use crate::net::cluster::ClusterKey;
use crate::net::counters::{Counter, Latencies, LatencyCounts};
use crate::net::ended::Ended;
use crate::net::lines::LineLimits;
use crate::net::link;
use crate::net::listener::{
    self, After, ConnectionLimiter, Listener, ListenerContext, MessageConnection, MessageFraming, MessageService,
    Messages, Rejection,
};
use crate::net::source::Source;
use crate::net::threads::Executor;
use crate::net::tls::Identity;

/// The name by which links know the customer database.
pub const CUSTOMER_DB: &str = "customer-db";
/// The name by which links know the product database.
pub const PRODUCT_DB: &str = "product-db";

/// What the servers of a process stand on. Clones are the same.
#[derive(Clone)]
pub struct Floor {
    /// Threads for connections.
    pub executor: Arc<Executor>,
    /// The bound of connections, shared by all listeners of the process. A database's port is sure of its share of
    /// it, and strangers there of a part of that: so no clients, wherever they are, keep the frontends' links out.
    pub limiter: Arc<ConnectionLimiter>,
    /// The bound of what was received and not yet handled, likewise.
    pub budget: Arc<Budget>,
    /// For those who begin with TLS; without it they are closed.
    pub identity: Option<Arc<Identity>>,
    /// Clients on other hosts may speak without TLS.
    pub plain_from_afar: bool,
    /// What the components share.
    pub key: ClusterKey,
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
    /// From a client's whole message to its answer.
    latencies: Latencies,
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
    listener: Listener,
    counters: Arc<DoorCounters>,
}

type Operate = Arc<dyn Fn(&[u8]) -> Vec<u8> + Send + Sync>;

/// At a database's door, where links are at home and strangers are guests.
struct Links {
    /// The component's name.
    name: &'static str,
    operate: Operate,
    strangers: Arc<Strangers>,
}

/// Strangers who have asked for something: how many from where.
#[derive(Default)]
struct Strangers(Mutex<HashMap<Source, usize>>);

/// Which part of what a database's port is sure of strangers may have: the rest is for links. Document 001's
/// hundred buyers and hundred sellers, who all come at once, are within it in a server with the usual bound.
const STRANGERS_SHARE: usize = 2;
/// What a database's port is to be sure of, however small the bound: links of both frontends, and a stranger.
const DATABASE_CONNECTIONS_MIN: usize = 8;

struct DoorService {
    floor: Floor,
    host: Arc<dyn Host>,
    links: Option<Links>,
    counters: Arc<DoorCounters>,
}

/// What a door remembers of a connection.
#[derive(Default)]
struct Caller {
    /// His place among those at a database.
    stranger: Option<StrangersPlace>,
}

/// Given back when dropped.
struct StrangersPlace {
    strangers: Arc<Strangers>,
    source: Source,
}

impl Strangers {
    /// For one more, at a port that is sure of so many connections. One source has half of their places at most, so
    /// that it shuts no others out; loopback may have them all.
    fn take_place(self: &Arc<Self>, source: Source, sure: usize) -> Option<StrangersPlace> {
        let most = (sure / STRANGERS_SHARE).max(1);
        let most_of_source = if source.is_loopback() { most } else { (most / 2).max(1) };
        let mut places = self.0.lock();
        let of_source = places.get(&source).copied().unwrap_or_default();
        // Not more to add up than there are places.
        if of_source >= most_of_source || places.values().sum::<usize>() >= most {
            return None;
        }
        places.insert(source, of_source + 1);
        Some(StrangersPlace { strangers: Arc::clone(self), source })
    }
}

impl Drop for StrangersPlace {
    fn drop(&mut self) {
        let mut places = self.strangers.0.lock();
        if let Some(of_source) = places.get_mut(&self.source) {
            *of_source -= 1;
            if *of_source == 0 {
                places.remove(&self.source);
            }
        }
    }
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
        let socket = listener::listen(addr).map_err(|source| StartError::Bind { addr, source })?;
        let counters = Arc::new(DoorCounters::default());
        let context = ListenerContext {
            executor: Arc::clone(&floor.executor),
            limiter: Arc::clone(&floor.limiter),
            budget: Arc::clone(&floor.budget),
            identity: floor.identity.clone(),
            plain_from_afar: floor.plain_from_afar,
        };
        let at_least = if links.is_some() { DATABASE_CONNECTIONS_MIN } else { 0 };
        let links = links.map(|(name, operate)| Links { name, operate, strangers: Arc::default() });
        let service = DoorService { floor, host, links, counters: Arc::clone(&counters) };
        let listener = Listener::start_sure_of(socket, context, at_least, Arc::new(Messages(service)))?;
        Ok(Door { listener, counters })
    }

    /// Where it is.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Every counter of the door and of the listener beneath it, with its name.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        [self.counters.list(), self.listener.counters()].concat()
    }

    /// How long clients' messages took to be answered.
    pub fn latencies(&self) -> LatencyCounts {
        self.counters.latencies.counts()
    }

    /// Takes no more work; what is in hand may be finished within `grace`.
    pub fn stop(&self, grace: Duration) {
        let left = self.listener.stop(grace);
        if left > 0 {
            log::warn!("{left} requests were not finished");
        }
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl MessageService for DoorService {
    type Client = Caller;
    const NAME: &'static str = "shop";
    const FRAMING: MessageFraming = MessageFraming::JsonLinesOrFrames;

    fn limits(&self) -> LineLimits {
        LineLimits::new(MESSAGE_MAX)
    }

    fn rejection(&self, why: Rejection) -> Option<Vec<u8>> {
        let code = match why {
            why if why.is_busy() => Code::Busy,
            Rejection::WantsTls => Code::Forbidden,
            _ => Code::BadRequest,
        };
        Some(wire::write(&Envelope::NO_MESSAGE, &Err(Refusal::new(code, why.to_string()))))
    }

    fn count_rejected(&self) {
        self.counters.refused.add(1);
    }

    fn connections_failed(&self) -> &Counter {
        &self.counters.connections_failed
    }

    fn connected(&self, _connection: &MessageConnection) -> Caller {
        Caller::default()
    }

    /// Who says that he is a component has yet to prove it.
    fn is_request(&self, message: &[u8]) -> bool {
        self.links.is_none() || !link::is_hello(message)
    }

    fn message(
        &self,
        caller: &mut Caller,
        message: Vec<u8>,
        connection: &mut MessageConnection,
    ) -> Result<After, Ended> {
        if let Some(links) = &self.links
            && caller.stranger.is_none()
        {
            if link::is_hello(&message) {
                link::keep_alive(connection.stream());
                return self.link(&message, connection, links);
            }
            caller.stranger = links.strangers.take_place(connection.counts_for(), connection.sure());
            if caller.stranger.is_none() {
                self.counters.strangers_refused.add(1);
                let busy = Refusal::new(Code::Busy, Rejection::Connections.to_string());
                return self.refuse(connection, busy);
            }
        }
        let began_at = Instant::now();
        let answer = self.answer(connection.source().ip(), &message);
        // Not held while the answer goes out.
        drop(message);
        connection.write(&answer)?;
        self.counters.latencies.took(began_at.elapsed());
        Ok(After::Continue)
    }
}

impl DoorService {
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

    fn refuse(&self, connection: &MessageConnection, refusal: Refusal) -> Result<After, Ended> {
        self.counters.refused.add(1);
        connection.write(&wire::write(&Envelope::NO_MESSAGE, &Err(refusal)))?;
        Ok(After::Close)
    }

    fn link(&self, hello: &[u8], connection: &mut MessageConnection, links: &Links) -> Result<After, Ended> {
        let (name, operate) = (links.name, &links.operate);
        let own = self.floor.identity.as_ref().filter(|_| connection.is_tls());
        let fingerprint = own.map_or("", |identity| identity.fingerprint());
        // Links from other hosts are encrypted whatever was allowed to clients.
        let is_private = connection.is_private();
        let (reader, writer) = connection.halves();
        if !is_private || !link::welcome(hello, reader, writer, (name, &self.floor.key, fingerprint))? {
            self.counters.links_refused.add(1);
            let refusal = Refusal::new(Code::Forbidden, format!("this is the {name}, for those with its cluster key"));
            return self.refuse(connection, refusal);
        }
        if !connection.settle() {
            return Ok(After::Over);
        }
        self.counters.links.add(1);
        connection.becomes_link(&self.floor.budget);
        let (reader, writer) = connection.halves();
        link::serve(reader, writer, |request| {
            self.counters.operations.add(1);
            operate(request)
        })?;
        Ok(After::Over)
    }
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
            let answer =
                ask(CustomerOp::Create { request, role, username, password, name, source: source.to_string() })?;
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
    use crate::net::source;
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
    fn a_source_has_half_of_the_strangers_places_and_loopback_all() {
        let strangers = Arc::<Strangers>::default();
        let take = |address: &str, sure, times: usize| -> Vec<StrangersPlace> {
            let source = source::of(address.parse().unwrap());
            (0..times).map_while(|_| strangers.take_place(source, sure)).collect()
        };
        let one = take("192.0.2.1", 40, 100);
        assert_eq!(one.len(), 10, "of twenty");
        let others = (take("2001:db8::1", 40, 4), take("2001:db8::2", 40, 100));
        assert_eq!((others.0.len(), others.1.len()), (4, 6), "a network is one source");
        assert!(take("192.0.2.3", 40, 1).is_empty() && take("127.0.0.1", 40, 1).is_empty(), "all together have twenty");
        drop(one);
        assert_eq!(take("192.0.2.3", 40, 100).len(), 10, "what is given back is free at once");
        drop(others);
        let here = (take("127.0.0.1", 40, 15), take("::1", 40, 100));
        assert_eq!((here.0.len(), here.1.len()), (15, 5), "this machine may have them all");
        drop(here);
        assert!(strangers.0.lock().is_empty(), "who holds nothing is not remembered");
        assert_eq!(take("192.0.2.1", 8, 9).len(), 2);
        assert_eq!(take("192.0.2.1", 1, 9).len(), 1, "one at least");
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
