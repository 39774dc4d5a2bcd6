//! End-to-end tests of share: nodes, the registry and peers over real sockets, and clients on plain sockets.

#[cfg(unix)]
mod client_api;
#[cfg(unix)]
mod commands;
#[cfg(unix)]
mod names;
#[cfg(unix)]
mod node;
#[cfg(unix)]
mod node_faults;
#[cfg(unix)]
mod node_tls;
#[cfg(unix)]
mod nodes;
#[cfg(unix)]
mod operator;
mod owners;
#[cfg(unix)]
mod page_events;
#[cfg(unix)]
mod page_routes;
mod registry;
mod registry_harness;
mod registry_load;
mod registry_process;
mod registry_rights;
mod registry_server;
#[path = "../crash/rng.rs"]
#[allow(dead_code, reason = "each test target uses its part")]
mod rng;
mod server_api;
#[path = "../support/mod.rs"]
mod support;
mod transfer;
