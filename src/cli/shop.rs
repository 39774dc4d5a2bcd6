//! The shop's components, as commands of their own and as services of `p2s2 server`.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Map, Value};

use super::announce::{AnnounceArgs, AnnouncedService, Announcer};
use super::{ready_file, settings, stores};
use crate::bank::BuiltinGateway;
use crate::model::FeeRate;
use crate::net::budget::{RECEIVE_BUDGET_BYTES, ReceiveBudget};
use crate::net::cluster::{self, ClusterKey};
use crate::net::limits::{self, MachineBounds, RequestedBounds};
use crate::net::listener::ConnectionLimiter;
use crate::net::shutdown::ShutdownSignal;
use crate::net::threads::Executor;
use crate::net::tls::TlsIdentity;
use crate::shop::customer::{self, CustomerDb};
use crate::shop::frontend::{self, DatabaseLocation, FrontendServer};
use crate::shop::listener::{ShopContext, ShopListener, ShopStartError};
use crate::shop::ops::Role;
use crate::shop::product::{ProductDb, ProductDbSettings};
use crate::storage::backup::{self, DataComponent};
use crate::storage::lock::{DataDirLock, LockError};
use crate::storage::{Store, create_private_dir};

/// The customer database's file in its data dir.
pub const CUSTOMER_DB: &str = "customer.db";
/// The customer database's own bank, since it may run on a host of its own.
pub const SHOP_BANK_DB: &str = "shop-bank.db";
/// How long pending work may take to finish at shutdown.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// Threads other than those of connections: sweepers, store writers, acceptors.
const OTHER_THREADS: usize = 64;
/// Files that a component keeps open: standard streams, locks, a port, at most two stores, and files that are opened
/// briefly.
const OWN_FILES: u64 = 26;

/// One port or several: `8001` or `8001,8080`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports(pub Vec<u16>);

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Ports, String> {
        let port = |word: &str| word.trim().parse().map_err(|_| format!("{word:?} is no port: expected 0 to 65535"));
        text.split(',').map(port).collect::<Result<_, _>>().map(Ports)
    }
}

/// How listeners beyond loopback are guarded.
#[derive(Debug, Clone, Args)]
pub struct TlsArgs {
    /// Speak TLS, with the data dir's own certificate unless one is given
    #[arg(long, value_parser = settings::parse_switch())]
    pub tls: bool,
    /// The certificate to present, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Listen beyond loopback without TLS all the same
    #[arg(long, value_parser = settings::parse_switch())]
    pub insecure: bool,
}

/// First line of a certificate file that was created where trade has not run. Such a file is no sign that trade's
/// database is missing.
pub const CREATED_WITHOUT_TRADE: &str = "Made before trade was ever served here.\n";

impl TlsArgs {
    /// Whether listeners beyond loopback are allowed: with TLS, or without on explicit request.
    pub fn is_guarded(&self) -> bool {
        self.tls || self.tls_cert.is_some() || self.insecure
    }

    /// The certificate to present, if any. Beyond loopback one is required unless `--insecure` is given.
    ///
    /// # Errors
    /// No certificate beyond loopback, or it cannot be loaded or created.
    pub fn identity(&self, bind: IpAddr, data_dir: &Path) -> anyhow::Result<Option<Arc<TlsIdentity>>> {
        if let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) {
            return Ok(Some(Arc::new(TlsIdentity::load(cert, key)?)));
        }
        if self.tls {
            // A component that runs alone on a new machine has no data dir yet.
            create_private_dir(data_dir).with_context(|| format!("cannot make the folder {}", data_dir.display()))?;
            return Ok(Some(Arc::new(TlsIdentity::load_or_create_with_note(data_dir, CREATED_WITHOUT_TRADE)?)));
        }
        if !bind.is_loopback() && !self.insecure {
            bail!(
                "--bind {bind} is open to other hosts: say --tls (with the data dir's own certificate) or --insecure"
            );
        }
        Ok(None)
    }
}

