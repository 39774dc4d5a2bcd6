//! Trade: peers search for items, offer, negotiate and buy through a server. Messages travel over UDP, settlements
//! over TCP with TLS.
//!
//! | module | holds |
//! |---|---|
//! | [`wire`] | message types and parsing |
//! | [`deal`] | the state machine of one deal |
//! | [`exchange`] | all peers and deals in memory, and what requests do to them |
//! | [`settlement`] | the state machine of one settlement: payment and shipping |
//! | [`server`] | sockets, threads and timers around the exchange |
//! | [`journal`] | persisted rows, and the interface through which changes reach the disk |
//! | [`store`] | trade's tables and SQL |
//! | [`client`] | the client library |
//! | [`peer`] | a trading peer: its inventory, sales and purchases |

pub mod client;
pub mod deal;
pub mod exchange;
pub mod journal;
pub mod peer;
pub mod server;
pub mod settlement;
pub mod store;
pub mod wire;
