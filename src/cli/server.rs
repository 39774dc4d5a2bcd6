//! `p2s2 server`: all services of a host in one process.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Map, Value};

use super::announce::{AnnounceArgs, AnnouncedService, Announcer};
use super::share_server::{ShareService, ShareServiceArgs, ShareServiceDeps};
use super::shop::{self, Ports, TlsArgs, port_in_use, report_ready};
use super::stores;
use super::{page_urls, settings};
use crate::model::{Clock, FeeRate};
use crate::net::budget::{RECEIVE_BUDGET_BYTES, ReceiveBudget};
use crate::net::cluster;
use crate::net::counters::LatencySnapshot;
use crate::net::limits::{self, MachineBounds, RequestedBounds};
use crate::net::listener::ConnectionLimiter;
use crate::net::shutdown::ShutdownSignal;
use crate::net::threads::Executor;
use crate::net::tls::TlsIdentity;
use crate::shop::frontend::{self, DatabaseLocation, FrontendServer};
use crate::shop::listener::ShopContext;
use crate::shop::ops::Role;
use crate::storage::lock::{DataDirLock, LockError};
use crate::trade;
use crate::trade::server::{TradeServer, TradeServerConfig, TradeServerContext, TradeStartError};
use crate::web::operator::ShopDatabases;

mod data_dir;

use data_dir::TradeDataDir;

/// How long pending work may take to finish at shutdown.
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

/// Run the services of this machine in one process
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  p2s2 server
  p2s2 server --data-dir /var/lib/p2s2 --trade-port 7001 --reserve-window 2min
  p2s2 server --trade-port 0 --ready-file /tmp/p2s2.json      any free port; the file tells which

It announces itself as server-HOST on the networks that it is bound to (with 127.0.0.1 on this machine alone),
so that `--server auto` of the clients finds it; the log names the fingerprint that they are to confirm.")]
pub struct ServerArgs {
    /// Address to bind; anything but loopback opens the server to other machines
    #[arg(long, value_name = "IP", env = "P2S2_SERVER_BIND")]
    bind: Option<IpAddr>,
    /// Where everything is kept
    #[arg(long, value_name = "DIR", env = "P2S2_SERVER_DATA_DIR", default_value = "data/state")]
    data_dir: PathBuf,
    /// Database; without it, SQLite files in the data dir
    #[arg(long, value_name = "URL", env = "P2S2_DB")]
    db: Option<String>,
    /// Services to run
    #[arg(long, value_delimiter = ',', env = "P2S2_SERVER_SERVICES", default_value = "trade,shop,share")]
    services: Vec<Service>,
    /// Trade's port, for UDP and TCP
    #[arg(
        long,
        value_name = "PORT",
        allow_negative_numbers = true,
        env = "P2S2_SERVER_TRADE_PORT",
        default_value_t = 7001
    )]
    trade_port: u16,
    /// How long offers are awaited
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = settings::parse_window, env = "P2S2_SERVER_OFFER_WINDOW", default_value = "5s")]
    offer_window: Duration,
    /// How long each seller may think about a lower price
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = settings::parse_window, env = "P2S2_SERVER_NEGOTIATE_WINDOW", default_value = "10s")]
    negotiate_window: Duration,
    /// How long what was found is held for the buyer
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = settings::parse_window, env = "P2S2_SERVER_RESERVE_WINDOW", default_value = "120s")]
    reserve_window: Duration,
    /// How long each step of a settlement may take
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = settings::parse_window, env = "P2S2_SERVER_SETTLE_TIMEOUT", default_value = "10s")]
    settle_timeout: Duration,
    /// What the house takes of each sale
    #[arg(long, value_name = "PERCENT", allow_hyphen_values = true, value_parser = settings::parse_fee, env = "P2S2_SERVER_FEE_PERCENT", default_value = "10")]
    fee_percent: FeeRate,
    /// Connections of all listeners together
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = parse_connections, env = "P2S2_SERVER_MAX_CONNECTIONS", default_value = "12000")]
    max_connections: usize,
    /// Settle without TLS (peers must say --plaintext too)
    #[arg(long, env = "P2S2_SERVER_PLAINTEXT", value_parser = settings::parse_switch())]
    plaintext: bool,
    /// Write the real addresses there, as JSON, when everything is bound
    #[arg(long, value_name = "PATH", env = "P2S2_SERVER_READY_FILE")]
    ready_file: Option<PathBuf>,
    #[command(flatten)]
    announce: AnnounceArgs,
    #[command(flatten)]
    shop: ShopArgs,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    share: ShareServiceArgs,
}

