//! What all listeners of a process share: its threads, and its bounds on connections and on received data.

use std::sync::Arc;

use crate::net::budget::{RECEIVE_BUDGET_BYTES, ReceiveBudget};
use crate::net::limits::{self, MachineBounds, RequestedBounds};
use crate::net::listener::{ConnectionLimiter, ListenerContext};
use crate::net::threads::Executor;
use crate::net::tls::TlsIdentity;

/// The shared resources. A clone shares them too.
#[derive(Debug, Clone)]
pub struct SharedResources {
    pub executor: Arc<Executor>,
    pub limiter: Arc<ConnectionLimiter>,
    pub budget: Arc<ReceiveBudget>,
}

/// `advice` says what the operator can do if the machine allows fewer files.
pub fn prepare_process(own_files: u64, advice: &str) -> anyhow::Result<()> {
    limits::prepare_process(own_files).map_err(|too_few| anyhow::anyhow!("{too_few}: {advice}"))
}

impl SharedResources {
    /// As much of the wanted bounds as the machine allows. A lowered number of connections is warned of as `what`;
    /// threads are named `threads`.
    pub fn within_bounds(wanted: RequestedBounds, what: &str, threads: &str) -> SharedResources {
        let wanted_connections = wanted.connections;
        let MachineBounds { connections, threads: max_threads, why } = limits::machine_bounds(wanted);
        if let Some(why) = why {
            limits::warn_lowered(what, wanted_connections, connections, &why);
        }
        SharedResources {
            executor: Executor::new(threads, max_threads),
            limiter: ConnectionLimiter::new(connections),
            budget: ReceiveBudget::new(RECEIVE_BUDGET_BYTES),
        }
    }

    pub fn listener_context(
        &self,
        identity: Option<Arc<TlsIdentity>>,
        allows_remote_plaintext: bool,
    ) -> ListenerContext {
        let SharedResources { executor, limiter, budget } = self.clone();
        ListenerContext { executor, limiter, budget, identity, allows_remote_plaintext }
    }
}
