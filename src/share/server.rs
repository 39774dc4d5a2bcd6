//! The registry's server: one JSON object per line over persistent connections, one thread each. See
//! `docs/spec/share.md`.
//!
//! The lock is held for one bounded step of memory work at a time, never while anything is read, stored or sent. A
//! response is sent once everything that it is based on is on disk; the sign of life of a PING need not be.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::registry::{ConnId, RegistryLimits, store};
use crate::model::Clock;
use crate::net::counters::{LatencyHistogram, LatencySnapshot, counters};
use crate::net::listener::{self, Listener, ListenerContext, MessageHandler};
use crate::net::periodic::PeriodicTask;
use crate::storage::{Store, StoreError};

mod persistent;
mod request_error;
mod requests;
mod responses;
mod view;

pub use view::{HostView, RegistryView};

use persistent::PersistentRegistry;
use request_error::RequestError;
use requests::RegistryService;

const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// How long CHANGES waits after the first change for others that follow closely.
const COALESCE_DELAY: Duration = Duration::from_millis(150);
/// A long operation processes so many entries before it releases the lock for a moment.
const STEP_SIZE: usize = 256;

/// What the registry needs to know about user accounts.
pub trait AccountDirectory: Send + Sync {
    fn is_account(&self, hostname: &str) -> bool;
    /// The name of the user that this token was issued to, if it is valid now.
    fn owner_of(&self, token: &str) -> Option<String>;
    /// Accounts whose names are other spellings of an older account's name, which an earlier version allowed. The
    /// hostname belongs to the older account.
    fn namesakes(&self) -> Vec<String> {
        Vec::new()
    }
    /// Whether the user signed in from this address within the lifetime of a token.
    fn signed_in_from(&self, hostname: &str, ip: IpAddr) -> bool;
}

/// What a client must prove to register under a user's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AuthMode {
    /// It needs a token of that user.
    #[default]
    Strict,
    /// It needs a token, or must come from an address from which the user has signed in.
    Address,
}

#[derive(Debug, Clone)]
pub struct RegistryServerConfig {
    pub addr: SocketAddr,
    /// How long a host stays live after its last request.
    pub peer_timeout: Duration,
    pub auth: AuthMode,
}

#[derive(Clone)]
pub struct RegistryServerContext {
    pub listener: ListenerContext,
    pub clock: Clock,
    /// The database, opened with [`MIGRATIONS`](super::registry::store::MIGRATIONS).
    pub store: Arc<Store>,
    pub accounts: Arc<dyn AccountDirectory>,
}

