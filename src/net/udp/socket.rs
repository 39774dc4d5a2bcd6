//! A server's UDP socket responds from the local address that a datagram was sent to. A host with several addresses
//! would otherwise respond from whichever is nearest to the peer, and the peer would not accept that.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;

#[derive(Debug)]
pub struct UdpServerSocket {
    socket: UdpSocket,
    is_ipv6: bool,
    /// It is bound to all addresses, on a system that reports which one a datagram was sent to.
    reports_destination: bool,
}

impl UdpServerSocket {
    pub fn from_socket(socket: UdpSocket) -> io::Result<UdpServerSocket> {
        let address = socket.local_addr()?;
        let reports_destination = address.ip().is_unspecified() && enable_packet_info(&socket, address.is_ipv6());
        Ok(UdpServerSocket { socket, is_ipv6: address.is_ipv6(), reports_destination })
    }

    pub fn get(&self) -> &UdpSocket {
        &self.socket
    }

    /// The datagram's length and source, and the local address it was sent to if that is reported.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr, Option<IpAddr>)> {
        #[cfg(target_os = "linux")]
        if self.reports_destination {
            return crate::net::ancillary::receive(&self.socket, buffer);
        }
        self.socket.recv_from(buffer).map(|(length, source)| (length, source, None))
    }

    /// Sends from the given local address if the system lets us choose and the host still has it. Within
    /// [`batch_sends`](super::batch_sends) the datagram is sent with the others.
    pub fn send_to(self: &Arc<Self>, bytes: &[u8], to: SocketAddr, from: Option<IpAddr>) -> io::Result<usize> {
        #[cfg(target_os = "linux")]
        if super::outbox::enqueue(self, bytes, to, from) {
            return Ok(bytes.len());
        }
        self.send_now(bytes, to, from)
    }

    pub(super) fn send_now(&self, bytes: &[u8], to: SocketAddr, from: Option<IpAddr>) -> io::Result<usize> {
        let (to, from) = self.in_socket_family(to, from);
        #[cfg(target_os = "linux")]
        if let Some(from) = from {
            match crate::net::ancillary::send(&self.socket, bytes, to, from, None) {
                Err(error) => log::debug!("cannot send to {to} from {from}: {error}"),
                sent => return sent,
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = from;
        self.socket.send_to(bytes, to)
    }

    /// The local address is `None` if it cannot be chosen.
    pub(super) fn in_socket_family(&self, to: SocketAddr, from: Option<IpAddr>) -> (SocketAddr, Option<IpAddr>) {
        // A socket that serves both families reaches IPv4 through mapped addresses.
        let to = match to {
            SocketAddr::V4(v4) if self.is_ipv6 => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
            _ => to,
        };
        let from = from.filter(|_| self.reports_destination).map(|from| match from {
            IpAddr::V4(v4) if self.is_ipv6 => v4.to_ipv6_mapped().into(),
            from => from,
        });
        (to, from)
    }
}

#[cfg(target_os = "linux")]
fn enable_packet_info(socket: &UdpSocket, is_ipv6: bool) -> bool {
    crate::net::ancillary::enable_packet_info(socket, is_ipv6)
        .inspect_err(|error| log::debug!("the system does not tell where datagrams are sent to: {error}"))
        .is_ok()
}

#[cfg(not(target_os = "linux"))]
fn enable_packet_info(_socket: &UdpSocket, _is_ipv6: bool) -> bool {
    false
}
