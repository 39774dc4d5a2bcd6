//! Announcements, answers, and expiry of peers.

use super::*;

#[test]
fn it_announces_itself_at_once_on_every_interface() {
    let mut alice = TestNode::not_started(config_of(NodeKind::Person));
    let effects = alice.event(NodeEvent::Started);
    let discovery = broadcasts(&effects);
    assert_eq!(discovery.iter().map(|(from, _)| *from).collect::<Vec<_>>(), [ip("127.0.0.1"), ip("10.0.0.1")]);
    assert_eq!(effects.len(), 2);
    for (from, discovery) in discovery {
        assert_eq!((&discovery.user_id, discovery.port), (&UserId { name: name("alice"), ip: from }, 8001));
        assert_eq!(discovery.instance.as_deref(), Some("5000000000000000"));
        assert_eq!(discovery.features, Features { ack: true, probe: false });
        assert!(discovery.serves.is_empty() && discovery.cert_sha256.is_none());
        assert_eq!(discovery.stamp.timestamp, Some(1_700_000_000));
        let id = discovery.stamp.message_id.as_deref().unwrap();
        assert!(id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
    }
}

#[test]
fn it_announces_itself_every_thirty_seconds_give_or_take_a_tenth() {
    let mut alice = TestNode::started(NodeKind::Person);
    let hour = alice.events(3_600_000);
    let at: Vec<u64> =
        hour.iter().filter(|(_, effect)| matches!(effect, NodeEffect::Broadcast { .. })).map(|e| e.0).collect();
    assert!(hour.iter().all(|(_, effect)| matches!(effect, NodeEffect::Broadcast { .. })), "nothing else");
    let rounds: Vec<u64> = at.iter().step_by(2).copied().collect();
    assert!((115..=125).contains(&rounds.len()), "{}", rounds.len());
    let pauses: Vec<u64> = rounds.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.iter().all(|ms| (27_000..=33_000).contains(ms)), "{pauses:?}");
    assert!(pauses.iter().max().unwrap() - pauses.iter().min().unwrap() > 4_000, "they spread: {pauses:?}");
    assert_eq!(alice.node.counters().broadcasts, 2 + at.len() as u64);
}

#[test]
fn a_server_says_what_it_serves_and_a_probe_says_so_once() {
    let serves = vec![("trade".to_owned(), 7001)];
    let kind = NodeKind::Server { serves: serves.clone(), cert_sha256: Some("ab".repeat(32)) };
    let mut server = TestNode::not_started(config_of(kind));
    let effects = server.event(NodeEvent::Started);
    let (_, discovery) = broadcasts(&effects)[0];
    assert_eq!((&discovery.serves, discovery.cert_sha256.as_deref()), (&serves, Some(&*"ab".repeat(32))));
    assert!(!broadcasts(&server.wait(40_000)).is_empty());
    let mut probe = TestNode::not_started(config_of(NodeKind::Probe));
    let effects = probe.event(NodeEvent::Started);
    assert!(broadcasts(&effects).iter().all(|(_, discovery)| discovery.features.probe));
    assert_eq!(broadcasts(&effects).len(), 2);
    // It lists those who answer, and sends nothing more.
    let effects = probe.direct("10.0.0.2:8002", discovery_of("bob@10.0.0.2", 8002, "b"));
    assert_eq!(joined_peers(&effects), ["bob@10.0.0.2"]);
    assert!(sends(&effects).is_empty());
    probe.broadcast("10.0.0.3:8003", discovery_of("carol@10.0.0.3", 8003, "c"));
    assert!(probe.wait(60_000).is_empty());
}

#[test]
fn whoever_hears_an_unknown_peer_answers_its_port_a_little_later() {
    let mut waits = Vec::new();
    for n in 0..50 {
        let mut alice = TestNode::new();
        alice.random = n;
        // Announcements may come from another port than PORT.
        let effects = alice.broadcast("10.0.0.2:40000", discovery_of("bob@10.0.0.2", 8002, "b"));
        assert_eq!(joined_peers(&effects), ["bob@10.0.0.2"]);
        assert!(sends(&effects).is_empty());
        let later = alice.events(1_000);
        let [(ms, NodeEffect::Send { to, message: Message::Discovery(discovery) })] = &later[..] else {
            panic!("{later:?}")
        };
        assert_eq!((*to, discovery.user_id.clone()), (addr("10.0.0.2:8002"), user("alice@10.0.0.1")));
        assert!((20..=250).contains(ms), "{ms}");
        waits.push(*ms);
        // It is known now, so its next broadcast is not answered.
        assert!(alice.broadcast("10.0.0.2:40000", discovery_of("bob@10.0.0.2", 8002, "b")).is_empty());
        assert!(alice.wait(1_000).is_empty());
    }
    assert!(waits.iter().max().unwrap() - waits.iter().min().unwrap() > 150, "they spread: {waits:?}");
}

