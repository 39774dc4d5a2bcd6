//! The record of a purchase: what the customer database knows of it, and what it lets happen. No I/O.
//!
//! ```text
//! Begun ─► Authorising ─► Authorised ─► Completed ─► Captured
//!   │           ├──────────────┴─ undo ─────┴─ the bank refuses ─► Undone ─► Voided ─► Closed
//!   │           └─ declined ──────────────────────────────────────────────────►│
//!   └─ undo ──────────────────────────────────────────────────────────────────►│
//! ```
//!
//! A frontend drives ([`driver`]) and keeps nothing; this record alone decides. Each step is a
//! compare-and-set on (purchase, stage, lease): whoever's lease has passed on to another changes nothing
//! any more. `Authorising` is on disk before the bank is asked, `Undone` before it is asked to let go, and
//! `Completed` before it is asked to charge; so whatever was in hand when the power went is known, and is
//! asked again under the same key. What a buyer sees (history, ledger, the emptied cart) comes with
//! `Captured`, in one transaction: the bank's definite refusal to charge leaves nothing to take back.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ops::{Answer, Code, Line, Orphan, PricedLine, Purchased, Refusal};
use crate::identity::SessionKey;
use crate::model::{Cents, Millis, Name};

pub mod driver;
#[cfg(test)]
mod tests;

/// How long a driver may be silent before another one may take its purchase over.
pub const LEASE_MS: u64 = 2_500;
/// The same once it is undone: what is left may be done by anyone, and twice.
pub const UNDONE_LEASE_MS: u64 = 1_000;
/// How often a frontend renews the leases of what it drives: a few that are lost do no harm.
pub const RENEW_MS: u64 = 500;
/// The highest total, what 64 bits hold: 92233720368547758.07.
pub const TOTAL_MAX: Cents = Cents(i64::MAX);
/// How long an idempotency key answers for its purchase.
pub const KEY_KEPT_MS: u64 = 30 * 86_400_000;

/// How far a purchase has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The intent is on disk; the bank knows nothing of it.
    Begun,
    /// The bank is asked, or was, to hold the price.
    Authorising,
    /// The bank holds the price.
    Authorised,
    /// The units are sold: it will be charged.
    Completed,
    /// It is charged: a purchase.
    Captured,
    /// It failed; the bank is asked, or was, to let go.
    Undone,
    /// Nothing is held on the card, nor ever will be under this key.
    Voided,
    /// The units are back, too.
    Closed,
}

/// A buyer, as records and ledger name one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buyer {
    /// The id.
    pub user_id: u64,
    /// The user name: the card's account in the ledger.
    pub username: Name,
    /// As the buyer wants to be called.
    pub name: String,
}

/// Which cart is bought.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cart {
    /// The session that it belongs to.
    pub session: SessionKey,
    /// Dialect 2: the user's saved cart, loaded into the session's.
    pub users: bool,
    /// What is in it, by item id.
    pub lines: Vec<Line>,
}

/// What a buyer wants, before it is a purchase.
#[derive(Clone)]
pub struct Attempt {
    /// Who asks.
    pub buyer: Buyer,
    /// The number of the message: a repeat gets the same answer.
    pub request: String,
    /// The cart as it is now.
    pub cart: Cart,
    /// The buyer's own word for it.
    pub key: Option<String>,
    /// Where to.
    pub address: Option<String>,
}

/// What becomes of an attempt.
pub enum Begin {
    /// A new purchase; the asker drives it once it is on disk.
    Drive(Box<Purchase>),
    /// The open purchase is this very attempt's: the same answer as before.
    Again,
    /// Another purchase of the buyer is under way: ask again when it is over.
    Wait,
    /// It was done before, under this key.
    Done,
    /// It cannot be.
    Refuse(Refusal),
}

/// Decides on an attempt. `open` is the buyer's purchase under way; `known` is the one that this buyer has
/// completed under the attempt's key, if any.
pub fn begin(now: Millis, id: String, attempt: Attempt, open: Option<&Purchase>, known: Option<&Purchase>) -> Begin {
    if let Some(open) = open {
        if open.request == attempt.request && open.stage == Stage::Begun && open.lease == 1 {
            return Begin::Again;
        }
        return match attempt.key.is_some() && open.key == attempt.key && !open.is_meant_by(&attempt) {
            true => Begin::Refuse(other_content()),
            false => Begin::Wait,
        };
    }
    let known = known.filter(|known| known.key.is_some() && known.key == attempt.key);
    if let Some(known) = known.filter(|known| known.captured_at.plus_ms(KEY_KEPT_MS) > now) {
        return if known.is_meant_by(&attempt) { Begin::Done } else { Begin::Refuse(other_content()) };
    }
    if attempt.cart.lines.is_empty() {
        return Begin::Refuse(Refusal::new(Code::EmptyCart, "there is nothing in the cart"));
    }
    let Attempt { buyer, request, cart, key, address } = attempt;
    Begin::Drive(Box::new(Purchase {
        id,
        buyer,
        request,
        cart,
        key,
        address,
        priced: Vec::new(),
        begun_at: now,
        captured_at: Millis::default(),
        stage: Stage::Begun,
        lease: 1,
        leased_until: now.plus_ms(LEASE_MS),
        is_booked: false,
        why: None,
    }))
}

