//! Serves published files: one thread per connection, straight from the page cache, with constant memory.
//!
//! No lock is held while data is sent, and only files that [`FileProvider`] opens are read.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::{debug, warn};

use super::sendfile::send_some;
use super::wire::{self, PeerError, PeerRequest, REQUEST_MAX};
use super::{FileProvider, FileUnavailable, ServedFile};
use crate::net::connection_end::ConnectionEnd;
use crate::net::counters::{Counter, counters};
use crate::net::lines::LineLimits;
use crate::net::listener::{
    AfterMessage, Listener, ListenerContext, MessageConnection, MessageFraming, MessageHandler, MessageService,
    Rejection,
};
use crate::net::log_throttle::LogThrottle;
use crate::net::permits::{Permits, WorkPermit};
use crate::share::wire::Seconds;

/// Up to this size, the response line and the data are sent in one write.
const SMALL_FILE_MAX: u64 = 16 * 1024;
/// How much is sent between two checks of the file; small for slow readers, so that their slowness is noticed.
const CHUNK_MIN: u64 = 16 * 1024;
const CHUNK_FIRST: u64 = 1 << 20;
const CHUNK_MAX: u64 = 4 << 20;
/// A chunk sent faster than this is followed by a larger one; one that takes longer than the second, by a smaller one.
const FAST_CHUNK_TIME: Duration = Duration::from_millis(50);
const SLOW_CHUNK_TIME: Duration = Duration::from_secs(1);
/// A reader slower than this, apart from one pause of [`PeerServerLimits::stall_timeout`] per chunk, is cut off.
const SLOWEST_BYTES_PER_S: u64 = 1024;
/// After a range has been sent, a connection still counts as an active transfer for this long.
const RANGE_LINGER: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy)]
pub struct PeerServerLimits {
    /// From the first byte of a request to its end.
    pub request_timeout: Duration,
    /// From one request to the next.
    pub idle_timeout: Duration,
    /// A reader that accepts no data for this long is cut off.
    pub stall_timeout: Duration,
}

impl Default for PeerServerLimits {
    fn default() -> PeerServerLimits {
        let lines = LineLimits::new(REQUEST_MAX);
        PeerServerLimits {
            request_timeout: lines.message_timeout,
            idle_timeout: lines.idle_timeout,
            stall_timeout: Duration::from_secs(30),
        }
    }
}

pub struct PeerServer {
    inner: Arc<PeerServerInner>,
    listener: Listener,
}

struct PeerServerInner {
    provider: Arc<dyn FileProvider>,
    limits: PeerServerLimits,
    counters: PeerServerCounters,
    /// They are only counted, not bounded.
    active_transfers: Permits,
    read_error_throttle: LogThrottle,
}

counters! {
    /// Counters since the start of the server.
    struct PeerServerCounters {
        gets,
        metas,
        ranges,
        bytes_sent,
        not_found,
        file_not_found,
        read_errors,
        changed_while_sent,
        cut_off,
        connections_failed,
    }
}

impl PeerServer {
    pub fn start(
        socket: TcpListener,
        context: ListenerContext,
        provider: Arc<dyn FileProvider>,
        limits: PeerServerLimits,
    ) -> io::Result<PeerServer> {
        let (counters, active_transfers, read_error_throttle) =
            (PeerServerCounters::default(), Permits::new(usize::MAX), LogThrottle::every_minute());
        let inner = Arc::new(PeerServerInner { provider, limits, counters, active_transfers, read_error_throttle });
        let service = PeerService(Arc::clone(&inner));
        // Peers do not use TLS: the receiver verifies content by its digests.
        let context = ListenerContext { identity: None, allows_remote_plaintext: true, ..context };
        let listener = Listener::start(socket, context, Arc::new(MessageHandler(service)))?;
        Ok(PeerServer { inner, listener })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// A connection still counts for 3 s after a range was sent, because it usually requests the next one.
    pub fn active_transfers(&self) -> usize {
        self.inner.active_transfers.in_use()
    }

    #[cfg(any(test, feature = "internals"))]
    pub fn open_connections(&self) -> usize {
        self.listener.open_connections()
    }

    /// Names and values of the server's and its listener's counters.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        [self.inner.counters.list(), self.listener.counters()].concat()
    }

    /// Gives transfers `grace` to complete, and returns how many connections were still open after that.
    pub fn stop(&self, grace: Duration) -> usize {
        self.listener.stop(grace)
    }
}

