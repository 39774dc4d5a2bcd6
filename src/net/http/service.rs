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

use super::body::{EventStreamBody, FileRange, ResponseBody};
use super::policy::PolicyOutcome;
use super::response::{self, HttpError};
use super::wire_state::{UPLOAD_READ_BYTES, WireState};
use super::{BODY_MAX_BYTES, Body, BodySink, HttpServerInner, Request, Response, compression};
use crate::net::threads::panic_text;

/// Responds to the requests of one connection.
pub(super) struct RequestService {
    pub(super) server: Arc<HttpServerInner>,
    pub(super) wire: Rc<RefCell<WireState>>,
    pub(super) stream: Arc<TcpStream>,
    pub(super) source: SocketAddr,
    pub(super) is_tls: bool,
    pub(super) is_transport_allowed: bool,
}

impl RequestService {
    /// The headers that the response gets, whatever it is, and what to do with the request.
    fn examine_head(&self, parts: Parts, body: &Incoming) -> (HeaderMap, NextStep) {
        let respond_with = |response: Response| (HeaderMap::new(), NextStep::Respond(response));
        if !self.is_transport_allowed {
            let error = HttpError::new(StatusCode::FORBIDDEN, "from another host this port wants TLS");
            return respond_with(error.into());
        }
        let headers = match self.server.policy.check(&parts, self.is_tls) {
            Ok(PolicyOutcome::Proceed(headers)) => headers,
            Ok(PolicyOutcome::Preflight(response)) => return respond_with(response),
            Err(error) => return respond_with(error.into()),
        };
        // A method that changes nothing has no body, unless the client sends one.
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
            // Ranges apply to GET alone (RFC 9110, 14.2).
            request.headers.remove(RANGE);
        }
        let taken = may_upload.then(|| self.server.catch_panic(|| self.server.handler.upload(&request))).transpose();
        let next_step = match taken.map(Option::flatten) {
            Err(panicked) => Err(panicked),
            Ok(Some(Err(response))) => Ok(NextStep::Respond(response)),
            Ok(Some(Ok(sink))) => check_upload(&request.headers).map(|()| NextStep::Upload(sink)),
            Ok(None) => check_body(&request.headers, body).map(|()| NextStep::Handle(request)),
        };
        (headers, next_step.unwrap_or_else(|error| NextStep::Respond(error.into())))
    }
}

enum NextStep {
    Respond(Response),
    /// The body goes to the sink, piece by piece.
    Upload(Box<dyn BodySink>),
    /// The handler is called once the body is complete.
    Handle(Request),
    /// The response was made.
    Done,
}

/// The body must be the whole file, unencoded.
fn check_upload(headers: &HeaderMap) -> Result<(), HttpError> {
    if headers.contains_key(CONTENT_RANGE) {
        // RFC 9110, 14.5: taken for the whole file, a part would replace it.
        return Err(HttpError::bad_request("Content-Range: a file is taken as a whole, not in parts"));
    }
    let is_plain = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if !headers.get_all(CONTENT_ENCODING).iter().all(is_plain) {
        let reason = "Content-Encoding: what is sent is kept as it comes, so send it without";
        return Err(HttpError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason));
    }
    Ok(())
}

/// Whether the body of a request that is not an upload can be read.
fn check_body(headers: &HeaderMap, body: &Incoming) -> Result<(), HttpError> {
    if body.is_end_stream() {
        Ok(())
    } else if body.size_hint().lower() > BODY_MAX_BYTES as u64 {
        Err(body_too_long())
    } else if !is_json(headers) {
        Err(HttpError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body: expected content-type application/json"))
    } else {
        Ok(())
    }
}

impl HttpServerInner {
    /// A panic becomes an error and ends no other request. Unwind safe for the same reason as `Executor::catch_panic`.
    fn catch_panic<T>(&self, work: impl FnOnce() -> T) -> Result<T, HttpError> {
        catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
            self.counters.panics.add(1);
            log::error!("an HTTP request panicked: {}", panic_text(&*panic));
            HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, "this request failed; others are not affected")
        })
    }
}

impl hyper::service::Service<hyper::Request<Incoming>> for RequestService {
    type Response = hyper::Response<ResponseBody>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn call(&self, request: hyper::Request<Incoming>) -> ResponseFuture {
        let server = Arc::clone(&self.server);
        server.counters.requests.add(1);
        let (parts, body) = request.into_parts();
        let method = parts.method.clone();
        let accepts_gzip = compression::accepts_gzip(&parts.headers);
        let has_body = !body.is_end_stream();
        if has_body {
            self.wire.borrow_mut().begin_body(body.size_hint().exact());
        } else {
            self.wire.borrow_mut().end_request();
        }
        let (headers, mut next_step) = self.examine_head(parts, &body);
        if let NextStep::Upload(_) = next_step
            && has_body
        {
            server.counters.uploads.add(1);
            let mut wire = self.wire.borrow_mut();
            if wire.reservation.grow_to(UPLOAD_READ_BYTES) {
                wire.begin_upload();
            } else {
                next_step = NextStep::Respond(busy_error().into());
            }
        }
        if let NextStep::Respond(response) = &next_step
            && !response.status.is_success()
        {
            server.counters.refused.add(1);
        }
        ResponseFuture {
            wire: Rc::clone(&self.wire),
            stream: Arc::clone(&self.stream),
            method,
            accepts_gzip,
            body,
            body_bytes: Vec::new(),
            headers,
            // Its body is not read, so the start of the next request cannot be found.
            closes_connection: has_body && matches!(next_step, NextStep::Respond(_)),
            next_step,
            server,
        }
    }
}

