//! The library of a program that trades: requests that are repeated until they are answered, pushes
//! that are handed on and acknowledged, settlements that the server connects to us for.
//!
//! It knows nothing of items and deals: a [`Handler`] decides what to do with a push and what to say in
//! a settlement. Three threads of its own (receive, repeat, accept) and at most [`SETTLEMENTS_MAX`]
//! more while settlements last, with some to spare for those that only pretend to be the server.

pub mod messages;
mod settle;
#[cfg(test)]
pub(crate) mod tests;
mod unproven;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::model::{Cents, Name, Token};
use crate::net::budget::{Budget, RECEIVED_MAX};
use crate::net::counters::Counter;
use crate::net::listener::{self, Accepted, Busy, ConnectionLimiter, Listener, ListenerContext, Protocol};
use crate::net::threads::{self, Executor};
use crate::trade::wire::{Amount, Ask, Code, DATAGRAM_MAX, Inform, Push, Reach};
use messages::{Answer, FromServer, encode_ack, encode_request, type_of};
use unproven::Unproven;

/// Settlements at once; the server has as many.
pub const SETTLEMENTS_MAX: usize = 256;
/// Requests that wait for their answers at once.
pub const REQUESTS_MAX: usize = 4_096;
/// The least port that the server takes: no service of a machine listens there.
const PORT_MIN: u16 = 1024;
/// How often the receiving thread looks whether it is to end.
const LOOK_UP_EVERY: Duration = Duration::from_millis(200);
/// Datagrams of one request, the last of them a second and a half after the first, after which a server that has not
/// answered is told to be silent.
const SILENT_AFTER: usize = 3;
/// DE-REGISTER is answered when the settlements under way are over.
const FAREWELL_PATIENCE: Duration = Duration::from_secs(60);

/// Where a client is and how patient it is.
#[derive(Debug, Clone)]
pub struct Config {
    /// Who we are.
    pub name: Name,
    /// The server's trade port.
    pub server: SocketAddr,
    /// Where we listen, and what the server is told. Unspecified (0.0.0.0): whatever address leads to it.
    pub bind: IpAddr,
    /// For datagrams; 0 is any free one.
    pub udp_port: u16,
    /// For settlements; 0 is any free one.
    pub tcp_port: u16,
    /// The pauses after each sending of a request; the last one ends in an error.
    pub pauses: Vec<Duration>,
    /// How long each step of a settlement may take, connecting and the TLS handshake included.
    pub settle_timeout: Duration,
}

impl Config {
    /// Any free ports on loopback, five sendings in eleven and a half seconds.
    pub fn new(name: Name, server: SocketAddr) -> Config {
        Config {
            name,
            server,
            bind: IpAddr::from([127, 0, 0, 1]),
            udp_port: 0,
            tcp_port: 0,
            pauses: [500, 1000, 2000, 4000, 4000].map(Duration::from_millis).to_vec(),
            settle_timeout: Duration::from_secs(10),
        }
    }
}

/// Why a client cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A port that was asked for is taken.
    #[error("port {port} ({what}) is in use: choose another one, or 0 for any free one")]
    InUse {
        /// `UDP` or `TCP`.
        what: &'static str,
        /// The port.
        port: u16,
    },
    /// What the system said.
    #[error("cannot {doing}: {error}")]
    Io {
        /// What was tried.
        doing: String,
        /// The system's error.
        error: io::Error,
    },
    /// Loopback cannot reach another host.
    #[error("{bind} cannot reach the server at {server}: listen on an address of this host's network (--bind IP)")]
    Unreachable {
        /// Where we were to listen.
        bind: IpAddr,
        /// The server.
        server: SocketAddr,
    },
}

