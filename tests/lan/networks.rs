//! Tests of the virtual networks, and of a peer's sockets in them.

use crossbeam_channel::{Receiver, unbounded};
use std::collections::HashSet;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use p2s2::internals::lan::SocketRole;
use p2s2::internals::lan::sockets::{LanSockets, PeerSocketEvent, PortChoice};

use crate::netns::Lan;
use crate::support::{PATIENCE, eventually, signal};

const PORT: u16 = 50_999;

/// How long to wait for datagrams that must not come. They would come at once.
const SILENCE: Duration = Duration::from_millis(200);

fn listener(lan: &Lan, host: usize) -> UdpSocket {
    let socket = lan.socket(host, (Ipv4Addr::UNSPECIFIED, PORT));
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    socket
}

fn heard(listener: &UdpSocket) -> Option<(Vec<u8>, SocketAddr)> {
    let mut bytes = [0; 100];
    match listener.recv_from(&mut bytes) {
        Ok((len, source)) => Some((bytes[..len].to_vec(), source)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
        Err(error) => panic!("{error}"),
    }
}

/// The broadcast address of the first network, with the discovery port.
fn broadcast_addr() -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 255), PORT)
}

#[test]
fn a_cut_host_hears_nothing_until_it_is_healed() {
    let Some(lan) = Lan::new(3) else { return };
    let sender = lan.socket(0, (Ipv4Addr::UNSPECIFIED, 0));
    let listeners = [listener(&lan, 1), listener(&lan, 2)];
    let say = |text: &[u8]| sender.send_to(text, broadcast_addr()).unwrap();
    let reaches = |listener: &UdpSocket, text: &[u8]| {
        eventually("the broadcast", || {
            let (bytes, source) = heard(listener)?;
            assert_eq!(source.ip(), lan.ip(0));
            (bytes == text).then_some(())
        });
    };
    say(b"one");
    listeners.iter().for_each(|listener| reaches(listener, b"one"));
    lan.cut(&[1]);
    say(b"two");
    reaches(&listeners[1], b"two");
    assert_eq!(heard(&listeners[0]), None);
    lan.heal();
    say(b"three");
    // The datagrams sent meanwhile are lost.
    assert_eq!(heard(&listeners[0]).unwrap().0, b"three");
    reaches(&listeners[1], b"three");
}

#[test]
fn parted_hosts_hear_each_other_and_no_others() {
    let Some(lan) = Lan::new(4) else { return };
    lan.part(&[0, 1]);
    let listeners: Vec<_> = (0..4).map(|host| listener(&lan, host)).collect();
    let hearers = |host: usize| -> Vec<usize> {
        lan.socket(host, (Ipv4Addr::UNSPECIFIED, 0)).send_to(b"hello", broadcast_addr()).unwrap();
        (0..4).filter(|other| heard(&listeners[*other]).is_some()).collect()
    };
    assert_eq!((hearers(0), hearers(2)), (vec![0, 1], vec![2, 3]));
    lan.heal();
    assert_eq!(hearers(0), [0, 1, 2, 3]);
}

#[test]
fn programs_run_on_their_host() {
    let Some(lan) = Lan::new(2) else { return };
    for host in 0..2 {
        let mut addresses = Command::new("ip");
        addresses.args(["-4", "-o", "addr", "show"]).stdin(Stdio::null());
        let shown = lan.run_in(host, addresses).output().unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.contains(&format!(" {}/24 ", lan.ip(host))), "{shown}");
        assert_eq!(shown.lines().count(), 2, "{shown}");
    }
}

/// Other processes create a LAN and panic or are killed: nothing is left over.
#[test]
fn nothing_is_left_over() {
    const ROLE: &str = "P2S2_TEST_LAN_ROLE";
    let Some(_lan) = Lan::new(1) else { return };
    if let Ok(role) = std::env::var(ROLE) {
        assert!(role != "panic", "on purpose");
        signal(std::process::id(), libc::SIGKILL);
    }
    for role in ["panic", "kill"] {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["networks::nothing_is_left_over", "--exact", "--nocapture"]).env(ROLE, role);
        let child = again.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        assert!(!child.wait_with_output().unwrap().status.success());
        let left = || {
            let names = std::fs::read_dir("/run/netns").unwrap().map(|name| name.unwrap().file_name());
            names.filter(|name| name.to_string_lossy().starts_with(&format!("p2s2-{pid}-"))).count()
        };
        if role == "kill" {
            // The next LAN removes the leftovers.
            drop(Lan::new(1));
        }
        assert_eq!(left(), 0, "{role}");
    }
}