fn bob() -> Discovery {
    discovery_of("bob@10.0.0.2", 8002, "b")
}

#[test]
fn an_answer_is_dropped_when_the_other_answers_us() {
    // Both have just broadcast.
    let mut alice = TestNode::started(NodeKind::Person);
    alice.broadcast("10.0.0.2:8002", bob());
    alice.now = alice.now.plus_ms(20);
    assert!(unicast_announcements(&alice.direct("10.0.0.2:8002", bob())).is_empty());
    assert!(alice.wait(5_000).is_empty());
    // The same if we have announced ourselves to it by unicast, after finding it in a peer list.
    let mut alice = TestNode::new();
    alice.add_known_peer("bob@10.0.0.2", 8002, "b");
    alice.wait(20_000);
    alice.broadcast("10.0.0.2:8002", discovery_of("bob@10.0.0.2", 8002, "b2"));
    alice.node.peers.mark_announced_to(addr_v4("10.0.0.2:8002"), alice.now);
    alice.now = alice.now.plus_ms(20);
    assert!(unicast_announcements(&alice.direct("10.0.0.2:8002", discovery_of("bob@10.0.0.2", 8002, "b2"))).is_empty());
    assert!(unicast_announcements(&alice.wait(300)).is_empty());
}

#[test]
fn whoever_has_not_heard_of_us_is_answered_whatever_he_says() {
    let answers_of = |mut alice: TestNode, after_ms: u64, from: &str, socket: SocketRole, message: Message| {
        alice.broadcast("10.0.0.2:8002", bob());
        alice.now = alice.now.plus_ms(after_ms);
        let mut answers = unicast_announcements(&alice.receive(from, socket, message));
        answers.extend(unicast_announcements(&alice.wait(1_000)));
        answers
    };
    let direct = || Message::Discovery(bob());
    // With `--peer` although broadcast reaches us too: both come at the same time, whether or not we have just
    // broadcast.
    assert_eq!(
        answers_of(TestNode::started(NodeKind::Person), 1, "10.0.0.2:8002", SocketRole::Own, direct()),
        [addr("10.0.0.2:8002")]
    );
    assert_eq!(answers_of(TestNode::new(), 1, "10.0.0.2:8002", SocketRole::Own, direct()), [addr("10.0.0.2:8002")]);
    // Later, if our last broadcast was long ago.
    assert_eq!(answers_of(TestNode::new(), 19, "10.0.0.2:8002", SocketRole::Own, direct()), [addr("10.0.0.2:8002")]);
    // The peer may know our address from elsewhere.
    let ack = Message::Ack { message_id: "x".into() };
    let request = Message::PeerListRequest { from: user("bob@10.0.0.2"), stamp: stamp("1") };
    for message in [post("bob@10.0.0.2", "1"), dm("bob@10.0.0.2", "alice@10.0.0.1", "2"), request, ack] {
        let answers =
            answers_of(TestNode::started(NodeKind::Person), 20, "10.0.0.2:8002", SocketRole::Own, message.clone());
        assert_eq!(answers, [addr("10.0.0.2:8002")], "{message:?}");
    }
    // Broadcasts are no sign that the peer knows us, nor are datagrams from other addresses.
    for (from, socket, message) in [
        ("10.0.0.2:8002", SocketRole::Discovery, direct()),
        ("10.0.0.3:8002", SocketRole::Own, Message::Discovery(discovery_of("carol@10.0.0.3", 8003, "c"))),
    ] {
        let answers = answers_of(TestNode::started(NodeKind::Person), 20, from, socket, message);
        assert!(answers.contains(&addr("10.0.0.2:8002")), "{from}: {answers:?}");
    }
}

