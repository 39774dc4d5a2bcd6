//! Drives settlements: the connections to both sides, the bank and the disk around the [`Settlement`] state machine.
//!
//! One thread drives the settlement. Each side has another that connects and reads, so that the loss of a connection is
//! noticed at once, whatever the other side does.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use socket2::{Domain, Protocol, Socket, Type};

use super::{LINE_MAX, MESSAGE_TIMEOUT, ServerInner, TimerEvent};
use crate::bank::{AuthorisationOutcome, CaptureOutcome, GatewayError, VoidOutcome};
use crate::model::Clock;
use crate::net::backoff::Backoff;
use crate::net::conn::{Conn, ConnWriter};
use crate::net::lines::{LineLimits, LineReader};
use crate::storage::Journal as _;
use crate::trade::deal::DealInput;
use crate::trade::exchange::{SettlementOrder, SettlementParty};
use crate::trade::settlement::{Settlement, SettlementAction, SettlementInput, SettlementMilestone};
use crate::trade::wire::{Side, encode};

/// The pause after the bank did not answer; doubled each time.
const BANK_PAUSE: Duration = Duration::from_millis(50);
const BANK_PAUSE_MAX: Duration = Duration::from_secs(5);
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// How long the last line may take to be read before the connection is closed.
const LINGER_MAX: Duration = Duration::from_secs(2);
const RECOVER_AFTER: Duration = Duration::from_secs(1);

enum ConnectionEvent {
    Connected(Side, ConnWriter),
    Line(Side, String),
    Lost(Side, String),
    /// No connection could be made.
    Unreachable(Side, String),
    ThreadEnded,
}

/// The store failed or the server stops. Recovery continues from what the disk tells.
struct SettlementAbandoned;

impl ServerInner {
    /// The BUY is on disk.
    pub(super) fn begin_settlement(self: &Arc<Self>, deal: u64) {
        self.counters.settlements.add(1);
        let inner = Arc::clone(self);
        let job = move || {
            let Some(_guard) = DriverGuard::try_acquire(&inner, deal) else { return };
            if let Some(order) = inner.exchange().settlement_order(deal) {
                log::debug!("settlement of deal {deal}: begins");
                inner.run_settlement(order);
            }
        };
        if self.context.executor.execute(job).is_err() {
            log::warn!("settlement of deal {deal}: no thread is free; it is undone");
            self.arm(Instant::now() + RECOVER_AFTER, TimerEvent::Recover(deal));
        }
    }

    /// Completes an interrupted settlement. Does nothing if it still has a driver, as after the exchange was rebuilt.
    pub(super) fn recover_settlement(self: &Arc<Self>, deal: u64) {
        let Some(_guard) = DriverGuard::try_acquire(self, deal) else { return };
        let exchange = self.exchange();
        // Memory must agree with the disk, or the bank would be asked the wrong thing.
        if let Err(error) = exchange.journal().append(Vec::new()).wait() {
            log::warn!("settlement of deal {deal}: {error}");
            return self.rebuild(&exchange);
        }
        let Some(order) = exchange.settlement_order(deal) else { return };
        let (mut settlement, actions) = Settlement::recover(order);
        // If it is abandoned, the guard has it recovered.
        let _ = self.perform(&mut settlement, actions, &mut SettlementConnections::new(crossbeam_channel::never()));
    }

    fn run_settlement(self: &Arc<Self>, order: SettlementOrder) {
        let (events, incoming) = crossbeam_channel::bounded(64);
        let mut connections = SettlementConnections::new(incoming);
        let mut lost = None;
        for (side, peer) in [(Side::Buyer, &order.buyer), (Side::Seller, &order.seller)] {
            let (inner, peer, events) = (Arc::clone(self), peer.clone(), events.clone());
            match self.context.executor.execute(move || inner.serve_connection(side, &peer, &events)) {
                Ok(()) => {
                    connections.readers += 1;
                    connections.connecting.push(side);
                }
                Err(_) => lost = Some(ConnectionEvent::Lost(side, "the server is busy".to_owned())),
            }
        }
        drop(events);
        let (mut settlement, opening) = Settlement::begin(order);
        // The threads observe the timeout of a step for connecting and TLS.
        while lost.is_none() && !connections.are_both_connected() {
            match connections.incoming.recv() {
                Ok(ConnectionEvent::Connected(side, writer)) => connections.set_connected(side, writer),
                Ok(report @ (ConnectionEvent::Lost(side, _) | ConnectionEvent::Unreachable(side, _))) => {
                    connections.connection_failed(side);
                    lost = Some(report);
                }
                Ok(ConnectionEvent::Line(side, _)) => {
                    lost = Some(ConnectionEvent::Lost(side, "it spoke before it was asked".to_owned()));
                }
                Ok(ConnectionEvent::ThreadEnded) => connections.readers -= 1,
                Err(_) => lost = Some(ConnectionEvent::Lost(Side::Buyer, "the server failed".to_owned())),
            }
        }
        let opening = match &lost {
            Some(ConnectionEvent::Unreachable(side, why)) => {
                settlement.handle(SettlementInput::Unreachable(*side, why))
            }
            Some(ConnectionEvent::Lost(side, why)) => settlement.handle(SettlementInput::Lost(*side, why)),
            _ => opening,
        };
        // If it is abandoned, the guard has it recovered, and both sides learn the result from STATUS.
        let _ = self
            .perform(&mut settlement, opening, &mut connections)
            .and_then(|()| self.drive(&mut settlement, &mut connections));
        connections.linger_and_close(&settlement, LINGER_MAX.min(self.config.settle_timeout), &|| {
            self.stops_at.get().is_some()
        });
    }

