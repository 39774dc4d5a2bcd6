//! A connection's thread: hyper's futures, driven over a blocking stream.
//!
//! Reading would deadlock if it were done where hyper asks for it: it would wait for the client while the response to
//! an earlier request is still to be written. So hyper only gets what is in the inbox, and is told to wait otherwise.
//! When it waits and nothing has woken it, there is nothing left to do but to read: then, and only then, the thread
//! waits for the socket. Writing blocks where hyper asks for it.

use std::cell::RefCell;
use std::io::{self, ErrorKind, IoSlice};
use std::net::TcpStream;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use hyper::StatusCode;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;

use super::service::RequestService;
use super::{HEAD_MAX_BYTES, HttpLimits, HttpServerInner, response};
use crate::net::budget::Reservation;
use crate::net::conn::{ConnReader, ConnWriter};
use crate::net::deadline::DeadlineRead;
use crate::net::listener::{NegotiatedConnection, Permit};

/// What is read at a time: little between requests, because an idle connection must cost little.
const FIRST_READ_BYTES: usize = 2048;
const NEXT_READ_BYTES: usize = 16 * 1024;
/// What is read at a time of an upload's body. It is taken from the receive budget.
pub(super) const UPLOAD_READ_BYTES: usize = 64 * 1024;
/// What is written under one deadline.
const WRITE_BYTES: usize = 64 * 1024;
/// What is copied together with what follows it rather than written alone: without Nagle's algorithm two writes are
/// two packets. Longer pieces are written from where they are.
const GATHER_BYTES: usize = 16 * 1024;
/// The limit of hyper's buffer for a head or a response.
const BUFFER_BYTES: usize = 64 * 1024;
/// What of a request's head is not taken from the receive budget: common heads are shorter.
const UNBUDGETED_HEAD_BYTES: usize = 4 * 1024;
/// How long a connection that we close is read on, so that the client can read our last message.
const LINGER: Duration = Duration::from_secs(2);

/// The part of a request that the next bytes for hyper belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadPhase {
    Head,
    /// A body of known length, with the number of bytes left.
    Body(u64),
    /// A body in chunks.
    Chunks,
}

/// The state of a connection that its thread, hyper's view of the stream and the service share.
pub(super) struct WireState {
    writer: ConnWriter,
    write_timeout: Duration,
    /// The read buffer: `inbox[consumed..filled]` was received and not given to hyper yet.
    inbox: Vec<u8>,
    filled: usize,
    consumed: usize,
    has_ended: bool,
    phase: ReadPhase,
    /// In a head: how much of the blank line that ends it was given to hyper.
    newline: Newline,
    /// A request was begun and is not complete.
    is_in_request: bool,
    /// When the request must be complete, set once the thread waits for it.
    request_deadline: Option<Instant>,
    /// The body is an upload's: it may take any time, as long as it does not stall.
    is_upload: bool,
    /// Bytes of the head that hyper was given and has not parsed into a request.
    head_bytes: usize,
    /// For what was received and not handled.
    reservation: Reservation,
    /// What is written next is a response of ours.
    expect_response: bool,
    /// Output that may be hyper's own error response, held back until that is known.
    held_back: Vec<u8>,
    /// The connection may be evicted until a request is complete.
    permit: Permit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Newline {
    None,
    Lf,
    LfCr,
}

impl WireState {
    /// The next bytes for hyper: never past the end of a head, so that it is known what hyper waits for.
    fn next_bytes(&mut self, most: usize) -> Range<usize> {
        let rest = &self.inbox[self.consumed..self.filled];
        let rest = &rest[..rest.len().min(most)];
        let len = match self.phase {
            ReadPhase::Head => {
                let mut len = 0;
                for byte in rest {
                    len += 1;
                    self.newline = match (byte, self.newline) {
                        (b'\n', Newline::None) => Newline::Lf,
                        (b'\r', Newline::Lf) => Newline::LfCr,
                        (b'\n', _) => {
                            self.newline = Newline::None;
                            break;
                        }
                        _ => Newline::None,
                    };
                }
                self.is_in_request |= len > 0;
                self.head_bytes += len;
                len
            }
            ReadPhase::Body(left) => {
                let len = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let left = left - len as u64;
                if left == 0 {
                    self.end_request();
                } else {
                    self.phase = ReadPhase::Body(left);
                }
                len
            }
            ReadPhase::Chunks => rest.len(),
        };
        let range = self.consumed..self.consumed + len;
        self.consumed = range.end;
        range
    }

    /// The head is complete, and a body follows: of known length or in chunks.
    pub(super) fn begin_body(&mut self, length: Option<u64>) {
        (self.phase, self.head_bytes) = (length.map_or(ReadPhase::Chunks, ReadPhase::Body), 0);
    }

    /// The body that follows is an upload. The connection is not evicted from now on: what was sent of a long body
    /// would be lost.
    pub(super) fn begin_upload(&mut self) {
        self.is_upload = true;
        // An evicted connection fails at the next read.
        let _ = self.permit.mark_request_completed();
    }

