//! Share: a registry that knows who has which file, and peers that send the files to each other directly.
//! SPEC.md section 6.
//!
//! | file | holds |
//! |---|---|
//! | `wire.rs` | the registry's messages: files and hosts, requests, answers |
//! | `registry.rs` | the registry's core: hosts, their files, who may change what |
//! | `server.rs` | the registry's server: connections, and what it keeps on disk |
//! | `client.rs` | a node's connection to the registry |
//! | `pieces.rs` | what a file and its pieces are checked by |
//! | `transfer.rs` | serving published files, fetching those of others |
//! | `heartbeat.rs` | how often a node says that it is there |
//! | `beneath.rs` | folders that are held open, so that no link leads out of them |
//! | `folders.rs` | which paths a node may be told to read or write |
//! | `files.rs` | the files that a node tracks |
//! | `api_client.rs` | calls of the HTTP APIs |
//! | `node.rs` | one user's node: publishing, fetching, the connection to the registry |
//! | `page.rs` | which part of a list is asked for |
//! | `client_api.rs` | what a user's programs and pages ask of a node |
//! | `server_api.rs` | the server's HTTP API: accounts, the operator's view, metrics |

pub mod api_client;
pub mod beneath;
pub mod client;
pub mod client_api;
pub mod files;
pub mod folders;
pub mod heartbeat;
pub mod node;
pub mod page;
pub mod pieces;
pub mod registry;
pub mod server;
pub mod server_api;
mod shapes;
pub mod transfer;
pub mod wire;
