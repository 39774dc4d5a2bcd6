//! The inputs and outputs of a deal's transitions.

use std::time::Duration;

use super::Party;
use crate::model::{Cents, FeeRate, Millis, Name};
use crate::trade::wire::{Amount, DealRequest, Notification, Side};

/// How long each window stays open.
#[derive(Debug, Clone)]
pub struct Windows {
    /// The time to offer after a search.
    pub offer: Duration,
    /// The time that each seller has to answer a negotiation.
    pub negotiate: Duration,
    /// The time that the buyer has to buy what was reserved.
    pub reserve: Duration,
}

/// An input to a deal.
#[derive(Debug, Clone)]
pub enum DealInput<'a> {
    Request {
        party: Party,
        item_name: &'a str,
        request: &'a DealRequest,
    },
    Tick,
    /// The side's registration has ended.
    Departed(Party),
    Authorised,
    Shipped,
    /// The bank has charged the card.
    Captured,
    /// The settlement failed for this reason; nothing is or will be charged.
    SettlementFailed(&'a str),
    /// The settlement failed because `side` could not be reached. Only that side is told the `detail`, which names
    /// its address.
    Unreachable {
        side: Side,
        reason: &'a str,
        detail: &'a str,
    },
}

/// What a transition needs from outside the deal.
pub struct DealContext<'a> {
    pub now: Millis,
    pub windows: &'a Windows,
    /// The fee rate for purchases made now.
    pub fee: FeeRate,
    /// Returns the number of a new notification, never used before.
    pub next_mid: &'a mut dyn FnMut() -> u64,
}

/// One transition in progress: what it needs, and its effects so far.
pub(super) struct DealStep<'a, 'c> {
    pub(super) context: &'a mut DealContext<'c>,
    pub(super) effects: DealEffects,
}

/// A movement of money that accompanies a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LedgerOperation {
    /// From the card to escrow.
    Authorise,
    /// From escrow to the seller's payout and the fee.
    Capture,
    /// From escrow back to the card.
    Void,
}

/// A posting to the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DealPosting {
    pub operation: LedgerOperation,
    /// The index of the seller that is paid.
    pub seller: usize,
    pub price: Cents,
    /// The operator's share of it: see [`DealState::Settling`](super::DealState::Settling).
    pub fee: Option<Amount>,
}

/// A line for trade's log.
#[derive(Debug, Clone, PartialEq)]
pub struct DealLogEntry {
    /// The kind of event: `search`, `offer`, `refuse`, …
    pub kind: &'static str,
    /// The peer that acted or was affected.
    pub peer: Name,
    pub price: Option<Cents>,
    pub detail: String,
}

/// The effects of a transition, to be applied by the caller. None has been applied yet.
#[derive(Debug, Default)]
pub struct DealEffects {
    /// Whether the deal's own row must be stored.
    pub deal_changed: bool,
    /// The indices of the sellers whose rows must be stored.
    pub sellers_changed: Vec<usize>,
    /// Sides with a new notification (see [`Deal::outstanding_notification`](super::Deal::outstanding_notification)).
    pub notified: Vec<Party>,
    /// Notifications that are sent once and not repeated.
    pub notify_once: Vec<(Party, Notification)>,
    pub log: Vec<DealLogEntry>,
    /// To be posted in the same transaction.
    pub posting: Option<DealPosting>,
    /// The indices of sellers that let the offer window pass without an answer.
    pub unresponsive: Vec<usize>,
    pub ended: bool,
}
