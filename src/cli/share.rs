//! `p2s2 share`: a file-sharing node, and commands for a running node.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Map, Value};

use super::shop::{TlsArgs, port_in_use, report_ready};
use super::{name_prompt, page_urls, server_discovery, settings, stores};
use crate::identity::KnownServers;
use crate::lan::DISCOVERY_PORT;
use crate::model::{Clock, Name};
use crate::net::budget::{RECEIVE_BUDGET_BYTES, ReceiveBudget};
use crate::net::http::{self, HttpServer, RequestPolicy, parse_allowed_origin, parse_host_name};
use crate::net::limits::{self, MachineBounds, RequestedBounds};
use crate::net::listener::{self, ConnectionLimiter, ListenerContext};
use crate::net::shutdown::ShutdownSignal;
use crate::net::threads::Executor;
use crate::share::api_client::ApiClient;
use crate::share::client::CertificatePin;
use crate::share::client_api::ClientApi;
use crate::share::client_api::authenticator::Authenticator;
use crate::share::heartbeat::ACTIVE_INTERVAL;
use crate::share::node::nodes::{Nodes, StartNodesError};
use crate::share::node::store::NodeStore;
use crate::share::node::{NodeContext, NodeSettings, process_upload_permits};
use crate::storage::create_private_dir;
use crate::storage::lock::DataDirLock;
use crate::web::Site;

mod commands;
mod progress;
mod running_nodes;
mod show;

use commands::ShareCommand;

/// Default ports.
const REGISTRY_PORT: u16 = 9000;
const SERVER_API_PORT: u16 = 5500;
const API_PORT: u16 = 5501;
const PORT_MIN_DEFAULT: u16 = 6000;
const PORT_MAX_DEFAULT: u16 = 7000;
/// Ports for the client API that are tried in turn if none was given.
const API_PORTS_TRIED: u16 = 100;
/// How long pending work may take to finish at shutdown; `API_SHUTDOWN_GRACE` of it is for the API.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(4_500);
const API_SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// Connections of peers and API clients together.
const CONNECTIONS_MAX: usize = 4_000;
/// Threads other than those of connections: nodes, fetches, the store.
const OTHER_THREADS: usize = 1_024;
/// Files that a node keeps open: standard streams, locks, a store, two ports, the server connection, and files that are
/// opened briefly.
const OWN_FILES: u64 = 30;
/// How long the server may take to check a token or a password.
const SERVER_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest heartbeat interval: the registry closes a connection that is silent for 10 min.
const HEARTBEAT_MAX: Duration = Duration::from_secs(540);

/// Share files: run a node, or tell the one that runs what to do
#[derive(Debug, Args)]
#[command(
    subcommand_value_name = "COMMAND",
    disable_help_subcommand = true,
    after_help = "\
Examples:
  p2s2 share --name alice                                  a node of the server on this machine
  p2s2 share --name alice --server 192.0.2.7 --server-cert HEX --folder ~/Public
  p2s2 share register alice                                an account at the server, and signed in
  p2s2 share login alice
  p2s2 share publish ~/Documents/report.pdf                others can find and fetch it now
  p2s2 share search report
  p2s2 share fetch report.pdf --to ~/Downloads

The commands talk to a running node: that of --name, the one at --api-port, or the only one that runs here. \
The token that `login` gets is kept in ~/.config/p2s2 (or $XDG_CONFIG_HOME/p2s2), readable by you alone; \
the password is asked for, or read from P2S2_PASSWORD."
)]
pub struct ShareArgs {
    #[command(subcommand)]
    command: Option<ShareCommand>,
    /// Who you are; asked for when a node is to be run and it is not given. Commands: whose node is meant
    // Whether it may be a new one is the server's to say: an account of an earlier version may bear any.
    #[arg(long, value_name = "NAME", value_parser = Name::from_stored, global = true)]
    name: Option<Name>,
    /// Address of the client API; anything but loopback opens it to other machines
    #[arg(long, value_name = "IP", global = true)]
    api_bind: Option<IpAddr>,
    /// Port of the client API; without it 5501, or the next one that is free. Commands: where the node is
    #[arg(long, value_name = "PORT", global = true, allow_negative_numbers = true)]
    api_port: Option<u16>,
    /// Commands: the certificate that the node shows (SHA-256, 64 hex digits), where its API speaks TLS
    #[arg(long, value_name = "HEX", global = true, value_parser = settings::parse_fingerprint)]
    node_cert: Option<String>,
    /// Print one JSON object a line
    #[arg(long, global = true, value_parser = settings::parse_switch())]
    json: bool,
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    tls: TlsArgs,
}

