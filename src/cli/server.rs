//! `p2s2 server`: the services of the machine in one process.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Map, Value};

use super::announce::{AnnounceArgs, Announcer, Served};
use super::share_server::{Ground, Share, ShareArgs};
use super::shop::{self, Ports, TlsArgs, announce, in_use};
use super::stores;
use super::{page, settings};
use crate::model::{Clock, FeeRate};
use crate::net::budget::{Budget, RECEIVED_MAX};
use crate::net::cluster;
use crate::net::counters::LatencyCounts;
use crate::net::limits::{self, Bounds, Wanted};
use crate::net::listener::ConnectionLimiter;
use crate::net::shutdown::Shutdown;
use crate::net::threads::Executor;
use crate::net::tls::Identity;
use crate::shop::door::Floor as ShopFloor;
use crate::shop::frontend::{self, Databases, FrontendServer};
use crate::shop::ops::Role;
use crate::storage::lock::{DataDirLock, LockError};
use crate::trade;
use crate::trade::server::{Config, Floor, StartError, TradeServer};
use crate::web::operator::ShopDatabases;

mod data_dir;

use data_dir::DataDir;

/// How long work in hand may take to finish at the end.
const GRACE: Duration = Duration::from_secs(5);
/// Threads that are neither connections nor datagrams: timers, the writers, readers of sockets.
const OTHER_THREADS: usize = 64;
/// What any server keeps open: standard streams, locks, the users' store, HTTP, and what is opened in passing.
const OWN_FILES: u64 = 26;
/// Two stores, and a port of both kinds.
const OWN_FILES_OF_TRADE: u64 = 18;
/// Three stores, four ports, and the locks of two components.
const OWN_FILES_OF_SHOP: u64 = 36;
/// A store, and a port.
const OWN_FILES_OF_SHARE: u64 = 10;
/// Lines that settlements have open at once: one to each side.
const SETTLEMENT_LINES_MAX: usize = 2 * trade::exchange::SETTLEMENTS_MAX;

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
    share: ShareArgs,
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

/// For `value_parser`: nobody is served by a server that takes no connection.
fn parse_connections(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|connections| *connections > 0).ok_or("expected a number from 1 on".to_owned())
}

