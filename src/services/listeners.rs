//! The listeners of a process, as they are reported once everything is bound.

use std::net::SocketAddr;

use serde_json::{Map, Value};

use super::announcement::AnnouncedService;

#[derive(Debug, Default)]
pub struct Listeners {
    pub lines: Vec<String>,
    pub entries: Map<String, Value>,
    pub announced: Vec<AnnouncedService>,
}

impl Listeners {
    /// Adds a listener; `line` is for people, `name` is its field in the ready file.
    pub fn add(&mut self, line: String, name: &str, addr: SocketAddr) {
        self.lines.push(line);
        self.entries.insert(name.to_owned(), addr.to_string().into());
    }

    /// Adds a frontend of the shop with all its addresses. It is announced with the first port.
    pub(super) fn add_frontend(&mut self, name: &'static str, addrs: &[SocketAddr], cert_sha256: Option<String>) {
        self.lines.extend(addrs.iter().map(|addr| format!("{name}: tcp {addr}")));
        add_frontend_entries(name, addrs, &mut self.entries);
        self.announced.extend(addrs.first().map(|addr| AnnouncedService { name, port: addr.port(), cert_sha256 }));
    }
}

/// Adds a frontend to the ready file: its first address, and all of them if there are several.
fn add_frontend_entries(name: &str, addrs: &[SocketAddr], entries: &mut Map<String, Value>) {
    if let Some(first) = addrs.first() {
        entries.insert(name.to_owned(), first.to_string().into());
    }
    if addrs.len() > 1 {
        let all = addrs.iter().map(|addr| Value::from(addr.to_string())).collect();
        entries.insert(format!("{name}_all"), all);
    }
}

/// The error for a port that is in use, with the flag by which it was chosen.
pub(super) fn port_in_use(addr: SocketAddr, flag: &str) -> anyhow::Error {
    let (port, ip) = (addr.port(), addr.ip());
    anyhow::anyhow!("port {port} of {ip} is in use: stop what uses it, or choose another with {flag}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_addresses_has_its_first_and_all() {
        let addrs: Vec<SocketAddr> = vec!["127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()];
        let mut entries = Map::new();
        add_frontend_entries("seller", &addrs, &mut entries);
        add_frontend_entries("buyer", &addrs[..1], &mut entries);
        let expected = serde_json::json!({
            "seller": "127.0.0.1:1", "seller_all": ["127.0.0.1:1", "127.0.0.1:2"], "buyer": "127.0.0.1:1",
        });
        assert_eq!(Value::Object(entries), expected);
    }
}
