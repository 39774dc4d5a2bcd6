//! Decoding, error texts, and round trips.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::*;

mod properties;

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n....";

fn id(text: &str) -> UserId {
    UserId::parse(text).unwrap()
}

fn stamp(timestamp: u64, message_id: &str) -> MessageStamp {
    MessageStamp { timestamp: Some(timestamp), message_id: Some(message_id.to_owned()) }
}

fn refused(datagram: &[u8]) -> String {
    match decode(datagram) {
        Err(WireError::Malformed(cause)) => cause,
        other => panic!("{} was read as {other:?}", String::from_utf8_lossy(datagram)),
    }
}

fn talk(from: &str, to: Option<&str>, body: impl Into<TalkBody>, stamp: MessageStamp) -> Message {
    Message::Talk(Talk { from: id(from), to: to.map(id), body: body.into(), stamp })
}

/// Asserts that a message and a datagram encode and decode to each other.
fn stands_for(message: &Message, datagram: &str) {
    assert_eq!(decode(datagram.as_bytes()).as_ref(), Ok(message), "{datagram}");
    assert_eq!(String::from_utf8(encode(message).unwrap()).unwrap(), datagram);
}

#[test]
fn each_type_has_its_keys() {
    stands_for(
        &Message::Discovery(Discovery {
            user_id: id("al@192.168.1.11"),
            port: 8500,
            instance: Some("00ff00ff00ff00ff".to_owned()),
            features: Features { ack: true, probe: false },
            serves: vec![("trade".to_owned(), 7001), ("registry".to_owned(), 9000)],
            cert_sha256: Some("ab".repeat(32)),
            stamp: stamp(1_728_938_500, "0123456789abcdef"),
        }),
        &format!(
            "TYPE:PEER_DISCOVERY\nUSER_ID:al@192.168.1.11\nPORT:8500\nTIMESTAMP:1728938500\n\
             MESSAGE_ID:0123456789abcdef\nINSTANCE:00ff00ff00ff00ff\nFEATURES:ack\nSERVES:trade=7001,registry=9000\n\
             CERT_SHA256:{}\n\n",
            "ab".repeat(32)
        ),
    );
    stands_for(
        &talk(
            "alice@192.168.1.11",
            None,
            Post { content: "Hello P2P network!".to_owned() },
            stamp(1_728_938_500, "abc123"),
        ),
        "TYPE:POST\nUSER_ID:alice@192.168.1.11\nCONTENT:Hello P2P network!\nTIMESTAMP:1728938500\nMESSAGE_ID:abc123\n\n",
    );
    stands_for(
        &talk("al@10.0.0.1", Some("b@b@10.0.0.2"), Dm { content: "a: b\nc".to_owned() }, MessageStamp::default()),
        "TYPE:DM\nFROM:al@10.0.0.1\nTO:b@b@10.0.0.2\nCONTENT:a: b\u{2028}c\n\n",
    );
    stands_for(
        &talk(
            "al@10.0.0.1",
            None,
            Profile {
                display_name: "Al Übel".to_owned(),
                status: String::new(),
                avatar: Some(Avatar::from_bytes(PNG).unwrap()),
            },
            stamp(0, "x"),
        ),
        "TYPE:PROFILE\nUSER_ID:al@10.0.0.1\nDISPLAY_NAME:Al Übel\nSTATUS:\nAVATAR_TYPE:image/png\n\
         AVATAR_ENCODING:base64\nAVATAR_DATA:iVBORw0KGgouLi4u\nTIMESTAMP:0\nMESSAGE_ID:x\n\n",
    );
    stands_for(
        &Message::PeerListRequest { from: id("al@10.0.0.1"), stamp: stamp(7, "x") },
        "TYPE:PEER_LIST_REQUEST\nFROM:al@10.0.0.1\nTIMESTAMP:7\nMESSAGE_ID:x\n\n",
    );
    stands_for(
        &Message::PeerListResponse(PeerList {
            from: id("al@10.0.0.1"),
            peers: vec![(id("b\"c@10.0.0.2"), Some("10.0.0.2:8001".parse().unwrap())), (id("d@10.0.0.3"), None)],
            stamp: MessageStamp::default(),
        }),
        "TYPE:PEER_LIST_RESPONSE\nFROM:al@10.0.0.1\nPEERS:[\"b\\\"c@10.0.0.2\",\"d@10.0.0.3\"]\nCOUNT:2\n\
         ADDRS:[\"10.0.0.2:8001\",null]\n\n",
    );
    stands_for(
        &Message::PeerListResponse(PeerList {
            from: id("al@10.0.0.1"),
            peers: vec![(id("d@10.0.0.3"), None)],
            stamp: MessageStamp::default(),
        }),
        "TYPE:PEER_LIST_RESPONSE\nFROM:al@10.0.0.1\nPEERS:[\"d@10.0.0.3\"]\nCOUNT:1\n\n",
    );
    stands_for(&Message::Ack { message_id: "abc".to_owned() }, "TYPE:ACK\nMESSAGE_ID:abc\nSTATUS:RECEIVED\n\n");
}

