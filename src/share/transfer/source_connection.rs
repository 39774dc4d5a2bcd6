//! One connection to one source host: pipelines requests, writes and hashes what arrives in parallel, and reports
//! the outcome to the fetch as [`SourceEvent`]s.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Instant;

use crossbeam_channel::Receiver;
use log::debug;
use parking_lot::Mutex;

use super::context::FetchTiming;
use super::part_file::PartFile;
use super::pass_on_drop::PassOnDrop;
use super::plan::{FencingToken, SourceFault};
use super::verifier::{BUFFER_BYTES, HashInput, PieceClaim, PieceVerifier, VerdictCallback};
use super::wire::{META_MAX, PeerError, PeerRequest, PeerResponse, RESPONSE_LINE_MAX, UnexpectedResponse, parse_meta};
use crate::model::text;
use crate::net::deadline::DeadlineStream;
use crate::net::threads::{Executor, ExecutorFull};
use crate::share::pieces::{FileDigests, PieceLayout};
use crate::share::wire::{Digest, FileName};

/// Most requests that are in flight on one connection.
const PIPELINED_REQUESTS_MAX: usize = 4;
/// Size of the buffer that response lines are read through.
const READ_AHEAD_BYTES: usize = 4096;

#[derive(Debug)]
pub(super) enum SourceCommand {
    /// META: the digests of all pieces. `size` and `root` are what the registry says; any other list is rejected.
    List { size: u64, root: Digest },
    /// RANGE: a run of consecutive pieces.
    Pieces { pieces: Range<usize>, token: FencingToken, piece_list: Arc<FileDigests> },
    /// GET: the whole file from its first byte. With a list, pieces that are already verified are skipped.
    Whole { token: FencingToken, piece_list: Option<Arc<FileDigests>>, verified_pieces: Vec<bool> },
}

#[derive(Debug)]
pub(super) enum SourceEvent {
    Connected,
    /// The list of the file's pieces, checked against the root that the registry gave.
    List(Arc<FileDigests>),
    Piece {
        piece: usize,
        is_valid: bool,
    },
    /// A file without a piece list has arrived in full, and matches its BLAKE3 if one is known.
    Whole,
    DiskFailed(io::Error),
    /// The connection has ended. Always the last event.
    Disconnected {
        fault: SourceFault,
        why: String,
    },
}

/// State that the fetch's thread shares with the connection's thread.
#[derive(Debug, Default)]
pub(super) struct SourceHandle {
    stream: Mutex<Option<Arc<TcpStream>>>,
    is_cut: AtomicBool,
    /// Bytes received that belong to pieces still wanted from this host.
    pub useful_bytes: AtomicU64,
    /// All bytes received, response lines included.
    pub received_bytes: AtomicU64,
}

impl SourceHandle {
    /// Shuts the connection down, also if it has not been established yet.
    pub(super) fn cut(&self) {
        self.is_cut.store(true, SeqCst);
        let stream = self.stream.lock().clone();
        if let Some(Err(error)) = stream.map(|stream| stream.shutdown(Shutdown::Both)) {
            debug!("cutting a connection: {error}");
        }
    }
}

pub(super) struct SourceConnection {
    pub addr: SocketAddr,
    pub fname: FileName,
    pub layout: PieceLayout,
    pub blake3: Option<Digest>,
    pub part: Arc<PartFile>,
    pub timing: FetchTiming,
    pub handle: Arc<SourceHandle>,
    pub executor: Arc<Executor>,
    pub commands: Receiver<SourceCommand>,
    pub on_event: Arc<dyn Fn(SourceEvent) + Send + Sync>,
}

