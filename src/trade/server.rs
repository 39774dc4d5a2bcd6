//! The trade server: sockets, threads and timers around the [`Exchange`].
//!
//! Effects are applied in a fixed order: they are committed to disk, then messages are sent, then timers are armed. If
//! the disk fails, the exchange is rebuilt from what it holds before the next request.

use std::collections::HashSet;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::deal::{DealSummary, Windows};
use super::exchange::{Exchange, ExchangeRules, NotificationId, ResumedWork, first_id};
use super::store::{self, StoreJournal};
use super::wire::DATAGRAM_MAX;
use crate::bank::Gateway;
use crate::model::{Clock, FeeRate, Millis};
use crate::net::budget::ReceiveBudget;
use crate::net::counters::{LatencyHistogram, LatencySnapshot};
use crate::net::listener::{ConnectionLimiter, Listener, ListenerContext, MessageHandler};
use crate::net::permits::Permits;
use crate::net::threads::Executor;
use crate::net::timer::Timers;
use crate::net::tls::TlsIdentity;
use crate::net::udp::{self, Datagram, UdpLimits, UdpServer, UdpServerSocket};
use crate::storage::{CommitHandle, Durable, Store, StoreError};

mod counters;
mod effects;
mod error_limiter;
mod requests;
mod settlement;

pub use counters::TradeCounters;
use error_limiter::ErrorRateLimiter;

/// Handled at once; each has a thread.
pub const DATAGRAMS_IN_PROGRESS_MAX: usize = 512;
/// Datagrams that wait for a thread, and their bytes: a search among a thousand peers is answered by two thousand
/// datagrams at once, and a few searches may coincide.
const DATAGRAMS_WAITING_MAX: usize = 16_384;
const BYTES_WAITING_MAX: usize = 8 << 20;
/// A driver and one for each connection, and some to spare for settlements that are being recovered.
pub const SETTLEMENT_THREADS_MAX: usize = 3 * super::exchange::SETTLEMENTS_MAX + 64;
/// DE-REGISTERs that wait for a settlement.
const WAITING_DEPARTURES_MAX: usize = 64;
const RESEND_PAUSES: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// The bytes of a line on the trade port.
const LINE_MAX: usize = 1 << 20;
/// The time from a message's first byte to its last, in either direction.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// What the start waits for a bank that does not answer; recovery then goes on in the background.
const RECOVERY_WAIT: Duration = Duration::from_secs(10);

type StoredExchange = Exchange<StoreJournal>;

#[derive(Debug, Clone)]
pub struct TradeServerConfig {
    /// It is for datagrams and connections. Port 0 means any port that is free for both.
    pub addr: SocketAddr,
    pub windows: Windows,
    /// The timeout of each step of a settlement.
    pub settle_timeout: Duration,
    pub fee: FeeRate,
    pub plaintext: bool,
}

