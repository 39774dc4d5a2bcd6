//! POST, DM, PROFILE and ACK.

use super::*;
use crate::lan::wire::{Avatar, AvatarKind};

fn server(who: &str, port: u16, instance: &str) -> Discovery {
    Discovery { serves: vec![("trade".to_owned(), 7001)], ..discovery_of(who, port, instance) }
}

/// The MESSAGE_ID of a sent DM and its only datagram.
fn sent(result: Result<(CommandOutcome, Vec<NodeEffect>), CommandError>) -> (String, Message) {
    let (done, effects) = result.unwrap();
    let CommandOutcome::SaidToOne { message_id, .. } = done else { panic!("{done:?}") };
    let sends = sends(&effects);
    let [(_, message)] = &sends[..] else { panic!("{effects:?}") };
    (message_id, (*message).clone())
}

#[test]
fn a_post_goes_to_every_known_peer_directly() {
    let mut alice = TestNode::new();
    assert_eq!(alice.command(say("hi")), Err(CommandError::NoPeers));
    alice.add_known_peer("bob@10.0.0.2", 8002, "b");
    alice.add_known_peer("carol@127.0.0.1", 8003, "");
    alice.broadcast("10.0.0.5:8006", server("shop@10.0.0.5", 8006, "s"));
    let (done, effects) = alice.command(say("hi\nthere")).unwrap();
    let CommandOutcome::SaidToAll { to: 2, message_id } = done else { panic!("{done:?}") };
    let NodeEffect::Store(entry) = &effects[0] else { panic!("kept first: {effects:?}") };
    assert!(!entry.is_incoming && entry.addr.is_none() && entry.at == alice.now);
    let sends = sends(&effects);
    let mut to: Vec<(SocketAddr, String)> = Vec::new();
    for (addr, message) in sends {
        let Message::Talk(Talk { from, body: TalkBody::Post(post), stamp, .. }) = message else {
            panic!("{message:?}")
        };
        assert_eq!((&*post.content, stamp.message_id.as_ref()), ("hi\nthere", Some(&message_id)));
        to.push((addr, from.to_string()));
    }
    assert_eq!(
        to,
        [
            (addr("10.0.0.2:8002"), "alice@10.0.0.1".to_owned()),
            (addr("127.0.0.1:8003"), "alice@127.0.0.1".to_owned()),
            (addr("10.0.0.5:8006"), "alice@10.0.0.1".to_owned()),
        ]
    );
    assert_eq!(effects.len(), 4);
}

#[test]
fn a_message_is_kept_then_shown_and_only_once() {
    let mut alice = TestNode::new();
    let profile = Profile { display_name: "Bob".into(), status: "here".into(), avatar: None };
    let profile = talk("bob@10.0.0.2", None, profile, "3");
    // Messages of unknown peers are shown too.
    for message in [post("bob@10.0.0.2", "1"), dm("bob@10.0.0.2", "alice@10.0.0.1", "2"), profile] {
        let effects = alice.receive("10.0.0.2:8002", SocketRole::Own, message.clone());
        let [NodeEffect::Store(entry), NodeEffect::Notify(_)] = &effects[..] else { panic!("{effects:?}") };
        let kept = Message::Talk(entry.talk.clone());
        assert_eq!((entry.is_incoming, entry.addr, &kept), (true, Some(addr("10.0.0.2:8002")), &message));
        let again = alice.receive("10.0.0.2:8002", SocketRole::Own, message);
        assert!(
            matches!(notifications(&again)[..], [Notification::DatagramDropped { cause: DropCause::Repeated, .. }])
                && again.len() == 1
        );
    }
    assert_eq!(alice.dropped(DropCause::Repeated), 3);
    // The source port does not matter; with another sender or without MESSAGE_ID it is another message.
    assert_eq!(alice.receive("10.0.0.2:8003", SocketRole::Own, post("bob@10.0.0.2", "1")).len(), 1);
    assert_eq!(alice.receive("10.0.0.2:8002", SocketRole::Own, post("bobby@10.0.0.2", "1")).len(), 2);
    assert_eq!(alice.receive("10.0.0.3:8002", SocketRole::Own, post("bob@10.0.0.3", "1")).len(), 2);
    assert_eq!(alice.receive("10.0.0.2:8002", SocketRole::Own, post("bob@10.0.0.2", "")).len(), 2);
    assert_eq!(alice.receive("10.0.0.2:8002", SocketRole::Own, post("bob@10.0.0.2", "")).len(), 2);
    // An hour later it is forgotten.
    alice.wait(3_600_000);
    assert_eq!(alice.receive("10.0.0.2:8002", SocketRole::Own, post("bob@10.0.0.2", "1")).len(), 2);
}

