//! The messages of trade: what may be in a datagram or on a settlement line, and what is wrong with it.
//!
//! One JSON object a datagram or line. Reading is strict in what it needs and deaf to what it does not
//! know; every error names the field and says what was expected (SPEC section 2).

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::text::{self, DESCRIPTION_MAX, ITEM_NAME_MAX};
use crate::model::{Card, CardNumber, Cents, Expiry, Name, Token};

/// Most bytes of a datagram, either way.
pub const DATAGRAM_MAX: usize = 8 * 1024;
/// Peers pick their numbers below this; the server picks those of a seller's side from here on.
pub const SERVER_NUMBERS: u64 = 1 << 31;
/// Numbers stay below 2^53, so that every JSON reader holds them exactly.
pub const NUMBER_MAX: u64 = (1 << 53) - 1;
/// Most characters of a postal address.
pub const ADDRESS_MAX: usize = 1024;

/// Why a request is refused: the `code` of an `ERROR`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Code {
    /// The message breaks a rule of form.
    BadRequest,
    /// No peer of that name is registered.
    NotRegistered,
    /// The sender did not show that it is that peer.
    Forbidden,
    /// The peer has no deal of that number.
    UnknownDeal,
    /// The deal is past (or before) the point where this is possible.
    WrongState,
    /// A bound is reached.
    Busy,
    /// It could not be stored: nothing changed, try again.
    Unavailable,
}

/// A refusal: its code and what a person should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub code: Code,
    /// For people; names the field where one is wrong.
    pub reason: String,
}

impl Refusal {
    /// A refusal with its reason.
    pub fn new(code: Code, reason: impl Into<String>) -> Refusal {
        Refusal { code, reason: reason.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

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
    /// Who asks, by its own word.
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
    Offer { item_name: Arc<str>, price: Cents },
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
    price: Option<Value>,
    max_price: Option<Value>,
    rq_deal: Option<Value>,
}

/// The names of all fields that may be in a message of a peer.
const FIELDS: [&str; 16] = [
    "type",
    "rq",
    "mid",
    "name",
    "token",
    "ip",
    "udp_port",
    "tcp_port",
    "item_name",
    "description",
    "price",
    "max_price",
    "rq_deal",
    "cc_number",
    "cc_exp",
    "address",
];

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
            "OFFER" => Ask::Offer { item_name: self.item_name()?, price: price(&self.price, "price")? },
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
            Value::String(name) => Name::new(name).map_err(|wrong| format!("name: {wrong}"))?,
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

fn present<'a>(value: &'a Option<Value>, field: &str) -> Result<&'a Value, String> {
    value.as_ref().filter(|value| !value.is_null()).ok_or_else(|| format!("{field}: missing"))
}

fn string<'a>(value: &'a Option<Value>, field: &str, min: usize, max: usize) -> Result<&'a str, String> {
    let Value::String(text) = present(value, field)? else {
        return Err(format!("{field}: expected a text"));
    };
    text::check_length(text, min, max).map_err(|wrong| format!("{field}: {wrong}"))?;
    Ok(text)
}

fn price(value: &Option<Value>, field: &str) -> Result<Cents, String> {
    Cents::deserialize(present(value, field)?).map_err(|wrong| format!("{field}: {wrong}"))
}

/// A whole number from 0 to 2^53 − 1, also when it was written as `1.0`.
fn whole_number(value: &Value) -> Option<u64> {
    let number = value.as_u64().or_else(|| {
        let float = value.as_f64()?;
        (float.fract() == 0.0 && (0.0..=NUMBER_MAX as f64).contains(&float)).then_some(float as u64)
    })?;
    (number <= NUMBER_MAX).then_some(number)
}

/// Reads one JSON object. To serde an array of the same values would be as good; here it is not.
///
/// # Errors
/// What is wrong with it, without quoting it.
pub fn read_object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, String> {
    match json.iter().find(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r')) {
        Some(b'{') => serde_json::from_slice(json).map_err(|error| json_error(&error, json)),
        Some(_) => Err("expected one JSON object".to_owned()),
        None => Err("expected one JSON object, found nothing".to_owned()),
    }
}

