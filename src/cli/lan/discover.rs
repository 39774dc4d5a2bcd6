//! `p2s2 lan discover`: lists peers and tests whether the network delivers what peers need.

use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::show::services_json;
use crate::cli::output::{sanitize, sanitize_json};
use crate::cli::settings;
use crate::lan::DISCOVERY_PORT;
use crate::lan::discover::{DiscoverConfig, DiscoverReport, DiscoveredPeer, discover};
use crate::net::interfaces::Interface;

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
    #[arg(long, value_name = "TIME", env = "P2S2_LAN_WAIT", value_parser = settings::parse_window, default_value = "3s")]
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
    let config = DiscoverConfig { bind: args.bind, discovery_port: args.discovery_port, wait: args.wait };
    let report = discover(&config)?;
    // A failed write is an error, not a panic: the reader may have closed the pipe.
    let text = if args.json { as_json(&report) } else { as_text(&report, &args) };
    writeln!(io::stdout().lock(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

fn as_json(report: &DiscoverReport) -> String {
    let peer = |peer: &&DiscoveredPeer| {
        json!({
            "user_id": peer.user_id.to_string(), "addr": peer.addr, "serves": services_json(&peer.serves),
            "cert_sha256": peer.cert_sha256,
        })
    };
    let interface = |each: &Interface| json!({ "name": each.name, "ip": each.ip, "netmask": each.netmask, "broadcast": each.broadcast });
    let it = json!({
        "interfaces": report.interfaces.iter().map(interface).collect::<Vec<_>>(),
        "broadcast": report.broadcast_works, "loopback": report.loopback_works,
        "peers": report.unique_peers().iter().map(peer).collect::<Vec<_>>(),
    });
    sanitize_json(&it.to_string())
}

fn as_text(report: &DiscoverReport, args: &DiscoverArgs) -> String {
    let mut lines = Vec::new();
    for each in &report.interfaces {
        let broadcast = each.broadcast.map_or_else(|| "no broadcast".to_owned(), |ip| format!("broadcast {ip}"));
        lines.push(format!("interface {} {} netmask {} {broadcast}", each.name, each.ip, each.netmask));
    }
    let works = |works: Option<bool>| match works {
        Some(true) => "works".to_owned(),
        Some(false) => "does not work: what was sent did not come back".to_owned(),
        None if args.bind.is_loopback() => format!("not tried: with --bind {} nothing leaves this machine", args.bind),
        None => "not tried: no interface of this machine has it".to_owned(),
    };
    lines.push(format!("broadcast {}", works(report.broadcast_works)));
    lines.push(format!("loopback {}", works(report.loopback_works)));
    for peer in report.unique_peers() {
        lines.push(format!("{} {}", peer.user_id, peer.addr));
        if !peer.serves.is_empty() {
            let serves: Vec<String> = peer.serves.iter().map(|(name, port)| format!("{name}={port}")).collect();
            lines.push(format!("  serves {}", serves.join(",")));
        }
    }
    if report.peers.is_empty() {
        lines.push(format!("nobody answered within {} ms", args.wait.as_millis()));
    }
    lines.iter().map(|line| sanitize(line)).collect::<Vec<_>>().join("\n")
}