/// The context of all shop listeners of a process.
///
/// # Errors
/// The cluster key cannot be loaded or created.
pub fn shop_context(
    executor: Arc<Executor>,
    limiter: Arc<ConnectionLimiter>,
    budget: Arc<ReceiveBudget>,
    identity: Option<Arc<TlsIdentity>>,
    tls: &TlsArgs,
    key_file: &Path,
) -> anyhow::Result<ShopContext> {
    // The first component in a data dir creates the key and its folder.
    if let Some(dir) = key_file.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        create_private_dir(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    }
    Ok(ShopContext {
        executor,
        limiter,
        budget,
        identity,
        allows_remote_plaintext: tls.insecure,
        key: ClusterKey::load_or_create(key_file)?,
    })
}

/// The running product database.
pub struct ProductService {
    db: Arc<ProductDb>,
    listener: ShopListener,
    _lock: DataDirLock,
}

impl ProductService {
    /// Locks its part of the data dir. Must be called before anything there is examined or created.
    ///
    /// # Errors
    /// Another process holds the lock, or it cannot be acquired.
    pub fn lock(data_dir: &Path) -> Result<DataDirLock, LockError> {
        DataDirLock::acquire_component(data_dir, DataComponent::Product.lock_name())
    }

    /// Opens the database file and the listener.
    ///
    /// # Errors
    /// A one-line description with advice.
    pub fn start(
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
        Ok(ProductService { db, listener, _lock: lock })
    }

    pub fn db(&self) -> &Arc<ProductDb> {
        &self.db
    }

    /// The address for links from frontends.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// The listener's counters.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.listener.counters()
    }

    /// Stops accepting work, finishes pending requests and closes the file.
    pub fn stop(&self, grace: Duration) {
        self.listener.stop(grace);
        self.db.close();
    }
}

/// The running customer database.
pub struct CustomerService {
    db: Arc<CustomerDb>,
    store: Arc<Store>,
    bank: Arc<BuiltinGateway>,
    listener: ShopListener,
    _lock: DataDirLock,
}

impl CustomerService {
    /// Locks its part of the data dir. Must be called before anything there is examined or created.
    ///
    /// # Errors
    /// Another process holds the lock, or it cannot be acquired.
    pub fn lock(data_dir: &Path) -> Result<DataDirLock, LockError> {
        DataDirLock::acquire_component(data_dir, DataComponent::Customer.lock_name())
    }

    /// Opens the database files, completes interrupted purchases, and opens the listener.
    ///
    /// # Errors
    /// A one-line description with advice.
    pub fn start(
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
        let config = customer::CustomerDbConfig {
            session_timeout,
            fee,
            first_id_range,
            ..customer::CustomerDbConfig::default()
        };
        let db = Arc::new(CustomerDb::open(Arc::clone(&store), Arc::clone(&bank) as _, config)?);
        let listener = ShopListener::open_customer(addr, context.clone(), Arc::clone(&db) as _)
            .map_err(|error| explain_start_error(error, flag))?;
        Ok(CustomerService { db, store, bank, listener, _lock: lock })
    }

    pub fn db(&self) -> &Arc<CustomerDb> {
        &self.db
    }

    /// The address for links from frontends and for unauthenticated connections.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// The listener's counters.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.listener.counters()
    }

    /// Stops accepting work, finishes pending requests and closes the files.
    pub fn stop(&self, grace: Duration) {
        self.listener.stop(grace);
        self.db.close();
        self.store.close();
        self.bank.close();
    }
}

/// Starts a frontend.
///
/// # Errors
/// A one-line description with advice.
pub fn start_frontend(
    role: Role,
    addrs: Vec<SocketAddr>,
    flag: &str,
    context: &ShopContext,
    (product, customer): (String, String),
    databases: DatabaseLocation,
) -> anyhow::Result<FrontendServer> {
    let config = frontend::FrontendConfig { role, addrs, product, customer, databases };
    FrontendServer::start(config, context).map_err(|error| explain_start_error(error, flag))
}

