//! Serves published files: a thread per connection, straight from the page cache, with constant memory.
//!
//! Nothing is locked while something is sent, and nothing is read but through [`Published`].

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::{debug, warn};

use super::sendfile::send_some;
use super::wire::{self, Failure, REQUEST_MAX, Request};
use super::{NotServed, Offer, Published};
use crate::net::counters::{Counter, Seldom};
use crate::net::deadline::TimedStream;
use crate::net::gate::Gate;
use crate::net::lines::{LineError, LineLimits, LineReader};
use crate::net::porch::Porch;
use crate::net::tcp::{TcpHandler, TcpServer};
use crate::net::threads::Executor;
use crate::share::wire::Seconds;

/// Files up to this size are read first and sent in one go with their length.
const SMALL: u64 = 16 * 1024;
/// How much is sent between two looks at the file: little to a slow reader, so that he is noticed.
const CHUNK_MIN: u64 = 16 * 1024;
const CHUNK_FIRST: u64 = 1 << 20;
const CHUNK_MAX: u64 = 4 << 20;
/// A chunk that goes faster is followed by a larger one; one that takes longer, by a smaller one.
const CHUNK_FAST: Duration = Duration::from_millis(50);
const CHUNK_SLOW: Duration = Duration::from_secs(1);
/// A reader slower than this, beside one pause of [`Limits::stall`] a chunk, is cut off.
const SLOWEST_BYTES_PER_S: u64 = 1024;
/// Between two ranges a connection counts as busy for so long.
const BETWEEN_RANGES: Duration = Duration::from_secs(3);
/// How long, and how much, is read and forgotten from a connection that is about to be closed: a reset
/// for unread bytes could take the answer with it.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1 << 20;

/// How patient a server is.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From a request's first byte to its end.
    pub request: Duration,
    /// From one request to the next.
    pub idle: Duration,
    /// A reader who takes nothing for so long is cut off.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        let lines = LineLimits::new(REQUEST_MAX);
        Limits { request: lines.message_timeout, idle: lines.idle_timeout, stall: Duration::from_secs(30) }
    }
}

/// Serves the files of one node.
pub struct PeerServer {
    shared: Arc<Shared>,
    server: TcpServer,
}

struct Shared {
    published: Arc<dyn Published>,
    limits: Limits,
    counters: Counters,
    running: Arc<AtomicUsize>,
    complaints: Seldom,
    /// Connections that ask for nothing give way when room is short.
    porch: Arc<Porch>,
}

/// What a server did so far.
#[derive(Debug, Default)]
struct Counters {
    gets: Counter,
    metas: Counter,
    ranges: Counter,
    bytes_sent: Counter,
    not_found: Counter,
    file_not_found: Counter,
    read_errors: Counter,
    changed_while_sent: Counter,
    cut_off: Counter,
}

impl PeerServer {
    /// Begins to serve.
    ///
    /// # Errors
    /// The system's, when it gives no thread.
    pub fn start(
        listener: TcpListener,
        executor: Arc<Executor>,
        gate: Arc<Gate>,
        published: Arc<dyn Published>,
    ) -> io::Result<PeerServer> {
        PeerServer::start_within(listener, executor, gate, published, Limits::default())
    }

    /// The same with other limits.
    ///
    /// # Errors
    /// As [`PeerServer::start`].
    pub fn start_within(
        listener: TcpListener,
        executor: Arc<Executor>,
        gate: Arc<Gate>,
        published: Arc<dyn Published>,
        limits: Limits,
    ) -> io::Result<PeerServer> {
        let (counters, running, complaints) = (Counters::default(), Arc::default(), Seldom::minutely());
        let porch = Porch::new(Arc::clone(&gate));
        let shared = Arc::new(Shared { published, limits, counters, running, complaints, porch });
        let handler: TcpHandler = {
            let shared = Arc::clone(&shared);
            Arc::new(move |stream, source| shared.serve(&stream, source))
        };
        let server = TcpServer::start(listener, executor, gate, Failure::Busy.line().as_bytes().to_vec(), handler)?;
        Ok(PeerServer { shared, server })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// How many transfers run now. A connection that was sent a part counts a moment longer: it most often
    /// asks for the next.
    pub fn busy(&self) -> usize {
        self.shared.running.load(Relaxed)
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.server.open()
    }

    /// What was counted so far.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let counters = &self.shared.counters;
        let mut list = vec![
            ("gets", counters.gets.get()),
            ("metas", counters.metas.get()),
            ("ranges", counters.ranges.get()),
            ("bytes_sent", counters.bytes_sent.get()),
            ("not_found", counters.not_found.get()),
            ("file_not_found", counters.file_not_found.get()),
            ("read_errors", counters.read_errors.get()),
            ("changed_while_sent", counters.changed_while_sent.get()),
            ("cut_off", counters.cut_off.get()),
            ("newcomers_closed", self.shared.porch.closed()),
        ];
        list.extend(self.server.counters().list());
        list
    }

