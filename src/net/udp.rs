//! A UDP server by the leader/followers pattern: a few threads wait in `recv_from` on the one socket; the one that
//! receives handles the datagram itself and then receives again, so a quick request is never handed from thread to
//! thread. The last receiver, before it handles a datagram, starts another, so one thread always reads while requests
//! wait for a commit. Threads added that way stay for a while: under steady load none has to be woken.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use log::{debug, warn};
use parking_lot::{Condvar, Mutex};

use super::backoff::Backoff;
use super::counters::counters;
use super::interfaces::reachable_addr;
use super::log_throttle::LogThrottle;
use super::threads::Executor;

mod kernel;
#[cfg(target_os = "linux")]
mod outbox;
mod socket;
pub(super) use kernel::grow_receive_buffer;
#[cfg(target_os = "linux")]
pub use outbox::batch_sends;
pub use socket::UdpServerSocket;

/// Datagrams leave one by one; see Linux.
#[cfg(not(target_os = "linux"))]
pub fn batch_sends(work: impl FnOnce()) -> u64 {
    work();
    0
}

/// Threads that wait in `recv_from` while the server is idle. Two, so that while one handles a quick request the other
/// takes the next, and no thread has to be woken; on one core the second would only cost context switches.
fn receivers_at_rest() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(2))
}

/// A receiver that found enough others receiving this many times in a row returns to the executor. At the first time
/// it would have to be woken again a moment later.
const SURPLUS_ROUNDS: u32 = 256;
/// How long one `recv_from` waits: the fallback by which a thread that was not woken notices the stop, and surplus
/// receivers of an idle server retire.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the end waits after its first wake-up datagrams before it sends more; doubled each time.
const FIRST_WAKE_UP_WAIT: Duration = Duration::from_millis(20);
/// The pause after a receive error, so that a lasting one does not occupy a whole core.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Copy)]
pub struct UdpLimits {
    /// Datagrams being handled at a time, at least 1; each has a thread.
    pub max_handlers: usize,
    /// Datagrams that may wait for a thread; further ones are dropped.
    pub queue_len: usize,
    /// The bytes of all waiting datagrams together.
    pub queue_bytes: usize,
    pub max_datagram_bytes: usize,
}

#[derive(Debug, Clone, Copy)]
pub struct Datagram<B> {
    /// The content, truncated to [`UdpLimits::max_datagram_bytes`] bytes.
    pub bytes: B,
    pub source: SocketAddr,
    /// The local address that it was sent to, if the socket is bound to all addresses and the system reports it.
    pub to: Option<IpAddr>,
    pub is_truncated: bool,
}

/// It may block; a panic in it affects no other datagram.
pub type UdpHandler = Arc<dyn Fn(Datagram<&[u8]>) + Send + Sync>;

pub struct UdpServer {
    inner: Arc<UdpServerInner>,
}

struct UdpServerInner {
    socket: Arc<UdpServerSocket>,
    executor: Arc<Executor>,
    limits: UdpLimits,
    receivers_at_rest: usize,
    handler: UdpHandler,
    /// Threads in `recv_from` or about to enter it, including those just started.
    receivers: AtomicUsize,
    running_handlers: AtomicUsize,
    queue: Mutex<DatagramQueue>,
    /// The queue's length, readable without its lock.
    queued: AtomicUsize,
    is_stopping: AtomicBool,
    /// For `stop`: notified when a receiver has left. The lock guards nothing but the waiting.
    left: (Mutex<()>, Condvar),
    counters: UdpCounters,
    log_throttle: LogThrottle,
}

#[derive(Default)]
struct DatagramQueue {
    datagrams: VecDeque<Datagram<Box<[u8]>>>,
    bytes: usize,
}

counters! {
    pub struct UdpCounters {
        received,
        /// Datagrams that had to wait for a thread.
        queued,
        /// Datagrams that found the queue full, or came at the end.
        dropped,
        oversized,
        receive_errors,
    }
}

