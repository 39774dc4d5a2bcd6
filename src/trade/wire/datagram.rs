use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::field::{parse_object, required, whole_number};
use super::messages::{DealRequest, FIELDS, Notification, RawMessage, RequestBody, Response};
use super::{DATAGRAM_MAX, ErrorCode, FIRST_SERVER_NUMBER, RequestError, SettlementMessage, Side, encode};
use crate::model::{Name, Token, text};

/// What a peer sent.
#[derive(Debug)]
pub enum PeerMessage {
    Request(Request),
    Ack(Ack),
    /// A type that only servers send, or an unreadable ACK. It is never answered, so that two servers cannot keep each
    /// other busy for ever.
    Ignored,
    /// A malformed message, with its `rq` if that could be read.
    Invalid(Option<u64>, RequestError),
}

/// The message `{"type":"ACK","mid":n}`.
#[derive(Debug)]
pub struct Ack {
    pub mid: u64,
    /// It is required from another address than the notification was sent to.
    pub token: Option<Token>,
}

/// A request of a peer.
#[derive(Debug, Clone)]
pub struct Request {
    /// The response carries it.
    pub rq: u64,
    /// The name that the sender claims. Invisible characters are rejected only when a name is registered, so that
    /// existing ones keep working.
    pub name: Name,
    /// It may be absent if the source address proves the sender's identity.
    pub token: Option<Token>,
    pub body: RequestBody,
}

/// A datagram of a peer, or a line on a connection.
pub fn parse_message(bytes: &[u8]) -> PeerMessage {
    let refuse = |rq, reason: String| PeerMessage::Invalid(rq, RequestError::new(ErrorCode::BadRequest, reason));
    let bytes = text::without_bom(bytes);
    // The whole message is checked: serde would not look at the bytes of skipped fields.
    if std::str::from_utf8(bytes).is_err() {
        return refuse(None, "expected UTF-8".to_owned());
    }
    let raw: RawMessage = match parse_object(bytes, FIELDS) {
        Ok(raw) => raw,
        Err(wrong) => return refuse(None, wrong),
    };
    let rq = raw.rq.as_ref().and_then(whole_number);
    let name = match &raw.r#type {
        Some(Value::String(name)) => name.as_str(),
        Some(_) => return refuse(rq, "type: expected a text".to_owned()),
        None => return refuse(rq, "type: missing".to_owned()),
    };
    if name == "ACK" {
        // An unreadable one acknowledges nothing.
        return match (raw.mid.as_ref().and_then(whole_number), raw.token()) {
            (Some(mid), Ok(token)) => PeerMessage::Ack(Ack { mid, token }),
            _ => PeerMessage::Ignored,
        };
    }
    // CANCEL and NOT_AVAILABLE are types of requests and of notifications; the latter have a `mid`.
    let is_request = DealRequest::TYPES.contains(&name) || RequestBody::TYPES.contains(&name);
    if (!is_request || raw.mid.is_some()) && is_type_of_server(name) {
        return PeerMessage::Ignored;
    }
    match raw.request(name) {
        Ok(request) => PeerMessage::Request(request),
        Err(reason) => refuse(rq, reason),
    }
}

fn is_type_of_server(name: &str) -> bool {
    [Response::TYPES, Notification::TYPES, SettlementMessage::TYPES].iter().any(|types| types.contains(&name))
}

fn unknown_type() -> String {
    let (last, others) = RequestBody::TYPES.split_last().expect("there are requests without a deal");
    format!("type: expected {}, {} or {last}", others.join(", "), DealRequest::TYPES.join(", "))
}

impl RawMessage {
    fn request(&self, name: &str) -> Result<Request, String> {
        if name == "LOGIN" {
            required(&self.token, "token")?;
        }
        let body = RequestBody::read(name, self)?.ok_or_else(unknown_type)?;
        let rq = whole_number(required(&self.rq, "rq")?).ok_or("rq: expected a whole number")?;
        let is_sellers = matches!(&body, RequestBody::Deal { request, .. } if request.is_sent_by(Side::Seller));
        if rq >= FIRST_SERVER_NUMBER && !is_sellers {
            return Err("rq: expected a number below 2147483648; from there on the server picks".to_owned());
        }
        let name = match required(&self.name, "name")? {
            Value::String(name) => Name::from_stored(name).map_err(|wrong| format!("name: {wrong}"))?,
            _ => return Err("name: expected a text".to_owned()),
        };
        Ok(Request { rq, name, token: self.token()?, body })
    }

    fn token(&self) -> Result<Option<Token>, String> {
        match &self.token {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(token)) => Ok(Some(Token::from_text(token))),
            Some(_) => Err("token: expected a text".to_owned()),
        }
    }
}

/// The same input gives the same bytes, as repeats require.
pub fn encode_request(rq: u64, name: &Name, token: Option<&Token>, body: &RequestBody) -> Vec<u8> {
    #[derive(Serialize)]
    struct Fields<'a> {
        r#type: &'static str,
        rq: u64,
        name: &'a Name,
        #[serde(skip_serializing_if = "Option::is_none")]
        token: Option<&'a Token>,
        #[serde(flatten)]
        body: &'a RequestBody,
    }
    // A `json!` value has its fields in the order of their names.
    encode(&json!(Fields { r#type: body.type_name(), rq, name, token, body }))
}

/// `{"type":"ACK","mid":n,"token":…}`. With the token it is valid from any address.
pub fn encode_ack(mid: u64, token: Option<&Token>) -> Vec<u8> {
    let mut ack = json!({"type": "ACK", "mid": mid});
    if let Some(token) = token {
        ack["token"] = json!(token);
    }
    encode(&ack)
}

/// A datagram of the server.
#[derive(Debug)]
pub enum ServerMessage {
    Response(Response),
    /// It must be acknowledged.
    Notification(Notification),
}

/// An error does not quote the datagram.
pub fn parse_server_message(bytes: &[u8]) -> Result<ServerMessage, String> {
    #[derive(Deserialize)]
    struct MessageHead {
        mid: Option<Value>,
    }
    if bytes.len() > DATAGRAM_MAX {
        return Err(format!("expected at most {DATAGRAM_MAX} bytes"));
    }
    let wrong = |wrong: String| format!("not a server's message: {wrong}");
    let head: MessageHead = parse_object(bytes, FIELDS).map_err(wrong)?;
    // The presence of `mid` marks a notification: CANCEL and NOT_AVAILABLE are also types of requests.
    if head.mid.is_some() {
        parse_object(bytes, FIELDS).map(ServerMessage::Notification).map_err(wrong)
    } else {
        parse_object(bytes, FIELDS).map(ServerMessage::Response).map_err(wrong)
    }
}