    fn drive(
        self: &Arc<Self>,
        settlement: &mut Settlement,
        connections: &mut SettlementConnections,
    ) -> Result<(), SettlementAbandoned> {
        let mut step_ends = Instant::now() + self.config.settle_timeout;
        while settlement.awaits_peer() {
            if self.is_past_stop() {
                return Err(SettlementAbandoned);
            }
            let before = settlement.step();
            let input = connections
                .incoming
                .recv_timeout(step_ends.saturating_duration_since(Instant::now()).min(STOP_CHECK_INTERVAL));
            let actions = match input {
                Ok(event) => connections.process(event, settlement),
                Err(RecvTimeoutError::Timeout) if Instant::now() < step_ends => Vec::new(),
                Err(_) => settlement.handle(SettlementInput::TimedOut),
            };
            self.perform(settlement, actions, connections)?;
            if settlement.step() != before {
                step_ends = Instant::now() + self.config.settle_timeout;
            }
        }
        Ok(())
    }

    /// Performs actions until the settlement waits for a side or is over.
    fn perform(
        self: &Arc<Self>,
        settlement: &mut Settlement,
        actions: Vec<SettlementAction>,
        connections: &mut SettlementConnections,
    ) -> Result<(), SettlementAbandoned> {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            let more = match action {
                SettlementAction::Write(side, line) => {
                    match connections.write(side, &encode(&line), self.config.settle_timeout.min(MESSAGE_TIMEOUT)) {
                        Ok(()) => Vec::new(),
                        Err(error) => settlement.handle(SettlementInput::Lost(side, &error.to_string())),
                    }
                }
                SettlementAction::Authorise(card) => {
                    let (key, price) = (settlement.order().key.clone(), settlement.order().price);
                    let deadline = Instant::now() + self.config.settle_timeout;
                    // The date is read for each attempt, since it decides whether a card has expired.
                    let authorise = || self.context.gateway.authorise(&key, price, &card, Clock::wall());
                    let answer = self.ask_bank(Some(deadline), authorise)?;
                    connections.process_early_events(settlement);
                    match answer {
                        Some(AuthorisationOutcome::Authorised) => settlement.handle(SettlementInput::Authorised),
                        Some(AuthorisationOutcome::Declined { reason }) => {
                            settlement.handle(SettlementInput::Declined(&reason))
                        }
                        None => settlement.handle(SettlementInput::Declined("the bank does not answer")),
                    }
                }
                SettlementAction::Capture => {
                    let key = settlement.order().key.clone();
                    match self.ask_bank(None, || self.context.gateway.capture(&key, Clock::wall()))? {
                        Some(CaptureOutcome::Captured) => settlement.handle(SettlementInput::Captured),
                        Some(CaptureOutcome::Refused { reason }) => {
                            settlement.handle(SettlementInput::CaptureRefused(&reason))
                        }
                        None => return Err(SettlementAbandoned),
                    }
                }
                SettlementAction::Void => {
                    let key = settlement.order().key.clone();
                    match self.ask_bank(None, || self.context.gateway.void(&key, Clock::wall()))? {
                        Some(VoidOutcome::Voided) => settlement.handle(SettlementInput::Voided),
                        Some(VoidOutcome::Captured { amount }) => {
                            settlement.handle(SettlementInput::AlreadyCaptured(amount))
                        }
                        None => return Err(SettlementAbandoned),
                    }
                }
                SettlementAction::Store(milestone) => {
                    self.record_milestone(settlement, &milestone)?;
                    connections.process_early_events(settlement);
                    settlement.handle(SettlementInput::Stored)
                }
                SettlementAction::Close => {
                    connections.finish();
                    Vec::new()
                }
            };
            actions.extend(more);
        }
        Ok(())
    }

    fn record_milestone(
        self: &Arc<Self>,
        settlement: &Settlement,
        milestone: &SettlementMilestone,
    ) -> Result<(), SettlementAbandoned> {
        let deal = settlement.order().deal;
        let event = match milestone {
            SettlementMilestone::Authorised => DealInput::Authorised,
            SettlementMilestone::Shipped => DealInput::Shipped,
            SettlementMilestone::Captured => DealInput::Captured,
            SettlementMilestone::Failed(reason) => match settlement.unreached() {
                Some((side, detail)) => DealInput::Unreachable { side, reason, detail },
                None => DealInput::SettlementFailed(reason),
            },
        };
        let exchange = self.exchange();
        let effects = exchange.advance_settlement(self.now(), deal, event).map_err(|error| {
            log::error!("settlement of deal {deal}: {milestone:?} does not fit its record: {error}");
            SettlementAbandoned
        })?;
        self.apply_effects(&exchange, effects, &|_| {}).map_err(|_| SettlementAbandoned)?;
        match milestone {
            SettlementMilestone::Captured => self.counters.settlements_paid.add(1),
            SettlementMilestone::Failed(reason) => {
                self.counters.settlements_failed.add(1);
                log::info!("settlement of deal {deal} failed: {reason}");
            }
            _ => return Ok(()),
        }
        // The lock is held so that no thread misses it that has just checked.
        let _waiting = self.settlement_ended.0.lock();
        self.settlement_ended.1.notify_all();
        Ok(())
    }

    /// Repeats a call until the bank answers; `None` if it did not before the deadline.
    fn ask_bank<T>(
        &self,
        deadline: Option<Instant>,
        call: impl Fn() -> Result<T, GatewayError>,
    ) -> Result<Option<T>, SettlementAbandoned> {
        let mut backoff = Backoff::new(BANK_PAUSE, BANK_PAUSE_MAX);
        loop {
            match call() {
                Ok(answer) => return Ok(Some(answer)),
                Err(error) => {
                    self.counters.bank_unreachable.add(1);
                    log::warn!("trade: {error}");
                }
            }
            let pause = backoff.next_pause();
            if deadline.is_some_and(|deadline| Instant::now() + pause >= deadline) {
                return Ok(None);
            }
            if self.is_past_stop() {
                return Err(SettlementAbandoned);
            }
            // The end of any settlement is a good moment to try again.
            let mut waiting = self.settlement_ended.0.lock();
            let _ = self.settlement_ended.1.wait_for(&mut waiting, pause);
            drop(waiting);
        }
    }

    /// Reports a side's lines until the connection ends, or nobody listens any more.
    fn serve_connection(&self, side: Side, peer: &SettlementParty, events: &Sender<ConnectionEvent>) {
        let report = |report| events.send(report).is_ok();
        match self.connect(side, peer) {
            Err(failure) => {
                report(failure);
            }
            Ok(conn) => {
                let (reader, writer) = conn.split();
                let mut lines = LineReader::new(reader, LineLimits::new(LINE_MAX));
                let mut is_heard = report(ConnectionEvent::Connected(side, writer));
                while is_heard {
                    let next = match lines.read_line() {
                        // They do not extend the timeout.
                        Ok(Some(line)) if line.trim().is_empty() => continue,
                        Ok(Some(line)) => ConnectionEvent::Line(side, line),
                        Ok(None) => ConnectionEvent::Lost(side, "it closed the connection".to_owned()),
                        Err(error) => ConnectionEvent::Lost(side, error.to_string()),
                    };
                    let is_last = matches!(next, ConnectionEvent::Lost(..));
                    is_heard = report(next) && !is_last;
                }
            }
        }
        report(ConnectionEvent::ThreadEnded);
    }

    fn connect(&self, side: Side, peer: &SettlementParty) -> Result<Conn, ConnectionEvent> {
        let lost = |why: String| ConnectionEvent::Lost(side, why);
        let addr = peer.tcp.ok_or_else(|| lost("it is not registered any more".to_owned()))?;
        let timeout = self.config.settle_timeout;
        let stream = connect(addr, peer.from, timeout).map_err(|error| {
            ConnectionEvent::Unreachable(side, format!("your settlement port {addr} could not be reached: {error}"))
        })?;
        // Otherwise each small line would wait for the acknowledgement of the previous one.
        stream.set_nodelay(true).map_err(|error| lost(error.to_string()))?;
        if self.config.plaintext {
            return Ok(Conn::plain(stream));
        }
        Conn::tls_server(stream, &self.context.identity, Instant::now() + timeout)
            .map_err(|error| lost(error.to_string()))
    }
}

