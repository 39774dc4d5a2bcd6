//! The state machine of a purchase, as the customer database runs it. It does no I/O.
//!
//! ```text
//! Begun ─► Authorising ─► Authorised ─► Completed ─► Captured
//!   │           ├──────────────┴─ undo ─────┴─ the bank refuses ─► Undone ─► Voided ─► Closed
//!   │           └─ declined ──────────────────────────────────────────────────►│
//!   └─ undo ──────────────────────────────────────────────────────────────────►│
//! ```
//!
//! A frontend drives a purchase ([`driver`]) but stores nothing; the record here decides. Each step is a
//! compare-and-set on (purchase, stage, lease), so that a driver whose lease has passed to another changes nothing any
//! more.
//! `Authorising` is on disk before the bank is asked to authorise, `Completed` before it is asked to capture, and
//! `Undone` before it is asked to void. So every request to the bank that a crash interrupted is known, and is repeated
//! under the same key. What a buyer sees (history, ledger, the emptied cart) is written with `Captured` in one
//! transaction, so that a definite refusal of the capture leaves nothing to roll back.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ops::{CompletedPurchase, ErrorCode, LineItem, OrphanedPurchase, PricedLine, Refusal, ShopResult};
use crate::identity::SessionKey;
use crate::model::{Cents, Millis, Name};

pub mod driver;
#[cfg(test)]
mod tests;

/// How long a driver may go without a sign of life before another driver may take over its purchase.
pub const LEASE_MS: u64 = 2_500;
/// The same once the purchase is undone: what remains is idempotent and may be done by any driver.
pub const UNDONE_LEASE_MS: u64 = 1_000;
/// How often a frontend renews the leases of what it drives. A few lost renewals do no harm.
pub const RENEW_MS: u64 = 500;
/// The maximum total, which 64 bits can hold: 92233720368547758.07.
pub const TOTAL_MAX: Cents = Cents(i64::MAX);
/// How long an idempotency key stays bound to its purchase.
pub const KEY_RETENTION_MS: u64 = 30 * 86_400_000;

/// The stage of a purchase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PurchaseStage {
    /// The record is on disk; the bank has not been asked for anything.
    Begun,
    /// The bank is being asked to authorise the total, or was before a crash.
    Authorising,
    /// The bank holds the total.
    Authorised,
    /// The units are sold; the charge is being captured.
    Completed,
    /// The card is charged and the purchase is complete.
    Captured,
    /// It failed; the bank is being asked to void the authorisation, or was before a crash.
    Undone,
    /// Nothing is held on the card, nor ever will be for this purchase.
    Voided,
    /// The units are back in stock as well.
    Closed,
}

/// A buyer, as the record and the ledger identify one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuyerIdentity {
    pub user_id: u64,
    /// The user name, which names the card's account in the ledger.
    pub username: Name,
    /// The display name.
    pub name: String,
}

/// The cart at the time of the attempt.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CartSnapshot {
    pub session: SessionKey,
    /// Whether it is the buyer's saved cart, loaded into the session's, as in dialect 2.
    #[serde(rename = "users")]
    pub uses_saved_cart: bool,
    /// The lines, ordered by item id.
    pub lines: Vec<LineItem>,
}

/// A buyer's attempt to purchase a cart.
#[derive(Clone)]
pub struct PurchaseAttempt {
    pub buyer: BuyerIdentity,
    /// The request id, by which a retry of the same message gets the same response.
    pub request: String,
    pub cart: CartSnapshot,
    /// The idempotency key that the buyer chose.
    pub key: Option<String>,
    pub address: Option<String>,
}

/// The decision on an attempt.
pub enum BeginDecision {
    /// It begins a new purchase, which the caller drives once it is on disk.
    Drive(Box<Purchase>),
    /// It is a retry of the request that began the open purchase, and gets the same response.
    Repeat,
    /// Another purchase of the buyer is open: decide again when that is over.
    Wait,
    /// The same purchase was completed before under this key.
    Done,
    Refuse(Refusal),
}

