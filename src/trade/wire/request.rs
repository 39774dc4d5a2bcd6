//! What a peer asks for, and how a datagram is read.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::field::{present, price, read_object, string, whole_number};
use super::{Code, Goods, Refusal, SERVER_NUMBERS};
use crate::model::text::{DESCRIPTION_MAX, ITEM_NAME_MAX};
use crate::model::{Cents, Name, Token, money, text};

/// What came in a datagram.
#[derive(Debug)]
pub enum Inbound {
    /// A peer asks for something.
    Request(Request),
    /// A peer has got a push.
    Ack(Ack),
    /// A server's type, or an `ERROR`: never answered, so that two servers cannot talk for ever.
    Ignored,
    /// It cannot be understood; `rq` is there if that much could be read.
    Refused(Option<u64>, Refusal),
}

/// `{"type":"ACK","mid":n}`
#[derive(Debug)]
pub struct Ack {
    /// The push that arrived.
    pub mid: u64,
    /// Needed when it comes from another address than the push went to.
    pub token: Option<Token>,
}

/// A peer's request.
#[derive(Debug, Clone)]
pub struct Request {
    /// The number that the answer bears.
    pub rq: u64,
    /// Who asks, by its own word. Whether all of it can be seen is asked where a name is new: who has one keeps it.
    pub name: Name,
    /// What proves it, unless the source address does.
    pub token: Option<Token>,
    /// What is asked.
    pub ask: Ask,
}

/// Where a peer says that it can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// Must be the source of the datagram that says so.
    pub ip: IpAddr,
    /// For datagrams. Wider than a port, so that 70000 gets a clear answer.
    pub udp_port: u32,
    /// For settlement.
    pub tcp_port: u32,
}

/// The kinds of request and what they carry.
#[derive(Debug, Clone)]
pub enum Ask {
    /// Take part under a name.
    Register(Reach),
    /// Come back, perhaps from another address.
    Login(Reach),
    /// Leave.
    DeRegister,
    /// Search, as a buyer.
    LookingFor { item_name: Arc<str>, description: Arc<str>, max_price: Cents },
    /// Have it, for this price.
    Offer { item_name: Arc<str>, price: Cents, goods: Goods },
    /// Do not have it.
    NotAvailable { item_name: Arc<str> },
    /// Agree to sell for NEGOTIATE's maximum.
    Accept { item_name: Arc<str>, max_price: Cents },
    /// Do not agree.
    Refuse { item_name: Arc<str>, max_price: Cents },
    /// Buy what was found.
    Buy { item_name: Arc<str>, price: Cents },
    /// Step back, on either side.
    Cancel { item_name: Arc<str> },
    /// How do my deals stand?
    Status { rq_deal: Option<u64> },
}

/// Every field that a datagram of a peer may have. Unknown ones are skipped.
#[derive(Deserialize)]
struct Fields {
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
    #[serde(default, deserialize_with = "money::as_written")]
    price: Option<Value>,
    #[serde(default, deserialize_with = "money::as_written")]
    max_price: Option<Value>,
    offer_item: Option<Value>,
    offer_description: Option<Value>,
    rq_deal: Option<Value>,
}

fn optional(value: &Option<Value>, field: &str, min: usize, max: usize) -> Result<Option<Arc<str>>, String> {
    match value {
        None | Some(Value::Null) => Ok(None),
        value => string(value, field, min, max).map(|text| Some(Arc::from(text))),
    }
}

const REQUESTS: &str =
    "REGISTER, LOGIN, DE-REGISTER, LOOKING_FOR, OFFER, NOT_AVAILABLE, ACCEPT, REFUSE, BUY, CANCEL or STATUS";

/// Types that only a server sends.
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

