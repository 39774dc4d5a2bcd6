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

use super::tcp::TcpCounters;
use super::threads;

/// Refused connections kept at a time, each a descriptor.
const MAX_KEPT: usize = 64;

/// How long one is kept when its client does not close.
const KEPT_FOR: Duration = Duration::from_secs(1);

/// How long the one on the reserve descriptor is kept: nobody else is accepted meanwhile.
const KEPT_ON_RESERVE: Duration = Duration::from_millis(100);

/// How often those kept are looked at.
const ROUND: Duration = Duration::from_millis(5);

/// Refuses, on a thread of its own, so that accepting goes on meanwhile.
pub(super) struct Doorman {
    busy: Arc<[u8]>,
    hand_over: Sender<Arc<TcpStream>>,
    counters: Arc<TcpCounters>,
}

impl Doorman {
    /// Starts the thread; it ends when the doorman is dropped.
    pub(super) fn start(busy: Vec<u8>, counters: Arc<TcpCounters>) -> io::Result<Doorman> {
        let (hand_over, handed) = bounded(MAX_KEPT);
        threads::spawn("doorman", move || keep(&handed))?;
        Ok(Doorman { busy: busy.into(), hand_over, counters })
    }

    /// Tells the client that we are busy, and has the connection closed.
    pub(super) fn turn_away(&self, stream: Arc<TcpStream>) {
        self.counters.refused.add(1);
        let is_told = self.tell(&stream).is_ok();
        if is_told && let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.hand_over.try_send(stream) {
            self.counters.refused_in_a_hurry.add(1);
        }
    }

    /// The same within the call, because the connection's descriptor is needed back.
    pub(super) fn turn_away_here(&self, stream: &TcpStream) {
        self.counters.refused.add(1);
        if self.tell(stream).is_err() {
            return;
        }
        let until = Instant::now() + KEPT_ON_RESERVE;
        while !has_closed(stream) {
            if Instant::now() >= until {
                self.counters.refused_in_a_hurry.add(1);
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Writes the answer and our end. Never blocks: a fresh connection's buffer holds the answer.
    fn tell(&self, mut stream: &TcpStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        stream.write_all(&self.busy)?;
        stream.shutdown(Shutdown::Write)
    }
}

/// Keeps refused connections until their clients have closed, or long enough.
fn keep(handed: &Receiver<Arc<TcpStream>>) {
    let mut kept: Vec<(Arc<TcpStream>, Instant)> = Vec::new();
    loop {
        let wait = if kept.is_empty() { Duration::from_secs(3600) } else { ROUND };
        match handed.recv_timeout(wait) {
            Ok(stream) => {
                if kept.len() >= MAX_KEPT {
                    kept.remove(0); // the oldest had the most time to read
                }
                kept.push((stream, Instant::now() + KEPT_FOR));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) if kept.is_empty() => return,
            // `recv_timeout` does not wait any more.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(ROUND),
        }
        kept.retain(|(stream, until)| !has_closed(stream) && Instant::now() < *until);
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
