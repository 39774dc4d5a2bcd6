//! One connection to one host: asks ahead, hashes what comes beside writing it, and says what became of it.

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

use super::checker::{BUFFER, Checker, Claim, Judge};
use super::fetch::Pace;
use super::part::Part;
use super::plan::{Fault, Turn};
use super::wire::{ANSWER_MAX, Answer, Failure, META_MAX, Request, Unexpected, parse_meta};
use crate::model::text;
use crate::net::deadline::TimedStream;
use crate::net::threads::{Executor, Full};
use crate::share::pieces::{Layout, Pieces};
use crate::share::wire::{Digest, FileName};

/// Askings under way at a time.
const ASKED_AHEAD: usize = 4;
/// Bytes read together with a line.
const READ_AHEAD: usize = 4096;

/// What a host is to be asked for.
#[derive(Debug)]
pub(super) enum Order {
    /// The digests of the pieces.
    List { size: u64, root: Digest },
    /// Pieces that follow each other.
    Pieces { pieces: Range<usize>, turn: Turn, list: Arc<Pieces> },
    /// All, from the beginning. With a list, pieces that are `good` are passed over.
    Whole { turn: Turn, list: Option<Arc<Pieces>>, good: Vec<bool> },
}

/// What became of it.
#[derive(Debug)]
pub(super) enum Report {
    Opened,
    List(Arc<Pieces>),
    Piece {
        piece: usize,
        is_right: bool,
    },
    /// All has come of a file without a list, and is right as far as is known.
    Whole,
    /// It could not be written.
    Disk(io::Error),
    /// The connection has ended. (The last word.)
    Over {
        fault: Fault,
        why: String,
    },
}

/// What the fetch and its lane share while the lane lives.
#[derive(Debug, Default)]
pub(super) struct Line {
    stream: Mutex<Option<Arc<TcpStream>>>,
    is_cut: AtomicBool,
    /// Bytes that came of pieces that are wanted.
    pub wanted: AtomicU64,
    /// Bytes that came, whatever for.
    pub received: AtomicU64,
}

impl Line {
    /// Ends the connection.
    pub(super) fn cut(&self) {
        self.is_cut.store(true, SeqCst);
        let stream = self.stream.lock().clone();
        if let Some(Err(error)) = stream.map(|stream| stream.shutdown(Shutdown::Both)) {
            debug!("cutting a connection: {error}");
        }
    }
}

/// What a lane needs.
pub(super) struct Lane {
    pub at: SocketAddr,
    pub fname: FileName,
    pub layout: Layout,
    pub blake3: Option<Digest>,
    pub part: Arc<Part>,
    pub pace: Pace,
    pub line: Arc<Line>,
    pub executor: Arc<Executor>,
    pub orders: Receiver<Order>,
    pub report: Arc<dyn Fn(Report) + Send + Sync>,
}

