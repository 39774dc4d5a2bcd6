//! Trade: peers search, offer, negotiate and buy through a server; UDP to talk, TCP (TLS) to pay.

pub mod deal;
pub mod wire; //     the messages //     one deal: its state and rules
