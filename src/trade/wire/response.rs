//! Messages of the server: responses to requests, and notifications.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{ErrorCode, encode};
use crate::model::{Cents, Name, Token};

/// A response to a request. It carries the request's `rq` and goes to the source address of the request.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type")]
pub enum Response {
    /// The peer is registered; the token proves its identity from now on.
    #[serde(rename = "REGISTERED")]
    Registered { rq: u64, token: RevealedToken, cert_sha256: Option<Arc<str>> },
    /// The registration is denied.
    #[serde(rename = "REGISTER-DENIED")]
    RegisterDenied { rq: u64, reason: String },
    /// The peer is logged in again.
    #[serde(rename = "LOGGED-IN")]
    LoggedIn { rq: u64, cert_sha256: Option<Arc<str>> },
    /// The login is denied.
    #[serde(rename = "LOGIN-DENIED")]
    LoginDenied { rq: u64, reason: String },
    /// The peer is no longer registered and its name is free.
    #[serde(rename = "DE-REGISTERED")]
    DeRegistered { rq: u64 },
    /// The search has begun; `peers` is the number of peers that were asked.
    #[serde(rename = "SEARCHING")]
    Searching { rq: u64, peers: usize },
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
    /// The deals of the requesting peer, newest first; `more` if not all of them fit.
    #[serde(rename = "DEALS")]
    Deals { rq: u64, deals: Vec<DealStatus>, more: bool },
    /// The request is refused. `rq` is missing if it could not be read.
    #[serde(rename = "ERROR")]
    Error { rq: Option<u64>, code: ErrorCode, reason: String },
}

/// A token that serialises to its plain text; its `Debug` output stays hidden.
#[derive(Debug, Clone)]
pub struct RevealedToken(pub Token);

impl Serialize for RevealedToken {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.reveal())
    }
}

/// What a seller actually offers, in its own words. Both fields are empty if it offers exactly what was searched for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goods {
    /// The wire field `offer_item`.
    pub item: Option<Arc<str>>,
    /// The wire field `offer_description`.
    pub description: Option<Arc<str>>,
}

/// One deal in a `DEALS` response, as seen by the requesting peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DealStatus {
    /// The number by which the requesting peer knows the deal.
    pub rq: u64,
    /// The requesting peer's side of the deal.
    pub side: Side,
    /// The item as the buyer named it.
    pub item_name: Arc<str>,
    /// How far the deal has progressed.
    pub state: DealPhase,
    /// The price that is offered, reserved or was paid.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub price: Option<Cents>,
    /// Why the deal was cancelled.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<Arc<str>>,
    /// The item that the seller actually offers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub offer_item: Option<Arc<str>>,
    /// The seller's description of the item it offers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub offer_description: Option<Arc<str>>,
    /// The time until the current window closes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ends_in_ms: Option<u64>,
}

/// A side of a deal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The side that searches and pays.
    Buyer,
    /// The side that offers and ships.
    Seller,
}

/// The progress of a deal as reported by STATUS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DealPhase {
    /// Offers are being collected.
    Searching,
    /// A seller has been asked for a better price.
    Negotiating,
    /// An offer is reserved; the buyer may buy.
    Reserved,
    /// The payment is in progress.
    Settling,
    /// The item was paid for and shipped.
    Completed,
    /// The deal ended without a sale.
    Cancelled,
}

impl Response {
    /// Encodes the response in at most `max` bytes. A list of deals drops its oldest entries and a reason is
    /// truncated; `None` if the response cannot be shortened enough.
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
            _ => return None,
        }
        let bytes = encode(self);
        (bytes.len() <= max).then_some(bytes)
    }
}

/// Removes characters from the end of `text` until its JSON is at least `excess` bytes shorter; `None` if the text is
/// too short for that.
fn shorten(text: &mut String, excess: usize) -> Option<()> {
    let mut freed = 0;
    while freed < excess {
        let last = text.pop()?;
        freed += encode(&last.to_string()).len() - 2;
    }
    Some(())
}

/// A message that the server sends unprompted, repeated until it is acknowledged by its `mid`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Notification {
    /// A buyer searches for an item.
    Search { rq: u64, mid: u64, item_name: Arc<str>, description: Arc<str> },
    /// The seller is asked whether it would sell for the buyer's maximum price.
    Negotiate { rq: u64, mid: u64, item_name: Arc<str>, max_price: Cents },
    /// The seller's offer was chosen and one unit is reserved.
    Reserve { rq: u64, mid: u64, item_name: Arc<str>, price: Cents },
    /// The seller's offer was not chosen.
    Released { rq: u64, mid: u64, item_name: Arc<str> },
    /// The buyer's search succeeded: an item is reserved.
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
    /// All offers were above the buyer's maximum price.
    NotFound { rq: u64, mid: u64, item_name: Arc<str>, max_price: Cents },
    /// No seller made an offer.
    NotAvailable { rq: u64, mid: u64, item_name: Arc<str> },
    /// The deal is cancelled.
    Cancel { rq: u64, mid: u64, item_name: Arc<str>, reason: Arc<str> },
}

impl Notification {
    /// The number by which this notification is acknowledged.
    pub fn mid(&self) -> u64 {
        let (Notification::Search { mid, .. }
        | Notification::Negotiate { mid, .. }
        | Notification::Reserve { mid, .. }
        | Notification::Released { mid, .. }
        | Notification::Found { mid, .. }
        | Notification::NotFound { mid, .. }
        | Notification::NotAvailable { mid, .. }
        | Notification::Cancel { mid, .. }) = self;
        *mid
    }
}
