//! What every TCP port has in common. Each connection has a thread to itself for as long as it lasts.
//!
//! A port that exchanges messages is a [`MessageService`]: it says how messages are framed, handles each one, and
//! words its rejections. A port with another protocol (HTTP) is a [`ConnectionHandler`].

use std::collections::HashMap;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use log::{debug, warn};
use parking_lot::{Condvar, Mutex};

use super::backoff::Backoff;
use super::budget::ReceiveBudget;
use super::counters::counters;
use super::interfaces::reachable_addr;
use super::log_throttle::LogThrottle;
use super::threads::{self, Executor};
use super::tls::TlsIdentity;

mod connection;
mod limiter;
mod messages;
mod pending;
mod rejector;

pub use connection::{AcceptedConnection, NegotiatedConnection};
pub use limiter::{ConnectionLimiter, Permit};
pub use messages::{AfterMessage, MessageConnection, MessageFraming, MessageHandler, MessageService, Rejection};
pub use rejector::BusyResponse;

use limiter::ListenerQuota;
use rejector::{Rejector, ReserveDescriptor};

/// The pause after the first of several consecutive accept errors; it doubles.
const ACCEPT_PAUSE_MIN: Duration = Duration::from_millis(5);
const ACCEPT_PAUSE_MAX: Duration = Duration::from_millis(500);
/// How long handlers may take to return once their connections have been shut down.
const HANDLER_EXIT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longer than std's 128, so that a burst of connections is not delayed by lost SYNs.
const BACKLOG: i32 = 1024;

pub trait ConnectionHandler: Send + Sync + 'static {
    /// What a client is sent whose connection is refused for lack of room.
    fn busy_response(&self) -> BusyResponse;

    /// Serves a connection to its end, on a thread of its own: it is closed, and no longer counted, when this returns.
    /// A panic ends this connection only.
    fn serve(&self, accepted: AcceptedConnection);
}

/// Clones share the same resources.
#[derive(Debug, Clone)]
pub struct ListenerContext {
    pub executor: Arc<Executor>,
    /// There is one limiter for all listeners of the process.
    pub limiter: Arc<ConnectionLimiter>,
    /// There is one budget for all connections of the process.
    pub budget: Arc<ReceiveBudget>,
    /// Our certificate for clients that begin with TLS. Without it every connection is taken as plaintext.
    pub identity: Option<Arc<TlsIdentity>>,
    /// Whether clients on other hosts may connect without TLS.
    pub allows_remote_plaintext: bool,
}

#[cfg(test)]
impl ListenerContext {
    pub(crate) fn for_test(connections: usize, threads: usize) -> ListenerContext {
        ListenerContext {
            executor: Executor::new("test", threads),
            limiter: ConnectionLimiter::new(connections),
            budget: ReceiveBudget::new(crate::net::budget::RECEIVE_BUDGET_BYTES),
            identity: None,
            allows_remote_plaintext: false,
        }
    }
}

pub struct Listener {
    inner: Arc<ListenerInner>,
    thread: Mutex<Option<JoinHandle<()>>>,
    address: SocketAddr,
}

struct ListenerInner {
    socket: TcpListener,
    context: Arc<ListenerContext>,
    quota: Arc<ListenerQuota>,
    protocol: Arc<dyn ConnectionHandler>,
    rejector: Rejector,
    open: Mutex<OpenConnections>,
    changed: Condvar,
    is_stopping: Arc<AtomicBool>,
    counters: Arc<ListenerCounters>,
    log_throttle: LogThrottle,
}

/// For shutting the streams down at the end. `Weak`, because a `try_clone` would cost a second descriptor for each
/// connection, and a bare descriptor number might be reused by then.
#[derive(Default)]
struct OpenConnections {
    streams: HashMap<u64, Weak<TcpStream>>,
    next_id: u64,
}

counters! {
    pub struct ListenerCounters {
        accepted,
        /// Connections for which a limit was reached, or no thread or descriptor was left.
        refused,
        /// Connections closed so early that the client may not have read why.
        closed_early = "refused_in_a_hurry",
        out_of_descriptors,
        /// All other errors of `accept`.
        accept_errors,
    }
}

pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // As std does: otherwise a restarted server could not bind its port for a minute. On Windows two servers could then
    // share a port.
    #[cfg(not(windows))]
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

impl Listener {
    pub fn start(
        socket: TcpListener,
        context: ListenerContext,
        protocol: Arc<dyn ConnectionHandler>,
    ) -> io::Result<Listener> {
        Listener::start_with_guarantee(socket, context, 0, protocol)
    }

    /// The port is guaranteed `min_guaranteed` connections where the limiter's bound allows it.
    pub fn start_with_guarantee(
        socket: TcpListener,
        context: ListenerContext,
        min_guaranteed: usize,
        protocol: Arc<dyn ConnectionHandler>,
    ) -> io::Result<Listener> {
        socket.set_nonblocking(false)?;
        let address = socket.local_addr()?;
        let counters = Arc::new(ListenerCounters::default());
        let inner = Arc::new(ListenerInner {
            socket,
            quota: context.limiter.add_listener(min_guaranteed),
            context: Arc::new(context),
            rejector: Rejector::start(protocol.busy_response(), Arc::clone(&counters))?,
            protocol,
            open: Mutex::default(),
            changed: Condvar::new(),
            is_stopping: Arc::default(),
            counters,
            log_throttle: LogThrottle::every_minute(),
        });
        let reserve = ReserveDescriptor::open()?;
        let thread = threads::spawn(&format!("accept-{}", address.port()), {
            let inner = Arc::clone(&inner);
            move || inner.accept_all(reserve)
        })?;
        Ok(Listener { inner, thread: Mutex::new(Some(thread)), address })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Connections whose handlers have not returned.
    pub fn open_connections(&self) -> usize {
        self.inner.open.lock().streams.len()
    }

    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let closed = ("newcomers_closed", self.inner.quota.evicted());
        [self.inner.counters.list(), vec![closed]].concat()
    }

    /// Stops accepting at once and ends the connections in two steps: first nothing more is read, so that idle ones end
    /// and requests in progress can still be answered (a message received in part is discarded); after `grace` the
    /// remaining ones are closed. Returns how many handlers have not returned even then.
    pub fn stop(&self, grace: Duration) -> usize {
        let inner = &self.inner;
        inner.is_stopping.store(true, SeqCst);
        inner.unblock_accept(self.address);
        inner.changed.notify_all();
        // Taken out before joining: the lock must not be held while waiting.
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            // An Err would be a panic, which `threads::spawn` has caught and logged.
            let _ = thread.join();
        }
        inner.shut_down(Shutdown::Read);
        if inner.wait_for_none_open(Instant::now() + grace) > 0 {
            inner.shut_down(Shutdown::Both);
        }
        inner.wait_for_none_open(Instant::now() + HANDLER_EXIT_TIMEOUT)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

impl ListenerInner {
    fn accept_all(self: Arc<Self>, mut reserve: ReserveDescriptor) {
        let mut backoff = Backoff::new(ACCEPT_PAUSE_MIN, ACCEPT_PAUSE_MAX);
        loop {
            let accepted = self.socket.accept();
            if self.is_stopping.load(SeqCst) {
                return;
            }
            match accepted {
                Ok((stream, source)) => {
                    backoff.reset();
                    if reserve.reacquire() {
                        self.dispatch(stream, source);
                    } else {
                        self.rejector.reject_blocking(Arc::new(stream));
                        reserve.reacquire();
                    }
                }
                Err(error) if is_about_one_connection(&error) => self.counters.accept_errors.add(1),
                Err(error) if is_out_of_descriptors(&error) => {
                    self.counters.out_of_descriptors.add(1);
                    self.log_throttled("no descriptor is left for a connection", &error);
                    if !reserve.release() {
                        // Another thread of this process took the freed descriptor first.
                        self.pause(backoff.next_pause());
                    }
                }
                Err(error) => {
                    self.counters.accept_errors.add(1);
                    self.log_throttled("accepting a connection", &error);
                    self.pause(backoff.next_pause());
                }
            }
        }
    }

