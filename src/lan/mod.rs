//! LAN: peers that find each other and talk, with no server.
//!
//! | module | holds |
//! |---|---|
//! | [`wire`] | the messages |
//! | [`sockets`] | the two sockets of a peer, and where they send |

pub mod sockets;
pub mod wire;