/// A peer's sockets on a host, and what they receive. Dropping it stops the threads.
struct PeerSockets {
    sockets: Arc<LanSockets>,
    heard: Receiver<SocketEvent>,
    readers: Vec<JoinHandle<()>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum SocketEvent {
    Datagram(SocketRole, Ipv4Addr, Vec<u8>),
    Refused(SocketAddr),
}

impl PeerSockets {
    fn new(lan: &Lan, host: usize, bind: Ipv4Addr) -> PeerSockets {
        let port = PortChoice::Free { last_port: None };
        let sockets = Arc::new(lan.within(host, || LanSockets::open(bind, port, PORT)).unwrap());
        let (tell, heard) = unbounded();
        let read = |role| {
            let (sockets, tell) = (Arc::clone(&sockets), tell.clone());
            let namespace = lan.namespace(host);
            thread::spawn(move || {
                namespace.enter();
                sockets.read(role, |heard| {
                    let event = match heard {
                        PeerSocketEvent::Datagram { source: SocketAddr::V4(source), bytes } => {
                            SocketEvent::Datagram(role, *source.ip(), bytes.to_vec())
                        }
                        PeerSocketEvent::Datagram { source, .. } => panic!("a datagram from {source}"),
                        PeerSocketEvent::Refused { to } => SocketEvent::Refused(to),
                    };
                    // Fails once the test is over.
                    let _ = tell.send(event);
                })
            })
        };
        let readers = [SocketRole::Own, SocketRole::Discovery].map(read).into();
        PeerSockets { sockets, heard, readers }
    }

    /// Broadcasts a text by each interface.
    fn announce(&self, lan: &Lan, host: usize, text: &[u8]) {
        lan.within(host, || {
            let all = self.sockets.interfaces().unwrap();
            for interface in all.into_iter().filter(|interface| self.sockets.source(interface).is_some()) {
                assert!(self.sockets.broadcast(&interface, text).unwrap(), "{interface:?}");
            }
        });
    }

    fn next(&self) -> SocketEvent {
        self.heard.recv_timeout(PATIENCE).unwrap()
    }

