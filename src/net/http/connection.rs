//! A connection's thread: hyper's futures, driven over a blocking stream.
//!
//! Reading is what deadlocks if it is done where hyper asks for it: it would wait for the client while the
//! answer to an earlier request is still to be written. So hyper is only ever given what is in the inbox,
//! else told to wait. When it waits and nobody has woken it, there is nothing left to do but to read: then,
//! and only then, the thread waits for the socket. Writing blocks where it is asked for.

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

use super::service::Service;
use super::{HEAD_MAX, Limits, Shared, answer};
use crate::net::budget::Share;
use crate::net::conn::{ConnReader, ConnWriter};
use crate::net::deadline::ReadBefore;
use crate::net::listener::{Connection, Permit};

/// What is read at a time: between requests little, because a connection that idles must cost little.
const FIRST_READ_BYTES: usize = 2048;
const NEXT_READ_BYTES: usize = 16 * 1024;
/// The same of an upload's body. It is counted against what all connections may hold.
pub(super) const UPLOAD_READ_BYTES: usize = 64 * 1024;
/// What is written under one deadline.
const WRITE_BYTES: usize = 64 * 1024;
/// What is copied together with what follows it, rather than written alone: without Nagle's algorithm two writes are
/// two packets. What is longer goes out from where it is.
const GATHER_BYTES: usize = 16 * 1024;
/// What hyper may hold of a head, or of an answer.
const BUFFER_BYTES: usize = 64 * 1024;
/// What of a request's head costs nothing of what all connections may hold: common heads are shorter.
const HEAD_FREE_BYTES: usize = 4 * 1024;
/// How long a connection that we end is read on, so that the client can read our last word.
const LINGER: Duration = Duration::from_secs(2);

/// Where in a request the bytes that hyper is given next stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Head,
    /// Of known length: so many are left.
    Body(u64),
    /// In chunks.
    Chunks,
}

/// What the thread, hyper's view of the stream and the service share.
pub(super) struct Wire {
    writer: ConnWriter,
    write_timeout: Duration,
    /// What is read into.
    inbox: Vec<u8>,
    /// How much of it came, and how much of that hyper was given.
    came: usize,
    given: usize,
    has_ended: bool,
    part: Part,
    /// Of a head: how much of the blank line that ends it was given.
    newline: Newline,
    /// Whether a request was begun and is not whole.
    is_in_request: bool,
    /// Until when it must be whole, once it was waited for.
    whole_by: Option<Instant>,
    /// Whether what comes is an upload's body: it may take as long as it takes, while it comes at all.
    is_upload: bool,
    /// Bytes of the head that hyper was given and has not made a request of.
    head_bytes: usize,
    /// For what was received and not handled.
    share: Share,
    /// An answer of ours is what is written next.
    answer_follows: bool,
    /// What is to be written, if it is not hyper's own refusal of what is no request.
    held: Vec<u8>,
    /// Among those that may be closed when room is short, until a request is whole.
    permit: Permit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Newline {
    None,
    Lf,
    LfCr,
}

impl Wire {
    /// The next bytes for hyper: never past the end of a head, so that it is known what it waits for.
    fn give(&mut self, most: usize) -> Range<usize> {
        let rest = &self.inbox[self.given..self.came];
        let rest = &rest[..rest.len().min(most)];
        let len = match self.part {
            Part::Head => {
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
            Part::Body(left) => {
                let len = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let left = left - len as u64;
                if left == 0 {
                    self.request_is_whole();
                } else {
                    self.part = Part::Body(left);
                }
                len
            }
            Part::Chunks => rest.len(),
        };
        let range = self.given..self.given + len;
        self.given = range.end;
        range
    }

    /// The head is whole, and a body follows: of known length or in chunks.
    pub(super) fn body_follows(&mut self, length: Option<u64>) {
        (self.part, self.head_bytes) = (length.map_or(Part::Chunks, Part::Body), 0);
    }

    /// The body that follows is taken piece by piece. The connection gives way to no other from now on: what was sent
    /// of a long body would be lost.
    pub(super) fn upload_follows(&mut self) {
        self.is_upload = true;
        // One that was told to go finds out when it reads.
        let _ = self.permit.request_completed();
    }

    /// Nothing of the request is missing.
    pub(super) fn request_is_whole(&mut self) {
        (self.part, self.is_in_request, self.whole_by, self.head_bytes) = (Part::Head, false, None, 0);
        self.is_upload = false;
        // One that was told to go finds out when it answers.
        let _ = self.permit.request_completed();
    }

    /// Whether so many bytes of a body may be held, beside what others hold.
    pub(super) fn may_hold(&mut self, bytes: usize) -> bool {
        self.share.grow_to(bytes)
    }

    /// The request was handled: nothing is held of it.
    pub(super) fn was_handled(&mut self) {
        self.share.clear();
    }

    /// Whether what came of a head may be held.
    fn may_hold_head(&mut self) -> bool {
        self.head_bytes <= HEAD_FREE_BYTES || self.share.grow_to(self.head_bytes)
    }

    /// An answer was made: what is written next is no refusal of hyper's.
    pub(super) fn answer_follows(&mut self) {
        self.answer_follows = true;
    }

    /// Whether this may be hyper's own refusal of what is no request: a status without a word. It comes when a head was
    /// begun and no answer of ours is due.
    fn may_be_refusal(&mut self, bytes: &[u8]) -> bool {
        let is_ours = std::mem::take(&mut self.answer_follows);
        !is_ours
            && self.part == Part::Head
            && self.is_in_request
            && bytes.starts_with(b"HTTP/1.")
            && bytes.get(9) == Some(&b'4')
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_held()?;
        if self.may_be_refusal(bytes) {
            self.held = bytes.to_vec();
            return Ok(());
        }
        self.writer.write_all(bytes, Instant::now() + self.write_timeout)
    }

    /// It was no refusal, after all.
    fn write_held(&mut self) -> io::Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        self.writer.write_all(&std::mem::take(&mut self.held), Instant::now() + self.write_timeout)
    }

