//! A TCP server: each connection has a thread to itself for as long as it lasts.

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

use super::counters::{Counter, Seldom};
use super::gate::Gate;
use super::refuse::{Doorman, Reserve};
use super::threads::{self, Executor};

pub use super::refuse::Busy;

/// The pause after the first of several accept errors in a row; it doubles up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How long `stop` waits for threads to end once their connections have been shut down.
const AFTER_SHUTDOWN: Duration = Duration::from_secs(1);

/// How much of the kernel's backlog a listener may fill that [`listen`] made.
const BACKLOG: i32 = 1024;

/// What is done with a connection, on a thread of its own. It ends, and no longer counts, when the
/// handler returns. A panic harms no other.
///
/// The stream comes in an `Arc` because the server keeps a `Weak` to shut it down by at the end: a
/// clone made by `try_clone` would cost a second descriptor for each connection, and a bare
/// descriptor number might by then belong to another. Reading and writing work on `&TcpStream`.
pub type TcpHandler = Arc<dyn Fn(Arc<TcpStream>, SocketAddr) + Send + Sync>;

/// A running server.
pub struct TcpServer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    address: SocketAddr,
}

struct Shared {
    listener: TcpListener,
    executor: Arc<Executor>,
    gate: Arc<Gate>,
    handler: TcpHandler,
    doorman: Doorman,
    state: Mutex<State>,
    /// Told when a connection has ended, or at the end.
    changed: Condvar,
    is_stopping: AtomicBool,
    counters: Arc<TcpCounters>,
    complaints: Seldom,
}

#[derive(Default)]
struct State {
    open: HashMap<u64, Weak<TcpStream>>,
    next_id: u64,
}

/// What a server did so far.
#[derive(Debug, Default)]
pub struct TcpCounters {
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

impl TcpCounters {
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

impl TcpServer {
    /// Begins to accept. Who is refused gets `busy` and is closed.
    ///
    /// # Errors
    /// The system's, when it gives no thread or no descriptor for the reserve.
    pub fn start(
        listener: TcpListener,
        executor: Arc<Executor>,
        gate: Arc<Gate>,
        busy: impl Into<Busy>,
        handler: TcpHandler,
    ) -> io::Result<TcpServer> {
        listener.set_nonblocking(false)?;
        let address = listener.local_addr()?;
        let counters = Arc::new(TcpCounters::default());
        let shared = Arc::new(Shared {
            listener,
            executor,
            gate,
            handler,
            doorman: Doorman::start(busy.into(), Arc::clone(&counters))?,
            state: Mutex::default(),
            changed: Condvar::new(),
            is_stopping: AtomicBool::new(false),
            counters,
            complaints: Seldom::minutely(),
        });
        let reserve = Reserve::take()?;
        let thread = threads::spawn(&format!("accept-{}", address.port()), {
            let shared = Arc::clone(&shared);
            move || shared.accept_all(reserve)
        })?;
        Ok(TcpServer { shared, thread: Mutex::new(Some(thread)), address })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Connections whose handlers have not returned.
    pub fn open(&self) -> usize {
        self.shared.state.lock().open.len()
    }

    /// What was counted so far.
    pub fn counters(&self) -> &TcpCounters {
        &self.shared.counters
    }

    /// Ends accepting at once, and connections in two steps: first nothing more is read from them, so
    /// that idle ones end and those in hand can still answer; after `grace` the rest is cut off. How
    /// many handlers have not returned even then.
    pub fn stop(&self, grace: Duration) -> usize {
        let shared = &self.shared;
        shared.is_stopping.store(true, SeqCst);
        shared.unblock_accept(self.address);
        shared.changed.notify_all();
        // Taken out before joining: the lock must not be held while waiting.
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            // An Err would be a panic, which `threads::spawn` has caught and logged.
            let _ = thread.join();
        }
        shared.shut_down(Shutdown::Read);
        if shared.wait_for_none_open(Instant::now() + grace) > 0 {
            shared.shut_down(Shutdown::Both);
        }
        shared.wait_for_none_open(Instant::now() + AFTER_SHUTDOWN)
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

impl Shared {
    fn accept_all(self: Arc<Self>, mut reserve: Reserve) {
        let mut pause = SHORTEST_PAUSE;
        loop {
            let accepted = self.listener.accept();
            if self.is_stopping.load(SeqCst) {
                return;
            }
            match accepted {
                Ok((stream, source)) => {
                    pause = SHORTEST_PAUSE;
                    if reserve.regain() {
                        self.take(stream, source);
                    } else {
                        self.doorman.turn_away_here(Arc::new(stream));
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
        let pass = match self.gate.enter(source.ip()) {
            Ok(pass) => pass,
            Err(refusal) => {
                self.complain("refusing a connection", &refusal);
                self.doorman.turn_away(stream);
                return;
            }
        };
        let id = {
            let mut state = self.state.lock();
            let id = state.next_id;
            state.next_id += 1;
            state.open.insert(id, Arc::downgrade(&stream));
            id
        };
        // Made here, so that it is undone too if the job never runs.
        let entry = Entry { shared: Arc::clone(self), id };
        let its_stream = Arc::clone(&stream);
        let job = move || {
            // Dropped after the handler's stream, and when it panics.
            let (_pass, entry) = (pass, entry);
            (entry.shared.handler)(its_stream, source);
        };
        match self.executor.execute(job) {
            Ok(()) => self.counters.accepted.add(1),
            Err(full) => {
                self.complain("refusing a connection", &full);
                self.doorman.turn_away(stream);
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
        let mut state = self.state.lock();
        while !self.is_stopping.load(SeqCst) && Instant::now() < until {
            self.changed.wait_until(&mut state, until);
        }
    }

    fn unblock_accept(&self, address: SocketAddr) {
        // Linux: a listener that is shut down lets go of its accept.
        #[cfg(target_os = "linux")]
        if socket2::SockRef::from(&self.listener).shutdown(Shutdown::Both).is_ok() {
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
        let open: Vec<Arc<TcpStream>> = self.state.lock().open.values().filter_map(Weak::upgrade).collect();
        for stream in open {
            if let Err(error) = stream.shutdown(how) {
                // It has ended by itself meanwhile.
                debug!("shutting a connection down: {error}");
            }
        }
    }

    fn wait_for_none_open(&self, give_up_at: Instant) -> usize {
        let mut state = self.state.lock();
        while !state.open.is_empty() && Instant::now() < give_up_at {
            self.changed.wait_until(&mut state, give_up_at);
        }
        state.open.len()
    }
}

/// A connection's place among the open ones.
struct Entry {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.shared.state.lock().open.remove(&self.id);
        self.shared.changed.notify_all();
    }
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

impl fmt::Debug for TcpServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpServer").field("address", &self.address).field("open", &self.open()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
