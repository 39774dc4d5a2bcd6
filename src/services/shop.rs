//! The shop's databases and frontends, with their files and listeners.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::listeners::{Listeners, port_in_use};
use super::resources::SharedResources;
use super::stores::{CUSTOMER_DB, SHOP_BANK_DB};
use super::while_alive;
use crate::bank::BuiltinGateway;
use crate::model::FeeRate;
use crate::net::cluster::ClusterKey;
use crate::net::counters::LatencySnapshot;
use crate::net::interfaces::reachable_addr;
use crate::net::tls::TlsIdentity;
use crate::share::server_api::Metrics;
use crate::shop::customer::{self, CustomerDb, CustomerDbConfig};
use crate::shop::frontend::{DatabaseLocation, FrontendConfig, FrontendServer};
use crate::shop::listener::{ShopContext, ShopListener, ShopStartError};
use crate::shop::ops::Role;
use crate::shop::product::{ProductDb, ProductDbSettings};
use crate::storage::backup::{self, DataComponent};
use crate::storage::lock::{DataDirLock, LockError};
use crate::storage::{Store, create_private_dir};
use crate::web::operator::ShopDatabases;

/// Where the four components listen, and their settings.
#[derive(Debug, Clone)]
pub struct ShopConfig {
    pub product: SocketAddr,
    pub customer: SocketAddr,
    pub sellers: Vec<SocketAddr>,
    pub buyers: Vec<SocketAddr>,
    /// How long stock is held for a purchase.
    pub hold_timeout: Duration,
    /// A session ends after so long without a request.
    pub session_timeout: Duration,
    pub fee: FeeRate,
    /// Components prove to each other that they know this key; it is created if there is none.
    pub cluster_key: PathBuf,
}

/// The four servers communicate over TCP even within one process.
pub(super) struct ShopService {
    product: ProductService,
    customer: CustomerService,
    frontends: Vec<(&'static str, FrontendServer)>,
}

impl ShopService {
    /// What the databases could also use as separate processes.
    pub(super) fn lock(dir: &Path) -> Result<[DataDirLock; 2], LockError> {
        Ok([ProductService::lock(dir)?, CustomerService::lock(dir)?])
    }

    /// Frontends without a certificate of their own show that of trade.
    pub(super) fn start(
        config: &ShopConfig,
        dir: &Path,
        mut context: ShopContext,
        trade_identity: Option<Arc<TlsIdentity>>,
        [product_lock, customer_lock]: [DataDirLock; 2],
        listeners: &mut Listeners,
    ) -> anyhow::Result<ShopService> {
        let data = (dir, product_lock);
        let product = ProductService::start(config.product, "--product-port", &context, data, config.hold_timeout)?;
        let (timeout, data) = (config.session_timeout, (dir, customer_lock));
        let customer = CustomerService::start(config.customer, "--customer-port", &context, data, timeout, config.fee)?;
        let (product_addr, customer_addr) = (product.local_addr(), customer.local_addr());
        product.add_to(listeners);
        customer.add_to(listeners);
        let databases = DatabaseLocation::SameProcess { has_tls: context.listener.identity.is_some() };
        context.listener.identity = context.listener.identity.or(trade_identity);
        let mut frontends = Vec::new();
        for (role, flag, addrs) in
            [(Role::Seller, "--seller-port", &config.sellers), (Role::Buyer, "--buyer-port", &config.buyers)]
        {
            let frontend = FrontendConfig {
                role,
                addrs: addrs.clone(),
                product: reachable_addr(product_addr).to_string(),
                customer: reachable_addr(customer_addr).to_string(),
                databases,
            };
            frontends.push((role.as_str(), start_frontend(frontend, flag, &context, listeners)?));
        }
        Ok(ShopService { product, customer, frontends })
    }

    pub(super) fn databases(&self) -> ShopDatabases {
        ShopDatabases { products: Arc::clone(self.product.db()), customers: Arc::clone(self.customer.db()) }
    }

    pub(super) fn register_metrics(self: &Arc<Self>, metrics: &Metrics) {
        metrics.add_sizes("shop", while_alive(self, ShopService::sizes));
        metrics.add_counters("shop", while_alive(self, ShopService::counters));
        metrics.add_latencies("shop_requests", while_alive(self, ShopService::latencies));
        let commits = |shop: &ShopService| shop.customer.db().store().commit_latencies();
        metrics.add_latencies("shop_commits", while_alive(self, commits));
    }

    fn counters(&self) -> Vec<(String, u64)> {
        fn named(part: &str, list: impl IntoIterator<Item = (impl Display, u64)>) -> Vec<(String, u64)> {
            list.into_iter().map(|(name, count)| (format!("{part}_{name}"), count)).collect()
        }
        let databases = [named("product_db", self.product.counters()), named("customer_db", self.customer.counters())];
        let frontends = self.frontends.iter().map(|(part, frontend)| named(part, frontend.counters()));
        frontends.chain(databases).flatten().collect()
    }

    fn latencies(&self) -> LatencySnapshot {
        let all = self.frontends.iter().map(|(_, frontend)| frontend.latencies());
        all.fold(LatencySnapshot::default(), |sum, one| sum.merged_with(&one))
    }

    fn sizes(&self) -> Vec<(&'static str, u64)> {
        let customers = self.customer.db();
        let (sessions, _) = customers.session_and_buyer_counts();
        let mut sizes =
            vec![("sessions", sessions as u64), ("purchases_under_way", customers.open_purchase_count() as u64)];
        match self.product.db().items_on_sale() {
            Ok(items) => sizes.push(("items_on_sale", items)),
            // The value is left out this time.
            Err(error) => log::debug!("how many items are on sale: {error}"),
        }
        sizes
    }

