//! Announcements, answers, and how long a peer is known.

use super::*;

#[test]
fn it_announces_itself_at_once_on_every_interface() {
    let mut bench = Bench::asleep(settings(Kind::Person));
    let effects = bench.event(Event::Started);
    let said = broadcasts(&effects);
    assert_eq!(said.iter().map(|(from, _)| *from).collect::<Vec<_>>(), [ip("127.0.0.1"), ip("10.0.0.1")]);
    assert_eq!(effects.len(), 2);
    for (from, said) in said {
        assert_eq!((&said.user_id, said.port), (&UserId { name: name("alice"), ip: from }, 8001));
        assert_eq!(said.instance.as_deref(), Some("5000000000000000"));
        assert_eq!(said.features, Features { ack: true, probe: false });
        assert!(said.serves.is_empty() && said.cert_sha256.is_none());
        assert_eq!(said.stamp.timestamp, Some(1_700_000_000));
        let id = said.stamp.message_id.as_deref().unwrap();
        assert!(id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
    }
}

#[test]
fn it_announces_itself_every_thirty_seconds_give_or_take_a_tenth() {
    let mut bench = Bench::of(Kind::Person);
    let hour = bench.events(3_600_000);
    let at: Vec<u64> =
        hour.iter().filter(|(_, effect)| matches!(effect, Effect::Broadcast { .. })).map(|e| e.0).collect();
    assert!(hour.iter().all(|(_, effect)| matches!(effect, Effect::Broadcast { .. })), "nothing else");
    let rounds: Vec<u64> = at.iter().step_by(2).copied().collect();
    assert!((115..=125).contains(&rounds.len()), "{}", rounds.len());
    let pauses: Vec<u64> = rounds.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.iter().all(|ms| (27_000..=33_000).contains(ms)), "{pauses:?}");
    assert!(pauses.iter().max().unwrap() - pauses.iter().min().unwrap() > 4_000, "they spread: {pauses:?}");
    assert_eq!(bench.node.counters().broadcasts, 2 + at.len() as u64);
}

#[test]
fn a_server_says_what_it_serves_and_a_probe_says_so_once() {
    let serves = vec![("trade".to_owned(), 7001)];
    let kind = Kind::Server { serves: serves.clone(), cert_sha256: Some("ab".repeat(32)) };
    let mut server = Bench::asleep(settings(kind));
    let effects = server.event(Event::Started);
    let (_, said) = broadcasts(&effects)[0];
    assert_eq!((&said.serves, said.cert_sha256.as_deref()), (&serves, Some(&*"ab".repeat(32))));
    assert!(!broadcasts(&server.wait(40_000)).is_empty());
    let mut probe = Bench::asleep(settings(Kind::Probe));
    let effects = probe.event(Event::Started);
    assert!(broadcasts(&effects).iter().all(|(_, said)| said.features.probe));
    assert_eq!(broadcasts(&effects).len(), 2);
    // It lists who answers, and says nothing more.
    let effects = probe.direct("10.0.0.2:8002", announced("bob@10.0.0.2", 8002, "b"));
    assert_eq!(came(&effects), ["bob@10.0.0.2"]);
    assert!(sends(&effects).is_empty());
    probe.broadcast("10.0.0.3:8003", announced("carol@10.0.0.3", 8003, "c"));
    assert!(probe.wait(60_000).is_empty());
}