#[test]
fn only_post_dm_and_profile_are_deduplicated() {
    let mut alice = TestNode::new();
    let request = || Message::PeerListRequest { from: user("bob@10.0.0.2"), stamp: stamp("1") };
    for _ in 0..3 {
        assert_eq!(sends(&alice.receive("10.0.0.2:8002", SocketRole::Own, request())).len(), 1);
        alice.wait(300);
    }
}

#[test]
fn what_was_kept_before_a_start_is_not_shown_again() {
    let mut before = TestNode::new();
    let effects = before.receive("10.0.0.2:8002", SocketRole::Own, dm("bob@10.0.0.2", "alice@10.0.0.1", "1"));
    let NodeEffect::Store(entry) = &effects[0] else { panic!() };
    let mut node = Node::new(config_of(NodeKind::Person));
    node.remember_received(entry.at, ip("10.0.0.2"), &entry.talk.from, "1");
    let mut alice = TestNode { node, now: before.now.plus_ms(60_000), random: 1 };
    alice.event(NodeEvent::InterfacesChanged(vec![interface("10.0.0.1", "255.255.255.0")]));
    alice.event(NodeEvent::Started);
    alice.receive("10.0.0.2:8002", SocketRole::Own, dm("bob@10.0.0.2", "alice@10.0.0.1", "1"));
    assert_eq!(alice.dropped(DropCause::Repeated), 1);
}

#[test]
fn to_may_be_any_own_address_but_no_other_name() {
    let mut alice = TestNode::new();
    for to in ["alice@10.0.0.1", "alice@127.0.0.1"] {
        assert_eq!(alice.receive("10.0.0.2:8002", SocketRole::Own, dm("bob@10.0.0.2", to, "")).len(), 2, "{to}");
    }
    for to in ["alice2@10.0.0.1", "alice@10.0.0.7", "Alice@10.0.0.1"] {
        assert_eq!(alice.receive("10.0.0.2:8002", SocketRole::Own, dm("bob@10.0.0.2", to, "")).len(), 1, "{to}");
    }
    assert_eq!(alice.dropped(DropCause::NotForUs), 3);
}

#[test]
fn a_receiver_is_one_however_the_name_is_spelled() {
    let mut alice = TestNode::new();
    let (composed, apart) = ("Zo\u{eb}", "Zoe\u{308}");
    alice.add_known_peer(&format!("{apart}@10.0.0.2"), 8002, "b");
    for to in [composed, apart] {
        for user in [to.to_owned(), format!("{to}@10.0.0.2")] {
            let (_, message) = sent(alice.command(tell(&user, "hi")));
            let Message::Talk(Talk { to: Some(to), .. }) = message else { panic!("{message:?}") };
            assert_eq!(to.name.as_str(), apart, "as he gave it");
        }
    }
    assert!(matches!(alice.command(tell("Zoe", "hi")), Err(CommandError::UnknownUser(_))));
}

#[test]
fn a_dm_is_kept_then_shown_then_acknowledged_once_for_each_copy() {
    let mut alice = TestNode::new();
    alice.add_known_peer("bob@10.0.0.2", 8002, "b");
    // The ACK goes to the PORT of the sender, whatever the source port.
    let effects = alice.receive("10.0.0.2:40000", SocketRole::Own, dm("bob@10.0.0.2", "alice@10.0.0.1", "1"));
    let [
        NodeEffect::Store(_),
        NodeEffect::Notify(Notification::Heard { talk: Talk { body: TalkBody::Dm(_), .. }, .. }),
        NodeEffect::Send { to, message: Message::Ack { message_id } },
    ] = &effects[..]
    else {
        panic!("{effects:?}")
    };
    assert_eq!((*to, &**message_id), (addr("10.0.0.2:8002"), "1"));
    for _ in 0..3 {
        let effects = alice.receive("10.0.0.2:8002", SocketRole::Own, dm("bob@10.0.0.2", "alice@10.0.0.1", "1"));
        assert_eq!(sends(&effects), [(addr("10.0.0.2:8002"), &Message::Ack { message_id: "1".into() })]);
        assert!(matches!(
            notifications(&effects)[..],
            [Notification::DatagramDropped { cause: DropCause::Repeated, .. }]
        ));
    }
    // Not acknowledged: a DM without MESSAGE_ID, a POST, a DM to somebody else.
    for message in
        [dm("bob@10.0.0.2", "alice@10.0.0.1", ""), post("bob@10.0.0.2", "2"), dm("bob@10.0.0.2", "eve@10.0.0.1", "3")]
    {
        assert!(sends(&alice.receive("10.0.0.2:8002", SocketRole::Own, message)).is_empty());
    }
}