    /// The frontends first: their pending requests need the databases.
    pub(super) fn stop(&self, deadline: Instant) {
        let left = || deadline.saturating_duration_since(Instant::now());
        for (name, frontend) in &self.frontends {
            frontend.stop(left());
            for (counter, count) in frontend.counters() {
                log::debug!("{name}_{counter} {count}");
            }
        }
        self.product.stop(left());
        self.customer.stop(left());
    }
}

pub(super) fn shop_context(
    resources: &SharedResources,
    identity: Option<Arc<TlsIdentity>>,
    allows_remote_plaintext: bool,
    key_file: &Path,
) -> anyhow::Result<ShopContext> {
    // The first component in a data dir creates the key and its folder.
    if let Some(dir) = key_file.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        create_private_dir(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    }
    let key = ClusterKey::load_or_create(key_file)?;
    Ok(ShopContext { listener: resources.listener_context(identity, allows_remote_plaintext), key })
}

/// A database with its files, its listener and its part of the data dir.
pub(super) struct DatabaseService<Db> {
    name: &'static str,
    db: Arc<Db>,
    listener: ShopListener,
    /// It is called once the listener has stopped.
    close: Box<dyn Fn() + Send + Sync>,
    _lock: DataDirLock,
}

pub(super) type ProductService = DatabaseService<ProductDb>;
pub(super) type CustomerService = DatabaseService<CustomerDb>;

impl<Db> DatabaseService<Db> {
    pub(super) fn db(&self) -> &Arc<Db> {
        &self.db
    }

    /// The address for links from frontends and for unauthenticated connections.
    pub(super) fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    pub(super) fn add_to(&self, listeners: &mut Listeners) {
        let (name, addr) = (self.name, self.local_addr());
        listeners.add(format!("{name}-db: tcp {addr}"), &format!("{name}_db"), addr);
    }

    pub(super) fn counters(&self) -> Vec<(&'static str, u64)> {
        self.listener.counters()
    }

    /// Finishes pending requests and closes the files.
    pub(super) fn stop(&self, grace: Duration) {
        self.listener.stop(grace);
        (self.close)();
    }
}

impl ProductService {
    /// Must be called before anything in the data dir is examined or created.
    pub(super) fn lock(data_dir: &Path) -> Result<DataDirLock, LockError> {
        DataDirLock::acquire_component(data_dir, DataComponent::Product)
    }

    pub(super) fn start(
        addr: SocketAddr,
        flag: &str,
        context: &ShopContext,
        (data_dir, lock): (&Path, DataDirLock),
        hold_timeout: Duration,
    ) -> anyhow::Result<ProductService> {
        let first_id_range = backup::first_id_range(data_dir, DataComponent::Product)?;
        let db = Arc::new(ProductDb::open(data_dir, ProductDbSettings { hold_timeout, first_id_range })?);
        let listener = ShopListener::open_product(addr, context.clone(), Arc::clone(&db) as _)
            .map_err(|error| explain_start_error(error, flag))?;
        let closed = Arc::clone(&db);
        Ok(DatabaseService { name: "product", db, listener, close: Box::new(move || closed.close()), _lock: lock })
    }
}

impl CustomerService {
    pub(super) fn lock(data_dir: &Path) -> Result<DataDirLock, LockError> {
        DataDirLock::acquire_component(data_dir, DataComponent::Customer)
    }

    /// Completes interrupted purchases before the listener opens.
    pub(super) fn start(
        addr: SocketAddr,
        flag: &str,
        context: &ShopContext,
        (data_dir, lock): (&Path, DataDirLock),
        session_timeout: Duration,
        fee: FeeRate,
    ) -> anyhow::Result<CustomerService> {
        let store = Arc::new(Store::open(&data_dir.join(CUSTOMER_DB), customer::MIGRATIONS)?);
        let bank = Arc::new(BuiltinGateway::open_file(&data_dir.join(SHOP_BANK_DB))?);
        let first_id_range = backup::first_id_range(data_dir, DataComponent::Customer)?;
        let config = CustomerDbConfig { session_timeout, fee, first_id_range, ..CustomerDbConfig::default() };
        let db = Arc::new(CustomerDb::open(Arc::clone(&store), Arc::clone(&bank) as _, config)?);
        let listener = ShopListener::open_customer(addr, context.clone(), Arc::clone(&db) as _)
            .map_err(|error| explain_start_error(error, flag))?;
        let closed = Arc::clone(&db);
        let close = Box::new(move || {
            closed.close();
            store.close();
            bank.close();
        });
        Ok(DatabaseService { name: "customer", db, listener, close, _lock: lock })
    }
}

/// `flag` chose the ports.
pub(super) fn start_frontend(
    config: FrontendConfig,
    flag: &str,
    context: &ShopContext,
    listeners: &mut Listeners,
) -> anyhow::Result<FrontendServer> {
    let name = config.role.as_str();
    let server = FrontendServer::start(config, context).map_err(|error| explain_start_error(error, flag))?;
    let cert_sha256 = context.listener.identity.as_ref().map(|identity| identity.fingerprint().to_owned());
    listeners.add_frontend(name, &server.local_addrs(), cert_sha256);
    Ok(server)
}

/// Names the flag by which a port that is in use was chosen.
fn explain_start_error(error: ShopStartError, flag: &str) -> anyhow::Error {
    match error {
        ShopStartError::Bind { addr, source } if source.kind() == io::ErrorKind::AddrInUse => port_in_use(addr, flag),
        error => error.into(),
    }
}
