//! Trade: peers search, offer, negotiate and buy through a server; UDP to talk, TCP (TLS) to pay.

pub mod client; //  the library of whoever talks to the server
pub mod deal;
pub mod exchange;
pub mod journal; //  what is kept, and the door to the disk
pub mod peer; //    a person's stall and shopping list
pub mod server;
pub mod settlement;
pub mod store; //    trade's tables
pub mod wire; //     the messages //     one deal: its state and rules // every peer and deal, and what requests do to them // who must say what while a deal is paid //   sockets, threads and timers around it all