/// What a node is run with.
#[derive(Debug, Args)]
#[command(next_help_heading = "The node")]
struct NodeArgs {
    /// Where the server is, 127.0.0.1 without it; auto: look for servers that announce themselves, and ask which
    #[arg(long, value_name = "HOST")]
    server: Option<String>,
    /// The certificate that the server shows (SHA-256, 64 hex digits): TLS with that one alone
    #[arg(long, value_name = "HEX", value_parser = settings::parse_fingerprint)]
    server_cert: Option<String>,
    /// The registry's port there, 9000 without it
    #[arg(long, value_name = "PORT", allow_negative_numbers = true, value_parser = clap::value_parser!(u16).range(1..))]
    registry_port: Option<u16>,
    /// The server API's port there, 5500 without it
    #[arg(long, value_name = "PORT", allow_negative_numbers = true, value_parser = clap::value_parser!(u16).range(1..))]
    server_api_port: Option<u16>,
    /// Address for other peers; without it 127.0.0.1 where the server is on this machine, else every one
    #[arg(long, value_name = "IP")]
    bind: Option<IpAddr>,
    /// Address that others are told, where it is not the one that the server sees
    #[arg(long, value_name = "IP")]
    advertise_ip: Option<IpAddr>,
    /// Port for other peers; without it the last one, or a free one of --port-min to --port-max; 0 for any
    #[arg(long, value_name = "PORT", allow_negative_numbers = true)]
    port: Option<u16>,
    /// Lowest port that is tried, 6000 without it
    #[arg(long, value_name = "PORT", allow_negative_numbers = true, value_parser = clap::value_parser!(u16).range(1024..))]
    port_min: Option<u16>,
    /// Highest port that is tried, 7000 without it
    #[arg(long, value_name = "PORT", allow_negative_numbers = true, value_parser = clap::value_parser!(u16).range(1024..))]
    port_max: Option<u16>,
    /// What may be shared and written to lies below these; may be given again. Without it your home folder and
    /// the one for temporary files
    #[arg(long = "folder", value_name = "DIR")]
    folders: Vec<PathBuf>,
    /// Where fetched files go; `repo` in the data dir without it
    #[arg(long, value_name = "DIR")]
    repo: Option<PathBuf>,
    /// A name under which the client API is reached, beside addresses and localhost; may be given again
    #[arg(long = "http-host", value_name = "NAME", value_delimiter = ',', value_parser = parse_host_name)]
    http_hosts: Vec<String>,
    /// A web page's origin that may use the client API; may be given again
    #[arg(long = "allow-origin", value_name = "URL", value_delimiter = ',', value_parser = parse_allowed_origin)]
    allow_origins: Vec<String>,
    /// How often the registry hears from a node that is used, 60s without it
    #[arg(long, value_name = "TIME", value_parser = parse_heartbeat)]
    heartbeat_active: Option<Duration>,
    /// Where everything is kept; data/state/share-NAME without it
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Write the real addresses there, as JSON, when all is bound
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
    /// Where servers hear who looks for them, with --server auto
    #[arg(long, value_name = "PORT", allow_negative_numbers = true, default_value_t = DISCOVERY_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    discovery_port: u16,
}

