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

use super::announce::{AnnounceArgs, Announcer, Served};
use super::{ready, settings, stores};
use crate::bank::BuiltinGateway;
use crate::model::FeeRate;
use crate::net::budget::Budget;
use crate::net::cluster::{self, ClusterKey};
use crate::net::limits::{self, Bounds, Wanted};
use crate::net::listener::ConnectionLimiter;
use crate::net::shutdown::Shutdown;
use crate::net::threads::Executor;
use crate::net::tls::Identity;
use crate::shop::customer::{self, CustomerDb};
use crate::shop::door::{Door, Floor, StartError};
use crate::shop::frontend::{self, Databases, FrontendServer};
use crate::shop::ops::Role;
use crate::shop::product::{ProductDb, Settings};
use crate::storage::backup::{self, Part};
use crate::storage::lock::{DataDirLock, LockError};
use crate::storage::{Store, create_private_dir};

/// The file of the customer database in its data dir.
pub const CUSTOMER_DB: &str = "customer.db";
/// The bank of the customer database: its own, for it may stand on a host of its own.
pub const SHOP_BANK_DB: &str = "shop-bank.db";
/// How long work in hand may take to finish at the end.
const GRACE: Duration = Duration::from_secs(5);
/// Threads that are no connections: sweepers, writers, whoever accepts.
const OTHER_THREADS: usize = 64;
/// What a component keeps open: standard streams, locks, a port, two stores at most, and what is opened in passing.
const OWN_FILES: u64 = 26;
/// Bytes received and not yet handled, of all connections together.
pub const RECEIVED_MAX: usize = 256 << 20;

/// A port, or several: `8001` or `8001,8080`.
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

/// What a certificate's file begins with that was made where trade was not: it is no sign of a lost file of trade's.
pub const WITHOUT_TRADE: &str = "Made before trade was ever served here.\n";

impl TlsArgs {
    /// Whether a listener beyond loopback is guarded, or meant to be open.
    pub fn is_guarded(&self) -> bool {
        self.tls || self.tls_cert.is_some() || self.insecure
    }

    /// The certificate to present, if any; whoever listens beyond loopback has one or says `--insecure`.
    ///
    /// # Errors
    /// Neither is given, or the certificate cannot be had.
    pub fn identity(&self, bind: IpAddr, data_dir: &Path) -> anyhow::Result<Option<Arc<Identity>>> {
        if let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) {
            return Ok(Some(Arc::new(Identity::load(cert, key)?)));
        }
        if self.tls {
            // Of a component that runs alone on a fresh machine, nothing has made it yet.
            create_private_dir(data_dir).with_context(|| format!("cannot make the folder {}", data_dir.display()))?;
            return Ok(Some(Arc::new(Identity::load_or_create_noted(data_dir, WITHOUT_TRADE)?)));
        }
        if !bind.is_loopback() && !self.insecure {
            bail!(
                "--bind {bind} is open to other hosts: say --tls (with the data dir's own certificate) or --insecure"
            );
        }
        Ok(None)
    }
}

/// What all doors of a process share.
///
/// # Errors
/// The cluster key cannot be had.
pub fn floor(
    executor: Arc<Executor>,
    limiter: Arc<ConnectionLimiter>,
    budget: Arc<Budget>,
    identity: Option<Arc<Identity>>,
    tls: &TlsArgs,
    key_file: &Path,
) -> anyhow::Result<Floor> {
    // Whichever component of a data dir comes first makes the key, and the folder with it.
    if let Some(dir) = key_file.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        create_private_dir(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    }
    Ok(Floor {
        executor,
        limiter,
        budget,
        identity,
        plain_from_afar: tls.insecure,
        key: ClusterKey::load_or_create(key_file)?,
    })
}

/// The product database, running.
pub struct Product {
    db: Arc<ProductDb>,
    door: Door,
    _lock: DataDirLock,
}

impl Product {
    /// Takes its part of the data dir. That comes before anything there is looked at or made.
    ///
    /// # Errors
    /// Who holds it, or why it cannot be had.
    pub fn lock(data_dir: &Path) -> Result<DataDirLock, LockError> {
        DataDirLock::take_part(data_dir, Part::Product.component())
    }

