//! Floods: drops are counted, and all tables stay bounded.

use super::*;

#[test]
fn a_source_may_send_two_hundred_at_once_and_a_hundred_a_second() {
    let mut alice = TestNode::new();
    let taken = |alice: &mut TestNode, from: &str| {
        let hear = |_| alice.receive(from, SocketRole::Own, post("bob@10.0.0.2", ""));
        (0..500)
            .map(hear)
            .filter(|effects| {
                notifications(effects).iter().any(|shown| {
                    matches!(shown, Notification::Heard { talk: Talk { body: TalkBody::Post(_), .. }, .. })
                })
            })
            .count()
    };
    assert_eq!(taken(&mut alice, "10.0.0.2:8002"), 200);
    assert_eq!(alice.dropped(DropCause::TooMany), 300);
    assert_eq!(taken(&mut alice, "10.0.0.2:8003"), 200, "another source");
    alice.wait(1_000);
    assert_eq!(taken(&mut alice, "10.0.0.2:8002"), 100);
}

#[test]
fn every_drop_is_shown_and_of_a_flood_how_many_there_were() {
    let mut alice = TestNode::new();
    let lie = |alice: &mut TestNode, from: &str| {
        notifications(&alice.receive(from, SocketRole::Own, post("bob@10.0.0.3", ""))).len()
    };
    let one_by_one: usize = (0..1_000).map(|_| lie(&mut alice, "10.0.0.2:8002")).sum();
    assert_eq!((one_by_one, alice.dropped(DropCause::WrongSource), alice.dropped(DropCause::TooMany)), (200, 200, 800));
    // The others follow a second later, in one summary.
    let effects = alice.events(5_000);
    let [(1_000, NodeEffect::Notify(Notification::DropSummary { counts }))] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!(*counts, [(DropCause::TooMany, 800)]);
    // From then on, drops are notified one by one again.
    assert_eq!((0..150).map(|n| lie(&mut alice, &format!("10.0.1.{n}:8002"))).sum::<usize>(), 150);
    assert!(alice.wait(5_000).is_empty());
    let terse =
        [Notification::DropSummary { counts: vec![] }].iter().filter(|shown| shown.is_shown_when_terse()).count();
    assert_eq!(terse, 0);
}

#[test]
fn an_ack_that_is_awaited_is_never_one_too_many() {
    let mut alice = TestNode::new();
    alice.add_known_peer("bob@10.0.0.2", 8002, "b");
    let (done, _) = alice.command(tell("bob", "hi")).unwrap();
    let CommandOutcome::SaidToOne { message_id, .. } = done else { panic!("{done:?}") };
    for _ in 0..300 {
        alice.receive("10.0.0.2:8002", SocketRole::Own, post("bob@10.0.0.2", ""));
    }
    // Other ACKs remain subject to the rate limit.
    alice.receive("10.0.0.2:8002", SocketRole::Own, Message::Ack { message_id: "x".into() });
    assert_eq!((alice.dropped(DropCause::TooMany), alice.dropped(DropCause::StrayAck)), (101, 0));
    let effects = alice.receive("10.0.0.2:8002", SocketRole::Own, Message::Ack { message_id });
    assert!(
        matches!(effects[..], [NodeEffect::StoreConfirmation { confirmed: true, .. }, NodeEffect::Notify(_)]),
        "{effects:?}"
    );
}

/// A peer accepts messages that are sent at the highest permitted rate.
#[test]
fn nobody_is_sent_more_than_he_takes() {
    let (mut alice, mut bob) = (TestNode::new(), TestNode::new());
    alice.add_known_peer("bob@10.0.0.2", 8002, "");
    let (mut sent, mut refused) = (0, 0);
    while sent < 500 {
        bob.now = alice.now;
        match alice.command(say("hi")) {
            Ok((_, effects)) => {
                sent += 1;
                for (_, message) in sends(&effects) {
                    bob.receive("10.0.0.1:8001", SocketRole::Own, message.clone());
                }
            }
            Err(CommandError::RateLimited { retry_after_ms }) => {
                assert!((1..=13).contains(&retry_after_ms), "{retry_after_ms}");
                refused += 1;
                alice.wait(retry_after_ms);
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!((refused, bob.dropped(DropCause::TooMany), bob.dropped(DropCause::WrongSource)), (400, 0, 0));
    // A refused command takes no permits.
    alice.add_known_peer("carol@10.0.0.3", 8003, "");
    let dm = |to: &str| tell(to, "hi");
    while alice.command(dm("bob")).is_ok() {}
    for _ in 0..200 {
        assert!(matches!(alice.command(say("hi")), Err(CommandError::RateLimited { .. })));
    }
    assert_eq!((0..200).filter(|_| alice.command(dm("carol")).is_ok()).count(), 100);
}

#[test]
fn no_table_grows_past_its_bound() {
    let mut alice = TestNode::new();
    for n in 0..60_000_u32 {
        let from = Ipv4Addr::from(0x0b00_0000 + n);
        let source = format!("{from}:8002");
        let id = n.to_string();
        let discovery = discovery_of(&format!("p@{from}"), 8002, &id);
        alice.broadcast(&source, discovery.clone());
        alice.receive(&source, SocketRole::Own, post(&format!("p@{from}"), &id));
        alice.receive(&source, SocketRole::Own, Message::Ack { message_id: id.clone() });
        alice.broadcast(&source, discovery_of(&format!("p@{from}"), 8003, &format!("x{n}")));
        alice.broadcast("10.0.0.1:8002", discovery_of("alice@10.0.0.1", 8002, &format!("4r{n}")));
        let list = (0..200)
            .map(|m| (user("q@10.0.0.9"), Some(SocketAddr::from((Ipv4Addr::from(n * 200 + m + (12 << 24)), 9)))));
        if n % 100 == 0 {
            let list = crate::lan::wire::PeerList {
                from: user(&format!("p@{from}")),
                peers: list.collect(),
                stamp: stamp(""),
            };
            alice.receive(&source, SocketRole::Own, Message::PeerListResponse(list));
        }
        if n % 1_000 == 0 {
            alice.now = alice.now.plus_ms(1);
        }
    }
    let sizes = alice.node.sizes();
    assert_eq!((sizes.peers, sizes.senders, sizes.name_conflicts, sizes.port_checks), (10_000, 10_000, 16, 100));
    assert_eq!(sizes.peer_list_requests, 0);
    assert!(sizes.queued_announcements > 9_900 && sizes.queued_announcements <= 10_000, "{sizes:?}");
    assert_eq!(sizes.acknowledging_strangers, 1_000);
    assert!(sizes.addresses <= 80_000 && sizes.seen <= 200_000 && sizes.sources <= 10_000, "{sizes:?}");
    // Everything expires without traffic.
    alice.wait(600_000);
    let sizes = alice.node.sizes();
    assert_eq!((sizes.peers, sizes.addresses, sizes.queued_announcements, sizes.port_checks), (0, 0, 0, 0));
}
