//! The parts of a deal's state: its sides, offers, answered requests and outstanding notifications.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::messaging::{NotificationBody, OutstandingNotification};
use crate::model::{Cents, Millis, Name};
use crate::trade::wire::{Amount, Goods, RequestKind};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Party {
    Buyer,
    /// The seller's index in the deal.
    Seller(usize),
}

#[derive(Debug, Clone)]
pub struct SearchRecipient {
    pub name: Name,
    /// Whether the offer window stays open for this peer.
    pub waited_for: bool,
    pub acknowledges: bool,
}

/// Each step is on disk before the next one begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PaymentProgress {
    /// BUY was accepted; the bank may already have been asked.
    Asked,
    Authorised,
    /// The seller has shipped. From here on only a definite refusal by the bank cancels the deal.
    Shipped,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum DealState {
    Searching {
        until: Millis,
    },
    /// The seller was asked whether it would sell for the buyer's maximum.
    Negotiating {
        seller: usize,
        until: Millis,
        round: u32,
    },
    Reserved {
        seller: usize,
        price: Cents,
        until: Millis,
    },
    /// `fee` is fixed at the time of BUY, whatever the rate is later; rows of older versions have none.
    Settling {
        seller: usize,
        price: Cents,
        fee: Option<Amount>,
        payment: PaymentProgress,
    },
    Completed {
        seller: usize,
        price: Cents,
        at: Millis,
    },
    Cancelled {
        reason: Arc<str>,
        at: Millis,
    },
}

/// A repeat with the same content gets the same response.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct AnsweredRequest {
    pub(super) kind: RequestKind,
    pub(super) amount: Option<Cents>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum OfferStatus {
    Bound,
    /// The seller was told RELEASED, but the offer may still be chosen.
    Released,
    /// The seller has cancelled its offer or left.
    Withdrawn,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Offer {
    pub(super) price: Cents,
    /// The order in which offers were made: among equal prices the earlier wins.
    pub(super) place: u32,
    #[serde(rename = "standing")]
    pub(super) status: OfferStatus,
    /// The seller was asked for a better price and has not agreed.
    pub(super) negotiated: bool,
    #[serde(default)]
    pub(super) goods: Goods,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SellerSide {
    pub name: Name,
    pub(super) waited_for: bool,
    /// It usually acknowledges, so a missing acknowledgement means that it is absent.
    #[serde(default)]
    pub(super) acknowledges: bool,
    /// It has sent OFFER or NOT_AVAILABLE, or has left.
    pub(super) replied: bool,
    pub(super) gone: bool,
    pub(super) offer: Option<Offer>,
    pub(super) answered: Vec<AnsweredRequest>,
    pub(super) outstanding: Option<OutstandingNotification>,
}

impl SellerSide {
    pub(super) fn is_search_outstanding(&self) -> bool {
        matches!(self.outstanding, Some(OutstandingNotification { body: NotificationBody::Search, .. }))
    }
}
