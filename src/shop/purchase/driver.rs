//! Who drives a purchase: which operation comes next, and what on each answer or on none. No I/O.
//!
//! ```text
//! Hold ─► Authorise ─► Sell ─► Complete ─► purchased
//!   └─────────┴─────────┴── wrong ──► Undo ─► Release ─► Closed ─► refused
//! ```
//!
//! A frontend runs one for each purchase of its buyers, and one for each that it takes over; the latter
//! begins by looking whether the units are sold. It keeps nothing: whatever it has not brought to an end
//! when it gives up or dies, another takes over when its lease has run out (a frontend renews the leases of
//! what it drives, for as long as it lives). Every operation may be asked
//! twice, so one without an answer is asked again for a while.

use std::time::Duration;

use crate::model::Millis;
use crate::shop::ops::{
    Answer, Code, CustomerOp, Hold, Line, LinkCard, Orphan, PricedLine, ProductOp, Purchased, Refusal,
};

/// How long it tries to go forward before it undoes.
pub const FORWARD: Duration = Duration::from_secs(2);
/// How long it tries in all, to undo or to hear what it may not undo, before it leaves it to others.
pub const PATIENCE: Duration = Duration::from_secs(4);
/// How long a component that gave no answer is left alone; doubled each time.
const PAUSE: Duration = Duration::from_millis(20);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// One operation, and whom to ask.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// The customer database.
    Customer(CustomerOp),
    /// The product database.
    Product(ProductOp),
}

/// What is to be done.
#[derive(Debug)]
pub enum Step {
    /// Ask this, after a pause; the answer is the next thing to be heard.
    Ask {
        /// First wait so long.
        after: Duration,
        /// Then ask.
        op: Op,
    },
    /// It is over, or left to others; this is what the buyer is told.
    Over(Answer<Purchased>),
}

/// An answer, or that there is none.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// To [`ProductOp::Hold`].
    Priced(Vec<PricedLine>),
    /// To [`ProductOp::Sell`], [`ProductOp::Release`], [`ProductOp::HoldState`].
    Hold(Hold),
    /// To [`CustomerOp::Complete`].
    Purchased(Purchased),
    /// To the others.
    Done,
    /// To any of them; UNAVAILABLE stands for no answer, too.
    Refused(Refusal),
}

impl Op {
    /// Reads what a database has answered to this: the JSON of its answer, or its refusal.
    pub fn read(&self, answer: Answer<&str>) -> Heard {
        let json = match answer {
            Ok(json) => json,
            Err(refusal) => return Heard::Refused(refusal),
        };
        let heard = match self {
            Op::Product(ProductOp::Hold { .. }) => serde_json::from_str(json).map(Heard::Priced),
            Op::Product(_) => serde_json::from_str(json).map(Heard::Hold),
            Op::Customer(CustomerOp::Complete { .. }) => serde_json::from_str(json).map(Heard::Purchased),
            Op::Customer(_) => Ok(Heard::Done),
        };
        // The text of the error may quote what was answered.
        heard.unwrap_or_else(|_| Heard::Refused(Refusal::new(Code::Unavailable, "a database gave no proper answer")))
    }
}

#[derive(Debug)]
enum Stage {
    Holding {
        lines: Vec<Line>,
        card: LinkCard,
    },
    Authorising {
        lines: Vec<PricedLine>,
        card: LinkCard,
    },
    Selling,
    Completing,
    /// It took over: are the units sold?
    Looking,
    Undoing(Refusal),
    Releasing(Refusal),
    Closing(Refusal),
    Over,
}

/// One purchase under way.
#[derive(Debug)]
pub struct Driver {
    purchase_id: String,
    lease: u64,
    hold_ms: u64,
    stage: Stage,
    began_at: Millis,
    pause: Duration,
}

impl Driver {
    /// Begins to drive a purchase that the customer database has begun
    /// ([`Begun::Drive`](crate::shop::ops::Begun::Drive)): its lines are held for `hold_ms`.
    pub fn begin(
        now: Millis,
        purchase_id: String,
        lease: u64,
        lines: Vec<Line>,
        hold_ms: u64,
        card: LinkCard,
    ) -> (Driver, Step) {
        Driver::start(now, purchase_id, lease, hold_ms, Stage::Holding { lines, card })
    }

    /// Takes over a purchase whose driver is gone. Nobody waits for its answer.
    pub fn take_over(now: Millis, orphan: Orphan) -> (Driver, Step) {
        let Orphan { purchase_id, lease, is_undone, is_authorised, .. } = orphan;
        let stage = match (is_undone, is_authorised) {
            (true, _) => Stage::Releasing(interrupted()),
            (false, true) => Stage::Looking,
            // The card is not here, and nobody keeps one: without it there is no way forward.
            (false, false) => Stage::Undoing(interrupted()),
        };
        Driver::start(now, purchase_id, lease, 0, stage)
    }

    fn start(now: Millis, purchase_id: String, lease: u64, hold_ms: u64, stage: Stage) -> (Driver, Step) {
        let mut driver =
            Driver { purchase_id, lease, hold_ms, stage: Stage::Over, began_at: now, pause: Duration::ZERO };
        let step = driver.go(stage);
        (driver, step)
    }

