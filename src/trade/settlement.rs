//! A settlement: who must say what, when money moves, and what happens when someone does not. No I/O.
//!
//! ```text
//! Informing ─► Authorising ─► Shipping ─► Capturing ─► Over (paid)
//!     └─────────────┴────────────┴──── anything wrong ───► Undoing ─► Over (cancelled)
//! ```
//!
//! The driver does the [`Action`]s in their order and reports each [`Input`]. An action that asks the
//! bank or the disk is the last of its batch: nothing goes on before its answer is in. What a side does
//! meanwhile may be reported at once; it counts when that answer is in.

use super::deal::Payment;
use super::exchange::{Settling, SettlingPeer};
use super::wire::{Amount, Goods, Inform, Purse, SettlementAnswer, SettlementLine, Side, read_settlement};
use crate::model::{Card, Cents};

#[cfg(test)]
mod tests;

/// What happened.
#[derive(Debug)]
pub enum Input<'a> {
    /// A side has sent a line.
    Line(Side, &'a str),
    /// A side's connection could not be made, or is gone, or is unusable.
    Lost(Side, &'a str),
    /// A side could not be connected to; where that was, and why, is told to that side alone.
    Unreached(Side, &'a str),
    /// The present step has taken too long.
    TimedOut,
    /// The bank holds the amount for us.
    Authorised,
    /// The bank does not.
    Declined(&'a str),
    /// The bank has charged.
    Captured,
    /// The bank definitely does not charge.
    CaptureRefused(&'a str),
    /// The bank has let go of the amount (or never held it).
    Voided,
    /// The bank has charged already, this much, and says so when asked to let go.
    AlreadyCaptured(Cents),
    /// The last [`Action::Store`] is on disk.
    Stored,
}

/// What is to be done.
#[derive(Debug)]
pub enum Action {
    /// Write a line to a side.
    Write(Side, SettlementLine),
    /// Ask the bank to hold the price on this card.
    Authorise(Card),
    /// Ask the bank to charge, until it answers.
    Capture,
    /// Ask the bank to let go, until it answers.
    Void,
    /// Take the deal to this point, on disk.
    Store(Milestone),
    /// Close both lines; it is over.
    Close,
}

/// What the deal's record is to say.
#[derive(Debug, Clone, PartialEq)]
pub enum Milestone {
    /// The card is authorised.
    Authorised,
    /// The seller has shipped.
    Shipped,
    /// The charge is captured.
    Captured,
    /// It failed, for this reason.
    Failed(String),
}

#[derive(Debug, Clone, PartialEq)]
enum Stage {
    Informing,
    Authorising,
    Shipping,
    /// SHIPPED is being stored or is stored: no way back but a definite refusal.
    Capturing,
    Undoing(String),
    CatchingUp,
    /// The last record is being written.
    Closing(Milestone),
    Over,
}

/// One settlement.
#[derive(Debug)]
pub struct Settlement {
    order: Settling,
    stage: Stage,
    recorded: Payment,
    /// It was begun by an earlier life of the server, which may have got further than the disk says.
    taken_up: bool,
    buyer: Option<Inform>,
    seller: Option<Inform>,
    /// What went wrong while the bank or the disk was still at work.
    doomed: Option<String>,
    /// Why it failed, once that is on disk.
    failed: Option<String>,
    /// The side that could not be reached, and what it is told instead.
    unreached: Option<(Side, String)>,
}

impl Settlement {
    /// Begins a settlement whose two lines are connected.
    pub fn begin(order: Settling) -> (Settlement, Vec<Action>) {
        let ask = |side, peer: &SettlingPeer| {
            let line =
                SettlementLine::InformReq { rq: peer.rq, item_name: order.item_name.clone(), price: order.price };
            Action::Write(side, line)
        };
        let actions = vec![ask(Side::Buyer, &order.buyer), ask(Side::Seller, &order.seller)];
        let recorded = order.payment;
        (
            Settlement {
                order,
                stage: Stage::Informing,
                recorded,
                taken_up: false,
                buyer: None,
                seller: None,
                doomed: None,
                failed: None,
                unreached: None,
            },
            actions,
        )
    }

    /// Takes up a settlement that the server's end interrupted: captured if SHIPPED was on disk, else
    /// undone. There are no lines any more.
    pub fn recover(order: Settling) -> (Settlement, Vec<Action>) {
        let recorded = order.payment;
        let (stage, action) = match recorded {
            Payment::Shipped => (Stage::Capturing, Action::Capture),
            _ => (Stage::Undoing("the settlement was interrupted".to_owned()), Action::Void),
        };
        let settlement = Settlement {
            order,
            stage,
            recorded,
            taken_up: true,
            buyer: None,
            seller: None,
            doomed: None,
            failed: None,
            unreached: None,
        };
        (settlement, vec![action])
    }

    /// Takes what happened; says what is to be done.
    pub fn handle(&mut self, input: Input) -> Vec<Action> {
        match (self.stage.clone(), input) {
            (Stage::Informing, Input::Line(side, line)) => match self.inform(side, line) {
                Ok(actions) => actions,
                Err(wrong) => self.fail(format!("the {} sent nonsense: {wrong}", name(side))),
            },
            (Stage::Shipping, Input::Line(Side::Seller, line)) => match read_settlement(line, Side::Seller) {
                Ok(SettlementAnswer::Shipped(rq)) if rq == self.order.seller.rq => {
                    self.stage = Stage::Capturing;
                    vec![Action::Store(Milestone::Shipped)]
                }
                _ => self.fail("the seller sent nonsense: expected SHIPPED".to_owned()),
            },
            (Stage::Informing, Input::Unreached(side, detail)) => {
                self.unreached = Some((side, detail.to_owned()));
                self.fail(lost(side, "it could not be reached"))
            }
            (Stage::Shipping, Input::Line(side, _)) => self.fail(unasked(side)),
            (Stage::Informing | Stage::Shipping, Input::Lost(side, why)) => self.fail(lost(side, why)),
            (Stage::Authorising, Input::Line(side, _)) => self.doom(unasked(side)),
            (Stage::Authorising, Input::Lost(side, why)) => self.doom(lost(side, why)),
            (Stage::Informing | Stage::Shipping, Input::TimedOut) => {
                let silent =
                    if self.stage == Stage::Informing && self.buyer.is_none() { Side::Buyer } else { Side::Seller };
                self.fail(format!("the {} did not answer in time", name(silent)))
            }

            (Stage::Authorising, Input::Authorised) => match self.doomed.take() {
                Some(reason) => self.fail(reason),
                None => vec![Action::Store(Milestone::Authorised)],
            },
            (Stage::Authorising, Input::Declined(reason)) => self.fail(format!("payment declined: {reason}")),
            (Stage::Authorising, Input::Stored) => {
                self.recorded = Payment::Authorised;
                if let Some(reason) = self.doomed.take() {
                    return self.fail(reason);
                }
                self.stage = Stage::Shipping;
                self.shipping_info()
            }

            (Stage::Capturing, Input::Stored) => {
                self.recorded = Payment::Shipped;
                vec![Action::Capture]
            }
            (Stage::Capturing, Input::Captured) => self.close(Milestone::Captured),
            (Stage::Capturing, Input::CaptureRefused(reason)) => {
                self.fail(format!("the bank refused the charge: {reason}"))
            }

            (Stage::Undoing(reason), Input::Voided) => self.close(Milestone::Failed(reason)),
            (Stage::Undoing(_), Input::AlreadyCaptured(amount)) if self.may_be_ours(amount) => {
                // The bank's word counts (the disk may be that of a backup). The record catches up.
                self.stage = Stage::CatchingUp;
                self.catch_up()
            }
            (Stage::Undoing(reason), Input::AlreadyCaptured(amount)) => {
                // Nobody was charged for this deal: it must not end as if somebody had been.
                let Settling { deal, key, price, .. } = &self.order;
                log::error!(
                    "settlement of deal {deal}: the bank has captured {amount} under its key {key} for something \
                     else; this deal, of {price}, is cancelled"
                );
                self.close(Milestone::Failed(reason))
            }
            (Stage::CatchingUp, Input::Stored) => {
                self.recorded = if self.recorded == Payment::Asked { Payment::Authorised } else { Payment::Shipped };
                self.catch_up()
            }

            (Stage::Closing(milestone), Input::Stored) => {
                self.stage = Stage::Over;
                if let Milestone::Failed(reason) = &milestone {
                    self.failed = Some(reason.clone());
                }
                self.farewell(&milestone)
            }

            // What a side does while the bank or the disk decides, or after SHIPPED, changes nothing;
            // what a line that broke says later has been counted when it broke.
            (_, Input::Line(..) | Input::Lost(..) | Input::Unreached(..) | Input::TimedOut) => Vec::new(),
            (stage, input) => {
                debug_assert!(false, "{input:?} in {stage:?}");
                log::error!("settlement of deal {}: unexpected {input:?} while {stage:?}", self.order.deal);
                Vec::new()
            }
        }
    }

    /// Whether a side's answer is awaited, so that the step's time counts.
    pub fn awaits_a_side(&self) -> bool {
        match self.stage {
            Stage::Informing => self.buyer.is_none() || self.seller.is_none(),
            Stage::Shipping => true,
            _ => false,
        }
    }

    /// Whether it waits for the bank's word on the card, or for that to be on disk.
    pub fn is_authorising(&self) -> bool {
        self.stage == Stage::Authorising
    }

    /// A number that changes whenever the time of a step begins anew.
    pub fn step(&self) -> u8 {
        match self.stage {
            Stage::Informing => 0,
            Stage::Authorising => 1,
            Stage::Shipping => 2,
            _ => 3,
        }
    }

    /// What it is about.
    pub fn order(&self) -> &Settling {
        &self.order
    }

    fn inform(&mut self, side: Side, line: &str) -> Result<Vec<Action>, String> {
        let SettlementAnswer::InformRes(rq, inform) = read_settlement(line, side)? else {
            return Err("type: expected INFORM_RES".to_owned());
        };
        let (peer, given) = match side {
            Side::Buyer => (&self.order.buyer, &mut self.buyer),
            Side::Seller => (&self.order.seller, &mut self.seller),
        };
        if given.is_some() {
            return Err("INFORM_RES came twice".to_owned());
        }
        if rq != peer.rq {
            return Err(format!("rq: expected {}", peer.rq));
        }
        if inform.name != peer.name {
            return Err("name: this is not the peer of this deal".to_owned());
        }
        if !peer.token.as_ref().is_some_and(|token| token.matches(&inform.token)) {
            return Err("token: this is not the token of that name".to_owned());
        }
        *given = Some(*inform);
        Ok(match (&self.buyer, &self.seller) {
            (Some(Inform { purse: Some(purse), .. }), Some(_)) => {
                self.stage = Stage::Authorising;
                vec![Action::Authorise(purse.card.clone())]
            }
            _ => Vec::new(),
        })
    }

    fn shipping_info(&mut self) -> Vec<Action> {
        let Some(Inform { name, purse: Some(Purse { address, .. }), .. }) = &self.buyer else {
            return self.fail("the buyer's address is not known".to_owned());
        };
        let line = SettlementLine::ShippingInfo {
            rq: self.order.seller.rq,
            name: name.clone(),
            address: address.clone(),
            price: self.order.price,
            fee: Amount(self.order.fee),
            payout: Amount(self.payout()),
        };
        vec![Action::Write(Side::Seller, line)]
    }

    /// It will fail once the bank or the disk has answered.
    fn doom(&mut self, reason: String) -> Vec<Action> {
        self.doomed.get_or_insert(reason);
        Vec::new()
    }

    /// The authorisation is let go by key, also where none may be: the bank remembers, and refuses a
    /// late one.
    fn fail(&mut self, reason: String) -> Vec<Action> {
        self.stage = Stage::Undoing(reason);
        vec![Action::Void]
    }

    /// Whether a charge that the bank captured before can be this deal's: only where somebody may have
    /// asked for that, which is an earlier life, or this one once SHIPPED was on disk. Never one that was
    /// just declined.
    fn may_be_ours(&self, amount: Cents) -> bool {
        (self.taken_up || self.recorded == Payment::Shipped) && amount == self.order.price
    }

    fn catch_up(&mut self) -> Vec<Action> {
        match self.recorded {
            Payment::Asked => vec![Action::Store(Milestone::Authorised)],
            Payment::Authorised => vec![Action::Store(Milestone::Shipped)],
            Payment::Shipped => {
                self.stage = Stage::Capturing;
                vec![Action::Capture]
            }
        }
    }

    fn close(&mut self, milestone: Milestone) -> Vec<Action> {
        self.stage = Stage::Closing(milestone.clone());
        vec![Action::Store(milestone)]
    }

    fn farewell(&self, milestone: &Milestone) -> Vec<Action> {
        let Settling { buyer, seller, item_name, price, .. } = &self.order;
        let mut actions = match milestone {
            Milestone::Failed(reason) => {
                vec![
                    Action::Write(Side::Buyer, self.cancel(buyer.rq, self.told(Side::Buyer, reason))),
                    Action::Write(Side::Seller, self.cancel(seller.rq, self.told(Side::Seller, reason))),
                ]
            }
            _ => {
                let (item_name, price) = (item_name.clone(), *price);
                let Goods { item: offer_item, description: offer_description } = self.order.goods.clone();
                let (rq, seller_name) = (buyer.rq, seller.name.clone());
                let receipt = SettlementLine::Receipt {
                    rq,
                    item_name,
                    price,
                    seller: seller_name,
                    offer_item,
                    offer_description,
                };
                let settled = SettlementLine::Settled { rq: seller.rq, payout: Amount(self.payout()) };
                vec![Action::Write(Side::Seller, settled), Action::Write(Side::Buyer, receipt)]
            }
        };
        actions.push(Action::Close);
        actions
    }

    /// The last line of a settlement that has failed, for a side that could not be told in time.
    pub fn cancel_line(&self, side: Side) -> Option<SettlementLine> {
        let peer = match side {
            Side::Buyer => &self.order.buyer,
            Side::Seller => &self.order.seller,
        };
        self.failed.as_ref().map(|reason| self.cancel(peer.rq, self.told(side, reason)))
    }

    /// The side that could not be reached, and where and why it could not: for that side alone.
    pub fn unreached(&self) -> Option<(Side, &str)> {
        self.unreached.as_ref().map(|(side, detail)| (*side, detail.as_str()))
    }

    fn told<'a>(&'a self, side: Side, reason: &'a str) -> &'a str {
        self.unreached().filter(|(unreached, _)| *unreached == side).map_or(reason, |(_, detail)| detail)
    }

    fn cancel(&self, rq: u64, reason: &str) -> SettlementLine {
        SettlementLine::Cancel { rq, item_name: self.order.item_name.clone(), reason: reason.into() }
    }

    fn payout(&self) -> Cents {
        Cents(self.order.price.0 - self.order.fee.0)
    }
}

fn unasked(side: Side) -> String {
    format!("the {} sent nonsense: nothing was asked", name(side))
}

fn lost(side: Side, why: &str) -> String {
    format!("lost the {}: {why}", name(side))
}

fn name(side: Side) -> &'static str {
    match side {
        Side::Buyer => "buyer",
        Side::Seller => "seller",
    }
}
