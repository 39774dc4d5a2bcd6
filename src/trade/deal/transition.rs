//! The inputs and outputs of a deal's transitions.

use std::time::Duration;

use super::Party;
use crate::model::{Cents, FeeRate, Millis, Name};
use crate::trade::wire::{Amount, DealRequest, Notification, Side};

/// How long each window stays open: to offer, for each seller to answer a negotiation, to buy what was reserved.
#[derive(Debug, Clone)]
pub struct Windows {
    pub offer: Duration,
    pub negotiate: Duration,
    pub reserve: Duration,
}

/// An input to a deal. `Departed`: the side's registration has ended. `Captured`: the bank has charged the card. After
/// the last two nothing is or will be charged; only the `side` that could not be reached is told the `detail`, which
/// names its address.
#[derive(Debug, Clone)]
pub enum DealInput<'a> {
    Request { party: Party, item_name: &'a str, request: &'a DealRequest },
    Tick,
    Departed(Party),
    Authorised,
    Shipped,
    Captured,
    SettlementFailed(&'a str),
    Unreachable { side: Side, reason: &'a str, detail: &'a str },
}

pub struct DealContext<'a> {
    pub now: Millis,
    pub windows: &'a Windows,
    /// The rate for purchases made now.
    pub fee: FeeRate,
    /// A new notification's number, never used before.
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DealPosting {
    pub operation: LedgerOperation,
    pub seller: usize,
    pub price: Cents,
    /// The operator's share of it: see [`DealState::Settling`](super::DealState::Settling).
    pub fee: Option<Amount>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct DealLogEntry {
    /// The kind of event: `search`, `offer`, `refuse`, …
    pub kind: &'static str,
    pub peer: Name,
    pub price: Option<Cents>,
    pub detail: String,
}

/// None has been applied yet.
#[derive(Debug, Default)]
pub struct DealEffects {
    pub deal_changed: bool,
    /// They are named by index, like the `unresponsive` ones.
    pub sellers_changed: Vec<usize>,
    /// Sides with a new notification (see [`Deal::outstanding_notification`](super::Deal::outstanding_notification)).
    pub notified: Vec<Party>,
    pub notify_once: Vec<(Party, Notification)>,
    pub log: Vec<DealLogEntry>,
    /// To be posted in the same transaction.
    pub posting: Option<DealPosting>,
    /// They let the offer window pass without an answer.
    pub unresponsive: Vec<usize>,
    pub ended: bool,
}