/// Why a connection ends; its text is shown to users after the host's name.
#[derive(Debug, thiserror::Error)]
enum SourceError {
    #[error("is not to be reached at {0} ({reason})", reason = text::io_error_text(.1))]
    Connect(SocketAddr, #[source] io::Error),
    // The system's own error text would tell a user nothing more.
    #[error("went offline")]
    Broken(#[source] io::Error),
    #[error("says that {0}")]
    Refused(PeerError),
    #[error("sent the wrong thing: {0}")]
    UnexpectedResponse(#[from] UnexpectedResponse),
    #[error("the file cannot be written: {0}")]
    Disk(io::Error),
    #[error("no thread is left to check what comes")]
    Full(#[from] ExecutorFull),
}

impl SourceError {
    fn fault(&self) -> SourceFault {
        if matches!(self, SourceError::UnexpectedResponse(_)) { SourceFault::Invalid } else { SourceFault::Lost }
    }
}

impl SourceConnection {
    /// Executes commands until their channel closes or something fails.
    pub(super) fn run(self) {
        let on_event = Arc::clone(&self.on_event);
        let mut end_guard =
            PassOnDrop::new((SourceFault::Lost, "its connection failed".to_owned()), move |(fault, why)| {
                on_event(SourceEvent::Disconnected { fault, why });
            });
        match self.connect_and_receive() {
            Ok(()) => end_guard.set((SourceFault::Lost, "ended the connection".to_owned())),
            Err(end) => {
                end_guard.set((end.fault(), end.to_string()));
                match end {
                    SourceError::Disk(error) => (self.on_event)(SourceEvent::DiskFailed(error)),
                    SourceError::Broken(error) => debug!("a connection to a host has ended: {error}"),
                    _ => {}
                }
            }
        }
    }

    fn connect_and_receive(&self) -> Result<(), SourceError> {
        let connect_error = |error| SourceError::Connect(self.addr, error);
        let stream = TcpStream::connect_timeout(&self.addr, self.timing.connect_timeout).map_err(connect_error)?;
        stream.set_nodelay(true).map_err(connect_error)?;
        let stream = Arc::new(stream);
        *self.handle.stream.lock() = Some(Arc::clone(&stream));
        // `cut` may have been called before there was a stream to shut down.
        if self.handle.is_cut.load(SeqCst) {
            return Ok(());
        }
        (self.on_event)(SourceEvent::Connected);
        let verification = Arc::new(VerificationState::default());
        let on_verdict = self.verdict_callback(Arc::clone(&verification));
        let mut receiver = SourceReceiver {
            connection: self,
            reader: ResponseReader::new(DeadlineStream::new(stream), self.timing),
            verifier: PieceVerifier::new(Arc::clone(&self.executor), on_verdict),
            pending: VecDeque::new(),
            verification,
        };
        let result = receiver.run();
        // All verdicts must be reported before the guard reports the disconnection.
        receiver.verifier.finish();
        result
    }

    /// Makes the callback for hashed pieces. A valid piece is sealed so that nobody overwrites it; if another
    /// connection has claimed the piece with a later token meanwhile, only that connection's verdict counts.
    fn verdict_callback(&self, verification: Arc<VerificationState>) -> VerdictCallback {
        let (part, on_event) = (Arc::clone(&self.part), Arc::clone(&self.on_event));
        Arc::new(move |claim: PieceClaim, is_valid| {
            let PieceClaim { piece, token, expected: _ } = claim;
            if !is_valid {
                verification.has_mismatch.store(true, SeqCst);
            }
            if verification.is_whole_file.load(SeqCst) {
                return;
            }
            if !is_valid || part.finish_piece(piece, token) {
                on_event(SourceEvent::Piece { piece, is_valid });
            }
        })
    }
}

struct SourceReceiver<'a> {
    connection: &'a SourceConnection,
    reader: ResponseReader,
    verifier: PieceVerifier,
    /// Requests in flight, oldest first.
    pending: VecDeque<SourceCommand>,
    verification: Arc<VerificationState>,
}

/// State shared by the receiver and the verifier's thread.
#[derive(Debug, Default)]
struct VerificationState {
    /// The file is hashed as a whole, without a piece list: verdicts are not reported piece by piece.
    is_whole_file: AtomicBool,
    has_mismatch: AtomicBool,
}

impl SourceReceiver<'_> {
    fn run(&mut self) -> Result<(), SourceError> {
        loop {
            if self.pending.is_empty() {
                let Ok(command) = self.connection.commands.recv() else { return Ok(()) };
                self.send_request(command)?;
            }
            self.pipeline_requests()?;
            match self.pending.pop_front() {
                Some(SourceCommand::List { size, root }) => self.receive_list(size, root)?,
                Some(SourceCommand::Pieces { pieces, token, piece_list }) => {
                    self.receive_pieces(pieces, token, &piece_list)?
                }
                Some(SourceCommand::Whole { token, piece_list, verified_pieces }) => {
                    self.receive_whole(token, piece_list.as_deref(), &verified_pieces)?;
                    return Ok(());
                }
                None => {}
            }
        }
    }

    /// Sends further requests before the current response has arrived, so that the host never waits for us.
    fn pipeline_requests(&mut self) -> Result<(), SourceError> {
        while self.pending.len() < PIPELINED_REQUESTS_MAX {
            let Ok(command) = self.connection.commands.try_recv() else { break };
            self.send_request(command)?;
        }
        Ok(())
    }

    fn send_request(&mut self, command: SourceCommand) -> Result<(), SourceError> {
        let name = self.connection.fname.as_str().as_bytes();
        let layout = self.connection.layout;
        let request = match &command {
            SourceCommand::List { .. } => PeerRequest::Meta { name },
            SourceCommand::Pieces { pieces, .. } => {
                PeerRequest::Range { offset: layout.offset(pieces.start), length: layout.bytes(pieces), name }
            }
            SourceCommand::Whole { .. } => PeerRequest::Get { name },
        };
        let deadline = Instant::now() + self.connection.timing.stall_timeout;
        let sent = self.reader.stream.write_all_before(request.to_string().as_bytes(), deadline);
        sent.map_err(SourceError::Broken)?;
        self.pending.push_back(command);
        Ok(())
    }

    fn receive_list(&mut self, size: u64, root: Digest) -> Result<(), SourceError> {
        let line = self.reader.read_line(META_MAX)?;
        self.count(line.len() as u64, false);
        let pieces = parse_meta(&line, size, root)?.map_err(SourceError::Refused)?;
        if self.connection.blake3.is_some_and(|blake3| blake3 != pieces.blake3()) {
            return Err(UnexpectedResponse("the list of pieces belongs to another BLAKE3".to_owned()).into());
        }
        (self.connection.on_event)(SourceEvent::List(Arc::new(pieces)));
        Ok(())
    }

    fn expect_length(&mut self, expected: u64) -> Result<(), SourceError> {
        let line = self.reader.read_line(RESPONSE_LINE_MAX)?;
        match PeerResponse::parse(&line)? {
            PeerResponse::Length(length) if length == expected => Ok(()),
            PeerResponse::Length(length) => {
                Err(UnexpectedResponse(format!("expected LENGTH {expected}, not {length}")).into())
            }
            PeerResponse::Error(failure) => Err(SourceError::Refused(failure)),
        }
    }

    fn receive_pieces(
        &mut self,
        pieces: Range<usize>,
        token: FencingToken,
        piece_list: &FileDigests,
    ) -> Result<(), SourceError> {
        let layout = self.connection.layout;
        self.expect_length(layout.bytes(&pieces))?;
        for piece in pieces {
            let byte_range = layout.offset(piece)..layout.offset(piece + 1);
            let expected = Some(piece_list.digests()[piece]);
            self.receive_range(byte_range, Some(PieceClaim { piece, token, expected }))?;
        }
        Ok(())
    }

    fn receive_whole(
        &mut self,
        token: FencingToken,
        piece_list: Option<&FileDigests>,
        verified_pieces: &[bool],
    ) -> Result<(), SourceError> {
        let layout = self.connection.layout;
        self.expect_length(layout.size())?;
        let otherwise = if let Some(piece_list) = piece_list {
            for piece in 0..layout.count() {
                let byte_range = layout.offset(piece)..layout.offset(piece + 1);
                let claim = PieceClaim { piece, token, expected: Some(piece_list.digests()[piece]) };
                let is_wanted = !verified_pieces.get(piece).copied().unwrap_or_default();
                self.receive_range(byte_range, is_wanted.then_some(claim))?;
            }
            "its content is not what the registry knows"
        } else {
            self.verification.is_whole_file.store(true, SeqCst);
            let claim = PieceClaim { piece: 0, token, expected: self.connection.blake3 };
            self.receive_range(0..layout.size(), Some(claim))?;
            "its content is not what its BLAKE3 says"
        };
        self.verifier.finish();
        if self.verification.has_mismatch.load(SeqCst) {
            return Err(UnexpectedResponse(otherwise.to_owned()).into());
        }
        if piece_list.is_none() {
            (self.connection.on_event)(SourceEvent::Whole);
        }
        Ok(())
    }

    /// Hashes and writes the bytes, or discards them if there is no claim or another connection has taken it over.
    fn receive_range(&mut self, byte_range: Range<u64>, claim: Option<PieceClaim>) -> Result<(), SourceError> {
        let connection = self.connection;
        let mut claim = claim.filter(|claim| connection.part.claim(claim.piece, claim.token));
        let fits_one_buffer = byte_range.end - byte_range.start <= BUFFER_BYTES as u64;
        let mut offset = byte_range.start;
        while offset < byte_range.end {
            let mut buffer = self.verifier.buffer();
            let len = usize::try_from(byte_range.end - offset).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
            let mut filled = 0;
            while filled < len {
                let len_read = self.reader.read(&mut buffer[filled..len])?;
                self.count(len_read as u64, claim.is_some());
                filled += len_read;
            }
            let buffer = Arc::new(buffer);
            if let Some(held) = claim {
                if !fits_one_buffer {
                    self.verifier.send(HashInput::Bytes(Arc::clone(&buffer), len))?;
                }
                let written = connection.part.write(held.piece, held.token, &buffer[..len], offset);
                if !written.map_err(SourceError::Disk)? {
                    self.verifier.discard_piece()?;
                    claim = None;
                } else if fits_one_buffer {
                    self.verifier.verify_now(held, &buffer[..len]);
                }
            }
            self.verifier.release(buffer);
            self.pipeline_requests()?;
            offset += len as u64;
        }
        match claim {
            Some(held) if !fits_one_buffer => Ok(self.verifier.send(HashInput::End(held))?),
            // An empty piece: the loop above did not run.
            Some(held) if byte_range.is_empty() => {
                self.verifier.verify_now(held, &[]);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn count(&self, bytes: u64, is_wanted: bool) {
        self.connection.handle.received_bytes.fetch_add(bytes, SeqCst);
        if is_wanted {
            self.connection.handle.useful_bytes.fetch_add(bytes, SeqCst);
        }
    }
}

/// Reads response lines and the raw bytes between them.
struct ResponseReader {
    stream: DeadlineStream,
    timing: FetchTiming,
    buffered: Box<[u8; READ_AHEAD_BYTES]>,
    /// The range of `buffered` that has not been consumed.
    unread: Range<usize>,
}

impl ResponseReader {
    fn new(stream: DeadlineStream, timing: FetchTiming) -> ResponseReader {
        ResponseReader { stream, timing, buffered: Box::new([0; READ_AHEAD_BYTES]), unread: 0..0 }
    }

    /// Reads a line and strips its end. The whole line must arrive within the line timeout, however slowly it trickles.
    fn read_line(&mut self, max_bytes: usize) -> Result<Vec<u8>, SourceError> {
        let deadline = Instant::now() + self.timing.line_timeout;
        let mut line = Vec::new();
        loop {
            let unread = &self.buffered[self.unread.clone()];
            let end = unread.iter().position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(unread.len());
            if line.len() + taken > max_bytes {
                return Err(UnexpectedResponse(format!("expected a line of at most {max_bytes} bytes")).into());
            }
            line.extend_from_slice(&unread[..taken]);
            self.unread.start += taken;
            if end.is_some() {
                self.unread.start += 1;
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                return Ok(line);
            }
            let len = self.stream.read_before(&mut self.buffered[..], deadline).map_err(SourceError::Broken)?;
            self.unread = 0..len;
            if len == 0 {
                return Err(SourceError::Broken(ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Reads at least one byte.
    fn read(&mut self, into: &mut [u8]) -> Result<usize, SourceError> {
        if !self.unread.is_empty() {
            let len = self.unread.len().min(into.len());
            into[..len].copy_from_slice(&self.buffered[self.unread.start..self.unread.start + len]);
            self.unread.start += len;
            return Ok(len);
        }
        match self.stream.read_before(into, Instant::now() + self.timing.stall_timeout) {
            Ok(0) => Err(SourceError::Broken(ErrorKind::UnexpectedEof.into())),
            result => result.map_err(SourceError::Broken),
        }
    }
}