/// A service of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Service {
    Trade,
    Shop,
    Share,
}

/// The shop's settings.
#[derive(Debug, Args)]
#[command(next_help_heading = "The shop")]
struct ShopArgs {
    /// The product database's port
    #[arg(
        long,
        value_name = "PORT",
        allow_negative_numbers = true,
        env = "P2S2_SERVER_PRODUCT_PORT",
        default_value_t = 9001
    )]
    product_port: u16,
    /// The customer database's port
    #[arg(
        long,
        value_name = "PORT",
        allow_negative_numbers = true,
        env = "P2S2_SERVER_CUSTOMER_PORT",
        default_value_t = 9002
    )]
    customer_port: u16,
    /// The sellers' port; may be a list
    #[arg(
        long,
        value_name = "PORT",
        allow_hyphen_values = true,
        env = "P2S2_SERVER_SELLER_PORT",
        default_value = "8001"
    )]
    seller_port: Ports,
    /// The buyers' port; may be a list
    #[arg(
        long,
        value_name = "PORT",
        allow_hyphen_values = true,
        env = "P2S2_SERVER_BUYER_PORT",
        default_value = "8002"
    )]
    buyer_port: Ports,
    /// A session ends after so long without a request
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = settings::parse_window, env = "P2S2_SERVER_SESSION_TIMEOUT", default_value = "300s")]
    session_timeout: Duration,
    /// How long stock is held for a purchase
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = settings::parse_window, env = "P2S2_SERVER_HOLD_TIMEOUT", default_value = "60s")]
    hold_timeout: Duration,
    /// What components prove to each other (default: cluster.key in the data dir)
    #[arg(long, value_name = "FILE", env = "P2S2_SERVER_CLUSTER_KEY")]
    cluster_key: Option<PathBuf>,
}

/// For `value_parser`: a server needs at least one connection.
fn parse_connections(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|connections| *connections > 0).ok_or("expected a number from 1 on".to_owned())
}

