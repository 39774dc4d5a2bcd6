//! Settlements: the lines to both sides, the bank and the disk around the [`Settlement`] core.
//!
//! One thread drives; each side has a thread that connects and reads, so that a side that goes away is
//! noticed at once, whatever the other one does.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Due, LINE_MAX, MESSAGE_TIMEOUT, Shared};
use crate::bank::{Authorisation, Capture, GatewayError, Void};
use crate::model::Clock;
use crate::net::conn::{Conn, ConnWriter};
use crate::net::lines::{LineLimits, LineReader};
use crate::storage::Journal as _;
use crate::trade::deal::Event;
use crate::trade::exchange::{Settling, SettlingPeer};
use crate::trade::settlement::{Action, Input, Milestone, Settlement};
use crate::trade::wire::{Side, encode};

/// How long the bank is left alone after it gave no answer; doubled each time.
const BANK_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause.
const BANK_PAUSE_MAX: Duration = Duration::from_secs(5);
/// How often a driver looks whether the server ends.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long the last line may take to be read before the connection is cut.
const LINGER_MAX: Duration = Duration::from_secs(2);
/// When a settlement that lost its thread is taken up again.
const RECOVER_AFTER: Duration = Duration::from_secs(1);

/// What a side's thread reports.
enum Report {
    Up(Side, ConnWriter),
    Line(Side, String),
    Lost(Side, String),
    /// There is no connection to this side, for this reason.
    Unreached(Side, String),
    /// The thread is done.
    Done,
}

/// The driver cannot go on: the store failed or the server ends. The record on disk says how far it
/// was, and whoever takes it up goes on from there.
struct Abandoned;

impl Shared {
    /// Begins the settlement of a deal whose BUY is on disk.
    pub(super) fn begin_settlement(self: &Arc<Self>, deal: u64) {
        self.counters.settlements.add(1);
        let shared = Arc::clone(self);
        let job = move || {
            let Some(_guard) = Guard::take(&shared, deal) else { return };
            if let Some(order) = shared.exchange().settling(deal) {
                log::debug!("settlement of deal {deal}: begins");
                shared.settle(order);
            }
        };
        if self.floor.executor.execute(job).is_err() {
            log::warn!("settlement of deal {deal}: no thread is free; it is undone");
            self.arm(Instant::now() + RECOVER_AFTER, Due::Recover(deal));
        }
    }

    /// Brings an interrupted settlement to its end; on a request thread. One whose driver is well goes on
    /// by itself, also after memory was built anew.
    pub(super) fn recover_settlement(self: &Arc<Self>, deal: u64) {
        let Some(_guard) = Guard::take(self, deal) else { return };
        let exchange = self.exchange();
        // What memory says must be what the disk says, or the bank is asked for the wrong thing.
        if let Err(error) = exchange.journal().append(Vec::new()).wait() {
            log::warn!("settlement of deal {deal}: {error}");
            return self.rebuild(&exchange);
        }
        let Some(order) = exchange.settling(deal) else { return };
        let (mut core, actions) = Settlement::recover(order);
        // Abandoned: the guard sees to it.
        let _ = self.act(&mut core, actions, &mut Lines::new(crossbeam_channel::never()));
    }

    fn settle(self: &Arc<Self>, order: Settling) {
        let (reports, inbox) = crossbeam_channel::bounded(64);
        let mut lines = Lines::new(inbox);
        let mut lost = None;
        for (side, peer) in [(Side::Buyer, &order.buyer), (Side::Seller, &order.seller)] {
            let (shared, peer, reports) = (Arc::clone(self), peer.clone(), reports.clone());
            match self.floor.executor.execute(move || shared.serve_line(side, &peer, &reports)) {
                Ok(()) => {
                    lines.readers += 1;
                    lines.connecting.push(side);
                }
                Err(_) => lost = Some(Report::Lost(side, "the server is busy".to_owned())),
            }
        }
        drop(reports);
        let (mut core, opening) = Settlement::begin(order);
        // Connecting and TLS have the time of a step; the threads keep it, this only waits for both.
        while lost.is_none() && !lines.both() {
            match lines.inbox.recv() {
                Ok(Report::Up(side, writer)) => lines.put(side, writer),
                Ok(report @ (Report::Lost(side, _) | Report::Unreached(side, _))) => {
                    lines.failed(side);
                    lost = Some(report);
                }
                Ok(Report::Line(side, _)) => {
                    lost = Some(Report::Lost(side, "it spoke before it was asked".to_owned()));
                }
                Ok(Report::Done) => lines.readers -= 1,
                Err(_) => lost = Some(Report::Lost(Side::Buyer, "the server failed".to_owned())),
            }
        }
        let opening = match &lost {
            Some(Report::Unreached(side, why)) => core.handle(Input::Unreached(*side, why)),
            Some(Report::Lost(side, why)) => core.handle(Input::Lost(*side, why)),
            _ => opening,
        };
        // Abandoned: the guard sees to it; the lines are cut, and STATUS tells both sides the end.
        let _ = self.act(&mut core, opening, &mut lines).and_then(|()| self.listen(&mut core, &mut lines));
        lines.end(&core, LINGER_MAX.min(self.config.settle_timeout), &|| self.stops_at.get().is_some());
    }

