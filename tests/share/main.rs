//! Share as its users see it: bare sockets, nothing but the wire.

mod registry;
mod registry_floor;
mod registry_load;
mod registry_process;
mod registry_rights;
mod registry_server;
mod server_api;
#[path = "../support/mod.rs"]
mod support;
