//! The inputs and outputs of a node: configuration, events, commands, effects and notifications.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::DropCause;
use crate::lan::SocketRole;
use crate::lan::wire::{Features, Message, Talk, TalkBody, UserId, WireError};
use crate::model::{Millis, Name};

/// How a node is set up. What changes while it runs comes as a [`NodeEvent`].
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The preferred name. A number is appended if another peer of this host has it.
    pub name: Name,
    /// Random, 16 hexadecimal digits, one per run.
    pub instance: String,
    pub kind: NodeKind,
    /// The port of its own socket, from which everything is sent.
    pub port: u16,
    pub discovery_port: u16,
    /// The interval between announcements varies by a tenth.
    pub announce_every: Duration,
    pub forget_after: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    /// Sends and receives messages.
    Person,
    /// Announces services, and takes no messages.
    Server { serves: Vec<(String, u16)>, cert_sha256: Option<String> },
    /// Asks once who is there. It is not listed by others and answers nobody.
    Probe,
}

/// An address of this host and the network behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterfaceAddress {
    pub ip: Ipv4Addr,
    pub netmask: Ipv4Addr,
    /// Datagrams that leave by this interface come from its own address, or from that which the socket is bound to.
    /// `None` if nothing is sent by it.
    pub source_ip: Option<Ipv4Addr>,
}

/// An event that the driver reports to a node.
#[derive(Debug, Clone)]
pub enum NodeEvent {
    /// The sockets are bound. [`NodeEvent::InterfacesChanged`] must come before.
    Started,
    /// All addresses of this host, at the start and whenever they change; including loopback and those that the node
    /// does not send from. The first that is not loopback is used in USER_ID where no interface is nearer.
    InterfacesChanged(Vec<InterfaceAddress>),
    Datagram {
        from: SocketAddr,
        socket: SocketRole,
        message: Result<Message, WireError>,
        bytes: usize,
    },
    /// The network reports that nobody listens at an address we sent to (ICMP port unreachable).
    SendRefused {
        to: SocketAddr,
    },
    /// A [`NodeEffect::Store`] failed, and the effects after it were not applied: the message counts as not seen, so
    /// that its next copy is accepted.
    StoreFailed(Box<MessageRecord>),
    /// [`Node::next_deadline`](super::Node::next_deadline) has come. Extra ticks are harmless.
    Tick,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeCommand {
    /// Says something to every known peer or, with `to`, to one: `name`, or `name@ip` where several have the name.
    Say { to: Option<String>, body: TalkBody },
    /// Asks some of the known peers for their peer lists.
    RequestPeerLists,
    /// Adds an address that broadcast does not reach (`--peer`): it is announced to at once, and with each broadcast
    /// until a peer is known there.
    AddPeer(SocketAddr),
}

/// The result of a command. Whether a message arrived is notified later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandOutcome {
    /// The message is sent to `to` peers, servers not counted.
    SaidToAll {
        to: usize,
        message_id: String,
    },
    /// The message is sent to this peer. With `awaits_ack`, [`Notification::DmConfirmed`] or
    /// [`Notification::DmUnconfirmed`] follows within 5.5 s; else nothing more is known of it.
    SaidToOne {
        to: UserId,
        addr: SocketAddr,
        message_id: String,
        awaits_ack: bool,
    },
    PeerListsRequested {
        peers: usize,
    },
    PeerAdded {
        addr: SocketAddr,
    },
}

/// Why a command is refused. It has had no effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error("USER: nobody here is called {0:?}; LIST shows who is here")]
    UnknownUser(String),
    #[error("USER: {} are called {name:?}; say which: {}", candidates.len(), join_user_ids(candidates))]
    AmbiguousUser { name: String, candidates: Vec<UserId> },
    #[error("USER: {0} is a server, which takes no messages")]
    IsServer(UserId),
    #[error("busy: {0} messages wait to be acknowledged; try again in a few seconds")]
    TooManyUnconfirmed(usize),
    #[error("too many messages at once, of which others would drop some: try again in {retry_after_ms} ms")]
    RateLimited { retry_after_ms: u64 },
    /// The text names the invalid argument and says what was expected.
    #[error("{0}")]
    InvalidArgument(String),
    #[error("nobody is known yet; --peer HOST:PORT reaches one whom announcements do not")]
    NoPeers,
}

