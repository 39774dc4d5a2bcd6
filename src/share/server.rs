//! The registry's server: one JSON object a line over connections that stay open, a thread each. SPEC.md section 6.
//!
//! | file | holds |
//! |---|---|
//! | `keeper.rs` | the core behind its lock, and its way to disk |
//! | `answers.rs` | answers on their way out, the long ones in pages |
//! | `view.rs` | the same for the server API |
//!
//! The lock is held for a step of memory work at a time, never while anything is read, stored or sent. An answer
//! leaves once everything that it was built on is on disk; a PING changes nothing that must be.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::registry::{Bounds, Claim, ConnId, Proof, Refusal, SecretKey, Standing, store};
use super::wire::requests::{self, REQUEST_MAX};
use super::wire::{Files, Publish, Register, Request, answers as wire};
use crate::model::{Clock, Name, Token, text};
use crate::net::budget::Budget;
use crate::net::counters::{Counter, Latencies, LatencyCounts};
use crate::net::ended::Ended;
use crate::net::interfaces;
use crate::net::lines::LineLimits;
use crate::net::listener::{
    self, After, ConnectionLimiter, Listener, ListenerContext, MessageConnection, MessageFraming, MessageService,
    Messages, Rejection,
};
use crate::net::threads::{self, Executor};
use crate::net::tls::Identity;
use crate::storage::{Store, StoreError};

mod answers;
mod keeper;
mod view;

pub use view::{Client, View};

use answers::{Broken, Output};
use keeper::Keeper;

/// Between two looks for hosts that were not heard for long.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// Between the first change that somebody waits for and the answer.
const GATHERED_FOR: Duration = Duration::from_millis(150);
/// How much of what may be long is done before the lock is let go for a moment.
const STEP: usize = 256;

/// The user accounts, as far as the registry asks.
pub trait Accounts: Send + Sync {
    /// Whether a hostname is the name of a user.
    fn is_account(&self, hostname: &str) -> bool;
    /// The hostname that this token gives, if it is valid now: that of its user.
    fn owner_of(&self, token: &str) -> Option<String>;
    /// Users whose hostname is another one's: their names are spellings of his. An earlier version made such.
    fn namesakes(&self) -> Vec<String> {
        Vec::new()
    }
    /// Whether that user signed in from this address within the life of a token.
    fn signed_in_from(&self, hostname: &str, ip: IpAddr) -> bool;
}

/// What it takes to have the hostname that is a user's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AuthMode {
    /// A token of that user.
    #[default]
    Strict,
    /// That, or the address from which the user signed in.
    Address,
}

/// What the operator chose.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen.
    pub addr: SocketAddr,
    /// How long a host is there after it was last heard.
    pub peer_timeout: Duration,
    /// Who gets a user's hostname.
    pub auth: AuthMode,
}

/// What the server stands on.
#[derive(Clone)]
pub struct Floor {
    /// Threads for connections.
    pub executor: Arc<Executor>,
    /// The bound of connections.
    pub limiter: Arc<ConnectionLimiter>,
    /// The bound of what was received and not yet handled.
    pub budget: Arc<Budget>,
    /// For those who begin with TLS; without it they are closed.
    pub identity: Option<Arc<Identity>>,
    /// Clients on other hosts may speak without TLS.
    pub plain_from_afar: bool,
    /// The process's clock.
    pub clock: Clock,
    /// Opened with [`MIGRATIONS`](super::registry::store::MIGRATIONS).
    pub store: Arc<Store>,
    /// Who has an account.
    pub accounts: Arc<dyn Accounts>,
}

