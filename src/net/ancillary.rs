//! Ancillary data of UDP datagrams on Linux (cmsg(3), ip(7), ipv6(7)): the local address that a datagram was sent to,
//! or is to be sent from (IP_PKTINFO, IPV6_PKTINFO). A message is a `cmsghdr`, then its data, each aligned like a
//! `size_t`; they are laid out by hand.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

use socket2::{MaybeUninitSlice, MsgHdr, MsgHdrMut, SockAddr, SockRef};

/// The length as a `size_t`, then level and type.
const HEADER_BYTES: usize = size_of::<libc::cmsghdr>();
/// The control message with the source address of a datagram.
const PACKET_INFO_BYTES: usize = HEADER_BYTES + 24;
/// More than the control messages of one datagram need, whatever was enabled on the socket.
const CONTROL_BYTES: usize = 128;

pub(super) fn set_option(
    socket: &impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the value is a c_int that lives through the call, with its true size; the borrowed descriptor is open.
    let failed = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes [`receive`] report the address that each datagram was sent to.
pub(super) fn enable_packet_info(socket: &UdpSocket, is_ipv6: bool) -> io::Result<()> {
    if is_ipv6 {
        // Also for IPv4: its address is reported in mapped form.
        set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)
    } else {
        set_option(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)
    }
}

/// The next datagram: its length, its source, and the local address it was sent to.
pub(super) fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr, Option<IpAddr>)> {
    // SAFETY: both have the same layout, and recvmsg writes only received bytes, so the buffer stays initialised.
    let uninit = unsafe { &mut *(std::ptr::from_mut(buffer) as *mut [MaybeUninit<u8>]) };
    let mut source = SockAddr::from(SocketAddr::from(([0; 16], 0)));
    let mut control = [MaybeUninit::new(0_u8); CONTROL_BYTES];
    let (length, control_length) = {
        let mut buffers = [MaybeUninitSlice::new(uninit)];
        let mut message = MsgHdrMut::new().with_addr(&mut source).with_buffers(&mut buffers).with_control(&mut control);
        let length = SockRef::from(socket).recvmsg(&mut message, 0)?;
        (length, message.control_len())
    };
    // SAFETY: all of it was initialised above.
    let control = control.map(|byte| unsafe { byte.assume_init() });
    let source = source.as_socket().ok_or_else(|| io::Error::other("a datagram has no source address"))?;
    Ok((length, source, messages(&control[..control_length.min(CONTROL_BYTES)]).find_map(destination)))
}

fn destination((level, kind, data): (libc::c_int, libc::c_int, &[u8])) -> Option<IpAddr> {
    match (level, kind) {
        // in_pktinfo: interface, local address, and the destination in the header, which may be a broadcast address.
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => data.get(4..)?.first_chunk::<4>().map(|ip| Ipv4Addr::from(*ip).into()),
        // in6_pktinfo: the address, then the interface.
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => data.first_chunk::<16>().map(|ip| Ipv6Addr::from(*ip).into()),
        _ => None,
    }
}

/// `from` must be of the family of `to`.
pub(super) fn send(
    socket: &UdpSocket,
    bytes: &[u8],
    to: SocketAddr,
    from: IpAddr,
    interface: Option<u32>,
) -> io::Result<usize> {
    let (control, length) = packet_info(from, interface);
    let to = SockAddr::from(to);
    let buffers = [IoSlice::new(bytes)];
    let message = MsgHdr::new().with_addr(&to).with_buffers(&buffers).with_control(&control[..length]);
    SockRef::from(socket).sendmsg(&message, 0)
}

/// Returns the message and its length.
fn packet_info(from: IpAddr, interface: Option<u32>) -> ([u8; PACKET_INFO_BYTES], usize) {
    let interface = interface.unwrap_or(0).to_ne_bytes();
    let mut control = [0; PACKET_INFO_BYTES];
    let length = match from {
        IpAddr::V4(from) => {
            // The last field is used only when receiving.
            let info: [u8; 12] = concat(&[&interface, &from.octets(), &[0; 4]]);
            write_message(&mut control, libc::IPPROTO_IP, libc::IP_PKTINFO, &info)
        }
        IpAddr::V6(from) => {
            let info: [u8; 20] = concat(&[&from.octets(), &interface]);
            write_message(&mut control, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info)
        }
    };
    (control, length)
}

#[derive(Debug, Clone, Copy)]
pub(super) struct OutgoingDatagram<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) to: SocketAddr,
    /// A local address, of the family of `to`.
    pub(super) from: Option<IpAddr>,
}

