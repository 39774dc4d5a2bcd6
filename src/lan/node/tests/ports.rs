//! Identity claims: a new PORT, a new run, and the INSTANCE or address of another peer.

use super::*;

fn moved(effects: &[NodeEffect]) -> Vec<(SocketAddr, SocketAddr)> {
    let moved = notifications(effects).into_iter().filter_map(|shown| match shown {
        Notification::PeerMoved { old, new, .. } => Some((*old, *new)),
        _ => None,
    });
    moved.collect()
}

#[test]
fn a_new_port_takes_over_when_the_old_one_is_silent() {
    for (socket, instance) in [
        (SocketRole::Own, "b2"),
        (SocketRole::Discovery, "b2"),
        (SocketRole::Discovery, "b"),
        (SocketRole::Discovery, ""),
    ] {
        let mut alice = TestNode::new();
        alice.add_known_peer("bob@10.0.0.2", 8002, "b");
        let discovery = discovery_of("bob@10.0.0.2", 8102, instance);
        let effects = alice.receive("10.0.0.2:8102", socket, Message::Discovery(discovery.clone()));
        // The old PORT is probed.
        let asked = sends(&effects);
        let [(to, Message::Discovery(probe))] = &asked[..] else { panic!("{effects:?}") };
        assert_eq!((*to, probe.features), (addr("10.0.0.2:8002"), Features { ack: true, probe: true }));
        // Repeating the announcement changes nothing.
        assert!(alice.receive("10.0.0.2:8102", socket, Message::Discovery(discovery)).is_empty());
        assert!(alice.wait(999).is_empty());
        assert_eq!(alice.list(), ["bob@10.0.0.2 10.0.0.2:8002"]);
        let effects = alice.wait(1);
        assert_eq!(moved(&effects), [(addr("10.0.0.2:8002"), addr("10.0.0.2:8102"))]);
        assert!(joined_peers(&effects).is_empty());
        assert_eq!(alice.list(), ["bob@10.0.0.2 10.0.0.2:8102"]);
        // A new run does not know us, so it is answered.
        let answered = [unicast_announcements(&effects), unicast_announcements(&alice.wait(300))].concat();
        let new_run = instance != "b" || socket == SocketRole::Own;
        assert_eq!(answered, if new_run { vec![addr("10.0.0.2:8102")] } else { vec![] }, "{socket:?} {instance:?}");
        assert_eq!(alice.node.sizes().port_checks, 0);
    }
}

#[test]
fn without_an_instance_another_port_is_another_run() {
    let mut alice = TestNode::new();
    alice.add_known_peer("bob@10.0.0.2", 8002, "");
    alice.broadcast("10.0.0.2:8102", discovery_of("bob@10.0.0.2", 8102, ""));
    let effects = alice.wait(1_300);
    assert_eq!(moved(&effects), [(addr("10.0.0.2:8002"), addr("10.0.0.2:8102"))]);
    assert_eq!(unicast_announcements(&effects), [addr("10.0.0.2:8102")], "it does not know us");
    assert_eq!((alice.list(), alice.node.sizes().addresses), (vec!["bob@10.0.0.2 10.0.0.2:8102".to_owned()], 1));
}

#[test]
fn a_new_port_is_refused_when_the_old_one_answers() {
    for answer in [Message::Discovery(discovery_of("bob@10.0.0.2", 8002, "b")), post("bob@10.0.0.2", "1")] {
        let mut alice = TestNode::new();
        alice.add_known_peer("bob@10.0.0.2", 8002, "b");
        alice.broadcast("10.0.0.2:8102", discovery_of("bob@10.0.0.2", 8102, "m"));
        alice.wait(900);
        let effects = alice.receive("10.0.0.2:8002", SocketRole::Own, answer);
        let refused = |shown: &&Notification| {
            matches!(shown, Notification::PeerMoveRefused { old, new, .. }
                if (*old, *new) == (addr("10.0.0.2:8002"), addr("10.0.0.2:8102")))
        };
        assert!(notifications(&effects).iter().any(refused), "{effects:?}");
        assert!(unicast_announcements(&effects).is_empty(), "it is the answer to ours");
        assert_eq!(alice.dropped(DropCause::PortRefused), 1);
        alice.wait(5_000);
        assert_eq!(alice.list(), ["bob@10.0.0.2 10.0.0.2:8002"]);
    }
    // Answers after a second do not count, nor do those from other addresses.
    let mut alice = TestNode::new();
    alice.add_known_peer("bob@10.0.0.2", 8002, "b");
    alice.broadcast("10.0.0.2:8102", discovery_of("bob@10.0.0.2", 8102, "m"));
    alice.receive("10.0.0.2:8003", SocketRole::Own, post("bob@10.0.0.2", "1"));
    alice.now = alice.now.plus_ms(1_000);
    alice.receive("10.0.0.2:8002", SocketRole::Own, post("bob@10.0.0.2", "2"));
    assert_eq!(alice.list(), ["bob@10.0.0.2 10.0.0.2:8102"]);
}

