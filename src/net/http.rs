//! An HTTP/1.1 server on plain threads: hyper parses and writes, and each connection has a thread to itself, which
//! also handles its requests, one after the other.
//!
//! The rules are those for both HTTP APIs in `docs/spec/share.md`. What is refused here never reaches the handler: the
//! statuses that every API has there, and 408 for an upload that stalls, 503 for too many event streams or too much
//! received and not yet handled. Uploads may have any length and type, but no Content-Range and no encoding.

mod body;
mod compression;
mod connection;
pub mod event_hub;
mod file;
mod policy;
mod response;
pub mod routes;
mod service;
#[cfg(test)]
mod tests;
mod wire_state;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use super::counters::counters;
use super::listener::{AcceptedConnection, BusyResponse, ConnectionHandler, Listener, ListenerContext};
use super::permits::Permits;

pub use body::{Body, EventStream};
pub use compression::accepts_gzip;
pub use file::{FileMetadata, content_disposition, if_none_match, serve_file};
pub use hyper::header;
pub use hyper::header::{HeaderMap, HeaderValue};
pub use hyper::{Method, StatusCode};
pub use policy::{RequestPolicy, parse_allowed_origin, parse_host_name};
pub use response::{
    HttpError, JsonFields, bearer, error, json, method_not_allowed, not_found, path_segments, query_pairs, success,
};
pub use routes::{HandlerResult, RouteCall};

/// The longest body of a request that is not an upload.
pub const BODY_MAX_BYTES: usize = 1 << 20;
/// The longest request line and headers together.
pub const HEAD_MAX_BYTES: usize = 16 * 1024;
/// A quarter of the connections may be event streams, which are long-lived.
const EVENT_STREAMS_DIVISOR: usize = 4;

/// The policy accepted it, and its whole body is there.
#[derive(Debug)]
pub struct Request {
    /// GET also stands for HEAD: the server sends the same response without its body.
    pub method: Method,
    /// As sent, with its `%XX`: see [`path_segments`].
    pub path: String,
    /// What follows the `?`: see [`query_pairs`].
    pub query: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub source: SocketAddr,
}

#[derive(Debug)]
pub struct Response {
    pub status: StatusCode,
    /// All headers but those that the connection itself needs.
    pub headers: HeaderMap,
    pub body: Body,
}

impl Response {
    pub fn new(status: StatusCode, content_type: &'static str, body: impl Into<Vec<u8>>) -> Response {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        Response { status, headers, body: Body::Bytes(body.into()) }
    }

    #[must_use]
    pub fn with(mut self, name: header::HeaderName, value: HeaderValue) -> Response {
        self.headers.insert(name, value);
        self
    }
}

pub trait HttpHandler: Send + Sync + 'static {
    /// A panic becomes status 500 and affects nothing else.
    fn handle(&self, request: Request) -> Response;

    /// What to do with the body of a request whose method changes something (not GET, HEAD or OPTIONS), or which has a
    /// body; `body` is still empty:
    ///
    /// - a sink: the request is an upload. Its body may have any type and length, and goes to the sink piece by
    ///   piece; [`HttpHandler::handle`] is not called.
    /// - a response: it is sent, and the body is not read.
    /// - `None`: the whole body, which must be JSON, goes to `handle`.
    fn upload(&self, _head: &Request) -> Option<Result<Box<dyn BodySink>, Response>> {
        None
    }
}

/// Receives an upload, on the thread of the connection. If it is dropped before `finish`, the body was cut off and
/// nothing of it may remain.
pub trait BodySink: Send {
    /// Takes the next piece, of 64 KiB at most. An error is sent at once; then the connection ends, whatever of the
    /// body is still to come.
    fn write(&mut self, piece: &[u8]) -> Result<(), HttpError>;

    /// The body is complete (it may be empty).
    fn finish(self: Box<Self>) -> Response;
}

impl<F: Fn(Request) -> Response + Send + Sync + 'static> HttpHandler for F {
    fn handle(&self, request: Request) -> Response {
        self(request)
    }
}

