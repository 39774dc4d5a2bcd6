//! A peer that runs: two threads read its sockets, one owns the [`Node`] and makes real what that wants.
//!
//! One thread owns the node, so nothing is locked while it writes to disk or sends: what is to be kept is
//! synced before anything behind it in the same list goes out, and before the next event is looked at. What
//! comes in waits in a bounded queue; what is to be seen goes into another, so that a terminal that is
//! paused holds nobody up.

use std::fmt;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use parking_lot::Mutex;
use ring::rand::{SecureRandom, SystemRandom};

use super::history::{self, Confirmation, Direction, History, HistoryError, OwnProfile};
use super::node::{Command, CommandError, Counters, Done, Effect, Entry, Event, Kind, Known, Node, Settings, Shown};
use super::sockets::{Config as SocketConfig, Door, Heard, LanSockets, OpenError, Port};
use super::wire::{self, Message, Profile, Refused};
use super::{node, text_of};
use crate::model::secret::random_hex;
use crate::model::{Clock, Millis, Name};
use crate::net::counters::{Counter, Seldom};
use crate::net::interfaces::Interface;
use crate::net::threads;
use crate::storage::StoreError;

/// Datagrams and commands that wait for the node.
const WAITING_MAX: usize = 1_024;
/// What was not shown yet. More is counted, and stays in the history.
const UNSEEN_MAX: usize = 1_024;
/// How often the addresses of this host are looked at: cables are pulled, and networks are joined.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long before a start a message may have come whose repeats are known again.
const REMEMBERED: Duration = Duration::from_secs(60 * 60);

/// How a peer is started.
#[derive(Debug, Clone)]
pub struct Config {
    /// Whose it is.
    pub name: Name,
    /// A person, a server, or one who only asks.
    pub kind: Kind,
    /// 0.0.0.0 for every interface; 127.0.0.1: nothing leaves this host.
    pub bind: std::net::Ipv4Addr,
    /// Of its own socket; none: the last one, or any free one of 8000 to 9999.
    pub port: Option<u16>,
    /// Where everybody hears announcements.
    pub discovery_port: u16,
    /// How often it announces itself.
    pub announce_every: Duration,
    /// How long a peer that is not heard is remembered.
    pub forget_after: Duration,
    /// Those whom broadcast cannot reach.
    pub reach: Vec<SocketAddr>,
    /// Where messages are kept; without it, nowhere.
    pub data_dir: Option<PathBuf>,
}