#[test]
fn whoever_hears_an_unknown_peer_answers_its_port_a_little_later() {
    let mut waits = Vec::new();
    for n in 0..50 {
        let mut bench = Bench::new();
        bench.random = n;
        // Its announcements may come from another socket than the one it listens on.
        let effects = bench.broadcast("10.0.0.2:40000", announced("bob@10.0.0.2", 8002, "b"));
        assert_eq!(came(&effects), ["bob@10.0.0.2"]);
        assert!(sends(&effects).is_empty());
        let later = bench.events(1_000);
        let [(ms, Effect::Send { to, message: Message::Discovery(said) })] = &later[..] else { panic!("{later:?}") };
        assert_eq!((*to, said.user_id.clone()), (addr("10.0.0.2:8002"), user("alice@10.0.0.1")));
        assert!((20..=250).contains(ms), "{ms}");
        waits.push(*ms);
        // Known now: its next broadcast is not answered.
        assert!(bench.broadcast("10.0.0.2:40000", announced("bob@10.0.0.2", 8002, "b")).is_empty());
        assert!(bench.wait(1_000).is_empty());
    }
    assert!(waits.iter().max().unwrap() - waits.iter().min().unwrap() > 150, "they spread: {waits:?}");
}

#[test]
fn an_answer_is_dropped_when_the_other_shows_that_it_knows_us() {
    for message in [Message::Discovery(announced("bob@10.0.0.2", 8002, "b")), post("bob@10.0.0.2", "1")] {
        let mut bench = Bench::new();
        bench.broadcast("10.0.0.2:8002", announced("bob@10.0.0.2", 8002, "b"));
        assert!(told(&bench.hear("10.0.0.2:8002", Door::Own, message.clone())).is_empty());
        assert!(bench.wait(5_000).is_empty());
        // What is broadcast shows nothing, nor does what comes from elsewhere.
        let mut bench = Bench::new();
        bench.broadcast("10.0.0.2:8002", announced("bob@10.0.0.2", 8002, "b"));
        bench.hear("10.0.0.2:8002", Door::Discovery, message);
        bench.hear("10.0.0.3:8002", Door::Own, post("carol@10.0.0.3", "1"));
        assert_eq!(told(&bench.wait(5_000)), [addr("10.0.0.2:8002")]);
    }
}

#[test]
fn whoever_comes_directly_is_answered_at_once() {
    let mut bench = Bench::new();
    let bob = || announced("bob@10.0.0.2", 8002, "b");
    assert_eq!(told(&bench.direct("10.0.0.2:8002", bob())), [addr("10.0.0.2:8002")]);
    // Known; but it was told just now.
    bench.wait(199);
    assert!(bench.direct("10.0.0.2:8002", bob()).is_empty());
    bench.wait(1);
    assert_eq!(told(&bench.direct("10.0.0.2:8002", bob())), [addr("10.0.0.2:8002")]);
    // The pause doubles, up to ten seconds.
    bench.wait(300);
    assert!(bench.direct("10.0.0.2:8002", bob()).is_empty());
    bench.wait(10_000);
    for _ in 0..3 {
        bench.wait(12_000);
        assert_eq!(told(&bench.direct("10.0.0.2:8002", bob())), [addr("10.0.0.2:8002")]);
    }
}

#[test]
fn two_far_from_each_other_do_not_answer_for_ever() {
    let mut here = Bench::new();
    let mut answers = 0;
    for _ in 0..1_000 {
        here.wait(300);
        answers += told(&here.direct("10.0.0.2:8002", announced("bob@10.0.0.2", 8002, "b"))).len();
    }
    // Ever so often in five minutes, instead of a thousand times.
    assert!(answers < 60, "{answers}");
}

#[test]
fn a_probe_is_answered_every_time_and_never_listed() {
    let mut bench = Bench::new();
    let mut said = announced("discover-1@10.0.0.2", 8002, "p");
    said.features.probe = true;
    for _ in 0..3 {
        assert!(bench.broadcast("10.0.0.2:8002", said.clone()).is_empty());
        assert_eq!(told(&bench.wait(251)), [addr("10.0.0.2:8002")]);
        assert_eq!(told(&bench.direct("10.0.0.2:8002", said.clone())), [addr("10.0.0.2:8002")]);
    }
    assert!(bench.list().is_empty());
}