#[test]
fn who_never_said_that_he_acknowledges_gets_no_ack() {
    let mut alice = TestNode::new();
    alice.add_known_peer("old@10.0.0.3", 8003, "");
    let old = |id| dm("old@10.0.0.3", "alice@10.0.0.1", id);
    assert!(sends(&alice.receive("10.0.0.3:8003", SocketRole::Own, old("1"))).is_empty());
    alice.receive("10.0.0.3:8003", SocketRole::Own, Message::Ack { message_id: "x".into() });
    assert_eq!(sends(&alice.receive("10.0.0.3:8003", SocketRole::Own, old("2"))).len(), 1);
    // The same for a peer that was never announced.
    let stranger = |id| dm("who@10.0.0.4", "alice@10.0.0.1", id);
    assert!(sends(&alice.receive("10.0.0.4:8004", SocketRole::Own, stranger("1"))).is_empty());
    alice.receive("10.0.0.4:8004", SocketRole::Own, Message::Ack { message_id: "x".into() });
    let effects = alice.receive("10.0.0.4:8004", SocketRole::Own, stranger("2"));
    assert_eq!(sends(&effects), [(addr("10.0.0.4:8004"), &Message::Ack { message_id: "2".into() })]);
    assert_eq!(alice.dropped(DropCause::StrayAck), 2);
}

#[test]
fn what_could_not_be_kept_is_taken_again() {
    let mut alice = TestNode::new();
    alice.add_known_peer("bob@10.0.0.2", 8002, "b");
    let copy = || dm("bob@10.0.0.2", "alice@10.0.0.1", "1");
    let effects = alice.receive("10.0.0.2:8002", SocketRole::Own, copy());
    let NodeEffect::Store(entry) = effects[0].clone() else { panic!() };
    alice.event(NodeEvent::StoreFailed(entry));
    let effects = alice.receive("10.0.0.2:8002", SocketRole::Own, copy());
    assert!(matches!(
        effects[..],
        [
            NodeEffect::Store(_),
            NodeEffect::Notify(Notification::Heard { talk: Talk { body: TalkBody::Dm(_), .. }, .. }),
            NodeEffect::Send { .. }
        ]
    ));
    // An own DM that could not be stored was not sent, and is not repeated.
    let (_, effects) = alice.command(tell("bob", "hi")).unwrap();
    let NodeEffect::Store(entry) = effects[0].clone() else { panic!() };
    alice.event(NodeEvent::StoreFailed(entry));
    assert_eq!(alice.node.sizes().pending_dms, 0);
    assert!(sends(&alice.wait(10_000)).is_empty());
}

#[test]
fn a_dm_is_repeated_until_it_is_acknowledged_or_unconfirmed() {
    let mut alice = TestNode::new();
    alice.add_known_peer("bob@10.0.0.2", 8002, "b");
    let (done, effects) = alice.command(tell("bob", "hi")).unwrap();
    let CommandOutcome::SaidToOne { to, addr: at, message_id, awaits_ack: true } = done else { panic!("{done:?}") };
    assert_eq!((&to, at), (&user("bob@10.0.0.2"), addr("10.0.0.2:8002")));
    let [NodeEffect::Store(entry), NodeEffect::Send { message, .. }] = &effects[..] else { panic!("{effects:?}") };
    let kept = Message::Talk(entry.talk.clone());
    assert_eq!((&kept, entry.addr, entry.is_incoming), (message, Some(at), false));
    let Message::Talk(Talk { from, to: receiver, body: TalkBody::Dm(dm), .. }) = message else { panic!() };
    assert_eq!((from, receiver.as_ref(), &*dm.content), (&user("alice@10.0.0.1"), Some(&to), "hi"));
    let later: Vec<(u64, NodeEffect)> = alice
        .events(10_000)
        .into_iter()
        .filter(|(_, effect)| !matches!(effect, NodeEffect::Broadcast { .. }))
        .collect();
    let sends: Vec<u64> = later
        .iter()
        .filter(|(_, effect)| matches!(effect, NodeEffect::Send { message: m, .. } if m == message))
        .map(|e| e.0)
        .collect();
    assert_eq!(sends, [500, 1_500, 3_500]);
    assert_eq!(
        later[3..],
        [
            (5_500, NodeEffect::StoreConfirmation { message_id: message_id.clone(), confirmed: false }),
            (5_500, NodeEffect::Notify(Notification::DmUnconfirmed { to, message_id })),
        ]
    );
    assert_eq!(alice.node.sizes().pending_dms, 0);
}

