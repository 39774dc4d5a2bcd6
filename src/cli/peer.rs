//! `p2s2 peer`: an interactive trading peer.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;

use super::repl::{self, Screen};
use super::{UsageError, name_prompt, output, server_discovery, settings};
use crate::lan::DISCOVERY_PORT;
use crate::model::Name;
use crate::net::shutdown::ShutdownSignal;
use crate::net::threads;
use crate::services::{paths, ready_file};
use crate::trade::client::{ClientConfig, ClientOpenError};
use crate::trade::peer::node::{Node, NodeConfig, NodeError};
use crate::trade::peer::wallet::{self, Wallet};

mod commands;
mod show;

const TRADE_PORT: u16 = 7001;

/// Take part in the trade: sell, search, buy
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  p2s2 peer --name alice --wallet data/samples/wallet-alice.json
  p2s2 peer --name bob --server shop.example.org:7001 --bind 192.0.2.7 --auto-buy --wallet ~/wallet.json
  p2s2 peer --name bob --server auto --bind 192.0.2.7        the server that announces itself on this network
  printf 'load data/samples/catalogue.json\\nitems\\n' | p2s2 peer --name carol --json

Commands are read from standard input; `help` lists them. The peer stops when its input ends: offers
that are still open then bind nothing any more once the server's windows have passed, and what was
missed is asked for at the next start. The wallet is a JSON file with cc_number, cc_exp (\"MM/YY\") and
address; it is read when something is paid, and never stored.")]
pub struct PeerArgs {
    /// Who you are; asked for when it is not given (in a pipe: its first line)
    // Whether all of a new name can be seen is the server's to ask: who has one keeps it.
    #[arg(long, value_name = "NAME", value_parser = Name::from_stored)]
    name: Option<Name>,
    /// The server's trade port; auto: look for servers that announce themselves, and ask which
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7001")]
    server: String,
    /// Where servers hear who looks for them, with --server auto
    #[arg(long, value_name = "PORT", allow_negative_numbers = true, default_value_t = DISCOVERY_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    discovery_port: u16,
    /// Address to listen on; the server must be reachable from it
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    bind: IpAddr,
    /// Port for datagrams, from 1024 on; without it (or 0) any free one
    #[arg(long, value_name = "PORT", allow_hyphen_values = true, value_parser = parse_port, default_value_t = 0)]
    udp_port: u16,
    /// Port for settlements, from 1024 on; without it (or 0) any free one
    #[arg(long, value_name = "PORT", allow_hyphen_values = true, value_parser = parse_port, default_value_t = 0)]
    tcp_port: u16,
    /// Where items and deals are kept; data/state/peer-NAME without it
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// What to pay with: a JSON file with cc_number, cc_exp and address
    #[arg(long, value_name = "FILE")]
    wallet: Option<PathBuf>,
    /// Buy whatever is found for a search
    #[arg(long, value_parser = settings::parse_switch())]
    auto_buy: bool,
    /// Settle without TLS, if the server does too
    #[arg(long, value_parser = settings::parse_switch())]
    plaintext: bool,
    /// The server's fingerprint (64 hex digits), if it is known beforehand or has changed; with --server auto
    /// it counts as confirmed
    #[arg(long, value_name = "HEX", value_parser = settings::parse_fingerprint)]
    server_cert: Option<String>,
    /// Write the real addresses there, as JSON, when the server knows us
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
    /// Print one JSON object a line, for answers and events
    #[arg(long, value_parser = settings::parse_switch())]
    json: bool,
}

/// Runs the peer until its input ends, on `quit`, or until SIGINT or SIGTERM.
pub fn run(mut args: PeerArgs) -> anyhow::Result<ExitCode> {
    settings::init_log("error");
    let name = name_prompt::given_or_asked(args.name.as_ref(), "a peer", "P2S2_PEER_NAME")?;
    if args.auto_buy && args.wallet.is_none() {
        bail!(UsageError("--auto-buy needs something to pay with: --wallet FILE".to_owned()));
    }
    let mut no_server_cert = false;
    if args.server == server_discovery::AUTO {
        let chosen = server_discovery::find(&server_discovery::ServerQuery {
            service: "trade",
            bind: server_discovery::bind_address(args.bind)?,
            discovery_port: args.discovery_port,
            server_cert: args.server_cert.as_deref(),
        })?;
        // Every trading peer may have to pay.
        chosen.check_payment(" --plaintext")?;
        // From here on the confirmed certificate counts as if it had been given with `--server-cert`.
        args.server = chosen.addr.to_string();
        no_server_cert = chosen.cert_sha256.is_none();
        args.server_cert = chosen.cert_sha256;
    }
    let (server, key) = resolve_server(&args.server, args.bind)?;
    let data_dir = args.data_dir.clone().unwrap_or_else(|| paths::default_data_dir("peer-", &name));
    let shutdown = ShutdownSignal::install().context("cannot listen to signals")?;
    let screen = Screen::new(args.json, shutdown.clone());
    check_wallet(args.wallet.as_deref())?;

    let mut client = ClientConfig::new(name.clone(), server);
    (client.bind, client.udp_port, client.tcp_port) = (args.bind, args.udp_port, args.tcp_port);
    let settings = NodeConfig {
        client,
        server: key,
        data_dir: data_dir.clone(),
        wallet: args.wallet.clone(),
        auto_buy: args.auto_buy,
        plaintext: args.plaintext,
        server_cert: args.server_cert.clone(),
        no_server_cert,
    };
    let observer = {
        let screen = screen.clone();
        move |event: &_| show::print_event(&screen, event)
    };
    let node = Arc::new(Node::open(settings, observer).map_err(explain_open_error)?);
    // A signal closes the node even while it waits for a server that does not respond.
    let closer = {
        let (node, shutdown) = (Arc::clone(&node), shutdown.clone());
        threads::spawn("end", move || {
            shutdown.wait();
            node.close();
        })?
    };
    let result = join_and_run(&args, server, &node, &data_dir, &screen, &shutdown);
    shutdown.request();
    // An `Err` would be a panic, which is logged.
    let _ = closer.join();
    result.map(|()| ExitCode::SUCCESS)
}

/// Joins the trade, then runs commands until the input ends.
fn join_and_run(
    args: &PeerArgs,
    server: SocketAddr,
    node: &Arc<Node>,
    data_dir: &Path,
    screen: &Screen,
    shutdown: &ShutdownSignal,
) -> anyhow::Result<()> {
    let was_registered = match node.join() {
        // A signal interrupted the join.
        Err(_) if shutdown.is_requested() => return Ok(()),
        joined => joined?,
    };
    if let Some(cert) = &args.server_cert {
        server_discovery::remember_confirmed("trade", server, cert);
    }
    let (name, endpoint) = (node.client().name(), node.client().endpoint());
    // Both are ports of our own sockets.
    let addr = |port: u32| SocketAddr::new(endpoint.ip, u16::try_from(port).unwrap_or_default());
    let (udp, tcp) = (addr(endpoint.udp_port), addr(endpoint.tcp_port));
    let (event, word) = if was_registered { ("logged_in", "logged in") } else { ("registered", "registered") };
    screen.print_event(event, json!({ "name": name, "udp": udp, "tcp": tcp }), |_| {
        format!("{word} as {name} at {}; `help` lists the commands", args.server)
    });
    if let Some(path) = &args.ready_file {
        ready_file::write(path, &json!({ "udp": udp, "tcp": tcp }))?;
    }
    let commands = Arc::new(commands::PeerCommands { node: Arc::clone(node), screen: screen.clone() });
    let prompt = format!("{}> ", output::sanitize(name.as_str()));
    repl::run(&prompt, Some(data_dir.join("history")), screen, shutdown, commands).context("cannot read commands")
}

fn check_wallet(path: Option<&Path>) -> anyhow::Result<()> {
    let Some(path) = path else {
        eprintln!("note: without --wallet FILE things can be sold, but nothing can be bought");
        return Ok(());
    };
    // An unreadable wallet is reported now rather than at the first purchase.
    Wallet::read(path).map_err(anyhow::Error::msg)?;
    if let Some(warning) = wallet::warning(path) {
        eprintln!("warning: {}", output::sanitize(&warning));
    }
    Ok(())
}

/// The address, and the key under which the fingerprint is stored: the host as it was written, because the address
/// behind a name may change while the server stays the same.
fn resolve_server(server: &str, bind: IpAddr) -> anyhow::Result<(SocketAddr, String)> {
    let server = server.trim();
    let with_port = match (server.parse::<SocketAddr>(), server.parse::<IpAddr>()) {
        (Ok(address), _) => address.to_string(),
        (_, Ok(ip)) => SocketAddr::new(ip, TRADE_PORT).to_string(),
        _ if server.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) => server.to_owned(),
        _ if !server.is_empty() && !server.contains(':') => format!("{server}:{TRADE_PORT}"),
        _ => bail!("--server {server}: expected HOST:PORT"),
    };
    let addresses = with_port.to_socket_addrs().with_context(|| format!("--server {server}"))?;
    let mut addresses: Vec<SocketAddr> = addresses.collect();
    addresses.sort_by_key(|address| address.is_ipv4() != bind.is_ipv4());
    let address = *addresses.first().with_context(|| format!("--server {server}: no address"))?;
    if address.is_ipv4() != bind.is_ipv4() {
        bail!("--server {server} ({address}) cannot be reached from --bind {bind}: one is IPv4, the other IPv6");
    }
    let key = if address.ip().is_loopback() { address.to_string() } else { with_port.to_lowercase() };
    Ok((address, key))
}