/// Runs the server until a signal ends it.
///
/// # Errors
/// A one-line description of what kept it from starting.
pub fn run(args: ServerArgs) -> anyhow::Result<ExitCode> {
    settings::init_log("info");
    let shutdown = ShutdownSignal::install().context("cannot listen for signals")?;
    if let Some(url) = &args.db {
        // The URL may contain a password, so it is not repeated.
        let kind = url.split_once("://").map_or("that", |(scheme, _)| scheme);
        bail!(
            "--db: this version keeps everything in SQLite files in --data-dir and cannot use {kind}; leave --db (P2S2_DB) out"
        );
    }
    let bind = settings::bind_address(args.bind)?;
    let share_config = args.share.resolve(bind, &args.tls)?;
    let _lock = DataDirLock::acquire(&args.data_dir)?;
    let has = |service| args.services.contains(&service);
    let shop_locks = has(Service::Shop).then(|| ShopService::lock(&args.data_dir)).transpose()?;
    // Checked before a certificate or key is created, because such files would make the data dir look like a used one.
    stores::check_server_stores(&args.data_dir, has(Service::Trade), has(Service::Shop), has(Service::Share))?;

    let (mut other_threads, mut other_files, mut own_files) = (OTHER_THREADS, 0, OWN_FILES);
    if has(Service::Trade) {
        own_files += OWN_FILES_OF_TRADE;
        other_threads += trade::server::DATAGRAMS_IN_PROGRESS_MAX + trade::server::SETTLEMENT_THREADS_MAX;
        other_files += SETTLEMENT_CONNECTIONS_MAX;
    }
    if has(Service::Shop) {
        own_files += OWN_FILES_OF_SHOP;
        // Both ends of every link are in this process; one of them already counts as a connection.
        other_files += 4 * frontend::LINKS_MAX;
    }
    if has(Service::Share) {
        own_files += OWN_FILES_OF_SHARE;
    }
    if let Err(too_few) = limits::prepare_process(own_files) {
        bail!("{too_few}: raise it, or run fewer services here (--services)");
    }
    let wanted = RequestedBounds { connections: args.max_connections, own_files, other_threads, other_files };
    let MachineBounds { connections: max_connections, threads, why } = limits::machine_bounds(wanted);
    if let Some(why) = why {
        limits::warn_lowered("--max-connections", args.max_connections, max_connections, &why);
    }
    let executor = Executor::new("request", threads);
    let (limiter, budget) = (ConnectionLimiter::new(max_connections), ReceiveBudget::new(RECEIVE_BUDGET_BYTES));
    let bounds = (&limiter, &budget);
    let mut listeners = Listeners::default();
    let trade = if has(Service::Trade) {
        Some(TradeService::start(&args, bind, &executor, bounds, &mut listeners)?)
    } else {
        None
    };
    // The certificate that settlements use also serves the shop's TLS clients if no other is configured, so that a user
    // confirms one certificate per server.
    let trade_identity = trade.as_ref().filter(|_| !args.plaintext).map(|trade| Arc::clone(&trade.data.identity));
    let start_shop =
        |locks| ShopService::start(&args, bind, trade_identity.clone(), &executor, bounds, locks, &mut listeners);
    let shop = shop_locks.map(start_shop).transpose()?.map(Arc::new);
    let deps = ShareServiceDeps {
        data_dir: &args.data_dir,
        bind,
        tls: &args.tls,
        trade_identity,
        executor: &executor,
        limiter: &limiter,
        budget: &budget,
        trade: trade.as_ref().map(|trade| Arc::clone(&trade.server)),
        shop: shop.as_ref().map(|shop| ShopDatabases {
            products: Arc::clone(shop.product.db()),
            customers: Arc::clone(shop.customer.db()),
        }),
    };
    let share = ShareService::start(share_config, &deps, has(Service::Share))?;
    if let Some(addr) = share.registry_addr() {
        listeners.add(format!("registry: tcp {addr}"), "registry", addr);
    }
    listeners.services.extend(share.announced_services());
    let addr = share.api_addr();
    listeners.add(format!("server-api: http {addr}"), "server_api", addr);
    // Beyond loopback the HTTPS URL of the page is printed.
    let is_tls = !addr.ip().is_loopback() && share.has_certificate();
    listeners.lines.extend(page_urls::lines(addr, is_tls));
    if let Some(trade) = &trade {
        let (counts, sizes) = (Arc::downgrade(&trade.server), Arc::downgrade(&trade.server));
        // The counters already carry the service's name.
        let unnamed = |(name, count): (String, u64)| (name.strip_prefix("trade_").unwrap_or(&name).to_owned(), count);
        share.metrics().add_counters("trade", move || {
            counts.upgrade().map_or_else(Vec::new, |server| server.counters().into_iter().map(unnamed).collect())
        });
        share.metrics().add_sizes("trade", move || sizes.upgrade().map_or_else(Vec::new, |server| server.sizes()));
        let (requests, commits) = (Arc::downgrade(&trade.server), Arc::downgrade(&trade.server));
        let none = LatencySnapshot::default;
        share.metrics().add_latencies("trade_requests", move || {
            requests.upgrade().map_or_else(none, |server: Arc<TradeServer>| server.latencies())
        });
        share.metrics().add_latencies("trade_commits", move || {
            commits.upgrade().map_or_else(none, |server: Arc<TradeServer>| server.store().commit_latencies())
        });
    }
    if let Some(shop) = &shop {
        let (requests, commits) = (Arc::downgrade(shop), Arc::downgrade(shop));
        let (sizes, shop) = (Arc::downgrade(shop), Arc::downgrade(shop));
        share
            .metrics()
            .add_sizes("shop", move || sizes.upgrade().map_or_else(Vec::new, |shop: Arc<ShopService>| shop.sizes()));
        let counters = move || shop.upgrade().map_or_else(Vec::new, |shop: Arc<ShopService>| shop.counters());
        share.metrics().add_counters("shop", counters);
        let none = LatencySnapshot::default;
        share.metrics().add_latencies("shop_requests", move || {
            requests.upgrade().map_or_else(none, |shop: Arc<ShopService>| shop.latencies())
        });
        share.metrics().add_latencies("shop_commits", move || {
            commits.upgrade().map_or_else(none, |shop: Arc<ShopService>| shop.customer.db().store().commit_latencies())
        });
    }
    let announcer = Announcer::start(&args.announce, "server", bind, listeners.services);
    report_ready(args.ready_file.as_deref(), &listeners.lines, &listeners.entries)?;
    shutdown.wait();
    log::info!("stopping: no new work; what is in hand has {} s", SHUTDOWN_GRACE.as_secs());
    announcer.stop();
    let deadline = Instant::now() + SHUTDOWN_GRACE;
    // Trade stops last: it waits for the executor's threads, which the other services use too.
    share.stop(deadline);
    if let Some(shop) = shop {
        shop.stop(deadline);
    }
    if let Some(trade) = trade {
        trade.stop(deadline);
    }
    Ok(ExitCode::SUCCESS)
}