/// Why a request has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    /// Sent again and again, in vain.
    #[error(
        "no answer from the server at {server} to {kind} ({sent} datagrams in {} s): is it running there?",
        waited.as_secs_f64()
    )]
    Unanswered {
        /// The server.
        server: SocketAddr,
        /// What was asked.
        kind: &'static str,
        /// How often.
        sent: usize,
        /// How long.
        waited: Duration,
    },
    /// Another request with the same number took its place.
    #[error("a later request took its place")]
    Superseded,
    /// Too many requests wait for their answers.
    #[error("{REQUESTS_MAX} requests wait for their answers already")]
    Busy,
    /// The server is not trusted: see [`Security::Refused`].
    #[error("{0}")]
    Untrusted(Arc<str>),
    /// Longer than a datagram may be.
    #[error("the request is longer than {DATAGRAM_MAX} bytes")]
    TooLong,
    /// The client was closed.
    #[error("the peer is closed")]
    Closed,
}

/// How settlement is secured; told by the server's answer to REGISTER or LOGIN, and judged by whoever
/// uses the client (SPEC section 3: the first fingerprint of a server is kept).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Security {
    /// Not agreed yet: settlements are refused.
    Unknown,
    /// TLS, and the server must present the certificate of this fingerprint (64 hex digits).
    Pinned(Arc<str>),
    /// No TLS; both sides said so.
    Plaintext,
    /// For this reason the server is not taken for the one it was: its pushes are not heard, its
    /// settlements refused, and nothing is asked of it but to be let in (or out).
    Refused(Arc<str>),
}

/// What SHIPPING_INFO says.
#[derive(Debug, Clone)]
pub struct Shipping {
    /// The number of our side.
    pub rq: u64,
    /// Whom the goods go to.
    pub name: Name,
    /// Where to. Never log it.
    pub address: String,
    /// What the buyer pays.
    pub price: Cents,
    /// What the server keeps.
    pub fee: Amount,
    /// What we get.
    pub payout: Amount,
}

/// What a program does with what the server says. Called on the client's threads.
pub trait Handler: Send + Sync + 'static {
    /// A push has come (perhaps again). Must not wait: it holds up every other datagram. Acknowledge it
    /// with [`Client::ack`] once it cannot be lost any more.
    fn push(&self, push: Push);

    /// INFORM_REQ: who we are and what we pay with; may wait until `deadline` for what UDP still owes.
    ///
    /// # Errors
    /// Why nothing is said: the connection is closed.
    fn inform(&self, rq: u64, item_name: &str, price: Cents, deadline: Instant) -> Result<Inform, String>;

    /// SHIPPING_INFO: `Ok` says SHIPPED, and must have been stored before.
    ///
    /// # Errors
    /// Why nothing is shipped: the connection is closed.
    fn ship(&self, shipping: &Shipping) -> Result<(), String>;

    /// SETTLED: we are paid, the goods are sent.
    fn settled(&self, rq: u64, payout: Amount);

    /// RECEIPT: we have paid.
    fn receipt(&self, rq: u64, item_name: Arc<str>, price: Cents, seller: Name);

    /// CANCEL: nothing is charged.
    fn cancelled(&self, rq: u64, reason: Arc<str>);

    /// The line ended before the settlement did, for this reason; STATUS tells how it went on.
    fn broke(&self, rq: u64, why: &str);

    /// A settlement did not even begin, for this reason.
    fn refused(&self, why: &str);

    /// The server has not answered for a moment, though it was asked several times; it is asked again. Told once
    /// until it is heard again. `is_closed`: its host says that nothing listens at that port.
    fn silent(&self, is_closed: bool) {
        let _ = is_closed;
    }
}

/// What a client did so far.
#[derive(Debug, Default)]
pub struct Counters {
    /// Datagrams sent, repeats included.
    pub sent: Counter,
    /// Of those, repeats.
    pub repeated: Counter,
    /// Datagrams of the server.
    pub received: Counter,
    /// Of those, unreadable or answers that nobody waits for.
    pub ignored: Counter,
    /// Connections from elsewhere than the server.
    pub strangers: Counter,
    /// Connections cut off because newer ones came before they had said anything.
    pub pushed_out: Counter,
}

