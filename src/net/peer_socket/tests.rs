use std::sync::Arc;
use std::thread;

use super::*;
use crate::net::interfaces::interfaces;
use crate::net::testing::eventually;
use crossbeam_channel::{Receiver, unbounded};

const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Datagram(SocketAddr, Vec<u8>),
    Refused(SocketAddr),
}

/// A socket that is being read, until it is dropped.
struct Read {
    socket: Arc<PeerSocket>,
    told: Receiver<Told>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Read {
    fn new(socket: PeerSocket) -> Read {
        let socket = Arc::new(socket);
        let (tell, told) = unbounded();
        let reader = Arc::clone(&socket);
        let hear = move |heard: PeerSocketEvent<'_>| {
            assert!(!matches!(heard, PeerSocketEvent::Datagram { bytes: b"panic", .. }), "on purpose");
            let told = match heard {
                PeerSocketEvent::Datagram { source, bytes } => Told::Datagram(source, bytes.to_vec()),
                PeerSocketEvent::Refused { to } => Told::Refused(to),
            };
            // After the end of the test the receiver is gone.
            let _ = tell.send(told);
        };
        let reader = thread::spawn(move || reader.read(hear));
        Read { socket, told, reader: Some(reader) }
    }

    fn own() -> Read {
        Read::new(PeerSocket::bind(any_port()).unwrap())
    }

    fn next(&self) -> Told {
        self.told.recv_timeout(PATIENCE).unwrap()
    }

    fn addr(&self) -> SocketAddr {
        self.socket.local_addr().into()
    }
}

impl Drop for Read {
    fn drop(&mut self) {
        self.socket.stop();
        self.reader.take().unwrap().join().unwrap();
    }
}

fn any_port() -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)
}

fn loopback() -> Interface {
    interfaces(Ipv4Addr::LOCALHOST).unwrap().pop().unwrap()
}

/// Nobody listens there, though somebody just did.
fn silent() -> SocketAddrV4 {
    PeerSocket::bind(any_port()).unwrap().local_addr()
}

#[test]
fn sends_and_hears() {
    let (one, other) = (Read::own(), Read::own());
    one.socket.send(other.socket.local_addr(), b"hello").unwrap();
    assert_eq!(other.next(), Told::Datagram(one.addr(), b"hello".to_vec()));
    // The largest possible datagram, and the smallest.
    let largest = vec![7; 65_507];
    one.socket.send(other.socket.local_addr(), &largest).unwrap();
    assert_eq!(other.next(), Told::Datagram(one.addr(), largest));
    one.socket.send(other.socket.local_addr(), b"").unwrap();
    assert_eq!(other.next(), Told::Datagram(one.addr(), Vec::new()));
    assert!(one.socket.send(other.socket.local_addr(), &[7; 65_508]).is_err());
    assert_eq!((one.socket.counters().sent.get(), one.socket.counters().send_errors.get()), (3, 1));
    assert_eq!(other.socket.counters().received.get(), 3);
}

#[test]
fn a_panic_costs_one_datagram() {
    let (one, other) = (Read::own(), Read::own());
    one.socket.send(other.socket.local_addr(), b"panic").unwrap();
    one.socket.send(other.socket.local_addr(), b"hello").unwrap();
    assert_eq!(other.next(), Told::Datagram(one.addr(), b"hello".to_vec()));
    assert_eq!(other.socket.counters().panics.get(), 1);
}

#[cfg(target_os = "linux")]
#[test]
fn everybody_who_shares_a_port_gets_each_broadcast() {
    let everybody = Ipv4Addr::new(127, 255, 255, 255);
    let first = PeerSocket::bind_shared(SocketAddrV4::new(everybody, 0)).unwrap();
    let shared = first.local_addr();
    let listeners = [Read::new(first), Read::new(PeerSocket::bind_shared(shared).unwrap()), {
        Read::new(PeerSocket::bind_shared(shared).unwrap())
    }];
    let sender = Read::own();
    for nth in 0..20 {
        assert!(sender.socket.broadcast(&loopback(), shared.port(), &[nth]).unwrap());
    }
    for listener in &listeners {
        for nth in 0..20 {
            assert_eq!(listener.next(), Told::Datagram(sender.addr(), vec![nth]));
        }
    }
    // A socket that does not share the port cannot bind it.
    let error = PeerSocket::bind(shared).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    let alone = PeerSocket::bind(SocketAddrV4::new(everybody, 0)).unwrap().local_addr();
    let _alone = UdpSocket::bind(alone).unwrap();
    assert_eq!(PeerSocket::bind_shared(alone).unwrap_err().kind(), ErrorKind::AddrInUse);
}

