//! The registry's server: one JSON object per line over persistent connections, one thread each. See
//! `docs/spec/share.md`.
//!
//! | file | holds |
//! |---|---|
//! | `persistent.rs` | the registry's core behind its lock, and its persistence |
//! | `responses.rs` | writing responses, the long ones in pages |
//! | `view.rs` | read access for the server API |
//!
//! The lock is held for one bounded step of memory work at a time, never while anything is read, stored or sent. A
//! response is sent once everything that it is based on is on disk; the sign of life of a PING need not be.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::registry::{
    AccountProof, ConnId, HostnameClaim, HostnameStatus, RegistryError, RegistryLimits, SecretHash, store,
};
use super::wire::requests::{self, REQUEST_MAX};
use super::wire::{FileMap, PublishRequest, RegisterRequest, RegistryRequest, responses as wire};
use crate::model::{Clock, Name, Token, text};
use crate::net::budget::ReceiveBudget;
use crate::net::connection_end::ConnectionEnd;
use crate::net::counters::{Counter, LatencyHistogram, LatencySnapshot, counters};
use crate::net::interfaces;
use crate::net::lines::LineLimits;
use crate::net::listener::{
    self, AfterMessage, ConnectionLimiter, Listener, ListenerContext, MessageConnection, MessageFraming,
    MessageHandler, MessageService, Rejection,
};
use crate::net::periodic::PeriodicTask;
use crate::net::threads::Executor;
use crate::net::tls::TlsIdentity;
use crate::storage::{Store, StoreError};

mod persistent;
mod responses;
mod view;

pub use view::{HostView, RegistryView};

use persistent::PersistentRegistry;
use responses::{ResponseError, ResponseWriter};

/// Interval of the background sweep for timed-out hosts.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// How long CHANGES waits after the first change for others that follow closely.
const COALESCE_DELAY: Duration = Duration::from_millis(150);
/// How many entries of a long operation are processed before the lock is released for a moment.
const STEP_SIZE: usize = 256;