#[test]
fn older_and_other_programs_are_read() {
    let hello = |content: &str, timestamp| {
        let stamp = MessageStamp { timestamp, message_id: None };
        talk("al@10.0.0.1", None, Post { content: content.to_owned() }, stamp)
    };
    for (datagram, message) in [
        // The end may be an empty line, the end of the datagram, or that of the last line.
        ("TYPE:POST\nUSER_ID:al@10.0.0.1\nCONTENT:hi\n\n", hello("hi", None)),
        ("TYPE:POST\nUSER_ID:al@10.0.0.1\nCONTENT:hi\n", hello("hi", None)),
        ("TYPE:POST\nUSER_ID:al@10.0.0.1\nCONTENT:hi", hello("hi", None)),
        ("TYPE:POST\r\nUSER_ID:al@10.0.0.1\r\nCONTENT:hi\r\n\r\n", hello("hi", None)),
        ("TYPE:POST\r\nUSER_ID:al@10.0.0.1\nCONTENT:hi\r\n\n", hello("hi", None)),
        // White space after the empty line is ignored.
        ("TYPE:POST\nUSER_ID:al@10.0.0.1\nCONTENT:hi\n\n \r\n\t\n\n", hello("hi", None)),
        // One space after the colon is dropped, and only one.
        ("TYPE: POST\nUSER_ID: al@10.0.0.1\nCONTENT: hi\n\n", hello("hi", None)),
        ("TYPE: POST\nUSER_ID: al@10.0.0.1\nCONTENT:  hi \n\n", hello(" hi ", None)),
        // Keys in any order; a colon in a value; unknown keys, also in lower case.
        ("CONTENT:a:b::\nUSER_ID:al@10.0.0.1\nX:1\ntype:DM\nTYPE:POST\n\n", hello("a:b::", None)),
        ("TYPE:POST\nUSER_ID:al@10.0.0.1\nCONTENT:a\u{2028}b\u{2028}\n\n", hello("a\nb\n", None)),
        ("TYPE:POST\nUSER_ID:al@10.0.0.1\nCONTENT:a\rb\n\n", hello("a\rb", None)),
        ("TYPE:POST\nUSER_ID:al@10.0.0.1\nCONTENT:hi\nTIMESTAMP:1728938500\n\n", hello("hi", Some(1_728_938_500))),
        ("TYPE:POST\nUSER_ID:al@10.0.0.1\nCONTENT:hi\nTIMESTAMP:1728938500.75\n\n", hello("hi", Some(1_728_938_500))),
    ] {
        assert_eq!(decode(datagram.as_bytes()), Ok(message), "{datagram:?}");
    }
    // The announcement of the oldest known implementation.
    let Ok(Message::Discovery(found)) =
        decode(b"TYPE: PEER_DISCOVERY\nUSER_ID: al@10.0.0.1\nPORT: 8500\nTIMESTAMP: 1728938500\n\n")
    else {
        panic!()
    };
    assert_eq!((found.port, found.instance, found.features, found.serves.len()), (8500, None, Features::default(), 0));
    let Ok(Message::Discovery(found)) = decode(
        b"TYPE:PEER_DISCOVERY\nUSER_ID:s@10.0.0.1\nPORT:1\nFEATURES: zip, probe ,Ack,\nSERVES: trade=7001 , shop.b=2\n\n",
    ) else {
        panic!()
    };
    assert_eq!(found.features, Features { ack: false, probe: true });
    assert_eq!(found.serves, [("trade".to_owned(), 7001), ("shop.b".to_owned(), 2)]);
    let Ok(Message::Talk(Talk { body: TalkBody::Profile(found), .. })) = decode(
        b"TYPE:PROFILE\nUSER_ID:s@10.0.0.1\nDISPLAY_NAME:S\nSTATUS:\nAVATAR_TYPE:image/gif\nAVATAR_DATA:R0lGODlh\n\n",
    ) else {
        panic!()
    };
    assert_eq!(found.avatar, Some(Avatar { kind: AvatarKind::Gif, bytes: b"GIF89a".to_vec() }));
}

