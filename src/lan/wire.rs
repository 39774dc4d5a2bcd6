//! The wire format: datagrams of `KEY:VALUE` lines, ended by an empty line. See `docs/spec/lan.md`.
//!
//! Encoding applies the same rules as decoding, so every encoded message decodes to the same message. (Only line breaks
//! in texts are normalized: CR and CR LF become LF.)
//!
//! | file | holds |
//! |---|---|
//! | `decode.rs` | decoding of a datagram |
//! | `encode.rs` | encoding of a message |
//! | `validation.rs` | the rules for values, for both directions |
//! | `avatar.rs` | detection of image formats |

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use crate::model::Name;

mod avatar;
mod decode;
mod encode;
#[cfg(test)]
mod tests;
mod validation;

pub use decode::decode;
pub use encode::encode;

/// The largest datagram in bytes: what IPv4 and UDP headers leave of 65,535.
pub const DATAGRAM_MAX: usize = 65_507;
/// The largest avatar in bytes, before base64.
pub const AVATAR_MAX: usize = 20_480;
/// The most lines of a datagram, without the empty one.
pub const LINES_MAX: usize = 64;
/// The longest MESSAGE_ID or INSTANCE, in characters.
pub const ID_MAX: usize = 64;
/// The longest DISPLAY_NAME, in characters.
pub const DISPLAY_NAME_MAX: usize = 64;
/// The longest STATUS, in characters.
pub const STATUS_MAX: usize = 256;
/// The most services that a server may announce, and the longest name of one, in characters.
pub const SERVES_MAX: usize = 32;

/// `name@ip`: a user, and the address of the interface that their peer sends from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId {
    /// May contain `@` itself.
    pub name: Name,
    pub ip: Ipv4Addr,
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.ip)
    }
}

/// Checks that a name can be used in USER_IDs.
///
/// # Errors
/// The rule that is broken.
pub fn check_name(name: &str) -> Result<(), String> {
    validation::check_printable(name, 1, crate::model::text::NAME_MAX)
}

impl UserId {
    /// Parses `name@ip`, split at the last `@`.
    ///
    /// # Errors
    /// What was expected.
    pub fn parse(text: &str) -> Result<UserId, String> {
        let (name, ip) = text.rsplit_once('@').ok_or_else(|| "expected name@ip, found no @".to_owned())?;
        check_name(name).map_err(|problem| format!("name: {problem}"))?;
        let ip = ip
            .parse::<Ipv4Addr>()
            .map_err(|_| format!("expected an IPv4 address behind the last @, not {}", validation::quoted(ip)))?;
        Ok(UserId { name: Name::new(name)?, ip })
    }
}

/// The optional fields that all messages but ACK have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MessageStamp {
    /// Unix seconds.
    pub timestamp: Option<u64>,
    /// 1 to 64 printable characters. Without it, the message is not deduplicated.
    pub message_id: Option<String>,
}

/// A decoded datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// PEER_DISCOVERY.
    Discovery(Discovery),
    /// POST.
    Post(Post),
    /// DM.
    Dm(Dm),
    /// PROFILE.
    Profile(Profile),
    /// PEER_LIST_REQUEST: asks for the peers that the receiver knows.
    PeerListRequest { from: UserId, stamp: MessageStamp },
    /// PEER_LIST_RESPONSE.
    PeerListResponse(PeerList),
    /// ACK: the DM has arrived and is stored.
    Ack { message_id: String },
}

impl Message {
    /// The TYPE of the message.
    pub fn type_name(&self) -> &'static str {
        match self {
            Message::Discovery(_) => "PEER_DISCOVERY",
            Message::Post(_) => "POST",
            Message::Dm(_) => "DM",
            Message::Profile(_) => "PROFILE",
            Message::PeerListRequest { .. } => "PEER_LIST_REQUEST",
            Message::PeerListResponse(_) => "PEER_LIST_RESPONSE",
            Message::Ack { .. } => "ACK",
        }
    }

    /// The sender that the message names; `None` for an ACK.
    pub fn sender(&self) -> Option<&UserId> {
        match self {
            Message::Discovery(Discovery { user_id, .. })
            | Message::Post(Post { user_id, .. })
            | Message::Profile(Profile { user_id, .. }) => Some(user_id),
            Message::Dm(Dm { from, .. })
            | Message::PeerListRequest { from, .. }
            | Message::PeerListResponse(PeerList { from, .. }) => Some(from),
            Message::Ack { .. } => None,
        }
    }

    /// TIMESTAMP and MESSAGE_ID of the message; `None` for an ACK, whose MESSAGE_ID is that of the DM.
    pub fn stamp(&self) -> Option<&MessageStamp> {
        match self {
            Message::Discovery(Discovery { stamp, .. })
            | Message::Post(Post { stamp, .. })
            | Message::Dm(Dm { stamp, .. })
            | Message::Profile(Profile { stamp, .. })
            | Message::PeerListRequest { stamp, .. }
            | Message::PeerListResponse(PeerList { stamp, .. }) => Some(stamp),
            Message::Ack { .. } => None,
        }
    }
}

/// PEER_DISCOVERY: the announcement of a peer, a server or a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovery {
    pub user_id: UserId,
    /// The port on which the peer receives unicasts.
    pub port: u16,
    /// Random, one per run. Other implementations may have none.
    pub instance: Option<String>,
    pub features: Features,
    /// Names and ports of a server's services; empty for other peers.
    pub serves: Vec<(String, u16)>,
    /// SHA-256 of a server's certificate, in lower-case hex.
    pub cert_sha256: Option<String>,
    pub stamp: MessageStamp,
}

/// The features that a peer announces. Unknown ones are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// The peer acknowledges DMs.
    pub ack: bool,
    /// The sender only asks who is there: it is answered but not listed.
    pub probe: bool,
}

/// A message to all peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Post {
    pub user_id: UserId,
    /// Line breaks are LF here and U+2028 on the wire.
    pub content: String,
    pub stamp: MessageStamp,
}

/// A message to one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dm {
    pub from: UserId,
    pub to: UserId,
    pub content: String,
    pub stamp: MessageStamp,
}

/// A user's profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    pub user_id: UserId,
    pub display_name: String,
    pub status: String,
    pub avatar: Option<Avatar>,
    pub stamp: MessageStamp,
}

/// An image of at most [`AVATAR_MAX`] bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Avatar {
    /// The type that the sender declares. ([`Avatar::from_bytes`] detects it.)
    pub kind: AvatarKind,
    /// 1 to [`AVATAR_MAX`] bytes.
    pub bytes: Vec<u8>,
}

/// The image formats that are supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AvatarKind {
    Png,
    Jpeg,
    Gif,
    Webp,
}

impl fmt::Debug for Avatar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Avatar({:?}, {} bytes)", self.kind, self.bytes.len())
    }
}

/// PEER_LIST_RESPONSE: the peers that the sender knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerList {
    pub from: UserId,
    /// With their addresses, if the sender gives them.
    pub peers: Vec<(UserId, Option<SocketAddr>)>,
    pub stamp: MessageStamp,
}

/// Why a datagram cannot be decoded, or a message not encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The datagram has an unknown TYPE, which is not an error of its sender.
    #[error("TYPE: {0:?} is not known")]
    UnknownType(String),
    /// The text names the key and says what was expected.
    #[error("{0}")]
    Malformed(String),
}

impl From<String> for WireError {
    fn from(cause: String) -> WireError {
        WireError::Malformed(cause)
    }
}