fn other_content() -> Refusal {
    Refusal::new(Code::BadRequest, "idempotency_key: it was used for another purchase (other cart or other address)")
}

/// A purchase, as it is on disk.
#[derive(Clone, Serialize, Deserialize)]
pub struct Purchase {
    /// 128 random bits in hex; also the key for the bank, the ledger and the stock.
    pub id: String,
    /// Whose it is.
    pub buyer: Buyer,
    /// The message that began it.
    pub request: String,
    /// The cart as it was then.
    pub cart: Cart,
    /// The buyer's own word for it, if there is one.
    pub key: Option<String>,
    /// Where to.
    pub address: Option<String>,
    /// The cart's lines with their prices, once the units are held.
    pub priced: Vec<PricedLine>,
    /// When it began.
    pub begun_at: Millis,
    /// When it was charged; 0 before.
    pub captured_at: Millis,
    stage: Stage,
    lease: u64,
    leased_until: Millis,
    /// The ledger has it in escrow.
    is_booked: bool,
    /// Why it is undone.
    why: Option<Refusal>,
}

/// What happens to a purchase.
#[derive(Debug)]
pub enum Event<'a> {
    /// Its driver: the units are held, at these prices; charge the card with them.
    Authorise {
        /// The driver's lease.
        lease: u64,
        /// The cart's lines.
        lines: Vec<PricedLine>,
    },
    /// The bank holds the total.
    Authorised,
    /// The bank does not, and never will under this key.
    Declined(&'a str),
    /// Its driver: the units are sold.
    Complete {
        /// The driver's lease.
        lease: u64,
    },
    /// The bank has charged.
    Captured,
    /// The bank definitely does not charge.
    CaptureRefused(&'a str),
    /// Its driver: it cannot be.
    Undo {
        /// The driver's lease.
        lease: u64,
        /// Why.
        why: Refusal,
    },
    /// The bank has let go of the total, or never held it.
    Voided,
    /// Its driver: the units are back.
    Closed {
        /// The driver's lease.
        lease: u64,
    },
}

/// What comes of an event: first all rows in one transaction, then, once they (and whatever was stored of
/// this purchase before) are on disk, the rest.
#[derive(Debug, PartialEq)]
pub struct Step {
    /// What is written; nothing if nothing has changed.
    pub rows: Vec<Row>,
    /// What is done then.
    pub then: Then,
}

/// Something to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    /// The record as it is now.
    Keep,
    /// The record is gone: it is over.
    Drop,
    /// The ledger: from card to escrow.
    Authorised,
    /// The ledger: from escrow back to the card.
    Voided,
    /// History; the ledger: from escrow to the sellers and the house; what was bought leaves the cart.
    Paid,
}

/// What is done once it is on disk.
#[derive(Debug, PartialEq)]
pub enum Then {
    /// Ask the bank; what it answers is the next event, for the same asker.
    Ask(BankCall),
    /// Answer whoever asked; who asked to complete gets [`Purchase::outcome`] where this is `Ok`.
    Answer(Answer<()>),
}

/// A question to the bank, with the purchase's id as its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BankCall {
    /// Hold this much on the card.
    Authorise(Cents),
    /// Charge what is held.
    Capture,
    /// Let go of it.
    Void,
}

impl Step {
    fn new(rows: &[Row], then: Then) -> Step {
        Step { rows: rows.to_vec(), then }
    }

    fn ask(rows: &[Row], call: BankCall) -> Step {
        Step::new(rows, Then::Ask(call))
    }

    fn done(rows: &[Row]) -> Step {
        Step::new(rows, Then::Answer(Ok(())))
    }

    fn refuse(refusal: Refusal) -> Step {
        Step::new(&[], Then::Answer(Err(refusal)))
    }
}

