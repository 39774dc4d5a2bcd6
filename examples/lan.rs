//! Two peers on this host find each other, with no server, and one writes to the other.
//!
//! `cargo run --example lan` (or with another discovery port).

use std::net::Ipv4Addr;
use std::time::Duration;

use p2s2::clients::lan::{LanPeer, LanPeerConfig, NodeCommand, NodeKind, Notification};
use p2s2::values::Name;
use p2s2::wires::lan::Dm;

fn start(name: &str, discovery_port: u16) -> anyhow::Result<LanPeer> {
    Ok(LanPeer::start(LanPeerConfig {
        name: Name::new(name).map_err(anyhow::Error::msg)?,
        kind: NodeKind::Person,
        bind: Ipv4Addr::LOCALHOST,
        port: None,
        discovery_port,
        announce_every: Duration::from_secs(30),
        forget_after: Duration::from_secs(300),
        static_peers: Vec::new(),
        data_dir: None,
    })?)
}

fn main() -> anyhow::Result<()> {
    let port = std::env::args().nth(1).unwrap_or_else(|| "50999".to_owned());
    let discovery_port = port.parse().map_err(|_| anyhow::anyhow!("expected a port, not {port}"))?;
    let (ann, bob) = (start("ann", discovery_port)?, start("bob", discovery_port)?);
    for notification in ann.notifications() {
        match notification {
            Notification::PeerJoined(peer) if peer.user_id.name.as_str() == "bob" => {
                println!("ann sees {}", peer.user_id);
                let (to, body) = (Some(peer.user_id.to_string()), Dm { content: "Hello, Bob".to_owned() }.into());
                ann.command(NodeCommand::Say { to, body })?;
            }
            Notification::DmConfirmed { to, .. } => {
                println!("{to} has it");
                break;
            }
            _ => {}
        }
    }
    for notification in bob.notifications() {
        if let Notification::Heard { talk, .. } = notification {
            println!("bob reads: {:?}, from {}", talk.body.text(), talk.from);
            return Ok(());
        }
    }
    anyhow::bail!("bob has ended")
}