    /// The source addresses of the received broadcasts, of which there must be exactly `count`.
    fn sources(&self, count: usize) -> HashSet<Ipv4Addr> {
        let sources: Vec<_> = (0..count)
            .map(|_| match self.next() {
                SocketEvent::Datagram(SocketRole::Discovery, source, _) => source,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(self.heard.recv_timeout(SILENCE).ok(), None);
        let all: HashSet<_> = sources.iter().copied().collect();
        assert_eq!(all.len(), count, "{sources:?}");
        all
    }
}

impl Drop for PeerSockets {
    fn drop(&mut self) {
        self.sockets.stop();
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
    }
}

#[test]
fn a_broadcast_leaves_by_each_interface_from_its_address() {
    let Some(mut lan) = Lan::new(3) else { return };
    lan.second_network(&[0, 2]);
    // Two interfaces on one network: by the destination alone, both broadcasts would leave by eth0.
    let twice = Ipv4Addr::new(10, 77, 0, 101);
    lan.add_interface(1, twice);
    let peers: Vec<_> = (0..3).map(|host| PeerSockets::new(&lan, host, Ipv4Addr::UNSPECIFIED)).collect();

    peers[0].announce(&lan, 0, b"hello");
    let ways = HashSet::from([lan.ip(0), lan.second_ip(0)]);
    assert_eq!(peers[2].sources(2), ways);
    // Its own broadcasts come back, including that on loopback.
    assert_eq!(peers[0].sources(3), &ways | &HashSet::from([Ipv4Addr::LOCALHOST]));

    peers[1].announce(&lan, 1, b"hello");
    assert_eq!(peers[2].sources(2), HashSet::from([lan.ip(1), twice]));
}

/// The source address does not depend on the routes.
#[test]
fn a_datagram_comes_from_the_address_that_it_names() {
    let Some(mut lan) = Lan::new(3) else { return };
    let twice = Ipv4Addr::new(10, 77, 0, 101);
    lan.add_interface(1, twice);
    lan.second_network(&[0, 2]);
    let peers: Vec<_> = (0..3).map(|host| PeerSockets::new(&lan, host, Ipv4Addr::UNSPECIFIED)).collect();
    let says = |speaker: usize, from: Ipv4Addr, to: Ipv4Addr, listener: &PeerSockets| {
        let to = SocketAddrV4::new(to, listener.sockets.own_addr().port());
        lan.within(speaker, || peers[speaker].sockets.send_from(from, to, b"hello")).unwrap();
        assert_eq!(listener.next(), SocketEvent::Datagram(SocketRole::Own, from, b"hello".to_vec()));
    };
    says(1, twice, lan.ip(0), &peers[0]);
    says(1, lan.ip(1), lan.ip(0), &peers[0]);
    says(0, lan.second_ip(0), lan.second_ip(2), &peers[2]);
    // Within one host, too.
    let neighbour = PeerSockets::new(&lan, 1, Ipv4Addr::UNSPECIFIED);
    for from in [twice, lan.ip(1), Ipv4Addr::LOCALHOST] {
        says(1, from, from, &neighbour);
    }
    // An address that the host does not have is an error; the datagram does not leave from another one.
    let to = SocketAddrV4::new(lan.ip(0), peers[0].sockets.own_addr().port());
    assert!(lan.within(1, || peers[1].sockets.send_from(lan.second_ip(1), to, b"hello")).is_err());
    assert_eq!(peers[0].heard.recv_timeout(SILENCE).ok(), None);
}

#[test]
fn first_comes_the_address_for_hosts_elsewhere() {
    let Some(mut lan) = Lan::new(2) else { return };
    lan.second_network(&[0, 1]);
    let peer = PeerSockets::new(&lan, 0, Ipv4Addr::UNSPECIFIED);
    let ips = || -> Vec<_> {
        let interfaces = lan.within(0, || peer.sockets.interfaces()).unwrap();
        interfaces.iter().map(|interface| interface.ip).collect()
    };
    let (first, second) = (lan.ip(0), lan.second_ip(0));
    for (router, expected) in [(lan.ip(1), [first, second]), (lan.second_ip(1), [second, first])] {
        let mut route = Command::new("ip");
        route.args(["route", "replace", "default", "via", &router.to_string()]);
        assert!(lan.run_in(0, route).status().unwrap().success());
        assert_eq!(ips(), [&expected[..], &[Ipv4Addr::LOCALHOST]].concat());
    }
}

#[test]
fn who_is_bound_to_one_address_speaks_from_it() {
    let Some(mut lan) = Lan::new(2) else { return };
    lan.second_network(&[0, 1]);
    let speaker = PeerSockets::new(&lan, 0, lan.second_ip(0));
    let here = PeerSockets::new(&lan, 0, Ipv4Addr::LOCALHOST);
    let there = PeerSockets::new(&lan, 1, Ipv4Addr::UNSPECIFIED);
    speaker.announce(&lan, 0, b"hello");
    assert_eq!(there.sources(1), HashSet::from([lan.second_ip(0)]));
    assert_eq!(here.sources(1), HashSet::from([lan.second_ip(0)]));
}

#[test]
fn on_loopback_nothing_leaves_the_host() {
    let Some(lan) = Lan::new(2) else { return };
    let bound = [Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED];
    let [speaker, alike, open] = bound.map(|bind| PeerSockets::new(&lan, 0, bind));
    let elsewhere = PeerSockets::new(&lan, 1, Ipv4Addr::UNSPECIFIED);
    speaker.announce(&lan, 0, b"hello");
    let source = HashSet::from([Ipv4Addr::LOCALHOST]);
    for peer in [&speaker, &alike, &open] {
        assert_eq!(peer.sources(1), source);
    }
    let to = SocketAddrV4::new(lan.ip(1), elsewhere.sockets.own_addr().port());
    let refused = lan.within(0, || speaker.sockets.send(to, b"hello")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    assert_eq!(elsewhere.heard.recv_timeout(SILENCE).ok(), None);
    // It receives no broadcasts of other hosts, only those on loopback.
    open.announce(&lan, 0, b"hello");
    assert_eq!(alike.sources(1), source);
    assert_eq!(elsewhere.sources(1), HashSet::from([lan.ip(0)]));
    elsewhere.announce(&lan, 1, b"hello");
    assert_eq!(alike.heard.recv_timeout(SILENCE).ok(), None);
}

#[test]
fn other_hosts_refuse_and_cut_ones_do_not() {
    let Some(lan) = Lan::new(2) else { return };
    let peer = PeerSockets::new(&lan, 0, Ipv4Addr::UNSPECIFIED);
    let listener = lan.socket(1, (Ipv4Addr::UNSPECIFIED, 0));
    let listens = SocketAddrV4::new(lan.ip(1), listener.local_addr().unwrap().port());
    let refuses = SocketAddrV4::new(lan.ip(1), 8000);
    for _ in 0..3 {
        peer.sockets.send(refuses, b"hello").unwrap();
        assert_eq!(peer.next(), SocketEvent::Refused(refuses.into()));
    }
    peer.sockets.send(listens, b"hello").unwrap();
    listener.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(listener.recv(&mut [0; 100]).unwrap(), 5);
    lan.cut(&[1]);
    peer.sockets.send(refuses, b"hello").unwrap();
    peer.sockets.send(listens, b"hello").unwrap();
    assert_eq!(peer.heard.recv_timeout(SILENCE).ok(), None);
}

#[test]
fn interfaces_come_and_go() {
    let Some(lan) = Lan::new(2) else { return };
    let peer = PeerSockets::new(&lan, 0, Ipv4Addr::UNSPECIFIED);
    let ips = || -> Vec<_> {
        let interfaces = lan.within(0, || peer.sockets.interfaces()).unwrap();
        interfaces.iter().map(|interface| interface.ip).collect()
    };
    assert_eq!(ips(), [lan.ip(0), Ipv4Addr::LOCALHOST]);
    lan.cut(&[0]);
    eventually("the interface to go", || (ips() == [Ipv4Addr::LOCALHOST]).then_some(()));
    lan.heal();
    eventually("the interface to come", || (ips() == [lan.ip(0), Ipv4Addr::LOCALHOST]).then_some(()));
}