impl Purchase {
    /// Takes what happened; says what is to be written and done.
    pub fn handle(&mut self, now: Millis, event: Event<'_>) -> Step {
        match event {
            Event::Authorise { lease, lines } => self.authorise(now, lease, lines),
            Event::Authorised => match self.stage {
                Stage::Authorising => {
                    self.stage = Stage::Authorised;
                    self.is_booked = true;
                    Step::done(&[Row::Keep, Row::Authorised])
                }
                _ => self.how_it_stands(),
            },
            Event::Declined(reason) => match self.stage {
                Stage::Authorising => {
                    self.fail(Stage::Voided, now, declined(reason));
                    Step::new(&[Row::Keep], self.how_it_stands().then)
                }
                _ => self.how_it_stands(),
            },
            Event::Complete { lease } => match self.stage {
                Stage::Captured => Step::done(&[]),
                Stage::Completed => Step::ask(&[], BankCall::Capture),
                _ if lease != self.lease => Step::refuse(lost()),
                Stage::Authorised => {
                    self.stage = Stage::Completed;
                    Step::ask(&[Row::Keep], BankCall::Capture)
                }
                Stage::Begun | Stage::Authorising => Step::refuse(out_of_order("it is not authorised")),
                Stage::Undone | Stage::Voided | Stage::Closed => self.how_it_stands(),
            },
            Event::Captured => match self.stage {
                Stage::Completed => {
                    self.stage = Stage::Captured;
                    self.captured_at = now;
                    Step::done(&[Row::Paid, Row::Drop])
                }
                _ => self.how_it_stands(),
            },
            Event::CaptureRefused(reason) => match self.stage {
                Stage::Completed => {
                    self.fail(Stage::Undone, now, declined(reason));
                    Step::ask(&[Row::Keep], BankCall::Void)
                }
                Stage::Undone => Step::ask(&[], BankCall::Void),
                _ => self.how_it_stands(),
            },
            Event::Undo { lease, why } => match self.stage {
                Stage::Undone => Step::ask(&[], BankCall::Void),
                Stage::Voided | Stage::Closed => Step::done(&[]),
                _ if lease != self.lease => Step::refuse(lost()),
                Stage::Begun => {
                    self.fail(Stage::Voided, now, why);
                    Step::done(&[Row::Keep])
                }
                Stage::Authorising | Stage::Authorised => {
                    self.fail(Stage::Undone, now, why);
                    Step::ask(&[Row::Keep], BankCall::Void)
                }
                Stage::Completed | Stage::Captured => Step::refuse(out_of_order("it is completed")),
            },
            Event::Voided => match self.stage {
                Stage::Undone => {
                    self.stage = Stage::Voided;
                    let booked = std::mem::take(&mut self.is_booked);
                    Step::done(if booked { &[Row::Keep, Row::Voided] } else { &[Row::Keep] })
                }
                Stage::Voided | Stage::Closed => Step::done(&[]),
                // Nobody asks for that in another stage.
                _ => Step::refuse(out_of_order("it was not undone")),
            },
            Event::Closed { lease } => match self.stage {
                Stage::Closed => Step::done(&[]),
                _ if lease != self.lease => Step::refuse(lost()),
                Stage::Voided => {
                    self.stage = Stage::Closed;
                    Step::done(&[Row::Drop])
                }
                Stage::Undone => Step::refuse(Refusal::new(Code::Unavailable, "the bank has not let go of it yet")),
                _ => Step::refuse(out_of_order("it is not undone")),
            },
        }
    }

    fn authorise(&mut self, now: Millis, lease: u64, lines: Vec<PricedLine>) -> Step {
        if lease != self.lease {
            return Step::refuse(lost());
        }
        match self.stage {
            Stage::Begun => {
                let same = |(line, priced): (&Line, &PricedLine)| {
                    line.item_id == priced.item_id && line.quantity == priced.quantity
                };
                if lines.len() != self.cart.lines.len() || !self.cart.lines.iter().zip(&lines).all(same) {
                    return Step::refuse(Refusal::new(Code::BadRequest, "lines: they are not those of the cart"));
                }
                if let Some(line) = lines.iter().find(|line| Name::kept(&line.seller).is_err()) {
                    let text = format!("seller: {:?} is no user name, so nobody can be paid", line.seller);
                    return Step::refuse(Refusal::new(Code::BadRequest, text));
                }
                let Some(total) = total(&lines) else {
                    let text = format!("quantity: the total may be at most {TOTAL_MAX}");
                    return Step::refuse(Refusal::new(Code::BadRequest, text));
                };
                self.priced = lines;
                self.stage = Stage::Authorising;
                self.leased_until = now.plus_ms(LEASE_MS);
                Step::ask(&[Row::Keep], BankCall::Authorise(total))
            }
            Stage::Authorising if self.priced != lines => {
                Step::refuse(Refusal::new(Code::BadRequest, "lines: they were others before"))
            }
            Stage::Authorising => Step::ask(&[], BankCall::Authorise(self.total())),
            _ => self.how_it_stands(),
        }
    }

    /// Gives it to another driver, if the present one has been silent for too long. The new lease must be
    /// on disk before anyone hears of it, or it might be given twice.
    pub fn take_over(&mut self, now: Millis) -> Option<Orphan> {
        if !self.is_orphan(now) {
            return None;
        }
        self.lease += 1;
        self.leased_until = now.plus_ms(LEASE_MS);
        Some(Orphan {
            purchase_id: self.id.clone(),
            lease: self.lease,
            lease_ms: LEASE_MS,
            is_undone: self.stage == Stage::Voided,
            is_authorised: self.stage == Stage::Authorised,
        })
    }

