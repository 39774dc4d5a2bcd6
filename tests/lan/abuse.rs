//! Invalid datagrams and floods are dropped, counted and reported, while other peers are served.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::peers::{RawPeer, TestEnv, datagram};
use crate::support::{PATIENCE, eventually};

#[test]
fn lies_and_garbage_are_dropped_and_counted() {
    let env = TestEnv::new();
    let mut alice = env.start("alice", &["--verbose"]);
    let mut zoe = RawPeer::introduced(&env, "zoe", &alice);
    let mallory = RawPeer::new(&env, "mallory");
    let spoofed = datagram(&[("TYPE", "POST"), ("USER_ID", "zoe@10.1.2.3"), ("CONTENT", "I am far away")]);
    let announced = datagram(&[("TYPE", "PEER_DISCOVERY"), ("USER_ID", "mallory@10.1.2.3"), ("PORT", "9000")]);
    mallory.send(&alice, &spoofed);
    assert!(alice.take_drop("wrong-source").contains("10.1.2.3"));
    mallory.broadcast(&announced);
    assert!(alice.take_drop("wrong-source").contains("10.1.2.3"));

    let garbage: Vec<u8> = (0..65_507_u32).map(|nth| (nth.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let many_keys: String = (0..6_000).map(|nth| format!("K{nth}:\n")).chain(["TYPE:POST\n\n".to_owned()]).collect();
    let mut invalid = datagram(&[("TYPE", "POST"), ("USER_ID", &mallory.user_id()), ("CONTENT", "\u{e9}")]);
    let at = invalid.iter().position(|byte| *byte == 0xc3).unwrap();
    invalid[at] = b'x';
    let twice = datagram(&[("TYPE", "POST"), ("USER_ID", &mallory.user_id()), ("CONTENT", "one"), ("CONTENT", "two")]);
    let unknown_twice =
        datagram(&[("TYPE", "POST"), ("USER_ID", &mallory.user_id()), ("CONTENT", "one"), ("X", "1"), ("X", "1")]);
    let nul = datagram(&[("TYPE", "PEER_DISCOVERY"), ("USER_ID", "a\0b@127.0.0.1"), ("PORT", "9000")]);
    let all = [garbage, many_keys.into_bytes(), invalid, twice, unknown_twice, nul, Vec::new(), vec![b'\n'; 65_507]];
    for (nth, bytes) in all.iter().enumerate() {
        mallory.send(&alice, bytes);
        eventually("it to be dropped", || (alice.drop_count("malformed") == nth as u64 + 1).then_some(()));
        assert!(alice.take_drop("malformed").len() < 1_000, "however long it was");
    }
    // The same by broadcast, through the other socket.
    for bytes in all.iter().filter(|bytes| bytes.len() < 60_000) {
        mallory.broadcast(bytes);
    }
    eventually("them to be dropped", || (alice.drop_count("malformed") == all.len() as u64 + 6).then_some(()));

    for _ in 0..3 {
        mallory.post(&alice, "again and again", "same");
    }
    alice.take_message("post", "again and again");
    eventually("them to be dropped", || (alice.drop_count("repeated") == 2).then_some(()));
    // From another sender it is another message.
    zoe.post(&alice, "not again", "same");
    alice.take_message("post", "not again");
    assert_eq!(alice.count(|it| it["event"] == "post"), 0);
    assert_eq!(alice.drop_count("wrong-source"), 2);
    assert_eq!(alice.listed_names(), ["zoe"]);
    assert_eq!(alice.history().len(), 2);
    assert_eq!(zoe.request_peers(&alice).get("COUNT"), "0");
}

#[test]
fn every_drop_of_a_hundred_is_shown() {
    let env = TestEnv::new();
    let mut alice = env.start("alice", &["--verbose"]);
    let mallory = RawPeer::new(&env, "mallory");
    for _ in 0..100 {
        mallory.send(&alice, b"nonsense\n\n");
    }
    eventually("them to be dropped", || (alice.drop_count("malformed") == 100).then_some(()));
    let is_it = |it: &serde_json::Value| it["event"] == "dropped" && it["cause"] == "malformed";
    eventually("them to be shown", || (alice.count(is_it) == 100).then_some(()));
}

#[test]
fn a_flood_hurts_only_who_makes_it() {
    let env = TestEnv::new();
    let mut alice = env.start("alice", &["--verbose"]);
    let mut zoe = RawPeer::introduced(&env, "zoe", &alice);
    let mallory = RawPeer::introduced(&env, "mallory", &alice);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let began_at = Instant::now();
            // Ends also if the test fails.
            for nth in 0.. {
                if over.load(Relaxed) || began_at.elapsed() > PATIENCE {
                    break;
                }
                mallory.post(&alice, &format!("flood {nth}"), &format!("m{nth}"));
                if nth % 50 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        // From here on, the rate limit is exceeded.
        assert!(alice.take_drop("too-many").contains("100 a second"));
        let served = (0..5).all(|nth| {
            // Resent, as the flood may push datagrams out of the socket's buffer.
            let dm = zoe.dm(&alice, &format!("hello {nth}"), &format!("z{nth}"));
            (0..50).any(|_| {
                zoe.send(&alice, &dm);
                zoe.next_until("ACK", Instant::now() + Duration::from_millis(200)).is_some()
            })
        });
        over.store(true, Relaxed);
        assert!(served, "the other is not served");
    });
    assert!(alice.drop_count("too-many") > 0);
    let history = alice.history();
    for nth in 0..5 {
        let count = history.iter().filter(|it| it["text"] == format!("hello {nth}")).count();
        assert_eq!(count, 1, "hello {nth}");
    }
    assert_eq!(alice.listed_names(), ["mallory", "zoe"]);
}