/// Turns a start error into one that names the flag by which the port was chosen.
fn explain_start_error(error: ShopStartError, flag: &str) -> anyhow::Error {
    match error {
        ShopStartError::Bind { addr, source } if source.kind() == io::ErrorKind::AddrInUse => port_in_use(addr, flag),
        error => error.into(),
    }
}

/// The error for a port that is in use, with the flag by which it was chosen.
pub fn port_in_use(addr: SocketAddr, flag: &str) -> anyhow::Error {
    let (port, ip) = (addr.port(), addr.ip());
    anyhow::anyhow!("port {port} of {ip} is in use: stop what uses it, or choose another with {flag}")
}

/// Adds a frontend to the ready file: its first address, and all of them if there are several.
pub fn add_frontend_entries(name: &str, addrs: &[SocketAddr], entries: &mut Map<String, Value>) {
    if let Some(first) = addrs.first() {
        entries.insert(name.to_owned(), first.to_string().into());
    }
    if addrs.len() > 1 {
        let all = addrs.iter().map(|addr| Value::from(addr.to_string())).collect();
        entries.insert(format!("{name}_all"), all);
    }
}

/// A frontend's announcement, with its first port.
pub fn announced_frontend(name: &'static str, addrs: &[SocketAddr], context: &ShopContext) -> Option<AnnouncedService> {
    let cert_sha256 = context.identity.as_ref().map(|identity| identity.fingerprint().to_owned());
    addrs.first().map(|addr| AnnouncedService { name, port: addr.port(), cert_sha256 })
}

/// What every component's command has.
#[derive(Debug, Clone, Args)]
struct ComponentArgs {
    /// Address to bind; anything but loopback opens it to other machines
    #[arg(long, value_name = "IP")]
    bind: Option<IpAddr>,
    /// What components prove to each other (default: cluster.key in the data dir)
    #[arg(long, value_name = "FILE")]
    cluster_key: Option<PathBuf>,
    /// Write the real addresses there, as JSON, when everything is bound
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
    /// Connections at once
    #[arg(long, value_name = "N", default_value_t = 12_000, value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: u32,
    #[command(flatten)]
    tls: TlsArgs,
}

const DEFAULT_DATA_DIR: &str = "data/state";

/// The shop's products: items, search, stock
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  p2s2 product-db --port 9001 --data-dir /var/lib/p2s2")]
pub struct ProductArgs {
    /// Where frontends come in
    #[arg(long, value_name = "PORT", env = "P2S2_PRODUCT_DB_PORT", default_value_t = 9001)]
    port: u16,
    /// Where everything is kept
    #[arg(long, value_name = "DIR", env = "P2S2_PRODUCT_DB_DATA_DIR", default_value = DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
    /// Database; without it, SQLite files in the data dir
    #[arg(long, value_name = "URL", env = "P2S2_DB")]
    db: Option<String>,
    /// How long stock is held for a purchase
    #[arg(long, value_name = "TIME", value_parser = settings::parse_window, env = "P2S2_PRODUCT_DB_HOLD_TIMEOUT", default_value = "60s")]
    hold_timeout: Duration,
    #[command(flatten)]
    common: ComponentArgs,
}