#[test]
fn an_interface_without_broadcast_is_left_out() {
    let mut interface = loopback();
    interface.broadcast = None;
    let sender = PeerSocket::bind(any_port()).unwrap();
    assert!(!sender.broadcast(&interface, 1, b"hello").unwrap());
    assert_eq!(sender.counters().sent.get(), 0);
}

#[cfg(target_os = "linux")]
#[test]
fn refusals_are_told_with_their_address() {
    let sender = Read::own();
    let (first, second) = (silent(), silent());
    for to in [first, second, first] {
        sender.socket.send(to, b"are you there?").unwrap();
        assert_eq!(sender.next(), Told::Refused(to.into()));
    }
    assert_eq!(sender.socket.counters().refused.get(), 3);
}

/// Refusals come back while others are sent to, by several threads: no datagram is lost for them, and
/// each is told.
#[cfg(target_os = "linux")]
#[test]
fn refusals_cost_no_other_datagram() {
    let (sender, listener) = (Read::own(), Read::own());
    let refusing = silent();
    let (threads, rounds) = (4, 50);
    thread::scope(|scope| {
        for nth in 0..threads {
            let (sender, to) = (&sender.socket, listener.socket.local_addr());
            scope.spawn(move || {
                for round in 0..rounds {
                    sender.send(refusing, b"are you there?").unwrap();
                    sender.send(to, &[nth, round]).unwrap();
                }
            });
        }
    });
    let mut came: Vec<_> = (0..u16::from(threads) * u16::from(rounds)).map(|_| listener.next()).collect();
    came.sort();
    let all = (0..threads).flat_map(|nth| (0..rounds).map(move |round| vec![nth, round]));
    let all: Vec<_> = all.map(|bytes| Told::Datagram(sender.addr(), bytes)).collect();
    assert_eq!(came, all);
    eventually(|| sender.socket.counters().refused.get() == all.len() as u64);
    assert_eq!(sender.socket.counters().send_errors.get(), 0);
}

/// Those which come while nobody reads wait in the queue; where they find no room, the reader still
/// neither spins nor ends.
#[cfg(target_os = "linux")]
#[test]
fn more_refusals_than_the_queue_holds() {
    let socket = PeerSocket::bind(any_port()).unwrap();
    socket2::SockRef::from(&socket.socket).set_recv_buffer_size(4096).unwrap();
    let to = silent();
    for _ in 0..200 {
        socket.send(to, &[7; 1000]).unwrap();
    }
    let sender = Read::new(socket);
    assert_eq!(sender.next(), Told::Refused(to.into()));
    let listener = Read::own();
    listener.socket.send(sender.socket.local_addr(), b"hello").unwrap();
    loop {
        match sender.next() {
            Told::Refused(refused) => assert_eq!(refused, to.into()),
            Told::Datagram(source, bytes) => {
                assert_eq!((source, &bytes[..]), (listener.addr(), &b"hello"[..]));
                break;
            }
        }
    }
    assert!(sender.socket.counters().refused.get() < 200);
}

#[test]
fn stopping_ends_the_reading_and_not_the_sending() {
    let (one, other) = (Read::own(), Read::own());
    one.socket.stop();
    eventually(|| one.reader.as_ref().unwrap().is_finished());
    one.socket.send(other.socket.local_addr(), b"farewell").unwrap();
    assert_eq!(other.next(), Told::Datagram(one.addr(), b"farewell".to_vec()));
}