fn join_user_ids(candidates: &[UserId]) -> String {
    candidates.iter().map(UserId::to_string).collect::<Vec<_>>().join(", ")
}

/// An effect that the driver must apply. The order of a list of effects must be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeEffect {
    /// Store a message. It must be on disk before the next effect is applied and before the next event is handled. On
    /// failure, the remaining effects are dropped and the node gets [`NodeEvent::StoreFailed`].
    Store(Box<MessageRecord>),
    StoreConfirmation {
        message_id: String,
        confirmed: bool,
    },
    /// Send a message to one address, from the own socket.
    Send {
        /// Never a discovery port of this host.
        to: SocketAddr,
        message: Message,
    },
    /// Send a message from the own socket to the discovery port, at an interface's broadcast address (of 127.0.0.1:
    /// 127.255.255.255).
    Broadcast {
        /// The own address of the interface to send by.
        interface_ip: Ipv4Addr,
        /// Its USER_ID holds the address that the broadcast comes from.
        message: Message,
    },
    /// Notify the user; some only in verbose mode, see [`Notification::is_shown_when_terse`].
    Notify(Notification),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageRecord {
    /// The time by the wall clock.
    pub at: Millis,
    pub is_incoming: bool,
    /// Its source or destination; `None` for a message that we sent to all.
    pub addr: Option<SocketAddr>,
    pub talk: Talk,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notification {
    /// Somebody has said something, to all or to us.
    Heard {
        from: SocketAddr,
        talk: Talk,
    },
    PeerJoined(PeerInfo),
    PeerLeft {
        peer: PeerInfo,
        why: PeerLeftReason,
    },
    /// A peer has another name now (there was another of its name on its host).
    PeerRenamed {
        old: UserId,
        new: UserId,
    },
    /// A peer has another port now, after a restart.
    PeerMoved {
        user_id: UserId,
        old: SocketAddr,
        new: SocketAddr,
    },
    /// Somebody claims to be a peer that still answers at its old port.
    PeerMoveRefused {
        user_id: UserId,
        old: SocketAddr,
        new: SocketAddr,
    },
    /// The node has changed its own name, as another peer of this host has it.
    SelfRenamed {
        old: Name,
        new: Name,
    },
    DmConfirmed {
        to: UserId,
        message_id: String,
    },
    /// A DM that we sent was repeated without an ACK. It may have arrived all the same.
    DmUnconfirmed {
        to: UserId,
        message_id: String,
    },
    /// The peer table is full and a new peer is not listed. Notified once until a peer is added again.
    PeerTableFull {
        peers: usize,
    },
    DatagramDropped {
        from: SocketAddr,
        cause: DropCause,
        detail: String,
    },
    /// The number of drops within a second that were not notified one by one, by cause.
    DropSummary {
        counts: Vec<(DropCause, u64)>,
    },
    /// A received message could not be stored: it counts as not received.
    MessageNotStored {
        from: SocketAddr,
        sender: UserId,
        kind: &'static str,
        message_id: Option<String>,
        reason: String,
    },
}

impl Notification {
    /// Terse mode shows names, texts and what a user must know.
    pub fn is_shown_when_terse(&self) -> bool {
        !matches!(
            self,
            Notification::DatagramDropped { .. } | Notification::DropSummary { .. } | Notification::PeerMoved { .. }
        )
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerLeftReason {
    /// It was silent for [`NodeConfig::forget_after`].
    TimedOut,
    /// Its host refused three sends in a row.
    Refused,
    /// Another peer has its address now.
    Replaced,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// The one that was heard last.
    pub user_id: UserId,
    pub addr: SocketAddr,
    /// All its USER_IDs and addresses, the last heard first: one for each interface that it is heard through.
    pub addresses: Vec<(UserId, SocketAddr)>,
    pub instance: Option<String>,
    pub features: Features,
    pub serves: Vec<(String, u16)>,
    pub cert_sha256: Option<String>,
    pub known_since: Millis,
    pub heard_at: Millis,
}

impl PeerInfo {
    /// Servers are not listed among the users.
    pub fn is_server(&self) -> bool {
        !self.serves.is_empty()
    }
}
