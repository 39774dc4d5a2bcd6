//! A UDP socket for peers: it broadcasts by a given interface, can share its port, and reports which destinations
//! refuse what is sent to them.
//!
//! An ICMP "port unreachable" is reported only to connected sockets, unless Linux is asked to keep such errors, each
//! with its destination, in a queue beside the socket (IP_RECVERR). Elsewhere peers that refuse are forgotten after
//! their timeout, like silent ones.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use log::{debug, error, warn};
use socket2::{Domain, Protocol, Socket, Type};

use super::counters::counters;
use super::interfaces::Interface;
use super::log_throttle::LogThrottle;
use super::threads::panic_text;
use super::udp;

#[cfg(target_os = "linux")]
#[path = "peer_socket/linux.rs"]
mod system;
#[cfg(not(target_os = "linux"))]
#[path = "peer_socket/plain.rs"]
mod system;

/// Room for any datagram: those of IPv4 have 65,507 bytes at most. Windows fails to read one that does not fit.
const BUFFER_BYTES: usize = 65_536;
/// How long one read waits: the fallback by which a reader that was not woken notices the stop.
const READ_TIMEOUT: Duration = Duration::from_millis(500);
/// The pause after a failed read, so that a lasting failure does not occupy a whole core.
const ERROR_PAUSE: Duration = Duration::from_millis(10);
/// How often sending is attempted after errors that may belong to an earlier datagram.
const SEND_ATTEMPTS: usize = 8;
/// How often after refusals, which always belong to earlier datagrams. Linux raises the next one each time the reader
/// takes one from the queue, so a sender may meet as many as the queue holds.
const SEND_ATTEMPTS_REFUSED: usize = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerSocketEvent<'a> {
    /// A whole datagram.
    Datagram { source: SocketAddr, bytes: &'a [u8] },
    /// A datagram sent earlier was refused: nothing listens at its destination.
    Refused { to: SocketAddr },
}

counters! {
    pub struct PeerSocketCounters {
        received,
        /// A broadcast counts once.
        sent,
        send_errors,
        /// Datagrams that were refused at their destination.
        refused,
        read_errors,
        panics,
    }
}

/// It is read by one thread; any thread may send.
#[derive(Debug)]
pub struct PeerSocket {
    socket: UdpSocket,
    addr: SocketAddrV4,
    is_stopping: AtomicBool,
    counters: PeerSocketCounters,
    log_throttle: LogThrottle,
}

impl PeerSocket {
    /// A socket with a port of its own (0: any free one), which may broadcast and reports refusals where the system
    /// supports that. `AddrInUse` when the port is taken, `AddrNotAvailable` when the address is not this host's.
    pub fn bind(addr: SocketAddrV4) -> io::Result<PeerSocket> {
        let socket = UdpSocket::bind(addr)?;
        socket.set_broadcast(true)?;
        system::enable_error_queue(&socket)?;
        PeerSocket::from_socket(socket)
    }