    fn listen(self: &Arc<Self>, core: &mut Settlement, lines: &mut Lines) -> Result<(), Abandoned> {
        let mut step_ends = Instant::now() + self.config.settle_timeout;
        while core.awaits_a_side() {
            if self.is_over() {
                return Err(Abandoned);
            }
            let before = core.step();
            let input = lines.inbox.recv_timeout(step_ends.saturating_duration_since(Instant::now()).min(LOOK_EVERY));
            let actions = match &input {
                Ok(Report::Line(side, line)) => core.handle(Input::Line(*side, line)),
                Ok(Report::Lost(side, why) | Report::Unreached(side, why)) => core.handle(Input::Lost(*side, why)),
                Ok(Report::Up(side, writer)) => {
                    lines.put(*side, writer.clone());
                    Vec::new()
                }
                Ok(Report::Done) => {
                    lines.readers -= 1;
                    Vec::new()
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() >= step_ends => core.handle(Input::TimedOut),
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => core.handle(Input::TimedOut),
            };
            self.act(core, actions, lines)?;
            if core.step() != before {
                step_ends = Instant::now() + self.config.settle_timeout;
            }
        }
        Ok(())
    }

    /// Does what the core wants, until it wants to hear from a side again or is over.
    fn act(self: &Arc<Self>, core: &mut Settlement, actions: Vec<Action>, lines: &mut Lines) -> Result<(), Abandoned> {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            let more = match action {
                Action::Write(side, line) => {
                    match lines.write(side, &encode(&line), self.config.settle_timeout.min(MESSAGE_TIMEOUT)) {
                        Ok(()) => Vec::new(),
                        Err(error) => core.handle(Input::Lost(side, &error.to_string())),
                    }
                }
                Action::Authorise(card) => {
                    let (key, price) = (core.order().key.clone(), core.order().price);
                    let deadline = Instant::now() + self.config.settle_timeout;
                    // Read anew for each attempt: the bank judges cards by the date.
                    let authorise = || self.floor.gateway.authorise(&key, price, &card, Clock::wall());
                    let answer = self.ask_bank(Some(deadline), authorise)?;
                    lines.hear_what_came_early(core);
                    match answer {
                        Some(Authorisation::Authorised) => core.handle(Input::Authorised),
                        Some(Authorisation::Declined { reason }) => core.handle(Input::Declined(&reason)),
                        None => core.handle(Input::Declined("the bank does not answer")),
                    }
                }
                Action::Capture => {
                    let key = core.order().key.clone();
                    match self.ask_bank(None, || self.floor.gateway.capture(&key, Clock::wall()))? {
                        Some(Capture::Captured) => core.handle(Input::Captured),
                        Some(Capture::Refused { reason }) => core.handle(Input::CaptureRefused(&reason)),
                        None => return Err(Abandoned),
                    }
                }
                Action::Void => {
                    let key = core.order().key.clone();
                    match self.ask_bank(None, || self.floor.gateway.void(&key, Clock::wall()))? {
                        Some(Void::Voided) => core.handle(Input::Voided),
                        Some(Void::Captured { amount }) => core.handle(Input::AlreadyCaptured(amount)),
                        None => return Err(Abandoned),
                    }
                }
                Action::Store(milestone) => {
                    self.record(core, &milestone)?;
                    lines.hear_what_came_early(core);
                    core.handle(Input::Stored)
                }
                Action::Close => {
                    lines.finish();
                    Vec::new()
                }
            };
            actions.extend(more);
        }
        Ok(())
    }