#[test]
fn changes_of_port_are_bounded() {
    let mut alice = TestNode::new();
    for n in 1..=101 {
        alice.broadcast(&format!("10.0.1.{n}:8002"), discovery_of(&format!("b@10.0.1.{n}"), 8002, &n.to_string()));
    }
    alice.wait(1_000);
    for n in 1..=101 {
        alice.broadcast(&format!("10.0.1.{n}:8003"), discovery_of(&format!("b@10.0.1.{n}"), 8003, &format!("n{n}")));
    }
    assert_eq!((alice.node.sizes().port_checks, alice.dropped(DropCause::TooManyChecks)), (100, 1));
    alice.broadcast("10.0.1.1:8004", discovery_of("b@10.0.1.1", 8004, "x"));
    assert_eq!(alice.dropped(DropCause::TooManyChecks), 2);
    alice.wait(1_000);
    assert_eq!(alice.node.sizes().port_checks, 0);
    assert_eq!(alice.list().iter().filter(|line| line.ends_with(":8003")).count(), 100);
}

#[test]
fn a_new_run_at_the_same_port_is_the_same_peer_that_knows_nobody() {
    let mut alice = TestNode::new();
    alice.add_known_peer("bob@10.0.0.2", 8002, "b");
    let effects = alice.broadcast("10.0.0.2:8002", discovery_of("bob@10.0.0.2", 8002, "b2"));
    assert!(joined_peers(&effects).is_empty());
    assert_eq!(unicast_announcements(&alice.wait(300)), [addr("10.0.0.2:8002")]);
    let [bob] = &alice.node.peers()[..] else { panic!() };
    assert_eq!(bob.instance.as_deref(), Some("b2"));
    // All addresses of the former run are removed.
    alice.broadcast("10.0.0.3:8002", discovery_of("bob@10.0.0.3", 8002, "b2"));
    alice.broadcast("10.0.0.3:8002", discovery_of("bob@10.0.0.3", 8002, "b3"));
    assert_eq!(alice.list(), ["bob@10.0.0.3 10.0.0.3:8002"]);
    assert_eq!(alice.node.sizes().addresses, 1);
    // Other ports of its host cannot announce this.
    alice.broadcast("10.0.0.3:8777", discovery_of("bob@10.0.0.3", 8002, "m"));
    assert_eq!((alice.node.peers()[0].instance.as_deref(), alice.dropped(DropCause::Taken)), (Some("b3"), 1));
}

#[test]
fn a_new_run_that_is_heard_through_one_interface_after_the_other() {
    let mut alice = TestNode::new();
    alice.add_known_peer("bob@10.0.0.2", 8002, "b");
    alice.broadcast("10.0.9.2:8002", discovery_of("bob@10.0.9.2", 8002, "b"));
    alice.broadcast("10.0.0.2:8102", discovery_of("bob@10.0.0.2", 8102, "b2"));
    alice.broadcast("10.0.9.2:8102", discovery_of("bob@10.0.9.2", 8102, "b2"));
    let effects = alice.wait(1_000);
    assert_eq!(moved(&effects).len(), 1, "the former run is over with the first");
    let [bob] = &alice.node.peers()[..] else { panic!("{:?}", alice.list()) };
    assert!(bob.addresses.len() == 2 && bob.addresses.iter().all(|(_, addr)| addr.port() == 8102));
    assert_eq!(alice.node.sizes().addresses, 2);
}

