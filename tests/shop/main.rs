//! End-to-end tests of the shop: its processes, with clients on plain sockets that use the wire format only.

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