#[test]
fn its_own_broadcast_is_ignored_silently() {
    let mut bench = Bench::new();
    for from in ["127.0.0.1:8001", "10.0.0.1:8001"] {
        let own = announced("alice@10.0.0.1", 8001, "5000000000000000");
        assert!(bench.broadcast(from, own).is_empty());
    }
    assert_eq!((bench.node.counters().own, bench.node.counters().drops().count()), (2, 0));
    assert!(bench.list().is_empty() && bench.wait(1_000).is_empty());
}

#[test]
fn one_announcement_never_makes_a_storm() {
    let mut bench = Bench::new();
    for n in 0..2_000_u32 {
        let who = format!("p{n}@10.0.{}.{}", 1 + n / 250, 1 + n % 250);
        let from = format!("{}:8002", user(&who).ip);
        bench.broadcast(&from, announced(&who, 8002, &n.to_string()));
    }
    let told_in = |bench: &mut Bench, ms| told(&bench.wait(ms)).len();
    assert!((500..=650).contains(&told_in(&mut bench, 1_000)));
    assert_eq!(told_in(&mut bench, 1_000), 500);
    assert!((850..=1_000).contains(&told_in(&mut bench, 3_000)));
    assert_eq!(bench.node.sizes().answers, 0);
}

#[test]
fn the_source_must_be_the_address_that_it_names() {
    let mut bench = Bench::new();
    assert!(came(&bench.broadcast("10.0.0.3:8002", announced("bob@10.0.0.2", 8002, "b"))).is_empty());
    for message in [
        post("bob@10.0.0.2", "1"),
        dm("bob@10.0.0.2", "alice@10.0.0.1", "1"),
        Message::Profile(Profile {
            user_id: user("bob@10.0.0.2"),
            display_name: "Bob".into(),
            status: String::new(),
            avatar: None,
            stamp: stamp("1"),
        }),
        Message::PeerListRequest { from: user("bob@10.0.0.2"), stamp: stamp("1") },
        Message::PeerListResponse(crate::lan::wire::PeerList {
            from: user("bob@10.0.0.2"),
            peers: vec![(user("carol@10.0.0.9"), Some(addr("10.0.0.9:8009")))],
            stamp: stamp("1"),
        }),
    ] {
        let effects = bench.hear("10.0.0.3:8002", Door::Own, message);
        assert!(matches!(shown(&effects)[..], [Shown::Dropped { cause: Cause::WrongSource, .. }]), "{effects:?}");
        assert_eq!(effects.len(), 1);
    }
    assert_eq!(bench.dropped(Cause::WrongSource), 6);
    // Nobody's source is everybody's address.
    bench.broadcast("10.0.0.255:8002", announced("bob@10.0.0.255", 8002, "b"));
    assert_eq!(bench.dropped(Cause::WrongSource), 7);
    assert!(bench.list().is_empty());
    // The addresses of this host count as equal.
    assert_eq!(came(&bench.broadcast("127.0.0.1:8002", announced("bob@10.0.0.1", 8002, "b"))), ["bob@10.0.0.1"]);
}

#[test]
fn what_cannot_be_read_has_its_cause() {
    let mut bench = Bench::new();
    for (from, message, cause) in [
        ("10.0.0.2:8002", Err(Refused::UnknownType("HELLO".into())), Cause::UnknownType),
        ("10.0.0.2:8002", Err(Refused::Malformed("PORT: expected a number".into())), Cause::Malformed),
        ("[::1]:8002", Ok(post("bob@10.0.0.2", "1")), Cause::NotIpv4),
    ] {
        let effects = bench.event(Event::Datagram { from: addr(from), door: Door::Own, message, bytes: 10 });
        assert!(matches!(&shown(&effects)[..], [Shown::Dropped { cause: told, .. }] if *told == cause), "{effects:?}");
        assert_eq!(bench.dropped(cause), 1);
    }
    assert_eq!((bench.node.counters().received, bench.node.counters().received_bytes), (3, 30));
    assert_eq!(bench.node.counters().drops().count(), 3);
}

