//! A running LAN peer: two threads read its sockets, and a third one owns the [`Node`] and applies its effects.
//!
//! Since one thread owns the node, no lock is held while it writes to disk or sends. A stored message is synced before
//! the following effects are applied and before the next event is handled. Inputs wait in a bounded queue, and
//! notifications in another one, so that a paused terminal blocks nobody.

use std::fmt;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use parking_lot::Mutex;

use super::history::{Confirmation, Direction, History, HistoryEntry, HistoryError};
use super::node::{
    CommandError, CommandOutcome, MessageRecord, Node, NodeCommand, NodeConfig, NodeCounters, NodeEffect, NodeEvent,
    NodeKind, Notification, PeerInfo,
};
use super::sockets::{LanSockets, LanSocketsError, PeerSocketEvent, PortChoice};
use super::wire::{self, Message, TalkBody, WireError};
use super::{SocketRole, node, random_u64};
use crate::model::secret::random_hex;
use crate::model::{Clock, Millis, Name};
use crate::net::counters::counters;
use crate::net::interfaces::Interface;
use crate::net::log_throttle::LogThrottle;
use crate::net::threads;
use crate::storage::StoreError;

/// The queue holds datagrams and commands for the node's thread.
const INPUT_QUEUE_MAX: usize = 1_024;
/// Excess notifications are only counted; messages are in the history in any case.
const NOTIFICATION_QUEUE_MAX: usize = 1_024;
/// The host's addresses are read again and again, as networks come and go.
const INTERFACE_POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Messages that were received within this time before the start are deduplicated as well.
const DEDUPLICATION_WINDOW: Duration = Duration::from_secs(60 * 60);

/// How to start a peer.
#[derive(Debug, Clone)]
pub struct LanPeerConfig {
    pub name: Name,
    pub kind: NodeKind,
    /// 0.0.0.0 for every interface; with 127.0.0.1, nothing leaves this host.
    pub bind: std::net::Ipv4Addr,
    /// `None` for the last one, or a free one of 8000 to 9999.
    pub port: Option<u16>,
    pub discovery_port: u16,
    pub announce_every: Duration,
    /// After how long a silent peer is forgotten.
    pub forget_after: Duration,
    /// Addresses of peers that broadcast does not reach.
    pub static_peers: Vec<SocketAddr>,
    /// Where messages are stored; `None` to store nothing.
    pub data_dir: Option<PathBuf>,
}

