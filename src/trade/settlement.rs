//! The state machine of one settlement: who must answer what, when money moves, and what happens on a failure. No I/O.
//!
//! ```text
//! Informing ─► Authorising ─► Shipping ─► Capturing ─► Over (paid)
//!     └─────────────┴────────────┴──── anything wrong ───► Undoing ─► Over (cancelled)
//! ```
//!
//! The driver performs the [`SettlementAction`]s in order and reports each [`SettlementInput`]. An action for the bank
//! or the disk is the last of its batch: nothing continues before its result is in, and what a side does meanwhile
//! takes effect then.

use super::deal::PaymentProgress;
use super::exchange::{SettlementOrder, SettlementParty};
use super::wire::{
    Amount, Goods, InformResponse, PaymentDetails, SettlementMessage, SettlementResponse, Side,
    parse_settlement_response,
};
use crate::model::{Cents, PaymentCard};

#[cfg(test)]
mod tests;

#[derive(Debug)]
pub enum SettlementInput<'a> {
    Line(Side, &'a str),
    /// The connection failed, was lost or is unusable.
    Lost(Side, &'a str),
    /// No connection could be made. The text names the address and the reason; only that side is told.
    Unreachable(Side, &'a str),
    TimedOut,
    Authorised,
    Declined(&'a str),
    Captured,
    /// The bank refuses definitely.
    CaptureRefused(&'a str),
    /// The bank has voided, or never held the amount.
    Voided,
    /// The bank was asked to void, but has already charged this much.
    AlreadyCaptured(Cents),
    /// The last [`SettlementAction::Store`] is on disk.
    Stored,
}

#[derive(Debug)]
pub enum SettlementAction {
    Write(Side, SettlementMessage),
    Authorise(PaymentCard),
    /// Retried until the bank answers, like `Void`.
    Capture,
    Void,
    Store(SettlementMilestone),
    /// The settlement is over.
    Close,
}

/// A milestone is recorded in the deal.
#[derive(Debug, Clone, PartialEq)]
pub enum SettlementMilestone {
    Authorised,
    Shipped,
    Captured,
    Failed(String),
}

#[derive(Debug, Clone, PartialEq)]
enum SettlementStage {
    Informing,
    Authorising,
    Shipping,
    /// SHIPPED has been received. Only a definite refusal by the bank leads back.
    Capturing,
    Undoing(String),
    CatchingUp,
    /// The final milestone is being recorded.
    Closing(SettlementMilestone),
    Over,
}

#[derive(Debug)]
pub struct Settlement {
    order: SettlementOrder,
    stage: SettlementStage,
    recorded: PaymentProgress,
    /// Begun by an earlier run of the server, which may have got further than the disk says.
    is_recovered: bool,
    buyer: Option<InformResponse>,
    seller: Option<InformResponse>,
    /// It occurred while the bank or the disk was at work.
    pending_failure: Option<String>,
    /// It is set once that is on disk.
    failed: Option<String>,
    /// The side, and what it is told instead of the general reason.
    unreached: Option<(Side, String)>,
}

impl Settlement {
    /// The two connections are open.
    pub fn begin(order: SettlementOrder) -> (Settlement, Vec<SettlementAction>) {
        let ask = |side, peer: &SettlementParty| {
            let line =
                SettlementMessage::InformReq { rq: peer.rq, item_name: order.item_name.clone(), price: order.price };
            SettlementAction::Write(side, line)
        };
        let actions = vec![ask(Side::Buyer, &order.buyer), ask(Side::Seller, &order.seller)];
        (Settlement::new(order, SettlementStage::Informing, false), actions)
    }

    /// A stop of the server interrupted it, and the connections are gone. It is captured if SHIPPED was on disk, else
    /// undone.
    pub fn recover(order: SettlementOrder) -> (Settlement, Vec<SettlementAction>) {
        let (stage, action) = match order.payment {
            PaymentProgress::Shipped => (SettlementStage::Capturing, SettlementAction::Capture),
            _ => (SettlementStage::Undoing("the settlement was interrupted".to_owned()), SettlementAction::Void),
        };
        (Settlement::new(order, stage, true), vec![action])
    }

    fn new(order: SettlementOrder, stage: SettlementStage, is_recovered: bool) -> Settlement {
        Settlement {
            recorded: order.payment,
            order,
            stage,
            is_recovered,
            buyer: None,
            seller: None,
            pending_failure: None,
            failed: None,
            unreached: None,
        }
    }

    pub fn handle(&mut self, input: SettlementInput) -> Vec<SettlementAction> {
        match input {
            SettlementInput::Line(..)
            | SettlementInput::Lost(..)
            | SettlementInput::Unreachable(..)
            | SettlementInput::TimedOut => self.handle_side(input),
            SettlementInput::Authorised
            | SettlementInput::Declined(_)
            | SettlementInput::Captured
            | SettlementInput::CaptureRefused(_)
            | SettlementInput::Voided
            | SettlementInput::AlreadyCaptured(_)
            | SettlementInput::Stored => self.handle_outcome(input),
        }
    }

    /// What a side does, or fails to do in time.
    fn handle_side(&mut self, input: SettlementInput) -> Vec<SettlementAction> {
        match (self.stage.clone(), input) {
            (SettlementStage::Informing, SettlementInput::Line(side, line)) => match self.inform(side, line) {
                Ok(actions) => actions,
                Err(wrong) => self.fail(format!("the {} sent nonsense: {wrong}", side_name(side))),
            },
            (SettlementStage::Shipping, SettlementInput::Line(Side::Seller, line)) => {
                match parse_settlement_response(line, Side::Seller) {
                    Ok(SettlementResponse::Shipped(rq)) if rq == self.order.seller.rq => {
                        self.stage = SettlementStage::Capturing;
                        vec![SettlementAction::Store(SettlementMilestone::Shipped)]
                    }
                    _ => self.fail("the seller sent nonsense: expected SHIPPED".to_owned()),
                }
            }
            (SettlementStage::Informing, SettlementInput::Unreachable(side, detail)) => {
                self.unreached = Some((side, detail.to_owned()));
                self.fail(lost(side, "it could not be reached"))
            }
            (SettlementStage::Shipping, SettlementInput::Line(side, _)) => self.fail(unsolicited(side)),
            (SettlementStage::Informing | SettlementStage::Shipping, SettlementInput::Lost(side, why)) => {
                self.fail(lost(side, why))
            }
            (SettlementStage::Authorising, SettlementInput::Line(side, _)) => self.fail_later(unsolicited(side)),
            (SettlementStage::Authorising, SettlementInput::Lost(side, why)) => self.fail_later(lost(side, why)),
            (SettlementStage::Informing | SettlementStage::Shipping, SettlementInput::TimedOut) => {
                let silent = if self.stage == SettlementStage::Informing && self.buyer.is_none() {
                    Side::Buyer
                } else {
                    Side::Seller
                };
                self.fail(format!("the {} did not answer in time", side_name(silent)))
            }
            // While the bank or the disk decides, and after SHIPPED, a side cannot change anything.
            _ => Vec::new(),
        }
    }

    fn handle_outcome(&mut self, input: SettlementInput) -> Vec<SettlementAction> {
        match (self.stage.clone(), input) {
            (SettlementStage::Authorising, SettlementInput::Authorised) => match self.pending_failure.take() {
                Some(reason) => self.fail(reason),
                None => vec![SettlementAction::Store(SettlementMilestone::Authorised)],
            },
            (SettlementStage::Authorising, SettlementInput::Declined(reason)) => {
                self.fail(format!("payment declined: {reason}"))
            }
            (SettlementStage::Authorising, SettlementInput::Stored) => {
                self.recorded = PaymentProgress::Authorised;
                if let Some(reason) = self.pending_failure.take() {
                    return self.fail(reason);
                }
                self.stage = SettlementStage::Shipping;
                self.shipping_info()
            }

            (SettlementStage::Capturing, SettlementInput::Stored) => {
                self.recorded = PaymentProgress::Shipped;
                vec![SettlementAction::Capture]
            }
            (SettlementStage::Capturing, SettlementInput::Captured) => self.close(SettlementMilestone::Captured),
            (SettlementStage::Capturing, SettlementInput::CaptureRefused(reason)) => {
                self.fail(format!("the bank refused the charge: {reason}"))
            }

            (SettlementStage::Undoing(reason), SettlementInput::Voided) => {
                self.close(SettlementMilestone::Failed(reason))
            }
            (SettlementStage::Undoing(_), SettlementInput::AlreadyCaptured(amount)) if self.may_be_ours(amount) => {
                // The bank is authoritative, since the disk may have been restored from a backup.
                self.stage = SettlementStage::CatchingUp;
                self.catch_up()
            }
            (SettlementStage::Undoing(reason), SettlementInput::AlreadyCaptured(amount)) => {
                // Nobody was charged for this deal.
                let SettlementOrder { deal, key, price, .. } = &self.order;
                log::error!(
                    "settlement of deal {deal}: the bank has captured {amount} under its key {key} for something \
                     else; this deal, of {price}, is cancelled"
                );
                self.close(SettlementMilestone::Failed(reason))
            }
            (SettlementStage::CatchingUp, SettlementInput::Stored) => {
                self.recorded = if self.recorded == PaymentProgress::Asked {
                    PaymentProgress::Authorised
                } else {
                    PaymentProgress::Shipped
                };
                self.catch_up()
            }

            (SettlementStage::Closing(milestone), SettlementInput::Stored) => {
                self.stage = SettlementStage::Over;
                if let SettlementMilestone::Failed(reason) = &milestone {
                    self.failed = Some(reason.clone());
                }
                self.closing_actions(&milestone)
            }

            (stage, input) => {
                debug_assert!(false, "{input:?} in {stage:?}");
                log::error!("settlement of deal {}: unexpected {input:?} while {stage:?}", self.order.deal);
                Vec::new()
            }
        }
    }

    /// So that the timeout of the step applies.
    pub fn awaits_peer(&self) -> bool {
        match self.stage {
            SettlementStage::Informing => self.buyer.is_none() || self.seller.is_none(),
            SettlementStage::Shipping => true,
            _ => false,
        }
    }

    /// It is, until the authorisation is on disk.
    pub fn is_authorising(&self) -> bool {
        self.stage == SettlementStage::Authorising
    }

    /// It changes whenever the timeout starts anew.
    pub fn step(&self) -> u8 {
        match self.stage {
            SettlementStage::Informing => 0,
            SettlementStage::Authorising => 1,
            SettlementStage::Shipping => 2,
            _ => 3,
        }
    }

    pub fn order(&self) -> &SettlementOrder {
        &self.order
    }

    fn inform(&mut self, side: Side, line: &str) -> Result<Vec<SettlementAction>, String> {
        let SettlementResponse::InformRes(rq, inform) = parse_settlement_response(line, side)? else {
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
            (Some(InformResponse { payment_details: Some(payment_details), .. }), Some(_)) => {
                self.stage = SettlementStage::Authorising;
                vec![SettlementAction::Authorise(payment_details.card.clone())]
            }
            _ => Vec::new(),
        })
    }

    fn shipping_info(&mut self) -> Vec<SettlementAction> {
        let Some(InformResponse { name, payment_details: Some(PaymentDetails { address, .. }), .. }) = &self.buyer
        else {
            return self.fail("the buyer's address is not known".to_owned());
        };
        let line = SettlementMessage::ShippingInfo {
            rq: self.order.seller.rq,
            name: name.clone(),
            address: address.clone(),
            price: self.order.price,
            fee: Amount(self.order.fee),
            payout: Amount(self.payout()),
        };
        vec![SettlementAction::Write(Side::Seller, line)]
    }

    /// Fails the settlement once the bank or the disk has answered.
    fn fail_later(&mut self, reason: String) -> Vec<SettlementAction> {
        self.pending_failure.get_or_insert(reason);
        Vec::new()
    }

    /// Voids the authorisation even if there may be none: the bank remembers the key and refuses a late one.
    fn fail(&mut self, reason: String) -> Vec<SettlementAction> {
        self.stage = SettlementStage::Undoing(reason);
        vec![SettlementAction::Void]
    }

    /// Whether a charge that the bank captured earlier can belong to this deal. That takes an earlier request to
    /// capture: by a previous run of the server, or after SHIPPED was on disk. A card that was just declined cannot
    /// have been charged.
    fn may_be_ours(&self, amount: Cents) -> bool {
        (self.is_recovered || self.recorded == PaymentProgress::Shipped) && amount == self.order.price
    }

    fn catch_up(&mut self) -> Vec<SettlementAction> {
        match self.recorded {
            PaymentProgress::Asked => vec![SettlementAction::Store(SettlementMilestone::Authorised)],
            PaymentProgress::Authorised => vec![SettlementAction::Store(SettlementMilestone::Shipped)],
            PaymentProgress::Shipped => {
                self.stage = SettlementStage::Capturing;
                vec![SettlementAction::Capture]
            }
        }
    }

    fn close(&mut self, milestone: SettlementMilestone) -> Vec<SettlementAction> {
        self.stage = SettlementStage::Closing(milestone.clone());
        vec![SettlementAction::Store(milestone)]
    }

    fn closing_actions(&self, milestone: &SettlementMilestone) -> Vec<SettlementAction> {
        let SettlementOrder { buyer, seller, item_name, price, .. } = &self.order;
        let mut actions = match milestone {
            SettlementMilestone::Failed(reason) => Vec::from(
                [Side::Buyer, Side::Seller].map(|side| SettlementAction::Write(side, self.cancel(side, reason))),
            ),
            _ => {
                let Goods { item: offer_item, description: offer_description } = self.order.goods.clone();
                let receipt = SettlementMessage::Receipt {
                    rq: buyer.rq,
                    item_name: item_name.clone(),
                    price: *price,
                    seller: seller.name.clone(),
                    offer_item,
                    offer_description,
                };
                let settled = SettlementMessage::Settled { rq: seller.rq, payout: Amount(self.payout()) };
                vec![SettlementAction::Write(Side::Seller, settled), SettlementAction::Write(Side::Buyer, receipt)]
            }
        };
        actions.push(SettlementAction::Close);
        actions
    }

    /// The last line for a side that connects after the settlement has failed.
    pub fn cancel_line(&self, side: Side) -> Option<SettlementMessage> {
        self.failed.as_ref().map(|reason| self.cancel(side, reason))
    }

    pub fn unreached(&self) -> Option<(Side, &str)> {
        self.unreached.as_ref().map(|(side, detail)| (*side, detail.as_str()))
    }

    fn cancel(&self, side: Side, reason: &str) -> SettlementMessage {
        let peer = if side == Side::Buyer { &self.order.buyer } else { &self.order.seller };
        let reason = self.unreached().filter(|(unreached, _)| *unreached == side).map_or(reason, |(_, detail)| detail);
        SettlementMessage::Cancel { rq: peer.rq, item_name: self.order.item_name.clone(), reason: reason.into() }
    }

    fn payout(&self) -> Cents {
        Cents(self.order.price.0 - self.order.fee.0)
    }
}

fn unsolicited(side: Side) -> String {
    format!("the {} sent nonsense: nothing was asked", side_name(side))
}

fn lost(side: Side, why: &str) -> String {
    format!("lost the {}: {why}", side_name(side))
}

fn side_name(side: Side) -> &'static str {
    match side {
        Side::Buyer => "buyer",
        Side::Seller => "seller",
    }
}