    /// Opens its file in the data dir and its door.
    ///
    /// # Errors
    /// One line that says what to do.
    pub fn start(
        addr: SocketAddr,
        flag: &str,
        floor: &Floor,
        (data_dir, lock): (&Path, DataDirLock),
        hold_timeout: Duration,
    ) -> anyhow::Result<Product> {
        let first_stretch = backup::first_stretch(data_dir, Part::Product)?;
        let db = Arc::new(ProductDb::open(data_dir, Settings { hold_timeout, first_stretch })?);
        let door = Door::open_product(addr, floor.clone(), Arc::clone(&db) as _).map_err(|error| taken(error, flag))?;
        Ok(Product { db, door, _lock: lock })
    }

    /// What it runs on.
    pub fn db(&self) -> &Arc<ProductDb> {
        &self.db
    }

    /// Where links come in.
    pub fn local_addr(&self) -> SocketAddr {
        self.door.local_addr()
    }

    /// What its door has counted.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.door.counters()
    }

    /// Takes no more work, finishes what is in hand, and closes the file.
    pub fn stop(&self, grace: Duration) {
        self.door.stop(grace);
        self.db.close();
    }
}

/// The customer database, running.
pub struct Customer {
    db: Arc<CustomerDb>,
    store: Arc<Store>,
    bank: Arc<BuiltinGateway>,
    door: Door,
    _lock: DataDirLock,
}

impl Customer {
    /// Takes its part of the data dir. That comes before anything there is looked at or made.
    ///
    /// # Errors
    /// Who holds it, or why it cannot be had.
    pub fn lock(data_dir: &Path) -> Result<DataDirLock, LockError> {
        DataDirLock::take_part(data_dir, Part::Customer.component())
    }

    /// Opens its files in the data dir, brings to an end what was interrupted, and opens its door.
    ///
    /// # Errors
    /// One line that says what to do.
    pub fn start(
        addr: SocketAddr,
        flag: &str,
        floor: &Floor,
        (data_dir, lock): (&Path, DataDirLock),
        session_timeout: Duration,
        fee: FeeRate,
    ) -> anyhow::Result<Customer> {
        let store = Arc::new(Store::open(&data_dir.join(CUSTOMER_DB), customer::MIGRATIONS)?);
        let bank = Arc::new(BuiltinGateway::open_file(&data_dir.join(SHOP_BANK_DB))?);
        let first_stretch = backup::first_stretch(data_dir, Part::Customer)?;
        let config = customer::Config { session_timeout, fee, first_stretch, ..customer::Config::default() };
        let db = Arc::new(CustomerDb::open(Arc::clone(&store), Arc::clone(&bank) as _, config)?);
        let door =
            Door::open_customer(addr, floor.clone(), Arc::clone(&db) as _).map_err(|error| taken(error, flag))?;
        Ok(Customer { db, store, bank, door, _lock: lock })
    }

    /// What it runs on.
    pub fn db(&self) -> &Arc<CustomerDb> {
        &self.db
    }

    /// Where links and strangers come in.
    pub fn local_addr(&self) -> SocketAddr {
        self.door.local_addr()
    }

    /// What its door has counted.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.door.counters()
    }

    /// Takes no more work, finishes what is in hand, and closes the files.
    pub fn stop(&self, grace: Duration) {
        self.door.stop(grace);
        self.db.close();
        self.store.close();
        self.bank.close();
    }
}

/// A frontend, running.
///
/// # Errors
/// One line that says what to do.
pub fn start_frontend(
    role: Role,
    addrs: Vec<SocketAddr>,
    flag: &str,
    floor: &Floor,
    (product, customer): (String, String),
    databases: Databases,
) -> anyhow::Result<FrontendServer> {
    let config = frontend::Config { role, addrs, product, customer, databases };
    FrontendServer::start(config, floor).map_err(|error| taken(error, flag))
}

/// An error of opening a door, for whoever chose its port by this flag.
fn taken(error: StartError, flag: &str) -> anyhow::Error {
    match error {
        StartError::Bind { addr, source } if source.kind() == io::ErrorKind::AddrInUse => in_use(addr, flag),
        error => error.into(),
    }
}

