//! A connection's thread drives hyper's futures over a blocking stream.
//!
//! Reading would deadlock where hyper asks for it: it would wait for the client while the response to an earlier
//! request is still to be written. So hyper only gets what is in the inbox. When it waits and nothing has woken it,
//! there is nothing left to do but to read: then, and only then, the thread waits for the socket. Writing blocks where
//! hyper asks for it.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use hyper::StatusCode;
use hyper::server::conn::http1;

use super::service::RequestService;
use super::wire_state::{HyperIo, UPLOAD_READ_BYTES, WireState};
use super::{HEAD_MAX_BYTES, HttpLimits, HttpServerInner, response};
use crate::net::conn::ConnReader;
use crate::net::deadline::{DeadlineRead, linger};
use crate::net::listener::NegotiatedConnection;

/// What is read at a time: little between requests, because an idle connection must cost little.
const FIRST_READ_BYTES: usize = 2048;
const NEXT_READ_BYTES: usize = 16 * 1024;
/// The limit of hyper's buffer for a head or a response.
const BUFFER_BYTES: usize = 64 * 1024;

/// Hyper wants to be polled again.
#[derive(Default)]
struct WakeFlag(AtomicBool);

impl Wake for WakeFlag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

enum ReadOutcome {
    Received,
    /// Nothing was received, and no request was begun.
    Idle,
    RequestTimeout,
    UploadStalled,
}

pub(super) fn serve(server: &Arc<HttpServerInner>, connection: NegotiatedConnection) -> io::Result<()> {
    let NegotiatedConnection { conn, source, is_transport_allowed, reservation, permit, .. } = connection;
    let (is_tls, stream) = (conn.is_tls(), Arc::clone(conn.stream()));
    let (mut reader, writer) = conn.split();
    let wire = WireState::new(writer.clone(), server.limits.write_timeout, reservation, permit);
    let wire = Rc::new(RefCell::new(wire));
    let service = RequestService {
        server: Arc::clone(server),
        wire: Rc::clone(&wire),
        stream: Arc::clone(&stream),
        source,
        is_tls,
        is_transport_allowed,
    };
    let mut builder = http1::Builder::new();
    builder.header_read_timeout(None).max_header_size(HEAD_MAX_BYTES).max_buf_size(BUFFER_BYTES);
    let connection = builder.serve_connection(HyperIo(Rc::clone(&wire)), service);
    let result = drive(server, connection, &wire, &mut reader, &stream);
    writer.shut_down_write();
    // From now on the connection may be evicted.
    wire.borrow_mut().permit.mark_pending(&stream);
    linger(&mut reader);
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

/// Called when hyper waits for input and for nothing else.
fn wait_for_input(wire: &RefCell<WireState>, reader: &mut ConnReader, limits: &HttpLimits) -> io::Result<ReadOutcome> {
    let mut wire = wire.borrow_mut();
    if wire.filled > 0 {
        // Otherwise it would wait for ever.
        return Err(io::Error::other("what came is not read"));
    }
    let (deadline, most, late) = if wire.is_upload {
        (Instant::now() + limits.upload_idle_timeout, UPLOAD_READ_BYTES, ReadOutcome::UploadStalled)
    } else if wire.is_in_request {
        // The time runs from now even if its beginning arrived with the request before it, which is not the client's
        // fault.
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
