//! Systems with nothing beyond std: refusals are not reported, and the system chooses the interface.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

#[allow(clippy::unnecessary_wraps, reason = "the other system's may fail")]
pub(super) fn enable_error_queue(_socket: &UdpSocket) -> io::Result<()> {
    Ok(())
}

/// Reading itself waits, for the socket's timeout.
pub(super) fn wait(_socket: &UdpSocket, _timeout: Duration, _refused: &mut Vec<SocketAddr>) {}

pub(super) fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    socket.recv_from(buffer)
}

/// There is no safe way: std panics when it reads a socket that was shut down, and a datagram to a shared port may
/// reach another program. The reader checks after its timeout.
pub(super) fn wake(_socket: &UdpSocket) {}

/// The broadcast address alone selects the interface.
pub(super) fn send_by(
    socket: &UdpSocket,
    bytes: &[u8],
    to: SocketAddrV4,
    _from: Ipv4Addr,
    _interface: Option<u32>,
) -> io::Result<usize> {
    socket.send_to(bytes, to)
}
