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
fn of_many_drops_some_are_shown_and_all_are_counted() {
    let mut bench = Bench::new();
    let mut shown_drops = 0;
    for _ in 0..1_000 {
        shown_drops += shown(&bench.hear("10.0.0.2:8002", Door::Own, post("bob@10.0.0.3", ""))).len();
    }
    assert_eq!(shown_drops, 10);
    assert_eq!(bench.dropped(Cause::WrongSource) + bench.dropped(Cause::TooMany), 1_000);
    bench.wait(1_000);
    for _ in 0..50 {
        shown_drops += shown(&bench.hear("10.0.0.2:8002", Door::Own, post("bob@10.0.0.3", ""))).len();
    }
    assert_eq!(shown_drops, 15);
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
    assert_eq!((sizes.answers, sizes.acked), (10_000, 1_000));
    assert!(sizes.addresses <= 80_000 && sizes.seen <= 200_000 && sizes.sources <= 10_000, "{sizes:?}");
    // And all of it goes when it is quiet.
    bench.wait(600_000);
    let sizes = bench.node.sizes();
    assert_eq!((sizes.peers, sizes.addresses, sizes.answers, sizes.checks), (0, 0, 0, 0));
}