#[test]
fn a_byte_order_mark_is_skipped() {
    let read_post = |text: &str| match decode(text.as_bytes()) {
        Ok(Message::Talk(Talk { body: TalkBody::Post(post), .. })) => post.content,
        other => panic!("{other:?}"),
    };
    assert_eq!(read_post("\u{feff}TYPE:POST\nUSER_ID:s@10.0.0.1\nCONTENT:\u{feff}hi\n\n"), "\u{feff}hi");
}

#[test]
fn a_profile_is_worth_showing_without_its_picture() {
    let avatar = |lines: &str| {
        let datagram = format!("TYPE:PROFILE\nUSER_ID:s@10.0.0.1\nDISPLAY_NAME:S\nSTATUS:here\n{lines}\n\n");
        let Ok(Message::Talk(Talk { body: TalkBody::Profile(found), .. })) = decode(datagram.as_bytes()) else {
            panic!("{lines}")
        };
        assert_eq!((&*found.display_name, &*found.status), ("S", "here"));
        found.avatar
    };
    for none in [
        "AVATAR_TYPE:image/svg\nAVATAR_DATA:R0lGODlh",
        "AVATAR_TYPE:IMAGE/PNG\nAVATAR_ENCODING:base64\nAVATAR_DATA:R0lGODlh",
        "AVATAR_TYPE:\nAVATAR_DATA:",
        "AVATAR_TYPE:image/gif\nAVATAR_ENCODING:base64\nAVATAR_DATA:",
    ] {
        assert_eq!(avatar(none), None, "{none}");
    }
    // An avatar that is too large is ignored, with padding or without.
    for (size, is_shown) in [(AVATAR_MAX, true), (AVATAR_MAX + 1, false), (AVATAR_MAX + 2, false), (45_000, false)] {
        let data = STANDARD.encode(vec![7; size]);
        for data in [&*data, data.trim_end_matches('=')] {
            let found = avatar(&format!("AVATAR_TYPE:image/png\nAVATAR_ENCODING:base64\nAVATAR_DATA:{data}"));
            assert_eq!(found.map(|avatar| avatar.bytes.len()), is_shown.then_some(size), "{size}");
        }
    }
    // Padding is optional.
    for (data, bytes) in
        [("R0lGODlhAA==", &b"GIF89a\0"[..]), ("R0lGODlhAA", b"GIF89a\0"), ("R0lGODlhAAA", b"GIF89a\0\0")]
    {
        let found = avatar(&format!("AVATAR_TYPE:image/gif\nAVATAR_DATA:{data}"));
        assert_eq!(found, Some(Avatar { kind: AvatarKind::Gif, bytes: bytes.to_vec() }), "{data}");
    }
}

#[test]
fn a_type_that_is_not_known_is_a_cause_of_its_own() {
    assert_eq!(decode(b"TYPE:FILE\nX:1\n\n"), Err(WireError::UnknownType("FILE".to_owned())));
    assert_eq!(decode(b"TYPE:\n\n"), Err(WireError::UnknownType(String::new())));
    assert_eq!(decode(b"TYPE:post\n\n").unwrap_err().to_string(), "TYPE: \"post\" is not known");
    // A long TYPE is truncated, and malformed lines take precedence.
    let Err(WireError::UnknownType(kept)) = decode(format!("TYPE:{}", "ü".repeat(30_000)).as_bytes()) else {
        panic!()
    };
    assert_eq!(kept.chars().count(), validation::QUOTED_MAX);
    assert_eq!(refused(b"TYPE:FILE\nX:1\nX:2\n\n"), "X: expected once, found again in line 3");
}

