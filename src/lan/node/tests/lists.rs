//! PEER_LIST_REQUEST, PEER_LIST_RESPONSE and --peer.

use super::*;
use crate::lan::wire::PeerList;

fn request(from: &str) -> Message {
    Message::PeerListRequest { from: user(from), stamp: stamp("1") }
}

fn response(from: &str, peers: &[&str]) -> Message {
    let peers = peers.iter().enumerate().map(|(n, at)| (user(&format!("x{n}@10.0.0.99")), at.parse().ok())).collect();
    Message::PeerListResponse(PeerList { from: user(from), peers, stamp: stamp("1") })
}

#[test]
fn it_tells_whom_it_knows_but_itself_the_asker_and_servers() {
    let mut alice = TestNode::new();
    alice.add_known_peer("bob@10.0.0.2", 8002, "b");
    alice.add_known_peer("carol@10.0.0.3", 8003, "c");
    alice.add_known_peer("dave@10.0.0.4", 8004, "");
    alice.add_known_peer("eve@127.0.0.1", 8005, "e");
    let mut server = discovery_of("shop@10.0.0.5", 8006, "s");
    server.serves = vec![("trade".to_owned(), 7001)];
    alice.broadcast("10.0.0.5:8006", server);
    alice.wait(1_000);
    // The response goes to the source of the request, whatever the PORT of the asker.
    let effects = alice.receive("10.0.0.2:40000", SocketRole::Own, request("bob@10.0.0.2"));
    let sends = sends(&effects);
    let [(to, Message::PeerListResponse(list))] = &sends[..] else { panic!("{effects:?}") };
    assert_eq!((*to, &list.from), (addr("10.0.0.2:40000"), &user("alice@10.0.0.1")));
    // Loopback addresses are not sent to other hosts.
    assert_eq!(
        list.peers,
        [(user("carol@10.0.0.3"), Some(addr("10.0.0.3:8003"))), (user("dave@10.0.0.4"), Some(addr("10.0.0.4:8004")))]
    );
    let effects = alice.receive("127.0.0.1:9000", SocketRole::Own, request("stranger@127.0.0.1"));
    let [NodeEffect::Send { message: Message::PeerListResponse(list), .. }] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!(list.peers.len(), 4);
}

#[test]
fn a_list_fits_into_a_datagram() {
    let mut alice = TestNode::new();
    for n in 0..2_000_u32 {
        let at = Ipv4Addr::from(0x0b00_0000 + n);
        // Names that become longer in JSON.
        let who = format!("{}{n:04}@{at}", "\"".repeat(60));
        alice.broadcast(&format!("{at}:8002"), discovery_of(&who, 8002, &n.to_string()));
    }
    let effects = alice.receive("10.0.0.2:8002", SocketRole::Own, request("bob@10.0.0.2"));
    let [NodeEffect::Send { message: Message::PeerListResponse(list), .. }] = &effects[..] else {
        panic!("{effects:?}")
    };
    let users: Vec<String> = list.peers.iter().map(|(user, _)| user.to_string()).collect();
    let addrs: Vec<String> = list.peers.iter().map(|(_, addr)| addr.unwrap().to_string()).collect();
    let bytes = serde_json::to_string(&users).unwrap().len() + serde_json::to_string(&addrs).unwrap().len();
    assert!(bytes < 65_507 - 500 && bytes > 60_000, "{bytes}");
}

#[test]
fn lists_are_told_to_who_asks_directly_and_not_too_often() {
    let mut alice = TestNode::new();
    alice.add_known_peer("bob@10.0.0.2", 8002, "b");
    assert!(sends(&alice.receive("10.0.0.3:8003", SocketRole::Discovery, request("carol@10.0.0.3"))).is_empty());
    assert_eq!(alice.dropped(DropCause::TooManyLists), 1);
    // The limit per host does not depend on ports.
    let told = (0..150).filter(|n| {
        !sends(&alice.receive(&format!("10.0.2.1:{}", 8_000 + n), SocketRole::Own, request("m@10.0.2.1"))).is_empty()
    });
    assert_eq!(told.count(), 20);
    alice.wait(10_000);
    let told = (0..150).filter(|n| {
        !sends(&alice.receive(&format!("10.0.1.{n}:8003"), SocketRole::Own, request(&format!("c@10.0.1.{n}"))))
            .is_empty()
    });
    assert_eq!(told.count(), 50);
    alice.wait(1_000);
    assert!(!sends(&alice.receive("10.0.0.3:8003", SocketRole::Own, request("carol@10.0.0.3"))).is_empty());
}