/// What the registry needs to know about user accounts.
pub trait AccountDirectory: Send + Sync {
    /// Whether a hostname is the name of a user account.
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

/// Settings of the operator.
#[derive(Debug, Clone)]
pub struct RegistryServerConfig {
    /// Address to listen on.
    pub addr: SocketAddr,
    /// How long a host stays live after its last request.
    pub peer_timeout: Duration,
    /// What a client must prove to register under a user's name.
    pub auth: AuthMode,
}

/// The shared services that the server runs on.
#[derive(Clone)]
pub struct RegistryServerContext {
    /// Provides a thread for each connection.
    pub executor: Arc<Executor>,
    /// Limits the number of connections.
    pub limiter: Arc<ConnectionLimiter>,
    /// Limits the memory for received requests that are not handled yet.
    pub budget: Arc<ReceiveBudget>,
    /// Certificate for clients that use TLS; without it such connections are closed.
    pub identity: Option<Arc<TlsIdentity>>,
    /// Clients on other machines may connect without TLS.
    pub allows_remote_plaintext: bool,
    /// Clock of the process.
    pub clock: Clock,
    /// The database, opened with [`MIGRATIONS`](super::registry::store::MIGRATIONS).
    pub store: Arc<Store>,
    /// The user accounts.
    pub accounts: Arc<dyn AccountDirectory>,
}

/// Why the registry server could not start.
#[derive(Debug, thiserror::Error)]
pub enum RegistryStartError {
    /// The address is in use or not allowed.
    #[error("cannot bind {addr}")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start")]
    System(#[from] io::Error),
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

counters! {
    /// Events since the start.
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

/// A running registry server.
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
    /// Loads the registry from the store and starts listening.
    ///
    /// # Errors
    /// [`RegistryStartError`]: the port is in use, or the store cannot be read.
    pub fn start(
        config: RegistryServerConfig,
        context: RegistryServerContext,
    ) -> Result<RegistryServer, RegistryStartError> {
        RegistryServer::start_with_limits(config, context, RegistryLimits::default())
    }

    /// The same with other limits on hosts and files.
    ///
    /// # Errors
    /// Those of [`start`](RegistryServer::start).
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
        let listener_context = ListenerContext {
            executor: Arc::clone(&context.executor),
            limiter: Arc::clone(&context.limiter),
            budget: Arc::clone(&context.budget),
            identity: context.identity.clone(),
            allows_remote_plaintext: context.allows_remote_plaintext,
        };
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

    /// The address that it listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Read access for other parts of this process.
    pub fn view(&self) -> RegistryView {
        RegistryView::of(Arc::clone(&self.inner))
    }

    /// A user account of that name was created: an anonymous host that holds the hostname is removed.
    pub fn account_created(&self, hostname: &str) {
        if let Err(error) = self.inner.registry.account_created(hostname) {
            log::error!("registry: a hostname that became an account's could not be taken: {error}");
        }
    }

    /// All counters of the registry and its listener, by name.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        [self.inner.counters.list(), self.listener.counters()].concat()
    }

    /// How long requests took.
    pub fn latencies(&self) -> LatencySnapshot {
        self.inner.latencies.snapshot()
    }

    /// Current sizes, by name.
    pub fn sizes(&self) -> Vec<(&'static str, u64)> {
        self.inner.registry.sizes()
    }

    /// Does what the background thread does every 30 s: makes timed-out hosts silent, removes what has expired, and
    /// stores when the others were last seen.
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
        let sweeper = self.sweeper.lock().take();
        let Some(sweeper) = sweeper else { return };
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

impl fmt::Debug for RegistryServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryServer").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// State of one connection.
struct ClientSession {
    conn: ConnId,
    source: IpAddr,
    stream: Weak<TcpStream>,
    /// Its hostname and secret, once it has registered.
    registration: Option<(Name, Token)>,
    /// Runs also when the connection's thread panics.
    _disconnect_guard: DisconnectGuard,
}

/// Why a request is answered with ERROR.
#[derive(Debug)]
enum RequestError {
    Refused(RegistryError),
    /// A field is invalid; the text names it.
    InvalidField(String),
    /// The hostname went to another connection or to a user.
    HostnameLost(String),
    Store(StoreError),
}

impl From<RegistryError> for RequestError {
    fn from(error: RegistryError) -> RequestError {
        RequestError::Refused(error)
    }
}

impl From<StoreError> for RequestError {
    fn from(error: StoreError) -> RequestError {
        RequestError::Store(error)
    }
}

impl RequestError {
    fn reason(self) -> String {
        match self {
            RequestError::Refused(error) => error.to_string(),
            RequestError::InvalidField(reason) | RequestError::HostnameLost(reason) => reason,
            RequestError::Store(error) => {
                log::error!("registry: {error}");
                "UNAVAILABLE: it could not be stored or read, and nothing has changed; try again".to_owned()
            }
        }
    }
}

/// The message handler of the listener.
struct RegistryService(Arc<RegistryServerInner>);

impl MessageService for RegistryService {
    type Session = ClientSession;
    const NAME: &'static str = "registry";
    const FRAMING: MessageFraming = MessageFraming::JsonLines;

    fn limits(&self) -> LineLimits {
        LineLimits::new(REQUEST_MAX)
    }

    fn rejection_message(&self, why: Rejection) -> Option<Vec<u8>> {
        let busy = if why.is_busy() { "BUSY: " } else { "" };
        Some(wire::error_response(&format!("{busy}{why}")))
    }

    fn count_rejected(&self) {
        self.0.counters.refused.add(1);
    }

    fn connections_failed(&self) -> &Counter {
        &self.0.counters.connections_failed
    }

    fn on_connect(&self, connection: &MessageConnection) -> ClientSession {
        let conn = self.0.next_conn.fetch_add(1, Ordering::Relaxed);
        ClientSession {
            conn,
            source: connection.source().ip(),
            stream: Arc::downgrade(connection.stream()),
            registration: None,
            _disconnect_guard: DisconnectGuard { inner: Arc::clone(&self.0), conn },
        }
    }

    fn handle(
        &self,
        session: &mut ClientSession,
        message: Vec<u8>,
        connection: &mut MessageConnection,
    ) -> Result<AfterMessage, ConnectionEnd> {
        let began_at = Instant::now();
        let request = requests::parse(&message);
        drop(message);
        // The time of a request that asks to wait says nothing about latency.
        let waits_for_change =
            matches!(&request, Ok(RegistryRequest::Changes(asked)) if asked.wait.is_some_and(|wait| wait.get() > 0.0));
        self.0.handle_request(session, request, &mut ResponseWriter::new(connection.writer()))?;
        if !waits_for_change {
            self.0.latencies.record(began_at.elapsed());
        }
        Ok(AfterMessage::Continue)
    }

    /// A connection that has not registered may be closed to make room: it loses nothing else.
    fn is_evictable(&self, session: &ClientSession) -> bool {
        session.registration.is_none()
    }
}

impl RegistryServerInner {
    fn handle_request(
        &self,
        session: &mut ClientSession,
        request: Result<RegistryRequest, String>,
        out: &mut ResponseWriter<'_>,
    ) -> io::Result<()> {
        self.counters.requests.add(1);
        let outcome = match request {
            Err(reason) => {
                self.counters.refused.add(1);
                return out.line(&wire::error_response(&reason));
            }
            Ok(RegistryRequest::Ping(ping)) => {
                self.counters.pings.add(1);
                let is_live = self.registry.ping(session.conn, ping.hostname.as_str());
                is_live
                    .map(|is_live| if is_live { wire::ALIVE } else { wire::DEAD }.to_vec())
                    .map_err(RequestError::from)
            }
            Ok(RegistryRequest::Request(wanted)) => {
                return self.write_streamed(session, out, |out| match wanted.size {
                    Some(size) => self.write_similar_files(session.conn, &wanted, size, out),
                    None => self.write_holders(&wanted.fname, out),
                });
            }
            Ok(RegistryRequest::Discover(whom)) => {
                return self.write_streamed(session, out, |out| self.write_host(&whom.hostname, out));
            }
            Ok(RegistryRequest::Changes(changes)) => {
                return self.write_streamed(session, out, |out| self.write_changes(changes, out));
            }
            Ok(RegistryRequest::List(list)) => {
                return self.write_streamed(session, out, |out| self.write_list(list, out));
            }
            Ok(RegistryRequest::Register(register)) => self.register(session, *register),
            Ok(RegistryRequest::Publish(publish)) => {
                let PublishRequest { hostname, fname, entry } = *publish;
                let outcome = self.registry.update(session.conn, |core, now, changes| {
                    core.evict_for_publish(now, session.conn, &hostname, &fname, STEP_SIZE, changes);
                    changes.extend(core.publish(now, session.conn, &hostname, &fname, entry)?);
                    Ok(())
                });
                outcome.map(|()| wire::ACK.to_vec())
            }
            Ok(RegistryRequest::Unpublish(unpublish)) => {
                let outcome = self.registry.update(session.conn, |core, now, changes| {
                    changes.extend(core.unpublish(now, session.conn, &unpublish.hostname, &unpublish.fname)?);
                    Ok(())
                });
                outcome.map(|()| wire::ACK.to_vec())
            }
            Ok(RegistryRequest::Unregister(whom)) => {
                let outcome = self.registry.update(session.conn, |core, now, changes| {
                    changes.extend(core.unregister(now, session.conn, &whom.hostname)?);
                    Ok(())
                });
                if outcome.is_ok() {
                    session.registration = None;
                    self.holder_streams.lock().remove(&session.conn);
                }
                outcome.map(|()| wire::OK.to_vec())
            }
        };
        match outcome {
            Ok(line) => out.line(&line),
            Err(failure) => {
                self.counters.refused.add(1);
                match &failure {
                    RequestError::Refused(RegistryError::Full(_)) => self.counters.refused_full.add(1),
                    RequestError::Refused(RegistryError::ShareFull { .. }) => self.counters.refused_share.add(1),
                    _ => {}
                }
                let failure = self.explain_lost_hostname(session, failure);
                out.line(&wire::error_response(&failure.reason()))
            }
        }
    }

    /// Writes a response while it is produced.
    fn write_streamed<'o>(
        &self,
        session: &ClientSession,
        out: &mut ResponseWriter<'o>,
        write_response: impl FnOnce(&mut ResponseWriter<'o>) -> Result<(), ResponseError>,
    ) -> io::Result<()> {
        self.registry.record_activity(session.conn);
        match write_response(out) {
            Ok(()) => Ok(()),
            Err(ResponseError::Io(error)) => Err(error),
            Err(ResponseError::Refused(failure)) => {
                self.counters.refused.add(1);
                out.line(&wire::error_response(&failure.reason()))
            }
        }
    }

    /// Replaces "not registered" by the actual reason for a connection that has lost its hostname.
    fn explain_lost_hostname(&self, session: &ClientSession, failure: RequestError) -> RequestError {
        match (failure, &session.registration) {
            (RequestError::Refused(RegistryError::NotRegistered), Some((held, _))) => {
                if self.context.accounts.is_account(held.as_str()) {
                    RequestError::Refused(RegistryError::NeedsToken)
                } else {
                    RequestError::HostnameLost(format!(
                        "hostname: {held} is not this connection's any more; REGISTER again"
                    ))
                }
            }
            (failure, _) => failure,
        }
    }

    fn register(&self, session: &mut ClientSession, register: RegisterRequest) -> Result<Vec<u8>, RequestError> {
        let hostname = register.hostname.clone();
        let status = self.hostname_status(&hostname, register.token.as_ref(), session.source);
        // Accounts of an earlier version keep names that would not be valid now.
        if status == HostnameStatus::Free {
            text::check_visible(hostname.as_str())
                .map_err(|wrong| RequestError::InvalidField(format!("hostname: {wrong}")))?;
        }
        let fresh = Token::random();
        // On the same connection the secret stays the same.
        let own = session.registration.as_ref().filter(|(held, _)| *held == hostname).map(|(_, secret)| secret);
        let shown = register.resume.as_ref().or(own);
        let claim = HostnameClaim {
            display_name: register.display_name.as_ref().unwrap_or(&hostname).as_str().into(),
            port: register.port,
            ip: register.ip,
            source: session.source,
            status,
            resume_secret: shown.map(SecretHash::of),
            new_secret: SecretHash::of(&fresh),
            keeps_files: register.files.is_none() && register.resume.is_some(),
            file_count: register.files.as_ref().map_or(0, published_count),
            is_local_ip: session.source.is_loopback() && register.ip.is_some_and(is_local_address),
            hostname,
        };
        let granted = self.registry.register(session.conn, &claim, &register.files.unwrap_or_default())?;
        if let Some(replaced) = granted.replaced_conn {
            self.counters.replaced.add(1);
            self.close_replaced(replaced);
        }
        self.holder_streams.lock().insert(session.conn, session.stream.clone());
        let secret = if granted.is_resumed { shown.cloned().unwrap_or(fresh) } else { fresh };
        session.registration = Some((claim.hostname.clone(), secret.clone()));
        // The account may have been created in the meantime.
        if claim.status == HostnameStatus::Free && self.context.accounts.is_account(claim.hostname.as_str()) {
            self.registry.account_created(claim.hostname.as_str())?;
            return Err(RegistryError::NeedsToken.into());
        }
        self.counters.registered.add(1);
        Ok(wire::register_response(&secret, granted.ip))
    }

    fn hostname_status(&self, hostname: &Name, token: Option<&Token>, source: IpAddr) -> HostnameStatus {
        let accounts = &self.context.accounts;
        if !accounts.is_account(hostname.as_str()) {
            return HostnameStatus::Free;
        }
        let owner = token.and_then(|token| accounts.owner_of(token.reveal()));
        HostnameStatus::Account(
            if owner.and_then(|owner| Name::from_stored(&owner).ok()).is_some_and(|owner| owner == *hostname) {
                AccountProof::Token
            } else if self.config.auth == AuthMode::Address && accounts.signed_in_from(hostname.as_str(), source) {
                AccountProof::Address
            } else {
                AccountProof::None
            },
        )
    }

    fn close_replaced(&self, conn: ConnId) {
        let stream = self.holder_streams.lock().remove(&conn).and_then(|stream| stream.upgrade());
        if let Some(stream) = stream
            && let Err(error) = stream.shutdown(std::net::Shutdown::Both)
        {
            // It has closed by itself in the meantime.
            log::debug!("registry: closing a connection that was replaced: {error}");
        }
    }

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

/// Whether an address belongs to this machine.
fn is_local_address(ip: IpAddr) -> bool {
    interfaces::is_local_address(ip).unwrap_or_else(|error| {
        log::warn!("registry: this host's addresses cannot be read: {error}");
        false
    })
}

/// Number of published files in a list.
fn published_count(files: &FileMap) -> usize {
    files.values().filter(|file| file.is_published).count()
}

/// Reports the end of a connection to the registry when dropped.
struct DisconnectGuard {
    inner: Arc<RegistryServerInner>,
    conn: ConnId,
}

impl Drop for DisconnectGuard {
    fn drop(&mut self) {
        self.inner.registry.connection_closed(self.conn);
        self.inner.holder_streams.lock().remove(&self.conn);
    }
}
