//! Parsing of the server's messages and encoding of a peer's.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::model::{Name, Token};
use crate::trade::wire::{
    DATAGRAM_MAX, DealStatus, ErrorCode, Goods, InformResponse, Notification, PaymentDetails, PeerEndpoint,
    RequestBody, encode, parse_object,
};

/// A response to a request, as a client parses it: the counterpart of the server's
/// [`Response`](crate::trade::wire::Response).
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type")]
pub enum ServerResponse {
    /// The peer is registered; the token proves its identity from now on.
    #[serde(rename = "REGISTERED")]
    Registered { rq: u64, token: Token, cert_sha256: Option<Arc<str>> },
    /// The registration is denied.
    #[serde(rename = "REGISTER-DENIED")]
    RegisterDenied { rq: u64, reason: String },
    /// The peer is logged in again.
    #[serde(rename = "LOGGED-IN")]
    LoggedIn { rq: u64, cert_sha256: Option<Arc<str>> },
    /// The login is denied.
    #[serde(rename = "LOGIN-DENIED")]
    LoginDenied { rq: u64, reason: String },
    /// The peer is no longer registered.
    #[serde(rename = "DE-REGISTERED")]
    DeRegistered { rq: u64 },
    /// The search has begun; `peers` is the number of peers that were asked.
    #[serde(rename = "SEARCHING")]
    Searching { rq: u64, peers: u64 },
    /// The offer is accepted for consideration.
    #[serde(rename = "OFFERED")]
    Offered { rq: u64 },
    /// NOT_AVAILABLE, ACCEPT or REFUSE has been recorded.
    #[serde(rename = "NOTED")]
    Noted { rq: u64 },
    /// The BUY is accepted and settlement begins.
    #[serde(rename = "BUYING")]
    Buying { rq: u64 },
    /// The deal, or the seller's offer, is cancelled.
    #[serde(rename = "CANCELLED")]
    Cancelled { rq: u64 },
    /// The deals of this peer, newest first; `more` if not all of them fit.
    #[serde(rename = "DEALS")]
    Deals {
        rq: u64,
        deals: Vec<DealStatus>,
        #[serde(default)]
        more: bool,
    },
    /// The request is refused. `rq` is missing if the server could not read it.
    #[serde(rename = "ERROR")]
    Error {
        #[serde(default)]
        rq: Option<u64>,
        code: ErrorCode,
        reason: String,
    },
}

impl ServerResponse {
    /// The number of the request that this responds to.
    pub fn rq(&self) -> Option<u64> {
        match self {
            ServerResponse::Registered { rq, .. }
            | ServerResponse::RegisterDenied { rq, .. }
            | ServerResponse::LoggedIn { rq, .. }
            | ServerResponse::LoginDenied { rq, .. }
            | ServerResponse::DeRegistered { rq }
            | ServerResponse::Searching { rq, .. }
            | ServerResponse::Offered { rq }
            | ServerResponse::Noted { rq }
            | ServerResponse::Buying { rq }
            | ServerResponse::Cancelled { rq }
            | ServerResponse::Deals { rq, .. } => Some(*rq),
            ServerResponse::Error { rq, .. } => *rq,
        }
    }

    /// Whether this can be the response to a request of this kind. Several requests of a deal share a number, and the
    /// response to an earlier one may arrive late.
    pub fn fits(&self, body: &RequestBody) -> bool {
        match self {
            ServerResponse::Registered { .. } | ServerResponse::RegisterDenied { .. } => {
                matches!(body, RequestBody::Register(_))
            }
            ServerResponse::LoggedIn { .. } | ServerResponse::LoginDenied { .. } => {
                matches!(body, RequestBody::Login(_))
            }
            ServerResponse::DeRegistered { .. } => matches!(body, RequestBody::DeRegister),
            ServerResponse::Searching { .. } => matches!(body, RequestBody::LookingFor { .. }),
            ServerResponse::Offered { .. } => matches!(body, RequestBody::Offer { .. }),
            ServerResponse::Noted { .. } => matches!(
                body,
                RequestBody::NotAvailable { .. } | RequestBody::Accept { .. } | RequestBody::Refuse { .. }
            ),
            ServerResponse::Buying { .. } => matches!(body, RequestBody::Buy { .. }),
            ServerResponse::Cancelled { .. } => matches!(body, RequestBody::Cancel { .. }),
            ServerResponse::Deals { .. } => matches!(body, RequestBody::Status { .. }),
            ServerResponse::Error { .. } => true,
        }
    }
}

