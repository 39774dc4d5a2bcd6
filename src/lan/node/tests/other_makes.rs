//! Peers of another implementation: without INSTANCE, and on this host with several source addresses.

use super::*;

/// The announcement of such a peer on this host.
fn own(who: &str, from: &str, socket: SocketRole) -> (SocketAddr, SocketRole, Message) {
    let from = addr(from);
    (from, socket, Message::Discovery(discovery_of(who, from.port(), "")))
}

/// Simulates such a peer that answers every announcement at once, to its source. Returns the number of answers.
fn answer_all(alice: &mut TestNode, who: &str, port: u16, effects: Vec<NodeEffect>) -> usize {
    let (mut sent, mut open) = (0, effects);
    while let Some(effect) = open.pop() {
        let from = match effect {
            // On one host, source and target address are the same.
            NodeEffect::Broadcast { interface_ip, message: Message::Discovery(_) } => interface_ip,
            NodeEffect::Send { to, message: Message::Discovery(discovery) } if to.port() == port => {
                sent += 1;
                discovery.user_id.ip
            }
            _ => continue,
        };
        sent += 1;
        assert!(sent < 1_000, "a storm");
        let discovery = discovery_of(who, port, "");
        open.extend(alice.receive(&format!("{from}:{port}"), SocketRole::Own, Message::Discovery(discovery)));
    }
    sent
}

#[test]
fn one_that_answers_everything_on_this_host_makes_no_storm() {
    let mut alice = TestNode::new();
    let mut sent = 0;
    for second in 0..120 {
        if second % 5 == 0 {
            for from in ["10.0.0.1:8002", "127.0.0.1:8002"] {
                let (from, socket, message) = own("carol@10.0.0.1", from, SocketRole::Discovery);
                let effects = alice.event(NodeEvent::Datagram { from, socket, message: Ok(message), bytes: 1 });
                sent += answer_all(&mut alice, "carol@10.0.0.1", 8002, effects);
            }
        }
        let effects = alice.wait(1_000);
        sent += answer_all(&mut alice, "carol@10.0.0.1", 8002, effects);
    }
    // In two minutes, it answers our eight broadcasts and our answer of each half minute.
    assert!((8..=24).contains(&sent), "{sent} datagrams to one");
    assert_eq!(alice.list().len(), 1, "{:?}", alice.list());
}

#[test]
fn it_is_one_peer_whatever_address_of_this_host_it_names() {
    let mut alice = TestNode::new();
    let mut hear = |who: &str, from: &str| {
        let (from, socket, message) = own(who, from, SocketRole::Discovery);
        alice.event(NodeEvent::Datagram { from, socket, message: Ok(message), bytes: 1 })
    };
    assert_eq!(joined_peers(&hear("carol@10.0.0.1", "10.0.0.1:8002")), ["carol@10.0.0.1"]);
    for (who, from) in [
        ("carol@10.0.0.1", "127.0.0.1:8002"),
        ("carol@127.0.0.1", "127.0.0.1:8002"),
        ("carol@127.0.0.1", "10.0.0.1:8002"),
    ] {
        let effects = hear(who, from);
        assert!(notifications(&effects).is_empty(), "{who} from {from}: {effects:?}");
    }
    assert_eq!(alice.list(), ["carol@10.0.0.1 10.0.0.1:8002"]);
    // Messages to it are sent once, and its messages are shown once, whatever address it uses.
    let (_, effects) = alice.command(say("hi")).unwrap();
    assert_eq!(sends(&effects).len(), 1);
    let mut times_shown = |who: &str, from: &str, id: &str| {
        let effects = alice.receive(from, SocketRole::Own, post(who, id));
        notifications(&effects)
            .iter()
            .filter(|shown| matches!(shown, Notification::Heard { talk: Talk { body: TalkBody::Post(_), .. }, .. }))
            .count()
    };
    let copies = [
        ("carol@10.0.0.1", "10.0.0.1:8002"),
        ("carol@10.0.0.1", "127.0.0.1:8002"),
        ("carol@127.0.0.1", "127.0.0.1:8002"),
    ];
    assert_eq!(copies.map(|(who, from)| times_shown(who, from, "m1")), [1, 0, 0]);
    // The same MESSAGE_ID from another sender, or another MESSAGE_ID, is another message.
    assert_eq!(times_shown("dave@10.0.0.1", "10.0.0.1:8003", "m1"), 1);
    assert_eq!(times_shown("carol@127.0.0.1", "127.0.0.1:8002", "m2"), 1);
    // On another host, each address is a sender of its own.
    assert_eq!(times_shown("carol@10.0.0.2", "10.0.0.2:8002", "m1"), 1);
    assert_eq!(times_shown("carol@10.0.0.3", "10.0.0.3:8002", "m1"), 1);
}

