//! The trade server: sockets, threads and timers around the [`Exchange`].
//!
//! Every outcome is made real in one order: it is on disk, then it is sent, then timers are armed. When
//! the disk fails, the exchange is built anew from what the disk holds before the next request.

use std::collections::HashSet;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};

use super::deal::Windows;
use super::exchange::{Exchange, Outcome, Resumed, Rules, Told, Via};
use super::store::{self, Receipt, StoreJournal};
use super::wire::{self, Ask, Code, DATAGRAM_MAX, Inbound, Refusal, Reply, Request, encode};
use crate::bank::Gateway;
use crate::model::{Clock, FeeRate, Millis, Name};
use crate::net::conn::{Conn, ConnError};
use crate::net::gate::Gate;
use crate::net::lines::{LineLimits, LineReader};
use crate::net::tcp::TcpServer;
use crate::net::threads::Executor;
use crate::net::timer::Timers;
use crate::net::tls::Identity;
use crate::net::udp::{Datagram, UdpLimits, UdpServer};
use crate::storage::{Store, StoreError};

mod counters;
mod settle;
mod strangers;

pub use counters::TradeCounters;
use strangers::Strangers;

/// Datagrams being handled at once; each has a thread.
pub const DATAGRAMS_IN_HAND_MAX: usize = 512;
/// Datagrams that wait for a thread, and their bytes: a search of a thousand peers is answered by two
/// thousand datagrams at once, and a few searches may coincide.
const DATAGRAMS_WAITING_MAX: usize = 16_384;
const BYTES_WAITING_MAX: usize = 8 << 20;
/// Threads that settlements may have at once: one that drives and one a line, and some to spare for
/// those that are being taken up again.
pub const SETTLEMENT_THREADS_MAX: usize = 3 * super::exchange::SETTLEMENTS_MAX + 64;
/// DE-REGISTERs that wait for a settlement at once.
const LEAVING_MAX: usize = 64;
/// A push is sent again so long after its last sending.
const PUSH_AGAIN: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// How often what has had its time is forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// Most bytes of a line on the trade port.
const LINE_MAX: usize = 1 << 20;
/// From a message's first byte to its end, for what comes and what goes.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long recovery may hold up the start when the bank does not answer; it goes on beside the service.
const RECOVERY_WAIT: Duration = Duration::from_secs(10);

type Ex = Exchange<StoreJournal>;

/// What the operator chose.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where datagrams and connections come in. Port 0: any that is free for both.
    pub addr: SocketAddr,
    /// How long windows are.
    pub windows: Windows,
    /// How long each step of a settlement may take.
    pub settle_timeout: Duration,
    /// What the house takes.
    pub fee: FeeRate,
    /// Settlement without TLS.
    pub plaintext: bool,
}

