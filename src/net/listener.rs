//! The listener: what accepts connections on every port that this crate has.
//!
//! Each connection has a thread to itself for as long as it lasts. What is the same for all ports is here, what
//! differs a room brings:
//!
//! | file | holds |
//! |---|---|
//! | `limiter.rs` | how many connections may be open: in all, at each listener, from one source |
//! | `pending.rs` | those that have not completed a request, and give way when room is short |
//! | `rejector.rs` | turning connections away so that they hear why |
//! | `connection.rs` | a connection up to its first message: its source, TLS or not |
//! | `messages.rs` | from there on, for ports that speak in messages: lines or frames, one after the other |
//!
//! A port of messages is a [`MessageService`], which says how its messages are framed, what is answered to each, and
//! how it refuses; a port that speaks otherwise (HTTP) is a [`Protocol`]. A connection's source is decided here,
//! before a room sees it.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use log::{debug, warn};
use parking_lot::{Condvar, Mutex};

use super::budget::Budget;
use super::counters::{Counter, Seldom};
use super::threads::{self, Executor};
use super::tls::Identity;

mod connection;
mod limiter;
mod messages;
mod pending;
mod rejector;

pub use connection::{Accepted, Connection};
pub use limiter::{ConnectionLimiter, LimiterCounters, Permit, Refusal};
pub use messages::{After, MessageConnection, MessageFraming, MessageService, Messages, Rejection};
pub use rejector::Busy;

use limiter::ListenerShare;
use rejector::{Rejector, Reserve};

/// The pause after the first of several accept errors in a row; it doubles up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How long `stop` waits for threads to end once their connections have been shut down.
const AFTER_SHUTDOWN: Duration = Duration::from_secs(1);

/// How much of the kernel's backlog a listener may fill that [`listen`] made.
const BACKLOG: i32 = 1024;

/// What a port does with its connections.
pub trait Protocol: Send + Sync + 'static {
    /// What those are told for whom there is no room.
    fn busy(&self) -> Busy;

    /// Serves a connection to its end, on a thread of its own. It ends, and no longer counts, when this returns. A
    /// panic harms no other.
    fn serve(&self, accepted: Accepted);
}

/// What the listeners of a process stand on. Clones are the same.
#[derive(Debug, Clone)]
pub struct ListenerContext {
    /// Threads for connections.
    pub executor: Arc<Executor>,
    /// The bound of connections, one for all listeners of the process.
    pub limiter: Arc<ConnectionLimiter>,
    /// The bound of what was received and not yet handled, likewise.
    pub budget: Arc<Budget>,
    /// For those who begin with TLS.
    pub identity: Option<Arc<Identity>>,
    /// Clients on other hosts may speak without TLS.
    pub plain_from_afar: bool,
}

/// A port that is being listened at.
pub struct Listener {
    accepting: Arc<Accepting>,
    thread: Mutex<Option<JoinHandle<()>>>,
    address: SocketAddr,
}

struct Accepting {
    socket: TcpListener,
    context: Arc<ListenerContext>,
    share: Arc<ListenerShare>,
    protocol: Arc<dyn Protocol>,
    rejector: Rejector,
    open: Mutex<OpenConnections>,
    /// Told when a connection has ended, or at the end.
    changed: Condvar,
    is_stopping: Arc<AtomicBool>,
    counters: Arc<ListenerCounters>,
    complaints: Seldom,
}

/// Kept to be shut down at the end. A `Weak`, because a clone made by `try_clone` would cost a second descriptor for
/// each connection, and a bare descriptor number might by then belong to another.
#[derive(Default)]
struct OpenConnections {
    streams: HashMap<u64, Weak<TcpStream>>,
    next_id: u64,
}

/// What a listener did so far.
#[derive(Debug, Default)]
pub struct ListenerCounters {
    /// Connections given a thread.
    pub accepted: Counter,
    /// Connections refused: past a bound, or no thread or descriptor was left.
    pub refused: Counter,
    /// Refused connections closed in such a hurry that the client may not have read why.
    pub refused_in_a_hurry: Counter,
    /// Times that no descriptor was left.
    pub out_of_descriptors: Counter,
    /// Other errors of `accept`.
    pub accept_errors: Counter,
}

