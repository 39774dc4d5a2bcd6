//! The door to whoever charges cards (SPEC.md section 7). A real provider can take the built-in one's place.

use crate::model::{Card, Cents, Millis};
use crate::storage::StoreError;

/// Charges cards. One key a purchase serves all three calls, and every call may be repeated: the same
/// call gets the same answer and happens once.
///
/// The rules: capture at most once; no authorise and no capture after void; no void after capture; a
/// void for a key never seen is remembered and refuses the authorise that comes late.
pub trait Gateway: Send + Sync {
    /// Reserves an amount on a card.
    ///
    /// # Errors
    /// [`GatewayError::Unreachable`]: whether it happened is not known; ask again, or void.
    fn authorise(&self, key: &str, amount: Cents, card: &Card, now: Millis) -> Result<Authorisation, GatewayError>;

    /// Takes what was authorised.
    ///
    /// # Errors
    /// [`GatewayError::Unreachable`]: whether it happened is not known; ask again until it answers.
    fn capture(&self, key: &str, now: Millis) -> Result<Capture, GatewayError>;

    /// Lets go of what was authorised, or will be.
    ///
    /// # Errors
    /// [`GatewayError::Unreachable`]: whether it happened is not known; ask again until it answers.
    fn void(&self, key: &str, now: Millis) -> Result<Void, GatewayError>;
}

/// What became of an authorise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authorisation {
    /// The amount is reserved (or was already taken, when the call is a late repeat).
    Authorised,
    /// It is not, and this key will never get it.
    Declined {
        /// Why, for the card's owner to read.
        reason: String,
    },
}

/// What became of a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Capture {
    /// The amount was taken, once.
    Captured,
    /// It was not.
    Refused {
        /// Why, for a person to read.
        reason: String,
    },
}

/// What became of a void.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Void {
    /// Nothing is reserved under this key, nor ever will be.
    Voided,
    /// It was captured before, and stays so.
    Captured {
        /// What was taken: whoever asked for another amount has been charged nothing.
        amount: Cents,
    },
}

/// No answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GatewayError {
    /// Whether the call took effect is not known: make the same call again.
    #[error("the payment gateway gave no answer: {0}")]
    Unreachable(String),
}

/// A gateway's own store that fails is, from outside, a gateway that does not answer.
impl From<StoreError> for GatewayError {
    fn from(error: StoreError) -> GatewayError {
        GatewayError::Unreachable(error.to_string())
    }
}
