//! Datagrams as the specification allows them to be written, however others write them.

use serde_json::json;

use crate::peers::{Bare, Place, datagram};
use crate::support::eventually;

#[test]
fn every_way_of_writing_is_read() {
    let place = Place::new();
    let mut alice = place.start("alice", &["--verbose"]);
    // Blanks behind the colons, CRLF, keys in any order, unknown ones; no TIMESTAMP, MESSAGE_ID or INSTANCE.
    let mut zoe = Bare::new(&place, "zoë @ home");
    let crlf = format!(
        "PORT: {}\r\nUSER_ID: {}\r\nX-COLOUR: blue:green\r\nFEATURES: dance,ack\r\nTYPE: PEER_DISCOVERY\r\n\r\n",
        zoe.port(),
        zoe.user_id()
    );
    zoe.broadcasts(crlf.as_bytes());
    assert_eq!(zoe.next_from(&alice, "PEER_DISCOVERY").get("USER_ID"), "alice@127.0.0.1");
    assert_eq!(alice.lists(), [("zoë @ home@127.0.0.1".to_owned(), zoe.port())]);
    // Where the datagram ends without an empty line, it ends.
    let yan = Bare::new(&place, "yan");
    yan.broadcasts(format!("TYPE:PEER_DISCOVERY\nUSER_ID:yan@127.0.0.1\nPORT:{}", yan.port()).as_bytes());
    alice.knows(&["yan", "zoë @ home"]);

    // One blank is dropped, the others belong to the text; without a MESSAGE_ID nothing is a repeat.
    let post = format!("TYPE: POST\r\nUSER_ID: {}\r\nCONTENT:  a: b\u{2028}c \r\nMOOD:\r\n\r\n", zoe.user_id());
    for _ in 0..2 {
        zoe.sends(&alice, post.as_bytes());
    }
    for _ in 0..2 {
        let heard = alice.hears("post", " a: b\nc ");
        assert_eq!((&heard["timestamp"], &heard["message_id"]), (&json!(null), &json!(null)));
    }
    let dm = format!("TYPE:DM\nFROM:{}\nTO: alice@127.0.0.1\nCONTENT:hi\n\n", zoe.user_id());
    zoe.sends(&alice, dm.as_bytes());
    alice.hears("dm", "hi");
    let profile = format!("TYPE:PROFILE\nUSER_ID:{}\nDISPLAY_NAME: Zoë\nSTATUS:\n\n", zoe.user_id());
    zoe.sends(&alice, profile.as_bytes());
    assert_eq!(alice.take("the profile", |it| it["event"] == "profile").json["display_name"], "Zoë");
    zoe.sends(&alice, format!("TYPE: PEER_LIST_REQUEST\r\nFROM: {}\r\n\r\n", zoe.user_id()).as_bytes());
    assert_eq!(zoe.next_from(&alice, "PEER_LIST_RESPONSE").get("PEERS"), r#"["yan@127.0.0.1"]"#);
    // Of what cannot be named by a MESSAGE_ID no ACK can come.
    assert_eq!(zoe.count(&alice, "ACK"), 0);
    zoe.sends(&alice, b"TYPE: DANCE\r\nTEMPO: 120\r\n\r\n");
    assert!(alice.drops("unknown-type").contains("DANCE"));

    // And what comes back.
    alice.ask("dm \"zoë @ home\" well\u{2028}met");
    let dm = zoe.next_from(&alice, "DM");
    assert_eq!((dm.get("TO"), dm.get("CONTENT")), ("zoë @ home@127.0.0.1", "well\u{2028}met"));
    zoe.sends(
        &alice,
        format!("MESSAGE_ID: {}\r\nSTATUS: RECEIVED\r\nTYPE: ACK\r\n\r\n", dm.get("MESSAGE_ID")).as_bytes(),
    );
    alice.event("confirmed");
    assert_eq!((alice.dropped("malformed"), alice.dropped("unknown-type")), (0, 1));
}

#[test]
fn what_is_wrong_is_named() {
    let place = Place::new();
    let mut alice = place.start("alice", &["--verbose"]);
    let zoe = Bare::met(&place, "zoe", &alice);
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
        zoe.sends(&alice, bytes);
        let all = 1 + nth as u64;
        eventually("it to be dropped", || (alice.dropped("malformed") == all).then_some(()));
        // Of very many drops in a short time not all are shown.
        let detail = alice.drops("malformed");
        assert!(detail.contains(field), "{field}: {detail}");
    }
    assert_eq!(alice.history().len(), 0);
}