#[test]
fn what_is_wrong_is_named() {
    let long_key = "K".repeat(50);
    let lines_64 = (0..64).map(|n| format!("K{n}:\n")).collect::<String>();
    let causes = [
        ("", "TYPE: missing"),
        ("\n", "TYPE: missing"),
        ("\r\n\r\n", "TYPE: missing"),
        ("type:POST", "TYPE: missing"),
        ("TYPE :POST", "TYPE: missing"),
        ("\nTYPE:POST", "line 2: expected nothing behind the empty line"),
        ("TYPE:POST\n\nUSER_ID:al@10.0.0.1\n\n", "line 3: expected nothing behind the empty line"),
        ("TYPE:POST\n\n\u{a0}", "line 3: expected nothing behind the empty line"),
        ("hello", "line 1: expected KEY:VALUE, found no colon"),
        ("TYPE:POST\n \n\n", "line 2: expected KEY:VALUE, found no colon"),
        ("TYPE:POST\n:x\n", "line 2: expected a key before the colon"),
        ("TYPE:POST\nTYPE:POST\n", "TYPE: expected once, found again in line 2"),
        ("TYPE:POST\nx\u{1b}:1\nx\u{1b}:1\n", "\"x\\u{1b}\": expected once, found again in line 3"),
        (
            &format!("{long_key}:\n{long_key}:"),
            &format!("\"{}\"…: expected once, found again in line 2", "K".repeat(40)),
        ),
        (&format!("{lines_64}\n"), "TYPE: missing"),
        (&format!("{lines_64}TYPE:POST\n"), "line 65: expected at most 64 lines"),
        ("TYPE:POST\nCONTENT:x", "USER_ID: missing"),
        ("TYPE:POST\nUSER_ID:al\nCONTENT:x", "USER_ID: expected name@ip, found no @"),
        ("TYPE:POST\nUSER_ID:@10.0.0.1\nCONTENT:x", "USER_ID: name: expected 1 to 64 characters, not 0"),
        ("TYPE:POST\nUSER_ID:a\u{7}@10.0.0.1\nCONTENT:x", "USER_ID: name: expected no control characters"),
        ("TYPE:POST\nUSER_ID:a\u{2028}@10.0.0.1\nCONTENT:x", "USER_ID: name: expected no line breaks"),
        (
            &format!("TYPE:POST\nUSER_ID:{}@10.0.0.1\nCONTENT:x", "ü".repeat(65)),
            "USER_ID: name: expected 1 to 64 characters, not 65",
        ),
        ("TYPE:POST\nUSER_ID:al@::1\nCONTENT:x", "USER_ID: expected an IPv4 address behind the last @, not \"::1\""),
        ("TYPE:POST\nUSER_ID:al@home\nCONTENT:x", "USER_ID: expected an IPv4 address behind the last @, not \"home\""),
        (
            "TYPE:POST\nUSER_ID:al@10.0.0.1 \nCONTENT:x",
            "USER_ID: expected an IPv4 address behind the last @, not \"10.0.0.1 \"",
        ),
        ("TYPE:POST\nUSER_ID:al@10.0.0.1\n", "CONTENT: missing"),
        ("TYPE:POST\nUSER_ID:al@10.0.0.1\nCONTENT: \n", "CONTENT: expected 1 to 65507 characters, not 0"),
        ("TYPE:POST\nUSER_ID:al@10.0.0.1\nCONTENT:x\nTIMESTAMP:-1\n", "TIMESTAMP: expected Unix seconds, not \"-1\""),
        ("TYPE:POST\nUSER_ID:al@10.0.0.1\nCONTENT:x\nTIMESTAMP:\n", "TIMESTAMP: expected Unix seconds, not \"\""),
        ("TYPE:POST\nUSER_ID:al@10.0.0.1\nCONTENT:x\nTIMESTAMP:1.\n", "TIMESTAMP: expected Unix seconds, not \"1.\""),
        ("TYPE:POST\nUSER_ID:al@10.0.0.1\nCONTENT:x\nTIMESTAMP:1e9\n", "TIMESTAMP: expected Unix seconds, not \"1e9\""),
        (
            "TYPE:POST\nUSER_ID:al@10.0.0.1\nCONTENT:x\nTIMESTAMP:18446744073709551616\n",
            "TIMESTAMP: expected Unix seconds, not \"18446744073709551616\"",
        ),
        ("TYPE:POST\nUSER_ID:al@10.0.0.1\nCONTENT:x\nMESSAGE_ID:\n", "MESSAGE_ID: expected 1 to 64 characters, not 0"),
        ("TYPE:POST\nUSER_ID:al@10.0.0.1\nCONTENT:x\nMESSAGE_ID:a\tb\n", "MESSAGE_ID: expected no control characters"),
        (
            &format!("TYPE:POST\nUSER_ID:al@10.0.0.1\nCONTENT:x\nMESSAGE_ID:{}\n", "a".repeat(65)),
            "MESSAGE_ID: expected 1 to 64 characters, not 65",
        ),
        ("TYPE:DM\nTO:al@10.0.0.1\nCONTENT:x", "FROM: missing"),
        ("TYPE:DM\nFROM:al@10.0.0.1\nCONTENT:x", "TO: missing"),
        ("TYPE:DM\nFROM:al@10.0.0.1\nTO:bo\nCONTENT:x", "TO: expected name@ip, found no @"),
        ("TYPE:DM\nFROM:al@10.0.0.1\nTO:bo@10.0.0.2", "CONTENT: missing"),
        ("TYPE:PEER_LIST_REQUEST\n", "FROM: missing"),
        ("TYPE:ACK\nSTATUS:RECEIVED\n", "MESSAGE_ID: missing"),
        ("TYPE:ACK\nMESSAGE_ID:x\n", "STATUS: missing"),
        ("TYPE:ACK\nMESSAGE_ID:x\nSTATUS:READ\n", "STATUS: expected RECEIVED, not \"READ\""),
    ];
    for (datagram, cause) in causes {
        assert_eq!(refused(datagram.as_bytes()), cause, "{datagram:?}");
    }
}

