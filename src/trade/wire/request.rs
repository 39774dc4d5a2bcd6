//! Requests of peers, and the parsing of their messages.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::field::{parse_object, required, required_price, required_string, whole_number};
use super::{ErrorCode, FIRST_SERVER_NUMBER, Goods, RequestError};
use crate::model::text::{DESCRIPTION_MAX, ITEM_NAME_MAX};
use crate::model::{Cents, Name, Token, money, text};

/// A parsed message of a peer.
#[derive(Debug)]
pub enum PeerMessage {
    Request(Request),
    /// The acknowledgement of a notification.
    Ack(Ack),
    /// A message type that only servers send, or an unreadable ACK. It is never answered, so that two servers cannot
    /// keep each other busy for ever.
    Ignored,
    /// A malformed message, with its `rq` if that could be read.
    Invalid(Option<u64>, RequestError),
}

/// The message `{"type":"ACK","mid":n}`.
#[derive(Debug)]
pub struct Ack {
    /// The number of the acknowledged notification.
    pub mid: u64,
    /// Required if the ACK comes from another address than the notification was sent to.
    pub token: Option<Token>,
}

/// A request of a peer.
#[derive(Debug, Clone)]
pub struct Request {
    /// The number that the response will carry.
    pub rq: u64,
    /// The name that the sender claims. Invisible characters are rejected only when a new name is registered, so that
    /// existing names keep working.
    pub name: Name,
    /// Proves the sender's identity; may be absent if the source address does.
    pub token: Option<Token>,
    /// The kind of request and its parameters.
    pub body: RequestBody,
}

/// The address at which a peer says it can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerEndpoint {
    /// Must equal the source address of the datagram that names it.
    pub ip: IpAddr,
    /// The port for datagrams. Wider than `u16`, so that 70000 gets a clear error.
    pub udp_port: u32,
    /// The port for settlement connections.
    pub tcp_port: u32,
}

/// The kinds of request with their parameters.
#[derive(Debug, Clone)]
pub enum RequestBody {
    /// Register under a name.
    Register(PeerEndpoint),
    /// Log in again, possibly from another address.
    Login(PeerEndpoint),
    /// End the registration.
    DeRegister,
    /// Search for an item as a buyer.
    LookingFor { item_name: Arc<str>, description: Arc<str>, max_price: Cents },
    /// Offer an item for this price.
    Offer { item_name: Arc<str>, price: Cents, goods: Goods },
    /// Decline a search: the item is not available.
    NotAvailable { item_name: Arc<str> },
    /// Agree to sell for the maximum price named in NEGOTIATE.
    Accept { item_name: Arc<str>, max_price: Cents },
    /// Decline to sell for that price.
    Refuse { item_name: Arc<str>, max_price: Cents },
    /// Buy the item that was found.
    Buy { item_name: Arc<str>, price: Cents },
    /// Withdraw from a deal, on either side.
    Cancel { item_name: Arc<str> },
    /// Ask for the state of one deal or of all.
    Status { rq_deal: Option<u64> },
}

/// Every field that a peer's message may have. Unknown fields are skipped.
#[derive(Deserialize)]
struct RawMessage {
    r#type: Option<Value>,
    rq: Option<Value>,
    mid: Option<Value>,
    name: Option<Value>,
    token: Option<Value>,
    ip: Option<Value>,
    udp_port: Option<Value>,
    tcp_port: Option<Value>,
    item_name: Option<Value>,
    description: Option<Value>,
    #[serde(default, deserialize_with = "money::deserialize_verbatim")]
    price: Option<Value>,
    #[serde(default, deserialize_with = "money::deserialize_verbatim")]
    max_price: Option<Value>,
    offer_item: Option<Value>,
    offer_description: Option<Value>,
    rq_deal: Option<Value>,
}

fn optional_string(value: &Option<Value>, field: &str, min: usize, max: usize) -> Result<Option<Arc<str>>, String> {
    match value {
        None | Some(Value::Null) => Ok(None),
        value => required_string(value, field, min, max).map(|text| Some(Arc::from(text))),
    }
}

const EXPECTED_TYPES: &str =
    "REGISTER, LOGIN, DE-REGISTER, LOOKING_FOR, OFFER, NOT_AVAILABLE, ACCEPT, REFUSE, BUY, CANCEL or STATUS";

/// Message types that only a server sends.
const SERVER_TYPES: [&str; 22] = [
    "REGISTERED",
    "REGISTER-DENIED",
    "LOGGED-IN",
    "LOGIN-DENIED",
    "DE-REGISTERED",
    "SEARCHING",
    "OFFERED",
    "NOTED",
    "BUYING",
    "CANCELLED",
    "DEALS",
    "ERROR",
    "SEARCH",
    "NEGOTIATE",
    "RESERVE",
    "RELEASED",
    "FOUND",
    "NOT_FOUND",
    "INFORM_REQ",
    "SHIPPING_INFO",
    "SETTLED",
    "RECEIPT",
];