/// For `value_parser`: an interval that keeps the registry connection alive.
fn parse_heartbeat(text: &str) -> Result<Duration, String> {
    let every = settings::parse_window(text)?;
    if every > HEARTBEAT_MAX {
        return Err("expected at most 9min: the registry closes connections that say nothing for 10".to_owned());
    }
    Ok(every)
}

/// Runs the node until a signal ends it, or runs one command.
///
/// # Errors
/// A one-line description of what kept it from starting.
pub fn run(args: ShareArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Some(command) => {
            settings::init_log("error");
            let ip = page_urls::reachable_addr(SocketAddr::new(api_bind_ip(args.api_bind, false)?, 0)).ip();
            let port = flag_or_variable(args.api_port, "CLIENT_API_PORT")?;
            let query = commands::NodeQuery {
                addr: port.map(|port| SocketAddr::new(ip, port)),
                name: args.name.as_ref(),
                cert: args.node_cert.as_deref(),
                default_addr: SocketAddr::new(ip, API_PORT),
            };
            Ok(commands::run(command, &query, args.json))
        }
        None => {
            settings::init_log("info");
            run_node(args)
        }
    }
}

fn run_node(args: ShareArgs) -> anyhow::Result<ExitCode> {
    let Some(name) = args.name.clone().map_or_else(name_prompt::ask, |name| Ok(Some(name)))? else {
        eprintln!("error: a node needs a name: --name NAME (or P2S2_SHARE_NAME), or the first line of the input");
        return Ok(ExitCode::from(2));
    };
    let shutdown = ShutdownSignal::install().context("cannot listen for signals")?;
    if let Err(too_few) = limits::prepare_process(OWN_FILES) {
        bail!("{too_few}: raise it");
    }
    let node = &args.node;
    let server = find_server(node, args.tls.insecure)?;
    let data_dir = node.data_dir.clone().unwrap_or_else(|| settings::default_data_dir("share-", &name));
    let _lock = DataDirLock::acquire(&data_dir)?;
    // Checked before a certificate is created.
    stores::check_node_stores(&data_dir)?;
    let api_ip = api_bind_ip(args.api_bind, true)?;
    let identity = match args.tls.identity(api_ip, &data_dir) {
        Err(_) if !args.tls.tls && args.tls.tls_cert.is_none() => {
            bail!(
                "--api-bind {api_ip} is open to other hosts: say --tls (with the data dir's own certificate) or --insecure"
            )
        }
        identity => identity?,
    };
    let settings = NodeSettings {
        server_host: server.host.clone(),
        registry_port: server.registry_port,
        pin: server.cert.as_deref().map(CertificatePin::new).transpose().map_err(anyhow::Error::msg)?,
        bind: peer_bind_ip(node.bind, server.is_local),
        ports: port_range(node)?,
        advertise_ip: node.advertise_ip,
        heartbeat_active: heartbeat_interval(node)?,
        data_dir: data_dir.clone(),
    };
    if let Some(ip) = node.advertise_ip.filter(|ip| ip.is_unspecified() || ip.is_multicast()) {
        bail!("--advertise-ip {ip}: expected the address of one host");
    }
    let repo = node.repo.clone().unwrap_or_else(|| data_dir.join("repo"));
    create_private_dir(&repo).with_context(|| format!("--repo: cannot create {}", repo.display()))?;
    let folders = if node.folders.is_empty() { default_folders() } else { node.folders.clone() };

    let wanted = RequestedBounds {
        connections: CONNECTIONS_MAX,
        own_files: OWN_FILES,
        other_threads: OTHER_THREADS,
        other_files: OTHER_THREADS,
    };
    let MachineBounds { connections, threads, why } = limits::machine_bounds(wanted);
    if let Some(why) = why {
        limits::warn_lowered("connections at once:", CONNECTIONS_MAX, connections, &why);
    }
    let listener_context = ListenerContext {
        executor: Executor::new("share", threads),
        limiter: ConnectionLimiter::new(connections),
        budget: ReceiveBudget::new(RECEIVE_BUDGET_BYTES),
        identity,
        allows_remote_plaintext: args.tls.insecure,
    };
    // Bound before anything in the data dir is changed.
    let listener = api_listener(api_ip, &args)?;
    let store = NodeStore::open(&data_dir)?;
    let clock = Clock::start();
    let context = NodeContext {
        listener_context: listener_context.clone(),
        clock,
        store: store.clone(),
        upload_permits: process_upload_permits(),
    };
    let nodes = Nodes::start(settings, context, &folders, &repo, &name, node.port).map_err(|error| match error {
        StartNodesError::PortInUse { addr } => port_in_use(addr, "--port"),
        error => error.into(),
    })?;
    let nodes = Arc::new(nodes);
    let api = ApiClient::new(&server.host, server.api_port, server.cert.as_deref(), SERVER_TIMEOUT);
    let handler = Site::of_node(ClientApi::new(Arc::clone(&nodes), Authenticator::new(api, store.clone(), clock)));
    let is_tls = listener_context.identity.is_some();
    let fingerprint = listener_context.identity.as_ref().map(|identity| identity.fingerprint().to_owned());
    let policy = RequestPolicy::from_flags(node.http_hosts.clone(), node.allow_origins.clone());
    let ListenerContext { executor, limiter, budget, identity, allows_remote_plaintext } = listener_context;
    let limits = http::HttpLimits::default();
    let http_context =
        http::HttpContext { executor, limiter, budget, identity, allows_remote_plaintext, policy, limits };
    let http = HttpServer::start(listener, http_context, Arc::new(handler)).context("cannot serve the client API")?;
    let peer = nodes.peer_addr(&name).context("the node has ended")?;
    let api_addr = http.local_addr();
    let mut entries = Map::new();
    entries.insert("peer".to_owned(), Value::from(peer.to_string()));
    entries.insert("client_api".to_owned(), Value::from(api_addr.to_string()));
    let at = page_urls::reachable_addr(api_addr);
    let _record = running_nodes::write_node_record(&name, at, fingerprint.as_deref()).map_err(|error| {
        log::warn!("commands find this node by --api-port {} alone: {error:#}", at.port());
    });
    let scheme = if is_tls { "https" } else { "http" };
    let mut lines = vec![format!("peer: tcp {peer}"), format!("client api: {scheme}://{api_addr}/api/client")];
    lines.extend(page_urls::lines(api_addr, is_tls));
    report_ready(node.ready_file.as_deref(), &lines, &entries)?;
    shutdown.wait();
    log::info!("stopping: what is in hand has {} s", SHUTDOWN_GRACE.as_secs());
    let deadline = Instant::now() + SHUTDOWN_GRACE;
    http.stop(API_SHUTDOWN_GRACE);
    nodes.stop(deadline.saturating_duration_since(Instant::now()));
    store.database().close();
    Ok(ExitCode::SUCCESS)
}