#[test]
fn what_is_wrong_with_an_announcement_is_named() {
    let many = (0..33).map(|n| format!("s{n}=1")).collect::<Vec<_>>().join(",");
    for (line, cause) in [
        ("X:1", "PORT: missing"),
        ("PORT:0", "PORT: expected a port from 1 to 65535, not \"0\""),
        ("PORT:65536", "PORT: expected a port from 1 to 65535, not \"65536\""),
        ("PORT:+8", "PORT: expected a port from 1 to 65535, not \"+8\""),
        ("PORT:", "PORT: expected a port from 1 to 65535, not \"\""),
        ("PORT:1\nINSTANCE:", "INSTANCE: expected 1 to 64 characters, not 0"),
        ("PORT:1\nSERVES:trade", "SERVES: expected name=port, not \"trade\""),
        ("PORT:1\nSERVES:trade=1,", "SERVES: expected name=port, not \"\""),
        ("PORT:1\nSERVES:trade=0", "SERVES: trade: expected a port from 1 to 65535, not \"0\""),
        ("PORT:1\nSERVES:a=1,b=2,a=3", "SERVES: a: expected once"),
        (
            "PORT:1\nSERVES:a b=1",
            "SERVES: expected the name of a service (1 to 32 letters, digits, - _ .), not \"a b\"",
        ),
        (&format!("PORT:1\nSERVES:{many}"), "SERVES: expected at most 32 services, not 33"),
        ("PORT:1\nCERT_SHA256:ab", "CERT_SHA256: expected 64 lower-case hex digits"),
        (&format!("PORT:1\nCERT_SHA256:{}", "AB".repeat(32)), "CERT_SHA256: expected 64 lower-case hex digits"),
    ] {
        let datagram = format!("TYPE:PEER_DISCOVERY\nUSER_ID:al@10.0.0.1\n{line}\n\n");
        assert_eq!(refused(datagram.as_bytes()), cause, "{datagram:?}");
    }
}

#[test]
fn what_is_wrong_with_a_profile_is_named() {
    let long = "x".repeat(257);
    for (lines, cause) in [
        ("STATUS:x", "DISPLAY_NAME: missing"),
        ("DISPLAY_NAME:x", "STATUS: missing"),
        ("STATUS:x\nDISPLAY_NAME:", "DISPLAY_NAME: expected 1 to 64 characters, not 0"),
        ("STATUS:x\nDISPLAY_NAME:a\u{2028}b", "DISPLAY_NAME: expected no control characters"),
        (&format!("DISPLAY_NAME:x\nSTATUS:{long}"), "STATUS: expected 0 to 256 characters, not 257"),
        ("STATUS:\nDISPLAY_NAME:x\nAVATAR_TYPE:image/png", "AVATAR_DATA: missing"),
        ("STATUS:\nDISPLAY_NAME:x\nAVATAR_DATA:aaaa", "AVATAR_TYPE: missing"),
        ("STATUS:\nDISPLAY_NAME:x\nAVATAR_ENCODING:base64", "AVATAR_TYPE: missing"),
        (
            "STATUS:\nDISPLAY_NAME:x\nAVATAR_TYPE:image/png\nAVATAR_ENCODING:hex\nAVATAR_DATA:aaaa",
            "AVATAR_ENCODING: expected base64, not \"hex\"",
        ),
        (
            "STATUS:\nDISPLAY_NAME:x\nAVATAR_TYPE:image/png\nAVATAR_DATA:aa!a",
            "AVATAR_DATA: expected standard base64 (invalid symbol 33, offset 2)",
        ),
        (
            "STATUS:\nDISPLAY_NAME:x\nAVATAR_TYPE:image/png\nAVATAR_DATA:aaaaa",
            "AVATAR_DATA: expected standard base64 (invalid input length: 5)",
        ),
    ] {
        let datagram = format!("TYPE:PROFILE\nUSER_ID:al@10.0.0.1\n{lines}\n\n");
        assert_eq!(refused(datagram.as_bytes()), cause, "{datagram:?}");
    }
}