#[test]
fn an_instance_or_an_address_of_another_is_refused() {
    let mut alice = TestNode::new();
    alice.add_known_peer("bob@10.0.0.2", 8002, "b");
    for (from, discovery) in [
        // Another name at another address, with the INSTANCE of bob.
        ("10.0.0.3:8003", discovery_of("mallory@10.0.0.3", 8003, "b")),
        // Another name with the PORT of bob, but sent from another port.
        ("10.0.0.2:8777", discovery_of("mallory@10.0.0.2", 8002, "m")),
        ("10.0.0.2:8777", discovery_of("mallory@10.0.0.2", 8002, "b")),
        ("10.0.0.2:8777", discovery_of("mallory@10.0.0.2", 8002, "")),
        // An announcement with our own PORT.
        ("10.0.0.1:8777", discovery_of("mallory@10.0.0.1", 8001, "m")),
    ] {
        let effects = alice.broadcast(from, discovery.clone());
        assert!(
            matches!(notifications(&effects)[..], [Notification::DatagramDropped { cause: DropCause::Taken, .. }]),
            "{discovery:?} {effects:?}"
        );
    }
    assert_eq!((alice.dropped(DropCause::Taken), alice.list()), (5, vec!["bob@10.0.0.2 10.0.0.2:8002".to_owned()]));
    // Sent from that very address, it is another program.
    let effects = alice.broadcast("10.0.0.2:8002", discovery_of("carol@10.0.0.2", 8002, "c"));
    assert!(
        matches!(
            notifications(&effects)[..],
            [Notification::PeerLeft { why: PeerLeftReason::Replaced, .. }, Notification::PeerJoined(_)]
        ),
        "{effects:?}"
    );
    assert_eq!(alice.list(), ["carol@10.0.0.2 10.0.0.2:8002"]);
}

#[test]
fn a_peer_that_goes_by_another_name_is_the_same() {
    let mut alice = TestNode::new();
    alice.add_known_peer("bob@10.0.0.2", 8002, "b");
    alice.broadcast("10.0.9.2:8002", discovery_of("bob@10.0.9.2", 8002, "b"));
    let effects = alice.broadcast("10.0.0.2:8002", discovery_of("bob2@10.0.0.2", 8002, "b"));
    assert!(matches!(notifications(&effects)[..], [Notification::PeerRenamed { .. }]), "{effects:?}");
    assert_eq!(alice.list(), ["bob2@10.0.0.2 10.0.0.2:8002"]);
    // The name is free now, and the pending port check of a claim to it is cancelled.
    alice.add_known_peer("bob@10.0.0.3", 8003, "x");
    alice.broadcast("10.0.0.3:8004", discovery_of("bob@10.0.0.3", 8004, "y"));
    assert_eq!(alice.node.sizes().port_checks, 1);
    assert_eq!(
        joined_peers(&alice.broadcast("10.0.0.3:8004", discovery_of("bob2@10.0.0.3", 8004, "y"))),
        ["bob2@10.0.0.3"]
    );
    assert_eq!(alice.node.sizes().port_checks, 0);
    assert!(moved(&alice.wait(2_000)).is_empty());
}

#[test]
fn two_that_exchange_their_names_are_not_asked_for_ever() {
    let mut alice = TestNode::new();
    alice.add_known_peer("bob@10.0.0.2", 8002, "b");
    alice.add_known_peer("bob2@10.0.0.2", 8003, "c");
    // Both restart: now the other one was first.
    let answers = [
        ("10.0.0.2:8003", discovery_of("bob@10.0.0.2", 8003, "d")),
        ("10.0.0.2:8002", discovery_of("bob2@10.0.0.2", 8002, "e")),
    ];
    let mut asked = sends(&alice.broadcast(answers[0].0, answers[0].1.clone())).len();
    for round in 0..10 {
        let (from, discovery) = &answers[(round + 1) % 2];
        asked += sends(&alice.direct(from, discovery.clone())).len();
    }
    assert!(asked < 8, "{asked}");
    assert_eq!(alice.list(), ["bob@10.0.0.2 10.0.0.2:8003", "bob2@10.0.0.2 10.0.0.2:8002"]);
    // Messages from the old PORT with another name do not resolve the check, only announcements do.
    alice.broadcast("10.0.0.2:8009", discovery_of("bob@10.0.0.2", 8009, "f"));
    alice.receive("10.0.0.2:8003", SocketRole::Own, post("carol@10.0.0.2", "1"));
    assert_eq!(alice.node.sizes().port_checks, 1);
}
