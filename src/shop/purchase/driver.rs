//! The driver of a purchase decides which operation to send next, on each response or timeout. It does no I/O.
//!
//! ```text
//! Hold ─► Authorise ─► Sell ─► Complete ─► purchased
//!   └─────────┴─────────┴── wrong ──► Undo ─► Release ─► Closed ─► refused
//! ```
//!
//! A frontend runs a driver for each purchase of its buyers, and for each orphaned one that it takes over; the latter
//! begins by checking whether the units are sold. The driver stores nothing. If it gives up or dies before the end,
//! another takes over when its lease has expired. Every operation is idempotent, so one without a response is retried
//! for a while.

use std::time::Duration;

use crate::model::Millis;
use crate::net::backoff::Backoff;
use crate::shop::customer::CustomerOp;
use crate::shop::ops::{
    CardDetails, CompletedPurchase, ErrorCode, HoldState, LineItem, OrphanedPurchase, PricedLine, Refusal, ShopResult,
};
use crate::shop::product::ProductOp;

/// How long the driver tries to go forward before it undoes the purchase.
pub const FORWARD_TIMEOUT: Duration = Duration::from_secs(2);
/// How long it tries in all, to undo the purchase or to learn the outcome of one that cannot be undone, before it
/// leaves the purchase to another driver.
pub const TOTAL_TIMEOUT: Duration = Duration::from_secs(4);
/// Doubled with each retry.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, PartialEq)]
pub enum DatabaseOp {
    Customer(CustomerOp),
    Product(ProductOp),
}

/// What the driver's frontend has to do next.
#[derive(Debug)]
pub enum DriverStep {
    /// Send an operation after a pause, and pass its response to [`Driver::handle_response`].
    Send { after: Duration, op: DatabaseOp },
    /// The driver is done, or leaves the purchase to another driver; this is the result for the buyer.
    Finished(ShopResult<CompletedPurchase>),
}

#[derive(Debug, Clone, PartialEq)]
pub enum OpResponse {
    /// The result of [`ProductOp::Hold`].
    Priced(Vec<PricedLine>),
    /// The result of [`ProductOp::Sell`], [`ProductOp::Release`] and [`ProductOp::HoldState`].
    Hold(HoldState),
    /// The result of [`CustomerOp::Complete`].
    Purchased(CompletedPurchase),
    /// The success of any other operation.
    Done,
    /// UNAVAILABLE also stands for no response.
    Refused(Refusal),
}

impl DatabaseOp {
    /// Parses the JSON of the result, or the refusal.
    pub fn parse_response(&self, response: ShopResult<&str>) -> OpResponse {
        let json = match response {
            Ok(json) => json,
            Err(refusal) => return OpResponse::Refused(refusal),
        };
        let parsed = match self {
            DatabaseOp::Product(ProductOp::Hold { .. }) => serde_json::from_str(json).map(OpResponse::Priced),
            DatabaseOp::Product(_) => serde_json::from_str(json).map(OpResponse::Hold),
            DatabaseOp::Customer(CustomerOp::Complete { .. }) => serde_json::from_str(json).map(OpResponse::Purchased),
            DatabaseOp::Customer(_) => Ok(OpResponse::Done),
        };
        // The error's text may quote the response.
        parsed.unwrap_or_else(|_| OpResponse::Refused(Refusal::no_proper_answer()))
    }
}

#[derive(Debug)]
enum DriverStage {
    Holding { lines: Vec<LineItem>, card: CardDetails },
    Authorising { lines: Vec<PricedLine>, card: CardDetails },
    Selling,
    Completing,
    // After taking over, it is checked whether the units are sold.
    CheckingSale,
    Undoing(Refusal),
    Releasing(Refusal),
    Closing(Refusal),
    Finished,
}

#[derive(Debug)]
pub struct Driver {
    purchase_id: String,
    lease: u64,
    hold_ms: u64,
    stage: DriverStage,
    began_at: Millis,
    backoff: Backoff,
}

impl Driver {
    /// The customer database has begun the purchase ([`BeginResponse::Drive`](crate::shop::ops::BeginResponse::Drive)).
    /// Its lines are to be held for `hold_ms`.
    pub fn begin(
        now: Millis,
        purchase_id: String,
        lease: u64,
        lines: Vec<LineItem>,
        hold_ms: u64,
        card: CardDetails,
    ) -> (Driver, DriverStep) {
        Driver::start(now, purchase_id, lease, hold_ms, DriverStage::Holding { lines, card })
    }

    /// No client waits for the result.
    pub fn take_over(now: Millis, orphan: OrphanedPurchase) -> (Driver, DriverStep) {
        let OrphanedPurchase { purchase_id, lease, is_undone, is_authorised, .. } = orphan;
        let stage = match (is_undone, is_authorised) {
            (true, _) => DriverStage::Releasing(interrupted()),
            (false, true) => DriverStage::CheckingSale,
            // The card details were never stored.
            (false, false) => DriverStage::Undoing(interrupted()),
        };
        Driver::start(now, purchase_id, lease, 0, stage)
    }

    fn start(now: Millis, purchase_id: String, lease: u64, hold_ms: u64, stage: DriverStage) -> (Driver, DriverStep) {
        let backoff = Backoff::new(RETRY_PAUSE, RETRY_PAUSE_MAX);
        let mut driver = Driver { purchase_id, lease, hold_ms, stage: DriverStage::Finished, began_at: now, backoff };
        let step = driver.enter_stage(stage);
        (driver, step)
    }

    pub fn purchase_id(&self) -> &str {
        &self.purchase_id
    }

    pub fn lease(&self) -> u64 {
        self.lease
    }