/// Why a registry could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port is taken (or not allowed).
    #[error("cannot bind {addr}")]
    Bind {
        /// Which address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The system gave no thread.
    #[error("cannot start")]
    System(#[from] io::Error),
    /// What is stored could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a registry did so far.
#[derive(Debug, Default)]
struct Counters {
    requests: Counter,
    refused: Counter,
    pings: Counter,
    registered: Counter,
    replaced: Counter,
    refused_full: Counter,
    refused_share: Counter,
    connections_failed: Counter,
}

impl Counters {
    fn list(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("requests", self.requests.get()),
            ("requests_refused", self.refused.get()),
            ("pings", self.pings.get()),
            ("registered", self.registered.get()),
            ("connections_replaced", self.replaced.get()),
            ("refused_full", self.refused_full.get()),
            ("refused_share", self.refused_share.get()),
            ("connections_failed", self.connections_failed.get()),
        ]
    }
}

/// A registry that runs.
pub struct RegistryServer {
    listener: Listener,
    shared: Arc<Shared>,
    sweeper: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    config: Config,
    floor: Floor,
    keeper: Keeper,
    /// Connections that hold a hostname, to be closed when another one gets it.
    holders: Mutex<HashMap<ConnId, Weak<TcpStream>>>,
    next_conn: AtomicU64,
    counters: Counters,
    /// From a whole message to its answer, but for those that wait for a change.
    latencies: Latencies,
    is_closed: Mutex<bool>,
    closing: Condvar,
}

impl RegistryServer {
    /// Takes up what the store holds, and listens.
    ///
    /// # Errors
    /// [`StartError`]: the port is in use, or the store cannot be read.
    pub fn start(config: Config, floor: Floor) -> Result<RegistryServer, StartError> {
        RegistryServer::start_bounded(config, floor, Bounds::default())
    }

    /// The same with other bounds on hosts and files.
    ///
    /// # Errors
    /// As [`start`](RegistryServer::start).
    pub fn start_bounded(config: Config, floor: Floor, bounds: Bounds) -> Result<RegistryServer, StartError> {
        let addr = config.addr;
        let socket = listener::listen(addr).map_err(|source| StartError::Bind { addr, source })?;
        let namesakes = floor.accounts.namesakes();
        if !namesakes.is_empty() {
            // What they were answered then would give them his hostname now.
            floor.store.write(move |tx| store::forget_namesakes(tx, &namesakes))?;
        }
        let keeper = Keeper::open(Arc::clone(&floor.store), floor.clock, config.peer_timeout, bounds)?;
        let context = ListenerContext {
            executor: Arc::clone(&floor.executor),
            limiter: Arc::clone(&floor.limiter),
            budget: Arc::clone(&floor.budget),
            identity: floor.identity.clone(),
            plain_from_afar: floor.plain_from_afar,
        };
        let shared = Arc::new(Shared {
            config,
            floor,
            keeper,
            holders: Mutex::default(),
            next_conn: AtomicU64::new(1),
            counters: Counters::default(),
            latencies: Latencies::default(),
            is_closed: Mutex::new(false),
            closing: Condvar::new(),
        });
        // An account may have been made without this registry having heard of it.
        for hostname in shared.keeper.strangers() {
            if shared.floor.accounts.is_account(hostname.as_str()) {
                shared.keeper.account_created(hostname.as_str())?;
            }
        }
        let service = RegistryService(Arc::clone(&shared));
        let listener = Listener::start(socket, context, Arc::new(Messages(service)))?;
        let sweeper = threads::spawn("registry-sweep", {
            let shared = Arc::clone(&shared);
            move || shared.keep_sweeping()
        })?;
        Ok(RegistryServer { listener, shared, sweeper: Mutex::new(Some(sweeper)) })
    }

    /// Where it is.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// What it knows, for others in this process.
    pub fn view(&self) -> View {
        View::of(Arc::clone(&self.shared))
    }

    /// A user account of that name was made: a stranger who holds the hostname loses it.
    pub fn account_created(&self, hostname: &str) {
        if let Err(error) = self.shared.keeper.account_created(hostname) {
            log::error!("registry: a hostname that became an account's could not be taken: {error}");
        }
    }

    /// Every counter of the registry and of the listener beneath it, with its name.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        [self.shared.counters.list(), self.listener.counters()].concat()
    }

    /// How long requests took to be answered.
    pub fn latencies(&self) -> LatencyCounts {
        self.shared.latencies.counts()
    }

    /// How much there is now, with its name.
    pub fn sizes(&self) -> Vec<(&'static str, u64)> {
        self.shared.keeper.sizes()
    }

    /// Does what its own thread does every 30 s: hosts that were not heard for long are dropped, and when the others
    /// were last heard is written down.
    pub fn sweep(&self) {
        self.shared.sweep();
    }

    /// Takes no more work; what is in hand may be finished within `grace`. Everything is on disk then.
    pub fn stop(&self, grace: Duration) {
        // Whoever waits for a change is answered now.
        self.shared.keeper.end_waiting();
        let left = self.listener.stop(grace);
        if left > 0 {
            log::warn!("registry: {left} requests were not finished");
        }
        self.shared.close();
        let sweeper = self.sweeper.lock().take();
        let Some(sweeper) = sweeper else { return };
        // A panic of it was logged there.
        let _ = sweeper.join();
        self.shared.sweep();
        self.shared.floor.store.sync_all();
    }
}