/// The error for a port that somebody has, for whoever chose it by this flag.
pub fn in_use(addr: SocketAddr, flag: &str) -> anyhow::Error {
    let (port, ip) = (addr.port(), addr.ip());
    anyhow::anyhow!("port {port} of {ip} is in use: stop what uses it, or choose another with {flag}")
}

/// The ready file's entries of a frontend: its first address, and all of them if there are several.
pub fn frontend_entries(name: &str, addrs: &[SocketAddr], entries: &mut Map<String, Value>) {
    if let Some(first) = addrs.first() {
        entries.insert(name.to_owned(), first.to_string().into());
    }
    if addrs.len() > 1 {
        let all = addrs.iter().map(|addr| Value::from(addr.to_string())).collect();
        entries.insert(format!("{name}_all"), all);
    }
}

/// A frontend as it is announced, with its first port.
pub fn served(name: &'static str, addrs: &[SocketAddr], floor: &Floor) -> Option<Served> {
    let cert_sha256 = floor.identity.as_ref().map(|identity| identity.fingerprint().to_owned());
    addrs.first().map(|addr| Served { name, port: addr.port(), cert_sha256 })
}

/// What every component's command has.
#[derive(Debug, Clone, Args)]
struct Common {
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
    common: Common,
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
    common: Common,
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
    common: Common,
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
    common: Common,
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
/// What kept it from starting, in one line.
pub fn run_product(args: ProductArgs) -> anyhow::Result<ExitCode> {
    refuse_db(args.db.as_deref())?;
    settings::init_log("info");
    let dir = (args.data_dir.as_path(), Product::lock(&args.data_dir)?);
    stores::examine_product(&args.data_dir)?;
    let process = Process::begin(&args.common, &args.data_dir)?;
    let addr = SocketAddr::new(process.bind, args.port);
    let product = Product::start(addr, "--port", &process.floor, dir, args.hold_timeout)?;
    let local = product.local_addr();
    process.serve(&args.common, &[format!("product-db: tcp {local}")], &entry("product_db", local), |grace| {
        product.stop(grace);
    })
}

/// Runs the customer database until a signal ends it.
///
/// # Errors
/// What kept it from starting, in one line.
pub fn run_customer(args: CustomerArgs) -> anyhow::Result<ExitCode> {
    refuse_db(args.db.as_deref())?;
    settings::init_log("info");
    let dir = (args.data_dir.as_path(), Customer::lock(&args.data_dir)?);
    stores::examine_customer(&args.data_dir)?;
    let process = Process::begin(&args.common, &args.data_dir)?;
    let addr = SocketAddr::new(process.bind, args.port);
    let customer = Customer::start(addr, "--port", &process.floor, dir, args.session_timeout, args.fee_percent)?;
    let local = customer.local_addr();
    process.serve(&args.common, &[format!("customer-db: tcp {local}")], &entry("customer_db", local), |grace| {
        customer.stop(grace);
    })
}

/// Runs the sellers' frontend until a signal ends it.
///
/// # Errors
/// What kept it from starting, in one line.
pub fn run_seller_server(args: SellerServerArgs) -> anyhow::Result<ExitCode> {
    run_frontend(Role::Seller, &args.port, args.backends, &args.announce, &args.common)
}

/// Runs the buyers' frontend until a signal ends it.
///
/// # Errors
/// What kept it from starting, in one line.
pub fn run_buyer_server(args: BuyerServerArgs) -> anyhow::Result<ExitCode> {
    run_frontend(Role::Buyer, &args.port, args.backends, &args.announce, &args.common)
}

fn run_frontend(
    role: Role,
    ports: &Ports,
    backends: Backends,
    announce: &AnnounceArgs,
    common: &Common,
) -> anyhow::Result<ExitCode> {
    settings::init_log("info");
    let process = Process::begin(common, Path::new(DEFAULT_DATA_DIR))?;
    let addrs = ports.0.iter().map(|port| SocketAddr::new(process.bind, *port)).collect();
    let databases = (backends.product, backends.customer);
    let server = start_frontend(role, addrs, "--port", &process.floor, databases, Databases::Elsewhere)?;
    let (name, command) = match role {
        Role::Seller => ("seller", "seller-server"),
        Role::Buyer => ("buyer", "buyer-server"),
    };
    let locals = server.local_addrs();
    let mut entries = Map::new();
    frontend_entries(name, &locals, &mut entries);
    let lines: Vec<String> = locals.iter().map(|local| format!("{name}: tcp {local}")).collect();
    let served = served(name, &locals, &process.floor).into_iter().collect();
    let announcer = Announcer::start(announce, command, process.bind, served);
    process.serve(common, &lines, &entries, |grace| {
        announcer.stop();
        server.stop(grace);
    })
}

fn entry(name: &str, addr: SocketAddr) -> Map<String, Value> {
    Map::from_iter([(name.to_owned(), addr.to_string().into())])
}

fn refuse_db(db: Option<&str>) -> anyhow::Result<()> {
    if db.is_some() {
        // The URL may hold a password: it is not repeated.
        bail!("--db: this version keeps everything in SQLite files in --data-dir; leave --db (P2S2_DB) out");
    }
    Ok(())
}

/// A component's process, up to its doors.
struct Process {
    shutdown: Shutdown,
    bind: IpAddr,
    floor: Floor,
}

impl Process {
    fn begin(common: &Common, data_dir: &Path) -> anyhow::Result<Process> {
        let shutdown = Shutdown::install().context("cannot listen for signals")?;
        let bind = settings::bind_address(common.bind)?;
        if let Err(too_few) = limits::prepare(OWN_FILES) {
            bail!("{too_few}: raise it");
        }
        let wanted = common.max_connections as usize;
        let bounds = Wanted {
            connections: wanted,
            own_files: OWN_FILES,
            other_threads: OTHER_THREADS,
            other_files: frontend::LINKS_MAX,
        };
        let Bounds { connections, threads, why } = limits::machine_bounds(bounds);
        if let Some(why) = why {
            limits::tell_lowered("--max-connections", wanted, connections, &why);
        }
        let identity = common.tls.identity(bind, data_dir)?;
        let key_file = common.cluster_key.clone().unwrap_or_else(|| data_dir.join(cluster::FILE_NAME));
        let executor = Executor::new("request", threads);
        let floor = floor(
            executor,
            ConnectionLimiter::new(connections),
            Budget::new(RECEIVED_MAX),
            identity,
            &common.tls,
            &key_file,
        )?;
        Ok(Process { shutdown, bind, floor })
    }

