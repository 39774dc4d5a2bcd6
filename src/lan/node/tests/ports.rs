//! Who is believed to be whom: another PORT, another run, another's INSTANCE or address.

use super::*;

fn moved(effects: &[Effect]) -> Vec<(SocketAddr, SocketAddr)> {
    let moved = shown(effects).into_iter().filter_map(|shown| match shown {
        Shown::Moved { old, new, .. } => Some((*old, *new)),
        _ => None,
    });
    moved.collect()
}

#[test]
fn a_new_port_takes_over_when_the_old_one_is_silent() {
    for (door, instance) in [(Door::Own, "b2"), (Door::Discovery, "b2"), (Door::Discovery, "b"), (Door::Discovery, "")]
    {
        let mut bench = Bench::new();
        bench.known("bob@10.0.0.2", 8002, "b");
        let said = announced("bob@10.0.0.2", 8102, instance);
        let effects = bench.hear("10.0.0.2:8102", door, Message::Discovery(said.clone()));
        // The old PORT is asked.
        let asked = sends(&effects);
        let [(to, Message::Discovery(probe))] = &asked[..] else { panic!("{effects:?}") };
        assert_eq!((*to, probe.features), (addr("10.0.0.2:8002"), Features { ack: true, probe: true }));
        // That it says so again changes nothing.
        assert!(bench.hear("10.0.0.2:8102", door, Message::Discovery(said)).is_empty());
        assert!(bench.wait(999).is_empty());
        assert_eq!(bench.list(), ["bob@10.0.0.2 10.0.0.2:8002"]);
        let effects = bench.wait(1);
        assert_eq!(moved(&effects), [(addr("10.0.0.2:8002"), addr("10.0.0.2:8102"))]);
        assert!(came(&effects).is_empty());
        assert_eq!(bench.list(), ["bob@10.0.0.2 10.0.0.2:8102"]);
        // A new run does not know us.
        let answered = [told(&effects), told(&bench.wait(300))].concat();
        let new_run = instance != "b" || door == Door::Own;
        assert_eq!(answered, if new_run { vec![addr("10.0.0.2:8102")] } else { vec![] }, "{door:?} {instance:?}");
        assert_eq!(bench.node.sizes().checks, 0);
    }
}

#[test]
fn without_an_instance_another_port_is_another_run() {
    let mut bench = Bench::new();
    bench.known("bob@10.0.0.2", 8002, "");
    bench.broadcast("10.0.0.2:8102", announced("bob@10.0.0.2", 8102, ""));
    let effects = bench.wait(1_300);
    assert_eq!(moved(&effects), [(addr("10.0.0.2:8002"), addr("10.0.0.2:8102"))]);
    assert_eq!(told(&effects), [addr("10.0.0.2:8102")], "it does not know us");
    assert_eq!((bench.list(), bench.node.sizes().addresses), (vec!["bob@10.0.0.2 10.0.0.2:8102".to_owned()], 1));
}

#[test]
fn a_new_port_is_refused_when_the_old_one_answers() {
    for answer in [Message::Discovery(announced("bob@10.0.0.2", 8002, "b")), post("bob@10.0.0.2", "1")] {
        let mut bench = Bench::new();
        bench.known("bob@10.0.0.2", 8002, "b");
        bench.broadcast("10.0.0.2:8102", announced("bob@10.0.0.2", 8102, "m"));
        bench.wait(900);
        let effects = bench.hear("10.0.0.2:8002", Door::Own, answer);
        let refused = |shown: &&Shown| {
            matches!(shown, Shown::MoveRefused { old, new, .. }
                if (*old, *new) == (addr("10.0.0.2:8002"), addr("10.0.0.2:8102")))
        };
        assert!(shown(&effects).iter().any(refused), "{effects:?}");
        assert!(told(&effects).is_empty(), "it is the answer to ours");
        assert_eq!(bench.dropped(Cause::PortRefused), 1);
        bench.wait(5_000);
        assert_eq!(bench.list(), ["bob@10.0.0.2 10.0.0.2:8002"]);
    }
    // What comes after the second counts no more, and what comes from elsewhere never did.
    let mut bench = Bench::new();
    bench.known("bob@10.0.0.2", 8002, "b");
    bench.broadcast("10.0.0.2:8102", announced("bob@10.0.0.2", 8102, "m"));
    bench.hear("10.0.0.2:8003", Door::Own, post("bob@10.0.0.2", "1"));
    bench.now = bench.now.plus_ms(1_000);
    bench.hear("10.0.0.2:8002", Door::Own, post("bob@10.0.0.2", "2"));
    assert_eq!(bench.list(), ["bob@10.0.0.2 10.0.0.2:8102"]);
}