/// Why a peer cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its data dir.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// Its sockets.
    #[error(transparent)]
    Sockets(#[from] OpenError),
    /// Nobody could read what bears its name.
    #[error("name: {0}")]
    Name(String),
    /// One whom broadcast cannot reach cannot be reached at all.
    #[error(transparent)]
    Reach(#[from] CommandError),
    /// The system gave no thread, or does not tell the host's addresses.
    #[error("cannot start")]
    System(#[from] io::Error),
}

impl From<StoreError> for StartError {
    fn from(error: StoreError) -> StartError {
        StartError::History(error.into())
    }
}

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub enum LanError {
    /// It is refused; nothing happened.
    #[error(transparent)]
    Refused(#[from] CommandError),
    /// The message could not be kept, so it was not sent.
    #[error("not kept, and so not sent: {0}")]
    NotKept(#[from] StoreError),
    /// It is larger than a datagram, or not as a message must be.
    #[error(transparent)]
    Unwritable(#[from] Refused),
    /// The peer has ended.
    #[error("the peer has ended")]
    Ended,
}

/// A peer that takes part. Dropping it ends it.
pub struct LanPeer {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    sockets: LanSockets,
    history: Option<History>,
    inputs: Sender<Input>,
    shown: Receiver<Shown>,
    counters: PeerCounters,
}

/// What the node does not count.
#[derive(Debug, Default)]
pub struct PeerCounters {
    /// Datagrams that found the queue full.
    pub overrun: Counter,
    /// What was to be seen while too much had not been.
    pub unseen: Counter,
    /// Datagrams that did not leave.
    pub not_sent: Counter,
    /// Messages that could not be kept.
    pub not_kept: Counter,
}

impl PeerCounters {
    /// Every counter with its name.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("overrun", self.overrun.get()),
            ("unseen", self.unseen.get()),
            ("not_sent", self.not_sent.get()),
            ("not_kept", self.not_kept.get()),
        ]
    }
}

/// What the node's thread is told.
enum Input {
    Event(Event),
    Command(Command, Sender<Result<Done, LanError>>),
    Look(Sender<View>),
    Stop,
}

/// What a peer knows at an instant.
#[derive(Debug, Clone)]
pub struct View {
    /// What it goes by.
    pub name: Name,
    /// Everyone it knows, servers too.
    pub peers: Vec<Known>,
    /// What its node has counted.
    pub counters: Counters,
    /// When.
    pub at: Millis,
    /// DMs of one's own that may still be confirmed.
    pub waiting: usize,
    /// The addresses of this host.
    pub interfaces: Vec<Interface>,
}

impl LanPeer {
    /// Binds the sockets, opens the data dir, and announces itself.
    ///
    /// # Errors
    /// [`StartError`]: one line that says what to do.
    pub fn start(config: Config) -> Result<LanPeer, StartError> {
        wire::check_name(config.name.as_str()).map_err(StartError::Name)?;
        let history = config.data_dir.as_deref().map(|dir| History::open(dir, &config.name)).transpose()?;
        let last = history.as_ref().map(History::port).transpose()?.flatten();
        let port = config.port.map_or(Port::Free { last }, Port::Asked);
        let at = SocketConfig { bind: config.bind, port, discovery_port: config.discovery_port };
        let sockets = LanSockets::open(at)?;
        let own_port = sockets.own_addr().port();
        if let Some(history) = &history
            && last != Some(own_port)
        {
            history.set_port(own_port)?;
        }
        let settings = Settings {
            name: config.name,
            instance: random_hex::<8>(),
            kind: config.kind,
            port: own_port,
            discovery_port: config.discovery_port,
            announce_every: config.announce_every,
            forget_after: config.forget_after,
        };
        let node = Node::new(settings);
        let clock = Clock::start();
        let since = Millis(clock.now().0.saturating_sub(REMEMBERED.as_millis() as u64));
        let before = history.as_ref().map(|history| history.received_since(since)).transpose()?.unwrap_or_default();
        let (inputs, waiting) = bounded(WAITING_MAX);
        let (seen, shown) = bounded(UNSEEN_MAX);
        let shared = Arc::new(Shared { sockets, history, inputs, shown, counters: PeerCounters::default() });
        let mut driver = Driver {
            shared: Arc::clone(&shared),
            node,
            clock,
            random: SystemRandom::new(),
            interfaces: Vec::new(),
            looked_at: None,
            seen,
            complaints: Seldom::minutely(),
        };
        // A mistake in whom to reach is told at once, to whoever made it.
        driver.look_around();
        before.into_iter().for_each(|entry| driver.node.remember(&received(entry)));
        for addr in config.reach {
            driver.node.command(driver.clock.now(), Command::AddPeer(addr), &mut || random_u64(&driver.random))?;
        }
        let peer = LanPeer { shared: Arc::clone(&shared), threads: Mutex::default() };
        for door in [Door::Own, Door::Discovery] {
            let shared = Arc::clone(&shared);
            let name = if door == Door::Own { "lan-own" } else { "lan-discovery" };
            peer.threads.lock().push(threads::spawn(name, move || shared.read(door))?);
        }
        peer.threads.lock().push(threads::spawn("lan-node", move || driver.run(&waiting))?);
        Ok(peer)
    }

    /// Does what a person wants; what is to be kept of it is on disk, and what is to be sent on its way.
    ///
    /// # Errors
    /// [`LanError`]: nothing was sent.
    pub fn command(&self, command: Command) -> Result<Done, LanError> {
        let (reply, answer) = bounded(1);
        self.shared.inputs.send(Input::Command(command, reply)).map_err(|_| LanError::Ended)?;
        answer.recv().map_err(|_| LanError::Ended)?
    }

    /// What it knows now.
    ///
    /// # Errors
    /// It has ended.
    pub fn look(&self) -> Result<View, LanError> {
        let (reply, answer) = bounded(1);
        self.shared.inputs.send(Input::Look(reply)).map_err(|_| LanError::Ended)?;
        answer.recv().map_err(|_| LanError::Ended)
    }

    /// What is to be seen, in its order; ends when the peer does.
    pub fn shown(&self) -> Receiver<Shown> {
        self.shared.shown.clone()
    }

    /// What was kept; none without a data dir.
    pub fn history(&self) -> Option<&History> {
        self.shared.history.as_ref()
    }

    /// Where it is spoken to.
    pub fn own_addr(&self) -> SocketAddrV4 {
        self.shared.sockets.own_addr()
    }

    /// Where it hears announcements.
    pub fn discovery_addr(&self) -> SocketAddrV4 {
        self.shared.sockets.discovery_addr()
    }

    /// What its node does not count, of its sockets too, with names.
    pub fn counters(&self) -> Vec<(String, u64)> {
        let of = |prefix: &str, list: Vec<(&'static str, u64)>| {
            list.into_iter().map(|(name, count)| (format!("{prefix}{name}"), count)).collect::<Vec<_>>()
        };
        let sockets = &self.shared.sockets;
        [
            of("", self.shared.counters.list()),
            of("own_", sockets.counters(Door::Own).list()),
            of("discovery_", sockets.counters(Door::Discovery).list()),
        ]
        .concat()
    }

    /// Ends it: what was handed over is on disk when this returns.
    pub fn stop(&self) {
        self.shared.sockets.stop();
        // It may have ended already.
        let _ = self.shared.inputs.send(Input::Stop);
        for thread in self.threads.lock().drain(..) {
            // An Err would be a panic, which `threads::spawn` has caught and logged.
            let _ = thread.join();
        }
        if let Some(history) = &self.shared.history {
            history.sync_all();
        }
    }
}

impl Drop for LanPeer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for LanPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LanPeer").field("own_addr", &self.own_addr()).finish_non_exhaustive()
    }
}

impl Shared {
    fn read(&self, door: Door) {
        self.sockets.read(door, |heard| {
            let event = match heard {
                Heard::Datagram { source, bytes } => {
                    let door = match door {
                        Door::Own => node::Door::Own,
                        Door::Discovery => node::Door::Discovery,
                    };
                    Event::Datagram { from: source, door, message: wire::read(bytes), bytes: bytes.len() }
                }
                Heard::Refused { to } => Event::SendRefused { to },
            };
            match self.inputs.try_send(Input::Event(event)) {
                Ok(()) | Err(TrySendError::Disconnected(_)) => {}
                Err(TrySendError::Full(_)) => self.counters.overrun.add(1),
            }
        });
    }
}

/// The thread that owns the node.
struct Driver {
    shared: Arc<Shared>,
    node: Node,
    clock: Clock,
    random: SystemRandom,
    interfaces: Vec<Interface>,
    looked_at: Option<Instant>,
    seen: Sender<Shown>,
    complaints: Seldom,
}

impl Driver {
    fn run(mut self, waiting: &Receiver<Input>) {
        self.tell(Event::Started);
        loop {
            let now = self.clock.now();
            let due = self.node.next_deadline().map_or(LOOK_EVERY, |at| now.until(at)).min(LOOK_EVERY);
            match waiting.recv_timeout(due) {
                Ok(Input::Event(event)) => self.tell(event),
                Ok(Input::Command(command, reply)) => {
                    let done = self.command(command);
                    // Whoever asked may have gone.
                    let _ = reply.send(done);
                }
                Ok(Input::Look(reply)) => {
                    let view = View {
                        name: self.node.name().clone(),
                        peers: self.node.peers(),
                        counters: self.node.counters().clone(),
                        at: self.clock.now(),
                        waiting: self.node.sizes().waiting,
                        interfaces: self.interfaces.clone(),
                    };
                    let _ = reply.send(view);
                }
                Ok(Input::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.look_around();
            // Also under a flood that never lets the queue run empty.
            if self.node.next_deadline().is_some_and(|at| at <= self.clock.now()) {
                self.tell(Event::Tick);
            }
        }
    }

    /// Tells the node the host's addresses, if they are others than before.
    fn look_around(&mut self) {
        if self.looked_at.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return;
        }
        self.looked_at = Some(Instant::now());
        match self.shared.sockets.interfaces() {
            Ok(interfaces) if interfaces == self.interfaces && !interfaces.is_empty() => {}
            Ok(interfaces) => {
                let of = |interface: &Interface| node::Interface {
                    ip: interface.ip,
                    netmask: interface.netmask,
                    from: self.shared.sockets.source(interface),
                };
                let told = interfaces.iter().map(of).collect();
                self.interfaces = interfaces;
                self.tell(Event::Interfaces(told));
            }
            // Those of before may still be right.
            Err(error) => self.complain("reading this host's addresses", &error),
        }
    }

    fn tell(&mut self, event: Event) {
        let random = &self.random;
        self.node.set_wall_ahead(self.clock.wall_ahead_ms());
        let effects = self.node.handle(self.clock.now(), event, &mut || random_u64(random));
        if let Err(failed) = self.make_real(effects, false) {
            self.shared.counters.not_kept.add(1);
            self.complain("a message was not kept, and counts as not seen", &failed.error);
            if let (Some(from), Some(sender)) = (failed.entry.addr, failed.entry.message.sender()) {
                let (sender, message_id) = (sender.clone(), message_id(&failed.entry.message).map(str::to_owned));
                let (kind, reason) = (failed.entry.message.type_name(), failed.error.to_string());
                self.see(Shown::NotKept { from, sender, kind, message_id, reason });
            }
            // It keeps nothing itself, so it cannot fail in the same way again.
            let effects = self.node.handle(self.clock.now(), Event::NotKept(failed.entry), &mut || random_u64(random));
            if let Err(failed) = self.make_real(effects, false) {
                self.complain("after that", &failed.error);
            }
        }
    }

    fn command(&mut self, command: Command) -> Result<Done, LanError> {
        let random = &self.random;
        self.node.set_wall_ahead(self.clock.wall_ahead_ms());
        let (done, effects) = self.node.command(self.clock.now(), command, &mut || random_u64(random))?;
        // Before anything is kept of it: a message that cannot be written is not sent to some.
        for effect in &effects {
            if let Effect::Send { message, .. } = effect {
                wire::write(message)?;
            }
        }
        let awaits_ack = matches!(done, Done::DmSent { awaits_ack: true, .. });
        match self.make_real(effects, awaits_ack) {
            Ok(()) => Ok(done),
            Err(failed) => {
                self.shared.counters.not_kept.add(1);
                self.tell(Event::NotKept(failed.entry));
                Err(failed.error.into())
            }
        }
    }

    /// Makes effects real, in their order, up to the first that could not be kept.
    fn make_real(&self, effects: Vec<Effect>, awaits_ack: bool) -> Result<(), NotKept> {
        // A message to many is written once.
        let mut written: Option<(Message, Vec<u8>)> = None;
        for effect in effects {
            match effect {
                Effect::Keep(entry) => self.keep(entry, awaits_ack)?,
                Effect::KeepFate { message_id, confirmed } => {
                    if let Some(history) = &self.shared.history {
                        // Nothing is told that depends on it: it may reach the disk a moment later.
                        drop(history.confirm(&message_id, confirmed));
                    }
                }
                Effect::Send { to, message } => {
                    // Whoever gets it compares its source with whom it says it is from.
                    let sender = message.sender().map(|sender| sender.ip);
                    let bytes = match &written {
                        Some((same, bytes)) if *same == message => bytes,
                        _ => match wire::write(&message) {
                            Ok(bytes) => &written.insert((message, bytes)).1,
                            Err(error) => {
                                self.not_sent(to, &error);
                                continue;
                            }
                        },
                    };
                    let SocketAddr::V4(to) = to else {
                        self.not_sent(to, &"not an IPv4 address");
                        continue;
                    };
                    let sockets = &self.shared.sockets;
                    let sent = match sender {
                        Some(from) => sockets.send_from(from, to, bytes),
                        None => sockets.send(to, bytes),
                    };
                    if let Err(error) = sent {
                        self.not_sent(to.into(), &error);
                    }
                }
                Effect::Broadcast { by, message } => {
                    let written = wire::write(&message);
                    for interface in self.interfaces.iter().filter(|each| each.ip == by) {
                        let sent = match &written {
                            Ok(bytes) => self.shared.sockets.broadcast(interface, bytes),
                            Err(error) => Err(io::Error::other(error.clone())),
                        };
                        if let Err(error) = sent {
                            // Mostly the interface has just gone, which the next look tells.
                            self.shared.counters.not_sent.add(1);
                            log::debug!("announcing by {}: {error}", interface.name);
                        }
                    }
                }
                Effect::Show(shown) => self.see(shown),
            }
        }
        Ok(())
    }

    fn see(&self, shown: Shown) {
        if self.seen.try_send(shown).is_err() {
            self.shared.counters.unseen.add(1);
        }
    }

    fn keep(&self, entry: Box<Entry>, awaits_ack: bool) -> Result<(), NotKept> {
        let Some(history) = &self.shared.history else { return Ok(()) };
        let Some(kept) = to_keep(&entry, awaits_ack) else { return Ok(()) };
        let kept = match &entry.message {
            // What is told of oneself is known after a crash.
            Message::Profile(Profile { display_name, status, avatar, .. }) if !entry.incoming => {
                let (display_name, status, avatar) = (display_name.clone(), status.clone(), avatar.clone());
                history.keep_profile(kept, OwnProfile { display_name, status, avatar })
            }
            _ => history.keep(kept),
        };
        kept.wait().map_err(|error| NotKept { entry, error })
    }

    fn not_sent(&self, to: SocketAddr, error: &dyn fmt::Display) {
        self.shared.counters.not_sent.add(1);
        log::debug!("sending to {to}: {error}");
    }

    fn complain(&self, what: &str, error: &dyn fmt::Display) {
        if self.complaints.now() {
            log::warn!("{what}: {error}");
        }
    }
}

struct NotKept {
    entry: Box<Entry>,
    error: StoreError,
}

fn random_u64(random: &SystemRandom) -> u64 {
    let mut bytes = [0; 8];
    random.fill(&mut bytes).expect("the operating system gives random bytes");
    u64::from_ne_bytes(bytes)
}

fn message_id(message: &Message) -> Option<&str> {
    match message {
        Message::Post(post) => post.stamp.message_id.as_deref(),
        Message::Dm(dm) => dm.stamp.message_id.as_deref(),
        Message::Profile(profile) => profile.stamp.message_id.as_deref(),
        _ => None,
    }
}

/// As the history has it.
fn to_keep(entry: &Entry, awaits_ack: bool) -> Option<history::Entry> {
    let (kind, who, stamp) = match &entry.message {
        Message::Post(post) => (history::Kind::Post, &post.user_id, &post.stamp),
        Message::Dm(dm) if entry.incoming => (history::Kind::Dm, &dm.from, &dm.stamp),
        Message::Dm(dm) => (history::Kind::Dm, &dm.to, &dm.stamp),
        Message::Profile(profile) => (history::Kind::Profile, &profile.user_id, &profile.stamp),
        _ => return None,
    };
    Some(history::Entry {
        at: entry.at,
        direction: if entry.incoming { Direction::Received } else { Direction::Sent },
        kind,
        who: who.clone(),
        text: text_of(&entry.message),
        confirmation: if awaits_ack { Confirmation::Waiting } else { Confirmation::NotAsked },
        message_id: stamp.message_id.clone(),
        source: match entry.addr {
            Some(SocketAddr::V4(source)) if entry.incoming => Some(*source.ip()),
            _ => None,
        },
    })
}

/// A message that was received before, as far as its repeats are known by it.
fn received(entry: history::Entry) -> Entry {
    let history::Entry { at, kind, who, text: content, message_id, source, .. } = entry;
    let addr = Some(SocketAddrV4::new(source.unwrap_or(who.ip), 0).into());
    let stamp = wire::Stamp { timestamp: None, message_id };
    let message = match kind {
        history::Kind::Post => Message::Post(wire::Post { user_id: who, content, stamp }),
        history::Kind::Dm => Message::Dm(wire::Dm { from: who.clone(), to: who, content, stamp }),
        history::Kind::Profile => {
            let (display_name, status, avatar) = (content, String::new(), None);
            Message::Profile(Profile { user_id: who, display_name, status, avatar, stamp })
        }
    };
    Entry { at, incoming: true, addr, message }
}
