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
//!
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

/// After so long without a sign of life of its driver, another may take over a purchase.
pub const LEASE_MS: u64 = 2_500;
/// The same once the purchase is undone: what remains is idempotent and may be done by any driver.
pub const UNDONE_LEASE_MS: u64 = 1_000;
/// How often a frontend renews the leases of what it drives. A few lost renewals do no harm.
pub const RENEW_MS: u64 = 500;
/// What 64 bits can hold: 92233720368547758.07.
pub const TOTAL_MAX: Cents = Cents(i64::MAX);
/// An idempotency key stays bound to its purchase.
pub const KEY_RETENTION_MS: u64 = 30 * 86_400_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PurchaseStage {
    /// The bank has not been asked for anything.
    Begun,
    /// The bank is being asked, or was before a crash.
    Authorising,
    /// The bank holds the total.
    Authorised,
    /// The units are sold; the charge is being captured.
    Completed,
    /// The card is charged.
    Captured,
    /// It failed; the bank is being asked to void, or was before a crash.
    Undone,
    /// Nothing is held on the card, nor ever will be.
    Voided,
    /// The units are back in stock as well.
    Closed,
}

/// A buyer, as the record and the ledger identify one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuyerIdentity {
    pub user_id: u64,
    /// It names the card's account in the ledger.
    pub username: Name,
    /// The name that is shown.
    pub name: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CartSnapshot {
    pub session: SessionKey,
    /// It is the buyer's saved cart, loaded into the session's, as in dialect 2.
    #[serde(rename = "users")]
    pub uses_saved_cart: bool,
    /// The lines, ordered by item id.
    pub lines: Vec<LineItem>,
}

#[derive(Clone)]
pub struct PurchaseAttempt {
    pub buyer: BuyerIdentity,
    /// A retry of the same message gets the same response.
    pub request: String,
    pub cart: CartSnapshot,
    /// The idempotency key that the buyer chose.
    pub key: Option<String>,
    pub address: Option<String>,
}

pub enum BeginDecision {
    /// A new purchase, which the caller drives once it is on disk.
    Drive(Box<Purchase>),
    /// A retry of the request that began the open purchase gets the same response.
    Repeat,
    /// Another purchase of the buyer is open: decide again when that is over.
    Wait,
    /// It was completed before under this key.
    Done,
    Refuse(Refusal),
}

/// `open` is the buyer's open purchase, and `completed` the newest one that the buyer has completed under the attempt's
/// key.
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
    Refusal::wrong("idempotency_key", "it was used for another purchase (other cart or other address)")
}

/// The record, which is stored as JSON.
#[derive(Clone, Serialize, Deserialize)]
pub struct Purchase {
    /// 128 random bits in hex; also the key at the bank, in the ledger and for the hold.
    pub id: String,
    pub buyer: BuyerIdentity,
    /// Like `cart` and `key`, it is that of the [`PurchaseAttempt`].
    pub request: String,
    pub cart: CartSnapshot,
    pub key: Option<String>,
    pub address: Option<String>,
    /// The cart's lines, once the units are held.
    pub priced: Vec<PricedLine>,
    pub begun_at: Millis,
    /// 0 before.
    pub captured_at: Millis,
    stage: PurchaseStage,
    lease: u64,
    leased_until: Millis,
    /// The ledger has the total in escrow.
    is_booked: bool,
    why: Option<Refusal>,
}

/// Events with a lease come from a driver, the others from the bank.
#[derive(Debug)]
pub enum PurchaseEvent {
    // The units are held at these prices.
    Authorise { lease: u64, lines: Vec<PricedLine> },
    Authorised,
    // The bank declines for good under this purchase's key.
    Declined(String),
    // The units are sold.
    Complete { lease: u64 },
    Captured,
    // The bank refuses definitely.
    CaptureRefused(String),
    // The buyer is told why.
    Undo { lease: u64, why: Refusal },
    // The bank has voided, or never held the total.
    Voided,
    // The units of an undone purchase are back in stock.
    Closed { lease: u64 },
}