/// Sends datagrams in one call (sendmmsg(2)). Returns how many of them, from the first on, were sent; if that one
/// fails, none was.
pub(super) fn send_many(socket: &UdpSocket, all: &[OutgoingDatagram<'_>]) -> io::Result<usize> {
    let addresses: Vec<SockAddr> = all.iter().map(|outgoing| outgoing.to.into()).collect();
    let controls: Vec<_> = all.iter().map(|outgoing| outgoing.from.map(|from| packet_info(from, None))).collect();
    let mut parts: Vec<libc::iovec> = all
        .iter()
        .map(|OutgoingDatagram { bytes, .. }| libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        })
        .collect();
    let mut messages: Vec<libc::mmsghdr> = Vec::with_capacity(all.len());
    for ((address, control), part) in addresses.iter().zip(&controls).zip(&mut parts) {
        // SAFETY: it consists of numbers and pointers, for which zero is a valid value.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_name = address.as_ptr().cast_mut().cast();
        message.msg_hdr.msg_namelen = address.len();
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
        if let Some((control, length)) = control {
            message.msg_hdr.msg_control = control.as_ptr().cast_mut().cast();
            message.msg_hdr.msg_controllen = *length as _;
        }
        messages.push(message);
    }
    let length = libc::c_uint::try_from(messages.len()).unwrap_or(libc::c_uint::MAX);
    // SAFETY: there are as many messages as are passed; what they point to (addresses, control messages, parts and
    // their bytes) outlives the call and is only read; the borrowed descriptor is open.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), length, 0) };
    usize::try_from(sent).map_err(|_negative| io::Error::last_os_error())
}

fn concat<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut all = [0; N];
    let mut at = 0;
    for part in parts {
        all[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    all
}

/// Returns the message's size including alignment.
fn write_message(control: &mut [u8], level: libc::c_int, kind: libc::c_int, data: &[u8]) -> usize {
    let length = HEADER_BYTES + data.len();
    control[..HEADER_BYTES - 8].copy_from_slice(&length.to_ne_bytes());
    control[HEADER_BYTES - 8..HEADER_BYTES - 4].copy_from_slice(&level.to_ne_bytes());
    control[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&kind.to_ne_bytes());
    control[HEADER_BYTES..length].copy_from_slice(data);
    HEADER_BYTES + data.len().next_multiple_of(size_of::<usize>())
}

/// Level, type and data of each message. It ends at a message with an impossible length.
pub(super) fn messages(mut control: &[u8]) -> impl Iterator<Item = (libc::c_int, libc::c_int, &[u8])> {
    std::iter::from_fn(move || {
        let (header, rest) = control.split_at_checked(HEADER_BYTES)?;
        let length = usize::from_ne_bytes(std::array::from_fn(|at| header[at]));
        let data = rest.get(..length.checked_sub(HEADER_BYTES)?)?;
        control = rest.get(data.len().next_multiple_of(size_of::<usize>())..).unwrap_or_default();
        Some((read_int(header, HEADER_BYTES - 8), read_int(header, HEADER_BYTES - 4), data))
    })
}

pub(super) fn read_int(bytes: &[u8], at: usize) -> libc::c_int {
    libc::c_int::from_ne_bytes(std::array::from_fn(|nth| bytes[at + nth]))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::net) fn message(level: libc::c_int, kind: libc::c_int, data: &[u8]) -> Vec<u8> {
        let mut control = vec![0; HEADER_BYTES + data.len().next_multiple_of(size_of::<usize>())];
        write_message(&mut control, level, kind, data);
        control
    }

    #[test]
    fn what_is_written_is_read_and_broken_messages_harm_nobody() {
        let two = [message(1, 2, &[7; 5]), message(3, 4, &[8; 16])].concat();
        let read: Vec<_> = messages(&two).collect();
        assert_eq!(read, [(1, 2, &[7; 5][..]), (3, 4, &[8; 16][..])]);
        for length in 0..two.len() {
            let whole = messages(&two[..length]).count();
            assert!(whole <= usize::from(length >= HEADER_BYTES + 5), "{length}");
        }
        for length in [0, 1, HEADER_BYTES - 1, usize::MAX] {
            let mut broken = two.clone();
            broken[..size_of::<usize>()].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(messages(&broken).count(), 0, "{length}");
        }
    }

    #[test]
    fn a_datagrams_destination_is_told_and_answers_leave_from_it() {
        for (any, loopback) in [("0.0.0.0:0", "127.0.0.9"), ("[::]:0", "127.0.0.9"), ("[::]:0", "::1")] {
            let server = UdpSocket::bind(any).unwrap();
            let is_ipv6 = server.local_addr().unwrap().is_ipv6();
            enable_packet_info(&server, is_ipv6).unwrap();
            let asked: IpAddr = loopback.parse().unwrap();
            let client = UdpSocket::bind((if asked.is_ipv6() { "::1" } else { "127.0.0.1" }, 0)).unwrap();
            client.send_to(b"hello", (asked, server.local_addr().unwrap().port())).unwrap();
            let mut buffer = [0; 9];
            let (length, source, to) = receive(&server, &mut buffer).unwrap();
            assert_eq!((&buffer[..length], to.map(|to| to.to_canonical())), (&b"hello"[..], Some(asked)));
            send(&server, b"hi", source, to.unwrap(), None).unwrap();
            let (length, by) = client.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..length], by.ip()), (&b"hi"[..], asked), "{any}");
        }
    }
}
