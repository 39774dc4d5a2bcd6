//! A request on its way: the rules, then its body, then the handler, then its answer.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::net::{SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use hyper::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue,
    RANGE, VARY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};

use super::answer::{self, Refusal};
use super::body::{FilePart, Outgoing, Place, Stream};
use super::connection::{UPLOAD_READ_BYTES, Wire};
use super::rules::Passed;
use super::{BODY_MAX, Body, Request, Response, Shared, Sink, coding};
use crate::net::threads::panic_text;

/// What a connection has its requests answered by.
pub(super) struct Service {
    server: Arc<Shared>,
    wire: Rc<RefCell<Wire>>,
    stream: Arc<TcpStream>,
    source: SocketAddr,
    is_tls: bool,
    may_speak: bool,
}

impl Service {
    pub(super) fn new(
        server: Arc<Shared>,
        wire: Rc<RefCell<Wire>>,
        stream: Arc<TcpStream>,
        source: SocketAddr,
        (is_tls, may_speak): (bool, bool),
    ) -> Service {
        Service { server, wire, stream, source, is_tls, may_speak }
    }

    /// What becomes of a request by its head alone.
    fn look(&self, parts: Parts, body: &Incoming) -> Looked {
        let refused = |refusal: Refusal| Looked { headers: HeaderMap::new(), then: Then::Answer(refusal.into()) };
        if !self.may_speak {
            return refused(Refusal::new(StatusCode::FORBIDDEN, "from another host this port wants TLS"));
        }
        let headers = match self.server.rules.check(&parts, self.is_tls) {
            Ok(Passed::On(headers)) => headers,
            Ok(Passed::Preflight(response)) => {
                return Looked { headers: HeaderMap::new(), then: Then::Answer(response) };
            }
            Err(refusal) => return refused(refusal),
        };
        // Where a method gets and changes nothing there is nothing to be sent along either, unless somebody does.
        let is_read = matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS);
        let may_upload = !is_read || !body.is_end_stream();
        let mut request = Request {
            method: if parts.method == Method::HEAD { Method::GET } else { parts.method.clone() },
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            headers: parts.headers,
            body: Vec::new(),
            source: self.source,
        };
        if parts.method == Method::HEAD {
            // Parts are of what GET sends alone (RFC 9110, 14.2).
            request.headers.remove(RANGE);
        }
        let taken = may_upload.then(|| self.server.contain(|| self.server.handler.upload(&request))).transpose();
        let then = match taken.map(Option::flatten) {
            Err(panicked) => Then::Answer(panicked.into()),
            Ok(Some(Err(response))) => Then::Answer(response),
            Ok(Some(Ok(sink))) => match check_upload(&request.headers) {
                Ok(()) => Then::Take(sink),
                Err(refusal) => Then::Answer(refusal.into()),
            },
            Ok(None) => match check_body(&request.headers, body) {
                Ok(()) => Then::Handle(request),
                Err(refusal) => Then::Answer(refusal.into()),
            },
        };
        Looked { headers, then }
    }
}

/// What a request's head says.
struct Looked {
    /// For the answer, whatever it is.
    headers: HeaderMap,
    then: Then,
}

/// What is to be done with a request.
enum Then {
    /// The answer is known.
    Answer(Response),
    /// Its body goes there, piece by piece.
    Take(Box<dyn Sink>),
    /// It is handled once its body is there.
    Handle(Request),
    /// Nothing: it was answered.
    Done,
}

/// Whether an upload's body is what is to be kept.
fn check_upload(headers: &HeaderMap) -> Result<(), Refusal> {
    if headers.contains_key(CONTENT_RANGE) {
        // RFC 9110, 14.5: taken for the whole, a part would replace it.
        return Err(Refusal::bad("Content-Range: a file is taken as a whole, not in parts"));
    }
    let is_plain = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if !headers.get_all(CONTENT_ENCODING).iter().all(is_plain) {
        let reason = "Content-Encoding: what is sent is kept as it comes, so send it without";
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason));
    }
    Ok(())
}

