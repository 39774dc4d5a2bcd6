//! A UDP socket as peers have it: sends to anybody, broadcasts by the interface it is told, shares its
//! port where it must, and tells who refuses what is sent to him.
//!
//! An ICMP "port unreachable" reaches only connected sockets as an error, unless Linux is asked to keep
//! such errors, each with the address it is about, in a queue beside the socket (IP_RECVERR). Elsewhere
//! nobody is told of refusals; peers are then forgotten after their time, as silent ones are.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use log::{debug, error, warn};
use socket2::{Domain, Protocol, Socket, Type};

use super::counters::{Counter, Seldom};
use super::interfaces::Interface;
use super::threads::panic_text;
use super::udp;

#[cfg(target_os = "linux")]
#[path = "peer_socket/linux.rs"]
mod system;
#[cfg(not(target_os = "linux"))]
#[path = "peer_socket/plain.rs"]
mod system;

/// Room for any datagram: those of IPv4 have 65,507 bytes at most. Windows fails to read what does not
/// fit, instead of cutting it.
const BUFFER_BYTES: usize = 65_536;

/// How long one read waits: the fallback by which a reader that was not woken sees the end.
const READ_TIMEOUT: Duration = Duration::from_millis(500);

/// The pause after a read that failed, so that a lasting failure does not take a whole core.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// How often a datagram is tried again because of errors that may not have been about it.
const SEND_TRIES: usize = 8;

/// How often because of refusals, which never are about what is being sent. Linux raises the next one each
/// time the reader takes one from the queue, so that a sender may meet as many as the queue holds.
const SEND_TRIES_REFUSED: usize = 1000;

/// What a reader hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard<'a> {
    /// A datagram, whole.
    Datagram {
        /// Who sent it.
        source: SocketAddr,
        /// What it holds.
        bytes: &'a [u8],
    },
    /// Nobody listens where this socket sent something to.
    Refused {
        /// To whom it had been sent.
        to: SocketAddr,
    },
}

/// What a socket did so far.
#[derive(Debug, Default)]
pub struct PeerSocketCounters {
    /// Datagrams received.
    pub received: Counter,
    /// Datagrams sent, each broadcast once.
    pub sent: Counter,
    /// Datagrams that the system did not take.
    pub send_errors: Counter,
    /// Sends that were refused where they arrived.
    pub refused: Counter,
    /// Reads that failed.
    pub read_errors: Counter,
    /// Panics of whoever was told.
    pub panics: Counter,
}

impl PeerSocketCounters {
    /// Every counter with its name.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("received", self.received.get()),
            ("sent", self.sent.get()),
            ("send_errors", self.send_errors.get()),
            ("refused", self.refused.get()),
            ("read_errors", self.read_errors.get()),
            ("panics", self.panics.get()),
        ]
    }
}

/// One socket. It is read by one thread, and any thread sends.
#[derive(Debug)]
pub struct PeerSocket {
    socket: UdpSocket,
    addr: SocketAddrV4,
    is_stopping: AtomicBool,
    counters: PeerSocketCounters,
    complaints: Seldom,
}

impl PeerSocket {
    /// A socket with a port of its own, which may broadcast and is told of refusals where the system
    /// does that. Port 0: any free one.
    ///
    /// # Errors
    /// The system's; `AddrInUse` when the port is taken, `AddrNotAvailable` when the address is not
    /// this host's.
    pub fn bind(addr: SocketAddrV4) -> io::Result<PeerSocket> {
        let socket = UdpSocket::bind(addr)?;
        socket.set_broadcast(true)?;
        system::watch_refusals(&socket)?;
        PeerSocket::over(socket)
    }