/// Reads a datagram, or the one line that asks for a BUY over TCP.
pub fn read(bytes: &[u8]) -> Inbound {
    let refuse = |rq, reason: String| Inbound::Refused(rq, Refusal::new(Code::BadRequest, reason));
    let bytes = text::without_bom(bytes);
    // Also where no field of ours is: what is skipped would not be looked at.
    if std::str::from_utf8(bytes).is_err() {
        return refuse(None, "expected UTF-8".to_owned());
    }
    let fields: Fields = match read_object(bytes) {
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
        // Never answered with an error: an ACK that cannot be read acknowledges nothing.
        return match (fields.mid.as_ref().and_then(whole_number), fields.token()) {
            (Some(mid), Ok(token)) => Inbound::Ack(Ack { mid, token }),
            _ => Inbound::Ignored,
        };
    }
    let pushed = fields.mid.is_some() && matches!(kind, "NOT_AVAILABLE" | "CANCEL");
    if pushed || SERVER_TYPES.contains(&kind) {
        return Inbound::Ignored;
    }
    match fields.request(kind) {
        Ok(request) => Inbound::Request(request),
        Err(reason) => refuse(rq, reason),
    }
}

impl Fields {
    fn request(&self, kind: &str) -> Result<Request, String> {
        let needs_deal_of_seller = matches!(kind, "OFFER" | "NOT_AVAILABLE" | "ACCEPT" | "REFUSE" | "CANCEL");
        let ask = match kind {
            "REGISTER" => Ask::Register(self.reach()?),
            "LOGIN" => {
                present(&self.token, "token")?;
                Ask::Login(self.reach()?)
            }
            "DE-REGISTER" => Ask::DeRegister,
            "LOOKING_FOR" => Ask::LookingFor {
                item_name: self.item_name()?,
                description: string(&self.description, "description", 0, DESCRIPTION_MAX)?.into(),
                max_price: price(&self.max_price, "max_price")?,
            },
            "OFFER" => Ask::Offer {
                item_name: self.item_name()?,
                price: price(&self.price, "price")?,
                goods: Goods {
                    item: optional(&self.offer_item, "offer_item", 1, ITEM_NAME_MAX)?,
                    description: optional(&self.offer_description, "offer_description", 0, DESCRIPTION_MAX)?,
                },
            },
            "NOT_AVAILABLE" => Ask::NotAvailable { item_name: self.item_name()? },
            "ACCEPT" => Ask::Accept { item_name: self.item_name()?, max_price: price(&self.max_price, "max_price")? },
            "REFUSE" => Ask::Refuse { item_name: self.item_name()?, max_price: price(&self.max_price, "max_price")? },
            "BUY" => Ask::Buy { item_name: self.item_name()?, price: price(&self.price, "price")? },
            "CANCEL" => Ask::Cancel { item_name: self.item_name()? },
            "STATUS" => Ask::Status {
                rq_deal: self.rq_deal.as_ref().filter(|value| !value.is_null()).map_or(Ok(None), |value| {
                    whole_number(value).map(Some).ok_or("rq_deal: expected a whole number from 0 to 2^53 - 1")
                })?,
            },
            _ => return Err(format!("type: expected {REQUESTS}")),
        };
        let rq = present(&self.rq, "rq")?;
        let rq = whole_number(rq).ok_or("rq: expected a whole number")?;
        if rq >= SERVER_NUMBERS && !needs_deal_of_seller {
            return Err("rq: expected a number below 2147483648; from there on the server picks".to_owned());
        }
        let name = match present(&self.name, "name")? {
            Value::String(name) => Name::kept(name).map_err(|wrong| format!("name: {wrong}"))?,
            _ => return Err("name: expected a text".to_owned()),
        };
        Ok(Request { rq, name, token: self.token()?, ask })
    }

    fn token(&self) -> Result<Option<Token>, String> {
        match &self.token {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(token)) => Ok(Some(Token::from_text(token))),
            Some(_) => Err("token: expected a text".to_owned()),
        }
    }

    fn reach(&self) -> Result<Reach, String> {
        let ip = match present(&self.ip, "ip")? {
            Value::String(ip) => ip.parse::<IpAddr>().ok(),
            _ => None,
        };
        let port = |value: &Option<Value>, field| {
            let port = whole_number(present(value, field)?).and_then(|port| u32::try_from(port).ok());
            port.ok_or_else(|| format!("{field}: expected a port from 1024 to 65535"))
        };
        Ok(Reach {
            ip: ip.ok_or("ip: expected an IP address as text")?.to_canonical(),
            udp_port: port(&self.udp_port, "udp_port")?,
            tcp_port: port(&self.tcp_port, "tcp_port")?,
        })
    }

    fn item_name(&self) -> Result<Arc<str>, String> {
        string(&self.item_name, "item_name", 1, ITEM_NAME_MAX).map(Arc::from)
    }
}
