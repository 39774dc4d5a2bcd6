//! Parsing of messages: what is accepted, what is refused, and the error texts.

use super::*;
use crate::model::Cents;
use proptest::prelude::*;
use serde_json::Value;

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
    let PeerMessage::Request(Request { body: RequestBody::Register(endpoint), .. }) = parse_message(text.as_bytes())
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
    assert!(matches!(request.body, RequestBody::Cancel { item_name } if &*item_name == "a\tb\u{1b}[2J\0"));
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