#[test]
fn whoever_comes_directly_is_answered_at_once() {
    let mut alice = TestNode::new();
    assert_eq!(unicast_announcements(&alice.direct("10.0.0.2:8002", bob())), [addr("10.0.0.2:8002")]);
    // It is known, but was answered just now.
    alice.wait(199);
    assert!(alice.direct("10.0.0.2:8002", bob()).is_empty());
    alice.wait(1);
    assert_eq!(unicast_announcements(&alice.direct("10.0.0.2:8002", bob())), [addr("10.0.0.2:8002")]);
    // The pause doubles, up to ten seconds.
    alice.wait(300);
    assert!(alice.direct("10.0.0.2:8002", bob()).is_empty());
    alice.wait(10_000);
    for _ in 0..3 {
        alice.wait(12_000);
        assert_eq!(unicast_announcements(&alice.direct("10.0.0.2:8002", bob())), [addr("10.0.0.2:8002")]);
    }
}

#[test]
fn two_far_from_each_other_do_not_answer_for_ever() {
    let mut here = TestNode::new();
    let mut answers = 0;
    for _ in 0..1_000 {
        here.wait(300);
        answers += unicast_announcements(&here.direct("10.0.0.2:8002", discovery_of("bob@10.0.0.2", 8002, "b"))).len();
    }
    // A limited number of answers in five minutes, instead of a thousand.
    assert!(answers < 60, "{answers}");
}

#[test]
fn a_probe_is_answered_every_time_and_never_listed() {
    let mut alice = TestNode::new();
    let mut discovery = discovery_of("discover-1@10.0.0.2", 8002, "p");
    discovery.features.probe = true;
    for _ in 0..3 {
        assert!(alice.broadcast("10.0.0.2:8002", discovery.clone()).is_empty());
        assert_eq!(unicast_announcements(&alice.wait(251)), [addr("10.0.0.2:8002")]);
        assert_eq!(unicast_announcements(&alice.direct("10.0.0.2:8002", discovery.clone())), [addr("10.0.0.2:8002")]);
    }
    assert!(alice.list().is_empty());
}

#[test]
fn its_own_broadcast_is_ignored_silently() {
    let mut alice = TestNode::new();
    for from in ["127.0.0.1:8001", "10.0.0.1:8001"] {
        let own = discovery_of("alice@10.0.0.1", 8001, "5000000000000000");
        assert!(alice.broadcast(from, own).is_empty());
    }
    assert_eq!((alice.node.counters().own, alice.node.counters().drops().count()), (2, 0));
    assert!(alice.list().is_empty() && alice.wait(1_000).is_empty());
}

#[test]
fn one_announcement_never_makes_a_storm() {
    let mut alice = TestNode::new();
    for n in 0..2_000_u32 {
        let who = format!("p{n}@10.0.{}.{}", 1 + n / 250, 1 + n % 250);
        let from = format!("{}:8002", user(&who).ip);
        alice.broadcast(&from, discovery_of(&who, 8002, &n.to_string()));
    }
    let told_in = |alice: &mut TestNode, ms| unicast_announcements(&alice.wait(ms)).len();
    assert!((500..=650).contains(&told_in(&mut alice, 1_000)));
    assert_eq!(told_in(&mut alice, 1_000), 500);
    assert!((850..=1_000).contains(&told_in(&mut alice, 3_000)));
    assert_eq!(alice.node.sizes().queued_announcements, 0);
}

#[test]
fn the_source_must_be_the_address_that_it_names() {
    let mut alice = TestNode::new();
    assert!(joined_peers(&alice.broadcast("10.0.0.3:8002", discovery_of("bob@10.0.0.2", 8002, "b"))).is_empty());
    for message in [
        post("bob@10.0.0.2", "1"),
        dm("bob@10.0.0.2", "alice@10.0.0.1", "1"),
        talk("bob@10.0.0.2", None, Profile { display_name: "Bob".into(), status: String::new(), avatar: None }, "1"),
        Message::PeerListRequest { from: user("bob@10.0.0.2"), stamp: stamp("1") },
        Message::PeerListResponse(crate::lan::wire::PeerList {
            from: user("bob@10.0.0.2"),
            peers: vec![(user("carol@10.0.0.9"), Some(addr("10.0.0.9:8009")))],
            stamp: stamp("1"),
        }),
    ] {
        let effects = alice.receive("10.0.0.3:8002", SocketRole::Own, message);
        assert!(
            matches!(
                notifications(&effects)[..],
                [Notification::DatagramDropped { cause: DropCause::WrongSource, .. }]
            ),
            "{effects:?}"
        );
        assert_eq!(effects.len(), 1);
    }
    assert_eq!(alice.dropped(DropCause::WrongSource), 6);
    // A broadcast address cannot be a source.
    alice.broadcast("10.0.0.255:8002", discovery_of("bob@10.0.0.255", 8002, "b"));
    assert_eq!(alice.dropped(DropCause::WrongSource), 7);
    assert!(alice.list().is_empty());
    // The addresses of this host are interchangeable.
    assert_eq!(
        joined_peers(&alice.broadcast("127.0.0.1:8002", discovery_of("bob@10.0.0.1", 8002, "b"))),
        ["bob@10.0.0.1"]
    );
}

