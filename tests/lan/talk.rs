//! Messages between peers: POST, DM, PROFILE and peer lists.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::peers::{Peer, RawPeer, ReceivedDatagram, TestEnv, datagram, file, in_pipe};
use crate::support::eventually;

/// Bytes that start like a PNG image.
fn picture(bytes: usize) -> Vec<u8> {
    let begin = [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n'];
    begin.into_iter().chain((0..).map(|nth: u32| (nth.wrapping_mul(2_654_435_761) >> 24) as u8)).take(bytes).collect()
}

fn stamped(said: &ReceivedDatagram) {
    let id = said.get("MESSAGE_ID");
    assert!(id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{said:?}");
    assert!(said.get("TIMESTAMP").parse::<u64>().unwrap() > 1_700_000_000, "{said:?}");
}

#[test]
fn a_post_reaches_everybody_once_and_a_dm_one() {
    let env = TestEnv::new();
    let [mut alice, mut bob, mut carol] = env.start_all(["alice", "bob", "carol"]);
    let mut zoe = RawPeer::introduced(&env, "zoe", &alice);
    alice.wait_for_peers(&["bob", "carol", "zoe"]);
    bob.wait_for_peers(&["alice", "carol", "zoe"]);
    carol.wait_for_peers(&["alice", "bob", "zoe"]);
    let posted = alice.run_command("POST  it's \"5 o'clock\"  ");
    assert_eq!(posted["to"], 3);
    for peer in [&bob, &carol] {
        let heard = peer.take_message("post", "it's \"5 o'clock\"");
        assert_eq!((&heard["user_id"], &heard["from"]), (&json!("alice@127.0.0.1"), &json!(alice.addr)));
        assert_eq!(heard["message_id"], posted["message_id"]);
    }
    let said = zoe.next_from(&alice, "POST");
    assert_eq!((said.get("USER_ID"), said.get("CONTENT")), ("alice@127.0.0.1", "it's \"5 o'clock\""));
    assert_eq!(said.get("MESSAGE_ID"), posted["message_id"]);
    stamped(&said);

    let sent = alice.run_command("dm BOB hi");
    assert!(sent["error"].as_str().unwrap().contains("BOB"), "names are taken as they are: {sent}");
    let sent = alice.run_command("dm bob hi");
    assert_eq!((&sent["to"], &sent["awaits_ack"]), (&json!("bob@127.0.0.1"), &json!(true)));
    assert_eq!(bob.take_message("dm", "hi")["user_id"], "alice@127.0.0.1");
    let confirmed = alice.take_event("confirmed");
    assert_eq!((&confirmed["to"], &confirmed["message_id"]), (&json!("bob@127.0.0.1"), &sent["message_id"]));
    alice.run_command("dm carol@127.0.0.1 hello");
    carol.take_message("dm", "hello");
    alice.take_event("confirmed");
    let sent = alice.run_command("dm zoe psst");
    let said = zoe.next_from(&alice, "DM");
    assert_eq!((said.get("FROM"), said.get("TO")), ("alice@127.0.0.1", "zoe@127.0.0.1"));
    assert_eq!((said.get("CONTENT"), said.get("MESSAGE_ID")), ("psst", sent["message_id"].as_str().unwrap()));
    stamped(&said);
    zoe.ack(&alice, said.get("MESSAGE_ID"));
    assert_eq!(alice.take_event("confirmed")["to"], "zoe@127.0.0.1");

    // A last message shows that nothing came twice or to others.
    alice.run_command("post the end");
    for peer in [&bob, &carol] {
        peer.take_message("post", "the end");
        let said = peer.count(|it| it["from"].is_string());
        assert_eq!(said, 0, "{}", peer.name);
    }
    assert_eq!(zoe.next_from(&alice, "POST").get("CONTENT"), "the end");
    assert_eq!((zoe.count(&alice, "POST"), zoe.count(&alice, "DM")), (0, 0));
    let texts = |messages: Vec<Value>| messages.iter().map(|it| it["text"].clone()).collect::<Vec<_>>();
    assert_eq!(texts(bob.history()), ["it's \"5 o'clock\"", "hi", "the end"]);
    assert_eq!(texts(carol.history()), ["it's \"5 o'clock\"", "hello", "the end"]);
    let own = alice.history();
    let fate: Vec<_> = own.iter().map(|it| (it["type"].as_str().unwrap(), it["sent"] == true)).collect();
    assert_eq!(fate, [("POST", true), ("DM", true), ("DM", true), ("DM", true), ("POST", true)], "{own:?}");
}

/// A DM to each kind of peer, all at the same time, as each takes seconds.
#[test]
fn a_dm_is_repeated_until_it_is_acknowledged() {
    let env = TestEnv::new();
    let mut alice = env.start("alice", &["--verbose"]);
    let bob = env.start("bob", &[]);
    let mut late = RawPeer::introduced(&env, "late", &alice);
    let mut silent = RawPeer::introduced(&env, "silent", &alice);
    let mut plain = RawPeer::introduced_with(&env, "plain", &[], &alice);
    let gone = RawPeer::introduced(&env, "gone", &alice);
    let liar = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    alice.wait_for_peers(&["bob", "gone", "late", "plain", "silent"]);
    drop(gone);
    bob.kill();
    let mut id_of = |name: &str, awaits: bool| {
        let sent = alice.run_command(&format!("dm {name} hello {name}"));
        assert_eq!(sent["awaits_ack"], awaits, "{sent}");
        sent["message_id"].as_str().unwrap().to_owned()
    };
    let sent_at = Instant::now();
    // Read from the start, as the times of arrival are recorded.
    let (plain_id, [late_id, silent_id], refused, copies) = std::thread::scope(|scope| {
        let copies = |raw: &mut RawPeer| -> Vec<ReceivedDatagram> { (0..4).map(|_| raw.next("DM")).collect() };
        let readers = [&mut late, &mut silent].map(|raw| scope.spawn(move || copies(raw)));
        let plain_id = id_of("plain", false);
        let awaited = ["late", "silent"].map(|name| id_of(name, true));
        let refused = ["gone", "bob"].map(|name| id_of(name, true));
        (plain_id, awaited, refused, readers.map(|reader| reader.join().unwrap()))
    });
    // It is sent once, and again 0.5, 1 and 2 s after the previous time.
    for (copies, id) in copies.iter().zip([&late_id, &silent_id]) {
        for (pair, wait_ms) in copies.windows(2).zip([500, 1_000, 2_000]) {
            let took = pair[1].at - pair[0].at;
            let wait = Duration::from_millis(wait_ms);
            assert_eq!((pair[0].from, pair[1].from), (alice.addr, alice.addr));
            assert!(
                took + Duration::from_millis(100) > wait && took < wait + Duration::from_secs(1),
                "{wait:?}: {took:?}"
            );
            assert_eq!((pair[0].get("MESSAGE_ID"), pair[1].get("MESSAGE_ID")), (&**id, &**id));
            assert_eq!(pair[0].get("CONTENT"), pair[1].get("CONTENT"));
        }
    }
    late.ack(&alice, &late_id);
    let confirmed = alice.take_event("confirmed");
    assert_eq!((&confirmed["to"], &confirmed["message_id"]), (&json!("late@127.0.0.1"), &json!(late_id)));
    // An ACK from another address does not count.
    let ack = datagram(&[("TYPE", "ACK"), ("MESSAGE_ID", &silent_id), ("STATUS", "RECEIVED")]);
    liar.send_to(&ack, alice.addr).unwrap();
    assert!(alice.take_drop("stray-ack").contains(&silent_id));

    let unconfirmed = |name: &str, id: &str| {
        let is_it = |it: &Value| it["event"] == "unconfirmed" && it["to"] == format!("{name}@127.0.0.1");
        let line = alice.take(&format!("{name} not to confirm"), is_it);
        assert_eq!(line.json["message_id"], id);
        line.at
    };
    let took = unconfirmed("silent", &silent_id) - sent_at;
    assert!((Duration::from_millis(5_400)..Duration::from_secs(10)).contains(&took), "{took:?}");
    for (name, id) in ["gone", "bob"].iter().zip(&refused) {
        unconfirmed(name, id);
        let has_left = |it: &Value| it["event"] == "left" && it["peer"]["name"] == *name;
        assert_eq!(alice.take("it to be dropped", has_left).json["why"], "refused");
    }
    assert_eq!(alice.listed_names(), ["late", "plain", "silent"]);

    // A peer without the feature `ack` gets the DM once.
    assert_eq!(plain.next_from(&alice, "DM").get("MESSAGE_ID"), plain_id);
    for raw in [&mut plain, &mut late, &mut silent] {
        assert_eq!(raw.count(&alice, "DM"), 0, "{}", raw.name);
    }
    // Confirmations are notified first, and on disk a moment later.
    eventually("the fates to be kept", || {
        let history = alice.history();
        let fate = |name: &str| {
            let of = |it: &&Value| it["user_id"] == format!("{name}@127.0.0.1");
            history.iter().find(of).unwrap()["confirmation"].as_str().unwrap()
        };
        let fates = ["plain", "late", "silent", "gone", "bob"].map(fate);
        (fates == ["not asked", "confirmed", "unconfirmed", "unconfirmed", "unconfirmed"]).then_some(())
    });
}

#[test]
fn each_copy_of_a_dm_is_acknowledged_to_who_wants_that() {
    let env = TestEnv::new();
    let mut alice = env.start("alice", &[]);
    let mut wants = RawPeer::introduced(&env, "wants", &alice);
    let mut plain = RawPeer::introduced_with(&env, "plain", &[("FEATURES", "dance")], &alice);
    for _ in 0..3 {
        wants.send(&alice, &wants.dm(&alice, "hello", "any printable id!"));
    }
    for _ in 0..3 {
        let ack = wants.next_from(&alice, "ACK");
        assert_eq!((ack.get("MESSAGE_ID"), ack.get("STATUS")), ("any printable id!", "RECEIVED"));
    }
    assert_eq!(wants.count(&alice, "ACK"), 0);
    alice.take_message("dm", "hello");

    plain.send(&alice, &plain.dm(&alice, "from plain", "p1"));
    alice.take_message("dm", "from plain");
    assert_eq!(plain.count(&alice, "ACK"), 0);
    // A peer that has sent an ACK understands ACKs.
    let sent = alice.run_command("dm plain one");
    assert_eq!(sent["awaits_ack"], false);
    let one = plain.next_from(&alice, "DM");
    plain.ack(&alice, one.get("MESSAGE_ID"));
    plain.send(&alice, &plain.dm(&alice, "again from plain", "p2"));
    assert_eq!(plain.next_from(&alice, "ACK").get("MESSAGE_ID"), "p2");
    assert_eq!(alice.run_command("dm plain two")["awaits_ack"], true);
    let two = plain.next_from(&alice, "DM");
    assert_eq!(plain.next_from(&alice, "DM").get("MESSAGE_ID"), two.get("MESSAGE_ID"));
    plain.ack(&alice, two.get("MESSAGE_ID"));
    alice.take_event("confirmed");
    // A POST is not acknowledged.
    wants.post(&alice, "to all", "w1");
    alice.take_message("post", "to all");
    assert_eq!(wants.count(&alice, "ACK"), 0);
    assert_eq!(alice.count(|it| it["event"] == "dm" && it["from"].is_string() && it["content"] == "hello"), 0);
    let texts: Vec<_> = alice.history().iter().map(|it| it["text"].clone()).collect();
    assert_eq!(texts, ["hello", "from plain", "one", "again from plain", "two", "to all"]);
}

/// Input beyond the rate limit of receivers is sent more slowly.
#[test]
fn whatever_is_piped_in_arrives() {
    let env = TestEnv::new();
    let mut bob = env.start("bob", &[]);
    let input: String = (0..200).map(|nth| format!("post p{nth}\ndm bob d{nth}\n")).collect();
    let (code, out, error) = in_pipe(&mut env.command("alice"), &input);
    assert_eq!((code, &*error), (0, ""));
    assert!(!out.contains("error: ") && !out.contains("unconfirmed"), "{out}");
    assert_eq!(out.lines().filter(|line| *line == "bob has your message").count(), 200);
    let of = |kind: &str, prefix: &str, bob: &mut Peer| {
        let texts: Vec<String> = (0..200).map(|nth| format!("{prefix}{nth}")).collect();
        let history = bob.history();
        let heard = history.iter().filter(|it| it["type"] == kind).map(|it| it["text"].as_str().unwrap().to_owned());
        (heard.collect::<Vec<_>>(), texts)
    };
    eventually("all to be kept", || (bob.history().len() == 400).then_some(()));
    for (kind, prefix) in [("POST", "p"), ("DM", "d")] {
        let (heard, texts) = of(kind, prefix, &mut bob);
        assert_eq!(heard, texts);
    }
    assert_eq!(bob.drop_count("too-many"), 0);
}

#[test]
fn what_could_not_be_kept_is_told() {
    let env = TestEnv::new();
    let mut alice = env.start("alice", &[]);
    let mut zoe = RawPeer::introduced(&env, "zoe", &alice);
    // Simulates a failing disk.
    let file = rusqlite::Connection::open(env.data_dir("alice").join("lan.db")).unwrap();
    file.execute_batch("ALTER TABLE lan_message RENAME TO elsewhere").unwrap();
    let dm = zoe.dm(&alice, "hello", "z1");
    zoe.send(&alice, &dm);
    let told = alice.take_event("not_kept");
    assert_eq!((&told["user_id"], &told["message_id"]), (&json!("zoe@127.0.0.1"), &json!("z1")), "{told}");
    assert!(told["reason"].as_str().unwrap().contains("lan_message"), "{told}");
    assert_eq!((zoe.count(&alice, "ACK"), alice.count(|it| it["event"] == "dm")), (0, 0));
    assert!(alice.run_refused("profile Alice").contains("not kept"));
    // It is shown and acknowledged once it can be stored; the refused command is not executed.
    file.execute_batch("ALTER TABLE elsewhere RENAME TO lan_message").unwrap();
    zoe.send(&alice, &dm);
    alice.take_message("dm", "hello");
    assert_eq!(zoe.next_from(&alice, "ACK").get("MESSAGE_ID"), "z1");
    alice.send_line("quit");
    assert_eq!(alice.end_input(), 0);
    assert_eq!(env.start("alice", &[]).started["profile"], json!(null));
}

#[test]
fn peers_tell_whom_they_know() {
    let env = TestEnv::new();
    let [mut alice, mut bob] = env.start_all(["alice", "bob"]);
    let mut asker = RawPeer::introduced(&env, "asker", &alice);
    alice.wait_for_peers(&["asker", "bob"]);
    bob.wait_for_peers(&["alice", "asker"]);
    let told = asker.request_peers(&alice);
    assert_eq!((told.get("FROM"), told.get("COUNT")), ("alice@127.0.0.1", "1"));
    assert_eq!(told.get("PEERS"), r#"["bob@127.0.0.1"]"#);
    assert_eq!(told.get("ADDRS"), format!(r#"["{}"]"#, bob.addr));
    stamped(&told);

    // Peers from the list are announced to, and so become known.
    let mut far = RawPeer::new(&TestEnv::new(), "far");
    assert_eq!(alice.run_command("peers")["asked"], 2);
    let question = asker.next_from(&alice, "PEER_LIST_REQUEST");
    assert_eq!(question.get("FROM"), "alice@127.0.0.1");
    stamped(&question);
    let answer = datagram(&[
        ("TYPE", "PEER_LIST_RESPONSE"),
        ("FROM", &asker.user_id()),
        ("PEERS", r#"["far@127.0.0.1", "alice@127.0.0.1"]"#),
        ("COUNT", "2"),
        ("ADDRS", &json!([far.addr(), alice.addr.to_string()]).to_string()),
    ]);
    asker.send(&alice, &answer);
    far.next_from(&alice, "PEER_DISCOVERY");
    assert_eq!(alice.listed_names(), ["asker", "bob"], "it has said nothing yet");
    far.send(&alice, &far.discovery(&[]));
    alice.wait_for_peers(&["asker", "bob", "far"]);
}

#[test]
fn a_profile_with_its_picture_arrives_whole() {
    let env = TestEnv::new();
    let [mut alice, mut bob] = env.start_all(["alice", "bob"]);
    let mut zoe = RawPeer::introduced(&env, "zoe", &alice);
    alice.wait_for_peers(&["bob", "zoe"]);
    bob.wait_for_peers(&["alice", "zoe"]);
    let largest = picture(20_480);
    let at = file(&env, "a largest | picture.png", &largest);
    let done = alice.run_command(&format!("profile Alice A. | on the air | {}", at.display()));
    assert_eq!(done["to"], 2, "{done}");
    let said = zoe.next_from(&alice, "PROFILE");
    assert_eq!((said.get("USER_ID"), said.get("DISPLAY_NAME")), ("alice@127.0.0.1", "Alice A."));
    assert_eq!((said.get("STATUS"), said.get("AVATAR_TYPE")), ("on the air", "image/png"));
    assert_eq!(said.get("AVATAR_ENCODING"), "base64");
    assert!(STANDARD.decode(said.get("AVATAR_DATA")).unwrap() == largest);
    stamped(&said);
    let shown = bob.take("the profile", |it| it["event"] == "profile" && it["from"].is_string()).json;
    assert_eq!((&shown["display_name"], &shown["status"]), (&json!("Alice A."), &json!("on the air")));
    assert_eq!((&shown["avatar_type"], &shown["avatar_bytes"]), (&json!("image/png"), &json!(20_480)));

    let too_large = file(&env, "larger.png", &picture(20_481));
    let no_picture = file(&env, "notes.txt", b"milk, eggs");
    let empty = file(&env, "empty.png", b"");
    for (path, why) in
        [(too_large, "20480"), (no_picture, "PNG"), (empty, "empty.png"), (env.dir().join("none"), "none")]
    {
        let error = alice.run_refused(&format!("profile A | b | {}", path.display()));
        assert!(error.contains(why) && error.contains("AVATAR-FILE"), "{error}");
    }
    for (profile, field) in [
        (format!("{} | b", "n".repeat(65)), "NAME"),
        (format!("A | {}", "s".repeat(257)), "STATUS"),
        ("| b".to_owned(), "NAME"),
    ] {
        let error = alice.run_refused(&format!("profile {profile}"));
        assert!(error.contains(field), "{error}");
    }
    // Nothing was sent for these. Status and avatar are optional.
    let done = alice.run_command("profile Al");
    assert_eq!(done["to"], 2, "{done}");
    let said = zoe.next_from(&alice, "PROFILE");
    assert_eq!((said.get("DISPLAY_NAME"), said.get("STATUS"), said.maybe("AVATAR_TYPE")), ("Al", "", None));
    assert_eq!((said.maybe("AVATAR_DATA"), said.maybe("AVATAR_ENCODING")), (None, None));
    assert_eq!(zoe.count(&alice, "PROFILE"), 0);

    // The other direction.
    let avatar = STANDARD.encode(&largest);
    let profile = |data: &str, id: &str| {
        datagram(&[
            ("TYPE", "PROFILE"),
            ("USER_ID", &zoe.user_id()),
            ("DISPLAY_NAME", "Zoe"),
            ("STATUS", ""),
            ("AVATAR_TYPE", "image/png"),
            ("AVATAR_ENCODING", "base64"),
            ("AVATAR_DATA", data),
            ("MESSAGE_ID", id),
        ])
    };
    // An avatar that is too large is ignored.
    for (id, data, shown_bytes) in
        [("z1", STANDARD.encode(picture(20_481)), json!(null)), ("z2", avatar, json!(20_480))]
    {
        zoe.send(&alice, &profile(&data, id));
        let shown = alice.take("the profile", |it| it["event"] == "profile" && it["from"].is_string()).json;
        assert_eq!((&shown["message_id"], &shown["avatar_bytes"]), (&json!(id), &shown_bytes));
    }
    assert_eq!(alice.drop_count("malformed"), 0);
}

#[test]
fn who_never_announced_himself_is_shown() {
    let env = TestEnv::new();
    let mut alice = env.start("alice", &[]);
    let stranger = RawPeer::new(&env, "stranger");
    stranger.post(&alice, "is anybody there?", "s1");
    assert_eq!(alice.take_message("post", "is anybody there?")["user_id"], "stranger@127.0.0.1");
    stranger.send(&alice, &stranger.dm(&alice, "you?", "s2"));
    alice.take_message("dm", "you?");
    assert_eq!(alice.listed_names(), Vec::<String>::new());
    assert!(alice.run_refused("dm stranger yes").contains("nobody"));
    assert!(alice.run_refused("post to whom?").contains("nobody"));
    // A DM to somebody else is dropped.
    let for_bob =
        datagram(&[("TYPE", "DM"), ("FROM", &stranger.user_id()), ("TO", "bob@127.0.0.1"), ("CONTENT", "for bob")]);
    stranger.send(&alice, &for_bob);
    eventually("it to be dropped", || (alice.drop_count("not-for-us") == 1).then_some(()));
    assert_eq!(alice.history().len(), 2);
}

/// Two peers that are connected by two networks.
#[test]
fn a_peer_seen_through_two_interfaces_is_one() {
    let Some(mut lan) = crate::netns::Lan::new(2) else { return };
    lan.second_network(&[0, 1]);
    let env = TestEnv::in_network();
    let spawn = |host: usize, name: &str| Peer::spawn(&mut env.on_host(&lan, host, name));
    let mut alice = spawn(0, "alice");
    let mut bob = spawn(1, "bob");
    (alice, bob) = (alice.started(), bob.started());
    alice.wait_for_peers(&["bob"]);
    bob.wait_for_peers(&["alice"]);
    alice.run_command("post once");
    let heard = bob.take_message("post", "once");
    let ips = [lan.ip(0).to_string(), lan.second_ip(0).to_string()];
    let user_id = heard["user_id"].as_str().unwrap();
    assert!(ips.iter().any(|ip| user_id == format!("alice@{ip}")), "{user_id}");
    assert_eq!(alice.run_command("dm bob twice")["awaits_ack"], true);
    bob.take_message("dm", "twice");
    alice.take_event("confirmed");
    assert_eq!(bob.count(|it| it["from"].is_string()), 0);
}
