//! A host registers at the registry, publishes a file, and asks who has it.
//!
//! With `make run-server` running: `cargo run --example registry` (or with the registry's address).

use std::net::SocketAddr;
use std::time::Duration;

use p2s2::clients::registry::RegistryClient;
use p2s2::values::{Name, Token};
use p2s2::wires::registry::{FileEntry, FileName, RegisterRequest, Seconds};

fn main() -> anyhow::Result<()> {
    let at = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9000".to_owned());
    let at: SocketAddr = at.parse().map_err(|_| anyhow::anyhow!("expected IP:PORT, not {at}"))?;
    let registry = RegistryClient::connect(at, None, Duration::from_secs(5))?;
    // A name that nobody has yet, so that the example can be run again.
    let hostname = Name::new(&format!("example-{}", &Token::random().reveal()[..8])).map_err(anyhow::Error::msg)?;
    registry.register(&RegisterRequest {
        hostname: hostname.clone(),
        port: 9100, // where this host would serve its files
        ip: None,
        display_name: None,
        files: None,
        token: None,
        resume: None,
    })?;
    let fname = FileName::new("notes.txt").map_err(anyhow::Error::msg)?;
    let entry = FileEntry {
        size: 1234,
        modified: Seconds::new(1_700_000_000.0).map_err(anyhow::Error::msg)?,
        created: None,
        published_at: None,
        is_published: true,
        blake3: None,
        pieces_root: None,
        features: [].into(),
    };
    registry.publish(&hostname, &fname, &entry)?;
    for holder in registry.request(&fname)? {
        println!("{} has {} bytes of {fname} at {}:{}", holder.hostname, holder.file.size, holder.ip, holder.port);
    }
    registry.unregister(&hostname)?;
    Ok(())
}