    /// Its driver is at work. Also when it was silent for too long: as long as nobody else has taken it over, it
    /// is still its. Not written: see [`resume`](Purchase::resume).
    pub fn renew(&mut self, now: Millis, lease: u64) {
        if lease == self.lease {
            self.leased_until = self.leased_until.max(now.plus_ms(LEASE_MS));
        }
    }

    /// Whether it needs a driver and has none.
    pub fn is_orphan(&self, now: Millis) -> bool {
        // From `Completed` on it needs none: the rest is between the database and the bank.
        let is_driven = !matches!(self.stage, Stage::Completed | Stage::Captured | Stage::Closed);
        is_driven && self.leased_until <= now
    }

    /// Takes it up after a start: a driver that is still there has the time to say so, and a clock that was
    /// set back must not make a lease longer than any is.
    pub fn resume(&mut self, now: Millis) {
        self.leased_until = self.leased_until.clamp(now.plus_ms(2 * RENEW_MS), now.plus_ms(LEASE_MS));
    }

    /// As if its driver had been silent for ages.
    #[cfg(test)]
    pub fn let_lease_run_out(&mut self) {
        self.leased_until = Millis(0);
    }

    /// What the bank has to be asked again after a start, or after it gave no answer.
    pub fn unanswered(&self) -> Option<BankCall> {
        match self.stage {
            Stage::Completed => Some(BankCall::Capture),
            Stage::Undone => Some(BankCall::Void),
            _ => None,
        }
    }

    /// How far it is.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Its driver's lease.
    pub fn lease(&self) -> u64 {
        self.lease
    }

    /// When another may take it over.
    pub fn leased_until(&self) -> Millis {
        self.leased_until
    }

    /// Whether it holds up its buyer's next one no more.
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Captured | Stage::Closed)
    }

    /// The sum of its lines; zero before they have prices.
    pub fn total(&self) -> Cents {
        // Checked before the lines were taken.
        total(&self.priced).unwrap_or_default()
    }

    /// What the ledger has in escrow for it.
    pub fn in_escrow(&self) -> Cents {
        if self.is_booked && self.stage != Stage::Captured { self.total() } else { Cents(0) }
    }

    /// What its buyer is answered, once it is captured or undone.
    pub fn outcome(&self) -> Answer<Purchased> {
        match (self.stage, &self.why) {
            (Stage::Captured, _) => {
                Ok(Purchased { purchase_id: self.id.clone(), total: self.total(), items: self.priced.clone() })
            }
            (_, Some(why)) => Err(why.clone()),
            _ => Err(lost()),
        }
    }

    /// Whether a later attempt under the same key means this purchase: the same address, and the cart as
    /// it was, or the empty one that success left.
    fn is_meant_by(&self, attempt: &Attempt) -> bool {
        let same_cart = attempt.cart.lines.is_empty() || attempt.cart.lines == self.cart.lines;
        same_cart && attempt.address == self.address
    }

    fn fail(&mut self, stage: Stage, now: Millis, why: Refusal) {
        self.stage = stage;
        self.why.get_or_insert(why);
        self.leased_until = self.leased_until.min(now.plus_ms(UNDONE_LEASE_MS));
    }

    /// The answer for one who comes late, or who asks again.
    fn how_it_stands(&self) -> Step {
        match (self.stage, &self.why) {
            (Stage::Authorised | Stage::Completed | Stage::Captured, _) => Step::done(&[]),
            (_, Some(why)) => Step::refuse(why.clone()),
            _ => Step::refuse(lost()),
        }
    }
}

impl fmt::Debug for Purchase {
    /// Without the address, which no log may show.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Purchase { id, stage, lease, leased_until, why, .. } = self;
        write!(f, "Purchase({id} {stage:?} lease {lease} until {} {why:?})", leased_until.0)
    }
}

/// What the lines cost together; nothing if that is too much, or for nothing.
fn total(lines: &[PricedLine]) -> Option<Cents> {
    let sum = lines.iter().try_fold(0i64, |sum, line| sum.checked_add(line.price.0.checked_mul(line.quantity.into())?));
    sum.map(Cents).filter(|sum| sum.0 > 0)
}

fn declined(reason: &str) -> Refusal {
    Refusal::new(Code::PaymentDeclined, reason)
}

fn lost() -> Refusal {
    Refusal::new(Code::Forbidden, "lease: another goes on with this purchase")
}

fn out_of_order(why: &str) -> Refusal {
    Refusal::new(Code::Forbidden, format!("purchase_id: {why}"))
}
