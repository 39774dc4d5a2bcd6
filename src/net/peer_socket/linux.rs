//! Choosing the interface of a datagram, and the queue of errors that were returned for datagrams sent before (ip(7):
//! IP_PKTINFO, IP_RECVERR).

use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use log::debug;
use socket2::{MaybeUninitSlice, MsgHdrMut, SockAddr, SockRef};

use super::ERROR_PAUSE;
use crate::net::ancillary::{self, read_int};

/// How many errors are taken from the queue before the next datagram is read.
const ERRORS_AT_A_TIME: usize = 256;
/// More than one error needs: with the address of the reporting host, and whatever else was enabled on the socket.
const CONTROL_BYTES: usize = 512;

pub(super) fn enable_error_queue(socket: &UdpSocket) -> io::Result<()> {
    ancillary::set_option(socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1)
}

/// Waits for a datagram or an error, whichever is first, and collects the destinations that refused a datagram. A plain
/// read would keep waiting: the pending error may have been returned to a sender already, and only poll checks the
/// queue.
pub(super) fn wait(socket: &UdpSocket, timeout: Duration, refused: &mut Vec<SocketAddr>) {
    let mut polled = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let millis = libc::c_int::try_from(timeout.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: one pollfd, which lives through the call; the borrowed descriptor is open.
    let ready = unsafe { libc::poll(&raw mut polled, 1, millis) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            debug!("waiting for a datagram: {error}");
            std::thread::sleep(ERROR_PAUSE);
        }
    } else if polled.revents & libc::POLLERR != 0 {
        for _ in 0..ERRORS_AT_A_TIME {
            match next_error(socket) {
                Ok(Some(to)) => refused.push(to),
                Ok(None) => {}
                // The queue is empty.
                Err(_) => break,
            }
        }
        // An error for which the queue had no room is pending all the same, and would end every wait.
        if let Ok(Some(error)) = socket.take_error() {
            debug!("an error came back for a datagram: {error}");
        }
    }
}

/// Ends every wait, now and from now on.
pub(super) fn wake(socket: &UdpSocket) {
    // The call fails with "not connected", as for every unconnected socket; but it wakes the reader.
    if let Err(error) = SockRef::from(socket).shutdown(Shutdown::Read) {
        debug!("ending the waits for datagrams: {error}");
    }
}

/// Never waits (a datagram that the kernel finds damaged ends `wait` as well).
pub(super) fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    // SAFETY: both have the same layout, and recvfrom writes only received bytes, so the buffer stays initialised.
    let uninit = unsafe { &mut *(std::ptr::from_mut(buffer) as *mut [MaybeUninit<u8>]) };
    let (len, source) = SockRef::from(socket).recv_from_with_flags(uninit, libc::MSG_DONTWAIT)?;
    let source = source.as_socket().ok_or_else(|| io::Error::other("a datagram has no source address"))?;
    Ok((len, source))
}

/// The destination that the first error of the queue is about, if that refused the datagram.
fn next_error(socket: &UdpSocket) -> io::Result<Option<SocketAddr>> {
    let mut to = SockAddr::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
    let mut control = [MaybeUninit::new(0_u8); CONTROL_BYTES];
    // The datagram itself, which is returned too, is not needed.
    let mut start = [MaybeUninit::new(0_u8); 1];
    let control_len = {
        let mut buffers = [MaybeUninitSlice::new(&mut start)];
        let mut message = MsgHdrMut::new().with_addr(&mut to).with_buffers(&mut buffers).with_control(&mut control);
        SockRef::from(socket).recvmsg(&mut message, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT)?;
        message.control_len()
    };
    // SAFETY: all of it was initialised above.
    let control = control.map(|byte| unsafe { byte.assume_init() });
    let is_refusal = is_refusal(&control[..control_len.min(CONTROL_BYTES)]);
    Ok(to.as_socket().filter(|_| is_refusal))
}

/// Nothing listens at the port. An unreachable host or network is different: it may come back.
fn is_refusal(control: &[u8]) -> bool {
    let is_error = |(level, kind, data): &(libc::c_int, libc::c_int, &[u8])| {
        // sock_extended_err begins with the error number (4 bytes) and its origin (1 byte).
        (*level, *kind) == (libc::IPPROTO_IP, libc::IP_RECVERR) && data.len() >= 5
    };
    ancillary::messages(control)
        .find(is_error)
        .is_some_and(|(_, _, data)| read_int(data, 0) == libc::ECONNREFUSED && data[4] == libc::SO_EE_ORIGIN_ICMP)
}

pub(super) fn send_by(
    socket: &UdpSocket,
    bytes: &[u8],
    to: SocketAddrV4,
    from: Ipv4Addr,
    interface: Option<u32>,
) -> io::Result<usize> {
    ancillary::send(socket, bytes, to.into(), from.into(), interface)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::ancillary::tests::message;

    fn error(read_int: libc::c_int, origin: u8) -> Vec<u8> {
        let data = [&read_int.to_ne_bytes()[..], &[origin], &[0; 27]].concat();
        message(libc::IPPROTO_IP, libc::IP_RECVERR, &data)
    }

    #[test]
    fn only_a_refusal_counts_as_one() {
        assert!(is_refusal(&error(libc::ECONNREFUSED, libc::SO_EE_ORIGIN_ICMP)));
        assert!(!is_refusal(&error(libc::EHOSTUNREACH, libc::SO_EE_ORIGIN_ICMP)));
        assert!(!is_refusal(&error(libc::ECONNREFUSED, 1)));
        let other = message(libc::SOL_SOCKET, 29, &[7; 16]);
        assert!(is_refusal(&[other.clone(), error(libc::ECONNREFUSED, libc::SO_EE_ORIGIN_ICMP)].concat()));
        assert!(!is_refusal(&other));
    }
}
