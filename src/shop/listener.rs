//! The listeners of the four shop servers. A [`ClientHandler`] answers clients. The listener of a database also has a
//! [`Database`], which executes the operations of components that have proved to know the cluster key; any other client
//! there is called *unauthenticated*.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::apis::{ApiCall, ResponsePayload, ServerKind};
use super::customer::{CustomerDb, CustomerOp};
use super::ops::{ErrorCode, Refusal, Role, SessionInfo, ShopResult};
use super::product::{ProductDb, ProductOp};
use super::wire::{self, InvalidRequest, MESSAGE_MAX, ParsedRequest, ResponseEnvelope};
use crate::net::cluster::ClusterKey;
use crate::net::connection_end::ConnectionEnd;
use crate::net::counters::{Counter, LatencyHistogram, LatencySnapshot, counters};
use crate::net::lines::LineLimits;
use crate::net::link;
use crate::net::listener::{
    self, AfterMessage, Listener, ListenerContext, MessageConnection, MessageFraming, MessageHandler, MessageService,
    Rejection,
};
use crate::net::source::SourceKey;

mod link_messages;

pub use link_messages::Database;
use link_messages::execute_operation;
pub(super) use link_messages::{decode_response, parse_response, request_id};

/// The names by which links know the databases.
pub const CUSTOMER_DB: &str = "customer-db";
pub const PRODUCT_DB: &str = "product-db";

/// Shared by the shop servers of a process, and by clones.
#[derive(Clone)]
pub struct ShopContext {
    /// Of the limiter's connections a database's listener has a guaranteed share, of which unauthenticated clients get
    /// a part only, so that no number of clients can keep the frontends' links out.
    pub listener: ListenerContext,
    /// The secret by which components authenticate each other.
    pub key: ClusterKey,
}

#[derive(Debug, thiserror::Error)]
pub enum ShopStartError {
    #[error("cannot bind {addr}")]
    Bind { addr: SocketAddr, source: io::Error },
    #[error("cannot start")]
    System(#[from] io::Error),
}

pub trait ClientHandler: Send + Sync + 'static {
    /// It determines the apis that clients may call.
    fn server_kind(&self) -> ServerKind;
    /// In dialect 2 the cart is the buyer's saved one rather than the session's.
    fn call(&self, source: IpAddr, is_dialect2: bool, call: ApiCall) -> ShopResult<ResponsePayload>;
    /// Checks the session of a call whose fields are invalid. This counts as a use of it, and its errors take
    /// precedence.
    fn check_session(&self, sid: String) -> ShopResult<()>;
}

impl Database<CustomerOp> for CustomerDb {
    fn handle(&self, op: CustomerOp) -> ShopResult<String> {
        CustomerDb::handle(self, op)
    }
}

impl Database<ProductOp> for ProductDb {
    fn handle(&self, op: ProductOp) -> ShopResult<String> {
        ProductDb::handle(self, op)
    }
}

counters! {
    pub struct ShopListenerCounters {
        requests,
        refused = "requests_refused",
        links,
        /// They did not prove to know the cluster key.
        links_refused,
        /// Operations that arrived over links.
        operations,
        /// Connections that failed, or were closed for what they sent.
        connections_failed,
        /// Unauthenticated clients of a database, of whom there were too many.
        unauthenticated_refused = "strangers_refused",
    }
}

pub struct ShopListener {
    listener: Listener,
    counters: Arc<ShopListenerCounters>,
    /// From the end of a client's message until the response is written.
    latencies: Arc<LatencyHistogram>,
}

type OperationFn = Arc<dyn Fn(&[u8]) -> Vec<u8> + Send + Sync>;

/// What a database's listener needs to serve links.
struct DatabaseLinks {
    name: &'static str,
    execute_operation: OperationFn,
    unauthenticated_limiter: Arc<UnauthenticatedLimiter>,
}

/// The number of unauthenticated clients that have sent a request to a database, by source.
#[derive(Default)]
struct UnauthenticatedLimiter(Mutex<HashMap<SourceKey, usize>>);

