//! Trade: peers search for items, offer, negotiate and buy through a server. Messages travel over UDP, settlements
//! over TCP with TLS.

pub mod client;
pub mod deal;
pub mod exchange;
pub mod journal;
pub mod peer;
pub mod server;
pub mod settlement;
pub mod store;
pub mod wire;