/// Why a response was cut off before all promised bytes were sent.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("the file changed while it was sent")]
    Changed,
    #[error("the reader is too slow")]
    TooSlow,
    #[error("{0}")]
    Io(#[from] io::Error),
}

struct PeerService(Arc<PeerServerInner>);

impl MessageService for PeerService {
    /// There is one while data is being sent, and until [`RANGE_LINGER`] after.
    type Session = Option<WorkPermit>;
    const NAME: &'static str = "peer port";
    const FRAMING: MessageFraming = MessageFraming::Lines;

    fn limits(&self) -> LineLimits {
        let PeerServerLimits { request_timeout, idle_timeout, .. } = self.0.limits;
        LineLimits { max_bytes: REQUEST_MAX, message_timeout: request_timeout, idle_timeout }
    }

    fn rejection_message(&self, why: Rejection) -> Option<Vec<u8>> {
        let failure = match why {
            why if why.is_busy() => PeerError::Busy,
            // No published name is that long.
            Rejection::TooLong { .. } => PeerError::NotFound,
            _ => return None,
        };
        Some(failure.as_line().trim_ascii_end().as_bytes().to_vec())
    }

    fn count_rejected(&self) {
        self.0.counters.not_found.add(1);
    }

    fn connections_failed(&self) -> &Counter {
        &self.0.counters.connections_failed
    }

    fn on_connect(&self, connection: &MessageConnection) -> Option<WorkPermit> {
        // Bounds each write; a reader that accepts a little each time is cut off for its speed.
        if let Err(error) = connection.stream().set_write_timeout(Some(self.0.limits.stall_timeout)) {
            // Fails if the connection is closed already.
            debug!("{}: {error}", connection.source());
        }
        None
    }

    fn handle(
        &self,
        transfer: &mut Option<WorkPermit>,
        line: Vec<u8>,
        connection: &mut MessageConnection,
    ) -> Result<AfterMessage, ConnectionEnd> {
        let stream = connection.stream();
        match self.0.serve(transfer, &line, stream) {
            Ok(after) => {
                if after == AfterMessage::Close {
                    // The transfer is done, however long the peer takes to close the connection.
                    *transfer = None;
                }
                Ok(after)
            }
            Err(error) => {
                let counter = match error {
                    SendError::Changed => &self.0.counters.changed_while_sent,
                    SendError::TooSlow | SendError::Io(_) => &self.0.counters.cut_off,
                };
                counter.add(1);
                debug!("{}: cut off: {error}", connection.source());
                reset_on_close(stream);
                Ok(AfterMessage::Closed)
            }
        }
    }

    /// An idle connection may always be closed: its peer only has to connect again.
    fn is_evictable(&self, _transfer: &Option<WorkPermit>) -> bool {
        true
    }

    fn idle_notice_after(&self, transfer: &Option<WorkPermit>) -> Option<Duration> {
        transfer.as_ref().map(|_| RANGE_LINGER)
    }

    fn on_idle(&self, transfer: &mut Option<WorkPermit>) {
        *transfer = None;
    }
}

