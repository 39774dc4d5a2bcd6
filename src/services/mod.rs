//! What a process runs: puts rooms, listeners, stores and announcements together.
//!
//! A service is built from a plain configuration and knows neither the command line nor the terminal. Errors name the
//! flags that an operator can change.

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

use std::sync::Arc;

pub use listeners::Listeners;
pub use resources::prepare_process;

/// Reads counters or sizes for the metrics, and nothing once their owner has ended: the metrics may outlive a service,
/// and the HTTP server itself holds them.
fn while_alive<T, R>(owner: &Arc<T>, read: fn(&T) -> R) -> impl Fn() -> R + Send + Sync + use<T, R>
where
    T: Send + Sync + 'static,
    R: Default + 'static,
{
    let owner = Arc::downgrade(owner);
    move || owner.upgrade().map_or_else(R::default, |owner| read(&owner))
}
