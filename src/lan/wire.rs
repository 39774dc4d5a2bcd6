//! The messages: datagrams of lines `KEY:VALUE`, ended by an empty line. SPEC.md section 5.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use crate::model::Name;

/// Most bytes of a datagram: what IPv4 and UDP leave of 65,535.
pub const DATAGRAM_MAX: usize = 65_507;
/// Most bytes of a picture, before it is encoded.
pub const AVATAR_MAX: usize = 20_480;

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
    Discovery(Discovery),
    Post(Post),
    Dm(Dm),
    Profile(Profile),
    PeerListRequest {
        from: UserId,
        stamp: Stamp,
    },
    PeerListResponse(PeerList),
    /// A DM has arrived, and is kept.
    Ack {
        message_id: String,
    },
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
    /// As its bytes begin: `image/png`, …
    pub kind: AvatarKind,
    /// At most [`AVATAR_MAX`].
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

/// Why a datagram is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A TYPE that this program does not know: no error of anybody's.
    #[error("TYPE: {0:?} is not known")]
    UnknownType(String),
    /// One line that names the key and says what was expected.
    #[error("{0}")]
    Malformed(String),
}
