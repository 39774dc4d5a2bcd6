//! Reading from and writing to sockets with absolute deadlines: a socket's own timeout starts anew with every call, so
//! a peer that sends one byte a second would never exceed it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

pub trait DeadlineRead {
    /// Waits for at least one byte until `TimedOut` at the deadline. 0 means the end of input (or an empty buffer).
    fn read_before(&mut self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize>;
}

/// How long [`linger`] reads on.
const LINGER: Duration = Duration::from_secs(2);

/// Discards what is received for a moment, once writing is shut down: closing a connection with unread input resets
/// it, and the other end might never read our last message.
pub(super) fn linger(source: &mut impl DeadlineRead) {
    let deadline = Instant::now() + LINGER;
    let mut ignored = [0; 2048];
    // Any end of the loop, an error too, is what is wanted.
    while source.read_before(&mut ignored, deadline).is_ok_and(|len| len > 0) {}
}

/// Remembers which timeouts are set on its stream.
#[derive(Debug)]
pub struct DeadlineStream {
    stream: Arc<TcpStream>,
    read_timeout_us: AtomicU64,
    write_timeout_us: AtomicU64,
}

/// Makes the first use set the timeout.
const TIMEOUT_UNKNOWN: u64 = u64::MAX;

impl DeadlineStream {
    /// From now on nothing else may set the stream's timeouts.
    pub fn new(stream: impl Into<Arc<TcpStream>>) -> DeadlineStream {
        let (read_timeout_us, write_timeout_us) = (AtomicU64::new(TIMEOUT_UNKNOWN), AtomicU64::new(TIMEOUT_UNKNOWN));
        DeadlineStream { stream: stream.into(), read_timeout_us, write_timeout_us }
    }

    pub fn stream(&self) -> &Arc<TcpStream> {
        &self.stream
    }

    /// Reads what is there, or waits for it until `TimedOut` at the deadline. Only one thread may read at a time.
    pub fn read_before(&self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        self.read_with(deadline, |mut stream| stream.read(buffer))
    }

    /// Like [`read_before`](DeadlineStream::read_before), but leaves what was read in the socket.
    pub fn peek_before(&self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        self.read_with(deadline, |stream| stream.peek(buffer))
    }

    fn read_with(&self, deadline: Instant, mut read: impl FnMut(&TcpStream) -> io::Result<usize>) -> io::Result<usize> {
        loop {
            let left = remaining_until(deadline)?;
            if let Some(timeout) = timeout_to_set(&self.read_timeout_us, left) {
                self.stream.set_read_timeout(Some(timeout))?;
            }
            match read(&self.stream) {
                Err(error) if is_retryable(&error) => {}
                result => return result,
            }
        }
    }

    /// Writes all of it, or fails with `TimedOut` at the deadline. Only one thread may write at a time. After an error
    /// it is unknown how much was written.
    pub fn write_all_before(&self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            let left = remaining_until(deadline)?;
            if let Some(timeout) = timeout_to_set(&self.write_timeout_us, left) {
                self.stream.set_write_timeout(Some(timeout))?;
            }
            match (&*self.stream).write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if is_retryable(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl DeadlineRead for DeadlineStream {
    fn read_before(&mut self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        DeadlineStream::read_before(self, buffer, deadline)
    }
}

fn is_retryable(error: &io::Error) -> bool {
    // A timeout set on the socket is WouldBlock on Unix, where TimedOut means that the connection itself
    // was given up; on Windows both are TimedOut, and a dead connection is noticed at the deadline.
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
        || (cfg!(windows) && error.kind() == ErrorKind::TimedOut)
}

fn remaining_until(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// The timeout to set on the socket, if the present one will not do.
///
/// Setting it costs a system call, and the deadline differs a little with every message. So a timeout that ends
/// somewhat early is good enough: the caller checks the deadline and waits again. It must only never end late.
fn timeout_to_set(current_us: &AtomicU64, left: Duration) -> Option<Duration> {
    let left_us = u64::try_from(left.as_micros()).unwrap_or(TIMEOUT_UNKNOWN - 1).max(1);
    let current = current_us.load(Relaxed);
    if current <= left_us && current >= left_us / 2 {
        return None;
    }
    // Somewhat early from the start, so that it will do for the next message too; but precise near the deadline,
    // where repeated wake-ups would only cost.
    let wanted = if left_us > 1_000_000 { left_us / 4 * 3 } else { left_us };
    current_us.store(wanted, Relaxed);
    Some(Duration::from_micros(wanted))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Two ends of one connection.
    pub(crate) fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        (client, server)
    }

    #[test]
    fn a_timeout_ends_early_never_late_and_is_seldom_set() {
        let current = AtomicU64::new(TIMEOUT_UNKNOWN);
        let ten_minutes = Duration::from_secs(600);
        assert_eq!(timeout_to_set(&current, ten_minutes), Some(Duration::from_secs(450)));
        assert_eq!(timeout_to_set(&current, ten_minutes), None);
        assert_eq!(timeout_to_set(&current, Duration::from_secs(500)), None);
        assert_eq!(timeout_to_set(&current, Duration::from_secs(400)), Some(Duration::from_secs(300)));
        assert_eq!(timeout_to_set(&current, Duration::from_millis(900)), Some(Duration::from_millis(900)));
        assert_eq!(timeout_to_set(&current, Duration::from_millis(899)), Some(Duration::from_millis(899)));
        assert_eq!(timeout_to_set(&current, Duration::from_nanos(1)), Some(Duration::from_micros(1)));
    }

    #[test]
    fn reading_and_writing_end_at_the_deadline() {
        let (client, _server) = pair();
        let stream = DeadlineStream::new(client);
        let deadline = Instant::now() + Duration::from_millis(50);
        let error = stream.read_before(&mut [0; 10], deadline).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(Instant::now() >= deadline);
        let deadline = Instant::now() + Duration::from_millis(50);
        // More than any buffer takes: the other end reads nothing.
        let error = stream.write_all_before(&vec![7; 64 << 20], deadline).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(Instant::now() >= deadline);
    }
}
