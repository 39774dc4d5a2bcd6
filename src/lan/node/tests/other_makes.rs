//! Peers of another make: without INSTANCE, and on this host heard from several of its addresses.

use super::*;

/// As such a peer on this host announces itself, to the address that it has of us.
fn own(who: &str, from: &str, door: Door) -> (SocketAddr, Door, Message) {
    let from = addr(from);
    (from, door, Message::Discovery(announced(who, from.port(), "")))
}

/// Another one, which answers each announcement that reaches it at once, to where it came from.
fn answer_all(bench: &mut Bench, who: &str, port: u16, effects: Vec<Effect>) -> usize {
    let (mut sent, mut open) = (0, effects);
    while let Some(effect) = open.pop() {
        let from = match effect {
            // To us at that address it speaks from the same.
            Effect::Broadcast { by, message: Message::Discovery(_) } => by,
            Effect::Send { to, message: Message::Discovery(said) } if to.port() == port => {
                sent += 1;
                said.user_id.ip
            }
            _ => continue,
        };
        sent += 1;
        assert!(sent < 1_000, "a storm");
        let said = announced(who, port, "");
        open.extend(bench.hear(&format!("{from}:{port}"), Door::Own, Message::Discovery(said)));
    }
    sent
}

#[test]
fn one_that_answers_everything_on_this_host_makes_no_storm() {
    let mut bench = Bench::new();
    let mut sent = 0;
    for second in 0..120 {
        if second % 5 == 0 {
            for from in ["10.0.0.1:8002", "127.0.0.1:8002"] {
                let (from, door, message) = own("carol@10.0.0.1", from, Door::Discovery);
                let effects = bench.event(Event::Datagram { from, door, message: Ok(message), bytes: 1 });
                sent += answer_all(&mut bench, "carol@10.0.0.1", 8002, effects);
            }
        }
        let effects = bench.wait(1_000);
        sent += answer_all(&mut bench, "carol@10.0.0.1", 8002, effects);
    }
    // Two minutes: eight announcements of ours that it answers, and an answer to it each half minute that it answers.
    assert!((8..=24).contains(&sent), "{sent} datagrams to one");
    assert_eq!(bench.list().len(), 1, "{:?}", bench.list());
}

#[test]
fn it_is_one_peer_whatever_address_of_this_host_it_names() {
    let mut bench = Bench::new();
    let mut hear = |who: &str, from: &str| {
        let (from, door, message) = own(who, from, Door::Discovery);
        bench.event(Event::Datagram { from, door, message: Ok(message), bytes: 1 })
    };
    assert_eq!(came(&hear("carol@10.0.0.1", "10.0.0.1:8002")), ["carol@10.0.0.1"]);
    for (who, from) in [
        ("carol@10.0.0.1", "127.0.0.1:8002"),
        ("carol@127.0.0.1", "127.0.0.1:8002"),
        ("carol@127.0.0.1", "10.0.0.1:8002"),
    ] {
        let effects = hear(who, from);
        assert!(shown(&effects).is_empty(), "{who} from {from}: {effects:?}");
    }
    assert_eq!(bench.list(), ["carol@10.0.0.1 10.0.0.1:8002"]);
    // What goes to it goes once, and what it says is shown once, whichever of our addresses it has.
    let (_, effects) = bench.command(Command::Post { content: "hi".into() }).unwrap();
    assert_eq!(sends(&effects).len(), 1);
    let mut times_shown = |who: &str, from: &str, id: &str| {
        let effects = bench.hear(from, Door::Own, post(who, id));
        shown(&effects).iter().filter(|shown| matches!(shown, Shown::Post { .. })).count()
    };
    let copies = [
        ("carol@10.0.0.1", "10.0.0.1:8002"),
        ("carol@10.0.0.1", "127.0.0.1:8002"),
        ("carol@127.0.0.1", "127.0.0.1:8002"),
    ];
    assert_eq!(copies.map(|(who, from)| times_shown(who, from, "m1")), [1, 0, 0]);
    // Another's message of the same MESSAGE_ID is another, as is the next.
    assert_eq!(times_shown("dave@10.0.0.1", "10.0.0.1:8003", "m1"), 1);
    assert_eq!(times_shown("carol@127.0.0.1", "127.0.0.1:8002", "m2"), 1);
    // Of another host only the address that is named counts.
    assert_eq!(times_shown("carol@10.0.0.2", "10.0.0.2:8002", "m1"), 1);
    assert_eq!(times_shown("carol@10.0.0.3", "10.0.0.3:8002", "m1"), 1);
}

