//! LAN: peers that find each other and talk, with no server.
//!
//! | module | holds |
//! |---|---|
//! | [`wire`] | the messages |
//! | [`history`] | what a peer keeps: messages, its profile, its last port |

pub mod history;
pub mod wire;
