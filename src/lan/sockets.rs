//! The two UDP sockets of a peer: its own, from which everything is sent, and the one on the discovery port, which the
//! peers of a host share and which only receives.
//!
//! Their behaviour on Linux, as the tests with network namespaces show it:
//! - A broadcast reaches every socket of a host that shares the discovery port, including the sender's.
//! - If the own socket is bound to 0.0.0.0, a broadcast to 127.255.255.255 comes from 127.0.0.1, and one by another
//!   interface from that interface's address. If it is bound to an address, everything comes from that.
//! - A discovery socket bound to 127.255.255.255 receives only broadcasts on loopback; one bound to 0.0.0.0 receives
//!   those and the broadcasts of every network.
//! - A unicast to the discovery port reaches an arbitrary one of the host's peers, so it is refused for the own host.
//! - The kernel lets nothing leave the host from 127.0.0.1.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use super::SocketRole;
use crate::net::interfaces::{self, Interface};
use crate::net::peer_socket::{PeerSocket, PeerSocketCounters};

pub use crate::net::peer_socket::PeerSocketEvent;

const AUTOMATIC_PORTS: std::ops::RangeInclusive<u16> = 8000..=9999;

const LOOPBACK_BROADCAST: Ipv4Addr = Ipv4Addr::new(127, 255, 255, 255);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortChoice {
    /// Exactly this port; 0 for any free one.
    Fixed(u16),
    /// The last port if that is free, else a random free one of 8000 to 9999.
    Free { last_port: Option<u16> },
}

/// Why the sockets cannot be opened. The texts name the flag to change.
#[derive(Debug, thiserror::Error)]
pub enum LanSocketsError {
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

/// A peer's sockets. Any thread may send; each socket is read by one thread.
#[derive(Debug)]
pub struct LanSockets {
    own: PeerSocket,
    discovery: PeerSocket,
}

impl LanSockets {
    /// `bind`: 0.0.0.0 for every interface; 127.0.0.1 so that nothing leaves this host; another own address for that
    /// interface and loopback. `discovery_port`: not 0, as all peers must know it.
    pub fn open(bind: Ipv4Addr, port: PortChoice, discovery_port: u16) -> Result<LanSockets, LanSocketsError> {
        if discovery_port == 0 {
            return Err(LanSocketsError::NoDiscoveryPort);
        }
        check_bind(bind)?;
        let own = match port {
            PortChoice::Fixed(port) if port == discovery_port => return Err(LanSocketsError::SamePort(port)),
            PortChoice::Fixed(port) => bind_fixed(bind, port)?,
            PortChoice::Free { last_port } => bind_free(bind, last_port, discovery_port, AUTOMATIC_PORTS)?,
        };
        let at = SocketAddrV4::new(discovery_address(bind), discovery_port);
        let discovery = PeerSocket::bind_shared(at).map_err(|source| match source.kind() {
            ErrorKind::AddrInUse => LanSocketsError::DiscoveryPortInUse { port: discovery_port },
            _ => LanSocketsError::Port { port: discovery_port, flag: "--discovery-port", source },
        })?;
        Ok(LanSockets { own, discovery })
    }

    /// Its port is the PORT of the peer's announcements.
    pub fn own_addr(&self) -> SocketAddrV4 {
        self.own.local_addr()
    }

    pub fn discovery_addr(&self) -> SocketAddrV4 {
        self.discovery.local_addr()
    }

    /// The current interface addresses of this host, including those that this peer does not send by. The address
    /// towards the default route comes first, loopback last.
    pub fn interfaces(&self) -> io::Result<Vec<Interface>> {
        interfaces::interfaces(Ipv4Addr::UNSPECIFIED)
    }

    /// The source address that announcements by this interface must name; `None` if this peer does not send by it.
    pub fn source(&self, interface: &Interface) -> Option<Ipv4Addr> {
        interface.is_used_by(*self.own_addr().ip()).then(|| self.own.source(interface))
    }

    /// False if the interface has no broadcast address.
    pub fn broadcast(&self, interface: &Interface, bytes: &[u8]) -> io::Result<bool> {
        self.own.broadcast(interface, self.discovery_addr().port(), bytes)
    }

    /// `from` is the source address that the datagram names, as receivers compare the two. (A socket that is bound to
    /// an address sends from that alone.)
    pub fn send_from(&self, from: Ipv4Addr, to: SocketAddrV4, bytes: &[u8]) -> io::Result<()> {
        self.check_target(to)?;
        self.own.send_from(from, to, bytes)
    }

