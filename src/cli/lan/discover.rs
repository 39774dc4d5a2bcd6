//! `p2s2 lan discover`: who is there, and whether the network carries what peers need.

use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use crate::cli::repl::clean;
use crate::cli::settings;
use crate::lan::DISCOVERY_PORT;
use crate::lan::discover::{Found, Question, ask};

/// List who is on this network, and test it
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  p2s2 lan discover
  p2s2 lan discover --wait 1s --bind 127.0.0.1 --json

Announces itself once and lists who answers; nobody lists it. Ends with 0 also when nobody is there, with 1
when the network cannot be asked.")]
pub(super) struct DiscoverArgs {
    /// How long to wait for answers
    #[arg(long, value_name = "TIME", value_parser = settings::parse_window, default_value = "3s")]
    wait: Duration,
    /// Address to speak from: 0.0.0.0 for every interface; with 127.0.0.1 nothing leaves this machine
    #[arg(long, value_name = "IP", env = "P2S2_LAN_BIND", default_value_t = Ipv4Addr::UNSPECIFIED)]
    bind: Ipv4Addr,
    /// Port where everybody hears announcements
    #[arg(long, value_name = "PORT", env = "P2S2_LAN_DISCOVERY_PORT", default_value_t = DISCOVERY_PORT)]
    discovery_port: u16,
    /// Print one JSON object
    #[arg(long, env = "P2S2_LAN_JSON", value_parser = settings::parse_switch())]
    json: bool,
}

pub(super) fn run(args: DiscoverArgs) -> anyhow::Result<ExitCode> {
    let question = Question { bind: args.bind, discovery_port: args.discovery_port, wait: args.wait };
    let Found { interfaces, broadcast_works, loopback_works, peers } = ask(&question)?;
    if args.json {
        let peers: Vec<_> = peers
            .iter()
            .map(|peer| {
                let serves: serde_json::Map<String, serde_json::Value> =
                    peer.serves.iter().map(|(name, port)| (name.clone(), (*port).into())).collect();
                json!({ "user_id": peer.user_id.to_string(), "addr": peer.addr, "serves": serves, "cert_sha256": peer.cert_sha256 })
            })
            .collect();
        let interfaces: Vec<_> = interfaces
            .iter()
            .map(|each| json!({ "name": each.name, "ip": each.ip, "netmask": each.netmask, "broadcast": each.broadcast }))
            .collect();
        let it = json!({
            "interfaces": interfaces, "broadcast": broadcast_works, "loopback": loopback_works, "peers": peers,
        });
        println!("{}", crate::cli::repl::clean_json(&it.to_string()));
        return Ok(ExitCode::SUCCESS);
    }
    for each in &interfaces {
        let broadcast = each.broadcast.map_or_else(|| "no broadcast".to_owned(), |ip| format!("broadcast {ip}"));
        println!("interface {} {} netmask {} {broadcast}", clean(&each.name), each.ip, each.netmask);
    }
    let works = |works: Option<bool>| match works {
        Some(true) => "works",
        Some(false) => "does not work: what was sent did not come back",
        None => "not tried: no interface of this machine has it",
    };
    println!("broadcast {}", works(broadcast_works));
    println!("loopback {}", works(loopback_works));
    for peer in &peers {
        println!("{}", clean(&format!("{} {}", peer.user_id, peer.addr)));
        if !peer.serves.is_empty() {
            let serves: Vec<String> = peer.serves.iter().map(|(name, port)| format!("{name}={port}")).collect();
            println!("{}", clean(&format!("  serves {}", serves.join(","))));
        }
    }
    if peers.is_empty() {
        println!("nobody answered within {} ms", args.wait.as_millis());
    }
    Ok(ExitCode::SUCCESS)
}
