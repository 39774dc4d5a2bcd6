//! What Linux does beyond std: datagrams that are told their interface, and the queue of errors that
//! came back for datagrams sent before (ip(7): IP_PKTINFO, IP_RECVERR).
//!
//! Whoever writes a control message here lays it out by hand: a `cmsghdr`, then its data.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use log::debug;
use socket2::{MaybeUninitSlice, MsgHdr, MsgHdrMut, SockAddr, SockRef};

use super::ERROR_PAUSE;

/// Errors taken from the queue before the next datagram is read.
const ERRORS_AT_A_TIME: usize = 256;

/// The bytes of `cmsghdr`: its length as a `size_t`, then level and type.
const HEADER: usize = size_of::<libc::cmsghdr>();

/// More than the control messages of one error take: the error with the address of who reported it,
/// and whatever else the socket may have been asked to tell.
const CONTROL_BYTES: usize = 512;

/// Asks for the errors that come back for datagrams sent.
pub(super) fn watch_refusals(socket: &UdpSocket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option's value is a c_int that lives through the call, with its true size; the
    // descriptor is borrowed, so it is open.
    let failed = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_RECVERR,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Waits for a datagram or an error, whichever is first; the addresses that refused something.
///
/// A plain read would wait on: the socket's pending error may have been told to a sender already, and
/// only poll looks at the queue.
pub(super) fn wait(socket: &UdpSocket, timeout: Duration, refused: &mut Vec<SocketAddr>) {
    let mut polled = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let millis = libc::c_int::try_from(timeout.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: one pollfd, which lives through the call; the descriptor is borrowed, so it is open.
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
    // The answer is an error, "not connected", as of every socket without connection; but it wakes.
    if let Err(error) = SockRef::from(socket).shutdown(Shutdown::Read) {
        debug!("ending the waits for datagrams: {error}");
    }
}

/// A datagram that is there; never waits (one that the kernel finds damaged had ended the wait as well).
pub(super) fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    // SAFETY: u8 and MaybeUninit<u8> have the same layout, and recvfrom writes nothing but bytes that
    // came, so the buffer stays initialised.
    let uninit = unsafe { &mut *(std::ptr::from_mut(buffer) as *mut [MaybeUninit<u8>]) };
    let (len, source) = SockRef::from(socket).recv_from_with_flags(uninit, libc::MSG_DONTWAIT)?;
    let source = source.as_socket().ok_or_else(|| io::Error::other("a datagram has no source address"))?;
    Ok((len, source))
}

/// The first error of the queue: the address it is about, if that refused the datagram.
fn next_error(socket: &UdpSocket) -> io::Result<Option<SocketAddr>> {
    let mut to = SockAddr::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
    let mut control = [MaybeUninit::new(0_u8); CONTROL_BYTES];
    // Of the datagram itself, which comes back too, nothing is needed.
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

/// Whether the control messages of an error tell of a port where nobody listens. That a host or a
/// network cannot be reached is another matter: it may come back.
fn is_refusal(mut control: &[u8]) -> bool {
    while let Some((header, rest)) = control.split_at_checked(HEADER) {
        let (level, kind) = (number(header, HEADER - 8), number(header, HEADER - 4));
        let len = usize::from_ne_bytes(std::array::from_fn(|at| header[at]));
        // A length that cannot be: nothing behind it can be read.
        let Some(data_len) = len.checked_sub(HEADER).filter(|len| *len <= rest.len()) else { return false };
        // sock_extended_err begins with the error's number (4 bytes) and who it comes from (1).
        if (level, kind) == (libc::IPPROTO_IP, libc::IP_RECVERR) && data_len >= 5 {
            return number(rest, 0) == libc::ECONNREFUSED && rest[4] == libc::SO_EE_ORIGIN_ICMP;
        }
        let aligned = data_len.next_multiple_of(size_of::<usize>());
        control = rest.get(aligned..).unwrap_or_default();
    }
    false
}

fn number(bytes: &[u8], at: usize) -> libc::c_int {
    libc::c_int::from_ne_bytes(std::array::from_fn(|nth| bytes[at + nth]))
}

/// Sends a datagram by an interface, with a source address.
pub(super) fn send_by(
    socket: &UdpSocket,
    bytes: &[u8],
    to: SocketAddrV4,
    from: Ipv4Addr,
    interface: Option<u32>,
) -> io::Result<usize> {
    let control = packet_info(from, interface.unwrap_or(0));
    let to = SockAddr::from(to);
    let buffers = [IoSlice::new(bytes)];
    let message = MsgHdr::new().with_addr(&to).with_buffers(&buffers).with_control(&control);
    SockRef::from(socket).sendmsg(&message, 0)
}

/// The control message IP_PKTINFO: an `in_pktinfo` of interface index (0: any), source address, and a
/// field that only says something when reading.
fn packet_info(from: Ipv4Addr, interface: u32) -> Vec<u8> {
    let len = HEADER + size_of::<libc::in_pktinfo>();
    let mut control = len.to_ne_bytes().to_vec();
    control.extend(libc::IPPROTO_IP.to_ne_bytes());
    control.extend(libc::IP_PKTINFO.to_ne_bytes());
    control.extend(interface.to_ne_bytes());
    control.extend(from.octets());
    control.extend([0; 4]);
    control.resize(HEADER + size_of::<libc::in_pktinfo>().next_multiple_of(size_of::<usize>()), 0);
    control
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(level: libc::c_int, kind: libc::c_int, data: &[u8]) -> Vec<u8> {
        let mut message = (HEADER + data.len()).to_ne_bytes().to_vec();
        message.extend([level.to_ne_bytes(), kind.to_ne_bytes()].concat());
        message.extend(data);
        message.resize(message.len().next_multiple_of(size_of::<usize>()), 0);
        message
    }

    fn error(number: libc::c_int, origin: u8) -> Vec<u8> {
        let data = [&number.to_ne_bytes()[..], &[origin], &[0; 27]].concat();
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

    #[test]
    fn broken_control_messages_harm_nobody() {
        let whole = error(libc::ECONNREFUSED, libc::SO_EE_ORIGIN_ICMP);
        for len in 0..HEADER + 5 {
            assert!(!is_refusal(&whole[..len]), "{len}");
        }
        for len in [0, 1, HEADER - 1, HEADER, usize::MAX] {
            let mut broken = whole.clone();
            broken[..size_of::<usize>()].copy_from_slice(&len.to_ne_bytes());
            assert!(!is_refusal(&broken), "{len}");
        }
    }
}
