//! `p2s2 lan`: an interactive LAN peer. `p2s2 lan discover`: lists the peers of the network.

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::json;

use super::repl::{self, Screen};
use super::{name_prompt, output, settings};
use crate::lan::DISCOVERY_PORT;
use crate::lan::history::{History, HistoryError};
use crate::lan::node::NodeKind;
use crate::lan::peer::{LanPeer, LanPeerConfig, LanPeerStartError};
use crate::model::Name;
use crate::net::interfaces;
use crate::net::shutdown::ShutdownSignal;
use crate::net::threads;
use crate::services::{paths, ready_file};
use crate::storage::lock::LockError;

mod commands;
mod discover;
mod show;

/// Numbered names that are tried if peers in this working directory already use the data dirs of the same name.
const NAMESAKES_MAX: usize = 99;
/// How long pending messages may still be confirmed at shutdown.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// Talk to whoever is on this network, with no server
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  p2s2 lan --name alice                                  everybody on every network of this machine
  p2s2 lan --name alice --bind 127.0.0.1                 only those on this machine
  printf 'list\\npost hello\\n' | p2s2 lan --name bob --json
  p2s2 lan discover                                      who is there, and whether broadcast works

Commands are read from standard input, in any case; `help` lists them. Messages are kept in the data dir and
shown by HISTORY, also after a restart."
)]
pub struct LanArgs {
    #[command(subcommand)]
    command: Option<LanCommand>,
    /// Who you are; asked for when it is not given (in a pipe: its first line)
    #[arg(long, value_name = "NAME", value_parser = Name::new)]
    name: Option<Name>,
    /// Address to speak from: 0.0.0.0 for every interface; with 127.0.0.1 nothing leaves this machine
    #[arg(long, value_name = "IP", default_value_t = Ipv4Addr::UNSPECIFIED)]
    bind: Ipv4Addr,
    /// Port of its own; without it the last one, or a free one of 8000 to 9999; 0 for any free one
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Port where everybody hears announcements: the same for all
    #[arg(long, value_name = "PORT", default_value_t = DISCOVERY_PORT)]
    discovery_port: u16,
    /// How often to say that we are here, give or take a tenth
    #[arg(long, value_name = "TIME", value_parser = settings::parse_window, default_value = "30s")]
    announce_every: Duration,
    /// How long somebody who is not heard is remembered
    #[arg(long, value_name = "TIME", value_parser = settings::parse_window, default_value = "5m")]
    forget_after: Duration,
    /// Somebody whom broadcast cannot reach; may be given again
    #[arg(long = "peer", value_name = "HOST:PORT", value_delimiter = ',')]
    peers: Vec<String>,
    /// Where messages are kept; data/state/lan-NAME without it
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Show times, addresses, types, and what is dropped and why
    #[arg(long, value_parser = settings::parse_switch())]
    verbose: bool,
    /// Write the real addresses there, as JSON, when all is bound
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
    /// Print one JSON object a line, for answers and messages
    #[arg(long, value_parser = settings::parse_switch())]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum LanCommand {
    Discover(discover::DiscoverArgs),
}