#[derive(Debug, Clone, Copy)]
pub struct HttpLimits {
    /// From the first byte of a request to its last.
    pub message_timeout: Duration,
    /// An upload must not stall for longer; as a whole it may take longer than `message_timeout`.
    pub upload_idle_timeout: Duration,
    /// From a response to the next request.
    pub idle_timeout: Duration,
    /// For 64 KiB of a response.
    pub write_timeout: Duration,
    /// An event stream without events sends a comment so often, as a sign of life.
    pub comment_interval: Duration,
    /// `None` stands for a quarter of the connections.
    pub event_streams: Option<usize>,
}

impl Default for HttpLimits {
    /// The limits of `docs/spec/share.md`.
    fn default() -> HttpLimits {
        HttpLimits {
            message_timeout: Duration::from_secs(10),
            upload_idle_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(30),
            comment_interval: Duration::from_secs(15),
            event_streams: None,
        }
    }
}

#[derive(Debug, Clone)]
pub struct HttpContext {
    pub listener: ListenerContext,
    pub policy: RequestPolicy,
    pub limits: HttpLimits,
}

counters! {
    pub struct HttpCounters {
        /// Requests whose head was received.
        requests,
        /// Requests that never reached the handler.
        refused = "requests_refused",
        /// Requests that the handler answered with an error.
        failed = "requests_failed",
        /// Requests that were not complete in time.
        timed_out = "requests_late",
        uploads,
        panics,
        event_streams,
        connections_failed,
    }
}

struct HttpServerInner {
    handler: Arc<dyn HttpHandler>,
    policy: RequestPolicy,
    limits: HttpLimits,
    counters: Arc<HttpCounters>,
    stream_permits: Permits,
    /// Disconnected when the server stops, so that event streams end.
    stopped: Receiver<()>,
}

#[derive(Debug)]
pub struct HttpServer {
    listener: Listener,
    counters: Arc<HttpCounters>,
    stream_permits: Permits,
    /// Dropped when the server stops, which disconnects `stopped`.
    running: Mutex<Option<Sender<()>>>,
}

impl HttpServer {
    pub fn start(socket: TcpListener, context: HttpContext, handler: Arc<dyn HttpHandler>) -> io::Result<HttpServer> {
        let HttpContext { listener: context, policy, limits } = context;
        let counters = Arc::new(HttpCounters::default());
        let (running, stopped) = bounded(0);
        let streams_max =
            limits.event_streams.unwrap_or(context.limiter.max_connections() / EVENT_STREAMS_DIVISOR).max(1);
        let stream_permits = Permits::new(streams_max);
        let inner = HttpServerInner {
            handler,
            policy,
            limits,
            counters: Arc::clone(&counters),
            stream_permits: stream_permits.clone(),
            stopped,
        };
        let listener = Listener::start(socket, context, Arc::new(HttpConnectionHandler(Arc::new(inner))))?;
        Ok(HttpServer { listener, counters, stream_permits, running: Mutex::new(Some(running)) })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    pub fn event_streams(&self) -> usize {
        self.stream_permits.in_use()
    }

    #[cfg(test)]
    pub fn event_streams_max(&self) -> usize {
        self.stream_permits.max()
    }

    /// The counters of the server and of its listener.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        [self.counters.list(), self.listener.counters()].concat()
    }

    /// Requests in progress may be finished within `grace`. Event streams end at once.
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

struct HttpConnectionHandler(Arc<HttpServerInner>);

impl ConnectionHandler for HttpConnectionHandler {
    fn busy_response(&self) -> BusyResponse {
        response::raw_error(StatusCode::SERVICE_UNAVAILABLE, "BUSY: too many connections; try again").into()
    }

    fn serve(&self, accepted: AcceptedConnection) {
        let (source, limits) = (accepted.source(), &self.0.limits);
        let connection = accepted.negotiate(limits.idle_timeout, limits.message_timeout).map_err(io::Error::other);
        if let Err(error) = connection.and_then(|connection| connection::serve(&self.0, connection)) {
            self.0.counters.connections_failed.add(1);
            log::debug!("HTTP from {source}: {error}");
        }
    }
}
