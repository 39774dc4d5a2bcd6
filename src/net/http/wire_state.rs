//! What is between hyper and the socket, and the stream as hyper sees it.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::StatusCode;
use hyper::rt::{Read, ReadBufCursor, Write};

use crate::net::budget::Reservation;
use crate::net::conn::ConnWriter;
use crate::net::listener::Permit;

/// What is read at a time of an upload's body; it is taken from the receive budget.
pub(super) const UPLOAD_READ_BYTES: usize = 64 * 1024;
/// What is written under one deadline.
const WRITE_BYTES: usize = 64 * 1024;
/// Shorter pieces are copied together with what follows them: without Nagle's algorithm two writes are two packets.
const GATHER_BYTES: usize = 16 * 1024;
/// Common heads are shorter, and not taken from the receive budget.
const UNBUDGETED_HEAD_BYTES: usize = 4 * 1024;

/// What the next bytes for hyper belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadPhase {
    Head,
    /// A body of known length, with the number of bytes left.
    Body(u64),
    Chunks,
}

/// Shared by the connection's thread, hyper's view of the stream and the service.
pub(super) struct WireState {
    pub(super) writer: ConnWriter,
    write_timeout: Duration,
    /// `inbox[consumed..filled]` was received and not given to hyper yet.
    pub(super) inbox: Vec<u8>,
    pub(super) filled: usize,
    consumed: usize,
    pub(super) has_ended: bool,
    phase: ReadPhase,
    /// In a head: how much of the blank line that ends it was given to hyper.
    newline: Newline,
    /// A request was begun and is not complete.
    pub(super) is_in_request: bool,
    /// When the request must be complete; set once the thread waits for it.
    pub(super) request_deadline: Option<Instant>,
    /// An upload may take any time, as long as it does not stall.
    pub(super) is_upload: bool,
    /// What hyper was given and has not parsed into a request.
    head_bytes: usize,
    /// Room for what was received and not handled.
    pub(super) reservation: Reservation,
    /// What is written next is a response of ours, not hyper's own error response.
    pub(super) expect_response: bool,
    /// Output that may be hyper's own error response, held back until that is known.
    held_back: Vec<u8>,
    /// The connection may be evicted until a request is complete.
    pub(super) permit: Permit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Newline {
    None,
    Lf,
    LfCr,
}

impl WireState {
    pub(super) fn new(
        writer: ConnWriter,
        write_timeout: Duration,
        reservation: Reservation,
        permit: Permit,
    ) -> WireState {
        WireState {
            writer,
            write_timeout,
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
        }
    }

    /// Bytes for hyper, never past the end of a head, so that it is known what hyper waits for.
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

    /// A body without a known length comes in chunks.
    pub(super) fn begin_body(&mut self, length: Option<u64>) {
        (self.phase, self.head_bytes) = (length.map_or(ReadPhase::Chunks, ReadPhase::Body), 0);
    }

    /// The connection is not evicted from now on: what was sent of a long body would be lost.
    pub(super) fn begin_upload(&mut self) {
        self.is_upload = true;
        // An evicted connection fails at the next read.
        let _ = self.permit.mark_request_completed();
    }

    pub(super) fn end_request(&mut self) {
        (self.phase, self.is_in_request, self.request_deadline, self.head_bytes) = (ReadPhase::Head, false, None, 0);
        self.is_upload = false;
        // An evicted connection fails when its response is written.
        let _ = self.permit.mark_request_completed();
    }

    /// Reserves room in the receive budget for what was received of a head.
    pub(super) fn try_reserve_head(&mut self) -> bool {
        self.head_bytes <= UNBUDGETED_HEAD_BYTES || self.reservation.grow_to(self.head_bytes)
    }
    /// Hyper's own response to a malformed request is a status without a body, written when a head was begun and no
    /// response of ours is due.
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
    pub(super) fn write_held_back(&mut self) -> io::Result<()> {
        if self.held_back.is_empty() {
            return Ok(());
        }
        self.writer.write_all(&std::mem::take(&mut self.held_back), Instant::now() + self.write_timeout)
    }

    /// Called once hyper has reported that it ends because of a parse error.
    pub(super) fn take_parse_error_status(&mut self) -> Option<StatusCode> {
        let held_back = std::mem::take(&mut self.held_back);
        StatusCode::from_bytes(held_back.get(9..12)?).ok()
    }

    /// Like `end_request`, for the reader of the body: only it sees the end of a body in chunks, or of one that hyper
    /// was given together with the chunks before it.
    pub(super) fn end_body(&mut self) {
        if self.phase != ReadPhase::Head {
            self.end_request();
        }
    }
}

pub(super) struct HyperIo(pub(super) Rc<RefCell<WireState>>);

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

    /// So that hyper does not copy long bodies behind its heads.
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
