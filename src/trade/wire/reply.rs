//! What the server says: answers, and pushes of its own accord.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Code, encode};
use crate::model::{Cents, Name, Token};

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

/// What a seller really offers, in its own words; nothing where it says only what was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goods {
    /// `offer_item`
    pub item: Option<Arc<str>>,
    /// `offer_description`
    pub description: Option<Arc<str>>,
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
    /// What the seller really offers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub offer_item: Option<Arc<str>>,
    /// And what else it says of it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub offer_description: Option<Arc<str>>,
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
    pub fn fit(&mut self, max: usize) -> Option<Vec<u8>> {
        let bytes = encode(self);
        if bytes.len() <= max {
            return Some(bytes);
        }
        let excess = bytes.len() - max;
        match self {
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
        let bytes = encode(self);
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
    Found {
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
    /// There were offers, all above your maximum.
    NotFound { rq: u64, mid: u64, item_name: Arc<str>, max_price: Cents },
    /// There was no offer.
    NotAvailable { rq: u64, mid: u64, item_name: Arc<str> },
    /// The deal is off.
    Cancel { rq: u64, mid: u64, item_name: Arc<str>, reason: Arc<str> },
}

impl Push {
    /// The number by which it is acknowledged.
    pub fn mid(&self) -> u64 {
        let (Push::Search { mid, .. }
        | Push::Negotiate { mid, .. }
        | Push::Reserve { mid, .. }
        | Push::Released { mid, .. }
        | Push::Found { mid, .. }
        | Push::NotFound { mid, .. }
        | Push::NotAvailable { mid, .. }
        | Push::Cancel { mid, .. }) = self;
        *mid
    }
}