    /// A socket whose port others may have too, if they share it as well: each gets every broadcast,
    /// and one of them, whichever it is, what is sent to it alone.
    ///
    /// # Errors
    /// The system's; `AddrInUse` when somebody has the port and does not share it.
    pub fn bind_shared(addr: SocketAddrV4) -> io::Result<PeerSocket> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        // Linux does with the one above, and between users; macOS insists on this one.
        #[cfg(all(unix, not(any(target_os = "solaris", target_os = "illumos", target_os = "cygwin"))))]
        socket.set_reuse_port(true)?;
        socket.bind(&addr.into())?;
        PeerSocket::over(socket.into())
    }

    fn over(socket: UdpSocket) -> io::Result<PeerSocket> {
        let SocketAddr::V4(addr) = socket.local_addr()? else {
            return Err(io::Error::new(ErrorKind::Unsupported, "an IPv4 socket has an address of another kind"));
        };
        socket.set_read_timeout(Some(READ_TIMEOUT))?;
        udp::grow_receive_buffer(&socket);
        Ok(PeerSocket {
            socket,
            addr,
            is_stopping: AtomicBool::new(false),
            counters: PeerSocketCounters::default(),
            complaints: Seldom::minutely(),
        })
    }

    /// Where it is bound.
    pub fn local_addr(&self) -> SocketAddrV4 {
        self.addr
    }

    /// What was counted so far.
    pub fn counters(&self) -> &PeerSocketCounters {
        &self.counters
    }

    /// Sends a datagram; the system chooses by which interface, and so the source address.
    ///
    /// # Errors
    /// The system's, when it could not leave; a refusal where it arrives is [heard](Heard::Refused).
    pub fn send(&self, to: SocketAddrV4, bytes: &[u8]) -> io::Result<()> {
        self.try_to_send(|| self.socket.send_to(bytes, to))
    }

    /// Sends a datagram from one of this host's addresses, where the socket is not bound to one and the
    /// system lets us choose.
    ///
    /// # Errors
    /// As [`send`](PeerSocket::send); the system's when the address has just gone.
    pub fn send_from(&self, from: Ipv4Addr, to: SocketAddrV4, bytes: &[u8]) -> io::Result<()> {
        if !self.addr.ip().is_unspecified() {
            return self.send(to, bytes);
        }
        self.try_to_send(|| system::send_by(&self.socket, bytes, to, from, None))
    }

    /// Broadcasts a datagram to a port of everybody on an interface's network. False where the
    /// interface has no broadcast.
    ///
    /// On Linux the datagram is told its interface and source address (IP_PKTINFO). By its destination
    /// alone it would find them too (each network's broadcast address has a route that names both, and
    /// 127.255.255.255 leaves from 127.0.0.1), but not where two interfaces are on one network: then
    /// both broadcasts would leave by the first. All sockets of this host that share the port, and are
    /// bound to 0.0.0.0 or to the broadcast address, get a copy as well, the sender's own included.
    ///
    /// # Errors
    /// The system's, when it could not leave: most often that the interface has just gone.
    pub fn broadcast(&self, interface: &Interface, port: u16, bytes: &[u8]) -> io::Result<bool> {
        let Some(broadcast) = interface.broadcast else { return Ok(false) };
        let to = SocketAddrV4::new(broadcast, port);
        let source = self.source(interface);
        self.try_to_send(|| system::send_by(&self.socket, bytes, to, source, interface.index))?;
        Ok(true)
    }

    /// The source address of what is broadcast by an interface: its own, unless the socket is bound to
    /// one, where it would not hear the answers.
    pub fn source(&self, interface: &Interface) -> Ipv4Addr {
        if self.addr.ip().is_unspecified() { interface.ip } else { *self.addr.ip() }
    }

    /// An error that came back for an earlier datagram (its refusal) is told at the next call, whatever
    /// that sends, and only once: so the same datagram is tried again. What the earlier one was told
    /// stays in the queue, for the reader.
    fn try_to_send(&self, send: impl Fn() -> io::Result<usize>) -> io::Result<()> {
        let mut tries = 1;
        loop {
            match send() {
                Ok(_) => {
                    self.counters.sent.add(1);
                    return Ok(());
                }
                Err(error) if tries < tries_for(&error) => {
                    debug!("{}: sending, try {tries}: {error}", self.addr);
                    tries += 1;
                }
                Err(error) => {
                    self.counters.send_errors.add(1);
                    return Err(error);
                }
            }
        }
    }

    /// Reads until [`stop`](PeerSocket::stop): a failing read is counted and logged (once a minute),
    /// and a panic of `hear` costs the one datagram; neither ends the reading.
    pub fn read(&self, mut hear: impl FnMut(Heard<'_>)) {
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut refused = Vec::new();
        while !self.is_stopping() {
            // Refusals first: a flood of datagrams should not keep them back.
            system::wait(&self.socket, READ_TIMEOUT, &mut refused);
            for to in refused.drain(..) {
                self.counters.refused.add(1);
                self.tell(&mut hear, Heard::Refused { to });
            }
            if self.is_stopping() {
                return;
            }
            match system::receive(&self.socket, &mut buffer) {
                Ok((len, source)) => {
                    self.counters.received.add(1);
                    self.tell(&mut hear, Heard::Datagram { source, bytes: &buffer[..len] });
                }
                Err(error) if !self.is_stopping() => self.read_failed(&error),
                Err(_) => return,
            }
        }
    }

    fn read_failed(&self, error: &io::Error) {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
            // Somebody refused something: Linux said whom that was about before, the others never do.
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => debug!("{}: {error}", self.addr),
            _ => {
                self.counters.read_errors.add(1);
                if self.complaints.now() {
                    warn!("reading a datagram at {}: {error}", self.addr);
                }
                std::thread::sleep(ERROR_PAUSE);
            }
        }
    }

    /// Unwind safe: what the listener shares with others is behind locks without poisoning, whose
    /// owners must keep their invariants at every step anyway.
    fn tell(&self, hear: &mut impl FnMut(Heard<'_>), heard: Heard<'_>) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| hear(heard))) {
            self.counters.panics.add(1);
            error!("{}: handling a datagram panicked: {}", self.addr, panic_text(&*panic));
        }
    }

    /// Ends the reading, at once where the system lets us wake the reader, else within a second. Sending
    /// goes on.
    pub fn stop(&self) {
        self.is_stopping.store(true, SeqCst);
        system::wake(&self.socket);
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping.load(SeqCst)
    }
}

fn tries_for(error: &io::Error) -> usize {
    if error.kind() == ErrorKind::ConnectionRefused { SEND_TRIES_REFUSED } else { SEND_TRIES }
}

#[cfg(test)]
mod tests;
