//! `p2s2 share`: a file-sharing node, and commands for a running node.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;

use super::listen_args::TlsArgs;
use super::{name_prompt, ready, server_discovery, settings};
use crate::identity::KnownServers;
use crate::lan::DISCOVERY_PORT;
use crate::model::Name;
use crate::net::http::{RequestPolicy, parse_allowed_origin, parse_host_name};
use crate::net::interfaces::reachable_addr;
use crate::services::announcement::SERVER_API;
use crate::services::node::{self, API_PORT, NodeProcessConfig};
use crate::services::running_nodes::NodeQuery;
use crate::services::{self, paths};
use crate::share::client::CertificatePin;
use crate::share::heartbeat::ACTIVE_INTERVAL;
use crate::share::node::NodeSettings;

mod commands;
mod node_client;
mod progress;
mod show;
mod transfers;
mod words;

use commands::ShareCommand;

const REGISTRY_PORT: u16 = 9000;
const SERVER_API_PORT: u16 = 5500;
const PORT_MIN_DEFAULT: u16 = 6000;
const PORT_MAX_DEFAULT: u16 = 7000;
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

/// An interval that keeps the registry connection alive.
fn parse_heartbeat(text: &str) -> Result<Duration, String> {
    let every = settings::parse_window(text)?;
    if every > HEARTBEAT_MAX {
        return Err("expected at most 9min: the registry closes connections that say nothing for 10".to_owned());
    }
    Ok(every)
}

/// Runs the node until a signal ends it, or runs one command.
pub fn run(args: ShareArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Some(command) => {
            settings::init_log("error");
            let ip = reachable_addr(SocketAddr::new(api_bind_ip(args.api_bind)?, 0)).ip();
            let port = port_flag_or_variable(args.api_port, "CLIENT_API_PORT")?;
            let query = NodeQuery {
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
    let name = name_prompt::given_or_asked(args.name.as_ref(), "a node", "P2S2_SHARE_NAME")?;
    ready::serve(args.node.ready_file.as_deref(), || {
        services::prepare_process(node::OWN_FILES, "raise it")?;
        node::start(node_config(&args, name)?)
    })
}

/// Combines flags, legacy variables and defaults, and finds the server.
fn node_config(args: &ShareArgs, name: Name) -> anyhow::Result<NodeProcessConfig> {
    let (node, tls) = (&args.node, args.tls.config());
    let server = find_server(node, tls.insecure)?;
    let settings = NodeSettings {
        registry_port: server.registry_port,
        pin: server.cert.as_deref().map(CertificatePin::new).transpose().map_err(anyhow::Error::msg)?,
        // Other peers must be able to reach it wherever they reach the server.
        bind: node.bind.unwrap_or(if server.is_local { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED }.into()),
        server_host: server.host,
        ports: port_range(node)?,
        advertise_ip: node.advertise_ip,
        heartbeat_active: settings::flag_or_variable(
            node.heartbeat_active,
            "CLIENT_HEARTBEAT_INTERVAL",
            ACTIVE_INTERVAL,
            parse_heartbeat,
        )?,
        data_dir: node.data_dir.clone().unwrap_or_else(|| paths::default_data_dir("share-", &name)),
    };
    if let Some(ip) = node.advertise_ip.filter(|ip| ip.is_unspecified() || ip.is_multicast()) {
        bail!("--advertise-ip {ip}: expected the address of one host");
    }
    Ok(NodeProcessConfig {
        name,
        settings,
        server_api_port: server.api_port,
        server_cert: server.cert,
        port: node.port,
        folders: if node.folders.is_empty() { default_folders() } else { node.folders.clone() },
        repo: node.repo.clone(),
        api_ip: api_bind_ip(args.api_bind)?,
        api_port: port_flag_or_variable(args.api_port, "CLIENT_API_PORT")?,
        policy: RequestPolicy::from_flags(node.http_hosts.clone(), node.allow_origins.clone()),
        tls,
    })
}

struct ServerAddress {
    host: String,
    registry_port: u16,
    api_port: u16,
    /// The certificate that it must show; `None`: without TLS.
    cert: Option<String>,
    is_local: bool,
}

/// Determines the server. Passwords are sent to it, so a remote one needs a known certificate unless the user gives
/// `--insecure`.
fn find_server(args: &NodeArgs, insecure: bool) -> anyhow::Result<ServerAddress> {
    let registry_port = port_flag_or_variable(args.registry_port, "SERVER_PORT")?.unwrap_or(REGISTRY_PORT);
    let api_port = port_flag_or_variable(args.server_api_port, "ADMIN_API_PORT")?;
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
        let announced = || chosen.serves.iter().find(|(name, _)| name == SERVER_API).map(|(_, port)| *port);
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
    let cert = match args.server_cert.clone() {
        None if !is_local => known_certificate(&host)?,
        given => given,
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
    let known = KnownServers::in_dir(paths::config_folder()?).all()?;
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

/// The port that the flag or a legacy variable gives.
fn port_flag_or_variable(flag: Option<u16>, variable: &str) -> anyhow::Result<Option<u16>> {
    let parse = |text: &str| text.parse().map(Some).map_err(|_| "expected a port".to_owned());
    settings::flag_or_variable(flag.map(Some), variable, None, parse)
}

fn port_range(args: &NodeArgs) -> anyhow::Result<std::ops::RangeInclusive<u16>> {
    let min = port_flag_or_variable(args.port_min, "CLIENT_PORT_MIN")?.unwrap_or(PORT_MIN_DEFAULT);
    let max = port_flag_or_variable(args.port_max, "CLIENT_PORT_MAX")?;
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

/// Commands log errors alone, so that they, which bind nothing, do not warn of an unspecified address.
fn api_bind_ip(flag: Option<IpAddr>) -> anyhow::Result<IpAddr> {
    settings::bind_address(flag, "CLIENT_API_HOST", "--api-bind", Ipv4Addr::LOCALHOST.into())
}

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
