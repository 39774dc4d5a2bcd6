//! A single probe that lists the peers and servers on the network, and tests whether broadcast works.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::SocketRole;
use super::sockets::{LanSockets, LanSocketsError, PeerSocketEvent, PortChoice};
use super::wire::{self, Discovery, Features, Message, MessageStamp, UserId};
use crate::model::secret::random_hex;
use crate::model::{Clock, Name};
use crate::net::interfaces::Interface;
use crate::net::threads;

/// Capacity of the queue of responses, and how many peers are listed.
const RESPONSES_MAX: usize = 10_000;

/// How to probe.
#[derive(Debug, Clone)]
pub struct DiscoverConfig {
    pub bind: Ipv4Addr,
    pub discovery_port: u16,
    pub wait: Duration,
}

/// The result of a probe.
#[derive(Debug)]
pub struct DiscoverReport {
    /// The interface addresses of this host that the probe was sent by.
    pub interfaces: Vec<Interface>,
    /// Whether a broadcast on a network came back; `None` if no interface has a broadcast address.
    pub broadcast_works: Option<bool>,
    /// The same for loopback.
    pub loopback_works: Option<bool>,
    /// All who responded, including servers, sorted by name; once for each interface.
    pub peers: Vec<DiscoveredPeer>,
}

/// A peer or server that responded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveredPeer {
    pub user_id: UserId,
    /// Where it receives unicasts.
    pub addr: SocketAddr,
    /// Names and ports; empty unless it is a server.
    pub serves: Vec<(String, u16)>,
    /// SHA-256 of a server's certificate, in lower-case hex.
    pub cert_sha256: Option<String>,
    /// Random, one per run: the same peer seen through several interfaces has the same one.
    pub instance: Option<String>,
}

/// Why the probe could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    #[error(transparent)]
    Sockets(#[from] LanSocketsError),
    /// A thread cannot be started, or the host's addresses cannot be read.
    #[error("cannot ask")]
    System(#[from] io::Error),
}

/// Broadcasts one announcement with the feature `probe`, which nobody lists, and collects the responses.
pub fn discover(config: &DiscoverConfig) -> Result<DiscoverReport, DiscoverError> {
    let DiscoverConfig { bind, discovery_port, wait } = *config;
    let sockets = Arc::new(LanSockets::open(bind, PortChoice::Free { last_port: None }, discovery_port)?);
    let instance = random_hex::<8>();
    // A suffix of six hex digits is valid in a name.
    let name = Name::new(&format!("discover-{}", &random_hex::<3>())).map_err(io::Error::other)?;
    let (sender, receiver) = bounded(RESPONSES_MAX);
    let mut readers = Vec::new();
    for role in [SocketRole::Own, SocketRole::Discovery] {
        let (sockets, sender) = (Arc::clone(&sockets), sender.clone());
        readers.push(threads::spawn("lan-discover", move || read_socket(&sockets, role, &sender))?);
    }
    drop(sender);
    let all = sockets.interfaces()?;
    let own: Vec<Ipv4Addr> = all.iter().map(|interface| interface.ip).collect();
    let mut probes = Vec::new();
    let deadline = Instant::now() + wait;
    for interface in all {
        let Some(ip) = sockets.source(&interface) else { continue };
        // Tells by which interface a broadcast comes back: if bound to one address, all of them come from there.
        let (message_id, timestamp) = (random_hex::<8>(), Some(Clock::start().now().0 / 1000));
        let announcement = Message::Discovery(Discovery {
            user_id: UserId { name: name.clone(), ip },
            port: sockets.own_addr().port(),
            instance: Some(instance.clone()),
            features: Features { ack: false, probe: true },
            serves: Vec::new(),
            cert_sha256: None,
            stamp: MessageStamp { timestamp, message_id: Some(message_id.clone()) },
        });
        let bytes = wire::encode(&announcement).map_err(io::Error::other)?;
        if let Err(error) = sockets.broadcast(&interface, &bytes) {
            // The report tells the same: this broadcast will not come back.
            log::debug!("announcing by {}: {error}", interface.name);
        }
        probes.push((message_id, interface));
    }
    let report = collect_responses(&receiver, deadline, &instance, &own, probes);
    sockets.stop();
    for reader in readers {
        // An Err would be a panic, which `threads::spawn` has caught and logged.
        let _ = reader.join();
    }
    Ok(report)
}

fn read_socket(sockets: &LanSockets, role: SocketRole, sender: &Sender<(SocketRole, SocketAddr, Discovery)>) {
    sockets.read(role, |it| {
        if let PeerSocketEvent::Datagram { source, bytes } = it
            && let Ok(Message::Discovery(discovery)) = wire::decode(bytes)
        {
            // If the queue is full, the response is dropped.
            let _ = sender.try_send((role, source, discovery));
        }
    });
}

fn collect_responses(
    receiver: &Receiver<(SocketRole, SocketAddr, Discovery)>,
    deadline: Instant,
    instance: &str,
    own: &[Ipv4Addr],
    probes: Vec<(String, Interface)>,
) -> DiscoverReport {
    let is_own = |ip: IpAddr| ip.is_loopback() || own.iter().any(|own| IpAddr::V4(*own) == ip);
    let has =
        |loopback: bool| probes.iter().any(|(_, each)| each.ip.is_loopback() == loopback && each.broadcast.is_some());
    let mut broadcast_works = has(false).then_some(false);
    let mut loopback_works = has(true).then_some(false);
    let mut peers: Vec<DiscoveredPeer> = Vec::new();
    while let Ok((role, source, discovery)) = receiver.recv_deadline(deadline) {
        if discovery.instance.as_deref() == Some(instance) {
            let by = probes.iter().find(|(message_id, _)| discovery.stamp.message_id.as_ref() == Some(message_id));
            if let Some((_, interface)) = by {
                let works = if interface.ip.is_loopback() { &mut loopback_works } else { &mut broadcast_works };
                *works = Some(true);
            }
            continue;
        }
        // Broadcasts of others are not responses, and other probes are not listed.
        if role != SocketRole::Own || discovery.features.probe && !discovery.features.ack {
            continue;
        }
        let claimed = IpAddr::V4(discovery.user_id.ip);
        if source.ip() != claimed && !(is_own(source.ip()) && is_own(claimed)) {
            continue;
        }
        let addr = SocketAddr::new(source.ip(), discovery.port);
        let peer_found = DiscoveredPeer {
            user_id: discovery.user_id,
            addr,
            serves: discovery.serves,
            cert_sha256: discovery.cert_sha256,
            instance: discovery.instance,
        };
        if peers.len() < RESPONSES_MAX
            && !peers.iter().any(|peer| peer.user_id == peer_found.user_id && peer.addr == addr)
        {
            peers.push(peer_found);
        }
    }
    peers.sort_by(|a, b| (&a.user_id, a.addr).cmp(&(&b.user_id, b.addr)));
    let interfaces = probes.into_iter().map(|(_, interface)| interface).collect();
    DiscoverReport { interfaces, broadcast_works, loopback_works, peers }
}

impl DiscoverReport {
    /// Each peer once, even if it responded by several interfaces; preferably with an address that is not loopback.
    pub fn unique_peers(&self) -> Vec<&DiscoveredPeer> {
        let mut unique: Vec<&DiscoveredPeer> = Vec::new();
        for peer in &self.peers {
            let same = unique.iter_mut().find(|other| peer.instance.is_some() && other.instance == peer.instance);
            match same {
                None => unique.push(peer),
                Some(other) if other.addr.ip().is_loopback() => *other = peer,
                Some(_) => {}
            }
        }
        unique
    }
}
