//! Trade as its users see it: a server process, peers on bare sockets, nothing but the wire.

#[path = "../support/mod.rs"]
mod support;

mod deals;
mod purchase;
mod registration;
mod settlement;