#[test]
fn what_cannot_be_read_has_its_cause() {
    let mut alice = TestNode::new();
    for (from, message, cause) in [
        ("10.0.0.2:8002", Err(WireError::UnknownType("HELLO".into())), DropCause::UnknownType),
        ("10.0.0.2:8002", Err(WireError::Malformed("PORT: expected a number".into())), DropCause::Malformed),
        ("[::1]:8002", Ok(post("bob@10.0.0.2", "1")), DropCause::NotIpv4),
    ] {
        let effects =
            alice.event(NodeEvent::Datagram { from: addr(from), socket: SocketRole::Own, message, bytes: 10 });
        assert!(
            matches!(&notifications(&effects)[..], [Notification::DatagramDropped { cause: told, .. }] if *told == cause),
            "{effects:?}"
        );
        assert_eq!(alice.dropped(cause), 1);
    }
    assert_eq!((alice.node.counters().received, alice.node.counters().received_bytes), (3, 30));
    assert_eq!(alice.node.counters().drops().count(), 3);
}

#[test]
fn a_peer_that_is_not_heard_for_five_minutes_is_forgotten() {
    let mut alice = TestNode::new();
    alice.broadcast("10.0.0.2:8002", discovery_of("bob@10.0.0.2", 8002, "b"));
    alice.broadcast("10.0.0.3:8003", discovery_of("carol@10.0.0.3", 8003, "c"));
    alice.wait(200_000);
    // Any message shows that it is there.
    alice.receive("10.0.0.3:8003", SocketRole::Own, post("carol@10.0.0.3", "1"));
    alice.wait(99_999);
    assert_eq!(alice.list().len(), 2);
    let effects = alice.wait(1);
    assert!(
        matches!(notifications(&effects)[..], [Notification::PeerLeft { peer, why: PeerLeftReason::TimedOut }] if peer.user_id == user("bob@10.0.0.2"))
    );
    assert_eq!(alice.list(), ["carol@10.0.0.3 10.0.0.3:8003"]);
    alice.wait(200_000);
    assert!(alice.list().is_empty());
    assert_eq!(alice.node.sizes().addresses, 0);
    // It becomes known again.
    assert_eq!(
        joined_peers(&alice.broadcast("10.0.0.2:8002", discovery_of("bob@10.0.0.2", 8002, "b"))),
        ["bob@10.0.0.2"]
    );
}

#[test]
fn one_that_refuses_three_sends_in_a_row_is_dropped() {
    let mut alice = TestNode::new();
    alice.add_known_peer("bob@10.0.0.2", 8002, "b");
    let refused = || NodeEvent::SendRefused { to: addr("10.0.0.2:8002") };
    for _ in 0..2 {
        assert!(alice.event(refused()).is_empty() && alice.event(refused()).is_empty());
        // A received message resets the count.
        alice.receive("10.0.0.2:8002", SocketRole::Own, post("bob@10.0.0.2", ""));
    }
    alice.event(refused());
    alice.event(refused());
    let effects = alice.event(refused());
    assert!(matches!(notifications(&effects)[..], [Notification::PeerLeft { why: PeerLeftReason::Refused, .. }]));
    assert!(alice.list().is_empty() && alice.event(refused()).is_empty());
}

