//! Frames: a message behind its length (4 bytes, big-endian), with limits on length and time; and [`MessageReader`],
//! which reads frames or lines, whichever the other end uses.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::budget::Reservation;
use super::conn::ConnWriter;
use super::deadline::{DeadlineRead, linger};
use super::lines::{FIRST_READ_BYTES, LineError, LineLimits, LineReader, NEXT_READ_BYTES, reserved_read_size};

const LENGTH_BYTES: usize = 4;
/// The time for a message of common size.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// A message has one more second for each this many bytes, for very slow connections.
const SLOW_LINE_BYTES_PER_S: usize = 64 * 1024;

/// Like [`LineReader`] it holds a buffer only while part of a message has been received, unless
/// [`retain_buffer`](FrameReader::retain_buffer) was called.
pub struct FrameReader<R> {
    source: R,
    limits: LineLimits,
    /// `buffer[consumed..filled]` has not been returned yet.
    buffer: Vec<u8>,
    consumed: usize,
    filled: usize,
    retains_buffer: bool,
    reservation: Reservation,
}

enum FirstRead {
    End,
    Whole(Vec<u8>),
    Pending,
}

impl<R: DeadlineRead> FrameReader<R> {
    pub fn new(source: R, limits: LineLimits) -> FrameReader<R> {
        let (pending, reservation) = (Vec::new(), Reservation::default());
        FrameReader { source, limits, buffer: pending, consumed: 0, filled: 0, retains_buffer: false, reservation }
    }

    /// Keeps the buffer between messages: links are few, and their messages long enough to save system calls so.
    pub fn retain_buffer(&mut self) {
        self.retains_buffer = true;
    }

    pub fn set_limits(&mut self, limits: LineLimits) {
        self.limits = limits;
    }

    /// The next frame without its length; `None` at a clean end. After an error the connection is to be closed.
    pub fn read_frame(&mut self) -> Result<Option<Vec<u8>>, LineError> {
        let idle_deadline = Instant::now() + self.limits.idle_timeout;
        self.read_frame_before(idle_deadline)
    }

    /// Like [`read_frame`](FrameReader::read_frame), but `Idle` if the frame has not begun at the deadline.
    pub fn read_frame_before(&mut self, idle_deadline: Instant) -> Result<Option<Vec<u8>>, LineError> {
        self.reservation.release();
        if self.consumed == self.filled {
            match self.read_first(idle_deadline)? {
                FirstRead::End => return Ok(None),
                FirstRead::Whole(frame) => return Ok(Some(frame)),
                FirstRead::Pending => {}
            }
        }
        // As with lines, its time runs from now even if its beginning arrived together with the frame before it.
        let deadline = Instant::now() + self.limits.message_timeout;
        while self.filled - self.consumed < LENGTH_BYTES {
            self.ensure_capacity(LENGTH_BYTES);
            self.read_more(deadline)?;
        }
        let start = self.consumed + LENGTH_BYTES;
        let mut length = [0; LENGTH_BYTES];
        length.copy_from_slice(&self.buffer[self.consumed..start]);
        let length = u32::from_be_bytes(length) as usize;
        // Checked before any memory is allocated for it.
        if length > self.limits.max_bytes {
            return Err(LineError::TooLong { max_bytes: self.limits.max_bytes });
        }
        if self.filled - start >= length {
            let frame = self.buffer[start..start + length].to_vec();
            self.consumed = start + length;
            self.discard_consumed();
            return Ok(Some(frame));
        }
        self.read_rest(start, length, deadline).map(Some)
    }

