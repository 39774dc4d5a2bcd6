//! Cores with something in them, to be measured.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use p2s2::internals::lan::SocketRole;
use p2s2::internals::lan::node::{InterfaceAddress, Node, NodeConfig, NodeEvent, NodeKind};
use p2s2::internals::lan::wire::decode;
use p2s2::internals::model::{FeeRate, Millis, Name, Token};
use p2s2::internals::share::registry::{HostnameClaim, HostnameStatus, Registry, RegistryLimits, SecretHash};
use p2s2::internals::storage::Journal;
use p2s2::internals::trade::deal::Windows;
use p2s2::internals::trade::exchange::{Exchange, ExchangeRules, RequestOrigin, Transport};
use p2s2::internals::trade::journal::{ExchangeChange, ExchangeSnapshot};
use p2s2::internals::trade::wire::{PeerMessage, Request, Response, parse_message};

pub const NOW: Millis = Millis(1_795_253_400_000);

/// A journal that keeps nothing: what is measured is the core alone.
pub struct Nowhere;

impl Journal for Nowhere {
    type Change = ExchangeChange;
    type Commit = u64;

    fn append(&self, changes: Vec<ExchangeChange>) -> u64 {
        changes.len() as u64
    }

    fn latest(a: u64, b: u64) -> u64 {
        a.max(b)
    }

    fn is_committed(&self, _commit: &u64) -> bool {
        true
    }
}

/// A trade server's core with registered peers `peer-0`, `peer-1`, ….
pub struct Market {
    pub exchange: Exchange<Nowhere>,
    tokens: Vec<String>,
}

impl Market {
    pub fn with(peers: usize) -> Market {
        let seconds = Duration::from_secs;
        let windows = Windows { offer: seconds(5), negotiate: seconds(10), reserve: seconds(120) };
        let rules = ExchangeRules { windows, fee: FeeRate::default(), cert_sha256: None };
        let (exchange, _) = Exchange::load(Nowhere, rules, ExchangeSnapshot::default(), 0, NOW);
        let mut market = Market { exchange, tokens: Vec::new() };
        for peer in 0..peers {
            let port = 5000 + peer;
            let register = format!(
                r#"{{"type":"REGISTER","rq":1,"name":"peer-{peer}","ip":"127.0.0.1","udp_port":{port},"tcp_port":{port}}}"#
            );
            let response = market.exchange.handle_request(NOW, &origin(peer), &parsed(&register)).response;
            let Some(Response::Registered { token, .. }) = response else { panic!("not registered: {response:?}") };
            market.tokens.push(token.reveal().to_owned());
        }
        market
    }

    /// A request of a peer, as text; `fields` begin with a comma.
    pub fn message(&self, peer: usize, kind: &str, rq: u64, fields: &str) -> String {
        format!(r#"{{"type":"{kind}","rq":{rq},"name":"peer-{peer}","token":"{}"{fields}}}"#, self.tokens[peer])
    }

    /// Parses and handles it.
    pub fn say(&self, peer: usize, message: &str) -> usize {
        let effects = self.exchange.handle_request(NOW, &origin(peer), &parsed(message));
        assert!(!matches!(effects.response, Some(Response::Error { .. })), "{message}: {:?}", effects.response);
        effects.notifications.len()
    }
}

pub fn parsed(message: &str) -> Request {
    match parse_message(message.as_bytes()) {
        PeerMessage::Request(request) => request,
        other => panic!("{message}: {other:?}"),
    }
}

pub fn origin(peer: usize) -> RequestOrigin {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let source = SocketAddr::new(loopback, 5000 + peer as u16);
    RequestOrigin { source, local_ip: Some(loopback), transport: Transport::Udp }
}

/// A registry with hosts `host-0`, `host-1`, …, each by a connection of its number.
pub fn registry(hosts: u64) -> Registry {
    let mut registry = Registry::new(Duration::from_secs(1200), RegistryLimits::default());
    for host in 0..hosts {
        let hostname = Name::new(&format!("host-{host}")).unwrap();
        let claim = HostnameClaim {
            display_name: hostname.as_str().into(),
            hostname,
            port: 6000,
            ip: None,
            // Neighbours share an allowance.
            source: Ipv4Addr::from(0xC000_0000 + (host as u32) * 65_536).into(),
            status: HostnameStatus::Free,
            resume_secret: None,
            new_secret: SecretHash::of(&Token::random()),
            keeps_files: false,
            file_count: 0,
            is_local_ip: false,
        };
        registry.register(NOW, host, &claim).unwrap();
    }
    registry
}

/// A peer of the LAN that knows this many others.
pub fn lan_node(peers: usize) -> Node {
    let mut node = Node::new(NodeConfig {
        name: Name::new("ann").unwrap(),
        instance: "0123456789abcdef".to_owned(),
        kind: NodeKind::Person,
        port: 8000,
        discovery_port: 50_999,
        announce_every: Duration::from_secs(30),
        forget_after: Duration::from_secs(300),
    });
    let own = Ipv4Addr::new(10, 0, 0, 1);
    let interface = InterfaceAddress { ip: own, netmask: Ipv4Addr::new(255, 255, 0, 0), source_ip: Some(own) };
    node.handle(NOW, NodeEvent::InterfacesChanged(vec![interface]), &mut || 7);
    node.handle(NOW, NodeEvent::Started, &mut || 7);
    for peer in 0..peers {
        node.handle(NOW, announcement(peer), &mut || 7);
    }
    assert_eq!(node.peers().len(), peers);
    node
}

/// What another peer says every half minute.
pub fn announcement(peer: usize) -> NodeEvent {
    let ip = Ipv4Addr::from(0x0A00_0002 + peer as u32);
    let text = format!(
        "TYPE: PEER_DISCOVERY\nUSER_ID: peer-{peer}@{ip}\nPORT: 8000\nINSTANCE: {peer:016x}\nFEATURES: ack\n\n"
    );
    NodeEvent::Datagram {
        from: SocketAddr::new(ip.into(), 8000),
        socket: SocketRole::Discovery,
        message: decode(text.as_bytes()),
        bytes: text.len(),
    }
}