#[test]
fn a_peer_seen_through_two_interfaces_is_one() {
    let mut alice = TestNode::new();
    alice.add_known_peer("bob@10.0.0.2", 8002, "b");
    let effects = alice.broadcast("192.168.1.2:8002", discovery_of("bob@192.168.1.2", 8002, "b"));
    assert!(joined_peers(&effects).is_empty());
    assert!(unicast_announcements(&alice.wait(1_000)).is_empty());
    assert_eq!(alice.list(), ["bob@192.168.1.2 192.168.1.2:8002"], "the latest heard");
    alice.broadcast("10.0.0.2:8002", discovery_of("bob@10.0.0.2", 8002, "b"));
    let [bob] = &alice.node.peers()[..] else { panic!() };
    assert_eq!(bob.addr, addr("10.0.0.2:8002"));
    assert_eq!(
        bob.addresses.iter().map(|(_, addr)| *addr).collect::<Vec<_>>(),
        [addr("10.0.0.2:8002"), addr("192.168.1.2:8002")]
    );
    // If one address expires or refuses, the other stays.
    alice.wait(200_000);
    alice.broadcast("10.0.0.2:8002", discovery_of("bob@10.0.0.2", 8002, "b"));
    alice.wait(200_000);
    assert_eq!(alice.node.peers()[0].addresses.len(), 1);
    for n in 3..20 {
        let at = format!("10.0.0.{n}");
        alice.broadcast(&format!("{at}:8002"), discovery_of(&format!("bob@{at}"), 8002, "b"));
    }
    let peers = alice.node.peers();
    assert_eq!((peers.len(), peers[0].addresses.len(), alice.node.sizes().addresses), (1, 8, 8));
    for _ in 0..3 {
        assert!(alice.list() == ["bob@10.0.0.19 10.0.0.19:8002"]);
        alice.event(NodeEvent::SendRefused { to: addr("10.0.0.19:8002") });
    }
    assert_eq!(alice.list(), ["bob@10.0.0.18 10.0.0.18:8002"]);
}

#[test]
fn without_an_instance_the_user_id_is_what_counts() {
    let mut alice = TestNode::new();
    alice.add_known_peer("bob@10.0.0.2", 8002, "");
    alice.add_known_peer("bob@10.0.0.3", 8002, "");
    assert!(alice.broadcast("10.0.0.2:8002", discovery_of("bob@10.0.0.2", 8002, "")).is_empty());
    assert_eq!(alice.list().len(), 2);
    // Another name at the same address is a renamed peer.
    let effects = alice.broadcast("10.0.0.2:8002", discovery_of("bobby@10.0.0.2", 8002, ""));
    assert!(matches!(notifications(&effects)[..], [Notification::PeerRenamed { .. }]), "{effects:?}");
    assert_eq!(alice.list().len(), 2);
}

#[test]
fn past_ten_thousand_peers_newcomers_are_dropped_and_counted() {
    let mut alice = TestNode::new();
    let peer = |n: u32| (format!("p{n}@10.{}.{}.{}", 1 + n / 40_000, n / 200 % 200, 1 + n % 200), n.to_string());
    for n in 0..10_002 {
        let (who, instance) = peer(n);
        alice.broadcast(&format!("{}:8002", user(&who).ip), discovery_of(&who, 8002, &instance));
        alice.wait(5);
    }
    assert_eq!((alice.node.sizes().peers, alice.dropped(DropCause::Full)), (10_000, 2));
    // Announcements of known peers are still handled.
    let (who, instance) = peer(9_999);
    assert!(alice.broadcast(&format!("{}:8002", user(&who).ip), discovery_of(&who, 8002, &instance)).is_empty());
}

#[test]
fn interfaces_come_and_go() {
    let mut alice = TestNode::new();
    let one = || interface("127.0.0.1", "255.0.0.0");
    assert!(alice.event(NodeEvent::InterfacesChanged(vec![one()])).is_empty());
    assert_eq!(alice.node.user_id(), user("alice@127.0.0.1"));
    let effects = alice.event(NodeEvent::InterfacesChanged(vec![one(), interface("192.168.1.1", "255.255.255.0")]));
    let from: Vec<_> =
        broadcasts(&effects).iter().map(|(from, discovery)| (*from, discovery.user_id.to_string())).collect();
    assert_eq!(
        from,
        [(ip("127.0.0.1"), "alice@127.0.0.1".to_owned()), (ip("192.168.1.1"), "alice@192.168.1.1".to_owned())]
    );
    assert_eq!(alice.node.user_id(), user("alice@192.168.1.1"));
}

