//! The messages: datagrams of lines `KEY:VALUE`, ended by an empty line. SPEC.md section 5.
//!
//! What is written can be read, and is then the same: writing keeps to the rules that reading has.
//! (But for line breaks in texts: CR and CR LF are read as LF.)
//!
//! | file | holds |
//! |---|---|
//! | `read.rs` | a datagram into a message |
//! | `write.rs` | and back |
//! | `rules.rs` | what may be in a value, either way |
//! | `avatar.rs` | pictures |

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use crate::model::Name;

mod avatar;
mod read;
mod rules;
#[cfg(test)]
mod tests;
mod write;

pub use read::read;
pub use write::write;

/// Most bytes of a datagram: what IPv4 and UDP leave of 65,535.
pub const DATAGRAM_MAX: usize = 65_507;
/// Most bytes of a picture, before it is encoded.
pub const AVATAR_MAX: usize = 20_480;
/// Most lines of a datagram, before the empty one.
pub const LINES_MAX: usize = 64;
/// Most characters of a MESSAGE_ID or an INSTANCE.
pub const ID_MAX: usize = 64;
/// Most characters of a DISPLAY_NAME.
pub const DISPLAY_NAME_MAX: usize = 64;
/// Most characters of a STATUS.
pub const STATUS_MAX: usize = 256;
/// Most services that a server may name, and most characters of each one's name.
pub const SERVES_MAX: usize = 32;

/// `name@ip`: who somebody is, and where the interface is that he speaks from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId {
    /// May hold an `@` itself.
    pub name: Name,
    /// Of an interface of his host.
    pub ip: Ipv4Addr,
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.ip)
    }
}

/// Whether others can read what bears this name.
///
/// # Errors
/// The rule that is broken.
pub fn check_name(name: &str) -> Result<(), String> {
    rules::check_printable(name, 1, crate::model::text::NAME_MAX)
}

impl UserId {
    /// Reads `name@ip`, split at the last `@`; the error says what was expected.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn parse(text: &str) -> Result<UserId, String> {
        let (name, ip) = text.rsplit_once('@').ok_or_else(|| "expected name@ip, found no @".to_owned())?;
        check_name(name).map_err(|wrong| format!("name: {wrong}"))?;
        let ip = ip
            .parse::<Ipv4Addr>()
            .map_err(|_| format!("expected an IPv4 address behind the last @, not {}", rules::quoted(ip)))?;
        Ok(UserId { name: Name::new(name)?, ip })
    }
}

/// What every message may say besides: when it was written, and what it is known by.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stamp {
    /// Unix seconds; may be missing.
    pub timestamp: Option<u64>,
    /// 1 to 64 printable characters; may be missing: then nothing is deduplicated.
    pub message_id: Option<String>,
}

/// A datagram.
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
    /// PEER_LIST_REQUEST: whom do you know?
    PeerListRequest { from: UserId, stamp: Stamp },
    /// PEER_LIST_RESPONSE.
    PeerListResponse(PeerList),
    /// A DM has arrived, and is kept.
    Ack { message_id: String },
}

impl Message {
    /// Its TYPE.
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

    /// Who says it; an ACK does not tell.
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

    /// Its TIMESTAMP and MESSAGE_ID; an ACK has none of its own.
    pub fn stamp(&self) -> Option<&Stamp> {
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

/// Somebody is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovery {
    pub user_id: UserId,
    /// Where he is spoken to.
    pub port: u16,
    /// Random, one per run; older programs have none.
    pub instance: Option<String>,
    pub features: Features,
    /// What a server serves, by name and port; of people, empty.
    pub serves: Vec<(String, u16)>,
    /// SHA-256 of a server's certificate, lower-case hex.
    pub cert_sha256: Option<String>,
    pub stamp: Stamp,
}

/// What a peer can do. Others that it may name are not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// Acknowledges DMs.
    pub ack: bool,
    /// Only asks who is there: to be answered, never listed.
    pub probe: bool,
}

/// To everybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Post {
    pub user_id: UserId,
    /// With line breaks as such.
    pub content: String,
    pub stamp: Stamp,
}

/// To one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dm {
    pub from: UserId,
    pub to: UserId,
    pub content: String,
    pub stamp: Stamp,
}

/// What a person shows of himself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    pub user_id: UserId,
    pub display_name: String,
    pub status: String,
    pub avatar: Option<Avatar>,
    pub stamp: Stamp,
}

/// A picture.
#[derive(Clone, PartialEq, Eq)]
pub struct Avatar {
    /// As its sender says: `image/png`, … ([`Avatar::of`] looks how the bytes begin.)
    pub kind: AvatarKind,
    /// At least one, at most [`AVATAR_MAX`].
    pub bytes: Vec<u8>,
}

/// Pictures that are told apart by how they begin.
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

/// Who somebody knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerList {
    pub from: UserId,
    /// With where each is spoken to, if it was told.
    pub peers: Vec<(UserId, Option<SocketAddr>)>,
    pub stamp: Stamp,
}

/// Why a datagram is not read, or a message not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A TYPE that this program does not know: no error of anybody's.
    #[error("TYPE: {0:?} is not known")]
    UnknownType(String),
    /// One line that names the key and says what was expected.
    #[error("{0}")]
    Malformed(String),
}

impl From<String> for Refused {
    fn from(cause: String) -> Refused {
        Refused::Malformed(cause)
    }
}
