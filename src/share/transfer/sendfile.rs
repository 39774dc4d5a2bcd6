//! Sends file contents to a socket with `sendfile` where the system has it, without copying through this process.
//!
//! (`std::io::copy` no longer uses it from files to sockets, because changes to the file reach data that still waits in
//! the socket. Here the file is checked for changes before, during and after, and the receiver verifies what it gets.)

use std::fs::File;
use std::io;
use std::net::TcpStream;

const BUFFER_BYTES: usize = 64 * 1024;

/// Sends at most `max` bytes of the file from `offset` on, and returns how many; 0 at the end of the file. It fails if
/// nothing could be written within the socket's write timeout.
pub(super) fn send_some(file: &File, offset: u64, max: u64, stream: &TcpStream) -> io::Result<u64> {
    #[cfg(target_os = "linux")]
    match send_by_kernel(file, offset, max, stream) {
        // The file system or the kernel does not support it.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {}
        result => return result,
    }
    send_by_copy(file, offset, max, stream)
}

#[cfg(target_os = "linux")]
fn send_by_kernel(file: &File, offset: u64, max: u64, stream: &TcpStream) -> io::Result<u64> {
    use std::os::fd::AsRawFd;
    let mut at = libc::off64_t::try_from(offset).map_err(io::Error::other)?;
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    loop {
        // SAFETY: both descriptors are open as long as they are borrowed, and `at` outlives the call.
        let sent = unsafe { libc::sendfile64(stream.as_raw_fd(), file.as_raw_fd(), &raw mut at, max) };
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

fn send_by_copy(mut file: &File, offset: u64, max: u64, mut stream: &TcpStream) -> io::Result<u64> {
    use std::io::{Read, Seek, SeekFrom, Write};
    file.seek(SeekFrom::Start(offset))?;
    let mut buffer = vec![0; usize::try_from(max).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES)];
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
        for send in [send_some, send_by_copy] {
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
