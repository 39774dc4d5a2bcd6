//! HTTP/1.1 on our threads: hyper parses and writes, and a connection has a thread to itself, which also
//! handles its requests, one after the other.
//!
//! | file | holds |
//! |---|---|
//! | `connection.rs` | a connection's thread: hyper's futures driven over a blocking stream |
//! | `service.rs` | a request on its way: rules, body, handler, answer |
//! | `rules.rs` | who may ask at all: Host, Origin, and browsers' preflight |
//! | `body.rs` | what goes out: bytes, chunks, a part of a file, server-sent events |
//! | `coding.rs` | answers that travel compressed |
//! | `file.rs` | a file, or a part of it, for who has not got it yet |
//! | `watchers.rs` | who is told of events, and what of them is kept for who comes back |
//! | `answer.rs` | answers as both APIs give them, and the fields of what they are asked |
//! | `routes.rs` | one table an API: its routes, what they take and all that they answer |
//!
//! The rules are those of SPEC.md section 6, "Both APIs". What is refused here never reaches the handler:
//!
//! | status | why |
//! |---|---|
//! | 400 | no Host, or one that is none; a broken body; a part of an upload (Content-Range) |
//! | 403 | an Origin that is neither the same nor allowed; from another host without TLS |
//! | 408 | the message was not complete in time; nothing came of an upload for too long |
//! | 413 | a body above [`BODY_MAX`], but for uploads |
//! | 415 | a body that is not `application/json`, but for uploads; an upload that is encoded |
//! | 421 | a Host that is not an address, `localhost` or a name that was allowed |
//! | 503 | too many event streams, or too much in hand |

mod answer;
mod body;
mod coding;
mod connection;
mod file;
pub mod routes;
mod rules;
mod service;
#[cfg(test)]
mod tests;
pub mod watchers;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use super::budget::Budget;
use super::counters::Counter;
use super::listener::{Accepted, Busy, ConnectionLimiter, Listener, ListenerContext, Protocol};
use super::threads::Executor;
use super::tls::Identity;

pub use answer::{Fields, Refusal, bearer, error, json, method_not_allowed, not_found, query_pairs, segments, success};
pub use body::{Body, Event, Events};
pub use coding::accepts_gzip;
pub use file::{FileFacts, content_disposition, has_already, serve_file};
pub use hyper::header;
pub use hyper::header::{HeaderMap, HeaderValue};
pub use hyper::{Method, StatusCode};
pub use routes::{Answered, Call};
pub use rules::{Rules, parse_allowed_origin, parse_host_name};

/// Most bytes of a request's body.
pub const BODY_MAX: usize = 1 << 20;
/// Most bytes of a request's line and headers.
pub const HEAD_MAX: usize = 16 * 1024;
/// Which part of the connections may be event streams, which last.
const EVENT_STREAMS_SHARE: usize = 4;

/// A request that has passed the rules, with its whole body.
#[derive(Debug)]
pub struct Request {
    /// GET stands for HEAD too: who asks for the head alone gets the same answer without its body.
    pub method: Method,
    /// As it was sent, with its `%XX`: see [`segments`].
    pub path: String,
    /// What stands behind the `?`: see [`query_pairs`].
    pub query: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
    /// Where it comes from.
    pub source: SocketAddr,
}

/// What is answered.
#[derive(Debug)]
pub struct Response {
    /// The status.
    pub status: StatusCode,
    /// The headers, but for those that the connection itself needs.
    pub headers: HeaderMap,
    /// The body.
    pub body: Body,
}

impl Response {
    /// An answer with a body of that type.
    pub fn new(status: StatusCode, content_type: &'static str, body: impl Into<Vec<u8>>) -> Response {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        Response { status, headers, body: Body::Bytes(body.into()) }
    }

    /// The same with one header more.
    #[must_use]
    pub fn with(mut self, name: header::HeaderName, value: HeaderValue) -> Response {
        self.headers.insert(name, value);
        self
    }
}

/// Who answers requests, on the thread of the connection.
pub trait Handler: Send + Sync + 'static {
    /// Answers. A panic becomes status 500 and ends nothing else.
    fn handle(&self, request: Request) -> Response;

    /// Asked before the body of a request is read that is to change something (not GET, HEAD or OPTIONS), whether it
    /// has one or not; the request's `body` is empty yet. With a sink it is an upload, and [`Handler::handle`] never
    /// hears of it: the body may be of any type and length, and is handed on piece by piece as it comes. With a
    /// response that is the answer, and the body is not read. None: the whole body, JSON, goes to `handle`.
    fn upload(&self, _head: &Request) -> Option<Result<Box<dyn Sink>, Response>> {
        None
    }
}

/// Where the body of an upload goes, on the thread of the connection. Dropped before it is finished: the body was cut
/// off, and nothing is to remain of it.
pub trait Sink: Send {
    /// Takes the next piece, of 64 KiB at most.
    ///
    /// # Errors
    /// What is answered at once; then the connection ends, whatever of the body is still to come.
    fn write(&mut self, piece: &[u8]) -> Result<(), Refusal>;

    /// The body was whole (it may have been empty): answers.
    fn finish(self: Box<Self>) -> Response;
}

impl<F: Fn(Request) -> Response + Send + Sync + 'static> Handler for F {
    fn handle(&self, request: Request) -> Response {
        self(request)
    }
}