fn parse_port(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(port) if port == 0 || port >= 1024 => Ok(port),
        _ => Err("expected a port from 1024 to 65535, or 0 for any free one".to_owned()),
    }
}

fn explain_open_error(error: NodeError) -> anyhow::Error {
    match error {
        NodeError::Open(ClientOpenError::InUse { what, port }) => {
            let flag = format!("--{}-port", what.to_lowercase());
            anyhow::anyhow!("{what} port {port} is in use: choose another one with {flag}, or leave it out")
        }
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_named_with_and_without_port() {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        for (text, key) in [
            ("127.0.0.1:9", "127.0.0.1:9"),
            ("127.0.0.1", "127.0.0.1:7001"),
            ("localhost:9", "127.0.0.1:9"),
            ("localhost", "127.0.0.1:7001"),
        ] {
            let (address, kept) = resolve_server(text, loopback).unwrap();
            assert_eq!((address.to_string().as_str(), kept.as_str()), (key, key), "{text}");
        }
        for text in ["", ":", "host:x", "[::1]:9", "127.0.0.1:99999"] {
            assert!(resolve_server(text, loopback).unwrap_err().to_string().contains("--server"), "{text}");
        }
    }

    #[test]
    fn ports_and_fingerprints_are_checked() {
        assert!(parse_port("0").is_ok() && parse_port("1024").is_ok());
        assert!(parse_port("80").is_err() && parse_port("70000").is_err());
        assert_eq!(settings::parse_fingerprint(&"AB".repeat(32)).unwrap(), "ab".repeat(32));
        assert!(settings::parse_fingerprint("ab").is_err());
    }
}