impl Drop for RegistryServer {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl fmt::Debug for RegistryServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryServer").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// One connection's memory.
struct Caller {
    conn: ConnId,
    source: IpAddr,
    stream: Weak<TcpStream>,
    /// What its REGISTER got: the hostname and the secret.
    held: Option<(Name, Token)>,
    /// Also when its thread panics.
    _leaves: Leaves,
}

/// Why a request gets an ERROR.
#[derive(Debug)]
enum Failure {
    Refused(Refusal),
    /// A field is not what it must be; it is named.
    Bad(String),
    /// The hostname went to another connection, or to a user.
    Lost(String),
    Store(StoreError),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        Failure::Refused(refusal)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::Store(error)
    }
}

impl Failure {
    fn reason(self) -> String {
        match self {
            Failure::Refused(refusal) => refusal.to_string(),
            Failure::Bad(reason) | Failure::Lost(reason) => reason,
            Failure::Store(error) => {
                log::error!("registry: {error}");
                "UNAVAILABLE: it could not be stored or read, and nothing has changed; try again".to_owned()
            }
        }
    }
}

/// The registry as its port sees it.
struct RegistryService(Arc<Shared>);

impl MessageService for RegistryService {
    type Client = Caller;
    const NAME: &'static str = "registry";
    const FRAMING: MessageFraming = MessageFraming::JsonLines;

    fn limits(&self) -> LineLimits {
        LineLimits::new(REQUEST_MAX)
    }

    fn rejection(&self, why: Rejection) -> Option<Vec<u8>> {
        let busy = if why.is_busy() { "BUSY: " } else { "" };
        Some(wire::error(&format!("{busy}{why}")))
    }

    fn count_rejected(&self) {
        self.0.counters.refused.add(1);
    }

    fn connections_failed(&self) -> &Counter {
        &self.0.counters.connections_failed
    }

    fn connected(&self, connection: &MessageConnection) -> Caller {
        let conn = self.0.next_conn.fetch_add(1, Ordering::Relaxed);
        Caller {
            conn,
            source: connection.source().ip(),
            stream: Arc::downgrade(connection.stream()),
            held: None,
            _leaves: Leaves { shared: Arc::clone(&self.0), conn },
        }
    }

    fn message(
        &self,
        caller: &mut Caller,
        message: Vec<u8>,
        connection: &mut MessageConnection,
    ) -> Result<After, Ended> {
        let began_at = Instant::now();
        let request = requests::parse(&message);
        drop(message);
        // Who asks to be kept waiting is not answered slowly.
        let is_patient =
            matches!(&request, Ok(Request::Changes(asked)) if asked.wait.is_some_and(|wait| wait.get() > 0.0));
        self.0.answer(caller, request, &mut Output::new(connection.writer()))?;
        if !is_patient {
            self.0.latencies.took(began_at.elapsed());
        }
        Ok(After::Continue)
    }

    /// Who holds no hostname loses nothing but the connection.
    fn gives_way(&self, caller: &Caller) -> bool {
        caller.held.is_none()
    }
}