impl ListenerCounters {
    /// Every counter with its name.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("accepted", self.accepted.get()),
            ("refused", self.refused.get()),
            ("refused_in_a_hurry", self.refused_in_a_hurry.get()),
            ("out_of_descriptors", self.out_of_descriptors.get()),
            ("accept_errors", self.accept_errors.get()),
        ]
    }
}

/// A listener with a longer backlog than std's 128, so that a burst of connections is not delayed by
/// lost SYNs.
///
/// # Errors
/// The system's: most often that the address is in use.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // As std does: else a restarted server could not have its port back for a minute. On Windows the
    // option would let two servers share a port.
    #[cfg(not(windows))]
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

impl Listener {
    /// Begins to accept.
    ///
    /// # Errors
    /// The system's, when it gives no thread or no descriptor for the reserve.
    pub fn start(socket: TcpListener, context: ListenerContext, protocol: Arc<dyn Protocol>) -> io::Result<Listener> {
        Listener::start_sure_of(socket, context, 0, protocol)
    }

    /// The same for a port that is to be sure of at least so many connections, where the bound allows it.
    ///
    /// # Errors
    /// As [`start`](Listener::start).
    pub fn start_sure_of(
        socket: TcpListener,
        context: ListenerContext,
        at_least: usize,
        protocol: Arc<dyn Protocol>,
    ) -> io::Result<Listener> {
        socket.set_nonblocking(false)?;
        let address = socket.local_addr()?;
        let counters = Arc::new(ListenerCounters::default());
        let accepting = Arc::new(Accepting {
            socket,
            share: context.limiter.listener(at_least),
            context: Arc::new(context),
            rejector: Rejector::start(protocol.busy(), Arc::clone(&counters))?,
            protocol,
            open: Mutex::default(),
            changed: Condvar::new(),
            is_stopping: Arc::default(),
            counters,
            complaints: Seldom::minutely(),
        });
        let reserve = Reserve::take()?;
        let thread = threads::spawn(&format!("accept-{}", address.port()), {
            let accepting = Arc::clone(&accepting);
            move || accepting.accept_all(reserve)
        })?;
        Ok(Listener { accepting, thread: Mutex::new(Some(thread)), address })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Connections whose handlers have not returned.
    pub fn open(&self) -> usize {
        self.accepting.open.lock().streams.len()
    }

    /// Every counter with its name.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let closed = ("newcomers_closed", self.accepting.share.closed());
        [self.accepting.counters.list(), vec![closed]].concat()
    }

    /// Ends accepting at once, and connections in two steps: first nothing more is read from them, so
    /// that idle ones end and those in hand can still answer (what has come of a message by half is none);
    /// after `grace` the rest is cut off. How many handlers have not returned even then.
    pub fn stop(&self, grace: Duration) -> usize {
        let accepting = &self.accepting;
        accepting.is_stopping.store(true, SeqCst);
        accepting.unblock_accept(self.address);
        accepting.changed.notify_all();
        // Taken out before joining: the lock must not be held while waiting.
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            // An Err would be a panic, which `threads::spawn` has caught and logged.
            let _ = thread.join();
        }
        accepting.shut_down(Shutdown::Read);
        if accepting.wait_for_none_open(Instant::now() + grace) > 0 {
            accepting.shut_down(Shutdown::Both);
        }
        accepting.wait_for_none_open(Instant::now() + AFTER_SHUTDOWN)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

impl Accepting {
    fn accept_all(self: Arc<Self>, mut reserve: Reserve) {
        let mut pause = SHORTEST_PAUSE;
        loop {
            let accepted = self.socket.accept();
            if self.is_stopping.load(SeqCst) {
                return;
            }
            match accepted {
                Ok((stream, source)) => {
                    pause = SHORTEST_PAUSE;
                    if reserve.regain() {
                        self.take(stream, source);
                    } else {
                        self.rejector.turn_away_here(Arc::new(stream));
                        reserve.regain();
                    }
                }
                Err(error) if is_about_one_connection(&error) => self.counters.accept_errors.add(1),
                Err(error) if is_out_of_descriptors(&error) => {
                    self.counters.out_of_descriptors.add(1);
                    self.complain("no descriptor is left for a connection", &error);
                    if !reserve.release() {
                        // Another thread of ours was quicker to take it.
                        self.pause(&mut pause);
                    }
                }
                Err(error) => {
                    self.counters.accept_errors.add(1);
                    self.complain("accepting a connection", &error);
                    self.pause(&mut pause);
                }
            }
        }
    }