/// Decides on an attempt. `open` is the buyer's open purchase, and `completed` the newest purchase that the buyer has
/// completed under the attempt's key.
pub fn begin(
    now: Millis,
    id: String,
    attempt: PurchaseAttempt,
    open: Option<&Purchase>,
    completed: Option<&Purchase>,
) -> BeginDecision {
    if let Some(open) = open {
        if open.request == attempt.request && open.stage == PurchaseStage::Begun && open.lease == 1 {
            return BeginDecision::Repeat;
        }
        return match attempt.key.is_some() && open.key == attempt.key && !open.matches_attempt(&attempt) {
            true => BeginDecision::Refuse(idempotency_key_reused()),
            false => BeginDecision::Wait,
        };
    }
    let completed = completed.filter(|completed| completed.key.is_some() && completed.key == attempt.key);
    if let Some(completed) = completed.filter(|completed| completed.captured_at.plus_ms(KEY_RETENTION_MS) > now) {
        return if completed.matches_attempt(&attempt) {
            BeginDecision::Done
        } else {
            BeginDecision::Refuse(idempotency_key_reused())
        };
    }
    if attempt.cart.lines.is_empty() {
        return BeginDecision::Refuse(Refusal::new(ErrorCode::EmptyCart, "there is nothing in the cart"));
    }
    let PurchaseAttempt { buyer, request, cart, key, address } = attempt;
    BeginDecision::Drive(Box::new(Purchase {
        id,
        buyer,
        request,
        cart,
        key,
        address,
        priced: Vec::new(),
        begun_at: now,
        captured_at: Millis::default(),
        stage: PurchaseStage::Begun,
        lease: 1,
        leased_until: now.plus_ms(LEASE_MS),
        is_booked: false,
        why: None,
    }))
}

fn idempotency_key_reused() -> Refusal {
    Refusal::new(
        ErrorCode::BadRequest,
        "idempotency_key: it was used for another purchase (other cart or other address)",
    )
}

/// The record of a purchase, which is stored as JSON.
#[derive(Clone, Serialize, Deserialize)]
pub struct Purchase {
    /// 128 random bits in hex; also the key of the purchase at the bank, in the ledger and for its hold.
    pub id: String,
    pub buyer: BuyerIdentity,
    /// The id of the request that began it.
    pub request: String,
    /// The cart when it began.
    pub cart: CartSnapshot,
    /// The idempotency key that the buyer chose.
    pub key: Option<String>,
    pub address: Option<String>,
    /// The cart's lines with their prices, once the units are held.
    pub priced: Vec<PricedLine>,
    pub begun_at: Millis,
    /// When the card was charged; 0 before.
    pub captured_at: Millis,
    stage: PurchaseStage,
    lease: u64,
    leased_until: Millis,
    /// Whether the ledger has the total in escrow.
    is_booked: bool,
    /// Why it was undone.
    why: Option<Refusal>,
}

/// An event that a purchase's state machine handles. Those with a lease come from a driver, the others from the bank.
#[derive(Debug)]
pub enum PurchaseEvent<'a> {
    /// The units are held at these prices; the bank is to authorise their total.
    Authorise { lease: u64, lines: Vec<PricedLine> },
    /// The bank holds the total.
    Authorised,
    /// The bank declines the card, for good under this purchase's key.
    Declined(&'a str),
    /// The units are sold; the charge is to be captured.
    Complete { lease: u64 },
    /// The bank has charged the card.
    Captured,
    /// The bank definitely refuses to charge the card.
    CaptureRefused(&'a str),
    /// The purchase is to be undone.
    Undo {
        lease: u64,
        /// The reason that the buyer is told.
        why: Refusal,
    },
    /// The bank has voided the authorisation, or never held the total.
    Voided,
    /// The units of an undone purchase are back in stock.
    Closed { lease: u64 },
}

/// The effects of an event: the writes, in one transaction, and the action to take once they and all earlier writes of
/// this purchase are on disk.
#[derive(Debug, PartialEq)]
pub struct Transition {
    /// Empty if nothing has changed.
    pub writes: Vec<PurchaseWrite>,
    pub next: NextAction,
}

/// A write of a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PurchaseWrite {
    /// Saves the record.
    SaveRecord,
    /// Deletes the record of a finished purchase.
    DeleteRecord,
    /// Posts the total from card to escrow in the ledger.
    PostAuthorisation,
    /// Posts the total from escrow back to the card in the ledger.
    PostVoid,
    /// Writes the history, posts the total from escrow to the sellers and the house in the ledger, and removes what was
    /// bought from the carts.
    PostSale,
}

/// What to do once the writes are on disk.
#[derive(Debug, PartialEq)]
pub enum NextAction {
    /// Send a request to the bank. Its response is the next event, on behalf of the same caller.
    AskBank(BankRequest),
    /// Respond to the caller. If this is `Ok`, the caller of `Complete` gets [`Purchase::outcome`].
    Respond(ShopResult<()>),
}

