//! The two sockets of a peer: its own, from which everything is sent, and the one on the discovery
//! port, which it shares with the other peers of its host and which only hears.
//!
//! What Linux does with them, as the tests over networks of their own show it:
//! - A broadcast reaches every socket of the host that shares the discovery port, the sender's too.
//! - From an own socket bound to 0.0.0.0 a broadcast to 127.255.255.255 comes from 127.0.0.1, and one by
//!   another interface from that interface's address; from one bound to an address, always from that.
//! - A discovery socket bound to 127.255.255.255 hears what is broadcast on this host alone; one bound
//!   to 0.0.0.0 hears that too, and every network.
//! - What is sent to the discovery port of one host alone reaches one of its peers, and nobody knows
//!   which: so it is refused here for one's own host.
//! - From 127.0.0.1 the kernel lets nothing leave the host.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use ring::rand::{SecureRandom, SystemRandom};

use crate::net::interfaces::{self, Interface};
use crate::net::peer_socket::{PeerSocket, PeerSocketCounters};

pub use crate::net::peer_socket::Heard;

/// The ports of which a peer takes a free one, unless it is told which.
const PORTS: std::ops::RangeInclusive<u16> = 8000..=9999;

/// Of which the discovery socket hears what stays on this host.
const LOOPBACK_BROADCAST: Ipv4Addr = Ipv4Addr::new(127, 255, 255, 255);

/// Which port a peer's own socket gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// This one and no other; 0 for any that is free.
    Asked(u16),
    /// The one it had last if that is free, else a random free one of 8000 to 9999.
    Free {
        /// The one it had last.
        last: Option<u16>,
    },
}

/// Where a peer's sockets are.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// 0.0.0.0: every interface; one of 127.0.0.1: nothing leaves this host; another of this host:
    /// that interface, and this host.
    pub bind: Ipv4Addr,
    /// Of the own socket.
    pub port: Port,
    /// Of the other one; not 0, as all peers must know it.
    pub discovery_port: u16,
}

/// Why the sockets cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("port {port} is in use: choose another one with --port, or leave it out")]
    PortInUse { port: u16 },
    #[error("no port of 8000 to 9999 is free: choose one with --port")]
    NoPortFree,
    #[error("--port and --discovery-port are both {0}: choose two different ones")]
    SamePort(u16),
    #[error("--discovery-port is 0: choose one from 1 to 65535, the same for all peers")]
    NoDiscoveryPort,
    #[error(
        "discovery port {port} is in use by a program that does not share it: stop that one, or choose another port \
         with --discovery-port, the same for all peers"
    )]
    DiscoveryPortInUse { port: u16 },
    #[error("--bind {0} is not an address of this host: choose one of its own, 127.0.0.1, or 0.0.0.0 for all of them")]
    NotOwnAddress(Ipv4Addr),
    #[error("port {port} ({flag}): {source}")]
    Port { port: u16, flag: &'static str, source: io::Error },
    #[error("reading this host's addresses: {0}")]
    Interfaces(#[source] io::Error),
}

/// Through which socket something came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Door {
    /// The peer's own.
    Own,
    /// The one that hears broadcasts.
    Discovery,
}

/// A peer's sockets. Any thread may send; each door is read by one.
#[derive(Debug)]
pub struct LanSockets {
    own: PeerSocket,
    discovery: PeerSocket,
}

impl LanSockets {
    /// Binds both.
    ///
    /// # Errors
    /// [`OpenError`], which names the flag to change.
    pub fn open(config: Config) -> Result<LanSockets, OpenError> {
        let Config { bind, port, discovery_port } = config;
        if discovery_port == 0 {
            return Err(OpenError::NoDiscoveryPort);
        }
        check_bind(bind)?;
        let own = match port {
            Port::Asked(port) if port == discovery_port => return Err(OpenError::SamePort(port)),
            Port::Asked(port) => bind_asked(bind, port)?,
            Port::Free { last } => bind_free(bind, last, discovery_port, PORTS)?,
        };
        let at = SocketAddrV4::new(discovery_address(bind), discovery_port);
        let discovery = PeerSocket::bind_shared(at).map_err(|source| match source.kind() {
            ErrorKind::AddrInUse => OpenError::DiscoveryPortInUse { port: discovery_port },
            _ => OpenError::Port { port: discovery_port, flag: "--discovery-port", source },
        })?;
        Ok(LanSockets { own, discovery })
    }

    /// Where the own socket is bound; its port is the peer's PORT.
    pub fn own_addr(&self) -> SocketAddrV4 {
        self.own.local_addr()
    }

    /// Where the shared one is bound.
    pub fn discovery_addr(&self) -> SocketAddrV4 {
        self.discovery.local_addr()
    }

    /// The addresses of this host just now, whether this peer speaks by them or not: first that for hosts of
    /// no own network, loopback last.
    ///
    /// # Errors
    /// The system's.
    pub fn interfaces(&self) -> io::Result<Vec<Interface>> {
        interfaces::interfaces(Ipv4Addr::UNSPECIFIED)
    }

    /// The address that an announcement by this interface comes from, and so has to name; none where this
    /// peer does not speak by it.
    pub fn source(&self, interface: &Interface) -> Option<Ipv4Addr> {
        interface.is_used_by(*self.own_addr().ip()).then(|| self.own.source(interface))
    }

    /// Sends a datagram to everybody on an interface's network. False where it has no broadcast.
    ///
    /// # Errors
    /// The system's: most often that the interface has just gone.
    pub fn broadcast(&self, interface: &Interface, bytes: &[u8]) -> io::Result<bool> {
        self.own.broadcast(interface, self.discovery_addr().port(), bytes)
    }

