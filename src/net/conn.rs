//! One connection, plaintext or TLS in either role, read by one thread and written by others at the same time.
//!
//! The TLS state is behind a lock that is held for memory work only. A second lock, held while writing, keeps the order
//! of TLS records; it is acquired with a deadline, and the reader never waits for it.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rustls::{CertificateError, ClientConnection, Connection, ServerConnection};

use super::deadline::{DeadlineRead, DeadlineStream};
use super::tls::{PinMismatch, TlsIdentity, TlsIdentityError, client_config, fingerprint_of, server_name};

/// The first byte of a handshake record. No message of ours begins with it.
const TLS_FIRST_BYTE: u8 = 0x16;
/// What is read from the socket at a time: so little that the plaintext it decrypts to, together with the rest of an
/// earlier record, never exceeds rustls's plaintext buffer (16 KiB).
const READ_BYTES: usize = 4096;
/// What is encrypted before it is written: one full TLS record.
const RECORD_BYTES: usize = 16 * 1024;
const CLOSE_NOTIFY_TIMEOUT: Duration = Duration::from_millis(200);

#[derive(Debug, thiserror::Error)]
pub enum ConnError {
    #[error(transparent)]
    PinMismatch(#[from] PinMismatch),
    #[error(transparent)]
    InvalidPin(#[from] TlsIdentityError),
    #[error("the TLS handshake failed: {0}")]
    Tls(rustls::Error),
    #[error("the TLS handshake was not complete in time")]
    HandshakeTimeout,
    #[error("nothing was received in time")]
    FirstByteTimeout,
    #[error("the connection failed: {0}")]
    Io(io::Error),
}

/// Written by hand: `#[from]` would also make it the error's source, whose text would then be reported twice.
impl From<io::Error> for ConnError {
    fn from(error: io::Error) -> ConnError {
        ConnError::Io(error)
    }
}

pub struct Conn {
    inner: ConnInner,
}

struct ConnInner {
    stream: DeadlineStream,
    tls: Option<Mutex<Connection>>,
    /// Held while writing to the socket. True once a write has failed: it is unknown then where the next message or
    /// record would begin.
    is_write_broken: Mutex<bool>,
}

impl Conn {
    pub fn plain(stream: impl Into<Arc<TcpStream>>) -> Conn {
        Conn::from_parts(DeadlineStream::new(stream), None)
    }

    /// We present our certificate, whichever side made the TCP connection. `HandshakeTimeout` at the deadline, however
    /// the other end's bytes trickle in.
    pub fn tls_server(
        stream: impl Into<Arc<TcpStream>>,
        identity: &TlsIdentity,
        deadline: Instant,
    ) -> Result<Conn, ConnError> {
        let tls = ServerConnection::new(Arc::clone(&identity.server_config)).map_err(ConnError::Tls)?;
        Conn::handshake(DeadlineStream::new(stream), tls.into(), deadline)
    }

    /// The other end must present the certificate with the fingerprint `pin` (64 hex digits), else `PinMismatch`.
    pub fn tls_client(stream: impl Into<Arc<TcpStream>>, pin: &str, deadline: Instant) -> Result<Conn, ConnError> {
        Conn::client_handshake(DeadlineStream::new(stream), Some(pin), deadline)
    }

    /// Accepts any certificate. Nothing secret may be sent before the other end has proved its identity in a way that
    /// is bound to [`peer_fingerprint`](Conn::peer_fingerprint).
    pub fn tls_client_unpinned(stream: impl Into<Arc<TcpStream>>, deadline: Instant) -> Result<Conn, ConnError> {
        Conn::client_handshake(DeadlineStream::new(stream), None, deadline)
    }

    fn client_handshake(stream: DeadlineStream, pin: Option<&str>, deadline: Instant) -> Result<Conn, ConnError> {
        let tls = ClientConnection::new(client_config(pin)?, server_name()).map_err(ConnError::Tls)?;
        Conn::handshake(stream, tls.into(), deadline)
    }

    /// Accepts TLS or plaintext, which the first byte shows; `FirstByteTimeout` if none comes by `first_byte_by`. A TLS
    /// handshake must be complete within `handshake_timeout` from then on. The end of input before the first byte is
    /// not an error: the result is a plaintext connection at its end.
    pub fn accept(
        stream: impl Into<Arc<TcpStream>>,
        identity: &TlsIdentity,
        first_byte_by: Instant,
        handshake_timeout: Duration,
    ) -> Result<Conn, ConnError> {
        let stream = DeadlineStream::new(stream);
        let mut first = [0];
        match stream.peek_before(&mut first, first_byte_by) {
            Ok(1) if first[0] == TLS_FIRST_BYTE => {}
            Ok(_) => return Ok(Conn::from_parts(stream, None)),
            Err(error) if error.kind() == ErrorKind::TimedOut => return Err(ConnError::FirstByteTimeout),
            Err(error) => return Err(error.into()),
        }
        let tls = ServerConnection::new(Arc::clone(&identity.server_config)).map_err(ConnError::Tls)?;
        Conn::handshake(stream, tls.into(), Instant::now() + handshake_timeout)
    }

    fn from_parts(stream: DeadlineStream, tls: Option<Connection>) -> Conn {
        Conn { inner: ConnInner { stream, tls: tls.map(Mutex::new), is_write_broken: Mutex::default() } }
    }

    fn handshake(stream: DeadlineStream, mut tls: Connection, deadline: Instant) -> Result<Conn, ConnError> {
        let or_timeout = |error: io::Error| match error.kind() {
            ErrorKind::TimedOut => ConnError::HandshakeTimeout,
            _ => ConnError::Io(error),
        };
        let mut bytes = [0; READ_BYTES];
        loop {
            let outgoing = take_tls_output(&mut tls).map_err(ConnError::Io)?;
            stream.write_all_before(&outgoing, deadline).map_err(or_timeout)?;
            if !tls.is_handshaking() {
                return Ok(Conn::from_parts(stream, Some(tls)));
            }
            let len = stream.read_before(&mut bytes, deadline).map_err(or_timeout)?;
            let mut received = &bytes[..len];
            loop {
                tls.read_tls(&mut received).map_err(ConnError::Io)?;
                if let Err(error) = tls.process_new_packets() {
                    // The alert tells the other end the reason. Failing to send it changes nothing.
                    let farewell = deadline.min(Instant::now() + CLOSE_NOTIFY_TIMEOUT);
                    let _ = take_tls_output(&mut tls).and_then(|alert| stream.write_all_before(&alert, farewell));
                    return Err(as_conn_error(error));
                }
                if received.is_empty() {
                    break;
                }
            }
            if len == 0 {
                return Err(ConnError::Io(ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    pub fn is_tls(&self) -> bool {
        self.inner.tls.is_some()
    }

    pub fn peer_fingerprint(&self) -> Option<String> {
        let tls = self.inner.tls.as_ref()?.lock();
        tls.peer_certificates()?.first().map(fingerprint_of)
    }

    pub fn stream(&self) -> &Arc<TcpStream> {
        self.inner.stream.stream()
    }

    /// One half is for the one reading thread, one for the writing threads.
    pub fn split(self) -> (ConnReader, ConnWriter) {
        let inner = Arc::new(self.inner);
        let reader = ConnReader { inner: Arc::clone(&inner), unprocessed: Vec::new() };
        (reader, ConnWriter { inner })
    }
}

fn take_tls_output(tls: &mut Connection) -> io::Result<Vec<u8>> {
    let mut outgoing = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut outgoing)?;
    }
    Ok(outgoing)
}

fn as_conn_error(error: rustls::Error) -> ConnError {
    if let rustls::Error::InvalidCertificate(CertificateError::Other(other)) = &error
        && let Some(wrong) = other.0.downcast_ref::<PinMismatch>()
    {
        return ConnError::PinMismatch(wrong.clone());
    }
    ConnError::Tls(error)
}

pub struct ConnReader {
    inner: Arc<ConnInner>,
    /// What TLS has not taken yet because it had plaintext left; nearly always empty.
    unprocessed: Vec<u8>,
}

impl ConnReader {
    // Not inlined, so that its buffer is not on the stacks of the thousands of threads that wait without TLS.
    #[inline(never)]
    fn read_tls_before(&mut self, tls: &Mutex<Connection>, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        let mut bytes = [0; READ_BYTES];
        loop {
            {
                let mut tls = tls.lock();
                match tls.reader().read(buffer) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    // Without close_notify: many programs simply close. The framing shows whether a message was cut
                    // short.
                    Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                    result => return result,
                }
            }
            // The lock, which writers need meanwhile, is not held.
            let digested = if self.unprocessed.is_empty() {
                let len = self.inner.stream.read_before(&mut bytes, deadline)?;
                self.process_ciphertext(tls, &bytes[..len])
            } else {
                let unprocessed = std::mem::take(&mut self.unprocessed);
                self.process_ciphertext(tls, &unprocessed)
            };
            // Responses to key updates, and alerts: also after a failure.
            self.inner.flush_tls_unless_writing(tls, deadline);
            digested?;
        }
    }

    fn process_ciphertext(&mut self, tls: &Mutex<Connection>, mut received: &[u8]) -> io::Result<()> {
        let mut tls = tls.lock();
        loop {
            let taken = tls.read_tls(&mut received)?;
            let state = tls.process_new_packets().map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
            // TLS took nothing: the other end has closed TLS, and what follows is meaningless.
            if received.is_empty() || taken == 0 {
                return Ok(());
            }
            if state.plaintext_bytes_to_read() > 0 {
                self.unprocessed = received.to_vec();
                return Ok(());
            }
        }
    }
}

impl DeadlineRead for ConnReader {
    fn read_before(&mut self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let inner = Arc::clone(&self.inner);
        match &inner.tls {
            None => inner.stream.read_before(buffer, deadline),
            Some(tls) => self.read_tls_before(tls, buffer, deadline),
        }
    }
}

/// Clones write to the same connection, one message after the other.
#[derive(Clone)]
pub struct ConnWriter {
    inner: Arc<ConnInner>,
}

impl ConnWriter {
    pub fn stream(&self) -> &Arc<TcpStream> {
        self.inner.stream.stream()
    }

    pub fn write_line(&self, line: impl AsRef<[u8]>, deadline: Instant) -> io::Result<()> {
        let line = line.as_ref();
        // In one write, because without Nagle's algorithm two writes are two packets.
        let mut bytes = Vec::with_capacity(line.len() + 1);
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
        self.write_all(&bytes, deadline)
    }

    /// Waits for other writers and for the peer, until `TimedOut` at the deadline. Once something may have been written
    /// in part, the connection is shut down, and every further write fails.
    pub fn write_all(&self, bytes: &[u8], deadline: Instant) -> io::Result<()> {
        let inner = &*self.inner;
        let Some(mut is_broken) = inner.is_write_broken.try_lock_until(deadline) else {
            return Err(ErrorKind::TimedOut.into());
        };
        if *is_broken {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let written = match &inner.tls {
            None => inner.stream.write_all_before(bytes, deadline),
            Some(tls) => inner.write_tls_before(tls, bytes, deadline),
        };
        if written.is_err() {
            *is_broken = true;
            drop(is_broken);
            inner.shut_down(Shutdown::Both);
            return written;
        }
        // Fair, so that a thread that writes line after line does not starve the others.
        MutexGuard::unlock_fair(is_broken);
        if let Some(tls) = &inner.tls {
            inner.flush_tls_unless_writing(tls, deadline);
        }
        Ok(())
    }

    /// What the peer still sends can be read. To be sure that the last message arrives, read until the end after this:
    /// closing at once would reset the connection if the peer has sent something meanwhile.
    pub fn shut_down_write(&self) {
        self.send_close_notify();
        self.inner.shut_down(Shutdown::Write);
    }

    /// Sends `close_notify` if that takes no time, and wakes a reader in another thread.
    pub fn close(&self) {
        self.send_close_notify();
        self.inner.shut_down(Shutdown::Both);
    }

    fn send_close_notify(&self) {
        let inner = &*self.inner;
        let deadline = Instant::now() + CLOSE_NOTIFY_TIMEOUT;
        // If another writer is blocked by the peer there is no close_notify; shutting the socket down frees it.
        let Some(mut is_broken) = inner.is_write_broken.try_lock_until(deadline) else { return };
        if *is_broken {
            return;
        }
        *is_broken = true;
        if let Some(tls) = &inner.tls {
            let goodbye = {
                let mut tls = tls.lock();
                tls.send_close_notify();
                take_tls_output(&mut tls)
            };
            // The peer may have disconnected already; the error changes nothing.
            let _ = goodbye.and_then(|goodbye| inner.stream.write_all_before(&goodbye, deadline));
        }
    }
}

impl ConnInner {
    /// The caller holds the writers' lock.
    fn write_tls_before(&self, tls: &Mutex<Connection>, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            let outgoing = {
                let mut tls = tls.lock();
                let taken = tls.writer().write(&bytes[..bytes.len().min(RECORD_BYTES)])?;
                bytes = &bytes[taken..];
                take_tls_output(&mut tls)?
            };
            self.stream.write_all_before(&outgoing, deadline)?;
        }
        Ok(())
    }

    /// Writes what TLS itself has to send, or leaves that to the thread that is writing, which calls this when it is
    /// done: so the reader never waits for a writer, which may wait for the peer, which may wait for the reader.
    fn flush_tls_unless_writing(&self, tls: &Mutex<Connection>, deadline: Instant) {
        while tls.lock().wants_write() {
            let Some(mut is_broken) = self.is_write_broken.try_lock() else { return };
            if *is_broken {
                return;
            }
            let outgoing = take_tls_output(&mut tls.lock());
            let farewell =
                deadline.max(Instant::now() + CLOSE_NOTIFY_TIMEOUT).min(Instant::now() + Duration::from_secs(10));
            if outgoing.and_then(|outgoing| self.stream.write_all_before(&outgoing, farewell)).is_err() {
                *is_broken = true;
                drop(is_broken);
                self.shut_down(Shutdown::Both);
                return;
            }
        }
    }

    fn shut_down(&self, how: Shutdown) {
        // Fails only if the connection has ended already, which is what is wanted.
        let _ = self.stream.stream().shutdown(how);
    }
}

macro_rules! debug_by_address {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // Neither content nor keys.
                let tls = self.inner.tls.is_some();
                f.debug_struct(stringify!($name)).field("stream", self.inner.stream.stream()).field("tls", &tls).finish()
            }
        }
    )*};
}

debug_by_address!(Conn, ConnReader, ConnWriter);

#[cfg(test)]
mod tests;