impl Shared {
    /// Answers one request.
    fn answer(&self, caller: &mut Caller, request: Result<Request, String>, out: &mut Output<'_>) -> io::Result<()> {
        self.counters.requests.add(1);
        let done = match request {
            Err(reason) => {
                self.counters.refused.add(1);
                return out.line(&wire::error(&reason));
            }
            Ok(Request::Ping(ping)) => {
                self.counters.pings.add(1);
                let is_there = self.keeper.ping(caller.conn, ping.hostname.as_str());
                is_there.map(|is_there| if is_there { wire::ALIVE } else { wire::DEAD }.to_vec()).map_err(Failure::from)
            }
            Ok(Request::Request(wanted)) => {
                return self.stream(caller, out, |out| match wanted.size {
                    Some(size) => self.alike(caller.conn, &wanted, size, out),
                    None => self.found(&wanted.fname, out),
                });
            }
            Ok(Request::Discover(whom)) => return self.stream(caller, out, |out| self.discovered(&whom.hostname, out)),
            Ok(Request::Changes(changes)) => return self.stream(caller, out, |out| self.changed(changes, out)),
            Ok(Request::List(list)) => return self.stream(caller, out, |out| self.listed(list, out)),
            Ok(Request::Register(register)) => self.register(caller, *register),
            Ok(Request::Publish(publish)) => {
                let Publish { hostname, fname, entry } = *publish;
                let done = self.keeper.change(caller.conn, |core, now, changes| {
                    core.make_room_to_publish(now, caller.conn, &hostname, &fname, STEP, changes);
                    changes.extend(core.publish(now, caller.conn, &hostname, &fname, entry)?);
                    Ok(())
                });
                done.map(|()| wire::ACK.to_vec())
            }
            Ok(Request::Unpublish(unpublish)) => {
                let done = self.keeper.change(caller.conn, |core, now, changes| {
                    changes.extend(core.unpublish(now, caller.conn, &unpublish.hostname, &unpublish.fname)?);
                    Ok(())
                });
                done.map(|()| wire::ACK.to_vec())
            }
            Ok(Request::Unregister(whom)) => {
                let done = self.keeper.change(caller.conn, |core, now, changes| {
                    changes.extend(core.unregister(now, caller.conn, &whom.hostname)?);
                    Ok(())
                });
                if done.is_ok() {
                    caller.held = None;
                    self.holders.lock().remove(&caller.conn);
                }
                done.map(|()| wire::OK.to_vec())
            }
        };
        match done {
            Ok(line) => out.line(&line),
            Err(failure) => {
                self.counters.refused.add(1);
                match &failure {
                    Failure::Refused(Refusal::Full(_)) => self.counters.refused_full.add(1),
                    Failure::Refused(Refusal::ShareFull { .. }) => self.counters.refused_share.add(1),
                    _ => {}
                }
                let failure = self.as_lost(caller, failure);
                out.line(&wire::error(&failure.reason()))
            }
        }
    }

    /// An answer that is written while it is made.
    fn stream<'o>(
        &self,
        caller: &Caller,
        out: &mut Output<'o>,
        answer: impl FnOnce(&mut Output<'o>) -> Result<(), Broken>,
    ) -> io::Result<()> {
        self.keeper.hear(caller.conn);
        match answer(out) {
            Ok(()) => Ok(()),
            Err(Broken::Io(error)) => Err(error),
            Err(Broken::Refused(failure)) => {
                self.counters.refused.add(1);
                out.line(&wire::error(&failure.reason()))
            }
        }
    }

    /// Who had a hostname and has it no more is told so.
    fn as_lost(&self, caller: &Caller, failure: Failure) -> Failure {
        match (failure, &caller.held) {
            (Failure::Refused(Refusal::NotRegistered), Some((held, _))) => {
                if self.floor.accounts.is_account(held.as_str()) {
                    Failure::Refused(Refusal::NeedsToken)
                } else {
                    Failure::Lost(format!("hostname: {held} is not this connection's any more; REGISTER again"))
                }
            }
            (failure, _) => failure,
        }
    }