    /// Sends a datagram to one address, from one of this host's: that which the datagram names as its
    /// sender's, for whoever gets it compares the two. (Bound to an address, a peer speaks from that
    /// alone.)
    ///
    /// # Errors
    /// `InvalidInput`, when nobody can be meant by that address, or it is the discovery port of this
    /// host; `PermissionDenied`, when it would leave a host that nothing is to leave; the system's.
    pub fn send_from(&self, from: Ipv4Addr, to: SocketAddrV4, bytes: &[u8]) -> io::Result<()> {
        self.check_target(to)?;
        self.own.send_from(from, to, bytes)
    }

    /// The same from whichever address the system chooses: for what names no sender.
    ///
    /// # Errors
    /// As [`send_from`](LanSockets::send_from).
    pub fn send(&self, to: SocketAddrV4, bytes: &[u8]) -> io::Result<()> {
        self.check_target(to)?;
        self.own.send(to, bytes)
    }

    fn check_target(&self, to: SocketAddrV4) -> io::Result<()> {
        let refuse = |kind, why: &str| Err(io::Error::new(kind, format!("{to}: {why}")));
        let ip = *to.ip();
        if to.port() == 0 || ip.is_unspecified() || ip.is_broadcast() || ip.is_multicast() || ip == LOOPBACK_BROADCAST {
            return refuse(ErrorKind::InvalidInput, "this is nobody's address");
        }
        if to.port() == self.discovery_addr().port() && interfaces::is_own(ip)? {
            return refuse(ErrorKind::InvalidInput, "the discovery port of this host is for broadcasts alone");
        }
        if self.stays_here() && !interfaces::is_own(ip)? {
            return refuse(ErrorKind::PermissionDenied, "nothing leaves this host with a --bind of 127.0.0.1");
        }
        Ok(())
    }

    /// Hands on what comes through a door, on the thread that calls, until [`stop`](LanSockets::stop).
    /// Nothing that comes, nor a panic of `hear`, ends it before.
    pub fn read(&self, door: Door, mut hear: impl FnMut(Heard<'_>)) {
        let stays_here = self.stays_here();
        self.socket(door).read(|heard| {
            // Only where the discovery socket cannot be bound to this host alone does it happen.
            let is_foreign = |source: SocketAddr| match source.ip() {
                IpAddr::V4(ip) => !interfaces::is_own(ip).unwrap_or(false),
                IpAddr::V6(_) => true,
            };
            match heard {
                Heard::Datagram { source, .. } if stays_here && is_foreign(source) => {}
                heard => hear(heard),
            }
        });
    }

    /// Ends the reading of both; sending goes on, for what is still to be said.
    pub fn stop(&self) {
        self.own.stop();
        self.discovery.stop();
    }

    /// What the socket behind a door did so far.
    pub fn counters(&self, door: Door) -> &PeerSocketCounters {
        self.socket(door).counters()
    }

    fn socket(&self, door: Door) -> &PeerSocket {
        match door {
            Door::Own => &self.own,
            Door::Discovery => &self.discovery,
        }
    }

    fn stays_here(&self) -> bool {
        self.own_addr().ip().is_loopback()
    }
}

/// The kernel would bind a socket to a broadcast address, and then it hears nobody's answers.
fn check_bind(bind: Ipv4Addr) -> Result<(), OpenError> {
    let all = interfaces::interfaces(Ipv4Addr::UNSPECIFIED).map_err(OpenError::Interfaces)?;
    let is_broadcast = bind.is_broadcast() || all.iter().any(|interface| interface.broadcast == Some(bind));
    if is_broadcast || bind.is_multicast() { Err(OpenError::NotOwnAddress(bind)) } else { Ok(()) }
}

fn discovery_address(bind: Ipv4Addr) -> Ipv4Addr {
    // Elsewhere than on Linux there is no broadcast on loopback to be bound to.
    if bind.is_loopback() && cfg!(target_os = "linux") { LOOPBACK_BROADCAST } else { Ipv4Addr::UNSPECIFIED }
}

fn bind_asked(bind: Ipv4Addr, port: u16) -> Result<PeerSocket, OpenError> {
    PeerSocket::bind(SocketAddrV4::new(bind, port)).map_err(|source| match source.kind() {
        ErrorKind::AddrInUse if port != 0 => OpenError::PortInUse { port },
        _ => failed(bind, port, source),
    })
}

/// The last port, then all of the range from a random one on, so that peers which start at once seldom
/// try the same.
fn bind_free(
    bind: Ipv4Addr,
    last: Option<u16>,
    discovery_port: u16,
    range: std::ops::RangeInclusive<u16>,
) -> Result<PeerSocket, OpenError> {
    let count = range.len();
    let first = random() % count;
    let others = (0..count).map(|nth| range.start() + ((first + nth) % count) as u16);
    let last = last.filter(|port| *port != 0);
    for port in last.into_iter().chain(others).filter(|port| *port != discovery_port) {
        match PeerSocket::bind(SocketAddrV4::new(bind, port)) {
            Ok(socket) => return Ok(socket),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            // It was allowed to have that one then, as another user perhaps.
            Err(error) if error.kind() == ErrorKind::PermissionDenied && last == Some(port) => {}
            Err(source) => return Err(failed(bind, port, source)),
        }
    }
    Err(OpenError::NoPortFree)
}

fn failed(bind: Ipv4Addr, port: u16, source: io::Error) -> OpenError {
    match source.kind() {
        ErrorKind::AddrNotAvailable => OpenError::NotOwnAddress(bind),
        _ => OpenError::Port { port, flag: "--port", source },
    }
}

fn random() -> usize {
    let mut bytes = [0; 4];
    SystemRandom::new().fill(&mut bytes).expect("the operating system gives random bytes");
    u32::from_ne_bytes(bytes) as usize
}

#[cfg(test)]
mod tests;