/// Unauthenticated clients get one in this many of the connections that are guaranteed to a database's listener; the
/// rest is for links. With the default limit this suffices for the hundred buyers and hundred sellers of document 001.
const UNAUTHENTICATED_SHARE: usize = 2;
/// Guaranteed to a database's listener however low the limit is: links of both frontends and an unauthenticated client.
const DATABASE_CONNECTIONS_MIN: usize = 8;

struct ShopMessageService {
    context: ShopContext,
    handler: Arc<dyn ClientHandler>,
    links: Option<DatabaseLinks>,
    counters: Arc<ShopListenerCounters>,
    latencies: Arc<LatencyHistogram>,
}

/// Returned to its limiter when dropped.
struct UnauthenticatedPermit {
    limiter: Arc<UnauthenticatedLimiter>,
    source: SourceKey,
}

impl UnauthenticatedLimiter {
    /// A source other than loopback gets at most half of the permits, so that it cannot exclude others.
    fn acquire(self: &Arc<Self>, source: SourceKey, guaranteed_connections: usize) -> Option<UnauthenticatedPermit> {
        let limit = (guaranteed_connections / UNAUTHENTICATED_SHARE).max(1);
        let limit_per_source = if source.is_loopback() { limit } else { (limit / 2).max(1) };
        let mut permits = self.0.lock();
        let of_source = permits.get(&source).copied().unwrap_or_default();
        // There are at most as many entries as permits, so summing up is cheap.
        if of_source >= limit_per_source || permits.values().sum::<usize>() >= limit {
            return None;
        }
        permits.insert(source, of_source + 1);
        Some(UnauthenticatedPermit { limiter: Arc::clone(self), source })
    }
}

impl Drop for UnauthenticatedPermit {
    fn drop(&mut self) {
        let mut permits = self.limiter.0.lock();
        if let Some(of_source) = permits.get_mut(&self.source) {
            *of_source -= 1;
            if *of_source == 0 {
                permits.remove(&self.source);
            }
        }
    }
}

impl ShopListener {
    /// A frontend's, which serves clients only.
    pub fn open(
        addr: SocketAddr,
        context: ShopContext,
        handler: Arc<dyn ClientHandler>,
    ) -> Result<ShopListener, ShopStartError> {
        ShopListener::start(addr, context, handler, None)
    }

    /// It serves links and, for unauthenticated clients, CREATE, LOGIN, LOGOUT and VALIDATE.
    pub fn open_customer(
        addr: SocketAddr,
        context: ShopContext,
        database: Arc<dyn Database<CustomerOp>>,
    ) -> Result<ShopListener, ShopStartError> {
        let handler = Arc::new(DatabaseClientHandler(ServerKind::Customer, Some(Arc::clone(&database))));
        let execute_operation = Arc::new(move |request: &[u8]| execute_operation(&*database, request));
        ShopListener::start(addr, context, handler, Some((CUSTOMER_DB, execute_operation)))
    }

    /// It serves links only.
    pub fn open_product(
        addr: SocketAddr,
        context: ShopContext,
        database: Arc<dyn Database<ProductOp>>,
    ) -> Result<ShopListener, ShopStartError> {
        let execute_operation = Arc::new(move |request: &[u8]| execute_operation(&*database, request));
        let handler = Arc::new(DatabaseClientHandler(ServerKind::Product, None));
        ShopListener::start(addr, context, handler, Some((PRODUCT_DB, execute_operation)))
    }

    fn start(
        addr: SocketAddr,
        context: ShopContext,
        handler: Arc<dyn ClientHandler>,
        links: Option<(&'static str, OperationFn)>,
    ) -> Result<ShopListener, ShopStartError> {
        let socket = listener::listen(addr).map_err(|source| ShopStartError::Bind { addr, source })?;
        let (counters, latencies) = (Arc::new(ShopListenerCounters::default()), Arc::new(LatencyHistogram::default()));
        let listener_context = context.listener.clone();
        let guaranteed_min = if links.is_some() { DATABASE_CONNECTIONS_MIN } else { 0 };
        let links = links.map(|(name, execute_operation)| DatabaseLinks {
            name,
            execute_operation,
            unauthenticated_limiter: Arc::default(),
        });
        let service = ShopMessageService {
            context,
            handler,
            links,
            counters: Arc::clone(&counters),
            latencies: Arc::clone(&latencies),
        };
        let handler = Arc::new(MessageHandler(service));
        let listener = Listener::start_with_guarantee(socket, listener_context, guaranteed_min, handler)?;
        Ok(ShopListener { listener, counters, latencies })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// The counters of this listener and of the [`Listener`] beneath it, with their metric names.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        [self.counters.list(), self.listener.counters()].concat()
    }

    /// The response times of clients' messages.
    pub fn latencies(&self) -> LatencySnapshot {
        self.latencies.snapshot()
    }

    /// What is in progress has `grace` to finish.
    pub fn stop(&self, grace: Duration) {
        let left = self.listener.stop(grace);
        if left > 0 {
            log::warn!("{left} requests were not finished");
        }
    }
}

impl MessageService for ShopMessageService {
    /// Held from the first request of an unauthenticated client of a database.
    type Session = Option<UnauthenticatedPermit>;
    const NAME: &'static str = "shop";
    const FRAMING: MessageFraming = MessageFraming::JsonLinesOrFrames;

