//! The LAN room: peers that discover each other by UDP broadcast and exchange messages without a server.
//! The protocol is in [`node`], without I/O; [`peer`] connects it to the [`sockets`] and the [`history`].

pub mod discover;
pub mod history;
pub mod node;
pub mod peer;
pub mod sockets;
pub mod wire;

use ring::rand::{SecureRandom, SystemRandom};

pub const DISCOVERY_PORT: u16 = 50_999;

/// The socket through which a datagram came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SocketRole {
    /// The peer's own socket: the sender knows this peer.
    Own,
    /// The socket on the discovery port, which the peers of a host share and which receives broadcasts.
    Discovery,
}

fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    SystemRandom::new().fill(&mut bytes).expect("the operating system gives random bytes");
    u64::from_ne_bytes(bytes)
}