    /// The purchase.
    pub fn purchase_id(&self) -> &str {
        &self.purchase_id
    }

    /// Under which it drives.
    pub fn lease(&self) -> u64 {
        self.lease
    }

    /// Takes the answer to what was asked last; says what is next.
    pub fn heard(&mut self, now: Millis, heard: Heard) -> Step {
        if let Heard::Refused(refusal) = &heard
            && is_away(refusal)
        {
            return self.no_answer(now, refusal.clone());
        }
        self.pause = Duration::ZERO;
        match (std::mem::replace(&mut self.stage, Stage::Over), heard) {
            (Stage::Holding { card, .. }, Heard::Priced(lines)) => self.go(Stage::Authorising { lines, card }),
            (Stage::Holding { .. }, Heard::Refused(why)) => match why.code {
                Code::OutOfStock | Code::NotFound | Code::BadRequest => self.go(Stage::Undoing(why)),
                // Released already: it was taken over, or took too long.
                _ => self.go(Stage::Undoing(interrupted())),
            },

            (Stage::Authorising { .. }, Heard::Done) => self.go(Stage::Selling),
            (Stage::Authorising { .. }, Heard::Refused(why)) if why.code == Code::BadRequest => {
                self.go(Stage::Undoing(why))
            }
            // The record says so itself: the attempt is undone, and nothing is held on the card.
            (Stage::Authorising { .. } | Stage::Completing, Heard::Refused(why))
                if why.code == Code::PaymentDeclined =>
            {
                self.go(Stage::Releasing(why))
            }

            (Stage::Selling | Stage::Looking, Heard::Hold(Hold::Sold)) => self.go(Stage::Completing),
            // It took too long: what was held has expired.
            (Stage::Selling | Stage::Looking, Heard::Hold(_)) => self.go(Stage::Undoing(interrupted())),

            (Stage::Completing, Heard::Purchased(purchased)) => Step::Over(Ok(purchased)),
            // Another has the lease, and the units are sold: it will be a purchase, unless the bank refuses.
            (Stage::Completing, _) => Step::Over(Err(not_known())),

            (Stage::Undoing(why), Heard::Done) => self.go(Stage::Releasing(why)),
            (Stage::Releasing(why), Heard::Hold(Hold::Released)) => self.go(Stage::Closing(why)),
            // Whoever has the lease now sees to the rest; and what fails here for good fails for all.
            (Stage::Undoing(why) | Stage::Releasing(why) | Stage::Closing(why), _) => Step::Over(Err(why)),
            // Another has the lease, or the record is over: not ours to drive any more.
            _ => Step::Over(Err(interrupted())),
        }
    }

    /// The other end is away, or what it said was lost.
    fn no_answer(&mut self, now: Millis, refusal: Refusal) -> Step {
        let tried = self.began_at.until(now);
        let may_turn_back = matches!(self.stage, Stage::Holding { .. } | Stage::Authorising { .. } | Stage::Selling);
        if may_turn_back && tried >= FORWARD {
            self.pause = Duration::ZERO;
            return self.go(Stage::Undoing(refusal));
        }
        if tried < PATIENCE {
            self.pause = (2 * self.pause).clamp(PAUSE, PAUSE_MAX);
            return self.ask();
        }
        Step::Over(Err(match &self.stage {
            Stage::Undoing(why) | Stage::Releasing(why) | Stage::Closing(why) => why.clone(),
            // It is asked for until the record says how it ended; the buyer does not wait that long.
            _ => not_known(),
        }))
    }

    fn go(&mut self, stage: Stage) -> Step {
        self.stage = stage;
        self.ask()
    }

    fn ask(&self) -> Step {
        let (purchase_id, lease) = (self.purchase_id.clone(), self.lease);
        let op = match &self.stage {
            Stage::Holding { lines, .. } => {
                Op::Product(ProductOp::Hold { purchase_id, lines: lines.clone(), expires_in_ms: self.hold_ms })
            }
            Stage::Authorising { lines, card } => {
                let (lines, card) = (lines.clone(), card.clone());
                Op::Customer(CustomerOp::Authorise { purchase_id, lease, lines, card })
            }
            Stage::Selling => Op::Product(ProductOp::Sell { purchase_id }),
            Stage::Looking => Op::Product(ProductOp::HoldState { purchase_id }),
            Stage::Completing => Op::Customer(CustomerOp::Complete { purchase_id, lease }),
            Stage::Undoing(why) => Op::Customer(CustomerOp::Undo { purchase_id, lease, why: why.clone() }),
            Stage::Releasing(_) => Op::Product(ProductOp::Release { purchase_id }),
            Stage::Closing(_) => Op::Customer(CustomerOp::Closed { purchase_id, lease }),
            Stage::Over => return Step::Over(Err(interrupted())),
        };
        Step::Ask { after: self.pause, op }
    }
}

fn is_away(refusal: &Refusal) -> bool {
    matches!(refusal.code, Code::Unavailable | Code::Busy)
}

fn not_known() -> Refusal {
    Refusal::new(Code::Unavailable, "it is not known yet whether it was purchased: look at the purchases")
}

fn interrupted() -> Refusal {
    Refusal::new(Code::Unavailable, "the purchase was interrupted: try again")
}