/// Parses a datagram, or a line on a connection.
pub fn parse_message(bytes: &[u8]) -> PeerMessage {
    let refuse = |rq, reason: String| PeerMessage::Invalid(rq, RequestError::new(ErrorCode::BadRequest, reason));
    let bytes = text::without_bom(bytes);
    // Checked for the whole message: serde would not look at the bytes of skipped fields.
    if std::str::from_utf8(bytes).is_err() {
        return refuse(None, "expected UTF-8".to_owned());
    }
    let fields: RawMessage = match parse_object(bytes) {
        Ok(fields) => fields,
        Err(wrong) => return refuse(None, wrong),
    };
    let rq = fields.rq.as_ref().and_then(whole_number);
    let kind = match &fields.r#type {
        Some(Value::String(kind)) => kind.as_str(),
        Some(_) => return refuse(rq, "type: expected a text".to_owned()),
        None => return refuse(rq, "type: missing".to_owned()),
    };
    if kind == "ACK" {
        // An unreadable ACK is never answered with an error; it acknowledges nothing.
        return match (fields.mid.as_ref().and_then(whole_number), fields.token()) {
            (Some(mid), Ok(token)) => PeerMessage::Ack(Ack { mid, token }),
            _ => PeerMessage::Ignored,
        };
    }
    let pushed = fields.mid.is_some() && matches!(kind, "NOT_AVAILABLE" | "CANCEL");
    if pushed || SERVER_TYPES.contains(&kind) {
        return PeerMessage::Ignored;
    }
    match fields.request(kind) {
        Ok(request) => PeerMessage::Request(request),
        Err(reason) => refuse(rq, reason),
    }
}

impl RawMessage {
    fn request(&self, kind: &str) -> Result<Request, String> {
        let needs_deal_of_seller = matches!(kind, "OFFER" | "NOT_AVAILABLE" | "ACCEPT" | "REFUSE" | "CANCEL");
        let body = match kind {
            "REGISTER" => RequestBody::Register(self.endpoint()?),
            "LOGIN" => {
                required(&self.token, "token")?;
                RequestBody::Login(self.endpoint()?)
            }
            "DE-REGISTER" => RequestBody::DeRegister,
            "LOOKING_FOR" => RequestBody::LookingFor {
                item_name: self.item_name()?,
                description: required_string(&self.description, "description", 0, DESCRIPTION_MAX)?.into(),
                max_price: required_price(&self.max_price, "max_price")?,
            },
            "OFFER" => RequestBody::Offer {
                item_name: self.item_name()?,
                price: required_price(&self.price, "price")?,
                goods: Goods {
                    item: optional_string(&self.offer_item, "offer_item", 1, ITEM_NAME_MAX)?,
                    description: optional_string(&self.offer_description, "offer_description", 0, DESCRIPTION_MAX)?,
                },
            },
            "NOT_AVAILABLE" => RequestBody::NotAvailable { item_name: self.item_name()? },
            "ACCEPT" => RequestBody::Accept {
                item_name: self.item_name()?,
                max_price: required_price(&self.max_price, "max_price")?,
            },
            "REFUSE" => RequestBody::Refuse {
                item_name: self.item_name()?,
                max_price: required_price(&self.max_price, "max_price")?,
            },
            "BUY" => RequestBody::Buy { item_name: self.item_name()?, price: required_price(&self.price, "price")? },
            "CANCEL" => RequestBody::Cancel { item_name: self.item_name()? },
            "STATUS" => RequestBody::Status {
                rq_deal: self.rq_deal.as_ref().filter(|value| !value.is_null()).map_or(Ok(None), |value| {
                    whole_number(value).map(Some).ok_or("rq_deal: expected a whole number from 0 to 2^53 - 1")
                })?,
            },
            _ => return Err(format!("type: expected {EXPECTED_TYPES}")),
        };
        let rq = required(&self.rq, "rq")?;
        let rq = whole_number(rq).ok_or("rq: expected a whole number")?;
        if rq >= FIRST_SERVER_NUMBER && !needs_deal_of_seller {
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

    fn endpoint(&self) -> Result<PeerEndpoint, String> {
        let ip = match required(&self.ip, "ip")? {
            Value::String(ip) => ip.parse::<IpAddr>().ok(),
            _ => None,
        };
        let port = |value: &Option<Value>, field| {
            let port = whole_number(required(value, field)?).and_then(|port| u32::try_from(port).ok());
            port.ok_or_else(|| format!("{field}: expected a port from 1024 to 65535"))
        };
        Ok(PeerEndpoint {
            ip: ip.ok_or("ip: expected an IP address as text")?.to_canonical(),
            udp_port: port(&self.udp_port, "udp_port")?,
            tcp_port: port(&self.tcp_port, "tcp_port")?,
        })
    }

    fn item_name(&self) -> Result<Arc<str>, String> {
        required_string(&self.item_name, "item_name", 1, ITEM_NAME_MAX).map(Arc::from)
    }
}