/// The server's address and how to authenticate it.
struct ServerAddress {
    host: String,
    registry_port: u16,
    api_port: u16,
    /// The certificate that it must show; `None`: without TLS.
    cert: Option<String>,
    /// The server is on this machine.
    is_local: bool,
}

/// Determines the server. Passwords are sent to it, so a remote one needs a known certificate unless the user gives
/// `--insecure`.
fn find_server(args: &NodeArgs, insecure: bool) -> anyhow::Result<ServerAddress> {
    let registry_port = flag_or_variable(args.registry_port, "SERVER_PORT")?.unwrap_or(REGISTRY_PORT);
    let api_port = flag_or_variable(args.server_api_port, "ADMIN_API_PORT")?;
    let host = match (&args.server, std::env::var("SERVER_HOST")) {
        (Some(host), _) => host.clone(),
        // Such a value is what the server binds; the client connects to loopback.
        (None, Ok(host)) if host == "0.0.0.0" || host == "::" => Ipv4Addr::LOCALHOST.to_string(),
        (None, Ok(host)) => host,
        (None, Err(_)) => Ipv4Addr::LOCALHOST.to_string(),
    };
    if host == server_discovery::AUTO {
        let query = server_discovery::ServerQuery {
            service: "registry",
            bind: server_discovery::bind_address(args.bind.unwrap_or(Ipv4Addr::UNSPECIFIED.into()))?,
            discovery_port: args.discovery_port,
            server_cert: args.server_cert.as_deref(),
        };
        let chosen = server_discovery::find(&query)?;
        let (ip, is_local) = (chosen.addr.ip(), chosen.addr.ip().is_loopback());
        if chosen.cert_sha256.is_none() && !is_local && !insecure {
            bail!("--server auto: {ip} has no certificate: say --insecure if passwords may go there as they are");
        }
        let (host, registry_port) = (ip.to_string(), chosen.addr.port());
        let announced =
            || chosen.serves.iter().find(|(name, _)| name == server_discovery::SERVER_API).map(|(_, port)| *port);
        let api_port = api_port.or_else(announced).unwrap_or(SERVER_API_PORT);
        return Ok(ServerAddress { host, registry_port, api_port, cert: chosen.cert_sha256, is_local });
    }
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host).to_owned();
    let is_address = host.parse::<IpAddr>().is_ok();
    if host.is_empty() || (!is_address && host.contains([':', '/', ' '])) {
        bail!(
            "--server {host}: expected a host's name or address; its ports are --registry-port and --server-api-port"
        );
    }
    let is_local = is_loopback(&host);
    let cert = match &args.server_cert {
        Some(cert) => Some(cert.clone()),
        None if is_local => None,
        None => known_certificate(&host)?,
    };
    if cert.is_none() && !is_local && !insecure {
        bail!(
            "--server {host} is another machine: say --server-cert HEX (the server's log names it), or --insecure if \
             passwords and tokens may go there as they are"
        );
    }
    let api_port = api_port.unwrap_or(SERVER_API_PORT);
    Ok(ServerAddress { host, registry_port, api_port, cert, is_local })
}