/// Runs until a signal ends it.
///
/// # Errors
/// What kept it from starting, in one line.
pub fn run(args: ServerArgs) -> anyhow::Result<ExitCode> {
    settings::init_log("info");
    let shutdown = Shutdown::install().context("cannot listen for signals")?;
    if let Some(url) = &args.db {
        // The URL may hold a password: it is not repeated.
        let kind = url.split_once("://").map_or("that", |(scheme, _)| scheme);
        bail!(
            "--db: this version keeps everything in SQLite files in --data-dir and cannot use {kind}; leave --db (P2S2_DB) out"
        );
    }
    let bind = settings::bind_address(args.bind)?;
    let chosen = args.share.choose(bind, &args.tls)?;
    let _lock = DataDirLock::take(&args.data_dir)?;
    let has = |service| args.services.contains(&service);
    let shop_locks = has(Service::Shop).then(|| Shop::lock(&args.data_dir)).transpose()?;
    // Before anything is made, a certificate or a key too: they would look as if nothing had ever been here.
    stores::examine_server(&args.data_dir, has(Service::Trade), has(Service::Shop), has(Service::Share))?;

    let (mut other_threads, mut other_files, mut own_files) = (OTHER_THREADS, 0, OWN_FILES);
    if has(Service::Trade) {
        own_files += OWN_FILES_OF_TRADE;
        other_threads += trade::server::DATAGRAMS_IN_HAND_MAX + trade::server::SETTLEMENT_THREADS_MAX;
        other_files += SETTLEMENT_LINES_MAX;
    }
    if has(Service::Shop) {
        own_files += OWN_FILES_OF_SHOP;
        // The other ends of all links are here, too; these count among the connections.
        other_files += 4 * frontend::LINKS_MAX;
    }
    if has(Service::Share) {
        own_files += OWN_FILES_OF_SHARE;
    }
    if let Err(too_few) = limits::prepare(own_files) {
        bail!("{too_few}: raise it, or run fewer services here (--services)");
    }
    let wanted = Wanted { connections: args.max_connections, own_files, other_threads, other_files };
    let Bounds { connections: max_connections, threads, why } = limits::machine_bounds(wanted);
    if let Some(why) = why {
        limits::tell_lowered("--max-connections", args.max_connections, max_connections, &why);
    }
    let executor = Executor::new("request", threads);
    let (limiter, budget) = (ConnectionLimiter::new(max_connections), Budget::new(RECEIVED_MAX));
    let bounds = (&limiter, &budget);
    let mut listeners = Listeners::default();
    let trade =
        if has(Service::Trade) { Some(Trade::start(&args, bind, &executor, bounds, &mut listeners)?) } else { None };
    // The certificate that peers settle by is shown to the shop's clients too, if they ask for TLS and there is
    // no other: who has confirmed it once knows all of this server.
    let settled_by = trade.as_ref().filter(|_| !args.plaintext).map(|trade| Arc::clone(&trade.data.identity));
    let start_shop = |locks| Shop::start(&args, bind, settled_by.clone(), &executor, bounds, locks, &mut listeners);
    let shop = shop_locks.map(start_shop).transpose()?.map(Arc::new);
    let ground = Ground {
        data_dir: &args.data_dir,
        bind,
        tls: &args.tls,
        settled_by,
        executor: &executor,
        limiter: &limiter,
        budget: &budget,
        trade: trade.as_ref().map(|trade| Arc::clone(&trade.server)),
        shop: shop.as_ref().map(|shop| ShopDatabases {
            products: Arc::clone(shop.product.db()),
            customers: Arc::clone(shop.customer.db()),
        }),
    };
    let share = Share::start(chosen, &ground, has(Service::Share))?;
    if let Some(addr) = share.registry_addr() {
        listeners.add(format!("registry: tcp {addr}"), "registry", addr);
    }
    listeners.served.extend(share.served());
    let addr = share.api_addr();
    listeners.add(format!("server-api: http {addr}"), "server_api", addr);
    // Beyond loopback browsers are told of the page that others cannot read along.
    let is_tls = !addr.ip().is_loopback() && share.has_certificate();
    listeners.lines.extend(page::lines(addr, is_tls));
    if let Some(trade) = &trade {
        let (counts, sizes) = (Arc::downgrade(&trade.server), Arc::downgrade(&trade.server));
        // They are named after the room already.
        let unnamed = |(name, count): (String, u64)| (name.strip_prefix("trade_").unwrap_or(&name).to_owned(), count);
        share.metrics().add_counters("trade", move || {
            counts.upgrade().map_or_else(Vec::new, |server| server.counters().into_iter().map(unnamed).collect())
        });
        share.metrics().add_sizes("trade", move || sizes.upgrade().map_or_else(Vec::new, |server| server.sizes()));
        let (requests, commits) = (Arc::downgrade(&trade.server), Arc::downgrade(&trade.server));
        let none = LatencyCounts::default;
        share.metrics().add_latencies("trade_requests", move || {
            requests.upgrade().map_or_else(none, |server: Arc<TradeServer>| server.latencies())
        });
        share.metrics().add_latencies("trade_commits", move || {
            commits.upgrade().map_or_else(none, |server: Arc<TradeServer>| server.store().commits())
        });
    }
    if let Some(shop) = &shop {
        let (requests, commits) = (Arc::downgrade(shop), Arc::downgrade(shop));
        let (sizes, shop) = (Arc::downgrade(shop), Arc::downgrade(shop));
        share
            .metrics()
            .add_sizes("shop", move || sizes.upgrade().map_or_else(Vec::new, |shop: Arc<Shop>| shop.sizes()));
        let counters = move || shop.upgrade().map_or_else(Vec::new, |shop: Arc<Shop>| shop.counters());
        share.metrics().add_counters("shop", counters);
        let none = LatencyCounts::default;
        share.metrics().add_latencies("shop_requests", move || {
            requests.upgrade().map_or_else(none, |shop: Arc<Shop>| shop.latencies())
        });
        share.metrics().add_latencies("shop_commits", move || {
            commits.upgrade().map_or_else(none, |shop: Arc<Shop>| shop.customer.db().store().commits())
        });
    }
    let announcer = Announcer::start(&args.announce, "server", bind, listeners.served);
    announce(args.ready_file.as_deref(), &listeners.lines, &listeners.entries)?;
    shutdown.wait();
    log::info!("stopping: no new work; what is in hand has {} s", GRACE.as_secs());
    announcer.stop();
    let deadline = Instant::now() + GRACE;
    // Trade last: the others have threads of the executor, whose end it waits for.
    share.stop(deadline);
    if let Some(shop) = shop {
        shop.stop(deadline);
    }
    if let Some(trade) = trade {
        trade.stop(deadline);
    }
    Ok(ExitCode::SUCCESS)
}

/// Where the process listens: a line each for people, an entry each for the ready file.
#[derive(Default)]
struct Listeners {
    lines: Vec<String>,
    entries: Map<String, Value>,
    /// What clients connect to.
    served: Vec<Served>,
}

impl Listeners {
    fn add(&mut self, line: String, name: &str, addr: SocketAddr) {
        self.lines.push(line);
        self.entries.insert(name.to_owned(), addr.to_string().into());
    }
}

/// The service trade, running.
struct Trade {
    server: Arc<TradeServer>,
    data: DataDir,
}

