//! A UDP server: each datagram has a thread to itself for as long as it is being handled.
//!
//! Leader and followers: a few threads wait in `recv_from` on the one socket; whoever receives
//! handles the datagram itself and then goes back to receiving. So a quick request is never handed
//! from thread to thread. When nobody is left to receive, because every thread handles something, the
//! one that received last first gets another receiver going; so one always reads while requests
//! wait for a commit. Threads gained that way stay for a while: under steady load nobody is woken.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use log::{debug, warn};
use parking_lot::{Condvar, Mutex};

use super::counters::{Counter, Seldom};
use super::threads::Executor;

mod kernel;
#[cfg(target_os = "linux")]
mod outbox;
mod socket;
pub(super) use kernel::grow_receive_buffer;
#[cfg(target_os = "linux")]
pub use outbox::gather;
pub use socket::ServerSocket;

/// Does something. Elsewhere datagrams leave one by one; see Linux.
#[cfg(not(target_os = "linux"))]
pub fn gather(work: impl FnOnce()) -> u64 {
    work();
    0
}

/// How many threads wait in `recv_from` when nothing is going on. Two, so that while one handles a
/// quick request the other takes the next and nobody has to be woken; on one core the second would
/// only cost switches.
fn receivers_at_rest() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(2))
}

/// A thread that found enough others receiving this many times in a row goes back to the executor.
/// Leaving at the first time would mean waking it again a moment later.
const SURPLUS_ROUNDS: u32 = 256;

/// How long one `recv_from` waits: the fallback by which a thread that no wake-up reached sees the
/// end, and by which surplus receivers of an idle server retire.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(1);

/// The pause after a receive error, so that a lasting one does not take a whole core.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// The bounds of a server.
#[derive(Debug, Clone, Copy)]
pub struct UdpLimits {
    /// Datagrams being handled at a time (at least 1); each has a thread.
    pub max_in_hand: usize,
    /// Datagrams that wait for a thread; those past it are dropped.
    pub queue_len: usize,
    /// And their bytes in all.
    pub queue_bytes: usize,
    /// The longest datagram taken whole, bytes.
    pub max_datagram: usize,
}

/// One datagram, as it came.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    /// Its content, at most [`UdpLimits::max_datagram`] bytes of it.
    pub bytes: &'a [u8],
    /// Who sent it.
    pub source: SocketAddr,
    /// Which of this host's addresses it was sent to, where the socket is bound to all and the system tells.
    pub to: Option<IpAddr>,
    /// It was longer than allowed, and `bytes` is only its beginning.
    pub truncated: bool,
}

/// What is done with a datagram. It may block; a panic in it harms no other.
pub type UdpHandler = Arc<dyn Fn(Datagram<'_>) + Send + Sync>;

/// A running server.
pub struct UdpServer {
    shared: Arc<Shared>,
}

struct Shared {
    socket: Arc<ServerSocket>,
    executor: Arc<Executor>,
    limits: UdpLimits,
    at_rest: usize,
    handler: UdpHandler,
    /// Threads in `recv_from`, on their way there, or promised.
    receivers: AtomicUsize,
    in_hand: AtomicUsize,
    queue: Mutex<Queue>,
    /// The queue's length, to be looked at without its lock.
    queued: AtomicUsize,
    is_stopping: AtomicBool,
    /// For `stop`: told when a receiver has left. The lock guards nothing but the waiting.
    left: (Mutex<()>, Condvar),
    counters: UdpCounters,
    complaints: Seldom,
}

#[derive(Default)]
struct Queue {
    datagrams: VecDeque<Queued>,
    /// Of all of them.
    bytes: usize,
}

struct Queued {
    bytes: Box<[u8]>,
    source: SocketAddr,
    to: Option<IpAddr>,
    truncated: bool,
}

/// What a server did so far.
#[derive(Debug, Default)]
pub struct UdpCounters {
    /// Datagrams received.
    pub received: Counter,
    /// Datagrams that had to wait for a thread.
    pub queued: Counter,
    /// Datagrams dropped because the queue was full, or at the end.
    pub dropped: Counter,
    /// Datagrams longer than allowed.
    pub oversized: Counter,
    /// Errors of `recv_from`.
    pub receive_errors: Counter,
}

impl UdpCounters {
    /// Every counter with its name.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("received", self.received.get()),
            ("queued", self.queued.get()),
            ("dropped", self.dropped.get()),
            ("oversized", self.oversized.get()),
            ("receive_errors", self.receive_errors.get()),
        ]
    }
}