    fn dispatch(self: &Arc<Self>, stream: TcpStream, source: SocketAddr) {
        if let Err(error) = stream.set_nodelay(true) {
            // The client has disconnected already; the handler will notice.
            debug!("{source}: TCP_NODELAY: {error}");
        }
        let stream = Arc::new(stream);
        // The one place where the source of a connection is determined.
        let source = SocketAddr::new(source.ip().to_canonical(), source.port());
        // One of this host's own addresses counts as loopback, which includes the process's links to itself.
        let counted = if is_local_client(&stream, source.ip()) { Ipv4Addr::LOCALHOST.into() } else { source.ip() };
        let permit = match self.quota.admit(counted, &stream) {
            Ok(permit) => permit,
            Err(refusal) => {
                self.log_throttled("refusing a connection", &refusal);
                self.rejector.reject(stream);
                return;
            }
        };
        let id = {
            let mut open = self.open.lock();
            let id = open.next_id;
            open.next_id += 1;
            open.streams.insert(id, Arc::downgrade(&stream));
            id
        };
        // Created here, so that it is undone even if the job never runs.
        let guard = OpenConnectionGuard { inner: Arc::clone(self), id };
        let (context, is_stopping) = (Arc::clone(&self.context), Arc::clone(&self.is_stopping));
        let accepted = AcceptedConnection { stream: Arc::clone(&stream), source, context, is_stopping, permit };
        let job = move || {
            // Moved into the job so that it is dropped after the connection, also when serving panics.
            let guard = guard;
            guard.inner.protocol.serve(accepted);
        };
        match self.context.executor.execute(job) {
            Ok(()) => self.counters.accepted.add(1),
            Err(full) => {
                self.log_throttled("refusing a connection", &full);
                self.rejector.reject(stream);
            }
        }
    }

    fn log_throttled(&self, what: &str, error: &dyn fmt::Display) {
        if self.log_throttle.should_log() {
            warn!("{what}: {error}");
        }
    }

    fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut open = self.open.lock();
        self.changed.wait_while_until(&mut open, |_| !self.is_stopping.load(SeqCst), until);
    }

    fn unblock_accept(&self, address: SocketAddr) {
        // On Linux, shutting the listening socket down makes `accept` return.
        #[cfg(target_os = "linux")]
        if socket2::SockRef::from(&self.socket).shutdown(Shutdown::Both).is_ok() {
            return;
        }
        if let Err(error) = TcpStream::connect_timeout(&reachable_addr(address), Duration::from_secs(1)) {
            debug!("waking accept at {address}: {error}");
        }
    }

    fn shut_down(&self, how: Shutdown) {
        // Collected first, so that no system call is made under the lock.
        let open: Vec<Arc<TcpStream>> = self.open.lock().streams.values().filter_map(Weak::upgrade).collect();
        for stream in open {
            if let Err(error) = stream.shutdown(how) {
                // It has ended by itself meanwhile.
                debug!("shutting a connection down: {error}");
            }
        }
    }

    fn wait_for_none_open(&self, give_up_at: Instant) -> usize {
        let mut open = self.open.lock();
        self.changed.wait_while_until(&mut open, |open| !open.streams.is_empty(), give_up_at);
        open.streams.len()
    }
}

struct OpenConnectionGuard {
    inner: Arc<ListenerInner>,
    id: u64,
}

impl Drop for OpenConnectionGuard {
    fn drop(&mut self) {
        self.inner.open.lock().streams.remove(&self.id);
        self.inner.changed.notify_all();
    }
}

/// A client is local if its source is loopback or equals the local address.
fn is_local_client(stream: &TcpStream, source: IpAddr) -> bool {
    source.is_loopback() || stream.local_addr().is_ok_and(|own| own.ip().to_canonical() == source)
}

/// The error concerns the one connection being accepted, not the listener.
fn is_about_one_connection(error: &io::Error) -> bool {
    use ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted, TimedOut};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted | TimedOut)
}

/// Too many open files, in the process or in the whole system.
fn is_out_of_descriptors(error: &io::Error) -> bool {
    #[cfg(unix)]
    return matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
    #[cfg(not(unix))]
    return error.raw_os_error() == Some(10024); // WSAEMFILE
}

crate::model::debug_fields!(Listener, |listener| address: listener.address, open: listener.open_connections());

#[cfg(test)]
mod tests;
