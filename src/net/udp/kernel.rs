use std::net::UdpSocket;

use log::debug;
use socket2::SockRef;

/// What is asked for, for when every thread is busy. The system may give less.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// A smaller buffer is logged: a burst of a few hundred datagrams fills it.
const SOCKET_BUFFER_SMALL_BYTES: usize = 1024 * 1024;

pub(in crate::net) fn grow_receive_buffer(socket: &UdpSocket) {
    let socket = SockRef::from(socket);
    if !force_receive_buffer(&socket)
        && let Err(refusal) = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)
    {
        debug!("UDP receive buffer stays as it is: {refusal}");
    }
    match socket.recv_buffer_size() {
        Ok(bytes) if bytes < SOCKET_BUFFER_SMALL_BYTES => log::info!(
            "the kernel keeps {} KiB of datagrams for us; with many peers, allow more: \
             sysctl net.core.rmem_max={SOCKET_BUFFER_BYTES}",
            bytes / 1024
        ),
        Ok(_) => {}
        Err(error) => debug!("UDP receive buffer: {error}"),
    }
}

/// Exceeds the system's limit, which only a privileged process may.
#[cfg(target_os = "linux")]
fn force_receive_buffer(socket: &SockRef<'_>) -> bool {
    let bytes = SOCKET_BUFFER_BYTES as libc::c_int;
    crate::net::ancillary::set_option(&**socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn force_receive_buffer(_socket: &SockRef<'_>) -> bool {
    false
}

/// Datagrams that found the buffer full; `None` if the system does not report it.
#[cfg(target_os = "linux")]
pub(super) fn dropped_datagrams(socket: &UdpSocket) -> Option<u64> {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;
    let inode = std::fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd())).ok()?.ino();
    ["/proc/net/udp", "/proc/net/udp6"]
        .iter()
        .find_map(|table| parse_drops(&std::fs::read_to_string(table).ok()?, inode))
}

#[cfg(not(target_os = "linux"))]
pub(super) fn dropped_datagrams(_socket: &UdpSocket) -> Option<u64> {
    None
}

/// The tenth column is the socket's inode, the last one its drops (proc_net_udp(5)).
#[cfg(target_os = "linux")]
fn parse_drops(table: &str, inode: u64) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let mut columns = line.split_ascii_whitespace();
        let is_ours = columns.nth(9)?.parse::<u64>().ok()? == inode;
        is_ours.then(|| columns.last()?.parse().ok()).flatten()
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_drops_is_known() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = socket.local_addr().unwrap();
        assert_eq!(dropped_datagrams(&socket), Some(0));
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        SockRef::from(&socket).set_recv_buffer_size(4096).unwrap();
        let sent = 200;
        for _ in 0..sent {
            sender.send_to(&[0; 1000], to).unwrap();
        }
        socket.set_nonblocking(true).unwrap();
        let kept = std::iter::from_fn(|| socket.recv(&mut [0; 1000]).ok()).count() as u64;
        assert!(kept < sent, "the buffer held all of it");
        assert_eq!(dropped_datagrams(&socket), Some(sent - kept));
    }

    #[test]
    fn the_buffer_grows() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let size = || SockRef::from(&socket).recv_buffer_size().unwrap();
        SockRef::from(&socket).set_recv_buffer_size(4096).unwrap();
        let before = size();
        grow_receive_buffer(&socket);
        assert!(size() > before, "{} is no more than {before}", size());
    }
}