/// The shop's customers: accounts, sessions, carts, purchases, the ledger
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  p2s2 customer-db --port 9002 --data-dir /var/lib/p2s2 --session-timeout 5m")]
pub struct CustomerArgs {
    /// Where frontends come in
    #[arg(long, value_name = "PORT", env = "P2S2_CUSTOMER_DB_PORT", default_value_t = 9002)]
    port: u16,
    /// Where everything is kept
    #[arg(long, value_name = "DIR", env = "P2S2_CUSTOMER_DB_DATA_DIR", default_value = DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
    /// Database; without it, SQLite files in the data dir
    #[arg(long, value_name = "URL", env = "P2S2_DB")]
    db: Option<String>,
    /// A session ends after so long without a request
    #[arg(long, value_name = "TIME", value_parser = settings::parse_window, env = "P2S2_CUSTOMER_DB_SESSION_TIMEOUT", default_value = "300s")]
    session_timeout: Duration,
    /// What the house takes of each sale
    #[arg(long, value_name = "PERCENT", value_parser = settings::parse_fee, allow_hyphen_values = true, env = "P2S2_CUSTOMER_DB_FEE_PERCENT", default_value = "10")]
    fee_percent: FeeRate,
    #[command(flatten)]
    common: ComponentArgs,
}

/// Where sellers' clients connect
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  p2s2 seller-server --port 8001 --product 127.0.0.1:9001 --customer 127.0.0.1:9002")]
pub struct SellerServerArgs {
    /// Where clients come in; may be a list
    #[arg(long, value_name = "PORT", env = "P2S2_SELLER_SERVER_PORT", default_value = "8001")]
    port: Ports,
    #[command(flatten)]
    backends: Backends,
    #[command(flatten)]
    announce: AnnounceArgs,
    #[command(flatten)]
    common: ComponentArgs,
}

/// Where buyers' clients connect
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  p2s2 buyer-server --port 8002 --product 127.0.0.1:9001 --customer 127.0.0.1:9002")]
pub struct BuyerServerArgs {
    /// Where clients come in; may be a list
    #[arg(long, value_name = "PORT", env = "P2S2_BUYER_SERVER_PORT", default_value = "8002")]
    port: Ports,
    #[command(flatten)]
    backends: Backends,
    #[command(flatten)]
    announce: AnnounceArgs,
    #[command(flatten)]
    common: ComponentArgs,
}

#[derive(Debug, Clone, Args)]
struct Backends {
    /// The product database
    #[arg(long, value_name = "HOST:PORT", value_parser = settings::parse_host_port, default_value = "127.0.0.1:9001")]
    product: String,
    /// The customer database
    #[arg(long, value_name = "HOST:PORT", value_parser = settings::parse_host_port, default_value = "127.0.0.1:9002")]
    customer: String,
}

/// Runs the product database until a signal ends it.
///
/// # Errors
/// A one-line description of what kept it from starting.
pub fn run_product(args: ProductArgs) -> anyhow::Result<ExitCode> {
    refuse_db(args.db.as_deref())?;
    settings::init_log("info");
    let dir = (args.data_dir.as_path(), ProductService::lock(&args.data_dir)?);
    stores::check_product_stores(&args.data_dir)?;
    let process = ComponentProcess::start(&args.common, &args.data_dir)?;
    let addr = SocketAddr::new(process.bind, args.port);
    let product = ProductService::start(addr, "--port", &process.context, dir, args.hold_timeout)?;
    let local = product.local_addr();
    process.run_until_shutdown(
        &args.common,
        &[format!("product-db: tcp {local}")],
        &ready_entry("product_db", local),
        |grace| {
            product.stop(grace);
        },
    )
}

/// Runs the customer database until a signal ends it.
///
/// # Errors
/// A one-line description of what kept it from starting.
pub fn run_customer(args: CustomerArgs) -> anyhow::Result<ExitCode> {
    refuse_db(args.db.as_deref())?;
    settings::init_log("info");
    let dir = (args.data_dir.as_path(), CustomerService::lock(&args.data_dir)?);
    stores::check_customer_stores(&args.data_dir)?;
    let process = ComponentProcess::start(&args.common, &args.data_dir)?;
    let addr = SocketAddr::new(process.bind, args.port);
    let customer =
        CustomerService::start(addr, "--port", &process.context, dir, args.session_timeout, args.fee_percent)?;
    let local = customer.local_addr();
    process.run_until_shutdown(
        &args.common,
        &[format!("customer-db: tcp {local}")],
        &ready_entry("customer_db", local),
        |grace| {
            customer.stop(grace);
        },
    )
}