impl UdpServer {
    /// Begins to receive on threads of the executor. The handler answers through a clone of the
    /// socket's `Arc`.
    ///
    /// # Errors
    /// The system's, for socket options; `WouldBlock` when the executor has no thread free.
    pub fn start(
        socket: Arc<ServerSocket>,
        executor: Arc<Executor>,
        limits: UdpLimits,
        handler: UdpHandler,
    ) -> io::Result<UdpServer> {
        socket.get().set_nonblocking(false)?;
        socket.get().set_read_timeout(Some(RECEIVE_TIMEOUT))?;
        grow_receive_buffer(socket.get());
        let shared = Arc::new(Shared {
            socket,
            executor,
            limits: UdpLimits { max_in_hand: limits.max_in_hand.max(1), ..limits },
            at_rest: receivers_at_rest(),
            handler,
            receivers: AtomicUsize::new(0),
            in_hand: AtomicUsize::new(0),
            queue: Mutex::default(),
            queued: AtomicUsize::new(0),
            is_stopping: AtomicBool::new(false),
            left: (Mutex::new(()), Condvar::new()),
            counters: UdpCounters::default(),
            complaints: Seldom::minutely(),
        });
        for nth in 0..shared.at_rest {
            if !shared.add_receiver() && nth == 0 {
                return Err(io::Error::new(ErrorKind::WouldBlock, "no request thread is free to receive datagrams"));
            }
        }
        Ok(UdpServer { shared })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.shared.socket.get().local_addr()
    }

    /// Datagrams being handled now.
    pub fn in_hand(&self) -> usize {
        self.shared.in_hand.load(SeqCst)
    }

    /// Datagrams that the kernel dropped because we did not read them soon enough, where it tells.
    pub fn dropped_by_kernel(&self) -> Option<u64> {
        kernel::dropped(self.shared.socket.get())
    }

    /// What was counted so far.
    pub fn counters(&self) -> &UdpCounters {
        &self.shared.counters
    }

