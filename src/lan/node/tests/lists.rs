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
    let mut bench = Bench::new();
    bench.known("bob@10.0.0.2", 8002, "b");
    bench.known("carol@10.0.0.3", 8003, "c");
    bench.known("dave@10.0.0.4", 8004, "");
    bench.known("eve@127.0.0.1", 8005, "e");
    let mut server = announced("shop@10.0.0.5", 8006, "s");
    server.serves = vec![("trade".to_owned(), 7001)];
    bench.broadcast("10.0.0.5:8006", server);
    bench.wait(1_000);
    // To the datagram's source, whatever the asker's PORT.
    let effects = bench.hear("10.0.0.2:40000", Door::Own, request("bob@10.0.0.2"));
    let sends = sends(&effects);
    let [(to, Message::PeerListResponse(list))] = &sends[..] else { panic!("{effects:?}") };
    assert_eq!((*to, &list.from), (addr("10.0.0.2:40000"), &user("alice@10.0.0.1")));
    // What is on loopback is of no use to another host.
    assert_eq!(
        list.peers,
        [(user("carol@10.0.0.3"), Some(addr("10.0.0.3:8003"))), (user("dave@10.0.0.4"), Some(addr("10.0.0.4:8004")))]
    );
    let effects = bench.hear("127.0.0.1:9000", Door::Own, request("stranger@127.0.0.1"));
    let [Effect::Send { message: Message::PeerListResponse(list), .. }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(list.peers.len(), 4);
}

#[test]
fn a_list_fits_into_a_datagram() {
    let mut bench = Bench::new();
    for n in 0..2_000_u32 {
        let at = Ipv4Addr::from(0x0b00_0000 + n);
        // Names that are longer in JSON.
        let who = format!("{}{n:04}@{at}", "\"".repeat(60));
        bench.broadcast(&format!("{at}:8002"), announced(&who, 8002, &n.to_string()));
    }
    let effects = bench.hear("10.0.0.2:8002", Door::Own, request("bob@10.0.0.2"));
    let [Effect::Send { message: Message::PeerListResponse(list), .. }] = &effects[..] else { panic!("{effects:?}") };
    let users: Vec<String> = list.peers.iter().map(|(user, _)| user.to_string()).collect();
    let addrs: Vec<String> = list.peers.iter().map(|(_, addr)| addr.unwrap().to_string()).collect();
    let bytes = serde_json::to_string(&users).unwrap().len() + serde_json::to_string(&addrs).unwrap().len();
    assert!(bytes < 65_507 - 500 && bytes > 60_000, "{bytes}");
}

#[test]
fn lists_are_told_to_who_asks_directly_and_not_too_often() {
    let mut bench = Bench::new();
    bench.known("bob@10.0.0.2", 8002, "b");
    assert!(sends(&bench.hear("10.0.0.3:8003", Door::Discovery, request("carol@10.0.0.3"))).is_empty());
    assert_eq!(bench.dropped(Cause::TooManyLists), 1);
    // One host has a share of that, whatever its ports.
    let told = (0..150).filter(|n| {
        !sends(&bench.hear(&format!("10.0.2.1:{}", 8_000 + n), Door::Own, request("m@10.0.2.1"))).is_empty()
    });
    assert_eq!(told.count(), 20);
    bench.wait(10_000);
    let told = (0..150).filter(|n| {
        !sends(&bench.hear(&format!("10.0.1.{n}:8003"), Door::Own, request(&format!("c@10.0.1.{n}")))).is_empty()
    });
    assert_eq!(told.count(), 50);
    bench.wait(1_000);
    assert!(!sends(&bench.hear("10.0.0.3:8003", Door::Own, request("carol@10.0.0.3"))).is_empty());
}

#[test]
fn unknown_addresses_of_a_list_are_told_that_we_are_here() {
    let mut bench = Bench::new();
    bench.known("bob@10.0.0.2", 8002, "b");
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
    bench.command(Command::AskPeers).unwrap();
    let effects = bench.hear("10.0.0.2:8002", Door::Own, response("bob@10.0.0.2", &list));
    assert_eq!(told(&effects), [addr("10.0.0.7:8007"), addr("10.0.0.8:8008")]);
    assert!(
        sends(&effects).iter().all(|(_, message)| matches!(message, Message::Discovery(said) if !said.features.probe))
    );
    assert_eq!(bench.list().len(), 1, "they are not known by that");
    // From this host loopback is near.
    bench.known("eve@127.0.0.1", 8004, "e");
    bench.command(Command::AskPeers).unwrap();
    let near = response("eve@127.0.0.1", &["127.0.0.1:8005"]);
    assert_eq!(told(&bench.hear("127.0.0.1:8004", Door::Own, near)), [addr("127.0.0.1:8005")]);
}