    /// Gives the connection a thread, or has it turned away.
    fn take(self: &Arc<Self>, stream: TcpStream, source: SocketAddr) {
        if let Err(error) = stream.set_nodelay(true) {
            // The client is gone already; the handler will see that.
            debug!("{source}: TCP_NODELAY: {error}");
        }
        let stream = Arc::new(stream);
        // The one place where it is decided who a connection comes from.
        let source = SocketAddr::new(source.ip().to_canonical(), source.port());
        // What comes from an address of our own counts as loopback: a process's links to itself among it.
        let counted = if is_from_here(&stream, source.ip()) { Ipv4Addr::LOCALHOST.into() } else { source.ip() };
        let permit = match self.share.enter(counted, &stream) {
            Ok(permit) => permit,
            Err(refusal) => {
                self.complain("refusing a connection", &refusal);
                self.rejector.turn_away(stream);
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
        // Made here, so that it is undone too if the job never runs.
        let entry = Entry { accepting: Arc::clone(self), id };
        let accepted = Accepted::new(
            Arc::clone(&stream),
            source,
            permit,
            Arc::clone(&self.context),
            Arc::clone(&self.is_stopping),
        );
        let job = move || {
            // Dropped after the connection, and when serving it panics.
            let entry = entry;
            entry.accepting.protocol.serve(accepted);
        };
        match self.context.executor.execute(job) {
            Ok(()) => self.counters.accepted.add(1),
            Err(full) => {
                self.complain("refusing a connection", &full);
                self.rejector.turn_away(stream);
            }
        }
    }

    fn complain(&self, what: &str, error: &dyn fmt::Display) {
        if self.complaints.now() {
            warn!("{what}: {error}");
        }
    }

    fn pause(&self, pause: &mut Duration) {
        let until = Instant::now() + *pause;
        *pause = (*pause * 2).min(LONGEST_PAUSE);
        let mut open = self.open.lock();
        while !self.is_stopping.load(SeqCst) && Instant::now() < until {
            self.changed.wait_until(&mut open, until);
        }
    }

    fn unblock_accept(&self, address: SocketAddr) {
        // Linux: a listener that is shut down lets go of its accept.
        #[cfg(target_os = "linux")]
        if socket2::SockRef::from(&self.socket).shutdown(Shutdown::Both).is_ok() {
            return;
        }
        let ip = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        if let Err(error) = TcpStream::connect_timeout(&SocketAddr::new(ip, address.port()), Duration::from_secs(1)) {
            debug!("waking accept at {address}: {error}");
        }
    }

    fn shut_down(&self, how: Shutdown) {
        // Collected first: the lock is for memory work only.
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
        while !open.streams.is_empty() && Instant::now() < give_up_at {
            self.changed.wait_until(&mut open, give_up_at);
        }
        open.streams.len()
    }
}

/// A connection's place among the open ones.
struct Entry {
    accepting: Arc<Accepting>,
    id: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.accepting.open.lock().streams.remove(&self.id);
        self.accepting.changed.notify_all();
    }
}

/// Whether a connection comes from the host that it goes to: both ends have one address, or it is loopback.
fn is_from_here(stream: &TcpStream, source: IpAddr) -> bool {
    source.is_loopback() || stream.local_addr().is_ok_and(|own| own.ip().to_canonical() == source)
}

/// Errors of `accept` that speak of the one connection that was to be had, not of the listener.
fn is_about_one_connection(error: &io::Error) -> bool {
    use ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted, TimedOut};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted | TimedOut)
}

/// Too many open files: of the process, or of the whole system.
fn is_out_of_descriptors(error: &io::Error) -> bool {
    #[cfg(unix)]
    return matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
    #[cfg(not(unix))]
    return error.raw_os_error() == Some(10024); // WSAEMFILE
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("address", &self.address).field("open", &self.open()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