/// What serde says of JSON that cannot be read, without the input that it may quote; with the field's name
/// where that is one that we know.
fn json_error(error: &serde_json::Error, json: &[u8]) -> String {
    let said = error.to_string();
    let what = match error.classify() {
        serde_json::error::Category::Data => {
            let repeated = said.strip_prefix("duplicate field `").and_then(|rest| rest.split_once('`'));
            if let Some((field, _)) = repeated {
                // The name of one of our own fields: of others nothing is noted that could be repeated.
                return format!("{field}: expected once");
            }
            format!("found something else at column {}", error.column())
        }
        serde_json::error::Category::Eof => "it ends too early".to_owned(),
        _ => {
            let field = said.starts_with("number out of range").then(|| field_before(error, json)).flatten();
            if let Some(field) = field {
                return format!("{field}: expected a number that is not out of range");
            }
            format!("syntax error at line {}, column {}", error.line(), error.column())
        }
    };
    format!("expected one JSON object: {what}")
}

/// The field whose value an error is about.
fn field_before(error: &serde_json::Error, json: &[u8]) -> Option<&'static str> {
    let line = json.split(|byte| *byte == b'\n').nth(error.line().checked_sub(1)?)?;
    let before = &line[..error.column().min(line.len())];
    let before = before[..before.iter().rposition(|byte| *byte == b':')?].trim_ascii_end();
    FIELDS.into_iter().find(|field| before.ends_with(format!("\"{field}\"").as_bytes()))
}

/// An answer to a request; bears its `rq` and goes to the datagram's source.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type")]
pub enum Reply {
    /// The name is the peer's; the token proves it from now on.
    #[serde(rename = "REGISTERED")]
    Registered { rq: u64, token: Secret, cert_sha256: Option<Arc<str>> },
    /// The name is not given.
    #[serde(rename = "REGISTER-DENIED")]
    RegisterDenied { rq: u64, reason: String },
    /// The peer is back.
    #[serde(rename = "LOGGED-IN")]
    LoggedIn { rq: u64, cert_sha256: Option<Arc<str>> },
    /// The peer is not taken back.
    #[serde(rename = "LOGIN-DENIED")]
    LoginDenied { rq: u64, reason: String },
    /// The name is free (again).
    #[serde(rename = "DE-REGISTERED")]
    DeRegistered { rq: u64 },
    /// The search is on; so many peers were asked.
    #[serde(rename = "SEARCHING")]
    Searching { rq: u64, peers: usize },
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
    /// The asker's deals, newest first; `more` when not all fitted.
    #[serde(rename = "DEALS")]
    Deals { rq: u64, deals: Vec<DealStatus>, more: bool },
    /// Refused.
    #[serde(rename = "ERROR")]
    Error { rq: Option<u64>, code: Code, reason: String },
}

/// A token on its way out: shown on the wire, hidden everywhere else.
#[derive(Debug, Clone)]
pub struct Secret(pub Token);

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.reveal())
    }
}

/// One deal in `DEALS`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DealStatus {
    /// The number of the asker's side.
    pub rq: u64,
    /// `buyer` or `seller`.
    pub side: Side,
    /// As the buyer wrote it.
    pub item_name: Arc<str>,
    /// How far it is.
    pub state: Phase,
    /// What is offered, reserved or was paid.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub price: Option<Cents>,
    /// Why it was cancelled.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<Arc<str>>,
    /// How long the present window still is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ends_in_ms: Option<u64>,
}

/// Which side of a deal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Searches and pays.
    Buyer,
    /// Offers and ships.
    Seller,
}

/// How far a deal is, as STATUS tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Offers are awaited.
    Searching,
    /// A seller is asked for a better price.
    Negotiating,
    /// One offer is taken; the buyer may buy.
    Reserved,
    /// It is being paid.
    Settling,
    /// Paid and shipped.
    Completed,
    /// Ended without a sale.
    Cancelled,
}