/// A datagram of the server.
#[derive(Debug)]
pub enum ServerMessage {
    /// The response to a request.
    Response(ServerResponse),
    /// A notification, which must be acknowledged.
    Notification(Notification),
}

/// Parses a datagram of the server.
///
/// # Errors
/// What is wrong, without quoting the datagram.
pub fn parse_message(bytes: &[u8]) -> Result<ServerMessage, String> {
    #[derive(Deserialize)]
    struct MessageHead {
        mid: Option<Value>,
    }
    if bytes.len() > DATAGRAM_MAX {
        return Err(format!("expected at most {DATAGRAM_MAX} bytes"));
    }
    let wrong = |wrong: String| format!("not a server's message: {wrong}");
    let head: MessageHead = parse_object(bytes).map_err(wrong)?;
    // The presence of `mid` marks a notification: CANCEL and NOT_AVAILABLE are also types of requests.
    if head.mid.is_some() {
        parse_object(bytes).map(ServerMessage::Notification).map_err(wrong)
    } else {
        parse_object(bytes).map(ServerMessage::Response).map_err(wrong)
    }
}

/// The wire type of a request.
pub fn type_of(body: &RequestBody) -> &'static str {
    match body {
        RequestBody::Register(_) => "REGISTER",
        RequestBody::Login(_) => "LOGIN",
        RequestBody::DeRegister => "DE-REGISTER",
        RequestBody::LookingFor { .. } => "LOOKING_FOR",
        RequestBody::Offer { .. } => "OFFER",
        RequestBody::NotAvailable { .. } => "NOT_AVAILABLE",
        RequestBody::Accept { .. } => "ACCEPT",
        RequestBody::Refuse { .. } => "REFUSE",
        RequestBody::Buy { .. } => "BUY",
        RequestBody::Cancel { .. } => "CANCEL",
        RequestBody::Status { .. } => "STATUS",
    }
}

/// Encodes a request. The same input gives the same bytes, as repeats require.
pub fn encode_request(rq: u64, name: &Name, token: Option<&Token>, body: &RequestBody) -> Vec<u8> {
    let mut fields = Map::new();
    let mut put = |field: &str, value: Value| {
        fields.insert(field.to_owned(), value);
    };
    put("type", json!(type_of(body)));
    put("rq", json!(rq));
    put("name", json!(name));
    if let Some(token) = token {
        put("token", json!(token.reveal()));
    }
    match body {
        RequestBody::Register(PeerEndpoint { ip, udp_port, tcp_port })
        | RequestBody::Login(PeerEndpoint { ip, udp_port, tcp_port }) => {
            put("ip", json!(ip));
            put("udp_port", json!(udp_port));
            put("tcp_port", json!(tcp_port));
        }
        RequestBody::LookingFor { item_name, description, max_price } => {
            put("item_name", json!(item_name));
            put("description", json!(description));
            put("max_price", json!(max_price));
        }
        RequestBody::Offer { item_name, price, goods: Goods { item, description } } => {
            put("item_name", json!(item_name));
            put("price", json!(price));
            for (field, text) in [("offer_item", item), ("offer_description", description)] {
                if let Some(text) = text {
                    put(field, json!(text));
                }
            }
        }
        RequestBody::Buy { item_name, price } => {
            put("item_name", json!(item_name));
            put("price", json!(price));
        }
        RequestBody::Accept { item_name, max_price } | RequestBody::Refuse { item_name, max_price } => {
            put("item_name", json!(item_name));
            put("max_price", json!(max_price));
        }
        RequestBody::NotAvailable { item_name } | RequestBody::Cancel { item_name } => {
            put("item_name", json!(item_name))
        }
        RequestBody::Status { rq_deal: Some(rq_deal) } => put("rq_deal", json!(rq_deal)),
        RequestBody::Status { rq_deal: None } | RequestBody::DeRegister => {}
    }
    encode(&fields)
}

/// Encodes `{"type":"ACK","mid":n,"token":…}`. With the token it is valid from any address.
pub fn encode_ack(mid: u64, token: Option<&Token>) -> Vec<u8> {
    match token {
        Some(token) => encode(&json!({"type": "ACK", "mid": mid, "token": token.reveal()})),
        None => encode(&json!({"type": "ACK", "mid": mid})),
    }
}

/// Encodes the response to INFORM_REQ. It may contain a card number: never log it.
pub fn encode_inform(rq: u64, inform: &InformResponse) -> Vec<u8> {
    let mut message = json!({
        "type": "INFORM_RES",
        "rq": rq,
        "name": inform.name,
        "token": inform.token.reveal(),
        "cc_number": "",
        "cc_exp": "",
        "address": "",
    });
    if let Some(PaymentDetails { card, address }) = &inform.payment_details {
        message["cc_number"] = json!(card.number.reveal());
        message["cc_exp"] = json!(card.expiry);
        message["address"] = json!(address);
    }
    encode(&message)
}

