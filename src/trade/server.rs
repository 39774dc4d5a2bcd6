//! The trade server: sockets, threads and timers around the [`Exchange`].
//!
//! Every outcome is made real in one order: it is on disk, then it is sent, then timers are armed. When
//! the disk fails, the exchange is built anew from what the disk holds before the next request.

use std::collections::HashSet;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::deal::{DealLine, Windows};
use super::exchange::{Exchange, Resumed, Rules, Told, first_number};
use super::store::{self, StoreJournal};
use super::wire::DATAGRAM_MAX;
use crate::bank::Gateway;
use crate::model::{Clock, FeeRate, Millis};
use crate::net::budget::Budget;
use crate::net::counters::{Latencies, LatencyCounts};
use crate::net::listener::{ConnectionLimiter, Listener, ListenerContext, Messages};
use crate::net::threads::Executor;
use crate::net::timer::Timers;
use crate::net::tls::Identity;
use crate::net::udp::{self, Datagram, ServerSocket, UdpLimits, UdpServer};
use crate::storage::{CommitHandle, Durable, Store, StoreError};

mod counters;
mod outcome;
mod requests;
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
    pub limiter: Arc<ConnectionLimiter>,
    /// The bound of what was received and not yet handled, likewise.
    pub budget: Arc<Budget>,
    /// The time.
    pub clock: Clock,
    /// The data dir's certificate.
    pub identity: Arc<Identity>,
    /// Trade's own file, opened with [`store::MIGRATIONS`].
    pub store: Arc<Store>,
    /// Who charges cards.
    pub gateway: Arc<dyn Gateway>,
    /// The stretch at which numbers begin: 0 unless some may have been given out that the file does not know (it is
    /// that of a backup, or something is lost).
    pub first_stretch: u64,
    /// The largest number of a deal that the gateway knows a charge of: a charge's key is never used for a second
    /// deal, the bank would take the one for the other.
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
    tcp: Listener,
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
    floor: Arc<Floor>,
    socket: Arc<ServerSocket>,
    exchange: Durable<Ex>,
    /// What is to be resumed of the exchange that was loaded last.
    resumed: Arc<Mutex<Option<Resumed>>>,
    timers: OnceLock<Timers<Due>>,
    strangers: Strangers,
    counters: TradeCounters,
    /// From a datagram's arrival to its answer.
    latencies: Latencies,
    /// Requests that are left with the store.
    left_with_store: AtomicUsize,
    /// Deals whose settlement has a driver.
    driven: Mutex<HashSet<u64>>,
    /// Told whenever a settlement has ended; guards how many wait for that.
    settled: (Mutex<usize>, Condvar),
    /// Set when the server ends: what is in hand by then is left for the next start.
    stops_at: OnceLock<Instant>,
}

impl TradeServer {
    /// Binds both sockets, takes up what was under way, and serves.
    ///
    /// # Errors
    /// [`StartError`]: a port in use, a store that cannot be read.
    pub fn start(config: Config, floor: Floor) -> Result<TradeServer, StartError> {
        let (socket, listener) =
            bind_both(config.addr).map_err(|source| StartError::Bind { addr: config.addr, source })?;
        let socket = Arc::new(ServerSocket::over(socket)?);
        let floor = Arc::new(floor);
        let resumed = Arc::new(Mutex::new(None));
        let exchange = load_exchange(config.clone(), Arc::clone(&floor), Arc::clone(&resumed))?;
        // Numbers that have jumped are on disk before one of them is used.
        floor.store.sync_all();
        let shared = Arc::new(Shared {
            socket: Arc::clone(&socket),
            exchange,
            resumed,
            timers: OnceLock::new(),
            strangers: Strangers::default(),
            counters: TradeCounters::default(),
            latencies: Latencies::default(),
            left_with_store: AtomicUsize::new(0),
            driven: Mutex::default(),
            settled: (Mutex::new(0), Condvar::new()),
            stops_at: OnceLock::new(),
            config,
            floor,
        });
        let weak = Arc::downgrade(&shared);
        shared.floor.store.around_thens(move |work| {
            let failed = udp::gather(work);
            if failed > 0
                && let Some(shared) = weak.upgrade()
            {
                shared.counters.sends_failed.add(failed);
            }
        });
        let weak = Arc::downgrade(&shared);
        let timers = Timers::start("trade-timer", Arc::clone(&shared.floor.executor), move |due| {
            if let Some(shared) = weak.upgrade() {
                shared.due(due);
            }
        })?;
        // Just made: nobody else can have set it.
        assert!(shared.timers.set(timers).is_ok(), "timers are started once");
        shared.take_up(Some(Instant::now() + RECOVERY_WAIT));
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
        let context = ListenerContext {
            executor: Arc::clone(&shared.floor.executor),
            limiter: Arc::clone(&shared.floor.limiter),
            budget: Arc::clone(&shared.floor.budget),
            identity: Some(Arc::clone(&shared.floor.identity)),
            // What is said here is guarded by its token.
            plain_from_afar: true,
        };
        let service = requests::TradeService(Arc::clone(&shared));
        let tcp = Listener::start(listener, context, Arc::new(Messages(service)))?;
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
        [
            named("trade", self.shared.counters.list()),
            named("trade_udp", self.udp.counters().list()),
            named(
                "trade_udp",
                self.udp.dropped_by_kernel().map(|drops| ("dropped_by_kernel", drops)).into_iter().collect(),
            ),
            named("trade_tcp", self.tcp.counters()),
        ]
        .concat()
    }

