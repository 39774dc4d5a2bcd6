//! Serves published files: a thread per connection, straight from the page cache, with constant memory.
//!
//! Nothing is locked while something is sent, and nothing is read but through [`Published`].

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::{debug, warn};

use super::sendfile::send_some;
use super::wire::{self, Failure, REQUEST_MAX, Request};
use super::{NotServed, Offer, Published};
use crate::net::counters::{Counter, Seldom};
use crate::net::ended::Ended;
use crate::net::lines::LineLimits;
use crate::net::listener::{
    After, Listener, ListenerContext, MessageConnection, MessageFraming, MessageService, Messages, Rejection,
};
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
    listener: Listener,
}

struct Shared {
    published: Arc<dyn Published>,
    limits: Limits,
    counters: Counters,
    running: Arc<AtomicUsize>,
    complaints: Seldom,
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
    connections_failed: Counter,
}

impl PeerServer {
    /// Begins to serve.
    ///
    /// # Errors
    /// The system's, when it gives no thread.
    pub fn start(
        socket: TcpListener,
        context: ListenerContext,
        published: Arc<dyn Published>,
    ) -> io::Result<PeerServer> {
        PeerServer::start_within(socket, context, published, Limits::default())
    }

    /// The same with other limits.
    ///
    /// # Errors
    /// As [`PeerServer::start`].
    pub fn start_within(
        socket: TcpListener,
        context: ListenerContext,
        published: Arc<dyn Published>,
        limits: Limits,
    ) -> io::Result<PeerServer> {
        let (counters, running, complaints) = (Counters::default(), Arc::default(), Seldom::minutely());
        let shared = Arc::new(Shared { published, limits, counters, running, complaints });
        let service = PeerService(Arc::clone(&shared));
        // Peers speak without TLS: what is sent is checked by its digests.
        let context = ListenerContext { identity: None, plain_from_afar: true, ..context };
        let listener = Listener::start(socket, context, Arc::new(Messages(service)))?;
        Ok(PeerServer { shared, listener })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// How many transfers run now. A connection that was sent a part counts a moment longer: it most often
    /// asks for the next.
    pub fn busy(&self) -> usize {
        self.shared.running.load(Relaxed)
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.listener.open()
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
            ("connections_failed", counters.connections_failed.get()),
        ];
        list.extend(self.listener.counters());
        list
    }

    /// Ends: no new connections at once, what is being sent may end within `grace`. How many connections did
    /// not end even then.
    pub fn stop(&self, grace: Duration) -> usize {
        self.listener.stop(grace)
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

/// The files as the port sees them.
struct PeerService(Arc<Shared>);

/// What is remembered of a connection.
#[derive(Default)]
struct Asker {
    /// It was sent something, a moment ago at most.
    running: Option<Running>,
}

impl MessageService for PeerService {
    type Client = Asker;
    const NAME: &'static str = "peer port";
    const FRAMING: MessageFraming = MessageFraming::Lines;

    fn limits(&self) -> LineLimits {
        let Limits { request, idle, .. } = self.0.limits;
        LineLimits { max_bytes: REQUEST_MAX, message_timeout: request, idle_timeout: idle }
    }

    fn rejection(&self, why: Rejection) -> Option<Vec<u8>> {
        let failure = match why {
            why if why.is_busy() => Failure::Busy,
            // A published name is shorter.
            Rejection::TooLong { .. } => Failure::NotFound,
            _ => return None,
        };
        Some(failure.line().trim_ascii_end().as_bytes().to_vec())
    }

    fn count_rejected(&self) {
        self.0.counters.not_found.add(1);
    }

    fn connections_failed(&self) -> &Counter {
        &self.0.counters.connections_failed
    }

    fn connected(&self, connection: &MessageConnection) -> Asker {
        // Each write waits that long at most; whoever takes a little each time is noticed by his speed.
        if let Err(error) = connection.stream().set_write_timeout(Some(self.0.limits.stall)) {
            // Refused for a connection that is gone already.
            debug!("{}: {error}", connection.source());
        }
        Asker::default()
    }

    fn message(&self, asker: &mut Asker, line: Vec<u8>, connection: &mut MessageConnection) -> Result<After, Ended> {
        let stream = connection.stream();
        match self.0.serve(asker, &line, stream) {
            Ok(after) => {
                if after == After::Close {
                    // It is done, however long the other end takes to close.
                    asker.running = None;
                }
                Ok(after)
            }
            Err(cut) => {
                let counter = match cut {
                    Cut::Changed => &self.0.counters.changed_while_sent,
                    Cut::TooSlow | Cut::Io(_) => &self.0.counters.cut_off,
                };
                counter.add(1);
                debug!("{}: cut off: {cut}", connection.source());
                reset_on_close(stream);
                Ok(After::Over)
            }
        }
    }

    /// Who asks for nothing loses nothing but the connection.
    fn gives_way(&self, _asker: &Asker) -> bool {
        true
    }

    fn pause(&self, asker: &Asker) -> Option<Duration> {
        asker.running.as_ref().map(|_| BETWEEN_RANGES)
    }

    fn paused(&self, asker: &mut Asker) {
        asker.running = None;
    }
}

impl Shared {
    fn serve(self: &Arc<Self>, asker: &mut Asker, line: &[u8], stream: &TcpStream) -> Result<After, Cut> {
        // A published name is text.
        let Some(request) = Request::parse(line).filter(|_| std::str::from_utf8(line).is_ok()) else {
            self.refuse(stream, Failure::NotFound)?;
            return Ok(After::Close);
        };
        if !matches!(request, Request::Meta { .. }) && asker.running.is_none() {
            asker.running = Some(Running::begin(self));
        }
        self.answer(stream, request)
    }

    fn answer(&self, stream: &TcpStream, request: Request<'_>) -> Result<After, Cut> {
        let after = if matches!(request, Request::Get { .. }) { After::Close } else { After::Continue };
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

/// What was sent and not yet taken goes nowhere, and the other end learns that something went wrong.
fn reset_on_close(stream: &TcpStream) {
    if let Err(error) = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        debug!("cutting a connection: {error}");
    }
}
