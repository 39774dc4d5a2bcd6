//! What must never be written to disk or logs: card numbers (except four digits), tokens, addresses.

use std::fs;
use std::path::Path;
use std::time::Instant;

use p2s2::internals::model::{Cents, Name, Token};
use p2s2::internals::trade::deal::PaymentProgress;
use p2s2::internals::trade::exchange::{SettlementOrder, SettlementParty};
use p2s2::internals::trade::settlement::{Settlement, SettlementInput};
use p2s2::internals::trade::wire::{self, Goods, Side};
use serde_json::{Value, json};

use crate::support::*;

const OTHER_CARD: &str = "5555555555554444";
const BAD_CARD: &str = "6011000990139425";
const SELLERS_CARD: &str = "378282246310005";

/// Whether the bytes contain the number, with or without the usual spaces.
fn shows(bytes: &[u8], card: &str) -> bool {
    let spaced: Vec<String> = [" ", "-"]
        .iter()
        .map(|gap| card.as_bytes().chunks(4).map(|four| String::from_utf8_lossy(four)).collect::<Vec<_>>().join(gap))
        .collect();
    // Most of the number is as sensitive as the number.
    let needles = [&card[..card.len() - 4], &card[4..], &spaced[0], &spaced[1]];
    needles.iter().any(|needle| bytes.windows(needle.len()).any(|window| window == needle.as_bytes()))
}

fn files(dir: &Path, found: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
}

#[test]
fn purchases_leave_no_secret_in_logs_and_no_card_on_disk() {
    for flags in [&["--settle-timeout", "2s"][..], &["--settle-timeout", "2s", "--plaintext"]] {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start_in(dir.path(), flags, &[("RUST_LOG", "trace")]);
        let (mut alice, mut bob) = (Peer::unregistered(server.addr, "alice"), Peer::unregistered(server.addr, "bob"));
        for peer in [&mut alice, &mut bob] {
            peer.register();
            let spelled = peer.message("STATUS", 77, json!({"token": peer.token}));
            peer.ask_raw(&spelled, 77).unwrap();
        }
        let spoil: [fn(&mut Value); 8] = [
            |_| {},
            |inform| inform["cc_number"] = json!("5555 5555 5555 4444"),
            |inform| inform["cc_number"] = json!(DECLINED_CARD),
            |inform| inform["cc_number"] = json!(BAD_CARD),
            |inform| inform["cc_number"] = json!(format!("{GOOD_CARD}x")),
            |inform| inform["cc_number"] = json!(4_111_111_111_111_111_u64),
            |inform| inform["cc_exp"] = json!(GOOD_CARD),
            |inform| inform["type"] = json!(GOOD_CARD),
        ];
        for (n, spoil) in spoil.iter().enumerate() {
            let (rq, sold) = reserved(&mut bob, &mut alice, &format!("item {n}"), 10.0);
            assert_eq!(buy(&mut bob, rq, &format!("item {n}"), 10.0)["type"], "BUYING");
            let (mut buyer, mut seller) = (bob.accept_settlement(), alice.accept_settlement());
            let mut inform = bob.inform_res(rq, GOOD_CARD);
            spoil(&mut inform);
            buyer.read().unwrap();
            seller.read().unwrap();
            buyer.write(&inform);
            seller.write(&alice.inform_res(sold, SELLERS_CARD));
            while let Some(line) = seller.read() {
                if line["type"] == "SHIPPING_INFO" {
                    seller.write(&json!({"type": "SHIPPED", "rq": sold}));
                }
                if line["type"] == "CANCEL" {
                    assert!(!shows(line["reason"].as_str().unwrap().as_bytes(), GOOD_CARD), "{line}");
                }
            }
            bob.ended(rq);
        }
        // Half a line, and a card in a message in which it does not belong.
        let (rq, _) = reserved(&mut bob, &mut alice, "half", 10.0);
        assert_eq!(buy(&mut bob, rq, "half", 10.0)["type"], "BUYING");
        let (buyer, mut seller) = (bob.accept_settlement(), alice.accept_settlement());
        let text = bob.inform_res(rq, GOOD_CARD).to_string();
        buyer.writer.write_all(&text.as_bytes()[..text.len() - 9], Instant::now() + PATIENCE).unwrap();
        buyer.writer.close();
        while seller.read().is_some() {}
        bob.ended(rq);
        bob.send(&json!({"type": GOOD_CARD, "rq": GOOD_CARD, "token": GOOD_CARD, "mid": GOOD_CARD}));
        bob.send_bytes(GOOD_CARD.as_bytes());
        bob.datagrams_until_fence();

        let mut admin = Vec::new();
        for command in ["log", "deals", "ledger", "peers"] {
            for flag in [&[][..], &["--json"]] {
                let output = server.admin(&[&[command], flag].concat());
                admin.extend([output.stdout, output.stderr].concat());
            }
        }
        assert!(server.balance_cents("card:bob") < 0, "some were paid");
        // Killed, so that the write-ahead log remains to be searched.
        let state = server.state_dir();
        drop(server);
        let log = fs::read(dir.path().join("log")).unwrap();
        assert!(String::from_utf8_lossy(&log).contains("settlement of deal"), "at trace there is a log");
        let log_text = String::from_utf8_lossy(&log).into_owned();
        for token in [&alice.token, &bob.token] {
            let token = token.as_ref().unwrap();
            assert!(
                !log_text.contains(token) && !String::from_utf8_lossy(&admin).contains(token),
                "a token was logged"
            );
        }
        for street in ["1 alice Street", "1 bob Street", "bob Street"] {
            assert!(
                !log_text.contains(street) && !String::from_utf8_lossy(&admin).contains(street),
                "{street} was logged"
            );
        }
        let mut written = vec![("the log".to_owned(), log), ("admin".to_owned(), admin)];
        files(&state, &mut written);
        // The number in a watermark is padded with as many zeros as a card has; one that begins with 2 is none.
        for (_, bytes) in written.iter_mut().filter(|(name, _)| name.ends_with("-mark")) {
            let fields =
                bytes.split(|byte| *byte == b' ').filter(|field| field.len() != 20 || !field.starts_with(b"0"));
            *bytes = fields.collect::<Vec<_>>().join(&b' ');
        }
        assert!(written.iter().any(|(name, _)| name.ends_with("-wal")), "a killed server leaves one");
        for (name, bytes) in &written {
            for card in [GOOD_CARD, OTHER_CARD, DECLINED_CARD, BAD_CARD, SELLERS_CARD] {
                assert!(!shows(bytes, card), "{card} is in {name}");
            }
        }
    }
}

