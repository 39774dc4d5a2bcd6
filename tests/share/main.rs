//! Share as its users see it: bare sockets, nothing but the wire.

mod server_api;
#[path = "../support/mod.rs"]
mod support;