/// As with `--bind 10.0.0.1`, with another interface that is not sent by.
#[test]
fn bound_to_one_address_it_announces_itself_by_that_and_loopback() {
    let mut alice = TestNode::not_started(config_of(NodeKind::Person));
    let from = |own: InterfaceAddress, from: Option<&str>| InterfaceAddress { source_ip: from.map(ip), ..own };
    let interfaces = vec![
        from(interface("10.0.0.1", "255.255.255.0"), Some("10.0.0.1")),
        from(interface("192.168.1.1", "255.255.255.0"), None),
        from(interface("127.0.0.1", "255.0.0.0"), Some("10.0.0.1")),
    ];
    alice.event(NodeEvent::InterfacesChanged(interfaces));
    let effects = alice.event(NodeEvent::Started);
    let discovery: Vec<_> =
        broadcasts(&effects).iter().map(|(by, discovery)| (*by, discovery.user_id.to_string())).collect();
    assert_eq!(
        discovery,
        [("10.0.0.1", "alice@10.0.0.1"), ("127.0.0.1", "alice@10.0.0.1")].map(|(by, who)| (ip(by), who.to_owned()))
    );
    alice.wait(3_000);
    // On loopback, too, USER_ID names the source address; senders may name any address of the host.
    let effects = alice.direct("127.0.0.1:8002", discovery_of("bob@192.168.1.1", 8002, "b"));
    assert_eq!(joined_peers(&effects), ["bob@192.168.1.1"]);
    let sends = sends(&effects);
    let [(to, Message::Discovery(discovery))] = &sends[..] else { panic!("{effects:?}") };
    assert_eq!((*to, discovery.user_id.to_string()), (addr("127.0.0.1:8002"), "alice@10.0.0.1".to_owned()));
    for to in ["alice@10.0.0.1", "alice@192.168.1.1", "alice@127.0.0.1"] {
        assert_eq!(alice.receive("127.0.0.1:8002", SocketRole::Own, dm("bob@127.0.0.1", to, to)).len(), 3, "{to}");
    }
    // Our port at another address of this host belongs to another peer.
    assert_eq!(
        joined_peers(&alice.direct("127.0.0.1:8001", discovery_of("carol@127.0.0.1", 8001, "c"))),
        ["carol@127.0.0.1"]
    );
    alice.direct("10.0.0.1:8001", discovery_of("dave@10.0.0.1", 8001, "d"));
    assert_eq!((alice.dropped(DropCause::Taken), alice.dropped(DropCause::WrongSource)), (1, 0));
}

#[test]
fn one_host_does_not_take_all_answers() {
    let mut alice = TestNode::new();
    let announces = |alice: &mut TestNode, ip: &str, n: usize| {
        // From ten ports, each time with a new name and a new PORT.
        let from = format!("{ip}:{}", 9_000 + n % 10);
        alice.broadcast(&from, discovery_of(&format!("m{n}@{ip}"), 10_000 + n as u16, &format!("{ip}-{n}")));
    };
    (0..1_500).for_each(|n| announces(&mut alice, "10.0.0.66", n));
    assert_eq!(alice.node.sizes().queued_announcements, 200);
    assert!(alice.dropped(DropCause::Unanswerable) > 1_000);
    alice.broadcast("10.0.0.2:8002", bob());
    assert!(unicast_announcements(&alice.wait(700)).contains(&addr("10.0.0.2:8002")));
    // On this host, each port counts as a host of its own.
    (0..1_500).for_each(|n| announces(&mut alice, "127.0.0.1", n));
    assert_eq!(alice.node.sizes().queued_announcements, 1_500);
}

#[test]
fn the_user_id_is_of_the_interface_that_it_leaves_by() {
    let mut alice = TestNode::new();
    for (from, own) in [("10.0.0.2", "10.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("172.16.0.1", "10.0.0.1")] {
        let effects = alice.direct(&format!("{from}:8002"), discovery_of(&format!("b{from}@{from}"), 8002, from));
        let sends = sends(&effects);
        let [(_, Message::Discovery(discovery))] = &sends[..] else { panic!("{effects:?}") };
        assert_eq!(discovery.user_id.ip, ip(own), "to {from}");
    }
}

#[test]
fn nothing_goes_to_the_discovery_port_of_this_host() {
    let mut alice = TestNode::new();
    for (from, who) in [("127.0.0.1:50999", "bob@127.0.0.1"), ("10.0.0.1:50999", "bob@10.0.0.1")] {
        for socket in [SocketRole::Own, SocketRole::Discovery] {
            alice.receive(from, socket, Message::Discovery(discovery_of(who, DISCOVERY_PORT, "b")));
            alice.receive(from, socket, Message::PeerListRequest { from: user(who), stamp: stamp("1") });
        }
    }
    assert!(unicast_announcements(&alice.wait(3_000)).is_empty() && alice.list().is_empty());
    assert_eq!((alice.dropped(DropCause::Unanswerable), alice.dropped(DropCause::TooManyLists)), (6, 2));
    assert_eq!(alice.node.counters().sent, 0);
}
