//! The server's words as a peer reads them, and a peer's requests as it writes them.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::model::{Name, Token};
use crate::trade::wire::{Ask, Code, DATAGRAM_MAX, DealStatus, Goods, Inform, Purse, Push, Reach, encode, read_object};

/// An answer to a request. What [`Reply`](crate::trade::wire::Reply) is to the server, this is to a peer.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type")]
pub enum Answer {
    /// The name is ours; the token proves it from now on.
    #[serde(rename = "REGISTERED")]
    Registered { rq: u64, token: Token, cert_sha256: Option<Arc<str>> },
    /// The name is not given.
    #[serde(rename = "REGISTER-DENIED")]
    RegisterDenied { rq: u64, reason: String },
    /// We are back.
    #[serde(rename = "LOGGED-IN")]
    LoggedIn { rq: u64, cert_sha256: Option<Arc<str>> },
    /// We are not taken back.
    #[serde(rename = "LOGIN-DENIED")]
    LoginDenied { rq: u64, reason: String },
    /// We have left.
    #[serde(rename = "DE-REGISTERED")]
    DeRegistered { rq: u64 },
    /// The search is on; so many peers were asked.
    #[serde(rename = "SEARCHING")]
    Searching { rq: u64, peers: u64 },
    /// The offer stands.
    #[serde(rename = "OFFERED")]
    Offered { rq: u64 },
    /// Noted.
    #[serde(rename = "NOTED")]
    Noted { rq: u64 },
    /// The settlement begins.
    #[serde(rename = "BUYING")]
    Buying { rq: u64 },
    /// The deal (or the offer) is off.
    #[serde(rename = "CANCELLED")]
    Cancelled { rq: u64 },
    /// Our deals, newest first; `more` when not all fitted.
    #[serde(rename = "DEALS")]
    Deals {
        rq: u64,
        deals: Vec<DealStatus>,
        #[serde(default)]
        more: bool,
    },
    /// Refused. Without `rq` the server could not even read which request it was.
    #[serde(rename = "ERROR")]
    Error {
        #[serde(default)]
        rq: Option<u64>,
        code: Code,
        reason: String,
    },
}

impl Answer {
    /// The request that it answers.
    pub fn rq(&self) -> Option<u64> {
        match self {
            Answer::Registered { rq, .. }
            | Answer::RegisterDenied { rq, .. }
            | Answer::LoggedIn { rq, .. }
            | Answer::LoginDenied { rq, .. }
            | Answer::DeRegistered { rq }
            | Answer::Searching { rq, .. }
            | Answer::Offered { rq }
            | Answer::Noted { rq }
            | Answer::Buying { rq }
            | Answer::Cancelled { rq }
            | Answer::Deals { rq, .. } => Some(*rq),
            Answer::Error { rq, .. } => *rq,
        }
    }

    /// Whether it can be the answer to this: one number serves several requests of a deal, and the
    /// answer to an earlier one may come late.
    pub fn fits(&self, ask: &Ask) -> bool {
        match self {
            Answer::Registered { .. } | Answer::RegisterDenied { .. } => matches!(ask, Ask::Register(_)),
            Answer::LoggedIn { .. } | Answer::LoginDenied { .. } => matches!(ask, Ask::Login(_)),
            Answer::DeRegistered { .. } => matches!(ask, Ask::DeRegister),
            Answer::Searching { .. } => matches!(ask, Ask::LookingFor { .. }),
            Answer::Offered { .. } => matches!(ask, Ask::Offer { .. }),
            Answer::Noted { .. } => matches!(ask, Ask::NotAvailable { .. } | Ask::Accept { .. } | Ask::Refuse { .. }),
            Answer::Buying { .. } => matches!(ask, Ask::Buy { .. }),
            Answer::Cancelled { .. } => matches!(ask, Ask::Cancel { .. }),
            Answer::Deals { .. } => matches!(ask, Ask::Status { .. }),
            Answer::Error { .. } => true,
        }
    }
}

/// A datagram of the server.
#[derive(Debug)]
pub enum FromServer {
    /// Answers a request.
    Answer(Answer),
    /// Said of its own accord; wants an ACK.
    Push(Push),
}

/// Reads a datagram of the server; the error says what is wrong, without quoting it.
pub fn read(bytes: &[u8]) -> Result<FromServer, String> {
    #[derive(Deserialize)]
    struct Head {
        mid: Option<Value>,
    }
    if bytes.len() > DATAGRAM_MAX {
        return Err(format!("expected at most {DATAGRAM_MAX} bytes"));
    }
    let wrong = |wrong: String| format!("not a server's message: {wrong}");
    let head: Head = read_object(bytes).map_err(wrong)?;
    // A mid makes a push of it: CANCEL and NOT_AVAILABLE are also what peers say.
    if head.mid.is_some() {
        read_object(bytes).map(FromServer::Push).map_err(wrong)
    } else {
        read_object(bytes).map(FromServer::Answer).map_err(wrong)
    }
}

