//! From a file to a socket without passing through this process, where the system can do that.
//!
//! (`std::io::copy` no longer does, from files to sockets: what changes in the file while it waits in the socket
//! is sent changed. Here the file is looked at before, during and after, and the other end checks what it gets.)

use std::fs::File;
use std::io;
use std::net::TcpStream;

/// How much passes through memory at a time where it has to.
const BUFFER: usize = 64 * 1024;

/// Sends some of the next `most` bytes of the file; how many. 0: there are no more.
///
/// # Errors
/// The file's or the socket's; the socket's timeout counts for each time that nothing moves.
pub(super) fn send_some(file: &File, offset: u64, most: u64, stream: &TcpStream) -> io::Result<u64> {
    #[cfg(target_os = "linux")]
    match by_kernel(file, offset, most, stream) {
        // A file system, or a kernel, that does not know how.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {}
        result => return result,
    }
    by_hand(file, offset, most, stream)
}

#[cfg(target_os = "linux")]
fn by_kernel(file: &File, offset: u64, most: u64, stream: &TcpStream) -> io::Result<u64> {
    use std::os::fd::AsRawFd;
    let mut at = libc::off64_t::try_from(offset).map_err(io::Error::other)?;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    loop {
        // SAFETY: both descriptors are open as long as they are borrowed, and `at` outlives the call.
        let sent = unsafe { libc::sendfile64(stream.as_raw_fd(), file.as_raw_fd(), &raw mut at, most) };
        match u64::try_from(sent) {
            Ok(sent) => return Ok(sent),
            Err(_negative) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

fn by_hand(mut file: &File, offset: u64, most: u64, mut stream: &TcpStream) -> io::Result<u64> {
    use std::io::{Read, Seek, SeekFrom, Write};
    file.seek(SeekFrom::Start(offset))?;
    let mut buffer = vec![0; usize::try_from(most).unwrap_or(BUFFER).min(BUFFER)];
    let len = loop {
        match file.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => break result?,
        }
    };
    stream.write_all(&buffer[..len])?;
    Ok(len as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::deadline::tests::pair;
    use std::io::{Read, Write};

    #[test]
    fn both_ways_send_what_is_there() {
        let content: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        for send in [send_some, by_hand] {
            let (here, mut there) = pair();
            let received = std::thread::spawn(move || {
                let mut received = Vec::new();
                there.read_to_end(&mut received).map(|_| received)
            });
            let mut at = 1000;
            while at < content.len() as u64 {
                let sent = send(&file, at, 70_000, &here).unwrap();
                assert!((1..=70_000).contains(&sent));
                at += sent;
            }
            assert_eq!(send(&file, at, 70_000, &here).unwrap(), 0);
            drop(here);
            assert!(received.join().unwrap().unwrap() == content[1000..]);
        }
    }
}
