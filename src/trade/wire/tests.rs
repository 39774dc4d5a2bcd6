//! Parsing of messages: what is accepted, what is refused, and the error texts.

use super::*;
use crate::model::{CardNumber, Cents, Expiry, Name, PaymentCard, Token};
use proptest::prelude::*;
use serde_json::Value;
use std::sync::Arc;

fn refused(text: &str) -> (Option<u64>, String) {
    match parse_message(text.as_bytes()) {
        PeerMessage::Invalid(rq, error) => {
            assert_eq!(error.code, ErrorCode::BadRequest);
            (rq, error.reason)
        }
        other => panic!("{text} was read as {other:?}"),
    }
}

#[test]
fn requests_are_read_and_unknown_fields_ignored() {
    let text =
        r#"{"type":"LOOKING_FOR","rq":7,"name":"al","item_name":"lamp","description":"","max_price":"12.50","x":[{}]}"#;
    let PeerMessage::Request(request) = parse_message(text.as_bytes()) else { panic!() };
    assert_eq!((request.rq, request.name.as_str()), (7, "al"));
    assert!(matches!(request.body, RequestBody::LookingFor { max_price: Cents(1250), .. }));
    let text = r#"{"type":"REGISTER","rq":1.0,"name":"a","ip":"::ffff:127.0.0.1","udp_port":5000,"tcp_port":70000}"#;
    let PeerMessage::Request(Request { body: RequestBody::Register { endpoint }, .. }) = parse_message(text.as_bytes())
    else {
        panic!()
    };
    assert_eq!((endpoint.ip.to_string().as_str(), endpoint.tcp_port), ("127.0.0.1", 70000));
}

#[test]
fn all_of_it_is_utf8_also_what_is_ignored() {
    for bytes in [&b"{\"type\":\"STATUS\",\"rq\":1,\"name\":\"al\",\"x\":\"\xff\"}"[..], b"\xff", b"{\"\xc0\xaf\":1}"] {
        let PeerMessage::Invalid(None, error) = parse_message(bytes) else { panic!("{bytes:?}") };
        assert_eq!((error.code, error.reason.as_str()), (ErrorCode::BadRequest, "expected UTF-8"));
    }
}

