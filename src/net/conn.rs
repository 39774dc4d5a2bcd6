//! One connection, plain or TLS in either role, that is read in one thread and written in others at
//! the same time.
//!
//! The TLS state is behind a lock that is held for memory work only: sockets are read and written
//! outside it. A second lock, of the writers, keeps the order of TLS records; it is taken with a
//! deadline, and the reader never waits for it.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rustls::{CertificateError, ClientConnection, Connection, ServerConnection};

use super::deadline::{ReadBefore, TimedStream};
use super::tls::{
    Identity, IdentityError, WrongPin, fingerprint_of, pinned_client_config, server_name, unpinned_client_config,
};

/// The first byte of every TLS connection: a handshake record. No text of ours begins with it.
const TLS_FIRST_BYTE: u8 = 0x16;

/// What is read from the socket at a time, bytes. Also so little that what TLS makes of it, with the
/// rest of a record before it, never overflows its buffer of plain text (16 KiB).
const READ_BYTES: usize = 4096;

/// How much is encrypted before it is written, bytes: one full TLS record.
const RECORD_BYTES: usize = 16 * 1024;

/// How long saying goodbye may take.
const FAREWELL: Duration = Duration::from_millis(200);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnError {
    /// The other end is not who it must be.
    #[error(transparent)]
    WrongPin(#[from] WrongPin),
    /// The fingerprint is none.
    #[error(transparent)]
    BadPin(#[from] IdentityError),
    /// TLS could not agree.
    #[error("the TLS handshake failed: {0}")]
    Tls(rustls::Error),
    /// It took too long.
    #[error("the TLS handshake was not complete in time")]
    HandshakeTimeout,
    /// Nothing was said.
    #[error("nothing was received in time")]
    Silent,
    /// The socket's own.
    #[error("the connection failed: {0}")]
    Io(io::Error),
}

/// By hand: `from` would make it the source as well, which is then told twice.
impl From<io::Error> for ConnError {
    fn from(error: io::Error) -> ConnError {
        ConnError::Io(error)
    }
}

/// A connection that is ready to be used.
pub struct Conn {
    shared: Shared,
}

struct Shared {
    stream: TimedStream,
    tls: Option<Mutex<Connection>>,
    /// Held while writing to the socket; whether a write failed before, after which nobody knows where
    /// a message or record would begin.
    writing: Mutex<WriteSide>,
}

#[derive(Default)]
struct WriteSide {
    is_over: bool,
}

impl Conn {
    /// Without TLS.
    pub fn plain(stream: impl Into<Arc<TcpStream>>) -> Conn {
        Conn::over(TimedStream::new(stream), None)
    }

    /// TLS with our certificate presented, whichever side made the TCP connection.
    ///
    /// # Errors
    /// [`ConnError`]; `HandshakeTimeout` at the deadline, however the other end trickles.
    pub fn tls_server(
        stream: impl Into<Arc<TcpStream>>,
        identity: &Identity,
        deadline: Instant,
    ) -> Result<Conn, ConnError> {
        let tls = ServerConnection::new(Arc::clone(identity.server_config())).map_err(ConnError::Tls)?;
        Conn::shake_hands(TimedStream::new(stream), tls.into(), deadline)
    }

    /// TLS with the other end presenting the certificate of that fingerprint (64 hex digits).
    ///
    /// # Errors
    /// [`ConnError`]; `WrongPin` for any other certificate.
    pub fn tls_client(stream: impl Into<Arc<TcpStream>>, pin: &str, deadline: Instant) -> Result<Conn, ConnError> {
        let tls = ClientConnection::new(pinned_client_config(pin)?, server_name()).map_err(ConnError::Tls)?;
        Conn::shake_hands(TimedStream::new(stream), tls.into(), deadline)
    }

    /// TLS with whoever it is. Nothing is to be told to the other end before it has proved, in a way bound to
    /// [`peer_fingerprint`](Conn::peer_fingerprint), that it is who it must be.
    ///
    /// # Errors
    /// [`ConnError`].
    pub fn tls_client_unpinned(stream: impl Into<Arc<TcpStream>>, deadline: Instant) -> Result<Conn, ConnError> {
        let tls = ClientConnection::new(unpinned_client_config()?, server_name()).map_err(ConnError::Tls)?;
        Conn::shake_hands(TimedStream::new(stream), tls.into(), deadline)
    }

    /// What the client speaks, told by its first byte, which must come by `first_byte_by`; a TLS
    /// handshake must be complete within `handshake_timeout` from then on.
    ///
    /// # Errors
    /// [`ConnError`]; `Silent` if nothing comes. An end before the first byte is no error: the
    /// connection is then a plain one at its end.
    pub fn accept_any(
        stream: impl Into<Arc<TcpStream>>,
        identity: &Identity,
        first_byte_by: Instant,
        handshake_timeout: Duration,
    ) -> Result<Conn, ConnError> {
        let stream = TimedStream::new(stream);
        let mut first = [0];
        match stream.peek_before(&mut first, first_byte_by) {
            Ok(1) if first[0] == TLS_FIRST_BYTE => {}
            Ok(_) => return Ok(Conn::over(stream, None)),
            Err(error) if error.kind() == ErrorKind::TimedOut => return Err(ConnError::Silent),
            Err(error) => return Err(error.into()),
        }
        let tls = ServerConnection::new(Arc::clone(identity.server_config())).map_err(ConnError::Tls)?;
        Conn::shake_hands(stream, tls.into(), Instant::now() + handshake_timeout)
    }

    fn over(stream: TimedStream, tls: Option<Connection>) -> Conn {
        Conn { shared: Shared { stream, tls: tls.map(Mutex::new), writing: Mutex::default() } }
    }

    fn shake_hands(stream: TimedStream, mut tls: Connection, deadline: Instant) -> Result<Conn, ConnError> {
        let or_timeout = |error: io::Error| match error.kind() {
            ErrorKind::TimedOut => ConnError::HandshakeTimeout,
            _ => ConnError::Io(error),
        };
        let mut bytes = [0; READ_BYTES];
        loop {
            let outgoing = take_outgoing(&mut tls).map_err(ConnError::Io)?;
            stream.write_all_before(&outgoing, deadline).map_err(or_timeout)?;
            if !tls.is_handshaking() {
                return Ok(Conn::over(stream, Some(tls)));
            }
            let len = stream.read_before(&mut bytes, deadline).map_err(or_timeout)?;
            let mut came = &bytes[..len];
            loop {
                tls.read_tls(&mut came).map_err(ConnError::Io)?;
                if let Err(error) = tls.process_new_packets() {
                    // The alert, so that the other end hears why; if it cannot be told, so be it.
                    let farewell = deadline.min(Instant::now() + FAREWELL);
                    let _ = take_outgoing(&mut tls).and_then(|alert| stream.write_all_before(&alert, farewell));
                    return Err(as_conn_error(error));
                }
                if came.is_empty() {
                    break;
                }
            }
            if len == 0 {
                return Err(ConnError::Io(ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Whether it is TLS.
    pub fn is_tls(&self) -> bool {
        self.shared.tls.is_some()
    }

    /// The fingerprint of the certificate that the other end presented.
    pub fn peer_fingerprint(&self) -> Option<String> {
        let tls = self.shared.tls.as_ref()?.lock();
        tls.peer_certificates()?.first().map(fingerprint_of)
    }

    /// The stream beneath, for its addresses and for shutting it down.
    pub fn stream(&self) -> &Arc<TcpStream> {
        self.shared.stream.stream()
    }

    /// The other end's address.
    ///
    /// # Errors
    /// The system's, when the connection is gone.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.stream().peer_addr()
    }

    /// One half for the thread that reads, one for those that write.
    pub fn split(self) -> (ConnReader, ConnWriter) {
        let shared = Arc::new(self.shared);
        let reader = ConnReader { shared: Arc::clone(&shared), undigested: Vec::new() };
        (reader, ConnWriter { shared })
    }
}

/// What TLS wants to be sent now.
fn take_outgoing(tls: &mut Connection) -> io::Result<Vec<u8>> {
    let mut outgoing = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut outgoing)?;
    }
    Ok(outgoing)
}

fn as_conn_error(error: rustls::Error) -> ConnError {
    if let rustls::Error::InvalidCertificate(CertificateError::Other(other)) = &error
        && let Some(wrong) = other.0.downcast_ref::<WrongPin>()
    {
        return ConnError::WrongPin(wrong.clone());
    }
    ConnError::Tls(error)
}

/// The half that reads.
pub struct ConnReader {
    shared: Arc<Shared>,
    /// What came from the socket while TLS still had text to give out; nearly always empty.
    undigested: Vec<u8>,
}

impl ConnReader {
    // Its buffer is not to lie on the stacks of thousands who wait without TLS.
    #[inline(never)]
    fn read_tls_before(&mut self, tls: &Mutex<Connection>, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        let mut bytes = [0; READ_BYTES];
        loop {
            {
                let mut tls = tls.lock();
                match tls.reader().read(buffer) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    // No close_notify: many programs simply close. Whether a message was cut short is
                    // told by its framing.
                    Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                    result => return result,
                }
            }
            // The socket is read without the lock: writers need it meanwhile.
            let digested = if self.undigested.is_empty() {
                let len = self.shared.stream.read_before(&mut bytes, deadline)?;
                self.digest(tls, &bytes[..len])
            } else {
                let undigested = std::mem::take(&mut self.undigested);
                self.digest(tls, &undigested)
            };
            // Answers to key updates, and alerts: also when it failed.
            self.shared.flush_if_nobody_writes(tls, deadline);
            digested?;
        }
    }

    /// Gives TLS what came; no bytes mean the end.
    fn digest(&mut self, tls: &Mutex<Connection>, mut came: &[u8]) -> io::Result<()> {
        let mut tls = tls.lock();
        loop {
            let taken = tls.read_tls(&mut came)?;
            let state = tls.process_new_packets().map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
            // Nothing taken of something: TLS was closed by the other end, what follows means nothing.
            if came.is_empty() || taken == 0 {
                return Ok(());
            }
            if state.plaintext_bytes_to_read() > 0 {
                self.undigested = came.to_vec();
                return Ok(());
            }
        }
    }
}

impl ReadBefore for ConnReader {
    fn read_before(&mut self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let shared = Arc::clone(&self.shared);
        match &shared.tls {
            None => shared.stream.read_before(buffer, deadline),
            Some(tls) => self.read_tls_before(tls, buffer, deadline),
        }
    }
}

/// The half that writes. Clones write to the same connection, one message after the other.
#[derive(Clone)]
pub struct ConnWriter {
    shared: Arc<Shared>,
}

impl ConnWriter {
    /// The stream beneath.
    pub fn stream(&self) -> &Arc<TcpStream> {
        self.shared.stream.stream()
    }

    /// Writes one line, and the LF that ends it.
    ///
    /// # Errors
    /// As [`write_all`](ConnWriter::write_all).
    pub fn write_line(&self, line: impl AsRef<[u8]>, deadline: Instant) -> io::Result<()> {
        let line = line.as_ref();
        // In one piece, because without Nagle's algorithm two writes are two packets.
        let mut bytes = Vec::with_capacity(line.len() + 1);
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
        self.write_all(&bytes, deadline)
    }

    /// Writes all of it, waiting for other writers and for the peer until the deadline at most.
    ///
    /// # Errors
    /// `TimedOut` at the deadline; else the socket's. Once something may have been written in part,
    /// the connection is shut down, and every further write fails.
    pub fn write_all(&self, bytes: &[u8], deadline: Instant) -> io::Result<()> {
        let shared = &*self.shared;
        let Some(mut side) = shared.writing.try_lock_until(deadline) else {
            return Err(ErrorKind::TimedOut.into());
        };
        if side.is_over {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let written = match &shared.tls {
            None => shared.stream.write_all_before(bytes, deadline),
            Some(tls) => shared.write_tls_before(tls, bytes, deadline),
        };
        if written.is_err() {
            side.is_over = true;
            drop(side);
            shared.shut_down(Shutdown::Both);
            return written;
        }
        // Fair, so that one that writes line after line does not keep all others waiting.
        MutexGuard::unlock_fair(side);
        if let Some(tls) = &shared.tls {
            shared.flush_if_nobody_writes(tls, deadline);
        }
        Ok(())
    }

    /// Says that nothing more will be written; what the peer still sends can be read.
    ///
    /// Whoever wants its last message to arrive ends with this and then reads until the end: closing
    /// at once would reset the connection if the peer has sent something meanwhile.
    pub fn finish(&self) {
        self.say_goodbye();
        self.shared.shut_down(Shutdown::Write);
    }

    /// Ends the connection: says goodbye if that takes no time, and wakes a reader in another thread.
    pub fn close(&self) {
        self.say_goodbye();
        self.shared.shut_down(Shutdown::Both);
    }

    fn say_goodbye(&self) {
        let shared = &*self.shared;
        let deadline = Instant::now() + FAREWELL;
        // Another writer that is held up by the peer: no goodbye then, shutting down frees it.
        let Some(mut side) = shared.writing.try_lock_until(deadline) else { return };
        if side.is_over {
            return;
        }
        side.is_over = true;
        if let Some(tls) = &shared.tls {
            let goodbye = {
                let mut tls = tls.lock();
                tls.send_close_notify();
                take_outgoing(&mut tls)
            };
            // The peer may be gone already: then there is nobody to say it to.
            let _ = goodbye.and_then(|goodbye| shared.stream.write_all_before(&goodbye, deadline));
        }
    }
}

impl Shared {
    /// Encrypts and writes record by record. The caller holds the writers' lock.
    fn write_tls_before(&self, tls: &Mutex<Connection>, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            let outgoing = {
                let mut tls = tls.lock();
                let taken = tls.writer().write(&bytes[..bytes.len().min(RECORD_BYTES)])?;
                bytes = &bytes[taken..];
                take_outgoing(&mut tls)?
            };
            self.stream.write_all_before(&outgoing, deadline)?;
        }
        Ok(())
    }

    /// Writes what TLS itself wants to say. Who finds another writing leaves it to that one, which
    /// looks here when it is done: so the reader never waits for a writer, who may be waiting for the
    /// peer, who may be waiting for the reader.
    fn flush_if_nobody_writes(&self, tls: &Mutex<Connection>, deadline: Instant) {
        while tls.lock().wants_write() {
            let Some(mut side) = self.writing.try_lock() else { return };
            if side.is_over {
                return;
            }
            let outgoing = take_outgoing(&mut tls.lock());
            let farewell = deadline.max(Instant::now() + FAREWELL).min(Instant::now() + Duration::from_secs(10));
            if outgoing.and_then(|outgoing| self.stream.write_all_before(&outgoing, farewell)).is_err() {
                side.is_over = true;
                drop(side);
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
                // Neither text nor keys.
                let tls = self.shared.tls.is_some();
                f.debug_struct(stringify!($name)).field("stream", self.shared.stream.stream()).field("tls", &tls).finish()
            }
        }
    )*};
}

debug_by_address!(Conn, ConnReader, ConnWriter);

#[cfg(test)]
mod tests;
