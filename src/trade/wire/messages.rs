//! Every message of trade in datagrams: its name, its fields, and the responses to it. The forms of the tables are in
//! `tables.rs`.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::field::{required, required_price, required_string, whole_number};
use super::parts::{DealStatus, Goods, PeerEndpoint, Side};
use super::{ErrorCode, RequestError, encode};
use crate::model::text::{DESCRIPTION_MAX, ITEM_NAME_MAX};
use crate::model::{Cents, Name, Token, money};

requests! {
    /// Register under a name.
    "REGISTER" Register { #[serde(flatten)] endpoint: PeerEndpoint } => Registered | RegisterDenied;
    /// Log in again, possibly from another address.
    "LOGIN" Login { #[serde(flatten)] endpoint: PeerEndpoint } => LoggedIn | LoginDenied;
    /// End the registration.
    "DE-REGISTER" DeRegister => DeRegistered;
    /// Search for an item as a buyer.
    "LOOKING_FOR" LookingFor { item_name: Arc<str>, description: Arc<str>, max_price: Cents } => Searching;
    /// Ask for the state of one deal or of all.
    "STATUS" Status { #[serde(skip_serializing_if = "Option::is_none")] rq_deal: Option<u64> } => Deals;

    about a deal:

    /// Offer an item for this price.
    "OFFER" Offer { price: Cents, #[serde(flatten, serialize_with = "Goods::write")] goods: Goods }
        from Seller => Offered;
    /// Decline a search: the item is not available.
    "NOT_AVAILABLE" NotAvailable from Seller => Noted;
    /// Agree to sell for the maximum price named in NEGOTIATE.
    "ACCEPT" Accept { max_price: Cents } from Seller => Noted;
    /// Decline to sell for that price.
    "REFUSE" Refuse { max_price: Cents } from Seller => Noted;
    /// Buy the item that was found.
    "BUY" Buy { price: Cents } from Buyer => Buying;
    /// Withdraw from a deal, on either side.
    "CANCEL" Cancel from Buyer | Seller => Cancelled;
}

impl DealRequest {
    /// Repeats are told apart by it, so it is kept in the deal's rows.
    pub fn amount(&self) -> Option<Cents> {
        match self {
            DealRequest::Offer { price, .. } | DealRequest::Buy { price } => Some(*price),
            DealRequest::Accept { max_price } | DealRequest::Refuse { max_price } => Some(*max_price),
            DealRequest::NotAvailable | DealRequest::Cancel => None,
        }
    }

    /// The body of a request about this item.
    pub fn about(self, item_name: Arc<str>) -> RequestBody {
        RequestBody::Deal { item_name, request: self }
    }
}

server_messages! {
    /// A response goes to the source address of its request, whose `rq` it carries.
    #[derive(Debug, Clone)]
    pub enum Response by rq: Option<u64> {
        /// The peer is registered; the token proves its identity from now on.
        "REGISTERED" Registered { rq: u64, token: Token, cert_sha256: Option<Arc<str>> },
        /// The registration is denied.
        "REGISTER-DENIED" RegisterDenied { rq: u64, reason: String },
        /// The peer is logged in again.
        "LOGGED-IN" LoggedIn { rq: u64, cert_sha256: Option<Arc<str>> },
        /// The login is denied.
        "LOGIN-DENIED" LoginDenied { rq: u64, reason: String },
        /// The peer is no longer registered and its name is free.
        "DE-REGISTERED" DeRegistered { rq: u64 },
        /// The search has begun; `peers` is the number of peers that were asked.
        "SEARCHING" Searching { rq: u64, peers: u64 },
        /// The offer is accepted for consideration.
        "OFFERED" Offered { rq: u64 },
        /// NOT_AVAILABLE, ACCEPT or REFUSE has been recorded.
        "NOTED" Noted { rq: u64 },
        /// The BUY is accepted and settlement begins.
        "BUYING" Buying { rq: u64 },
        /// The deal, or the seller's offer, is cancelled.
        "CANCELLED" Cancelled { rq: u64 },
        /// The deals of the requesting peer, newest first; `more` if not all of them fit.
        "DEALS" Deals { rq: u64, deals: Vec<DealStatus>, #[serde(default)] more: bool },
        /// The request is refused. `rq` is missing if it could not be read.
        "ERROR" Error { #[serde(default)] rq: Option<u64>, code: ErrorCode, reason: String },
    }
}

impl Response {
    /// A refusal; see [`Response::Error`].
    pub fn error(rq: Option<u64>, RequestError { code, reason }: RequestError) -> Response {
        Response::Error { rq, code, reason }
    }

    /// Encodes in at most `max` bytes: a list of deals drops its oldest entries and a reason is truncated. `None` if
    /// that is not enough.
    pub fn fit(&mut self, max: usize) -> Option<Vec<u8>> {
        let bytes = encode(self);
        if bytes.len() <= max {
            return Some(bytes);
        }
        let excess = bytes.len() - max;
        match self {
            Response::Deals { deals, more, .. } => {
                *more = true;
                let mut length = bytes.len();
                while length > max {
                    // Each entry costs its own length and a comma.
                    length -= encode(&deals.pop()?).len() + usize::from(!deals.is_empty());
                }
            }
            Response::Error { reason, .. }
            | Response::RegisterDenied { reason, .. }
            | Response::LoginDenied { reason, .. } => shorten(reason, excess)?,
            Response::Registered { .. }
            | Response::LoggedIn { .. }
            | Response::DeRegistered { .. }
            | Response::Searching { .. }
            | Response::Offered { .. }
            | Response::Noted { .. }
            | Response::Buying { .. }
            | Response::Cancelled { .. } => return None,
        }
        let bytes = encode(self);
        (bytes.len() <= max).then_some(bytes)
    }
}

/// Removes characters until the text's JSON is at least `excess` bytes shorter; `None` if it is too short for that.
fn shorten(text: &mut String, excess: usize) -> Option<()> {
    let mut freed = 0;
    while freed < excess {
        let last = text.pop()?;
        freed += encode(&last.to_string()).len() - 2;
    }
    Some(())
}

server_messages! {
    /// A message that the server sends unprompted, repeated until it is acknowledged by its `mid`.
    #[derive(Debug, Clone, PartialEq)]
    pub enum Notification by mid: u64 {
        /// A buyer searches for an item.
        "SEARCH" Search { rq: u64, mid: u64, item_name: Arc<str>, description: Arc<str> },
        /// The seller is asked whether it would sell for the buyer's maximum price.
        "NEGOTIATE" Negotiate { rq: u64, mid: u64, item_name: Arc<str>, max_price: Cents },
        /// The seller's offer was chosen and one unit is reserved.
        "RESERVE" Reserve { rq: u64, mid: u64, item_name: Arc<str>, price: Cents },
        /// The seller's offer was not chosen.
        "RELEASED" Released { rq: u64, mid: u64, item_name: Arc<str> },
        /// The buyer's search succeeded: an item is reserved.
        "FOUND" Found {
            rq: u64,
            mid: u64,
            item_name: Arc<str>,
            price: Cents,
            seller: Name,
            #[serde(skip_serializing_if = "Option::is_none", default)]
            offer_item: Option<Arc<str>>,
            #[serde(skip_serializing_if = "Option::is_none", default)]
            offer_description: Option<Arc<str>>,
        },
        /// All offers were above the buyer's maximum price.
        "NOT_FOUND" NotFound { rq: u64, mid: u64, item_name: Arc<str>, max_price: Cents },
        /// No seller made an offer.
        "NOT_AVAILABLE" NotAvailable { rq: u64, mid: u64, item_name: Arc<str> },
        /// The deal is cancelled.
        "CANCEL" Cancel { rq: u64, mid: u64, item_name: Arc<str>, reason: Arc<str> },
    }
}

raw_message! {
    rq,
    mid,
    name,
    token,
    ip,
    udp_port,
    tcp_port,
    item_name,
    description,
    #[serde(default, deserialize_with = "money::deserialize_verbatim")]
    price,
    #[serde(default, deserialize_with = "money::deserialize_verbatim")]
    max_price,
    offer_item,
    offer_description,
    rq_deal;
    elsewhere: "cc_number", "cc_exp", "address"
}

impl RawMessage {
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

    fn description(&self) -> Result<Arc<str>, String> {
        required_string(&self.description, "description", 0, DESCRIPTION_MAX).map(Arc::from)
    }

    fn price(&self) -> Result<Cents, String> {
        required_price(&self.price, "price")
    }

    fn max_price(&self) -> Result<Cents, String> {
        required_price(&self.max_price, "max_price")
    }

    fn goods(&self) -> Result<Goods, String> {
        Ok(Goods {
            item: optional_string(&self.offer_item, "offer_item", 1, ITEM_NAME_MAX)?,
            description: optional_string(&self.offer_description, "offer_description", 0, DESCRIPTION_MAX)?,
        })
    }

    fn rq_deal(&self) -> Result<Option<u64>, String> {
        let rq = self.rq_deal.as_ref().filter(|value| !value.is_null()).map(whole_number);
        let wrong = || "rq_deal: expected a whole number from 0 to 2^53 - 1".to_owned();
        rq.map(|rq| rq.ok_or_else(wrong)).transpose()
    }
}

fn optional_string(value: &Option<Value>, field: &str, min: usize, max: usize) -> Result<Option<Arc<str>>, String> {
    match value {
        None | Some(Value::Null) => Ok(None),
        value => required_string(value, field, min, max).map(|text| Some(Arc::from(text))),
    }
}