#[test]
fn two_that_bear_one_name_at_two_addresses_of_this_host_are_asked_which_it_is() {
    let mut bench = Bench::new();
    bench.known("carol@10.0.0.1", 8002, "");
    let effects = bench.broadcast("127.0.0.1:8003", announced("carol@127.0.0.1", 8003, ""));
    assert_eq!(told(&effects), [addr("10.0.0.1:8002")], "the old PORT is asked");
    bench.hear("10.0.0.1:8002", Door::Own, post("carol@10.0.0.1", "here"));
    bench.wait(2_000);
    assert_eq!(bench.list(), ["carol@10.0.0.1 10.0.0.1:8002"]);
    // Silent, it was another run.
    bench.broadcast("127.0.0.1:8003", announced("carol@127.0.0.1", 8003, ""));
    bench.wait(2_000);
    assert_eq!(bench.list().len(), 1);
    assert!(bench.list()[0].ends_with(":8003"), "{:?}", bench.list());
}

#[test]
fn it_takes_no_place_of_one_with_an_instance() {
    let mut bench = Bench::new();
    bench.known("bob@127.0.0.1", 8002, "b");
    // Bound to another address, the same port is another's.
    bench.known("carol@10.0.0.1", 8002, "");
    assert_eq!(bench.list(), ["bob@127.0.0.1 127.0.0.1:8002", "carol@10.0.0.1 10.0.0.1:8002"]);
    // And ours is one of two addresses as before, by its INSTANCE.
    bench.broadcast("10.0.0.1:8005", announced("erin@10.0.0.1", 8005, "e"));
    bench.broadcast("127.0.0.1:8005", announced("erin@127.0.0.1", 8005, "e"));
    assert_eq!(bench.node.peers().iter().filter(|peer| peer.user_id.name.as_str() == "erin").count(), 1);
}

#[test]
fn where_it_refuses_it_is_taken_for_where_it_is_heard() {
    let mut bench = Bench::new();
    bench.known("carol@10.0.0.1", 8002, "");
    bench.event(Event::SendRefused { to: addr("10.0.0.1:8002") });
    bench.broadcast("127.0.0.1:8002", announced("carol@10.0.0.1", 8002, ""));
    assert_eq!(bench.list(), ["carol@10.0.0.1 127.0.0.1:8002"]);
}

#[test]
fn a_quiet_one_is_answered_again_at_most_twice_a_minute() {
    // Of this host and of another; whether it broadcasts or knows where we are.
    for (who, from) in [("carol@10.0.0.1", "10.0.0.1:8002"), ("carol@10.0.0.2", "10.0.0.2:8002")] {
        for door in [Door::Discovery, Door::Own] {
            let mut bench = Bench::new();
            let mut answered_at = Vec::new();
            for second in 0..100_u64 {
                let said = Message::Discovery(announced(who, 8002, ""));
                let mut effects = bench.hear(from, door, said);
                effects.extend(bench.wait(1_000));
                if !told(&effects).is_empty() {
                    answered_at.push(second);
                }
            }
            let pauses: Vec<u64> = answered_at.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert!(answered_at.first() == Some(&0) && answered_at.len() == 4, "{door:?}: {answered_at:?}");
            assert!(pauses.iter().all(|pause| (30..=32).contains(pause)), "{door:?}: {pauses:?}");
        }
    }
    // Who says by an INSTANCE that it is the same run knows us already.
    let mut bench = Bench::new();
    bench.known("bob@10.0.0.2", 8002, "b");
    bench.wait(60_000);
    assert!(bench.broadcast("10.0.0.2:8002", announced("bob@10.0.0.2", 8002, "b")).is_empty());
    assert!(told(&bench.wait(5_000)).is_empty());
}

#[test]
fn what_was_kept_before_a_start_is_known_from_every_own_address() {
    let mut bench = Bench::asleep(settings(Kind::Person));
    let from = Some(addr("10.0.0.1:8002"));
    bench.node.remember(&Entry { at: BEGAN, incoming: true, addr: from, message: post("carol@10.0.0.1", "m1") });
    bench.event(Event::Started);
    let effects = bench.hear("127.0.0.1:8002", Door::Own, post("carol@127.0.0.1", "m1"));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Keep(_))), "{effects:?}");
}