/// Why a peer cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LanPeerStartError {
    #[error(transparent)]
    History(#[from] HistoryError),
    #[error(transparent)]
    Sockets(#[from] LanSocketsError),
    /// The name does not fit the rules of the wire format.
    #[error("name: {0}")]
    Name(String),
    #[error(transparent)]
    StaticPeer(#[from] CommandError),
    /// A thread cannot be started, or the host's addresses cannot be read.
    #[error("cannot start")]
    System(#[from] io::Error),
}

impl From<StoreError> for LanPeerStartError {
    fn from(error: StoreError) -> LanPeerStartError {
        LanPeerStartError::History(error.into())
    }
}

/// Why a command failed. Nothing was sent.
#[derive(Debug, thiserror::Error)]
pub enum LanCommandError {
    #[error(transparent)]
    Refused(#[from] CommandError),
    #[error("not kept, and so not sent: {0}")]
    NotStored(#[from] StoreError),
    /// The message does not fit into a datagram, or breaks a rule of the wire format.
    #[error(transparent)]
    NotEncodable(#[from] WireError),
    #[error("the peer has ended")]
    PeerStopped,
}

/// A running peer. Dropping it stops it.
pub struct LanPeer {
    inner: Arc<LanPeerInner>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct LanPeerInner {
    sockets: LanSockets,
    history: Option<History>,
    inputs: Sender<DriverInput>,
    notification_receiver: Receiver<Notification>,
    counters: LanPeerCounters,
}

counters! {
    /// Counters besides those of the node.
    pub struct LanPeerCounters {
        /// Datagrams dropped because the input queue was full.
        overrun,
        /// Notifications dropped because their queue was full.
        unseen,
        not_sent,
        not_kept,
    }
}

enum DriverInput {
    Event(NodeEvent),
    Command(NodeCommand, Sender<Result<CommandOutcome, LanCommandError>>),
    Snapshot(Sender<LanPeerSnapshot>),
    Stop,
}

/// A snapshot of a peer's state.
#[derive(Debug, Clone)]
pub struct LanPeerSnapshot {
    pub name: Name,
    /// All known peers, including servers.
    pub peers: Vec<PeerInfo>,
    pub counters: NodeCounters,
    pub at: Millis,
    /// How many DMs that it sent still wait for an ACK.
    pub pending_dms: usize,
}

impl LanPeer {
    /// Opens the data dir and the sockets, starts the threads and announces the peer.
    pub fn start(config: LanPeerConfig) -> Result<LanPeer, LanPeerStartError> {
        wire::check_name(config.name.as_str()).map_err(LanPeerStartError::Name)?;
        let history = config.data_dir.as_deref().map(|dir| History::open(dir, &config.name)).transpose()?;
        let last_port = history.as_ref().map(History::last_port).transpose()?.flatten();
        let port = config.port.map_or(PortChoice::Free { last_port }, PortChoice::Fixed);
        let sockets = LanSockets::open(config.bind, port, config.discovery_port)?;
        let own_port = sockets.own_addr().port();
        if let Some(history) = &history
            && last_port != Some(own_port)
        {
            history.set_last_port(own_port)?;
        }
        let node_config = NodeConfig {
            name: config.name,
            instance: random_hex::<8>(),
            kind: config.kind,
            port: own_port,
            discovery_port: config.discovery_port,
            announce_every: config.announce_every,
            forget_after: config.forget_after,
        };
        let node = Node::new(node_config);
        let clock = Clock::start();
        let since = Millis(clock.now().0.saturating_sub(DEDUPLICATION_WINDOW.as_millis() as u64));
        let earlier = history.as_ref().map(|history| history.received_since(since)).transpose()?.unwrap_or_default();
        let (inputs, input_receiver) = bounded(INPUT_QUEUE_MAX);
        let (notifications, notification_receiver) = bounded(NOTIFICATION_QUEUE_MAX);
        let counters = LanPeerCounters::default();
        let inner = Arc::new(LanPeerInner { sockets, history, inputs, notification_receiver, counters });
        let mut driver = NodeDriver {
            inner: Arc::clone(&inner),
            node,
            clock,
            interfaces: Vec::new(),
            interfaces_checked_at: None,
            notifications,
            log_throttle: LogThrottle::every_minute(),
        };
        // Before the threads start, so that an invalid static address is an error of this call.
        driver.refresh_interfaces();
        for HistoryEntry { at, user_id, message_id, source, .. } in earlier {
            let message_id = message_id.unwrap_or_default();
            driver.node.remember_received(at, source.unwrap_or(user_id.ip), &user_id, &message_id);
        }
        for addr in config.static_peers {
            driver.node.command(driver.clock.now(), NodeCommand::AddPeer(addr), &mut random_u64)?;
        }
        let peer = LanPeer { inner: Arc::clone(&inner), threads: Mutex::default() };
        for role in [SocketRole::Own, SocketRole::Discovery] {
            let inner = Arc::clone(&inner);
            let name = if role == SocketRole::Own { "lan-own" } else { "lan-discovery" };
            peer.threads.lock().push(threads::spawn(name, move || inner.read(role))?);
        }
        peer.threads.lock().push(threads::spawn("lan-node", move || driver.run(&input_receiver))?);
        Ok(peer)
    }

    /// Executes a command. When this returns, its message is on disk and has been sent; after an error, nothing was.
    pub fn command(&self, command: NodeCommand) -> Result<CommandOutcome, LanCommandError> {
        self.ask(|responder| DriverInput::Command(command, responder))?
    }

    /// The current state.
    pub fn snapshot(&self) -> Result<LanPeerSnapshot, LanCommandError> {
        self.ask(DriverInput::Snapshot)
    }

    fn ask<T>(&self, input: impl FnOnce(Sender<T>) -> DriverInput) -> Result<T, LanCommandError> {
        let (responder, response) = bounded(1);
        self.inner.inputs.send(input(responder)).map_err(|_| LanCommandError::PeerStopped)?;
        response.recv().map_err(|_| LanCommandError::PeerStopped)
    }

    /// The notifications, in order. The channel closes when the peer stops.
    pub fn notifications(&self) -> Receiver<Notification> {
        self.inner.notification_receiver.clone()
    }

    /// The database; `None` without a data dir.
    pub fn history(&self) -> Option<&History> {
        self.inner.history.as_ref()
    }

    /// The address of its own socket.
    pub fn own_addr(&self) -> SocketAddrV4 {
        self.inner.sockets.own_addr()
    }

    /// The address of its discovery socket.
    pub fn discovery_addr(&self) -> SocketAddrV4 {
        self.inner.sockets.discovery_addr()
    }

    /// The counters of the peer and its sockets. Those of the node are in the [snapshot](LanPeer::snapshot).
    pub fn counters(&self) -> Vec<(String, u64)> {
        let of = |prefix: &str, list: Vec<(&'static str, u64)>| {
            list.into_iter().map(|(name, count)| (format!("{prefix}{name}"), count)).collect::<Vec<_>>()
        };
        let sockets = &self.inner.sockets;
        [
            of("", self.inner.counters.list()),
            of("own_", sockets.counters(SocketRole::Own).list()),
            of("discovery_", sockets.counters(SocketRole::Discovery).list()),
        ]
        .concat()
    }

    /// Stops the peer. All stored messages are on disk when this returns.
    pub fn stop(&self) {
        self.inner.sockets.stop();
        // Fails if the node's thread has ended already.
        let _ = self.inner.inputs.send(DriverInput::Stop);
        for thread in self.threads.lock().drain(..) {
            // An Err would be a panic, which `threads::spawn` has caught and logged.
            let _ = thread.join();
        }
        if let Some(history) = &self.inner.history {
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

impl LanPeerInner {
    fn read(&self, role: SocketRole) {
        self.sockets.read(role, |socket_event| {
            let event = match socket_event {
                PeerSocketEvent::Datagram { source, bytes } => {
                    NodeEvent::Datagram { from: source, socket: role, message: wire::decode(bytes), bytes: bytes.len() }
                }
                PeerSocketEvent::Refused { to } => NodeEvent::SendRefused { to },
            };
            match self.inputs.try_send(DriverInput::Event(event)) {
                Ok(()) | Err(TrySendError::Disconnected(_)) => {}
                Err(TrySendError::Full(_)) => self.counters.overrun.add(1),
            }
        });
    }
}

struct NodeDriver {
    inner: Arc<LanPeerInner>,
    node: Node,
    clock: Clock,
    interfaces: Vec<Interface>,
    interfaces_checked_at: Option<Instant>,
    notifications: Sender<Notification>,
    log_throttle: LogThrottle,
}

impl NodeDriver {
    fn run(mut self, inputs: &Receiver<DriverInput>) {
        self.handle_event(NodeEvent::Started);
        loop {
            let now = self.clock.now();
            let due = self.node.next_deadline().map_or(INTERFACE_POLL_INTERVAL, |at| now.until(at));
            match inputs.recv_timeout(due.min(INTERFACE_POLL_INTERVAL)) {
                Ok(DriverInput::Event(event)) => self.handle_event(event),
                Ok(DriverInput::Command(command, responder)) => {
                    let outcome = self.command(command);
                    // The caller may have gone.
                    let _ = responder.send(outcome);
                }
                Ok(DriverInput::Snapshot(responder)) => {
                    let snapshot = LanPeerSnapshot {
                        name: self.node.name().clone(),
                        peers: self.node.peers(),
                        counters: self.node.counters().clone(),
                        at: self.clock.now(),
                        pending_dms: self.node.sizes().pending_dms,
                    };
                    let _ = responder.send(snapshot);
                }
                Ok(DriverInput::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.refresh_interfaces();
            // Checked after every input, as the queue may never be empty under a flood.
            if self.node.next_deadline().is_some_and(|at| at <= self.clock.now()) {
                self.handle_event(NodeEvent::Tick);
            }
        }
    }

    /// Reports the host's addresses to the node if they have changed.
    fn refresh_interfaces(&mut self) {
        if self.interfaces_checked_at.is_some_and(|at| at.elapsed() < INTERFACE_POLL_INTERVAL) {
            return;
        }
        self.interfaces_checked_at = Some(Instant::now());
        match self.inner.sockets.interfaces() {
            Ok(interfaces) if interfaces == self.interfaces && !interfaces.is_empty() => {}
            Ok(interfaces) => {
                let of = |interface: &Interface| node::InterfaceAddress {
                    ip: interface.ip,
                    netmask: interface.netmask,
                    source_ip: self.inner.sockets.source(interface),
                };
                let addresses = interfaces.iter().map(of).collect();
                self.interfaces = interfaces;
                self.handle_event(NodeEvent::InterfacesChanged(addresses));
            }
            // The former ones may still be right.
            Err(error) => self.warn("reading this host's addresses", &error),
        }
    }

    fn handle_event(&mut self, event: NodeEvent) {
        self.node.set_wall_clock_ahead(self.clock.wall_ahead_ms());
        let effects = self.node.handle(self.clock.now(), event, &mut random_u64);
        if let Err(failed) = self.apply_effects(effects, false) {
            self.inner.counters.not_kept.add(1);
            self.warn("a message was not kept, and counts as not seen", &failed.error);
            if let Some(from) = failed.entry.addr {
                let talk = &failed.entry.talk;
                let (sender, message_id) = (talk.from.clone(), talk.stamp.message_id.clone());
                let (kind, reason) = (talk.body.kind().type_name, failed.error.to_string());
                self.notify(Notification::MessageNotStored { from, sender, kind, message_id, reason });
            }
            // This stores nothing, so it cannot fail in the same way.
            let effects = self.node.handle(self.clock.now(), NodeEvent::StoreFailed(failed.entry), &mut random_u64);
            if let Err(failed) = self.apply_effects(effects, false) {
                self.warn("after that", &failed.error);
            }
        }
    }

    fn command(&mut self, command: NodeCommand) -> Result<CommandOutcome, LanCommandError> {
        self.node.set_wall_clock_ahead(self.clock.wall_ahead_ms());
        let (outcome, effects) = self.node.command(self.clock.now(), command, &mut random_u64)?;
        // Encoded before anything is stored: a message that cannot be encoded for all receivers is sent to none.
        for effect in &effects {
            if let NodeEffect::Send { message, .. } = effect {
                wire::encode(message)?;
            }
        }
        let awaits_ack = matches!(outcome, CommandOutcome::SaidToOne { awaits_ack: true, .. });
        match self.apply_effects(effects, awaits_ack) {
            Ok(()) => Ok(outcome),
            Err(failed) => {
                self.inner.counters.not_kept.add(1);
                self.handle_event(NodeEvent::StoreFailed(failed.entry));
                Err(failed.error.into())
            }
        }
    }

    /// Applies effects in order, up to the first that cannot be stored.
    fn apply_effects(&self, effects: Vec<NodeEffect>, awaits_ack: bool) -> Result<(), StoreFailure> {
        // A message to many peers is encoded once.
        let mut encoded: Option<(Message, Vec<u8>)> = None;
        for effect in effects {
            match effect {
                NodeEffect::Store(entry) => self.store(entry, awaits_ack)?,
                NodeEffect::StoreConfirmation { message_id, confirmed } => {
                    if let Some(history) = &self.inner.history {
                        // Not waited for: nothing that is sent depends on it.
                        drop(history.set_confirmation(&message_id, confirmed));
                    }
                }
                NodeEffect::Send { to, message } => {
                    // Receivers compare the source address with the sender in the message.
                    let sender = message.sender().map(|sender| sender.ip);
                    let bytes = match &encoded {
                        Some((same, bytes)) if *same == message => bytes,
                        _ => match wire::encode(&message) {
                            Ok(bytes) => &encoded.insert((message, bytes)).1,
                            Err(error) => {
                                self.count_unsent(to, &error);
                                continue;
                            }
                        },
                    };
                    let SocketAddr::V4(to) = to else {
                        self.count_unsent(to, &"not an IPv4 address");
                        continue;
                    };
                    let sockets = &self.inner.sockets;
                    let sent = match sender {
                        Some(from) => sockets.send_from(from, to, bytes),
                        None => sockets.send(to, bytes),
                    };
                    if let Err(error) = sent {
                        self.count_unsent(to.into(), &error);
                    }
                }
                NodeEffect::Broadcast { interface_ip, message } => {
                    let encoded = wire::encode(&message);
                    for interface in self.interfaces.iter().filter(|each| each.ip == interface_ip) {
                        let sent = match &encoded {
                            Ok(bytes) => self.inner.sockets.broadcast(interface, bytes),
                            Err(error) => Err(io::Error::other(error.clone())),
                        };
                        if let Err(error) = sent {
                            // Mostly the interface has just gone, which the next poll notices.
                            self.inner.counters.not_sent.add(1);
                            log::debug!("announcing by {}: {error}", interface.name);
                        }
                    }
                }
                NodeEffect::Notify(notification) => self.notify(notification),
            }
        }
        Ok(())
    }

    fn notify(&self, notification: Notification) {
        if self.notifications.try_send(notification).is_err() {
            self.inner.counters.unseen.add(1);
        }
    }

    fn store(&self, entry: Box<MessageRecord>, awaits_ack: bool) -> Result<(), StoreFailure> {
        let Some(history) = &self.inner.history else { return Ok(()) };
        let history_entry = to_history_entry(&entry, awaits_ack);
        let own_profile = match &entry.talk.body {
            TalkBody::Profile(profile) if !entry.is_incoming => Some(profile.clone()),
            _ => None,
        };
        history.append(history_entry, own_profile).wait().map_err(|error| StoreFailure { entry, error })
    }

    fn count_unsent(&self, to: SocketAddr, error: &dyn fmt::Display) {
        self.inner.counters.not_sent.add(1);
        log::debug!("sending to {to}: {error}");
    }

    fn warn(&self, what: &str, error: &dyn fmt::Display) {
        if self.log_throttle.should_log() {
            log::warn!("{what}: {error}");
        }
    }
}

struct StoreFailure {
    entry: Box<MessageRecord>,
    error: StoreError,
}

fn to_history_entry(entry: &MessageRecord, awaits_ack: bool) -> HistoryEntry {
    let talk = &entry.talk;
    let user_id = talk.to.as_ref().filter(|_| !entry.is_incoming).unwrap_or(&talk.from);
    HistoryEntry {
        at: entry.at,
        direction: if entry.is_incoming { Direction::Received } else { Direction::Sent },
        kind: talk.body.kind(),
        user_id: user_id.clone(),
        text: talk.body.text(),
        confirmation: if awaits_ack { Confirmation::Waiting } else { Confirmation::NotAsked },
        message_id: talk.stamp.message_id.clone(),
        source: match entry.addr {
            Some(SocketAddr::V4(source)) if entry.is_incoming => Some(*source.ip()),
            _ => None,
        },
    }
}
