//! Lines: one message per line, ended by LF, UTF-8 unless bytes are asked for, with limits on length and time.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use super::budget::Reservation;
use super::deadline::DeadlineRead;

/// The buffer of the first read, on the stack. Most messages fit, and so never need a buffer of their own.
pub(super) const FIRST_READ_BYTES: usize = 1024;
/// What is read at a time once a message turned out longer than that.
pub(super) const NEXT_READ_BYTES: usize = 16 * 1024;
/// What a message may use without taking from the budget: so little that the bound on connections bounds it.
pub(super) const UNBUDGETED_BYTES: usize = 4 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineLimits {
    /// The longest message, without its line end.
    pub max_bytes: usize,
    /// From the first byte of a message to its end, however steadily it trickles in.
    pub message_timeout: Duration,
    /// From one message to the first byte of the next.
    pub idle_timeout: Duration,
}

impl LineLimits {
    /// The timeouts that every connection has (`docs/spec/general.md`): 10 s for a message, 10 min between messages.
    pub fn new(max_bytes: usize) -> LineLimits {
        let (message_timeout, idle_timeout) = (Duration::from_secs(10), Duration::from_secs(600));
        LineLimits { max_bytes, message_timeout, idle_timeout }
    }
}

/// Except after [`LineError::NotUtf8`] the connection is to be closed: where the next message begins is unknown.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    #[error("the message is longer than {max_bytes} bytes")]
    TooLong { max_bytes: usize },
    #[error("the message was not complete {} s after its first byte", timeout.as_secs_f64())]
    MessageTimeout { timeout: Duration },
    #[error("nothing was received for {} s", timeout.as_secs_f64())]
    Idle { timeout: Duration },
    /// All connections together have received as much as they may.
    #[error("too much is being received at the moment; try again")]
    Busy,
    /// The next line can still be read.
    #[error("the message is not UTF-8")]
    NotUtf8,
    #[error("the connection ended in the middle of a message")]
    Truncated,
    #[error("the connection failed: {0}")]
    Io(io::Error),
}

/// Written by hand: `#[from]` would also make it the error's source, whose text would then be reported twice.
impl From<io::Error> for LineError {
    fn from(error: io::Error) -> LineError {
        LineError::Io(error)
    }
}

/// It holds a buffer only while part of a message has been received: an idle connection needs none.
pub struct LineReader<R> {
    source: R,
    limits: LineLimits,
    /// `buffer[..consumed]` was returned already.
    buffer: Vec<u8>,
    consumed: usize,
    /// For messages longer than [`UNBUDGETED_BYTES`].
    reservation: Reservation,
    /// See [`accepting_unterminated_line`](LineReader::accepting_unterminated_line).
    accepts_unterminated_unless: Option<Arc<AtomicBool>>,
}

impl<R: DeadlineRead> LineReader<R> {
    pub fn new(source: R, limits: LineLimits) -> LineReader<R> {
        LineReader {
            source,
            limits,
            buffer: Vec::new(),
            consumed: 0,
            reservation: Reservation::default(),
            accepts_unterminated_unless: None,
        }
    }

    /// The memory for long lines is taken from a budget. A line is counted until the next one is read.
    pub fn set_reservation(&mut self, reservation: Reservation) {
        self.reservation = reservation;
    }

    /// Accepts what precedes the end of input as a line even without a line end. For servers only: a client that
    /// waits for a response must recognise one that was cut short. Not if `we_end_it` is set by then: that we ended
    /// the input says nothing about what the client still had to send.
    pub fn accepting_unterminated_line(mut self, we_end_it: Arc<AtomicBool>) -> LineReader<R> {
        self.accepts_unterminated_unless = Some(we_end_it);
        self
    }

    /// Bytes read from it already may be in this reader's buffer.
    pub fn source_mut(&mut self) -> &mut R {
        &mut self.source
    }

    /// The next line without its LF or CR LF; `None` at a clean end.
    pub fn read_line(&mut self) -> Result<Option<String>, LineError> {
        let idle_deadline = Instant::now() + self.limits.idle_timeout;
        self.read_line_before(idle_deadline)
    }

    /// Like [`read_line`](LineReader::read_line), but `Idle` if the line has not begun at the deadline.
    pub fn read_line_before(&mut self, idle_deadline: Instant) -> Result<Option<String>, LineError> {
        let line = self.read_bytes_before(idle_deadline)?;
        line.map(String::from_utf8).transpose().map_err(|_| LineError::NotUtf8)
    }