/// Encodes the message that the goods are shipped.
pub fn encode_shipped(rq: u64) -> Vec<u8> {
    encode(&json!({"type": "SHIPPED", "rq": rq}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{CardNumber, Cents, Expiry, PaymentCard};
    use crate::trade::wire::{self, DealPhase, PeerMessage, Response, RevealedToken, SettlementResponse, Side};

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
            RequestBody::Register(endpoint),
            RequestBody::Login(endpoint),
            RequestBody::DeRegister,
            RequestBody::LookingFor { item_name: item.clone(), description: "".into(), max_price: price },
            RequestBody::Offer { item_name: item.clone(), price, goods: Goods::default() },
            RequestBody::Offer { item_name: item.clone(), price, goods: goods.clone() },
            RequestBody::NotAvailable { item_name: item.clone() },
            RequestBody::Accept { item_name: item.clone(), max_price: price },
            RequestBody::Refuse { item_name: item.clone(), max_price: price },
            RequestBody::Buy { item_name: item.clone(), price },
            RequestBody::Cancel { item_name: item },
            RequestBody::Status { rq_deal: None },
            RequestBody::Status { rq_deal: Some(3) },
        ];
        for body in asks {
            let token = Token::random();
            let bytes = encode_request(7, &name(), Some(&token), &body);
            let PeerMessage::Request(request) = wire::parse_message(&bytes) else {
                panic!("{}", String::from_utf8_lossy(&bytes));
            };
            assert_eq!(format!("{:?}", request.body), format!("{body:?}"));
            assert!(request.rq == 7 && request.name == name() && request.token.unwrap().matches(&token));
        }
        assert!(matches!(wire::parse_message(&encode_ack(9, None)), PeerMessage::Ack(ack) if ack.mid == 9));
        let card = PaymentCard {
            number: CardNumber::new("4111111111111111").unwrap(),
            expiry: Expiry::parse("12/39").unwrap(),
        };
        let payment_details = Some(PaymentDetails { card, address: "1 Elm St".to_owned() });
        let inform = InformResponse { name: name(), token: Token::random(), payment_details };
        let line = String::from_utf8(encode_inform(5, &inform)).unwrap();
        let Ok(SettlementResponse::InformRes(5, read)) = wire::parse_settlement_response(&line, Side::Buyer) else {
            panic!("{line}")
        };
        let payment_details = read.payment_details.unwrap();
        assert_eq!((payment_details.card.number.last4(), &*payment_details.address), ("1111", "1 Elm St"));
        let line = String::from_utf8(encode_inform(5, &InformResponse { payment_details: None, ..inform })).unwrap();
        assert!(matches!(
            wire::parse_settlement_response(&line, Side::Seller),
            Ok(SettlementResponse::InformRes(5, _))
        ));
        let line = String::from_utf8(encode_shipped(5)).unwrap();
        assert!(matches!(wire::parse_settlement_response(&line, Side::Seller), Ok(SettlementResponse::Shipped(5))));
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
            Response::Registered { rq: 1, token: RevealedToken(Token::random()), cert_sha256: Some("ab".into()) },
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
            match parse_message(&encode(&reply)) {
                Ok(ServerMessage::Response(response)) => {
                    assert_eq!(response.rq(), Some(1), "{reply:?}");
                    if let ServerResponse::Deals { deals, more, .. } = response {
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
            matches!(parse_message(&encode(&notification)), Ok(ServerMessage::Notification(read)) if read == notification)
        );
        assert!(matches!(
            parse_message(br#"{"type":"CANCEL","rq":1,"mid":4,"item_name":"x","reason":"r","new":[]}"#),
            Ok(ServerMessage::Notification(Notification::Cancel { mid: 4, .. }))
        ));
        for bad in ["", "[]", "{}", r#"{"type":"FOUND","rq":1}"#, r#"{"type":"FOUND","mid":1}"#, "\u{0}"] {
            assert!(parse_message(bad.as_bytes()).is_err(), "{bad}");
        }
        for array in [r#"["OFFERED",1]"#, r#"["RELEASED",1,2,"x"]"#, r#"[2]"#] {
            assert!(parse_message(array.as_bytes()).unwrap_err().contains("expected one JSON object"), "{array}");
        }
    }
}
