use std::collections::HashSet;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Duration;

use super::*;
use crossbeam_channel::{Receiver, unbounded};

const PATIENCE: Duration = Duration::from_secs(10);

/// A free port that no other test of this process gets, outside of the ranges from which the system or a peer takes
/// free ports.
fn unused_port() -> u16 {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    static FIRST: LazyLock<usize> = LazyLock::new(|| crate::lan::random_u64() as usize);
    let everywhere = [Ipv4Addr::LOCALHOST, discovery_address(Ipv4Addr::LOCALHOST)];
    loop {
        let port = 10_000 + ((*FIRST + NEXT.fetch_add(1, SeqCst)) % 20_000) as u16;
        if everywhere.iter().all(|ip| UdpSocket::bind((*ip, port)).is_ok()) {
            return port;
        }
    }
}

fn on_loopback(port: PortChoice, discovery_port: u16) -> Result<LanSockets, LanSocketsError> {
    LanSockets::open(Ipv4Addr::LOCALHOST, port, discovery_port)
}

fn open(discovery_port: u16) -> LanSockets {
    on_loopback(PortChoice::Fixed(0), discovery_port).unwrap()
}

fn refusal(port: PortChoice, discovery_port: u16) -> String {
    on_loopback(port, discovery_port).unwrap_err().to_string()
}