#[test]
fn changes_of_port_are_bounded() {
    let mut bench = Bench::new();
    for n in 1..=101 {
        bench.broadcast(&format!("10.0.1.{n}:8002"), announced(&format!("b@10.0.1.{n}"), 8002, &n.to_string()));
    }
    bench.wait(1_000);
    for n in 1..=101 {
        bench.broadcast(&format!("10.0.1.{n}:8003"), announced(&format!("b@10.0.1.{n}"), 8003, &format!("n{n}")));
    }
    assert_eq!((bench.node.sizes().checks, bench.dropped(Cause::TooManyChecks)), (100, 1));
    bench.broadcast("10.0.1.1:8004", announced("b@10.0.1.1", 8004, "x"));
    assert_eq!(bench.dropped(Cause::TooManyChecks), 2);
    bench.wait(1_000);
    assert_eq!(bench.node.sizes().checks, 0);
    assert_eq!(bench.list().iter().filter(|line| line.ends_with(":8003")).count(), 100);
}

#[test]
fn a_new_run_at_the_same_port_is_the_same_peer_that_knows_nobody() {
    let mut bench = Bench::new();
    bench.known("bob@10.0.0.2", 8002, "b");
    let effects = bench.broadcast("10.0.0.2:8002", announced("bob@10.0.0.2", 8002, "b2"));
    assert!(came(&effects).is_empty());
    assert_eq!(told(&bench.wait(300)), [addr("10.0.0.2:8002")]);
    let [bob] = &bench.node.peers()[..] else { panic!() };
    assert_eq!(bob.instance.as_deref(), Some("b2"));
    // The former run is over, on all its interfaces.
    bench.broadcast("10.0.0.3:8002", announced("bob@10.0.0.3", 8002, "b2"));
    bench.broadcast("10.0.0.3:8002", announced("bob@10.0.0.3", 8002, "b3"));
    assert_eq!(bench.list(), ["bob@10.0.0.3 10.0.0.3:8002"]);
    assert_eq!(bench.node.sizes().addresses, 1);
    // Nobody else on its host can say so for it.
    bench.broadcast("10.0.0.3:8777", announced("bob@10.0.0.3", 8002, "m"));
    assert_eq!((bench.node.peers()[0].instance.as_deref(), bench.dropped(Cause::Taken)), (Some("b3"), 1));
}

#[test]
fn a_new_run_that_is_heard_through_one_interface_after_the_other() {
    let mut bench = Bench::new();
    bench.known("bob@10.0.0.2", 8002, "b");
    bench.broadcast("10.0.9.2:8002", announced("bob@10.0.9.2", 8002, "b"));
    bench.broadcast("10.0.0.2:8102", announced("bob@10.0.0.2", 8102, "b2"));
    bench.broadcast("10.0.9.2:8102", announced("bob@10.0.9.2", 8102, "b2"));
    let effects = bench.wait(1_000);
    assert_eq!(moved(&effects).len(), 1, "the former run is over with the first");
    let [bob] = &bench.node.peers()[..] else { panic!("{:?}", bench.list()) };
    assert!(bob.addresses.len() == 2 && bob.addresses.iter().all(|(_, addr)| addr.port() == 8102));
    assert_eq!(bench.node.sizes().addresses, 2);
}