impl PeerServerInner {
    fn serve(
        &self,
        transfer: &mut Option<WorkPermit>,
        line: &[u8],
        stream: &TcpStream,
    ) -> Result<AfterMessage, SendError> {
        // Published names are UTF-8.
        let Some(request) = PeerRequest::parse(line).filter(|_| std::str::from_utf8(line).is_ok()) else {
            self.send_error(stream, PeerError::NotFound)?;
            return Ok(AfterMessage::Close);
        };
        if !matches!(request, PeerRequest::Meta { .. }) && transfer.is_none() {
            *transfer = self.active_transfers.try_acquire();
        }
        let after =
            if matches!(request, PeerRequest::Get { .. }) { AfterMessage::Close } else { AfterMessage::Continue };
        let served = self.provider.open(request.name()).map_err(|unavailable| match unavailable {
            FileUnavailable::NotFound => PeerError::NotFound,
            FileUnavailable::Moved => PeerError::FileNotFound,
        });
        let result = match served {
            Ok(served) if !is_unchanged(&served) => Err(PeerError::FileNotFound),
            Ok(served) => self.respond_with_file(stream, request, &served)?,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = result {
            self.send_error(stream, failure)?;
        }
        Ok(after)
    }

    fn send_error(&self, mut stream: &TcpStream, failure: PeerError) -> Result<(), SendError> {
        let counter = match failure {
            PeerError::NotFound => &self.counters.not_found,
            PeerError::FileNotFound => &self.counters.file_not_found,
            PeerError::ReadError | PeerError::Busy => &self.counters.read_errors,
        };
        counter.add(1);
        Ok(stream.write_all(failure.as_line().as_bytes())?)
    }

    /// The outer error means that the response was cut off; the inner one, that none has been sent yet.
    fn respond_with_file(
        &self,
        mut stream: &TcpStream,
        request: PeerRequest<'_>,
        served: &ServedFile,
    ) -> Result<Result<(), PeerError>, SendError> {
        let (offset, length) = match request {
            PeerRequest::Meta { .. } => {
                let Some(pieces) = &served.pieces else { return Ok(Err(PeerError::ReadError)) };
                self.counters.metas.add(1);
                wire::write_meta(pieces, seconds(served.modified), |bytes| stream.write_all(bytes))?;
                return Ok(Ok(()));
            }
            PeerRequest::Get { .. } => {
                self.counters.gets.add(1);
                (0, served.size)
            }
            PeerRequest::Range { offset, length, .. } => {
                self.counters.ranges.add(1);
                if offset.checked_add(length).is_none_or(|end| end > served.size) {
                    return Ok(Err(PeerError::ReadError));
                }
                (offset, length)
            }
        };
        if let Err(error) = (&served.file).seek(SeekFrom::Start(offset)) {
            return Ok(Err(self.read_error(&error)));
        }
        let line = format!("LENGTH {length}\n");
        if length > SMALL_FILE_MAX {
            stream.write_all(line.as_bytes())?;
            self.send(stream, served, offset, length)?;
            return Ok(Ok(()));
        }
        let mut message = line.into_bytes();
        let line_bytes = message.len();
        let read = (&served.file).take(length).read_to_end(&mut message);
        if let Err(error) = read {
            return Ok(Err(self.read_error(&error)));
        }
        if (message.len() - line_bytes) as u64 != length || !is_unchanged(served) {
            return Ok(Err(PeerError::FileNotFound));
        }
        stream.write_all(&message)?;
        self.counters.bytes_sent.add(length);
        Ok(Ok(()))
    }

    fn read_error(&self, error: &io::Error) -> PeerError {
        if self.read_error_throttle.should_log() {
            warn!("a published file cannot be read: {error}");
        }
        PeerError::ReadError
    }

    /// Sends a range of the file. The last byte is sent only after a final check of the file, so that a peer which has
    /// received all of them has unchanged content.
    fn send(&self, stream: &TcpStream, served: &ServedFile, offset: u64, length: u64) -> Result<(), SendError> {
        let mut sent = 0;
        let mut chunk = CHUNK_FIRST;
        while sent < length {
            let wanted = chunk.min(length - sent - 1).max(1);
            let took = self.send_chunk(stream, served, offset + sent, wanted)?;
            sent += wanted;
            if !is_unchanged(served) {
                return Err(SendError::Changed);
            }
            if took < FAST_CHUNK_TIME {
                chunk = (chunk * 2).min(CHUNK_MAX);
            } else if took > SLOW_CHUNK_TIME {
                chunk = (chunk / 2).max(CHUNK_MIN);
            }
        }
        Ok(())
    }

    /// Sends one chunk and returns how long that took.
    fn send_chunk(
        &self,
        stream: &TcpStream,
        served: &ServedFile,
        offset: u64,
        length: u64,
    ) -> Result<Duration, SendError> {
        let started = Instant::now();
        let allowed = self.limits.stall_timeout + Duration::from_secs(length / SLOWEST_BYTES_PER_S);
        let mut sent = 0;
        while sent < length {
            let some = send_some(&served.file, offset + sent, length - sent, stream)?;
            if some == 0 {
                return Err(SendError::Changed);
            }
            self.counters.bytes_sent.add(some);
            sent += some;
            if started.elapsed() > allowed {
                return Err(SendError::TooSlow);
            }
        }
        Ok(started.elapsed())
    }
}

fn is_unchanged(served: &ServedFile) -> bool {
    served.file.metadata().is_ok_and(|now| {
        now.is_file() && now.len() == served.size && now.modified().is_ok_and(|at| at == served.modified)
    })
}

fn seconds(time: SystemTime) -> Seconds {
    let seconds = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    };
    // Times too far away to be represented are given as zero.
    Seconds::new(seconds).unwrap_or(Seconds::new(0.0).expect("zero is a time"))
}

/// Closing it then discards the data in flight, and the peer learns that the response is incomplete.
fn reset_on_close(stream: &TcpStream) {
    if let Err(error) = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        debug!("cutting a connection: {error}");
    }
}