    /// The response is to the last operation.
    pub fn handle_response(&mut self, now: Millis, response: OpResponse) -> DriverStep {
        if let OpResponse::Refused(refusal) = &response
            && is_transient(refusal)
        {
            return self.handle_no_response(now, refusal.clone());
        }
        self.backoff.reset();
        match (std::mem::replace(&mut self.stage, DriverStage::Finished), response) {
            (DriverStage::Holding { card, .. }, OpResponse::Priced(lines)) => {
                self.enter_stage(DriverStage::Authorising { lines, card })
            }
            (DriverStage::Holding { .. }, OpResponse::Refused(why)) => match why.code {
                ErrorCode::OutOfStock | ErrorCode::NotFound | ErrorCode::BadRequest => {
                    self.enter_stage(DriverStage::Undoing(why))
                }
                // Another driver took over, or the hold expired.
                _ => self.enter_stage(DriverStage::Undoing(interrupted())),
            },

            (DriverStage::Authorising { .. }, OpResponse::Done) => self.enter_stage(DriverStage::Selling),
            (DriverStage::Authorising { .. }, OpResponse::Refused(why)) if why.code == ErrorCode::BadRequest => {
                self.enter_stage(DriverStage::Undoing(why))
            }
            // The record is undone already.
            (DriverStage::Authorising { .. } | DriverStage::Completing, OpResponse::Refused(why))
                if why.code == ErrorCode::PaymentDeclined =>
            {
                self.enter_stage(DriverStage::Releasing(why))
            }

            (DriverStage::Selling | DriverStage::CheckingSale, OpResponse::Hold(HoldState::Sold)) => {
                self.enter_stage(DriverStage::Completing)
            }
            // The hold has expired.
            (DriverStage::Selling | DriverStage::CheckingSale, OpResponse::Hold(_)) => {
                self.enter_stage(DriverStage::Undoing(interrupted()))
            }

            (DriverStage::Completing, OpResponse::Purchased(purchased)) => DriverStep::Finished(Ok(purchased)),
            // Another driver has the lease and the units are sold, so it becomes a purchase unless the bank refuses.
            (DriverStage::Completing, _) => DriverStep::Finished(Err(outcome_unknown())),

            (DriverStage::Undoing(why), OpResponse::Done) => self.enter_stage(DriverStage::Releasing(why)),
            (DriverStage::Releasing(why), OpResponse::Hold(HoldState::Released)) => {
                self.enter_stage(DriverStage::Closing(why))
            }
            // The holder of the lease does the rest; a definite failure here would be one for every driver.
            (DriverStage::Undoing(why) | DriverStage::Releasing(why) | DriverStage::Closing(why), _) => {
                DriverStep::Finished(Err(why))
            }
            // Another driver has the lease, or the record is finished.
            _ => DriverStep::Finished(Err(interrupted())),
        }
    }

    /// A database is unavailable, or its response was lost.
    fn handle_no_response(&mut self, now: Millis, refusal: Refusal) -> DriverStep {
        let elapsed = self.began_at.until(now);
        let can_still_undo =
            matches!(self.stage, DriverStage::Holding { .. } | DriverStage::Authorising { .. } | DriverStage::Selling);
        if can_still_undo && elapsed >= FORWARD_TIMEOUT {
            self.backoff.reset();
            return self.enter_stage(DriverStage::Undoing(refusal));
        }
        if elapsed < TOTAL_TIMEOUT {
            let pause = self.backoff.next_pause();
            return self.next_request(pause);
        }
        DriverStep::Finished(Err(match &self.stage {
            DriverStage::Undoing(why) | DriverStage::Releasing(why) | DriverStage::Closing(why) => why.clone(),
            // The customer database tries until the outcome is certain, but the buyer does not wait that long.
            _ => outcome_unknown(),
        }))
    }

    fn enter_stage(&mut self, stage: DriverStage) -> DriverStep {
        self.stage = stage;
        self.next_request(Duration::ZERO)
    }

    fn next_request(&self, after: Duration) -> DriverStep {
        let (purchase_id, lease) = (self.purchase_id.clone(), self.lease);
        let op = match &self.stage {
            DriverStage::Holding { lines, .. } => {
                DatabaseOp::Product(ProductOp::Hold { purchase_id, lines: lines.clone(), expires_in_ms: self.hold_ms })
            }
            DriverStage::Authorising { lines, card } => {
                let (lines, card) = (lines.clone(), card.clone());
                DatabaseOp::Customer(CustomerOp::Authorise { purchase_id, lease, lines, card })
            }
            DriverStage::Selling => DatabaseOp::Product(ProductOp::Sell { purchase_id }),
            DriverStage::CheckingSale => DatabaseOp::Product(ProductOp::HoldState { purchase_id }),
            DriverStage::Completing => DatabaseOp::Customer(CustomerOp::Complete { purchase_id, lease }),
            DriverStage::Undoing(why) => {
                DatabaseOp::Customer(CustomerOp::Undo { purchase_id, lease, why: why.clone() })
            }
            DriverStage::Releasing(_) => DatabaseOp::Product(ProductOp::Release { purchase_id }),
            DriverStage::Closing(_) => DatabaseOp::Customer(CustomerOp::Closed { purchase_id, lease }),
            DriverStage::Finished => return DriverStep::Finished(Err(interrupted())),
        };
        DriverStep::Send { after, op }
    }
}

fn is_transient(refusal: &Refusal) -> bool {
    matches!(refusal.code, ErrorCode::Unavailable | ErrorCode::Busy)
}

fn outcome_unknown() -> Refusal {
    Refusal::new(ErrorCode::Unavailable, "it is not known yet whether it was purchased: look at the purchases")
}

fn interrupted() -> Refusal {
    Refusal::new(ErrorCode::Unavailable, "the purchase was interrupted: try again")
}
