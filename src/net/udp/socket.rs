//! A server's socket: it knows which of this host's addresses each datagram was sent to, and answers from
//! there. A host with several would else answer from whichever is first towards the peer, and the peer,
//! which asked another one, does not take it for an answer.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;

/// A bound socket. Sockets that are bound to one address know it without being told.
#[derive(Debug)]
pub struct ServerSocket {
    socket: UdpSocket,
    is_ipv6: bool,
    /// Bound to every address, on a system that tells which one a datagram was sent to.
    tells: bool,
}

impl ServerSocket {
    /// Takes a bound socket.
    ///
    /// # Errors
    /// The system's.
    pub fn over(socket: UdpSocket) -> io::Result<ServerSocket> {
        let address = socket.local_addr()?;
        let tells = address.ip().is_unspecified() && tell_destinations(&socket, address.is_ipv6());
        Ok(ServerSocket { socket, is_ipv6: address.is_ipv6(), tells })
    }

    /// The socket itself.
    pub fn get(&self) -> &UdpSocket {
        &self.socket
    }

    /// The next datagram: its length, its source, and to which address it was sent where that is told.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr, Option<IpAddr>)> {
        #[cfg(target_os = "linux")]
        if self.tells {
            return crate::net::control::receive(&self.socket, buffer);
        }
        self.socket.recv_from(buffer).map(|(length, source)| (length, source, None))
    }

    /// Sends a datagram, from one of this host's addresses where one is named and the system lets us choose.
    /// From an address that the host does not have any more it leaves as the system thinks best. Within
    /// [`gather`](super::gather) it leaves with the others.
    ///
    /// # Errors
    /// The system's.
    pub fn send_to(self: &Arc<Self>, bytes: &[u8], to: SocketAddr, from: Option<IpAddr>) -> io::Result<usize> {
        #[cfg(target_os = "linux")]
        if super::outbox::put(self, bytes, to, from) {
            return Ok(bytes.len());
        }
        self.send_now(bytes, to, from)
    }

    /// The same at once.
    pub(super) fn send_now(&self, bytes: &[u8], to: SocketAddr, from: Option<IpAddr>) -> io::Result<usize> {
        let (to, from) = self.as_it_speaks(to, from);
        #[cfg(target_os = "linux")]
        if let Some(from) = from {
            match crate::net::control::send(&self.socket, bytes, to, from, None) {
                Err(error) => log::debug!("cannot send to {to} from {from}: {error}"),
                sent => return sent,
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = from;
        self.socket.send_to(bytes, to)
    }

    /// Both addresses in the socket's family; from none where that is not to be chosen.
    pub(super) fn as_it_speaks(&self, to: SocketAddr, from: Option<IpAddr>) -> (SocketAddr, Option<IpAddr>) {
        // A socket that serves both families speaks to IPv4 through mapped addresses.
        let to = match to {
            SocketAddr::V4(v4) if self.is_ipv6 => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
            _ => to,
        };
        let from = from.filter(|_| self.tells).map(|from| match from {
            IpAddr::V4(v4) if self.is_ipv6 => v4.to_ipv6_mapped().into(),
            from => from,
        });
        (to, from)
    }
}

#[cfg(target_os = "linux")]
fn tell_destinations(socket: &UdpSocket, is_ipv6: bool) -> bool {
    crate::net::control::tell_destinations(socket, is_ipv6)
        .inspect_err(|error| log::debug!("the system does not tell where datagrams are sent to: {error}"))
        .is_ok()
}

#[cfg(not(target_os = "linux"))]
fn tell_destinations(_socket: &UdpSocket, _is_ipv6: bool) -> bool {
    false
}