/// Why a lane ends.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("is not to be reached at {0} ({reason})", reason = text::plain(.1))]
    NoConnection(SocketAddr, #[source] io::Error),
    // Of what the system calls that nobody learns more.
    #[error("went offline")]
    Broken(#[source] io::Error),
    #[error("says that {0}")]
    Refused(Failure),
    #[error("sent the wrong thing: {0}")]
    Unexpected(#[from] Unexpected),
    #[error("the file cannot be written: {0}")]
    Disk(io::Error),
    #[error("no thread is left to check what comes")]
    Full(#[from] Full),
}

impl End {
    fn fault(&self) -> Fault {
        if matches!(self, End::Unexpected(_)) { Fault::Wrong } else { Fault::Lost }
    }
}

/// Says the last word, also when the lane panics.
struct LastWord {
    report: Arc<dyn Fn(Report) + Send + Sync>,
    fault: Fault,
    why: String,
}

impl Drop for LastWord {
    fn drop(&mut self) {
        (self.report)(Report::Over { fault: self.fault, why: std::mem::take(&mut self.why) });
    }
}

impl Lane {
    /// Does what is ordered until there are no more orders, or something fails.
    pub(super) fn run(self) {
        let report = Arc::clone(&self.report);
        let mut last_word = LastWord { report, fault: Fault::Lost, why: "its connection failed".to_owned() };
        match self.work() {
            Ok(()) => last_word.why = "ended the connection".to_owned(),
            Err(end) => {
                (last_word.fault, last_word.why) = (end.fault(), end.to_string());
                match end {
                    End::Disk(error) => (self.report)(Report::Disk(error)),
                    End::Broken(error) => debug!("a connection to a host has ended: {error}"),
                    _ => {}
                }
            }
        }
    }

    fn work(&self) -> Result<(), End> {
        let no_connection = |error| End::NoConnection(self.at, error);
        let stream = TcpStream::connect_timeout(&self.at, self.pace.connect).map_err(no_connection)?;
        stream.set_nodelay(true).map_err(no_connection)?;
        let stream = Arc::new(stream);
        *self.line.stream.lock() = Some(Arc::clone(&stream));
        // Cut before it was there to be cut?
        if self.line.is_cut.load(SeqCst) {
            return Ok(());
        }
        (self.report)(Report::Opened);
        let verdict = Arc::new(Verdict::default());
        let judge = self.judge(Arc::clone(&verdict));
        let mut intake = Intake {
            lane: self,
            incoming: Incoming::new(TimedStream::new(stream), self.pace),
            checker: Checker::new(Arc::clone(&self.executor), judge),
            asked: VecDeque::new(),
            verdict,
        };
        let result = intake.take_orders();
        // The last word comes after all others.
        intake.checker.finish();
        result
    }

    /// What is done with a digest: the piece is marked, so that nobody spoils it any more. Where another's turn
    /// has come meanwhile, that one's result counts.
    fn judge(&self, verdict: Arc<Verdict>) -> Judge {
        let (part, report) = (Arc::clone(&self.part), Arc::clone(&self.report));
        Arc::new(move |claim: Claim, is_right| {
            let Claim { piece, turn, expected: _ } = claim;
            if !is_right {
                verdict.is_wrong.store(true, SeqCst);
            }
            if verdict.is_of_all.load(SeqCst) {
                return;
            }
            if !is_right || part.done(piece, turn) {
                report(Report::Piece { piece, is_right });
            }
        })
    }
}

/// What comes in, and where it goes.
struct Intake<'a> {
    lane: &'a Lane,
    incoming: Incoming,
    checker: Checker,
    /// What the host was asked for and has not answered in full.
    asked: VecDeque<Order>,
    verdict: Arc<Verdict>,
}

/// What came of the hashing.
#[derive(Debug, Default)]
struct Verdict {
    /// All is hashed as one: there are no pieces to speak of.
    is_of_all: AtomicBool,
    /// Something is not what it must be.
    is_wrong: AtomicBool,
}

impl Intake<'_> {
    fn take_orders(&mut self) -> Result<(), End> {
        loop {
            if self.asked.is_empty() {
                let Ok(order) = self.lane.orders.recv() else { return Ok(()) };
                self.ask(order)?;
            }
            self.ask_ahead()?;
            match self.asked.pop_front() {
                Some(Order::List { size, root }) => self.take_list(size, root)?,
                Some(Order::Pieces { pieces, turn, list }) => self.take_pieces(pieces, turn, &list)?,
                Some(Order::Whole { turn, list, good }) => {
                    self.take_whole(turn, list.as_deref(), &good)?;
                    return Ok(());
                }
                None => {}
            }
        }
    }

    /// Asks for what is wanted next before the last has come, so that the host never waits for us.
    fn ask_ahead(&mut self) -> Result<(), End> {
        while self.asked.len() < ASKED_AHEAD {
            let Ok(order) = self.lane.orders.try_recv() else { break };
            self.ask(order)?;
        }
        Ok(())
    }

    fn ask(&mut self, order: Order) -> Result<(), End> {
        let name = self.lane.fname.as_str().as_bytes();
        let layout = self.lane.layout;
        let request = match &order {
            Order::List { .. } => Request::Meta { name },
            Order::Pieces { pieces, .. } => {
                Request::Range { offset: layout.offset(pieces.start), length: layout.bytes(pieces), name }
            }
            Order::Whole { .. } => Request::Get { name },
        };
        self.incoming.say(&request.to_string()).map_err(End::Broken)?;
        self.asked.push_back(order);
        Ok(())
    }

    fn take_list(&mut self, size: u64, root: Digest) -> Result<(), End> {
        let line = self.incoming.line(META_MAX)?;
        self.count(line.len() as u64, false);
        let pieces = parse_meta(&line, size, root)?.map_err(End::Refused)?;
        if self.lane.blake3.is_some_and(|blake3| blake3 != pieces.blake3()) {
            return Err(Unexpected("the list of pieces belongs to another BLAKE3".to_owned()).into());
        }
        (self.lane.report)(Report::List(Arc::new(pieces)));
        Ok(())
    }

    fn expect_length(&mut self, expected: u64) -> Result<(), End> {
        let line = self.incoming.line(ANSWER_MAX)?;
        match Answer::parse(&line)? {
            Answer::Length(length) if length == expected => Ok(()),
            Answer::Length(length) => Err(Unexpected(format!("expected LENGTH {expected}, not {length}")).into()),
            Answer::Error(failure) => Err(End::Refused(failure)),
        }
    }

    fn take_pieces(&mut self, pieces: Range<usize>, turn: Turn, list: &Pieces) -> Result<(), End> {
        let layout = self.lane.layout;
        self.expect_length(layout.bytes(&pieces))?;
        for piece in pieces {
            let span = layout.offset(piece)..layout.offset(piece + 1);
            let expected = Some(list.digests()[piece]);
            self.take_span(span, Some(Claim { piece, turn, expected }))?;
        }
        Ok(())
    }

    fn take_whole(&mut self, turn: Turn, list: Option<&Pieces>, good: &[bool]) -> Result<(), End> {
        let layout = self.lane.layout;
        self.expect_length(layout.size())?;
        let Some(list) = list else {
            self.verdict.is_of_all.store(true, SeqCst);
            let claim = Claim { piece: 0, turn, expected: self.lane.blake3 };
            self.take_span(0..layout.size(), Some(claim))?;
            self.checker.finish();
            if self.verdict.is_wrong.load(SeqCst) {
                return Err(Unexpected("its content is not what its BLAKE3 says".to_owned()).into());
            }
            (self.lane.report)(Report::Whole);
            return Ok(());
        };
        for piece in 0..layout.count() {
            let span = layout.offset(piece)..layout.offset(piece + 1);
            let claim = Claim { piece, turn, expected: Some(list.digests()[piece]) };
            let is_wanted = !good.get(piece).copied().unwrap_or_default();
            self.take_span(span, is_wanted.then_some(claim))?;
        }
        self.checker.finish();
        if self.verdict.is_wrong.load(SeqCst) {
            return Err(Unexpected("its content is not what the registry knows".to_owned()).into());
        }
        Ok(())
    }

    /// Takes the bytes of that span as they come: hashed and written, or, where it is nobody's or no longer our
    /// turn, forgotten.
    fn take_span(&mut self, span: Range<u64>, claim: Option<Claim>) -> Result<(), End> {
        let mut claim = claim.filter(|claim| self.lane.part.claim(claim.piece, claim.turn));
        let is_short = span.end - span.start <= BUFFER as u64;
        let mut offset = span.start;
        while offset < span.end {
            let mut buffer = self.checker.buffer();
            let len = usize::try_from(span.end - offset).unwrap_or(BUFFER).min(BUFFER);
            let mut filled = 0;
            while filled < len {
                let came = self.incoming.bytes(&mut buffer[filled..len])?;
                self.count(came as u64, claim.is_some());
                filled += came;
            }
            let buffer = Arc::new(buffer);
            if let Some(ours) = claim {
                if !is_short {
                    self.checker.bytes(&buffer, len)?;
                }
                if !self.lane.part.write(ours.piece, ours.turn, &buffer[..len], offset).map_err(End::Disk)? {
                    self.checker.forget()?;
                    claim = None;
                } else if is_short {
                    self.checker.short(ours, &buffer[..len]);
                }
            }
            self.checker.release(buffer);
            self.ask_ahead()?;
            offset += len as u64;
        }
        match claim {
            Some(ours) if !is_short => Ok(self.checker.end(ours)?),
            // Of no bytes at all.
            Some(ours) if span.is_empty() => {
                self.checker.short(ours, &[]);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn count(&self, bytes: u64, is_wanted: bool) {
        self.lane.line.received.fetch_add(bytes, SeqCst);
        if is_wanted {
            self.lane.line.wanted.fetch_add(bytes, SeqCst);
        }
    }
}

/// The reading end of a connection: lines with bytes between them.
struct Incoming {
    stream: TimedStream,
    pace: Pace,
    ahead: Box<[u8; READ_AHEAD]>,
    /// What of `ahead` was not given out.
    unread: Range<usize>,
}

impl Incoming {
    fn new(stream: TimedStream, pace: Pace) -> Incoming {
        Incoming { stream, pace, ahead: Box::new([0; READ_AHEAD]), unread: 0..0 }
    }

    fn say(&self, request: &str) -> io::Result<()> {
        self.stream.write_all_before(request.as_bytes(), Instant::now() + self.pace.stall)
    }

    /// A line without its end. All of it must be there in time, however it trickles.
    fn line(&mut self, max_bytes: usize) -> Result<Vec<u8>, End> {
        let deadline = Instant::now() + self.pace.line;
        let mut line = Vec::new();
        loop {
            let unread = &self.ahead[self.unread.clone()];
            let end = unread.iter().position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(unread.len());
            if line.len() + taken > max_bytes {
                return Err(Unexpected(format!("expected a line of at most {max_bytes} bytes")).into());
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
            let len = self.stream.read_before(&mut self.ahead[..], deadline).map_err(End::Broken)?;
            self.unread = 0..len;
            if len == 0 {
                return Err(End::Broken(ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// At least one byte.
    fn bytes(&mut self, into: &mut [u8]) -> Result<usize, End> {
        if !self.unread.is_empty() {
            let len = self.unread.len().min(into.len());
            into[..len].copy_from_slice(&self.ahead[self.unread.start..self.unread.start + len]);
            self.unread.start += len;
            return Ok(len);
        }
        match self.stream.read_before(into, Instant::now() + self.pace.stall) {
            Ok(0) => Err(End::Broken(ErrorKind::UnexpectedEof.into())),
            result => result.map_err(End::Broken),
        }
    }
}