/// A request to the bank, which uses the purchase's id as its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BankRequest {
    /// Hold this amount on the card.
    Authorise(Cents),
    /// Charge the held amount.
    Capture,
    /// Release the held amount.
    Void,
}

impl Transition {
    fn new(writes: &[PurchaseWrite], next: NextAction) -> Transition {
        Transition { writes: writes.to_vec(), next }
    }

    fn ask_bank(writes: &[PurchaseWrite], call: BankRequest) -> Transition {
        Transition::new(writes, NextAction::AskBank(call))
    }

    fn succeed(writes: &[PurchaseWrite]) -> Transition {
        Transition::new(writes, NextAction::Respond(Ok(())))
    }

    fn refuse(refusal: Refusal) -> Transition {
        Transition::new(&[], NextAction::Respond(Err(refusal)))
    }
}

impl Purchase {
    /// Handles an event and returns its effects.
    pub fn handle(&mut self, now: Millis, event: PurchaseEvent<'_>) -> Transition {
        match event {
            PurchaseEvent::Authorise { lease, lines } => self.authorise(now, lease, lines),
            PurchaseEvent::Authorised => match self.stage {
                PurchaseStage::Authorising => {
                    self.stage = PurchaseStage::Authorised;
                    self.is_booked = true;
                    Transition::succeed(&[PurchaseWrite::SaveRecord, PurchaseWrite::PostAuthorisation])
                }
                _ => self.current_response(),
            },
            PurchaseEvent::Declined(reason) => match self.stage {
                PurchaseStage::Authorising => {
                    self.fail(PurchaseStage::Voided, now, payment_declined(reason));
                    Transition::new(&[PurchaseWrite::SaveRecord], self.current_response().next)
                }
                _ => self.current_response(),
            },
            PurchaseEvent::Complete { lease } => self.complete(lease),
            PurchaseEvent::Captured => match self.stage {
                PurchaseStage::Completed => {
                    self.stage = PurchaseStage::Captured;
                    self.captured_at = now;
                    Transition::succeed(&[PurchaseWrite::PostSale, PurchaseWrite::DeleteRecord])
                }
                _ => self.current_response(),
            },
            PurchaseEvent::CaptureRefused(reason) => match self.stage {
                PurchaseStage::Completed => {
                    self.fail(PurchaseStage::Undone, now, payment_declined(reason));
                    Transition::ask_bank(&[PurchaseWrite::SaveRecord], BankRequest::Void)
                }
                PurchaseStage::Undone => Transition::ask_bank(&[], BankRequest::Void),
                _ => self.current_response(),
            },
            PurchaseEvent::Undo { lease, why } => self.undo(now, lease, why),
            PurchaseEvent::Voided => match self.stage {
                PurchaseStage::Undone => {
                    self.stage = PurchaseStage::Voided;
                    let booked = std::mem::take(&mut self.is_booked);
                    Transition::succeed(if booked {
                        &[PurchaseWrite::SaveRecord, PurchaseWrite::PostVoid]
                    } else {
                        &[PurchaseWrite::SaveRecord]
                    })
                }
                PurchaseStage::Voided | PurchaseStage::Closed => Transition::succeed(&[]),
                // The bank is not asked to void in any other stage.
                _ => Transition::refuse(out_of_order("it was not undone")),
            },
            PurchaseEvent::Closed { lease } => match self.stage {
                PurchaseStage::Closed => Transition::succeed(&[]),
                _ if lease != self.lease => Transition::refuse(lease_lost()),
                PurchaseStage::Voided => {
                    self.stage = PurchaseStage::Closed;
                    Transition::succeed(&[PurchaseWrite::DeleteRecord])
                }
                PurchaseStage::Undone => {
                    Transition::refuse(Refusal::new(ErrorCode::Unavailable, "the bank has not let go of it yet"))
                }
                _ => Transition::refuse(out_of_order("it is not undone")),
            },
        }
    }

