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
use hyper::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};

use super::answer::{self, Refusal};
use super::body::{Outgoing, Place, Stream};
use super::connection::Wire;
use super::rules::Passed;
use super::{BODY_MAX, Body, Request, Response, Shared};
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

    /// What of the answer is known by the head alone, and the answer itself if that is known too.
    fn look(&self, parts: &Parts, body: &Incoming) -> (HeaderMap, Option<Response>) {
        if !self.may_speak {
            let reason = "from another host this port wants TLS";
            return (HeaderMap::new(), Some(answer::error(StatusCode::FORBIDDEN, reason)));
        }
        let headers = match self.server.rules.check(parts, self.is_tls) {
            Ok(Passed::On(headers)) => headers,
            Ok(Passed::Preflight(response)) => return (HeaderMap::new(), Some(response)),
            Err(refusal) => return (HeaderMap::new(), Some(refusal.into())),
        };
        let refusal = if body.is_end_stream() {
            None
        } else if body.size_hint().lower() > BODY_MAX as u64 {
            Some(too_long())
        } else if !is_json(&parts.headers) {
            Some(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body: expected content-type application/json"))
        } else {
            None
        };
        (headers, refusal.map(Response::from))
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
        let has_body = !body.is_end_stream();
        if has_body {
            self.wire.borrow_mut().body_follows(body.size_hint().exact());
        } else {
            self.wire.borrow_mut().request_is_whole();
        }
        let (headers, answer) = self.look(&parts, &body);
        if answer.as_ref().is_some_and(|answer| !answer.status.is_success()) {
            server.counters.refused.add(1);
        }
        Answering {
            wire: Rc::clone(&self.wire),
            stream: Arc::clone(&self.stream),
            source: self.source,
            parts: Some(parts),
            body,
            came: Vec::new(),
            headers,
            // Its body is not looked at any more: where the next request begins is not to be found out.
            is_last: answer.is_some() && has_body,
            answer,
            server,
        }
    }
}

/// A request's answer, once its body is there.
pub(super) struct Answering {
    server: Arc<Shared>,
    wire: Rc<RefCell<Wire>>,
    stream: Arc<TcpStream>,
    source: SocketAddr,
    parts: Option<Parts>,
    body: Incoming,
    came: Vec<u8>,
    /// For the answer, whatever it is.
    headers: HeaderMap,
    /// Nothing more is read after it.
    is_last: bool,
    /// The answer, if it was known by the head alone.
    answer: Option<Response>,
}

impl Future for Answering {
    type Output = Result<hyper::Response<Outgoing>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if this.answer.is_none()
            && let Err(refusal) = std::task::ready!(this.collect(context))
        {
            this.server.counters.refused.add(1);
            this.is_last = true;
            this.answer = Some(refusal.into());
        }
        let method = this.parts.as_ref().map(|parts| parts.method.clone()).unwrap_or_default();
        let response = match this.answer.take() {
            Some(response) => response,
            None => this.handle(),
        };
        Poll::Ready(Ok(this.finish(&method, response)))
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
            let length = self.came.len() + data.len();
            if length > BODY_MAX {
                return Poll::Ready(Err(too_long()));
            }
            if !self.wire.borrow_mut().may_hold(length) {
                let reason = "too much is being received at the moment; try again";
                return Poll::Ready(Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason)));
            }
            self.came.extend_from_slice(&data);
        }
    }

    fn handle(&mut self) -> Response {
        // There until now: an answer is made once.
        let Some(parts) = self.parts.take() else { return answer::not_found() };
        let request = Request {
            method: if parts.method == Method::HEAD { Method::GET } else { parts.method },
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            headers: parts.headers,
            body: std::mem::take(&mut self.came),
            source: self.source,
        };
        // Unwind safe as the jobs of an executor are: see `Executor::contain`.
        let handled = catch_unwind(AssertUnwindSafe(|| self.server.handler.handle(request)));
        self.wire.borrow_mut().was_handled();
        handled.unwrap_or_else(|panic| {
            self.server.counters.panics.add(1);
            log::error!("an HTTP request panicked: {}", panic_text(&*panic));
            answer::error(StatusCode::INTERNAL_SERVER_ERROR, "this request failed; others are not affected")
        })
    }

    fn finish(&mut self, method: &Method, response: Response) -> hyper::Response<Outgoing> {
        // Also when it never came to the handler.
        self.wire.borrow_mut().was_handled();
        self.wire.borrow_mut().answer_follows();
        let Response { status, mut headers, body } = response;
        let (status, body) = match body {
            Body::Bytes(bytes) => (status, Outgoing::Bytes(Some(Bytes::from(bytes)))),
            Body::Chunks(chunks) => (status, Outgoing::Chunks(chunks)),
            Body::Events(events) => match Place::take(&self.server.streams, self.server.limits.event_streams) {
                Some(place) if *method != Method::HEAD => {
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
                    let most = self.server.limits.event_streams;
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
            headers.insert(name, value.clone());
        }
        if self.is_last {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let mut answer = hyper::Response::new(body);
        (*answer.status_mut(), *answer.headers_mut()) = (status, headers);
        answer
    }
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
