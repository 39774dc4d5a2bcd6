//! The parts of a deal's state: its sides, offers, answered requests and outstanding notifications.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::messaging::OutstandingNotification;
use crate::model::{Cents, Millis, Name};
use crate::trade::wire::{Amount, Goods, RequestKind};

/// A side of a deal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Party {
    Buyer,
    /// One of the sellers that were asked, by its index in the deal.
    Seller(usize),
}

/// A peer that a search is sent to.
#[derive(Debug, Clone)]
pub struct SearchRecipient {
    pub name: Name,
    /// Whether the offer window stays open for this peer.
    pub waited_for: bool,
    /// Whether the peer has acknowledged a notification before.
    pub acknowledges: bool,
}

/// The progress of a payment. Each step is on disk before the next one begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PaymentProgress {
    /// BUY was accepted; the bank may already have been asked.
    Asked,
    Authorised,
    /// The seller has shipped. From here on only a definite refusal by the bank cancels the deal.
    Shipped,
}

/// The state of a deal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum DealState {
    /// Offers are being collected.
    Searching { until: Millis },
    /// The seller has been asked whether it would sell for the buyer's maximum.
    Negotiating { seller: usize, until: Millis, round: u32 },
    /// The seller holds one unit for the buyer.
    Reserved { seller: usize, price: Cents, until: Millis },
    /// The payment is in progress. `fee` is fixed at the time of BUY, whatever the rate is later; rows of older
    /// versions have none.
    Settling { seller: usize, price: Cents, fee: Option<Amount>, payment: PaymentProgress },
    /// The item was paid for and shipped.
    Completed { seller: usize, price: Cents, at: Millis },
    /// The deal ended without a sale.
    Cancelled { reason: Arc<str>, at: Millis },
}

/// A request that was answered. A repeat with the same content gets the same response.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct AnsweredRequest {
    pub(super) kind: RequestKind,
    pub(super) amount: Option<Cents>,
}

/// The status of a seller's offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum OfferStatus {
    /// The offer binds a unit.
    Bound,
    /// The seller was told RELEASED, but the offer may still be chosen.
    Released,
    /// The seller has cancelled its offer or left.
    Withdrawn,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Offer {
    pub(super) price: Cents,
    /// The order in which offers were made; among equal prices the earlier offer wins.
    pub(super) place: u32,
    #[serde(rename = "standing")]
    pub(super) status: OfferStatus,
    /// The seller was asked for a better price and has not agreed.
    pub(super) negotiated: bool,
    #[serde(default)]
    pub(super) goods: Goods,
}

/// A seller's side of a deal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SellerSide {
    pub name: Name,
    /// Whether the offer window stays open for this seller.
    pub(super) waited_for: bool,
    /// The seller usually acknowledges notifications, so a missing acknowledgement means that it is absent.
    #[serde(default)]
    pub(super) acknowledges: bool,
    /// The seller has sent OFFER or NOT_AVAILABLE, or has left.
    pub(super) replied: bool,
    pub(super) gone: bool,
    pub(super) offer: Option<Offer>,
    pub(super) answered: Vec<AnsweredRequest>,
    pub(super) outstanding: Option<OutstandingNotification>,
}