#[test]
fn unknown_addresses_of_a_list_are_told_that_we_are_here() {
    let mut alice = TestNode::new();
    alice.add_known_peer("bob@10.0.0.2", 8002, "b");
    let list = [
        "10.0.0.7:8007",      // new
        "10.0.0.2:8002",      // known
        "10.0.0.1:8001",      // ourselves
        "127.0.0.1:8001",     // ourselves
        "127.0.0.1:8005",     // another host's loopback
        "10.0.0.8:50999",     // a discovery port
        "10.0.0.255:8002",    // broadcast
        "255.255.255.255:80", // broadcast
        "224.0.0.1:8002",     // multicast
        "0.0.0.0:8002",       // nobody
        "10.0.0.9:0",         // no port
        "[::1]:8002",         // not IPv4
        "somewhere",          // no address
        "10.0.0.8:8008",      // new
    ];
    alice.command(NodeCommand::RequestPeerLists).unwrap();
    let effects = alice.receive("10.0.0.2:8002", SocketRole::Own, response("bob@10.0.0.2", &list));
    assert_eq!(unicast_announcements(&effects), [addr("10.0.0.7:8007"), addr("10.0.0.8:8008")]);
    assert!(
        sends(&effects)
            .iter()
            .all(|(_, message)| matches!(message, Message::Discovery(discovery) if !discovery.features.probe))
    );
    assert_eq!(alice.list().len(), 1, "they are not known by that");
    // Loopback addresses from a peer of this host are used.
    alice.add_known_peer("eve@127.0.0.1", 8004, "e");
    alice.command(NodeCommand::RequestPeerLists).unwrap();
    let near = response("eve@127.0.0.1", &["127.0.0.1:8005"]);
    assert_eq!(
        unicast_announcements(&alice.receive("127.0.0.1:8004", SocketRole::Own, near)),
        [addr("127.0.0.1:8005")]
    );
}

/// Otherwise anybody could make us send to any address.
#[test]
fn a_list_is_believed_once_from_who_was_asked() {
    let mut alice = TestNode::new();
    alice.add_known_peer("bob@10.0.0.2", 8002, "b");
    let list = |from: &str, to: &str| response(from, &[to]);
    let unasked = |alice: &mut TestNode, from: &str, who: &str| {
        let before = alice.dropped(DropCause::Unasked);
        let effects = alice.receive(from, SocketRole::Own, list(who, "10.0.0.9:8009"));
        assert!(
            unicast_announcements(&effects).is_empty() && unicast_announcements(&alice.wait(300)).is_empty(),
            "{effects:?}"
        );
        assert_eq!(alice.dropped(DropCause::Unasked), before + 1);
    };
    unasked(&mut alice, "10.0.0.2:8002", "bob@10.0.0.2");
    alice.command(NodeCommand::RequestPeerLists).unwrap();
    unasked(&mut alice, "10.0.0.3:8002", "carol@10.0.0.3");
    unasked(&mut alice, "10.0.0.2:8003", "bob@10.0.0.2");
    assert_eq!(
        unicast_announcements(&alice.receive("10.0.0.2:8002", SocketRole::Own, list("bob@10.0.0.2", "10.0.0.9:8009"))),
        [addr("10.0.0.9:8009")]
    );
    unasked(&mut alice, "10.0.0.2:8002", "bob@10.0.0.2");
    // Requested again, but the response is late.
    alice.command(NodeCommand::RequestPeerLists).unwrap();
    alice.now = alice.now.plus_ms(10_000);
    unasked(&mut alice, "10.0.0.2:8002", "bob@10.0.0.2");
}

#[test]
fn at_most_a_hundred_of_a_list_are_told() {
    let mut alice = TestNode::new();
    let list: Vec<String> = (1..=250).map(|n| format!("10.0.1.{n}:8002")).collect();
    let list: Vec<&str> = list.iter().map(String::as_str).collect();
    alice.add_known_peer("bob@10.0.0.2", 8002, "b");
    alice.command(NodeCommand::RequestPeerLists).unwrap();
    let at_once =
        unicast_announcements(&alice.receive("10.0.0.2:8002", SocketRole::Own, response("bob@10.0.0.2", &list)));
    assert_eq!(at_once.len() + unicast_announcements(&alice.wait(5_000)).len(), 100);
}