/// The certificate of the server that was confirmed last at this address.
fn known_certificate(host: &str) -> anyhow::Result<Option<String>> {
    let known = KnownServers::in_dir(settings::config_folder()?).all()?;
    let is_there = |address: &str| {
        let bind_address_from = address.rsplit_once(':').map_or(address, |(host, _)| host);
        address == host || bind_address_from.trim_matches(['[', ']']) == host
    };
    Ok(known.into_iter().rev().filter(|server| is_there(&server.address)).find_map(|server| server.cert_sha256))
}

fn is_loopback(host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback(),
        Err(_) => (host, 0).to_socket_addrs().is_ok_and(|mut addrs| {
            let is_any = addrs.len() > 0;
            is_any && addrs.all(|addr| addr.ip().to_canonical().is_loopback())
        }),
    }
}

/// The flag, else a legacy variable.
fn flag_or_variable<T: std::str::FromStr>(flag: Option<T>, variable: &str) -> anyhow::Result<Option<T>> {
    match (flag, std::env::var(variable)) {
        (Some(value), _) => Ok(Some(value)),
        (None, Ok(text)) => match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => bail!("{variable}={text}: expected a port"),
        },
        (None, Err(_)) => Ok(None),
    }
}

fn heartbeat_interval(args: &NodeArgs) -> anyhow::Result<Duration> {
    match (args.heartbeat_active, std::env::var("CLIENT_HEARTBEAT_INTERVAL")) {
        (Some(every), _) => Ok(every),
        (None, Ok(text)) => {
            parse_heartbeat(&text).map_err(|error| anyhow::anyhow!("CLIENT_HEARTBEAT_INTERVAL={text}: {error}"))
        }
        (None, Err(_)) => Ok(ACTIVE_INTERVAL),
    }
}

