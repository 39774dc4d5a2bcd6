//! Share: a registry that knows who has which file, and peers that send the files to each other directly.
//! See `docs/spec/share.md`; `docs/architecture.md` lists the files.

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
