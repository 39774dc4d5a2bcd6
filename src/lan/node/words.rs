//! What a node is told, what it wants done, and what it shows.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::Cause;
use crate::lan::wire::{Avatar, Features, Message, Post, Profile, Refused, UserId};
use crate::model::{Millis, Name};

/// How a node is set up. What changes while it runs comes as an [`Event`].
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whose node it is. A number is added when it meets itself.
    pub name: Name,
    /// Random, 16 hexadecimal digits, one per run.
    pub instance: String,
    /// What it is here for.
    pub kind: Kind,
    /// Where its own socket is bound: everything is sent from there.
    pub port: u16,
    /// Where everybody hears announcements.
    pub discovery_port: u16,
    /// How often it announces itself, give or take a tenth.
    pub announce_every: Duration,
    /// How long a peer that is not heard is remembered.
    pub forget_after: Duration,
}

/// What a node is here for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A person: talks.
    Person,
    /// A server: is found, and takes no messages.
    Server {
        /// Its services and their ports.
        serves: Vec<(String, u16)>,
        /// SHA-256 of its certificate, lower-case hex.
        cert_sha256: Option<String>,
    },
    /// Asks once who is there; nobody lists it, and it answers nobody.
    Probe,
}

/// An address of this host and the network behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interface {
    /// Its own address.
    pub ip: Ipv4Addr,
    /// Which part of it names the network.
    pub netmask: Ipv4Addr,
    /// What is sent by it comes from this address: its own, unless the socket is bound to another one.
    /// None where nothing is sent by it.
    pub from: Option<Ipv4Addr>,
}

/// Which socket a datagram came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The node's own: whoever sent it knows this node.
    Own,
    /// The shared one, for what is broadcast.
    Discovery,
}

/// What happens to a node.
#[derive(Debug, Clone)]
pub enum Event {
    /// The sockets are bound. [`Event::Interfaces`] came before.
    Started,
    /// The addresses of this host, at the start and whenever they change; loopback among them, and those
    /// that the node does not speak by. The first that is not loopback stands in USER_ID where no interface is
    /// nearer.
    Interfaces(Vec<Interface>),
    /// A datagram came.
    Datagram {
        /// Its source.
        from: SocketAddr,
        /// Where it came to.
        door: Door,
        /// What it says.
        message: Result<Message, Refused>,
        /// How long it was.
        bytes: usize,
    },
    /// The network says that nobody is there (ICMP port unreachable): a send was refused.
    SendRefused {
        /// Where it went.
        to: SocketAddr,
    },
    /// An [`Effect::Keep`] failed, and what followed it in the same list was not made real: the message
    /// counts as not seen, so that its next copy is taken.
    NotKept(Box<Entry>),
    /// [`Node::next_deadline`](super::Node::next_deadline) has come. Too early or too often does no harm.
    Tick,
}

/// What a person wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A message for every known peer.
    Post { content: String },
    /// A message for one: `name`, or `name@ip` where several bear the name.
    Dm { to: String, content: String },
    /// What the person shows of himself, to all.
    Profile { display_name: String, status: String, avatar: Option<Avatar> },
    /// Asks others whom they know.
    AskPeers,
    /// Reaches one that broadcast cannot (`--peer`): announced to at once, and with each announcement
    /// until it is known.
    AddPeer(SocketAddr),
}

/// What came of a command, beside its effects. Whether a DM arrived is shown later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// The message goes to so many people.
    Posted { to: usize, message_id: String },
    /// The DM goes to this peer. Without `awaits_ack` that is all there will be to say of it; with it,
    /// [`Shown::DmConfirmed`] or [`Shown::DmUnconfirmed`] follows within 5.5 s.
    DmSent { to: UserId, addr: SocketAddr, message_id: String, awaits_ack: bool },
    /// The profile goes to so many people.
    ProfileSent { to: usize, message_id: String },
    /// So many peers were asked whom they know.
    Asked { peers: usize },
    /// The address is announced to.
    Added { addr: SocketAddr },
}

/// Why a command is refused. Nothing happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Nobody bears that name.
    #[error("USER: nobody here is called {0:?}; LIST shows who is here")]
    Nobody(String),
    /// Several bear that name.
    #[error("USER: {} are called {name:?}; say which: {}", candidates.len(), listed(candidates))]
    Several {
        /// The name.
        name: String,
        /// Who bears it.
        candidates: Vec<UserId>,
    },
    /// It is a server.
    #[error("USER: {0} is a server, which takes no messages")]
    IsServer(UserId),
    /// Too many DMs wait for an answer.
    #[error("busy: {0} messages wait to be acknowledged; try again in a few seconds")]
    Busy(usize),
    /// More at once than others take from one source.
    #[error("too many messages at once, of which others would drop some: try again in {again_in_ms} ms")]
    TooFast { again_in_ms: u64 },
    /// A word of the command is not as it must be: names it and says what was expected.
    #[error("{0}")]
    Bad(String),
    /// Nobody is known yet.
    #[error("nobody is known yet; --peer HOST:PORT reaches one whom announcements do not")]
    Alone,
}