    fn read_first(&mut self, idle_deadline: Instant) -> Result<FirstRead, LineError> {
        let begun = Instant::now();
        let mut on_stack = [0; FIRST_READ_BYTES];
        let buffer = if self.retains_buffer {
            self.buffer.resize(self.buffer.len().max(NEXT_READ_BYTES), 0);
            &mut self.buffer[..]
        } else {
            &mut on_stack[..]
        };
        let len = match self.source.read_before(buffer, idle_deadline) {
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                return Err(LineError::Idle { timeout: idle_deadline.saturating_duration_since(begun) });
            }
            result => result?,
        };
        if len == 0 {
            return Ok(FirstRead::End);
        }
        if !self.retains_buffer {
            let received = &on_stack[..len];
            // Usually it is exactly one frame, which then needs no buffer.
            if let Some((length, frame)) = received.split_first_chunk()
                && u32::from_be_bytes(*length) as usize == frame.len()
                && frame.len() <= self.limits.max_bytes
            {
                return Ok(FirstRead::Whole(frame.to_vec()));
            }
            self.buffer = received.to_vec();
        }
        (self.consumed, self.filled) = (0, len);
        Ok(FirstRead::Pending)
    }

    /// Reads the rest of a frame that is not in the buffer whole. It goes straight into the returned vector, in
    /// pieces, because a length prefix alone must not cost the memory that it announces.
    fn read_rest(&mut self, start: usize, length: usize, deadline: Instant) -> Result<Vec<u8>, LineError> {
        let mut frame = self.buffer[start..self.filled].to_vec();
        self.consumed = self.filled;
        self.discard_consumed();
        while frame.len() < length {
            let had = frame.len();
            let room = (length - had).min(had.max(NEXT_READ_BYTES));
            let room = reserved_read_size(&mut self.reservation, had, room).ok_or(LineError::Busy)?;
            frame.resize(had + room, 0);
            let mut filled = had;
            while filled < had + room {
                filled += read_some(&mut self.source, &mut frame[filled..], deadline, self.limits.message_timeout)?;
            }
        }
        Ok(frame)
    }

    fn read_more(&mut self, deadline: Instant) -> Result<(), LineError> {
        let room = &mut self.buffer[self.filled..];
        self.filled += read_some(&mut self.source, room, deadline, self.limits.message_timeout)?;
        Ok(())
    }

    fn ensure_capacity(&mut self, bytes: usize) {
        self.buffer.copy_within(self.consumed..self.filled, 0);
        (self.consumed, self.filled) = (0, self.filled - self.consumed);
        self.buffer.resize(self.buffer.len().max(bytes), 0);
    }

    fn discard_consumed(&mut self) {
        if self.consumed == self.filled {
            (self.consumed, self.filled) = (0, 0);
            if !self.retains_buffer {
                self.buffer = Vec::new();
            }
        }
    }
}

fn read_some(
    source: &mut impl DeadlineRead,
    room: &mut [u8],
    deadline: Instant,
    timeout: Duration,
) -> Result<usize, LineError> {
    match source.read_before(room, deadline) {
        Ok(0) => Err(LineError::Truncated),
        Ok(len) => Ok(len),
        Err(error) if error.kind() == ErrorKind::TimedOut => Err(LineError::MessageTimeout { timeout }),
        Err(error) => Err(error.into()),
    }
}

pub fn encode_frame(message: &[u8]) -> Option<Vec<u8>> {
    let length = u32::try_from(message.len()).ok()?;
    let mut bytes = Vec::with_capacity(LENGTH_BYTES + message.len());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(message);
    Some(bytes)
}

/// How messages are delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Each message follows its length.
    Frames,
    /// One message per line.
    Lines,
}

impl Framing {
    /// A long message has more time.
    pub fn write(self, writer: &ConnWriter, message: &[u8]) -> io::Result<()> {
        let slow_s = (message.len() / SLOW_LINE_BYTES_PER_S) as u64;
        let deadline = Instant::now() + WRITE_TIMEOUT + Duration::from_secs(slow_s);
        match self {
            Framing::Frames => writer.write_all(&encode_frame(message).ok_or(ErrorKind::InvalidInput)?, deadline),
            Framing::Lines => writer.write_line(message, deadline),
        }
    }
}

pub struct PrefixedReader<R> {
    head: Vec<u8>,
    consumed: usize,
    source: R,
}

impl<R: DeadlineRead> DeadlineRead for PrefixedReader<R> {
    fn read_before(&mut self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        let left = &self.head[self.consumed..];
        if left.is_empty() {
            return self.source.read_before(buffer, deadline);
        }
        let len = left.len().min(buffer.len());
        buffer[..len].copy_from_slice(&left[..len]);
        self.consumed += len;
        if self.consumed == self.head.len() {
            (self.head, self.consumed) = (Vec::new(), 0);
        }
        Ok(len)
    }
}