#[test]
fn some_of_those_known_are_asked_for_theirs() {
    let mut alice = TestNode::new();
    assert_eq!(alice.command(NodeCommand::RequestPeerLists), Err(CommandError::NoPeers));
    for n in 1..=100 {
        alice.broadcast(&format!("10.0.1.{n}:8002"), discovery_of(&format!("b@10.0.1.{n}"), 8002, &n.to_string()));
    }
    let mut server = discovery_of("shop@10.0.0.5", 8006, "s");
    server.serves = vec![("trade".to_owned(), 7001)];
    alice.broadcast("10.0.0.5:8006", server);
    let (done, effects) = alice.command(NodeCommand::RequestPeerLists).unwrap();
    assert_eq!((done, alice.node.sizes().peer_list_requests), (CommandOutcome::PeerListsRequested { peers: 32 }, 32));
    let mut to: Vec<_> = sends(&effects)
        .into_iter()
        .map(|(to, message)| {
            assert!(matches!(message, Message::PeerListRequest { from, .. } if *from == user("alice@10.0.0.1")));
            to
        })
        .collect();
    to.sort();
    to.dedup();
    assert!(to.len() == 32 && !to.contains(&addr("10.0.0.5:8006")));
}

#[test]
fn one_that_broadcast_cannot_reach_is_told_until_it_is_known() {
    let mut alice = TestNode::not_started(config_of(NodeKind::Person));
    let far = addr("172.16.0.9:8009");
    let (done, effects) = alice.command(NodeCommand::AddPeer(far)).unwrap();
    assert_eq!((done, effects), (CommandOutcome::PeerAdded { addr: far }, vec![]));
    assert_eq!(unicast_announcements(&alice.event(NodeEvent::Started)), [far]);
    assert_eq!(unicast_announcements(&alice.wait(67_000)), [far, far]);
    alice.direct("172.16.0.9:8009", discovery_of("far@172.16.0.9", 8009, "f"));
    alice.wait(11_000);
    for _ in 0..20 {
        alice.direct("172.16.0.9:8009", discovery_of("far@172.16.0.9", 8009, "f"));
        // It is answered, but gets no further announcements.
        assert!(unicast_announcements(&alice.wait(33_000)).is_empty());
    }
    // Once it is forgotten, it is announced to again.
    alice.wait(300_000);
    assert!(alice.list().is_empty());
    assert!(unicast_announcements(&alice.wait(33_000)).len() == 1);
    // An address added at runtime is announced to at once.
    let other = addr("172.16.0.10:8010");
    assert_eq!(unicast_announcements(&alice.command(NodeCommand::AddPeer(other)).unwrap().1), [other]);
}

#[test]
fn an_address_that_cannot_be_one_peer_s_is_refused() {
    let mut alice = TestNode::new();
    for (at, why) in [
        ("10.0.0.1:8001", "itself"),
        ("127.0.0.1:50999", "discovery port"),
        ("10.0.0.1:50999", "discovery port"),
        ("10.0.0.255:8001", "one host"),
        ("10.0.0.2:0", "1 to 65535"),
        ("[::1]:8001", "IPv4"),
    ] {
        let Err(CommandError::InvalidArgument(text)) = alice.command(NodeCommand::AddPeer(addr(at))) else {
            panic!("{at}")
        };
        assert!(text.contains(why) && text.contains("--peer"), "{text}");
    }
    // The discovery port of another host is allowed: a peer there answers from its own port.
    let shared = addr("10.0.0.2:50999");
    assert_eq!(unicast_announcements(&alice.command(NodeCommand::AddPeer(shared)).unwrap().1), [shared]);
    alice.direct("10.0.0.2:8002", discovery_of("bob@10.0.0.2", 8002, "b"));
    assert!(unicast_announcements(&alice.wait(35_000)).is_empty());
    for n in 1..64 {
        alice.command(NodeCommand::AddPeer(addr(&format!("10.0.2.{n}:8002")))).unwrap();
    }
    alice.command(NodeCommand::AddPeer(shared)).unwrap();
    assert!(alice.command(NodeCommand::AddPeer(addr("10.0.3.1:8002"))).is_err());
    assert_eq!(alice.node.sizes().static_peers, 64);
}