/// Connects from the address by which the peer knows the server, if this host still has it.
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

/// Writers to both sides, and the events of the threads that read from them.
struct SettlementConnections {
    /// By [`Side`].
    writers: [Option<ConnWriter>; 2],
    incoming: Receiver<ConnectionEvent>,
    /// Threads that have not ended.
    readers: usize,
    /// Sides that have reported neither a connection nor a failure.
    connecting: Vec<Side>,
}

impl SettlementConnections {
    fn new(incoming: Receiver<ConnectionEvent>) -> SettlementConnections {
        SettlementConnections { writers: [None, None], incoming, readers: 0, connecting: Vec::new() }
    }

    fn process(&mut self, event: ConnectionEvent, settlement: &mut Settlement) -> Vec<SettlementAction> {
        match event {
            ConnectionEvent::Line(side, line) => return settlement.handle(SettlementInput::Line(side, &line)),
            ConnectionEvent::Lost(side, why) | ConnectionEvent::Unreachable(side, why) => {
                return settlement.handle(SettlementInput::Lost(side, &why));
            }
            ConnectionEvent::Connected(side, writer) => self.set_connected(side, writer),
            ConnectionEvent::ThreadEnded => self.readers -= 1,
        }
        Vec::new()
    }

    /// What the sides did before the bank or the disk had answered counts as unsolicited: a SHIPPED that was sent
    /// before SHIPPING_INFO must not pass for the answer to it.
    fn process_early_events(&mut self, settlement: &mut Settlement) {
        while settlement.is_authorising()
            && let Ok(event) = self.incoming.try_recv()
        {
            let actions = self.process(event, settlement);
            debug_assert!(actions.is_empty(), "it counts when the bank's or the disk's answer is in");
        }
    }

