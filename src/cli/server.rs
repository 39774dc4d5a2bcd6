//! `p2s2 server`: the services of the machine in one process.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;

use super::{ready, settings};
use crate::model::{Clock, FeeRate};
use crate::net::gate::Gate;
use crate::net::limits::{self, Bounds, Wanted};
use crate::net::shutdown::Shutdown;
use crate::net::threads::Executor;
use crate::storage::backup;
use crate::trade;
use crate::trade::server::{Config, Floor, StartError, TradeServer};

mod data_dir;

use data_dir::DataDir;
pub use data_dir::TRADE_DB;

/// How long work in hand may take to finish at the end.
const GRACE: Duration = Duration::from_secs(5);
/// Threads that are neither connections nor datagrams: timers, the writers, readers of sockets.
const OTHER_THREADS: usize = 64;
/// Lines that settlements have open at once: one to each side.
const SETTLEMENT_LINES_MAX: usize = 2 * trade::exchange::SETTLEMENTS_MAX;

/// Run the services of this machine in one process
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  p2s2 server
  p2s2 server --data-dir /var/lib/p2s2 --trade-port 7001 --reserve-window 2min
  p2s2 server --trade-port 0 --ready-file /tmp/p2s2.json      any free port; the file tells which")]
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
    #[arg(long, value_delimiter = ',', env = "P2S2_SERVER_SERVICES", default_value = "trade")]
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
    other: OtherRooms,
}

/// A service of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Service {
    Trade,
}

/// Settings of rooms that this version does not have. They are taken, so that one configuration serves
/// every version, and the log says that they do nothing.
#[derive(Debug, Args)]
#[command(next_help_heading = "Settings of services that this version does not have")]
struct OtherRooms {
    #[arg(long, hide = true)]
    product_port: Option<String>,
    #[arg(long, hide = true)]
    customer_port: Option<String>,
    #[arg(long, hide = true)]
    seller_port: Option<String>,
    #[arg(long, hide = true)]
    buyer_port: Option<String>,
    #[arg(long, hide = true)]
    registry_port: Option<String>,
    #[arg(long, hide = true)]
    api_port: Option<String>,
    #[arg(long, hide = true)]
    api_bind: Option<String>,
    #[arg(long, hide = true)]
    session_timeout: Option<String>,
    #[arg(long, hide = true)]
    hold_timeout: Option<String>,
    #[arg(long, hide = true)]
    peer_timeout: Option<String>,
    #[arg(long, hide = true)]
    registry_auth: Option<String>,
    #[arg(long, hide = true)]
    jwt_ttl: Option<String>,
    #[arg(long, hide = true)]
    allow_origin: Vec<String>,
    #[arg(long, hide = true)]
    cluster_key: Option<String>,
    #[arg(long, hide = true)]
    tls: bool,
    #[arg(long, hide = true)]
    tls_cert: Option<String>,
    #[arg(long, hide = true)]
    tls_key: Option<String>,
    #[arg(long, hide = true)]
    insecure: bool,
}

impl OtherRooms {
    fn given(&self) -> Vec<&'static str> {
        [
            ("--product-port", self.product_port.is_some()),
            ("--customer-port", self.customer_port.is_some()),
            ("--seller-port", self.seller_port.is_some()),
            ("--buyer-port", self.buyer_port.is_some()),
            ("--registry-port", self.registry_port.is_some()),
            ("--api-port", self.api_port.is_some()),
            ("--api-bind", self.api_bind.is_some()),
            ("--session-timeout", self.session_timeout.is_some()),
            ("--hold-timeout", self.hold_timeout.is_some()),
            ("--peer-timeout", self.peer_timeout.is_some()),
            ("--registry-auth", self.registry_auth.is_some()),
            ("--jwt-ttl", self.jwt_ttl.is_some()),
            ("--allow-origin", !self.allow_origin.is_empty()),
            ("--cluster-key", self.cluster_key.is_some()),
            ("--tls", self.tls),
            ("--tls-cert", self.tls_cert.is_some()),
            ("--tls-key", self.tls_key.is_some()),
            ("--insecure", self.insecure),
        ]
        .into_iter()
        .filter_map(|(flag, given)| given.then_some(flag))
        .collect()
    }
}

/// For `value_parser`: nobody is served by a server that takes no connection.
fn parse_connections(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|connections| *connections > 0).ok_or("expected a number from 1 on".to_owned())
}

/// An error of its own, not the system's: a reader of our output that has gone is no end in order here.
fn unwritable(error: io::Error) -> anyhow::Error {
    anyhow::anyhow!("standard output cannot be written: {error}; send it to a file or to /dev/null")
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
    let ignored = args.other.given();
    if !ignored.is_empty() {
        log::warn!("no effect, because this version has the service trade alone: {}", ignored.join(" "));
    }
    let bind = settings::bind_address(args.bind)?;
    let data = DataDir::open(&args.data_dir)?;

    if let Err(error) = limits::raise_open_files() {
        log::warn!("the limit of open files stays as it is: {error}");
    }
    let Bounds { connections: max_connections, threads, why } = limits::machine_bounds(Wanted {
        connections: args.max_connections,
        other_threads: trade::server::DATAGRAMS_IN_HAND_MAX + trade::server::SETTLEMENT_THREADS_MAX + OTHER_THREADS,
        other_files: SETTLEMENT_LINES_MAX,
    });
    if let Some(why) = why {
        log::warn!("--max-connections {} lowered to {max_connections}: {why}", args.max_connections);
    }
    let executor = Executor::new("request", threads);
    let restored = backup::restored_mark(&args.data_dir);
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
        executor,
        gate: Gate::new(max_connections),
        clock: Clock::start(),
        identity: Arc::clone(&data.identity),
        store: Arc::clone(&data.store),
        gateway: data.gateway.clone(),
        restored,
        charged_up_to: data.charged_up_to,
    };
    let server = TradeServer::start(config, floor).map_err(|error| match error {
        StartError::Bind { addr, source } if source.kind() == io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "port {} of {} is in use: stop what uses it, or choose another with --trade-port",
            addr.port(),
            addr.ip()
        ),
        error => error.into(),
    })?;
    if restored {
        backup::clear_restored_mark(&args.data_dir).context("cannot note that the backup was taken up")?;
    }

    let addr = server.local_addr();
    // Before it says so: whoever reads `ready` may look there at once.
    if let Some(path) = &args.ready_file {
        ready::write(path, &json!({"trade_udp": addr.to_string(), "trade_tcp": addr.to_string()}))?;
    }
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "trade: udp {addr}\ntrade: tcp {addr}{}\nready",
        if args.plaintext { " (settlement without TLS)" } else { "" }
    )
    .and_then(|()| out.flush())
    .map_err(unwritable)?;
    drop(out);
    shutdown.wait();
    log::info!("stopping: no new work; what is in hand has {} s", GRACE.as_secs());
    server.stop(GRACE);
    for (name, count) in server.counters() {
        log::debug!("{name} {count}");
    }
    data.close();
    Ok(ExitCode::SUCCESS)
}