    fn limits(&self) -> LineLimits {
        LineLimits::new(MESSAGE_MAX)
    }

    fn rejection_message(&self, why: Rejection) -> Option<Vec<u8>> {
        let code = match why {
            why if why.is_busy() => ErrorCode::Busy,
            Rejection::TlsRequired => ErrorCode::Forbidden,
            _ => ErrorCode::BadRequest,
        };
        Some(wire::write_refusal(&ResponseEnvelope::UNPARSED, &Refusal::new(code, why.to_string())))
    }

    fn count_rejected(&self) {
        self.counters.refused.add(1);
    }

    fn connections_failed(&self) -> &Counter {
        &self.counters.connections_failed
    }

    fn on_connect(&self, _connection: &MessageConnection) -> Option<UnauthenticatedPermit> {
        None
    }

    /// The sender of a link's hello has yet to authenticate.
    fn is_request(&self, message: &[u8]) -> bool {
        self.links.is_none() || !link::is_hello(message)
    }

    fn handle(
        &self,
        permit: &mut Option<UnauthenticatedPermit>,
        message: Vec<u8>,
        connection: &mut MessageConnection,
    ) -> Result<AfterMessage, ConnectionEnd> {
        if let Some(links) = &self.links
            && permit.is_none()
        {
            if link::is_hello(&message) {
                link::enable_keepalive(connection.stream());
                return self.link(&message, connection, links);
            }
            *permit =
                links.unauthenticated_limiter.acquire(connection.source_key(), connection.guaranteed_connections());
            if permit.is_none() {
                self.counters.unauthenticated_refused.add(1);
                let busy = Refusal::new(ErrorCode::Busy, Rejection::TooManyConnections.to_string());
                return self.reject(connection, busy);
            }
        }
        let began_at = Instant::now();
        let response = self.respond(connection.source().ip(), &message);
        // The memory is freed before the write, which may block.
        drop(message);
        connection.write(&response)?;
        self.latencies.record(began_at.elapsed());
        Ok(AfterMessage::Continue)
    }
}

impl ShopMessageService {
    fn respond(&self, source: IpAddr, message: &[u8]) -> Vec<u8> {
        self.counters.requests.add(1);
        match wire::parse_request(self.handler.server_kind(), message) {
            Ok(ParsedRequest { envelope, api, call }) => {
                let result = self.handler.call(source, envelope.is_dialect2(), call);
                if result.is_err() {
                    self.counters.refused.add(1);
                }
                wire::write_response(&envelope, api.answer, &result)
            }
            Err(InvalidRequest { envelope, refusal, sid }) => {
                self.counters.refused.add(1);
                // A valid call checks its session anyway.
                let session = sid.map_or(Ok(()), |sid| self.handler.check_session(sid));
                wire::write_refusal(&envelope, &session.err().unwrap_or(refusal))
            }
        }
    }

    fn reject(&self, connection: &MessageConnection, refusal: Refusal) -> Result<AfterMessage, ConnectionEnd> {
        self.counters.refused.add(1);
        connection.write(&wire::write_refusal(&ResponseEnvelope::UNPARSED, &refusal))?;
        Ok(AfterMessage::Close)
    }