    /// A socket whose port other sockets may bind too, if they share it as well (else `AddrInUse`). Each gets every
    /// broadcast; a datagram to a single address reaches one of them, whichever it is.
    pub fn bind_shared(addr: SocketAddrV4) -> io::Result<PeerSocket> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        // SO_REUSEADDR is enough on Linux, also between users; macOS requires this option.
        #[cfg(all(unix, not(any(target_os = "solaris", target_os = "illumos", target_os = "cygwin"))))]
        socket.set_reuse_port(true)?;
        socket.bind(&addr.into())?;
        PeerSocket::from_socket(socket.into())
    }

    fn from_socket(socket: UdpSocket) -> io::Result<PeerSocket> {
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
            log_throttle: LogThrottle::every_minute(),
        })
    }

    pub fn local_addr(&self) -> SocketAddrV4 {
        self.addr
    }

    pub fn counters(&self) -> &PeerSocketCounters {
        &self.counters
    }

    /// The system chooses the interface and with it the source address. A refusal at the destination is [reported to
    /// the reader](PeerSocketEvent::Refused).
    pub fn send(&self, to: SocketAddrV4, bytes: &[u8]) -> io::Result<()> {
        self.send_with_retries(|| self.socket.send_to(bytes, to))
    }

    /// Chooses the source address, if the socket is not bound to one and the system lets us choose. Fails also when the
    /// address has just been removed.
    pub fn send_from(&self, from: Ipv4Addr, to: SocketAddrV4, bytes: &[u8]) -> io::Result<()> {
        if !self.addr.ip().is_unspecified() {
            return self.send(to, bytes);
        }
        self.send_with_retries(|| system::send_by(&self.socket, bytes, to, from, None))
    }

    /// Broadcasts to a port on an interface's network. False if the interface has no broadcast.
    ///
    /// On Linux the datagram bears its interface and source address (IP_PKTINFO). The destination alone would select
    /// them too, but not where two interfaces are on one network: then both broadcasts would leave by the first. All
    /// sockets of this host that share the port, and are bound to 0.0.0.0 or to the broadcast address, get a copy as
    /// well, the sender's own included.
    pub fn broadcast(&self, interface: &Interface, port: u16, bytes: &[u8]) -> io::Result<bool> {
        let Some(broadcast) = interface.broadcast else { return Ok(false) };
        let to = SocketAddrV4::new(broadcast, port);
        let source = self.source(interface);
        self.send_with_retries(|| system::send_by(&self.socket, bytes, to, source, interface.index))?;
        Ok(true)
    }

    /// The source address of broadcasts: a socket that is bound to an address would not receive responses to another.
    pub fn source(&self, interface: &Interface) -> Ipv4Addr {
        if self.addr.ip().is_unspecified() { interface.ip } else { *self.addr.ip() }
    }

    /// The error of an earlier datagram (its refusal) is returned by the next call, whatever that sends, and only once:
    /// so the same datagram is sent again. The earlier one's error stays in the queue for the reader.
    fn send_with_retries(&self, send: impl Fn() -> io::Result<usize>) -> io::Result<()> {
        let mut tries = 1;
        loop {
            match send() {
                Ok(_) => {
                    self.counters.sent.add(1);
                    return Ok(());
                }
                Err(error) if tries < attempts_for(&error) => {
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

    /// Reads until [`stop`](PeerSocket::stop): neither a failing read (logged once a minute) nor a panic of `on_event`
    /// ends it.
    pub fn read(&self, mut on_event: impl FnMut(PeerSocketEvent<'_>)) {
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut refused = Vec::new();
        while !self.is_stopping() {
            // Refusals first: a flood of datagrams must not hold them back.
            system::wait(&self.socket, READ_TIMEOUT, &mut refused);
            for to in refused.drain(..) {
                self.counters.refused.add(1);
                self.deliver(&mut on_event, PeerSocketEvent::Refused { to });
            }
            if self.is_stopping() {
                return;
            }
            match system::receive(&self.socket, &mut buffer) {
                Ok((len, source)) => {
                    self.counters.received.add(1);
                    self.deliver(&mut on_event, PeerSocketEvent::Datagram { source, bytes: &buffer[..len] });
                }
                Err(error) if !self.is_stopping() => self.read_failed(&error),
                Err(_) => return,
            }
        }
    }

    fn read_failed(&self, error: &io::Error) {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
            // A refusal: Linux has reported its destination before; other systems never do.
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => debug!("{}: {error}", self.addr),
            _ => {
                self.counters.read_errors.add(1);
                if self.log_throttle.should_log() {
                    warn!("reading a datagram at {}: {error}", self.addr);
                }
                std::thread::sleep(ERROR_PAUSE);
            }
        }
    }

    /// Unwind safe: what the handler shares is behind locks without poisoning, whose users keep their invariants.
    fn deliver(&self, on_event: &mut impl FnMut(PeerSocketEvent<'_>), heard: PeerSocketEvent<'_>) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| on_event(heard))) {
            self.counters.panics.add(1);
            error!("{}: handling a datagram panicked: {}", self.addr, panic_text(&*panic));
        }
    }

    /// Ends the reading, at once where the system lets us wake the reader, otherwise within a second.
    pub fn stop(&self) {
        self.is_stopping.store(true, SeqCst);
        system::wake(&self.socket);
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping.load(SeqCst)
    }
}

fn attempts_for(error: &io::Error) -> usize {
    if error.kind() == ErrorKind::ConnectionRefused { SEND_ATTEMPTS_REFUSED } else { SEND_ATTEMPTS }
}

#[cfg(test)]
mod tests;