pub struct TradeServerContext {
    pub executor: Arc<Executor>,
    /// Like `budget`, it is for all listeners of the process.
    pub limiter: Arc<ConnectionLimiter>,
    pub budget: Arc<ReceiveBudget>,
    pub clock: Clock,
    /// The certificate of the data directory.
    pub identity: Arc<TlsIdentity>,
    /// Opened with [`store::MIGRATIONS`].
    pub store: Arc<Store>,
    pub gateway: Arc<dyn Gateway>,
    /// 0 unless ids may have been used that the database does not know of, because it was restored from a backup or
    /// data was lost.
    pub first_id_range: u64,
    /// The largest deal for which the gateway knows a charge. The key of a charge is never used for a second deal,
    /// since the bank would take one for the other.
    pub charged_up_to: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum TradeStartError {
    #[error("cannot bind trade port {addr}")]
    Bind { addr: SocketAddr, source: io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot start the trade server")]
    System(#[from] io::Error),
}

pub struct TradeServer {
    inner: Arc<ServerInner>,
    udp: UdpServer,
    tcp: Listener,
}

enum TimerEvent {
    Deal(u64),
    Notification(NotificationId, usize),
    Recover(u64),
    Sweep,
}

struct ServerInner {
    config: TradeServerConfig,
    context: Arc<TradeServerContext>,
    socket: Arc<UdpServerSocket>,
    exchange: Durable<StoredExchange>,
    /// What is to be resumed of the exchange that was loaded last.
    resumed_work: Arc<Mutex<Option<ResumedWork>>>,
    timers: OnceLock<Timers<TimerEvent>>,
    error_limiter: ErrorRateLimiter,
    counters: TradeCounters,
    /// The times from a datagram's arrival to its response.
    latencies: LatencyHistogram,
    /// Requests that wait for their commit without a thread have one.
    pending_commits: Permits,
    /// Deals whose settlement has a driver.
    driven_settlements: Mutex<HashSet<u64>>,
    /// The mutex guards the number of waiting DE-REGISTERs.
    settlement_ended: (Mutex<usize>, Condvar),
    /// Set when the server stops: what is unfinished by then is left for the next start.
    stops_at: OnceLock<Instant>,
}

impl TradeServer {
    /// Resumes interrupted work, and serves.
    pub fn start(config: TradeServerConfig, context: TradeServerContext) -> Result<TradeServer, TradeStartError> {
        let (socket, listener) =
            bind_both(config.addr).map_err(|source| TradeStartError::Bind { addr: config.addr, source })?;
        let socket = Arc::new(UdpServerSocket::from_socket(socket)?);
        let context = Arc::new(context);
        let resumed_work = Arc::new(Mutex::new(None));
        let exchange = load_exchange(config.clone(), Arc::clone(&context), Arc::clone(&resumed_work))?;
        // A jump of the ids must be on disk before one of the new ones is used.
        context.store.sync_all();
        let inner = Arc::new(ServerInner {
            socket: Arc::clone(&socket),
            exchange,
            resumed_work,
            timers: OnceLock::new(),
            error_limiter: ErrorRateLimiter::default(),
            counters: TradeCounters::default(),
            latencies: LatencyHistogram::default(),
            pending_commits: Permits::new(DATAGRAMS_IN_PROGRESS_MAX),
            driven_settlements: Mutex::default(),
            settlement_ended: (Mutex::new(0), Condvar::new()),
            stops_at: OnceLock::new(),
            config,
            context,
        });
        let weak = Arc::downgrade(&inner);
        inner.context.store.wrap_commit_callbacks(move |work| {
            let failed = udp::batch_sends(work);
            if failed > 0
                && let Some(inner) = weak.upgrade()
            {
                inner.counters.sends_failed.add(failed);
            }
        });
        let weak = Arc::downgrade(&inner);
        let timers = Timers::start("trade-timer", Arc::clone(&inner.context.executor), move |event| {
            if let Some(inner) = weak.upgrade() {
                inner.handle_timer(event);
            }
        })?;
        assert!(inner.timers.set(timers).is_ok(), "timers are started once");
        inner.resume(Some(Instant::now() + RECOVERY_WAIT));
        inner.arm(Instant::now() + SWEEP_INTERVAL, TimerEvent::Sweep);

        let limits = UdpLimits {
            max_handlers: DATAGRAMS_IN_PROGRESS_MAX,
            queue_len: DATAGRAMS_WAITING_MAX,
            queue_bytes: BYTES_WAITING_MAX,
            max_datagram_bytes: DATAGRAM_MAX,
        };
        let handler = Arc::clone(&inner);
        let handler = Arc::new(move |datagram: Datagram<&[u8]>| handler.handle_datagram(datagram));
        let udp = UdpServer::start(socket, Arc::clone(&inner.context.executor), limits, handler)?;
        let context = ListenerContext {
            executor: Arc::clone(&inner.context.executor),
            limiter: Arc::clone(&inner.context.limiter),
            budget: Arc::clone(&inner.context.budget),
            identity: Some(Arc::clone(&inner.context.identity)),
            // A BUY on a connection is protected by its token.
            allows_remote_plaintext: true,
        };
        let service = requests::TradeService(Arc::clone(&inner));
        let tcp = Listener::start(listener, context, Arc::new(MessageHandler(service)))?;
        Ok(TradeServer { inner, udp, tcp })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.tcp.local_addr()
    }

    /// The counters of trade and its sockets, by name.
    pub fn counters(&self) -> Vec<(String, u64)> {
        let named = |prefix: &str, list: Vec<(&'static str, u64)>| {
            list.into_iter().map(|(name, count)| (format!("{prefix}_{name}"), count)).collect::<Vec<_>>()
        };
        [
            named("trade", self.inner.counters.list()),
            named("trade_udp", self.udp.counters().list()),
            named(
                "trade_udp",
                self.udp.dropped_by_kernel().map(|drops| ("dropped_by_kernel", drops)).into_iter().collect(),
            ),
            named("trade_tcp", self.tcp.counters()),
        ]
        .concat()
    }

    pub fn sizes(&self) -> Vec<(&'static str, u64)> {
        let exchange = self.inner.exchange();
        let (peers, deals) = exchange.sizes();
        vec![("peers", peers as u64), ("deals", deals as u64), ("deals_open", exchange.open_deals_len() as u64)]
    }

    pub fn latencies(&self) -> LatencySnapshot {
        self.inner.latencies.snapshot()
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.inner.context.store
    }

    /// A page, newest first, as it is on disk; and the total number.
    pub fn open_deals(&self, offset: usize, limit: usize) -> Result<(Vec<DealSummary>, usize), StoreError> {
        let exchange = self.inner.exchange();
        let (deals, total, commit) = exchange.open_deals(self.inner.now(), offset, limit);
        commit.wait().inspect_err(|error| self.inner.handle_store_failure(&exchange, error))?;
        Ok((deals, total))
    }

    /// The deals that have changed since the last call, as they are on disk; `None` for one that is no longer open. See
    /// [`Exchange::take_changed_deals`].
    pub fn changed_deals(&self, keep_tracking: bool) -> Option<Vec<(u64, Option<DealSummary>)>> {
        let exchange = self.inner.exchange();
        let ids = exchange.take_changed_deals(keep_tracking)?;
        let (mut all, mut newest) = (Vec::with_capacity(ids.len()), CommitHandle::default());
        for id in ids {
            let (line, commit) = exchange.open_deal(self.inner.now(), id);
            newest = CommitHandle::latest(newest, commit);
            all.push((id, line));
        }
        match newest.wait() {
            Ok(()) => Some(all),
            Err(error) => {
                self.inner.handle_store_failure(&exchange, &error);
                None
            }
        }
    }

    /// What is in progress has `grace` to finish.
    pub fn stop(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        // The first deadline holds.
        let _ = self.inner.stops_at.set(deadline);
        self.udp.stop();
        if let Some(timers) = self.inner.timers.get() {
            timers.stop();
        }
        self.tcp.stop(deadline.saturating_duration_since(Instant::now()));
        let left = self.inner.context.executor.shut_down(deadline.saturating_duration_since(Instant::now()));
        if left > 0 {
            log::warn!("trade: {left} requests or settlements were not finished; the next start takes them up");
        }
        self.inner.exchange().save_last_seen(Duration::ZERO);
        self.inner.context.store.sync_all();
    }
}

/// Loads the exchange, and anew whenever the disk holds less than it; what is to be resumed is left in `resumed_work`.
fn load_exchange(
    config: TradeServerConfig,
    context: Arc<TradeServerContext>,
    resumed_work: Arc<Mutex<Option<ResumedWork>>>,
) -> Result<Durable<StoredExchange>, StoreError> {
    Durable::open("trade", Arc::clone(&context.store), move |appender, before: Option<&StoredExchange>| {
        let rules = ExchangeRules {
            windows: config.windows.clone(),
            fee: config.fee,
            cert_sha256: (!config.plaintext).then(|| context.identity.fingerprint().into()),
        };
        let snapshot = appender.store().read(store::load)?;
        let uncharged = context.charged_up_to.map_or(0, |charged| charged.saturating_add(1));
        let first = first_id(context.first_id_range).max(uncharged);
        let journal = StoreJournal::new(appender, context.clock);
        let (mut exchange, resumed) = Exchange::load(journal, rules, snapshot, first, context.clock.now());
        if let Some(before) = before {
            exchange.inherit_limits(before);
        }
        *resumed_work.lock() = Some(resumed);
        Ok(exchange)
    })
}

/// The same port for UDP and TCP; for port 0, one that is free for both.
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

impl ServerInner {
    pub(super) fn exchange(&self) -> Arc<StoredExchange> {
        self.exchange.current()
    }

    pub(super) fn is_past_stop(&self) -> bool {
        self.stops_at.get().is_some_and(|at| Instant::now() >= *at)
    }

    pub(super) fn now(&self) -> Millis {
        self.context.clock.now()
    }

    pub(super) fn arm(&self, at: Instant, event: TimerEvent) {
        if let Some(timers) = self.timers.get() {
            timers.schedule(at, event);
        }
    }

    fn handle_timer(self: &Arc<Self>, event: TimerEvent) {
        let exchange = self.exchange();
        match event {
            TimerEvent::Deal(deal) => {
                let effects = exchange.tick(self.now(), deal);
                // The error is logged and the exchange rebuilt, which arms the deal's timer again.
                let _ = self.apply_effects(&exchange, effects, &|_| {});
            }
            TimerEvent::Notification(id, repeats) => self.send_notification(&exchange, id, repeats),
            TimerEvent::Recover(deal) => self.recover_settlement(deal),
            TimerEvent::Sweep => {
                let effects = exchange.sweep(self.now());
                // The same holds here; the next sweep removes what is left.
                let _ = self.apply_effects(&exchange, effects, &|_| {});
                self.arm(Instant::now() + SWEEP_INTERVAL, TimerEvent::Sweep);
            }
        }
    }
}