#[test]
fn a_peer_that_is_not_heard_for_five_minutes_is_forgotten() {
    let mut bench = Bench::new();
    bench.broadcast("10.0.0.2:8002", announced("bob@10.0.0.2", 8002, "b"));
    bench.broadcast("10.0.0.3:8003", announced("carol@10.0.0.3", 8003, "c"));
    bench.wait(200_000);
    // Whatever it says, it is there.
    bench.hear("10.0.0.3:8003", Door::Own, post("carol@10.0.0.3", "1"));
    bench.wait(99_999);
    assert_eq!(bench.list().len(), 2);
    let effects = bench.wait(1);
    assert!(
        matches!(shown(&effects)[..], [Shown::Left { peer, why: Left::Unheard }] if peer.user_id == user("bob@10.0.0.2"))
    );
    assert_eq!(bench.list(), ["carol@10.0.0.3 10.0.0.3:8003"]);
    bench.wait(200_000);
    assert!(bench.list().is_empty());
    assert_eq!(bench.node.sizes().addresses, 0);
    // And known again when it is heard again.
    assert_eq!(came(&bench.broadcast("10.0.0.2:8002", announced("bob@10.0.0.2", 8002, "b"))), ["bob@10.0.0.2"]);
}

#[test]
fn one_that_refuses_three_sends_in_a_row_is_dropped() {
    let mut bench = Bench::new();
    bench.known("bob@10.0.0.2", 8002, "b");
    let refused = || Event::SendRefused { to: addr("10.0.0.2:8002") };
    for _ in 0..2 {
        assert!(bench.event(refused()).is_empty() && bench.event(refused()).is_empty());
        // It is heard: the next is the first again.
        bench.hear("10.0.0.2:8002", Door::Own, post("bob@10.0.0.2", ""));
    }
    bench.event(refused());
    bench.event(refused());
    let effects = bench.event(refused());
    assert!(matches!(shown(&effects)[..], [Shown::Left { why: Left::Refused, .. }]));
    assert!(bench.list().is_empty() && bench.event(refused()).is_empty());
}

#[test]
fn a_peer_seen_through_two_interfaces_is_one() {
    let mut bench = Bench::new();
    bench.known("bob@10.0.0.2", 8002, "b");
    let effects = bench.broadcast("192.168.1.2:8002", announced("bob@192.168.1.2", 8002, "b"));
    assert!(came(&effects).is_empty());
    assert!(told(&bench.wait(1_000)).is_empty());
    assert_eq!(bench.list(), ["bob@192.168.1.2 192.168.1.2:8002"], "the latest heard");
    bench.broadcast("10.0.0.2:8002", announced("bob@10.0.0.2", 8002, "b"));
    let [bob] = &bench.node.peers()[..] else { panic!() };
    assert_eq!(bob.addr, addr("10.0.0.2:8002"));
    assert_eq!(
        bob.addresses.iter().map(|(_, addr)| *addr).collect::<Vec<_>>(),
        [addr("10.0.0.2:8002"), addr("192.168.1.2:8002")]
    );
    // One of them falls silent, or refuses: the other stays.
    bench.wait(200_000);
    bench.broadcast("10.0.0.2:8002", announced("bob@10.0.0.2", 8002, "b"));
    bench.wait(200_000);
    assert_eq!(bench.node.peers()[0].addresses.len(), 1);
    for n in 3..20 {
        let at = format!("10.0.0.{n}");
        bench.broadcast(&format!("{at}:8002"), announced(&format!("bob@{at}"), 8002, "b"));
    }
    let peers = bench.node.peers();
    assert_eq!((peers.len(), peers[0].addresses.len(), bench.node.sizes().addresses), (1, 8, 8));
    for _ in 0..3 {
        assert!(bench.list() == ["bob@10.0.0.19 10.0.0.19:8002"]);
        bench.event(Event::SendRefused { to: addr("10.0.0.19:8002") });
    }
    assert_eq!(bench.list(), ["bob@10.0.0.18 10.0.0.18:8002"]);
}