    fn link(
        &self,
        hello: &[u8],
        connection: &mut MessageConnection,
        links: &DatabaseLinks,
    ) -> Result<AfterMessage, ConnectionEnd> {
        let (name, execute_operation) = (links.name, &links.execute_operation);
        let own = self.context.listener.identity.as_ref().filter(|_| connection.is_tls());
        let fingerprint = own.map_or("", |identity| identity.fingerprint());
        // Links from other hosts must be encrypted, even where clients may connect without TLS.
        let is_private = connection.is_private();
        let (reader, writer) = connection.halves();
        if !is_private || !link::accept_handshake(hello, reader, writer, (name, &self.context.key, fingerprint))? {
            self.counters.links_refused.add(1);
            let why = format!("this is the {name}, for those with its cluster key");
            return self.reject(connection, Refusal::new(ErrorCode::Forbidden, why));
        }
        if !connection.mark_request_completed() {
            return Ok(AfterMessage::Closed);
        }
        self.counters.links.add(1);
        connection.count_as_link(&self.context.listener.budget);
        let (reader, writer) = connection.halves();
        link::serve_requests(reader, writer, |request| {
            self.counters.operations.add(1);
            execute_operation(request)
        })?;
        Ok(AfterMessage::Closed)
    }
}

/// Only the customer database has calls for unauthenticated clients.
struct DatabaseClientHandler(ServerKind, Option<Arc<dyn Database<CustomerOp>>>);

impl ClientHandler for DatabaseClientHandler {
    fn server_kind(&self) -> ServerKind {
        self.0
    }

    fn call(&self, source: IpAddr, _is_dialect2: bool, call: ApiCall) -> ShopResult<ResponsePayload> {
        let database = self.1.as_ref().ok_or_else(frontends_only)?;
        let role = match &call {
            ApiCall::Validate { sid } => {
                return database.handle(CustomerOp::Validate { sid: sid.clone() }).map(ResponsePayload::Json);
            }
            ApiCall::Logout { sid } => {
                parse_response::<SessionInfo>(&database.handle(CustomerOp::Validate { sid: sid.clone() })?)?.role
            }
            ApiCall::Create { role, .. } | ApiCall::Login { role, .. } => *role,
            ApiCall::InSession { .. } => return Err(frontends_only()),
        };
        handle_account_call(source, role, call, |op| database.handle(op))
    }

    /// None of their calls has a session and fields.
    fn check_session(&self, _sid: String) -> ShopResult<()> {
        Err(frontends_only())
    }
}

fn frontends_only() -> Refusal {
    Refusal::new(ErrorCode::Forbidden, "only the frontends may ask this database")
}

/// CREATE, LOGIN and LOGOUT, which frontends and the customer database have in common.
pub(super) fn handle_account_call(
    source: IpAddr,
    role: Role,
    call: ApiCall,
    execute: impl FnOnce(CustomerOp) -> ShopResult<String>,
) -> ShopResult<ResponsePayload> {
    match call {
        ApiCall::Create { username, password, name, .. } => {
            let request = request_id();
            let answer =
                execute(CustomerOp::Create { request, role, username, password, name, source: source.to_string() })?;
            Ok(ResponsePayload::Created(role, parse_response(&answer)?))
        }
        ApiCall::Login { username, password, .. } => {
            let answer = execute(CustomerOp::Login { role, username, password, source: source.to_string() })?;
            Ok(ResponsePayload::LoggedIn(role, parse_response(&answer)?))
        }
        ApiCall::Logout { sid } => execute(CustomerOp::Logout { role, sid }).map(ResponsePayload::Json),
        ApiCall::Validate { .. } | ApiCall::InSession { .. } => Err(frontends_only()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::source;

    #[test]
    fn a_source_has_half_of_the_strangers_places_and_loopback_all() {
        let limiter = Arc::<UnauthenticatedLimiter>::default();
        let take = |address: &str, guaranteed, times: usize| -> Vec<UnauthenticatedPermit> {
            let source = source::key_of(address.parse().unwrap());
            (0..times).map_while(|_| limiter.acquire(source, guaranteed)).collect()
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
        assert!(limiter.0.lock().is_empty(), "who holds nothing is not remembered");
        assert_eq!(take("192.0.2.1", 8, 9).len(), 2);
        assert_eq!(take("192.0.2.1", 1, 9).len(), 1, "one at least");
    }
}