/// Else anybody could have us send to whomever he likes.
#[test]
fn a_list_is_believed_once_from_who_was_asked() {
    let mut bench = Bench::new();
    bench.known("bob@10.0.0.2", 8002, "b");
    let list = |from: &str, to: &str| response(from, &[to]);
    let unasked = |bench: &mut Bench, from: &str, who: &str| {
        let before = bench.dropped(Cause::Unasked);
        let effects = bench.hear(from, Door::Own, list(who, "10.0.0.9:8009"));
        assert!(told(&effects).is_empty() && told(&bench.wait(300)).is_empty(), "{effects:?}");
        assert_eq!(bench.dropped(Cause::Unasked), before + 1);
    };
    unasked(&mut bench, "10.0.0.2:8002", "bob@10.0.0.2");
    bench.command(Command::AskPeers).unwrap();
    unasked(&mut bench, "10.0.0.3:8002", "carol@10.0.0.3");
    unasked(&mut bench, "10.0.0.2:8003", "bob@10.0.0.2");
    assert_eq!(
        told(&bench.hear("10.0.0.2:8002", Door::Own, list("bob@10.0.0.2", "10.0.0.9:8009"))),
        [addr("10.0.0.9:8009")]
    );
    unasked(&mut bench, "10.0.0.2:8002", "bob@10.0.0.2");
    // Asked again, but he takes his time.
    bench.command(Command::AskPeers).unwrap();
    bench.now = bench.now.plus_ms(10_000);
    unasked(&mut bench, "10.0.0.2:8002", "bob@10.0.0.2");
}

#[test]
fn at_most_a_hundred_of_a_list_are_told() {
    let mut bench = Bench::new();
    let list: Vec<String> = (1..=250).map(|n| format!("10.0.1.{n}:8002")).collect();
    let list: Vec<&str> = list.iter().map(String::as_str).collect();
    bench.known("bob@10.0.0.2", 8002, "b");
    bench.command(Command::AskPeers).unwrap();
    let at_once = told(&bench.hear("10.0.0.2:8002", Door::Own, response("bob@10.0.0.2", &list)));
    assert_eq!(at_once.len() + told(&bench.wait(5_000)).len(), 100);
}

#[test]
fn some_of_those_known_are_asked_for_theirs() {
    let mut bench = Bench::new();
    assert_eq!(bench.command(Command::AskPeers), Err(CommandError::Alone));
    for n in 1..=100 {
        bench.broadcast(&format!("10.0.1.{n}:8002"), announced(&format!("b@10.0.1.{n}"), 8002, &n.to_string()));
    }
    let mut server = announced("shop@10.0.0.5", 8006, "s");
    server.serves = vec![("trade".to_owned(), 7001)];
    bench.broadcast("10.0.0.5:8006", server);
    let (done, effects) = bench.command(Command::AskPeers).unwrap();
    assert_eq!((done, bench.node.sizes().asked), (Done::Asked { peers: 32 }, 32));
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
    let mut bench = Bench::asleep(settings(Kind::Person));
    let far = addr("172.16.0.9:8009");
    let (done, effects) = bench.command(Command::AddPeer(far)).unwrap();
    assert_eq!((done, effects), (Done::Added { addr: far }, vec![]));
    assert_eq!(told(&bench.event(Event::Started)), [far]);
    assert_eq!(told(&bench.wait(67_000)), [far, far]);
    bench.direct("172.16.0.9:8009", announced("far@172.16.0.9", 8009, "f"));
    bench.wait(11_000);
    for _ in 0..20 {
        bench.direct("172.16.0.9:8009", announced("far@172.16.0.9", 8009, "f"));
        // Answers, but no announcements of our own.
        assert!(told(&bench.wait(33_000)).is_empty());
    }
    // Forgotten, it is told again.
    bench.wait(300_000);
    assert!(bench.list().is_empty());
    assert!(told(&bench.wait(33_000)).len() == 1);
    // Named while running: at once.
    let other = addr("172.16.0.10:8010");
    assert_eq!(told(&bench.command(Command::AddPeer(other)).unwrap().1), [other]);
}

#[test]
fn an_address_that_cannot_be_one_peer_s_is_refused() {
    let mut bench = Bench::new();
    for (at, why) in [
        ("10.0.0.1:8001", "itself"),
        ("127.0.0.1:50999", "discovery port"),
        ("10.0.0.1:50999", "discovery port"),
        ("10.0.0.255:8001", "one host"),
        ("10.0.0.2:0", "1 to 65535"),
        ("[::1]:8001", "IPv4"),
    ] {
        let Err(CommandError::Bad(text)) = bench.command(Command::AddPeer(addr(at))) else { panic!("{at}") };
        assert!(text.contains(why) && text.contains("--peer"), "{text}");
    }
    // Another host's discovery port may be asked: whoever is behind it answers from its own.
    let shared = addr("10.0.0.2:50999");
    assert_eq!(told(&bench.command(Command::AddPeer(shared)).unwrap().1), [shared]);
    bench.direct("10.0.0.2:8002", announced("bob@10.0.0.2", 8002, "b"));
    assert!(told(&bench.wait(35_000)).is_empty());
    for n in 1..64 {
        bench.command(Command::AddPeer(addr(&format!("10.0.2.{n}:8002")))).unwrap();
    }
    bench.command(Command::AddPeer(shared)).unwrap();
    assert!(bench.command(Command::AddPeer(addr("10.0.3.1:8002"))).is_err());
    assert_eq!(bench.node.sizes().invited, 64);
}
