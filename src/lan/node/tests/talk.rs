//! POST, DM, PROFILE and ACK.

use super::*;
use crate::lan::wire::{Avatar, AvatarKind};

fn say(text: &str) -> Command {
    Command::Post { content: text.to_owned() }
}

fn tell(to: &str, text: &str) -> Command {
    Command::Dm { to: to.to_owned(), content: text.to_owned() }
}

fn server(who: &str, port: u16, instance: &str) -> Discovery {
    Discovery { serves: vec![("trade".to_owned(), 7001)], ..announced(who, port, instance) }
}

/// What a DM consists of: its id, and the one datagram of it.
fn sent(result: Result<(Done, Vec<Effect>), CommandError>) -> (String, Message) {
    let (done, effects) = result.unwrap();
    let Done::DmSent { message_id, .. } = done else { panic!("{done:?}") };
    let sends = sends(&effects);
    let [(_, message)] = &sends[..] else { panic!("{effects:?}") };
    (message_id, (*message).clone())
}

#[test]
fn a_post_goes_to_every_known_peer_directly() {
    let mut bench = Bench::new();
    assert_eq!(bench.command(say("hi")), Err(CommandError::Alone));
    bench.known("bob@10.0.0.2", 8002, "b");
    bench.known("carol@127.0.0.1", 8003, "");
    bench.broadcast("10.0.0.5:8006", server("shop@10.0.0.5", 8006, "s"));
    let (done, effects) = bench.command(say("hi\nthere")).unwrap();
    let Done::Posted { to: 2, message_id } = done else { panic!("{done:?}") };
    let Effect::Keep(entry) = &effects[0] else { panic!("kept first: {effects:?}") };
    assert!(!entry.incoming && entry.addr.is_none() && entry.at == bench.now);
    let sends = sends(&effects);
    let mut to: Vec<(SocketAddr, String)> = Vec::new();
    for (addr, message) in sends {
        let Message::Post(post) = message else { panic!("{message:?}") };
        assert_eq!((&*post.content, post.stamp.message_id.as_ref()), ("hi\nthere", Some(&message_id)));
        to.push((addr, post.user_id.to_string()));
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
    let mut bench = Bench::new();
    let profile = Message::Profile(Profile {
        user_id: user("bob@10.0.0.2"),
        display_name: "Bob".into(),
        status: "here".into(),
        avatar: None,
        stamp: stamp("3"),
    });
    // Nobody announced himself: it is shown all the same.
    for message in [post("bob@10.0.0.2", "1"), dm("bob@10.0.0.2", "alice@10.0.0.1", "2"), profile] {
        let effects = bench.hear("10.0.0.2:8002", Door::Own, message.clone());
        let [Effect::Keep(entry), Effect::Show(_)] = &effects[..] else { panic!("{effects:?}") };
        assert_eq!((entry.incoming, entry.addr, &entry.message), (true, Some(addr("10.0.0.2:8002")), &message));
        let again = bench.hear("10.0.0.2:8002", Door::Own, message);
        assert!(matches!(shown(&again)[..], [Shown::Dropped { cause: Cause::Repeated, .. }]) && again.len() == 1);
    }
    assert_eq!(bench.dropped(Cause::Repeated), 3);
    // From another port it is the same message; by another sender, or without an id, it is another.
    assert_eq!(bench.hear("10.0.0.2:8003", Door::Own, post("bob@10.0.0.2", "1")).len(), 1);
    assert_eq!(bench.hear("10.0.0.2:8002", Door::Own, post("bobby@10.0.0.2", "1")).len(), 2);
    assert_eq!(bench.hear("10.0.0.3:8002", Door::Own, post("bob@10.0.0.3", "1")).len(), 2);
    assert_eq!(bench.hear("10.0.0.2:8002", Door::Own, post("bob@10.0.0.2", "")).len(), 2);
    assert_eq!(bench.hear("10.0.0.2:8002", Door::Own, post("bob@10.0.0.2", "")).len(), 2);
    // An hour later it is forgotten.
    bench.wait(3_600_000);
    assert_eq!(bench.hear("10.0.0.2:8002", Door::Own, post("bob@10.0.0.2", "1")).len(), 2);
}

#[test]
fn only_post_dm_and_profile_are_deduplicated() {
    let mut bench = Bench::new();
    let request = || Message::PeerListRequest { from: user("bob@10.0.0.2"), stamp: stamp("1") };
    for _ in 0..3 {
        assert_eq!(sends(&bench.hear("10.0.0.2:8002", Door::Own, request())).len(), 1);
        bench.wait(300);
    }
}

#[test]
fn what_was_kept_before_a_start_is_not_shown_again() {
    let mut before = Bench::new();
    let effects = before.hear("10.0.0.2:8002", Door::Own, dm("bob@10.0.0.2", "alice@10.0.0.1", "1"));
    let Effect::Keep(entry) = &effects[0] else { panic!() };
    let mut node = Node::new(settings(Kind::Person));
    node.remember(entry);
    let mut bench = Bench { node, now: before.now.plus_ms(60_000), random: 1 };
    bench.event(Event::Interfaces(vec![interface("10.0.0.1", "255.255.255.0")]));
    bench.event(Event::Started);
    bench.hear("10.0.0.2:8002", Door::Own, dm("bob@10.0.0.2", "alice@10.0.0.1", "1"));
    assert_eq!(bench.dropped(Cause::Repeated), 1);
}

#[test]
fn to_may_be_any_own_address_but_no_other_name() {
    let mut bench = Bench::new();
    for to in ["alice@10.0.0.1", "alice@127.0.0.1"] {
        assert_eq!(bench.hear("10.0.0.2:8002", Door::Own, dm("bob@10.0.0.2", to, "")).len(), 2, "{to}");
    }
    for to in ["alice2@10.0.0.1", "alice@10.0.0.7", "Alice@10.0.0.1"] {
        assert_eq!(bench.hear("10.0.0.2:8002", Door::Own, dm("bob@10.0.0.2", to, "")).len(), 1, "{to}");
    }
    assert_eq!(bench.dropped(Cause::NotForUs), 3);
}

#[test]
fn a_receiver_is_one_however_the_name_is_spelled() {
    let mut bench = Bench::new();
    let (composed, apart) = ("Zo\u{eb}", "Zoe\u{308}");
    bench.known(&format!("{apart}@10.0.0.2"), 8002, "b");
    for to in [composed, apart] {
        for wanted in [to.to_owned(), format!("{to}@10.0.0.2")] {
            let (_, message) = sent(bench.command(tell(&wanted, "hi")));
            let Message::Dm(Dm { to, .. }) = message else { panic!("{message:?}") };
            assert_eq!(to.name.as_str(), apart, "as he gave it");
        }
    }
    assert!(matches!(bench.command(tell("Zoe", "hi")), Err(CommandError::Nobody(_))));
}

#[test]
fn a_dm_is_kept_then_shown_then_acknowledged_once_for_each_copy() {
    let mut bench = Bench::new();
    bench.known("bob@10.0.0.2", 8002, "b");
    // To the sender's PORT, wherever it came from.
    let effects = bench.hear("10.0.0.2:40000", Door::Own, dm("bob@10.0.0.2", "alice@10.0.0.1", "1"));
    let [Effect::Keep(_), Effect::Show(Shown::Dm { .. }), Effect::Send { to, message: Message::Ack { message_id } }] =
        &effects[..]
    else {
        panic!("{effects:?}")
    };
    assert_eq!((*to, &**message_id), (addr("10.0.0.2:8002"), "1"));
    for _ in 0..3 {
        let effects = bench.hear("10.0.0.2:8002", Door::Own, dm("bob@10.0.0.2", "alice@10.0.0.1", "1"));
        assert_eq!(sends(&effects), [(addr("10.0.0.2:8002"), &Message::Ack { message_id: "1".into() })]);
        assert!(matches!(shown(&effects)[..], [Shown::Dropped { cause: Cause::Repeated, .. }]));
    }
    // Nothing to acknowledge: no id, a POST, for somebody else.
    for message in
        [dm("bob@10.0.0.2", "alice@10.0.0.1", ""), post("bob@10.0.0.2", "2"), dm("bob@10.0.0.2", "eve@10.0.0.1", "3")]
    {
        assert!(sends(&bench.hear("10.0.0.2:8002", Door::Own, message)).is_empty());
    }
}

#[test]
fn who_never_said_that_he_acknowledges_gets_no_ack() {
    let mut bench = Bench::new();
    bench.known("old@10.0.0.3", 8003, "");
    let old = |id| dm("old@10.0.0.3", "alice@10.0.0.1", id);
    assert!(sends(&bench.hear("10.0.0.3:8003", Door::Own, old("1"))).is_empty());
    bench.hear("10.0.0.3:8003", Door::Own, Message::Ack { message_id: "x".into() });
    assert_eq!(sends(&bench.hear("10.0.0.3:8003", Door::Own, old("2"))).len(), 1);
    // So it is with one that never announced himself.
    let stranger = |id| dm("who@10.0.0.4", "alice@10.0.0.1", id);
    assert!(sends(&bench.hear("10.0.0.4:8004", Door::Own, stranger("1"))).is_empty());
    bench.hear("10.0.0.4:8004", Door::Own, Message::Ack { message_id: "x".into() });
    let effects = bench.hear("10.0.0.4:8004", Door::Own, stranger("2"));
    assert_eq!(sends(&effects), [(addr("10.0.0.4:8004"), &Message::Ack { message_id: "2".into() })]);
    assert_eq!(bench.dropped(Cause::StrayAck), 2);
}

#[test]
fn what_could_not_be_kept_is_taken_again() {
    let mut bench = Bench::new();
    bench.known("bob@10.0.0.2", 8002, "b");
    let copy = || dm("bob@10.0.0.2", "alice@10.0.0.1", "1");
    let effects = bench.hear("10.0.0.2:8002", Door::Own, copy());
    let Effect::Keep(entry) = effects[0].clone() else { panic!() };
    bench.event(Event::NotKept(entry));
    let effects = bench.hear("10.0.0.2:8002", Door::Own, copy());
    assert!(matches!(effects[..], [Effect::Keep(_), Effect::Show(Shown::Dm { .. }), Effect::Send { .. }]));
    // One's own that could not be kept was not sent, and is not repeated.
    let (_, effects) = bench.command(tell("bob", "hi")).unwrap();
    let Effect::Keep(entry) = effects[0].clone() else { panic!() };
    bench.event(Event::NotKept(entry));
    assert_eq!(bench.node.sizes().waiting, 0);
    assert!(sends(&bench.wait(10_000)).is_empty());
}

#[test]
fn a_dm_is_repeated_until_it_is_acknowledged_or_unconfirmed() {
    let mut bench = Bench::new();
    bench.known("bob@10.0.0.2", 8002, "b");
    let (done, effects) = bench.command(tell("bob", "hi")).unwrap();
    let Done::DmSent { to, addr: at, message_id, awaits_ack: true } = done else { panic!("{done:?}") };
    assert_eq!((&to, at), (&user("bob@10.0.0.2"), addr("10.0.0.2:8002")));
    let [Effect::Keep(entry), Effect::Send { message, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((&entry.message, entry.addr, entry.incoming), (message, Some(at), false));
    let Message::Dm(said) = message else { panic!() };
    assert_eq!((&said.from, &said.to, &*said.content), (&user("alice@10.0.0.1"), &to, "hi"));
    let later: Vec<(u64, Effect)> =
        bench.events(10_000).into_iter().filter(|(_, effect)| !matches!(effect, Effect::Broadcast { .. })).collect();
    let sends: Vec<u64> = later
        .iter()
        .filter(|(_, effect)| matches!(effect, Effect::Send { message: m, .. } if m == message))
        .map(|e| e.0)
        .collect();
    assert_eq!(sends, [500, 1_500, 3_500]);
    assert_eq!(
        later[3..],
        [
            (5_500, Effect::KeepFate { message_id: message_id.clone(), confirmed: false }),
            (5_500, Effect::Show(Shown::DmUnconfirmed { to, message_id })),
        ]
    );
    assert_eq!(bench.node.sizes().waiting, 0);
}

#[test]
fn an_ack_counts_only_from_where_the_dm_went() {
    let mut bench = Bench::new();
    bench.known("bob@10.0.0.2", 8002, "b");
    bench.known("carol@10.0.0.3", 8003, "c");
    let (message_id, _) = sent(bench.command(tell("bob", "hi")));
    let ack = |id: &str| Message::Ack { message_id: id.to_owned() };
    for from in ["10.0.0.3:8003", "10.0.0.2:8003", "10.0.0.3:8002"] {
        bench.hear(from, Door::Own, ack(&message_id));
    }
    bench.hear("10.0.0.2:8002", Door::Own, ack("another"));
    assert_eq!((bench.dropped(Cause::StrayAck), bench.node.sizes().waiting), (4, 1));
    bench.wait(600);
    let effects = bench.hear("10.0.0.2:8002", Door::Own, ack(&message_id));
    assert_eq!(
        effects,
        [
            Effect::KeepFate { message_id: message_id.clone(), confirmed: true },
            Effect::Show(Shown::DmConfirmed { to: user("bob@10.0.0.2"), message_id: message_id.clone() }),
        ]
    );
    assert!(sends(&bench.wait(10_000)).is_empty());
    // The ACK of another copy says nothing new.
    bench.hear("10.0.0.2:8002", Door::Own, ack(&message_id));
    assert_eq!(bench.dropped(Cause::StrayAck), 5);
}

#[test]
fn to_who_does_not_acknowledge_a_dm_goes_once() {
    let mut bench = Bench::new();
    bench.known("old@10.0.0.3", 8003, "");
    let (done, _) = bench.command(tell("old", "hi")).unwrap();
    assert!(matches!(done, Done::DmSent { awaits_ack: false, .. }));
    assert!(sends(&bench.wait(10_000)).is_empty());
    bench.hear("10.0.0.3:8003", Door::Own, Message::Ack { message_id: "x".into() });
    let (done, _) = bench.command(tell("old", "hi")).unwrap();
    assert!(matches!(done, Done::DmSent { awaits_ack: true, .. }));
}

#[test]
fn a_dm_names_one_peer() {
    let mut bench = Bench::new();
    for (who, port, instance) in [
        ("bob@10.0.0.2", 8002, "b"),
        ("bob@10.0.0.3", 8003, "c"),
        ("b@c@10.0.0.4", 8004, "d"),
        ("dave@10.0.0.5", 8005, "e"),
    ] {
        bench.known(who, port, instance);
    }
    bench.broadcast("10.0.0.6:8006", server("shop@10.0.0.6", 8006, "s"));
    // A server of the same name is not meant.
    bench.broadcast("10.0.0.7:8007", server("dave@10.0.0.7", 8007, "t"));
    for (to, at) in [
        ("bob@10.0.0.3", "10.0.0.3:8003"),
        ("b@c", "10.0.0.4:8004"),
        ("b@c@10.0.0.4", "10.0.0.4:8004"),
        ("dave", "10.0.0.5:8005"),
    ] {
        let (_, effects) = bench.command(tell(to, "hi")).unwrap();
        assert_eq!(sends(&effects)[0].0, addr(at), "{to}");
    }
    let counted = bench.node.counters().sent;
    for (to, expected) in [
        ("bob", "USER: 2 are called \"bob\"; say which: bob@10.0.0.2, bob@10.0.0.3"),
        ("eve", "USER: nobody here is called \"eve\"; LIST shows who is here"),
        ("Bob", "USER: nobody here is called \"Bob\"; LIST shows who is here"),
        ("shop", "USER: shop@10.0.0.6 is a server, which takes no messages"),
        ("alice", "USER: \"alice\" is yourself"),
    ] {
        assert_eq!(bench.command(tell(to, "hi")).unwrap_err().to_string(), expected);
    }
    assert_eq!(bench.node.counters().sent, counted);
}

#[test]
fn at_most_a_thousand_dms_wait() {
    let mut bench = Bench::new();
    bench.known("bob@10.0.0.2", 8002, "b");
    (0..10).for_each(|n| bench.known(&format!("b{n}@10.0.1.{n}"), 8002, &format!("b{n}")));
    let mut ids = vec![sent(bench.command(tell("bob", "hi"))).0];
    ids.extend((1..1_000).map(|n| sent(bench.command(tell(&format!("b{}", n % 10), "hi"))).0));
    assert_eq!(bench.command(tell("bob", "hi")), Err(CommandError::Busy(1_000)));
    bench.hear("10.0.0.2:8002", Door::Own, Message::Ack { message_id: ids[0].clone() });
    sent(bench.command(tell("bob", "hi")));
    assert_eq!(bench.node.sizes().waiting, 1_000);
}

#[test]
fn a_text_that_does_not_fit_is_refused_not_cut() {
    let mut bench = Bench::new();
    bench.known("bob@10.0.0.2", 8002, "b");
    let fits = "x".repeat(65_300);
    assert!(bench.command(say(&fits)).is_ok() && bench.command(tell("bob", &fits)).is_ok());
    for text in [String::new(), "x".repeat(65_507), "\n".repeat(22_000), "ü".repeat(33_000)] {
        for command in [say(&text), tell("bob", &text)] {
            let Err(CommandError::Bad(problem)) = bench.command(command) else { panic!("{}", text.len()) };
            assert!(problem.starts_with("TEXT: expected at "), "{problem}");
        }
    }
    // A line break of two characters is one.
    assert!(bench.command(say(&"\r\n".repeat(21_500))).is_ok());
}

#[test]
fn a_profile_goes_to_all_and_keeps_its_limits() {
    let mut bench = Bench::new();
    let profile = |display_name: &str, status: &str, bytes: usize| Command::Profile {
        display_name: display_name.to_owned(),
        status: status.to_owned(),
        avatar: (bytes > 0).then(|| Avatar { kind: AvatarKind::Png, bytes: vec![0; bytes] }),
    };
    // One may have a profile before anyone is there.
    assert!(matches!(bench.command(profile("A", "", 0)).unwrap().0, Done::ProfileSent { to: 0, .. }));
    bench.known("bob@10.0.0.2", 8002, "b");
    let (done, effects) = bench.command(profile(&"ü".repeat(64), &"ü".repeat(256), 20_480)).unwrap();
    assert!(matches!(done, Done::ProfileSent { to: 1, .. }));
    assert!(matches!(effects[..], [Effect::Keep(_), Effect::Send { message: Message::Profile(_), .. }]));
    for (command, problem) in [
        (profile("", "", 0), "NAME: expected 1 to 64 characters, not 0"),
        (profile(&"x".repeat(65), "", 0), "NAME: expected 1 to 64 characters, not 65"),
        (profile("A", &"x".repeat(257), 0), "STATUS: expected 0 to 256 characters, not 257"),
        (profile("A", "", 20_481), "AVATAR-FILE: expected at most 20480 bytes, not 20481"),
    ] {
        assert_eq!(bench.command(command), Err(CommandError::Bad(problem.to_owned())));
    }
}

#[test]
fn a_server_takes_no_messages() {
    let mut bench = Bench::of(Kind::Server { serves: vec![("trade".to_owned(), 7001)], cert_sha256: None });
    for message in [post("bob@10.0.0.2", "1"), dm("bob@10.0.0.2", "alice@10.0.0.1", "2")] {
        assert_eq!(bench.hear("10.0.0.2:8002", Door::Own, message).len(), 1);
    }
    assert_eq!(bench.dropped(Cause::NotAPerson), 2);
}

#[test]
fn what_is_said_and_kept_bears_the_date_of_the_wall() {
    let mut bench = Bench::new();
    bench.known("bob@10.0.0.2", 8002, "b");
    let ahead_ms = 10 * 365 * 24 * 3_600_000;
    bench.node.set_wall_ahead(ahead_ms);
    let (_, message) = sent(bench.command(tell("bob", "hi")));
    let date = bench.now.shifted(ahead_ms);
    assert_eq!(message.stamp().unwrap().timestamp, Some(date.0 / 1000));
    let effects = bench.hear("10.0.0.2:8002", Door::Own, post("bob@10.0.0.2", "p1"));
    let Effect::Keep(entry) = &effects[0] else { panic!("{effects:?}") };
    assert_eq!(entry.at, date);
    // What it waits for is waited for as before: a peer is forgotten after five minutes.
    assert_eq!(bench.list().len(), 1);
    bench.wait(301_000);
    assert!(bench.list().is_empty());
}