fn listed(candidates: &[UserId]) -> String {
    candidates.iter().map(UserId::to_string).collect::<Vec<_>>().join(", ")
}

/// What a node wants done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// To be on disk before anything that follows in the same list, and before the next event is handed
    /// over. If that fails: nothing of what follows, and [`Event::NotKept`].
    Keep(Box<Entry>),
    /// What became of a DM of one's own that was kept.
    KeepFate {
        /// Its MESSAGE_ID.
        message_id: String,
        /// Whether it was acknowledged.
        confirmed: bool,
    },
    /// To one address, from the own socket.
    Send {
        /// Never a discovery port of this host.
        to: SocketAddr,
        /// The message.
        message: Message,
    },
    /// To the discovery port at the broadcast address of the interface that has this own address
    /// (of 127.0.0.1: 127.255.255.255), from the own socket.
    Broadcast {
        /// Which interface: its own address.
        by: Ipv4Addr,
        /// The message; it bears the address that it comes from.
        message: Message,
    },
    /// To be shown, now or in verbose mode: see [`Shown::is_terse`].
    Show(Shown),
}

/// A message that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When it came or went.
    pub at: Millis,
    /// Whether it came from somebody else.
    pub incoming: bool,
    /// Where it came from, or went to; of one's own to all, none.
    pub addr: Option<SocketAddr>,
    /// A POST, DM or PROFILE.
    pub message: Message,
}

/// What a person may want to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// Somebody wrote to everybody.
    Post { from: SocketAddr, post: Post },
    /// Somebody wrote to this person.
    Dm { from: SocketAddr, sender: UserId, content: String, message_id: Option<String>, timestamp: Option<u64> },
    /// Somebody told about himself.
    Profile { from: SocketAddr, profile: Profile },
    /// A peer is known now.
    Came(Known),
    /// A peer is not known any more.
    Left { peer: Known, why: Left },
    /// A peer goes by another name now (it met another of its name on its host).
    PeerRenamed { old: UserId, new: UserId },
    /// A peer is at another port now: it started again.
    Moved { user_id: UserId, old: SocketAddr, new: SocketAddr },
    /// Somebody claims to be a peer that is still where it was.
    MoveRefused { user_id: UserId, old: SocketAddr, new: SocketAddr },
    /// The node's own name changed: another on this host bears it.
    Renamed { old: Name, new: Name },
    /// A DM of one's own has arrived and is kept.
    DmConfirmed { to: UserId, message_id: String },
    /// A DM of one's own was repeated in vain: it may have arrived or not.
    DmUnconfirmed { to: UserId, message_id: String },
    /// There are as many peers as this node remembers: the newcomer is not listed. Once until one leaves.
    Full { peers: usize },
    /// A datagram was dropped.
    Dropped { from: SocketAddr, cause: Cause, detail: String },
    /// More were dropped within a second than are shown one by one: how many for which cause.
    DroppedMore { counts: Vec<(Cause, u64)> },
    /// A message came and could not be kept: it counts as not heard.
    NotKept { from: SocketAddr, sender: UserId, kind: &'static str, message_id: Option<String>, reason: String },
}

impl Shown {
    /// Whether it is shown in terse mode too: names and text, and what a person must know. The others
    /// are for verbose mode.
    pub fn is_terse(&self) -> bool {
        !matches!(self, Shown::Dropped { .. } | Shown::DroppedMore { .. } | Shown::Moved { .. })
    }
}

/// Why a peer is not known any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// It was not heard for so long.
    Unheard,
    /// Its host refused three sends in a row.
    Refused,
    /// Another is at its address now.
    Replaced,
}

/// A peer, as one sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The latest heard of its USER_IDs.
    pub user_id: UserId,
    /// Where it is spoken to.
    pub addr: SocketAddr,
    /// All its USER_IDs and addresses, the latest heard first: one for each interface it is heard through.
    pub addresses: Vec<(UserId, SocketAddr)>,
    /// Its run, if it told.
    pub instance: Option<String>,
    /// What it can do.
    pub features: Features,
    /// What it serves; of people, empty.
    pub serves: Vec<(String, u16)>,
    /// SHA-256 of a server's certificate.
    pub cert_sha256: Option<String>,
    /// Since when it is known.
    pub since: Millis,
    /// When it was last heard.
    pub heard_at: Millis,
}

impl Known {
    /// Servers are not listed as people.
    pub fn is_server(&self) -> bool {
        !self.serves.is_empty()
    }
}