/// The listeners of the process: lines for people and entries for the ready file.
#[derive(Default)]
struct Listeners {
    lines: Vec<String>,
    entries: Map<String, Value>,
    /// The services that are announced.
    services: Vec<AnnouncedService>,
}

impl Listeners {
    fn add(&mut self, line: String, name: &str, addr: SocketAddr) {
        self.lines.push(line);
        self.entries.insert(name.to_owned(), addr.to_string().into());
    }
}

/// The running trade service.
struct TradeService {
    server: Arc<TradeServer>,
    data: TradeDataDir,
}

impl TradeService {
    fn start(
        args: &ServerArgs,
        bind: IpAddr,
        executor: &Arc<Executor>,
        (limiter, budget): (&Arc<ConnectionLimiter>, &Arc<ReceiveBudget>),
        listeners: &mut Listeners,
    ) -> anyhow::Result<TradeService> {
        let data = TradeDataDir::open(&args.data_dir)?;
        let config = TradeServerConfig {
            addr: SocketAddr::new(bind, args.trade_port),
            windows: trade::deal::Windows {
                offer: args.offer_window,
                negotiate: args.negotiate_window,
                reserve: args.reserve_window,
            },
            settle_timeout: args.settle_timeout,
            fee: args.fee_percent,
            plaintext: args.plaintext,
        };
        let context = TradeServerContext {
            executor: Arc::clone(executor),
            limiter: Arc::clone(limiter),
            budget: Arc::clone(budget),
            clock: Clock::start(),
            identity: Arc::clone(&data.identity),
            store: Arc::clone(&data.store),
            gateway: data.gateway.clone(),
            first_id_range: data.first_id_range,
            charged_up_to: data.charged_up_to,
        };
        let server = TradeServer::start(config, context).map_err(|error| match error {
            TradeStartError::Bind { addr, source } if source.kind() == io::ErrorKind::AddrInUse => {
                port_in_use(addr, "--trade-port")
            }
            error => error.into(),
        })?;
        let addr = server.local_addr();
        listeners.add(format!("trade: udp {addr}"), "trade_udp", addr);
        let plain = if args.plaintext { " (settlement without TLS)" } else { "" };
        listeners.add(format!("trade: tcp {addr}{plain}"), "trade_tcp", addr);
        let cert_sha256 = (!args.plaintext).then(|| data.identity.fingerprint().to_owned());
        listeners.services.push(AnnouncedService { name: "trade", port: addr.port(), cert_sha256 });
        Ok(TradeService { server: Arc::new(server), data })
    }

    fn stop(&self, deadline: Instant) {
        self.server.stop(deadline.saturating_duration_since(Instant::now()));
        for (name, count) in self.server.counters() {
            log::debug!("{name} {count}");
        }
        self.data.close();
    }
}

