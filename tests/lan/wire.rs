//! All spellings of datagrams that the specification allows, and errors.

use serde_json::json;

use crate::peers::{RawPeer, TestEnv, datagram};
use crate::support::eventually;

#[test]
fn every_way_of_writing_is_read() {
    let env = TestEnv::new();
    let mut alice = env.start("alice", &["--verbose"]);
    // Blanks after the colons, CRLF, keys in any order, unknown keys; no TIMESTAMP, MESSAGE_ID or INSTANCE.
    let mut zoe = RawPeer::new(&env, "zoë @ home");
    let crlf = format!(
        "PORT: {}\r\nUSER_ID: {}\r\nX-COLOUR: blue:green\r\nFEATURES: dance,ack\r\nTYPE: PEER_DISCOVERY\r\n\r\n",
        zoe.port(),
        zoe.user_id()
    );
    zoe.broadcast(crlf.as_bytes());
    assert_eq!(zoe.next_from(&alice, "PEER_DISCOVERY").get("USER_ID"), "alice@127.0.0.1");
    assert_eq!(alice.listed_peers(), [("zoë @ home@127.0.0.1".to_owned(), zoe.port())]);
    // The empty line at the end may be missing.
    let yan = RawPeer::new(&env, "yan");
    yan.broadcast(format!("TYPE:PEER_DISCOVERY\nUSER_ID:yan@127.0.0.1\nPORT:{}", yan.port()).as_bytes());
    alice.wait_for_peers(&["yan", "zoë @ home"]);

    // One blank is dropped, further ones belong to the text; without MESSAGE_ID nothing is deduplicated.
    let post = format!("TYPE: POST\r\nUSER_ID: {}\r\nCONTENT:  a: b\u{2028}c \r\nMOOD:\r\n\r\n", zoe.user_id());
    for _ in 0..2 {
        zoe.send(&alice, post.as_bytes());
    }
    for _ in 0..2 {
        let heard = alice.take_message("post", " a: b\nc ");
        assert_eq!((&heard["timestamp"], &heard["message_id"]), (&json!(null), &json!(null)));
    }
    let dm = format!("TYPE:DM\nFROM:{}\nTO: alice@127.0.0.1\nCONTENT:hi\n\n", zoe.user_id());
    zoe.send(&alice, dm.as_bytes());
    alice.take_message("dm", "hi");
    let profile = format!("TYPE:PROFILE\nUSER_ID:{}\nDISPLAY_NAME: Zoë\nSTATUS:\n\n", zoe.user_id());
    zoe.send(&alice, profile.as_bytes());
    assert_eq!(alice.take("the profile", |it| it["event"] == "profile").json["display_name"], "Zoë");
    zoe.send(&alice, format!("TYPE: PEER_LIST_REQUEST\r\nFROM: {}\r\n\r\n", zoe.user_id()).as_bytes());
    assert_eq!(zoe.next_from(&alice, "PEER_LIST_RESPONSE").get("PEERS"), r#"["yan@127.0.0.1"]"#);
    // A DM without MESSAGE_ID is not acknowledged.
    assert_eq!(zoe.count(&alice, "ACK"), 0);
    zoe.send(&alice, b"TYPE: DANCE\r\nTEMPO: 120\r\n\r\n");
    assert!(alice.take_drop("unknown-type").contains("DANCE"));

    // The other direction.
    alice.run_command("dm \"zoë @ home\" well\u{2028}met");
    let dm = zoe.next_from(&alice, "DM");
    assert_eq!((dm.get("TO"), dm.get("CONTENT")), ("zoë @ home@127.0.0.1", "well\u{2028}met"));
    zoe.send(
        &alice,
        format!("MESSAGE_ID: {}\r\nSTATUS: RECEIVED\r\nTYPE: ACK\r\n\r\n", dm.get("MESSAGE_ID")).as_bytes(),
    );
    alice.take_event("confirmed");
    assert_eq!((alice.drop_count("malformed"), alice.drop_count("unknown-type")), (0, 1));
}

#[test]
fn what_is_wrong_is_named() {
    let env = TestEnv::new();
    let mut alice = env.start("alice", &["--verbose"]);
    let zoe = RawPeer::introduced(&env, "zoe", &alice);
    let user_id = zoe.user_id();
    let post = |keys: &[(&str, &str)]| datagram(&[&[("TYPE", "POST")], keys].concat());
    let wrong: [(Vec<u8>, &str); 10] = [
        (post(&[("CONTENT", "hi")]), "USER_ID"),
        (post(&[("USER_ID", "zoe"), ("CONTENT", "hi")]), "USER_ID"),
        (post(&[("USER_ID", &user_id)]), "CONTENT"),
        (post(&[("USER_ID", &user_id), ("CONTENT", "")]), "CONTENT"),
        (post(&[("USER_ID", &user_id), ("CONTENT", "hi"), ("TIMESTAMP", "noon")]), "TIMESTAMP"),
        (post(&[("USER_ID", &user_id), ("CONTENT", "hi"), ("MESSAGE_ID", &"x".repeat(65))]), "MESSAGE_ID"),
        (post(&[("USER_ID", &user_id), ("CONTENT", "hi"), ("CONTENT", "ho")]), "CONTENT"),
        (zoe.discovery(&[("PORT", "80")]), "PORT"),
        (b"CONTENT:hi\n\n".to_vec(), "TYPE"),
        (b"hello\n\n".to_vec(), "colon"),
    ];
    for (nth, (bytes, field)) in wrong.iter().enumerate() {
        zoe.send(&alice, bytes);
        let all = 1 + nth as u64;
        eventually("it to be dropped", || (alice.drop_count("malformed") == all).then_some(()));
        // Taken one by one, as not all drops of a flood are notified.
        let detail = alice.take_drop("malformed");
        assert!(detail.contains(field), "{field}: {detail}");
    }
    assert_eq!(alice.history().len(), 0);
}
