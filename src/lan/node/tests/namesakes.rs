//! A peer that meets itself: two of one name on one host.

use super::*;

fn renamed(effects: &[Effect]) -> Vec<String> {
    let renamed = shown(effects).into_iter().filter_map(|shown| match shown {
        Shown::Renamed { new, .. } => Some(new.to_string()),
        _ => None,
    });
    renamed.collect()
}

fn rival(instance: &str) -> Discovery {
    announced("alice@10.0.0.1", 8002, instance)
}

#[test]
fn the_newer_one_takes_the_next_free_name_and_says_so() {
    let mut bench = Bench::of(Kind::Person);
    bench.broadcast("127.0.0.1:8003", announced("alice2@127.0.0.1", 8003, "x"));
    bench.broadcast("10.0.0.3:8003", announced("alice3@10.0.0.3", 8003, "y"));
    bench.wait(1_000);
    // "6…" is larger than ours: of two young ones we are the one to yield, and of a young and an old one too.
    let effects = bench.direct("10.0.0.1:8002", rival("6"));
    assert_eq!(renamed(&effects), ["alice3"]);
    assert!(broadcasts(&effects).iter().all(|(_, said)| said.user_id.name == name("alice3")));
    assert_eq!(broadcasts(&effects).len(), 2);
    // The other is asked to say again who it is: what it has said came too early to be believed.
    let asks = |effect: &Effect| {
        matches!(effect, Effect::Send { to, message: Message::Discovery(said) }
        if *to == addr("10.0.0.1:8002") && said.features.probe && said.user_id.name == name("alice3"))
    };
    assert_eq!(effects.iter().filter(|effect| asks(effect)).count(), 1);
    assert_eq!(bench.node.name(), &name("alice3"));
    // From now on it goes by that name, and the other can be known.
    let effects = bench.broadcast("10.0.0.1:8002", rival("6"));
    assert_eq!(came(&effects), ["alice@10.0.0.1"]);
    assert!(!shown(&bench.hear("10.0.0.9:8009", Door::Own, dm("bob@10.0.0.9", "alice3@10.0.0.1", "1"))).is_empty());
    bench.hear("10.0.0.9:8009", Door::Own, dm("bob@10.0.0.9", "alice@10.0.0.1", "2"));
    assert_eq!(bench.dropped(Cause::NotForUs), 1);
}

#[test]
fn the_older_one_keeps_its_name_and_tells_the_other_of_itself() {
    for instance in ["4", "6"] {
        let mut bench = Bench::new();
        let effects = bench.broadcast("10.0.0.1:8002", rival(instance));
        assert_eq!((renamed(&effects).len(), told(&effects)), (0, vec![addr("10.0.0.1:8002")]));
        assert!(bench.list().is_empty(), "it is about to take another name");
        // Its answer to that is the end of it.
        assert!(bench.direct("10.0.0.1:8002", rival(instance)).is_empty());
        assert!(renamed(&bench.wait(20_000)).is_empty());
        assert_eq!(bench.node.name(), &name("alice"));
    }
}

#[test]
fn a_young_one_with_the_larger_instance_gives_the_other_half_a_second() {
    let mut bench = Bench::of(Kind::Person);
    bench.wait(1_900);
    let effects = bench.broadcast("10.0.0.1:8002", rival("4"));
    assert!(renamed(&effects).is_empty());
    assert_eq!(told(&effects), [addr("10.0.0.1:8002")]);
    let later = bench.events(1_000);
    let at: Vec<u64> =
        later.iter().filter(|(_, effect)| matches!(effect, Effect::Show(Shown::Renamed { .. }))).map(|e| e.0).collect();
    assert_eq!(at, [500]);
    // The other was young too, and has yielded.
    let mut bench = Bench::of(Kind::Person);
    bench.broadcast("10.0.0.1:8002", rival("4"));
    bench.wait(499);
    bench.broadcast("10.0.0.1:8002", announced("alice2@10.0.0.1", 8002, "4"));
    assert!(renamed(&bench.wait(10_000)).is_empty());
    assert_eq!(bench.node.name(), &name("alice"));
}

#[test]
fn two_that_both_think_they_are_the_elder_do_not_remain_so() {
    for (instance, yields) in [("4", false), ("6", true), ("", true)] {
        let mut bench = Bench::new();
        bench.broadcast("10.0.0.1:8002", rival(instance));
        bench.wait(59_000);
        assert!(renamed(&bench.broadcast("10.0.0.1:8002", rival(instance))).is_empty());
        bench.wait(1_000);
        assert_eq!(renamed(&bench.broadcast("10.0.0.1:8002", rival(instance))).len(), usize::from(yields));
    }
}

#[test]
fn the_same_name_on_another_host_is_nobody_s_business() {
    let mut bench = Bench::of(Kind::Person);
    assert_eq!(came(&bench.broadcast("10.0.0.2:8002", announced("alice@10.0.0.2", 8002, "4"))), ["alice@10.0.0.2"]);
    assert!(renamed(&bench.wait(10_000)).is_empty());
}

#[test]
fn a_long_name_stays_within_its_limit() {
    let mut long = settings(Kind::Person);
    long.name = name(&"ü".repeat(64));
    let mut bench = Bench::asleep(long);
    bench.event(Event::Started);
    let who = format!("{}@10.0.0.1", "ü".repeat(64));
    assert_eq!(
        renamed(&bench.broadcast("10.0.0.1:8002", announced(&who, 8002, "6"))),
        [format!("{}2", "ü".repeat(63))]
    );
}

#[test]
fn rivals_are_bounded() {
    let mut bench = Bench::new();
    for n in 0..100 {
        bench.broadcast("10.0.0.1:8002", rival(&format!("4{n}")));
    }
    assert_eq!(bench.node.sizes().rivals, 16);
}
