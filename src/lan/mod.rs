//! LAN: peers that find each other and talk, with no server.
//!
//! | module | holds |
//! |---|---|
//! | [`wire`] | the messages |

pub mod wire;