#[test]
fn two_that_bear_one_name_at_two_addresses_of_this_host_are_asked_which_it_is() {
    let mut alice = TestNode::new();
    alice.add_known_peer("carol@10.0.0.1", 8002, "");
    let effects = alice.broadcast("127.0.0.1:8003", discovery_of("carol@127.0.0.1", 8003, ""));
    assert_eq!(unicast_announcements(&effects), [addr("10.0.0.1:8002")], "the old PORT is asked");
    alice.receive("10.0.0.1:8002", SocketRole::Own, post("carol@10.0.0.1", "here"));
    alice.wait(2_000);
    assert_eq!(alice.list(), ["carol@10.0.0.1 10.0.0.1:8002"]);
    // If the old port is silent, the new one is another run.
    alice.broadcast("127.0.0.1:8003", discovery_of("carol@127.0.0.1", 8003, ""));
    alice.wait(2_000);
    assert_eq!(alice.list().len(), 1);
    assert!(alice.list()[0].ends_with(":8003"), "{:?}", alice.list());
}

#[test]
fn it_takes_no_place_of_one_with_an_instance() {
    let mut alice = TestNode::new();
    alice.add_known_peer("bob@127.0.0.1", 8002, "b");
    // The same port at another address belongs to another peer.
    alice.add_known_peer("carol@10.0.0.1", 8002, "");
    assert_eq!(alice.list(), ["bob@127.0.0.1 127.0.0.1:8002", "carol@10.0.0.1 10.0.0.1:8002"]);
    // The peer with an INSTANCE still has two addresses.
    alice.broadcast("10.0.0.1:8005", discovery_of("erin@10.0.0.1", 8005, "e"));
    alice.broadcast("127.0.0.1:8005", discovery_of("erin@127.0.0.1", 8005, "e"));
    assert_eq!(alice.node.peers().iter().filter(|peer| peer.user_id.name.as_str() == "erin").count(), 1);
}

#[test]
fn where_it_refuses_it_is_taken_for_where_it_is_heard() {
    let mut alice = TestNode::new();
    alice.add_known_peer("carol@10.0.0.1", 8002, "");
    alice.event(NodeEvent::SendRefused { to: addr("10.0.0.1:8002") });
    alice.broadcast("127.0.0.1:8002", discovery_of("carol@10.0.0.1", 8002, ""));
    assert_eq!(alice.list(), ["carol@10.0.0.1 127.0.0.1:8002"]);
}

#[test]
fn a_quiet_one_is_answered_again_at_most_twice_a_minute() {
    // On this host and on another; by broadcast and by unicast.
    for (who, from) in [("carol@10.0.0.1", "10.0.0.1:8002"), ("carol@10.0.0.2", "10.0.0.2:8002")] {
        for socket in [SocketRole::Discovery, SocketRole::Own] {
            let mut alice = TestNode::new();
            let mut answered_at = Vec::new();
            for second in 0..100_u64 {
                let discovery = Message::Discovery(discovery_of(who, 8002, ""));
                let mut effects = alice.receive(from, socket, discovery);
                effects.extend(alice.wait(1_000));
                if !unicast_announcements(&effects).is_empty() {
                    answered_at.push(second);
                }
            }
            let pauses: Vec<u64> = answered_at.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert!(answered_at.first() == Some(&0) && answered_at.len() == 4, "{socket:?}: {answered_at:?}");
            assert!(pauses.iter().all(|pause| (30..=32).contains(pause)), "{socket:?}: {pauses:?}");
        }
    }
    // A known INSTANCE shows that the peer knows us already.
    let mut alice = TestNode::new();
    alice.add_known_peer("bob@10.0.0.2", 8002, "b");
    alice.wait(60_000);
    assert!(alice.broadcast("10.0.0.2:8002", discovery_of("bob@10.0.0.2", 8002, "b")).is_empty());
    assert!(unicast_announcements(&alice.wait(5_000)).is_empty());
}

#[test]
fn what_was_kept_before_a_start_is_known_from_every_own_address() {
    let mut alice = TestNode::not_started(config_of(NodeKind::Person));
    alice.node.remember_received(START, ip("10.0.0.1"), &user("carol@10.0.0.1"), "m1");
    alice.event(NodeEvent::Started);
    let effects = alice.receive("127.0.0.1:8002", SocketRole::Own, post("carol@127.0.0.1", "m1"));
    assert!(!effects.iter().any(|effect| matches!(effect, NodeEffect::Store(_))), "{effects:?}");
}