/// Runs the sellers' frontend until a signal ends it.
///
/// # Errors
/// A one-line description of what kept it from starting.
pub fn run_seller_server(args: SellerServerArgs) -> anyhow::Result<ExitCode> {
    run_frontend(Role::Seller, &args.port, args.backends, &args.announce, &args.common)
}

/// Runs the buyers' frontend until a signal ends it.
///
/// # Errors
/// A one-line description of what kept it from starting.
pub fn run_buyer_server(args: BuyerServerArgs) -> anyhow::Result<ExitCode> {
    run_frontend(Role::Buyer, &args.port, args.backends, &args.announce, &args.common)
}

fn run_frontend(
    role: Role,
    ports: &Ports,
    backends: Backends,
    announce: &AnnounceArgs,
    common: &ComponentArgs,
) -> anyhow::Result<ExitCode> {
    settings::init_log("info");
    let process = ComponentProcess::start(common, Path::new(DEFAULT_DATA_DIR))?;
    let addrs = ports.0.iter().map(|port| SocketAddr::new(process.bind, *port)).collect();
    let databases = (backends.product, backends.customer);
    let server = start_frontend(role, addrs, "--port", &process.context, databases, DatabaseLocation::Remote)?;
    let (name, command) = match role {
        Role::Seller => ("seller", "seller-server"),
        Role::Buyer => ("buyer", "buyer-server"),
    };
    let locals = server.local_addrs();
    let mut entries = Map::new();
    add_frontend_entries(name, &locals, &mut entries);
    let lines: Vec<String> = locals.iter().map(|local| format!("{name}: tcp {local}")).collect();
    let services = announced_frontend(name, &locals, &process.context).into_iter().collect();
    let announcer = Announcer::start(announce, command, process.bind, services);
    process.run_until_shutdown(common, &lines, &entries, |grace| {
        announcer.stop();
        server.stop(grace);
    })
}

fn ready_entry(name: &str, addr: SocketAddr) -> Map<String, Value> {
    Map::from_iter([(name.to_owned(), addr.to_string().into())])
}

fn refuse_db(db: Option<&str>) -> anyhow::Result<()> {
    if db.is_some() {
        // The URL may contain a password, so it is not repeated.
        bail!("--db: this version keeps everything in SQLite files in --data-dir; leave --db (P2S2_DB) out");
    }
    Ok(())
}

/// What every component's process sets up before it opens its listeners.
struct ComponentProcess {
    shutdown: ShutdownSignal,
    bind: IpAddr,
    context: ShopContext,
}

impl ComponentProcess {
    fn start(common: &ComponentArgs, data_dir: &Path) -> anyhow::Result<ComponentProcess> {
        let shutdown = ShutdownSignal::install().context("cannot listen for signals")?;
        let bind = settings::bind_address(common.bind)?;
        if let Err(too_few) = limits::prepare_process(OWN_FILES) {
            bail!("{too_few}: raise it");
        }
        let wanted = common.max_connections as usize;
        let bounds = RequestedBounds {
            connections: wanted,
            own_files: OWN_FILES,
            other_threads: OTHER_THREADS,
            other_files: frontend::LINKS_MAX,
        };
        let MachineBounds { connections, threads, why } = limits::machine_bounds(bounds);
        if let Some(why) = why {
            limits::warn_lowered("--max-connections", wanted, connections, &why);
        }
        let identity = common.tls.identity(bind, data_dir)?;
        let key_file = common.cluster_key.clone().unwrap_or_else(|| data_dir.join(cluster::FILE_NAME));
        let executor = Executor::new("request", threads);
        let context = shop_context(
            executor,
            ConnectionLimiter::new(connections),
            ReceiveBudget::new(RECEIVE_BUDGET_BYTES),
            identity,
            &common.tls,
            &key_file,
        )?;
        Ok(ComponentProcess { shutdown, bind, context })
    }

