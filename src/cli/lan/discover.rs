//! `p2s2 lan discover`: who is there, and whether the network carries what peers need.

use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use crate::cli::repl::{clean, clean_json};
use crate::cli::settings;
use crate::lan::DISCOVERY_PORT;
use crate::lan::discover::{Answered, Found, Question, ask};
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
    let question = Question { bind: args.bind, discovery_port: args.discovery_port, wait: args.wait };
    let found = ask(&question)?;
    // Whoever reads may have seen enough before the end, which is no panic.
    let text = if args.json { as_json(&found) } else { in_prose(&found, &args) };
    writeln!(io::stdout().lock(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

fn as_json(found: &Found) -> String {
    let serves = |peer: &Answered| -> serde_json::Map<String, serde_json::Value> {
        peer.serves.iter().map(|(name, port)| (name.clone(), (*port).into())).collect()
    };
    let peer = |peer: &&Answered| {
        json!({
            "user_id": peer.user_id.to_string(), "addr": peer.addr, "serves": serves(peer),
            "cert_sha256": peer.cert_sha256,
        })
    };
    let interface = |each: &Interface| json!({ "name": each.name, "ip": each.ip, "netmask": each.netmask, "broadcast": each.broadcast });
    let it = json!({
        "interfaces": found.interfaces.iter().map(interface).collect::<Vec<_>>(),
        "broadcast": found.broadcast_works, "loopback": found.loopback_works,
        "peers": found.each_once().iter().map(peer).collect::<Vec<_>>(),
    });
    clean_json(&it.to_string())
}

fn in_prose(found: &Found, args: &DiscoverArgs) -> String {
    let mut lines = Vec::new();
    for each in &found.interfaces {
        let broadcast = each.broadcast.map_or_else(|| "no broadcast".to_owned(), |ip| format!("broadcast {ip}"));
        lines.push(format!("interface {} {} netmask {} {broadcast}", each.name, each.ip, each.netmask));
    }
    let works = |works: Option<bool>| match works {
        Some(true) => "works".to_owned(),
        Some(false) => "does not work: what was sent did not come back".to_owned(),
        None if args.bind.is_loopback() => format!("not tried: with --bind {} nothing leaves this machine", args.bind),
        None => "not tried: no interface of this machine has it".to_owned(),
    };
    lines.push(format!("broadcast {}", works(found.broadcast_works)));
    lines.push(format!("loopback {}", works(found.loopback_works)));
    for peer in found.each_once() {
        lines.push(format!("{} {}", peer.user_id, peer.addr));
        if !peer.serves.is_empty() {
            let serves: Vec<String> = peer.serves.iter().map(|(name, port)| format!("{name}={port}")).collect();
            lines.push(format!("  serves {}", serves.join(",")));
        }
    }
    if found.peers.is_empty() {
        lines.push(format!("nobody answered within {} ms", args.wait.as_millis()));
    }
    lines.iter().map(|line| clean(line)).collect::<Vec<_>>().join("\n")
}