    /// Ends: no new connections at once, what is being sent may end within `grace`. How many connections did
    /// not end even then.
    pub fn stop(&self, grace: Duration) -> usize {
        self.server.stop(grace)
    }
}

impl fmt::Debug for PeerServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerServer").field("at", &self.local_addr()).field("busy", &self.busy()).finish_non_exhaustive()
    }
}

/// Counts as a running transfer until dropped.
struct Running(Arc<AtomicUsize>);

impl Running {
    fn begin(shared: &Shared) -> Running {
        shared.running.fetch_add(1, Relaxed);
        Running(Arc::clone(&shared.running))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Why a connection ends before what was promised was sent.
#[derive(Debug, thiserror::Error)]
enum Cut {
    #[error("the file changed while it was sent")]
    Changed,
    #[error("the reader is too slow")]
    TooSlow,
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Whether the connection may bear another request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Open,
    Close,
}

impl Shared {
    fn serve(&self, stream: &Arc<TcpStream>, source: SocketAddr) {
        // Each write waits that long at most; whoever takes a little each time is noticed by his speed.
        if let Err(error) = stream.set_write_timeout(Some(self.limits.stall)) {
            debug!("{source}: {error}");
            return;
        }
        match self.serve_requests(stream, source.ip()) {
            Ok(()) => linger(stream),
            Err(Cut::Changed) => {
                self.counters.changed_while_sent.add(1);
                debug!("{source}: {}", Cut::Changed);
                reset_on_close(stream);
            }
            Err(cut) => {
                self.counters.cut_off.add(1);
                debug!("{source}: cut off: {cut}");
                reset_on_close(stream);
            }
        }
    }

    fn serve_requests(&self, stream: &Arc<TcpStream>, source: IpAddr) -> Result<(), Cut> {
        let limits =
            LineLimits { max_bytes: REQUEST_MAX, message_timeout: self.limits.request, idle_timeout: self.limits.idle };
        let mut lines = LineReader::new(TimedStream::new(Arc::clone(stream)), limits);
        let mut running = None;
        let mut waiting = None;
        loop {
            waiting.get_or_insert_with(|| self.porch.enter(stream, source));
            let idle = if running.is_some() { BETWEEN_RANGES.min(self.limits.idle) } else { self.limits.idle };
            let line = match lines.read_line_before(Instant::now() + idle) {
                Ok(Some(line)) => line,
                Ok(None) => return Ok(()),
                Err(LineError::Idle { .. }) if running.is_some() => {
                    running = None;
                    continue;
                }
                // A published name is text, and shorter.
                Err(LineError::TooLong { .. } | LineError::NotUtf8) => return self.refuse(stream, Failure::NotFound),
                Err(LineError::Io(error)) => return Err(error.into()),
                Err(_idle_or_unfinished) => return Ok(()),
            };
            waiting = None;
            let Some(request) = Request::parse(line.as_bytes()) else {
                return self.refuse(stream, Failure::NotFound);
            };
            if !matches!(request, Request::Meta { .. }) && running.is_none() {
                running = Some(Running::begin(self));
            }
            if self.answer(stream, request)? == After::Close {
                return Ok(());
            }
        }
    }

    fn answer(&self, stream: &TcpStream, request: Request<'_>) -> Result<After, Cut> {
        let after = if matches!(request, Request::Get { .. }) { After::Close } else { After::Open };
        let offer = self.published.open(request.name()).map_err(|not_served| match not_served {
            NotServed::NotFound => Failure::NotFound,
            NotServed::Moved => Failure::FileNotFound,
            NotServed::Unreadable => Failure::ReadError,
        });
        let result = match offer {
            Ok(offer) if !is_as_published(&offer) => Err(Failure::FileNotFound),
            Ok(offer) => self.answer_with(stream, request, &offer)?,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = result {
            self.refuse(stream, failure)?;
        }
        Ok(after)
    }

    fn refuse(&self, mut stream: &TcpStream, failure: Failure) -> Result<(), Cut> {
        let counter = match failure {
            Failure::NotFound => &self.counters.not_found,
            Failure::FileNotFound => &self.counters.file_not_found,
            Failure::ReadError | Failure::Busy => &self.counters.read_errors,
        };
        counter.add(1);
        Ok(stream.write_all(failure.line().as_bytes())?)
    }

    /// What the outer error cuts off has been answered in part; the inner one has not.
    fn answer_with(
        &self,
        mut stream: &TcpStream,
        request: Request<'_>,
        offer: &Offer,
    ) -> Result<Result<(), Failure>, Cut> {
        let (offset, length) = match request {
            Request::Meta { .. } => {
                // Not hashed yet.
                let Some(pieces) = &offer.pieces else { return Ok(Err(Failure::ReadError)) };
                self.counters.metas.add(1);
                wire::write_meta(pieces, seconds(offer.modified), |bytes| stream.write_all(bytes))?;
                return Ok(Ok(()));
            }
            Request::Get { .. } => {
                self.counters.gets.add(1);
                (0, offer.size)
            }
            Request::Range { offset, length, .. } => {
                self.counters.ranges.add(1);
                if offset.checked_add(length).is_none_or(|end| end > offer.size) {
                    return Ok(Err(Failure::ReadError));
                }
                (offset, length)
            }
        };
        if let Err(error) = (&offer.file).seek(SeekFrom::Start(offset)) {
            return Ok(Err(self.cannot_read(&error)));
        }
        let head = format!("LENGTH {length}\n");
        if length > SMALL {
            stream.write_all(head.as_bytes())?;
            self.send(stream, offer, offset, length)?;
            return Ok(Ok(()));
        }
        let mut message = head.into_bytes();
        let head_bytes = message.len();
        let read = (&offer.file).take(length).read_to_end(&mut message);
        if let Err(error) = read {
            return Ok(Err(self.cannot_read(&error)));
        }
        if (message.len() - head_bytes) as u64 != length || !is_as_published(offer) {
            return Ok(Err(Failure::FileNotFound));
        }
        stream.write_all(&message)?;
        self.counters.bytes_sent.add(length);
        Ok(Ok(()))
    }

    fn cannot_read(&self, error: &io::Error) -> Failure {
        if self.complaints.now() {
            warn!("a published file cannot be read: {error}");
        }
        Failure::ReadError
    }

    /// Sends so many bytes of the file. The last one goes only after a last look at the file, so that whoever has
    /// all of them has those of one file.
    fn send(&self, stream: &TcpStream, offer: &Offer, offset: u64, length: u64) -> Result<(), Cut> {
        let mut sent = 0;
        let mut chunk = CHUNK_FIRST;
        while sent < length {
            let wanted = chunk.min(length - sent - 1).max(1);
            let took = self.send_chunk(stream, offer, offset + sent, wanted)?;
            sent += wanted;
            if !is_as_published(offer) {
                return Err(Cut::Changed);
            }
            if took < CHUNK_FAST {
                chunk = (chunk * 2).min(CHUNK_MAX);
            } else if took > CHUNK_SLOW {
                chunk = (chunk / 2).max(CHUNK_MIN);
            }
        }
        Ok(())
    }

    /// How long it took.
    fn send_chunk(&self, stream: &TcpStream, offer: &Offer, offset: u64, length: u64) -> Result<Duration, Cut> {
        let begun = Instant::now();
        let allowed = self.limits.stall + Duration::from_secs(length / SLOWEST_BYTES_PER_S);
        let mut sent = 0;
        while sent < length {
            let some = send_some(&offer.file, offset + sent, length - sent, stream)?;
            if some == 0 {
                return Err(Cut::Changed);
            }
            self.counters.bytes_sent.add(some);
            sent += some;
            if begun.elapsed() > allowed {
                return Err(Cut::TooSlow);
            }
        }
        Ok(begun.elapsed())
    }
}

/// Whether the open file has still the size and the time of change that it had when it was published.
fn is_as_published(offer: &Offer) -> bool {
    let unchanged = |file: &File| -> io::Result<bool> {
        let now = file.metadata()?;
        Ok(now.is_file() && now.len() == offer.size && now.modified()? == offer.modified)
    };
    unchanged(&offer.file).unwrap_or(false)
}

fn seconds(time: SystemTime) -> Seconds {
    let seconds = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    };
    // Files of other geological ages have no time that others could read.
    Seconds::new(seconds).unwrap_or(Seconds::new(0.0).expect("zero is a time"))
}

/// Lets the other end read what was said to it, also if it has said more than was read.
fn linger(stream: &TcpStream) {
    if stream.shutdown(Shutdown::Write).is_err() {
        return;
    }
    let deadline = Instant::now() + LINGER;
    let mut buffer = [0; 4096];
    let mut forgotten = 0;
    while forgotten < LINGER_BYTES {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() {
            return;
        }
        let mut reader = stream;
        match reader.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => forgotten += len,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// What was sent and not yet taken goes nowhere, and the other end learns that something went wrong.
fn reset_on_close(stream: &TcpStream) {
    if let Err(error) = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        debug!("cutting a connection: {error}");
    }
}