#[test]
fn an_instance_or_an_address_of_another_is_refused() {
    let mut bench = Bench::new();
    bench.known("bob@10.0.0.2", 8002, "b");
    for (from, said) in [
        // Another name, elsewhere, with bob's INSTANCE.
        ("10.0.0.3:8003", announced("mallory@10.0.0.3", 8003, "b")),
        // Another name at bob's PORT, but not sent from there.
        ("10.0.0.2:8777", announced("mallory@10.0.0.2", 8002, "m")),
        ("10.0.0.2:8777", announced("mallory@10.0.0.2", 8002, "b")),
        ("10.0.0.2:8777", announced("mallory@10.0.0.2", 8002, "")),
        // Our own PORT.
        ("10.0.0.1:8777", announced("mallory@10.0.0.1", 8001, "m")),
    ] {
        let effects = bench.broadcast(from, said.clone());
        assert!(matches!(shown(&effects)[..], [Shown::Dropped { cause: Cause::Taken, .. }]), "{said:?} {effects:?}");
    }
    assert_eq!((bench.dropped(Cause::Taken), bench.list()), (5, vec!["bob@10.0.0.2 10.0.0.2:8002".to_owned()]));
    // From the very address it is another program there.
    let effects = bench.broadcast("10.0.0.2:8002", announced("carol@10.0.0.2", 8002, "c"));
    assert!(matches!(shown(&effects)[..], [Shown::Left { why: Left::Replaced, .. }, Shown::Came(_)]), "{effects:?}");
    assert_eq!(bench.list(), ["carol@10.0.0.2 10.0.0.2:8002"]);
}

#[test]
fn a_peer_that_goes_by_another_name_is_the_same() {
    let mut bench = Bench::new();
    bench.known("bob@10.0.0.2", 8002, "b");
    bench.broadcast("10.0.9.2:8002", announced("bob@10.0.9.2", 8002, "b"));
    let effects = bench.broadcast("10.0.0.2:8002", announced("bob2@10.0.0.2", 8002, "b"));
    assert!(matches!(shown(&effects)[..], [Shown::PeerRenamed { .. }]), "{effects:?}");
    assert_eq!(bench.list(), ["bob2@10.0.0.2 10.0.0.2:8002"]);
    // The name is free, and a claim to it that was about to be looked into is void.
    bench.known("bob@10.0.0.3", 8003, "x");
    bench.broadcast("10.0.0.3:8004", announced("bob@10.0.0.3", 8004, "y"));
    assert_eq!(bench.node.sizes().checks, 1);
    assert_eq!(came(&bench.broadcast("10.0.0.3:8004", announced("bob2@10.0.0.3", 8004, "y"))), ["bob2@10.0.0.3"]);
    assert_eq!(bench.node.sizes().checks, 0);
    assert!(moved(&bench.wait(2_000)).is_empty());
}

#[test]
fn two_that_exchange_their_names_are_not_asked_for_ever() {
    let mut bench = Bench::new();
    bench.known("bob@10.0.0.2", 8002, "b");
    bench.known("bob2@10.0.0.2", 8003, "c");
    // Both start again: now the other one was first.
    let answers = [
        ("10.0.0.2:8003", announced("bob@10.0.0.2", 8003, "d")),
        ("10.0.0.2:8002", announced("bob2@10.0.0.2", 8002, "e")),
    ];
    let mut asked = sends(&bench.broadcast(answers[0].0, answers[0].1.clone())).len();
    for round in 0..10 {
        let (from, said) = &answers[(round + 1) % 2];
        asked += sends(&bench.direct(from, said.clone())).len();
    }
    assert!(asked < 8, "{asked}");
    assert_eq!(bench.list(), ["bob@10.0.0.2 10.0.0.2:8003", "bob2@10.0.0.2 10.0.0.2:8002"]);
    // What the old PORT says as somebody else, short of announcing it, decides nothing.
    bench.broadcast("10.0.0.2:8009", announced("bob@10.0.0.2", 8009, "f"));
    bench.hear("10.0.0.2:8003", Door::Own, post("carol@10.0.0.2", "1"));
    assert_eq!(bench.node.sizes().checks, 1);
}