    /// Ends receiving, at once if wake-up datagrams reach the socket itself, else within about a
    /// second. What is in hand or queued is handled to the end: wait for it with
    /// [`Executor::finish`].
    pub fn stop(&self) {
        let shared = &self.shared;
        shared.is_stopping.store(true, SeqCst);
        let give_up_at = Instant::now() + 2 * RECEIVE_TIMEOUT;
        let mut wait = Duration::from_millis(20);
        while shared.receivers.load(SeqCst) > 0 && Instant::now() < give_up_at {
            shared.wake_receivers();
            let mut waiting = shared.left.0.lock();
            if shared.receivers.load(SeqCst) > 0 {
                shared.left.1.wait_for(&mut waiting, wait);
            }
            // Another process may share the port: it should not be flooded by our wake-ups.
            // Each receiver that leaves ends the wait early: without a limit, some sixty of them would double
            // it past what a Duration holds.
            wait = (2 * wait).min(RECEIVE_TIMEOUT);
        }
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    /// Gets another thread to receive. False if none is to be had.
    fn add_receiver(self: &Arc<Self>) -> bool {
        self.receivers.fetch_add(1, SeqCst);
        let shared = Arc::clone(self);
        let is_started = self.executor.execute(move || shared.receive()).is_ok();
        if !is_started {
            self.receivers.fetch_sub(1, SeqCst);
        }
        is_started
    }

    /// A receiver's work until it is not needed any more. It is counted among the receivers when it
    /// begins, and not when it ends.
    fn receive(self: &Arc<Self>) {
        // One byte more than allowed tells a datagram that is too long from one that just fits.
        // Windows refuses to cut datagrams, so there the buffer holds any.
        let room = if cfg!(windows) { 65_536 } else { self.limits.max_datagram + 1 };
        let mut buffer = vec![0; room];
        let mut surplus_rounds = 0;
        loop {
            let received = self.socket.receive(&mut buffer);
            if self.is_stopping.load(SeqCst) {
                // A wake-up is empty; anything else came too late.
                if received.is_ok_and(|(len, ..)| len > 0) {
                    self.counters.dropped.add(1);
                }
                self.leave();
                return;
            }
            match received {
                Ok((len, source, to)) => {
                    let truncated = len > self.limits.max_datagram;
                    let bytes = &buffer[..len.min(self.limits.max_datagram)];
                    let was_handled = self.take(Datagram { bytes, source, to, truncated });
                    if was_handled && !self.return_to_receiving(&mut surplus_rounds) {
                        return;
                    }
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut if self.leave_if_surplus() => return,
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                    // Such as an ICMP "connection refused" for an answer sent before: no reason to stop.
                    _ => {
                        self.counters.receive_errors.add(1);
                        if self.complaints.now() {
                            warn!("receiving a datagram: {error}");
                        }
                        std::thread::sleep(ERROR_PAUSE);
                    }
                },
            }
        }
    }

    /// Handles the datagram or queues it. True if this thread ceased to be a receiver for it.
    fn take(self: &Arc<Self>, datagram: Datagram<'_>) -> bool {
        self.counters.received.add(1);
        if datagram.truncated {
            self.counters.oversized.add(1);
        }
        if self.try_begin() {
            if self.cease_to_receive() {
                self.handle(datagram);
                self.finish();
                return true;
            }
            self.end();
        }
        self.enqueue(datagram);
        // Those in hand empty the queue when they finish. But the last of them may have looked just
        // before this datagram got there; then it falls to this thread.
        while self.queued.load(SeqCst) > 0 && self.try_begin() {
            if self.cease_to_receive() {
                self.finish();
                return true;
            }
            self.end();
            if self.in_hand.load(SeqCst) > 0 {
                break; // whoever it is looks into the queue after this
            }
        }
        false
    }

    /// Stops counting this thread as a receiver, after getting another one going if it was the last.
    /// False, and it stays the receiver, if no other is to be had while others handle datagrams.
    fn cease_to_receive(self: &Arc<Self>) -> bool {
        if self.receivers.fetch_sub(1, SeqCst) > 1 || self.is_stopping.load(SeqCst) || self.add_receiver() {
            return true;
        }
        // This thread has begun itself, so one in hand means that it is alone: if it does not handle
        // datagrams, nobody does, and the kernel's buffer has to do meanwhile.
        if self.in_hand.load(SeqCst) <= 1 {
            return true;
        }
        self.receivers.fetch_add(1, SeqCst);
        false
    }

    /// After handling: makes this thread a receiver again, unless others do and have done so for
    /// long, or the end has come.
    fn return_to_receiving(&self, surplus_rounds: &mut u32) -> bool {
        if self.receivers.load(SeqCst) < self.at_rest {
            *surplus_rounds = 0;
        } else {
            *surplus_rounds += 1;
            if *surplus_rounds > SURPLUS_ROUNDS {
                return false;
            }
        }
        self.receivers.fetch_add(1, SeqCst);
        // Only after that: `stop` sets the flag before it looks who is receiving.
        if self.is_stopping.load(SeqCst) {
            self.leave();
            return false;
        }
        true
    }

    /// Counts one more in hand, if it may be.
    fn try_begin(&self) -> bool {
        let one_more = |in_hand| (in_hand < self.limits.max_in_hand).then_some(in_hand + 1);
        self.in_hand.fetch_update(SeqCst, SeqCst, one_more).is_ok()
    }

    fn end(&self) {
        self.in_hand.fetch_sub(1, SeqCst);
    }

    fn handle(&self, datagram: Datagram<'_>) {
        self.executor.contain(|| (self.handler)(datagram));
    }

    /// Handles what is queued, then counts this thread out.
    fn finish(&self) {
        loop {
            while let Some(next) = self.dequeue() {
                self.handle(Datagram {
                    bytes: &next.bytes,
                    source: next.source,
                    to: next.to,
                    truncated: next.truncated,
                });
            }
            self.end();
            // One that was queued between the last look and counting out has seen no place free.
            if self.queued.load(SeqCst) == 0 || !self.try_begin() {
                return;
            }
        }
    }

    fn enqueue(&self, datagram: Datagram<'_>) {
        if self.queued.load(SeqCst) >= self.limits.queue_len {
            self.counters.dropped.add(1);
            return;
        }
        let Datagram { bytes, source, to, truncated } = datagram;
        let queued = Queued { bytes: bytes.into(), source, to, truncated };
        let mut queue = self.queue.lock();
        // Looked at again: several may have found the last place free.
        let bytes_then = queue.bytes + queued.bytes.len();
        let has_room = queue.datagrams.len() < self.limits.queue_len && bytes_then <= self.limits.queue_bytes;
        if has_room {
            queue.datagrams.push_back(queued);
            queue.bytes = bytes_then;
            self.queued.store(queue.datagrams.len(), SeqCst);
        }
        drop(queue);
        if has_room { self.counters.queued.add(1) } else { self.counters.dropped.add(1) }
    }

    fn dequeue(&self) -> Option<Queued> {
        // The usual case costs no lock.
        if self.queued.load(SeqCst) == 0 {
            return None;
        }
        let mut queue = self.queue.lock();
        let next = queue.datagrams.pop_front();
        queue.bytes -= next.as_ref().map_or(0, |next| next.bytes.len());
        self.queued.store(queue.datagrams.len(), SeqCst);
        if queue.datagrams.is_empty() {
            // The memory of an overload is given back.
            queue.datagrams = VecDeque::new();
        }
        next
    }

    fn leave(&self) {
        self.receivers.fetch_sub(1, SeqCst);
        let _waiting = self.left.0.lock();
        self.left.1.notify_all();
    }

    /// Leaves if enough others receive.
    fn leave_if_surplus(&self) -> bool {
        let one_less = |receivers| (receivers > self.at_rest).then(|| receivers - 1);
        self.receivers.fetch_update(SeqCst, SeqCst, one_less).is_ok()
    }

    /// Sends one empty datagram to ourselves for each receiver.
    fn wake_receivers(&self) {
        let Ok(mut to) = self.socket.get().local_addr() else { return };
        match to.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => to.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => to.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        for _ in 0..self.receivers.load(SeqCst) {
            if let Err(error) = self.socket.get().send_to(&[], to) {
                // The receive timeout does it then.
                debug!("waking receivers at {to}: {error}");
                return;
            }
        }
    }
}

impl fmt::Debug for UdpServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpServer")
            .field("socket", &self.shared.socket)
            .field("in_hand", &self.in_hand())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
