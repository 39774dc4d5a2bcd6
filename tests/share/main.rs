//! Share as its users see it: nodes, registry and peers over real sockets, and clients on bare ones.

#[path = "../crash/rng.rs"]
#[allow(dead_code, reason = "each test target uses its part")]
mod rng;
#[path = "../support/mod.rs"]
mod support;

mod transfer;