    /// Reports readiness, waits for a signal, and stops.
    fn run_until_shutdown(
        self,
        common: &ComponentArgs,
        lines: &[String],
        entries: &Map<String, Value>,
        stop: impl FnOnce(Duration),
    ) -> anyhow::Result<ExitCode> {
        report_ready(common.ready_file.as_deref(), lines, entries)?;
        self.shutdown.wait();
        log::info!("stopping: no new work; what is in hand has {} s", SHUTDOWN_GRACE.as_secs());
        stop(SHUTDOWN_GRACE);
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes the ready file, then prints one line per listener and `ready`. Whoever reads `ready` can rely on the file.
///
/// # Errors
/// The file or standard output cannot be written.
pub fn report_ready(ready_file: Option<&Path>, lines: &[String], entries: &Map<String, Value>) -> anyhow::Result<()> {
    if let Some(path) = ready_file {
        ready_file::write(path, &Value::Object(entries.clone()))?;
    }
    let mut out = io::stdout().lock();
    // A new error without the I/O error as its source: here a closed pipe must not count as a normal end.
    writeln!(out, "{}\nready", lines.join("\n")).and_then(|()| out.flush()).map_err(|error| {
        anyhow::anyhow!("standard output cannot be written: {error}; send it to a file or to /dev/null")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_one_or_several() {
        assert_eq!("8001".parse(), Ok(Ports(vec![8001])));
        assert_eq!("8001, 0".parse(), Ok(Ports(vec![8001, 0])));
        for error in ["", "8001,", "70000", "x"] {
            assert!(error.parse::<Ports>().is_err(), "{error}");
        }
    }

    #[test]
    fn a_certificate_is_made_where_there_is_no_folder_yet() {
        let dir = tempfile::tempdir().unwrap();
        let tls = TlsArgs { tls: true, tls_cert: None, tls_key: None, insecure: false };
        let (loopback, fresh) = ("127.0.0.1".parse().unwrap(), dir.path().join("data/state"));
        let made = tls.identity(loopback, &fresh).unwrap().unwrap();
        assert_eq!(tls.identity(loopback, &fresh).unwrap().unwrap().fingerprint(), made.fingerprint());
    }

    #[test]
    fn beyond_loopback_there_is_tls_or_a_word_of_the_operator() {
        let dir = tempfile::tempdir().unwrap();
        let none = TlsArgs { tls: false, tls_cert: None, tls_key: None, insecure: false };
        let everywhere = "0.0.0.0".parse().unwrap();
        assert!(none.identity("127.0.0.1".parse().unwrap(), dir.path()).unwrap().is_none());
        let refused = none.identity(everywhere, dir.path()).err().unwrap().to_string();
        assert!(refused.contains("--tls") && refused.contains("--insecure"), "{refused}");
        assert!(TlsArgs { insecure: true, ..none.clone() }.identity(everywhere, dir.path()).unwrap().is_none());
        assert!(TlsArgs { tls: true, ..none }.identity(everywhere, dir.path()).unwrap().is_some());
    }

    #[test]
    fn a_list_of_addresses_has_its_first_and_all() {
        let addrs: Vec<SocketAddr> = vec!["127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()];
        let mut entries = Map::new();
        add_frontend_entries("seller", &addrs, &mut entries);
        add_frontend_entries("buyer", &addrs[..1], &mut entries);
        let expected = serde_json::json!({
            "seller": "127.0.0.1:1", "seller_all": ["127.0.0.1:1", "127.0.0.1:2"], "buyer": "127.0.0.1:1",
        });
        assert_eq!(Value::Object(entries), expected);
    }
}