/// What the server stands on.
pub struct Floor {
    /// Threads for requests, connections and settlements.
    pub executor: Arc<Executor>,
    /// The bound of connections, shared by all listeners of the process.
    pub gate: Arc<Gate>,
    /// The time.
    pub clock: Clock,
    /// The data dir's certificate.
    pub identity: Arc<Identity>,
    /// Trade's own file, opened with [`store::MIGRATIONS`].
    pub store: Arc<Store>,
    /// Who charges cards.
    pub gateway: Arc<dyn Gateway>,
    /// The data dir is that of a backup: numbers must jump.
    pub restored: bool,
    /// The largest number of a deal that the gateway knows a charge of. Where trade's own file does not
    /// know that number, it is older than the bank's, and numbers must jump past it.
    pub charged_up_to: Option<u64>,
}

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port is taken (or not allowed).
    #[error("cannot bind trade port {addr}")]
    Bind {
        /// Which address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system gave no thread or socket option.
    #[error("cannot start the trade server")]
    System(#[from] io::Error),
}

/// A running trade server.
pub struct TradeServer {
    shared: Arc<Shared>,
    udp: UdpServer,
    tcp: TcpServer,
}

/// What a timer brings up.
enum Due {
    Deal(u64),
    Push(Told, usize),
    Recover(u64),
    Sweep,
}

struct Shared {
    config: Config,
    floor: Floor,
    socket: Arc<UdpSocket>,
    exchange: RwLock<Arc<Ex>>,
    timers: OnceLock<Timers<Due>>,
    strangers: Strangers,
    counters: TradeCounters,
    /// Requests that are left with the store.
    left_with_store: AtomicUsize,
    /// Deals whose settlement has a driver.
    driven: Mutex<HashSet<u64>>,
    /// Told whenever a settlement has ended; guards how many wait for that.
    settled: (Mutex<usize>, Condvar),
    /// Set when the server ends: what is in hand by then is left for the next start.
    stops_at: OnceLock<Instant>,
}

/// A request that is left with the store, as long as it is: they have a bound, as threads have.
struct Place(Arc<Shared>);

impl Place {
    /// Nothing when all are taken; then the request waits on its thread.
    fn take(shared: &Arc<Shared>) -> Option<Place> {
        let one_more = |taken| (taken < DATAGRAMS_IN_HAND_MAX).then_some(taken + 1);
        shared.left_with_store.fetch_update(Relaxed, Relaxed, one_more).ok()?;
        Some(Place(Arc::clone(shared)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.left_with_store.fetch_sub(1, Relaxed);
    }
}

impl TradeServer {
    /// Binds both sockets, takes up what was under way, and serves.
    ///
    /// # Errors
    /// [`StartError`]: a port in use, a store that cannot be read.
    pub fn start(config: Config, floor: Floor) -> Result<TradeServer, StartError> {
        let (socket, listener) =
            bind_both(config.addr).map_err(|source| StartError::Bind { addr: config.addr, source })?;
        let socket = Arc::new(socket);
        let (exchange, resumed) = build(&config, &floor)?;
        // Numbers that have jumped are on disk before one of them is used.
        floor.store.sync_all();
        let shared = Arc::new(Shared {
            socket: Arc::clone(&socket),
            exchange: RwLock::new(Arc::new(exchange)),
            timers: OnceLock::new(),
            strangers: Strangers::default(),
            counters: TradeCounters::default(),
            left_with_store: AtomicUsize::new(0),
            driven: Mutex::default(),
            settled: (Mutex::new(0), Condvar::new()),
            stops_at: OnceLock::new(),
            config,
            floor,
        });
        let weak = Arc::downgrade(&shared);
        let timers = Timers::start("trade-timer", Arc::clone(&shared.floor.executor), move |due| {
            if let Some(shared) = weak.upgrade() {
                shared.due(due);
            }
        })?;
        // Just made: nobody else can have set it.
        assert!(shared.timers.set(timers).is_ok(), "timers are started once");
        shared.take_up(resumed, Some(Instant::now() + RECOVERY_WAIT));
        shared.arm(Instant::now() + SWEEP_EVERY, Due::Sweep);

        let limits = UdpLimits {
            max_in_hand: DATAGRAMS_IN_HAND_MAX,
            queue_len: DATAGRAMS_WAITING_MAX,
            queue_bytes: BYTES_WAITING_MAX,
            max_datagram: DATAGRAM_MAX,
        };
        let handler = Arc::clone(&shared);
        let handler = Arc::new(move |datagram: Datagram<'_>| handler.datagram(datagram));
        let udp = UdpServer::start(socket, Arc::clone(&shared.floor.executor), limits, handler)?;
        let busy = Reply::Error { rq: None, code: Code::Busy, reason: "too many connections; try again".to_owned() };
        let mut busy = encode(&busy);
        busy.push(b'\n');
        let handler = Arc::clone(&shared);
        let handler = Arc::new(move |stream: Arc<TcpStream>, source| handler.connection(stream, source));
        let (executor, gate) = (Arc::clone(&shared.floor.executor), Arc::clone(&shared.floor.gate));
        let tcp = TcpServer::start(listener, executor, gate, busy, handler)?;
        Ok(TradeServer { shared, udp, tcp })
    }

    /// Where it listens, for datagrams and connections alike.
    pub fn local_addr(&self) -> SocketAddr {
        self.tcp.local_addr()
    }

    /// Every counter of this room and of the sockets beneath it, with its name.
    pub fn counters(&self) -> Vec<(String, u64)> {
        let named = |prefix: &str, list: Vec<(&'static str, u64)>| {
            list.into_iter().map(|(name, count)| (format!("{prefix}_{name}"), count)).collect::<Vec<_>>()
        };
        let (peers, deals) = self.shared.exchange().sizes();
        let gauges = vec![("peers", peers as u64), ("deals", deals as u64)];
        [
            named("trade", self.shared.counters.list()),
            named("trade", gauges),
            named("trade_udp", self.udp.counters().list()),
            named(
                "trade_udp",
                self.udp.dropped_by_kernel().map(|drops| ("dropped_by_kernel", drops)).into_iter().collect(),
            ),
            named("trade_tcp", self.tcp.counters().list()),
        ]
        .concat()
    }

    /// Takes no more work, finishes what is in hand within `grace`, and writes down who was heard.
    pub fn stop(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        // A second call changes nothing: the first grace counts.
        let _ = self.shared.stops_at.set(deadline);
        self.udp.stop();
        if let Some(timers) = self.shared.timers.get() {
            timers.stop();
        }
        self.tcp.stop(deadline.saturating_duration_since(Instant::now()));
        let left = self.shared.floor.executor.finish(deadline.saturating_duration_since(Instant::now()));
        if left > 0 {
            log::warn!("trade: {left} requests or settlements were not finished; the next start takes them up");
        }
        self.shared.exchange().save_heard(Duration::ZERO);
        self.shared.floor.store.sync_all();
    }
}

fn build(config: &Config, floor: &Floor) -> Result<(Ex, Resumed), StoreError> {
    let rules = Rules {
        windows: config.windows.clone(),
        fee: config.fee,
        cert_sha256: (!config.plaintext).then(|| floor.identity.fingerprint().into()),
    };
    let journal = StoreJournal::begin(Arc::clone(&floor.store));
    let mut snapshot = floor.store.read(store::load)?;
    let mut jumps = floor.restored;
    if let Some(charged) = floor.charged_up_to
        && charged >= snapshot.ceiling
    {
        // A charge's key is never used for a second deal: the bank would take the one for the other.
        log::warn!(
            "{}: the bank has charged deal {charged}, which is not known here: this file is older than the bank's \
             (a copy put back by hand?). Numbers go on past it, but what happened in between is lost here",
            floor.store.path().display()
        );
        snapshot.ceiling = charged.saturating_add(1);
        jumps = true;
    }
    Ok(Exchange::load(journal, rules, snapshot, jumps, floor.clock.now()))
}

/// The same port for both; with port 0, one that both can have.
fn bind_both(addr: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    const TRIES: usize = 64;
    let mut failed = None;
    for _ in 0..if addr.port() == 0 { TRIES } else { 1 } {
        let listener = crate::net::tcp::listen(addr)?;
        match UdpSocket::bind(listener.local_addr()?) {
            Ok(socket) => return Ok((socket, listener)),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

impl Shared {
    fn exchange(&self) -> Arc<Ex> {
        Arc::clone(&self.exchange.read())
    }

    /// Whether the time to finish what is in hand is up.
    fn is_over(&self) -> bool {
        self.stops_at.get().is_some_and(|at| Instant::now() >= *at)
    }

    fn now(&self) -> Millis {
        self.floor.clock.now()
    }

    fn arm(&self, at: Instant, due: Due) {
        if let Some(timers) = self.timers.get() {
            timers.at(at, due);
        }
    }

    // What comes in.

    fn datagram(self: &Arc<Self>, datagram: Datagram<'_>) {
        let source = SocketAddr::new(datagram.source.ip().to_canonical(), datagram.source.port());
        let length = datagram.bytes.len();
        if datagram.truncated {
            let reason = format!("the datagram is longer than {DATAGRAM_MAX} bytes");
            return self.refuse(source, length, None, Refusal::new(Code::BadRequest, reason));
        }
        match wire::read(datagram.bytes) {
            Inbound::Request(request) => {
                self.counters.requests.add(1);
                self.request(source, length, request);
            }
            Inbound::Ack(ack) => {
                let known = self.exchange().ack(self.now(), source, &ack);
                if known { &self.counters.acks } else { &self.counters.acks_unknown }.add(1);
            }
            Inbound::Ignored => self.counters.ignored.add(1),
            Inbound::Refused(rq, refusal) => self.refuse(source, length, rq, refusal),
        }
    }

    fn connection(self: &Arc<Self>, stream: Arc<TcpStream>, source: SocketAddr) {
        let source = SocketAddr::new(source.ip().to_canonical(), source.port());
        let limits = LineLimits::new(LINE_MAX);
        let first_byte_by = Instant::now() + limits.idle_timeout;
        let conn = match Conn::accept_any(stream, &self.floor.identity, first_byte_by, MESSAGE_TIMEOUT) {
            Ok(conn) => conn,
            Err(ConnError::Silent) => return,
            Err(error) => {
                self.counters.connections_failed.add(1);
                return log::debug!("connection from {source}: {error}");
            }
        };
        let (reader, writer) = conn.split();
        let mut lines = LineReader::new(reader, limits);
        let write = |reply: &Reply| {
            if let Err(error) = writer.write_line(encode(reply), Instant::now() + MESSAGE_TIMEOUT) {
                self.counters.connections_failed.add(1);
                log::debug!("connection from {source}: cannot answer: {error}");
            }
        };
        let error = |rq, refusal: Refusal| {
            self.counters.errors.add(1);
            write(&Reply::Error { rq, code: refusal.code, reason: refusal.reason });
        };
        loop {
            match lines.read_line() {
                Ok(Some(line)) if line.trim().is_empty() => {}
                Ok(Some(line)) => match wire::read(line.as_bytes()) {
                    Inbound::Request(request) if matches!(request.ask, Ask::Buy { .. }) => {
                        self.counters.requests.add(1);
                        self.run(source, Via::Tcp, &request, &|reply| write(&reply));
                    }
                    Inbound::Request(request) => {
                        error(
                            Some(request.rq),
                            Refusal::new(Code::BadRequest, "type: only BUY is taken on a connection"),
                        );
                    }
                    Inbound::Refused(rq, refusal) => error(rq, refusal),
                    Inbound::Ack(_) | Inbound::Ignored => self.counters.ignored.add(1),
                },
                Ok(None) => break,
                Err(wrong) => {
                    error(None, Refusal::new(Code::BadRequest, wrong.to_string()));
                    break;
                }
            }
        }
        writer.finish();
    }

    /// A request in a datagram. Once nothing is left of it but to wait for the disk and then to send a few
    /// datagrams, that is left with the store, and the thread is free for the next: it would sleep twice,
    /// for the commit and for the next datagram, which is more work than all the rest.
    fn request(self: &Arc<Self>, source: SocketAddr, length: usize, request: Request) {
        let exchange = self.exchange();
        let outcome = exchange.request(self.now(), source, Via::Udp, &request);
        let place = (outcome.is_brief() && outcome.receipt.is_pending()).then(|| Place::take(self)).flatten();
        let Some(place) = place else {
            let answer = |reply| self.answer(&exchange, source, length, reply);
            if let Err(error) = self.carry_out(&exchange, outcome, source, &request, &answer) {
                self.once_more(error, source, Via::Udp, &request, &answer);
            }
            return;
        };
        let receipt = outcome.receipt.clone();
        receipt.then(move |stored| match stored {
            Ok(()) => place.0.send_all(&exchange, outcome, &|reply| place.0.answer(&exchange, source, length, reply)),
            // Rebuilding and asking again take a while: that needs a thread of its own again.
            Err(error) => {
                let (shared, failed, rq, cause) =
                    (Arc::clone(&place.0), Arc::clone(&exchange), request.rq, error.clone());
                let retry = move || {
                    place.0.not_stored(&exchange, &cause);
                    let answer = |reply| place.0.answer(&place.0.exchange(), source, length, reply);
                    place.0.once_more(cause, source, Via::Udp, &request, &answer);
                };
                if shared.floor.executor.execute(retry).is_err() {
                    shared.answer(&failed, source, length, unavailable(rq, &error));
                }
            }
        });
    }

    fn run(self: &Arc<Self>, source: SocketAddr, via: Via, request: &Request, answer: &dyn Fn(Reply)) {
        let exchange = self.exchange();
        let outcome = exchange.request(self.now(), source, via, request);
        if let Err(error) = self.carry_out(&exchange, outcome, source, request, answer) {
            self.once_more(error, source, via, request, answer);
        }
    }

    /// A request whose change was not stored. It may have failed for something earlier that nobody waits
    /// for (an ACK), on a disk that works by now. Memory has been built anew: nothing of this request is
    /// left in it.
    fn once_more(
        self: &Arc<Self>,
        error: StoreError,
        source: SocketAddr,
        via: Via,
        request: &Request,
        answer: &dyn Fn(Reply),
    ) {
        let outcome = |exchange: &Ex| exchange.request(self.now(), source, via, request);
        let result = match error {
            StoreError::Unavailable(_) => {
                let exchange = self.exchange();
                self.carry_out(&exchange, outcome(&exchange), source, request, answer)
            }
            error => Err(error),
        };
        if let Err(error) = result {
            answer(unavailable(request.rq, &error));
        }
    }

    /// Makes a request's outcome real, and waits for what a DE-REGISTER has to wait for.
    fn carry_out(
        self: &Arc<Self>,
        exchange: &Arc<Ex>,
        outcome: Outcome<Receipt>,
        source: SocketAddr,
        request: &Request,
        answer: &dyn Fn(Reply),
    ) -> Result<(), StoreError> {
        let leaving = outcome.leaving;
        self.make_real(exchange, outcome, answer)?;
        if let Some(since) = leaving {
            self.leave(source, request.rq, &request.name, since, answer);
        }
        Ok(())
    }

    /// A DE-REGISTER waits here until the peer's settlements are over.
    fn leave(self: &Arc<Self>, source: SocketAddr, rq: u64, name: &Name, since: u64, answer: &dyn Fn(Reply)) {
        // Connecting, TLS, two answers and two visits to the bank: no settlement takes longer unless the
        // bank is away.
        let deadline = Instant::now() + 6 * self.config.settle_timeout + MESSAGE_TIMEOUT;
        let busy = || Reply::Error {
            rq: Some(rq),
            code: Code::Busy,
            reason: "a settlement is under way; try again".to_owned(),
        };
        {
            let mut waiting = self.settled.0.lock();
            if *waiting >= LEAVING_MAX {
                drop(waiting);
                return answer(busy());
            }
            *waiting += 1;
        }
        loop {
            let exchange = self.exchange();
            let outcome = exchange.leave(self.now(), source, rq, name, since);
            let leaving = outcome.leaving.is_some();
            if let Err(error) = self.make_real(&exchange, outcome, answer) {
                answer(unavailable(rq, &error));
                break;
            }
            if !leaving {
                break;
            }
            let mut waiting = self.settled.0.lock();
            // A settlement may have ended between the look and the lock.
            let look_again_at = deadline.min(Instant::now() + Duration::from_secs(1));
            let _ = self.settled.1.wait_until(&mut waiting, look_again_at);
            drop(waiting);
            if Instant::now() >= deadline || self.is_over() {
                exchange.stay(name, since);
                answer(busy());
                break;
            }
        }
        *self.settled.0.lock() -= 1;
    }

    // What goes out.

    /// Persist, then send, then arm timers.
    fn make_real(
        self: &Arc<Self>,
        exchange: &Arc<Ex>,
        outcome: Outcome<Receipt>,
        answer: &dyn Fn(Reply),
    ) -> Result<(), StoreError> {
        if let Err(error) = outcome.receipt.wait() {
            self.not_stored(exchange, &error);
            return Err(error);
        }
        self.send_all(exchange, outcome, answer);
        Ok(())
    }

    fn not_stored(self: &Arc<Self>, exchange: &Arc<Ex>, error: &StoreError) {
        self.counters.unavailable.add(1);
        log::error!("trade: a change could not be stored: {error}");
        self.rebuild(exchange);
    }

    /// What is built on is on disk: sends, then arms timers.
    fn send_all(self: &Arc<Self>, exchange: &Arc<Ex>, outcome: Outcome<Receipt>, answer: &dyn Fn(Reply)) {
        if let Some(reply) = outcome.answer {
            answer(reply);
        }
        for (to, push) in outcome.once {
            self.counters.pushes.add(1);
            self.send(&encode(&push), to);
        }
        for told in outcome.pushes {
            self.push(exchange, told, 0);
        }
        self.arm_deadlines(&outcome.deadlines);
        if let Some(deal) = outcome.settle {
            self.begin_settlement(deal);
        }
    }

    fn arm_deadlines(&self, deadlines: &[(Millis, u64)]) {
        let (now, instant) = (self.now(), Instant::now());
        for (at, deal) in deadlines {
            self.arm(instant + now.until(*at), Due::Deal(*deal));
        }
    }

    /// The disk holds less than memory: memory is built anew from it, before the next request.
    fn rebuild(self: &Arc<Self>, failed: &Arc<Ex>) {
        // Held while the store is read, on purpose: no request may look at the memory that is wrong.
        let mut exchange = self.exchange.write();
        if !Arc::ptr_eq(&exchange, failed) {
            return;
        }
        match build(&self.config, &self.floor) {
            Ok((rebuilt, resumed)) => {
                *exchange = Arc::new(rebuilt);
                drop(exchange);
                log::warn!("trade: memory was built anew from the disk");
                self.take_up(resumed, None);
            }
            // The old one stays: its changes are refused, so every request is answered UNAVAILABLE and
            // tries this again.
            Err(error) => log::error!("trade: the store cannot be read: {error}"),
        }
    }

    /// Goes on with what was under way; waits for settlements until `wait_until` at most.
    fn take_up(self: &Arc<Self>, resumed: Resumed, wait_until: Option<Instant>) {
        let exchange = self.exchange();
        for told in resumed.pushes {
            self.push(&exchange, told, 0);
        }
        self.arm_deadlines(&resumed.deadlines);
        let settlements = resumed.settlements.len();
        if settlements > 0 {
            log::info!("trade: {settlements} settlements were interrupted and are brought to their end");
        }
        for (deal, _) in resumed.settlements {
            self.arm(Instant::now(), Due::Recover(deal));
        }
        if let Some(deadline) = wait_until {
            self.wait_for_settlements(&exchange, deadline);
        }
    }

    fn wait_for_settlements(&self, exchange: &Ex, deadline: Instant) {
        let mut waiting = self.settled.0.lock();
        while exchange.settlements() > 0 {
            if self.settled.1.wait_until(&mut waiting, deadline).timed_out() {
                log::warn!("trade: the bank does not answer; interrupted settlements are ended beside the service");
                return;
            }
        }
    }

    fn push(&self, exchange: &Ex, told: Told, repeats: usize) {
        let Some((to, push)) = exchange.push(told) else { return };
        self.counters.pushes.add(1);
        if repeats > 0 {
            self.counters.pushes_repeated.add(1);
        }
        self.send(&encode(&push), to);
        if let Some(pause) = PUSH_AGAIN.get(repeats) {
            self.arm(Instant::now() + *pause, Due::Push(told, repeats + 1));
        }
    }

    fn refuse(&self, source: SocketAddr, length: usize, rq: Option<u64>, refusal: Refusal) {
        let reply = Reply::Error { rq, code: refusal.code, reason: refusal.reason };
        self.answer(&self.exchange(), source, length, reply);
    }

    /// Answers a datagram. To an address that nobody registered, never more than three times its bytes,
    /// and ten errors a second: the source may be forged.
    /// `exchange` is the one that the request met: who builds a new one may be waiting for the writer, which
    /// may be here.
    fn answer(&self, exchange: &Ex, source: SocketAddr, length: usize, reply: Reply) {
        let is_error = matches!(reply, Reply::Error { .. });
        if is_error {
            self.counters.errors.add(1);
        }
        let mut max = DATAGRAM_MAX;
        if !exchange.is_registered(source) {
            max = max.min(3 * length);
            if is_error && !self.strangers.may_be_told(source, self.now()) {
                return self.counters.errors_withheld.add(1);
            }
        }
        match reply.fit(max) {
            Some(bytes) => self.send(&bytes, source),
            None => self.counters.answers_too_long.add(1),
        }
    }

    fn send(&self, bytes: &[u8], to: SocketAddr) {
        // A socket that serves both families speaks to IPv4 through mapped addresses.
        let to = match (to, self.config.addr.is_ipv6()) {
            (SocketAddr::V4(v4), true) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
            _ => to,
        };
        if let Err(error) = self.socket.send_to(bytes, to) {
            // As good as lost on the way: pushes are repeated, requests are asked again.
            self.counters.sends_failed.add(1);
            log::debug!("cannot send to {to}: {error}");
        }
    }

    // What time brings.

    fn due(self: &Arc<Self>, due: Due) {
        let exchange = self.exchange();
        match due {
            Due::Deal(deal) => {
                let outcome = exchange.tick(self.now(), deal);
                // The error is logged and memory rebuilt; the rebuilt deal has its deadline armed.
                let _ = self.make_real(&exchange, outcome, &|_| {});
            }
            Due::Push(told, repeats) => self.push(&exchange, told, repeats),
            Due::Recover(deal) => self.recover_settlement(deal),
            Due::Sweep => {
                exchange.sweep(self.now());
                self.arm(Instant::now() + SWEEP_EVERY, Due::Sweep);
            }
        }
    }
}

fn unavailable(rq: u64, error: &StoreError) -> Reply {
    Reply::Error { rq: Some(rq), code: Code::Unavailable, reason: format!("nothing changed, try again: {error}") }
}
