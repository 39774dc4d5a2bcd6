//! Trade as its users see it: a server process, peers on bare sockets, nothing but the wire.

#[path = "../support/mod.rs"]
mod support;

mod abuse;
mod admin;
mod bounds;
mod deals;
mod hearing;
mod purchase;
mod pushes;
mod registration;
mod secrets;
mod settlement;