    /// The status by which hyper refused what came, once it has said that this is why it ends.
    fn take_refusal(&mut self) -> Option<StatusCode> {
        let held = std::mem::take(&mut self.held);
        StatusCode::from_bytes(held.get(9..12)?).ok()
    }

    /// The same, told by whoever reads the body: the end of one in chunks is seen there alone, and so is that of one
    /// that hyper was given together with the chunks before it.
    pub(super) fn body_is_whole(&mut self) {
        if self.part != Part::Head {
            self.request_is_whole();
        }
    }
}

/// The stream as hyper sees it.
struct Io(Rc<RefCell<Wire>>);

impl Read for Io {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, mut buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.0.borrow_mut();
        let range = wire.give(buffer.remaining());
        if range.is_empty() {
            return if wire.has_ended { Poll::Ready(Ok(())) } else { Poll::Pending };
        }
        buffer.put_slice(&wire.inbox[range]);
        if wire.given == wire.came {
            (wire.came, wire.given) = (0, 0);
            // Whoever waits for long is to cost little; an upload goes on at once.
            if !wire.is_upload {
                wire.inbox = Vec::new();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for Io {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let bytes = &bytes[..bytes.len().min(WRITE_BYTES)];
        Poll::Ready(self.0.borrow_mut().write(bytes).map(|()| bytes.len()))
    }

    /// Hyper is told that there is this, so that it does not copy long bodies behind its heads.
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
        // Done at the end, by whoever drives this.
        Poll::Ready(Ok(()))
    }
}

/// Whether hyper wants to be asked again.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

/// What came of waiting for the client.
enum Came {
    Something,
    /// Nothing, and no request was begun.
    Silence,
    /// The end of the time that a request has.
    Late,
    /// Nothing of an upload's body, for so long as that may be.
    Nothing,
}

/// Serves one connection to its end.
pub(super) fn serve(server: &Arc<Shared>, connection: Connection) -> io::Result<()> {
    let Connection { conn, source, may_speak, share, permit, .. } = connection;
    let (is_tls, stream) = (conn.is_tls(), Arc::clone(conn.stream()));
    let (mut reader, writer) = conn.split();
    let wire = Rc::new(RefCell::new(Wire {
        writer: writer.clone(),
        write_timeout: server.limits.write_timeout,
        inbox: Vec::new(),
        came: 0,
        given: 0,
        has_ended: false,
        part: Part::Head,
        newline: Newline::None,
        is_in_request: false,
        whole_by: None,
        is_upload: false,
        head_bytes: 0,
        share,
        answer_follows: false,
        held: Vec::new(),
        permit,
    }));
    let client = (is_tls, may_speak);
    let service = Service::new(Arc::clone(server), Rc::clone(&wire), Arc::clone(&stream), source, client);
    let mut builder = http1::Builder::new();
    builder.header_read_timeout(None).max_header_size(HEAD_MAX).max_buf_size(BUFFER_BYTES);
    let connection = builder.serve_connection(Io(Rc::clone(&wire)), service);
    let result = drive(server, connection, &wire, &mut reader, &stream);
    writer.finish();
    // Who has been told the last word gives way meanwhile.
    wire.borrow_mut().permit.await_request(&stream);
    let deadline = Instant::now() + LINGER;
    let mut ignored = [0; FIRST_READ_BYTES];
    // Whatever ends it, the end is what was wanted.
    while reader.read_before(&mut ignored, deadline).is_ok_and(|len| len > 0) {}
    // Before the permit, which is the wire's: who gets its place is to find the descriptor free.
    drop((reader, writer, stream));
    result
}

fn drive(
    server: &Shared,
    connection: http1::Connection<Io, Service>,
    wire: &RefCell<Wire>,
    reader: &mut ConnReader,
    stream: &Arc<TcpStream>,
) -> io::Result<()> {
    let say = |status: StatusCode, reason: &str| {
        let last = answer::raw(status, reason);
        wire.borrow().writer.write_all(&last, Instant::now() + server.limits.write_timeout)
    };
    let mut connection = pin!(connection);
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(result) = connection.as_mut().poll(&mut context) {
            if let Err(error) = &result
                && error.is_parse()
            {
                let refused = wire.borrow_mut().take_refusal();
                if let Some(status) = refused {
                    server.counters.refused.add(1);
                    return say(status, &error.to_string());
                }
            }
            wire.borrow_mut().write_held()?;
            return result.map_err(io::Error::other);
        }
        wire.borrow_mut().write_held()?;
        if woken.0.swap(false, Relaxed) {
            continue;
        }
        if wire.borrow().has_ended {
            // It knows of the end, and has nothing left to do.
            return Ok(());
        }
        if !wire.borrow_mut().may_hold_head() {
            server.counters.refused.add(1);
            let reason = "BUSY: too much is being received at the moment; try again";
            return say(StatusCode::SERVICE_UNAVAILABLE, reason);
        }
        if !wire.borrow().is_upload {
            wire.borrow_mut().permit.await_request(stream);
        }
        match read_more(wire, reader, &server.limits)? {
            Came::Something => {}
            Came::Silence => return Ok(()),
            Came::Late => {
                server.counters.late.add(1);
                let seconds = server.limits.message_timeout.as_secs_f64();
                let reason = format!("the request was not complete {seconds} s after its first byte");
                return say(StatusCode::REQUEST_TIMEOUT, &reason);
            }
            Came::Nothing => {
                server.counters.late.add(1);
                let seconds = server.limits.upload_idle_timeout.as_secs_f64();
                let reason = format!("the body is not complete, and nothing came of it for {seconds} s");
                return say(StatusCode::REQUEST_TIMEOUT, &reason);
            }
        }
    }
}

/// Waits until something comes. Called when hyper waits for that and for nothing else.
fn read_more(wire: &RefCell<Wire>, reader: &mut ConnReader, limits: &Limits) -> io::Result<Came> {
    let mut wire = wire.borrow_mut();
    if wire.came > 0 {
        // It would wait for ever.
        return Err(io::Error::other("what came is not read"));
    }
    let (deadline, most, late) = if wire.is_upload {
        (Instant::now() + limits.upload_idle_timeout, UPLOAD_READ_BYTES, Came::Nothing)
    } else if wire.is_in_request {
        // From now on even if its beginning came with the request before it: how long that one took is not the
        // client's fault.
        let whole_by = *wire.whole_by.get_or_insert_with(|| Instant::now() + limits.message_timeout);
        (whole_by, NEXT_READ_BYTES, Came::Late)
    } else {
        (Instant::now() + limits.idle_timeout, FIRST_READ_BYTES, Came::Silence)
    };
    wire.inbox.resize(most, 0);
    match reader.read_before(&mut wire.inbox, deadline) {
        Ok(0) => wire.has_ended = true,
        Ok(came) => wire.came = came,
        Err(error) if error.kind() == ErrorKind::TimedOut => return Ok(late),
        Err(error) => return Err(error),
    }
    Ok(Came::Something)
}
