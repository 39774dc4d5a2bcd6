//! What goes into a step of a deal and what comes out of it.

use std::time::Duration;

use super::{Kind, Party};
use crate::model::{Cents, FeeRate, Millis, Name};
use crate::trade::wire::{Amount, Goods, Push, Side};

/// How long each window is open.
#[derive(Debug, Clone)]
pub struct Windows {
    /// For offers after a search.
    pub offer: Duration,
    /// For each seller asked for a better price.
    pub negotiate: Duration,
    /// For the buyer to buy what was found.
    pub reserve: Duration,
}

/// What happens to a deal.
#[derive(Debug, Clone)]
pub enum Event<'a> {
    /// A side asks for something; the item's name and, where the kind has one, the amount it named. With an
    /// offer, what is really offered.
    Ask { party: Party, kind: Kind, item_name: &'a str, amount: Option<Cents>, goods: Option<&'a Goods> },
    /// Time has passed.
    Tick,
    /// A side has left for good.
    Gone(Party),
    /// The buyer's card is authorised.
    Authorised,
    /// The seller has shipped.
    Shipped,
    /// The charge is captured.
    Captured,
    /// The settlement failed; nothing is or will be charged.
    SettlementFailed(&'a str),
    /// It failed because a side could not be reached: that one alone is told where it was not.
    Unreached { side: Side, reason: &'a str, detail: &'a str },
}

/// What a step is given from outside: the time, the windows, the fee's rate, fresh numbers for pushes.
pub struct Step<'a> {
    /// The time.
    pub now: Millis,
    /// How long windows are.
    pub windows: &'a Windows,
    /// What the house takes of what is bought now.
    pub fee: FeeRate,
    /// A number that was never used before.
    pub next_mid: &'a mut dyn FnMut() -> u64,
}

/// What money does, beside the deal's own change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Money {
    /// Card to escrow.
    Authorise,
    /// Escrow to payout and fee.
    Capture,
    /// Escrow back to the card.
    Void,
}

/// Money that moves with a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Booking {
    /// Which way.
    pub money: Money,
    /// Who is paid: its place among the sellers.
    pub seller: usize,
    /// What the buyer pays.
    pub price: Cents,
    /// What the house keeps of it: see [`State::Settling`](super::State::Settling).
    pub fee: Option<Amount>,
}

/// A line for the log of trade.
#[derive(Debug, Clone, PartialEq)]
pub struct LogLine {
    /// What happened: `search`, `offer`, `refuse`, …
    pub kind: &'static str,
    /// Who did it, or to whom it happened.
    pub peer: Name,
    /// The price in question.
    pub price: Option<Cents>,
    /// What a person may want to know besides.
    pub detail: String,
}

/// What a step changed and wants done. Nothing of it has happened yet.
#[derive(Debug, Default)]
pub struct Effects {
    /// The deal's own row changed.
    pub deal_changed: bool,
    /// These sellers' rows changed.
    pub sellers_changed: Vec<usize>,
    /// These have something new to be told (see [`Deal::push`](super::Deal::push)).
    pub told: Vec<Party>,
    /// Pushes that go out once and are not repeated.
    pub told_once: Vec<(Party, Push)>,
    /// To be written in the log.
    pub log: Vec<LogLine>,
    /// To be booked with the change.
    pub money: Option<Booking>,
    /// Sellers that let the window pass without a word.
    pub silent: Vec<usize>,
    /// The deal ended in this step.
    pub ended: bool,
}