    fn record(self: &Arc<Self>, core: &Settlement, milestone: &Milestone) -> Result<(), Abandoned> {
        let deal = core.order().deal;
        let event = match milestone {
            Milestone::Authorised => Event::Authorised,
            Milestone::Shipped => Event::Shipped,
            Milestone::Captured => Event::Captured,
            Milestone::Failed(reason) => match core.unreached() {
                Some((side, detail)) => Event::Unreached { side, reason, detail },
                None => Event::SettlementFailed(reason),
            },
        };
        let exchange = self.exchange();
        let outcome = exchange.settlement(self.now(), deal, event).map_err(|refusal| {
            log::error!("settlement of deal {deal}: {milestone:?} does not fit its record: {refusal}");
            Abandoned
        })?;
        self.make_real(&exchange, outcome, &|_| {}).map_err(|_| Abandoned)?;
        match milestone {
            Milestone::Captured => self.counters.settlements_paid.add(1),
            Milestone::Failed(reason) => {
                self.counters.settlements_failed.add(1);
                log::info!("settlement of deal {deal} failed: {reason}");
            }
            _ => return Ok(()),
        }
        // Under the lock, so that nobody who just looked misses it.
        let _waiting = self.settled.0.lock();
        self.settled.1.notify_all();
        Ok(())
    }

    /// Asks until the bank answers; `None` when it did not before the deadline.
    fn ask_bank<T>(
        &self,
        deadline: Option<Instant>,
        ask: impl Fn() -> Result<T, GatewayError>,
    ) -> Result<Option<T>, Abandoned> {
        let mut pause = BANK_PAUSE;
        loop {
            match ask() {
                Ok(answer) => return Ok(Some(answer)),
                Err(error) => {
                    self.counters.bank_unreachable.add(1);
                    log::warn!("trade: {error}");
                }
            }
            if deadline.is_some_and(|deadline| Instant::now() + pause >= deadline) {
                return Ok(None);
            }
            if self.is_over() {
                return Err(Abandoned);
            }
            // Nothing but time makes a bank answer; any settlement's end is a good moment to look again.
            let mut waiting = self.settled.0.lock();
            let _ = self.settled.1.wait_for(&mut waiting, pause);
            drop(waiting);
            pause = (2 * pause).min(BANK_PAUSE_MAX);
        }
    }

    /// Connects to a side and reads what it says until it ends.
    fn serve_line(&self, side: Side, peer: &SettlingPeer, reports: &Sender<Report>) {
        // When the driver does not listen any more, the connection has no purpose.
        let report = |report| reports.send(report).is_ok();
        match self.connect(side, peer) {
            Err(failure) => {
                report(failure);
            }
            Ok(conn) => {
                let (reader, writer) = conn.split();
                let mut lines = LineReader::new(reader, LineLimits::new(LINE_MAX));
                let mut is_heard = report(Report::Up(side, writer));
                while is_heard {
                    let next = match lines.read_line() {
                        // Says nothing, and gives no more time: the driver does not hear of it.
                        Ok(Some(line)) if line.trim().is_empty() => continue,
                        Ok(Some(line)) => Report::Line(side, line),
                        Ok(None) => Report::Lost(side, "it closed the connection".to_owned()),
                        Err(error) => Report::Lost(side, error.to_string()),
                    };
                    let is_last = matches!(next, Report::Lost(..));
                    is_heard = report(next) && !is_last;
                }
            }
        }
        report(Report::Done);
    }

    fn connect(&self, side: Side, peer: &SettlingPeer) -> Result<Conn, Report> {
        let lost = |why: String| Report::Lost(side, why);
        let addr = peer.tcp.ok_or_else(|| lost("it is not registered any more".to_owned()))?;
        let timeout = self.config.settle_timeout;
        let stream = connect(addr, peer.from, timeout).map_err(|error| {
            Report::Unreached(side, format!("your settlement port {addr} could not be reached: {error}"))
        })?;
        // Small lines back and forth: without this each would wait for the last one's acknowledgement.
        stream.set_nodelay(true).map_err(|error| lost(error.to_string()))?;
        if self.config.plaintext {
            return Ok(Conn::plain(stream));
        }
        Conn::tls_server(stream, &self.floor.identity, Instant::now() + timeout)
            .map_err(|error| lost(error.to_string()))
    }
}

/// Connects from the address that the peer knows the server by, if this host has it still.
fn connect(to: SocketAddr, from: Option<IpAddr>, timeout: Duration) -> io::Result<TcpStream> {
    let from = from.filter(|from| from.is_ipv4() == to.is_ipv4());
    let Some(from) = from else { return TcpStream::connect_timeout(&to, timeout) };
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if let Err(error) = socket.bind(&SocketAddr::new(from, 0).into()) {
        log::debug!("cannot connect to {to} from {from}: {error}");
        return TcpStream::connect_timeout(&to, timeout);
    }
    socket.connect_timeout(&to.into(), timeout)?;
    Ok(socket.into())
}