    /// Like [`read_line_before`](LineReader::read_line_before), for callers that check UTF-8 while parsing.
    pub fn read_bytes_before(&mut self, idle_deadline: Instant) -> Result<Option<Vec<u8>>, LineError> {
        let begun = Instant::now();
        self.reservation.release();
        if self.buffer.is_empty() {
            let mut first = [0; FIRST_READ_BYTES];
            let len = match self.source.read_before(&mut first, idle_deadline) {
                Err(error) if error.kind() == ErrorKind::TimedOut => {
                    return Err(LineError::Idle { timeout: idle_deadline.saturating_duration_since(begun) });
                }
                result => result?,
            };
            if len == 0 {
                return Ok(None);
            }
            let first = &first[..len];
            if let Some(end) = find_line_end(first) {
                let line = self.check_length(&first[..end]);
                self.buffer = first[end + 1..].to_vec();
                return line.map(Some);
            }
            self.buffer = first.to_vec();
        } else if let Some(len) = find_line_end(&self.buffer[self.consumed..]) {
            return self.take_line(len).map(Some);
        }
        self.read_rest()
    }

    /// Its time runs from now even if its beginning arrived together with the line before it: how long that one took
    /// to be handled is not the peer's fault.
    fn read_rest(&mut self) -> Result<Option<Vec<u8>>, LineError> {
        let timeout = self.limits.message_timeout;
        let deadline = Instant::now() + timeout;
        self.buffer.drain(..std::mem::take(&mut self.consumed));
        loop {
            // One more for a CR, which does not count.
            if self.buffer.len() > self.limits.max_bytes + 1 {
                return Err(self.too_long());
            }
            let had = self.buffer.len();
            // Never read more than is allowed, so that the limit bounds the memory too.
            let room = (self.limits.max_bytes + 2 - had).min(NEXT_READ_BYTES);
            let room = reserved_read_size(&mut self.reservation, had, room).ok_or(LineError::Busy)?;
            self.buffer.resize(had + room, 0);
            let read = self.source.read_before(&mut self.buffer[had..], deadline);
            self.buffer.truncate(had + read.as_ref().map_or(0, |len| *len));
            match read {
                Ok(0) if self.accepts_unterminated_unless.as_ref().is_some_and(|we_end_it| !we_end_it.load(SeqCst)) => {
                    let last = std::mem::take(&mut self.buffer);
                    return self.check_length(&last).map(Some);
                }
                Ok(0) => return Err(LineError::Truncated),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::TimedOut => return Err(LineError::MessageTimeout { timeout }),
                Err(error) => return Err(error.into()),
            }
            if let Some(end) = find_line_end(&self.buffer[had..]) {
                return self.take_line(had + end).map(Some);
            }
        }
    }

    /// Returns the next `len` bytes as a line and skips the LF after them.
    fn take_line(&mut self, len: usize) -> Result<Vec<u8>, LineError> {
        let line = self.check_length(&self.buffer[self.consumed..self.consumed + len]);
        self.consumed += len + 1;
        if self.consumed == self.buffer.len() {
            (self.buffer, self.consumed) = (Vec::new(), 0);
        }
        line
    }

    fn check_length(&self, line: &[u8]) -> Result<Vec<u8>, LineError> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() > self.limits.max_bytes {
            return Err(self.too_long());
        }
        Ok(line.to_vec())
    }

    fn too_long(&self) -> LineError {
        LineError::TooLong { max_bytes: self.limits.max_bytes }
    }
}

/// How much of `room` may be read in addition to the `had` bytes of the message: all of it if the budget allows it,
/// otherwise what is left of the unbudgeted bytes. `None` if there is none.
pub(super) fn reserved_read_size(reservation: &mut Reservation, had: usize, room: usize) -> Option<usize> {
    if had + room <= UNBUDGETED_BYTES || reservation.grow_to(had + room) {
        return Some(room);
    }
    UNBUDGETED_BYTES.checked_sub(had).filter(|room| *room > 0)
}

fn find_line_end(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == b'\n')
}

