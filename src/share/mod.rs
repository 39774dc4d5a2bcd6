//! Share: a registry that knows who has which file, and peers that send the files to each other directly.
//! SPEC.md section 6.
//!
//! | file | holds |
//! |---|---|
//! | `wire.rs` | the registry's messages: files and hosts, requests, answers |
//! | `registry.rs` | the registry's core: hosts, their files, who may change what |
//! | `server.rs` | the registry's server: connections, and what it keeps on disk |
//! | `client.rs` | a node's connection to the registry |
//! | `server_api.rs` | the server's HTTP API: accounts, the operator's view, metrics |

pub mod client;
pub mod registry;
pub mod server;
pub mod server_api;
pub mod wire;
