//! The LAN room: peers that discover each other by UDP broadcast and exchange messages without a server.
//!
//! | module | holds |
//! |---|---|
//! | [`wire`] | encoding and decoding of datagrams |
//! | [`node`] | the protocol state machine of one peer, without I/O |
//! | [`history`] | the peer's database: messages, profile, last port |
//! | [`sockets`] | a peer's two UDP sockets |
//! | [`peer`] | a running peer: threads that connect sockets, state machine and database |
//! | [`discover`] | a single probe that lists who is on the network |

use self::wire::{Avatar, Message};

pub mod discover;
pub mod history;
pub mod node;
pub mod peer;
pub mod sockets;
pub mod wire;

/// The default port on which peers receive announcements.
pub const DISCOVERY_PORT: u16 = 50_999;

/// The socket through which a datagram came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SocketRole {
    /// The peer's own socket: the sender knows this peer.
    Own,
    /// The socket on the discovery port, which the peers of a host share and which receives broadcasts.
    Discovery,
}

/// The text of a POST, DM or PROFILE for a user; empty for other messages.
pub fn message_text(message: &Message) -> String {
    match message {
        Message::Post(post) => post.content.clone(),
        Message::Dm(dm) => dm.content.clone(),
        Message::Profile(profile) => profile_text(&profile.display_name, &profile.status, profile.avatar.as_ref()),
        _ => String::new(),
    }
}

/// `NAME | STATUS | image/png, 1234 bytes`, without the parts that are empty.
pub(crate) fn profile_text(display_name: &str, status: &str, avatar: Option<&Avatar>) -> String {
    let avatar = avatar.map(|avatar| format!("{}, {} bytes", avatar.kind.mime(), avatar.bytes.len()));
    let parts = [display_name, status, avatar.as_deref().unwrap_or_default()];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" | ")
}