impl UdpServer {
    /// The handler responds through a clone of the socket's `Arc`. `WouldBlock` when the executor has no free thread.
    pub fn start(
        socket: Arc<UdpServerSocket>,
        executor: Arc<Executor>,
        limits: UdpLimits,
        handler: UdpHandler,
    ) -> io::Result<UdpServer> {
        socket.get().set_nonblocking(false)?;
        socket.get().set_read_timeout(Some(RECEIVE_TIMEOUT))?;
        grow_receive_buffer(socket.get());
        let inner = Arc::new(UdpServerInner {
            socket,
            executor,
            limits: UdpLimits { max_handlers: limits.max_handlers.max(1), ..limits },
            receivers_at_rest: receivers_at_rest(),
            handler,
            receivers: AtomicUsize::new(0),
            running_handlers: AtomicUsize::new(0),
            queue: Mutex::default(),
            queued: AtomicUsize::new(0),
            is_stopping: AtomicBool::new(false),
            left: (Mutex::new(()), Condvar::new()),
            counters: UdpCounters::default(),
            log_throttle: LogThrottle::every_minute(),
        });
        for nth in 0..inner.receivers_at_rest {
            if !inner.add_receiver() && nth == 0 {
                return Err(io::Error::new(ErrorKind::WouldBlock, "no request thread is free to receive datagrams"));
            }
        }
        Ok(UdpServer { inner })
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.socket.get().local_addr()
    }

    pub fn running_handlers(&self) -> usize {
        self.inner.running_handlers.load(SeqCst)
    }

    /// Datagrams that were not read soon enough, if the system reports them.
    pub fn dropped_by_kernel(&self) -> Option<u64> {
        kernel::dropped_datagrams(self.inner.socket.get())
    }

    pub fn counters(&self) -> &UdpCounters {
        &self.inner.counters
    }