#[test]
fn the_port_asked_for_or_none() {
    let port = unused_port();
    let sockets = on_loopback(PortChoice::Fixed(port), unused_port()).unwrap();
    assert_eq!(sockets.own_addr(), SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
    let said = refusal(PortChoice::Fixed(port), unused_port());
    assert!(said.contains(&format!("port {port} is in use")) && said.contains("--port"), "{said}");
    // Port 0 gives any free port.
    assert_ne!(open(unused_port()).own_addr().port(), 0);
    let port = unused_port();
    assert!(refusal(PortChoice::Fixed(port), port).contains("--port and --discovery-port are both"));
}

#[test]
fn the_last_port_else_one_of_the_range() {
    let last = unused_port();
    let first = on_loopback(PortChoice::Free { last_port: Some(last) }, unused_port()).unwrap();
    assert_eq!(first.own_addr().port(), last);
    // The last port is taken now.
    let second = on_loopback(PortChoice::Free { last_port: Some(last) }, unused_port()).unwrap();
    assert!(AUTOMATIC_PORTS.contains(&second.own_addr().port()), "{:?}", second.own_addr());
    for last in [None, Some(0)] {
        let third = on_loopback(PortChoice::Free { last_port: last }, unused_port()).unwrap();
        assert!(AUTOMATIC_PORTS.contains(&third.own_addr().port()), "{:?}", third.own_addr());
    }
    // The last port is the discovery port now.
    let port = unused_port();
    let other = on_loopback(PortChoice::Free { last_port: Some(port) }, port).unwrap();
    assert!(AUTOMATIC_PORTS.contains(&other.own_addr().port()), "{:?}", other.own_addr());
}

#[test]
fn a_range_is_used_up_before_it_is_refused() {
    // Two adjacent ports, one of which is the discovery port.
    let range = loop {
        let (low, high) = (unused_port(), unused_port());
        if high == low + 1 {
            break low..=high;
        }
    };
    let (low, high) = (*range.start(), *range.end());
    let found = bind_free(Ipv4Addr::LOCALHOST, None, low, range.clone()).unwrap();
    assert_eq!(found.local_addr().port(), high);
    let error = bind_free(Ipv4Addr::LOCALHOST, None, low, range).unwrap_err();
    assert!(matches!(error, LanSocketsError::NoPortFree), "{error}");
}

#[test]
fn peers_that_start_at_once_all_find_a_port() {
    let port = unused_port();
    let peers: Vec<_> = (0..50).map(|_| on_loopback(PortChoice::Free { last_port: None }, port).unwrap()).collect();
    let ports: HashSet<u16> = peers.iter().map(|peer| peer.own_addr().port()).collect();
    assert_eq!(ports.len(), 50);
}

#[test]
fn what_cannot_be_bound_names_its_flag() {
    assert!(refusal(PortChoice::Fixed(0), 0).contains("--discovery-port is 0"));
    for bind in ["192.0.2.1", "127.255.255.255", "255.255.255.255", "224.0.0.1"] {
        let bind = bind.parse().unwrap();
        let opened = LanSockets::open(bind, PortChoice::Free { last_port: None }, unused_port());
        let said = opened.unwrap_err().to_string();
        assert!(said.contains(&format!("--bind {bind} is not an address of this host")), "{said}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_discovery_port_that_is_not_shared() {
    let socket = UdpSocket::bind((LOOPBACK_BROADCAST, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    let said = refusal(PortChoice::Fixed(0), port);
    assert!(said.contains(&format!("discovery port {port} is in use")) && said.contains("--discovery-port"), "{said}");
}

#[test]
fn what_is_nobodys_address_is_not_sent_to() {
    let port = unused_port();
    let sockets = open(port);
    let kind = |to: &str| {
        let to = to.parse().unwrap();
        let kinds = [sockets.send(to, b"hello"), sockets.send_from(Ipv4Addr::LOCALHOST, to, b"hello")]
            .map(|sent| sent.unwrap_err().kind());
        assert_eq!(kinds[0], kinds[1], "{to}");
        kinds[0]
    };
    for to in ["0.0.0.0:8000", "127.0.0.1:0", "255.255.255.255:8000", "224.0.0.1:8000", "127.255.255.255:8000"] {
        assert_eq!(kind(to), ErrorKind::InvalidInput, "{to}");
    }
    for own in ["127.0.0.1", "127.0.0.9"] {
        assert_eq!(kind(&format!("{own}:{port}")), ErrorKind::InvalidInput, "{own}");
    }
    // The datagram would leave this host.
    assert_eq!(kind("192.0.2.1:8000"), ErrorKind::PermissionDenied);
    assert_eq!(sockets.counters(SocketRole::Own).sent.get(), 0);
    let used = |interface: &&Interface| sockets.source(interface).is_some();
    assert!(sockets.interfaces().unwrap().iter().filter(used).all(|interface| interface.ip.is_loopback()));
}

type ReceivedDatagrams = Receiver<(SocketAddr, Vec<u8>)>;

/// Reads a socket on a thread, until `stop`, and passes on the datagrams.
fn listen(sockets: &Arc<LanSockets>, role: SocketRole) -> (ReceivedDatagrams, thread::JoinHandle<()>) {
    let (sender, received) = unbounded();
    let sockets = Arc::clone(sockets);
    let hear = move |heard: PeerSocketEvent<'_>| {
        if let PeerSocketEvent::Datagram { source, bytes } = heard {
            // Fails once the test is over.
            let _ = sender.send((source, bytes.to_vec()));
        }
    };
    (received, thread::spawn(move || sockets.read(role, hear)))
}

#[cfg(target_os = "linux")]
#[test]
fn peers_of_a_host_hear_each_other_and_themselves() {
    let port = unused_port();
    let peers: Vec<_> = (0..5).map(|_| Arc::new(open(port))).collect();
    let listeners: Vec<_> = peers.iter().map(|peer| listen(peer, SocketRole::Discovery)).collect();
    for (nth, peer) in peers.iter().enumerate() {
        for interface in peer.interfaces().unwrap() {
            let is_loopback = interface.ip.is_loopback();
            assert_eq!(peer.source(&interface), is_loopback.then_some(Ipv4Addr::LOCALHOST));
            if is_loopback {
                peer.broadcast(&interface, &[nth as u8]).unwrap();
            }
        }
    }
    let all: HashSet<_> = peers.iter().zip(0..).map(|(peer, nth)| (peer.own_addr().into(), vec![nth])).collect();
    for (received, _) in &listeners {
        let heard: HashSet<_> = (0..5).map(|_| received.recv_timeout(PATIENCE).unwrap()).collect();
        assert_eq!(heard, all);
        assert!(received.is_empty());
    }
    // A unicast arrives at the own socket.
    let (received, own_listener) = listen(&peers[0], SocketRole::Own);
    peers[1].send(peers[0].own_addr(), b"only you").unwrap();
    assert_eq!(received.recv_timeout(PATIENCE).unwrap(), (peers[1].own_addr().into(), b"only you".to_vec()));
    peers.iter().for_each(|peer| peer.stop());
    for (_, own_listener) in listeners {
        own_listener.join().unwrap();
    }
    own_listener.join().unwrap();
}