    fn complete(&mut self, lease: u64) -> Transition {
        match self.stage {
            PurchaseStage::Captured => Transition::succeed(&[]),
            PurchaseStage::Completed => Transition::ask_bank(&[], BankRequest::Capture),
            _ if lease != self.lease => Transition::refuse(lease_lost()),
            PurchaseStage::Authorised => {
                self.stage = PurchaseStage::Completed;
                Transition::ask_bank(&[PurchaseWrite::SaveRecord], BankRequest::Capture)
            }
            PurchaseStage::Begun | PurchaseStage::Authorising => {
                Transition::refuse(out_of_order("it is not authorised"))
            }
            PurchaseStage::Undone | PurchaseStage::Voided | PurchaseStage::Closed => self.current_response(),
        }
    }

    fn undo(&mut self, now: Millis, lease: u64, why: Refusal) -> Transition {
        match self.stage {
            PurchaseStage::Undone => Transition::ask_bank(&[], BankRequest::Void),
            PurchaseStage::Voided | PurchaseStage::Closed => Transition::succeed(&[]),
            _ if lease != self.lease => Transition::refuse(lease_lost()),
            PurchaseStage::Begun => {
                self.fail(PurchaseStage::Voided, now, why);
                Transition::succeed(&[PurchaseWrite::SaveRecord])
            }
            PurchaseStage::Authorising | PurchaseStage::Authorised => {
                self.fail(PurchaseStage::Undone, now, why);
                Transition::ask_bank(&[PurchaseWrite::SaveRecord], BankRequest::Void)
            }
            PurchaseStage::Completed | PurchaseStage::Captured => Transition::refuse(out_of_order("it is completed")),
        }
    }

    fn authorise(&mut self, now: Millis, lease: u64, lines: Vec<PricedLine>) -> Transition {
        if lease != self.lease {
            return Transition::refuse(lease_lost());
        }
        match self.stage {
            PurchaseStage::Begun => {
                let same = |(line, priced): (&LineItem, &PricedLine)| {
                    line.item_id == priced.item_id && line.quantity == priced.quantity
                };
                if lines.len() != self.cart.lines.len() || !self.cart.lines.iter().zip(&lines).all(same) {
                    return Transition::refuse(Refusal::new(
                        ErrorCode::BadRequest,
                        "lines: they are not those of the cart",
                    ));
                }
                if let Some(line) = lines.iter().find(|line| Name::from_stored(&line.seller).is_err()) {
                    let text = format!("seller: {:?} is no user name, so nobody can be paid", line.seller);
                    return Transition::refuse(Refusal::new(ErrorCode::BadRequest, text));
                }
                let Some(total) = total(&lines) else {
                    let text = format!("quantity: the total may be at most {TOTAL_MAX}");
                    return Transition::refuse(Refusal::new(ErrorCode::BadRequest, text));
                };
                self.priced = lines;
                self.stage = PurchaseStage::Authorising;
                self.leased_until = now.plus_ms(LEASE_MS);
                Transition::ask_bank(&[PurchaseWrite::SaveRecord], BankRequest::Authorise(total))
            }
            PurchaseStage::Authorising if self.priced != lines => {
                Transition::refuse(Refusal::new(ErrorCode::BadRequest, "lines: they were others before"))
            }
            PurchaseStage::Authorising => Transition::ask_bank(&[], BankRequest::Authorise(self.total())),
            _ => self.current_response(),
        }
    }

    /// Gives the purchase to another driver if the present one's lease has expired. The new lease must be on disk
    /// before the driver is told, or it might be given out twice.
    pub fn take_over(&mut self, now: Millis) -> Option<OrphanedPurchase> {
        if !self.is_orphan(now) {
            return None;
        }
        self.lease += 1;
        self.leased_until = now.plus_ms(LEASE_MS);
        Some(OrphanedPurchase {
            purchase_id: self.id.clone(),
            lease: self.lease,
            lease_ms: LEASE_MS,
            is_undone: self.stage == PurchaseStage::Voided,
            is_authorised: self.stage == PurchaseStage::Authorised,
        })
    }

    /// Extends the lease of the present driver, even if it has expired, as long as no other driver has taken over. This
    /// is not written to disk: see [`resume`](Purchase::resume).
    pub fn renew(&mut self, now: Millis, lease: u64) {
        if lease == self.lease {
            self.leased_until = self.leased_until.max(now.plus_ms(LEASE_MS));
        }
    }

    /// Whether the purchase needs a driver and the present one's lease has expired.
    pub fn is_orphan(&self, now: Millis) -> bool {
        // From `Completed` on it needs no driver: the rest is between the database and the bank.
        let is_driven =
            !matches!(self.stage, PurchaseStage::Completed | PurchaseStage::Captured | PurchaseStage::Closed);
        is_driven && self.leased_until <= now
    }