#[test]
fn what_is_wrong_with_a_list_of_peers_is_named() {
    for (lines, cause) in [
        ("COUNT:0", "PEERS: missing"),
        ("PEERS:[]", "COUNT: missing"),
        ("PEERS:[]\nCOUNT:1", "COUNT: expected 0, the length of PEERS, not \"1\""),
        ("PEERS:[]\nCOUNT:x", "COUNT: expected 0, the length of PEERS, not \"x\""),
        ("PEERS:{}\nCOUNT:0", "PEERS: expected a JSON list of texts (see its character 0)"),
        ("PEERS:[5]\nCOUNT:1", "PEERS: expected a JSON list of texts (see its character 2)"),
        ("PEERS:[\"a@10.0.0.1\"\nCOUNT:1", "PEERS: expected a JSON list of texts (see its character 13)"),
        ("PEERS:[\"a@10.0.0.1\",\"b\"]\nCOUNT:2", "PEERS: entry 2: expected name@ip, found no @"),
        ("PEERS:[\"a@10.0.0.1\"]\nCOUNT:1\nADDRS:[]", "ADDRS: expected 1, the length of PEERS, not 0"),
        ("PEERS:[\"a@10.0.0.1\"]\nCOUNT:1\nADDRS:[\"10.0.0.1\"]", "ADDRS: entry 1: expected ip:port, not \"10.0.0.1\""),
        (
            "PEERS:[\"a@10.0.0.1\"]\nCOUNT:1\nADDRS:[\"10.0.0.1:0\"]",
            "ADDRS: entry 1: expected an IPv4 address and a port from 1 to 65535, not 10.0.0.1:0",
        ),
        (
            "PEERS:[\"a@10.0.0.1\"]\nCOUNT:1\nADDRS:[\"[::1]:5\"]",
            "ADDRS: entry 1: expected an IPv4 address and a port from 1 to 65535, not [::1]:5",
        ),
    ] {
        let datagram = format!("TYPE:PEER_LIST_RESPONSE\nFROM:al@10.0.0.1\n{lines}\n\n");
        assert_eq!(refused(datagram.as_bytes()), cause, "{datagram:?}");
    }
}

#[test]
fn all_of_it_is_utf8_also_what_is_ignored() {
    for datagram in [&b"\xff"[..], b"TYPE:POST\nX:\xc0\xaf\n\n", b"TYPE:ACK\nMESSAGE_ID:x\nSTATUS:RECEIVED\n\n\xff"] {
        assert_eq!(refused(datagram), "datagram: expected UTF-8");
    }
}

#[test]
fn a_datagram_may_be_full_and_no_more() {
    let frame = "TYPE:POST\nUSER_ID:al@10.0.0.1\nCONTENT:\n\n".len();
    let post = |length| {
        let content = "x".repeat(length);
        talk("al@10.0.0.1", None, Post { content }, MessageStamp::default())
    };
    let full = post(DATAGRAM_MAX - frame);
    let datagram = encode(&full).unwrap();
    assert_eq!(datagram.len(), DATAGRAM_MAX);
    assert_eq!(decode(&datagram).unwrap(), full);
    assert_eq!(
        encode(&post(DATAGRAM_MAX - frame + 1)).unwrap_err().to_string(),
        "CONTENT: too long: the message has 65508 bytes, expected at most 65507"
    );
    assert_eq!(refused(&[datagram, vec![b'\n']].concat()), "datagram: expected at most 65507 bytes, not 65508");
}

