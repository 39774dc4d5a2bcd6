//! Rejecting connections so that the client can read the reason. Closing a socket that has unread bytes, or that
//! receives some later, resets the connection, and then the client's system may discard the response. So the response
//! is followed by our FIN, and the socket is kept for a moment, discarding what it receives, until the client has
//! closed too.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::ListenerCounters;
use crate::net::frames::encode_frame;
use crate::net::threads;

/// Each occupies a descriptor.
const MAX_DRAINING: usize = 64;
/// How long a connection is kept that its client does not close.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the connection on the reserve descriptor is kept: no other is accepted meanwhile.
const RESERVE_DRAIN_TIMEOUT: Duration = Duration::from_millis(100);
/// How long a client may take to show its framing by its first byte. After that it is answered with a line.
const FRAMING_DETECTION_TIMEOUT: Duration = Duration::from_millis(200);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

#[derive(Debug, Clone)]
pub struct BusyResponse {
    line: Arc<[u8]>,
    /// The response for clients that send frames; without it all are sent the line.
    frame: Option<Arc<[u8]>>,
}

impl BusyResponse {
    /// The message is sent in the framing that the client begins with ([`crate::net::frames`]), otherwise as a line.
    pub fn in_client_framing(message: &[u8]) -> BusyResponse {
        BusyResponse { line: [message, b"\n"].concat().into(), frame: encode_frame(message).map(Arc::from) }
    }

    /// `None` if the client may still show its framing.
    fn for_client(&self, stream: &TcpStream, may_wait: bool) -> Option<&[u8]> {
        let Some(frame) = &self.frame else { return Some(&self.line) };
        let mut first = [0];
        match stream.peek(&mut first) {
            Ok(1) if first[0] == 0 => Some(frame),
            Err(error) if error.kind() == ErrorKind::WouldBlock && may_wait => None,
            _ => Some(&self.line),
        }
    }
}

impl From<Vec<u8>> for BusyResponse {
    /// The same bytes for every client.
    fn from(bytes: Vec<u8>) -> BusyResponse {
        BusyResponse { line: bytes.into(), frame: None }
    }
}

/// It has a thread of its own, so that accepting goes on meanwhile.
pub(super) struct Rejector {
    busy: BusyResponse,
    drain_sender: Sender<RejectedConnection>,
    counters: Arc<ListenerCounters>,
}

struct RejectedConnection {
    stream: Arc<TcpStream>,
    since: Instant,
    is_answered: bool,
}

impl RejectedConnection {
    /// Writes the response and our FIN, unless the client may still show its framing. Never blocks: the empty send
    /// buffer of a new connection holds the response.
    fn try_answer(&mut self, busy: &BusyResponse, may_wait: bool) -> io::Result<()> {
        let mut stream = &*self.stream;
        stream.set_nonblocking(true)?;
        if !self.is_answered
            && let Some(busy) = busy.for_client(stream, may_wait && self.since.elapsed() < FRAMING_DETECTION_TIMEOUT)
        {
            self.is_answered = true;
            stream.write_all(busy)?;
            stream.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }

    fn is_over(&mut self, busy: &BusyResponse) -> bool {
        let failed = self.try_answer(busy, true).is_err();
        failed || self.is_answered && (discard_input(&self.stream) || self.since.elapsed() >= DRAIN_TIMEOUT)
    }
}

impl Rejector {
    /// The thread ends when the rejector is dropped.
    pub(super) fn start(busy: BusyResponse, counters: Arc<ListenerCounters>) -> io::Result<Rejector> {
        let (drain_sender, drain_receiver) = bounded(MAX_DRAINING);
        let its_busy = busy.clone();
        threads::spawn("rejector", move || drain_rejected(&drain_receiver, &its_busy))?;
        Ok(Rejector { busy, drain_sender, counters })
    }

    pub(super) fn reject(&self, stream: Arc<TcpStream>) {
        self.counters.refused.add(1);
        let mut rejected = RejectedConnection { stream, since: Instant::now(), is_answered: false };
        if rejected.try_answer(&self.busy, true).is_err() {
            return;
        }
        if let Err(unsent) = self.drain_sender.try_send(rejected) {
            self.counters.closed_early.add(1);
            // An error means that the client has disconnected already.
            let _ = unsent.into_inner().try_answer(&self.busy, false);
        }
    }

    /// The connection is closed when this returns, because its descriptor is needed again.
    pub(super) fn reject_blocking(&self, stream: Arc<TcpStream>) {
        self.counters.refused.add(1);
        let mut rejected = RejectedConnection { stream, since: Instant::now(), is_answered: false };
        let until = rejected.since + RESERVE_DRAIN_TIMEOUT;
        loop {
            let may_wait = Instant::now() < until;
            if rejected.try_answer(&self.busy, may_wait).is_err()
                || rejected.is_answered && discard_input(&rejected.stream)
            {
                return;
            }
            if !may_wait {
                return self.counters.closed_early.add(1);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn drain_rejected(drain_receiver: &Receiver<RejectedConnection>, busy: &BusyResponse) {
    let mut draining: Vec<RejectedConnection> = Vec::new();
    loop {
        let wait = if draining.is_empty() { Duration::from_secs(3600) } else { POLL_INTERVAL };
        match drain_receiver.recv_timeout(wait) {
            Ok(rejected) => {
                if draining.len() >= MAX_DRAINING {
                    // The oldest had the most time to read, or to show its framing.
                    let _ = draining.remove(0).try_answer(busy, false);
                }
                draining.push(rejected);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) if draining.is_empty() => return,
            // `recv_timeout` returns at once when the channel is disconnected.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(POLL_INTERVAL),
        }
        draining.retain_mut(|rejected| !rejected.is_over(busy));
    }
}

/// Returns whether the client has closed the connection.
fn discard_input(mut stream: &TcpStream) -> bool {
    let mut bytes = [0; 4096];
    // Bounded, so that a client that keeps sending does not occupy the thread.
    for _ in 0..16 {
        match stream.read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }
    false
}

/// A spare file descriptor, for rejecting a client when no other is left: `accept` needs a descriptor before it waits.
/// When it gets none, the reserve is released for it; if the reserve cannot be reacquired once `accept` has returned,
/// that client is rejected.
pub(super) struct ReserveDescriptor(Option<File>);

impl ReserveDescriptor {
    pub(super) fn open() -> io::Result<ReserveDescriptor> {
        // Windows has no such limit on sockets, and no such file.
        if cfg!(unix) { Ok(ReserveDescriptor(Some(File::open("/dev/null")?))) } else { Ok(ReserveDescriptor(None)) }
    }

    /// False if it was closed already.
    pub(super) fn release(&mut self) -> bool {
        self.0.take().is_some()
    }

    /// False if there is no descriptor.
    pub(super) fn reacquire(&mut self) -> bool {
        if self.0.is_none() {
            match ReserveDescriptor::open() {
                Ok(taken) => *self = taken,
                Err(_none_left) => return false,
            }
        }
        true
    }
}
