//! LAN: peers that find each other and talk, with no server.
//!
//! | module | holds |
//! |---|---|
//! | [`wire`] | the messages |
//! | [`node`] | one peer's view of the network, without I/O |

pub mod node;
pub mod wire;
