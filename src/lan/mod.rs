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