    fn register(&self, caller: &mut Caller, register: Register) -> Result<Vec<u8>, Failure> {
        let hostname = register.hostname.clone();
        let standing = self.standing(&hostname, register.token.as_ref(), caller.source);
        // An account of an earlier version keeps the name that was good then.
        if standing == Standing::Free {
            text::check_visible(hostname.as_str()).map_err(|wrong| Failure::Bad(format!("hostname: {wrong}")))?;
        }
        let fresh = Token::random();
        // On the same connection the secret stays the same.
        let own = caller.held.as_ref().filter(|(held, _)| *held == hostname).map(|(_, secret)| secret);
        let shown = register.resume.as_ref().or(own);
        let claim = Claim {
            display_name: register.display_name.as_ref().unwrap_or(&hostname).as_str().into(),
            port: register.port,
            ip: register.ip,
            source: caller.source,
            standing,
            resume: shown.map(SecretKey::of),
            fresh: SecretKey::of(&fresh),
            keeps_files: register.files.is_none() && register.resume.is_some(),
            file_count: register.files.as_ref().map_or(0, published),
            ip_is_here: caller.source.is_loopback() && register.ip.is_some_and(is_this_host),
            hostname,
        };
        let granted = self.keeper.register(caller.conn, &claim, &register.files.unwrap_or_default())?;
        if let Some(replaced) = granted.replaced {
            self.counters.replaced.add(1);
            self.close_holder(replaced);
        }
        self.holders.lock().insert(caller.conn, caller.stream.clone());
        let secret = if granted.resumed { shown.cloned().unwrap_or(fresh) } else { fresh };
        caller.held = Some((claim.hostname.clone(), secret.clone()));
        // The account may have been made while this was under way.
        if claim.standing == Standing::Free && self.floor.accounts.is_account(claim.hostname.as_str()) {
            self.keeper.account_created(claim.hostname.as_str())?;
            return Err(Refusal::NeedsToken.into());
        }
        self.counters.registered.add(1);
        Ok(wire::registered(&secret, granted.ip))
    }

    fn standing(&self, hostname: &Name, token: Option<&Token>, source: IpAddr) -> Standing {
        let accounts = &self.floor.accounts;
        if !accounts.is_account(hostname.as_str()) {
            return Standing::Free;
        }
        let owner = token.and_then(|token| accounts.owner_of(token.reveal()));
        Standing::Account(if owner.and_then(|owner| Name::kept(&owner).ok()).is_some_and(|owner| owner == *hostname) {
            Proof::Token
        } else if self.config.auth == AuthMode::Address && accounts.signed_in_from(hostname.as_str(), source) {
            Proof::Address
        } else {
            Proof::None
        })
    }

    fn close_holder(&self, conn: ConnId) {
        let stream = self.holders.lock().remove(&conn).and_then(|stream| stream.upgrade());
        if let Some(stream) = stream
            && let Err(error) = stream.shutdown(std::net::Shutdown::Both)
        {
            // It has ended by itself meanwhile.
            log::debug!("registry: closing a connection that was replaced: {error}");
        }
    }

    /// Gives others the time to change something as well, or the registry to end: each that follows is answered a few
    /// times a second at most, however much changes.
    fn gather(&self) {
        self.closing.wait_for(&mut self.is_closed.lock(), GATHERED_FOR);
    }

    fn keep_sweeping(&self) {
        let mut is_closed = self.is_closed.lock();
        while !*is_closed {
            if self.closing.wait_for(&mut is_closed, SWEEP_EVERY).timed_out() {
                MutexGuard::unlocked(&mut is_closed, || self.sweep());
            }
        }
    }

    fn sweep(&self) {
        if let Err(error) = self.keeper.sweep() {
            log::error!("registry: what a sweep has found could not be stored: {error}");
        }
    }

    fn close(&self) {
        *self.is_closed.lock() = true;
        self.closing.notify_all();
    }
}

/// Whether an address is of the host on which this runs.
fn is_this_host(ip: IpAddr) -> bool {
    interfaces::is_own(ip).unwrap_or_else(|error| {
        log::warn!("registry: this host's addresses cannot be read: {error}");
        false
    })
}

/// How many of a list are published.
fn published(files: &Files) -> usize {
    files.values().filter(|file| file.is_published).count()
}

/// A connection's end, as the registry sees it.
struct Leaves {
    shared: Arc<Shared>,
    conn: ConnId,
}

impl Drop for Leaves {
    fn drop(&mut self) {
        self.shared.keeper.closed(self.conn);
        self.shared.holders.lock().remove(&self.conn);
    }
}