/// The times and numbers that bound a server.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the first byte of a request to its last.
    pub message_timeout: Duration,
    /// How long nothing may come of an upload's body: it may take longer than a message.
    pub upload_idle_timeout: Duration,
    /// From an answer to the next request.
    pub idle_timeout: Duration,
    /// For 64 KiB of an answer.
    pub write_timeout: Duration,
    /// How often an event stream without events says that it lives.
    pub comment_every: Duration,
    /// Event streams at once; none: a quarter of the connections.
    pub event_streams: Option<usize>,
}

impl Default for Limits {
    /// Those of SPEC.md.
    fn default() -> Limits {
        Limits {
            message_timeout: Duration::from_secs(10),
            upload_idle_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(30),
            comment_every: Duration::from_secs(15),
            event_streams: None,
        }
    }
}

/// What a server stands on.
#[derive(Debug, Clone)]
pub struct Floor {
    /// Threads for connections.
    pub executor: Arc<Executor>,
    /// The bound of connections.
    pub limiter: Arc<ConnectionLimiter>,
    /// The bound of what was received and not yet handled.
    pub budget: Arc<Budget>,
    /// For those who begin with TLS; without it they are closed.
    pub identity: Option<Arc<Identity>>,
    /// Clients on other hosts may speak without TLS.
    pub plain_from_afar: bool,
    /// Which hosts and origins are good.
    pub rules: Rules,
    /// The bounds.
    pub limits: Limits,
}

/// What a server did so far.
#[derive(Debug, Default)]
pub struct HttpCounters {
    /// Requests of which at least the head came.
    pub requests: Counter,
    /// Those that never reached the handler.
    pub refused: Counter,
    /// Those that the handler has refused, or failed at.
    pub failed: Counter,
    /// Requests that were not complete in time.
    pub late: Counter,
    /// Uploads that were begun.
    pub uploads: Counter,
    /// Handlers that panicked.
    pub panics: Counter,
    /// Event streams that were opened.
    pub event_streams: Counter,
    /// Connections that failed.
    pub connections_failed: Counter,
}

impl HttpCounters {
    /// Every counter with its name.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("requests", self.requests.get()),
            ("requests_refused", self.refused.get()),
            ("requests_failed", self.failed.get()),
            ("requests_late", self.late.get()),
            ("uploads", self.uploads.get()),
            ("panics", self.panics.get()),
            ("event_streams", self.event_streams.get()),
            ("connections_failed", self.connections_failed.get()),
        ]
    }
}

/// What all connections of a server share.
struct Shared {
    handler: Arc<dyn Handler>,
    rules: Rules,
    limits: Limits,
    counters: Arc<HttpCounters>,
    streams: Arc<AtomicUsize>,
    streams_max: usize,
    /// Closed at the end, so that streams end too.
    stopped: Receiver<()>,
}

/// A running server.
pub struct HttpServer {
    listener: Listener,
    counters: Arc<HttpCounters>,
    streams: Arc<AtomicUsize>,
    streams_max: usize,
    /// Dropped at the end.
    running: Mutex<Option<Sender<()>>>,
}

impl HttpServer {
    /// Begins to serve.
    ///
    /// # Errors
    /// The system's, when it gives no thread.
    pub fn start(socket: TcpListener, floor: Floor, handler: Arc<dyn Handler>) -> io::Result<HttpServer> {
        let Floor { executor, limiter, budget, identity, plain_from_afar, rules, limits } = floor;
        let (counters, streams) = (Arc::new(HttpCounters::default()), Arc::new(AtomicUsize::new(0)));
        let (running, stopped) = bounded(0);
        let streams_max = limits.event_streams.unwrap_or(limiter.max_connections() / EVENT_STREAMS_SHARE).max(1);
        let shared = Shared {
            handler,
            rules,
            limits,
            counters: Arc::clone(&counters),
            streams: Arc::clone(&streams),
            streams_max,
            stopped,
        };
        let context = ListenerContext { executor, limiter, budget, identity, plain_from_afar };
        let listener = Listener::start(socket, context, Arc::new(Port(Arc::new(shared))))?;
        Ok(HttpServer { listener, counters, streams, streams_max, running: Mutex::new(Some(running)) })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Event streams that are open.
    pub fn event_streams(&self) -> usize {
        self.streams.load(Relaxed)
    }

    /// How many there may be.
    pub fn event_streams_max(&self) -> usize {
        self.streams_max
    }

    /// Every counter of the server and of the listener beneath it, with its name.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        [self.counters.list(), self.listener.counters()].concat()
    }

    /// Takes no more requests; those in hand may be finished within `grace`. Event streams end at once.
    pub fn stop(&self, grace: Duration) {
        drop(self.running.lock().take());
        let left = self.listener.stop(grace);
        if left > 0 {
            log::warn!("{left} HTTP requests were not finished");
        }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        drop(self.running.lock().take());
    }
}

/// The server as its listener sees it.
struct Port(Arc<Shared>);

impl Protocol for Port {
    fn busy(&self) -> Busy {
        answer::raw(StatusCode::SERVICE_UNAVAILABLE, "BUSY: too many connections; try again").into()
    }

    fn serve(&self, accepted: Accepted) {
        let (source, limits) = (accepted.source(), &self.0.limits);
        let connection = accepted.begin(limits.idle_timeout, limits.message_timeout).map_err(io::Error::other);
        if let Err(error) = connection.and_then(|connection| connection::serve(&self.0, connection)) {
            self.0.counters.connections_failed.add(1);
            log::debug!("HTTP from {source}: {error}");
        }
    }
}

impl fmt::Debug for HttpServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpServer").field("listener", &self.listener).finish_non_exhaustive()
    }
}