impl Reply {
    /// The datagram, if it can be made at most `max` bytes long: a list leaves out its oldest, a reason
    /// loses its end; an answer that cannot shrink is not sent.
    pub fn fit(mut self, max: usize) -> Option<Vec<u8>> {
        let bytes = encode(&self);
        if bytes.len() <= max {
            return Some(bytes);
        }
        let excess = bytes.len() - max;
        match &mut self {
            Reply::Deals { deals, more, .. } => {
                *more = true;
                let mut length = bytes.len();
                while length > max {
                    // Each entry costs itself and a comma.
                    length -= encode(&deals.pop()?).len() + usize::from(!deals.is_empty());
                }
            }
            Reply::Error { reason, .. } | Reply::RegisterDenied { reason, .. } | Reply::LoginDenied { reason, .. } => {
                shorten(reason, excess)?
            }
            _ => return None,
        }
        let bytes = encode(&self);
        (bytes.len() <= max).then_some(bytes)
    }
}

/// Takes at least `excess` bytes of JSON off a text's end; `None` when there are not as many.
fn shorten(text: &mut String, excess: usize) -> Option<()> {
    let mut freed = 0;
    while freed < excess {
        let last = text.pop()?;
        freed += encode(&last.to_string()).len() - 2;
    }
    Some(())
}

/// JSON bytes of a value that cannot fail to be written (no maps with odd keys, no I/O).
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(160);
    serde_json::to_writer(&mut bytes, value).expect("plain messages always serialise into memory");
    bytes
}

/// What the server says of its own accord; acknowledged by `mid`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Push {
    /// Someone is looking for something.
    Search { rq: u64, mid: u64, item_name: Arc<str>, description: Arc<str> },
    /// Would you sell for this much?
    Negotiate { rq: u64, mid: u64, item_name: Arc<str>, max_price: Cents },
    /// Your offer is taken.
    Reserve { rq: u64, mid: u64, item_name: Arc<str>, price: Cents },
    /// Your offer is not taken.
    Released { rq: u64, mid: u64, item_name: Arc<str> },
    /// One is reserved for you.
    Found { rq: u64, mid: u64, item_name: Arc<str>, price: Cents, seller: Name },
    /// There were offers, all above your maximum.
    NotFound { rq: u64, mid: u64, item_name: Arc<str>, max_price: Cents },
    /// There was no offer.
    NotAvailable { rq: u64, mid: u64, item_name: Arc<str> },
    /// The deal is off.
    Cancel { rq: u64, mid: u64, item_name: Arc<str>, reason: Arc<str> },
}

/// A line that the server writes in a settlement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SettlementLine {
    /// Who are you, and (buyer) what do you pay with?
    InformReq { rq: u64, item_name: Arc<str>, price: Cents },
    /// Ship it there; you will get so much.
    ShippingInfo { rq: u64, name: Name, address: String, price: Cents, fee: Amount, payout: Amount },
    /// You are paid.
    Settled { rq: u64, payout: Amount },
    /// You have paid.
    Receipt { rq: u64, item_name: Arc<str>, price: Cents, seller: Name },
    /// Nothing is charged.
    Cancel { rq: u64, item_name: Arc<str>, reason: Arc<str> },
}

/// An amount that, unlike a price, may be zero: a fee of nothing, a payout of nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amount(pub Cents);

impl Serialize for Amount {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Amount, D::Error> {
        let value = Value::deserialize(deserializer)?;
        if value.as_f64() == Some(0.0) || value.as_str().is_some_and(|text| matches!(text, "0" | "0.0" | "0.00")) {
            return Ok(Amount(Cents(0)));
        }
        Cents::deserialize(value).map(Amount).map_err(serde::de::Error::custom)
    }
}

/// What a peer answers to INFORM_REQ.
#[derive(Debug, Clone)]
pub struct Inform {
    /// Must be the peer's.
    pub name: Name,
    /// Must be the peer's.
    pub token: Token,
    /// What the buyer pays with. A seller's is not looked at, so it may have none.
    pub purse: Option<Purse>,
}

/// A card, and where goods go to (or come from). Its `Debug` output shows neither card nor address.
#[derive(Clone)]
pub struct Purse {
    /// What is charged.
    pub card: Card,
    /// A postal address.
    pub address: String,
}

impl fmt::Debug for Purse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Purse").field("card", &self.card.number).finish_non_exhaustive()
    }
}