/// Hostile datagrams are refused in bounded time.
#[test]
fn floods_are_refused_quickly() {
    let million = (0..1_000_000).map(|n| format!("K{n}:\n")).collect::<String>();
    let fitting = &million.as_bytes()[..DATAGRAM_MAX];
    let post = b"TYPE:POST\nUSER_ID:al@10.0.0.1\nCONTENT:";
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (million.clone().into_bytes(), "datagram: expected at most 65507 bytes"),
        (fitting.to_vec(), "line 65: expected at most 64 lines"),
        (":".repeat(DATAGRAM_MAX).into_bytes(), "line 1: expected a key"),
        ("\n".repeat(DATAGRAM_MAX).into_bytes(), "TYPE: missing"),
        ("a:\n".repeat(DATAGRAM_MAX / 3).into_bytes(), "\"a\": expected once"),
        (vec![b'x'; DATAGRAM_MAX], "line 1: expected KEY:VALUE"),
        (vec![0xff; DATAGRAM_MAX], "datagram: expected UTF-8"),
        ("\u{2028}".repeat(DATAGRAM_MAX / 3).into_bytes(), "line 1: expected KEY:VALUE"),
        (
            [&b"TYPE:PEER_LIST_RESPONSE\nFROM:a@1.1.1.1\nCOUNT:1\nPEERS:"[..], &[b'['; 60_000]].concat(),
            "PEERS: expected a JSON list",
        ),
        ([&post[..], "\u{2028}".repeat(20_000).as_bytes(), b"\nMESSAGE_ID:"].concat(), "MESSAGE_ID: expected"),
        (
            [&b"TYPE:PEER_DISCOVERY\nUSER_ID:a@1.1.1.1\nPORT:1\nSERVES:"[..], &[b','; 60_000]].concat(),
            "SERVES: expected at most 32 services, not 60001",
        ),
        // 64 long keys that differ only at their ends.
        (
            (0..70).map(|n| format!("{}{n}:\n", "K".repeat(900))).collect::<String>().into_bytes(),
            "line 65: expected at most 64 lines",
        ),
    ];
    for (datagram, cause) in cases {
        let started = Instant::now();
        for _ in 0..20 {
            let refused = refused(&datagram);
            assert!(refused.starts_with(cause), "{cause}: {refused}");
            assert!(refused.len() < 200, "{refused}");
        }
        // About a hundred times the usual duration.
        assert!(started.elapsed() < Duration::from_secs(2), "{cause}: {:?}", started.elapsed());
    }
}

#[test]
fn what_breaks_a_rule_is_not_written() {
    let user_id = id("al@10.0.0.1");
    let post = |content: &str, message_id: &str| {
        let stamp = MessageStamp { timestamp: None, message_id: Some(message_id.to_owned()) };
        talk("al@10.0.0.1", None, Post { content: content.to_owned() }, stamp)
    };
    let discovery = || Discovery {
        user_id: user_id.clone(),
        port: 8000,
        instance: None,
        features: Features::default(),
        serves: Vec::new(),
        cert_sha256: None,
        stamp: MessageStamp::default(),
    };
    let profile = |display_name: &str, avatar| {
        let (display_name, status) = (display_name.to_owned(), String::new());
        talk("al@10.0.0.1", None, Profile { display_name, status, avatar }, MessageStamp::default())
    };
    let serves = |list: &[(&str, u16)]| list.iter().map(|(name, port)| ((*name).to_owned(), *port)).collect();
    let list = |address: SocketAddr| {
        let peers = vec![(user_id.clone(), Some(address))];
        Message::PeerListResponse(PeerList { from: user_id.clone(), peers, stamp: MessageStamp::default() })
    };
    let broken = UserId { name: Name::from_stored("a\u{2028}b").unwrap(), ip: Ipv4Addr::LOCALHOST };
    let avatar = |size| Some(Avatar { kind: AvatarKind::Png, bytes: vec![0; size] });
    for (message, cause) in [
        (post("", "x"), "CONTENT: expected 1 to 65507 characters, not 0"),
        (post("x", ""), "MESSAGE_ID: expected 1 to 64 characters, not 0"),
        (post("x", "a\nb"), "MESSAGE_ID: expected no control characters"),
        (
            Message::PeerListRequest { from: broken, stamp: MessageStamp::default() },
            "FROM: name: expected no line breaks",
        ),
        (Message::Ack { message_id: "\u{2028}".to_owned() }, "MESSAGE_ID: expected no line breaks"),
        (Message::Discovery(Discovery { port: 0, ..discovery() }), "PORT: expected a port from 1 to 65535"),
        (
            Message::Discovery(Discovery { serves: serves(&[("a", 1), ("a", 2)]), ..discovery() }),
            "SERVES: a: expected once",
        ),
        (
            Message::Discovery(Discovery { serves: serves(&[("a", 0)]), ..discovery() }),
            "SERVES: a: expected a port from 1 to 65535",
        ),
        (
            Message::Discovery(Discovery { cert_sha256: Some("AB".repeat(32)), ..discovery() }),
            "CERT_SHA256: expected 64 lower-case hex digits",
        ),
        (profile("", None), "DISPLAY_NAME: expected 1 to 64 characters, not 0"),
        (profile("a\nb", None), "DISPLAY_NAME: expected no line breaks"),
        (profile("a", avatar(0)), "AVATAR_DATA: expected a picture, found no bytes"),
        (profile("a", avatar(AVATAR_MAX + 1)), "AVATAR_DATA: expected at most 20480 bytes, not 20481"),
        (
            list("[::1]:5".parse().unwrap()),
            "ADDRS: entry 1: expected an IPv4 address and a port from 1 to 65535, not [::1]:5",
        ),
    ] {
        assert_eq!(encode(&message).unwrap_err().to_string(), cause);
    }
    // The largest avatar fits into a datagram with the longest other values.
    let (display_name, status) = ("ü".repeat(DISPLAY_NAME_MAX), "ü".repeat(STATUS_MAX));
    let profile = Profile { display_name, status, avatar: avatar(AVATAR_MAX) };
    let message = talk("al@10.0.0.1", None, profile, stamp(u64::MAX, "x"));
    assert_eq!(decode(&encode(&message).unwrap()), Ok(message));
}