    fn connection_failed(&mut self, side: Side) {
        self.connecting.retain(|connecting| *connecting != side);
    }

    fn set_connected(&mut self, side: Side, writer: ConnWriter) {
        self.connection_failed(side);
        self.writers[side as usize] = Some(writer);
    }

    fn are_both_connected(&self) -> bool {
        self.writers.iter().all(Option::is_some)
    }

    /// Skips a side without a connection: notifications and STATUS inform it.
    fn write(&self, side: Side, line: &[u8], timeout: Duration) -> std::io::Result<()> {
        self.writers[side as usize].as_ref().map_or(Ok(()), |writer| writer.write_line(line, Instant::now() + timeout))
    }

    fn finish(&self) {
        self.writers.iter().flatten().for_each(ConnWriter::shut_down_write);
    }

    /// Gives the sides a moment to read their last line, then closes the connections, so that the threads end. A side
    /// that was still connecting when the other failed is told as well: nothing else would ever arrive on its
    /// connection.
    fn linger_and_close(&mut self, settlement: &Settlement, linger: Duration, is_stopping: &dyn Fn() -> bool) {
        let mut deadline = Instant::now() + linger;
        while self.readers > 0 && !(is_stopping() && Instant::now() >= deadline) {
            let until = if self.connecting.is_empty() { deadline } else { Instant::now() + LINGER_MAX };
            match self.incoming.recv_deadline(until) {
                Ok(ConnectionEvent::ThreadEnded) => self.readers -= 1,
                Ok(ConnectionEvent::Connected(side, writer)) => {
                    if let Some(cancel) = settlement.cancel_line(side) {
                        // If it is not received, the notification and STATUS inform the peer.
                        let _ = writer.write_line(encode(&cancel), Instant::now() + linger);
                    }
                    writer.shut_down_write();
                    self.set_connected(side, writer);
                    deadline = Instant::now() + linger;
                }
                Ok(ConnectionEvent::Lost(side, _) | ConnectionEvent::Unreachable(side, _)) => {
                    self.connection_failed(side)
                }
                Ok(ConnectionEvent::Line(..)) => {}
                // Threads that connect observe their own timeout.
                Err(RecvTimeoutError::Timeout) if !self.connecting.is_empty() => {}
                Err(_) => break,
            }
        }
        self.writers.iter().flatten().for_each(ConnWriter::close);
    }
}

/// A settlement has one driver, and is recovered however that ends, including by a panic.
struct DriverGuard<'a> {
    inner: &'a Arc<ServerInner>,
    deal: u64,
}

impl<'a> DriverGuard<'a> {
    fn try_acquire(inner: &'a Arc<ServerInner>, deal: u64) -> Option<DriverGuard<'a>> {
        let is_first = inner.driven_settlements.lock().insert(deal);
        // Not created otherwise, since dropping the guard removes the deal.
        is_first.then(|| DriverGuard { inner, deal })
    }
}

impl Drop for DriverGuard<'_> {
    fn drop(&mut self) {
        self.inner.driven_settlements.lock().remove(&self.deal);
        if self.inner.exchange().settlement_order(self.deal).is_some() && self.inner.stops_at.get().is_none() {
            log::warn!("settlement of deal {} was interrupted and will be taken up", self.deal);
            self.inner.arm(Instant::now() + RECOVER_AFTER, TimerEvent::Recover(self.deal));
        }
    }
}