#[test]
fn errors_name_the_field() {
    for (text, rq, field) in [
        ("", None, "expected one JSON object"),
        ("[]", None, "expected one JSON object"),
        (r#" ["STATUS",1,null,"a"]"#, None, "expected one JSON object"),
        (r#"{"type":"STATUS","rq":1,"rq":2,"name":"a"}"#, None, "rq: expected once"),
        (r#"{"type":"STATUS","name":"a", "rq" : 1e400 }"#, None, "rq: expected a number"),
        (r#"{"type":"BUY","rq":1,"name":"a","item_name":"x","price":-1e999}"#, Some(1), "price: expected an amount"),
        (r#"{"type":"BUY","rq":1,"name":"a","item_name":"x","price":1.500}"#, Some(1), "price: expected an amount"),
        ("{\"type\":\"BUY\",\n\"rq\":\n1e400}", None, "expected one JSON object: syntax error at line 3"),
        (r#"{"rq":3}"#, Some(3), "type: missing"),
        (r#"{"type":"HELLO","rq":3,"name":"a"}"#, Some(3), "type: expected REGISTER"),
        (r#"{"type":"STATUS","name":"a"}"#, None, "rq: missing"),
        (r#"{"type":"STATUS","rq":"1","name":"a"}"#, None, "rq: expected a whole number"),
        (r#"{"type":"STATUS","rq":-1,"name":"a"}"#, None, "rq: expected"),
        (r#"{"type":"STATUS","rq":2147483648,"name":"a"}"#, Some(2147483648), "rq: expected a number below"),
        (r#"{"type":"STATUS","rq":1}"#, Some(1), "name: missing"),
        (r#"{"type":"STATUS","rq":1,"name":5}"#, Some(1), "name: expected a text"),
        (r#"{"type":"STATUS","rq":1,"name":"a","token":5}"#, Some(1), "token: expected a text"),
        (r#"{"type":"LOGIN","rq":1,"name":"a"}"#, Some(1), "token: missing"),
        (r#"{"type":"REGISTER","rq":1,"name":"a","ip":"home","udp_port":1,"tcp_port":1}"#, Some(1), "ip: expected"),
        (
            r#"{"type":"REGISTER","rq":1,"name":"a","ip":"127.0.0.1","udp_port":"x","tcp_port":1}"#,
            Some(1),
            "udp_port: expected",
        ),
        (r#"{"type":"BUY","rq":1,"name":"a","item_name":"x","price":1.234}"#, Some(1), "price: expected an amount"),
        (
            r#"{"type":"BUY","rq":1,"name":"a","item_name":"x","price":true}"#,
            Some(1),
            "price: invalid type: boolean `true`, expected an amount",
        ),
        (r#"{"type":"BUY","rq":1,"name":"a","item_name":"","price":1}"#, Some(1), "item_name: expected 1 to 64"),
        (r#"{"type":"LOOKING_FOR","rq":1,"name":"a","item_name":"x","max_price":1}"#, Some(1), "description: missing"),
    ] {
        let (got_rq, reason) = refused(text);
        assert_eq!(got_rq, rq, "{text}");
        assert!(reason.contains(field), "{text}: {reason}");
    }
}

#[test]
fn a_servers_types_are_never_answered() {
    for text in [
        r#"{"type":"ERROR","rq":1}"#,
        r#"{"type":"FOUND"}"#,
        r#"{"type":"ACK"}"#,
        r#"{"type":"CANCEL","mid":1}"#,
        r#"{"type":"NOT_AVAILABLE","mid":1,"rq":1,"name":"a","item_name":"x"}"#,
    ] {
        assert!(matches!(parse_message(text.as_bytes()), PeerMessage::Ignored), "{text}");
    }
    assert!(matches!(parse_message(br#"{"type":"ACK","mid":9}"#), PeerMessage::Ack(Ack { mid: 9, token: None })));
}

#[test]
fn answers_shrink_to_fit_or_are_not_sent() {
    let error = |reason: &str| Response::Error { rq: Some(1), code: ErrorCode::BadRequest, reason: reason.to_owned() };
    let whole = encode(&error("quite \"long\" ünd odd"));
    for max in 0..whole.len() {
        if let Some(bytes) = error("quite \"long\" ünd odd").fit(max) {
            assert!(bytes.len() <= max);
            serde_json::from_slice::<Value>(&bytes).unwrap();
        } else {
            assert!(max < encode(&error("")).len(), "{max} would have been enough");
        }
    }
    let deal = |rq| DealStatus {
        rq,
        side: Side::Buyer,
        item_name: "lamp".into(),
        state: DealPhase::Searching,
        price: None,
        reason: None,
        offer_item: None,
        offer_description: None,
        ends_in_ms: Some(1),
    };
    let deals = Response::Deals { rq: 1, deals: (0..100).map(deal).collect(), more: false };
    let bytes = deals.clone().fit(1000).unwrap();
    let value: Value = serde_json::from_slice(&bytes).unwrap();
    assert!(bytes.len() <= 1000 && bytes.len() > 900 && value["more"] == true && value["deals"][0]["rq"] == 0);
    assert!(deals.clone().fit(10).is_none());
}

#[test]
fn nothing_secret_shows() {
    let line = r#"{"type":"INFORM_RES","rq":1,"name":"a","token":"t0ken","cc_number":"4111111111111111","cc_exp":"12/30","address":"Elm St"}"#;
    let shown = format!("{:?}", parse_settlement_response(line, Side::Buyer).unwrap());
    assert!(!shown.contains("411111111111") && !shown.contains("t0ken") && !shown.contains("Elm"), "{shown}");
    let wrong = line.replace("4111111111111111", "41111111-x");
    let error = parse_settlement_response(&wrong, Side::Buyer).unwrap_err();
    assert!(error.starts_with("cc_number: ") && !error.contains("4111"), "{error}");
}

#[test]
fn an_items_name_may_hold_what_json_allows() {
    let text = r#"{"type":"CANCEL","rq":7,"name":"al","item_name":"a\tb\u001b[2J\u0000"}"#;
    let PeerMessage::Request(request) = parse_message(text.as_bytes()) else { panic!() };
    assert!(
        matches!(request.body, RequestBody::Deal { item_name, request: DealRequest::Cancel } if &*item_name == "a\tb\u{1b}[2J\0")
    );
}

#[test]
fn of_a_seller_only_name_token_and_number_are_read() {
    let whole = serde_json::json!({"type": "INFORM_RES", "rq": 1, "name": "a", "token": "t0ken",
        "cc_number": "4111111111111111", "cc_exp": "12/30", "address": "Elm St"});
    for field in ["cc_number", "cc_exp", "address"] {
        for value in [Value::Null, "".into(), "1234".into(), 5.into(), "x".repeat(2000).into()] {
            let mut line = whole.clone();
            line[field] = value.clone();
            let read = |side| parse_settlement_response(&line.to_string(), side);
            assert!(matches!(read(Side::Seller), Ok(SettlementResponse::InformRes(1, _))), "{field} {value}");
            if field != "address" || value != "1234" {
                assert!(read(Side::Buyer).unwrap_err().starts_with(field), "{field} {value}");
            }
        }
    }
    for field in ["rq", "name", "token"] {
        let mut line = whole.clone();
        line[field] = Value::Null;
        assert!(parse_settlement_response(&line.to_string(), Side::Seller).unwrap_err().starts_with(field), "{field}");
    }
    let array = r#"["INFORM_RES",1,"a","t0ken","4111111111111111","12/30","Elm St"]"#;
    assert_eq!(parse_settlement_response(array, Side::Buyer).unwrap_err(), "expected one JSON object");
}

fn name() -> Name {
    Name::new("alice").unwrap()
}

#[test]
fn the_server_reads_what_a_peer_writes() {
    let endpoint = PeerEndpoint { ip: "127.0.0.1".parse().unwrap(), udp_port: 5000, tcp_port: 5001 };
    let item: Arc<str> = "reading \"lamp\"".into();
    let price = Cents(1250);
    let goods = Goods { item: Some("Reading lamp Ö".into()), description: Some("".into()) };
    let asks = [
        RequestBody::Register { endpoint },
        RequestBody::Login { endpoint },
        RequestBody::DeRegister,
        RequestBody::LookingFor { item_name: item.clone(), description: "".into(), max_price: price },
        DealRequest::Offer { price, goods: Goods::default() }.about(item.clone()),
        DealRequest::Offer { price, goods: goods.clone() }.about(item.clone()),
        DealRequest::NotAvailable.about(item.clone()),
        DealRequest::Accept { max_price: price }.about(item.clone()),
        DealRequest::Refuse { max_price: price }.about(item.clone()),
        DealRequest::Buy { price }.about(item.clone()),
        DealRequest::Cancel.about(item),
        RequestBody::Status { rq_deal: None },
        RequestBody::Status { rq_deal: Some(3) },
    ];
    for body in asks {
        let token = Token::random();
        let bytes = encode_request(7, &name(), Some(&token), &body);
        let PeerMessage::Request(request) = parse_message(&bytes) else {
            panic!("{}", String::from_utf8_lossy(&bytes));
        };
        assert_eq!(format!("{:?}", request.body), format!("{body:?}"));
        assert!(request.rq == 7 && request.name == name() && request.token.unwrap().matches(&token));
    }
    // Its fields stand in the order of their names.
    let token = Token::from_text("t0ken");
    let bytes = encode_request(7, &name(), Some(&token), &DealRequest::Offer { price, goods }.about("lamp".into()));
    let whole = r#"{"item_name":"lamp","name":"alice","offer_description":"","offer_item":"Reading lamp Ö","price":12.5,"rq":7,"token":"t0ken","type":"OFFER"}"#;
    assert_eq!(String::from_utf8(bytes).unwrap(), whole);
    let bytes = encode_request(8, &name(), None, &RequestBody::Status { rq_deal: None });
    assert_eq!(bytes, br#"{"name":"alice","rq":8,"type":"STATUS"}"#);
    assert_eq!(encode_ack(9, Some(&token)), br#"{"mid":9,"token":"t0ken","type":"ACK"}"#);
    assert!(matches!(parse_message(&encode_ack(9, None)), PeerMessage::Ack(ack) if ack.mid == 9));
    let card =
        PaymentCard { number: CardNumber::new("4111111111111111").unwrap(), expiry: Expiry::parse("12/39").unwrap() };
    let payment_details = Some(PaymentDetails { card, address: "1 Elm St".to_owned() });
    let inform = InformResponse { name: name(), token: Token::random(), payment_details };
    let line = String::from_utf8(encode_inform(5, &inform)).unwrap();
    let Ok(SettlementResponse::InformRes(5, read)) = parse_settlement_response(&line, Side::Buyer) else {
        panic!("{line}")
    };
    let payment_details = read.payment_details.unwrap();
    assert_eq!((payment_details.card.number.last4(), &*payment_details.address), ("1111", "1 Elm St"));
    let line = String::from_utf8(encode_inform(5, &InformResponse { payment_details: None, ..inform })).unwrap();
    assert!(matches!(parse_settlement_response(&line, Side::Seller), Ok(SettlementResponse::InformRes(5, _))));
    let line = String::from_utf8(encode_shipped(5)).unwrap();
    assert!(matches!(parse_settlement_response(&line, Side::Seller), Ok(SettlementResponse::Shipped(5))));
}

#[test]
fn a_peer_reads_what_the_server_writes() {
    let deal = DealStatus {
        rq: 3,
        side: Side::Seller,
        item_name: "lamp".into(),
        state: DealPhase::Reserved,
        price: Some(Cents(905)),
        reason: None,
        offer_item: Some("brass lamp".into()),
        offer_description: None,
        ends_in_ms: Some(5),
    };
    let replies = [
        Response::Registered { rq: 1, token: Token::random(), cert_sha256: Some("ab".into()) },
        Response::RegisterDenied { rq: 1, reason: "taken".into() },
        Response::LoggedIn { rq: 1, cert_sha256: None },
        Response::LoginDenied { rq: 1, reason: "no".into() },
        Response::DeRegistered { rq: 1 },
        Response::Searching { rq: 1, peers: 3 },
        Response::Offered { rq: 1 },
        Response::Noted { rq: 1 },
        Response::Buying { rq: 1 },
        Response::Cancelled { rq: 1 },
        Response::Deals { rq: 1, deals: vec![deal.clone()], more: true },
        Response::Error { rq: Some(1), code: ErrorCode::WrongState, reason: "no".into() },
    ];
    for reply in replies {
        match parse_server_message(&encode(&reply)) {
            Ok(ServerMessage::Response(response)) => {
                assert_eq!(response.rq(), Some(1), "{reply:?}");
                if let Response::Deals { deals, more, .. } = response {
                    assert_eq!((deals, more), (vec![deal.clone()], true));
                }
            }
            other => panic!("{reply:?} was read as {other:?}"),
        }
    }
    let notification = Notification::Found {
        rq: 1,
        mid: 2,
        item_name: "x".into(),
        price: Cents(1),
        seller: name(),
        offer_item: None,
        offer_description: Some("of brass".into()),
    };
    assert!(
        matches!(parse_server_message(&encode(&notification)), Ok(ServerMessage::Notification(read)) if read == notification)
    );
    assert!(matches!(
        parse_server_message(br#"{"type":"CANCEL","rq":1,"mid":4,"item_name":"x","reason":"r","new":[]}"#),
        Ok(ServerMessage::Notification(Notification::Cancel { mid: 4, .. }))
    ));
    for bad in ["", "[]", "{}", r#"{"type":"FOUND","rq":1}"#, r#"{"type":"FOUND","mid":1}"#, "\u{0}"] {
        assert!(parse_server_message(bad.as_bytes()).is_err(), "{bad}");
    }
    for array in [r#"["OFFERED",1]"#, r#"["RELEASED",1,2,"x"]"#, r#"[2]"#] {
        assert!(parse_server_message(array.as_bytes()).unwrap_err().contains("expected one JSON object"), "{array}");
    }
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse_message(&bytes);
        let _ = parse_settlement_response(&String::from_utf8_lossy(&bytes), Side::Buyer);
    }

    #[test]
    fn shuffled_fields_never_panic(kind in "[A-Z_-]{2,12}", rq in any::<f64>(), name in ".{0,70}", price in any::<i64>()) {
        for kind in [kind.as_str(), "OFFER", "LOOKING_FOR", "ACK", "REGISTER"] {
            let value = serde_json::json!({"type": kind, "rq": rq, "name": name, "price": price, "mid": rq, "item_name": name, "max_price": price, "description": name, "ip": name, "udp_port": price, "tcp_port": rq});
            let _ = parse_message(value.to_string().as_bytes());
            let _ = parse_settlement_response(&value.to_string(), Side::Buyer);
        }
    }
}
