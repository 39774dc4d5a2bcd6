//! Floods: what is dropped is counted, and nothing grows.

use super::*;

#[test]
fn a_source_may_send_two_hundred_at_once_and_a_hundred_a_second() {
    let mut bench = Bench::new();
    let taken = |bench: &mut Bench, from: &str| {
        let hear = |_| bench.hear(from, Door::Own, post("bob@10.0.0.2", ""));
        (0..500)
            .map(hear)
            .filter(|effects| shown(effects).iter().any(|shown| matches!(shown, Shown::Post { .. })))
            .count()
    };
    assert_eq!(taken(&mut bench, "10.0.0.2:8002"), 200);
    assert_eq!(bench.dropped(Cause::TooMany), 300);
    assert_eq!(taken(&mut bench, "10.0.0.2:8003"), 200, "another source");
    bench.wait(1_000);
    assert_eq!(taken(&mut bench, "10.0.0.2:8002"), 100);
}

#[test]
fn every_drop_is_shown_and_of_a_flood_how_many_there_were() {
    let mut bench = Bench::new();
    let lie = |bench: &mut Bench, from: &str| shown(&bench.hear(from, Door::Own, post("bob@10.0.0.3", ""))).len();
    let one_by_one: usize = (0..1_000).map(|_| lie(&mut bench, "10.0.0.2:8002")).sum();
    assert_eq!((one_by_one, bench.dropped(Cause::WrongSource), bench.dropped(Cause::TooMany)), (200, 200, 800));
    // The rest a second later, in one line.
    let effects = bench.events(5_000);
    let [(1_000, Effect::Show(Shown::DroppedMore { counts }))] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(*counts, [(Cause::TooMany, 800)]);
    // From then on one by one again.
    assert_eq!((0..150).map(|n| lie(&mut bench, &format!("10.0.1.{n}:8002"))).sum::<usize>(), 150);
    assert!(bench.wait(5_000).is_empty());
    let terse = [Shown::DroppedMore { counts: vec![] }].iter().filter(|shown| shown.is_terse()).count();
    assert_eq!(terse, 0);
}

#[test]
fn an_ack_that_is_awaited_is_never_one_too_many() {
    let mut bench = Bench::new();
    bench.known("bob@10.0.0.2", 8002, "b");
    let (done, _) = bench.command(Command::Dm { to: "bob".into(), content: "hi".into() }).unwrap();
    let Done::DmSent { message_id, .. } = done else { panic!("{done:?}") };
    for _ in 0..300 {
        bench.hear("10.0.0.2:8002", Door::Own, post("bob@10.0.0.2", ""));
    }
    // Of others he may not send more for that.
    bench.hear("10.0.0.2:8002", Door::Own, Message::Ack { message_id: "x".into() });
    assert_eq!((bench.dropped(Cause::TooMany), bench.dropped(Cause::StrayAck)), (101, 0));
    let effects = bench.hear("10.0.0.2:8002", Door::Own, Message::Ack { message_id });
    assert!(matches!(effects[..], [Effect::KeepFate { confirmed: true, .. }, Effect::Show(_)]), "{effects:?}");
}

/// What is sent as fast as it may be is taken by such a peer.
#[test]
fn nobody_is_sent_more_than_he_takes() {
    let (mut bench, mut bob) = (Bench::new(), Bench::new());
    bench.known("bob@10.0.0.2", 8002, "");
    let (mut sent, mut refused) = (0, 0);
    while sent < 500 {
        bob.now = bench.now;
        match bench.command(Command::Post { content: "hi".into() }) {
            Ok((_, effects)) => {
                sent += 1;
                for (_, message) in sends(&effects) {
                    bob.hear("10.0.0.1:8001", Door::Own, message.clone());
                }
            }
            Err(CommandError::TooFast { again_in_ms }) => {
                assert!((1..=13).contains(&again_in_ms), "{again_in_ms}");
                refused += 1;
                bench.wait(again_in_ms);
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!((refused, bob.dropped(Cause::TooMany), bob.dropped(Cause::WrongSource)), (400, 0, 0));
    // Whoever is refused has taken nobody's turn.
    bench.known("carol@10.0.0.3", 8003, "");
    let dm = |to: &str| Command::Dm { to: to.into(), content: "hi".into() };
    while bench.command(dm("bob")).is_ok() {}
    for _ in 0..200 {
        assert!(matches!(bench.command(Command::Post { content: "hi".into() }), Err(CommandError::TooFast { .. })));
    }
    assert_eq!((0..200).filter(|_| bench.command(dm("carol")).is_ok()).count(), 100);
}

#[test]
fn no_table_grows_past_its_bound() {
    let mut bench = Bench::new();
    for n in 0..60_000_u32 {
        let from = Ipv4Addr::from(0x0b00_0000 + n);
        let source = format!("{from}:8002");
        let id = n.to_string();
        let said = announced(&format!("p@{from}"), 8002, &id);
        bench.broadcast(&source, said.clone());
        bench.hear(&source, Door::Own, post(&format!("p@{from}"), &id));
        bench.hear(&source, Door::Own, Message::Ack { message_id: id.clone() });
        bench.broadcast(&source, announced(&format!("p@{from}"), 8003, &format!("x{n}")));
        bench.broadcast("10.0.0.1:8002", announced("alice@10.0.0.1", 8002, &format!("4r{n}")));
        let list = (0..200)
            .map(|m| (user("q@10.0.0.9"), Some(SocketAddr::from((Ipv4Addr::from(n * 200 + m + (12 << 24)), 9)))));
        if n % 100 == 0 {
            let list = crate::lan::wire::PeerList {
                from: user(&format!("p@{from}")),
                peers: list.collect(),
                stamp: stamp(""),
            };
            bench.hear(&source, Door::Own, Message::PeerListResponse(list));
        }
        if n % 1_000 == 0 {
            bench.now = bench.now.plus_ms(1);
        }
    }
    let sizes = bench.node.sizes();
    assert_eq!((sizes.peers, sizes.senders, sizes.rivals, sizes.checks), (10_000, 10_000, 16, 100));
    assert_eq!(sizes.asked, 0);
    assert!(sizes.answers > 9_900 && sizes.answers <= 10_000, "{sizes:?}");
    assert_eq!(sizes.acked, 1_000);
    assert!(sizes.addresses <= 80_000 && sizes.seen <= 200_000 && sizes.sources <= 10_000, "{sizes:?}");
    // And all of it goes when it is quiet.
    bench.wait(600_000);
    let sizes = bench.node.sizes();
    assert_eq!((sizes.peers, sizes.addresses, sizes.answers, sizes.checks), (0, 0, 0, 0));
}
