//! Name conflicts: two peers of one name on one host.

use super::*;

fn renamed(effects: &[NodeEffect]) -> Vec<String> {
    let renamed = notifications(effects).into_iter().filter_map(|shown| match shown {
        Notification::SelfRenamed { new, .. } => Some(new.to_string()),
        _ => None,
    });
    renamed.collect()
}

fn conflicting_discovery(instance: &str) -> Discovery {
    discovery_of("alice@10.0.0.1", 8002, instance)
}

#[test]
fn the_newer_one_takes_the_next_free_name_and_says_so() {
    let mut alice = TestNode::started(NodeKind::Person);
    alice.broadcast("127.0.0.1:8003", discovery_of("alice2@127.0.0.1", 8003, "x"));
    alice.broadcast("10.0.0.3:8003", discovery_of("alice3@10.0.0.3", 8003, "y"));
    alice.wait(1_000);
    // INSTANCE "6" is larger than ours, so we yield, whether the other is new or old.
    let effects = alice.direct("10.0.0.1:8002", conflicting_discovery("6"));
    assert_eq!(renamed(&effects), ["alice3"]);
    assert!(broadcasts(&effects).iter().all(|(_, discovery)| discovery.user_id.name == name("alice3")));
    assert_eq!(broadcasts(&effects).len(), 2);
    // The other is probed, so that it announces itself again: its first announcement could not be accepted.
    let asks = |effect: &NodeEffect| {
        matches!(effect, NodeEffect::Send { to, message: Message::Discovery(discovery) }
        if *to == addr("10.0.0.1:8002") && discovery.features.probe && discovery.user_id.name == name("alice3"))
    };
    assert_eq!(effects.iter().filter(|effect| asks(effect)).count(), 1);
    assert_eq!(alice.node.name(), &name("alice3"));
    // The new name is in use, and the other peer can be listed.
    let effects = alice.broadcast("10.0.0.1:8002", conflicting_discovery("6"));
    assert_eq!(joined_peers(&effects), ["alice@10.0.0.1"]);
    assert!(
        !notifications(&alice.receive("10.0.0.9:8009", SocketRole::Own, dm("bob@10.0.0.9", "alice3@10.0.0.1", "1")))
            .is_empty()
    );
    alice.receive("10.0.0.9:8009", SocketRole::Own, dm("bob@10.0.0.9", "alice@10.0.0.1", "2"));
    assert_eq!(alice.dropped(DropCause::NotForUs), 1);
}

#[test]
fn the_older_one_keeps_its_name_and_tells_the_other_of_itself() {
    for instance in ["4", "6"] {
        let mut alice = TestNode::new();
        let effects = alice.broadcast("10.0.0.1:8002", conflicting_discovery(instance));
        assert_eq!((renamed(&effects).len(), unicast_announcements(&effects)), (0, vec![addr("10.0.0.1:8002")]));
        assert!(alice.list().is_empty(), "it is about to take another name");
        // Its answer is not answered again.
        assert!(alice.direct("10.0.0.1:8002", conflicting_discovery(instance)).is_empty());
        assert!(renamed(&alice.wait(20_000)).is_empty());
        assert_eq!(alice.node.name(), &name("alice"));
    }
}

#[test]
fn a_young_one_with_the_larger_instance_gives_the_other_half_a_second() {
    let mut alice = TestNode::started(NodeKind::Person);
    alice.wait(1_900);
    let effects = alice.broadcast("10.0.0.1:8002", conflicting_discovery("4"));
    assert!(renamed(&effects).is_empty());
    assert_eq!(unicast_announcements(&effects), [addr("10.0.0.1:8002")]);
    let later = alice.events(1_000);
    let at: Vec<u64> = later
        .iter()
        .filter(|(_, effect)| matches!(effect, NodeEffect::Notify(Notification::SelfRenamed { .. })))
        .map(|e| e.0)
        .collect();
    assert_eq!(at, [500]);
    // The other was new too, and yields.
    let mut alice = TestNode::started(NodeKind::Person);
    alice.broadcast("10.0.0.1:8002", conflicting_discovery("4"));
    alice.wait(499);
    alice.broadcast("10.0.0.1:8002", discovery_of("alice2@10.0.0.1", 8002, "4"));
    assert!(renamed(&alice.wait(10_000)).is_empty());
    assert_eq!(alice.node.name(), &name("alice"));
}

#[test]
fn two_that_both_think_they_are_the_elder_do_not_remain_so() {
    for (instance, yields) in [("4", false), ("6", true), ("", true)] {
        let mut alice = TestNode::new();
        alice.broadcast("10.0.0.1:8002", conflicting_discovery(instance));
        alice.wait(59_000);
        assert!(renamed(&alice.broadcast("10.0.0.1:8002", conflicting_discovery(instance))).is_empty());
        alice.wait(1_000);
        assert_eq!(
            renamed(&alice.broadcast("10.0.0.1:8002", conflicting_discovery(instance))).len(),
            usize::from(yields)
        );
    }
}

#[test]
fn the_same_name_on_another_host_is_nobody_s_business() {
    let mut alice = TestNode::started(NodeKind::Person);
    assert_eq!(
        joined_peers(&alice.broadcast("10.0.0.2:8002", discovery_of("alice@10.0.0.2", 8002, "4"))),
        ["alice@10.0.0.2"]
    );
    assert!(renamed(&alice.wait(10_000)).is_empty());
}

#[test]
fn a_long_name_stays_within_its_limit() {
    let mut long = config_of(NodeKind::Person);
    long.name = name(&"ü".repeat(64));
    let mut alice = TestNode::not_started(long);
    alice.event(NodeEvent::Started);
    let who = format!("{}@10.0.0.1", "ü".repeat(64));
    assert_eq!(
        renamed(&alice.broadcast("10.0.0.1:8002", discovery_of(&who, 8002, "6"))),
        [format!("{}2", "ü".repeat(63))]
    );
}

#[test]
fn rivals_are_bounded() {
    let mut alice = TestNode::new();
    for n in 0..100 {
        alice.broadcast("10.0.0.1:8002", conflicting_discovery(&format!("4{n}")));
    }
    assert_eq!(alice.node.sizes().name_conflicts, 16);
}