#[test]
fn without_an_instance_the_user_id_is_what_counts() {
    let mut bench = Bench::new();
    bench.known("bob@10.0.0.2", 8002, "");
    bench.known("bob@10.0.0.3", 8002, "");
    assert!(bench.broadcast("10.0.0.2:8002", announced("bob@10.0.0.2", 8002, "")).is_empty());
    assert_eq!(bench.list().len(), 2);
    // At the same address it is the same peer by another name.
    let effects = bench.broadcast("10.0.0.2:8002", announced("bobby@10.0.0.2", 8002, ""));
    assert!(matches!(shown(&effects)[..], [Shown::PeerRenamed { .. }]), "{effects:?}");
    assert_eq!(bench.list().len(), 2);
}

#[test]
fn past_ten_thousand_peers_newcomers_are_dropped_and_counted() {
    let mut bench = Bench::new();
    let peer = |n: u32| (format!("p{n}@10.{}.{}.{}", 1 + n / 40_000, n / 200 % 200, 1 + n % 200), n.to_string());
    for n in 0..10_002 {
        let (who, instance) = peer(n);
        bench.broadcast(&format!("{}:8002", user(&who).ip), announced(&who, 8002, &instance));
        bench.wait(5);
    }
    assert_eq!((bench.node.sizes().peers, bench.dropped(Cause::Full)), (10_000, 2));
    // Those who are known are still heard.
    let (who, instance) = peer(9_999);
    assert!(bench.broadcast(&format!("{}:8002", user(&who).ip), announced(&who, 8002, &instance)).is_empty());
}

#[test]
fn interfaces_come_and_go() {
    let mut bench = Bench::new();
    let one = || interface("127.0.0.1", "255.0.0.0");
    assert!(bench.event(Event::Interfaces(vec![one()])).is_empty());
    assert_eq!(bench.node.user_id(), user("alice@127.0.0.1"));
    let effects = bench.event(Event::Interfaces(vec![one(), interface("192.168.1.1", "255.255.255.0")]));
    let from: Vec<_> = broadcasts(&effects).iter().map(|(from, said)| (*from, said.user_id.to_string())).collect();
    assert_eq!(
        from,
        [(ip("127.0.0.1"), "alice@127.0.0.1".to_owned()), (ip("192.168.1.1"), "alice@192.168.1.1".to_owned())]
    );
    assert_eq!(bench.node.user_id(), user("alice@192.168.1.1"));
}

#[test]
fn the_user_id_is_of_the_interface_that_it_leaves_by() {
    let mut bench = Bench::new();
    for (from, own) in [("10.0.0.2", "10.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("172.16.0.1", "10.0.0.1")] {
        let effects = bench.direct(&format!("{from}:8002"), announced(&format!("b{from}@{from}"), 8002, from));
        let sends = sends(&effects);
        let [(_, Message::Discovery(said))] = &sends[..] else { panic!("{effects:?}") };
        assert_eq!(said.user_id.ip, ip(own), "to {from}");
    }
}

#[test]
fn nothing_goes_to_the_discovery_port_of_this_host() {
    let mut bench = Bench::new();
    for (from, who) in [("127.0.0.1:50999", "bob@127.0.0.1"), ("10.0.0.1:50999", "bob@10.0.0.1")] {
        for door in [Door::Own, Door::Discovery] {
            bench.hear(from, door, Message::Discovery(announced(who, DISCOVERY_PORT, "b")));
            bench.hear(from, door, Message::PeerListRequest { from: user(who), stamp: stamp("1") });
        }
    }
    assert!(told(&bench.wait(3_000)).is_empty() && bench.list().is_empty());
    assert_eq!((bench.dropped(Cause::Unanswerable), bench.dropped(Cause::TooManyLists)), (6, 2));
    assert_eq!(bench.node.counters().sent, 0);
}