#[test]
fn an_ack_counts_only_from_where_the_dm_went() {
    let mut alice = TestNode::new();
    alice.add_known_peer("bob@10.0.0.2", 8002, "b");
    alice.add_known_peer("carol@10.0.0.3", 8003, "c");
    let (message_id, _) = sent(alice.command(tell("bob", "hi")));
    let ack = |id: &str| Message::Ack { message_id: id.to_owned() };
    for from in ["10.0.0.3:8003", "10.0.0.2:8003", "10.0.0.3:8002"] {
        alice.receive(from, SocketRole::Own, ack(&message_id));
    }
    alice.receive("10.0.0.2:8002", SocketRole::Own, ack("another"));
    assert_eq!((alice.dropped(DropCause::StrayAck), alice.node.sizes().pending_dms), (4, 1));
    alice.wait(600);
    let effects = alice.receive("10.0.0.2:8002", SocketRole::Own, ack(&message_id));
    assert_eq!(
        effects,
        [
            NodeEffect::StoreConfirmation { message_id: message_id.clone(), confirmed: true },
            NodeEffect::Notify(Notification::DmConfirmed { to: user("bob@10.0.0.2"), message_id: message_id.clone() }),
        ]
    );
    assert!(sends(&alice.wait(10_000)).is_empty());
    // Further ACKs are dropped.
    alice.receive("10.0.0.2:8002", SocketRole::Own, ack(&message_id));
    assert_eq!(alice.dropped(DropCause::StrayAck), 5);
}

#[test]
fn to_who_does_not_acknowledge_a_dm_goes_once() {
    let mut alice = TestNode::new();
    alice.add_known_peer("old@10.0.0.3", 8003, "");
    let (done, _) = alice.command(tell("old", "hi")).unwrap();
    assert!(matches!(done, CommandOutcome::SaidToOne { awaits_ack: false, .. }));
    assert!(sends(&alice.wait(10_000)).is_empty());
    alice.receive("10.0.0.3:8003", SocketRole::Own, Message::Ack { message_id: "x".into() });
    let (done, _) = alice.command(tell("old", "hi")).unwrap();
    assert!(matches!(done, CommandOutcome::SaidToOne { awaits_ack: true, .. }));
}

#[test]
fn a_dm_names_one_peer() {
    let mut alice = TestNode::new();
    for (who, port, instance) in [
        ("bob@10.0.0.2", 8002, "b"),
        ("bob@10.0.0.3", 8003, "c"),
        ("b@c@10.0.0.4", 8004, "d"),
        ("dave@10.0.0.5", 8005, "e"),
    ] {
        alice.add_known_peer(who, port, instance);
    }
    alice.broadcast("10.0.0.6:8006", server("shop@10.0.0.6", 8006, "s"));
    // A server of the same name is ignored.
    alice.broadcast("10.0.0.7:8007", server("dave@10.0.0.7", 8007, "t"));
    for (to, at) in [
        ("bob@10.0.0.3", "10.0.0.3:8003"),
        ("b@c", "10.0.0.4:8004"),
        ("b@c@10.0.0.4", "10.0.0.4:8004"),
        ("dave", "10.0.0.5:8005"),
    ] {
        let (_, effects) = alice.command(tell(to, "hi")).unwrap();
        assert_eq!(sends(&effects)[0].0, addr(at), "{to}");
    }
    let counted = alice.node.counters().sent;
    for (to, expected) in [
        ("bob", "USER: 2 are called \"bob\"; say which: bob@10.0.0.2, bob@10.0.0.3"),
        ("eve", "USER: nobody here is called \"eve\"; LIST shows who is here"),
        ("Bob", "USER: nobody here is called \"Bob\"; LIST shows who is here"),
        ("shop", "USER: shop@10.0.0.6 is a server, which takes no messages"),
        ("alice", "USER: \"alice\" is yourself"),
    ] {
        assert_eq!(alice.command(tell(to, "hi")).unwrap_err().to_string(), expected);
    }
    assert_eq!(alice.node.counters().sent, counted);
}

#[test]
fn at_most_a_thousand_dms_wait() {
    let mut alice = TestNode::new();
    alice.add_known_peer("bob@10.0.0.2", 8002, "b");
    (0..10).for_each(|n| alice.add_known_peer(&format!("b{n}@10.0.1.{n}"), 8002, &format!("b{n}")));
    let mut ids = vec![sent(alice.command(tell("bob", "hi"))).0];
    ids.extend((1..1_000).map(|n| sent(alice.command(tell(&format!("b{}", n % 10), "hi"))).0));
    assert_eq!(alice.command(tell("bob", "hi")), Err(CommandError::TooManyUnconfirmed(1_000)));
    alice.receive("10.0.0.2:8002", SocketRole::Own, Message::Ack { message_id: ids[0].clone() });
    sent(alice.command(tell("bob", "hi")));
    assert_eq!(alice.node.sizes().pending_dms, 1_000);
}

