//! `p2s2 story` (`make run-clients`): a demonstration played by real processes on loopback.
//!
//! Every line that a process prints is shown with its name, and each step waits for the output that it needs. The exit
//! code is 0 only if everything worked.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;
use clap::Args;

use super::listen_args::Ports;
use super::output;
use crate::model::Token;

macro_rules! say {
    ($($text:tt)*) => {
        $crate::cli::story::say(&format!($($text)*))
    };
}

/// Write errors are ignored here: the story continues, and `main` reports the failure at the end.
fn say(text: &str) {
    drop(output::print(text));
}

mod acts;
mod environment;
mod probes;
mod process;

use environment::StoryEnvironment;
use probes::{is_healthy_server_api, is_shop_frontend, is_trade_server, settles_in_plaintext};

/// Longer than any successful step takes.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);
const TRADE_PORT: u16 = 7001;
const SELLER_PORT: u16 = 8001;
const BUYER_PORT: u16 = 8002;
const REGISTRY_PORT: u16 = 9000;
const API_PORT: u16 = 5500;

/// Play one whole story against the running server, or against one of its own
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  p2s2 story                      against 127.0.0.1; starts (and stops) a server if none answers

Two peers of the LAN meet as well, on this machine alone and at a discovery port of their own.

Where P2S2_SERVER_TRADE_PORT, P2S2_SERVER_SELLER_PORT, P2S2_SERVER_BUYER_PORT, P2S2_SERVER_REGISTRY_PORT and
P2S2_SERVER_API_PORT say which ports the server has, it is looked for there.")]
pub struct StoryArgs {
    /// The server's trade port, on this machine; 127.0.0.1:7001 without it
    #[arg(long, value_name = "HOST:PORT")]
    server: Option<SocketAddr>,
    /// The port that the server is told by the same variable
    #[arg(long, hide = true, env = "P2S2_SERVER_TRADE_PORT", default_value_t = TRADE_PORT)]
    trade_port: u16,
    /// The shop's sellers' port, on this machine; 127.0.0.1:8001 without it
    #[arg(long, value_name = "HOST:PORT")]
    seller: Option<SocketAddr>,
    /// The shop's buyers' port, on this machine; 127.0.0.1:8002 without it
    #[arg(long, value_name = "HOST:PORT")]
    buyer: Option<SocketAddr>,
    /// The registry of files, on this machine; 127.0.0.1:9000 without it
    #[arg(long, value_name = "HOST:PORT")]
    registry: Option<SocketAddr>,
    /// The server API, on this machine; 127.0.0.1:5500 without it
    #[arg(long, value_name = "HOST:PORT")]
    api: Option<SocketAddr>,
    #[arg(long, hide = true, env = "P2S2_SERVER_REGISTRY_PORT", default_value_t = REGISTRY_PORT)]
    registry_port: u16,
    #[arg(long, hide = true, env = "P2S2_SERVER_API_PORT", default_value_t = API_PORT)]
    api_port: u16,
    #[arg(long, hide = true, env = "P2S2_SERVER_SELLER_PORT", default_value = "8001")]
    seller_port: Ports,
    #[arg(long, hide = true, env = "P2S2_SERVER_BUYER_PORT", default_value = "8002")]
    buyer_port: Ports,
}

#[derive(Debug, Clone, Copy)]
struct ServerAddresses {
    trade: SocketAddr,
    seller: SocketAddr,
    buyer: SocketAddr,
    registry: SocketAddr,
    api: SocketAddr,
}

/// The first port of the list; 0 (any free port) cannot be looked up, so the default is used.
fn first_port(ports: &Ports, otherwise: u16) -> u16 {
    ports.0.first().copied().filter(|port| *port != 0).unwrap_or(otherwise)
}

pub fn run(args: StoryArgs) -> anyhow::Result<ExitCode> {
    super::settings::init_log("warn");
    let at = |given: Option<SocketAddr>, port| given.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, port).into());
    let expected = ServerAddresses {
        trade: at(args.server, first_port(&Ports(vec![args.trade_port]), TRADE_PORT)),
        seller: at(args.seller, first_port(&args.seller_port, SELLER_PORT)),
        buyer: at(args.buyer, first_port(&args.buyer_port, BUYER_PORT)),
        registry: at(args.registry, first_port(&Ports(vec![args.registry_port]), REGISTRY_PORT)),
        api: at(args.api, first_port(&Ports(vec![args.api_port]), API_PORT)),
    };
    for (flag, addr) in [
        ("server", expected.trade),
        ("seller", expected.seller),
        ("buyer", expected.buyer),
        ("registry", expected.registry),
        ("api", expected.api),
    ] {
        ensure!(addr.ip().is_loopback(), "--{flag} {addr}: the story is played on loopback alone");
    }
    let suffix = &Token::random().reveal()[..4].to_owned();
    let environment = StoryEnvironment::create(suffix)?;
    let (mut servers, mut addresses) = (Vec::new(), expected);
    let mut start_server = |name| -> anyhow::Result<ServerAddresses> {
        let (server, addresses) = environment.start_server(name)?;
        servers.push(server);
        Ok(addresses)
    };
    let mut is_own = false;
    if is_trade_server(expected.trade)? {
        say!("A server answers at {}.\n", expected.trade);
    } else {
        say!("No server answers at {}: here is one for this story.\n", expected.trade);
        (addresses, is_own) = (start_server("server")?, true);
    }
    let plaintext = settles_in_plaintext(addresses.trade, suffix)?;
    acts::trade(&environment, addresses.trade, plaintext, suffix)?;
    say("");
    if !(is_own || is_shop_frontend(expected.seller) && is_shop_frontend(expected.buyer)) {
        say!("No shop answers at {} and {}: here is one.\n", expected.seller, expected.buyer);
        (addresses, is_own) = (start_server("shop-server")?, true);
    }
    acts::shop(&environment, addresses, suffix)?;
    say("");
    acts::lan(&environment, suffix)?;
    say("");
    if !is_own && !is_healthy_server_api(expected.api) {
        say!("No registry with accounts answers at {}: here is one.\n", expected.api);
        addresses = start_server("share-server")?;
    }
    acts::share(&environment, addresses, suffix)?;
    for server in &mut servers {
        server.finish()?;
    }
    say!("\nAll of it worked.");
    Ok(ExitCode::SUCCESS)
}
