//! All services of a host in one process.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::announcement::{AnnounceConfig, Announcer};
use super::listeners::Listeners;
use super::resources::{self, SharedResources};
use super::share::{ShareService, ShareServiceConfig, ShareServiceDeps};
use super::shop::{self, ShopConfig, ShopService};
use super::tls::TlsConfig;
use super::trade::TradeService;
use super::{ServiceProcess, stores};
use crate::net::limits::RequestedBounds;
use crate::shop::frontend;
use crate::storage::lock::DataDirLock;
use crate::trade;
use crate::trade::server::TradeServerConfig;

const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// Threads that serve neither connections nor datagrams: timers, store writers, socket readers.
const OTHER_THREADS: usize = 64;
/// Files that any server keeps open: standard streams, locks, the user store, HTTP, and files that are opened briefly.
const OWN_FILES: u64 = 26;
/// Two stores and a port for UDP and TCP.
const OWN_FILES_OF_TRADE: u64 = 18;
/// Three stores, four ports and the locks of two components.
const OWN_FILES_OF_SHOP: u64 = 36;
/// A store and a port.
const OWN_FILES_OF_SHARE: u64 = 10;
/// Connections that settlements keep open at once: one to each side.
const SETTLEMENT_CONNECTIONS_MAX: usize = 2 * trade::exchange::SETTLEMENTS_MAX;

pub struct ServerConfig {
    /// The address of all listeners but HTTP.
    pub bind: IpAddr,
    pub data_dir: PathBuf,
    pub trade: Option<TradeServerConfig>,
    pub shop: Option<ShopConfig>,
    /// Accounts and HTTP are always there.
    pub share: ShareServiceConfig,
    /// Connections of all listeners together.
    pub max_connections: usize,
    pub tls: TlsConfig,
    pub announce: AnnounceConfig,
}

/// Starts what is configured.
pub fn start(config: ServerConfig) -> anyhow::Result<ServiceProcess> {
    let lock = DataDirLock::acquire(&config.data_dir)?;
    let shop_locks = config.shop.is_some().then(|| ShopService::lock(&config.data_dir)).transpose()?;
    let has_registry = config.share.registry.is_some();
    // Checked before a certificate or key is created: such files would make the data dir look like a used one.
    stores::check_server_stores(&config.data_dir, config.trade.is_some(), config.shop.is_some(), has_registry)?;
    let resources = shared_resources(&config)?;
    let ServerConfig { bind, data_dir, trade, shop, share, tls, announce, .. } = config;

    let mut listeners = Listeners::default();
    let start_trade = |config| TradeService::start(config, &data_dir, &resources, &mut listeners);
    let trade = trade.map(start_trade).transpose()?;
    // The certificate that settlements use also serves the shop's TLS clients if no other is configured, so that a
    // user confirms one certificate per server.
    let trade_identity = trade.as_ref().and_then(TradeService::identity);
    let shop = match shop.zip(shop_locks) {
        Some((config, locks)) => {
            let identity = tls.identity(bind, &data_dir)?;
            let context = shop::shop_context(&resources, identity, tls.insecure, &config.cluster_key)?;
            let identity = trade_identity.clone();
            Some(Arc::new(ShopService::start(&config, &data_dir, context, identity, locks, &mut listeners)?))
        }
        None => None,
    };
    let deps = ShareServiceDeps {
        data_dir: &data_dir,
        bind,
        tls: &tls,
        trade_identity,
        resources: &resources,
        trade: trade.as_ref().map(|trade| Arc::clone(trade.server())),
        shop: shop.as_ref().map(|shop| shop.databases()),
    };
    let share = ShareService::start(share, &deps, &mut listeners)?;
    if let Some(trade) = &trade {
        trade.register_metrics(share.metrics());
    }
    if let Some(shop) = &shop {
        shop.register_metrics(share.metrics());
    }
    let announcer = Announcer::start(&announce, "server", bind, std::mem::take(&mut listeners.announced));
    Ok(ServiceProcess::new(listeners, SHUTDOWN_GRACE, move |grace| {
        announcer.stop();
        let deadline = Instant::now() + grace;
        // Trade stops last: it waits for the executor's threads, which the other services use too.
        share.stop(deadline);
        if let Some(shop) = shop {
            shop.stop(deadline);
        }
        if let Some(trade) = trade {
            trade.stop(deadline);
        }
        drop((announcer, share, lock));
    }))
}

fn shared_resources(config: &ServerConfig) -> anyhow::Result<SharedResources> {
    let (mut other_threads, mut other_files, mut own_files) = (OTHER_THREADS, 0, OWN_FILES);
    if config.trade.is_some() {
        own_files += OWN_FILES_OF_TRADE;
        other_threads += trade::server::DATAGRAMS_IN_PROGRESS_MAX + trade::server::SETTLEMENT_THREADS_MAX;
        other_files += SETTLEMENT_CONNECTIONS_MAX;
    }
    if config.shop.is_some() {
        own_files += OWN_FILES_OF_SHOP;
        // Both ends of every link are in this process; one of them already counts as a connection.
        other_files += 4 * frontend::LINKS_MAX;
    }
    if config.share.registry.is_some() {
        own_files += OWN_FILES_OF_SHARE;
    }
    resources::prepare_process(own_files, "raise it, or run fewer services here (--services)")?;
    let wanted = RequestedBounds { connections: config.max_connections, own_files, other_threads, other_files };
    Ok(SharedResources::within_bounds(wanted, "--max-connections", "request"))
}