/// Reads messages in the framing that the first byte shows: 0 begins a length; `{`, white space or a byte order mark
/// begin a line.
#[derive(Debug)]
pub enum MessageReader<R> {
    Frames(FrameReader<PrefixedReader<R>>),
    Lines(LineReader<PrefixedReader<R>>),
}

impl<R: DeadlineRead> MessageReader<R> {
    /// Waits for the first bytes; `None` at a clean end, or if they begin neither framing.
    pub fn detect_framing(
        source: R,
        limits: LineLimits,
        reservation: Reservation,
    ) -> Result<Option<MessageReader<R>>, LineError> {
        let is_line = |byte| matches!(byte, b'{' | b' ' | b'\t' | b'\r' | b'\n' | 0xef);
        MessageReader::detect(source, limits, reservation, is_line)
    }

    /// Detects the framing of what a server sends: whatever is not a length is a line, such as an error in another
    /// format.
    pub fn detect_response_framing(
        source: R,
        limits: LineLimits,
        reservation: Reservation,
    ) -> Result<Option<MessageReader<R>>, LineError> {
        MessageReader::detect(source, limits, reservation, |_| true)
    }

    fn detect(
        mut source: R,
        limits: LineLimits,
        reservation: Reservation,
        is_line: impl Fn(u8) -> bool,
    ) -> Result<Option<MessageReader<R>>, LineError> {
        let mut first = [0; FIRST_READ_BYTES];
        let len = match source.read_before(&mut first, Instant::now() + limits.idle_timeout) {
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                return Err(LineError::Idle { timeout: limits.idle_timeout });
            }
            result => result?,
        };
        let first = &first[..len];
        let source = PrefixedReader { head: first.to_vec(), consumed: 0, source };
        let mut reader = match first.first() {
            Some(0) => MessageReader::Frames(FrameReader::new(source, limits)),
            Some(first) if is_line(*first) => MessageReader::Lines(LineReader::new(source, limits)),
            _ => return Ok(None),
        };
        reader.set_reservation(reservation);
        Ok(Some(reader))
    }

    /// Reads lines, whatever they begin with.
    pub fn lines(source: R, limits: LineLimits, reservation: Reservation) -> MessageReader<R> {
        let mut lines = LineReader::new(PrefixedReader { head: Vec::new(), consumed: 0, source }, limits);
        lines.set_reservation(reservation);
        MessageReader::Lines(lines)
    }

    /// As [`LineReader::accepting_unterminated_line`].
    pub fn accepting_unterminated_line(self, we_end_it: Arc<AtomicBool>) -> MessageReader<R> {
        match self {
            MessageReader::Lines(lines) => MessageReader::Lines(lines.accepting_unterminated_line(we_end_it)),
            frames @ MessageReader::Frames(_) => frames,
        }
    }

    /// The memory for long messages is taken from a budget. A message is counted until the next one is read.
    pub fn set_reservation(&mut self, reservation: Reservation) {
        match self {
            MessageReader::Frames(frames) => frames.reservation = reservation,
            MessageReader::Lines(lines) => lines.set_reservation(reservation),
        }
    }

    pub fn framing(&self) -> Framing {
        match self {
            MessageReader::Frames(_) => Framing::Frames,
            MessageReader::Lines(_) => Framing::Lines,
        }
    }

    /// The next message, whatever its bytes are; `None` at a clean end, `Idle` if it has not begun at the deadline.
    /// After an error, which is never [`LineError::NotUtf8`], the connection is to be closed.
    pub fn read_before(&mut self, idle_deadline: Instant) -> Result<Option<Vec<u8>>, LineError> {
        match self {
            MessageReader::Frames(frames) => frames.read_frame_before(idle_deadline),
            MessageReader::Lines(lines) => lines.read_bytes_before(idle_deadline),
        }
    }

    /// Shuts writing down and lets the other end read our last message: see [`linger`].
    pub fn linger(&mut self, writer: &ConnWriter) {
        writer.shut_down_write();
        match self {
            MessageReader::Frames(frames) => linger(&mut frames.source),
            MessageReader::Lines(lines) => linger(lines.source_mut()),
        }
    }
}

// Not the content, which may be secret.
crate::model::debug_fields!(FrameReader<R>, |reader| pending_bytes: reader.filled - reader.consumed);

#[cfg(test)]
mod tests;