    /// The request is complete.
    pub(super) fn end_request(&mut self) {
        (self.phase, self.is_in_request, self.request_deadline, self.head_bytes) = (ReadPhase::Head, false, None, 0);
        self.is_upload = false;
        // An evicted connection fails when its response is written.
        let _ = self.permit.mark_request_completed();
    }

    /// Reserves room for a body of `bytes` in the receive budget.
    pub(super) fn try_reserve(&mut self, bytes: usize) -> bool {
        self.reservation.grow_to(bytes)
    }

    /// The request was handled: nothing of it is kept.
    pub(super) fn release_reservation(&mut self) {
        self.reservation.release();
    }

    /// Reserves room for what was received of a head.
    fn try_reserve_head(&mut self) -> bool {
        self.head_bytes <= UNBUDGETED_HEAD_BYTES || self.reservation.grow_to(self.head_bytes)
    }

    /// A response was made: what is written next is not hyper's own error response.
    pub(super) fn expect_response(&mut self) {
        self.expect_response = true;
    }

    /// Whether this may be hyper's own response to a malformed request: a status without a body. Hyper writes it when
    /// a head was begun and no response of ours is due.
    fn may_be_parse_error(&mut self, bytes: &[u8]) -> bool {
        let is_ours = std::mem::take(&mut self.expect_response);
        !is_ours
            && self.phase == ReadPhase::Head
            && self.is_in_request
            && bytes.starts_with(b"HTTP/1.")
            && bytes.get(9) == Some(&b'4')
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_held_back()?;
        if self.may_be_parse_error(bytes) {
            self.held_back = bytes.to_vec();
            return Ok(());
        }
        self.writer.write_all(bytes, Instant::now() + self.write_timeout)
    }

    /// Writes what was held back: it was not an error response after all.
    fn write_held_back(&mut self) -> io::Result<()> {
        if self.held_back.is_empty() {
            return Ok(());
        }
        self.writer.write_all(&std::mem::take(&mut self.held_back), Instant::now() + self.write_timeout)
    }

    /// The status of hyper's error response, once hyper has reported that it ends because of a parse error.
    fn take_parse_error_status(&mut self) -> Option<StatusCode> {
        let held_back = std::mem::take(&mut self.held_back);
        StatusCode::from_bytes(held_back.get(9..12)?).ok()
    }

