//! The wire format: datagrams of `KEY:VALUE` lines, ended by an empty line. See `docs/spec/lan.md`.
//!
//! Encoding applies the same rules as decoding, so every encoded message decodes to the same message. (Only line breaks
//! in texts are normalized: CR and CR LF become LF.)

use std::fmt;
use std::net::Ipv4Addr;

use crate::model::Name;

mod avatar;
mod discovery;
mod peer_list;
mod profile;
mod reader;
mod talk;
#[cfg(test)]
mod tests;
mod text;
mod validation;
mod writer;

pub use avatar::{Avatar, AvatarKind};
pub use discovery::{Discovery, Features};
pub use peer_list::PeerList;
pub use profile::Profile;
use reader::{DatagramReader, with_key};
pub use talk::{Talk, TalkKind, TalkType};
pub use text::{Dm, Post};
use writer::DatagramWriter;

talk::talk_types!(Post, Dm, Profile);

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
pub fn check_name(name: &str) -> Result<(), String> {
    validation::check_printable(name, 1, crate::model::text::NAME_MAX)
}

impl UserId {
    /// Parses `name@ip`, split at the last `@`.
    pub fn parse(text: &str) -> Result<UserId, String> {
        let (name, ip) = text.rsplit_once('@').ok_or_else(|| "expected name@ip, found no @".to_owned())?;
        check_name(name).map_err(with_key("name"))?;
        let bad_ip = |_| format!("expected an IPv4 address behind the last @, not {}", validation::quoted(ip));
        Ok(UserId { ip: ip.parse::<Ipv4Addr>().map_err(bad_ip)?, name: Name::new(name)? })
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
    Discovery(Discovery),
    /// What a user says: POST, DM, PROFILE.
    Talk(Talk),
    /// PEER_LIST_REQUEST: asks for the peers that the receiver knows.
    PeerListRequest {
        from: UserId,
        stamp: MessageStamp,
    },
    PeerListResponse(PeerList),
    /// ACK: the talk has arrived and is stored.
    Ack {
        message_id: String,
    },
}

const PEER_LIST_REQUEST: &str = "PEER_LIST_REQUEST";
const ACK: &str = "ACK";

impl Message {
    pub fn type_name(&self) -> &'static str {
        match self {
            Message::Discovery(_) => Discovery::TYPE,
            Message::Talk(talk) => talk.body.kind().type_name,
            Message::PeerListRequest { .. } => PEER_LIST_REQUEST,
            Message::PeerListResponse(_) => PeerList::TYPE,
            Message::Ack { .. } => ACK,
        }
    }

    /// The sender that the message names; `None` for an ACK.
    pub fn sender(&self) -> Option<&UserId> {
        match self {
            Message::Discovery(Discovery { user_id: sender, .. })
            | Message::Talk(Talk { from: sender, .. })
            | Message::PeerListRequest { from: sender, .. }
            | Message::PeerListResponse(PeerList { from: sender, .. }) => Some(sender),
            Message::Ack { .. } => None,
        }
    }
}

/// Decodes a datagram. [`WireError::UnknownType`] is returned only if its lines are otherwise valid.
pub fn decode(datagram: &[u8]) -> Result<Message, WireError> {
    let reader = DatagramReader::parse(datagram)?;
    let message = match reader.require("TYPE")? {
        Discovery::TYPE => Message::Discovery(Discovery::read(&reader)?),
        PEER_LIST_REQUEST => Message::PeerListRequest { from: reader.user_id("FROM")?, stamp: reader.stamp()? },
        PeerList::TYPE => Message::PeerListResponse(PeerList::read(&reader)?),
        ACK => {
            let message_id = reader.id("MESSAGE_ID")?.ok_or_else(|| reader::missing_key("MESSAGE_ID"))?;
            match reader.require("STATUS")? {
                "RECEIVED" => Message::Ack { message_id },
                other => return Err(format!("STATUS: expected RECEIVED, not {}", validation::quoted(other)).into()),
            }
        }
        type_name => match TalkBody::read_talk(type_name, &reader) {
            Some(talk) => Message::Talk(talk?),
            None => return Err(WireError::UnknownType(type_name.chars().take(validation::QUOTED_MAX).collect())),
        },
    };
    Ok(message)
}

/// Encodes a message. A value that breaks a rule or makes the datagram too large is an error: nothing is truncated.
pub fn encode(message: &Message) -> Result<Vec<u8>, WireError> {
    let mut writer = DatagramWriter::begin(message.type_name());
    match message {
        Message::Discovery(discovery) => discovery.write(&mut writer)?,
        Message::Talk(talk) => talk.write(&mut writer)?,
        Message::PeerListRequest { from, stamp } => {
            writer.user_id("FROM", from)?;
            writer.stamp(stamp)?;
        }
        Message::PeerListResponse(list) => list.write(&mut writer)?,
        Message::Ack { message_id } => {
            writer.checked("MESSAGE_ID", message_id, validation::check_id)?;
            writer.line("STATUS", "RECEIVED");
        }
    }
    Ok(writer.finish()?)
}

/// Why a datagram cannot be decoded, or a message not encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// An unknown TYPE is not an error of the sender.
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
