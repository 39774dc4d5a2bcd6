//! The trade service: its files in the data dir, and its port.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::announcement::AnnouncedService;
use super::listeners::{Listeners, port_in_use};
use super::resources::SharedResources;
use super::while_alive;
use crate::model::Clock;
use crate::net::tls::TlsIdentity;
use crate::share::server_api::Metrics;
use crate::trade::server::{TradeServer, TradeServerConfig, TradeServerContext, TradeStartError};

mod data_dir;

use data_dir::TradeDataDir;

pub(super) struct TradeService {
    server: Arc<TradeServer>,
    data: TradeDataDir,
    plaintext: bool,
}

impl TradeService {
    /// Opens the files, then the port.
    pub(super) fn start(
        config: TradeServerConfig,
        data_dir: &Path,
        resources: &SharedResources,
        listeners: &mut Listeners,
    ) -> anyhow::Result<TradeService> {
        let data = TradeDataDir::open(data_dir)?;
        let SharedResources { executor, limiter, budget } = resources.clone();
        let context = TradeServerContext {
            executor,
            limiter,
            budget,
            clock: Clock::start(),
            identity: Arc::clone(&data.identity),
            store: Arc::clone(&data.store),
            gateway: data.gateway.clone(),
            first_id_range: data.first_id_range,
            charged_up_to: data.charged_up_to,
        };
        let plaintext = config.plaintext;
        let server = TradeServer::start(config, context).map_err(|error| match error {
            TradeStartError::Bind { addr, source } if source.kind() == io::ErrorKind::AddrInUse => {
                port_in_use(addr, "--trade-port")
            }
            error => error.into(),
        })?;
        let service = TradeService { server: Arc::new(server), data, plaintext };
        let addr = service.server.local_addr();
        listeners.add(format!("trade: udp {addr}"), "trade_udp", addr);
        let plain = if plaintext { " (settlement without TLS)" } else { "" };
        listeners.add(format!("trade: tcp {addr}{plain}"), "trade_tcp", addr);
        let cert_sha256 = service.identity().map(|identity| identity.fingerprint().to_owned());
        listeners.announced.push(AnnouncedService { name: "trade", port: addr.port(), cert_sha256 });
        Ok(service)
    }

    /// The certificate that settlements show; `None` if they do without TLS.
    pub(super) fn identity(&self) -> Option<Arc<TlsIdentity>> {
        (!self.plaintext).then(|| Arc::clone(&self.data.identity))
    }

    pub(super) fn server(&self) -> &Arc<TradeServer> {
        &self.server
    }

    pub(super) fn register_metrics(&self, metrics: &Metrics) {
        let counters = |server: &TradeServer| {
            // The counters already carry the service's name.
            let unnamed =
                |(name, count): (String, u64)| (name.strip_prefix("trade_").unwrap_or(&name).to_owned(), count);
            server.counters().into_iter().map(unnamed).collect::<Vec<_>>()
        };
        metrics.add_counters("trade", while_alive(&self.server, counters));
        metrics.add_sizes("trade", while_alive(&self.server, TradeServer::sizes));
        metrics.add_latencies("trade_requests", while_alive(&self.server, TradeServer::latencies));
        let commits = |server: &TradeServer| server.store().commit_latencies();
        metrics.add_latencies("trade_commits", while_alive(&self.server, commits));
    }

    pub(super) fn stop(&self, deadline: Instant) {
        self.server.stop(deadline.saturating_duration_since(Instant::now()));
        for (name, count) in self.server.counters() {
            log::debug!("{name} {count}");
        }
        self.data.close();
    }
}