    /// Ends receiving: at once if the wake-up datagrams reach the socket, otherwise within about a second. Datagrams
    /// being handled or queued are handled to the end: wait for that with [`Executor::shut_down`].
    pub fn stop(&self) {
        let inner = &self.inner;
        inner.is_stopping.store(true, SeqCst);
        let give_up_at = Instant::now() + 2 * RECEIVE_TIMEOUT;
        // Another process may share the port: it must not be flooded with wake-ups.
        let mut backoff = Backoff::new(FIRST_WAKE_UP_WAIT, RECEIVE_TIMEOUT);
        while inner.receivers.load(SeqCst) > 0 && Instant::now() < give_up_at {
            inner.wake_receivers();
            let mut waiting = inner.left.0.lock();
            if inner.receivers.load(SeqCst) > 0 {
                inner.left.1.wait_for(&mut waiting, backoff.next_pause());
            }
        }
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl UdpServerInner {
    /// False if the executor has no free thread.
    fn add_receiver(self: &Arc<Self>) -> bool {
        self.receivers.fetch_add(1, SeqCst);
        let inner = Arc::clone(self);
        let is_started = self.executor.execute(move || inner.receive()).is_ok();
        if !is_started {
            self.receivers.fetch_sub(1, SeqCst);
        }
        is_started
    }

    /// The thread is counted among the receivers when this begins, and not any more when it returns.
    fn receive(self: &Arc<Self>) {
        // One byte more than allowed distinguishes a datagram that is too long from one that just fits. Windows refuses
        // to truncate datagrams, so there the buffer holds any.
        let room = if cfg!(windows) { 65_536 } else { self.limits.max_datagram_bytes + 1 };
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
                    let is_truncated = len > self.limits.max_datagram_bytes;
                    let bytes = &buffer[..len.min(self.limits.max_datagram_bytes)];
                    let was_handled = self.dispatch(Datagram { bytes, source, to, is_truncated });
                    if was_handled && !self.resume_receiving(&mut surplus_rounds) {
                        return;
                    }
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut if self.leave_if_surplus() => return,
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                    // Such as an ICMP "connection refused" for a response sent before: no reason to stop.
                    _ => {
                        self.counters.receive_errors.add(1);
                        if self.log_throttle.should_log() {
                            warn!("receiving a datagram: {error}");
                        }
                        std::thread::sleep(ERROR_PAUSE);
                    }
                },
            }
        }
    }

    /// True if this thread is not counted as a receiver any more.
    fn dispatch(self: &Arc<Self>, datagram: Datagram<&[u8]>) -> bool {
        self.counters.received.add(1);
        if datagram.is_truncated {
            self.counters.oversized.add(1);
        }
        if self.try_begin_handling() {
            if self.stop_receiving() {
                self.handle(datagram);
                self.finish();
                return true;
            }
            self.end_handling();
        }
        self.enqueue(datagram);
        // The handling threads empty the queue when they finish; but the last may have checked it just before this
        // datagram was queued, and then this thread has to.
        while self.queued.load(SeqCst) > 0 && self.try_begin_handling() {
            if self.stop_receiving() {
                self.finish();
                return true;
            }
            self.end_handling();
            if self.running_handlers.load(SeqCst) > 0 {
                break; // that thread checks the queue after this
            }
        }
        false
    }

    /// Stops counting this thread as a receiver, after starting another one if it was the last. Returns false, and the
    /// thread stays the receiver, if none can be started while others handle datagrams.
    fn stop_receiving(self: &Arc<Self>) -> bool {
        if self.receivers.fetch_sub(1, SeqCst) > 1 || self.is_stopping.load(SeqCst) || self.add_receiver() {
            return true;
        }
        // One means that this thread, which is counted as handling, is alone: if it does not handle datagrams, nobody
        // does, and the kernel's buffer has to do meanwhile.
        if self.running_handlers.load(SeqCst) <= 1 {
            return true;
        }
        self.receivers.fetch_add(1, SeqCst);
        false
    }

    /// False if enough others have been receiving for long, or the server is stopping.
    fn resume_receiving(&self, surplus_rounds: &mut u32) -> bool {
        if self.receivers.load(SeqCst) < self.receivers_at_rest {
            *surplus_rounds = 0;
        } else {
            *surplus_rounds += 1;
            if *surplus_rounds > SURPLUS_ROUNDS {
                return false;
            }
        }
        self.receivers.fetch_add(1, SeqCst);
        // Checked only after counting: `stop` sets the flag before it looks at the number of receivers.
        if self.is_stopping.load(SeqCst) {
            self.leave();
            return false;
        }
        true
    }

    fn try_begin_handling(&self) -> bool {
        let one_more = |in_hand| (in_hand < self.limits.max_handlers).then_some(in_hand + 1);
        self.running_handlers.fetch_update(SeqCst, SeqCst, one_more).is_ok()
    }

    fn end_handling(&self) {
        self.running_handlers.fetch_sub(1, SeqCst);
    }

    fn handle(&self, datagram: Datagram<&[u8]>) {
        self.executor.catch_panic(|| (self.handler)(datagram));
    }

    /// Handles what is queued, then stops counting this thread as handling.
    fn finish(&self) {
        loop {
            while let Some(next) = self.dequeue() {
                let Datagram { bytes, source, to, is_truncated } = next;
                self.handle(Datagram { bytes: &bytes, source, to, is_truncated });
            }
            self.end_handling();
            // A datagram queued between the last check and the end has found no handler free.
            if self.queued.load(SeqCst) == 0 || !self.try_begin_handling() {
                return;
            }
        }
    }

    fn enqueue(&self, datagram: Datagram<&[u8]>) {
        if self.queued.load(SeqCst) >= self.limits.queue_len {
            self.counters.dropped.add(1);
            return;
        }
        let Datagram { bytes, source, to, is_truncated } = datagram;
        let queued = Datagram { bytes: Box::<[u8]>::from(bytes), source, to, is_truncated };
        let mut queue = self.queue.lock();
        // Checked again: several threads may have found the last slot free.
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

    fn dequeue(&self) -> Option<Datagram<Box<[u8]>>> {
        // The usual case takes no lock.
        if self.queued.load(SeqCst) == 0 {
            return None;
        }
        let mut queue = self.queue.lock();
        let next = queue.datagrams.pop_front();
        queue.bytes -= next.as_ref().map_or(0, |next| next.bytes.len());
        self.queued.store(queue.datagrams.len(), SeqCst);
        if queue.datagrams.is_empty() {
            // Release the memory of an overload.
            queue.datagrams = VecDeque::new();
        }
        next
    }

    fn leave(&self) {
        self.receivers.fetch_sub(1, SeqCst);
        let _waiting = self.left.0.lock();
        self.left.1.notify_all();
    }

    fn leave_if_surplus(&self) -> bool {
        let one_less = |receivers| (receivers > self.receivers_at_rest).then(|| receivers - 1);
        self.receivers.fetch_update(SeqCst, SeqCst, one_less).is_ok()
    }

    /// Sends one empty datagram to our own socket for each receiver.
    fn wake_receivers(&self) {
        let Ok(to) = self.socket.get().local_addr().map(reachable_addr) else { return };
        for _ in 0..self.receivers.load(SeqCst) {
            if let Err(error) = self.socket.get().send_to(&[], to) {
                // The receive timeout wakes them then.
                debug!("waking receivers at {to}: {error}");
                return;
            }
        }
    }
}

crate::model::debug_fields!(UdpServer, |server| socket: server.inner.socket, in_hand: server.running_handlers());

#[cfg(test)]
mod tests;
