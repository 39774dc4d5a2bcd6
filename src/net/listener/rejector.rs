//! Turning connections away so that they hear why.
//!
//! Closing a socket that has unread bytes, or that gets some later, resets the connection, and a
//! reset may make the client's system throw away the answer before the client has read it. So the
//! answer is followed by our FIN, and the socket is kept a moment, reading and forgetting, until the
//! client has closed too.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};

use super::ListenerCounters;
use crate::net::frames::frame;
use crate::net::threads;

/// Refused connections kept at a time, each a descriptor.
const MAX_KEPT: usize = 64;

/// How long one is kept when its client does not close.
const KEPT_FOR: Duration = Duration::from_secs(1);

/// How long the one on the reserve descriptor is kept: nobody else is accepted meanwhile.
const KEPT_ON_RESERVE: Duration = Duration::from_millis(100);

/// How long a refused client may take to show by its first byte how it frames its messages; after that
/// it is told in a line.
const SHOWS_FRAMING_WITHIN: Duration = Duration::from_millis(200);

/// How often those kept are looked at.
const ROUND: Duration = Duration::from_millis(5);

/// What refused clients are told.
#[derive(Debug, Clone)]
pub struct Busy {
    line: Arc<[u8]>,
    /// For those who send frames, where that is possible.
    frame: Option<Arc<[u8]>>,
}

impl Busy {
    /// One message, told in the framing that the client begins with ([`crate::net::frames`]), or in a line.
    pub fn in_either_framing(message: &[u8]) -> Busy {
        Busy { line: [message, b"\n"].concat().into(), frame: frame(message).map(Arc::from) }
    }

    /// What to tell this client; none if it may still show what it speaks.
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

impl From<Vec<u8>> for Busy {
    /// The same bytes for every client.
    fn from(bytes: Vec<u8>) -> Busy {
        Busy { line: bytes.into(), frame: None }
    }
}

/// Refuses, on a thread of its own, so that accepting goes on meanwhile.
pub(super) struct Rejector {
    busy: Busy,
    hand_over: Sender<Refused>,
    counters: Arc<ListenerCounters>,
}

/// A client that is being refused.
struct Refused {
    stream: Arc<TcpStream>,
    since: Instant,
    is_told: bool,
}

impl Refused {
    /// Writes the answer and our end, unless the client may still show what it speaks. Never blocks: a fresh
    /// connection's buffer holds the answer.
    fn tell(&mut self, busy: &Busy, may_wait: bool) -> io::Result<()> {
        let mut stream = &*self.stream;
        stream.set_nonblocking(true)?;
        if !self.is_told
            && let Some(busy) = busy.for_client(stream, may_wait && self.since.elapsed() < SHOWS_FRAMING_WITHIN)
        {
            self.is_told = true;
            stream.write_all(busy)?;
            stream.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }

    /// Whether there is no more to be done for it.
    fn is_over(&mut self, busy: &Busy) -> bool {
        let failed = self.tell(busy, true).is_err();
        failed || self.is_told && (has_closed(&self.stream) || self.since.elapsed() >= KEPT_FOR)
    }
}

impl Rejector {
    /// Starts the thread; it ends when the rejector is dropped.
    pub(super) fn start(busy: Busy, counters: Arc<ListenerCounters>) -> io::Result<Rejector> {
        let (hand_over, handed) = bounded(MAX_KEPT);
        let its_busy = busy.clone();
        threads::spawn("rejector", move || keep(&handed, &its_busy))?;
        Ok(Rejector { busy, hand_over, counters })
    }

    /// Tells the client that we are busy, and has the connection closed.
    pub(super) fn turn_away(&self, stream: Arc<TcpStream>) {
        self.counters.refused.add(1);
        let mut refused = Refused { stream, since: Instant::now(), is_told: false };
        if refused.tell(&self.busy, true).is_err() {
            return;
        }
        if let Err(TrySendError::Full(mut refused) | TrySendError::Disconnected(mut refused)) =
            self.hand_over.try_send(refused)
        {
            self.counters.refused_in_a_hurry.add(1);
            // If it is gone already, so be it.
            let _ = refused.tell(&self.busy, false);
        }
    }

    /// The same within the call, because the connection's descriptor is needed back.
    pub(super) fn turn_away_here(&self, stream: Arc<TcpStream>) {
        self.counters.refused.add(1);
        let mut refused = Refused { stream, since: Instant::now(), is_told: false };
        let until = refused.since + KEPT_ON_RESERVE;
        loop {
            let may_wait = Instant::now() < until;
            if refused.tell(&self.busy, may_wait).is_err() || refused.is_told && has_closed(&refused.stream) {
                return;
            }
            if !may_wait {
                return self.counters.refused_in_a_hurry.add(1);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Keeps refused connections until their clients have closed, or long enough.
fn keep(handed: &Receiver<Refused>, busy: &Busy) {
    let mut kept: Vec<Refused> = Vec::new();
    loop {
        let wait = if kept.is_empty() { Duration::from_secs(3600) } else { ROUND };
        match handed.recv_timeout(wait) {
            Ok(refused) => {
                if kept.len() >= MAX_KEPT {
                    // The oldest had the most time to read, or to show what it speaks.
                    let _ = kept.remove(0).tell(busy, false);
                }
                kept.push(refused);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) if kept.is_empty() => return,
            // `recv_timeout` does not wait any more.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(ROUND),
        }
        kept.retain_mut(|refused| !refused.is_over(busy));
    }
}

/// Reads what is there and forgets it; whether the client has closed.
fn has_closed(mut stream: &TcpStream) -> bool {
    let mut bytes = [0; 4096];
    // A bound, so that one that sends and sends does not keep the thread from the others.
    for _ in 0..16 {
        match stream.read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }
    false
}

/// One descriptor kept back, for telling a client that no other is left.
///
/// `accept` wants a descriptor before it waits. When it gets none, the reserve is let go, so that it
/// can wait for the next client with that one; and if the reserve is not to be had again then, that
/// client is refused.
pub(super) struct Reserve(Option<File>);

impl Reserve {
    /// Takes the descriptor.
    pub(super) fn take() -> io::Result<Reserve> {
        // Windows has no such bound on sockets, and no such file.
        if cfg!(unix) { Ok(Reserve(Some(File::open("/dev/null")?))) } else { Ok(Reserve(None)) }
    }

    /// Lets the descriptor go. False if it was gone already.
    pub(super) fn release(&mut self) -> bool {
        self.0.take().is_some()
    }

    /// Has the descriptor again, if there is one. False if not.
    pub(super) fn regain(&mut self) -> bool {
        if self.0.is_none() {
            match Reserve::take() {
                Ok(taken) => *self = taken,
                Err(_none_left) => return false,
            }
        }
        true
    }
}
