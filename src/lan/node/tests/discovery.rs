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

fn bob() -> Discovery {
    announced("bob@10.0.0.2", 8002, "b")
}

#[test]
fn an_answer_is_dropped_when_the_other_answers_us() {
    // We have just announced ourselves, and it did so too.
    let mut bench = Bench::of(Kind::Person);
    bench.broadcast("10.0.0.2:8002", bob());
    bench.now = bench.now.plus_ms(20);
    assert!(told(&bench.direct("10.0.0.2:8002", bob())).is_empty());
    assert!(bench.wait(5_000).is_empty());
    // The same where we have told it alone, as somebody of whom another has told.
    let mut bench = Bench::new();
    bench.known("bob@10.0.0.2", 8002, "b");
    bench.wait(20_000);
    bench.broadcast("10.0.0.2:8002", announced("bob@10.0.0.2", 8002, "b2"));
    bench.node.peers.told(addr_v4("10.0.0.2:8002"), bench.now);
    bench.now = bench.now.plus_ms(20);
    assert!(told(&bench.direct("10.0.0.2:8002", announced("bob@10.0.0.2", 8002, "b2"))).is_empty());
    assert!(told(&bench.wait(300)).is_empty());
}

#[test]
fn whoever_has_not_heard_of_us_is_answered_whatever_he_says() {
    let answers_of = |mut bench: Bench, after_ms: u64, from: &str, door: Door, message: Message| {
        bench.broadcast("10.0.0.2:8002", bob());
        bench.now = bench.now.plus_ms(after_ms);
        let mut answers = told(&bench.hear(from, door, message));
        answers.extend(told(&bench.wait(1_000)));
        answers
    };
    let direct = || Message::Discovery(bob());
    // `--peer` where broadcast reaches too: at the same moment, whether or not we have just announced ourselves.
    assert_eq!(answers_of(Bench::of(Kind::Person), 1, "10.0.0.2:8002", Door::Own, direct()), [addr("10.0.0.2:8002")]);
    assert_eq!(answers_of(Bench::new(), 1, "10.0.0.2:8002", Door::Own, direct()), [addr("10.0.0.2:8002")]);
    // Later, while we have not announced ourselves for long.
    assert_eq!(answers_of(Bench::new(), 19, "10.0.0.2:8002", Door::Own, direct()), [addr("10.0.0.2:8002")]);
    // He may know our address from somewhere else.
    let ack = Message::Ack { message_id: "x".into() };
    let request = Message::PeerListRequest { from: user("bob@10.0.0.2"), stamp: stamp("1") };
    for message in [post("bob@10.0.0.2", "1"), dm("bob@10.0.0.2", "alice@10.0.0.1", "2"), request, ack] {
        let answers = answers_of(Bench::of(Kind::Person), 20, "10.0.0.2:8002", Door::Own, message.clone());
        assert_eq!(answers, [addr("10.0.0.2:8002")], "{message:?}");
    }
    // What is broadcast shows nothing, nor does what comes from elsewhere.
    for (from, door, message) in [
        ("10.0.0.2:8002", Door::Discovery, direct()),
        ("10.0.0.3:8002", Door::Own, Message::Discovery(announced("carol@10.0.0.3", 8003, "c"))),
    ] {
        let answers = answers_of(Bench::of(Kind::Person), 20, from, door, message);
        assert!(answers.contains(&addr("10.0.0.2:8002")), "{from}: {answers:?}");
    }
}

#[test]
fn whoever_comes_directly_is_answered_at_once() {
    let mut bench = Bench::new();
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

/// As with `--bind 10.0.0.1`, beside another interface that is not spoken by.
#[test]
fn bound_to_one_address_it_announces_itself_by_that_and_loopback() {
    let mut bench = Bench::asleep(settings(Kind::Person));
    let from = |own: Interface, from: Option<&str>| Interface { from: from.map(ip), ..own };
    let interfaces = vec![
        from(interface("10.0.0.1", "255.255.255.0"), Some("10.0.0.1")),
        from(interface("192.168.1.1", "255.255.255.0"), None),
        from(interface("127.0.0.1", "255.0.0.0"), Some("10.0.0.1")),
    ];
    bench.event(Event::Interfaces(interfaces));
    let effects = bench.event(Event::Started);
    let said: Vec<_> = broadcasts(&effects).iter().map(|(by, said)| (*by, said.user_id.to_string())).collect();
    assert_eq!(
        said,
        [("10.0.0.1", "alice@10.0.0.1"), ("127.0.0.1", "alice@10.0.0.1")].map(|(by, who)| (ip(by), who.to_owned()))
    );
    bench.wait(3_000);
    // On loopback, too, it is who its source says; there and from there all its host's addresses are equal.
    let effects = bench.direct("127.0.0.1:8002", announced("bob@192.168.1.1", 8002, "b"));
    assert_eq!(came(&effects), ["bob@192.168.1.1"]);
    let sends = sends(&effects);
    let [(to, Message::Discovery(said))] = &sends[..] else { panic!("{effects:?}") };
    assert_eq!((*to, said.user_id.to_string()), (addr("127.0.0.1:8002"), "alice@10.0.0.1".to_owned()));
    for to in ["alice@10.0.0.1", "alice@192.168.1.1", "alice@127.0.0.1"] {
        assert_eq!(bench.hear("127.0.0.1:8002", Door::Own, dm("bob@127.0.0.1", to, to)).len(), 3, "{to}");
    }
    // Who has our port at another address of this host is somebody else.
    assert_eq!(came(&bench.direct("127.0.0.1:8001", announced("carol@127.0.0.1", 8001, "c"))), ["carol@127.0.0.1"]);
    bench.direct("10.0.0.1:8001", announced("dave@10.0.0.1", 8001, "d"));
    assert_eq!((bench.dropped(Cause::Taken), bench.dropped(Cause::WrongSource)), (1, 0));
}

#[test]
fn one_host_does_not_take_all_answers() {
    let mut bench = Bench::new();
    let announces = |bench: &mut Bench, ip: &str, n: usize| {
        // Ten ports, each with a name and a PORT of its own every time.
        let from = format!("{ip}:{}", 9_000 + n % 10);
        bench.broadcast(&from, announced(&format!("m{n}@{ip}"), 10_000 + n as u16, &format!("{ip}-{n}")));
    };
    (0..1_500).for_each(|n| announces(&mut bench, "10.0.0.66", n));
    assert_eq!(bench.node.sizes().answers, 200);
    assert!(bench.dropped(Cause::Unanswerable) > 1_000);
    bench.broadcast("10.0.0.2:8002", bob());
    assert!(told(&bench.wait(700)).contains(&addr("10.0.0.2:8002")));
    // On this host each is somebody else.
    (0..1_500).for_each(|n| announces(&mut bench, "127.0.0.1", n));
    assert_eq!(bench.node.sizes().answers, 1_500);
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