    /// Adjusts the lease after a restart: a driver that is still alive gets time to renew it, and a clock that was set
    /// back must not make the lease longer than [`LEASE_MS`].
    pub fn resume(&mut self, now: Millis) {
        self.leased_until = self.leased_until.clamp(now.plus_ms(2 * RENEW_MS), now.plus_ms(LEASE_MS));
    }

    /// Makes the lease expire.
    #[cfg(test)]
    pub fn expire_lease(&mut self) {
        self.leased_until = Millis(0);
    }

    /// The request to the bank that must be repeated after a restart, or because the bank did not respond.
    pub fn pending_bank_request(&self) -> Option<BankRequest> {
        match self.stage {
            PurchaseStage::Completed => Some(BankRequest::Capture),
            PurchaseStage::Undone => Some(BankRequest::Void),
            _ => None,
        }
    }

    pub fn stage(&self) -> PurchaseStage {
        self.stage
    }

    /// The present driver's lease.
    pub fn lease(&self) -> u64 {
        self.lease
    }

    /// When the lease expires.
    pub fn leased_until(&self) -> Millis {
        self.leased_until
    }

    /// Whether it is captured or closed, so that its buyer's next purchase may begin.
    pub fn is_terminal(&self) -> bool {
        matches!(self.stage, PurchaseStage::Captured | PurchaseStage::Closed)
    }

    /// The sum of the lines; zero before they have prices.
    pub fn total(&self) -> Cents {
        // `authorise` has checked that the sum does not overflow.
        total(&self.priced).unwrap_or_default()
    }

    /// The amount that the ledger has in escrow for this purchase.
    #[cfg(any(test, feature = "internals"))]
    pub fn in_escrow(&self) -> Cents {
        if self.is_booked && self.stage != PurchaseStage::Captured { self.total() } else { Cents(0) }
    }

    /// The result for the buyer, once it is captured or undone.
    pub fn outcome(&self) -> ShopResult<CompletedPurchase> {
        match (self.stage, &self.why) {
            (PurchaseStage::Captured, _) => {
                Ok(CompletedPurchase { purchase_id: self.id.clone(), total: self.total(), items: self.priced.clone() })
            }
            (_, Some(why)) => Err(why.clone()),
            _ => Err(lease_lost()),
        }
    }

    /// Whether a later attempt under the same key means this purchase: it has the same address, and either the same
    /// cart or the empty one that the purchase has left.
    fn matches_attempt(&self, attempt: &PurchaseAttempt) -> bool {
        let same_cart = attempt.cart.lines.is_empty() || attempt.cart.lines == self.cart.lines;
        same_cart && attempt.address == self.address
    }

    fn fail(&mut self, stage: PurchaseStage, now: Millis, why: Refusal) {
        self.stage = stage;
        self.why.get_or_insert(why);
        self.leased_until = self.leased_until.min(now.plus_ms(UNDONE_LEASE_MS));
    }

    /// The response to an event that changes nothing, because it is late or repeated.
    fn current_response(&self) -> Transition {
        match (self.stage, &self.why) {
            (PurchaseStage::Authorised | PurchaseStage::Completed | PurchaseStage::Captured, _) => {
                Transition::succeed(&[])
            }
            (_, Some(why)) => Transition::refuse(why.clone()),
            _ => Transition::refuse(lease_lost()),
        }
    }
}

impl fmt::Debug for Purchase {
    /// Does not show the address, which must not be logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Purchase { id, stage, lease, leased_until, why, .. } = self;
        write!(f, "Purchase({id} {stage:?} lease {lease} until {} {why:?})", leased_until.0)
    }
}

/// The sum of the lines; `None` if it overflows or is zero.
fn total(lines: &[PricedLine]) -> Option<Cents> {
    let sum = lines.iter().try_fold(0i64, |sum, line| sum.checked_add(line.price.0.checked_mul(line.quantity.into())?));
    sum.map(Cents).filter(|sum| sum.0 > 0)
}

fn payment_declined(reason: &str) -> Refusal {
    Refusal::new(ErrorCode::PaymentDeclined, reason)
}

fn lease_lost() -> Refusal {
    Refusal::new(ErrorCode::Forbidden, "lease: another goes on with this purchase")
}

fn out_of_order(why: &str) -> Refusal {
    Refusal::new(ErrorCode::Forbidden, format!("purchase_id: {why}"))
}