// Not the content, which may be secret.
crate::model::debug_fields!(LineReader<R>, |reader| pending_bytes: reader.buffer.len() - reader.consumed);

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::net::deadline::DeadlineStream;
    use crate::net::deadline::tests::pair;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::io::Write;
    use std::net::TcpStream;

    /// Gives out its chunks one a read, then the end.
    pub(in crate::net) struct Chunks(VecDeque<Vec<u8>>);

    impl Chunks {
        pub(in crate::net) fn of(chunks: &[&[u8]]) -> Chunks {
            Chunks(chunks.iter().filter(|chunk| !chunk.is_empty()).map(|chunk| chunk.to_vec()).collect())
        }
    }

    impl DeadlineRead for Chunks {
        fn read_before(&mut self, buffer: &mut [u8], _deadline: Instant) -> io::Result<usize> {
            let Some(mut chunk) = self.0.pop_front() else { return Ok(0) };
            let len = chunk.len().min(buffer.len());
            buffer[..len].copy_from_slice(&chunk[..len]);
            let rest = chunk.split_off(len);
            if !rest.is_empty() {
                self.0.push_front(rest);
            }
            Ok(len)
        }
    }

    fn over(chunks: &[&[u8]], max_bytes: usize) -> LineReader<Chunks> {
        LineReader::new(Chunks::of(chunks), LineLimits::new(max_bytes))
    }

    fn over_tcp(limits: LineLimits) -> (TcpStream, LineReader<DeadlineStream>) {
        let (client, server) = pair();
        (client, LineReader::new(DeadlineStream::new(server), limits))
    }

    #[test]
    fn lines_come_one_by_one_however_they_were_cut() {
        let mut reader = over(&[b"{\"a\":1}\r", b"\n{}\nx", b"y", b"\n\n", b"z\r\n"], 100);
        for expected in ["{\"a\":1}", "{}", "xy", "", "z"] {
            assert_eq!(reader.read_line().unwrap().unwrap(), expected);
        }
        assert_eq!(reader.buffer.capacity(), 0, "nothing is held between messages");
        assert!(reader.read_line().unwrap().is_none());
    }

    #[test]
    fn too_long_is_told_at_the_limit() {
        for len in [10, 5000] {
            let (fits, long) = (vec![b'x'; len], vec![b'x'; len + 1]);
            assert_eq!(over(&[&fits, b"\n"], len).read_line().unwrap().unwrap().len(), len);
            assert_eq!(over(&[&fits, b"\r\n"], len).read_line().unwrap().unwrap().len(), len);
            for end in [&b"\n"[..], b"\r\n", b"xxxxx", b"\r\r\n"] {
                let error = over(&[&long, end], len).read_line().unwrap_err();
                assert_eq!(error.to_string(), format!("the message is longer than {len} bytes"));
            }
        }
    }

    #[test]
    fn garbage_and_broken_ends_have_their_errors() {
        for cut in [&[&b"\xff\nnext\n"[..]][..], &[b"\xff", b"\nne", b"xt\n"], &[b"\xff\r\n", b"next\n"]] {
            let mut reader = over(cut, 10);
            assert!(matches!(reader.read_line(), Err(LineError::NotUtf8)));
            assert_eq!(reader.read_line().unwrap().unwrap(), "next", "where that begins is known");
            assert!(reader.read_line().unwrap().is_none());
            let mut reader = over(cut, 10);
            assert_eq!(reader.read_bytes_before(Instant::now() + Duration::from_secs(5)).unwrap().unwrap(), b"\xff");
            assert_eq!(reader.read_bytes_before(Instant::now() + Duration::from_secs(5)).unwrap().unwrap(), b"next");
        }
        assert!(matches!(over(&[b"{"], 10).read_line(), Err(LineError::Truncated)));
        assert!(matches!(over(&[], 10).read_line(), Ok(None)));
    }

    #[test]
    fn a_trickling_line_times_out_absolutely() {
        let limits = LineLimits { message_timeout: Duration::from_millis(200), ..LineLimits::new(1000) };
        let (mut client, mut reader) = over_tcp(limits);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // Until the other end is closed.
                while client.write_all(b"x").is_ok() {
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            let error = reader.read_line().unwrap_err();
            assert_eq!(error.to_string(), "the message was not complete 0.2 s after its first byte");
            assert!(begun.elapsed() >= Duration::from_millis(200));
            assert!(begun.elapsed() < Duration::from_secs(5));
            drop(reader);
        });
    }

    #[test]
    fn an_idle_connection_ends() {
        let limits = LineLimits { idle_timeout: Duration::from_millis(50), ..LineLimits::new(1000) };
        let (mut client, mut reader) = over_tcp(limits);
        client.write_all(b"one\ntwo\n").unwrap();
        assert_eq!(reader.read_line().unwrap().unwrap(), "one");
        assert_eq!(reader.read_line().unwrap().unwrap(), "two");
        assert!(matches!(reader.read_line(), Err(LineError::Idle { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_are_the_lines_they_are(
            text in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..300),
            cuts in proptest::collection::vec(1_usize..40, 1..50),
        ) {
            let mut rest = &text[..];
            let mut chunks = VecDeque::new();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (chunk, others) = rest.split_at((*cut).min(rest.len()));
                chunks.push_back(chunk.to_vec());
                rest = others;
            }
            let mut reader = LineReader::new(Chunks(chunks), LineLimits::new(20));
            let mut pieces = text.split(|byte| *byte == b'\n').peekable();
            while let Some(piece) = pieces.next() {
                let is_last = pieces.peek().is_none();
                let line = piece.strip_suffix(b"\r").unwrap_or(piece);
                match reader.read_line() {
                    Ok(Some(got)) => prop_assert!(!is_last && got.as_bytes() == line),
                    Ok(None) => prop_assert!(is_last && piece.is_empty()),
                    Err(LineError::TooLong { .. }) => { prop_assert!(line.len() > 20 || piece.len() > 21); break }
                    Err(LineError::NotUtf8) => prop_assert!(std::str::from_utf8(line).is_err()),
                    Err(LineError::Truncated) => { prop_assert!(is_last && !piece.is_empty()); break }
                    Err(other) => prop_assert!(false, "{other}"),
                }
            }
        }
    }
}