type Done = Box<dyn FnOnce(Result<Answer, ClientError>) + Send>;

/// Where the server connects to, to settle.
struct SettlingPort {
    shared: Arc<Shared>,
    handler: Arc<dyn Handler>,
}

impl Protocol for SettlingPort {
    /// Who finds no room is closed without a word: the server tries no second time.
    fn busy(&self) -> Busy {
        Vec::new().into()
    }

    fn serve(&self, accepted: Accepted) {
        // The room has a rule of its own for those who say nothing: `unproven`.
        let (stream, source, mut permit) = accepted.into_parts();
        if permit.request_completed() {
            self.shared.settle(stream, source, &*self.handler);
        }
    }
}

/// A running client. Closed when dropped; share it in an `Arc`.
pub struct Client {
    shared: Arc<Shared>,
    reach: Reach,
    tcp: Listener,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    config: Config,
    /// Connected: the system lets through what comes from the server's address alone.
    udp: UdpSocket,
    token: Mutex<Option<Token>>,
    security: Mutex<Security>,
    waiting: Mutex<HashMap<u64, Waiting>>,
    /// Told when a request was added, or at the end.
    changed: Condvar,
    closed: AtomicBool,
    /// The server is silent, and that was told.
    is_silent: AtomicBool,
    /// The last word from there was that its port is closed.
    is_port_closed: AtomicBool,
    unproven: Arc<Unproven>,
    counters: Counters,
}

struct Waiting {
    ask: Ask,
    datagram: Vec<u8>,
    sent: usize,
    begun_at: Instant,
    next_at: Instant,
    /// "Could not be stored, try again": told only if trying again does not help either.
    unavailable: Option<Answer>,
    done: Done,
}

impl Client {
    /// Binds the sockets and begins to listen. `handler` hears of everything that the server says of
    /// its own accord.
    ///
    /// # Errors
    /// A port that is taken, or what the system says.
    pub fn open(config: Config, handler: Arc<dyn Handler>) -> Result<Client, OpenError> {
        let Config { server, .. } = config;
        if config.bind.is_loopback() && !server.ip().is_loopback() {
            return Err(OpenError::Unreachable { bind: config.bind, server });
        }
        let udp = bind_udp(&config)?;
        let failed = |doing: &str| {
            let doing = doing.to_owned();
            move |error| OpenError::Io { doing, error }
        };
        udp.connect(server).map_err(failed(&format!("reach the server at {server}")))?;
        udp.set_read_timeout(Some(LOOK_UP_EVERY)).map_err(failed("set a timeout"))?;
        let here = udp.local_addr().map_err(failed("read the socket's address"))?;
        let listener = bind_tcp(SocketAddr::new(here.ip(), config.tcp_port))?;
        let tcp_port = listener.local_addr().map_err(failed("read the socket's address"))?.port();
        let ip = here.ip().to_canonical();
        let reach = Reach { ip, udp_port: u32::from(here.port()), tcp_port: u32::from(tcp_port) };
        let shared = Arc::new(Shared {
            config,
            udp,
            token: Mutex::new(None),
            security: Mutex::new(Security::Unknown),
            waiting: Mutex::default(),
            changed: Condvar::new(),
            closed: AtomicBool::new(false),
            is_silent: AtomicBool::new(false),
            is_port_closed: AtomicBool::new(false),
            unproven: Arc::default(),
            counters: Counters::default(),
        });
        let connections_max = SETTLEMENTS_MAX + unproven::TO_SPARE;
        let context = ListenerContext {
            executor: Executor::new("settle", connections_max),
            limiter: ConnectionLimiter::new(connections_max),
            budget: Budget::new(RECEIVED_MAX),
            identity: None,
            plain_from_afar: true,
        };
        let settling = Arc::new(SettlingPort { shared: Arc::clone(&shared), handler: Arc::clone(&handler) });
        let tcp = Listener::start(listener, context, settling).map_err(failed("listen"))?;
        let listener_of_silence = Arc::clone(&handler);
        let receive = {
            let shared = Arc::clone(&shared);
            threads::spawn("trade-receive", move || shared.receive(&*handler)).map_err(failed("start a thread"))?
        };
        let client = Client { shared, reach, tcp, threads: Mutex::new(vec![receive]) };
        let repeat = {
            let shared = Arc::clone(&client.shared);
            threads::spawn("trade-repeat", move || shared.repeat(&*listener_of_silence))
                .map_err(failed("start a thread"))?
        };
        client.threads.lock().push(repeat);
        Ok(client)
    }

