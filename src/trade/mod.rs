//! Trade: peers search, offer, negotiate and buy through a server; UDP to talk, TCP (TLS) to pay.
//!
//! | module | holds |
//! |---|---|
//! | [`wire`] | the messages |
//! | [`deal`] | one deal: its state and rules |
//! | [`exchange`] | every peer and deal, and what requests do to them |
//! | [`settlement`] | who must say what while a deal is paid |
//! | [`server`] | sockets, threads and timers around it all |
//! | [`journal`] | what is kept, and the door to the disk |
//! | [`store`] | trade's tables |
//! | [`client`] | the library of whoever talks to the server |
//! | [`peer`] | a person's stall and shopping list |

pub mod client;
pub mod deal;
pub mod exchange;
pub mod journal;
pub mod peer;
pub mod server;
pub mod settlement;
pub mod store;
pub mod wire;