fn port_range(args: &NodeArgs) -> anyhow::Result<std::ops::RangeInclusive<u16>> {
    let min = flag_or_variable(args.port_min, "CLIENT_PORT_MIN")?.unwrap_or(PORT_MIN_DEFAULT);
    let max = flag_or_variable(args.port_max, "CLIENT_PORT_MAX")?;
    // If only `--port-min` is given, the range keeps at least its default size.
    let max = max.unwrap_or(PORT_MAX_DEFAULT.max(min.saturating_add(PORT_MAX_DEFAULT - PORT_MIN_DEFAULT)));
    if min < 1024 {
        bail!("--port-min {min}: expected 1024 to 65535");
    }
    if min > max {
        bail!("--port-min {min} is above --port-max {max}");
    }
    Ok(min..=max)
}

/// The address for other peers: they must be able to reach it wherever they reach the server.
fn peer_bind_ip(flag: Option<IpAddr>, is_server_near: bool) -> IpAddr {
    match flag {
        Some(ip) => ip,
        None if is_server_near => Ipv4Addr::LOCALHOST.into(),
        None => Ipv4Addr::UNSPECIFIED.into(),
    }
}

/// The flag, else `CLIENT_API_HOST`, else loopback. An unspecified address in the variable becomes loopback.
fn api_bind_ip(flag: Option<IpAddr>, warns: bool) -> anyhow::Result<IpAddr> {
    if let Some(ip) = flag {
        return Ok(ip);
    }
    let Ok(host) = std::env::var("CLIENT_API_HOST") else { return Ok(Ipv4Addr::LOCALHOST.into()) };
    let ip = match host.as_str() {
        "localhost" => Ipv4Addr::LOCALHOST.into(),
        host => host.parse::<IpAddr>().with_context(|| format!("CLIENT_API_HOST={host}: expected an IP address"))?,
    };
    if ip.is_unspecified() {
        if warns {
            log::warn!(
                "CLIENT_API_HOST={host} is bound as 127.0.0.1; to serve other machines say --api-bind {host} --tls"
            );
        }
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    Ok(ip)
}

/// Binds the given port, else the first free one of a range.
fn api_listener(ip: IpAddr, args: &ShareArgs) -> anyhow::Result<TcpListener> {
    if let Some(port) = flag_or_variable(args.api_port, "CLIENT_API_PORT")? {
        let addr = SocketAddr::new(ip, port);
        return listener::listen(addr).map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => port_in_use(addr, "--api-port"),
            _ => anyhow::Error::from(error).context(format!("cannot listen at {addr} (--api-bind, --api-port)")),
        });
    }
    for port in API_PORT..API_PORT + API_PORTS_TRIED {
        let addr = SocketAddr::new(ip, port);
        match listener::listen(addr) {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error).with_context(|| format!("cannot listen at {addr} (--api-bind)")),
        }
    }
    bail!("no port of {API_PORT} to {} is free: choose one with --api-port", API_PORT + API_PORTS_TRIED - 1)
}

/// The home and the temporary folder, if they exist.
fn default_folders() -> Vec<PathBuf> {
    let home = ["HOME", "USERPROFILE"].into_iter().find_map(std::env::var_os).map(PathBuf::from);
    home.into_iter().chain([std::env::temp_dir()]).filter(|folder| folder.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_is_often_enough_for_the_registry() {
        assert_eq!(parse_heartbeat("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(parse_heartbeat("90"), Ok(Duration::from_secs(90)));
        assert!(parse_heartbeat("9min").is_ok() && parse_heartbeat("10min").is_err() && parse_heartbeat("0").is_err());
    }

    #[test]
    fn this_machine_is_told_from_others() {
        for (host, is_local) in
            [("127.0.0.1", true), ("127.8.8.8", true), ("::1", true), ("localhost", true), ("192.0.2.1", false)]
        {
            assert_eq!(is_loopback(host), is_local, "{host}");
        }
    }
}