    /// Where the server is to reach us: what REGISTER and LOGIN say.
    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// The server's address.
    pub fn server(&self) -> SocketAddr {
        self.shared.config.server
    }

    /// Who we are.
    pub fn name(&self) -> &Name {
        &self.shared.config.name
    }

    /// The token that every request bears from now on.
    pub fn set_token(&self, token: Option<Token>) {
        *self.shared.token.lock() = token;
    }

    /// How settlements are secured from now on.
    pub fn set_security(&self, security: Security) {
        *self.shared.security.lock() = security;
    }

    /// Whether requests are sent at all: not to a server that is not trusted.
    ///
    /// # Errors
    /// Why it is not.
    pub fn check_trust(&self) -> Result<(), ClientError> {
        self.shared.untrusted().map_or(Ok(()), |why| Err(ClientError::Untrusted(why)))
    }

    /// What was counted so far.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Sends a request and waits for its answer, repeating it with the same content. An `ERROR` is an
    /// answer. `rq` must be the deal's number, or one that was never used.
    ///
    /// # Errors
    /// Why there is no answer.
    pub fn call(&self, rq: u64, ask: Ask) -> Result<Answer, ClientError> {
        let (done, answer) = crossbeam_channel::bounded(1);
        // The receiver may only be gone if this call is, which nobody misses.
        self.post(rq, ask, move |result| drop(done.send(result)));
        answer.recv().unwrap_or(Err(ClientError::Closed))
    }

    /// Sends a request; `done` is called once, on a thread of the client, and must not wait. Takes the
    /// place of an earlier request with the same number.
    pub fn post(&self, rq: u64, ask: Ask, done: impl FnOnce(Result<Answer, ClientError>) + Send + 'static) {
        let shared = &self.shared;
        let datagram = {
            let token = shared.token.lock();
            // A REGISTER with a token that the server has forgotten is still a good one.
            encode_request(rq, &shared.config.name, token.as_ref(), &ask)
        };
        if datagram.len() > DATAGRAM_MAX {
            return done(Err(ClientError::TooLong));
        }
        if let Some(why) = shared.untrusted()
            && !matches!(ask, Ask::Register(_) | Ask::Login(_) | Ask::DeRegister)
        {
            return done(Err(ClientError::Untrusted(why)));
        }
        let now = Instant::now();
        let next_at = now + shared.config.pauses.first().copied().unwrap_or_default();
        let waiting = Waiting {
            ask,
            datagram: datagram.clone(),
            sent: 1,
            begun_at: now,
            next_at,
            unavailable: None,
            done: Box::new(done),
        };
        let refused = {
            let mut all = shared.waiting.lock();
            if shared.closed.load(SeqCst) {
                Some((waiting.done, ClientError::Closed))
            } else if all.len() >= REQUESTS_MAX && !all.contains_key(&rq) {
                Some((waiting.done, ClientError::Busy))
            } else {
                all.insert(rq, waiting).map(|earlier| (earlier.done, ClientError::Superseded))
            }
        };
        if let Some((done, error)) = refused {
            let goes_on = matches!(error, ClientError::Superseded);
            done(Err(error));
            if !goes_on {
                return;
            }
        }
        shared.changed.notify_one();
        shared.send(&datagram);
    }