/// The running shop service. Its four servers communicate over TCP even within one process.
struct ShopService {
    product: shop::ProductService,
    customer: shop::CustomerService,
    frontends: Vec<(&'static str, FrontendServer)>,
}

impl ShopService {
    /// Locks the parts of the data dir that the databases could also use as separate processes.
    fn lock(dir: &Path) -> Result<[DataDirLock; 2], LockError> {
        Ok([shop::ProductService::lock(dir)?, shop::CustomerService::lock(dir)?])
    }

    fn start(
        args: &ServerArgs,
        bind: IpAddr,
        trade_identity: Option<Arc<TlsIdentity>>,
        executor: &Arc<Executor>,
        (limiter, budget): (&Arc<ConnectionLimiter>, &Arc<ReceiveBudget>),
        [product_lock, customer_lock]: [DataDirLock; 2],
        listeners: &mut Listeners,
    ) -> anyhow::Result<ShopService> {
        let (own, dir) = (&args.shop, &args.data_dir);
        let identity = args.tls.identity(bind, dir)?;
        let key_file = own.cluster_key.clone().unwrap_or_else(|| dir.join(cluster::FILE_NAME));
        let context = shop::shop_context(
            Arc::clone(executor),
            Arc::clone(limiter),
            Arc::clone(budget),
            identity,
            &args.tls,
            &key_file,
        )?;
        let at = |port: u16| SocketAddr::new(bind, port);
        let data = (dir.as_path(), product_lock);
        let product =
            shop::ProductService::start(at(own.product_port), "--product-port", &context, data, own.hold_timeout)?;
        let (timeout, fee) = (own.session_timeout, args.fee_percent);
        let data = (dir.as_path(), customer_lock);
        let customer =
            shop::CustomerService::start(at(own.customer_port), "--customer-port", &context, data, timeout, fee)?;
        let (product_addr, customer_addr) = (product.local_addr(), customer.local_addr());
        listeners.add(format!("product-db: tcp {product_addr}"), "product_db", product_addr);
        listeners.add(format!("customer-db: tcp {customer_addr}"), "customer_db", customer_addr);
        let databases = DatabaseLocation::SameProcess { has_tls: context.identity.is_some() };
        let context = ShopContext { identity: context.identity.clone().or(trade_identity), ..context };
        let mut frontends = Vec::new();
        for (role, name, flag, ports) in [
            (Role::Seller, "seller", "--seller-port", &own.seller_port),
            (Role::Buyer, "buyer", "--buyer-port", &own.buyer_port),
        ] {
            let addrs = ports.0.iter().map(|port| at(*port)).collect();
            let at = (
                page_urls::reachable_addr(product_addr).to_string(),
                page_urls::reachable_addr(customer_addr).to_string(),
            );
            let server = shop::start_frontend(role, addrs, flag, &context, at, databases)?;
            let locals = server.local_addrs();
            listeners.lines.extend(locals.iter().map(|local| format!("{name}: tcp {local}")));
            shop::add_frontend_entries(name, &locals, &mut listeners.entries);
            listeners.services.extend(shop::announced_frontend(name, &locals, &context));
            frontends.push((name, server));
        }
        Ok(ShopService { product, customer, frontends })
    }

    /// All counters of the frontends and of the databases' listeners.
    fn counters(&self) -> Vec<(String, u64)> {
        let named = |part: &str, list: Vec<(&'static str, u64)>| {
            list.into_iter().map(|(name, count)| (format!("{part}_{name}"), count)).collect::<Vec<_>>()
        };
        let frontends = self.frontends.iter().flat_map(|(part, frontend)| {
            frontend.counters().into_iter().map(move |(name, count)| (format!("{part}_{name}"), count))
        });
        let databases = [named("product_db", self.product.counters()), named("customer_db", self.customer.counters())];
        frontends.chain(databases.concat()).collect()
    }

    /// Response times of client requests, over all frontends.
    fn latencies(&self) -> LatencySnapshot {
        self.frontends
            .iter()
            .fold(LatencySnapshot::default(), |sum, (_, frontend)| sum.merged_with(&frontend.latencies()))
    }

    /// Current sizes for the metrics.
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

    /// Stops the frontends first: their pending requests need the databases.
    fn stop(&self, deadline: Instant) {
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