    /// Like `end_request`, called by the reader of the body: only it sees the end of a body in chunks, or of one that
    /// hyper was given together with the chunks before it.
    pub(super) fn end_body(&mut self) {
        if self.phase != ReadPhase::Head {
            self.end_request();
        }
    }
}

/// The stream as hyper sees it.
struct HyperIo(Rc<RefCell<WireState>>);

impl Read for HyperIo {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, mut buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.0.borrow_mut();
        let range = wire.next_bytes(buffer.remaining());
        if range.is_empty() {
            return if wire.has_ended { Poll::Ready(Ok(())) } else { Poll::Pending };
        }
        buffer.put_slice(&wire.inbox[range]);
        if wire.consumed == wire.filled {
            (wire.filled, wire.consumed) = (0, 0);
            // A connection that waits for long must cost little; an upload goes on at once.
            if !wire.is_upload {
                wire.inbox = Vec::new();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for HyperIo {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let bytes = &bytes[..bytes.len().min(WRITE_BYTES)];
        Poll::Ready(self.0.borrow_mut().write(bytes).map(|()| bytes.len()))
    }

    /// True, so that hyper does not copy long bodies behind its heads.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut filled = slices.iter().filter(|slice| !slice.is_empty()).peekable();
        let Some(first) = filled.next() else { return Poll::Ready(Ok(0)) };
        if first.len() >= GATHER_BYTES || filled.peek().is_none() {
            return self.poll_write(context, first);
        }
        let length = filled.clone().fold(first.len(), |sum, slice| (sum + slice.len()).min(WRITE_BYTES));
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(first);
        for slice in filled {
            bytes.extend_from_slice(&slice[..slice.len().min(length - bytes.len())]);
        }
        self.poll_write(context, &bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // `serve` shuts the stream down at the end.
        Poll::Ready(Ok(()))
    }
}

/// Set when hyper wants to be polled again.
#[derive(Default)]
struct WakeFlag(AtomicBool);

impl Wake for WakeFlag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

/// The result of waiting for the client.
enum ReadOutcome {
    Received,
    /// Nothing was received, and no request was begun.
    Idle,
    /// The request was not complete in time.
    RequestTimeout,
    /// Nothing was received of an upload's body for too long.
    UploadStalled,
}

/// Serves one connection to its end.
pub(super) fn serve(server: &Arc<HttpServerInner>, connection: NegotiatedConnection) -> io::Result<()> {
    let NegotiatedConnection { conn, source, is_transport_allowed, reservation, permit, .. } = connection;
    let (is_tls, stream) = (conn.is_tls(), Arc::clone(conn.stream()));
    let (mut reader, writer) = conn.split();
    let wire = Rc::new(RefCell::new(WireState {
        writer: writer.clone(),
        write_timeout: server.limits.write_timeout,
        inbox: Vec::new(),
        filled: 0,
        consumed: 0,
        has_ended: false,
        phase: ReadPhase::Head,
        newline: Newline::None,
        is_in_request: false,
        request_deadline: None,
        is_upload: false,
        head_bytes: 0,
        reservation,
        expect_response: false,
        held_back: Vec::new(),
        permit,
    }));
    let client = (is_tls, is_transport_allowed);
    let service = RequestService::new(Arc::clone(server), Rc::clone(&wire), Arc::clone(&stream), source, client);
    let mut builder = http1::Builder::new();
    builder.header_read_timeout(None).max_header_size(HEAD_MAX_BYTES).max_buf_size(BUFFER_BYTES);
    let connection = builder.serve_connection(HyperIo(Rc::clone(&wire)), service);
    let result = drive(server, connection, &wire, &mut reader, &stream);
    writer.shut_down_write();
    // From now on the connection may be evicted.
    wire.borrow_mut().permit.mark_pending(&stream);
    let deadline = Instant::now() + LINGER;
    let mut ignored = [0; FIRST_READ_BYTES];
    // Any end of the loop, an error too, is what is wanted.
    while reader.read_before(&mut ignored, deadline).is_ok_and(|len| len > 0) {}
    // Dropped before the permit, which belongs to `wire`: whoever gets the permit next must find the descriptor free.
    drop((reader, writer, stream));
    result
}

fn drive(
    server: &HttpServerInner,
    connection: http1::Connection<HyperIo, RequestService>,
    wire: &RefCell<WireState>,
    reader: &mut ConnReader,
    stream: &Arc<TcpStream>,
) -> io::Result<()> {
    let end_with = |status: StatusCode, reason: &str| {
        let last = response::raw_error(status, reason);
        wire.borrow().writer.write_all(&last, Instant::now() + server.limits.write_timeout)
    };
    let mut connection = pin!(connection);
    let woken = Arc::new(WakeFlag::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(result) = connection.as_mut().poll(&mut context) {
            if let Err(error) = &result
                && error.is_parse()
            {
                let refused = wire.borrow_mut().take_parse_error_status();
                if let Some(status) = refused {
                    server.counters.refused.add(1);
                    return end_with(status, &error.to_string());
                }
            }
            wire.borrow_mut().write_held_back()?;
            return result.map_err(io::Error::other);
        }
        wire.borrow_mut().write_held_back()?;
        if woken.0.swap(false, Relaxed) {
            continue;
        }
        if wire.borrow().has_ended {
            // Hyper knows of the end of input, and has nothing left to do.
            return Ok(());
        }
        if !wire.borrow_mut().try_reserve_head() {
            server.counters.refused.add(1);
            let reason = "BUSY: too much is being received at the moment; try again";
            return end_with(StatusCode::SERVICE_UNAVAILABLE, reason);
        }
        if !wire.borrow().is_upload {
            wire.borrow_mut().permit.mark_pending(stream);
        }
        match wait_for_input(wire, reader, &server.limits)? {
            ReadOutcome::Received => {}
            ReadOutcome::Idle => return Ok(()),
            ReadOutcome::RequestTimeout => {
                server.counters.timed_out.add(1);
                let seconds = server.limits.message_timeout.as_secs_f64();
                let reason = format!("the request was not complete {seconds} s after its first byte");
                return end_with(StatusCode::REQUEST_TIMEOUT, &reason);
            }
            ReadOutcome::UploadStalled => {
                server.counters.timed_out.add(1);
                let seconds = server.limits.upload_idle_timeout.as_secs_f64();
                let reason = format!("the body is not complete, and nothing came of it for {seconds} s");
                return end_with(StatusCode::REQUEST_TIMEOUT, &reason);
            }
        }
    }
}

/// Waits until something is received. Called when hyper waits for that and for nothing else.
fn wait_for_input(wire: &RefCell<WireState>, reader: &mut ConnReader, limits: &HttpLimits) -> io::Result<ReadOutcome> {
    let mut wire = wire.borrow_mut();
    if wire.filled > 0 {
        // Otherwise it would wait for ever.
        return Err(io::Error::other("what came is not read"));
    }
    let (deadline, most, late) = if wire.is_upload {
        (Instant::now() + limits.upload_idle_timeout, UPLOAD_READ_BYTES, ReadOutcome::UploadStalled)
    } else if wire.is_in_request {
        // From now on even if its beginning arrived together with the request before it: how long that one took is
        // not the client's fault.
        let request_deadline = *wire.request_deadline.get_or_insert_with(|| Instant::now() + limits.message_timeout);
        (request_deadline, NEXT_READ_BYTES, ReadOutcome::RequestTimeout)
    } else {
        (Instant::now() + limits.idle_timeout, FIRST_READ_BYTES, ReadOutcome::Idle)
    };
    wire.inbox.resize(most, 0);
    match reader.read_before(&mut wire.inbox, deadline) {
        Ok(0) => wire.has_ended = true,
        Ok(length) => wire.filled = length,
        Err(error) if error.kind() == ErrorKind::TimedOut => return Ok(late),
        Err(error) => return Err(error),
    }
    Ok(ReadOutcome::Received)
}