#[test]
fn what_is_printed_for_debugging_hides_them_too() {
    let token = Token::from_text("5ecre7-t0ken-5ecre7-t0ken");
    let side = |name: &str, rq| SettlementParty {
        from: None,
        name: Name::new(name).unwrap(),
        rq,
        token: Some(token.clone()),
        tcp: Some("127.0.0.1:5000".parse().unwrap()),
    };
    let order = SettlementOrder {
        deal: 1,
        key: "trade-1".to_owned(),
        item_name: "lamp".into(),
        goods: Goods::default(),
        price: Cents(1000),
        fee: Cents(100),
        payment: PaymentProgress::Asked,
        buyer: side("bob", 1),
        seller: side("alice", 1 << 31),
    };
    let inform = |name: &str, rq: u64| {
        json!({"type": "INFORM_RES", "rq": rq, "name": name, "token": token.reveal(), "cc_number": GOOD_CARD,
            "cc_exp": "12/39", "address": "7 Elm Lane"})
        .to_string()
    };
    let (mut core, actions) = Settlement::begin(order);
    let mut shown = format!("{core:?}{actions:?}");
    let (buyer, seller) = (inform("bob", 1), inform("alice", 1 << 31));
    for input in [
        SettlementInput::Line(Side::Buyer, &buyer),
        SettlementInput::Line(Side::Seller, &seller),
        SettlementInput::Authorised,
    ] {
        let actions = core.handle(input);
        shown += &format!("{core:?}{actions:?}");
    }
    let request = json!({"type": "LOGIN", "rq": 1, "name": "bob", "token": token.reveal(), "ip": "127.0.0.1",
        "udp_port": 5000, "tcp_port": 5000});
    shown += &format!("{:?}", wire::parse_message(request.to_string().as_bytes()));
    shown += &format!("{:?}", wire::Response::Registered { rq: 1, token: token.clone(), cert_sha256: None });
    assert!(shown.contains("lamp") && shown.contains("bob"), "{shown}");
    assert!(!shows(shown.as_bytes(), GOOD_CARD), "{shown}");
    assert!(!shown.contains("5ecre7"), "{shown}");
    assert!(!shown.contains("Elm"), "{shown}");
}