/// The word that stands for a request on the wire.
pub fn type_of(ask: &Ask) -> &'static str {
    match ask {
        Ask::Register(_) => "REGISTER",
        Ask::Login(_) => "LOGIN",
        Ask::DeRegister => "DE-REGISTER",
        Ask::LookingFor { .. } => "LOOKING_FOR",
        Ask::Offer { .. } => "OFFER",
        Ask::NotAvailable { .. } => "NOT_AVAILABLE",
        Ask::Accept { .. } => "ACCEPT",
        Ask::Refuse { .. } => "REFUSE",
        Ask::Buy { .. } => "BUY",
        Ask::Cancel { .. } => "CANCEL",
        Ask::Status { .. } => "STATUS",
    }
}

/// A request as its datagram. The same input gives the same bytes, so that repeats are repeats.
pub fn encode_request(rq: u64, name: &Name, token: Option<&Token>, ask: &Ask) -> Vec<u8> {
    let mut fields = Map::new();
    let mut put = |field: &str, value: Value| {
        fields.insert(field.to_owned(), value);
    };
    put("type", json!(type_of(ask)));
    put("rq", json!(rq));
    put("name", json!(name));
    if let Some(token) = token {
        put("token", json!(token.reveal()));
    }
    match ask {
        Ask::Register(Reach { ip, udp_port, tcp_port }) | Ask::Login(Reach { ip, udp_port, tcp_port }) => {
            put("ip", json!(ip));
            put("udp_port", json!(udp_port));
            put("tcp_port", json!(tcp_port));
        }
        Ask::LookingFor { item_name, description, max_price } => {
            put("item_name", json!(item_name));
            put("description", json!(description));
            put("max_price", json!(max_price));
        }
        Ask::Offer { item_name, price, goods: Goods { item, description } } => {
            put("item_name", json!(item_name));
            put("price", json!(price));
            for (field, text) in [("offer_item", item), ("offer_description", description)] {
                if let Some(text) = text {
                    put(field, json!(text));
                }
            }
        }
        Ask::Buy { item_name, price } => {
            put("item_name", json!(item_name));
            put("price", json!(price));
        }
        Ask::Accept { item_name, max_price } | Ask::Refuse { item_name, max_price } => {
            put("item_name", json!(item_name));
            put("max_price", json!(max_price));
        }
        Ask::NotAvailable { item_name } | Ask::Cancel { item_name } => put("item_name", json!(item_name)),
        Ask::Status { rq_deal: Some(rq_deal) } => put("rq_deal", json!(rq_deal)),
        Ask::Status { rq_deal: None } | Ask::DeRegister => {}
    }
    encode(&fields)
}

/// `{"type":"ACK","mid":n,"token":…}`: the token makes it count from any address.
pub fn encode_ack(mid: u64, token: Option<&Token>) -> Vec<u8> {
    match token {
        Some(token) => encode(&json!({"type": "ACK", "mid": mid, "token": token.reveal()})),
        None => encode(&json!({"type": "ACK", "mid": mid})),
    }
}

/// The answer to INFORM_REQ. May hold a card number: never log it.
pub fn encode_inform(rq: u64, inform: &Inform) -> Vec<u8> {
    let mut message = json!({
        "type": "INFORM_RES",
        "rq": rq,
        "name": inform.name,
        "token": inform.token.reveal(),
        "cc_number": "",
        "cc_exp": "",
        "address": "",
    });
    if let Some(Purse { card, address }) = &inform.purse {
        message["cc_number"] = json!(card.number.reveal());
        message["cc_exp"] = json!(card.expiry);
        message["address"] = json!(address);
    }
    encode(&message)
}