    /// Tells the server that a push has arrived and needs no repeating.
    pub fn ack(&self, mid: u64) {
        let datagram = encode_ack(mid, self.shared.token.lock().as_ref());
        self.shared.send(&datagram);
    }

    /// Ends every thread; requests that wait are told so. Settlements under way get a moment.
    pub fn close(&self) {
        {
            let _order = self.shared.waiting.lock();
            self.shared.closed.store(true, SeqCst);
        }
        self.shared.changed.notify_all();
        self.tcp.stop(Duration::from_secs(1));
        for thread in std::mem::take(&mut *self.threads.lock()) {
            // An Err would be a panic, which `threads::spawn` has caught and logged.
            let _ = thread.join();
        }
        let waiting: Vec<Waiting> = self.shared.waiting.lock().drain().map(|(_, waiting)| waiting).collect();
        for waiting in waiting {
            (waiting.done)(Err(ClientError::Closed));
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    /// Why the server is not trusted, if it is not.
    fn untrusted(&self) -> Option<Arc<str>> {
        match &*self.security.lock() {
            Security::Refused(why) => Some(Arc::clone(why)),
            _ => None,
        }
    }

    fn send(&self, datagram: &[u8]) {
        self.counters.sent.add(1);
        // A lost datagram is what the repeats are for; so is a server that is just being restarted
        // (the system then reports its port as closed).
        if let Err(error) = self.udp.send(datagram) {
            log::debug!("a datagram to {} was not sent: {error}", self.config.server);
        }
    }

    fn receive(&self, handler: &dyn Handler) {
        let mut buffer = [0; DATAGRAM_MAX + 1];
        while !self.closed.load(SeqCst) {
            let len = match self.udp.recv(&mut buffer) {
                Ok(len) => len,
                Err(error) => {
                    if error.kind() == io::ErrorKind::ConnectionRefused {
                        self.is_port_closed.store(true, SeqCst);
                    }
                    let idle = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                    if !idle && error.kind() != io::ErrorKind::Interrupted {
                        // A closed port at the other end, or a network that is gone: it may come back.
                        log::debug!("receiving from {}: {error}", self.config.server);
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    continue;
                }
            };
            self.counters.received.add(1);
            for told in [&self.is_silent, &self.is_port_closed] {
                told.store(false, SeqCst);
            }
            match messages::read(&buffer[..len]) {
                Ok(FromServer::Push(push)) if self.untrusted().is_none() => handler.push(push),
                Ok(FromServer::Push(_)) => self.counters.ignored.add(1),
                Ok(FromServer::Answer(answer)) => self.answered(answer),
                Err(wrong) => {
                    self.counters.ignored.add(1);
                    log::warn!("a datagram of the server at {} was ignored: {wrong}", self.config.server);
                }
            }
        }
    }

    fn answered(&self, answer: Answer) {
        let mut all = self.waiting.lock();
        let rq = answer.rq();
        let Some(waiting) = rq.and_then(|rq| all.get_mut(&rq)).filter(|waiting| answer.fits(&waiting.ask)) else {
            drop(all);
            self.counters.ignored.add(1);
            if let Answer::Error { rq: None, code, reason } = answer {
                log::warn!("the server at {} says {code:?}: {reason}", self.config.server);
            }
            return;
        };
        if matches!(answer, Answer::Error { code: Code::Unavailable, .. }) {
            waiting.unavailable = Some(answer);
            return;
        }
        let done = rq.and_then(|rq| all.remove(&rq)).map(|waiting| waiting.done);
        drop(all);
        if let Some(done) = done {
            done(Ok(answer));
        }
    }

    /// Sends again what is due, until the last pause of each request is over.
    fn repeat(&self, handler: &dyn Handler) {
        let mut all = self.waiting.lock();
        while !self.closed.load(SeqCst) {
            let now = Instant::now();
            let due: Vec<u64> = all.iter().filter(|(_, it)| it.next_at <= now).map(|(rq, _)| *rq).collect();
            let mut resend = Vec::new();
            let mut is_silent = false;
            let mut given_up = Vec::new();
            for rq in due {
                let Some(waiting) = all.get_mut(&rq) else { continue };
                if let Some(pause) = self.pause_after(waiting, now) {
                    waiting.sent += 1;
                    is_silent |= waiting.sent == SILENT_AFTER;
                    waiting.next_at = now + pause;
                    resend.push(waiting.datagram.clone());
                } else if let Some(waiting) = all.remove(&rq) {
                    given_up.push(waiting);
                }
            }
            if resend.is_empty() && given_up.is_empty() {
                match all.values().map(|waiting| waiting.next_at).min() {
                    // Whether it was told or has waited long enough, it looks again.
                    Some(next_at) => drop(self.changed.wait_until(&mut all, next_at)),
                    None => self.changed.wait(&mut all),
                }
                continue;
            }
            drop(all);
            if is_silent && !self.is_silent.swap(true, SeqCst) {
                handler.silent(self.is_port_closed.load(SeqCst));
            }
            for datagram in resend {
                self.counters.repeated.add(1);
                self.send(&datagram);
            }
            for Waiting { ask, sent, begun_at, unavailable, done, .. } in given_up {
                let (server, kind, waited) = (self.config.server, type_of(&ask), begun_at.elapsed());
                let waited = Duration::from_millis(waited.as_millis() as u64);
                done(unavailable.ok_or(ClientError::Unanswered { server, kind, sent, waited }));
            }
            all = self.waiting.lock();
        }
    }

    /// How long to wait after one more sending; nothing when it was the last.
    fn pause_after(&self, waiting: &Waiting, now: Instant) -> Option<Duration> {
        let pauses = &self.config.pauses;
        pauses.get(waiting.sent).copied().or_else(|| {
            let patient = matches!(waiting.ask, Ask::DeRegister) && now - waiting.begun_at < FAREWELL_PATIENCE;
            pauses.last().copied().filter(|_| patient)
        })
    }
}

fn bind_udp(config: &Config) -> Result<UdpSocket, OpenError> {
    any_high_port(config.udp_port, || match UdpSocket::bind((config.bind, config.udp_port)) {
        Ok(socket) => Ok((socket.local_addr().map(|address| address.port()), socket)),
        Err(error) => Err(error),
    })
    .map_err(|error| bind_error("UDP", config.udp_port, config.bind, error))
}

fn bind_tcp(address: SocketAddr) -> Result<std::net::TcpListener, OpenError> {
    any_high_port(address.port(), || match listener::listen(address) {
        Ok(listener) => Ok((listener.local_addr().map(|address| address.port()), listener)),
        Err(error) => Err(error),
    })
    .map_err(|error| bind_error("TCP", address.port(), address.ip(), error))
}

/// Any free port is tried again as long as the system gives one that the server does not take.
fn any_high_port<S>(asked: u16, bind: impl Fn() -> io::Result<(io::Result<u16>, S)>) -> io::Result<S> {
    let mut too_low = Vec::new();
    for _ in 0..64 {
        let (port, socket) = bind()?;
        if asked != 0 || port? >= PORT_MIN {
            return Ok(socket);
        }
        // Kept, so that it is not given again.
        too_low.push(socket);
    }
    Err(io::Error::other(format!("the system gives no port from {PORT_MIN} on")))
}

fn bind_error(what: &'static str, port: u16, bind: IpAddr, error: io::Error) -> OpenError {
    if error.kind() == io::ErrorKind::AddrInUse {
        return OpenError::InUse { what, port };
    }
    OpenError::Io { doing: format!("listen on {bind}, {what} port {port}"), error }
}
