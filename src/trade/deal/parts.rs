//! What a deal consists of: its sides, their offers, what they asked and what they were told.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::{Cents, Millis, Name};
use crate::trade::wire::{Amount, Goods};

/// A side of this deal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Party {
    /// The one who searches.
    Buyer,
    /// One who was asked: its place among them.
    Seller(usize),
}

/// Someone who is to be asked.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Who.
    pub name: Name,
    /// Whether the window stays open for it.
    pub waited_for: bool,
    /// Whether it has acknowledged pushes before.
    pub acknowledges: bool,
}

/// How far the payment is. Each step is on disk before the next begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Payment {
    /// BUY was accepted; the bank may have been asked.
    Asked,
    /// The buyer's card is authorised.
    Authorised,
    /// The seller has shipped: from here on there is no way back but the bank's definite refusal.
    Shipped,
}

/// Where a deal stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum State {
    /// Offers are awaited.
    Searching { until: Millis },
    /// That seller is asked whether it would sell for the maximum.
    Negotiating { seller: usize, until: Millis, round: u32 },
    /// That seller's unit is held for the buyer.
    Reserved { seller: usize, price: Cents, until: Millis },
    /// It is being paid. The fee is that of the moment of BUY, whatever the rate is later; rows from before
    /// it was kept have none.
    Settling { seller: usize, price: Cents, fee: Option<Amount>, payment: Payment },
    /// Charged, shipped, over.
    Completed { seller: usize, price: Cents, at: Millis },
    /// Over without a sale.
    Cancelled { reason: Arc<str>, at: Millis },
}

/// What a side was told last and has not acknowledged. What is told later replaces it: a peer acts on
/// the newest word, and an old RESERVE that arrives after its CANCEL would bind a unit for nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Outstanding {
    pub(super) mid: u64,
    pub(super) note: Note,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Note {
    Search,
    Negotiate,
    Reserve(Cents),
    Released,
    Found(Cents, usize),
    NotFound,
    NotAvailable,
    Cancel(Arc<str>),
}

/// A request that was answered: with the same content it gets the same answer again.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Answered {
    pub(super) kind: Kind,
    pub(super) amount: Option<Cents>,
}

/// The kinds of request that a deal answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// OFFER
    Offer,
    /// NOT_AVAILABLE
    NotAvailable,
    /// ACCEPT
    Accept,
    /// REFUSE
    Refuse,
    /// BUY
    Buy,
    /// CANCEL
    Cancel,
}

/// What a seller's offer is worth now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Standing {
    /// It binds a unit.
    Bound,
    /// The seller was told RELEASED; it may still be asked.
    Released,
    /// The seller took it back, or left.
    Withdrawn,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Offer {
    pub(super) price: Cents,
    /// Earlier offers win among equals.
    pub(super) place: u32,
    pub(super) standing: Standing,
    /// It was asked for a better price (and has not agreed).
    pub(super) negotiated: bool,
    /// What it really offers.
    #[serde(default)]
    pub(super) goods: Goods,
}

/// The seller's side of a deal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SellerSide {
    /// Who was asked.
    pub name: Name,
    /// Whether the window stays open for it.
    pub(super) waited_for: bool,
    /// It acknowledges what it gets: where it does not, it is not there.
    #[serde(default)]
    pub(super) acknowledges: bool,
    /// It said OFFER or NOT_AVAILABLE (or left).
    pub(super) replied: bool,
    pub(super) gone: bool,
    pub(super) offer: Option<Offer>,
    pub(super) answered: Vec<Answered>,
    pub(super) outstanding: Option<Outstanding>,
}