/// The goods are on their way.
pub fn encode_shipped(rq: u64) -> Vec<u8> {
    encode(&json!({"type": "SHIPPED", "rq": rq}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Card, CardNumber, Cents, Expiry};
    use crate::trade::wire::{self, Inbound, Phase, Reply, Secret, SettlementAnswer, Side};

    fn name() -> Name {
        Name::new("alice").unwrap()
    }

    #[test]
    fn the_server_reads_what_a_peer_writes() {
        let reach = Reach { ip: "127.0.0.1".parse().unwrap(), udp_port: 5000, tcp_port: 5001 };
        let item: Arc<str> = "reading \"lamp\"".into();
        let price = Cents(1250);
        let goods = Goods { item: Some("Reading lamp Ö".into()), description: Some("".into()) };
        let asks = [
            Ask::Register(reach),
            Ask::Login(reach),
            Ask::DeRegister,
            Ask::LookingFor { item_name: item.clone(), description: "".into(), max_price: price },
            Ask::Offer { item_name: item.clone(), price, goods: Goods::default() },
            Ask::Offer { item_name: item.clone(), price, goods: goods.clone() },
            Ask::NotAvailable { item_name: item.clone() },
            Ask::Accept { item_name: item.clone(), max_price: price },
            Ask::Refuse { item_name: item.clone(), max_price: price },
            Ask::Buy { item_name: item.clone(), price },
            Ask::Cancel { item_name: item },
            Ask::Status { rq_deal: None },
            Ask::Status { rq_deal: Some(3) },
        ];
        for ask in asks {
            let token = Token::random();
            let bytes = encode_request(7, &name(), Some(&token), &ask);
            let Inbound::Request(request) = wire::read(&bytes) else {
                panic!("{}", String::from_utf8_lossy(&bytes));
            };
            assert_eq!(format!("{:?}", request.ask), format!("{ask:?}"));
            assert!(request.rq == 7 && request.name == name() && request.token.unwrap().matches(&token));
        }
        assert!(matches!(wire::read(&encode_ack(9, None)), Inbound::Ack(ack) if ack.mid == 9));
        let card =
            Card { number: CardNumber::new("4111111111111111").unwrap(), expiry: Expiry::parse("12/39").unwrap() };
        let purse = Some(Purse { card, address: "1 Elm St".to_owned() });
        let inform = Inform { name: name(), token: Token::random(), purse };
        let line = String::from_utf8(encode_inform(5, &inform)).unwrap();
        let Ok(SettlementAnswer::InformRes(5, read)) = wire::read_settlement(&line, Side::Buyer) else {
            panic!("{line}")
        };
        let purse = read.purse.unwrap();
        assert_eq!((purse.card.number.last4(), &*purse.address), ("1111", "1 Elm St"));
        let line = String::from_utf8(encode_inform(5, &Inform { purse: None, ..inform })).unwrap();
        assert!(matches!(wire::read_settlement(&line, Side::Seller), Ok(SettlementAnswer::InformRes(5, _))));
        let line = String::from_utf8(encode_shipped(5)).unwrap();
        assert!(matches!(wire::read_settlement(&line, Side::Seller), Ok(SettlementAnswer::Shipped(5))));
    }

    #[test]
    fn a_peer_reads_what_the_server_writes() {
        let deal = DealStatus {
            rq: 3,
            side: Side::Seller,
            item_name: "lamp".into(),
            state: Phase::Reserved,
            price: Some(Cents(905)),
            reason: None,
            offer_item: Some("brass lamp".into()),
            offer_description: None,
            ends_in_ms: Some(5),
        };
        let replies = [
            Reply::Registered { rq: 1, token: Secret(Token::random()), cert_sha256: Some("ab".into()) },
            Reply::RegisterDenied { rq: 1, reason: "taken".into() },
            Reply::LoggedIn { rq: 1, cert_sha256: None },
            Reply::LoginDenied { rq: 1, reason: "no".into() },
            Reply::DeRegistered { rq: 1 },
            Reply::Searching { rq: 1, peers: 3 },
            Reply::Offered { rq: 1 },
            Reply::Noted { rq: 1 },
            Reply::Buying { rq: 1 },
            Reply::Cancelled { rq: 1 },
            Reply::Deals { rq: 1, deals: vec![deal.clone()], more: true },
            Reply::Error { rq: Some(1), code: Code::WrongState, reason: "no".into() },
        ];
        for reply in replies {
            match read(&encode(&reply)) {
                Ok(FromServer::Answer(answer)) => {
                    assert_eq!(answer.rq(), Some(1), "{reply:?}");
                    if let Answer::Deals { deals, more, .. } = answer {
                        assert_eq!((deals, more), (vec![deal.clone()], true));
                    }
                }
                other => panic!("{reply:?} was read as {other:?}"),
            }
        }
        let push = Push::Found {
            rq: 1,
            mid: 2,
            item_name: "x".into(),
            price: Cents(1),
            seller: name(),
            offer_item: None,
            offer_description: Some("of brass".into()),
        };
        assert!(matches!(read(&encode(&push)), Ok(FromServer::Push(read)) if read == push));
        assert!(matches!(
            read(br#"{"type":"CANCEL","rq":1,"mid":4,"item_name":"x","reason":"r","new":[]}"#),
            Ok(FromServer::Push(Push::Cancel { mid: 4, .. }))
        ));
        for bad in ["", "[]", "{}", r#"{"type":"FOUND","rq":1}"#, r#"{"type":"FOUND","mid":1}"#, "\u{0}"] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
        for array in [r#"["OFFERED",1]"#, r#"["RELEASED",1,2,"x"]"#, r#"[2]"#] {
            assert!(read(array.as_bytes()).unwrap_err().contains("expected one JSON object"), "{array}");
        }
    }
}
