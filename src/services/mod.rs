//! What a process runs: puts rooms, listeners, stores and announcements together.
//!
//! A service is built from a plain configuration and knows neither the command line nor the terminal. Errors name the
//! flags that an operator can change.
//!
//! | file | holds |
//! |---|---|
//! | `server.rs` | all services of a host in one process |
//! | `component.rs` | a component of the shop in a process of its own |
//! | `node.rs` | a file-sharing node |
//! | `trade.rs`, `shop.rs`, `share.rs` | one service each, with its files and listeners |
//! | `tls.rs` | which certificate listeners present |
//! | `resources.rs` | threads, and bounds on connections and data, of a whole process |
//! | `listeners.rs`, `ready_file.rs`, `page_urls.rs` | what is reported once everything is bound |
//! | `announcement.rs` | announcements on the LAN |
//! | `stores.rs` | the stores of a data dir, and their check before a start |
//! | `paths.rs` | where files are, and how names become file names |
//! | `running_nodes.rs` | how commands find the nodes that run on this machine |

pub mod announcement;
pub mod component;
mod listeners;
pub mod node;
pub mod page_urls;
pub mod paths;
pub mod ready_file;
mod resources;
pub mod running_nodes;
pub mod server;
pub mod share;
pub mod shop;
pub mod stores;
pub mod tls;
mod trade;

pub use listeners::Listeners;
pub use resources::prepare_process;