/// Whether the body of a request that is none is one that is read.
fn check_body(headers: &HeaderMap, body: &Incoming) -> Result<(), Refusal> {
    if body.is_end_stream() {
        Ok(())
    } else if body.size_hint().lower() > BODY_MAX as u64 {
        Err(too_long())
    } else if !is_json(headers) {
        Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body: expected content-type application/json"))
    } else {
        Ok(())
    }
}

impl Shared {
    /// What comes of it, also when it panics: that ends no other request.
    ///
    /// Unwind safe as the jobs of an executor are: see `Executor::contain`.
    fn contain<T>(&self, work: impl FnOnce() -> T) -> Result<T, Refusal> {
        catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
            self.counters.panics.add(1);
            log::error!("an HTTP request panicked: {}", panic_text(&*panic));
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "this request failed; others are not affected")
        })
    }
}

impl hyper::service::Service<hyper::Request<Incoming>> for Service {
    type Response = hyper::Response<Outgoing>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: hyper::Request<Incoming>) -> Answering {
        let server = Arc::clone(&self.server);
        server.counters.requests.add(1);
        let (parts, body) = request.into_parts();
        let method = parts.method.clone();
        let accepts_gzip = coding::accepts_gzip(&parts.headers);
        let has_body = !body.is_end_stream();
        if has_body {
            self.wire.borrow_mut().body_follows(body.size_hint().exact());
        } else {
            self.wire.borrow_mut().request_is_whole();
        }
        let Looked { headers, mut then } = self.look(parts, &body);
        if let Then::Take(_) = then
            && has_body
        {
            server.counters.uploads.add(1);
            let mut wire = self.wire.borrow_mut();
            if wire.may_hold(UPLOAD_READ_BYTES) {
                wire.upload_follows();
            } else {
                then = Then::Answer(too_much().into());
            }
        }
        let is_answered = match &then {
            Then::Answer(answer) => {
                if !answer.status.is_success() {
                    server.counters.refused.add(1);
                }
                true
            }
            _ => false,
        };
        Answering {
            wire: Rc::clone(&self.wire),
            stream: Arc::clone(&self.stream),
            method,
            accepts_gzip,
            body,
            came: Vec::new(),
            headers,
            // Its body is not looked at any more: where the next request begins is not to be found out.
            is_last: is_answered && has_body,
            then,
            server,
        }
    }
}

/// A request's answer, once its body is there.
pub(super) struct Answering {
    server: Arc<Shared>,
    wire: Rc<RefCell<Wire>>,
    stream: Arc<TcpStream>,
    method: Method,
    accepts_gzip: bool,
    body: Incoming,
    came: Vec<u8>,
    /// For the answer, whatever it is.
    headers: HeaderMap,
    /// Nothing more is read after it.
    is_last: bool,
    then: Then,
}

impl Future for Answering {
    type Output = Result<hyper::Response<Outgoing>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if !matches!(this.then, Then::Answer(_))
            && let Err(refusal) = std::task::ready!(this.collect(context))
        {
            this.server.counters.refused.add(1);
            this.is_last = true;
            // What was begun is undone before that is told.
            this.then = Then::Answer(refusal.into());
        }
        let was_refused = matches!(this.then, Then::Answer(_));
        let response = match std::mem::replace(&mut this.then, Then::Done) {
            Then::Answer(response) => response,
            Then::Take(sink) => this.server.contain(|| sink.finish()).unwrap_or_else(Response::from),
            Then::Handle(request) => this.handle(request),
            // An answer is made once.
            Then::Done => answer::not_found(),
        };
        let answer = this.finish(response);
        // Each is counted once.
        if !was_refused && (answer.status().is_client_error() || answer.status().is_server_error()) {
            this.server.counters.failed.add(1);
        }
        Poll::Ready(Ok(answer))
    }
}