    /// For a datagram that names no sender: the system chooses the source address.
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
        if to.port() == self.discovery_addr().port() && interfaces::is_local_address(ip)? {
            return refuse(ErrorKind::InvalidInput, "the discovery port of this host is for broadcasts alone");
        }
        if self.is_loopback_only() && !interfaces::is_local_address(ip)? {
            return refuse(ErrorKind::PermissionDenied, "nothing leaves this host with a --bind of 127.0.0.1");
        }
        Ok(())
    }

    /// Reads on the calling thread until [`stop`](LanSockets::stop). Neither a datagram nor a panic of `handler` ends it
    /// before.
    pub fn read(&self, role: SocketRole, mut handler: impl FnMut(PeerSocketEvent<'_>)) {
        let is_loopback_only = self.is_loopback_only();
        self.socket(role).read(|event| {
            // This happens only where the discovery socket cannot be bound to loopback.
            let is_foreign = |source: SocketAddr| match source.ip() {
                IpAddr::V4(ip) => !interfaces::is_local_address(ip).unwrap_or(false),
                IpAddr::V6(_) => true,
            };
            match event {
                PeerSocketEvent::Datagram { source, .. } if is_loopback_only && is_foreign(source) => {}
                event => handler(event),
            }
        });
    }

    /// Sending remains possible.
    pub fn stop(&self) {
        self.own.stop();
        self.discovery.stop();
    }

    pub fn counters(&self, role: SocketRole) -> &PeerSocketCounters {
        self.socket(role).counters()
    }

    fn socket(&self, role: SocketRole) -> &PeerSocket {
        match role {
            SocketRole::Own => &self.own,
            SocketRole::Discovery => &self.discovery,
        }
    }

    fn is_loopback_only(&self) -> bool {
        self.own_addr().ip().is_loopback()
    }
}

/// Refuses broadcast and multicast addresses: the kernel would bind a socket to them, but it would receive no unicasts.
fn check_bind(bind: Ipv4Addr) -> Result<(), LanSocketsError> {
    let all = interfaces::interfaces(Ipv4Addr::UNSPECIFIED).map_err(LanSocketsError::Interfaces)?;
    let is_broadcast = bind.is_broadcast() || all.iter().any(|interface| interface.broadcast == Some(bind));
    if is_broadcast || bind.is_multicast() { Err(LanSocketsError::NotOwnAddress(bind)) } else { Ok(()) }
}

fn discovery_address(bind: Ipv4Addr) -> Ipv4Addr {
    // Only Linux has broadcasts on loopback.
    if bind.is_loopback() && cfg!(target_os = "linux") { LOOPBACK_BROADCAST } else { Ipv4Addr::UNSPECIFIED }
}

fn bind_fixed(bind: Ipv4Addr, port: u16) -> Result<PeerSocket, LanSocketsError> {
    PeerSocket::bind(SocketAddrV4::new(bind, port)).map_err(|source| match source.kind() {
        ErrorKind::AddrInUse if port != 0 => LanSocketsError::PortInUse { port },
        _ => bind_error(bind, port, source),
    })
}

/// Tries the last port, then all from a random one on: peers that start together seldom try the same ports.
fn bind_free(
    bind: Ipv4Addr,
    last_port: Option<u16>,
    discovery_port: u16,
    range: std::ops::RangeInclusive<u16>,
) -> Result<PeerSocket, LanSocketsError> {
    let count = range.len();
    let first = super::random_u64() as usize % count;
    let others = (0..count).map(|nth| range.start() + ((first + nth) % count) as u16);
    let last_port = last_port.filter(|port| *port != 0);
    for port in last_port.into_iter().chain(others).filter(|port| *port != discovery_port) {
        match PeerSocket::bind(SocketAddrV4::new(bind, port)) {
            Ok(socket) => return Ok(socket),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            // The last port may have been bound with privileges that this process lacks.
            Err(error) if error.kind() == ErrorKind::PermissionDenied && last_port == Some(port) => {}
            Err(source) => return Err(bind_error(bind, port, source)),
        }
    }
    Err(LanSocketsError::NoPortFree)
}

fn bind_error(bind: Ipv4Addr, port: u16, source: io::Error) -> LanSocketsError {
    match source.kind() {
        ErrorKind::AddrNotAvailable => LanSocketsError::NotOwnAddress(bind),
        _ => LanSocketsError::Port { port, flag: "--port", source },
    }
}

#[cfg(test)]
mod tests;
