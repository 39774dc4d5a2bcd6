//! Share: a registry that knows who has which file, and peers that send the files to each other directly.
//! See `docs/spec/share.md`.
//!
//! | file | holds |
//! |---|---|
//! | `wire.rs` | the registry's messages: files and hosts, requests, responses |
//! | `registry.rs` | the registry's core: hosts, their files, and the rules for changing them |
//! | `server.rs` | the registry's server: connections and persistence |
//! | `client.rs` | a node's connection to the registry |
//! | `pieces.rs` | digests of a file and its pieces |
//! | `transfer.rs` | serving published files, fetching those of others |
//! | `heartbeat.rs` | when a node sends its next heartbeat |
//! | `dir_handle.rs` | folders that are held open, so that no symbolic link leads out of them |
//! | `folders.rs` | which paths a node may read or write |
//! | `files.rs` | the files that a node tracks |
//! | `similarity.rs` | how alike two files are, by size and time |
//! | `token_digest.rs` | what is kept of a token instead of itself |
//! | `unix_time.rs` | times as the wire's seconds |
//! | `api_client.rs` | a client of the HTTP APIs |
//! | `node.rs` | one user's node: publishing, fetching, the connection to the registry |
//! | `page.rs` | paging and searching in lists |
//! | `client_api.rs` | a node's HTTP API for its user's programs and pages |
//! | `server_api.rs` | the server's HTTP API: accounts, the operator's view, metrics |
//! | `response_fields.rs` | response fields that both APIs share |

pub mod api_client;
pub mod client;
pub mod client_api;
pub mod dir_handle;
pub mod files;
pub mod folders;
pub mod heartbeat;
pub mod node;
pub mod page;
pub mod pieces;
pub mod registry;
mod response_fields;
pub mod server;
pub mod server_api;
pub mod similarity;
mod token_digest;
pub mod transfer;
pub mod unix_time;
pub mod wire;