impl Answering {
    fn collect(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        loop {
            let frame = match std::task::ready!(Pin::new(&mut self.body).poll_frame(context)) {
                None => {
                    self.wire.borrow_mut().body_is_whole();
                    return Poll::Ready(Ok(()));
                }
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Err(Refusal::bad(format!("the body: {error}")))),
            };
            // Trailers mean nothing here.
            let Ok(data) = frame.into_data() else { continue };
            let taken = match &mut self.then {
                Then::Take(sink) => self.server.contain(|| sink.write(&data)).flatten(),
                _ => self.hold(&data),
            };
            if taken.is_err() {
                return Poll::Ready(taken);
            }
        }
    }

    /// Keeps what came of a body until all of it is there.
    fn hold(&mut self, data: &[u8]) -> Result<(), Refusal> {
        let length = self.came.len() + data.len();
        if length > BODY_MAX {
            return Err(too_long());
        }
        if !self.wire.borrow_mut().may_hold(length) {
            return Err(too_much());
        }
        self.came.extend_from_slice(data);
        Ok(())
    }

    fn handle(&mut self, mut request: Request) -> Response {
        request.body = std::mem::take(&mut self.came);
        let handled = self.server.contain(|| self.server.handler.handle(request));
        self.wire.borrow_mut().was_handled();
        handled.unwrap_or_else(Response::from)
    }

    fn finish(&mut self, response: Response) -> hyper::Response<Outgoing> {
        // Also when it never came to the handler.
        self.wire.borrow_mut().was_handled();
        self.wire.borrow_mut().answer_follows();
        let Response { status, mut headers, body } = response;
        let (status, body) = match body {
            Body::Bytes(bytes) => {
                let bytes = coding::encode(self.accepts_gzip, &mut headers, bytes);
                (status, Outgoing::Bytes(Some(Bytes::from(bytes))))
            }
            Body::Chunks(chunks) => (status, Outgoing::Chunks(chunks)),
            Body::File { file, offset, length } => {
                // Told also where the head alone is asked for, and where nothing follows.
                headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
                (status, Outgoing::File(FilePart::new(file, offset, length)))
            }
            Body::Events(events) => match Place::take(&self.server.streams, self.server.streams_max) {
                Some(place) if self.method != Method::HEAD => {
                    self.server.counters.event_streams.add(1);
                    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
                    // A proxy that gathers an answer before it hands it on would keep all of it.
                    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
                    let stream = Stream {
                        greets: true,
                        events,
                        stopped: self.server.stopped.clone(),
                        comment_every: self.server.limits.comment_every,
                        spoke_at: Instant::now(),
                        is_flushed: false,
                        client: Arc::clone(&self.stream),
                        _place: place,
                    };
                    (status, Outgoing::Events(Box::new(stream)))
                }
                Some(_) => {
                    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
                    (status, Outgoing::Bytes(None))
                }
                None => {
                    let most = self.server.streams_max;
                    let refused = answer::error(
                        StatusCode::SERVICE_UNAVAILABLE,
                        &format!("{most} event streams are open already; try again"),
                    );
                    headers = refused.headers;
                    (refused.status, Outgoing::Bytes(refused.body.as_bytes().map(Bytes::copy_from_slice)))
                }
            },
        };
        // Handlers say only what is special.
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        headers.entry(X_CONTENT_TYPE_OPTIONS).or_insert(HeaderValue::from_static("nosniff"));
        for (name, value) in &self.headers {
            if name == VARY {
                coding::vary(&mut headers, value);
            } else {
                headers.insert(name, value.clone());
            }
        }
        if self.is_last {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let mut answer = hyper::Response::new(body);
        (*answer.status_mut(), *answer.headers_mut()) = (status, headers);
        answer
    }
}

fn too_much() -> Refusal {
    let reason = "too much is being received at the moment; try again";
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason)
}

fn too_long() -> Refusal {
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is longer than {BODY_MAX} bytes"))
}

fn is_json(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/json")
}
