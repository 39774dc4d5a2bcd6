//! The shop as its users see it: processes, clients on bare sockets, nothing but the wire.

#[path = "../crash/rng.rs"]
#[allow(dead_code, reason = "each test target uses its part")]
mod rng;
#[path = "../support/mod.rs"]
mod support;

mod apis;
mod carts;
mod commands;
mod kills;
mod limits;
mod purchases;
mod sessions;
mod shop;
mod starts;