#[derive(Debug, thiserror::Error)]
pub enum RegistryStartError {
    #[error("cannot bind {addr}")]
    Bind { addr: SocketAddr, source: io::Error },
    #[error("cannot start")]
    System(#[from] io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

counters! {
    struct RegistryCounters {
        requests,
        refused = "requests_refused",
        pings,
        registered,
        replaced = "connections_replaced",
        refused_full,
        refused_share,
        connections_failed,
    }
}

pub struct RegistryServer {
    listener: Listener,
    inner: Arc<RegistryServerInner>,
    sweeper: Mutex<Option<PeriodicTask>>,
}

struct RegistryServerInner {
    config: RegistryServerConfig,
    context: RegistryServerContext,
    registry: PersistentRegistry,
    /// Connections that are registered, to be closed when another one takes over their hostname.
    holder_streams: Mutex<HashMap<ConnId, Weak<TcpStream>>>,
    next_conn: AtomicU64,
    counters: RegistryCounters,
    /// Time from a complete request to its response, except for requests that wait for a change.
    latencies: LatencyHistogram,
    is_closed: Mutex<bool>,
    closing: Condvar,
}

impl RegistryServer {
    pub fn start(
        config: RegistryServerConfig,
        context: RegistryServerContext,
    ) -> Result<RegistryServer, RegistryStartError> {
        RegistryServer::start_with_limits(config, context, RegistryLimits::default())
    }

    pub fn start_with_limits(
        config: RegistryServerConfig,
        context: RegistryServerContext,
        limits: RegistryLimits,
    ) -> Result<RegistryServer, RegistryStartError> {
        let addr = config.addr;
        let socket = listener::listen(addr).map_err(|source| RegistryStartError::Bind { addr, source })?;
        let namesakes = context.accounts.namesakes();
        if !namesakes.is_empty() {
            // The secrets issued to them would now get them the older account's hostname.
            context.store.write(move |tx| store::delete_namesakes(tx, &namesakes))?;
        }
        let registry =
            PersistentRegistry::open(Arc::clone(&context.store), context.clock, config.peer_timeout, limits)?;
        let listener_context = context.listener.clone();
        let inner = Arc::new(RegistryServerInner {
            config,
            context,
            registry,
            holder_streams: Mutex::default(),
            next_conn: AtomicU64::new(1),
            counters: RegistryCounters::default(),
            latencies: LatencyHistogram::default(),
            is_closed: Mutex::new(false),
            closing: Condvar::new(),
        });
        // Accounts may have been created while the registry was not running.
        for hostname in inner.registry.anonymous_hostnames() {
            if inner.context.accounts.is_account(hostname.as_str()) {
                inner.registry.account_created(hostname.as_str())?;
            }
        }
        let service = RegistryService(Arc::clone(&inner));
        let listener = Listener::start(socket, listener_context, Arc::new(MessageHandler(service)))?;
        let sweeper = PeriodicTask::start("registry-sweep", SWEEP_INTERVAL, {
            let inner = Arc::clone(&inner);
            move || inner.sweep()
        })?;
        Ok(RegistryServer { listener, inner, sweeper: Mutex::new(Some(sweeper)) })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    pub fn view(&self) -> RegistryView {
        RegistryView { inner: Arc::clone(&self.inner) }
    }

    /// A user account of that name was created: an anonymous host that holds the hostname is removed.
    pub fn account_created(&self, hostname: &str) {
        if let Err(error) = self.inner.registry.account_created(hostname) {
            log::error!("registry: a hostname that became an account's could not be taken: {error}");
        }
    }

    /// The counters of the registry and its listener, by name.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        [self.inner.counters.list(), self.listener.counters()].concat()
    }

    pub fn latencies(&self) -> LatencySnapshot {
        self.inner.latencies.snapshot()
    }

    pub fn sizes(&self) -> Vec<(&'static str, u64)> {
        self.inner.registry.sizes()
    }

    /// Does what the background thread does every 30 s: makes timed-out hosts silent, removes what has expired, and
    /// stores when the others were last seen.
    #[cfg(any(test, feature = "internals"))]
    pub fn sweep(&self) {
        self.inner.sweep();
    }

    /// Accepts no more requests, and lets current ones finish within `grace`. Everything is on disk afterwards.
    pub fn stop(&self, grace: Duration) {
        // Requests that wait for a change are answered now.
        self.inner.registry.stop_waiting();
        let left = self.listener.stop(grace);
        if left > 0 {
            log::warn!("registry: {left} requests were not finished");
        }
        self.inner.close();
        let Some(sweeper) = self.sweeper.lock().take() else { return };
        sweeper.stop();
        self.inner.sweep();
        self.inner.context.store.sync_all();
    }
}

impl Drop for RegistryServer {
    fn drop(&mut self) {
        self.inner.close();
    }
}

impl RegistryServerInner {
    /// Waits a moment for further changes, or until the registry stops, so that each follower gets only a few responses
    /// per second however much changes.
    fn coalesce_changes(&self) {
        self.closing.wait_for(&mut self.is_closed.lock(), COALESCE_DELAY);
    }

    fn sweep(&self) {
        if let Err(error) = self.registry.sweep() {
            log::error!("registry: what a sweep has found could not be stored: {error}");
        }
    }

    fn close(&self) {
        *self.is_closed.lock() = true;
        self.closing.notify_all();
    }
}