#[test]
fn line_breaks_of_every_kind_travel_as_one() {
    let post = |content: &str| talk("al@10.0.0.1", None, Post { content: content.to_owned() }, MessageStamp::default());
    for (written, seen) in
        [("a\r\nb", "a\nb"), ("a\rb", "a\nb"), ("\n\r\n\r\r\n", "\n\n\n\n"), ("a\u{2028}b", "a\nb"), ("a\n", "a\n")]
    {
        let datagram = encode(&post(written)).unwrap();
        assert_eq!(datagram.iter().filter(|byte| **byte == b'\n').count(), 4, "{written:?}");
        assert_eq!(decode(&datagram), Ok(post(seen)), "{written:?}");
    }
}

#[test]
fn a_list_of_peers_is_cut_to_what_fits() {
    let peer = |n: u32| {
        let ip = Ipv4Addr::from(0x0a00_0000 + n);
        let user_id = UserId { name: Name::new(&format!("\"pe\\er\" {n}")).unwrap(), ip };
        (user_id, (!n.is_multiple_of(3)).then(|| SocketAddr::from((ip, 8000))))
    };
    for most in [0, 10, 10_000] {
        let whole = PeerList { from: id("al@10.0.0.1"), peers: (0..most).map(peer).collect(), stamp: stamp(1, "x") };
        let mut list = whole.clone();
        let dropped = list.truncate_to_fit();
        assert_eq!(list.peers.len() + dropped, whole.peers.len());
        let datagram = encode(&Message::PeerListResponse(list.clone())).unwrap();
        assert_eq!(dropped > 0, most == 10_000);
        assert!(dropped == 0 || datagram.len() > DATAGRAM_MAX - 100, "{}", datagram.len());
        assert_eq!(decode(&datagram), Ok(Message::PeerListResponse(list)));
    }
}

#[test]
fn user_ids_are_split_at_the_last_at() {
    let parsed = UserId::parse("a@b@127.0.0.1").unwrap();
    assert_eq!((parsed.name.as_str(), parsed.ip), ("a@b", Ipv4Addr::LOCALHOST));
    assert_eq!(parsed.to_string(), "a@b@127.0.0.1");
    for text in
        ["", "al", "@127.0.0.1", "al@", "al@127.0.0.1.1", "al@127.1", "al@[::1]", "al@256.0.0.1", "a\nb@1.1.1.1"]
    {
        assert!(UserId::parse(text).is_err(), "{text:?}");
    }
}

#[test]
fn pictures_are_told_by_how_they_begin() {
    for (bytes, kind) in [
        (PNG, AvatarKind::Png),
        (b"\xff\xd8\xff\xe0", AvatarKind::Jpeg),
        (b"GIF87a", AvatarKind::Gif),
        (b"GIF89a...", AvatarKind::Gif),
        (b"RIFF\x01\x02\x03\x04WEBPVP8 ", AvatarKind::Webp),
    ] {
        let avatar = Avatar::from_bytes(bytes).unwrap();
        assert_eq!((avatar.kind, avatar.bytes.as_slice()), (kind, bytes));
        assert_eq!(AvatarKind::from_text(kind.as_text()), Some(kind));
    }
    for bytes in [&b""[..], b"<svg>", b"GIF88a", b"RIFF\x01\x02\x03\x04WAVE", b"\x89PNG\n", b"RIFF"] {
        let refused = Avatar::from_bytes(bytes).unwrap_err();
        assert_eq!(refused, "the picture's kind is not known: expected PNG, JPEG, GIF or WebP");
    }
    assert_eq!(AvatarKind::from_text("image/jpg"), None);
    let mut large = PNG.to_vec();
    large.resize(AVATAR_MAX, 0);
    assert!(Avatar::from_bytes(large.clone()).is_ok());
    large.push(0);
    assert_eq!(Avatar::from_bytes(large).unwrap_err(), "the picture has 20481 bytes: expected at most 20480");
}