    /// Says that it is ready, waits for a signal, and stops.
    fn serve(
        self,
        common: &Common,
        lines: &[String],
        entries: &Map<String, Value>,
        stop: impl FnOnce(Duration),
    ) -> anyhow::Result<ExitCode> {
        announce(common.ready_file.as_deref(), lines, entries)?;
        self.shutdown.wait();
        log::info!("stopping: no new work; what is in hand has {} s", GRACE.as_secs());
        stop(GRACE);
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes the ready file, then one line per listener and `ready`: whoever reads that may look there.
///
/// # Errors
/// The file or standard output cannot be written.
pub fn announce(ready_file: Option<&Path>, lines: &[String], entries: &Map<String, Value>) -> anyhow::Result<()> {
    if let Some(path) = ready_file {
        ready::write(path, &Value::Object(entries.clone()))?;
    }
    let mut out = io::stdout().lock();
    // An error of its own, not the system's: a reader of our output that has gone is no end in order here.
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
        for wrong in ["", "8001,", "70000", "x"] {
            assert!(wrong.parse::<Ports>().is_err(), "{wrong}");
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
        frontend_entries("seller", &addrs, &mut entries);
        frontend_entries("buyer", &addrs[..1], &mut entries);
        let expected = serde_json::json!({
            "seller": "127.0.0.1:1", "seller_all": ["127.0.0.1:1", "127.0.0.1:2"], "buyer": "127.0.0.1:1",
        });
        assert_eq!(Value::Object(entries), expected);
    }
}