/// A line that a peer writes in a settlement.
#[derive(Debug, Clone)]
pub enum SettlementAnswer {
    /// Answer to INFORM_REQ.
    InformRes(u64, Box<Inform>),
    /// The seller has sent the goods on their way.
    Shipped(u64),
}

/// Reads a settlement line of that side; the error says what is wrong with it, without quoting it.
pub fn read_settlement(line: &str, side: Side) -> Result<SettlementAnswer, String> {
    #[derive(Deserialize)]
    struct Line {
        r#type: Option<Value>,
        rq: Option<Value>,
        name: Option<Value>,
        token: Option<Value>,
        cc_number: Option<Value>,
        cc_exp: Option<Value>,
        address: Option<Value>,
    }
    let line: Line = read_object(line.as_bytes())?;
    let rq = whole_number(present(&line.rq, "rq")?).ok_or("rq: expected a whole number")?;
    match present(&line.r#type, "type")?.as_str() {
        Some("SHIPPED") => Ok(SettlementAnswer::Shipped(rq)),
        Some("INFORM_RES") => {
            let text = |value, field, max| string(value, field, 1, max);
            let named = |field: &'static str| move |wrong| format!("{field}: {wrong}");
            let name = Name::new(text(&line.name, "name", text::NAME_MAX)?).map_err(named("name"))?;
            let token = Token::from_text(text(&line.token, "token", 256)?);
            let purse = match side {
                Side::Seller => None,
                Side::Buyer => Some(Purse {
                    card: Card {
                        number: CardNumber::new(text(&line.cc_number, "cc_number", 64)?).map_err(named("cc_number"))?,
                        expiry: Expiry::parse(text(&line.cc_exp, "cc_exp", 16)?).map_err(named("cc_exp"))?,
                    },
                    address: text(&line.address, "address", ADDRESS_MAX)?.to_owned(),
                }),
            };
            Ok(SettlementAnswer::InformRes(rq, Box::new(Inform { name, token, purse })))
        }
        _ => Err("type: expected INFORM_RES or SHIPPED".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(text: &str) -> (Option<u64>, String) {
        match read(text.as_bytes()) {
            Inbound::Refused(rq, refusal) => {
                assert_eq!(refusal.code, Code::BadRequest);
                (rq, refusal.reason)
            }
            other => panic!("{text} was read as {other:?}"),
        }
    }

    #[test]
    fn requests_are_read_and_unknown_fields_ignored() {
        let text = r#"{"type":"LOOKING_FOR","rq":7,"name":"al","item_name":"lamp","description":"","max_price":"12.50","x":[{}]}"#;
        let Inbound::Request(request) = read(text.as_bytes()) else { panic!() };
        assert_eq!((request.rq, request.name.as_str()), (7, "al"));
        assert!(matches!(request.ask, Ask::LookingFor { max_price: Cents(1250), .. }));
        let text =
            r#"{"type":"REGISTER","rq":1.0,"name":"a","ip":"::ffff:127.0.0.1","udp_port":5000,"tcp_port":70000}"#;
        let Inbound::Request(Request { ask: Ask::Register(reach), .. }) = read(text.as_bytes()) else { panic!() };
        assert_eq!((reach.ip.to_string().as_str(), reach.tcp_port), ("127.0.0.1", 70000));
    }

    #[test]
    fn all_of_it_is_utf8_also_what_is_ignored() {
        for bytes in
            [&b"{\"type\":\"STATUS\",\"rq\":1,\"name\":\"al\",\"x\":\"\xff\"}"[..], b"\xff", b"{\"\xc0\xaf\":1}"]
        {
            let Inbound::Refused(None, refusal) = read(bytes) else { panic!("{bytes:?}") };
            assert_eq!((refusal.code, refusal.reason.as_str()), (Code::BadRequest, "expected UTF-8"));
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
            (r#"{"type":"BUY","rq":1,"price":-1e999}"#, None, "price: expected a number"),
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
            (
                r#"{"type":"LOOKING_FOR","rq":1,"name":"a","item_name":"x","max_price":1}"#,
                Some(1),
                "description: missing",
            ),
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
            assert!(matches!(read(text.as_bytes()), Inbound::Ignored), "{text}");
        }
        assert!(matches!(read(br#"{"type":"ACK","mid":9}"#), Inbound::Ack(Ack { mid: 9, token: None })));
    }

    #[test]
    fn answers_shrink_to_fit_or_are_not_sent() {
        let error = |reason: &str| Reply::Error { rq: Some(1), code: Code::BadRequest, reason: reason.to_owned() };
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
            state: Phase::Searching,
            price: None,
            reason: None,
            ends_in_ms: Some(1),
        };
        let deals = Reply::Deals { rq: 1, deals: (0..100).map(deal).collect(), more: false };
        let bytes = deals.clone().fit(1000).unwrap();
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        assert!(bytes.len() <= 1000 && bytes.len() > 900 && value["more"] == true && value["deals"][0]["rq"] == 0);
        assert!(deals.fit(10).is_none());
    }

    #[test]
    fn nothing_secret_shows() {
        let line = r#"{"type":"INFORM_RES","rq":1,"name":"a","token":"t0ken","cc_number":"4111111111111111","cc_exp":"12/30","address":"Elm St"}"#;
        let shown = format!("{:?}", read_settlement(line, Side::Buyer).unwrap());
        assert!(!shown.contains("411111111111") && !shown.contains("t0ken") && !shown.contains("Elm"), "{shown}");
        let wrong = line.replace("4111111111111111", "41111111-x");
        let error = read_settlement(&wrong, Side::Buyer).unwrap_err();
        assert!(error.starts_with("cc_number: ") && !error.contains("4111"), "{error}");
    }

    #[test]
    fn an_items_name_may_hold_what_json_allows() {
        let text = r#"{"type":"CANCEL","rq":7,"name":"al","item_name":"a\tb\u001b[2J\u0000"}"#;
        let Inbound::Request(request) = read(text.as_bytes()) else { panic!() };
        assert!(matches!(request.ask, Ask::Cancel { item_name } if &*item_name == "a\tb\u{1b}[2J\0"));
    }

    #[test]
    fn of_a_seller_only_name_token_and_number_are_read() {
        let whole = serde_json::json!({"type": "INFORM_RES", "rq": 1, "name": "a", "token": "t0ken",
            "cc_number": "4111111111111111", "cc_exp": "12/30", "address": "Elm St"});
        for field in ["cc_number", "cc_exp", "address"] {
            for value in [Value::Null, "".into(), "1234".into(), 5.into(), "x".repeat(2000).into()] {
                let mut line = whole.clone();
                line[field] = value.clone();
                let read = |side| read_settlement(&line.to_string(), side);
                assert!(matches!(read(Side::Seller), Ok(SettlementAnswer::InformRes(1, _))), "{field} {value}");
                if field != "address" || value != "1234" {
                    assert!(read(Side::Buyer).unwrap_err().starts_with(field), "{field} {value}");
                }
            }
        }
        for field in ["rq", "name", "token"] {
            let mut line = whole.clone();
            line[field] = Value::Null;
            assert!(read_settlement(&line.to_string(), Side::Seller).unwrap_err().starts_with(field), "{field}");
        }
        let array = r#"["INFORM_RES",1,"a","t0ken","4111111111111111","12/30","Elm St"]"#;
        assert_eq!(read_settlement(array, Side::Buyer).unwrap_err(), "expected one JSON object");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
            let _ = read_settlement(&String::from_utf8_lossy(&bytes), Side::Buyer);
        }

        #[test]
        fn shuffled_fields_never_panic(kind in "[A-Z_-]{2,12}", rq in any::<f64>(), name in ".{0,70}", price in any::<i64>()) {
            for kind in [kind.as_str(), "OFFER", "LOOKING_FOR", "ACK", "REGISTER"] {
                let value = serde_json::json!({"type": kind, "rq": rq, "name": name, "price": price, "mid": rq, "item_name": name, "max_price": price, "description": name, "ip": name, "udp_port": price, "tcp_port": rq});
                let _ = read(value.to_string().as_bytes());
                let _ = read_settlement(&value.to_string(), Side::Buyer);
            }
        }
    }
}
