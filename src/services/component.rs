//! A component of the shop that has a process to itself.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::announcement::{AnnounceConfig, Announcer};
use super::listeners::Listeners;
use super::resources::{self, SharedResources};
use super::shop::{self, CustomerService, DatabaseService, ProductService};
use super::tls::TlsConfig;
use super::{ServiceProcess, stores};
use crate::model::FeeRate;
use crate::net::cluster;
use crate::net::limits::RequestedBounds;
use crate::shop::frontend::{self, DatabaseLocation, FrontendConfig};
use crate::shop::listener::ShopContext;
use crate::shop::ops::Role;

const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// Threads other than those of connections: sweepers, store writers, acceptors.
const OTHER_THREADS: usize = 64;
/// Files that a component keeps open: standard streams, locks, a port, at most two stores, and files that are opened
/// briefly.
const OWN_FILES: u64 = 26;

#[derive(Debug, Clone)]
pub struct ComponentConfig {
    pub bind: IpAddr,
    pub data_dir: PathBuf,
    /// What components prove to each other; without it, the key in the data dir.
    pub cluster_key: Option<PathBuf>,
    pub max_connections: usize,
    pub tls: TlsConfig,
}

#[derive(Debug, Clone)]
pub struct FrontendComponentConfig {
    pub role: Role,
    pub ports: Vec<u16>,
    /// `HOST:PORT` of the product database.
    pub product: String,
    pub customer: String,
    pub announce: AnnounceConfig,
}

/// Starts the product database.
pub fn product(config: &ComponentConfig, port: u16, hold_timeout: Duration) -> anyhow::Result<ServiceProcess> {
    let dir = config.data_dir.as_path();
    let lock = ProductService::lock(dir)?;
    stores::check_product_stores(dir)?;
    let context = component_context(config)?;
    let addr = SocketAddr::new(config.bind, port);
    Ok(database_process(ProductService::start(addr, "--port", &context, (dir, lock), hold_timeout)?))
}

/// Starts the customer database.
pub fn customer(
    config: &ComponentConfig,
    port: u16,
    session_timeout: Duration,
    fee: FeeRate,
) -> anyhow::Result<ServiceProcess> {
    let dir = config.data_dir.as_path();
    let lock = CustomerService::lock(dir)?;
    stores::check_customer_stores(dir)?;
    let context = component_context(config)?;
    let addr = SocketAddr::new(config.bind, port);
    Ok(database_process(CustomerService::start(addr, "--port", &context, (dir, lock), session_timeout, fee)?))
}

fn database_process<Db: 'static>(database: DatabaseService<Db>) -> ServiceProcess {
    let mut listeners = Listeners::default();
    database.add_to(&mut listeners);
    ServiceProcess::new(listeners, SHUTDOWN_GRACE, move |grace| database.stop(grace))
}

/// Starts a frontend.
pub fn frontend(config: &ComponentConfig, own: FrontendComponentConfig) -> anyhow::Result<ServiceProcess> {
    let FrontendComponentConfig { role, ports, product, customer, announce } = own;
    let context = component_context(config)?;
    let addrs = ports.iter().map(|port| SocketAddr::new(config.bind, *port)).collect();
    let frontend = FrontendConfig { role, addrs, product, customer, databases: DatabaseLocation::Remote };
    let mut listeners = Listeners::default();
    let server = shop::start_frontend(frontend, "--port", &context, &mut listeners)?;
    let command = match role {
        Role::Seller => "seller-server",
        Role::Buyer => "buyer-server",
    };
    let announced = std::mem::take(&mut listeners.announced);
    let announcer = Announcer::start(&announce, command, config.bind, announced);
    Ok(ServiceProcess::new(listeners, SHUTDOWN_GRACE, move |grace| {
        announcer.stop();
        server.stop(grace);
    }))
}

fn component_context(config: &ComponentConfig) -> anyhow::Result<ShopContext> {
    let data_dir: &Path = &config.data_dir;
    resources::prepare_process(OWN_FILES, "raise it")?;
    let wanted = RequestedBounds {
        connections: config.max_connections,
        own_files: OWN_FILES,
        other_threads: OTHER_THREADS,
        other_files: frontend::LINKS_MAX,
    };
    let resources = SharedResources::within_bounds(wanted, "--max-connections", "request");
    let identity = config.tls.identity(config.bind, data_dir)?;
    let key_file = config.cluster_key.clone().unwrap_or_else(|| data_dir.join(cluster::FILE_NAME));
    shop::shop_context(&resources, identity, config.tls.insecure, &key_file)
}
