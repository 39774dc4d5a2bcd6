//! Trade as its users see it: a server process, and peers that use the wire protocol on plain sockets.

#[path = "../support/mod.rs"]
mod support;

mod abuse;
mod address_validation;
mod admin;
mod bounds;
mod deals;
mod notifications;
mod purchase;
mod registration;
mod secrets;
mod settlement;
