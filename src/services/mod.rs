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
use std::time::Duration;

pub use listeners::Listeners;
pub use resources::prepare_process;

/// What runs in a process, until it is stopped.
pub struct ServiceProcess {
    pub listeners: Listeners,
    pub stop: Box<dyn FnOnce()>,
}

impl ServiceProcess {
    /// `stop` gets the time that what is in hand has.
    fn new(listeners: Listeners, grace: Duration, stop: impl FnOnce(Duration) + 'static) -> ServiceProcess {
        let stop = move || {
            log::info!("stopping: no new work; what is in hand has {} s", grace.as_secs());
            stop(grace);
        };
        ServiceProcess { listeners, stop: Box::new(stop) }
    }
}

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