#[test]
fn a_text_that_does_not_fit_is_refused_not_cut() {
    let mut alice = TestNode::new();
    alice.add_known_peer("bob@10.0.0.2", 8002, "b");
    let fits = "x".repeat(65_300);
    assert!(alice.command(say(&fits)).is_ok() && alice.command(tell("bob", &fits)).is_ok());
    for text in [String::new(), "x".repeat(65_507), "\n".repeat(22_000), "ü".repeat(33_000)] {
        for command in [say(&text), tell("bob", &text)] {
            let Err(CommandError::InvalidArgument(problem)) = alice.command(command) else { panic!("{}", text.len()) };
            assert!(problem.starts_with("TEXT: expected at "), "{problem}");
        }
    }
    // CR LF counts as one line break.
    assert!(alice.command(say(&"\r\n".repeat(21_500))).is_ok());
}

#[test]
fn a_profile_goes_to_all_and_keeps_its_limits() {
    let mut alice = TestNode::new();
    let profile = |display_name: &str, status: &str, bytes: usize| {
        let avatar = (bytes > 0).then(|| Avatar { kind: AvatarKind::Png, bytes: vec![0; bytes] });
        let (display_name, status) = (display_name.to_owned(), status.to_owned());
        NodeCommand::Say { to: None, body: Profile { display_name, status, avatar }.into() }
    };
    // A profile can be set before any peer is known.
    assert!(matches!(alice.command(profile("A", "", 0)).unwrap().0, CommandOutcome::SaidToAll { to: 0, .. }));
    alice.add_known_peer("bob@10.0.0.2", 8002, "b");
    let (done, effects) = alice.command(profile(&"ü".repeat(64), &"ü".repeat(256), 20_480)).unwrap();
    assert!(matches!(done, CommandOutcome::SaidToAll { to: 1, .. }));
    let [NodeEffect::Store(_), NodeEffect::Send { message: Message::Talk(sent), .. }] = &effects[..] else { panic!() };
    assert!(matches!(sent.body, TalkBody::Profile(_)));
    for (command, problem) in [
        (profile("", "", 0), "NAME: expected 1 to 64 characters, not 0"),
        (profile(&"x".repeat(65), "", 0), "NAME: expected 1 to 64 characters, not 65"),
        (profile("A", &"x".repeat(257), 0), "STATUS: expected 0 to 256 characters, not 257"),
        (profile("A", "", 20_481), "AVATAR-FILE: expected at most 20480 bytes, not 20481"),
    ] {
        assert_eq!(alice.command(command), Err(CommandError::InvalidArgument(problem.to_owned())));
    }
}

#[test]
fn a_server_takes_no_messages() {
    let mut alice = TestNode::started(NodeKind::Server { serves: vec![("trade".to_owned(), 7001)], cert_sha256: None });
    for message in [post("bob@10.0.0.2", "1"), dm("bob@10.0.0.2", "alice@10.0.0.1", "2")] {
        assert_eq!(alice.receive("10.0.0.2:8002", SocketRole::Own, message).len(), 1);
    }
    assert_eq!(alice.dropped(DropCause::NotAPerson), 2);
}

#[test]
fn what_is_said_and_kept_bears_the_date_of_the_wall() {
    let mut alice = TestNode::new();
    alice.add_known_peer("bob@10.0.0.2", 8002, "b");
    let ahead_ms = 10 * 365 * 24 * 3_600_000;
    alice.node.set_wall_clock_ahead(ahead_ms);
    let (_, message) = sent(alice.command(tell("bob", "hi")));
    let date = alice.now.shifted(ahead_ms);
    let Message::Talk(talk) = message else { panic!("{message:?}") };
    assert_eq!(talk.stamp.timestamp, Some(date.0 / 1000));
    let effects = alice.receive("10.0.0.2:8002", SocketRole::Own, post("bob@10.0.0.2", "p1"));
    let NodeEffect::Store(entry) = &effects[0] else { panic!("{effects:?}") };
    assert_eq!(entry.at, date);
    // Timeouts do not depend on the wall clock: a peer is forgotten after five minutes.
    assert_eq!(alice.list().len(), 1);
    alice.wait(301_000);
    assert!(alice.list().is_empty());
}