impl Trade {
    fn start(
        args: &ServerArgs,
        bind: IpAddr,
        executor: &Arc<Executor>,
        (limiter, budget): (&Arc<ConnectionLimiter>, &Arc<Budget>),
        listeners: &mut Listeners,
    ) -> anyhow::Result<Trade> {
        let data = DataDir::open(&args.data_dir)?;
        let config = Config {
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
        let floor = Floor {
            executor: Arc::clone(executor),
            limiter: Arc::clone(limiter),
            budget: Arc::clone(budget),
            clock: Clock::start(),
            identity: Arc::clone(&data.identity),
            store: Arc::clone(&data.store),
            gateway: data.gateway.clone(),
            first_stretch: data.first_stretch,
            charged_up_to: data.charged_up_to,
        };
        let server = TradeServer::start(config, floor).map_err(|error| match error {
            StartError::Bind { addr, source } if source.kind() == io::ErrorKind::AddrInUse => {
                in_use(addr, "--trade-port")
            }
            error => error.into(),
        })?;
        let addr = server.local_addr();
        listeners.add(format!("trade: udp {addr}"), "trade_udp", addr);
        let plain = if args.plaintext { " (settlement without TLS)" } else { "" };
        listeners.add(format!("trade: tcp {addr}{plain}"), "trade_tcp", addr);
        let cert_sha256 = (!args.plaintext).then(|| data.identity.fingerprint().to_owned());
        listeners.served.push(Served { name: "trade", port: addr.port(), cert_sha256 });
        Ok(Trade { server: Arc::new(server), data })
    }

    fn stop(&self, deadline: Instant) {
        self.server.stop(deadline.saturating_duration_since(Instant::now()));
        for (name, count) in self.server.counters() {
            log::debug!("{name} {count}");
        }
        self.data.close();
    }
}

/// The service shop, running: its four servers, which speak with each other over TCP here too.
struct Shop {
    product: shop::Product,
    customer: shop::Customer,
    frontends: Vec<(&'static str, FrontendServer)>,
}

impl Shop {
    /// Takes the parts of the data dir that its databases may have by themselves.
    fn lock(dir: &Path) -> Result<[DataDirLock; 2], LockError> {
        Ok([shop::Product::lock(dir)?, shop::Customer::lock(dir)?])
    }

    fn start(
        args: &ServerArgs,
        bind: IpAddr,
        settled_by: Option<Arc<Identity>>,
        executor: &Arc<Executor>,
        (limiter, budget): (&Arc<ConnectionLimiter>, &Arc<Budget>),
        [product_lock, customer_lock]: [DataDirLock; 2],
        listeners: &mut Listeners,
    ) -> anyhow::Result<Shop> {
        let (own, dir) = (&args.shop, &args.data_dir);
        let identity = args.tls.identity(bind, dir)?;
        let key_file = own.cluster_key.clone().unwrap_or_else(|| dir.join(cluster::FILE_NAME));
        let floor =
            shop::floor(Arc::clone(executor), Arc::clone(limiter), Arc::clone(budget), identity, &args.tls, &key_file)?;
        let at = |port: u16| SocketAddr::new(bind, port);
        let held = (dir.as_path(), product_lock);
        let product = shop::Product::start(at(own.product_port), "--product-port", &floor, held, own.hold_timeout)?;
        let (timeout, fee) = (own.session_timeout, args.fee_percent);
        let held = (dir.as_path(), customer_lock);
        let customer = shop::Customer::start(at(own.customer_port), "--customer-port", &floor, held, timeout, fee)?;
        let (product_addr, customer_addr) = (product.local_addr(), customer.local_addr());
        listeners.add(format!("product-db: tcp {product_addr}"), "product_db", product_addr);
        listeners.add(format!("customer-db: tcp {customer_addr}"), "customer_db", customer_addr);
        let databases = Databases::Here { have_tls: floor.identity.is_some() };
        let floor = ShopFloor { identity: floor.identity.clone().or(settled_by), ..floor };
        let mut frontends = Vec::new();
        for (role, name, flag, ports) in [
            (Role::Seller, "seller", "--seller-port", &own.seller_port),
            (Role::Buyer, "buyer", "--buyer-port", &own.buyer_port),
        ] {
            let addrs = ports.0.iter().map(|port| at(*port)).collect();
            let at = (page::from_here(product_addr).to_string(), page::from_here(customer_addr).to_string());
            let server = shop::start_frontend(role, addrs, flag, &floor, at, databases)?;
            let locals = server.local_addrs();
            listeners.lines.extend(locals.iter().map(|local| format!("{name}: tcp {local}")));
            shop::frontend_entries(name, &locals, &mut listeners.entries);
            listeners.served.extend(shop::served(name, &locals, &floor));
            frontends.push((name, server));
        }
        Ok(Shop { product, customer, frontends })
    }

    /// Every counter of the frontends and of the databases' doors, with its name.
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

    /// How long clients' messages took to be answered, at all frontends.
    fn latencies(&self) -> LatencyCounts {
        self.frontends.iter().fold(LatencyCounts::default(), |sum, (_, frontend)| sum.plus(&frontend.latencies()))
    }

    /// How much of what there is now, with its name.
    fn sizes(&self) -> Vec<(&'static str, u64)> {
        let customers = self.customer.db();
        let (sessions, _) = customers.sizes();
        let mut sizes =
            vec![("sessions", sessions as u64), ("purchases_under_way", customers.purchases_under_way() as u64)];
        match self.product.db().on_sale() {
            Ok(items) => sizes.push(("items_on_sale", items)),
            // Then it is not told this time.
            Err(error) => log::debug!("how many items are on sale: {error}"),
        }
        sizes
    }

    /// The frontends first: what they have in hand needs the databases.
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
