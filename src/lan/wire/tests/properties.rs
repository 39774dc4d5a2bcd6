//! What holds for any message and for any bytes.

use proptest::prelude::*;

use super::*;

fn ids() -> impl Strategy<Value = UserId> {
    ("[^\\p{Cc}\u{2028}]{1,20}", any::<u32>()).prop_filter_map("a name that may be seen", |(name, ip)| {
        Some(UserId { name: Name::new(&name).ok()?, ip: ip.into() })
    })
}

fn stamps() -> impl Strategy<Value = MessageStamp> {
    let message_id = prop::option::of("[^\\p{Cc}\u{2028}]{1,64}");
    (any::<Option<u64>>(), message_id).prop_map(|(timestamp, message_id)| MessageStamp { timestamp, message_id })
}

/// Any text without the line breaks that are normalized.
fn texts(most: usize) -> impl Strategy<Value = String> {
    prop_oneof![
        "[^\r\u{2028}]{1,40}",
        prop::collection::vec(
            prop::sample::select(vec!['\n', ' ', ':', 'a', 'ü', '\u{1f980}', '\0', '\u{85}']),
            1..most
        )
        .prop_map(|characters| characters.into_iter().collect::<String>()),
    ]
}

fn discoveries() -> impl Strategy<Value = Message> {
    let serves = prop::collection::btree_map("[A-Za-z0-9._-]{1,32}", 1_u16.., 0..=SERVES_MAX);
    let instance = prop::option::of("[0-9a-f]{16}");
    let cert = prop::option::of("[0-9a-f]{64}");
    (ids(), 1_u16.., instance, any::<(bool, bool)>(), serves, cert, stamps()).prop_map(
        |(user_id, port, instance, (ack, probe), serves, cert_sha256, stamp)| {
            let (features, serves) = (Features { ack, probe }, serves.into_iter().collect());
            Message::Discovery(Discovery { user_id, port, instance, features, serves, cert_sha256, stamp })
        },
    )
}

fn messages() -> impl Strategy<Value = Message> {
    let kinds = vec![AvatarKind::Png, AvatarKind::Jpeg, AvatarKind::Gif, AvatarKind::Webp];
    let pictures = (prop::sample::select(kinds), prop::collection::vec(any::<u8>(), 1..300))
        .prop_map(|(kind, bytes)| Avatar { kind, bytes });
    let addresses = (any::<u32>(), 1_u16..).prop_map(|(ip, port)| SocketAddr::from((Ipv4Addr::from(ip), port)));
    let peers = prop::collection::vec((ids(), prop::option::of(addresses)), 0..20);
    prop_oneof![
        discoveries(),
        (ids(), texts(400), stamps()).prop_map(|(from, content, stamp)| {
            Message::Talk(Talk { from, to: None, body: Post { content }.into(), stamp })
        }),
        (ids(), ids(), texts(400), stamps()).prop_map(|(from, to, content, stamp)| {
            Message::Talk(Talk { from, to: Some(to), body: Dm { content }.into(), stamp })
        }),
        (ids(), "[^\\p{Cc}\u{2028}]{1,64}", texts(257), prop::option::of(pictures), stamps()).prop_map(
            |(from, display_name, status, avatar, stamp)| {
                let body = Profile { display_name, status, avatar }.into();
                Message::Talk(Talk { from, to: None, body, stamp })
            }
        ),
        (ids(), stamps()).prop_map(|(from, stamp)| Message::PeerListRequest { from, stamp }),
        (ids(), peers, stamps()).prop_map(|(from, peers, stamp)| Message::PeerListResponse(PeerList {
            from,
            peers,
            stamp
        })),
        "[^\\p{Cc}\u{2028}]{1,64}".prop_map(|message_id| Message::Ack { message_id }),
    ]
}

/// Almost valid datagrams: known keys with arbitrary values.
fn near_misses() -> impl Strategy<Value = Vec<u8>> {
    const KEYS: [&str; 21] = [
        "USER_ID",
        "PORT",
        "TIMESTAMP",
        "MESSAGE_ID",
        "INSTANCE",
        "FEATURES",
        "SERVES",
        "CERT_SHA256",
        "CONTENT",
        "FROM",
        "TO",
        "DISPLAY_NAME",
        "STATUS",
        "AVATAR_TYPE",
        "AVATAR_ENCODING",
        "AVATAR_DATA",
        "PEERS",
        "COUNT",
        "ADDRS",
        "X",
        "",
    ];
    const TYPES: [&str; 8] =
        ["PEER_DISCOVERY", "POST", "DM", "PROFILE", "PEER_LIST_REQUEST", "PEER_LIST_RESPONSE", "ACK", "FILE"];
    const VALUES: [&str; 14] = [
        "al@10.0.0.1",
        "1",
        "8000",
        "1.5",
        "ack,probe",
        "a=1,b=2",
        "RECEIVED",
        "base64",
        "image/png",
        "aGk=",
        "[]",
        "[\"a@1.1.1.1\"]",
        "[\"1.1.1.1:5\"]",
        "",
    ];
    let values = prop_oneof![3 => prop::sample::select(VALUES.to_vec()).prop_map(str::to_owned), 1 => any::<String>()];
    let ends = prop::sample::select(vec!["\n", "\r\n", "\n\n", ""]);
    let lines = prop::collection::vec((prop::sample::select(KEYS.to_vec()), values, ends), 0..12);
    (prop::sample::select(TYPES.to_vec()), lines).prop_map(|(kind, lines)| {
        let lines = lines.into_iter().map(|(key, value, end)| format!("{key}:{value}{end}"));
        format!("TYPE:{kind}\n{}\n", lines.collect::<String>()).into_bytes()
    })
}

proptest! {
    #[test]
    fn no_bytes_panic(datagram in prop_oneof![prop::collection::vec(any::<u8>(), 0..2000), near_misses()]) {
        match decode(&datagram) {
            // A decoded message survives a round trip, except that a lone CR becomes a line break.
            Ok(message) => {
                let again = decode(&encode(&message).unwrap()).unwrap();
                if !datagram.contains(&b'\r') {
                    prop_assert_eq!(again, message);
                }
            }
            Err(refused) => prop_assert!(!refused.to_string().is_empty() && refused.to_string().len() < 600),
        }
    }

    #[test]
    fn what_is_written_is_read_as_the_same(message in messages()) {
        prop_assert_eq!(decode(&encode(&message).unwrap()).unwrap(), message);
    }
}