/// The writes, in one transaction, and what to do once they and all earlier ones of this purchase are on disk.
#[derive(Debug, PartialEq)]
pub struct Transition {
    /// Empty if nothing has changed.
    pub writes: Vec<PurchaseWrite>,
    pub next: NextAction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PurchaseWrite {
    SaveRecord,
    /// Deletes the record of a finished purchase.
    DeleteRecord,
    /// Posts the total from card to escrow in the ledger.
    PostAuthorisation,
    /// Posts the total from escrow back to the card in the ledger.
    PostVoid,
    /// Writes the history, posts the total from escrow to the sellers and the house, and removes what was bought from
    /// the carts.
    PostSale,
}

#[derive(Debug, PartialEq)]
pub enum NextAction {
    /// The bank's response is the next event, on behalf of the same caller.
    AskBank(BankRequest),
    /// If this is `Ok`, the caller of `Complete` gets [`Purchase::outcome`].
    Respond(ShopResult<()>),
}

/// Its key is the purchase's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BankRequest {
    Authorise(Cents),
    Capture,
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
    pub fn handle(&mut self, now: Millis, event: PurchaseEvent) -> Transition {
        match (event, self.stage) {
            (PurchaseEvent::Authorise { lease, lines }, _) => self.authorise(now, lease, lines),
            (PurchaseEvent::Authorised, PurchaseStage::Authorising) => {
                self.stage = PurchaseStage::Authorised;
                self.is_booked = true;
                Transition::succeed(&[PurchaseWrite::SaveRecord, PurchaseWrite::PostAuthorisation])
            }
            (PurchaseEvent::Declined(reason), PurchaseStage::Authorising) => {
                self.fail(PurchaseStage::Voided, now, payment_declined(reason));
                Transition::new(&[PurchaseWrite::SaveRecord], self.current_response().next)
            }
            (PurchaseEvent::Complete { lease }, _) => self.complete(lease),
            (PurchaseEvent::Captured, PurchaseStage::Completed) => {
                self.stage = PurchaseStage::Captured;
                self.captured_at = now;
                Transition::succeed(&[PurchaseWrite::PostSale, PurchaseWrite::DeleteRecord])
            }
            (PurchaseEvent::CaptureRefused(reason), PurchaseStage::Completed) => {
                self.fail(PurchaseStage::Undone, now, payment_declined(reason));
                Transition::ask_bank(&[PurchaseWrite::SaveRecord], BankRequest::Void)
            }
            (PurchaseEvent::CaptureRefused(_), PurchaseStage::Undone) => Transition::ask_bank(&[], BankRequest::Void),
            (
                PurchaseEvent::Authorised
                | PurchaseEvent::Declined(_)
                | PurchaseEvent::Captured
                | PurchaseEvent::CaptureRefused(_),
                _,
            ) => self.current_response(),
            (PurchaseEvent::Undo { lease, why }, _) => self.undo(now, lease, why),
            (PurchaseEvent::Voided, PurchaseStage::Undone) => {
                self.stage = PurchaseStage::Voided;
                let booked = std::mem::take(&mut self.is_booked);
                let writes = [PurchaseWrite::SaveRecord, PurchaseWrite::PostVoid];
                Transition::succeed(if booked { &writes } else { &writes[..1] })
            }
            (PurchaseEvent::Voided, PurchaseStage::Voided | PurchaseStage::Closed) => Transition::succeed(&[]),
            // The bank is not asked in any other stage.
            (PurchaseEvent::Voided, _) => Transition::refuse(out_of_order("it was not undone")),
            (PurchaseEvent::Closed { .. }, PurchaseStage::Closed) => Transition::succeed(&[]),
            (PurchaseEvent::Closed { lease }, _) if lease != self.lease => Transition::refuse(lease_lost()),
            (PurchaseEvent::Closed { .. }, PurchaseStage::Voided) => {
                self.stage = PurchaseStage::Closed;
                Transition::succeed(&[PurchaseWrite::DeleteRecord])
            }
            (PurchaseEvent::Closed { .. }, PurchaseStage::Undone) => {
                Transition::refuse(Refusal::new(ErrorCode::Unavailable, "the bank has not let go of it yet"))
            }
            (PurchaseEvent::Closed { .. }, _) => Transition::refuse(out_of_order("it is not undone")),
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
                    return Transition::refuse(Refusal::wrong("lines", "they are not those of the cart"));
                }
                if let Some(line) = lines.iter().find(|line| Name::from_stored(&line.seller).is_err()) {
                    let rule = format!("{:?} is no user name, so nobody can be paid", line.seller);
                    return Transition::refuse(Refusal::wrong("seller", rule));
                }
                let Some(total) = total(&lines) else {
                    let rule = format!("the total may be at most {TOTAL_MAX}");
                    return Transition::refuse(Refusal::wrong("quantity", rule));
                };
                self.priced = lines;
                self.stage = PurchaseStage::Authorising;
                self.leased_until = now.plus_ms(LEASE_MS);
                Transition::ask_bank(&[PurchaseWrite::SaveRecord], BankRequest::Authorise(total))
            }
            PurchaseStage::Authorising if self.priced != lines => {
                Transition::refuse(Refusal::wrong("lines", "they were others before"))
            }
            PurchaseStage::Authorising => Transition::ask_bank(&[], BankRequest::Authorise(self.total())),
            _ => self.current_response(),
        }
    }

    /// Gives the purchase to another driver if the present one's lease has expired. The new one must be on disk before
    /// its driver is told, or it might be given out twice.
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

    /// Extends the lease, even if it has expired, as long as no other driver has taken over. Not written to disk: see
    /// [`resume`](Purchase::resume).
    pub fn renew(&mut self, now: Millis, lease: u64) {
        if lease == self.lease {
            self.leased_until = self.leased_until.max(now.plus_ms(LEASE_MS));
        }
    }

    /// It needs a driver and the present one's lease has expired.
    pub fn is_orphan(&self, now: Millis) -> bool {
        // From `Completed` on, the rest is between the database and the bank.
        let is_driven =
            !matches!(self.stage, PurchaseStage::Completed | PurchaseStage::Captured | PurchaseStage::Closed);
        is_driven && self.leased_until <= now
    }

    /// After a restart a driver that is still alive gets time to renew the lease, and a clock that was set back must
    /// not make it longer than [`LEASE_MS`].
    pub fn resume(&mut self, now: Millis) {
        self.leased_until = self.leased_until.clamp(now.plus_ms(2 * RENEW_MS), now.plus_ms(LEASE_MS));
    }

    #[cfg(test)]
    pub fn expire_lease(&mut self) {
        self.leased_until = Millis(0);
    }

    /// The request that must be repeated after a restart, or because the bank did not respond.
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

    pub fn lease(&self) -> u64 {
        self.lease
    }

    pub fn leased_until(&self) -> Millis {
        self.leased_until
    }

    /// Then the buyer's next purchase may begin.
    pub fn is_terminal(&self) -> bool {
        matches!(self.stage, PurchaseStage::Captured | PurchaseStage::Closed)
    }

    /// Zero before the lines have prices.
    pub fn total(&self) -> Cents {
        // `authorise` has checked that it does not overflow.
        total(&self.priced).unwrap_or_default()
    }

    #[cfg(any(test, feature = "internals"))]
    pub fn in_escrow(&self) -> Cents {
        if self.is_booked && self.stage != PurchaseStage::Captured { self.total() } else { Cents(0) }
    }

    /// The result for the buyer, once the purchase is captured or undone.
    pub fn outcome(&self) -> ShopResult<CompletedPurchase> {
        match (self.stage, &self.why) {
            (PurchaseStage::Captured, _) => {
                Ok(CompletedPurchase { purchase_id: self.id.clone(), total: self.total(), items: self.priced.clone() })
            }
            (_, Some(why)) => Err(why.clone()),
            _ => Err(lease_lost()),
        }
    }

    /// A later attempt under the same key means this purchase if it has the same address, and either the same cart or
    /// the empty one that the purchase has left.
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
    /// The address must not be logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Purchase { id, stage, lease, leased_until, why, .. } = self;
        write!(f, "Purchase({id} {stage:?} lease {lease} until {} {why:?})", leased_until.0)
    }
}

/// `None` if it overflows or is zero.
fn total(lines: &[PricedLine]) -> Option<Cents> {
    let sum = lines.iter().try_fold(0i64, |sum, line| sum.checked_add(line.price.0.checked_mul(line.quantity.into())?));
    sum.map(Cents).filter(|sum| sum.0 > 0)
}

fn payment_declined(reason: String) -> Refusal {
    Refusal::new(ErrorCode::PaymentDeclined, reason)
}

fn lease_lost() -> Refusal {
    Refusal::new(ErrorCode::Forbidden, "lease: another goes on with this purchase")
}

fn out_of_order(why: &str) -> Refusal {
    Refusal::new(ErrorCode::Forbidden, format!("purchase_id: {why}"))
}