/// The peer could not start, or its input could not be read.
pub fn run(args: LanArgs) -> anyhow::Result<ExitCode> {
    settings::init_log("error");
    if let Some(LanCommand::Discover(args)) = args.command {
        return discover::run(args);
    }
    let name = name_prompt::given_or_asked(args.name.as_ref(), "a peer", "P2S2_LAN_NAME")?;
    let shutdown = ShutdownSignal::install().context("cannot listen to signals")?;
    let screen = Screen::new(args.json, shutdown.clone());
    let (peer, data_dir) = start_peer(&args, &name)?;
    let peer = Arc::new(peer);
    let view = peer.snapshot()?;
    let (own, discovery) = (peer.own_addr(), peer.discovery_addr());
    let profile = peer.history().map(History::profile).transpose()?.flatten();
    let fields = json!({
        "name": view.name, "lan": own.to_string(), "discovery": discovery.to_string(),
        "profile": profile.as_ref().map(show::profile_json),
    });
    screen.print_event("started", fields, |_| {
        let started = format!("{} is here, at {own}; HELP lists the commands", view.name);
        let profile = profile.map(|profile| format!("your profile: {}", output::sanitize(&profile.to_string())));
        [started].into_iter().chain(profile).collect::<Vec<_>>().join("\n")
    });
    if let Some(path) = &args.ready_file {
        ready_file::write(path, &json!({ "lan": own.to_string(), "discovery": discovery.to_string() }))?;
    }
    let verbose = Arc::new(AtomicBool::new(args.verbose));
    let printer = {
        let (notifications, screen, verbose) = (peer.notifications(), screen.clone(), Arc::clone(&verbose));
        threads::spawn("lan-show", move || {
            notifications.iter().for_each(|notification| show::print_event(&screen, &notification, &verbose))
        })?
    };
    let commands = Arc::new(commands::LanCommands::new(Arc::clone(&peer), screen.clone(), verbose));
    let prompt = format!("{}> ", output::sanitize(view.name.as_str()));
    let history = Some(data_dir.join("history"));
    let result = repl::run(&prompt, history, &screen, &shutdown, Arc::<commands::LanCommands>::clone(&commands));
    // Pending messages get this time after QUIT and after a signal too; a second signal ends the process at once.
    commands.wait_for_confirmations(SHUTDOWN_GRACE);
    peer.stop();
    // The peer has dropped its end of the channel, so everything it reported has been printed. An `Err` would be a
    // panic, which `threads::spawn` has already logged.
    let _ = printer.join();
    result.context("cannot read commands").map(|()| ExitCode::SUCCESS)
}

/// Starts the peer with the data dir of its name. If another peer holds that data dir, numbered names are tried.
fn start_peer(args: &LanArgs, name: &Name) -> anyhow::Result<(LanPeer, PathBuf)> {
    let mut reach = Vec::new();
    for peer in &args.peers {
        reach.push(resolve_peer(peer, args.bind)?);
    }
    let mut namesake = name.clone();
    for number in 2..=NAMESAKES_MAX + 1 {
        let data_dir = args.data_dir.clone().unwrap_or_else(|| paths::default_data_dir("lan-", &namesake));
        let config = LanPeerConfig {
            name: namesake.clone(),
            kind: NodeKind::Person,
            bind: args.bind,
            port: args.port,
            discovery_port: args.discovery_port,
            announce_every: args.announce_every,
            forget_after: args.forget_after,
            static_peers: reach.clone(),
            data_dir: Some(data_dir.clone()),
        };
        match LanPeer::start(config) {
            Ok(peer) => return Ok((peer, data_dir)),
            Err(LanPeerStartError::History(HistoryError::Lock(LockError::Held { .. }))) if args.data_dir.is_none() => {
                namesake = name.numbered(number);
            }
            Err(LanPeerStartError::Name(error)) => bail!("--name {name}: {error}"),
            Err(error) => return Err(error.into()),
        }
    }
    bail!("{NAMESAKES_MAX} peers of the name {name} run from here already: choose another --name")
}

/// The first IPv4 address that the host name resolves to.
fn resolve_peer(peer: &str, bind: Ipv4Addr) -> anyhow::Result<SocketAddr> {
    let addresses = peer.to_socket_addrs().with_context(|| format!("--peer {peer}: expected HOST:PORT"))?;
    let Some(address) = addresses.into_iter().find(SocketAddr::is_ipv4) else {
        bail!("--peer {peer}: it has no IPv4 address");
    };
    let stays_here = matches!(address, SocketAddr::V4(at) if interfaces::is_local_address(*at.ip())?);
    if bind.is_loopback() && !stays_here {
        bail!("--peer {peer}: with --bind {bind} nothing leaves this machine; choose another --bind");
    }
    Ok(address)
}