pub(super) struct ResponseFuture {
    server: Arc<HttpServerInner>,
    wire: Rc<RefCell<WireState>>,
    stream: Arc<TcpStream>,
    method: Method,
    accepts_gzip: bool,
    body: Incoming,
    body_bytes: Vec<u8>,
    /// The response gets these, whatever it is.
    headers: HeaderMap,
    /// Nothing more is read after this request.
    closes_connection: bool,
    next_step: NextStep,
}

impl Future for ResponseFuture {
    type Output = Result<hyper::Response<ResponseBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if !matches!(this.next_step, NextStep::Respond(_))
            && let Err(error) = std::task::ready!(this.poll_body(context))
        {
            this.server.counters.refused.add(1);
            this.closes_connection = true;
            // This drops the sink, which undoes what was begun before the response is sent.
            this.next_step = NextStep::Respond(error.into());
        }
        let was_refused = matches!(this.next_step, NextStep::Respond(_));
        let response = match std::mem::replace(&mut this.next_step, NextStep::Done) {
            NextStep::Respond(response) => response,
            NextStep::Upload(sink) => this.server.catch_panic(|| sink.finish()).unwrap_or_else(Response::from),
            NextStep::Handle(request) => this.handle(request),
            // Not reached: a response is made once.
            NextStep::Done => response::not_found(),
        };
        let response = this.hyper_response(response);
        // Each request is counted once.
        if !was_refused && (response.status().is_client_error() || response.status().is_server_error()) {
            this.server.counters.failed.add(1);
        }
        Poll::Ready(Ok(response))
    }
}

impl ResponseFuture {
    fn poll_body(&mut self, context: &mut Context<'_>) -> Poll<Result<(), HttpError>> {
        loop {
            let frame = match std::task::ready!(Pin::new(&mut self.body).poll_frame(context)) {
                None => {
                    self.wire.borrow_mut().end_body();
                    return Poll::Ready(Ok(()));
                }
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Err(HttpError::bad_request(format!("the body: {error}")))),
            };
            // Trailers are ignored.
            let Ok(data) = frame.into_data() else { continue };
            let taken = match &mut self.next_step {
                NextStep::Upload(sink) => self.server.catch_panic(|| sink.write(&data)).flatten(),
                _ => self.append_to_body(&data),
            };
            if taken.is_err() {
                return Poll::Ready(taken);
            }
        }
    }

    fn append_to_body(&mut self, data: &[u8]) -> Result<(), HttpError> {
        let length = self.body_bytes.len() + data.len();
        if length > BODY_MAX_BYTES {
            return Err(body_too_long());
        }
        if !self.wire.borrow_mut().reservation.grow_to(length) {
            return Err(busy_error());
        }
        self.body_bytes.extend_from_slice(data);
        Ok(())
    }

    fn handle(&mut self, mut request: Request) -> Response {
        request.body = std::mem::take(&mut self.body_bytes);
        let handled = self.server.catch_panic(|| self.server.handler.handle(request));
        self.wire.borrow_mut().reservation.release();
        handled.unwrap_or_else(Response::from)
    }

    fn hyper_response(&mut self, response: Response) -> hyper::Response<ResponseBody> {
        // Also when the handler was not called.
        self.wire.borrow_mut().reservation.release();
        self.wire.borrow_mut().expect_response = true;
        let Response { status, mut headers, body } = response;
        let (status, body) = match body {
            Body::Bytes(bytes) => {
                let bytes = compression::compress(self.accepts_gzip, &mut headers, bytes);
                (status, ResponseBody::Bytes(Some(Bytes::from(bytes))))
            }
            Body::Chunks(chunks) => (status, ResponseBody::Chunks(chunks)),
            Body::File { file, offset, length } => {
                // Also for HEAD, and for an empty range.
                headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
                (status, ResponseBody::File(FileRange::new(file, offset, length)))
            }
            Body::Events(events) => match self.server.stream_permits.try_acquire() {
                Some(permit) if self.method != Method::HEAD => {
                    self.server.counters.event_streams.add(1);
                    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
                    // A proxy that buffers a response before it forwards it would hold back all events.
                    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
                    let stream = EventStreamBody {
                        opens_with_comment: true,
                        events,
                        stopped: self.server.stopped.clone(),
                        comment_interval: self.server.limits.comment_interval,
                        last_write_at: Instant::now(),
                        is_flushed: false,
                        client: Arc::clone(&self.stream),
                        _permit: permit,
                    };
                    (status, ResponseBody::Events(Box::new(stream)))
                }
                Some(_) => {
                    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
                    (status, ResponseBody::Bytes(None))
                }
                None => {
                    let most = self.server.stream_permits.max();
                    let refused = response::error(
                        StatusCode::SERVICE_UNAVAILABLE,
                        &format!("{most} event streams are open already; try again"),
                    );
                    headers = refused.headers;
                    (refused.status, ResponseBody::Bytes(refused.body.as_bytes().map(Bytes::copy_from_slice)))
                }
            },
        };
        // Handlers set only what differs from these defaults.
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        headers.entry(X_CONTENT_TYPE_OPTIONS).or_insert(HeaderValue::from_static("nosniff"));
        for (name, value) in &self.headers {
            if name == VARY {
                compression::add_vary(&mut headers, value);
            } else {
                headers.insert(name, value.clone());
            }
        }
        if self.closes_connection {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let mut response = hyper::Response::new(body);
        (*response.status_mut(), *response.headers_mut()) = (status, headers);
        response
    }
}

fn busy_error() -> HttpError {
    let reason = "too much is being received at the moment; try again";
    HttpError::new(StatusCode::SERVICE_UNAVAILABLE, reason)
}

fn body_too_long() -> HttpError {
    HttpError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is longer than {BODY_MAX_BYTES} bytes"))
}

fn is_json(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/json")
}