/// The lines to both sides: the ends that are written to, and what the threads at the other ends report.
struct Lines {
    buyer: Option<ConnWriter>,
    seller: Option<ConnWriter>,
    inbox: Receiver<Report>,
    /// Threads that have not reported that they are done.
    readers: usize,
    /// Sides whose thread has reported neither a connection nor its loss.
    connecting: Vec<Side>,
}

impl Lines {
    fn new(inbox: Receiver<Report>) -> Lines {
        Lines { buyer: None, seller: None, inbox, readers: 0, connecting: Vec::new() }
    }

    /// What a side said or did before the bank and the disk were done, it did without being asked: a
    /// SHIPPED that was sent before SHIPPING_INFO must not pass for its answer.
    fn hear_what_came_early(&mut self, core: &mut Settlement) {
        while core.is_authorising()
            && let Ok(report) = self.inbox.try_recv()
        {
            let actions = match report {
                Report::Line(side, line) => core.handle(Input::Line(side, &line)),
                Report::Lost(side, why) | Report::Unreached(side, why) => core.handle(Input::Lost(side, &why)),
                Report::Up(side, writer) => {
                    self.put(side, writer);
                    Vec::new()
                }
                Report::Done => {
                    self.readers -= 1;
                    Vec::new()
                }
            };
            debug_assert!(actions.is_empty(), "it counts when the bank's or the disk's answer is in");
        }
    }

    fn failed(&mut self, side: Side) {
        self.connecting.retain(|connecting| *connecting != side);
    }

    fn put(&mut self, side: Side, writer: ConnWriter) {
        self.failed(side);
        *match side {
            Side::Buyer => &mut self.buyer,
            Side::Seller => &mut self.seller,
        } = Some(writer);
    }

    fn both(&self) -> bool {
        self.buyer.is_some() && self.seller.is_some()
    }

    fn each(&self) -> impl Iterator<Item = &ConnWriter> {
        self.buyer.iter().chain(&self.seller)
    }

    /// A side without a line is told nothing here; STATUS and pushes tell it.
    fn write(&self, side: Side, line: &[u8], timeout: Duration) -> std::io::Result<()> {
        let writer = match side {
            Side::Buyer => &self.buyer,
            Side::Seller => &self.seller,
        };
        writer.as_ref().map_or(Ok(()), |writer| writer.write_line(line, Instant::now() + timeout))
    }

    fn finish(&self) {
        self.each().for_each(ConnWriter::finish);
    }

    /// Leaves the sides a moment to read their last line, then cuts the lines, so that the threads end.
    ///
    /// A side that was still connecting when the other one failed is told as well: its connection is
    /// open, and nothing else would ever come on it.
    fn end(&mut self, core: &Settlement, linger: Duration, is_stopping: &dyn Fn() -> bool) {
        let mut deadline = Instant::now() + linger;
        while self.readers > 0 && !(is_stopping() && Instant::now() >= deadline) {
            let until = if self.connecting.is_empty() { deadline } else { Instant::now() + LINGER_MAX };
            match self.inbox.recv_deadline(until) {
                Ok(Report::Done) => self.readers -= 1,
                Ok(Report::Up(side, writer)) => {
                    if let Some(cancel) = core.cancel_line(side) {
                        // Who does not take it hears of it by the push and STATUS.
                        let _ = writer.write_line(encode(&cancel), Instant::now() + linger);
                    }
                    writer.finish();
                    self.put(side, writer);
                    deadline = Instant::now() + linger;
                }
                Ok(Report::Lost(side, _) | Report::Unreached(side, _)) => self.failed(side),
                Ok(Report::Line(..)) => {}
                // The threads keep their own time while they connect.
                Err(RecvTimeoutError::Timeout) if !self.connecting.is_empty() => {}
                Err(_) => break,
            }
        }
        self.each().for_each(ConnWriter::close);
    }
}

/// One driver a settlement; and whatever ends it (a panic included), a deal is not left in the middle.
struct Guard<'a> {
    shared: &'a Arc<Shared>,
    deal: u64,
}

impl<'a> Guard<'a> {
    /// `None` when the settlement has a driver.
    fn take(shared: &'a Arc<Shared>, deal: u64) -> Option<Guard<'a>> {
        let is_first = shared.driven.lock().insert(deal);
        // Only then: a guard that is dropped takes the deal off the list.
        is_first.then(|| Guard { shared, deal })
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.shared.driven.lock().remove(&self.deal);
        if self.shared.exchange().settling(self.deal).is_some() && self.shared.stops_at.get().is_none() {
            log::warn!("settlement of deal {} was interrupted and will be taken up", self.deal);
            self.shared.arm(Instant::now() + RECOVER_AFTER, Due::Recover(self.deal));
        }
    }
}