    /// How much there is now, with its name.
    pub fn sizes(&self) -> Vec<(&'static str, u64)> {
        let exchange = self.shared.exchange();
        let (peers, deals) = exchange.sizes();
        vec![("peers", peers as u64), ("deals", deals as u64), ("deals_open", exchange.open_deals_len() as u64)]
    }

    /// How long requests in datagrams took to be answered.
    pub fn latencies(&self) -> LatencyCounts {
        self.shared.latencies.counts()
    }

    /// Trade's own file.
    pub fn store(&self) -> &Arc<Store> {
        &self.shared.floor.store
    }

    /// A page of the deals that are open, newest first, as they are on disk; and how many are open in all.
    ///
    /// # Errors
    /// What they are built on could not be stored.
    pub fn open_deals(&self, offset: usize, limit: usize) -> Result<(Vec<DealLine>, usize), StoreError> {
        let exchange = self.shared.exchange();
        let (deals, total, receipt) = exchange.open_deals(self.shared.now(), offset, limit);
        receipt.wait().inspect_err(|error| self.shared.not_stored(&exchange, error))?;
        Ok((deals, total))
    }

    /// Which deals have changed since this was asked last, as each is now and as it is on disk: its number, and
    /// nothing once it is not open any more. None: there were too many, or nobody had asked before. They are
    /// remembered until it `is_wanted` no more; while it is not, that costs nothing.
    pub fn changed_deals(&self, is_wanted: bool) -> Option<Vec<(u64, Option<DealLine>)>> {
        let exchange = self.shared.exchange();
        let ids = exchange.take_touched(is_wanted)?;
        let (mut all, mut newest) = (Vec::with_capacity(ids.len()), CommitHandle::default());
        for id in ids {
            let (line, receipt) = exchange.open_deal(self.shared.now(), id);
            newest = CommitHandle::later(newest, receipt);
            all.push((id, line));
        }
        match newest.wait() {
            Ok(()) => Some(all),
            Err(error) => {
                self.shared.not_stored(&exchange, &error);
                None
            }
        }
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

/// The exchange, which is loaded anew whenever the disk holds less than it; what is then to be resumed is left in
/// `resumed`.
fn load_exchange(
    config: Config,
    floor: Arc<Floor>,
    resumed: Arc<Mutex<Option<Resumed>>>,
) -> Result<Durable<Ex>, StoreError> {
    Durable::open("trade", Arc::clone(&floor.store), move |appender, before: Option<&Ex>| {
        let rules = Rules {
            windows: config.windows.clone(),
            fee: config.fee,
            cert_sha256: (!config.plaintext).then(|| floor.identity.fingerprint().into()),
        };
        let snapshot = appender.store().read(store::load)?;
        let uncharged = floor.charged_up_to.map_or(0, |charged| charged.saturating_add(1));
        let first = first_number(floor.first_stretch).max(uncharged);
        let journal = StoreJournal::new(appender, floor.clock);
        let (mut exchange, to_resume) = Exchange::load(journal, rules, snapshot, first, floor.clock.now());
        if let Some(before) = before {
            exchange.stands_in_for(before);
        }
        *resumed.lock() = Some(to_resume);
        Ok(exchange)
    })
}

/// The same port for both; with port 0, one that both can have.
fn bind_both(addr: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    const TRIES: usize = 64;
    let mut failed = None;
    for _ in 0..if addr.port() == 0 { TRIES } else { 1 } {
        let listener = crate::net::listener::listen(addr)?;
        match UdpSocket::bind(listener.local_addr()?) {
            Ok(socket) => return Ok((socket, listener)),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

impl Shared {
    pub(super) fn exchange(&self) -> Arc<Ex> {
        self.exchange.current()
    }

    /// Whether the time to finish what is in hand is up.
    pub(super) fn is_over(&self) -> bool {
        self.stops_at.get().is_some_and(|at| Instant::now() >= *at)
    }

    pub(super) fn now(&self) -> Millis {
        self.floor.clock.now()
    }

    pub(super) fn arm(&self, at: Instant, due: Due) {
        if let Some(timers) = self.timers.get() {
            timers.at(at, due);
        }
    }

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
                let outcome = exchange.sweep(self.now());
                // The error is logged and memory rebuilt; what is left to be swept is swept next time.
                let _ = self.make_real(&exchange, outcome, &|_| {});
                self.arm(Instant::now() + SWEEP_EVERY, Due::Sweep);
            }
        }
    }
}
